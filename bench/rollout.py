"""A fleet as processes, and one rollout on it, from plan to closed ledger.

Control, super hubs, store hubs, origin and the proxies are processes of their own, started as the product starts them;
devices share processes (``bench/agents.py``). How far the wave is, is read from control's database: that costs control
nothing.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO, TypeVar

from bench.cost import Cost, cost_of, total
from bench.report import WrongResultError
from bench.site import WAVE
from edgectl.client import ask
from edgectl.contexts import Context
from lab import operations, topology
from lab.evidence import control_ledger, wave_state
from lab.injectors import tell
from lab.policies import RELEASE, policy_text
from lab.processes import log_tail
from wavemesh.trust.statements import IntentKind, OperatorIntent
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from types import TracebackType

    from bench.site import Site, Size
    from lab.evidence import Outcome
    from wavemesh.v1.operator_pb2_grpc import OperatorServiceAsyncStub

T = TypeVar("T")

DEVICES_PER_PROCESS = 250
READY_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 120.0
STOP_GRACE_S = 60.0
DEVICES_PER_S_LEAST = 20
TRIAL_MINUTES = 5
TIERS = ("control", "superhub", "storehub", "agents")
_INVENTORY_PART = 2000
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Started:
    """A process of the fleet."""

    name: str
    tier: str
    process: subprocess.Popen[bytes]


class Progress:
    """One line that is written over, on a terminal only."""

    def __init__(self, stream: TextIO) -> None:
        """Nothing is shown before ``show``."""
        self._stream = stream
        self._began_s = time.monotonic()

    def show(self, text: str) -> None:
        """Where we are."""
        if self._stream.isatty():
            self._stream.write(f"\r\033[K{time.monotonic() - self._began_s:6.0f} s  {text}")
            self._stream.flush()

    def done(self) -> None:
        """The line is of no use any more."""
        if self._stream.isatty():
            self._stream.write("\r\033[K")


class Fleet:
    """All processes of a site; a context manager that ends them, devices first."""

    def __init__(self, site: Site, progress: Progress, profile: Path | None = None) -> None:
        """``profile``: a directory for cProfile's files of control, a super hub, a store hub and the agents."""
        self.site = site
        self._progress = progress
        self._profile = profile
        self._started: list[Started] = []

    def __enter__(self) -> Self:
        """Start everything but the devices, and wait until it listens."""
        site = self.site
        site.run_dir.mkdir(exist_ok=True)
        (site.origin_dir / "data").mkdir(parents=True, exist_ok=True)
        identity, log = site.origin_dir / "identity", site.origin_dir / "access.jsonl"
        origin = ["lab.origin", "--dir", str(site.origin_dir / "data"), "--listen", site.address("origin")]
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            self._start("origin", "origin", *origin, "--identity", str(identity), "--log", str(log))
            self._start("wan", "wan", "lab.wan", "--config", str(site.wan_dir / "config.toml"))
            self._start("control", "control", "control", "--dir", str(site.control_dir))
            for region in site.regions:
                self._start(region, "superhub", "superhub", "--dir", str(site.superhub(region)))
            for store in site.stores:
                self._start(store, "storehub", "storehub", "--dir", str(site.store_dir(store)))
            for name in ("control", "origin", *site.regions, *site.stores, *site.links):
                self.wait(partial(_listens, site.address(name)), READY_TIMEOUT_S, f"{name} to listen")
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes."""
        self._end()

    def start_devices(self) -> None:
        """Switch all devices on at once, and wait until control hears them."""
        names = self.site.devices
        for number, first in enumerate(range(0, len(names), DEVICES_PER_PROCESS)):
            file = self.site.run_dir / f"agents-{number}.txt"
            directories = [str(self.site.device_dir(name)) for name in names[first : first + DEVICES_PER_PROCESS]]
            file.write_text("\n".join(directories) + "\n", encoding="utf-8")
            self._start(f"agents-{number}", "agents", "bench.agents", str(file))
        timeout_s = READY_TIMEOUT_S + len(names) / DEVICES_PER_S_LEAST
        self.wait(lambda: self.connected() == len(names), timeout_s, "all devices to connect", poll_s=1.0)

    def start_store(self, store: str, devices: Sequence[str]) -> None:
        """Switch these devices of one store on, in a process of their own."""
        file = self.site.run_dir / f"agents-{store}.txt"
        file.write_text("".join(f"{self.site.device_dir(name)}\n" for name in devices), encoding="utf-8")
        self._start(f"agents-{store}", "agents", "bench.agents", str(file))

    def cut_power(self, store: str) -> None:
        """Kill the process that ``start_store`` started."""
        killed = next(one for one in self._started if one.name == f"agents-{store}")
        self._started.remove(killed)
        killed.process.kill()
        killed.process.wait()

    def connected(self) -> int:
        """How many devices control hears."""
        request = operator_pb2.GetFleetStatusRequest()
        count = self.ask(lambda stub: stub.GetFleetStatus(request, timeout=CALL_TIMEOUT_S)).devices_connected
        self._progress.show(f"{count} of {len(self.site.devices)} devices connected")
        return count

    def heard(self) -> set[str]:
        """Names of the devices that control hears."""
        found: set[str] = set()
        request = operator_pb2.ListDevicesRequest(page_size=1000)
        while True:
            page = self.ask(lambda stub: stub.ListDevices(request, timeout=CALL_TIMEOUT_S))
            found |= {one.path.rpartition("/")[2] for one in page.devices if one.status.connected}
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def ask(self, question: Callable[[OperatorServiceAsyncStub], Awaitable[T]]) -> T:
        """Put a question to control as the operator."""
        context = Context("control", self.site.address("control"), topology.control_id(), self.site.operator_dir)
        return ask(context, question)

    def wait(self, holds: Callable[[], bool], timeout_s: float, what: str, poll_s: float = 0.25) -> None:
        """Look again until it holds; raises WrongResultError after the timeout, or when a process ended."""
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            for one in self._started:
                if one.process.poll() is not None:
                    tail = log_tail(self._log(one.name))
                    raise WrongResultError(f"{one.name} ended with {one.process.returncode}; its log ends:\n{tail}")
            if time.monotonic() > deadline_s:
                raise WrongResultError(f"waited {timeout_s:.0f} s for {what}")
            time.sleep(poll_s)

    def costs(self) -> dict[str, Cost]:
        """What each tier cost since its processes started."""
        return {tier: total([cost_of(one.process.pid) for one in self._started if one.tier == tier]) for tier in TIERS}

    def processes(self, tier: str) -> int:
        """How many processes a tier has."""
        return sum(one.tier == tier for one in self._started)

    def link(self, name: str) -> dict[str, Any]:
        """A proxied link as its proxy counts it."""
        links: list[dict[str, Any]] = self.tell_wan("status")["links"]
        return next(one for one in links if one["name"] == name)

    def tell_wan(self, command: str) -> dict[str, Any]:
        """Command the proxies, see lab/wan.py."""
        return tell(self.site.wan_dir / "control.sock", command)

    def start(self, name: str, tier: str, command: Sequence[str]) -> int:
        """Start a process that ends with the fleet; its id."""
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._started.append(Started(name, tier, process))
        return process.pid

    def _start(self, name: str, tier: str, module: str, *arguments: str) -> None:
        command = [sys.executable]
        if self._profile is not None and tier in TIERS and tier not in {one.tier for one in self._started}:
            command += ["-m", "cProfile", "-o", str(self._profile / f"{tier}.prof")]
        self.start(name, tier, [*command, "-m", module, *arguments])

    def _log(self, name: str) -> Path:
        return self.site.run_dir / f"{name}.log"

    def _end(self) -> None:
        """Ask to end, tier by tier from below; kill what does not."""
        for tier in ("agents", "storehub", "superhub", "control", "wan", "origin"):
            members = [one.process for one in self._started if one.tier == tier]
            for process in members:
                process.send_signal(signal.SIGTERM)
            deadline_s = time.monotonic() + STOP_GRACE_S
            for process in members:
                try:
                    process.wait(max(0.0, deadline_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def register(fleet: Fleet) -> None:
    """Register stores and devices; control counts nobody else."""
    for part in _inventory(fleet.site):
        fleet.ask(partial(_register, part))


def plan(fleet: Fleet, size: Size, *, halt_least: int | None = None, permit_batch: int | None = None) -> None:
    """Publish the release and plan the wave; without ``halt_least`` outcomes the bad devices alone cannot halt it."""
    site = fleet.site
    draft = operations.Draft(RELEASE, (site.images_dir / RELEASE.firmware).resolve(), regions=tuple(site.regions))
    operations.publish(site, operations.make_release(site, draft))
    policy = policy_text(
        RELEASE,
        swap_limit=size.swaps,
        halt_least_outcomes=max(5, 2 * size.bad + 1) if halt_least is None else halt_least,
        hub_budget=size.stores,
        trial_minutes=TRIAL_MINUTES,
        permit_batch=permit_batch,
    )
    request = operator_pb2.PlanWaveRequest(
        wave_id=WAVE, cohort=topology.COHORT, policy_yaml=policy.encode(), policy_name="policy.yaml"
    )
    fleet.ask(lambda stub: stub.PlanWave(request, timeout=CALL_TIMEOUT_S))


def start_wave(fleet: Fleet) -> None:
    """Give the operator's intent to start it."""
    intent = OperatorIntent("start", IntentKind.START_WAVE, datetime.now(UTC), wave_id=WAVE, cohort=topology.COHORT)
    operations.give(fleet.site, "control", intent)


