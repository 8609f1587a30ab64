"""The model of the medium: what is durable, what may be lost, and in which mixtures (D9)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.crashpoints.cut_disk import CutDisk, DurableStep, PowerIsOffError
from tests.crashpoints.medium import AroundTheSeamError, Image, Medium, lay_image, read_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OLD: Image = {"d": None, "d/state": b"old"}


class Steps:
    """Notes each step, and what a cut there leaves when nothing that is not durable persists."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.left: list[Image] = []
        self.medium: Medium

    def before(self, step: DurableStep) -> None:
        self.kinds.append(step.kind)

    def after(self, step: DurableStep) -> None:
        self.left.append(self.medium.after_cut(lost))


def lost() -> bool:
    return False


def kept() -> bool:
    return True


def only(*numbers: int) -> Callable[[], bool]:
    """Of what is not durable, the parts of these numbers persist."""
    counted: Iterator[int] = iter(range(1_000_000))
    return lambda: next(counted) in numbers


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def disk(tmp_path: Path, steps: Steps) -> CutDisk:
    lay_image(tmp_path / "root", OLD)
    steps.medium = Medium(tmp_path / "root", OLD)
    return CutDisk(steps.medium, steps)


def test_an_atomic_write_is_all_or_nothing(tmp_path: Path, disk: CutDisk, steps: Steps) -> None:
    disk.write_atomic(tmp_path / "root" / "d" / "state", b"new")
    assert steps.kinds == ["create", "write", "fsync", "rename", "fsync_dir"]
    assert [image["d/state"] for image in steps.left] == [b"old"] * 4 + [b"new"]
    assert read_image(tmp_path / "root") == steps.left[-1] == {"d": None, "d/state": b"new"}


def test_a_new_name_and_its_bytes_are_durable_apart(tmp_path: Path, disk: CutDisk, steps: Steps) -> None:
    """A file whose name was synced and whose bytes were not is found empty, short or with zeros."""
    path = tmp_path / "root" / "d" / "new"
    descriptor = disk.create(path)
    disk.write(descriptor, b"x" * 600, path)
    disk.fsync_dir(path.parent)
    os.close(descriptor)
    medium = steps.medium
    assert medium.is_pending
    assert medium.after_cut(lost)["d/new"] == b""
    assert medium.after_cut(kept)["d/new"] == b"x" * 600
    assert medium.after_cut(only(0))["d/new"] == bytes(600), "the length came, no byte did"
    assert medium.after_cut(only(0, 2))["d/new"] == bytes(512) + b"x" * 88, "the second sector without the first"


def test_changes_of_names_persist_each_for_itself(tmp_path: Path, disk: CutDisk, steps: Steps) -> None:
    top = tmp_path / "root" / "d"
    disk.rename(top / "state", top / "state.prev")
    os.close(disk.create(top / "state"))
    disk.unlink(top / "state.prev")
    names = [{name for name in steps.medium.after_cut(only(*some)) if "/" in name} for some in ((0,), (1,), (0, 1))]
    assert names == [{"d/state.prev"}, {"d/state"}, {"d/state", "d/state.prev"}]
    assert steps.medium.after_cut(lost) == OLD
    disk.fsync_dir(top)
    assert steps.medium.after_cut(lost) == {"d": None, "d/state": b""}
    assert not steps.medium.is_pending


def test_a_directory_renamed_takes_what_is_in_it(tmp_path: Path, disk: CutDisk, steps: Steps) -> None:
    top = tmp_path / "root"
    disk.rename(top / "d", top / "e")
    disk.write_atomic(top / "e" / "state", b"new")
    assert steps.medium.after_cut(lost) == {"d": None, "d/state": b"new"}
    disk.fsync_dir(top)
    assert steps.medium.after_cut(lost) == {"e": None, "e/state": b"new"}
    disk.remove_tree(top / "e")
    assert steps.medium.after_cut(kept) == {}


def test_a_rename_into_another_directory_may_leave_both_names_or_neither(
    tmp_path: Path, disk: CutDisk, steps: Steps
) -> None:
    top = tmp_path / "root"
    disk.create_dir(top / "e")
    disk.fsync_dir(top)
    disk.rename(top / "d" / "state", top / "e" / "state")
    assert steps.medium.after_cut(lost) == {"d": None, "d/state": b"old", "e": None}
    disk.fsync_dir(top / "d")
    assert steps.medium.after_cut(lost) == {"d": None, "e": None}
    disk.fsync_dir(top / "e")
    assert steps.medium.after_cut(lost) == {"d": None, "e": None, "e/state": b"old"}


def test_what_goes_around_the_seam_is_refused(tmp_path: Path, disk: CutDisk) -> None:
    path = tmp_path / "root" / "d" / "stray"
    path.write_bytes(b"")
    with pytest.raises(AroundTheSeamError, match="stray"):
        disk.rename(path, path.with_name("state"))
    with path.open("wb") as file, pytest.raises(AroundTheSeamError, match="stray"):
        disk.fsync(file.fileno(), path)


def test_nothing_is_done_without_power(tmp_path: Path, disk: CutDisk) -> None:
    disk.is_on = False
    with pytest.raises(PowerIsOffError):
        disk.unlink(tmp_path / "root" / "d" / "state")
    assert read_image(tmp_path / "root") == OLD
