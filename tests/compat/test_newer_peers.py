"""What a newer peer says that this version does not know, case by case as docs/guide/compatibility.md has them.

Tiers are real, started on a recorded state; what is unknown is put into the bytes, as a newer encoder would.
"""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from device.belief import Verifier
from storehub.belief import Belief
from superhub.acceptance import Acceptance
from tests.recordings import archive
from tests.recordings.questions import Fleet, operator_view, serving, tier_of
from tests.recordings.wire import SetClock, converse
from wavemesh.codec.session import MalformedFrameError, decode_child, decode_parent, encode_child, encode_parent
from wavemesh.codec.statements import MalformedStatementError, decode, encode
from wavemesh.errors import GateError
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.session.frames import (
    Ask,
    Heartbeat,
    Hello,
    Report,
    Resource,
    ResourceKey,
    ResourceVersion,
    StatusEntry,
    StatusUpdate,
    Welcome,
)
from wavemesh.trust.envelope import pae
from wavemesh.trust.statements import (
    DeviceOutcome,
    DeviceStatus,
    Envelope,
    HealthPing,
    OutcomeKind,
    OutcomeReport,
    Signature,
    UpdateState,
)
from wavemesh.v1 import report_pb2, session_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.recordings.archive import Recording
    from tests.recordings.wire import MemoryServer
    from wavemesh.session.frames import ChildFrame

# Field 1000, length-delimited, five bytes: nothing of this contract.
UNKNOWN_FIELD = bytes([0xC2, 0x3E, 5]) + b"novel"
INCARNATION = "f" * 32
TIERS = ("control", "superhub", "storehub")
DEVICE = "region/midwest/store/store-208/device/pos-01"


@pytest.fixture(scope="module")
def recording() -> Recording:
    return archive.load(archive.versions()[-1])


