"""Who said it: DSSE envelopes (https://github.com/secure-systems-lab/dsse, protocol v1) made and verified.

What is signed is PAE(payload type, payload), so a signature over one kind of statement never fits another. There are
two kinds of signers, and a verifier asks for one of them, never for "whichever fits":

* A *node* signs with the key of its certificate, which travels along. Exactly one signature; the certificate chains to
  the fleet's CA and is valid at ``now``; its SPIFFE id is the keyid. Each statement has roles that may sign it at all
  (``_NODE_SIGNERS``), the caller may narrow that to one role or one path, and a statement about a device counts only
  from the device itself or from what is above it. A hub acknowledges health in its own name, never in control's.
* A *role* signs with keys that TUF metadata gives to it; ``threshold`` distinct keys must have signed.

Everything that fails raises SignatureGateError: gate "signature", and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Signature as RoleSignature

from wavemesh.codec.statements import MAX_STATEMENT_BYTES, MalformedStatementError, decode, encode
from wavemesh.errors import GateError, PeerError
from wavemesh.identity.certificates import EarlyCertificateError
from wavemesh.identity.nodes import Role, is_within
from wavemesh.policy.gates import Gate
from wavemesh.trust.enrolments import RenewalRequest
from wavemesh.trust.statements import (
    AuthorityDown,
    DeviceOutcome,
    Envelope,
    HealthAck,
    HealthPing,
    IntentCancellation,
    Lease,
    OperatorIntent,
    Signature,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from securesystemslib.signer import Key, Signer

    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.credentials import Credentials
    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.metadata import TrustedMetadata

CONTROL_ROLE = "control"
HUB_AUTHORITY = "hub"
MAX_SIGNATURES = 16


class Statement(Protocol):
    """A dataclass of statements.py that may be the payload of an envelope."""

    payload_type: ClassVar[str]


S = TypeVar("S", bound=Statement)

_NODE_SIGNERS: Mapping[type, frozenset[Role]] = {
    Lease: frozenset({Role.STORE_HUB}),
    HealthPing: frozenset({Role.DEVICE}),
    HealthAck: frozenset({Role.STORE_HUB}),
    AuthorityDown: frozenset({Role.STORE_HUB}),
    DeviceOutcome: frozenset({Role.DEVICE, Role.STORE_HUB}),
    OperatorIntent: frozenset({Role.OPERATOR}),
    IntentCancellation: frozenset({Role.OPERATOR}),
    RenewalRequest: frozenset({Role.STORE_HUB, Role.DEVICE}),
}


class SignatureGateError(GateError):
    """Gate "signature": somebody's word cannot be believed."""

    def __init__(self, message: str, **details: str) -> None:
        """Say why."""
        super().__init__(Gate.SIGNATURE.value, message, **details)


class EarlySignatureError(SignatureGateError):
    """Signed with a certificate that is not valid yet by our clock: not to be believed now, nor to be thrown away."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_as_node(statement: Statement, credentials: Credentials) -> Envelope:
    """Sign with a node's key; the certificate goes along. Raises MalformedStatementError."""
    payload = encode(statement)
    own = credentials.current
    sig = own.sign(pae(statement.payload_type, payload))
    signature = Signature(own.node_id.uri, sig, own.certificate_der, own.intermediates_der)
    return Envelope(statement.payload_type, payload, (signature,))


def sign_statement(statement: Statement, signers: Sequence[Signer]) -> Envelope:
    """Sign with role keys. Raises MalformedStatementError."""
    return sign_with_keys(statement.payload_type, encode(statement), signers)


def sign_with_keys(payload_type: str, payload: bytes, signers: Sequence[Signer]) -> Envelope:
    """Sign bytes that are no statement of statements.py (a policy, a release) with role keys."""
    signed = pae(payload_type, payload)
    made = [signer.sign(signed) for signer in signers]
    return Envelope(payload_type, payload, tuple(Signature(one.keyid, bytes.fromhex(one.signature)) for one in made))


