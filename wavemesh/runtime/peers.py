"""Who calls: the node that a call's TLS certificate proves, by the rules of this fleet.

TLS has checked that the chain is sound and that a server's name is right. It knows nothing of what each authority of a
chain may speak for, so every service asks here before it believes anything; a message is never asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography import x509

from wavemesh.errors import ForbiddenError, PeerError
from wavemesh.identity.retirement import NoRetirements, check_in_use

if TYPE_CHECKING:
    from datetime import datetime

    import grpc

    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.nodes import NodeId
    from wavemesh.identity.retirement import Retirements
    from wavemesh.runtime.clock import Clock


class Peer(NamedTuple):
    """A caller, and when the certificate it showed starts."""

    node_id: NodeId
    not_before: datetime


class Peers:
    """The callers of one server."""

    def __init__(self, authorities: Authorities, clock: Clock, retirements: Retirements | None = None) -> None:
        """Believe those authorities, at the clock's time, but no certificate that has retired."""
        self._authorities = authorities
        self._clock = clock
        self._retirements = retirements or NoRetirements()

    def of(self, context: grpc.aio.ServicerContext[Any, Any]) -> NodeId:
        """Who calls. Raises ForbiddenError when the certificate proves no node of the fleet, or has retired."""
        return self.shown(context).node_id

    def shown(self, context: grpc.aio.ServicerContext[Any, Any]) -> Peer:
        """The same, with what it showed."""
        shown = context.auth_context()
        leaf = b"".join(map(bytes, shown.get("x509_pem_cert", ())))
        chain = b"".join(map(bytes, shown.get("x509_pem_cert_chain", ())))
        try:
            node_id = self._authorities.verify_pem(leaf, self._clock.now(), chain)
        except PeerError as error:
            msg = f"the client certificate proves no node of this fleet: {error}"
            raise ForbiddenError(msg) from error
        not_before = x509.load_pem_x509_certificate(leaf).not_valid_before_utc
        check_in_use(self._retirements, node_id.path, not_before)
        return Peer(node_id, not_before)

    async def used(self, peer: Peer) -> None:
        """A session was opened with that certificate: older ones of the node retire. Durable before it returns."""
        newest = self._retirements.newest(peer.node_id.path)
        if newest is None or peer.not_before > newest:
            await self._retirements.used(peer.node_id.path, peer.not_before)
