"""Control's ``config.toml``: every key has a default that suits a fleet."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path  # noqa: TC003  # the configuration reads the fields' types

from wavemesh.artifacts.objectstore import Place
from wavemesh.runtime.config import bounded
from wavemesh.telemetry.config import TelemetryConfig

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class OriginConfig:
    """An object store that super hubs read by URLs which control signs: ``[origins.NAME]``.

    ``url`` is ``s3://BUCKET/PREFIX``, ``access`` the access file (``wavemesh/artifacts/objectstore.py``). ``serves``
    are the regions that read from here; an origin that names none is for all that no other names. ``url_lifetime_h`` is
    how many hours a URL is good for: as long as a region can go on fetching without control.
    """

    url: str
    access: Path
    serves: tuple[str, ...] = ()
    url_lifetime_h: float = field(default=48.0, metadata=bounded(0.0005, 168))

    def __post_init__(self) -> None:
        """Refuse what is no bucket."""
        Place.parse(self.url)

    @property
    def url_lifetime(self) -> timedelta:
        """The same as a time span."""
        return timedelta(hours=self.url_lifetime_h)


@dataclass(frozen=True, slots=True)
class Config:
    """Where control listens and how long things last; times in seconds.

    ``halt_settle_s``: from a halt to the last word on the wave, for trials to roll back and report.
    ``intent_keep_s``: how long an intent stays published after it reached everybody it was for.
    ``reconcile_s``: between two comparisons of what should have been reported with what was. ``unheard_s``: how old a
    last word may be by then, and ``settle_s``: how long two tiers may differ, before it is a discrepancy.
    ``delivery_wait_s``: how long a submission waits to say that it was delivered instead of queued.
    """

    listen: str = "127.0.0.1:7400"
    maximum_concurrent_rpcs: int = field(default=1000, metadata=bounded(8, 100_000))
    wave_lifetime_s: float = field(default=14 * _DAY_S, metadata=bounded(60, 365 * _DAY_S))
    permit_attempts: int = field(default=3, metadata=bounded(1, 10))
    hold_resign_s: float = field(default=3600.0, metadata=bounded(1, _DAY_S))
    halt_settle_s: float = field(default=_DAY_S, metadata=bounded(0, 30 * _DAY_S))
    closed_keep_s: float = field(default=30 * _DAY_S, metadata=bounded(60, 365 * _DAY_S))
    intent_keep_s: float = field(default=_DAY_S, metadata=bounded(60, 30 * _DAY_S))
    intent_lifetime_s: float = field(default=14 * _DAY_S, metadata=bounded(60, 365 * _DAY_S))
    reconcile_s: float = field(default=_DAY_S, metadata=bounded(60, 30 * _DAY_S))
    unheard_s: float = field(default=_DAY_S, metadata=bounded(60, 365 * _DAY_S))
    settle_s: float = field(default=600.0, metadata=bounded(1, _DAY_S))
    delivery_wait_s: float = field(default=2.0, metadata=bounded(0, 30))
    tick_s: float = field(default=5.0, metadata=bounded(0.05, 300))
    heartbeat_s: float = field(default=15.0, metadata=bounded(0.1, 300))
    drain_s: float = field(default=5.0, metadata=bounded(0, 60))
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    origins: dict[str, OriginConfig] = field(default_factory=dict)
