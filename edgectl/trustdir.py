"""A ceremony's directory: the TUF files that people carry from one holder of keys to the next.

    DIR/1.root.json … N.root.json    every version of the root, from the one that nodes pin
    DIR/V.targets.json               targets.json: control's keys, class roles, releases
    DIR/V.class-NAME.json            the file of a class role

The newest file of a name is a draft until enough keys signed it. Each step works on drafts only and can be done again:
what says the same already is left as it is, with its signatures; what says something else is not overwritten.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tuf.api.metadata import Root, Targets

from edgectl.exits import UsageError
from edgectl.files import read_file
from wavemesh.errors import ConflictError
from wavemesh.runtime.durable import Disk
from wavemesh.trust.ceremony import (
    Standing,
    key_name,
    keys_of,
    read_root,
    renew,
    root_delegators,
    says_the_same,
    standings,
)
from wavemesh.trust.files import read_metadata, read_targets, sign_metadata
from wavemesh.trust.metadata import MAX_ROOTS, delegated_keys
from wavemesh.trust.releases import RELEASE_ROLE
from wavemesh.trust.vouching import class_roles, vouch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

    from securesystemslib.signer import Key, Signer

    from wavemesh.trust.metadata import RoleKeys

ROOT = "root"
_FILE = re.compile(r"([1-9][0-9]{0,8})\.(root|targets|class-[A-Za-z0-9._+-]{1,128})\.json")


@dataclass(frozen=True, slots=True)
class TrustFile:
    """One file: its role, its version, and how its signatures stand with each of its delegators.

    ``outlived``: it was complete by keys that have been replaced since; it takes no more signatures, it is renewed.
    """

    role: str
    version: int
    data: bytes
    standings: tuple[Standing, ...]
    outlived: bool = False

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.version}.{self.role}.json"

    @property
    def complete(self) -> bool:
        """Whether enough keys signed it."""
        return not any(standing.missing for standing in self.standings)

    @property
    def wanting(self) -> str:
        """Whose signatures are missing; empty for none."""
        return "; ".join(
            f"{one.missing} more of the {one.by}: {', '.join(key_name(key) for key in one.unsigned.values())}"
            for one in self.standings
            if one.missing
        )


class TrustDirectory:
    """The files of one ceremony."""

    def __init__(self, path: Path) -> None:
        """Read what is there; raises UsageError for roots that are not all there, BadRepositoryFileError."""
        self.path = path
        self._files: dict[str, dict[int, bytes]] = {}
        for file in sorted(path.iterdir()) if path.is_dir() else ():
            match = _FILE.fullmatch(file.name)
            if match is not None:
                self._files.setdefault(match[2], {})[int(match[1])] = read_file(file)
        versions = sorted(self._files.get(ROOT, {}))
        if versions != list(range(1, len(versions) + 1)) or len(versions) > MAX_ROOTS:
            raise UsageError(f"{path} must have every version of the root, 1.root.json to N.root.json: has {versions}")

    @property
    def roots(self) -> tuple[bytes, ...]:
        """All roots, in order."""
        return tuple(data for _, data in sorted(self._files.get(ROOT, {}).items()))

    def newest(self, role: str) -> bytes | None:
        """The newest file of a role; None if there is none."""
        files = self._files.get(role)
        return files[max(files)] if files else None

    def require(self, role: str) -> bytes:
        """The newest file of a role; raises UsageError with what makes one."""
        found = self.newest(role)
        if found is None:
            raise UsageError(f"{self.path} has no {role}.json: {_ORIGIN.get(role, _ORIGIN[RELEASE_ROLE])}")
        return found

    def class_files(self) -> Mapping[str, bytes]:
        """The newest file of each class role."""
        return {role: files[max(files)] for role, files in self._files.items() if role not in {ROOT, RELEASE_ROLE}}

    def reviews(self) -> Iterator[TrustFile]:
        """Every root, and the newest file of each other role, with its signatures."""
        before: bytes | None = None
        for version, data in enumerate(self.roots, start=1):
            yield TrustFile(ROOT, version, data, standings(data, ROOT, root_delegators(before, data)))
            before = data
        if RELEASE_ROLE in self._files:
            root = read_root(self.require(ROOT))
            yield self._review(RELEASE_ROLE, {f"release keys in root version {root.version}": root})
        for role in sorted(self.class_files()):
            targets = read_targets(self.require(RELEASE_ROLE)).signed
            if role not in class_roles(targets):
                raise ConflictError(f"{self.path}: targets.json delegates nothing to {role}: `edgectl keys delegate`")
            yield self._review(role, {f"keys of {role} in targets.json version {targets.version}": targets})

    def review(self, role: str) -> TrustFile | None:
        """The newest file of a role."""
        return next((one for one in reversed(list(self.reviews())) if one.role == role), None)

    def draft(self, role: str, make: Callable[[bytes | None], bytes]) -> tuple[str, bool]:
        """Write the next version as ``make`` has it; its name, and False where it was there already.

        Raises ConflictError for a draft that says something else.
        """
        newest = self.review(role)
        if newest is None:
            return self._write(role, make(None)), True
        if newest.complete or newest.outlived:
            made = make(newest.data)
            return (newest.name, False) if says_the_same(made, newest.data) else (self._write(role, made), True)
        made = make(self._files[role].get(newest.version - 1))
        if not says_the_same(made, newest.data):
            raise ConflictError(
                f"{self.path / newest.name} is a draft that says something else and waits for signatures "
                f"({newest.wanting}); let it be signed first, or delete it"
            )
        return newest.name, False

    def renew(self, role: str, now: datetime) -> tuple[str, bool]:
        """Write the next version of a file that says the same, for new keys or for longer; an incomplete one stays."""
        self.require(role)
        newest = self.review(role)
        if newest is None or newest.complete or newest.outlived:
            return self._write(role, renew(self.require(role), now)), True
        return newest.name, False

    def _write(self, role: str, data: bytes) -> str:
        self._check_one_role_a_key(role, data)
        name = file_name(role, int(read_metadata(data).signed.version))
        Disk().make_dir(self.path)
        Disk().write_atomic(self.path / name, data, 0o644)
        return name

    def sign(self, signer: Signer) -> list[str]:
        """Sign every draft that waits for this key; the names. Raises UsageError for a key without any role."""
        waiting = self.waiting_for(signer.public_key)
        for file in waiting:
            Disk().write_atomic(self.path / file.name, sign_metadata(file.data, signer), 0o644)
        return [file.name for file in waiting]

    def waiting_for(self, key: Key) -> list[TrustFile]:
        """Drafts that are incomplete and that this key can sign; raises UsageError for a key without any role."""
        reviews = list(self.reviews())
        heard = [one for file in reviews for one in file.standings if key.keyid in {*one.signed, *one.unsigned}]
        if not heard:
            raise UsageError(
                f"key {key_name(key)} has no say in any file of {self.path}: `edgectl keys show` tells roles"
            )
        return [
            file
            for file in reviews
            if not (file.complete or file.outlived) and any(key.keyid in one.unsigned for one in file.standings)
        ]

    def problems(self, now: datetime) -> list[str]:
        """Everything that keeps these files from being believed, in words."""
        found: list[str] = []
        for file in self.reviews():
            if not file.complete:
                renewed = f"; renew it: `edgectl keys renew --dir {self.path} {file.role}`" if file.outlived else ""
                found.append(f"{file.name}: {file.wanting}{renewed}")
            is_current = file.data == self.newest(file.role)
            expires = read_metadata(file.data).signed.expires
            if is_current and expires <= now:
                found.append(f"{file.name}: expired at {expires.isoformat()}: `edgectl keys renew`")
        targets = self.newest(RELEASE_ROLE)
        if targets is not None:
            classes = {role: read_targets(data).signed for role, data in self.class_files().items()}
            malformed = vouch(read_targets(targets).signed, classes).malformed
            found += [f"release {name}: {why}" for name, why in sorted(malformed.items())]
        return found

    def next_step(self) -> str:
        """What to type next."""
        for file in self.reviews():
            if file.outlived:
                return f"edgectl keys renew --dir {self.path} {file.role}   # the keys that signed it were replaced"
            if not file.complete:
                return f"edgectl keys sign --dir {self.path} --key KEY   # {file.name} needs {file.wanting}"
        if not self.roots:
            return f"edgectl keys root --dir {self.path} --root PUB … --release PUB … --online PUB"
        if self.newest(RELEASE_ROLE) is None:
            return f"edgectl keys targets --dir {self.path} --control PUB"
        return (
            f"edgectl keys publish --dir {self.path}   # or, before control's first start: "
            f"edgectl keys install --dir {self.path} --control DIR"
        )

    def _check_one_role_a_key(self, role: str, data: bytes) -> None:
        """Raise ConflictError for a key with a role in root.json and one in targets.json: one thief, two roles."""
        other = self.newest(RELEASE_ROLE if role == ROOT else ROOT)
        elsewhere = {keyid: name for name, keys in (roles_of(other) if other else {}).items() for keyid in keys.keys}
        for name, keys in roles_of(data).items():
            for key in keys.keys.values():
                held = elsewhere.get(key.keyid)
                if held is not None:
                    raise ConflictError(f"key {key_name(key)} has role {held} already; {name} needs another key")

    def _review(self, role: str, delegators: Mapping[str, Root | Targets]) -> TrustFile:
        version = max(self._files[role])
        data = self._files[role][version]
        found = TrustFile(role, version, data, standings(data, role, delegators))
        return found if found.complete else replace(found, outlived=self._was_complete(role, data))

    def _was_complete(self, role: str, data: bytes) -> bool:
        """Whether an earlier root or targets.json here took the file's signatures for enough."""
        above = self.roots if role == RELEASE_ROLE else self._files[RELEASE_ROLE].values()
        delegators = [read_metadata(one).signed for one in above]
        known = {
            f"{one.type} {one.version}": one for one in delegators if role == RELEASE_ROLE or role in class_roles(one)
        }
        return any(not standing.missing for standing in standings(data, role, known))


