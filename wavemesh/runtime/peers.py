"""Who calls: the node that a call's TLS certificate proves, by the rules of this fleet.

TLS has checked that the chain is sound and that a server's name is right. It knows nothing of what each authority of a
chain may speak for, so every service asks here before it believes anything; a message is never asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wavemesh.errors import ForbiddenError, PeerError

if TYPE_CHECKING:
    import grpc

    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock


class Peers:
    """The callers of one server."""

    def __init__(self, authorities: Authorities, clock: Clock) -> None:
        """Believe those authorities, at the clock's time."""
        self._authorities = authorities
        self._clock = clock

    def of(self, context: grpc.aio.ServicerContext[Any, Any]) -> NodeId:
        """Who calls. Raises ForbiddenError when the certificate proves no node of the fleet."""
        shown = context.auth_context()
        leaf = b"".join(map(bytes, shown.get("x509_pem_cert", ())))
        chain = b"".join(map(bytes, shown.get("x509_pem_cert_chain", ())))
        try:
            return self._authorities.verify_pem(leaf, self._clock.now(), chain)
        except PeerError as error:
            msg = f"the client certificate proves no node of this fleet: {error}"
            raise ForbiddenError(msg) from error
