"""Everything that is made of a blob, each job in a contained process of its own (``delta/worker.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemesh.artifacts.delta.worker import Workers

if TYPE_CHECKING:
    from pathlib import Path


class Makers(Workers):
    """Workers that also compress and pack, under the same bounds and at most as many at once."""

    async def compress(self, target: Path, out: Path, level: int) -> None:
        """``compressed.make_full_zstd`` in a process; raises DeltaBoundError, DiskFaultError: then no ``out``."""
        await self._run({"what": "compress", "target": str(target), "level": level}, out, self._make_bounds, 0)

    async def pack(self, target: Path, out: Path, index: Path, level: int) -> None:
        """``chunks.make_pack`` in a process; ``out`` is the pack. Raises as ``compress``, and TooManyChunksError.

        The index is written under its name by the job and may lie there when it failed.
        """
        job: dict[str, object] = {"what": "pack", "target": str(target), "index": str(index), "level": level}
        await self._run(job, out, self._make_bounds, 0)
