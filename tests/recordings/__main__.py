"""``python -m tests.recordings --version 0.1.0``: play the story and check in what was seen, in place of an older take.

A recording is made once a version, before its release, and never again after it: it is what that version said.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.topology import FLEET, control_id, device_id, store_id, superhub_id
from tests.recordings import archive
from tests.recordings.mesh import STORES, running
from tests.recordings.questions import Fleet, answers_at
from tests.recordings.snapshot import schema_versions
from tests.recordings.story import play
from wavemesh import __version__
from wavemesh.session.frames import MIN_PROTOCOL_VERSION, PROTOCOL_VERSION
from wavemesh.v1 import session_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Kept of calls that are repeated while something is waited for, per method and node.
_TAKES = 4


def record(version: str, out: Path) -> None:
    """Play, ask, and write the recording of that version below ``out``."""
    target = out / version
    with tempfile.TemporaryDirectory(prefix="recording-") as name:
        scratch = Path(name)
        began = datetime.now(UTC)
        with running(scratch) as mesh:
            play(mesh, scratch)
            identity = mesh.lab.operator_dir
        seen = [json.loads(line) for line in (scratch / "tap.jsonl").read_text(encoding="utf-8").splitlines()]
        operator = (identity / "node.crt").read_bytes()
        for moment in (scratch / "moments").iterdir():
            (moment / "operator.crt").write_bytes(operator)
        times = mesh.times
        incarnations = {moment: heard_incarnations(seen, at) for moment, at in times.items()}
        (scratch / "asked").mkdir()
        answers = {
            moment: asyncio.run(
                answers_at(
                    Fleet(scratch / "moments" / moment, FLEET), tree(), incarnations[moment], at, scratch / "asked"
                )
            )
            for moment, at in times.items()
        }
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        archive.save_states(scratch / "moments", target / "states.tar.xz")
        archive.save_lines(conversations(seen), target / "conversations.jsonl.xz")
        archive.save_lines(calls(seen), target / "calls.jsonl.xz")
        archive.save_json(answers, target / "answers.json.xz")
        archive.save_manifest(
            target,
            version=version,
            software=__version__,
            recorded_at=began.isoformat(),
            fleet=FLEET,
            protocol_versions=[MIN_PROTOCOL_VERSION, PROTOCOL_VERSION],
            schemas=schema_versions(scratch / "moments" / "closed"),
            tree=tree(),
            moments={moment: at.isoformat() for moment, at in times.items()},
            incarnations=incarnations,
        )


def heard_incarnations(seen: Iterable[Mapping[str, Any]], until: datetime) -> dict[str, str]:
    """The incarnation each child last said in a Hello, by its path."""
    found: dict[str, str] = {}
    for line in seen:
        if line.get("sender") != "child" or datetime.fromisoformat(line["at"]) > until:
            continue
        frame = session_pb2.ConnectRequest.FromString(base64.b64decode(line["frame"]))
        if frame.HasField("hello"):
            found[line["child"]] = frame.hello.incarnation
    return found


def tree() -> dict[str, tuple[str, ...]]:
    """Every parent, with its children."""
    stores = tuple(store_id(store).path for store in STORES)
    devices = {store_id(s).path: tuple(device_id(s, one).path for one in names) for s, names in STORES.items()}
    return {control_id().path: (superhub_id().path,), superhub_id().path: stores, **devices}


def conversations(seen: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sessions, each with its frames in order, sorted by parent, child and time."""
    found: dict[str, dict[str, Any]] = {}
    for line in seen:
        if "session" in line:
            about = {"parent": line["parent"], "child": line["child"], "frames": []}
            one = found.setdefault(line["session"], about)
            one["frames"].append((line["at"], line["sender"], line["frame"]))
    # One that was cut before the parent had greeted says nothing that could be compared.
    greeted = [one for one in found.values() if any(sender == "parent" for _, sender, _ in one["frames"])]
    ordered = sorted(greeted, key=lambda one: (one["parent"], one["child"], one["frames"][0][0]))
    return [{**one, "name": f"{one['child']} #{number}"} for number, one in enumerate(ordered, start=1)]


def calls(seen: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calls of the operator API; of many equal requests the first few answers that differ."""
    kept: dict[tuple[str, str], set[str]] = {}
    found = []
    for line in seen:
        if "call" not in line:
            continue
        answers = kept.setdefault((line["call"], line["request"]), set())
        if line["response"] not in answers and len(answers) < _TAKES:
            answers.add(line["response"])
            found.append({"method": line["call"], "request": line["request"], "response": line["response"]})
    return found


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.recordings", description=__doc__)
    parser.add_argument("--version", default=__version__, help="the version whose recording this is")
    parser.add_argument("--out", type=Path, default=archive.ROOT, help="where the version's folder goes")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    record(arguments.version, arguments.out)
    sys.stdout.write(f"recorded {arguments.version} in {time.monotonic() - began_s:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
