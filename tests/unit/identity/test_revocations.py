"""Revocations: what an entry hits, how a list follows another, what it forgets and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from wavemesh.codec.statements import MAX_STATEMENT_BYTES, MalformedStatementError, decode, encode
from wavemesh.errors import ForbiddenError, GateError
from wavemesh.identity.ca import NODE_LIFETIME, REGION_LIFETIME
from wavemesh.identity.certificates import LONGEST_LEAF_LIFETIME, BadCertificateError, Proof, Scope
from wavemesh.identity.nodes import NodeId, is_within
from wavemesh.identity.revocations import (
    AUTHORITY_LIFETIME,
    MAX_REVOCATIONS,
    RevocationIndex,
    RevocationsFullError,
    RevokedError,
    check_successor,
    describe,
    hits,
    rounded_up,
    with_revocation,
    without_expired,
)
from wavemesh.trust.statements import Revocation, RevocationList, RevocationReach

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
NODE, BELOW, AUTHORITY = RevocationReach
REGION, STORE = "region/midwest", "region/midwest/store/store-20"
DEVICE = f"{STORE}/device/pos-01"
# Names next door begin like the own ones.
PATHS = (
    *("control/cloud-1", "operator/alice", REGION, "region/midwest-2", STORE, "region/midwest/store/store-209"),
    *(DEVICE, f"{STORE}/device/pos-011", "region/midwest/store/store-209/device/pos-01"),
)


def proof(path: str, issued_at: datetime = NOW, authority_at: datetime = NOW - timedelta(days=9)) -> Proof:
    authorities = [(Scope("test.example"), NOW - timedelta(days=99))]
    if path.startswith("region/"):
        authorities.insert(0, (Scope("test.example", path.split("/")[1]), authority_at))
    ends_at = issued_at + NODE_LIFETIME
    return Proof(NodeId("test.example", path), issued_at, ends_at, tuple(authorities), issued_at)


def entry(path: str, reach: RevocationReach = NODE, before: datetime = NOW, reason: str = "stolen") -> Revocation:
    return Revocation(path, reach, before, reason)


def listed(*entries: Revocation, epoch: int = 1, at: datetime = NOW) -> RevocationList:
    return RevocationList(epoch, entries, at)


@pytest.mark.parametrize(("path", "hit", "reach"), list(product(PATHS, PATHS, (NODE, BELOW))))
def test_an_entry_hits_its_path_and_what_is_below_if_it_says_so(path: str, hit: str, reach: RevocationReach) -> None:
    """Every path against every other, just before, at, and just after ``issued_before``."""
    revocations = RevocationIndex(listed(entry(path, reach)))
    is_meant = hit == path or (reach is BELOW and is_within(hit, path))
    assert hits(entry(path, reach), hit) is is_meant
    assert bool(list(revocations.concerning(hit))) is is_meant
    for issued_at, is_early in ((NOW - SECOND, True), (NOW, False), (NOW + SECOND, False)):
        found = revocations.find(proof(hit, issued_at))
        assert (found is not None) is (is_meant and is_early)


@pytest.mark.parametrize("hit", PATHS)
def test_an_authority_falls_with_all_that_hangs_on_it(hit: str) -> None:
    """Whenever a leaf was issued: who has a region's key chooses the leaf's dates, but not the authority's."""
    revocations = RevocationIndex(listed(entry(REGION, AUTHORITY)))
    for authority_at, is_early in ((NOW - SECOND, True), (NOW, False), (NOW + SECOND, False)):
        for issued_at in (NOW - timedelta(days=1), NOW + timedelta(days=1)):
            found = revocations.find(proof(hit, issued_at, authority_at))
            assert (found is not None) is (is_within(hit, REGION) and is_early)


def test_a_refusal_says_by_which_entry_and_is_both_a_bad_certificate_and_forbidden() -> None:
    revocations = RevocationIndex(listed(entry(STORE, BELOW), epoch=7))
    with pytest.raises(RevokedError, match=r"pos-01, .* certificates of .*-20 and all below .*: stolen") as refusal:
        revocations.check(proof(DEVICE, NOW - SECOND))
    assert isinstance(refusal.value, BadCertificateError)
    assert isinstance(refusal.value, ForbiddenError)
    assert (refusal.value.reason, refusal.value.details["revocation"]) == ("REVOKED", STORE)
    assert refusal.value.details["epoch"] == "7"
    revocations.check(proof(DEVICE, NOW))


def test_epochs_do_not_go_back() -> None:
    held = listed(entry(DEVICE), epoch=5)
    check_successor(held, None)
    check_successor(held, held)
    check_successor(listed(epoch=6, at=NOW - timedelta(days=1)), held)
    check_successor(listed(entry(DEVICE), epoch=5, at=NOW + SECOND), held)
    older = listed(entry(DEVICE), epoch=4, at=NOW + SECOND), listed(entry(DEVICE), epoch=5, at=NOW - SECOND)
    for refused in (*older, listed(epoch=5), listed(entry(STORE), epoch=5, at=NOW + SECOND)):
        with pytest.raises(GateError) as refusal:
            check_successor(refused, held)
        assert refusal.value.gate == "replay"


