"""What a TPM says of its PCRs, and what an authority answers, as values; judged by ``attesting.py``.

The wire form is in rollout.proto; bytes come from and go to ``wavemesh/codec/statements.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quote:
    """A TPM's signed word on its PCRs: TPMS_ATTEST, its signature, and the values, number to lower-case hex."""

    quoted: bytes
    signature: bytes
    pcrs: dict[int, str]


@dataclass(frozen=True, slots=True)
class AttestationAnswer:
    """An authority's word on a quote: why it refuses, or empty; and what the next quote has to cover."""

    refused: str = ""
    challenge: bytes = b""
