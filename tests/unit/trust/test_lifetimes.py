"""ADR 3's table of lifetimes against the longest offline time is what the code does."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

from control.config import Config as ControlConfig
from superhub.config import ComplianceConfig
from wavemesh.policy.reader import parse_policy
from wavemesh.trust.files import LIFETIMES, LONGEST_OFFLINE
from wavemesh.trust.freshness import RELEASE_MAX_AGE
from wavemesh.trust.repository import REFRESH_AFTER

ADR = Path(__file__).resolve().parents[3] / "docs" / "adr" / "0003-trust.md"
POLICY = b"""
targets: {segment: s, percentage: 5, hubBudget: 1}
artifacts: {config: "c.tar.gz", signature: "a.sig"}
"""


def table() -> dict[str, tuple[str, str]]:
    """Lifetime and renewal by what they are of."""
    section = ADR.read_text().partition("## Lifetimes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| .+? \|$", section, re.MULTILINE)
    return {name: (lifetime, renewed) for what, lifetime, renewed in rows for name in what.split(", ")}


def test_the_table_is_the_code() -> None:
    def days(duration: timedelta) -> str:
        assert duration % timedelta(days=1) == timedelta()
        return f"{duration.days} d"

    lifetimes = {name: lifetime for name, (lifetime, _) in table().items()}
    for kind, lifetime in LIFETIMES.items():
        assert lifetimes[f"{kind}.json"] == days(lifetime)
    assert lifetimes["class-NAME.json"] == days(LIFETIMES["targets"])
    assert lifetimes["age of a release when it enters a region"] == days(RELEASE_MAX_AGE)
    assert ComplianceConfig().max_age == RELEASE_MAX_AGE
    guardrails = parse_policy(POLICY, "policy.yaml").guardrails
    assert lifetimes["view of holds (`holdMaxAge`)"] == f"{guardrails.hold_max_age_hours:g} h"


def test_what_must_outlive_the_longest_offline_time_does() -> None:
    text = ADR.read_text()
    assert f"Supported: {LONGEST_OFFLINE.days} days without any connection" in text
    # A node may have gone dark just before the next refresh.
    assert all(lifetime - REFRESH_AFTER > LONGEST_OFFLINE for lifetime in LIFETIMES.values())
    node = re.search(r"≥ (\d+) d", table()["node certificate"][0])
    assert node is not None
    assert timedelta(days=int(node[1])) > LONGEST_OFFLINE


def test_renewals_are_as_often_as_it_says() -> None:
    renewals = {name: renewed for name, (_, renewed) in table().items()}
    assert renewals["timestamp.json"] == "daily by control"
    assert timedelta(days=1) == REFRESH_AFTER
    assert renewals["view of holds (`holdMaxAge`)"] == "hourly by control"
    assert timedelta(seconds=ControlConfig().hold_resign_s) == timedelta(hours=1)
