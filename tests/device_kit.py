"""A store hub for one device that plays what the test wants.

The hub is a stand-in, but its wire is real: gRPC over mTLS, SessionDownstream, ArtifactServer, signed statements.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.conftest import TrustKeys, make_manifest
from tests.device_directory import (
    DEVICE,
    HUB,
    NEW_VERSION,
    PATIENCE_S,
    digest_of,
    image_of,
)
from wavemesh.artifacts.transfer import ArtifactServer
from wavemesh.codec.statements import decode as decode_statement
from wavemesh.codec.statements import encode as encode_statement
from wavemesh.errors import GateError, NotFoundError
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE, policy_digest, policy_to_json
from wavemesh.policy.reader import parse_policy
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_server
from wavemesh.runtime.peers import Peers
from wavemesh.session.frames import Resource, ResourceKey, ResourceVersion
from wavemesh.session.link import SessionDownstream
from wavemesh.telemetry.batches import TelemetryBatch, TelemetryUpload, TelemetryUploadAnswer
from wavemesh.telemetry.otlp import check, show
from wavemesh.telemetry.spans import Trace
from wavemesh.telemetry.uploads import LogUpload, LogUploadAnswer
from wavemesh.trust.attesting import Attestor
from wavemesh.trust.envelope import sign_as_node, sign_statement, sign_with_keys
from wavemesh.trust.releases import Artifact
from wavemesh.trust.statements import (
    AuthorityDown,
    DeviceOutcome,
    DeviceStatus,
    Digest,
    Envelope,
    EventReport,
    HealthAck,
    HealthPing,
    HealthPingAnswer,
    Hold,
    HoldList,
    IntentKind,
    Lease,
    LeaseGrant,
    OperatorIntent,
    OutcomeReport,
    Pause,
    Permit,
    Revocation,
    RevocationList,
    RevocationReach,
    SnapshotReport,
    UpdateState,
    WaveClosed,
    WaveOrder,
    WaveState,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence

    import grpc

    from wavemesh.errors import PeerError
    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.identity.nodes import NodeId
    from wavemesh.session.frames import Hello, Rejection, Report, StatusEntry
    from wavemesh.telemetry.otlp import ShownSpan
    from wavemesh.trust.releases import ReleaseManifest

WAVE = "142"
CONFIG_VERSION = "12.4.1"
SCANNER_CHECK = "lsusb | grep scanner"
BOOT_PROBE = "systemd-analyze verify /boot/inactive"

POLICY = """\
targets: {segment: retail-us-midwest, percentage: 100, hubBudget: 2}
guardrails:
  minBattery: 40
  requireDualPartition: true
  rollbackOnHealthLossMins: %(budget_mins)s
  offlineRollbackAllowed: %(offline_rollback)s
  minFreeDisk: %(min_free_disk)s
artifacts: {firmware: firmware-v3.8.2.img, config: pos-app-12.4.1.tar.gz, signature: firmware-v3.8.2.sig}
verification:
  bootProbe: "systemd-analyze verify /boot/inactive"
  peripheralChecks: ["lsusb | grep scanner"]
  healthPingEndpoint: "https://control-plane/health"
  healthAuthority: %(authority)s
