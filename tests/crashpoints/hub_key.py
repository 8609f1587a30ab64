"""When two standings of a hub are the same for all that follows.

Left out: what is different in each run and decides nothing (moments, random ids, signatures, versions, spans). Kept:
everything else. A column that a hub comes to decide by belongs out of ``_FORGOTTEN``.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tests.crashpoints.hub_oracle import outcomes_in, rows_of
from wavemesh.codec.statements import decode
from wavemesh.trust.enrolments import CertificateReport
from wavemesh.trust.kept import KEPT_KIND, KeptReport
from wavemesh.trust.statements import DeviceOutcome, DeviceStatus, Envelope, EventReport, IntentReport

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from tests.crashpoints.hub_story import HubStanding
    from tests.crashpoints.hub_world import Child, World

DATABASES = ("state/hub.sqlite3", "state/superhub.db")
_FORGOTTEN = frozenset(
    {
        "seen_at",
        "granted_at",
        "expires_at",
        "until",
        "lease_id",
        "grant_content",
        "received_at",
        "first_seen_at",
        "closed_at",
        "used_at",
        "issued_at",
        "not_before",
        "signer_not_before",
        "certificate",
        "key_sha256",
        "entered_at",
        "found_at",
        "epoch",
        "parent_epoch",
        "parent_counter",
        "payload_sha256",
        "incarnation",
        "id",
        "number",
        "order_content",
        "signed_by",
        "secret_sha256",
    }
)
_FORGOTTEN_FACTS = frozenset({"clock_floor", "incarnation", "incarnation_since"})
_FORGOTTEN_TABLES = frozenset({"session_epoch"})


def key_of(standing: HubStanding) -> str:
    """A digest of what matters."""
    lines: list[Any] = []
    for name, content in standing.image.items():
        if content is None:
            lines.append(name)
        elif name in DATABASES:
            lines.append((name, _database(content)))
        else:
            lines.append((_named(name), _essence(name, content)))
    what = json.dumps([sorted(map(str, lines)), _world(standing.world)])
    return hashlib.sha256(what.encode()).hexdigest()


def _named(name: str) -> str:
    """Pairs of the identity are named by their random serial."""
    top, _, rest = name.partition("/")
    return f"identity/pair-X/{rest.rpartition('/')[2]}" if top == "identity" and rest.startswith("pair-") else name


@lru_cache(maxsize=4096)
def _essence(name: str, content: bytes) -> str:
    if name.endswith(".tmp"):
        return "left over"  # unlinked before anything is written there, never read
    if name.endswith(".mark"):
        return content.partition(b" ")[2].decode(errors="replace")  # the boot is another one each time
    if name == "state/cache/scrub":
        return content.rpartition(b" ")[2].decode(errors="replace")  # where the scrub stands, not when it began
    if name.startswith("identity/") and not name.endswith("ca.crt"):
        return content[:11].decode(errors="replace")  # keys and certificates are new each time
    return hashlib.sha256(content).hexdigest()


@lru_cache(maxsize=1024)
def _database(content: bytes) -> str:
    tables: dict[str, list[str]] = {}
    for table, rows in rows_of(content).items():
        if table in _FORGOTTEN_TABLES or table.startswith("telemetry"):
            continue
        tables[table] = [_row(table, row) for row in rows]
        if table != "session_reports":
            tables[table].sort()
    return json.dumps(tables, sort_keys=True)


def _row(table: str, row: sqlite3.Row) -> str:
    shown: dict[str, Any] = {}
    for name in row.keys():  # noqa: SIM118  # a Row is a sequence of its values
        value = row[name]
        if name in _FORGOTTEN:
            continue
        if name == "counter":
            shown[name] = bool(value)
        elif table == "facts" and name == "value" and row["name"] in _FORGOTTEN_FACTS:
            continue
        elif isinstance(value, bytes):
            read = _READ.get(table)
            shown[name] = read(row) if read is not None else hashlib.sha256(value).hexdigest()
        elif name == "digest" and row["type"] == "permit":
            continue  # signed for an incarnation, which is random
        else:
            shown[name] = value
    return json.dumps(shown, sort_keys=True)


def _status(row: sqlite3.Row) -> str:
    status = decode(DeviceStatus, row["status"])
    return str((status.state, status.wave_id, status.attempt, status.firmware_sha256))


def _outcome(row: sqlite3.Row) -> str:
    outcome = decode(DeviceOutcome, decode(Envelope, row["envelope"]).payload)
    return str((outcome.attempt, outcome.sequence, outcome.kind, outcome.gate))


def report_essence(kind: str, body: bytes) -> str:
    """What a report says, but for moments, ids and signatures."""
    if kind in {"outcome", "snapshot"}:
        return str([(one.wave_id, one.device, one.attempt, one.sequence, one.kind) for one in outcomes_in(kind, body)])
    if kind == "event":
        event = decode(EventReport, body)
        return str((event.node, event.kind, event.gate, event.subject))
    if kind == "certificate":
        return decode(CertificateReport, body).node
    if kind == KEPT_KIND:
        kept = decode(KeptReport, body)
        return str((kept.type, kept.name))
    report = decode(IntentReport, body)
    return str((hashlib.sha256(report.intent.payload).hexdigest(), report.cancellation is not None))


_READ: dict[str, Callable[[sqlite3.Row], str]] = {
    "devices": _status,
    "outcomes": _outcome,
    "session_reports": lambda row: report_essence(row["kind"], row["body"]),
    "session_resources": lambda _: "",
    "slots": lambda _: "",
    "waves": lambda _: "",
}


def _world(world: World) -> list[Any]:
    parent = world.parent
    incarnations = [incarnation for incarnation, _ in parent.cursors]
    heard = [(incarnations.index(one[0]), one[1], one[2], report_essence(one[2], one[3])) for one in parent.heard]
    wanted = sorted((one.key.type, one.key.name) for one in parent.wanted)
    notes = [(name, len(value) if name == "incarnations" else str(value)) for name, value in world.notes]
    return [
        wanted,
        [through for _, through in parent.cursors],
        heard,
        sorted((key.type, key.name) for key, _ in parent.taken),
        parent.is_reachable,
        [_child(child) for child in world.children],
        [name for name, _ in world.asked],
        world.answered,
        world.problems,
        world.done,
        notes,
    ]


def _child(child: Child) -> list[Any]:
    return [
        child.path,
        len(child.reports),
        child.acknowledged,
        sorted((one.key.type, one.key.name) for one in child.held),
        child.is_online,
        child.state,
        child.wave_id,
        child.attempt,
        child.burned,
        child.sequence,
        bool(child.lease_id),
        child.firmware_sha256,
        child.fetched,
        [name for name, _ in child.got],
    ]
