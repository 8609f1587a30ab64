"""What operators ask, checked: bounds, pages, the inventory's form. BadRequestError names the field."""

from __future__ import annotations

import re
from datetime import UTC
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import or_

from control import schema
from control.intent_rows import Disposition, IntentFilter
from control.rollout import SEGMENT_LABEL, store_of
from wavemesh.errors import ConflictError, PeerError
from wavemesh.identity.nodes import BadNodeIdError, NodeId, Role
from wavemesh.listing import MAX_ALTERNATIVES
from wavemesh.trust.statements import IntentKind, RevocationReach, WaveState

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Mapping
    from datetime import datetime

    from sqlalchemy import ColumnElement

    from wavemesh.v1 import operator_pb2

DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_STATES = MAX_ALTERNATIVES
MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 200
MAX_WORD_CHARACTERS = 100
MAX_REASON_BYTES = 1000
_WAVE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class BadRequestError(PeerError):
    """A field of a request is missing, malformed or out of bounds."""

    reason = "BAD_REQUEST"

    def __init__(self, field: str, problem: str) -> None:
        """Name the field and say what it should be."""
        super().__init__(f"{field}: {problem}", field=field)


class AskHubError(ConflictError):
    """Only the store's hub knows that."""

    reason = "ASK_HUB"


def page_size(size: int) -> int:
    """Entries on a page; 0 means the default."""
    if size > MAX_PAGE:
        raise BadRequestError("page_size", f"{size}; at most {MAX_PAGE}")
    return size or DEFAULT_PAGE


def page_number(token: str) -> int | None:
    """Where a page begins, for lists in order of number."""
    if not token:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", token):
        raise BadRequestError("page_token", f"{token[:50]!r} is none of ours; pass on the last answer's")
    return int(token)


def wave_id(text: str) -> str:
    """A wave's id."""
    if not _WAVE_ID.fullmatch(text):
        raise BadRequestError("wave_id", f"{text[:80]!r}: use 1 to 64 letters, digits, '-' or '_'")
    return text


def wave_states(numbers: Collection[int]) -> frozenset[WaveState]:
    """The states a list is narrowed to; none for all."""
    if len(numbers) > MAX_STATES:
        raise BadRequestError("states", f"{len(numbers)}; at most {MAX_STATES}")
    try:
        return frozenset(map(WaveState, numbers))
    except ValueError as error:
        raise BadRequestError("states", f"{error}; name states of WaveState") from error


def check_alternatives(field: str, wanted: Collection[int]) -> None:
    """Refuse more values of one filter than a list takes."""
    if len(wanted) > MAX_ALTERNATIVES:
        raise BadRequestError(field, f"{len(wanted)}; at most {MAX_ALTERNATIVES}")


def intent_filter(request: operator_pb2.ListIntentsRequest) -> IntentFilter:
    """What a list of intents is narrowed to."""
    try:
        disposition = Disposition(request.disposition) if request.disposition else None
        kind = IntentKind(request.kind) if request.kind else None
    except ValueError as error:
        raise BadRequestError("disposition", f"or kind: {error}; name one of Disposition and of IntentKind") from error
    return IntentFilter(
        wave_id=request.wave_id,
        disposition=disposition,
        kind=kind,
        operator=request.operator,
        device=request.device,
        since=_time(request, "since"),
    )


def audit_filter(request: operator_pb2.ListAuditRequest) -> list[ColumnElement[bool]]:
    """What a list of the audit is narrowed to."""
    table, found = schema.audit, []
    if request.actor:
        found.append(schema.is_named(table.c.actor, request.actor))
    if request.action:
        group = table.c.action.startswith(f"{request.action}.", autoescape=True)
        found.append(or_(table.c.action == request.action, group))
    if request.subject:
        found.append(table.c.subject == request.subject)
    since = _time(request, "since")
    if since is not None:
        found.append(table.c.at >= since)
    return found


