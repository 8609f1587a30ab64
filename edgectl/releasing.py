"""A release or a revocation on its way: a directory that release key holders pass around until enough of them signed.

    DIR/draft.json        what it is: the role that vouches, the release, and the reason where it is revoked
    DIR/N.root.json       every root that control had published when the draft was made
    DIR/top.json          targets.json of then, which says whose signatures count for a class role
    DIR/published.json    the file to add to, of then: targets.json or the class's own; empty for a class's first
    DIR/targets.json      the next version of that file; complete once the threshold of the role's keys signed it

and for a release, not for a revocation:

    DIR/manifest.json     what the release is (trust/releases.py)
    DIR/artifacts.json    where the artifacts' files are, by name
    DIR/NAME.sig          the signature bundle; complete once the threshold of the role's keys signed it

Two rounds for a release, because the bundle's digest is part of what targets.json signs: each holder signs the bundle
first and, once it is complete, targets.json. ``sign`` does whatever this holder can do now and says what is missing. A
signature counts if it is good and by a key of the role; how many are needed is what the root or targets.json says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuf.api.metadata import Root

from edgectl.exits import UsageError
from edgectl.trustdir import ROOT, TrustDirectory
from wavemesh.errors import ConflictError
from wavemesh.runtime.durable import Disk
from wavemesh.trust.ceremony import key_name, keys_of, read_root, standings
from wavemesh.trust.envelope import good_keys
from wavemesh.trust.files import read_targets, sign_metadata
from wavemesh.trust.metadata import RoleKeys, delegated_keys
from wavemesh.trust.releases import (
    RELEASE_ROLE,
    UNKNOWN_DIGEST,
    Artifact,
    ReleaseManifest,
    bundle_from_json,
    canonical_manifest,
    manifest_from_json,
    manifest_to_json,
)
from wavemesh.trust.repository import add_release, merge_bundles, revoke_release, sign_bundle
from wavemesh.trust.statements import Digest
from wavemesh.trust.vouching import class_roles, objection, owner_of, read_releases, revocations_of, vouch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from securesystemslib.signer import Signer
    from tuf.api.metadata import Targets

    from wavemesh.v1.operator_pb2 import ListReleasesResponse


@dataclass(frozen=True, slots=True)
class Base:
    """What a draft is made against: the published roots and targets.json, and the files of class roles."""

    roots: Sequence[bytes]
    targets: bytes
    delegated: Mapping[str, bytes]

    @classmethod
    def of(cls, answer: ListReleasesResponse) -> Base:
        """What control has published; raises UsageError for a hub's answer, which has no files."""
        if not answer.targets or not answer.roots:
            raise UsageError("that node has no metadata to add to: ask control, add --context control")
        return cls(tuple(answer.roots), answer.targets, dict(answer.delegated))

    def file(self, role: str) -> bytes:
        """The file a role signs; raises UsageError for a role that may not vouch for releases."""
        if role == RELEASE_ROLE:
            return self.targets
        roles = class_roles(read_targets(self.targets).signed)
        if role not in roles:
            known = ", ".join([RELEASE_ROLE, *sorted(roles)])
            raise UsageError(f"no role {role!r} may vouch for releases; those who may: {known}")
        return self.delegated.get(role, b"")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a draft is: good signatures on the bundle and on targets.json, and how many each needs."""

    release: str
    role: str
    revoked: bool
    bundle_signatures: int
    targets_signatures: int
    threshold: int
    unsigned: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether it can be published."""
        return min(self.bundle_signatures, self.targets_signatures) >= self.threshold

    @property
    def next_step(self) -> str:
        """What to do next, for people."""
        if self.complete:
            return "complete: publish it"
        who = f" (not yet: {', '.join(self.unsigned)})"
        if self.bundle_signatures < self.threshold:
            return f"bundle has {self.bundle_signatures} of {self.threshold} signatures: let another holder sign{who}"
        have = f"targets.json has {self.targets_signatures} of {self.threshold} signatures"
        return f"{have}: let each holder sign{'' if self.revoked else ' again'}{who}"


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft's directory as it is on disk."""

    directory: Path
    role: str
    release: str
    reason: str

    @property
    def roots(self) -> tuple[bytes, ...]:
        """The roots of when it was made."""
        return TrustDirectory(self.directory).roots

    @property
    def delegator(self) -> Root | Targets:
        """What says whose signatures count."""
        if self.role == RELEASE_ROLE:
            return read_root(TrustDirectory(self.directory).require(ROOT))
        return read_targets(_read(self.directory / "top.json")).signed

    @property
    def keys(self) -> RoleKeys:
        """Whose signatures count; raises UsageError."""
        signed = self.delegator
        if isinstance(signed, Root):
            return keys_of(signed.roles[self.role], signed.keys)
        keys = delegated_keys(signed, self.role)
        if keys is None:
            raise UsageError(f"{self.directory / 'top.json'} delegates nothing to {self.role}")
        return keys

    def as_published(self) -> Base:
        """What would be published with it."""
        signed = _read(self.directory / "targets.json")
        if self.role == RELEASE_ROLE:
            return Base(self.roots, signed, {})
        return Base(self.roots, _read(self.directory / "top.json"), {self.role: signed})

    @property
    def is_revocation(self) -> bool:
        """Whether it takes a release back."""
        return bool(self.reason)


