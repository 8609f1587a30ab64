"""Durable file steps: order, atomicity, errors."""

import errno
import os
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


def test_a_new_file_takes_no_mode_from_an_old_one(tmp_path: Path) -> None:
    """What lay there is removed, not opened: its mode, and whoever has it open, stay behind."""
    (tmp_path / "key").write_bytes(b"old")
    (tmp_path / "key").chmod(0o644)
    disk = Recorder()
    disk.write_new(tmp_path / "key", b"new")
    assert disk.steps == ["write", "fsync"]
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    with pytest.raises(DiskFaultError, match="exists"):
        disk.create(tmp_path / "key")


def test_a_tree_is_removed_from_below(tmp_path: Path) -> None:
    disk = Disk()
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "f").write_bytes(b"1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    disk.remove_tree(tmp_path / "a")
    disk.remove_tree(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_lengths(tmp_path: Path) -> None:
    disk, path = Disk(), tmp_path / "file"
    with os.fdopen(disk.create(path), "wb") as file:
        disk.allocate(file.fileno(), 4096, path)
        assert (path.stat().st_size, path.stat().st_blocks * 512 >= 4096) == (4096, True)
        disk.truncate(file.fileno(), 10, path)
    assert path.read_bytes() == bytes(10)
