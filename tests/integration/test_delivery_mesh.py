"""A second release over the whole mesh moves a few per cent of its bytes (S5, H4, D1), counted at the link's proxy.

control → super hub → (the WAN's proxy) → store hub → devices, as the lab lays them out. The first release reaches the
store whole, because nothing is there to start from; the next one comes as a delta that the super hub makes.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from edgectl.client import CALL_TIMEOUT_S, ask
from edgectl.plain import plain
from lab import operations, processes
from lab.evidence import slot_sha256
from lab.images import ImagePair, ImageSource, digest_of
from lab.injectors import tell
from lab.operations import Draft
from lab.policies import RELEASE, ReleaseNames, policy_text
from lab.processes import stop_all, wait_until
from lab.provision import free_ports, furnish, image
from lab.topology import WAVE, Lab, port_names, store_id
from lab.up import prepare, start_servers
from wavemesh.trust.statements import IntentKind, OperatorIntent
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(240)

STORE, DEVICES = "store-209", ("pos-12", "pos-17")
SIZE_BYTES = 4 << 20
NEXT = ReleaseNames("firmware-v3.8.3", "3.8.3", "pos-app-12.4.2.tar.gz", "12.4.2")
PATIENT = "delivery:\n  pricePerHour: 0          # a delta is worth every wait\n"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """One store of two devices, all as processes."""
    content = random.Random(33).randbytes(SIZE_BYTES)
    pair = ImagePair(tmp_path / "old.img", tmp_path / "new.img", ImageSource.GIVEN)
    pair.old.write_bytes(content)
    pair.new.write_bytes(changed(content, 1))
    stores: dict[str, tuple[str, ...]] = {STORE: DEVICES}
    made = furnish(Lab(tmp_path / "lab", free_ports(port_names(stores)), stores), pair)
    try:
        start_servers(made)
        prepare(made)
        yield made
    finally:
        stop_all(made)


def changed(content: bytes, seed: int) -> bytes:
    """The next version of an image: a hundredth of it is new, in ten places."""
    rng, image_ = random.Random(seed), bytearray(content)
    for _ in range(10):
        place = rng.randrange(SIZE_BYTES - 5000)
        image_[place : place + SIZE_BYTES // 1000] = rng.randbytes(SIZE_BYTES // 1000)
    return bytes(image_)


def down_bytes(lab: Lab) -> int:
    """What passed the link towards the store, sessions and handshakes included."""
    links = tell(lab.wan_dir / "control.sock", "status")["links"]
    return next(int(link["down_bytes"]) for link in links if link["name"] == STORE)


def deliveries(lab: Lab, context: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Deliveries by wave and artifact, as a node shows them in its hubs."""
    request = operator_pb2.GetFleetStatusRequest()
    chosen = operations.contexts(lab).select(context)
    answer = ask(chosen, lambda stub: stub.GetFleetStatus(request, timeout=CALL_TIMEOUT_S))
    hubs = [plain(hub) for hub in answer.hubs if hub.hub == store_id(STORE).path]
    return {(one["wave_id"], one["name"]): one for hub in hubs for one in hub["deliveries"]}


def planned(lab: Lab, wave: str, policy: str, *, dry_run: bool) -> dict[str, dict[str, Any]]:
    """Plan a wave; what it forecasts, by place."""
    request = operator_pb2.PlanWaveRequest(
        wave_id=wave, cohort="retail-us-midwest", policy_yaml=policy.encode(), policy_name="p.yaml", dry_run=dry_run
    )
    chosen = operations.contexts(lab).select("control")
    answer = ask(chosen, lambda stub: stub.PlanWave(request, timeout=CALL_TIMEOUT_S))
    return {one["place"]: one for one in plain(answer)["forecast"]}


def is_done(lab: Lab, wave: str, name: str, context: str = STORE) -> bool:
    return deliveries(lab, context).get((wave, name), {}).get("state") == "done"


def derived(lab: Lab, target_sha256: str) -> set[str]:
    """By what methods the super hub has made a blob, as control shows it."""
    request = operator_pb2.GetFleetStatusRequest()
    chosen = operations.contexts(lab).select("control")
    answer = ask(chosen, lambda stub: stub.GetFleetStatus(request, timeout=CALL_TIMEOUT_S))
    return {one.method for hub in answer.hubs for one in hub.derived if one.target_sha256 == target_sha256}


def updated(lab: Lab, wave: str) -> int:
    return operations.ledger(lab, "control", wave).counts.updated


def test_the_next_release_moves_a_few_per_cent_and_the_wave_completes(lab: Lab) -> None:
    wait_until(lambda: is_done(lab, WAVE, RELEASE.firmware), 60, "the first release at the store")
    first = deliveries(lab, STORE)[WAVE, RELEASE.firmware]
    assert (first["method"], first["moved_bytes"]) == ("full", SIZE_BYTES)
    halt = OperatorIntent("halt-1", IntentKind.HALT_WAVE, datetime.now(UTC), wave_id=WAVE, reason="the next is out")
    operations.give(lab, "control", halt)
    processes.start(lab, lab.devices)
    operations.wait_connected(lab)

    newer = lab.images_dir / NEXT.firmware
    newer.write_bytes(changed(image(lab, RELEASE).read_bytes(), 2))
    operations.publish(lab, operations.make_release(lab, Draft(NEXT, newer)))
    policy = policy_text(NEXT, swap_limit=2, halt_least_outcomes=5) + PATIENT
    before = down_bytes(lab)
    forecast = planned(lab, "143", policy, dry_run=True)
    assert forecast["fleet"]["unknown_bytes"] == SIZE_BYTES, "nothing is made yet: the whole blob is the upper bound"
    planned(lab, "143", policy, dry_run=False)
    wait_until(lambda: is_done(lab, "143", NEXT.firmware), 90, "the second release at the store")
    moved = down_bytes(lab) - before
    second = deliveries(lab, STORE)["143", NEXT.firmware]
    assert (second["method"], second["said"].split()[0]) == ("delta", "delta")
    assert second["moved_bytes"] == second["forecast_bytes"] < SIZE_BYTES * 0.03
    assert second["moved_bytes"] < moved < SIZE_BYTES * 0.06, "the link's proxy counted sessions too"

    start = OperatorIntent("start-1", IntentKind.START_WAVE, datetime.now(UTC), wave_id="143")
    operations.give(lab, "control", start)
    wait_until(lambda: updated(lab, "143") == len(DEVICES), 90, "both devices to be updated")
    sha256, size_bytes = digest_of(newer)
    for device in lab.devices:
        slots = {slot_sha256(lab.device_dir(device), slot, size_bytes) for slot in ("A", "B")}
        assert sha256 in slots, f"{device} has the image to the byte"
    wait_until(lambda: is_done(lab, "143", NEXT.firmware, "control"), 10, "the ledger at control")
    assert deliveries(lab, "control")["143", NEXT.firmware]["moved_bytes"] == second["moved_bytes"]
    wait_until(lambda: "delta" in derived(lab, sha256), 10, "the super hub to tell what it made")
    again = planned(lab, "143", policy, dry_run=True)
    assert again[store_id(STORE).path]["methods"]["held"] == 1
    assert again["fleet"]["unknown_bytes"] == 0
