"""Configuration of a device: ``DIR/config.toml``. Defaults are for production; a lab shortens the times.

Class, hardware revision and paths are bound at enrolment, never taken from an order. Imports nothing heavy, because the
supervisor reads the same file.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from device.bootenv import ResetReason  # noqa: TC001  # the reader resolves the hints at run time
from wavemesh.runtime.config import ConfigError, bounded, load_config

FILE_NAME = "config.toml"
MIB = 1024 * 1024


class ClockKind(enum.Enum):
    """Where the time comes from: a battery-backed clock is believed at start, any other once control confirmed it."""

    HARDWARE = "hardware"
    NETWORK = "network"


class ProbeContainment(enum.Enum):
    """Whether a probe runs where the kernel or the agent's rights do not allow to shut it in fully."""

    REQUIRED = "required"
    BEST_EFFORT = "best-effort"


class BoardKind(enum.Enum):
    """Who boots, resets and watches the device: a supervisor that plays a board, or the hardware under Linux."""

    SUPERVISED = "supervised"
    LINUX = "linux"


class Backend(enum.Enum):
    """What holds the slots and the boot environment."""

    SIMULATED = "simulated"
    GRUB = "grub"
    UBOOT = "uboot"
    RAUC = "rauc"


class BootStore(enum.Enum):
    """What holds the boot environment."""

    FILE = "file"
    GRUB = "grub"
    UBOOT = "uboot"


@dataclass(frozen=True, slots=True)
class Device:
    """What the device is, as enrolled."""

    device_class: str
    hardware_revision: str
    region: str = ""
    clock: ClockKind = ClockKind.HARDWARE


@dataclass(frozen=True, slots=True)
class Hub:
    """Where the store hub listens ("host:port"); its identity follows from the device's own."""

    address: str


class KeyPlace(enum.Enum):
    """Where the device's key lives."""

    FILE = "file"
    TPM = "tpm"


@dataclass(frozen=True, slots=True)
class Identity:
    """The device's key; ``tcti`` says where the TPM is that holds it (``wavemesh/identity/tpm.py``)."""

    key: KeyPlace = KeyPlace.FILE
    tcti: str = "device:/dev/tpmrm0"


@dataclass(frozen=True, slots=True)
class Board:
    """Hardware: what holds the slots, the kernel's files, the watchdog. Paths are relative to the device's directory.

    Probes run as ``probe_user`` if the agent is root, else as the agent's own user; ``gates`` is a directory of vendor
    hooks, which run the same way, so it is outside of the device's directory or below ``hardware``.
    ``redundant_bootloader`` declares that a payload that touches the bootloader is written so that a power cut leaves
    the old one.
    """

    kind: BoardKind = BoardKind.SUPERVISED
    backend: Backend = Backend.SIMULATED
    redundant_bootloader: bool = False
    slot_capacity_bytes: int = field(default=1024 * MIB, metadata=bounded(MIB, 1024 * 1024 * MIB))
    power_supply: Path = Path("hardware/power_supply")
    thermal: Path = Path("hardware/thermal")
    hwmon: Path = Path("hardware/hwmon")
    inhibit: Path = Path("hardware/inhibit")
    hardware: Path = Path("hardware")
    gates: Path | None = None
    reserved_disk_bytes: int = field(default=0, metadata=bounded(0, 1 << 60))
    path: str = "/usr/sbin:/usr/bin:/sbin:/bin"
    probe_containment: ProbeContainment = ProbeContainment.REQUIRED
    probe_user: str = "nobody"
    watchdog_s: float = field(default=60.0, metadata=bounded(0.2, 3600))
    boot_timer_s: float = field(default=120.0, metadata=bounded(0.2, 3600))


@dataclass(frozen=True, slots=True)
class SlotPaths:
    """The two system partitions, as devices or files, of the back-ends grub, uboot and rauc."""

    a: Path = Path("slots/A.img")
    b: Path = Path("slots/B.img")


@dataclass(frozen=True, slots=True)
class Grub:
    """Back-end grub: the environment block that this device's GRUB loads."""

    environment: Path = Path("slots/grubenv")


@dataclass(frozen=True, slots=True)
class Uboot:
    """Back-end uboot: where the two copies of U-Boot's environment are, as libubootenv is told."""

    config: Path = Path("slots/fw_env.config")


@dataclass(frozen=True, slots=True)
class Rauc:
    """Back-end rauc: the address of RAUC's bus, and the boot environment that its handler writes for us.

    An empty ``bus`` is for a board that a supervisor plays: it runs the bus and the service itself.
    """

    bus: str = "unix:path=/run/dbus/system_bus_socket"
    directory: Path = Path("rauc")
    environment: BootStore = BootStore.FILE
    install_timeout_s: float = field(default=1800.0, metadata=bounded(1, 86_400))


