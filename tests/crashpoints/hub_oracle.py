"""What is wrong with what a cut left of a hub, by what others were told. Reads tables and files by itself.

acknowledged downwards   it is in the ledger, and in the log that goes up or with the parent
cursor                   not behind what was acknowledged, nor ahead of its effect
numbers                  each says one thing; the log goes on where the parent is
taken from the parent    it is held, and no order or hold list older than that is
leases                   whoever has one occupies a slot
blobs                    a file with a blob's name has its bytes; space is accounted
rot                      told before the wrong file is gone, once; told as healed only when the right bytes are there
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from wavemesh.codec.statements import decode
from wavemesh.trust.statements import DeviceOutcome, EventReport, OutcomeReport, SnapshotReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.crashpoints.hub_world import World
    from tests.crashpoints.medium import Image

Rank = tuple[int, int]
Ledger = dict[tuple[str, str], Rank]


@lru_cache(maxsize=256)
def rows_of(database: bytes) -> Mapping[str, list[sqlite3.Row]]:
    """All tables with their rows, in the order of their ids; what SQLite itself finds wrong raises."""
    if not database:
        return {}
    connection = sqlite3.connect(":memory:")
    try:
        # The file says that it has a write-ahead log, which a database in memory cannot have.
        connection.deserialize(database[:18] + b"\1\1" + database[20:])
        connection.row_factory = sqlite3.Row
        names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        return {row["name"]: connection.execute(f'SELECT * FROM "{row["name"]}"').fetchall() for row in names}  # noqa: S608
    finally:
        connection.close()


@lru_cache(maxsize=4096)
def outcomes_in(kind: str, body: bytes) -> tuple[DeviceOutcome, ...]:
    """The outcomes of a report that has some."""
    if kind == "outcome":
        envelopes = decode(OutcomeReport, body).outcomes
    elif kind == "snapshot":
        envelopes = decode(SnapshotReport, body).outcomes
    else:
        return ()
    return tuple(decode(DeviceOutcome, envelope.payload) for envelope in envelopes)


def ledger_of(reports: Iterable[tuple[str, bytes]]) -> Ledger:
    """The latest word on each (wave, device)."""
    ledger: Ledger = {}
    for kind, body in reports:
        for one in outcomes_in(kind, body):
            key = one.wave_id, one.device
            ledger[key] = max(ledger.get(key, (0, 0)), (one.attempt, one.sequence))
    return ledger


def behind(told: Ledger, known: Ledger) -> list[str]:
    """What of the first the second does not know."""
    return [
        f"the outcome {rank} of {key[1]} in wave {key[0]}"
        for key, rank in told.items()
        if known.get(key, (0, 0)) < rank
    ]


class HubOracle:
    """Judges the image of one hub whose database is ``database``."""

    def __init__(self, database: str) -> None:
        self._database = database

    def judge(self, image: Image, world: World) -> list[str]:
        """At a cut and at rest."""
        problems = [*world.problems, *_judge_blobs(image, world.note("spoilt")), *_judge_numbers(world)]
        content = image.get(self._database)
        if not content:
            return problems + _judge_nothing(world)
        try:
            tables = rows_of(content)
        except sqlite3.Error as error:
            return [*problems, f"{self._database} cannot be read: {error}"]
        if "session_log" not in tables:
            return problems + _judge_nothing(world)
        return problems + _judge_session(tables, world) + _judge_rot(image, tables, world)


def _lost(world: World) -> tuple[str, ...]:
    """Incarnations, of the hub and of its children, whose numbers the hub lost with its disk."""
    lost: tuple[str, ...] = world.note("lost") or ()
    return lost


def _judge_nothing(world: World) -> list[str]:
    """There is no database yet, so nobody can have been told anything."""
    known = [child.path for child in world.children if child.acknowledged and child.incarnation not in _lost(world)]
    known += [incarnation for incarnation, _ in world.parent.cursors if incarnation not in _lost(world)]
    return [f"the database is gone, and {', '.join(known)} relied on it"] if known else []


def _judge_session(tables: Mapping[str, list[sqlite3.Row]], world: World) -> list[str]:
    problems = []
    parent = world.parent
    waiting = [(row["kind"], row["body"]) for row in tables["session_reports"]]
    heard = [(kind, body) for _, _, kind, body in parent.heard]
    passed_on = ledger_of([*heard, *waiting])
    cursors = {(row["child_path"], row["incarnation"]): row["through"] for row in tables["session_cursors"]}
    for child in world.children:
        if child.incarnation in _lost(world):
            continue
        through = cursors.get((child.path, child.incarnation), 0)
        if not child.acknowledged <= through <= len(child.reports):
            problems.append(f"the cursor of {child.path} is {through}, acknowledged were {child.acknowledged}")
        counted = ledger_of((one.kind, one.body) for one in child.reports[: min(through, len(child.reports))])
        problems += [f"{what} is counted and goes nowhere" for what in behind(counted, passed_on)]
        uncounted = ledger_of((one.kind, one.body) for one in child.reports)
        told = {key: rank for key, rank in passed_on.items() if key in uncounted}
        if not _lost(world):
            problems += [f"{what} went up before its cursor moved" for what in behind(told, counted)]
    if not tables["session_log"]:
        return problems + _judge_nothing(world)
    [log] = tables["session_log"]
    through = parent.cursor(log["incarnation"])
    first = min((row["number"] for row in tables["session_reports"]), default=log["next_number"])
    if not first - 1 <= through <= log["sent_through"] and log["incarnation"] not in _lost(world):
        problems.append(f"the parent is at report {through}; sent are {log['sent_through']}, kept from {first} on")
    held = {(row["type"], row["name"]): row["digest"] for row in tables["session_resources"]}
    wanted = {one.key: one.digest for one in parent.wanted}
    problems += [
        f"{key.type}/{key.name} was taken and is gone"
        for key, digest in parent.taken
        # Revocations are in force for ever.
        if digest in {wanted.get(key), held.get((key.type, key.name), digest if key.type == "revocations" else "")}
        and held.get((key.type, key.name)) != digest
    ]
    return problems


def _judge_numbers(world: World) -> list[str]:
    """Each number of an incarnation was said once, without a gap; an event and an intent count once."""
    counts = Counter((incarnation, number) for incarnation, number, _, _ in world.parent.heard)
    return [f"report {number} was taken {count} times" for (_, number), count in counts.items() if count > 1]


def _judge_blobs(image: Image, spoilt: str | None) -> list[str]:
    problems = []
    for name, content in image.items():
        if name.startswith("state/cache/blobs/") and content is not None:
            sha256, _, size = name.rpartition("/")[2].partition("-")
            if sha256 != spoilt and (len(content) != int(size) or _sha256(content) != sha256):
                problems.append(f"{name} does not hold its bytes")
    return problems


def told_of_rot(heard: Iterable[tuple[str, bytes]], sha256: str) -> Counter[str]:
    """How many events of each kind there are about a blob; each is counted by its id."""
    events = {
        one.event_id: one.kind
        for kind, body in heard
        if kind == "event" and (one := decode(EventReport, body)).subject == sha256
    }
    return Counter(events.values())


def _judge_rot(image: Image, tables: Mapping[str, list[sqlite3.Row]], world: World) -> list[str]:
    """H2: the blob that went bad in the scenario, if it did."""
    rotten = world.note("rot")
    if rotten is None:
        return []
    places = [name for name in image if name.startswith("state/cache/blobs/") and f"/{rotten}-" in name]
    held = [_sha256(content) for name in places if (content := image[name]) is not None]
    reports = [(row["kind"], row["body"]) for row in tables["session_reports"]]
    told = told_of_rot([*((kind, body) for _, _, kind, body in world.parent.heard), *reports], rotten)
    problems = []
    if not told["cache-mismatch"] and (not held or rotten in held):
        problems.append(f"the wrong bytes of {rotten[:12]} are gone, and nobody is told")
    # Once it is healed the plot goes on, and the blob may be evicted for another.
    if told["cache-healed"] and rotten not in held and (held or world.note("spoilt")):
        problems.append(f"{rotten[:12]} was told healed, and is not held")
    problems += [f"{kind} of {rotten[:12]} was told {count} times" for kind, count in told.items() if count > 1]
    return problems


@lru_cache(maxsize=1024)
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def judge_rest_of_cache(image: Image, quota_bytes: int, needed: Iterable[str]) -> list[str]:
    """At rest nothing is left half done, what is needed is there, and it all fits."""
    cache = {
        name: content for name, content in image.items() if name.startswith("state/cache/") and content is not None
    }
    whole = {name.rpartition("/")[2].partition("-")[0] for name in cache if name.startswith("state/cache/blobs/")}
    problems = [f"{name} is left over" for name in image if name.endswith((".tmp", ".mark"))]
    problems += [f"blob {sha256[:12]} is needed and not held" for sha256 in needed if sha256 not in whole]
    used = sum(map(len, cache.values()))
    if used > quota_bytes:
        problems.append(f"{used} bytes are held, the quota is {quota_bytes}")
    return problems
