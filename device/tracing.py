"""The device's side of its traces: spans ride in the state document, in the write of the step that they tell of.

No file, thread or timer of its own: an idle device has no spans and pays nothing. They are encoded when their step ends
and leave the document once the hub has them. The document takes MAX_BATCHES and MAX_BYTES of them; beyond that the
oldest go and are counted. A program's incarnation is new at each start, so a restored device never gives an old number
to new spans.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from device.state import Document, StoredBatch
from device.steps import Check, Here, next_step, spans_of
from wavemesh.telemetry import otlp
from wavemesh.telemetry.batches import Pending, TelemetryBatch, one_upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from device.config import Telemetry
    from device.gates.findings import Finding
    from device.progress import Progress
    from device.steps import Said
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.telemetry.spans import Span

MAX_BATCHES = 128
MAX_BYTES = 128 * 1024
MAX_CHECKS = 32


class Tracing:
    """Turns changes of the document into spans, and gives them to the upload (``shipping.Source``)."""

    def __init__(self, node: NodeId, clock: Clock, config: Telemetry) -> None:
        """Start a new incarnation."""
        self._node = node
        self._clock = clock
        self._enabled = config.enabled
        self._incarnation = secrets.token_hex(16)
        self._number = 0
        self._checks: list[Check] = []
        self._has_news = asyncio.Event()
        self._document: Callable[[], Document] | None = None
        self._commit: Callable[[Document], None] | None = None

    def attach(self, document: Callable[[], Document], commit: Callable[[Document], None]) -> None:
        """Learn where spans are kept; what a former run left goes up first."""
        self._document, self._commit = document, commit
        if document().spans:
            self._has_news.set()

    # -- in -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """A part of the present step that passes, unless its block raises."""
        began_at = self._clock.now()
        yield
        self._note(Check(name, began_at, self._clock.now()))

    @contextmanager
    def probing(self, gate: str) -> Iterator[list[Finding]]:
        """A part of the present step that is a probe; the block says what it found."""
        began_at = self._clock.now()
        found: list[Finding] = []
        yield found
        failed = found and not found[-1].passes
        error = found[-1].evidence if failed else ""
        self._note(Check(f"check {gate}", began_at, self._clock.now(), gate if failed else "", error))

    def _note(self, check: Check) -> None:
        """In memory until the step ends: a step that is cut short begins its checks anew."""
        if self._enabled and len(self._checks) < MAX_CHECKS:
            self._checks.append(check)

    def traced(self, document: Document, after: Progress, said: Said | None, boot_id: str, slot: str) -> Document:
        """The document with the spans that end when ``after`` is durable, and the step that goes on or begins."""
        if not self._enabled:
            return document
        here = Here(self._node, self._clock.now(), boot_id, slot)
        step = next_step(document.step, after, here)
        spans = spans_of(document.step, after, said, self._checks, here)
        if step is not document.step:
            self._checks.clear()
        return self._kept(replace(document, step=step), spans)

    def told(self, document: Document, about: Progress, said: Said, boot_id: str, slot: str) -> Document:
        """The document with the span of an outcome that no step belongs to."""
        if not self._enabled:
            return document
        here = Here(self._node, self._clock.now(), boot_id, slot)
        return self._kept(document, spans_of(None, about, said, (), here))

    def _kept(self, document: Document, spans: Sequence[Span]) -> Document:
        by_wave: dict[str, list[Span]] = {}
        for span in spans:
            by_wave.setdefault(span.trace.wave_id, []).append(span)
        for same in by_wave.values():
            self._number += 1
            batch = StoredBatch(self._incarnation, self._number, otlp.encode(self._node, same))
            document = bounded(replace(document, spans=(*document.spans, batch)))
        if spans:
            self._has_news.set()
        return document

    # -- out ----------------------------------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Return when there may be something to send."""
        await self._has_news.wait()

    async def pending(self, most: int) -> Pending | None:
        """The oldest spans, as many as fit into one upload."""
        document = self._document() if self._document is not None else None
        if document is None or not document.spans:
            self._has_news.clear()
            return None
        own = self._node.path
        batches = one_upload(
            tuple(TelemetryBatch(own, one.incarnation, one.number, one.body) for one in document.spans[:most])
        )
        first = document.spans_first
        return Pending(batches, tuple(range(first, first + len(batches))), document.spans_dropped)

    async def sent(self, through: int) -> None:
        """The hub has spans up to number ``through``."""
        if self._document is None or self._commit is None:
            return
        document = self._document()
        settled = min(through + 1 - document.spans_first, len(document.spans))
        if settled > 0:
            self._commit(replace(document, spans=document.spans[settled:], spans_first=document.spans_first + settled))


def bounded(document: Document) -> Document:
    """Without the oldest spans beyond the bounds; they count as dropped."""
    surplus, total = 0, sum(len(one.body) for one in document.spans)
    while len(document.spans) - surplus > MAX_BATCHES or total > MAX_BYTES:
        total -= len(document.spans[surplus].body)
        surplus += 1
    return replace(
        document,
        spans=document.spans[surplus:],
        spans_first=document.spans_first + surplus,
        spans_dropped=document.spans_dropped + surplus,
    )
