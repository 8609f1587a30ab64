"""Store hubs and super hubs: the product's own parts over a simulated disk, without their loops, servers and blobs.

The loops are mirrored by deadlines: a scheduling pass follows a ring of the bell and the times at which something runs
out; status goes up a moment after it changed. What a hub has of a release is one flag each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from storehub.asks import Asks
from storehub.belief import Belief as StoreBelief
from storehub.clockguard import ClockGuard
from storehub.config import Config as StoreConfig
from storehub.config import GroupConfig
from storehub.hub import Bell, Hub
from storehub.intents import Intents
from storehub.reportlog import HubReportLog, snapshot_of
from storehub.scheduler import NOTHING, Scheduler
from storehub.service import DeviceRegistry
from storehub.statuses import Statuses
from storehub.store import HubStore
from storehub.upstream import HubSink
from superhub.acceptance import Acceptance
from superhub.compliance import Bundle, Pass, RegionView, assess
from superhub.events import Events
from superhub.intake import Intake
from superhub.running import Running
from superhub.service import RegionRegistry
from superhub.shelf import Shelf
from superhub.sink import RegionSink
from superhub.statuses import StatusRelay
from superhub.store import RegionStore
from tests.simulation.disk import HubDatabase, HubDisk
from tests.simulation.engine import EPOCH, drive
from tests.simulation.links import node_at
from tests.simulation.parents import MiddleNode, Quiet, credentials_of
from tests.simulation.words import decode, encode
from wavemesh.errors import GateError, LocalError, PeerError
from wavemesh.session.frames import Answer
from wavemesh.session.showing import Showing
from wavemesh.session.sqlite import SqliteCursors, SqliteReportLog, SqliteResources
from wavemesh.trust.freshness import RELEASE_MAX_AGE, ClockSource
from wavemesh.trust.statements import Envelope, HealthPing, HealthPingAnswer, HubStatus, WaveState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.simulation.engine import World
    from tests.simulation.links import Stream
    from wavemesh.identity.nodes import NodeId
    from wavemesh.session.frames import Ask, Hello, Resource, ResourceKey
    from wavemesh.session.upstream import SessionUpstream

PASS_PAUSE_S = 3.0
STATUS_PAUSE_S = 5.0
RELAY_PAUSE_S = 15.0
POLL_S = 60.0
RELAY_TIMEOUT_S = 5.0
FETCH_S = 30.0
LANE = GroupConfig("till", "a", ("pos-00", "pos-01", "pos-02"))
STORE_CONFIG = StoreConfig(listen="", parent="", scheduling_interval_s=1.0, groups=(LANE,))


class StoreHub(MiddleNode):
    """One store hub."""

    def __init__(self, world: World, path: str) -> None:
        super().__init__(world, path, HubDisk.of_store())
        self.cached: dict[str, bool] = {}
        self.refused: dict[str, GateError] = {}
        self._fetching: dict[str, bool] = {}
        self.hub: Hub
        self.scheduler: Scheduler
        self.intents: Intents
        self._pass_at = float("inf")
        self._passed_at = -1.0

    # -- life -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        database: Any = HubDatabase(self.disk, self)
        store = HubStore(database)
        drive(store._load())
        hub = self.hub = Hub(
            credentials=credentials_of(self.path),
            config=STORE_CONFIG,
            clock=self.clock,
            store=store,
            log=drive(HubReportLog.open(database, snapshot_of(store, self.path))),
            resources=drive(SqliteResources.open(database)),
            cursors=SqliteCursors(database),
            belief=StoreBelief(self.path, b"", credentials_of(self.path).authorities),
            clock_guard=ClockGuard(store, ClockSource.HARDWARE),
            tracing=Quiet(),  # type: ignore[arg-type]
            bell=_RingingBell(self),
        )
        self.intents = Intents(hub)
        sink = HubSink(hub, self.intents)
        sink.restore()
        upstream = self.dial(hub.log, sink)
        self.scheduler = Scheduler(hub)
        self._asks = Asks.__new__(Asks)
        self._asks._hub = hub
        self.statuses = Statuses(hub, None, upstream.set_status)  # type: ignore[arg-type]  # views are for people
        self.registry = _Watched(self, hub, self._asks, self._device_changed)
        downstream = self.serve(self.registry)
        hub.changed = downstream.changed
        hub.wake_upstream = upstream.wake
        if isinstance(hub.log, HubReportLog):
            hub.log.listener = self.intents.acknowledged
        drive(self.intents.acknowledged(hub.log.first_number - 1))
        self._pass_at, self._passed_at = float("inf"), -1.0
        self._fetching.clear()
        self.statuses._dirty.update(store.devices)
        self.flush_later(STATUS_PAUSE_S)
        self.ring()
        self.dialer.knock()

    # -- scheduling -------------------------------------------------------------------------------------------------

    def ring(self) -> None:
        """Something changed: a pass follows."""
        self._pass_by(max(self.world.now + 0.5, self._passed_at + PASS_PAUSE_S))

    def _pass_by(self, at: float) -> None:
        if at < self._pass_at:
            self._pass_at = at
            self.later(at - self.world.now, self._pass)

    def _pass(self) -> None:
        if self.world.now < self._pass_at:
            return
        self._pass_at, self._passed_at = float("inf"), self.world.now
        self._fetch_wanted()
        try:
            decision = drive(self.scheduler.step())
        except LocalError as error:
            self.note("no-scheduling", str(error))
            self._pass_by(self.world.now + POLL_S)
            return
        if self.world.facts.words is not None:
            self.world.facts.words.passed(self)
        if decision != NOTHING:
            self.note("decides", _told(decision))
            self.world.facts.decided(self, decision)
        self.flush_later(STATUS_PAUSE_S)
        self._next_pass()

    def _next_pass(self) -> None:
        """When the next pass has something to find without anybody having said anything."""
        hub, now = self.hub, self.clock.now()
        if not (hub.store.slots or hub.belief.orders or any(_waits(record) for record in hub.store.intents.values())):
            return
        times = [t for record in hub.store.slots.values() for t in (record.slot.expires_at, record.slot.until)]
        ahead = [(moment - now).total_seconds() for moment in times if moment > now]
        self._pass_by(self.world.now + min([*ahead, 10 * POLL_S]) + 0.01)

    # -- blobs ------------------------------------------------------------------------------------------------------

    def _fetch_wanted(self) -> None:
        """A release that an order names is fetched from the super hub while the session is open."""
        if not self.dialer.is_open:
            return
        for order in self.hub.belief.orders.values():
            name = order.release
            if name not in self.cached and name not in self._fetching and order.state is not WaveState.HALTED:
                self._fetching[name] = True
                self.later(FETCH_S, self._fetched, name)

    def _fetched(self, name: str) -> None:
        self._fetching.pop(name, None)
        if not self.dialer.is_open:
            return
        region: Any = self.parent_link.parent
        try:
            region.seed(self.path, name)
        except GateError as error:
            self.refused[name] = error
            self.later(10 * POLL_S, self.ring)
        else:
            self.cached[name] = True
            self.refused.pop(name, None)
            self.note("cached", name)
        for link in self.links:
            if link.child.is_up:
                link.child.poke()  # type: ignore[attr-defined]  # children are devices

    # -- what goes up -----------------------------------------------------------------------------------------------

    def _device_changed(self, path: str) -> None:
        self.statuses.device_changed(path)
        self.flush_later(STATUS_PAUSE_S)

    def flush(self) -> None:
        self.statuses._pass_on_devices()
        status = HubStatus(
            hub=self.path,
            at=EPOCH,
            incarnation=self.hub.log.incarnation,
            devices_connected=len(self.hub.present),
            swaps_active=self.scheduler.swaps_active(),
        )
        self.upstream.set_status("hub", encode(status))

    def answer(self, stream: Stream, ask: Ask) -> None:
        """Answer a health ping by the policy's authority: ``storehub/asks.py``."""
        ping = decode(HealthPing, ask.body)
        state = self._asks.lease_state(ping.device, ping.wave_id)
        if ping.authority != "hub" and self.dialer.is_open:
            above = self.dialer.stream
            asked = _Relayed(self, stream, ask, ping.authority, state)
            if above is not None:
                try:
                    above.ask("health-ping", ask.body, asked.answered)
                except PeerError:
                    asked.answered(None)
                else:
                    self.later(RELAY_TIMEOUT_S, asked.answered, None)
                return
        self.say(stream, ask, None if ping.authority == "control" else "hub", state)

    def say(self, stream: Stream, ask: Ask, authority: str | None, state: str) -> None:
        """The answer to a ping: who acknowledges it, or that the authority is down."""
        ack = None if authority is None else Envelope("ack", authority.encode(), ())
        down = Envelope("down", b"control", ()) if authority is None else None
        stream.reply(Answer(ask.ask_id, encode(HealthPingAnswer(ack, state, down))))


