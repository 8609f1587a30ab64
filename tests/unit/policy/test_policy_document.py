"""The policy as values and as the signed payload (P1, P2)."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavemesh.policy.document import (
    POLICY_BYTES_MOST,
    DeliveryTerms,
    HealthAuthority,
    Policy,
    PolicyError,
    policy_digest,
    policy_from_json,
    policy_to_json,
)
from wavemesh.policy.reader import parse_policy
from wavemesh.policy.windows import Window

ROOT = Path(__file__).parents[3]
FILE_OF_P1 = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/requirements.md").read_text(), re.DOTALL)
assert FILE_OF_P1 is not None
P1 = "\n".join(line.removeprefix("  ") for line in FILE_OF_P1[1].splitlines())


@pytest.fixture
def policy() -> Policy:
    return parse_policy(P1.encode(), "policy.yaml")


def test_the_file_of_p1_is_accepted_as_written(policy: Policy) -> None:
    """P1."""
    assert policy.targets.segment == "retail-us-midwest"
    assert (policy.targets.percentage, policy.targets.hub_budget) == (5, 2)
    assert policy.guardrails.min_battery == 40
    assert policy.guardrails.require_dual_partition is True
    assert policy.guardrails.rollback_on_health_loss_s == 300
    assert policy.guardrails.offline_rollback_allowed is True
    assert policy.artifacts.firmware == "firmware-v3.8.2.img"
    assert policy.artifacts.config == "pos-app-12.4.1.tar.gz"
    assert policy.artifacts.signature == "firmware-v3.8.2.sig"
    assert policy.verification.boot_probe == "systemd-analyze verify /boot/inactive"
    assert policy.verification.peripheral_checks == ("lsusb | grep scanner",)
    assert policy.verification.health_ping_endpoint == "https://control-plane/health"


def test_defaults_are_those_of_the_semantics(policy: Policy) -> None:
    assert policy.targets.permit_batch is None
    assert policy.guardrails.max_concurrent_swaps == 5
    assert policy.guardrails.max_temperature == 70
    assert policy.guardrails.halt_rollback_ratio == 0.2
    assert policy.guardrails.halt_min_outcomes == 5
    assert policy.guardrails.hold_max_age_s == 24 * 3600
    assert policy.guardrails.availability == ()
    assert policy.verification.health_authority is HealthAuthority.CONTROL
    assert (policy.windows.prefetch, policy.windows.swap) == (None, None)


@pytest.mark.parametrize(
    ("line", "authority"),
    [
        ("healthPingEndpoint: https://c/health", HealthAuthority.CONTROL),
        ("healthPingEndpoint: http://c/health", HealthAuthority.HUB),
        ("vendorProbes: []", HealthAuthority.HUB),
        ("healthPingEndpoint: https://c/health\n  healthAuthority: either", HealthAuthority.EITHER),
        ("healthAuthority: control", HealthAuthority.CONTROL),
    ],
)
def test_the_health_authority_follows_the_endpoint_unless_named(line: str, authority: HealthAuthority) -> None:
    text = P1.replace('healthPingEndpoint: "https://control-plane/health"', line)
    assert parse_policy(text.encode(), "p").verification.health_authority is authority


def test_the_payload_has_every_default_and_reads_back(policy: Policy) -> None:
    payload = policy_to_json(policy)
    document = json.loads(payload)
    assert document["targets"]["permitBatch"] is None
    assert document["guardrails"]["holdMaxAgeHours"] == 24
    assert document["verification"]["healthAuthority"] == "control"
    assert document["windows"] == {"prefetch": None, "swap": None}
    assert policy_from_json(payload) == policy


def test_gates_that_cannot_tell_refuse_unless_listed_and_older_policies_keep_their_bytes(policy: Policy) -> None:
    """Q2: a key of a later version is written only where it says something; what it may say is checked by place."""
    assert policy.guardrails.pass_when_cannot_tell == ()
    assert b"passWhenCannotTell" not in policy_to_json(policy)
    listed = parse_policy(P1.replace("minBattery: 40", "passWhenCannotTell: [temperature, vendor]").encode(), "p")
    assert listed.guardrails.pass_when_cannot_tell == ("temperature", "vendor")
    assert policy_from_json(policy_to_json(listed)) == listed
    with pytest.raises(PolicyError) as refused:
        parse_policy(P1.replace("minBattery: 40", "passWhenCannotTell: [dual-partition]").encode(), "policy.yaml")
    assert re.match(
        r"policy\.yaml:\d+:\d+: guardrails\.passWhenCannotTell\[0\]: expected one of battery", str(refused.value)
    )


def test_comments_order_and_spelling_do_not_change_the_digest(policy: Policy) -> None:
    sections = re.findall(r"^[a-z]+:\n(?:  .*\n?)+", P1, re.MULTILINE)
    other = "\n".join(reversed(sections)).replace("Mins: 5", "Mins: 5.0").replace("#", "# other:")
    assert policy_to_json(parse_policy(other.encode(), "p")) == policy_to_json(policy)
    assert len(policy_digest(policy_to_json(policy))) == 64


def test_a_policy_made_in_code_has_the_payload_of_the_same_file(policy: Policy) -> None:
    made = dataclasses.replace(
        policy,
        guardrails=dataclasses.replace(policy.guardrails, rollback_on_health_loss_mins=0.05, max_temperature=70.0),
        windows=dataclasses.replace(policy.windows, prefetch=Window.parse("00:30-03:30")),
    )
    text = P1.replace("Mins: 5", "Mins: 0.05") + "\nwindows: {prefetch: 00:30-03:30}"
    assert policy_to_json(made) == policy_to_json(parse_policy(text.encode(), "p"))


@pytest.mark.parametrize(
    "change",
    [
        lambda payload: payload.replace(b'"permitBatch":null,', b""),
        lambda payload: payload.replace(b'"percentage":5', b'"percentage":5.0'),
        lambda payload: payload.replace(b'"percentage":5', b'"percentage":6,"percentage":5'),
        lambda payload: payload.replace(b'"percentage":5', b'"percentage":true'),
        lambda payload: payload.replace(b'"percentage":5', b'"percentage":NaN'),
        lambda payload: payload.replace(b'"percentage":5', b'"percentage":' + b"9" * 5000),
        lambda payload: payload.replace(b'"minFreeDisk":67108864', b'"minFreeDisk":"64MiB"'),
        lambda payload: payload.replace(b'"healthAuthority":"control"', b'"healthAuthority":null'),
        lambda payload: payload.replace(b"retail", b"\\u0072etail"),
        lambda payload: payload.replace(b"retail", b"\\ud800etail"),
        lambda payload: payload + b"\n",
        lambda payload: payload[:-1],
        lambda payload: b"\xff" + payload,
        lambda payload: payload.replace(b'{"artifacts"', b'{"more":1,"artifacts"'),
        lambda _: b"null",
        lambda _: b"[" * 60_000,
        lambda _: b" " * (POLICY_BYTES_MOST + 1),
    ],
)  # fmt: skip
def test_any_other_bytes_are_refused(policy: Policy, change: object) -> None:
    assert callable(change)
    changed = change(policy_to_json(policy))
    assert changed != policy_to_json(policy)
    with pytest.raises(PolicyError, match=r"policy\.json: "):
        policy_from_json(changed)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_raise_anything_else(payload: bytes) -> None:
    with pytest.raises(PolicyError):
        policy_from_json(payload)


def test_a_device_that_reads_a_policy_loads_no_yaml() -> None:
    modules = "wavemesh.policy.document, wavemesh.policy.gates, wavemesh.policy.windows, wavemesh.policy.versions"
    subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; sys.exit('yaml' in sys.modules)"], check=True, cwd=ROOT
    )


def test_a_later_key_is_written_where_it_is_used(policy: Policy) -> None:
    """A policy that does not use it has the bytes that earlier versions know; one that does is another policy."""
    off = dataclasses.replace(policy, guardrails=dataclasses.replace(policy.guardrails, rotate_certificates=False))
    assert policy.guardrails.rotate_certificates
    assert b"rotateCertificates" not in policy_to_json(policy)
    assert b'"rotateCertificates":false' in policy_to_json(off)
    for one in (policy, off):
        assert policy_from_json(policy_to_json(one)) == one
    strict = dataclasses.replace(policy, guardrails=dataclasses.replace(policy.guardrails, require_packed_lkg=True))
    assert b"requirePackedLkg" not in policy_to_json(policy)
    assert policy_from_json(policy_to_json(strict)) == strict
    explicit = policy_to_json(off).replace(b'"rotateCertificates":false', b'"rotateCertificates":true')
    with pytest.raises(PolicyError, match="canonical"):
        policy_from_json(explicit)


def test_what_a_delivery_may_cost_is_a_section_that_older_readers_never_see_unused(policy: Policy) -> None:
    """S5: price and budget of bytes; a policy without them has the digest that earlier versions know."""
    assert policy.delivery == DeliveryTerms(None, 1, 1)
    assert b"delivery" not in policy_to_json(policy)
    tight = dataclasses.replace(policy, delivery=DeliveryTerms(byte_budget=200 << 20, price_per_gib=0.5))
    payload = policy_to_json(tight)
    assert b'"delivery":{"byteBudget":209715200,"pricePerGiB":0.5}' in payload
    assert policy_from_json(payload) == tight
    with pytest.raises(PolicyError, match="canonical"):
        policy_from_json(payload.replace(b'"pricePerGiB":0.5', b'"pricePerGiB":1'))
