"""The TUF client: what a published metadata set makes a node believe (TUF specification 1.0, sections 5.3 to 5.7).

Pure: bytes and ``now`` in, TrustedMetadata out; nothing is fetched, stored or remembered here. A set is accepted whole
or not at all, so a version that is trusted is always one that its own role really signed. In the specification's
order:

1.  Root: from the pinned (or previously trusted) root, version by version, each signed by the threshold of the one
    before and by its own. Only the last one must not have expired.
2.  Timestamp, snapshot, targets: signed by the threshold of the role's keys in that root; version, length and hashes
    as the file above says; not expired.
3.  Nothing goes back: no version is lower than in ``previous``, no file disappears, and two different timestamps of one
    version are refused. When so many keys of a role are replaced that the old ones that stay are below its threshold,
    what the role said before is not compared with: this is how a stolen key's inflated versions are recovered from.
    Unlike in the specification each role's files keep their own comparison, because control holds the online keys and
    must not be able to bring back an old targets.json by having them rotated.
4.  Files of class roles: the same, by the keys that targets.json delegates to the role; what each of them may vouch for
    is vouching.py's. A file that the snapshot lists has to come along, so that nobody on the way can leave out a class
    and its revocations. An expired one harms its class alone: ``check_expiry`` with the release's name.
5.  A role's keys are distinct as keys, not just as ids, so no key counts twice to a threshold.

Revocation: the signed field ``wavemesh-revoked`` maps names of releases to reasons. It is explicit, not by absence, so
that one set alone tells a revoked release from one never heard of; both are refused. Refusals are GateErrors:
"signature" (not what was signed), "freshness" (expired), "replay" (older than what is known), "revoked".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from tuf.api.exceptions import LengthOrHashMismatchError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError

from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.trust.envelope import SignatureGateError
from wavemesh.trust.vouching import Vouched, class_roles, vouch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from securesystemslib.signer import Key, Signature
    from tuf.api.metadata import Delegations, MetaFile, Role

    from wavemesh.trust.releases import ReleaseManifest
    from wavemesh.trust.statements import Digest, TrustMetadata

MAX_ROOTS = 64
MAX_FILE_BYTES = {"root": 256 * 1024, "timestamp": 64 * 1024, "snapshot": 256 * 1024}
MAX_TARGETS_BYTES = 1024 * 1024
MAX_DELEGATED = 64
MAX_TARGET_FILES = 8192
MAX_KEYS_PER_ROLE = 32

M = TypeVar("M", bound=Signed)


class RoleKeys(NamedTuple):
    """Keys of a role by key id, and how many of them must sign."""

    keys: Mapping[str, Key]
    threshold: int


@dataclass(frozen=True, slots=True, eq=False)
class TrustedMetadata:
    """A verified set. ``source`` is what to store and to serve: what it was made from, with every root known here."""

    root: Root
    root_data: bytes
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    delegated: Mapping[str, Targets]
    source: TrustMetadata
    _vouched: Vouched

    @property
    def versions(self) -> Mapping[str, int]:
        """Version of each file, by role."""
        top: dict[str, Signed] = {
            "root": self.root,
            "timestamp": self.timestamp,
            "snapshot": self.snapshot,
            "targets": self.targets,
        }
        return {role: signed.version for role, signed in {**self.delegated, **top}.items()}

    def expires_at(self, release: str = "") -> datetime:
        """When the first file expires that all depends on; or that this release depends on."""
        return min(signed.expires for _, signed in _files(self, release))

    def role_keys(self, role: str) -> RoleKeys:
        """Keys and threshold of a top-level or delegated role; SignatureGateError for one that nobody delegates to."""
        if role in self.root.roles:
            return _role_keys(self.root.roles[role], self.root.keys)
        found = delegated_keys(self.targets, role)
        if found is None:
            msg = f"targets.json version {self.targets.version} delegates nothing to role {role!r}"
            raise SignatureGateError(msg)
        return found

    def releases(self) -> Mapping[str, ReleaseManifest]:
        """Releases by name, revoked and malformed ones left out."""
        return self._vouched.releases

    def revoked_releases(self) -> Mapping[str, ReleaseManifest]:
        """Revoked releases whose manifest is still there."""
        return self._vouched.revoked

    @property
    def malformed_releases(self) -> Mapping[str, str]:
        """Why releases that a file defines count for nothing, by name, or ``role:name`` where that is not its own."""
        return self._vouched.malformed

    def role_of(self, release: str) -> str:
        """The role that vouches for a release, revoked or not; SignatureGateError for one that nobody vouches for."""
        if release not in self._vouched.roles:
            why = self.malformed_releases.get(release, "it is not in the metadata")
            msg = f"targets.json version {self.targets.version} vouches for no release {release}: {why}"
            raise SignatureGateError(msg, release=release)
        return self._vouched.roles[release]

    def require_release(self, name: str) -> ReleaseManifest:
        """The release; raises GateError "revoked", or "signature" where the release keys vouch for no such release."""
        if self.is_revoked(name):
            msg = f"release {name} is revoked: {self.revocations()[name]}"
            raise GateError(Gate.REVOKED.value, msg, release=name, observed="revoked", required="vouched for")
        self.role_of(name)
        return self._vouched.releases[name]

    def releases_with(self, digest: Digest) -> tuple[ReleaseManifest, ...]:
        """The releases of which that blob is a part."""
        return tuple(
            release for release in self.releases().values() if any(digest == one.digest for one in release.artifacts)
        )

    def is_revoked(self, name: str) -> bool:
        """Whether the keys that may do so took that release back."""
        return name in self.revocations()

    def revocations(self) -> Mapping[str, str]:
        """Reasons by the name of the revoked release."""
        return self._vouched.revocations


def load_trusted(
    root: bytes, metadata: TrustMetadata, now: datetime, previous: TrustedMetadata | None
) -> TrustedMetadata:
    """Verify a set against the pinned ``root`` and what was trusted before; raises GateError.

    Takes about 0.1 ms a release, so 0.1 s for the largest set: call it in a thread where sets are large.
    """
    return _load(root, metadata, previous, now)


def recall_trusted(root: bytes, metadata: TrustMetadata) -> TrustedMetadata:
    """Verify a set this node stored itself, expiry aside: what it is after a restart until it hears something newer.

    It serves as ``previous``, and tells what may still run. To seed, stage or ARM by it, call ``check_expiry`` too.
    """
    return _load(root, metadata, None, None)


def check_expiry(trusted: TrustedMetadata, now: datetime, release: str = "") -> None:
    """Raise GateError (freshness) if a file has expired that all depends on, or that this release depends on."""
    for role, signed in _files(trusted, release):
        _check_fresh(role, signed, now)


def _load(
    pinned: bytes, metadata: TrustMetadata, previous: TrustedMetadata | None, now: datetime | None
) -> TrustedMetadata:
    root, root_data = follow_roots(pinned, metadata.roots, previous)
    known = _Known.of(previous, root)
    timestamp = _verified(Timestamp, "timestamp", metadata.timestamp, root)
    _check_timestamp(timestamp, known)
    snapshot = _listed(Snapshot, "snapshot", metadata.snapshot, root, timestamp.snapshot_meta)
    meta = _meta(snapshot, "targets")
    _check_not_lower("targets.json", meta.version, _listed_targets(known))
    targets = _listed(Targets, "targets", metadata.targets, root, meta)
    _check_not_lower("targets", targets.version, known.targets.version if known.targets else 0)
    _check_counts(targets)
    _check_listing(snapshot, targets, previous)
    delegated = _load_delegated(metadata.delegated, targets, snapshot)
    trusted = TrustedMetadata(
        root=root,
        root_data=root_data,
        timestamp=timestamp,
        snapshot=snapshot,
        targets=targets,
        delegated=delegated,
        source=_with_known_roots(metadata, root_data, pinned, previous),
        _vouched=vouch(targets, delegated),
    )
    if now is not None:
        check_expiry(trusted, now)
    return trusted


def follow_roots(pinned: bytes, roots: tuple[bytes, ...], previous: TrustedMetadata | None) -> tuple[Root, bytes]:
    """The newest root that the pinned one leads to, and its bytes; raises SignatureGateError. Expiry is not judged."""
    data = pinned
    trusted = _verified(Root, "root", pinned, None)
    if previous is not None and previous.root.version >= trusted.version:
        trusted, data = previous.root, previous.root_data
    if len(roots) > MAX_ROOTS:
        msg = f"{len(roots)} roots; at most {MAX_ROOTS} are accepted"
        raise SignatureGateError(msg)
    for candidate in roots:
        root = _parse(Root, "root", candidate).signed
        if root.version <= trusted.version:
            continue
        if root.version != trusted.version + 1:
            msg = f"root version {root.version} comes after {trusted.version}: one is missing between them"
            raise SignatureGateError(msg)
        _verified(Root, "root", candidate, trusted)
        trusted, data = _verified(Root, "root", candidate, None), candidate
    return trusted, data


def _with_known_roots(
    metadata: TrustMetadata, root_data: bytes, pinned: bytes, previous: TrustedMetadata | None
) -> TrustMetadata:
    """The set with the roots this node knows, where the sender's are behind them."""
    if previous is None or root_data in {pinned, *metadata.roots}:
        return metadata
    return replace(metadata, roots=previous.source.roots)


