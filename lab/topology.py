"""What the lab consists of, and where each part lives in its directory: names, paths, ports. Pure.

One region, two stores, six tills each, as the demo's story needs them. Every store reaches its super hub through a WAN
proxy of its own, which the lab can cut, and so does the super hub its control plane.

    DIR/lab.json              this topology with the ports chosen
    DIR/contexts.toml         for edgectl
    DIR/policy.yaml           the policy the lab's wave was planned from
    DIR/control|superhub|stores/S|devices/D     one directory a node, as docs/architecture.md has it
    DIR/operators/alice       the operator's identity
    DIR/keys/offline          CA and release keys; no running process reads them
    DIR/images                the images that devices may run, and images.json with their digests
    DIR/origin                what the origin serves, and its log
    DIR/wan                   the proxies' configuration and control socket
    DIR/run                   logs and process ids
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from wavemesh.errors import LocalError
from wavemesh.identity.nodes import NodeId

if TYPE_CHECKING:
    from pathlib import Path

FLEET = "lab.wavemesh"
REGION = "midwest"
COHORT = "retail-us-midwest"
DEVICE_CLASS = "pos"
HARDWARE_REVISION = "rev-b"
WAVE = "142"
OPERATOR = "alice"
TIME_ZONE = "America/Chicago"
STORES: dict[str, tuple[str, ...]] = {
    "store-208": tuple(f"pos-{number:02}" for number in range(1, 7)),
    "store-209": tuple(f"pos-{number:02}" for number in range(12, 18)),
}
CONTROL_LINK = REGION
LOCALHOST = "127.0.0.1"


class NoLabError(LocalError):
    """There is no lab in that directory."""

    reason = "NO_LAB"


@dataclass(frozen=True, slots=True)
class Lab:
    """One lab: its directory and the ports its servers listen at, by name."""

    directory: Path
    ports: dict[str, int] = field(default_factory=dict)
    stores: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(STORES))

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of all devices, in order of their stores."""
        return tuple(device for devices in self.stores.values() for device in devices)

    def store_of(self, device: str) -> str:
        """The store a device stands in; KeyError for none of the lab's."""
        return next(store for store, devices in self.stores.items() if device in devices)

    def host(self, name: str) -> str:
        """The IP address of that server's machine; the lab is one machine."""
        del name
        return LOCALHOST

    def address(self, name: str) -> str:
        """Where a server listens: "control", "superhub", a store, "wan/NAME" or "origin"."""
        return f"{self.host(name)}:{self.ports[name]}"

    @property
    def heartbeat_s(self) -> float:
        """Seconds between heartbeats of control's and the stores' sessions."""
        return 1.0

    @property
    def halt_settle_s(self) -> float:
        """Seconds from a halt to control's last word on the wave."""
        return 30.0

    def launcher(self, name: str) -> tuple[str, ...]:
        """What a process's command is put behind; nothing, where all are on one machine."""
        del name
        return ()

    @property
    def control_dir(self) -> Path:
        """Control's directory."""
        return self.directory / "control"

    @property
    def superhub_dir(self) -> Path:
        """The super hub's directory."""
        return self.directory / "superhub"

    def store_dir(self, store: str) -> Path:
        """A store hub's directory."""
        return self.directory / "stores" / store

    def device_dir(self, device: str) -> Path:
        """A device's directory."""
        return self.directory / "devices" / device

    @property
    def operator_dir(self) -> Path:
        """The operator's identity."""
        return self.directory / "operators" / OPERATOR

    @property
    def offline_dir(self) -> Path:
        """Keys that no running process reads."""
        return self.directory / "keys" / "offline"

    @property
    def images_dir(self) -> Path:
        """The images that devices may run."""
        return self.directory / "images"

    @property
    def origin_dir(self) -> Path:
        """What the origin serves."""
        return self.directory / "origin"

    @property
    def wan_dir(self) -> Path:
        """The proxies' configuration and control socket."""
        return self.directory / "wan"

    @property
    def run_dir(self) -> Path:
        """Logs and process ids."""
        return self.directory / "run"

    @property
    def policy_path(self) -> Path:
        """The policy the lab's wave is planned from."""
        return self.directory / "policy.yaml"

    @property
    def contexts_path(self) -> Path:
        """The contexts for edgectl."""
        return self.directory / "contexts.toml"


def port_names(stores: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Every port a lab with those stores needs, by name."""
    links = (CONTROL_LINK, *stores)
    return ("control", "superhub", "origin", *stores, *(f"wan/{link}" for link in links))


def control_id() -> NodeId:
    """Control."""
    return NodeId(FLEET, "control/control-1")


def superhub_id() -> NodeId:
    """The super hub."""
    return NodeId(FLEET, f"region/{REGION}")


def store_id(store: str) -> NodeId:
    """A store hub."""
    return NodeId(FLEET, f"region/{REGION}/store/{store}")


def device_id(store: str, device: str) -> NodeId:
    """A device."""
    return NodeId(FLEET, f"region/{REGION}/store/{store}/device/{device}")


def operator_id() -> NodeId:
    """The operator."""
    return NodeId(FLEET, f"operator/{OPERATOR}")


def origin_id() -> NodeId:
    """The origin proves itself with a certificate of the fleet; it is no node of the mesh, so it borrows a role."""
    return NodeId(FLEET, "control/origin")


def save_lab(lab: Lab) -> None:
    """Write lab.json."""
    content = {**asdict(lab), "directory": str(lab.directory)}
    lab.directory.mkdir(parents=True, exist_ok=True)
    (lab.directory / "lab.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_lab(directory: Path) -> Lab:
    """Read lab.json; raises NoLabError."""
    path = directory / "lab.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stores = {name: tuple(devices) for name, devices in content["stores"].items()}
        return Lab(directory.resolve(), dict(content["ports"]), stores)
    except (OSError, ValueError, KeyError) as exc:
        msg = f"no lab in {directory} ({exc}); `edgectl lab up` makes one, --dir names another directory"
        raise NoLabError(msg) from exc
