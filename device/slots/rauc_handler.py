"""RAUC's custom bootloader back-end: what RAUC asks and tells the boot environment, in our words.

``python -m device.slots.rauc_handler --dir DIR VERB [SLOT [STATE]]`` is what ``bootloader-custom-backend`` of RAUC's
system.conf runs; deploy/rauc has the script. Verbs: ``get-primary``, ``set-primary SLOT``, ``get-state SLOT``,
``set-state SLOT good|bad``, ``get-current``. It exits with 0, or with 1 and a line on stderr that RAUC passes on.

Rules. RAUC's marks are carried out only if the agent asked for exactly this one: its request names the mark, the boot
(the config generation with it, so both switch in one atomic write) and the environment it was made for. Somebody else's
``mark-good``, such as a unit that runs at each boot, commits no trial, and ``mark-active`` arms none. What needs no
request: to say again what is so, and to mark a slot bad that is not the active one, which RAUC does before it writes,
whoever asked for that; so the slot's label goes too, and what was verified there before is not armed any more.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device.bootenv import Boot, BootEnvironment, BootEnvironmentError, SlotName
from device.values import from_plain
from wavemesh.errors import WavemeshError

if TYPE_CHECKING:
    from device.platform import BootControl

MAX_REQUEST_BYTES = 4096
GOOD, BAD, ACTIVE = "good", "bad", "active"


@dataclass(frozen=True, slots=True)
class MarkRequest:
    """What the agent wants RAUC to mark: ``mark`` is ``active`` or ``good``, ``sequence`` the environment's of then."""

    mark: str
    boot: Boot
    sequence: int


def request_path(directory: Path) -> Path:
    """Where the agent leaves its request; ``directory`` is ``DIR/rauc``."""
    return directory / "request.json"


def read_request(path: Path) -> MarkRequest | None:
    """The request, None when there is none that can be read."""
    try:
        with path.open("rb") as file:
            return from_plain(MarkRequest, json.loads(file.read(MAX_REQUEST_BYTES)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def primary(environment: BootEnvironment) -> SlotName:
    """The slot that boots next."""
    trial = environment.trial
    return trial.boot.slot if trial is not None and trial.tries_left > 0 else environment.active.slot


def is_good(environment: BootEnvironment, slot: SlotName) -> bool:
    """Whether anything would boot it."""
    previous = environment.previous
    return slot in {primary(environment), environment.active.slot, None if previous is None else previous.slot}


def set_primary(control: BootControl, slot: SlotName, request: MarkRequest | None) -> None:
    """Arm what the agent asked for; raises BootEnvironmentError."""
    environment = control.read()
    if _asked(request, ACTIVE, slot, environment) and request is not None:
        control.arm(request.boot)
    elif environment.trial is not None or slot is not environment.active.slot:
        raise BootEnvironmentError(f"slot {slot.value} is not made active: only the agent arms a slot")


def set_state(control: BootControl, slot: SlotName, state: str, request: MarkRequest | None) -> None:
    """Commit what the agent asked for, or make a slot unbootable; raises BootEnvironmentError."""
    environment = control.read()
    if state == BAD:
        control.invalidate(slot)
    elif _asked(request, GOOD, slot, environment) and environment.trial is not None:
        control.commit()
    elif environment.trial is not None or slot is not environment.active.slot:
        raise BootEnvironmentError(f"slot {slot.value} is not marked good: only the agent ends a trial")


def _asked(request: MarkRequest | None, mark: str, slot: SlotName, environment: BootEnvironment) -> bool:
    if request is None or (request.mark, request.boot.slot, request.sequence) != (mark, slot, environment.sequence):
        return False
    return mark == ACTIVE or (environment.trial is not None and environment.trial.boot == request.boot)


def answer(directory: Path, verb: str, arguments: list[str]) -> str:
    """Do what RAUC asks for and say what it wants to know; raises WavemeshError."""
    from device.backend import open_environment
    from device.board import read_boot_record
    from device.config import load_device_config
    from device.slots.images import label_path
    from wavemesh.runtime.durable import Disk

    config = load_device_config(directory)
    control = open_environment(directory, config, Disk())
    request = read_request(request_path(config.rauc.directory))
    match verb, [*arguments]:
        case "get-primary", []:
            return primary(control.read()).value
        case "get-current", []:
            return read_boot_record(directory).boot.slot.value
        case "get-state", [slot]:
            return GOOD if is_good(control.read(), _slot(slot)) else BAD
        case "set-primary", [slot]:
            set_primary(control, _slot(slot), request)
        case "set-state", [slot, ("good" | "bad") as state]:
            set_state(control, _slot(slot), state, request)
            if state == BAD:
                Disk().remove(label_path(directory / "slots", _slot(slot)))
        case _:
            raise BootEnvironmentError(f"{verb} {' '.join(arguments)} is not a question of RAUC's custom back-end")
    return ""


def _slot(name: str) -> SlotName:
    try:
        return SlotName(name)
    except ValueError:
        raise BootEnvironmentError(f"{name!r} is no boot name: call the slots A and B in system.conf") from None


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m device.slots.rauc_handler", description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="directory of the device")
    parser.add_argument("verb")
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    try:
        said = answer(options.dir, options.verb, options.arguments)
    except WavemeshError as error:
        sys.stderr.write(f"rauc_handler: {error.reason}: {error}\n")
        return 1
    sys.stdout.write(f"{said}\n" if said else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
