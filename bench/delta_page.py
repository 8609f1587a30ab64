"""The page of ``bench/results/delta.md`` and its plot, from the JSON files that lie beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from bench.pairs import NAMES

if TYPE_CHECKING:
    from pathlib import Path

_WAYS = ("full_zstd", "chunks", "pairwise")
_PEERS = ("xdelta3", "bsdiff", "casync", "zstd")
_COLUMNS = (
    *("pair", "chosen", "forecast error", "regret", "guess", "make s", "apply s", "to disk s", "in a worker s"),
    *("peer apply s", "load"),
)
_COLOURS = ("#9aa5b1", "#6b8fb5", "#1f6f43", "#d9a066", "#c97b4a", "#b35c44", "#8f4a4a")
_BAR, _GAP, _LEFT, _WIDTH = 14, 26, 110, 560


def write(directory: Path) -> None:
    """Write DIR/delta.md and DIR/delta.svg of DIR/delta-*.json."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("delta-*.json"))]
    found.sort(key=lambda one: NAMES.index(one["pair"]) if one["pair"] in NAMES else len(NAMES))
    (directory / "delta.md").write_text(page(found), encoding="utf-8")
    (directory / "delta.svg").write_text(plot(found), encoding="utf-8")


def _bytes(count: float | None) -> str:
    return "-" if count is None else f"{count:,.0f}"


def _peer(one: dict[str, Any], name: str) -> float | None:
    return one["peers"][name]["bytes"] if name in one["peers"] else None


def page(results: list[dict[str, Any]]) -> str:
    """The tables."""
    lines = [
        "# Deltas",
        "",
        "Written by `python -m bench delta --page bench/results` from `delta-PAIR.json`, each of which is",
        "`python -m bench delta --pair PAIR --json bench/results/delta-PAIR.json`; `bench/pairs.py` says what the",
        "pairs are. Bytes to move; what was chosen is bold. Everything was rebuilt and compared byte for byte.",
        "",
        "![bytes to move](delta.svg)",
        "",
        _row("pair", "image", "full zstd", "chunks", "delta", *_PEERS, "of the best peer"),
        _row(*["---"] * 10),
    ]
    for one in results:
        ways = [_bold(_bytes(one[way]), is_chosen=_is_chosen(one, way)) for way in _WAYS]
        peers = [_peer(one, name) for name in _PEERS]
        least = min((count for count in peers if count is not None), default=None)
        share = "-" if least is None else f"{one['chosen_bytes'] / least:.2f}"
        cells = [one["pair"], _bytes(one["new_bytes"]), *ways, *(_bytes(count) for count in peers), share]
        lines.append(_row(*cells))
    lines += [
        "",
        "Forecast against what was moved, regret against the best of all ways, and seconds: of the delta to make, to",
        "rebuild (in memory, to the disk, in a contained process), of the quickest peer to rebuild. `guess` is what",
        "`wavemesh/artifacts/likeness.py` says of the delta before it is made. Seconds depend on the machine",
        "and its load; the JSON files say which. `zstd` is `zstd --patch-from`.",
        "",
        _row(*_COLUMNS),
        _row(*["---"] * len(_COLUMNS)),
    ]
    for one in results:
        way = one["ways"]["pairwise"]
        quickest = min((peer["apply_s"] for peer in one["peers"].values()), default=None)
        cells = [
            one["pair"],
            one["chosen"],
            f"{one['forecast_error']:.1%}",
            f"{one['regret']:.1%}",
            _bytes(one["guess"]["delta_bytes"]),
            *(f"{way[name]:.2f}" for name in ("make_s", "apply_s", "apply_disk_s", "worker_s")),
            "-" if quickest is None else f"{quickest:.2f}",
            f"{one['machine']['load']:.1f}",
        ]
        lines.append(_row(*cells))
    return "\n".join([*lines, ""])


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _bold(text: str, *, is_chosen: bool) -> str:
    return f"**{text}**" if is_chosen else text


def _is_chosen(one: dict[str, Any], way: str) -> bool:
    return {"full-zstd": "full_zstd", "chunks": "chunks", "delta": "pairwise"}.get(one["chosen"]) == way


def plot(results: list[dict[str, Any]]) -> str:
    """Bars of each pair, as shares of its largest."""
    names = (*_WAYS, *_PEERS)
    height_each = len(names) * _BAR + _GAP
    height = height_each * len(results) + 10
    size = f'width="{_LEFT + _WIDTH + 110}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for row, one in enumerate(results):
        top = row * height_each + 18
        counts = [*(one[way] for way in _WAYS), *(_peer(one, name) for name in _PEERS)]
        most = max(count for count in counts if count is not None)
        parts.append(f'<text x="4" y="{top - 5}" font-weight="bold">{escape(one["pair"])}</text>')
        for place, (name, count) in enumerate(zip(names, counts, strict=True)):
            if count is None:
                continue
            y, width = top + place * _BAR, max(1, round(_WIDTH * count / most))
            parts += [
                f'<text x="{_LEFT - 6}" y="{y + 10}" text-anchor="end">{name}</text>',
                f'<rect x="{_LEFT}" y="{y + 1}" width="{width}" height="{_BAR - 3}" fill="{_COLOURS[place]}"/>',
                f'<text x="{_LEFT + width + 4}" y="{y + 10}">{count / 1e6:.2f} MB</text>',
            ]
    return "\n".join([*parts, "</svg>", ""])
