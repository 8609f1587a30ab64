"""Who may join, and which certificates the authorities of the regions say they issued.

Rules:
- An operator makes the token's secret; control keeps and publishes its SHA-256, signed, to the super hub of the region,
  which issues by it also when control cannot be reached. The secret never comes here.
- Class and revision come from the inventory, or go into it with the enrolment: one place, and bound to the certificate.
- What a super hub reports of a node's certificate is what is known. A device's status, where it says when its
  certificate was issued, raises that: a super hub that lost its disk must not hold up a wave.
- An enrolment that was used is withdrawn at once; one that ended stays published a while, so that who comes late with
  its token is told that it ended.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update

from control import requests, schema, store
from control.desired import Item
from control.requests import BadRequestError
from control.rollout import region_of
from wavemesh.errors import ConflictError
from wavemesh.identity.nodes import BadNodeIdError, NodeId, Role
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.enrolments import Enrolment
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from control.database import Database, Transaction
    from control.desired import DesiredState
    from control.fleet import Fleet
    from control.signing import Signing
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.enrolments import CertificateReport

DEFAULT_LIFETIME = timedelta(hours=24)
MAX_LIFETIME = timedelta(days=90)
KEEP_ENDED = timedelta(days=7)
MAX_OPEN = 4000
"""Open enrolments of one region: they share what a session can hold with everything else."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_JOINS = frozenset({Role.STORE_HUB, Role.DEVICE})


def enrolment_key(path: str) -> ResourceKey:
    """Key of the enrolment of one node."""
    return ResourceKey("enrolment", path)


class Enrolments:
    """Enrolments and certificates, in the caller's transaction."""

    def __init__(
        self,
        *,
        fleet_name: str,
        trust_root_sha256: str,
        desired: DesiredState,
        signing: Signing,
        fleet: Fleet,
        clock: Clock,
    ) -> None:
        """``trust_root_sha256`` names the TUF root that nodes pin when they join."""
        self._fleet_name = fleet_name
        self._trust_root_sha256 = trust_root_sha256
        self._desired = desired
        self._signing = signing
        self._fleet = fleet
        self._clock = clock

    async def create(
        self, tx: Transaction, request: operator_pb2.CreateEnrolmentRequest, caller: NodeId
    ) -> operator_pb2.CreateEnrolmentResponse:
        """Let a node join once. Raises BadRequestError, ConflictError."""
        node = self._node(request.node)
        if not _SHA256.fullmatch(request.secret_sha256):
            raise BadRequestError("secret_sha256", "64 lower-case hex digits, of a secret that you keep")
        lifetime = timedelta(seconds=request.lifetime_s) or DEFAULT_LIFETIME
        if lifetime > MAX_LIFETIME:
            raise BadRequestError("lifetime_s", f"{request.lifetime_s}; at most {MAX_LIFETIME.days} days")
        table = schema.enrolments
        known = await tx.first(select(table).where(table.c.node == node.path))
        if known is not None and known["secret_sha256"] == request.secret_sha256:
            return self._response(known["expires_at"], duplicate=True)
        await self._check_room(tx, node.path)
        device_class, revision = await self._register(tx, node, request)
        now = self._clock.now()
        enrolment = Enrolment(
            node=node.path,
            secret_sha256=request.secret_sha256,
            trust_root_sha256=self._trust_root_sha256,
            issued_at=now,
            expires_at=now + lifetime,
            device_class=device_class,
            hardware_revision=revision,
        )
        row = {
            "node": node.path,
            "device_class": device_class,
            "hardware_revision": revision,
            "secret_sha256": request.secret_sha256,
            "issued_at": now,
            "expires_at": enrolment.expires_at,
            "created_by": caller.uri,
            "used_at": None,
        }
        await tx.put(table, row)
        [content] = await self._signing.seal([enrolment])
        region = region_of(node.path)
        await self._desired.publish(tx, Item(region, enrolment_key(node.path), content, audience=(region,)))
        bound = f" as {device_class} {revision}" if device_class else ""
        await self._audit(tx, caller.uri, "node.enrol", node.path, f"until {enrolment.expires_at.isoformat()}{bound}")
        return self._response(enrolment.expires_at, duplicate=False)

    async def heard(self, tx: Transaction, child: NodeId, report: CertificateReport) -> None:
        """A super hub says that it issued a certificate."""
        values = {
            "path": report.node,
            "serial": report.serial,
            "issued_at": report.issued_at,
            "expires_at": report.expires_at,
            "device_class": report.device_class,
            "hardware_revision": report.hardware_revision,
        }
        table = schema.certificates
        known = await tx.first(select(table).where(table.c.path == report.node))
        # A report said again late takes nothing back; a device's own word, which has no serial, gives way to a report.
        if known is None or not known["serial"] or report.issued_at >= known["issued_at"]:
            # Which wave it last renewed for stays known when it renews for none.
            last_wave = "" if known is None else known["wave_id"]
            await tx.put(table, values | {"wave_id": report.wave_id or last_wave})
        detail = f"serial {report.serial} until {report.expires_at.isoformat()}"
        if report.secret_sha256:
            asked = schema.enrolments
            this = (asked.c.node == report.node, asked.c.secret_sha256 == report.secret_sha256)
            if await tx.run(update(asked).where(*this).values(used_at=report.issued_at)):
                await self._desired.withdraw(tx, region_of(report.node), [enrolment_key(report.node)])
        action = "node.joined" if report.secret_sha256 else "node.renewed"
        wave = f" for wave {report.wave_id}" if report.wave_id else ""
        await self._audit(tx, child.uri, action, report.node, detail + wave)

    async def device_says(self, tx: Transaction, device: str, issued_at: datetime) -> None:
        """A device says when its certificate was issued; what was known of an older one is not of this."""
        table = schema.certificates
        known = await tx.scalar(select(table.c.issued_at).where(table.c.path == device))
        if known is None:
            nothing = {"serial": "", "device_class": "", "hardware_revision": "", "wave_id": ""}
            await tx.put(table, {"path": device, "issued_at": issued_at, "expires_at": None, **nothing})
        elif issued_at > known:
            values = {"issued_at": issued_at, "serial": "", "expires_at": None}
            await tx.run(update(table).where(table.c.path == device).values(**values))

    async def expire(self, tx: Transaction) -> None:
        """Withdraw what ended a while ago."""
        before = self._clock.now() - KEEP_ENDED
        table = schema.enrolments
        rows = await tx.all(select(table.c.node).where(table.c.expires_at < before, table.c.used_at.is_(None)))
        for row in rows:
            await self._desired.withdraw(tx, region_of(row["node"]), [enrolment_key(row["node"])])

    def _node(self, path: str) -> NodeId:
        try:
            node = NodeId(self._fleet_name, path)
        except BadNodeIdError as error:
            raise BadRequestError("node", str(error)) from error
        if node.role not in _JOINS:
            problem = f"{path} joins by no token; `edgectl node request` and `edgectl ca sign` make its certificate"
            raise BadRequestError("node", problem)
        return node

    async def _check_room(self, tx: Transaction, path: str) -> None:
        table, region = schema.enrolments, region_of(path)
        is_open = (table.c.used_at.is_(None), table.c.expires_at > self._clock.now())
        count = select(func.count()).select_from(table).where(table.c.node.startswith(f"{region}/"), *is_open)
        if await tx.scalar(count) >= MAX_OPEN:
            msg = f"{MAX_OPEN} nodes of {region} are to join already; wait until some have"
            raise ConflictError(msg)

    async def _register(
        self, tx: Transaction, node: NodeId, request: operator_pb2.CreateEnrolmentRequest
    ) -> tuple[str, str]:
        """Class and revision to bind; registers what is not registered."""
        if node.role is Role.STORE_HUB:
            if not self._fleet.knows_store(node.path):
                item = operator_pb2.InventoryStore(path=node.path, time_zone=request.time_zone or "UTC")
                await tx.put(schema.stores, requests.store_row(item, 0, self._fleet_name))
                self._know(tx, {node.path}, set())
            return "", ""
        table = schema.devices
        held = await tx.first(select(table).where(table.c.path == node.path))
        if held is None:
            device = operator_pb2.InventoryDevice(
                path=node.path,
                device_class=request.device_class,
                hardware_revision=request.hardware_revision,
                labels=request.labels,
            )
            await tx.put(table, requests.device_row(device, 0, self._fleet_name, self._fleet.stores))
            self._know(tx, set(), {node.path})
            return request.device_class, request.hardware_revision
        for name in ("device_class", "hardware_revision"):
            asked, registered = getattr(request, name), held[name]
            if asked and asked != registered:
                msg = (
                    f"{node.path} is registered with {name} {registered!r}, not {asked!r}; correct the inventory first"
                )
                raise ConflictError(msg, device=node.path)
        return held["device_class"], held["hardware_revision"]

    def _know(self, tx: Transaction, stores: set[str], devices: set[str]) -> None:
        fleet = self._fleet
        tx.after_commit(lambda: fleet.register(fleet.stores | stores, fleet.device_paths | devices))

    def _response(self, expires_at: datetime, *, duplicate: bool) -> operator_pb2.CreateEnrolmentResponse:
        response = operator_pb2.CreateEnrolmentResponse(
            fleet=self._fleet_name, trust_root_sha256=self._trust_root_sha256, duplicate=duplicate
        )
        response.expires_at.FromDatetime(expires_at)
        return response

    async def _audit(self, tx: Transaction, actor: str, action: str, subject: str, detail: str) -> None:
        await store.append_audit(tx, at=self._clock.now(), actor=actor, action=action, subject=subject, detail=detail)


