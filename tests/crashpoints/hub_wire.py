"""Both ends of a hub's sessions at their seams: no wire, the rules of ``wavemesh/session``, and others' state a value.

A message is heard the moment it leaves: whatever left the hub before a cut is known outside, which is the hardest case.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.crashpoints.hub import SeamUpstream
from wavemesh.errors import LinkDownError
from wavemesh.session.frames import CAPABILITIES, HeldResource, Hello, StatusEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.crashpoints.hub_world import Parent, World
    from tests.crashpoints.virtual_time import VirtualClock
    from wavemesh.identity.nodes import NodeId
    from wavemesh.session.frames import Report, Resource, ResourceKey
    from wavemesh.session.seams import ChildRegistry, ReportLog, ResourceSink

_BATCH = 64


class Cast:
    """Plays everybody around one boot of a hub; what they know is ``world``. A component's own cast says how they act.

    Also what ``SeamUpstream`` takes for its hub: ``state``, ``is_on``, ``changed``, ``take_reports`` and ``answer``.
    """

    def __init__(self, world: World, clock: VirtualClock) -> None:
        self.world = world
        self.clock = clock
        self.is_on = True
        self.changed: Callable[[], None] = lambda: None
        self.news: dict[str, asyncio.Event] = {child.path: asyncio.Event() for child in world.children}
        self.asked = asyncio.Event()

    @property
    def state(self) -> Parent:
        """Of the parent."""
        return self.world.parent

    def become(self, world: World) -> None:
        """All that follows, follows from this; nobody does anything after the end of a boot."""
        if world == self.world or not self.is_on:
            return
        self.world = world
        self.stir()

    def stir(self) -> None:
        """Everybody looks again."""
        self.changed()
        self.asked.set()
        for event in self.news.values():
            event.set()

    # --- as the parent -----------------------------------------------------------------------------------------------

    def take_reports(self, incarnation: str, first: int, reports: Iterable[Report]) -> int:
        """Apply those that are new; returns the cursor."""
        parent = self.world.parent
        cursor, heard = parent.cursor(incarnation), list(parent.heard)
        new: list[Report] = []
        if first > cursor + 1:
            self.become(self.world.blaming(f"report {first} came when {cursor + 1} was next"))
        for number, report in enumerate(reports, first):
            if number == cursor + 1:
                cursor = number
                heard.append((incarnation, number, report.kind, report.body))
                new.append(report)
        cursors = {**dict(parent.cursors), incarnation: cursor}
        parent = replace(parent, cursors=tuple(cursors.items()), heard=tuple(heard))
        self.become(self.reported(replace(self.world, parent=parent), incarnation, new))
        return cursor

    def take_status(self, status: object) -> None:
        """Nothing follows from a hub's status here."""

    def answer(self, kind: str, body: bytes) -> bytes:
        """What the hub asks of its parent."""
        raise LinkDownError(f"{kind} of {len(body)} bytes is not answered here")

    def reported(self, world: World, incarnation: str, reports: list[Report]) -> World:
        """What the parent makes of new reports."""
        del incarnation, reports
        return world

    # --- as the children ---------------------------------------------------------------------------------------------

    def hear(self, path: str, desired: tuple[Resource, ...]) -> World:
        """What a child makes of what it shall hold."""
        return self.world.with_child(replace(self.world.child(path), held=desired))

    def go_on(self, path: str) -> World:
        """What a child does by itself, now that it is due or there were news."""
        return self.world

    def status(self, path: str) -> dict[str, bytes]:
        """What a child says of itself."""
        return {}

    def restart(self, path: str) -> World:
        """The hub lost what it had acknowledged to a child, which takes a new incarnation and tells it all again."""
        raise NotImplementedError(path)

    async def work(self, path: str) -> None:
        """What a child asks of the hub beside its session: blobs, certificates."""

    async def operate(self, name: str) -> None:
        """Hand the hub one of the operators' words; it is answered when this returns."""
        raise NotImplementedError(name)


class PlayedUpstream(SeamUpstream):
    """The session with the parent."""

    def __init__(self, cast: Cast, log: ReportLog, sink: ResourceSink) -> None:
        super().__init__(cast, log, sink)  # type: ignore[arg-type]  # a cast plays the hub above as well
        self._cast = cast
        self._refused: dict[ResourceKey, str] = {}
        self._kept: set[ResourceKey] = set()

    def set_status(self, key: str, body: bytes | None) -> None:
        """Status is not durable, and nobody acts on it here."""

    async def _hear(self) -> None:
        """What is refused is not sent again in this session."""
        cast = self._cast
        held = {one.key: one.digest for one in self._sink.held()}
        wanted = {one.key: one for one in cast.state.wanted}
        changed = [one for one in wanted.values() if one.digest not in {held.get(one.key), self._refused.get(one.key)}]
        removed = [key for key in held if key not in wanted and key not in self._kept]
        if changed or removed:
            self._refused |= {one.key: one.digest for one in await self._sink.apply(changed, removed)}
            await self._sink.settled()
        now_held = {one.key: one.digest for one in self._sink.held()}
        self._kept |= {key for key in removed if key in now_held}
        if cast.is_on:
            taken = {**dict(cast.state.taken), **now_held}
            # It is no news to anybody.
            cast.world = replace(cast.world, parent=replace(cast.state, taken=tuple(taken.items())))

    async def _connect(self) -> bool:
        self._refused, self._kept = {}, set()
        return await super()._connect()

    async def _say(self) -> None:
        while self._log.next_number > self._log.first_number and self._is_up():
            await super()._say()


