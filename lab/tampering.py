"""Falsifies one fact behind everybody's back, to see that the checker finds it.

``limit`` is not here: there the wave simply runs with a swap limit above the one that the checker was told.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from lab.policies import RELEASE
from lab.provision import image
from lab.scenario import Ending, Scenario, Tamper

if TYPE_CHECKING:
    from lab.topology import Lab

RAISED_LIMIT = 5
_STRETCH = 4096


def tamper(lab: Lab, scenario: Scenario, mode: Tamper | None) -> None:
    """Do it; nothing may run any more."""
    victim = next(device for device, expected in scenario.expected.items() if expected.ending is Ending.UPDATED)
    if mode is Tamper.SLOT:
        with (lab.device_dir(victim) / "slots" / "B.img").open("r+b") as file:
            middle = image(lab, RELEASE).stat().st_size // 2
            file.seek(middle)
            before = file.read(_STRETCH)
            file.seek(middle)
            file.write(bytes(byte ^ 0xFF for byte in before))
    elif mode is Tamper.REPORT:
        (path,) = (lab.control_dir / "state").glob("*.sqlite")
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("DELETE FROM outcomes WHERE device LIKE ?", (f"%/device/{victim}",))
        connection.close()