def verify_node(
    envelope: Envelope,
    cls: type[S],
    authorities: Authorities,
    now: datetime,
    expect: Role | str | None = None,
) -> tuple[NodeId, S]:
    """Who signed, and what; ``expect`` narrows the signers to a role or to one node path.

    Raises SignatureGateError, EarlySignatureError where nothing but time is wanting.
    """
    _check_type(envelope, cls.payload_type)
    if len(envelope.signatures) != 1:
        raise _refusal(envelope, f"has {len(envelope.signatures)} signatures; a node's statement has one")
    signature = envelope.signatures[0]
    try:
        node_id, certificate = authorities.verify_der(signature.certificate, now, signature.intermediates)
    except PeerError as error:
        kind = EarlySignatureError if isinstance(error, EarlyCertificateError) else SignatureGateError
        raise _refusal(envelope, f"signed by {signature.keyid!r}: {error}", kind) from error
    if node_id.uri != signature.keyid:
        raise _refusal(envelope, f"names {signature.keyid!r} and carries the certificate of {node_id.uri}")
    _check_signer(envelope, cls, node_id, expect)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _refusal(envelope, f"certificate of {node_id.uri} has no EC key")
    try:
        key.verify(signature.sig, pae(envelope.payload_type, envelope.payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise _refusal(envelope, f"the signature of {node_id.uri} does not fit") from error
    statement = _decode(envelope, cls)
    device = getattr(statement, "device", "")
    if node_id.role is not Role.OPERATOR and device and not is_within(device, node_id.path):
        raise _refusal(envelope, f"{node_id.uri} speaks for {device!r}, which is not its own")
    if isinstance(statement, HealthAck) and statement.authority != HUB_AUTHORITY:
        raise _refusal(envelope, f"{node_id.uri} acknowledges in the name of {statement.authority!r}")
    return node_id, statement


def verify_role(envelope: Envelope, cls: type[S], trusted: TrustedMetadata, role: str = CONTROL_ROLE) -> S:
    """What the role said; raises SignatureGateError, or KeyError for a role the metadata does not know."""
    verify_role_payload(envelope, cls.payload_type, trusted, role)
    return _decode(envelope, cls)


def verify_role_payload(
    envelope: Envelope, payload_type: str, trusted: TrustedMetadata, role: str = CONTROL_ROLE
) -> bytes:
    """The bytes the role signed; raises SignatureGateError."""
    keys, threshold = trusted.role_keys(role)
    verify_keys(envelope, payload_type, keys, threshold, role)
    return envelope.payload


def verify_keys(
    envelope: Envelope, payload_type: str, keys: Mapping[str, Key], threshold: int, role: str
) -> frozenset[str]:
    """The ids of the keys that signed, at least ``threshold`` distinct ones; raises SignatureGateError.

    Signatures by keys that are not the role's are ignored, as DSSE wants it; so is a second one by the same key.
    """
    _check_type(envelope, payload_type)
    if len(envelope.signatures) > MAX_SIGNATURES:
        raise _refusal(envelope, f"has {len(envelope.signatures)} signatures; at most {MAX_SIGNATURES} are accepted")
    good = good_keys(envelope, keys)
    if threshold < 1 or len(good) < threshold:
        raise _refusal(envelope, f"{len(good)} of the {threshold} signatures needed by role {role!r} are good")
    return good


def good_keys(envelope: Envelope, keys: Mapping[str, Key]) -> frozenset[str]:
    """The ids of those of the keys whose signature is good."""
    signed = pae(envelope.payload_type, envelope.payload)
    good: set[str] = set()
    for signature in envelope.signatures:
        key = keys.get(signature.keyid)
        if key is None:
            continue
        try:
            key.verify_signature(RoleSignature(signature.keyid, signature.sig.hex()), signed)
        except UnverifiedSignatureError:
            continue
        good.add(signature.keyid)
    return frozenset(good)


def _check_type(envelope: Envelope, payload_type: str) -> None:
    if envelope.payload_type != payload_type:
        raise _refusal(envelope, f"is not the {payload_type} asked for")
    if len(envelope.payload) > MAX_STATEMENT_BYTES:
        raise _refusal(envelope, f"has {len(envelope.payload)} bytes; at most {MAX_STATEMENT_BYTES} are accepted")


def _check_signer(envelope: Envelope, cls: type, node_id: NodeId, expect: Role | str | None) -> None:
    allowed = _NODE_SIGNERS.get(cls, frozenset())
    if node_id.role not in allowed:
        who = " or ".join(sorted(role.value for role in allowed)) or "role keys only"
        raise _refusal(envelope, f"signed by {node_id.uri}, but is for {who} to sign")
    if isinstance(expect, Role) and node_id.role is not expect:
        raise _refusal(envelope, f"signed by {node_id.uri}, which is no {expect.value}")
    if isinstance(expect, str) and node_id.path != expect:
        raise _refusal(envelope, f"signed by {node_id.uri} instead of {expect!r}")


def _decode(envelope: Envelope, cls: type[S]) -> S:
    try:
        return decode(cls, envelope.payload)
    except MalformedStatementError as error:
        raise _refusal(envelope, f"is signed well, but malformed: {error}") from error


def _refusal(envelope: Envelope, why: str, error: type[SignatureGateError] = SignatureGateError) -> SignatureGateError:
    signers = ",".join(signature.keyid[:200] for signature in envelope.signatures[:MAX_SIGNATURES])
    kind = envelope.payload_type[:200]
    return error(f"statement {kind!r} {why}", payload_type=kind, signers=signers)
