"""A policy as values, and its signed form: canonical JSON with the defaults of the first version explicit.

The fields mirror the keys of ``policy.yaml`` (``schema.py`` has their meaning, units and bounds). ``reader.py`` reads
YAML; devices read only the JSON that control signed, and this module imports no YAML. The JSON is a policy document
like the YAML: same keys, same schema, sorted keys, no spaces, whole numbers without a fraction. Exactly one sequence of
bytes is accepted for one policy. A key added later is written only where it is not at its default: a reader refuses
keys it does not know, as a guardrail that is not understood must not be passed over, and so what uses one, no more.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from wavemesh.errors import PeerError
from wavemesh.policy.schema import read_document
from wavemesh.policy.windows import Window

POLICY_PAYLOAD_TYPE = "application/vnd.wavemesh.policy.v1+json"
POLICY_BYTES_MOST = 64 * 2**10
PROBLEMS_SHOWN_MOST = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a policy. Line and column count from 1; both are 0 where there are no lines."""

    file: str
    line: int
    column: int
    key: str
    reason: str

    def __str__(self) -> str:
        """``policy.yaml:4:15: targets.percentage: expected …``."""
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.key}: {self.reason}" if self.key else f"{place}: {self.reason}"


class PolicyError(PeerError):
    """A policy is refused; ``problems`` has everything that is wrong with it, in the order of the file."""

    reason = "BAD_POLICY"

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        """Take at least one problem."""
        shown = [str(problem) for problem in problems[:PROBLEMS_SHOWN_MOST]]
        if len(problems) > PROBLEMS_SHOWN_MOST:
            shown.append(f"and {len(problems) - PROBLEMS_SHOWN_MOST} more")
        super().__init__("\n".join(shown), file=problems[0].file, problems=str(len(problems)))
        self.problems = problems


class HealthAuthority(enum.Enum):
    """Who acknowledges that a trial is healthy."""

    CONTROL = "control"
    HUB = "hub"
    EITHER = "either"


@dataclass(frozen=True, slots=True)
class Targets:
    """Whom the waves update."""

    segment: str
    percentage: int
    hub_budget: int
    permit_batch: int | None


@dataclass(frozen=True, slots=True)
class AvailabilityGroup:
    """A group of devices in each store of which some must stay up."""

    role: str
    group: str
    min_up: int


@dataclass(frozen=True, slots=True)
class Guardrails:
    """What must hold for an update: percent, degrees Celsius, bytes, minutes and hours as in the policy file."""

    min_battery: int
    require_dual_partition: bool
    rollback_on_health_loss_mins: float
    offline_rollback_allowed: bool
    max_concurrent_swaps: int
    max_temperature: float
    min_free_disk: int
    halt_rollback_ratio: float
    halt_min_outcomes: int
    hold_max_age_hours: float
    rotate_certificates: bool
    require_packed_lkg: bool
    availability: tuple[AvailabilityGroup, ...]
    pass_when_cannot_tell: tuple[str, ...]

    @property
    def rollback_on_health_loss_s(self) -> float:
        """Time a trial has to prove its health."""
        return self.rollback_on_health_loss_mins * 60

    @property
    def hold_max_age_s(self) -> float:
        """Age of a view of the holds above which nothing is armed."""
        return self.hold_max_age_hours * 3600


@dataclass(frozen=True, slots=True)
class Artifacts:
    """What is brought, by name; at least one of firmware, config and app. Devices install the first two."""

    firmware: str | None
    config: str | None
    signature: str
    app: str | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """How a device proves that it is well. The commands only select among those signed with the release."""

    boot_probe: str | None
    peripheral_checks: tuple[str, ...]
    vendor_probes: tuple[str, ...]
    health_ping_endpoint: str | None
    health_authority: HealthAuthority


@dataclass(frozen=True, slots=True)
class Windows:
    """When things may happen, in the store's local time; None is always."""

    prefetch: Window | None
    swap: Window | None


