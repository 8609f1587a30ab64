"""The Node.js example (@grpc/grpc-js) at a real control over mTLS: lists, pages, watches, resumes, is refused (O2)."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
import subprocess
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.control.control_kit import CONTROL, DEVICES, POLICY, World, intent, inventory, make_world, plan
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.trust.statements import IntentKind

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import CredentialsFactory, TrustKeys

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "node"
INSTALL_WITHIN_S = 240

# Installing asks a registry, on a machine that may be busy.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed from its lock as anybody would."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        sentence = "the Node.js client needs node >= 18 and npm: install both (Debian: apt-get install nodejs npm)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    directory = tmp_path_factory.mktemp("example") / "node"
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"],
        cwd=directory,
        check=False,
        capture_output=True,
        text=True,
        timeout=INSTALL_WITHIN_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return directory


@pytest.fixture
def world(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> World:
    directory = tmp_path / "control"
    directory.mkdir()
    return make_world(directory, credentials, trust_keys, make_manifest())


class Desk:
    """Where the example is called, by whom."""

    def __init__(self, example: Path, address: str, identity: Path) -> None:
        self.example = example
        self.address = address
        self.identity = identity

    async def start(self, *arguments: str) -> Process:
        return await asyncio.create_subprocess_exec(
            "node",
            *("main.js", "--protos", str(ROOT / "proto"), "--address", self.address),
            *("--node", CONTROL.uri, "--identity", str(self.identity), *arguments),
            cwd=self.example,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str) -> tuple[int | None, list[dict[str, Any]], str]:
        """Exit code, the lines it printed, what it complained of."""
        process = await self.start(*arguments)
        out, complaint = await process.communicate()
        return process.returncode, [json.loads(line) for line in out.splitlines()], complaint.decode()

    @asynccontextmanager
    async def watching(self, wave_id: str) -> AsyncIterator[asyncio.StreamReader]:
        """Lines of a watch, which is ended at the end."""
        process = await self.start("watch", wave_id)
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()
            await process.communicate()


def identity_of(world: World, path: str) -> Path:
    """A directory with that node's identity."""
    made, directory = world.credentials(path), world.directory.parent / path.replace("/", "-")
    directory.mkdir(exist_ok=True)
    for name, pem in (("node.key", made._key_pem), ("node.crt", made._chain_pem), ("ca.crt", made._ca_pem)):
        (directory / name).write_bytes(pem)
    return directory


def test_the_lock_names_no_registry() -> None:
    """What is installed is known by its hash, wherever it comes from."""
    lock = json.loads((EXAMPLE / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert [name for name, entry in packages.items() if "resolved" in entry] == []
    assert [name for name, entry in packages.items() if not entry.get("integrity", "").startswith("sha512-")] == []
    assert not re.search(r"registry", json.dumps(lock))


async def test_it_lists_pages_and_filters(world: World, example: Path) -> None:
    """O2: every page, each wave once, newest first."""
    async with world.serving() as served, served.calling() as stub:
        await stub.ApplyInventory(inventory())
        for percent in (1, 2, 3):
            policy = POLICY.replace(b"percentage: 100", b"percentage: %d" % percent)
            await stub.PlanWave(plan(wave=f"w{percent}", policy=policy))
        await stub.SubmitIntent(intent(world, IntentKind.START_WAVE, wave_id="w2"))
        desk = Desk(example, served.address, identity_of(world, "operator/alice"))
        code, waves, complaint = await desk.run("waves", "--page-size", "1")
        assert (code, complaint) == (0, "")
        assert [wave["wave_id"] for wave in waves] == ["w3", "w2", "w1"]
        code, waves, _ = await desk.run("waves", "--state", "running")
        assert [(wave["wave_id"], wave["state"]) for wave in waves] == [("w2", "WAVE_STATE_RUNNING")]
        code, waves, complaint = await desk.run("waves", "--page-size", "5000")
        assert (code, waves) == (1, [])
        assert complaint.startswith("INVALID_ARGUMENT BAD_REQUEST: page_size")


async def test_it_watches_and_resumes(world: World, example: Path) -> None:
    """O2: a watch outlives a restart of control, shows what changed, and nothing twice."""
    async with world.serving() as served, served.calling() as stub:
        port = served.control.port
        await stub.ApplyInventory(inventory())
        await stub.PlanWave(plan())
        desk = Desk(example, served.address, identity_of(world, "operator/alice"))
    world.config = dataclasses.replace(world.config, listen=f"127.0.0.1:{port}")
    async with asyncio.timeout(120), desk.watching("142") as lines:
        async with world.serving():
            assert json.loads(await lines.readline())["state"] == "WAVE_STATE_PLANNED"
        async with world.serving() as served, served.calling() as stub:
            while not served.control.core.changes._waiting:  # noqa: ASYNC110  # until it has come back to this one
                await asyncio.sleep(0.01)
            await stub.SubmitIntent(intent(world, IntentKind.START_WAVE))
            assert json.loads(await lines.readline())["state"] == "WAVE_STATE_RUNNING"


@pytest.mark.parametrize("command", [("waves",), ("watch", "142")], ids=lambda command: command[0])
async def test_a_device_is_refused(world: World, example: Path, command: tuple[str, ...]) -> None:
    """P2: the certificate is of the fleet, and of no operator."""
    async with world.serving() as served:
        desk = Desk(example, served.address, identity_of(world, DEVICES[0]))
        code, waves, complaint = await desk.run(*command)
    assert (code, waves) == (1, [])
    assert complaint.startswith("PERMISSION_DENIED FORBIDDEN")


async def test_a_stranger_is_refused(world: World, example: Path, tmp_path: Path) -> None:
    """P2: an operator of another CA that trusts this fleet's; its handshake fails, nothing is answered."""
    now = datetime.now(UTC)
    write_node(
        tmp_path / "stranger",
        FleetCa.create("test.example", now - timedelta(days=1)),
        NodeId("test.example", "operator/alice"),
        not_before=now - timedelta(hours=1),
        not_after=now + timedelta(days=1),
    )
    (tmp_path / "stranger" / "ca.crt").write_bytes(world.credentials("operator/alice")._ca_pem)
    async with world.serving() as served:
        desk = Desk(example, served.address, tmp_path / "stranger")
        code, waves, complaint = await desk.run("waves", "--deadline-ms", "3000")
    assert (code, waves) == (1, [])
    assert complaint.split()[0] in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}, complaint