def test_one_entry_a_node_suffices() -> None:
    """A later one takes the place of what it covers; one that is covered changes nothing."""
    entries = with_revocation((), entry(DEVICE))
    assert with_revocation(entries, entry(DEVICE, before=NOW - SECOND)) is entries
    assert with_revocation(entries, entry(DEVICE, reason="again")) is entries
    later = with_revocation(entries, entry(DEVICE, before=NOW + SECOND, reason="again"))
    assert later == (entry(DEVICE, before=NOW + SECOND, reason="again"),)
    whole = with_revocation(later, entry(STORE, BELOW, NOW + SECOND))
    assert whole == (entry(STORE, BELOW, NOW + SECOND),)
    assert with_revocation(whole, entry(DEVICE, before=NOW + SECOND)) is whole
    both = with_revocation(whole, entry(DEVICE, before=NOW + 2 * SECOND))
    assert len(both) == 2, "a later one of a device stays beside its store's"
    assert len(with_revocation(both, entry(STORE, BELOW, NOW))) == 2
    assert len(with_revocation(both, entry(STORE, NODE, NOW + 3 * SECOND))) == 3, "a node's own covers none below"


def test_an_authority_is_apart_from_its_nodes() -> None:
    entries = with_revocation((entry(REGION, AUTHORITY),), entry(REGION, BELOW, NOW + SECOND))
    assert len(entries) == 2
    assert with_revocation(entries, entry(REGION, AUTHORITY)) is entries
    assert len(with_revocation(entries, entry(REGION, AUTHORITY, NOW + 2 * SECOND))) == 2


@pytest.mark.parametrize(
    "new", [entry(p, r, NOW + n * SECOND) for p in PATHS for r in (NODE, BELOW) for n in (-1, 0, 1)]
)
def test_adding_never_makes_a_certificate_good_again(new: Revocation) -> None:
    before = (entry(DEVICE, before=NOW), entry(STORE, BELOW, NOW - SECOND), entry(REGION, NODE, NOW + SECOND))
    after = with_revocation(before, new)
    for path in PATHS:
        for offset in (-2, -1, 0, 1):
            one = proof(path, NOW + offset * SECOND)
            if RevocationIndex(listed(*before)).find(one) or RevocationIndex(listed(new)).find(one):
                assert RevocationIndex(listed(*after)).find(one)
            else:
                assert not RevocationIndex(listed(*after)).find(one)


def test_the_list_is_bounded() -> None:
    full = tuple(entry(f"{STORE}/device/d-{n:05}") for n in range(MAX_REVOCATIONS))
    with pytest.raises(RevocationsFullError):
        with_revocation(full, entry(REGION))
    assert with_revocation(full, entry(STORE, BELOW)) == (entry(STORE, BELOW),), "what covers others makes room"
    data = encode(listed(*full))
    assert len(data) < MAX_STATEMENT_BYTES, "as many as fit travel"
    assert decode(RevocationList, data) == listed(*full)
    with pytest.raises(MalformedStatementError, match="at most 8192"):
        encode(listed(*full, entry(REGION)))


def test_an_entry_is_forgotten_when_nothing_can_be_hit_twice_over() -> None:
    """One lifetime because what it hits has expired by then; two because control's clock may be wrong by one."""
    entries = (entry(DEVICE), entry(REGION, AUTHORITY))
    assert without_expired(entries, NOW + 2 * LONGEST_LEAF_LIFETIME - SECOND) == entries
    assert without_expired(entries, NOW + 2 * LONGEST_LEAF_LIFETIME) == entries[1:]
    assert without_expired(entries, NOW + 2 * AUTHORITY_LIFETIME - SECOND) == entries[1:]
    assert without_expired(entries, NOW + 2 * AUTHORITY_LIFETIME) == ()
    assert AUTHORITY_LIFETIME >= REGION_LIFETIME
    assert LONGEST_LEAF_LIFETIME >= NODE_LIFETIME


def test_times_are_whole_seconds_as_in_certificates() -> None:
    assert rounded_up(NOW) == NOW
    assert rounded_up(NOW + timedelta(microseconds=1)) == NOW + SECOND


@pytest.mark.parametrize(
    ("reach", "words"), [(NODE, "of region/a"), (BELOW, "and all below"), (AUTHORITY, "authority")]
)
def test_an_entry_in_words(reach: RevocationReach, words: str) -> None:
    assert words in describe(entry("region/a", reach))
    assert describe(entry("region/a", reach)).endswith(": stolen")


def test_who_issues_anew_issues_late_enough() -> None:
    """The latest of all that concern the node; an authority's entry says nothing of its leaves."""
    revocations = RevocationIndex(
        listed(
            entry(DEVICE),
            entry(STORE, BELOW, NOW + SECOND),
            entry(REGION, NODE, NOW + 9 * SECOND),
            entry(REGION, AUTHORITY, NOW + 9 * SECOND),
        )
    )
    assert revocations.issued_after(DEVICE) == NOW + SECOND
    assert revocations.issued_after(REGION) == NOW + 9 * SECOND
    assert revocations.issued_after("operator/alice") is None
    assert revocations.find(proof(DEVICE, NOW + SECOND, NOW + 9 * SECOND)) is None
