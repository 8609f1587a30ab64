"""What a TPM signed is believed only whole, of the right key, for the right request and the right moment (D11, D2)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tpm_kit import ZEROS, software_tpm
from wavemesh.errors import GateError
from wavemesh.identity.attestation import (
    NODE_KEY_ATTRIBUTES,
    AttestationError,
    attestation_of,
    attested_by,
    check_pcrs,
    key_of_point,
    ping_nonce,
    point_of,
    public_key,
    read_quote,
    request_nonce,
    wanted_pcrs,
)
from wavemesh.identity.binding import Attestation
from wavemesh.identity.csr import make_request
from wavemesh.trust.quotes import Quote
from wavemesh.trust.statements import HealthPing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.tpm_kit import SoftwareTpm
    from wavemesh.identity.tpmkeys import TpmKey, TpmKeys
    from wavemesh.trust.enrolments import TpmEvidence
    from wavemesh.trust.releases import ReleaseManifest


@dataclasses.dataclass(frozen=True, slots=True)
class Joiner:
    """One TPM, a key in it, and its evidence."""

    tpm: SoftwareTpm
    keys: TpmKeys
    key: TpmKey
    csr: bytes
    evidence: TpmEvidence

    def attestation_key(self) -> ec.EllipticCurvePublicKey:
        return attested_by(self.evidence, self.key.public_key(), self.csr)

    def check(self, **changes: Any) -> Attestation:
        return attestation_of(dataclasses.replace(self.evidence, **changes), self.key.public_key(), self.csr)


@pytest.fixture(scope="module")
def joiner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joiner]:
    with software_tpm() as tpm:
        keys = tpm.keys(tmp_path_factory.mktemp("identity"))
        key = keys.create()
        csr = make_request(key, "pos-01")
        evidence = keys.evidence(key, csr)
        assert evidence is not None
        yield Joiner(tpm, keys, key, csr, evidence)


def test_a_certificate_binds_the_attestation_key_and_the_pcrs(joiner: Joiner) -> None:
    bound = joiner.check()
    assert bound == Attestation(point_of(joiner.attestation_key()), ((0, ZEROS), (7, ZEROS)))
    assert key_of_point(bound.key) == joiner.attestation_key()


def test_evidence_fits_one_request_of_one_key(joiner: Joiner, tmp_path: object) -> None:
    other, key = joiner.keys.create(), joiner.key
    evidence = joiner.evidence
    for judge in (attested_by, attestation_of):
        with pytest.raises(AttestationError, match="evidence covers another certificate request"):
            judge(evidence, key.public_key(), make_request(key, "pos-01"))
    with pytest.raises(AttestationError, match="another key than the certificate request"):
        attestation_of(evidence, other.public_key(), joiner.csr)
    software = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(AttestationError, match="another key than the certificate request"):
        attestation_of(evidence, software.public_key(), joiner.csr)
    # The public area of another key in the same TPM is not what the attestation key certified.
    with pytest.raises(AttestationError, match="certifies another key"):
        attestation_of(dataclasses.replace(evidence, key_public=other.wrapped.public), other.public_key(), joiner.csr)


def test_an_attestation_key_is_restricted(joiner: Joiner) -> None:
    """An ordinary key could sign a quote that its owner made up."""
    forger = joiner.keys.create()
    with pytest.raises(AttestationError, match="attributes 0x40472"):
        joiner.check(attestation_public=forger.wrapped.public)
    weaker = NODE_KEY_ATTRIBUTES & ~2
    with pytest.raises(AttestationError, match="join anew"):
        public_key(joiner.evidence.key_public, weaker)


def test_what_another_tpm_signed_counts_for_nothing(joiner: Joiner, tmp_path_factory: pytest.TempPathFactory) -> None:
    with software_tpm() as tpm:
        keys = tpm.keys(tmp_path_factory.mktemp("other"))
        key = keys.create()
        theirs = keys.evidence(key, joiner.csr)
    assert theirs is not None
    with pytest.raises(AttestationError, match="another key than the certificate request"):
        attestation_of(theirs, joiner.key.public_key(), joiner.csr)
    with pytest.raises(AttestationError, match="did not sign"):
        joiner.check(certified=theirs.certified, certified_signature=theirs.certified_signature)
    with pytest.raises(AttestationError, match="did not sign"):
        joiner.check(quote=theirs.quote)


def test_a_quote_shows_what_was_signed(joiner: Joiner) -> None:
    quote, own = joiner.evidence.quote, joiner.attestation_key()
    assert quote is not None
    with pytest.raises(AttestationError, match="not those that the TPM signed"):
        read_quote(dataclasses.replace(quote, pcrs={0: ZEROS, 7: "1" * 64}), own)
    with pytest.raises(AttestationError, match=r"of PCRs \[0, 7\], what came along of \[0\]"):
        read_quote(dataclasses.replace(quote, pcrs={0: ZEROS}), own)
    with pytest.raises(AttestationError, match="no hex"):
        read_quote(dataclasses.replace(quote, pcrs={0: ZEROS, 7: "x"}), own)
    # What the key certified is signed by it as well, and is no quote.
    as_quote = Quote(joiner.evidence.certified, joiner.evidence.certified_signature, quote.pcrs)
    with pytest.raises(AttestationError, match="kind 0x8017"):
        read_quote(as_quote, own)
    with pytest.raises(AttestationError, match="no quote"):
        joiner.check(quote=None)
    stale = joiner.keys.quote(request_nonce(b"another"), (0, 7))
    with pytest.raises(AttestationError, match="another certificate request"):
        joiner.check(quote=stale)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_byte_can_be_changed(joiner: Joiner, data: st.DataObject) -> None:
    """Whatever is flipped, cut or added, it is refused by gate "attestation" and nothing else happens."""
    name = data.draw(st.sampled_from(["key_public", "attestation_public", "certified", "certified_signature"]))
    original: bytes = getattr(joiner.evidence, name)
    place = data.draw(st.integers(0, len(original) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = bytearray(original)
    flipped[place] ^= 1 << bit
    changed = data.draw(st.sampled_from([bytes(flipped), original[:place], original + b"\0"]))
    with pytest.raises(GateError) as caught:
        joiner.check(**{name: changed})
    assert caught.value.gate == "attestation"


PING = HealthPing("142", "region/r/store/s/device/d", "b" * 32, "B", "f" * 64, 7, "control")


def test_a_nonce_covers_every_field_of_the_ping(joiner: Joiner) -> None:
    seen = {ping_nonce(PING, b"1" * 16), ping_nonce(PING, b"2" * 16)}
    fields = [field.name for field in dataclasses.fields(PING) if field.name != "quote"]
    for name in fields:
        value = getattr(PING, name)
        other: Any = value + 1 if isinstance(value, int) else f"{value}x"
        seen.add(ping_nonce(dataclasses.replace(PING, **{name: other}), b"1" * 16))
    assert len(seen) == len(fields) + 2
    assert ping_nonce(dataclasses.replace(PING, quote=joiner.evidence.quote), b"1" * 16) in seen


def test_pcrs_are_those_of_the_release_or_else_of_the_day_it_joined(
    make_manifest: Callable[..., ReleaseManifest],
) -> None:
    bound = Attestation(b"", ((0, "a" * 64), (7, "b" * 64)))
    silent = make_manifest("firmware-v1")
    listed = make_manifest("firmware-v2", attestation=((4, "c" * 64), (7, "d" * 64)))
    again = dataclasses.replace(listed, name="firmware-v2-again", attestation=((4, "e" * 64),))
    sha256 = [one.firmware.digest.sha256 for one in (silent, listed) if one.firmware is not None]
    assert wanted_pcrs(bound, sha256[0], (silent, listed)) == [{0: "a" * 64, 7: "b" * 64}]
    wanted = wanted_pcrs(bound, sha256[1], (silent, listed, again))
    assert wanted == [{0: "a" * 64, 4: "c" * 64, 7: "d" * 64}, {0: "a" * 64, 4: "e" * 64, 7: "b" * 64}]
    for one in wanted:
        check_pcrs(one | {9: "0" * 64}, wanted)
    with pytest.raises(AttestationError, match=f"PCR 7 is {'b' * 64}, {'d' * 64} required"):
        check_pcrs({0: "a" * 64, 4: "c" * 64, 7: "b" * 64}, wanted)
    with pytest.raises(AttestationError, match="PCR 4 is not quoted"):
        check_pcrs(dict(bound.pcrs), wanted)
