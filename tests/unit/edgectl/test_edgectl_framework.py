"""Lists follow a node's pages, within the limit, and never for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from edgectl import framework
from edgectl.framework import Session
from edgectl.output import Output
from wavemesh.v1.operator_pb2 import ListStoresRequest, ListStoresResponse, Store

if TYPE_CHECKING:
    from collections.abc import Callable


def node(count: int, token: Callable[[int], str] = str) -> Any:
    """A stub whose pages hold what was asked for, or 2 at most."""

    async def pages(request: ListStoresRequest, timeout: float) -> ListStoresResponse:  # noqa: ASYNC109  # gRPC's name
        assert timeout
        start = int(request.page_token or 0)
        end = min(count, start + min(2, request.page_size))
        return ListStoresResponse(
            stores=[Store(path=f"s{n}") for n in range(start, end)], next_page_token=token(end) if end < count else ""
        )

    return SimpleNamespace(ListStores=pages)


def collected(monkeypatch: pytest.MonkeyPatch, stub: Any, limit: int) -> list[str]:
    import asyncio

    monkeypatch.setattr(Session, "ask", lambda _, question: asyncio.run(question(stub)))
    found = Session(None, Output.TABLE).collect(ListStoresRequest(), "stores", limit)
    return [one["path"] for one in found]


@pytest.mark.parametrize(
    ("count", "limit", "shown", "is_cut"), [(0, 9, 0, False), (5, 9, 5, False), (5, 5, 5, False), (5, 3, 3, True)]
)
def test_pages_are_followed_up_to_the_limit(  # noqa: PLR0917  # pytest names them
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count: int,
    limit: int,
    shown: int,
    is_cut: bool,  # noqa: FBT001
) -> None:
    assert collected(monkeypatch, node(count), limit) == [f"s{n}" for n in range(shown)]
    captured = capsys.readouterr()
    assert (captured.out, "--limit N shows more" in captured.err) == ("", is_cut)


def test_pages_that_do_not_end_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framework, "MAX_PAGES", 3)
    assert len(collected(monkeypatch, node(100), 100)) == 6
    # A token that comes back twice is the last.
    assert collected(monkeypatch, node(100, lambda _: "2"), 100) == ["s0", "s1", "s2", "s3"]
