"""Contained jobs on deltas (S5, H4): a payload from outside harms nobody, and nothing is left of a job that failed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wavemesh.artifacts.delta.codec import BadDeltaError
from wavemesh.artifacts.delta.worker import Bounds, DeltaBoundError, Workers, leavings
from wavemesh.runtime.durable import DiskFaultError
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Callable


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def digest(path: Path) -> Digest:
    content = path.read_bytes()
    return Digest(hashlib.sha256(content).hexdigest(), len(content))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    seeded = random.Random(5)
    old = bytearray(seeded.randbytes(200_000))
    new = old[:50_000] + seeded.randbytes(1_000) + old[60_000:]
    return write(tmp_path / "old", bytes(old)), write(tmp_path / "new", bytes(new))


async def test_a_delta_is_made_and_rebuilt_in_processes(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    old, new = pair
    workers = Workers()
    await workers.make([old], new, tmp_path / "delta")
    await workers.rebuild([old], tmp_path / "delta", tmp_path / "again", digest(new))
    assert (tmp_path / "again").read_bytes() == new.read_bytes()
    assert (tmp_path / "delta").stat().st_size < 3_000
    assert names(tmp_path) == ["again", "delta", "new", "old"]


async def test_a_bad_payload_is_the_payloads_fault_and_leaves_nothing(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    old, new = pair
    payload = write(tmp_path / "delta", b"not a delta" * 10)
    with pytest.raises(BadDeltaError):
        await Workers().rebuild([old], payload, tmp_path / "again", digest(new))
    assert names(tmp_path) == ["delta", "new", "old"]


async def test_a_missing_base_is_named(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(DiskFaultError, match="gone"):
        await Workers().make([tmp_path / "gone"], pair[1], tmp_path / "delta")


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        (Bounds(memory_mib=64, cpu_s=60, wall_s=60.0), "memory"),
        (Bounds(memory_mib=2048, cpu_s=60, wall_s=0.001), "longer"),
    ],
)
async def test_a_job_past_its_bounds_is_stopped_and_leaves_nothing(
    tmp_path: Path, pair: tuple[Path, Path], bounds: Bounds, says: str
) -> None:
    """64 MiB of address space is less than Python with its libraries takes to load an image of 40 MiB."""
    old = write(tmp_path / "old", pair[0].read_bytes() * 200) if says == "memory" else pair[0]
    with pytest.raises(DeltaBoundError, match=says):
        await Workers(make_bounds=bounds).make([old], pair[1], tmp_path / "delta")
    assert names(tmp_path) == ["new", "old"]


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 (a process tells nobody that it started)
            await asyncio.sleep(0.01)


def _children() -> set[int]:
    pids: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            pids |= {int(pid) for pid in (task / "children").read_text().split()}
    return pids


async def test_a_cancelled_job_is_killed_with_its_files(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """The base is a pipe that is held open and says nothing: the job waits in its read for ever, until it is killed."""
    before = _children()
    pipe, out = tmp_path / "pipe", tmp_path / "delta"
    os.mkfifo(pipe)
    for path in leavings(out):
        write(path, b"of a job before")
    held: list[int] = []

    def is_reading() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: nobody reads there yet
            held.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(held)

    try:
        async with asyncio.TaskGroup() as group:
            job = group.create_task(Workers().make([pipe], pair[1], out))
            await _until(is_reading)
            job.cancel()
        assert job.cancelled()
        assert _children() == before
        assert names(tmp_path) == ["new", "old", "pipe"]
    finally:
        os.close(held[0])


async def test_no_more_run_at_once_than_allowed(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """Each waits at a pipe of its own until it is let on: whoever may run is seen to."""
    before = _children()
    pipes = [tmp_path / f"pipe-{n}" for n in range(4)]
    for pipe in pipes:
        os.mkfifo(pipe)
    workers = Workers(parallel=2)
    most = 0

    def is_reached(pipe: Path) -> bool:
        nonlocal most
        most = max(most, len(_children() - before))
        with contextlib.suppress(OSError):  # ENXIO: nobody reads there yet
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            return True
        return False

    async with asyncio.TaskGroup() as group:
        for n, pipe in enumerate(pipes):
            group.create_task(workers.make([pipe], pair[1], tmp_path / f"delta-{n}"))
        await _until(lambda: len(_children() - before) >= 2)
        for pipe in pipes:
            await _until(functools.partial(is_reached, pipe))
    assert most == 2
    assert all((tmp_path / f"delta-{n}").exists() for n in range(4))
