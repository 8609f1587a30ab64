"""Control as the parent of super hubs: who may connect, what their reports, status and questions do (ChildRegistry).

Rules:
- Only super hubs of this fleet connect; who they are comes from TLS.
- Reports are durable before they are acknowledged (control/reports.py). Status is latest-wins and stays in memory, but
  for a coarse copy of what devices run. Status is what hubs say, not signed by devices: it decides nothing but what is
  shown, what is planned next, and to which incarnation of a hub permits are bound.
- A device's health ping is acknowledged when the device itself signed it, is registered, and has not used that counter
  before; the acknowledgement is signed as control and names the ping by its digest.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from control import schema
from wavemesh.artifacts import signedurls
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import ForbiddenError, GateError, NotFoundError, PeerError
from wavemesh.identity.nodes import Role, is_within
from wavemesh.policy.gates import Gate
from wavemesh.telemetry import batches
from wavemesh.trust.attesting import Attestor
from wavemesh.trust.envelope import verify_node
from wavemesh.trust.statements import (
    DeviceStatus,
    Envelope,
    HealthAck,
    HealthPing,
    HealthPingAnswer,
    HubStatus,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from control.changes import Changes
    from control.database import Database
    from control.desired import DesiredState
    from control.enrolments import Enrolments
    from control.fleet import Fleet
    from control.intents import Intents
    from control.origins import Origins
    from control.releases import Releases
    from control.reports import Reports
    from control.signing import Signing
    from control.waves import Waves
    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.session.frames import Hello, Rejection, Report, Resource, ResourceKey, StatusEntry
    from wavemesh.telemetry.outbox import Outbox

_LOG = logging.getLogger(__name__)
_LAST_SEEN_STEP = timedelta(hours=1)
AUTHORITY = "control"
_RUNNING = ("firmware_version", "firmware_sha256", "config_version")


@dataclass(slots=True)
class _Intake:
    """What one status update brought; ``flipped`` when something connected or disconnected."""

    hubs: list[HubStatus] = field(default_factory=list)
    devices: list[DeviceStatus] = field(default_factory=list)
    flipped: bool = False


class ControlRegistry:
    """What control knows and does about super hubs."""

    def __init__(
        self,
        *,
        fleet_name: str,
        database: Database,
        desired: DesiredState,
        fleet: Fleet,
        reports: Reports,
        waves: Waves,
        intents: Intents,
        enrolments: Enrolments,
        signing: Signing,
        changes: Changes,
        authorities: Authorities,
        clock: Clock,
        outbox: Outbox,
        releases: Releases,
        origins: Origins,
    ) -> None:
        """Nothing is read before ``load``."""
        self._fleet_name = fleet_name
        self._database = database
        self._desired = desired
        self._fleet = fleet
        self._reports = reports
        self._waves = waves
        self._intents = intents
        self._enrolments = enrolments
        self._signing = signing
        self._changes = changes
        self._authorities = authorities
        self._clock = clock
        self._outbox = outbox
        self._releases = releases
        self._origins = origins
        self._attestor = Attestor()
        self._running: dict[str, tuple[str, str, str]] = {}
        self._seen_at: dict[str, datetime] = {}
        self._issued_at: dict[str, datetime] = {}
        self._pings: dict[str, tuple[int, str]] = {}

    async def load(self) -> None:
        """Read the coarse copy of what is known of stores and devices."""
        async with self._database.reading() as tx:
            stores = await tx.all(select(schema.stores))
            devices = await tx.all(select(schema.devices))
        self._waves.bound.update({row["path"]: row["hub_incarnation"] for row in stores})
        self._running = {row["path"]: (row[_RUNNING[0]], row[_RUNNING[1]], row[_RUNNING[2]]) for row in devices}
        self._seen_at = {row["path"]: row["last_seen_at"] for row in devices if row["last_seen_at"] is not None}
        self._fleet.register((row["path"] for row in stores), self._running)

    @property
    def epoch(self) -> str:
        """The epoch of resource versions."""
        return self._desired.epoch

    async def admit(self, child: NodeId, hello: Hello) -> int:
        """Only super hubs of this fleet; the cursor of the incarnation. Raises ForbiddenError."""
        if child.role is not Role.SUPER_HUB or child.fleet != self._fleet_name:
            msg = f"{child.uri} is no super hub of fleet {self._fleet_name}; dial your own parent"
            raise ForbiddenError(msg, peer=child.uri)
        return await self._reports.cursor(child, hello.incarnation)

    async def apply_reports(
        self, child: NodeId, incarnation: str, first_number: int, reports: Sequence[Report]
    ) -> None:
        """Apply reports and move the cursor in one transaction."""
        await self._reports.apply(child, incarnation, first_number, reports)
        self._changes.notify()

    def desired(self, child: NodeId) -> Mapping[ResourceKey, Resource]:
        """The region's desired state."""
        return self._desired.of_region(child.path)

    async def verdict(self, child: NodeId, accepted: Sequence[Resource], rejected: Sequence[Rejection]) -> None:
        """Note what reached the region; audit what it refused."""
        self._fleet.region_holds(child.path, accepted)
        if rejected:
            async with self._database.transaction() as tx:
                for one in rejected:
                    subject = f"{one.key.type}/{one.key.name}"
                    await self._waves.audit(
                        tx, child.uri, "resource.rejected", subject, f"gate {one.gate}: {one.reason}"
                    )
        await self._progress(child.path)

    async def status(self, child: NodeId, entries: Sequence[StatusEntry]) -> None:
        """Take in status; what is malformed or not of this region is logged and passed over."""
        intake = _Intake()
        for entry in entries:
            try:
                self._take_status(child, entry, intake)
            except PeerError as error:
                _LOG.warning("status %r of %s passed over: %s", entry.key[:200], child.path, error)
        await self._keep_running(intake.devices)
        await self._bind_hubs(intake.hubs)
        if intake.flipped:
            await self._progress(child.path)
        self._changes.notify()

    async def answer(self, child: NodeId, kind: str, body: bytes) -> bytes:
        """Take telemetry, sign URLs of the origin, or answer a health ping.

        Raises NotFoundError, GateError, ForbiddenError, BusyError.
        """
        if kind == batches.ASK_KIND:
            return encode(await self._outbox.take(child, decode(batches.TelemetryUpload, body)))
        if kind == signedurls.ASK_KIND:
            return encode(await self._origins.answer(child, decode(signedurls.OriginUrlsRequest, body)))
        return await self._answer_ping(child, kind, body)

    async def _answer_ping(self, child: NodeId, kind: str, body: bytes) -> bytes:
        if kind != "health-ping":
            msg = f"control answers no question of kind {kind[:100]!r}"
            raise NotFoundError(msg)
        envelope = decode(Envelope, body)
        now = self._clock.now()
        device, ping = verify_node(envelope, HealthPing, self._authorities, now, Role.DEVICE)
        if not is_within(device.path, child.path) or ping.device != device.path:
            msg = f"ping about {ping.device} signed by {device.path} does not come from {child.path}'s region"
            raise ForbiddenError(msg)
        if not self._fleet.knows_device(device.path):
            msg = f"device {device.path} is not registered"
            raise NotFoundError(msg, device=device.path)
        digest = hashlib.sha256(envelope.payload).hexdigest()
        last = self._pings.get(device.path)
        if last is not None and (ping.counter, digest) != last and ping.counter <= last[0]:
            msg = f"ping {ping.counter} of {device.path} comes after {last[0]}"
            raise GateError(Gate.REPLAY.value, msg, device=device.path)
        self._pings[device.path] = (ping.counter, digest)
        judged = self._attestor.judge(envelope, ping, self._releases.all().values())
        ack = None
        if judged.passes:
            ack = await self._signing.sign(HealthAck(ping_sha256=digest, authority=AUTHORITY, at=now))
        return encode(HealthPingAnswer(ack, "none", authority_down=None, attestation=judged.answer))

    async def child_connected(self, child: NodeId, hello: Hello) -> None:
        """A region is up."""
        self._fleet.region_up(child.path, {held.key: held.digest for held in hello.held})
        _LOG.info("%s connected, software %s", child.path, hello.software_version)
        await self._progress(child.path)

    async def child_disconnected(self, child: NodeId, reason: str) -> None:
        """A region is down."""
        self._fleet.region_down(child.path)
        _LOG.info("%s disconnected: %s", child.path, reason)
        self._changes.notify()

    def _take_status(self, child: NodeId, entry: StatusEntry, intake: _Intake) -> None:
        match entry.key.split("/"):
            case ["hub"]:
                self._take_hub(child.path, entry.body, intake)
            case ["store", name, "hub"]:
                path = f"{child.path}/store/{name}"
                if self._fleet.knows_store(path):
                    self._take_hub(path, entry.body, intake)
            case ["store", store, "device", name]:
                path = f"{child.path}/store/{store}/device/{name}"
                if self._fleet.knows_device(path):
                    self._take_device(path, entry.body, intake)
            case _:
                _LOG.warning("unknown status key %r of %s", entry.key[:200], child.path)

    def _take_hub(self, path: str, body: bytes | None, intake: _Intake) -> None:
        status = None if body is None else decode(HubStatus, body)
        if status is not None and status.hub != path:
            msg = f"status of {status.hub!r} under the key of {path}"
            raise ForbiddenError(msg)
        before = self._fleet.hubs.pop(path, None)
        if status is not None:
            self._fleet.hub_says(status, self._clock.now())
            intake.hubs.append(status)
        intake.flipped |= (before is not None and before.connected) != (status is not None and status.connected)

    def _take_device(self, path: str, body: bytes | None, intake: _Intake) -> None:
        status = None if body is None else decode(DeviceStatus, body)
        if status is not None and status.device != path:
            msg = f"status of {status.device!r} under the key of {path}"
            raise ForbiddenError(msg)
        before = self._fleet.devices.pop(path, None)
        if status is not None:
            self._fleet.devices[path] = status
            intake.devices.append(status)
        intake.flipped |= (before is not None and before.connected) != (status is not None and status.connected)

    async def _keep_running(self, heard: Sequence[DeviceStatus]) -> None:
        """Write what devices run where it changed, and when they were heard, to the hour."""
        now = self._clock.now()
        changed = [status for status in heard if self._is_news(status, now)]
        if not changed:
            return
        table = schema.devices
        async with self._database.transaction() as tx:
            for status in changed:
                values = dict(zip(_RUNNING, _runs(status), strict=True))
                await tx.run(update(table).where(table.c.path == status.device).values(**values, last_seen_at=now))
                if status.certificate_issued_at is not None:
                    await self._enrolments.device_says(tx, status.device, status.certificate_issued_at)
        for status in changed:
            if status.certificate_issued_at is not None:
                self._issued_at[status.device] = status.certificate_issued_at
            self._running[status.device] = _runs(status)
            self._seen_at[status.device] = now

    def _is_news(self, status: DeviceStatus, now: datetime) -> bool:
        seen_at = self._seen_at.get(status.device)
        if status.certificate_issued_at not in {None, self._issued_at.get(status.device)}:
            return True
        return self._running.get(status.device) != _runs(status) or seen_at is None or now - seen_at >= _LAST_SEEN_STEP

    async def _bind_hubs(self, heard: Sequence[HubStatus]) -> None:
        """Bind permits to the incarnations that hubs show now."""
        fresh = {
            status.hub: status.incarnation
            for status in heard
            if status.incarnation
            and self._fleet.knows_store(status.hub)
            and self._waves.bound.get(status.hub) != status.incarnation
        }
        if fresh:
            async with self._database.transaction() as tx:
                await self._waves.hubs_reported(tx, fresh)

    async def _progress(self, region: str) -> None:
        self._fleet.note_deliveries(region, self._desired.of_region(region))
        await self._intents.progress()
        self._changes.notify()


def _runs(status: DeviceStatus) -> tuple[str, str, str]:
    return (status.firmware_version, status.firmware_sha256, status.config_version)
