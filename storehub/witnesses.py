"""Decides whether the silence of a device tells of the device, or of something that befell its store. Pure.

Others that are heard speak against the device: had the store lost its LAN, they would be gone as well. But a cause may
be common to a part of a store: a dead switch, tills switched off at closing with one left on. So those are asked that
were in no swap, whose silence no release explains, the *bystanders*:

- a *witness* has been connected for ``witness_s``, so that the first to return after an outage convicts nobody;
- *fallen* is one that is not connected, and was heard after the silent device was given its lease.

The device is silent when there is a witness and at most one bystander fell for every two witnesses; else it is unknown,
and judged again at each pass. In the morning the tills come back with their own words, are witnesses themselves, and
whoever still says nothing is convicted then. One that was dead before the swap began has not fallen.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from wavemesh.trust.statements import OutcomeKind

if TYPE_CHECKING:
    from datetime import datetime

    from storehub.swaps import HubView

WITNESSES_FOR_EACH_FALLEN = 2
_SUSPECT = frozenset({OutcomeKind.UNKNOWN, OutcomeKind.SILENT, OutcomeKind.FAILED})


def has_witness(view: HubView, device: str, granted_at: datetime) -> bool:
    """Whether that device's silence since its lease was granted tells of the device."""
    suspects = {path for (_, path), word in view.words.items() if not word.by_device and word.kind in _SUSPECT}
    bystanders = [
        other
        for other in view.devices.values()
        if other.path != device and other.path not in view.slots and other.path not in suspects
    ]
    heard_since = view.now - timedelta(seconds=view.timing.witness_s)
    witnesses = fallen = 0
    for other in bystanders:
        if other.connected_since is None:
            fallen += other.seen_at > granted_at
        else:
            witnesses += other.connected_since <= heard_since
    return witnesses > 0 and fallen * WITNESSES_FOR_EACH_FALLEN <= witnesses
