"""The TUF client against hostile repositories (P2; the attack list of the TUF specification, section 1.5)."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Targets

from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.trust import metadata as client
from wavemesh.trust.ceremony import draft_root, draft_targets
from wavemesh.trust.envelope import SignatureGateError, sign_statement, verify_role
from wavemesh.trust.files import LIFETIMES, sign_metadata
from wavemesh.trust.metadata import RoleKeys, TrustedMetadata, check_expiry, load_trusted, recall_trusted
from wavemesh.trust.repository import (
    create_repository,
    refresh_online,
    revoke_release,
    role_keys,
)
from wavemesh.trust.statements import TrustMetadata, WaveClosed, WaveState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import TrustKeys
    from wavemesh.trust.releases import ReleaseManifest

NOW = datetime.now(UTC)


def load(keys: TrustKeys, published: TrustMetadata, previous: TrustedMetadata | None = None) -> TrustedMetadata:
    return load_trusted(keys.pinned_root, published, NOW, previous)


def refused(gate: Gate, match: str) -> Any:
    return pytest.raises(GateError, match=match, check=lambda error: error.gate == gate.value)


def signed_dict(data: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(data)
    return value


def alter(data: bytes, change: Callable[[dict[str, Any]], None], *signers: CryptoSigner) -> bytes:
    """The file with its signed part changed, and signed anew by those signers."""
    value = signed_dict(data)
    change(value["signed"])
    value["signatures"] = []
    return sign_metadata(json.dumps(value).encode(), *signers)


def unchanged(signed: dict[str, Any]) -> None:
    """Only the signatures are made anew."""


def with_file(published: TrustMetadata, role: str, data: bytes) -> TrustMetadata:
    changes: dict[str, Any] = {role: data}
    return dataclasses.replace(published, **changes)


def republish(keys: TrustKeys, targets: bytes, base: TrustMetadata | None = None) -> TrustMetadata:
    """Whatever targets, as control's online keys could publish them unchecked."""
    return refresh_online(dataclasses.replace(base or keys.empty, targets=targets), keys.online, NOW)


def rotate_root(keys: TrustKeys, published: TrustMetadata, *signers: CryptoSigner, **roles: RoleKeys) -> TrustMetadata:
    root = draft_root(published.roots[-1], roles, NOW)
    return dataclasses.replace(published, roots=(*published.roots, sign_metadata(root, *signers)))


@pytest.fixture(scope="module")
def published(trust_keys: TrustKeys, make_manifest: Callable[..., ReleaseManifest]) -> TrustMetadata:
    return trust_keys.publish(make_manifest(), now=NOW)[0]


def test_a_good_set_is_trusted(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    trusted = load(trust_keys, published)
    assert trusted.versions == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 2}
    assert set(trusted.releases()) == {"firmware-v3.8.2"}
    assert trusted.source == published
    again = load(trust_keys, published, trusted)
    assert again.versions == trusted.versions
    assert trusted.expires_at() == min(NOW + LIFETIMES["timestamp"], NOW + LIFETIMES["snapshot"]).replace(microsecond=0)


