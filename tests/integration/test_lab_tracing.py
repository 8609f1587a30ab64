"""The acceptance of traces, with real processes: one trace from control to the committed slot and its outcome, for a
device that was online and, linked, for a store that was dark for the whole swap; exported to an OTLP gRPC receiver.

The receiver is away while both devices update, and a store hub is killed while it holds what its super hub has not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from edgectl.client import ask
from edgectl.main import run
from lab import operations, processes, topology
from lab.images import build_small_images
from lab.injectors import tell_wan
from lab.provision import provision
from lab.up import leave_contexts, prepare, start_servers
from tests.otlp_receiver import Receiver, receiving
from wavemesh.errors import NotFoundError
from wavemesh.telemetry.spans import Trace
from wavemesh.trust.statements import IntentKind, OperatorIntent
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.topology import Lab
    from wavemesh.telemetry.otlp import ShownSpan

pytestmark = pytest.mark.timeout(240)

ONLINE, DARK = "pos-01", "pos-12"
STORES = {"store-208": (ONLINE,), "store-209": (DARK,)}
DEVICE_SPANS = [f"device.{name}" for name in ("preflight", "staging", "waiting", "reboot", "trial", "commit")]
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Mesh:
    """A lab of two stores with a till each, its wave running; control exports to the receiver."""

    lab: Lab
    receiver: Receiver

    def device(self, name: str) -> str:
        return topology.device_id(self.lab.store_of(name), name).path

    def trace(self, device: str) -> Trace:
        return Trace(topology.FLEET, topology.WAVE, self.device(device))

    def exported(self, device: str) -> dict[str, ShownSpan]:
        return self.receiver.spans(self.trace(device).trace_id)

    def is_updated(self, context: str, store: str) -> bool:
        counts = operations.ledger(self.lab, context, topology.WAVE, store).counts
        return bool(counts.updated == 1)


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
    monkeypatch.setattr(topology, "STORES", STORES)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    lab = provision(tmp_path / "lab", build_small_images(tmp_path / "images"))
    receiver = Receiver()
    with receiving(receiver):
        pass  # it has a port now, and is away until a test starts it again
    config = lab.control_dir / "config.toml"
    config.write_text(f'{config.read_text()}\n[telemetry]\notlp_endpoint = "{receiver.endpoint}"\n')
    try:
        start_servers(lab)
        prepare(lab)
        yield Mesh(lab, receiver)
    finally:
        processes.stop_all(lab)


def test_one_trace_each_for_an_online_device_and_a_store_dark_for_the_whole_swap(
    mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = mesh.lab
    operations.give(lab, "control", OperatorIntent("start-1", IntentKind.START_WAVE, datetime.now(UTC), "142"))
    processes.start(lab, [ONLINE])
    processes.wait_until(lambda: _holds_all(lab, "store-209", DARK), PATIENCE_S, "store-209 to hold permit and blobs")
    tell_wan(lab, "cut", "store-209")
    processes.start(lab, [DARK])
    processes.wait_until(lambda: mesh.is_updated("control", "store-208"), PATIENCE_S, f"{ONLINE} to update")
    processes.wait_until(lambda: mesh.is_updated("store-209", ""), PATIENCE_S, f"{DARK} to update in the dark")
    processes.wait_until(lambda: "device.commit" in _shown(lab, "store-209", DARK), PATIENCE_S, "the hub to be told")
    processes.kill(lab, ["store-209"])
    assert "device.commit" not in _shown(lab, "control", DARK)
    assert mesh.receiver.bodies == []

    with receiving(mesh.receiver):
        online = _wait_for_commit(mesh, ONLINE)
        assert "device.commit" not in [span.name for span in mesh.exported(DARK).values()]
        processes.start(lab, ["store-209"])
        tell_wan(lab, "restore", "store-209")
        dark = _wait_for_commit(mesh, DARK)
    for device, spans in ((ONLINE, online), (DARK, dark)):
        _assert_whole(mesh.trace(device), mesh.device(device), spans)
    _assert_links(mesh, online, dark)
    leave_contexts(lab)
    words = ["trace", "show", "--wave", topology.WAVE, "--device", DARK]
    assert run([*words, "--output", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["trace_id"] == mesh.trace(DARK).trace_id.hex()
    assert set(dark) <= {span["span_id"] for span in told["spans"]}
    assert run([*words, "--context", "store-209"]) == 0
    assert "device.commit" in capsys.readouterr().out
    _assert_logs_name_it(lab, mesh.trace(DARK).trace_id.hex(), capsys)


def _holds_all(lab: Lab, store: str, device: str) -> bool:
    """Whether a store has the device's permit and the three blobs of the release, by its trace."""
    return (
        "superhub.permit" in _shown(lab, "control", device) and _shown(lab, store, device).count("storehub.fetch") == 3
    )


