"""A recorded session against the present machines: the child's frames to the parent, the parent's to the child.

What must be the same, and what may differ:

* the greeting: welcome or fenced, protocol version, cursor, report window, heartbeat interval, epoch;
* reports: numbers, kinds and bodies that are applied, and the last acknowledgement;
* desired state: what the child holds in the end, by key, version and digest, and what it refused, by gate;
* asks: kinds and bodies, in order, and the answer of each, in whatever order they come;
* status: the last value of each key.

Nonces, session names, the split into updates and batches, heartbeats and times may differ. A machine that
refuses any recorded frame fails the replay.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wavemesh.codec.session import decode_child, decode_parent
from wavemesh.session import child as below
from wavemesh.session import parent as above
from wavemesh.session.frames import (
    Answer,
    Ask,
    Fenced,
    Goodbye,
    Heartbeat,
    Hello,
    Rejection,
    Report,
    ReportAck,
    ReportBatch,
    Resource,
    ResourceUpdate,
    ResourceVerdict,
    StatusUpdate,
    Welcome,
)
from wavemesh.session.liveness import Ending
from wavemesh.v1 import session_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.recordings.archive import Conversation
    from wavemesh.session.frames import ChildFrame, ParentFrame, ResourceKey

HeldAs = tuple[str, int, str]


@dataclass(slots=True)
class Outcome:
    """What a session came to; equal for equal meanings."""

    greeting: Any = None
    reports: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    acknowledged: int = 0
    held: dict[ResourceKey, HeldAs] = field(default_factory=dict)
    refused: set[tuple[ResourceKey, str, str]] = field(default_factory=set)
    settled: bool = False
    asks: list[tuple[str, bytes]] = field(default_factory=list)
    answers: dict[int, tuple[bytes, str]] = field(default_factory=dict)
    status: dict[str, bytes | None] = field(default_factory=dict)

    def greet(self, frame: Welcome | Fenced) -> None:
        """The session's name and the software say nothing about what both agreed on."""
        if isinstance(frame, Welcome):
            self.acknowledged = frame.reports_through
            frame = replace(frame, session_id="", software_version="")
        self.greeting = frame

    def answer_update(self, update: ResourceUpdate, verdict: ResourceVerdict) -> None:
        """What the child holds after an update it answered."""
        refused = {(one.key, one.digest) for one in verdict.rejected}
        self.refused |= {(one.key, one.digest, one.gate) for one in verdict.rejected}
        for one in update.changed:
            if (one.key, one.digest) not in refused:
                self.held[one.key] = (one.version.epoch, one.version.counter, one.digest)
        for key in update.removed:
            self.held.pop(key, None)
        self.settled |= update.settled

    def say(self, frame: Any) -> None:
        """What a child says besides verdicts."""
        match frame:
            case ReportBatch():
                numbered = enumerate(frame.reports, start=frame.first_number)
                self.reports |= {number: (one.kind, one.body) for number, one in numbered}
            case StatusUpdate():
                self.status |= {entry.key: entry.body for entry in frame.entries}
            case Ask():
                self.asks.append((frame.kind, frame.body))
            case _:
                pass


def _held(hello: Hello) -> dict[ResourceKey, HeldAs]:
    return {one.key: (one.version.epoch, one.version.counter, one.digest) for one in hello.held}


Spoken = list["tuple[str, ChildFrame | ParentFrame]"]


def spoken(conversation: Conversation) -> Spoken:
    """The frames, decoded by the present codec; raises MalformedFrameError."""
    found: Spoken = []
    for frame in conversation.frames:
        if frame.sender == "child":
            found.append(("child", decode_child(session_pb2.ConnectRequest.FromString(frame.content))))
        else:
            found.append(("parent", decode_parent(session_pb2.ConnectResponse.FromString(frame.content))))
    return found


def as_recorded(frames: Spoken) -> Outcome:
    """What the session came to in the recording, by its frames alone."""
    outcome = Outcome()
    updates: dict[int, ResourceUpdate] = {}
    for _, frame in frames:
        match frame:
            case Hello():
                outcome.held = _held(frame)
            case Welcome() | Fenced():
                outcome.greet(frame)
            case ReportAck():
                outcome.acknowledged = frame.through
            case ResourceUpdate():
                updates[frame.nonce] = frame
            case ResourceVerdict():
                outcome.answer_update(updates.pop(frame.nonce), frame)
            case Answer():
                outcome.answers[frame.ask_id] = (frame.body, frame.error)
            case _:
                outcome.say(frame)
    return outcome


