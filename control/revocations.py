"""The certificates control took back: the list as published, and whom it keeps from new permits.

Rules:
- The list is the resource ``revocations/fleet``: published from the first revocation on, urgent, for everybody. Its
  epoch grows with each change; the same epoch is signed anew at intervals.
- It is durable before anything goes by it: control's own sessions and calls of revoked callers end after the commit.
- A revocation lowers risk and needs no permit of anybody. Nothing takes one back: the node is enrolled again.
- Times are signed only by a clock that can be right: not behind the list in force, and one by which control's own
  certificate is good. A clock that jumped further would shut out nodes enrolled after it was set right.
- A node that is revoked gets no permit until control has seen a certificate of it that is not among those taken back
  (``note_certificate``: the one that signed an outcome, or that its region's authority reports to have issued); what it
  had outstanding counts as spent (``control/waves.py``). Seen certificates are kept in memory, of revoked nodes only.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select

from control import schema
from control.desired import EVERYBODY, Item
from control.requests import BadRequestError
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import LocalError
from wavemesh.identity.certificates import validity_problem
from wavemesh.identity.nodes import BadNodeIdError, NodeId, Role
from wavemesh.identity.revocations import (
    MAX_REASON_BYTES,
    RevocationIndex,
    RevocationsFullError,
    rounded_up,
    with_revocation,
    without_expired,
)
from wavemesh.session.frames import MAX_RESOURCE_BYTES, ResourceKey
from wavemesh.trust.freshness import CLOCK_SKEW
from wavemesh.trust.statements import Envelope, Revocation, RevocationList, RevocationReach

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from control.config import Config
    from control.database import Transaction
    from control.desired import DesiredState
    from control.signing import Signing
    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.runtime.clock import Clock

_LOG = logging.getLogger(__name__)
REVOCATIONS_KEY = ResourceKey("revocations", "fleet")
_ENVELOPE_BYTES = 16 * 1024


class ClockDoubtError(LocalError):
    """Control's clock cannot be right, so it takes nothing back by it; set the clock."""

    reason = "CLOCK_DOUBT"


