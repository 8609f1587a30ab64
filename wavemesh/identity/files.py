"""The files of a node's identity, and how a renewed pair takes the place of the old one so that every cut is harmless.

    identity/ca.crt                       the fleet's root
    identity/node.key, node.crt           the pair, as a ceremony leaves it
    identity/current                      once renewed: the name of the directory below that has the pair in use
    identity/pair-SERIAL/node.key, .crt   a renewed pair; ``current`` switches to it when both are durable

Installing: directory, key, certificate, each flushed; then ``current`` in one rename; then the old pair is removed. Cut
before the rename the old pair is whole and in use, after it the new one. What a cut leaves lying about, a key that was
never used or one that has retired, is removed at the next start (``sweep_pairs``) or by the next installation. Whoever
installs or sweeps holds a lock on the directory, so that a ceremony beside a node that starts loses nothing.

A key's file holds the key, or refers to one in a TPM (``keys.py``). As nothing of such a key stays in the TPM, removing
the file is its end, and what is said of cuts is true of it too.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wavemesh.errors import LocalError
from wavemesh.runtime.durable import DiskFaultError, disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wavemesh.runtime.durable import Disk

_LOG = logging.getLogger(__name__)

KEY_FILE = "node.key"
CERTIFICATE_FILE = "node.crt"
CA_FILE = "ca.crt"
CURRENT_FILE = "current"
PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
_PAIR = re.compile(r"pair-[0-9a-f]{1,64}")


class IdentitySwitchError(LocalError):
    """The file that names the pair in use says nothing that could be one."""

    reason = "IDENTITY_SWITCH"


def pair_directory(directory: Path) -> Path:
    """Where the key and certificate in use are; raises IdentitySwitchError."""
    try:
        name = (directory / CURRENT_FILE).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return directory
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read {directory / CURRENT_FILE}: {error}; it names the directory of the pair in use"
        raise IdentitySwitchError(msg) from error
    if not _PAIR.fullmatch(name):
        msg = f"{directory / CURRENT_FILE} names {name[:80]!r}, not a directory pair-SERIAL; enrol the node again"
        raise IdentitySwitchError(msg)
    return directory / name


def install_pair(directory: Path, name: str, key_data: bytes, chain_pem: bytes, disk: Disk) -> None:
    """Make that key and certificate chain the pair in use; ``name`` is the serial in hex. Raises DiskFaultError."""
    with _alone(directory, fcntl.LOCK_EX):
        before = pair_directory(directory)
        pair = directory / f"pair-{name}"
        if pair == before:
            return
        disk.make_dir(pair)
        disk.write_atomic(pair / KEY_FILE, key_data, PRIVATE_MODE)
        disk.write_atomic(pair / CERTIFICATE_FILE, chain_pem, PUBLIC_MODE)
        disk.write_atomic(directory / CURRENT_FILE, f"{pair.name}\n".encode(), PUBLIC_MODE)
        _remove(_others(directory, pair), directory, disk)


def sweep_pairs(directory: Path, disk: Disk) -> None:
    """Remove what installations that were cut have left, never the pair in use. Call it once that one was read.

    A node runs without this: what cannot be removed now, or is being installed by somebody else, is left and logged.
    Raises IdentitySwitchError.
    """
    try:
        with _alone(directory, fcntl.LOCK_EX | fcntl.LOCK_NB):
            left = _others(directory, pair_directory(directory))
            if left:
                _remove(left, directory, disk)
                _LOG.info("removed what a cut renewal left: %s", ", ".join(path.name for path in left))
    except DiskFaultError as error:
        _LOG.warning("what a cut renewal left stays until the next start: %s", error)


@contextmanager
def _alone(directory: Path, operation: int) -> Iterator[None]:
    """Hold the lock of the directory; raises DiskFaultError, also when ``operation`` does not wait for it."""
    with disk_errors(directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with disk_errors(directory):
            fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def _others(directory: Path, in_use: Path) -> list[Path]:
    """What belongs to no pair but the one in use, in the order in which it is removed."""
    first = [] if in_use == directory else [directory / KEY_FILE, directory / CERTIFICATE_FILE]
    files = [path for path in (*first, directory / f"{CURRENT_FILE}.tmp") if path.exists()]
    pairs = [path for path in sorted(directory.glob("pair-*")) if _PAIR.fullmatch(path.name) and path != in_use]
    return [*files, *(path for path in pairs if path.is_dir() and not path.is_symlink())]


def _remove(paths: list[Path], directory: Path, disk: Disk) -> None:
    """Remove files and directories of ``directory``, durably."""
    for path in paths:
        if path.is_dir():
            disk.remove_tree(path)
        else:
            disk.unlink(path)
    disk.fsync_dir(directory)
