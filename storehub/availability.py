"""Decides whether the hub may take a device of an availability group down, for a swap or for a rollback asked of it.

The policy says how many devices of a group stay up, the store's configuration which devices those are. Floors of all
orders held here count, whichever wave a device is taken down for. A device in several groups must be let go by each.

What a member counts as, by the first line that fits:

| what the hub knows of it | counts as |
|---|---|
| holds a slot (lease or rollback), or says it is inside a swap whose outcome is open | away |
| last outcome FAILED, or inferred by the hub (SILENT, UNKNOWN), and not heard at rest since | owing |
| inside a swap by its status, though its slot ran out: AWAITING_SIGNOFF without its sign-off | owing |
| COMMITTED or ROLLED_BACK in a wave in force, and its signed outcome has not arrived | owing |
| no session, or no status in it yet | down |
| at rest or REFUSED by a gate that says what it is used with is missing (``peripheral``, ``vendor``) | down |
| REFUSED by any other gate, wrong hardware and flat battery included: it goes on serving as it is | up |
| at rest before a swap or between two, or COMMITTED or ROLLED_BACK by its own signature | up |

A *swap* waits while another member is away, while one is owing (the next waits for signed health of the last), and
while fewer than the floor of the others are up. A *rollback* lowers risk: it does not wait for who is owing, and not at
all where the device says itself that it does not serve, for then nothing is lost (a Kubernetes PodDisruptionBudget with
``unhealthyPodEvictionPolicy: AlwaysAllow`` goes by the same rule). A sign-off ends a swap under way and waits for
nothing. A lease that its device has not used is held back while others that fell leave fewer than the floor, as fast as
that word travels. A device lets itself down without asking, by its own rollback or by failing: then fewer than the
floor may be up, and the hub adds nothing to it.

A group that the policy names and the store's configuration does not: swaps of that wave wait, since nobody here can
tell whom the floor protects. A store that has no such devices says so by an empty list.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from wavemesh.policy.gates import Gate
from wavemesh.trust.statements import OutcomeKind, UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from storehub.swaps import DeviceView, Group, HubView, Word

NOT_ARMED = frozenset(
    {
        UpdateState.IDLE,
        UpdateState.PREFLIGHT,
        UpdateState.STAGING,
        UpdateState.PAUSED,
        UpdateState.VERIFIED,
        UpdateState.REFUSED,
    }
)
"""States of a device that runs the slot it committed and has not armed another."""

_AFTER_SWAP = frozenset({UpdateState.COMMITTED, UpdateState.ROLLED_BACK})
_MISSING = frozenset({Gate.PERIPHERAL.value, Gate.VENDOR.value})


class Condition(enum.Enum):
    """What a device counts as for its groups."""

    UP = "up"
    DOWN = "down"
    OWING = "owing"
    AWAY = "away"


class Roster:
    """What each device counts as while one decision is made; ``away`` grows with the decision and is passed in."""

    def __init__(self, view: HubView, unheard: AbstractSet[str] = frozenset()) -> None:
        """Take the floors of the orders held; of ``unheard`` the decision infers an outcome."""
        self._view = view
        self._unheard = unheard
        self._floors = [group for wave in view.waves for group in wave.groups if group.members]
        self._waves = {wave.wave_id for wave in view.waves}
        self._standing: dict[Group, tuple[frozenset[str], frozenset[str]]] = {}
        self._latest: dict[str, Word] = {}
        for (_, path), word in view.words.items() if self._floors else ():
            known = self._latest.get(path)
            if known is None or word.received_at > known.received_at:
                self._latest[path] = word

    def why_not_swap(self, path: str, groups: Iterable[Group], away: AbstractSet[str]) -> str:
        """Why the device may not swap now, for people; empty if it may. ``groups`` are those of its wave."""
        for group in groups:
            if group.members is None:
                return f"no group {group.name} in this hub's config.toml: list its devices there, or none"
        return next((why for group in self._around(path) if (why := self._swap(path, group, away))), "")

    def why_not_rollback(self, path: str, away: AbstractSet[str]) -> str:
        """Why a rollback asked of the device waits, for people; empty if it does not."""
        device = self._view.devices.get(path)
        if device is not None and device.heard_in_session and _is_sick(device):
            return ""
        return next((why for group in self._around(path) if (why := self._floor(path, group, away))), "")

    def why_recall(self, path: str, away: AbstractSet[str]) -> str:
        """Why a lease that the device has not used is held back for now: others fell; empty if none did."""
        for group in self._around(path):
            others = (group.members or frozenset()) - {path}
            up = {one for one in others if self.condition(one, away) is Condition.UP}
            if len(up) < group.min_up:
                return f"{group.name} has {len(up)} of {len(others)} others up, floor {group.min_up}"
        return ""

    def condition(self, path: str, away: AbstractSet[str]) -> Condition:
        """What the device counts as."""
        if path in away:
            return Condition.AWAY
        if self._owes(path):
            return Condition.OWING
        device = self._view.devices.get(path)
        if device is None or device.connected_since is None or not device.heard_in_session:
            return Condition.DOWN
        return Condition.DOWN if _is_sick(device) else Condition.UP

    def _around(self, path: str) -> Iterable[Group]:
        return (group for group in self._floors if group.members and path in group.members)

    def _owes(self, path: str) -> bool:
        """Whether signed health of the device is missing after a swap."""
        device, word = self._view.devices.get(path), self._latest.get(path)
        if path in self._unheard or (device is not None and _is_inside(device)):
            return True
        if device is not None and device.state in _AFTER_SWAP and device.wave_id in self._waves:
            own = self._view.words.get((device.wave_id, path))
            is_committed = device.state is UpdateState.COMMITTED
            if own is None or own.attempt < device.attempt or is_committed is not (own.kind is OutcomeKind.UPDATED):
                return True
        if word is None or (word.by_device and word.kind is not OutcomeKind.FAILED):
            return False
        is_rested = device is not None and device.heard_in_session and device.state in NOT_ARMED
        return not (is_rested and device is not None and device.seen_at > word.received_at)

    def _swap(self, path: str, group: Group, away: AbstractSet[str]) -> str:
        members = group.members or frozenset()
        if group.min_up >= len(members):
            return f"{group.name} has {len(members)} devices and a floor of {group.min_up}: none of them can ever swap"
        _, owing = self._stand(group)
        if not members & away - {path} and owing - {path}:
            return f"{group.name} waits for signed health of {_names(owing - {path})}"
        return self._floor(path, group, away)

    def _floor(self, path: str, group: Group, away: AbstractSet[str]) -> str:
        members = group.members or frozenset()
        if inside := members & away - {path}:
            return f"{group.name}: {_names(inside)} inside a swap"
        up, _ = self._stand(group)
        if len(up - {path}) >= group.min_up:
            return ""
        missing = f" (not {_names(members - up)})" if members - up else ""
        return f"{group.name} has {len(up)} of {len(members)} up{missing}, floor {group.min_up}"

    def _stand(self, group: Group) -> tuple[frozenset[str], frozenset[str]]:
        """Members that are up and members that owe their health, whoever is away; found once a decision."""
        if group not in self._standing:
            found = {one: self.condition(one, frozenset()) for one in group.members or ()}
            up, owing = (
                frozenset(one for one, condition in found.items() if condition is wanted)
                for wanted in (Condition.UP, Condition.OWING)
            )
            self._standing[group] = (up, owing)
        return self._standing[group]


def _is_inside(device: DeviceView) -> bool:
    return device.state not in NOT_ARMED | _AFTER_SWAP


def _is_sick(device: DeviceView) -> bool:
    """Whether the device says itself that it does not serve."""
    is_short = device.state in NOT_ARMED and device.gate.split(":", 1)[0] in _MISSING
    return is_short or _is_inside(device)


def _names(paths: Iterable[str]) -> str:
    return ", ".join(path.rsplit("/", 1)[-1] for path in sorted(paths))
