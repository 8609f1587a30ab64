"""The boot environment in U-Boot's, kept in two copies as ``fw_env.config`` describes them.

Format (U-Boot env/common.c, libubootenv): CRC-32 of the data, native byte order; one byte that counts writes; the data:
``name=value`` ended by NUL, an empty string ends all. Of two copies whose CRC is right the one with the higher count is
in use, 0 being higher than 255. ``fw_env.config`` has a line ``DEVICE OFFSET SIZE`` for each copy; a relative DEVICE is
one beside the file, so that a directory can be moved with all it has (libubootenv's tools must be run there).

Rules. Only the copy that is not in use is written, in place, then flushed: a cut leaves the other, which is the state
before. A single copy is refused, and so are raw MTD devices, which want erasing: put the environment on a block device
or in files. What others keep in the environment stays there.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from device.bootenv import BootEnvironment, BootEnvironmentError
from device.slots.environments import StoredEnvironment
from device.slots.variables import PREFIX, from_variables, to_variables
from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from wavemesh.runtime.durable import Disk

MAX_CONFIG_BYTES = 64 * 1024
MAX_COPY_BYTES = 1024 * 1024
MIN_COPY_BYTES = 512
FILE_COPY_BYTES = 16 * 1024
_HEADER = struct.Struct("=IB")
_MAX_COUNT = 255


@dataclass(frozen=True, slots=True)
class Copy:
    """Where one copy is; a negative offset counts from the end of the device."""

    path: Path
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Content:
    """What a copy with a right CRC holds."""

    count: int
    variables: dict[bytes, bytes]


class UbootBootControl(StoredEnvironment):
    """Two copies of one environment."""

    def __init__(self, config: Path, disk: Disk, *, redundant_bootloader: bool = False) -> None:
        """``config`` is the ``fw_env.config`` of this device; it is read with every use, as libubootenv does."""
        super().__init__(redundant_bootloader=redundant_bootloader)
        self._config = config
        self._disk = disk

    def lay(self, environment: BootEnvironment) -> None:
        """The first one of a new device; where no ``fw_env.config`` is, two copies in a file beside it are made."""
        if not self._config.exists():
            file = self._config.with_name("uboot-env")
            self._disk.make_dir(file.parent)
            self._disk.write_atomic(file, bytes(2 * FILE_COPY_BYTES), 0o644)
            lines = (f"{file.name} {offset:#x} {FILE_COPY_BYTES:#x}\n" for offset in (0, FILE_COPY_BYTES))
            self._disk.write_atomic(self._config, "".join(lines).encode(), 0o644)
        self.write(environment)

    def read(self) -> BootEnvironment:
        """The environment of the copy in use; raises BootEnvironmentError, DiskFaultError."""
        if not self._config.exists():
            msg = f"{self._config} is absent; equip the device first: python -m device.factory --dir DIR"
            raise BootEnvironmentError(msg, file=str(self._config))
        copies = read_config(self._config)
        contents = [self._content(copy) for copy in copies]
        content = contents[in_use(contents)]
        where = f"{copies[0].path} ({self._config})"
        if content is None:
            msg = f"{where}: no copy of the environment has a right CRC: look at it with fw_printenv -c {self._config}"
            raise BootEnvironmentError(msg, file=str(self._config))
        return from_variables(_texts(content.variables), where)

    def write(self, environment: BootEnvironment) -> None:
        """Write the copy that is not in use; raises BootEnvironmentError, DiskFaultError."""
        copies = read_config(self._config)
        contents = [self._content(copy) for copy in copies]
        current = in_use(contents)
        before = contents[current] or Content(0, {})
        target = copies[1 - current]
        others = {name: value for name, value in before.variables.items() if not name.startswith(PREFIX.encode())}
        ours = {name.encode(): value.encode() for name, value in to_variables(environment).items()}
        after = Content((before.count + 1) % (_MAX_COUNT + 1), {**others, **ours})
        self._disk.overwrite(target.path, self._offset(target), render(after, target.size_bytes, str(target.path)))

    def _content(self, copy: Copy) -> Content | None:
        with disk_errors(copy.path), copy.path.open("rb") as file:
            file.seek(self._offset(copy))
            return parse(file.read(copy.size_bytes), copy.size_bytes)

    def _offset(self, copy: Copy) -> int:
        if copy.offset >= 0:
            return copy.offset
        with disk_errors(copy.path), copy.path.open("rb") as file:
            return file.seek(0, os.SEEK_END) + copy.offset


def read_config(path: Path) -> tuple[Copy, Copy]:
    """The two copies that a ``fw_env.config`` names; raises BootEnvironmentError, DiskFaultError."""
    with disk_errors(path), path.open("rb") as file:
        text = file.read(MAX_CONFIG_BYTES).decode("utf-8", errors="replace")
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        first, second = (
            Copy(path.parent / device, int(offset, 0), int(size, 16)) for device, offset, size, *_ in lines
        )
    except ValueError as error:
        msg = f"{path}: two lines DEVICE OFFSET SIZE are needed, one for each copy ({error})"
        raise BootEnvironmentError(msg, file=str(path)) from error
    if first.size_bytes != second.size_bytes or not MIN_COPY_BYTES <= first.size_bytes <= MAX_COPY_BYTES:
        msg = f"{path}: both copies must have one size of {MIN_COPY_BYTES} to {MAX_COPY_BYTES} bytes"
        raise BootEnvironmentError(msg, file=str(path))
    if first.path == second.path and abs(first.offset - second.offset) < first.size_bytes:
        msg = f"{path}: the two copies overlap"
        raise BootEnvironmentError(msg, file=str(path))
    for copy in (first, second):
        if copy.path.is_char_device():
            msg = f"{path}: {copy.path} is no block device: raw MTD is not supported"
            raise BootEnvironmentError(msg, file=str(path))
    return first, second


def in_use(contents: list[Content | None]) -> int:
    """Which of the two copies counts; the first one when neither is whole."""
    first, second = contents
    if first is None or second is None:
        return int(first is None and second is not None)
    if {first.count, second.count} == {0, _MAX_COUNT}:
        return int(second.count == 0)
    return int(second.count > first.count)


def parse(copy: bytes, size_bytes: int) -> Content | None:
    """A copy's content, None when it is short or its CRC is wrong."""
    if len(copy) != size_bytes:
        return None
    crc, count = _HEADER.unpack_from(copy)
    data = copy[_HEADER.size :]
    if zlib.crc32(data) != crc:
        return None
    variables: dict[bytes, bytes] = {}
    for text in data.partition(b"\0\0")[0].split(b"\0"):
        name, equals, value = text.partition(b"=")
        if equals:
            variables[name] = value
    return Content(count, variables)


def render(content: Content, size_bytes: int, where: str) -> bytes:
    """The bytes of a copy; raises BootEnvironmentError when it is too small."""
    data = b"".join(name + b"=" + value + b"\0" for name, value in content.variables.items()) + b"\0"
    room = size_bytes - _HEADER.size
    if len(data) > room:
        msg = f"{where}: the environment takes {len(data)} bytes, a copy has {room}"
        raise BootEnvironmentError(msg, file=where)
    data = data.ljust(room, b"\0")
    return _HEADER.pack(zlib.crc32(data), content.count) + data


def _texts(variables: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in variables.items()}
