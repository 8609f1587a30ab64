"""A store hub's registry, pulled from by skopeo and podman as they are in Debian, over mutual TLS (O5)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import shutil
import ssl
import tempfile
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from edgectl.ociapp import read_app
from tests.oci_kit import layer, write_layout
from tests.session_kit import Fleet
from tests.storehub_kit import OPERATOR, STORE, Control, SuperHub, device_node, eventually, lay_out, running, wan
from wavemesh.identity.nodes import NodeId
from wavemesh.trust.releases import UNKNOWN_DIGEST, Artifact, ReleaseManifest
from wavemesh.trust.statements import Hold, IntentKind, Revocation, RevocationList, RevocationReach

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from storehub.app import App

POLICY = """\
targets: {{segment: retail, percentage: 100, hubBudget: 2}}
guardrails: {{minBattery: 40, requireDualPartition: true}}
artifacts: {{app: {name}.oci, signature: {name}.sig}}
"""
BASE = layer({"lib/base": random.Random(1).randbytes(1_200_000)})
FIRST = layer({"app": b"#!one\n" + random.Random(2).randbytes(20_000)})
SECOND = layer({"app": b"#!two\n" + random.Random(3).randbytes(21_000)})


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def control(fleet: Fleet) -> Control:
    return Control(fleet)


def publish(control: Control, name: str, layout: Path, version: str) -> ReleaseManifest:
    """An app's release, as `edgectl release create --app` makes it."""
    app, files = read_app(f"oci:{layout}", name=f"{name}.oci", repository="retail/pos-app", default_tag=version)
    manifest = ReleaseManifest(
        name=name,
        version=version,
        device_class="pos",
        hardware_revisions=("r1",),
        signed_at=datetime.now(UTC).replace(microsecond=0),
        firmware=None,
        config=None,
        signature=Artifact(f"{name}.sig", UNKNOWN_DIGEST),
        app=app,
    )
    control.publish(manifest, *(path.read_bytes() for path in files.values()))
    return manifest


async def prefetch(control: Control, app: App, name: str) -> None:
    policy = POLICY.format(name=name).encode()
    envelope = control.intent(IntentKind.PREFETCH, f"i-{name}", wave_id="", policy_yaml=policy)
    await app.intents.submit(envelope, OPERATOR)
    await eventually(lambda: app.hub.store.intents[f"i-{name}"].disposition.name == "APPLIED")


def certs(fleet: Fleet, node: NodeId, directory: Path) -> Path:
    """A node's identity as container tools want it, for example in /etc/containers/certs.d/HUB:PORT."""
    fleet.credentials(node)
    identity = fleet.directory / node.path.replace("/", "-")
    directory.mkdir()
    for name, given in (("ca.crt", "ca.crt"), ("node.crt", "client.cert"), ("node.key", "client.key")):
        shutil.copy(identity / name, directory / given)
    return directory


@asynccontextmanager
async def store(control: Control, directory: Path) -> AsyncIterator[tuple[App, SuperHub, str]]:
    """A store hub with a registry, and its address."""
    super_hub = SuperHub(control)
    lines = 'registry_listen = "127.0.0.1:0"\n'
    async with wan(super_hub) as parent, running(lay_out(directory, control, parent, more=lines)) as app:
        super_hub.want(control.tuf(), control.holds())
        await eventually(lambda: app.hub.belief.trusted is not None)
        yield app, super_hub, f"127.0.0.1:{app.registry.port}"


async def run(*command: object, fails: bool = False) -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told = (await asyncio.wait_for(process.communicate(), 30))[0].decode()
    assert bool(process.returncode) is fails, told
    return told


@pytest.fixture
def podman() -> Iterator[tuple[object, ...]]:
    """Podman with a storage of its own, at a path of less than the 50 characters that it bears."""
    root = Path(tempfile.mkdtemp(prefix="pull-"))
    places = ("--root", root / "root", "--runroot", root / "run", "--tmpdir", root / "tmp", "--storage-driver", "vfs")
    yield ("podman", *places, "--events-backend", "none", "--cgroup-manager", "cgroupfs")
    shutil.rmtree(root)


