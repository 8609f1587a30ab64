"""Asking what may block: a kernel file that hangs, a dead disk. The loop never waits, and nobody waits for ever.

A question runs in a thread that exists only while it is asked. Who asks waits up to a bound; what was not answered by
then goes on, is not asked a second time meanwhile, and does not keep the process from ending. Questions answer with a
value for everything that can go wrong; one that ends otherwise counts as not answered.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Questions:
    """The questions under way, by name."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self._asked: dict[str, asyncio.Future[Any]] = {}

    async def ask(self, name: str, question: Callable[[], T], bound_s: float) -> T:
        """The answer; raises TimeoutError after ``bound_s`` seconds."""
        answer: asyncio.Future[T] | None = self._asked.get(name)
        if answer is None:
            answer = self._asked[name] = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._run, args=(name, question, answer), name="asking", daemon=True).start()
        async with asyncio.timeout(bound_s):
            return await asyncio.shield(answer)

    def _run(self, name: str, question: Callable[[], T], answer: asyncio.Future[T]) -> None:
        value = question()
        with suppress(RuntimeError):  # the loop is gone, and with it everybody who asked
            answer.get_loop().call_soon_threadsafe(self._deliver, name, answer, value)

    def _deliver(self, name: str, answer: asyncio.Future[T], value: T) -> None:
        del self._asked[name]
        answer.set_result(value)
