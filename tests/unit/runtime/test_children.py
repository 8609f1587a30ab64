"""Processes of a node: spoken to, heard to their end, gone when they are not wanted any more."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from wavemesh.runtime.children import ChildStartError, talk_to_child

_ENVIRONMENT = {"PATH": os.environ["PATH"]}


def _python(program: str) -> tuple[str, ...]:
    return sys.executable, "-I", "-S", "-c", program


async def test_it_hears_the_last_of_what_is_said_and_the_status() -> None:
    program = (
        "import sys; sys.stdout.write(sys.stdin.read()[::-1]); sys.stdout.flush(); sys.stderr.write('!'); sys.exit(3)"
    )
    status, heard = await talk_to_child(_python(program), b"abcdef", _ENVIRONMENT, 4)
    assert (status, heard) == (3, b"cba!")


async def test_more_than_a_pipe_holds_is_said_while_the_child_reads() -> None:
    said = bytes(range(256)) * 20_000
    program = "import sys; data = sys.stdin.buffer.read(); sys.stdout.write(str(len(data)))"
    assert await talk_to_child(_python(program), said, _ENVIRONMENT, 100) == (0, b"5120000")


@pytest.mark.parametrize("said", [b"", b"x" * 5_000_000])
async def test_a_child_that_ends_without_listening_has_a_status(said: bytes) -> None:
    assert await talk_to_child(_python("raise SystemExit(7)"), said, _ENVIRONMENT, 100) == (7, b"")


async def test_one_that_closes_its_output_and_goes_on_is_waited_for() -> None:
    program = "import os, time; os.close(1); os.close(2); time.sleep(0.1); os._exit(5)"
    assert await talk_to_child(_python(program), b"", _ENVIRONMENT, 100) == (5, b"")


async def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ChildStartError, match="/no/such/program: No such file"):
        await talk_to_child(("/no/such/program",), b"", _ENVIRONMENT, 100)


async def test_a_cancelled_one_is_gone_with_what_it_started(tmp_path: Path) -> None:
    told = tmp_path / "pids"
    program = (
        "import os, time\n"
        "os.fork()\n"
        f"with open({str(told)!r}, 'a') as file:\n"
        "    file.write(str(os.getpid()) + chr(10))\n"
        "time.sleep(60)\n"
    )

    def pids() -> list[str]:
        return told.read_text().split() if told.exists() else []

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(talk_to_child(_python(program), b"", _ENVIRONMENT, 100))
        while len(pids()) < 2:  # noqa: ASYNC110  # another process has no event
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        while any(_is_alive(pid) for pid in pids()):  # noqa: ASYNC110  # init has yet to reap the grandchild
            await asyncio.sleep(0.01)
    assert task.cancelled()


@pytest.mark.parametrize("turns", range(6))
async def test_one_cancelled_while_it_starts_leaves_nothing_open(turns: int) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(talk_to_child(_python("input()"), b"", _ENVIRONMENT, 100))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()


def _is_alive(pid: str) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"
