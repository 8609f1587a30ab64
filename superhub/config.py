"""The super hub's configuration file, ``config.toml``."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path  # noqa: TC003  # the configuration reads the fields' types

from superhub.derivations import Limits
from superhub.schedule import ScheduleConfig
from wavemesh.artifacts.delta.worker import Bounds
from wavemesh.artifacts.objectstore import SCHEME, Place, check_endpoint
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
    """Where artifacts come from: ``https://HOST``, blobs at ``URL/blobs/SHA256`` over mutual TLS; ``file:///DIRECTORY``
    with a file for each blob, named by its SHA-256; or ``s3://BUCKET/PREFIX``, read by URLs that control signs.

    For a bucket, ``endpoint`` (``https://HOST``) is where those URLs must lead, if given, and ``ca_file`` has
    certificates that are trusted besides the system's. ``schedule`` is when and how fast the region fetches.
    """

    url: str
    endpoint: str = ""
    ca_file: Path | None = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        """Refuse a URL of another kind: what comes from an origin is verified, but nobody else should see it."""
        if not self.url.startswith(("https://", "file:///", SCHEME)):
            msg = f"url must begin with https://, file:/// or s3://, got {self.url!r}"
            raise ValueError(msg)
        if self.is_bucket:
            Place.parse(self.url)
        elif self.endpoint or self.ca_file:
            msg = "endpoint and ca_file are for an origin of s3://"
            raise ValueError(msg)
        if self.endpoint:
            check_endpoint(self.endpoint)

    @property
    def is_bucket(self) -> bool:
        """Whether it is an object store."""
        return self.url.startswith(SCHEME)


@dataclass(frozen=True, slots=True)
class ComplianceConfig:
    """What may be seeded: days since a release was signed after which it does not enter the region any more."""

    max_age_days: float = field(default=14.0, metadata=bounded(0.01, 3650))

    @property
    def max_age(self) -> timedelta:
        """The same as a time span."""
        return timedelta(days=self.max_age_days)


class DerivingStart(enum.Enum):
    """When deltas are begun."""

    ASKED = "asked"
    """When the first store asks: from what it has, and from what others of the region run."""
    ENTERED = "entered"
    """Already when a release enters the region, so that they are there when the first store's window opens."""


@dataclass(frozen=True, slots=True)
class DeltasConfig:
    """What is made of releases for stores that hold others: deltas, chunks, compressed blobs.

    ``parallel`` jobs run at once, each a process of its own on one core, niced, with ``memory_mib`` MiB of memory and
    ``max_s`` seconds at most; what cannot be made within that is not offered. ``start`` says when they are begun.
    """

    enabled: bool = True
    parallel: int = field(default=1, metadata=bounded(1, 64))
    memory_mib: int = field(default=4096, metadata=bounded(512, 1024 * 1024))
    max_s: float = field(default=1200.0, metadata=bounded(1, 86_400))
    start: DerivingStart = DerivingStart.ASKED

    @property
    def limits(self) -> Limits:
        """The same for those who decide."""
        return Limits(self.memory_mib, self.max_s, self.parallel)

    @property
    def bounds(self) -> Bounds:
        """The same for one job, which counts its processor's time and may wait for a busy machine."""
        return Bounds(memory_mib=self.memory_mib, cpu_s=math.ceil(self.max_s), wall_s=3 * self.max_s)


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

    ``maximum_reads`` is how many blobs stores may read at a time; a read that its store takes slowly holds up to 6 MB.
    Who comes beyond that is told when to come again.

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
    deltas: DeltasConfig = field(default_factory=DeltasConfig)
    maximum_stores: int = field(default=2000, metadata=bounded(1, 20_000))
    parallel_fetches: int = field(default=4, metadata=bounded(1, 64))
    maximum_reads: int = field(default=64, metadata=bounded(1, 4096))
    heartbeat_s: float = field(default=10.0, metadata=bounded(0.1, 600))
    reconnect_min_s: float = field(default=0.25, metadata=bounded(0.01, 60))
    reconnect_max_s: float = field(default=4.0, metadata=bounded(0.01, 3600))
    scrub_bytes_per_s: int = field(default=BYTES_PER_S, metadata=bounded(1024, 1 << 34))
    scrub_interval_s: float = field(default=3600.0, metadata=bounded(1, 30 * 86_400))
    drain_s: float = field(default=5.0, metadata=bounded(0, 120))
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
