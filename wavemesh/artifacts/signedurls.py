"""Leave to read single blobs of an object store, as origin.proto has it; codec/statements.py reads and writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.trust.statements import Digest  # noqa: TC001  # the codec reads the types of the fields

if TYPE_CHECKING:
    from datetime import datetime

ASK_KIND = "origin-urls"
MAX_URLS = 24
MAX_URL_BYTES = 2048
"""So many URLs of that length are an answer of 48 KiB, which a session takes."""


@dataclass(frozen=True, slots=True)
class OriginUrl:
    """A URL that reads one blob until it expires by the object store's clock."""

    digest: Digest
    url: str
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class OriginRefusal:
    """Why there is no URL for a blob: a gate, or the reason of an error, and a sentence."""

    digest: Digest
    gate: str
    reason: str


@dataclass(frozen=True, slots=True)
class OriginUrlsRequest:
    """A super hub wants to read these."""

    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class OriginUrlsAnswer:
    """Each blob of the request, in one of both."""

    urls: tuple[OriginUrl, ...] = ()
    refused: tuple[OriginRefusal, ...] = ()
