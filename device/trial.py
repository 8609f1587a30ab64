"""TRIAL: the new slot proves its health, within its budget, or goes.

Order: the lease had not lapsed when the trial began; the boot probe, the peripheral checks and the vendor probes pass,
each tried again until ``probe_settle_s`` after the start, because drivers take their time; then a signed ping is
acknowledged by the policy's authority, together with the hub's word that the wave is not halted. A clock that is not
trusted yet judges no lease: that is judged again with each acknowledgement, for control's confirms a clock; one that
stays untrusted to the end proves nothing about the release (``clock``, inconclusive).

The budget is the policy's rollbackOnHealthLossMins by the monotonic clock of this boot, an agent's restart included.
One gate decides: the first that failed for good, ``boot-timer`` when the probes did not finish, ``health-authority``
when only the acknowledgement is missing (inconclusive if the hub signed that the authority is down), ``attestation``
when the authority refuses what the TPM quotes, or the TPM does not answer.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from device.health import HALTED, PingEnd
from device.probes import peripheral_gates, vendor_gates
from device.progress import Event, Healthy, Unhealthy
from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.trust.freshness import check_not_expired
from wavemesh.trust.statements import OutcomeKind

if TYPE_CHECKING:
    from device.equipment import Equipment
    from device.health import PingResult
    from device.progress import Progress, Target

PROBE_RETRY_S = 0.5
PING_RETRY_S = 1.0


class Trial:
    """The work of one TRIAL."""

    def __init__(self, equipment: Equipment, target: Target, progress: Progress) -> None:
        """``progress`` says when the trial began and when its lease ends."""
        self._equipment = equipment
        self._target = target
        self._progress = progress
        self._last_ping: PingResult | None = None
        self._probed = False
        self._untimed: GateError | None = None

    async def run(self) -> Event:
        """Healthy, or unhealthy by one gate."""
        lapsed = self.judge_lease()
        if lapsed is not None:
            return lapsed
        try:
            async with asyncio.timeout(max(0.0, self._target.rules.rollback_on_health_loss_s - self._elapsed_s)):
                return await self._probe() or await self._ping()
        except TimeoutError:
            return self.out_of_time()

    @property
    def _elapsed_s(self) -> float:
        return self._equipment.clock.monotonic() - self._progress.trial_began_s

    def judge_lease(self) -> Unhealthy | None:
        """What a lapsed lease means; None too as long as the clock cannot tell, which ``_untimed`` remembers."""
        expires_at, clock = self._progress.lease_expires_at, self._equipment.clock
        try:
            self._equipment.check_time()
        except GateError as error:
            self._untimed = error
            return None
        self._untimed = None
        try:
            if expires_at is not None and self._progress.trial_boot_id == self._equipment.record.boot_id:
                began_at = clock.now() - timedelta(seconds=self._elapsed_s)
                check_not_expired(Gate.LEASE_EXPIRED, "the lease of this trial", expires_at, began_at)
        except GateError as error:
            return _inconclusive(error)
        return None

    async def _probe(self) -> Unhealthy | None:
        rules = self._target.rules
        boot = ((Gate.BOOT_PROBE.value, rules.boot_probe),) if rules.boot_probe else ()
        probes = (*boot, *peripheral_gates(rules.peripheral_checks), *vendor_gates(rules.vendor_probes))
        for gate, command in probes:
            failure = await self._settle(gate, command)
            if failure is not None:
                return failure
        self.probed()
        return None

    def probed(self) -> None:
        """All probes passed."""
        self._probed = True

    async def _settle(self, gate: str, command: str) -> Unhealthy | None:
        """Try one probe until it passes or the time to settle is over."""
        until_s = self._progress.trial_began_s + self._equipment.config.timing.probe_settle_s
        while True:
            with self._equipment.tracing.probing(gate) as found:
                finding = await self._equipment.probes.run(gate, command)
                found.append(finding)
            if finding.passes:
                self._equipment.log.note(f"trial: {gate} passes")
                return None
            if self._equipment.clock.monotonic() >= until_s:
                gate, evidence, observed, required = finding.words
                return Unhealthy(gate, evidence, OutcomeKind.ROLLED_BACK, observed, required)
            await asyncio.sleep(PROBE_RETRY_S)

    async def _ping(self) -> Event:
        interval_s = min(self._equipment.config.timing.ping_interval_s, PING_RETRY_S)
        while True:
            with self._equipment.tracing.check("ping"):
                result = await self._equipment.health.ping(
                    self._target.wave_id,
                    self._target.rules.health_authority,
                    self._equipment.record,
                    self._equipment.facts(),
                )
            found = self.heard(result)
            if found is not None:
                return found
            await asyncio.sleep(interval_s)

    def heard(self, result: PingResult) -> Event | None:
        """What a ping decides; None when it decides nothing."""
        if result.lease_state == HALTED:
            said = "the hub says that the wave is halted"
            return Unhealthy(Gate.HALTED.value, said, OutcomeKind.INCONCLUSIVE, "halted", "running")
        if result.end is PingEnd.REFUSED:
            wanted = "a quote that the authority accepts"
            return Unhealthy(result.gate, result.detail, OutcomeKind.ROLLED_BACK, result.detail, wanted)
        if result.end is PingEnd.ACKNOWLEDGED:
            lapsed = self.judge_lease() if self._untimed is not None else None
            if lapsed is not None or self._untimed is None:
                self._equipment.log.note(f"trial: health {result.detail}")
                return lapsed or Healthy()
        if self._last_ping is None or self._last_ping.detail != result.detail:
            self._equipment.log.alert(f"trial: health ping: {result.detail}")
        self._last_ping = result
        return None

    def out_of_time(self) -> Unhealthy:
        """What a budget that ran out means."""
        budget = f"{self._target.rules.rollback_on_health_loss_s:g} s"
        if not self._probed:
            evidence = f"probes did not finish within {budget}"
            return Unhealthy(
                Gate.BOOT_TIMER.value, evidence, OutcomeKind.ROLLED_BACK, "probes not finished", f"within {budget}"
            )
        last = self._last_ping
        if self._untimed is not None and last is not None and last.end is PingEnd.ACKNOWLEDGED:
            return _inconclusive(self._untimed)
        down = last is not None and last.end is PingEnd.AUTHORITY_DOWN
        detail = "no ping was answered" if last is None else last.detail
        verdict = OutcomeKind.INCONCLUSIVE if down else OutcomeKind.ROLLED_BACK
        gate = Gate.HEALTH_AUTHORITY.value if last is None else last.gate
        evidence = f"no acknowledgement within {budget}: {detail}"
        return Unhealthy(gate, evidence, verdict, "no acknowledgement", f"one within {budget}")


def _inconclusive(error: GateError) -> Unhealthy:
    return Unhealthy(error.gate, str(error), OutcomeKind.INCONCLUSIVE, error.observed, error.required)
