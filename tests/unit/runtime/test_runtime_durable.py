"""Durable file steps: order, atomicity, errors."""

import errno
import stat
from pathlib import Path

import pytest

from wavemesh.runtime.durable import Disk, DiskFaultError, DiskFullError, disk_errors, write_file


class Recorder(Disk):
    """A disk that notes its steps and may refuse one."""

    def __init__(self, refuse: str = "") -> None:
        self.steps: list[str] = []
        self.refuse = refuse

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name == self.refuse:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        self._step("write")
        super().write(descriptor, data, path)

    def fsync(self, descriptor: int, path: Path) -> None:
        self._step("fsync")
        super().fsync(descriptor, path)

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename")
        super().rename(source, target)

    def fsync_dir(self, directory: Path) -> None:
        self._step("fsync_dir")
        super().fsync_dir(directory)


def test_order_of_an_atomic_write(tmp_path: Path) -> None:
    """D9: temp, fsync, rename, fsync of the directory; anything else loses to a power cut."""
    disk = Recorder()
    disk.write_atomic(tmp_path / "state", b"new")
    assert disk.steps == ["write", "fsync", "rename", "fsync_dir"]
    assert (tmp_path / "state").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o600


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_failure_leaves_the_old_bytes(tmp_path: Path, step: str) -> None:
    write_file(tmp_path / "state", b"old")
    with pytest.raises(OSError, match="No space"):
        Recorder(step).write_atomic(tmp_path / "state", b"new")
    assert (tmp_path / "state").read_bytes() == b"old"
    Disk().write_atomic(tmp_path / "state", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_errors_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(DiskFaultError, match="absent"):
        Disk().write_atomic(tmp_path / "absent" / "state", b"")
    full = OSError(errno.ENOSPC, "No space left on device")

    class Full(Disk):
        def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
            with disk_errors(path):
                raise full

    with pytest.raises(DiskFullError, match="No space"):
        Full().write_atomic(tmp_path / "state", b"x")


def test_directories_and_removal(tmp_path: Path) -> None:
    disk = Recorder()
    disk.make_dir(tmp_path / "a" / "b")
    assert disk.steps == ["fsync_dir", "fsync_dir"]
    disk.write_atomic(tmp_path / "a" / "b" / "f", b"1")
    disk.remove(tmp_path / "a" / "b" / "f")
    disk.remove(tmp_path / "a" / "b" / "f")
    assert not list((tmp_path / "a" / "b").iterdir())
