"""OCI image layouts made of given layers, as a build tool would leave them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING

from wavemesh.trust.releases import OCI_INDEX, OCI_MANIFEST

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"


def layer(files: Mapping[str, bytes]) -> bytes:
    """A gzipped tar with those files, the same bytes each time."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def write_layout(path: Path, tag: str, *layers: bytes, platforms: int = 1) -> Path:
    """A layout with one image of those layers; with more than one platform, an index of images that share them."""
    manifests = [_image(path, layers, f"v{number}") for number in range(platforms)]
    root = manifests[0]
    if platforms > 1:
        listed = [
            {**one, "platform": {"architecture": arch, "os": "linux"}}
            for one, arch in zip(manifests, ("amd64", "arm64"), strict=True)
        ]
        root = _blob(
            path, json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode(), OCI_INDEX
        )
    annotations = {"annotations": {"org.opencontainers.image.ref.name": tag}} if tag else {}
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [{**root, **annotations}]}))
    return path


def _image(path: Path, layers: tuple[bytes, ...], variant: str) -> dict[str, object]:
    diffs = [f"sha256:{hashlib.sha256(gzip.decompress(one)).hexdigest()}" for one in layers]
    config = {
        "architecture": "arm64" if variant == "v1" else "amd64",
        "os": "linux",
        "config": {"Cmd": ["/app"]},
        "rootfs": {"type": "layers", "diff_ids": diffs},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _blob(path, json.dumps(config).encode(), _CONFIG),
        "layers": [_blob(path, one, _LAYER) for one in layers],
    }
    return _blob(path, json.dumps(manifest).encode(), OCI_MANIFEST)


def _blob(path: Path, content: bytes, media_type: str) -> dict[str, object]:
    sha256 = hashlib.sha256(content).hexdigest()
    directory = path / "blobs" / "sha256"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / sha256).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": len(content)}
