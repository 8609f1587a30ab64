"""Processes that a node with gRPC in it starts, and is rid of again.

gRPC's threads do not survive a fork: its handler in the child (pthread_atfork) may abort between fork and exec, seen as
"Check failed: next_worker->state == KICKED" (grpc issue 43055). uvloop forks. The standard library's Popen takes vfork
where nothing runs in between, and vfork calls no handlers; so that is what starts processes here, in the thread that
asks, because a child that is to die with its parent (PR_SET_PDEATHSIG) dies with the thread that started it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from typing import TYPE_CHECKING

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ChildStartError(LocalError):
    """A process could not be started: too many of them, no memory, no program."""

    reason = "CHILD_START"


async def talk_to_child(
    arguments: Sequence[str], said: bytes, environment: Mapping[str, str], heard_most: int
) -> tuple[int, bytes]:
    """Run a program in a session of its own, give it ``said`` on stdin, and return its status and what it wrote.

    Of stdout and stderr together the last ``heard_most`` bytes are kept. When cancelled, the program and all of its
    session are killed and gone before this returns. Raises ChildStartError.
    """
    try:
        child = subprocess.Popen(  # noqa: ASYNC220  # vfork and exec, a millisecond; the module says why not asyncio's
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    except OSError as error:
        msg = f"{arguments[0]}: {error.strerror or error}"
        raise ChildStartError(msg) from error
    try:
        heard = await _converse(child, said, heard_most)
        return await _ended(child), heard
    finally:
        await _end(child)


class _Line(asyncio.BaseProtocol):
    """Knows whether its transport is over: one that is must not be aborted."""

    is_lost = False

    def connection_lost(self, _: Exception | None) -> None:
        self.is_lost = True


async def _converse(child: subprocess.Popen[bytes], said: bytes, heard_most: int) -> bytes:
    if child.stdin is None or child.stdout is None:
        raise RuntimeError("the process was started without pipes")
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    try:
        writing, line = await loop.connect_write_pipe(_Line, child.stdin)
    except BaseException:
        child.stdout.close()  # what is connected is closed by its transport
        raise
    try:
        reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), child.stdout)
        try:
            if not writing.is_closing():  # it may be gone already; its status says why then
                writing.write(said)
                writing.close()  # once all is written
            return await _last_of(reader, heard_most)
        finally:
            reading.close()
    finally:
        if not line.is_lost:
            writing.abort()


async def _last_of(reader: asyncio.StreamReader, most: int) -> bytes:
    heard = b""
    while piece := await reader.read(most):
        heard = (heard + piece)[-most:]
    return heard


async def _ended(child: subprocess.Popen[bytes]) -> int:
    """Its status; it closed its output, so that this takes no time, or as long as it goes on in silence."""
    while (status := child.poll()) is None:  # noqa: ASYNC110  # SIGCHLD is the event loop's, and not for this child
        await asyncio.sleep(_LOOK_S)
    return status


async def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill it and whatever it started, and see it gone, also when cancelled meanwhile."""
    if child.poll() is not None:
        return
    os.killpg(child.pid, signal.SIGKILL)
    cancelled: asyncio.CancelledError | None = None
    while child.poll() is None:
        try:
            await asyncio.sleep(_LOOK_S)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


_LOOK_S = 0.005
