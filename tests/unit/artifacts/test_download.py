"""The resume loop: what is held is never asked for again, answers are not retried, patience ends."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from wavemesh.artifacts.digests import digest_of
from wavemesh.artifacts.download import Patience, download
from wavemesh.errors import BusyError, ForbiddenError, GateError, LinkDownError, NotFoundError, PeerError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from wavemesh.trust.statements import Digest

CONTENT = bytes(range(100))
DIGEST = digest_of(CONTENT)
QUICK = Patience(attempts=3, back_off_min_s=0.0, back_off_max_s=0.0)


class Reader:
    """Yields what the script says, then raises what it says; the last entry repeats."""

    def __init__(self, *script: tuple[int, PeerError | None]) -> None:
        self.script = list(script)
        self.offsets: list[int] = []

    async def read(self, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        self.offsets.append(offset)
        count, error = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if count:
            yield memoryview(CONTENT)[offset : offset + count]
        if error is not None:
            raise error


class Sink:
    def __init__(self) -> None:
        self.content = b""
        self.finished = 0

    digest = DIGEST

    @property
    def offset(self) -> int:
        return len(self.content)

    async def write(self, data: bytes | memoryview) -> None:
        self.content += data

    async def finish(self) -> None:
        self.finished += 1


async def test_it_goes_on_where_it_broke() -> None:
    """M3."""
    broken = LinkDownError("gone")
    reader = Reader((10, broken), (0, broken), (0, BusyError("later", 0.0)), (30, broken), (0, broken), (100, None))
    sink, seen = Sink(), list[int]()
    await download(reader, sink, rng=Random(1), patience=QUICK, progress=seen.append)
    assert reader.offsets == [0, 10, 10, 10, 40, 40]
    assert (sink.content, sink.finished) == (CONTENT, 1)
    assert seen == [10, 40, 100]


async def test_a_short_stream_is_resumed_too() -> None:
    sink = Sink()
    await download(Reader((60, None), (60, None)), sink, rng=Random(1), patience=QUICK)
    assert sink.content == CONTENT


@pytest.mark.parametrize(
    "answer", [GateError("hold", "on hold"), NotFoundError("what?"), ForbiddenError("not you")], ids=lambda e: e.reason
)
async def test_answers_end_it_at_once(answer: PeerError) -> None:
    reader, sink = Reader((10, answer)), Sink()
    with pytest.raises(type(answer)) as caught:
        await download(reader, sink, rng=Random(1), patience=QUICK)
    assert caught.value is answer
    assert reader.offsets == [0]
    assert (sink.offset, sink.finished) == (10, 0)


async def test_patience_ends_only_without_progress() -> None:
    reader = Reader((10, LinkDownError("a")), (10, LinkDownError("b")), (0, LinkDownError("last")))
    with pytest.raises(LinkDownError, match="last"):
        await download(reader, Sink(), rng=Random(1), patience=QUICK)
    assert reader.offsets == [0, 10, 20, 20, 20]


async def test_an_endless_empty_stream_does_not_loop_for_ever() -> None:
    with pytest.raises(PeerError):
        await download(Reader((0, None)), Sink(), rng=Random(1), patience=QUICK)
