"""``wave watch``: on a terminal a table that changes in place, with a bar a store; elsewhere a line a change.

The live table is drawn on stderr and gone at the end; what stays, the wave as it closed, goes to stdout.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edgectl.output import Output
from edgectl.progress import is_watched
from edgectl.tables import COUNTS, counts_text, place, wave_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.table import Table as RichTable

    from edgectl.framework import Session

_BAR_CELLS = 24
_SETTLED = tuple(name for name in COUNTS if name not in {"pending", "unknown", "inconclusive"})


@contextmanager
def showing(session: Session) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Call what is yielded with the wave after every change."""
    if session.output is not Output.TABLE:
        yield session.show
    elif is_watched() and sys.stdout.isatty():
        yield from _live(session)
    else:
        yield lambda wave: session.show(wave, line(wave, datetime.now(UTC)))


def _live(session: Session) -> Iterator[Callable[[dict[str, Any]], None]]:
    from rich.console import Console
    from rich.live import Live

    last: dict[str, Any] = {}
    with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as live:

        def draw(wave: dict[str, Any]) -> None:
            last.update(wave)
            live.update(_drawn(wave))

        yield draw
    if last:
        session.show(last, *wave_parts(last))


def line(wave: Mapping[str, Any], now: datetime) -> str:
    """The wave on one line, with the time of the change."""
    done, target = settled(wave["counts"]), sum(wave["counts"].values()) if wave["counts"] else 0
    return (
        f"{now:%Y-%m-%d %H:%M:%SZ}  wave {wave['wave_id']} {wave['state']}  {done} of {target} settled: "
        f"{counts_text(wave['counts'])}  exposure {wave['exposure']}"
    )


def settled(counts: Mapping[str, int] | None) -> int:
    """Devices that this wave has an answer of."""
    return sum(counts[name] for name in _SETTLED) if counts else 0


def bar_text(done: int, target: int, cells: int = _BAR_CELLS) -> str:
    """A bar: "██████░░░░ 3/5"."""
    full = cells * done // target if target else cells
    return f"{'█' * full}{'░' * (cells - full)} {done}/{target}"


def _drawn(wave: Mapping[str, Any]) -> RichTable:
    from rich.markup import escape
    from rich.table import Table as RichTable

    title = f"wave {wave['wave_id']}  {wave['state']}  {wave['release']}  exposure {wave['exposure']}  (Ctrl-C leaves)"
    table = RichTable(title=escape(title), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("store", "settled", "outcomes", "order"):
        table.add_column(column, overflow="fold")
    for one in wave["stores"]:
        bar = bar_text(settled(one["counts"]), len(one["devices"]))
        told = "delivered" if one["order_delivered"] else "queued"
        table.add_row(escape(place(one["store"])), bar, counts_text(one["counts"]), told)
    return table
