"""``edgectl trace``: one device's way through one wave, from the plan to the committed slot."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.framework import Session, command
from edgectl.output import Table
from edgectl.tables import place, when

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

app = typer.Typer(help="What took how long, from control to the committed slot.", no_args_is_help=True)

_MAX_DEPTH = 16


@command(app, "show")
def show(
    session: Session,
    *,
    wave: Annotated[str, typer.Option("--wave", help="The wave.")],
    device: Annotated[str, typer.Option("--device", help="The device's name, or its path.")],
) -> None:
    """Show the trace of a device in a wave as the node asked has it; a hub answers with the WAN down too."""
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import GetTraceRequest

    request = GetTraceRequest(wave_id=wave, device=device)
    data = plain(session.ask(lambda stub: stub.GetTrace(request, timeout=CALL_TIMEOUT_S)))
    session.show(data, *trace_parts(wave, data))


def trace_parts(wave: str, data: Mapping[str, Any]) -> tuple[Table | str, ...]:
    """A trace as a tree with durations; a span whose parent is not here stands at the margin."""
    spans = data["spans"]
    head = f"wave {wave}  {place(data['device'])}  trace {data['trace_id']}  as {place(data['source'])} has it"
    began = min((span["began_at"] for span in spans), default=None)
    lines = [head, f"  {len(spans)} spans since {when(began)}"]
    if data["dropped"]:
        lines.append(f"  {data['dropped']} telemetry batches were dropped here or below: the trace may have gaps")
    names = {span["span_id"]: span["name"] for span in spans}
    rows = [
        (
            "  " * depth + span["name"],
            place(span["node"]),
            when(span["began_at"])[11:],
            took(span["began_at"], span["ended_at"]),
            span["attributes"].get("wavemesh.attempt", "-"),
            _outcome(span),
            ", ".join(names.get(one, one) for one in span["links"]) or "-",
        )
        for depth, span in _tree(spans)
    ]
    return (*lines, Table("", ("span", "node", "began", "took", "attempt", "came to", "acted on"), rows))


def took(began_at: str, ended_at: str) -> str:
    """A duration for people: "-" for a moment, "340 ms", "12.5 s", "3 min 20 s", "2 h 5 min"."""
    seconds = (datetime.fromisoformat(ended_at) - datetime.fromisoformat(began_at)).total_seconds()
    if seconds <= 0:
        return "-"
    if seconds < 1:
        return f"{max(1, round(seconds * 1000))} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _outcome(span: Mapping[str, Any]) -> str:
    word = span["attributes"].get("wavemesh.outcome", "").replace("_", " ")
    return " ".join(part for part in (word, f"[{span['gate']}]" if span["gate"] else "") if part) or (
        span["error"] or "-"
    )


def _tree(spans: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Depth first, by begin; spans of an untrusted device may name each other as parents, so depth is bounded."""
    known = {span["span_id"] for span in spans}
    children: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for span in spans:
        parent = span["parent_span_id"]
        children[parent if parent in known and parent != span["span_id"] else ""].append(span)
    seen: set[str] = set()
    waiting = [(0, span) for span in reversed(children[""])]
    while waiting:
        depth, span = waiting.pop()
        seen.add(span["span_id"])
        yield depth, span
        below = [one for one in children[span["span_id"]] if one["span_id"] not in seen]
        waiting.extend((min(depth + 1, _MAX_DEPTH), one) for one in reversed(below))
    yield from ((0, span) for span in spans if span["span_id"] not in seen)
