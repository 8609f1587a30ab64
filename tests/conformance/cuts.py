"""A disk that stops at a step, and a medium that then has only part of what was not flushed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.stopping_disk import StoppingDisk
from wavemesh.runtime.durable import SECTOR_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass
class _Unflushed:
    path: Path
    offset: int
    before: bytes


class TornDisk(StoppingDisk):
    """Stops before its step number ``stop`` (counted from 0).

    ``kept`` says of each sector that was written and not flushed, by its number, whether the medium has it; a rename
    whose directory was not flushed did not happen.
    """

    def __init__(self, stop: int, kept: Callable[[int], bool]) -> None:
        super().__init__(stop)
        self._kept = kept
        self._unflushed: list[_Unflushed] = []
        self._renamed: list[tuple[Path, bytes | None]] = []

    def _step(self) -> None:
        if self.steps_left == 0:
            self.lose()
        super()._step()

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        with path.open("rb") as file:
            file.seek(offset)
            before = _Unflushed(path, offset, file.read(len(data)))
        super().write(descriptor, data, path)
        self._unflushed.append(before)

    def fsync(self, descriptor: int, path: Path) -> None:
        super().fsync(descriptor, path)
        self._unflushed = [one for one in self._unflushed if one.path != path]

    def rename(self, source: Path, target: Path) -> None:
        before = target.read_bytes() if target.exists() else None
        super().rename(source, target)
        self._renamed.append((target, before))

    def fsync_dir(self, directory: Path) -> None:
        super().fsync_dir(directory)
        self._renamed = [one for one in self._renamed if one[0].parent != directory]

    def lose(self) -> None:
        """The power goes."""
        for one in self._unflushed:
            with one.path.open("r+b") as file:
                for at in range(0, len(one.before), SECTOR_BYTES):
                    if not self._kept(at // SECTOR_BYTES):
                        file.seek(one.offset + at)
                        file.write(one.before[at : at + SECTOR_BYTES])
        for target, before in reversed(self._renamed):
            if before is None:
                target.unlink()
            else:
                target.write_bytes(before)


#: Which of a write's sectors reached the medium before it was flushed.
TEARS: dict[str, Callable[[int], bool]] = {
    "none": lambda _: False,
    "all": lambda _: True,
    "first": lambda number: number == 0,
    "all but first": lambda number: number > 0,
    "every other": lambda number: number % 2 == 0,
}
