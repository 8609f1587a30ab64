"""Kinds of faults."""

from __future__ import annotations

import enum


class Fault(enum.Enum):
    """Kinds of faults, with how often each is drawn beside the others."""

    def __new__(cls, value: str, _weight: float) -> Fault:  # noqa: PYI034  # an enum's member
        member = object.__new__(cls)
        member._value_ = value
        return member

    def __init__(self, value: str, weight: float) -> None:
        self.weight = weight

    CUT_WAN = "cut-wan", 4
    """A hub's connection to its parent is reset, and cannot be made for some minutes."""
    CUT_LAN = "cut-lan", 4
    """The same for one device."""
    DARK_STORE = "dark-store", 3
    """A store has no WAN for hours."""
    PARTITION = "partition", 3
    """Control cannot be reached from any region: also the health authority is gone."""
    HALF_OPEN = "half-open", 4
    """Frames of one direction of a hub's or device's link stop arriving, and nobody is told."""
    STALL = "stall", 4
    """Nothing arrives in either direction for seconds; then all of it does."""
    DELAY = "delay", 3
    """Every frame of a link takes seconds."""
    SLOW_LINK = "slow-link", 3
    """A link passes one frame in a second or less."""
    DEAD_SWITCH = "dead-switch", 3
    """Half of a store's devices lose their network."""
    CLOSING_TIME = "closing-time", 3
    """Nearly all of a store's tills are switched off for the night, and on again in the morning."""
    THUNDERING_HERD = "thundering-herd", 3
    """Every link of the region breaks at once, and heals at once."""
    CRASH_DEVICE = "crash-device", 4
    """An agent dies at one of its next effects."""
    CRASH_STORE_HUB = "crash-store-hub", 6
    """A store hub dies at one of its next effects."""
    CRASH_SUPER_HUB = "crash-super-hub", 5
    """A super hub dies at one of its next effects."""
    CRASH_CONTROL = "crash-control", 4
    """Control dies at one of its next effects."""
    HOST_DOWN = "host-down", 3
    """A hub's host vanishes without a word, for minutes."""
    FULL_DISK_HUB = "full-disk-hub", 3
    """A hub, or control, can write nothing for some minutes."""
    FULL_DISK_DEVICE = "full-disk-device", 3
    """A device can write what its reserve allows and no more, for some minutes."""
    CLOCK_SKEW = "clock-skew", 3
    """A node's clock goes wrong by up to four minutes, which the mesh must bear."""
    CLOCK_JUMP = "clock-jump", 2
    """A device's or store hub's clock jumps by up to hours, and is set right later."""
    POWER_CUT = "power-cut", 3
    """A device loses its power for a moment or for minutes."""
    POWER_CUT_IN_SWAP = "power-cut-in-swap", 5
    """The same for one that is inside a swap, if there is one."""
    STORE_POWER_CUT = "store-power-cut", 2
    """A whole store loses its power, its hub too."""
    RESTORE_STORE_HUB = "restore-store-hub", 4
    """A store hub gets its disk of some time ago."""
    RESTORE_SUPER_HUB = "restore-super-hub", 3
    """A super hub gets its disk of some time ago."""
    LOSE_SUPER_HUB_DISK = "lose-super-hub-disk", 2
    """A super hub loses its disk."""
    RESTORE_CONTROL = "restore-control", 2
    """Control gets its database of some time ago."""
    CLONE_HUB = "clone-hub", 2
    """A copy of a store hub's disk runs beside it; some devices find the copy."""
    REPLACE_HUB = "replace-hub", 2
    """A store hub is replaced by a new one with an empty disk."""
    REPLACE_DEVICE = "replace-device", 2
    """A device is replaced by a new one with the old release under the same name."""
    MOVE_DEVICE = "move-device", 2
    """A device is enrolled at another store."""
    DEAD_DEVICE = "dead-device", 1
    """A device dies for good."""
    FLAPPING_DEVICE = "flapping-device", 2
    """A device's link goes up and down for a while."""
    GATE_CLOSED = "gate-closed", 3
    """A device's battery is too low, for a while."""
    REVOKE = "revoke", 1
    """The release keys take the wave's release back."""
    HOLD = "hold", 2
    """Control puts the wave's release on hold, and lifts that later."""
    PAUSE = "pause", 3
    """An operator pauses the wave at control, and resumes it later."""
    PAUSE_AT_HUB = "pause-at-hub", 3
    """An operator pauses the wave at a store hub, and resumes it there later."""
    HALT = "halt", 1.2
    """An operator halts the wave at control."""
    HALT_AT_HUB = "halt-at-hub", 1.2
    """An operator halts the wave at a store hub."""
    POLICY_CHANGE = "policy-change", 2
    """The policy of the waves to come changes: the limit, the permits, who acknowledges health."""
    ROLL_BACK_DEVICE = "roll-back-device", 2
    """An operator rolls one device back."""
