"""Forecasts what a wave moves over its stores' links, by what stores say they hold and super hubs have made. Pure.

Each artifact of the release and each store is a choice of ``wavemesh/artifacts/plan.py``, as the store's hub will make
it, between the blob itself and what the region's super hub has made from what the store says it holds. What is held
already costs nothing. Where a store's hub was not heard, or its super hub has made nothing from what it holds yet, it
is *unknown* how the blob will come: the whole blob stands for it, the upper bound.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wavemesh.artifacts.plan import Link, Method, Offer, choose
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from wavemesh.policy.document import DeliveryTerms
    from wavemesh.trust.delivered import DerivedSize
    from wavemesh.trust.statements import HubStatus

FLEET = "fleet"
HELD = "held"
UNKNOWN = "unknown"
ASSUMED_BYTES_PER_S = 1_250_000.0
"""Control knows no store's link; this is what a hub assumes until it has measured its own."""
LEAST_PLANNED_BYTES = 64 * 1024
"""Smaller blobs are read as they are; as in ``storehub/deliveries.py``."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a place will move: ``unknown_bytes`` of ``expected_bytes`` stand for blobs that may come cheaper."""

    place: str
    expected_bytes: int = 0
    full_bytes: int = 0
    unknown_bytes: int = 0
    over_budget: int = 0
    methods: Mapping[str, int] = field(default_factory=dict)


def forecast(
    stores: Iterable[str],
    artifacts: Sequence[Digest],
    hubs: Mapping[str, HubStatus],
    terms: DeliveryTerms,
) -> tuple[Forecast, ...]:
    """One for each store, by path, then one for each region, then the fleet's; ``hubs`` by path of store and region."""
    known = _Known(artifacts, hubs, terms)
    by_store = [_of_store(store, artifacts, hubs.get(store), known) for store in sorted(stores)]
    regions = sorted({_region(one.place) for one in by_store})
    by_region = [_sum(region, [one for one in by_store if _region(one.place) == region]) for region in regions]
    return (*by_store, *by_region, _sum(FLEET, by_store))


class _Known:
    """What super hubs have made of the artifacts, and the choices among it so far: most stores hold the same."""

    def __init__(self, artifacts: Sequence[Digest], hubs: Mapping[str, HubStatus], terms: DeliveryTerms) -> None:
        self.terms = terms
        self._link = Link(ASSUMED_BYTES_PER_S, terms.price_per_gib, terms.price_per_hour)
        wanted = {target.sha256 for target in artifacts}
        self._derived: dict[tuple[str, str], list[DerivedSize]] = {}
        for path, status in hubs.items():
            for one in status.derived:
                if one.target_sha256 in wanted:
                    self._derived.setdefault((path, one.target_sha256), []).append(one)
        self._chosen: dict[tuple[Digest, tuple[DerivedSize, ...]], tuple[str, int]] = {}

    def best(self, region: str, target: Digest, held: frozenset[str]) -> tuple[str, int]:
        """Method and bytes of the cheapest that is known for who holds these."""
        made = self._derived.get((region, target.sha256), ())
        usable = tuple(one for one in made if held.issuperset(one.base_sha256s))
        key = (target, usable)
        if key not in self._chosen:
            offers = [offer for one in usable if (offer := _offer(one)) is not None]
            plan = choose(target, offers, self._link, None) if offers else None
            self._chosen[key] = (plan.method.value, plan.read_bytes) if plan else (UNKNOWN, target.size_bytes)
        return self._chosen[key]


def _of_store(store: str, artifacts: Sequence[Digest], status: HubStatus | None, known: _Known) -> Forecast:
    held = frozenset(digest.sha256 for digest in status.held) if status is not None else frozenset()
    methods: Counter[str] = Counter()
    expected = unknown = planned = 0
    for target in dict.fromkeys(artifacts):
        method, read_bytes = _of_artifact(target, held, _region(store), known)
        methods[method] += 1
        expected += read_bytes
        unknown += read_bytes if method == UNKNOWN else 0
        planned += read_bytes if target.size_bytes >= LEAST_PLANNED_BYTES else 0
    budget = known.terms.byte_budget
    return Forecast(
        place=store,
        expected_bytes=expected,
        full_bytes=sum(target.size_bytes for target in dict.fromkeys(artifacts)),
        unknown_bytes=unknown,
        over_budget=int(budget is not None and planned > budget),
        methods=dict(methods),
    )


def _of_artifact(target: Digest, held: frozenset[str], region: str, known: _Known) -> tuple[str, int]:
    """By what method it comes as far as is known, and what that reads."""
    if target.sha256 in held:
        return HELD, 0
    if target.size_bytes < LEAST_PLANNED_BYTES:
        return Method.FULL.value, target.size_bytes
    return known.best(region, target, held)


def _offer(one: DerivedSize) -> Offer | None:
    """What a super hub says it has made, as a store would be offered it; None for a method this version does not know.

    Its digests are not told and do not matter here: what is read is.
    """
    if one.method not in {Method.FULL_ZSTD.value, Method.CHUNKS.value, Method.DELTA.value}:
        return None
    bases = tuple(Digest(sha256, 0) for sha256 in one.base_sha256s)
    return Offer(Method(one.method), bases, read_bytes=one.read_bytes)


def _sum(place: str, parts: Sequence[Forecast]) -> Forecast:
    methods: Counter[str] = Counter()
    for one in parts:
        methods.update(one.methods)
    return Forecast(
        place=place,
        expected_bytes=sum(one.expected_bytes for one in parts),
        full_bytes=sum(one.full_bytes for one in parts),
        unknown_bytes=sum(one.unknown_bytes for one in parts),
        over_budget=sum(one.over_budget for one in parts),
        methods=dict(methods),
    )


def _region(store: str) -> str:
    return "/".join(store.split("/")[:2])