class Revocations:
    """The list in force."""

    def __init__(
        self, credentials: NodeCredentials, *, desired: DesiredState, signing: Signing, clock: Clock, config: Config
    ) -> None:
        """Nothing is known before ``load``; ``credentials`` are control's own."""
        self._credentials = credentials
        self._desired = desired
        self._signing = signing
        self._clock = clock
        self._config = config
        self._index: RevocationIndex | None = None
        self._seen: dict[str, datetime] = {}
        self._is_in_doubt = False

    async def load(self, tx: Transaction) -> None:
        """Take up what was published, and which certificates are known of those it names."""
        held = self._desired.get(EVERYBODY, REVOCATIONS_KEY)
        if held is None:
            return
        listed = decode(RevocationList, decode(Envelope, held.content).payload)
        self._index = RevocationIndex(listed)
        self._credentials.authorities.take(listed)
        table = schema.certificates
        for row in await tx.all(select(table.c.path, table.c.issued_at).where(table.c.serial != "")):
            self.note_certificate(row["path"], row["issued_at"])

    @property
    def listed(self) -> RevocationList | None:
        """The list in force; None before the first revocation."""
        return self._index.listed if self._index is not None else None

    @property
    def epoch(self) -> int:
        """Its epoch; 0 before the first revocation."""
        return self.listed.epoch if self.listed is not None else 0

    def draft(self, path: str, reach: RevocationReach, reason: str, issued_before: datetime | None) -> Revocation:
        """What would be taken back now. Raises BadRequestError, ClockDoubtError."""
        try:
            node = NodeId(self._credentials.node_id.fleet, path)
        except BadNodeIdError as error:
            raise BadRequestError("path", str(error)) from error
        if reach is RevocationReach.AUTHORITY and node.role is not Role.SUPER_HUB:
            raise BadRequestError("reach", f"{path} is no region, and only regions have an authority")
        if not reason.strip() or len(reason.encode()) > MAX_REASON_BYTES:
            raise BadRequestError("reason", f"missing or over {MAX_REASON_BYTES} bytes; say why, every node is told")
        now = self._trusted_now()
        if issued_before is not None and issued_before > now:
            raise BadRequestError("issued_before", f"{issued_before.isoformat()} is after {now.isoformat()}")
        return Revocation(path, reach, rounded_up(issued_before or now), reason)

    async def add(self, tx: Transaction, entry: Revocation) -> bool:
        """Take certificates back; False if they were. Raises RevocationsFullError, ClockDoubtError."""
        before = self.listed.revocations if self.listed is not None else ()
        entries = with_revocation(before, entry)
        if entries == before:
            return False
        await self._say(tx, RevocationList(self.epoch + 1, entries, self._trusted_now()))
        return True

    async def regain(self, tx: Transaction, shown: RevocationList) -> bool:
        """Take up entries that were published before and are not remembered here; False when there are none.

        Raises RevocationsFullError, ClockDoubtError.
        """
        before = self.listed.revocations if self.listed is not None else ()
        entries = before
        for entry in shown.revocations:
            entries = with_revocation(entries, entry)
        if shown.epoch < self.epoch or (entries == before and shown.epoch == self.epoch):
            return False
        await self._say(tx, RevocationList(shown.epoch + 1, entries, self._trusted_now()))
        return True

    async def refresh(self, tx: Transaction) -> None:
        """Sign the list anew when that is due, without what can hit no certificate any more."""
        listed, now = self.listed, self._clock.now()
        if listed is None or now - listed.issued_at < timedelta(seconds=self._config.hold_resign_s):
            return
        try:
            now = self._trusted_now()
        except ClockDoubtError:
            return  # said in the log; signed anew as soon as the clock is right
        entries = without_expired(listed.revocations, now)
        epoch = listed.epoch if entries == listed.revocations else listed.epoch + 1
        await self._say(tx, RevocationList(epoch, entries, now))

    def is_revoked(self, path: str) -> bool:
        """Whether the node is revoked and no certificate of it is known that is not."""
        seen_at = self._seen.get(path)
        return any(seen_at is None or seen_at < one.issued_before for one in self._concerning(path))

    def note_certificate(self, path: str, issued_at: datetime) -> None:
        """A certificate of that node, issued then, was verified or issued, and is not among those taken back."""
        if any(self._concerning(path)):
            self._seen[path] = max(issued_at, self._seen.get(path, issued_at))

    def _concerning(self, path: str) -> Iterable[Revocation]:
        return self._index.concerning(path) if self._index is not None else ()

    def _trusted_now(self) -> datetime:
        """The time, if it may be signed. Raises ClockDoubtError, and says so once."""
        now = self._clock.now()
        problem = self._clock_problem(now)
        if problem and not self._is_in_doubt:
            _LOG.error("nothing is taken back, and the list of revocations not signed anew: %s", problem)
        self._is_in_doubt = bool(problem)
        if problem:
            raise ClockDoubtError(problem)
        return now

    def _clock_problem(self, now: datetime) -> str:
        """Why a time cannot be right; empty if it can."""
        problem = validity_problem(self._credentials.certificate, now)
        if problem is not None:
            return (
                f"by control's clock, {now.isoformat()}, its own certificate is {problem}; set the clock, or renew it"
            )
        if self.listed is not None and now < self.listed.issued_at - CLOCK_SKEW:
            return (
                f"control's clock says {now.isoformat()}, but it signed at {self.listed.issued_at.isoformat()} before"
            )
        return ""

    async def _say(self, tx: Transaction, listed: RevocationList) -> None:
        size = len(encode(listed))
        if size + _ENVELOPE_BYTES > MAX_RESOURCE_BYTES:
            msg = f"{len(listed.revocations)} revocations have {size} bytes; revoke whole stores instead of devices"
            raise RevocationsFullError(msg)
        [content] = await self._signing.seal([listed])
        await self._desired.publish(tx, Item(EVERYBODY, REVOCATIONS_KEY, content, urgent=True))
        before, self._index = self._index, RevocationIndex(listed)
        tx.after_rollback(lambda: setattr(self, "_index", before))
        tx.after_commit(lambda: self._credentials.authorities.take(listed))
