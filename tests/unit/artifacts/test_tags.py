"""Tags of verified steps: the same however the bytes came, another for any other byte."""

from __future__ import annotations

from random import Random

import pytest

from wavemesh.artifacts.tags import READ_STEP_BYTES, Tagger, tag_of

CONTENT = Random(5).randbytes(2 * READ_STEP_BYTES + 1000)


def steps(content: bytes) -> list[bytes]:
    return [content[start : start + READ_STEP_BYTES] for start in range(0, len(content), READ_STEP_BYTES)]


@pytest.mark.parametrize("piece_bytes", [1 << 20, READ_STEP_BYTES, 100_003])
def test_pieces_of_any_length_make_the_tags_of_whole_steps(piece_bytes: int) -> None:
    tagger = Tagger()
    for start in range(0, len(CONTENT), piece_bytes):
        tagger.update(CONTENT[start : start + piece_bytes])
    assert tagger.tags() == tuple(map(tag_of, steps(CONTENT)))


def test_an_end_on_a_step_makes_no_empty_tag() -> None:
    tagger = Tagger()
    tagger.update(CONTENT[:READ_STEP_BYTES])
    assert len(tagger.tags()) == 1
    assert Tagger().tags() == ()


def test_every_changed_byte_and_length_shows() -> None:
    step = CONTENT[:READ_STEP_BYTES]
    for position in (0, 4097, READ_STEP_BYTES - 1):
        changed = bytearray(step)
        changed[position] ^= 1
        assert tag_of(bytes(changed)) != tag_of(step)
    assert tag_of(step[:-1]) != tag_of(step)
    assert tag_of(b"") != tag_of(bytes(1))
