"""A store manager with the device alone: no network, no hub, no identity, only the agent's own socket (D5, D12, O1)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from device.sockets import bind_unix
from edgectl import standing
from tests.device_directory import OLD_VERSION, DeviceDirectory
from tests.device_kit import HubStandIn
from wavemesh.errors import ForbiddenError, LinkDownError
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

pytestmark = pytest.mark.timeout(120)
FIRST_VERSION = "3.8.0"


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Iterator[DeviceDirectory]:
    directory = DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    yield directory
    directory.stop()


def types(device: DeviceDirectory, *words: str) -> tuple[int, str, str]:
    """What a person types, in an environment that knows nothing of the fleet; exit code, output, errors."""
    command = [sys.executable, "-m", "edgectl", "device", *words, "--socket", str(device.path / "run" / "agent.sock")]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.environ["PATH"], "HOME": str(device.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=90)
    return done.returncode, done.stdout, done.stderr


async def typed(device: DeviceDirectory, *words: str) -> tuple[int, str, str]:
    return await asyncio.to_thread(types, device, *words)


async def test_a_store_manager_with_the_device_alone(
    device: DeviceDirectory, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    """Two rollbacks and what stands in the way of a third, each with what came of it; the hub hears of them later."""
    hub = HubStandIn(trust_keys, credentials)
    device.had_before(FIRST_VERSION, "141")
    assert (await typed(device, "status"))[0] == 6
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.COMMITTED)
        await hub.until(lambda: bool(hub.outcomes()))
    code, told, _ = await typed(device, "status")
    assert (code, "slot B runs 3.8.2" in told, f"goes back to: slot A, packed {FIRST_VERSION}" in told) == (
        0,
        True,
        True,
    )
    code, _, error = await typed(device, "rollback", "--reason", "till frozen", "--again")
    assert (code, "a second rollback follows a first one" in error) == (4, True)
    code, told, _ = await typed(device, "rollback", "--reason", "till frozen")
    assert (code, f"rolled_back in wave 142; slot A runs {OLD_VERSION}" in told) == (0, True)
    assert "operator: local operator: till frozen" in told
    code, _, error = await typed(device, "rollback", "--reason", "till frozen")
    assert (code, "has rolled back already from wave 142" in error) == (4, True)
    code, told, _ = await typed(device, "rollback", "--reason", "still frozen", "--again", "--output", "json")
    assert (code, json.loads(told)["firmware_version"]) == (0, FIRST_VERSION)
    async with hub.serving(hub.port):
        await hub.until(lambda: len(hub.outcomes()) == 2)
    assert hub.words()[1] == ("ROLLED_BACK", "operator", 1)


async def test_what_prevented_it_is_shown(
    device: DeviceDirectory, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    hub = HubStandIn(trust_keys, credentials)
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.start()
        await hub.until_state(UpdateState.COMMITTED)
    device.rot("A")
    for _ in range(2):  # the same answer twice is no stale one
        code, told, _ = await typed(device, "rollback", "--reason", "till frozen")
        assert (code, "rollback failed: slot A reads back" in told, "committed in wave 142" in told) == (4, True, True)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(LinkDownError, match="is the device on"):
        standing.look(tmp_path / "agent.sock")
    bind_unix(tmp_path / "left.sock").close()
    with pytest.raises(LinkDownError, match="no agent listens"):
        standing.look(tmp_path / "left.sock")


def test_somebody_elses_socket_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with bind_unix(tmp_path / "agent.sock"):
        monkeypatch.setattr(socket.socket, "connect", refuse)
        with pytest.raises(ForbiddenError, match="become that user"):
            standing.look(tmp_path / "agent.sock")


def test_a_deep_directory_is_reached(tmp_path: Path) -> None:
    """A unix address has room for 107 bytes; an agent that says nothing is not waited for for ever."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with bind_unix(deep / "agent.sock") as listener:
        listener.listen()
        patch = pytest.MonkeyPatch()
        patch.setattr(standing, "ANSWER_TIMEOUT_S", 0.05)
        with patch.context(), pytest.raises(LinkDownError, match="did not answer within"):
            standing.look(deep / "agent.sock")