def artifact_of(path: Path, name: str = "") -> Artifact:
    """An artifact by its file; raises UsageError."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Artifact(name or path.name, Digest(digest, path.stat().st_size))
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from exc


def pcr_of(text: str) -> tuple[int, str]:
    """A PCR and its value, written N=SHA256; raises UsageError. The manifest says which are allowed."""
    number, _, sha256 = text.partition("=")
    if not number.isdecimal() or not sha256:
        msg = f"--pcr {text[:100]!r} is not N=SHA256, like 4={'0' * 64}"
        raise UsageError(msg)
    return int(number), sha256.lower()


def create(
    directory: Path, manifest: ReleaseManifest, files: Mapping[str, Path], base: Base, role: str = RELEASE_ROLE
) -> None:
    """Write a draft of a release; ConflictError if one is there that says something else, or for another's names."""
    content = canonical_manifest(manifest)
    path = directory / "manifest.json"
    if path.exists() and path.read_bytes() != content:
        raise ConflictError(f"{path} holds another draft; choose another directory")
    base.file(role)
    if role != RELEASE_ROLE:
        top = read_targets(base.targets).signed
        taken = frozenset({*top.targets, *read_releases(top)[0]})
        problem = objection(manifest, role, class_roles(top).values(), taken)
        if problem:
            raise ConflictError(f"{role} cannot vouch for release {manifest.name}: {problem}")
    places = {name: str(file.resolve()) for name, file in files.items()}
    _write(directory, {"role": role, "release": manifest.name, "reason": ""}, base)
    disk = Disk()
    disk.write_atomic(directory / "artifacts.json", json.dumps(places).encode(), 0o644)
    disk.write_atomic(path, content, 0o644)


def create_revocation(
    directory: Path, name: str, reason: str, base: Base, now: datetime, *, role: str = ""
) -> Progress | None:
    """Write a draft that revokes a release; None if it is revoked already.

    ``role`` says by whom: by default the role that vouches for it, else ``targets``, which may revoke any. Raises
    UsageError for a release that nobody vouches for, or no reason.
    """
    if not reason:
        raise UsageError("a revocation is for ever and told to everybody: give --reason")
    vouches = role_of(name, base)
    role = role or vouches
    if role not in {vouches, RELEASE_ROLE}:
        raise UsageError(f"{role} cannot revoke {name}, for which {vouches} vouches")
    published = base.file(role)
    if name in revocations_of(read_targets(published).signed):
        return None
    path = directory / "draft.json"
    what = {"role": role, "release": name, "reason": reason}
    if path.exists():
        if json.loads(path.read_bytes()) != what:
            raise ConflictError(f"{path} holds another draft; choose another directory")
        return progress(directory)
    _write(directory, what, base)
    Disk().write_atomic(directory / "targets.json", revoke_release(published, name, reason, now), 0o644)
    return progress(directory)


