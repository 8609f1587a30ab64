"""What a chaos run wrote down of each wave, and what must be true of it. Imports no product code.

A wave's entry in ``expected.json`` says what was to be (its release's version, its plot, the policy's rule for halts)
and, as the run went on, what was done and seen: when it began, when somebody stopped it and what was outstanding then
(read from control's database), whom operators rolled back, the counts that nodes told, what each device's slot held in
the end. Waves follow one another, so a board's record belongs to the last wave that had begun.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lab.evidence import records
from tests.chaos.plots import BAD, STOPPED, Plot, terms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lab.evidence import Outcome

HALT_RATIO = 0.5
FINAL = frozenset({"updated", "rolled_back", "failed", "silent", "refused", "inconclusive"})
_BAD_ENDS = frozenset({"rolled_back", "failed", "silent"})
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Stop:
    """From when until when nothing new was to begin, where, and what that leaves.

    With ``store`` empty control had stopped the wave, and ``outstanding`` are the paths that had a permit then. A hub
    knows at once: ``most`` devices of its store may have a lease.
    """

    kind: str
    since: datetime
    until: datetime
    store: str
    outstanding: frozenset[str]
    most: int


@dataclass(frozen=True, slots=True)
class Wave:
    """One wave; ``before`` and ``ran`` are versions by device, from their slots' bytes, empty before it converged."""

    name: str
    version: str
    plot: Plot
    began: datetime
    ended: datetime
    stops: tuple[Stop, ...]
    rollbacks: tuple[str, ...]
    told: Mapping[str, Mapping[str, int]]
    before: Mapping[str, str]
    ran: Mapping[str, str]

    @property
    def is_bad(self) -> bool:
        """Whether no device may keep its release."""
        return self.plot in BAD

    @property
    def is_over(self) -> bool:
        """Whether it had converged when this was written."""
        return bool(self.ran)


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to see of a wave: ledgers by node, paths with a permit, and control's word on its state."""

    ledgers: Mapping[str, Sequence[Outcome]]
    permitted: frozenset[str]
    state: str


class Boards:
    """The steps that devices announced to their boards."""

    def __init__(self, directories: Mapping[str, Path], paths: Mapping[str, str]) -> None:
        """By name of device."""
        self._steps = {
            paths[name]: [(one.at, one.step.removeprefix("state:")) for one in records(directory, "steps")]
            for name, directory in directories.items()
        }

    def with_step(self, step: str, since: datetime, until: datetime) -> set[str]:
        """Paths of the devices that announced it in that time."""
        return {path for path, steps in self._steps.items() if any(s == step and since < at < until for at, s in steps)}


def read_waves(expected: Sequence[Mapping[str, Any]], first: Mapping[str, str]) -> list[Wave]:
    """The waves of ``expected.json``, oldest first; before them devices ran ``first``. Raises KeyError, ValueError."""
    began = [datetime.fromisoformat(one["began_at"]) for one in expected] + [_NEVER]
    ran = [first, *(one.get("ran", {}) for one in expected)]
    return [
        Wave(
            name=one["wave"],
            version=one["version"],
            plot=Plot(one["plot"]),
            began=began[number],
            ended=began[number + 1],
            stops=tuple(_stop(stop) for stop in one.get("stops", ())),
            rollbacks=tuple(one.get("rollbacks", ())),
            told=one.get("told", {}),
            before=ran[number],
            ran=ran[number + 1],
        )
        for number, one in enumerate(expected)
    ]


def _stop(told: Mapping[str, Any]) -> Stop:
    until = told.get("until")
    return Stop(
        kind=told["kind"],
        since=datetime.fromisoformat(told["since"]),
        until=_NEVER if until is None else datetime.fromisoformat(until),
        store=told.get("store", ""),
        outstanding=frozenset(told.get("outstanding", ())),
        most=told.get("most", 0),
    )


