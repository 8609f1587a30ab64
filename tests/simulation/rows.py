"""What control keeps of waves, and what it is to its regions' sessions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from control.ledger import Outcome
from control.permits import Issue, StoreShare
from tests.simulation.engine import EPOCH
from tests.simulation.words import Trust, decode
from wavemesh.trust.statements import (
    DeviceStatus,
    Hold,
    HubStatus,
    WaveState,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from tests.simulation.controls import Control
    from wavemesh.identity.nodes import NodeId
    from wavemesh.policy.document import Policy
    from wavemesh.session.frames import Hello, Report, Resource, ResourceKey, StatusEntry
    from wavemesh.trust.statements import DeviceOutcome

ATTEMPTS = 3


@dataclass
class Wave:
    """A wave and what control knows of it; ``state`` is never PAUSED."""

    wave_id: str
    release: str
    policy: Policy
    policy_digest: str
    targets: dict[str, tuple[str, ...]]
    expires_at: datetime
    planned_at: datetime
    state: WaveState = WaveState.PLANNED
    generation: int = 1
    reason: str = ""
    ended_at: datetime | None = None
    closed_at: datetime | None = None
    pauses: dict[str, str] = field(default_factory=dict)
    paused_at: dict[str, datetime] = field(default_factory=dict)
    pauses_taken: tuple[str, ...] = ()
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    issues: dict[str, Issue] = field(default_factory=dict)

    @property
    def shown_state(self) -> WaveState:
        """The state with pauses counted in."""
        return WaveState.PAUSED if self.state is WaveState.RUNNING and self.pauses else self.state

    @property
    def devices(self) -> tuple[str, ...]:
        """All target devices."""
        return tuple(device for devices in self.targets.values() for device in devices)

    def share(self, store: str) -> StoreShare:
        """One store's share."""
        return StoreShare(self.targets.get(store, ()), self.issues, self.outcomes, ATTEMPTS)

    def firmware(self, trust: Trust) -> Any:
        """The digest that the wave brings."""
        firmware = trust.known[self.release].firmware
        return None if firmware is None else firmware.digest


@dataclass
class Rows:
    """Everything durable at control."""

    epoch: str
    counter: int = 0
    resources: dict[tuple[str, ResourceKey], Resource] = field(default_factory=dict)
    cursors: dict[tuple[str, str], int] = field(default_factory=dict)
    waves: dict[str, Wave] = field(default_factory=dict)
    bound: dict[str, str] = field(default_factory=dict)
    hold_epoch: int = 1
    holds: tuple[Hold, ...] = ()
    holds_signed_at: datetime = EPOCH
    intents: set[str] = field(default_factory=set)
    runs: dict[str, str] = field(default_factory=dict)


def ranked_of(outcome: DeviceOutcome, payload: bytes, *, by_device: bool) -> Outcome:
    """What the ledger must know of it."""
    return Outcome(
        outcome.device,
        outcome.attempt,
        outcome.sequence,
        outcome.kind,
        outcome.gate,
        by_device,
        hashlib.sha256(payload).hexdigest(),
    )


class Registry:
    """The ChildRegistry of control."""

    def __init__(self, control: Control) -> None:
        self._control = control

    @property
    def epoch(self) -> str:
        return self._control.rows.epoch

    async def admit(self, child: NodeId, hello: Hello) -> int:
        return self._control.rows.cursors.get((child.path, hello.incarnation), 0)

    async def apply_reports(self, child: NodeId, incarnation: str, first: int, reports: Sequence[Report]) -> None:
        self._control.apply_reports(child, incarnation, first, reports)

    def desired(self, child: NodeId) -> Mapping[ResourceKey, Resource]:
        return self._control.desired(child.path)

    async def verdict(self, child: NodeId, accepted: Sequence[Resource], rejected: Sequence[Any]) -> None:
        for one in rejected:
            self._control.note("region-refused", f"{one.key.type}/{one.key.name}: {one.gate}")

    async def status(self, child: NodeId, entries: Sequence[StatusEntry]) -> None:
        control = self._control
        for entry in entries:
            parts = entry.key.split("/")
            if entry.body is None or parts[0] != "store":
                continue
            store = f"{child.path}/store/{parts[1]}"
            if parts[2:] == ["hub"] and store in control.stores:
                status = decode(HubStatus, entry.body)
                if status.incarnation and control.rows.bound.get(store) != status.incarnation:
                    control._begin_commit()
                    control.hub_reported(store, status.incarnation)
                    control.committed()
            elif len(parts) == 4:
                device = decode(DeviceStatus, entry.body)
                control.rows.runs[device.device] = device.firmware_sha256

    async def child_connected(self, child: NodeId, hello: Hello) -> None:
        return

    async def child_disconnected(self, child: NodeId, reason: str) -> None:
        return
