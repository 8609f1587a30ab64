"""What the oracle knows of each back-end: where slots and boot environment are, and how an environment is written.

Read from the formats' own descriptions (GRUB manual, "Environment block"; U-Boot env/common.c); imports nothing of the
agent. A bootloader that keeps variables is told of them all by the names in ``_variables``.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.crashpoints.oracle import BootWords, sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GRUB_BLOCK_BYTES = 1024
GRUB_SIGNATURE = b"# GRUB Environment Block\n"
UBOOT_HEADER = struct.Struct("=IB")


@dataclass(frozen=True, slots=True)
class Formats:
    """Of one back-end: the file of its environment, and how to read it (raises ValueError, KeyError, TypeError)."""

    environment: str
    read_boot: Callable[[bytes], BootWords]
    slots_are_longer: bool


def read_simulated(content: bytes) -> BootWords:
    """``slots/bootenv.json``."""
    plain = json.loads(content)
    checksum = plain.pop("checksum")
    if sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()) != checksum:
        msg = "the checksum is wrong"
        raise ValueError(msg)
    active, previous, trial = (_boot(plain[name]) for name in ("active", "previous", "trial"))
    return _words(active, previous, trial, plain["trial"]["tries_left"] if trial else 0)


def read_grub(content: bytes) -> BootWords:
    """An environment block; none of our values needs quoting."""
    if len(content) != GRUB_BLOCK_BYTES or not content.startswith(GRUB_SIGNATURE):
        msg = "not an environment block"
        raise ValueError(msg)
    lines = [line for line in content.decode("ascii").split("\n") if not line.startswith("#")]
    return _of_variables(dict(line.split("=", 1) for line in lines if line))


def read_uboot(content: bytes) -> BootWords:
    """A file of two copies; the whole one with the higher count is in use."""
    whole = [copy for copy in uboot_copies(content) if copy is not None]
    if not whole:
        msg = "no copy has a right CRC"
        raise ValueError(msg)
    counts = {count for count, _ in whole}
    newest = 0 if counts == {0, 255} else max(counts)
    return _of_variables(next(variables for count, variables in whole if count == newest))


def uboot_copies(content: bytes) -> list[tuple[int, dict[str, str]] | None]:
    """Count and variables of each copy, None for one that is not whole."""
    half = len(content) // 2
    return [_uboot_copy(content[:half]), _uboot_copy(content[half:])]


def _uboot_copy(copy: bytes) -> tuple[int, dict[str, str]] | None:
    crc, count = UBOOT_HEADER.unpack_from(copy)
    data = copy[UBOOT_HEADER.size :]
    if zlib.crc32(data) != crc:
        return None
    texts = data.partition(b"\0\0")[0].decode("ascii").split("\0")
    return count, dict(text.split("=", 1) for text in texts if text)


def _of_variables(variables: Mapping[str, str]) -> BootWords:
    active, previous, trial = (_named(variables, name) for name in ("active", "previous", "trial"))
    return _words(active, previous, trial, int(variables["wavemesh_tries"]))


def _named(variables: Mapping[str, str], role: str) -> tuple[str, int] | None:
    slot, generation = variables[f"wavemesh_{role}"], variables[f"wavemesh_{role}_config"]
    return None if (slot, generation) == ("-", "-") else (slot, int(generation))


def _boot(value: Any) -> tuple[str, int] | None:
    return None if value is None else (value["slot"], value["config_generation"])


def _words(
    active: tuple[str, int] | None, previous: tuple[str, int] | None, trial: tuple[str, int] | None, tries_left: int
) -> BootWords:
    if active is None:
        msg = "nothing is active"
        raise ValueError(msg)
    return BootWords(active, previous, trial, tries_left)


FORMATS: Mapping[str, Formats] = {
    "simulated": Formats("slots/bootenv.json", read_simulated, slots_are_longer=False),
    "grub": Formats("slots/grubenv", read_grub, slots_are_longer=True),
    "uboot": Formats("slots/uboot-env", read_uboot, slots_are_longer=True),
}


def readers(backend: str, image_bytes: int) -> tuple[Callable[..., BootWords], Callable[..., bytes]]:
    """How to read the boot environment and a slot out of an image; ``image_bytes`` is the size of all releases."""
    formats = FORMATS[backend]

    def read_boot(image: Mapping[str, bytes | None]) -> BootWords:
        return formats.read_boot(image[formats.environment] or b"")

    def read_slot(image: Mapping[str, bytes | None], slot: str) -> bytes:
        content = image[f"slots/{slot}.img"] or b""
        return content[:image_bytes] if formats.slots_are_longer else content

    return read_boot, read_slot
