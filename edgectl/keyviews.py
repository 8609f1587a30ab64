"""What keys and ceremony files look like to a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgectl.output import Table
from edgectl.trustdir import TrustDirectory, roles_of
from wavemesh.trust.ceremony import key_name, read_root, role_names
from wavemesh.trust.files import BadRepositoryFileError, read_metadata, read_targets
from wavemesh.trust.keys import load_public, load_signer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgectl.trustdir import TrustFile


def describe(path: Path, directory: Path | None) -> dict[str, Any]:
    """A key's file, public or private, or a metadata file; raises KeyFileError for what is neither."""
    from edgectl.files import read_file

    data = read_file(path)
    try:
        metadata = read_metadata(data)
    except BadRepositoryFileError:
        return _describe_key(path, data, directory)
    roles = {
        name: {"threshold": role.threshold, "keys": [key_name(key) for key in role.keys.values()]}
        for name, role in roles_of(data).items()
    }
    signed = metadata.signed
    return {
        "file": str(path),
        "kind": signed.type,
        "version": int(signed.version),
        "expires": signed.expires.isoformat(),
        "roles": roles,
        "signatures": sorted(metadata.signatures),
    }


def files_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """One row a file."""
    rows = [
        (one["file"], one["kind"], one["keyid"], ", ".join(one["roles"]) or "-")
        if "keyid" in one
        else (
            one["file"],
            f"{one['kind']} version {one['version']}, expires {one['expires']}",
            f"{len(one['signatures'])} signatures",
            "; ".join(f"{name}: {r['threshold']} of {', '.join(r['keys'])}" for name, r in one["roles"].items()),
        )
        for one in found
    ]
    return Table("", ("file", "kind", "id", "roles"), rows)


def reviews_table(reviews: Sequence[TrustFile]) -> Table:
    """One row a file of a ceremony."""
    rows = [
        (
            file.name,
            "complete" if file.complete else "outlived" if file.outlived else "draft",
            "; ".join(f"{len(one.signed)} of {one.threshold} by {one.by}" for one in file.standings),
            read_metadata(file.data).signed.expires.date().isoformat(),
        )
        for file in reviews
    ]
    return Table("", ("file", "state", "signatures", "expires"), rows)


def _describe_key(path: Path, data: bytes, directory: Path | None) -> dict[str, Any]:
    is_private = b"PRIVATE KEY" in data
    key, kind = (load_signer(path).public_key, "private key") if is_private else (load_public(path), "public key")
    roles: list[str] = []
    if directory is not None:
        trust = TrustDirectory(directory)
        root, targets = trust.newest("root"), trust.newest("targets")
        roles = role_names(key, read_root(root) if root else None, read_targets(targets).signed if targets else None)
    return {"file": str(path), "kind": f"{kind}, {key.scheme}", "keyid": key.keyid, "roles": roles}
