"""The smallest tiers that a session can connect: what they cost is not what a benchmark of sessions measures."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from wavemesh.session.frames import HeldResource, Report, Resource, ResourceKey, ResourceVersion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wavemesh.identity.nodes import NodeId
    from wavemesh.session.frames import Hello, Rejection, StatusEntry

_CONTENT = b"an order, about as large as one is" * 20
ORDER = Resource(
    ResourceKey("order", "142/store-208"),
    ResourceVersion("bench", 1),
    hashlib.sha256(_CONTENT).hexdigest(),
    _CONTENT,
)


class BenchLog:
    """A report log in memory."""

    def __init__(self) -> None:
        """Empty."""
        self.incarnation = "bench"
        self.first_number = self.next_number = 1
        self._reports: list[Report] = []
        self.acknowledged = asyncio.Event()

    def append(self, report: Report) -> None:
        """Add a report."""
        self.acknowledged.clear()
        self._reports.append(report)
        self.next_number += 1

    async def read(self, first: int, limit: int) -> Sequence[Report]:
        """See seams.ReportLog."""
        start = first - self.first_number
        return self._reports[start : start + limit]

    async def acknowledge(self, through: int) -> None:
        """See seams.ReportLog."""
        del self._reports[: max(0, through + 1 - self.first_number)]
        self.first_number = max(self.first_number, through + 1)
        self.acknowledged.set()

    async def restart(self) -> None:
        """See seams.ReportLog."""
        msg = "nothing is restored in this benchmark"
        raise RuntimeError(msg)


class BenchSink:
    """Holds what it is given, and tells when it has settled."""

    def __init__(self) -> None:
        """Hold nothing."""
        self.resources: dict[ResourceKey, Resource] = {}
        self.is_open, self.is_settled = asyncio.Event(), asyncio.Event()
        self.is_closed = asyncio.Event()
        self.openings, self.ended_by = 0, ""

    def held(self) -> Sequence[HeldResource]:
        """See seams.ResourceSink."""
        return [HeldResource(each.key, each.version, each.digest) for each in self.resources.values()]

    async def apply(self, changed: Sequence[Resource], removed: Sequence[ResourceKey]) -> Sequence[Rejection]:
        """See seams.ResourceSink."""
        self.resources |= {each.key: each for each in changed}
        for key in removed:
            self.resources.pop(key, None)
        return ()

    async def connected(self) -> None:
        """See seams.ResourceSink."""
        self.is_closed.clear()
        self.is_open.set()
        self.openings += 1

    async def settled(self) -> None:
        """See seams.ResourceSink."""
        self.is_settled.set()

    async def disconnected(self, reason: str) -> None:
        """See seams.ResourceSink."""
        self.ended_by = reason
        self.is_open.clear()
        self.is_settled.clear()
        self.is_closed.set()


class BenchRegistry:
    """Wants one order of every child, and counts reports by child and number."""

    epoch = "bench"

    def __init__(self) -> None:
        """Know nothing."""
        self.applied: set[bytes] = set()
        self.twice = 0
        self._cursors: dict[str, int] = {}

    async def admit(self, child: NodeId, hello: Hello) -> int:
        """See seams.ChildRegistry."""
        del hello
        return self._cursors.get(child.path, 0)

    async def apply_reports(
        self, child: NodeId, incarnation: str, first_number: int, reports: Sequence[Report]
    ) -> None:
        """See seams.ChildRegistry."""
        del incarnation
        for report in reports:
            self.twice += report.body in self.applied
            self.applied.add(report.body)
        self._cursors[child.path] = first_number + len(reports) - 1

    def desired(self, child: NodeId) -> Mapping[ResourceKey, Resource]:
        """See seams.ChildRegistry."""
        del child
        return {ORDER.key: ORDER}

    async def verdict(self, child: NodeId, accepted: Sequence[Resource], rejected: Sequence[Rejection]) -> None:
        """See seams.ChildRegistry."""

    async def status(self, child: NodeId, entries: Sequence[StatusEntry]) -> None:
        """See seams.ChildRegistry."""

    async def answer(self, child: NodeId, kind: str, body: bytes) -> bytes:
        """See seams.ChildRegistry."""
        del child, kind
        return body

    async def child_connected(self, child: NodeId, hello: Hello) -> None:
        """See seams.ChildRegistry."""

    async def child_disconnected(self, child: NodeId, reason: str) -> None:
        """See seams.ChildRegistry."""
