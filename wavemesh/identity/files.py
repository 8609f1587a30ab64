"""The files of a node's identity, and how a renewed pair takes the place of the old one so that every cut is harmless.

    identity/ca.crt                       the fleet's root
    identity/node.key, node.crt           the pair, as a ceremony leaves it
    identity/current                      once renewed: the name of the directory below that has the pair in use
    identity/pair-SERIAL/node.key, .crt   a renewed pair; ``current`` switches to it when both are durable

Installing: directory, key, certificate, each flushed; then ``current`` in one rename; then the old pair is removed. Cut
before the rename the old pair is whole and in use, after it the new one. What a cut leaves lying about is removed by
the next installation.

A key's file holds the key, or refers to one in a TPM (``keys.py``). As nothing of such a key stays in the TPM, removing
the file is its end, and what is said of cuts is true of it too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.runtime.durable import Disk

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
    before = pair_directory(directory)
    pair = directory / f"pair-{name}"
    if pair == before:
        return
    disk.make_dir(pair)
    disk.write_atomic(pair / KEY_FILE, key_data, PRIVATE_MODE)
    disk.write_atomic(pair / CERTIFICATE_FILE, chain_pem, PUBLIC_MODE)
    disk.write_atomic(directory / CURRENT_FILE, f"{pair.name}\n".encode(), PUBLIC_MODE)
    _remove_others(directory, pair, disk)


def _remove_others(directory: Path, in_use: Path, disk: Disk) -> None:
    """Remove every pair but the one in use."""
    for name in (KEY_FILE, CERTIFICATE_FILE):
        disk.unlink(directory / name)
    for other in directory.glob("pair-*"):
        if other == in_use or not _PAIR.fullmatch(other.name):
            continue
        for file in other.iterdir():
            disk.unlink(file)
        disk.remove_dir(other)
    disk.fsync_dir(directory)
