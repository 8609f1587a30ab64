"""The super hub on a stage: the real hub as superhub/app.py joins it, control above it and stores below, played."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from superhub import app
from superhub.opening import OpenOrigin
from tests.conftest import FLEET
from tests.crashpoints.fleet import BEGAN_AT
from tests.crashpoints.hub_fleet import the_hub_fleet
from tests.crashpoints.hub_wire import Cast, PlayedDownstream, PlayedUpstream, SilentServer
from wavemesh.codec.statements import decode
from wavemesh.errors import GateError, LinkDownError, WavemeshError
from wavemesh.identity.certificates import Proof
from wavemesh.identity.nodes import NodeId
from wavemesh.trust.enrolments import IssueAnswer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from tests.crashpoints.hub_story import Stage
    from tests.crashpoints.hub_world import World
    from tests.crashpoints.virtual_time import VirtualClock
    from wavemesh.trust.statements import Digest

# Two releases do not fit.
QUOTA_BYTES = 20 * 1024
RETRY_S = 20.0
_PIECE_BYTES = 2048


class RegionCast(Cast):
    """Control and the stores of a region.

    A scenario notes under ``fetch:PATH`` what blobs a store wants, and under ``ask:PATH`` which certificates: name,
    kind and body of the ask.
    """

    def __init__(self, world: World, clock: VirtualClock) -> None:
        super().__init__(world, clock)
        self.seeding: Any = None
        self.registry: Any = None

    async def work(self, path: str) -> None:
        """Fetch the next blob and ask for the next certificate; what cannot be had now is asked for again."""
        child = self.world.child(path)
        wanted = [one for one in self.world.note(f"fetch:{path}") or () if one.sha256 not in child.fetched]
        asks = [one for one in self.world.note(f"ask:{path}") or () if one[0] not in dict(child.got)]
        is_done = not wanted and not asks
        if wanted:
            is_done = await self._fetch(path, wanted[0])
        if asks:
            name, kind, body = asks[0]
            answer = await self.registry.answer(NodeId(FLEET, path), kind, body)
            self._got(path, name, answer)
            is_done = True
        due_s = None if is_done else self.clock.elapsed_s + RETRY_S
        self.become(self.world.with_child(replace(self.world.child(path), due_s=due_s)))

    def _got(self, path: str, name: str, answer: bytes) -> None:
        child = self.world.child(path)
        self.become(self.world.with_child(replace(child, got=(*child.got, (name, answer)))))
        issued = decode(IssueAnswer, answer)
        if (issued.issued is None) != name.startswith("refused"):
            self.become(self.world.blaming(f"{name}: {issued.refused or 'a certificate was issued'}: {issued.detail}"))

    async def _fetch(self, path: str, digest: Digest) -> bool:
        content = b""
        try:
            pieces = await self.seeding.open(NodeId(FLEET, path), digest, 0, digest.size_bytes)
            async with aclosing(pieces):
                async for piece in pieces:
                    content += bytes(piece)
                    self.become(self.world.noting("seeded", True))
        except GateError as error:
            child = self.world.child(path)
            got = {**dict(child.got), f"gate of {digest.sha256}": error.gate.encode()}
            child = replace(child, got=tuple(got.items()), fetched=(*child.fetched, digest.sha256))
            self.become(self.world.with_child(child))
            return True
        except WavemeshError:
            return False
        if hashlib.sha256(content).hexdigest() != digest.sha256:
            self.become(self.world.blaming(f"wrong bytes of {digest.sha256[:12]} were seeded"))
        child = self.world.child(path)
        self.become(self.world.with_child(replace(child, fetched=(*child.fetched, digest.sha256))))
        return True

    def restart(self, path: str) -> World:
        """All of a store's outcomes again; here it has told them as a snapshot from the first."""
        child = self.world.child(path)
        number = len(self.world.note("restarts") or ())
        child = replace(child, incarnation=f"{number:032x}", acknowledged=0)
        return self.world.with_child(child).noting("restarts", (*(self.world.note("restarts") or ()), path))


class PlayedOrigin:
    """Stands for the origin; the link falls once in the middle of each big blob, where the world notes ``falls``."""

    def __init__(self, cast: RegionCast) -> None:
        self._cast = cast

    def reload(self) -> None:
        """A renewed certificate changes nothing here."""

    async def read(self, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        content = the_hub_fleet().base.blobs[digest.sha256]
        for start in range(offset, len(content), _PIECE_BYTES):
            falls = self._cast.world.note("falls")
            if falls and start >= 2 * _PIECE_BYTES and digest.sha256 not in falls:
                self._cast.become(self._cast.world.noting("falls", (*falls, digest.sha256)))
                raise LinkDownError("the link fell")
            yield memoryview(content)[start : start + _PIECE_BYTES]


class RegionHub:
    """Implements ``Component``."""

    fleet = FLEET

    def cast(self, world: World, clock: VirtualClock) -> RegionCast:
        return RegionCast(world, clock)

    async def run(self, stage: Stage, ready: Callable[[], None]) -> None:
        cast = stage.cast
        assert isinstance(cast, RegionCast)

        def upstream(**parts: Any) -> PlayedUpstream:
            made = PlayedUpstream(cast, parts["log"], parts["sink"])
            stage.upstream_idle = made.is_idle
            return made

        def downstream(_node: NodeId, registry: Any, *_: object) -> PlayedDownstream:
            stage.registry = cast.registry = registry
            return PlayedDownstream(cast, registry)

        def artifacts(_node: NodeId, seeding: Any, _peers: object, **_: object) -> SimpleNamespace:
            cast.seeding = seeding
            return SimpleNamespace(add_to=lambda _: None)

        @asynccontextmanager
        async def origin(*_: object, **__: object) -> AsyncIterator[OpenOrigin]:
            played = PlayedOrigin(cast)
            yield OpenOrigin(played, played.reload)

        async def serving(*_: object) -> None:
            ready()

        async def used(node: NodeId) -> None:
            """A session was opened with a certificate, which retires older ones."""
            await hub.parts.peers.used(Proof(node, BEGAN_AT, BEGAN_AT + timedelta(days=30), (), BEGAN_AT))
            seen = {*(cast.world.note("used") or ()), node.path}
            cast.become(cast.world.noting("used", tuple(sorted(seen))))

        stage.used = used
        played = {
            "SessionUpstream": upstream,
            "SessionDownstream": downstream,
            "make_server": lambda *_, **__: (SilentServer(), 1),
            "serve_health": lambda *_: None,
            "set_serving": serving,
            "ArtifactServer": artifacts,
            "open_origin": origin,
            "Disk": lambda: stage.disk,
        }
        with ExitStack() as stack:
            for name, stand_in in played.items():
                stack.enter_context(patch.object(app, name, stand_in))
            hub = app.SuperHub(stage.directory, stage.clock, Random(0))
            hub.config = replace(hub.config, cache_quota_bytes=QUOTA_BYTES)
            await hub.run()
