"""What ``bench region`` runs on: control, a super hub, an origin, N store hubs' identities and one release.

Control starts with the release published; there is no wave, because only the bytes of one blob are asked for.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from wavemesh.artifacts.digests import STEP_BYTES, digest_of, digest_of_file
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.trust.files import sign_metadata
from wavemesh.trust.keys import create_signer
from wavemesh.trust.releases import UNKNOWN_DIGEST, Artifact, ReleaseManifest
from wavemesh.trust.repository import add_release, create_repository, publish_targets, sign_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.trust.statements import Digest

FLEET = "bench.example"
CONTROL, REGION, ORIGIN, PROXY = (
    NodeId(FLEET, path) for path in ("control/main", "region/midwest", "control/origin", "control/proxy")
)
_LOCALHOST = "127.0.0.1"
_SINCE, _UNTIL = timedelta(hours=1), timedelta(days=2)


@dataclass(frozen=True, slots=True)
class RegionSite:
    """The directory, and what is in it."""

    directory: Path
    ports: dict[str, int]
    stores: tuple[NodeId, ...]
    image: Digest
    bundle: Digest

    def of(self, node: NodeId) -> Path:
        """A node's directory."""
        return self.directory / node.path.replace("/", "-")

    def identity(self, node: NodeId) -> Path:
        """Its key and certificate."""
        return self.of(node) / "identity"

    def address(self, name: str) -> str:
        """Where a part listens."""
        return f"{_LOCALHOST}:{self.ports[name]}"

    @property
    def files(self) -> Path:
        """What the origin serves."""
        return self.directory / "origin-files"


async def make_region(directory: Path, stores: int, size_mib: int, *, maximum_reads: int) -> RegionSite:
    """Write everything; starts nothing."""
    files = directory / "origin-files"
    files.mkdir(parents=True)
    image = await _make_image(files, size_mib)
    nodes = tuple(NodeId(FLEET, f"{REGION.path}/store/store-{number:03}") for number in range(stores))
    bundle = _publish(directory, image)
    (files / digest_of(bundle).sha256).write_bytes(bundle)
    site = RegionSite(directory, _free_ports(("control", "hub", "origin", "proxy")), nodes, image, digest_of(bundle))
    _enrol(site)
    (site.of(CONTROL) / "config.toml").write_text(f'listen = "{site.address("control")}"\n', encoding="utf-8")
    (site.of(REGION) / "config.toml").write_text(
        f'listen = "{site.address("hub")}"\nmaximum_reads = {maximum_reads}\n'
        f'[control]\naddress = "{site.address("control")}"\nname = "{CONTROL.name}"\n'
        f'[origin]\nurl = "https://{site.address("origin")}"\n',
        encoding="utf-8",
    )
    return site


async def _make_image(files: Path, size_mib: int) -> Digest:
    """An image of random bytes: nothing between could make it smaller."""
    rng, path = Random(14), files / "image"  # noqa: S311  # content, not a secret
    with path.open("wb") as file:
        for _ in range(size_mib * 1024 * 1024 // STEP_BYTES):
            file.write(rng.randbytes(STEP_BYTES))
    digest = await digest_of_file(path)
    path.rename(files / digest.sha256)
    return digest


def _publish(directory: Path, image: Digest) -> bytes:
    """Keys, and the metadata that control starts with; the signature bundle."""
    now = datetime.now(UTC).replace(microsecond=0)
    control = directory / CONTROL.path.replace("/", "-")
    releases = [create_signer(directory / "keys" / f"{name}.pem") for name in ("a", "b")]
    online = create_signer(control / "keys" / "online.pem")
    first = create_repository(
        root=[create_signer(directory / "keys" / "root.pem")],
        releases=releases,
        online=[online],
        control=[create_signer(control / "keys" / "control.pem")],
        now=now - timedelta(minutes=5),
    )
    manifest = ReleaseManifest(
        name="firmware-v1",
        version="1.0.0",
        device_class="pos-tablet",
        hardware_revisions=("r2",),
        signed_at=now,
        firmware=Artifact("firmware-v1.img", image),
        config=None,
        signature=Artifact("firmware-v1.sig", UNKNOWN_DIGEST),
        boot_probe="true",
    )
    bundle = sign_bundle(manifest, *releases)
    targets = sign_metadata(add_release(first.targets, manifest, bundle, now), *releases)
    published = publish_targets(first, targets, online, now)
    bootstrap = control / "trust" / "bootstrap"
    bootstrap.mkdir(parents=True)
    (bootstrap / "targets.json").write_bytes(published.targets)
    for node in (CONTROL, REGION):
        root = directory / node.path.replace("/", "-") / "trust" / "root.json"
        root.parent.mkdir(parents=True, exist_ok=True)
        root.write_bytes(first.roots[0])
    return bundle


def _enrol(site: RegionSite) -> None:
    now = datetime.now(UTC)
    ca = FleetCa.create(FLEET, now - _SINCE)
    address = [ipaddress.ip_address(_LOCALHOST)]
    for node in (CONTROL, REGION, ORIGIN, PROXY, *site.stores):
        write_node(site.identity(node), ca, node, not_before=now - _SINCE, not_after=now + _UNTIL, ip_addresses=address)


def _free_ports(names: tuple[str, ...]) -> dict[str, int]:
    sockets = [socket.socket() for _ in names]
    try:
        for one in sockets:
            one.bind((_LOCALHOST, 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}
    finally:
        for one in sockets:
            one.close()
