"""edgectl against a lab of real processes: every O1 command as written, twice, and with store 209's WAN cut."""

from __future__ import annotations

import io
import json
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from edgectl.main import run
from lab.images import build_small_images
from lab.processes import states, stop_all, wait_until
from lab.topology import load_lab
from storehub.deliveries import LEAST_PLANNED_BYTES
from tests.flipped_bits import blob_path, flip, read_as, restart_scrubbing
from tests.oci_kit import layer, write_layout
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)

O1 = {
    "prefetch": ["hub", "prefetch", "--policy", "policy.yaml", "--window", "00:30-03:30"],
    "cache": ["hub", "cache", "list", "--limit", "5"],
    "pause": ["wave", "pause", "--wave", "142", "--reason", "peripheral regression in store-209"],
    "start": ["wave", "start", "--wave", "142", "--cohort", "retail-us-midwest"],
    "rollback": ["device", "rollback", "--id", "pos-17", "--reason", "scanner driver missing"],
}


@dataclass(frozen=True, slots=True)
class Typed:
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Operator:
    """Somebody who types commands in one directory. They run in this process, for a new one costs more than they do."""

    directory: Path

    def types(self, *words: str) -> Typed:
        """Run edgectl."""
        stdout, stderr = io.StringIO(), io.StringIO()
        with chdir(self.directory), redirect_stdout(stdout), redirect_stderr(stderr):
            code = run(list(words))
        return Typed(code, stdout.getvalue(), stderr.getvalue())

    def asks(self, *words: str) -> Any:
        """Run edgectl, which must succeed, and read its JSON."""
        done = self.types(*words, "--output", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    directory = tmp_path_factory.mktemp("op")
    pair = build_small_images(directory / "images")
    operator = Operator(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(directory / "config"))
        for name in ("EDGECTL_CONFIG", "EDGECTL_CONTEXT", "EDGECTL_LAB"):
            patch.delenv(name, raising=False)
        up = operator.types("lab", "up", "--old", str(pair.old), "--new", str(pair.new))
        try:
            assert up.returncode == 0, up.stderr
            yield operator
        finally:
            stop_all(load_lab(directory / "lab-data"))


def test_lab_up_leaves_what_the_commands_need(operator: Operator) -> None:
    """The contexts, control selected, wave 142 planned, a policy.yaml; asked twice, nothing changes."""
    again = operator.types("lab", "up")
    assert again.returncode == 0, again.stderr
    contexts = operator.asks("context", "list")
    assert {c["name"]: c["selected"] for c in contexts} == {"control": True, "store-208": False, "store-209": False}
    waves = operator.asks("wave", "list")
    assert [(w["wave_id"], w["cohort"], w["counts"]["pending"]) for w in waves] == [("142", "retail-us-midwest", 12)]
    assert operator.types("policy", "validate", "policy.yaml").returncode == 0
    assert all(process["running"] for process in operator.asks("lab", "status"))
    assert (operator.directory / "config" / "wavemesh" / "contexts.toml").exists()


def test_every_o1_command_works_as_written_and_twice_is_once(operator: Operator) -> None:
    for name in ("prefetch", "cache", "pause"):
        for _ in range(2):
            done = operator.types(*O1[name])
            assert done.returncode == 0, f"{name}: {done.stderr}"
    second = operator.asks(*O1["pause"])
    assert second["duplicate"]
    assert len(operator.asks("wave", "status", "--wave", "142")["pauses"]) == 1
    caches = operator.asks(*O1["cache"])
    assert [cache["hub"].rpartition("/")[2] for cache in caches] == ["store-208", "store-209"]
    assert all(len(cache["entries"]) <= 5 for cache in caches)


def test_a_flipped_bit_that_a_device_reads_pauses_the_wave_there_until_it_is_healed(operator: Operator) -> None:
    """H2: never served whole; with the WAN cut the wave stays paused at this hub, and control hears of it later."""
    lab, store = load_lab(operator.directory / "lab-data"), "store-208"
    digest = _firmware(operator, store)
    image, fault = read_as(lab, store, "pos-01", digest)
    assert fault is None
    operator.asks("lab", "wan", "cut", store)
    try:
        flip(blob_path(lab.store_dir(store), digest))
        received, fault = read_as(lab, store, "pos-01", digest)
        assert fault is not None
        assert image.startswith(received)
        assert len(received) < len(image)
        pauses = operator.asks("wave", "status", "--wave", "142", "--context", store)["pauses"]
        assert [one["origin"] for one in pauses if one["reason"].startswith("checksum")] == [f"hub:{store}"]
        shown = operator.types("hub", "cache", "show", digest.sha256, "--context", store).stdout
        assert "found wrong" in shown
        assert "in quarantine" in shown
        served, _ = read_as(lab, store, "pos-01", digest)
        assert image.startswith(served)
    finally:
        operator.types("lab", "wan", "restore", store)
    wait_until(lambda: _told(operator, store, digest) == ["cache-mismatch", "cache-healed"], 60, "control to hear")
    pauses = operator.asks("wave", "status", "--wave", "142", "--context", store)["pauses"]
    assert not [one for one in pauses if one["origin"] == f"hub:{store}"]
    assert read_as(lab, store, "pos-01", digest) == (image, None)
    [cache] = operator.asks("hub", "cache", "list", "--context", store)
    assert (cache["statistics"]["quarantined"], cache["statistics"]["healed"]) == (1, 1)
    assert [file["digest"]["sha256"] for file in cache["quarantine"]] == [digest.sha256]


@pytest.mark.parametrize("name", ["store-209", "superhub"])
def test_a_flipped_bit_that_nobody_reads_is_found_by_the_scrub(operator: Operator, name: str) -> None:
    """H2, on both tiers: found, told, fetched again and told healed."""
    lab = load_lab(operator.directory / "lab-data")
    hub = lab.superhub_dir if name == "superhub" else lab.store_dir(name)
    digest = _firmware(operator, "store-209")
    content = blob_path(hub, digest).read_bytes()
    flip(blob_path(hub, digest), 77)
    restart_scrubbing(lab, name, hub)
    node = "midwest" if name == "superhub" else name
    wait_until(lambda: _told(operator, node, digest) == ["cache-mismatch", "cache-healed"], 60, "control to hear")
    assert blob_path(hub, digest).read_bytes() == content
    kept = hub / "state" / "cache" / "quarantine" / blob_path(hub, digest).name
    assert kept.stat().st_size == digest.size_bytes
    assert kept.read_bytes() != content


def test_a_cache_is_planned_before_it_is_filled(operator: Operator) -> None:
    """H1: what would go is shown first; the plan changes nothing."""
    plans = operator.asks("hub", "cache", "plan", "--wave", "142")
    assert [plan["hub"].rpartition("/")[2] for plan in plans] == ["store-208", "store-209"]
    assert all((plan["gate"], plan["evictions"], plan["fetch_bytes"]) == ("", [], 0) for plan in plans)
    by_policy = operator.asks("hub", "cache", "plan", "--policy", "policy.yaml", "--context", "store-208")
    assert {one["digest"]["sha256"] for one in by_policy[0]["artifacts"]} <= {
        one["digest"]["sha256"] for one in plans[0]["artifacts"]
    }
    shown = operator.types("hub", "cache", "plan", "--wave", "142", "--context", "store-208")
    assert "nothing would be evicted" in shown.stdout
    for words, code, said in (
        ((), 2, "--release"),
        (("--wave", "1", "--release", "x"), 2, "one of"),
        (("--wave", "999"), 3, "999"),
        (("--release", "none"), 3, "release list"),
    ):
        done = operator.types("hub", "cache", "plan", *words, "--context", "store-208")
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def _firmware(operator: Operator, store: str) -> Digest:
    """The biggest blob in a store's cache, once the wave's artifacts are there."""

    def held() -> list[dict[str, Any]]:
        [cache] = operator.asks("hub", "cache", "list", "--context", store)
        entries: list[dict[str, Any]] = cache["entries"]
        is_whole = [one["present_bytes"] == one["digest"]["size_bytes"] for one in entries]
        # An image that is on its way by a delivery is no entry yet.
        is_there = any(one["digest"]["size_bytes"] > LEAST_PLANNED_BYTES for one in entries)
        return entries if is_there and all(is_whole) and not cache["incidents"] else []

    wait_until(lambda: bool(held()), 60, f"{store} to have the wave's artifacts")
    biggest = max(held(), key=lambda one: int(one["digest"]["size_bytes"]))["digest"]
    return Digest(biggest["sha256"], biggest["size_bytes"])


def _told(operator: Operator, node: str, digest: Digest) -> list[str]:
    """What control's audit has of a blob, told by one hub; the first told first."""
    found = []
    for kind in ("cache-mismatch", "cache-healed"):
        events = operator.asks("audit", "list", "--action", kind)
        found += [kind for event in events if event["actor"].endswith(f"/{node}") and digest.sha256 in str(event)]
    return found


def test_an_approval_is_for_what_waits(operator: Operator) -> None:
    """D5: the attempt is looked up where the device waits; what was not heard of is rehearsed and queued."""
    approve = ("device", "approve-rollback", "--id", "pos-12", "--wave", "142", "--reason", "seen on site")
    refused = operator.types(*approve)
    assert (refused.returncode, "does not wait for a sign-off in wave 142" in refused.stderr) == (4, True)
    assert "would be queued" in operator.types(*approve, "--attempt", "1", "--dry-run").stdout
    assert not operator.asks("intent", "list", "--kind", "approve_rollback")
    record = operator.asks(*approve, "--attempt", "1")["record"]
    assert operator.asks("intent", "show", record["intent_id"])["kind"] == "approve_rollback"

    def answered() -> bool:
        events = operator.asks("audit", "list", "--action", "intent-refused")
        return any("nothing waits for a sign-off here" in event["detail"] for event in events)

    wait_until(answered, 30, "the device's answer")


def test_a_store_whose_wan_is_cut_answers_acts_and_queues(operator: Operator) -> None:
    """What lowers risk acts at once, what raises it queues and is delivered when the WAN is back (M5, O1)."""
    at_store = ("--context", "store-209")
    assert operator.asks("lab", "wan", "cut", "store-209")["mode"] == "cut"
    try:
        wait_until(lambda: not _connected(operator, "store-209"), 30, "control to miss store-209")
        for _ in range(2):
            assert operator.asks(*O1["pause"], *at_store)["record"]["disposition"] == "applied"
            start = operator.asks(*O1["start"], *at_store)
            assert start["record"]["disposition"] == "queued"
            assert start["record"]["waiting_for"]
            assert operator.types(*O1["prefetch"], *at_store).returncode == 0
            assert operator.asks(*O1["cache"], *at_store)
        assert "queued, waits for" in operator.types(*O1["start"], *at_store).stdout
        assert operator.asks("ledger", "show", "--wave", "142", *at_store)["counts"]["pending"] == 6
        assert operator.asks("wave", "status", "--wave", "142")["state"] == "planned"
    finally:
        operator.types("lab", "wan", "restore", "store-209")
    # The queued start arrives; the pauses that were in force before hold the wave back.
    wait_until(lambda: _state(operator) == "paused", 60, "the queued start to arrive")


def test_the_wave_runs_when_every_pause_is_lifted(operator: Operator) -> None:
    # One that runs low while its device stages makes it wait, and once the wave goes on that may be the first to swap.
    wait_until(lambda: _device_state(operator, "pos-03") == "verified", 60, "pos-03 to stage under the pause")
    battery = next(operator.directory.glob("lab-data/**/pos-03/hardware/power_supply/BAT0/capacity"))
    battery.write_text("5\n")
    lifted = operator.asks("wave", "resume", "--wave", "142", "--reason", "looked into")
    assert lifted["record"]["disposition"] in {"applied", "queued"}
    operator.asks(*O1["start"])
    wait_until(lambda: _entry(operator, "control")["kind"] == "refused", 60, "pos-03 to be refused")
    for context in ("control", "store-208"):
        _assert_evidence_is_shown(operator, context)
    battery.write_text("87\n")

    def updated() -> bool:
        return bool(operator.asks("ledger", "show", "--wave", "142")["counts"]["updated"] == 12)

    wait_until(updated, 90, "the wave to end")
    # Watching ends by itself once the wave is closed; each answer is one line of JSON.
    watched = operator.types("wave", "watch", "--wave", "142", "--output", "json")
    assert watched.returncode == 0, watched.stderr
    assert json.loads(watched.stdout.splitlines()[-1])["state"] == "closed"
    lines = operator.asks("device", "logs", "--id", "pos-17", "--since", "15 min ago", "--wave", "142")
    assert lines
    assert {line["wave_id"] for line in lines} == {"142"}


def test_a_rollback_is_done_once(operator: Operator) -> None:
    for _ in range(2):
        assert operator.types(*O1["rollback"]).returncode == 0

    def rolled_back() -> bool:
        status = operator.asks("device", "show", "--id", "pos-17")["status"]
        return bool(status["slot"] == "A" and status["connected"])

    wait_until(rolled_back, 60, "pos-17 to be back")
    operator.types(*O1["rollback"])
    assert operator.asks("device", "show", "--id", "pos-17")["status"]["slot"] == "A"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["wave", "status", "--wave", "999"], 3, "999"),
        (["device", "show", "--id", "pos-99"], 3, "pos-99"),
        (["wave", "start", "--wave", "142", "--cohort", "retail-eu"], 4, "retail-eu"),
        (["release", "list", "--context", "nowhere"], 3, "nowhere"),
        (["lab", "wan", "cut", "store-1"], 3, "store-209"),
        (["lab", "power", "cut", "pos-99"], 3, "pos-99"),
    ],
)
def test_refusals_have_their_exit_code_and_say_what(operator: Operator, words: list[str], code: int, said: str) -> None:
    done = operator.types(*words)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["fleet", "status"],
        ["device", "list"],
        ["release", "list"],
        ["intent", "list"],
        ["audit", "list"],
        ["wave", "status", "--wave", "142"],
        ["ledger", "show", "--wave", "142", "--store", "store-208"],
        ["release", "show", "firmware-v3.8.2"],
    ],
)
def test_every_reading_command_answers_in_each_form(operator: Operator, words: list[str]) -> None:
    assert operator.asks(*words)
    for form in ("table", "yaml"):
        assert operator.types(*words, "-o", form).stdout.strip()


