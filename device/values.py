"""Frozen dataclasses as plain JSON values and back, for the device's state document. Pure.

The dataclass is the schema: unknown keys are dropped (an older agent reads a newer document after a rollback), missing
ones take their default, a value of the wrong type is refused. Supported: str, int, float, bool, bytes (base64), aware
datetimes (ISO 8601), enums (by value), dataclasses, ``tuple[X, ...]``, ``dict[str, X]`` and ``X | None``.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import types
import typing
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

_PRIMITIVES = (str, int, float, bool)


def to_plain(value: Any) -> Any:
    """A value of the supported types as what ``json`` writes."""
    kind: Any = type(value)
    names = _field_names(kind)
    if names is not None:
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return _leaf(value)


@cache
def _field_names(kind: type) -> tuple[str, ...] | None:
    """Of a dataclass, None for any other type."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def _leaf(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def from_plain(kind: type[T], value: Any) -> T:
    """What ``to_plain`` made, as ``kind``; raises ValueError, KeyError or TypeError on anything else."""
    result: T = _read(kind, value)
    return result


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read(kind: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {typing.Union, types.UnionType}:
        [present] = [argument for argument in arguments if argument is not types.NoneType]
        return None if value is None else _read(present, value)
    if origin is tuple:
        return tuple(_read(arguments[0], item) for item in _expect(list, value))
    if origin is dict:
        return {key: _read(arguments[1], item) for key, item in _expect(dict, value).items()}
    if dataclasses.is_dataclass(kind):
        hints = _hints(typing.cast("type", kind))
        known = {name: item for name, item in _expect(dict, value).items() if name in hints}
        return typing.cast("Any", kind)(**{name: _read(hints[name], item) for name, item in known.items()})
    return _read_leaf(kind, value)


def _read_leaf(kind: Any, value: Any) -> Any:
    if issubclass(kind, enum.Enum):
        return kind(value)
    if kind is datetime:
        moment = datetime.fromisoformat(_expect(str, value))
        if moment.tzinfo is None:
            msg = f"{value!r} has no time zone"
            raise ValueError(msg)
        return moment
    if kind is bytes:
        return base64.b64decode(_expect(str, value), validate=True)
    if kind is float and type(value) is int:
        return float(value)
    if kind not in _PRIMITIVES:
        msg = f"{kind!r} is not a supported type"
        raise TypeError(msg)
    return _expect(kind, value)


def _expect(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        msg = f"expected {kind.__name__}, got {value!r:.80}"
        raise ValueError(msg)
    return value
