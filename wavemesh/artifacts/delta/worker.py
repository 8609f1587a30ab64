"""Deltas in a process of their own: ``python -m wavemesh.artifacts.delta.worker``.

A payload comes from a peer, and native code takes it apart; making one costs a minute of CPU and a gigabyte. So each
job runs in a process that is niced, that has bounds on address space, CPU, file size and wall time, that may gain no
privileges and dies with its parent. A job that is cancelled or goes past a bound is killed, and its temporary files are
removed. What a killed *parent* leaves is ``leavings(out)``; whoever owns the directory sweeps them at its start.

The protocol: one JSON object on stdin, one line of JSON as the last line of stdout.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wavemesh.artifacts.chunkindex import Range
from wavemesh.artifacts.chunks import (
    BadIndexError,
    BadPackError,
    TooManyChunksError,
    make_pack,
    parse_index,
    rebuild_from_pack,
)
from wavemesh.artifacts.compressed import BadCompressedError, make_full_zstd, rebuild_full_zstd
from wavemesh.artifacts.delta import codec
from wavemesh.artifacts.delta.codec import BadDeltaError, temporary_of
from wavemesh.artifacts.digests import BadDigestError, in_thread
from wavemesh.artifacts.likeness import estimate
from wavemesh.errors import LocalError, WavemeshError
from wavemesh.runtime.children import talk_to_child
from wavemesh.runtime.durable import Disk, DiskFaultError, DiskFullError, disk_errors
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Sequence

_MIB = 1024 * 1024
_JOB_SUFFIX = ".job"
_NICE = 10
_OPEN_FILES_MOST = 64
_SAID_BYTES_MOST = 64 * 1024
_SHOWN_CHARS = 500
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
_MODULE = "wavemesh.artifacts.delta.worker"


class DeltaBoundError(LocalError):
    """A job on a delta went past its bounds of memory, CPU or time and was stopped; the target needs another way."""

    reason = "DELTA_BOUND"


_SAID: tuple[type[WavemeshError], ...] = (
    BadDeltaError,
    BadIndexError,
    BadPackError,
    BadCompressedError,
    TooManyChunksError,
    BadDigestError,
    DiskFullError,
    DiskFaultError,
    DeltaBoundError,
    TooManyChunksError,
)
"""What a job may say went wrong."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one job may use: address space in MiB, CPU and wall time in seconds."""

    memory_mib: int
    cpu_s: int
    wall_s: float


MAKE_BOUNDS = Bounds(memory_mib=4096, cpu_s=600, wall_s=1200)
"""For images of some 200 MiB; making takes about ten bytes of memory per byte of target and bases."""
REBUILD_BOUNDS = Bounds(memory_mib=2048, cpu_s=120, wall_s=300)


def leavings(out: Path) -> tuple[Path, ...]:
    """The files that a job on ``out`` may leave behind when the whole process tree is killed."""
    job = out.with_name(out.name + _JOB_SUFFIX)
    return (job, temporary_of(job))