@dataclass(frozen=True, slots=True)
class _Known:
    """What of the previous set still binds: everything said with keys that root has not replaced since."""

    timestamp: Timestamp | None = None
    snapshot: Snapshot | None = None
    targets: Targets | None = None

    @classmethod
    def of(cls, previous: TrustedMetadata | None, root: Root) -> _Known:
        if previous is None:
            return cls()

        def bound(role: str) -> bool:
            before, after = (_role_keys(one.roles[role], one.keys) for one in (previous.root, root))
            return continues(before, after)

        online = bound("timestamp") and bound("snapshot")
        return cls(
            previous.timestamp if online else None,
            previous.snapshot if online else None,
            previous.targets if bound("targets") else None,
        )


def continues(before: RoleKeys, after: RoleKeys) -> bool:
    """Whether a role with new keys is still bound by what it said: enough of the old ones stay to say it again."""
    return len(before.keys.keys() & after.keys.keys()) >= after.threshold


def _check_timestamp(timestamp: Timestamp, known: _Known) -> None:
    before = known.timestamp
    if before is None:
        return
    _check_not_lower("timestamp", timestamp.version, before.version)
    _check_not_lower("snapshot", timestamp.snapshot_meta.version, before.snapshot_meta.version)
    if timestamp.version == before.version and timestamp != before:
        msg = f"two different timestamps of version {timestamp.version}: the online keys contradict themselves"
        raise GateError(Gate.REPLAY.value, msg)


