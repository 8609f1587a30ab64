"""The story of one hub, from a durable state to its rest, and the points at which its power may go.

``HubStanding`` is all that outlives a power cut. A telling boots the real hub from it in this process and in virtual
time, plays everybody around it, and goes on with the plot whenever nothing is under way; meanwhile a watcher hears of
each durable step and may take the standing that a cut there would leave.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from unittest.mock import patch

from tests.crashpoints.cut_disk import CutDisk, DurableStep, PowerIsOffError
from tests.crashpoints.device_boot import StoryError
from tests.crashpoints.device_story import RAM_DISK
from tests.crashpoints.fleet import BEGAN_AT
from tests.crashpoints.hub_database import inline_databases
from tests.crashpoints.hub_wire import PlayedChild
from tests.crashpoints.medium import Medium, lay_image
from tests.crashpoints.virtual_time import VirtualClock, VirtualLoop
from wavemesh.errors import WavemeshError
from wavemesh.identity.nodes import NodeId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tests.crashpoints.campaign import Look
    from tests.crashpoints.hub_wire import Cast
    from tests.crashpoints.hub_world import World
    from tests.crashpoints.medium import Image, Persists
    from wavemesh.session.seams import ChildRegistry

PATIENCE_S = 2 * 3600.0
BOOT_S = 10.0
MARK_EVERY_BYTES = 4096
LAID_AT_S = BEGAN_AT.timestamp()


@dataclass(frozen=True, slots=True)
class HubStanding:
    """What outlives a power cut of the hub."""

    image: Image
    world: World
    elapsed_s: float = 0.0


@dataclass(slots=True)
class Stage:
    """What one boot is given, and what of it others reach once it runs."""

    directory: Path
    clock: VirtualClock
    disk: CutDisk
    cast: Cast
    registry: ChildRegistry | None = None
    used: Callable[[NodeId], Awaitable[None]] | None = None
    upstream_idle: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class Act:
    """A turn of the plot: once ``is_ready`` the world becomes another, and ``spoil`` may damage files that are held."""

    name: str
    become: Callable[[World], World]
    is_ready: Callable[[World], bool] = lambda _: True
    spoil: Callable[[Stage], None] | None = None


class Component(Protocol):
    """A hub that can be put on a stage."""

    fleet: str

    def cast(self, world: World, clock: VirtualClock) -> Cast:
        """Who plays around it."""
        ...

    async def run(self, stage: Stage, ready: Callable[[], None]) -> None:
        """The real hub, until it is cancelled; ``ready`` is called when the stage is set."""
        ...


class PlotError(StoryError):
    """The hub came to no rest, or does not start any more."""


@dataclass(slots=True)
class HubStory:
    """One telling."""

    component: Component
    acts: Sequence[Act]
    is_over: Callable[[World], bool]
    standing: HubStanding
    watcher: Look[HubStanding] | None = None
    log: list[str] = field(default_factory=list)
    disk_of: Callable[[Medium, HubStory, VirtualClock], CutDisk] = lambda medium, story, _: CutDisk(medium, story)
    _stage: Stage = field(init=False)
    _children: list[PlayedChild] = field(init=False, default_factory=list)
    _ended: asyncio.Future[None] = field(init=False)
    _until_s: float = field(init=False)

    def tell(self) -> HubStanding:
        """Where the hub rests; raises PlotError, and what the model finds impossible."""
        clock = VirtualClock(BEGAN_AT, self.standing.elapsed_s + BOOT_S)
        self._until_s = clock.elapsed_s + PATIENCE_S
        with tempfile.TemporaryDirectory(dir=RAM_DISK, prefix="crashpoints-") as top, ExitStack() as stack:
            directory = Path(top) / "hub"
            lay_image(directory, self.standing.image)
            for path in (directory / "state").rglob("*"):
                os.utime(path, (LAID_AT_S, LAID_AT_S))
            disk = self.disk_of(Medium(directory, self.standing.image), self, clock)
            self._stage = Stage(directory, clock, disk, self.component.cast(self.standing.world, clock))
            stack.enter_context(inline_databases(disk))
            for name in ("wavemesh.artifacts.blobstore.Disk", "wavemesh.identity.live.Disk"):
                stack.enter_context(patch(name, lambda: disk))
            # Each boot of the machine has another id: bytes that were not flushed may be lost.
            boot = f"boot-{clock.elapsed_s}"
            stack.enter_context(patch("wavemesh.artifacts.blobstore.boot_id", lambda: boot))
            stack.enter_context(patch("wavemesh.artifacts.partial.MARK_EVERY_BYTES", MARK_EVERY_BYTES))
            loop = VirtualLoop(clock, self._rests)
            try:
                loop.run_until_complete(self._live(loop))
            finally:
                loop.close()
        return self.standing

    async def _live(self, loop: VirtualLoop) -> None:
        self._ended = loop.create_future()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.component.run(self._stage, lambda: tasks.extend(self._enter(group))))]
                await self._ended
                self._stage.disk.is_on = self._stage.cast.is_on = False
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            self._stage.disk.is_on = self._stage.cast.is_on = False
            _, others = errors.split(PowerIsOffError)
            if others is None:
                return
            ended, rest = others.split(WavemeshError)
            if rest is not None:
                raise _first(rest) from None
            self._stage.disk.is_on = True
            self.standing = self._cut(lambda: True)  # the machine goes on: what was written is there
            self._stage.disk.is_on = False
            msg = f"the hub ended: {_first(ended)!r}" if ended is not None else ""
            raise PlotError(msg) from (_first(ended) if ended is not None else None)

    def _enter(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Everybody around the hub, now that it runs."""
        stage = self._stage
        assert stage.registry is not None
        assert stage.used is not None
        nodes = [NodeId(self.component.fleet, child.path) for child in stage.cast.world.children]
        self._children = [PlayedChild(stage.cast, stage.registry, node, stage.used) for node in nodes]
        return [*(group.create_task(one.run()) for one in self._children), group.create_task(self._operate())]

    async def _operate(self) -> None:
        """Operators give each word until it is taken."""
        cast = self._stage.cast
        while True:
            cast.asked.clear()
            for name, _ in cast.world.asked:
                if name not in cast.world.answered:
                    await cast.operate(name)
                    cast.become(replace(cast.world, answered=(*cast.world.answered, name)))
            await cast.asked.wait()

    def _rests(self) -> None:
        if not hasattr(self, "_ended") or self._ended.done() or not self._children:
            return
        stage = self._stage
        world = stage.cast.world
        if stage.clock.elapsed_s > self._until_s:
            # Raised where the tasks are awaited, so that they end in order.
            self._ended.set_exception(PlotError(f"no rest within {PATIENCE_S:g} s; {world.done} acts were done"))
            return
        if world.problems:
            self._end()
            return
        if not stage.upstream_idle() or not all(one.is_waiting for one in self._children):
            return
        if world.done < len(self.acts):
            act = self.acts[world.done]
            if act.is_ready(world):
                self.log.append(f"{stage.clock.elapsed_s:.1f} s: {act.name}")
                stage.cast.become(replace(act.become(world), done=world.done + 1))
                if act.spoil is not None:
                    act.spoil(stage)
        elif self.is_over(world):
            self._end()

    def _end(self) -> None:
        """This is rest, or as far as it is worth to go."""
        self.standing = self._cut(lambda: True)
        self._stage.disk.is_on = self._stage.cast.is_on = False
        with suppress(asyncio.InvalidStateError):
            self._ended.set_result(None)

    # --- what a cut leaves -------------------------------------------------------------------------------------------

    def _cut(self, persists: Persists) -> HubStanding:
        stage = self._stage
        return HubStanding(stage.disk.medium.after_cut(persists), stage.cast.world, stage.clock.elapsed_s)

    def before(self, step: DurableStep) -> None:
        """Of ``Observer``."""
        self._look(step, "before")

    def after(self, step: DurableStep) -> None:
        """Of ``Observer``."""
        self._look(step, "after")

    def _look(self, step: DurableStep, when: str) -> None:
        if self.watcher is not None:
            name = f"{step.kind} {step.path.relative_to(self._stage.directory)}"
            self.watcher(name, when, self._cut, is_pending=self._stage.disk.medium.is_pending)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
