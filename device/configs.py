"""Config bundles on the data partition, by generation.

``DIR/state/config/GENERATION/`` holds ``bundle`` and ``label.json``. A generation is complete once its label is there;
the boot environment says which one runs, so writing one changes nothing yet. A bundle that is on its way lies in
``GENERATION.partial`` and starts over after a crash, for it is small next to an image.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from device.slots.images import read_json
from device.values import to_plain
from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Mapping
    from pathlib import Path

    from device.offload import Worker
    from wavemesh.runtime.durable import Disk
    from wavemesh.trust.statements import Digest

KEPT_GENERATIONS = 4


@dataclass(frozen=True, slots=True)
class ConfigLabel:
    """What a generation holds."""

    version: str
    sha256: str
    size_bytes: int


class ConfigStore:
    """All generations of one device."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        """``directory`` is ``DIR/state/config``."""
        self._directory = directory
        self._disk = disk
        # Asked for with every status; nobody else writes them while we run.
        self._known: dict[int, ConfigLabel] | None = None

    def label(self, generation: int) -> ConfigLabel | None:
        """What a generation holds, None if it is not complete."""
        return self.generations().get(generation)

    def generations(self) -> Mapping[int, ConfigLabel]:
        """All complete generations."""
        if self._known is None:
            self._known = self._read()
        return self._known

    def _read(self) -> dict[int, ConfigLabel]:
        if not self._directory.is_dir():
            return {}
        numbers = sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())
        labels = {number: read_json(self._directory / str(number) / "label.json", ConfigLabel) for number in numbers}
        return {number: label for number, label in labels.items() if label is not None}

    async def store(
        self, generation: int, version: str, digest: Digest, pieces: AsyncIterable[memoryview], worker: Worker
    ) -> None:
        """Write and verify a bundle; raises GateError (checksum), DiskFaultError and what the pieces raise."""
        partial, final = self._directory / f"{generation}.partial", self._directory / str(generation)
        await worker.run(self._clear, partial)
        bundle = partial / "bundle"
        hasher = hashlib.sha256()
        descriptor = self._disk.create(bundle)
        try:
            async for piece in pieces:
                await worker.run(self._disk.write, descriptor, bytes(piece), bundle)
                await worker.run(hasher.update, piece)
            await worker.run(self._disk.fsync, descriptor, bundle)
        finally:
            os.close(descriptor)
        if hasher.hexdigest() != digest.sha256:
            msg = f"config bundle has SHA-256 {hasher.hexdigest()}, signed is {digest.sha256}"
            raise GateError(Gate.CHECKSUM.value, msg)
        label = ConfigLabel(version, digest.sha256, digest.size_bytes)
        self._disk.write_atomic(partial / "label.json", json.dumps(to_plain(label)).encode())
        try:
            if final.exists():
                await worker.run(self._disk.remove_tree, final)
            self._disk.rename(partial, final)
            self._disk.fsync_dir(self._directory)
        finally:
            self._known = None

    async def is_intact(self, generation: int, worker: Worker) -> bool:
        """Whether a generation's bundle is what its label says; raises DiskFaultError."""
        label = self.label(generation)
        return label is not None and await worker.run(self._sha256, generation) == label.sha256

    def _sha256(self, generation: int) -> str:
        bundle = self._directory / str(generation) / "bundle"
        with disk_errors(bundle), bundle.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def forget(self, keep: set[int]) -> None:
        """Remove old generations beyond ``KEPT_GENERATIONS``, never one that a boot refers to."""
        removable = [number for number in self.generations() if number not in keep]
        for number in removable[:-KEPT_GENERATIONS]:
            self._disk.remove_tree(self._directory / str(number))
        self._known = None

    def _clear(self, partial: Path) -> None:
        self._disk.remove_tree(partial)
        self._disk.make_dir(partial)
