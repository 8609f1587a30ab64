"""What is made of blobs in processes of their own, within bounds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from wavemesh.artifacts.chunks import parse_index
from wavemesh.artifacts.compressed import rebuild_full_zstd
from wavemesh.artifacts.delta.worker import Bounds, DeltaBoundError
from wavemesh.artifacts.digests import digest_of
from wavemesh.artifacts.making import Makers
from wavemesh.runtime.durable import DiskFaultError

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = random.Random(1).randbytes(400_000) + bytes(100_000)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").write_bytes(CONTENT)
    return tmp_path / "target"


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def test_it_compresses_and_packs(tmp_path: Path, target: Path) -> None:
    makers = Makers()
    await makers.compress(target, tmp_path / "payload", 3)
    rebuild_full_zstd(tmp_path / "payload", tmp_path / "out", digest_of(CONTENT))
    assert (tmp_path / "out").read_bytes() == CONTENT
    await makers.pack(target, tmp_path / "pack", tmp_path / "index", 3)
    index = parse_index((tmp_path / "index").read_bytes())
    assert index.target == digest_of(CONTENT)
    assert index.pack_bytes == (tmp_path / "pack").stat().st_size
    assert names_in(tmp_path) == {"target", "payload", "out", "pack", "index"}


async def test_it_tells_what_is_alike(tmp_path: Path, target: Path) -> None:
    (tmp_path / "like").write_bytes(CONTENT[:200_000] + b"!" + CONTENT[200_000:])
    (tmp_path / "unlike").write_bytes(random.Random(2).randbytes(500_000))
    makers = Makers()
    assert (await makers.liken([tmp_path / "like"], target, tmp_path / "said")).is_delta_worth_making
    assert not (await makers.liken([tmp_path / "unlike"], target, tmp_path / "said")).is_delta_worth_making


async def test_a_job_without_time_is_stopped_and_leaves_nothing(tmp_path: Path, target: Path) -> None:
    makers = Makers(make_bounds=Bounds(memory_mib=1024, cpu_s=10, wall_s=0.01))
    with pytest.raises(DeltaBoundError, match="longer than"):
        await makers.compress(target, tmp_path / "payload", 19)
    assert names_in(tmp_path) == {"target"}


async def test_a_target_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiskFaultError, match="gone: No such file"):
        await Makers().compress(tmp_path / "gone", tmp_path / "payload", 3)
