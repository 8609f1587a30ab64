"""What fits a terminal: columns leave in their order, lines break between words."""

from __future__ import annotations

import pytest

from edgectl.output import Table, wrapped

TABLE = Table("", ("name", "state", "detail"), [("pos-01", "idle", "x" * 30)], ("detail", "state"))


@pytest.mark.parametrize(
    ("width", "gone"),
    # name 6, gap 2, state 5, gap 2, detail 30: 45 wide; without the detail 13.
    [(80, ()), (45, ()), (44, ("detail",)), (13, ("detail",)), (12, ("detail", "state")), (3, ("detail", "state"))],
)
def test_spare_columns_leave_first_named_first_until_it_fits(width: int, gone: tuple[str, ...]) -> None:
    fitted, left_out = TABLE.fitted(width)
    assert left_out == gone
    assert tuple(fitted.columns) == tuple(name for name in TABLE.columns if name not in gone)
    assert len(fitted.rows[0]) == len(fitted.columns)


def test_a_line_is_broken_between_words_and_stays_below_its_beginning() -> None:
    text = "  devices: one two three four\nshort"
    assert wrapped(text, 20) == "  devices: one two\n    three four\nshort"
    assert wrapped("a" * 30, 20) == "a" * 30
