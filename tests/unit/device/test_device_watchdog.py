"""The watchdog device, on a FIFO that takes its writes and an ioctl that answers as drivers do (D3)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

import pytest

from device.petting import systemd_watchdog_s
from device.watchdog import Watchdog, WatchdogError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# _IOWR('W', 6, int) and _IOR('W', 7, int) of linux/watchdog.h on x86 and ARM.
SETTIMEOUT, GETTIMEOUT = 0xC0045706, 0x80045707


class Driver:
    """Grants at most ``most_s``; knows the requests in ``knows``."""

    def __init__(self, most_s: int, knows: tuple[int, ...] = (SETTIMEOUT, GETTIMEOUT)) -> None:
        self.most_s, self.knows = most_s, knows
        self.asked: list[tuple[int, int]] = []

    def ioctl(self, _descriptor: int, request: int, buffer: bytearray) -> int:
        [argument] = struct.unpack("i", buffer)
        self.asked.append((request, argument))
        if request not in self.knows:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        buffer[:] = struct.pack("i", min(argument, self.most_s) if request == SETTIMEOUT else self.most_s)
        return 0


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "watchdog"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path, reader
    os.close(reader)


def drive(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> Driver:
    monkeypatch.setattr(fcntl, "ioctl", driver.ioctl)
    return driver


def test_pets_and_is_disarmed_by_the_magic_letter(fifo: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    path, reader = fifo
    driver = drive(monkeypatch, Driver(most_s=100))
    dog = Watchdog(path, 60.0)
    assert driver.asked == [(SETTIMEOUT, 60)]
    dog.pet()
    dog.pet()
    assert os.read(reader, 100) == b"\0\0"
    dog.disarm()
    assert os.read(reader, 100) == b"V"
    assert os.read(reader, 100) == b""  # closed


def test_hardware_that_cannot_wait_that_long_is_named(fifo: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    drive(monkeypatch, Driver(most_s=16))
    with pytest.raises(WatchdogError, match=r"watchdog_s = 16"):
        Watchdog(fifo[0], 60.0)


def test_a_fixed_timeout_is_read(fifo: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive(monkeypatch, Driver(most_s=8, knows=(GETTIMEOUT,)))
    with pytest.raises(WatchdogError, match=r"resets after 8 s"):
        Watchdog(fifo[0], 60.0)
    assert [request for request, _ in driver.asked] == [SETTIMEOUT, GETTIMEOUT]


def test_a_device_that_somebody_holds_is_named(tmp_path: Path) -> None:
    path = tmp_path / "watchdog"
    os.mkfifo(path)  # nobody reads it: opening fails
    with pytest.raises(WatchdogError, match=r"watchdog: .*RuntimeWatchdogSec"):
        Watchdog(path, 60.0)


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, float("inf")),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, float("inf")),
        ({"WATCHDOG_USEC": "0"}, float("inf")),
        ({"WATCHDOG_USEC": "soon"}, float("inf")),
    ],
)
def test_the_patience_of_systemd(environment: dict[str, str], seconds: float) -> None:
    assert systemd_watchdog_s(environment) == seconds
