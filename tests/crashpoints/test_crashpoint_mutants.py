"""The campaign finds what it is for: a fault put into the agent makes it fail, and it names the point (D9)."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from device.agent import Agent
from device.config import Backend
from device.imaging import Imaging
from device.progress import Arm, CommitBoot, Persist, Step
from device.slots.simulated import SimulatedBootControl
from device.state import StateFile
from device.transitions import committed
from device.update import TRANSITIONS
from tests.crashpoints.campaign import Options, explore, replay
from tests.crashpoints.components import tale_of
from wavemesh.runtime.durable import Disk
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from device.progress import Event, Progress

OPTIONS = Options(double_of=0, ends_at_first_failure=True)


def removed_fsync() -> AbstractContextManager[Any]:
    """A state file is renamed into place before its bytes are durable."""

    def write_new(self: Disk, path: Path, data: bytes, mode: int = 0o600) -> None:
        if path.exists():
            self.unlink(path)
        descriptor = self.create(path, mode)
        self.write(descriptor, data, path)
        os.close(descriptor)

    return patch.object(Disk, "write_new", write_new)


def removed_directory_sync() -> AbstractContextManager[Any]:
    """The commit is renamed into place, and nobody makes the new name durable before it is read back."""
    commit = SimulatedBootControl.commit

    def commit_unsynced(self: SimulatedBootControl) -> None:
        with patch.object(type(self._disk), "fsync_dir", lambda *_: None):
            commit(self)

    return patch.object(SimulatedBootControl, "commit", commit_unsynced)


def swapped_steps() -> AbstractContextManager[Any]:
    """Try-once is set before the attempt is burned."""
    handle = Agent._perform

    async def perform(self: Agent, effect: Any) -> None:
        if (
            isinstance(effect, Persist)
            and self.progress.state is UpdateState.ARMED
            and self.progress.target is not None
        ):
            await handle(self, Arm(self.progress.target.boot))
        await handle(self, effect)

    return patch.object(Agent, "_perform", perform)


def written_in_place() -> AbstractContextManager[Any]:
    """The state document is written over the old one."""

    def replace_in_place(self: StateFile, document: Any) -> None:
        from device.state import _encode

        self._disk.write_new(self._path, _encode(document))
        self._disk.fsync_dir(self._path.parent)

    return patch.object(StateFile, "_replace", replace_in_place)


def skipped_verification() -> AbstractContextManager[Any]:
    """What was read back from the slot is compared with nothing."""

    async def put(self: Imaging, image: Any) -> None:
        writer = await self.slots.begin(self.slot, image)
        try:
            await self._fill(writer, image)
            await writer.sync()
        finally:
            await writer.close()

    return patch.object(Imaging, "put", put)


@contextmanager
def commit_reported_before_it_is_read_back() -> Iterator[None]:
    """UPDATED is said first, and the boot environment written afterwards."""

    def commit(progress: Progress, _event: Event) -> Step:
        said = committed(progress)
        return Step(said.progress, (*said.effects, CommitBoot()))

    healthy = next(event for event in TRANSITIONS[UpdateState.TRIAL] if event.__name__ == "Healthy")
    with patch.dict(TRANSITIONS[UpdateState.TRIAL], {healthy: commit}):
        yield


@pytest.mark.parametrize(
    ("mutant", "scenario", "problem"),
    [
        (removed_fsync, "rotation", "cannot be read"),
        (removed_directory_sync, "update", "runs after"),
        (swapped_steps, "update", "attempts are burned"),
        (written_in_place, "rotation", "cannot be read"),
        (skipped_verification, "garbled-download", "does not hold what was published"),
        (commit_reported_before_it_is_read_back, "update", "runs after"),
    ],
)
def test_a_fault_is_found_and_its_point_named(mutant: Any, scenario: str, problem: str) -> None:
    with mutant():
        result = explore(tale_of("device", Backend.SIMULATED.value, scenario), OPTIONS)
        [failure, *_] = result.failures
        assert problem in " ".join(failure.problems), failure
        assert result.survived < result.points
        again, _ = replay(tale_of("device", Backend.SIMULATED.value, scenario), failure.point, OPTIONS)
    assert any(problem in one for one in again), "the point fails again by its name"
    sound, _ = replay(tale_of("device", Backend.SIMULATED.value, scenario), failure.point, OPTIONS)
    assert sound == [], "and survives without the fault"
