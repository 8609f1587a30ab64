"""Who vouches for which release: targets.json for every class, a role ``class-NAME`` for that class alone.

Pure. Rules, none of which depends on the order of files, roles or releases:

1.  targets.json (role ``targets``, the release keys) may define and revoke any release, and always wins: a name that it
    uses, for a release or an artifact, readable or not, is nobody else's.
2.  A class role defines only releases of its own device class whose names (the release's and its artifacts') match the
    paths that targets.json gives the role. A name that matches the paths of two class roles belongs to neither, so one
    role can never take, hide or revoke what is another's.
3.  A class role revokes only names that are its own by 1 and 2.
4.  What a role says beyond this is passed over with its reason, and hides nothing of anybody else.

Role ``control`` is no class role: no file of it is ever read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wavemesh.trust.envelope import SignatureGateError
from wavemesh.trust.releases import CUSTOM_KEY, RELEASE_ROLE, BadManifestError, ReleaseManifest, manifest_from_json
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tuf.api.metadata import DelegatedRole, TargetFile, Targets

REVOKED_FIELD = "wavemesh-revoked"
CLASS_ROLE_PREFIX = "class-"


@dataclass(frozen=True, slots=True)
class Vouched:
    """What all targets files together say. ``roles`` has the role that vouches, by release; ``malformed`` what counts
    for nothing and why, by release or, where the name is not the role's, by ``role:release``.
    """

    releases: dict[str, ReleaseManifest] = field(default_factory=dict)
    revoked: dict[str, ReleaseManifest] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    revocations: dict[str, str] = field(default_factory=dict)
    malformed: dict[str, str] = field(default_factory=dict)


def class_role(device_class: str) -> str:
    """The role that may vouch for that class."""
    return CLASS_ROLE_PREFIX + device_class


def is_class_role(role: str) -> bool:
    """Whether a role is for one device class."""
    return role.startswith(CLASS_ROLE_PREFIX) and len(role) > len(CLASS_ROLE_PREFIX)


def class_roles(targets: Targets) -> dict[str, DelegatedRole]:
    """The class roles that targets.json delegates to, by name."""
    roles = (targets.delegations.roles or {}) if targets.delegations else {}
    return {name: role for name, role in roles.items() if is_class_role(name)}


def owner_of(name: str, roles: Iterable[DelegatedRole]) -> str:
    """The one class role whose paths match the name of a release or an artifact; empty for none or several."""
    matching = [role.name for role in roles if role.is_delegated_path(name)]
    return matching[0] if len(matching) == 1 else ""


def vouch(top: Targets, classes: Mapping[str, Targets]) -> Vouched:
    """What targets.json and the files of class roles say together; raises SignatureGateError for unreadable targets."""
    found = Vouched()
    releases, malformed = read_releases(top)
    found.malformed.update(malformed)
    found.revocations.update(revocations_of(top))
    _file(found, RELEASE_ROLE, releases)
    taken = frozenset({*top.targets, *releases, *malformed})
    roles = tuple(class_roles(top).values())
    for role, targets in classes.items():
        _add_class(found, role, targets, roles, taken)
    for name in found.releases.keys() & found.revocations.keys():
        found.revoked[name] = found.releases.pop(name)
    return found


def revocations_of(targets: Targets) -> Mapping[str, str]:
    """The signed revocations of one file; raises SignatureGateError for a form that cannot be read."""
    found = targets.unrecognized_fields.get(REVOKED_FIELD, {})
    if not isinstance(found, dict) or not all(isinstance(reason, str) for reason in found.values()):
        msg = f"targets.json: {REVOKED_FIELD} must map names of releases to reasons"
        raise SignatureGateError(msg)
    return found


def objection(release: ReleaseManifest, role: str, roles: Iterable[DelegatedRole], taken: frozenset[str]) -> str:
    """Why a class role cannot vouch for a release, given the names that targets.json uses; empty where it can."""
    if class_role(release.device_class) != role:
        return f"it is for class {release.device_class}, for which {role} cannot vouch"
    roles = tuple(roles)
    for name in (release.name, *(artifact.name for artifact in release.artifacts)):
        if name in taken:
            return f"targets.json uses the name {name} itself"
        if owner_of(name, roles) != role:
            return f"the name {name} does not belong to {role} alone by the paths in targets.json"
    return ""


def _add_class(
    found: Vouched, role: str, targets: Targets, roles: tuple[DelegatedRole, ...], taken: frozenset[str]
) -> None:
    releases, malformed = read_releases(targets)
    for name, release in list(releases.items()):
        problem = objection(release, role, roles, taken)
        if problem:
            malformed[name] = problem
            del releases[name]

    def is_own(name: str) -> bool:
        return name not in taken and owner_of(name, roles) == role

    _file(found, role, releases)
    found.malformed.update({name if is_own(name) else f"{role}:{name}": why for name, why in malformed.items()})
    try:
        said = revocations_of(targets)
    except SignatureGateError as error:
        # Which of its releases it takes back cannot be read: so none of them counts, and nobody else's is concerned.
        for name in releases:
            del found.releases[name], found.roles[name]
            found.malformed[name] = str(error)
        return
    # What targets.json says of a name is said first and stays.
    for name, reason in said.items():
        if is_own(name):
            found.revocations.setdefault(name, reason)


def _file(found: Vouched, role: str, releases: Mapping[str, ReleaseManifest]) -> None:
    found.releases.update(releases)
    found.roles.update(dict.fromkeys(releases, role))


def read_releases(targets: Targets) -> tuple[dict[str, ReleaseManifest], dict[str, str]]:
    """Releases by name; and why others cannot be read, by their name or that of the target that carries them."""
    releases: dict[str, ReleaseManifest] = {}
    malformed: dict[str, str] = {}
    for path, file in sorted(targets.targets.items()):
        custom = file.custom
        if not isinstance(custom, dict) or CUSTOM_KEY not in custom:
            continue
        try:
            release = _read_release(custom[CUSTOM_KEY], path, targets.targets)
            if release.name in releases:
                msg = f"release {release.name} is defined twice"
                raise BadManifestError(msg)
        except BadManifestError as error:
            claimed = custom[CUSTOM_KEY].get("name") if isinstance(custom[CUSTOM_KEY], dict) else None
            malformed[claimed if isinstance(claimed, str) else path] = str(error)
            continue
        releases[release.name] = release
    return {name: one for name, one in releases.items() if name not in malformed}, malformed


def _read_release(value: object, path: str, files: Mapping[str, TargetFile]) -> ReleaseManifest:
    signature = files.get(str(value.get("signature"))) if isinstance(value, dict) else None
    if signature is None:
        msg = f"the signature bundle of {path} is no target"
        raise BadManifestError(msg)
    release = manifest_from_json(value, Digest(signature.hashes.get("sha256", ""), signature.length))
    if release.main.name != path:
        msg = f"the manifest of {release.main.name} stands at {path}"
        raise BadManifestError(msg)
    for artifact in release.artifacts:
        file = files.get(artifact.name)
        if file is None or artifact.digest != Digest(file.hashes.get("sha256", ""), file.length):
            msg = f"artifact {artifact.name} is no target, or one of another digest"
            raise BadManifestError(msg)
    return release
