"""An S3-compatible object store as origin: uploads, URLs that expire, a region that goes on without control (S4).

The store is real (``tests/s3_kit.py``), control and super hub are the product's own; bytes are counted in its log.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import socket
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

import obstore
import pytest

from control.config import OriginConfig
from edgectl import releasing, uploading
from superhub.app import SuperHub
from tests.conftest import make_manifest
from tests.s3_kit import PLACE, PREFIX, S3, SECRET, running_s3
from tests.superhub_kit import MIB, python, read_all
from tests.unit.control.control_kit import MIDWEST, World, identity_of, make_world
from wavemesh.artifacts.digests import digest_of
from wavemesh.artifacts.objectstore import open_store
from wavemesh.artifacts.signedurls import ASK_KIND, OriginUrlsAnswer, OriginUrlsRequest
from wavemesh.artifacts.transfer import ArtifactClient
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import ConflictError, ForbiddenError, GateError, LinkDownError, NotFoundError, PeerError
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.config import ConfigError
from wavemesh.runtime.grpc import make_bulk_channel
from wavemesh.trust.releases import Artifact
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from tests.unit.control.control_kit import Region as ControlsRegion
    from tests.unit.control.control_kit import Served
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.releases import ReleaseManifest
    from wavemesh.trust.statements import Digest

IMAGE = Random(4).randbytes(6 * MIB + 3)
SLOW_BYTES_PER_S = 2 * MIB

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, credentials: CredentialsFactory) -> Iterator[S3]:
    directory = tmp_path_factory.mktemp("s3") / "swift"
    directory.mkdir()
    with running_s3(directory, identity_of(credentials, "control/origin", directory)) as store:
        yield store


class BehindClock:
    """A clock of a hub that is ten minutes behind."""

    def now(self) -> datetime:
        return datetime.now(UTC) - timedelta(minutes=10)

    def monotonic(self) -> float:
        return SystemClock().monotonic()


@dataclass(slots=True)
class Mesh:
    """Control, a super hub's directory and stores."""

    directory: Path
    world: World
    s3: S3
    keys: TrustKeys
    url_lifetime_s: float = 48 * 3600
    secret: str = SECRET
    schedule: str = ""

    @property
    def hub_dir(self) -> Path:
        return self.directory / "superhub"

    def draft(self, name: str, content: bytes, base: releasing.Base | None = None, **changes: object) -> Path:
        """A release drafted and signed by two holders, as `edgectl release create` and `sign` do."""
        directory, image = self.directory / f"draft-{name}", self.directory / f"{name}.img"
        image.write_bytes(content)
        manifest = make_manifest(name, firmware=Artifact(image.name, digest_of(content)), config=None, **changes)
        first = releasing.Base((self.keys.pinned_root,), self.keys.empty.targets, {})
        releasing.create(directory, manifest, {image.name: image}, base or first)
        for _ in range(2):
            releasing.sign(directory, self.keys.releases[:2], datetime.now(UTC))
        return directory

    def upload(self, draft: Path) -> list[uploading.Upload]:
        return uploading.upload_artifacts(draft, str(PLACE), self.s3.write_access(self.directory / "publisher.toml"))

    async def publish(self, served: Served, name: str, content: bytes, **changes: object) -> ReleaseManifest:
        """The whole way: draft, upload, metadata to control."""
        async with served.calling() as stub:
            base = releasing.Base.of(await stub.ListReleases(operator_pb2.ListReleasesRequest()))
            draft = await asyncio.to_thread(self.draft, name, content, base, **changes)
            await asyncio.to_thread(self.upload, draft)
            await stub.PublishRelease(operator_pb2.PublishReleaseRequest(targets=releasing.signed_targets(draft)))
        release = served.control.core.releases.all()[name]
        # The read back is logged when it ended, which may be a moment after its last byte.
        await until(lambda: self.s3.requests(release.main.digest.sha256))
        return release

    @asynccontextmanager
    async def control(self) -> AsyncIterator[Served]:
        access = self.s3.write_access(self.world.directory / "keys" / "origin.toml", self.secret)
        origin = OriginConfig(str(PLACE), access, url_lifetime_h=self.url_lifetime_s / 3600)
        self.world.config = dataclasses.replace(self.world.config, origins={"main": origin})
        async with self.world.serving() as served:
            yield served

    def write_hub(self) -> None:
        self.hub_dir.mkdir(exist_ok=True)
        identity = identity_of(self.world.credentials, MIDWEST.path, self.hub_dir)
        shutil.copytree(identity, self.hub_dir / "identity", dirs_exist_ok=True)
        (self.hub_dir / "trust").mkdir(exist_ok=True)
        (self.hub_dir / "trust" / "root.json").write_bytes(self.keys.pinned_root)
        (self.hub_dir / "config.toml").write_text(
            'listen = "127.0.0.1:0"\ndrain_s = 0.1\n'
            f'[control]\naddress = "{self.world.config.listen}"\nname = "cloud-1"\n'
            f'[origin]\nurl = "{PLACE}"\nendpoint = "{self.s3.endpoint}"\n'
            f'ca_file = "{self.s3.ca_file}"\n{self.schedule}'
        )

    @asynccontextmanager
    async def hub(self, clock: Clock | None = None) -> AsyncIterator[SuperHub]:
        """The super hub in this process, cancelled at the end, as a crash would."""
        self.write_hub()
        hub = SuperHub(self.hub_dir, clock or SystemClock(), Random(5))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(hub.run())
            started = group.create_task(hub.started.wait())
            await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
            started.cancel()
            yield hub
            task.cancel()

    @asynccontextmanager
    async def hub_process(self) -> AsyncIterator[int]:
        """The super hub as a process; its port."""
        self.write_hub()
        port = free_port()
        config = self.hub_dir / "config.toml"
        config.write_text(config.read_text().replace('"127.0.0.1:0"', f'"127.0.0.1:{port}"'))
        process = await python("superhub", "--dir", str(self.hub_dir))
        try:
            await until(lambda: listens(port))
            yield port
        finally:
            process.kill()
            await process.wait()

    def client(self, port: int, store: str = "store-208") -> ArtifactClient:
        credentials = self.world.credentials(f"{MIDWEST.path}/store/{store}")
        return ArtifactClient(lambda: make_bulk_channel(credentials, f"127.0.0.1:{port}", MIDWEST))

    async def read(self, hub: SuperHub, digest: Digest, store: str = "store-208") -> bytes:
        """All of a blob, once the hub has heard of it."""
        await until(lambda: knows(hub, digest))
        return await read_all(self.client(hub.port, store), digest)

    def held_bytes(self, digest: Digest) -> int:
        """What the super hub has on disk of a blob that is arriving."""
        partials = (self.hub_dir / "state" / "cache" / "partial").glob(f"{digest.sha256}*")
        [partial] = [path for path in partials if not path.suffix]
        return partial.stat().st_size

    async def begin(self, hub: SuperHub, digest: Digest) -> None:
        """Read until the first bytes are here, and leave."""
        await until(lambda: knows(hub, digest))
        async with aclosing(self.client(hub.port).read(digest)) as pieces:
            await anext(pieces)


