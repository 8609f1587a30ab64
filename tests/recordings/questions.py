"""What every tier is asked of the state it had at a moment, and how its answers are compared.

The same questions are put when a recording is made and when it is replayed, each time to a tier that starts on a copy
of that state with its clock at that moment, its parent out of reach, nobody connected. The answers of the version that
made the recording are the expected ones. They must all be there again; an answer may say more (a new field).
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from contextlib import ExitStack, asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from google.protobuf.json_format import MessageToDict

import control.app
import storehub.app
import superhub.app
from control.config import Config
from device.state import StateFile
from device.values import to_plain
from tests.recordings.wire import Child, SetClock, Tap, converse
from wavemesh.identity.files import pair_directory
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.config import load_config
from wavemesh.runtime.durable import Disk
from wavemesh.session.frames import Fenced, Hello, Welcome
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from datetime import datetime
    from pathlib import Path

    from tests.recordings.wire import MemoryServer

SERVICE = "/wavemesh.v1.OperatorService/"
PAGE = 1000
# Who asks, and where nobody listens: port 1 is not anybody's.
_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")
_NOWHERE = "127.0.0.1:1"
# What names the software that answers is another at each version, and is no answer to the question.
# When a blob was last used is said by its file's time, which a copy does not keep.
_NO_ANSWER = frozenset({"software_version", "agent_version", "last_used_at"})
_NEVER_SENT = 2**40


@asynccontextmanager
async def serving(tier: str, directory: Path, clock: SetClock) -> AsyncIterator[Tap]:
    """A tier on that directory, by its own composition root; ``tier`` is "control", "superhub" or "storehub"."""
    config = directory / "config.toml"
    config.write_text(_ADDRESS.sub(_NOWHERE, config.read_text(encoding="utf-8")), encoding="utf-8")
    tap = Tap()
    with ExitStack() as patches:
        patches.enter_context(patch(f"{tier}.app.make_server", tap.make_server))
        if tier == "control":
            async with control.app.serving(directory, load_config(config, Config), clock):
                yield tap
            return
        patches.enter_context(patch(f"{tier}.app.SessionUpstream", tap.make_upstream))
        async with asyncio.TaskGroup() as group:
            if tier == "superhub":
                hub = superhub.app.SuperHub(directory, clock, Random(5))
                group.create_task(hub.run())
                started, stop = hub.started, hub.stop
            else:
                started, stopping = asyncio.Event(), asyncio.Event()
                group.create_task(storehub.app.run(directory, stopping, lambda _: started.set(), clock))
                stop = stopping.set
            await started.wait()
            try:
                yield tap
            finally:
                stop()


class Fleet:
    """The nodes of a moment, by their directories."""

    def __init__(self, moment: Path, fleet: str) -> None:
        """``operator.crt`` beside the nodes is the certificate of the operator who asks."""
        self._moment = moment
        self._fleet = fleet
        self.operator = NodeId(fleet, "operator/alice")
        self.operator_certificate = (moment / "operator.crt").read_bytes()

    def directory(self, path: str) -> Path:
        """The directory of a node."""
        names = path.split("/")
        places = {1: "control", 2: "superhub", 4: f"stores/{names[-1]}", 6: f"devices/{names[-1]}"}
        return self._moment / ("control" if names[0] == "control" else places[len(names)])

    def child(self, path: str) -> Child:
        """A node as its parent's server sees it dial."""
        certificate = pair_directory(self.directory(path) / "identity") / "node.crt"
        return Child(NodeId(self._fleet, path), certificate.read_bytes())


def tier_of(path: str) -> str:
    """The tier of a node, by its path."""
    names = path.split("/")
    return "control" if names[0] == "control" else {2: "superhub", 4: "storehub"}[len(names)]


async def answers_at(
    nodes: Fleet, tree: Mapping[str, Iterable[str]], incarnations: Mapping[str, str], at: datetime, scratch: Path
) -> dict[str, Any]:
    """The answers of every node at a moment; of children those that were heard by then have a session."""
    said = dict[str, Any]()
    for parent, children in tree.items():
        heard = {child: incarnations[child] for child in children if child in incarnations}
        said[parent] = await answers_of(nodes, parent, heard, at, scratch)
        for child in children:
            if (nodes.directory(child) / "state" / "state.json").exists():
                said[child] = device_document(nodes, child, at, scratch)
    return said


