"""The boot environment as named variables, for bootloaders that keep such: GRUB and U-Boot. Pure.

    wavemesh_sequence         count of writes, for people
    wavemesh_active           A | B: what boots when nothing is on trial
    wavemesh_active_config    config generation that belongs to it
    wavemesh_previous         A | B | -: the last known good
    wavemesh_previous_config  its config generation, or -
    wavemesh_trial            A | B | -: what boots next for as long as there are tries
    wavemesh_trial_config     its config generation, or -
    wavemesh_tries            0 to 10, decimal: what is left of them
    wavemesh_fall_backs       0, 1 or 2: how often the active slot was booted since none was left; 2 is "2 or more"

Rules. Every variable is always there and none is empty, for U-Boot drops empty ones and GRUB changes in place only what
is there. A bootloader writes ``wavemesh_tries`` and ``wavemesh_fall_backs`` only. It counts, for it does not know what
ended a trial. Reading is strict: what this module would not have written is no environment.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from device.bootenv import (
    MAX_FALL_BACKS,
    MAX_TRIES,
    Boot,
    BootEnvironment,
    BootEnvironmentError,
    SlotName,
    Trial,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "wavemesh_"
_NONE = "-"
_MAX_NUMBER = 999_999_999
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


def to_variables(environment: BootEnvironment) -> dict[str, str]:
    """All variables, in the order above."""
    trial = environment.trial
    values = {
        "sequence": str(environment.sequence % (_MAX_NUMBER + 1)),
        **_from_boot("active", environment.active),
        **_from_boot("previous", environment.previous),
        **_from_boot("trial", None if trial is None else trial.boot),
        "tries": str(0 if trial is None else min(trial.tries_left, MAX_TRIES)),
        "fall_backs": str(0 if trial is None else trial.fall_backs),
    }
    return {PREFIX + name: value for name, value in values.items()}


def from_variables(variables: Mapping[str, str], where: str) -> BootEnvironment:
    """Read what ``to_variables`` made and a bootloader went on with; ``where`` names the file in errors.

    Raises BootEnvironmentError for anything else.
    """
    try:
        active = _to_boot(variables, "active")
        if active is None:
            msg = f"{PREFIX}active names no slot"
            raise ValueError(msg)
        boot = _to_boot(variables, "trial")
        tries, fall_backs = _number(variables, "tries"), _number(variables, "fall_backs")
        if tries > MAX_TRIES or fall_backs > MAX_FALL_BACKS or (boot is None and (tries or fall_backs)):
            msg = f"{PREFIX}tries={tries} and {PREFIX}fall_backs={fall_backs} do not go with this trial"
            raise ValueError(msg)
        trial = None if boot is None else Trial(boot, tries, fall_backs=fall_backs)
        return BootEnvironment(active, _to_boot(variables, "previous"), trial, _number(variables, "sequence"))
    except KeyError as error:
        msg = f"{where}: no variable {error.args[0]}; write it anew with the slot that is known to be good"
        raise BootEnvironmentError(msg, file=where) from error
    except ValueError as error:
        msg = f"{where}: not a boot environment ({error}); write it anew with the slot that is known to be good"
        raise BootEnvironmentError(msg, file=where) from error


def _from_boot(role: str, boot: Boot | None) -> dict[str, str]:
    if boot is None:
        return {role: _NONE, f"{role}_config": _NONE}
    return {role: boot.slot.value, f"{role}_config": str(boot.config_generation)}


def _to_boot(variables: Mapping[str, str], role: str) -> Boot | None:
    slot, config = variables[PREFIX + role], variables[f"{PREFIX}{role}_config"]
    if (slot, config) == (_NONE, _NONE):
        return None
    return Boot(SlotName(slot), _number(variables, f"{role}_config"))


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables[PREFIX + name]
    if _NUMBER.fullmatch(text) is None:
        msg = f"{PREFIX}{name}={text!r:.40} is not a count"
        raise ValueError(msg)
    return int(text)
