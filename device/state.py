"""The agent's durable state: one JSON document, replaced as a whole.

Rules. A change is a new ``Document``, durable when ``commit`` returns; what belongs together (progress, burn, outcome
and its report) is one change. Four steps replace the file: write and flush ``state.json.tmp``, rename ``state.json`` to
``state.json.prev``, rename the temporary file to ``state.json``, flush the directory. At every instant one of the two
names is a complete document; each carries a checksum, so a file that was torn or altered is noticed and the other used.

The previous document may be one change old, and two things must not be lost with a change. A *burned attempt* is
therefore written twice, so that both copies know it. If no copy can be read while files are there, burns are unknown:
``burns_unknown_before`` then voids every permit signed before this moment, because one attempt too few is repaired by
control, one too many by nobody. After any such recovery the report log takes a new incarnation with a full snapshot.

Contents of resources are files of their own under ``resources/``, named by digest, written before the document names
them; one that is missing or does not match its name is simply not held and asked for again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from device.progress import Progress
from device.refusals import Refusal  # noqa: TC001  # device/values.py resolves the hints at run time
from device.steps import OpenStep  # noqa: TC001  # device/values.py resolves the hints at run time
from device.values import from_plain, to_plain
from wavemesh.errors import LocalError
from wavemesh.runtime.durable import Disk, DiskFullError
from wavemesh.session.frames import MAX_RESOURCE_BYTES, HeldResource

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_WAVES = 1000
RESERVE_BYTES = 1024 * 1024
MAX_INTENTS = 256
MAX_INSTALLED = 8
FILE_NAME = "state.json"
PREVIOUS_NAME = "state.json.prev"


class StateError(LocalError):
    """The state document cannot be used: written by a newer agent, or larger than it may become."""

    reason = "DEVICE_STATE"


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A report that the hub has not acknowledged yet."""

    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """Spans that the hub does not have yet, in OTLP; (incarnation, number) names them."""

    incarnation: str
    number: int
    body: bytes


@dataclass(frozen=True, slots=True)
class WaveRecord:
    """One wave: attempts burned, and until control closed it the latest word of this device, signed (an Envelope).

    ``earlier`` are refusals and rollbacks before it, signed as well: evidence of what came to pass in the wave. One
    that is closed keeps its burns and generation, or its order and permit could be played again.
    """

    burned: int = 0
    attempt: int = 0
    sequence: int = 0
    kind: int = 0
    gate: str = ""
    envelope: bytes = b""
    generation: int = 0
    closed: bool = False
    earlier: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfigRecord:
    """A config bundle on the data partition, by generation."""

    version: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Document:
    """Everything the agent remembers."""

    incarnation: str
    format: int = FORMAT
    serial: int = 0
    acknowledged: int = 0
    sent_through: int = 0
    reports: tuple[StoredReport, ...] = ()
    held: tuple[HeldResource, ...] = ()
    waves: dict[str, WaveRecord] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    configs: dict[str, ConfigRecord] = field(default_factory=dict)
    clock_floor: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    ping_ceiling: int = 0
    hold_epoch: int = 0
    rollback_floor: str = ""
    intents: tuple[str, ...] = ()
    installed_by: dict[str, str] = field(default_factory=dict)
    burns_unknown_before: datetime | None = None
    logs_uploaded: int = 0
    probed_slots: tuple[str, ...] = ()
    step: OpenStep | None = None
    spans: tuple[StoredBatch, ...] = ()
    spans_first: int = 1
    spans_dropped: int = 0
    refusals: tuple[Refusal, ...] = ()

    @property
    def next_number(self) -> int:
        """Number of the next report."""
        return self.acknowledged + len(self.reports) + 1


