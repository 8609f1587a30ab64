"""The checker on evidence made by hand: it is content with the truth, and names each falsification by its fact."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from lab.checker import check, main
from lab.evidence import EvidenceError, Swap, most_at_once, records, signed_outcome
from wavemesh.codec.statements import encode
from wavemesh.trust.statements import DeviceOutcome, Envelope, OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OLD, NEW = b"old image " * 1000, b"new image " * 1100
BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
# Device, store, outcome, gate, when it was in its swap (seconds).
DEVICES = {
    "pos-01": ("store-208", OutcomeKind.UPDATED, "", (0, 10)),
    "pos-02": ("store-208", OutcomeKind.UPDATED, "", (10, 20)),
    "pos-12": ("store-209", OutcomeKind.UPDATED, "", (5, 15)),
    "pos-17": ("store-209", OutcomeKind.ROLLED_BACK, "peripheral:scanner", (15, 25)),
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def path_of(name: str) -> str:
    return f"region/midwest/store/{DEVICES[name][0]}/device/{name}"


def at(second: float) -> str:
    return (BEGAN + timedelta(seconds=second)).isoformat()


def write_environment(device: Path, slot: str) -> None:
    content: dict[str, Any] = {"format": 1, "sequence": 3, "active": {"slot": slot}, "previous": None, "trial": None}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    (device / "config.toml").write_text("[board]\n")
    (device / "slots" / "bootenv.json").write_text(json.dumps({**content, "checksum": sha256(canonical)}))


def make_device(directory: Path, name: str) -> None:
    _, kind, _, (begin, end) = DEVICES[name]
    device = directory / "devices" / name
    (device / "slots").mkdir(parents=True)
    (device / "run").mkdir()
    (device / "slots" / "A.img").write_bytes(OLD + b"\0" * 100)
    (device / "slots" / "B.img").write_bytes(NEW)
    updated = kind is OutcomeKind.UPDATED
    write_environment(device, "B" if updated else "A")
    boots = [("A", "power-on", -5.0), ("A", "power-loss", -2.0), ("B", "reboot", begin + 1.0)]
    lines = [{"at": at(when), "boot_id": "x", "slot": slot, "reason": reason} for slot, reason, when in boots]
    (device / "run" / "boots.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"at": "torn')
    steps = [
        ("state:ARMED", begin),
        ("state:TRIAL", begin + 2),
        ("state:COMMITTED" if updated else "state:ROLLED_BACK", end),
    ]
    (device / "run" / "steps.jsonl").write_text(
        "".join(json.dumps({"at": at(when), "boot_id": "x", "step": step}) + "\n" for step, when in steps)
    )


def envelope_of(name: str) -> bytes:
    _, kind, gate, _ = DEVICES[name]
    firmware = sha256(NEW if kind is OutcomeKind.UPDATED else OLD)
    outcome = DeviceOutcome("142", path_of(name), 1, 2, kind, gate, "", "b", "B", firmware, "3.8.2", "", BEGAN)
    return encode(Envelope(DeviceOutcome.payload_type, encode(outcome), ()))


def database(node: Path, name: str) -> sqlite3.Connection:
    (node / "state").mkdir(parents=True, exist_ok=True)
    return sqlite3.connect(node / "state" / name)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A wave that went as it must."""
    for name in DEVICES:
        make_device(tmp_path, name)
    for store in ("store-208", "store-209"):
        with database(tmp_path / "stores" / store, "hub.sqlite3") as hub:
            hub.execute("CREATE TABLE outcomes (wave_id, device, envelope)")
            for name in (name for name, entry in DEVICES.items() if entry[0] == store):
                hub.execute("INSERT INTO outcomes VALUES ('142', ?, ?)", (path_of(name), envelope_of(name)))
    with database(tmp_path / "control", "control.sqlite") as control:
        control.execute(
            "CREATE TABLE outcomes (wave_id, device, kind, gate, attempt, firmware_sha256, firmware_version)"
        )
        for name, (_, kind, gate, _) in DEVICES.items():
            firmware = sha256(NEW if kind is OutcomeKind.UPDATED else OLD)
            row = (path_of(name), kind.name, gate, firmware)
            control.execute("INSERT INTO outcomes VALUES ('142', ?, ?, ?, 1, ?, '3.8.2')", row)
        control.execute("CREATE TABLE audit (action, subject, detail)")
        control.execute("INSERT INTO audit VALUES ('compliance-refused', 'firmware-old', 'gate freshness; too old')")
    (tmp_path / "origin").mkdir()
    halves = [{"status": 200, "path": f"/blobs/{sha256(NEW)}", "bytes": 1000}]
    halves += [{"status": 206, "path": f"/blobs/{sha256(NEW)}", "bytes": len(NEW) - 1000}]
    (tmp_path / "origin" / "access.jsonl").write_text("".join(json.dumps(line) + "\n" for line in halves))
    expect(tmp_path)
    return tmp_path