def load(directory: Path) -> Draft:
    """The draft; raises UsageError."""
    try:
        value = json.loads(_read(directory / "draft.json"))
        return Draft(directory, str(value["role"]), str(value["release"]), str(value["reason"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{directory / 'draft.json'} is no draft: {exc!r}") from exc


def load_manifest(directory: Path) -> ReleaseManifest:
    """The release that is drafted; raises UsageError or BadManifestError."""
    return manifest_from_json(json.loads(_read(directory / "manifest.json")), UNKNOWN_DIGEST)


def sign(directory: Path, signers: Sequence[Signer], now: datetime) -> Progress:
    """Sign what can be signed now with each of those keys; signing twice changes nothing.

    Raises UsageError for a key without a say.
    """
    draft = load(directory)
    keys = draft.keys
    for signer in signers:
        if signer.public_key.keyid not in keys.keys:
            names = ", ".join(key_name(key) for key in keys.keys.values())
            raise UsageError(f"key {key_name(signer.public_key)} has no say in role {draft.role}; its keys are {names}")
    disk, targets_path = Disk(), directory / "targets.json"
    if not draft.is_revocation and not targets_path.exists():
        manifest = load_manifest(directory)
        bundle_path = directory / manifest.signature.name
        for signer in signers:
            mine = sign_bundle(manifest, signer)
            disk.write_atomic(
                bundle_path, merge_bundles(bundle_path.read_bytes(), mine) if bundle_path.exists() else mine, 0o644
            )
        if progress(directory).bundle_signatures >= keys.threshold:
            targets = add_release(_read(directory / "published.json"), manifest, _read(bundle_path), now)
            disk.write_atomic(targets_path, targets, 0o644)
    if targets_path.exists():
        disk.write_atomic(targets_path, sign_metadata(_read(targets_path), *signers), 0o644)
    return progress(directory)


def progress(directory: Path) -> Progress:
    """How far the draft is."""
    draft = load(directory)
    keys = draft.keys
    on_bundle: frozenset[str] = frozenset(keys.keys)
    if not draft.is_revocation:
        bundle = directory / load_manifest(directory).signature.name
        on_bundle = good_keys(bundle_from_json(bundle.read_bytes()), keys.keys) if bundle.exists() else frozenset()
    on_targets: frozenset[str] = frozenset()
    if (directory / "targets.json").exists():
        [standing] = standings(_read(directory / "targets.json"), draft.role, {draft.role: draft.delegator})
        on_targets = frozenset(standing.signed)
    counted = on_bundle if len(on_bundle) < keys.threshold else on_targets
    missing = tuple(key_name(key) for keyid, key in keys.keys.items() if keyid not in counted)
    return Progress(
        draft.release, draft.role, draft.is_revocation, len(on_bundle), len(on_targets), keys.threshold, missing
    )


def signed_targets(directory: Path) -> bytes:
    """targets.json as signed so far; raises UsageError when nobody did."""
    return _read(directory / "targets.json")


def artifact_files(directory: Path) -> list[tuple[Artifact, Path]]:
    """What an origin must have of a draft, and where its files are; nothing for a revocation. Raises UsageError."""
    if load(directory).is_revocation:
        return []
    manifest = load_manifest(directory)
    places = json.loads(_read(directory / "artifacts.json"))
    signature = directory / manifest.signature.name
    bundle = dataclasses.replace(artifact_of(signature), name=manifest.signature.name)
    others = [artifact for artifact in manifest.artifacts if artifact.name != manifest.signature.name]
    return [(bundle, signature), *((artifact, Path(places[artifact.name])) for artifact in others)]


def other_content(source: Path, artifact: Artifact) -> ConflictError:
    """The error for a file that is not what the draft says: somebody else may have made the draft."""
    return ConflictError(f"{source} is not the {artifact.name} of the draft: make the draft anew")


def copy_artifacts(directory: Path, origin: Path) -> list[Digest]:
    """Put the release's files where the origin serves them, each under its SHA-256; what is there already stays.

    Raises ConflictError for a file that is not what the draft says.
    """
    files = artifact_files(directory)
    if files:
        origin.mkdir(parents=True, exist_ok=True)
    for artifact, source in files:
        target = origin / artifact.digest.sha256
        if not target.exists():
            if artifact_of(source, artifact.name) != artifact:
                raise other_content(source, artifact)
            partial = target.with_suffix(".partial")
            shutil.copyfile(source, partial)
            partial.replace(target)
    return [artifact.digest for artifact, _ in files]


def details(answer: ListReleasesResponse, name: str) -> dict[str, object]:
    """What only the signed files say of a release: its manifest, and who signed the file that has it.

    A hub's answer has no files: both are empty.
    """
    if not answer.targets or not answer.roots:
        return {"manifest": {}, "signed_by": []}
    base = Base.of(answer)
    top = read_targets(base.targets).signed
    vouched = vouch(top, {role: read_targets(data).signed for role, data in base.delegated.items()})
    role = vouched.roles[name]
    manifest = vouched.releases.get(name) or vouched.revoked[name]
    delegator = read_root(base.roots[-1]) if role == RELEASE_ROLE else top
    [standing] = standings(base.file(role), role, {role: delegator})
    return {
        "manifest": manifest_to_json(manifest),
        "signed_by": [key_name(key) for key in standing.signed.values()],
    }


def role_of(name: str, base: Base) -> str:
    """The role that vouches for a release, or whose name it is; raises UsageError."""
    top = read_targets(base.targets).signed
    if name in read_releases(top)[0]:
        return RELEASE_ROLE
    role = owner_of(name, class_roles(top).values())
    if role in base.delegated and name in read_releases(read_targets(base.delegated[role]).signed)[0]:
        return role
    raise UsageError(f"nobody vouches for release {name}: `edgectl release list` shows what is published")


def _write(directory: Path, what: Mapping[str, str], base: Base) -> None:
    disk = Disk()
    disk.make_dir(directory)
    for version, root in enumerate(base.roots, start=1):
        disk.write_atomic(directory / f"{version}.root.json", root, 0o644)
    disk.write_atomic(directory / "top.json", base.targets, 0o644)
    disk.write_atomic(directory / "published.json", base.file(what["role"]), 0o644)
    disk.write_atomic(directory / "draft.json", json.dumps(what).encode(), 0o644)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}; `edgectl release create` and `sign` come first") from exc
