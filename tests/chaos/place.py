"""Where a chaos run's lab lives: what is made around it as root, and what there is for anybody.

As root the run is in namespaces of its own (network, mounts, process ids), so that whatever it leaves behind ends with
it. Control and origin are with us in the cloud, the super hub and each store in namespaces of their own, and each
node's ``state`` is a small tmpfs that can be filled. Elsewhere it is the lab as it is, on one machine behind its
proxies, and no disk is filled.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from edgectl.contexts import Contexts, save_contexts
from lab import operations, topology
from lab.images import build_small_images
from lab.provision import free_ports, furnish
from lab.topology import STORES, Lab, port_names
from tests.chaos.network import UPLINK, Machines, Proxies, add_namespace, inside, join
from tests.chaos.plots import Plot
from tests.chaos.script import Kind
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.nodes import NodeId

if TYPE_CHECKING:
    import random

    from tests.chaos.network import Network

_STORE_OPERATOR = "bob"
_SLACK = timedelta(minutes=5)
IMAGE_BYTES = 256 * 1024
MARK_BYTES = 16
WRONGS = Path(__file__).resolve().parent / "wrongs"
NAMESPACES = Path("/run/netns")
_CLOUD, _SUPERHUB = "10.99.0.1", "10.99.255.1"
_HUB_DISK, _DEVICE_DISK = "64m", "8m"
_TOOLS = ("unshare", "nsenter", "ip", "tc", "iptables", "mount", "umount")
_UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


class ChaosLab(Lab):
    """A lab on one machine whose nodes' clocks can be set wrong."""

    __slots__ = ()

    @property
    def heartbeat_s(self) -> float:
        """Half as often as in the lab: a busy machine shall not end more sessions than the faults do."""
        return 2.0

    @property
    def halt_settle_s(self) -> float:
        """A run has many halts, and late outcomes count all the same."""
        return 6.0

    def launcher(self, name: str) -> tuple[str, ...]:
        """Give the process a clock that is wrong when its directory says so."""
        del name
        return ("/usr/bin/env", f"PYTHONPATH={WRONGS}")


class SiteLab(ChaosLab):
    """A lab whose sites are network namespaces, joined by veth pairs."""

    __slots__ = ()

    def host(self, name: str) -> str:
        """Control and the origin are in the cloud; a super hub is reached by one address from all its stores."""
        if name in {"control", "origin", f"wan/{topology.CONTROL_LINK}"}:
            return _CLOUD
        return _SUPERHUB if name == "superhub" or name.startswith("wan/") else topology.LOCALHOST

    def address(self, name: str) -> str:
        """No proxies: a link leads to the server itself."""
        link = name.removeprefix("wan/") if name.startswith("wan/") else ""
        target = {"": name, topology.CONTROL_LINK: "control"}.get(link, "superhub")
        return f"{self.host(name)}:{self.ports[target]}"

    def site(self, name: str) -> str:
        """The namespace of a process, "" for the cloud."""
        if name in self.devices:
            return self.store_of(name)
        return name if name in self.stores else topology.REGION if name == "superhub" else ""

    def launcher(self, name: str) -> tuple[str, ...]:
        """Start it at its site."""
        site = self.site(name)
        prefix = ("nsenter", f"--net={NAMESPACES / site}") if site else ()
        return (*prefix, *super().launcher(name))


def node_dirs(lab: Lab) -> dict[str, Path]:
    """The directory of every node by its name."""
    found = {"control": lab.control_dir, "superhub": lab.superhub_dir}
    found |= {store: lab.store_dir(store) for store in lab.stores}
    return found | {device: lab.device_dir(device) for device in lab.devices}


def enter(arguments: list[str]) -> int:
    """Run us again in namespaces that end with us; the exit code."""
    with subprocess.Popen([*_UNSHARE, sys.executable, "-m", "tests.chaos", "--inside", *arguments]) as inner:
        try:
            return inner.wait()
        except SystemExit:
            # It ignores SIGTERM, and what is inside dies with it.
            inner.kill()
            raise