async def test_skopeo_and_podman_pull_and_a_second_version_moves_its_changed_layer_alone(
    control: Control, fleet: Fleet, tmp_path: Path, podman: tuple[object, ...]
) -> None:
    first = publish(control, "app-1", write_layout(tmp_path / "one", "1.0.0", BASE, FIRST), "1.0.0")
    device = certs(fleet, device_node("pos-12"), tmp_path / "certs")
    async with store(control, tmp_path / "hub") as (app, super_hub, address):
        await prefetch(control, app, "app-1")
        image = f"docker://{address}/retail/pos-app:1.0.0"
        await run("skopeo", "copy", "--src-cert-dir", device, image, f"oci:{tmp_path / 'copied'}:1.0.0")
        copied = read_app(f"oci:{tmp_path / 'copied'}", name="x", repository="", default_tag="")[0]
        assert first.app is not None
        assert (copied.root.digest, copied.blobs) == (first.app.root.digest, first.app.blobs)
        listed = json.loads(
            await run("skopeo", "list-tags", "--cert-dir", device, f"docker://{address}/retail/pos-app")
        )
        assert listed["Tags"] == ["1.0.0"]
        pull = (*podman, "pull", "--cert-dir", device)
        await run(*pull, f"{address}/retail/pos-app:1.0.0")
        moved = served_bytes(app)

        publish(control, "app-2", write_layout(tmp_path / "two", "2.0.0", BASE, SECOND), "2.0.0")
        super_hub.want(control.tuf())
        await eventually(lambda: app.hub.belief.release("app-2"))
        super_hub.reads.clear()
        await prefetch(control, app, "app-2")
        fetched = sum(len(control.blobs[sha256]) for sha256, _ in super_hub.reads)
        await run(*pull, f"{address}/retail/pos-app:2.0.0")
        pulled = served_bytes(app) - moved
        print(f"first version {moved} bytes, second: {fetched} to the hub, {pulled} to the device")  # noqa: T201
        images = json.loads(await run(*podman, "images", "--format", "json"))
        assert {tag.rpartition(":")[2] for one in images for tag in one["Names"]} == {"1.0.0", "2.0.0"}
    for amount in (fetched, pulled):
        assert len(SECOND) < amount < len(SECOND) + 8_000  # with config, manifest and signature; the base stays


def served_bytes(app: App) -> int:
    return app.registry.served_bytes


def client_context(fleet: Fleet, node: NodeId) -> ssl.SSLContext:
    fleet.credentials(node)
    identity = fleet.directory / node.path.replace("/", "-")
    context = ssl.create_default_context(cafile=identity / "ca.crt")
    context.load_cert_chain(identity / "node.crt", identity / "node.key")
    return context


@asynccontextmanager
async def http(fleet: Fleet, node: NodeId, address: str) -> AsyncIterator[Any]:
    """GET a path as that node: status, headers, body."""
    context = client_context(fleet, node)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
            async with session.request(method, f"https://{address}{path}", headers=headers) as answer:
                return answer.status, answer.headers, await answer.read()

        yield ask


