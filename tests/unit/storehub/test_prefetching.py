"""Which reads a window bounds, and what is left to be read, where blobs come by deliveries (H3, S5)."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from storehub.deliveries import Delivery
from storehub.delivery import Deliveries
from storehub.nights import Meter
from storehub.prefetching import Prefetching
from storehub.records import Disposition
from wavemesh.artifacts.plan import Link, Method, Offer, choose
from wavemesh.trust.delivered import DeliveryState
from wavemesh.trust.statements import Digest, IntentKind

if TYPE_CHECKING:
    from collections.abc import Iterable

NOW = datetime(2026, 5, 1, tzinfo=UTC)
TARGET, BASE, PAYLOAD, OTHER = (Digest(f"{number:064x}", size) for number, size in enumerate((9000, 8000, 300, 50)))


def delivery(state: DeliveryState = DeliveryState.READING) -> Delivery:
    plan = choose(TARGET, [Offer(Method.DELTA, (BASE,), PAYLOAD, read_bytes=300)], Link(1e6), None)
    assert plan.payload == PAYLOAD
    return Delivery(TARGET, "", NOW, state, plan=plan)


def prefetching(window: str, deliveries: Iterable[Delivery], present: dict[Digest, int]) -> Prefetching:
    intent = SimpleNamespace(
        intent=SimpleNamespace(kind=IntentKind.PREFETCH, window=window),
        disposition=Disposition.QUEUED,
        digests=(TARGET,),
    )
    hub: Any = SimpleNamespace(store=SimpleNamespace(waves={}, intents={"i": intent}))
    blobs = SimpleNamespace(
        has=lambda one: present.get(one) == one.size_bytes, partial_size=lambda one: present.get(one, 0)
    )
    held = {one.target: one for one in deliveries}
    all_of: Any = SimpleNamespace(all=held, moved_bytes=lambda _: present.get(PAYLOAD, 0))
    all_of.targets_of = lambda digest: Deliveries.targets_of(all_of, digest)
    return Prefetching(hub, cast("Any", SimpleNamespace(blobs=blobs, deliveries=all_of)), Meter())


@pytest.mark.parametrize("window", ["00:30-03:30", ""])
def test_a_piece_is_bounded_as_what_it_is_for(window: str) -> None:
    shown = prefetching(window, [delivery()], {})
    assert shown.is_windowed(TARGET) is shown.is_windowed(PAYLOAD) is bool(window)
    assert not shown.is_windowed(OTHER)
    assert not prefetching(window, [delivery(DeliveryState.DONE)], {}).is_windowed(PAYLOAD)


@pytest.mark.parametrize(
    ("deliveries", "present", "left"),
    [
        ([], {}, 9000),
        ([], {TARGET: 4000}, 5000),
        ([delivery()], {}, 300),
        ([delivery()], {PAYLOAD: 120}, 180),
        ([delivery()], {TARGET: 9000, PAYLOAD: 300}, 0),
    ],
)
def test_what_is_left_is_what_the_delivery_reads(
    deliveries: list[Delivery], present: dict[Digest, int], left: int
) -> None:
    assert prefetching("", deliveries, present)._left_bytes(TARGET) == left
