"""The publishing side of TUF: who signs what, as functions from bytes to bytes.

Three parties. *Root keys* sign root.json, which says whose the other keys are. *Release keys* (the targets role, k of
n) sign targets.json: releases, revocations, and the delegation that lets control's keys speak as role "control".
*Online keys* sign snapshot and timestamp; control holds them and its own key, and no other. So a release comes about in
these steps:

    bundle  = sign_bundle(manifest, signer)          each release key holder; merge_bundles(...) joins theirs
    targets = add_release(published, manifest, bundle, now)
    targets = sign_metadata(targets, signer)         each release key holder; merge_signatures(...) joins theirs
    set     = publish_targets(set, targets, online signers, now)                                         on control

Lifetimes are one table, explained in docs/adr/0003-trust.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from wavemesh.errors import ConflictError, PeerError
from wavemesh.trust.envelope import CONTROL_ROLE, SignatureGateError, sign_with_keys
from wavemesh.trust.metadata import RoleKeys
from wavemesh.trust.releases import (
    CUSTOM_KEY,
    RELEASE_PAYLOAD_TYPE,
    Artifact,
    bundle_from_json,
    bundle_to_json,
    canonical_manifest,
    manifest_to_json,
)
from wavemesh.trust.statements import Digest, TrustMetadata
from wavemesh.trust.vouching import REVOKED_FIELD, revocations_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from securesystemslib.signer import Signer

    from wavemesh.trust.releases import ReleaseManifest

LIFETIMES: Mapping[str, timedelta] = {
    "root": timedelta(days=730),
    "targets": timedelta(days=365),
    "snapshot": timedelta(days=45),
    "timestamp": timedelta(days=45),
}
REFRESH_AFTER = timedelta(days=1)
"""Control signs snapshot and timestamp anew at least this often while it is up."""


class BadRepositoryFileError(PeerError):
    """A metadata file given to the publishing side is not what it should be."""

    reason = "BAD_REPOSITORY_FILE"


def role_keys(signers: Sequence[Signer], threshold: int) -> RoleKeys:
    """Public keys of the signers, ``threshold`` of which must sign."""
    return RoleKeys({signer.public_key.keyid: signer.public_key for signer in signers}, threshold)


def create_repository(
    *,
    root: Sequence[Signer],
    releases: Sequence[Signer],
    online: Sequence[Signer],
    control: Sequence[Signer],
    now: datetime,
    root_threshold: int = 1,
    release_threshold: int = 2,
) -> TrustMetadata:
    """A new repository without releases: version 1 of all files, signed. ``roots[0]`` is what nodes pin."""
    roles = {
        "root": role_keys(root, root_threshold),
        "targets": role_keys(releases, release_threshold),
        "snapshot": role_keys(online, 1),
        "timestamp": role_keys(online, 1),
    }
    root_data = sign_metadata(build_root(roles, version=1, now=now), *root)
    targets = sign_metadata(build_targets(role_keys(control, 1), now), *releases)
    return refresh_online(TrustMetadata((root_data,), b"", b"", targets), online[0], now)


def build_root(roles: Mapping[str, RoleKeys], *, version: int, now: datetime) -> bytes:
    """An unsigned root.json; from version 2 on it needs the signatures of the version before, too."""
    signed = Root(
        version=version,
        expires=_expiry("root", now),
        keys={keyid: key for role in roles.values() for keyid, key in role.keys.items()},
        roles={name: Role(list(role.keys), role.threshold) for name, role in roles.items()},
    )
    return _to_bytes(Metadata(signed))


def build_targets(control: RoleKeys, now: datetime) -> bytes:
    """An unsigned targets.json without releases that lets those keys speak as control.

    The role gets no paths: it signs orders, never targets.
    """
    role = DelegatedRole(CONTROL_ROLE, list(control.keys), control.threshold, terminating=True, paths=[])
    delegations = Delegations(dict(control.keys), {CONTROL_ROLE: role})
    return _to_bytes(Metadata(Targets(expires=_expiry("targets", now), delegations=delegations)))


def sign_bundle(manifest: ReleaseManifest, *signers: Signer) -> bytes:
    """The release's signature bundle, for now by those signers; the digest of ``manifest.signature`` plays no part."""
    return bundle_to_json(sign_with_keys(RELEASE_PAYLOAD_TYPE, canonical_manifest(manifest), signers))


def merge_bundles(first: bytes, second: bytes) -> bytes:
    """One bundle with the signatures of both; ConflictError if they are about different manifests."""
    one, two = bundle_from_json(first), bundle_from_json(second)
    if (one.payload_type, one.payload) != (two.payload_type, two.payload):
        msg = "the signature bundles are about different manifests: all must sign the same one"
        raise ConflictError(msg)
    signatures = {signature.keyid: signature for signature in (*one.signatures, *two.signatures)}
    return bundle_to_json(dataclasses.replace(one, signatures=tuple(signatures[key] for key in sorted(signatures))))


def add_release(targets: bytes, manifest: ReleaseManifest, bundle: bytes, now: datetime) -> bytes:
    """The next targets.json, unsigned, with that release; raises ConflictError where it contradicts what is published.

    ``bundle`` must be complete: its digest becomes part of what the release keys sign.
    """
    if bundle_from_json(bundle).payload != canonical_manifest(manifest):
        msg = f"the signature bundle is not about release {manifest.name} as given"
        raise ConflictError(msg)
    digest = Digest(hashlib.sha256(bundle).hexdigest(), len(bundle))
    manifest = dataclasses.replace(manifest, signature=Artifact(manifest.signature.name, digest))
    metadata = _targets(targets)
    if manifest.name in revocations_of(metadata.signed):
        msg = f"release {manifest.name} is revoked; its name cannot be used again"
        raise ConflictError(msg, release=manifest.name)
    for artifact in manifest.artifacts:
        custom = {CUSTOM_KEY: manifest_to_json(manifest)} if artifact == manifest.main else None
        _add_target(metadata.signed, artifact, custom, manifest.name)
    return _next_version(metadata, now)


