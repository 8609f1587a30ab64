"""What is asked of a super hub alone, after a cut and at rest."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from tests.crashpoints.hub_oracle import judge_rest_of_cache, rows_of
from tests.crashpoints.hub_tale import HubTale, Kind, tales_of
from tests.crashpoints.superhub_cast import QUOTA_BYTES, RegionHub
from tests.crashpoints.superhub_scenarios import SCENARIOS
from wavemesh.codec.statements import decode
from wavemesh.trust.enrolments import CertificateReport, IssueAnswer
from wavemesh.trust.statements import EventReport, IntentReport, OperatorIntent

if TYPE_CHECKING:
    from tests.crashpoints.hub_world import World
    from tests.crashpoints.medium import Image
    from tests.crashpoints.storehub_scenarios import Scenario

DATABASE = "state/superhub.db"


def judge_region(image: Image, world: World) -> list[str]:
    """Entries, certificates, retirements, and what was told once."""
    content = image.get(DATABASE)
    tables = rows_of(content) if content else {}
    problems = []
    if world.note("seeded") and not tables.get("entered"):
        problems.append("bytes were seeded of a release that has not entered the region")
    issued = {row["certificate"] for row in tables.get("issued", ())}
    given = {
        (child.path, name): answer.issued.certificate
        for child in world.children
        for name, body in child.got
        if not name.startswith("gate") and (answer := decode(IssueAnswer, body)).issued is not None
    }
    problems += [
        f"{name} of {path} was issued and is not known" for (path, name), one in given.items() if one not in issued
    ]
    if len({one for (_, name), one in given.items() if name.startswith("join")}) > 1:
        problems.append("one token brought two certificates")
    retired = {row["path"] for row in tables.get("newest_certificates", ())}
    problems += [
        f"{path} opened a session, and older certificates may come back"
        for path in set(world.note("used") or ()) - retired
    ]
    told = Counter(name for name in map(_told, world.parent.heard) if name)
    if not world.note("lost"):
        problems += [f"{name} went up {count} times" for name, count in told.items() if count > 1]
    return problems


def _told(heard: tuple[str, int, str, bytes]) -> str:
    """By what control tells reports that count once apart; empty for others."""
    _, _, kind, body = heard
    match kind:
        case "event":
            return f"event {decode(EventReport, body).event_id}"
        case "certificate":
            return f"certificate {decode(CertificateReport, body).serial}"
        case "intent":
            report = decode(IntentReport, body)
            what = "intent" if report.cancellation is None else "cancellation of"
            return f"{what} {decode(OperatorIntent, report.intent.payload).intent_id}"
    return ""


def judge_rest(image: Image, world: World, scenario: Scenario) -> list[str]:
    """What counts once, certificates and the cache in the end."""
    said = {_told(("", 0, one.kind, one.body)) for child in world.children for one in child.reports} - {""}
    missing = said - {_told(one) for one in world.parent.heard}
    # An intent that was taken back before it went up is told as such, and only so.
    taken_back = {name for name in missing if name.replace("intent", "cancellation of") in said}
    problems = [f"control never heard of {name}" for name in sorted(missing - taken_back)]
    content = image[DATABASE]
    assert content is not None
    certificates = {hashlib.sha256(row["certificate"]).hexdigest() for row in rows_of(content)["issued"]}
    reported = [one for one in world.parent.heard if one[2] == "certificate"]
    if len(certificates) != len(reported):
        problems.append(f"{len(certificates)} certificates were issued, control knows {len(reported)}")
    problems += judge_rest_of_cache(image, QUOTA_BYTES, scenario.needed)
    return problems


def tales() -> list[HubTale]:
    """All scenarios."""
    return tales_of(Kind(RegionHub, DATABASE, judge_region, judge_rest), SCENARIOS)
