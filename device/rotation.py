"""Whether this device must renew its certificate for a wave. Pure.

Certificates rotate before a wave's permits are issued and never in a trial (semantics, "Trust"): a device that holds
the order of a planned or running wave, whose policy rotates, renews when its certificate is older than the plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from device.update import IN_SWAP
from wavemesh.trust.statements import WaveState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from wavemesh.policy.document import Policy
    from wavemesh.trust.statements import UpdateState, WaveOrder

_ROTATES = frozenset({WaveState.PLANNED, WaveState.RUNNING})


def may_renew(state: UpdateState) -> bool:
    """Whether this is a moment to change the certificate."""
    return state not in IN_SWAP


def wave_to_renew_for(
    orders: Iterable[WaveOrder],
    policies: Mapping[str, Policy],
    issued_at: datetime,
) -> str:
    """The wave that wants a certificate younger than ``issued_at``, empty if none does; ``orders`` of open waves."""
    for order in orders:
        policy = policies.get(order.policy_digest)
        if (
            order.state in _ROTATES
            and policy is not None
            and policy.guardrails.rotate_certificates
            and order.planned_at is not None
            and issued_at < order.planned_at
        ):
            return order.wave_id
    return ""