class ParentReplay:
    """The present parent's machine, driven as its tier drove it when the recording was made."""

    def __init__(self, frames: Spoken) -> None:
        welcome = next((one for _, one in frames if isinstance(one, Welcome)), None)
        self._cursor = next(one.reports_through for _, one in frames if isinstance(one, Welcome | Fenced))
        window = welcome.report_window if welcome is not None else 512
        interval_s = welcome.heartbeat_interval_ms / 1000 if welcome is not None else 10.0
        options = above.ParentOptions("present", heartbeat_interval_s=interval_s, report_window=window)
        epoch = welcome.epoch if welcome is not None else ""
        self.machine = above.ParentMachine(options, session_id="replay", epoch=epoch, now=0.0)
        self.outcome = Outcome()
        self._desired: dict[ResourceKey, Resource] = {}
        self._answered: set[int] = set()
        acks = (one.through for _, one in frames if isinstance(one, ReportAck))
        self._acknowledged = max(acks, default=self._cursor)
        self._refusals: dict[tuple[ResourceKey, str], Rejection] = {}
        for _, frame in frames:
            if isinstance(frame, ResourceVerdict):
                self._answered.add(frame.nonce)
                self._refusals |= {(one.key, one.digest): one for one in frame.rejected}
        self._answers: dict[int, Answer] = {one.ask_id: one for _, one in frames if isinstance(one, Answer)}
        self._frames = frames

    def run(self) -> Outcome:
        """Feed every frame; returns what the session came to now."""
        for sender, frame in self._frames:
            if sender == "parent":
                self._want(frame)
            elif not isinstance(frame, ResourceVerdict):
                self.machine.receive(frame, 0.0)  # type: ignore[arg-type]  # the child's, by its sender
            self._settle(frame if sender == "child" else None)
        return self.outcome

    def _want(self, frame: Any) -> None:
        """The recorded parent sent a difference, which the child answered: from then on that was desired."""
        if isinstance(frame, ResourceUpdate) and frame.nonce in self._answered:
            self._desired |= {one.key: one for one in frame.changed}
            for key in frame.removed:
                self._desired.pop(key, None)
            self.machine.offer(dict(self._desired))

    def _settle(self, frame: Any) -> None:
        """Do the machine's effects and take what it sends, as a child that answers at once."""
        if isinstance(frame, Hello):
            self.outcome.held = _held(frame)
            # What the child holds and no difference names was desired; its content was not sent and is not known.
            self._desired = {one.key: Resource(one.key, one.version, one.digest, b"") for one in frame.held}
        moved = True
        while moved:
            moved = False
            while effects := self.machine.take_effects():
                moved = True
                for effect in effects:
                    self._perform(effect)
            self.machine.work_done(0.0)
            while (sent := self.machine.next_frame(0.0)) is not None:
                moved = True
                self._hear(sent)

    def _perform(self, effect: above.ParentEffect) -> None:
        match effect:
            case above.Admit():
                self.machine.admitted(self._cursor, 0.0)
            case above.ApplyReports():
                self.outcome.say(ReportBatch(effect.first_number, effect.reports))
                through = effect.first_number + len(effect.reports) - 1
                if through <= self._acknowledged:  # the recorded parent was cut before it had applied the others
                    self.machine.reports_applied(through)
            case above.NoteVerdict():
                accepted = {(one.key, one.digest) for one in effect.accepted}
                assert accepted.isdisjoint((one.key, one.digest) for one in effect.rejected)
            case above.NoteStatus():
                self.outcome.say(StatusUpdate(effect.entries))
            case above.AnswerAsk():
                self.outcome.say(effect.ask)
                if effect.ask.ask_id in self._answers:
                    self.machine.answered(self._answers[effect.ask.ask_id])

    def _hear(self, frame: ParentFrame) -> None:
        match frame:
            case Welcome() | Fenced():
                self.outcome.greet(frame)
            case ReportAck():
                self.outcome.acknowledged = frame.through
            case Answer():
                self.outcome.answers[frame.ask_id] = (frame.body, frame.error)
            case ResourceUpdate():
                refused = [self._refusals[k] for one in frame.changed if (k := (one.key, one.digest)) in self._refusals]
                verdict = ResourceVerdict(frame.nonce, tuple(refused))
                self.outcome.answer_update(frame, verdict)
                self.machine.receive(verdict, 0.0)
            case Heartbeat() | Goodbye():
                pass


