"""What really came of a fleet's rollout: ``python -m bench.truth DIR [--json FILE]``.

Judged from slots' bytes, boot environments, board records and the nodes' databases alone, against ``DIR/expected.json``
that was written before anything started. Imports no product code. Exit code 1 if anything is not as it must be.

* *bricked*: the boot environment is unreadable, a trial is left over, or what the device would boot is no whole image
  that it may run;
* *unaccounted*: a target without a final outcome in control's ledger, or an entry there for no target;
* *duplicated*: a device that is in a ledger twice, or booted the new slot more often than its one attempt;
* *wrong*: everything else that is not as expected, in words.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lab.evidence import (
    EvidenceError,
    boot_environment,
    control_ledger,
    hub_ledger,
    most_at_once,
    records,
    slot_sha256,
    swaps,
    wave_state,
)
from lab.verdicts import Judged, command

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lab.evidence import Outcome

OLD_SLOT, NEW_SLOT = "A", "B"
FINAL = frozenset({"updated", "rolled_back", "failed", "silent", "refused", "inconclusive"})
MAX_SHOWN = 20


@dataclass(slots=True)
class Verdict:
    """What was found; ``updated`` and ``rolled_back`` are the devices' own truth, ``failed`` is control's word."""

    devices: int = 0
    updated: int = 0
    rolled_back: int = 0
    failed: int = 0
    bricked: list[str] = field(default_factory=list)
    unaccounted: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything is as it must be."""
        return not (self.bricked or self.unaccounted or self.duplicated or self.wrong)


def judge(directory: Path) -> Verdict:
    """Look at everything; raises EvidenceError when there is nothing to judge by."""
    path = directory / "expected.json"
    try:
        expected: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise EvidenceError(f"{path}: {exc}") from exc
    verdict = Verdict(devices=len(expected["devices"]))
    running = {name: _judge_slots(directory / "devices" / name, expected, verdict) for name in expected["devices"]}
    _judge_ledgers(directory, expected, running, verdict)
    for store, names in expected["stores"].items():
        most, whose = most_at_once([swap for name in names for swap in swaps(directory / "devices" / name)])
        if most > expected["swap_limit"]:
            verdict.wrong.append(f"{store}: {most} inside a swap at once ({', '.join(whose)})")
    return verdict


def _judge_slots(device: Path, expected: dict[str, Any], verdict: Verdict) -> str:
    """What the device would boot: "new", "old", or nothing good."""
    try:
        environment: Any = boot_environment(device)
        boots = Counter(record.slot for record in records(device, "boots"))
    except (EvidenceError, OSError, ValueError, KeyError) as exc:
        verdict.bricked.append(f"{device.name}: {exc}")
        return ""
    slot = environment["active"]["slot"]
    image = {OLD_SLOT: "old", NEW_SLOT: "new"}.get(slot, "")
    if not image or not _holds(device, slot, expected["images"][image]):
        verdict.bricked.append(f"{device.name}: slot {slot}, which it boots, holds no whole image")
        return ""
    if environment["trial"] is not None:
        verdict.bricked.append(f"{device.name}: a trial is left over")
        return ""
    if image == "new" and not _holds(device, OLD_SLOT, expected["images"]["old"]):
        verdict.wrong.append(f"{device.name}: the image before was touched on slot {OLD_SLOT}")
    ending = expected["devices"][device.name]["ending"]
    # Ending on the new slot the device boots it for the trial only: a commit needs no further boot.
    if boots[NEW_SLOT] > 1:
        verdict.duplicated.append(f"{device.name} booted slot {NEW_SLOT} {boots[NEW_SLOT]} times")
    if boots[NEW_SLOT] == 0 and ending in {"updated", "rolled_back"}:
        verdict.wrong.append(f"{device.name} never booted slot {NEW_SLOT}")
    verdict.updated += image == "new"
    verdict.rolled_back += image == "old" and boots[NEW_SLOT] > 0
    return image


def _holds(device: Path, slot: str, image: dict[str, Any]) -> bool:
    return bool(slot_sha256(device, slot, image["size_bytes"]) == image["sha256"])


def _judge_ledgers(directory: Path, expected: dict[str, Any], running: dict[str, str], verdict: Verdict) -> None:
    wave = expected["wave"]
    state = wave_state(directory / "control", wave)
    if state != "closed":
        verdict.wrong.append(f"the wave is {state or 'not there'}, not closed")
    control = _by_device(control_ledger(directory / "control", wave), "control", verdict)
    hubs: dict[str, Outcome] = {}
    for store in expected["stores"]:
        hubs |= _by_device(hub_ledger(directory / "stores" / store, wave), store, verdict)
    targets = {one["path"]: name for name, one in expected["devices"].items()}
    verdict.unaccounted += [f"{path} is no target" for path in sorted(set(control) - set(targets))]
    for path, name in targets.items():
        found = control.get(path)
        if found is None or found.kind not in FINAL:
            verdict.unaccounted.append(f"{name}: control has {'nothing' if found is None else found.kind}")
            continue
        verdict.failed += found.kind in {"failed", "silent"}
        verdict.wrong += _contradictions(name, found, hubs.get(path), expected, running[name])


def _contradictions(
    name: str, found: Outcome, at_hub: Outcome | None, expected: dict[str, Any], running: str
) -> list[str]:
    """Where control's word on a device differs from what had to come, from its hub's word, and from the device."""
    said = (found.kind, found.gate)
    wanted = expected["devices"][name]
    wrong = []
    if said != (wanted["ending"], wanted["gate"]):
        wrong.append(f"{name}: control says {said}, it must be {(wanted['ending'], wanted['gate'])}")
    if at_hub != found:
        wrong.append(f"{name}: control says {said}, its hub {at_hub and (at_hub.kind, at_hub.gate)}")
    if running and (found.kind == "updated") != (running == "new"):
        wrong.append(f"{name}: control says {found.kind}, the device runs the {running} image")
    if running and found.firmware_sha256 != expected["images"][running]["sha256"]:
        wrong.append(f"{name}: the digest in control's ledger is not that of the bytes it runs")
    return wrong


def _by_device(outcomes: list[Outcome], where: str, verdict: Verdict) -> dict[str, Outcome]:
    counted = Counter(outcome.device for outcome in outcomes)
    verdict.duplicated += [f"{path} is {times} times with {where}" for path, times in counted.items() if times > 1]
    return {outcome.device: outcome for outcome in outcomes}


def explain(verdict: Verdict) -> list[str]:
    """The findings in words, the first of each kind."""
    lines = []
    for kind in ("bricked", "unaccounted", "duplicated", "wrong"):
        found: list[str] = getattr(verdict, kind)
        lines += [f"{kind}: {text}" for text in found[:MAX_SHOWN]]
        if len(found) > MAX_SHOWN:
            lines.append(f"{kind}: and {len(found) - MAX_SHOWN} more")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Judge from the command line; 2 when there is nothing to judge by."""
    return command("bench.truth", __doc__, _judged, argv)


def _judged(directory: Path) -> Judged:
    verdict = judge(directory)
    return Judged(verdict.holds, "".join(f"{line}\n" for line in explain(verdict)), asdict(verdict))


if __name__ == "__main__":
    sys.exit(main())