def obstacle() -> str:
    """Why there can be no namespaces here; empty when there can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        return "it needs root" + (f" and {', '.join(missing)}" if missing else "")
    tried = subprocess.run([*_UNSHARE, sys.executable, "-c", ""], check=False, capture_output=True, text=True)
    return tried.stderr.strip()


def build_sites(directory: Path) -> tuple[Lab, Network]:
    """The lab at its sites; only inside ``enter``. Raises WavemeshError or CalledProcessError."""
    stores = dict(STORES)
    lab = SiteLab(directory.resolve(), free_ports(port_names(stores)), stores)
    NAMESPACES.mkdir(parents=True, exist_ok=True)
    inside("", "mount", "-t", "tmpfs", "tmpfs", str(NAMESPACES))
    inside("", "ip", "link", "set", "lo", "up")
    region = topology.REGION
    for site in (region, *lab.stores):
        add_namespace(site)
    inside(region, "ip", "address", "add", f"{_SUPERHUB}/32", "dev", "lo")
    join(("", "cloud", f"{_CLOUD}/30"), (region, "control", "10.99.0.2/30"))
    ends: dict[str, tuple[tuple[str, str], ...]] = {UPLINK: ((region, "control"), ("", "cloud"))}
    for number, store in enumerate(lab.stores, start=1):
        join((region, f"to-{number}", f"10.99.{number}.1/30"), (store, "wan", f"10.99.{number}.2/30"))
        inside(store, "ip", "route", "add", "default", "via", f"10.99.{number}.1")
        ends |= {f"wan/{store}": ((store, "wan"), (region, f"to-{number}")), f"lan/{store}": ((store, "lo"),)}
    for name, node in node_dirs(lab).items():
        (node / "state").mkdir(parents=True)
        size = _DEVICE_DISK if name in lab.devices else _HUB_DISK
        inside("", "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(node / "state"))
    _fill(lab)
    return lab, Machines(ends)


def build_plain(directory: Path) -> tuple[Lab, Network]:
    """The lab on one machine, behind its proxies. Raises WavemeshError."""
    stores = dict(STORES)
    lab = ChaosLab(directory.resolve(), free_ports(port_names(stores)), stores)
    _fill(lab)
    return lab, Proxies(lab)


def contexts_of_the_store(lab: Lab) -> Path:
    """The contexts of a second operator: pauses are kept per operator, and one stands in a store."""
    return lab.directory / "contexts-store.toml"


def save_contexts_of_all(lab: Lab) -> None:
    """For ``edgectl``: control's operator and the store's."""
    known = operations.contexts(lab)
    save_contexts(lab.contexts_path, known)
    own = {name: replace(context, identity=_store_operator(lab)) for name, context in known.contexts.items()}
    save_contexts(contexts_of_the_store(lab), Contexts(known.current, own))


def _store_operator(lab: Lab) -> Path:
    return lab.operator_dir.with_name(_STORE_OPERATOR)


def _fill(lab: Lab) -> None:
    furnish(lab, build_small_images(lab.directory / "source", IMAGE_BYTES))
    now = datetime.now(UTC)
    ca, bob = FleetCa.load(lab.offline_dir / "ca"), NodeId(topology.FLEET, f"operator/{_STORE_OPERATOR}")
    write_node(_store_operator(lab), ca, bob, not_before=now - _SLACK, not_after=now + timedelta(days=2))
    for node in node_dirs(lab).values():
        set_clock(node, 0)


def set_clock(node: Path, offset_s: int) -> None:
    """How wrong a node's clock is from now on."""
    temporary = node / "clock.tmp"
    temporary.write_text(f"{offset_s:+}\n", encoding="utf-8")
    temporary.rename(node / "clock")


def regress(lab: Lab, firmware: Path, version: str, plot: Plot, seeded: random.Random) -> None:
    """Write the image of a release that is good or bad as the plot has it.

    What is wrong with it is in its first bytes, which ``tests/chaos/wrongs`` reads on the slot that runs; that it does
    not get as far as that is for the boards to know, by its version.
    """
    firmware.write_bytes(plot.value.encode().ljust(MARK_BYTES, b"\0") + seeded.randbytes(IMAGE_BYTES - MARK_BYTES))
    if plot is Plot.UNBOOTABLE:
        for device in lab.devices:
            with (lab.device_dir(device) / "hardware" / "unbootable").open("a", encoding="utf-8") as file:
                file.write(f"{version}\n")


def kinds(lab: Lab) -> frozenset[Kind]:
    """The kinds of faults that can be had here."""
    return frozenset(Kind) - (frozenset() if isinstance(lab, SiteLab) else {Kind.FULL_DISK})


def keep_states(lab: Lab) -> None:
    """Nothing runs any more: turn each small file system into a plain directory, which outlives us."""
    for node in node_dirs(lab).values():
        state, copy = node / "state", node / "state.kept"
        if not state.is_mount():
            continue
        shutil.copytree(state, copy, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
        inside("", "umount", str(state))
        state.rmdir()
        copy.rename(state)
