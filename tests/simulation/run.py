"""One seed from its begin to its verdict."""

from __future__ import annotations

import gc
import itertools
import sqlite3
import traceback
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.simulation import words
from tests.simulation.faults import Chaos
from tests.simulation.region import LAST_S, NIGHT_S, QUIET_S, Region
from tests.simulation.tales import TALES
from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from tests.simulation.engine import Entry

ON_ITS_WAY_S = 30.0
"""What control says anew on the hour has arrived half a minute later."""


NIGHTS_A_COLLECTION = 40
_BROKEN = (
    WavemeshError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    sqlite3.Error,
)
"""What code that is wrong raises: it makes a failing seed, which replays."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one seed came to: the invariants it violated, its trace, and what happened in it."""

    seed: int
    failures: tuple[str, ...]
    trace: tuple[Entry, ...]
    faults: Counter[str]
    store_nights: int
    excused: Counter[str]


def run_seed(
    seed: int, *, patches: Sequence[AbstractContextManager[Any]] = (), keeps_trace: bool = True, tale: str = ""
) -> Result:
    """Run one night, with a tale of ``tales.py`` if one is named.

    ``patches`` are entered around it (mutants patch a rule of the product or of the harness).
    """
    words.fresh()
    with ExitStack() as stack:
        stack.enter_context(_no_collections())
        stack.enter_context(words.patched())
        for patch in patches:
            stack.enter_context(patch)
        region = Region(seed)
        world, facts = region.world, region.facts
        world.is_traced = keeps_trace
        chaos = Chaos(region)
        chaos.plan()
        if tale:
            TALES[tale](region, chaos)
        try:
            _night(region, chaos)
        except _BROKEN as error:
            facts.fail("code", f"{type(error).__name__}: {error} at {_place(error)}")
    trace = tuple(world.trace) if keeps_trace else ()
    return Result(seed, tuple(facts.failures), trace, chaos.counts, store_nights(region), facts.excused)


def _night(region: Region, chaos: Chaos) -> None:
    """Eight hours with faults, then time to converge, then past the expiry of every wave."""
    world, checkers, words_said = region.world, region.facts.checkers, region.facts.words
    assert checkers is not None
    assert words_said is not None
    region.begin()
    world.run(NIGHT_S)
    chaos.end()
    world.run(NIGHT_S + QUIET_S + ON_ITS_WAY_S)
    checkers.quiet()
    words_said.quiet()
    world.run(NIGHT_S + QUIET_S + LAST_S + ON_ITS_WAY_S)
    checkers.over()


@contextmanager
def _no_collections() -> Iterator[None]:
    """A night leaves some 7 MB in cycles, its nodes; looking through them while they live costs a tenth of the time."""
    if not gc.isenabled():  # whoever runs many nights collects between them
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def many_nights() -> None:
    """Say, once in a process, that it does nothing but nights: what is loaded is never looked through again."""
    gc.collect()
    gc.freeze()
    gc.disable()


_ran = itertools.count(1)


def run_untraced(seed: int, patches: Sequence[AbstractContextManager[Any]] = (), tale: str = "") -> Result:
    """One of many nights, without the trace, which is large to pass between processes."""
    result = run_seed(seed, patches=patches, keeps_trace=False, tale=tale)
    if next(_ran) % NIGHTS_A_COLLECTION == 0:
        gc.collect()
    return result


def _place(error: BaseException) -> str:
    """Where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in reversed(frames[-4:]))


def store_nights(region: Region) -> int:
    """Stores of fifty devices with at least one wave and twenty faults; the small stores are not counted."""
    return 1 if region.control.rows.waves else 0
