"""Planning (P3, P4): cohorts, sizes, choice, the bootloader freeze."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.rollout import (
    FREEZE,
    Candidate,
    EmptyWaveError,
    MixedCohortError,
    choose_cohort,
    choose_devices,
    cohorts_of,
    effective_percentage,
    name_of,
    region_of,
    store_of,
    wave_size,
)
from wavemesh.errors import NotFoundError

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def device(store: int, number: int, *, kind: str = "pos", revision: str = "r2", **more: object) -> Candidate:
    path = f"region/midwest/store/store-{store}/device/pos-{number:02}"
    return Candidate(path, kind, revision, **more)  # type: ignore[arg-type]  # runs_release, open_wave


DEVICES = st.lists(
    st.builds(
        device,
        store=st.integers(1, 5),
        number=st.integers(1, 20),
        kind=st.sampled_from(["pos", "scanner"]),
        revision=st.sampled_from(["r1", "r2"]),
        runs_release=st.booleans(),
        open_wave=st.sampled_from(["", "", "141"]),
    ),
    min_size=1,
    unique_by=lambda one: one.path,
)


@given(DEVICES)
def test_cohorts_partition_a_segment(devices: list[Candidate]) -> None:
    """Every device is in exactly one cohort, and each is homogeneous."""
    cohorts = cohorts_of("shop", devices)
    assert sorted(one.path for cohort in cohorts for one in cohort.devices) == sorted(one.path for one in devices)
    for cohort in cohorts:
        assert {(one.device_class, one.hardware_revision) for one in cohort.devices} == {
            (cohort.device_class, cohort.hardware_revision)
        }
        assert choose_cohort(cohort.name, "shop", devices) == cohort
    if len(cohorts) > 1:
        with pytest.raises(MixedCohortError) as caught:
            choose_cohort("shop", "shop", devices)
        assert all(cohort.name in str(caught.value) for cohort in cohorts)
    else:
        assert cohorts[0].name == "shop"


def test_unknown_cohorts_are_refused() -> None:
    with pytest.raises(NotFoundError, match="no registered device"):
        choose_cohort("shop", "shop", [])
    with pytest.raises(NotFoundError, match="its cohorts: shop"):
        choose_cohort("shop/pos/r9", "shop", [device(1, 1)])


@given(st.integers(1, 100_000), st.integers(1, 100))
def test_wave_size(cohort_size: int, percentage: int) -> None:
    """The share, rounded up, at least 1, never above the whole."""
    size = wave_size(cohort_size, percentage)
    assert 1 <= size <= cohort_size
    assert (size - 1) * 100 < cohort_size * percentage <= size * 100 or size == 1
    assert size == max(1, math.ceil(cohort_size * percentage / 100 - 1e-9))


@given(DEVICES, st.integers(1, 60), st.one_of(st.none(), st.integers(1, 6)), st.randoms())
def test_choice(devices: list[Candidate], size: int, budget: int | None, random: object) -> None:
    """Within size and budget, spread by store, only devices that may; the same whatever the order of the input."""
    for cohort in cohorts_of("shop", devices):
        able = [one for one in cohort.devices if not one.runs_release and not one.open_wave]
        if not able:
            with pytest.raises(EmptyWaveError):
                choose_devices(cohort, size=size, hub_budget=budget, regions=frozenset())
            continue
        chosen = choose_devices(cohort, size=size, hub_budget=budget, regions=frozenset())
        picked = [path for paths in chosen.values() for path in paths]
        assert set(picked) <= {one.path for one in able}
        assert len(set(picked)) == len(picked) <= size
        assert len(chosen) <= (budget or 5)
        held = {store: sum(one.store == store for one in able) for store in chosen}
        for store, paths in chosen.items():
            others = max((len(other) for other in chosen.values()), default=0)
            assert len(paths) >= min(others - 1, held[store])
        shuffled = list(devices)
        random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a Random
        again = next(one for one in cohorts_of("shop", shuffled) if one.name == cohort.name)
        assert choose_devices(again, size=size, hub_budget=budget, regions=frozenset()) == chosen


def test_the_whole_share_is_taken_where_the_stores_have_it() -> None:
    """Neither too few: devices that run the release make room for others within the same share."""
    devices = [device(store, number, runs_release=number == 1) for store in (1, 2) for number in range(1, 7)]
    [cohort] = cohorts_of("shop", devices)
    chosen = choose_devices(cohort, size=wave_size(12, 50), hub_budget=2, regions=frozenset({"midwest"}))
    assert [len(paths) for paths in chosen.values()] == [3, 3]
    assert all(not path.endswith("pos-01") for paths in chosen.values() for path in paths)


def test_a_store_with_fewer_devices_leaves_its_share_to_the_others() -> None:
    devices = [device(1, 1), *(device(2, number) for number in range(1, 5))]
    [cohort] = cohorts_of("shop", devices)
    chosen = choose_devices(cohort, size=5, hub_budget=None, regions=frozenset())
    assert [len(paths) for paths in chosen.values()] == [1, 4]


def test_why_a_wave_would_be_empty() -> None:
    running, busy = device(1, 1, runs_release=True), device(1, 2, open_wave="141")
    [cohort] = cohorts_of("shop", [running, busy])
    with pytest.raises(EmptyWaveError, match="of 2, 1 run the release already, open waves 141 hold others; the rest"):
        choose_devices(cohort, size=1, hub_budget=None, regions=frozenset())
    [cohort] = cohorts_of("shop", [running])
    with pytest.raises(EmptyWaveError, match="of 1, 1 run the release already; the rest"):
        choose_devices(cohort, size=1, hub_budget=None, regions=frozenset())


def test_parts_of_a_path() -> None:
    path = device(7, 1).path
    assert (region_of(path), store_of(path), name_of(path)) == (
        "region/midwest",
        "region/midwest/store/store-7",
        "pos-01",
    )


def test_regions_bound_a_release() -> None:
    [cohort] = cohorts_of("shop", [device(1, 1)])
    with pytest.raises(EmptyWaveError, match="outside its regions"):
        choose_devices(cohort, size=1, hub_budget=None, regions=frozenset({"south"}))


@pytest.mark.parametrize(
    ("touches", "started", "expected"),
    [
        (False, None, 25),
        (True, None, 1),
        (True, NOW - FREEZE + timedelta(seconds=1), 1),
        (True, NOW - FREEZE, 25),
    ],
)
def test_the_bootloader_freeze(*, touches: bool, started: datetime | None, expected: int) -> None:
    """P4: 1 % until 48 h after the release's first wave started."""
    found = effective_percentage(25, touches_bootloader=touches, first_started_at=started, now=NOW)
    assert found == expected
