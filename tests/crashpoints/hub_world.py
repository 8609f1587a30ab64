"""What is around a hub under test, as a value: its parent, its children, what operators asked, how far the plot is.

All of it outlives a power cut of the hub. A value is replaced as a whole, so that a crash point keeps it by keeping a
reference. Everybody here is durable at once: their own crash points are looked at elsewhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from wavemesh.session.frames import Resource, ResourceKey, ResourceVersion

if TYPE_CHECKING:
    from tests.crashpoints.fleet import Served
    from wavemesh.session.frames import Report
    from wavemesh.trust.statements import Envelope

EPOCH = "e" * 32
Heard: TypeAlias = "tuple[str, int, str, bytes]"
"""A report that the parent took: incarnation, number, kind, body."""


@dataclass(frozen=True, slots=True)
class Parent:
    """What the hub's parent wants and knows; ``taken`` is what the hub said it holds, by key."""

    wanted: tuple[Resource, ...] = ()
    counter: int = 0
    cursors: tuple[tuple[str, int], ...] = ()
    heard: tuple[Heard, ...] = ()
    taken: tuple[tuple[ResourceKey, str], ...] = ()
    is_reachable: bool = True

    def cursor(self, incarnation: str) -> int:
        """The last report taken of an incarnation."""
        return dict(self.cursors).get(incarnation, 0)

    def serving(self, *served: Served, audience: str) -> Parent:
        """The same with these resources wanted, in the place of those with the same keys."""
        wanted, counter = {one.key: one for one in self.wanted}, self.counter
        for one in served:
            counter += 1
            key = ResourceKey(one.type, one.name)
            digest = hashlib.sha256(one.content).hexdigest()
            wanted[key] = Resource(key, ResourceVersion(EPOCH, counter), digest, one.content, (audience,))
        return replace(self, wanted=tuple(wanted.values()), counter=counter)

    def without(self, *types: str) -> Parent:
        """The same with no resource of these types wanted."""
        return replace(self, wanted=tuple(one for one in self.wanted if one.key.type not in types))


@dataclass(frozen=True, slots=True)
class Child:
    """A child of the hub. ``reports`` are all of its incarnation, of which the hub acknowledged ``acknowledged``.

    The rest is a device's: ``script`` has the outcome of each attempt, ``due_s`` is when it goes on by itself.
    """

    path: str
    incarnation: str = "c" * 32
    reports: tuple[Report, ...] = ()
    acknowledged: int = 0
    held: tuple[Resource, ...] = ()
    is_online: bool = True
    script: tuple[str, ...] = ()
    state: str = "IDLE"
    wave_id: str = ""
    attempt: int = 0
    burned: int = 0
    sequence: int = 0
    lease_id: str = ""
    due_s: float | None = None
    firmware_sha256: str = ""
    fetched: tuple[str, ...] = ()
    got: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class World:
    """All that is not the hub. ``asked`` are operators' words by name, ``answered`` those that the hub took.

    ``problems`` are what the hub did to others that it may never do; ``done`` counts the acts of the plot.
    """

    parent: Parent = Parent()
    children: tuple[Child, ...] = ()
    asked: tuple[tuple[str, Envelope], ...] = ()
    answered: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    done: int = 0
    notes: tuple[tuple[str, Any], ...] = field(default=())

    def child(self, path: str) -> Child:
        """One child."""
        return next(one for one in self.children if one.path == path)

    def with_child(self, child: Child) -> World:
        """The same, of which a child changed."""
        return replace(self, children=tuple(child if one.path == child.path else one for one in self.children))

    def note(self, name: str) -> Any:
        """Something a scenario keeps by name; None when it does not."""
        return dict(self.notes).get(name)

    def noting(self, name: str, value: Any) -> World:
        """The same with something kept by name."""
        return replace(self, notes=tuple({**dict(self.notes), name: value}.items()))

    def blaming(self, problem: str) -> World:
        """The same with one more thing the hub may never do."""
        if problem in self.problems:
            return self
        return replace(self, problems=(*self.problems, problem))
