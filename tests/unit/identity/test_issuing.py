"""The rules by which a region's authority issues: each refusal, each boundary."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from wavemesh.errors import PeerError
from wavemesh.identity import issuing
from wavemesh.identity.binding import CLOCK_SLACK
from wavemesh.identity.issuing import (
    Issued,
    IssuerClockError,
    IssueRefusedError,
    ReplayedRequestError,
    TokenExpiredError,
    TokenUsedError,
    UnknownTokenError,
    WrongFleetError,
    check_fleet,
    check_signer,
    issued_before,
    judge_join,
    refusal,
    terms,
)
from wavemesh.trust.enrolments import Enrolment, JoinRequest
from wavemesh.trust.freshness import CLOCK_SKEW

NOW = datetime(2026, 5, 1, 12, 0, 0, 400_000, tzinfo=UTC)
NODE = "region/midwest/store/store-208"
SECRET = bytes(32)
REQUEST = JoinRequest("test.example", NODE, SECRET, b"csr")
ENROLMENT = Enrolment(NODE, hashlib.sha256(SECRET).hexdigest(), "a" * 64, NOW, NOW + timedelta(hours=1))
TICK = timedelta(microseconds=1)


def issued(key: str, minutes: int = 0, signer_minutes: int | None = None) -> Issued:
    at = NOW + timedelta(minutes=minutes)
    signer = None if signer_minutes is None else NOW + timedelta(minutes=signer_minutes)
    return Issued(key, key.encode(), at, at - CLOCK_SLACK, signer)


def judge(now: datetime = NOW, *, enrolment: Enrolment | None = ENROLMENT, used_by: str | None = None) -> str:
    try:
        judge_join(REQUEST, "mine", enrolment=enrolment, used_by=used_by, now=now)
    except PeerError as error:
        return error.reason
    return "issued"


def test_a_token_in_its_time() -> None:
    end = ENROLMENT.expires_at
    got = {
        "at once": judge(),
        "just before its end": judge(end - TICK),
        "at its end": judge(end),
        "before it was made, by as much as clocks differ": judge(NOW - CLOCK_SKEW),
        "by more": judge(NOW - CLOCK_SKEW - TICK),
    }
    assert list(got.values()) == ["issued", "issued", "TOKEN_EXPIRED", "issued", "ISSUER_CLOCK"]


def test_a_token_that_fits_nothing() -> None:
    other = Enrolment(NODE, "b" * 64, "a" * 64, NOW, NOW + timedelta(hours=1))
    assert (judge(enrolment=None), judge(enrolment=other)) == ("TOKEN_UNKNOWN", "TOKEN_UNKNOWN")


def test_a_used_token_answers_its_own_key_for_ever_and_no_other() -> None:
    late = ENROLMENT.expires_at + timedelta(days=9)
    assert (judge(late, used_by="mine"), judge(late, enrolment=None, used_by="mine")) == ("issued", "issued")
    assert (judge(used_by="another"), judge(late, used_by="another")) == ("ALREADY_USED", "ALREADY_USED")


def test_a_key_gets_one_certificate() -> None:
    history = [issued("a"), issued("b"), issued("c")]
    assert issued_before(history, "c") is history[-1]
    assert issued_before(history, "new") is None
    assert issued_before([], "new") is None
    for older in ("a", "b"):
        with pytest.raises(ReplayedRequestError):
            issued_before(history, older)


def test_an_old_certificate_renews_nothing() -> None:
    history = [issued("a"), issued("b", 10, signer_minutes=0), issued("c", 20, signer_minutes=10)]
    check_signer(history, NOW + timedelta(minutes=10))
    check_signer(history, NOW + timedelta(minutes=11))
    with pytest.raises(ReplayedRequestError):
        check_signer(history, NOW + timedelta(minutes=10) - TICK)
    check_signer([issued("a")], NOW - timedelta(days=900))


def test_certificates_of_a_node_start_in_order_whatever_the_clock_does() -> None:
    lifetime = timedelta(days=90)
    first = terms(NOW, lifetime, [])
    assert first.not_before == NOW.replace(microsecond=0) - CLOCK_SLACK
    assert (first.issued_at, first.not_after) == (NOW, NOW + lifetime)
    before = [Issued("a", b"", NOW, first.not_before)]
    at_once = terms(NOW, lifetime, before)
    assert at_once.not_before == first.not_before + timedelta(seconds=1)
    back = terms(NOW - CLOCK_SKEW, lifetime, before)
    assert back.not_before == first.not_before + timedelta(seconds=1)
    with pytest.raises(IssuerClockError):
        terms(NOW - CLOCK_SKEW - TICK, lifetime, before)
    assert first.issued_at < at_once.issued_at, "a parent refuses the older one"
    assert back.issued_at > before[-1].issued_at


def test_a_certificate_is_younger_than_the_revocation_of_its_node() -> None:
    """Or it would be revoked as well; an issuer whose clock is far behind control's issues nothing."""
    lifetime, revoked_at = timedelta(days=90), NOW + CLOCK_SKEW
    assert terms(NOW, lifetime, [], issued_after=revoked_at).issued_at == revoked_at
    assert terms(NOW, lifetime, [], issued_after=NOW - CLOCK_SKEW).issued_at == NOW
    with pytest.raises(IssuerClockError, match="taken back"):
        terms(NOW, lifetime, [], issued_after=revoked_at + TICK + TICK)


def test_a_certificate_from_elsewhere_is_a_floor_too() -> None:
    """A super hub that lost its memory, or whose clock is behind, issues nothing older than what is in use."""
    start = NOW.replace(microsecond=0) + timedelta(minutes=3)
    assert terms(NOW, timedelta(days=1), [], start).not_before == start + timedelta(seconds=1)
    with pytest.raises(IssuerClockError):
        terms(NOW, timedelta(days=1), [], NOW + timedelta(minutes=6))


def test_fleets_do_not_mix() -> None:
    check_fleet("a.example", "a.example")
    with pytest.raises(WrongFleetError):
        check_fleet("b.example", "a.example")


def test_a_reason_becomes_its_own_error_again() -> None:
    for kind in (UnknownTokenError, TokenExpiredError, TokenUsedError, IssuerClockError, issuing.NoAuthorityError):
        assert type(refusal(kind.reason, "why")) is kind
    unknown = refusal("SOMETHING_NEW", "why")
    assert isinstance(unknown, IssueRefusedError)
    assert unknown.details["reason"] == "SOMETHING_NEW"
