"""Frames in a few words, for the trace."""

from __future__ import annotations

from typing import Any

from wavemesh.session.frames import Fenced, Hello, ReportBatch, ResourceUpdate, StatusUpdate


def brief(frame: Any) -> str:
    """What a frame carries."""
    match frame:
        case Hello():
            return f"{frame.incarnation[:6]} next {frame.next_report_number}"
        case Fenced():
            return f"through {frame.reports_through}"
        case ReportBatch():
            return f"{frame.first_number}+{len(frame.reports)} {','.join(one.kind for one in frame.reports)}"
        case ResourceUpdate():
            names = [f"{one.key.type}/{one.key.name}" for one in frame.changed]
            gone = [f"-{key.type}/{key.name}" for key in frame.removed]
            return f"#{frame.nonce} {' '.join([*names, *gone][:6])}"
        case StatusUpdate():
            return " ".join(entry.key for entry in frame.entries[:4])
        case _:
            return ""
