"""The disk under test: does each durable step for real, keeps the model of the medium beside it, and tells of both.

A *step* is one call of a primitive of ``Disk``. The observer is called before and after each; what it makes of the
medium at these moments are the crash points. Once the power is off every further step fails.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tests.crashpoints.medium import Directory, File, Medium
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class PowerIsOffError(BaseException):
    """Something went on after the end of a boot."""


@dataclass(frozen=True, slots=True)
class DurableStep:
    """One step: which primitive, on what."""

    kind: str
    path: Path


class Observer(Protocol):
    """Who looks at the medium around each step."""

    def before(self, step: DurableStep) -> None:
        """Nothing of it was done."""
        ...

    def after(self, step: DurableStep) -> None:
        """All of it was done, as programs see it."""
        ...


class CutDisk(Disk):
    """A real directory and the model of its medium."""

    def __init__(self, medium: Medium, observer: Observer) -> None:
        self.medium = medium
        self.is_on = True
        self._observer = observer

    @contextmanager
    def step(self, kind: str, path: Path) -> Iterator[None]:
        """Do one step of that kind in the block, in real and in the model."""
        if not self.is_on:
            raise PowerIsOffError(kind, path)
        step = DurableStep(kind, path)
        self._observer.before(step)
        yield
        self._observer.after(step)

    def create(self, path: Path, mode: int = 0o600) -> int:
        with self.step("create", path):
            descriptor = super().create(path, mode)
            self.medium.add(path, File())
        return descriptor

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        with self.step("write", path):
            super().write(descriptor, data, path)
            self.medium.file(path).write(offset, bytes(data))

    def truncate(self, descriptor: int, size_bytes: int, path: Path) -> None:
        with self.step("truncate", path):
            super().truncate(descriptor, size_bytes, path)
            self.medium.file(path).resize(size_bytes)

    def allocate(self, descriptor: int, size_bytes: int, path: Path) -> None:
        with self.step("allocate", path):
            # Space is what nobody looks at here; a sparse file of that length is quicker to make thousands of times.
            os.ftruncate(descriptor, size_bytes)
            self.medium.file(path).resize(size_bytes)

    def fsync(self, descriptor: int, path: Path) -> None:
        with self.step("fsync", path):
            self.medium.file(path).sync()

    def rename(self, source: Path, target: Path) -> None:
        with self.step("rename", target):
            super().rename(source, target)
            self.medium.rename(source, target)

    def unlink(self, path: Path) -> None:
        if not path.exists():
            return
        with self.step("unlink", path):
            super().unlink(path)
            self.medium.remove(path)

    def create_dir(self, directory: Path) -> None:
        if directory.exists():
            return
        with self.step("create_dir", directory):
            super().create_dir(directory)
            self.medium.add(directory, Directory())

    def remove_dir(self, directory: Path) -> None:
        with self.step("remove_dir", directory):
            super().remove_dir(directory)
            self.medium.remove(directory)

    def fsync_dir(self, directory: Path) -> None:
        with self.step("fsync_dir", directory):
            self.medium.directory(directory).sync()
