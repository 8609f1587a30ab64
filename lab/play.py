"""Plays a scenario's wave on a lab that is set up: starts everything, strikes whom the plan says, waits for the end.

What has happened is known from the boards' records alone; the operator API tells when every ledger is final.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from edgectl.contexts import save_contexts
from edgectl.plain import plain
from lab import operations, processes
from lab.expectations import expect
from lab.injectors import tell_supervisor, tell_wan
from lab.policies import RELEASE
from lab.scenario import Ending
from lab.story import Watch
from lab.topology import COHORT, WAVE, device_id
from lab.up import prepare, start_servers
from wavemesh.errors import WavemeshError
from wavemesh.trust.statements import IntentKind, OperatorIntent
from wavemesh.v1.report_pb2 import OUTCOME_KIND_UPDATED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lab.scenario import Scenario
    from lab.story import Story
    from lab.topology import Lab
    from wavemesh.v1.operator_pb2 import LedgerEntry

WAVE_TIMEOUT_S = 100.0
OUTAGE_LEAST_S = 4.0
OUTAGE_MOST_S = 45.0
_POLL_S = 0.2
_LEDGER_EVERY_S = 1.0


class Outage:
    """The WAN outage of a scenario: cut when its time has come, restored once the store went on without it."""

    def __init__(self, lab: Lab, scenario: Scenario, story: Story) -> None:
        """Nothing is cut yet."""
        self._lab = lab
        self._scenario = scenario
        self._story = story
        self._store = scenario.outage.store
        self._sound = [d for d in lab.stores[self._store] if scenario.expected[d].ending is Ending.UPDATED]
        self._committed_before: set[str] = set()
        self._cut_s = 0.0
        self._cut_at: datetime | None = None
        self.is_over = False

    def drive(self, watch: Watch) -> None:
        """Cut or restore, if it is time."""
        if self.is_over:
            return
        if self._cut_at is None:
            plan = self._scenario.outage
            if sum(plan.step in watch.reached[device] for device in self._sound) >= plan.devices:
                self._cut(watch)
        elif self._went_on(watch):
            self._restore(self._cut_at)

    def _committed(self, watch: Watch) -> set[str]:
        return {device for device in self._sound if "state:COMMITTED" in watch.reached[device]}

    def _cut(self, watch: Watch) -> None:
        tell_wan(self._lab, "cut", self._store)
        self._cut_at, self._cut_s = datetime.now(UTC), time.monotonic()
        self._story.tell_news(watch)
        self._committed_before = self._committed(watch)
        self._story.tell("wan", f"{self._store} is cut off")

    def _went_on(self, watch: Watch) -> bool:
        lasted_s = time.monotonic() - self._cut_s
        went_on = bool(self._committed(watch) - self._committed_before) and lasted_s >= OUTAGE_LEAST_S
        return went_on or lasted_s >= OUTAGE_MOST_S

    def _restore(self, cut_at: datetime) -> None:
        entries = operations.ledger(self._lab, self._store, WAVE).entries
        known = sum(entry.kind == OUTCOME_KIND_UPDATED for entry in entries)
        words = f"asks {self._store}'s hub for its ledger, in the dark: {known} of {len(entries)} updated"
        self._story.tell("alice", words)
        restored_at = datetime.now(UTC)
        tell_wan(self._lab, "restore", self._store)
        self._story.tell("wan", f"{self._store} is back")
        expect(self._lab, self._scenario, cut_at, restored_at)
        self.is_over = True


def play_wave(lab: Lab, scenario: Scenario, story: Story, disturb: Callable[[Watch], None] | None = None) -> None:
    """Play it to the end, or until WAVE_TIMEOUT_S is over; ``disturb`` is called at each look. Raises WavemeshError."""
    start_servers(lab)
    story.tell("lab", "control, super hub, two store hubs, origin and WAN are up")
    prepare(lab)
    story.tell("control", f"policy accepted; {RELEASE.name}, signed by 2 of 3 keys, published; wave {WAVE} planned")
    save_contexts(lab.contexts_path, operations.contexts(lab))
    processes.start(lab, lab.devices)
    operations.wait_connected(lab)
    story.tell("lab", f"{len(lab.devices)} devices are connected")
    for cut in (scenario.write_cut, scenario.swap_cut):
        tell_supervisor(lab, cut.device, f"power-cut-at {cut.step}")
    start = OperatorIntent("demo-start", IntentKind.START_WAVE, datetime.now(UTC), wave_id=WAVE, cohort=COHORT)
    operations.give(lab, "control", start)
    story.tell("alice", f"starts wave {WAVE}")
    _follow(lab, scenario, story, disturb)


def _follow(lab: Lab, scenario: Scenario, story: Story, disturb: Callable[[Watch], None] | None) -> None:
    """Tell what happens and do what is due, until control's ledger is final."""
    watch, outage = Watch(lab), Outage(lab, scenario, story)
    asked_s, deadline_s = 0.0, time.monotonic() + WAVE_TIMEOUT_S
    while time.monotonic() < deadline_s:
        story.tell_news(watch)
        outage.drive(watch)
        if disturb is not None:
            disturb(watch)
        if outage.is_over and time.monotonic() - asked_s >= _LEDGER_EVERY_S:
            asked_s = time.monotonic()
            if _is_final(lab, scenario):
                story.tell("control", "the ledgers agree; the wave is through")
                return
        time.sleep(_POLL_S)
    story.tell("lab", f"the wave is not through after {WAVE_TIMEOUT_S:.0f} s")


def _is_final(lab: Lab, scenario: Scenario) -> bool:
    """Whether control and every hub know how each device ended, and agree."""
    try:
        control = _entries(operations.ledger(lab, "control", WAVE).entries)
        hubs: dict[str, tuple[str, str, int]] = {}
        for store in lab.stores:
            hubs |= _entries(operations.ledger(lab, store, WAVE).entries)
    except WavemeshError:
        return False
    wanted = {
        device_id(lab.store_of(name), name).path: expected.ending.value for name, expected in scenario.expected.items()
    }
    return control == hubs and {path: kind for path, (kind, _, _) in control.items()} == wanted


def _entries(entries: Iterable[LedgerEntry]) -> dict[str, tuple[str, str, int]]:
    found = [plain(entry) for entry in entries]
    return {entry["device"]: (entry["kind"], entry["gate"], entry["attempt"]) for entry in found}