class ChildReplay:
    """The present child's machine, with the reports, status and asks that the recorded child had."""

    def __init__(self, frames: Spoken) -> None:
        self._frames = frames
        [hello] = [one for _, one in frames if isinstance(one, Hello)]
        first = next(one.reports_through for _, one in frames if isinstance(one, Welcome | Fenced)) + 1
        first = min(first, hello.next_report_number)
        self.machine = below.ChildMachine(hello, first_report_number=first, status={}, now=0.0)
        self.outcome = Outcome(held=_held(hello))
        self._reports: dict[int, Report] = {}
        for _, frame in frames:
            if isinstance(frame, ReportBatch):
                self._reports |= dict(enumerate(frame.reports, start=frame.first_number))
        self._verdicts = {one.nonce: one for _, one in frames if isinstance(one, ResourceVerdict)}
        self._updates: dict[int, ResourceUpdate] = {}
        self._ask_numbers: dict[int, int] = {}
        self._now = 0.0

    def run(self) -> Outcome:
        """Feed every frame; returns what the session came to now."""
        for sender, frame in self._frames:
            # A second between two frames: status and heartbeats are paced by time.
            self._now += 1.0
            if self.machine.end is not None and self.machine.end.ending is not Ending.GOODBYE_SENT:
                break
            if sender == "child":
                self._do(frame)
            else:
                self._tell(frame)
            self._settle()
        return self.outcome

    def _do(self, frame: Any) -> None:
        """What the tier did when the recorded child sent that."""
        match frame:
            case ReportBatch():
                self.machine.reports_appended(frame.first_number + len(frame.reports))
            case StatusUpdate():
                for entry in frame.entries:
                    self.machine.set_status(entry.key, entry.body)
            case Ask():
                self._ask_numbers[frame.ask_id] = self.machine.ask(frame.kind, frame.body)
            case Goodbye():
                self.machine.close(frame.reason)
            case _:
                pass

    def _tell(self, frame: Any) -> None:
        if isinstance(frame, Answer):
            frame = replace(frame, ask_id=self._ask_numbers[frame.ask_id])
        if isinstance(frame, ResourceUpdate):
            self._updates[frame.nonce] = frame
        self.machine.receive(frame, self._now)
        if isinstance(frame, Welcome | Fenced):
            self.outcome.greet(frame)

    def _settle(self) -> None:
        moved = True
        while moved:
            moved = False
            while effects := self.machine.take_effects():
                moved = True
                for effect in effects:
                    self._perform(effect)
            self.machine.work_done(self._now)
            wanted = self.machine.wanted_reports()
            if wanted is not None:
                # A recorded child that was cut had reports which it never came to send.
                numbers = [n for n in range(wanted.first, wanted.first + wanted.limit) if n in self._reports]
                self.machine.reports_read(wanted.first, [self._reports[number] for number in numbers])
            while (sent := self.machine.next_frame(self._now)) is not None:
                moved = True
                self._hear(sent)

    def _perform(self, effect: below.ChildEffect) -> None:
        match effect:
            case below.ApplyResources():
                verdict = self._verdicts.get(effect.nonce)
                if verdict is not None:  # the recorded child was cut before it had applied the others
                    self.machine.resources_applied(effect.nonce, verdict.rejected)
            case below.AcknowledgeReports():
                self.outcome.acknowledged = effect.through
            case below.Settled():
                self.outcome.settled = True
            case below.Answered():
                self.outcome.answers[effect.answer.ask_id] = (effect.answer.body, effect.answer.error)
            case _:
                pass

    def _hear(self, frame: ChildFrame) -> None:
        if isinstance(frame, ResourceVerdict):
            self.outcome.answer_update(self._updates.pop(frame.nonce), frame)
        else:
            self.outcome.say(frame)


REPLAYS: dict[str, Callable[[Spoken], Outcome]] = {
    "parent": lambda frames: ParentReplay(frames).run(),
    "child": lambda frames: ChildReplay(frames).run(),
}
