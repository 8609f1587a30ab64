"""The operator's API on the LAN, for this store's own view; it works the same with the WAN dark.

Only operators' certificates are served. What a store cannot know or do is refused with reason ASK_CONTROL.
"""

from __future__ import annotations

import asyncio
from datetime import UTC
from typing import TYPE_CHECKING, Any, TypeVar, cast

from storehub import views
from storehub.intents import AskControlError
from storehub.listings import Listings
from storehub.schema import from_stamp, to_stamp
from wavemesh.codec.statements import from_proto, to_proto
from wavemesh.errors import ForbiddenError, NotFoundError, PeerError
from wavemesh.identity.nodes import NodeId, Role
from wavemesh.listing import is_named, is_wanted_device, is_wanted_intent
from wavemesh.runtime.status import answers
from wavemesh.telemetry.shown import trace_response
from wavemesh.telemetry.spans import trace_id_of
from wavemesh.trust.statements import Envelope
from wavemesh.v1 import operator_pb2, operator_pb2_grpc, report_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc

    from storehub.cacheplan import CacheViews
    from storehub.hub import Hub
    from storehub.intents import Intents
    from storehub.prefetching import Prefetching
    from storehub.records import IntentRecord, WaveRecord
    from storehub.views import Views
    from wavemesh.runtime.peers import Peers

    Context = grpc.aio.ServicerContext[Any, Any]

T = TypeVar("T")

SERVICE_NAME = operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].full_name
DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_CACHE_PAGE = 10_000
DEFAULT_LINES = 200
MAX_LINES = 5_000
WATCH_INTERVAL_S = 5.0
WATCH_PAUSE_S = 0.1