def revoke_release(targets: bytes, name: str, reason: str, now: datetime) -> bytes:
    """The next targets.json, unsigned, in which that release is revoked for ever."""
    metadata = _targets(targets)
    metadata.signed.unrecognized_fields[REVOKED_FIELD] = {**revocations_of(metadata.signed), name: reason}
    return _next_version(metadata, now)


def sign_metadata(data: bytes, *signers: Signer) -> bytes:
    """The file with signatures of those signers added."""
    metadata = _read(data)
    for signer in signers:
        metadata.sign(signer, append=True)
    return _to_bytes(metadata)


def merge_signatures(first: bytes, second: bytes) -> bytes:
    """One file with the signatures of both; ConflictError if what they sign differs."""
    one, two = _read(first), _read(second)
    if one.signed_bytes != two.signed_bytes:
        msg = "the files differ in what is signed: all must sign the same one"
        raise ConflictError(msg)
    one.signatures.update(two.signatures)
    return _to_bytes(one)


def publish_targets(published: TrustMetadata, targets: bytes, online: Signer, now: datetime) -> TrustMetadata:
    """The set with those targets published.

    Raises ConflictError unless they are next in line, SignatureGateError unless enough release keys signed them.
    """
    new, old = _targets(targets), _targets(published.targets)
    if new.signed.version != old.signed.version + 1:
        msg = f"targets.json has version {new.signed.version}; the next one is {old.signed.version + 1}"
        raise ConflictError(msg)
    root: Metadata[Root] = _read(published.roots[-1])
    try:
        root.signed.verify_delegate(Targets.type, new.signed_bytes, new.signatures)
    except UnsignedMetadataError as error:
        added = sorted(set(_claimed_releases(new)) - set(_claimed_releases(old)))
        msg = f"{', '.join(added) or 'no new release'}: {error}; let the others sign targets.json too"
        raise SignatureGateError(msg) from error
    return refresh_online(dataclasses.replace(published, targets=targets), online, now)


def refresh_online(published: TrustMetadata, online: Signer, now: datetime) -> TrustMetadata:
    """The set with snapshot and timestamp of the next version, signed by the online key."""
    before_snapshot, before_timestamp = _version(published.snapshot), _version(published.timestamp)
    files = {"targets": published.targets, **published.delegated}
    snapshot = sign_metadata(
        _to_bytes(
            Metadata(
                Snapshot(
                    version=before_snapshot + 1,
                    expires=_expiry("snapshot", now),
                    meta={f"{role}.json": _meta(data) for role, data in files.items()},
                )
            )
        ),
        online,
    )
    timestamp = Timestamp(
        version=before_timestamp + 1, expires=_expiry("timestamp", now), snapshot_meta=_meta(snapshot)
    )
    return dataclasses.replace(
        published, snapshot=snapshot, timestamp=sign_metadata(_to_bytes(Metadata(timestamp)), online)
    )


def _claimed_releases(targets: Metadata[Targets]) -> list[str]:
    """Names of the releases that a targets.json claims to hold, whoever signed it: for messages alone."""
    customs = (file.custom or {} for file in targets.signed.targets.values())
    claims = (custom.get(CUSTOM_KEY) for custom in customs)
    return [str(claim.get("name"))[:128] for claim in claims if isinstance(claim, dict)]


def _expiry(role: str, now: datetime) -> datetime:
    return (now + LIFETIMES[role]).replace(microsecond=0)


def _add_target(targets: Targets, artifact: Artifact, custom: dict[str, Any] | None, release: str) -> None:
    """Add the artifact; a name that is published already must have the same content."""
    old = targets.targets.get(artifact.name)
    if old is None:
        digest = artifact.digest
        old = TargetFile(digest.size_bytes, {"sha256": digest.sha256}, artifact.name)
        targets.targets[artifact.name] = old
    elif Digest(old.hashes.get("sha256", ""), old.length) != artifact.digest:
        msg = f"artifact {artifact.name} is published with other content: releases are immutable, use another name"
        raise ConflictError(msg, release=release)
    if custom is not None:
        if old.custom is not None and old.custom != custom:
            msg = (
                f"artifact {artifact.name} is the main artifact of another release; add the new one under another name"
            )
            raise ConflictError(msg, release=release)
        old.unrecognized_fields["custom"] = custom


def _next_version(metadata: Metadata[Targets], now: datetime) -> bytes:
    metadata.signed.version += 1
    metadata.signed.expires = _expiry("targets", now)
    metadata.signatures.clear()
    return _to_bytes(metadata)


def _meta(data: bytes) -> MetaFile:
    return MetaFile.from_data(_version(data), data, ["sha256"])


def _version(data: bytes) -> int:
    return int(_read(data).signed.version) if data else 0


def _targets(data: bytes) -> Metadata[Targets]:
    metadata = _read(data)
    if not isinstance(metadata.signed, Targets):
        msg = f"this is {metadata.signed.type} metadata, not targets.json"
        raise BadRepositoryFileError(msg)
    return metadata


def _read(data: bytes) -> Metadata[Any]:
    try:
        return Metadata.from_bytes(data)
    except DeserializationError as error:
        msg = f"not a TUF metadata file: {error.__cause__ or error}"
        raise BadRepositoryFileError(msg) from error


def _to_bytes(metadata: Metadata[Any]) -> bytes:
    return metadata.to_bytes(JSONSerializer(validate=True))
