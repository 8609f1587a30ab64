"""What boots a device, read from each back-end's files by this module's own few lines; imports no product code.

Each reader gives the same: ``active``, ``previous`` and ``trial``, each None or with ``slot`` and
``config_generation``. GRUB's block is lines of text; U-Boot's is the better of two copies, by CRC-32 and count. Raises
OSError, ValueError or KeyError where there is nothing to be read.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_GRUB_HEADER = b"# GRUB Environment Block\n"
_GRUB_BYTES = 1024
_U_BOOT_HEADER_BYTES = 5


def backend_of(device: Path) -> str:
    """What its configuration says that it boots by."""
    with (device / "config.toml").open("rb") as file:
        board = tomllib.load(file).get("board", {})
    return str(board.get("backend", "simulated"))


def read_environment(device: Path) -> dict[str, object]:
    """The boot environment, its checksum verified where it has one."""
    return _READERS[backend_of(device)](device / "slots")


def _simulated(slots: Path) -> dict[str, object]:
    content = json.loads((slots / "bootenv.json").read_bytes())
    checksum = content.pop("checksum")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    if hashlib.sha256(canonical).hexdigest() != checksum:
        raise ValueError("the checksum is wrong")
    return dict(content)


def _grub(slots: Path) -> dict[str, object]:
    block = (slots / "grubenv").read_bytes()
    if len(block) != _GRUB_BYTES or not block.startswith(_GRUB_HEADER):
        raise ValueError("not a GRUB environment block")
    return _boots(dict(line.split("=", 1) for line in block.decode().splitlines() if "=" in line))


def _u_boot(slots: Path) -> dict[str, object]:
    env = (slots / "uboot-env").read_bytes()
    half = len(env) // 2
    whole = [
        copy
        for copy in (env[:half], env[half:])
        if zlib.crc32(copy[_U_BOOT_HEADER_BYTES:]) == int.from_bytes(copy[:4], "little")
    ]
    if not whole:
        raise ValueError("no copy has a right CRC")
    counts = [copy[4] for copy in whole]
    best = whole[0] if len(whole) == 1 or (counts[0] - counts[1]) % 256 < 128 else whole[1]
    texts = best[_U_BOOT_HEADER_BYTES:].split(b"\0\0", 1)[0].decode().split("\0")
    return _boots(dict(text.split("=", 1) for text in texts))


def _boots(variables: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for role in ("active", "previous", "trial"):
        slot, config = variables[f"wavemesh_{role}"], variables[f"wavemesh_{role}_config"]
        found[role] = None if slot == "-" else {"slot": slot, "config_generation": int(config)}
    return found


# What RAUC's handler writes for a device of the lab is the same file.
_READERS: dict[str, Callable[[Path], dict[str, object]]] = {
    "simulated": _simulated,
    "grub": _grub,
    "uboot": _u_boot,
    "rauc": _simulated,
}
