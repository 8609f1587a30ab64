"""The operator's API at control: who calls, parse, call, map errors.

Rules:
- Callers show an operator's certificate; an intent must be signed by the very operator who calls. The audit names them.
- Every mutation is idempotent: asked again with the same input it answers ``duplicate`` and does nothing; asked with
  other input under the same name it is refused.
- What only a store's hub knows is refused with ASK_HUB.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import func, select

from control import requests, schema, store
from control.enrolments import refuse_rebound
from control.intents import Disposition
from control.planning import PlanRequest, draft, find_planned
from control.requests import AskHubError, BadRequestError
from control.views import intent_message
from wavemesh.codec.statements import from_proto
from wavemesh.errors import ConflictError, ForbiddenError, GateError, LinkDownError
from wavemesh.identity.nodes import Role
from wavemesh.policy.document import policy_to_json
from wavemesh.policy.reader import parse_policy
from wavemesh.runtime.status import answers
from wavemesh.trust.envelope import verify_node
from wavemesh.trust.statements import Envelope, OperatorIntent
from wavemesh.v1 import operator_pb2
from wavemesh.v1.operator_pb2_grpc import OperatorServiceServicer, add_OperatorServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import grpc

    from control.changes import Changes
    from control.config import Config
    from control.database import Database, Transaction
    from control.enrolments import Enrolments
    from control.fleet import Fleet
    from control.intents import IntentRow, Intents
    from control.queries import Queries
    from control.releases import Releases
    from control.waves import Waves
    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.runtime.peers import Peers

    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME: str = operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].full_name
MAX_INVENTORY = 20_000
MAX_AUDIT_DETAIL = 2000
_Self = TypeVar("_Self", bound="OperatorApi")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def for_operators(
    handler: Callable[[_Self, _Request, NodeId], Awaitable[_Response]],
) -> Callable[[_Self, _Request, Context], Awaitable[_Response]]:
    """Let only operators in, and map errors; the handler is given the caller instead of the context."""

    @answers
    @functools.wraps(handler)
    async def handle(self: _Self, request: _Request, context: Context) -> _Response:
        return await handler(self, request, self.caller(context))

    return handle


class OperatorApi(OperatorServiceServicer):
    """OperatorService of operator.proto; see there for what each call means."""

    def __init__(
        self,
        *,
        fleet_name: str,
        database: Database,
        waves: Waves,
        intents: Intents,
        releases: Releases,
        fleet: Fleet,
        enrolments: Enrolments,
        queries: Queries,
        changes: Changes,
        authorities: Authorities,
        peers: Peers,
        clock: Clock,
        config: Config,
    ) -> None:
        """Take what the calls need."""
        self._fleet_name = fleet_name
        self._database = database
        self._waves = waves
        self._intents = intents
        self._releases = releases
        self._fleet = fleet
        self._enrolments = enrolments
        self._queries = queries
        self._changes = changes
        self._authorities = authorities
        self._peers = peers
        self._clock = clock
        self._config = config

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve on that server."""
        add_OperatorServiceServicer_to_server(self, server)

    def caller(self, context: Context) -> NodeId:
        """Who calls; raises ForbiddenError for all but operators."""
        peer = self._peers.of(context)
        if peer.role is not Role.OPERATOR:
            msg = f"{peer.uri} is a {peer.role.value}; this API is for operators"
            raise ForbiddenError(msg, peer=peer.uri)
        return peer

    @for_operators
    async def SubmitIntent(  # noqa: N802  # gRPC names
        self, request: operator_pb2.SubmitIntentRequest, caller: NodeId
    ) -> operator_pb2.SubmitIntentResponse:
        """Apply or queue an intent; waits a moment for those who are connected to get it."""
        envelope = from_proto(Envelope, request.intent)
        signer, intent = verify_node(envelope, OperatorIntent, self._authorities, self._clock.now(), Role.OPERATOR)
        if signer != caller:
            msg = f"the intent is signed by {signer.uri}, but {caller.uri} hands it in; sign it yourself"
            raise ForbiddenError(msg, signer=signer.uri, caller=caller.uri)
        async with self._database.transaction() as tx:
            row, duplicate = await self._intents.submit(tx, envelope, intent, caller)
        await self._intents.progress()
        self._changes.notify()
        row = await self._delivered(row)
        return operator_pb2.SubmitIntentResponse(record=intent_message(row), duplicate=duplicate)

    @for_operators
    async def ListIntents(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListIntentsRequest, caller: NodeId
    ) -> operator_pb2.ListIntentsResponse:
        """A page of intents."""
        del caller
        return await self._queries.intents(request)

    @for_operators
    async def PlanWave(  # noqa: N802  # gRPC names
        self, request: operator_pb2.PlanWaveRequest, caller: NodeId
    ) -> operator_pb2.PlanWaveResponse:
        """Plan a wave, or say what it would be."""
        policy = parse_policy(request.policy_yaml, request.policy_name or "policy.yaml")
        if not request.cohort:
            raise BadRequestError("cohort", f"missing; the policy's segment is {policy.targets.segment!r}")
        plan = PlanRequest(requests.wave_id(request.wave_id), request.cohort, policy, policy_to_json(policy))
        async with self._database.transaction() as tx:
            view = await find_planned(tx, plan)
            duplicate = view is not None
            if view is None:
                now = self._clock.now()
                view = await draft(tx, plan, releases=self._releases, config=self._config, now=now)
                if not request.dry_run:
                    await self._waves.add(tx, view, plan.payload, caller.uri)
        self._changes.notify()
        return operator_pb2.PlanWaveResponse(wave=self._queries.wave_message(view), duplicate=duplicate)

    @for_operators
    async def ListWaves(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListWavesRequest, caller: NodeId
    ) -> operator_pb2.ListWavesResponse:
        """A page of waves."""
        del caller
        return await self._queries.waves(request)

    @for_operators
    async def GetWave(  # noqa: N802  # gRPC names
        self, request: operator_pb2.GetWaveRequest, caller: NodeId
    ) -> operator_pb2.GetWaveResponse:
        """One wave."""
        del caller
        view = await self._queries.wave(request.wave_id)
        return operator_pb2.GetWaveResponse(wave=self._queries.wave_message(view))

    @answers
    async def WatchWave(  # type: ignore[override]  # noqa: N802  # the stubs know generators only; this one writes
        self, request: operator_pb2.WatchWaveRequest, context: Context
    ) -> None:
        """The wave now and after every change; ends once it is closed, with UNAVAILABLE when control stops."""
        self.caller(context)
        last: operator_pb2.Wave | None = None
        with self._changes.listening() as changed:
            while not self._changes.is_over:
                changed.clear()
                view = await self._queries.wave(request.wave_id)
                message = self._queries.wave_message(view)
                if message != last:
                    await context.write(operator_pb2.WatchWaveResponse(wave=message))
                    last = message
                if view.row.closed_at is not None:
                    return
                await changed.wait()
        msg = "control is stopping; watch again"
        raise LinkDownError(msg)

    @for_operators
    async def GetLedger(  # noqa: N802  # gRPC names
        self, request: operator_pb2.GetLedgerRequest, caller: NodeId
    ) -> operator_pb2.GetLedgerResponse:
        """A wave's ledger."""
        del caller
        return await self._queries.ledger(request)

    @for_operators
    async def ListDevices(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListDevicesRequest, caller: NodeId
    ) -> operator_pb2.ListDevicesResponse:
        """A page of devices."""
        del caller
        return await self._queries.devices(request)

    @for_operators
    async def GetDevice(  # noqa: N802  # gRPC names
        self, request: operator_pb2.GetDeviceRequest, caller: NodeId
    ) -> operator_pb2.GetDeviceResponse:
        """One device."""
        del caller
        return operator_pb2.GetDeviceResponse(device=await self._queries.device(request.device))

    @for_operators
    async def GetDeviceLogs(  # noqa: N802  # gRPC names
        self, request: operator_pb2.GetDeviceLogsRequest, caller: NodeId
    ) -> operator_pb2.GetDeviceLogsResponse:
        """Logs are at the store's hub."""
        del caller
        msg = f"control keeps no logs; ask the hub of the store of {request.device!r}"
        raise AskHubError(msg, device=request.device)

    @for_operators
    async def GetFleetStatus(  # noqa: N802  # gRPC names
        self, request: operator_pb2.GetFleetStatusRequest, caller: NodeId
    ) -> operator_pb2.GetFleetStatusResponse:
        """The whole fleet."""
        del request, caller
        return await self._queries.fleet_status()

    @for_operators
    async def ListCache(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListCacheRequest, caller: NodeId
    ) -> operator_pb2.ListCacheResponse:
        """Caches are at hubs."""
        del request, caller
        msg = "control has no cache; ask a hub"
        raise AskHubError(msg)

    @for_operators
    async def PublishRelease(  # noqa: N802  # gRPC names
        self, request: operator_pb2.PublishReleaseRequest, caller: NodeId
    ) -> operator_pb2.PublishReleaseResponse:
        """Publish a signed targets.json; the signatures decide."""
        if not request.targets:
            raise BadRequestError("targets", "missing: targets.json as signed by the release keys")
        try:
            async with self._database.transaction() as tx:
                published = await self._releases.publish(tx, request.targets, request.roots)
                version = self._releases.trusted.versions["targets"]
                if published:
                    names = ", ".join(sorted(self._releases.all()))
                    await self._waves.audit(tx, caller.uri, "release.publish", f"targets.json {version}", names)
                    await self._waves.halt_revoked(tx)
        except GateError as refusal:
            async with self._database.transaction() as tx:
                detail = f"gate {refusal.gate}; {refusal}"[:MAX_AUDIT_DETAIL]
                await self._waves.audit(tx, caller.uri, "release.publish-refused", "targets.json", detail)
            raise
        self._changes.notify()
        return operator_pb2.PublishReleaseResponse(
            targets_version=version, releases=sorted(self._releases.all()), duplicate=not published
        )

    @for_operators
    async def ListReleases(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListReleasesRequest, caller: NodeId
    ) -> operator_pb2.ListReleasesResponse:
        """Releases."""
        del request, caller
        return self._queries.releases()

    @for_operators
    async def SetHold(  # noqa: N802  # gRPC names
        self, request: operator_pb2.SetHoldRequest, caller: NodeId
    ) -> operator_pb2.SetHoldResponse:
        """Hold a release, or lift its hold."""
        async with self._database.transaction() as tx:
            if request.held:
                action, why = "release.hold", requests.reason(request.reason)
                changed = await self._releases.set_hold(tx, request.release, why)
            else:
                action, why = "release.lift", request.reason
                changed = await self._releases.lift_hold(tx, request.release)
            if changed:
                await self._waves.audit(tx, caller.uri, action, request.release, why)
                await self._waves.holds_changed(tx, request.release)
        self._changes.notify()
        holds = self._releases.holds
        return operator_pb2.SetHoldResponse(
            epoch=holds.epoch, held=[hold.release for hold in holds.holds], duplicate=not changed
        )

    @for_operators
    async def ApplyInventory(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ApplyInventoryRequest, caller: NodeId
    ) -> operator_pb2.ApplyInventoryResponse:
        """Register stores and devices."""
        if len(request.stores) + len(request.devices) > MAX_INVENTORY:
            raise BadRequestError("devices", f"more than {MAX_INVENTORY} stores and devices; send them in parts")
        stores = [requests.store_row(one, index, self._fleet_name) for index, one in enumerate(request.stores)]
        known = self._fleet.stores | {str(row["path"]) for row in stores}
        devices = [
            requests.device_row(one, index, self._fleet_name, known) for index, one in enumerate(request.devices)
        ]
        async with self._database.transaction() as tx:
            await _refuse_changed_targets(tx, devices)
            await refuse_rebound(tx, devices)
            await tx.put(schema.stores, *stores)
            await tx.put(schema.devices, *devices)
            detail = f"{len(stores)} stores, {len(devices)} devices"
            await self._waves.audit(tx, caller.uri, "inventory.apply", self._fleet_name, detail)
            paths = self._fleet.device_paths | {str(row["path"]) for row in devices}
            tx.after_commit(lambda: self._fleet.register(known, paths))
            count = select(func.count())
            totals = [await tx.scalar(count.select_from(one)) for one in (schema.stores, schema.devices)]
        return operator_pb2.ApplyInventoryResponse(stores=totals[0], devices=totals[1])

    @for_operators
    async def ListAudit(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListAuditRequest, caller: NodeId
    ) -> operator_pb2.ListAuditResponse:
        """A page of the audit."""
        del caller
        return await self._queries.audit(request)

    @for_operators
    async def CreateEnrolment(  # noqa: N802  # gRPC names
        self, request: operator_pb2.CreateEnrolmentRequest, caller: NodeId
    ) -> operator_pb2.CreateEnrolmentResponse:
        """Let a node join once."""
        async with self._database.transaction() as tx:
            response = await self._enrolments.create(tx, request, caller)
        self._changes.notify()
        return response

    @for_operators
    async def ListNodes(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListNodesRequest, caller: NodeId
    ) -> operator_pb2.ListNodesResponse:
        """A page of nodes."""
        del caller
        return await self._queries.nodes(request)

    async def _delivered(self, row: IntentRow) -> IntentRow:
        """The intent's fate after those who are connected had a moment to take it."""
        with self._changes.listening() as changed:
            try:
                async with asyncio.timeout(self._config.delivery_wait_s):
                    while self._intents.waits_for_connected(row) and not self._changes.is_over:
                        changed.clear()
                        await changed.wait()
            except TimeoutError:
                pass
        if row.disposition is not Disposition.QUEUED:
            return row
        async with self._database.reading() as tx:
            return await self._intents.get(tx, row.intent_id) or row


async def _refuse_changed_targets(tx: Transaction, devices: Sequence[dict[str, object]]) -> None:
    """A device in an open wave keeps its class and revision: the wave's cohort was homogeneous when it was planned."""
    busy = await store.open_waves_by_device(tx)
    for row in devices:
        path = str(row["path"])
        if path not in busy:
            continue
        table = schema.devices
        held = await tx.first(select(table.c.device_class, table.c.hardware_revision).where(table.c.path == path))
        if held and (held["device_class"], held["hardware_revision"]) != (
            row["device_class"],
            row["hardware_revision"],
        ):
            msg = f"device {path} is in open wave {busy[path]!r}; its class and revision stay until that ends"
            raise ConflictError(msg, device=path, wave=busy[path])
