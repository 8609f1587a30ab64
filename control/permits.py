"""Which permits a store hub gets, and what is exposed by those it has (semantics, "Permits and leases"). Pure.

Rules:
- A permit is for (wave, device) and bound to one incarnation of the store's hub. It is *outstanding* from its issue
  until its device itself says a final outcome or it is written off: a device whose hub infers that it is silent may
  come back, and the hub may then lease it again.
- By default a hub gets one for every target device that may still be tried; ``permitBatch`` keeps at most so many
  outstanding at a time that have no final outcome, inferred or not, and is filled up again as outcomes come in.
- A hub that shows another incarnation than the one its outstanding permits are bound to gets none. On that
  incarnation's snapshot they are written off as spent, and the devices that may still be tried get permits of a higher
  generation bound to the new one: the same devices, no more attempts, since devices burn attempts themselves.
- A revoked device gets none, and a revoked hub none for any device; what they have outstanding is written off as spent.
- Where the wave rotates certificates, a device gets its first permit once its certificate is younger than the wave.
  Until then it waits, pending; a batch goes to those that wait for nothing.
- Each issue is kept, so totals per (wave, hub) only grow: they are the number of issues.
- Exposure is the number of devices named in outstanding permits (P6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from control.ledger import is_final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from control.ledger import Outcome


@dataclass(frozen=True, slots=True)
class Issue:
    """The latest permit issued for one device of one wave."""

    device: str
    generation: int
    hub_incarnation: str
    written_off: bool = False


@dataclass(frozen=True, slots=True)
class StoreShare:
    """One store's share of a wave: its target devices in order, their permits and outcomes, by device path.

    ``revoked`` are the devices that may not be given a permit now, all of them when their hub is revoked.
    ``stale`` are devices whose certificate is older than the wave that rotates them.
    """

    devices: tuple[str, ...]
    issues: Mapping[str, Issue]
    outcomes: Mapping[str, Outcome]
    attempts: int
    revoked: frozenset[str] = frozenset()
    stale: frozenset[str] = frozenset()


def outstanding(share: StoreShare) -> tuple[str, ...]:
    """Devices named in outstanding permits, in order."""
    return tuple(
        device
        for device in share.devices
        if (issue := share.issues.get(device)) is not None and not issue.written_off and not is_spent(share, device)
    )


def to_write_off(share: StoreShare, hub_incarnation: str) -> tuple[str, ...]:
    """Devices whose outstanding permits are bound to another incarnation than the one that sent its snapshot."""
    return tuple(device for device in outstanding(share) if share.issues[device].hub_incarnation != hub_incarnation)


def to_take_back(share: StoreShare) -> tuple[str, ...]:
    """Devices whose outstanding permits are written off because they, or their hub, are revoked."""
    return tuple(device for device in outstanding(share) if device in share.revoked)


def to_issue(share: StoreShare, *, hub_incarnation: str, batch: int | None) -> tuple[str, ...]:
    """Devices that get a permit now, in order; none to a hub unknown or with another incarnation's outstanding."""
    if not hub_incarnation or to_write_off(share, hub_incarnation):
        return ()
    held = frozenset(outstanding(share))
    wanting = [
        device
        for device in share.devices
        if device not in held
        and device not in share.revoked
        and device not in share.stale
        and not _is_done(share, device)
    ]
    waited_for = sum(not _is_done(share, device) for device in held)
    return tuple(wanting if batch is None else wanting[: max(0, batch - waited_for)])


def waiting_for_certificate(share: StoreShare) -> tuple[str, ...]:
    """Devices that get no permit before they have renewed their certificate, in order."""
    held = frozenset(outstanding(share))
    return tuple(
        device
        for device in share.devices
        if device in share.stale and device not in held and not _is_done(share, device)
    )


def _is_done(share: StoreShare, device: str) -> bool:
    return is_final(share.outcomes.get(device), share.attempts)


def is_spent(share: StoreShare, device: str) -> bool:
    """Whether the device itself said a final outcome: it will not swap in this wave again."""
    outcome = share.outcomes.get(device)
    return outcome is not None and outcome.by_device and _is_done(share, device)


def exposure(shares: Iterable[StoreShare]) -> int:
    """Devices named in outstanding permits, in all."""
    return sum(len(outstanding(share)) for share in shares)
