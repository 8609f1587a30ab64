"""What a tier gives to a session and what it gets from it. The session knows no tier; these are the seams.

A child owns a *report log* (durable, numbered) and a *resource sink* (verifies and stores desired state). A parent owns
a *child registry* (cursors, effects of reports, desired state). ``Upstream`` and ``Downstream`` in link.py drive the
pure machines of child.py and parent.py against them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wavemesh.identity.nodes import NodeId
    from wavemesh.session.frames import (
        HeldResource,
        Hello,
        Rejection,
        Report,
        Resource,
        ResourceKey,
        StatusEntry,
    )


class ReportLog(Protocol):
    """The child's durable log. Appending is the tier's business, in the transaction of what it reports."""

    @property
    def incarnation(self) -> str:
        """128 random bits in hex, durable."""
        ...

    @property
    def next_number(self) -> int:
        """Number the next appended report will get; 1 in a new incarnation."""
        ...

    @property
    def first_number(self) -> int:
        """Lowest number that can still be read; ``next_number`` when the log is empty. A parent that asks for less has
        lost what it acknowledged, and the log is restarted.
        """
        ...

    async def read(self, first: int, limit: int) -> Sequence[Report]:
        """Up to ``limit`` reports from number ``first`` on, in order; ``first`` is never below ``first_number``."""
        ...

    async def acknowledge(self, through: int) -> None:
        """Forget reports up to ``through``; durable before it returns. Lower than before is no change."""
        ...

    async def restart(self) -> None:
        """Take a new incarnation: in one transaction, start the log again with a full snapshot of outcomes, followed by
        those reports that were not acknowledged and that no snapshot covers (intents, events).
        """
        ...


@runtime_checkable
class SentMark(Protocol):
    """What a log also has when its disk may be restored from a backup, as a hub's may: which numbers were ever sent.

    Without it the upstream takes what the log holds at its start for sent. That errs when a restored log grows and its
    program then starts again before the parent was reached: the new reports would pass for those the parent knows.
    """

    @property
    def sent_through(self) -> int:
        """Highest number of this incarnation that may have been sent."""
        ...

    async def mark_sent(self, through: int) -> None:
        """Reports up to ``through`` are about to be sent; durable before it returns."""
        ...


class ResourceSink(Protocol):
    """What a child does with desired state."""

    def held(self) -> Sequence[HeldResource]:
        """Everything durable here from this parent, for Hello."""
        ...

    async def apply(self, changed: Sequence[Resource], removed: Sequence[ResourceKey]) -> Sequence[Rejection]:
        """Verify and store; what is not returned as rejected is durable when this returns."""
        ...

    async def connected(self) -> None:
        """A session was welcomed."""
        ...

    async def settled(self) -> None:
        """After a reconnect: the child now holds what the parent wants."""
        ...

    async def disconnected(self, reason: str) -> None:
        """The session ended."""
        ...


class ChildRegistry(Protocol):
    """What a parent knows and does about its children."""

    @property
    def epoch(self) -> str:
        """The parent's epoch for versions."""
        ...

    async def admit(self, child: NodeId, hello: Hello) -> int:
        """Check that this child may connect (raise ForbiddenError or BusyError) and return the cursor of that
        incarnation: the highest report number whose effect is durable here, 0 for an unknown incarnation. An
        incarnation that gave way to a newer one gets a cursor not below the child's next number: it is fenced.
        """
        ...

    async def apply_reports(
        self, child: NodeId, incarnation: str, first_number: int, reports: Sequence[Report]
    ) -> None:
        """Apply the effect of the reports and move the cursor, in one transaction. Never called with a gap."""
        ...

    def desired(self, child: NodeId) -> Mapping[ResourceKey, Resource]:
        """The whole desired state of that child now; must be cheap, the machine calls it after each change."""
        ...

    async def verdict(self, child: NodeId, accepted: Sequence[Resource], rejected: Sequence[Rejection]) -> None:
        """What the child said to an update."""
        ...

    async def status(self, child: NodeId, entries: Sequence[StatusEntry]) -> None:
        """Status of the child changed."""
        ...

    async def answer(self, child: NodeId, kind: str, body: bytes) -> bytes:
        """Answer an Ask, or raise WavemeshError, whose text becomes the error."""
        ...

    async def child_connected(self, child: NodeId, hello: Hello) -> None:
        """A session is open. For one child: never twice without child_disconnected between."""
        ...

    async def child_disconnected(self, child: NodeId, reason: str) -> None:
        """The session ended."""
        ...


class Upstream(Protocol):
    """The child's end of a session, as tiers see it."""

    async def run(self) -> None:
        """Keep a session with the parent until cancelled or drained; reconnects with full jitter by itself."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether a session is welcomed now."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """What this side and the parent know (``frames.CAPABILITIES``), of the open session; empty when none is."""
        ...

    @property
    def refusal(self) -> str:
        """Why there can be no session before somebody is updated or enrolled anew; empty when nothing is in the way."""
        ...

    def wake(self) -> None:
        """Reports were appended."""
        ...

    def set_status(self, key: str, body: bytes | None) -> None:
        """Set or remove a latest-wins value; sent again after each reconnect."""
        ...

    async def ask(self, kind: str, body: bytes, timeout_s: float) -> bytes:
        """Ask the parent; raises LinkDownError, AskFailedError or TimeoutError."""
        ...

    async def move(self) -> None:
        """Take the session over to a channel with the credentials in use now; raises LinkDownError."""
        ...

    async def drain(self) -> None:
        """Say goodbye and end run()."""
        ...


class Downstream(Protocol):
    """The parent's end of all sessions, as tiers see it. Also the SessionService servicer."""

    def changed(self, child_path: str | None = None) -> None:
        """The desired state of one child (None: of all) may have changed."""
        ...

    def connected(self) -> Sequence[NodeId]:
        """Children with an open session."""
        ...

    def capabilities(self, child_path: str) -> frozenset[str]:
        """What this side and that child know; empty when it has no open session."""
        ...

    def disconnect(self, child_path: str, reason: str) -> None:
        """End a child's session (revoked, replaced)."""
        ...

    async def drain(self, retry_after_s: float) -> None:
        """Say goodbye to all children and wait until their handlers ended. They are told to come back after that time,
        and spread over as much more as it takes to admit them again.
        """
        ...