def _listed_targets(known: _Known) -> int:
    before = known.snapshot.meta.get("targets.json") if known.snapshot else None
    return before.version if before else 0


def _check_listing(snapshot: Snapshot, targets: Targets, previous: TrustedMetadata | None) -> None:
    """No class role's file goes back or disappears while its keys bind it."""
    for role, before in previous.delegated.items() if previous is not None else ():
        after = delegated_keys(targets, role)
        was = delegated_keys(previous.targets, role) if previous is not None else None
        if after is None or was is None or not continues(was, after):
            continue
        if f"{role}.json" not in snapshot.meta:
            msg = f"snapshot version {snapshot.version} no longer lists {role}.json"
            raise GateError(Gate.REPLAY.value, msg)
        _check_not_lower(f"{role}.json", snapshot.meta[f"{role}.json"].version, before.version)


def delegated_keys(targets: Targets, role: str) -> RoleKeys | None:
    """Keys of a role that targets.json delegates to; None where it does not."""
    delegations = targets.delegations
    found = (delegations.roles or {}).get(role) if delegations else None
    return _role_keys(found, delegations.keys) if delegations and found else None


def _load_delegated(files: Mapping[str, bytes], targets: Targets, snapshot: Snapshot) -> dict[str, Targets]:
    """The files of class roles: each delegated to, each listed, and none of those listed left out."""
    if len(files) > MAX_DELEGATED:
        msg = f"{len(files)} delegated files; at most {MAX_DELEGATED} are accepted"
        raise SignatureGateError(msg)
    roles = class_roles(targets)
    for role in sorted(files.keys() - roles.keys()):
        msg = f"{role}.json is not delegated to by targets.json version {targets.version}, or is no file of a class"
        raise SignatureGateError(msg)
    for role in sorted(roles.keys() - files.keys()):
        if f"{role}.json" in snapshot.meta:
            msg = f"snapshot version {snapshot.version} lists {role}.json, which did not come along"
            raise SignatureGateError(msg)
    loaded = {role: _listed(Targets, role, files[role], targets, _meta(snapshot, role)) for role in sorted(files)}
    for one in loaded.values():
        _check_counts(one)
    return loaded


@dataclass(frozen=True, slots=True)
class _File(Generic[M]):
    """A parsed file: its content, the bytes that were signed, and the signatures by key id."""

    signed: M
    signed_bytes: bytes
    signatures: dict[str, Signature]


