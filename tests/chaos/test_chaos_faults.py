"""The faults themselves bite: links that the kernel breaks, the rhythm of proxies, clocks that are set wrong."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

from tests.chaos import place
from tests.chaos.injector import Injector
from tests.chaos.network import Machines, add_namespace, flaps_down, verb_at
from tests.chaos.script import LINK_KINDS, Fault, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAN = "lan"
SILENCE_S = 0.5


@pytest.fixture
def namespace() -> Iterator[str]:
    """An empty network namespace."""
    if obstacle := place.obstacle():
        pytest.skip(obstacle)
    name = f"chaos-test-{os.getpid()}"
    add_namespace(name)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)  # noqa: S607  # iproute2, which the run needs anyway


def made_inside(namespace: str, make: Callable[[], tuple[socket.socket, socket.socket]]) -> tuple[socket.socket, ...]:
    """Sockets of the namespace: a thread may be in another than its process, and a socket stays where it was made."""
    made: list[socket.socket] = []

    def run() -> None:
        with Path("/run/netns", namespace).open() as file:
            assert ctypes.CDLL(None).setns(file.fileno(), 0) == 0
        made.extend(make())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return tuple(made)


def connection(namespace: str) -> tuple[socket.socket, ...]:
    """Two ends of a TCP connection over the namespace's loopback."""

    def make() -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            return near, server.accept()[0]

    near, far = made_inside(namespace, make)
    near.settimeout(10.0)
    far.settimeout(SILENCE_S)
    return near, far


def datagrams(namespace: str) -> tuple[socket.socket, ...]:
    """A UDP socket that sends to another one over the namespace's loopback."""

    def make() -> tuple[socket.socket, socket.socket]:
        near, far = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        far.bind(("127.0.0.1", 0))
        near.connect(far.getsockname())
        return near, far

    near, far = made_inside(namespace, make)
    far.settimeout(SILENCE_S)
    return near, far


def test_a_cut_link_resets_and_a_healed_one_connects(namespace: str) -> None:
    machines = Machines({LAN: ((namespace, "lo"),)})
    near, far = connection(namespace)
    with near, far:
        machines.apply(LAN, Kind.CUT, 0.0)
        near.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            near.recv(1)
    machines.heal(LAN)
    near, far = connection(namespace)
    with near, far:
        near.sendall(b"x")
        assert far.recv(1) == b"x"


@pytest.mark.parametrize("kind", [Kind.HALF_OPEN, Kind.FLAPPING])
def test_a_half_open_link_is_silent_and_brings_all_later(namespace: str, kind: Kind) -> None:
    machines = Machines({LAN: ((namespace, "lo"),)})
    near, far = connection(namespace)
    with near, far:
        machines.apply(LAN, kind, 0.0)
        near.sendall(b"x")
        with pytest.raises(TimeoutError):
            far.recv(1)
        if kind is Kind.FLAPPING:
            machines.apply(LAN, kind, next(tick / 10 for tick in range(100) if not flaps_down(tick / 10)))
        else:
            machines.heal(LAN)
        far.settimeout(10.0)
        assert far.recv(1) == b"x"


def test_a_throttled_link_is_slow(namespace: str) -> None:
    machines = Machines({LAN: ((namespace, "lo"),)})
    near, far = connection(namespace)
    content = bytes(80_000)
    with near, far:
        far.settimeout(10.0)
        machines.apply(LAN, Kind.THROTTLED, 0.0)
        began_s = time.monotonic()
        near.sendall(content)
        received = 0
        while received < len(content):
            received += len(far.recv(len(content)))
        assert time.monotonic() - began_s >= 1.0
    machines.heal(LAN)


def test_a_lossy_link_loses_a_part(namespace: str) -> None:
    machines = Machines({LAN: ((namespace, "lo"),)})
    near, far = datagrams(namespace)
    sent = 200
    with near, far:
        machines.apply(LAN, Kind.LOSSY, 0.0)
        for _ in range(sent):
            with suppress(PermissionError):  # how the kernel tells a sender of its own rule
                near.send(b"x")
        came = 0
        with suppress(TimeoutError):
            while far.recv(1):
                came += 1
        assert sent // 2 < came < sent
    machines.heal(LAN)


