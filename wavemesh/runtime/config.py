"""Strict configuration: a TOML file becomes a frozen dataclass, or an error that names file, key and reason.

The dataclass is the schema: a key it does not have, a missing key without default, a value of another type or outside
its bounds is refused; nothing is guessed or converted. Supported field types: str, int, float, bool, Path, enums (by
value), nested dataclasses (tables), ``tuple[X, ...]`` (arrays), ``dict[str, X]`` (tables with free keys) and
``X | None``. A relative Path is relative to the file's directory. Bounds are put in the field's metadata by
``bounded``; a check over several fields raises ValueError in ``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import enum
import tomllib
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

MAX_CONFIG_BYTES = 1024 * 1024
_BOUNDS = "bounds"


class ConfigError(LocalError):
    """A configuration file is missing, unreadable or says something it may not."""

    reason = "CONFIG"

    def __init__(self, path: Path, key: str, problem: str) -> None:
        """Name the file, the dotted key ("" for the whole file) and what is wrong."""
        where = f"{path}: {key}" if key else str(path)
        super().__init__(f"{where}: {problem}", file=str(path), key=key, problem=problem)


def bounded(minimum: float, maximum: float) -> dict[str, tuple[float, float]]:
    """Field metadata: a number within [minimum, maximum], ends included."""
    return {_BOUNDS: (minimum, maximum)}


def load_config(path: Path, kind: type[T]) -> T:
    """Read a TOML file as the dataclass ``kind``; raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        problem = f"{error.strerror}; docs/guide/first-fleet.md has one to start with"
        raise ConfigError(path, "", problem) from error
    except OSError as error:
        raise ConfigError(path, "", error.strerror or str(error)) from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(path, "", f"larger than {MAX_CONFIG_BYTES} bytes")
    return parse_config(data, path, kind)


def parse_config(data: bytes, path: Path, kind: type[T]) -> T:
    """Read TOML bytes as the dataclass ``kind``; ``path`` is for errors and relative paths. Raises ConfigError."""
    try:
        tables = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(path, "", f"not TOML: {error}") from error
    result: T = _Reader(path).table(kind, tables, "")
    return result


class _Reader:
    """Checks values against types, knowing which file they come from."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def table(self, kind: type[Any], values: Mapping[str, object], key: str) -> Any:
        """A TOML table as a dataclass."""
        hints = typing.get_type_hints(kind)
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        for name in values:
            if name not in fields:
                known = ", ".join(sorted(fields))
                raise ConfigError(self._path, _join(key, name), f"unknown key; known here: {known}")
        arguments: dict[str, Any] = {}
        for name, field in fields.items():
            if name in values:
                arguments[name] = self.value(hints[name], values[name], _join(key, name))
                self._check_bounds(field, arguments[name], _join(key, name))
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ConfigError(self._path, _join(key, name), "missing")
        try:
            return kind(**arguments)
        except ValueError as error:
            raise ConfigError(self._path, key, str(error)) from error

    def value(self, kind: Any, value: object, key: str) -> Any:  # noqa: PLR0911  # one return per kind of type
        """A TOML value as ``kind``."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in {typing.Union, types.UnionType}:
            [present] = [argument for argument in arguments if argument is not types.NoneType]
            return self.value(present, value, key)
        if origin is tuple:
            items = self._expect(list, value, key, "an array")
            return tuple(self.value(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(items))
        if origin is dict:
            entries = self._expect(dict, value, key, "a table")
            return {name: self.value(arguments[1], entry, _join(key, name)) for name, entry in entries.items()}
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            return self.table(kind, self._expect(dict, value, key, "a table"), key)
        if issubclass(kind, enum.Enum):
            return self._enum(kind, value, key)
        if issubclass(kind, Path):
            return self._path.parent / self._expect(str, value, key, "a path in quotes")
        if kind is float and type(value) is int:
            return float(value)
        return self._expect(kind, value, key, {str: "a string", int: "an integer", bool: "true or false"}.get(kind, ""))

    def _expect(self, kind: type[T], value: object, key: str, words: str) -> T:
        # type() and not isinstance: in Python True is an int, in a configuration it is a mistake.
        if type(value) is not kind:
            words = words or f"a {kind.__name__}"
            raise ConfigError(self._path, key, f"expected {words}, got {value!r}")
        return value

    def _enum(self, kind: type[enum.Enum], value: object, key: str) -> enum.Enum:
        for member in kind:
            if member.value == value:
                return member
        known = ", ".join(repr(member.value) for member in kind)
        raise ConfigError(self._path, key, f"expected one of {known}, got {value!r}")

    def _check_bounds(self, field: dataclasses.Field[Any], value: Any, key: str) -> None:
        if _BOUNDS not in field.metadata or value is None:
            return
        minimum, maximum = field.metadata[_BOUNDS]
        if not minimum <= value <= maximum:
            raise ConfigError(self._path, key, f"expected {minimum} to {maximum}, got {value}")


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