async def refuse_rebound(tx: Transaction, devices: Sequence[Mapping[str, object]]) -> None:
    """A device's class and revision are bound to its certificate: the inventory cannot change them alone."""
    table = schema.certificates
    for row in devices:
        held = await tx.first(select(table).where(table.c.path == row["path"]))
        bound = None if held is None else (held["device_class"], held["hardware_revision"])
        if bound is not None and any(bound) and bound != (row["device_class"], row["hardware_revision"]):
            msg = f"the certificate of {row['path']} binds it to {bound[0]} {bound[1]}; enrol it anew to change that"
            raise ConflictError(msg, device=str(row["path"]))


class ControlRetirements:
    """Implements ``wavemesh.identity.retirement.Retirements`` for super hubs."""

    def __init__(self, database: Database) -> None:
        """Use ``load``."""
        self._database = database
        self._newest: dict[str, datetime] = {}

    @classmethod
    async def load(cls, database: Database) -> ControlRetirements:
        """Read what was remembered."""
        retirements = cls(database)
        async with database.reading() as tx:
            rows = await tx.all(select(schema.retirements))
        retirements._newest = {row["path"]: row["issued_at"] for row in rows}
        return retirements

    def newest(self, path: str) -> datetime | None:
        """Start of the newest certificate that super hub has used here."""
        return self._newest.get(path)

    async def used(self, path: str, issued_at: datetime) -> None:
        """It opened a session with such a certificate; durable before it returns."""
        async with self._database.transaction() as tx:
            await tx.put(schema.retirements, {"path": path, "issued_at": issued_at})
            tx.after_commit(lambda: self._newest.update({path: issued_at}))
