"""One parent and its children over the product's session machines, with everything that may happen to them.

What is durable is a value (``ChildDisk``, ``ParentDisk``) and changes as the seams promise: an effect wholly or not at
all. A *link* is one stream: a machine at either end and the frames between, in order. Either end may lose the other
first; what was on its way to the end that is left may still arrive there.

Reports are outcomes, which a snapshot covers and a parent merges, and events, which a log that starts anew keeps and a
parent takes once by id.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Self

from tests.model.explorer import BrokenError, Problem, Step
from wavemesh.session.child import (
    AcknowledgeReports,
    ApplyResources,
    ChildMachine,
    RestartLog,
)
from wavemesh.session.frames import (
    HeldResource,
    Hello,
    Report,
    ReportAck,
    Resource,
    ResourceKey,
    ResourceVersion,
    Welcome,
)
from wavemesh.session.parent import Admit, ApplyReports, ParentMachine, ParentState

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

from tests.model.streams import (
    ACKED,
    ALONE,
    CLONE,
    CURSOR,
    DESIRED,
    EVENT,
    FENCED,
    LOST,
    NEWER,
    NOW,
    ONCE,
    OPTIONS,
    OUTCOME,
    PROTOCOL,
    SNAPSHOT,
    ChildDisk,
    Link,
    Node,
    ParentDisk,
    Plot,
    received,
)


@dataclass(slots=True)
class SessionWorld:
    """A parent, its children, and the links between them."""

    plot: Plot
    parent: ParentDisk
    nodes: dict[str, Node]
    links: list[Link] = field(default_factory=list)
    faults: int = 0
    incarnations: int = 0
    parent_backup: ParentDisk | None = None
    left: frozenset[int] = frozenset()
    is_parent_old: bool = False

    @classmethod
    def of(cls, plot: Plot) -> SessionWorld:
        """Nobody is connected yet."""
        names = [name for name, _ in plot.reports if name != CLONE]
        nodes = {name: Node(name, ChildDisk(number)) for number, name in enumerate(names)}
        desired = tuple((name, ()) for name in nodes)
        return cls(plot, ParentDisk(desired=desired), nodes, incarnations=len(nodes))

    @property
    def is_cloned(self) -> bool:
        """Whether two instances say that they are the same child."""
        return CLONE in self.nodes

    # -- as a world --------------------------------------------------------------------------------------------------

    def copy(self) -> Self:
        """An independent world."""
        return type(self)(
            self.plot,
            self.parent,
            dict(self.nodes),
            list(self.links),
            self.faults,
            self.incarnations,
            self.parent_backup,
            self.left,
            self.is_parent_old,
        )

    def key(self) -> Hashable:
        """All of it."""
        nodes = tuple((n.path, n.disk, n.made, n.owes, n.backup, n.redials) for n in self.nodes.values())
        rest = (self.faults, self.incarnations, self.parent_backup, self.left, self.is_parent_old)
        return (self.parent, nodes, tuple(link.key() for link in self.links), rest)

    def steps(self) -> Iterator[Step[SessionWorld]]:
        """What may happen."""
        for name, node in self.nodes.items():
            yield from self._steps_of(name, node)
        for place, link in enumerate(self.links):
            yield from _steps_on(place, link)
        if self.parent.wanted < len(self.plot.changes):
            yield Step(f"the parent wants change {self.parent.wanted + 1}", SessionWorld._want)
        yield from self._faults()

    def _steps_of(self, name: str, node: Node) -> Iterator[Step[SessionWorld]]:
        reports = dict(self.plot.reports)[name]
        if node.made < len(reports):
            yield Step(f"{name} makes {reports[node.made].body.decode()}", lambda w: w._make(name))
        may_dial = not self.is_cloned or node.redials < self.plot.redials
        if may_dial and not any(link.node == name and link.child is not None for link in self.links):
            yield Step(f"{name} dials", lambda w: w._dial(name))

    def _faults(self) -> Iterator[Step[SessionWorld]]:
        if self.faults:
            return
        kinds = self.plot.faults
        if "cut" in kinds:
            for place, link in enumerate(self.links):
                if link.child is not None:
                    yield Step(f"{link.node} loses its stream", partial(_lose_child_end, place=place), is_fault=True)
                if link.parent is not None:
                    yield Step(f"the parent loses {link.node}", partial(_lose_parent_end, place=place), is_fault=True)
        if "clone" in kinds:
            yield Step("A is cloned", SessionWorld._clone, is_fault=True)
        if "restore-child" in kinds:
            for name, node in self.nodes.items():
                if node.backup is None:
                    yield Step(f"{name} is backed up", partial(_back_up, name=name))
                else:
                    yield Step(f"{name} is restored", partial(_restore, name=name), is_fault=True)
        yield from self._faults_of_parent(kinds)

    def _faults_of_parent(self, kinds: frozenset[str]) -> Iterator[Step[SessionWorld]]:
        if "crash-parent" in kinds:
            yield Step("the parent crashes", SessionWorld._crash_parent, is_fault=True)
        if "lose-parent" in kinds:
            yield Step("the parent loses its disk", SessionWorld._lose_parent, is_fault=True)
        if "restore-parent" in kinds and self.parent_backup is None:
            yield Step("the parent is backed up", SessionWorld._back_up_parent)
        elif "restore-parent" in kinds:
            yield Step("the parent is restored", SessionWorld._restore_parent, is_fault=True)

    def problems(self) -> Iterator[Problem]:
        """Safety."""
        for child, body, times in self.parent.effects:
            if times > 1:
                yield Problem(ONCE, f"{body.decode()} of {child} took effect {times} times")
        for child, incarnation, through in self.parent.cursors:
            told = [link for link in self.links if self.nodes[link.node].path == child and link.parent is not None]
            served = [link for link in told if link.parent is not None and link.parent.state is ParentState.OPEN]
            if len(served) > 1:
                yield Problem(ALONE, f"{len(served)} sessions of {child} are open; {incarnation} is at {through}")

    def problems_at_rest(self) -> Iterator[Problem]:
        """What must have come about."""
        for name, node in self.nodes.items():
            if self.is_cloned and not any(one.node == name and one.child is not None for one in self.links):
                continue
            for body in node.owes:
                if self.plot.promises_all and not self.parent.times(node.path, body):
                    yield Problem(LOST, f"{body.decode()} of {name}")
            if node.disk.log:
                yield Problem(LOST, f"{name} still waits for the acknowledgement of {len(node.disk.log)} reports")
            held = {r.key: r for r in node.disk.held}
            if held != {r.key: r for r in self.parent.wants_of(node.path)}:
                yield Problem(DESIRED, f"{name} holds {_names(node.disk.held)}")

    # -- copies on write ---------------------------------------------------------------------------------------------

    def _link(self, place: int) -> Link:
        """A link of this world alone, to be changed: one whose key is known may be another world's as well."""
        if self.links[place].known_key is not None:
            self.links[place] = self.links[place].copy()
        return self.links[place]

    def _node(self, name: str) -> Node:
        """A node of this world alone, to be changed."""
        node = self.nodes[name] = replace(self.nodes[name])
        return node

    # -- what the nodes do -------------------------------------------------------------------------------------------

    def _make(self, name: str) -> None:
        node = self._node(name)
        report = dict(self.plot.reports)[name][node.made]
        disk = node.disk
        outcomes = (*disk.outcomes, report.body) if report.kind == OUTCOME else disk.outcomes
        node.disk = replace(disk, log=(*disk.log, report), next_number=disk.next_number + 1, outcomes=outcomes)
        node.made += 1
        node.owes = (*node.owes, report.body)

    def _dial(self, name: str) -> None:
        node = self._node(name)
        disk = node.disk
        held = tuple(HeldResource(r.key, r.version, r.digest) for r in disk.held)
        hello = Hello(1, "c", str(disk.incarnation), disk.sent_through + 1, held)
        child = ChildMachine(hello, first_report_number=disk.first_number, status={}, now=NOW)
        parent = ParentMachine(OPTIONS, session_id="s", epoch=self.parent.epoch, now=NOW)
        node.redials += self.is_cloned
        self.links.append(Link(name, disk.incarnation, child, parent))

    def _want(self) -> None:
        change = self.plot.changes[self.parent.wanted]
        key = ResourceKey("policy", change.name)
        counter = self.parent.counter + 1
        kept = tuple(one for one in self.parent.wants_of(change.child) if one.key != key)
        if change.content is not None:
            digest = hashlib.sha256(change.content).hexdigest()
            version = ResourceVersion(self.parent.epoch, counter)
            kept = (*kept, Resource(key, version, digest, change.content, (), change.urgent))
        desired = tuple((path, kept if path == change.child else r) for path, r in self.parent.desired)
        self.parent = replace(self.parent, wanted=self.parent.wanted + 1, counter=counter, desired=desired)
        for place, link in enumerate(self.links):
            if self.nodes[link.node].path == change.child and link.parent is not None:
                self._offer(self._link(place))

    def _offer(self, link: Link) -> None:
        if link.parent is not None and link.parent.state is ParentState.OPEN:
            link.parent.offer({r.key: r for r in self.parent.wants_of(self.nodes[link.node].path)})

    # -- the two ends of a link --------------------------------------------------------------------------------------

    def child_sends(self, place: int) -> None:
        """Feed the machine from the log, marking first what is about to be sent; then one frame."""
        link = self._link(place)
        node, child = self._node(link.node), link.child
        assert child is not None
        child.reports_appended(node.disk.next_number)
        wanted = child.wanted_reports()
        if wanted is not None:
            first = wanted.first - node.disk.first_number
            if first < 0:
                raise BrokenError(PROTOCOL, f"report {wanted.first} is asked for, which is forgotten")
            reports = node.disk.log[first : first + wanted.limit]
            through = wanted.first + len(reports) - 1
            node.disk = replace(node.disk, sent_through=max(node.disk.sent_through, through))
            child.reports_read(wanted.first, reports)
        while (frame := child.next_frame(NOW)) is not None:
            link.up = (*link.up, frame)

    def parent_sends(self, place: int) -> None:
        """All there is to send."""
        link = self._link(place)
        assert link.parent is not None
        path = self.nodes[link.node].path
        while (frame := link.parent.next_frame(NOW)) is not None:
            link.down = (*link.down, frame)
            if isinstance(frame, ReportAck | Welcome):
                through = frame.through if isinstance(frame, ReportAck) else frame.reports_through
                if through > self.parent.cursor(path, link.incarnation):
                    raise BrokenError(ACKED, f"{through} of {path}'s incarnation {link.incarnation}")
        if link.parent.end is not None:
            link.parent, link.up = None, ()
            self._sweep()

    def child_reads(self, place: int) -> None:
        """One frame, and what it leads to but for storing resources."""
        link = self._link(place)
        assert link.child is not None
        link.down = received(link.child, link.down)
        link.child_work = tuple(link.child.take_effects())
        if not any(isinstance(effect, ApplyResources) for effect in link.child_work):
            self.child_works(place)

    def parent_reads(self, place: int) -> None:
        """One frame, and what it leads to but for applying reports."""
        link = self._link(place)
        assert link.parent is not None
        link.up = received(link.parent, link.up)
        link.parent_work = tuple(link.parent.take_effects())
        if not any(isinstance(effect, ApplyReports) for effect in link.parent_work):
            self.parent_works(place)

    def child_works(self, place: int) -> None:
        """The effects, one after the other."""
        link = self._link(place)
        node, child = self._node(link.node), link.child
        assert child is not None
        while link.child_work:
            effect, *rest = link.child_work
            match effect:
                case AcknowledgeReports(through):
                    disk = node.disk
                    node.disk = replace(disk, log=disk.log[max(0, through + 1 - disk.first_number) :])
                case ApplyResources(nonce, changed, removed):
                    self._keep(node, changed, removed)
                    child.resources_applied(nonce, ())
                case RestartLog():
                    self.restart_log(node)
            link.child_work = (*rest, *child.take_effects())
        if child.end is not None:
            _lose_child_end(self, place=place, is_fault=False)

    def _keep(self, node: Node, changed: tuple[Resource, ...], removed: tuple[ResourceKey, ...]) -> None:
        held = {r.key: r for r in node.disk.held}
        for resource in changed:
            before = held.get(resource.key)
            older = before is not None and before.version.counter >= resource.version.counter
            if (
                older
                and before is not None
                and before.version.epoch == resource.version.epoch
                and not self.is_parent_old
            ):
                raise BrokenError(NEWER, f"{resource.key.name} from {before.version} to {resource.version}")
        held |= {r.key: r for r in changed}
        for key in removed:
            held.pop(key, None)
        node.disk = replace(node.disk, held=tuple(sorted(held.values(), key=lambda r: r.key)))

    def restart_log(self, node: Node) -> None:
        """A new incarnation: the snapshot, then the events that were not acknowledged."""
        kept = tuple(report for report in node.disk.log if report.kind == EVENT)
        log = (Report(SNAPSHOT, b",".join(node.disk.outcomes)), *kept)
        self.left |= {node.disk.incarnation}
        incarnation = self.incarnations
        self.incarnations += 1
        node.disk = replace(node.disk, incarnation=incarnation, log=log, next_number=len(log) + 1, sent_through=0)

    def parent_works(self, place: int) -> None:
        """The effects, one after the other."""
        link = self._link(place)
        parent, path = link.parent, self.nodes[link.node].path
        assert parent is not None
        while link.parent_work:
            effect, *rest = link.parent_work
            match effect:
                case Admit(hello):
                    self.end_older(place)
                    parent.admitted(self.parent.admission(path, link.incarnation, hello.next_report_number), NOW)
                    self._offer(link)
                case ApplyReports(first, reports):
                    self._apply(link, path, first, reports)
                    parent.reports_applied(first + len(reports) - 1)
            link.parent_work = (*rest, *parent.take_effects())

    def end_older(self, place: int) -> None:
        """The newest session of a child wins: those before it are cut, and their handlers are waited for."""
        path = self.nodes[self.links[place].node].path
        for other, link in enumerate(self.links):
            is_seated = link.parent is not None and link.parent.state not in {
                ParentState.WAITING,
                ParentState.ADMITTING,
            }
            if other != place and is_seated and self.nodes[link.node].path == path:
                self._end_parent(other)

    def _end_parent(self, place: int) -> None:
        """The parent's end is cut; the child may still read what is under way."""
        link = self._link(place)
        link.parent, link.up, link.parent_work, link.is_broken = None, (), (), True

    def _apply(self, link: Link, path: str, first: int, reports: tuple[Report, ...]) -> None:
        """Effects and cursor in one transaction."""
        incarnation = link.incarnation
        if incarnation in self.left and not self.is_cloned:
            raise BrokenError(FENCED, f"reports from {first} on of {path}'s incarnation {incarnation}")
        if first != self.parent.cursor(path, incarnation) + 1:
            raise BrokenError(CURSOR, f"report {first} after {self.parent.cursor(path, incarnation)} of {path}")
        effects = {(child, body): times for child, body, times in self.parent.effects}
        for report in reports:
            for body in report.body.split(b",") if report.kind == SNAPSHOT else (report.body,):
                if body and (report.kind == OUTCOME or (path, body) not in effects):
                    effects[path, body] = effects.get((path, body), 0) + 1
        cursors = {(child, known): through for child, known, through in self.parent.cursors}
        cursors[path, incarnation] = first + len(reports) - 1
        self.parent = replace(
            self.parent,
            effects=tuple(sorted((*key, times) for key, times in effects.items())),
            cursors=tuple(
                sorted(((*key, n) for key, n in cursors.items()), key=lambda one: one[0])
            ),  # else as they came
        )

    def _sweep(self) -> None:
        self.links = [link for link in self.links if link.child is not None or link.parent is not None]

    # -- faults ------------------------------------------------------------------------------------------------------

    def _crash_parent(self) -> None:
        self.faults += 1
        for place in range(len(self.links)):
            self._end_parent(place)
        self._sweep()

    def _lose_parent(self) -> None:
        self._crash_parent()
        self._forget(ParentDisk("e2", desired=tuple((path, ()) for path, _ in self.parent.desired)))

    def _back_up_parent(self) -> None:
        self.parent_backup = self.parent

    def _restore_parent(self) -> None:
        assert self.parent_backup is not None
        self._crash_parent()
        self._forget(self.parent_backup)
        # Nobody reads it again: faults are single.
        self.parent_backup, self.is_parent_old = None, True

    def _clone(self) -> None:
        self.faults += 1
        self.nodes[CLONE] = replace(self.nodes["A"], made=0, owes=())

    def _forget(self, disk: ParentDisk) -> None:
        """The parent goes on with another disk. Events that it had acknowledged are gone; outcomes come again."""
        before, self.parent = self.parent, disk
        for name in self.nodes:
            node = self._node(name)
            path, outcomes = node.path, node.disk.outcomes
            node.owes = tuple(
                body for body in node.owes if body in outcomes or disk.times(path, body) or not before.times(path, body)
            )


