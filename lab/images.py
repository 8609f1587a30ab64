"""Firmware images to try the mesh on: a pair, old and new, that differ only in content.

Three sources, in order of preference:

* ``kernels``: two consecutive Debian kernels with busybox, each laid out by ``mke2fs -d`` as a 160 MiB ext4 file system
  with fixed UUID, hash seed and times. What differs is what Debian changed between them.
* ``library``: where apt or mke2fs cannot, two deterministic archives of this Python's standard library, the old one
  without some of the modules.
* ``small``: a few MiB of seeded bytes; for tests that count processes, not bytes.

A pair is made once and kept in a cache directory under a name that says what it is; a half-made pair is never found.
"""

from __future__ import annotations

import enum
import hashlib
import io
import os
import random
import shutil
import subprocess
import sysconfig
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from wavemesh.errors import LocalError

IMAGE_BYTES = 160 * 1024 * 1024
SMALL_IMAGE_BYTES = 3 * 1024 * 1024
KERNELS = ("6.1.0-55", "6.1.0-56")
_PACKAGE = "linux-image-{}-cloud-amd64-unsigned"
_UUID = "5f1f2a36-8d5c-4f0e-9f0b-2d6f6f6d7701"
_HASH_SEED = "0a4b1c52-6d0e-4c1b-8a53-91d8c5f3aa02"
_EPOCH_S = 1_700_000_000
_COMMAND_TIMEOUT_S = 120
_BLOCK = 1024 * 1024
_LEFT_OUT_OF_OLD = ("email", "xmlrpc", "wsgiref", "concurrent", "sqlite3")
_NEVER = ("__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "config-")


class ImageError(LocalError):
    """An image cannot be made here."""

    reason = "IMAGE"


class ImageSource(enum.Enum):
    """Where a pair comes from."""

    KERNELS = "kernels"
    LIBRARY = "library"
    SMALL = "small"
    GIVEN = "given"


@dataclass(frozen=True, slots=True)
class ImagePair:
    """Two images and where they are from."""

    old: Path
    new: Path
    source: ImageSource


def cache_directory() -> Path:
    """Where pairs are kept: under XDG_CACHE_HOME or ~/.cache, or where that is read-only with the temporary files."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = base / "wavemesh" / "images"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
    except OSError:
        pass  # read-only home: the pair is made again after the next reboot, no worse
    return Path(tempfile.gettempdir()) / f"wavemesh-images-{os.getuid()}"


def best_images(out: Path) -> ImagePair:
    """Kernels where they can be had, else the standard library."""
    try:
        return build_kernel_images(out)
    except ImageError:
        return build_library_images(out)


def build_kernel_images(out: Path) -> ImagePair:
    """Two consecutive Debian kernels as ext4 images in ``out``, made unless they are there; raises ImageError."""
    pair = _pair(out, ImageSource.KERNELS, f"debian-{KERNELS[0]}.img", f"debian-{KERNELS[1]}.img")
    if pair.old.exists() and pair.new.exists():
        return pair
    for tool in ("apt-get", "dpkg-deb", "mke2fs", "debugfs"):
        if shutil.which(tool) is None:
            raise ImageError(f"kernel images need {tool}, which is not installed here")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        work = Path(scratch)
        packages = [*(_PACKAGE.format(kernel) for kernel in KERNELS), "busybox-static"]
        _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages], work)
        (busybox,) = work.glob("busybox-static_*.deb")
        for kernel, image in zip(KERNELS, (pair.old, pair.new), strict=True):
            (package,) = work.glob(_PACKAGE.format(kernel) + "_*.deb")
            tree = work / kernel
            for archive in (package, busybox):
                _run(["dpkg-deb", "-x", str(archive), str(tree)], work)
            make_ext4(tree, work / image.name)
            shutil.rmtree(tree)
            (work / image.name).replace(image)
    return pair


def build_library_images(out: Path) -> ImagePair:
    """The standard library without and with some modules, as plain archives in ``out``, made unless they are there."""
    pair = _pair(out, ImageSource.LIBRARY, "library-old.img", "library-new.img")
    if not (pair.old.exists() and pair.new.exists()):
        out.mkdir(parents=True, exist_ok=True)
        root = Path(sysconfig.get_paths()["stdlib"])
        _archive(root, pair.old, _LEFT_OUT_OF_OLD)
        _archive(root, pair.new, ())
    return pair


def build_small_images(out: Path, size_bytes: int = SMALL_IMAGE_BYTES) -> ImagePair:
    """Two seeded images that share most of their bytes."""
    pair = _pair(out, ImageSource.SMALL, f"small-{size_bytes}-old.img", f"small-{size_bytes}-new.img")
    if not (pair.old.exists() and pair.new.exists()):
        out.mkdir(parents=True, exist_ok=True)
        seeded = random.Random(size_bytes)
        content = bytearray(seeded.randbytes(size_bytes))
        _place(pair.old, content)
        changed = size_bytes // 8
        content[changed : 2 * changed] = seeded.randbytes(changed)
        _place(pair.new, content)
    return pair


def digest_of(path: Path) -> tuple[str, int]:
    """SHA-256 in hex and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return digest.hexdigest(), path.stat().st_size


def _pair(out: Path, source: ImageSource, old: str, new: str) -> ImagePair:
    return ImagePair(out / old, out / new, source)


def _place(path: Path, content: bytes | bytearray) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def make_ext4(tree: Path, image: Path, size_bytes: int = IMAGE_BYTES) -> None:
    """Lay a tree out as ext4, the same bytes from the same tree on every machine; raises ImageError."""
    paths = sorted(tree.rglob("*"))
    for path in (tree, *paths):
        os.utime(path, (_EPOCH_S, _EPOCH_S), follow_symlinks=False)
    fixed = {"E2FSPROGS_FAKE_TIME": str(_EPOCH_S), "SOURCE_DATE_EPOCH": str(_EPOCH_S)}
    _run(
        [
            *("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-U", _UUID),
            *("-E", f"hash_seed={_HASH_SEED},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"),
            *("-d", str(tree), str(image), f"{size_bytes // 1024}k"),
        ],
        image.parent,
        fixed,
    )
    # mke2fs copies the change time of each file, which nobody can set on the tree; set it in the image.
    commands = image.with_suffix(".debugfs")
    names = ["/", *(f"/{path.relative_to(tree)}" for path in paths)]
    stamp = f"@{_EPOCH_S}"
    lines = [f'set_inode_field "{name}" {field} {stamp}' for name in names for field in ("ctime", "atime", "crtime")]
    commands.write_text("\n".join(lines) + "\n")
    _run(["debugfs", "-w", "-f", str(commands), str(image)], image.parent, fixed)
    commands.unlink()


def _archive(root: Path, image: Path, left_out: tuple[str, ...]) -> None:
    """An uncompressed archive in a fixed order with fixed owners and times, padded to whole MiB."""
    temporary = image.with_suffix(".tmp")
    with temporary.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for path in sorted(root.rglob("*.py")):
                relative = path.relative_to(root)
                if any(part.startswith(_NEVER) for part in relative.parts) or relative.parts[0] in left_out:
                    continue
                content = path.read_bytes()
                member = tarfile.TarInfo(f"lib/{relative}")
                member.size, member.mtime, member.mode = len(content), _EPOCH_S, 0o644
                archive.addfile(member, io.BytesIO(content))
        file.write(b"\0" * (-file.tell() % _BLOCK))
    temporary.replace(image)


def _run(command: list[str], directory: Path, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", **(environment or {})},
            check=False,
            capture_output=True,
            timeout=_COMMAND_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ImageError(f"{command[0]}: {exc}") from exc
    if done.returncode != 0:
        tail = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise ImageError(f"{' '.join(command[:4])} …: {tail[0]}")
