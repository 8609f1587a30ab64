"""The same client at a store hub: the contract is one; what a hub does not know, control is named for (O2, M5)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.session_kit import Fleet
from tests.storehub_kit import OPERATOR, STORE, WAVE, Control, SuperHub, eventually, lay_out, running, till, wan
from wavemesh.client.operator import connect, new_intent_id
from wavemesh.errors import ConflictError
from wavemesh.trust.statements import IntentKind, OperatorIntent, UpdateState
from wavemesh.v1 import operator_pb2 as pb
from wavemesh.v1 import rollout_pb2

if TYPE_CHECKING:
    from pathlib import Path

RUNNING, PAUSED = rollout_pb2.WAVE_STATE_RUNNING, rollout_pb2.WAVE_STATE_PAUSED


async def test_lists_are_narrowed_by_what_a_hub_knows(tmp_path: Path) -> None:
    """State as this hub sees it, its own store, class, fate of intents; labels and other stores are control's."""
    fleet = Fleet.create(tmp_path / "fleet")
    control = Control(fleet)
    super_hub = SuperHub(control)
    async with (
        wan(super_hub) as parent,
        running(lay_out(tmp_path / "hub", control, parent)) as app,
        till(control, "pos-12", f"127.0.0.1:{app.port}") as one,
        connect(fleet.credentials(OPERATOR), f"127.0.0.1:{app.port}", STORE) as client,
    ):
        super_hub.want(control.tuf(), control.holds(), control.policy_resource(), control.order("pos-12", "pos-13"))
        one.say(UpdateState.IDLE, wave_id="", attempt=0)
        await eventually(lambda: WAVE in app.hub.store.waves and app.hub.store.devices)

        async def waves(**fields: Any) -> list[str]:
            return [wave.wave_id async for wave in client.waves(pb.ListWavesRequest(**fields))]

        async def devices(**fields: Any) -> list[str]:
            return [device.path async for device in client.devices(pb.ListDevicesRequest(page_size=1, **fields))]

        assert await waves(states=[RUNNING], store=STORE.name) == [WAVE]
        assert await waves(states=[PAUSED]) == []
        pause = OperatorIntent(new_intent_id(), IntentKind.PAUSE_WAVE, datetime.now(UTC), wave_id=WAVE, reason="smoke")
        assert not (await client.submit(pause)).duplicate
        assert (await client.submit(pause)).duplicate
        assert await waves(states=[RUNNING]) == []
        assert await waves(states=[PAUSED]) == [WAVE]
        assert [record.intent_id async for record in client.intents(pb.ListIntentsRequest(wave_id=WAVE))] == [
            pause.intent_id
        ]
        assert [record async for record in client.intents(pb.ListIntentsRequest(wave_id="7"))] == []
        refused = pb.ListIntentsRequest(disposition=pb.DISPOSITION_REFUSED)
        assert [record async for record in client.intents(refused)] == []

        assert await devices() == [f"{STORE.path}/device/pos-12", f"{STORE.path}/device/pos-13"]
        assert await devices(device_class="pos") == [one.node.path]
        for elsewhere in (waves(store="store-7"), devices(store="store-7"), devices(labels={"rack": "7"})):
            with pytest.raises(ConflictError) as told:
                await elsewhere
            assert told.value.details["reason"] == "ASK_CONTROL"