def _shown(lab: Lab, context: str, device: str) -> list[str]:
    """Names of the spans of a device that a node holds."""
    request = operator_pb2.GetTraceRequest(wave_id=topology.WAVE, device=device)
    try:
        answer = ask(operations.contexts(lab).select(context), lambda stub: stub.GetTrace(request, timeout=5.0))
    except NotFoundError:
        return []
    return [span.name for span in answer.spans]


def _assert_logs_name_it(lab: Lab, trace_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every tier's log, the device's own and what the hub keeps of it name the trace."""
    for name in ("control", "superhub", "store-209"):
        assert f"wave={topology.WAVE} device=" in processes.find(lab, name).log.read_text()
        assert f"trace={trace_id}" in processes.find(lab, name).log.read_text()
    lines = [json.loads(line) for path in _log_files(lab) for line in path.read_text().splitlines()]
    assert {(line["wave"], line["trace"]) for line in lines} == {("", ""), (topology.WAVE, trace_id)}
    words = ["device", "logs", "--id", DARK, "--wave", topology.WAVE, "--context", "store-209", "--output", "json"]
    kept: list[dict[str, str]] = []

    def has_lines() -> bool:
        assert run(words) == 0
        kept[:] = json.loads(capsys.readouterr().out)
        return bool(kept)

    processes.wait_until(has_lines, PATIENCE_S, "the hub to get the device's log")
    assert {line["trace_id"] for line in kept} == {trace_id}


def _log_files(lab: Lab) -> list[Path]:
    return sorted((lab.device_dir(DARK) / "state" / "log").glob("*.jsonl"))


def _wait_for_commit(mesh: Mesh, device: str) -> dict[str, ShownSpan]:
    """The device's trace once its ends have arrived: the commit, the swap at its hub, the outcome at control."""
    ends = {"device.commit", "storehub.swap", "superhub.outcome", "control.outcome"}
    processes.wait_until(
        lambda: ends <= {span.name for span in mesh.exported(device).values()}, PATIENCE_S, f"the trace of {device}"
    )
    return mesh.exported(device)


def _assert_whole(trace: Trace, device: str, spans: dict[str, ShownSpan]) -> None:
    by_name = {span.name: span for span in spans.values()}
    assert [name for name in DEVICE_SPANS if name not in by_name] == []
    tiers = {span.node for span in spans.values()}
    assert tiers == {topology.control_id().path, topology.superhub_id().path, device.rsplit("/", 2)[0], device}
    for span in spans.values():
        assert span.parent_id in spans or span.span_id == trace.root().hex(), span
        assert not span.error, span
    assert by_name["device.reboot"].attributes["wavemesh.boot_before"]
    lease = by_name["storehub.lease"]
    assert {by_name[name].parent_id for name in DEVICE_SPANS[3:]} == {lease.span_id}


def _assert_links(mesh: Mesh, online: dict[str, ShownSpan], dark: dict[str, ShownSpan]) -> None:
    for device, spans, was_dark in ((ONLINE, online, "no"), (DARK, dark, "yes")):
        by_name = {span.name: span for span in spans.values()}
        permit = mesh.trace(device).permit(1).hex()
        commit, merged, lease = (by_name[name] for name in ("device.commit", "control.outcome", "storehub.lease"))
        assert merged.links == by_name["superhub.outcome"].links == (commit.span_id,)
        assert by_name["device.reboot"].links == (permit,)
        assert lease.attributes["wavemesh.dark"] == was_dark
        assert (lease.links, lease.parent_id) == (
            ((permit,), mesh.trace(device).root().hex()) if was_dark == "yes" else ((), permit)
        )
