"""Whether the authority of a region issues a certificate, and for how long. Pure.

Rules.
1. *A key gets one certificate.* Asked again for its latest key, a node gets the same certificate again, so a lost
   answer costs nothing and a replayed request gains nothing. A key whose certificate was replaced gets no other.
2. *A token is used once*: by the first key that comes with it. Names and binding come from the enrolment alone. Asked
   again with the same key it answers as rule 1 says, even when the token has ended since; another key is refused.
3. *A renewal is signed by a certificate not older than the one that signed the last renewal*, nor than the last one
   got by a token, so an old key, once it was replaced in use, renews nothing, nor does the device that was replaced.
   The time of signing decides nothing: a node's clock may have been wrong.
4. Certificates of one node start, and say that they were issued, in the order in which they were, whatever the issuer's
   clock does, as a parent refuses the older ones; and none says a time before the last revocation of its node, or it
   would be revoked as well. A clock that has fallen behind what was issued, enrolled or taken back issues nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from wavemesh.errors import ConflictError, ForbiddenError, LinkDownError, NotFoundError, PeerError
from wavemesh.identity.binding import CLOCK_SLACK
from wavemesh.identity.csr import BadCsrError
from wavemesh.trust.freshness import CLOCK_SKEW

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from wavemesh.trust.enrolments import Enrolment, JoinRequest

MAX_HISTORY = 8
_SECOND = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)


class UnknownTokenError(NotFoundError):
    """No enrolment here fits that node and that secret: mistyped, of another node, replaced by a newer token."""

    reason = "TOKEN_UNKNOWN"


class TokenExpiredError(ConflictError):
    """The token was not used in time."""

    reason = "TOKEN_EXPIRED"


class TokenUsedError(ConflictError):
    """Another key has joined with that token: somebody else had it, or the node lost its key."""

    reason = "ALREADY_USED"


class WrongFleetError(ForbiddenError):
    """The token, or the certificate, is of another fleet."""

    reason = "WRONG_FLEET"


class WrongNodeError(ForbiddenError):
    """The node is no child of who was asked; nodes join at their own parent."""

    reason = "WRONG_NODE"


class ReplayedRequestError(ForbiddenError):
    """A request that was answered and is over: its key, or the one that signed it, was replaced since."""

    reason = "REPLAYED"


class IssuerClockError(LinkDownError):
    """The issuing hub's clock is behind what it has seen; it issues nothing before somebody sets it."""

    reason = "ISSUER_CLOCK"


class NoAuthorityError(NotFoundError):
    """The super hub asked has no key of its region's authority, or one that has ended: nothing is issued there."""

    reason = "NO_AUTHORITY"


class NotAttestedError(ForbiddenError):
    """The key of the request is not proven to live in the TPM it has to: none was shown, or another one."""

    reason = "NOT_ATTESTED"


class IssueRefusedError(PeerError):
    """Who issues certificates refused; ``details["reason"]`` says why."""

    reason = "ISSUE_REFUSED"


_REFUSALS: dict[str, type[PeerError]] = {
    error.reason: error
    for error in (
        UnknownTokenError,
        TokenExpiredError,
        TokenUsedError,
        WrongFleetError,
        WrongNodeError,
        ReplayedRequestError,
        IssuerClockError,
        NoAuthorityError,
        BadCsrError,
        NotAttestedError,
    )
}


