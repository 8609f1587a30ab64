"""Types of values in a policy file: each reads one plain value strictly and describes itself as JSON Schema.

Plain values are what JSON has: mappings, lists, text, numbers, truth values, None. Reading never stops at the first
fault; it notes the fault and goes on, so that a file's faults are listed together. A truth value is no number, a text
is never taken for a number, and 5.0 is the whole number 5, as in JSON Schema.
"""

from __future__ import annotations

import difflib
import enum
import math
import re
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
Schema: TypeAlias = dict[str, Any]

SHOWN_LENGTH_MOST = 60
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE_PATTERN = r"[0-9]{1,6}(KiB|MiB|GiB)"
SIZE_MOST = 10**6 * 2**30


class Special(enum.Enum):
    """Marks that are no values."""

    REQUIRED = "the key has no default"
    REFUSED = "the value was complained about already, where it was read"


REQUIRED: Final = Special.REQUIRED
REFUSED: Final = Special.REFUSED


class Subject(enum.Enum):
    """What a fault points at."""

    KEY = "key"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong, and where in the document."""

    path: Path
    reason: str
    subject: Subject = Subject.VALUE


class ValueType(Protocol):
    """What a key takes."""

    def read(self, raw: object, path: Path, faults: list[Fault]) -> object:
        """The value in its canonical form; whatever is returned beside a new fault is not to be used."""
        ...

    def schema(self) -> Schema:
        """The same, as JSON Schema (draft 2020-12)."""
        ...

    def words(self) -> str:
        """The same, for people: "a whole number from 1 to 100"."""
        ...


def shown(raw: object) -> str:
    """A value in an error message; bounded."""
    match raw:
        case None:
            return "nothing"
        case bool():
            return "true" if raw else "false"
        case str():
            text = raw if len(raw) <= SHOWN_LENGTH_MOST else raw[:SHOWN_LENGTH_MOST] + "…"
            return f"the text {text!r}"
        case dict():
            return "a mapping"
        case list():
            return "a list"
    return f"the number {raw!r}"[:SHOWN_LENGTH_MOST]


def _refuse(expected: str, raw: object, path: Path, faults: list[Fault]) -> object:
    faults.append(Fault(path, f"expected {expected}, got {shown(raw)}"))
    return None


@dataclass(frozen=True, slots=True)
class WholeNumber:
    """A whole number between two bounds, both included."""

    least: int
    most: int

    def read(self, raw: object, path: Path, faults: list[Fault]) -> object:
        """Refuse other types and what is out of bounds."""
        if isinstance(raw, float) and raw.is_integer():
            raw = int(raw)
        if isinstance(raw, int) and not isinstance(raw, bool) and self.least <= raw <= self.most:
            return raw
        return _refuse(self.words(), raw, path, faults)

    def schema(self) -> Schema:
        """An integer with bounds."""
        return {"type": "integer", "minimum": self.least, "maximum": self.most}

    def words(self) -> str:
        """The bounds."""
        return f"a whole number from {self.least} to {self.most}"


class Lower(enum.Enum):
    """Whether a lower bound belongs to the range."""

    INCLUDED = "from"
    EXCLUDED = "above"


@dataclass(frozen=True, slots=True)
class Number:
    """Any number between two bounds, the upper one included."""

    least: float
    most: float
    lower: Lower = Lower.INCLUDED

    def read(self, raw: object, path: Path, faults: list[Fault]) -> object:
        """Refuse other types and what is out of bounds; a whole number is returned as int."""
        if isinstance(raw, int | float) and not isinstance(raw, bool) and self._holds(raw):
            return int(raw) if float(raw).is_integer() else raw
        return _refuse(self.words(), raw, path, faults)

    def _holds(self, number: float) -> bool:
        if math.isnan(number) or number > self.most:
            return False
        return number > self.least or (number == self.least and self.lower is Lower.INCLUDED)

    def schema(self) -> Schema:
        """A number with bounds."""
        bound = "minimum" if self.lower is Lower.INCLUDED else "exclusiveMinimum"
        return {"type": "number", bound: self.least, "maximum": self.most}

    def words(self) -> str:
        """The bounds."""
        return f"a number {self.lower.value} {self.least} to {self.most}"


@dataclass(frozen=True, slots=True)
class Truth:
    """True or false."""

    def read(self, raw: object, path: Path, faults: list[Fault]) -> object:
        """Refuse everything else."""
        return raw if isinstance(raw, bool) else _refuse(self.words(), raw, path, faults)

    def schema(self) -> Schema:
        """A boolean."""
        return {"type": "boolean"}

    def words(self) -> str:
        """The two words."""
        return "true or false"


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a given form."""

    pattern: str
    form: str

    def read(self, raw: object, path: Path, faults: list[Fault]) -> object:
        """Refuse other types and other forms."""
        if isinstance(raw, str) and re.fullmatch(self.pattern, raw):
            return raw
        return _refuse(self.form, raw, path, faults)

    def schema(self) -> Schema:
        """A string with its pattern."""
        return {"type": "string", "pattern": f"^{self.pattern}$"}

    def words(self) -> str:
        """The form."""
        return self.form


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    options: tuple[str, ...]

    def read(self, raw: object, path: Path, faults: list[Fault]) -> object:
        """Refuse every other word."""
        return raw if raw in self.options else _refuse(self.words(), raw, path, faults)

    def schema(self) -> Schema:
        """An enum."""
        return {"enum": list(self.options)}

    def words(self) -> str:
        """The words."""
        return "one of " + ", ".join(self.options)


