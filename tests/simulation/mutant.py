"""Mutants of the mesh, written by hand: what one is, and how the modules beside this one add theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tests.simulation.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

Patch = Any
OTHER_DISK = (Fault.RESTORE_STORE_HUB, Fault.REPLACE_HUB, Fault.CLONE_HUB)
DARK = (Fault.CLOSING_TIME, Fault.STORE_POWER_CUT, Fault.DEAD_SWITCH)


@dataclass(frozen=True, slots=True)
class Mutant:
    """``broken`` says in one sentence what; ``patches`` makes the patches of one night.

    ``shows_by`` are the faults without which it hardly matters: nights with most of them are tried first.
    """

    name: str
    broken: str
    shows_by: tuple[Fault, ...]
    patches: Callable[[], Sequence[AbstractContextManager[Any]]]
    tale: str = ""
    """The tale in whose nights it is looked for, if those of chance show it too seldom."""


MUTANTS: list[Mutant] = []


def mutant(name: str, broken: str, *shows_by: Fault, tale: str = "") -> Callable[[Callable[[], Patch]], None]:
    """Register what the function makes, one patch or a list of them, as a mutant."""

    def add(make: Callable[[], Any]) -> None:
        def patches() -> Sequence[AbstractContextManager[Any]]:
            made = make()
            return made if isinstance(made, list) else [made]

        MUTANTS.append(Mutant(name, broken, shows_by, patches, tale))

    return add


def instead(owner: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    """Patch ``owner.name`` with what ``make`` makes of the original."""
    return patch.object(owner, name, make(getattr(owner, name)))


def passing(*_: object, **__: object) -> None:
    """A check that finds nothing."""


async def doing_nothing(*_: object, **__: object) -> None:
    """An effect that is left out."""
