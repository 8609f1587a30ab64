"""``hub prefetch --wait``: until every hub is done, refuses, or time runs out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from edgectl import waiting
from edgectl.exits import Exit
from wavemesh.errors import LinkDownError, NotFoundError

if TYPE_CHECKING:
    from wavemesh.errors import WavemeshError

ARTIFACTS = [{"sha256": "a" * 64, "size_bytes": 10}]


@dataclass(slots=True)
class Node:
    path: str


@dataclass(slots=True)
class Where:
    node: Node


@dataclass(slots=True)
class Hub:
    """A session whose hub gives one answer after the other, the last for ever."""

    name: str
    answers: list[str | WavemeshError]
    asked: int = 0
    context: Where = field(init=False)

    def __post_init__(self) -> None:
        self.context = Where(Node(f"region/r/store/{self.name}"))

    def ask(self, question: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        del question
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        cache = {"entries": [{"digest": {"sha256": "a" * 64}, "present_bytes": 10}]}
        return {"disposition": answer, "detail": ""}, cache


def wait(timeout_s: float, *hubs: Hub) -> tuple[list[str], Exit]:
    said, code = waiting.wait_for_prefetch(hubs, "i", ARTIFACTS, timeout_s)  # type: ignore[arg-type]  # pretended
    return [one["disposition"] for one in said], code


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_INTERVAL_S", 0.0)


def test_it_waits_for_every_hub_through_outages() -> None:
    late = Hub("b", [NotFoundError("x"), LinkDownError("x"), "queued", "applied"])
    early = Hub("a", ["applied"])
    assert wait(60, early, late) == (["applied", "applied"], Exit.OK)
    # Who is done is not asked again.
    assert (early.asked, late.asked) == (1, 4)


def test_a_refusal_and_a_time_that_runs_out_have_their_exit_codes() -> None:
    assert wait(60, Hub("a", ["applied"]), Hub("b", ["refused"])) == (["applied", "refused"], Exit.REFUSED)
    assert wait(0, Hub("a", ["queued"]), Hub("b", [LinkDownError("x")])) == (
        ["queued", "unreachable"],
        Exit.UNREACHABLE,
    )
