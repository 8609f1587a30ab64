"""What firmware, bootloader and medium of a simulated device do at a reset. No agent code, no gRPC.

Bootloader. With a trial and tries left, take one try durably and boot it; with a trial and none left, note the reset
reason that ended it and boot the active slot; else boot the active slot. So however often the power fails, a trial
boots at most as often as it was given tries, and the active image is never touched.

Medium. At a power cut everything past the last durable mark of a write is lost: it is overwritten with noise. A medium
that ``hardware/bad-medium`` exists for does not keep what is written to the slot that does not run.
"""

from __future__ import annotations

import json
import os
import random
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from device.board import boot_record_path, write_boot_record
from device.bootenv import Boot, ResetReason, SlotName
from device.platform import BootRecord

if TYPE_CHECKING:
    from pathlib import Path

    from device.backend import SlotSystem

NOISE_STEP_BYTES = 1024 * 1024
BAD_BLOCK = b"\xa5" * 4096
MAX_RECORD_BYTES = 4 * 1024 * 1024


class Firmware:
    """The parts of a board that run before the agent."""

    def __init__(self, directory: Path, system: SlotSystem, lossy_bytes: int) -> None:
        """``lossy_bytes``: how much unflushed data the medium's cache may hold when the power fails."""
        self._directory = directory
        self._bootloader = system.bootloader
        self._media = system.media
        self._lossy_bytes = lossy_bytes

    def first_reason(self) -> ResetReason:
        """Why the board starts now: a boot record left behind means that nobody shut it down."""
        return ResetReason.POWER_LOSS if boot_record_path(self._directory).exists() else ResetReason.POWER_ON

    def boot(self, reason: ResetReason) -> BootRecord:
        """Decide what boots and record it; the boot environment is changed durably before."""
        environment = self._bootloader.read()
        if environment.trial is None:
            boot = environment.active
        elif environment.trial.tries_left > 0:
            boot = environment.trial.boot
            self._bootloader.attempt()
        else:
            boot = environment.active
            self._bootloader.fall_back(reason)
        record = BootRecord(secrets.token_hex(16), boot, reason)
        write_boot_record(self._directory, record)
        self._append("boots.jsonl", {"boot_id": record.boot_id, "slot": boot.slot.value, "reason": reason.value})
        return record

    def shut_down(self) -> None:
        """An orderly end: the next start is a power-on."""
        boot_record_path(self._directory).unlink(missing_ok=True)

    def is_trial(self, boot: Boot) -> bool:
        """Whether this boot is the one on trial."""
        trial = self._bootloader.read().trial
        return trial is not None and trial.boot == boot

    def is_bootable(self, slot: SlotName) -> bool:
        """Whether the image gets as far as the agent; ``hardware/unbootable`` lists versions that do not."""
        path = self._directory / "hardware" / "unbootable"
        return not path.exists() or self._media.version(slot) not in path.read_text().split()

    def lose_unflushed(self) -> None:
        """Overwrite what a power cut takes: the bytes of a slot after the last mark of an unfinished write."""
        for slot in SlotName:
            lost, path = self._media.unflushed(slot), self._media.path(slot)
            if not lost or not path.exists():
                continue
            noise = random.Random(lost.start)  # noqa: S311  # garbage, not a secret; the same run tears the same way
            with path.open("r+b") as file:
                file.seek(lost.start)
                rest = min(self._lossy_bytes, len(lost))
                while rest > 0:
                    rest -= file.write(noise.randbytes(min(rest, NOISE_STEP_BYTES)))
                os.fsync(file.fileno())

    def step(self, record: BootRecord, step: str) -> None:
        """The agent announced a step: keep a record of it; a bad medium does its worst while a slot is written."""
        self._append("steps.jsonl", {"boot_id": record.boot_id, "step": step})
        if step.startswith("staging:"):
            self._decay(record.boot.slot.other)

    def _decay(self, slot: SlotName) -> None:
        path = self._media.path(slot)
        if (self._directory / "hardware" / "bad-medium").exists() and path.exists():
            with path.open("r+b") as file:
                file.write(BAD_BLOCK)
                os.fsync(file.fileno())

    def _append(self, name: str, entry: dict[str, object]) -> None:
        path = self._directory / "run" / name
        if path.exists() and path.stat().st_size > MAX_RECORD_BYTES:
            path.replace(path.with_name(name + ".1"))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": datetime.now(UTC).isoformat(), **entry}) + "\n")
