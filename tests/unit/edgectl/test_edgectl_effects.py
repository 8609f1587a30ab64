"""What a rehearsal says, and whom edgectl asks before a deed that cannot be undone."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from edgectl import effects
from edgectl.framework import Session
from edgectl.output import Output
from tests.unit.edgectl.test_edgectl_tables import record

SESSION = Session(None, Output.TABLE)
EFFECT: dict[str, Any] = {
    "devices": [f"region/midwest/store/s/device/pos-{n:02}" for n in range(20)],
    "device_count": 30,
    "stores": ["region/midwest/store/s"],
    "state_before": "running",
    "state_after": "halted",
    "exposure_before": 12,
    "exposure_after": 0,
    "permits_issued": 0,
    "permits_voided": 12,
    "artifacts": [],
}


def answer(**changes: Any) -> dict[str, Any]:
    return {"record": record(**changes), "duplicate": False, "effect": EFFECT}


def test_an_effect_names_states_exposure_devices_and_stores() -> None:
    text = "\n".join(effects.lines(answer(kind="halt_wave", waiting_for=["region/midwest/store/s"])))
    assert "halt wave: would be in force at once, and told to midwest/s" in text
    assert "wave 142: running -> halted" in text
    assert "exposure: 12 -> 0; permits issued 0, void 12" in text
    assert "30 devices: midwest/s/pos-00" in text
    assert "and 18 more" in text


def test_what_is_queued_done_so_already_or_refused_is_told_apart() -> None:
    assert "would be queued, place 3 of what waits for control" in effects.lines(answer())[0]
    done = answer(disposition="applied", kind="pause_wave", waiting_for=["control"])
    assert "would be done at once, and told to control" in effects.lines(done)[0]
    assert "would be refused: for ever" in effects.lines(answer(disposition="refused", detail="for ever"))[0]
    assert "nothing would be done" in effects.lines(answer() | {"duplicate": True})[0]


def ask_at_a_terminal(monkeypatch: pytest.MonkeyPatch, said: bool, *, is_terminal: bool = True) -> list[str]:  # noqa: FBT001
    asked: list[str] = []

    def confirm(text: str, *, err: bool) -> bool:
        assert err
        asked.append(text)
        return said

    monkeypatch.setattr("sys.stdin.isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    monkeypatch.setattr(typer, "confirm", confirm)
    monkeypatch.setattr(effects, "_ask", lambda *_: answer())
    return asked


def test_a_no_at_a_terminal_does_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ask_at_a_terminal(monkeypatch, said=False)
    with pytest.raises(typer.Exit) as exited:
        effects.confirm(SESSION, None, False)  # type: ignore[arg-type]  # nothing is asked of a node here
    assert (exited.value.exit_code, len(asked)) == (1, 1)
    captured = capsys.readouterr()
    assert (captured.out, "nothing was done" in captured.err, "exposure: 12 -> 0" in captured.err) == ("", True, True)


def test_yes_and_scripts_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ask_at_a_terminal(monkeypatch, said=True)
    effects.confirm(SESSION, None, True)  # type: ignore[arg-type]
    assert asked == []
    effects.confirm(SESSION, None, False)  # type: ignore[arg-type]
    assert len(asked) == 1
    asked = ask_at_a_terminal(monkeypatch, said=False, is_terminal=False)
    effects.confirm(SESSION, None, False)  # type: ignore[arg-type]
    assert asked == []
