"""Nights that failed once, each for a cause that was mended; and the table of faults in the docs."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.simulation.facts import Facts
from tests.simulation.run import run_seed
from tests.simulation.table import described, table

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "simulation.md"


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("seed", "cause"),
    [
        (24, "a replaced hub withdrew orders before it had heard anything"),
        (163, "the permits of a copy stayed bound to it after its end"),
        (479, "a pause at a store came back with an older disk, and no order had ever carried it"),
        (640, "control forgot its last word, and everybody below had forgotten the wave"),
        (1002, "control forgot a halt"),
    ],
)
def test_a_night_that_failed_once(seed: int, cause: str) -> None:
    """M3, M5, P6."""
    assert run_seed(seed, keeps_trace=False).failures == (), cause


def test_a_hub_that_heard_nothing_takes_no_order_away() -> None:
    facts, told = Facts(), []
    facts.fail = lambda requirement, what: told.append((requirement, what))  # type: ignore[method-assign]
    facts.withdrawn_unheard("till", [])
    assert not told
    facts.withdrawn_unheard("till", ["w1/big"])
    assert [requirement for requirement, _ in told] == ["M3"]


def test_the_table_of_the_docs_is_what_the_command_prints() -> None:
    """Kinds, order and words; the counts are those of the last whole run."""
    page = PAGE.read_text(encoding="utf-8")
    counts = {
        kind: int(times.replace(",", ""))
        for kind, times in re.findall(r"^\| `(.+?)` \| .* \| ([\d,]+) \|$", page, re.MULTILINE)
    }
    assert counts.keys() == described().keys()
    assert table(counts) in page
