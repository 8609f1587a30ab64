"""What an idle agent costs beside the least that it could be: a Python process that has imported ``grpc.aio``.

The agent is ``python -m device`` in a fleet of one device: connected to a real store hub, holding what control signed,
with no wave. The floor imports ``grpc.aio`` and waits in an event loop; for threads and files it then also holds one
bare connection to the same hub, because those of grpcio come with the first one. Import times are CPU seconds of fresh
interpreters, medians over ``--rounds``, alternating. Devices install no extra, so what only an extra installs is hidden
from both (``HIDDEN``).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.cost import Cost, cost_of
from bench.report import Result, Target, WrongResultError, write
from bench.rollout import Fleet, Progress, register
from bench.site import Size, make_site
from device.backend import open_slots
from device.bootenv import ResetReason
from device.config import load_device_config
from device.firmware import Firmware
from lab.evidence import EvidenceError
from wavemesh.errors import WavemeshError
from wavemesh.runtime.durable import Disk

HIDDEN = ("pkcs11",)  # securesystemslib takes what is installed
MAX_RATIO = 2.0
MAX_THREADS_BEYOND = 1
SETTLED_S = 2.0
POLL_S = 0.25
PATIENCE_S = 60.0

_HIDE = f"import sys; sys.modules.update(dict.fromkeys({HIDDEN!r}))"
_IMPORT = f"{_HIDE}; import time; began = time.process_time(); import %s; print(time.process_time() - began)"
_AGENT = f"{_HIDE}; import runpy; runpy.run_module('device', run_name='__main__', alter_sys=True)"
_FLOOR = """
import asyncio, grpc.aio, sys

async def main():
    print("imported", flush=True)
    sys.stdin.readline()
    root, key, chain = (open(name, "rb").read() for name in sys.argv[2:5])
    credentials = grpc.ssl_channel_credentials(root, key, chain)
    options = [("grpc.ssl_target_name_override", sys.argv[5])]
    async with grpc.aio.secure_channel(sys.argv[1], credentials, options=options) as channel:
        await channel.channel_ready()
        print("connected", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def main(arguments: list[str]) -> int:
    """Measure and print; 1 when something did not connect."""
    parser = argparse.ArgumentParser(prog="python -m bench agent", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="imports of each (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write one JSON object there; - is standard output")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="wavemesh-bench-") as directory:
            result = _measure(Path(directory), options.rounds)
    except (WrongResultError, EvidenceError, WavemeshError) as error:
        sys.stderr.write(f"bench agent: wrong result: {error}\n")
        return 1
    write(result, options.json)
    return 0


def import_times(rounds: int) -> tuple[float, float]:
    """CPU seconds to import the agent and the floor, both compiled before."""
    subprocess.run([sys.executable, "-c", _IMPORT % "device.app"], check=True, env=_compiling(), capture_output=True)
    pairs = [(_import_s("device.app"), _import_s("grpc.aio")) for _ in range(rounds)]
    return statistics.median(ours for ours, _ in pairs), statistics.median(floor for _, floor in pairs)


def agent_command(directory: Path) -> list[str]:
    """The agent as a device has it installed."""
    return [sys.executable, "-c", _AGENT, "--dir", str(directory)]


def floor_cost(address: str, identity: Path, hub_name: str) -> tuple[Cost, Cost]:
    """Of the floor: after its import, and once it has a connection to the hub."""
    files = [str(identity / name) for name in ("ca.crt", "node.key", "node.crt")]
    process = subprocess.Popen(
        [sys.executable, "-c", _FLOOR, address, *files, hub_name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        imported = _cost_once(process, b"imported\n")
        _go_on(process)
        return imported, _cost_once(process, b"connected\n")
    finally:
        process.kill()
        process.communicate()


def settled(pid: int) -> Cost:
    """Of a process, once its memory has not changed for a while."""
    deadline_s = time.monotonic() + PATIENCE_S
    cost, since_s = cost_of(pid), time.monotonic()
    while time.monotonic() - since_s < SETTLED_S:
        time.sleep(POLL_S)
        now = cost_of(pid)
        if now.rss_kib != cost.rss_kib:
            cost, since_s = now, time.monotonic()
        if time.monotonic() > deadline_s:
            raise WrongResultError(f"the memory of an idle agent still changed after {PATIENCE_S:g} s")
    return cost


def _measure(directory: Path, rounds: int) -> Result:
    import_s, floor_import_s = import_times(rounds)
    site = make_site(directory, Size(stores=1, devices=1, bad=0))
    [store], [name] = site.stores, site.devices
    device = site.device_dir(name)
    with Fleet(site, Progress(sys.stderr)) as fleet:
        register(fleet)
        config = load_device_config(device)
        Firmware(device, open_slots(device, config, Disk()), 0).boot(ResetReason.POWER_ON)
        pid = fleet.start("agent", "agents", agent_command(device))
        fleet.wait(lambda: fleet.connected() == 1, PATIENCE_S, "the device to connect")
        agent = settled(pid)
        imported, connected = floor_cost(site.address(store), device / "identity", site.store_id(store).dns_name)
    ratio = agent.rss_kib / imported.rss_kib
    keys: dict[str, object] = {
        "agent_rss_mib": round(agent.rss_kib / 1024, 1),
        "floor_rss_mib": round(imported.rss_kib / 1024, 1),
        "ratio": round(ratio, 2),
        "threads": agent.threads,
        "floor_threads": connected.threads,
        "files": agent.files,
        "floor_files": connected.files,
        "import_s": round(import_s, 3),
        "floor_import_s": round(floor_import_s, 3),
        "import_ratio": round(import_s / floor_import_s, 2),
        "rounds": rounds,
    }
    beyond = agent.threads - connected.threads
    return Result(
        keys,
        (
            Target("memory / floor", ratio, f"<= {MAX_RATIO:g}", ratio <= MAX_RATIO),
            Target("threads beyond grpcio's", beyond, f"<= {MAX_THREADS_BEYOND}", beyond <= MAX_THREADS_BEYOND),
        ),
    )


def _compiling() -> dict[str, str]:
    """An environment in which what was compiled is kept, as it is on a device."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _import_s(module: str) -> float:
    done = subprocess.run([sys.executable, "-c", _IMPORT % module], capture_output=True, check=True, text=True)
    return float(done.stdout)


def _cost_once(process: subprocess.Popen[bytes], said: bytes) -> Cost:
    """Of the floor once it has said that it is so far; raises WrongResultError when it ends instead."""
    if process.stdout is None or process.stdout.readline() != said:
        raise WrongResultError(f"the floor did not get to {said.decode().strip()!r}")
    return cost_of(process.pid)


def _go_on(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.write(b"\n")
        process.stdin.flush()
