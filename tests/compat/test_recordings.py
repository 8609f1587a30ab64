"""What earlier versions said and kept: every recorded session, call and database against the present code.

One set of tests a version's folder, found in tests/recordings. docs/guide/compatibility.md says what is compared.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.recordings import archive
from tests.recordings.archive import BadRecordingError, Recording
from tests.recordings.replay import REPLAYS, as_recorded, spoken
from wavemesh.codec.session import encode_child, encode_parent
from wavemesh.codec.statements import decode
from wavemesh.session.frames import Fenced, Hello, ResourceUpdate
from wavemesh.trust.statements import Envelope, WaveOrder, WaveState
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = archive.versions()


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda path: path.name)
def recording(request: pytest.FixtureRequest) -> Recording:
    return archive.load(request.param)


def test_there_is_a_recording() -> None:
    assert VERSIONS


def test_a_recording_shows_what_it_is_there_for(recording: Recording) -> None:
    """All hops; resume, fence, removals, urgent and refused or accepted; or a replay would prove little."""
    sessions = [spoken(one) for one in recording.conversations]
    frames = [frame for session in sessions for _, frame in session]
    updates = [one for one in frames if isinstance(one, ResourceUpdate)]
    assert {len(one.child.split("/")) for one in recording.conversations} == {2, 4, 6}
    assert any(isinstance(one, Fenced) for one in frames)
    assert any(one.removed for one in updates)
    assert any(resource.urgent for one in updates for resource in one.changed)
    assert any(isinstance(one, Hello) and one.held and one.next_report_number > 1 for one in frames)
    assert {one.key.type for update in updates for one in update.changed} >= {
        *("tuf", "policy", "order", "permit", "holds", "lease", "intent", "closed"),
    }
    assert {WaveState.RUNNING, WaveState.PAUSED, WaveState.HALTED} <= {
        decode(WaveOrder, decode(Envelope, one.content).payload).state
        for update in updates
        for one in update.changed
        if one.key.type == "order"
    }
    assert set(recording.manifest["moments"]) >= {"permits-out", "queued-intent", "paused", "closed", "halted"}


@pytest.mark.parametrize("end", sorted(REPLAYS))
def test_recorded_sessions_mean_the_same_now(recording: Recording, end: str) -> None:
    """Each recorded peer is played to the present machine, which must come to the same greeting, cursor and state."""
    for conversation in recording.conversations:
        frames = spoken(conversation)
        assert REPLAYS[end](frames) == as_recorded(frames), f"{conversation.name} at the present {end}"


def test_recorded_frames_come_out_as_they_went_in(recording: Recording) -> None:
    """Through the present codec and back to the same bytes."""
    for conversation in recording.conversations:
        for raw, (sender, frame) in zip(conversation.frames, spoken(conversation), strict=True):
            encoded = encode_child(frame) if sender == "child" else encode_parent(frame)  # type: ignore[arg-type]
            assert encoded.SerializeToString() == raw.content, f"{conversation.name} {type(frame).__name__}"


def test_recorded_calls_come_out_as_they_went_in(recording: Recording) -> None:
    """Requests and responses of the operator API have no field that the present contract does not know."""
    assert {one.method for one in recording.calls} >= {"PlanWave", "SubmitIntent", "GetLedger", "GetWave"}
    for call in recording.calls:
        for suffix, content in (("Request", call.request), ("Response", call.response)):
            message = getattr(operator_pb2, call.method + suffix).FromString(content)
            message.DiscardUnknownFields()
            assert message.SerializeToString(deterministic=True) == content, call.method


@pytest.mark.parametrize("harm", ["missing", "altered", "added"])
def test_a_recording_that_is_not_whole_is_refused(recording: Recording, tmp_path: Path, harm: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recording.directory, copy)
    archive.load(copy)
    victim = copy / "answers.json.xz"
    match harm:
        case "missing":
            victim.unlink()
        case "altered":
            content = bytearray(victim.read_bytes())
            content[-1] ^= 1
            victim.write_bytes(content)
        case _:
            (copy / "more").touch()
    with pytest.raises(BadRecordingError):
        archive.load(copy)
