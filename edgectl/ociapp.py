"""An app from an OCI image layout: a directory as `skopeo copy … oci:DIR` and `buildah push … oci:DIR` write it.

    DIR/oci-layout  DIR/index.json  DIR/blobs/sha256/HEX

Everything that the image refers to has to be there and be what its digest says: a layer that is missing would show in
the first store. Source: OCI image specification 1.1, "Image Layout".
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgectl.exits import UsageError
from wavemesh.artifacts.oci import BadImageError, Descriptor, references
from wavemesh.trust.releases import MAX_OCI_MANIFEST_BYTES, OCI_INDEX, App, Artifact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SCHEME = "oci:"


def read_app(text: str, *, name: str, repository: str, default_tag: str) -> tuple[App, Mapping[str, Path]]:
    """The app of ``oci:DIR[:TAG]``, and where its files are by artifact name. Raises UsageError.

    ``name`` is what a policy will call it; ``repository`` what clients pull, by default the directory's name;
    ``default_tag`` stands in where neither ``text`` nor the layout has a tag.
    """
    path, tag = _split(text)
    root = _choose(path, tag)
    tag = tag or root.name.rpartition(":")[2] or default_tag
    artifact = Artifact(name, root.digest)
    blobs = dict.fromkeys(one.digest for one in _walk(path, root))
    app = App(repository or path.resolve().name, tag, root.media_type, artifact, tuple(blobs))
    return app, {one.name: _blob_path(path, one.digest.sha256) for one in app.artifacts}


def _split(text: str) -> tuple[Path, str]:
    if not text.startswith(SCHEME) or text == SCHEME:
        raise UsageError(f"--app {text[:100]!r} is not oci:DIR or oci:DIR:TAG; `skopeo copy … oci:DIR:TAG` makes one")
    place = text.removeprefix(SCHEME)
    path, colon, tag = place.rpartition(":")
    return (Path(path), tag) if colon and "/" not in tag and not Path(place).exists() else (Path(place), "")


def _choose(path: Path, tag: str) -> Descriptor:
    """The image of that tag; without one, the only image there is."""
    _read(path / "oci-layout")
    listed = _references(_read(path / "index.json"), OCI_INDEX, path / "index.json")
    named = [one for one in listed if one.name in {tag, f"{path.name}:{tag}"}] if tag else listed
    if len(named) != 1:
        tags = ", ".join(sorted(one.name or "(without a tag)" for one in listed))
        raise UsageError(f"{path} has {len(named)} images{f' of tag {tag}' if tag else ''}; it has: {tags}")
    if not named[0].is_document:
        raise UsageError(f"{path}: {named[0].media_type} is no OCI image; `skopeo copy … oci:DIR` converts")
    return named[0]


def _walk(path: Path, document: Descriptor) -> Iterator[Descriptor]:
    """Everything below a manifest or index, each checked to be there."""
    content = _checked(path, document)
    for one in _references(content, document.media_type, _blob_path(path, document.digest.sha256)):
        yield one
        if one.is_document:
            yield from _walk(path, one)
        else:
            _check(path, one)


def _references(content: bytes, media_type: str, where: Path) -> tuple[Descriptor, ...]:
    try:
        return references(content, media_type)
    except BadImageError as error:
        raise UsageError(f"{where}: {error}") from error


def _checked(path: Path, document: Descriptor) -> bytes:
    if document.digest.size_bytes > MAX_OCI_MANIFEST_BYTES:
        raise UsageError(f"{path}: a manifest of {document.digest.size_bytes} bytes is too large")
    _check(path, document)
    return _read(_blob_path(path, document.digest.sha256))


def _check(path: Path, blob: Descriptor) -> None:
    file = _blob_path(path, blob.digest.sha256)
    try:
        size_bytes = file.stat().st_size
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}; copy the image anew, with all its layers") from error
    if (sha256, size_bytes) != (blob.digest.sha256, blob.digest.size_bytes):
        raise UsageError(f"{file} is not what the image says: copy it anew")


def _blob_path(path: Path, sha256: str) -> Path:
    return path / "blobs" / "sha256" / sha256


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "is it an OCI image layout? `skopeo copy … oci:DIR` writes one"
        raise UsageError(f"{path}: {error.strerror}; {hint}") from error