def knows(hub: SuperHub, digest: Digest) -> bool:
    trusted = hub.parts.sink._acceptance.trusted
    return trusted is not None and bool(trusted.releases_with(digest))


async def until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    """Another process, or the hub's own tasks, make it true; nobody tells the test when."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def ask_urls(region: ControlsRegion, digests: tuple[Digest, ...]) -> OriginUrlsAnswer:
    """What control answers to a super hub."""
    await until(lambda: region.upstream._is_open)
    return decode(OriginUrlsAnswer, await region.upstream.ask(ASK_KIND, encode(OriginUrlsRequest(digests)), 10.0))


def artifact_of(content: bytes) -> Artifact:
    return Artifact("fw-8.img", digest_of(content))


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture
def mesh(tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, s3: S3) -> Mesh:
    directory = tmp_path / "control"
    directory.mkdir()
    world = make_world(directory, credentials, trust_keys)
    world.config = dataclasses.replace(world.config, listen=f"127.0.0.1:{free_port()}")
    return Mesh(tmp_path, world, s3, trust_keys)


async def urls_of(mesh: Mesh, digest: Digest) -> str:
    """The URL that the hub has on disk."""
    import aiosqlite

    async with aiosqlite.connect(mesh.hub_dir / "state" / "superhub.db") as database:
        rows = await database.execute_fetchall("SELECT url FROM origin_urls WHERE sha256 = ?", (digest.sha256,))
    [[url]] = rows
    return str(url)


async def test_a_region_reads_a_bucket_by_urls_that_control_signs(mesh: Mesh) -> None:
    """S4, S1: many stores, one transfer; the hub never has the credentials; a URL reads its one blob and no more."""
    async with mesh.control() as served, mesh.hub() as hub:
        release = await mesh.publish(served, "fw-1", IMAGE)
        other = (await mesh.publish(served, "fw-2", b"another image")).main.digest
        digest = release.main.digest
        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(mesh.read(hub, digest, f"store-{number}")) for number in range(6)]
        assert all(read.result() == IMAGE for read in reads)
        url = await urls_of(mesh, digest)
    assert [(one.status, one.sent_bytes) for one in mesh.s3.requests(digest.sha256)[1:]] == [(200, len(IMAGE))]
    assert await mesh.s3.ask("GET", url) == 200
    assert await mesh.s3.ask("GET", url.replace(digest.sha256, other.sha256)) == 403
    assert await mesh.s3.ask("PUT", url) == 403
    assert await mesh.s3.ask("GET", url.partition("?")[0]) in {400, 401, 403, 404}
    files = [path for path in mesh.hub_dir.rglob("*") if path.is_file()]
    assert files
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


async def test_a_url_that_expired_is_refused_and_replaced(mesh: Mesh) -> None:
    """S4: the store's clock decides; this hub's is behind, so it does not see the end coming. The fetch goes on at its
    byte with another URL, and where control is dark it says what is the matter and waits.
    """
    mesh.url_lifetime_s, mesh.schedule = 2.0, f"[origin.schedule]\nbytes_per_s = {SLOW_BYTES_PER_S}\n"
    async with mesh.control() as served, mesh.hub(BehindClock()) as hub:
        signed_at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
        digest = (await mesh.publish(served, "fw-1", IMAGE, signed_at=signed_at)).main.digest
        await mesh.begin(hub, digest)
        url = await urls_of(mesh, digest)
    while await mesh.s3.ask("GET", url) != 403:  # noqa: ASYNC110  # the store's clock, which no test turns
        await asyncio.sleep(0.1)
    uploaded = len(mesh.s3.requests(digest.sha256))
    mesh.schedule = ""
    async with mesh.hub(BehindClock()) as hub:
        with pytest.raises(LinkDownError, match=r"no URL of the origin for blob .* can be reached"):
            await mesh.read(hub, digest)
        async with mesh.control():
            await until(lambda: hub.parts.upstream._is_open)
            assert await mesh.read(hub, digest) == IMAGE
    await until(lambda: mesh.s3.requests(digest.sha256)[-1].status == 206)
    answers = mesh.s3.requests(digest.sha256)[uploaded:]
    assert {one.status for one in answers[:-1]} == {403}
    assert answers[-1].status == 206
    assert answers[-1].sent_bytes < len(IMAGE)


async def test_a_region_goes_on_without_control_for_as_long_as_a_url_lives(mesh: Mesh) -> None:
    """S4, M3: control dark, super hub killed in the middle: the rest is fetched by the URL on disk, nothing twice."""
    mesh.schedule = f"[origin.schedule]\nbytes_per_s = {SLOW_BYTES_PER_S}\n"
    async with mesh.control() as served, mesh.hub() as hub:
        digest = (await mesh.publish(served, "fw-1", IMAGE[::-1])).main.digest
        already = len(mesh.s3.requests(digest.sha256))
        await mesh.begin(hub, digest)
    mesh.schedule, held_bytes = "", mesh.held_bytes(digest)
    assert 0 < held_bytes < len(IMAGE)
    async with mesh.hub() as hub:
        assert await mesh.read(hub, digest) == IMAGE[::-1]
    await until(lambda: len(mesh.s3.requests(digest.sha256)) == already + 2)
    rest = mesh.s3.requests(digest.sha256)[-1]
    assert (rest.status, rest.sent_bytes) == (206, len(IMAGE) - held_bytes)


async def test_credentials_that_the_store_does_not_take_are_named(mesh: Mesh) -> None:
    """Q2: who is to act is said: control signed it, the store does not believe it."""
    async with mesh.control() as served:
        digest = (await mesh.publish(served, "fw-1", IMAGE[1:])).main.digest
    mesh.secret = "not the secret"
    async with mesh.control(), mesh.hub() as hub:
        with pytest.raises(PeerError, match=r"SignatureDoesNotMatch.*signed it just now: look at the access file"):
            await mesh.read(hub, digest)


async def test_control_signs_nothing_that_may_not_enter_the_region(mesh: Mesh) -> None:
    """S2: neither what is held, nor another region's, nor what no release has."""
    async with mesh.control() as served, served.region() as region:
        held = await mesh.publish(served, "fw-1", b"held")
        there = await mesh.publish(served, "fw-2", b"there", regions=("north",))
        good = await mesh.publish(served, "fw-3", b"good")
        async with served.calling() as stub:
            await stub.SetHold(operator_pb2.SetHoldRequest(release="fw-1", held=True, reason="smoke"))
        wanted = (held.main.digest, there.main.digest, good.main.digest, digest_of(b"stray"))
        answer = await ask_urls(region, wanted)
        assert [one.digest for one in answer.urls] == [good.main.digest]
        assert [(one.digest, one.gate) for one in answer.refused] == [
            (held.main.digest, "hold"),
            (there.main.digest, "class"),
            (digest_of(b"stray"), "NOT_FOUND"),
        ]
        assert "smoke" in answer.refused[0].reason
        assert answer.urls[0].expires_at - answer.urls[0].issued_at == timedelta(hours=48)


