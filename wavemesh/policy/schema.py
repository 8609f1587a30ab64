"""The keys of a policy file: the one source of the reader, the JSON Schema and ``docs/reference/policy.md``.

``DOCUMENT`` lists every key with its type, bounds, meaning and default; ``RULES`` what holds between keys. Adding a key
here and a field of the same name to ``document.py`` is all there is to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wavemesh.policy.sources import GATES_THAT_MAY_PASS_UNTOLD
from wavemesh.policy.values import (
    ByteSize,
    Choice,
    Fault,
    Key,
    Listing,
    Lower,
    Number,
    Schema,
    Section,
    Text,
    Truth,
    WholeNumber,
)
from wavemesh.policy.windows import WINDOW_PATTERN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCHEMA_ID = "https://wavemesh.example/schema/policy.v1.json"

_NAME = Text(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "a name of 1 to 63 of a-z, 0-9 and '-', not '-' at either end")
_FILE = Text(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", "a file name of 1 to 128 of A-Z, a-z, 0-9, '.', '_', '+', '-'")
_PROBE = Text(r"[!-~]([ -~]{0,498}[!-~])?", "a command of 1 to 500 printable ASCII characters")
_PROBES = Listing(_PROBE, 16)
_WINDOW = Text(WINDOW_PATTERN, "a window HH:MM-HH:MM between 00:00 and 23:59 that is not empty, as in 00:30-03:30")
_URL = Text(r"[a-z][a-z0-9+.-]{0,19}://[!-~]{1,1000}", "a URL of at most 1000 characters, as in https://host/path")
_PERCENT = WholeNumber(0, 100)
_COUNT = WholeNumber(1, 100_000)

_TARGETS = Section(
    (
        Key("segment", _NAME, "The segment of the fleet whose cohort the waves update."),
        Key(
            "percentage", WholeNumber(1, 100), "Share of the cohort's devices that each wave adds, percent, rounded up."
        ),
        Key("hubBudget", _COUNT, "Stores a wave may touch."),
        Key(
            "permitBatch", _COUNT, "Permits a hub holds at a time; none: one for each of its devices in the wave.", None
        ),
    )
)

_AVAILABILITY = Section(
    (
        Key("role", _NAME, "Role of the devices concerned, for example till."),
        Key("group", _NAME, "Name of the group within each store; the store hub's config.toml lists its devices."),
        Key(
            "minUp",
            WholeNumber(1, 1000),
            "Devices of the group that stay up; less than the group has. The next swap waits for the last's health.",
        ),
    )
)

_GUARDRAILS = Section(
    (
        Key("minBattery", _PERCENT, "Charge below which a device neither flashes nor reboots, percent.", 40),
        Key("requireDualPartition", Truth(), "Whether a device without a second slot is refused.", True),
        Key(
            "rollbackOnHealthLossMins",
            Number(0, 1440, Lower.EXCLUDED),
            "Minutes a trial has to prove its health before it rolls back.",
            5,
        ),
        Key(
            "offlineRollbackAllowed",
            Truth(),
            "Whether a failed trial rolls back by itself; false: it awaits a sign-off.",
            True,
        ),
        Key("maxConcurrentSwaps", WholeNumber(1, 1000), "Devices of a store inside a swap at a time.", 5),
        Key(
            "maxTemperature", Number(-40, 150), "Temperature above which a device neither flashes nor reboots, °C.", 70
        ),
        Key("minFreeDisk", ByteSize(), "Space that stays free on the data partition, bytes.", 64 * 2**20),
        Key(
            "haltRollbackRatio",
            Number(0, 1),
            "Share of bad among decided outcomes above which control halts the wave.",
            0.2,
        ),
        Key("haltMinOutcomes", _COUNT, "Decided outcomes below which the ratio halts nothing.", 5),
        Key(
            "holdMaxAgeHours",
            Number(0, 8760, Lower.EXCLUDED),
            "Age of a device's view of the holds above which it does not reboot into a new slot, hours.",
            24,
        ),
        Key(
            "rotateCertificates",
            Truth(),
            "Whether a device renews its certificate before it gets its permit, when it is older than the wave.",
            True,
        ),
        Key(
            "requirePackedLkg",
            Truth(),
            "Whether an update that would leave no packed last known good for a second rollback is refused.",
            False,
        ),
        Key("availability", Listing(_AVAILABILITY, 64), "Groups of which some devices must stay up.", []),
        Key(
            "passWhenCannotTell",
            Listing(Choice(tuple(gate.value for gate in GATES_THAT_MAY_PASS_UNTOLD)), len(GATES_THAT_MAY_PASS_UNTOLD)),
            "Gates that pass where their source is there and does not answer; every other one refuses then.",
            [],
        ),
    )
)

_ARTIFACTS = Section(
    (
        Key("firmware", _FILE, "Firmware image of the release; none: config only.", None),
        Key("config", _FILE, "Config bundle of the release; none: firmware only.", None),
        Key("signature", _FILE, "The release's signature bundle."),
        Key(
            "app", _FILE, "OCI image of the release, which store hubs serve to container runtimes; none: no app.", None
        ),
    )
)

_VERIFICATION = Section(
    (
        Key(
            "bootProbe",
            _PROBE,
            "Command that must succeed on the new slot; signed with the release. Needed with firmware.",
            None,
        ),
        Key("peripheralChecks", _PROBES, "Commands that must succeed before and after; signed with the release.", []),
        Key("vendorProbes", _PROBES, "Further commands that must succeed in the trial; signed with the release.", []),
        Key("healthPingEndpoint", _URL, "Address of the health authority; https names control.", None),
        Key(
            "healthAuthority",
            Choice(("control", "hub", "either")),
            "Who acknowledges a trial's health; none: control when healthPingEndpoint is an https URL, else hub.",
            None,
        ),
    )
)

_WINDOWS = Section(
    (
        Key("prefetch", _WINDOW, "When a store fetches artifacts, in its local time; none: always.", None),
        Key("swap", _WINDOW, "When devices may start a swap, in the store's local time; none: always.", None),
    )
)

_DELIVERY = Section(
    (
        Key(
            "byteBudget",
            ByteSize(),
            "Bytes a store may read for a wave from its super hub; more stops with gate byte-budget. None: no bound.",
            None,
        ),
        Key(
            "pricePerGiB",
            Number(0, 1_000_000),
            "Price of a GiB over the store's link, in the unit of pricePerHour: what decides between deliveries.",
            1,
        ),
        Key(
            "pricePerHour",
            Number(0, 1_000_000),
            "Price of an hour that a store waits, reads or rebuilds, in the unit of pricePerGiB.",
            1,
        ),
    )
)

DOCUMENT = Section(
    (
        Key("targets", _TARGETS, "Whom the waves update, and how many at a time."),
        Key("guardrails", _GUARDRAILS, "What must hold for a device to be updated, and when a wave halts.", {}),
        Key("artifacts", _ARTIFACTS, "What is installed."),
        Key("verification", _VERIFICATION, "How a device proves that it is well.", {}),
        Key("windows", _WINDOWS, "When things may happen.", {}),
        Key("delivery", _DELIVERY, "What moving artifacts to a store may cost.", {}),
    )
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Something that holds between keys. ``schema`` is None where JSON Schema cannot say it."""

    meaning: str
    faults: Callable[[dict[str, Any]], Iterator[Fault]]
    schema: Schema | None


