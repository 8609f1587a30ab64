"""Takes up again what control signed and does not remember, from hubs that hold it (``regained.py``, ADR 20).

Rules:
- Only what control's own keys signed counts, by the metadata in force; who shows it is believed for nothing.
- What is newer than what is here becomes the ground of the next word: orders, holds and revocations are signed anew
  above it, and a permit is in force as it was signed.
- A wave that a region knows to be halted or closed is halted or closed here, and stays so.
- Each word that was taken up is audited, so that operators learn what the backup lacks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import delete, insert, select

from control import schema, store
from control.desired import Item
from control.regained import PauseSince, changed_releases, ended_by, holds_after, wave_after
from control.rollout import region_of, store_of
from control.waves import permit_key
from wavemesh.codec.statements import decode
from wavemesh.errors import PeerError
from wavemesh.trust.envelope import verify_role
from wavemesh.trust.statements import (
    Envelope,
    HoldList,
    Permit,
    RevocationList,
    TrustMetadata,
    WaveClosed,
    WaveOrder,
    WaveState,
)

if TYPE_CHECKING:
    from control.database import Transaction
    from control.releases import Releases
    from control.revocations import Revocations
    from control.signing import Signing
    from control.store import WaveView
    from control.waves import Waves
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.kept import KeptReport

_SIGNED = {"holds": HoldList, "revocations": RevocationList, "order": WaveOrder, "permit": Permit, "closed": WaveClosed}
_ACTION = "control.regained"
_REASON = "as it was before control was restored from a backup"


class BadKeptWordError(PeerError):
    """A hub shows as control's word what control cannot have said."""

    reason = "BAD_KEPT_WORD"


Word: TypeAlias = TrustMetadata | HoldList | RevocationList | WaveOrder | Permit | WaveClosed


@dataclass(frozen=True, slots=True)
class KeptWord:
    """A word that control signed, and the bytes of the resource in which it was."""

    word: Word
    content: bytes


class Recovery:
    """What was shown, and what it changes."""

    def __init__(
        self, *, releases: Releases, revocations: Revocations, waves: Waves, signing: Signing, clock: Clock
    ) -> None:
        """Change these."""
        self._releases = releases
        self._revocations = revocations
        self._waves = waves
        self._signing = signing
        self._clock = clock

    def read(self, kept: KeptReport) -> KeptWord:
        """Verify what was shown; raises PeerError. Blocking."""
        if kept.type == "tuf":
            return KeptWord(decode(TrustMetadata, kept.content), kept.content)
        statement = _SIGNED.get(kept.type)
        if statement is None:
            msg = f"a kept word of type {kept.type[:100]!r} is not known here"
            raise BadKeptWordError(msg)
        word: Word = verify_role(decode(Envelope, kept.content), statement, self._releases.trusted)
        return KeptWord(word, kept.content)

    async def take(self, tx: Transaction, shown: KeptWord) -> None:
        """Take it up, if it is news. Raises PeerError for what is signed and yet impossible here."""
        match shown.word:
            case TrustMetadata() as metadata:
                if await self._releases.regain(tx, metadata):
                    await self._told(tx, "tuf/metadata", "the published metadata")
                    await self._waves.halt_revoked(tx)
            case HoldList() as holds:
                await self._take_holds(tx, holds)
            case RevocationList() as listed:
                if await self._revocations.regain(tx, listed):
                    await self._told(tx, "revocations/fleet", f"epoch {listed.epoch}")
                    await self._waves.nodes_revoked(tx)
            case WaveOrder() as order:
                await self._take_order(tx, order)
            case Permit() as permit:
                await self._take_permit(tx, permit, shown.content)
            case WaveClosed() as closed:
                await self._take_closed(tx, closed)

    async def _take_holds(self, tx: Transaction, shown: HoldList) -> None:
        before = self._releases.holds
        after = holds_after(before, shown, self._clock.now())
        if after is None:
            return
        await self._releases.say_holds(tx, after)
        await self._told(tx, "holds/fleet", f"epoch {shown.epoch}; {len(after.holds)} holds are in force")
        for release in changed_releases(before, after):
            await self._waves.holds_changed(tx, release)

    async def _take_order(self, tx: Transaction, shown: WaveOrder) -> None:
        view = await store.view(tx, shown.wave_id)
        if view is None or shown.store not in view.targets:
            return
        table = schema.pauses
        rows = await tx.all(select(table).where(table.c.wave_id == shown.wave_id))
        pauses = [PauseSince(row["origin"], row["reason"], row["since"]) for row in rows]
        found = wave_after(view.row.generation, view.row.state, pauses, shown)
        if found is None:
            return
        row = dataclasses.replace(view.row, generation=found.generation)
        await self._told(tx, shown.wave_id, f"generation {shown.generation}, {shown.state.name.lower()}")
        if found.state is WaveState.HALTED:
            await store.save_wave(tx, row)
            await self._waves.halt(tx, shown.wave_id, f"halted, {_REASON}", self._signing.uri)
            return
        if found.state is not row.state:
            row = dataclasses.replace(row, state=found.state, started_at=row.started_at or shown.issued_at)
        await tx.run(delete(table).where(table.c.wave_id == shown.wave_id))
        since = {one.origin: one.since for one in pauses}
        values = [
            {
                "wave_id": shown.wave_id,
                "origin": one.origin,
                "reason": one.reason,
                "since": since.get(one.origin, shown.issued_at),
            }
            for one in found.pauses
        ]
        await tx.run(insert(table), values)
        await self._waves.change(tx, row)
        await self._waves.settle(tx, shown.wave_id)

    async def _take_permit(self, tx: Transaction, permit: Permit, content: bytes) -> None:
        view, store_path = await store.view(tx, permit.wave_id), store_of(permit.device)
        if view is None or permit.device not in view.targets.get(store_path, ()) or _is_over(view):
            return
        last = view.issues.get(permit.device)
        if last is not None and last.generation >= permit.generation:
            return
        row = {
            "wave_id": permit.wave_id,
            "device": permit.device,
            "generation": permit.generation,
            "store": store_path,
            "hub_incarnation": permit.hub_incarnation,
            "issued_at": permit.issued_at,
            "written_off": False,
        }
        await tx.run(insert(schema.permits), [row])
        key = permit_key(permit.wave_id, permit.device, store_path)
        await self._waves.publish(tx, Item(region_of(store_path), key, content, (store_path,)))
        await self._told(tx, f"{permit.wave_id} {permit.device}", f"permit of generation {permit.generation}")

    async def _take_closed(self, tx: Transaction, shown: WaveClosed) -> None:
        view = await store.view(tx, shown.wave_id)
        if view is None or view.row.closed_at is not None:
            return
        state = ended_by(shown.state)
        row = dataclasses.replace(
            view.row, state=state, state_reason=f"{state.name.lower()}, {_REASON}", ended_at=shown.closed_at
        )
        await self._told(tx, shown.wave_id, f"the last word: {state.name.lower()}")
        await self._waves.close(tx, dataclasses.replace(view, row=row))

    async def _told(self, tx: Transaction, subject: str, what: str) -> None:
        detail = f"{what}: said before control was restored from a backup, and taken up from a hub that holds it"
        await self._waves.audit(tx, self._signing.uri, _ACTION, subject, detail)


def _is_over(view: WaveView) -> bool:
    return view.row.state in {WaveState.HALTED, WaveState.CLOSED}
