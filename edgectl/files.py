"""Reading files named on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgectl.exits import UsageError

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES = 4 * 1024 * 1024


def read_file(path: Path) -> bytes:
    """The file's bytes; raises UsageError when it cannot be read or is beyond MAX_FILE_BYTES."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        msg = f"{path}: {exc.strerror}"
        raise UsageError(msg) from exc
    if len(data) > MAX_FILE_BYTES:
        msg = f"{path}: larger than {MAX_FILE_BYTES} bytes; is it the right file?"
        raise UsageError(msg)
    return data
