"""What operators read: rows and memory, put together as the answers of operator.proto. Changes nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select, union

from control import intent_rows, requests, schema, store, views
from control.rollout import region_of
from wavemesh.codec.statements import to_proto
from wavemesh.errors import NotFoundError
from wavemesh.listing import is_wanted_device
from wavemesh.telemetry.shown import trace_response
from wavemesh.v1 import operator_pb2, report_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import RowMapping

    from control.database import Database, Transaction
    from control.desired import DesiredState
    from control.fleet import Fleet
    from control.intent_rows import IntentRow
    from control.intents import Intents
    from control.releases import Releases
    from control.store import WaveView
    from wavemesh.telemetry.outbox import Outbox

#: What a filtered list looks at: rows at a time, and how often for one page.
SCAN_ROWS = 1000
MAX_SCANS = 20


class Queries:
    """Answers to questions."""

    def __init__(
        self,
        *,
        source: str,
        database: Database,
        desired: DesiredState,
        fleet: Fleet,
        intents: Intents,
        releases: Releases,
        outbox: Outbox,
    ) -> None:
        """``source`` is this node's path, by which ledgers say whose view they are."""
        self._source = source
        self._database = database
        self._desired = desired
        self._fleet = fleet
        self._intents = intents
        self._releases = releases
        self._outbox = outbox

    def wave_message(self, view: WaveView) -> operator_pb2.Wave:
        """A wave as known here."""
        return views.wave_message(view, self._fleet, self._desired)

    async def wave(self, wave_id: str) -> WaveView:
        """One wave; raises NotFoundError."""
        async with self._database.reading() as tx:
            return await _require(tx, requests.wave_id(wave_id))

    async def waves(self, request: operator_pb2.ListWavesRequest) -> operator_pb2.ListWavesResponse:
        """A page of waves, newest first."""
        size, before = requests.page_size(request.page_size), requests.page_number(request.page_token)
        states = requests.wave_states(request.states)
        stores = self._stores(request.store) if request.store else None
        async with self._database.reading() as tx:
            found = await store.waves_before(
                tx, before, size + 1, states, stores, release=request.release, cohort=request.cohort
            )
            shown = [self.wave_message(await _require(tx, wave_id)) for _, wave_id in found[:size]]
        token = str(found[size - 1][0]) if len(found) > size else ""
        return operator_pb2.ListWavesResponse(waves=shown, next_page_token=token)

    async def trace(self, request: operator_pb2.GetTraceRequest) -> operator_pb2.GetTraceResponse:
        """The trace of a device in a wave; raises NotFoundError."""
        device = self._intents.find_device(request.device)
        return await trace_response(self._outbox, self._source, requests.wave_id(request.wave_id), device)

    async def intents(self, request: operator_pb2.ListIntentsRequest) -> operator_pb2.ListIntentsResponse:
        """A page of intents, newest first."""
        size, before = requests.page_size(request.page_size), requests.page_number(request.page_token)
        wanted = requests.intent_filter(request)
        async with self._database.reading() as tx:
            found = await intent_rows.page(tx, before, size + 1, wanted)
        shown = [self.intent_message(row) for _, row in found[:size]]
        token = str(found[size - 1][0]) if len(found) > size else ""
        return operator_pb2.ListIntentsResponse(intents=shown, next_page_token=token)

    async def intent(self, intent_id: str) -> operator_pb2.IntentRecord:
        """One intent; raises NotFoundError."""
        async with self._database.reading() as tx:
            row = await intent_rows.get(tx, intent_id)
        if row is None:
            msg = f"no intent {intent_id[:80]!r} is known here; `edgectl intent list` shows them"
            raise NotFoundError(msg, intent=intent_id[:80])
        return self.intent_message(row)

    def intent_message(self, row: IntentRow) -> operator_pb2.IntentRecord:
        """An intent as known here."""
        return views.intent_message(row, self._intents.queue_place(row))

    async def ledger(self, request: operator_pb2.GetLedgerRequest) -> operator_pb2.GetLedgerResponse:
        """A wave's ledger, of one store or of all; raises NotFoundError."""
        async with self._database.reading() as tx:
            view = await _require(tx, requests.wave_id(request.wave_id))
            rows = await store.ledger_rows(tx, request.wave_id)
        stores = [path for path in view.targets if request.store in {"", path, path.rsplit("/", 1)[1]}]
        if not stores:
            msg = f"wave {request.wave_id} has no devices in a store {request.store!r}"
            raise NotFoundError(msg, wave=request.wave_id, store=request.store)
        devices = [device for path in stores for device in view.targets[path]]
        heard = self._fleet.devices
        return views.ledger_message(request.wave_id, devices, rows, view.outcomes, source=self._source, statuses=heard)

    async def devices(self, request: operator_pb2.ListDevicesRequest) -> operator_pb2.ListDevicesResponse:
        """A page of devices, by path; the token is the last path that was looked at."""
        size = requests.page_size(request.page_size)
        requests.check_alternatives("states", request.states)
        requests.check_alternatives("outcomes", request.outcomes)
        table = schema.devices
        query = select(table).order_by(table.c.path).limit(SCAN_ROWS)
        if request.store:
            query = query.where(table.c.store.in_(self._stores(request.store)))
        if request.device_class:
            query = query.where(table.c.device_class == request.device_class)
        for name, value in requests.labels(request.labels).items():
            query = query.where(table.c.labels[name].as_string() == value)
        shown: list[operator_pb2.Device] = []
        after = request.page_token
        async with self._database.reading() as tx:
            for _ in range(MAX_SCANS):
                rows = await tx.all(query.where(table.c.path > after))
                outcomes = await _open_outcomes(tx, [row["path"] for row in rows])
                for row in rows:
                    device = views.device_message(row, self._fleet, outcomes[row["path"]])
                    if is_wanted_device(device, request):
                        if len(shown) == size:
                            token = shown[-1].path
                            return operator_pb2.ListDevicesResponse(devices=shown, next_page_token=token)
                        shown.append(device)
                if len(rows) < SCAN_ROWS:
                    return operator_pb2.ListDevicesResponse(devices=shown)
                after = rows[-1]["path"]
        return operator_pb2.ListDevicesResponse(devices=shown, next_page_token=after)

    async def device(self, name: str) -> operator_pb2.Device:
        """One device by name or path; raises NotFoundError, ConflictError for an ambiguous name."""
        path = self._intents.find_device(name)
        async with self._database.reading() as tx:
            [row] = await tx.all(select(schema.devices).where(schema.devices.c.path == path))
            outcomes = await _open_outcomes(tx, [path])
        return views.device_message(row, self._fleet, outcomes[path])

    async def fleet_status(self) -> operator_pb2.GetFleetStatusResponse:
        """Hubs, devices by version, waves that are not closed."""
        async with self._database.reading() as tx:
            unclosed = [await _require(tx, wave_id) for wave_id in await store.unclosed_waves(tx)]
            version = schema.devices.c.firmware_version
            rows = await tx.all(select(version, func.count().label("devices")).group_by(version))
        versions = Counter({row["firmware_version"] or "unknown": row["devices"] for row in rows})
        paths = {region_of(path) for path in self._fleet.stores} | self._fleet.stores | set(self._fleet.hubs)
        return operator_pb2.GetFleetStatusResponse(
            hubs=[self._hub_message(path) for path in sorted(paths)],
            devices=len(self._fleet.device_paths),
            devices_connected=sum(self._fleet.is_connected(path) for path in self._fleet.devices),
            waves=[self.wave_message(view) for view in unclosed],
            firmware_versions=versions,
        )

    def releases(self) -> operator_pb2.ListReleasesResponse:
        """Releases by name, revoked ones too, and the files to which the next one is added."""
        trusted = self._releases.trusted
        return operator_pb2.ListReleasesResponse(
            releases=[
                views.release_message(manifest, trusted, self._releases.hold_reason(manifest))
                for _, manifest in sorted({**trusted.releases(), **trusted.revoked_releases()}.items())
            ],
            targets=trusted.source.targets,
            delegated=trusted.source.delegated,
            roots=trusted.source.roots,
        )

    async def audit(self, request: operator_pb2.ListAuditRequest) -> operator_pb2.ListAuditResponse:
        """A page of the audit, newest first."""
        size, before = requests.page_size(request.page_size), requests.page_number(request.page_token)
        table = schema.audit
        query = select(table).order_by(table.c.number.desc()).limit(size + 1).where(*requests.audit_filter(request))
        if before is not None:
            query = query.where(table.c.number < before)
        async with self._database.reading() as tx:
            rows = await tx.all(query)
        token = str(rows[size - 1]["number"]) if len(rows) > size else ""
        return operator_pb2.ListAuditResponse(
            entries=[views.audit_message(row) for row in rows[:size]], next_page_token=token
        )

    async def nodes(self, request: operator_pb2.ListNodesRequest) -> operator_pb2.ListNodesResponse:
        """A page of nodes, by path; the token is the last path."""
        size, below = requests.page_size(request.page_size), request.below
        columns = (schema.stores.c.path, schema.devices.c.path, schema.certificates.c.path, schema.enrolments.c.node)
        named = union(*(select(column.label("path")) for column in columns)).subquery()
        query = select(named.c.path).where(named.c.path > request.page_token).order_by(named.c.path).limit(size + 1)
        if below:
            query = query.where(or_(named.c.path == below, named.c.path.startswith(f"{below}/", autoescape=True)))
        async with self._database.reading() as tx:
            paths = [row["path"] for row in await tx.all(query)]
            shown = [views.node_message(path, await _node_rows(tx, path), self._fleet) for path in paths[:size]]
        return operator_pb2.ListNodesResponse(nodes=shown, next_page_token=paths[size - 1] if len(paths) > size else "")

    def _stores(self, name: str) -> list[str]:
        """Paths of the stores of that name or path; raises NotFoundError."""
        found = [path for path in self._fleet.stores if name in {path, path.rsplit("/", 1)[1]}]
        if not found:
            msg = f"no store {name!r} is registered"
            raise NotFoundError(msg, store=name)
        return found

    def _hub_message(self, path: str) -> report_pb2.HubStatus:
        status = self._fleet.hubs.get(path)
        message: report_pb2.HubStatus = to_proto(status) if status else report_pb2.HubStatus(hub=path)
        message.connected = self._fleet.is_connected(path)
        return message


