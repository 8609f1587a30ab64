"""The seam sees all: in one real update each durable step that the kernel saw is one ``Disk`` was asked for (D9).

The real supervisor and agent run under strace. What goes around the seam is named here with the reason why no power cut
can make it matter; anything else that does fails the test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.device_directory import DeviceDirectory
from tests.device_kit import HubStandIn
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa

pytestmark = pytest.mark.timeout(120)

AROUND = {
    "run": "of this boot alone: a tmpfs on a real device, and whatever lies there is written anew",
    "hardware": "a probe's launcher makes it in a mount namespace of its own, on a tmpfs that ends with the probe",
    "state/log": "the log ring: a cut may cost its last lines, and a torn line is skipped",
}
CALLS = {
    "write": "write",
    "pwrite64": "write",
    "writev": "write",
    "fsync": "fsync",
    "fdatasync": "fsync",
    "ftruncate": "truncate",
    "truncate": "truncate",
    "fallocate": "allocate",
    "rename": "rename",
    "renameat": "rename",
    "renameat2": "rename",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "rmdir": "remove_dir",
    "mkdir": "create_dir",
    "mkdirat": "create_dir",
    "link": "link",
    "symlink": "symlink",
    "msync": "msync",
    "sync_file_range": "sync_file_range",
}
# Loaded by every Python of the device before anything else: the seam's own record.
RECORDER = """
import os
from wavemesh.runtime.durable import Disk
record = os.open({record!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def recorded(kind, name, at):
    primitive = getattr(Disk, name)
    def noted(self, *arguments, **named):
        path = arguments[at]
        if kind not in ("unlink", "create_dir") or path.exists() == (kind == "unlink"):
            os.write(record, f"{{kind}} {{path}}\\n".encode())
        return primitive(self, *arguments, **named)
    setattr(Disk, name, noted)
for kind, name, at in {primitives!r}:
    recorded(kind, name, at)
"""
PRIMITIVES = (
    ("write", "write", 2),
    ("fsync", "fsync", 1),
    ("fsync", "fsync_dir", 0),
    ("truncate", "truncate", 2),
    ("allocate", "allocate", 2),
    ("rename", "rename", 1),
    ("unlink", "unlink", 0),
    ("create_dir", "create_dir", 0),
    ("remove_dir", "remove_dir", 0),
)


class TracedDevice(DeviceDirectory):
    """Started under strace, which writes what the kernel sees to ``calls``."""

    def trace(self, directory: Path) -> None:
        """Switch it on."""
        self.calls, self.record = directory / "calls", directory / "record"
        (directory / "sitecustomize.py").write_text(RECORDER.format(record=str(self.record), primitives=PRIMITIVES))
        paths = f"{directory}:{Path(__file__).parents[2]}"
        # -D: the tracer stands aside, so that the process started here is the supervisor itself.
        tracer = ["strace", "-D", "-f", "-y", "-s0", "--seccomp-bpf", "-e", f"trace={','.join(CALLS)}"]
        command = [sys.executable, "-m", "device.supervisor", "--dir", str(self.path)]
        with (self.path / "run" / "stderr.log").open("ab") as errors:
            self._processes.append(
                subprocess.Popen(
                    [*tracer, "-o", str(self.calls), *command],
                    env={**os.environ, "PYTHONPATH": paths},
                    stderr=errors,
                )
            )

    def pid(self) -> int:
        return self._processes[-1].pid


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> Iterator[TracedDevice]:
    directory = TracedDevice(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    yield directory
    directory.stop()


def seen_by_the_kernel(text: str, root: Path) -> Counter[tuple[str, str]]:
    """(step, path below the root) of every call that succeeded."""
    seen: Counter[tuple[str, str]] = Counter()
    begun: dict[str, str] = {}
    for line in text.splitlines():
        process, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[process] = call.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", call):
            call = begun.pop(process) + resumed[1]
        found = re.match(r"(\w+)\((.*)\)\s+= (-?\d+)", call)
        if found is None or int(found[3]) < 0:
            continue
        paths = re.findall(r"(?<=[<\"])/[^>\"]*(?=[>\"])", found[2])
        inside = [path.removesuffix(" (deleted)") for path in paths if path.startswith(f"{root}/")]
        if inside:
            seen[CALLS[found[1]], os.path.relpath(inside[-1], root)] += 1
    return seen


def asked_of_the_seam(text: str, root: Path) -> Counter[tuple[str, str]]:
    """The same of the seam's own record."""
    steps = (line.partition(" ") for line in text.splitlines())
    return Counter((kind, os.path.relpath(path, root)) for kind, _, path in steps)


async def test_the_seam_sees_every_durable_step(
    tmp_path: Path, device: TracedDevice, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    hub = HubStandIn(trust_keys, credentials)
    traces = tmp_path / "traces"
    traces.mkdir()
    async with hub.serving():
        hub.order()
        device.configure(hub.port)
        device.trace(traces)
        await hub.until_state(UpdateState.COMMITTED)
        await hub.until(lambda: bool(hub.outcomes()))
        device.stop()
        ended = re.compile(rf"^{device.pid()} +\+\+\+ exited", re.MULTILINE)
        await hub.until(lambda: ended.search(device.calls.read_text()) is not None)
    seen = seen_by_the_kernel(device.calls.read_text(), device.path)
    asked = asked_of_the_seam(device.record.read_text(), device.path)
    below = {(kind, path): count for (kind, path), count in seen.items() if not _goes_around(path)}
    assert below == {(kind, path): count for (kind, path), count in asked.items() if not _goes_around(path)}
    assert {kind for kind, _ in below} >= {"write", "fsync", "rename", "unlink", "create_dir", "truncate", "allocate"}
    assert sum(below.values()) > 200


def _goes_around(path: str) -> bool:
    return any(path == name or path.startswith(f"{name}/") for name in AROUND)
