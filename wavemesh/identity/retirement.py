"""Old certificates retire: a parent remembers the newest one that each child has used, and refuses older ones.

Not when the newer one is issued, for its answer may be lost, but when a session was opened with it. Connections that
are open already go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from wavemesh.errors import ForbiddenError

if TYPE_CHECKING:
    from datetime import datetime


class RetiredCertificateError(ForbiddenError):
    """The caller's certificate was replaced by a newer one that has been in use here."""

    reason = "RETIRED"


class Retirements(Protocol):
    """What a parent remembers of its children's certificates."""

    def newest(self, path: str) -> datetime | None:
        """When the newest certificate that child has used here was issued; None before the first."""
        ...

    async def used(self, path: str, issued_at: datetime) -> None:
        """The child opened a session with such a certificate; durable before it returns."""
        ...


class NoRetirements:
    """For servers without children, and tests: nothing retires."""

    def newest(self, path: str) -> None:
        """Nothing is remembered."""

    async def used(self, path: str, issued_at: datetime) -> None:
        """Nothing is remembered."""


def check_in_use(retirements: Retirements, path: str, issued_at: datetime) -> None:
    """Raise RetiredCertificateError for a certificate older than the newest one used."""
    newest = retirements.newest(path)
    if newest is not None and issued_at < newest:
        msg = (
            f"the certificate of {path} from {issued_at.isoformat()} has retired: one from {newest.isoformat()} "
            "is in use; restore the newer identity, or enrol the node again"
        )
        raise RetiredCertificateError(msg, peer=path)
