"""Makes of blobs what stores need to come to them cheaply, and tells what there is (S5).

The shell of ``derivations.py``. Each recipe is made once however many ask, in a contained process of its own; the
target is brought here first if it is not here. What is made is a blob in the cache like others, but the first to be
evicted, and the table ``derived.py`` says of what it was made. Inputs are linked into a directory of the job, so that
they are there until its end whatever is evicted, and are hashed before they are used: from a base that went bad nobody
could rebuild anything. What a killed process leaves there is swept at the next start.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections import OrderedDict
from contextlib import aclosing
from typing import TYPE_CHECKING

from superhub.derivations import (
    Dismissed,
    Made,
    Recipe,
    forecast_bytes,
    is_to_be_likened,
    is_to_be_tried,
    level_for,
    ready_in_s,
    rebuild_s,
    recipes,
    why_not_worth,
)
from wavemesh.artifacts.chunkindex import MAX_INDEX_BYTES, ChunkIndex, missing_bytes, parse_index
from wavemesh.artifacts.chunks import TooManyChunksError, chunk_file
from wavemesh.artifacts.delta.codec import BadDeltaError
from wavemesh.artifacts.delta.worker import DeltaBoundError
from wavemesh.artifacts.digests import STEP_BYTES, blob_name, digest_of_file, in_thread
from wavemesh.artifacts.partial import BlobMismatchError
from wavemesh.artifacts.plan import Method, Offer
from wavemesh.errors import LocalError, NotFoundError, WavemeshError
from wavemesh.runtime.durable import Disk, disk_errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from superhub.derivations import Limits
    from superhub.derived import Derived
    from wavemesh.artifacts.blobstore import BlobStore
    from wavemesh.artifacts.making import Makers
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.statements import Digest

_LOG = logging.getLogger(__name__)

MAX_FLIGHTS = 64
"""Recipes in work or waiting; what comes beyond is not promised, and begun when somebody asks again."""
RETRY_S = 60.0
"""After a failure that may have been an accident."""
CHUNKED_MOST = 8
"""Bases of one question whose chunks are looked for anew."""
_KNOWN_BASES = 64
_KNOWN_INDEXES = 8
_DEFINITE = (BadDeltaError, DeltaBoundError, TooManyChunksError)


class _Flight:
    """A recipe in work."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.began_s: float | None = None
        self.forecast_bytes: int | None = None


