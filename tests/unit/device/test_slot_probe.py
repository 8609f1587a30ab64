"""A slot is written and read back before its first flash, and left as it was (D2, D9)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from device.gates.medium import PROBE_BYTES, probe_medium
from wavemesh.runtime.durable import Disk

PATTERN = bytes(range(256)) * (PROBE_BYTES // 256)


def test_a_sound_medium_is_left_as_it_was(tmp_path: Path) -> None:
    for content in (b"", b"an image" * 1001):
        path = tmp_path / "B.img"
        path.write_bytes(content)
        assert probe_medium(path, Disk(), PATTERN) == ""
        assert path.read_bytes() == content


class _WatchedDisk(Disk):
    """Notes what the medium holds after each flush."""

    def __init__(self) -> None:
        self.held: list[bytes] = []

    def fsync(self, descriptor: int, path: Path) -> None:
        super().fsync(descriptor, path)
        self.held.append(path.read_bytes())


def test_the_last_whole_block_is_tried_in_place(tmp_path: Path) -> None:
    """As on a partition, which cannot grow: written, flushed, read back, and put back as it was."""
    path, disk = tmp_path / "B.img", _WatchedDisk()
    content = os.urandom(3 * PROBE_BYTES + 100)
    path.write_bytes(content)
    assert probe_medium(path, disk, PATTERN) == ""
    tried = content[: 2 * PROBE_BYTES] + PATTERN + content[3 * PROBE_BYTES :]
    assert disk.held == [tried, content]


class _ForgetfulDisk(Disk):
    """A worn-out medium: it takes what is written and keeps something else."""

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        super().write(descriptor, bytes(len(data)) if data == PATTERN else data, path)


def test_a_medium_that_keeps_something_else_is_found(tmp_path: Path) -> None:
    path = tmp_path / "B.img"
    path.write_bytes(b"image")
    assert probe_medium(path, _ForgetfulDisk(), PATTERN).startswith("does not keep what is written")
    assert path.read_bytes() == b"image"


@pytest.mark.parametrize("device", ["/dev/full", "/proc/version", "/nonexistent"])
def test_a_medium_that_refuses_writing_is_found(device: str) -> None:
    """Full, read-only, absent: the kernel's own refusals."""
    assert probe_medium(Path(device), Disk(), PATTERN).startswith("cannot be written")
