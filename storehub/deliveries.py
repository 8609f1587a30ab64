"""Decides about deliveries of blobs to this store: what to rebuild from, what may be spent, what came of it. Pure.

A *delivery* is how one blob comes, from the plan before its first byte to its end. It is charged to one wave, the
first of this store that needs the blob, and stays for the wave's ledger: what was forecast, what was moved.

Rules.
1. Blobs below ``LEAST_PLANNED_BYTES`` are read as they are, neither planned nor charged: asking costs as much.
2. The likeliest bases are named first: the same artifact of other releases, of these what most devices run, then what
   was used last. Blobs of other kinds follow by use; what is too small to help is not named.
3. What is moved counts as long as it was read for this delivery, also for plans that were given up. What lay here
   before is not counted, and what a plan reads of a blob is counted once, however often it was interrupted.
4. A payload that is not made within LATE_FACTOR of the time that was said, and LATE_S more, is not waited for again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from wavemesh.artifacts.plan import Failure, Method
from wavemesh.trust.delivered import DeliveryState, DeliveryView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from wavemesh.artifacts.plan import TransferPlan
    from wavemesh.trust.releases import ReleaseManifest
    from wavemesh.trust.statements import Digest

LEAST_PLANNED_BYTES = 64 * 1024
BASES_MOST = 64
FAILURES_MOST = 16
GAP_BYTES = 16 * 1024
"""Ranges of a pack that lie so close are read as one."""
SHOWN_MOST = 64
HELD_SHOWN_MOST = 16
_STEPS_SHOWN = 16
_WORDS_BYTES = 480
LATE_FACTOR = 2.0
LATE_S = 60.0
WAIT_STEP_S = 30.0
RATE_LEAST_BYTES = 256 * 1024
RATE_WEIGHT = 0.3
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Delivery:
    """One blob on its way, or arrived. ``wave_id`` is what it is charged to, empty for a prefetch without a wave.

    ``forecast_bytes`` is what the first plan said before the first byte. ``settled_bytes`` were read for plans that
    were given up, ``held_bytes`` of the plan in force lay here before it, ``moved_bytes`` is the sum at the end.
    ``said`` is why it is so, in words; ``wait_until`` when to ask again, ``waits_since`` since when it waits.
    """

    target: Digest
    wave_id: str
    began_at: datetime
    state: DeliveryState
    plan: TransferPlan | None = None
    forecast_bytes: int = 0
    settled_bytes: int = 0
    held_bytes: int = 0
    moved_bytes: int = 0
    said: str = ""
    waits_since: datetime | None = None
    wait_until: datetime | None = None
    failures: tuple[Failure, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it is not at its end."""
        return self.state is not DeliveryState.DONE


def pieces_needed(plan: TransferPlan) -> tuple[Digest, ...]:
    """The whole blobs that a plan reads besides its target, the index first; of a pack only parts are read."""
    if plan.method is Method.FULL:
        return ()
    payload = () if plan.method is Method.CHUNKS else (plan.payload,)
    return tuple(digest for digest in (plan.index, *payload) if digest is not None)


@dataclass(frozen=True, slots=True)
class HeldBlob:
    """A complete blob of this store, and when it was last used."""

    digest: Digest
    last_used_at: datetime


def likely_bases(
    target: Digest, held: Iterable[HeldBlob], releases: Iterable[ReleaseManifest], running: Mapping[str, int]
) -> tuple[Digest, ...]:
    """What a rebuild of ``target`` may start from, the likeliest first; ``running`` counts devices by SHA-256."""
    known = list(releases)
    kinds = {kind for kind, digest in _kinds(known) if digest == target}
    kin = {digest for kind, digest in _kinds(known) if kind in kinds}

    def order(blob: HeldBlob) -> tuple[bool, int, float, str]:
        digest = blob.digest
        return digest not in kin, -running.get(digest.sha256, 0), -blob.last_used_at.timestamp(), digest.sha256

    useful = (blob for blob in held if blob.digest.size_bytes >= LEAST_PLANNED_BYTES and blob.digest != target)
    return tuple(blob.digest for blob in sorted(useful, key=order)[:BASES_MOST])


def _kinds(releases: Sequence[ReleaseManifest]) -> Iterable[tuple[tuple[str, str], Digest]]:
    """What each artifact is: the firmware of a class, the config of a class, the bundle of a class."""
    for release in releases:
        for kind, artifact in (("firmware", release.firmware), ("config", release.config), ("bundle", release.bundle)):
            if artifact is not None:
                yield (kind, release.device_class), artifact.digest


def read_so_far(delivery: Delivery, present: Callable[[Digest], int], gathered_bytes: int) -> int:
    """Bytes read for a delivery: ``present`` has how many of a blob are here, ``gathered_bytes`` how many of a pack."""
    if delivery.state is DeliveryState.DONE:
        return delivery.moved_bytes
    return delivery.settled_bytes + max(0, _of_plan(delivery, present, gathered_bytes) - delivery.held_bytes)


