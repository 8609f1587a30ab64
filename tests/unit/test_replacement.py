"""A copy with some fields changed is the one that ``dataclasses.replace`` makes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from device.progress import Progress
from device.state import Document, WaveRecord
from wavemesh.replacement import replaced
from wavemesh.trust.statements import DeviceStatus, UpdateState

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "changes"),
    [
        (Document("a"), {"serial": 7, "waves": {"w": WaveRecord(burned=2)}}),
        (Progress(), {"gate": "battery", "state": UpdateState.REFUSED}),
        (DeviceStatus("region/r/store/s/device/d", UpdateState.IDLE, NOW), {"connected": True}),
        (WaveRecord(attempt=1), {}),
    ],
)
def test_the_copy_is_that_of_dataclasses(value: object, changes: dict[str, object]) -> None:
    before = dataclasses.replace(value)  # type: ignore[type-var]  # all of them are dataclasses
    assert replaced(value, **changes) == dataclasses.replace(value, **changes)  # type: ignore[type-var]
    assert value == before


def test_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(TypeError, match="WaveRecord has no field 'burnt'"):
        replaced(WaveRecord(), burnt=1)


def test_a_value_that_checks_itself_is_refused() -> None:
    @dataclass(frozen=True, slots=True)
    class Checked:
        low: int
        high: int

        def __post_init__(self) -> None:
            assert self.low <= self.high

    with pytest.raises(TypeError, match="no plain value of several fields"):
        replaced(Checked(1, 2), low=3)
