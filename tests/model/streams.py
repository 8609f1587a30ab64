"""What the session scenarios are made of: disks, plots, instances and links, and the names of the invariants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from tests.model.explorer import BrokenError
from tests.model.frozen import copied, frozen
from wavemesh.session.faults import SessionViolationError
from wavemesh.session.parent import ParentEffect, ParentMachine, ParentOptions

if TYPE_CHECKING:
    from collections.abc import Hashable

    from wavemesh.session.child import (
        ChildEffect,
        ChildMachine,
    )
    from wavemesh.session.frames import (
        ChildFrame,
        ParentFrame,
        Report,
        Resource,
    )

OPTIONS = ParentOptions("p", report_window=2, update_bytes=64)
OUTCOME, EVENT, SNAPSHOT = "outcome", "event", "snapshot"
CLONE = "A'"
NOW = 0.0

ONCE = "a report takes effect at most once (M3)"
LOST = "no report is lost (M3)"
ACKED = "what is acknowledged is durable at the parent (sessions, persist then send)"
CURSOR = "the cursor is the number of reports in effect, without a gap (sessions)"
DESIRED = "at rest a child holds what its parent wants, removals included (M3)"
NEWER = "the version of a resource never goes back within an epoch (sessions)"
ALONE = "the older session of a child is over before a newer one is served (sessions)"
FENCED = "a fenced incarnation is not heard again (sessions)"
PROTOCOL = "neither side breaks the protocol (session.proto)"
INVARIANTS = (ONCE, LOST, ACKED, CURSOR, DESIRED, NEWER, ALONE, FENCED, PROTOCOL)


@dataclass(frozen=True, slots=True)
class ChildDisk:
    """What a child keeps: its report log, the resources it holds, and the outcomes that a snapshot tells."""

    incarnation: int
    next_number: int = 1
    sent_through: int = 0
    log: tuple[Report, ...] = ()
    held: tuple[Resource, ...] = ()
    outcomes: tuple[bytes, ...] = ()

    @property
    def first_number(self) -> int:
        """Lowest number that can still be read."""
        return self.next_number - len(self.log)


@dataclass(frozen=True, slots=True)
class ParentDisk:
    """What a parent keeps: ``wanted`` counts the changes made to desired state, ``effects`` what each report did."""

    epoch: str = "e"
    wanted: int = 0
    counter: int = 0
    desired: tuple[tuple[str, tuple[Resource, ...]], ...] = ()
    cursors: tuple[tuple[str, int, int], ...] = ()
    effects: tuple[tuple[str, bytes, int], ...] = ()

    def cursor(self, child: str, incarnation: int) -> int:
        """The highest report of that incarnation that has effect; 0 for an unknown one."""
        return next((n for path, known, n in self.cursors if (path, known) == (child, incarnation)), 0)

    def admission(self, child: str, incarnation: int, next_number: int) -> int:
        """``SqliteCursors.admission``: a child's cursors are in the order in which they were first moved."""
        known = [one for path, one, _ in self.cursors if path == child]
        gave_way = incarnation in known[:-1]
        through = self.cursor(child, incarnation)
        return max(through, next_number) if gave_way else through

    def wants_of(self, child: str) -> tuple[Resource, ...]:
        """A child's desired state."""
        return next((resources for path, resources in self.desired if path == child), ())

    def times(self, child: str, body: bytes) -> int:
        """How often a report took effect."""
        return next((n for path, known, n in self.effects if (path, known) == (child, body)), 0)


@dataclass(frozen=True, slots=True)
class Change:
    """One change of desired state: a child's resource by name with new content, or without (None) taken away."""

    child: str
    name: str
    content: bytes | None
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """What happens in a scenario, in any interleaving: reports by child as (kind, body), changes in order, faults.

    ``faults`` are the kinds of which any one happens at any moment, or none: ``cut``, ``crash-parent``,
    ``lose-parent``, ``restore-parent``, ``restore-child``, ``clone``. A clone is a second instance of the first child,
    on a copy of its disk; both dial at most ``redials`` times from then on, since each ends the other's session.
    ``promises_all`` says whether no report may be lost.
    """

    reports: tuple[tuple[str, tuple[Report, ...]], ...]
    changes: tuple[Change, ...]
    faults: frozenset[str]
    redials: int = 0
    promises_all: bool = True


F = TypeVar("F")
F_contra = TypeVar("F_contra", contravariant=True)


class Receiver(Protocol[F_contra]):
    """A machine at one end of a stream."""

    def receive(self, frame: F_contra, now: float) -> None:
        """Take a frame; raises SessionViolationError."""
        ...


def received(machine: Receiver[F], frames: tuple[F, ...]) -> tuple[F, ...]:
    """Let a machine read the first of the frames that are under way to it; those that are left."""
    try:
        machine.receive(frames[0], NOW)
    except SessionViolationError as error:
        raise BrokenError(PROTOCOL, str(error)) from error
    return frames[1:]


@dataclass(slots=True)
class Node:
    """One running instance of a child: ``path`` is who it says it is, ``made`` how many reports it has made."""

    path: str
    disk: ChildDisk
    made: int = 0
    owes: tuple[bytes, ...] = ()
    backup: ChildDisk | None = None
    redials: int = 0
    promises_all: bool = True


@dataclass(slots=True)
class Link:
    """A stream of one instance; an end that is None is gone. What is under way on a broken one may be lost."""

    node: str
    incarnation: int
    child: ChildMachine | None
    parent: ParentMachine | None
    up: tuple[ChildFrame, ...] = ()
    down: tuple[ParentFrame, ...] = ()
    child_work: tuple[ChildEffect, ...] = ()
    parent_work: tuple[ParentEffect, ...] = ()
    is_broken: bool = False
    known_key: Hashable = None

    def copy(self) -> Link:
        """An independent one."""
        child = None if self.child is None else copied(self.child)
        parent = None if self.parent is None else copied(self.parent)
        rest = (self.up, self.down, self.child_work, self.parent_work, self.is_broken)
        return Link(self.node, self.incarnation, child, parent, *rest)

    def key(self) -> Hashable:
        """Its state; a link is changed only when it was copied, so it is worked out once."""
        if self.known_key is None:
            child = None if self.child is None else frozen(self.child)
            parent = None if self.parent is None else frozen(self.parent)
            rest = (self.up, self.down, self.child_work, self.parent_work, self.is_broken)
            self.known_key = hash((self.node, child, parent, *rest))
        return self.known_key
