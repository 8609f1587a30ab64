"""H3, P7: a store keeps its nightly windows, a week of them by its own clock."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, time, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from tests.session_kit import Fleet
from tests.storehub_kit import (
    OPERATOR,
    STORE,
    WAVE,
    Control,
    DrivenClock,
    SuperHub,
    eventually,
    lay_out,
    running,
    till,
    wan,
)
from wavemesh.errors import NotFoundError
from wavemesh.policy.document import policy_to_json
from wavemesh.policy.reader import parse_policy
from wavemesh.runtime.grpc import make_channel
from wavemesh.trust.statements import IntentKind, OutcomeKind, UpdateState
from wavemesh.v1.operator_pb2 import GetIntentRequest
from wavemesh.v1.operator_pb2_grpc import OperatorServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

    from storehub.app import App
    from tests.storehub_kit import Till
    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import Digest
    from wavemesh.v1.operator_pb2 import IntentRecord

pytestmark = pytest.mark.timeout(60)
ZONE = ZoneInfo("Australia/Lord_Howe")
PIECE = 64 * 1024
NIGHTS = 7
A_MONTH = timedelta(days=30)


class NightlyHub(SuperHub):
    """A super hub with so thin a line that it gets only so many pieces across a night."""

    def __init__(self, control: Control, clock: DrivenClock) -> None:
        super().__init__(control)
        self.clock = clock
        self.left = 0
        self.served: list[tuple[datetime, int]] = []
        self.sending = 0

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        data = self.control.blobs.get(digest.sha256)
        if data is None:
            raise NotFoundError(digest.sha256)
        if digest != self.control.firmware:
            return await super().open(peer, digest, offset, length_bytes)

        async def pieces() -> AsyncGenerator[bytes, None]:
            self.sending += 1
            try:
                for start in range(offset, len(data), PIECE):
                    await eventually(lambda: self.left, within_s=60)
                    self.left -= 1
                    self.served.append((self.clock.now(), start))
                    yield data[start : start + PIECE]
            finally:
                self.sending -= 1

        return pieces()


def at(day: datetime, wall: str) -> datetime:
    """That time on the store's wall, on that day."""
    return datetime.combine(day.astimezone(ZONE).date(), time.fromisoformat(wall), ZONE)


@pytest.fixture
def control(tmp_path: Path) -> Control:
    return Control(Fleet.create(tmp_path / "fleet", A_MONTH))


def with_windows(control: Control, windows: str) -> None:
    control.policy_yaml += f"windows: {windows}\n".encode()
    control.policy = policy_to_json(parse_policy(control.policy_yaml, "policy.yaml"))


@asynccontextmanager
async def store(
    control: Control, super_hub: SuperHub, clock: DrivenClock, directory: Path, more: str = ""
) -> AsyncIterator[App]:
    zone = f'time_zone = "{ZONE}"\n{more}'
    async with (
        wan(super_hub) as parent,
        running(lay_out(directory, control, parent, lease_s=60, trial_s=60, more=zone), clock) as app,
    ):
        super_hub.want(control.tuf(), control.holds(), control.policy_resource())
        yield app


def arrived(app: App, digest: Digest) -> int:
    return sum(entry.present_bytes for entry in app.cache.entries() if entry.digest == digest)


@pytest.mark.parametrize("wanted_by", ["a wave", "an operator"])
async def test_a_prefetch_goes_on_night_after_night_from_where_it_was(
    wanted_by: str, control: Control, tmp_path: Path
) -> None:
    """It stops at the closing, reads nothing by day, and no byte comes twice."""
    clock = DrivenClock()
    today = clock.now()
    clock.set(at(today, "12:00") + timedelta(days=1))
    super_hub = NightlyHub(control, clock)
    if wanted_by == "a wave":
        with_windows(control, '{prefetch: "23:00-01:30"}')
    async with store(control, super_hub, clock, tmp_path / "hub") as app:
        if wanted_by == "a wave":
            super_hub.want(control.order("pos-12", expires_at=today + A_MONTH))
        else:
            window = "23:00-01:30"
            intent = control.intent(IntentKind.PREFETCH, wave_id="", policy_yaml=control.policy_yaml, window=window)
            await eventually(lambda: app.hub.belief.trusted)
            await app.intents.submit(intent, OPERATOR)
        for night in range(1, NIGHTS + 1):
            opening = at(today, "23:00") + timedelta(days=night)
            clock.set(opening - timedelta(seconds=30))
            await app.cache.fill()
            assert not super_hub.sending
            before = arrived(app, control.firmware)
            clock.set(opening)
            super_hub.left = 3
            size = min(control.firmware.size_bytes, before + 3 * PIECE)
            await eventually(partial(_has_arrived, app, control.firmware, size))
            clock.set(opening + timedelta(hours=2, minutes=30))
            await eventually(lambda: not super_hub.sending)
        assert app.cache.entries()[0].is_complete
    starts = [start for _, start in super_hub.served]
    assert starts == list(range(0, control.firmware.size_bytes, PIECE)), "each byte once, in order"
    walls = {when.astimezone(ZONE).hour for when, _ in super_hub.served}
    assert walls <= {23, 0, 1}


def _has_arrived(app: App, digest: Digest, size: int) -> bool:
    return arrived(app, digest) == size


async def told(control: Control, app: App) -> IntentRecord:
    """What the hub says of the prefetch."""
    async with make_channel(control.fleet.credentials(OPERATOR), f"127.0.0.1:{app.port}", STORE) as channel:
        answer = await OperatorServiceStub(channel).GetIntent(GetIntentRequest(intent_id="i-1"))
    record: IntentRecord = answer.record
    return record


