"""What ``--since`` understands: "15 min ago", "2h", "1 day ago", "2026-03-01T10:00:00Z"."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from edgectl.exits import UsageError

_UNITS_S = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
}
_AGO = re.compile(r"(\d{1,6})\s*([a-z]+?)s?(\s+ago)?", re.IGNORECASE)


def parse_since(text: str, now: datetime) -> datetime:
    """The moment meant, in UTC; a time without a zone is UTC. Raises UsageError."""
    match = _AGO.fullmatch(text.strip())
    unit = match[2].lower() if match else ""
    if match and (unit or "s") in _UNITS_S:
        return now - timedelta(seconds=int(match[1]) * _UNITS_S[unit])
    if match and not unit:
        return now - timedelta(seconds=int(match[1]))
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as exc:
        msg = f'--since {text!r}: write "15 min ago", "2h" or a time like 2026-03-01T10:00:00Z'
        raise UsageError(msg) from exc
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