@pytest.fixture(scope="module")
def moment(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("states")
    recording.unpack(target)
    return target / "permits-out"


@dataclasses.dataclass(frozen=True, slots=True)
class Tier:
    """A running tier and one of its children."""

    server: MemoryServer
    fleet: Fleet
    child: str
    directory: Path


@asynccontextmanager
async def running(recording: Recording, moment: Path, tmp_path: Path, tier: str) -> AsyncIterator[Tier]:
    fleet = Fleet(moment, recording.fleet)
    parent, children = next(one for one in recording.manifest["tree"].items() if tier_of(one[0]) == tier)
    directory = tmp_path / tier
    shutil.copytree(fleet.directory(parent), directory)
    async with serving(tier, directory, SetClock(recording.moments()["permits-out"])) as tap:
        yield Tier(tap.server, fleet, children[0], directory)


def hello() -> Hello:
    return Hello(1, "newer/9", INCARNATION, 1, (), 1, ("teleport",))


def test_unknown_fields_are_ignored_in_frames() -> None:
    """At both levels: beside the frame, and inside it."""
    inner = encode_child(hello()).hello.SerializeToString() + UNKNOWN_FIELD
    message = session_pb2.ConnectRequest(hello=session_pb2.Hello.FromString(inner))
    raw = message.SerializeToString() + UNKNOWN_FIELD
    assert b"novel" in session_pb2.ConnectRequest.FromString(raw).SerializeToString()
    assert decode_child(session_pb2.ConnectRequest.FromString(raw)) == hello()
    welcome = Welcome(1, "newer/9", "s", 0, 1000, 4, "e")
    raw = encode_parent(welcome).SerializeToString() + UNKNOWN_FIELD
    assert decode_parent(session_pb2.ConnectResponse.FromString(raw)) == welcome


def test_unknown_frames_are_an_error() -> None:
    """A new kind of frame needs a capability or a protocol version: sent without, it would be lost in silence."""
    with pytest.raises(MalformedFrameError, match="does not know"):
        decode_child(session_pb2.ConnectRequest.FromString(UNKNOWN_FIELD))
    with pytest.raises(MalformedFrameError, match="does not know"):
        decode_parent(session_pb2.ConnectResponse.FromString(UNKNOWN_FIELD))


def test_unknown_fields_are_ignored_in_statements_and_stay_in_what_was_signed() -> None:
    payload = encode(ping()) + UNKNOWN_FIELD
    assert decode(HealthPing, payload) == ping()
    envelope = Envelope(HealthPing.payload_type, payload, (Signature("k", b"s", b"c"),))
    forwarded = decode(OutcomeReport, encode(OutcomeReport((envelope,))))
    assert forwarded.outcomes[0].payload == payload


def ping() -> HealthPing:
    return HealthPing("142", DEVICE, "b" * 32, "B", "f" * 64, 7, "control")


@pytest.mark.parametrize("number", [0, 99])
def test_unknown_enum_values_are_malformed(number: int) -> None:
    """Not taken for another value, nor for none: an outcome that is not understood must not count as one."""
    message = report_pb2.DeviceOutcome.FromString(encode(outcome()))
    message.kind = number  # type: ignore[assignment]  # proto3 enums are open
    with pytest.raises(MalformedStatementError, match="kind"):
        decode(DeviceOutcome, message.SerializeToString())


def outcome() -> DeviceOutcome:
    return DeviceOutcome(
        wave_id="142",
        device=DEVICE,
        kind=OutcomeKind.UPDATED,
        gate="",
        attempt=1,
        sequence=9,
        evidence="",
        boot_id="",
        at=datetime(2026, 1, 2, tzinfo=UTC),
        slot="B",
        firmware_sha256="",
        firmware_version="",
        log_sha256="",
    )


@pytest.mark.parametrize("content", [b"novel", encode(Envelope("novel", b"novel", (Signature("k", b"s", b""),)))])
def test_unknown_resource_types_are_refused_by_gate(recording: Recording, moment: Path, content: bytes) -> None:
    """Every tier stores and passes on only what it can verify; the parent hears why, the rest of the update holds."""
    fleet, now = Fleet(moment, recording.fleet), recording.moments()["permits-out"]
    key = ResourceKey("novelty", "n")
    resource = Resource(key, ResourceVersion("e", 1), "0" * 64, content)
    store = DEVICE.rsplit("/", 2)[0]
    hub, device = (NodeCredentials.load(fleet.directory(path) / "identity") for path in (store, DEVICE))
    root = (moment / "superhub" / "trust" / "root.json").read_bytes()
    for refuse in (
        lambda: Belief(store, root, hub.authorities).judge(resource, now),
        lambda: Acceptance("region/midwest", root, hub.authorities).accept(resource, now),
        lambda: Verifier(root, device).verify(key, content, now, None),
    ):
        with pytest.raises(GateError) as refused:
            refuse()
        assert refused.value.gate == "signature"


@pytest.mark.parametrize("tier", TIERS)
async def test_unknown_reports_statuses_and_asks(recording: Recording, moment: Path, tmp_path: Path, tier: str) -> None:
    """Reports: dropped, told upwards or audited, and the cursor moves. Status: passed over. Asks: answered by an error.

    The session goes on, and so do the known reports behind the unknown one.
    """
    reports = [(1, Report("novelty", b"novel")), (2, Report("outcome", encode(OutcomeReport(()))))]
    others: list[ChildFrame] = [
        StatusUpdate((StatusEntry("novelty/of/pos-01", b"novel"), StatusEntry("novelty", None))),
        Ask(1, "novelty", b"novel"),
        Heartbeat(1),
    ]
    async with running(recording, moment, tmp_path, tier) as one:
        told = await converse(one.server, one.fleet.child(one.child), hello(), reports, others)
        assert told.acknowledged == 2
        assert told.settled
        [answer] = told.answers
        assert answer.error
        again = await converse(
            one.server, one.fleet.child(one.child), dataclasses.replace(hello(), next_report_number=3)
        )
        assert isinstance(again.greeting, Welcome)
        assert again.greeting.reports_through == 2
        if tier == "control":
            audit = (await operator_view(one.server, one.fleet, tier))["ListAudit"]["entries"]
            assert any("novelty" in entry["detail"] for entry in audit)
    if tier != "control":
        assert any(kind == "event" and b"novelty" in body for kind, body in sent_up(one.directory))


async def test_a_state_this_hub_does_not_know_is_passed_over(
    recording: Recording, moment: Path, tmp_path: Path
) -> None:
    """A newer agent in a newer state: the session stays, and the next status counts."""
    at = recording.moments()["permits-out"]
    status = DeviceStatus(device=DEVICE, state=UpdateState.IDLE, at=at, firmware_version="9.9.9")
    newer = report_pb2.DeviceStatus.FromString(encode(status))
    newer.state = 99  # type: ignore[assignment]  # proto3 enums are open
    others = [StatusUpdate((StatusEntry("device", body),)) for body in (newer.SerializeToString(), encode(status))]
    async with running(recording, moment, tmp_path, "storehub") as one:
        told = await converse(one.server, one.fleet.child(one.child), hello(), [(1, Report("novelty", b""))], others)
        assert told.settled
        devices = (await operator_view(one.server, one.fleet, "storehub"))["ListDevices"]["devices"]
    [shown] = [device["status"] for device in devices if device["path"] == DEVICE]
    assert shown["firmware_version"] == "9.9.9"


@pytest.mark.parametrize("tier", ["superhub", "storehub"])
async def test_forwarded_envelopes_keep_their_bytes(
    recording: Recording, moment: Path, tmp_path: Path, tier: str
) -> None:
    """An outcome of a newer agent says more than this hub knows: it counts here, and goes up as it was signed."""
    async with running(recording, moment, tmp_path, tier) as one:
        signer = NodeCredentials.load(one.fleet.directory(DEVICE) / "identity")
        payload = encode(outcome()) + UNKNOWN_FIELD
        sig = signer.sign(pae(DeviceOutcome.payload_type, payload))
        signature = Signature(signer.node_id.uri, sig, signer.certificate_der)
        envelope = Envelope(DeviceOutcome.payload_type, payload, (signature,))
        report = Report("outcome", encode(OutcomeReport((envelope,))))
        told = await converse(one.server, one.fleet.child(one.child), hello(), [(1, report)])
        assert told.acknowledged == 1
    forwarded = [
        found
        for kind, body in sent_up(one.directory)
        if kind == "outcome"
        for found in decode(OutcomeReport, body).outcomes
    ]
    assert envelope in forwarded


def sent_up(directory: Path) -> list[tuple[str, bytes]]:
    """The hub's own report log, as it is on disk."""
    [path] = [*directory.glob("state/*.db"), *directory.glob("state/*.sqlite3")]
    with closing(sqlite3.connect(path)) as database:
        return list(database.execute("SELECT kind, body FROM session_reports ORDER BY number"))