def exposed(wave: Wave, seen: Seen, boards: Boards, stores: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Who ARMED without a permit, or after a stop without one that was outstanding (P6, semantics "Permits")."""
    for path in sorted(boards.with_step("ARMED", wave.began, wave.ended) - seen.permitted):
        yield f"{wave.name} {path}: ARMED without a permit"
    for stop in wave.stops:
        armed = boards.with_step("ARMED", stop.since, min(stop.until, wave.ended))
        if not stop.store:
            beyond = sorted(armed - stop.outstanding)
            yield from (f"{wave.name} {path}: ARMED while {stop.kind}, by no outstanding permit" for path in beyond)
        elif len(there := sorted(armed & set(stores[stop.store]))) > stop.most:
            yield f"{wave.name}: {len(there)} ARMED while {stop.kind} at {stop.store}, {stop.most} leases may be out"


def escaped(wave: Wave, seen: Seen, boards: Boards) -> Iterator[str]:
    """Who keeps, or was said to keep, a release that is bad."""
    if not wave.is_bad:
        return
    for where, ledger in seen.ledgers.items():
        yield from (f"{wave.name} {one.device}: updated at {where}" for one in ledger if one.kind == "updated")
    for path in sorted(boards.with_step("COMMITTING", wave.began, wave.ended)):
        yield f"{wave.name} {path}: committed a release that is {wave.plot.value}"
    yield from (f"{wave.name} {name}: runs it" for name, version in wave.ran.items() if version == wave.version)


def unreturned(wave: Wave, seen: Seen, paths: Mapping[str, str]) -> Iterator[str]:
    """Who was not left with the image that it had before, to the byte, though it rolled back or never began."""
    kinds = {one.device: one.kind for one in seen.ledgers["control"]}
    for name, version in wave.ran.items():
        kind = kinds.get(paths[name], "no outcome")
        # What was silent or failed may have either image; it still has to be whole.
        if kind in {"rolled_back", "inconclusive", "refused", "no outcome"} and version != wave.before[name]:
            yield f"{wave.name} {name}: {kind}, it ran {wave.before[name]} before and {version} after"


def ignored(wave: Wave, seen: Seen, paths: Mapping[str, str]) -> Iterator[str]:
    """Whom operators rolled back, and control does not say so."""
    outcomes = {one.device: (one.kind, one.gate) for one in seen.ledgers["control"]}
    for name in wave.rollbacks:
        if (said := outcomes.get(paths[name])) != ("rolled_back", "operator"):
            yield f"{wave.name} {name}: an operator rolled it back, control has {said}"


def miscounted(wave: Wave, seen: Seen, stores: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Nodes whose counts are not those of the ledger, and halts that the counts do not bear out."""
    for where, told in wave.told.items():
        targets = stores.get(where, [path for paths in stores.values() for path in paths])
        outcomes = {one.device: one.kind for one in seen.ledgers["control"]}
        counted = Counter(outcomes.get(path, "pending") for path in targets)
        if {kind: count for kind, count in told.items() if count} != counted:
            yield f"{wave.name}: {where} told {dict(told)}, the ledger has {dict(counted)}"
    counts = Counter(one.kind for one in seen.ledgers["control"])
    bad = sum(counts[kind] for kind in _BAD_ENDS)
    evidence = bad + counts["updated"]
    has_to_halt = evidence >= terms(wave.plot).halt_least and bad > HALT_RATIO * evidence
    if has_to_halt != (seen.state == "halted") and wave.plot not in STOPPED:
        yield f"{wave.name} is {seen.state} with {bad} bad outcomes of {evidence}"
    if wave.plot in STOPPED and seen.state != "halted":
        yield f"{wave.name} was {wave.plot.value}, and is {seen.state}"


def unexercised(wave: Wave, seen: Seen) -> Iterator[str]:
    """What a plot was there for and did not happen: then the checks of it have shown nothing."""
    kinds = {one.kind for one in seen.ledgers["control"]}
    if wave.is_bad and "rolled_back" not in kinds:
        yield f"{wave.name}: {wave.plot.value}, and nobody rolled back"
    wanted = {Plot.OPERATED: 2, Plot.HELD: 1}.get(wave.plot, int(wave.plot in STOPPED))
    if len(wave.stops) < wanted:
        yield f"{wave.name}: {wave.plot.value} with {len(wave.stops)} stops of {wanted}"
    if wave.plot is Plot.OPERATED and not wave.rollbacks:
        yield f"{wave.name}: operated, and nobody was rolled back"
