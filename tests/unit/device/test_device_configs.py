"""Config bundles by generation: complete or not there, and known without reading them again."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from device.configs import KEPT_GENERATIONS, ConfigLabel, ConfigStore
from device.offload import Worker
from wavemesh.errors import GateError
from wavemesh.runtime.durable import Disk
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


async def pieces(content: bytes) -> AsyncIterator[memoryview]:
    """The content in two pieces."""
    half = len(content) // 2
    yield memoryview(content[:half])
    yield memoryview(content[half:])


async def put(store: ConfigStore, generation: int, content: bytes, signed: bytes | None = None) -> None:
    digest = Digest(hashlib.sha256(content if signed is None else signed).hexdigest(), len(content))
    async with Worker() as worker:
        await store.store(generation, f"1.{generation}.0", digest, pieces(content), worker)


def label(generation: int, content: bytes) -> ConfigLabel:
    return ConfigLabel(f"1.{generation}.0", hashlib.sha256(content).hexdigest(), len(content))


async def test_a_generation_is_known_once_it_is_complete(tmp_path: Path) -> None:
    store = ConfigStore(tmp_path, Disk())
    assert store.generations() == {}
    await put(store, 1, b"one")
    await put(store, 2, b"two")
    assert store.generations() == {1: label(1, b"one"), 2: label(2, b"two")}
    await put(store, 2, b"another")
    assert store.label(2) == label(2, b"another")
    assert ConfigStore(tmp_path, Disk()).generations() == store.generations()


async def test_wrong_bytes_leave_what_was_there(tmp_path: Path) -> None:
    store = ConfigStore(tmp_path, Disk())
    await put(store, 1, b"one")
    with pytest.raises(GateError, match="signed is"):
        await put(store, 1, b"one?", signed=b"one!")
    assert store.label(1) == label(1, b"one")


async def test_old_generations_go_but_those_a_boot_refers_to(tmp_path: Path) -> None:
    store = ConfigStore(tmp_path, Disk())
    for generation in range(1, KEPT_GENERATIONS + 4):
        await put(store, generation, b"content")
    store.forget(keep={1})
    kept = {1, *range(4, KEPT_GENERATIONS + 4)}
    assert set(store.generations()) == kept
    assert set(ConfigStore(tmp_path, Disk()).generations()) == kept
