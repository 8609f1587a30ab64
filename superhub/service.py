"""What the stores of the region reach here: the ChildRegistry of their sessions.

Stores are admitted by their certificate alone. Reports go to the intake, desired state comes from the shelf, status is
passed on under the store's name with this hub's view of its connection, and health pings are relayed to control with
bounded concurrency: a ping that cannot be relayed now is refused at once, its device asks again.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from wavemesh.codec.statements import decode, encode
from wavemesh.errors import BusyError, ForbiddenError, LinkDownError, NotFoundError, PeerError
from wavemesh.identity.nodes import NodeId, Role, is_name
from wavemesh.session.frames import MAX_ASKS_IN_FLIGHT
from wavemesh.telemetry import batches
from wavemesh.trust.enrolments import JoinRequest
from wavemesh.trust.statements import DeviceStatus, Envelope, HubStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from superhub.authority import Authority
    from superhub.events import Events
    from superhub.intake import Intake
    from superhub.running import Running
    from superhub.shelf import Shelf
    from superhub.statuses import StatusRelay
    from superhub.tracing import Tracing
    from wavemesh.runtime.clock import Clock
    from wavemesh.session.frames import Hello, Rejection, Report, Resource, ResourceKey, StatusEntry
    from wavemesh.session.seams import Upstream
    from wavemesh.session.sqlite import SqliteCursors

_LOG = logging.getLogger(__name__)

HEALTH_PING = "health-ping"
PING_TIMEOUT_S = 10.0
MAX_PINGS_WAITING = 512
PING_RETRY_S = 1.0


class RegionRegistry:
    """The ChildRegistry of one super hub."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        epoch: str,
        shelf: Shelf,
        cursors: SqliteCursors,
        intake: Intake,
        events: Events,
        statuses: StatusRelay,
        upstream: Upstream,
        authority: Authority,
        clock: Clock,
        tracing: Tracing,
        running: Running,
    ) -> None:
        """Everything a store's session touches."""
        self._node_id = node_id
        self._epoch = epoch
        self._shelf = shelf
        self._cursors = cursors
        self._intake = intake
        self._events = events
        self._statuses = statuses
        self._upstream = upstream
        self._authority = authority
        self._clock = clock
        self._tracing = tracing
        self._running = running
        self._hubs: dict[str, HubStatus] = {}
        self._pings = asyncio.Semaphore(MAX_ASKS_IN_FLIGHT)
        self._pings_waiting = 0

    @property
    def epoch(self) -> str:
        """This hub's epoch for versions."""
        return self._epoch

    @property
    def devices_connected(self) -> int:
        """Devices with an open session, as their stores last said."""
        return sum(hub.devices_connected for hub in self._hubs.values() if hub.connected)

    async def admit(self, child: NodeId, hello: Hello) -> int:
        """The cursor of a store's incarnation; raises ForbiddenError for who is no store of this region."""
        if not child.is_child_of(self._node_id):
            msg = f"{child.uri} is not a store of {self._node_id.path}"
            raise ForbiddenError(msg)
        return await self._cursors.admission(child.path, hello.incarnation, hello.next_report_number)

    async def apply_reports(
        self, child: NodeId, incarnation: str, first_number: int, reports: Sequence[Report]
    ) -> None:
        """Verify, merge and pass on, in one transaction with the cursor."""
        await self._intake.apply(child, incarnation, first_number, reports)

    def desired(self, child: NodeId) -> Mapping[ResourceKey, Resource]:
        """What concerns that store."""
        return self._shelf.desired(child.path)

    async def verdict(self, child: NodeId, accepted: Sequence[Resource], rejected: Sequence[Rejection]) -> None:
        """What a store refused is told to control, once for each content."""
        await self._tracing.relayed(child, accepted, rejected)
        for one in rejected:
            subject = f"{one.key.type}/{one.key.name}"
            await self._events.tell_once(
                "resource-refused", subject, one.reason, gate=one.gate, about=f"{child.path} {one.digest}"
            )

    async def status(self, child: NodeId, entries: Sequence[StatusEntry]) -> None:
        """Pass status on under the store's name; malformed status is dropped, there will be newer."""
        for entry in entries:
            if entry.key == "hub" and entry.body is not None:
                try:
                    said = decode(HubStatus, entry.body)
                except PeerError as error:
                    _LOG.warning("status of %s: %s", child.path, error)
                else:
                    self._note_hub(child, replace(said, hub=child.path, connected=True))
            elif entry.key.startswith("device/") and _is_device(child, entry.key):
                self._note_device(f"{child.path}/{entry.key}", entry.body)
                self._statuses.set(f"store/{child.name}/{entry.key}", entry.body)

    def _note_device(self, path: str, body: bytes | None) -> None:
        try:
            self._running.says(path, None if body is None else decode(DeviceStatus, body))
        except PeerError as error:
            _LOG.warning("status of %s: %s", path, error)

    async def answer(self, child: NodeId, kind: str, body: bytes) -> bytes:
        """Relay a health ping to control, let a node below the child join or renew, take telemetry.

        Raises BusyError, LinkDownError, NotFoundError, what control answered.
        """
        match kind:
            case str() if kind == HEALTH_PING:
                return await self._relay_ping(body)
            case batches.ASK_KIND:
                return encode(await self._tracing.outbox.take(child, decode(batches.TelemetryUpload, body)))
            case "join":
                return encode(await self._authority.join(child, decode(JoinRequest, body)))
            case "renew":
                return encode(await self._authority.renew(child, decode(Envelope, body)))
        msg = f"{child.path} asks {kind[:100]!r}, which a super hub does not answer"
        raise NotFoundError(msg)

    async def _relay_ping(self, body: bytes) -> bytes:
        if self._pings_waiting >= MAX_PINGS_WAITING:
            msg = f"{self._pings_waiting} pings wait for control"
            raise BusyError(msg, PING_RETRY_S)
        self._pings_waiting += 1
        try:
            async with asyncio.timeout(PING_TIMEOUT_S), self._pings:
                return await self._upstream.ask(HEALTH_PING, body, PING_TIMEOUT_S)
        except TimeoutError as error:
            msg = f"control did not answer a ping within {PING_TIMEOUT_S:g} s"
            raise LinkDownError(msg) from error
        finally:
            self._pings_waiting -= 1

    async def child_connected(self, child: NodeId, hello: Hello) -> None:
        """A store's session is open."""
        await self._tracing.connected(child, hello.held)
        known = self._hubs.get(child.path) or HubStatus(hub=child.path, at=self._clock.now())
        software = hello.software_version
        self._note_hub(child, replace(known, incarnation=hello.incarnation, software_version=software, connected=True))

    async def child_disconnected(self, child: NodeId, reason: str) -> None:
        """A store's session ended."""
        _LOG.info("store %s is gone: %s", child.path, reason)
        known = self._hubs.get(child.path)
        if known is not None:
            self._note_hub(child, replace(known, connected=False, at=self._clock.now()))

    def _note_hub(self, child: NodeId, status: HubStatus) -> None:
        self._hubs[child.path] = status
        self._statuses.set(f"store/{child.name}/hub", encode(status))


def _is_device(store: NodeId, key: str) -> bool:
    """Whether a status key is the well-formed name of a device of that store."""
    return store.role is Role.STORE_HUB and is_name(key.removeprefix("device/"))
