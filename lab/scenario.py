"""What happens in a demo: who is struck, by what, when, and what must come of it. Pure; the seed decides.

Rules:

* pos-17 loses its scanner once the new slot runs, whatever the seed: it must roll back by ``peripheral:scanner``.
* Two further devices, drawn by the seed, lose power: one in the middle of a write, one in the middle of the swap. Both
  must end updated.
* Store 209's WAN is cut when the seed's number of its devices got as far as the seed's step, and comes back once the
  store went on without it.
* A fault asked for with ``--fault DEVICE:GATE`` acts where that gate is first checked. Its device is struck by nothing
  else, and only its expected outcome changes.
* Faults that end in a rollback count in the wave's rollback ratio. So that they cannot halt the wave before the others
  were tried, the wave looks at the ratio only after as many outcomes as make it pass.
"""

from __future__ import annotations

import enum
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OUTAGE_STORE = "store-209"
SCANNER_DEVICE = "pos-17"
HALT_RATIO = 0.5
LEAST_OUTCOMES = 5
# Before the reboot the trial boots all the same; later the cut ends a trial, which the device then tries again.
SWAP_STEPS = ("armed", "reboot", "state:TRIAL", "trial", "state:COMMITTING")
_WRITE_PERCENT = range(15, 90)
# Not before a device has the whole image: a store that never got it could not go on.
_OUTAGE_STEPS = ("state:VERIFIED", "armed", "trial")


class BadScenarioError(PeerError):
    """A fault or tamper mode that the demo cannot do."""

    reason = "BAD_SCENARIO"


class Tamper(enum.Enum):
    """Falsifications that the checker must find."""

    SLOT = "slot"
    LIMIT = "limit"
    REPORT = "report"


class Ending(enum.Enum):
    """How a device must end; the word is the ledger's."""

    UPDATED = "updated"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A gate the lab can make fail: how it does, and how the device must end."""

    gate: str
    ending: Ending
    how: str


FAULTS: dict[str, FaultKind] = {
    kind.gate: kind
    for kind in (
        FaultKind("battery", Ending.REFUSED, "the battery reads 5 percent"),
        FaultKind("temperature", Ending.REFUSED, "the thermal zone reads 95 degrees"),
        FaultKind("disk", Ending.REFUSED, "other software has reserved the data partition"),
        FaultKind("checksum", Ending.REFUSED, "the medium of slot B does not keep what is written"),
        FaultKind("rollback-floor", Ending.REFUSED, "the device runs a later version already"),
        FaultKind("dual-partition", Ending.REFUSED, "slot B is not there"),
        FaultKind("peripheral:scanner", Ending.REFUSED, "lsusb shows no scanner from the start"),
        FaultKind("boot-probe", Ending.REFUSED, "systemd-analyze finds fault with the staged slot"),
        FaultKind("hardware", Ending.REFUSED, "the device was enrolled with another hardware revision"),
        FaultKind("class", Ending.REFUSED, "the device was enrolled with another class"),
        FaultKind("inhibited", Ending.REFUSED, "a local program forbids the reboot"),
        FaultKind("watchdog", Ending.ROLLED_BACK, "the new image does not get as far as the agent"),
    )
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault on one device."""

    device: str
    kind: FaultKind


@dataclass(frozen=True, slots=True)
class PowerCut:
    """Power fails at a step of a device's supervisor."""

    device: str
    step: str


@dataclass(frozen=True, slots=True)
class Outage:
    """The WAN of a store is cut when that many of its devices got to the step."""

    store: str
    step: str
    devices: int


@dataclass(frozen=True, slots=True)
class Expected:
    """How a device must end."""

    ending: Ending
    gate: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A demo's plan."""

    seed: int
    write_cut: PowerCut
    swap_cut: PowerCut
    outage: Outage
    faults: tuple[Fault, ...]
    expected: Mapping[str, Expected]

    @property
    def scanner_lost(self) -> bool:
        """Whether the scanner device plays its part; a fault of its own replaces it."""
        return all(fault.device != SCANNER_DEVICE for fault in self.faults)

    @property
    def halt_least_outcomes(self) -> int:
        """Outcomes after which the wave may halt by ratio, such that the expected rollbacks alone cannot halt it."""
        rollbacks = sum(expected.ending is Ending.ROLLED_BACK for expected in self.expected.values())
        return max(LEAST_OUTCOMES, math.ceil(rollbacks / HALT_RATIO))


