"""When two standings of a device are the same for all that follows.

Left out: what is different in each run and decides nothing (moments, random ids, signatures, the numbers of writes, the
numbers of pings, spans on their way). Kept: everything else, byte for byte where it is not one of the formats below.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tests.crashpoints.oracle_formats import read_grub, read_uboot, uboot_copies

if TYPE_CHECKING:
    from tests.crashpoints.device_story import Standing

_FORGOTTEN = (
    "serial",
    "spans",
    "spans_first",
    "spans_dropped",
    "step",
    "ping_ceiling",
    "clock_floor",
    "logs_uploaded",
)
_FORGOTTEN_PROGRESS = (
    "observed",
    "required",
    "awaiting_since",
    "evidence",
    "lease_expires_at",
    "trial_boot_id",
    "trial_began_s",
    "lease_id",
)


def key_of(standing: Standing) -> str:
    """A digest of what matters."""
    hub = standing.hub
    served = {one.digest: f"{one.key.type}/{one.key.name}" for one in hub.wanted}
    documents = {}
    lines: list[Any] = []
    for name, content in standing.image.items():
        if content is None:
            lines.append(name)
        elif name in {"state/state.json", "state/state.json.prev"}:
            documents[name] = _document(content)
        elif name.startswith("state/resources/"):
            digest = name.rsplit("/", 1)[1]
            lines.append((served.get(digest, "stale"), hashlib.sha256(content).hexdigest() == digest))
        else:
            lines.append((_named(name), _essence(name, content)))
    incarnations = sorted({document[1] for document in documents.values()})
    newest = max(documents.values(), key=lambda document: document[0], default=None)
    cursors = [(hub.cursor(one), newest is not None and newest[1] == one) for one in incarnations]
    for name, (serial, incarnation, text) in documents.items():
        is_newest = newest is not None and serial == newest[0]
        lines.append((name, is_newest, incarnations.index(incarnation) if incarnation else -1, text))
    words = [(one.wave_id, one.attempt, one.sequence, one.kind, one.gate) for one in hub.words]
    wanted = sorted((one.key.type, one.key.name) for one in hub.wanted)
    known = (
        cursors,
        words,
        hub.events,
        wanted,
        hub.granted,
        bool(hub.renewals),
        hub.is_reachable,
        hub.garbled_reads,
        hub.done,
    )
    what = json.dumps([sorted(map(str, lines)), known, standing.trial_boots, standing.reason.value])
    return hashlib.sha256(what.encode()).hexdigest()


def _named(name: str) -> str:
    """Pairs of the identity are named by their random serial."""
    top, _, rest = name.partition("/")
    if top == "identity" and rest.startswith("pair-"):
        return f"identity/pair-X/{rest.rpartition('/')[2]}"
    if name.startswith("state/resources/") and name.endswith(".tmp"):
        return "state/resources/X.tmp"
    return name


def _simulated(content: bytes) -> str:
    plain = json.loads(content)
    return str([plain["active"], plain["previous"], plain["trial"]])


def _grub(content: bytes) -> str:
    read_grub(content)  # raises
    return re.sub(r"wavemesh_sequence=\d+", "", content.decode("ascii")).strip("#\n")


def _uboot(content: bytes) -> str:
    """Both copies, as the older one counts again when the newer one is torn."""
    copies = uboot_copies(content)
    newest = read_uboot(content)
    essences = [copy and {**copy[1], "wavemesh_sequence": ""} for copy in copies]
    return str([essences, newest])


_ENVIRONMENTS = {"slots/bootenv.json": _simulated, "slots/grubenv": _grub, "slots/uboot-env": _uboot}


@lru_cache(maxsize=4096)
def _essence(name: str, content: bytes) -> str:
    if name.endswith(".tmp"):
        return "left over"  # unlinked before anything is written there, never read
    if name == "state/reserve":
        return str(len(content))
    if name in _ENVIRONMENTS:
        with suppress(ValueError, KeyError):
            return _ENVIRONMENTS[name](content)
    if name.startswith("identity/") and not name.endswith("ca.crt"):
        return content[:11].decode(errors="replace")  # keys and certificates are new each time
    return hashlib.sha256(content).hexdigest()


@lru_cache(maxsize=4096)
def _document(content: bytes) -> tuple[int, str, str]:
    """Serial, incarnation and essence of a state document; one that cannot be read is its bytes."""
    try:
        outer = json.loads(content)
        if hashlib.sha256(outer["document"].encode()).hexdigest() != outer["sha256"]:
            raise ValueError
        document = json.loads(outer["document"])
    except (ValueError, KeyError, TypeError):
        return -1, "", hashlib.sha256(content).hexdigest()
    serial, incarnation = document["serial"], document.pop("incarnation")
    for name in _FORGOTTEN:
        document.pop(name)
    document["reports"] = [report["kind"] for report in document["reports"]]
    document["held"] = sorted((one["key"]["type"], one["key"]["name"]) for one in document["held"])
    for record in document["waves"].values():
        record["envelope"] = bool(record["envelope"])
    for name in _FORGOTTEN_PROGRESS:
        document["progress"].pop(name)
    return serial, incarnation, json.dumps(document, sort_keys=True)
