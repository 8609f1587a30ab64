"""The store hub's ``config.toml``. Times in seconds; production defaults, the lab shortens them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from wavemesh.artifacts.scrubbing import BYTES_PER_S
from wavemesh.identity.nodes import is_name
from wavemesh.runtime.config import bounded, load_config
from wavemesh.telemetry.config import TelemetryConfig

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """Devices of this store, by name, that form the availability group (role, group) of a policy; may be none."""

    role: str
    group: str
    devices: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what is no device's name, and one that is named twice."""
        for name in self.devices:
            if not is_name(name):
                msg = f"{name!r} is no name of a device: use 1 to 63 of a-z, 0-9 and '-', not at either end"
                raise ValueError(msg)
            if self.devices.count(name) > 1:
                msg = f"device {name} is named twice in group {self.role}/{self.group}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Config:
    """How a store hub runs. ``parent`` is the super hub's "host:port".

    ``join_listen`` is where devices join that have no certificate yet, ``registry_listen`` where container runtimes
    pull apps; empty serves nobody.

    ``lease_s``: time from grant to the begin of the trial boot. ``trial_allowance_s``: probes and commit, beyond the
    policy's health budget. ``watchdog_s``: until the board's watchdog has brought a dead device back. ``witness_s``:
    how long another device must have been connected before one that is not counts as silent. ``reconnect_*``: back-off
    towards the super hub, so short that the store is back within five seconds of its WAN. ``link_bytes_per_s``: speed
    of the link to the super hub, to plan deliveries with until transfers have shown what it is. ``hardware_clock``: the
    clock survives power-off. ``window_bytes_per_s`` bounds what is fetched within prefetch windows, all blobs together,
    ``day_bytes_per_s`` what is fetched otherwise; 0 is no bound. ``scrub_bytes_per_s``: how fast the cache is read
    again and verified, ``scrub_interval_s``: the rest between two rounds; by default 32 GiB take a day.
    ``partial_keep_s``: how long what is there of a blob is kept that nobody wants any more.
    """

    listen: str
    parent: str
    join_listen: str = ""
    registry_listen: str = ""
    time_zone: str = "UTC"
    quota_bytes: int = field(default=64 * 1024 * MIB, metadata=bounded(MIB, 1 << 50))
    max_concurrent_swaps: int = field(default=5, metadata=bounded(1, 1000))
    maximum_concurrent_rpcs: int = field(default=4096, metadata=bounded(16, 100_000))
    lease_s: float = field(default=300.0, metadata=bounded(0.5, 86_400))
    trial_allowance_s: float = field(default=300.0, metadata=bounded(0.5, 86_400))
    watchdog_s: float = field(default=600.0, metadata=bounded(0.5, 86_400))
    witness_s: float = field(default=60.0, metadata=bounded(0, 86_400))
    scheduling_interval_s: float = field(default=1.0, metadata=bounded(0.05, 60))
    status_interval_s: float = field(default=0.5, metadata=bounded(0.05, 60))
    hub_status_interval_s: float = field(default=30.0, metadata=bounded(0.5, 3600))
    ping_relay_timeout_s: float = field(default=5.0, metadata=bounded(0.1, 60))
    window_bytes_per_s: int = field(default=0, metadata=bounded(0, 1 << 40))
    day_bytes_per_s: int = field(default=0, metadata=bounded(0, 1 << 40))
    fetch_retry_min_s: float = field(default=1.0, metadata=bounded(0.01, 3600))
    fetch_retry_max_s: float = field(default=60.0, metadata=bounded(0.05, 3600))
    link_bytes_per_s: float = field(default=1_250_000.0, metadata=bounded(1, 1e12))
    scrub_interval_s: float = field(default=3600.0, metadata=bounded(1, 30 * 86_400))
    scrub_bytes_per_s: int = field(default=BYTES_PER_S, metadata=bounded(1024, 1 << 34))
    partial_keep_s: float = field(default=3 * 86_400.0, metadata=bounded(60, 90 * 86_400))
    log_retention_s: float = field(default=86_400.0, metadata=bounded(60, 30 * 86_400))
    heartbeat_interval_s: float = field(default=15.0, metadata=bounded(0.05, 600))
    reconnect_min_s: float = field(default=0.25, metadata=bounded(0.01, 600))
    reconnect_max_s: float = field(default=3.0, metadata=bounded(0.05, 3600))
    hardware_clock: bool = True
    groups: tuple[GroupConfig, ...] = ()
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)

    def __post_init__(self) -> None:
        """Refuse a time zone that does not exist, and a group that is there twice."""
        names = [f"{group.role}/{group.group}" for group in self.groups]
        for name in names:
            if names.count(name) > 1:
                msg = f"group {name} is there twice; a device may be in several groups, a group is one list"
                raise ValueError(msg)
        try:
            ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            msg = f"time_zone {self.time_zone!r} is not an IANA time zone (for example America/Chicago)"
            raise ValueError(msg) from error

    @property
    def zone(self) -> ZoneInfo:
        """The store's time zone."""
        return ZoneInfo(self.time_zone)


def load(directory: Path) -> Config:
    """Read ``DIR/config.toml``; raises ConfigError."""
    return load_config(directory / "config.toml", Config)