def draw(seed: int, stores: Mapping[str, Sequence[str]], faults: Sequence[Fault]) -> Scenario:
    """The plan of that seed; raises BadScenarioError for faults that leave nobody to strike."""
    devices = [device for store in stores.values() for device in store]
    struck: dict[str, Fault] = {}
    for fault in faults:
        if fault.device not in devices:
            raise BadScenarioError(f"no device {fault.device!r}; the lab's are {', '.join(devices)}")
        if fault.device in struck:
            raise BadScenarioError(f"{fault.device} has two faults; one is the most a device's outcome can show")
        struck[fault.device] = fault
    rollbacks = sum(fault.kind.ending is Ending.ROLLED_BACK for fault in faults)
    if rollbacks + 1 > len(devices) * HALT_RATIO:
        raise BadScenarioError(f"{rollbacks} faults that end in a rollback would rightly halt the wave; ask for fewer")
    seeded = random.Random(seed)
    free = [device for device in devices if device not in struck and device != SCANNER_DEVICE]
    going_on = [device for device in stores[OUTAGE_STORE] if device in free]
    if len(free) < 3 or len(going_on) < 2:
        raise BadScenarioError("these faults leave too few sound devices for the power cuts and the outage")
    write_victim, swap_victim = seeded.sample(free, 2)
    expected = dict.fromkeys(devices, Expected(Ending.UPDATED))
    expected[SCANNER_DEVICE] = Expected(Ending.ROLLED_BACK, "peripheral:scanner")
    expected |= {fault.device: Expected(fault.kind.ending, fault.kind.gate) for fault in faults}
    return Scenario(
        seed=seed,
        write_cut=PowerCut(write_victim, f"staging:{seeded.choice(_WRITE_PERCENT)}%"),
        swap_cut=PowerCut(swap_victim, seeded.choice(SWAP_STEPS)),
        outage=Outage(OUTAGE_STORE, seeded.choice(_OUTAGE_STEPS), seeded.randint(1, 2)),
        faults=tuple(faults),
        expected=expected,
    )


def parse_fault(text: str) -> Fault:
    """Read ``DEVICE:GATE``; raises BadScenarioError with the gates that are supported."""
    device, _, gate = text.partition(":")
    if gate not in FAULTS:
        table = "\n".join(f"  {kind.gate:20} {kind.how}; ends {kind.ending.value}" for kind in FAULTS.values())
        raise BadScenarioError(f"--fault {text}: write DEVICE:GATE with one of these gates:\n{table}")
    return Fault(device, FAULTS[gate])


def parse_backends(texts: Sequence[str], known: Sequence[str], devices: Sequence[str]) -> dict[str, str]:
    """Read each ``DEVICE:BACKEND``; back-ends by device. Raises BadScenarioError with what there is."""
    found: dict[str, str] = {}
    for text in texts:
        device, _, backend = text.partition(":")
        if backend not in known:
            raise BadScenarioError(f"--backend {text}: write DEVICE:BACKEND with one of {', '.join(known)}")
        if device not in devices:
            raise BadScenarioError(f"--backend {text}: no device {device!r}; the lab's are {', '.join(devices)}")
        if found.setdefault(device, backend) != backend:
            raise BadScenarioError(f"--backend {text}: {device} has back-end {found[device]} already; it has one")
    return found


def parse_tamper(text: str | None) -> Tamper | None:
    """Read a tamper mode; raises BadScenarioError."""
    try:
        return None if text is None else Tamper(text)
    except ValueError:
        known = ", ".join(mode.value for mode in Tamper)
        raise BadScenarioError(f"--tamper {text}: one of {known}") from None
