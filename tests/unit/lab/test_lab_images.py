"""Firmware images: the same bytes each time, two that differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.images import build_library_images, build_small_images, digest_of

if TYPE_CHECKING:
    from pathlib import Path


def test_library_images_are_the_same_each_time_and_differ(tmp_path: Path) -> None:
    one, two = build_library_images(tmp_path / "one"), build_library_images(tmp_path / "two")
    assert (digest_of(one.old), digest_of(one.new)) == (digest_of(two.old), digest_of(two.new))
    assert digest_of(one.old) != digest_of(one.new)
    assert digest_of(one.new)[1] > digest_of(one.old)[1] > 4 * 1024 * 1024


def test_small_images_share_most_bytes(tmp_path: Path) -> None:
    pair = build_small_images(tmp_path, 80_000)
    old, new = pair.old.read_bytes(), pair.new.read_bytes()
    assert len(old) == len(new) == 80_000
    different = sum(a != b for a, b in zip(old, new, strict=True))
    assert 9_000 < different <= 10_000


def test_a_pair_is_made_once(tmp_path: Path) -> None:
    first = build_small_images(tmp_path, 80_000)
    before = first.old.stat().st_mtime_ns
    assert build_small_images(tmp_path, 80_000).old.stat().st_mtime_ns == before
