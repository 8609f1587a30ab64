"""A client of OperatorService: control's or a store hub's, whichever address and node it is given.

    credentials = NodeCredentials.load(directory)
    async with connect(credentials, "control.example:7443", NodeId("acme", "control/cloud-1")) as client:
        async for wave in client.waves(ListWavesRequest(states=[WAVE_STATE_RUNNING])):
            ...
        await client.submit(OperatorIntent(new_intent_id(), IntentKind.PAUSE_WAVE, now, wave_id="142", reason="smoke"))

Rules:
- Requests and answers are the messages of operator.proto, so a field added there is usable here at once.
- Every call has a deadline, retries included (``within`` gives another). Every failure is a WavemeshError: what the
  server refused with has the class, the reason and the details it had there; a deadline that passed is LinkDownError.
- What is repeated, and when, is decided in retrying.py. An intent is signed once; repeated, it is the same intent.
- Lists ask for page after page while they are read. A page token belongs to its filters; one that comes back twice, or
  more than MAX_PAGES of them, is a PeerError, never an endless loop.
- A watch yields the whole wave after every change and ends when the wave is closed. A stream that breaks, or is older
  than ``watch_stream_s``, is opened again; the wave is then sent whole, and not yielded when it is as it was. Changes
  in between are not replayed: it is the state that is watched, not its history.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc.aio

from wavemesh.client.retrying import REPEATABLE, Backoff, delay_s
from wavemesh.codec.statements import to_proto
from wavemesh.errors import BusyError, LinkDownError, PeerError
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_channel
from wavemesh.runtime.status import error_from_rpc
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.statements import IntentCancellation
from wavemesh.v1 import operator_pb2
from wavemesh.v1.operator_pb2_grpc import OperatorServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from google.protobuf.message import Message

    from wavemesh.errors import WavemeshError
    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.statements import OperatorIntent
    from wavemesh.v1 import rollout_pb2
    from wavemesh.v1.operator_pb2_grpc import OperatorServiceAsyncStub

MAX_PAGES = 100_000
_INTENT_ID_BYTES = 16

Question = TypeVar("Question", bound="Message")
Answer = TypeVar("Answer")


class _Paged(Protocol):
    @property
    def next_page_token(self) -> str: ...


Page = TypeVar("Page", bound=_Paged)
Listing = TypeVar(
    "Listing",
    operator_pb2.ListAuditRequest,
    operator_pb2.ListCohortsRequest,
    operator_pb2.ListDevicesRequest,
    operator_pb2.ListIntentsRequest,
    operator_pb2.ListRevocationsRequest,
    operator_pb2.ListPermitsRequest,
    operator_pb2.ListPoliciesRequest,
    operator_pb2.ListStoresRequest,
    operator_pb2.ListWavesRequest,
)


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How long a client waits; seconds.

    ``deadline_s`` is for a call with its retries, for each page of a list. ``watch_stream_s`` is the age at which a
    watch opens a new stream, ``watch_patience_s`` how long it goes on trying without hearing anything.
    """

    deadline_s: float = 20.0
    watch_stream_s: float = 600.0
    watch_patience_s: float = 300.0
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def channel(self) -> list[tuple[str, Any]]:
        """Channel options: the channel dials again as fast as calls are retried, and not in gRPC's own rhythm."""
        return [
            ("grpc.initial_reconnect_backoff_ms", max(100, int(self.backoff.base_s * 1000))),
            ("grpc.max_reconnect_backoff_ms", max(100, int(self.backoff.cap_s * 1000))),
        ]


def new_intent_id() -> str:
    """An idempotency key: 128 random bits in hex."""
    return secrets.token_hex(_INTENT_ID_BYTES)


@asynccontextmanager
async def connect(
    credentials: NodeCredentials, address: str, node: NodeId, options: ClientOptions | None = None
) -> AsyncIterator[OperatorClient]:
    """A client of that node, and of no other that answers at the address; dials at the first call."""
    chosen = options or ClientOptions()
    async with make_channel(credentials, address, node, chosen.channel) as channel:
        yield OperatorClient(credentials, OperatorServiceStub(channel), chosen)


