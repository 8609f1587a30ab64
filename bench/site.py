"""A fleet in a directory, as large as asked for: identities, keys, configuration, images. Starts nothing.

The layout is the lab's, with several regions: ``DIR/superhubs/R`` beside ``DIR/control``, ``DIR/stores/S`` and
``DIR/devices/D``. Intervals are production's defaults, but for what would only make a benchmark wait: how long a failed
probe is tried again, and how soon a device that refused looks again. It may have to: the probes of all devices of a
machine share one user's limit of processes, and one that cannot fork fails. ``DIR/expected.json`` tells
``bench/truth.py``, before anything starts, what must come of each device.
"""

from __future__ import annotations

import ipaddress
import json
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lab import hardware, topology
from lab.images import build_small_images, digest_of
from lab.policies import OLD_RELEASE, RELEASE
from lab.provision import RELEASE_KEYS, free_ports, image, make_device, offline_key, place_images
from lab.topology import DEVICE_CLASS, FLEET, HARDWARE_REVISION, LOCALHOST, Lab
from wavemesh.identity.ca import REGION_LIFETIME, FleetCa, RegionCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.trust.keys import create_signer
from wavemesh.trust.repository import create_repository

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from wavemesh.identity.ca import Issuer

WAVE = "bench"
LOST_SCANNER = "peripheral:scanner"
_MIB = 1024 * 1024
_SINCE, _UNTIL = timedelta(minutes=5), timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Size:
    """How large a fleet: ``devices`` and ``swaps`` (the limit) are per store, ``bad`` devices lose their scanner."""

    stores: int
    devices: int
    regions: int = 1
    swaps: int = 10
    bad: int = 1
    image_kib: int = 256
    seed: int = 1

    @property
    def total(self) -> int:
        """Devices in all."""
        return self.stores * self.devices


@dataclass(frozen=True, slots=True)
class Site(Lab):
    """One fleet: which stores each region has, and the target of each proxied link: "control/R", "wan/S", "lan/S"."""

    regions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def route(self, link: str, target: str) -> str:
        """Where to dial for a target: its link if it is proxied, else itself."""
        return self.address(link if link in self.links else target)

    def superhub(self, region: str) -> Path:
        """A super hub's directory."""
        return self.directory / "superhubs" / region

    def region_of(self, store: str) -> str:
        """The region a store is in."""
        return next(region for region, stores in self.regions.items() if store in stores)

    def store_id(self, store: str) -> NodeId:
        """A store hub's identity."""
        return NodeId(FLEET, f"region/{self.region_of(store)}/store/{store}")

    def nodes(self) -> dict[Path, NodeId]:
        """Every node of the fleet by its directory."""
        found = {self.control_dir: topology.control_id()}
        found |= {self.superhub(region): NodeId(FLEET, f"region/{region}") for region in self.regions}
        for store, devices in self.stores.items():
            hub = self.store_id(store)
            found[self.store_dir(store)] = hub
            found |= {self.device_dir(name): NodeId(FLEET, f"{hub.path}/device/{name}") for name in devices}
        return found


def make_site(directory: Path, size: Size, hops: Sequence[str] = ("control",)) -> Site:
    """Make the fleet in an empty directory; the connections of those hops ("control", "wan", "lan") pass a proxy."""
    stores = {
        f"store-{store:03}": tuple(f"s{store:03}-d{device:04}" for device in range(size.devices))
        for store in range(size.stores)
    }
    regions = {f"region-{number:02}": tuple(stores)[number :: size.regions] for number in range(size.regions)}
    links = {f"control/{region}": "control" for region in regions}
    links |= {f"wan/{store}": region for region, members in regions.items() for store in members}
    links |= {f"lan/{store}": store for store in stores}
    links = {name: target for name, target in links.items() if name.partition("/")[0] in hops}
    names = ("control", "origin", *regions, *stores, *links)
    site = Site(directory.resolve(), free_ports(names), stores, regions, links)
    site.directory.mkdir(parents=True, exist_ok=True)
    _make_identities(site)
    place_images(site, build_small_images(site.directory / "source", size.image_kib * 1024))
    _write_configs(site)
    for device in site.devices:
        make_device(site, device)
    bad = random.Random(size.seed).sample(site.devices, size.bad)  # noqa: S311  # a draw that repeats, not a secret
    for device in bad:
        hardware.lose_scanner(site.device_dir(device), "B")
    _expect(site, size, bad)
    return site