@dataclass(frozen=True, slots=True)
class ByteSize:
    """A number of bytes, or a text with a unit; canonical in bytes."""

    def read(self, raw: object, path: Path, faults: list[Fault]) -> object:
        """Refuse other types, units and sizes."""
        if isinstance(raw, str) and re.fullmatch(_SIZE_PATTERN, raw):
            return int(raw[:-3]) * _UNITS[raw[-3:]]
        found: list[Fault] = []
        number = WholeNumber(0, SIZE_MOST).read(raw, path, found)
        return _refuse(self.words(), raw, path, faults) if found else number

    def schema(self) -> Schema:
        """Either form."""
        return {"anyOf": [WholeNumber(0, SIZE_MOST).schema(), {"type": "string", "pattern": f"^{_SIZE_PATTERN}$"}]}

    def words(self) -> str:
        """Both forms."""
        return "a number of bytes, or a text such as 64MiB (KiB, MiB or GiB)"


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of like items, none twice."""

    item: ValueType
    most: int

    def read(self, raw: object, path: Path, faults: list[Fault]) -> object:
        """Read every item; refuse too many and doubles."""
        if not isinstance(raw, list):
            return _refuse(self.words(), raw, path, faults)
        if len(raw) > self.most:
            faults.append(Fault(path, f"{len(raw)} items, {self.most} are allowed"))
        before = len(faults)
        items = [read_value(self.item, entry, (*path, at), faults) for at, entry in enumerate(raw[: self.most])]
        if len(faults) == before:
            faults.extend(
                Fault((*path, at), f"is the same as item {items.index(entry)}")
                for at, entry in enumerate(items)
                if entry is not None and items.index(entry) < at
            )
        return items

    def schema(self) -> Schema:
        """An array."""
        return {"type": "array", "items": self.item.schema(), "maxItems": self.most, "uniqueItems": True}

    def words(self) -> str:
        """What it lists."""
        return f"a list of at most {self.most}, each {self.item.words()}"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section. A default of None means the key may be left out, or be null, for "none"."""

    name: str
    type: ValueType
    meaning: str
    default: object = REQUIRED

    def schema(self) -> Schema:
        """Schema of the value, with meaning and default."""
        schema = self.type.schema()
        if self.default is None:
            schema = {"anyOf": [schema, {"type": "null"}]}
        default = {} if self.default is REQUIRED or isinstance(self.type, Section) else {"default": self.default}
        return {"description": self.meaning, **schema, **default}


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping with known keys; canonical with every key."""

    keys: tuple[Key, ...]

    def read(self, raw: object, path: Path, faults: list[Fault]) -> object:
        """Read every key, fill in defaults, refuse unknown and missing ones."""
        if not isinstance(raw, dict):
            return _refuse("a mapping", raw, path, faults)
        names = [key.name for key in self.keys]
        faults.extend(Fault((*path, name), _unknown(name, names), Subject.KEY) for name in raw if name not in names)
        return {key.name: self._read_key(key, raw, path, faults) for key in self.keys}

    def _read_key(self, key: Key, raw: dict[str, object], path: Path, faults: list[Fault]) -> object:
        if key.name not in raw and key.default is REQUIRED:
            faults.append(Fault((*path, key.name), f"is missing; expected {key.type.words()}"))
            return None
        value = raw.get(key.name, key.default)
        if value is None and key.default is None:
            return None
        return read_value(key.type, value, (*path, key.name), faults)

    def schema(self) -> Schema:
        """An object that takes no other keys."""
        return {
            "type": "object",
            "properties": {key.name: key.schema() for key in self.keys},
            "required": [key.name for key in self.keys if key.default is REQUIRED],
            "additionalProperties": False,
        }

    def words(self) -> str:
        """The keys."""
        return "a mapping of " + ", ".join(key.name for key in self.keys)


def read_value(of: ValueType, raw: object, path: Path, faults: list[Fault]) -> object:
    """Read one value, unless it was complained about already."""
    return None if raw is REFUSED else of.read(raw, path, faults)


def _unknown(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name[:SHOWN_LENGTH_MOST], names, 1)
    hint = f"did you mean {close[0]!r}?" if close else "known here: " + ", ".join(names)
    return f"unknown key; {hint}"
