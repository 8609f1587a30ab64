"""Links between a child and its parent, and the two ends of a session that the product's machines speak over them.

A link passes frames in order after its latency. It can be *cut* (streams end on both sides, none can be opened), or
*blocked* in a direction: frames neither arrive nor get lost as long as both ends wait, which is what a half-open
connection, a stall and a host that vanished look like from outside.

Heartbeats of a quiet and healthy link say nothing and are left out: the machines' clocks of silence are started
(``Stream.watch``) at the moment from which a heartbeat would not have come through, and then run for real.
Likewise back-off: where a parent cannot be reached the child does not knock again and again; it does so at a time
drawn from its back-off once the parent can be reached.
"""

from __future__ import annotations

from collections import deque
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.simulation.briefs import brief
from tests.simulation.engine import drive
from wavemesh.errors import BusyError, WavemeshError
from wavemesh.identity.nodes import NodeId
from wavemesh.session.backoff import delay_s
from wavemesh.session.child import Answered, ChildMachine, ChildState, RestartLog
from wavemesh.session.downstream import _Session
from wavemesh.session.faults import SessionViolationError
from wavemesh.session.frames import Hello
from wavemesh.session.liveness import Ending, SessionEnd
from wavemesh.session.parent import AnswerAsk, ParentMachine

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.engine import Node
    from wavemesh.session.frames import Answer
    from wavemesh.session.upstream import SessionUpstream

END = "end of stream"
HEARTBEAT_S = 15.0
REFUSED_AFTER_S = 0.05
CONNECT_TIMEOUT_S = 5.0


class Lane:
    """One direction of a link."""

    __slots__ = ("held", "is_blocked", "last")

    def __init__(self) -> None:
        self.is_blocked = False
        self.held: deque[tuple[Stream, Any]] = deque()
        self.last = 0.0


class Link:
    """Between one child and one parent. ``delay_s`` and ``frame_s`` make it slow."""

    def __init__(self, child: Node, parent: Node, latency_s: float) -> None:
        self.child = child
        self.parent = parent
        self.world = child.world
        self.latency_s = latency_s
        self.delay_s = self.frame_s = 0.0
        self.is_cut = False
        self.up, self.down = Lane(), Lane()
        self.stream: Stream | None = None
        self.dialer: Dialer | None = None

    @property
    def passes(self) -> bool:
        return not (self.is_cut or self.up.is_blocked or self.down.is_blocked)

    def cut(self) -> None:
        """Both sides notice at once."""
        self.is_cut = True
        self.child.note("link-cut", self.parent.label)
        if self.stream is not None:
            self.stream.broken()

    def block(self, *, up: bool = True, down: bool = True) -> None:
        """Nothing passes, and nobody is told."""
        self.up.is_blocked |= up
        self.down.is_blocked |= down
        self.child.note("link-blocked", f"{self.parent.label} up={up} down={down}")
        if self.stream is not None:
            self.stream.watch()

    def heal(self) -> None:
        """All passes again, what was held up first."""
        self.is_cut = False
        self.delay_s = self.frame_s = 0.0
        for lane, is_up in ((self.up, True), (self.down, False)):
            lane.is_blocked = False
            held, lane.held = lane.held, deque()
            for stream, frame in held:
                self.send(stream, frame, is_up=is_up)
        self.child.note("link-healed", self.parent.label)
        self.knock()

    def knock(self) -> None:
        """The child may find that its parent can be reached."""
        if self.dialer is not None:
            self.dialer.knock()

    def send(self, stream: Stream, frame: Any, *, is_up: bool) -> None:
        lane = self.up if is_up else self.down
        if lane.is_blocked:
            lane.held.append((stream, frame))
            return
        at = max(lane.last + self.frame_s, self.world.now + self.latency_s + self.delay_s)
        lane.last = at
        self.world.at(at, self._arrive, stream, frame, is_up)

    def _arrive(self, stream: Stream, frame: Any, is_up: bool) -> None:  # noqa: FBT001  # called by the heap
        lane = self.up if is_up else self.down
        if lane.is_blocked:
            lane.held.append((stream, frame))
        elif is_up:
            stream.at_parent(frame)
        else:
            stream.at_child(frame)


