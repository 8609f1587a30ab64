"""The transfer plan (S5): the cheapest way within the budget, whatever a parent offers and in whatever order."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wavemesh.artifacts.chunkindex import Range
from wavemesh.artifacts.plan import (
    LEAST_GAIN,
    RANGES_MOST,
    WAIT_MOST_S,
    BadPlanError,
    Failure,
    Link,
    Method,
    Offer,
    Piece,
    TransferPlan,
    choose,
    coalesced,
    reconsider,
    replan,
    with_ranges,
)
from wavemesh.errors import GateError
from wavemesh.trust.statements import Digest

MIB = 1 << 20
GIB = 1 << 30


def blob(name: str, size_bytes: int) -> Digest:
    return Digest((name.encode().hex() * 64)[:64], size_bytes)


TARGET = blob("t", 100 * MIB)
OLD = blob("o", 99 * MIB)
DELTA = Offer(Method.DELTA, (OLD,), blob("d", 3 * MIB), rebuild_s=0.5)
ZSTD = Offer(Method.FULL_ZSTD, (), blob("z", 40 * MIB), rebuild_s=0.5)
INDEX, PACK = blob("i", MIB // 8), blob("p", 41 * MIB)
CHUNKS = Offer(Method.CHUNKS, (OLD,), PACK, INDEX, read_bytes=20 * MIB, rebuild_s=0.5)
MADE_SOON = Offer(Method.DELTA, (OLD,), None, read_bytes=3 * MIB, ready_in_s=20, rebuild_s=0.5)
LINK = Link(bytes_per_s=MIB)

prices = st.floats(0, 1000)
sizes = st.integers(0, 200 * MIB)
links = st.builds(Link, st.floats(1e3, 1e9), prices, prices)
names = st.text("abcdef", min_size=1, max_size=4)
times = st.floats(0, 2 * WAIT_MOST_S)


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    """Whatever a parent may say, sense or not."""
    method = draw(st.sampled_from(Method))
    is_made = draw(st.booleans())
    return Offer(
        method,
        draw(st.sampled_from([(), (OLD,), (OLD, blob("q", 7)), (TARGET,)])),
        blob(draw(names), draw(sizes)) if is_made else None,
        blob(draw(names), draw(sizes)) if is_made and method is Method.CHUNKS else None,
        draw(st.integers(-10, 200 * MIB)),
        draw(times),
        draw(st.one_of(times, st.sampled_from([math.nan, math.inf, -1.0]))),
    )


many = st.lists(offers(), max_size=8)


def full_cost(link: Link) -> float:
    return link.cost(TARGET.size_bytes, TARGET.size_bytes / link.bytes_per_s)


def test_the_delta_wins_where_it_is_made() -> None:
    plan = choose(TARGET, [ZSTD, CHUNKS, DELTA], LINK, None)
    assert (plan.method, plan.bases, plan.read_bytes) == (Method.DELTA, (OLD,), 3 * MIB)
    assert plan.pieces == (Piece(blob("d", 3 * MIB), 0, 3 * MIB),)
    assert plan.seconds == pytest.approx(3.5)
    assert plan.saved_bytes == 97 * MIB
    assert [one.method for one in plan.alternatives] == [Method.CHUNKS, Method.FULL_ZSTD, Method.FULL]


def test_without_offers_the_blob_itself_and_the_plan_says_so() -> None:
    plan = choose(TARGET, [], LINK, None)
    assert (plan.method, plan.payload, plan.pieces) == (Method.FULL, TARGET, (Piece(TARGET, 0, 100 * MIB),))
    assert plan.why.endswith("nothing else is offered")


def test_full_is_never_chosen_in_silence() -> None:
    plan = choose(TARGET, [replace(ZSTD, rebuild_s=1e6), replace(CHUNKS, index=None)], LINK, None)
    assert plan.method is Method.FULL
    assert "full-zstd (41943040 bytes): costs" in plan.why
    assert "chunks (20971520 bytes): chunks have an index, and nothing else has" in plan.why


@pytest.mark.parametrize(
    ("link", "method"),
    [
        (Link(MIB, 1, 1), Method.DELTA),  # 97 MiB at 1 MiB/s are worth 20 s
        (Link(100 * MIB, 0, 1), Method.FULL),  # one second all in all, and bytes cost nothing
        (Link(100 * MIB, 100, 0), Method.DELTA),  # time costs nothing
    ],
)
def test_a_delta_being_made_is_waited_for_only_when_that_pays(link: Link, method: Method) -> None:
    plan = choose(TARGET, [MADE_SOON], link, None)
    assert plan.method is method
    assert plan.is_waiting == (method is Method.DELTA)
    if plan.is_waiting:
        assert (plan.pieces, plan.ready_in_s) == ((), 20)
        assert "its wait of 20 s included" in plan.why


def test_what_is_not_ready_within_an_hour_is_no_offer() -> None:
    late = replace(MADE_SOON, ready_in_s=WAIT_MOST_S + 1)
    assert choose(TARGET, [late], Link(1e3), None).method is Method.FULL


def test_the_budget_excludes_and_the_refusal_says_what_the_smallest_needs() -> None:
    assert choose(TARGET, [DELTA, ZSTD], LINK, 3 * MIB).method is Method.DELTA
    with pytest.raises(GateError, match=f"delta, reads {3 * MIB} bytes and {3 * MIB - 1} are left") as refused:
        choose(TARGET, [ZSTD, DELTA], LINK, 3 * MIB - 1)
    assert (refused.value.gate, refused.value.observed) == ("byte-budget", str(3 * MIB))
    assert refused.value.required == f"at most {3 * MIB - 1}"


def test_the_budget_may_choose_what_costs_more() -> None:
    link = Link(100 * MIB, 0, 1)  # FULL is cheapest by time alone
    assert choose(TARGET, [MADE_SOON], link, None).method is Method.FULL
    assert choose(TARGET, [MADE_SOON], link, 50 * MIB).method is Method.DELTA


def test_a_smallest_that_failed_is_named_when_the_budget_is_over() -> None:
    failed = Failure(Method.DELTA, (OLD,), DELTA.payload, "it became other bytes")
    with pytest.raises(GateError, match=r"full-zstd, reads .* delta: failed before: it became other bytes"):
        replan(TARGET, [DELTA, ZSTD], LINK, 10 * MIB, [failed])


@pytest.mark.parametrize(
    ("offer", "says"),
    [
        (replace(DELTA, payload=TARGET), "its payload is the blob itself"),
        (replace(DELTA, bases=(TARGET,)), "its base is the blob itself"),
        (replace(DELTA, bases=()), "a delta without a base"),
        (replace(ZSTD, bases=(OLD,)), "the whole blob, and a base"),
        (replace(DELTA, index=INDEX), "chunks have an index"),
        (replace(CHUNKS, ranges=(Range(0, 10), Range(5, 10))), "begins before 10"),
        (replace(CHUNKS, ranges=(Range(0, 0),)), "is empty"),
        (replace(CHUNKS, ranges=(Range(0, 41 * MIB + 1),)), "beyond the pack"),
        (replace(CHUNKS, payload=None, index=None, ranges=(Range(0, 1),)), "ranges of no pack"),
        (replace(DELTA, rebuild_s=math.nan), "seconds that are none"),
        (replace(MADE_SOON, read_bytes=-1), "below nothing"),
    ],
)
def test_an_offer_that_contradicts_itself_is_passed_over_and_named(offer: Offer, says: str) -> None:
    plan = choose(TARGET, [offer], LINK, None)
    assert plan.method is Method.FULL
    assert says in plan.why


def test_what_is_made_is_charged_its_size_and_not_what_the_peer_says() -> None:
    assert choose(TARGET, [replace(DELTA, read_bytes=1)], LINK, None).read_bytes == 3 * MIB
    assert choose(TARGET, [replace(CHUNKS, read_bytes=1)], LINK, None).read_bytes == INDEX.size_bytes
    huge = replace(CHUNKS, read_bytes=50 * MIB)
    assert choose(TARGET, [huge], LINK, None).read_bytes == INDEX.size_bytes + PACK.size_bytes


def test_what_failed_is_left_out_and_the_next_plan_says_so() -> None:
    failed = Failure(Method.DELTA, (OLD,), DELTA.payload, "it became other bytes")
    plan = replan(TARGET, [DELTA, ZSTD], LINK, None, [failed])
    assert plan.method is Method.FULL_ZSTD
    assert f"delta ({3 * MIB} bytes): failed before: it became other bytes" in plan.why
    assert replan(TARGET, [DELTA, ZSTD, replace(DELTA, payload=blob("e", MIB))], LINK, None, [failed]).payload == blob(
        "e", MIB
    )
    unmade = Failure(Method.DELTA, (OLD,), None, "it was never made")
    assert replan(TARGET, [MADE_SOON], LINK, None, [unmade]).method is Method.FULL
    assert replan(TARGET, [DELTA], LINK, None, [unmade]).method is Method.DELTA, "it is made after all"
    assert replan(TARGET, [MADE_SOON], LINK, None, [failed]).method is Method.FULL, "what was wrong is made anew"


def test_ties_go_to_the_simpler_method() -> None:
    free = Link(1e9, 0, 0)
    small = blob("d", 5)
    both = [Offer(Method.DELTA, (OLD,), small), Offer(Method.FULL_ZSTD, (), small)]
    assert choose(TARGET, both, free, None).method is Method.FULL_ZSTD
    assert choose(Digest("f" * 64, 5), both, free, None).method is Method.FULL


def test_a_plan_that_has_begun_is_left_only_for_a_gain() -> None:
    link = Link(MIB, 1, 0)
    plan = choose(TARGET, [ZSTD], link, None)
    little = Offer(Method.DELTA, (OLD,), blob("d", int(40 * MIB * (1 - LEAST_GAIN)) + 1))
    much = replace(little, payload=blob("d", int(40 * MIB * (1 - LEAST_GAIN)) - 1))
    assert reconsider(plan, 0, offers=[ZSTD, little], link=link, budget_bytes=None) is plan
    switched = reconsider(plan, 0, offers=[ZSTD, much], link=link, budget_bytes=None)
    assert switched.method is Method.DELTA
    assert "instead of full-zstd, which still costs" in switched.why
    assert reconsider(plan, 20 * MIB, offers=[ZSTD, much], link=link, budget_bytes=None) is plan, (
        "half of it is read already"
    )


def test_a_plan_is_not_left_for_itself() -> None:
    plan = choose(TARGET, [DELTA], LINK, None)
    assert reconsider(plan, MIB, offers=[DELTA], link=LINK, budget_bytes=2 * MIB) is plan
    with pytest.raises(GateError, match="byte budget"):
        reconsider(plan, MIB, offers=[DELTA], link=LINK, budget_bytes=2 * MIB - 1)


def test_a_plan_that_fits_no_more_is_left_for_one_that_does() -> None:
    plan = choose(TARGET, [ZSTD], LINK, None)
    slow = replace(DELTA, rebuild_s=1e5)
    by_time = Link(MIB, 0, 1)
    assert reconsider(plan, 0, offers=[ZSTD, slow], link=by_time, budget_bytes=40 * MIB) is plan
    assert reconsider(plan, 0, offers=[ZSTD, slow], link=by_time, budget_bytes=39 * MIB).method is Method.DELTA


def test_ranges_become_pieces_and_the_forecast_is_exact() -> None:
    plan = choose(TARGET, [CHUNKS], LINK, None)
    assert plan.pieces == (Piece(INDEX, 0, INDEX.size_bytes),)
    ranges = [Range(0, MIB), Range(5 * MIB, 2 * MIB)]
    ready = with_ranges(plan, ranges, LINK, 3 * MIB)
    assert ready.pieces == (*plan.pieces, Piece(PACK, 0, MIB), Piece(PACK, 5 * MIB, 2 * MIB))
    assert ready.read_bytes == INDEX.size_bytes + 3 * MIB
    assert choose(TARGET, [replace(CHUNKS, ranges=tuple(ranges))], LINK, None).pieces == ready.pieces
    with pytest.raises(GateError, match=f"reads {3 * MIB} bytes and {3 * MIB - 1} are left"):
        with_ranges(plan, ranges, LINK, 3 * MIB - 1)
    with pytest.raises(BadPlanError, match="beyond the pack"):
        with_ranges(plan, [Range(41 * MIB, 1)], LINK, None)
    with pytest.raises(BadPlanError, match="ranges; at most"):
        with_ranges(plan, [Range(at, 1) for at in range(RANGES_MOST + 1)], LINK, None)


def test_ranges_that_lie_close_are_read_as_one() -> None:
    ranges = [Range(0, 10), Range(12, 3), Range(30, 5)]
    assert coalesced(ranges, 0) == tuple(ranges)
    assert coalesced(ranges, 2) == (Range(0, 15), Range(30, 5))
    assert coalesced(ranges, 15) == (Range(0, 35),)


def test_only_chunks_have_ranges() -> None:
    with pytest.raises(RuntimeError, match="has no ranges"):
        with_ranges(choose(TARGET, [DELTA], LINK, None), [], LINK, None)


@pytest.mark.parametrize("values", [(0.0, 1, 1), (math.inf, 1, 1), (1.0, -1, 1), (1.0, 1, math.nan)])
def test_a_link_is_one(values: tuple[float, float, float]) -> None:
    with pytest.raises(RuntimeError):
        Link(*values)


def the_plan(found: list[Offer], link: Link, budget: int | None) -> TransferPlan | None:
    try:
        return choose(TARGET, found, link, budget)
    except GateError as error:
        if error.gate != "byte-budget":
            raise
        return None


@settings(max_examples=60, derandomize=True, deadline=None)
@given(many, links, st.one_of(st.none(), sizes))
def test_never_above_the_budget_never_dearer_than_the_blob_itself(
    found: list[Offer], link: Link, budget: int | None
) -> None:
    plan = the_plan(found, link, budget)
    if plan is None:
        assert budget is not None
        assert budget < TARGET.size_bytes
        return
    assert budget is None or plan.read_bytes <= budget
    if budget is None or TARGET.size_bytes <= budget:
        assert plan.cost <= full_cost(link)
    assert plan.cost == pytest.approx(link.cost(plan.read_bytes, plan.seconds))
    assert plan.why
    assert sum(piece.length for piece in plan.pieces) <= plan.read_bytes
    if plan.payload is not None and plan.method is not Method.CHUNKS:
        assert sum(piece.length for piece in plan.pieces) == plan.read_bytes


@settings(max_examples=50, derandomize=True, deadline=None)
@given(many, links, st.one_of(st.none(), sizes), st.randoms(use_true_random=False))
def test_the_order_of_offers_does_not_matter(found: list[Offer], link: Link, budget: int | None, rng: object) -> None:
    mixed = list(found)
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    first, second = the_plan(found, link, budget), the_plan(mixed, link, budget)
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert replace(first, alternatives=(), why="", rebuild_s=0) == replace(
            second, alternatives=(), why="", rebuild_s=0
        )


@settings(max_examples=50, derandomize=True, deadline=None)
@given(many, links, st.floats(1.001, 50), st.one_of(st.none(), sizes))
def test_dearer_bytes_never_move_more_of_them_and_dearer_time_never_takes_longer(
    found: list[Offer], link: Link, times_dearer: float, budget: int | None
) -> None:
    plan = the_plan(found, link, budget)
    assume(plan is not None)
    assert plan is not None
    dear_bytes = the_plan(found, replace(link, price_per_gib=link.price_per_gib * times_dearer), budget)
    dear_time = the_plan(found, replace(link, price_per_hour=link.price_per_hour * times_dearer), budget)
    assert dear_bytes is not None
    assert dear_time is not None
    assert dear_bytes.read_bytes <= plan.read_bytes or math.isclose(dear_bytes.cost, plan.cost, rel_tol=1e-9)
    assert dear_time.seconds <= plan.seconds * (1 + 1e-9) or math.isclose(dear_time.cost, plan.cost, rel_tol=1e-9)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(many, links, st.one_of(st.none(), sizes))
def test_replanning_comes_to_an_end_without_ever_choosing_what_failed(
    found: list[Offer], link: Link, budget: int | None
) -> None:
    failures: list[Failure] = []
    for _ in range(len(found) + 1):
        try:
            plan = replan(TARGET, found, link, budget, failures)
        except GateError:
            return
        assert all((plan.payload is None or plan.payload != one.payload) for one in failures if one.payload is not None)
        if plan.method is Method.FULL:
            break
        failures.append(Failure(plan.method, plan.bases, plan.payload, "wrong bytes"))
    assert plan.method is Method.FULL
    if failures:
        assert "failed before: wrong bytes" in plan.why
