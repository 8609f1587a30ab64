"""Composition of the agent: parts, one TaskGroup, and the way down.

Tasks: the session with the store hub, the agent, the watchdog's petting, the upload of logs, the local socket. SIGTERM
says goodbye to the hub and ends in order; every other end is a crash, after which the board starts the agent again.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import secrets
import signal
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from device.agent import Agent
from device.backend import open_slots
from device.belief import Verifier
from device.board import SimulatedPower
from device.config import FILE_NAME, BoardKind, ClockKind, KeyPlace, load_device_config
from device.configs import ConfigStore
from device.equipment import Equipment
from device.gates.asking import Questions
from device.gates.local import LocalGates
from device.health import HealthClient
from device.lkg import PackedLkg
from device.local import AgentVerbs, LocalSocket
from device.logs import DeviceLog
from device.logupload import upload_logs
from device.petting import keep_petting
from device.platform import Sensors
from device.probes import Containment, ProbeRunner
from device.rehearsing import Rehearsing
from device.rotation import may_renew, wave_to_renew_for
from device.sink import DeviceSink
from device.state import StateFile
from device.status import StatusReporter
from device.store import DeviceStore
from device.tracing import Tracing
from wavemesh import __version__
from wavemesh.artifacts.transfer import ArtifactClient
from wavemesh.codec.statements import MalformedStatementError
from wavemesh.errors import LocalError
from wavemesh.identity.binding import binding_of
from wavemesh.identity.certificates import BadCertificateError
from wavemesh.identity.live import BadIssueError, LiveCredentials
from wavemesh.identity.renewal import Renewal
from wavemesh.policy.gates import Gate
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.config import ConfigError
from wavemesh.runtime.durable import Disk, DiskFaultError, disk_errors
from wavemesh.runtime.grpc import LAN_BULK, make_bulk_channel
from wavemesh.session.upstream import SessionUpstream, UpstreamOptions
from wavemesh.telemetry.shipping import Shipping, ToParent
from wavemesh.telemetry.spans import trace_id_of
from wavemesh.trust.freshness import ClockSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from device.config import DeviceConfig
    from device.platform import BootRecord, Power, Slots
    from wavemesh.identity.tpmkeys import TpmKeys
    from wavemesh.runtime.clock import Clock

MAX_ROOT_BYTES = 256 * 1024
LOCK_PATIENCE_S = 10.0
# A device is back within five seconds of its hub or its LAN; a refused dial in the meantime costs milliseconds.
RECONNECT_MAX_S = 3.0


class LockedError(LocalError):
    """Another agent runs in this directory."""

    reason = "ALREADY_RUNNING"


async def main(directory: Path) -> None:
    """Run the agent of the device in ``directory`` until SIGTERM; raises LocalError when it cannot start."""
    config = load_device_config(directory)
    log = open_log(directory, config)
    logging.getLogger().addHandler(log)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    try:
        power = await _open_power(directory, config, log)
        await run_agent(Launch(directory, config, log, power), stop)
        power.stop()
    finally:
        logging.getLogger().removeHandler(log)
        log.close()


async def _open_power(directory: Path, config: DeviceConfig, log: DeviceLog) -> Power:
    """The board under the agent; raises LocalError when it does not say for certain what runs."""
    match config.board.kind:
        case BoardKind.SUPERVISED:
            power = SimulatedPower(directory, log.flush)
            power.attach()
            return power
        case BoardKind.LINUX:
            from device.linux_board import open_linux_board

            return await open_linux_board(directory, config, open_slots(directory, config, Disk()), log)


def open_log(directory: Path, config: DeviceConfig) -> DeviceLog:
    """The device's log, going on where it ended."""
    keep = timedelta(hours=config.logs.keep_hours)
    return DeviceLog(directory / "state" / "log", SystemClock(), keep, config.logs.quota_bytes)


@dataclass(frozen=True, slots=True)
class Launch:
    """What an agent is started with."""

    directory: Path
    config: DeviceConfig
    log: DeviceLog
    power: Power


async def run_agent(launch: Launch, stop: asyncio.Event) -> None:
    """Compose the agent from what is on disk and run it until ``stop``; raises LocalError when it cannot start.

    It uses nothing that is the process's own, so that many agents fit into one.
    """
    with (launch.directory / "run" / "agent.lock").open("w") as lock:
        await _take(lock.fileno(), launch.directory)
        await _run(launch, stop)


