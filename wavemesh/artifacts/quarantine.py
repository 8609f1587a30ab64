"""What turned out not to be what its name says, kept aside for whoever wants to know why.

    DIR/quarantine/abcdef…-SIZE    the bytes as they were found; never served, never believed again

Rules: moving a file here is one rename, durable when it returns. A power cut leaves the file at one of the two places,
at both, or at none, and each of these is safe because whoever moves it has noted it beforehand (ADR 35). At most
``MAX_FILES`` stay, oldest go first; and all of them give way to anything that needs the room. What is kept here is for
diagnosis alone: losing it costs nobody a byte.

Synchronous; called in a thread, one call at a time. Raises DiskFaultError, DiskFullError.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from wavemesh.artifacts.digests import parse_blob_name
from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.runtime.durable import Disk
    from wavemesh.trust.statements import Digest

MAX_FILES = 8


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One file set aside: whose name it bore, how many bytes it has, and when it was last written."""

    digest: Digest
    size_bytes: int
    written_at: datetime


class Quarantine:
    """The files set aside in one directory."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        """Nothing is read before ``load``."""
        self._directory = directory
        self._disk = disk
        self._files: dict[Path, Quarantined] = {}

    def load(self) -> None:
        """Read the directory, creating it if need be; files that cannot be from here are removed."""
        self._disk.make_dir(self._directory)
        with disk_errors(self._directory):
            for path in sorted(self._directory.iterdir()):
                if parse_blob_name(path.name) is None:
                    self._disk.unlink(path)
                else:
                    self._note(path)

    def _note(self, path: Path) -> None:
        digest = parse_blob_name(path.name)
        if digest is not None:
            status = path.stat()
            self._files.pop(path, None)
            self._files[path] = Quarantined(digest, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    @property
    def files(self) -> tuple[Quarantined, ...]:
        """What is set aside, the first to go first."""
        return tuple(self._files.values())

    @property
    def used_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self._files.values())

    def take(self, path: Path) -> None:
        """Move a file here, durably, in the place of an older one of its name; one that is gone is no matter."""
        target = self._directory / path.name
        if not path.exists():
            return
        self._disk.rename(path, target)
        self._disk.fsync_dir(self._directory)
        self._disk.fsync_dir(path.parent)
        with disk_errors(target):
            self._note(target)
        while len(self._files) > MAX_FILES:
            self._drop_oldest()

    def make_room(self, excess_bytes: int) -> None:
        """Give up files, oldest first, until that many bytes are free or none is left."""
        while excess_bytes > 0 and self._files:
            excess_bytes -= self._drop_oldest()

    def _drop_oldest(self) -> int:
        path, file = next(iter(self._files.items()))
        self._disk.remove(path)
        del self._files[path]
        return file.size_bytes
