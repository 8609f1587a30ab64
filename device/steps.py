"""What the update machine did, as spans: one for each state it stays in, from the write that entered it to the write
that left it. Pure.

An open step is part of the state document, so it outlives reboots and power cuts: the span of ARMED spans two boots,
that of ROLLING_BACK as well. A span's id follows from what is durable (state, attempt, begin), so closing a step twice,
with a cut in between, tells the same span. The span that says an outcome takes the id that everybody can derive from
the signed outcome; control's "control.outcome" links to it.

Steps inside a swap are parts of the store hub's lease, by the id in the signed lease; those before it are parts of the
wave.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime  # noqa: TC003  # device/values.py resolves the hints at run time
from typing import TYPE_CHECKING

from wavemesh.telemetry.spans import Span, Trace
from wavemesh.telemetry.units import error_of, stamp
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from device.progress import Outcome, Progress
    from wavemesh.identity.nodes import NodeId

S = UpdateState

NAMES: Mapping[UpdateState, str] = {
    S.PREFLIGHT: "device.preflight",
    S.STAGING: "device.staging",
    S.PAUSED: "device.paused",
    S.VERIFIED: "device.waiting",
    S.ARMED: "device.reboot",
    S.TRIAL: "device.trial",
    S.COMMITTING: "device.commit",
    S.ROLLING_BACK: "device.rollback",
    S.AWAITING_SIGNOFF: "device.signoff",
}
"""States in which something is done or waited for; the others are endings."""

_IN_LEASE = frozenset({S.ARMED, S.TRIAL, S.COMMITTING, S.ROLLING_BACK, S.AWAITING_SIGNOFF})
_FAILING = frozenset({S.ROLLING_BACK, S.REFUSED})


@dataclass(frozen=True, slots=True)
class OpenStep:
    """A state entered and not left yet; ``lease_id`` is empty outside a swap, ``permit_generation`` 0."""

    state: UpdateState
    wave_id: str
    attempt: int
    release: str
    began_at: datetime
    boot_id: str
    lease_id: str = ""
    permit_generation: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """A part of a step: a probe, a ping, the reading back of a slot; ``gate`` and ``error`` only if it failed."""

    name: str
    began_at: datetime
    ended_at: datetime
    gate: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """An outcome that was signed in the same write, with its numbers."""

    outcome: Outcome
    attempt: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Here:
    """Where and when: the node, its clock, the boot and its slot."""

    node: NodeId
    now: datetime
    boot_id: str
    slot: str


def next_step(step: OpenStep | None, after: Progress, here: Here) -> OpenStep | None:
    """The open step once ``after`` is durable: the same while its state lasts."""
    if after.state not in NAMES or not after.wave_id:
        return None
    if step is not None and (step.state, step.wave_id) == (after.state, after.wave_id):
        return step
    is_inside = after.state in _IN_LEASE
    return OpenStep(
        state=after.state,
        wave_id=after.wave_id,
        attempt=after.attempt,
        release=after.target.release if after.target is not None else "",
        began_at=here.now,
        boot_id=here.boot_id,
        lease_id=after.lease_id if is_inside else "",
        permit_generation=after.permit_generation if is_inside else 0,
    )


def spans_of(
    step: OpenStep | None, after: Progress, said: Said | None, checks: Sequence[Check], here: Here
) -> list[Span]:
    """The spans that end with the write of ``after``: that of the step it leaves, its checks, and the outcome's."""
    if step is not None and next_step(step, after, here) is step:
        step = None  # it goes on
    if step is None:
        return [] if said is None else [_word(after, said, here)]
    own = said if said is not None and step.wave_id == after.wave_id else None
    closed = _closed(step, after, own, here)
    spans = [closed, *(_checked(step, closed, number, check, here) for number, check in enumerate(checks))]
    if said is not None and own is None:
        spans.append(_word(after, said, here))
    return spans


def _closed(step: OpenStep, after: Progress, said: Said | None, here: Here) -> Span:
    trace = Trace(here.node.fleet, step.wave_id, here.node.path)
    gate, error = _why(after, said) if step.wave_id == after.wave_id else ("", "")
    began = stamp(step.began_at)
    attributes: dict[str, str | int] = {"wavemesh.attempt": step.attempt, **_about(step.release, said, here)}
    if step.boot_id != here.boot_id:
        attributes["wavemesh.boot_before"] = step.boot_id
    return Span(
        trace=trace,
        span_id=trace.unit(NAMES[step.state], here.node.path, step.attempt, began)
        if said is None
        else trace.outcome(here.node.path, said.attempt, said.sequence),
        parent_id=trace.lease(step.lease_id) if step.lease_id else trace.root(),
        name=NAMES[step.state],
        began_at=step.began_at,
        ended_at=here.now,
        gate=gate,
        error=error,
        attributes=attributes,
        links=(trace.permit(step.permit_generation),) if step.state is S.ARMED and step.permit_generation else (),
    )


def _word(after: Progress, said: Said, here: Here) -> Span:
    """An outcome that ends no step: the order was refused as it stands, or asks for what runs already."""
    trace = Trace(here.node.fleet, after.wave_id, here.node.path)
    gate, error = _why(after, said)
    release = after.target.release if after.target is not None else ""
    return Span(
        trace=trace,
        span_id=trace.outcome(here.node.path, said.attempt, said.sequence),
        parent_id=trace.root(),
        name="device.outcome",
        began_at=here.now,
        ended_at=here.now,
        gate=gate,
        error=error,
        attributes={"wavemesh.attempt": said.attempt, **_about(release, said, here)},
    )


def _checked(step: OpenStep, parent: Span, number: int, check: Check, here: Here) -> Span:
    began = stamp(step.began_at)
    return Span(
        trace=parent.trace,
        span_id=parent.trace.unit("device.check", here.node.path, began, number, check.name),
        parent_id=parent.span_id,
        name=f"device.{check.name}",
        began_at=check.began_at,
        ended_at=check.ended_at,
        gate=check.gate,
        error=check.error,
    )


def _why(after: Progress, said: Said | None) -> tuple[str, str]:
    """The gate that decided, and the words for it if something failed."""
    if said is not None:
        outcome = said.outcome
        return outcome.gate, error_of(outcome.kind, outcome.gate, outcome.evidence)
    if after.state in _FAILING:
        return after.gate, f"{after.gate}: {after.evidence}"
    return after.gate, ""


def _about(release: str, said: Said | None, here: Here) -> dict[str, str]:
    about = {"wavemesh.release": release, "wavemesh.slot": here.slot, "wavemesh.boot": here.boot_id}
    if said is not None:
        about["wavemesh.outcome"] = said.outcome.kind.name.lower()
    return {key: value for key, value in about.items() if value}