"""


@dataclass(slots=True)
class Blobs:
    """A BlobSource over memory; ``refusal`` is raised instead."""

    content: dict[str, bytes] = field(default_factory=dict)
    reads: list[tuple[str, int]] = field(default_factory=list)
    refusal: GateError | None = None
    stall_after: int | None = None
    stalled: asyncio.Event = field(default_factory=asyncio.Event)

    async def find_missing(self, peer: NodeId, digests: Sequence[Digest]) -> Sequence[Digest]:
        return [digest for digest in digests if digest.sha256 not in self.content]

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        if self.refusal is not None:
            raise self.refusal
        if digest.sha256 not in self.content:
            msg = f"no blob {digest.sha256}"
            raise NotFoundError(msg)
        self.reads.append((digest.sha256, offset))
        return self._pieces(self.content[digest.sha256], offset)

    async def _pieces(self, content: bytes, offset: int) -> AsyncGenerator[bytes, None]:
        for start in range(offset, len(content), 64 * 1024):
            if self.stall_after is not None and start >= self.stall_after:
                self.stalled.set()
                await asyncio.Event().wait()
            yield content[start : start + 64 * 1024]


class HubStandIn:
    """One store hub for one device. Its fields say what it plays; ``until`` waits for what the device does."""

    epoch = "e" * 32

    def __init__(self, keys: TrustKeys, credentials: Callable[[str], NodeCredentials], **policy: str) -> None:
        self.keys = keys
        self.credentials = credentials
        self.wave = WAVE
        self.me = credentials(HUB.path)
        self.blobs = Blobs()
        self.wanted: dict[ResourceKey, Resource] = {}
        self.reports: list[Report] = []
        self.cursors: dict[str, int] = {}
        self.statuses: list[DeviceStatus] = []
        self.rejected: list[Rejection] = []
        self.accepted: list[tuple[str, int]] = []
        self.pings: list[HealthPing] = []
        self.log_lines: list[str] = []
        self.lease_ids: list[str] = []
        self.uploads: list[TelemetryUpload] = []
        self.telemetry: list[TelemetryBatch] = []
        self.telemetry_refusal: PeerError | None = None
        self.attestor = Attestor()
        self.answer_pings_as = "control"
        self.answer_trials_as = ""
        self.lease_state = "live"
        self.grants_leases = True
        self.attempts_allowed = 3
        self.lease_s = 60.0
        self.permit_firmware = True
        self.changes: dict[str, Any] = {}
        self._granted: dict[int, Lease] = {}
        self._counter = 0
        self._changed = asyncio.Event()
        self._downstream: SessionDownstream | None = None
        self.port = 0
        self.bundle = b""
        values = {
            "budget_mins": "0.1",
            "offline_rollback": "true",
            "authority": "either",
            "min_free_disk": "64MiB",
            **policy,
        }
        self._policy_text = (POLICY % values).encode()
        self.release = self._publish()

    # --- what control says -------------------------------------------------------------------------------------------

    def _publish(self, **manifest_fields: Any) -> ReleaseManifest:
        image, config = image_of(NEW_VERSION), b"new config" * 100
        manifest = make_manifest(
            "firmware-v3.8.2",
            firmware=Artifact("firmware-v3.8.2.img", digest_of(image)),
            config=Artifact("pos-app-12.4.1.tar.gz", digest_of(config)),
            config_version=CONFIG_VERSION,
            requires_config=">=12.4.0",
            bundle=Artifact("firmware-v3.8.2.raucb", digest_of(self.bundle)) if self.bundle else None,
            **self.changes,
            **manifest_fields,
        )
        now = datetime.now(UTC)
        metadata, bundles = self.keys.publish(manifest, now=now)
        self.bundle_sha256 = digest_of(bundles[manifest.signature.name]).sha256
        for content in (image, config, self.bundle, *bundles.values()):
            self.blobs.content[digest_of(content).sha256] = content
        self.serve("tuf", "metadata", encode_statement(metadata))
        payload = policy_to_json(parse_policy(self._policy_text, "policy.yaml"))
        self.policy_digest = policy_digest(payload)
        envelope = sign_with_keys(POLICY_PAYLOAD_TYPE, payload, [self.keys.control])
        self.serve("policy", self.policy_digest, encode_statement(envelope))
        self.hold()
        return manifest

    def publish_without(self, artifact: str) -> None:
        """The policy leaves that line of ``artifacts`` out."""
        self._policy_text = self._policy_text.replace(artifact.encode(), b"")
        self._publish()

    def publish_with(self, **manifest_fields: Any) -> None:
        """The release keys sign a release that says more."""
        self.release = self._publish(**manifest_fields)

    def publish_with_guardrail(self, line: str) -> None:
        """The policy has one more guardrail."""
        self._policy_text = self._policy_text.replace(b"guardrails:\n", f"guardrails:\n  {line}\n".encode())
        self._publish()

    def publish_with_bundle(self, bundle: bytes) -> None:
        """The release has its firmware packed for RAUC too."""
        self.bundle = bundle
        self.release = self._publish()

    def publish_asking_for(self, probe: str) -> None:
        """Control signs a policy that asks for another check than the release keys signed."""
        self._policy_text = self._policy_text.replace(SCANNER_CHECK.encode(), probe.encode())
        self._publish()

    def hold(self, *holds: Hold, epoch: int = 1) -> None:
        self._serve_signed("holds", "fleet", HoldList(epoch, holds, datetime.now(UTC)))

    def order(self, state: WaveState = WaveState.RUNNING, generation: int = 1, **changes: Any) -> None:
        now = datetime.now(UTC)
        fields: dict[str, Any] = {
            "wave_id": self.wave,
            "generation": generation,
            "state": state,
            "cohort": "retail-us-midwest",
            "device_class": "pos-tablet",
            "hardware_revision": "r2",
            "store": HUB.path,
            "devices": (DEVICE.name,),
            "release": self.release.name,
            "policy_digest": self.policy_digest,
            "least_hold_epoch": 1,
            "issued_at": now,
            "expires_at": now + timedelta(hours=1),
        }
        self._serve_signed("order", f"{self.wave}/store-208", WaveOrder(**{**fields, **changes}))

    def pause(self, generation: int) -> None:
        self.order(WaveState.PAUSED, generation, pauses=(Pause("operator:alice", "test"),))

    def roll_back(self, reason: str, **changes: Any) -> str:
        return self._intend(IntentKind.ROLLBACK_DEVICE, reason=reason, **changes)

    def approve(self, attempt: int = 1, **changes: Any) -> str:
        """An operator signs off the rollback of an attempt; returns the intent's id."""
        return self._intend(
            IntentKind.APPROVE_ROLLBACK, **{"wave_id": WAVE, "reason": "ok", **changes}, attempt=attempt
        )

    def rehearse(self, **changes: Any) -> str:
        return self._intend(IntentKind.REHEARSE_DEVICE, **changes)

    def _intend(self, kind: IntentKind, operator: str = "alice", **changes: Any) -> str:
        intent = OperatorIntent(
            **{"intent_id": secrets.token_hex(16), "device": DEVICE.name, **changes},
            kind=kind,
            issued_at=datetime.now(UTC),
        )
        envelope = sign_as_node(intent, self.credentials(f"operator/{operator}"))
        self.serve("intent", intent.intent_id, encode_statement(envelope))
        return intent.intent_id

    def revoke(self, path: str) -> None:
        """Control takes a certificate back."""
        taken = Revocation(path, RevocationReach.NODE, datetime.now(UTC), "stolen")
        self._serve_signed("revocations", "fleet", RevocationList(1, (taken,), datetime.now(UTC)))

    def close_wave(self) -> None:
        self._serve_signed("closed", self.wave, WaveClosed(self.wave, WaveState.CLOSED, datetime.now(UTC)))

    def forget(self, kind: str, name: str) -> None:
        self.wanted.pop(ResourceKey(kind, name), None)
        if self._downstream is not None:
            self._downstream.changed()

    def _serve_signed(self, kind: str, name: str, statement: Any) -> None:
        self.serve(kind, name, encode_statement(sign_statement(statement, [self.keys.control])))

    def serve(self, kind: str, name: str, content: bytes) -> None:
        self._counter += 1
        key = ResourceKey(kind, name)
        digest = hashlib.sha256(content).hexdigest()
        self.wanted[key] = Resource(key, ResourceVersion(self.epoch, self._counter), digest, content)
        if self._downstream is not None:
            self._downstream.changed()

    # --- the hub's own part ------------------------------------------------------------------------------------------

    def _maybe_grant(self, status: DeviceStatus) -> None:
        """A device in VERIFIED with a wave is the request for a lease; any other state gives it back."""
        key = ResourceKey("lease", self.wave)
        if status.state is UpdateState.VERIFIED and self.grants_leases:
            lease = self._granted.get(status.attempt)
            if lease is None:
                self.grant(status.attempt)
        elif status.state not in {UpdateState.VERIFIED, UpdateState.ARMED, UpdateState.TRIAL, UpdateState.COMMITTING}:
            self._granted.clear()
            if self.wanted.pop(key, None) is not None and self._downstream is not None:
                self._downstream.changed()

    def grant(self, attempt: int) -> None:
        now = datetime.now(UTC)
        lease = Lease(
            self.wave, DEVICE.path, secrets.token_hex(16), attempt, now, now + timedelta(seconds=self.lease_s)
        )
        self._granted[attempt] = lease
        self.lease_ids.append(lease.lease_id)
        firmware = self.release.firmware if self.permit_firmware else None
        permit = Permit(
            self.wave,
            DEVICE.path,
            self.attempts_allowed,
            1,
            firmware.digest if firmware else None,
            now,
            now + timedelta(hours=1),
            "1" * 32,
        )
        grant = LeaseGrant(sign_as_node(lease, self.me), sign_statement(permit, [self.keys.control]))
        self.serve("lease", self.wave, encode_statement(grant))

    # --- ChildRegistry -----------------------------------------------------------------------------------------------

    async def admit(self, child: NodeId, hello: Hello) -> int:
        return self.cursors.get(hello.incarnation, 0)

    async def apply_reports(
        self, child: NodeId, incarnation: str, first_number: int, reports: Sequence[Report]
    ) -> None:
        self.reports.extend(reports)
        self.cursors[incarnation] = first_number + len(reports) - 1
        self._changed.set()

    def desired(self, child: NodeId) -> Mapping[ResourceKey, Resource]:
        return self.wanted

    async def verdict(self, child: NodeId, accepted: Sequence[Resource], rejected: Sequence[Rejection]) -> None:
        self.rejected.extend(rejected)
        for one in accepted:
            if one.key.type == "order":
                order = decode_statement(WaveOrder, decode_statement(Envelope, one.content).payload)
                self.accepted.append((one.key.type, order.generation))
        self._changed.set()

    async def status(self, child: NodeId, entries: Sequence[StatusEntry]) -> None:
        for entry in entries:
            if entry.body is not None:
                status = decode_statement(DeviceStatus, entry.body)
                self.statuses.append(status)
                self._maybe_grant(status)
        self._changed.set()

    async def answer(self, child: NodeId, kind: str, body: bytes) -> bytes:
        if kind == "logs":
            upload = decode_statement(LogUpload, body)
            self.log_lines.extend(line.text for line in upload.lines)
            self._changed.set()
            return encode_statement(LogUploadAnswer(upload.first_number + len(upload.lines) - 1))
        if kind == "telemetry":
            return encode_statement(self._take_telemetry(decode_statement(TelemetryUpload, body)))
        envelope = decode_statement(Envelope, body)
        ping = decode_statement(HealthPing, envelope.payload)
        self.pings.append(ping)
        self._changed.set()
        digest = hashlib.sha256(envelope.payload).hexdigest()
        on_trial = ping.slot == "B"
        kind = (on_trial and self.answer_trials_as) or self.answer_pings_as
        answer = self._answer_ping(digest, kind)
        if answer.ack is not None:
            judged = self.attestor.judge(envelope, ping, (self.release,))
            answer = replace(answer, ack=answer.ack if judged.passes else None, attestation=judged.answer)
        return encode_statement(answer)

    def _take_telemetry(self, upload: TelemetryUpload) -> TelemetryUploadAnswer:
        self.uploads.append(upload)
        self._changed.set()
        if self.telemetry_refusal is not None:
            raise self.telemetry_refusal
        for batch in upload.batches:
            check(batch.otlp_traces, HUB.fleet, DEVICE.path)
        self.telemetry += upload.batches
        return TelemetryUploadAnswer(len(upload.batches))

    def spans(self) -> list[ShownSpan]:
        """All spans of the wave that the device has sent, each once, by begin."""
        trace_id = Trace(HUB.fleet, WAVE, DEVICE.path).trace_id
        spans = {span.span_id: span for batch in self.telemetry for span in show(batch.otlp_traces, trace_id)}
        return sorted(spans.values(), key=lambda span: (span.began_at, span.ended_at))

    def _answer_ping(self, digest: str, kind: str) -> HealthPingAnswer:
        now = datetime.now(UTC)
        match kind:
            case "control":
                ack = sign_statement(HealthAck(digest, "control", now), [self.keys.control])
                return HealthPingAnswer(ack, self.lease_state, None)
            case "hub":
                ack = sign_as_node(HealthAck(digest, "hub", now), self.me)
                return HealthPingAnswer(ack, self.lease_state, None)
            case "down":
                down = sign_as_node(AuthorityDown(digest, "control", now), self.me)
                return HealthPingAnswer(None, self.lease_state, down)
            case _:
                return HealthPingAnswer(None, self.lease_state, None)

    async def child_connected(self, child: NodeId, hello: Hello) -> None:
        self._changed.set()

    async def child_disconnected(self, child: NodeId, reason: str) -> None:
        self._changed.set()

    # --- what a test sees --------------------------------------------------------------------------------------------

    def outcomes(self) -> list[DeviceOutcome]:
        """Every outcome reported, in order."""
        found: list[DeviceOutcome] = []
        for report in self.reports:
            if report.kind == "outcome":
                found.extend(_outcome(envelope) for envelope in decode_statement(OutcomeReport, report.body).outcomes)
            elif report.kind == "snapshot":
                found.extend(_outcome(envelope) for envelope in decode_statement(SnapshotReport, report.body).outcomes)
        return found

    def events(self) -> list[EventReport]:
        """Every event reported, in order."""
        return [decode_statement(EventReport, report.body) for report in self.reports if report.kind == "event"]

    def answer_to(self, intent_id: str) -> str:
        """Why nothing came of an intent, empty as long as the device did not say so."""
        found = [event for event in self.events() if event.subject == intent_id]
        return found[0].detail if found else ""

    def words(self) -> list[tuple[str, str, int]]:
        """(kind, gate, attempt) of every outcome."""
        return [(one.kind.name, one.gate, one.attempt) for one in self.outcomes()]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the device made it true; looked at after everything the device says, and now and then."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await self._changed.wait()

    async def until_state(self, state: UpdateState) -> None:
        await self.until(lambda: bool(self.statuses) and self.statuses[-1].state is state)

    def _serve_blobs(self, server: grpc.aio.Server, peers: Peers) -> None:
        ArtifactServer(HUB, self.blobs, peers).add_to(server)

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[HubStandIn]:
        """Listen until the context ends."""
        peers = Peers(self.me.authorities, SystemClock())
        server, self.port = make_server(self.me, address=f"127.0.0.1:{port}", maximum_concurrent_rpcs=64, peers=peers)
        self._downstream = SessionDownstream(HUB, self, SystemClock(), peers)
        self._downstream.add_to(server)
        self._serve_blobs(server, peers)
        await server.start()
        try:
            yield self
        finally:
            await self._downstream.drain(0.1)
            self._downstream = None
            await server.stop(0.5)


def _outcome(envelope: Envelope) -> DeviceOutcome:
    return decode_statement(DeviceOutcome, envelope.payload)
