"""Inventory files: the stores and devices of a fleet, as YAML, JSON or TOML.

    stores:
      - path: region/midwest/store/store-208
        time_zone: America/Chicago
    devices:
      - path: region/midwest/store/store-208/device/pos-01
        class: pos
        hardware: rev-b
        labels: {segment: retail-us-midwest}

Rules: a file is refused whole, with every problem as file, line and key; unknown keys are problems. The node checks
again what only it can know, and its refusal is given the line of the entry that it names.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgectl.exits import UsageError
from edgectl.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from wavemesh.v1.operator_pb2 import ApplyInventoryRequest

MAX_ENTRIES = 20_000
MAX_PROBLEMS = 50
_TABLE = re.compile(r"\s*\[\[\s*(stores|devices)\s*\]\]")


@dataclass(frozen=True, slots=True)
class Field:
    """A key of an entry; ``wire`` is the name of the contract's field."""

    key: str
    wire: str
    is_needed: bool = True


_FIELDS: Mapping[str, tuple[Field, ...]] = {
    "stores": (Field("path", "path"), Field("time_zone", "time_zone")),
    "devices": (
        Field("path", "path"),
        Field("class", "device_class"),
        Field("hardware", "hardware_revision"),
        Field("labels", "labels", is_needed=False),
    ),
}


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a file says; ``lines`` are those of the entries, by list and index, and of their keys."""

    path: Path
    entries: Mapping[str, Sequence[Mapping[str, Any]]]
    lines: Mapping[tuple[str, int, str], int]

    def request(self) -> ApplyInventoryRequest:
        """The same for the node."""
        from wavemesh.v1.operator_pb2 import ApplyInventoryRequest

        request = ApplyInventoryRequest()
        for kind, entries in self.entries.items():
            for entry in entries:
                values = {field.wire: entry[field.key] for field in _FIELDS[kind] if field.key in entry}
                getattr(request, kind).add(**values)
        return request

    def where(self, wire: str) -> str:
        """File and line of what the contract calls "devices[3].device_class"; the file alone where it is not known."""
        found = re.fullmatch(r"(stores|devices)\[(\d+)\](?:\.(\w+))?", wire)
        if found is None:
            return str(self.path)
        kind, index, name = found[1], int(found[2]), found[3] or ""
        key = next((field.key for field in _FIELDS[kind] if field.wire == name), "")
        line = self.lines.get((kind, index, key)) or self.lines.get((kind, index, ""))
        return f"{self.path}:{line}" if line else str(self.path)


def read_inventory(path: Path) -> Inventory:
    """Read and check a file; raises UsageError with every problem on a line of its own."""
    text = _decoded(path)
    raw, lines = _read_toml(path, text) if path.suffix.lower() == ".toml" else _read_yaml(path, text)
    problems = list(_problems(raw))
    if problems:
        inventory = Inventory(path, {}, lines)
        said = [f"{_place(inventory, problem)}: {problem.key}: {problem.reason}" for problem in problems[:MAX_PROBLEMS]]
        more = len(problems) - MAX_PROBLEMS
        raise UsageError("\n".join(said) + (f"\n… and {more} more" if more > 0 else ""))
    return Inventory(path, {kind: raw.get(kind) or [] for kind in _FIELDS}, lines)


@dataclass(frozen=True, slots=True)
class _Problem:
    kind: str
    index: int
    name: str
    reason: str

    @property
    def key(self) -> str:
        entry = f"{self.kind}[{self.index}]" if self.index >= 0 else self.kind
        return f"{entry}.{self.name}" if self.name and self.index >= 0 else entry


def _place(inventory: Inventory, problem: _Problem) -> str:
    lines = inventory.lines
    found = lines.get((problem.kind, problem.index, problem.name)) or lines.get((problem.kind, problem.index, ""))
    return f"{inventory.path}:{found}" if found else str(inventory.path)


def _decoded(path: Path) -> str:
    try:
        return read_file(path).decode()
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: not UTF-8 at byte {exc.start}") from exc


def _problems(raw: Any) -> Iterator[_Problem]:
    if not isinstance(raw, dict):
        yield _Problem("(file)", -1, "", "wants a mapping with `stores` and `devices`")
        return
    for kind in raw:
        if kind not in _FIELDS:
            yield _Problem(str(kind), -1, "", "unknown; there are `stores` and `devices`")
    count = 0
    for kind, fields in _FIELDS.items():
        entries = raw.get(kind) or []
        if not isinstance(entries, list):
            yield _Problem(kind, -1, "", "wants a list")
            continue
        count += len(entries)
        for index, entry in enumerate(entries):
            yield from _entry_problems(kind, index, entry, fields)
    if count > MAX_ENTRIES:
        yield _Problem("(file)", -1, "", f"{count} stores and devices; at most {MAX_ENTRIES} in one file")


def _entry_problems(kind: str, index: int, entry: Any, fields: Sequence[Field]) -> Iterator[_Problem]:
    if not isinstance(entry, dict):
        yield _Problem(kind, index, "", "wants a mapping")
        return
    known = {field.key for field in fields}
    for key in entry:
        if key not in known:
            yield _Problem(kind, index, str(key), f"unknown; known: {', '.join(sorted(known))}")
    for field in fields:
        value = entry.get(field.key)
        if value is None:
            if field.is_needed:
                yield _Problem(kind, index, field.key, "missing")
        elif field.key == "labels":
            is_text = isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)
            if not is_text:
                yield _Problem(kind, index, field.key, "wants a mapping of text to text; quote numbers")
        elif not isinstance(value, str) or not value:
            yield _Problem(kind, index, field.key, f"wants text, got {value!r}"[:200])


def _read_yaml(path: Path, text: str) -> tuple[Any, dict[tuple[str, int, str], int]]:
    """YAML, or JSON, which is YAML too; with the line of every entry and key."""
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(f"{where}: {exc.problem or exc}") from exc
    except yaml.YAMLError as exc:
        raise UsageError(f"{path}: {exc}") from exc
    lines: dict[tuple[str, int, str], int] = {}
    for kind, line, value in _pairs(node):
        lines[kind, -1, ""] = line
        for index, entry in enumerate(value.value if isinstance(value, yaml.SequenceNode) else ()):
            lines[kind, index, ""] = entry.start_mark.line + 1
            for key, line_of_key, _ in _pairs(entry):
                lines[kind, index, key] = line_of_key
    return raw, lines


def _pairs(node: Any) -> Iterator[tuple[str, int, Any]]:
    """Keys, their lines and value nodes of a mapping node; of another node none."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield key.value, key.start_mark.line + 1, value


def _read_toml(path: Path, text: str) -> tuple[Any, dict[tuple[str, int, str], int]]:
    """TOML; lines are those of the ``[[stores]]`` and ``[[devices]]`` tables and the keys under them."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        found = re.search(r"line (\d+)", str(exc))
        raise UsageError(f"{path}:{found[1]}: {exc}" if found else f"{path}: {exc}") from exc
    lines: dict[tuple[str, int, str], int] = {}
    counts = dict.fromkeys(_FIELDS, 0)
    here: tuple[str, int] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        table = _TABLE.match(line)
        if table:
            here = (table[1], counts[table[1]])
            counts[table[1]] += 1
            lines[(*here, "")] = number
        elif here and (key := re.match(r"\s*([A-Za-z0-9_-]+)\s*=", line)):
            lines.setdefault((*here, key[1]), number)
    return raw, lines