async def answers_of(fleet: Fleet, path: str, children: Mapping[str, str], at: datetime, scratch: Path) -> Any:
    """Start the node on a copy of its state and ask; ``children`` are paths with the incarnation last heard of."""
    copy = scratch / path.replace("/", "-")
    shutil.copytree(fleet.directory(path), copy)
    async with serving(tier_of(path), copy, SetClock(at)) as tap:
        server = tap.server
        said: dict[str, Any] = {"sessions": {}}
        for child, incarnation in sorted(children.items()):
            said["sessions"][child] = await _session(server, fleet, child, incarnation)
        if tier_of(path) != "superhub":
            said["operator"] = await operator_view(server, fleet, tier_of(path))
    shutil.rmtree(copy)
    return said


async def _session(server: MemoryServer, fleet: Fleet, child: str, incarnation: str) -> dict[str, Any]:
    """The cursor, the whole desired state, and whether a child that was restored is fenced."""
    dialling = fleet.child(child)
    told = await converse(server, dialling, Hello(1, "question", incarnation, _NEVER_SENT, ()))
    assert isinstance(told.greeting, Welcome)
    restored = await converse(server, dialling, Hello(1, "question", incarnation, 1, ()))
    return {
        "cursor": told.greeting.reports_through,
        "epoch": told.greeting.epoch,
        "fenced": isinstance(restored.greeting, Fenced),
        "desired": {
            f"{key.type} {key.name}": {
                "digest": one.digest,
                "version": one.version.counter,
                "audience": sorted(one.audience),
                "urgent": one.urgent,
            }
            for key, one in told.resources.items()
        },
    }


async def operator_view(server: MemoryServer, fleet: Fleet, tier: str) -> dict[str, Any]:
    """The operator API's view: waves, exposure, ledgers, intents, devices, releases, audit or cache."""

    async def ask(method: str, request: Any) -> Any:
        raw = await server.ask(
            fleet.operator, fleet.operator_certificate, SERVICE + method, request.SerializeToString()
        )
        message = getattr(operator_pb2, f"{method}Response").FromString(raw)
        return plain(MessageToDict(message, preserving_proto_field_name=True))

    said = {
        "ListWaves": await ask("ListWaves", operator_pb2.ListWavesRequest(page_size=PAGE)),
        "ListIntents": await ask("ListIntents", operator_pb2.ListIntentsRequest(page_size=PAGE)),
        "ListDevices": await ask("ListDevices", operator_pb2.ListDevicesRequest(page_size=PAGE)),
        "ListReleases": await ask("ListReleases", operator_pb2.ListReleasesRequest()),
        "GetFleetStatus": await ask("GetFleetStatus", operator_pb2.GetFleetStatusRequest()),
    }
    for wave in said["ListWaves"].get("waves", []):
        name = wave["wave_id"]
        said[f"GetLedger {name}"] = await ask("GetLedger", operator_pb2.GetLedgerRequest(wave_id=name))
    if tier == "control":
        said["ListAudit"] = await ask("ListAudit", operator_pb2.ListAuditRequest(page_size=PAGE))
    else:
        cache = await ask("ListCache", operator_pb2.ListCacheRequest(limit=PAGE))
        # Their order is that of last use.
        said["ListCache"] = {**cache, "entries": {one["digest"]["sha256"]: one for one in cache.get("entries", [])}}
    return said


def device_document(fleet: Fleet, path: str, at: datetime, scratch: Path) -> Any:
    """What a device's agent remembers, read by the present one."""
    copy = scratch / path.replace("/", "-")
    shutil.copytree(fleet.directory(path) / "state", copy)
    file = StateFile(copy, Disk(), "0" * 32)
    file.load(at)
    assert not file.recovered
    shutil.rmtree(copy)
    return plain(json.loads(json.dumps(to_plain(file.document))))


def plain(value: Any) -> Any:
    """Without what is no answer."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if key not in _NO_ANSWER}
    return [plain(one) for one in value] if isinstance(value, list) else value


def differences(expected: Any, found: Any, where: str = "") -> Iterable[str]:
    """Where the answer found does not say what was expected; what it says beyond that is no difference."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, value in expected.items():
            if key not in found:
                yield f"{where}/{key}: missing, expected {value!r}"[:500]
            else:
                yield from differences(value, found[key], f"{where}/{key}")
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            yield f"{where}: {len(found)} entries, expected {len(expected)}"
        for number, (one, other) in enumerate(zip(expected, found, strict=False)):
            yield from differences(one, other, f"{where}/{number}")
    elif expected != found:
        yield f"{where}: {found!r}, expected {expected!r}"[:500]
