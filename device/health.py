"""Signed health pings and what their answers prove.

A ping is signed by the device and travels through the mesh to the policy's health authority. Its acknowledgement counts
only if it is signed by that authority (control's role keys, or this device's own hub), names this very ping by its
digest, and, for authority ``either``, comes from one of both. The hub's signed word that the authority could not be
reached makes a trial inconclusive; silence, or an answer that does not verify, proves nothing.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.codec.statements import decode, encode
from wavemesh.errors import GateError, PeerError
from wavemesh.trust.envelope import sign_as_node, verify_node, verify_role
from wavemesh.trust.statements import AuthorityDown, HealthAck, HealthPing, HealthPingAnswer

if TYPE_CHECKING:
    from device.orders import Facts
    from device.platform import BootRecord
    from device.sink import DeviceSink
    from device.store import DeviceStore
    from wavemesh.identity.credentials import Credentials
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.session.seams import Upstream
    from wavemesh.trust.statements import Envelope

CONTROL = "control"
HUB = "hub"
EITHER = "either"
HALTED = "halted"


class PingEnd(enum.Enum):
    """What a ping proved."""

    ACKNOWLEDGED = "acknowledged"
    AUTHORITY_DOWN = "authority-down"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class PingResult:
    """The end of one ping; ``lease_state`` is the hub's word ("live", "paused", "halted", "none") or empty."""

    end: PingEnd
    lease_state: str = ""
    detail: str = ""


class HealthClient:
    """Pings on behalf of this device."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        store: DeviceStore,
        sink: DeviceSink,
        credentials: Credentials,
        hub: NodeId,
        clock: Clock,
        timeout_s: float,
    ) -> None:
        """``timeout_s`` bounds one ping."""
        self._upstream = upstream
        self._store = store
        self._sink = sink
        self._credentials = credentials
        self._hub = hub
        self._clock = clock
        self._timeout_s = timeout_s

    async def ping(self, wave_id: str, authority: str, record: BootRecord, facts: Facts) -> PingResult:
        """Ping once; never raises for what a peer does."""
        ping = HealthPing(
            wave_id=wave_id,
            device=self._credentials.node_id.path,
            boot_id=record.boot_id,
            slot=record.boot.slot.value,
            firmware_sha256=facts.firmware_sha256,
            counter=self._store.next_ping(),
            authority=authority,
        )
        envelope = sign_as_node(ping, self._credentials)
        try:
            body = await self._upstream.ask("health-ping", encode(envelope), self._timeout_s)
            answer = decode(HealthPingAnswer, body)
        except TimeoutError:
            return PingResult(PingEnd.NOTHING, detail=f"no answer within {self._timeout_s:g} s")
        except PeerError as error:
            return PingResult(PingEnd.NOTHING, detail=str(error))
        digest = hashlib.sha256(envelope.payload).hexdigest()
        try:
            return self._judge(answer, authority, digest)
        except GateError as error:
            subject = "authority-down" if answer.ack is None else "health-ack"
            self._store.tell_refusal(subject, error.gate, str(error))
            return PingResult(PingEnd.NOTHING, answer.lease_state, f"the answer does not verify: {error}")

    def _judge(self, answer: HealthPingAnswer, authority: str, digest: str) -> PingResult:
        if answer.ack is not None:
            acknowledged_by = self._verify_ack(answer.ack, authority, digest)
            return PingResult(PingEnd.ACKNOWLEDGED, answer.lease_state, f"acknowledged by {acknowledged_by}")
        if answer.authority_down is not None:
            _, down = verify_node(
                answer.authority_down,
                AuthorityDown,
                self._credentials.authorities,
                self._clock.now(),
                self._hub.path,
            )
            if down.ping_sha256 != digest:
                msg = f"word that {down.authority} is down is about ping {down.ping_sha256[:12]}, wanted {digest[:12]}"
                raise GateError("health-authority", msg)
            return PingResult(PingEnd.AUTHORITY_DOWN, answer.lease_state, f"the hub says {down.authority} is down")
        return PingResult(PingEnd.NOTHING, answer.lease_state, "the answer has neither acknowledgement nor reason")

    def _verify_ack(self, envelope: Envelope, authority: str, digest: str) -> str:
        """Who acknowledged; raises GateError (signature, health-authority)."""
        by_node = any(signature.certificate for signature in envelope.signatures)
        ack = self._hub_ack(envelope) if by_node else self._control_ack(envelope)
        allowed = {CONTROL, HUB} if authority == EITHER else {authority}
        if ack.authority not in allowed or ack.ping_sha256 != digest:
            msg = (
                f"acknowledgement by {ack.authority} of ping {ack.ping_sha256[:12]}, wanted {authority}, {digest[:12]}"
            )
            raise GateError("health-authority", msg)
        return ack.authority

    def _hub_ack(self, envelope: Envelope) -> HealthAck:
        now = self._clock.now()
        _, ack = verify_node(envelope, HealthAck, self._credentials.authorities, now, self._hub.path)
        return ack

    def _control_ack(self, envelope: Envelope) -> HealthAck:
        trusted = self._sink.trusted
        if trusted is None:
            msg = "control acknowledged, but no trust metadata is held to verify it"
            raise GateError("signature", msg)
        ack = verify_role(envelope, HealthAck, trusted)
        if ack.authority != CONTROL:
            msg = f"control's keys acknowledged in the name of {ack.authority}"
            raise GateError("signature", msg)
        self._sink.hear_time(ack.at)
        return ack
