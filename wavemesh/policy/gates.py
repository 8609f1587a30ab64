"""The gates: everything that can refuse an update or roll it back, each by one name.

Rules. Every outcome but ``pending`` and ``updated`` carries exactly one gate. A gate's wire form is its word; the
gates ``peripheral`` and ``vendor`` stand for many checks and carry the check's name: ``peripheral:scanner``. A
*refusal* (before ARM) by a transient gate is checked again within the wave, one by a final gate is not. An outcome by
a gate of ``INCONCLUSIVE_GATES`` may say nothing about the release (power was cut, the lease ran out); then it stays
outside the rollback ratio and is retried. ``docs/reference/gates.md`` is generated from this file.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from wavemesh.errors import PeerError

NAME_LENGTH_MOST = 63
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


class BadGateError(PeerError):
    """A text is not the wire form of a gate."""

    reason = "BAD_GATE"


class Gate(enum.Enum):
    """What decided; the value is the wire form (without the check's name)."""

    BATTERY = "battery"
    TEMPERATURE = "temperature"
    DISK = "disk"
    DUAL_PARTITION = "dual-partition"
    PERIPHERAL = "peripheral"
    VENDOR = "vendor"
    BOOT_PROBE = "boot-probe"
    BOOT_TIMER = "boot-timer"
    WATCHDOG = "watchdog"
    HEALTH_AUTHORITY = "health-authority"
    ATTESTATION = "attestation"
    CHECKSUM = "checksum"
    SIGNATURE = "signature"
    FRESHNESS = "freshness"
    HOLD = "hold"
    REVOKED = "revoked"
    REPLAY = "replay"
    CLASS = "class"
    HARDWARE = "hardware"
    CONFIG_VERSION = "config-version"
    CLOCK = "clock"
    POWER_LOSS = "power-loss"
    BYTE_BUDGET = "byte-budget"
    CACHE_QUOTA = "cache-quota"
    WINDOW = "window"
    INHIBITED = "inhibited"
    LEASE_EXPIRED = "lease-expired"
    PERMIT = "permit"
    HALTED = "halted"
    ROLLBACK_FLOOR = "rollback-floor"
    OPERATOR = "operator"

    @property
    def is_named(self) -> bool:
        """Whether the wire form carries the name of a check."""
        return self in {Gate.PERIPHERAL, Gate.VENDOR}

    @property
    def is_transient(self) -> bool:
        """Whether a refusal by this gate is checked again within the wave."""
        return self.notes.lasting is Lasting.TRANSIENT

    @property
    def notes(self) -> GateNotes:
        """What people need to know about this gate."""
        return _NOTES[self]


class Lasting(enum.Enum):
    """What a refusal by the gate means for the rest of the wave."""

    TRANSIENT = "checked again within the wave"
    FINAL = "stands for the wave"


class Stage(enum.Enum):
    """Where a gate is checked."""

    SEED = "seeding"
    ORDER = "order received"
    PREFLIGHT = "preflight"
    STAGING = "staging"
    VERIFY = "staged image verified"
    ARM = "before the reboot"
    TRIAL = "trial"
    COMMITTED = "after the commit"


@dataclass(frozen=True, slots=True)
class GateNotes:
    """Meaning, remedy, and where a gate is checked, in the order of an update's life."""

    meaning: str
    remedy: str
    lasting: Lasting
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class NamedGate:
    """A gate as it occurred: with the check's name where the gate stands for many checks."""

    gate: Gate
    name: str = ""

    @property
    def wire(self) -> str:
        """The wire form, "battery" or "peripheral:scanner"."""
        return gate_name(self.gate, self.name)


INCONCLUSIVE_GATES = frozenset({Gate.POWER_LOSS, Gate.HEALTH_AUTHORITY, Gate.LEASE_EXPIRED, Gate.CLOCK, Gate.HALTED})
"""Gates an ``inconclusive`` outcome may carry."""


def gate_name(gate: Gate, name: str = "") -> str:
    """The wire form; raises BadGateError if the check's name is missing, not wanted or malformed."""
    if gate.is_named != bool(name):
        raise BadGateError(
            f"gate {gate.value!r} {'needs' if gate.is_named else 'takes no'} name of a check, got {name!r}"
        )
    if not name:
        return gate.value
    if not _NAME.fullmatch(name):
        raise BadGateError(
            f"name {name!r} of gate {gate.value!r}: use 1 to {NAME_LENGTH_MOST} of a-z, 0-9, '.', '_', '-'"
        )
    return f"{gate.value}:{name}"


def parse_gate(text: str) -> NamedGate:
    """Read a wire form; raises BadGateError."""
    word, _, name = text.partition(":")
    try:
        gate = Gate(word)
    except ValueError:
        raise BadGateError(f"{text[:100]!r} is no gate; docs/reference/gates.md lists them") from None
    if gate_name(gate, name) != text:
        raise BadGateError(f"{text[:100]!r} is no gate: {word!r} takes no name")
    return NamedGate(gate, name)


def check_names(commands: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the checks a policy lists, in its order: the last word of each command, as a gate may carry it.

    "lsusb | grep scanner" is "scanner"; the second check of one name is "scanner-2", so that a gate names one check.
    """
    names: list[str] = []
    for command in commands:
        words = re.findall(r"[a-z0-9]+", (command.split() or [""])[-1].lower())
        base = "-".join(words)[: NAME_LENGTH_MOST - 3].rstrip("-") or "check"
        same = sum(1 for name in names if name == base or re.fullmatch(re.escape(base) + r"-\d+", name))
        name = base
        while name in names:
            same += 1
            name = f"{base}-{same}"
        names.append(name)
    return tuple(names)


_BEFORE_ARM = (Stage.PREFLIGHT, Stage.STAGING, Stage.ARM)
_EVERY_TRUST_CHECK = (Stage.SEED, Stage.ORDER, Stage.PREFLIGHT, Stage.ARM)
_T, _F = Lasting.TRANSIENT, Lasting.FINAL

_NOTES: dict[Gate, GateNotes] = {
    Gate.BATTERY: GateNotes(
        "The battery is below the policy's minBattery.", "Charge the device or put it on its dock.", _T, _BEFORE_ARM
    ),
    Gate.TEMPERATURE: GateNotes(
        "The device is hotter than the policy's maxTemperature.",
        "Let it cool; look for a blocked vent or a failed fan.",
        _T,
        _BEFORE_ARM,
    ),
    Gate.DISK: GateNotes(
        "Free space is below minFreeDisk, the disk failed, or what writes the slots (RAUC) does not answer.",
        "Free space on the data partition, replace the disk, or look at the service that the evidence names.",
        _T,
        (Stage.PREFLIGHT, Stage.STAGING),
    ),
    Gate.DUAL_PARTITION: GateNotes(
        "The device has no second slot that an update could be written to, or it does not keep what is written.",
        "Re-image the device with two slots, or take it out of the cohort.",
        _F,
        (Stage.PREFLIGHT, Stage.ARM),
    ),
    Gate.PERIPHERAL: GateNotes(
        "A peripheral check of the policy failed.",
        "In preflight: plug the peripheral in. In the trial: the release lost its driver; hold the release.",
        _T,
        (Stage.PREFLIGHT, Stage.TRIAL),
    ),
    Gate.VENDOR: GateNotes(
        "A vendor hook of the device failed before the reboot, or a vendor probe of the release in the trial.",
        "Read the output in the evidence and ask the vendor; after a trial, hold the release.",
        _T,
        (Stage.PREFLIGHT, Stage.ARM, Stage.TRIAL),
    ),
    Gate.BOOT_PROBE: GateNotes(
        "The boot probe failed on the staged slot or after booting it.",
        "Read the probe's output in the evidence; the image is not fit to boot on this device.",
        _F,
        (Stage.VERIFY, Stage.TRIAL),
    ),
    Gate.BOOT_TIMER: GateNotes(
        "The trial did not prove health within rollbackOnHealthLossMins.",
        "Look for a slow service in the trial's log; raise the budget only if the boot is known to take longer.",
        _F,
        (Stage.TRIAL,),
    ),
    Gate.WATCHDOG: GateNotes(
        "The new slot did not boot as far as the agent, or the agent hung; the bootloader fell back.",
        "Read the console or the log of the trial boot; hold the release if more than one device does it.",
        _F,
        (Stage.TRIAL,),
    ),
    Gate.HEALTH_AUTHORITY: GateNotes(
        "The health authority did not acknowledge the device's ping.",
        "Before the reboot: bring the WAN back, or let the policy say healthAuthority: either. In the trial, without "
        "the hub's word that the path was down: the release broke networking; hold it.",
        _T,
        (Stage.ARM, Stage.TRIAL),
    ),
    Gate.ATTESTATION: GateNotes(
        "The TPM's quote does not match what was enrolled or released, or the TPM does not answer.",
        "The evidence names the PCR or the TPM. Treat the device as tampered with until it is enrolled again.",
        _F,
        (Stage.PREFLIGHT, Stage.ARM, Stage.TRIAL),
    ),
    Gate.CHECKSUM: GateNotes(
        "Bytes received or written do not have the signed SHA-256.",
        "The next hop fetches them again by itself; if it comes back, look at the disk or the store's cache.",
        _T,
        (Stage.SEED, Stage.STAGING, Stage.VERIFY),
    ),
    Gate.SIGNATURE: GateNotes(
        "A signature is missing, wrong, or of a key that is not trusted for this.",
        "Find out who made it before trying again; this is what an attack looks like.",
        _F,
        _EVERY_TRUST_CHECK,
    ),
    Gate.FRESHNESS: GateNotes(
        "The release was signed too long ago, or trust metadata or the view of holds is too old.",
        "Let the release keys sign the release again, or bring back the connection that carries fresh metadata.",
        _T,
        _EVERY_TRUST_CHECK,
    ),
    Gate.HOLD: GateNotes(
        "The release is on hold.",
        "Lift the hold when its reason is gone, or choose another release.",
        _T,
        _EVERY_TRUST_CHECK,
    ),
    Gate.REVOKED: GateNotes(
        "The release keys no longer vouch for the release.", "Release a new version.", _F, _EVERY_TRUST_CHECK
    ),
    Gate.REPLAY: GateNotes(
        "An order, permit, intent or acknowledgement is older than one already seen, or was used before.",
        "Nothing, if a hub was restored from a backup; otherwise find out who sends it.",
        _F,
        (Stage.ORDER, Stage.ARM, Stage.TRIAL),
    ),
    Gate.CLASS: GateNotes(
        "The release, or the order, is for another device class or region.",
        "Correct the cohort or the release's metadata.",
        _F,
        (Stage.SEED, Stage.ORDER, Stage.PREFLIGHT),
    ),
    Gate.HARDWARE: GateNotes(
        "The release does not support this hardware revision.",
        "Split the cohort by revision, or add the revision to the release.",
        _F,
        (Stage.SEED, Stage.ORDER, Stage.PREFLIGHT),
    ),
    Gate.CONFIG_VERSION: GateNotes(
        "Firmware and config that would run together do not fit: one is older than the other requires.",
        "Roll out the other first, or both together.",
        _F,
        (Stage.PREFLIGHT, Stage.ARM),
    ),
    Gate.CLOCK: GateNotes(
        "The device or hub has no trusted time.",
        "Bring back the connection that confirms the time, or fit a real-time clock.",
        _T,
        (Stage.PREFLIGHT, Stage.ARM, Stage.TRIAL),
    ),
    Gate.POWER_LOSS: GateNotes(
        "Power was cut during the trial, as the reset reason proves.",
        "Nothing; the device tries again.",
        _T,
        (Stage.TRIAL,),
    ),
    Gate.BYTE_BUDGET: GateNotes(
        "Moving the artifact would exceed the store's byte budget for this period; or a device got too few bytes.",
        "Wait for the next period, raise the budget, or offer a delta. On a device: look at its hub and its link.",
        _T,
        (Stage.SEED, Stage.STAGING),
    ),
    Gate.CACHE_QUOTA: GateNotes(
        "The hub's cache cannot hold what its devices run, could fall back to, and are to get.",
        "Raise the quota or finish another wave first.",
        _T,
        (Stage.SEED, Stage.ORDER),
    ),
    Gate.WINDOW: GateNotes(
        "It is outside the policy's window, in the store's local time, or the region's for fetches ahead of a wave.",
        "Wait for the window or change it.",
        _T,
        (Stage.SEED, Stage.STAGING, Stage.ARM),
    ),
    Gate.INHIBITED: GateNotes(
        "A local program forbade the reboot for longer than allowed: a payment is open, a conveyor runs.",
        "Find the program that holds the inhibitor; choose a quieter swap window.",
        _T,
        (Stage.ARM,),
    ),
    Gate.LEASE_EXPIRED: GateNotes(
        "The store hub's lease ran out before the swap was through.",
        "Nothing; the device asks for a new lease.",
        _T,
        (Stage.ARM, Stage.TRIAL),
    ),
    Gate.PERMIT: GateNotes(
        "Control's permit is missing, void, expired or its attempts are spent.",
        "Look at the device's earlier outcomes in the ledger; plan it in a later wave.",
        _T,
        (Stage.ARM,),
    ),
    Gate.HALTED: GateNotes(
        "The wave was halted.",
        "Read why in the ledger; a halted wave does not resume, plan a new one.",
        _F,
        (Stage.ARM, Stage.TRIAL),
    ),
    Gate.ROLLBACK_FLOOR: GateNotes(
        "The release is older than the lowest version the device may run.",
        "Choose a release at or above the floor.",
        _F,
        (Stage.SEED, Stage.PREFLIGHT, Stage.ARM),
    ),
    Gate.OPERATOR: GateNotes(
        "An operator asked for the rollback.",
        "Read the reason given with it; the wave leaves that device alone.",
        _F,
        (Stage.TRIAL, Stage.COMMITTED),
    ),
}
