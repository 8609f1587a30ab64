"""Decisions about deliveries (S5): bases, budget, what was read; and that a delivery is read back as it was kept."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storehub.deliveries import (
    BASES_MOST,
    HELD_SHOWN_MOST,
    LATE_FACTOR,
    LATE_S,
    LEAST_PLANNED_BYTES,
    RATE_LEAST_BYTES,
    SHOWN_MOST,
    WAIT_STEP_S,
    Delivery,
    HeldBlob,
    budget_left,
    charged_wave,
    held_shown,
    in_steps,
    late,
    likely_bases,
    next_look,
    pieces_needed,
    rate_after,
    read_so_far,
    shown,
)
from storehub.delivery_rows import from_text, to_text
from wavemesh.artifacts.chunkindex import Range
from wavemesh.artifacts.plan import Failure, Link, Method, Offer, TransferPlan, choose
from wavemesh.trust.delivered import DeliveryState
from wavemesh.trust.releases import Artifact, ReleaseManifest
from wavemesh.trust.statements import Digest

MIB = 1 << 20
AT = datetime(2026, 11, 27, 6, tzinfo=UTC)
LINK = Link(MIB)
BIG = 10 * MIB


def blob(number: int, size_bytes: int = BIG) -> Digest:
    return Digest(f"{number:064x}", size_bytes)


TARGET, OLD, OTHER, CONFIG = blob(1), blob(2), blob(3), blob(4)
DELTA = Offer(Method.DELTA, (OLD,), blob(20, MIB))
CHUNKS = Offer(Method.CHUNKS, (OLD,), blob(21, 8 * MIB), blob(22, 1000), ranges=(Range(0, 500), Range(900, 600)))
WAITING = Offer(Method.DELTA, (OLD,), None, read_bytes=MIB, ready_in_s=10)


def plan(*offers: Offer) -> TransferPlan:
    return choose(TARGET, offers, Link(MIB, 1, 0), None)


def delivery(target: Digest = TARGET, **changes: object) -> Delivery:
    return replace(Delivery(target, "142", AT, DeliveryState.READING), **changes)  # type: ignore[arg-type]


def release(name: str, firmware: Digest, config: Digest | None = None, device_class: str = "pos") -> ReleaseManifest:
    return ReleaseManifest(
        name=name,
        version="1.0.0",
        device_class=device_class,
        hardware_revisions=("r1",),
        signed_at=AT,
        firmware=Artifact(f"{name}.img", firmware),
        config=Artifact(f"{name}.tgz", config) if config is not None else None,
        signature=Artifact(f"{name}.sig", blob(99, 100)),
    )


RELEASES = [release("new", TARGET), release("old", OLD, CONFIG), release("else", OTHER, device_class="scanner")]


def held(digest: Digest, hours: float = 0) -> HeldBlob:
    return HeldBlob(digest, AT + timedelta(hours=hours))


def test_the_same_artifact_of_other_releases_comes_first_then_what_most_devices_run() -> None:
    older = blob(5)
    releases = [*RELEASES, release("older", older)]
    blobs = [held(OTHER, 9), held(CONFIG, 8), held(older, 7), held(OLD, 1)]
    assert likely_bases(TARGET, blobs, releases, {OLD.sha256: 3, older.sha256: 1}) == (OLD, older, OTHER, CONFIG)
    assert likely_bases(TARGET, blobs, releases, {}) == (older, OLD, OTHER, CONFIG)
    assert likely_bases(TARGET, reversed(blobs), releases, {}) == (older, OLD, OTHER, CONFIG)


def test_what_is_small_or_the_blob_itself_is_no_base_and_not_too_many_are_named() -> None:
    blobs = [held(TARGET), held(blob(6, LEAST_PLANNED_BYTES - 1)), held(blob(7, LEAST_PLANNED_BYTES))]
    assert likely_bases(TARGET, blobs, RELEASES, {}) == (blob(7, LEAST_PLANNED_BYTES),)
    many = [held(blob(100 + number)) for number in range(BASES_MOST + 5)]
    assert len(likely_bases(TARGET, many, RELEASES, {})) == BASES_MOST


def test_what_was_read_counts_once_and_what_lay_here_does_not() -> None:
    present = {blob(20, MIB): 700_000, TARGET: 4000, blob(22, 1000): 1000}
    one = delivery(plan=plan(DELTA), settled_bytes=50, held_bytes=200_000)
    assert read_so_far(one, lambda d: present.get(d, 0), 0) == 500_050
    assert read_so_far(replace(one, plan=plan()), lambda d: present.get(d, 0), 0) == 50
    assert read_so_far(replace(one, plan=plan(CHUNKS), held_bytes=0), lambda d: present.get(d, 0), 300) == 1350
    assert read_so_far(replace(one, plan=None), lambda d: present.get(d, 0), 0) == 50
    assert read_so_far(replace(one, plan=plan(WAITING)), lambda d: present.get(d, 0), 0) == 50
    done = replace(one, state=DeliveryState.DONE, moved_bytes=7)
    assert read_so_far(done, lambda _: 10**9, 0) == 7


def test_a_pack_is_read_in_parts_and_so_is_no_whole_piece() -> None:
    assert pieces_needed(plan(CHUNKS)) == (blob(22, 1000),)
    assert pieces_needed(plan(DELTA)) == (blob(20, MIB),)
    assert pieces_needed(plan()) == ()


def test_the_budget_counts_what_was_read_and_what_others_have_planned() -> None:
    mine = delivery(settled_bytes=10)
    reading = delivery(OTHER, plan=replace(plan(DELTA), target=OTHER))
    done = delivery(CONFIG, state=DeliveryState.DONE, moved_bytes=300)
    refused = delivery(blob(8), state=DeliveryState.REFUSED, plan=plan(DELTA))
    elsewhere = delivery(blob(9), wave_id="7", state=DeliveryState.DONE, moved_bytes=10**9)
    all_of_them = [(mine, 90), (reading, 5), (done, 300), (refused, 20), (elsewhere, 10**9)]
    assert budget_left(2 * MIB, "142", all_of_them, TARGET) == 2 * MIB - 10 - MIB - 300 - 20
    assert budget_left(100, "142", all_of_them, TARGET) == 0
    assert budget_left(None, "142", all_of_them, TARGET) is None


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=6), st.integers(0, 10**7))
def test_two_that_begin_at_once_never_both_spend_the_budget(sizes: list[tuple[int, int]], budget: int) -> None:
    """Whatever is planned one after the other within what is left stays within the budget, all of it."""
    planned: list[tuple[Delivery, int]] = []
    for number, (size, moved) in enumerate(sizes):
        target = blob(1000 + number, size + 1)
        left = budget_left(budget, "142", planned, target)
        assert left is not None
        if target.size_bytes <= left:
            full = choose(target, (), LINK, left)
            planned.append((delivery(target, plan=full), min(moved, target.size_bytes)))
    assert sum(one.target.size_bytes for one, _ in planned) <= budget


def test_what_is_not_made_in_time_is_not_waited_for_again() -> None:
    waiting = delivery(state=DeliveryState.WAITING, plan=plan(WAITING), waits_since=AT)
    bound = timedelta(seconds=10 * LATE_FACTOR + LATE_S)
    assert late(waiting, AT + bound) is None
    failure = late(waiting, AT + bound + timedelta(seconds=1))
    assert failure is not None
    assert (failure.method, failure.bases, failure.payload) == (Method.DELTA, (OLD,), None)
    assert "not made within 81 s" in failure.reason
    assert late(replace(waiting, plan=plan(DELTA)), AT + timedelta(days=1)) is None


@pytest.mark.parametrize(("ready_in_s", "looks"), [(0, 0.5), (5, 5), (3600, WAIT_STEP_S)])
def test_it_is_asked_for_again_when_it_should_be_ready(ready_in_s: float, looks: float) -> None:
    assert next_look(ready_in_s, AT) == AT + timedelta(seconds=looks)


def test_the_speed_of_the_link_follows_what_was_seen() -> None:
    assert rate_after(1000.0, RATE_LEAST_BYTES - 1, 1) == 1000.0
    assert rate_after(1000.0, MIB, 0) == 1000.0
    seen = rate_after(1000.0, 2 * MIB, 2)
    assert 1000 < seen < MIB
    for _ in range(50):
        seen = rate_after(seen, 2 * MIB, 2)
    assert seen == pytest.approx(MIB, rel=0.01)


def test_the_first_wave_that_needs_a_blob_pays() -> None:
    later = AT + timedelta(hours=1)
    waves = [("2", later, (TARGET,)), ("9", AT, (TARGET, OLD)), ("1", AT, (OLD,))]
    assert charged_wave(TARGET, waves) == "9"
    assert charged_wave(CONFIG, waves) == ""


def test_a_status_shows_open_waves_first_and_not_too_many() -> None:
    old = [delivery(blob(100 + n), wave_id="1", began_at=AT + timedelta(hours=n)) for n in range(80)]
    mine = delivery(wave_id="142", plan=plan(DELTA), said="é" * 600)
    views = shown([*old, mine], ["142"], lambda _: 7, {TARGET: ("a.img", "b.img")})
    assert len(views) == SHOWN_MOST
    assert (views[0].sha256, views[0].method, views[0].moved_bytes) == (TARGET.sha256, "delta", 7)
    assert views[0].name == "a.img, b.img"
    assert len(views[0].said.encode()) <= 480
    assert views[1].sha256 == blob(179).sha256


def test_what_goes_up_changes_in_steps_while_bytes_move() -> None:
    [view] = shown([delivery(plan=plan(DELTA))], [], lambda _: 3 * MIB + 5, {})
    assert in_steps(view).moved_bytes == 3 * MIB
    assert in_steps(replace(view, state=DeliveryState.DONE)).moved_bytes == 3 * MIB + 5


def test_what_a_status_says_is_held() -> None:
    blobs = [held(blob(6, 5)), *(held(blob(100 + number), number) for number in range(20))]
    found = held_shown(blobs)
    assert found[0] == blob(119)
    assert len(found) == HELD_SHOWN_MOST


@pytest.mark.parametrize("offers", [(), (DELTA,), (CHUNKS,), (WAITING,), (DELTA, CHUNKS, replace(DELTA, bases=()))])
def test_a_delivery_is_read_back_as_it_was_kept(offers: tuple[Offer, ...]) -> None:
    kept = delivery(
        plan=plan(*offers),
        said='why "so"',
        forecast_bytes=1,
        settled_bytes=2,
        held_bytes=3,
        moved_bytes=4,
        waits_since=AT,
        wait_until=AT + timedelta(seconds=3),
        failures=(Failure(Method.DELTA, (OLD,), None, "late"), Failure(Method.CHUNKS, (), OTHER, "wrong")),
    )
    assert from_text(to_text(kept)) == kept
    bare = Delivery(TARGET, "", AT, DeliveryState.REFUSED)
    assert from_text(to_text(bare)) == bare