def _parse(cls: type[M], role: str, data: bytes) -> _File[M]:
    limit = MAX_FILE_BYTES.get(role, MAX_TARGETS_BYTES)
    if len(data) > limit:
        msg = f"{role}.json of {len(data)} bytes; at most {limit} are accepted"
        raise SignatureGateError(msg)
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
        file = _File(metadata.signed, metadata.signed_bytes, metadata.signatures)
    except (DeserializationError, SerializationError) as error:
        msg = f"{role}.json is no TUF metadata: {error.__cause__ or error}"
        raise SignatureGateError(msg) from error
    if not isinstance(file.signed, cls):
        msg = f"{role}.json holds {metadata.signed.type} metadata"
        raise SignatureGateError(msg)
    return file


def _verified(cls: type[M], role: str, data: bytes, delegator: Root | Targets | None) -> M:
    """Parse a file and check that enough of the delegator's keys for the role signed it; None: it signs itself."""
    file = _parse(cls, role, data)
    signer = delegator if delegator is not None else file.signed
    if not isinstance(signer, (Root, Targets)):
        msg = f"{role} metadata cannot vouch for itself"
        raise TypeError(msg)
    _check_keys(signer)
    try:
        signer.verify_delegate(role, file.signed_bytes, file.signatures)
    except (UnsignedMetadataError, ValueError) as error:
        msg = f"{role}.json version {file.signed.version}: {error}"
        raise SignatureGateError(msg) from error
    return file.signed


def _listed(cls: type[M], role: str, data: bytes, delegator: Root | Targets, meta: MetaFile) -> M:
    """Like _verified, for a file whose version, length and hashes another one states."""
    try:
        meta.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        msg = f"{role}.json is not the one listed: {error}"
        raise SignatureGateError(msg) from error
    signed = _verified(cls, role, data, delegator)
    if signed.version != meta.version:
        msg = f"{role}.json has version {signed.version}, listed is {meta.version}: the files are of different sets"
        raise SignatureGateError(msg)
    return signed


def _meta(snapshot: Snapshot, role: str) -> MetaFile:
    meta = snapshot.meta.get(f"{role}.json")
    if meta is None:
        msg = f"snapshot version {snapshot.version} does not list {role}.json"
        raise SignatureGateError(msg)
    return meta


def _check_not_lower(what: str, version: int, known: int) -> None:
    if version < known:
        msg = f"{what} version {version} is older than {known}, which this node knows already"
        raise GateError(Gate.REPLAY.value, msg)


def _check_fresh(role: str, signed: Signed, now: datetime) -> None:
    if signed.is_expired(now):
        msg = f"{role}.json version {signed.version} expired at {signed.expires.isoformat()}"
        raise GateError(Gate.FRESHNESS.value, msg)


def _files(trusted: TrustedMetadata, release: str) -> Iterator[tuple[str, Signed]]:
    yield "root", trusted.root
    yield "timestamp", trusted.timestamp
    yield "snapshot", trusted.snapshot
    yield "targets", trusted.targets
    role = trusted.role_of(release) if release else ""
    if role in trusted.delegated:
        yield role, trusted.delegated[role]


def _role_keys(role: Role, keys: Mapping[str, Key]) -> RoleKeys:
    return RoleKeys({keyid: keys[keyid] for keyid in role.keyids if keyid in keys}, role.threshold)


def _check_keys(delegator: Root | Targets) -> None:
    """Every role of the delegator has few enough keys, each of them once."""
    if isinstance(delegator, Root):
        source: Root | Delegations | None = delegator
        roles = dict(delegator.roles)
    else:
        source = delegator.delegations
        roles = dict(source.roles or {}) if source else {}
    for name, role in roles.items():
        keys = _role_keys(role, source.keys if source else {}).keys
        distinct = {str(key.keyval.get("public", "")).strip() for key in keys.values()}
        if len(role.keyids) > MAX_KEYS_PER_ROLE or len(distinct) != len(role.keyids):
            msg = (
                f"role {name!r} lists {len(role.keyids)} key ids for {len(distinct)} keys; at most {MAX_KEYS_PER_ROLE}"
            )
            raise SignatureGateError(msg)


def _check_counts(targets: Targets) -> None:
    roles = targets.delegations.roles or {} if targets.delegations else {}
    if len(targets.targets) > MAX_TARGET_FILES or len(roles) > MAX_DELEGATED:
        msg = f"{len(targets.targets)} targets, {len(roles)} roles; at most {MAX_TARGET_FILES} and {MAX_DELEGATED}"
        raise SignatureGateError(msg)
    _check_keys(targets)