class OperatorApi:
    """The servicer."""

    def __init__(
        self, hub: Hub, intents: Intents, shown: Views, *, prefetching: Prefetching, cache: CacheViews, peers: Peers
    ) -> None:
        """Serve that hub's view."""
        self._hub = hub
        self._intents = intents
        self._views = shown
        self._prefetching = prefetching
        self._cache = cache
        self._listings = Listings(hub, shown)
        self._peers = peers

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service."""
        # The generated base class knows streaming handlers as generators only; ours are coroutines that write.
        operator_pb2_grpc.add_OperatorServiceServicer_to_server(cast("Any", self), server)

    def _caller(self, context: Context) -> NodeId:
        caller = self._peers.of(context)
        if caller.role is not Role.OPERATOR:
            msg = f"{caller.uri} is no operator"
            raise ForbiddenError(msg, peer=caller.uri)
        return caller

    # -- intents ----------------------------------------------------------------------------------------------------

    @answers
    async def SubmitIntent(  # noqa: N802  # the names of handlers are those of the contract
        self, request: operator_pb2.SubmitIntentRequest, context: Context
    ) -> operator_pb2.SubmitIntentResponse:
        """Do now what lowers risk, queue the rest."""
        caller = self._caller(context)
        record, duplicate = await self._intents.submit(from_proto(Envelope, request.intent), caller)
        return operator_pb2.SubmitIntentResponse(record=self._intent(record), duplicate=duplicate)

    def _intent(self, record: IntentRecord) -> operator_pb2.IntentRecord:
        message = views.intent(record, self._hub.store.intents.values())
        self._prefetching.describe(record, message)
        return message

    @answers
    async def PreviewIntent(  # noqa: N802
        self, request: operator_pb2.PreviewIntentRequest, context: Context
    ) -> operator_pb2.PreviewIntentResponse:
        """What SubmitIntent would do."""
        caller = self._caller(context)
        record, duplicate = await self._intents.preview(from_proto(Envelope, request.intent), caller)
        effect = self._listings.effect(record, duplicate=duplicate)
        return operator_pb2.PreviewIntentResponse(record=self._intent(record), duplicate=duplicate, effect=effect)

    @answers
    async def CancelIntent(  # noqa: N802
        self, request: operator_pb2.CancelIntentRequest, context: Context
    ) -> operator_pb2.CancelIntentResponse:
        """Take back what nobody has acted on, or say what would come of it."""
        caller = self._caller(context)
        cancel = self._intents.preview_cancel if request.dry_run else self._intents.cancel
        record, duplicate = await cancel(from_proto(Envelope, request.cancellation), caller)
        return operator_pb2.CancelIntentResponse(record=self._intent(record), duplicate=duplicate)

    @answers
    async def GetIntent(  # noqa: N802
        self, request: operator_pb2.GetIntentRequest, context: Context
    ) -> operator_pb2.GetIntentResponse:
        """One intent."""
        self._caller(context)
        record = self._hub.store.intents.get(request.intent_id)
        if record is None:
            msg = f"no intent {request.intent_id[:80]!r} is known at {self._hub.path}; `edgectl intent list` shows them"
            raise NotFoundError(msg, intent=request.intent_id[:80])
        return operator_pb2.GetIntentResponse(record=self._intent(record))

    @answers
    async def ListIntents(  # noqa: N802
        self, request: operator_pb2.ListIntentsRequest, context: Context
    ) -> operator_pb2.ListIntentsResponse:
        """Newest first."""
        self._caller(context)
        records = sorted(self._hub.store.intents.values(), key=lambda one: one.received_at, reverse=True)
        shown = [one for one in map(self._intent, records) if is_wanted_intent(one, request)]
        page, token = _page(shown, request.page_size, request.page_token)
        return operator_pb2.ListIntentsResponse(intents=page, next_page_token=token)

    # -- waves ------------------------------------------------------------------------------------------------------

    def _wave(self, wave_id: str) -> WaveRecord:
        record = self._hub.store.waves.get(wave_id)
        if record is None:
            msg = f"wave {wave_id!r} is not known at {self._hub.path}; control may know it"
            raise NotFoundError(msg, wave_id=wave_id)
        return record

    @answers
    async def ListWaves(  # noqa: N802
        self, request: operator_pb2.ListWavesRequest, context: Context
    ) -> operator_pb2.ListWavesResponse:
        """Newest first."""
        self._caller(context)
        self._own_store(request.store)
        records = sorted(self._hub.store.waves.values(), key=lambda one: one.first_seen_at, reverse=True)
        shown = [
            one
            for one in map(self._views.wave, records)
            if (not request.states or one.state in request.states)
            and request.release in {"", one.release}
            and request.cohort in {"", one.cohort}
        ]
        page, token = _page(shown, request.page_size, request.page_token)
        return operator_pb2.ListWavesResponse(waves=page, next_page_token=token)

    @answers
    async def GetWave(  # noqa: N802
        self, request: operator_pb2.GetWaveRequest, context: Context
    ) -> operator_pb2.GetWaveResponse:
        """One wave."""
        self._caller(context)
        return operator_pb2.GetWaveResponse(wave=self._views.wave(self._wave(request.wave_id)))

    @answers
    async def WatchWave(  # noqa: N802
        self, request: operator_pb2.WatchWaveRequest, context: Context
    ) -> None:
        """The wave now and whenever it changed, until it closes."""
        self._caller(context)
        last: operator_pb2.Wave | None = None
        while True:
            seen = self._hub.bell.rings
            record = self._wave(request.wave_id)
            wave = self._views.wave(record)
            if wave != last:
                last = wave
                await context.write(operator_pb2.WatchWaveResponse(wave=wave))
            if record.closed_at is not None:
                return
            await asyncio.sleep(WATCH_PAUSE_S)
            await self._hub.bell.wait(seen, WATCH_INTERVAL_S)

    @answers
    async def GetLedger(  # noqa: N802
        self, request: operator_pb2.GetLedgerRequest, context: Context
    ) -> operator_pb2.GetLedgerResponse:
        """This store's ledger."""
        self._caller(context)
        self._own_store(request.store)
        return self._views.ledger(self._wave(request.wave_id))

    def _own_store(self, name: str) -> None:
        own = self._hub.credentials.node_id.name
        if name not in {"", own, self._hub.path}:
            msg = f"this is {own}; ask control about {name}"
            raise AskControlError(msg)

    # -- devices ----------------------------------------------------------------------------------------------------

    @answers
    async def ListDevices(  # noqa: N802
        self, request: operator_pb2.ListDevicesRequest, context: Context
    ) -> operator_pb2.ListDevicesResponse:
        """By path."""
        self._caller(context)
        self._own_store(request.store)
        if request.labels:
            msg = "hubs know no labels; ask control for the devices that have them"
            raise AskControlError(msg)
        shown = [one for one in map(self._views.device, self._views.device_paths()) if is_wanted_device(one, request)]
        page, token = _page(shown, request.page_size, request.page_token)
        return operator_pb2.ListDevicesResponse(devices=page, next_page_token=token)

    def _device(self, given: str) -> str:
        path = given if "/" in given else self._hub.device_path(given)
        if path not in self._views.device_paths():
            msg = f"device {given!r} is not known at {self._hub.path}"
            raise NotFoundError(msg, device=given)
        return path

    @answers
    async def GetDevice(  # noqa: N802
        self, request: operator_pb2.GetDeviceRequest, context: Context
    ) -> operator_pb2.GetDeviceResponse:
        """One device."""
        self._caller(context)
        return operator_pb2.GetDeviceResponse(device=self._views.device(self._device(request.device)))

    @answers
    async def GetDeviceLogs(  # noqa: N802
        self, request: operator_pb2.GetDeviceLogsRequest, context: Context
    ) -> operator_pb2.GetDeviceLogsResponse:
        """The newest lines, oldest first."""
        self._caller(context)
        path = self._device(request.device)
        limit = min(request.limit or DEFAULT_LINES, MAX_LINES)
        since = to_stamp(request.since.ToDatetime(UTC)) if request.HasField("since") else 0
        rows = await self._hub.store.database.fetch_all(
            "SELECT at, level, wave_id, text FROM device_logs WHERE device = ? AND at > ? AND (? = '' OR wave_id = ?) "
            "ORDER BY at DESC, number DESC LIMIT ?",
            (path, since, request.wave_id, request.wave_id, limit),
        )
        lines = [
            report_pb2.LogLine(
                at=views.stamp(from_stamp(row["at"])),
                level=row["level"],
                wave_id=row["wave_id"],
                text=row["text"],
                trace_id=trace_id_of(self._hub.credentials.node_id.fleet, row["wave_id"], path),
            )
            for row in reversed(rows)
        ]
        return operator_pb2.GetDeviceLogsResponse(lines=lines)

    @answers
    async def GetTrace(  # noqa: N802
        self, request: operator_pb2.GetTraceRequest, context: Context
    ) -> operator_pb2.GetTraceResponse:
        """A device's trace, as far as it was told here: this hub's spans and the device's."""
        self._caller(context)
        device = request.device if "/" in request.device else self._hub.device_path(request.device)
        return await trace_response(self._hub.tracing.outbox, self._hub.path, request.wave_id, device)

    # -- the rest ---------------------------------------------------------------------------------------------------

    @answers
    async def GetFleetStatus(  # noqa: N802
        self, _: operator_pb2.GetFleetStatusRequest, context: Context
    ) -> operator_pb2.GetFleetStatusResponse:
        """This store in one page."""
        self._caller(context)
        return self._views.fleet()

    @answers
    async def ListCache(  # noqa: N802
        self, request: operator_pb2.ListCacheRequest, context: Context
    ) -> operator_pb2.ListCacheResponse:
        """What the cache holds."""
        self._caller(context)
        return self._cache.listing(min(request.limit or DEFAULT_PAGE, MAX_CACHE_PAGE))

    @answers
    async def PlanCache(  # noqa: N802
        self, request: operator_pb2.PlanCacheRequest, context: Context
    ) -> operator_pb2.PlanCacheResponse:
        """What it would take to cache more."""
        self._caller(context)
        return self._cache.plan(request)

    @answers
    async def ListReleases(  # noqa: N802
        self, _: operator_pb2.ListReleasesRequest, context: Context
    ) -> operator_pb2.ListReleasesResponse:
        """Releases by the metadata held here."""
        self._caller(context)
        return operator_pb2.ListReleasesResponse(releases=self._views.releases())

    @answers
    async def ListRevocations(  # noqa: N802
        self, request: operator_pb2.ListRevocationsRequest, context: Context
    ) -> operator_pb2.ListRevocationsResponse:
        """What was taken back, by the list held here."""
        self._caller(context)
        listed = self._hub.credentials.authorities.revocations
        if listed is None:
            return operator_pb2.ListRevocationsResponse()
        page, token = _page(listed.revocations, request.page_size, request.page_token)
        return operator_pb2.ListRevocationsResponse(
            revocations=map(to_proto, page),
            epoch=listed.epoch,
            issued_at=views.stamp(listed.issued_at),
            next_page_token=token,
        )

    @answers
    async def ListStores(  # noqa: N802
        self, request: operator_pb2.ListStoresRequest, context: Context
    ) -> operator_pb2.ListStoresResponse:
        """This store."""
        self._caller(context)
        own = self._listings.store()
        region = self._hub.path.rsplit("/", 2)[0]
        is_wanted = is_named(region, request.region) and (not request.wave_id or request.wave_id in own.wave_ids)
        page, token = _page([own] if is_wanted else [], request.page_size, request.page_token)
        return operator_pb2.ListStoresResponse(stores=page, next_page_token=token)

    @answers
    async def GetStore(  # noqa: N802
        self, request: operator_pb2.GetStoreRequest, context: Context
    ) -> operator_pb2.GetStoreResponse:
        """This store."""
        self._caller(context)
        self._own_store(request.store)
        return operator_pb2.GetStoreResponse(store=self._listings.store())

    @answers
    async def ListPolicies(  # noqa: N802
        self, request: operator_pb2.ListPoliciesRequest, context: Context
    ) -> operator_pb2.ListPoliciesResponse:
        """Policies held here."""
        self._caller(context)
        page, token = _page(self._listings.policies(), request.page_size, request.page_token)
        return operator_pb2.ListPoliciesResponse(policies=page, next_page_token=token)

    @answers
    async def GetPolicy(  # noqa: N802
        self, request: operator_pb2.GetPolicyRequest, context: Context
    ) -> operator_pb2.GetPolicyResponse:
        """One policy."""
        self._caller(context)
        return operator_pb2.GetPolicyResponse(policy=self._listings.policy(request))

    @answers
    async def ListPermits(  # noqa: N802
        self, request: operator_pb2.ListPermitsRequest, context: Context
    ) -> operator_pb2.ListPermitsResponse:
        """Permits held here."""
        self._caller(context)
        self._own_store(request.store)
        page, token = _page(self._listings.permits(request), request.page_size, request.page_token)
        return operator_pb2.ListPermitsResponse(permits=page, next_page_token=token)

    @answers
    async def ListHolds(  # noqa: N802
        self, _: operator_pb2.ListHoldsRequest, context: Context
    ) -> operator_pb2.ListHoldsResponse:
        """The hold list held here."""
        self._caller(context)
        return self._listings.holds()

    async def _ask_control(self, request: object, context: Context) -> Any:
        """What only control does."""
        self._caller(context)
        msg = f"{type(request).__name__.removesuffix('Request')} is for control: select its context"
        raise AskControlError(msg)

    PlanWave = answers(_ask_control)
    PublishRelease = answers(_ask_control)
    SetHold = answers(_ask_control)
    ApplyInventory = answers(_ask_control)
    ListAudit = answers(_ask_control)
    RevokeNode = answers(_ask_control)
    ListCohorts = answers(_ask_control)
    CreateEnrolment = answers(_ask_control)
    ListNodes = answers(_ask_control)
    ListDiscrepancies = answers(_ask_control)


def _page(items: Sequence[T], page_size: int, page_token: str) -> tuple[Sequence[T], str]:
    """A page and the token of the next; the token is the number of items before it."""
    if page_token and not (page_token.isascii() and page_token.isdigit() and len(page_token) < 10):
        msg = f"page token {page_token[:40]!r} is none of ours"
        raise PeerError(msg)
    start, size = int(page_token or "0"), min(page_size or DEFAULT_PAGE, MAX_PAGE)
    end = start + size
    return items[start:end], str(end) if end < len(items) else ""