class Dialer:
    """Keeps a child's session: what ``SessionUpstream.run`` does around ``feed``, ``perform`` and back-off."""

    def __init__(self, node: Node, upstream: SessionUpstream, link: Link) -> None:
        self.node = node
        self.upstream = upstream
        self.link = link
        self.attempt = 0
        self._is_knocking = False
        self._due = 0.0
        self._since = node.world.now
        link.dialer = self

    @property
    def stream(self) -> Stream | None:
        return self.upstream._stream  # type: ignore[return-value]  # ours stands in for the product's

    @property
    def is_open(self) -> bool:
        return self.upstream.is_connected and self.stream is not None

    def knock(self) -> None:
        """Come back at a time of the back-off, if there is no stream and the parent can be reached."""
        if self.link.dialer is not self or self._is_knocking or self.stream is not None or not self.node.is_up:
            return
        if self.link.passes and self.link.parent.is_up:
            self._is_knocking = True
            cap_s = self.upstream._options.backoff_cap_s
            self.node.later(max(self._due - self.node.world.now, self.node.rng.uniform(0, cap_s)), self._dial)

    def _dial(self) -> None:
        self._is_knocking = False
        if self.stream is None and self.link.dialer is self and self.link.passes and self.link.parent.is_up:
            Stream(self).open()

    def ended(self, end: SessionEnd, lasted_s: float) -> None:
        """A stream ended: when to come back is the product's rule."""
        options, now = self.upstream._options, self.node.world.now
        if lasted_s >= options.stable_s:
            self.attempt, self._since = 0, now
        pause_s = delay_s(end, self.attempt, now - self._since, options, self.node.rng.uniform)
        self.attempt += 1
        self._due = now + pause_s
        if self.link.passes and self.link.parent.is_up and not self._is_knocking:
            self._is_knocking = True
            self.node.later(pause_s + REFUSED_AFTER_S, self._dial)


