"""The publishing side of TUF: who signs what, as functions from bytes to bytes.

Three parties. *Root keys* sign root.json, which says whose the other keys are. *Release keys* (the targets role, k of
n) sign targets.json: releases, revocations, and the delegation that lets control's keys speak as role "control".
*Online keys* sign snapshot and timestamp; control holds them and its own key, and no other. So a release comes about in
these steps:

    bundle  = sign_bundle(manifest, signer)          each release key holder; merge_bundles(...) joins theirs
    targets = add_release(published, manifest, bundle, now)
    targets = sign_metadata(targets, signer)         each release key holder; merge_signatures(...) joins theirs
    set     = publish_targets(set, targets, online signers, now)                                         on control

A class role's release goes the same way with the class's keys and its own file, ``publish``-ed in an Update.
"""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp

from wavemesh.errors import ConflictError
from wavemesh.trust.ceremony import ONLINE_ROLES, draft_root, draft_targets, read_root
from wavemesh.trust.envelope import SignatureGateError, sign_with_keys
from wavemesh.trust.files import NO_TARGETS, expiry, next_version, read_metadata, read_targets, sign_metadata, to_bytes
from wavemesh.trust.metadata import RoleKeys
from wavemesh.trust.releases import (
    CUSTOM_KEY,
    RELEASE_PAYLOAD_TYPE,
    RELEASE_ROLE,
    Artifact,
    bundle_from_json,
    bundle_to_json,
    canonical_manifest,
    manifest_to_json,
)
from wavemesh.trust.statements import Digest, TrustMetadata
from wavemesh.trust.vouching import REVOKED_FIELD, class_roles, revocations_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from securesystemslib.signer import Signer
    from tuf.api.metadata import Root

    from wavemesh.trust.releases import ReleaseManifest

