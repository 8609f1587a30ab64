"""Installing a renewed pair, cut at every durable step: a loadable pair is left, and the next one can be installed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.conftest import FLEET
from tests.stopping_disk import PowerCutError, StoppingDisk
from wavemesh.identity.ca import FleetCa, certificates_pem, write_node
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.files import install_pair
from wavemesh.identity.keys import key_pem
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from pathlib import Path

NODE = NodeId(FLEET, "region/midwest/store/store-208")


class CutDisk(StoppingDisk):
    """What was renamed or removed without a flush of its directory is undone."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self._undo: list[tuple[Path, Path, bytes | None]] = []

    def rename(self, source: Path, target: Path) -> None:
        before = target.read_bytes() if target.exists() else None
        super().rename(source, target)
        self._undo.append((target.parent, target, before))

    def unlink(self, path: Path) -> None:
        before = path.read_bytes() if path.exists() else None
        super().unlink(path)
        if before is not None:
            self._undo.append((path.parent, path, before))

    def fsync_dir(self, directory: Path) -> None:
        super().fsync_dir(directory)
        self._undo = [one for one in self._undo if one[0] != directory]

    def forget(self) -> None:
        """What a cut may undo, undone."""
        for parent, path, before in reversed(self._undo):
            if before is None:
                path.unlink(missing_ok=True)
            elif parent.exists():
                path.write_bytes(before)


class Pairs:
    """A directory with a first pair, and makers of the next ones."""

    def __init__(self, directory: Path, ca: FleetCa) -> None:
        self.directory, self._ca = directory, ca
        now = datetime.now(UTC)
        self.first = write_node(directory, ca, NODE, not_before=now, not_after=now + timedelta(days=1)).certificate

    def install(self, disk: Disk) -> int:
        """Install another pair; its serial, also when the power goes."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        leaf = self._ca.issue(NODE, key.public_key(), not_before=now, not_after=now + timedelta(days=1))
        self.serial = leaf.serial_number
        install_pair(self.directory, f"{leaf.serial_number:x}", key_pem(key), certificates_pem([leaf]), disk)
        return leaf.serial_number


def steps_of_an_installation(pairs: Pairs) -> int:
    disk = CutDisk(10_000)
    pairs.install(disk)
    return 10_000 - disk.steps_left


@pytest.mark.parametrize("renewed", [0, 1], ids=["first renewal", "second renewal"])
def test_every_cut_leaves_a_loadable_pair(tmp_path: Path, fleet_ca: FleetCa, renewed: int) -> None:
    probe = Pairs(tmp_path / "probe", fleet_ca)
    for _ in range(renewed):
        probe.install(Disk())
    count = steps_of_an_installation(probe)
    assert count > 8
    seen: set[str] = set()
    for cut in range(count):
        pairs = Pairs(tmp_path / f"cut-{cut}", fleet_ca)
        before = pairs.first.serial_number
        for _ in range(renewed):
            before = pairs.install(Disk())
        disk = CutDisk(cut)
        with pytest.raises(PowerCutError):
            pairs.install(disk)
        disk.forget()
        left = NodeCredentials.load(pairs.directory).certificate.serial_number
        assert left in {before, pairs.serial}, cut
        seen.add("old" if left == before else "new")
        last = pairs.install(Disk())
        assert NodeCredentials.load(pairs.directory).certificate.serial_number == last
        assert [one.name for one in pairs.directory.glob("pair-*")] == [f"pair-{last:x}"], cut
        assert not (pairs.directory / "node.key").exists()
    assert seen == {"old", "new"}
