"""Progress of long work: a bar on stderr while somebody watches, nothing otherwise. Never on stdout, which is data.

with bar("copying firmware-v3.9.0.img", size_bytes) as advance:
...
advance(len(piece))
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_PIECE_BYTES = 4 * 1024 * 1024


def is_watched() -> bool:
    """Whether a person sees stderr."""
    return sys.stderr.isatty()


@contextmanager
def bar(label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar for that many bytes; call what is yielded with how many more are done. It is gone at the end."""
    if not is_watched():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total_bytes)
        yield lambda count: progress.update(task, advance=count)


def digest_file(path: Path) -> str:
    """SHA-256 of a file, lower-case hex, with a bar; raises OSError."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file, bar(f"digesting {path.name}", path.stat().st_size) as advance:
        while piece := file.read(_PIECE_BYTES):
            sha256.update(piece)
            advance(len(piece))
    return sha256.hexdigest()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, with a bar; raises OSError. Durable, or in place of another, is the caller's business."""
    with (
        source.open("rb") as read,
        target.open("wb") as written,
        bar(f"copying {source.name}", source.stat().st_size) as advance,
    ):
        while piece := read.read(_PIECE_BYTES):
            written.write(piece)
            advance(len(piece))
