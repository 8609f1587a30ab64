"""What is judged of each wave finds exactly what is wrong, and the seed deals every plot (P6, C2, D4, M5)."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from lab.evidence import Outcome
from tests.chaos import waves
from tests.chaos.plots import BAD, LEAST_PLOTS, Plot, deal
from tests.chaos.waves import Boards, Seen, Wave, read_waves

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

T0 = datetime(2026, 3, 1, tzinfo=UTC)
STORES = {"s-1": ["r/s-1/d-1", "r/s-1/d-2", "r/s-1/d-3"], "s-2": ["r/s-2/d-4"]}
PATHS = {path.rpartition("/")[2]: path for paths in STORES.values() for path in paths}
OLD, NEW = "1.0", "2.0"
ALL = frozenset(PATHS.values())


def moment(seconds: float) -> str:
    return (T0 + timedelta(seconds=seconds)).isoformat()


def wave(plot: Plot, **entry: Any) -> Wave:
    """One that began at 0, with another after it at 100."""
    first = {"wave": "w", "version": NEW, "plot": plot.value, "began_at": moment(0), **entry}
    after = {"wave": "later", "version": "3.0", "plot": "good", "began_at": moment(100)}
    return read_waves([first, after], dict.fromkeys(PATHS, OLD))[0]


def ledger(**kinds: str) -> list[Outcome]:
    """By device; a gate after a colon."""
    words = {PATHS[name.replace("_", "-")]: kind.partition(":") for name, kind in kinds.items()}
    return [Outcome(path, kind, gate, 1, "", "") for path, (kind, _, gate) in words.items()]


def seen(state: str = "closed", permitted: Iterable[str] = ALL, **kinds: str) -> Seen:
    return Seen({"control": ledger(**kinds)}, frozenset(permitted), state)


@pytest.fixture
def boards(tmp_path: Path) -> Boards:
    """d-1 to d-3 ARMED at 10, 20 and 30; d-1 COMMITTING at 12, d-2 ROLLED_BACK at 22, d-4 ARMED in the next wave."""
    steps = {
        "d-1": [(10, "ARMED"), (12, "COMMITTING"), (13, "COMMITTED")],
        "d-2": [(20, "ARMED"), (22, "ROLLED_BACK")],
        "d-3": [(30, "ARMED"), (32, "ROLLED_BACK")],
        "d-4": [(110, "ARMED")],
    }
    for name, announced in steps.items():
        (tmp_path / name / "run").mkdir(parents=True)
        lines = [json.dumps({"at": moment(at), "boot_id": "b", "step": f"state:{step}"}) for at, step in announced]
        (tmp_path / name / "run" / "steps.jsonl").write_text("\n".join(lines) + "\n")
    return Boards({name: tmp_path / name for name in steps}, PATHS)


def test_every_run_begins_with_a_bad_release_and_operators_and_deals_every_plot() -> None:
    for seed in range(20):
        dealt = list(islice(deal(random.Random(seed)), 2 * len(Plot)))
        assert set(dealt[: len(Plot)]) == set(dealt[len(Plot) :]) == set(Plot)
        assert dealt[0] in BAD
        assert Plot.OPERATED in dealt[:LEAST_PLOTS]
    assert len({tuple(islice(deal(random.Random(seed)), len(Plot))) for seed in range(20)}) > 10


def test_who_armed_had_a_permit(boards: Boards) -> None:
    assert list(waves.exposed(wave(Plot.GOOD), seen(), boards, STORES)) == []
    found = list(waves.exposed(wave(Plot.GOOD), seen(permitted=ALL - {PATHS["d-3"]}), boards, STORES))
    assert found == [f"w {PATHS['d-3']}: ARMED without a permit"]
    # d-4 ARMED in the next wave, and needs none of this.
    assert list(waves.exposed(wave(Plot.GOOD), seen(permitted=ALL - {PATHS["d-4"]}), boards, STORES)) == []


@pytest.mark.parametrize(
    ("since", "until", "outstanding", "exposed"),
    [
        (15, None, {"d-2", "d-3"}, set()),
        (15, None, {"d-2"}, {"d-3"}),
        (15, None, set(), {"d-2", "d-3"}),
        (15, 25, {"d-2"}, set()),
        (25, None, {"d-2"}, {"d-3"}),
        (35, None, set(), set()),
    ],
)
def test_a_stop_exposes_what_was_outstanding(
    boards: Boards, since: int, until: int | None, outstanding: set[str], exposed: set[str]
) -> None:
    """P6: and nothing of the wave that comes next."""
    stop = {"kind": "halted", "since": moment(since), "outstanding": [PATHS[name] for name in outstanding]}
    if until is not None:
        stop["until"] = moment(until)
    found = list(waves.exposed(wave(Plot.HALTED, stops=[stop]), seen(), boards, STORES))
    assert {line.split()[1].rstrip(":") for line in found} == {PATHS[name] for name in exposed}


@pytest.mark.parametrize(("since", "until", "is_found"), [(5, None, True), (15, None, False), (5, 25, False)])
def test_a_hub_that_stopped_has_no_more_leases_out_than_its_limit(
    boards: Boards, *, since: int, until: int | None, is_found: bool
) -> None:
    stop = {"kind": "paused", "store": "s-1", "most": 2, "since": moment(since)}
    if until is not None:
        stop["until"] = moment(until)
    assert bool(list(waves.exposed(wave(Plot.OPERATED, stops=[stop]), seen(), boards, STORES))) is is_found


def test_a_bad_release_is_nowhere_kept(boards: Boards) -> None:
    good, bad = wave(Plot.GOOD), wave(Plot.NO_SCANNER)
    assert list(waves.escaped(good, seen(d_1="updated"), boards)) == []
    assert list(waves.escaped(bad, seen(), boards)) == [f"w {PATHS['d-1']}: committed a release that is no-scanner"]
    at_hub = Seen({"control": [], "s-1": ledger(d_2="updated")}, ALL, "halted")
    assert f"w {PATHS['d-2']}: updated at s-1" in list(waves.escaped(bad, at_hub, boards))
    kept = replace(bad, ran={"d-3": NEW})
    assert "w d-3: runs it" in list(waves.escaped(kept, seen(), boards))


def test_who_rolled_back_or_never_began_runs_what_it_ran() -> None:
    """D4, D5: to the byte, since versions are read from slots."""
    ran = {"d-1": NEW, "d-2": OLD, "d-3": OLD, "d-4": OLD}
    told = seen(d_1="updated", d_2="rolled_back:boot-probe", d_3="inconclusive:halted")
    assert list(waves.unreturned(wave(Plot.GOOD, ran=ran), told, PATHS)) == []
    for name in ("d-2", "d-3", "d-4"):
        found = list(waves.unreturned(wave(Plot.GOOD, ran=ran | {name: NEW}), told, PATHS))
        assert len(found) == 1
        assert found[0].startswith(f"w {name}:")
    # The next wave is judged by what this one left.
    first = {"wave": "w", "version": NEW, "plot": "good", "began_at": moment(0), "ran": ran}
    after = {"wave": "x", "version": "3.0", "plot": "good", "began_at": moment(100), "ran": ran}
    _, second = read_waves([first, after], dict.fromkeys(PATHS, OLD))
    assert list(waves.unreturned(second, seen(d_1="rolled_back:operator"), PATHS)) == []


def test_an_operators_rollback_is_the_last_word() -> None:
    operated = wave(Plot.OPERATED, rollbacks=["d-1"])
    assert list(waves.ignored(operated, seen(d_1="rolled_back:operator"), PATHS)) == []
    for kind in ("updated", "rolled_back:boot-probe"):
        assert list(waves.ignored(operated, seen(d_1=kind), PATHS)) != []
    assert list(waves.ignored(operated, seen(), PATHS)) != []


def test_counts_agree_with_the_ledger() -> None:
    told = {"control": {"updated": 2, "pending": 2}, "s-1": {"updated": 2, "pending": 1}, "s-2": {"pending": 1}}
    outcomes = {"d_1": "updated", "d_2": "updated"}
    assert list(waves.miscounted(wave(Plot.GOOD, told=told), seen(**outcomes), STORES)) == []
    for where, counts in told.items():
        wrong = {**told, where: {**counts, "pending": 0}}
        [found] = waves.miscounted(wave(Plot.GOOD, told=wrong), seen(**outcomes), STORES)
        assert f"{where} told" in found


@pytest.mark.parametrize(
    ("plot", "state", "kinds", "is_right"),
    [
        (Plot.NO_SCANNER, "halted", ("rolled_back", "rolled_back", "silent"), True),
        (Plot.NO_SCANNER, "closed", ("rolled_back", "rolled_back", "silent"), False),
        (Plot.NO_SCANNER, "closed", ("rolled_back", "rolled_back", "refused"), True),
        (Plot.NO_SCANNER, "halted", ("rolled_back", "rolled_back", "refused"), False),
        (Plot.GOOD, "closed", ("rolled_back", "failed", "updated"), True),
        (Plot.GOOD, "halted", ("rolled_back", "rolled_back", "rolled_back"), False),
        (Plot.HALTED, "halted", ("updated", "updated", "inconclusive"), True),
        (Plot.REVOKED, "closed", ("updated", "updated", "updated"), False),
    ],
)
def test_halts_are_those_of_the_ratio_and_of_operators(
    *, plot: Plot, state: str, kinds: tuple[str, str, str], is_right: bool
) -> None:
    """C2: three outcomes are enough of a bad release here, and a good one never halts."""
    told = seen(state, d_1=kinds[0], d_2=kinds[1], d_3=kinds[2])
    assert (list(waves.miscounted(wave(plot), told, STORES)) == []) is is_right


def test_a_plot_without_effect_shows_nothing() -> None:
    stop = {"kind": "held", "since": moment(1)}
    assert list(waves.unexercised(wave(Plot.NO_SCANNER), seen(d_1="rolled_back:peripheral:scanner"))) == []
    assert list(waves.unexercised(wave(Plot.NO_SCANNER), seen(d_1="inconclusive:halted"))) != []
    for plot, stops in ((Plot.HELD, 1), (Plot.HALTED, 1), (Plot.REVOKED, 1), (Plot.OPERATED, 2)):
        rolled = ["d-1"] if plot is Plot.OPERATED else []
        assert list(waves.unexercised(wave(plot, stops=[stop] * stops, rollbacks=rolled), seen())) == []
        assert list(waves.unexercised(wave(plot, stops=[stop] * (stops - 1), rollbacks=rolled), seen())) != []
    assert list(waves.unexercised(wave(Plot.OPERATED, stops=[stop] * 2), seen())) != []
