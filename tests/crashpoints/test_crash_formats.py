"""The oracle's own readers and the back-ends agree on every environment that a device goes through (D9)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from device.backend import open_slots
from device.bootenv import Boot, SlotName
from device.config import Backend
from tests.crashpoints.device_boot import config_for
from tests.crashpoints.device_scenarios import provisioned
from tests.crashpoints.fleet import IMAGE_BYTES, OLD, image_of
from tests.crashpoints.medium import lay_image, read_image
from tests.crashpoints.oracle import BootWords
from tests.crashpoints.oracle_formats import FORMATS, readers, uboot_copies
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from pathlib import Path

    from device.bootenv import BootEnvironment

B2 = Boot(SlotName.B, 2)


def words_of(environment: BootEnvironment) -> BootWords:
    """What the agent reads, in the oracle's words."""

    def plain(boot: Boot | None) -> tuple[str, int] | None:
        return None if boot is None else (boot.slot.value, boot.config_generation)

    trial = environment.trial
    active = (environment.active.slot.value, environment.active.config_generation)
    tries_left = 0 if trial is None else trial.tries_left
    return BootWords(active, plain(environment.previous), plain(trial.boot if trial else None), tries_left)


@pytest.mark.parametrize("backend", [Backend(name) for name in FORMATS])
def test_both_read_the_same(tmp_path: Path, backend: Backend) -> None:
    lay_image(tmp_path / "device", provisioned(backend))
    control = open_slots(tmp_path / "device", config_for(backend, tmp_path / "device"), Disk()).boot_control
    read_boot, read_slot = readers(backend.value, IMAGE_BYTES)
    for change in (
        partial(control.arm, B2),
        partial(control.keep_trying, 3),
        control.disarm,
        partial(control.arm, B2),
        control.commit,
        partial(control.invalidate, SlotName.A),
    ):
        change()
        image = read_image(tmp_path / "device")
        assert read_boot(image) == words_of(control.read())
        assert read_slot(image, "A") == image_of(OLD)


@pytest.mark.parametrize("backend", [Backend(name) for name in FORMATS])
def test_a_torn_environment_is_none(backend: Backend) -> None:
    name = FORMATS[backend.value].environment
    content = provisioned(backend)[name]
    assert content is not None
    if backend is Backend.UBOOT:
        whole = [copy is not None for copy in uboot_copies(content)]
        assert sorted(whole) == [False, True], "the first write left the other copy as it was"
    read_boot, _ = readers(backend.value, IMAGE_BYTES)
    with pytest.raises((ValueError, KeyError)):
        read_boot({name: content.replace(b"A", b"X").replace(b'"active"', b'"inactive"')[: len(content) // 2]})
