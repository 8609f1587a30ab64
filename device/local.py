"""The device's local socket, ``DIR/run/agent.sock``: one line asked, one line of JSON answered.

``status`` tells where the machine is. ``rollback REASON`` goes back to the previous slot at once: whoever can open the
socket (its owner) stands before the device. Nothing here can raise risk.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from device.sockets import bind_unix
from device.values import to_plain

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from device.agent import Agent
    from device.status import StatusReporter

MAX_LINE_BYTES = 1024
TIMEOUT_S = 5.0


class LocalSocket:
    """Serves the socket until cancelled."""

    def __init__(self, path: Path, agent: Agent, status: StatusReporter) -> None:
        """``path`` is replaced when serving begins."""
        self._path = path
        self._agent = agent
        self._status = status

    async def run(self) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_unix_server(self._serve, sock=_bind(self._path), limit=MAX_LINE_BYTES)
        async with server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                line = (await reader.readline()).decode(errors="replace").strip()
                writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (TimeoutError, ValueError, OSError):
            return
        finally:
            writer.close()

    def _answer(self, line: str) -> dict[str, object]:
        verb, _, argument = line.partition(" ")
        if verb == "status":
            status = to_plain(self._status.status(self._agent.progress))
            progress = self._agent.progress
            told = {"state": progress.state.name, "evidence": progress.evidence}
            return {**status, **told, "hub_refusal": self._status.hub_refusal}
        if verb == "rollback" and argument.strip():
            refusal = self._agent.ask_rollback(f"local operator: {argument.strip()}")
            return {"ok": not refusal, "error": refusal}
        return {"ok": False, "error": "use 'status' or 'rollback REASON'"}


def _bind(path: Path) -> socket.socket:
    """A socket at the path, for its owner alone."""
    listener = bind_unix(path)
    path.chmod(0o600)
    return listener