def _make_identities(site: Site) -> None:
    """Everything about keys: the CA and each node's certificate, release and control keys, the pinned root."""
    now = datetime.now(UTC)
    ca = FleetCa.create(FLEET, now - _SINCE)
    authorities: dict[str, Issuer] = {}
    for name in site.regions:
        region = RegionCa.create(ca, name, not_before=now - _SINCE, not_after=now + REGION_LIFETIME)
        region.save(site.superhub(name) / "authority")
        authorities[f"region/{name}"] = region
    identities = {directory / "identity": node for directory, node in site.nodes().items()}
    identities |= {site.origin_dir / "identity": topology.origin_id(), site.operator_dir: topology.operator_id()}
    address = [ipaddress.ip_address(LOCALHOST)]
    for directory, node in identities.items():
        issuer = authorities.get("/".join(node.path.split("/")[:2]), ca)
        write_node(directory, issuer, node, not_before=now - _SINCE, not_after=now + _UNTIL, ip_addresses=address)
    metadata = create_repository(
        root=[create_signer(offline_key(site, "root"))],
        releases=[create_signer(offline_key(site, name)) for name in RELEASE_KEYS],
        online=[create_signer(site.control_dir / "keys" / "online.pem")],
        control=[create_signer(site.control_dir / "keys" / "control.pem")],
        now=now,
    )
    for directory in site.nodes():
        (directory / "trust").mkdir(parents=True, exist_ok=True)
        (directory / "trust" / "root.json").write_bytes(metadata.roots[0])
    bootstrap = site.control_dir / "trust" / "bootstrap"
    bootstrap.mkdir()
    (bootstrap / "targets.json").write_bytes(metadata.targets)


def _write_configs(site: Site) -> None:
    capacity_bytes = max(2 * image(site, RELEASE).stat().st_size, 16 * _MIB)
    texts = {site.control_dir: f'listen = "{site.address("control")}"\n', site.wan_dir: _wan_config(site)}
    for region, stores in site.regions.items():
        texts[site.superhub(region)] = _superhub_config(site, region)
        for store in stores:
            texts[site.store_dir(store)] = _store_config(site, store)
            config = _device_config(site, store, region, capacity_bytes)
            texts |= {site.device_dir(device): config for device in site.stores[store]}
    for directory, text in texts.items():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.toml").write_text(text, encoding="utf-8")


def _superhub_config(site: Site, region: str) -> str:
    return f"""\
listen = "{site.address(region)}"

[control]
address = "{site.route(f"control/{region}", "control")}"
name = "{topology.control_id().name}"

[origin]
url = "https://{site.address("origin")}"
"""


def _store_config(site: Site, store: str) -> str:
    return f"""\
listen = "{site.address(store)}"
parent = "{site.route(f"wan/{store}", site.region_of(store))}"
time_zone = "UTC"
"""


def _device_config(site: Site, store: str, region: str, capacity_bytes: int) -> str:
    return f"""\
[device]
device_class = "{DEVICE_CLASS}"
hardware_revision = "{HARDWARE_REVISION}"
region = "{region}"

[hub]
address = "{site.route(f"lan/{store}", store)}"

[board]
probe_containment = "best-effort"
slot_capacity_bytes = {capacity_bytes}

[timing]
recheck_interval_s = 5.0
retry_interval_s = 1.0
probe_settle_s = 3.0
"""


def _wan_config(site: Site) -> str:
    tables = [
        f'[[links]]\nname = "{name}"\nlisten = "{site.address(name)}"\ntarget = "{site.address(target)}"\n'
        for name, target in site.links.items()
    ]
    return "\n".join(['control = "control.sock"\n', *tables])


def _expect(site: Site, size: Size, bad: list[str]) -> None:
    """Write what must come of each device."""
    images = {"old": image(site, OLD_RELEASE), "new": image(site, RELEASE)}
    digests = {name: dict(zip(("sha256", "size_bytes"), digest_of(path), strict=True)) for name, path in images.items()}
    devices = {
        name: {
            "path": f"{site.store_id(store).path}/device/{name}",
            "ending": "rolled_back" if name in bad else "updated",
            "gate": LOST_SCANNER if name in bad else "",
        }
        for store, names in site.stores.items()
        for name in names
    }
    expected = {
        "wave": WAVE,
        "swap_limit": size.swaps,
        "images": digests,
        "stores": site.stores,
        "devices": devices,
    }
    (site.directory / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