class Deriving:
    """What one super hub makes."""

    def __init__(
        self,
        *,
        directory: Path,
        blobs: BlobStore,
        derived: Derived,
        makers: Makers,
        limits: Limits,
        is_on: bool,
        clock: Clock,
        group: asyncio.TaskGroup,
        bring: Callable[[Digest], Awaitable[None]],
        make_room: Callable[[Digest], Awaitable[None]],
        disk: Disk | None = None,
    ) -> None:
        """Jobs run as tasks of ``group``, with their files below ``directory``, on the file system of the cache.

        With ``is_on`` false nothing more is made, and what there is is offered. ``bring`` has a target held here,
        ``make_room`` evicts for what was made; both raise WavemeshError.
        """
        self._directory = directory
        self._blobs = blobs
        self._derived = derived
        self._makers = makers
        self._limits = limits
        self._is_on = is_on
        self._clock = clock
        self._group = group
        self._bring = bring
        self._make_room = make_room
        self._disk = disk or Disk()
        self._flights: dict[Recipe, _Flight] = {}
        self._failed_s: dict[Recipe, float] = {}
        self._ids: OrderedDict[Digest, frozenset[bytes]] = OrderedDict()
        self._indexes: OrderedDict[Digest, ChunkIndex] = OrderedDict()
        self._chunking = asyncio.Lock()

    async def sweep(self) -> None:
        """Remove what jobs of an earlier process left; call it before the first job. Raises DiskFaultError."""

        def clean() -> None:
            self._disk.remove_tree(self._directory)
            self._disk.make_dir(self._directory)

        await in_thread(clean)

    # -- asking -----------------------------------------------------------------------------------------------------

    def source_of(self, digest: Digest) -> tuple[Sequence[Digest], Method] | None:
        """The targets that a derived blob was made of, and how; None for one that is not derived, or not here."""
        methods = [made.recipe.method for made in self._derived.all() if digest in made.blobs]
        return (self._derived.targets_of(digest), methods[0]) if methods else None

    def is_derived(self, digest: Digest) -> bool:
        """Whether a blob was made here, and can be made again."""
        return bool(self._derived.targets_of(digest))

    @property
    def at_work(self) -> Sequence[Digest]:
        """The targets of what is being made, or waits for its turn."""
        return list({recipe.target for recipe in self._flights})

    @property
    def made(self) -> list[Made]:
        """Everything that was made and is here, the oldest first."""
        return list(self._derived.all())

    def begin(self, target: Digest, bases: Iterable[Digest], methods: Collection[Method]) -> list[Recipe]:
        """See to it that what is worth making is made; returns all of it, made or not. Does not wait."""
        if not self._is_on:
            return [made.recipe for made in self._derived.all() if made.recipe.target == target]
        held = [base for base in bases if self._blobs.has(base)]
        return [
            recipe
            for recipe in recipes(target, held, methods, self._limits)
            if self._derived.made(recipe) is not None or self._start(recipe)
        ]

    async def offers(
        self, target: Digest, bases: Sequence[Digest], likely: Sequence[Digest], methods: Collection[Method]
    ) -> list[Offer]:
        """By what a blob can come to who holds ``bases``; what is not made is begun.

        Deltas from the ``likely`` bases, those of others, are begun as well and not offered.
        """
        await self._derived.prune()
        held = [base for base in bases if self._blobs.has(base)]
        promised = self.begin(target, [*held, *likely], methods)
        found = [Offer(Method.FULL, payload=target, read_bytes=target.size_bytes)] if Method.FULL in methods else []
        named = set(bases)
        return found + [await self._offer(recipe, held) for recipe in promised if named.issuperset(recipe.bases)]

    async def _offer(self, recipe: Recipe, held: Sequence[Digest]) -> Offer:
        made = self._derived.made(recipe)
        if made is None:
            flight = self._flights.get(recipe)
            forecast = flight.forecast_bytes if flight is not None else None
            return Offer(
                recipe.method,
                bases=recipe.bases,
                read_bytes=forecast or forecast_bytes(recipe, self._derived.all()),
                ready_in_s=self._ready_in_s(recipe),
                rebuild_s=rebuild_s(recipe),
            )
        bases, read_bytes = recipe.bases, made.payload.size_bytes
        if made.index is not None:
            bases, saved_bytes = await self._shared(made.index, held)
            read_bytes += made.index.size_bytes - saved_bytes
        return Offer(
            recipe.method,
            bases=bases,
            payload=made.payload,
            index=made.index,
            read_bytes=read_bytes,
            rebuild_s=rebuild_s(recipe),
        )

    def _ready_in_s(self, recipe: Recipe) -> float:
        flight = self._flights.get(recipe)
        worked_s = 0.0
        if flight is not None and flight.began_s is not None:
            worked_s = self._clock.monotonic() - flight.began_s
        order = list(self._flights)
        ahead = order[: order.index(recipe)] if recipe in self._flights else order
        return ready_in_s(ahead, recipe, worked_s, self._limits)

    # -- chunks of bases --------------------------------------------------------------------------------------------

    async def _shared(self, name: Digest, bases: Sequence[Digest]) -> tuple[tuple[Digest, ...], int]:
        """Which of the bases have chunks of the indexed target that those before lack; bytes of the pack that saves."""
        try:
            index = await self._index(name)
        except WavemeshError as error:
            _LOG.warning("index %s: %s", name.sha256, error)
            return (), 0
        have: set[bytes] = set()
        useful: list[Digest] = []
        looked = 0
        for base in bases:
            if base not in self._ids:
                looked += 1
                if looked > CHUNKED_MOST:
                    continue
            more = (await self._ids_of(base)) & index.ids - have
            if more:
                useful.append(base)
                have |= more
        return tuple(useful), index.pack_bytes - missing_bytes(index, have)

    async def _index(self, name: Digest) -> ChunkIndex:
        """An index that was made here; raises NotFoundError, BlobMismatchError, BadIndexError."""
        index = self._indexes.get(name)
        if index is None:
            if name.size_bytes > MAX_INDEX_BYTES:
                msg = f"index {name.sha256} has {name.size_bytes} bytes"
                raise NotFoundError(msg)
            async with aclosing(self._blobs.read(name)) as pieces:
                content = b"".join([piece async for piece in pieces])
            index = self._indexes[name] = await in_thread(parse_index, content)
        self._indexes.move_to_end(name)
        while len(self._indexes) > _KNOWN_INDEXES:
            self._indexes.popitem(last=False)
        return index

    async def _ids_of(self, base: Digest) -> frozenset[bytes]:
        """The chunks of a base; none for one that cannot be read now."""
        async with self._chunking:  # one at a time, and each once however many ask at once
            if base not in self._ids:
                self._ids[base] = await self._cut(base)
            self._ids.move_to_end(base)
            while len(self._ids) > _KNOWN_BASES:
                self._ids.popitem(last=False)
            return self._ids.get(base, frozenset())

    async def _cut(self, base: Digest) -> frozenset[bytes]:
        made = self._derived.made(Recipe(Method.CHUNKS, base))
        try:
            if made is not None and made.index is not None:
                return (await self._index(made.index)).ids
            chunks = await in_thread(chunk_file, self._blobs.file_of(base))
        except WavemeshError as error:
            _LOG.warning("chunks of blob %s: %s", base.sha256, error)
            return frozenset()
        return frozenset(chunk.id for chunk in chunks)

    # -- making -----------------------------------------------------------------------------------------------------

    def stop_unless(self, may: Callable[[Digest], bool]) -> None:
        """Stop what is made of targets that nobody may have now."""
        for recipe, flight in self._flights.items():
            if flight.task is not None and not may(recipe.target):
                flight.task.cancel()

    def stop_all(self) -> None:
        """Stop everything; what is half made is removed."""
        self.stop_unless(lambda _: False)

    def _start(self, recipe: Recipe) -> bool:
        """Begin a recipe unless it is in work; whether it will be made."""
        if recipe in self._flights:
            return True
        failed_s = self._failed_s.get(recipe)
        if failed_s is not None and self._clock.monotonic() - failed_s < RETRY_S:
            return False
        if len(self._flights) >= MAX_FLIGHTS or not is_to_be_tried(self._derived.dismissed(recipe), self._clock.now()):
            return False
        flight = self._flights[recipe] = _Flight()
        name = f"{recipe.method.value} of {recipe.target.sha256[:12]}"
        flight.task = self._group.create_task(self._run(recipe, flight), name=name)
        # Once more after the task: one that is cancelled before its first step never gets to its ``finally``.
        flight.task.add_done_callback(lambda _: self._end(recipe, flight))
        return True

    def _end(self, recipe: Recipe, flight: _Flight) -> None:
        if self._flights.get(recipe) is flight:
            del self._flights[recipe]

    async def _run(self, recipe: Recipe, flight: _Flight) -> None:
        try:
            await self._attempt(recipe, flight)
        except WavemeshError as error:
            _LOG.warning("%s of blob %s was not made: %s", recipe.method.value, recipe.target.sha256, error)
            now_s = self._clock.monotonic()
            self._failed_s = {one: at for one, at in self._failed_s.items() if now_s - at < RETRY_S} | {recipe: now_s}
        finally:
            self._end(recipe, flight)

    async def _attempt(self, recipe: Recipe, flight: _Flight) -> None:
        """Make it, and remember if that is no use; raises WavemeshError for what may be another way next time."""
        await self._bring(recipe.target)
        flight.began_s = self._clock.monotonic()
        try:
            await self._make(recipe, flight)
        except _DEFINITE as error:
            await self._derived.dismiss(Dismissed(recipe, str(error), self._clock.now()))
            _LOG.warning("%s of blob %s is not made: %s", recipe.method.value, recipe.target.sha256, error)
        except OSError as error:  # no process, no descriptors
            msg = f"a job of {recipe.method.value} could not run: {error}"
            raise LocalError(msg) from error

    async def _make(self, recipe: Recipe, flight: _Flight) -> None:
        """Make one thing and keep it if it is worth it; raises WavemeshError."""
        folder = self._directory / _folder_name(recipe)
        try:
            target, bases = await in_thread(self._lay_out, folder, recipe)
            for path, digest in zip((target, *bases), (recipe.target, *recipe.bases), strict=True):
                await self._check(path, digest)
            if is_to_be_likened(recipe) and not await self._is_alike(
                recipe, flight, target, bases, folder / "likeness"
            ):
                return
            began_s = self._clock.monotonic()
            payload, index = folder / "payload", folder / "index"
            await self._work(recipe, target, bases, payload, index)
            made = Made(
                recipe=recipe,
                payload=await digest_of_file(payload),
                index=await digest_of_file(index) if recipe.method is Method.CHUNKS else None,
                made_at=self._clock.now(),
                cost_s=self._clock.monotonic() - began_s,
            )
            await self._settle(made, payload, index)
        finally:
            await in_thread(self._disk.remove_tree, folder)

    async def _work(self, recipe: Recipe, target: Path, bases: Sequence[Path], payload: Path, index: Path) -> None:
        level = level_for(recipe.target, self._limits)
        match recipe.method:
            case Method.DELTA:
                await self._makers.make(bases, target, payload)
            case Method.CHUNKS:
                await self._makers.pack(target, payload, index, level)
            case _:
                await self._makers.compress(target, payload, level)

    async def _is_alike(self, recipe: Recipe, flight: _Flight, target: Path, bases: Sequence[Path], out: Path) -> bool:
        """Whether a delta is likely to be worth its making; what is not is dismissed."""
        estimate = await self._makers.liken(bases, target, out)
        flight.forecast_bytes = estimate.delta_bytes
        if estimate.is_delta_worth_making:
            return True
        reason = f"too unlike: {estimate.delta_bytes} bytes are expected, compressed {estimate.full_bytes}"
        await self._derived.dismiss(Dismissed(recipe, reason, self._clock.now()))
        return False

    def _lay_out(self, folder: Path, recipe: Recipe) -> tuple[Path, list[Path]]:
        """Link the inputs into the job's directory; raises DiskFaultError, also for one that was evicted meanwhile."""
        self._disk.remove_tree(folder)
        self._disk.create_dir(folder)
        links: list[Path] = []
        for number, digest in enumerate((recipe.target, *recipe.bases)):
            link = folder / (f"base-{number}" if number else "target")
            with disk_errors(link):
                os.link(self._blobs.file_of(digest), link)
            links.append(link)
        return links[0], links[1:]

    async def _check(self, path: Path, digest: Digest) -> None:
        """Raise BlobMismatchError if an input went bad on the disk; then the cache has found that out too."""
        with disk_errors(path):
            found = await digest_of_file(path)
        if found != digest:
            if self._blobs.has(digest):
                await self._blobs.scrub(digest)
            raise BlobMismatchError(digest, "the disk holds other bytes")

    async def _settle(self, made: Made, payload: Path, index: Path) -> None:
        """Into the cache and the table with it, or into the table why not."""
        recipe = made.recipe
        compressed = self._derived.made(Recipe(Method.FULL_ZSTD, recipe.target))
        why_not = why_not_worth(recipe, made.payload.size_bytes, compressed.payload.size_bytes if compressed else None)
        if why_not:
            await self._derived.dismiss(Dismissed(recipe, why_not, made.made_at))
            return
        await self._derived.coming(made)
        try:
            if made.index is not None:
                await self._take_in(index, made.index)
            await self._take_in(payload, made.payload)
            await self._derived.keep(made)
        except BaseException:
            await self._derived.forget(made)
            raise

    async def _take_in(self, path: Path, digest: Digest) -> None:
        """Write a file into the cache as the blob it is."""
        if self._blobs.has(digest):
            return
        await self._make_room(digest)
        async with self._blobs.writer(digest) as writer:
            with disk_errors(path):
                file = await in_thread(path.open, "rb")
            try:
                with disk_errors(path):
                    await in_thread(file.seek, writer.offset)
                    while piece := await in_thread(file.read, STEP_BYTES):
                        await writer.write(piece)
            finally:
                file.close()


def _folder_name(recipe: Recipe) -> str:
    names = " ".join((recipe.method.value, blob_name(recipe.target), *(blob_name(base) for base in recipe.bases)))
    return hashlib.sha256(names.encode()).hexdigest()[:32]