def test_the_rhythm_of_a_proxy() -> None:
    said = {kind: {verb_at(kind, tick / 10) for tick in range(200)} for kind in LINK_KINDS}
    assert said == {
        Kind.CUT: {"cut"},
        Kind.HALF_OPEN: {"blackhole"},
        Kind.THROTTLED: {"blackhole", "restore"},
        Kind.LOSSY: {"blackhole", "restore"},
        Kind.FLAPPING: {"cut", "restore"},
    }


def test_a_node_reads_the_clock_that_its_file_says(tmp_path: Path) -> None:
    program = """
from wavemesh.runtime.clock import SystemClock
while input():
    print(SystemClock().now().timestamp(), flush=True)
"""
    (tmp_path / "device.py").write_text(program)
    place.set_clock(tmp_path, 0)
    command = ["/usr/bin/env", f"PYTHONPATH={place.WRONGS}", sys.executable, "-m", "device", "--dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=tmp_path, stdin=PIPE, stdout=PIPE, text=True) as node:
        assert node.stdin is not None
        assert node.stdout is not None
        for offset_s in (0, -7200, 9):
            place.set_clock(tmp_path, offset_s)
            node.stdin.write("now\n")
            node.stdin.flush()
            assert abs(float(node.stdout.readline()) - offset_s - time.time()) < 4
        node.kill()


@pytest.mark.parametrize(
    ("running", "mark", "shows_scanner", "proxy"),
    [
        ("B", b"no-scanner", False, ""),
        ("A", b"no-network", True, ""),
        ("B", b"no-network", True, "http://127.0.0.1:9"),
        ("B", b"good", True, ""),
    ],
)
def test_an_image_does_to_its_device_what_its_first_bytes_say(
    tmp_path: Path, *, running: str, mark: bytes, shows_scanner: bool, proxy: str
) -> None:
    """Slot A holds a good release, B the one that is marked; a network that is lost is lost on the slot that runs."""
    for directory in ("slots", "run", "hardware/usb"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "slots" / "A.img").write_bytes(b"good".ljust(64, b"\0"))
    (tmp_path / "slots" / "B.img").write_bytes(mark.ljust(16, b"\0") + b"x" * 48)
    (tmp_path / "run" / "boot.json").write_text(f'{{"slot": "{running}"}}')
    (tmp_path / "device.py").write_text("import os; print(os.environ.get('grpc_proxy', ''))")
    place.set_clock(tmp_path, 0)
    command = ["/usr/bin/env", f"PYTHONPATH={place.WRONGS}", sys.executable, "-m", "device", "--dir", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == proxy
    shown = {slot: "scanner" in (tmp_path / "hardware" / "usb" / f"{slot}.txt").read_text() for slot in ("A", "B")}
    assert shown == {"A": True, "B": shows_scanner}


@pytest.mark.parametrize("target", ["control", "superhub", "s-1", "d-1"])
def test_a_clock_that_is_struck_is_wrong_for_a_while_and_right_again(tmp_path: Path, target: str) -> None:
    lab = place.ChaosLab(tmp_path, {}, {"s-1": ("d-1",)})
    node = place.node_dirs(lab)[target]
    node.mkdir(parents=True)
    place.set_clock(node, 0)
    told: list[str] = []
    injector = Injector(lab, Machines({}), (), told.append)
    injector.strike(Fault(1, 0.0, Kind.CLOCK, target, 0.0, -7200))
    assert int((node / "clock").read_text()) == -7200
    assert injector.counts[Kind.CLOCK] == len(told) == 1
    injector.tick()
    assert int((node / "clock").read_text()) == 0
    injector.strike(Fault(2, 0.0, Kind.CLOCK, target, 60.0, 9))
    injector.tick()
    assert int((node / "clock").read_text()) == 9
    injector.heal()
    assert int((node / "clock").read_text()) == 0
