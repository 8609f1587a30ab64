"""Whatever bytes arrive, the answer is a refusal and never a crash (Q2)."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wavemesh.codec.statements import MalformedStatementError, decode, encode
from wavemesh.errors import GateError
from wavemesh.identity.certificates import BadCertificateError, load_certificate
from wavemesh.identity.nodes import BadNodeIdError
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


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@FUZZ
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_envelope_is_refused_or_the_same(credentials: CredentialsFactory, position: int, byte: int) -> None:
    """Every byte counts: what still verifies says what was signed."""
    device = credentials(DEVICE)
    ping = s.HealthPing("142", DEVICE, "0f" * 16, "B", "cd" * 32, 7, "either")
    damaged = flip(encode(sign_as_node(ping, device)), position, byte)
    try:
        envelope = decode(s.Envelope, damaged)
        _, found = verify_node(envelope, s.HealthPing, device.authorities, NOW, DEVICE)
    except (SignatureGateError, MalformedStatementError):
        return
    assert found == ping


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("mask", [0x01, 0x10, 0x2E, 0xFF])
def test_every_byte_of_a_certificate_may_be_wrong(credentials: CredentialsFactory, mask: int) -> None:
    device = credentials(DEVICE)
    der = device.certificate_der
    for at, byte in enumerate(der):
        try:
            certificate = load_certificate(flip(der, at, byte ^ mask))
            device.authorities.verify(certificate, NOW)
        except (BadCertificateError, BadNodeIdError):
            continue
        # Only the encoding around the CA's signature can vary, never what it signed.
        assert certificate.tbs_certificate_bytes == device.certificate.tbs_certificate_bytes


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
    """One value anywhere in one file replaced by any JSON: a GateError, or nothing that matters has changed."""
    role = data.draw(st.sampled_from(["timestamp", "snapshot", "targets", "root"]))
    original = trust_keys.pinned_root if role == "root" else getattr(trust_keys.empty, role)
    value = json.loads(original)
    path = data.draw(st.sampled_from(paths_of(value)[1:]))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(JSON)
    changes: dict[str, Any] = {role: json.dumps(value).encode()}
    forged = trust_keys.empty if role == "root" else dataclasses.replace(trust_keys.empty, **changes)
    pinned = changes.get("root", trust_keys.pinned_root)
    try:
        found = load_trusted(pinned, forged, NOW, None)
    except GateError:
        return
    good = load_trusted(trust_keys.pinned_root, trust_keys.empty, NOW, None)
    for file in ("root", "timestamp", "snapshot", "targets"):
        assert getattr(found, file) == getattr(good, file)
