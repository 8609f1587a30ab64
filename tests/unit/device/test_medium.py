"""Reading from the medium: any range, with O_DIRECT and without."""

from __future__ import annotations

import errno
import hashlib
import os
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from device.slots.medium import BUFFER_BYTES, MediumReader, reading_medium
from wavemesh.runtime.durable import DiskFaultError

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = Random(9).randbytes(2 * BUFFER_BYTES + 5000)


@pytest.fixture(params=["direct", "through the cache"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    real_open = os.open

    def without_direct(path: Path, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *rest)

    if request.param == "through the cache":
        monkeypatch.setattr("device.slots.medium.os.open", without_direct)
    file = tmp_path / "slot.img"
    file.write_bytes(CONTENT)
    return file


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, len(CONTENT)), (0, 1), (4095, 4097), (1, 2 * BUFFER_BYTES), (BUFFER_BYTES, BUFFER_BYTES), (5000, 1 << 30)],
)
def test_any_range_is_hashed(path: Path, start: int, end: int) -> None:
    hasher = hashlib.sha256()
    with reading_medium(path) as medium:
        medium.hash_into(hasher, start, end)
    assert hasher.hexdigest() == hashlib.sha256(CONTENT[start:end]).hexdigest()


def test_what_was_flushed_after_it_was_opened_is_seen(path: Path) -> None:
    with reading_medium(path) as medium, path.open("r+b") as file:
        first = hashlib.sha256()
        medium.hash_into(first, 0, 4096)
        file.write(b"other")
        file.flush()
        os.fsync(file.fileno())
        second = hashlib.sha256()
        medium.hash_into(second, 0, 5)
    assert first.hexdigest() == hashlib.sha256(CONTENT[:4096]).hexdigest()
    assert second.hexdigest() == hashlib.sha256(b"other").hexdigest()


def test_an_absent_file_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(DiskFaultError):
        MediumReader(tmp_path / "nothing")
