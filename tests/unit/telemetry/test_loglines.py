"""A line about a wave says so, wherever below the work it is written."""

from __future__ import annotations

import asyncio
import logging

import pytest

from wavemesh.telemetry.loglines import FORMAT, Tagging, about
from wavemesh.telemetry.spans import trace_id_of

DEVICE = "region/midwest/store/store-209/device/pos-17"
LOG = logging.getLogger("test.loglines")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.addFilter(Tagging())
        self.setFormatter(logging.Formatter(FORMAT.replace("%(asctime)s ", "")))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def kept() -> Kept:
    handler = Kept()
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    return handler


async def test_tasks_of_the_work_are_about_the_same(kept: Kept) -> None:
    async def deeper() -> None:
        LOG.info("two")

    with about("test.example", "142", DEVICE):
        LOG.info("one")
        async with asyncio.TaskGroup() as group:
            group.create_task(deeper())
    LOG.info("three")
    trace = trace_id_of("test.example", "142", DEVICE)
    tag = f" wave=142 device={DEVICE} trace={trace}"
    name = "INFO test.loglines"
    assert kept.lines == [f"{name}{tag} one", f"{name}{tag} two", f"{name} three"]


def test_a_wave_without_a_device_has_no_trace(kept: Kept) -> None:
    with about("test.example", "142"):
        LOG.info("planned")
    assert kept.lines == ["INFO test.loglines wave=142 planned"]
    assert trace_id_of("test.example", "", DEVICE) == ""
