"""One seed from its begin to its verdict."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.simulation import words
from tests.simulation.region import LAST_S, NIGHT_S, QUIET_S, Region

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from tests.simulation.engine import Entry


@dataclass(frozen=True, slots=True)
class Result:
    """What one seed came to: the invariants it violated, its trace, and what happened in it."""

    seed: int
    failures: tuple[str, ...]
    trace: tuple[Entry, ...]
    faults: Counter[str] = field(default_factory=Counter)
    store_nights: int = 1
    digest: str = ""


def run_seed(seed: int, *, patches: Sequence[AbstractContextManager[Any]] = (), digest: bool = False) -> Result:
    """Run one night; ``patches`` are entered around it (mutants patch a rule of the product or of the harness)."""
    words.fresh()
    with ExitStack() as stack:
        stack.enter_context(words.patched())
        for patch in patches:
            stack.enter_context(patch)
        region = Region(seed)
        world, facts = region.world, region.facts
        region.begin()
        world.run(NIGHT_S)
        world.run(NIGHT_S + QUIET_S)
        checkers = facts.checkers
        assert checkers is not None
        checkers.quiet()
        world.run(NIGHT_S + QUIET_S + LAST_S)
        checkers.over()
    return Result(
        seed, tuple(facts.failures), tuple(world.trace), Counter(), 1, world.digest() if digest else ""
    )