def test_a_release_from_draft_to_hold(operator: Operator) -> None:
    """Two of three key holders sign twice each; control takes it once, and only complete (P2)."""
    (operator.directory / "firmware-v3.9.0.img").write_bytes(b"an image of few bytes")
    offline = "lab-data/keys/offline"
    draft = ("--dir", "draft")
    words = ["--name", "firmware-v3.9.0", "--version", "3.9.0", "--class", "pos", "--hardware", "rev-b"]
    for _ in range(2):
        made = operator.types("release", "create", *draft, *words, "--firmware", "firmware-v3.9.0.img")
        # A draft says when it was made, so made again later it is another one, which is refused.
        assert made.returncode in {0, 4}
    assert operator.types("release", "publish", *draft).returncode == 2

    def signs(key: str) -> Any:
        return operator.asks("release", "sign", *draft, "--key", f"{offline}/{key}.pem")

    assert (signs("release-1")["bundle_signatures"], signs("release-1")["bundle_signatures"]) == (1, 1)
    second = signs("release-3")
    assert (second["bundle_signatures"], second["targets_signatures"], second["complete"]) == (2, 1, False)
    few = operator.types("release", "publish", *draft)
    assert (few.returncode, "firmware-v3.9.0" in few.stderr) == (4, True)
    assert signs("release-1")["complete"]
    origin = ("--origin", "lab-data/origin/data")
    assert [operator.asks("release", "publish", *draft, *origin)["duplicate"] for _ in range(2)] == [False, True]
    hold = ("release", "hold", "firmware-v3.9.0", "--reason", "scanner driver missing")
    assert [operator.asks(*hold)["duplicate"] for _ in range(2)] == [False, True]
    assert operator.asks("release", "show", "firmware-v3.9.0")["hold_reason"] == "scanner driver missing"
    assert operator.asks("release", "unhold", "firmware-v3.9.0")["held"] == []
    assert operator.types("release", "show", "firmware-v9").returncode == 3


