"""The health authority's judgement of quotes: has the device booted what it should have, now and not at another time?

Whether a device has a TPM says its certificate, which the region's authority signed; so nobody on the way, the device's
own image included, can leave a quote out. A quote is fresh if it covers the last challenge given to that device by this
authority. One that is not proves nothing: the answer has the challenge, and the device pings again. Challenges live in
memory: who forgot them gives new ones.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.identity.attestation import (
    AttestationError,
    check_pcrs,
    key_of_point,
    ping_nonce,
    read_quote,
    wanted_pcrs,
)
from wavemesh.identity.binding import binding_of
from wavemesh.identity.certificates import load_certificate
from wavemesh.trust.quotes import AttestationAnswer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wavemesh.identity.binding import Attestation
    from wavemesh.trust.releases import ReleaseManifest
    from wavemesh.trust.statements import Envelope, HealthPing

CHALLENGE_BYTES = 16


@dataclass(frozen=True, slots=True)
class Judged:
    """Whether the ping may be acknowledged, and what to answer; nothing for a device without a TPM."""

    passes: bool
    answer: AttestationAnswer | None = None


class Attestor:
    """One authority's challenges, by device."""

    def __init__(self) -> None:
        """Know nobody."""
        self._challenges: dict[str, bytes] = {}

    def judge(self, envelope: Envelope, ping: HealthPing, releases: Iterable[ReleaseManifest]) -> Judged:
        """Judge a ping whose envelope was verified; ``releases`` are those in force. Raises BadCertificateError."""
        binding = binding_of(load_certificate(envelope.signatures[0].certificate))
        if binding is None or binding.attestation is None:
            return Judged(passes=True)
        challenge = self._challenges.get(ping.device, b"")
        next_challenge = secrets.token_bytes(CHALLENGE_BYTES)
        self._challenges[ping.device] = next_challenge
        try:
            is_fresh = _check(ping, binding.attestation, challenge, releases)
        except AttestationError as error:
            return Judged(passes=False, answer=AttestationAnswer(str(error)[:500], next_challenge))
        return Judged(is_fresh, AttestationAnswer("", next_challenge))


def _check(ping: HealthPing, bound: Attestation, challenge: bytes, releases: Iterable[ReleaseManifest]) -> bool:
    """Whether the ping's quote is fresh; raises AttestationError when it is missing or not good."""
    if ping.quote is None:
        msg = f"{ping.device} has a TPM, as its certificate says, and sent no quote"
        raise AttestationError(msg)
    quoted = read_quote(ping.quote, key_of_point(bound.key))
    if not challenge or quoted.nonce != ping_nonce(ping, challenge):
        return False
    check_pcrs(quoted.pcrs, wanted_pcrs(bound, ping.firmware_sha256, releases))
    return True
