"""How a program's main coroutine is run."""

from __future__ import annotations

import asyncio
import builtins
import gc
import os
import subprocess
import sys
from typing import Any

import pytest

from wavemesh.runtime.grpc import MALLOC_ARENAS, YOUNG_OBJECTS, run


async def _seen() -> tuple[int, str]:
    return gc.get_threshold()[0], type(asyncio.get_running_loop()).__module__


def test_a_program_collects_cycles_seldom_and_leaves_things_as_they_were() -> None:
    before = gc.get_threshold()
    assert run(_seen()) == (YOUNG_OBJECTS, "uvloop")
    assert gc.get_threshold() == before


def test_a_device_does_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "uvloop":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    threshold, loop = run(_seen())
    assert threshold == YOUNG_OBJECTS
    assert loop != "uvloop"


POOLS = """
import ctypes, sys, threading
from wavemesh.runtime.grpc import run

THREADS = 12

async def main():
    held, all_here = [], threading.Barrier(THREADS)

    def allocate():
        held.append(bytes(4096))  # too large for Python's own pools, too small for a mapping of its own
        all_here.wait()

    threads = [threading.Thread(target=allocate) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    libc = ctypes.CDLL(None)
    libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
    libc.fflush(None)

run(main())
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="pools are glibc's")
@pytest.mark.parametrize(("setting", "most"), [({}, MALLOC_ARENAS), ({"MALLOC_ARENA_MAX": "5"}, 5)])
def test_threads_share_few_pools_of_memory(setting: dict[str, str], most: int) -> None:
    """M6: what one connection gave back the next one finds, on whichever thread; an operator's word goes first."""
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | setting
    command = [sys.executable, "-c", POOLS]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=50, env=environment)
    assert done.stdout.count("<heap nr=") == most