APP_POLICY = """\
targets: {segment: retail-us-midwest, percentage: 100, hubBudget: 2}
guardrails: {minBattery: 40, requireDualPartition: true}
artifacts: {app: pos-app-1.0.0.oci, signature: pos-app-1.0.0.sig}
"""


def test_an_app_comes_to_a_store_by_prefetch(operator: Operator) -> None:
    """O5: an OCI image is a release; no wave installs it, a prefetch brings its layers to a store."""
    layers = [layer({"base": b"b" * 5000}), layer({"app": b"a" * 3000})]
    write_layout(operator.directory / "pos-app", "1.0.0", *layers)
    (operator.directory / "app.yaml").write_text(APP_POLICY)
    draft = ("--dir", "app")
    words = ("--name", "pos-app-1.0.0", "--version", "1.0.0", "--class", "pos", "--hardware", "rev-b")
    made = operator.types("release", "create", *draft, *words, "--app", "oci:pos-app")
    assert made.returncode == 0, made.stderr
    for key in ("release-1", "release-3", "release-1"):
        operator.asks("release", "sign", *draft, "--key", f"lab-data/keys/offline/{key}.pem")
    operator.asks("release", "publish", *draft, "--origin", "lab-data/origin/data")
    assert "pos-app:1.0.0 (3 blobs" in operator.types("release", "show", "pos-app-1.0.0").stdout
    cohort = ("--wave", "150", "--cohort", "retail-us-midwest")
    planned = operator.types("wave", "plan", *cohort, "--policy", "app.yaml")
    assert (planned.returncode, "edgectl hub prefetch" in planned.stderr) == (4, True)
    at_store = ("--context", "store-208")
    asked = operator.types("hub", "prefetch", "--policy", "app.yaml", *at_store)
    assert asked.returncode == 0, asked.stderr

    def names() -> set[str]:
        [cache] = operator.asks("hub", "cache", "list", *at_store)
        whole = (one for one in cache["entries"] if one["present_bytes"] == one["digest"]["size_bytes"])
        return {name for entry in whole for name in entry["names"]}

    wait_until(lambda: len({one for one in names() if one.startswith("pos-app-1.0.0")}) == 5, 30, "the app to come")