def test_control_speaks_by_the_keys_that_release_keys_gave_it(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    trusted = load(trust_keys, published)
    closed = WaveClosed("142", WaveState.CLOSED, NOW)
    assert verify_role(sign_statement(closed, [trust_keys.control]), WaveClosed, trusted) == closed
    for impostor in (trust_keys.online, trust_keys.releases[0], trust_keys.root):
        with pytest.raises(SignatureGateError, match="0 of the 1"):
            verify_role(sign_statement(closed, [impostor]), WaveClosed, trusted)
    with pytest.raises(SignatureGateError, match="delegates nothing to role 'operators'"):
        trusted.role_keys("operators")
    assert trusted.role_keys("targets").threshold == 2


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_release_keys(trust_keys: TrustKeys, published: TrustMetadata, count: int) -> None:
    targets = alter(published.targets, unchanged, *trust_keys.releases[:count])
    with refused(Gate.SIGNATURE, f"targets was signed by {count}/2 keys"):
        load(trust_keys, republish(trust_keys, targets, published))


def test_the_same_key_twice_is_one_key(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    once = alter(published.targets, unchanged, trust_keys.releases[0])
    value = signed_dict(once)
    value["signatures"] *= 2
    twice = json.dumps(value).encode()
    files = dataclasses.replace(published, targets=twice)
    with refused(Gate.SIGNATURE, "targets"):
        load(trust_keys, files)

    def list_twice(signed: dict[str, Any]) -> None:
        first = signed["roles"]["targets"]["keyids"][0]
        signed["keys"]["alias"] = signed["keys"][first]
        signed["roles"]["targets"] = {"keyids": [first, "alias"], "threshold": 2}

    root = alter(trust_keys.pinned_root, list_twice, trust_keys.root)
    with refused(Gate.SIGNATURE, "role 'targets' lists 2 key ids for 1 keys"):
        load_trusted(root, dataclasses.replace(published, roots=(root,)), NOW, None)


def test_control_cannot_sign_releases(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    """A stolen control plane has the online and control keys, and gets nothing past the release keys."""
    forged = alter(published.targets, unchanged, trust_keys.control, trust_keys.online)
    with refused(Gate.SIGNATURE, "signed by 0/2 keys"):
        load(trust_keys, republish(trust_keys, forged, published))


def test_an_altered_file_is_refused(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    for role, value in (("timestamp", published.timestamp), ("snapshot", published.snapshot)):
        forged = signed_dict(value)
        forged["signed"]["expires"] = "2099-01-01T00:00:00Z"
        with refused(Gate.SIGNATURE, role):
            load(trust_keys, with_file(published, role, json.dumps(forged).encode()))


@pytest.mark.parametrize(
    ("role", "later"),
    [("timestamp", timedelta(days=46)), ("targets", timedelta(days=366)), ("root", timedelta(days=731))],
)
def test_expired_metadata_is_refused(
    trust_keys: TrustKeys, published: TrustMetadata, role: str, later: timedelta
) -> None:
    """Freeze attack; only the file under test is expired."""
    fresh = published
    if role != "timestamp":
        fresh = refresh_online(published, trust_keys.online, NOW + later)
    if role == "root":
        targets = alter(
            published.targets, lambda signed: signed.update(expires="2099-01-01T00:00:00Z"), *trust_keys.releases
        )
        fresh = refresh_online(dataclasses.replace(fresh, targets=targets), trust_keys.online, NOW + later)
    with refused(Gate.FRESHNESS, f"{role}.json version . expired"):
        load_trusted(trust_keys.pinned_root, fresh, NOW + later, None)


def test_what_was_stored_is_recalled_though_expired(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    """After a month in a drawer a node still knows what not to go back behind."""
    recalled = recall_trusted(trust_keys.pinned_root, published)
    check_expiry(recalled, NOW)
    with refused(Gate.FRESHNESS, "timestamp.json version 2 expired"):
        check_expiry(recalled, NOW + timedelta(days=60))
    with refused(Gate.REPLAY, "older than"):
        load(trust_keys, trust_keys.empty, recalled)


def test_no_version_goes_back(
    trust_keys: TrustKeys, published: TrustMetadata, make_manifest: Callable[..., ReleaseManifest]
) -> None:
    """Rollback: the old set as it was, and old targets under a new snapshot by a stolen online key."""
    newer, _ = trust_keys.publish(make_manifest("firmware-v3.9.0", version="3.9.0"), now=NOW, base=published)
    trusted = load(trust_keys, newer)
    with refused(Gate.REPLAY, "timestamp version 2 is older than 3"):
        load(trust_keys, published, trusted)
    with refused(Gate.REPLAY, r"targets.json version 2 is older than 3"):
        load(trust_keys, republish(trust_keys, published.targets, newer), trusted)


def test_no_snapshot_goes_back(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    """A stolen online key signs a new timestamp over an older snapshot that lists the same targets."""
    first = refresh_online(published, trust_keys.online, NOW)
    trusted = load(trust_keys, refresh_online(first, trust_keys.online, NOW))

    def point_back(signed: dict[str, Any]) -> None:
        signed["version"] += 9

    back = dataclasses.replace(first, timestamp=alter(first.timestamp, point_back, trust_keys.online))
    with refused(Gate.REPLAY, "snapshot version 3 is older than 4"):
        load(trust_keys, back, trusted)


def test_a_file_does_not_disappear_from_the_snapshot(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    extra = CryptoSigner.generate_ed25519()
    with_extra = delegate(trust_keys, published, extra)
    trusted = load(trust_keys, with_extra)
    assert trusted.versions["class-pos"] == 1
    without = refresh_online(dataclasses.replace(with_extra, delegated={}), trust_keys.online, NOW)
    with refused(Gate.REPLAY, r"no longer lists class-pos\.json"):
        load(trust_keys, without, trusted)


def delegate(
    keys: TrustKeys, published: TrustMetadata, signer: CryptoSigner, signed_by: CryptoSigner | None = None
) -> TrustMetadata:
    """The set with a delegated role "class-pos"."""
    targets: Metadata[Targets] = Metadata.from_bytes(published.targets)
    delegations = targets.signed.delegations
    assert isinstance(delegations, Delegations)
    assert delegations.roles is not None
    role = DelegatedRole("class-pos", [signer.public_key.keyid], 1, terminating=True, paths=["pos-*"])
    delegations.roles["class-pos"] = role
    delegations.keys[signer.public_key.keyid] = signer.public_key
    targets.signed.version += 1
    targets.signatures.clear()
    top = sign_metadata(targets.to_bytes(), *keys.releases)
    child = sign_metadata(
        Metadata(Targets(expires=(NOW + timedelta(days=9)).replace(microsecond=0))).to_bytes(), signed_by or signer
    )
    return refresh_online(dataclasses.replace(published, targets=top, delegated={"class-pos": child}), keys.online, NOW)


def test_delegated_targets_need_their_own_keys(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    forged = delegate(trust_keys, published, CryptoSigner.generate_ed25519(), signed_by=trust_keys.control)
    with refused(Gate.SIGNATURE, "class-pos was signed by 0/1"):
        load(trust_keys, forged)
    stray = dataclasses.replace(published, delegated={"stranger": published.targets})
    with refused(Gate.SIGNATURE, r"stranger\.json is not delegated to"):
        load(trust_keys, refresh_online(stray, trust_keys.online, NOW))


def test_files_of_different_sets_do_not_mix(
    trust_keys: TrustKeys, published: TrustMetadata, make_manifest: Callable[..., ReleaseManifest]
) -> None:
    newer, _ = trust_keys.publish(make_manifest("firmware-v3.9.0"), now=NOW, base=published)
    for role in ("snapshot", "targets"):
        mixed = with_file(newer, role, getattr(published, role))
        with refused(Gate.SIGNATURE, rf"{role}\.json is not the one listed"):
            load(trust_keys, mixed)
    lying = alter(
        newer.timestamp, lambda signed: signed["meta"].update({"snapshot.json": {"version": 9}}), trust_keys.online
    )
    with refused(Gate.SIGNATURE, "snapshot.json has version 3, listed is 9"):
        load(trust_keys, dataclasses.replace(newer, timestamp=lying))
    swapped = dataclasses.replace(newer, timestamp=newer.snapshot)
    with refused(Gate.SIGNATURE, "timestamp.json holds snapshot metadata"):
        load(trust_keys, swapped)


def test_two_timestamps_of_one_version(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    trusted = load(trust_keys, published)
    other = alter(published.timestamp, lambda signed: signed.update(expires="2099-01-01T00:00:00Z"), trust_keys.online)
    with refused(Gate.REPLAY, "contradict themselves"):
        load(trust_keys, dataclasses.replace(published, timestamp=other), trusted)


def test_a_root_follows_its_predecessor(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    new = CryptoSigner.generate_ed25519()
    roles = {"root": role_keys([new], 1)}
    good = rotate_root(trust_keys, published, trust_keys.root, new, **roles)
    trusted = load(trust_keys, good)
    assert trusted.root.version == 2
    for signers in ([new], [trust_keys.root]):
        with refused(Gate.SIGNATURE, "root was signed by 0/1 keys"):
            load(trust_keys, rotate_root(trust_keys, published, *signers, **roles))
    third = rotate_root(trust_keys, good, new)
    with refused(Gate.SIGNATURE, "one is missing"):
        load(trust_keys, dataclasses.replace(third, roots=(third.roots[0], third.roots[2])))
    old_root_again = load(trust_keys, published, trusted)
    assert old_root_again.root.version == 2
    assert old_root_again.source.roots == good.roots


def test_a_foreign_repository_is_refused(trust_keys: TrustKeys) -> None:
    fresh = [CryptoSigner.generate_ed25519() for _ in range(4)]
    foreign = create_repository(root=fresh[:1], releases=fresh[1:3], online=fresh[3:], control=fresh[3:], now=NOW)
    with refused(Gate.SIGNATURE, "timestamp was signed by 0/1 keys"):
        load_trusted(trust_keys.pinned_root, foreign, NOW, None)


def test_stolen_online_keys_are_recovered_from(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    """Fast-forward attack: huge versions by the stolen key; root replaces it and small versions count again."""
    thief = dataclasses.replace(
        published,
        timestamp=alter(published.timestamp, lambda signed: signed.update(version=10**9), trust_keys.online),
    )
    fooled = load(trust_keys, thief)
    with refused(Gate.REPLAY, "older than 1000000000"):
        load(trust_keys, published, fooled)
    new = CryptoSigner.generate_ed25519()
    keys = role_keys([new], 1)
    rotated = rotate_root(trust_keys, published, trust_keys.root, snapshot=keys, timestamp=keys)
    recovered = refresh_online(rotated, new, NOW)
    assert load(trust_keys, recovered, fooled).versions["timestamp"] == 3
    old_targets = refresh_online(dataclasses.replace(rotated, targets=trust_keys.empty.targets), new, NOW)
    with refused(Gate.REPLAY, "targets version 1 is older than 2"):
        load(trust_keys, old_targets, fooled)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"signed": {"_type": "x"}, "signatures": []}'])
def test_rubbish_is_refused(trust_keys: TrustKeys, published: TrustMetadata, role: str, data: bytes) -> None:
    with refused(Gate.SIGNATURE, role):
        load(trust_keys, with_file(published, role, data))


def test_endless_data_is_refused(
    trust_keys: TrustKeys, published: TrustMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = published.timestamp + b" " * client.MAX_FILE_BYTES["timestamp"]
    with refused(Gate.SIGNATURE, r"timestamp\.json of .* bytes; at most 65536"):
        load(trust_keys, dataclasses.replace(published, timestamp=big))
    with refused(Gate.SIGNATURE, "65 roots; at most 64"):
        load(trust_keys, dataclasses.replace(published, roots=published.roots * 65))
    with refused(Gate.SIGNATURE, "65 delegated files"):
        load(trust_keys, dataclasses.replace(published, delegated={str(number): b"" for number in range(65)}))
    monkeypatch.setattr(client, "MAX_TARGET_FILES", 2)
    with refused(Gate.SIGNATURE, "3 targets"):
        load(trust_keys, published)


def test_a_revoked_release_is_gone(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    targets = revoke_release(published.targets, "firmware-v3.8.2", "bricks r2 boards", NOW)
    revoked = republish(trust_keys, sign_metadata(targets, *trust_keys.releases[1:]), published)
    trusted = load(trust_keys, revoked, load(trust_keys, published))
    assert trusted.is_revoked("firmware-v3.8.2")
    assert not trusted.releases()
    with refused(Gate.REVOKED, "revoked: bricks r2 boards"):
        trusted.require_release("firmware-v3.8.2")
    with refused(Gate.SIGNATURE, "vouches for no release other"):
        trusted.require_release("other")
    broken = alter(revoked.targets, lambda signed: signed.update({"wavemesh-revoked": ["x"]}), *trust_keys.releases)
    with refused(Gate.SIGNATURE, "must map names"):
        load(trust_keys, republish(trust_keys, broken, published))


def test_a_release_that_cannot_be_read_does_not_hide_the_others(
    trust_keys: TrustKeys, published: TrustMetadata, make_manifest: Callable[..., ReleaseManifest]
) -> None:
    """A newer release tool may add a condition: that release alone is refused."""
    two, _ = trust_keys.publish(make_manifest("firmware-v3.9.0"), now=NOW, base=published)

    def add_condition(signed: dict[str, Any]) -> None:
        signed["targets"]["firmware-v3.9.0.img"]["custom"]["wavemesh-release"]["only_on"] = "sunday"

    trusted = load(trust_keys, republish(trust_keys, alter(two.targets, add_condition, *trust_keys.releases), two))
    assert set(trusted.releases()) == {"firmware-v3.8.2"}
    with refused(Gate.SIGNATURE, "unknown keys .'only_on'"):
        trusted.require_release("firmware-v3.9.0")


@pytest.mark.parametrize(
    ("target", "change"),
    [
        ("firmware-v3.8.2.img", {"length": 1}),
        ("pos-app-12.4.1.tar.gz", {"hashes": {"sha256": "00" * 32}}),
        ("pos-app-12.4.1.tar.gz", None),
        ("firmware-v3.8.2.sig", None),
    ],
)
def test_a_manifest_and_its_targets_must_agree(
    trust_keys: TrustKeys, published: TrustMetadata, target: str, change: dict[str, Any] | None
) -> None:
    def disagree(signed: dict[str, Any]) -> None:
        if change is None:
            del signed["targets"][target]
        else:
            signed["targets"][target].update(change)

    lying = republish(trust_keys, alter(published.targets, disagree, *trust_keys.releases), published)
    assert "firmware-v3.8.2" in load(trust_keys, lying).malformed_releases


def test_a_manifest_stands_at_its_main_target(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    def move(signed: dict[str, Any]) -> None:
        files = signed["targets"]
        files["pos-app-12.4.1.tar.gz"]["custom"] = files["firmware-v3.8.2.img"].pop("custom")

    moved = republish(trust_keys, alter(published.targets, move, *trust_keys.releases), published)
    assert load(trust_keys, moved).malformed_releases == {
        "firmware-v3.8.2": "the manifest of firmware-v3.8.2.img stands at pos-app-12.4.1.tar.gz"
    }


def test_finding_releases(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    trusted = load(trust_keys, published)
    release = trusted.require_release("firmware-v3.8.2")
    assert trusted.role_of("firmware-v3.8.2") == "targets"
    assert release.config is not None
    assert trusted.releases_with(release.config.digest) == (release,)


def test_a_delegation_can_be_changed_only_by_release_keys(trust_keys: TrustKeys, published: TrustMetadata) -> None:
    """Control cannot give its role to another key."""
    thief = CryptoSigner.generate_ed25519()
    targets = draft_targets(None, role_keys([thief], 1), NOW)
    with refused(Gate.SIGNATURE, "signed by 0/2"):
        load(trust_keys, republish(trust_keys, sign_metadata(targets, trust_keys.control, thief), published))
