"""The numbers of points that docs/crash-points.md publishes; fewer are a failure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "crash-points.md"
_ROW = re.compile(r"^\| `([\w-]+)` \| .* \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one scenario, a device's on the simulated back-end; complete."""

    steps: int
    single: int
    double: int


def published() -> dict[str, Figures]:
    """By scenario."""
    rows = _ROW.findall(PAGE.read_text(encoding="utf-8"))
    return {name: Figures(*(int(figure.replace(",", "")) for figure in figures)) for name, *figures in rows}


def shortfalls(name: str, steps: int, single: int | None = None, double: int | None = None) -> list[str]:
    """What is less than published; None where points were sampled."""
    wanted = published().get(name)
    if wanted is None:
        return [f"{PAGE.name} publishes no figures of scenario {name}"]
    found = {
        "steps": (steps, wanted.steps),
        "single cuts": (wanted.single if single is None else single, wanted.single),
        "double cuts": (wanted.double if double is None else double, wanted.double),
    }
    return [
        f"{name}: {count} {what}, {PAGE.name} publishes {least}"
        for what, (count, least) in found.items()
        if count < least
    ]
