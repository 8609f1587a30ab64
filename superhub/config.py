"""The super hub's configuration file, ``config.toml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from wavemesh.artifacts.scrubbing import BYTES_PER_S
from wavemesh.identity.ca import NODE_LIFETIME
from wavemesh.runtime.config import bounded
from wavemesh.telemetry.config import TelemetryConfig

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """Where control is, and its name: ``main`` for ``control/main``."""

    address: str
    name: str


@dataclass(frozen=True, slots=True)
class OriginConfig:
    """Where artifacts come from: ``https://HOST``, blobs at ``URL/blobs/SHA256`` over mutual TLS, or ``file:///DIRECTORY``
    with a file for each blob, named by its SHA-256.
    """

    url: str

    def __post_init__(self) -> None:
        """Refuse a URL of another kind: what comes from an origin is verified, but nobody else should see it."""
        if not self.url.startswith(("https://", "file:///")):
            msg = f"url must begin with https:// or file:///, got {self.url!r}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class ComplianceConfig:
    """What may be seeded: days since a release was signed after which it does not enter the region any more."""

    max_age_days: float = field(default=14.0, metadata=bounded(0.01, 3650))

    @property
    def max_age(self) -> timedelta:
        """The same as a time span."""
        return timedelta(days=self.max_age_days)


@dataclass(frozen=True, slots=True)
class AuthorityConfig:
    """How long the certificates last that this hub issues: longer than any node is offline, and a margin."""

    lifetime_days: float = field(default=NODE_LIFETIME.days, metadata=bounded(0.0001, 3650))

    @property
    def lifetime(self) -> timedelta:
        """The same as a time span."""
        return timedelta(days=self.lifetime_days)


@dataclass(frozen=True, slots=True)
class SuperHubConfig:
    """All of it. ``listen`` is "HOST:PORT"; the region and the fleet come from the certificate.

    ``join_listen`` is where store hubs join that have no certificate yet; empty serves nobody.

    ``heartbeat_s`` is how often a silent session with a store shows life, both ways; ``reconnect_*`` bound the back-off
    towards control; ``drain_s`` is the time stores are told to stay away at a stop, and that transfers have to end.

    ``scrub_bytes_per_s`` is how fast the cache is read again and verified, ``scrub_interval_s`` the rest between two
    rounds; by default 32 GiB take a day.
    """

    listen: str
    control: ControlConfig
    origin: OriginConfig
    cache_quota_bytes: int = field(default=64 * 1024 * _MIB, metadata=bounded(_MIB, 1 << 50))
    join_listen: str = ""
    authority: AuthorityConfig = field(default_factory=AuthorityConfig)
    compliance: ComplianceConfig = field(default_factory=ComplianceConfig)
    maximum_stores: int = field(default=2000, metadata=bounded(1, 20_000))
    parallel_fetches: int = field(default=4, metadata=bounded(1, 64))
    heartbeat_s: float = field(default=10.0, metadata=bounded(0.1, 600))
    reconnect_min_s: float = field(default=0.25, metadata=bounded(0.01, 60))
    reconnect_max_s: float = field(default=4.0, metadata=bounded(0.01, 3600))
    scrub_bytes_per_s: int = field(default=BYTES_PER_S, metadata=bounded(1024, 1 << 34))
    scrub_interval_s: float = field(default=3600.0, metadata=bounded(1, 30 * 86_400))
    drain_s: float = field(default=5.0, metadata=bounded(0, 120))
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
