"""One chaos run: wave after wave on real processes, faults during each, quiet and a check after each.

A wave is a release of its own, each a little higher than the one before, with a plot (``tests/chaos/plots.py``): some
releases are bad, and operators are at work. Faults strike until the wave is closed or its storm is over; then all is
whole again and has CONVERGE_S to agree. Whether it came out right is for ``tests/chaos/checker.py`` alone to say.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import operations, processes
from lab.evidence import EvidenceError, boot_environment, control_ledger, hub_ledger, is_closed, wave_state
from lab.images import digest_of
from lab.policies import OLD_RELEASE, SWAP_LIMIT, ReleaseNames, policy_text
from lab.processes import ProcessError
from lab.provision import image
from lab.topology import COHORT, device_id
from tests.chaos import checker, place
from tests.chaos.injector import Injector
from tests.chaos.operators import Operator, RefusedError, edgectl
from tests.chaos.plots import LEAST_PLOTS, deal, terms
from tests.chaos.script import Fleet, Kind, deck_of, draw
from wavemesh.errors import WavemeshError
from wavemesh.trust.statements import IntentKind, OperatorIntent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lab.topology import Lab
    from tests.chaos.checker import Verdict
    from tests.chaos.network import Network
    from tests.chaos.plots import Plot

BRING_UP_S = 180.0  # a machine may be busy with other things
STORM_S = 30.0
CONVERGE_S = 150.0
EVENTS_SHOWN = 30
_TICK_S = 0.05
_LOOK_S = 0.5


@dataclass(slots=True)
class Result:
    """What a run did and what was found wrong; everything but the counts of faults has to be 0."""

    seed: int
    minutes: float
    network: str
    waves: int = 0
    kills: int = 0
    cuts: int = 0
    at_once: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    killed: dict[str, int] = field(default_factory=dict)
    falsified: int = 0
    plots: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    gates: dict[str, int] = field(default_factory=dict)
    halts: dict[str, int] = field(default_factory=dict)
    ended_by_themselves: list[str] = field(default_factory=list)
    slowest_convergence_s: float = 0.0
    lost: int = 0
    duplicated: int = 0
    bricked: int = 0
    over_limit: int = 0
    untrue: int = 0
    exposed: int = 0
    escaped: int = 0
    unreturned: int = 0
    ignored: int = 0
    miscounted: int = 0
    unexercised: int = 0
    corrupt: int = 0
    orphans: int = 0
    stuck: int = 0
    found: dict[str, list[str]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return not self.found


class Telling:
    """Lines as things happen, of which the last are kept."""

    def __init__(self, write: Callable[[str], object]) -> None:
        """The clock of the lines starts now."""
        self._write = write
        self._began_s = time.monotonic()
        self.last: deque[str] = deque(maxlen=EVENTS_SHOWN)

    def __call__(self, text: str) -> None:
        """One line."""
        line = f"{time.monotonic() - self._began_s:6.1f} s  {text}"
        self.last.append(line)
        self._write(line + "\n")


class ChaosRun:
    """A lab that is set up, and the waves on it."""

    def __init__(self, lab: Lab, network: Network, seed: int, say: Telling, plots: Sequence[Plot] = ()) -> None:
        """Nothing runs yet; ``plots`` are those of the waves, by default all, in an order of the seed's."""
        self._lab = lab
        self._say = say
        sites = isinstance(lab, place.SiteLab)  # where there are sites, the lab's proxies have no part
        self._names = [name for name in processes.commands(lab) if not (sites and name == "wan")]
        self._injector = Injector(lab, network, self._names, say)
        fleet = Fleet("control", "superhub", tuple(lab.stores), lab.devices, network.links, place.kinds(lab))
        self._script = draw(fleet, random.Random(seed))
        self._deck = len(deck_of(fleet))
        self._struck = 0
        self._plots = deal(random.Random(f"plots/{seed}"), plots)
        self._least_waves = len(plots) or LEAST_PLOTS
        self._waves: list[dict[str, Any]] = []
        self._images = {OLD_RELEASE.version: _digest(image(lab, OLD_RELEASE))}
        self._slowest_s = 0.0

    def play(self, minutes: float, result: Result) -> None:
        """Waves until the time is over and a deck is dealt, or something is wrong.

        Raises WavemeshError when the lab does not come up.
        """
        self._bring_up()
        until_s = time.monotonic() + 60 * minutes
        while (time.monotonic() < until_s or self._owes_something()) and not result.found:
            wave = self._start_wave()
            operator = Operator(self._lab, self._waves[-1], STORM_S + CONVERGE_S, self._say)
            operator.start()
            try:
                self._storm(wave, until_s)
                took_s = self._converge(wave, operator)
            finally:
                self._injector.heal()
                operator.join()
            self._look_back(wave)
            verdict = checker.check(self._lab.directory)
            _take(verdict, result)
            if took_s is None:
                result.found["stuck"] = self._where_it_stands(wave)
                result.stuck = 1
            result.slowest_convergence_s = max(result.slowest_convergence_s, round(took_s or CONVERGE_S, 1))
            self._say(f"     {wave} is closed: {verdict.outcomes} so far" if took_s else f"     {wave} is stuck")
        result.waves = len(self._waves)
        result.plots = dict(sorted(Counter(one["plot"] for one in self._waves).items()))
        result.faults = {kind.value: self._injector.counts[kind] for kind in Kind}
        result.kills, result.cuts = self._injector.counts[Kind.KILL], self._injector.counts[Kind.CUT]
        result.killed, result.at_once = dict(sorted(self._injector.killed.items())), self._injector.at_once
        result.ended_by_themselves = self._injector.died

    def _owes_something(self) -> bool:
        """Whether a kind of fault, a bad release or operators at work have not been there yet."""
        return self._struck < self._deck or len(self._waves) < self._least_waves

    def finish(self, result: Result) -> None:
        """Stop everything and look at what is left, files and processes."""
        self._injector.heal()
        processes.stop_all(self._lab)
        orphans = list(_processes_of(self._lab.directory))
        if orphans:
            result.found["orphans"] = orphans
        result.orphans = len(orphans)
        place.keep_states(self._lab)
        _take(checker.check(self._lab.directory), result)

    def _bring_up(self) -> None:
        """Everything runs and control hears every device."""
        self._expect()
        processes.start(self._lab, [name for name in self._names if name not in self._lab.devices])
        operations.wait_ready(self._lab, ["control"])
        operations.register(self._lab)
        place.save_contexts_of_all(self._lab)
        processes.start(self._lab, self._lab.devices)
        operations.wait_connected(self._lab, BRING_UP_S)
        self._say(f"     {len(self._names)} processes, {len(self._lab.devices)} devices connected")

    def _start_wave(self) -> str:
        """Publish the next release, plan its wave and start it."""
        number = len(self._waves) + 1
        wave = f"chaos-{number:03}"
        release = ReleaseNames(f"firmware-v4.0.{number}", f"4.0.{number}", "pos-app-12.4.1.tar.gz", "12.4.1")
        firmware = image(self._lab, release)
        plot = next(self._plots)
        place.regress(self._lab, firmware, release.version, plot, random.Random(number))
        draft = operations.make_release(self._lab, operations.Draft(release, firmware))
        operations.publish(self._lab, draft)
        said = terms(plot)
        policy = policy_text(
            release,
            swap_limit=SWAP_LIMIT,
            halt_least_outcomes=said.halt_least,
            trial_minutes=said.trial_minutes,
            permit_batch=said.permit_batch or None,
        )
        operations.plan(self._lab, wave, policy.encode())
        self._images[release.version] = _digest(firmware)
        began_at = datetime.now(UTC).isoformat()
        entry = {"wave": wave, "version": release.version, "release": release.name, "plot": plot.value}
        self._waves.append({**entry, "began_at": began_at})
        self._expect()
        start = OperatorIntent(f"start-{wave}", IntentKind.START_WAVE, datetime.now(UTC), wave_id=wave, cohort=COHORT)
        operations.give(self._lab, "control", start)
        self._say(f"     {wave} starts: every device to {release.version}, {plot.value}")
        return wave

    def _storm(self, wave: str, until_s: float) -> None:
        """Faults until the wave is closed, its storm is over, or the run's time is."""
        end_s = time.monotonic() + STORM_S
        if self._struck >= self._deck:
            end_s = min(until_s, end_s)
        fault = next(self._script)
        due_s, look_s = time.monotonic() + fault.gap_s, 0.0
        while (now_s := time.monotonic()) < end_s:
            self._injector.tick()
            if now_s >= due_s:
                self._injector.strike(fault)
                self._struck = fault.number
                fault = next(self._script)
                due_s = now_s + fault.gap_s
            if now_s >= look_s:
                if self._is_closed(wave):
                    break
                look_s = now_s + _LOOK_S
            time.sleep(_TICK_S)
        self._injector.heal()

    def _converge(self, wave: str, operator: Operator) -> float | None:
        """Seconds until the wave is closed, all agree on it and are heard, its operator is done; None: not in time."""
        began_s = time.monotonic()
        while (took_s := time.monotonic() - began_s) < CONVERGE_S:
            self._injector.tick()
            if not operator.is_busy and not self._open_ends(wave):
                break
            time.sleep(_LOOK_S)
        try:
            operations.wait_connected(self._lab, max(0.0, CONVERGE_S - took_s))
        except ProcessError:
            return None
        return time.monotonic() - began_s

    def _open_ends(self, wave: str) -> list[str]:
        """What is not as it has to be in the end."""
        found = [] if self._is_closed(wave) else [f"control has not closed {wave}, it is {self._state(wave)}"]
        try:
            control = set(control_ledger(self._lab.control_dir, wave))
            hubs = {outcome for store in self._lab.stores for outcome in hub_ledger(self._lab.store_dir(store), wave)}
            superhub = set(hub_ledger(self._lab.superhub_dir, wave))
            if control != hubs or superhub - hubs:
                found.append(f"ledgers differ: {sorted(map(str, control ^ hubs | superhub - hubs))}")
            booting = {device: boot_environment(self._lab.device_dir(device)) for device in self._lab.devices}
            found += [f"{device} is on trial" for device, boot in booting.items() if boot["trial"] is not None]
        except EvidenceError as exc:
            found.append(str(exc))
        return found

    def _where_it_stands(self, wave: str) -> list[str]:
        """For people: what did not come within the bound."""
        heard: list[str] = []
        for where in ("control", *self._lab.stores):
            try:
                entries = operations.ledger(self._lab, where, wave).entries
                heard += [f"{where}: {entry.device} {entry.kind} {entry.gate}" for entry in entries]
            except WavemeshError as exc:
                heard.append(f"{where}: {exc}")
        return [*self._open_ends(wave), *heard]

    def _state(self, wave: str) -> str:
        try:
            return wave_state(self._lab.control_dir, wave)
        except EvidenceError:
            return "unreadable"

    def _is_closed(self, wave: str) -> bool:
        try:
            return is_closed(self._lab.control_dir, wave)
        except EvidenceError:
            return False

    def _look_back(self, wave: str) -> None:
        """Write down what nodes tell of a wave that is over, and what each device runs by its slot's bytes."""
        entry = self._waves[-1]
        try:
            run = checker.Run(self._lab.directory)
            entry["ran"] = {name: checker.running(run, name) for name in self._lab.devices}
            entry["told"] = {"control": operations.counts(self._lab, wave)}
            for store in self._lab.stores:
                told = edgectl(self._lab, store, "wave", "show", "--wave", wave)["counts"]
                entry["told"][store] = {kind: int(count) for kind, count in told.items()}
        except (EvidenceError, WavemeshError, RefusedError) as exc:
            self._say(f"     {wave} cannot be looked back at: {exc}")
            entry.pop("ran", None)
        self._expect()

    def _expect(self) -> None:
        """Tell the checker."""
        paths = {name: device_id(store, name).path for store, names in self._lab.stores.items() for name in names}
        expected = {
            "stores": self._lab.stores,
            "paths": paths,
            "images": self._images,
            "first_version": OLD_RELEASE.version,
            "swap_limit": SWAP_LIMIT,
            "waves": self._waves,
        }
        (self._lab.directory / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


def _take(verdict: Verdict, result: Result) -> None:
    """The checker's last word replaces its earlier ones."""
    result.outcomes, result.gates, result.halts = verdict.outcomes, verdict.gates, verdict.halts
    for kind, found in verdict.wrong.items():
        setattr(result, kind, len(found))
        result.found.pop(kind, None)
        if found:
            result.found[kind] = found


def _digest(path: Path) -> dict[str, Any]:
    sha256, size_bytes = digest_of(path)
    return {"sha256": sha256, "size_bytes": size_bytes}


def _processes_of(directory: Path) -> Iterator[str]:
    """What still runs and has the lab's directory in its command."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if str(directory) in command and "tests.chaos" not in command:
            yield f"{process.name}: {command}"
