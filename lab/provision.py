"""Makes a lab's directory: identities, keys, configuration, hardware, images, releases. Starts nothing.

What a real fleet spreads over people and places is made here in one go, but kept apart as there: the CA and the release
keys live in ``keys/offline``, which no process reads; control gets its own two keys and nothing else.
"""

from __future__ import annotations

import gzip
import io
import ipaddress
import json
import shutil
import socket
import tarfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from device.config import Backend, load_device_config
from device.factory import Equipment, equip
from lab import hardware, rauc, topology
from lab.configs import control_config, device_config, store_config, superhub_config, wan_config
from lab.environments import backend_of
from lab.policies import OLD_RELEASE, RELEASE, SWAP_LIMIT, policy_text
from lab.scenario import LEAST_OUTCOMES
from lab.topology import Lab, port_names, save_lab
from wavemesh.errors import LocalError
from wavemesh.identity.binding import Binding
from wavemesh.identity.ca import REGION_LIFETIME, FleetCa, RegionCa, write_node
from wavemesh.identity.nodes import Role
from wavemesh.trust.keys import create_signer
from wavemesh.trust.repository import create_repository

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lab.images import ImagePair
    from lab.policies import ReleaseNames
    from wavemesh.identity.nodes import NodeId

_IDENTITY_LIFETIME = timedelta(days=365)
_CLOCK_SLACK = timedelta(minutes=5)
_EPOCH_S = 1_700_000_000
RELEASE_KEYS = ("release-1", "release-2", "release-3")


class NoSpaceError(LocalError):
    """The lab does not fit on the disk."""

    reason = "LAB_SPACE"


def provision(directory: Path, pair: ImagePair, backends: Mapping[str, str] | None = None) -> Lab:
    """Make the lab in that directory, which must not hold one; returns it. Raises NoSpaceError.

    ``backends`` says what other devices than simulated ones boot by, by device.
    """
    stores = dict(topology.STORES)
    return furnish(Lab(directory.resolve(), free_ports(port_names(stores)), stores), pair, backends)


def furnish(lab: Lab, pair: ImagePair, backends: Mapping[str, str] | None = None) -> Lab:
    """Make everything of a lab whose stores, ports and addresses are chosen; see ``provision``."""
    lab.directory.mkdir(parents=True, exist_ok=True)
    with_rauc = Backend.RAUC.value in (backends or {}).values()
    if with_rauc:
        rauc.check_usable()
    _check_space(lab, pair, forms=2 if with_rauc else 1)
    now = datetime.now(UTC)
    _make_identities(lab, now)
    _make_trust(lab, now)
    place_images(lab, pair)
    for path, text in _configs(lab, backends or {}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for device in lab.devices:
        make_device(lab, device)
    lab.policy_path.write_text(
        policy_text(RELEASE, swap_limit=SWAP_LIMIT, halt_least_outcomes=LEAST_OUTCOMES), encoding="utf-8"
    )
    save_lab(lab)  # last: a lab that is there is whole
    return lab


def exists(directory: Path) -> bool:
    """Whether a whole lab is there."""
    return (directory / "lab.json").exists()


def image(lab: Lab, release: ReleaseNames) -> Path:
    """The lab's copy of a release's image, under the name a policy gives it."""
    return lab.images_dir / release.firmware


def config_bundle(lab: Lab, release: ReleaseNames) -> Path:
    """A release's config bundle: small, and the same bytes for the same version."""
    path = lab.images_dir / release.config
    if not path.exists():
        content = json.dumps({"application": "pos-app", "version": release.config_version}).encode()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            member = tarfile.TarInfo("pos-app/config.json")
            member.size, member.mtime = len(content), _EPOCH_S
            tar.addfile(member, io.BytesIO(content))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(archive.getvalue(), mtime=_EPOCH_S))
    return path


def offline_key(lab: Lab, name: str) -> Path:
    """A key that no process reads."""
    return lab.offline_dir / f"{name}.pem"


def _check_space(lab: Lab, pair: ImagePair, forms: int) -> None:
    """Two slots a device, and each form of the new image at the origin, the super hub and each store."""
    needed = len(lab.devices) * (pair.old.stat().st_size + pair.new.stat().st_size)
    needed += forms * (2 + len(lab.stores)) * pair.new.stat().st_size
    free = shutil.disk_usage(lab.directory).free
    if free < needed:
        msg = f"{lab.directory} has {free} bytes free, the lab needs {needed}: use --dir elsewhere, or smaller images"
        raise NoSpaceError(msg)


def free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """A port for each name, free a moment ago."""
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in names}
        for one in sockets.values():
            one.bind((topology.LOCALHOST, 0))
        return {name: one.getsockname()[1] for name, one in sockets.items()}