async def test_a_hold_ends_a_transfer_from_a_bucket_in_its_middle(mesh: Mesh) -> None:
    """S2, over processes: judged before seeding, and again when a hold arrives in mid-transfer."""
    mesh.schedule = f"[origin.schedule]\nbytes_per_s = {MIB}\n"
    image = Random(6).randbytes(7 * MIB)
    async with mesh.control() as served, mesh.hub_process() as port:
        release = await mesh.publish(served, "fw-1", image)
        digest, client = release.main.digest, mesh.client(port)
        already = len(mesh.s3.requests(digest.sha256))
        received: list[int] = []
        with pytest.raises(GateError) as caught:
            await held_at_first(served, client, digest, received)
        assert caught.value.gate == "hold"
        with pytest.raises(GateError, match="smoke"):
            await read_all(client, digest)
        await until(lambda: len(mesh.s3.requests(digest.sha256)) > already)
        # What the store's kernel took counts as sent in its log; what this hub fetched is on its disk.
        assert sum(received) <= mesh.held_bytes(digest) < len(image)
    assert sum(received) > 0
    assert len(mesh.s3.requests(digest.sha256)) == already + 1


async def held_at_first(served: Served, client: ArtifactClient, digest: Digest, received: list[int]) -> None:
    """Read to the end, and have the release put on hold when the first bytes are here."""
    async with aclosing(client.read(digest)) as pieces:
        async for piece in pieces:
            if not received:
                async with served.calling() as stub:
                    await stub.SetHold(operator_pb2.SetHoldRequest(release="fw-1", held=True, reason="smoke"))
            received.append(len(piece))


