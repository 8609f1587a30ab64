"""What a cut renewal leaves beside the pair in use goes at the next start, and nothing else does."""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from control.app import _credentials as read_credentials
from tests.conftest import FLEET
from wavemesh.identity.ca import FleetCa, certificates_pem, write_node
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.files import install_pair, sweep_pairs
from wavemesh.identity.keys import key_pem
from wavemesh.identity.live import LiveCredentials
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.durable import Disk, DiskFaultError

if TYPE_CHECKING:
    from pathlib import Path

NODE = NodeId(FLEET, "region/midwest/store/store-208")
NOW = datetime.now(UTC)
UNFINISHED = ("pair-1a/node.key.tmp", "pair-2b/node.key", "pair-2b/node.crt.tmp", "pair-3c/node.key", "current.tmp")


class Counting(Disk):
    """Counts what is done; a broken one removes nothing."""

    def __init__(self, *, is_broken: bool = False) -> None:
        self.steps, self._is_broken = 0, is_broken

    def unlink(self, path: Path) -> None:
        self.steps += 1
        if self._is_broken:
            msg = f"{path}: read-only file system"
            raise DiskFaultError(msg)
        super().unlink(path)

    def fsync_dir(self, directory: Path) -> None:
        self.steps += 1
        super().fsync_dir(directory)


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def leave(directory: Path, *files: str) -> None:
    for name in files:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(b"half")


def renew(directory: Path, ca: FleetCa) -> str:
    """Install another pair; the name of its directory."""
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = ca.issue(NODE, key.public_key(), not_before=NOW, not_after=NOW + timedelta(days=1))
    serial = f"{leaf.serial_number:x}"
    install_pair(directory, serial, key_pem(key), certificates_pem([leaf]), Disk())
    return f"pair-{serial}"


@pytest.fixture
def directory(tmp_path: Path, fleet_ca: FleetCa) -> Path:
    write_node(tmp_path, fleet_ca, NODE, not_before=NOW, not_after=NOW + timedelta(days=1))
    return tmp_path


@pytest.mark.parametrize("renewed", [0, 1], ids=["the first pair in use", "a renewed pair in use"])
def test_a_start_removes_unfinished_pairs_and_keeps_the_one_in_use(
    directory: Path, fleet_ca: FleetCa, renewed: int
) -> None:
    """D11, D9: the key of a renewal that the power cut was never used, and nobody else would remove it."""
    for _ in range(renewed):
        renew(directory, fleet_ca)
    whole, before = names(directory), NodeCredentials.load(directory).certificate
    leave(directory, *UNFINISHED)
    (directory / "pair-4d").mkdir()
    live = LiveCredentials.load(directory)
    assert live.current.certificate == before
    assert names(directory) == whole
    assert len(list(directory.glob("pair-*"))) == renewed
    assert NodeCredentials.load(directory).certificate == before


def test_a_start_removes_the_pairs_that_the_one_in_use_replaced(directory: Path, fleet_ca: FleetCa) -> None:
    """A cut right after the switch leaves the retired private key: it goes too."""
    retired = {name: (directory / name).read_bytes() for name in ("node.key", "node.crt")}
    in_use = renew(directory, fleet_ca)
    whole = names(directory)
    for name, content in retired.items():
        (directory / name).write_bytes(content)
    leave(directory, "pair-5e/node.key", "pair-5e/node.crt")
    assert LiveCredentials.load(directory).current.certificate == NodeCredentials.load(directory).certificate
    assert not set(retired) & names(directory)
    assert names(directory) == whole
    assert (directory / in_use / "node.key").exists()


def test_what_is_no_pair_stays(directory: Path) -> None:
    leave(directory, "pair-of-shoes/node.key", "joining.key", "authority.crt")
    (directory / "pair-6f").symlink_to(directory / "pair-of-shoes")
    whole = names(directory)
    sweep_pairs(directory, Disk())
    assert names(directory) == whole


def test_where_nothing_is_left_nothing_is_done(directory: Path) -> None:
    disk = Counting()
    LiveCredentials.load(directory, disk)
    assert disk.steps == 0


def test_a_node_starts_though_nothing_can_be_removed(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    leave(directory, *UNFINISHED)
    disk = Counting(is_broken=True)
    assert LiveCredentials.load(directory, disk).node_id == NODE
    assert disk.steps == 1
    assert "read-only file system" in caplog.text


def test_a_pair_that_somebody_is_installing_is_not_swept(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A ceremony beside a node that starts: the switch must not come to name a pair that was just removed."""
    leave(directory, "pair-1a/node.key")
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        sweep_pairs(directory, Disk())
    finally:
        os.close(descriptor)
    assert (directory / "pair-1a" / "node.key").exists()
    assert "stays until the next start" in caplog.text
    sweep_pairs(directory, Disk())
    assert not (directory / "pair-1a").exists()


def test_control_sweeps_at_its_start_as_well(tmp_path: Path, fleet_ca: FleetCa) -> None:
    """Its pair changes by ceremonies alone, which a cut may end like any other installation."""
    identity = tmp_path / "identity"
    identity.mkdir()
    write_node(identity, fleet_ca, NodeId(FLEET, "control/c-1"), not_before=NOW, not_after=NOW + timedelta(days=1))
    whole = names(identity)
    leave(identity, *UNFINISHED)
    read_credentials(tmp_path, SystemClock())
    assert names(identity) == whole
