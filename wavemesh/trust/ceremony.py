"""Ceremonies: the next root.json or targets.json as a draft, who has to sign it, and what would lock everybody out.

Pure functions from bytes to bytes; a draft carries no signatures. A root is signed by the threshold of the root before
and by its own, targets.json by the release keys of the root, a class role's file by the keys in targets.json. Refused
with UnsafeCeremonyError, because nobody could repair it afterwards: a role with fewer keys than its threshold or none,
a key that would count twice or speak for two roles (one thief, two roles), and two class roles that share names.

A class role is never taken out: ``withdraw`` leaves it without names, so that its file stays and cannot go back.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Role, Root, Targets

from wavemesh.errors import NotFoundError, PeerError
from wavemesh.trust.envelope import CONTROL_ROLE
from wavemesh.trust.files import (
    NO_TARGETS,
    BadRepositoryFileError,
    expiry,
    next_version,
    read_metadata,
    read_targets,
    to_bytes,
)
from wavemesh.trust.metadata import MAX_KEYS_PER_ROLE, RoleKeys
from wavemesh.trust.releases import RELEASE_ROLE, is_name
from wavemesh.trust.vouching import class_role, class_roles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from securesystemslib.signer import Key

NAME_FIELD = "wavemesh-name"
"""Field of a key in root.json and targets.json: what people call it. Signed along, and no part of the key's id."""
ROOT_ROLE = "root"
ONLINE_ROLES = ("snapshot", "timestamp")
"""Control signs both with one key."""


class UnsafeCeremonyError(PeerError):
    """What is drafted would lock somebody out, or let one key do what takes two."""

    reason = "UNSAFE_CEREMONY"


@dataclass(frozen=True, slots=True)
class Standing:
    """Signatures on a file as one delegator counts them: ``by`` says which, as people say it."""

    by: str
    threshold: int
    signed: Mapping[str, Key]
    unsigned: Mapping[str, Key]

    @property
    def missing(self) -> int:
        """Signatures still needed."""
        return max(0, self.threshold - len(self.signed))


def key_name(key: Key) -> str:
    """What people call a key, with the beginning of its id."""
    name = key.unrecognized_fields.get(NAME_FIELD, "")
    return f"{name} ({key.keyid[:8]})" if name else key.keyid[:16]


def role_names(key: Key, root: Root | None, targets: Targets | None) -> list[str]:
    """The roles a key speaks for."""
    roles = [name for name, role in (root.roles.items() if root else ()) if key.keyid in role.keyids]
    delegated = (targets.delegations.roles or {}) if targets and targets.delegations else {}
    return roles + [name for name, role in delegated.items() if key.keyid in role.keyids]


def draft_root(previous: bytes | None, roles: Mapping[str, RoleKeys], now: datetime) -> bytes:
    """The next root.json with those roles replaced: ``root``, ``targets``, ``snapshot``, ``timestamp``.

    The first one needs all four. Raises UnsafeCeremonyError.
    """
    before: dict[str, RoleKeys] = {}
    version = 1
    if previous is not None:
        root = read_root(previous)
        before = {name: keys_of(role, root.keys) for name, role in root.roles.items()}
        version = root.version + 1
    wanted = {**before, **roles}
    _check_roles({name: wanted.get(name, RoleKeys({}, 1)) for name in (ROOT_ROLE, RELEASE_ROLE, *ONLINE_ROLES)})
    signed = Root(
        version=version,
        expires=expiry("root", now),
        keys={keyid: key for role in wanted.values() for keyid, key in role.keys.items()},
        roles={name: Role(list(role.keys), role.threshold) for name, role in wanted.items()},
    )
    return to_bytes(Metadata(signed))


def draft_targets(previous: bytes | None, control: RoleKeys, now: datetime) -> bytes:
    """The next targets.json, in which those keys speak as control; the first one has no releases."""
    metadata = read_targets(previous or NO_TARGETS)
    role = DelegatedRole(CONTROL_ROLE, list(control.keys), control.threshold, terminating=True, paths=[])
    _put_role(metadata.signed, role, control)
    return next_version(metadata, now)


def delegate(targets: bytes, device_class: str, keys: RoleKeys, names: Sequence[str], now: datetime) -> bytes:
    """The next targets.json, in which those keys vouch for a class, by names of the form ``PREFIX*``.

    An existing role gets these keys and names instead of its own. Raises UnsafeCeremonyError.
    """
    if not is_name(device_class):
        msg = f"{device_class!r} is no device class"
        raise UnsafeCeremonyError(msg)
    metadata = read_targets(targets)
    name = class_role(device_class)
    for pattern in names:
        _check_pattern(pattern)
        for other in class_roles(metadata.signed).values():
            shared = [one for one in other.paths or () if other.name != name and _overlap(one, pattern)]
            if shared:
                msg = (
                    f"names {pattern} and {shared[0]} of {other.name} overlap, and a name that two classes share is "
                    "neither's: choose another --names"
                )
                raise UnsafeCeremonyError(msg)
    role = DelegatedRole(name, list(keys.keys), keys.threshold, terminating=True, paths=list(names))
    _put_role(metadata.signed, role, keys)
    return next_version(metadata, now)


def withdraw(targets: bytes, device_class: str, now: datetime) -> bytes:
    """The next targets.json, in which the class's role vouches for nothing; raises NotFoundError."""
    metadata = read_targets(targets)
    role = class_roles(metadata.signed).get(class_role(device_class))
    if role is None:
        known = ", ".join(sorted(class_roles(metadata.signed))) or "none"
        msg = f"targets.json delegates nothing to {class_role(device_class)}; class roles are {known}"
        raise NotFoundError(msg)
    role.paths = []
    return next_version(metadata, now)


