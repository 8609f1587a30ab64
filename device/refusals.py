"""What this device refused of its hub's words, told to control. Pure.

A hub under an attacker's control hears every verdict and need not pass it on, and it may acknowledge reports that it
throws away. So each refusal also becomes an event of the report log, and the latest of each kind and gate is kept after
its acknowledgement: a log that restarts, because the next hub does not know it, says them again (their ids tell
control which it has). A flood costs one report an hour for each kind and gate; the log on the device has the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta  # device/values.py resolves the hints at run time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENT_KIND = "hub-refused"
TOLD_AGAIN_AFTER = timedelta(hours=1)
MAX_KEPT = 64
MAX_SUBJECT_BYTES = 400
# Of a subject "order/142/store-208" the first word is its kind; what a hub makes up is all one.
_RESOURCES = frozenset({"tuf", "policy", "holds", "revocations", "order", "closed", "lease", "intent"})
KINDS = _RESOURCES | {"session", "blob", "certificate", "health-ack", "authority-down"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """One that was told: its kind, its gate ("" if none decided), when, and the body of its report."""

    kind: str
    gate: str
    at: datetime
    report: bytes


def is_due(kept: Sequence[Refusal], subject: str, gate: str, now: datetime) -> bool:
    """Whether a refusal is to be told: the first of its kind and gate, or the first for an hour by a clock that may
    have been set back.
    """
    kind = kind_of(subject)
    return not any((one.kind, one.gate) == (kind, gate) and abs(now - one.at) < TOLD_AGAIN_AFTER for one in kept)


def with_refusal(kept: Sequence[Refusal], new: Refusal) -> tuple[Refusal, ...]:
    """The latest of each kind and gate, oldest first."""
    others = [one for one in kept if (one.kind, one.gate) != (new.kind, new.gate)]
    return (*others, new)[-MAX_KEPT:]


def kind_of(subject: str) -> str:
    """What a subject is about."""
    kind = subject.partition("/")[0]
    return kind if kind in KINDS else "unknown"
