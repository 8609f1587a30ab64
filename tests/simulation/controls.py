"""Control: its pure rules (``rollout``, ``ledger``, ``permits``) over rows in memory.

``control/waves.py`` and ``control/reports.py`` speak SQL; what they do around the rules is mirrored here in the
smallest form: what a change publishes, when a wave is settled, what a hub's new incarnation means. A transaction is one
method: the node may crash before it and after it, never within.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from control import permits
from control.ledger import HUB_KINDS, HaltRule, Move, beats, decide
from control.permits import Issue
from control.rollout import Candidate, choose_cohort, choose_devices, name_of, region_of, wave_size
from storehub.intents import origin_of
from tests.simulation import regaining
from tests.simulation.links import FLEET
from tests.simulation.parents import Parent
from tests.simulation.rows import ATTEMPTS, Registry, Rows, Wave, ranked_of
from tests.simulation.words import MINT, Trust, decode, encode, node_of, sign
from wavemesh.errors import LocalError
from wavemesh.identity.nodes import NodeId, Role
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE, Policy
from wavemesh.session.frames import Answer, Resource, ResourceKey, ResourceVersion
from wavemesh.trust.kept import KEPT_KIND, KeptReport
from wavemesh.trust.statements import (
    DeviceOutcome,
    Envelope,
    Hold,
    HoldList,
    IntentKind,
    IntentReport,
    OperatorIntent,
    OutcomeReport,
    Pause,
    Permit,
    Signature,
    SnapshotReport,
    WaveClosed,
    WaveOrder,
    WaveState,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from tests.simulation.engine import World
    from tests.simulation.links import Stream
    from wavemesh.session.frames import Ask, Report

HALT_SETTLE_S = 3600.0
HOLD_RESIGN_S = 5 * 3600.0
EVERYBODY = ""
_ENDED = frozenset({WaveState.HALTED, WaveState.CLOSED})


class Control(Parent):
    """The one control."""

    def __init__(self, world: World, path: str, trust: Trust, regions: Sequence[str]) -> None:
        super().__init__(world, path)
        self.trust = trust
        self.regions = regions
        self.rows = Rows(MINT.name())
        self.devices: set[str] = set()
        self.stores: set[str] = set()
        self.was_restored = False
        self._dirty: set[str] = set()
        self._changed = False

    # -- life -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.serve(Registry(self))
        self._tick()

    def backup(self) -> Rows:
        """A copy of the database."""
        return copy.deepcopy(self.rows)

    def restore(self, rows: Rows) -> None:
        """Go on from a backup; halts that came after it are forgotten here, and only here."""
        self.rows = rows
        self.was_restored = True
        self.world.facts.forgot([wave for wave in rows.waves.values() if wave.state is not WaveState.HALTED])

    def do(self, work: Any, *arguments: Any) -> None:
        """One transaction of an operator, while control runs; it may crash before or after it."""
        if self.is_up:
            self.run(self._transact, work, arguments)

    def _transact(self, work: Any, arguments: tuple[Any, ...]) -> None:
        try:
            self._begin_commit()
        except LocalError:
            return
        work(*arguments)
        self.committed()

    def _begin_commit(self) -> None:
        self.step("commit")
        if self.disk_is_full:
            self.note("disk-full")
            raise LocalError("the disk is full")

    def committed(self) -> None:
        """What follows a commit: sessions are told."""
        for region in sorted(self._dirty):
            if region == EVERYBODY:
                self.downstream.changed()
            else:
                self.downstream.changed(region)
        self._dirty.clear()
        self.step("what follows the commit")

    def _tick(self) -> None:
        """What the clock brings: holds signed again, waves that expire or may be closed."""
        try:
            self._begin_commit()
        except LocalError:
            self.later(60.0, self._tick)
            return
        self.publish_trust()
        self.publish_holds()
        self.settle_all()
        self.committed()
        self.later(self._until_due(), self._tick)

    def _until_due(self) -> float:
        now = self.clock.now()
        times = [(self.rows.holds_signed_at - now).total_seconds() + HOLD_RESIGN_S]
        for wave in self.rows.waves.values():
            ends = [wave.expires_at]
            if wave.state is WaveState.HALTED and wave.ended_at is not None:
                ends.append(wave.ended_at + timedelta(seconds=HALT_SETTLE_S))
            times += [(end - now).total_seconds() + 0.5 for end in ends if wave.closed_at is None]
        return max(1.0, min(times))

    # -- publishing -------------------------------------------------------------------------------------------------

    def publish(
        self, scope: str, key: ResourceKey, content: bytes, audience: tuple[str, ...] = (), *, urgent: bool = False
    ) -> None:
        """``DesiredState.publish``: the same content keeps its version."""
        held = self.rows.resources.get((scope, key))
        if held is not None and (held.content, held.audience, held.urgent) == (content, audience, urgent):
            return
        self.rows.counter += 1
        version = ResourceVersion(self.rows.epoch, self.rows.counter)
        digest = hashlib.sha256(content).hexdigest()
        self.rows.resources[scope, key] = Resource(key, version, digest, content, audience, urgent)
        self._dirty.add(scope)

    def withdraw(self, scope: str, key: ResourceKey) -> None:
        """``DesiredState.withdraw``."""
        if self.rows.resources.pop((scope, key), None) is not None:
            self._dirty.add(scope)

    def desired(self, region: str) -> Mapping[ResourceKey, Resource]:
        """Everything a region should hold."""
        return {key: one for (scope, key), one in self.rows.resources.items() if scope in {EVERYBODY, region}}

    def publish_trust(self) -> None:
        """The TUF metadata."""
        self.publish(EVERYBODY, ResourceKey("tuf", "metadata"), encode(self.trust), urgent=True)

    def publish_holds(self) -> None:
        """The hold list, signed anew where that is due."""
        rows, now = self.rows, self.clock.now()
        if now - rows.holds_signed_at >= timedelta(seconds=HOLD_RESIGN_S):
            rows.holds_signed_at = now
        holds = HoldList(rows.hold_epoch, rows.holds, rows.holds_signed_at)
        self.publish(EVERYBODY, ResourceKey("holds", "fleet"), encode(sign(holds)), urgent=True)

    # -- what operators do ------------------------------------------------------------------------------------------

    def plan(self, wave_id: str, release: str, *, policy: Policy, percentage: int, expires_at: datetime) -> None:
        """Plan a wave over what the rules of rollout choose, and start it."""
        held = {device for wave in self.rows.waves.values() if wave.closed_at is None for device in wave.devices}
        firmware = self.trust.known[release].firmware
        wanted = firmware.digest.sha256 if firmware is not None else ""
        candidates = [
            Candidate(path, "pos", "rev-a", self.rows.runs.get(path) == wanted, "another" if path in held else "")
            for path in sorted(self.devices)
        ]
        cohort = choose_cohort("tills", "tills", candidates)
        size = wave_size(len(cohort.devices), percentage)
        targets = choose_devices(cohort, size=size, hub_budget=None, regions=frozenset())
        payload = encode(policy)
        digest = hashlib.sha256(payload).hexdigest()
        now = self.clock.now()
        wave = Wave(wave_id, release, policy, digest, dict(targets), expires_at, now)
        self.rows.waves[wave_id] = wave
        self.note("plans", f"{wave_id} {release} {len(wave.devices)} devices")
        self._publish_policy(wave)
        self._publish_orders(wave)

    def start_wave(self, wave_id: str) -> None:
        """Start a planned wave."""
        wave = self.rows.waves.get(wave_id)
        if wave is not None and wave.state is WaveState.PLANNED and not self.is_held(wave.release):
            wave.state = WaveState.RUNNING
            self.change(wave)
            self.settle(wave_id)

    def pause(self, wave_id: str, origin: str, reason: str) -> None:
        """Put an origin's pause in force."""
        wave = self.rows.waves.get(wave_id)
        if wave is not None and wave.state not in _ENDED and wave.pauses.get(origin) != reason:
            self.note("pauses", f"{wave_id} by {origin}")
            wave.pauses[origin], wave.paused_at[origin] = reason, self.clock.now()
            self.change(wave)

    def resume(self, wave_id: str, origin: str) -> None:
        """Lift an origin's pause."""
        wave = self.rows.waves.get(wave_id)
        if wave is not None and wave.state not in _ENDED and wave.pauses.pop(origin, None) is not None:
            self.note("resumes", f"{wave_id} by {origin}")
            self.change(wave)
            self.settle(wave_id)

    def halt(self, wave_id: str, reason: str) -> None:
        """Halt a wave for ever."""
        wave = self.rows.waves.get(wave_id)
        if wave is not None and wave.state not in _ENDED:
            self._halt(wave, reason)

    def hold(self, release: str, *, is_held: bool) -> None:
        """Put a release on hold, or lift that."""
        others = tuple(one for one in self.rows.holds if one.release != release)
        self.rows.holds = (*others, Hold(release, "", "as the night has it")) if is_held else others
        self.rows.hold_epoch += 1
        self.rows.holds_signed_at = self.clock.now()
        self.note("holds", f"epoch {self.rows.hold_epoch}: {[one.release for one in self.rows.holds]}")
        self.publish_holds()
        self.holds_changed(release)

    def holds_changed(self, release: str) -> None:
        """Open waves of that release need the new epoch."""
        for wave in list(self.rows.waves.values()):
            if wave.release == release and wave.state not in _ENDED:
                self.change(wave)
                self.settle(wave.wave_id)

    def revoke(self, release: str) -> None:
        """The release keys took a release back: their new metadata reached control."""
        self.trust = Trust(self.trust.version + 1, self.trust.known, self.trust.revoked | {release}, self.trust.expires)
        self.note("revokes", release)
        self.publish_trust()
        for wave in list(self.rows.waves.values()):
            if wave.release == release and wave.state not in _ENDED:
                self._halt(wave, f"release {release} was revoked")

    def roll_back(self, intent: OperatorIntent, operator: str) -> None:
        """An operator's intent for one device, passed on as signed."""
        key = ResourceKey("intent", intent.intent_id)
        content = encode(sign(intent, operator))
        self.publish(region_of(intent.device), key, content, (intent.device,), urgent=True)
        self.note("intent", f"{intent.kind.name} {intent.device}")

    def is_held(self, release: str) -> bool:
        """Whether a release may not be used now."""
        return self.trust.is_revoked(release) or any(one.release == release for one in self.rows.holds)

    # -- the life of a wave (control/waves.py) ----------------------------------------------------------------------

    def settle(self, wave_id: str) -> None:
        """Do what is due."""
        wave, now = self.rows.waves[wave_id], self.clock.now()
        if wave.closed_at is not None:
            return
        guardrails = wave.policy.guardrails
        decision = decide(
            state=wave.shown_state,
            targets=wave.devices,
            outcomes=wave.outcomes,
            attempts=ATTEMPTS,
            rule=HaltRule(guardrails.halt_rollback_ratio, guardrails.halt_min_outcomes),
            expires_at=wave.expires_at,
            now=now,
        )
        if decision.move is Move.HALT:
            self._halt(wave, decision.reason, is_by_itself=True)
        elif decision.move is Move.CLOSE:
            wave.state, wave.reason, wave.ended_at = WaveState.CLOSED, decision.reason, now
            self.close(wave)
        elif wave.shown_state is WaveState.RUNNING and not self.is_held(wave.release):
            self._issue(wave)
        elif (
            wave.state is WaveState.HALTED
            and wave.ended_at is not None
            and now >= min(wave.expires_at, wave.ended_at + timedelta(seconds=HALT_SETTLE_S))
        ):
            self.close(wave)

    def settle_all(self) -> None:
        """Settle every wave that is not closed."""
        for wave_id in list(self.rows.waves):
            self.settle(wave_id)

    def hub_reported(self, store: str, incarnation: str) -> None:
        """A store's hub shows its incarnation."""
        self.rows.bound[store] = incarnation
        for wave in list(self.rows.waves.values()):
            if store in wave.targets:
                self.settle(wave.wave_id)

    def hub_snapshot(self, store: str, incarnation: str) -> None:
        """A store's hub of a new incarnation has told all it holds."""
        for wave in self.rows.waves.values():
            if wave.closed_at is None and store in wave.targets:
                for device in permits.to_write_off(wave.share(store), incarnation):
                    wave.issues[device] = replace(wave.issues[device], written_off=True)
                    self.world.facts.written_off(wave.wave_id, device)
        self.hub_reported(store, incarnation)

    def _issue(self, wave: Wave) -> None:
        now = self.clock.now()
        for store in wave.targets:
            incarnation, share = self.rows.bound.get(store, ""), wave.share(store)
            batch = wave.policy.targets.permit_batch
            for device in permits.to_issue(share, hub_incarnation=incarnation, batch=batch):
                last = wave.issues.get(device)
                generation = last.generation + 1 if last else 1
                wave.issues[device] = Issue(device, generation, incarnation)
                permit = Permit(
                    wave.wave_id,
                    device,
                    ATTEMPTS,
                    generation,
                    wave.firmware(self.trust),
                    now,
                    wave.expires_at,
                    incarnation,
                )
                self.world.facts.permit_signed(permit)
                key = ResourceKey("permit", f"{wave.wave_id}/{name_of(store)}/{name_of(device)}")
                self.publish(region_of(store), key, encode(sign(permit)), (store,))

    def _halt(self, wave: Wave, reason: str, *, is_by_itself: bool = False) -> None:
        self.note("halts", f"{wave.wave_id}: {reason}")
        wave.state, wave.reason, wave.ended_at = WaveState.HALTED, reason, self.clock.now()
        self.world.facts.halted(wave, is_by_itself=is_by_itself)
        self.change(wave)
        self._withdraw_permits(wave)
        self.later(HALT_SETTLE_S + 1.0, self._tick)

    def close(self, wave: Wave) -> None:
        now = self.clock.now()
        self.note("closes", f"{wave.wave_id}: {wave.reason}")
        self.world.facts.closing(wave)
        wave.closed_at = now
        content = encode(sign(WaveClosed(wave.wave_id, wave.state, now)))
        for region in sorted({region_of(store) for store in wave.targets}):
            stores = tuple(sorted(store for store in wave.targets if region_of(store) == region))
            self.publish(region, ResourceKey("closed", wave.wave_id), content, stores)
            for store in stores:
                self.withdraw(region, _order_key(wave.wave_id, store))
        self._withdraw_permits(wave)
        self._publish_policy(wave)

    def change(self, wave: Wave) -> None:
        wave.generation += 1
        self._publish_orders(wave)

    def _publish_orders(self, wave: Wave) -> None:
        if self.world.facts.words is not None:
            self.world.facts.words.ordered(wave)
        for store, devices in wave.targets.items():
            order = WaveOrder(
                wave_id=wave.wave_id,
                generation=wave.generation,
                state=wave.shown_state,
                cohort="tills",
                device_class="pos",
                hardware_revision="rev-a",
                store=store,
                devices=tuple(name_of(device) for device in devices),
                release=wave.release,
                policy_digest=wave.policy_digest,
                least_hold_epoch=self.rows.hold_epoch,
                issued_at=self.clock.now(),
                expires_at=wave.expires_at,
                pauses=tuple(Pause(origin, why) for origin, why in sorted(wave.pauses.items())),
                planned_at=wave.planned_at,
                pauses_taken=wave.pauses_taken,
            )
            urgent = order.state in {WaveState.PAUSED, WaveState.HALTED}
            self.publish(
                region_of(store), _order_key(wave.wave_id, store), encode(sign(order)), (store,), urgent=urgent
            )

    def _publish_policy(self, wave: Wave) -> None:
        """To the stores whose waves use it; withdrawn where none does any more."""
        key = ResourceKey("policy", wave.policy_digest)
        users = {
            store
            for one in self.rows.waves.values()
            if one.policy_digest == wave.policy_digest and one.closed_at is None
            for store in one.targets
        }
        for region in self.regions:
            stores = tuple(sorted(store for store in users if region_of(store) == region))
            if stores:
                content = encode(Envelope(POLICY_PAYLOAD_TYPE, encode(wave.policy), (Signature("control", b""),)))
                self.publish(region, key, content, stores)
            else:
                self.withdraw(region, key)

    def _withdraw_permits(self, wave: Wave) -> None:
        for store, devices in wave.targets.items():
            for device in devices:
                key = ResourceKey("permit", f"{wave.wave_id}/{name_of(store)}/{name_of(device)}")
                self.withdraw(region_of(store), key)

    # -- reports (control/reports.py) -------------------------------------------------------------------------------

    def apply_reports(self, child: NodeId, incarnation: str, first: int, reports: Sequence[Report]) -> None:
        """Each effect once, with the cursor."""
        self._begin_commit()
        through = self.rows.cursors.get((child.path, incarnation), 0)
        touched: set[str] = set()
        for number, report in enumerate(reports, start=first):
            if number > through:
                self._effect(report, touched)
        self.rows.cursors[child.path, incarnation] = max(through, first + len(reports) - 1)
        for wave_id in sorted(touched):
            self.settle(wave_id)
        self.committed()

    def _effect(self, report: Report, touched: set[str]) -> None:
        match report.kind:
            case "outcome":
                for envelope in decode(OutcomeReport, report.body).outcomes:
                    self._keep(envelope, touched)
            case "snapshot":
                snapshot = decode(SnapshotReport, report.body)
                for envelope in snapshot.outcomes:
                    self._keep(envelope, touched)
                if snapshot.last and snapshot.node in self.stores:
                    self.hub_snapshot(snapshot.node, snapshot.incarnation)
            case str() if report.kind == KEPT_KIND:
                regaining.take(self, decode(KeptReport, report.body))
            case "intent":
                self._submit(decode(IntentReport, report.body).intent)
            case _:
                pass

    def _keep(self, envelope: Envelope, touched: set[str]) -> None:
        signer, outcome = node_of(envelope.signatures[0].keyid), decode(DeviceOutcome, envelope.payload)
        wave = self.rows.waves.get(outcome.wave_id)
        by_device = signer.role is Role.DEVICE
        if wave is None or outcome.device not in wave.devices or outcome.attempt > ATTEMPTS:
            return
        if not by_device and outcome.kind not in HUB_KINDS:
            return
        ranked = ranked_of(outcome, envelope.payload, by_device=by_device)
        if beats(ranked, wave.outcomes.get(outcome.device)):
            wave.outcomes[outcome.device] = ranked
            if self.world.facts.words is not None:
                self.world.facts.words.kept(wave, ranked)
            touched.add(wave.wave_id)
            if by_device and outcome.firmware_sha256:
                self.rows.runs[outcome.device] = outcome.firmware_sha256

    def _submit(self, envelope: Envelope) -> None:
        operator, intent = node_of(envelope.signatures[0].keyid), decode(OperatorIntent, envelope.payload)
        if intent.intent_id in self.rows.intents:
            return
        self.rows.intents.add(intent.intent_id)
        match intent.kind:
            case IntentKind.PAUSE_WAVE:
                self.pause(intent.wave_id, origin_of(operator), intent.reason)
                if (wave := self.rows.waves.get(intent.wave_id)) is not None:
                    wave.pauses_taken = (*wave.pauses_taken, intent.intent_id)
            case IntentKind.RESUME_WAVE:
                self.resume(intent.wave_id, origin_of(operator))
            case IntentKind.HALT_WAVE:
                self.halt(intent.wave_id, intent.reason)
            case _:
                pass

    def answer(self, stream: Stream, ask: Ask) -> None:
        """Acknowledge a health ping."""
        stream.reply(Answer(ask.ask_id, b"acknowledged"))


def _order_key(wave_id: str, store: str) -> ResourceKey:
    return ResourceKey("order", f"{wave_id}/{name_of(store)}")


def operator_uri(name: str = "alice") -> str:
    """An operator's SPIFFE id."""
    return f"spiffe://{FLEET}/operator/{name}"
