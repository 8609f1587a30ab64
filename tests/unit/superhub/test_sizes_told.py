"""What a super hub's status says was made, for control to forecast by (S5)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from superhub.derivations import TOLD_MOST, Made, Recipe, sizes_told
from wavemesh.artifacts.plan import Method
from wavemesh.trust.delivered import DerivedSize
from wavemesh.trust.statements import Digest

AT = datetime(2026, 11, 27, tzinfo=UTC)


def blob(number: int, size_bytes: int = 100) -> Digest:
    return Digest(f"{number:064x}", size_bytes)


def made(method: Method, number: int, *bases: Digest) -> Made:
    return Made(Recipe(method, blob(1), bases), blob(number, number), None, AT + timedelta(seconds=number), 1.0)


def test_deltas_and_compressed_blobs_are_told_and_chunks_are_not() -> None:
    found = sizes_told([made(Method.DELTA, 20, blob(2)), made(Method.CHUNKS, 30), made(Method.FULL_ZSTD, 40)])
    assert found == (
        DerivedSize(blob(1).sha256, "full-zstd", 40),
        DerivedSize(blob(1).sha256, "delta", 20, (blob(2).sha256,)),
    )


def test_the_newest_are_told_and_not_too_many() -> None:
    found = sizes_told([made(Method.DELTA, number, blob(2)) for number in range(10, 20 + TOLD_MOST)])
    assert len(found) == TOLD_MOST
    assert found[0].read_bytes == 19 + TOLD_MOST
