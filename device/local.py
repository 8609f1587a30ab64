"""The device's local socket, ``DIR/run/agent.sock``: one line asked, one line of JSON answered.

A line is a verb and its argument. Each verb is one handler; an answer has ``ok``, and ``error`` where it is false:

* ``status``                 where the machine is, and what it could go back to
* ``evidence [WAVE]``        what it said in the present wave, or in another that control has not closed
* ``rollback REASON``        go back to the previous slot at once
* ``rollback-again REASON``  after a rollback: leave what it returned to as well, for the packed last known good
* ``rehearse``               what arming the staged slot would meet: device/rehearsal.py

Whoever can open the socket (its owner) stands before the device. Nothing here can raise risk, and nothing here is
signed: what is supervised is not left by it.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from device.sockets import bind_unix
from device.values import to_plain
from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from device.agent import Agent
    from device.equipment import Equipment
    from device.status import StatusReporter

MAX_LINE_BYTES = 1024
TIMEOUT_S = 5.0


class LocalSocket:
    """Serves verbs at a path until cancelled."""

    def __init__(self, path: Path, verbs: Mapping[str, Callable[[str], Awaitable[dict[str, Any]]]]) -> None:
        """``path`` is replaced when serving begins. A handler gets the argument; what it raises is the answer."""
        self._path = path
        self._verbs = verbs

    async def run(self) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_unix_server(self._serve, sock=_bind(self._path), limit=MAX_LINE_BYTES)
        async with server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                line = (await reader.readline()).decode(errors="replace").strip()
            answer = await self._answer(line)
            async with asyncio.timeout(TIMEOUT_S):
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (TimeoutError, ValueError, OSError):
            return
        finally:
            writer.close()

    async def _answer(self, line: str) -> dict[str, Any]:
        verb, _, argument = line.partition(" ")
        handler = self._verbs.get(verb)
        if handler is None:
            return _refused(f"no verb {verb[:40]!r}; there are {', '.join(self._verbs)}")
        try:
            return await handler(argument.strip())
        except WavemeshError as error:
            return _refused(str(error))


class AgentVerbs:
    """What can be asked of the agent."""

    def __init__(self, agent: Agent, status: StatusReporter, equipment: Equipment) -> None:
        """Answer for that agent."""
        self._agent = agent
        self._status = status
        self._equipment = equipment

    def table(self) -> dict[str, Callable[[str], Awaitable[dict[str, Any]]]]:
        """The handlers by verb."""
        return {
            "status": self._show,
            "evidence": self._evidence,
            "rollback": self._rollback,
            "rollback-again": self._rollback_again,
        }

    async def _show(self, _: str) -> dict[str, Any]:
        progress, packed = self._agent.progress, self._equipment.lkg.held()
        previous = self._equipment.boot_control.read().previous
        return {
            **to_plain(self._status.status(progress)),
            "ok": True,
            "state": progress.state.name,
            "evidence": progress.evidence,
            "hub_refusal": self._status.hub_refusal,
            "previous_slot": "" if previous is None else previous.slot.value,
            "packed_version": "" if packed is None else packed.label.version,
            "boot_id": self._equipment.record.boot_id,
        }

    async def _evidence(self, wave_id: str) -> dict[str, Any]:
        words = self._equipment.store.evidence(wave_id or self._agent.progress.wave_id)
        return {"ok": True, "outcomes": [{**to_plain(word), "kind": word.kind.name} for word in words]}

    async def _rollback(self, reason: str) -> dict[str, Any]:
        return await self._asked(self._agent.ask_rollback, reason)

    async def _rollback_again(self, reason: str) -> dict[str, Any]:
        return await self._asked(self._agent.ask_second_rollback, reason)

    async def _asked(self, ask: Callable[[str], str], reason: str) -> dict[str, Any]:
        """Answered once the machine has taken it up, so that what is shown from then on is what came of it."""
        refusal = ask(f"local operator: {reason}") if reason else "say why: rollback REASON"
        if refusal:
            return _refused(refusal)
        await self._agent.take_up()
        return {"ok": True}


def _refused(error: str) -> dict[str, Any]:
    return {"ok": False, "error": error}


def _bind(path: Path) -> socket.socket:
    """A socket at the path, for its owner alone."""
    listener = bind_unix(path)
    path.chmod(0o600)
    return listener
