"""What a data partition holds for certain, and what it may hold, when the power goes.

Model. Files and directories are nodes; a directory maps names to nodes. Each node keeps what programs see apart from
what is durable. A file's bytes are durable after its fsync, a directory's names after its own. What is neither may or
may not have reached the medium by then, each part for itself and in any order: bytes by sectors of 512, a file's new
length, and each change of a name (a rename within a directory is one change: it never leaves neither name; one into
another directory is a change in each). POSIX promises no more.

An *image* is the durable state as a value: paths relative to the root, bytes for files and None for directories.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

SECTOR_BYTES = 512

Image: TypeAlias = "dict[str, bytes | None]"
Persists: TypeAlias = "Callable[[], bool]"
"""Asked for each part that is not durable, in a fixed order: did it reach the medium?"""


class AroundTheSeamError(AssertionError):
    """A durable step met a file or directory that came to be by no durable step."""


@dataclass(slots=True, eq=False)
class File:
    """A file: ``dirty`` are the ranges of bytes that were written since the last fsync."""

    durable: bytes = b""
    present: bytes = b""
    dirty: list[tuple[int, int]] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        """Programs see these bytes from now on."""
        before = self.present.ljust(offset, b"\0")
        self.present = before[:offset] + data + before[offset + len(data) :]
        self.dirty.append((offset, offset + len(data)))

    def resize(self, size_bytes: int) -> None:
        """Programs see this length from now on."""
        self.present = self.present[:size_bytes].ljust(size_bytes, b"\0")

    def sync(self) -> None:
        """All of it is durable."""
        self.durable = self.present
        self.dirty.clear()

    @property
    def is_pending(self) -> bool:
        """Whether a power cut may cost something."""
        return bool(self.dirty) or len(self.durable) != len(self.present)

    def after_cut(self, persists: Persists) -> bytes:
        """The bytes that are found afterwards."""
        if not self.is_pending:
            return self.durable
        size = len(self.present) if len(self.durable) == len(self.present) or persists() else len(self.durable)
        found = bytearray(self.durable[:size].ljust(size, b"\0"))
        for sector in sorted({at for first, end in self.dirty for at in _sectors(first, min(end, size))}):
            if persists():
                found[sector : sector + SECTOR_BYTES] = self.present[sector : min(sector + SECTOR_BYTES, size)]
        return bytes(found)


def _sectors(first: int, end: int) -> range:
    return range(first - first % SECTOR_BYTES, end, SECTOR_BYTES)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of names in one directory: ``name`` names ``node`` (None: nothing), ``gone`` names nothing any more."""

    name: str
    node: Node | None
    gone: str = ""

    def apply(self, names: dict[str, Node]) -> None:
        """Make it."""
        if self.gone and names.get(self.gone) is self.node:
            del names[self.gone]
        if self.node is not None:
            names[self.name] = self.node
        else:
            names.pop(self.name, None)


@dataclass(slots=True, eq=False)
class Directory:
    """A directory: ``changes`` were made since its last fsync."""

    durable: dict[str, Node] = field(default_factory=dict)
    present: dict[str, Node] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        """Programs see it from now on."""
        change.apply(self.present)
        self.changes.append(change)

    def sync(self) -> None:
        """All names are durable."""
        self.durable = dict(self.present)
        self.changes.clear()

    def after_cut(self, persists: Persists) -> dict[str, Node]:
        """The names that are found afterwards."""
        found = dict(self.durable)
        for change in self.changes:
            if persists():
                change.apply(found)
        return found


Node: TypeAlias = File | Directory


class Medium:
    """The tree below ``root``. Paths are those of the real directory that shows what programs see."""

    def __init__(self, root: Path, image: Mapping[str, bytes | None]) -> None:
        """Everything in ``image`` is durable."""
        self.root = root
        self._top = Directory()
        for name, content in sorted(image.items()):
            path = PurePosixPath(name)
            parent = self._find(path.parent)
            node: Node = Directory() if content is None else File(content, content)
            _as_directory(parent, path.parent).present[path.name] = node
        for directory in _directories(self._top):
            directory.sync()

    def file(self, path: Path) -> File:
        """The file that programs see there."""
        node = self._find(self._inside(path))
        if not isinstance(node, File):
            msg = f"{path} is a directory"
            raise AroundTheSeamError(msg)
        return node

    def directory(self, path: Path) -> Directory:
        """The directory that programs see there."""
        inside = self._inside(path)
        return _as_directory(self._find(inside), inside)

    def add(self, path: Path, node: Node) -> None:
        """A new name."""
        self.directory(path.parent).change(Change(path.name, node))

    def remove(self, path: Path) -> None:
        """A name less; a file that is not there is no change."""
        directory = self.directory(path.parent)
        if path.name in directory.present:
            directory.change(Change(path.name, None))

    def rename(self, source: Path, target: Path) -> None:
        """Another name: one change within a directory, two that may persist one without the other between two."""
        directory = self.directory(source.parent)
        if source.name not in directory.present:
            msg = f"{source} is renamed, but no durable step made it"
            raise AroundTheSeamError(msg)
        node = directory.present[source.name]
        if source.parent == target.parent:
            directory.change(Change(target.name, node, source.name))
        else:
            self.directory(target.parent).change(Change(target.name, node))
            directory.change(Change(source.name, None))

    @property
    def is_pending(self) -> bool:
        """Whether a power cut may cost something."""
        nodes = list(_nodes(self._top))
        return any(node.is_pending if isinstance(node, File) else bool(node.changes) for node in nodes)

    def after_cut(self, persists: Persists) -> Image:
        """What is found after a power cut now."""
        image: Image = {}
        _gather(self._top, "", persists, image)
        return image

    def _inside(self, path: Path) -> PurePosixPath:
        return PurePosixPath(path.relative_to(self.root))

    def _find(self, path: PurePosixPath) -> Node:
        node: Node = self._top
        for name in path.parts:
            found = node.present.get(name) if isinstance(node, Directory) else None
            if found is None:
                msg = f"{path} came to be by no durable step"
                raise AroundTheSeamError(msg)
            node = found
        return node


def _as_directory(node: Node, path: PurePosixPath) -> Directory:
    if not isinstance(node, Directory):
        msg = f"{path} is a file"
        raise AroundTheSeamError(msg)
    return node


def _gather(directory: Directory, prefix: str, persists: Persists, image: Image) -> None:
    names = directory.after_cut(persists) if directory.changes else directory.durable
    for name, node in sorted(names.items()):
        path = f"{prefix}{name}"
        if isinstance(node, File):
            image[path] = node.after_cut(persists)
        else:
            image[path] = None
            _gather(node, f"{path}/", persists, image)


def _nodes(directory: Directory) -> Iterator[Node]:
    """Everything that programs see or that is durable."""
    yield directory
    for node in {*directory.present.values(), *directory.durable.values()}:
        if isinstance(node, Directory):
            yield from _nodes(node)
        else:
            yield node


def _directories(directory: Directory) -> Iterator[Directory]:
    return (node for node in _nodes(directory) if isinstance(node, Directory))


def read_image(root: Path, without: frozenset[str] = frozenset()) -> Image:
    """The image of a real directory, but for the names at its top in ``without``."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.relative_to(root).parts[0] not in without
    }


def lay_image(root: Path, image: Mapping[str, bytes | None]) -> None:
    """Make a real directory that shows the image."""
    root.mkdir(parents=True)
    for name, content in sorted(image.items()):
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
