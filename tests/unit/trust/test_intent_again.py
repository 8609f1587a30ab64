"""An intent given again is the same one, whenever it was signed (M5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from wavemesh.trust.statements import IntentKind, OperatorIntent

NOW = datetime(2026, 5, 1, tzinfo=UTC)
INTENT = OperatorIntent("i-1", IntentKind.PAUSE_WAVE, NOW, wave_id="142", reason="because")


def test_given_again_later_it_asks_the_same() -> None:
    assert INTENT.asks_the_same(replace(INTENT, issued_at=NOW + timedelta(hours=1)))


@pytest.mark.parametrize(
    "changes", [{"kind": IntentKind.HALT_WAVE}, {"wave_id": "143"}, {"reason": "otherwise"}, {"device": "pos-17"}]
)
def test_what_asks_otherwise_is_another(changes: dict[str, object]) -> None:
    assert not INTENT.asks_the_same(replace(INTENT, **changes))  # type: ignore[arg-type]  # mypy cannot type **changes