async def _take(descriptor: int, directory: Path) -> None:
    """One agent per directory: a killed one may take a moment to be gone."""
    try:
        async with asyncio.timeout(LOCK_PATIENCE_S):
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.sleep(0.05)
                else:
                    return
    except TimeoutError as error:
        msg = f"{directory}: another agent runs here"
        raise LockedError(msg) from error


async def _run(launch: Launch, stop: asyncio.Event) -> None:
    equipment, upstream, credentials, changed = _equip(launch)
    log, config = launch.log, launch.config
    agent, status, renewal = _compose(equipment, upstream, credentials)
    rehearsing = Rehearsing(equipment, lambda: agent.progress, status.wake)
    changed.calls += (agent.resources_changed, rehearsing.resources_changed)
    verbs = {**AgentVerbs(agent, status, equipment).table(), "rehearse": rehearsing.answer}
    jitter = Random()  # noqa: S311  # jitter, not a secret
    way = ToParent(upstream, equipment.store)
    shipping = Shipping(equipment.tracing, way, jitter.uniform, config.telemetry.retry_interval_s)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(upstream.run()),
            group.create_task(agent.run()),
            group.create_task(keep_petting(launch.power, config.board.watchdog_s)),
            group.create_task(upload_logs(equipment, upstream)),
            group.create_task(shipping.run()),
            group.create_task(rehearsing.run()),
            group.create_task(renewal.run()),
            group.create_task(LocalSocket(launch.directory / "run" / "agent.sock", verbs).run()),
        ]
        await stop.wait()
        log.note("stops: SIGTERM")
        await upstream.drain()
        for task in tasks:
            task.cancel()


def _equip(launch: Launch) -> tuple[Equipment, SessionUpstream, LiveCredentials, _Later]:
    """What the agent works with, from what is on disk; the callback is for changed resources."""
    directory, config, log = launch.directory, launch.config, launch.log
    clock, disk = SystemClock(), Disk()
    tpm_keys = _tpm_keys(launch, disk)
    credentials = LiveCredentials.load(directory / "identity", disk, tpm_keys)
    _check_binding(directory, config, credentials)
    log.trace_id_of = partial(trace_id_of, credentials.node_id.fleet, device=credentials.node_id.path)
    tracing = Tracing(credentials.node_id, clock, config.telemetry)
    store = DeviceStore(_load_state(directory / "state", disk, clock, log), credentials, clock, log, tracing)
    verifier = Verifier(_read_root(directory / "trust" / "root.json"), credentials)
    changed = _Later()
    source = ClockSource.HARDWARE if config.device.clock is ClockKind.HARDWARE else ClockSource.UNCONFIRMED
    sink = DeviceSink(store=store, verifier=verifier, clock=clock, log=log, source=source, changed=changed)
    upstream = SessionUpstream(
        credentials=credentials,
        parent=verifier.hub,
        address=config.hub.address,
        log=store,
        sink=sink,
        clock=clock,
        rng=Random(),  # noqa: S311  # jitter, not a secret
        software_version=__version__,
        options=UpstreamOptions(backoff_cap_s=RECONNECT_MAX_S),
        breached=store.tell_refusal,
    )
    system, board, record = open_slots(directory, config, disk), config.board, launch.power.boot()
    probes = _probes(directory, config, _told(record, system.slots))
    equipment = Equipment(
        directory=directory,
        node_id=credentials.node_id,
        config=config,
        clock=clock,
        log=log,
        store=store,
        sink=sink,
        slots=system.slots,
        boot_control=system.boot_control,
        power=launch.power,
        gates=LocalGates(
            sensors=Sensors(board.power_supply, board.thermal, board.hwmon, board.inhibit, board.reserved_disk_bytes),
            slots=system.slots,
            boot_control=system.boot_control,
            directory=directory,
            probes=probes,
            hooks=board.gates,
            store=store,
            disk=disk,
            log=log,
            questions=Questions(),
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
            timeout_s=config.timing.ping_timeout_s,
            quote=tpm_keys.quote if tpm_keys is not None else None,
        ),
        artifacts=ArtifactClient(partial(make_bulk_channel, credentials, config.hub.address, verifier.hub, LAN_BULK)),
        record=record,
        tracing=tracing,
        installer=system.installer,
    )
    return equipment, upstream, credentials, changed


