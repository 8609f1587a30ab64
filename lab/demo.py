"""The demo: one wave, end to end, on real processes, with everything that may go wrong in it; checked at the end.

``lab/scenario.py`` says what happens to whom and what must come of it; this module makes it happen and waits for it. It
finds its way by the boards' records and the operator API; whether the story came out right is for ``lab/checker.py``
alone to say, and decides the exit code.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgectl.exits import Exit
from edgectl.output import Output, Page, Table, note, show
from edgectl.plain import plain
from edgectl.tables import ledger_parts
from lab import checker, hardware, operations, processes
from lab.checker import NEW_SLOT
from lab.environments import backend_of
from lab.evidence import EvidenceError, boot_environment, origin_bytes, slot_sha256
from lab.expectations import expect
from lab.images import digest_of
from lab.play import play_wave
from lab.policies import OLD_RELEASE, RELEASE, SWAP_LIMIT, policy_text
from lab.provision import enrol_as_configured, exists, image, provision
from lab.refusals import Refusal, try_bad_releases
from lab.scenario import SCANNER_DEVICE, Fault, Scenario, Tamper, draw
from lab.story import Story
from lab.tampering import RAISED_LIMIT, tamper
from lab.topology import STORES, WAVE, device_id
from lab.up import images
from wavemesh.errors import ConflictError, WavemeshError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lab.checker import Finding
    from lab.images import ImagePair
    from lab.topology import Lab


_TERMINATED = 128 + signal.SIGTERM


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What ``edgectl lab demo`` was asked for; without a directory it is a temporary one, kept only on failure."""

    seed: int
    old: Path | None
    new: Path | None
    faults: tuple[Fault, ...]
    directory: Path | None
    tamper: Tamper | None
    backends: Mapping[str, str] = field(default_factory=dict)
    output: Output = Output.TABLE


def run_demo(options: DemoOptions) -> int:
    """Run it; returns the exit code. Raises WavemeshError when it cannot even be set up."""
    scenario = draw(options.seed, STORES, options.faults)
    if options.directory is not None and exists(options.directory):
        raise ConflictError(f"{options.directory} holds a lab already; choose another --dir or remove it")
    directory = options.directory or Path(tempfile.mkdtemp(prefix="wavemesh-demo-"))
    # Whoever ends the demo ends what it started: SIGTERM unwinds as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    began_s = time.monotonic()
    note(f"setting up in {directory}")
    limit = RAISED_LIMIT if options.tamper is Tamper.LIMIT else SWAP_LIMIT
    lab = set_up(directory, images(options.old, options.new), scenario, limit, options.backends)
    note(f"set up in {time.monotonic() - began_s:.1f} s")
    story = Story(lab, sys.stdout if options.output is Output.TABLE else sys.stderr)
    try:
        with story:
            _play(lab, scenario, story)
        took_s = story.elapsed_s
        ledger = plain(operations.ledger(lab, "control", WAVE))
    except WavemeshError as exc:
        note(f"error: {exc}")
        return _failed(directory)
    finally:
        processes.stop_all(lab)
        signal.signal(signal.SIGTERM, before)
    tamper(lab, scenario, options.tamper)
    findings = checker.check(directory)
    devices = _device_rows(lab, ledger)
    columns = ("device", "backend", "outcome", "gate", "slot", "version", "sha256 of the slot's bytes")
    story.show("", Table("devices", columns, [tuple(map(str, row.values())) for row in devices]))
    story.show("", *ledger_parts(ledger), "", *_finding_lines(findings), f"the story took {took_s:.1f} s")
    holds = all(finding.holds for finding in findings)
    if options.output is not Output.TABLE:
        data = {"holds": holds, "seed": options.seed, "wall_s": round(took_s, 1), "devices": devices, "ledger": ledger}
        show(options.output, {**data, "facts": [asdict(finding) for finding in findings]}, Page())
    if not holds:
        return _failed(directory)
    if options.directory is None:
        shutil.rmtree(directory)
    return Exit.OK


def _failed(directory: Path) -> int:
    note(f"not as it must be; everything is kept in {directory} (logs in run/), `python -m lab.checker {directory}`")
    return Exit.CHECK_FAILED


def set_up(
    directory: Path,
    pair: ImagePair,
    scenario: Scenario,
    swap_limit: int,
    backends: Mapping[str, str] | None = None,
) -> Lab:
    """Make the lab, its faults, its policy and what the checker is to expect."""
    lab = provision(directory, pair, backends)
    if scenario.scanner_lost:
        hardware.lose_scanner(lab.device_dir(SCANNER_DEVICE), "B")
    for fault in scenario.faults:
        hardware.break_device(lab.device_dir(fault.device), fault.kind.gate, RELEASE.version)
        enrol_as_configured(lab, fault.device)
    policy = policy_text(RELEASE, swap_limit=swap_limit, halt_least_outcomes=scenario.halt_least_outcomes)
    lab.policy_path.write_text(policy, encoding="utf-8")
    expect(lab, scenario, None, None)
    return lab


def _play(lab: Lab, scenario: Scenario, story: Story) -> None:
    """The story, from the first server to agreeing ledgers; raises WavemeshError when something does not come."""
    play_wave(lab, scenario, story)
    sha256, size_bytes = digest_of(image(lab, RELEASE))
    served = origin_bytes(lab.origin_dir / "access.jsonl").get(sha256, 0)
    story.tell("origin", f"served {served} bytes of {RELEASE.firmware} ({size_bytes}) for {len(lab.devices)} devices")
    try_bad_releases(lab, lambda refusal: _tell_refusal(story, refusal))


def _tell_refusal(story: Story, refusal: Refusal) -> None:
    story.tell("refused", f"{refusal.release} by gate {refusal.gate}: {refusal.words}")


def _device_rows(lab: Lab, ledger: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every device as it really is: the running slot by its boot environment, the digest of the bytes on it."""
    outcomes = {entry["device"]: entry for entry in ledger["entries"]}
    rows = []
    for store, names in lab.stores.items():
        for name in names:
            outcome = outcomes.get(device_id(store, name).path, {"kind": "nothing", "gate": ""})
            try:
                active: Any = boot_environment(lab.device_dir(name))["active"]
                slot = active["slot"]
            except EvidenceError:
                slot = "?"
            updated = slot == NEW_SLOT
            release = RELEASE if updated else OLD_RELEASE
            size_bytes = image(lab, release).stat().st_size
            rows.append(
                {
                    "device": name,
                    "backend": backend_of(lab.device_dir(name)),
                    "outcome": outcome["kind"].replace("_", " "),
                    "gate": outcome["gate"] or "-",
                    "slot": slot,
                    "version": release.version,
                    "sha256": slot_sha256(lab.device_dir(name), slot, size_bytes),
                }
            )
    return rows


def _finding_lines(findings: Sequence[Finding]) -> list[str]:
    lines = ["what the checker found:"]
    for finding in findings:
        lines.append(f"  {'yes' if finding.holds else 'NO '}  {finding.fact}")
        lines += [f"         {seen}" for seen in finding.seen.split("; ") if seen]
    return lines
