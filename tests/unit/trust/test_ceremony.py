"""Drafts of root.json and targets.json: what they change, and what would lock everybody out."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from securesystemslib.signer import CryptoSigner

from wavemesh.errors import ConflictError, GateError, NotFoundError
from wavemesh.trust import ceremony
from wavemesh.trust.ceremony import UnsafeCeremonyError, draft_root, draft_targets, merged_keys
from wavemesh.trust.envelope import SignatureGateError
from wavemesh.trust.files import BadRepositoryFileError, read_metadata, sign_metadata
from wavemesh.trust.metadata import RoleKeys, load_trusted
from wavemesh.trust.repository import Update, is_published, publish, refresh_online, role_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import TrustKeys
    from wavemesh.trust.metadata import TrustedMetadata
    from wavemesh.trust.statements import TrustMetadata

NOW = datetime.now(UTC)


def make(count: int) -> list[CryptoSigner]:
    return [CryptoSigner.generate_ed25519() for _ in range(count)]


def load(keys: TrustKeys, published: TrustMetadata, previous: TrustedMetadata | None = None) -> TrustedMetadata:
    return load_trusted(keys.pinned_root, published, NOW, previous)


def unsafe(match: str) -> Any:
    return pytest.raises(UnsafeCeremonyError, match=match)


def test_a_root_that_nobody_could_sign_is_refused() -> None:
    one, two = make(2)
    good = {
        "root": role_keys([one], 1),
        "targets": role_keys([two], 1),
        **dict.fromkeys(("snapshot", "timestamp"), role_keys(make(1), 1)),
    }
    first = draft_root(None, good, NOW)
    assert read_metadata(first).signed.version == 1
    for role in ("root", "targets", "snapshot"):
        with unsafe(f"role {role} would have 1 keys and need 2"):
            draft_root(first, {role: RoleKeys(good[role].keys, 2)}, NOW)
        with unsafe(f"role {role} would have 0 keys"):
            draft_root(None, {name: keys for name, keys in good.items() if name != role}, NOW)
    with unsafe("would speak for root and targets"):
        draft_root(first, {"targets": good["root"]}, NOW)
    with unsafe("given twice"):
        merged_keys([one.public_key, one.public_key], 2)
    many = make(33)
    with unsafe("would have 33 keys"):
        draft_root(first, {"root": role_keys(many, 2)}, NOW)


def test_a_root_needs_old_and_new_keys(trust_keys: TrustKeys) -> None:
    new = make(2)
    draft = draft_root(trust_keys.pinned_root, {"root": role_keys(new, 2)}, NOW)
    delegators = ceremony.root_delegators(trust_keys.pinned_root, draft)
    before, own = ceremony.standings(sign_metadata(draft, new[0]), "root", delegators)
    assert (before.missing, own.missing) == (1, 1)
    before, own = ceremony.standings(sign_metadata(draft, *new, trust_keys.root), "root", delegators)
    assert (before.missing, own.missing) == (0, 0)
    for signers in ([trust_keys.root], [*new], [trust_keys.root, new[0]]):
        update = Update(roots=(sign_metadata(draft, *signers),))
        with pytest.raises(SignatureGateError, match="root was signed by"):
            load(trust_keys, publish(trust_keys.empty, update, trust_keys.online, NOW))


def test_a_lost_release_key_is_replaced_by_the_others(trust_keys: TrustKeys) -> None:
    """Root keys replace it; targets.json as published has too few good signatures, so both go together."""
    kept, _, lost = trust_keys.releases
    [new] = make(1)
    [*signed_by_lost] = (trust_keys.releases[1], lost)
    targets = sign_metadata(ceremony.renew(trust_keys.empty.targets, NOW), kept, lost)
    published = publish(trust_keys.empty, Update(targets=targets), trust_keys.online, NOW)
    previous = load(trust_keys, published)
    root = ceremony.replace_key(published.roots[-1], lost.public_key, new.public_key, NOW)
    root = sign_metadata(root, trust_keys.root)
    with pytest.raises(ConflictError, match="edgectl keys renew"):
        publish(published, Update(roots=(root,)), trust_keys.online, NOW)
    renewed = ceremony.renew(published.targets, NOW)
    assert ceremony.says_the_same(renewed, published.targets)
    for few in (signed_by_lost, [new]):
        update = Update(roots=(root,), targets=sign_metadata(renewed, *few))
        with pytest.raises(SignatureGateError, match="let the others sign"):
            publish(published, update, trust_keys.online, NOW)
    update = Update(roots=(root,), targets=sign_metadata(renewed, kept, new))
    after = publish(published, update, trust_keys.online, NOW)
    assert is_published(after, update)
    assert not is_published(published, update)
    trusted = load(trust_keys, after, previous)
    assert (trusted.root.version, trusted.role_keys("targets").threshold) == (2, 2)
    back = dataclasses.replace(after, targets=targets)
    with pytest.raises(GateError, match="targets"):
        load(trust_keys, refresh_online(back, trust_keys.online, NOW), trusted)


def test_one_key_replaced_does_not_open_the_way_back(trust_keys: TrustKeys) -> None:
    """Two of three keys stay: an old targets.json that those two signed is still a replay, though keys changed.

    The online keys change along with it, so that the snapshot's word on versions does not count any more.
    """
    old = trust_keys.empty
    newer = sign_metadata(ceremony.renew(old.targets, NOW), *trust_keys.releases)
    published = publish(old, Update(targets=newer), trust_keys.online, NOW)
    trusted = load(trust_keys, published)
    new, online = make(2)
    root = ceremony.replace_key(old.roots[0], trust_keys.releases[2].public_key, new.public_key, NOW)
    root = ceremony.replace_key(root, trust_keys.online.public_key, online.public_key, NOW)
    root = sign_metadata(ceremony.at_version(root, 2), trust_keys.root)
    rotated = dataclasses.replace(published, roots=(*old.roots, root))
    assert load(trust_keys, refresh_online(rotated, online, NOW), trusted).root.version == 2
    back = refresh_online(dataclasses.replace(rotated, targets=old.targets), online, NOW)
    with pytest.raises(GateError, match="version 1 is older than 2"):
        load(trust_keys, back, trusted)


def test_a_node_follows_several_roots_at_once(trust_keys: TrustKeys) -> None:
    """It slept through three rotations, in which every root key was replaced."""
    published, signer = trust_keys.empty, trust_keys.root
    slept = load(trust_keys, published)
    for _ in range(3):
        [new] = make(1)
        root = draft_root(published.roots[-1], {"root": role_keys([new], 1)}, NOW)
        update = Update(roots=(sign_metadata(root, signer, new),))
        published, signer = publish(published, update, trust_keys.online, NOW), new
    assert load(trust_keys, published, slept).root.version == 4
    assert load(trust_keys, published).root.version == 4


def test_online_keys_leave_control_something_to_sign_with(trust_keys: TrustKeys) -> None:
    [new] = make(1)
    online = dict.fromkeys(("snapshot", "timestamp"), role_keys([new], 1))
    root = sign_metadata(draft_root(trust_keys.pinned_root, online, NOW), trust_keys.root)
    with pytest.raises(ConflictError, match="does not let control's online key"):
        publish(trust_keys.empty, Update(roots=(root,)), trust_keys.online, NOW)
    assert load(trust_keys, publish(trust_keys.empty, Update(roots=(root,)), new, NOW)).root.version == 2


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["pos-tablet-*"], r"overlap, and a name that two classes share"),
        (["po*"], "overlap"),
        (["*"], "must be a prefix and a star"),
        (["scanner"], "must be a prefix and a star"),
        (["a/*"], "must be a prefix and a star"),
        (["[a]*"], "must be a prefix and a star"),
    ],
)
def test_names_of_classes_do_not_meet(trust_keys: TrustKeys, names: list[str], match: str) -> None:
    pos, scanner = make(2)
    targets = ceremony.delegate(trust_keys.empty.targets, "pos", role_keys([pos], 1), ["pos-*"], NOW)
    with unsafe(match):
        ceremony.delegate(targets, "scanner", role_keys([scanner], 1), names, NOW)


def test_a_delegation_gives_no_key_two_roles(trust_keys: TrustKeys) -> None:
    [pos] = make(1)
    targets = ceremony.delegate(trust_keys.empty.targets, "pos", role_keys([pos], 1), ["pos-*"], NOW)
    for keys in ([pos], [trust_keys.control]):
        with unsafe("would speak for"):
            ceremony.delegate(targets, "scanner", role_keys(keys, 1), ["scanner-*"], NOW)
    with unsafe("would have 1 keys and need 2"):
        ceremony.delegate(targets, "scanner", role_keys(make(1), 2), ["scanner-*"], NOW)
    with unsafe("is no device class"):
        ceremony.delegate(targets, "a/b", role_keys(make(1), 1), ["a-*"], NOW)
    with pytest.raises(NotFoundError, match="class roles are class-pos"):
        ceremony.withdraw(targets, "scanner", NOW)


def test_replacing_a_key_that_has_no_role(trust_keys: TrustKeys) -> None:
    one, two = make(2)
    for data in (trust_keys.pinned_root, trust_keys.empty.targets):
        with pytest.raises(NotFoundError, match="has no role"):
            ceremony.replace_key(data, one.public_key, two.public_key, NOW)
    control = ceremony.replace_key(trust_keys.empty.targets, trust_keys.control.public_key, one.public_key, NOW)
    root = draft_targets(trust_keys.empty.targets, role_keys([one], 1), NOW)
    assert ceremony.says_the_same(control, root)
    assert not ceremony.says_the_same(control, trust_keys.empty.targets)
    with unsafe("would speak for root and targets"):
        ceremony.replace_key(trust_keys.pinned_root, trust_keys.root.public_key, trust_keys.releases[0].public_key, NOW)


@pytest.mark.parametrize("read", [ceremony.read_root, lambda data: ceremony.renew(data, NOW)])
def test_rubbish_is_named(read: Callable[[bytes], object]) -> None:
    with pytest.raises(BadRepositoryFileError, match="not a TUF metadata file"):
        read(b"rubbish")


def test_drafts_live_as_long_as_the_table_says(trust_keys: TrustKeys) -> None:
    """``now`` is an argument everywhere: a ceremony in the past or the future is the same ceremony."""
    later = NOW + timedelta(days=1000)
    renewed = read_metadata(ceremony.renew(trust_keys.empty.targets, later)).signed
    assert renewed.expires == (later + timedelta(days=365)).replace(microsecond=0)
    assert not renewed.is_expired(later)
