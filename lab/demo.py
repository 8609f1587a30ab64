"""The demo: one wave, end to end, on real processes, with everything that may go wrong in it; checked at the end.

``lab/scenario.py`` says what happens to whom and what must come of it; this module makes it happen and waits for it. It
finds its way by the boards' records and the operator API; whether the story came out right is for ``lab/checker.py``
alone to say, and decides the exit code.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgectl.contexts import save_contexts
from edgectl.exits import Exit
from edgectl.output import Output, Page, Table, note, show
from edgectl.plain import plain
from edgectl.tables import ledger_parts
from lab import checker, hardware, operations, processes
from lab.checker import NEW_SLOT
from lab.evidence import EvidenceError, boot_environment, slot_sha256
from lab.expectations import expect
from lab.injectors import tell_supervisor, tell_wan
from lab.policies import OLD_RELEASE, RELEASE, SWAP_LIMIT, policy_text
from lab.provision import exists, image, provision
from lab.refusals import Refusal, try_bad_releases
from lab.scenario import SCANNER_DEVICE, Ending, Fault, Scenario, Tamper, draw
from lab.story import Story, Watch
from lab.tampering import RAISED_LIMIT, tamper
from lab.topology import COHORT, STORES, WAVE, device_id
from lab.up import images, prepare, start_servers
from wavemesh.errors import ConflictError, WavemeshError
from wavemesh.trust.statements import IntentKind, OperatorIntent
from wavemesh.v1.report_pb2 import OUTCOME_KIND_UPDATED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lab.checker import Finding
    from lab.topology import Lab
    from wavemesh.v1.operator_pb2 import LedgerEntry

WAVE_TIMEOUT_S = 100.0
OUTAGE_TIMEOUT_S = 45.0
_POLL_S = 0.2
_LEDGER_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What ``edgectl lab demo`` was asked for; without a directory it is a temporary one, kept only on failure."""

    seed: int
    old: Path | None
    new: Path | None
    faults: tuple[Fault, ...]
    directory: Path | None
    tamper: Tamper | None
    output: Output = Output.TABLE


@dataclass(slots=True)
class Outage:
    """When the WAN was cut and came back."""

    cut_at: datetime | None = None
    restored_at: datetime | None = None


def run_demo(options: DemoOptions) -> int:
    """Run it; returns the exit code. Raises WavemeshError when it cannot even be set up."""
    scenario = draw(options.seed, STORES, options.faults)
    if options.directory is not None and exists(options.directory):
        raise ConflictError(f"{options.directory} holds a lab already; choose another --dir or remove it")
    directory = options.directory or Path(tempfile.mkdtemp(prefix="wavemesh-demo-"))
    began_s = time.monotonic()
    note(f"setting up in {directory}")
    lab = _set_up(directory, options, scenario)
    note(f"set up in {time.monotonic() - began_s:.1f} s")
    story = Story(lab, to_stdout=options.output is Output.TABLE)
    try:
        with story:
            _play(lab, scenario, story)
        took_s = story.elapsed_s
        ledger = plain(operations.ledger(lab, "control", WAVE))
    except WavemeshError as exc:
        note(f"error: {exc}")
        return _failed(options, directory)
    finally:
        processes.stop_all(lab)
    tamper(lab, scenario, options.tamper)
    findings = checker.check(directory)
    devices = _device_rows(lab, ledger)
    columns = ("device", "outcome", "gate", "slot", "version", "sha256 of the slot's bytes")
    story.show("", Table("devices", columns, [tuple(map(str, row.values())) for row in devices]))
    story.show("", *ledger_parts(ledger), "", *_finding_lines(findings), f"the story took {took_s:.1f} s")
    holds = all(finding.holds for finding in findings)
    if options.output is not Output.TABLE:
        data = {"holds": holds, "seed": options.seed, "wall_s": round(took_s, 1), "devices": devices, "ledger": ledger}
        show(options.output, {**data, "facts": [asdict(finding) for finding in findings]}, Page())
    if not holds:
        return _failed(options, directory)
    if options.directory is None:
        shutil.rmtree(directory)
    return Exit.OK


def _failed(options: DemoOptions, directory: Path) -> int:
    del options
    note(f"not as it must be; everything is kept in {directory} (logs in run/), `python -m lab.checker {directory}`")
    return Exit.CHECK_FAILED


