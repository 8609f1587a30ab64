"""The lab's flaky network: pass, cut, blackhole, commanded over its control socket, as a process."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from lab.wan import Link, LinkConfig, Mode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def echo_server() -> AsyncIterator[str]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def _dial(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = address.split(":")
    return await asyncio.open_connection(host, int(port))


async def test_pass_blackhole_restore_cut() -> None:
    """O3."""
    async with echo_server() as target, Link(LinkConfig("a", "127.0.0.1:0", target)) as link:
        reader, writer = await _dial(link.address)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        link.set_mode(Mode.BLACKHOLE)
        writer.write(b"two")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.05)
        late_reader, late_writer = await _dial(link.address)
        late_writer.write(b"new")
        link.set_mode(Mode.PASS)
        assert await reader.readexactly(3) == b"two"
        assert await late_reader.readexactly(3) == b"new"
        assert link.status() == {"name": "a", "mode": "pass", "connections": 4, "up_bytes": 9, "down_bytes": 9}
        link.set_mode(Mode.CUT)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        refused, refused_writer = await _dial(link.address)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await refused.readexactly(1)
        for each in (writer, late_writer, refused_writer):
            each.close()


async def test_the_process_takes_commands(tmp_path: Path) -> None:
    config = tmp_path / "wan.toml"
    async with echo_server() as target:
        config.write_text(f'control = "wan.sock"\n[[links]]\nname = "s"\nlisten = "127.0.0.1:0"\ntarget = "{target}"\n')
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "lab.wan", "--config", str(config))
        try:
            reader, writer = await _control(tmp_path / "wan.sock")

            async def command(line: str) -> dict[str, Any]:
                writer.write(line.encode() + b"\n")
                answer: dict[str, Any] = json.loads(await reader.readline())
                return answer

            assert (await command("status"))["links"][0]["mode"] == "pass"
            assert (await command("cut s"))["links"][0]["mode"] == "cut"
            assert (await command("blackhole s"))["links"][0]["mode"] == "blackhole"
            assert (await command("restore s"))["links"][0]["mode"] == "pass"
            assert "no link 'x'; there are: s" in (await command("cut x"))["error"]
            assert "unknown command" in (await command("explode"))["error"]
            writer.close()
        finally:
            process.terminate()
            assert await process.wait() == 0


async def _control(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as soon as the process listens."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await asyncio.open_unix_connection(path)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.02)