async def test_what_the_pull_api_answers(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    """OCI distribution specification 1.1: endpoints, errors by code, ranges, pages; and nothing can be pushed."""
    manifest = publish(control, "app-1", write_layout(tmp_path / "one", "", BASE, FIRST, platforms=2), "1.0.0")
    assert manifest.app is not None
    name, root = "/v2/retail/pos-app", manifest.app.root.digest
    big = next(blob for blob in manifest.app.blobs if blob.size_bytes == len(BASE))
    async with store(control, tmp_path / "hub") as (app, _, address), http(fleet, OPERATOR, address) as ask:
        status, _, body = await ask(f"{name}/manifests/1.0.0")
        assert (status, code(body)) == (404, "BLOB_UNKNOWN")  # the release is known, and nothing asked for it
        assert b"edgectl hub prefetch" in body
        await prefetch(control, app, "app-1")
        assert (await ask("/v2/"))[0] == 200
        status, headers, body = await ask(f"{name}/manifests/1.0.0")
        assert (status, headers["Content-Type"]) == (200, manifest.app.media_type)
        assert headers["Docker-Content-Digest"] == f"sha256:{root.sha256}"
        assert body == control.blobs[root.sha256]
        below = json.loads(body)["manifests"][1]
        status, headers, found = await ask(f"{name}/manifests/{below['digest']}", "HEAD")
        assert (status, found, headers["Content-Type"]) == (200, b"", below["mediaType"])
        assert int(headers["Content-Length"]) == below["size"]
        before = app.registry.served_bytes
        status, headers, part = await ask(f"{name}/blobs/sha256:{big.sha256}", Range="bytes=10-19")
        assert (status, part, headers["Content-Range"]) == (206, BASE[10:20], f"bytes 10-19/{len(BASE)}")
        assert app.registry.served_bytes == before + 10
        assert (await ask(f"{name}/blobs/sha256:{big.sha256}", Range="bytes=5-"))[2] == BASE[5:]
        status, headers, found = await ask(f"{name}/blobs/sha256:{big.sha256}", "HEAD")
        assert (status, found, int(headers["Content-Length"])) == (200, b"", len(BASE))
        for path, expected in {
            f"{name}/manifests/2.0.0": (404, "MANIFEST_UNKNOWN"),
            f"{name}/manifests/sha256:{big.sha256}": (404, "MANIFEST_UNKNOWN"),
            f"{name}/manifests/sha256:{'0' * 64}": (404, "MANIFEST_UNKNOWN"),
            f"{name}/blobs/sha256:{control.firmware.sha256}": (404, "BLOB_UNKNOWN"),
            f"{name}/blobs/sha512:00": (404, "BLOB_UNKNOWN"),
            "/v2/other/manifests/1": (404, "NAME_UNKNOWN"),
            "/v2/other/tags/list": (404, "NAME_UNKNOWN"),
            "/": (404, "UNSUPPORTED"),
        }.items():
            status, _, body = await ask(path)
            assert (status, code(body)) == expected, path
        status, _, body = await ask(f"{name}/blobs/sha256:{big.sha256}", Range=f"bytes={len(BASE)}-")
        assert status == 416
        status, headers, body = await ask(f"{name}/blobs/uploads/", "POST")
        assert (status, code(body), headers["Allow"]) == (405, "UNSUPPORTED", "GET, HEAD")
        assert json.loads((await ask("/v2/_catalog"))[2]) == {"repositories": ["retail/pos-app"]}
        assert json.loads((await ask(f"{name}/tags/list?n=1"))[2]) == {"name": "retail/pos-app", "tags": ["1.0.0"]}


def code(body: bytes) -> str:
    return str(json.loads(body)["errors"][0]["code"])


async def test_who_may_pull(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    """Devices of the store, its hub and operators; nobody without a certificate of the fleet, no other store."""
    publish(control, "app-1", write_layout(tmp_path / "one", "1.0.0", BASE, FIRST), "1.0.0")
    other = "region/midwest/store/store-210"
    nodes = {
        device_node("pos-12"): 200,
        STORE: 200,
        OPERATOR: 200,
        NodeId(STORE.fleet, f"{other}/device/pos-1"): 403,
        NodeId(STORE.fleet, other): 403,
        NodeId(STORE.fleet, "region/midwest"): 403,
    }
    async with store(control, tmp_path / "hub") as (_, _, address):
        for node, expected in nodes.items():
            async with http(fleet, node, address) as ask:
                assert (await ask("/v2/"))[0] == expected, node.path
        context = ssl.create_default_context(cafile=fleet.directory / STORE.path.replace("/", "-") / "ca.crt")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"https://{address}/v2/")


async def test_a_release_on_hold_is_denied_and_rotten_layers_are_never_whole(
    control: Control, fleet: Fleet, tmp_path: Path
) -> None:
    manifest = publish(control, "app-1", write_layout(tmp_path / "one", "1.0.0", BASE, FIRST), "1.0.0")
    assert manifest.app is not None
    blob = f"/v2/retail/pos-app/blobs/sha256:{next(b for b in manifest.app.blobs if b.size_bytes == len(BASE)).sha256}"
    async with store(control, tmp_path / "hub") as (app, super_hub, address), http(fleet, OPERATOR, address) as ask:
        await prefetch(control, app, "app-1")
        sha256 = blob.rpartition(":")[2]
        [file] = (tmp_path / "hub" / "state" / "cache" / "blobs").glob(f"??/{sha256}-*")
        rotten = bytearray(file.read_bytes())
        rotten[-1] ^= 1
        file.write_bytes(rotten)
        with pytest.raises(aiohttp.ClientPayloadError):
            await ask(blob)
        await eventually(lambda: super_hub.reported("cache-mismatch"))
        hold = Hold("app-1", manifest.app.root.digest.sha256, "crashes")
        super_hub.want(control.holds(epoch=2, holds=(hold,)))
        await eventually(lambda: app.hub.belief.holds and app.hub.belief.holds.epoch == 2)
        status, _, body = await ask("/v2/retail/pos-app/manifests/1.0.0")
        assert (status, code(body)) == (403, "DENIED")
        assert re.search("hold.*crashes", body.decode())


async def test_a_device_that_is_revoked_gets_no_further_byte(control: Control, fleet: Fleet, tmp_path: Path) -> None:
    large = layer({"lib": random.Random(4).randbytes(24 << 20)})
    manifest = publish(control, "app-1", write_layout(tmp_path / "one", "1.0.0", large), "1.0.0")
    assert manifest.app is not None
    path = f"/v2/retail/pos-app/blobs/sha256:{hashlib.sha256(large).hexdigest()}"
    device = device_node("pos-12")
    async with store(control, tmp_path / "hub") as (app, _, address):
        await prefetch(control, app, "app-1")
        context = client_context(fleet, device)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            async with session.get(f"https://{address}{path}") as answer:
                assert await answer.content.read(1)
                taken = Revocation(device.path, RevocationReach.NODE, datetime.now(UTC), "stolen")
                app.hub.credentials.authorities.take(RevocationList(1, (taken,), datetime.now(UTC)))
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()
            async with session.get(f"https://{address}/v2/") as answer:
                assert (answer.status, code(await answer.read())) == (403, "DENIED")
        assert app.registry.served_bytes < len(large)


async def test_the_newest_app_here_is_pinned(control: Control, tmp_path: Path) -> None:
    """H1: whoever runs it may pull it again with the WAN dark; older ones may be evicted."""
    first = publish(control, "app-1", write_layout(tmp_path / "one", "1.0.0", BASE, FIRST), "1.0.0")
    second = publish(control, "app-2", write_layout(tmp_path / "two", "2.0.0", BASE, SECOND), "2.0.0")
    async with store(control, tmp_path / "hub") as (app, _, _):
        await prefetch(control, app, "app-1")
        assert first.app is not None
        assert second.app is not None
        assert app.cache.pins()[first.app.root.digest.sha256] == ("newest app retail/pos-app, of release app-1",)
        await prefetch(control, app, "app-2")
        pins = app.cache.pins()
        assert first.app.root.digest.sha256 not in pins
        assert all(pins[one.digest.sha256] for one in second.app.artifacts)
