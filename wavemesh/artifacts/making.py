"""Everything that is made of a blob, each job in a contained process of its own (``delta/worker.py``)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from wavemesh.artifacts.delta.worker import Workers
from wavemesh.artifacts.digests import in_thread
from wavemesh.artifacts.likeness import Estimate
from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Makers(Workers):
    """Workers that also compress, pack and compare, under the same bounds and at most as many at once."""

    async def compress(self, target: Path, out: Path, level: int) -> None:
        """``compressed.make_full_zstd`` in a process; raises DeltaBoundError, DiskFaultError: then no ``out``."""
        await self._run({"what": "compress", "target": str(target), "level": level}, out, self._make_bounds, 0)

    async def pack(self, target: Path, out: Path, index: Path, level: int) -> None:
        """``chunks.make_pack`` in a process; ``out`` is the pack. Raises as ``compress``, and TooManyChunksError.

        The index is written under its name by the job and may lie there when it failed.
        """
        job: dict[str, object] = {"what": "pack", "target": str(target), "index": str(index), "level": level}
        await self._run(job, out, self._make_bounds, 0)

    async def liken(self, bases: Sequence[Path], target: Path, out: Path) -> Estimate:
        """``likeness.estimate`` of sketches made in a process; it is left in ``out``. Raises as ``compress``."""
        job: dict[str, object] = {"what": "liken", "bases": [str(path) for path in bases], "target": str(target)}
        await self._run(job, out, self._make_bounds, 0)
        with disk_errors(out):
            said = json.loads(await in_thread(out.read_text))
        return Estimate(int(said[0]), int(said[1]), int(said[2]), float(said[3]))
