"""The operator of a chaos run: what a plot has somebody do, by ``edgectl`` as people do it, while faults strike.

Each word is given again, under the same intent id, until it is answered (M5): whoever is asked may be down, cut off or
slow. What was done is written into the wave's entry for the checker: a stop with what was outstanding when it was
answered, a rollback with its device. Runs in a thread of its own, so that faults go on meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import operations
from lab.evidence import EvidenceError, control_ledger, hub_ledger, is_closed, permits_unspent, wave_state
from lab.policies import SWAP_LIMIT
from lab.topology import device_id
from tests.chaos import place
from tests.chaos.plots import Plot
from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.topology import Lab

STOPPED_S = 2.0
_LOOK_S = 0.2
_AGAIN_S = 0.5
_COMMAND_TIMEOUT_S = 40.0
_REASON = "chaos: an operator says so"


class TooLateError(Exception):
    """The wave is over, or the run's patience, before this could be done."""


class Operator:
    """One wave's operator; ``run`` is what the thread does."""

    def __init__(self, lab: Lab, wave: dict[str, Any], patience_s: float, say: Callable[[str], None]) -> None:
        """``wave`` is the wave's entry in ``expected.json``."""
        self._lab = lab
        self._wave = wave
        self._name: str = wave["wave"]
        self._say = say
        self._until_s = time.monotonic() + patience_s
        self._thread = threading.Thread(target=self._run, name=f"operator-{self._name}")
        self._words = 0
        self.problem = ""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be done."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait until it is done, which its patience bounds."""
        self._until_s = 0.0
        self._thread.join()

    def _run(self) -> None:
        act = {
            Plot.OPERATED: self._operate,
            Plot.HALTED: self._halt,
            Plot.HALTED_AT_HUB: self._halt_at_hub,
            Plot.HELD: self._hold,
            Plot.REVOKED: self._revoke,
        }.get(Plot(self._wave["plot"]))
        try:
            if act is not None:
                act()
        except TooLateError as exc:
            self.problem = str(exc)
            self._say(f"     the operator of {self._name} is too late: {exc}")

    # --- plots -------------------------------------------------------------------------------------------------------

    def _operate(self) -> None:
        """Control pauses, and the store with the first update for itself as well, which goes back; then the other store
        goes on, has an update, and that goes back. A pause in force keeps the wave open all the while.
        """
        self._wait_for_updates()
        self._tell("control", "wave", "pause", "--wave", self._name, "--reason", _REASON)
        stop = self._stopped("paused")
        paused = next(store for store in self._lab.stores if self._updated(store))
        other = next(store for store in self._lab.stores if store != paused)
        self._tell(paused, "wave", "pause", "--wave", self._name, "--reason", _REASON)
        own = self._stopped("paused", paused)
        self._roll_back(paused, paused)
        self._lift(stop, "control", "wave", "resume", "--wave", self._name, "--reason", _REASON)
        self._wait(lambda: bool(self._updated(other)), f"an update at {other}")
        self._roll_back("control", other)
        self._lift(own, paused, "wave", "resume", "--wave", self._name, "--reason", _REASON)

    def _roll_back(self, where: str, store: str) -> None:
        """Give it to a node that knows the device to be updated."""
        device = self._updated(store)[0]
        command = ("device", "rollback", "--id", device_id(store, device).path, "--wave", self._name, "--yes")
        self._tell(where, *command, "--reason", _REASON)
        self._wave.setdefault("rollbacks", []).append(device)

    def _halt(self) -> None:
        self._wait_for_updates()
        self._tell("control", "wave", "halt", "--wave", self._name, "--reason", _REASON, "--yes")
        self._stopped("halted")

    def _halt_at_hub(self) -> None:
        """The hub acts at once and tells control."""
        store = next(iter(self._lab.stores))
        self._wait(lambda: bool(self._updated(store)), f"an update at {store}")
        self._tell(store, "wave", "halt", "--wave", self._name, "--reason", _REASON, "--yes")
        self._stopped("halted", store)
        self._wait(lambda: wave_state(self._lab.control_dir, self._name) == "halted", "control to hear of the halt")
        self._stopped("halted")

    def _hold(self) -> None:
        self._wait_for_updates()
        self._tell("control", "release", "hold", self._wave["release"], "--reason", _REASON)
        stop = self._stopped("held")
        self._lift(stop, "control", "release", "unhold", self._wave["release"], "--reason", _REASON)

    def _revoke(self) -> None:
        """By the release keys; control halts the wave by itself."""
        self._wait_for_updates()
        self._insist(lambda: operations.revoke(self._lab, self._wave["release"], _REASON))
        self._wait(
            lambda: wave_state(self._lab.control_dir, self._name) == "halted", "control to halt what was revoked"
        )
        self._stopped("revoked")

    # --- acts --------------------------------------------------------------------------------------------------------

    def _tell(self, where: str, *command: str) -> None:
        """Give a word to a node until it is answered; raises TooLateError."""
        self._words += 1
        intent = () if command[0] == "release" else ("--intent-id", f"{self._name}-{self._words}")
        self._say(f"     operator: {' '.join(command[:2])} of {self._name} at {where}")
        self._insist(lambda: edgectl(self._lab, where, *command, *intent))

    def _insist(self, act: Callable[[], object]) -> None:
        while True:
            try:
                act()
            except (WavemeshError, RefusedError) as exc:
                self._check_patience(str(exc))
            else:
                return
            time.sleep(_AGAIN_S)

    def _stopped(self, kind: str, store: str = "") -> dict[str, Any]:
        """Write down that nothing new may begin from now on."""
        stop: dict[str, Any] = {"kind": kind}
        if store:
            stop |= {"store": store, "most": SWAP_LIMIT}
        else:
            stop["outstanding"] = sorted(permits_unspent(self._lab.control_dir, self._name))
        stop["since"] = datetime.now(UTC).isoformat()
        self._wave.setdefault("stops", []).append(stop)
        return stop

    def _lift(self, stop: dict[str, Any], where: str, *command: str) -> None:
        """Let go on what has stood still for a while."""
        time.sleep(STOPPED_S)  # plays: an operator who looks at the wave that stands still
        stop["until"] = datetime.now(UTC).isoformat()
        self._tell(where, *command)

    # --- looking -----------------------------------------------------------------------------------------------------

    def _wait_for_updates(self) -> None:
        self._wait(lambda: any(map(self._updated, self._lab.stores)), "an update")

    def _updated(self, store: str) -> list[str]:
        """Devices of a store that hub and control know to be updated."""
        paths = {device_id(store, name).path: name for name in self._lab.stores[store]}
        hub = {one.device for one in hub_ledger(self._lab.store_dir(store), self._name) if one.kind == "updated"}
        control = {one.device for one in control_ledger(self._lab.control_dir, self._name) if one.kind == "updated"}
        return [paths[path] for path in sorted(hub & control)]

    def _wait(self, is_so: Callable[[], bool], what: str) -> None:
        while True:
            try:
                if is_so():
                    return
                reason = "not yet"
            except EvidenceError as exc:
                reason = str(exc)
            self._check_patience(f"{what}: {reason}")
            time.sleep(_LOOK_S)

    def _check_patience(self, why: str) -> None:
        if time.monotonic() > self._until_s:
            raise TooLateError(why)
        try:
            is_over = is_closed(self._lab.control_dir, self._name)
        except EvidenceError:
            return
        if is_over:
            raise TooLateError(f"{self._name} is closed; {why}")


class RefusedError(Exception):
    """What ``edgectl`` ended with, in its own words."""


def edgectl(lab: Lab, where: str, *command: str) -> dict[str, Any]:
    """Ask a node by ``edgectl``, from the site where it stands and as its operator; raises RefusedError."""
    contexts = place.contexts_of_the_store(lab) if where in lab.stores else lab.contexts_path
    site = lab.site(where) if isinstance(lab, place.SiteLab) and where in lab.stores else ""
    inside = ("nsenter", f"--net={place.NAMESPACES / site}") if site else ()
    try:
        done = subprocess.run(
            [*inside, sys.executable, "-m", "edgectl", "--context", where, "--output", "json", *command],
            check=False,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            cwd=Path(__file__).resolve().parents[2],
            env=os.environ | {"EDGECTL_CONFIG": str(contexts)},
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as exc:
        raise RefusedError(f"edgectl {command[0]} took more than {_COMMAND_TIMEOUT_S:g} s") from exc
    if done.returncode:
        raise RefusedError(f"exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
