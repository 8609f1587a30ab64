"""A regression appears, and the WAN of one store is cut just before the halt that follows could reach it.

Every device loses its scanner with the release and rolls back; control halts by ``haltRollbackRatio``. *The worst
moment* is as few outcomes before the halt as can be hit: the cut store then has the permits it has, goes on with them
(its hub is health authority beside control) and hears nothing. Counted from the boards' records and control's database,
without product code:

* ``permits``: devices of the cut store whose permits were outstanding when it was cut;
* ``exposed``: devices of the cut store that ARMED after the cut, until its WAN is back and control has their
  outcomes; the halt comes after the cut, so they are no fewer than those that ARMED after the halt;
* ``halted_after_s``: from the first rollback at any board until control's wave is halted;
* ``swapped_elsewhere``: devices of the other stores that ARMED after that, while the order was on its way.

It is done with the default, where a hub gets permits for all its devices, and with each ``--batch``. Then a good
release meets what must not halt it: a store that is dark from its first swap on, a store whose devices all lose power
in a swap, devices switched off from before, and an authority that nobody reaches for a while. ``false_halts`` counts
runs of that kind that halted. To expose more than the permits, or to halt falsely, is a wrong result.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from bench.fleet import add_size, directory_of, size_of
from bench.report import Result, Target, WrongResultError, write
from bench.rollout import Fleet, Progress, ledger, plan, register, start_wave
from bench.site import WAVE, make_site
from lab.evidence import EvidenceError, permits_in_force, records, wave_state
from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from pathlib import Path

    from bench.site import Site, Size

HALT_LEAST = 5
BATCHES = (1, 5)
STILL_S = 30.0
_LOOK_S = 0.02
_FINAL = frozenset({"updated", "rolled_back", "failed"})
_HOPS = ("control", "wan")


@dataclass(frozen=True, slots=True)
class Halted:
    """One run with a regression; ``batch`` 0 is the default."""

    batch: int
    permits: int
    exposed: int
    halted_after_s: float
    swapped_elsewhere: int


def main(arguments: list[str]) -> int:
    """Measure and print; 1 when more is exposed than permits were outstanding, or something halts falsely."""
    parser = argparse.ArgumentParser(prog="python -m bench halt", description=__doc__)
    add_size(parser, stores=3, devices=12)
    parser.add_argument("--batch", type=int, action="append", help="permitBatch; may be repeated (default 1 and 5)")
    parser.add_argument("--outage", type=float, default=10.0, help="seconds nobody reaches the authority (default 10)")
    parser.set_defaults(swaps=2, timeout=600.0)
    options = parser.parse_args(arguments)
    size = size_of(options)
    try:
        with directory_of(options.dir) as directory:
            result = _measure(directory, size, options)
    except (WrongResultError, EvidenceError, WavemeshError) as error:
        sys.stderr.write(f"bench halt: wrong result: {error}\n")
        return 1
    write(result, options.json)
    return 0


def _measure(directory: Path, size: Size, options: argparse.Namespace) -> Result:
    runs = []
    for batch in (None, *(options.batch or BATCHES)):
        runs.append(_worst(directory / f"batch-{batch or 'all'}", size, batch, options.timeout))
        sys.stderr.write(f"{asdict(runs[-1])}\n")
    _must_not_halt(directory / "good", size, options)
    worst = max(runs, key=lambda run: run.exposed - run.permits)
    keys: dict[str, object] = {
        "stores": size.stores,
        "devices": size.total,
        "exposed": worst.exposed,
        "permits": worst.permits,
        "halted_after_s": max(run.halted_after_s for run in runs),
        "false_halts": 0,
        "runs": [asdict(run) for run in runs],
    }
    excess = worst.exposed - worst.permits
    return Result(keys, (Target("exposed beyond permits", excess, "<= 0", excess <= 0),))


def _worst(directory: Path, size: Size, batch: int | None, timeout_s: float) -> Halted:
    """As close before the halt as can be: outcomes may come several at once."""
    for short in range(1, HALT_LEAST):
        run = _regression(directory / str(short), size, batch, timeout_s, HALT_LEAST - short)
        if run is not None:
            return run
    raise WrongResultError("each time the wave was halted before the cut")


def _regression(directory: Path, size: Size, batch: int | None, timeout_s: float, outcomes: int) -> Halted | None:
    """A release that is bad everywhere; the WAN of the last store is cut after so many outcomes, or None: too late."""
    progress = Progress(sys.stderr)
    everywhere = type(size)(**{**asdict(size), "bad": size.total})
    site = make_site(directory, everywhere, _HOPS)
    cut = tuple(site.stores)[-1]
    with Fleet(site, progress) as fleet:
        register(fleet)
        fleet.start_devices()
        plan(fleet, everywhere, halt_least=HALT_LEAST, permit_batch=batch)
        start_wave(fleet)
        fleet.wait(lambda: len(_known(site)) >= outcomes, timeout_s, f"{outcomes} outcomes", poll_s=_LOOK_S)
        fleet.tell_wan(f"cut wan/{cut}")
        cut_at = datetime.now(UTC)
        permits = permits_in_force(site.control_dir, WAVE, site.store_id(cut).path)
        if wave_state(site.control_dir, WAVE) != "running":
            return None
        fleet.wait(lambda: wave_state(site.control_dir, WAVE) == "halted", timeout_s, "the halt", poll_s=_LOOK_S)
        halted_at = datetime.now(UTC)
        allowed = {path.rpartition("/")[2] for path in permits}
        # One that was under way when the link was cut never came.
        used_up = "the cut store to use up its permits"
        fleet.wait(lambda: allowed <= _rolled_back(site, cut) or _is_still(site, cut), timeout_s, used_up)
        fleet.tell_wan(f"restore wan/{cut}")
        fleet.wait(lambda: _armed_since(site, cut, cut_at) <= _known(site), timeout_s, "the cut store's outcomes")
    exposed = _armed_since(site, cut, cut_at)
    if not exposed <= allowed:
        raise WrongResultError(f"batch {batch}: {sorted(exposed - allowed)} ARMED without an outstanding permit")
    first = min(
        record.at for name in site.devices for record in records(site.device_dir(name), "steps") if _is_back(record)
    )
    elsewhere = sum(len(_armed_since(site, store, halted_at)) for store in site.stores if store != cut)
    after_s = round((halted_at - first).total_seconds(), 2)
    progress.done()
    return Halted(batch or 0, len(permits), len(exposed), after_s, elsewhere)


def _must_not_halt(directory: Path, size: Size, options: argparse.Namespace) -> None:
    """A good release under everything that looks like trouble and is none; raises WrongResultError when it halts."""
    progress = Progress(sys.stderr)
    good = type(size)(**{**asdict(size), "bad": 0, "stores": max(3, size.stores)})
    site = make_site(directory, good, _HOPS)
    dark, dying, partly = tuple(site.stores)[:3]
    off = set(site.stores[partly][: good.devices // 3])
    awake = [name for name in site.devices if name not in off]
    with Fleet(site, progress) as fleet:
        register(fleet)
        for store, names in site.stores.items():
            fleet.start_store(store, names)
        fleet.wait(lambda: fleet.connected() == good.total, options.timeout, "all devices", poll_s=1.0)
        # A hub that is new waits for each device's first word, so they are heard once before they are switched off.
        fleet.cut_power(partly)
        fleet.start_store(partly, [name for name in site.stores[partly] if name not in off])
        fleet.wait(lambda: fleet.connected() == len(awake), options.timeout, "the devices that are on", poll_s=1.0)
        plan(fleet, good, halt_least=2)
        start_wave(fleet)
        fleet.wait(
            lambda: bool(_ended(site, dark)), options.timeout, "a swap at the store that goes dark", poll_s=_LOOK_S
        )
        fleet.tell_wan(f"cut wan/{dark}")
        fleet.wait(
            lambda: bool(_inside(site, dying)), options.timeout, "a swap at the store that loses power", poll_s=_LOOK_S
        )
        fleet.cut_power(dying)
        for store in site.stores:
            fleet.tell_wan(f"cut wan/{store}")
        time.sleep(options.outage)  # the outage itself
        for store in site.stores:
            if store != dark:
                fleet.tell_wan(f"restore wan/{store}")
        fleet.start_store(dying, site.stores[dying])
        fleet.wait(lambda: _is_through(site, awake), options.timeout, "all devices that are on to be updated")
        fleet.tell_wan(f"restore wan/{dark}")
        fleet.wait(lambda: set(awake) <= _known(site) or _is_halted(site), options.timeout, "their outcomes")
    progress.done()
    if _is_halted(site):
        raise WrongResultError(f"a good release was halted: {[(o.device, o.kind, o.gate) for o in ledger(site)]}")


def _is_halted(site: Site) -> bool:
    return wave_state(site.control_dir, WAVE) == "halted"


def _is_through(site: Site, names: list[str]) -> bool:
    if _is_halted(site):
        return True
    return all("state:COMMITTED" in {r.step for r in records(site.device_dir(name), "steps")} for name in names)


def _known(site: Site) -> set[str]:
    """Devices of which control has the last word."""
    return {outcome.device.rpartition("/")[2] for outcome in ledger(site) if outcome.kind in _FINAL}


def _armed_since(site: Site, store: str, since: datetime) -> set[str]:
    """Devices of a store that ARMED after a moment, by their boards."""
    return {
        name
        for name in site.stores[store]
        if any(record.step == "state:ARMED" and record.at > since for record in records(site.device_dir(name), "steps"))
    }


def _is_still(site: Site, store: str) -> bool:
    """Whether nothing has happened on the boards of a store for some time."""
    last = max(record.at for name in site.stores[store] for record in records(site.device_dir(name), "steps"))
    return datetime.now(UTC) - last > timedelta(seconds=STILL_S)


def _ended(site: Site, store: str) -> set[str]:
    return _with_step(site, store, "state:COMMITTED") | _rolled_back(site, store)


def _rolled_back(site: Site, store: str) -> set[str]:
    return _with_step(site, store, "state:ROLLED_BACK")


def _inside(site: Site, store: str) -> set[str]:
    return _with_step(site, store, "state:TRIAL")


def _with_step(site: Site, store: str, step: str) -> set[str]:
    return {name for name in site.stores[store] if any(r.step == step for r in records(site.device_dir(name), "steps"))}


def _is_back(record: object) -> bool:
    return getattr(record, "step", "") == "state:ROLLED_BACK"
