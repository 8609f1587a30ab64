"""Tells whoever watches the agent that its event loop turns: the board's watchdog, and systemd where it runs us.

systemd says in ``WATCHDOG_USEC`` how long it waits (sd_watchdog_enabled(3)); the less patient of the two sets the pace.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from device.platform import Power

PETS_PER_WATCHDOG = 4


async def keep_petting(power: Power, watchdog_s: float) -> None:
    """Pet both until cancelled; the first pet also says to systemd that the agent is there."""
    interval_s = min(watchdog_s, systemd_watchdog_s(os.environ)) / PETS_PER_WATCHDOG
    _notify_systemd(b"READY=1")
    while True:
        power.pet()
        _notify_systemd(b"WATCHDOG=1")
        await asyncio.sleep(interval_s)


def systemd_watchdog_s(environment: Mapping[str, str]) -> float:
    """How long systemd waits for a pet, seconds; infinite when it does not wait for ours."""
    wanted, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not wanted.isdecimal() or int(wanted) == 0 or (pid and pid != str(os.getpid())):
        return float("inf")
    return int(wanted) / 1_000_000


def _notify_systemd(message: bytes) -> None:
    """sd_notify(3), without its library; a systemd that is too busy to listen must not hold up the event loop."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
        try:
            channel.sendto(message, address.replace("@", "\0", 1))
        except OSError:
            return
