"""Answers what devices ask: health pings, renewals of certificates, uploads of logs and of telemetry.

*Pings.* The hub verifies the device's signature before anything else. Authority ``control``: relayed up, bounded in
time; when the path is down the device gets the hub's signed word that it was, and its trial ends inconclusive instead
of in the ratio. ``hub``: the hub acknowledges with its own key. ``either``: control's word when the path is up, else
the hub's. Who has the word judges the quote of a device with a TPM (wavemesh/trust/attesting.py). Every answer carries
the state of the device's lease, by which a trial learns of a halt. A ping whose counter is below one already answered
is a replay.

*Renewals.* Passed on to the authority of the region (``certificates.py``).

*Telemetry.* Into the outbox, which judges it (wavemesh/telemetry/outbox.py).

*Logs.* Kept ``log_retention_s``, by (device, incarnation, number); lines already held are ignored.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

from storehub.certificates import CertificateRelay
from storehub.schema import to_stamp
from storehub.standing import Standing
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import GateError, PeerError
from wavemesh.policy.document import HealthAuthority
from wavemesh.policy.gates import Gate
from wavemesh.telemetry import batches
from wavemesh.telemetry.uploads import LogUpload, LogUploadAnswer
from wavemesh.trust.attesting import Attestor
from wavemesh.trust.envelope import sign_as_node, verify_node
from wavemesh.trust.statements import AuthorityDown, Envelope, HealthAck, HealthPing, HealthPingAnswer

if TYPE_CHECKING:
    from storehub.hub import Hub
    from wavemesh.identity.nodes import NodeId

MAX_LINES_PER_DEVICE = 200_000
MAX_LINE_NUMBER = 1 << 62


class Relay(Protocol):
    """The part of the session upwards that asks need."""

    @property
    def is_connected(self) -> bool:
        """Whether a session is welcomed now."""
        ...

    @property
    def refusal(self) -> str:
        """Why there can be no session before somebody is updated; empty when nothing is known to be in the way."""
        ...

    async def ask(self, kind: str, body: bytes, timeout_s: float) -> bytes:
        """Ask the parent; raises PeerError or TimeoutError."""
        ...


class Asks:
    """The answering side of all asks."""

    def __init__(self, hub: Hub, relay: Relay) -> None:
        """``relay`` leads to the super hub and on to control."""
        self._hub = hub
        self._relay = relay
        self.certificates = CertificateRelay(hub, relay)
        self._counters: dict[str, int] = {}
        self._attestor = Attestor()

    async def answer(self, child: NodeId, kind: str, body: bytes) -> bytes:
        """Answer one ask; raises PeerError."""
        match kind:
            case "health-ping":
                return encode(await self._ping(child, body))
            case "renew":
                return await self.certificates.renew(child, body)
            case "logs":
                return encode(await self._logs(child, decode(LogUpload, body)))
            case batches.ASK_KIND:
                return encode(await self._hub.tracing.outbox.take(child, decode(batches.TelemetryUpload, body)))
            case _:
                msg = f"asks of kind {kind!r} are not known here"
                raise PeerError(msg)

    # -- pings ------------------------------------------------------------------------------------------------------

    async def _ping(self, child: NodeId, body: bytes) -> HealthPingAnswer:
        hub = self._hub
        envelope = decode(Envelope, body)
        _, ping = verify_node(envelope, HealthPing, hub.credentials.authorities, hub.clock.now(), child.path)
        if ping.device != child.path:
            msg = f"health ping of {ping.device} sent by {child.path}"
            raise PeerError(msg)
        if ping.counter < self._counters.get(child.path, 0):
            msg = f"health ping {ping.counter} of {child.path} comes after {self._counters[child.path]}"
            raise GateError(Gate.REPLAY.value, msg)
        self._counters[child.path] = ping.counter
        try:
            authority = HealthAuthority(ping.authority)
        except ValueError as error:
            msg = f"health authority {ping.authority!r} is none of control, hub, either"
            raise PeerError(msg) from error
        digest = hashlib.sha256(envelope.payload).hexdigest()
        lease_state = self.lease_state(child.path, ping.wave_id)
        said = await self._relayed(body) if authority is not HealthAuthority.HUB else None
        if said is not None:
            return HealthPingAnswer(said.ack, lease_state, None, said.attestation)
        if authority is HealthAuthority.CONTROL:
            down = sign_as_node(AuthorityDown(digest, "control", hub.clock.now()), hub.credentials)
            return HealthPingAnswer(None, lease_state, down)
        trusted = hub.belief.trusted
        judged = self._attestor.judge(envelope, ping, trusted.releases().values() if trusted is not None else ())
        ack = None
        if judged.passes:
            ack = sign_as_node(HealthAck(digest, "hub", hub.clock.now()), hub.credentials)
        return HealthPingAnswer(ack, lease_state, None, judged.answer)

    async def _relayed(self, body: bytes) -> HealthPingAnswer | None:
        """What control says; None when it, or the path to it, is down. The device verifies what it gets."""
        if not self._relay.is_connected:
            return None
        try:
            answer = await self._relay.ask("health-ping", body, self._hub.config.ping_relay_timeout_s)
            said = decode(HealthPingAnswer, answer)
        except (PeerError, TimeoutError):
            # The device's signature was good, so whatever went wrong above is no fault of the device.
            return None
        return said if said.ack is not None or said.attestation is not None else None

    def lease_state(self, device: str, wave_id: str) -> str:
        """The hub's word on a device's lease: "halted", "paused", "live" or "none"."""
        order = self._hub.belief.orders.get(wave_id)
        standing = self._hub.standing(order).standing if order is not None else None
        if standing is Standing.HALTED:
            return "halted"
        slot = self._hub.store.slots.get(device)
        if slot is None or slot.slot.wave_id != wave_id:
            return "none"
        return "paused" if standing is Standing.PAUSED else "live"

    # -- logs -------------------------------------------------------------------------------------------------------

    async def _logs(self, child: NodeId, upload: LogUpload) -> LogUploadAnswer:
        hub = self._hub
        if not 0 <= upload.first_number <= MAX_LINE_NUMBER:
            msg = f"log lines of {child.path} start at number {upload.first_number}"
            raise PeerError(msg)
        presence = hub.present.get(child.path)
        incarnation = presence.incarnation if presence is not None else ""
        received = to_stamp(hub.clock.now())
        rows = [
            (child.path, incarnation, number, to_stamp(line.at), line.level, line.wave_id, line.text, received)
            for number, line in enumerate(upload.lines, start=upload.first_number)
        ]
        async with hub.store.database.transaction() as tx:
            await tx.execute_many("INSERT OR IGNORE INTO device_logs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        return LogUploadAnswer(max(upload.first_number + len(rows) - 1, 0))

    async def prune_logs(self) -> None:
        """Forget lines past their time, and the oldest of a device that writes too many."""
        hub = self._hub
        oldest = to_stamp(hub.clock.now()) - int(hub.config.log_retention_s * 1e6)
        async with hub.store.database.transaction() as tx:
            await tx.execute("DELETE FROM device_logs WHERE received_at < ?", (oldest,))
            for row in await tx.fetch_all(
                "SELECT device, COUNT(*) AS lines FROM device_logs GROUP BY device HAVING lines > ?",
                (MAX_LINES_PER_DEVICE,),
            ):
                await tx.execute(
                    "DELETE FROM device_logs WHERE rowid IN (SELECT rowid FROM device_logs WHERE device = ? "
                    "ORDER BY received_at, number LIMIT ?)",
                    (row["device"], row["lines"] - MAX_LINES_PER_DEVICE),
                )