def _set_up(directory: Path, options: DemoOptions, scenario: Scenario) -> Lab:
    """Make the lab, its faults, its policy and what the checker is to expect."""
    lab = provision(directory, images(options.old, options.new))
    if scenario.scanner_lost:
        hardware.lose_scanner(lab.device_dir(SCANNER_DEVICE), "B")
    for fault in scenario.faults:
        hardware.break_device(lab.device_dir(fault.device), fault, RELEASE.version)
    limit = RAISED_LIMIT if options.tamper is Tamper.LIMIT else SWAP_LIMIT
    policy = policy_text(RELEASE, swap_limit=limit, halt_least_outcomes=scenario.halt_least_outcomes)
    lab.policy_path.write_text(policy, encoding="utf-8")
    expect(lab, scenario, None, None)
    return lab


def _play(lab: Lab, scenario: Scenario, story: Story) -> None:
    """The story, from the first server to agreeing ledgers; raises WavemeshError when something does not come."""
    start_servers(lab)
    story.tell("lab", "control, super hub, two store hubs, origin and WAN are up")
    prepare(lab)
    story.tell(
        "control", f"policy accepted; {RELEASE.name} signed by 2 of 3 release keys, published; wave {WAVE} planned"
    )
    save_contexts(lab.contexts_path, operations.contexts(lab))
    processes.start(lab, lab.devices)
    operations.wait_connected(lab)
    story.tell("lab", f"{len(lab.devices)} devices are connected")
    for cut in (scenario.write_cut, scenario.swap_cut):
        tell_supervisor(lab, cut.device, f"power-cut-at {cut.step}")
    start = OperatorIntent("demo-start", IntentKind.START_WAVE, datetime.now(UTC), wave_id=WAVE, cohort=COHORT)
    operations.give(lab, "control", start)
    story.tell("alice", f"starts wave {WAVE}")
    _follow_wave(lab, scenario, story)
    try_bad_releases(lab, lambda refusal: _tell_refusal(story, refusal))


def _follow_wave(lab: Lab, scenario: Scenario, story: Story) -> None:
    """Tell what happens, cut and restore the WAN when it is time, until control's ledger is final."""
    watch, outage = Watch(lab), Outage()
    asked_s, deadline_s = 0.0, time.monotonic() + WAVE_TIMEOUT_S
    while time.monotonic() < deadline_s:
        story.tell_news(watch)
        _drive_outage(lab, scenario, outage, watch, story)
        if outage.restored_at is not None and time.monotonic() - asked_s >= _LEDGER_EVERY_S:
            asked_s = time.monotonic()
            if _is_final(lab, scenario):
                story.tell("control", "the ledgers agree; the wave is through")
                return
        time.sleep(_POLL_S)
    story.tell("lab", f"the wave is not through after {WAVE_TIMEOUT_S:.0f} s")


def _drive_outage(lab: Lab, scenario: Scenario, outage: Outage, watch: Watch, story: Story) -> None:
    store, plan = scenario.outage.store, scenario.outage
    sound = [device for device in lab.stores[store] if scenario.expected[device].ending is Ending.UPDATED]
    if outage.cut_at is None:
        if sum(plan.step in watch.reached[device] for device in sound) >= plan.devices:
            watch.reached_in_outage.clear()
            tell_wan(lab, "cut", store)
            outage.cut_at = datetime.now(UTC)
            story.tell("wan", f"{store} is cut off")
    elif outage.restored_at is None:
        overdue = datetime.now(UTC) - outage.cut_at > timedelta(seconds=OUTAGE_TIMEOUT_S)
        if overdue or any((device, "state:COMMITTED") in watch.reached_in_outage for device in sound):
            entries = operations.ledger(lab, store, WAVE).entries
            known = sum(entry.kind == OUTCOME_KIND_UPDATED for entry in entries)
            story.tell("alice", f"asks {store}'s hub for its ledger, in the dark: {known} of {len(entries)} updated")
            outage.restored_at = datetime.now(UTC)
            tell_wan(lab, "restore", store)
            story.tell("wan", f"{store} is back")
            expect(lab, scenario, outage.cut_at, outage.restored_at)


def _is_final(lab: Lab, scenario: Scenario) -> bool:
    """Whether control and every hub know how each device ended, and agree."""
    try:
        control = _entries(operations.ledger(lab, "control", WAVE).entries)
        hubs: dict[str, tuple[str, str, int]] = {}
        for store in lab.stores:
            hubs |= _entries(operations.ledger(lab, store, WAVE).entries)
    except WavemeshError:
        return False
    wanted = {
        device_id(lab.store_of(name), name).path: expected.ending.value for name, expected in scenario.expected.items()
    }
    return control == hubs and {path: kind for path, (kind, _, _) in control.items()} == wanted


def _entries(entries: Iterable[LedgerEntry]) -> dict[str, tuple[str, str, int]]:
    found = [plain(entry) for entry in entries]
    return {entry["device"]: (entry["kind"], entry["gate"], entry["attempt"]) for entry in found}


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
