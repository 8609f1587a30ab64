"""Which certificates are taken back: revocations by path and by time of issue, never by serial number.

Rules:
- A revocation hits every certificate of its path that was issued before ``issued_before``: reach NODE that node's
  own, BELOW also those of all nodes below it, AUTHORITY the certificate of that region's authority and, whenever they
  were issued, all that hang on it. One entry a node suffices for ever, and a node enrolled again gets through.
- No clock is asked: both times were signed, by control and by whoever issued. A node whose own clock is wrong revokes
  what control revoked, no more and no less.
- The list only goes forward: a lower epoch than the one held is a replay, as is an older or another list of the same.
- Adding an entry takes the place of the entries that it covers, and never makes a certificate good again.
- An entry is dropped when every certificate it could hit has expired, twice over: a clock so wrong that it drops one
  too early is a clock by which control's own certificate has expired, and then control drops nothing
  (``control/revocations.py``).

A certificate says when it was issued (``binding.py``); its start has five minutes of slack and would put one that was
issued right after a revocation among those taken back.
"""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING

from wavemesh.errors import ConflictError, ForbiddenError, GateError
from wavemesh.identity.certificates import LONGEST_LEAF_LIFETIME, BadCertificateError
from wavemesh.identity.nodes import is_within
from wavemesh.policy.gates import Gate
from wavemesh.trust.statements import Revocation, RevocationList, RevocationReach

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from wavemesh.identity.certificates import Proof

MAX_REVOCATIONS = 8192
MAX_REASON_BYTES = 200
AUTHORITY_LIFETIME = timedelta(days=1825)
"""Longest life of a region's authority (``ca.REGION_LIFETIME``)."""


class RevokedError(BadCertificateError, ForbiddenError):
    """A certificate was taken back; the message says by which revocation. Enrol the node again."""

    reason = "REVOKED"


class RevocationsFullError(ConflictError):
    """The list has as many revocations as it can; revoke whole stores instead of their devices."""

    reason = "REVOCATIONS_FULL"


class RevocationIndex:
    """A list, indexed for looking up."""

    def __init__(self, listed: RevocationList) -> None:
        """Index the list."""
        self.listed = listed
        self._entries = {(one.path, one.reach): one for one in listed.revocations}

    def concerning(self, path: str) -> Iterator[Revocation]:
        """The entries that concern the node at a path, whenever its certificate was issued."""
        for key in (*_keys(path), ("/".join(path.split("/")[:2]), RevocationReach.AUTHORITY)):
            if key in self._entries:
                yield self._entries[key]

    def find(self, proof: Proof) -> Revocation | None:
        """The revocation that hits a certificate, if there is one."""
        regions = {f"region/{scope.region}": issued_at for scope, issued_at in proof.authorities}
        for entry in self.concerning(proof.node_id.path):
            is_above = entry.reach is RevocationReach.AUTHORITY
            if is_above and regions.get(entry.path, entry.issued_before) < entry.issued_before:
                return entry
            if not is_above and proof.issued_at < entry.issued_before:
                return entry
        return None

    def check(self, proof: Proof) -> None:
        """Raise RevokedError if a revocation hits the certificate."""
        entry = self.find(proof)
        if entry is not None:
            msg = (
                f"certificate of {proof.node_id.uri}, issued at {proof.issued_at.isoformat()}, was taken back: "
                f"{describe(entry)}; enrol the node again"
            )
            raise RevokedError(msg, node=proof.node_id.path, revocation=entry.path, epoch=str(self.listed.epoch))

    def issued_after(self, path: str) -> datetime | None:
        """Since when a certificate of that node must be issued, lest it count among those taken back; None: any time.

        It says nothing of the authority that issues, which is renewed by the offline root.
        """
        own = (one for one in self.concerning(path) if one.reach is not RevocationReach.AUTHORITY)
        return max((one.issued_before for one in own), default=None)


def check_successor(new: RevocationList, held: RevocationList | None) -> None:
    """Raise GateError (replay) if ``new`` is older than the list held, or says something else at the same epoch."""
    if held is None or new.epoch > held.epoch:
        return
    if new.epoch < held.epoch or new.issued_at < held.issued_at:
        msg = (
            f"revocations of epoch {new.epoch} ({new.issued_at.isoformat()}) are older than epoch {held.epoch} "
            f"({held.issued_at.isoformat()}), held here"
        )
        raise GateError(Gate.REPLAY.value, msg)
    if new.revocations != held.revocations:
        msg = f"two different lists of revocations of epoch {new.epoch}"
        raise GateError(Gate.REPLAY.value, msg)


def with_revocation(listed: tuple[Revocation, ...], new: Revocation) -> tuple[Revocation, ...]:
    """The entries with one more, by path; the same ones if it is covered. Raises RevocationsFullError."""
    if any(_covers(one, new) for one in listed):
        return listed
    kept = [one for one in listed if not _covers(new, one)]
    if len(kept) >= MAX_REVOCATIONS:
        msg = f"{MAX_REVOCATIONS} revocations are in force; revoke a whole store (reach below) instead of its devices"
        raise RevocationsFullError(msg)
    return tuple(sorted([*kept, new], key=lambda one: (one.path, one.reach.value)))


def without_expired(listed: tuple[Revocation, ...], now: datetime) -> tuple[Revocation, ...]:
    """The entries that may still hit a certificate, with the margin this module's rules speak of."""
    return tuple(one for one in listed if now < one.issued_before + 2 * _longest(one))


def rounded_up(moment: datetime) -> datetime:
    """The next whole second at or after a time: certificates know no smaller unit."""
    whole = moment.replace(microsecond=0)
    return whole if whole == moment else whole + timedelta(seconds=1)


def describe(entry: Revocation) -> str:
    """An entry in words: what it takes back, and why."""
    what = {
        RevocationReach.NODE: f"certificates of {entry.path}",
        RevocationReach.BELOW: f"certificates of {entry.path} and all below it",
        RevocationReach.AUTHORITY: f"the authority of {entry.path} and all it issued",
    }
    return f"{what[entry.reach]} from before {entry.issued_before.isoformat()}: {entry.reason}"


def hits(entry: Revocation, path: str) -> bool:
    """Whether an entry concerns the node at that path, whenever its certificate was issued."""
    return path == entry.path if entry.reach is RevocationReach.NODE else is_within(path, entry.path)


def _keys(path: str) -> Iterator[tuple[str, RevocationReach]]:
    """What may hit the node at a path by its own certificate."""
    yield path, RevocationReach.NODE
    segments = path.split("/")
    for length in range(2, len(segments) + 1, 2):
        yield "/".join(segments[:length]), RevocationReach.BELOW


def _covers(one: Revocation, other: Revocation) -> bool:
    """Whether whatever ``other`` hits is hit by ``one`` as well, other reasons notwithstanding."""
    if (one.reach is RevocationReach.AUTHORITY) != (other.reach is RevocationReach.AUTHORITY):
        return False
    if one.reach is not RevocationReach.BELOW and dataclasses.replace(other, reach=one.reach) != other:
        return False
    reaches = is_within(other.path, one.path) if one.reach is RevocationReach.BELOW else other.path == one.path
    return reaches and one.issued_before >= other.issued_before


def _longest(entry: Revocation) -> timedelta:
    """How long after ``issued_before`` a certificate it hits may live."""
    return AUTHORITY_LIFETIME if entry.reach is RevocationReach.AUTHORITY else LONGEST_LEAF_LIFETIME