def _time(request: operator_pb2.ListIntentsRequest | operator_pb2.ListAuditRequest, field: str) -> datetime | None:
    """An optional time; raises BadRequestError for one that no calendar has."""
    if not request.HasField("since"):
        return None
    try:
        return request.since.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise BadRequestError(field, f"{error}; give a time between the years 1 and 9999") from error


def labels(wanted: Mapping[str, str]) -> Mapping[str, str]:
    """The labels a list of devices is narrowed to."""
    if len(wanted) > MAX_LABELS:
        raise BadRequestError("labels", f"{len(wanted)}; at most {MAX_LABELS}")
    for name in wanted:
        # Databases quote the names of a JSON object's members, and none says how a quote in a name is written.
        if not name or len(name) > MAX_LABEL_CHARACTERS or '"' in name or "\\" in name:
            problem = f"{name[:50]!r}: 1 to {MAX_LABEL_CHARACTERS} characters without quotes and backslashes"
            raise BadRequestError("labels", problem)
    return wanted


def reason(text: str) -> str:
    """A mandatory reason."""
    if not text.strip() or len(text.encode()) > MAX_REASON_BYTES:
        raise BadRequestError("reason", f"missing or over {MAX_REASON_BYTES} bytes; say why, it is kept in the audit")
    return text


def reach(request: operator_pb2.RevokeNodeRequest) -> RevocationReach:
    """What a revocation is to take back; the node alone by default."""
    try:
        return RevocationReach(request.reach or RevocationReach.NODE.value)
    except ValueError as error:
        raise BadRequestError("reach", f"{request.reach} is none of node, below, authority") from error


def before(request: operator_pb2.RevokeNodeRequest) -> datetime | None:
    """Since when certificates stay good; None for now."""
    try:
        return request.issued_before.ToDatetime(tzinfo=UTC) if request.HasField("issued_before") else None
    except (ValueError, OverflowError) as error:
        raise BadRequestError("issued_before", "is no time") from error


def store_row(item: operator_pb2.InventoryStore, index: int, fleet: str) -> dict[str, object]:
    """A store to register, as a row."""
    field = f"stores[{index}]"
    _check_role(f"{field}.path", item.path, fleet, Role.STORE_HUB)
    try:
        ZoneInfo(item.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        zone = item.time_zone[:MAX_WORD_CHARACTERS]
        raise BadRequestError(f"{field}.time_zone", f"{zone!r} of {item.path} is no IANA time zone") from error
    return {"path": item.path, "time_zone": item.time_zone}


def device_row(item: operator_pb2.InventoryDevice, index: int, fleet: str, stores: Container[str]) -> dict[str, object]:
    """A device to register, as a row; its store must be registered."""
    field = f"devices[{index}]"
    _check_role(f"{field}.path", item.path, fleet, Role.DEVICE)
    if store_of(item.path) not in stores:
        raise BadRequestError(f"{field}.path", f"store {store_of(item.path)} is not registered; register it too")
    for name in ("device_class", "hardware_revision"):
        value = getattr(item, name)
        if not 1 <= len(value) <= MAX_WORD_CHARACTERS:
            raise BadRequestError(f"{field}.{name}", f"of {item.path}: 1 to {MAX_WORD_CHARACTERS} characters")
    labels = dict(item.labels)
    if len(labels) > MAX_LABELS or any(len(text) > MAX_LABEL_CHARACTERS for pair in labels.items() for text in pair):
        problem = f"of {item.path}: at most {MAX_LABELS} labels of {MAX_LABEL_CHARACTERS} characters"
        raise BadRequestError(f"{field}.labels", problem)
    return {
        "path": item.path,
        "store": store_of(item.path),
        "device_class": item.device_class,
        "hardware_revision": item.hardware_revision,
        "segment": labels.get(SEGMENT_LABEL, ""),
        "labels": labels,
    }


def _check_role(field: str, path: str, fleet: str, role: Role) -> None:
    try:
        is_right = NodeId(fleet, path).role is role
    except BadNodeIdError as error:
        raise BadRequestError(field, str(error)) from error
    if not is_right:
        raise BadRequestError(field, f"{path!r} is no path of a {role.value}")
