"""One thread that exists only while it is needed: an idle agent has none of its own.

Big reads, writes, hashes and flushes run here, one after the other. A cancellation is raised only after the running
step ended, so that nobody closes a file that a step still writes.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

P = ParamSpec("P")
R = TypeVar("R")


class Worker:
    """An async context that owns the thread."""

    def __init__(self) -> None:
        """Nothing is started yet."""
        self._executor: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        """Allow work."""
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="offload")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the thread; every step has ended by now."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one step in the thread."""
        if self._executor is None:
            msg = "the worker is used outside its context"
            raise RuntimeError(msg)
        step = asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *args, **kwargs))
        cancelled: asyncio.CancelledError | None = None
        while not step.done():
            try:
                await asyncio.wait([step])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            step.exception()  # seen; the cancellation is what the caller gets
            raise cancelled
        return step.result()
