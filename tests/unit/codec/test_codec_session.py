"""Session frames on the wire: every frame comes back as it was, and what breaks a bound is refused."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavemesh.codec.session import MalformedFrameError, decode_child, decode_parent, encode_child, encode_parent
from wavemesh.session import frames as f
from wavemesh.v1 import session_pb2 as pb

NUMBER = st.integers(0, 2**63)
MILLISECONDS = st.integers(0, 2**32 - 1)
NAME = st.text(min_size=1, max_size=40).filter(lambda text: len(text.encode()) <= f.MAX_NAME_BYTES)
TEXT = st.text(max_size=100)
BODY = st.binary(max_size=100)
DIGEST = BODY.map(lambda body: hashlib.sha256(body).hexdigest())
KEY = st.builds(f.ResourceKey, NAME, NAME)
VERSION = st.builds(f.ResourceVersion, NAME, NUMBER)
HEARTBEAT = st.builds(f.Heartbeat, NUMBER)
GOODBYE = st.builds(f.Goodbye, TEXT, MILLISECONDS)


def tuples(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(strategy, max_size=4).map(tuple)


CHILD = st.one_of(
    st.builds(
        f.Hello,
        MILLISECONDS,
        NAME,
        NAME,
        NUMBER,
        tuples(st.builds(f.HeldResource, KEY, VERSION, DIGEST)),
        MILLISECONDS,
        tuples(NAME),
    ),
    st.builds(f.ReportBatch, NUMBER, tuples(st.builds(f.Report, NAME, BODY))),
    st.builds(f.StatusUpdate, tuples(st.builds(f.StatusEntry, NAME, st.none() | BODY))),
    st.builds(f.ResourceVerdict, NUMBER, tuples(st.builds(f.Rejection, KEY, DIGEST, NAME, TEXT))),
    st.builds(f.Ask, NUMBER, NAME, BODY),
    HEARTBEAT,
    GOODBYE,
)
PARENT = st.one_of(
    st.builds(f.Welcome, MILLISECONDS, NAME, NAME, NUMBER, MILLISECONDS, MILLISECONDS, NAME, tuples(NAME)),
    st.builds(f.Fenced, NUMBER),
    st.builds(
        f.ResourceUpdate,
        NUMBER,
        tuples(st.builds(f.Resource, KEY, VERSION, DIGEST, BODY, tuples(NAME), st.booleans())),
        tuples(KEY),
        st.booleans(),
    ),
    st.builds(f.ReportAck, NUMBER),
    st.builds(f.Answer, NUMBER, BODY),
    st.builds(f.Answer, NUMBER, st.just(b""), NAME),
    HEARTBEAT,
    GOODBYE,
)


@given(CHILD)
def test_child_frames_come_back(frame: f.ChildFrame) -> None:
    assert decode_child(pb.ConnectRequest.FromString(encode_child(frame).SerializeToString())) == frame


@given(PARENT)
def test_parent_frames_come_back(frame: f.ParentFrame) -> None:
    assert decode_parent(pb.ConnectResponse.FromString(encode_parent(frame).SerializeToString())) == frame


KEY_PB = pb.ResourceKey(type="policy", name="p")
LONG = "x" * (f.MAX_NAME_BYTES + 1)
ZEROS = "0" * 64


@pytest.mark.parametrize(
    "message",
    [
        pb.ConnectRequest(),
        pb.ConnectRequest(hello=pb.Hello(incarnation=LONG)),
        pb.ConnectRequest(hello=pb.Hello(capabilities=["a"] * (f.MAX_CAPABILITIES + 1))),
        pb.ConnectRequest(hello=pb.Hello(capabilities=["a" * (f.MAX_CAPABILITY_CHARACTERS + 1)])),
        pb.ConnectRequest(hello=pb.Hello(held=[pb.HeldResource(key=KEY_PB, digest=ZEROS)] * (f.MAX_HELD + 1))),
        pb.ConnectRequest(hello=pb.Hello(held=[pb.HeldResource(key=KEY_PB, digest="0" * 63)])),
        pb.ConnectRequest(hello=pb.Hello(held=[pb.HeldResource(key=KEY_PB, digest="A" * 64)])),
        pb.ConnectRequest(hello=pb.Hello(held=[pb.HeldResource(key=pb.ResourceKey(type="policy"), digest=ZEROS)])),
        pb.ConnectRequest(reports=pb.ReportBatch(reports=[pb.Report()] * (f.MAX_REPORTS_PER_BATCH + 1))),
        pb.ConnectRequest(reports=pb.ReportBatch(reports=[pb.Report(body=bytes(f.MAX_REPORT_BYTES + 1))])),
        pb.ConnectRequest(reports=pb.ReportBatch(reports=[pb.Report(body=bytes(f.MAX_REPORT_BYTES))] * 5)),
        pb.ConnectRequest(status=pb.StatusUpdate(entries=[pb.StatusEntry(key="k")] * (f.MAX_STATUS_ENTRIES + 1))),
        pb.ConnectRequest(status=pb.StatusUpdate(entries=[pb.StatusEntry(body=bytes(f.MAX_STATUS_BYTES + 1))])),
        pb.ConnectRequest(
            verdict=pb.ResourceVerdict(
                rejected=[pb.ResourceRejection(key=KEY_PB, digest=ZEROS, reason="x" * (f.MAX_REASON_BYTES + 1))]
            )
        ),
        pb.ConnectRequest(ask=pb.Ask(body=bytes(f.MAX_ASK_BYTES + 1))),
        pb.ConnectRequest(goodbye=pb.Goodbye(reason="x" * (f.MAX_REASON_BYTES + 1))),
    ],
)
def test_child_frames_beyond_a_bound_are_refused(message: pb.ConnectRequest) -> None:
    """Q2, M6."""
    with pytest.raises(MalformedFrameError):
        decode_child(message)


@pytest.mark.parametrize(
    "message",
    [
        pb.ConnectResponse(),
        pb.ConnectResponse(welcome=pb.Welcome(epoch=LONG)),
        pb.ConnectResponse(welcome=pb.Welcome(capabilities=["a"] * (f.MAX_CAPABILITIES + 1))),
        pb.ConnectResponse(
            resources=pb.ResourceUpdate(
                changed=[pb.Resource(key=KEY_PB, digest=ZEROS, content=bytes(f.MAX_RESOURCE_BYTES + 1))]
            )
        ),
        pb.ConnectResponse(resources=pb.ResourceUpdate(removed=[KEY_PB] * (f.MAX_HELD + 1))),
        pb.ConnectResponse(answer=pb.Answer(body=bytes(f.MAX_ASK_BYTES + 1))),
    ],
)
def test_parent_frames_beyond_a_bound_are_refused(message: pb.ConnectResponse) -> None:
    with pytest.raises(MalformedFrameError):
        decode_parent(message)


def test_long_reasons_are_cut_where_they_are_sent() -> None:
    """A character that the cut would halve is dropped."""
    frame = decode_child(encode_child(f.Goodbye("ü" * f.MAX_REASON_BYTES)))
    assert frame == f.Goodbye("ü" * (f.MAX_REASON_BYTES // 2))


def test_bytes_that_are_no_message_are_refused() -> None:
    """GRPC hands over None where its deserializer failed (Q2)."""
    for decode in (decode_child, decode_parent):
        with pytest.raises(MalformedFrameError, match="no protobuf message"):
            decode(None)
