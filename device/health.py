"""Signed health pings and what their answers prove.

A ping is signed by the device and travels through the mesh to the policy's health authority. Its acknowledgement counts
only if it is signed by that authority (control's role keys, or this device's own hub), names this very ping by its
digest, and, for authority ``either``, comes from one of both. The hub's signed word that the authority could not be
reached makes a trial inconclusive; silence, or an answer that does not verify, proves nothing.

A device whose certificate binds an attestation key quotes its PCRs in every ping, for the challenge in the authority's
last answer. An answer that only has a challenge is asked again at once. An authority that refuses the quote decides; a
TPM that does not answer proves nothing, under gate "attestation".
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wavemesh.codec.statements import decode, encode
from wavemesh.errors import GateError, LocalError, PeerError
from wavemesh.identity.attestation import ping_nonce, wanted_pcrs
from wavemesh.identity.binding import binding_of
from wavemesh.policy.gates import Gate
from wavemesh.trust.envelope import sign_as_node, verify_node, verify_role
from wavemesh.trust.statements import AuthorityDown, HealthAck, HealthPing, HealthPingAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from device.orders import Facts
    from device.platform import BootRecord
    from device.sink import DeviceSink
    from device.store import DeviceStore
    from wavemesh.identity.credentials import Credentials
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.session.seams import Upstream
    from wavemesh.trust.quotes import Quote
    from wavemesh.trust.statements import Envelope

CONTROL = "control"
HUB = "hub"
EITHER = "either"
HALTED = "halted"


class PingEnd(enum.Enum):
    """What a ping proved."""

    ACKNOWLEDGED = "acknowledged"
    AUTHORITY_DOWN = "authority-down"
    REFUSED = "refused"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class PingResult:
    """The end of one ping; ``lease_state`` is the hub's word ("live", "paused", "halted", "none") or empty.

    ``gate`` is the one that a refusal, or the lack of an answer, is about.
    """

    end: PingEnd
    lease_state: str = ""
    detail: str = ""
    gate: str = Gate.HEALTH_AUTHORITY.value


_NOT_FRESH = PingResult(
    PingEnd.NOTHING, "", "the authority wants a quote for yet another challenge", Gate.ATTESTATION.value
)


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
        quote: Callable[[bytes, Sequence[int]], Quote] | None = None,
    ) -> None:
        """``timeout_s`` bounds one ping; ``quote`` is the TPM's, for a nonce and PCRs, where the key lives in one."""
        self._upstream = upstream
        self._store = store
        self._sink = sink
        self._credentials = credentials
        self._hub = hub
        self._clock = clock
        self._timeout_s = timeout_s
        self._quote = quote
        self._challenge = b""

    @property
    def attests(self) -> bool:
        """Whether a ping tells what was booted: this device has a TPM."""
        return self._quote is not None

    async def ping(self, wave_id: str, authority: str, record: BootRecord, facts: Facts) -> PingResult:
        """Ping once, or twice for a new challenge; never raises for what a peer or a TPM does."""
        result = await self._ping(wave_id, authority, record, facts)
        return result or await self._ping(wave_id, authority, record, facts) or _NOT_FRESH

    async def _ping(self, wave_id: str, authority: str, record: BootRecord, facts: Facts) -> PingResult | None:
        """One ping; None when the answer only has a challenge."""
        ping = HealthPing(
            wave_id=wave_id,
            device=self._credentials.node_id.path,
            boot_id=record.boot_id,
            slot=record.boot.slot.value,
            firmware_sha256=facts.firmware_sha256,
            counter=self._store.next_ping(),
            authority=authority,
        )
        try:
            # A TPM takes its time: the loop does not wait for it.
            envelope = await asyncio.to_thread(self._sign, ping) if self.attests else self._sign(ping)
            body = await self._upstream.ask("health-ping", encode(envelope), self._timeout_s)
            answer = decode(HealthPingAnswer, body)
        except TimeoutError:
            return PingResult(PingEnd.NOTHING, detail=f"no answer within {self._timeout_s:g} s")
        except PeerError as error:
            return PingResult(PingEnd.NOTHING, detail=str(error))
        except LocalError as error:
            return PingResult(PingEnd.NOTHING, detail=str(error), gate=Gate.ATTESTATION.value)
        digest = hashlib.sha256(envelope.payload).hexdigest()
        try:
            return self._judge(answer, authority, digest)
        except GateError as error:
            subject = "authority-down" if answer.ack is None else "health-ack"
            self._store.tell_refusal(subject, error.gate, str(error))
            return PingResult(PingEnd.NOTHING, answer.lease_state, f"the answer does not verify: {error}")

    def _sign(self, ping: HealthPing) -> Envelope:
        """The ping as it travels, with a quote where the certificate binds an attestation key. Raises LocalError."""
        binding = binding_of(self._credentials.current.certificate)
        bound = binding.attestation if binding is not None else None
        if bound is not None and self._quote is not None:
            releases = self._sink.trusted.releases().values() if self._sink.trusted is not None else ()
            wanted = wanted_pcrs(bound, ping.firmware_sha256, releases)
            pcrs = sorted({number for one in wanted for number in one})
            ping = replace(ping, quote=self._quote(ping_nonce(ping, self._challenge), pcrs))
        return sign_as_node(ping, self._credentials)

    def _judge(self, answer: HealthPingAnswer, authority: str, digest: str) -> PingResult | None:
        attestation = answer.attestation
        if attestation is not None:
            self._challenge = attestation.challenge
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
        if attestation is not None and attestation.refused:
            return PingResult(PingEnd.REFUSED, answer.lease_state, attestation.refused, Gate.ATTESTATION.value)
        if attestation is not None:
            return None
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
