"""A release on its way: a directory that release key holders pass around until enough of them signed it.

    DIR/manifest.json     the draft: what the release is (trust/releases.py); made by ``create``
    DIR/published.json    targets.json as control published it when the draft was made
    DIR/artifacts.json    where the artifacts' files are, by name
    DIR/NAME.sig          the signature bundle; complete once ``threshold`` holders signed it
    DIR/targets.json      the next targets.json with this release; complete once ``threshold`` holders signed it

Two rounds, because the bundle's digest is part of what targets.json signs: each holder signs the bundle first and, once
it is complete, targets.json. ``sign`` does whatever this holder can do now and says what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgectl.exits import UsageError
from wavemesh.errors import ConflictError
from wavemesh.runtime.durable import Disk
from wavemesh.trust.files import sign_metadata
from wavemesh.trust.releases import (
    UNKNOWN_DIGEST,
    Artifact,
    ReleaseManifest,
    bundle_from_json,
    canonical_manifest,
    manifest_from_json,
)
from wavemesh.trust.repository import add_release, merge_bundles, sign_bundle
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from securesystemslib.signer import Signer

DEFAULT_THRESHOLD = 2


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a draft is: signatures on the bundle and on targets.json, and how many each needs."""

    release: str
    bundle_signatures: int
    targets_signatures: int
    threshold: int

    @property
    def complete(self) -> bool:
        """Whether it can be published."""
        return min(self.bundle_signatures, self.targets_signatures) >= self.threshold

    @property
    def next_step(self) -> str:
        """What to do next, for people."""
        if self.complete:
            return "complete: publish it"
        if self.bundle_signatures < self.threshold:
            return f"bundle has {self.bundle_signatures} of {self.threshold} signatures: let another holder sign"
        return f"targets.json has {self.targets_signatures} of {self.threshold} signatures: let each holder sign again"


def artifact_of(path: Path, name: str = "") -> Artifact:
    """An artifact by its file; raises UsageError."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Artifact(name or path.name, Digest(digest, path.stat().st_size))
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from exc


def create(directory: Path, manifest: ReleaseManifest, files: Mapping[str, Path], published: bytes) -> None:
    """Write a draft; ConflictError if one is there that says something else."""
    content = canonical_manifest(manifest)
    path = directory / "manifest.json"
    if path.exists() and path.read_bytes() != content:
        raise ConflictError(f"{path} holds another draft; choose another directory")
    disk = Disk()
    disk.make_dir(directory)
    disk.write_atomic(directory / "published.json", published, 0o644)
    places = {name: str(file.resolve()) for name, file in files.items()}
    disk.write_atomic(directory / "artifacts.json", json.dumps(places).encode(), 0o644)
    disk.write_atomic(path, content, 0o644)


def load_manifest(directory: Path) -> ReleaseManifest:
    """The draft; raises UsageError or BadManifestError."""
    return manifest_from_json(json.loads(_read(directory / "manifest.json")), UNKNOWN_DIGEST)


def sign(directory: Path, signers: Sequence[Signer], threshold: int, now: datetime) -> Progress:
    """Sign what can be signed now with each of those keys; signing twice changes nothing."""
    manifest = load_manifest(directory)
    disk = Disk()
    bundle_path, targets_path = directory / manifest.signature.name, directory / "targets.json"
    if not targets_path.exists():
        for signer in signers:
            mine = sign_bundle(manifest, signer)
            disk.write_atomic(
                bundle_path, merge_bundles(bundle_path.read_bytes(), mine) if bundle_path.exists() else mine, 0o644
            )
        if len(bundle_from_json(_read(bundle_path)).signatures) >= threshold:
            targets = add_release(_read(directory / "published.json"), manifest, _read(bundle_path), now)
            disk.write_atomic(targets_path, targets, 0o644)
    if targets_path.exists():
        disk.write_atomic(targets_path, sign_metadata(_read(targets_path), *signers), 0o644)
    return progress(directory, threshold)


def progress(directory: Path, threshold: int) -> Progress:
    """How far the draft is."""
    manifest = load_manifest(directory)
    bundle, targets = directory / manifest.signature.name, directory / "targets.json"
    return Progress(
        manifest.name,
        len(bundle_from_json(bundle.read_bytes()).signatures) if bundle.exists() else 0,
        len(json.loads(targets.read_bytes())["signatures"]) if targets.exists() else 0,
        threshold,
    )


def signed_targets(directory: Path) -> bytes:
    """targets.json as signed so far; raises UsageError when nobody did."""
    return _read(directory / "targets.json")


def copy_artifacts(directory: Path, origin: Path) -> list[Digest]:
    """Put the release's files where the origin serves them, each under its SHA-256; what is there already stays."""
    manifest = load_manifest(directory)
    places = json.loads(_read(directory / "artifacts.json"))
    bundle = artifact_of(directory / manifest.signature.name)
    artifacts = [dataclasses.replace(bundle, name=manifest.signature.name)]
    artifacts += [artifact for artifact in (manifest.firmware, manifest.config) if artifact is not None]
    origin.mkdir(parents=True, exist_ok=True)
    for artifact in artifacts:
        source = directory / artifact.name if artifact.name == manifest.signature.name else places[artifact.name]
        target = origin / artifact.digest.sha256
        if not target.exists():
            partial = target.with_suffix(".partial")
            shutil.copyfile(source, partial)
            partial.replace(target)
    return [artifact.digest for artifact in artifacts]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}; `edgectl release create` and `sign` come first") from exc
