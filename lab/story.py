"""What the demo shows: one line an event as it happens, and tables at the end.

On a terminal the lines scroll above a live table of the devices; elsewhere there are only the lines.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from edgectl.output import Page, Table, show_page
from lab.evidence import records

if TYPE_CHECKING:
    from typing import TextIO

    from rich.live import Live
    from rich.table import Table as RichTable

    from lab.evidence import Record
    from lab.topology import Lab

_TOLD_STEPS = {
    "state:PREFLIGHT": "checks its gates",
    "state:STAGING": "writes the inactive slot",
    "state:VERIFIED": "has the image verified on the slot, asks for a swap",
    "armed": "is armed: tries the new slot once",
    "trial": "runs the new slot on trial",
    "state:COMMITTED": "committed: the new slot is the one",
    "state:ROLLING_BACK": "rolls back, asking nobody",
    "state:ROLLED_BACK": "is back on the previous slot",
    "state:REFUSED": "refused",
}
_TOLD_REASONS = {"power-loss": "lost power and boots again", "watchdog": "was reset by its watchdog"}


class Watch:
    """Follows the records of the devices' boards."""

    def __init__(self, lab: Lab) -> None:
        """Begin with what is there."""
        self._lab = lab
        self._seen: dict[tuple[str, str], int] = {}
        self.last_step: dict[str, str] = {}
        self.steps = 0
        self.reached: dict[str, set[str]] = {device: set() for device in lab.devices}

    def news(self) -> list[tuple[str, Record]]:
        """Boots and steps since the last call, oldest first."""
        found: list[tuple[str, Record]] = []
        for device in self._lab.devices:
            for name in ("boots", "steps"):
                all_of_them = records(self._lab.device_dir(device), name)
                new = all_of_them[self._seen.get((device, name), 0) :]
                self._seen[device, name] = len(all_of_them)
                found += ((device, record) for record in new)
        found.sort(key=lambda pair: pair[1].at)
        for device, record in found:
            if record.step:
                self.steps += 1
                self.last_step[device] = record.step
                self.reached[device].add(record.step)
        return found


class Story:
    """Tells what happens."""

    def __init__(self, lab: Lab, stream: TextIO) -> None:
        """``stream`` is where it is told: stdout, or stderr when stdout is kept for data."""
        self._lab = lab
        self._began_s = time.monotonic()
        self._stream = stream
        self._live: Live | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._began_s

    def __enter__(self) -> Self:
        """Begin; on a terminal with a live table."""
        self._began_s = time.monotonic()
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._stream), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the live table."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def tell(self, who: str, what: str) -> None:
        """One line."""
        line = f"{self.elapsed_s:6.1f} s  {who:10} {what}"
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def tell_news(self, watch: Watch) -> None:
        """The boots and steps that a person wants to know of."""
        for device, record in watch.news():
            what = _TOLD_REASONS.get(record.reason) or _TOLD_STEPS.get(record.step)
            if what:
                self.tell(device, what)
        if self._live is not None:
            self._live.update(self._table(watch))

    def _table(self, watch: Watch) -> RichTable:
        from rich.table import Table as RichTable

        table = RichTable(*self._lab.stores, box=None, pad_edge=False)
        columns = [[f"{d}  {watch.last_step.get(d, '-'):24}" for d in devices] for devices in self._lab.stores.values()]
        for row in zip(*columns, strict=False):
            table.add_row(*row)
        return table

    def show(self, *parts: Table | str) -> None:
        """Tables at the end; nowhere when stdout is kept for data."""
        if self._stream is sys.stdout:
            show_page(Page(parts))