def _some_artifact(document: dict[str, Any]) -> Iterator[Fault]:
    artifacts = _section(document, "artifacts")
    if artifacts is not None and all(artifacts.get(key) is None for key in ("firmware", "config", "app")):
        yield Fault(("artifacts",), "neither firmware nor config nor app is named: there is nothing to bring")


def _boot_probe(document: dict[str, Any]) -> Iterator[Fault]:
    artifacts, verification = _section(document, "artifacts"), _section(document, "verification")
    if artifacts is None or artifacts.get("firmware") is None:
        return
    if "verification" not in document or (verification is not None and verification.get("bootProbe") is None):
        yield Fault(("verification", "bootProbe"), f"is missing, and firmware needs it; expected {_PROBE.words()}")


def _groups(document: dict[str, Any]) -> Iterator[Fault]:
    entries = (_section(document, "guardrails") or {}).get("availability")
    seen: list[tuple[object, object]] = []
    for at, entry in enumerate(entries if isinstance(entries, list) else []):
        group = (entry.get("role"), entry.get("group")) if isinstance(entry, dict) else (None, None)
        if None not in group and group in seen:
            yield Fault(("guardrails", "availability", at), f"role and group are those of item {seen.index(group)}")
        seen.append(group)


def _section(document: dict[str, Any], name: str) -> dict[str, Any] | None:
    section = document.get(name)
    return section if isinstance(section, dict) else None


_GIVEN: Schema = {"not": {"type": "null"}}

RULES = (
    Rule(
        "`artifacts` names firmware, config or app, at least one.",
        _some_artifact,
        {
            "properties": {
                "artifacts": {
                    "anyOf": [
                        {"required": ["firmware"], "properties": {"firmware": _GIVEN}},
                        {"required": ["config"], "properties": {"config": _GIVEN}},
                        {"required": ["app"], "properties": {"app": _GIVEN}},
                    ]
                }
            }
        },
    ),
    Rule(
        "`verification.bootProbe` is given where `artifacts.firmware` is.",
        _boot_probe,
        {
            "if": {"properties": {"artifacts": {"required": ["firmware"], "properties": {"firmware": _GIVEN}}}},
            "then": {
                "required": ["verification"],
                "properties": {"verification": {"required": ["bootProbe"], "properties": {"bootProbe": _GIVEN}}},
            },
        },
    ),
    Rule("No two items of `guardrails.availability` have the same role and group.", _groups, None),
)


def read_document(raw: object) -> tuple[dict[str, Any], tuple[Fault, ...]]:
    """The document with every key explicit, and all its faults; with a fault, the document is not to be used."""
    faults: list[Fault] = []
    document = DOCUMENT.read(raw, (), faults)
    if isinstance(raw, dict):
        faults.extend(fault for rule in RULES for fault in rule.faults(raw))
    return (document if isinstance(document, dict) else {}), tuple(faults)


def json_schema() -> Schema:
    """The published JSON Schema, draft 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "wavemesh policy",
        **DOCUMENT.schema(),
        "allOf": [rule.schema for rule in RULES if rule.schema is not None],
    }