def refusal(reason: str, detail: str) -> PeerError:
    """The error that a reason given by the authority stands for."""
    known = _REFUSALS.get(reason)
    return IssueRefusedError(detail, reason=reason) if known is None else known(detail)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was issued to a node.

    ``signer_not_before`` is the start of the one that signed the request for it; its own, when it came of a token.
    """

    key_sha256: str
    certificate: bytes
    issued_at: datetime
    not_before: datetime
    signer_not_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """The times of a certificate to issue."""

    issued_at: datetime
    not_before: datetime
    not_after: datetime


def check_fleet(named: str, ours: str) -> None:
    """Raise WrongFleetError for another fleet than ours."""
    if named != ours:
        msg = f"this is fleet {ours}, the token is of {named[:100]!r}; use a token made for this fleet"
        raise WrongFleetError(msg, fleet=ours)


def judge_join(
    request: JoinRequest,
    key_sha256: str,
    *,
    enrolment: Enrolment | None,
    used_by: str | None,
    now: datetime,
) -> None:
    """Whether that key may join; ``used_by`` is the key that used the very secret before.

    Raises UnknownTokenError, TokenExpiredError, TokenUsedError, IssuerClockError.
    """
    secret_sha256 = hashlib.sha256(request.secret).hexdigest()
    if used_by is not None:
        if used_by == key_sha256:
            return
        msg = f"the token of {request.node} was used by another key; ask for a new one"
        raise TokenUsedError(f"{msg}, and revoke the node if that was not you", node=request.node)
    if enrolment is None or not hmac.compare_digest(enrolment.secret_sha256, secret_sha256):
        msg = f"no enrolment of {request.node[:200]!r} here fits the token"
        raise UnknownTokenError(f"{msg}; it may be under way, or a newer token replaced it", node=request.node[:200])
    if now < enrolment.issued_at - CLOCK_SKEW:
        msg = f"the hub's clock says {now.isoformat()}, but control made the token at {enrolment.issued_at.isoformat()}"
        raise IssuerClockError(f"{msg}; set the hub's clock")
    if now >= enrolment.expires_at:
        msg = f"the token of {request.node} ended at {enrolment.expires_at.isoformat()}, now is {now.isoformat()}"
        raise TokenExpiredError(f"{msg}; ask for a new one", node=request.node)


def issued_before(history: Sequence[Issued], key_sha256: str) -> Issued | None:
    """The certificate that this key got before, to be given again; ``history`` has the newest last.

    Raises ReplayedRequestError when it was replaced since.
    """
    for place, one in enumerate(reversed(history)):
        if one.key_sha256 == key_sha256:
            if place:
                at = history[-1].issued_at.isoformat()
                msg = f"the key of this request had a certificate that was replaced at {at}; make a new key"
                raise ReplayedRequestError(msg)
            return one
    return None


def check_signer(history: Sequence[Issued], signer_not_before: datetime) -> None:
    """Raise ReplayedRequestError when the signing certificate is older than the one that signed a renewal before."""
    for one in history:
        if one.signer_not_before is not None and signer_not_before < one.signer_not_before:
            msg = (
                f"the request is signed by a certificate of {signer_not_before.isoformat()}, which was replaced in use"
            )
            raise ReplayedRequestError(msg)


def terms(
    now: datetime,
    lifetime: timedelta,
    before: Sequence[Issued],
    floor: datetime | None = None,
    issued_after: datetime | None = None,
) -> Terms:
    """The times of the next certificate, said to be issued no earlier than ``issued_after``.

    ``floor`` is the start of the one to replace. Raises IssuerClockError.
    """
    issued_at = max([now, *(one.issued_at + _MICROSECOND for one in before), *filter(None, [issued_after])])
    if issued_at > now + CLOCK_SKEW + _MICROSECOND:
        msg = f"the hub's clock says {now.isoformat()}, but a certificate was issued or taken back at "
        raise IssuerClockError(f"{msg}{issued_at.isoformat()}; set the hub's clock")
    starts = [one.not_before for one in before] + ([floor] if floor is not None else [])
    # X.509 counts whole seconds: the next start is one later.
    not_before = max([now.replace(microsecond=0) - CLOCK_SLACK, *(start + _SECOND for start in starts)])
    if not_before > now + CLOCK_SLACK:
        msg = f"the hub's clock says {now.isoformat()}, but the certificate in use starts at {max(starts).isoformat()}"
        raise IssuerClockError(f"{msg}; set the hub's clock")
    return Terms(issued_at, not_before, now + lifetime)