def _compose(
    equipment: Equipment, upstream: SessionUpstream, live: LiveCredentials
) -> tuple[Agent, StatusReporter, Renewal]:
    """The agent, what it shows, and what keeps its certificate fresh: each knows the others."""
    renewal = Renewal(
        live=live,
        upstream=upstream,
        clock=equipment.clock,
        rng=Random(),  # noqa: S311  # jitter, not a secret
        allowed=lambda: may_renew(agent.progress.state),
        renewed=lambda: status.show(agent.progress),
        failed=partial(_tell_bad_issue, equipment),
        floor=lambda: equipment.sink.clock_floor,
    )
    status = StatusReporter(equipment, upstream, __version__, lambda: renewal.issued_at)
    agent = Agent(equipment, status, lambda _: renewal.want(_rotating_wave(equipment, renewal)))
    return agent, status, renewal


def _tell_bad_issue(equipment: Equipment, error: Exception) -> None:
    """What the hub passed on as this device's certificate is none: that is its doing, unlike no answer."""
    if isinstance(error, (BadIssueError, BadCertificateError, MalformedStatementError)):
        equipment.store.tell_refusal(f"certificate/{equipment.node_id.path}", Gate.SIGNATURE.value, str(error))


def _tpm_keys(launch: Launch, disk: Disk) -> TpmKeys | None:
    """Where the device's key lives, if that is a TPM: a device without one loads nothing of it. Raises TpmError."""
    if launch.config.identity.key is KeyPlace.FILE:
        return None
    from wavemesh.identity.tpm import Tpm
    from wavemesh.identity.tpmkeys import TpmKeys

    return TpmKeys(Tpm(launch.config.identity.tcti), launch.directory / "identity", disk)


def _check_binding(directory: Path, config: DeviceConfig, credentials: LiveCredentials) -> None:
    """Class and revision are bound at enrolment: the configuration may repeat them, and no more. Raises ConfigError."""
    bound = binding_of(credentials.current.certificate)
    if bound is None:
        return
    for key, says, is_bound in (
        ("device_class", config.device.device_class, bound.device_class),
        ("hardware_revision", config.device.hardware_revision, bound.hardware_revision),
    ):
        if is_bound and says != is_bound:
            problem = f"{says!r}, but this device was enrolled with {is_bound!r}; correct it, or enrol the device again"
            raise ConfigError(directory / FILE_NAME, f"device.{key}", problem)


def _rotating_wave(equipment: Equipment, renewal: Renewal) -> str:
    """The wave that wants a younger certificate."""
    sink, store = equipment.sink, equipment.store
    orders = [order for order in sink.orders() if not store.is_finished(order.wave_id)]
    return wave_to_renew_for(orders, sink.belief.policies, renewal.issued_at)


def _load_state(directory: Path, disk: Disk, clock: Clock, log: DeviceLog) -> StateFile:
    """The state as it is durable, with room set aside for a later rollback."""
    file = StateFile(directory, disk, secrets.token_hex(16))
    file.load(clock.now())
    try:
        file.reserve()
    except DiskFaultError as error:
        log.alert(f"no space could be set aside for a rollback's record: {error}")
    return file


class _Later:
    """Callbacks to objects that are made after the one that calls them."""

    def __init__(self) -> None:
        self.calls: tuple[Callable[[], None], ...] = ()

    def __call__(self) -> None:
        for call in self.calls:
            call()


def _told(record: BootRecord, slots: Slots) -> dict[str, str]:
    """What a probe may know of the boot: environment variables."""
    label = slots.label(record.boot.slot)
    return {
        "WAVEMESH_SLOT": record.boot.slot.value,
        "WAVEMESH_SLOT_VERSION": "" if label is None else label.version,
        "WAVEMESH_CONFIG_GENERATION": str(record.boot.config_generation),
    }


def _probes(directory: Path, config: DeviceConfig, told: Mapping[str, str]) -> ProbeRunner:
    """Probes know where commands are, and which slot runs."""
    board = config.board
    containment = Containment(board.probe_containment, board.probe_user, hidden=directory, shown=board.hardware)
    environment = {"PATH": f"{board.hardware / 'bin'}:{board.path}", "LANG": "C.UTF-8", **told}
    return ProbeRunner(environment, config.timing.probe_timeout_s, containment)


def _read_root(path: Path) -> bytes:
    with disk_errors(path), path.open("rb") as file:
        return file.read(MAX_ROOT_BYTES)
