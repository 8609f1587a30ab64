"""Sessions over real gRPC and real mTLS: what travels, in which order, exactly once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.session_kit import (
    DEVICE,
    FAST,
    OTHER_STORE,
    STORE,
    Child,
    Fleet,
    MemoryLog,
    MemoryRegistry,
    MemorySink,
    by_key,
    dialling,
    resource,
    serving,
    until,
)
from wavemesh.errors import BusyError, LinkDownError
from wavemesh.session.faults import AskFailedError
from wavemesh.session.frames import Report
from wavemesh.session.link import DownstreamOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
async def registry() -> MemoryRegistry:
    return MemoryRegistry()


def bodies(registry: MemoryRegistry) -> list[bytes]:
    return [body for _, body in registry.applied]


async def test_everything_that_travels(fleet: Fleet, registry: MemoryRegistry) -> None:
    """M2: resources down, reports and status up, asks both ways, over one stream."""
    policy, order = resource("p", b"policy"), resource("142/store-208", b"order", kind="order")
    registry.wanted = by_key(policy, order)
    async with serving(fleet, registry) as parent:
        async with dialling(fleet, parent.address) as child:
            child.upstream.set_status("device", b"IDLE")
            await until(lambda: "settled" in child.sink.events and "device" in registry.statuses, child.sink, registry)
            assert child.sink.resources == registry.wanted
            assert child.upstream.is_connected
            assert [node.path for node in parent.downstream.connected()] == [DEVICE.path]
            child.log.append(b"one")
            child.upstream.wake()
            await until(lambda: bodies(registry) == [b"one"], registry)
            assert await child.upstream.ask("echo", b"ping", 5.0) == b"ping"
            with pytest.raises(AskFailedError, match="NOT_FOUND"):
                await child.upstream.ask("nonsense", b"", 5.0)
            with pytest.raises(TimeoutError):
                await child.upstream.ask("never", b"", 0.05)
            registry.wanted = by_key(order)
            parent.downstream.changed(DEVICE.path)
            await until(lambda: child.sink.resources == registry.wanted, child.sink)
            child.upstream.set_status("device", None)
            await until(lambda: registry.statuses["device"] is None, registry)
        await until(lambda: registry.events == ["+pos-01", "-pos-01"], registry)
    assert child.sink.events[0] == "connected"


async def test_acknowledged_reports_are_forgotten_and_unacknowledged_ones_sent_again(
    fleet: Fleet, registry: MemoryRegistry
) -> None:
    """M3: the parent is killed before it applied; nothing is lost, nothing counted twice."""
    log = MemoryLog()
    for number in range(1000):
        log.append(str(number).encode())
    registry.gate = asyncio.Event()
    address = "127.0.0.1:1"
    async with dialling(fleet, lambda: address, log=log) as child:
        async with serving(fleet, registry) as parent:
            address = parent.address
            await until(lambda: "connected" in child.sink.events, child.sink)
        registry.gate.set()
        async with serving(fleet, registry, address=address) as parent:
            await until(lambda: len(registry.applied) >= 1000, registry)
            log.append(b"last")
            child.upstream.wake()
            await until(lambda: len(registry.applied) > 1000, registry)
    assert bodies(registry) == [*(str(number).encode() for number in range(1000)), b"last"]


async def test_removals_and_changes_of_an_outage_arrive_on_return(fleet: Fleet, registry: MemoryRegistry) -> None:
    """M3, M5: what changed while the link was down, deletions included; what is held already is not sent again."""
    kept, gone, old, new = resource("kept"), resource("gone"), resource("x", b"old"), resource("x", b"new")
    registry.wanted = by_key(kept, gone, old)
    sink = MemorySink()
    async with serving(fleet, registry) as parent:
        async with dialling(fleet, parent.address, sink=sink):
            await until(lambda: sink.resources == registry.wanted, sink)
        registry.wanted = by_key(kept, new)
        sink.applied.clear()
        async with dialling(fleet, parent.address, sink=sink):
            await until(lambda: sink.events.count("settled") == 2, sink)
    assert sink.resources == registry.wanted
    assert sink.applied == [(["x"], ["gone"])]


async def test_settled_is_said_without_any_difference(fleet: Fleet, registry: MemoryRegistry) -> None:
    async with serving(fleet, registry) as parent, dialling(fleet, parent.address) as child:
        await until(lambda: "settled" in child.sink.events, child.sink)
    assert child.sink.applied == []


async def test_a_child_restored_from_an_older_state_is_fenced(fleet: Fleet, registry: MemoryRegistry) -> None:
    """Semantics, "Sessions": a new incarnation and a full snapshot; nothing acknowledged under the old numbers."""
    registry.cursors[DEVICE.path, "incarnation-1"] = 5
    log = MemoryLog()
    log.append(b"reused number")
    log.snapshot = (Report("snapshot", b"all outcomes"),)
    async with serving(fleet, registry) as parent, dialling(fleet, parent.address, log=log) as child:
        await until(lambda: len(registry.applied) == 2, registry)
        await until(lambda: child.upstream.is_connected, child.sink)
    assert registry.applied == [("snapshot", b"all outcomes"), ("event", b"reused number")]
    assert registry.cursors[DEVICE.path, "incarnation-2"] == 2


async def test_a_restored_child_that_reported_before_it_came_back_is_fenced_too(
    fleet: Fleet, registry: MemoryRegistry
) -> None:
    """Its numbers have grown past the cursor again, so that they alone would hide the restore."""
    registry.cursors[DEVICE.path, "incarnation-1"] = 2
    address = "127.0.0.1:1"
    async with dialling(fleet, lambda: address) as child:
        for body in (b"a", b"b", b"c"):
            child.log.append(body)
        async with serving(fleet, registry) as parent:
            address = parent.address
            await until(lambda: bodies(registry) == [b"a", b"b", b"c"], registry)
    assert child.log.incarnation == "incarnation-2"


async def test_a_parent_that_lost_acknowledged_reports_is_refilled(fleet: Fleet, registry: MemoryRegistry) -> None:
    """Semantics, "Sessions": a super hub that loses its disk is refilled from below."""
    log = MemoryLog()
    log.append(b"forgotten by the parent")
    await log.acknowledge(1)
    log.snapshot = (Report("snapshot", b"all outcomes"),)
    async with serving(fleet, registry) as parent, dialling(fleet, parent.address, log=log):
        await until(lambda: registry.applied == [("snapshot", b"all outcomes")], registry)
    assert log.incarnation == "incarnation-2"


async def test_the_newest_session_of_a_child_wins(fleet: Fleet, registry: MemoryRegistry) -> None:
    """The older one is over, its handler and child_disconnected included, before the new one is served."""
    first = MemorySink()
    async with serving(fleet, registry) as parent, dialling(fleet, parent.address, sink=first):
        await until(lambda: "settled" in first.events, first)
        second = MemorySink()
        async with dialling(fleet, parent.address, sink=second):
            await until(lambda: "settled" in second.events, second)
            await until(lambda: any("SUPERSEDED" in event for event in first.events), first)
    # Two clones would take turns for ever; what matters is that they never overlap.
    depth = 0
    for event in registry.events:
        depth += 1 if event.startswith("+") else -1
        assert depth in {0, 1}


async def test_an_older_session_inside_the_registry_is_waited_for(fleet: Fleet, registry: MemoryRegistry) -> None:
    """M3: exactly once, although the old stream's reports are being applied when the new one comes."""
    registry.gate = asyncio.Event()
    log = MemoryLog()
    log.append(b"once")
    async with serving(fleet, registry) as parent:
        async with dialling(fleet, parent.address, log=log) as child:
            await until(lambda: "settled" in child.sink.events, child.sink)
        async with dialling(fleet, parent.address, log=log):
            registry.gate.set()
            await until(lambda: registry.applied, registry)
    assert bodies(registry) == [b"once"]


