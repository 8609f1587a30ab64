"""A disk that loses power before its nth durable step; what the medium has lost then is for a subclass to say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from pathlib import Path


class PowerCutError(BaseException):
    """The power went."""


class StoppingDisk(Disk):
    """Does ``steps`` steps, then none any more."""

    def __init__(self, steps: int) -> None:
        self.steps_left = steps

    def _step(self) -> None:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise PowerCutError

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        self._step()
        super().write(descriptor, data, path)

    def fsync(self, descriptor: int, path: Path) -> None:
        self._step()
        super().fsync(descriptor, path)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)

    def remove_dir(self, directory: Path) -> None:
        self._step()
        super().remove_dir(directory)

    def fsync_dir(self, directory: Path) -> None:
        self._step()
        super().fsync_dir(directory)
