"""A blob as one zstd frame: right, or an error and no file (S5, H4)."""

from __future__ import annotations

import random
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wavemesh.artifacts.compressed import BadCompressedError, make_full_zstd, rebuild_full_zstd
from wavemesh.artifacts.digests import digest_of
from wavemesh.runtime.durable import DiskFaultError

if TYPE_CHECKING:
    from pathlib import Path

_CONTENT = b"".join(b"line %d of a file that compresses\n" % number for number in range(40_000))


def _made(directory: Path, content: bytes) -> Path:
    (directory / "target").write_bytes(content)
    make_full_zstd(directory / "target", directory / "payload", level=3)
    return directory / "payload"


@pytest.mark.parametrize("content", [b"", b"x", _CONTENT, random.Random(1).randbytes(3_000_000)])
def test_comes_back_as_it_was(tmp_path: Path, content: bytes) -> None:
    payload = _made(tmp_path, content)
    rebuild_full_zstd(payload, tmp_path / "out", digest_of(content))
    assert (tmp_path / "out").read_bytes() == content


def test_finds_what_is_there_twice_far_away(tmp_path: Path) -> None:
    noise = random.Random(2).randbytes(1_000_000)
    payload = _made(tmp_path, noise + bytes(12_000_000) + noise)
    assert payload.stat().st_size < 1_050_000


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_damage_gives_an_error_and_no_file(tmp_path: Path, data: st.DataObject) -> None:
    content = _CONTENT[:100_000]
    payload = _made(tmp_path, content)
    damaged = bytearray(payload.read_bytes())
    at = data.draw(st.integers(0, len(damaged) - 1))
    if data.draw(st.booleans()):
        damaged[at] ^= data.draw(st.integers(1, 255))
    else:
        del damaged[at:]
    payload.write_bytes(damaged)
    (tmp_path / "out").unlink(missing_ok=True)
    try:
        rebuild_full_zstd(payload, tmp_path / "out", digest_of(content))
    except BadCompressedError:
        assert not (tmp_path / "out").exists()
    else:
        assert (tmp_path / "out").read_bytes() == content


def test_a_frame_that_would_explode_stops_at_the_targets_size(tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(zstandard.ZstdCompressor().compress(bytes(1 << 30)))
    tracemalloc.start()
    with pytest.raises(BadCompressedError, match="more than 1000 bytes"):
        rebuild_full_zstd(tmp_path / "payload", tmp_path / "out", digest_of(bytes(1000)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 1024 * 1024
    assert not (tmp_path / "out").exists()


def test_a_window_above_the_bound_is_refused(tmp_path: Path) -> None:
    content = bytes(1000)
    wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, write_content_size=False)
    frame = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    (tmp_path / "payload").write_bytes(frame.compress(content) + frame.flush())
    with pytest.raises(BadCompressedError, match="emory"):
        rebuild_full_zstd(tmp_path / "payload", tmp_path / "out", digest_of(content))


def test_another_blob_of_that_size_is_refused(tmp_path: Path) -> None:
    payload = _made(tmp_path, b"one")
    with pytest.raises(BadCompressedError, match="holds 3 bytes with SHA-256"):
        rebuild_full_zstd(payload, tmp_path / "out", digest_of(b"two"))
    assert not (tmp_path / "out").exists()


def test_a_payload_that_is_gone_is_the_disks_fault(tmp_path: Path) -> None:
    with pytest.raises(DiskFaultError, match="payload"):
        rebuild_full_zstd(tmp_path / "payload", tmp_path / "out", digest_of(b""))
