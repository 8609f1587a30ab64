"""Protobuf messages as plain data, the way people and scripts want to read them.

Field names as in the proto (snake_case); enums as lower-case words without their prefix ("queued"); times as RFC 3339
in UTC with a "Z"; 64-bit numbers as numbers; bytes as text where they are UTF-8, else base64; absent optional fields
and messages as null. A script can rely on every field being there.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.timestamp_pb2 import Timestamp

from edgectl.exits import UsageError

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
    from google.protobuf.message import Message

# What JSON can say: dict, list, str, int, float, bool or None, nested.
Plain = Any


def plain(message: Message) -> dict[str, Any]:
    """The message as a dictionary."""
    return {field.name: _field(message, cast("FieldDescriptor", field)) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: FieldDescriptor) -> Plain:
    value = getattr(message, field.name)
    if field.is_repeated:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            of_value = field.message_type.fields_by_name["value"]
            return {str(key): _single(of_value, value[key]) for key in sorted(value)}
        return [_single(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _single(field, value)


def _single(field: FieldDescriptor, value: Any) -> Plain:
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return _enum_word(field.enum_type, value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value


def _enum_word(kind: EnumDescriptor, value: Any) -> str:
    """``DISPOSITION_QUEUED`` → ``queued``: the prefix is that of the zero value, ``..._UNSPECIFIED``."""
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    known = kind.values_by_number.get(value)
    return known.name.removeprefix(prefix).lower() if known is not None else str(value)


def enum_words(kind: EnumDescriptor) -> list[str]:
    """The words of an enum, but for "unspecified"."""
    return [_enum_word(kind, number) for number in sorted(kind.values_by_number) if number]


def enum_number(kind: EnumDescriptor, word: str) -> int:
    """The number of a word ("rolled_back", "rolled-back", "ROLLED_BACK"); raises UsageError."""
    wanted = word.strip().lower().replace("-", "_").replace(" ", "_")
    for number in kind.values_by_number:
        if number and _enum_word(kind, number) == wanted:
            return int(number)
    raise UsageError(f"{word!r} is none of: {', '.join(enum_words(kind))}")