class Workers:
    """At most ``parallel`` jobs at once, the others wait; safe to share among tasks of one event loop."""

    def __init__(
        self,
        *,
        parallel: int = 1,
        make_bounds: Bounds = MAKE_BOUNDS,
        rebuild_bounds: Bounds = REBUILD_BOUNDS,
        disk: Disk | None = None,
    ) -> None:
        """The disk gives results their name."""
        self._free = asyncio.Semaphore(parallel)
        self._make_bounds = make_bounds
        self._rebuild_bounds = rebuild_bounds
        self._disk = disk or Disk()

    async def make(self, bases: Sequence[Path], target: Path, out: Path) -> None:
        """``codec.make`` in a process; raises DeltaBoundError, DiskFaultError, and then there is no ``out``."""
        job: dict[str, object] = {"what": "make", "bases": [str(path) for path in bases], "target": str(target)}
        await self._run(job, out, self._make_bounds, 0)

    async def rebuild(self, bases: Sequence[Path], payload: Path, out: Path, target: Digest) -> None:
        """``codec.rebuild`` in a process; raises BadDeltaError, DeltaBoundError, DiskFaultError: then no ``out``."""
        await self._run(_asked("rebuild", bases, payload, target), out, self._rebuild_bounds, target.size_bytes)

    async def unpack(self, payload: Path, out: Path, target: Digest) -> None:
        """``compressed.rebuild_full_zstd`` in a process; raises BadCompressedError and as ``rebuild``."""
        await self._run(_asked("unpack", (), payload, target), out, self._rebuild_bounds, target.size_bytes)

    async def assemble(
        self, index: Path, part: Path, ranges: Sequence[Range], bases: Sequence[Path], *, out: Path, target: Digest
    ) -> None:
        """``chunks.rebuild_from_pack`` in a process; raises BadIndexError, BadPackError and as ``rebuild``."""
        pieces = [[one.offset, one.length] for one in ranges]
        job = _asked("assemble", bases, part, target) | {"index": str(index), "ranges": pieces}
        await self._run(job, out, self._rebuild_bounds, target.size_bytes)

    async def _run(self, job: dict[str, object], out: Path, bounds: Bounds, file_bytes: int) -> None:
        """Run the job and give its result the name ``out``; ``file_bytes`` bounds what it may write, 0 is no bound."""
        job_out = leavings(out)[0]
        asked = {
            **job,
            "out": str(job_out),
            "parent": os.getpid(),
            "memory_bytes": bounds.memory_mib * _MIB,
            "cpu_s": bounds.cpu_s,
            "file_bytes": file_bytes,
        }
        async with self._free:
            try:
                await self._process(asked, bounds.wall_s)
                await in_thread(self._name, job_out, out)
            finally:
                await in_thread(self._sweep, out)

    def _name(self, job_out: Path, out: Path) -> None:
        self._disk.rename(job_out, out)
        self._disk.fsync_dir(out.parent)

    def _sweep(self, out: Path) -> None:
        for path in leavings(out):
            self._disk.unlink(path)

    async def _process(self, asked: dict[str, object], wall_s: float) -> None:
        what = f"{asked['what']} of {asked['out']}"
        environment = {"MALLOC_ARENA_MAX": "2"} | {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        arguments = (sys.executable, "-P", "-m", _MODULE)
        try:
            async with asyncio.timeout(wall_s):
                status, said = await talk_to_child(arguments, json.dumps(asked).encode(), environment, _SAID_BYTES_MOST)
        except TimeoutError as error:
            raise DeltaBoundError(f"delta: {what} took longer than {wall_s:g} s and was stopped") from error
        _judge(what, status, said)


def _asked(what: str, bases: Sequence[Path], payload: Path, target: Digest) -> dict[str, object]:
    """A job that rebuilds."""
    return {
        "what": what,
        "bases": [str(path) for path in bases],
        "payload": str(payload),
        "sha256": target.sha256,
        "size_bytes": target.size_bytes,
    }


def _judge(what: str, status: int, said: bytes) -> None:
    """Raise what a job that failed means."""
    try:
        answer = json.loads(said.rstrip(b"\n").rpartition(b"\n")[2])
        reason, message = str(answer["reason"]), str(answer["message"])
    except (ValueError, TypeError, KeyError):
        reason, message = "", said.decode("utf-8", "replace")[-_SHOWN_CHARS:]
    if status == 0 and reason == "OK":
        return
    for kind in _SAID:
        if reason == kind.reason:
            raise kind(message)
    if status in {-signal.SIGXCPU, -signal.SIGKILL}:
        raise DeltaBoundError(f"delta: {what} was stopped at its bound of CPU or memory")
    # It died in native code or said something else than it should: with a payload from outside that is the payload's.
    raise BadDeltaError(f"delta: {what} failed with status {status}: {message}")


def _contain(job: dict[str, object]) -> None:
    """Bound this process before it reads anything from outside; it ends when its parent does."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl({option})")
    if os.getppid() != job["parent"]:
        sys.exit(1)  # it died before we asked to be told
    os.nice(_NICE)
    bounds = [
        (resource.RLIMIT_AS, int(str(job["memory_bytes"]))),
        (resource.RLIMIT_CPU, int(str(job["cpu_s"]))),
        (resource.RLIMIT_NOFILE, _OPEN_FILES_MOST),
        (resource.RLIMIT_CORE, 0),
    ]
    if job["file_bytes"]:
        bounds.append((resource.RLIMIT_FSIZE, int(str(job["file_bytes"]))))
    for kind, bound in bounds:
        hard = resource.getrlimit(kind)[1]
        least = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (least, least))


def _packs(job: dict[str, object]) -> bool:
    """Do a job that makes something else than a delta (``making.py``), if it is one."""
    target, out = Path(str(job.get("target"))), Path(str(job["out"]))
    match job["what"]:
        case "compress":
            make_full_zstd(target, out, level=int(str(job["level"])))
        case "pack":
            make_pack(target, out, Path(str(job["index"])), level=int(str(job["level"])))
        case "liken":
            _liken(job, target, out)
        case _:
            return False
    return True


def _liken(job: dict[str, object], target: Path, out: Path) -> None:
    from wavemesh.artifacts.sketching import sketch_file

    raw = job["bases"]
    sketches = [sketch_file(Path(str(path))) for path in (raw if isinstance(raw, list) else ())]
    found = estimate(sketch_file(target), sketches)
    said = json.dumps([found.full_bytes, found.chunks_bytes, found.delta_bytes, found.make_s])
    Disk().write_new(out, said.encode())


def _do(job: dict[str, object]) -> None:
    if _packs(job):
        return
    raw = job["bases"]
    bases = [Path(str(path)) for path in raw] if isinstance(raw, list) else []
    out = Path(str(job["out"]))
    if job["what"] == "make":
        codec.make(bases, Path(str(job["target"])), out)
        return
    payload, digest = Path(str(job["payload"])), Digest(str(job["sha256"]), int(str(job["size_bytes"])))
    if job["what"] == "rebuild":
        codec.rebuild(bases, payload, out, digest)
    elif job["what"] == "unpack":
        rebuild_full_zstd(payload, out, digest)
    else:
        _assemble(job, bases, payload, out, digest)


def _assemble(job: dict[str, object], bases: Sequence[Path], part: Path, out: Path, target: Digest) -> None:
    index, raw = Path(str(job["index"])), job["ranges"]
    with disk_errors(index):
        parsed = parse_index(index.read_bytes())
    ranges = [Range(int(offset), int(length)) for offset, length in raw] if isinstance(raw, list) else []
    rebuild_from_pack(parsed, part, ranges, bases, out=out, target=target)


def main() -> int:
    """Do the one job that stdin describes."""
    job = json.loads(sys.stdin.buffer.read())
    _contain(job)
    try:
        _do(job)
        reason, message = "OK", ""
    except WavemeshError as error:
        reason, message = error.reason, str(error)
    except MemoryError:
        reason, message = DeltaBoundError.reason, f"delta: {job['what']} needs more memory than it may have"
    sys.stdout.write("\n" + json.dumps({"reason": reason, "message": message}) + "\n")
    return 0 if reason == "OK" else 1


if __name__ == "__main__":
    sys.exit(main())
