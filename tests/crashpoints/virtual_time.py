"""An event loop whose clock jumps: nothing sleeps, nothing is ready by chance, threads do not exist.

Whenever every task waits, ``at_rest`` is asked; unless it made something ready the clock jumps to the next timer. Work
for an executor is done at once, in its turn. So one run is the same as the next.
"""

from __future__ import annotations

import asyncio
import selectors
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from contextvars import Context

MAX_TURNS = 200_000


class NeverAtRestError(AssertionError):
    """Everything waits for what will never come, or it goes round and round."""


@dataclass(slots=True)
class VirtualClock:
    """Both clocks of a device; implements ``wavemesh.runtime.clock.Clock``."""

    began_at: datetime
    elapsed_s: float = 0.0

    def now(self) -> datetime:
        return self.began_at + timedelta(seconds=self.elapsed_s)

    def monotonic(self) -> float:
        return self.elapsed_s


class _Jumping(selectors.SelectSelector):
    """Waits by moving the clock."""

    def __init__(self, clock: VirtualClock, at_rest: Callable[[], None]) -> None:
        super().__init__()
        self._clock = clock
        self._at_rest = at_rest
        self._turns = 0
        self.woken = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._turns += 1
        if self._turns > MAX_TURNS:
            msg = f"no rest after {MAX_TURNS} turns of the loop"
            raise NeverAtRestError(msg)
        if timeout is None or timeout > 0:
            self.woken = False
            self._at_rest()
            if not self.woken:
                if timeout is None:
                    msg = "every task waits, and no timer runs"
                    raise NeverAtRestError(msg)
                self._clock.elapsed_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """One boot's event loop."""

    def __init__(self, clock: VirtualClock, at_rest: Callable[[], None]) -> None:
        self._jumping = _Jumping(clock, at_rest)
        self._virtual = clock
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._virtual.elapsed_s

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]  # the stubs name the types of the callback's arguments
        self._jumping.woken = True
        return super().call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]  # the stubs promise a future of the function's type
        # What it raises, it raises here, which is where the caller waits for it.
        done = self.create_future()
        done.set_result(func(*args))
        return done
