"""Copies and keys of the product's session machines, whatever fields they have.

The clock of the model stands still, so what only time moves (liveness, deadlines) is the same in all states and left
out; that time has passed is a step of the world, which ends the stream. A field that is new in a machine is part of the
key without anybody's doing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from wavemesh.session.child import ChildMachine
from wavemesh.session.lanes import ResourceLanes
from wavemesh.session.parent import ParentMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

M = TypeVar("M", ChildMachine, ParentMachine)

# The same in all states, as the clock stands still and nobody asks; or derived from the other fields.
_CONSTANT = {"_deadline", "_liveness", "_options", "_status_at", "_session_id", "_capabilities", "_version"}
_DERIVED = {"_difference", "_update_bytes", "_verdict_timeout_s"}
_LANES = tuple(name for name in ResourceLanes.__slots__ if name not in _DERIVED)
_MUTABLE: dict[type, list[tuple[str, type]]] = {}
_PLAIN: dict[type, list[str]] = {}


def copied(machine: M) -> M:
    """A machine in the same state that shares nothing that changes."""
    kind = type(machine)
    twin = object.__new__(kind)
    fields = twin.__dict__
    fields.update(machine.__dict__)
    for name, form in _mutable(machine):
        fields[name] = _COPIES[form](fields[name])
    return twin


def frozen(machine: M) -> Hashable:
    """The machine's state as a key."""
    changing, fields = _mutable(machine), machine.__dict__
    return tuple(
        [fields[name] for name in _PLAIN[type(machine)]] + [_KEYS[form](fields[name]) for name, form in changing]
    )


def _mutable(machine: M) -> list[tuple[str, type]]:
    """Names and types of the fields that are changed in place."""
    kind = type(machine)
    known = _MUTABLE.get(kind)
    if known is None:
        fields = machine.__dict__.items()
        known = _MUTABLE[kind] = [(name, type(value)) for name, value in fields if type(value) in _COPIES]
        _PLAIN[kind] = [name for name, value in fields if type(value) not in _COPIES and name not in _CONSTANT]
    return known


def _copied_deque(value: deque[Any]) -> deque[Any]:
    return deque(value, value.maxlen)


def _copied_lanes(lanes: ResourceLanes) -> ResourceLanes:
    twin = object.__new__(ResourceLanes)
    for name in ResourceLanes.__slots__:
        setattr(twin, name, getattr(lanes, name))
    twin._held = lanes._held.copy()
    twin._refused = lanes._refused.copy()
    sent = [type(one)(one.nonce, one.is_urgent, dict(one.changed), one.removed, one.deadline) for one in lanes._sent]
    twin._sent = deque(sent)
    return twin


def _lanes_key(lanes: ResourceLanes) -> Hashable:
    return tuple([_LANE_KEYS.get(name, _as_it_is)(getattr(lanes, name)) for name in _LANES])


def _sent_key(sent: deque[Any]) -> Hashable:
    return tuple([(one.nonce, one.is_urgent, tuple(one.changed.items()), tuple(one.removed)) for one in sent])


def _items(value: dict[Any, Any] | None) -> Hashable:
    return None if value is None else tuple(value.items())


def _as_it_is(value: Hashable) -> Hashable:
    return value


_COPIES: dict[type, Callable[[Any], Any]] = {
    list: list,
    dict: dict,
    set: set,
    deque: _copied_deque,
    ResourceLanes: _copied_lanes,
}
_KEYS: dict[type, Callable[[Any], Hashable]] = {
    list: tuple,
    dict: _items,
    set: frozenset,
    deque: tuple,
    ResourceLanes: _lanes_key,
}
_LANE_KEYS: dict[str, Callable[[Any], Hashable]] = {
    "_held": _items,
    "_refused": _items,
    "_desired": _items,
    "_sent": _sent_key,
}
