"""Falsifies one fact of a finished run at a time, to see that the checker finds exactly it, and puts it back."""

from __future__ import annotations

import json
import shutil
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lab.evidence import boot_environment, control_ledger, database
from tests.chaos import checker
from tests.chaos.plots import Plot

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from tests.chaos.waves import Wave

    Falsification = tuple[str, Callable[[Path], None], Path]

NEEDED = (Plot.NO_SCANNER, Plot.OPERATED)
"""Plots that a run has to have had."""
_STRETCH = 4096
_SWAP = ("state:ARMED", "state:COMMITTED")


def falsified(directory: Path) -> tuple[int, list[str]]:
    """How many falsifications there were, and those that the checker did not find under their own kind."""
    missed = []
    known = _falsifications(directory)
    for kind, falsify, file in known:
        original = file.with_name(file.name + ".true")
        shutil.copy2(file, original)
        try:
            falsify(file)
            if not checker.check(directory).wrong[kind]:
                missed.append(f"{kind}: {falsify.__name__} in {file}")
        finally:
            original.replace(file)
    return len(known), missed


def _falsifications(directory: Path) -> list[Falsification]:
    """By kind: what is done to which file."""
    return [
        *_of_devices(directory),
        *_of_ledgers(directory),
        *_of_bad_releases(directory),
        *_of_operators(directory),
        *_of_stops(directory),
    ]


