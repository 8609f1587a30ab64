"""What others need for the same update: xdelta3, bsdiff, casync, ``zstd --patch-from``; each checked byte for byte."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.report import WrongResultError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = ("xdelta3", "bsdiff", "casync", "zstd")
_COMMAND_S = 3000


@dataclass(frozen=True, slots=True)
class Way:
    """What one way needs: bytes to move, seconds to make and to rebuild."""

    bytes: int
    make_s: float
    apply_s: float


def installed() -> list[str]:
    """The peers that are here."""
    return [name for name in NAMES if shutil.which(name) is not None]


def measure(name: str, old: Path, new: Path, work: Path) -> Way:
    """Let one peer make and rebuild; raises WrongResultError when what it rebuilds is not the new image."""
    directory = work / name
    directory.mkdir()
    try:
        return _PEERS[name](old, new, directory)
    finally:
        shutil.rmtree(directory)


def _run(*command: str) -> float:
    """Run a command to its end; returns seconds."""
    start = time.perf_counter()
    done = subprocess.run(list(command), capture_output=True, text=True, check=False, timeout=_COMMAND_S)
    if done.returncode != 0:
        raise WrongResultError(f"{' '.join(command[:3])}: {done.stderr.strip()[-300:]}")
    return time.perf_counter() - start


def check(name: str, rebuilt: Path, new: Path) -> None:
    """See that a file is the new image."""
    filecmp.clear_cache()
    if not filecmp.cmp(rebuilt, new, shallow=False):
        raise WrongResultError(f"what {name} rebuilds is not the new image")


def _patch(make: list[str], apply: list[str], work: Path, new: Path) -> Way:
    """Run both; the patch is WORK/patch, what it rebuilds WORK/out."""
    make_s = _run(*make)
    apply_s = _run(*apply)
    check(work.name, work / "out", new)
    return Way((work / "patch").stat().st_size, make_s, apply_s)


def _xdelta3(old: Path, new: Path, work: Path) -> Way:
    """At its best level, its window over the whole of the old image."""
    patch, out = work / "patch", work / "out"
    window = ["-B", str(max(old.stat().st_size, 1 << 20))]
    return _patch(
        ["xdelta3", "-e", "-9", *window, "-s", str(old), str(new), str(patch)],
        ["xdelta3", "-d", *window, "-s", str(old), str(patch), str(out)],
        work,
        new,
    )


def _bsdiff(old: Path, new: Path, work: Path) -> Way:
    patch, out = work / "patch", work / "out"
    return _patch(
        ["bsdiff", str(old), str(new), str(patch)],
        ["bspatch", str(old), str(out), str(patch)],
        work,
        new,
    )


def _zstd(old: Path, new: Path, work: Path) -> Way:
    """At -19, its window over the old image and the new one."""
    patch, out = work / "patch", work / "out"
    window = f"--long={min(max((old.stat().st_size + new.stat().st_size).bit_length(), 20), 30)}"
    return _patch(
        ["zstd", "-q", "-19", window, f"--patch-from={old}", str(new), "-o", str(patch)],
        ["zstd", "-q", "-d", window, f"--patch-from={old}", str(patch), "-o", str(out)],
        work,
        new,
    )


def _casync(old: Path, new: Path, work: Path) -> Way:
    """Chunks of its own average; what moves is the new index and the chunks that the old store lacks."""
    stores = {name: work / f"{name}.castr" for name in ("old", "new")}
    indexes = {name: work / f"{name}.caibx" for name in ("old", "new")}
    _run("casync", "make", f"--store={stores['old']}", str(indexes["old"]), str(old))
    make_s = _run("casync", "make", f"--store={stores['new']}", str(indexes["new"]), str(new))
    had = {path.relative_to(stores["old"]) for path in stores["old"].rglob("*.cacnk")}
    lacking = [path for path in stores["new"].rglob("*.cacnk") if path.relative_to(stores["new"]) not in had]
    moved = indexes["new"].stat().st_size + sum(path.stat().st_size for path in lacking)
    for path in lacking:
        place = stores["old"] / path.relative_to(stores["new"])
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
    out = work / "out"
    apply_s = _run("casync", "extract", f"--store={stores['old']}", str(indexes["new"]), str(out))
    check("casync", out, new)
    return Way(moved, make_s, apply_s)


_PEERS: dict[str, Callable[[Path, Path, Path], Way]] = {
    "xdelta3": _xdelta3,
    "bsdiff": _bsdiff,
    "casync": _casync,
    "zstd": _zstd,
}
