"""Our ways from an old image to a new one: each made, then rebuilt and checked byte for byte."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.delta_peers import check
from wavemesh.artifacts.chunks import (
    Range,
    chunk_file,
    make_pack,
    missing,
    missing_bytes,
    parse_index,
    rebuild_from_pack,
)
from wavemesh.artifacts.compressed import make_full_zstd, rebuild_full_zstd
from wavemesh.artifacts.delta import codec
from wavemesh.artifacts.delta.worker import Workers
from wavemesh.artifacts.digests import digest_of_file
from wavemesh.artifacts.plan import Method, Offer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from wavemesh.artifacts.plan import TransferPlan
    from wavemesh.trust.statements import Digest


@dataclass(frozen=True, slots=True)
class Made:
    """A way that was made: what it is offered as, what it took to make, and how it is rebuilt."""

    offer: Offer
    make_s: float
    files: dict[Digest, Path]
    rebuild: Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Images:
    """The two images, the new one's and the old one's digest."""

    old: Path
    new: Path
    target: Digest
    base: Digest


def images_of(old: Path, new: Path) -> Images:
    """Hash both."""
    return Images(old, new, digest(new), digest(old))


def digest(path: Path) -> Digest:
    """Of a file."""
    return asyncio.run(digest_of_file(path))


def full_zstd(images: Images, work: Path) -> Made:
    """The new image as one zstd frame."""
    payload = work / "full.zst"
    start = time.perf_counter()
    make_full_zstd(images.new, payload)
    make_s = time.perf_counter() - start
    name = digest(payload)
    offer = Offer(Method.FULL_ZSTD, payload=name, read_bytes=name.size_bytes)
    return Made(offer, make_s, {name: payload}, lambda out: rebuild_full_zstd(payload, out, images.target))


def chunks(images: Images, work: Path) -> Made:
    """Chunks that the old image lacks, and their index; the offer's bytes are what whoever holds the old one knows."""
    pack, index = work / "pack", work / "index"
    start = time.perf_counter()
    make_pack(images.new, pack, index)
    make_s = time.perf_counter() - start
    parsed = parse_index(index.read_bytes())
    had = {chunk.id for chunk in chunk_file(images.old)}
    read_bytes = index.stat().st_size + missing_bytes(parsed, had)
    names = {digest(pack): pack, digest(index): index}
    payload, of_index = names
    offer = Offer(Method.CHUNKS, (images.base,), payload=payload, index=of_index, read_bytes=read_bytes)

    def rebuild(out: Path) -> None:
        ranges = missing(parsed, {chunk.id for chunk in chunk_file(images.old)})
        part = work / "part"
        with pack.open("rb") as source, part.open("wb") as sink:
            for one in ranges:
                source.seek(one.offset)
                sink.write(source.read(one.length))
        rebuild_from_pack(parsed, part, ranges, [images.old], out=out, target=images.target)

    return Made(offer, make_s, names, rebuild)


def delta(images: Images, work: Path) -> Made:
    """The delta, made in a worker as a super hub does."""
    payload = work / "delta"
    start = time.perf_counter()
    asyncio.run(_make(images, payload))
    make_s = time.perf_counter() - start
    name = digest(payload)
    offer = Offer(Method.DELTA, (images.base,), payload=name, read_bytes=name.size_bytes)
    return Made(offer, make_s, {name: payload}, lambda out: codec.rebuild([images.old], payload, out, images.target))


async def _make(images: Images, payload: Path) -> None:
    await Workers().make([images.old], images.new, payload)


WAYS: dict[str, Callable[[Images, Path], Made]] = {"full_zstd": full_zstd, "chunks": chunks, "pairwise": delta}


def apply_s(made: Made, images: Images, out: Path, rounds: int) -> float:
    """Median seconds to rebuild to ``out``, checked each time."""
    took: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        made.rebuild(out)
        took.append(time.perf_counter() - start)
        check(made.offer.method.value, out, images.new)
        out.unlink()
    return statistics.median(took)


def worker_s(made: Made, images: Images, out: Path) -> float:
    """Seconds to rebuild a delta in a contained process, its start included."""
    (payload,) = made.files.values()

    async def run() -> None:
        await Workers().rebuild([images.old], payload, out, images.target)

    start = time.perf_counter()
    asyncio.run(run())
    took = time.perf_counter() - start
    check("delta in a worker", out, images.new)
    out.unlink()
    return took


def ranges_of(made: Made, images: Images) -> tuple[Range, ...]:
    """What of the pack the old image lacks, as a plan has it."""
    index = made.offer.index
    if index is None:
        raise RuntimeError("only chunks have ranges")
    parsed = parse_index(made.files[index].read_bytes())
    had = {chunk.id for chunk in chunk_file(images.old)}
    return missing(parsed, had)


def moved_bytes(plan: TransferPlan, made: Made | None, work: Path) -> int:
    """Read the plan's pieces as a store does, counting the bytes that come out of the files."""
    if made is None:
        return plan.target.size_bytes
    count = 0
    with (work / "read").open("wb") as sink:
        for piece in plan.pieces:
            with made.files[piece.digest].open("rb") as source:
                source.seek(piece.offset)
                count += sink.write(source.read(piece.length))
    (work / "read").unlink()
    return count
