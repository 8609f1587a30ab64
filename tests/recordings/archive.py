"""A recording on disk: one folder a version, a manifest that names every file with its SHA-256.

    manifest.json            what, when, software and schema versions, moments, files
    conversations.jsonl.xz   one session a line: who, and every frame in the order in which the parent saw it
    calls.jsonl.xz           operator API: request and response, a line each
    states.tar.xz            directories of all nodes at each moment
    answers.json.xz          what each node answered of its state at each moment (questions.py)

Everything is compressed by xz, whose dictionary sees that one moment repeats most of another; times, owners and order
in the archive are fixed, so that the same content gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import lzma
import tarfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOT = Path(__file__).parent
MANIFEST = "manifest.json"
MAX_BYTES = 3 * 1024 * 1024
_EPOCH_S = 1_700_000_000


class BadRecordingError(Exception):
    """A recording is missing a file, or a file is not the one that was recorded."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a session; ``sender`` is "child" or "parent"."""

    at: datetime
    sender: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Conversation:
    """One session, from Hello to its end."""

    name: str
    parent: str
    child: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class OperatorCall:
    """One call of the operator API."""

    method: str
    request: bytes
    response: bytes


@dataclass(frozen=True, slots=True)
class Recording:
    """One version's recording, checked against its manifest."""

    directory: Path
    manifest: Mapping[str, Any]
    conversations: tuple[Conversation, ...]
    calls: tuple[OperatorCall, ...]
    answers: Mapping[str, Any]

    @property
    def fleet(self) -> str:
        """Name of the fleet."""
        return str(self.manifest["fleet"])

    def moments(self) -> dict[str, datetime]:
        """When each moment was, by name, in order."""
        return {name: datetime.fromisoformat(at) for name, at in self.manifest["moments"].items()}

    def unpack(self, target: Path) -> None:
        """Write the states of all moments below ``target``."""
        with tarfile.open(self.directory / "states.tar.xz") as archive:
            archive.extractall(target, filter="data")


def versions() -> list[Path]:
    """Every recorded version's folder, found and not listed."""
    return sorted(path.parent for path in ROOT.glob(f"*/{MANIFEST}"))


def load(directory: Path) -> Recording:
    """Read a recording; raises BadRecordingError when a file is missing, altered, or of nobody's."""
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    present = {path.name for path in directory.iterdir()} - {MANIFEST}
    if present != set(manifest["files"]):
        raise BadRecordingError(f"{directory}: {sorted(present)}, the manifest has {sorted(manifest['files'])}")
    for name, digest in manifest["files"].items():
        if hashlib.sha256((directory / name).read_bytes()).hexdigest() != digest:
            raise BadRecordingError(f"{directory / name} is not what was recorded")
    return Recording(
        directory,
        manifest,
        tuple(_conversation(line) for line in _lines(directory / "conversations.jsonl.xz")),
        tuple(
            OperatorCall(line["method"], base64.b64decode(line["request"]), base64.b64decode(line["response"]))
            for line in _lines(directory / "calls.jsonl.xz")
        ),
        json.loads(lzma.decompress((directory / "answers.json.xz").read_bytes())),
    )


def save_states(moments: Path, target: Path) -> None:
    """Pack the directories of all moments."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(moments.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                member = tarfile.TarInfo(str(path.relative_to(moments)))
                member.size, member.mtime, member.mode = len(content), _EPOCH_S, path.stat().st_mode & 0o777
                archive.addfile(member, io.BytesIO(content))
    # The dictionary spans all moments, so that what did not change between two costs nothing.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 64 * 1024 * 1024}]
    target.write_bytes(lzma.compress(packed.getvalue(), filters=filters))


def save_lines(lines: Iterable[Mapping[str, Any]], target: Path) -> None:
    """Write one JSON object a line."""
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    target.write_bytes(lzma.compress(text.encode()))


def save_json(value: Any, target: Path) -> None:
    """Write one JSON value."""
    target.write_bytes(lzma.compress(json.dumps(value, sort_keys=True, indent=0).encode()))


def save_manifest(directory: Path, **about: Any) -> None:
    """Write the manifest of what is in the folder; raises BadRecordingError when that is too much for a repository."""
    contents = {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != MANIFEST}
    size = sum(map(len, contents.values()))
    if size > MAX_BYTES:
        raise BadRecordingError(f"{directory} has {size} bytes, at most {MAX_BYTES} are checked in")
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    text = json.dumps({**about, "files": files}, indent=1) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lzma.decompress(path.read_bytes()).splitlines()]


def _conversation(line: dict[str, Any]) -> Conversation:
    frames = tuple(
        Frame(datetime.fromisoformat(at), sender, base64.b64decode(content)) for at, sender, content in line["frames"]
    )
    return Conversation(line["name"], line["parent"], line["child"], frames)
