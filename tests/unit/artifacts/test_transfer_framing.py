"""The hand-made frames are protobuf, both ways."""

from __future__ import annotations

import pytest

from wavemesh.artifacts.transfer import BadTransferError, frame, unframe
from wavemesh.v1.artifact_pb2 import ReadResponse


@pytest.mark.parametrize("size", [1, 2, 127, 128, 16_383, 16_384, 524_288, 2_097_151, 2_097_152])
def test_generated_code_and_hand_made_frames_agree(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    assert frame(data) == ReadResponse(data=data).SerializeToString()
    assert ReadResponse.FromString(frame(data)).data == data
    assert unframe(frame(data)) == data


def test_unusual_protobuf_is_understood() -> None:
    """Fields unknown to us, an empty message and a varint longer than needed are valid protobuf."""
    assert bytes(unframe(b"\x10\x01" + frame(b"abc"))) == b"abc"
    assert bytes(unframe(frame(b"abc") + b"\x10\x01")) == b"abc"
    assert bytes(unframe(b"\x0a\x83\x00abc")) == b"abc"
    assert bytes(unframe(b"")) == b""
    assert bytes(unframe(frame(b""))) == b""


@pytest.mark.parametrize("message", [b"\x0a", b"\x0a\x05abc", b"\x0a\xff\xff\xff\xff\xff\xff", b"\xff", b"\x0a\x80"])
def test_rubbish_is_refused(message: bytes) -> None:
    with pytest.raises(BadTransferError):
        unframe(message)