def _of_devices(directory: Path) -> list[Falsification]:
    run = checker.Run(directory)
    first, *_ = names = next(iter(run.stores.values()))
    slot = str(boot_environment(run.device(first))["active"]["slot"])  # type: ignore[index]
    runs = checker.running(run, first)

    def spoil_image(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[_STRETCH : 2 * _STRETCH] = bytes(byte ^ 0xFF for byte in content[_STRETCH : 2 * _STRETCH])
        file.write_bytes(content)

    def cut_short(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-20])

    def swap_with_the_others(file: Path) -> None:
        _overlap(run, names, file)

    def run_another_version(file: Path) -> None:
        def exchange(expected: dict[str, Any]) -> None:
            images = expected["images"]
            other = next(version for version in images if version != runs)
            images[other], images[runs] = images[runs], images[other]

        _expect(file, exchange)

    def spoil_page(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[_STRETCH : 2 * _STRETCH] = b"\xa5" * _STRETCH
        file.write_bytes(content)

    return [
        ("bricked", spoil_image, run.device(first) / "slots" / f"{slot}.img"),
        ("bricked", cut_short, run.device(first) / "slots" / "bootenv.json"),
        ("over_limit", swap_with_the_others, run.device(first) / "run" / "steps.jsonl"),
        ("untrue", run_another_version, directory / "expected.json"),
        ("corrupt", spoil_page, _database(directory / "superhub")),
    ]


def _of_ledgers(directory: Path) -> list[Falsification]:
    run = checker.Run(directory)
    stores = list(run.stores)
    path = run.paths[run.stores[stores[0]][0]]
    control = _database(directory / "control")
    other_hub = _database(directory / "stores" / stores[1])
    wave = next(one.name for one in reversed(run.waves) if _has(directory, one.name, path))

    def forget_outcome(file: Path) -> None:
        _execute(file, "DELETE FROM outcomes WHERE wave_id = ? AND device = ?", wave, path)

    def change_outcome(file: Path) -> None:
        _execute(file, "UPDATE outcomes SET attempt = attempt + 1 WHERE wave_id = ? AND device = ?", wave, path)

    def count_twice(file: Path) -> None:
        sql = "INSERT INTO outcomes SELECT wave_id, ?, envelope, signed_by, received_at FROM outcomes LIMIT 1"
        _execute(file, sql, path)

    def count_elsewhere(file: Path) -> None:
        sql = "SELECT envelope FROM outcomes WHERE wave_id = ? AND device = ?"
        ((envelope,),) = _execute(database(directory / "stores" / stores[0]), sql, wave, path)
        _execute(file, "INSERT INTO outcomes VALUES (?, ?, ?, '', 0)", wave, path, envelope)

    def tell_one_more(file: Path) -> None:
        def add(expected: dict[str, Any]) -> None:
            told = expected["waves"][-1]["told"][stores[1]]
            told["updated"] = told.get("updated", 0) + 1

        _expect(file, add)

    return [
        ("lost", forget_outcome, control),
        ("lost", change_outcome, control),
        ("duplicated", count_twice, other_hub),
        ("duplicated", count_elsewhere, other_hub),
        ("miscounted", tell_one_more, directory / "expected.json"),
    ]


def _of_bad_releases(directory: Path) -> list[Falsification]:
    """One that was kept, or did not halt."""
    run = checker.Run(directory)
    control = _database(directory / "control")
    bad = _wave(run, Plot.NO_SCANNER)
    ledger = run.see(bad).ledgers["control"]
    back = next(one.device for one in ledger if one.kind == "rolled_back")
    names = {path: name for name, path in run.paths.items()}

    def call_it_updated(file: Path) -> None:
        _execute(file, "UPDATE outcomes SET kind = 'UPDATED' WHERE wave_id = ? AND device = ?", bad.name, back)

    def commit_it(file: Path) -> None:
        _add_steps(file, bad.began, "state:COMMITTING", "state:COMMITTED")

    def keep_it(file: Path) -> None:
        def keep(expected: dict[str, Any]) -> None:
            expected["waves"][run.waves.index(bad)]["ran"][names[back]] = bad.version

        _expect(file, keep)

    def return_to_another(file: Path) -> None:
        def exchange(expected: dict[str, Any]) -> None:
            expected["waves"][run.waves.index(bad)]["ran"][names[back]] = run.waves[-1].version

        _expect(file, exchange)

    def go_on(file: Path) -> None:
        _execute(file, "UPDATE waves SET state = 'CLOSED' WHERE wave_id = ?", bad.name)

    return [
        ("escaped", call_it_updated, control),
        ("escaped", commit_it, run.device(names[back]) / "run" / "steps.jsonl"),
        ("escaped", keep_it, directory / "expected.json"),
        ("unreturned", return_to_another, directory / "expected.json"),
        ("miscounted", go_on, control),
    ]


def _of_operators(directory: Path) -> list[Falsification]:
    """A rollback that was not, a halt that nobody called for, operators who did nothing."""
    run = checker.Run(directory)
    control = _database(directory / "control")
    operated = _wave(run, Plot.OPERATED)

    def name_another_gate(file: Path) -> None:
        path = run.paths[operated.rollbacks[0]]
        _execute(file, "UPDATE outcomes SET gate = 'watchdog' WHERE wave_id = ? AND device = ?", operated.name, path)

    def halt_falsely(file: Path) -> None:
        _execute(file, "UPDATE waves SET state = 'HALTED' WHERE wave_id = ?", operated.name)

    def do_nothing(file: Path) -> None:
        def forget(expected: dict[str, Any]) -> None:
            del expected["waves"][run.waves.index(operated)]["stops"]

        _expect(file, forget)

    return [
        ("ignored", name_another_gate, control),
        ("miscounted", halt_falsely, control),
        ("unexercised", do_nothing, directory / "expected.json"),
    ]


def _of_stops(directory: Path) -> list[Falsification]:
    """Who ARMED without a permit, beyond what was outstanding at a stop, or by a lease that a paused hub never gave."""
    run = checker.Run(directory)
    names = {path: name for name, path in run.paths.items()}
    operated = _wave(run, Plot.OPERATED)
    updated = next(one.device for one in run.see(operated).ledgers["control"] if one.kind == "updated")
    found: list[Falsification] = []

    def take_the_permit(file: Path) -> None:
        _execute(file, "DELETE FROM permits WHERE wave_id = ? AND device = ?", operated.name, updated)

    def pause_from_the_start(file: Path) -> None:
        def stretch(expected: dict[str, Any]) -> None:
            wave = expected["waves"][run.waves.index(operated)]
            stop = next(one for one in wave["stops"] if one.get("store"))
            stop["since"], stop["until"] = wave["began_at"], None

        _expect(file, stretch)

    for wave in run.waves:
        for stop in wave.stops:
            beyond = sorted(set(names) - stop.outstanding)
            if stop.store or not beyond:
                continue

            def arm(file: Path, since: datetime = stop.since) -> None:
                _add_steps(file, since, "state:ARMED", "state:ROLLED_BACK")

            found.append(("exposed", arm, run.device(names[beyond[0]]) / "run" / "steps.jsonl"))
    return [
        *found,
        ("exposed", take_the_permit, _database(directory / "control")),
        ("exposed", pause_from_the_start, directory / "expected.json"),
    ]


def _wave(run: checker.Run, plot: Plot) -> Wave:
    return next(one for one in run.waves if one.plot is plot)


def _has(directory: Path, wave: str, path: str) -> bool:
    return any(one.device == path for one in control_ledger(directory / "control", wave))


def _expect(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    expected = json.loads(file.read_text(encoding="utf-8"))
    change(expected)
    file.write_text(json.dumps(expected), encoding="utf-8")


def _add_steps(file: Path, since: datetime, *steps: str) -> None:
    """Announced a millisecond apart from then on."""
    with file.open("a", encoding="utf-8") as lines:
        for number, step in enumerate(steps, start=1):
            at = since + timedelta(milliseconds=number)
            lines.write(json.dumps({"at": at.isoformat(), "boot_id": "", "step": step}) + "\n")


def _overlap(run: checker.Run, names: list[str], file: Path) -> None:
    """The device says that it was inside a swap from before the first record of all to after the last."""
    lines = [line for name in names for line in (run.device(name) / "run" / "steps.jsonl").read_text().splitlines()]
    times = sorted(str(json.loads(line)["at"]) for line in lines)
    began, ended = (
        {"at": at, "boot_id": "", "step": step} for at, step in zip((times[0], times[-1]), _SWAP, strict=True)
    )
    file.write_text(f"{json.dumps(began)}\n{json.dumps(ended)}\n", encoding="utf-8")


def _database(node: Path) -> Path:
    path = database(node)
    # All into one file, which alone is put back.
    _execute(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def _execute(path: Path, sql: str, *parameters: str | bytes) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        with connection:
            return connection.execute(sql, parameters).fetchall()
    finally:
        connection.close()
