"""What earlier versions left on disk: the present tiers start on it, migrate it forward, and say the same of it."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from device.belief import Verifier
from device.board import boot_record_path, write_boot_record
from device.bootenv import ResetReason, decode
from device.config import Telemetry
from device.logs import DeviceLog
from device.platform import BootRecord
from device.sink import DeviceSink
from device.state import StateFile
from device.store import DeviceStore
from device.tracing import Tracing
from lab.injectors import InjectorError
from lab.injectors import tell as tell_board
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
from tests.recordings.replay import as_recorded, spoken
from tests.recordings.wire import SetClock, converse
from wavemesh.errors import LocalError
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.runtime.durable import Disk
from wavemesh.session.frames import Hello, ReportBatch, ResourceUpdate, ResourceVerdict
from wavemesh.trust.freshness import ClockSource
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import datetime
    from pathlib import Path

    from tests.recordings.archive import Conversation, Recording
    from wavemesh.session.frames import Report
    from wavemesh.session.seams import ResourceSink

VERSIONS = archive.versions()
# What an earlier version said and was wrong about: a fault that was mended since is no promise to keep.
MENDED = {
    # Held the swap of a device that had said its outcome, where control closed the wave first.
    f"{moment}/region/midwest/store/store-209/operator/GetFleetStatus/hubs/0/swaps_active: missing, expected 1"
    for moment in ("rollback-waits", "closed")
}


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
    assert [difference for difference in found if difference not in MENDED] == []


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
            said.update(tell_board(socket, "status"))
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
        assert said["hub_refusal"] == ""
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
        async with serving(tier, copy, SetClock(recording.moments()["closed"])) as tap:
            for child in recording.manifest["tree"][parent]:
                cursor = sessions.get(child, {"cursor": 0})["cursor"]
                reports = reported(recording, child, heard[child], cursor)
                assert reports, child
                hello = Hello(1, "replay", heard[child], cursor + 1, ())
                told = await converse(tap.server, fleet.child(child), hello, reports)
                assert told.acknowledged == reports[-1][0]
            said = await operator_view(tap.server, fleet, tier)
        expected = recording.answers["closed"][parent]["operator"]["GetLedger 142"]
        assert list(differences(expected, said["GetLedger 142"])) == []
        assert expected["counts"]["updated"] > 0


@asynccontextmanager
async def sink_of(fleet: Fleet, path: str, directory: Path, clock: SetClock) -> AsyncIterator[ResourceSink]:
    """The present sink of a hub or a device, on a copy of the node's directory."""
    shutil.copytree(fleet.directory(path), directory)
    if "/device/" not in path:
        async with serving(tier_of(path), directory, clock) as tap:
            assert tap.sink is not None
            yield tap.sink
        return
    credentials = NodeCredentials.load(directory / "identity")
    file = StateFile(directory / "state", Disk(), "0" * 32)
    file.load(clock.now())
    log = DeviceLog(directory / "state" / "log", clock, timedelta(hours=1), 1 << 20)
    verifier = Verifier((directory / "trust" / "root.json").read_bytes(), credentials)
    store = DeviceStore(file, credentials, clock, log, Tracing(credentials.node_id, clock, Telemetry()))
    yield DeviceSink(
        store=store, verifier=verifier, clock=clock, log=log, source=ClockSource.HARDWARE, changed=lambda: None
    )
    log.close()


@pytest.mark.parametrize("segments", [2, 4, 6], ids=["superhub", "storehub", "device"])
async def test_desired_state_of_before_is_believed_now(
    recording: Recording, states: Path, tmp_path: Path, segments: int
) -> None:
    """A node as it was in the beginning, given all that its parent sent it until the wave was closed.

    It accepts and refuses what it did then, and holds the same in the end.
    """
    fleet, clock = Fleet(states / "empty", recording.fleet), SetClock(recording.moments()["empty"])
    closed = recording.moments()["closed"]
    sessions: dict[str, list[Conversation]] = {}
    for one in recording.conversations:
        if len(one.child.split("/")) == segments and one.frames[0].at < closed:
            sessions.setdefault(one.child, []).append(one)
    assert sessions
    for path, conversations in sessions.items():
        async with sink_of(fleet, path, tmp_path / path.replace("/", "-"), clock) as sink:
            for conversation in conversations:
                await tell(sink, conversation, clock)
            held = {one.key: one.digest for one in sink.held()}
        recorded = as_recorded(spoken(conversations[-1])).held
        assert held == {key: digest for key, (_, _, digest) in recorded.items()}, path


async def test_what_a_hub_was_told_it_knows_after_a_restart_too(
    recording: Recording, states: Path, tmp_path: Path
) -> None:
    """What it forgets when control takes it back (permits of a closed wave) is gone from its mind and from its disk."""
    fleet, clock = Fleet(states / "empty", recording.fleet), SetClock(recording.moments()["empty"])
    closed, directory = recording.moments()["closed"], tmp_path / "hub"
    path = next(path for path in parents(recording) if path.endswith("/store-208"))
    shutil.copytree(fleet.directory(path), directory)
    async with serving("storehub", directory, clock) as tap:
        assert tap.sink is not None
        for conversation in recording.conversations:
            if conversation.child == path and conversation.frames[0].at < closed:
                await tell(tap.sink, conversation, clock)
        before = await operator_view(tap.server, fleet, "storehub")
    async with serving("storehub", directory, clock) as tap:
        after = await operator_view(tap.server, fleet, "storehub")
    assert before["ListWaves"]["waves"]
    assert before["ListWaves"] == after["ListWaves"]


async def tell(sink: ResourceSink, conversation: Conversation, clock: SetClock) -> None:
    """Give the sink every update that was answered, at its time; its verdict must be the one of then."""
    frames = spoken(conversation)
    verdicts = {frame.nonce: frame for _, frame in frames if isinstance(frame, ResourceVerdict)}
    for raw, (_, frame) in zip(conversation.frames, frames, strict=True):
        if isinstance(frame, ResourceUpdate) and frame.nonce in verdicts:
            clock.at = raw.at
            rejected = await sink.apply(frame.changed, frame.removed)
            then = verdicts[frame.nonce].rejected
            assert {(one.key, one.gate) for one in rejected} == {(one.key, one.gate) for one in then}


@pytest.mark.parametrize(
    ("tier", "harm"),
    [
        ("superhub", "ALTER TABLE entered DROP COLUMN digests"),
        ("superhub", "ALTER TABLE session_resources DROP COLUMN urgent"),
        ("storehub", "ALTER TABLE devices RENAME TO gone"),
        ("storehub", "ALTER TABLE session_resources DROP COLUMN urgent"),
    ],
)
async def test_a_disk_that_cannot_be_read_ends_the_start(
    recording: Recording, states: Path, tmp_path: Path, tier: str, harm: str
) -> None:
    """With an error, and with no thread left behind that would keep the process."""
    parent = next(path for path in parents(recording) if tier_of(path) == tier)
    directory = tmp_path / tier
    shutil.copytree(Fleet(states / "closed", recording.fleet).directory(parent), directory)
    [path] = [one for one in (directory / "state").iterdir() if one.is_file()]
    with closing(sqlite3.connect(path)) as database:
        database.execute(harm)
    before = set(threading.enumerate())
    with pytest.raises((LocalError, ExceptionGroup)):
        async with serving(tier, directory, SetClock(recording.moments()["closed"])):
            pass
    for thread in set(threading.enumerate()) - before:
        if "_connection_worker_thread" in thread.name:
            thread.join(10)
            assert not thread.is_alive(), thread.name
