"""VERIFIED: everything that must hold at the moment of ARM, looked at again and again until all of it does.

Order: the wave runs and is not paused; a lease for the next attempt is here, with a permit that allows it, both
unexpired by a trusted clock; the view of holds and the trust metadata are fresh; the health authority answered within
the last 60 seconds, and does not refuse what the TPM quotes; the hardware gates and peripheral checks pass; and last,
nothing inhibits the reboot. What only needs time holds the update up (``Obstructed``) and keeps the device VERIFIED;
what the hardware or the permit says against it refuses. One gate is waited for up to ``timing.pause_bound_s``, an
inhibited reboot up to its own bound; then it refuses, so that evidence goes up. Whose turn it
is, is the hub's business and waited for without a bound.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from device.gates.local import Moment
from device.health import PingEnd, PingResult
from device.orders import may_arm
from device.progress import Cleared, Event, GateRefused, Obstructed, Unobstructed
from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.trust.freshness import check_not_expired
from wavemesh.trust.holds import check_hold_view
from wavemesh.trust.metadata import check_expiry
from wavemesh.trust.statements import IntentKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from device.belief import Grant
    from device.equipment import Equipment
    from device.progress import Target
    from wavemesh.trust.statements import Digest, HoldList

HEALTH_FRESH_S = 60.0
# The hub's word that keeps a device from ARM even with a lease in hand.
_STOPPED = frozenset({"paused", "halted"})


class _Waiting(Exception):  # noqa: N818  # not an error: what is still missing
    """Something needs time; ``gate`` is empty when it is simply not our turn."""

    def __init__(self, gate: str, evidence: str, observed: str = "", required: str = "") -> None:
        super().__init__(evidence)
        self.gate = gate
        self.observed = observed
        self.required = required


class Clearance:
    """The work of one VERIFIED."""

    def __init__(
        self, equipment: Equipment, target: Target, attempt: int, post: Callable[[Event], None], changed: asyncio.Event
    ) -> None:
        """``attempt`` is the one to burn next; ``post`` takes what holds it up; ``changed``: resources changed."""
        self._equipment = equipment
        self._target = target
        self._attempt = attempt
        self._post = post
        self._changed = changed
        self._answered_at_s: float | None = None
        self._last_ping = PingResult(PingEnd.NOTHING, detail="not asked yet")
        self._lease_state = ""
        self._inhibited_since_s: float | None = None
        self._shown = ""
        self._shown_since_s = 0.0

    async def run(self) -> Event:
        """Wait until ARM is cleared or refused."""
        async with asyncio.TaskGroup() as group:
            pinging = group.create_task(self._keep_pinging())
            try:
                return await self._wait()
            finally:
                pinging.cancel()

    async def _wait(self) -> Event:
        while True:
            self._changed.clear()
            found = await self.look()
            if found is not None:
                return found
            try:
                async with asyncio.timeout(self._equipment.config.timing.gate_interval_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def look(self) -> Event | None:
        """One look: cleared, refused, or None as long as something needs time."""
        try:
            return await self._clear()
        except GateError as error:
            return GateRefused(error.gate, str(error), error.observed, error.required)
        except _Waiting as waiting:
            self._show(waiting)
            if not self._is_overdue():
                return None
            evidence = f"waited {self._equipment.config.timing.pause_bound_s:g} s: {waiting}"
            return GateRefused(waiting.gate, evidence, waiting.observed, waiting.required)

    def heard(self, result: PingResult) -> None:
        """What a ping came to."""
        self._last_ping = result
        self._lease_state = result.lease_state
        if result.end is PingEnd.ACKNOWLEDGED:
            self._answered_at_s = self._equipment.clock.monotonic()

    async def _clear(self) -> Cleared:
        """Raises _Waiting for what needs time, GateError for what refuses."""
        self._check_leave()
        self._check_fresh()
        self._check_authority()
        await self._check_inhibited()
        with self._equipment.tracing.check("clearance"):
            return await self._clear_hardware()

    async def _clear_hardware(self) -> Cleared:
        """Raises the same; the last looks before ARM."""
        finding = await self._equipment.gates.refusal(self._target, Moment.ARM)
        if finding is not None:
            raise GateError(finding.gate, finding.evidence, observed=finding.observed, required=finding.required)
        # The probes took their time: what may have changed meanwhile is looked at again, the reboot's inhibition last.
        grant = self._check_leave()
        await self._check_inhibited()
        return Cleared(self._attempt, grant.lease.expires_at, grant.lease.lease_id, grant.permit.generation)

    def _check_leave(self) -> Grant:
        """The wave's leave: order, lease, permit, by a trusted clock."""
        target, sink, now = self._target, self._equipment.sink, self._equipment.clock.now()
        order = next((order for order in sink.orders() if order.wave_id == target.wave_id), None)
        if order is None or not may_arm(order) or self._lease_state in _STOPPED:
            raise _Waiting("", "the wave is paused or its order is not here")
        with _waits():
            self._equipment.check_time()
            check_not_expired(Gate.PERMIT, f"order of wave {target.wave_id}", target.expires_at, now)
        grant = sink.grant(target.wave_id)
        if grant is None or grant.lease.attempt != self._attempt:
            raise _Waiting("", f"no lease for attempt {self._attempt} yet")
        with _waits():
            check_not_expired(Gate.LEASE_EXPIRED, "the lease", grant.lease.expires_at, now)
        permit = grant.permit
        check_not_expired(Gate.PERMIT, "the permit", permit.expires_at, now)
        if permit.attempts < self._attempt:
            msg = f"the permit allows {permit.attempts} attempts, this would be number {self._attempt}"
            attempts = {"observed": f"attempt {self._attempt}", "required": f"at most {permit.attempts}"}
            raise GateError(Gate.PERMIT.value, msg, **attempts)
        if permit.firmware != target.firmware and not self._runs(permit.firmware):
            msg = "the permit is for other firmware than the release has"
            raise GateError(Gate.PERMIT.value, msg)
        lost = self._equipment.store.document.burns_unknown_before
        if lost is not None and permit.issued_at <= lost:
            msg = f"the record of burned attempts was lost at {lost.isoformat()}; only a permit issued later counts"
            raise GateError(Gate.PERMIT.value, msg)
        return grant

    def _runs(self, firmware: Digest | None) -> bool:
        """Whether a permit's firmware runs already, so that only the config is left to do."""
        running = self._equipment.facts().firmware_sha256
        return self._target.firmware is None and firmware is not None and firmware.sha256 == running

    def _check_fresh(self) -> None:
        sink, now = self._equipment.sink, self._equipment.clock.now()
        if sink.trusted is None:
            raise _Waiting(Gate.FRESHNESS.value, "trust metadata is not held")
        with _waits():
            check_expiry(sink.trusted, now, self._target.release)
            check_hold_view(self._holds(), now, timedelta(seconds=self._target.rules.hold_max_age_s))

    def _holds(self) -> HoldList | None:
        """The view of holds; an operator's signed override makes it as young as the override, never younger."""
        holds = self._equipment.sink.belief.holds
        store = self._equipment.node_id.path.rsplit("/", 3)[-3]
        overrides = [
            intent.issued_at
            for intent in self._equipment.sink.intents()
            if intent.kind is IntentKind.OVERRIDE_HOLD_AGE
            and (not intent.stores or store in intent.stores)
            and intent.wave_id in {"", self._target.wave_id}
        ]
        return None if holds is None else replace(holds, issued_at=max([holds.issued_at, *overrides]))

    def _check_authority(self) -> None:
        last = self._last_ping
        if last.end is PingEnd.REFUSED:
            raise GateError(last.gate, last.detail)
        answered = self._answered_at_s
        if answered is None or self._equipment.clock.monotonic() - answered > HEALTH_FRESH_S:
            bound = f"within {HEALTH_FRESH_S:g} s"
            evidence = f"no answer of authority {self._target.rules.health_authority!r} {bound}: {last.detail}"
            raise _Waiting(last.gate, evidence, "no answer", f"one {bound}")

    async def _check_inhibited(self) -> None:
        finding = await self._equipment.gates.inhibited(self._target.rules)
        now_s = self._equipment.clock.monotonic()
        if finding.passes:
            self._inhibited_since_s = None
            return
        since_s = self._inhibited_since_s = now_s if self._inhibited_since_s is None else self._inhibited_since_s
        compared = {"observed": finding.observed, "required": finding.required}
        if now_s - since_s > self._equipment.config.timing.inhibit_bound_s:
            raise GateError(finding.gate, f"inhibited for {now_s - since_s:.0f} s: {finding.evidence}", **compared)
        raise _Waiting(finding.gate, finding.evidence, **compared)

    async def _keep_pinging(self) -> None:
        while True:
            result = await self._equipment.health.ping(
                self._target.wave_id,
                self._target.rules.health_authority,
                self._equipment.record,
                self._equipment.facts(),
            )
            self.heard(result)
            if result.end in {PingEnd.ACKNOWLEDGED, PingEnd.REFUSED}:
                self._changed.set()
                await asyncio.sleep(self._equipment.config.timing.ping_interval_s)
            else:
                await asyncio.sleep(min(self._equipment.config.timing.ping_interval_s, 1.0))

    def _show(self, waiting: _Waiting) -> None:
        gate, evidence = waiting.gate, str(waiting)
        if gate != self._shown:
            self._shown = gate
            self._shown_since_s = self._equipment.clock.monotonic()
            self._equipment.log.note(f"waits before ARM: {gate or 'turn'}: {evidence}")
            obstructed = Obstructed(gate, evidence, waiting.observed, waiting.required)
            self._post(obstructed if gate else Unobstructed())

    def _is_overdue(self) -> bool:
        """Whether one gate has held it up for too long. A turn is waited for; the inhibitor has a bound of its own."""
        if self._shown in {"", Gate.INHIBITED.value}:
            return False
        return self._equipment.clock.monotonic() - self._shown_since_s > self._equipment.config.timing.pause_bound_s


@contextmanager
def _waits() -> Iterator[None]:
    """What fails here needs time and refuses nothing."""
    try:
        yield
    except GateError as error:
        raise _Waiting(error.gate, str(error), error.observed, error.required) from error
