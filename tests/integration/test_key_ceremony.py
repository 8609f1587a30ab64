"""The drill of docs/guide/key-ceremonies.md: its very commands, against a real control, and a node that follows."""

from __future__ import annotations

import asyncio
import io
import re
import shlex
import shutil
import sys
from contextlib import asynccontextmanager, chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from control.releases import HOLDS_KEY, METADATA_KEY
from edgectl.contexts import Context, Contexts, save_contexts
from edgectl.main import run
from lab.processes import wait_until
from tests.integration.test_control_kill import free_address
from tests.unit.control.control_kit import CONTROL, World, dialling, identity_of
from wavemesh.codec.statements import decode
from wavemesh.errors import GateError
from wavemesh.trust.envelope import verify_role
from wavemesh.trust.metadata import TrustedMetadata, load_trusted
from wavemesh.trust.statements import Envelope, HoldList, TrustMetadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.conftest import CredentialsFactory, TrustKeys
    from tests.session_kit import MemorySink

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "key-ceremonies.md"
STEP = re.compile(r"^```sh\n(.*?)^```$|^<!-- drill: (.*?) -->$", re.MULTILINE | re.DOTALL)
PATIENCE_S = 60

pytestmark = pytest.mark.timeout(240)


def steps() -> Iterator[tuple[list[list[str]], str]]:
    """Commands of each block, or what the drill looks at between two."""
    for match in STEP.finditer(GUIDE.read_text()):
        commands = [shlex.split(line) for line in (match[1] or "").replace("\\\n", " ").splitlines()]
        yield commands, match[2] or ""


@dataclass(slots=True)
class Drill:
    """A directory in which people type, the control they type at, and a node that sleeps from time to time."""

    directory: Path
    world: World
    address: str
    awake: TrustedMetadata | None = None
    seen: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def types(self, words: list[str]) -> tuple[int, str]:
        """One command, in this process: a new one costs more than the command."""
        told = io.StringIO()
        with chdir(self.directory), redirect_stdout(told), redirect_stderr(told):
            if words[0] == "rm":
                Path(words[1]).unlink()
                return 0, ""
            assert words[0] == "edgectl", words
            code = run(words[1:])
        self.told.append(told.getvalue())
        return code, told.getvalue()

    @property
    def pinned(self) -> bytes:
        """What every node was given at the factory."""
        return (self.directory / "stick" / "1.root.json").read_bytes()

    def believe(self, sink: MemorySink, previous: TrustedMetadata | None = None) -> TrustedMetadata:
        """What a node makes of what control sends; hold lists too, by the keys of that metadata."""
        published = decode(TrustMetadata, sink.resources[METADATA_KEY].content)
        trusted = load_trusted(self.pinned, published, datetime.now(UTC), previous)
        verify_role(decode(Envelope, sink.resources[HOLDS_KEY].content), HoldList, trusted)
        return trusted

    async def sees(self, what: str) -> None:
        """Check what a node that was awake all the time, and one that slept since the factory, believe."""
        async with dialling(self.world, lambda: self.address) as region, asyncio.timeout(PATIENCE_S):
            sink = region.sink
            while not self._shows(sink, what):
                sink.changed.clear()
                await sink.changed.wait()
            self.awake = self.believe(sink, self.awake)
            slept = self.believe(sink)
        assert slept.versions == self.awake.versions
        self.seen.append(what)

    def _shows(self, sink: MemorySink, what: str) -> bool:
        if not {METADATA_KEY, HOLDS_KEY} <= sink.resources.keys():
            return False
        trusted = self.believe(sink)
        kind, name = what.split()
        if kind == "root":
            return trusted.root.version == int(name)
        if kind == "published":
            return name in trusted.releases()
        return kind == "revoked" and trusted.is_revoked(name)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[None]:
    """Control as a process of its own, until the block ends."""
    with (directory / "stderr.log").open("ab") as log:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "control", "--dir", str(directory), stderr=log
        )
    try:
        yield
    finally:
        child.terminate()
        await child.wait()


@pytest.fixture
def drill(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, monkeypatch: pytest.MonkeyPatch
) -> Drill:
    """Certificates and images are there; keys are not."""
    directory = tmp_path / "drill"
    (directory / "control").mkdir(parents=True)
    for image in ("firmware-v3.8.2.img", "scanner-v1.0.0.img"):
        (directory / image).write_bytes(image.encode() * 100)
    address = free_address()
    (directory / "control" / "config.toml").write_text(f'listen = "{address}"\ntick_s = 0.2\ndrain_s = 0.5\n')
    for path, target in {CONTROL.path: "control/identity", "operator/alice": "alice"}.items():
        shutil.copytree(identity_of(credentials, path, tmp_path / path.replace("/", "-")), directory / target)
    contexts = Contexts("control", {"control": Context("control", address, CONTROL, directory / "alice")})
    save_contexts(directory / "contexts.toml", contexts)
    monkeypatch.setenv("EDGECTL_CONFIG", str(directory / "contexts.toml"))
    return Drill(directory, World(directory / "control", credentials, trust_keys), address)


async def test_the_guide_is_a_drill_that_works(drill: Drill) -> None:
    """From nothing to a release, a rotated root, lost keys under the threshold, a class, control's new keys."""
    todo = list(steps())
    starts = [index for index, (_, look) in enumerate(todo) if look.startswith("control starts")]
    bounds = [0, *starts, len(todo)]
    assert len(starts) == 2
    await play(drill, todo[: bounds[1]])
    for first, end in pairwise(bounds[1:]):
        async with running(drill.directory / "control"):
            await serves(drill)
            await play(drill, todo[first + 1 : end])
    looks = [look for _, look in todo if look and not look.startswith("control starts")]
    assert drill.seen == looks
    assert drill.awake is not None
    assert drill.awake.versions["root"] == 5
    with pytest.raises(GateError, match="battery drains"):
        drill.awake.require_release("scanner-v1.0.0")
    assert drill.awake.role_of("scanner-v1.0.0") == "class-scanner"
    assert any("signatures" in told and "scan-jon (" in told for told in drill.told)


async def play(drill: Drill, todo: list[tuple[list[list[str]], str]]) -> None:
    for commands, look in todo:
        for words in commands:
            code, told = await asyncio.to_thread(drill.types, words)
            assert code == 0, f"{shlex.join(words)}\n{told}"
        if look:
            await drill.sees(look)


async def serves(drill: Drill) -> None:
    """Until control answers."""
    words = ["edgectl", "release", "list"]
    await asyncio.to_thread(wait_until, lambda: drill.types(words)[0] == 0, PATIENCE_S, "control to answer")


def test_every_step_can_be_typed_again(drill: Drill) -> None:
    """Up to control's first start: typed twice, nothing changes, and what was said before is not taken back."""
    first = next(index for index, (_, look) in enumerate(steps()) if look)
    commands = [words for block, _ in list(steps())[:first] for words in block]
    for words in commands:
        assert drill.types(words)[0] == 0
    before = {path: path.read_bytes() for path in drill.directory.rglob("*.*") if path.is_file()}
    for words in commands:
        code, told = drill.types(words)
        assert code == 0, f"{shlex.join(words)}\n{told}"
    assert {path: path.read_bytes() for path in drill.directory.rglob("*.*") if path.is_file()} == before
