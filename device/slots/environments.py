"""What every boot environment has in common, whatever holds it: a transition is one atomic replacement.

A back-end says how an environment is read and how it is replaced; the transitions are those of device/bootenv.py. One
object serves the agent as its boot control, and as the bootloader a supervisor that plays the board.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from device.bootenv import Boot, BootEnvironment, ResetReason, SlotName


class StoredEnvironment(ABC):
    """The boot environment of one device on its medium."""

    def __init__(self, *, redundant_bootloader: bool = False) -> None:
        """Whether payloads that touch the bootloader are written redundantly is for the configuration to declare."""
        self.redundant_bootloader = redundant_bootloader

    @abstractmethod
    def read(self) -> BootEnvironment:
        """The environment on the medium; raises BootEnvironmentError, DiskFaultError."""

    @abstractmethod
    def write(self, environment: BootEnvironment) -> None:
        """Replace it as a whole, durably; raises BootEnvironmentError, DiskFaultError."""

    def lay(self, environment: BootEnvironment) -> None:
        """The first one of a new device."""
        self.write(environment)

    def attempt(self) -> None:
        """The bootloader takes one try of the trial."""
        self._change(lambda environment: environment.attempt())

    def fall_back(self, reason: ResetReason) -> None:
        """The bootloader notes that the trial ended; one that can tell notes why."""
        self._change(lambda environment: self._fallen_back(environment, reason))

    def invalidate(self, slot: SlotName) -> None:
        """Nothing boots this slot any more."""
        self._change(lambda environment: environment.invalidate(slot))

    def arm(self, boot: Boot) -> None:
        """Try this once at the next boot."""
        self._change(lambda environment: environment.arm(boot))

    def keep_trying(self, tries: int) -> None:
        """The trial may boot again that often."""
        self._change(lambda environment: environment.keep_trying(tries))

    def disarm(self) -> None:
        """No trial any more."""
        self._change(lambda environment: environment.disarm())

    def commit(self) -> None:
        """The trial is the active boot now."""
        self._change(lambda environment: environment.commit())

    def revert(self) -> None:
        """The trial, which a rollback went back to, is the active boot now, and nothing is previous."""
        self._change(lambda environment: environment.revert())

    def _fallen_back(self, environment: BootEnvironment, reason: ResetReason) -> BootEnvironment:  # noqa: ARG002
        """What a real bootloader does, which knows no reason."""
        return environment.count_fall_back()

    def _change(self, transition: Callable[[BootEnvironment], BootEnvironment]) -> None:
        before = self.read()
        after = transition(before)
        if after != before:
            self.write(replace(after, sequence=before.sequence + 1))