class SilentServer:
    """Stands for a gRPC server: nobody dials."""

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nobody calls."""

    async def start(self) -> None:
        """Nobody listens."""

    async def stop(self, grace: float | None) -> None:
        """Nobody did."""


class PlayedDownstream:
    """Stands for ``SessionDownstream``: keeps the registry, and passes on that something changed."""

    def __init__(self, cast: Cast, registry: ChildRegistry) -> None:
        self.registry = registry
        self._cast = cast

    def add_to(self, server: object) -> None:
        """There is no server."""

    def changed(self, child_path: str | None = None) -> None:
        for path, event in self._cast.news.items():
            if child_path in {None, path}:
                event.set()

    def connected(self) -> list[NodeId]:
        return []

    def capabilities(self, child_path: str) -> frozenset[str]:
        return frozenset(CAPABILITIES)

    async def drain(self, retry_after_s: float) -> None:
        """Nobody says goodbye in a power cut."""


class PlayedChild:
    """One child at the seam of the registry, by the rules of ``wavemesh/session/{parent,downstream}.py``."""

    def __init__(self, cast: Cast, registry: ChildRegistry, node: NodeId, used: Callable[[NodeId], Any]) -> None:
        self._cast = cast
        self._registry = registry
        self._node = node
        self._used = used
        self._is_open = False
        self._said: dict[str, bytes] = {}
        self.is_waiting = False

    async def run(self) -> None:
        """Connect whenever the child is there; hear, report and say what there is."""
        cast, path = self._cast, self._node.path
        news = cast.news[path]
        while True:
            news.clear()
            if cast.world.child(path).is_online != self._is_open:
                await (self._leave() if self._is_open else self._enter())
            if self._is_open:
                await self._converse()
            cast.become(cast.go_on(path))
            await cast.work(path)
            due_s = cast.world.child(path).due_s
            if not news.is_set():
                await self._wait(news, due_s)

    async def _wait(self, news: asyncio.Event, due_s: float | None) -> None:
        self.is_waiting = True
        try:
            async with asyncio.timeout(None if due_s is None else max(0.0, due_s - self._cast.clock.elapsed_s)):
                await news.wait()
        except TimeoutError:
            pass
        self.is_waiting = False

    async def _enter(self) -> None:
        cast, path = self._cast, self._node.path
        child = cast.world.child(path)
        held = tuple(HeldResource(one.key, one.version, one.digest) for one in child.held)
        hello = Hello(1, "child/1", child.incarnation, len(child.reports) + 1, held)
        cursor = await self._registry.admit(self._node, hello)
        if cursor < child.acknowledged and child.incarnation in (cast.world.note("lost") or ()):
            cast.become(cast.restart(path))
            return
        if not child.acknowledged <= cursor <= len(child.reports):
            problem = (
                f"the cursor of {path} is {cursor}; {child.acknowledged} of {len(child.reports)} were acknowledged"
            )
            cast.become(cast.world.blaming(problem))
            return
        self._acknowledged(cursor)
        await self._used(self._node)
        await self._registry.child_connected(self._node, hello)
        self._is_open, self._said = True, {}

    async def _leave(self) -> None:
        await self._registry.child_disconnected(self._node, "away")
        self._is_open = False

    async def _converse(self) -> None:
        cast, path, registry = self._cast, self._node.path, self._registry
        held = {one.key: one for one in cast.world.child(path).held}
        # As ``ResourceLanes`` does: what is held in that version, with that digest, is not sent again.
        desired = {key: _as_held(one, held.get(key)) for key, one in registry.desired(self._node).items()}
        changed = [one for key, one in desired.items() if held.get(key) != one]
        if changed or held.keys() - desired.keys():
            cast.become(cast.hear(path, tuple(desired.values())))
            await registry.verdict(self._node, changed, ())
        child = cast.world.child(path)
        reports = child.reports[child.acknowledged :][:_BATCH]
        if reports:
            await registry.apply_reports(self._node, child.incarnation, child.acknowledged + 1, reports)
            self._acknowledged(child.acknowledged + len(reports))
        news = {key: body for key, body in cast.status(path).items() if self._said.get(key) != body}
        if news:
            self._said |= news
            await registry.status(self._node, [StatusEntry(key, body) for key, body in news.items()])

    def _acknowledged(self, through: int) -> None:
        child = self._cast.world.child(self._node.path)
        self._cast.become(self._cast.world.with_child(replace(child, acknowledged=through)))


def _as_held(wanted: Resource, held: Resource | None) -> Resource:
    """What the child has after it: its own where that is what is wanted."""
    return held if held is not None and (held.digest, held.version) == (wanted.digest, wanted.version) else wanted
