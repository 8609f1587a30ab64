"""The story of one device, from a durable state to its rest: boots, resets, and the points at which power may go.

``Standing`` is all that outlives a power cut: what the medium holds, what the hub knows, what happened so far. ``tell``
boots the device from there by the rules of firmware, bootloader and board (device/firmware.py, device/resets.py) and
lets it run until it rests; meanwhile a watcher hears of each durable step and may take the standing that a cut there
would leave.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from device.backend import open_slots
from device.bootenv import ResetReason
from device.firmware import Firmware
from device.resets import Board, BootUp, End, StartAgent
from tests.crashpoints.cut_disk import CutDisk, DurableStep
from tests.crashpoints.device_boot import REBOOTED, RESTED, DeviceBoot, StoryError, Surroundings, config_for
from tests.crashpoints.device_key import key_of
from tests.crashpoints.fleet import BEGAN_AT, the_fleet
from tests.crashpoints.hub import Hub, HubState
from tests.crashpoints.medium import Image, Medium, Persists, lay_image
from tests.crashpoints.oracle import is_way_back
from tests.crashpoints.oracle_formats import FORMATS, readers
from tests.crashpoints.virtual_time import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from device.backend import SlotSystem
    from device.config import Backend
    from device.platform import BootRecord
    from device.resets import Action
    from tests.crashpoints.campaign import Look

MAX_BOOTS = 30
PATIENCE_S = 2 * 3600.0
RAM_DISK = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Standing:
    """What outlives a power cut. ``trial_boots``: how often the bootloader booted a trial that was no way back."""

    image: Image
    hub: HubState
    reason: ResetReason = ResetReason.POWER_ON
    trial_boots: int = 0
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class World:
    """What does not change in a scenario. ``act`` is asked when the device has nothing to do now and may go on with the
    plot: True if it did; then ``is_over`` says whether this is rest, else time goes on. ``agent_of`` makes the agent
    that of another version while that one runs.
    """

    backend: Backend
    act: Callable[[DeviceBoot], bool]
    is_over: Callable[[DeviceBoot], bool]
    without_scanner: frozenset[str] = frozenset()
    agent_of: Callable[[str], AbstractContextManager[object]] | None = None


@dataclass(slots=True)
class Story:
    """One telling. ``known``: where stories of this world rest after a reset, by the key of what the reset left; a
    story that comes to such a reset ends there.
    """

    world: World
    standing: Standing
    watcher: Look[Standing] | None = None
    log: list[str] = field(default_factory=list)
    known: dict[str, Standing] = field(default_factory=dict)
    _directory: Path = field(init=False)
    _disk: CutDisk = field(init=False)
    _hub: Hub = field(init=False)
    _clock: VirtualClock = field(init=False)
    _record: BootRecord = field(init=False)

    def tell(self) -> Standing:
        """Where the device rests; raises StoryError, and what the model finds impossible."""
        self._clock = VirtualClock(BEGAN_AT, self.standing.elapsed_s + 10.0)
        board = Board(watchdog_s=60.0, boot_timer_s=120.0)
        passed: list[str] = []
        with tempfile.TemporaryDirectory(dir=RAM_DISK, prefix="crashpoints-") as directory:
            self._directory = Path(directory) / "0"
            actions = board.power_up(self.standing.reason, self._clock.elapsed_s)
            for _ in range(MAX_BOOTS):
                if self._is_known(actions, passed):
                    break
                how = self._perform(actions)
                if how == RESTED:
                    self.standing = self._cut(lambda: False)
                    break
                end = End.REBOOT if how == REBOOTED else self._crashed(how)
                actions = board.agent_ended(end, self._clock.elapsed_s) or board.due(self._clock.elapsed_s + 1)
            else:
                msg = f"no rest after {MAX_BOOTS} boots: {self.log[-3:]}"
                raise StoryError(msg)
        self.known.update(dict.fromkeys(passed, self.standing))
        return self.standing

    def _is_known(self, actions: tuple[Action, ...], passed: list[str]) -> bool:
        """A reset loses what is not durable, whoever asked for it; so what follows may be known from another story."""
        [action] = actions
        if not isinstance(action, BootUp) or not hasattr(self, "_disk"):
            return False
        self.standing = replace(self._cut(lambda: False), reason=action.reason)
        key = key_of(self.standing)
        if key in self.known:
            self.standing = self.known[key]
            return True
        passed.append(key)
        return False

    def _crashed(self, how: str) -> End:
        self.log.append(how)
        trial = self._firmware().is_trial(self._record.boot)
        return End.CRASH_ON_TRIAL if trial else End.CRASH

    def _perform(self, actions: tuple[Action, ...]) -> str:
        [action] = actions
        match action:
            case BootUp(reason):
                self._power_up(reason)
            case StartAgent():
                self._disk.is_on = self._hub.is_on = True
            case _:
                msg = f"the board does what nobody asked for: {action}"
                raise StoryError(msg)
        return self._run_agent()

    def _power_up(self, reason: ResetReason) -> None:
        self._lay(self.standing)
        firmware = self._firmware()
        self._record = firmware.boot(reason)
        if firmware.is_trial(self._record.boot) and not self._is_return():
            self.standing = replace(self.standing, trial_boots=self.standing.trial_boots + 1)
        self.log.append(f"boots {self._record.boot} after {reason.value}")

    def _is_return(self) -> bool:
        """Whether what is on trial is the way back after a commit, which takes no attempt."""
        read_boot, _ = readers(self.world.backend.value, 0)
        names = (FORMATS[self.world.backend.value].environment, "state/state.json", "state/state.json.prev")
        paths = {name: self._directory / name for name in names}
        image = {name: path.read_bytes() for name, path in paths.items() if path.exists()}
        return is_way_back(image, read_boot(image))

    def _lay(self, standing: Standing) -> None:
        self._directory = self._directory.with_name(str(int(self._directory.name) + 1))
        lay_image(self._directory, standing.image)
        (self._directory / "run").mkdir()
        self._disk = CutDisk(Medium(self._directory, standing.image), self)
        state = self._hub.state if hasattr(self, "_hub") else standing.hub
        self._hub = Hub(the_fleet(), state, self._clock)

    def _firmware(self) -> Firmware:
        self._disk.is_on = True
        return Firmware(self._directory, self._system(), 0)

    def _system(self) -> SlotSystem:
        return open_slots(self._directory, config_for(self.world.backend, self._directory), self._disk)

    def _run_agent(self) -> str:
        around = Surroundings(
            directory=self._directory,
            config=config_for(self.world.backend, self._directory),
            disk=self._disk,
            hub=self._hub,
            clock=self._clock,
            record=self._record,
            without_scanner=self.world.without_scanner,
            log=self.log,
            at_rest=self._rests,
        )
        with ExitStack() as stack:
            if self.world.agent_of is not None:
                stack.enter_context(self.world.agent_of(self._system().media.version(self._record.boot.slot)))
            return DeviceBoot(around).run()

    def _rests(self, boot: DeviceBoot) -> bool:
        if self._clock.elapsed_s > self.standing.elapsed_s + PATIENCE_S:
            msg = f"no rest after {PATIENCE_S:g} s in state {boot.agent.progress.state.name}: {self.log[-3:]}"
            raise StoryError(msg)
        return boot.is_idle and not self.world.act(boot) and self.world.is_over(boot)

    # --- what a cut leaves -------------------------------------------------------------------------------------------

    def _cut(self, persists: Persists) -> Standing:
        return Standing(
            image=self._disk.medium.after_cut(persists),
            hub=self._hub.state,
            reason=ResetReason.POWER_LOSS,
            trial_boots=self.standing.trial_boots,
            elapsed_s=self._clock.elapsed_s,
        )

    def before(self, step: DurableStep) -> None:
        """Of ``Observer``."""
        self._look(step, "before")

    def after(self, step: DurableStep) -> None:
        """Of ``Observer``."""
        self._look(step, "after")

    def _look(self, step: DurableStep, when: str) -> None:
        if self.watcher is not None:
            name = f"{step.kind} {step.path.relative_to(self._directory)}"
            self.watcher(name, when, self._cut, is_pending=self._disk.medium.is_pending)
