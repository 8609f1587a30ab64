"""Drives one session machine over one gRPC stream: a reader task, a writer, one lazy timer, nothing else when idle.

Rules, from what grpc.aio does: exactly one long-lived ``read`` and one ``write`` are open at a time and neither is ever
timed out on its own; the whole stream is cut instead, by an error in the TaskGroup. The end of the stream means only
that it ended. CancelledError is raised again always, because swallowing it leaks memory in gRPC core.

The reader does the machine's effects, one at a time, and reads no further meanwhile: that is the back-pressure. The
writer pulls frames from the machine whenever something happened. A timer handle, not a task, brings time to the
machine; it also works while the writer is blocked by a peer that does not read.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Generic, NoReturn, Protocol, TypeVar

from wavemesh.errors import LinkDownError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from wavemesh.runtime.clock import Clock
    from wavemesh.session.liveness import SessionEnd

In = TypeVar("In")
Out = TypeVar("Out")
Effect = TypeVar("Effect")
In_co = TypeVar("In_co", covariant=True)
In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)
Out_contra = TypeVar("Out_contra", contravariant=True)
Effect_co = TypeVar("Effect_co", covariant=True)
Effect_contra = TypeVar("Effect_contra", contravariant=True)

# A due heartbeat waits for a blocked writer; asking again sooner would only burn CPU.
_MIN_TIMER_S = 0.05
WRITE_STALL_S = 20.0
"""How long a peer may leave one frame untaken. The transport holds some, so whoever reads at all takes each at once."""


class Machine(Protocol[In_contra, Out_co, Effect_co]):
    """What ChildMachine and ParentMachine have in common; see there."""

    @property
    def end(self) -> SessionEnd | None:
        """How the session ended."""
        ...

    def receive(self, frame: In_contra, now: float) -> None:
        """Take a frame in."""
        ...

    def take_effects(self) -> Sequence[Effect_co]:
        """Effects to do now."""
        ...

    def work_done(self, now: float) -> None:
        """They are done."""
        ...

    def get_timer(self) -> float:
        """When to call ``handle_timer``."""
        ...

    def handle_timer(self, now: float) -> None:
        """Time has passed."""
        ...

    def next_frame(self, now: float) -> Out_co | None:
        """The next frame to send."""
        ...


class Driver(Protocol[In_co, Out_contra, Effect_contra]):
    """What one end of the stream does for the pump."""

    async def read(self) -> In_co | None:
        """The next frame, None when the stream ended."""
        ...

    async def write(self, frame: Out_contra) -> None:
        """Send a frame."""
        ...

    async def perform(self, effect: Effect_contra) -> None:
        """Do an effect and tell the machine."""
        ...

    async def prepare(self) -> None:
        """Bring the machine up to date before it is asked for a frame."""
        ...


class StreamOverError(Exception):
    """Ends the pump in an orderly way."""


class Pump(Generic[In, Out, Effect]):
    """One stream's pump; ``run`` once."""

    __slots__ = (
        "_armed_for",
        "_clock",
        "_driver",
        "_group",
        "_is_over",
        "_is_working",
        "_machine",
        "_stall_s",
        "_stalled_at",
        "_timer",
        "_wake",
    )

    def __init__(
        self,
        machine: Machine[In, Out, Effect],
        driver: Driver[In, Out, Effect],
        clock: Clock,
        stall_s: float = WRITE_STALL_S,
    ) -> None:
        """Nothing happens before ``run``. A frame that the peer does not take within ``stall_s`` ends the stream."""
        self._machine = machine
        self._driver = driver
        self._clock = clock
        self._wake = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._stall_s = stall_s
        self._stalled_at = math.inf
        self._is_working = self._is_over = False

    async def run(self) -> None:
        """Pump until the machine or the stream ends. Raises what reading, writing or an effect raised."""
        task = asyncio.current_task()
        failed: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._read_all())
                await self._write_all()
        except BaseExceptionGroup as errors:
            if task is not None and task.cancelling():
                raise asyncio.CancelledError from errors
            failed = next((one for one in errors.exceptions if not isinstance(one, StreamOverError)), None)
            errors.__traceback__ = None  # a frame of Python 3.11's TaskGroup holds the group, as it holds that frame
        finally:
            self._group = None
            if self._timer is not None:
                self._timer.cancel()
        # Not in the handler, and forgotten: with the group as its context, or in this frame, the error would be part of
        # a cycle, and with it the stream and its connection, until the collector comes.
        if failed is not None:
            try:
                raise failed
            finally:
                del failed

    def wake(self) -> None:
        """Something changed: ask the machine for frames."""
        self._wake.set()

    def cut(self, error: Exception | None = None) -> None:
        """End the stream at once, whatever it is blocked in; ``run`` raises ``error``, if any."""
        self.spawn(self._fail(error or StreamOverError()))

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run a coroutine beside the stream; it is cancelled with it, and its error ends it."""
        if self._group is None or self._is_over:
            work.close()
        else:
            self._group.create_task(work)

    async def _read_all(self) -> NoReturn:
        try:
            while (frame := await self._driver.read()) is not None:
                self._machine.receive(frame, self._clock.monotonic())
                self._is_working = True
                while effects := self._machine.take_effects():
                    for effect in effects:
                        await self._driver.perform(effect)
                    self._machine.work_done(self._clock.monotonic())
                    self._wake.set()
                self._is_working = False
                self._wake.set()
        finally:
            self._is_over = True
        raise StreamOverError

    async def _write_all(self) -> NoReturn:
        try:
            while True:
                self._wake.clear()
                await self._driver.prepare()
                while (frame := self._machine.next_frame(self._clock.monotonic())) is not None:
                    self._stalled_at = self._clock.monotonic() + self._stall_s
                    self._arm()
                    await self._driver.write(frame)
                    self._stalled_at = math.inf
                    await self._driver.prepare()
                if self._machine.end is not None and not self._is_working:
                    raise StreamOverError
                self._arm()
                await self._wake.wait()
        finally:
            self._is_over = True

    def _arm(self) -> None:
        """See to it that the timer fires no later than the machine wants; a timer that is early is left alone."""
        wanted = min(self._machine.get_timer(), self._stalled_at)
        if wanted == math.inf or (self._timer is not None and self._armed_for <= wanted):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = wanted
        delay_s = max(wanted - self._clock.monotonic(), _MIN_TIMER_S)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        self._machine.handle_timer(now)
        if self._machine.end is not None:
            self.cut()
        elif now >= self._stalled_at:
            self.cut(LinkDownError(f"the peer took no frame for {self._stall_s:g} s"))
        else:
            self._wake.set()
            if self._stalled_at < math.inf:
                self._arm()

    @staticmethod
    async def _fail(error: Exception) -> NoReturn:
        raise error
