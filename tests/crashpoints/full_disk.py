"""The disk fills up at each write of a hub, and has room later: ``python -m tests.crashpoints.full_disk --json -``.

The scenarios, the played world and the oracle are those of the crash points (ADR 27). A *site* is a durable step that
takes space: a file or a directory created, bytes written, a file made longer, a file renamed into a directory that may
have to grow, a commit. At one site, and at every one after it for ``FULL_S`` of virtual time, the disk says "no space
left"; a write has taken half of its bytes by then. Then there is room again, and the hub must come to the same rest as
if nothing had been: nothing lost, nothing told twice, no wrong byte served, nothing left over. A hub that ends must say
why in a LocalError that names the file; it is started again as a service manager would, every ``RESTART_S``. Who ends
while it runs, and not at a start, is counted apart: 0 is the target.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import logging
import os
import sqlite3
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tests.crashpoints import hub_story, storehub_cast, storehub_tale, superhub_cast, superhub_tale
from tests.crashpoints.cut_disk import CutDisk
from tests.crashpoints.hub_story import BOOT_S, HubStory, PlotError
from tests.crashpoints.hub_wire import PlayedChild, PlayedUpstream
from wavemesh.errors import LocalError
from wavemesh.runtime.durable import DiskFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.crashpoints.hub_tale import HubTale
    from tests.crashpoints.medium import Medium
    from tests.crashpoints.virtual_time import VirtualClock

HUBS: dict[str, Callable[[], Sequence[HubTale]]] = {"storehub": storehub_tale.tales, "superhub": superhub_tale.tales}
FULL_S = 300.0
RESTART_S = 30.0
RETRY_S = 5.0
SPACE = frozenset({"create", "create_dir", "write", "truncate", "allocate", "rename", "commit"})
MOST_RESTARTS = int(FULL_S / RESTART_S) + 3


@dataclass(slots=True)
class Filling:
    """When the disk fills up, by the count of sites, and until when it is full; outlives a restart of the hub."""

    at: int
    seen: int = 0
    place: str = ""
    full_until_s: float | None = None
    refused: Counter[str] = field(default_factory=Counter)

    def is_full(self, kind: str, path: Path, directory: Path, elapsed_s: float) -> bool:
        """Whether a step of that kind is refused."""
        if kind not in SPACE:
            return False
        if self.full_until_s is None:
            self.seen += 1
            if self.seen <= self.at:
                return False
            self.place = f"{kind} {path.relative_to(directory)}"
            self.full_until_s = elapsed_s + FULL_S
        if elapsed_s >= self.full_until_s:
            return False
        self.refused[kind] += 1
        return True


class FullDisk(CutDisk):
    """A disk that has no space for a while."""

    def __init__(self, medium: Medium, story: HubStory, clock: VirtualClock, filling: Filling) -> None:
        super().__init__(medium, story)
        self._clock = clock
        self._filling = filling

    @contextmanager
    def step(self, kind: str, path: Path) -> Iterator[None]:
        directory = self.medium.root
        if self.is_on and self._filling.is_full(kind, path, directory, self._clock.elapsed_s):
            if kind == "commit":
                msg = "database or disk is full"
                raise sqlite3.OperationalError(msg)
            msg = f"{path}: {os.strerror(errno.ENOSPC)}"
            raise DiskFullError(msg, path=str(path))
        with super().step(kind, path):
            yield

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        """Half of the bytes are taken before there is no space any more."""
        try:
            super().write(descriptor, data, path)
        except DiskFullError:
            offset, half = os.lseek(descriptor, 0, os.SEEK_CUR), bytes(data)[: len(data) // 2]
            os.write(descriptor, half)
            self.medium.file(path).write(offset, half)
            raise


class PatientUpstream(PlayedUpstream):
    """A session that breaks over what could not be made durable, and is opened again."""

    async def run(self) -> None:
        while True:
            try:
                await super().run()
            except LocalError as error:
                logging.getLogger(__name__).info("the session upwards broke: %s", error)
                self.is_connected = False
                await asyncio.sleep(RETRY_S)
                self._news.set()


class PatientChild(PlayedChild):
    """The same of a child."""

    async def run(self) -> None:
        while True:
            try:
                await super().run()
            except LocalError as error:
                logging.getLogger(__name__).info("the session with %s broke: %s", self._node.path, error)
                self._is_open = False
                await asyncio.sleep(RETRY_S)


class PatientStory(HubStory):
    """A story in which operators ask again, too."""

    async def _operate(self) -> None:
        while True:
            try:
                await super()._operate()
            except LocalError as error:
                logging.getLogger(__name__).info("an operator is refused: %s", error)
                await asyncio.sleep(RETRY_S)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One site: what it was, what is wrong in the end, how often the hub ended, and with which words."""

    place: str
    problems: tuple[str, ...]
    ended_starting: int
    ended_running: int
    words: tuple[str, ...]