@dataclass(frozen=True, slots=True)
class Reset:
    """Where the board says why it was reset, ``file`` or what ``command`` prints, and what each of its words means.

    A word is the whole text without the space around it. Without a meaning a word proves nothing.
    """

    file: Path | None = None
    command: tuple[str, ...] = ()
    meanings: dict[str, ResetReason] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Linux:
    """A board of kind "linux": roots of the kernel's files, its watchdog, and how to reboot.

    ``root`` is where the file system of the running slot is mounted; where there is no ``watchdog``, nothing watches.
    """

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    root: Path = Path("/")
    watchdog: Path = Path("/dev/watchdog")
    reset: Reset = field(default_factory=Reset)
    reboot: tuple[str, ...] = ("systemctl", "reboot")
    reboot_by_force: tuple[str, ...] = ("reboot", "-f")
    reboot_bound_s: float = field(default=30.0, metadata=bounded(0.05, 600))


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Commands that load the staged slot's kernel, ``{slot}`` being its file or device, and unload it again."""

    kexec_load: tuple[str, ...] = ()
    kexec_unload: tuple[str, ...] = ("kexec", "-u")


@dataclass(frozen=True, slots=True)
class Timing:
    """Intervals and allowances, seconds."""

    ping_interval_s: float = field(default=20.0, metadata=bounded(0.05, 600))
    ping_timeout_s: float = field(default=10.0, metadata=bounded(0.05, 120))
    gate_interval_s: float = field(default=5.0, metadata=bounded(0.02, 600))
    recheck_interval_s: float = field(default=300.0, metadata=bounded(0.05, 86_400))
    retry_interval_s: float = field(default=10.0, metadata=bounded(0.02, 3600))
    probe_timeout_s: float = field(default=30.0, metadata=bounded(0.05, 600))
    probe_settle_s: float = field(default=30.0, metadata=bounded(0, 3600))
    pause_bound_s: float = field(default=3600.0, metadata=bounded(0.05, 7 * 86_400))
    inhibit_bound_s: float = field(default=6 * 3600.0, metadata=bounded(0.05, 7 * 86_400))
    signoff_maximum_s: float = field(default=7 * 86_400.0, metadata=bounded(0.05, 90 * 86_400))
    status_interval_s: float = field(default=0.25, metadata=bounded(0.05, 60))
    log_upload_interval_s: float = field(default=60.0, metadata=bounded(0.05, 86_400))


@dataclass(frozen=True, slots=True)
class Staging:
    """How bytes reach the slot, and how few of them in how long, seconds, are so few that the wave is told."""

    fsync_step_bytes: int = field(default=8 * MIB, metadata=bounded(64 * 1024, 1024 * MIB))
    progress_s: float = field(default=3600.0, metadata=bounded(0.2, 7 * 86_400))
    progress_bytes: int = field(default=MIB, metadata=bounded(1, 1024 * MIB))


@dataclass(frozen=True, slots=True)
class Logs:
    """The local log ring."""

    keep_hours: int = field(default=24, metadata=bounded(1, 24 * 30))
    quota_bytes: int = field(default=16 * MIB, metadata=bounded(64 * 1024, 1024 * MIB))


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Spans: whether there are any, and how long to wait, seconds, before asking again whether they can go up."""

    enabled: bool = True
    retry_interval_s: float = field(default=5.0, metadata=bounded(0.05, 3600))


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """The whole file."""

    device: Device
    hub: Hub
    board: Board = field(default_factory=Board)
    slots: SlotPaths = field(default_factory=SlotPaths)
    grub: Grub = field(default_factory=Grub)
    uboot: Uboot = field(default_factory=Uboot)
    rauc: Rauc = field(default_factory=Rauc)
    linux: Linux = field(default_factory=Linux)
    rehearsal: Rehearsal = field(default_factory=Rehearsal)
    timing: Timing = field(default_factory=Timing)
    staging: Staging = field(default_factory=Staging)
    logs: Logs = field(default_factory=Logs)
    telemetry: Telemetry = field(default_factory=Telemetry)
    identity: Identity = field(default_factory=Identity)


def load_device_config(directory: Path) -> DeviceConfig:
    """Read ``DIR/config.toml``; raises ConfigError."""
    config = _placed(directory, load_config(directory / FILE_NAME, DeviceConfig))
    _check_hooks(directory, config.board)
    return config


def _check_hooks(directory: Path, board: Board) -> None:
    """What probes are shut off from, no hook runs in. Raises ConfigError."""
    if board.gates is None:
        return
    hooks, hidden, shown = board.gates.resolve(), directory.resolve(), board.hardware.resolve()
    if hooks.is_relative_to(hidden) and not hooks.is_relative_to(shown):
        problem = f"{board.gates} is hidden from hooks: choose one below {board.hardware}, or outside of {directory}"
        raise ConfigError(directory / FILE_NAME, "board.gates", problem)


def unconfigured(directory: Path) -> DeviceConfig:
    """What holds for a device in ``directory`` whose configuration is not written yet."""
    return _placed(directory, DeviceConfig(Device("", ""), Hub("")))


def _placed(directory: Path, config: DeviceConfig) -> DeviceConfig:
    board = _below(directory, config.board, "power_supply", "thermal", "hwmon", "inhibit", "hardware")
    slots, grub = _below(directory, config.slots, "a", "b"), _below(directory, config.grub, "environment")
    uboot, rauc = _below(directory, config.uboot, "config"), _below(directory, config.rauc, "directory")
    return replace(config, board=board, slots=slots, grub=grub, uboot=uboot, rauc=rauc)


T = TypeVar("T", Board, SlotPaths, Grub, Uboot, Rauc)


def _below(directory: Path, table: T, *names: str) -> T:
    """A table whose paths, defaults too, are relative to the device's directory."""
    return replace(table, **{name: directory / getattr(table, name) for name in names})