def _make_identities(lab: Lab, now: datetime) -> None:
    ca = FleetCa.create(topology.FLEET, now - _CLOCK_SLACK)
    ca.save(lab.offline_dir / "ca")
    since = now - _CLOCK_SLACK
    region = RegionCa.create(ca, topology.REGION, not_before=since, not_after=now + REGION_LIFETIME)
    region.save(lab.superhub_dir / "authority")
    nodes: dict[Path, NodeId] = {
        lab.control_dir / "identity": topology.control_id(),
        lab.superhub_dir / "identity": topology.superhub_id(),
        lab.origin_dir / "identity": topology.origin_id(),
        lab.operator_dir: topology.operator_id(),
    }
    for store, devices in lab.stores.items():
        nodes[lab.store_dir(store) / "identity"] = topology.store_id(store)
        nodes |= {lab.device_dir(name) / "identity": topology.device_id(store, name) for name in devices}
    addresses = [ipaddress.ip_address(host) for host in sorted({lab.host(name) for name in lab.ports})]
    for directory, node in nodes.items():
        write_node(
            directory,
            region if node.path.startswith("region/") else ca,
            node,
            not_before=since,
            not_after=now + _IDENTITY_LIFETIME,
            ip_addresses=addresses,
            binding=_binding(node, now),
        )


def enrol_as_configured(lab: Lab, device: str) -> None:
    """Give a device a certificate that binds it to what its configuration says, as if it had been enrolled so."""
    says = load_device_config(lab.device_dir(device)).device
    now = datetime.now(UTC)
    write_node(
        lab.device_dir(device) / "identity",
        RegionCa.load(lab.superhub_dir / "authority"),
        topology.device_id(lab.store_of(device), device),
        not_before=now - _CLOCK_SLACK,
        not_after=now + _IDENTITY_LIFETIME,
        binding=Binding(now, says.device_class, says.hardware_revision),
    )


def _binding(node: NodeId, now: datetime) -> Binding:
    """What an enrolment would bind."""
    if node.role is not Role.DEVICE:
        return Binding(now)
    return Binding(now, topology.DEVICE_CLASS, topology.HARDWARE_REVISION)


def _make_trust(lab: Lab, now: datetime) -> None:
    metadata = create_repository(
        root=[create_signer(offline_key(lab, "root"))],
        releases=[create_signer(offline_key(lab, name)) for name in RELEASE_KEYS],
        online=[create_signer(lab.control_dir / "keys" / "online.pem")],
        control=[create_signer(lab.control_dir / "keys" / "control.pem")],
        now=now,
    )
    nodes = [lab.control_dir, lab.superhub_dir, *map(lab.store_dir, lab.stores), *map(lab.device_dir, lab.devices)]
    for node in nodes:
        (node / "trust").mkdir(parents=True, exist_ok=True)
        (node / "trust" / "root.json").write_bytes(metadata.roots[0])
    bootstrap = lab.control_dir / "trust" / "bootstrap"
    bootstrap.mkdir()
    (bootstrap / "targets.json").write_bytes(metadata.targets)


def place_images(lab: Lab, pair: ImagePair) -> None:
    """Both releases' images and bundles under the names that policies give them, and an origin without content."""
    lab.images_dir.mkdir(parents=True, exist_ok=True)
    (lab.origin_dir / "data").mkdir(parents=True, exist_ok=True)
    for release, source in ((OLD_RELEASE, pair.old), (RELEASE, pair.new)):
        target = image(lab, release)
        target.unlink(missing_ok=True)
        target.symlink_to(source.resolve())
        config_bundle(lab, release)


def _configs(lab: Lab, backends: Mapping[str, str]) -> dict[Path, str]:
    largest = max(image(lab, release).stat().st_size for release in (OLD_RELEASE, RELEASE))
    files = {
        lab.control_dir / "config.toml": control_config(lab),
        lab.superhub_dir / "config.toml": superhub_config(lab),
        lab.wan_dir / "config.toml": wan_config(lab),
    }
    files |= {lab.store_dir(store) / "config.toml": store_config(lab, store) for store in lab.stores}
    return files | {
        lab.device_dir(name) / "config.toml": device_config(
            lab, name, largest, backends.get(name, Backend.SIMULATED.value)
        )
        for name in lab.devices
    }


def make_device(lab: Lab, name: str) -> None:
    """A device that runs the old release from slot A, with nothing on slot B."""
    directory = lab.device_dir(name)
    hardware.build(directory)
    source = image(lab, OLD_RELEASE)
    config = config_bundle(lab, OLD_RELEASE).read_bytes()
    equip(directory, Equipment(source, OLD_RELEASE.name, OLD_RELEASE.version, config, OLD_RELEASE.config_version))
    if backend_of(directory) == Backend.RAUC.value:
        rauc.give_keyring(lab, name)
