"""What a wave will move (S5): by store, region and fleet; unknown says so and stands for the whole blob."""

from __future__ import annotations

from datetime import UTC, datetime

from control.forecast import FLEET, Forecast, forecast
from wavemesh.policy.document import DeliveryTerms
from wavemesh.trust.delivered import DerivedSize
from wavemesh.trust.statements import Digest, HubStatus

MIB = 1 << 20
AT = datetime(2026, 11, 27, tzinfo=UTC)
MIDWEST, EAST = "region/midwest", "region/east"
ONE, TWO, FAR = f"{MIDWEST}/store/one", f"{MIDWEST}/store/two", f"{EAST}/store/far"
OLD, NEW, SIGNATURE = Digest("0" * 64, 90 * MIB), Digest("1" * 64, 100 * MIB), Digest("2" * 64, 2000)
DELTA = DerivedSize(NEW.sha256, "delta", 3 * MIB, (OLD.sha256,))
ZSTD = DerivedSize(NEW.sha256, "full-zstd", 40 * MIB)


def says(path: str, *held: Digest, derived: tuple[DerivedSize, ...] = ()) -> HubStatus:
    return HubStatus(path, AT, held=held, derived=derived)


def of(place: str, found: tuple[Forecast, ...]) -> Forecast:
    [one] = [one for one in found if one.place == place]
    return one


def test_each_store_by_what_it_holds_and_sums_by_region_and_fleet() -> None:
    hubs = {
        ONE: says(ONE, OLD),
        TWO: says(TWO, NEW),
        FAR: says(FAR, OLD),
        MIDWEST: says(MIDWEST, derived=(ZSTD, DELTA)),
    }
    found = forecast([TWO, ONE, FAR], [NEW, SIGNATURE], hubs, DeliveryTerms())
    assert [one.place for one in found] == [FAR, ONE, TWO, EAST, MIDWEST, FLEET]
    assert of(ONE, found).methods == {"delta": 1, "full": 1}
    assert of(ONE, found).expected_bytes == 3 * MIB + 2000
    assert of(TWO, found).methods == {"held": 1, "full": 1}
    assert of(TWO, found).expected_bytes == 2000
    assert of(FAR, found).methods == {"unknown": 1, "full": 1}
    assert of(FAR, found).unknown_bytes == 100 * MIB
    assert of(MIDWEST, found).expected_bytes == 3 * MIB + 4000
    fleet = of(FLEET, found)
    assert (fleet.expected_bytes, fleet.unknown_bytes) == (103 * MIB + 6000, 100 * MIB)
    assert fleet.full_bytes == 300 * MIB + 6000
    assert fleet.methods == {"delta": 1, "held": 1, "unknown": 1, "full": 3}


def test_a_store_never_heard_is_unknown_and_a_delta_needs_its_base() -> None:
    only_delta = {MIDWEST: says(MIDWEST, derived=(DELTA,))}
    assert of(ONE, forecast([ONE], [NEW], only_delta, DeliveryTerms())).methods == {"unknown": 1}
    heard = only_delta | {ONE: says(ONE)}
    assert of(ONE, forecast([ONE], [NEW], heard, DeliveryTerms())).methods == {"unknown": 1}
    compressed = {MIDWEST: says(MIDWEST, derived=(ZSTD, DELTA)), ONE: says(ONE)}
    assert of(ONE, forecast([ONE], [NEW], compressed, DeliveryTerms())).methods == {"full-zstd": 1}


def test_a_method_of_a_newer_super_hub_is_passed_over() -> None:
    newer = DerivedSize(NEW.sha256, "telepathy", 1)
    hubs = {MIDWEST: says(MIDWEST, derived=(newer,)), ONE: says(ONE, OLD)}
    assert of(ONE, forecast([ONE], [NEW], hubs, DeliveryTerms())).methods == {"unknown": 1}


def test_stores_over_the_budget_are_counted() -> None:
    hubs = {MIDWEST: says(MIDWEST, derived=(DELTA,)), ONE: says(ONE, OLD), TWO: says(TWO)}
    found = forecast([ONE, TWO], [NEW, SIGNATURE], hubs, DeliveryTerms(byte_budget=3 * MIB))
    assert (of(ONE, found).over_budget, of(TWO, found).over_budget, of(FLEET, found).over_budget) == (0, 1, 1)
