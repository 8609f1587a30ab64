"""Takes telemetry from where it is kept to where it goes, oldest first. The same on every tier.

At least once: a batch counts as sent when the other side said so, and is tried again with back-off until then; whoever
gets it knows a repeated one by its name, a repeated span by its id. Telemetry is the least of the traffic: one upload
at a time, a pause after each, and none while outcomes wait to go up.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from wavemesh.codec.statements import decode, encode
from wavemesh.errors import BusyError, WavemeshError
from wavemesh.session.backoff import full_jitter
from wavemesh.telemetry.batches import ASK_KIND, TelemetryUpload, TelemetryUploadAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from wavemesh.session.seams import ReportLog, Upstream
    from wavemesh.telemetry.batches import Pending

_LOG = logging.getLogger(__name__)

TIMEOUT_S = 10.0
PAUSE_S = 0.05
"""After each upload: at 60 KiB each, about 1 MiB/s at the most."""
BLOCKED_POLL_S = 0.25
BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 60.0
MOST_BATCHES = 64


class Source(Protocol):
    """Where batches are kept until they are sent."""

    async def wait(self) -> None:
        """Return when there may be something to send."""
        ...

    async def pending(self, most: int) -> Pending | None:
        """The oldest unsent batches, as many as fit into one upload; None when everything is sent."""
        ...

    async def sent(self, through: int) -> None:
        """Batches up to that number need not be kept for sending."""
        ...


class Way(Protocol):
    """Where batches go."""

    @property
    def is_open(self) -> bool:
        """Whether it is worth trying now."""
        ...

    async def send(self, pending: Pending) -> int:
        """How many batches, from the first, are settled; raises PeerError, TimeoutError."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class ToParent:
    """By the ask "telemetry" of the session."""

    def __init__(self, upstream: Upstream, log: ReportLog) -> None:
        """``log`` is the report log that goes first."""
        self._upstream = upstream
        self._log = log

    @property
    def is_open(self) -> bool:
        """With a session, and no report waiting for its acknowledgement."""
        return self._upstream.is_connected and self._log.first_number >= self._log.next_number

    async def send(self, pending: Pending) -> int:
        """The parent has stored what it settles."""
        upload = TelemetryUpload(pending.batches, pending.dropped)
        answer = decode(TelemetryUploadAnswer, await self._upstream.ask(ASK_KIND, encode(upload), TIMEOUT_S))
        if answer.refused:
            _LOG.warning("the parent refused %d telemetry batches: %s", answer.refused, answer.reason)
        return min(answer.settled, len(pending.batches))

    async def close(self) -> None:
        """The session is not ours."""


class Shipping:
    """Takes batches from a source along a way."""

    def __init__(
        self, source: Source, way: Way, uniform: Callable[[float, float], float], poll_s: float = BLOCKED_POLL_S
    ) -> None:
        """``uniform`` draws the jitter; ``poll_s`` is how often to look whether a way has opened, seconds."""
        self._source = source
        self._way = way
        self._uniform = uniform
        self._poll_s = poll_s

    async def run(self) -> None:
        """Ship until cancelled."""
        attempt, said = 0, ""
        try:
            while True:
                await self._source.wait()
                try:
                    pause_s = await self._step()
                except (WavemeshError, TimeoutError) as error:
                    said = _say_once(error, said)
                    pause_s = _delay_s(error, attempt, self._uniform)
                    attempt += 1
                else:
                    attempt, said = 0, ""
                await asyncio.sleep(pause_s)
        finally:
            await self._way.close()

    async def _step(self) -> float:
        """One upload; seconds to leave until the next. Raises WavemeshError, TimeoutError."""
        if not self._way.is_open:
            return self._poll_s
        pending = await self._source.pending(MOST_BATCHES)
        if pending is not None:
            settled = await self._way.send(pending)
            if settled:
                await self._source.sent(pending.numbers[settled - 1])
        return PAUSE_S


def _delay_s(error: WavemeshError | TimeoutError, attempt: int, uniform: Callable[[float, float], float]) -> float:
    if isinstance(error, BusyError):
        return error.retry_after_s + uniform(0, BACKOFF_BASE_S)
    # At least half the base: the draw may be 0, and a receiver that refuses at once would be asked in a loop.
    return BACKOFF_BASE_S / 2 + full_jitter(BACKOFF_CAP_S, BACKOFF_BASE_S, attempt, uniform)


def _say_once(error: WavemeshError | TimeoutError, said: str) -> str:
    text = str(error) or "no answer in time"
    if text != said:
        _LOG.warning("telemetry waits: %s", text)
    return text
