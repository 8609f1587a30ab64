"""Batteries, mains and temperatures, from the kernel's files. Blocks; never raises.

Rules. A sensor that is not there says nothing: a device on mains has no battery to be low. One that is there and cannot
be read, or reads nonsense, is a fault, and its gate cannot tell; a sensor that its driver calls switched off (ENODATA)
is as good as not there. Files are regular ones, read without waiting, 64 bytes of each; more than MAX_SENSORS of a kind
are a fault.

Power, from ``power_supply/*``: batteries and UPSs that supply the system (not a wireless scanner's own, ``scope``
Device) and are ``present``; the weakest counts. The device is *fed* when a Mains, USB or Wireless supply is ``online``
and no battery discharges. Heat: the hottest of ``thermal_zone*/temp`` and ``hwmon*/temp*_input``, which the kernel
gives in thousandths of a degree Celsius.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from device.platform import Sensors

MAX_SENSORS = 256
_MAX_READ_BYTES = 64
_NUMBER = re.compile(rb"[+-]?[0-9]{1,15}")
_COLDEST_MILLI, _HOTTEST_MILLI = -100_000, 300_000
_BATTERIES = frozenset({"Battery", "UPS"})
_FEEDS = ("Mains", "USB", "Wireless")
_NOT_DISCHARGING = frozenset({"Charging", "Full", "Not charging"})
_ABSENT = frozenset({errno.ENOENT, errno.ENODATA})


@dataclass(frozen=True, slots=True)
class Reading:
    """What the sensors say: percent of the weakest battery, degrees Celsius of the hottest sensor; None if absent."""

    battery_percent: int | None = None
    is_fed: bool = False
    temperature_celsius: float | None = None
    hottest: str = ""
    power_faults: tuple[str, ...] = ()
    heat_faults: tuple[str, ...] = ()


class _FaultError(Exception):
    """A sensor that is there says nothing of use."""


def read_sensors(sensors: Sensors) -> Reading:
    """Read them all."""
    power_faults: list[str] = []
    percent, is_fed = _read_power(sensors.power_supply, power_faults)
    heat_faults: list[str] = []
    zones = _matching(sensors.thermal, "thermal_zone*", "temp", heat_faults)
    chips = _matching(sensors.hwmon, "hwmon*", "temp*_input", heat_faults)
    heats = [(heat, path) for path in (*zones, *chips) if (heat := _heat(path, heat_faults)) is not None]
    hottest = max(heats, default=None)
    return Reading(
        percent,
        is_fed,
        None if hottest is None else hottest[0] / 1000,
        "" if hottest is None else f"{hottest[1].parent.name}/{hottest[1].name}",
        tuple(power_faults),
        tuple(heat_faults),
    )


def read_text(path: Path, most_bytes: int = _MAX_READ_BYTES) -> bytes | None:
    """The beginning of a small regular file, None when it is absent; raises OSError, also for what is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        return os.read(descriptor, most_bytes)
    finally:
        os.close(descriptor)


# --- power -----------------------------------------------------------------------------------------------------------


def _read_power(root: Path, faults: list[str]) -> tuple[int | None, bool]:
    charges: list[int] = []
    is_online, is_draining = False, False
    for supply in _entries(root, "*", faults):
        try:
            kind = _word(supply / "type")
            if kind.startswith(_FEEDS):
                is_online = is_online or (_number(supply / "online") or 0) > 0
            elif _supplies(supply, kind):
                is_draining = is_draining or _word(supply / "status") not in _NOT_DISCHARGING
                charges.append(_charge(supply))
        except _FaultError as fault:
            faults.append(str(fault))
    return min(charges, default=None), is_online and not is_draining


def _supplies(supply: Path, kind: str) -> bool:
    """Whether this is a battery that the system runs from, and is there; without a type, a charge makes a battery."""
    if kind not in _BATTERIES and (kind or _read(supply / "capacity") is None):
        return False
    return _word(supply / "scope") != "Device" and _number(supply / "present") != 0


def _charge(supply: Path) -> int:
    percent = _number(supply / "capacity")
    for kind in ("energy", "charge"):
        if percent is None:
            now, full = _number(supply / f"{kind}_now"), _number(supply / f"{kind}_full")
            percent = None if now is None or not full else now * 100 // full
    if percent is None:
        raise _FaultError(f"{supply}: a battery that does not tell its charge")
    # Drivers round: a full battery may read a little more than it holds.
    if not 0 <= percent <= 110:  # see above
        raise _FaultError(f"{supply}: a charge of {percent} %")
    return min(percent, 100)


# --- heat ------------------------------------------------------------------------------------------------------------


def _heat(path: Path, faults: list[str]) -> int | None:
    try:
        if _number(path.with_name(path.name.replace("_input", "_fault"))) == 1 and path.name != "temp":
            raise _FaultError(f"{path}: its driver calls it faulty")
        milli = _number(path)
        if milli is not None and not _COLDEST_MILLI <= milli <= _HOTTEST_MILLI:
            raise _FaultError(f"{path}: {milli} thousandths of a degree")
    except _FaultError as fault:
        faults.append(str(fault))
        return None
    return milli


def _matching(root: Path, directories: str, files: str, faults: list[str]) -> list[Path]:
    return [path for directory in _entries(root, directories, faults) for path in _entries(directory, files, faults)]


# --- files -----------------------------------------------------------------------------------------------------------


def _entries(root: Path, pattern: str, faults: list[str]) -> list[Path]:
    """What is in a directory, by name; an absent directory has nothing in it."""
    matches = re.compile(pattern.replace("*", ".*")).fullmatch
    try:
        found = sorted(path for path in root.iterdir() if matches(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        faults.append(f"{root}: {error.strerror}")
        return []
    if len(found) > MAX_SENSORS:
        faults.append(f"{root}: {len(found)} entries, at most {MAX_SENSORS} are read")
    return found[:MAX_SENSORS]


def _number(path: Path) -> int | None:
    content = _read(path)
    if content is None:
        return None
    if not _NUMBER.fullmatch(content):
        raise _FaultError(f"{path}: not a number")
    return int(content)


def _word(path: Path) -> str:
    """A word of the kernel's; empty where it says none."""
    return (_read(path) or b"").decode(errors="replace")


def _read(path: Path) -> bytes | None:
    try:
        content = read_text(path)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise _FaultError(f"{path}: {error.strerror}") from error
    return None if content is None else content.strip()