REFRESH_AFTER = timedelta(days=1)
"""Control signs snapshot and timestamp anew at least this often while it is up."""


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
    root_data = sign_metadata(draft_root(None, roles, now), *root)
    targets = sign_metadata(draft_targets(None, role_keys(control, 1), now), *releases)
    return refresh_online(TrustMetadata((root_data,), b"", b"", targets), online[0], now)


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

    ``targets`` may be the file of a class role, or empty for the first one. ``bundle`` must be complete:
    its digest becomes part of what the release keys sign.
    """
    if bundle_from_json(bundle).payload != canonical_manifest(manifest):
        msg = f"the signature bundle is not about release {manifest.name} as given"
        raise ConflictError(msg)
    digest = Digest(hashlib.sha256(bundle).hexdigest(), len(bundle))
    manifest = dataclasses.replace(manifest, signature=Artifact(manifest.signature.name, digest))
    metadata = read_targets(targets or NO_TARGETS)
    if manifest.name in revocations_of(metadata.signed):
        msg = f"release {manifest.name} is revoked; its name cannot be used again"
        raise ConflictError(msg, release=manifest.name)
    for artifact in manifest.artifacts:
        custom = {CUSTOM_KEY: manifest_to_json(manifest)} if artifact == manifest.main else None
        _add_target(metadata.signed, artifact, custom, manifest.name)
    return next_version(metadata, now)


def revoke_release(targets: bytes, name: str, reason: str, now: datetime) -> bytes:
    """The next targets.json, unsigned, in which that release is revoked for ever."""
    metadata = read_targets(targets or NO_TARGETS)
    metadata.signed.unrecognized_fields[REVOKED_FIELD] = {**revocations_of(metadata.signed), name: reason}
    return next_version(metadata, now)


@dataclasses.dataclass(frozen=True, slots=True)
class Update:
    """What holders of keys bring to be published: further roots in order, targets.json, files of class roles.

    Each part may be absent. They are published together or not at all.
    """

    roots: tuple[bytes, ...] = ()
    targets: bytes = b""
    delegated: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def is_published(published: TrustMetadata, update: Update) -> bool:
    """Whether there is nothing in the update that is not published as it is."""
    return (
        set(update.roots) <= set(published.roots)
        and update.targets in {b"", published.targets}
        and all(published.delegated.get(role) == data for role, data in update.delegated.items())
    )


def publish(published: TrustMetadata, update: Update, online: Signer, now: datetime) -> TrustMetadata:
    """The set with the update, snapshot and timestamp signed by control's online key.

    Raises ConflictError for a file that is not next in line, or for keys that leave a published file unsigned;
    SignatureGateError for one that too few keys signed. A client's checks are still to be made (``load_trusted``).
    """
    roots = (*published.roots, *(root for root in update.roots if root not in published.roots))
    root = read_root(roots[-1])
    _check_online(root, online)
    targets = update.targets or published.targets
    top = read_targets(targets)
    if targets != published.targets:
        _check_next("targets.json", top, read_targets(published.targets))
    _check_signed("targets", top, root, published, is_new=targets != published.targets)
    delegated = {**published.delegated, **update.delegated}
    roles = class_roles(top.signed)
    for role, data in delegated.items():
        if role not in roles:
            msg = f"targets.json version {top.signed.version} delegates nothing to {role}; class roles: {sorted(roles)}"
            raise ConflictError(msg)
        before, file = published.delegated.get(role), read_targets(data)
        if data != before and before is not None:
            _check_next(f"{role}.json", file, read_targets(before))
        _check_signed(role, file, top.signed, published, is_new=data != before)
    grown = dataclasses.replace(published, roots=roots, targets=targets, delegated=delegated)
    return refresh_online(grown, online, now)


def publish_targets(published: TrustMetadata, targets: bytes, online: Signer, now: datetime) -> TrustMetadata:
    """The set with those targets published, as ``publish`` does it."""
    return publish(published, Update(targets=targets), online, now)


def refresh_online(published: TrustMetadata, online: Signer, now: datetime) -> TrustMetadata:
    """The set with snapshot and timestamp of the next version, signed by the online key."""
    before_snapshot, before_timestamp = _version(published.snapshot), _version(published.timestamp)
    files = {"targets": published.targets, **published.delegated}
    snapshot = sign_metadata(
        to_bytes(
            Metadata(
                Snapshot(
                    version=before_snapshot + 1,
                    expires=expiry("snapshot", now),
                    meta={f"{role}.json": _meta(data) for role, data in files.items()},
                )
            )
        ),
        online,
    )
    timestamp = Timestamp(version=before_timestamp + 1, expires=expiry("timestamp", now), snapshot_meta=_meta(snapshot))
    return dataclasses.replace(
        published, snapshot=snapshot, timestamp=sign_metadata(to_bytes(Metadata(timestamp)), online)
    )


def _check_online(root: Root, online: Signer) -> None:
    keyid = online.public_key.keyid
    if any(keyid not in root.roles[role].keyids or root.roles[role].threshold != 1 for role in ONLINE_ROLES):
        msg = (
            f"root version {root.version} does not let control's online key {keyid[:16]} sign snapshot and timestamp "
            "alone: give control the new key first (keys/online-next.pem) and start it again"
        )
        raise ConflictError(msg)


def _check_next(name: str, new: Metadata[Targets], old: Metadata[Targets]) -> None:
    if new.signed.version != old.signed.version + 1:
        msg = f"{name} has version {new.signed.version}; the next one is {old.signed.version + 1}"
        raise ConflictError(msg)


def _check_signed(
    role: str, file: Metadata[Targets], delegator: Root | Targets, published: TrustMetadata, *, is_new: bool
) -> None:
    try:
        delegator.verify_delegate(role, file.signed_bytes, file.signatures)
    except UnsignedMetadataError as error:
        if not is_new:
            msg = (
                f"{role}.json version {file.signed.version} as published is not signed by enough of the new keys: let "
                "them sign its next version (`edgectl keys renew`) and publish both together"
            )
            raise ConflictError(msg) from error
        old = published.targets if role == RELEASE_ROLE else published.delegated.get(role)
        before = _claimed_releases(read_targets(old)) if old else []
        added = sorted(set(_claimed_releases(file)) - set(before))
        msg = f"{', '.join(added) or 'no new release'}: {error}; let the others sign {role}.json too"
        raise SignatureGateError(msg) from error


def _claimed_releases(targets: Metadata[Targets]) -> list[str]:
    """Names of the releases that a targets.json claims to hold, whoever signed it: for messages alone."""
    customs = (file.custom or {} for file in targets.signed.targets.values())
    claims = (custom.get(CUSTOM_KEY) for custom in customs)
    return [str(claim.get("name"))[:128] for claim in claims if isinstance(claim, dict)]


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


def _meta(data: bytes) -> MetaFile:
    return MetaFile.from_data(_version(data), data, ["sha256"])


def _version(data: bytes) -> int:
    return int(read_metadata(data).signed.version) if data else 0