async def test_urgent_resources_overtake(fleet: Fleet, registry: MemoryRegistry) -> None:
    """M5: a pause overtakes bulk traffic, here 400 resources of which one update is under way."""
    bulk = [
        resource(f"bulk-{number}", bytes([number % 256]) * 16_000 + bytes([number // 256])) for number in range(400)
    ]
    registry.wanted = by_key(*bulk)
    sink = MemorySink()
    sink.gate = asyncio.Event()
    async with serving(fleet, registry) as parent, dialling(fleet, parent.address, sink=sink):
        await until(lambda: "connected" in sink.events, sink)
        registry.wanted = by_key(*bulk, resource("142/store-208", b"pause", kind="order", urgent=True))
        parent.downstream.changed()
        sink.gate.set()
        await until(lambda: "settled" in sink.events, sink)
    order = [names for names, _ in sink.applied]
    position = next(index for index, names in enumerate(order) if "142/store-208" in names)
    assert position <= 2
    assert len(order) > 20
    assert sink.resources == registry.wanted


async def test_refused_content_is_noted_and_not_sent_again(fleet: Fleet, registry: MemoryRegistry) -> None:
    bad, good = resource("bad", b"x", kind="order"), resource("good", b"y", kind="order")
    registry.wanted = by_key(bad)
    sink = MemorySink()
    sink.refuses["bad"] = "signature"
    async with serving(fleet, registry) as parent, dialling(fleet, parent.address, sink=sink):
        await until(lambda: registry.verdicts, registry)
        registry.wanted = by_key(bad, good)
        parent.downstream.changed()
        await until(lambda: len(registry.verdicts) == 2, registry)
        # New trust metadata lifts the refusal: what could not be verified may verify now.
        sink.refuses.clear()
        registry.wanted = by_key(bad, good, resource("metadata", b"root", kind="tuf"))
        parent.downstream.changed()
        await until(lambda: len(sink.resources) == 3, sink)
    assert [rejection.gate for _, rejected in registry.verdicts for rejection in rejected] == ["signature"]
    assert [names for names, _ in sink.applied] == [["bad"], ["good"], ["metadata"], ["bad"]]


async def test_strangers_are_refused(fleet: Fleet, registry: MemoryRegistry) -> None:
    """M2: only a direct child is served, and a child accepts only its own parent's certificate."""
    async with serving(fleet, registry) as parent:
        async with dialling(fleet, parent.address, node=OTHER_STORE) as stranger:
            await asyncio.wait_for(_attempts(stranger, 2), 10)
            assert not stranger.upstream.is_connected
        async with dialling(fleet, parent.address, parent=OTHER_STORE) as misled:
            await asyncio.wait_for(_attempts(misled, 2), 10)
            assert not misled.upstream.is_connected
    assert registry.events == []


async def _attempts(child: Child, count: int) -> None:
    """Wait until the upstream has failed that often."""
    seen = asyncio.Semaphore(0)
    attempt = child.upstream._attempt

    async def counted() -> object:
        result = await attempt()
        seen.release()
        return result

    child.upstream._attempt = counted  # type: ignore[method-assign, assignment]  # a spy, not a replacement
    for _ in range(count):
        await seen.acquire()


async def test_a_busy_parent_is_left_alone_as_long_as_it_asks(fleet: Fleet, registry: MemoryRegistry) -> None:
    """M6: explicit retry-after."""
    registry.refusal = BusyError("storm", 0.3)
    loop = asyncio.get_running_loop()
    async with serving(fleet, registry) as parent, dialling(fleet, parent.address) as child:
        await asyncio.wait_for(_attempts(child, 1), 10)
        refused_at = loop.time()
        registry.refusal = None
        await until(lambda: "settled" in child.sink.events, child.sink)
        assert loop.time() - refused_at >= 0.29


async def test_too_many_sessions_are_shed(fleet: Fleet, registry: MemoryRegistry) -> None:
    """M6."""
    options = DownstreamOptions(FAST, max_sessions=0, shed_retry_s=0.01)
    async with serving(fleet, registry, options=options) as parent, dialling(fleet, parent.address) as child:
        await asyncio.wait_for(_attempts(child, 2), 10)
        assert registry.events == []


async def test_a_failing_registry_ends_the_session_and_loses_nothing(fleet: Fleet, registry: MemoryRegistry) -> None:
    from wavemesh.runtime.durable import DiskFullError

    registry.fault = DiskFullError("state.db: no space left on device")
    log = MemoryLog()
    log.append(b"one")
    async with serving(fleet, registry) as parent, dialling(fleet, parent.address, log=log) as child:
        await until(lambda: any("DISK_FULL" in event for event in child.sink.events), child.sink)
        assert not any("state.db" in event for event in child.sink.events)
        registry.fault = None
        await until(lambda: bodies(registry) == [b"one"], registry)


async def test_child_drains(fleet: Fleet, registry: MemoryRegistry) -> None:
    """The parent hears the goodbye, run() returns, and asks fail at once."""
    async with serving(fleet, registry) as parent, dialling(fleet, parent.address) as child:
        await until(lambda: "settled" in child.sink.events, child.sink)
        await child.upstream.drain()
        assert not child.upstream.is_connected
        await until(lambda: registry.events == ["+pos-01", "-pos-01"], registry)
        with pytest.raises(LinkDownError):
            await child.upstream.ask("echo", b"", 1.0)


async def test_parent_drains_and_children_come_back_when_told(fleet: Fleet, registry: MemoryRegistry) -> None:
    loop = asyncio.get_running_loop()
    address = "127.0.0.1:1"
    async with dialling(fleet, lambda: address) as child:
        async with serving(fleet, registry) as parent:
            address = parent.address
            await until(lambda: "settled" in child.sink.events, child.sink)
            started = loop.time()
            await parent.downstream.drain(0.4)
            assert loop.time() - started < 1.0
            assert registry.events == ["+pos-01", "-pos-01"]
            await parent.server.stop(5.0)
            assert loop.time() - started < 1.0
        await until(lambda: child.sink.events[-1] == "disconnected: the parent is stopping", child.sink)
        left_at = loop.time()
        async with serving(fleet, registry, address=address):
            await until(lambda: child.sink.events.count("settled") == 2, child.sink)
        assert loop.time() - left_at >= 0.3


async def test_asks_under_way_fail_with_the_session(fleet: Fleet, registry: MemoryRegistry) -> None:
    async with serving(fleet, registry) as parent, dialling(fleet, parent.address) as child:
        await until(lambda: "settled" in child.sink.events, child.sink)
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(_outcome_of(child.upstream.ask("never", b"", 30.0)))
            assert await child.upstream.ask("echo", b"", 5.0) == b""
            parent.downstream.disconnect(DEVICE.path, "revoked")
        assert isinstance(asking.result(), LinkDownError)


async def _outcome_of(asking: Awaitable[bytes]) -> bytes | Exception:
    try:
        return await asking
    except LinkDownError as error:
        return error


async def test_disconnect_ends_a_childs_session(fleet: Fleet, registry: MemoryRegistry) -> None:
    async with serving(fleet, registry) as parent, dialling(fleet, parent.address) as child:
        await until(lambda: "settled" in child.sink.events, child.sink)
        parent.downstream.disconnect(DEVICE.path, "revoked")
        await until(lambda: "disconnected: revoked" in child.sink.events, child.sink)


async def test_a_child_that_does_not_answer_an_update_is_cut(fleet: Fleet, registry: MemoryRegistry) -> None:
    """M6: slow readers are cut at a bound, although their transport and heartbeats are fine."""
    from dataclasses import replace

    registry.wanted = by_key(resource("p"))
    sink = MemorySink()
    sink.gate = asyncio.Event()
    options = DownstreamOptions(replace(FAST, verdict_timeout_s=0.5))
    async with serving(fleet, registry, options=options) as parent, dialling(fleet, parent.address, sink=sink):
        await until(lambda: "-pos-01" in registry.events, registry)


def test_names_of_the_kit_agree() -> None:
    assert DEVICE.is_child_of(STORE)
    assert not OTHER_STORE.is_child_of(STORE)