def file_name(role: str, version: int) -> str:
    """The name of a file in such a directory; UsageError for a role that is none: servers name roles, too."""
    name = f"{version}.{role}.json"
    if not _FILE.fullmatch(name):
        raise UsageError(f"{name!r} is no name of a file of root, targets or a class")
    return name


_ORIGIN = {
    ROOT: "`edgectl keys root` drafts the first one, `edgectl keys fetch` gets the published ones",
    RELEASE_ROLE: "`edgectl keys targets` drafts the first one, `edgectl keys fetch` gets the published one",
}


def roles_of(data: bytes) -> dict[str, RoleKeys]:
    """The roles that a root.json or targets.json gives, and their keys."""
    signed = read_metadata(data).signed
    if isinstance(signed, Root):
        return {name: keys_of(role, signed.keys) for name, role in signed.roles.items()}
    if not isinstance(signed, Targets) or signed.delegations is None:
        return {}
    found = {name: delegated_keys(signed, name) for name in signed.delegations.roles or {}}
    return {name: keys for name, keys in found.items() if keys is not None}


def changes(before: bytes | None, after: bytes) -> list[str]:
    """What a draft changes, role by role, in words."""
    old, new = roles_of(before) if before else {}, roles_of(after)
    lines: list[str] = []
    for role, (keys, threshold) in new.items():
        had = old.get(role)
        added = [f"+ {key_name(key)}" for keyid, key in keys.items() if had is None or keyid not in had.keys]
        gone = [f"- {key_name(key)}" for keyid, key in had.keys.items() if keyid not in keys] if had else []
        if added or gone or (had and had.threshold != threshold):
            lines.append(f"role {role}: {threshold} of {len(keys)} keys; {', '.join([*added, *gone]) or 'same keys'}")
    if isinstance(read_metadata(after).signed, Targets):
        lines += _target_changes(before, after)
    return lines


def _target_changes(before: bytes | None, after: bytes) -> Iterator[str]:
    old, new = (vouch(read_targets(data or b"").signed, {}) for data in (before, after))
    for name in sorted(new.releases.keys() - old.releases.keys()):
        yield f"release {name}"
    for name in sorted(new.revocations.keys() - old.revocations.keys()):
        yield f"revokes {name}: {new.revocations[name]}"
    for name, role in class_roles(read_targets(after).signed).items():
        was = class_roles(read_targets(before or b"").signed).get(name)
        if was is None or was.paths != role.paths:
            yield f"role {name} may use the names {', '.join(role.paths or ()) or 'none'}"
