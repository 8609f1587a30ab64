"""The state document: atomic, checked, recovered; a burned attempt survives the loss of either copy (D9)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from device.bootenv import Boot, SlotName
from device.progress import Progress, Rules, Target
from device.state import FILE_NAME, PREVIOUS_NAME, Document, StateError, StateFile, StoredReport, WaveRecord
from device.values import from_plain, to_plain
from tests.stopping_disk import PowerCutError, StoppingDisk
from wavemesh.runtime.durable import Disk, DiskFullError
from wavemesh.session.frames import HeldResource, ResourceKey, ResourceVersion
from wavemesh.trust.statements import Digest, UpdateState

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 5, 1, tzinfo=UTC)
RULES = Rules("either", 300.0, False, 86_400.0, 40, 70.0, 0, True, "probe", ("lsusb | grep scanner",), ())
TARGET = Target("142", 1, "r", "3.8.2", Digest("a" * 64, 10), None, "1.0.0", "", NOW, Boot(SlotName.B, 2), RULES)
DOCUMENT = Document(
    "i" * 32,
    acknowledged=4,
    reports=(StoredReport("outcome", b"\x00\xff"),),
    held=(HeldResource(ResourceKey("order", "142/x"), ResourceVersion("e", 3), "d" * 64),),
    waves={"142": WaveRecord(burned=2, attempt=1, sequence=7, kind=8, gate="power-loss", envelope=b"e")},
    progress=Progress(UpdateState.ARMED, "142", TARGET, attempt=2, lease_expires_at=NOW),
    clock_floor=NOW,
)


def opened(path: Path, disk: Disk | None = None) -> StateFile:
    file = StateFile(path, disk or Disk(), "n" * 32)
    file.load(NOW)
    return file


def test_a_document_survives_its_form() -> None:
    assert from_plain(Document, to_plain(DOCUMENT)) == DOCUMENT


def test_what_an_older_agent_does_not_know_is_dropped() -> None:
    """Until COMMITTED changes are additive, and an agent that was rolled back to still reads its state."""
    assert from_plain(Document, {**to_plain(DOCUMENT), "added_later": 1}) == DOCUMENT


def test_committed_is_read_back(tmp_path: Path) -> None:
    opened(tmp_path).commit(DOCUMENT)
    found = opened(tmp_path)
    assert found.document == replace(DOCUMENT, serial=1)
    assert not found.recovered


def test_power_cut_at_every_step_leaves_old_or_new(tmp_path: Path) -> None:
    for steps in range(20):
        path = tmp_path / str(steps)
        opened(path).commit(DOCUMENT)
        file = opened(path)
        file._disk = StoppingDisk(steps)
        try:
            file.commit(replace(DOCUMENT, ping_ceiling=99))
        except PowerCutError:
            found = opened(path)
            assert found.document.ping_ceiling in {0, 99}
            assert found.document.reports == DOCUMENT.reports
            assert not found.recovered
        else:
            assert opened(path).document.ping_ceiling == 99
            return
    pytest.fail("the commit has more durable steps than the test has patience")


@pytest.mark.parametrize("name", [FILE_NAME, PREVIOUS_NAME])
def test_a_burned_attempt_survives_one_corrupt_copy(tmp_path: Path, name: str) -> None:
    file = opened(tmp_path)
    file.commit(replace(DOCUMENT, waves={}))
    file.commit(DOCUMENT, copies=2)
    damaged = bytearray((tmp_path / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / name).write_bytes(damaged)
    found = opened(tmp_path)
    assert found.document.waves["142"].burned == 2
    assert found.recovered is (name == FILE_NAME)


def test_when_both_copies_are_lost_no_old_permit_counts(tmp_path: Path) -> None:
    opened(tmp_path).commit(DOCUMENT, copies=2)
    for name in (FILE_NAME, PREVIOUS_NAME):
        (tmp_path / name).write_bytes(b"torn")
    found = opened(tmp_path)
    assert found.recovered
    assert found.document.burns_unknown_before == NOW
    assert found.document.incarnation == "n" * 32


def test_a_fresh_device_knows_that_nothing_was_burned(tmp_path: Path) -> None:
    found = opened(tmp_path)
    assert not found.recovered
    assert found.document.burns_unknown_before is None


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).commit(replace(DOCUMENT, format=2))
    with pytest.raises(StateError, match="newer agent"):
        opened(tmp_path)


class FullDisk(Disk):
    """Has no room while the reserve is there."""

    def __init__(self, reserve: Path) -> None:
        self.reserve = reserve

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        if self.reserve.exists():
            msg = "no space left"
            raise DiskFullError(msg)
        super().write(descriptor, data, path)


def test_a_full_disk_still_records_a_rollback(tmp_path: Path) -> None:
    """A rollback never waits for disk: the space for one record was set aside."""
    file = opened(tmp_path)
    file.reserve()
    file._disk = FullDisk(tmp_path / "reserve")
    file.commit(DOCUMENT)
    assert opened(tmp_path).document.waves == DOCUMENT.waves


def test_what_can_be_done_without_leaves_the_reserve_for_a_rollback(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.reserve()
    file._disk = FullDisk(tmp_path / "reserve")
    with pytest.raises(DiskFullError):
        file.commit(replace(DOCUMENT, logs_uploaded=7), may_cost_reserve=False)
    file.commit(DOCUMENT)
    assert opened(tmp_path).document.waves == DOCUMENT.waves


def test_contents_are_believed_by_digest_only(tmp_path: Path) -> None:
    file = opened(tmp_path)
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    file.store_content(digest, b"hello")
    assert file.content(digest) == b"hello"
    (tmp_path / "resources" / digest).write_bytes(b"hullo")
    assert file.content(digest) is None
    file.forget_contents()
    assert not (tmp_path / "resources" / digest).exists()
