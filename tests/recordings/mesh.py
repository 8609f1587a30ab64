"""A small mesh of real processes over real gRPC and mutual TLS, whose servers write down what passes."""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from unittest.mock import patch

from edgectl.client import CALL_TIMEOUT_S, ask
from lab import operations, processes, topology
from lab.images import build_small_images
from lab.policies import RELEASE, policy_text
from lab.provision import provision
from tests.recordings import snapshot
from tests.recordings.tapped import TAP_VARIABLE
from wavemesh.errors import LinkDownError, NotFoundError
from wavemesh.trust.statements import IntentKind, OperatorIntent, UpdateState
from wavemesh.v1 import operator_pb2, report_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from lab.topology import Lab

STORES = {"store-208": ("pos-01", "pos-02", "pos-03"), "store-209": ("pos-12",)}
IMAGE_BYTES = 48 * 1024
PATIENCE_S = 60.0
_POLL_S = 0.25
_IN_SWAP = frozenset(
    state.value for state in (UpdateState.ARMED, UpdateState.TRIAL, UpdateState.COMMITTING, UpdateState.ROLLING_BACK)
)
_TAPPED = frozenset({"control", "superhub", "storehub"})


class Mesh:
    """The mesh, and what an operator does to it."""

    def __init__(self, lab: Lab, moments: Path) -> None:
        """Moments are copied below ``moments``."""
        self.lab = lab
        self._moments = moments
        self.times: dict[str, datetime] = {}

    def moment(self, name: str) -> None:
        """Copy what every node has on disk now."""
        self.times[name] = datetime.now(UTC)
        snapshot.take(self.lab.directory, self._moments / name)

    def start(self, *names: str) -> None:
        """Start processes; servers are waited for."""
        processes.start(self.lab, names)
        operations.wait_ready(self.lab, [name for name in names if name in {"control", "superhub", *STORES}])

    def stop(self, *names: str) -> None:
        """Stop processes with SIGTERM."""
        processes.stop(self.lab, names)

    def give(self, context: str, kind: IntentKind, name: str, **fields: str) -> None:
        """Hand an operator's intent in."""
        intent = OperatorIntent(name, kind, datetime.now(UTC), **fields)  # type: ignore[arg-type]  # texts by name
        operations.give(self.lab, context, intent)

    def wave(self, context: str, wave_id: str) -> operator_pb2.Wave:
        """A wave as that node sees it."""
        request = operator_pb2.GetWaveRequest(wave_id=wave_id)
        chosen = operations.contexts(self.lab).select(context)
        return ask(chosen, lambda stub: stub.GetWave(request, timeout=CALL_TIMEOUT_S)).wave

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait until it holds; a node that does not know, or is not heard, does not hold it yet."""

        def look() -> bool:
            try:
                return holds()
            except (NotFoundError, LinkDownError):
                return False

        processes.wait_until(look, PATIENCE_S, what)

    def until_wave(self, context: str, wave_id: str, state: int) -> None:
        """Wait until a node says that a wave is in that state."""
        self.until(f"wave {wave_id} in state {state} at {context}", lambda: self.wave(context, wave_id).state == state)

    def until_exposure(self, store: str, wave_id: str, devices: int) -> None:
        """Wait until a store holds the permits of that many devices that have not moved."""
        self.until(f"{devices} permits at {store}", lambda: self.wave(store, wave_id).exposure == devices)

    def devices(self, store: str) -> Iterable[operator_pb2.Device]:
        """Devices as their store sees them."""
        chosen = operations.contexts(self.lab).select(store)
        request = operator_pb2.ListDevicesRequest(page_size=100)
        return ask(chosen, lambda stub: stub.ListDevices(request, timeout=CALL_TIMEOUT_S)).devices

    def until_still(self, store: str) -> None:
        """Wait until no device of a store is between arming and its outcome."""
        still = lambda: all(one.status.state not in _IN_SWAP for one in self.devices(store))  # noqa: E731
        self.until(f"no swap at {store}", still)

    def until_slot(self, store: str, device: str, slot: str) -> None:
        """Wait until a device runs from that slot."""

        def holds() -> bool:
            return any(one.path.endswith(f"/{device}") and one.status.slot == slot for one in self.devices(store))

        self.until(f"{device} on slot {slot}", holds)

    def until_outcome(self, context: str, wave_id: str, device: str, kind: str) -> None:
        """Wait until a node's ledger has that outcome of a device."""

        def holds() -> bool:
            entries = operations.ledger(self.lab, context, wave_id).entries
            return any(one.device.endswith(f"/{device}") and _name(one) == kind for one in entries)

        self.until(f"{device} {kind} at {context}", holds)

    def until_cached(self, store: str, blobs: int) -> None:
        """Wait until a store holds that many whole blobs."""
        chosen = operations.contexts(self.lab).select(store)
        request = operator_pb2.ListCacheRequest(limit=1000)

        def holds() -> bool:
            entries = ask(chosen, lambda stub: stub.ListCache(request, timeout=CALL_TIMEOUT_S)).entries
            return sum(one.present_bytes == one.digest.size_bytes for one in entries) >= blobs

        self.until(f"{blobs} blobs at {store}", holds)

    def until_disposition(self, context: str, intent_id: str, disposition: int) -> None:
        """Wait until a node says that of an intent."""
        chosen = operations.contexts(self.lab).select(context)
        request = operator_pb2.ListIntentsRequest(page_size=100)

        def holds() -> bool:
            found = ask(chosen, lambda stub: stub.ListIntents(request, timeout=CALL_TIMEOUT_S)).intents
            return any(one.intent_id == intent_id and one.disposition == disposition for one in found)

        self.until(f"intent {intent_id} {disposition} at {context}", holds)


def _name(entry: operator_pb2.LedgerEntry) -> str:
    return report_pb2.OutcomeKind.Name(entry.kind).removeprefix("OUTCOME_KIND_").lower()


@contextmanager
def running(directory: Path) -> Iterator[Mesh]:
    """Provision the mesh below ``directory``; everything that was started is stopped at the end."""
    pair = build_small_images(directory / "images", IMAGE_BYTES)
    with patch.dict(topology.STORES, STORES, clear=True):
        lab = provision(directory / "lab", pair)
    text = policy_text(RELEASE, swap_limit=1, halt_least_outcomes=10)
    lab.policy_path.write_text(text, encoding="utf-8")
    plain = processes.commands

    def tapped(one: Lab) -> dict[str, tuple[str, ...]]:
        return {
            name: (("tests.recordings.tapped", *command) if command[0] in _TAPPED else command)
            for name, command in plain(one).items()
        }

    tap = {TAP_VARIABLE: str(directory / "tap.jsonl")}
    with (
        patch.object(processes, "commands", tapped),
        patch.object(processes, "_POLL_S", _POLL_S),
        patch.dict(os.environ, tap),
    ):
        try:
            yield Mesh(lab, directory / "moments")
        finally:
            processes.stop_all(lab)
