"""What is packed before a slot is overwritten, and what happens where there is no room for it (D6)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from device.bootenv import Boot, BootEnvironment, SlotName
from device.lkg import PackedLkg
from device.platform import SlotLabel
from device.staging import Staging
from device.tracing import Tracing
from tests.unit.device.test_device_machine import TARGET
from wavemesh.errors import GateError
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.durable import Disk
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = b"good" * 1000
LABEL = SlotLabel("firmware-v3.8.0", "3.8.0", Digest(hashlib.sha256(IMAGE).hexdigest(), len(IMAGE)))
PREVIOUS = BootEnvironment(Boot(SlotName.A, 3), Boot(SlotName.B, 2))


class Device:
    """The parts that packing works with; ``events`` is what control hears."""

    def __init__(self, path: Path, environment: BootEnvironment, label: SlotLabel | None, **rules: Any) -> None:
        slot = path / "B.img"
        slot.write_bytes(IMAGE)
        self.events: list[tuple[str, str]] = []
        self.lkg = PackedLkg(path / "lkg.pack", Disk())
        node = NodeId("test.example", "region/midwest/store/store-208/device/pos-01")
        equipment: Any = SimpleNamespace(
            boot_control=SimpleNamespace(read=lambda: environment),
            slots=SimpleNamespace(label=lambda _: label, path=lambda _: slot),
            lkg=self.lkg,
            config=SimpleNamespace(board=SimpleNamespace(reserved_disk_bytes=0)),
            tracing=Tracing(node, SystemClock(), SimpleNamespace(enabled=False)),  # type: ignore[arg-type]  # all it reads
            log=SimpleNamespace(note=lambda _: None, alert=lambda _: None),
            store=self,
        )
        target = replace(TARGET, rules=replace(TARGET.rules, **rules))
        self.staging = Staging(equipment, target, lambda _: None)

    def append_event(self, kind: str, gate: str, subject: str, detail: str) -> None:
        assert (gate, subject) == ("disk", "slot/B")
        self.events.append((kind, detail))


async def test_the_last_known_good_is_packed_before_it_is_overwritten(tmp_path: Path) -> None:
    device = Device(tmp_path, PREVIOUS, LABEL)
    await device.staging._keep_lkg()
    held = device.lkg.held()
    assert held is not None
    assert (held.label, held.config_generation) == (LABEL, 2)
    first = (tmp_path / "lkg.pack").stat().st_ino
    await device.staging._keep_lkg()
    assert (tmp_path / "lkg.pack").stat().st_ino == first, "it was packed twice"


@pytest.mark.parametrize(
    ("environment", "label"),
    [
        (replace(PREVIOUS, previous=None), LABEL),
        (replace(PREVIOUS, previous=Boot(SlotName.A, 2)), LABEL),
        (PREVIOUS, None),
    ],
    ids=["not good", "not overwritten", "not complete"],
)
async def test_nothing_else_is_packed(tmp_path: Path, environment: BootEnvironment, label: SlotLabel | None) -> None:
    device = Device(tmp_path, environment, label)
    await device.staging._keep_lkg()
    assert (device.lkg.held(), device.events) == (None, [])


async def test_without_room_the_update_goes_on_and_control_is_told(tmp_path: Path) -> None:
    device = Device(tmp_path, PREVIOUS, LABEL, min_free_disk_bytes=2**60)
    await device.staging._keep_lkg()
    [(kind, detail)] = device.events
    assert (kind, detail.startswith("no second rollback after this update: 3.8.0")) == ("lkg-not-packed", True)


async def test_a_policy_may_refuse_instead(tmp_path: Path) -> None:
    device = Device(tmp_path, PREVIOUS, LABEL, min_free_disk_bytes=2**60, require_packed_lkg=True)
    with pytest.raises(GateError) as refused:
        await device.staging._keep_lkg()
    assert (refused.value.gate, device.events) == ("disk", [])