def test_power_can_be_cut_and_the_device_comes_back(operator: Operator) -> None:
    assert operator.asks("lab", "power", "cut", "pos-01")["reset_reason"] == "power-loss"
    path = "region/midwest/store/store-208/device/pos-01"
    wait_until(lambda: _device_connected(operator, path), 30, "pos-01 to come back")


def test_lab_down_stops_every_process(operator: Operator) -> None:
    assert operator.types("lab", "down").returncode == 0
    assert not any(process.running for process in states(load_lab(operator.directory / "lab-data")))
    assert operator.types("lab", "status").returncode == 1
    assert operator.types("fleet", "status").returncode == 6


def _entry(operator: Operator, context: str) -> Any:
    return operator.asks("ledger", "entry", "--wave", "142", "--id", "pos-03", "--context", context)[0]


def _assert_evidence_is_shown(operator: Operator, context: str) -> None:
    """D7: the gate, what it found and what it wanted, in the ledger and at the device, as signed (tables and JSON)."""
    entry = _entry(operator, context)
    assert (entry["gate"], entry["observed"], entry["required"]) == ("battery", "5 %", "at least 40 %")
    # Staged under the pause, so both are known.
    assert [(slot["slot"], len(slot["sha256"])) for slot in entry["slots"]] == [("A", 64), ("B", 64)]
    assert (len(entry["boot_id"]), len(entry["log_sha256"])) == (32, 64)
    assert entry["signed_by"].endswith("/pos-03")
    device = operator.asks("device", "show", "--id", "pos-03", "--context", context)
    assert device["outcomes"] == [entry]

    def seen() -> bool:
        """A device that looks again has nothing to say for a moment."""
        status = operator.asks("device", "show", "--id", "pos-03", "--context", context)["status"]
        return (status["gate"], status["evidence"]) == ("battery", "battery at 5 %, 40 % required")

    wait_until(seen, 30, "pos-03 to say why at " + context)
    for words in (["ledger", "show", "--wave", "142"], ["device", "show", "--id", "pos-03"]):
        shown = operator.types(*words, "--context", context).stdout
        assert all(word in shown for word in ("battery", "5 %", "at least 40 %")), shown


def _state(operator: Operator) -> str:
    return str(operator.asks("wave", "status", "--wave", "142")["state"])


def _device_state(operator: Operator, name: str) -> str:
    return str(operator.asks("device", "show", "--id", name)["status"]["state"])


def _connected(operator: Operator, store: str) -> bool:
    hubs = operator.asks("fleet", "status")["hubs"]
    return any(hub["hub"].endswith(store) and hub["connected"] for hub in hubs)


def _device_connected(operator: Operator, path: str) -> bool:
    return any(d["path"] == path and d["status"]["connected"] for d in operator.asks("device", "list"))
