"""An idle agent is small: memory and import beside a bare ``grpc.aio``, threads, files, and what it must not import.

`python -m bench agent` measures the same more carefully; the budgets here have room for a busy machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.__main__ import main
from bench.agent import floor_cost, import_times
from bench.cost import cost_of
from tests.device_directory import HUB, DeviceDirectory
from tests.device_kit import HubStandIn
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

MEMORY_RATIO_MOST = 2.2
IMPORT_RATIO_MOST = 8.0
THREADS_BEYOND_MOST = 1
# Beyond those of the floor: its log, its lock, its socket, and the board's channel.
FILES_BEYOND_MOST = 6
# Needed in a server, on another board, in another process, or when something is to be done.
NOT_WHEN_IDLE = (
    *(
        "grpc_health.v1",
        "grpc_reflection.v1alpha",
        "grpc_status",
        "opentelemetry",
        "pkcs11",
        "tpm2_pytss",
        "jeepney",
        "dbus_fast",
    ),
    *("sqlite3", "aiosqlite", "aiohttp", "uvloop", "yaml", "ctypes", "multiprocessing", "requests", "tuf.ngclient"),
    *("http.client", "xml", "wavemesh.client", "wavemesh.v1.operator_pb2", "wavemesh.session.downstream"),
    *("device.supervisor", "device.firmware", "device.factory", "device.linux_board", "device.probe_launcher"),
    *("device.rehearsal", "control", "superhub", "storehub", "edgectl", "lab"),
)

pytestmark = pytest.mark.timeout(90)


async def test_an_idle_agent_is_within_its_budget(
    tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    hub = HubStandIn(trust_keys, credentials)
    device = DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    device.python_path = [Path(__file__).parents[1] / "faults"]
    try:
        async with hub.serving():
            device.configure(hub.port)
            device.start()
            await hub.until_state(UpdateState.IDLE)
            pid = (await device.tell("status"))["agent_pid"]
            identity = device.path / "identity"
            floor, connected = await asyncio.to_thread(floor_cost, f"127.0.0.1:{hub.port}", identity, HUB.dns_name)
            agent = cost_of(pid)
            os.kill(pid, signal.SIGUSR2)
            modules = device.path / "run" / "modules"
            await hub.until(modules.exists)
    finally:
        device.stop()
    assert agent.rss_kib <= MEMORY_RATIO_MOST * floor.rss_kib
    assert agent.threads <= connected.threads + THREADS_BEYOND_MOST
    assert agent.files <= connected.files + FILES_BEYOND_MOST
    loaded = set(modules.read_text().split())
    assert {name for name in loaded for root in NOT_WHEN_IDLE if name == root or name.startswith(f"{root}.")} == set()
    assert "device.agent" in loaded


def test_importing_it_is_within_its_budget() -> None:
    ours_s, floor_s = import_times(rounds=1)
    assert ours_s <= IMPORT_RATIO_MOST * floor_s


@pytest.mark.timeout(120)
def test_the_benchmark(tmp_path: Path) -> None:
    """Its keys, and that it ends well on a fleet of one."""
    target = tmp_path / "agent.json"
    assert main(["agent", "--rounds", "1", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    for key in ("agent_rss_mib", "floor_rss_mib", "ratio", "threads", "floor_threads", "files", "import_s"):
        assert result[key] > 0
    assert {"machine", "versions", "commit"} <= result.keys()
