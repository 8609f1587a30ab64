"""How far prefetches are, in words and figures, and which fetches a window bounds (H3). The shell of ``nights.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storehub.nights import forecast, rate_of
from storehub.records import Disposition
from storehub.views import stamp
from wavemesh.artifacts.plan import Method
from wavemesh.policy.windows import Window
from wavemesh.trust.statements import IntentKind
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storehub.cache import Cache
    from storehub.hub import Hub
    from storehub.nights import Meter
    from storehub.records import IntentRecord
    from wavemesh.trust.statements import Digest

_MIB = 1024 * 1024


class Prefetching:
    """The prefetches of one store."""

    def __init__(self, hub: Hub, cache: Cache, meter: Meter) -> None:
        """``meter`` says how fast bytes come from the super hub."""
        self._hub = hub
        self._cache = cache
        self._meter = meter

    def is_windowed(self, digest: Digest) -> bool:
        """Whether all who want a blob, or that of which it is a piece, want it within windows."""
        windows = [one for target in self._cache.deliveries.targets_of(digest) for one in self._windows(target)]
        return bool(windows) and None not in windows

    def _windows(self, digest: Digest) -> Iterator[Window | None]:
        """The window of each who wants a blob; None for one who wants it at any time."""
        hub = self._hub
        for record in hub.store.waves.values():
            if record.closed_at is None and digest in record.blobs:
                policy = hub.belief.policies.get(record.order.policy_digest)
                yield policy.windows.prefetch if policy is not None else None
        for intent in hub.store.intents.values():
            if _is_open(intent) and digest in intent.digests:
                yield Window.parse(intent.intent.window) if intent.intent.window else None

    def _left_bytes(self, digest: Digest) -> int:
        """What is still to be read for a blob: of its delivery, if it comes by one."""
        blobs, deliveries = self._cache.blobs, self._cache.deliveries
        delivery = deliveries.all.get(digest)
        if blobs.has(digest):
            return 0
        if delivery is None or not delivery.is_open or delivery.plan is None or delivery.plan.method is Method.FULL:
            return digest.size_bytes - blobs.partial_size(digest)
        of_plan = deliveries.moved_bytes(delivery) - delivery.settled_bytes + delivery.held_bytes
        return max(0, delivery.plan.read_bytes - of_plan)

    def describe(self, record: IntentRecord, message: operator_pb2.IntentRecord) -> None:
        """Add to an intent's message how far it is, if it is a prefetch that goes on here."""
        if not _is_open(record):
            return
        config, now = self._hub.config, self._hub.clock.now()
        window = Window.parse(record.intent.window) if record.intent.window else None
        wanted = set(record.digests)
        wanted_bytes = sum(digest.size_bytes for digest in wanted)
        present_bytes = sum(entry.present_bytes for entry in self._cache.entries() if entry.digest in wanted)
        opens_at = window.next_opening(now, config.zone) if window else now
        progress = operator_pb2.PrefetchProgress(
            wanted_bytes=wanted_bytes, present_bytes=present_bytes, open=opens_at == now, opens_at=stamp(opens_at)
        )
        left_bytes = sum(map(self._left_bytes, wanted))
        here = f"{present_bytes / _MIB:.1f} of {wanted_bytes / _MIB:.1f} MiB here"
        told = [f"{here}, {left_bytes / _MIB:.1f} MiB to be read"]
        if opens_at > now:
            told.append(f"goes on {opens_at.astimezone(config.zone):%Y-%m-%d %H:%M} store time")
        rate = rate_of(self._meter.bytes_per_s, config.window_bytes_per_s if window else config.day_bytes_per_s)
        if rate is None:
            told.append("how long it takes is known once bytes have come")
        else:
            expected = forecast(left_bytes, rate, window, config.zone, now)
            told.append(f"at {rate / _MIB:.2f} MiB/s {expected.words(config.zone)}")
            progress.bytes_per_s = rate
            if expected.done_at is not None:
                progress.nights = expected.nights
                progress.done_at.CopyFrom(stamp(expected.done_at))
        message.prefetch.CopyFrom(progress)
        message.detail = f"{record.detail}: {', '.join(told)}"


def _is_open(record: IntentRecord) -> bool:
    return (
        record.intent.kind is IntentKind.PREFETCH and record.disposition is Disposition.QUEUED and bool(record.digests)
    )