async def _require(tx: Transaction, wave_id: str) -> WaveView:
    view = await store.view(tx, wave_id)
    if view is None:
        msg = f"no wave {wave_id!r} is known here"
        raise NotFoundError(msg, wave=wave_id)
    return view


async def _node_rows(tx: Transaction, path: str) -> views.NodeRows:
    """What is kept of a node: its certificate, its enrolment, the device it is."""
    certificates, enrolments, devices = schema.certificates, schema.enrolments, schema.devices
    return views.NodeRows(
        await tx.first(select(certificates).where(certificates.c.path == path)),
        await tx.first(select(enrolments).where(enrolments.c.node == path)),
        await tx.first(select(devices).where(devices.c.path == path)),
    )


async def _open_outcomes(tx: Transaction, paths: Sequence[str]) -> defaultdict[str, list[RowMapping]]:
    """Outcomes in waves that are not closed, by device path."""
    outcomes, waves = schema.outcomes, schema.waves
    query = (
        select(outcomes)
        .join(waves, waves.c.wave_id == outcomes.c.wave_id)
        .where(outcomes.c.device.in_(paths), waves.c.closed_at.is_(None))
        .order_by(waves.c.number)
    )
    found: defaultdict[str, list[RowMapping]] = defaultdict(list)
    for row in await tx.all(query):
        found[row["device"]].append(row)
    return found