def expect(directory: Path, **changes: Any) -> None:
    expected = {
        "wave": "142",
        "swap_limit": 1,
        "images": {n: {"sha256": sha256(d), "size_bytes": len(d)} for n, d in (("old", OLD), ("new", NEW))},
        "artifacts": {sha256(NEW): {"name": "firmware", "size_bytes": len(NEW)}},
        "stores": {s: [n for n, e in DEVICES.items() if e[0] == s] for s in ("store-208", "store-209")},
        "devices": {
            n: {"path": path_of(n), "ending": kind.name.lower(), "gate": gate}
            for n, (_, kind, gate, _) in DEVICES.items()
        },
        "power_cuts": {"pos-01": "staging:40%"},
        "outage": {"store": "store-209", "cut_at": at(4), "restored_at": at(16)},
        "refused_releases": {"firmware-old": "freshness"},
    }
    (directory / "expected.json").write_text(json.dumps({**expected, **changes}))


def violated(directory: Path) -> set[str]:
    return {finding.fact for finding in check(directory) if not finding.holds}


def test_the_truth_is_found_to_hold(case: Path) -> None:
    assert [finding for finding in check(case) if not finding.holds] == []
    assert main([str(case)]) == 0


def alter_running_slot(case: Path) -> None:
    (case / "devices" / "pos-01" / "slots" / "B.img").write_bytes(NEW[:5000] + b"?" + NEW[5001:])


def alter_previous_slot(case: Path) -> None:
    (case / "devices" / "pos-02" / "slots" / "A.img").write_bytes(b"?" + OLD[1:])


def claim_other_slot(case: Path) -> None:
    write_environment(case / "devices" / "pos-17", "B")


def corrupt_environment(case: Path) -> None:
    path = case / "devices" / "pos-01" / "slots" / "bootenv.json"
    path.write_text(path.read_text().replace('"sequence": 3', '"sequence": 4'))


def forget_trial_boot(case: Path) -> None:
    path = case / "devices" / "pos-17" / "run" / "boots.jsonl"
    path.write_text(path.read_text().replace('"slot": "B"', '"slot": "A"'))


def forget_power_cut(case: Path) -> None:
    path = case / "devices" / "pos-01" / "run" / "boots.jsonl"
    path.write_text(path.read_text().replace("power-loss", "reboot"))


def overlap_swaps(case: Path) -> None:
    path = case / "devices" / "pos-02" / "run" / "steps.jsonl"
    path.write_text(path.read_text().replace(at(10), at(9)))


def delete_report(case: Path) -> None:
    with database(case / "control", "control.sqlite") as control:
        control.execute("DELETE FROM outcomes WHERE device = ?", (path_of("pos-12"),))


def change_gate(case: Path) -> None:
    with database(case / "control", "control.sqlite") as control:
        control.execute("UPDATE outcomes SET gate = 'watchdog' WHERE gate <> ''")


