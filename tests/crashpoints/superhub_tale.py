"""The super hub's scenarios as the campaign drives them, and what is asked of a super hub alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.crashpoints.hub_key import key_of
from tests.crashpoints.hub_oracle import HubOracle, behind, judge_rest_of_cache, ledger_of, rows_of
from tests.crashpoints.hub_story import HubStanding, HubStory
from tests.crashpoints.superhub_cast import QUOTA_BYTES, RegionHub
from tests.crashpoints.superhub_scenarios import SCENARIOS
from wavemesh.codec.statements import decode
from wavemesh.trust.enrolments import CertificateReport, IssueAnswer
from wavemesh.trust.statements import EventReport, IntentReport, OperatorIntent

if TYPE_CHECKING:
    from tests.crashpoints.campaign import Look
    from tests.crashpoints.hub_world import World
    from tests.crashpoints.medium import Image
    from tests.crashpoints.storehub_scenarios import Scenario

DATABASE = "state/superhub.db"


@dataclass(frozen=True, slots=True)
class SuperHubTale:
    """Implements ``Tale``."""

    scenario: Scenario
    log: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The scenario's."""
        return self.scenario.name

    def begin(self) -> HubStanding:
        """Where the scenario begins."""
        return self.scenario.begin()

    def tell(self, standing: HubStanding, look: Look[HubStanding] | None) -> list[str]:
        """Run to rest and judge that."""
        self.log.clear()
        rest = HubStory(RegionHub(), self.scenario.acts, self.scenario.is_over, standing, look, self.log).tell()
        return self.judge(rest) or judge_rest(rest.image, rest.world, self.scenario)

    def judge(self, standing: HubStanding) -> list[str]:
        """By the oracle."""
        image, world = standing.image, standing.world
        return HubOracle(DATABASE).judge(image, world) + judge_region(image, world)

    def key(self, standing: HubStanding) -> str:
        """By everything that matters."""
        return key_of(standing)


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
    """What everybody knows in the end."""
    told = ledger_of((one.kind, one.body) for child in world.children for one in child.reports)
    heard = ledger_of((kind, body) for _, _, kind, body in world.parent.heard)
    problems = [f"control never heard {what}" for what in behind(told, heard)]
    problems += [f"nobody said {what}" for what in behind(heard, told)]
    said = {_told(("", 0, one.kind, one.body)) for child in world.children for one in child.reports} - {""}
    missing = said - {_told(one) for one in world.parent.heard}
    # An intent that was taken back before it went up is told as such, and only so.
    taken_back = {name for name in missing if name.replace("intent", "cancellation of") in said}
    problems += [f"control never heard of {name}" for name in sorted(missing - taken_back)]
    content = image[DATABASE]
    assert content is not None
    certificates = {hashlib.sha256(row["certificate"]).hexdigest() for row in rows_of(content)["issued"]}
    reported = [one for one in world.parent.heard if one[2] == "certificate"]
    if len(certificates) != len(reported):
        problems.append(f"{len(certificates)} certificates were issued, control knows {len(reported)}")
    problems += judge_rest_of_cache(image, QUOTA_BYTES, scenario.needed)
    incarnations = len(world.parent.cursors)
    if incarnations != scenario.incarnations:
        problems.append(f"the hub had {incarnations} incarnations, {scenario.incarnations} were to be")
    return problems


def tales() -> list[SuperHubTale]:
    """All scenarios."""
    return [SuperHubTale(make()) for make in SCENARIOS]
