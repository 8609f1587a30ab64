"""Was it so? ``python -m lab.checker DIR [--json FILE]`` compares what really happened with what had to.

What had to happen is ``DIR/expected.json``, written before the wave began; what happened is read by ``lab/evidence.py``
from slots, boot records, databases and the origin's log. Each fact is checked for itself and named when it is violated;
exit code 0 only if all hold, 1 if one does not, 2 if there is nothing to check. Imports no product code.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lab.evidence import (
    EvidenceError,
    audit,
    boot_environment,
    control_ledger,
    hub_ledger,
    most_at_once,
    origin_bytes,
    records,
    slot_sha256,
    swaps,
)
from lab.verdicts import Judged, command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from lab.evidence import Outcome

OLD_SLOT, NEW_SLOT = "A", "B"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact: what it is, whether it holds, and what was seen."""

    fact: str
    holds: bool
    seen: str


class Case:
    """A directory and what had to happen in it."""

    def __init__(self, directory: Path) -> None:
        """Read the expectations; raises EvidenceError."""
        path = directory / "expected.json"
        try:
            self.expected: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise EvidenceError(f"{path}: {exc}; `edgectl lab demo --dir DIR` writes it") from exc
        self.directory = directory

    def device(self, name: str) -> Path:
        """A device's directory."""
        return self.directory / "devices" / name

    @property
    def devices(self) -> dict[str, dict[str, str]]:
        """What must come of each device, by name."""
        found: dict[str, dict[str, str]] = self.expected["devices"]
        return found

    @property
    def stores(self) -> dict[str, list[str]]:
        """Names of each store's devices."""
        found: dict[str, list[str]] = self.expected["stores"]
        return found

    def image(self, name: str) -> tuple[str, int]:
        """SHA-256 and size of "old" or "new"."""
        image = self.expected["images"][name]
        return image["sha256"], image["size_bytes"]


def slots_hold_whole_images(case: Case) -> Iterator[str]:
    """The running slot holds the image it must, the other one is intact, and nothing is left on trial."""
    for name, expected in case.devices.items():
        environment = boot_environment(case.device(name))
        active: Any = environment["active"]
        updated = expected["ending"] == "updated"
        slot, image = (NEW_SLOT, "new") if updated else (OLD_SLOT, "old")
        if active["slot"] != slot:
            yield f"{name} runs slot {active['slot']}, not {slot}"
        if environment["trial"] is not None:
            yield f"{name} still has a trial"
        sha256, size_bytes = case.image(image)
        if slot_sha256(case.device(name), slot, size_bytes) != sha256:
            yield f"{name}: slot {slot} does not hold the {image} image"
        sha256, size_bytes = case.image("old")
        if updated and slot_sha256(case.device(name), OLD_SLOT, size_bytes) != sha256:
            yield f"{name}: the image before was touched on slot {OLD_SLOT}"


def boots_tell_the_same(case: Case) -> Iterator[str]:
    """Who was updated or rolled back booted the new slot, who was refused never did."""
    for name, expected in case.devices.items():
        tried = any(boot.slot == NEW_SLOT for boot in records(case.device(name), "boots"))
        if tried != (expected["ending"] != "refused"):
            yield f"{name} ({expected['ending']}) {'booted' if tried else 'never booted'} slot {NEW_SLOT}"


def power_failed_where_planned(case: Case) -> Iterator[str]:
    """Each planned power cut is in the board's own record."""
    for name, step in case.expected["power_cuts"].items():
        if not any(boot.reason == "power-loss" for boot in records(case.device(name), "boots")):
            yield f"{name} never lost power (planned at {step})"


def swap_limit_kept(case: Case) -> Iterator[str]:
    """Never more than N devices of a store were inside a swap at once."""
    limit = case.expected["swap_limit"]
    for store, names in case.stores.items():
        most, whose = most_at_once([swap for name in names for swap in swaps(case.device(name))])
        if most > limit:
            yield f"{store}: {most} at once ({', '.join(whose)}), the limit is {limit}"


def ledgers_agree(case: Case) -> Iterator[str]:
    """Each device is in its hub's ledger and in control's, once, with the same outcome, the one it must have."""
    wave = case.expected["wave"]
    control = _by_device(control_ledger(case.directory / "control", wave))
    hubs = _by_device(
        [outcome for store in case.stores for outcome in hub_ledger(case.directory / "stores" / store, wave)]
    )
    for where, ledger in (("control", control), ("the hubs", hubs)):
        for path in sorted(set(ledger) - {device["path"] for device in case.devices.values()}):
            yield f"{path} is in the ledger of {where} but not in the wave"
    for name, expected in case.devices.items():
        at_hub, at_control = hubs.get(expected["path"]), control.get(expected["path"])
        if at_hub != at_control:
            yield f"{name}: the hub says {_words(at_hub)}, control says {_words(at_control)}"
        for where, outcome in (("its hub", at_hub), ("control", at_control)):
            if outcome is None or (outcome.kind, outcome.gate) != (expected["ending"], expected["gate"]):
                wanted = " ".join(filter(None, (expected["ending"], expected["gate"])))
                yield f"{name}: {where} says {_words(outcome)}, it must be {wanted}"


