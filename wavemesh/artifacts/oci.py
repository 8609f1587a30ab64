"""OCI image manifests and indexes, as far as their references go: which blobs make up an image.

Source: OCI image specification 1.1, "Image Manifest" and "Image Index". What an image does is not read here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from wavemesh.errors import PeerError
from wavemesh.trust.releases import MAX_OCI_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST
from wavemesh.trust.statements import Digest

MAX_REFERENCES = 256
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


class BadImageError(PeerError):
    """A document is no OCI manifest or index of the kind that is served here; the message names the part."""

    reason = "BAD_IMAGE"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob. ``name`` is the annotation that an index gives to a tag; empty without it."""

    media_type: str
    digest: Digest
    name: str = ""

    @property
    def is_document(self) -> bool:
        """Whether it refers to blobs itself."""
        return self.media_type in {OCI_MANIFEST, OCI_INDEX}


def references(document: bytes, media_type: str) -> tuple[Descriptor, ...]:
    """What a manifest (its config, then its layers) or an index (its manifests) refers to; raises BadImageError."""
    if len(document) > MAX_OCI_MANIFEST_BYTES:
        raise BadImageError(f"a manifest of {len(document)} bytes; at most {MAX_OCI_MANIFEST_BYTES} are accepted")
    try:
        value = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise BadImageError(f"a manifest that is not JSON: {error}") from error
    if not isinstance(value, dict) or value.get("schemaVersion") != 2:
        raise BadImageError("a manifest without schemaVersion 2: convert the image with `skopeo copy … oci:DIR`")
    if value.get("mediaType", media_type) != media_type:
        raise BadImageError(f"a document of {str(value['mediaType'])[:100]!r} where {media_type} was announced")
    if media_type == OCI_INDEX:
        return _list(value, "manifests")
    if media_type == OCI_MANIFEST:
        return (_descriptor(value.get("config"), "config"), *_list(value, "layers"))
    raise BadImageError(f"media type {media_type[:100]!r}: convert the image with `skopeo copy … oci:DIR`")


def _list(value: dict[str, Any], key: str) -> tuple[Descriptor, ...]:
    items = value.get(key)
    if not isinstance(items, list) or not 0 < len(items) <= MAX_REFERENCES:
        raise BadImageError(f"{key!r} must be a list of 1 to {MAX_REFERENCES} descriptors")
    return tuple(_descriptor(item, f"{key}[{at}]") for at, item in enumerate(items))


def _descriptor(value: object, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise BadImageError(f"{where!r} is no descriptor")
    media_type, digest, size_bytes = value.get("mediaType"), value.get("digest"), value.get("size")
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None:
        raise BadImageError(
            f"{where}.digest must be sha256: and 64 digits in lower-case hex, not {str(digest)[:100]!r}"
        )
    if type(size_bytes) is not int or size_bytes < 0:
        raise BadImageError(f"{where}.size must be a number of bytes, not {str(size_bytes)[:100]!r}")
    if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
        raise BadImageError(f"{where}.mediaType must be a media type, not {str(media_type)[:100]!r}")
    if value.get("urls"):
        raise BadImageError(f"{where} lies elsewhere ('urls'), which a store without a WAN cannot fetch")
    annotations = value.get("annotations")
    name = annotations.get("org.opencontainers.image.ref.name", "") if isinstance(annotations, dict) else ""
    return Descriptor(media_type, Digest(found[1], size_bytes), name if isinstance(name, str) else "")