class StateFile:
    """The document on disk. One writer: the agent."""

    def __init__(self, directory: Path, disk: Disk, new_incarnation: str) -> None:
        """Remember where; ``new_incarnation`` (128 random bits in hex) is used if a new one is needed at load."""
        self._path = directory / FILE_NAME
        self._previous = directory / PREVIOUS_NAME
        self._reserve = directory / "reserve"
        self._resources = directory / "resources"
        self._disk = disk
        self._new_incarnation = new_incarnation
        self._document = Document(new_incarnation)
        self._recovered = False

    @property
    def document(self) -> Document:
        """The document as it is durable."""
        return self._document

    @property
    def recovered(self) -> bool:
        """Whether ``load`` could not read the newest document, so that the report log must restart."""
        return self._recovered

    def load(self, now: datetime) -> None:
        """Read the newest usable document; raises StateError for one of a newer format."""
        self._disk.make_dir(self._resources)
        newest, older = _read(self._path), _read(self._previous)
        found = [document for document in (newest, older) if document is not None]
        present = self._path.exists() or self._previous.exists()
        if found:
            self._document = max(found, key=lambda document: document.serial)
        # A cut between the two renames leaves only the previous name: complete, and nothing is lost.
        self._recovered = present and newest is None and self._path.exists()
        if present and not found:
            self._recovered = True
            self._document = Document(self._new_incarnation, burns_unknown_before=now, clock_floor=now)

    def commit(self, document: Document, *, copies: int = 1, may_cost_reserve: bool = True) -> None:
        """Make it durable; with two copies the previous file holds the same. Raises StateError, DiskFaultError.

        A full disk costs the reserve first: there is always room to record one rollback and its evidence. What can be
        done without may not cost it, and raises DiskFullError.
        """
        for _ in range(copies):
            document = replace(document, serial=self._document.serial + 1)
            try:
                self._replace(document)
            except DiskFullError:
                if not may_cost_reserve:
                    raise
                self._disk.remove(self._reserve)
                self._replace(document)
            self._document = document

    def reserve(self) -> None:
        """Set space aside for a later ``commit`` on a full disk; raises DiskFaultError."""
        if self._reserve.exists() and self._reserve.stat().st_size >= RESERVE_BYTES:
            return
        self._disk.unlink(self._reserve)
        descriptor = self._disk.create(self._reserve)
        try:
            self._disk.allocate(descriptor, RESERVE_BYTES, self._reserve)
            self._disk.fsync(descriptor, self._reserve)
        finally:
            os.close(descriptor)

    def _replace(self, document: Document) -> None:
        temporary = self._path.with_suffix(".json.tmp")
        self._disk.write_new(temporary, _encode(document))
        if self._path.exists():
            self._disk.rename(self._path, self._previous)
        self._disk.rename(temporary, self._path)
        self._disk.fsync_dir(self._path.parent)

    def store_content(self, digest: str, content: bytes) -> None:
        """Make a resource's content durable under its digest."""
        path = self._resources / digest
        if path.exists() and self.content(digest) is not None:
            return
        try:
            self._disk.write_atomic(path, content)
        except DiskFullError:
            # An operator's rollback comes as a resource: the reserve is for that as well.
            self._disk.remove(self._reserve)
            self._disk.write_atomic(path, content)

    def content(self, digest: str) -> bytes | None:
        """A resource's content, None if it is not here as it should be."""
        try:
            with (self._resources / digest).open("rb") as file:
                content = file.read(MAX_RESOURCE_BYTES + 1)
        except FileNotFoundError:
            return None
        return content if hashlib.sha256(content).hexdigest() == digest else None

    def forget_contents(self) -> None:
        """Remove contents that the document no longer names; not durable, a leftover is harmless."""
        named = {held.digest for held in self._document.held}
        for path in self._resources.iterdir():
            if path.name not in named:
                self._disk.unlink(path)


def _encode(document: Document) -> bytes:
    body = json.dumps(to_plain(document), separators=(",", ":"))
    data = json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "document": body}).encode()
    if len(data) > MAX_DOCUMENT_BYTES:
        msg = f"the state document would be {len(data)} bytes, more than {MAX_DOCUMENT_BYTES}"
        raise StateError(msg)
    return data


def _read(path: Path) -> Document | None:
    """The document in a file, None if there is none or its bytes are not what was written."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
        outer = json.loads(data)
        body: str = outer["document"]
        if hashlib.sha256(body.encode()).hexdigest() != outer["sha256"]:
            return None
        plain = json.loads(body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if plain.get("format", FORMAT) > FORMAT:
        msg = f"{path} was written by a newer agent (format {plain['format']}, this one knows {FORMAT})"
        raise StateError(msg, path=str(path))
    try:
        return from_plain(Document, plain)
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{path} does not fit this agent: {error}"
        raise StateError(msg, path=str(path)) from error
