"""Judges an order: may this device act on it, and what exactly is it to do? Pure.

Rules (semantics, "Sessions", "Trust", "The device's machine"). An order is actionable only if it names this device at
its own store, has not expired, and the policy with its digest and a hold list of at least its epoch are held. Then, in
this fixed order, so that a refusal names one gate: the release keys vouch for the release and did not revoke it; class,
hardware revision and region fit what was enrolled; it is not on hold; the policy asks for artifacts of that release and
for probes that its manifest signs, by exact text; it is not below the running version nor below the floor of what ran
here; it does not touch a bootloader that cannot be written redundantly; firmware and config that will run together
satisfy what the release requires of either.
What already runs is not installed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from device.bootenv import Boot
from device.progress import Rules, Target
from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.policy.versions import Constraint, Version
from wavemesh.trust.holds import check_not_held
from wavemesh.trust.releases import check_device_fit, check_region, check_rollback_floor
from wavemesh.trust.statements import SlotContent, WaveState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from wavemesh.policy.document import Policy
    from wavemesh.trust.metadata import TrustedMetadata
    from wavemesh.trust.releases import Artifact, ReleaseManifest
    from wavemesh.trust.statements import HoldList, WaveOrder


@dataclass(frozen=True, slots=True)
class Facts:
    """What the device knows of itself; ``configs`` maps generations to the SHA-256 of their bundle."""

    store: str
    name: str
    device_class: str
    hardware_revision: str
    region: str
    running: Boot
    firmware_version: str
    firmware_sha256: str
    config_version: str
    config_sha256: str
    configs: Mapping[int, str]
    rollback_floor: str
    redundant_bootloader: bool
    slots: tuple[SlotContent, ...] = ()


@dataclass(frozen=True, slots=True)
class Belief:
    """What is held and verified, as far as an order needs it."""

    trusted: TrustedMetadata | None
    policies: Mapping[str, Policy]
    holds: HoldList | None


@dataclass(frozen=True, slots=True)
class Actionable:
    """Act on it."""

    target: Target


@dataclass(frozen=True, slots=True)
class NotYet:
    """Nothing to do now; ``reason`` is for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """It is not, or no longer, about this device: expired, closed, other devices."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The wave is halted."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A gate refuses; ``observed`` and ``required`` are what it found and wanted."""

    gate: str
    evidence: str
    observed: str = ""
    required: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """What it asks for runs already."""


Judgement = Actionable | NotYet | Gone | Stopped | Refused | Done


def judge(order: WaveOrder, belief: Belief, facts: Facts, now: datetime) -> Judgement:
    """What this order means to this device now."""
    ours = order.store == facts.store and facts.name in order.devices
    if not ours or order.state is WaveState.CLOSED or now >= order.expires_at:
        return Gone()
    if order.state is WaveState.HALTED:
        return Stopped()
    if order.state is WaveState.PLANNED:
        return NotYet("the wave is planned, not started")
    policy = belief.policies.get(order.policy_digest)
    if policy is None or belief.trusted is None or belief.holds is None or belief.holds.epoch < order.least_hold_epoch:
        return NotYet("the policy, the trust metadata or a hold list of the order's epoch is not held yet")
    return _judge_release(order, policy, belief.trusted, belief.holds, facts)


