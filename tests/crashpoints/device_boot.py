"""One boot of the device under test: the real agent, put together as device/app.py does, with what is around it played.

Real: agent, machine, store and state file, sink and trust, staging and imaging, trial, clearance, config store, slots,
boot control, rotation of the certificate. Played: the clock, the hub at the seam of the session, probes at the seam of
the probe runner, the power. No process, no thread, no wire.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, cast
from unittest.mock import patch

from device.agent import Agent
from device.backend import open_slots
from device.belief import Verifier
from device.config import Board, DeviceConfig, Grub, SlotPaths, Staging, Telemetry, Timing, Uboot
from device.config import Device as DeviceSection
from device.config import Hub as HubSection
from device.configs import ConfigStore
from device.equipment import Equipment
from device.gates.findings import Finding, Verdict
from device.gates.local import LocalGates
from device.health import HealthClient
from device.lkg import PackedLkg
from device.logs import DeviceLog
from device.platform import Sensors
from device.rotation import may_renew, wave_to_renew_for
from device.sink import DeviceSink
from device.state import StateFile
from device.status import StatusReporter
from device.store import DeviceStore
from device.tracing import Tracing
from tests.crashpoints.fleet import FSYNC_STEP_BYTES, SLOT_BYTES
from tests.crashpoints.hub import SeamArtifacts, SeamUpstream
from tests.crashpoints.virtual_time import VirtualLoop
from wavemesh.errors import WavemeshError
from wavemesh.identity.live import LiveCredentials
from wavemesh.identity.renewal import Renewal
from wavemesh.trust.freshness import ClockSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from device.config import Backend
    from device.platform import BootRecord
    from device.probes import ProbeRunner
    from tests.crashpoints.cut_disk import CutDisk
    from tests.crashpoints.hub import Hub
    from tests.crashpoints.virtual_time import VirtualClock
    from wavemesh.artifacts.transfer import ArtifactClient

REBOOTED, RESTED = "rebooted", "rested"


class StoryError(AssertionError):
    """The device came to no rest, or the agent does not start any more."""


def config_for(backend: Backend, directory: Path) -> DeviceConfig:
    """Production's times, but for a sign-off that is waited for half an hour; a small image's steps."""
    slots = directory / "slots"
    return DeviceConfig(
        device=DeviceSection("pos-tablet", "r2"),
        hub=HubSection("hub.invalid:1"),
        board=Board(backend=backend, slot_capacity_bytes=SLOT_BYTES),
        slots=SlotPaths(slots / "A.img", slots / "B.img"),
        grub=Grub(slots / "grubenv"),
        uboot=Uboot(slots / "fw_env.config"),
        timing=Timing(probe_settle_s=0.0, signoff_maximum_s=1800.0),
        staging=Staging(fsync_step_bytes=FSYNC_STEP_BYTES),
        telemetry=Telemetry(enabled=True),
    )


class QuietLog(DeviceLog):
    """Keeps its lines in memory: the ring is not durable by design, and stderr is for failures."""

    def __init__(self, directory: Path, clock: VirtualClock, lines: list[str]) -> None:
        super().__init__(directory, clock, timedelta(hours=24), 1 << 20)
        self._lines = lines

    def _write(self, level: str, text: str) -> None:
        self._lines.append(f"{level}: {text}")


@dataclass(frozen=True, slots=True)
class PlayedProbes:
    """Probes at the seam of ``ProbeRunner``: the scanner's driver is missing in some versions."""

    version: Callable[[], str]
    without_scanner: frozenset[str]

    async def run(self, gate: str, command: str, extra: Mapping[str, str] | None = None) -> Finding:
        """Run one."""
        if gate.startswith("peripheral:") and self.version() in self.without_scanner:
            return Finding(gate, Verdict.BAD, f"{command!r}: exit code 1; no output")
        return Finding(gate, Verdict.GOOD)


class ThreadAtOnce:
    """In the place of a thread that asks what may block: nothing blocks here."""

    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], name: str, daemon: bool) -> None:
        self.start = partial(target, *args)


class Played:
    """Implements ``Power``: a reboot ends the boot where it is asked for."""

    def __init__(self, record: BootRecord, off: Callable[[], None]) -> None:
        self._record = record
        self._off = off

    def boot(self) -> BootRecord:
        return self._record

    def pet(self) -> None:
        """The watchdog sleeps."""

    async def step(self, name: str) -> None:
        """Nobody waits here: power goes at the durable steps."""

    def stop(self) -> None:
        """No agent ends in order here."""

    async def reboot(self) -> NoReturn:
        self._off()
        await asyncio.Event().wait()
        raise AssertionError


@dataclass(slots=True)
class Surroundings:
    """What one boot is given. ``at_rest`` is asked when all waits: True ends the boot."""

    directory: Path
    config: DeviceConfig
    disk: CutDisk
    hub: Hub
    clock: VirtualClock
    record: BootRecord
    without_scanner: frozenset[str]
    log: list[str]
    at_rest: Callable[[DeviceBoot], bool]