class _Relayed:
    """A ping on its way to control."""

    def __init__(self, hub: StoreHub, stream: Stream, ask: Ask, authority: str, state: str) -> None:
        self._parts = (hub, stream, ask, state)
        self._authority = authority
        self._is_done = False

    def answered(self, answer: Answer | None) -> None:
        if self._is_done:
            return
        self._is_done = True
        hub, stream, ask, state = self._parts
        if answer is not None and not answer.error:
            hub.say(stream, ask, "control", state)
        else:
            hub.say(stream, ask, None if self._authority == "control" else "hub", state)


class _Watched(DeviceRegistry):
    """The hub's registry, whose emptiness is told to the checkers while it has never settled."""

    def __init__(self, node: StoreHub, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._node = node
        self._came: dict[str, tuple[ResourceKey, ...]] = {}

    async def child_connected(self, child: NodeId, hello: Hello) -> None:
        self._came[child.path] = tuple(one.key for one in hello.held if one.key.type == "order")
        await super().child_connected(child, hello)

    def desired(self, child: NodeId) -> Mapping[ResourceKey, Resource]:
        wanted = super().desired(child)
        hub = self._node.hub
        if not hub.has_settled:
            heard = hub.store.waves
            gone = [key for key in self._came.get(child.path, ()) if key not in wanted]
            unheard = [key.name for key in gone if key.name.split("/")[0] not in heard]
            self._node.world.facts.withdrawn_unheard(child.path, unheard)
        return wanted


class _RingingBell(Bell):
    """The hub's bell, heard by the simulation."""

    def __init__(self, node: StoreHub) -> None:
        self.rings = 0
        self._node = node

    def ring(self) -> None:
        self.rings += 1
        self._node.ring()


class SuperHub(MiddleNode):
    """One super hub."""

    def __init__(self, world: World, path: str) -> None:
        super().__init__(world, path, HubDisk.of_region())
        self.store: RegionStore
        self.relay: StatusRelay

    def begin(self) -> None:
        database: Any = HubDatabase(self.disk, self)
        store = self.store = RegionStore(database)
        for row in drive(database.fetch_all("SELECT release, main_sha256, entered_at, digests FROM entered")):
            store._remember(row[0], row[1], self.clock.now(), row[3])
        log = drive(SqliteReportLog.open(database, lambda tx, name: store.snapshot(self.path, tx, name)))
        self.log = log
        self.resources = drive(SqliteResources.open(database))
        authorities = credentials_of(self.path).authorities
        self.acceptance = Acceptance(self.path, b"", authorities)
        shelf = self.shelf = Shelf(self.path)
        tracing: Any = Quiet()
        showing = Showing(log.append)
        sink = RegionSink(
            store=store,
            resources=self.resources,
            acceptance=self.acceptance,
            shelf=shelf,
            clock=self.clock,
            tracing=tracing,
            showing=showing,
            changed=self._region_changed,
        )
        upstream = self.dial(log, sink)
        drive(sink.restore())
        events = Events(self.path, store, log, self.clock, upstream.wake)
        cursors = SqliteCursors(database)
        intake = Intake(
            store=store,
            log=log,
            cursors=cursors,
            events=events,
            authorities=authorities,
            clock=self.clock,
            tracing=tracing,
            showing=showing,
            appended=upstream.wake,
        )
        self.relay = _Relay(self, upstream)
        registry = RegionRegistry(
            node_id=node_at(self.path),
            epoch=self.resources.epoch,
            shelf=shelf,
            cursors=cursors,
            intake=intake,
            events=events,
            statuses=self.relay,
            upstream=upstream,
            authority=tracing,
            clock=self.clock,
            tracing=tracing,
            running=Running(),
        )
        self.serve(registry)
        self.dialer.knock()

    def _region_changed(self) -> None:
        self.downstream.changed()

    def flush(self) -> None:
        """What ``StatusRelay.run`` does once an interval."""
        pending, self.relay._pending = self.relay._pending, {}
        for key, body in pending.items():
            self.upstream.set_status(key, body)

    def seed(self, store_path: str, release: str) -> None:
        """Whether a store may have a release now; raises GateError."""
        trusted: Any = self.acceptance.trusted
        if trusted is None:
            raise GateError("signature", "no trust metadata")
        manifest = trusted.require_release(release)
        view = RegionView(
            self.path.rsplit("/", 1)[1],
            RELEASE_MAX_AGE,
            trusted.expires_at(),
            self.acceptance.holds,
            self.store.entered,
        )
        found = assess(manifest, Bundle.GOOD, self.acceptance.orders_of(store_path), view, self.clock.now())
        if not isinstance(found, Pass):
            raise GateError(getattr(found, "gate", "signature"), f"{found}")

    def answer(self, stream: Stream, ask: Ask) -> None:
        """Relay a ping to control: ``RegionRegistry._relay_ping``."""
        above = self.dialer.stream
        if above is None or not self.dialer.is_open:
            stream.reply(Answer(ask.ask_id, b"", "LINK_DOWN"))
            return

        def answered(answer: Answer | None) -> None:
            said = Answer(ask.ask_id, b"", "LINK_DOWN") if answer is None else replace(answer, ask_id=ask.ask_id)
            stream.reply(said)

        try:
            above.ask(ask.kind, ask.body, answered)
        except PeerError:
            stream.reply(Answer(ask.ask_id, b"", "BUSY"))


class _Relay(StatusRelay):
    """Status on its way up, passed on by the simulation."""

    def __init__(self, node: SuperHub, upstream: SessionUpstream) -> None:
        self._node = node
        self._pending = {}
        self._known = set()
        self._upstream = upstream

    def set(self, key: str, body: bytes | None) -> None:
        self._known.add(key)
        self._pending[key] = body
        self._node.flush_later(RELAY_PAUSE_S)


def _waits(record: Any) -> bool:
    return bool(record.disposition.name == "QUEUED")


def _told(decision: Any) -> str:
    parts = []
    for name in ("ended", "granted"):
        parts += [f"{name} {slot.device.rsplit('/', 1)[1]}/{slot.attempt}" for slot in getattr(decision, name)]
    parts += [f"infers {one.device.rsplit('/', 1)[1]} {one.kind.name}" for one in decision.inferred]
    parts += [f"relays {wish.kind if hasattr(wish, 'kind') else wish.intent_id}" for wish, _ in decision.relayed]
    return ", ".join(parts)
