"""Pairs of real images that deltas are measured on, made once and kept: two versions each, from apt, pip and npm.

kernels    consecutive Debian kernels (lab/images.py): modules, an LZ4 kernel, a changelog in gzip
wheel      a Python wheel, numpy, unpacked into ext4: large native libraries and many small files
node       a Node package, typescript, unpacked into ext4: a few very large texts
squashfs   the wheel's trees in squashfs, its blocks deflated: nothing is alike in the compressed bytes
packed     the Node package's files, each compressed by gzip or zstd, in ext4: the assets of a web server
unrelated  the Node package to the wheel: nothing in common but the file system; a whole image should win
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from lab.images import ImageError, build_kernel_images, make_ext4

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("kernels", "wheel", "node", "squashfs", "packed", "unrelated")
WHEEL, WHEELS = "numpy", ("2.1.1", "2.1.2")
PACKAGE, PACKAGES = "typescript", ("5.6.2", "5.6.3")
_WHEEL_IMAGE_BYTES = 96 * 1024 * 1024
_PACKAGE_IMAGE_BYTES = 64 * 1024 * 1024
_COMMAND_S = 300
_LEAST_COMPRESSED_BYTES = 4096
_EPOCH = "1700000000"


def pair(name: str, out: Path) -> tuple[Path, Path]:
    """The old and the new image of a pair in ``out``, made unless they are there; raises ImageError."""
    out.mkdir(parents=True, exist_ok=True)
    if name == "kernels":
        kernels = build_kernel_images(out)
        return kernels.old, kernels.new
    if name == "unrelated":
        return pair("node", out)[0], pair("wheel", out)[1]
    make = _MAKERS[name]
    paths = tuple(out / f"{name}-{version}.img" for version in _VERSIONS[name])
    for path, version in zip(paths, _VERSIONS[name], strict=True):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=out) as scratch:
                image = Path(scratch) / path.name
                make(version, Path(scratch), image)
                image.replace(path)
    return paths[0], paths[1]


def _wheel_tree(version: str, work: Path) -> Path:
    """The wheel's files, from pip."""
    pip = shutil.which("pip") or shutil.which("pip3")
    if pip is None:
        raise ImageError("images of a wheel need pip, which is not installed here")
    _run([pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", f"{WHEEL}=={version}"], work)
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "tree")  # noqa: S202 (pip has checked whose wheel it is)
    return work / "tree"


def _package_tree(version: str, work: Path) -> Path:
    """The package's files, from npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise ImageError("images of a Node package need npm, which is not installed here")
    _run([npm, "pack", "--silent", f"{PACKAGE}@{version}"], work)
    (packed,) = work.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(work / "tree", filter="data")
    return work / "tree"


def _wheel(version: str, work: Path, image: Path) -> None:
    make_ext4(_wheel_tree(version, work), image, _WHEEL_IMAGE_BYTES)


def _package(version: str, work: Path, image: Path) -> None:
    make_ext4(_package_tree(version, work), image, _PACKAGE_IMAGE_BYTES)


def _squashfs(version: str, work: Path, image: Path) -> None:
    tool = shutil.which("mksquashfs")
    if tool is None:
        raise ImageError("images in squashfs need mksquashfs, which is not installed here")
    tree = _wheel_tree(version, work)
    times = ["-all-time", _EPOCH, "-mkfs-time", _EPOCH]
    _run([tool, str(tree), str(image), "-quiet", "-no-progress", "-all-root", "-noappend", *times], work)


def _packed(version: str, work: Path, image: Path) -> None:
    """Files in turn by gzip -9 and zstd -3; small ones stay."""
    tree = _package_tree(version, work)
    large = [
        path for path in sorted(tree.rglob("*")) if path.is_file() and path.stat().st_size > _LEAST_COMPRESSED_BYTES
    ]
    for number, path in enumerate(large):
        if number % 2:
            _run(["zstd", "-q", "-3", "--rm", str(path)], work)
        else:
            _run(["gzip", "-9n", str(path)], work)
    make_ext4(tree, image, _PACKAGE_IMAGE_BYTES)


def _run(command: list[str], directory: Path) -> None:
    try:
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=_COMMAND_S)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip()[-500:]
        raise ImageError(f"{Path(command[0]).name} failed: {said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"{Path(command[0]).name}: {error}") from error


_MAKERS: dict[str, Callable[[str, Path, Path], None]] = {
    "wheel": _wheel,
    "node": _package,
    "squashfs": _squashfs,
    "packed": _packed,
}
_VERSIONS = {"wheel": WHEELS, "node": PACKAGES, "squashfs": WHEELS, "packed": PACKAGES}
