"""Passes on what devices ask of the authority of the region: to join, and to renew.

This hub decides little: that a renewal is signed by the device that asks, and how many may be under way. A super hub
out of reach is a refusal that the device tries again: its certificate is good for long after that.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from wavemesh.codec.statements import decode, encode
from wavemesh.errors import BusyError, LinkDownError
from wavemesh.trust.enrolments import IssueAnswer, RenewalRequest
from wavemesh.trust.envelope import verify_node
from wavemesh.trust.statements import Envelope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from storehub.asks import Relay
    from storehub.hub import Hub
    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.enrolments import JoinRequest

RELAY_TIMEOUT_S = 15.0
MAX_AT_ONCE = 4
"""Of the session's asks under way; health pings need the others."""
MAX_WAITING = 512
RETRY_S = 2.0


class CertificateRelay:
    """The way of one store's devices to the authority of their region."""

    def __init__(self, hub: Hub, relay: Relay) -> None:
        """``relay`` leads to the super hub."""
        self._hub = hub
        self._relay = relay
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._waiting = 0

    async def join(self, request: JoinRequest) -> IssueAnswer:
        """Ask for a device that has no certificate yet. Raises BusyError, LinkDownError, AskFailedError."""
        async with self._place():
            return decode(IssueAnswer, await self._relay.ask("join", encode(request), RELAY_TIMEOUT_S))

    async def renew(self, child: NodeId, body: bytes) -> bytes:
        """Ask for a device's next certificate. Raises GateError, BusyError, LinkDownError, AskFailedError."""
        hub = self._hub
        verify_node(decode(Envelope, body), RenewalRequest, hub.credentials.authorities, hub.clock.now(), child.path)
        async with self._place():
            return await self._relay.ask("renew", body, RELAY_TIMEOUT_S)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING:
            msg = f"{self._waiting} devices of {self._hub.path} wait for certificates"
            raise BusyError(msg, RETRY_S)
        if not self._relay.is_connected:
            msg = f"{self._hub.path} has no session with its super hub, which issues certificates; try again later"
            raise LinkDownError(msg)
        self._waiting += 1
        try:
            async with asyncio.timeout(RELAY_TIMEOUT_S), self._places:
                yield
        except TimeoutError as error:
            msg = f"the super hub of {self._hub.path} did not answer within {RELAY_TIMEOUT_S:g} s"
            raise LinkDownError(msg) from error
        finally:
            self._waiting -= 1
