"""What all nodes with children have in common: a life, the sessions they serve, and a hub's session with its parent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.simulation.engine import Node
from tests.simulation.links import HEARTBEAT_S, Dialer, node_at
from wavemesh.session.downstream import DownstreamOptions, SessionDownstream
from wavemesh.session.parent import ParentOptions
from wavemesh.session.upstream import SessionUpstream, UpstreamOptions

if TYPE_CHECKING:
    from tests.simulation.disk import HubDisk
    from tests.simulation.engine import World
    from tests.simulation.links import Link, Stream

START_S = 2.0


class Quiet:
    """Tracing that tells nothing, whether it is awaited or not."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *arguments: Any, **named: Any) -> Quiet:
        return self

    def __await__(self) -> Any:
        return iter(())


class Certificates:
    """``Peers`` and ``Authorities`` where every certificate is good."""

    async def used(self, proof: object) -> None:
        return

    def take(self, revocations: object) -> None:
        return


def credentials_of(path: str) -> Any:
    """What a node knows of itself."""
    return SimpleNamespace(node_id=node_at(path), authorities=Certificates())


class Parent(Node):
    """A node with children."""

    def __init__(self, world: World, path: str) -> None:
        super().__init__(world, path)
        self.links: list[Link] = []
        self.downstream: SessionDownstream
        self.crashes = 0

    def serve(self, registry: Any) -> SessionDownstream:
        """The children's sessions of this life."""
        options = DownstreamOptions(ParentOptions("parent/1", heartbeat_interval_s=HEARTBEAT_S))
        peers: Any = Certificates()
        self.downstream = SessionDownstream(node_at(self.path), registry, self.clock, peers, options)
        return self.downstream

    def streams(self) -> list[Stream]:
        """Streams of children."""
        return [link.stream for link in self.links if link.stream is not None]

    def up_stream(self) -> Stream | None:
        """The stream to this node's own parent."""
        return None

    def stop(self, *, is_silent: bool, back_after_s: float | None = START_S) -> None:
        """The process ends; with its host it does so silently. It starts again unless ``back_after_s`` is None."""
        if self.is_up:
            self.note("stops", "with its host" if is_silent else "")
            self.is_up = False
            self.crash_in = None
            for stream in self.streams():
                stream.parent_died(is_silent=is_silent)
            above = self.up_stream()
            if above is not None:
                above.child_died(is_silent=is_silent)
            self.stopped()
        self.life += 1
        if back_after_s is not None:
            self.later(back_after_s, self.start)

    def stopped(self) -> None:
        """Forget what was in memory."""

    def crashed(self) -> None:
        self.crashes += 1
        self.stop(is_silent=False)

    def start(self) -> None:
        """Begin a life from what is durable."""
        if self.is_up:
            return
        self.is_up = True
        self.note("starts")
        self.begin()
        for link in self.links:
            link.knock()

    def begin(self) -> None:
        """Put the parts together."""
        raise NotImplementedError


class MiddleNode(Parent):
    """What store hubs and super hubs have in common: a disk, and a session with a parent."""

    def __init__(self, world: World, path: str, disk: HubDisk) -> None:
        super().__init__(world, path)
        self.disk = disk
        self.parent_link: Link
        self.dialer: Dialer
        self.upstream: SessionUpstream
        self._flushing = False

    def up_stream(self) -> Stream | None:
        stream = self.parent_link.stream
        return stream if stream is not None and stream.child is self else None

    def dial(self, log: Any, sink: Any) -> SessionUpstream:
        """The session with the parent of this life."""
        self.upstream = SessionUpstream(
            credentials=credentials_of(self.path),
            parent=node_at(self.parent_link.parent.path),
            address="",
            log=log,
            sink=sink,
            clock=self.clock,
            rng=self.rng,
            software_version="hub/1",
            options=UpstreamOptions(backoff_cap_s=3.0),
            breached=lambda subject, gate, why: self.note("breach", f"{subject} {gate} {why}"),
        )
        self.dialer = Dialer(self, self.upstream, self.parent_link)
        return self.upstream

    def flush_later(self, pause_s: float) -> None:
        """Pass status on in a moment."""
        if not self._flushing:
            self._flushing = True
            self.later(pause_s, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self.flush()

    def flush(self) -> None:
        """Pass status on."""
        raise NotImplementedError

    def stopped(self) -> None:
        self._flushing = False
