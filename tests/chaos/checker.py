"""What really came of a chaos run: ``python -m tests.chaos.checker DIR [--json FILE]``. Imports no product code.

Judged from slots' bytes, boot environments, the boards' records and the nodes' databases alone, against
``DIR/expected.json``, which the run writes: stores and devices, images by version, the swap limit, and the waves so
far (``tests/chaos/waves.py``), each of which takes every device. What is found wrong, by kind:

* *lost*: a target without a final outcome at control, but in a wave that was halted, or with another one there than at
  its hub, or with another one at the super hub, which forgets a wave once control has closed it;
* *duplicated*: an outcome that is in a ledger twice, at two hubs, or for no target of the wave;
* *bricked*: the boot environment is unreadable, a trial is left over, or what the device boots is no whole image;
* *over_limit*: more devices of a store than the limit between arming and outcome, by what they told their boards;
* *untrue*: the last update that control counts is not what the device runs;
* *exposed*: a device that ARMED without a permit, or in a wave that was stopped without one that was outstanding then;
* *escaped*: a bad release that was committed, or is counted as an update;
* *unreturned*: a device that rolled back, or never swapped, and does not run its previous image to the byte;
* *ignored*: a device that an operator rolled back, and control has another outcome of it;
* *miscounted*: counts that a node told and its ledger does not have; a halt too many or too few by the ratio;
* *unexercised*: a plot that had no effect, so that its checks have shown nothing;
* *corrupt*: a database that SQLite's own check finds fault with.

Exit code 1 if anything is wrong, 2 if there is nothing to judge by.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lab.evidence import (
    EvidenceError,
    boot_environment,
    control_ledger,
    database,
    hub_ledger,
    most_at_once,
    permitted,
    slot_sha256,
    swaps,
    wave_state,
)
from lab.verdicts import Judged, command
from tests.chaos import waves
from tests.chaos.waves import FINAL, Boards, Seen, Wave, read_waves

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lab.evidence import Outcome


_COUNTED = frozenset({"outcomes", "gates", "halts"})


@dataclass(slots=True)
class Verdict:
    """What was found wrong, in words; how many outcomes of each kind, and by which gate, control counts; which waves of
    which plot were halted.
    """

    outcomes: dict[str, int] = field(default_factory=dict)
    gates: dict[str, int] = field(default_factory=dict)
    halts: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    bricked: list[str] = field(default_factory=list)
    over_limit: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)
    exposed: list[str] = field(default_factory=list)
    escaped: list[str] = field(default_factory=list)
    unreturned: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    miscounted: list[str] = field(default_factory=list)
    unexercised: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> dict[str, list[str]]:
        """The findings by kind."""
        return {kind: found for kind, found in asdict(self).items() if kind not in _COUNTED}

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.wrong.values())


class Run:
    """A directory and what was to happen in it."""

    def __init__(self, directory: Path) -> None:
        """Read what was expected; raises EvidenceError."""
        path = directory / "expected.json"
        try:
            expected: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self.stores: dict[str, list[str]] = expected["stores"]
            self.paths: dict[str, str] = expected["paths"]
            self.images: dict[str, dict[str, Any]] = expected["images"]
            self.first_version: str = expected["first_version"]
            self.swap_limit: int = expected["swap_limit"]
            self.waves: list[Wave] = read_waves(expected["waves"], dict.fromkeys(self.paths, self.first_version))
        except (OSError, ValueError, KeyError) as exc:
            raise EvidenceError(f"{path}: {exc!r}") from exc
        self.directory = directory

    def device(self, name: str) -> Path:
        """A device's directory."""
        return self.directory / "devices" / name

    @property
    def paths_by_store(self) -> dict[str, list[str]]:
        """The devices of each store, by path."""
        return {store: [self.paths[name] for name in names] for store, names in self.stores.items()}

    def see(self, wave: Wave) -> Seen:
        """What nodes have of the wave; raises EvidenceError."""
        control = self.directory / "control"
        found = {"control": control_ledger(control, wave.name)}
        found["superhub"] = hub_ledger(self.directory / "superhub", wave.name)
        found |= {store: hub_ledger(self.directory / "stores" / store, wave.name) for store in self.stores}
        return Seen(found, frozenset(permitted(control, wave.name)), wave_state(control, wave.name))