def run_site(tale: HubTale, at: int) -> Outcome | None:
    """The scenario with a disk that is full from the ``at``-th site on; None if it has fewer."""
    component = tale.kind.component()
    filling, standing = Filling(at), tale.begin()
    starting = running = 0
    words: list[str] = []
    problems: list[str] = []
    for _ in range(MOST_RESTARTS):
        story = PatientStory(
            component,
            tale.scenario.acts,
            tale.scenario.is_over,
            standing,
            disk_of=lambda medium, told, clock: FullDisk(medium, told, clock, filling),
        )
        try:
            with _patience():
                rest = story.tell()
        except PlotError as ended:
            if not isinstance(ended.__cause__, LocalError):
                problems.append(str(ended))
                break
            words.append(str(ended.__cause__))
            has_run = bool(story._children)
            running, starting = running + has_run, starting + (not has_run)
            standing = replace(story.standing, elapsed_s=story.standing.elapsed_s + RESTART_S - BOOT_S)
        else:
            problems += tale.judge(rest) or tale.judge_rest(rest.image, rest.world)
            break
    else:
        problems.append(f"the hub does not start any more: {words[-1]}")
    problems += [f"the error names no file: {one}" for one in words if "/" not in one]
    if filling.full_until_s is None:
        return None
    return Outcome(filling.place, tuple(problems), starting, running, tuple(words))


@contextmanager
def _patience() -> Iterator[None]:
    with (
        patch.object(storehub_cast, "PlayedUpstream", PatientUpstream),
        patch.object(superhub_cast, "PlayedUpstream", PatientUpstream),
        patch.object(hub_story, "PlayedChild", PatientChild),
    ):
        yield


def campaign(tale: HubTale, one_of: int = 1, offset: int = 0) -> list[Outcome]:
    """Every ``one_of``-th site of a scenario, from ``offset`` on."""
    found: list[Outcome] = []
    at = offset
    while (outcome := run_site(tale, at)) is not None:
        found.append(outcome)
        at += one_of
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 if a site is not survived."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.crashpoints.full_disk", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--component", choices=[*HUBS], help="only this hub")
    parser.add_argument("--scenario", action="append", help="only this one; repeatable")
    parser.add_argument("--one-of", type=int, default=1, metavar="N", help="every Nth site only")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON; - is stdout")
    options = parser.parse_args(argv)
    table = sys.stderr if options.json == "-" else sys.stdout
    logging.disable(logging.CRITICAL)
    rows: list[dict[str, Any]] = []
    table.write(
        f"{'scenario':18} {'sites':>5} {'survived':>8} {'ended at a start':>16} {'ended running':>13} {'wall s':>6}\n"
    )
    for name in [options.component] if options.component else HUBS:
        for tale in HUBS[name]():
            if options.scenario and tale.name not in options.scenario:
                continue
            began_s = time.monotonic()
            outcomes = campaign(tale, options.one_of)
            bad = [one for one in outcomes if one.problems]
            row = {
                "scenario": tale.name,
                "sites": len(outcomes),
                "survived": len(outcomes) - len(bad),
                "ended_starting": sum(one.ended_starting for one in outcomes),
                "ended_running": sum(one.ended_running for one in outcomes),
                "failures": [{"place": one.place, "problems": one.problems} for one in bad],
            }
            rows.append(row)
            table.write(
                f"{tale.name:18} {row['sites']:5} {row['survived']:8} {row['ended_starting']:16} "
                f"{row['ended_running']:13} {time.monotonic() - began_s:6.0f}\n"
            )
            table.writelines(f"  {one.place}: {'; '.join(one.problems)}\n" for one in bad)
            table.writelines(f"  {one.place}: ended running: {one.words}\n" for one in outcomes if one.ended_running)
            table.flush()
    sites, survived = sum(row["sites"] for row in rows), sum(row["survived"] for row in rows)
    result = {"sites": sites, "survived": survived, "scenarios": rows}
    if options.json == "-":
        sys.stdout.write(json.dumps(result) + "\n")
    elif options.json:
        Path(options.json).write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 1 if survived < sites else 0


if __name__ == "__main__":
    sys.exit(main())
