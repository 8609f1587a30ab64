"""A release's artifacts on their way into an S3-compatible bucket, each as ``PREFIX/SHA256``.

Rules. What is there already, in its full size, stays: nobody ever believes it for its name. What goes up is digested as
it goes, and a file that is not what the draft says fails before the object comes to be. Large ones go up in
parts, several at a time, in bounded memory; an object appears whole or not at all. What went up is read back and
digested, because a release whose artifact cannot be fetched would be found out by the first region at night.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgectl import releasing
from edgectl.exits import UsageError
from edgectl.progress import bar
from wavemesh.artifacts.objectstore import SCHEME, Place, access_of_environment, load_access, open_store
from wavemesh.errors import ConflictError, ForbiddenError, LinkDownError, NotFoundError, PeerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    from wavemesh.trust.releases import Artifact

PART_BYTES = 8 * 1024 * 1024
"""So 10,000 parts, as many as S3 takes, are 80 GB."""
PARTS_AT_A_TIME = 4
_MOST_SAID = 300


@dataclass(frozen=True, slots=True)
class Upload:
    """What became of one artifact."""

    key: str
    size_bytes: int
    is_new: bool

    def shown(self) -> dict[str, object]:
        """The same for people and programs."""
        return {"key": self.key, "size_bytes": self.size_bytes, "state": "uploaded" if self.is_new else "there already"}


def is_bucket(origin: str) -> bool:
    """Whether that is the URL of a bucket and not a directory."""
    return origin.startswith(SCHEME)


def upload_artifacts(directory: Path, origin: str, access_file: Path | None) -> list[Upload]:
    """Put a draft's artifacts into the bucket of ``s3://BUCKET/PREFIX``.

    Raises UsageError, ConfigError (the access file), ConflictError (a file is not the draft's, or the bucket has other
    bytes), ForbiddenError, NotFoundError (no such bucket), LinkDownError.
    """
    from obstore.exceptions import BaseError

    try:
        place = Place.parse(origin)
        access = load_access(access_file) if access_file else access_of_environment(os.environ)
    except ValueError as error:
        raise UsageError(f"--origin: {error}") from error
    try:
        store = open_store(place, access)
    except OSError as error:
        raise UsageError(f"ca_file of {access_file}: {error.strerror}") from error
    done: list[Upload] = []
    for artifact, source in releasing.artifact_files(directory):
        try:
            is_new = _put(store, artifact, source)
        except (BaseError, FileNotFoundError) as error:
            raise _error(error, place, artifact) from error
        done.append(Upload(place.key(artifact.digest.sha256), artifact.digest.size_bytes, is_new))
    return done


def _put(store: S3Store, artifact: Artifact, source: Path) -> bool:
    """Upload one artifact unless it is there; whether it was not. Raises obstore's BaseError too."""
    import obstore

    key = artifact.digest.sha256
    if _size_there(store, key) == artifact.digest.size_bytes:
        return False
    # Once beforehand, so that an upload is not begun in vain, and once as it goes: the file may change meanwhile.
    if releasing.artifact_of(source, artifact.name) != artifact:
        raise releasing.other_content(source, artifact)
    with bar(f"uploading {artifact.name}", artifact.digest.size_bytes) as advance:
        obstore.put(
            store,
            key,
            _pieces(source, artifact, advance),
            use_multipart=artifact.digest.size_bytes > PART_BYTES,
            chunk_size=PART_BYTES,
            max_concurrency=PARTS_AT_A_TIME,
        )
    _read_back(store, artifact)
    return True


def _size_there(store: S3Store, key: str) -> int | None:
    """Size of an object, None if there is none."""
    import obstore

    try:
        return obstore.head(store, key)["size"]
    except FileNotFoundError:  # so obstore tells it
        return None


def _pieces(source: Path, artifact: Artifact, advance: Callable[[int], None]) -> Iterator[bytes]:
    """The file's bytes; raises ConflictError at its end, before the upload is complete, if they are others."""
    sha256 = hashlib.sha256()
    try:
        with source.open("rb") as file:
            while piece := file.read(PART_BYTES):
                sha256.update(piece)
                yield piece
                advance(len(piece))
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from error
    if sha256.hexdigest() != artifact.digest.sha256:
        raise releasing.other_content(source, artifact)


def _read_back(store: S3Store, artifact: Artifact) -> None:
    """Raise ConflictError unless the bucket has the artifact's very bytes."""
    import obstore

    sha256, digest = hashlib.sha256(), artifact.digest
    with bar(f"reading back {artifact.name}", digest.size_bytes) as advance:
        for piece in obstore.get(store, digest.sha256).stream(min_chunk_size=PART_BYTES):
            sha256.update(piece)
            advance(len(piece))
    if sha256.hexdigest() != digest.sha256:
        msg = f"the bucket has other bytes as {digest.sha256} than were uploaded: delete the object and publish again"
        raise ConflictError(msg)


def _error(error: BaseError | FileNotFoundError, place: Place, artifact: Artifact) -> PeerError:
    """What obstore says, as one of ours."""
    from obstore import exceptions

    said = str(error).partition("\n")[0][:_MOST_SAID]
    where = f"{artifact.name} into {place}"
    if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)):
        msg = f"{where}: the store refused the credentials: {said}"
        return ForbiddenError(f"{msg}; they must be allowed to put, get and head objects there")
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{where}: {said}; make the bucket first")
    return LinkDownError(f"{where}: {said}; publish again, what is there already stays")
