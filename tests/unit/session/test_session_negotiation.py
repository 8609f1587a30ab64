"""Negotiation over every pair of version ranges, through both machines and the codec, and capabilities."""

from __future__ import annotations

import itertools

import pytest

from wavemesh.codec.session import decode_child, decode_parent, encode_child, encode_parent
from wavemesh.session.child import ChildMachine, ChildState
from wavemesh.session.faults import ProtocolVersionError, SessionViolationError
from wavemesh.session.frames import Hello, Welcome
from wavemesh.session.negotiation import Dialect, check_choice, choose_version
from wavemesh.session.parent import ParentMachine, ParentOptions
from wavemesh.v1 import session_pb2

RANGES = [(lowest, highest) for lowest, highest in itertools.product(range(1, 5), repeat=2) if lowest <= highest]


def meet(child: Hello, parent: Dialect) -> tuple[ChildMachine, ParentMachine]:
    """Both machines after the greeting, each frame through the codec and bytes."""
    options = ParentOptions("parent/1", dialect=parent)
    above = ParentMachine(options, session_id="s", epoch="e", now=0.0)
    below = ChildMachine(child, first_report_number=1, status={}, now=0.0)
    hello = below.next_frame(0.0)
    assert hello == child
    sent = encode_child(hello).SerializeToString()
    above.receive(decode_child(session_pb2.ConnectRequest.FromString(sent)), 0.0)
    above.admitted(0, 0.0)
    welcome = above.next_frame(0.0)
    assert welcome is not None
    answered = encode_parent(welcome).SerializeToString()
    below.receive(decode_parent(session_pb2.ConnectResponse.FromString(answered)), 0.0)
    return below, above


def hello(lowest: int, highest: int, *capabilities: str) -> Hello:
    return Hello(highest, "child/1", "i", 1, (), lowest, capabilities)


@pytest.mark.parametrize("child", [(0, 1), (0, 2), (0, 3), *RANGES])
@pytest.mark.parametrize("parent", RANGES)
def test_every_pair_of_ranges(child: tuple[int, int], parent: tuple[int, int]) -> None:
    """The highest common version, or a refusal that says who must be updated; 0 is a child that names no range."""
    lowest, highest = child[0] or child[1], child[1]
    common = set(range(lowest, highest + 1)) & set(range(parent[0], parent[1] + 1))
    if common:
        below, above = meet(hello(*child), Dialect(*parent))
        assert below.state is ChildState.OPEN
        chosen = choose_version(Dialect(*parent), hello(*child))
        assert chosen == max(common)
        assert above.capabilities == frozenset()
        return
    with pytest.raises(ProtocolVersionError) as refused:
        meet(hello(*child), Dialect(*parent))
    behind = "child" if highest < parent[0] else "parent"
    assert refused.value.details == {
        "our_minimum": str(parent[0]),
        "our_maximum": str(parent[1]),
        "their_minimum": str(lowest),
        "their_maximum": str(highest),
        "update": behind,
    }
    assert str(refused.value).endswith(f"update the {behind}")


def test_a_range_upside_down_is_a_violation() -> None:
    with pytest.raises(SessionViolationError):
        meet(hello(3, 2), Dialect(1, 9))


@pytest.mark.parametrize(("chosen", "behind"), [(0, "parent"), (1, "parent"), (4, "child")])
def test_a_choice_outside_the_range_is_a_refusal(chosen: int, behind: str) -> None:
    """The child does not go on with it; it is no violation, for somebody may be updated."""
    below = ChildMachine(hello(2, 3), first_report_number=1, status={}, now=0.0)
    below.next_frame(0.0)
    welcome = Welcome(chosen, "parent/1", "s", 0, 1000, 4, "e")
    with pytest.raises(ProtocolVersionError) as refused:
        below.receive(welcome, 0.0)
    assert refused.value.details["update"] == behind
    assert below.state is not ChildState.OPEN
    check_choice(hello(2, 3), Welcome(3, "parent/1", "s", 0, 1000, 4, "e"))


def test_capabilities_are_those_both_know() -> None:
    """Unknown names are ignored; the parent answers with what both know, and both come to the same set."""
    below, above = meet(hello(1, 1, "telemetry", "teleport"), Dialect(1, 1, frozenset({"telemetry", "renewal"})))
    assert below.capabilities == above.capabilities == {"telemetry"}


def test_a_peer_that_names_none_has_none() -> None:
    """An old child sends neither new field; an old parent answers without."""
    below, above = meet(hello(0, 1), Dialect(1, 1, frozenset({"telemetry"})))
    assert below.capabilities == above.capabilities == frozenset()
    newer = ChildMachine(hello(1, 1, "telemetry"), first_report_number=1, status={}, now=0.0)
    newer.next_frame(0.0)
    newer.receive(Welcome(1, "parent/0", "s", 0, 1000, 4, "e"), 0.0)
    assert newer.state is ChildState.OPEN
    assert newer.capabilities == frozenset()


def test_a_parent_cannot_grant_what_the_child_did_not_name() -> None:
    below = ChildMachine(hello(1, 1, "telemetry"), first_report_number=1, status={}, now=0.0)
    below.next_frame(0.0)
    below.receive(Welcome(1, "parent/1", "s", 0, 1000, 4, "e", ("renewal", "telemetry")), 0.0)
    assert below.capabilities == {"telemetry"}
