"""What operators list beside waves and devices: stores, cohorts, policies, permits, holds. Changes nothing.

Lists come by name and in pages; a page token is the last name of the page before, so that what is added or gone
meanwhile neither repeats nor hides an entry.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import select

from control import requests, schema, store, views
from control.permits import is_spent
from control.rollout import Candidate, cohorts_of, region_of, store_of
from wavemesh.codec.statements import to_proto
from wavemesh.errors import ConflictError, NotFoundError
from wavemesh.listing import is_named
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import RowMapping

    from control.database import Database, Transaction
    from control.desired import DesiredState
    from control.fleet import Fleet
    from control.intents import Intents
    from control.releases import Releases
    from control.store import WaveView

T = TypeVar("T")

_DIGEST_START = re.compile(r"[0-9a-f]{6,64}")
_SEPARATOR = "\n"


class Listings:
    """Answers to questions about what is neither a wave nor a device."""

    def __init__(
        self, *, database: Database, desired: DesiredState, fleet: Fleet, intents: Intents, releases: Releases
    ) -> None:
        """Take what is looked at."""
        self._database = database
        self._desired = desired
        self._fleet = fleet
        self._intents = intents
        self._releases = releases

    # -- stores -----------------------------------------------------------------------------------------------------

    async def stores(self, request: operator_pb2.ListStoresRequest) -> operator_pb2.ListStoresResponse:
        """A page of stores, by path."""
        paths = [path for path in sorted(self._fleet.stores) if is_named(region_of(path), request.region)]
        async with self._database.reading() as tx:
            views_ = await _unclosed(tx)
            if request.wave_id:
                wave = await store.view(tx, requests.wave_id(request.wave_id))
                paths = [path for path in paths if wave is not None and path in wave.targets]
            shown, token = page(paths, request.page_size, request.page_token, str)
            messages = await self._stores(tx, shown, views_)
        return operator_pb2.ListStoresResponse(stores=messages, next_page_token=token)

    async def store(self, name: str) -> operator_pb2.Store:
        """One store by name or path; raises NotFoundError, ConflictError for a name that two regions use."""
        found = sorted(path for path in self._fleet.stores if name and is_named(path, name))
        if len(found) != 1:
            known = ", ".join(found[:20])
            if found:
                msg = f"{len(found)} regions have a store {name!r}; give its path: {known}"
                raise ConflictError(msg, store=name, paths=known)
            msg = f"no store {name[:200]!r} is registered; `edgectl store list` shows them"
            raise NotFoundError(msg, store=name[:200])
        async with self._database.reading() as tx:
            [message] = await self._stores(tx, found, await _unclosed(tx))
        return message

    async def _stores(
        self, tx: Transaction, paths: Sequence[str], waves: Sequence[WaveView]
    ) -> list[operator_pb2.Store]:
        table = schema.stores
        rows = await tx.all(select(table.c.path, table.c.time_zone).where(table.c.path.in_(paths)))
        zones = {row["path"]: row["time_zone"] for row in rows}
        registered = Counter(map(store_of, self._fleet.device_paths))
        connected = Counter(store_of(path) for path in self._fleet.devices if self._fleet.is_connected(path))
        messages = []
        for path in paths:
            mine = [view for view in waves if path in view.targets]
            message = operator_pb2.Store(
                path=path,
                time_zone=zones.get(path, ""),
                devices=registered[path],
                devices_connected=connected[path],
                wave_ids=[view.row.wave_id for view in mine],
                exposure=sum(views.exposure(view, path, self._fleet, self._desired) for view in mine),
                intents_waiting=self._intents.waiting_at(path),
            )
            status = self._fleet.hubs.get(path)
            if status is not None:
                message.hub.CopyFrom(to_proto(status))
                message.hub.connected = self._fleet.is_connected(path)
            messages.append(message)
        return messages

    # -- cohorts ----------------------------------------------------------------------------------------------------

    async def cohorts(self, request: operator_pb2.ListCohortsRequest) -> operator_pb2.ListCohortsResponse:
        """A page of cohorts, by name; devices without a segment make none."""
        table = schema.devices
        query = select(table).where(table.c.segment != "")
        if request.segment:
            query = query.where(table.c.segment == request.segment)
        async with self._database.reading() as tx:
            rows = await tx.all(query)
            busy = await store.open_waves_by_device(tx)
        by_segment: dict[str, list[RowMapping]] = defaultdict(list)
        for row in rows:
            by_segment[row["segment"]].append(row)
        found = [
            message
            for segment, members in sorted(by_segment.items())
            for message in _cohort_messages(segment, members, busy)
        ]
        shown, token = page(found, request.page_size, request.page_token, lambda cohort: cohort.name)
        return operator_pb2.ListCohortsResponse(cohorts=shown, next_page_token=token)

    # -- policies ---------------------------------------------------------------------------------------------------

    async def policies(self, request: operator_pb2.ListPoliciesRequest) -> operator_pb2.ListPoliciesResponse:
        """A page of policies, by digest."""
        async with self._database.reading() as tx:
            waves = await _waves_by_policy(tx)
        shown, token = page(sorted(waves), request.page_size, request.page_token, str)
        messages = [operator_pb2.Policy(digest=digest, wave_ids=waves[digest]) for digest in shown]
        return operator_pb2.ListPoliciesResponse(policies=messages, next_page_token=token)

    async def policy(self, request: operator_pb2.GetPolicyRequest) -> operator_pb2.Policy:
        """One policy by its digest, the beginning of it, or a wave; raises NotFoundError, ConflictError."""
        async with self._database.reading() as tx:
            waves = await _waves_by_policy(tx)
            if request.wave_id:
                found = [digest for digest, ids in waves.items() if request.wave_id in ids]
            elif not _DIGEST_START.fullmatch(request.digest):
                raise requests.BadRequestError("digest", "6 to 64 lower-case hex digits, or give wave_id")
            else:
                found = [digest for digest in waves if digest.startswith(request.digest)]
            if len(found) > 1:
                msg = f"{len(found)} policies begin with {request.digest}; give more digits"
                raise ConflictError(msg, digest=request.digest)
            table = schema.policies
            row = await tx.first(select(table).where(table.c.digest.in_(found)))
        if row is None:
            wanted = f"of wave {request.wave_id!r}" if request.wave_id else request.digest
            msg = f"no policy {wanted} is known here; `edgectl policy list` shows them"
            raise NotFoundError(msg, wave=request.wave_id, digest=request.digest)
        return operator_pb2.Policy(digest=row["digest"], wave_ids=waves[row["digest"]], json=row["payload"])

    # -- permits ----------------------------------------------------------------------------------------------------

    async def permits(self, request: operator_pb2.ListPermitsRequest) -> operator_pb2.ListPermitsResponse:
        """A page of permits: of each device the latest. Raises NotFoundError for a wave that is not known."""
        if len(request.states) > requests.MAX_STATES:
            raise requests.BadRequestError("states", f"{len(request.states)}; at most {requests.MAX_STATES}")
        found: list[operator_pb2.DevicePermit] = []
        async with self._database.reading() as tx:
            for view in [await _wave(tx, request.wave_id)] if request.wave_id else await _unclosed(tx):
                found += await self._permits_of(tx, view)
        wanted = sorted((one for one in found if _is_wanted(one, request)), key=_permit_name)
        shown, token = page(wanted, request.page_size, request.page_token, _permit_name)
        return operator_pb2.ListPermitsResponse(permits=shown, next_page_token=token)

    async def _permits_of(self, tx: Transaction, view: WaveView) -> list[operator_pb2.DevicePermit]:
        table = schema.permits
        query = select(table).where(table.c.wave_id == view.row.wave_id).order_by(table.c.generation)
        latest = {row["device"]: row for row in await tx.all(query)}
        messages = []
        for device, row in sorted(latest.items()):
            message = operator_pb2.DevicePermit(
                wave_id=view.row.wave_id,
                device=device,
                generation=row["generation"],
                attempts=view.row.attempts,
                state=self._permit_state(view, row),
                hub_incarnation=row["hub_incarnation"],
            )
            message.issued_at.FromDatetime(row["issued_at"])
            message.expires_at.FromDatetime(view.row.expires_at)
            messages.append(message)
        return messages

    def _permit_state(self, view: WaveView, row: RowMapping) -> operator_pb2.PermitState.ValueType:
        if row["written_off"]:
            return operator_pb2.PERMIT_STATE_WRITTEN_OFF
        if is_spent(view.share(row["store"]), row["device"]):
            return operator_pb2.PERMIT_STATE_SPENT
        is_out = views.exposure(view, row["store"], self._fleet, self._desired) > 0
        return operator_pb2.PERMIT_STATE_OUTSTANDING if is_out else operator_pb2.PERMIT_STATE_VOID

    # -- holds ------------------------------------------------------------------------------------------------------

    async def holds(self) -> operator_pb2.ListHoldsResponse:
        """The hold list in force, and the open waves it stops."""
        holds = self._releases.holds
        async with self._database.reading() as tx:
            waves = await _unclosed(tx)
        answer = operator_pb2.ListHoldsResponse(epoch=holds.epoch)
        answer.issued_at.FromDatetime(holds.issued_at)
        for hold in sorted(holds.holds, key=lambda hold: hold.release):
            answer.holds.add(
                release=hold.release,
                firmware_sha256=hold.firmware_sha256,
                reason=hold.reason,
                wave_ids=[view.row.wave_id for view in waves if view.row.release == hold.release],
            )
        return answer


def page(items: Sequence[T], size: int, token: str, name: Callable[[T], str]) -> tuple[list[T], str]:
    """The items after the one named by the token, and the token of the next page; they are in order of name."""
    size = requests.page_size(size)
    left = [item for item in items if name(item) > token] if token else list(items)
    return left[:size], name(left[size - 1]) if len(left) > size else ""


def _cohort_messages(segment: str, rows: Sequence[RowMapping], busy: dict[str, str]) -> list[operator_pb2.Cohort]:
    runs = {row["path"]: row["firmware_version"] or "unknown" for row in rows}
    members = [Candidate(row["path"], row["device_class"], row["hardware_revision"]) for row in rows]
    return [
        operator_pb2.Cohort(
            name=cohort.name,
            segment=segment,
            device_class=cohort.device_class,
            hardware_revision=cohort.hardware_revision,
            devices=len(cohort.devices),
            devices_in_waves=sum(device.path in busy for device in cohort.devices),
            stores=sorted({device.store for device in cohort.devices}),
            firmware_versions=Counter(runs[device.path] for device in cohort.devices),
        )
        for cohort in cohorts_of(segment, members)
    ]


def _is_wanted(permit: operator_pb2.DevicePermit, request: operator_pb2.ListPermitsRequest) -> bool:
    return (
        is_named(store_of(permit.device), request.store)
        and is_named(permit.device, request.device)
        and (not request.states or permit.state in request.states)
    )


def _permit_name(permit: operator_pb2.DevicePermit) -> str:
    return f"{permit.wave_id}{_SEPARATOR}{permit.device}"


async def _waves_by_policy(tx: Transaction) -> dict[str, list[str]]:
    table = schema.waves
    found: dict[str, list[str]] = defaultdict(list)
    for row in await tx.all(select(table.c.policy_digest, table.c.wave_id).order_by(table.c.number)):
        found[row["policy_digest"]].append(row["wave_id"])
    return found


async def _unclosed(tx: Transaction) -> list[WaveView]:
    return [await _wave(tx, wave_id) for wave_id in await store.unclosed_waves(tx)]


async def _wave(tx: Transaction, wave_id: str) -> WaveView:
    view = await store.view(tx, requests.wave_id(wave_id))
    if view is None:
        msg = f"no wave {wave_id!r} is known here; `edgectl wave list` shows them"
        raise NotFoundError(msg, wave=wave_id)
    return view
