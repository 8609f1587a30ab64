"""Who may ask for a rehearsal, one at a time: a signed intent through the mesh, or somebody before the device.

An intent is answered by one event, ``rehearsed`` with what came of it, or ``intent-refused``. It is a level: an agent
that was killed meanwhile rehearses again, which changes nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from device.values import to_plain
from wavemesh.errors import LocalError
from wavemesh.trust.statements import INTENT_REFUSED, REHEARSED, IntentKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from device.equipment import Equipment
    from device.progress import Progress
    from device.rehearsal import Rehearsal
    from wavemesh.trust.statements import OperatorIntent


class Rehearsing:
    """The rehearsals of one device."""

    def __init__(self, equipment: Equipment, progress: Callable[[], Progress], reported: Callable[[], None]) -> None:
        """``progress`` says where the machine is, ``reported`` hears that there is something to send."""
        self._equipment = equipment
        self._progress = progress
        self._reported = reported
        self._one = asyncio.Lock()
        self._changed = asyncio.Event()

    def resources_changed(self) -> None:
        """What is held changed."""
        self._changed.set()

    async def rehearse(self) -> Rehearsal:
        """What is staged now, after a rehearsal that is under way; raises NothingToRehearseError."""
        from device.rehearsal import rehearse

        async with self._one:
            return await rehearse(self._equipment, self._progress)

    async def answer(self, _: str) -> dict[str, Any]:
        """For the local socket."""
        rehearsal = await self.rehearse()
        return {"ok": True, "passes": rehearsal.passes, **to_plain(rehearsal)}

    async def run(self) -> None:
        """Answer intents until cancelled."""
        while True:
            self._changed.clear()
            for intent in tuple(self._waiting()):
                await self._report(intent)
            await self._changed.wait()

    def _waiting(self) -> Iterator[OperatorIntent]:
        done, node_id = self._equipment.store.document.intents, self._equipment.node_id
        for intent in self._equipment.sink.intents():
            is_ours = intent.device in {node_id.name, node_id.path}
            if intent.kind is IntentKind.REHEARSE_DEVICE and intent.intent_id not in done and is_ours:
                yield intent

    async def _report(self, intent: OperatorIntent) -> None:
        store = self._equipment.store
        try:
            rehearsal = await self.rehearse()
        except LocalError as error:
            store.append_event(INTENT_REFUSED, "operator", intent.intent_id, str(error))
        else:
            store.append_event(REHEARSED, rehearsal.gate, intent.intent_id, rehearsal.sentence())
        store.note_intent(intent.intent_id)
        self._reported()
