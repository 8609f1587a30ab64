"""A device in a directory, as provisioning leaves it, run by its real supervisor."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import Any

from device.bootenv import Boot, BootEnvironment, SlotName, decode, encode
from device.state import StateFile
from device.values import to_plain
from tests.conftest import FLEET
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.durable import Disk
from wavemesh.trust.statements import Digest

HUB = NodeId(FLEET, "region/midwest/store/store-208")
DEVICE = NodeId(FLEET, f"{HUB.path}/device/pos-01")
MIB = 1024 * 1024
OLD_VERSION, NEW_VERSION = "3.8.1", "3.8.2"
PATIENCE_S = 40.0

CONFIG = """\
[device]
device_class = "pos-tablet"
hardware_revision = "r2"
[hub]
address = "127.0.0.1:%(port)d"
[board]
slot_capacity_bytes = 67108864
watchdog_s = 10.0
boot_timer_s = 20.0
[timing]
ping_interval_s = 0.3
ping_timeout_s = 2.0
gate_interval_s = 0.1
recheck_interval_s = 0.5
retry_interval_s = 0.1
probe_timeout_s = 5.0
probe_settle_s = 0.2
inhibit_bound_s = 1.0
log_upload_interval_s = 0.2
[telemetry]
retry_interval_s = 0.1
[staging]
fsync_step_bytes = 131072
"""


def image_of(version: str, size_bytes: int = MIB) -> bytes:
    """An image: the same bytes for the same version."""
    return Random(version).randbytes(size_bytes)  # content, not a secret


def digest_of(content: bytes) -> Digest:
    return Digest(hashlib.sha256(content).hexdigest(), len(content))


def label_of(version: str, content: bytes) -> bytes:
    digest = digest_of(content)
    return json.dumps({"release": f"firmware-v{version}", "version": version, "firmware": to_plain(digest)}).encode()


class DeviceDirectory:
    """A provisioned device: old release on slot A, empty slot B, its own hardware."""

    def __init__(self, path: Path, ca: FleetCa, pinned_root: bytes) -> None:
        self.path = path
        self._processes: list[subprocess.Popen[bytes]] = []
        self.python_path: list[Path] = []
        now = datetime.now(UTC)
        write_node(
            path / "identity",
            ca,
            DEVICE,
            not_before=now - timedelta(hours=1),
            not_after=now + timedelta(days=30),
            ip_addresses=[IPv4Address("127.0.0.1")],
        )
        for name in ("slots", "run", "trust", "state/config/1", "hardware/bin"):
            (path / name).mkdir(parents=True)
        (path / "trust" / "root.json").write_bytes(pinned_root)
        old = image_of(OLD_VERSION)
        (path / "slots" / "A.img").write_bytes(old)
        (path / "slots" / "A.json").write_bytes(label_of(OLD_VERSION, old))
        (path / "slots" / "B.img").touch()
        (path / "slots" / "bootenv.json").write_bytes(encode(BootEnvironment(Boot(SlotName.A, 1))))
        config = b"old config"
        (path / "state" / "config" / "1" / "bundle").write_bytes(config)
        label = {"version": "12.3.0", **to_plain(digest_of(config))}
        (path / "state" / "config" / "1" / "label.json").write_text(json.dumps(label))
        self.write("hardware/power_supply/BAT0/capacity", "87\n")
        self.write("hardware/thermal/thermal_zone0/temp", "41500\n")
        self.script("lsusb", 'echo "Bus 001 Device 004: Bar Code scanner"')
        self.script("systemd-analyze", "exit 0")

    def had_before(self, version: str, wave_id: str) -> None:
        """``wave_id`` brought what runs on slot A; slot B still holds, as last known good, what ran before it."""
        image, running = image_of(version), digest_of(image_of(OLD_VERSION))
        (self.path / "slots" / "B.img").write_bytes(image)
        (self.path / "slots" / "B.json").write_bytes(label_of(version, image))
        environment = BootEnvironment(Boot(SlotName.A, 1), Boot(SlotName.B, 1))
        (self.path / "slots" / "bootenv.json").write_bytes(encode(environment))
        state = StateFile(self.path / "state", Disk(), "0" * 32)
        state.load(datetime.now(UTC))
        state.commit(replace(state.document, installed_by={running.sha256: wave_id}))

    def configure(self, port: int) -> None:
        self.write("config.toml", CONFIG % {"port": port})

    def set(self, line: str, other: str) -> None:
        """Replace a line of the configuration."""
        text = (self.path / "config.toml").read_text()
        assert line in text
        self.write("config.toml", text.replace(line, other))

    def write(self, name: str, text: str) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def script(self, name: str, body: str) -> None:
        file = self.path / "hardware" / "bin" / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)

    def lose_scanner_on(self, slot: str) -> None:
        self.script("lsusb", f'[ "$WAVEMESH_SLOT" = {slot} ] || echo "Bar Code scanner"')

    def rot(self, slot: str) -> None:
        """One bit of a slot flips."""
        with (self.path / "slots" / f"{slot}.img").open("r+b") as image:
            first = image.read(1)[0]
            image.seek(0)
            image.write(bytes([first ^ 1]))

    def slot_sha256(self, slot: str) -> str:
        return hashlib.sha256((self.path / "slots" / f"{slot}.img").read_bytes()).hexdigest()

    def environment(self) -> BootEnvironment:
        return decode((self.path / "slots" / "bootenv.json").read_bytes(), "bootenv.json")

    def boots(self) -> list[tuple[str, str]]:
        """(slot, reason) of every boot so far."""
        path = self.path / "run" / "boots.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(entry["slot"], entry["reason"]) for entry in map(json.loads, lines)]

    def steps(self) -> list[str]:
        path = self.path / "run" / "steps.jsonl"
        return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []

    def start(self) -> None:
        """Switch it on."""
        python_path = [*self.python_path, Path(__file__).parents[1]]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, python_path))}
        command = [sys.executable, "-m", "device.supervisor", "--dir", str(self.path)]
        with (self.path / "run" / "stderr.log").open("ab") as errors:
            self._processes.append(subprocess.Popen(command, env=environment, stderr=errors))

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(20)

    async def tell(self, command: str, socket_name: str = "supervisor.sock") -> dict[str, Any]:
        """Ask the supervisor or the agent; waits until it listens."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    reader, writer = await self._connect(socket_name)
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    await asyncio.sleep(0.02)
            try:
                writer.write(command.encode() + b"\n")
                answer: dict[str, Any] = json.loads(await reader.readline())
            finally:
                writer.close()
        return answer

    async def _connect(self, socket_name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Through the directory's descriptor, for an address has room for 107 bytes only."""
        directory = os.open(self.path / "run", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{socket_name}")
        finally:
            os.close(directory)
