"""What the two ends of a session speak with each other: one protocol version, and the capabilities both know. Pure.

Rules.
1. Each side names a range of protocol versions. The parent picks the highest that is in both and says it in Welcome.
2. Ranges that do not meet are refused with ProtocolVersionError, which names both ranges and who must be updated.
3. A peer of before the range was named (``minimum_protocol_version`` 0) speaks its one version only.
4. A capability is used when both sides named it. Names that one side does not know are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.session.faults import ProtocolVersionError, SessionViolationError
from wavemesh.session.frames import CAPABILITIES, MIN_PROTOCOL_VERSION, PROTOCOL_VERSION

if TYPE_CHECKING:
    from wavemesh.session.frames import Hello, Welcome


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one side speaks: protocol versions ``lowest`` to ``highest``, and its capabilities."""

    lowest: int = MIN_PROTOCOL_VERSION
    highest: int = PROTOCOL_VERSION
    capabilities: frozenset[str] = CAPABILITIES


def choose_version(ours: Dialect, hello: Hello) -> int:
    """The parent's choice: the highest version both speak. Raises ProtocolVersionError, SessionViolationError."""
    lowest, highest = hello.oldest_protocol_version, hello.protocol_version
    if lowest > highest:
        raise SessionViolationError(f"hello with protocol versions {lowest} to {highest}")
    chosen = min(highest, ours.highest)
    if chosen < max(lowest, ours.lowest):
        behind = "child" if highest < ours.lowest else "parent"
        raise ProtocolVersionError(
            f"the child speaks protocol versions {lowest} to {highest}, this parent {ours.lowest} to {ours.highest}: "
            f"update the {behind}",
            **_ranges(ours.lowest, ours.highest, lowest, highest),
            update=behind,
        )
    return chosen


def check_choice(hello: Hello, welcome: Welcome) -> None:
    """The child's check of the parent's choice; raises ProtocolVersionError when it was not in the child's range."""
    lowest, highest, chosen = hello.oldest_protocol_version, hello.protocol_version, welcome.protocol_version
    if not lowest <= chosen <= highest:
        behind = "parent" if chosen < lowest else "child"
        raise ProtocolVersionError(
            f"the parent chose protocol version {chosen}, this child speaks {lowest} to {highest}: update the {behind}",
            **_ranges(lowest, highest, chosen, chosen),
            update=behind,
        )


def shared_capabilities(ours: frozenset[str], theirs: tuple[str, ...]) -> frozenset[str]:
    """What both sides know."""
    return ours.intersection(theirs)


def _ranges(our_lowest: int, our_highest: int, their_lowest: int, their_highest: int) -> dict[str, str]:
    return {
        "our_minimum": str(our_lowest),
        "our_maximum": str(our_highest),
        "their_minimum": str(their_lowest),
        "their_maximum": str(their_highest),
    }