def count_twice(case: Path) -> None:
    with database(case / "stores" / "store-209", "hub.sqlite3") as hub:
        hub.execute("INSERT INTO outcomes SELECT * FROM outcomes LIMIT 1")


def name_other_bytes(case: Path) -> None:
    for node, name in (("control", "control.sqlite"),):
        with database(case / node, name) as control:
            control.execute("UPDATE outcomes SET firmware_sha256 = ? WHERE device = ?", ("0" * 64, path_of("pos-01")))


def serve_again(case: Path) -> None:
    with (case / "origin" / "access.jsonl").open("a") as log:
        log.write(json.dumps({"status": 200, "path": f"/blobs/{sha256(NEW)}", "bytes": 1}) + "\n")


def commit_after_outage(case: Path) -> None:
    expect(case, outage={"store": "store-209", "cut_at": at(16), "restored_at": at(30)})


def never_cut(case: Path) -> None:
    expect(case, outage={"store": "store-209"})


def refuse_nothing(case: Path) -> None:
    expect(case, refused_releases={"firmware-old": "freshness", "firmware-held": "hold"})


def lose_database(case: Path) -> None:
    (case / "stores" / "store-208" / "state" / "hub.sqlite3").unlink()


@pytest.mark.parametrize(
    ("falsify", "facts"),
    [
        (alter_running_slot, {"slots hold whole images", "the ledger names the bytes"}),
        (alter_previous_slot, {"slots hold whole images"}),
        (claim_other_slot, {"slots hold whole images", "the ledger names the bytes"}),
        (corrupt_environment, {"slots hold whole images", "the ledger names the bytes"}),
        (forget_trial_boot, {"boots tell the same"}),
        (forget_power_cut, {"power failed where planned"}),
        (overlap_swaps, {"swap limit kept"}),
        (delete_report, {"ledgers agree"}),
        (change_gate, {"ledgers agree"}),
        (count_twice, {"ledgers agree"}),
        (name_other_bytes, {"ledgers agree", "the ledger names the bytes"}),
        (serve_again, {"each byte left the origin once"}),
        (commit_after_outage, {"the dark store went on"}),
        (never_cut, {"the dark store went on"}),
        (refuse_nothing, {"bad releases refused by name"}),
        (lose_database, {"ledgers agree"}),
    ],
)
def test_each_falsification_is_found_and_named(
    case: Path, falsify: Callable[[Path], None], facts: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    falsify(case)
    assert violated(case) == facts
    assert main([str(case), "--json", "-"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["holds"] is False
    assert all(f"NO   {fact}" in printed.err for fact in facts)


def test_without_expectations_there_is_nothing_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "expected.json" in capsys.readouterr().err


def test_a_torn_line_is_no_record(case: Path) -> None:
    assert len(records(case / "devices" / "pos-01", "boots")) == 3


def test_overlaps_are_counted_exactly() -> None:
    def swap(device: str, begin: float, end: float) -> Swap:
        return Swap(device, BEGAN + timedelta(seconds=begin), BEGAN + timedelta(seconds=end))

    assert most_at_once([]) == (0, [])
    assert most_at_once([swap("a", 0, 1), swap("b", 1, 2)]) == (1, ["a"])
    assert most_at_once([swap("a", 0, 5), swap("b", 1, 2), swap("c", 2, 3), swap("d", 2.5, 6)]) == (3, ["a", "c", "d"])


def test_a_message_cut_short_is_a_finding() -> None:
    with pytest.raises(EvidenceError):
        signed_outcome(envelope_of("pos-01")[:1])


def test_the_checker_loads_no_product_code() -> None:
    code = (
        "import sys, lab.checker; "
        "bad = [m for m in sys.modules if m.split('.')[0] in "
        "('wavemesh', 'control', 'superhub', 'storehub', 'device', 'edgectl', 'grpc', 'google')]; "
        "sys.exit(','.join(bad) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