def ledger_names_the_bytes(case: Case) -> Iterator[str]:
    """The digest that control's ledger gives for a device is that of the bytes on its running slot."""
    for outcome in control_ledger(case.directory / "control", case.expected["wave"]):
        name = outcome.device.rpartition("/")[2]
        if name not in case.devices:
            continue
        active: Any = boot_environment(case.device(name))["active"]
        image = "new" if case.devices[name]["ending"] == "updated" else "old"
        if outcome.firmware_sha256 != slot_sha256(case.device(name), active["slot"], case.image(image)[1]):
            yield f"{name}: the ledger's digest is not that of slot {active['slot']}"


def served_once(case: Case) -> Iterator[str]:
    """Each byte of each artifact left the origin exactly once."""
    served = origin_bytes(case.directory / "origin" / "access.jsonl")
    for sha256, artifact in case.expected["artifacts"].items():
        if served.get(sha256, 0) != artifact["size_bytes"]:
            yield f"{artifact['name']}: {served.get(sha256, 0)} bytes served, it has {artifact['size_bytes']}"


def went_on_in_the_dark(case: Case) -> Iterator[str]:
    """While its WAN was cut, the store committed at least one device."""
    outage = case.expected["outage"]
    if outage is None:
        return
    if "restored_at" not in outage:
        yield f"the WAN of {outage['store']} was never cut and restored"
        return
    begin, end = (datetime.fromisoformat(outage[key]) for key in ("cut_at", "restored_at"))
    names = case.stores[outage["store"]]
    if not any(
        step.step == "state:COMMITTED" and begin <= step.at <= end
        for name in names
        for step in records(case.device(name), "steps")
    ):
        yield f"{outage['store']} committed nobody between {begin:%H:%M:%S} and {end:%H:%M:%S}"


def bad_releases_refused(case: Case) -> Iterator[str]:
    """Each bad release was refused by name, and control's audit says by which gate."""
    entries = audit(case.directory / "control") if case.expected["refused_releases"] else []
    for release, gate in case.expected["refused_releases"].items():
        if not any(release in f"{subject} {detail}" and gate in detail for _, subject, detail in entries):
            yield f"no refusal of {release} by gate {gate} in the audit"


FACTS: tuple[tuple[str, Callable[[Case], Iterator[str]]], ...] = (
    ("slots hold whole images", slots_hold_whole_images),
    ("boots tell the same", boots_tell_the_same),
    ("power failed where planned", power_failed_where_planned),
    ("swap limit kept", swap_limit_kept),
    ("ledgers agree", ledgers_agree),
    ("the ledger names the bytes", ledger_names_the_bytes),
    ("each byte left the origin once", served_once),
    ("the dark store went on", went_on_in_the_dark),
    ("bad releases refused by name", bad_releases_refused),
)


def check(directory: Path) -> list[Finding]:
    """All facts of a directory; raises EvidenceError when there is nothing to check."""
    case = Case(directory)
    findings = []
    for fact, violations in FACTS:
        try:
            seen = list(violations(case))
        except (EvidenceError, OSError, ValueError, KeyError) as exc:
            seen = [f"no evidence: {exc!r}"]
        findings.append(Finding(fact, not seen, "; ".join(seen)))
    return findings


def _by_device(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for outcome in outcomes:
        if outcome.device in found:
            raise EvidenceError(f"{outcome.device} counts twice")
        found[outcome.device] = outcome
    return found


def _words(outcome: Outcome | None) -> str:
    return "nothing" if outcome is None else f"{outcome.kind} {outcome.gate} (attempt {outcome.attempt})"


def main(argv: Sequence[str] | None = None) -> int:
    """Check from the command line."""
    return command("lab.checker", __doc__, _judged, argv)


def _judged(directory: Path) -> Judged:
    findings = check(directory)
    lines = []
    for finding in findings:
        lines.append(f"{'yes' if finding.holds else 'NO '}  {finding.fact}")
        if not finding.holds:
            lines += [f"       {line}" for line in finding.seen.split("; ")]
    told = "".join(f"{line}\n" for line in lines)
    return Judged(all(finding.holds for finding in findings), told, {"facts": [asdict(one) for one in findings]})


if __name__ == "__main__":
    sys.exit(main())
