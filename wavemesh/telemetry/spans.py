"""One trace per wave and device: who belongs to it, and what its spans are called. Pure.

Nobody is told a trace: every tier derives it. The trace id is the first 16 bytes of SHA-256 over (tag, fleet, wave,
device), a span's id the first 8 over (tag, trace, what makes its unit of work unique). So

* a tier that was dark finds the same trace as everybody else, without a context that would have had to reach it;
* a unit of work told twice, by a process that was killed in between, is the same span twice and not two spans;
* a span can name another one as its parent or link from what is signed already: a permit's generation, a lease's id, an
  outcome's attempt and sequence. No message carries a trace context, and none could be forged.

Ids are no secret and no proof: they say what belongs together, never who said it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

TRACE_ID_BYTES = 16
SPAN_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace of one device (its path) in one wave."""

    fleet: str
    wave_id: str
    device: str

    @property
    def trace_id(self) -> bytes:
        """16 bytes, the same at every tier."""
        return _digest("wavemesh.trace.v1", self.fleet, self.wave_id, self.device)[:TRACE_ID_BYTES]

    def unit(self, *names: str | int) -> bytes:
        """Id of the span of a unit of work; ``names`` say which: its kind first, then what makes it unique."""
        return _digest("wavemesh.span.v1", self.fleet, self.wave_id, self.device, *names)[:SPAN_ID_BYTES]

    def root(self) -> bytes:
        """The span in which control planned the wave: the ancestor of all others."""
        return self.unit("control.plan")

    def permit(self, generation: int) -> bytes:
        """The span in which control issued that generation of the device's permit."""
        return self.unit("control.permit", generation)

    def lease(self, lease_id: str) -> bytes:
        """The span in which the store hub granted that lease."""
        return self.unit("storehub.lease", lease_id)

    def outcome(self, signer: str, attempt: int, sequence: int) -> bytes:
        """The span that ended in that outcome, by the path of the node that signed it."""
        return self.unit("outcome", signer, attempt, sequence)


@dataclass(frozen=True, slots=True)
class Span:
    """One unit of work, over.

    ``parent_id`` is empty for the root. ``gate`` is the gate that decided, if one did; ``error`` says for people why
    the work failed, and is empty if it did not. ``links`` are ids of spans of the same trace that this one acted on,
    where they may lie hours or days back.
    """

    trace: Trace
    span_id: bytes
    parent_id: bytes
    name: str
    began_at: datetime
    ended_at: datetime
    gate: str = ""
    error: str = ""
    attributes: Mapping[str, str | int] = field(default_factory=dict)
    links: tuple[bytes, ...] = ()


def trace_id_of(fleet: str, wave_id: str, device: str) -> str:
    """A trace id as people read it, 32 hex digits; empty without a wave."""
    return Trace(fleet, wave_id, device).trace_id.hex() if wave_id else ""


def _digest(*names: str | int) -> bytes:
    return hashlib.sha256(json.dumps(names, separators=(",", ":")).encode()).digest()