# -- publishing --------------------------------------------------------------------------------------------------------


async def test_uploads_go_in_parts_once_and_are_verified(mesh: Mesh) -> None:
    """S4, C3: large ones in parts; again changes nothing."""
    image = Random(9).randbytes(uploading.PART_BYTES + MIB)
    draft = mesh.draft("fw-9", image)
    first = await asyncio.to_thread(mesh.upload, draft)
    assert [one.is_new for one in first] == [True, True]
    digest = digest_of(image)
    assert first[1].key == f"{PREFIX}/{digest.sha256}"
    parts = mesh.s3.requests(digest.sha256, "PUT")
    assert len(parts) == 2
    again = await asyncio.to_thread(mesh.upload, draft)
    assert [one.shown()["state"] for one in again] == ["there already", "there already"]
    assert len(mesh.s3.requests(digest.sha256, "PUT")) == len(parts)


async def test_what_is_not_the_draft_s_never_becomes_an_object(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the file changes between the first look and the upload."""
    draft = mesh.draft("fw-8", b"as drafted")
    (mesh.directory / "fw-8.img").write_bytes(b"as changed")
    with pytest.raises(ConflictError, match=r"is not the fw-8\.img of the draft"):
        await asyncio.to_thread(mesh.upload, draft)
    monkeypatch.setattr(releasing, "artifact_of", lambda *_: releasing.load_manifest(draft).firmware)
    with pytest.raises(ConflictError, match=r"is not the fw-8\.img of the draft"):
        uploading._put(open_store(PLACE, mesh.s3.access), artifact_of(b"as drafted"), mesh.directory / "fw-8.img")
    with pytest.raises(FileNotFoundError):
        obstore.head(open_store(PLACE, mesh.s3.access), digest_of(b"as drafted").sha256)


async def test_a_store_that_refuses_is_named_with_what_to_do(mesh: Mesh) -> None:
    """Q2."""
    draft = mesh.draft("fw-7", b"seven")
    bad = mesh.s3.write_access(mesh.directory / "bad.toml", "wrong")
    with pytest.raises(ForbiddenError, match=r"refused the credentials.*put, get and head"):
        await asyncio.to_thread(uploading.upload_artifacts, draft, str(PLACE), bad)
    good = mesh.s3.write_access(mesh.directory / "good.toml")
    with pytest.raises(NotFoundError, match="make the bucket first"):
        await asyncio.to_thread(uploading.upload_artifacts, draft, "s3://no-such-bucket", good)
    nobody = mesh.directory / "nobody.toml"
    nobody.write_text(good.read_text().replace(str(mesh.s3.port), str(free_port())))
    nobody.chmod(0o600)
    good.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read these credentials: chmod 600"):
        await asyncio.to_thread(uploading.upload_artifacts, draft, str(PLACE), good)