@dataclass(frozen=True, slots=True)
class DeliveryTerms:
    """What moving artifacts may cost: bytes for a store and wave, None is no bound; prices of a GiB and an hour."""

    byte_budget: int | None = None
    price_per_gib: float = 1
    price_per_hour: float = 1


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy, every default filled in."""

    targets: Targets
    guardrails: Guardrails
    artifacts: Artifacts
    verification: Verification
    windows: Windows
    delivery: DeliveryTerms = DeliveryTerms()


def policy_of(document: dict[str, Any]) -> Policy:
    """The policy of a document that ``read_document`` found without fault."""
    guardrails, verification = document["guardrails"], document["verification"]
    groups = tuple(AvailabilityGroup(**_fields(entry)) for entry in guardrails["availability"])
    passing = tuple(guardrails["passWhenCannotTell"])
    authority = verification["healthAuthority"] or _default_authority(verification["healthPingEndpoint"])
    return Policy(
        targets=Targets(**_fields(document["targets"])),
        guardrails=Guardrails(**_fields(guardrails | {"availability": groups, "passWhenCannotTell": passing})),
        artifacts=Artifacts(**_fields(document["artifacts"])),
        verification=Verification(
            boot_probe=verification["bootProbe"],
            peripheral_checks=tuple(verification["peripheralChecks"]),
            vendor_probes=tuple(verification["vendorProbes"]),
            health_ping_endpoint=verification["healthPingEndpoint"],
            health_authority=HealthAuthority(authority),
        ),
        windows=Windows(**{name: text and Window.parse(text) for name, text in document["windows"].items()}),
        delivery=DeliveryTerms(**_fields(document["delivery"])),
    )


#: Keys younger than the first version, by section and name, with their defaults: written only where they are not at it,
#: so that a policy that does not use one has the bytes, and the digest, that earlier versions know.
_LATER_KEYS: dict[tuple[str, str], object] = {
    ("guardrails", "rotateCertificates"): True,
    ("guardrails", "passWhenCannotTell"): [],
    ("guardrails", "requirePackedLkg"): False,
    ("artifacts", "app"): None,
    ("delivery", "byteBudget"): None,
    ("delivery", "pricePerGiB"): 1,
    ("delivery", "pricePerHour"): 1,
}
#: Sections as young, written only where a key of theirs is.
_LATER_SECTIONS = ("delivery",)


def policy_to_json(policy: Policy) -> bytes:
    """The payload that control signs and whose digest names the policy."""
    sections = {_key(field.name): _plain(getattr(policy, field.name)) for field in dataclasses.fields(policy)}
    for (section, name), default in _LATER_KEYS.items():
        content = sections[section]
        if isinstance(content, dict) and content[name] == default:
            del content[name]
    for section in _LATER_SECTIONS:
        if not sections[section]:
            del sections[section]
    return json.dumps(sections, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def policy_from_json(payload: bytes) -> Policy:
    """Read a payload; raises PolicyError, also for bytes other than ``policy_to_json`` would write."""
    name = "policy.json"
    if len(payload) > POLICY_BYTES_MOST:
        raise PolicyError((Problem(name, 0, 0, "", f"{len(payload)} bytes, {POLICY_BYTES_MOST} are allowed"),))
    try:
        raw = json.loads(payload.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PolicyError((Problem(name, 0, 0, "", f"is not JSON: {error}"),)) from error
    document, faults = read_document(raw)
    if faults:
        raise PolicyError(tuple(Problem(name, 0, 0, key_path(fault.path), fault.reason) for fault in faults))
    policy = policy_of(document)
    # Equality of bytes also refuses doubled keys, other orders and spellings, and defaults left out.
    if policy_to_json(policy) != payload:
        raise PolicyError((Problem(name, 0, 0, "", "is not in canonical form"),))
    return policy


def policy_digest(payload: bytes) -> str:
    """The name of a policy: SHA-256 of its payload, hex."""
    return hashlib.sha256(payload).hexdigest()


def key_path(path: tuple[str | int, ...]) -> str:
    """A place in a document, for people: ``guardrails.availability[0].minUp``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{_shown_key(part)}" for part in path)
    return "".join(parts).removeprefix(".")


def _shown_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) else repr(name[:60])


def _default_authority(endpoint: str | None) -> str:
    return "control" if endpoint is not None and endpoint.startswith("https://") else "hub"


def _fields(section: dict[str, Any]) -> dict[str, Any]:
    return {re.sub(r"GiB|[A-Z]", lambda word: "_" + word[0].lower(), name): value for name, value in section.items()}


def _plain(value: object) -> object:
    match value:
        case Window():
            return str(value)
        case enum.Enum():
            return value.value
        case tuple():
            return [_plain(item) for item in value]
        case float():
            return int(value) if value.is_integer() else value
    if dataclasses.is_dataclass(value):
        return {_key(field.name): _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _key(field: str) -> str:
    return re.sub(r"_(gib|[a-z])", lambda word: "GiB" if word[1] == "gib" else word[1].upper(), field)


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word} is no number")
