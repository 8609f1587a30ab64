"""When a call that failed is tried again, and after how long.

Rules:
- Only what the contract lets a client repeat by itself: questions, and mutations that are known by a key or by their
  content (``REPEATABLE``). A call that is not listed is never repeated, so a new one is safe until it is thought of.
- Only what may end otherwise next time: the link (LinkDownError), load (BusyError). Every other refusal is an answer.
- Never sooner than the server's hint (RetryInfo), plus full jitter, so that those who were refused together do not come
  back together; never when the wait would outlast the deadline: then the error is the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.errors import BusyError, LinkDownError
from wavemesh.session.backoff import full_jitter

if TYPE_CHECKING:
    from collections.abc import Callable

    from wavemesh.errors import WavemeshError

#: RPCs of OperatorService by name. SetHold is missing on purpose: a lift repeated late could undo somebody else's hold.
#: So are RevokeNode, which would take back what was issued in between, and CreateEnrolment, whose token repeated late
#: could take the place of a newer one.
REPEATABLE = frozenset(
    {
        "ApplyInventory",
        "CancelIntent",
        "GetDevice",
        "GetDeviceLogs",
        "GetFleetStatus",
        "GetIntent",
        "GetLedger",
        "GetPolicy",
        "GetStore",
        "GetTrace",
        "GetWave",
        "ListAudit",
        "ListCache",
        "ListCohorts",
        "ListDevices",
        "ListDiscrepancies",
        "ListHolds",
        "ListIntents",
        "ListPermits",
        "ListPolicies",
        "ListNodes",
        "ListReleases",
        "ListRevocations",
        "ListStores",
        "ListWaves",
        "PlanCache",
        "PlanWave",
        "PreviewIntent",
        "PublishRelease",
        "SubmitIntent",
        "WatchWave",
    }
)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: the wait after n failures is uniform over [0, min(cap, base * 2^n)], seconds."""

    base_s: float = 0.2
    cap_s: float = 5.0


def delay_s(
    error: WavemeshError,
    *,
    failures: int,
    remaining_s: float,
    backoff: Backoff,
    uniform: Callable[[float, float], float],
) -> float | None:
    """Seconds to wait before the next attempt, or None for no more; ``failures`` counts those before this one."""
    if not isinstance(error, LinkDownError | BusyError):
        return None
    hint_s = error.retry_after_s if isinstance(error, BusyError) else 0.0
    wait_s = hint_s + full_jitter(backoff.cap_s, backoff.base_s, failures, uniform)
    return wait_s if wait_s < remaining_s else None
