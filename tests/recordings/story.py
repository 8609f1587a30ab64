"""What happens in the mesh while it is recorded, and the moments at which its disks are copied.

One wave of four devices in two stores, from plan to closed ledger: a device updates, a store goes dark and is paused
from inside, one device loses its scanner and rolls back, one that was off is rolled back by its operator, one store is
restored from a backup and fenced. A second wave is halted before a device of it moves.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from lab import hardware, operations
from lab.injectors import tell_wan
from lab.policies import RELEASE
from lab.topology import COHORT, WAVE
from tests.recordings.mesh import STORES
from wavemesh.trust.statements import IntentKind, WaveState
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from tests.recordings.mesh import Mesh

SERVERS = ("origin", "wan", "control", "superhub", *STORES)
HALTED_WAVE = "143"
BLOBS = 3  # firmware, config, signature bundle


def play(mesh: Mesh, scratch: Path) -> None:
    """From nothing to the end of the story."""
    lab = mesh.lab
    mesh.start(*SERVERS)
    operations.register(lab)
    mesh.moment("empty")
    operations.publish(lab, operations.make_release(lab, operations.standard_draft(lab, RELEASE)))
    operations.plan(lab, WAVE, lab.policy_path.read_bytes())
    _permits_out(mesh)
    _dark_store(mesh)
    _the_rest(mesh)
    _restored_store(mesh, scratch)
    _halted(mesh)


def _permits_out(mesh: Mesh) -> None:
    """Orders and permits are at the stores, no device has moved."""
    mesh.give("control", IntentKind.START_WAVE, "start-142", wave_id=WAVE, cohort=COHORT)
    for store, devices in STORES.items():
        mesh.until_exposure(store, WAVE, len(devices))
        mesh.until_cached(store, BLOBS)
    mesh.until("orders delivered", lambda: all(one.order_delivered for one in mesh.wave("control", WAVE).stores))
    mesh.moment("permits-out")


def _dark_store(mesh: Mesh) -> None:
    """A device updates; its store's WAN is cut; an operator in the store pauses, and what raises risk queues there."""
    lab = mesh.lab
    hardware.lose_scanner(lab.device_dir("pos-02"), "B")
    mesh.start(*STORES["store-208"])
    mesh.until("a first outcome", lambda: mesh.wave("control", WAVE).counts.pending < len(lab.devices))
    tell_wan(lab, "cut", "store-208")
    mesh.give("store-208", IntentKind.PAUSE_WAVE, "pause-208", wave_id=WAVE, reason="smoke at the till")
    mesh.until_wave("store-208", WAVE, WaveState.PAUSED.value)
    mesh.until_still("store-208")
    mesh.moment("queued-intent")
    tell_wan(lab, "restore", "store-208")
    mesh.until_wave("control", WAVE, WaveState.PAUSED.value)
    mesh.until_wave("store-209", WAVE, WaveState.PAUSED.value)
    mesh.moment("paused")


def _the_rest(mesh: Mesh) -> None:
    """The wave is resumed and ends: updates, a rollback; a device that is off is asked to roll back; control closes."""
    mesh.give("control", IntentKind.RESUME_WAVE, "resume-142", wave_id=WAVE)
    mesh.until_wave("store-208", WAVE, WaveState.RUNNING.value)
    mesh.start("pos-12")
    mesh.until_outcome("control", WAVE, "pos-01", "updated")
    mesh.until_outcome("control", WAVE, "pos-02", "rolled_back")
    mesh.until_outcome("control", WAVE, "pos-03", "updated")
    mesh.until_outcome("control", WAVE, "pos-12", "updated")
    mesh.stop("pos-03")
    mesh.give("control", IntentKind.ROLLBACK_DEVICE, "back-pos-03", device="pos-03", reason="receipts are blank")
    mesh.moment("rollback-waits")
    mesh.start("pos-03")
    mesh.until_slot("store-208", "pos-03", "A")
    mesh.until_disposition("control", "back-pos-03", operator_pb2.DISPOSITION_APPLIED)
    mesh.until_wave("store-209", WAVE, WaveState.CLOSED.value)
    mesh.moment("closed")


def _restored_store(mesh: Mesh, scratch: Path) -> None:
    """Store 209 is restored from a backup of before its device reported: fenced, a new incarnation, a snapshot."""
    lab = mesh.lab
    mesh.stop("store-209")
    state = lab.store_dir("store-209") / "state"
    shutil.rmtree(state)
    shutil.copytree(scratch / "moments" / "permits-out" / "stores" / "store-209" / "state", state)
    mesh.start("store-209")
    mesh.until_wave("store-209", WAVE, WaveState.CLOSED.value)


def _halted(mesh: Mesh) -> None:
    """Another wave starts with every device off, and is halted."""
    lab = mesh.lab
    mesh.stop(*lab.devices)
    operations.plan(lab, HALTED_WAVE, lab.policy_path.read_bytes())
    mesh.give("control", IntentKind.START_WAVE, "start-143", wave_id=HALTED_WAVE, cohort=COHORT)
    mesh.until_wave("store-208", HALTED_WAVE, WaveState.RUNNING.value)
    mesh.give("control", IntentKind.HALT_WAVE, "halt-143", wave_id=HALTED_WAVE, reason="wrong receipts")
    mesh.until_wave("store-208", HALTED_WAVE, WaveState.HALTED.value)
    mesh.moment("halted")
