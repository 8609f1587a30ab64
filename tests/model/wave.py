"""What the permit scenarios are made of: what control and a hub keep, plots, and the names of the invariants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from storehub.swaps import Slot, Timing
from tests.model.swapping import TICK_S, Grant
from wavemesh.trust.statements import Permit, UpdateState, WaveState

if TYPE_CHECKING:
    from control.ledger import Outcome
    from control.permits import Issue

ATTEMPTS = 2
LIMIT = 1
MAXIMA_TICKS = 2
TIMING = Timing(lease_s=TICK_S, watchdog_s=TICK_S / 2, witness_s=0)
NEVER = 1.0

EXPOSED = "only devices named in outstanding permits can ARM, a halt not yet heard included (P6, permits)"
WRITTEN_OFF = "permits of another incarnation are written off before new ones are issued (permits)"
BATCH = "no more permits are outstanding than the batch allows (permits)"
ONE_SWAP = "never more than N devices inside a swap (H6)"
SETTLED = "at rest control, hub and device agree on each outcome (H7)"
INVARIANTS = (EXPOSED, WRITTEN_OFF, BATCH, ONE_SWAP, SETTLED)


@dataclass(frozen=True, slots=True)
class Control:
    """What control keeps of the wave and the hub."""

    state: WaveState = WaveState.RUNNING
    bound: str = ""
    issues: tuple[tuple[str, Issue], ...] = ()
    outcomes: tuple[tuple[str, Outcome], ...] = ()
    cursors: tuple[tuple[str, int], ...] = ()
    exposed_at_halt: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Hub:
    """What a store hub keeps, and (``present``) whom it hears now: device and whether its status came."""

    incarnation: str = "i0"
    since: int = -MAXIMA_TICKS
    order: WaveState = WaveState.RUNNING
    permits: tuple[tuple[str, Permit], ...] = ()
    slots: tuple[Slot, ...] = ()
    grants: tuple[tuple[str, Grant], ...] = ()
    words: tuple[tuple[str, Outcome], ...] = ()
    seen: tuple[tuple[str, UpdateState, int, int], ...] = ()
    log: tuple[Outcome | str, ...] = ()
    sent: int = 0
    present: tuple[tuple[str, bool], ...] = ()
    shown: int = 0


@dataclass(frozen=True, slots=True)
class PermitPlot:
    """What may happen: ``batch`` as the policy's permitBatch, any one of ``faults`` ("power", "hub", "restore-hub",
    "restore-control", "clone-hub"), up to ``ticks`` of the clock, and an operator's halt if ``halts``. Of a cloned hub
    each instance shows its incarnation ``shows`` times: each ends the other's session, and for ever shows nothing new.
    """

    batch: int | None
    faults: frozenset[str]
    ticks: int
    halts: bool = False
    shows: int = 2
    devices: tuple[str, ...] = ("d1", "d2")
