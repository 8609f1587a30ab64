"""What an agent does for as long as its machine is in a state, without tasks: staging, clearance, trial, pings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from device.clearance import Clearance
from device.health import PingEnd, PingResult
from device.platform import SlotLabel
from device.progress import (
    GateRefused,
    Healthy,
    Staged,
    Unhealthy,
)
from device.trial import Trial
from tests.simulation.board import CONFIG
from tests.simulation.engine import drive
from tests.simulation.words import decode
from wavemesh.trust.statements import HealthPingAnswer, OutcomeKind

if TYPE_CHECKING:
    from tests.simulation.devices import DeviceNode
    from wavemesh.session.frames import Answer


class Answered:
    """One ping: the first end counts."""

    def __init__(self, node: DeviceNode, heard: Any) -> None:
        self._node = node
        self._heard = heard
        self._generation = node._generation
        self._is_done = False

    def answered(self, answer: Answer | None) -> None:
        if answer is None or answer.error:
            self.end(PingResult(PingEnd.NOTHING, detail="the session ended"))
            return
        said: HealthPingAnswer = decode(HealthPingAnswer, answer.body)
        end = PingEnd.ACKNOWLEDGED if said.ack is not None else PingEnd.AUTHORITY_DOWN
        if said.ack is not None and said.ack.payload == b"control":
            self._node.equipment.sink.hear_time(self._node.world.facts.control_time())
        self.end(PingResult(end, said.lease_state, "by the authority"))

    def end(self, result: PingResult) -> None:
        node = self._node
        if not self._is_done and node.is_up and self._generation == node._generation:
            self._is_done = True
            self._heard(result)


class Stage:
    """STAGING: so many seconds of an open session with a hub that has the release."""

    def __init__(self, node: DeviceNode) -> None:
        self.node = node
        self.target = node.progress.target
        self.left_s = node.rng.uniform(60.0, 240.0)
        self.since: float | None = None
        target = self.target
        assert target is not None
        other = target.boot.slot
        label = node.slots.label(other)
        if target.firmware is None or (label is not None and label.firmware == target.firmware):
            node._in(20.0, self._done)
            self.left_s = 0.0
            return
        environment = node.control.environment
        node.control.write(environment.invalidate(other))
        node.slots.labels[other] = None
        self.look()

    def look(self) -> None:
        """The session, or what the hub has, may have changed."""
        node, target = self.node, self.target
        if self.left_s <= 0.0 or target is None:
            return
        hub = node.hub
        if node.dialer.is_open and target.release in hub.refused:
            error = hub.refused[target.release]
            node.post(GateRefused(error.gate, str(error)))
            return
        can = node.dialer.is_open and target.release in hub.cached
        if can and self.since is None:
            self.since = node.world.now
            node._in(self.left_s, self._arrived)
        elif not can and self.since is not None:
            self.left_s = max(1.0, self.left_s - (node.world.now - self.since))
            self.since = None

    def _arrived(self) -> None:
        if self.since is not None and self.node.world.now - self.since >= self.left_s - 0.001:
            self.left_s = 0.0
            self._done()

    def _done(self) -> None:
        node, target = self.node, self.target
        assert target is not None
        if target.firmware is not None:
            node.slots.labels[target.boot.slot] = SlotLabel(target.release, target.version, target.firmware)
        if target.config is not None:
            node.configs[target.boot.config_generation] = SimpleNamespace(
                version=target.config_version, sha256=target.config.sha256
            )
        node.post(Staged())


class Clear:
    """VERIFIED: the product's looks before ARM; a ping is asked for once a lease is here, and again while it counts."""

    def __init__(self, node: DeviceNode) -> None:
        self.node = node
        target = node.progress.target
        assert target is not None
        self.attempt = node.progress.attempt + 1
        changed: Any = None
        self.clearance = Clearance(node.equipment, target, self.attempt, node.post, changed)
        self._is_due = False
        self._is_pinging = False
        self._pinged_at = -1e9
        self.look_soon()

    def look_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self.node._in(0.05, self._look)

    def _look(self) -> None:
        self._is_due = False
        node = self.node
        found = drive(self.clearance.look())
        if found is not None:
            node.post(found)
            return
        if node.equipment.sink.grant(node.progress.wave_id) is None:
            if self.clearance._shown:
                self._look_later(600.0)
            return
        pause_s = CONFIG.timing.ping_interval_s - (node.world.now - self._pinged_at)
        if not self._is_pinging and pause_s <= 0:
            self._is_pinging = True
            self._pinged_at = node.world.now
            node.ping(self._heard)
        else:
            self._look_later(max(pause_s, CONFIG.timing.gate_interval_s))

    def _look_later(self, delay: float) -> None:
        self.node._in(delay, self.look_soon)

    def _heard(self, result: PingResult) -> None:
        self._is_pinging = False
        self.clearance.heard(result)
        self.look_soon()


class InTrial:
    """TRIAL: probes by the release's quality, then pings, within the budget."""

    def __init__(self, node: DeviceNode) -> None:
        self.node = node
        target = node.progress.target
        assert target is not None
        self.trial = Trial(node.equipment, target, node.progress)
        lapsed = self.trial.judge_lease()
        if lapsed is not None:
            node.post(lapsed)
            return
        left = target.rules.rollback_on_health_loss_s - (node.world.now - node.progress.trial_began_s)
        node._in(max(left, 0.0), self._out_of_time)
        node._in(node.rng.uniform(5.0, 15.0), self._probe)

    def _out_of_time(self) -> None:
        found = self.trial.out_of_time()
        if found.gate == "health-authority" and self.node.world.facts.quality(self.node).is_good:
            self.node.world.facts.unreached.add((self.node.progress.wave_id, self.node.path))
        self.node.post(found)

    def _probe(self) -> None:
        quality = self.node.world.facts.quality(self.node)
        if not quality.passes_probes:
            settle_s = CONFIG.timing.probe_settle_s
            bad = Unhealthy("boot-probe", "exit 1", OutcomeKind.ROLLED_BACK, "exit 1", "exit 0")
            self.node._in(settle_s, lambda: self.node.post(bad))
            return
        self.trial.probed()
        self._ping()

    def _ping(self) -> None:
        if self.node.world.facts.quality(self.node).has_network:
            self.node.ping(self._heard)
        else:
            self._heard(PingResult(PingEnd.NOTHING, detail="no network"))

    def _heard(self, result: PingResult) -> None:
        found = self.trial.heard(result)
        if found is not None:
            if isinstance(found, Healthy):
                self.node.world.facts.healthy(self.node)
            self.node.post(found)
            return
        self.node._in(1.0 if self.node.dialer.is_open else 15.0, self._ping)
