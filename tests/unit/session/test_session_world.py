"""Both machines wired through a network that loses streams, with crashes and restores on either side, by seed.

What is durable here is what the seams promise: the child's log and resources, the parent's cursors and effects. A crash
drops the machines and whatever was under way; an effect happens wholly or not at all. Checked at the end of each seed:
every report counted exactly once, the child's resources equal to the desired ones, bounds kept on the way (M3, M5, M6).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.session_kit import resource
from wavemesh.session.child import (
    AcknowledgeReports,
    ApplyResources,
    ChildEffect,
    ChildMachine,
    ChildState,
    RestartLog,
    Settled,
)
from wavemesh.session.frames import (
    MAX_UPDATES_IN_FLIGHT,
    ChildFrame,
    HeldResource,
    Hello,
    ParentFrame,
    Rejection,
    Report,
    Resource,
    ResourceKey,
)
from wavemesh.session.parent import Admit, ApplyReports, ParentEffect, ParentMachine, ParentOptions, ParentState

if TYPE_CHECKING:
    from collections.abc import Callable

OPTIONS = ParentOptions("p", heartbeat_interval_s=1.0, report_window=5, update_bytes=64)


@dataclass(frozen=True)
class Backup:
    """A copy of the child's disk."""

    generation: int
    first_number: int
    next_number: int
    sent_through: int
    log: dict[int, bytes]
    held: dict[ResourceKey, Resource]
    outcomes: list[bytes]


