"""TUF files on the publishing side, as bytes: read, next version, sign, merge; whoever may do it and whatever they say.

Lifetimes are one table, explained in docs/adr/0003-trust.md.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Targets
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from wavemesh.errors import ConflictError, PeerError, WavemeshError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from securesystemslib.signer import Signer

LIFETIMES: Mapping[str, timedelta] = {
    "root": timedelta(days=730),
    "targets": timedelta(days=365),
    "snapshot": timedelta(days=45),
    "timestamp": timedelta(days=45),
}
"""Of each kind of file; files of class roles are targets too."""
LONGEST_OFFLINE = timedelta(days=30)
"""How long a node may hear nothing and still finish or undo what it has; every lifetime above outlives it."""


NO_TARGETS = b""
"""What comes before version 1 of targets.json or of a class role's file."""


class BadRepositoryFileError(PeerError):
    """A metadata file given to the publishing side is not what it should be."""

    reason = "BAD_REPOSITORY_FILE"


def read_metadata(data: bytes) -> Metadata[Any]:
    """A file of any kind; raises BadRepositoryFileError."""
    try:
        return Metadata.from_bytes(data)
    except DeserializationError as error:
        msg = f"not a TUF metadata file: {error.__cause__ or error}"
        raise BadRepositoryFileError(msg) from error


def read_targets(data: bytes) -> Metadata[Targets]:
    """targets.json or the file of a class role; NO_TARGETS reads as none yet. Raises BadRepositoryFileError."""
    if data == NO_TARGETS:
        before_first = Targets()
        before_first.version = 0
        return Metadata(before_first)
    metadata = read_metadata(data)
    if not isinstance(metadata.signed, Targets):
        msg = f"this is {metadata.signed.type} metadata, not targets.json"
        raise BadRepositoryFileError(msg)
    return metadata


def to_bytes(metadata: Metadata[Any]) -> bytes:
    """The file as it is published; raises SerializationError for what could not be read again."""
    return metadata.to_bytes(JSONSerializer(validate=True))


def expiry(kind: str, now: datetime) -> datetime:
    """When a file of that kind that is signed now expires."""
    return (now + LIFETIMES[kind]).replace(microsecond=0)


def next_version(metadata: Metadata[Any], now: datetime) -> bytes:
    """The file as its next version, without signatures, with a whole lifetime ahead."""
    metadata.signed.version += 1
    metadata.signed.expires = expiry(metadata.signed.type, now)
    metadata.signatures.clear()
    return to_bytes(metadata)


def sign_metadata(data: bytes, *signers: Signer) -> bytes:
    """The file with signatures of those signers added; raises what a signer raises (KeyTokenError)."""
    metadata = read_metadata(data)
    for signer in signers:
        try:
            metadata.sign(signer, append=True)
        except UnsignedMetadataError as error:
            if isinstance(error.__cause__, WavemeshError):
                raise error.__cause__ from error
            raise
    return to_bytes(metadata)


def merge_signatures(first: bytes, second: bytes) -> bytes:
    """One file with the signatures of both; ConflictError if what they sign differs."""
    one, two = read_metadata(first), read_metadata(second)
    if one.signed_bytes != two.signed_bytes:
        msg = "the files differ in what is signed: all must sign the same one"
        raise ConflictError(msg)
    one.signatures.update(two.signatures)
    return to_bytes(one)
