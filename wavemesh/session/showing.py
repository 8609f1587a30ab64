"""What a hub shows of what it holds, when its parent offers an older word of control, or takes a last one back.

A parent that offers older words was restored from a backup, or is being told so by a child of its own. The hub refuses
them, since a replay looks the same; but the word it holds is signed by control, so whoever made that offer can find out
by it what it said last (ADR 20). Each is shown once a session: the parent of the next one may have forgotten it again.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from wavemesh.codec.statements import encode
from wavemesh.session.frames import Report, ResourceKey
from wavemesh.trust.kept import KEPT_KIND, MAX_KEPT_BYTES, KeptReport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.session.sqlite import SqliteResources

CLOSED_TYPE = "closed"
MAX_SHOWN = 20_000
"""Words remembered as shown; beyond it the oldest may be shown again."""
_SHOWABLE = frozenset({"tuf", "holds", "revocations", "order", "permit", CLOSED_TYPE})
_OF_A_WAVE = frozenset({"order", "permit"})


class Showing:
    """The words that were shown in this session with the parent."""

    def __init__(self, append: Callable[[Transaction, Report], Awaitable[int]]) -> None:
        """``append`` puts a report into the log that goes up."""
        self._append = append
        self._shown: dict[tuple[ResourceKey, bytes], None] = {}
        self._transaction: Transaction | None = None
        self._appended: set[tuple[ResourceKey, bytes]] = set()

    def begin(self) -> None:
        """A session begins: its parent has seen nothing yet."""
        self._shown.clear()

    async def show_held(self, tx: Transaction, resources: SqliteResources, key: ResourceKey) -> None:
        """Show what is held under that key; of a wave that is over, the last word on it."""
        wave_id = key.name.split("/", 1)[0]
        closed = resources.get(ResourceKey(CLOSED_TYPE, wave_id)) if key.type in _OF_A_WAVE else None
        held = closed or resources.get(key)
        if held is not None:
            await self.show(tx, held.key, held.content)

    async def show(self, tx: Transaction, key: ResourceKey, content: bytes) -> None:
        """Append the report, but for what was shown, is too large, or is no word of control."""
        if tx is not self._transaction:  # what another one left here was committed, or never happened
            self._transaction, self._appended = tx, set()
        word = (key, content)
        if key.type not in _SHOWABLE or len(content) > MAX_KEPT_BYTES or word in self._shown or word in self._appended:
            return
        await self._append(tx, Report(KEPT_KIND, encode(KeptReport(key.type, key.name, content))))
        self._appended.add(word)
        tx.on_commit(partial(self._note, word))

    def _note(self, word: tuple[ResourceKey, bytes]) -> None:
        self._shown[word] = None
        while len(self._shown) > MAX_SHOWN:
            del self._shown[next(iter(self._shown))]
