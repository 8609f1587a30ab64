"""Whose word on a release counts; what a stolen class key can do is in tests/security/test_compromised_class_key.py."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import permutations
from typing import TYPE_CHECKING

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Targets

from tests.conftest import make_manifest
from wavemesh.trust.files import read_targets
from wavemesh.trust.repository import add_release, revoke_release, sign_bundle
from wavemesh.trust.vouching import class_role, is_class_role, owner_of, vouch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from securesystemslib.signer import Key

NOW = datetime.now(UTC)
SIGNER = CryptoSigner.generate_ed25519()


def role(name: str, *paths: str) -> DelegatedRole:
    return DelegatedRole(name, [SIGNER.public_key.keyid], 1, terminating=True, paths=list(paths))


def top(*roles: DelegatedRole) -> Targets:
    keys: dict[str, Key] = {SIGNER.public_key.keyid: SIGNER.public_key}
    return Targets(delegations=Delegations(keys, {one.name: one for one in roles}))


def file_of(device_class: str, *names: str, revoked: Sequence[str] = ()) -> Targets:
    data = b""
    for name in names:
        manifest = make_manifest(name, device_class=device_class, config=None)
        data = add_release(data, manifest, sign_bundle(manifest, SIGNER), NOW)
    for name in revoked:
        data = revoke_release(data, name, f"by {device_class}", NOW)
    return read_targets(data).signed


def test_a_name_of_two_roles_is_neither_s() -> None:
    """Release keys gave overlapping names by mistake: no role gains by it, whatever the order."""
    wide, narrow = role("class-pos", "pos-*"), role("class-pos-tablet", "pos-tablet-*")
    assert owner_of("pos-1", [wide, narrow]) == owner_of("pos-1", [narrow, wide]) == "class-pos"
    assert owner_of("pos-tablet-1", [wide, narrow]) == owner_of("pos-tablet-1", [narrow, wide]) == ""
    assert owner_of("scanner-1", [wide, narrow]) == ""


def test_the_order_of_roles_and_files_changes_nothing() -> None:
    roles = (role("class-a", "a-*", "x-*"), role("class-b", "b-*"), role("class-c", "c-*", "x-*"))
    files = {
        "class-a": file_of("a", "a-1", "a-2", "x-1", "b-1", revoked=["a-2", "b-1", "c-1"]),
        "class-b": file_of("b", "b-1", "c-1", revoked=["b-9"]),
        "class-c": file_of("c", "c-1", "x-1"),
    }
    results = [
        vouch(top(*ordered), dict(items)) for ordered in permutations(roles) for items in permutations(files.items())
    ]
    assert all(result == results[0] for result in results)
    assert set(results[0].releases) == {"a-1", "b-1", "c-1"}
    assert results[0].roles == {"a-1": "class-a", "a-2": "class-a", "b-1": "class-b", "c-1": "class-c"}
    assert results[0].revocations == {"a-2": "by a", "b-9": "by b"}
    assert set(results[0].malformed) == {"class-a:x-1", "class-a:b-1", "class-b:c-1", "class-c:x-1"}


def test_a_role_without_names_vouches_for_nothing() -> None:
    found = vouch(top(role("class-a")), {"class-a": file_of("a", "a-1", revoked=["a-2"])})
    assert not found.releases
    assert not found.revocations


@pytest.mark.parametrize(("name", "expected"), [("class-a", True), ("class-", False), ("control", False)])
def test_class_roles_by_name(name: str, expected: bool) -> None:  # noqa: FBT001
    assert is_class_role(name) is expected
    assert is_class_role(class_role("a"))
