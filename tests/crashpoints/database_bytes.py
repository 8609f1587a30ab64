"""A hub's database cut at every system call that SQLite makes: what a commit promised is kept, byte for byte.

    python -m tests.crashpoints.database_bytes cut --transactions 30 --checkpoint-every 7 --again 10

``record`` runs a writer under strace: the product's ``Database``, transactions of some size, checkpoints between them,
and a line on its standard output after each commit that returned. ``Replay`` does the same calls to a model of the
medium (medium.py: what is not flushed may be lost, in any part and order, by sectors of 512 bytes), and opens what a
cut around each of them would leave, as a hub's next start does. ``--again`` records and cuts what a start makes of so
many of these. The ``-shm`` file is no part of it: SQLite makes it anew when nobody has the database open.

As ALICE does (Pillai and others, "All file systems are not created equal", OSDI 2014).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from tests.crashpoints.device_story import RAM_DISK
from tests.crashpoints.medium import File, Medium, lay_image
from wavemesh.runtime.sqlite import Database, DatabaseFaultError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.crashpoints.medium import Image, Persists

NAME = "hub.sqlite3"
MIGRATIONS = (
    "CREATE TABLE effects (number INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE TABLE cursors (one INTEGER PRIMARY KEY, through INTEGER NOT NULL)",
)
CALLS = ("openat", "pwrite64", "write", "fsync", "fdatasync", "ftruncate", "unlink", "rename")
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_PATH = re.compile(r"^(?:\w+)?<([^>]*)>")


def body(number: int) -> bytes:
    """What transaction ``number`` writes: from some bytes to several pages."""
    return Random(number).randbytes(50 + 3000 * (number % 4))


async def write(path: Path, count: int, checkpoint_every: int) -> None:
    """Do that many more transactions; each says that it is committed once it is."""
    database = await Database.open(path, MIGRATIONS)
    row = await database.fetch_one("SELECT through FROM cursors")
    done = row["through"] if row is not None else 0
    for number in range(done + 1, done + count + 1):
        async with database.transaction() as tx:
            await tx.execute("INSERT INTO effects VALUES (?, ?)", (number, body(number)))
            await tx.execute("DELETE FROM effects WHERE number = ? AND number % 3 = 0", (number - 5,))
            await tx.execute("INSERT OR REPLACE INTO cursors VALUES (1, ?)", (number,))
        os.write(1, b"committed %d\n" % number)
        if number % checkpoint_every == 0:
            # What SQLite does by itself every 1,000 pages.
            await database._writer.execute_fetchall("PRAGMA wal_checkpoint(PASSIVE)")
    await database.close()


def record(directory: Path, count: int, checkpoint_every: int) -> list[str]:
    """Run the writer in ``directory``; what the kernel was asked."""
    calls = directory.with_name("calls")
    command = [sys.executable, "-m", "tests.crashpoints.database_bytes", "write", str(directory / NAME), str(count)]
    tracer = ["strace", "-f", "-y", "-xx", "-s", "1000000", "-e", f"trace={','.join(CALLS)}", "-o", str(calls)]
    subprocess.run(
        [*tracer, *command, str(checkpoint_every)],
        check=True,
        stdout=subprocess.PIPE,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    return list(_whole_lines(calls.read_text()))


def _whole_lines(text: str) -> Iterator[str]:
    """Calls of several threads, each as one line."""
    begun: dict[str, str] = {}
    for line in text.splitlines():
        process, _, call = line.partition(" ")
        if call.endswith("<unfinished ...>"):
            begun[process] = call.removesuffix("<unfinished ...>")
        elif resumed := re.match(r" *<\.\.\. \w+ resumed>(.*)", call):
            yield begun.pop(process) + resumed[1]
        else:
            yield call.strip()


@dataclass(frozen=True, slots=True)
class Call:
    """One call that succeeded and is about the database or standard output."""

    kind: str
    path: Path
    data: bytes = b""
    at: int = 0


def parse(lines: list[str], directory: Path) -> list[Call]:
    """Those that matter, in order."""
    found: list[Call] = []
    for line in lines:
        match = _CALL.match(line)
        if match is None or int(match[3]) < 0:
            continue
        kind, arguments, result = match[1], match[2], int(match[3])
        if kind == "write" and arguments.startswith("1<"):
            found.append(Call("committed", directory, _strings(arguments)[-1]))
            continue
        path = Path(_path_in(kind, arguments))
        if directory not in {path, path.parent} or path.name.endswith("-shm"):
            continue
        if kind == "pwrite64":
            found.append(Call(kind, path, _strings(arguments)[-1][:result], int(arguments.rsplit(", ", 1)[1])))
        elif kind == "ftruncate":
            found.append(Call(kind, path, at=int(arguments.rsplit(", ", 1)[1])))
        elif kind == "openat":
            if "O_CREAT" in arguments:
                found.append(Call("create", path))
        else:
            found.append(Call(kind, path))
    return found


def _strings(arguments: str) -> list[bytes]:
    return [bytes.fromhex(one.replace("\\x", "")) for one in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', arguments)]


def _path_in(kind: str, arguments: str) -> str:
    """Names in angle brackets are escaped as well."""
    if kind in {"openat", "unlink", "rename"}:
        return _strings(arguments)[-1].decode()
    named = re.match(r"\d+<([^>]*)>", arguments)
    if named is None:
        return ""
    return bytes.fromhex(named[1].replace("\\x", "")).decode() if named[1].startswith("\\x") else named[1]


@dataclass(slots=True)
class Replay:
    """Cuts around every call, one in ``one_of``; ``torn`` media a call. It begins with ``image``, in which ``promised``
    transactions are committed. ``problems`` are what was found wrong, by call; ``states`` are what the cuts left.
    """

    directory: Path
    calls: list[Call]
    image: Image = field(default_factory=dict)
    promised: int = 0
    torn: int = 3
    seed: int = 1
    one_of: int = 1
    points: int = 0
    problems: list[str] = field(default_factory=list)
    states: dict[tuple[object, ...], tuple[Image, int]] = field(default_factory=dict)

    def run(self, scratch: Path) -> None:
        """All of them; what they leave is laid out in ``scratch``."""
        medium = Medium(self.directory, self.image)
        for index, call in enumerate(self.calls):
            if call.kind == "committed":
                self.promised = int(call.data.split()[1])
                continue
            is_drawn = Random(f"{self.seed}/{index}").randrange(self.one_of) == 0
            name = f"{index} {call.kind} {call.path.name}"
            if is_drawn:
                self._judge(f"{name}.before", medium.after_cut(lambda: False), scratch)
            _do(medium, call)
            for variant, persists in self._variants(index) if is_drawn else ():
                self._judge(f"{name}.{variant}", medium.after_cut(persists), scratch)

    def _variants(self, index: int) -> Iterator[tuple[str, Persists]]:
        yield "after", lambda: False
        yield "kept", lambda: True
        for number in range(self.torn):
            yield f"torn-{number}", _drawn(f"{self.seed}/{index}/{number}")

    def _judge(self, point: str, image: Image, scratch: Path) -> None:
        self.points += 1
        state = (*image.items(), self.promised)
        if state in self.states:
            return
        self.states[state] = image, self.promised
        place = scratch / f"{id(self)}-{len(self.states)}"
        scratch.mkdir(exist_ok=True)
        lay_image(place, image)
        problem = asyncio.run(_wrong_with(place / NAME, self.promised))
        if problem:
            self.problems.append(f"{point}: {problem}")
        shutil.rmtree(place)


def _drawn(seed: str) -> Persists:
    rng = Random(seed)
    return lambda: rng.random() < 0.5


def _do(medium: Medium, call: Call) -> None:
    match call.kind:
        case "create":
            if call.path.name not in medium.directory(call.path.parent).present:
                medium.add(call.path, File())
        case "pwrite64":
            medium.file(call.path).write(call.at, call.data)
        case "ftruncate":
            medium.file(call.path).resize(call.at)
        case "unlink":
            medium.remove(call.path)
        case "fsync" | "fdatasync":
            (medium.file(call.path) if call.path.suffix else medium.directory(call.path)).sync()
        case _:
            msg = f"what a cut leaves of {call.kind} of {call.path} was not thought of"
            raise NotImplementedError(msg)


async def _wrong_with(path: Path, promised: int) -> str:
    """Open it as a hub does; all that was promised is there, and each transaction whole or not at all."""
    try:
        database = await Database.open(path, MIGRATIONS)
    except DatabaseFaultError as error:
        return f"does not open: {error}"
    try:
        [check, *_] = await database.fetch_all("PRAGMA integrity_check")
        row = await database.fetch_one("SELECT through FROM cursors")
        through = row["through"] if row is not None else 0
        found = {row["number"]: row["body"] for row in await database.fetch_all("SELECT * FROM effects")}
    except DatabaseFaultError as error:
        return f"cannot be read: {error}"
    finally:
        await database.close()
    if check[0] != "ok":
        return f"integrity: {check[0]}"
    # One more may be there: the one whose commit was under way.
    if not promised <= through <= promised + 1:
        return f"{through} transactions are there, {promised} were committed"
    gone = {number - 5 for number in range(1, through + 1) if (number - 5) % 3 == 0}
    if found != {number: body(number) for number in range(1, through + 1) if number not in gone}:
        return f"the effects are not those of {through} transactions"
    return ""


def cut_again(replay: Replay, count: int, top: Path) -> list[Replay]:
    """Record what a start and some transactions make of ``count`` of the states that cuts left, and cut that."""
    drawn = Random(replay.seed).sample(list(replay.states.values()), min(count, len(replay.states)))
    again = []
    for number, (image, _) in enumerate(drawn):
        directory = top / f"again-{number}" / "db"
        directory.parent.mkdir()
        lay_image(directory, image)
        through = asyncio.run(_through(directory, image))
        calls = parse(record(directory, 4, 2), directory)
        again.append(Replay(directory, calls, image, through, seed=number))
        again[-1].run(top / "scratch")
    return again


async def _through(directory: Path, image: Image) -> int:
    """How many transactions a copy of the image has."""
    copy = directory.with_name("copy")
    lay_image(copy, image)
    database = await Database.open(copy / NAME, MIGRATIONS)
    row = await database.fetch_one("SELECT through FROM cursors")
    await database.close()
    return int(row["through"]) if row is not None else 0


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.crashpoints.database_bytes")
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="what is recorded")
    writing.add_argument("path", type=Path)
    writing.add_argument("transactions", type=int)
    writing.add_argument("checkpoint_every", type=int)
    cutting = commands.add_parser("cut", help="record, and cut around every call")
    cutting.add_argument("--transactions", type=int, default=30)
    cutting.add_argument("--checkpoint-every", type=int, default=7)
    cutting.add_argument("--again", type=int, default=0, metavar="N", help="cut the recoveries from N states too")
    arguments = parser.parse_args()
    if arguments.command == "write":
        asyncio.run(write(arguments.path, arguments.transactions, arguments.checkpoint_every))
        return 0
    with tempfile.TemporaryDirectory(dir=RAM_DISK, prefix="crashpoints-") as top:
        directory = Path(top) / "db"
        directory.mkdir()
        calls = parse(record(directory, arguments.transactions, arguments.checkpoint_every), directory)
        replay = Replay(directory, calls)
        replay.run(Path(top) / "scratch")
        again = cut_again(replay, arguments.again, Path(top))
    problems = [problem for one in (replay, *again) for problem in one.problems]
    double, states = sum(one.points for one in again), sum(len(one.states) for one in (replay, *again))
    sys.stdout.write("".join(f"{problem}\n" for problem in problems))
    sys.stdout.write(f"{len(calls)} calls, {replay.points} points, {double} in recoveries, {states} states, ")
    sys.stdout.write(f"{len(problems)} problems\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
