"""Values of the update machine: what is persisted, what happens to it, and what it wants done.

``Progress`` is everything that the machine remembers across a power cut besides the boot environment. ``Target``
carries the rules of the policy it came with, so that a trial and its rollback need no resource, network or hub.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003  # device/values.py resolves the hints at run time
from typing import TYPE_CHECKING

from device.bootenv import Boot  # noqa: TC001  # the same
from wavemesh.trust.statements import Digest, OutcomeKind, UpdateState

if TYPE_CHECKING:
    from device.bootenv import BootEnvironment
    from device.platform import BootRecord


@dataclass(frozen=True, slots=True)
class Rules:
    """What the policy and the release demand of this update; times in seconds, temperature in degrees Celsius."""

    health_authority: str
    rollback_on_health_loss_s: float
    supervised: bool
    hold_max_age_s: float
    min_battery_percent: int
    max_temperature_celsius: float
    min_free_disk_bytes: int
    require_dual_partition: bool
    boot_probe: str
    peripheral_checks: tuple[str, ...]
    vendor_probes: tuple[str, ...]
    require_packed_lkg: bool = False
    pass_when_cannot_tell: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """One update: which artifacts of which release, for which wave, to run as which boot.

    ``bundle`` is the firmware packed for RAUC, if the release has that.
    """

    wave_id: str
    order_generation: int
    release: str
    version: str
    firmware: Digest | None
    config: Digest | None
    config_version: str
    rollback_floor: str
    expires_at: datetime
    boot: Boot
    rules: Rules
    bundle: Digest | None = None

    def same_bytes(self, other: Target) -> bool:
        """Whether both put the same release on the same slot, so that staging may go on."""
        return (self.wave_id, self.release, self.firmware, self.config, self.boot) == (
            other.wave_id,
            other.release,
            other.firmware,
            other.config,
            other.boot,
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the machine is. ``attempt`` is the highest burned in the wave; ``gate`` decided or holds it up.

    ``target`` is None when idle, and when the order was refused before there was anything to aim at. ``return_to`` is
    where a rollback after the commit goes, ``returns`` how often that was tried, ``intent_id`` the operator's word that
    was acted on last. ``supervised`` tells that what runs was committed under supervision, ``strays`` how many resets
    in a row did not bring the boot that the environment wants.

    Here and in events, ``observed`` and ``required`` are what the gate found and wanted, where it compares anything.
    """

    state: UpdateState = UpdateState.IDLE
    wave_id: str = ""
    target: Target | None = None
    attempt: int = 0
    gate: str = ""
    evidence: str = ""
    verdict: OutcomeKind = OutcomeKind.PENDING
    return_to: Boot | None = None
    lease_expires_at: datetime | None = None
    trial_boot_id: str = ""
    trial_began_s: float = 0.0
    lease_id: str = ""
    permit_generation: int = 0
    observed: str = ""
    required: str = ""
    returns: int = 0
    intent_id: str = ""
    supervised: bool = False
    awaiting_since: datetime | None = None
    strays: int = 0

    @property
    def leaves_signed_only(self) -> bool:
        """Whether what runs is supervised, so that only a signed word makes the device leave it (D5)."""
        target_runs = self.state in {UpdateState.TRIAL, UpdateState.COMMITTING, UpdateState.COMMITTED}
        if target_runs and self.target is not None and self.target.rules.supervised:
            return True
        on_trial = self.state in {UpdateState.TRIAL, UpdateState.COMMITTING}
        return self.supervised and not on_trial


@dataclass(frozen=True, slots=True)
class Started:
    """The agent started; ``monotonic_s`` is the monotonic clock, which a boot does not reset for the agent alone."""

    record: BootRecord
    environment: BootEnvironment
    monotonic_s: float


@dataclass(frozen=True, slots=True)
class Ordered:
    """An actionable order names this device; ``burned`` attempts of that wave are on record."""

    target: Target
    burned: int


@dataclass(frozen=True, slots=True)
class Declined:
    """An order names this device, but a gate refuses it as it stands (hold, class, rollback floor …)."""

    wave_id: str
    burned: int
    gate: str
    evidence: str
    observed: str = ""
    required: str = ""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The order of the present wave is gone, or control closed the wave."""


@dataclass(frozen=True, slots=True)
class Halted:
    """The present wave is halted."""

    evidence: str


@dataclass(frozen=True, slots=True)
class GatesPassed:
    """Preflight found nothing against flashing."""


@dataclass(frozen=True, slots=True)
class GateRefused:
    """A gate refused before ARM."""

    gate: str
    evidence: str
    observed: str = ""
    required: str = ""


@dataclass(frozen=True, slots=True)
class Obstructed:
    """Something holds the update up for now: heat while writing, no lease's conditions before ARM."""

    gate: str
    evidence: str
    observed: str = ""
    required: str = ""


