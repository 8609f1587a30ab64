"""Status is coalesced: the last value of a key, at most once an interval."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from superhub.statuses import StatusRelay

if TYPE_CHECKING:
    from wavemesh.session.seams import Upstream


class Recorder:
    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes | None]] = []
        self.arrived = asyncio.Event()

    def set_status(self, key: str, body: bytes | None) -> None:
        self.sent.append((key, body))
        self.arrived.set()


async def test_only_the_last_value_of_a_key_goes_up() -> None:
    recorder = Recorder()
    relay = StatusRelay(cast("Upstream", recorder), interval_s=0.05)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(relay.run())
        for number in range(100):
            relay.set("a", b"%d" % number)
        relay.set("b", None)
        await recorder.arrived.wait()
        assert recorder.sent == [("a", b"99"), ("b", None)]
        recorder.arrived.clear()
        for number in range(100):
            relay.set("a", b"%d" % number)
            await asyncio.sleep(0)
        assert len(recorder.sent) == 2
        await recorder.arrived.wait()
        assert recorder.sent[2:] == [("a", b"99")]
        task.cancel()