class DeviceBoot:
    """Run one boot with ``run``; it says how it ended."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self._ended: asyncio.Future[str]
        self._agent: Agent
        self._upstream: SeamUpstream
        self.equipment: Equipment

    @property
    def agent(self) -> Agent:
        """The agent, once it started."""
        return self._agent

    @property
    def is_idle(self) -> bool:
        """Whether agent and session have nothing left to do now."""
        return self._upstream.is_idle()

    def run(self) -> str:
        """``REBOOTED``, ``RESTED``, or why the agent ended."""
        loop = VirtualLoop(self.around.clock, self._look)
        try:
            with (
                patch("device.gates.asking.threading", SimpleNamespace(Thread=ThreadAtOnce)),
                patch("device.gates.local.os", SimpleNamespace(urandom=lambda size: (b"probe..." * size)[:size])),
            ):
                return loop.run_until_complete(self._live())
        finally:
            self.around.disk.is_on = self.around.hub.is_on = False
            loop.close()

    async def _live(self) -> str:
        self._ended = asyncio.get_running_loop().create_future()
        try:
            agent, renewal = self._compose()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one) for one in (self._upstream.run(), agent.run(), renewal.run())]
                how = await self._ended
                self.around.disk.is_on = self.around.hub.is_on = False
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            ended, others = errors.split(WavemeshError)
            if others is not None:
                raise others.exceptions[0] from None
            how = f"the agent ended: {ended}"
        except WavemeshError as error:
            how = f"the agent does not start: {error!r}"
        return how

    def _look(self) -> None:
        if not hasattr(self, "_agent") or self._ended.done():
            return
        try:
            if self.around.at_rest(self):
                self._end(RESTED)
        except StoryError as error:
            # Raised where the tasks are awaited, so that they end in order.
            self._ended.set_exception(error)

    def _end(self, how: str) -> None:
        self.around.disk.is_on = self.around.hub.is_on = False
        with suppress(asyncio.InvalidStateError):
            self._ended.set_result(how)

    def _resources_changed(self) -> None:
        self._agent.resources_changed()

    def _compose(self) -> tuple[Agent, Renewal]:
        around, clock, disk = self.around, self.around.clock, self.around.disk
        directory, board = around.directory, around.config.board
        log = QuietLog(directory / "run" / "log", clock, around.log)
        credentials = LiveCredentials.load(directory / "identity", disk)
        tracing = Tracing(credentials.node_id, clock, around.config.telemetry)
        file = StateFile(directory / "state", disk, secrets.token_hex(16))
        file.load(clock.now())
        file.reserve()
        store = DeviceStore(file, credentials, clock, log, tracing)
        verifier = Verifier((directory / "trust" / "root.json").read_bytes(), credentials)
        sink = DeviceSink(
            store=store,
            verifier=verifier,
            clock=clock,
            log=log,
            source=ClockSource.HARDWARE,
            changed=self._resources_changed,
        )
        upstream = self._upstream = SeamUpstream(around.hub, store, sink)
        system = open_slots(directory, around.config, disk)
        probes = cast("ProbeRunner", PlayedProbes(lambda: equipment.facts().firmware_version, around.without_scanner))
        equipment = self.equipment = Equipment(
            directory=directory,
            node_id=credentials.node_id,
            config=around.config,
            clock=clock,
            log=log,
            store=store,
            sink=sink,
            slots=system.slots,
            boot_control=system.boot_control,
            power=Played(around.record, lambda: self._end(REBOOTED)),
            gates=LocalGates(
                sensors=Sensors(board.power_supply, board.thermal, board.hwmon, board.inhibit),
                slots=system.slots,
                boot_control=system.boot_control,
                directory=directory,
                probes=probes,
                hooks=None,
                store=store,
                disk=disk,
                log=log,
            ),
            configs=ConfigStore(directory / "state" / "config", disk),
            lkg=PackedLkg(directory / "state" / "lkg.pack", disk),
            probes=probes,
            health=HealthClient(
                upstream=upstream,
                store=store,
                sink=sink,
                credentials=credentials,
                hub=verifier.hub,
                clock=clock,
                timeout_s=around.config.timing.ping_timeout_s,
            ),
            artifacts=cast("ArtifactClient", SeamArtifacts(around.hub)),
            record=around.record,
            tracing=tracing,
        )
        return self._join(equipment, credentials)

    def _join(self, equipment: Equipment, credentials: LiveCredentials) -> tuple[Agent, Renewal]:
        """The agent, and what keeps its certificate fresh: each knows the other."""
        upstream, clock = self._upstream, self.around.clock
        renewal = Renewal(
            live=credentials,
            upstream=upstream,
            clock=clock,
            rng=Random(0),
            allowed=lambda: may_renew(agent.progress.state),
            renewed=lambda: status.show(agent.progress),
            floor=lambda: equipment.sink.clock_floor,
        )
        status = StatusReporter(equipment, upstream, "0", lambda: renewal.issued_at)
        agent = self._agent = Agent(equipment, status, lambda _: renewal.want(_wave_to_renew_for(equipment, renewal)))
        return agent, renewal


def _wave_to_renew_for(equipment: Equipment, renewal: Renewal) -> str:
    sink, store = equipment.sink, equipment.store
    orders = [order for order in sink.orders() if not store.is_finished(order.wave_id)]
    return wave_to_renew_for(orders, sink.belief.policies, renewal.issued_at)
