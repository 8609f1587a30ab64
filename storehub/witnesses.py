"""Decides whether the silence of a device tells of the device, or of something that befell its store. Pure.

Others that are heard speak against the device: had the store lost its LAN, they would be gone as well. But a cause may
be common to a part of a store: a dead switch, tills switched off at closing with one left on. So those are asked that
were in no swap, whose silence no release explains, the *bystanders*:

- a *witness* has been connected for ``witness_s``, so that the first to return after an outage convicts nobody;
- *fallen* is one that is not connected, and was there after the silent device was given its lease: by its last word or
  the end of its session, for a switch that died just before is noticed just after; and one that was gone so and has
  been back for less than ``witness_s``, for the silent one may be a moment behind it. A hub that started since has not
  seen who left: who came late, or not at all and spoke in the day before, fell as far as is known.

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
KEPT_WORD = timedelta(days=1)
"""How old the last word on disk may be of one that was there: only what changes its state is written at once."""
_SUSPECT = frozenset({OutcomeKind.UNKNOWN, OutcomeKind.SILENT, OutcomeKind.FAILED})


def has_witness(view: HubView, device: str, granted_at: datetime) -> bool:
    """Whether that device's silence since its lease was granted tells of the device."""
    suspects = {path for (_, path), word in view.words.items() if not word.by_device and word.kind in _SUSPECT}
    bystanders = [
        other
        for other in view.devices.values()
        if other.path != device and other.path not in view.slots and other.path not in suspects
    ]
    witness_s = timedelta(seconds=view.timing.witness_s)
    started_at = view.started_at if view.started_at is not None and view.started_at > granted_at else None
    witnesses = fallen = 0
    for other in bystanders:
        since = other.connected_since
        if since is not None and since <= view.now - witness_s:
            witnesses += 1
            continue
        was_there = other.left_at is not None and other.left_at > granted_at
        if started_at is not None and not was_there:
            was_there = other.seen_at > granted_at - KEPT_WORD if since is None else since > started_at + witness_s
        fallen += was_there or (since is None and other.seen_at > granted_at)
    return witnesses > 0 and fallen * WITNESSES_FOR_EACH_FALLEN <= witnesses
