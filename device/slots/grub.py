"""The boot environment in a GRUB environment block, as ``grub-editenv``, ``load_env`` and ``save_env`` keep it.

Format (GRUB manual, "Environment block"; grub-core/lib/envblk.c): exactly 1024 bytes; a first line of signature; lines
``name=value`` in which a backslash quotes the next character; lines that begin with ``#`` mean nothing, and ``#`` fills
the rest.

Layout. Our variables and a comment fill the first sector of 512 bytes to its end; the variables of others follow in the
second. So a change of ours, and GRUB's own ``save_env`` of ours, each is the write of one sector.

Rules. The file is written in place, because GRUB reads a file system without replaying its journal: after a rename and
a power cut it may go on seeing the old file, which then names a slot that is being overwritten (ADR 15). A sector is
written whole or not at all. Only where the second sector must change too (others' variables came or went, by another
program) is the file replaced. What others keep in the block stays there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from device.bootenv import BootEnvironment, BootEnvironmentError
from device.slots.environments import StoredEnvironment
from device.slots.variables import PREFIX, from_variables, to_variables
from wavemesh.runtime.durable import SECTOR_BYTES, disk_errors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from wavemesh.runtime.durable import Disk

BLOCK_BYTES = 2 * SECTOR_BYTES
SIGNATURE = b"# GRUB Environment Block\n"


class GrubBootControl(StoredEnvironment):
    """One environment block in a file."""

    def __init__(self, path: Path, disk: Disk, *, redundant_bootloader: bool = False) -> None:
        """``path`` is the ``grubenv`` that the GRUB of this device loads."""
        super().__init__(redundant_bootloader=redundant_bootloader)
        self._path = path
        self._disk = disk

    def read(self) -> BootEnvironment:
        """The environment on the medium; raises BootEnvironmentError, DiskFaultError."""
        with disk_errors(self._path):
            if not self._path.exists():
                msg = f"{self._path} is absent: is its file system mounted? python -m device.factory lays a new one"
                raise BootEnvironmentError(msg, file=str(self._path))
        return from_variables(_texts(parse(self._block(), str(self._path))), str(self._path))

    def write(self, environment: BootEnvironment) -> None:
        """Replace our variables, or lay a block where there is none; raises BootEnvironmentError, DiskFaultError."""
        before = self._block() if self._path.exists() else b""
        others = {
            name: value
            for name, value in (parse(before, str(self._path)) if before else {}).items()
            if not name.startswith(PREFIX.encode())
        }
        after = render(environment, others, str(self._path))
        if before[SECTOR_BYTES:] == after[SECTOR_BYTES:]:
            self._disk.overwrite(self._path, 0, after[:SECTOR_BYTES])
        else:
            self._disk.write_atomic(self._path, after, 0o600)

    def _block(self) -> bytes:
        with disk_errors(self._path), self._path.open("rb") as file:
            return file.read(BLOCK_BYTES + 1)


def parse(block: bytes, where: str) -> dict[bytes, bytes]:
    """All variables of a block, everybody's; raises BootEnvironmentError."""
    if len(block) != BLOCK_BYTES or not block.startswith(SIGNATURE):
        msg = f"{where}: not a GRUB environment block of {BLOCK_BYTES} bytes: look at it with grub-editenv {where} list"
        raise BootEnvironmentError(msg, file=where)
    variables: dict[bytes, bytes] = {}
    for line in _lines(block[len(SIGNATURE) :]):
        name, equals, value = line.partition(b"=")
        if equals and not line.startswith(b"#"):
            variables.setdefault(name, _unquoted(value))
    return variables


def render(environment: BootEnvironment, others: Mapping[bytes, bytes], where: str) -> bytes:
    """A block with our variables and those of others; raises BootEnvironmentError when they do not fit."""
    ours = {name.encode(): value.encode() for name, value in to_variables(environment).items()}
    first = SIGNATURE + b"".join(map(_line, ours.items()))
    first += b"#" * (SECTOR_BYTES - len(first) - 1) + b"\n"
    second = b"".join(map(_line, others.items()))
    if len(second) > SECTOR_BYTES:
        msg = f"{where}: the variables of others take {len(second)} bytes, {SECTOR_BYTES} are free: remove some"
        raise BootEnvironmentError(msg, file=where)
    return first + second.ljust(SECTOR_BYTES, b"#")


def _lines(text: bytes) -> list[bytes]:
    """Lines of which a quoted line feed is no end; an unended last one is padding or torn, and no variable."""
    lines, line, at = [], bytearray(), 0
    while at < len(text):
        if text[at] == ord("\\"):
            line += text[at : at + 2]
            at += 2
            continue
        if text[at] == ord("\n"):
            lines.append(bytes(line))
            line.clear()
        else:
            line.append(text[at])
        at += 1
    return lines


def _line(variable: tuple[bytes, bytes]) -> bytes:
    name, value = variable
    return name + b"=" + value.replace(b"\\", b"\\\\").replace(b"\n", b"\\\n") + b"\n"


def _unquoted(value: bytes) -> bytes:
    out, at = bytearray(), 0
    while at < len(value):
        at += value[at] == ord("\\")
        out += value[at : at + 1]
        at += 1
    return bytes(out)


def _texts(variables: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in variables.items()}