class Judge:
    """Judges, and remembers: a device looks at all it holds at every step, and little of that changes between two."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._belief: Belief | None = None
        self._facts: Facts | None = None
        self._known: dict[str, tuple[WaveOrder, Judgement]] = {}

    def judge(self, order: WaveOrder, belief: Belief, facts: Facts, now: datetime) -> Judgement:
        """As ``judge``; the same order by the same belief and facts means the same until it expires."""
        if belief is not self._belief or facts is not self._facts:
            self._belief, self._facts = belief, facts
            self._known.clear()
        known = self._known.get(order.wave_id)
        if known is not None and known[0] is order and now < order.expires_at:
            return known[1]
        judgement = judge(order, belief, facts, now)
        if now < order.expires_at:
            self._known[order.wave_id] = (order, judgement)
        return judgement


def may_arm(order: WaveOrder) -> bool:
    """Whether the wave lets devices ARM now: running, and nobody pauses it."""
    return order.state is WaveState.RUNNING and not order.pauses


def _judge_release(
    order: WaveOrder, policy: Policy, trusted: TrustedMetadata, holds: HoldList, facts: Facts
) -> Judgement:
    try:
        release = trusted.require_release(order.release)
        _check_release(release, order, policy, holds, facts)
    except GateError as error:
        return Refused(error.gate, str(error), error.observed, error.required)
    target = _target(order, policy, release, facts)
    return Done() if target.firmware is None and target.config is None else Actionable(target)


def _check_release(release: ReleaseManifest, order: WaveOrder, policy: Policy, holds: HoldList, facts: Facts) -> None:
    check_device_fit(release, facts.device_class, facts.hardware_revision)
    if order.device_class != facts.device_class:
        msg = f"the order is for class {order.device_class}, this device was enrolled as {facts.device_class}"
        raise GateError(Gate.CLASS.value, msg, observed=facts.device_class, required=order.device_class)
    if order.hardware_revision != facts.hardware_revision:
        msg = f"the order is for hardware {order.hardware_revision}, this device is {facts.hardware_revision}"
        revisions = {"observed": facts.hardware_revision, "required": order.hardware_revision}
        raise GateError(Gate.HARDWARE.value, msg, **revisions)
    if facts.region:
        check_region(release, facts.region)
    check_not_held(release, holds)
    _check_selection(release, policy)
    firmware, config = _selected(release, policy)
    if firmware is not None:
        check_rollback_floor(release, facts.firmware_version)
        check_rollback_floor(release, facts.rollback_floor)
    if config is not None and _older(release.config_version, facts.config_version):
        msg = f"config {release.config_version} is older than {facts.config_version}, which runs"
        versions = {"observed": release.config_version, "required": f"at least {facts.config_version}"}
        raise GateError(Gate.ROLLBACK_FLOOR.value, msg, **versions)
    if release.touches_bootloader and not facts.redundant_bootloader:
        msg = f"release {release.name} touches the bootloader, which this board cannot write redundantly"
        raise GateError(Gate.HARDWARE.value, msg, observed="written once", required="written redundantly")
    if firmware is not None:
        has = release.config_version if config is not None else facts.config_version
        _check_constraint(release, "config", release.requires_config, has)
    if config is not None:
        has = release.version if firmware is not None else facts.firmware_version
        _check_constraint(release, "firmware", release.requires_firmware, has)


def _check_selection(release: ReleaseManifest, policy: Policy) -> None:
    """The policy only selects among what the release keys signed."""
    wanted, signed = policy.artifacts, release.artifacts
    names = {artifact.name for artifact in signed}
    missing = [name for name in (wanted.firmware, wanted.config, wanted.signature) if name and name not in names]
    if missing:
        msg = f"the policy asks for {', '.join(missing)}, which release {release.name} does not contain"
        raise GateError(Gate.SIGNATURE.value, msg)
    probes = policy.verification
    unsigned = [
        *(probe for probe in (probes.boot_probe,) if probe and probe != release.boot_probe),
        *(probe for probe in probes.peripheral_checks if probe not in release.peripheral_checks),
        *(probe for probe in probes.vendor_probes if probe not in release.vendor_probes),
    ]
    if unsigned:
        msg = f"the policy asks for a probe that release {release.name} does not sign: {unsigned[0]!r}"
        raise GateError(Gate.SIGNATURE.value, msg)


def _check_constraint(release: ReleaseManifest, what: str, constraint: str, version: str) -> None:
    """What will run together must fit, whichever of the two is already there."""
    if not constraint:
        return
    if not version or not Constraint.parse(constraint).allows(Version.parse(version)):
        shown = version or "absent"
        msg = f"release {release.name} requires {what} {constraint}, {what} is {shown}"
        raise GateError(Gate.CONFIG_VERSION.value, msg, observed=shown, required=constraint)


def _older(version: str, than: str) -> bool:
    return bool(version and than) and Version.parse(version) < Version.parse(than)


def _selected(release: ReleaseManifest, policy: Policy) -> tuple[Artifact | None, Artifact | None]:
    firmware = release.firmware if policy.artifacts.firmware else None
    return firmware, release.config if policy.artifacts.config else None


def _target(order: WaveOrder, policy: Policy, release: ReleaseManifest, facts: Facts) -> Target:
    firmware, config = _selected(release, policy)
    if firmware is not None and firmware.digest.sha256 == facts.firmware_sha256:
        firmware = None
    if config is not None and config.digest.sha256 == facts.config_sha256:
        config = None
    slot = facts.running.slot if firmware is None else facts.running.slot.other
    generation = facts.running.config_generation if config is None else _generation(config, facts)
    return Target(
        wave_id=order.wave_id,
        order_generation=order.generation,
        release=release.name,
        version=release.version,
        firmware=None if firmware is None else firmware.digest,
        config=None if config is None else config.digest,
        config_version=release.config_version if config is not None else facts.config_version,
        rollback_floor=release.minimum_version,
        expires_at=order.expires_at,
        boot=Boot(slot, generation),
        rules=_rules(policy),
        bundle=None if firmware is None or release.bundle is None else release.bundle.digest,
    )


def _generation(config: Artifact, facts: Facts) -> int:
    """The generation that holds this bundle, or a new one; the same answer until it is stored."""
    known = [number for number, sha256 in facts.configs.items() if sha256 == config.digest.sha256]
    return known[0] if known else max([facts.running.config_generation, *facts.configs]) + 1


def _rules(policy: Policy) -> Rules:
    guardrails, verification = policy.guardrails, policy.verification
    return Rules(
        health_authority=verification.health_authority.value,
        rollback_on_health_loss_s=guardrails.rollback_on_health_loss_s,
        supervised=not guardrails.offline_rollback_allowed,
        hold_max_age_s=guardrails.hold_max_age_s,
        min_battery_percent=guardrails.min_battery,
        max_temperature_celsius=guardrails.max_temperature,
        min_free_disk_bytes=guardrails.min_free_disk,
        require_dual_partition=guardrails.require_dual_partition,
        boot_probe=verification.boot_probe or "",
        peripheral_checks=verification.peripheral_checks,
        vendor_probes=verification.vendor_probes,
        require_packed_lkg=guardrails.require_packed_lkg,
        pass_when_cannot_tell=guardrails.pass_when_cannot_tell,
    )