class World:
    """One child, one parent, one bad network."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        # Durable at the child.
        self.generation = 1
        self.first_number = self.next_number = 1
        self.log: dict[int, bytes] = {}
        self.held: dict[ResourceKey, Resource] = {}
        self.made = 0
        self.outcomes: list[bytes] = []
        self.sent_through = 0
        # Durable at the parent.
        self.cursors: dict[int, int] = {}
        self.counted: dict[bytes, int] = {}
        self.snapshots: set[bytes] = set()
        self.versions = 0
        self.desired: dict[ResourceKey, Resource] = {}
        self.refused: set[str] = set()
        # Of the stream.
        self.child: ChildMachine | None = None
        self.parent: ParentMachine | None = None
        self.up: deque[ChildFrame] = deque()
        self.down: deque[ParentFrame] = deque()
        self.child_work: deque[ChildEffect] = deque()
        self.parent_work: deque[ParentEffect] = deque()
        self.settled = False
        self.backup = self.save()

    # -- what the world does -----------------------------------------------------------------------------------------

    def append(self) -> None:
        self.made += 1
        body = f"{self.made}".encode()
        self.outcomes.append(body)
        self.log[self.next_number] = body
        self.next_number += 1

    def want(self) -> None:
        name = f"r{self.rng.randrange(6)}"
        self.versions += 1
        content = self.rng.randbytes(self.rng.choice([1, 50, 200]))
        wanted = resource(name, content, urgent=self.rng.random() < 0.3, counter=self.versions)
        if self.rng.random() < 0.3:
            self.desired.pop(wanted.key, None)
        else:
            self.desired[wanted.key] = wanted
        if self.parent is not None:
            self.parent.offer(dict(self.desired))

    def save(self) -> Backup:
        return Backup(
            self.generation,
            self.first_number,
            self.next_number,
            self.sent_through,
            dict(self.log),
            dict(self.held),
            list(self.outcomes),
        )

    def restore_child(self) -> None:
        """The child's disk is replaced by an older copy; what it reported since is only known upwards."""
        self.cut()
        old = self.backup
        self.generation, self.sent_through = old.generation, old.sent_through
        self.first_number, self.next_number = old.first_number, old.next_number
        self.log, self.held, self.outcomes = dict(old.log), dict(old.held), list(old.outcomes)

    def lose_parent(self) -> None:
        """The parent loses cursors and effects: it must be refilled from below."""
        self.cut()
        self.cursors.clear()
        self.counted.clear()
        self.snapshots.clear()

    def cut(self) -> None:
        self.child = self.parent = None
        for queue in (self.up, self.down, self.child_work, self.parent_work):
            queue.clear()
        self.settled = False

    def connect(self) -> None:
        self.cut()
        held = tuple(HeldResource(r.key, r.version, r.digest) for r in self.held.values())
        hello = Hello(1, "c", str(self.generation), self.sent_through + 1, held)
        self.child = ChildMachine(hello, first_report_number=self.first_number, status={}, now=self.now)
        self.parent = ParentMachine(OPTIONS, session_id="s", epoch="e", now=self.now)

    # -- one step of each part ---------------------------------------------------------------------------------------

    def child_sends(self) -> None:
        child = self.child
        if child is None:
            return
        child.reports_appended(self.next_number)
        wanted = child.wanted_reports()
        if wanted is not None:
            assert wanted.first >= self.first_number
            bodies = [self.log[n] for n in range(wanted.first, wanted.first + wanted.limit)]
            self.sent_through = max(self.sent_through, wanted.first + wanted.limit - 1)
            child.reports_read(wanted.first, [Report("event", body) for body in bodies])
        frame = child.next_frame(self.now)
        if frame is not None:
            self.up.append(frame)

    def parent_sends(self) -> None:
        if self.parent is None:
            return
        frame = self.parent.next_frame(self.now)
        if frame is not None:
            self.down.append(frame)
            assert len(self.parent._lanes._sent) <= MAX_UPDATES_IN_FLIGHT

    def child_reads(self) -> None:
        if self.child is not None and self.down and not self.child_work:
            self.child.receive(self.down.popleft(), self.now)
            self.child_work += self.child.take_effects()

    def parent_reads(self) -> None:
        if self.parent is not None and self.up and not self.parent_work:
            self.parent.receive(self.up.popleft(), self.now)
            self.parent_work += self.parent.take_effects()

    def child_works(self) -> None:
        child = self.child
        if child is None or not self.child_work:
            return
        match self.child_work.popleft():
            case AcknowledgeReports(through):
                for number in range(self.first_number, through + 1):
                    del self.log[number]
                self.first_number = max(self.first_number, through + 1)
            case ApplyResources(nonce, changed, removed):
                child.resources_applied(nonce, self.apply(changed, removed))
            case RestartLog():
                self.restart_log()
                return
            case Settled():
                self.settled = True
        if not self.child_work:
            self.child_work += child.take_effects()
        if not self.child_work:
            child.work_done(self.now)
        if child.end is not None and not self.child_work:
            self.cut()

    def apply(self, changed: tuple[Resource, ...], removed: tuple[ResourceKey, ...]) -> list[Rejection]:
        self.held |= {r.key: r for r in changed if r.digest not in self.refused}
        for key in removed:
            self.held.pop(key, None)
        return [Rejection(r.key, r.digest, "signature", "") for r in changed if r.digest in self.refused]

    def restart_log(self) -> None:
        self.generation = self.rng.randrange(1000, 10**9)
        self.log = {1: b"snapshot:" + b",".join(self.outcomes)}
        self.first_number, self.next_number = 1, 2
        self.cut()
        self.sent_through = 0

    def parent_works(self) -> None:
        parent = self.parent
        if parent is None or not self.parent_work:
            return
        match self.parent_work.popleft():
            case Admit(hello):
                parent.admitted(self.cursors.get(int(hello.incarnation), 0), self.now)
                if parent.state is ParentState.OPEN:
                    parent.offer(dict(self.desired))
            case ApplyReports(first, reports):
                assert first == self.cursors.get(self.generation, 0) + 1
                for report in reports:
                    self.count(report.body)
                self.cursors[self.generation] = first + len(reports) - 1
                parent.reports_applied(first + len(reports) - 1)
        if not self.parent_work:
            self.parent_work += parent.take_effects()
        if not self.parent_work:
            parent.work_done(self.now)

    def count(self, body: bytes) -> None:
        """A snapshot merges by identity, as the latest outcome of a device does; a plain report counts each time."""
        if body.startswith(b"snapshot:"):
            for outcome in filter(None, body.removeprefix(b"snapshot:").split(b",")):
                self.counted.setdefault(outcome, 1)
                self.snapshots.add(outcome)
        elif body not in self.snapshots:
            self.counted[body] = self.counted.get(body, 0) + 1

    def timers(self) -> None:
        self.now += self.rng.choice([0.01, 0.3, 0.9])
        for machine in (self.child, self.parent):
            if machine is not None:
                machine.handle_timer(self.now)
        if any(machine is not None and machine.end is not None for machine in (self.child, self.parent)):
            self.cut()

    # -- the run -----------------------------------------------------------------------------------------------------

    def steps(self) -> tuple[Callable[[], None], ...]:
        return (
            self.child_sends,
            self.parent_sends,
            self.child_reads,
            self.parent_reads,
            self.child_works,
            self.parent_works,
        )

    def quiesce(self) -> None:
        """No more faults: everything must converge within a bounded number of steps."""
        for _ in range(3000):
            if self.child is None:
                self.connect()
            for step in self.steps():
                step()
            self.now += 0.01
            if self.is_quiet():
                return
        pytest.fail("did not converge")

    def is_quiet(self) -> bool:
        return (
            self.child is not None
            and self.child.state is ChildState.OPEN
            and self.settled
            and not (self.up or self.down or self.child_work or self.parent_work)
            and self.cursors.get(self.generation, 0) == self.next_number - 1
            and self.wanted_and_accepted() == self.held
            and self.first_number == self.next_number
        )

    def wanted_and_accepted(self) -> dict[ResourceKey, Resource]:
        """Desired state, but for what the child refuses: there it keeps what it held."""
        return {
            key: self.held.get(key, r) if r.digest in self.refused else r
            for key, r in self.desired.items()
            if r.digest not in self.refused or key in self.held
        }


