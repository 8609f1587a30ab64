"""What operators are shown of the cache: what it holds, what it has done, and what it would take to hold more.

A plan changes nothing. It wants all artifacts of a release, a wave or a policy at once, beside everything the cache
must keep already, and is decided as the cache itself decides (``wavemesh/artifacts/room.py``): the same evictions, the
same refusal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storehub.views import stamp
from wavemesh.artifacts.counting import statistics_of
from wavemesh.artifacts.room import GATE, plan_room, refusal
from wavemesh.codec.statements import to_proto
from wavemesh.errors import NotFoundError, PeerError
from wavemesh.policy.reader import parse_policy
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from storehub.cache import Cache
    from storehub.hub import Hub
    from wavemesh.artifacts.blobstore import BlobEntry
    from wavemesh.trust.cachestats import CacheStatistics
    from wavemesh.trust.statements import Digest

MAX_HELPS = 20


def statistics(cache: Cache) -> CacheStatistics:
    """What the cache has done and how its scrub stands."""
    return statistics_of(cache.blobs, cache.scrub.progress, len(cache.healing.incidents))


class CacheViews:
    """Builds answers about one cache."""

    def __init__(self, hub: Hub, cache: Cache) -> None:
        """Show that hub's cache."""
        self._hub = hub
        self._cache = cache

    def listing(self, limit: int) -> operator_pb2.ListCacheResponse:
        """What the cache holds, oldest use first, and what was found wrong in it."""
        names, pinned = self._hub.belief.known_blobs(), self._cache.pins()
        quarantine = [
            operator_pb2.QuarantinedBlob(
                digest=to_proto(file.digest), names=names.get(file.digest, ()), present_bytes=file.size_bytes
            )
            for file in self._cache.blobs.quarantine.files
        ]
        incidents = [
            operator_pb2.CacheIncident(
                digest=to_proto(one.digest),
                names=names.get(one.digest, ()),
                found_at=stamp(one.found_at),
                detail=one.detail,
            )
            for one in self._hub.store.incidents.all.values()
        ]
        return operator_pb2.ListCacheResponse(
            entries=[self._entry(entry, names, pinned) for entry in self._cache.entries()[:limit]],
            bytes=self._cache.used_bytes,
            quota_bytes=self._cache.quota_bytes,
            statistics=to_proto(statistics(self._cache)),
            quarantine=quarantine,
            incidents=incidents[:limit],
        )

    def _entry(
        self, entry: BlobEntry, names: Mapping[Digest, tuple[str, ...]], pinned: Mapping[str, tuple[str, ...]]
    ) -> operator_pb2.CacheEntry:
        trouble = self._cache.troubles.get(entry.digest)
        reasons = [*pinned.get(entry.digest.sha256, ())]
        if trouble is not None:
            reasons.append(f"not whole: {trouble.gate or 'fetch'}: {trouble.detail}")
        return operator_pb2.CacheEntry(
            digest=to_proto(entry.digest),
            names=names.get(entry.digest, ()),
            present_bytes=entry.present_bytes,
            pins=reasons,
            last_used_at=stamp(entry.last_used_at),
        )

    def plan(self, request: operator_pb2.PlanCacheRequest) -> operator_pb2.PlanCacheResponse:
        """What it would take; raises NotFoundError, PolicyError, PeerError for a request that names not one thing."""
        cache, wanted = self._cache, self._wanted(request)
        room = cache.room()
        plan = plan_room(cache.holding(), cache.keeping(), wanted, room)
        names, pinned = self._hub.belief.known_blobs(), cache.pins()
        known = {entry.digest: entry for entry in cache.entries()}
        fetch_bytes = sum(d.size_bytes - cache.blobs.partial_size(d) for d in wanted if not cache.blobs.has(d))
        coming = sum(digest.size_bytes for digest in plan.missing)
        going = sum(digest.size_bytes for digest in plan.evicted)
        free = room.free_bytes or 0
        answer = operator_pb2.PlanCacheResponse(
            evictions=[self._entry(known[digest], names, pinned) for digest in plan.evicted],
            fetch_bytes=fetch_bytes,
            before_bytes=plan.before_bytes,
            after_bytes=plan.after_bytes,
            quota_bytes=room.quota_bytes,
            disk_before_bytes=free,
            disk_after_bytes=free + going - coming if plan.fits else free,
        )
        for digest in wanted:
            if digest in known:
                answer.artifacts.append(self._entry(known[digest], names, pinned))
            else:
                answer.artifacts.add(
                    digest=to_proto(digest), names=names.get(digest, ()), pins=pinned.get(digest.sha256, ())
                )
        if plan.bound is not None:
            answer.gate, answer.reason = GATE, str(refusal(plan, room))
            answer.bound, answer.excess_bytes = plan.bound.value, plan.excess_bytes
            for one in plan.helps[:MAX_HELPS]:
                answer.helps.add(reason=one.reason, frees_bytes=one.frees_bytes)
        return answer

    def _wanted(self, request: operator_pb2.PlanCacheRequest) -> Sequence[Digest]:
        """The artifacts that are asked about, each once."""
        if sum(map(bool, (request.release, request.wave_id, request.policy_yaml))) != 1:
            msg = "a cache is planned for one of: a release, a wave, a policy"
            raise PeerError(msg)
        if request.wave_id:
            record = self._hub.store.waves.get(request.wave_id)
            wanted = record.blobs if record is not None else ()
            what, where = f"wave {request.wave_id[:80]!r}", "`edgectl wave list` shows those of this store"
        elif request.release:
            wanted = self._hub.belief.blobs_of_release(request.release)
            what, where = f"release {request.release[:80]!r}", "`edgectl release list` shows those held here"
        else:
            policy = parse_policy(request.policy_yaml, request.policy_name[:200] or "policy.yaml")
            named = policy.artifacts
            wanted = self._hub.belief.blobs_named(named)
            names = ", ".join(filter(None, (named.firmware, named.config, named.app, named.signature)))
            what, where = f"an artifact of {names}", "`edgectl release list` shows the releases held here"
        if not wanted:
            msg = f"{what} is not known at {self._hub.path}; {where}"
            raise NotFoundError(msg)
        return tuple(dict.fromkeys(wanted))
