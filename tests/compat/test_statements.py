"""What earlier versions signed and wrote: statements, envelopes, policies and TUF sets, by the present code.

Everything is taken out of the recorded sessions. Signatures cover bytes, so a change of the encoding that is signed
(DSSE's PAE, canonical JSON of policies and metadata) shows here as a signature that does not fit.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.recordings import archive
from tests.recordings.replay import spoken
from wavemesh.codec.statements import decode, encode
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE, policy_digest, policy_from_json
from wavemesh.session.frames import Answer, Ask, ReportBatch, ResourceUpdate, StatusUpdate
from wavemesh.telemetry import uploads
from wavemesh.trust import statements as s
from wavemesh.trust.envelope import verify_node, verify_role, verify_role_payload
from wavemesh.trust.metadata import load_trusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from tests.recordings.archive import Recording
    from wavemesh.identity.authorities import Authorities
    from wavemesh.session.frames import Resource
    from wavemesh.trust.metadata import TrustedMetadata

BY_CONTROL: dict[str, Any] = {"order": s.WaveOrder, "holds": s.HoldList, "permit": s.Permit, "closed": s.WaveClosed}
REPORTS: dict[str, Any] = {
    "outcome": s.OutcomeReport,
    "snapshot": s.SnapshotReport,
    "intent": s.IntentReport,
    "event": s.EventReport,
}

# Kinds that are not here are compared as bytes only, in test_recordings.py.
ASKS: dict[str, tuple[type, type]] = {
    "health-ping": (s.Envelope, s.HealthPingAnswer),
    "logs": (uploads.LogUpload, uploads.LogUploadAnswer),
}


@pytest.fixture(scope="module", params=archive.versions(), ids=lambda path: path.name)
def recording(request: pytest.FixtureRequest) -> Recording:
    return archive.load(request.param)


@pytest.fixture(scope="module")
def moment(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("states")
    recording.unpack(target)
    return target / "closed"


@pytest.fixture(scope="module")
def authorities(moment: Path) -> Authorities:
    return NodeCredentials.load(moment / "control" / "identity").authorities


def resources(recording: Recording) -> Iterator[tuple[datetime, Resource]]:
    """Every resource that was sent, with when, in the order of each session."""
    for conversation in recording.conversations:
        for raw, (_, frame) in zip(conversation.frames, spoken(conversation), strict=True):
            if isinstance(frame, ResourceUpdate):
                for one in frame.changed:
                    yield raw.at, one


def trust(recording: Recording, moment: Path) -> list[TrustedMetadata]:
    """Every TUF set, through a client's full checks from the pinned root, at its time."""
    root = (moment / "control" / "trust" / "root.json").read_bytes()
    sets = {one.content: at for at, one in resources(recording) if one.key.type == "tuf"}
    return [load_trusted(root, decode(s.TrustMetadata, content), at, None) for content, at in sets.items()]


def same_bytes(cls: type, content: bytes) -> Any:
    """Decode; what is encoded again is the same."""
    statement: Any = decode(cls, content)
    assert encode(statement) == content, cls.__name__
    return statement


def test_tuf_sets_are_believed(recording: Recording, moment: Path) -> None:
    releases = [set(trusted.releases()) for trusted in trust(recording, moment)]
    assert set() in releases
    assert any(releases)


def test_what_control_signed_is_believed(recording: Recording, moment: Path) -> None:
    """Orders, holds, permits, closings and policies, by the keys that the TUF metadata gives to control."""
    trusted = trust(recording, moment)[-1]
    seen: Counter[str] = Counter()
    for _, one in resources(recording):
        if one.key.type in BY_CONTROL:
            envelope = same_bytes(s.Envelope, one.content)
            statement = verify_role(envelope, BY_CONTROL[one.key.type], trusted)
            assert encode(statement) == envelope.payload
        elif one.key.type == "policy":
            payload = verify_role_payload(same_bytes(s.Envelope, one.content), POLICY_PAYLOAD_TYPE, trusted)
            assert policy_digest(payload) == one.key.name
            policy_from_json(payload)  # refuses what the present canonical form would not write
        else:
            continue
        seen[one.key.type] += 1
    assert set(seen) == {*BY_CONTROL, "policy"}


def test_what_nodes_signed_is_believed(recording: Recording, authorities: Authorities, moment: Path) -> None:
    """Leases of hubs, intents of operators, pings and outcomes of devices, by certificates of their time."""
    trusted = trust(recording, moment)[-1]
    seen: Counter[str] = Counter()

    def believe(cls: Any, envelope: s.Envelope, at: datetime) -> None:
        _, statement = verify_node(envelope, cls, authorities, at)
        assert encode(statement) == envelope.payload
        seen[cls.__name__] += 1

    for at, one in resources(recording):
        if one.key.type == "intent":
            believe(s.OperatorIntent, same_bytes(s.Envelope, one.content), at)
        elif one.key.type == "lease":
            grant = same_bytes(s.LeaseGrant, one.content)
            believe(s.Lease, grant.lease, at)
            verify_role(grant.permit, s.Permit, trusted)
    for conversation in recording.conversations:
        for raw, (_, frame) in zip(conversation.frames, spoken(conversation), strict=True):
            if isinstance(frame, ReportBatch):
                _believe_reports(frame, raw.at, believe)
            elif isinstance(frame, Ask) and frame.kind == "health-ping":
                believe(s.HealthPing, same_bytes(s.Envelope, frame.body), raw.at)
    assert set(seen) == {"OperatorIntent", "Lease", "DeviceOutcome", "HealthPing"}


def _believe_reports(batch: ReportBatch, at: datetime, believe: Callable[[Any, s.Envelope, datetime], None]) -> None:
    for report in batch.reports:
        if report.kind not in REPORTS:
            continue
        statement = same_bytes(REPORTS[report.kind], report.body)
        if report.kind in {"outcome", "snapshot"}:
            for envelope in statement.outcomes:
                believe(s.DeviceOutcome, envelope, at)
        elif report.kind == "intent":
            believe(s.OperatorIntent, statement.intent, at)


def test_what_is_not_signed_is_read(recording: Recording) -> None:
    """Status, asks and answers come out as they went in."""
    seen: Counter[type] = Counter()

    def read(cls: type, content: bytes) -> None:
        same_bytes(cls, content)
        seen[cls] += 1

    for conversation in recording.conversations:
        asked: dict[int, str] = {}
        for _, frame in spoken(conversation):
            match frame:
                case StatusUpdate():
                    for entry in frame.entries:
                        cls = _status_class(entry.key)
                        if entry.body is not None and cls is not None:
                            read(cls, entry.body)
                case Ask() if frame.kind in ASKS:
                    asked[frame.ask_id] = frame.kind
                    read(ASKS[frame.kind][0], frame.body)
                case Answer() if frame.ask_id in asked and not frame.error:
                    read(ASKS[asked[frame.ask_id]][1], frame.body)
                case _:
                    pass
    assert set(seen) == {s.HubStatus, s.DeviceStatus, *(cls for pair in ASKS.values() for cls in pair)}


def _status_class(key: str) -> type | None:
    """What is under a key of status; None for kinds that have no statement."""
    names = key.split("/")
    if names[-1] == "hub":
        return s.HubStatus
    return s.DeviceStatus if "device" in names[-2:] else None
