"""Judges a release offline, from the pinned root to the bytes of its files; every problem is named.

What a node does with a published set, for people: it needs no node, only files. Time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgectl import releasing
from wavemesh.errors import GateError, WavemeshError
from wavemesh.trust.ceremony import key_name, keys_of, standings
from wavemesh.trust.envelope import good_keys
from wavemesh.trust.files import read_metadata, read_targets
from wavemesh.trust.metadata import delegated_keys, follow_roots
from wavemesh.trust.releases import RELEASE_ROLE, bundle_from_json, canonical_manifest
from wavemesh.trust.vouching import vouch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from tuf.api.metadata import Root, Targets

    from edgectl.releasing import Base
    from wavemesh.trust.releases import Artifact, ReleaseManifest


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; ``problem`` is empty where it is well."""

    what: str
    problem: str = ""


def verify(base: Base, name: str, pinned: bytes, files: Mapping[str, Path], now: datetime) -> list[Check]:
    """Check a release in a set of roots and targets files; ``files`` are local copies of artifacts, by name.

    Only the artifacts that are given are read.
    """
    try:
        root, _ = follow_roots(pinned, tuple(base.roots), None)
    except GateError as error:
        return [Check("root.json", str(error))]
    checks = [_fresh("root", root, now)]
    checks += _signed(RELEASE_ROLE, base.targets, root, now)
    top = read_targets(base.targets).signed
    for role, data in base.delegated.items():
        checks += _signed(role, data, top, now)
    vouched = vouch(top, {role: read_targets(data).signed for role, data in base.delegated.items()})
    manifest = vouched.releases.get(name) or vouched.revoked.get(name)
    if name in vouched.revocations:
        checks.append(Check(f"release {name}", f"it is revoked: {vouched.revocations[name]}"))
    if manifest is None:
        why = vouched.malformed.get(name, "no file defines it")
        return [*checks, Check(f"release {name}", f"nobody vouches for it: {why}")]
    role = vouched.roles[name]
    checks.append(Check(f"release {name}, by {role}"))
    checks += [_file(artifact.name, artifact, files) for artifact in manifest.artifacts if artifact.name in files]
    if manifest.signature.name in files:
        checks.append(_bundle(manifest, files[manifest.signature.name], role, root, top))
    return checks


def local_files(directory: Path, places: Mapping[str, str]) -> dict[str, Path]:
    """Files by name: those in the directory, and those that are where ``places`` says."""
    found = {path.name: path for path in directory.iterdir() if path.is_file()}
    return found | {name: Path(place) for name, place in places.items() if Path(place).exists()}


def _signed(role: str, data: bytes, delegator: Root | Targets, now: datetime) -> list[Check]:
    try:
        [standing] = standings(data, role, {role: delegator})
    except (WavemeshError, ValueError) as error:
        return [Check(f"{role}.json", str(error))]
    file = read_metadata(data).signed
    what = f"{role}.json version {file.version}: {len(standing.signed)} of {standing.threshold} signatures"
    missing = ", ".join(key_name(key) for key in standing.unsigned.values())
    problem = f"{standing.missing} signatures are missing, of {missing}" if standing.missing else ""
    return [Check(what, problem), _fresh(role, file, now)]


def _fresh(role: str, file: Root | Targets, now: datetime) -> Check:
    expired = f"it expired at {file.expires.isoformat()}" if file.is_expired(now) else ""
    return Check(f"{role}.json version {file.version} is valid until {file.expires.isoformat()}", expired)


def _file(name: str, artifact: Artifact, files: Mapping[str, Path]) -> Check:
    found = releasing.artifact_of(files[name], name)
    wanted, got = artifact.digest, found.digest
    problem = "" if found == artifact else f"{files[name]} has SHA-256 {got.sha256}, {got.size_bytes} bytes"
    return Check(f"{name}: SHA-256 {wanted.sha256}, {wanted.size_bytes} bytes", problem)


def _bundle(manifest: ReleaseManifest, path: Path, role: str, root: Root, top: Targets) -> Check:
    name = manifest.signature.name
    keys = keys_of(root.roles[role], root.keys) if role == RELEASE_ROLE else delegated_keys(top, role)
    try:
        envelope = bundle_from_json(path.read_bytes())
    except GateError as error:
        return Check(name, str(error))
    if keys is None or envelope.payload != canonical_manifest(manifest):
        return Check(name, f"it is about another manifest than release {manifest.name}")
    good = good_keys(envelope, keys.keys)
    what = f"{name}: {len(good)} of {keys.threshold} signatures by {role}"
    return Check(what, "" if len(good) >= keys.threshold else f"{keys.threshold - len(good)} signatures are missing")