def run(seed: int, faults: Callable[[World], None]) -> World:
    world = World(seed)
    for _ in range(400):
        if world.child is None:
            world.connect()
        world.rng.choice(world.steps())()
        chance = world.rng.random()
        if chance < 0.05:
            world.append()
        elif chance < 0.10:
            world.want()
        elif chance < 0.12:
            world.timers()
        elif chance < 0.14:
            faults(world)
    world.quiesce()
    return world


@pytest.mark.parametrize("block", range(10))
def test_lost_streams_and_crashes(block: int) -> None:
    """M3: a stream that breaks anywhere loses nothing, counts nothing twice, and conveys deletions."""
    for seed in range(block * 10, block * 10 + 10):
        world = run(seed, World.cut)
        assert world.generation == 1
        assert world.counted == dict.fromkeys(world.outcomes, 1), f"seed {seed}"


@pytest.mark.parametrize("block", range(10))
def test_restores_and_losses(block: int) -> None:
    """Semantics, "Sessions": a restored child is fenced or harmless, a parent that lost its disk is refilled."""

    def faults(world: World) -> None:
        kind = world.rng.randrange(5)
        if kind == 0:
            world.backup = world.save()
        elif kind == 1:
            world.restore_child()
        elif kind == 2:
            world.lose_parent()
        else:
            world.cut()

    for seed in range(block * 10, block * 10 + 10):
        world = run(seed, faults)
        assert set(world.outcomes) <= set(world.counted), f"seed {seed}: lost"
        assert set(world.counted.values()) <= {1}, f"seed {seed}: counted twice"


def test_refusals_converge() -> None:
    """A resource that the child refuses keeps nothing else from arriving."""

    def faults(world: World) -> None:
        if world.desired:
            world.refused.add(world.rng.choice(list(world.desired.values())).digest)

    for seed in range(30):
        run(seed, faults)
