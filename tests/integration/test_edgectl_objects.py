"""edgectl against a lab of real processes: every object listed, shown, narrowed; what is dangerous rehearsed; what
waits at a dark hub shown with its place and taken back.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml

from edgectl.completing import device_names, intent_ids, release_names, store_names, wave_ids
from edgectl.main import app
from lab.processes import wait_until
from tests.integration.test_edgectl_lab import O1, Operator, operator

if TYPE_CHECKING:
    from collections.abc import Callable

    import typer

__all__ = ["operator"]

pytestmark = pytest.mark.timeout(300)

AT_STORE = ("--context", "store-209")


@pytest.mark.parametrize(
    "words",
    [
        ["region", "list"],
        ["region", "show", "midwest"],
        ["store", "list", "--region", "midwest", "--wave", "142"],
        ["store", "show", "store-209"],
        ["cohort", "list", "--segment", "retail-us-midwest"],
        ["cohort", "show", "retail-us-midwest"],
        ["device", "list", "--state", "idle", "--class", "pos", "--label", "role=till", "--store", "store-208"],
        ["device", "show", "--id", "pos-17"],
        ["hub", "list"],
        ["hub", "show", "store-209"],
        ["wave", "list", "--state", "planned", "--store", "store-208", "--cohort", "retail-us-midwest"],
        ["wave", "show", "--wave", "142"],
        ["policy", "list"],
        ["policy", "show", "--wave", "142"],
        ["hold", "list"],
        ["ledger", "show", "--wave", "142", "--outcome", "pending"],
        ["ledger", "entry", "--wave", "142", "--id", "pos-17"],
        ["audit", "list", "--action", "wave", "--since", "1 h ago"],
        ["inventory", "list"],
        ["inventory", "show", "pos-17"],
        ["hub", "cache", "list", "--pinned"],
    ],
)
def test_every_object_is_listed_and_shown(operator: Operator, words: list[str]) -> None:
    assert operator.asks(*words)
    done = operator.types(*words)
    assert (done.returncode, bool(done.stdout.strip())) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["store", "show", "store-1"], 3, "edgectl store list"),
        (["region", "show", "south"], 3, "edgectl region list"),
        (["cohort", "show", "nobody"], 3, "edgectl cohort list"),
        (["cohort", "list", *AT_STORE], 4, "--context control"),
        (["policy", "show", "--wave", "7"], 3, "edgectl policy list"),
        (["policy", "show"], 2, "edgectl policy list"),
        (["hold", "show", "firmware-v3.8.2"], 3, "edgectl hold list"),
        (["permit", "show", "--wave", "142", "--id", "pos-17"], 3, "edgectl permit list"),
        (["ledger", "entry", "--wave", "142", "--id", "pos-99"], 3, "edgectl ledger show"),
        (["intent", "show", "nope"], 3, "edgectl intent list"),
        (["intent", "cancel", "nope"], 3, "edgectl intent list"),
        (["device", "list", "--state", "asleep"], 2, "idle"),
        (["device", "list", "--label", "role"], 2, "NAME=VALUE"),
        (["hub", "show", "store-1"], 3, "edgectl hub list"),
        (["hub", "cache", "show", "none.img"], 3, "edgectl hub cache list"),
        (["inventory", "show", "pos-99"], 3, "edgectl inventory list"),
        (["wave", "start", "--wave", "142", "--cohort", "x", "--dry-run"], 4, "retail-us-midwest"),
    ],
)
def test_refusals_name_the_next_command(operator: Operator, words: list[str], code: int, said: str) -> None:
    done = operator.types(*words)
    assert (done.returncode, said in done.stderr, done.stdout) == (code, True, ""), done.stderr


def test_lists_follow_pages_and_say_when_they_are_cut(operator: Operator) -> None:
    done = operator.types("device", "list", "--limit", "5", "-o", "json")
    assert (len(json.loads(done.stdout)), "--limit N shows more" in done.stderr) == (5, True)
    whole = operator.types("device", "list", "--limit", "12", "-o", "json")
    assert (len(json.loads(whole.stdout)), whole.stderr) == (12, "")


def test_a_rehearsal_says_what_would_be_and_changes_nothing(operator: Operator) -> None:
    start = operator.asks(*O1["start"], "--dry-run")["effect"]
    assert (start["state_before"], start["state_after"], start["device_count"]) == ("planned", "running", 12)
    assert (start["permits_issued"], start["exposure_after"]) == (12, 12)
    halt = operator.types("wave", "halt", "--wave", "142", "--reason", "x", "--dry-run")
    assert "planned -> halted" in halt.stdout
    assert "midwest/store-209/pos-17" in operator.types(*O1["rollback"], "--dry-run").stdout
    assert "3 artifacts" in operator.types(*O1["prefetch"], "--dry-run").stdout
    assert operator.asks("wave", "show", "--wave", "142")["state"] == "planned"
    assert operator.types("intent", "list", "-o", "json").stdout.strip() == "[]"
    assert operator.asks("audit", "list", "--actor", "alice", "--action", "wave") == [
        one for one in operator.asks("audit", "list") if one["action"] == "wave.plan"
    ]


def test_an_inventory_goes_to_a_file_and_back(operator: Operator) -> None:
    """What is exported is applied without a change; a change is shown before it is made; an error has its line."""
    exported = operator.types("inventory", "export").stdout
    (operator.directory / "fleet.yaml").write_text(exported)
    assert len(yaml.safe_load(exported)["devices"]) == 12
    assert operator.asks("inventory", "apply", "-f", "fleet.yaml", "--dry-run")["changes"] == []
    changed = exported.replace("America/Chicago", "America/Denver", 1)
    (operator.directory / "fleet.yaml").write_text(changed)
    dry = operator.types("inventory", "apply", "-f", "fleet.yaml", "--dry-run")
    assert "time_zone: America/Chicago -> America/Denver" in dry.stdout
    assert operator.types("inventory", "export").stdout == exported
    assert operator.types("inventory", "apply", "-f", "fleet.yaml").returncode == 0
    assert operator.types("inventory", "export").stdout == changed
    (operator.directory / "fleet.yaml").write_text(changed.replace("America/Denver", "Mars/Olympus"))
    refused = operator.types("inventory", "apply", "-f", "fleet.yaml")
    assert (refused.returncode, "fleet.yaml:3: stores[0].time_zone" in refused.stderr) == (2, True), refused.stderr


def test_names_are_completed_by_the_node(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(operator.directory)
    complete = complete_at(None)
    assert complete(wave_ids, "1") == ["142"]
    assert complete(device_names, "pos-0") == [f"pos-0{n}" for n in range(1, 7)]
    assert complete(store_names, "") == ["store-208", "store-209"]
    assert complete(release_names, "firm") == ["firmware-v3.8.2"]
    assert complete_at("store-209")(device_names, "") == [f"pos-{n}" for n in range(12, 18)]
    assert complete_at("nowhere")(intent_ids, "") == []


def complete_at(context: str | None) -> Callable[[Callable[[typer.Context, str], list[str]], str], list[str]]:
    from typer.main import get_command

    def complete(completer: Callable[[typer.Context, str], list[str]], incomplete: str) -> list[str]:
        command = get_command(app)
        ctx = command.make_context("edgectl", ["wave"], resilient_parsing=True)
        ctx.params["context"] = context
        return completer(ctx, incomplete)  # type: ignore[arg-type]  # Typer's own context is a subclass of it

    return complete


def test_a_prefetch_is_waited_for(operator: Operator) -> None:
    done = operator.types(*O1["prefetch"][:4], "--wait", "--timeout", "60", "-o", "json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert [(one["hub"].rpartition("/")[2], one["disposition"]) for one in said] == [
        ("store-208", "applied"),
        ("store-209", "applied"),
    ]
    shown = operator.asks("hub", "cache", "show", "firmware-v3.8.2.img")
    assert [len(one["entries"]) for one in shown] == [1, 1]


def test_what_waits_at_a_dark_hub_has_its_place_and_is_taken_back(operator: Operator) -> None:
    """O1, M5: what lowers risk acts at once; what raises it queues, is shown with its place, and can be cancelled."""
    operator.asks("lab", "wan", "cut", "store-209")
    try:
        wait_until(lambda: not _upstream(operator), 30, "store-209 to miss its super hub")
        pause = operator.asks(*O1["pause"], *AT_STORE)["record"]
        assert (pause["disposition"], pause["queue_place"]) == ("applied", 1)
        assert operator.asks("wave", "show", "--wave", "142", *AT_STORE)["state"] == "paused"
        start = operator.types(*O1["start"], "--intent-id", "too-soon", *AT_STORE)
        assert "queued, waits for control (place 2)" in start.stdout
        assert "edgectl intent cancel too-soon" in start.stdout
        resume = operator.asks("wave", "resume", "--wave", "142", "--intent-id", "later", *AT_STORE)["record"]
        assert (resume["disposition"], resume["queue_place"]) == ("queued", 3)
        queued = operator.asks("intent", "list", "--state", "queued", *AT_STORE)
        assert [(one["intent_id"], one["queue_place"]) for one in queued] == [("later", 3), ("too-soon", 2)]
        dry = operator.types("intent", "cancel", "too-soon", "--dry-run", *AT_STORE)
        assert "would be cancelled; nothing was changed" in dry.stdout
        for duplicate in (False, True):
            cancelled = operator.asks("intent", "cancel", "too-soon", "--reason", "wrong night", *AT_STORE)
            assert (cancelled["record"]["disposition"], cancelled["duplicate"]) == ("cancelled", duplicate)
        assert operator.asks("intent", "show", "later", *AT_STORE)["queue_place"] == 2
        applied = operator.types("intent", "cancel", pause["intent_id"][:12], *AT_STORE)
        assert (applied.returncode, "edgectl wave resume --wave 142" in applied.stderr) == (4, True)
    finally:
        operator.types("lab", "wan", "restore", "store-209")

    def told() -> bool:
        return operator.types("intent", "show", "later").returncode == 0

    wait_until(told, 60, "control to hear of what waited")
    assert operator.asks("intent", "show", "too-soon")["disposition"] == "cancelled"
    assert operator.asks("wave", "show", "--wave", "142")["state"] == "planned"
    assert [one["subject"] for one in operator.asks("audit", "list", "--action", "intent.cancel")] == ["too-soon"]


def test_a_running_wave_shows_its_permits(operator: Operator) -> None:
    operator.asks(*O1["start"])
    wait_until(lambda: len(operator.asks("permit", "list", "--wave", "142")) == 12, 30, "permits")
    one = operator.asks("permit", "show", "--wave", "142", "--id", "pos-17")
    assert [(permit["wave_id"], permit["generation"]) for permit in one] == [("142", 1)]
    # Halted for the tests that follow; without a terminal nobody is asked.
    assert operator.types("wave", "halt", "--wave", "142", "--reason", "enough").returncode == 0
    assert operator.asks("wave", "list", "--state", "halted")[0]["wave_id"] == "142"


def _upstream(operator: Operator) -> bool:
    return bool(operator.asks("store", "show", "store-209", *AT_STORE)["hub"]["connected"])
