"""The published JSON Schema, judged by an independent validator, agrees with the reader (P1)."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from wavemesh.policy.document import policy_from_json, policy_of, policy_to_json
from wavemesh.policy.schema import json_schema, read_document

TEXT_OF_P1 = re.search(
    r"```yaml\n(.*?)```", (Path(__file__).parents[3] / "docs/requirements.md").read_text(), re.DOTALL
)
assert TEXT_OF_P1 is not None
P1: dict[str, Any] = yaml.safe_load(TEXT_OF_P1[1])
VALIDATOR = Draft202012Validator(json_schema())

# Places in P1's file, and values to put there; ABSENT takes the key away.
ABSENT = object()
GOOD_CHANGES: list[tuple[str, object]] = [
    ("targets.permitBatch", None),
    ("targets.permitBatch", 3),
    ("targets.percentage", 100),
    ("targets.percentage", 5.0),
    ("guardrails", ABSENT),
    ("guardrails.minFreeDisk", "64MiB"),
    ("guardrails.minFreeDisk", 0),
    ("guardrails.rollbackOnHealthLossMins", 0.05),
    ("guardrails.haltRollbackRatio", 0),
    ("guardrails.haltRollbackRatio", 1),
    ("guardrails.availability", [{"role": "till", "group": "front", "minUp": 2}]),
    ("artifacts.config", None),
    ("artifacts.config", ABSENT),
    ("artifacts.firmware", ABSENT),
    ("verification.vendorProbes", ["a", "b"]),
    ("verification.healthAuthority", "either"),
    ("verification.healthAuthority", None),
    ("windows", {"prefetch": "22:00-06:00", "swap": None}),
]
BAD_CHANGES: list[tuple[str, object]] = [
    ("targets", ABSENT),
    ("targets", []),
    ("targets.segment", ABSENT),
    ("targets.segment", ""),
    ("targets.segment", "a b"),
    ("targets.percentage", 0),
    ("targets.percentage", 101),
    ("targets.percentage", 5.5),
    ("targets.percentage", "5"),
    ("targets.percentage", True),
    ("targets.percentage", None),
    ("targets.hubBudget", 0),
    ("targets.permitBatch", 0),
    ("targets.other", 1),
    ("guardrails", None),
    ("guardrails.minBattery", -1),
    ("guardrails.requireDualPartition", "yes"),
    ("guardrails.requireDualPartition", 1),
    ("guardrails.rollbackOnHealthLossMins", 0),
    ("guardrails.rollbackOnHealthLossMins", True),
    ("guardrails.maxConcurrentSwaps", 0),
    ("guardrails.haltRollbackRatio", 1.1),
    ("guardrails.minFreeDisk", "64 MiB"),
    ("guardrails.minFreeDisk", 1.5),
    ("guardrails.availability", [{"role": "till", "group": "front"}]),
    ("guardrails.availability", [{"role": "t", "group": "f", "minUp": 2}] * 2),
    ("guardrails.availability", {}),
    ("artifacts", {"signature": "a"}),
    ("artifacts", {"signature": "a", "firmware": None, "config": None}),
    ("artifacts.signature", None),
    ("artifacts.firmware", "a/b"),
    ("verification", ABSENT),
    ("verification.bootProbe", ABSENT),
    ("verification.bootProbe", None),
    ("verification.peripheralChecks", ["a", "a"]),
    ("verification.peripheralChecks", [str(n) for n in range(17)]),
    ("verification.peripheralChecks", ["a\nb"]),
    ("verification.healthPingEndpoint", "control-plane/health"),
    ("verification.healthAuthority", "store"),
    ("windows.swap", "25:00-03:30"),
    ("windows.swap", "03:30-03:30"),
    ("windows", {"other": "22:00-06:00"}),
]


def changed(path: str, value: object) -> dict[str, Any]:
    document = copy.deepcopy(P1)
    section: dict[str, Any] = document
    *parents, last = path.split(".")
    for name in parents:
        section = section.setdefault(name, {})
    if value is ABSENT:
        del section[last]
    else:
        section[last] = value
    return document


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(json_schema())


def test_the_file_of_p1_is_valid() -> None:
    assert VALIDATOR.is_valid(P1)


def test_the_signed_payload_is_valid_too() -> None:
    document, faults = read_document(P1)
    assert not faults
    payload = policy_to_json(policy_of(document))
    assert VALIDATOR.is_valid(json.loads(payload))
    assert policy_from_json(payload) == policy_of(document)


@pytest.mark.parametrize(("path", "value"), GOOD_CHANGES)
def test_schema_and_reader_accept(path: str, value: object) -> None:
    assert VALIDATOR.is_valid(changed(path, value))
    document, faults = read_document(changed(path, value))
    assert not faults
    payload = policy_to_json(policy_of(document))
    assert policy_from_json(payload) == policy_of(document)


@pytest.mark.parametrize(("path", "value"), BAD_CHANGES)
def test_schema_and_reader_refuse(path: str, value: object) -> None:
    assert not VALIDATOR.is_valid(changed(path, value))
    assert read_document(changed(path, value))[1]


def test_every_default_is_a_value_the_schema_takes() -> None:
    least = {
        "targets": {"segment": "a", "percentage": 1, "hubBudget": 1},
        "artifacts": {"config": "c", "signature": "s"},
    }
    document, faults = read_document(least)
    assert not faults
    assert VALIDATOR.is_valid(document)
