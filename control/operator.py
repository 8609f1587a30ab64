"""The operator's API at control: who calls, parse, call, map errors.

Rules:
- Callers show an operator's certificate; an intent must be signed by the very operator who calls. The audit names them.
- Every mutation is idempotent: asked again with the same input it answers ``duplicate`` and does nothing; asked with
  other input under the same name it is refused.
- What only a store's hub knows is refused with ASK_HUB.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from control import intent_rows, inventory, requests, store, views
from control.forecast import forecast
from control.intent_rows import Disposition
from control.lookups import Lookups, for_operators
from control.planning import PlanRequest, draft, find_planned
from control.requests import AskHubError, BadRequestError
from control.rollout import store_of
from control.views import forecast_message, revocations_page
from wavemesh.codec.statements import from_proto, to_proto
from wavemesh.errors import ForbiddenError, GateError, LinkDownError
from wavemesh.identity.nodes import Role
from wavemesh.identity.revocations import describe
from wavemesh.policy.document import policy_to_json
from wavemesh.policy.reader import parse_policy
from wavemesh.runtime.status import answers
from wavemesh.trust.envelope import verify_node
from wavemesh.trust.repository import Update
from wavemesh.trust.statements import Envelope, IntentCancellation, IntentKind, OperatorIntent
from wavemesh.v1 import operator_pb2
from wavemesh.v1.operator_pb2_grpc import add_OperatorServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import grpc

    from control.changes import Changes
    from control.config import Config
    from control.database import Database
    from control.enrolments import Enrolments
    from control.fleet import Fleet
    from control.intent_rows import IntentRow
    from control.intents import Intents
    from control.listings import Listings
    from control.queries import Queries
    from control.reconciling import Reconciling
    from control.releases import Releases
    from control.revocations import Revocations
    from control.waves import Waves
    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.runtime.peers import Peers

    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME: str = operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].full_name
MAX_AUDIT_DETAIL = 2000
MAX_HIT_SHOWN = 1000
_Statement = TypeVar("_Statement", OperatorIntent, IntentCancellation)


class OperatorApi(Lookups):
    """OperatorService of operator.proto; see there for what each call means."""

    def __init__(
        self,
        *,
        fleet_name: str,
        database: Database,
        waves: Waves,
        intents: Intents,
        releases: Releases,
        revocations: Revocations,
        fleet: Fleet,
        enrolments: Enrolments,
        queries: Queries,
        listings: Listings,
        reconciling: Reconciling,
        changes: Changes,
        authorities: Authorities,
        peers: Peers,
        clock: Clock,
        config: Config,
    ) -> None:
        """Take what the calls need."""
        super().__init__(queries, listings, reconciling, peers)
        self._fleet_name = fleet_name
        self._database = database
        self._waves = waves
        self._intents = intents
        self._releases = releases
        self._revocations = revocations
        self._fleet = fleet
        self._enrolments = enrolments
        self._changes = changes
        self._authorities = authorities
        self._clock = clock
        self._config = config

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve on that server."""
        add_OperatorServiceServicer_to_server(self, server)

    @for_operators
    async def SubmitIntent(  # noqa: N802  # gRPC names
        self, request: operator_pb2.SubmitIntentRequest, caller: NodeId
    ) -> operator_pb2.SubmitIntentResponse:
        """Apply or queue an intent; waits a moment for those who are connected to get it."""
        envelope = from_proto(Envelope, request.intent)
        intent = self._signed(OperatorIntent, envelope, caller)
        async with self._database.transaction() as tx:
            row, duplicate = await self._intents.submit(tx, envelope, intent, caller)
        await self._intents.progress()
        self._changes.notify()
        row = await self._delivered(row)
        return operator_pb2.SubmitIntentResponse(record=self._queries.intent_message(row), duplicate=duplicate)

    def _signed(self, kind: type[_Statement], envelope: Envelope, caller: NodeId) -> _Statement:
        """What the caller, and nobody else, has signed; raises GateError, ForbiddenError."""
        now = self._clock.now()
        signer, statement = verify_node(envelope, kind, self._authorities, now, Role.OPERATOR)
        if signer != caller:
            msg = f"it is signed by {signer.uri}, but {caller.uri} hands it in; sign it yourself"
            raise ForbiddenError(msg, signer=signer.uri, caller=caller.uri)
        return statement

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
        manifest = self._releases.all().get(view.row.release)  # revoked since it was planned: nothing will move
        artifacts = [one.digest for one in manifest.artifacts] if manifest is not None else ()
        moved = forecast(view.targets, artifacts, self._fleet.hubs, policy.delivery) if artifacts else ()
        return operator_pb2.PlanWaveResponse(
            wave=self._queries.wave_message(view), duplicate=duplicate, forecast=map(forecast_message, moved)
        )

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
    async def PlanCache(  # noqa: N802  # gRPC names
        self, request: operator_pb2.PlanCacheRequest, caller: NodeId
    ) -> operator_pb2.PlanCacheResponse:
        """Caches are at hubs."""
        del request, caller
        msg = "control has no cache; ask a hub"
        raise AskHubError(msg)

    @for_operators
    async def PublishRelease(  # noqa: N802  # gRPC names
        self, request: operator_pb2.PublishReleaseRequest, caller: NodeId
    ) -> operator_pb2.PublishReleaseResponse:
        """Publish signed TUF files; the signatures decide."""
        update = Update(tuple(request.roots), request.targets, dict(request.delegated))
        if update == Update():
            raise BadRequestError("targets", "missing: targets.json as signed by the release keys, or another file")
        try:
            async with self._database.transaction() as tx:
                published = await self._releases.publish(tx, update)
                versions = self._releases.trusted.versions
                if published:
                    names = ", ".join(sorted(self._releases.all()))
                    files = ", ".join(f"{role}.json {version}" for role, version in _brought(update, versions))
                    await self._waves.audit(tx, caller.uri, "release.publish", files, names[:MAX_AUDIT_DETAIL])
                    await self._waves.halt_revoked(tx)
        except GateError as refusal:
            async with self._database.transaction() as tx:
                detail = f"gate {refusal.gate}; {refusal}"[:MAX_AUDIT_DETAIL]
                await self._waves.audit(tx, caller.uri, "release.publish-refused", "targets.json", detail)
            raise
        self._changes.notify()
        return operator_pb2.PublishReleaseResponse(
            targets_version=versions["targets"], releases=sorted(self._releases.all()), duplicate=not published
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
        """Register stores and devices, or say what that would change."""
        if request.dry_run:
            async with self._database.rehearsal() as tx:
                return await inventory.apply(tx, request, self._fleet, self._fleet_name)
        async with self._database.transaction() as tx:
            answer = await inventory.apply(tx, request, self._fleet, self._fleet_name)
            detail = f"{len(request.stores)} stores, {len(request.devices)} devices; {len(answer.changes)} changes"
            await self._waves.audit(tx, caller.uri, "inventory.apply", self._fleet_name, detail)
        return answer

    @for_operators
    async def ListAudit(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListAuditRequest, caller: NodeId
    ) -> operator_pb2.ListAuditResponse:
        """A page of the audit."""
        del caller
        return await self._queries.audit(request)

    @for_operators
    async def RevokeNode(  # noqa: N802  # gRPC names
        self, request: operator_pb2.RevokeNodeRequest, caller: NodeId
    ) -> operator_pb2.RevokeNodeResponse:
        """Take certificates back, or say whom it would hit."""
        entry = self._revocations.draft(request.path, requests.reach(request), request.reason, requests.before(request))
        changed = False
        if not request.dry_run:
            async with self._database.transaction() as tx:
                changed = await self._revocations.add(tx, entry)
                if changed:
                    await self._waves.audit(tx, caller.uri, "node.revoke", entry.path, describe(entry))
                    await self._waves.nodes_revoked(tx)
            self._changes.notify()
        hit = self._fleet.hit_by(entry)
        sessions = [path for path in hit if self._fleet.is_connected(path)]
        return operator_pb2.RevokeNodeResponse(
            revocation=to_proto(entry),
            epoch=self._revocations.epoch,
            nodes=hit[:MAX_HIT_SHOWN],
            nodes_total=len(hit),
            sessions=sessions[:MAX_HIT_SHOWN],
            sessions_total=len(sessions),
            duplicate=not (changed or request.dry_run),
        )

    @for_operators
    async def ListRevocations(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListRevocationsRequest, caller: NodeId
    ) -> operator_pb2.ListRevocationsResponse:
        """A page of what was taken back."""
        del caller
        size, start = requests.page_size(request.page_size), requests.page_number(request.page_token) or 0
        return revocations_page(self._revocations.listed, start, size)

    @for_operators
    async def CancelIntent(  # noqa: N802  # gRPC names
        self, request: operator_pb2.CancelIntentRequest, caller: NodeId
    ) -> operator_pb2.CancelIntentResponse:
        """Take an intent back, or say what would come of it."""
        word = self._signed(IntentCancellation, from_proto(Envelope, request.cancellation), caller)
        block = self._database.rehearsal() if request.dry_run else self._database.transaction()
        async with block as tx:
            row, duplicate = await self._intents.cancel(tx, word.intent_id, word.reason, caller)
        self._changes.notify()
        return operator_pb2.CancelIntentResponse(record=self._queries.intent_message(row), duplicate=duplicate)

    @for_operators
    async def PreviewIntent(  # noqa: N802  # gRPC names
        self, request: operator_pb2.PreviewIntentRequest, caller: NodeId
    ) -> operator_pb2.PreviewIntentResponse:
        """What SubmitIntent would do: it is done, looked at, and undone."""
        envelope = from_proto(Envelope, request.intent)
        intent = self._signed(OperatorIntent, envelope, caller)
        async with self._database.rehearsal() as tx:
            before = await store.view(tx, intent.wave_id)
            row, duplicate = await self._intents.submit(tx, envelope, intent, caller)
            after = await store.view(tx, intent.wave_id)
        record = self._queries.intent_message(row)
        effect = views.effect_message(before, after) if before and after else operator_pb2.IntentEffect()
        if intent.kind.is_for_device:
            path = self._intents.find_device(intent.device)
            effect = operator_pb2.IntentEffect(devices=[path], device_count=1, stores=[store_of(path)])
        elif intent.kind is IntentKind.PREFETCH:
            wanted = self._releases.find(parse_policy(intent.policy_yaml, "policy.yaml").artifacts)
            digests = [to_proto(artifact.digest) for artifact in wanted.artifacts]
            effect = operator_pb2.IntentEffect(stores=row.waiting_for, artifacts=digests)
        return operator_pb2.PreviewIntentResponse(record=record, duplicate=duplicate, effect=effect)

    @for_operators
    async def CreateEnrolment(  # noqa: N802  # gRPC names
        self, request: operator_pb2.CreateEnrolmentRequest, caller: NodeId
    ) -> operator_pb2.CreateEnrolmentResponse:
        """Let a node join once."""
        async with self._database.transaction() as tx:
            response = await self._enrolments.create(tx, request, caller)
        self._changes.notify()
        return response

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
            return await intent_rows.get(tx, row.intent_id) or row


def _brought(update: Update, versions: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Which files an update brings, and their versions now."""
    present = {"root": update.roots, "targets": update.targets, **update.delegated}
    return ((role, versions[role]) for role in present if present[role])