def wait_closed(fleet: Fleet, progress: Progress, timeout_s: float, look: Callable[[], None]) -> None:
    """Wait for control's last word on the wave; ``look`` is called at each look."""

    def is_over() -> bool:
        look()
        counted = Counter(outcome.kind for outcome in ledger(fleet.site))
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(counted.items()))
        progress.show(f"{counted.total()} of {len(fleet.site.devices)} outcomes: {counts or 'none yet'}")
        return wave_state(fleet.site.control_dir, WAVE) in {"closed", "halted"}

    fleet.wait(is_over, timeout_s, "the wave to close", poll_s=1.0)


def ledger(site: Site) -> list[Outcome]:
    """Control's ledger of the wave, from its database."""
    return control_ledger(site.control_dir, WAVE)


def _inventory(site: Site) -> Iterator[operator_pb2.ApplyInventoryRequest]:
    request = operator_pb2.ApplyInventoryRequest()
    for store in site.stores:
        request.stores.add(path=site.store_id(store).path, time_zone="UTC")
    yield request
    nodes = [node for node in site.nodes().values() if "/device/" in node.path]
    for first in range(0, len(nodes), _INVENTORY_PART):
        request = operator_pb2.ApplyInventoryRequest()
        for node in nodes[first : first + _INVENTORY_PART]:
            request.devices.add(
                path=node.path,
                device_class=topology.DEVICE_CLASS,
                hardware_revision=topology.HARDWARE_REVISION,
                labels={"segment": topology.COHORT},
            )
        yield request


async def _register(part: operator_pb2.ApplyInventoryRequest, stub: OperatorServiceAsyncStub) -> None:
    await stub.ApplyInventory(part, timeout=CALL_TIMEOUT_S)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
