"""Breaks things and makes them whole again: the faults of the script, done to processes, disks, clocks and links."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

from lab import processes
from lab.injectors import InjectorError, tell_supervisor
from tests.chaos import place
from tests.chaos.script import LINK_KINDS, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lab.topology import Lab
    from tests.chaos.network import Network
    from tests.chaos.script import Fault

_BLOCK = bytes(64 * 1024)
_PROCESS_KINDS = frozenset({Kind.KILL, Kind.STOP, Kind.POWER})


class Injector:
    """Faults that act now; what they strike is free again when they end."""

    def __init__(self, lab: Lab, network: Network, names: Sequence[str], say: Callable[[str], None]) -> None:
        """Nothing is broken yet; ``names`` are the processes that have to run, ``say`` is told a line a fault."""
        self._names = names
        self._lab = lab
        self._network = network
        self._say = say
        self._dirs = place.node_dirs(lab)
        self._acting: dict[tuple[str, str], tuple[Fault, float]] = {}
        self.counts: Counter[Kind] = Counter()
        self.killed: Counter[str] = Counter()
        self.at_once = 0
        self.died: list[str] = []

    def strike(self, fault: Fault) -> None:
        """Begin a fault; an older one that strikes the same thing ends first."""
        key = (_what(fault.kind), fault.target)
        if key in self._acting:
            self._end(key)
        self._tell_of_the_dead()
        self.at_once += bool(self._acting)
        if not self._begin(fault):
            return
        self._acting[key] = (fault, time.monotonic())
        self.counts[fault.kind] += 1
        self._say(f"{fault.number:4} {fault}")

    def tick(self) -> None:
        """End what has lasted, keep the others going, start again what ended by itself."""
        now_s = time.monotonic()
        for key, (fault, since_s) in list(self._acting.items()):
            if now_s - since_s >= fault.lasts_s:
                self._end(key)
            elif fault.kind in LINK_KINDS:
                self._network.apply(fault.target, fault.kind, now_s - since_s)
        self._tell_of_the_dead()

    def heal(self) -> None:
        """End all faults."""
        for key in list(self._acting):
            self._end(key)
        self._tell_of_the_dead()

    def _begin(self, fault: Fault) -> bool:
        """Whether it took hold: a device whose supervisor is not up yet cannot lose power."""
        match fault.kind:
            case Kind.KILL:
                processes.kill(self._lab, [fault.target])
                self.killed[self._tier(fault.target)] += 1
            case Kind.STOP:
                processes.send(processes.find(self._lab, fault.target), signal.SIGSTOP)
            case Kind.POWER:
                return self._switch(fault.target, "off")
            case Kind.FULL_DISK:
                fill(self._dirs[fault.target] / "state" / "ballast")
            case Kind.CLOCK:
                place.set_clock(self._dirs[fault.target], fault.offset_s)
            case _:
                self._network.apply(fault.target, fault.kind, 0.0)
        return True

    def _end(self, key: tuple[str, str]) -> None:
        fault, _ = self._acting.pop(key)
        match fault.kind:
            case Kind.KILL:
                processes.start(self._lab, [fault.target])
            case Kind.STOP:
                processes.send(processes.find(self._lab, fault.target), signal.SIGCONT)
            case Kind.POWER:
                self._switch(fault.target, "on")
            case Kind.FULL_DISK:
                (self._dirs[fault.target] / "state" / "ballast").unlink()
            case Kind.CLOCK:
                place.set_clock(self._dirs[fault.target], 0)
            case _:
                self._network.heal(fault.target)

    def _tell_of_the_dead(self) -> None:
        """Start again whatever ended without us, as systemd would, and remember it."""
        ours = {target for what, target in self._acting if what == "process"}
        for name in self._names:
            process = processes.find(self._lab, name)
            if not process.running and name not in ours:
                last = processes.log_tail(process.log, 1)
                self.died.append(f"{name}: {last}")
                self._say(f"     {name} ended by itself: {last}")
                processes.start(self._lab, [name])

    def _switch(self, device: str, verb: str) -> bool:
        try:
            tell_supervisor(self._lab, device, verb)
        except InjectorError:
            return False
        return True

    def _tier(self, name: str) -> str:
        return name if name in {"control", "superhub"} else "storehub" if name in self._lab.stores else "device"


def fill(file: Path) -> None:
    """Write a file until its file system has no room for another byte."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for block in (_BLOCK, _BLOCK[:1]):
            with contextlib.suppress(_NoRoomError):
                while True:
                    _write(descriptor, block)
    finally:
        os.close(descriptor)


class _NoRoomError(Exception):
    """ENOSPC."""


def _write(descriptor: int, block: bytes) -> None:
    try:
        os.write(descriptor, block)
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise _NoRoomError from exc
        raise


def _what(kind: Kind) -> str:
    """What a fault occupies: two faults of one process exclude each other, as two of one link do."""
    if kind in LINK_KINDS:
        return "link"
    return "process" if kind in _PROCESS_KINDS else kind.value