@dataclass(frozen=True, slots=True)
class Unobstructed:
    """Nothing holds it up any more."""


@dataclass(frozen=True, slots=True)
class Staged:
    """The bytes on the slot have the right digest and the boot probe accepts them."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """Lease and permit of the next attempt are good, every gate passed, the authority answered: ARM now."""

    attempt: int
    lease_expires_at: datetime
    lease_id: str = ""
    permit_generation: int = 0


@dataclass(frozen=True, slots=True)
class Healthy:
    """The trial passed."""


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """The trial failed; ``verdict`` is ROLLED_BACK, or INCONCLUSIVE where semantics say so."""

    gate: str
    evidence: str
    verdict: OutcomeKind
    observed: str = ""
    required: str = ""


@dataclass(frozen=True, slots=True)
class CommitRead:
    """The boot environment read back after the commit."""

    environment: BootEnvironment


class Asker(enum.Enum):
    """Who wants a rollback: an operator whose signature was verified, or whoever stands before the device."""

    OPERATOR = "operator"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class RollbackAsked:
    """Somebody wants the previous slot, or where there is none the packed last known good back on the other slot.

    ``intent_id`` is that of an operator's intent.
    """

    evidence: str
    environment: BootEnvironment
    asker: Asker = Asker.OPERATOR
    intent_id: str = ""
    packed: Boot | None = None


@dataclass(frozen=True, slots=True)
class SecondRollbackAsked:
    """Somebody wants the device, which rolled back, to leave what it returned to as well, for the packed one."""

    evidence: str
    packed: Boot
    asker: Asker = Asker.OPERATOR
    intent_id: str = ""


@dataclass(frozen=True, slots=True)
class ReturnVerified:
    """What the rollback goes back to was read back, and is what its label says."""


@dataclass(frozen=True, slots=True)
class ReturnRefused:
    """What the rollback goes back to is not there, or not what its label says."""

    evidence: str
    environment: BootEnvironment


@dataclass(frozen=True, slots=True)
class SignedOff:
    """An operator's verified intent approves the rollback of just this attempt."""

    evidence: str
    intent_id: str


@dataclass(frozen=True, slots=True)
class SignoffBegan:
    """The wait for a sign-off began; by the wall clock, because it outlasts boots."""

    at: datetime


@dataclass(frozen=True, slots=True)
class SignoffOverdue:
    """Nobody signed off within the maxima."""


@dataclass(frozen=True, slots=True)
class RecheckDue:
    """Time to look at a transient gate again."""


Event = (
    Started
    | Ordered
    | Declined
    | Withdrawn
    | Halted
    | GatesPassed
    | GateRefused
    | Obstructed
    | Unobstructed
    | Staged
    | Cleared
    | Healthy
    | Unhealthy
    | CommitRead
    | RollbackAsked
    | SecondRollbackAsked
    | ReturnVerified
    | ReturnRefused
    | SignedOff
    | SignoffBegan
    | SignoffOverdue
    | RecheckDue
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A word of this device about a wave, to be signed and reported."""

    kind: OutcomeKind
    gate: str = ""
    evidence: str = ""
    observed: str = ""
    required: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something for control's audit that is no outcome; ``subject`` is the intent it answers, or empty."""

    kind: str
    gate: str
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class Persist:
    """Make the new progress durable, together with what it reports; a burned attempt is part of the progress."""

    outcome: Outcome | None = None
    notice: Notice | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """Set try-once for this boot."""

    boot: Boot


@dataclass(frozen=True, slots=True)
class Disarm:
    """Forget the trial in the boot environment."""


@dataclass(frozen=True, slots=True)
class KeepTrying:
    """Make the trial provisionally bootable."""


@dataclass(frozen=True, slots=True)
class CommitBoot:
    """Write the commit and read it back; the shell answers with CommitRead."""


@dataclass(frozen=True, slots=True)
class Revert:
    """Write that the slot the device went back to is the active boot, and read it back; answered with CommitRead."""


@dataclass(frozen=True, slots=True)
class Reboot:
    """Reset the board; nothing after it is done."""


Effect = Persist | Arm | Disarm | KeepTrying | CommitBoot | Revert | Reboot


@dataclass(frozen=True, slots=True)
class Step:
    """What an event leads to: the new progress, then these effects in this order."""

    progress: Progress
    effects: tuple[Effect, ...] = ()