async def test_an_operator_is_told_in_how_many_nights_it_is_done(control: Control, tmp_path: Path) -> None:
    """Before a byte has come by the cap; without one once bytes have come."""
    clock = DrivenClock()
    noon = at(clock.now(), "12:00") + timedelta(days=1)
    clock.set(noon)
    window, opening = "23:00-01:30", at(noon, "23:00")
    cap = control.firmware.size_bytes // (6 * 9000) + 1  # a little less than six nights
    for lines, nights in (("", 0), (f"window_bytes_per_s = {cap}\n", 6)):
        super_hub = NightlyHub(control, clock)
        async with store(control, super_hub, clock, tmp_path / str(nights), lines) as app:
            await eventually(lambda: app.hub.belief.trusted)  # awaited in the turn that it belongs to
            changes: dict[str, Any] = {"wave_id": "", "policy_yaml": control.policy_yaml, "window": window}
            await app.intents.submit(control.intent(IntentKind.PREFETCH, **changes), OPERATOR)
            record = await told(control, app)
            progress = record.prefetch
            assert (progress.open, progress.opens_at.ToDatetime(UTC)) == (False, opening)
            assert progress.wanted_bytes == sum(map(len, control.blobs.values()))
            assert (progress.present_bytes, progress.nights, progress.HasField("done_at")) == (0, nights, nights > 0)
            assert f"goes on {opening:%Y-%m-%d} 23:00 store time" in record.detail
            assert ("done in 6 nights" if nights else "once bytes have come") in record.detail
            if nights:
                late = progress.done_at.ToDatetime(UTC) - (opening + timedelta(days=5, minutes=150))
                assert abs(late) < timedelta(hours=1)


async def test_a_window_has_its_rate_and_a_wave_by_day_another(control: Control, tmp_path: Path) -> None:
    """H3, M6: two blobs at once are no faster than one; the same blob wanted by a wave at any time goes on at once."""
    clock = DrivenClock()
    super_hub = SuperHub(control)
    rate = 64 * 1024
    async with store(control, super_hub, clock, tmp_path / "hub", f"window_bytes_per_s = {rate}\n") as app:
        await eventually(lambda: app.hub.belief.trusted)
        began = clock.monotonic()
        changes: dict[str, Any] = {"wave_id": "", "policy_yaml": control.policy_yaml, "window": "00:00-23:59"}
        await app.intents.submit(control.intent(IntentKind.PREFETCH, **changes), OPERATOR)
        await eventually(lambda: arrived(app, control.firmware) > 3 * rate)
        took_s = clock.monotonic() - began
        assert took_s >= 1.0  # the first second's worth comes at once
        progress = (await told(control, app)).prefetch
        assert progress.open
        assert 0 < progress.bytes_per_s <= rate
        assert progress.nights == 1
        super_hub.want(control.order("pos-12"))
        await eventually(lambda: app.hub.is_cached(control.firmware), within_s=8)


async def test_swaps_begin_inside_the_window_and_end_where_they_must(control: Control, tmp_path: Path) -> None:
    """A week: none is leased before the opening or after the closing, and who is inside by then finishes."""
    with_windows(control, '{swap: "22:30-02:00"}')
    clock = DrivenClock()
    today = clock.now()
    clock.set(at(today, "12:00") + timedelta(days=1))
    super_hub = SuperHub(control)
    names = tuple(f"pos-{night}" for night in range(1, NIGHTS + 1))
    async with store(control, super_hub, clock, tmp_path / "hub") as app:
        super_hub.want(control.order(*names, expires_at=today + A_MONTH))
        await eventually(lambda: super_hub.incarnation)
        late = {"expires_at": today + A_MONTH}
        super_hub.want(*(control.permit(name, super_hub.incarnation, **late) for name in names))
        for night, name in enumerate(names, start=1):
            opening = at(today, "22:30") + timedelta(days=night)
            closing = opening + timedelta(hours=3, minutes=30)
            clock.set(opening - timedelta(seconds=30))
            super_hub.want(control.holds(night, issued_at=clock.now()))
            await eventually(partial(_has_holds, app, night))
            async with till(control, name, f"127.0.0.1:{app.port}") as one:
                one.say(UpdateState.VERIFIED)
                await eventually(partial(_is_heard, app, one))
                assert await _grants_nothing(app), "before the opening"
                clock.set(closing - timedelta(seconds=20))
                await eventually(one.lease)
                one.say(UpdateState.TRIAL)
                clock.set(closing)
                assert await _grants_nothing(app), "after the closing"
                assert one.lease(), "the swap under way keeps its lease"
                one.report(one.outcome(OutcomeKind.UPDATED))
                await eventually(partial(_is_updated, super_hub, one))
        assert [outcome.kind for outcome in super_hub.outcomes()] == [OutcomeKind.UPDATED] * NIGHTS


def _has_holds(app: App, epoch: int) -> bool:
    return app.hub.belief.holds is not None and app.hub.belief.holds.epoch == epoch


async def _grants_nothing(app: App) -> bool:
    """A pass by day comes to nothing, and the operator reads why."""
    decision = await app.scheduler.step()
    return not decision.granted and app.hub.standing(app.hub.belief.orders[WAVE]).gate == "window"


def _is_heard(app: App, one: Till) -> bool:
    presence = app.hub.present.get(one.node.path)
    return presence is not None and presence.is_heard


def _is_updated(super_hub: SuperHub, one: Till) -> bool:
    return (one.node.path, OutcomeKind.UPDATED) in [(o.device, o.kind) for o in super_hub.outcomes()]