def _steps_on(place: int, link: Link) -> Iterator[Step[SessionWorld]]:
    name = link.node
    if link.child is not None:
        if link.child_work:
            yield Step(f"{name} does {type(link.child_work[0]).__name__}", lambda w: w.child_works(place))
        elif link.down:
            yield Step(f"{name} reads {type(link.down[0]).__name__}", lambda w: w.child_reads(place))
        yield Step(f"{name} sends", lambda w: w.child_sends(place))
        if link.parent is None and not link.child_work and (link.is_broken or not link.down):
            yield Step(f"{name} finds its stream over", partial(_lose_child_end, place=place, is_fault=False))
    if link.parent is not None:
        if link.parent_work:
            label = f"the parent does {type(link.parent_work[0]).__name__} for {name}"
            yield Step(label, lambda w: w.parent_works(place))
        elif link.up:
            yield Step(f"the parent reads {type(link.up[0]).__name__} of {name}", lambda w: w.parent_reads(place))
        yield Step(f"the parent sends to {name}", lambda w: w.parent_sends(place))
        if link.child is None and not link.parent_work:
            label = f"the parent finds the stream of {name} over"
            yield Step(label, partial(_lose_parent_end, place=place, is_fault=False))


def _lose_child_end(world: SessionWorld, *, place: int, is_fault: bool = True) -> None:
    """The child's end is gone, by a crash, a timer or the network; the parent may still read what is under way."""
    link = world._link(place)
    world.faults += is_fault
    link.child, link.down, link.child_work = None, (), ()
    world._sweep()


def _lose_parent_end(world: SessionWorld, *, place: int, is_fault: bool = True) -> None:
    """The same for the parent's end."""
    world.faults += is_fault
    world._end_parent(place)
    world._sweep()


def _back_up(world: SessionWorld, *, name: str) -> None:
    node = world._node(name)
    node.backup = node.disk


def _restore(world: SessionWorld, *, name: str) -> None:
    """The child's disk is replaced by an older copy, and it starts again; only upwards is known what it said since."""
    node = world._node(name)
    assert node.backup is not None
    for place in reversed(range(len(world.links))):
        if world.links[place].node == name:
            _lose_child_end(world, place=place, is_fault=False)
    world.faults += 1
    node.disk, node.backup = node.backup, None  # as the parent's
    world.left -= {node.disk.incarnation}
    kept = {report.body for report in node.disk.log} | set(node.disk.outcomes)
    node.owes = tuple(body for body in node.owes if body in kept or world.parent.times(node.path, body))


def _names(resources: tuple[Resource, ...]) -> str:
    return ", ".join(f"{r.key.name}={r.content.decode()}" for r in resources) or "nothing"
