"""Reads ``policy.yaml``: UTF-8 → YAML events → plain values with places → ``schema.py``; lists all problems.

YAML is narrowed to what a person would expect of a settings file: one document, no anchors, aliases, merge keys or
tags, no doubled keys, bounded size and depth. Unquoted scalars are JSON numbers, ``true``/``false``, ``null`` or text,
nothing else: ``yes``, ``1:30``, ``010``, ``0x1f`` and ``1_000`` are texts (YAML 1.1 makes other things of each).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

import yaml

from wavemesh.policy.document import POLICY_BYTES_MOST, Policy, PolicyError, Problem, key_path, policy_of
from wavemesh.policy.schema import read_document
from wavemesh.policy.values import REFUSED, Fault, Path, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPTH_MOST = 8
EVENTS_MOST = 2000  # the fullest policy that the schema takes has about 600
NUMBER_LENGTH_MOST = 20

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def parse_policy(text: bytes, file_name: str) -> Policy:
    """Read the bytes of a policy file; raises PolicyError with every problem, in the order of the file."""
    source = _Source(file_name)
    raw = source.read(_decode(text, file_name))
    document, faults = read_document(raw) if raw is not REFUSED else ({}, ())
    problems = source.problems + [source.problem(fault) for fault in faults]
    if problems:
        raise PolicyError(tuple(sorted(problems, key=lambda problem: (problem.line, problem.column))))
    return policy_of(document)


def _decode(text: bytes, file_name: str) -> str:
    if len(text) > POLICY_BYTES_MOST:
        reason = f"{len(text)} bytes, {POLICY_BYTES_MOST} are allowed"
        raise PolicyError((Problem(file_name, 1, 1, "", reason),))
    try:
        return text.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = text[: error.start].decode().removeprefix("\ufeff")
        reason = f"byte 0x{text[error.start]:02x} is not UTF-8"
        raise PolicyError((_at_index(before, len(before), file_name, reason),)) from error


def _at_index(text: str, index: int, file_name: str, reason: str) -> Problem:
    before = text[:index]
    return Problem(file_name, before.count("\n") + 1, index - before.rfind("\n"), "", reason)


class _Mark(Protocol):
    """A place in a file as PyYAML gives it, in either of its implementations; counts from 0."""

    line: int
    column: int


class _Source:
    """One file on its way from events to plain values; remembers where each key and value stands."""

    def __init__(self, file_name: str) -> None:
        self.problems: list[Problem] = []
        self._file_name = file_name
        self._places: dict[tuple[Path, Subject], tuple[int, int]] = {}
        self._reached: _Mark | None = None

    def read(self, text: str) -> object:
        """The document as plain values; raises PolicyError for what is not YAML."""
        try:
            return self._document(self._events(text))
        except yaml.reader.ReaderError as error:
            reason = f"the character {_code_point(error.character)} is not allowed"
            raise PolicyError((_at_index(text, error.position, self._file_name, reason),)) from error
        except yaml.MarkedYAMLError as error:
            what = ", ".join(part for part in (error.context, error.problem) if part)
            self._complain((), error.problem_mark or self._reached, f"is not YAML: {what}")
        except (ValueError, OverflowError) as error:
            # PyYAML lets through what chr() and int() raise for an escape or a version out of range.
            self._complain((), self._reached, f"is not YAML: {error}")
        raise PolicyError(tuple(self.problems))

    def _events(self, text: str) -> Iterator[yaml.Event]:
        for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            self._reached = event.end_mark
            if number > EVENTS_MOST:
                self._complain((), event.start_mark, f"has more than {EVENTS_MOST} keys, values and brackets")
                raise PolicyError(tuple(self.problems))
            yield event

    def problem(self, fault: Fault) -> Problem:
        """Where in the file a fault is; for what is missing, where it should be."""
        path = fault.path
        place = self._places.get((path, fault.subject))
        while place is None and path:
            path = path[:-1]
            place = self._places.get((path, Subject.KEY)) or self._places.get((path, Subject.VALUE))
        line, column = place or (1, 1)
        return Problem(self._file_name, line, column, key_path(fault.path), fault.reason)

    def _complain(self, path: Path, mark: _Mark | None, reason: str) -> None:
        self.problems.append(Problem(self._file_name, *_place(mark), key_path(path), reason))

    def _document(self, events: Iterator[yaml.Event]) -> object:
        document: object = None
        for number, event in enumerate(
            e for e in events if isinstance(e, yaml.DocumentStartEvent | yaml.StreamEndEvent)
        ):
            if isinstance(event, yaml.StreamEndEvent):
                if number == 0:
                    self._complain((), event.start_mark, "is empty")
                    document = REFUSED
                break
            if number:
                self._complain((), event.start_mark, "a second document starts; one is allowed")
                break
            document = self._node(next(events), events, ())
        return document

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], path: Path) -> object:
        self._places[path, Subject.VALUE] = _place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            self._complain(
                path, event.start_mark, f"alias *{_short(event.anchor)}: anchors and aliases are not allowed"
            )
            return REFUSED
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            self._complain(
                path, event.start_mark, f"anchor &{_short(event.anchor)}: anchors and aliases are not allowed"
            )
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            self._complain(path, event.start_mark, f"tag {_short(event.tag)}: tags are not allowed")
            self._skip(event, events)
            return REFUSED
        if isinstance(event, yaml.ScalarEvent):
            return _plain(event.value) if event.style is None else event.value
        if len(path) >= DEPTH_MOST:
            # Reading on would cost time quadratic in the depth.
            self._complain(path, event.start_mark, f"is nested deeper than {DEPTH_MOST}")
            raise PolicyError(tuple(self.problems))
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, path)
        return self._mapping(events, path)

    def _sequence(self, events: Iterator[yaml.Event], path: Path) -> list[object]:
        items: list[object] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self._node(event, events, (*path, len(items))))
        return items

    def _mapping(self, events: Iterator[yaml.Event], path: Path) -> dict[str, object]:
        entries: dict[str, object] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None or event.anchor is not None:
                self._complain(path, event.start_mark, "a key must be a plain name, without anchor or tag")
                self._skip(event, events)
                self._skip(next(events), events)
                continue
            name = event.value
            if name in entries:
                first = self._places[(*path, name), Subject.KEY][0]
                self._complain((*path, name), event.start_mark, f"the key is given twice, first in line {first}")
                self._skip(next(events), events)
                continue
            self._places[(*path, name), Subject.KEY] = _place(event.start_mark)
            entries[name] = self._node(next(events), events, (*path, name))
        return entries

    def _skip(self, event: yaml.Event, events: Iterator[yaml.Event]) -> None:
        """Pass over the node that this event starts."""
        depth = 0
        while True:
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth == 0:
                return
            if depth > DEPTH_MOST:
                self._complain((), event.start_mark, f"is nested deeper than {DEPTH_MOST}")
                raise PolicyError(tuple(self.problems))
            event = next(events)


def _code_point(character: int | bytes | str) -> str:
    return f"U+{character if isinstance(character, int) else ord(character):04X}"


def _place(mark: _Mark | None) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def _short(name: str | None) -> str:
    return (name or "")[:40]


def _plain(text: str) -> object:
    """The value of an unquoted scalar."""
    if text in _WORDS:
        return _WORDS[text]
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > NUMBER_LENGTH_MOST:
        return text
    return float(text) if match[2] or match[3] else int(text)
