"""The components whose crash points are looked at, and the run of one scenario of them in a process of its own."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from device.config import Backend
from tests.crashpoints.campaign import Options, Result, explore
from tests.crashpoints.device_tale import tales as device_tales
from tests.crashpoints.storehub_tale import tales as storehub_tales
from tests.crashpoints.superhub_tale import tales as superhub_tales

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.crashpoints.campaign import Tale

HUBS: dict[str, Callable[[], Sequence[Tale[Any]]]] = {"storehub": storehub_tales, "superhub": superhub_tales}
COMPONENTS = ("device", *HUBS)
_TOLD_EVERY_S = 10.0


def tales_of(component: str, backend: str) -> Sequence[Tale[Any]]:
    """All scenarios of a component; a hub has no back-ends."""
    return device_tales(Backend(backend)) if component == "device" else HUBS[component]()


def tale_of(component: str, backend: str, scenario: str) -> Tale[Any]:
    """One scenario by name; LookupError."""
    found: dict[str, Tale[Any]] = {tale.name: tale for tale in tales_of(component, backend)}
    if scenario not in found:
        msg = f"component {component} has no scenario {scenario!r}; it has {', '.join(found)}"
        raise LookupError(msg)
    return found[scenario]


def run_scenario(component: str, backend: str, scenario: str, options: Options) -> tuple[Result, float]:
    """One scenario in a process of its own; the seconds are of that process."""
    began_s = time.process_time()
    told_s = time.monotonic()

    def told(text: str) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > _TOLD_EVERY_S:
            told_s = time.monotonic()
            sys.stderr.write(f"{text}\n")

    result = explore(tale_of(component, backend, scenario), options, told)
    return result, time.process_time() - began_s