def check(directory: Path) -> Verdict:
    """Look at everything; raises EvidenceError when there is nothing to judge by."""
    run = Run(directory)
    verdict = Verdict(corrupt=list(_corrupt(directory)))
    boards = Boards({name: run.device(name) for name in run.paths}, run.paths)
    updated_to = dict.fromkeys(run.paths, run.first_version)
    names = {path: name for name, path in run.paths.items()}
    counted: Counter[str] = Counter()
    gates: Counter[str] = Counter()
    halts: Counter[str] = Counter()
    for wave in run.waves:
        try:
            seen = run.see(wave)
        except EvidenceError as exc:
            verdict.lost.append(f"{wave.name}: {exc}")
            continue
        _judge(run, wave, seen, boards, verdict)
        halts[wave.plot.value] += seen.state == "halted"
        for outcome in seen.ledgers["control"]:
            counted[outcome.kind] += 1
            gates[outcome.gate] += 1
            if outcome.kind == "updated" and outcome.device in names:
                updated_to[names[outcome.device]] = wave.version
    verdict.outcomes = dict(sorted(counted.items()))
    verdict.gates = {gate: count for gate, count in sorted(gates.items()) if gate}
    verdict.halts = {plot: count for plot, count in sorted(halts.items()) if count}
    for name in run.paths:
        try:
            version = running(run, name)
        except EvidenceError as exc:
            verdict.bricked.append(str(exc))
            continue
        if version != updated_to[name]:
            verdict.untrue.append(f"{name}: it runs {version}, control counts its update to {updated_to[name]}")
    verdict.over_limit += _over_limit(run)
    return verdict


def _judge(run: Run, wave: Wave, seen: Seen, boards: Boards, verdict: Verdict) -> None:
    """What is to be said of one wave; what it came to in the end, only once it is over."""
    verdict.duplicated += _duplicated(run, wave.name, seen.ledgers)
    verdict.lost += _lost(run, wave, seen)
    verdict.exposed += waves.exposed(wave, seen, boards, run.paths_by_store)
    verdict.escaped += waves.escaped(wave, seen, boards)
    if wave.is_over:
        verdict.unreturned += waves.unreturned(wave, seen, run.paths)
        verdict.ignored += waves.ignored(wave, seen, run.paths)
        verdict.miscounted += waves.miscounted(wave, seen, run.paths_by_store)
        verdict.unexercised += waves.unexercised(wave, seen)


def _lost(run: Run, wave: Wave, seen: Seen) -> Iterator[str]:
    by_device = {where: {outcome.device: outcome for outcome in ledger} for where, ledger in seen.ledgers.items()}
    for store, names in run.stores.items():
        for name in names:
            path = run.paths[name]
            at_control, at_hub = by_device["control"].get(path), by_device[store].get(path)
            if (at_control is None or at_control.kind not in FINAL) and seen.state != "halted":
                yield f"{wave.name} {name}: control has {_words(at_control)}"
            at_superhub = by_device["superhub"].get(path, at_hub)
            for above, outcome in (("control", at_control), ("superhub", at_superhub)):
                if outcome != at_hub:
                    yield f"{wave.name} {name}: {above} has {_words(outcome)}, {store} {_words(at_hub)}"


def _duplicated(run: Run, wave: str, ledgers: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    for where, ledger in ledgers.items():
        counted = Counter(outcome.device for outcome in ledger)
        yield from (f"{wave} {path}: {times} times at {where}" for path, times in counted.items() if times > 1)
        targets = {run.paths[name] for name in run.stores.get(where, run.paths)}
        yield from (f"{wave} {path}: no target, but counted at {where}" for path in sorted(set(counted) - targets))


def running(run: Run, name: str) -> str:
    """The version that the device boots; EvidenceError when that is nothing whole."""
    environment: Any = boot_environment(run.device(name))
    if environment["trial"] is not None:
        raise EvidenceError(f"{name}: a trial is left over")
    slot = environment["active"]["slot"]
    for version, image in run.images.items():
        if slot_sha256(run.device(name), slot, image["size_bytes"]) == image["sha256"]:
            return version
    raise EvidenceError(f"{name}: slot {slot}, which it boots, holds no whole image")


def _over_limit(run: Run) -> Iterator[str]:
    for store, names in run.stores.items():
        most, whose = most_at_once([swap for name in names for swap in swaps(run.device(name))])
        if most > run.swap_limit:
            yield f"{store}: {most} inside a swap at once ({', '.join(whose)}), the limit is {run.swap_limit}"


def _corrupt(directory: Path) -> Iterator[str]:
    """What SQLite finds fault with, and nodes that have no database to look at."""
    for node in (directory / "control", directory / "superhub", *sorted((directory / "stores").iterdir())):
        try:
            path = database(node)
            connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
            try:
                found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
            finally:
                connection.close()
        except (EvidenceError, sqlite3.Error) as exc:
            found = [str(exc)]
        if found != ["ok"]:
            yield f"{node.name}: {found[0]}"


def _words(outcome: Outcome | None) -> str:
    return "nothing" if outcome is None else f"{outcome.kind} {outcome.gate} (attempt {outcome.attempt})"


def main(argv: Sequence[str] | None = None) -> int:
    """Judge from the command line."""
    return command("tests.chaos.checker", __doc__ or "", _judged, argv)


def _judged(directory: Path) -> Judged:
    verdict = check(directory)
    rows = [
        f"{kind:11}{len(found):5}\n" + "".join(f"      {text}\n" for text in found)
        for kind, found in verdict.wrong.items()
    ]
    return Judged(verdict.holds, "".join(rows), asdict(verdict))


if __name__ == "__main__":
    sys.exit(main())