def _of_plan(delivery: Delivery, present: Callable[[Digest], int], gathered_bytes: int) -> int:
    plan = delivery.plan
    if plan is None or plan.is_waiting:
        return 0
    if plan.method is Method.FULL:
        return present(plan.target)
    return sum(map(present, pieces_needed(plan))) + gathered_bytes


def budget_left(
    budget_bytes: int | None, wave_id: str, moved: Iterable[tuple[Delivery, int]], but: Digest
) -> int | None:
    """What a wave may still read at this store, by what its deliveries moved; ``but`` is the one it is asked for.

    What another delivery has planned and not read yet counts as spent: two that begin at once must not both spend it.
    What ``but`` itself read for plans that were given up counts, what it holds of its plan is its caller's to add.
    """
    if budget_bytes is None:
        return None
    spent = 0
    for delivery, bytes_read in moved:
        if delivery.wave_id != wave_id:
            continue
        if delivery.target == but:
            spent += delivery.settled_bytes
        elif delivery.is_open and delivery.plan is not None and delivery.state is not DeliveryState.REFUSED:
            spent += max(bytes_read, delivery.settled_bytes + delivery.plan.read_bytes - delivery.held_bytes)
        else:
            spent += bytes_read
    return max(0, budget_bytes - spent)


def late(delivery: Delivery, now: datetime) -> Failure | None:
    """The plan that was waited for too long, if it was."""
    plan, since = delivery.plan, delivery.waits_since
    if plan is None or since is None or not plan.is_waiting:
        return None
    waited_s = (now - since).total_seconds()
    if waited_s <= plan.ready_in_s * LATE_FACTOR + LATE_S:
        return None
    return Failure(plan.method, plan.bases, None, f"it was not made within {waited_s:.0f} s")


def next_look(ready_in_s: float, now: datetime) -> datetime:
    """When to ask again for what is being made."""
    return now + timedelta(seconds=min(max(ready_in_s, 0.5), WAIT_STEP_S))


def rate_after(bytes_per_s: float, read_bytes: int, took_s: float) -> float:
    """The speed of the link to plan with, after a read that took so long; short reads say nothing."""
    if read_bytes < RATE_LEAST_BYTES or took_s <= 0:
        return bytes_per_s
    return (1 - RATE_WEIGHT) * bytes_per_s + RATE_WEIGHT * read_bytes / took_s


def charged_wave(target: Digest, waves: Iterable[tuple[str, datetime, tuple[Digest, ...]]]) -> str:
    """The wave that pays for a blob: of the open ones that need it, id, since when and blobs, the first; or none."""
    needing = sorted((since, wave_id) for wave_id, since, blobs in waves if target in blobs)
    return needing[0][1] if needing else ""


def shown(
    deliveries: Iterable[Delivery],
    open_waves: Iterable[str],
    moved: Callable[[Delivery], int],
    names: Mapping[Digest, tuple[str, ...]],
) -> tuple[DeliveryView, ...]:
    """What a status says of deliveries: those of open waves first, then the newest, SHOWN_MOST of them."""
    running = frozenset(open_waves)

    def order(delivery: Delivery) -> tuple[bool, float, str]:
        return delivery.wave_id not in running, -delivery.began_at.timestamp(), delivery.target.sha256

    first = sorted(deliveries, key=order)[:SHOWN_MOST]
    return tuple(_view(one, moved(one), ", ".join(names.get(one.target, ()))) for one in first)


def _view(delivery: Delivery, moved_bytes: int, name: str) -> DeliveryView:
    plan = delivery.plan
    return DeliveryView(
        sha256=delivery.target.sha256,
        size_bytes=delivery.target.size_bytes,
        state=delivery.state,
        wave_id=delivery.wave_id,
        name=_clipped(name),
        method=plan.method.value if plan is not None else "",
        forecast_bytes=delivery.forecast_bytes,
        moved_bytes=moved_bytes,
        said=_clipped(delivery.said),
    )


def in_steps(view: DeliveryView) -> DeliveryView:
    """The view for a status that goes up: while bytes move it changes a few times only, or it would cost the link."""
    if view.state is DeliveryState.DONE:
        return view
    step = max(MIB, view.size_bytes // _STEPS_SHOWN)
    return replace(view, moved_bytes=view.moved_bytes - view.moved_bytes % step)


def held_shown(held: Iterable[HeldBlob]) -> tuple[Digest, ...]:
    """What a status says is held: what a delivery may start from, the last used first."""
    useful = [blob for blob in held if blob.digest.size_bytes >= LEAST_PLANNED_BYTES]
    useful.sort(key=lambda blob: (-blob.last_used_at.timestamp(), blob.digest.sha256))
    return tuple(blob.digest for blob in useful[:HELD_SHOWN_MOST])


def _clipped(text: str) -> str:
    return text.encode()[:_WORDS_BYTES].decode(errors="ignore")
