"""Where a device's gates look, what they want by default, and what becomes of it when the source does not answer.

Every gate that a device can name in an outcome it signs, or in a refusal of what its hub delivered, has an entry;
the others are hubs' and control's alone. ``docs/reference/gates.md`` is generated from this file.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from wavemesh.policy.gates import Gate


class CannotTell(enum.Enum):
    """What holds when a gate's source is there and does not answer."""

    POLICY = "refuses, unless `guardrails.passWhenCannotTell` lists it"
    REFUSES = "refuses"
    WAITS = "waits, and refuses after `timing.pause_bound_s`"
    FAILS = "fails"


@dataclass(frozen=True, slots=True)
class Source:
    """What a gate looks at on a device, and what it wants unless policy or release say otherwise."""

    looks_at: str
    default: str
    cannot_tell: CannotTell


_HUB = "the store hub's refusal of a download"

SOURCES: dict[Gate, Source] = {
    Gate.BATTERY: Source(
        "`[board] power_supply` (`/sys/class/power_supply`): the weakest present battery that supplies the system, by "
        "`capacity`, else `energy_now` of `energy_full`, else `charge_now` of `charge_full`. No battery passes",
        "at least 40 %; 10 % while a Mains, USB or Wireless supply is online and no battery discharges",
        CannotTell.POLICY,
    ),
    Gate.TEMPERATURE: Source(
        "`[board] thermal` (`/sys/class/thermal`) `thermal_zone*/temp` and `[board] hwmon` (`/sys/class/hwmon`) "
        "`hwmon*/temp*_input`: the hottest. No sensor passes, nor does one that is switched off count",
        "at most 70 °C",
        CannotTell.POLICY,
    ),
    Gate.DISK: Source(
        "statvfs of the data partition, less `[board] reserved_disk_bytes`; write errors while staging",
        "at least 64 MiB beside the config that comes",
        CannotTell.POLICY,
    ),
    Gate.DUAL_PARTITION: Source(
        "the slots: both there, large enough, and, before a slot's first flash, a block written and read back",
        "two slots",
        CannotTell.REFUSES,
    ),
    Gate.PERIPHERAL: Source("a signed command, run contained on the slot that runs", "exit code 0", CannotTell.FAILS),
    Gate.VENDOR: Source(
        "before the reboot: an executable in `[board] gates`, run contained, where exit code 1 fails and any other "
        "but 0 cannot tell; in the trial: a signed command",
        "exit code 0",
        CannotTell.POLICY,
    ),
    Gate.BOOT_PROBE: Source("a signed command, run contained", "exit code 0", CannotTell.FAILS),
    Gate.BOOT_TIMER: Source(
        "the monotonic clock of the trial's boot", "probes done within 5 minutes", CannotTell.FAILS
    ),
    Gate.WATCHDOG: Source(
        "the board's reset reason, and the trial that did not end otherwise", "a commit", CannotTell.FAILS
    ),
    Gate.HEALTH_AUTHORITY: Source(
        "a signed acknowledgement of the device's signed ping",
        "before the reboot one within 60 s, in the trial within 5 minutes",
        CannotTell.WAITS,
    ),
    Gate.ATTESTATION: Source(
        "a quote by the TPM's attestation key, verified by the health authority: before flashing, before the reboot, "
        "and in the trial; a device without a TPM passes",
        "the PCRs that the release signs, else those recorded at join",
        CannotTell.WAITS,
    ),
    Gate.CHECKSUM: Source("the slot, read back from the medium", "the signed SHA-256", CannotTell.REFUSES),
    Gate.SIGNATURE: Source(
        "the release's signature bundle and manifest, against TUF", "the role's threshold", CannotTell.REFUSES
    ),
    Gate.FRESHNESS: Source(
        "the signing time of the hold list, the expiry of TUF metadata",
        "holds within 24 h, nothing expired",
        CannotTell.WAITS,
    ),
    Gate.HOLD: Source("control's hold list", "no hold", CannotTell.WAITS),
    Gate.REVOKED: Source("TUF metadata", "not revoked", CannotTell.WAITS),
    Gate.REPLAY: Source("generations and epochs seen before, which are durable", "none older", CannotTell.REFUSES),
    Gate.CLASS: Source("the class in the device's certificate", "that of release and order", CannotTell.REFUSES),
    Gate.HARDWARE: Source("the revision in the device's certificate", "among those of the release", CannotTell.REFUSES),
    Gate.CONFIG_VERSION: Source(
        "the versions of firmware and config that will run together",
        "the release's `requires_config` and `requires_firmware`",
        CannotTell.REFUSES,
    ),
    Gate.CLOCK: Source(
        "the clock, the durable floor under it, times that control signed in this boot",
        "trusted time",
        CannotTell.REFUSES,
    ),
    Gate.POWER_LOSS: Source("the board's reset reason", "no loss of power", CannotTell.FAILS),
    Gate.BYTE_BUDGET: Source(
        f"{_HUB}; new bytes that come while staging",
        "within the budget; `staging.progress_bytes` (1 MiB) in `staging.progress_s` (1 h)",
        CannotTell.WAITS,
    ),
    Gate.CACHE_QUOTA: Source(_HUB, "within the quota", CannotTell.WAITS),
    Gate.WINDOW: Source(
        f"{_HUB}; a device has no time zone, its hub paces swaps by the window", "within it", CannotTell.WAITS
    ),
    Gate.INHIBITED: Source(
        "the file `[board] inhibit`, its text is the reason", "no such file for 6 h", CannotTell.POLICY
    ),
    Gate.LEASE_EXPIRED: Source("the hub's signed lease", "not expired", CannotTell.WAITS),
    Gate.PERMIT: Source(
        "control's signed permit, and the durable record of attempts", "attempts left", CannotTell.WAITS
    ),
    Gate.HALTED: Source("control's order, and the hub's word in the trial", "a running wave", CannotTell.WAITS),
    Gate.ROLLBACK_FLOOR: Source("the running version, and the durable floor", "no older release", CannotTell.REFUSES),
    Gate.OPERATOR: Source("an operator's signed intent, or the local socket", "nobody asks", CannotTell.WAITS),
}

GATES_THAT_MAY_PASS_UNTOLD = tuple(gate for gate, source in SOURCES.items() if source.cannot_tell is CannotTell.POLICY)
"""What ``guardrails.passWhenCannotTell`` may list."""