class Stream:
    """One stream: the child's driver and the parent's, each with the product's machine."""

    def __init__(self, dialer: Dialer) -> None:
        self.dialer = dialer
        self.link = dialer.link
        self.child, self.parent = self.link.child, self.link.parent
        self.world = self.child.world
        self.upstream = dialer.upstream
        self.child_life, self.parent_life = self.child.life, self.parent.life
        self.child_is_open = self.parent_is_open = True
        self.is_watched = False
        self.opened_at: float | None = None
        self.pump = SimpleNamespace(wake=self.wake_child)
        self.answers: dict[int, Callable[[Answer | None], None]] = {}
        self.session: Any = None
        self._child_due = self._parent_due = False
        self._armed = {True: float("inf"), False: float("inf")}
        self.machine: ChildMachine
        self.incarnation = ""

    def open(self) -> None:
        """Dial: the child greets."""
        upstream, log = self.upstream, self.upstream._log
        dialect = upstream._options.dialect
        hello = Hello(
            dialect.highest,
            "child/1",
            log.incarnation,
            upstream._sent_through() + 1,
            tuple(upstream._sink.held()),
            dialect.lowest,
        )
        self.machine = ChildMachine(
            hello, first_report_number=log.first_number, status=upstream._status, now=self.world.now
        )
        self.incarnation = hello.incarnation
        upstream._stream = self  # type: ignore[assignment]
        self.link.stream = self
        downstream = self.parent.downstream  # type: ignore[attr-defined]  # parents have one
        machine = ParentMachine(
            downstream.options.terms,
            session_id=f"{self.world.steps}",
            epoch=downstream.registry.epoch,
            now=self.world.now,
        )
        proof = SimpleNamespace(node_id=node_at(self.child.path))
        self.session = _Session(downstream, proof, None, machine)  # type: ignore[arg-type]
        self.session.pump = SimpleNamespace(wake=self.wake_parent, cut=self._superseded, spawn=None)
        downstream._streams.add(self.session)
        self._flow_child()

    # -- waking: many changes of one moment cost one look -----------------------------------------------------------

    def wake_child(self) -> None:
        if self.child_is_open and not self._child_due:
            self._child_due = True
            self.world.after(0.0, self._on_child, self._flow_child)

    def wake_parent(self) -> None:
        if self.parent_is_open and not self._parent_due:
            self._parent_due = True
            self.world.after(0.0, self._on_parent, self._flow_parent)

    def _on_child(self, action: Callable[..., None], *arguments: Any) -> None:
        self._child_due = False
        if self.child_is_open and self.child.life == self.child_life:
            self.child.run(action, *arguments)

    def _on_parent(self, action: Callable[..., None], *arguments: Any) -> None:
        self._parent_due = False
        if self.parent_is_open and self.parent.life == self.parent_life:
            self.parent.run(action, *arguments)

    # -- the child's end --------------------------------------------------------------------------------------------

    def _flow_child(self) -> None:
        if not self.child_is_open:
            return
        machine, now = self.machine, self.world.now
        self._feed()
        self._quiet(machine)
        while (frame := machine.next_frame(now)) is not None:
            if self.child.crash_in is not None:
                self.child.step("send")
            if self.world.is_traced:
                self._note(self.child, frame, "sends")
            self.link.send(self, frame, is_up=True)
            self._feed()
        if machine.end is not None:
            self.close_child(machine.end)
        elif self.is_watched:
            self._arm(machine, self._tick_child)
        elif machine._status and machine.state is ChildState.OPEN:
            self.world.at(machine._status_at, self._on_child, self._flow_child)

    def _feed(self) -> None:
        """Give the machine its reports; a look tells when there can be nothing for it."""
        log, machine = self.upstream._log, self.machine
        if log.incarnation != self.incarnation or log.next_number - 1 > machine._sent_through:
            drive(self.upstream.feed(self))  # type: ignore[arg-type]

    def _quiet(self, machine: Any) -> None:
        """Where silence does not count no heartbeat is due."""
        if not self.is_watched and machine._liveness is not None:
            machine._liveness.sent(self.world.now)

    def at_child(self, frame: Any) -> None:
        """A frame, or the end of the stream, arrives at the child."""
        if not self.child_is_open or self.child.life != self.child_life:
            return
        self.child.run(self._read_child, frame)

    def _read_child(self, frame: Any) -> None:
        if frame is END:
            self.close_child(SessionEnd(Ending.LOST, "the stream ended"))
            return
        if isinstance(frame, BaseException):
            retry_s = frame.retry_after_s if isinstance(frame, BusyError) else 0.0
            self.close_child(SessionEnd(Ending.REFUSED, str(frame), retry_s))
            return
        machine = self.machine
        try:
            machine.receive(frame, self.world.now)
            if self.world.is_traced:
                self._note(self.child, frame, "hears")
            while effects := machine.take_effects():
                for effect in effects:
                    self._perform_child(effect)
                machine.work_done(self.world.now)
        except SessionViolationError as error:
            self.world.facts.violation(self.child.path, str(error))
            self.close_child(SessionEnd(Ending.REFUSED, str(error)))
        except WavemeshError as error:
            self.close_child(SessionEnd(Ending.REFUSED, str(error)))
        else:
            self._flow_child()

    def _perform_child(self, effect: Any) -> None:
        self.child.step(type(effect).__name__)
        if isinstance(effect, Answered):
            self._answered(effect.answer)
            return
        if isinstance(effect, RestartLog) and self.world.facts.words is not None:
            self.world.facts.words.restarted(self.child, self.parent)
        drive(self.upstream.perform(self, effect))  # type: ignore[arg-type]

    def ask(self, kind: str, body: bytes, answered: Callable[[Answer | None], None]) -> None:
        """Ask the parent; ``answered`` hears None when the session ends first. Raises LinkDownError, BusyError."""
        self.answers[self.machine.ask(kind, body)] = answered
        self.wake_child()

    def _answered(self, answer: Answer) -> None:
        waiting = self.answers.pop(answer.ask_id, None)
        if waiting is not None:
            waiting(answer)

    def close_child(self, end: SessionEnd) -> None:
        """The end of ``SessionUpstream._session``, and what comes after it."""
        self._forget_child()
        self.child.note("session-ended", f"{self.parent.label}: {end.reason}")
        upstream = self.upstream
        upstream._stream = None
        upstream._sent = (self.incarnation, self.machine.sent_through)
        self.link.send(self, END, is_up=True)
        for waiting in list(self.answers.values()):
            waiting(None)
        lasted_s = 0.0 if self.opened_at is None else self.world.now - self.opened_at
        if self.opened_at is not None:
            drive(upstream._sink.disconnected(end.reason))
        self.dialer.ended(end, lasted_s)

    def _forget_child(self) -> None:
        self.child_is_open = False
        if self.link.stream is self:
            self.link.stream = None

    # -- the parent's end -------------------------------------------------------------------------------------------

    def _flow_parent(self) -> None:
        if not self.parent_is_open:
            return
        session, machine = self.session, self.session.machine
        try:
            if session.is_stale:
                drive(session.prepare())
            self._quiet(machine)
            while (frame := machine.next_frame(self.world.now)) is not None:
                if self.parent.crash_in is not None:
                    self.parent.step("send")
                if self.world.is_traced:
                    self._note(self.parent, frame, "sends")
                self.link.send(self, frame, is_up=False)
                if session.is_stale:
                    drive(session.prepare())
        except WavemeshError as error:
            self._close_parent(error)
            return
        if machine.end is not None:
            self._close_parent(END)
        elif self.is_watched:
            self._arm(machine, self._tick_parent)

    def at_parent(self, frame: Any) -> None:
        """A frame, or the end of the stream, arrives at the parent."""
        if self.parent_is_open and self.parent.life == self.parent_life:
            self.parent.run(self._read_parent, frame)
        elif frame is not END and self.parent.is_up:
            self.link.send(self, END, is_up=False)

    def _read_parent(self, frame: Any) -> None:
        if frame is END:
            self._close_parent(None)
            return
        session, machine = self.session, self.session.machine
        try:
            machine.receive(frame, self.world.now)
            if self.world.is_traced:
                self._note(self.parent, frame, "hears")
            while effects := machine.take_effects():
                for effect in effects:
                    if self.parent.crash_in is not None:
                        self.parent.step(type(effect).__name__)
                    if isinstance(effect, AnswerAsk):
                        self.parent.answer(self, effect.ask)  # type: ignore[attr-defined]
                    else:
                        drive(session.perform(effect))
                machine.work_done(self.world.now)
        except SessionViolationError as error:
            self.world.facts.violation(self.parent.path, str(error))
            self._close_parent(error)
        except WavemeshError as error:
            self._close_parent(error)
        else:
            self._flow_parent()

    def reply(self, answer: Answer) -> None:
        """The parent found the answer to a question."""
        if self.parent_is_open:
            self.session.machine.answered(answer)
            self.wake_parent()

    def _superseded(self, error: BaseException | None = None) -> None:
        """A newer session of the child won, or the parent drains."""
        self._close_parent(error or END)

    def _close_parent(self, said: Any) -> None:
        """What ``SessionDownstream._connect`` does at the end of a stream; ``said`` goes to the child."""
        if not self.parent_is_open:
            return
        self.parent_is_open = False
        reason = self.session.machine.end.reason if self.session.machine.end else "the stream ended"
        if said is not None:
            self.link.send(self, said, is_up=False)
        drive(self.session._downstream._leave(self.session, reason))

    # -- silence ----------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """From now on silence counts: the last heartbeats have just passed."""
        if self.is_watched:
            return
        self.is_watched = True
        for machine in (self.machine, self.session.machine):
            if machine._liveness is not None:
                machine._liveness.heard(self.world.now)
                machine._liveness.sent(self.world.now)
        self.wake_child()
        self.wake_parent()

    def _arm(self, machine: Any, tick: Callable[[], None]) -> None:
        is_child = machine is self.machine
        due = max(machine.get_timer(), self.world.now + 0.05)
        if due < self._armed[is_child]:
            self._armed[is_child] = due
            self.world.at(due, self._on_child if is_child else self._on_parent, tick)

    def _tick_child(self) -> None:
        self._armed[True] = float("inf")
        self.machine.handle_timer(self.world.now)
        self._flow_child()

    def _tick_parent(self) -> None:
        self._armed[False] = float("inf")
        self.session.machine.handle_timer(self.world.now)
        self._flow_parent()

    # -- the world's doing ------------------------------------------------------------------------------------------

    def broken(self) -> None:
        """The connection is reset on both sides."""
        self.link.up.held.clear()
        self.link.down.held.clear()
        if self.child_is_open and self.child.life == self.child_life:
            self.child.run(self.close_child, SessionEnd(Ending.LOST, "connection reset"))
        if self.parent_is_open and self.parent.life == self.parent_life:
            self.parent.run(self._close_parent, None)

    def child_died(self, *, is_silent: bool) -> None:
        """The child's process is gone: its kernel says so, unless the host went with it."""
        self._forget_child()
        self.upstream._stream = None
        if is_silent:
            self.watch()
        else:
            self.link.send(self, END, is_up=True)

    def parent_died(self, *, is_silent: bool) -> None:
        """The same of the parent's."""
        self.parent_is_open = False
        if is_silent:
            self.watch()
        else:
            self.link.send(self, END, is_up=False)

    def _note(self, node: Node, frame: Any, what: str) -> None:
        peer = self.parent if node is self.child else self.child
        node.note(f"{what} {type(frame).__name__}", f"{peer.label} {brief(frame)}")


FLEET = "retail.example"


@cache
def node_at(path: str) -> NodeId:
    """The node of the fleet with that path, made once."""
    return NodeId(FLEET, path)
