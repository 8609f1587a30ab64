"""A value with some fields changed, as ``dataclasses.replace`` makes it, in half the time. Pure.

For the few classes with many fields of which a copy is made at every step of a device: the state document, its
progress, its status. They are frozen, with slots, every field is one of ``__init__``, and nothing is checked there.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def replaced(value: T, **changes: Any) -> T:
    """The same value but for these fields; raises TypeError for one that it does not have."""
    cls: Any = type(value)
    names, numbers, read = _shape(cls)
    fields = list(read(value))
    for name, new in changes.items():
        if name not in numbers:
            msg = f"{cls.__name__} has no field {name!r}"
            raise TypeError(msg)
        fields[numbers[name]] = new
    made: T = cls.__new__(cls)
    for _ in map(object.__setattr__, repeat(made), names, fields):
        pass
    return made


@cache
def _shape(cls: type) -> tuple[tuple[str, ...], dict[str, int], Callable[[Any], tuple[Any, ...]]]:
    """Names of the fields, their places, and what reads all of them at once."""
    fields = dataclasses.fields(cls)
    names = tuple(field.name for field in fields)
    if len(names) < 2 or hasattr(cls, "__post_init__") or not all(field.init for field in fields):
        msg = f"{cls.__name__} is no plain value of several fields: use dataclasses.replace"
        raise TypeError(msg)
    return names, {name: number for number, name in enumerate(names)}, attrgetter(*names)