def replace_key(data: bytes, old: Key, new: Key, now: datetime) -> bytes:
    """The next root.json or targets.json with ``new`` for ``old``; raises NotFoundError, UnsafeCeremonyError."""
    metadata = read_metadata(data)
    signed = metadata.signed
    holder: Any = signed if isinstance(signed, Root) else signed.delegations
    changed = [role for role in (holder.roles or {}).values() if old.keyid in role.keyids]
    if not changed:
        msg = f"key {key_name(old)} has no role in this {signed.type}.json"
        raise NotFoundError(msg)
    for role in changed:
        if new.keyid in role.keyids:
            msg = f"key {key_name(new)} is one of the role's keys, which would have one less"
            raise UnsafeCeremonyError(msg)
        role.keyids = [new.keyid if keyid == old.keyid else keyid for keyid in role.keyids]
    del holder.keys[old.keyid]
    holder.keys[new.keyid] = new
    _check_roles({name: keys_of(role, holder.keys) for name, role in holder.roles.items()})
    return next_version(metadata, now)


def renew(data: bytes, now: datetime) -> bytes:
    """The next version of a file, unchanged but for its expiry: to be signed by keys that are new, or anew."""
    return next_version(read_metadata(data), now)


def at_version(data: bytes, version: int) -> bytes:
    """The draft as that version, without signatures: several changes make one version."""
    metadata = read_metadata(data)
    metadata.signed.version = version
    metadata.signatures.clear()
    return to_bytes(metadata)


def says_the_same(one: bytes, two: bytes) -> bool:
    """Whether two files differ in nothing but version, expiry and signatures."""
    first, second = (read_metadata(data).signed.to_dict() for data in (one, two))
    return {**first, "version": 0, "expires": ""} == {**second, "version": 0, "expires": ""}


def standings(data: bytes, role: str, delegators: Mapping[str, Root | Targets]) -> tuple[Standing, ...]:
    """How the signatures of a file stand with each of its delegators, by what people call them."""
    metadata = read_metadata(data)
    found: list[Standing] = []
    for by, delegator in delegators.items():
        result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        found.append(Standing(by, result.threshold, result.signed, result.unsigned))
    return tuple(found)


def root_delegators(previous: bytes | None, data: bytes) -> dict[str, Root | Targets]:
    """Who has to sign a root: the root before it, and itself."""
    root = read_root(data)
    own: dict[str, Root | Targets] = {f"root keys of version {root.version}": root}
    if previous is None:
        return own
    before = read_root(previous)
    return {f"root keys of version {before.version}": before, **own}


def read_root(data: bytes) -> Root:
    """A root.json, whoever signed it; raises BadRepositoryFileError."""
    signed = read_metadata(data).signed
    if not isinstance(signed, Root):
        msg = f"this is {signed.type} metadata, not root.json"
        raise BadRepositoryFileError(msg)
    return signed


def keys_of(role: Role, keys: Mapping[str, Key]) -> RoleKeys:
    """Keys of a role as the file has them."""
    return RoleKeys({keyid: keys[keyid] for keyid in role.keyids if keyid in keys}, role.threshold)


def _put_role(targets: Targets, role: DelegatedRole, keys: RoleKeys) -> None:
    delegations = targets.delegations or Delegations({}, {})
    roles = {**(delegations.roles or {}), role.name: role}
    known = {**delegations.keys, **keys.keys}
    used = {keyid for one in roles.values() for keyid in one.keyids}
    targets.delegations = Delegations({keyid: key for keyid, key in known.items() if keyid in used}, copy.copy(roles))
    _check_roles({name: keys_of(one, known) for name, one in roles.items()})


def _check_roles(roles: Mapping[str, RoleKeys]) -> None:
    owner: dict[str, str] = {}
    for name, (keys, threshold) in roles.items():
        if not 1 <= threshold <= len(keys) <= MAX_KEYS_PER_ROLE:
            msg = (
                f"role {name} would have {len(keys)} keys and need {threshold} signatures: nobody could sign for it; "
                f"give 1 to {MAX_KEYS_PER_ROLE} keys and a threshold of at most their number"
            )
            raise UnsafeCeremonyError(msg)
        for keyid, key in keys.items():
            other = owner.setdefault(keyid, name)
            if other != name and {other, name} != set(ONLINE_ROLES):
                msg = f"key {key_name(key)} would speak for {other} and {name}: a key has one role, make another"
                raise UnsafeCeremonyError(msg)


def _check_pattern(pattern: str) -> None:
    if not pattern.endswith("*") or not is_name(pattern[:-1]):
        msg = f"names {pattern!r} must be a prefix and a star, like 'pos-tablet-*'"
        raise UnsafeCeremonyError(msg)


def _overlap(one: str, two: str) -> bool:
    first, second = one.rstrip("*"), two.rstrip("*")
    return first.startswith(second) or second.startswith(first)


def merged_keys(keys: Iterable[Key], threshold: int) -> RoleKeys:
    """Keys for a role; UnsafeCeremonyError where one is given twice."""
    found: dict[str, Key] = {}
    for key in keys:
        if key.keyid in found:
            msg = f"key {key_name(key)} is given twice and would count once"
            raise UnsafeCeremonyError(msg)
        found[key.keyid] = key
    return RoleKeys(found, threshold)
