"""deploy/edge-agent.service (D10): systemd takes it, it shuts the agent in, and agent and probes work in there.

No systemd runs here as process 1. Its own analysis judges the file; the parts that take something away from a running
process (capabilities, privileges, memory that is written and executed) are put on by the same system calls.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.device_kit import HubStandIn
from tests.linux_board_kit import LinuxDevice

if TYPE_CHECKING:
    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "edge-agent.service"
# Tenths of systemd's exposure level, 0 to 100; below 50 it is called OK.
EXPOSURE_MOST = 37
# PR_SET_MDWE of linux/prctl.h: what MemoryDenyWriteExecute= does by a filter of its own.
DENY_WRITE_EXECUTE = (
    "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0; os.execv(sys.argv[1], sys.argv[1:])"
)


def service() -> dict[str, list[str]]:
    """All values of each key of [Service]."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze; .ci/run installs it")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def test_systemd_takes_it(tmp_path: Path) -> None:
    """Every key is known, and the program is there."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/python3", sys.executable))
    found = analyze("verify", "--man=no", str(unit))
    assert (found.returncode, found.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("WatchdogSec=60", "WatchdogSecs=60"))
    assert "WatchdogSecs" in analyze("verify", "--man=no", str(unit)).stderr


def test_it_shuts_the_agent_in() -> None:
    found = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MOST}", str(UNIT))
    assert found.returncode == 0, found.stdout[-200:]
    keys = service()
    assert keys["Restart"] == ["always"]
    assert float(keys["WatchdogSec"][0]) > 0
    assert not any("*" in value and not value.startswith("block-") for value in keys["DeviceAllow"])


async def test_an_update_goes_through_in_there(
    tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    """With what the unit leaves of root: probes run as nobody, contained, on the old slot and in the trial."""
    hub = HubStandIn(trust_keys, credentials, budget_mins="5")
    device = LinuxDevice(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    device.confined_by = confinement()
    device.script("lsusb", 'echo "scanner" && [ "$(id -u)" -ne 0 ] && ! touch /var/tmp/mine 2>/dev/null')
    try:
        async with hub.serving():
            hub.order()
            device.configure(hub.port)
            device.boot()
            await device.until_asked()
            device.boot()
            await hub.until(lambda: bool(hub.outcomes()))
    finally:
        device.stop()
    assert hub.words() == [("UPDATED", "", 1)]


def confinement() -> list[str]:
    """What goes before the agent's command to take away what the unit takes away."""
    keys = service()
    assert keys["NoNewPrivileges"] == keys["MemoryDenyWriteExecute"] == ["yes"]
    assert {"net", "pid", "mnt", "ipc"} <= set(keys["RestrictNamespaces"][0].split())
    assert "@mount" in keys["SystemCallFilter"][0]
    deny = [sys.executable, "-c", DENY_WRITE_EXECUTE]
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        return deny  # an ordinary user has no capability to lose
    kept = [f"+{name.removeprefix('CAP_').lower()}" for name in keys["CapabilityBoundingSet"][0].split()]
    return [setpriv, "--no-new-privs", "--bounding-set", ",".join(["-all", *kept]), *deny]
