"""What earlier versions left on disk: the present tiers start on it, migrate it forward, and say the same of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from device.board import boot_record_path, write_boot_record
from device.bootenv import ResetReason, decode
from device.platform import BootRecord
from lab.injectors import InjectorError, _tell
from lab.processes import wait_until
from tests.recordings import archive
from tests.recordings.questions import (
    Fleet,
    answers_of,
    device_document,
    differences,
    operator_view,
    serving,
    tier_of,
)
from tests.recordings.replay import spoken
from tests.recordings.wire import SetClock, converse
from wavemesh.session.frames import Hello, ReportBatch
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from tests.recordings.archive import Recording
    from wavemesh.session.frames import Report

VERSIONS = archive.versions()


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda path: path.name)
def recording(request: pytest.FixtureRequest) -> Recording:
    return archive.load(request.param)


@pytest.fixture(scope="module")
def states(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("states")
    recording.unpack(target)
    return target


def parents(recording: Recording) -> list[str]:
    return list(recording.manifest["tree"])


async def test_hubs_and_control_answer_the_same(recording: Recording, states: Path, tmp_path: Path) -> None:
    """Waves, exposure, ledgers, intents, audit, caches, and what each child is to hold, at every moment."""
    found: list[str] = []
    for moment, at in recording.moments().items():
        fleet = Fleet(states / moment, recording.fleet)
        for parent, children in recording.manifest["tree"].items():
            heard = recording.manifest["incarnations"][moment]
            incarnations = {child: heard[child] for child in children if child in heard}
            said = await answers_of(fleet, parent, incarnations, at, tmp_path)
            expected = recording.answers[moment][parent]
            found += differences(expected, said, f"{moment}/{parent}")
    assert found == []


def devices(recording: Recording, moment: str) -> list[str]:
    return [path for path in recording.answers[moment] if "/device/" in path]


def test_devices_remember_the_same(recording: Recording, states: Path, tmp_path: Path) -> None:
    """The agent's document: reports, resources held, burns, outcomes, floors."""
    found: list[str] = []
    for moment, at in recording.moments().items():
        fleet = Fleet(states / moment, recording.fleet)
        for path in devices(recording, moment):
            said = device_document(fleet, path, at, tmp_path)
            found += differences(recording.answers[moment][path], said, f"{moment}/{path}")
    assert found == []
    assert devices(recording, "closed")


@contextmanager
def agent(directory: Path, at: datetime) -> Iterator[Path]:
    """The present agent on a copy of a device, without its hub; yields its local socket."""
    if not boot_record_path(directory).exists():
        environment = decode((directory / "slots" / "bootenv.json").read_bytes(), "bootenv.json")
        boot_record_path(directory).parent.mkdir(exist_ok=True)
        write_boot_record(directory, BootRecord("0" * 32, environment.active, ResetReason.POWER_ON))
    command = [sys.executable, "-m", "tests.recordings.standing_device", at.isoformat(), "--dir", str(directory)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            yield directory / "run" / "agent.sock"
        finally:
            process.terminate()


def ask_status(socket: Path) -> dict[str, Any]:
    """The agent's own word, once it gives one."""
    said: dict[str, Any] = {}

    def answers() -> bool:
        try:
            said.update(_tell(socket, "status"))
        except InjectorError:
            return False
        return True

    wait_until(answers, 30.0, "the agent to answer")
    return said


def test_the_agent_starts_on_what_it_remembers(recording: Recording, states: Path, tmp_path: Path) -> None:
    """State, slot, wave and gate as they were; firmware and config as the last status to the hub had them."""
    at = recording.moments()["closed"]
    fleet = Fleet(states / "closed", recording.fleet)
    [store] = [path for path in parents(recording) if path.endswith("store-208")]
    shown = recording.answers["closed"][store]["operator"]["ListDevices"]["devices"]
    for number, device in enumerate(shown):
        copy = tmp_path / str(number)
        shutil.copytree(fleet.directory(device["path"]), copy)
        with agent(copy, at) as socket:
            said = ask_status(socket)
        remembered = recording.answers["closed"][device["path"]]["progress"]
        assert said["state"] == UpdateState(remembered["state"]).name, device["path"]
        for name in ("slot", "firmware_version", "firmware_sha256", "config_version"):
            assert said[name] == device["status"][name], (device["path"], name)


def reported(recording: Recording, child: str, incarnation: str, after: int) -> list[tuple[int, Report]]:
    """Everything a child of that incarnation reported beyond a number, over all its sessions."""
    found: dict[int, Report] = {}
    for conversation in recording.conversations:
        frames = [frame for _, frame in spoken(conversation)]
        if conversation.child != child or not any(
            isinstance(f, Hello) and f.incarnation == incarnation for f in frames
        ):
            continue
        for frame in frames:
            if isinstance(frame, ReportBatch):
                found |= dict(enumerate(frame.reports, start=frame.first_number))
    return sorted((number, report) for number, report in found.items() if number > after)


@pytest.mark.parametrize("tier", ["control", "storehub"])
async def test_reports_of_before_count_the_same_now(
    recording: Recording, states: Path, tmp_path: Path, tier: str
) -> None:
    """The tier as it was when the permits were out, given what its children reported since: the ledger of the end."""
    fleet = Fleet(states / "permits-out", recording.fleet)
    heard = recording.manifest["incarnations"]["closed"]
    for parent in (path for path in parents(recording) if tier_of(path) == tier):
        copy = tmp_path / parent.replace("/", "-")
        shutil.copytree(fleet.directory(parent), copy)
        sessions = recording.answers["permits-out"][parent]["sessions"]
        async with serving(tier, copy, SetClock(recording.moments()["closed"])) as server:
            for child in recording.manifest["tree"][parent]:
                cursor = sessions.get(child, {"cursor": 0})["cursor"]
                reports = reported(recording, child, heard[child], cursor)
                assert reports, child
                hello = Hello(1, "replay", heard[child], cursor + 1, ())
                told = await converse(server, fleet.child(child), hello, reports)
                assert told.acknowledged == reports[-1][0]
            said = await operator_view(server, fleet, tier)
        expected = recording.answers["closed"][parent]["operator"]["GetLedger 142"]
        assert list(differences(expected, said["GetLedger 142"])) == []
        assert expected["counts"]["updated"] > 0
