"""What travels in a session, as values: the dataclass twins of session.proto.

The bounds of session.proto are constants here, so that the pure machines and the codec enforce the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_RESOURCE_BYTES = 1024 * 1024
MAX_REPORT_BYTES = 256 * 1024
MAX_REPORTS_PER_BATCH = 256
MAX_BATCH_BYTES = 1024 * 1024
MAX_STATUS_ENTRIES = 1024
MAX_STATUS_BYTES = 64 * 1024
MAX_HELD = 16_384
MAX_ASK_BYTES = 64 * 1024
MAX_ASKS_IN_FLIGHT = 16
MAX_UPDATES_IN_FLIGHT = 2
MAX_HEARTBEAT_INTERVAL_MS = 300_000
MAX_RETRY_AFTER_S = 600.0
MAX_NAME_BYTES = 200
MAX_REASON_BYTES = 1000
MAX_CAPABILITIES = 32
MAX_CAPABILITY_CHARACTERS = 64
PROTOCOL_VERSION = 1
MIN_PROTOCOL_VERSION = 1
# What this software can do beyond the protocol version, by the names both sides say in Hello and Welcome. A feature
# that has a name here is used with a peer that named it too. A name is never given a second meaning.
CAPABILITIES: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, order=True)
class ResourceKey:
    """Identity of a resource: what it is ("order") and which one ("142/store-208")."""

    type: str
    name: str


@dataclass(frozen=True, slots=True)
class ResourceVersion:
    """Version at one parent; versions of different epochs are not comparable."""

    epoch: str
    counter: int


@dataclass(frozen=True, slots=True)
class HeldResource:
    """A resource the child holds, by key, version and digest of its content."""

    key: ResourceKey
    version: ResourceVersion
    digest: str


@dataclass(frozen=True, slots=True)
class Resource:
    """A piece of desired state; ``digest`` is the SHA-256 of ``content`` in lower-case hex."""

    key: ResourceKey
    version: ResourceVersion
    digest: str
    content: bytes
    audience: tuple[str, ...] = ()
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a child refused a resource: the gate and a sentence."""

    key: ResourceKey
    digest: str
    gate: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """One durable report: its kind ("outcome") and body."""

    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class StatusEntry:
    """One latest-wins value; ``body`` is None when the key was removed."""

    key: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Hello:
    """Opens a session."""

    protocol_version: int
    software_version: str
    incarnation: str
    next_report_number: int
    held: tuple[HeldResource, ...]
    minimum_protocol_version: int = 0
    capabilities: tuple[str, ...] = ()

    @property
    def oldest_protocol_version(self) -> int:
        """Lowest version the child speaks; a child that does not say speaks one version only."""
        return self.minimum_protocol_version or self.protocol_version


@dataclass(frozen=True, slots=True)
class Welcome:
    """Accepts a session."""

    protocol_version: int
    software_version: str
    session_id: str
    reports_through: int
    heartbeat_interval_ms: int
    report_window: int
    epoch: str
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fenced:
    """Refuses an incarnation whose report numbers are behind the parent's cursor, or that gave way to a newer one."""

    reports_through: int


@dataclass(frozen=True, slots=True)
class ResourceUpdate:
    """Differences of desired state."""

    nonce: int
    changed: tuple[Resource, ...]
    removed: tuple[ResourceKey, ...]
    settled: bool


@dataclass(frozen=True, slots=True)
class ResourceVerdict:
    """Answer to a ResourceUpdate; what is not rejected is accepted and durable."""

    nonce: int
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True)
class ReportBatch:
    """Contiguous reports from ``first_number`` on."""

    first_number: int
    reports: tuple[Report, ...]


@dataclass(frozen=True, slots=True)
class ReportAck:
    """Everything up to ``through`` is durable at the parent and applied."""

    through: int


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """Status that changed."""

    entries: tuple[StatusEntry, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """A best-effort question."""

    ask_id: int
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """Its answer: a body, or an error in words."""

    ask_id: int
    body: bytes
    error: str = ""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Liveness of the application."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """An announced end; ``retry_after_ms`` 0 leaves the return to back-off."""

    reason: str
    retry_after_ms: int = 0


ChildFrame = Hello | ReportBatch | StatusUpdate | ResourceVerdict | Ask | Heartbeat | Goodbye
ParentFrame = Welcome | Fenced | ResourceUpdate | ReportAck | Answer | Heartbeat | Goodbye
