"""Whatever bytes arrive, the answer is a refusal and never a crash (Q2)."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wavemesh.codec.statements import MalformedStatementError, decode, encode
from wavemesh.errors import GateError
from wavemesh.trust import statements as s
from wavemesh.trust.envelope import SignatureGateError, sign_as_node, verify_node
from wavemesh.trust.metadata import load_trusted

if TYPE_CHECKING:
    from tests.conftest import CredentialsFactory, TrustKeys

NOW = datetime.now(UTC)
DEVICE = "region/midwest/store/store-208/device/pos-03"
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def flip(data: bytes, position: int, byte: int) -> bytes:
    at = position % len(data)
    return data[:at] + bytes([byte]) + data[at + 1 :]


@FUZZ
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_envelope_is_refused_or_the_same(credentials: CredentialsFactory, position: int, byte: int) -> None:
    """Every byte counts: what still verifies says what was signed."""
    device = credentials(DEVICE)
    ping = s.HealthPing("142", DEVICE, "0f" * 16, "B", "cd" * 32, 7, "either")
    damaged = flip(encode(sign_as_node(ping, device)), position, byte)
    try:
        envelope = decode(s.Envelope, damaged)
        _, found = verify_node(envelope, s.HealthPing, device.ca_certificates, NOW, DEVICE)
    except (SignatureGateError, MalformedStatementError):
        return
    assert found == ping


def paths_of(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    else:
        return [prefix]
    return [prefix, *(path for key, item in inner for path in paths_of(item, (*prefix, key)))]


@FUZZ
@given(data=st.data())
def test_metadata_of_any_form_is_refused(trust_keys: TrustKeys, data: st.DataObject) -> None:
    """One value anywhere in one file replaced by any JSON; nothing but a GateError comes out."""
    role = data.draw(st.sampled_from(["timestamp", "snapshot", "targets", "root"]))
    original = trust_keys.pinned_root if role == "root" else getattr(trust_keys.empty, role)
    value = json.loads(original)
    path = data.draw(st.sampled_from(paths_of(value)[1:]))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    before, holder[path[-1]] = holder[path[-1]], data.draw(JSON)
    changes: dict[str, Any] = {role: json.dumps(value).encode()}
    forged = trust_keys.empty if role == "root" else dataclasses.replace(trust_keys.empty, **changes)
    pinned = changes.get("root", trust_keys.pinned_root)
    try:
        load_trusted(pinned, forged, NOW, None)
    except GateError:
        return
    assert holder[path[-1]] == before or path[0] == "signatures"