@dataclass(frozen=True, slots=True)
class OperatorClient:
    """The calls. All raise WavemeshError; what else a call raises is said there."""

    credentials: NodeCredentials
    stub: OperatorServiceAsyncStub
    options: ClientOptions = field(default_factory=ClientOptions)
    clock: Clock = field(default_factory=SystemClock)
    # Spreads retries; nothing secret depends on it.
    uniform: Callable[[float, float], float] = random.uniform

    def within(self, deadline_s: float) -> OperatorClient:
        """The same client with another deadline."""
        return replace(self, options=replace(self.options, deadline_s=deadline_s))

    # -- waves ------------------------------------------------------------------------------------------------------

    def waves(self, request: operator_pb2.ListWavesRequest | None = None) -> AsyncGenerator[operator_pb2.Wave]:
        """Waves, newest first."""
        asked = request or operator_pb2.ListWavesRequest()
        return self._items(self.stub.ListWaves, asked, lambda page: page.waves)

    async def wave(self, wave_id: str) -> operator_pb2.Wave:
        """One wave; raises NotFoundError."""
        return (await self.ask(self.stub.GetWave, operator_pb2.GetWaveRequest(wave_id=wave_id))).wave

    async def ledger(self, wave_id: str, store: str = "") -> operator_pb2.GetLedgerResponse:
        """A wave's ledger, of one store or of all; raises NotFoundError."""
        return await self.ask(self.stub.GetLedger, operator_pb2.GetLedgerRequest(wave_id=wave_id, store=store))

    async def plan_wave(self, request: operator_pb2.PlanWaveRequest) -> operator_pb2.PlanWaveResponse:
        """Plan a wave, or say what the plan would be; the same plan again is a duplicate."""
        return await self.ask(self.stub.PlanWave, request)

    async def watch_wave(self, wave_id: str) -> AsyncGenerator[operator_pb2.Wave]:
        """The wave now and after every change, across broken streams, until it is closed; raises NotFoundError."""
        last: operator_pb2.Wave | None = None
        heard_at, failures = self.clock.monotonic(), 0
        while True:
            try:
                async with aclosing(self._stream(wave_id)) as waves:
                    async for wave in waves:
                        heard_at, failures = self.clock.monotonic(), 0
                        if wave != last:
                            last = wave
                            yield wave
                        # Whoever reads may take its time; the server's silence is what patience is for.
                        heard_at = self.clock.monotonic()
            except (LinkDownError, BusyError) as error:
                await self._wait(error, failures, heard_at + self.options.watch_patience_s)
                failures += 1
            else:
                return

    async def _stream(self, wave_id: str) -> AsyncGenerator[operator_pb2.Wave]:
        """One stream of a watch."""
        request = operator_pb2.WatchWaveRequest(wave_id=wave_id)
        call = self.stub.WatchWave(request, timeout=self.options.watch_stream_s)
        try:
            async for answer in call:
                yield answer.wave
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        finally:
            call.cancel()

    # -- intents ----------------------------------------------------------------------------------------------------

    async def submit(self, intent: OperatorIntent) -> operator_pb2.SubmitIntentResponse:
        """Sign an intent and give it to the node; refused for good is an answer too: look at the disposition."""
        envelope = to_proto(sign_as_node(intent, self.credentials))
        return await self.ask(self.stub.SubmitIntent, operator_pb2.SubmitIntentRequest(intent=envelope))

    def intents(
        self, request: operator_pb2.ListIntentsRequest | None = None
    ) -> AsyncGenerator[operator_pb2.IntentRecord]:
        """Intents and their fate, newest first."""
        asked = request or operator_pb2.ListIntentsRequest()
        return self._items(self.stub.ListIntents, asked, lambda page: page.intents)

    async def intent(self, intent_id: str) -> operator_pb2.IntentRecord:
        """One intent and its fate; raises NotFoundError."""
        return (await self.ask(self.stub.GetIntent, operator_pb2.GetIntentRequest(intent_id=intent_id))).record

    async def preview(self, intent: OperatorIntent) -> operator_pb2.PreviewIntentResponse:
        """What ``submit`` would do with an intent; nothing is changed."""
        envelope = to_proto(sign_as_node(intent, self.credentials))
        return await self.ask(self.stub.PreviewIntent, operator_pb2.PreviewIntentRequest(intent=envelope))

    async def cancel(self, intent_id: str, reason: str = "") -> operator_pb2.CancelIntentResponse:
        """Take an intent back; raises NotFoundError, ConflictError (reason INTENT_APPLIED) when it was acted on."""
        request = self._cancellation(intent_id, reason)
        return await self.ask(self.stub.CancelIntent, request)

    async def preview_cancel(self, intent_id: str) -> operator_pb2.CancelIntentResponse:
        """What ``cancel`` would answer; nothing is changed."""
        request = self._cancellation(intent_id, "")
        request.dry_run = True
        return await self.ask(self.stub.CancelIntent, request)

    def _cancellation(self, intent_id: str, reason: str) -> operator_pb2.CancelIntentRequest:
        word = IntentCancellation(intent_id, reason, self.clock.now())
        return operator_pb2.CancelIntentRequest(cancellation=to_proto(sign_as_node(word, self.credentials)))

    # -- stores, cohorts, policies, permits, holds ------------------------------------------------------------------

    def stores(self, request: operator_pb2.ListStoresRequest | None = None) -> AsyncGenerator[operator_pb2.Store]:
        """Stores, by path."""
        asked = request or operator_pb2.ListStoresRequest()
        return self._items(self.stub.ListStores, asked, lambda page: page.stores)

    async def store(self, store: str) -> operator_pb2.Store:
        """One store by name or path; raises NotFoundError, ConflictError for a name that two regions use."""
        return (await self.ask(self.stub.GetStore, operator_pb2.GetStoreRequest(store=store))).store

    def cohorts(self, request: operator_pb2.ListCohortsRequest | None = None) -> AsyncGenerator[operator_pb2.Cohort]:
        """Cohorts, by name; control's answer."""
        asked = request or operator_pb2.ListCohortsRequest()
        return self._items(self.stub.ListCohorts, asked, lambda page: page.cohorts)

    def policies(self) -> AsyncGenerator[operator_pb2.Policy]:
        """Policies of waves, by digest."""
        return self._items(self.stub.ListPolicies, operator_pb2.ListPoliciesRequest(), lambda page: page.policies)

    async def policy(self, request: operator_pb2.GetPolicyRequest) -> operator_pb2.Policy:
        """One policy in full, by digest or wave; raises NotFoundError."""
        return (await self.ask(self.stub.GetPolicy, request)).policy

    def permits(
        self, request: operator_pb2.ListPermitsRequest | None = None
    ) -> AsyncGenerator[operator_pb2.DevicePermit]:
        """The latest permit of each device, by wave and device."""
        asked = request or operator_pb2.ListPermitsRequest()
        return self._items(self.stub.ListPermits, asked, lambda page: page.permits)

    async def holds(self) -> operator_pb2.ListHoldsResponse:
        """The hold list in force."""
        return await self.ask(self.stub.ListHolds, operator_pb2.ListHoldsRequest())

    # -- devices and hubs -------------------------------------------------------------------------------------------

    def devices(self, request: operator_pb2.ListDevicesRequest | None = None) -> AsyncGenerator[operator_pb2.Device]:
        """Devices, by path."""
        asked = request or operator_pb2.ListDevicesRequest()
        return self._items(self.stub.ListDevices, asked, lambda page: page.devices)

    async def device(self, device: str) -> operator_pb2.Device:
        """One device by name or path; raises NotFoundError, ConflictError for a name that two stores use."""
        return (await self.ask(self.stub.GetDevice, operator_pb2.GetDeviceRequest(device=device))).device

    async def device_logs(self, request: operator_pb2.GetDeviceLogsRequest) -> operator_pb2.GetDeviceLogsResponse:
        """A device's log; a store hub's answer."""
        return await self.ask(self.stub.GetDeviceLogs, request)

    async def discrepancies(self, wave_id: str = "") -> operator_pb2.ListDiscrepanciesResponse:
        """What should have been reported by now and was not, or otherwise, compared now; control's answer."""
        return await self.ask(self.stub.ListDiscrepancies, operator_pb2.ListDiscrepanciesRequest(wave_id=wave_id))

    async def fleet_status(self) -> operator_pb2.GetFleetStatusResponse:
        """The whole fleet in one page."""
        return await self.ask(self.stub.GetFleetStatus, operator_pb2.GetFleetStatusRequest())

    async def cache(self, limit: int = 0) -> operator_pb2.ListCacheResponse:
        """What a store hub's cache holds, next to be evicted first."""
        return await self.ask(self.stub.ListCache, operator_pb2.ListCacheRequest(limit=limit))

    async def plan_cache(self, request: operator_pb2.PlanCacheRequest) -> operator_pb2.PlanCacheResponse:
        """What it would take to cache a release, a wave or a policy; a store hub's answer. Changes nothing."""
        return await self.ask(self.stub.PlanCache, request)

    async def apply_inventory(self, request: operator_pb2.ApplyInventoryRequest) -> operator_pb2.ApplyInventoryResponse:
        """Register stores and devices."""
        return await self.ask(self.stub.ApplyInventory, request)

    # -- releases and the audit -------------------------------------------------------------------------------------

    async def releases(self) -> operator_pb2.ListReleasesResponse:
        """Releases, and targets.json as published."""
        return await self.ask(self.stub.ListReleases, operator_pb2.ListReleasesRequest())

    async def publish_release(self, request: operator_pb2.PublishReleaseRequest) -> operator_pb2.PublishReleaseResponse:
        """Publish signed release metadata."""
        return await self.ask(self.stub.PublishRelease, request)

    async def hold_release(self, release: str, reason: str) -> operator_pb2.SetHoldResponse:
        """Put a release on hold. Never repeated by itself."""
        return await self.ask(self.stub.SetHold, operator_pb2.SetHoldRequest(release=release, held=True, reason=reason))

    async def lift_hold(self, release: str, reason: str = "") -> operator_pb2.SetHoldResponse:
        """Lift a release's hold. Never repeated by itself."""
        return await self.ask(
            self.stub.SetHold, operator_pb2.SetHoldRequest(release=release, held=False, reason=reason)
        )

    async def revoke_node(self, request: operator_pb2.RevokeNodeRequest) -> operator_pb2.RevokeNodeResponse:
        """Take a node's certificates back, or say whom it would hit. Never repeated by itself."""
        return await self.ask(self.stub.RevokeNode, request)

    def revocations(
        self, request: operator_pb2.ListRevocationsRequest | None = None
    ) -> AsyncGenerator[rollout_pb2.Revocation]:
        """What was taken back, by path."""
        asked = request or operator_pb2.ListRevocationsRequest()
        return self._items(self.stub.ListRevocations, asked, lambda page: page.revocations)

    def audit(self, request: operator_pb2.ListAuditRequest | None = None) -> AsyncGenerator[operator_pb2.AuditEntry]:
        """Who did what, newest first."""
        asked = request or operator_pb2.ListAuditRequest()
        return self._items(self.stub.ListAudit, asked, lambda page: page.entries)

    # -- how calls are made -----------------------------------------------------------------------------------------

    async def ask(self, method: grpc.aio.UnaryUnaryMultiCallable[Question, Answer], request: Question) -> Answer:
        """One call of the stub, within the deadline, repeated where that is right."""
        # The contract's lint keeps the names of requests equal to those of calls.
        name = type(request).__name__.removesuffix("Request")
        until, failures = self.clock.monotonic() + self.options.deadline_s, 0
        while True:
            try:
                return await method(request, timeout=max(0.0, until - self.clock.monotonic()))
            except grpc.aio.AioRpcError as failed:
                error = error_from_rpc(failed)
                if name not in REPEATABLE:
                    raise error from failed
            await self._wait(error, failures, until)
            failures += 1

    async def _wait(self, error: WavemeshError, failures: int, until: float) -> None:
        """Wait before the next attempt; raises the error when there is none."""
        wait_s = delay_s(
            error,
            failures=failures,
            remaining_s=until - self.clock.monotonic(),
            backoff=self.options.backoff,
            uniform=self.uniform,
        )
        if wait_s is None:
            raise error
        await asyncio.sleep(wait_s)

    async def _items(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Listing, Page],
        request: Listing,
        items: Callable[[Page], Any],
    ) -> AsyncGenerator[Any]:
        """All entries from the request's page on."""
        asked = type(request)()
        asked.CopyFrom(request)
        for _ in range(MAX_PAGES):
            page = await self.ask(method, asked)
            for item in items(page):
                yield item
            token = page.next_page_token
            if not token:
                return
            if token == asked.page_token:
                break
            asked.page_token = token
        msg = f"{type(request).__name__}: the pages of this list do not end; tell the node's operator"
        raise PeerError(msg)
