"""Desired state on its way to one child: which resources the next update carries. Pure.

Rules.
1. What differs by digest or version is sent, what is held and not desired is removed. The version counts because a new
   audience or urgency leaves the content as it was, and a hub must pass both on. The difference is taken against what
   the child will hold once everything under way is answered and accepted.
2. Two lanes, urgent and other, with at most one unanswered update each; the child answers in the order sent.
3. Trust metadata travels in the urgent lane before all else, because the rest is verified with it. Beyond that the
   order is that of the desired mapping.
4. Refused content is not sent again in the stream, unless the child has accepted new trust metadata since.
5. ``settled`` is said by the update that leaves no difference; when that becomes so without one, an empty update says
   it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.session.faults import SessionViolationError, TooManyResourcesError
from wavemesh.session.frames import MAX_HELD, Rejection, Resource, ResourceKey, ResourceUpdate, ResourceVerdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from wavemesh.session.frames import HeldResource

TRUST_TYPE = "tuf"
MAX_REFUSED = MAX_HELD
MAX_KEYS_PER_UPDATE = 1024


@dataclass(frozen=True, slots=True)
class _Sent:
    """An update under way."""

    nonce: int
    is_urgent: bool
    changed: dict[ResourceKey, Resource]
    removed: Sequence[ResourceKey]
    deadline: float


@dataclass(frozen=True, slots=True)
class _Difference:
    """What is still to be sent."""

    urgent: Sequence[Resource] = ()
    other: Sequence[Resource] = ()
    removed: Sequence[ResourceKey] = ()

    @property
    def count(self) -> int:
        return len(self.urgent) + len(self.other) + len(self.removed)


_NOTHING = _Difference()


class ResourceLanes:
    """One child's desired state against what it holds. Times are monotonic seconds."""

    __slots__ = (
        "_busy",
        "_desired",
        "_difference",
        "_held",
        "_is_settled_said",
        "_last_nonce",
        "_refused",
        "_sent",
        "_update_bytes",
        "_verdict_timeout_s",
    )

    def __init__(self, held: Iterable[HeldResource], *, update_bytes: int, verdict_timeout_s: float) -> None:
        """Begin from what Hello says the child holds; nothing is desired until ``offer``."""
        self._held = {resource.key: (resource.digest, resource.version) for resource in held}
        self._update_bytes = update_bytes
        self._verdict_timeout_s = verdict_timeout_s
        self._desired: Mapping[ResourceKey, Resource] | None = None
        self._difference: _Difference | None = None
        self._refused: dict[tuple[ResourceKey, str], None] = {}
        self._sent: deque[_Sent] = deque()
        self._busy: frozenset[bool] = frozenset()  # ``is_urgent`` of what is under way
        self._last_nonce = 0
        self._is_settled_said = False

    def offer(self, desired: Mapping[ResourceKey, Resource]) -> None:
        """The whole desired state from now on. Raises TooManyResourcesError."""
        if len(desired) > MAX_HELD:
            raise TooManyResourcesError(f"{len(desired)} resources for one child, at most {MAX_HELD} travel")
        # Most changes at a parent concern other children. The very mapping of before may have been changed in place.
        if desired is self._desired or desired != self._desired:
            self._difference = None
        self._desired = desired

    @property
    def deadline(self) -> float:
        """When the oldest unanswered update must have been answered; infinity without one."""
        return self._sent[0].deadline if self._sent else math.inf

    def next_urgent(self, now: float) -> ResourceUpdate | None:
        """The next update of the urgent lane, if there is one and the lane is free."""
        if True in self._busy:
            return None
        difference = self._remaining()
        return self._send(difference.urgent, (), now, is_urgent=True) if difference.urgent else None

    def next_other(self, now: float) -> ResourceUpdate | None:
        """The next update of the other lane, if there is one and the lane is free. Removals go first."""
        if self._desired is None or False in self._busy:
            return None
        difference = self._remaining()
        if not (difference.other or difference.removed) and (difference.urgent or self._is_settled_said):
            return None
        return self._send(difference.other, difference.removed, now, is_urgent=False)

    def verdict(self, verdict: ResourceVerdict) -> tuple[Resource, ...]:
        """Take the child's answer in; returns what it accepted. Raises SessionViolationError."""
        if not self._sent or self._sent[0].nonce != verdict.nonce:
            raise SessionViolationError(f"verdict on update {verdict.nonce}, which is not the oldest unanswered one")
        sent = self._sent.popleft()
        self._busy -= {sent.is_urgent}
        for rejection in verdict.rejected:
            resource = sent.changed.pop(rejection.key, None)
            if resource is None or resource.digest != rejection.digest:
                raise SessionViolationError(f"verdict rejects {rejection.key}, which update {sent.nonce} did not carry")
        for key in sent.removed:
            self._held.pop(key, None)
        for key, resource in sent.changed.items():
            self._held[key] = (resource.digest, resource.version)
        if self._refused and any(key.type == TRUST_TYPE for key in sent.changed):
            self._refused.clear()
            self._difference = None
        if verdict.rejected:
            self._refuse(verdict.rejected)
            self._difference = None
        return tuple(sent.changed.values())

    def _refuse(self, rejected: Iterable[Rejection]) -> None:
        for rejection in rejected:
            self._refused[rejection.key, rejection.digest] = None
        while len(self._refused) > MAX_REFUSED:
            del self._refused[next(iter(self._refused))]

    def _remaining(self) -> _Difference:
        """What is still to be sent; computed once after each change, and kept up with what is sent."""
        if self._desired is None:
            return _NOTHING
        if self._difference is None:
            expected = dict(self._held)
            for sent in self._sent:
                for key in sent.removed:
                    expected.pop(key, None)
                for key, resource in sent.changed.items():
                    expected[key] = (resource.digest, resource.version)
            changed = [
                resource
                for key, resource in self._desired.items()
                if expected.get(key) != (resource.digest, resource.version)
                and (key, resource.digest) not in self._refused
            ]
            trust = [resource for resource in changed if resource.key.type == TRUST_TYPE]
            urgent = [resource for resource in changed if resource.urgent and resource.key.type != TRUST_TYPE]
            other = [resource for resource in changed if not resource.urgent and resource.key.type != TRUST_TYPE]
            removed = [key for key in expected if key not in self._desired]
            self._difference = _Difference((*trust, *urgent), other, removed)
        return self._difference

    def _send(
        self, resources: Sequence[Resource], removed: Sequence[ResourceKey], now: float, *, is_urgent: bool
    ) -> ResourceUpdate:
        """Make an update of as many of these as fit, and note it as under way."""
        gone = tuple(removed[:MAX_KEYS_PER_UPDATE])
        changed: dict[ResourceKey, Resource] = {}
        size = 0
        for resource in resources:
            size += len(resource.content) + sum(map(len, resource.audience))
            if changed and (size > self._update_bytes or len(changed) + len(gone) >= MAX_KEYS_PER_UPDATE):
                break
            changed[resource.key] = resource
        left = self._remaining()
        is_settled = len(changed) + len(gone) == left.count
        self._last_nonce += 1
        self._sent.append(_Sent(self._last_nonce, is_urgent, changed, gone, now + self._verdict_timeout_s))
        self._busy |= {is_urgent}
        if is_urgent:
            self._difference = _Difference(left.urgent[len(changed) :], left.other, left.removed)
        else:
            self._difference = _Difference(left.urgent, left.other[len(changed) :], left.removed[len(gone) :])
        self._is_settled_said = is_settled
        return ResourceUpdate(self._last_nonce, tuple(changed.values()), gone, is_settled)
