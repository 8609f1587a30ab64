"""How a program's main coroutine is run."""

from __future__ import annotations

import asyncio
import builtins
import gc
from typing import TYPE_CHECKING, Any

from wavemesh.runtime.grpc import YOUNG_OBJECTS, run

if TYPE_CHECKING:
    import pytest


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
