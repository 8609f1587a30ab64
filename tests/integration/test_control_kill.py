"""Control as a real process, killed again and again: nothing acknowledged is lost, nothing counts twice (M3, C3)."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.session_kit import MemoryLog, until
from tests.unit.control.control_kit import (
    DEVICES,
    STORES,
    World,
    calling,
    dialling,
    intent,
    inventory,
    make_world,
    outcome,
    plan,
)
from wavemesh.trust.statements import IntentKind, OutcomeKind
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys

KILLS = 4
PATIENCE_S = 60
PER_ROUND = 8


@pytest.fixture
def world(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> World:
    directory = tmp_path / "control"
    directory.mkdir()
    return make_world(directory, credentials, trust_keys, make_manifest())


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@asynccontextmanager
async def process(world: World, *, ends: str) -> AsyncIterator[Process]:
    """``python -m control``, killed or terminated at the end."""
    log = (world.directory / "stderr.log").open("ab")
    with log:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "control", "--dir", str(world.directory), stderr=log
        )
    try:
        yield child
    finally:
        if ends == "kill":
            child.kill()
        else:
            child.terminate()
        await child.wait()


async def caught_up(log: WatchedLog, number: int) -> None:
    """Until everything below that report number is acknowledged."""
    async with asyncio.timeout(PATIENCE_S):
        while log.first_number < number:
            log.acknowledged.clear()
            await log.acknowledged.wait()


class WatchedLog(MemoryLog):
    """A log that tells of acknowledgements."""

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged = asyncio.Event()

    async def acknowledge(self, through: int) -> None:
        await super().acknowledge(through)
        self.acknowledged.set()


@pytest.mark.timeout(240)  # six starts of a real process
async def test_kills_lose_nothing_and_count_nothing_twice(world: World) -> None:
    """Outcomes and reports of an unknown kind go up while control dies at another moment in each round."""
    address = free_address()
    (world.directory / "config.toml").write_text(f'listen = "{address}"\ntick_s = 0.2\ndelivery_wait_s = 0\n')
    log = WatchedLog()
    async with dialling(world, lambda: address, log) as region:
        async with process(world, ends="kill"), calling(world, address) as stub:
            await stub.ApplyInventory(inventory(), wait_for_ready=True, timeout=PATIENCE_S)
            await stub.PlanWave(plan())
            for store in STORES:
                region.hub(store)
            await stub.SubmitIntent(intent(world, IntentKind.START_WAVE))
            await until(lambda: len(region.names("permit")) == 12, region.sink, within_s=PATIENCE_S)
        for number in range(KILLS):
            async with process(world, ends="kill"):
                for step in range(PER_ROUND):
                    device = DEVICES[(number * PER_ROUND + step) % 11]
                    region.log.append(b"", "gossip")
                    sequence = number * PER_ROUND + step + 1
                    region.report(outcome(world, device, OutcomeKind.UPDATED, sequence=sequence))
                # Dies before anything is applied, between two batches, or after everything was.
                await caught_up(log, log.next_number - (KILLS - 1 - number) * 3)
        async with process(world, ends="terminate") as child, calling(world, address) as stub:
            await caught_up(log, log.next_number)
            wave = (await stub.GetWave(operator_pb2.GetWaveRequest(wave_id="142"), wait_for_ready=True)).wave
            assert (wave.counts.updated, wave.counts.pending, wave.exposure) == (11, 1, 1)
            ledger = await stub.GetLedger(operator_pb2.GetLedgerRequest(wave_id="142"))
            assert max(entry.sequence for entry in ledger.entries) == KILLS * PER_ROUND
            audit = await stub.ListAudit(operator_pb2.ListAuditRequest(page_size=1000))
            refused = [entry for entry in audit.entries if entry.action == "report.refused"]
            assert len(refused) == KILLS * PER_ROUND
        assert child.returncode == 0
    assert "Traceback" not in (world.directory / "stderr.log").read_text()


async def test_a_bad_directory_is_said_plainly(world: World) -> None:
    """Q2: what is missing, and where, in one line; exit status 1."""
    (world.directory / "keys" / "online.pem").unlink()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "control", "--dir", str(world.directory), stderr=asyncio.subprocess.PIPE
    )
    _, error = await child.communicate()
    assert child.returncode == 1
    assert error.decode().startswith(f"control: KEY_FILE: {world.directory}/keys has no key online.pem"), error.decode()
