"""Falsifies one fact of a finished run at a time, to see that the checker finds exactly it, and puts it back."""

from __future__ import annotations

import json
import shutil
import sqlite3
from typing import TYPE_CHECKING, Any

from lab.evidence import boot_environment, database
from tests.chaos import checker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_STRETCH = 4096
_SWAP = ("state:ARMED", "state:COMMITTED")


def unseen(directory: Path) -> list[str]:
    """The falsifications that the checker did not find under their own kind."""
    missed = []
    for kind, falsify, file in _falsifications(directory):
        original = file.with_name(file.name + ".true")
        shutil.copy2(file, original)
        try:
            falsify(file)
            if not checker.check(directory).wrong[kind]:
                missed.append(f"{kind}: {falsify.__name__} in {file}")
        finally:
            original.replace(file)
    return missed


def _falsifications(directory: Path) -> list[tuple[str, Callable[[Path], None], Path]]:
    """By kind: what is done to which file."""
    run = checker.Run(directory)
    stores = list(run.stores)
    first, *_ = names = run.stores[stores[0]]
    slot = str(boot_environment(run.device(first))["active"]["slot"])  # type: ignore[index]
    control = _database(directory / "control")
    other_hub = _database(directory / "stores" / stores[1])
    wave, path = run.waves[-1]["wave"], run.paths[first]

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

    def spoil_image(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[_STRETCH : 2 * _STRETCH] = bytes(byte ^ 0xFF for byte in content[_STRETCH : 2 * _STRETCH])
        file.write_bytes(content)

    def cut_short(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-20])

    def swap_with_the_others(file: Path) -> None:
        _overlap(run, names, file)

    def run_another_version(file: Path) -> None:
        expected = json.loads(file.read_text(encoding="utf-8"))
        versions = list(expected["images"])
        images = expected["images"]
        images[versions[0]], images[versions[-1]] = images[versions[-1]], images[versions[0]]
        file.write_text(json.dumps(expected), encoding="utf-8")

    def spoil_page(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[_STRETCH : 2 * _STRETCH] = b"\xa5" * _STRETCH
        file.write_bytes(content)

    return [
        ("lost", forget_outcome, control),
        ("lost", change_outcome, control),
        ("duplicated", count_twice, other_hub),
        ("duplicated", count_elsewhere, other_hub),
        ("bricked", spoil_image, run.device(first) / "slots" / f"{slot}.img"),
        ("bricked", cut_short, run.device(first) / "slots" / "bootenv.json"),
        ("over_limit", swap_with_the_others, run.device(first) / "run" / "steps.jsonl"),
        ("untrue", run_another_version, directory / "expected.json"),
        ("corrupt", spoil_page, _database(directory / "superhub")),
    ]


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
