"""C2: each cause of a discrepancy, when it is one, and what keeps it from being one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from control.reconciliation import (
    Cause,
    DeviceFacts,
    Discrepancy,
    Facts,
    HubFacts,
    HubWord,
    Limits,
    PermitFacts,
    ShareFacts,
    WaveFacts,
    changes,
    reconcile,
)

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
LIMITS = Limits(unheard_s=86_400, settle_s=600)
REGION = "region/midwest"
STORE = f"{REGION}/store/store-209"
TILL = f"{STORE}/device/pos-17"


def ago(hours: float = 0, minutes: float = 0) -> datetime:
    return NOW - timedelta(hours=hours, minutes=minutes)


def hub(path: str = STORE, heard: datetime = NOW, *, there: bool = True) -> HubFacts:
    return HubFacts(path, there, heard)


def device(heard: datetime | None = NOW, *, there: bool = True, runs: str = "a", signed: str = "a") -> DeviceFacts:
    return DeviceFacts(TILL, there, heard, runs, signed, is_in_wave=False)


SHARE = ShareFacts("142", STORE, is_running=True, since=ago(48), is_told=True, ledger="x")
WORD = HubWord("i1", ago(48), "x", ago(48))
ANOTHER_LIFE = replace(WORD, incarnation="i2")
PERMIT = PermitFacts(TILL, ago(24), "i1", "verified; waits: lane")
FRESH = (replace(PERMIT, issued_at=NOW),)


def facts(
    *, hubs: tuple[HubFacts, ...] = (hub(REGION), hub()), till: DeviceFacts | None = None, **more: object
) -> Facts:
    return replace(Facts(hubs=hubs, devices=(till or device(),)), **more)  # type: ignore[arg-type]  # as in Facts


def share(**changed: object) -> Facts:
    return facts(shares=(replace(SHARE, **changed),))  # type: ignore[arg-type]  # as in ShareFacts


dark = hub(there=False, heard=ago(24))
dark_region = hub(REGION, there=False, heard=ago(24))
IS_ONE = (
    (facts(hubs=(hub(REGION), dark)), Cause.HUB_UNHEARD, STORE),
    (facts(hubs=(dark_region, dark)), Cause.HUB_UNHEARD, REGION),
    (facts(till=device(ago(24), there=False)), Cause.DEVICE_UNHEARD, TILL),
    (facts(till=device(None, there=False)), Cause.DEVICE_UNHEARD, TILL),
    (facts(till=device(runs="b")), Cause.FIRMWARE_DIFFERS, TILL),
    (share(is_told=False, since=ago(minutes=10)), Cause.ORDER_UNDELIVERED, STORE),
    (share(permits=(PERMIT,)), Cause.PERMIT_UNSPENT, TILL),
    (share(hub=replace(ANOTHER_LIFE, incarnation_since=ago(minutes=10)), permits=FRESH), Cause.SNAPSHOT_MISSING, STORE),
    (share(hub=replace(WORD, ledger="y", ledger_since=ago(minutes=10))), Cause.LEDGER_DIFFERS, STORE),
    (share(without_certificate=(TILL,), since=ago(24)), Cause.CERTIFICATE_MISSING, TILL),
    (facts(waves=(WaveFacts("142", "running", ago(minutes=10)),)), Cause.WAVE_OVERDUE, "142"),
)  # fmt: skip
IS_NONE = (
    facts(),
    facts(hubs=(hub(REGION), hub(there=False, heard=ago(23)))),
    facts(hubs=(hub(REGION), hub(there=False, heard=ago(23))), till=device(ago(24), there=False)),
    facts(till=device(ago(23), there=False)),
    facts(till=device(runs="")),
    facts(till=device(signed="")),
    facts(till=replace(device(runs="b"), is_in_wave=True)),
    share(is_told=False, since=ago(minutes=9)),
    share(permits=(replace(PERMIT, issued_at=ago(23)),)),
    share(permits=(PERMIT,), is_running=False),
    share(hub=WORD, permits=FRESH),
    share(hub=replace(ANOTHER_LIFE, incarnation_since=ago(minutes=9)), permits=FRESH),
    share(hub=replace(WORD, ledger="y", ledger_since=ago(minutes=9))),
    share(hub=replace(WORD, ledger="")),
    share(without_certificate=(TILL,), since=ago(23)),
    facts(waves=(WaveFacts("142", "running", ago(minutes=9)),)),
    replace(share(permits=(PERMIT,), without_certificate=(TILL,)), devices=(device(ago(2), there=False),)),
    replace(share(is_told=False, hub=replace(WORD, ledger="y")), hubs=(hub(REGION), hub(there=False, heard=ago(2)))),
)  # fmt: skip


@pytest.mark.parametrize(("known", "cause", "subject"), IS_ONE)
def test_one_discrepancy_by_its_cause(known: Facts, cause: Cause, subject: str) -> None:
    [found] = reconcile(known, LIMITS, NOW)
    assert (found.cause, found.subject) == (cause, subject)
    assert found.wave_id == ("142" if known.shares or known.waves else "")
    assert found.expected
    assert found.reported


def test_every_cause_is_shown_here() -> None:
    assert {cause for _, cause, _ in IS_ONE} == set(Cause)
    assert [cause.word for cause in (Cause.HUB_UNHEARD, Cause.WAVE_OVERDUE)] == ["hub-unheard", "wave-overdue"]


def test_they_come_by_cause_subject_and_wave() -> None:
    """So that two looks at the same state show the same table; times in it are whole seconds."""
    told = {"is_told": False, "store": STORE}
    shares = tuple(replace(SHARE, wave_id=wave, **told) for wave in ("9", "142"))  # type: ignore[arg-type]  # as in ShareFacts
    waves = tuple(WaveFacts(wave, "running", ago(1) + timedelta(microseconds=5)) for wave in ("9", "142"))
    dark_hubs = tuple(hub(f"{REGION}/store/store-{n}", there=False, heard=ago(30)) for n in (3, 2))
    found = reconcile(Facts((hub(REGION), hub(), *dark_hubs), (), shares, waves), LIMITS, NOW)
    assert [(one.cause, one.subject.rsplit("/", 1)[-1], one.wave_id) for one in found] == [
        (Cause.HUB_UNHEARD, "store-2", ""),
        (Cause.HUB_UNHEARD, "store-3", ""),
        (Cause.ORDER_UNDELIVERED, "store-209", "142"),
        (Cause.ORDER_UNDELIVERED, "store-209", "9"),
        (Cause.WAVE_OVERDUE, "142", "142"),
        (Cause.WAVE_OVERDUE, "9", "9"),
    ]
    assert found[-1].expected == "closed at 2026-03-02T11:00:00+00:00"
    assert len({one.key for one in found}) == len(found)


def test_a_key_has_all_that_tells_two_apart() -> None:
    one = Discrepancy(Cause.ORDER_UNDELIVERED, STORE, "142", "", "")
    others = [replace(one, cause=Cause.LEDGER_DIFFERS), replace(one, subject=TILL), replace(one, wave_id="9")]
    assert len({one.key, *(other.key for other in others)}) == 4


@pytest.mark.parametrize("known", IS_NONE)
def test_what_is_in_order_or_under_way_is_none(known: Facts) -> None:
    assert reconcile(known, LIMITS, NOW) == ()


def test_each_is_news_once_and_gone_once() -> None:
    one = Discrepancy(Cause.HUB_UNHEARD, STORE, "", "a session", "last word yesterday")
    assert changes({}, [one]) == ([one], [])
    later = replace(one, reported="last word the day before yesterday")
    assert changes({one.key: NOW}, [later]) == ([], [])
    assert changes({one.key: NOW}, []) == ([], [one.key])
