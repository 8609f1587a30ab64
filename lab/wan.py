"""A flaky network: named TCP links that pass, are cut, or swallow everything.

``python -m lab.wan --config FILE.toml`` with

    control = "wan.sock"                 # unix socket, relative to the file
    [[links]]
    name = "store-209"
    listen = "127.0.0.1:9209"
    target = "127.0.0.1:9100"

The control socket takes lines ``cut NAME``, ``restore NAME``, ``blackhole NAME``, ``status`` and answers each with one
line of JSON: ``{"links": [{"name", "mode", "connections", "up_bytes", "down_bytes"}]}`` or ``{"error": "..."}``.

A *cut* link resets its connections and each new one. A *blackholed* link keeps them open and moves no byte in either
direction, new ones included, as a route that drops packets does; when restored, what waited arrives late, as TCP would
retransmit it. Bytes are counted when they pass: up is from the side that dialled.
"""

from __future__ import annotations

import argparse
import asyncio
import enum
import json
import os
import signal
import socket
import struct
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from wavemesh.errors import LocalError
from wavemesh.runtime.config import load_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_BLOCK_BYTES = 64 * 1024
_MAX_LINE_BYTES = 1024
_DIAL_TIMEOUT_S = 5.0


class Mode(enum.Enum):
    """What a link does with bytes."""

    PASS = "pass"  # noqa: S105  # not a password
    CUT = "cut"
    BLACKHOLE = "blackhole"


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """One link, addresses as "host:port"; port 0 to listen at any."""

    name: str
    listen: str
    target: str


@dataclass(frozen=True, slots=True)
class WanConfig:
    """All links, and where to command them."""

    control: Path
    links: tuple[LinkConfig, ...]


class WanError(LocalError):
    """A link cannot be set up, or there is none of that name."""

    reason = "WAN"


class Link:
    """One TCP link; use as an async context manager."""

    def __init__(self, config: LinkConfig) -> None:
        """Pass bytes once entered."""
        self.name = config.name
        self.mode = Mode.PASS
        self.up_bytes = self.down_bytes = 0
        self._config = config
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._connections: set[tuple[asyncio.StreamWriter, asyncio.Task[None] | None]] = set()

    async def __aenter__(self) -> Self:
        """Listen."""
        host, port = _address(self._config.listen)
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=_BLOCK_BYTES)
        except OSError as error:
            raise WanError(f"link {self.name}: cannot listen at {self._config.listen}: {error.strerror}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Reset all connections and stop listening."""
        tasks = [task for _, task in self._connections if task is not None]
        self.set_mode(Mode.CUT)
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        """Where it listens, "host:port"."""
        if self._server is None:
            msg = "the link is not open"
            raise RuntimeError(msg)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    def set_mode(self, mode: Mode) -> None:
        """Change what becomes of bytes, from now on and on all connections."""
        self.mode = mode
        if mode is Mode.BLACKHOLE:
            self._flowing.clear()
        else:
            self._flowing.set()
        if mode is Mode.CUT:
            for writer, _ in self._connections:
                _reset(writer)

    def status(self) -> dict[str, object]:
        """The link for people and programs."""
        return {
            "name": self.name,
            "mode": self.mode.value,
            "connections": len(self._connections),
            "up_bytes": self.up_bytes,
            "down_bytes": self.down_bytes,
        }

    async def _serve(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        """Carry one connection to its end."""
        near = (near_out, asyncio.current_task())
        self._connections.add(near)
        far: tuple[asyncio.StreamWriter, None] | None = None
        try:
            await self._flowing.wait()
            if self.mode is Mode.CUT:
                return
            host, port = _address(self._config.target)
            async with asyncio.timeout(_DIAL_TIMEOUT_S):
                far_in, far_out = await asyncio.open_connection(host, port, limit=_BLOCK_BYTES)
            far = (far_out, None)
            self._connections.add(far)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(near_in, near_out, far_out, self._count_up))
                group.create_task(self._carry(far_in, far_out, near_out, self._count_down))
        except (OSError, TimeoutError):
            return
        finally:
            self._connections.discard(near)
            _reset(near_out)
            if far is not None:
                self._connections.discard(far)
                _reset(far[0])

    async def _carry(
        self,
        source: asyncio.StreamReader,
        back: asyncio.StreamWriter,
        sink: asyncio.StreamWriter,
        count: Callable[[int], None],
    ) -> None:
        """Carry one direction to its end; when one side is reset, so is the other."""
        try:
            while data := await source.read(_BLOCK_BYTES):
                await self._flowing.wait()
                if sink.is_closing():
                    return
                sink.write(data)
                await sink.drain()
                count(len(data))
            await self._flowing.wait()
            if not sink.is_closing():
                sink.write_eof()
        except OSError:
            _reset(back)
            _reset(sink)

    def _count_up(self, count: int) -> None:
        self.up_bytes += count

    def _count_down(self, count: int) -> None:
        self.down_bytes += count


class Wan:
    """All links by name, commanded by lines of text."""

    def __init__(self, links: tuple[LinkConfig, ...]) -> None:
        """Make the links; they are open inside ``async with``."""
        self.links = {config.name: Link(config) for config in links}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open all links."""
        async with AsyncExitStack() as stack:
            for link in self.links.values():
                await stack.enter_async_context(link)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all links."""
        await self._stack.aclose()

    def command(self, line: str) -> dict[str, object]:
        """Do one command; the answer is the state of all links, or an error."""
        verb, _, name = line.strip().partition(" ")
        modes = {"cut": Mode.CUT, "restore": Mode.PASS, "blackhole": Mode.BLACKHOLE}
        if verb in modes:
            if name not in self.links:
                return {"error": f"no link {name!r}; there are: {', '.join(sorted(self.links))}"}
            self.links[name].set_mode(modes[verb])
        elif verb != "status":
            return {"error": f"unknown command {verb!r}; use cut, restore or blackhole NAME, or status"}
        return {"links": [link.status() for link in self.links.values()]}

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer commands on one control connection."""
        try:
            while line := await reader.readline():
                writer.write(json.dumps(self.command(line.decode(errors="replace"))).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError):
            # The other side left, or sent a line beyond the bound.
            return
        finally:
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset, dropping what was not sent."""
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise WanError(f"{text!r} is not of the form host:port")
    return host, int(port)


async def serve(config: WanConfig) -> None:
    """Run all links until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with suppress(FileNotFoundError):
        config.control.unlink()
    async with Wan(config.links) as wan:
        # Through the directory's descriptor, because a unix socket's address is bounded to 107 bytes.
        directory = os.open(config.control.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            control = f"/proc/self/fd/{directory}/{config.control.name}"
            server = await asyncio.start_unix_server(wan.converse, control, limit=_MAX_LINE_BYTES)
        finally:
            os.close(directory)
        try:
            await stop.wait()
        finally:
            server.close()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="lab.wan", description="TCP links that can be cut and blackholed")
    parser.add_argument("--config", type=Path, required=True, help="TOML file with control socket and links")
    try:
        asyncio.run(serve(load_config(parser.parse_args().config, WanConfig)))
    except LocalError as error:
        sys.stderr.write(f"lab.wan: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
