"""Stand-ins for what devices hold of control while their hub has heard nothing (M3)."""

from __future__ import annotations

from storehub.unsettled import Unsettled
from wavemesh.session.frames import HeldResource, Resource, ResourceKey, ResourceVersion

ORDER, POLICY, LEASE = (ResourceKey(kind, "142") for kind in ("order", "policy", "lease"))
OLD, NEW = ResourceVersion("old", 7), ResourceVersion("new", 1)
TILL = "region/midwest/store/a/device/pos-01"


def held(*keys: ResourceKey) -> list[HeldResource]:
    return [HeldResource(key, OLD, "d" * 64) for key in keys]


def test_a_stand_in_equals_what_is_held() -> None:
    unsettled = Unsettled()
    unsettled.came(TILL, held(ORDER, POLICY, LEASE))
    stand_ins = unsettled.stand_ins(TILL, {})
    assert {key: (one.digest, one.version) for key, one in stand_ins.items()} == {
        ORDER: ("d" * 64, OLD),
        POLICY: ("d" * 64, OLD),
    }
    assert unsettled.stand_ins("another", {}) == {}


def test_what_was_wanted_once_has_none_any_more() -> None:
    """The device holds the newer one by then: a stand-in would be sent, without content."""
    unsettled = Unsettled()
    unsettled.came(TILL, held(ORDER, POLICY))
    assert unsettled.stand_ins(TILL, {ORDER: Resource(ORDER, NEW, "e" * 64, b"x")}).keys() == {POLICY}
    assert unsettled.stand_ins(TILL, {}).keys() == {POLICY}


def test_it_ends_with_the_session_and_with_the_first_word() -> None:
    unsettled = Unsettled()
    unsettled.came(TILL, held(ORDER))
    unsettled.came("another", held(ORDER))
    unsettled.left(TILL)
    assert not unsettled.stand_ins(TILL, {})
    unsettled.end()
    assert not unsettled.stand_ins("another", {})
