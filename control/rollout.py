"""Plans a wave: which devices of which stores it takes (semantics, "Populations and numbers"). Pure.

Rules:
- A *segment* is the devices whose label ``segment`` has that value. It falls into *cohorts* by (device class,
  hardware revision). One cohort bears the segment's name; several bear ``segment/class/revision``, and naming the bare
  segment is then refused with the list of them (P3).
- ``percentage`` counts the whole cohort, rounded up, at least 1. Left out afterwards: devices in another open wave,
  devices that run the release already, stores outside the release's regions. ``hubBudget`` caps the stores (P3).
- A release that touches the bootloader is planned at 1 % until 48 h have passed since its first wave started (P4).
- The choice is a function of its inputs alone: stores in order of path, one device of each store in turn.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from wavemesh.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SEGMENT_LABEL = "segment"
FREEZE_PERCENTAGE = 1
FREEZE = timedelta(hours=48)


class MixedCohortError(ConflictError):
    """The population named has more than one device class or hardware revision."""

    reason = "MIXED_COHORT"


class EmptyWaveError(ConflictError):
    """A cohort has no device left that a wave could take."""

    reason = "EMPTY_WAVE"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered device as planning sees it; ``open_wave`` is the id of the open wave it is in, or empty."""

    path: str
    device_class: str
    hardware_revision: str
    runs_release: bool = False
    open_wave: str = ""

    @property
    def store(self) -> str:
        """Path of the device's store."""
        return store_of(self.path)


@dataclass(frozen=True, slots=True)
class Cohort:
    """A homogeneous population, its devices in order of path."""

    name: str
    device_class: str
    hardware_revision: str
    devices: tuple[Candidate, ...]


def store_of(device_path: str) -> str:
    """Path of the store a device path lies in."""
    return device_path.rsplit("/", 2)[0]


def region_of(path: str) -> str:
    """Path of the region a store or device path lies in."""
    return "/".join(path.split("/", 2)[:2])


def name_of(path: str) -> str:
    """Last segment of a node path."""
    return path.rsplit("/", 1)[1]


def cohorts_of(segment: str, devices: Iterable[Candidate]) -> tuple[Cohort, ...]:
    """The cohorts a segment falls into, by name; empty for an empty segment."""
    groups: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for device in devices:
        groups[device.device_class, device.hardware_revision].append(device)
    return tuple(
        Cohort(
            name=segment if len(groups) == 1 else f"{segment}/{kind}/{revision}",
            device_class=kind,
            hardware_revision=revision,
            devices=tuple(sorted(members, key=lambda device: device.path)),
        )
        for (kind, revision), members in sorted(groups.items())
    )


def choose_cohort(name: str, segment: str, devices: Iterable[Candidate]) -> Cohort:
    """The cohort of that name in the policy's segment.

    Raises MixedCohortError for the name of a segment that splits, NotFoundError for a name that no cohort has.
    """
    cohorts = cohorts_of(segment, devices)
    names = ", ".join(cohort.name for cohort in cohorts)
    if name == segment and len(cohorts) > 1:
        msg = f"segment {segment!r} mixes device classes or hardware revisions; name one of its cohorts: {names}"
        raise MixedCohortError(msg, segment=segment, cohorts=names)
    for cohort in cohorts:
        if cohort.name == name:
            return cohort
    known = f"its cohorts: {names}" if names else "no registered device has that segment label"
    msg = f"no cohort {name!r} in segment {segment!r} of the policy; {known}"
    raise NotFoundError(msg, cohort=name, segment=segment, cohorts=names)


def effective_percentage(
    percentage: int, *, touches_bootloader: bool, first_started_at: datetime | None, now: datetime
) -> int:
    """The policy's percentage, or 1 while the bootloader freeze holds (P4)."""
    thawed = first_started_at is not None and now - first_started_at >= FREEZE
    return min(percentage, FREEZE_PERCENTAGE) if touches_bootloader and not thawed else percentage


def wave_size(cohort_size: int, percentage: int) -> int:
    """How many devices a wave adds: the share of the whole cohort, rounded up, at least 1."""
    return max(1, -(-cohort_size * percentage // 100))


def choose_devices(
    cohort: Cohort, *, size: int, hub_budget: int | None, regions: frozenset[str]
) -> Mapping[str, tuple[str, ...]]:
    """Device paths by store path; ``regions`` are names, empty for all. Raises EmptyWaveError."""
    by_store: dict[str, list[str]] = defaultdict(list)
    for device in cohort.devices:
        allowed = not regions or name_of(region_of(device.path)) in regions
        if allowed and not device.runs_release and not device.open_wave:
            by_store[device.store].append(device.path)
    stores = sorted(by_store)[:hub_budget]
    if not stores:
        raise EmptyWaveError(_why_empty(cohort), cohort=cohort.name)
    chosen: dict[str, list[str]] = {store: [] for store in stores}
    rounds = max(len(by_store[store]) for store in stores)
    turns = ((store, turn) for turn in range(rounds) for store in stores if turn < len(by_store[store]))
    for count, (store, turn) in enumerate(turns):
        if count == size:
            break
        chosen[store].append(by_store[store][turn])
    return {store: tuple(devices) for store, devices in chosen.items() if devices}


def _why_empty(cohort: Cohort) -> str:
    running = sum(device.runs_release for device in cohort.devices)
    busy = sorted({device.open_wave for device in cohort.devices if device.open_wave})
    held = f", open waves {', '.join(busy)} hold others" if busy else ""
    return (
        f"cohort {cohort.name!r} has no device for this wave: of {len(cohort.devices)}, {running} run the release "
        f"already{held}; the rest are outside its regions"
    )
