"""The publishing side: releases come about by several hands, none of them control's (P2)."""

from __future__ import annotations

import dataclasses
import json
import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tuf.api.metadata import Metadata

from wavemesh.errors import ConflictError
from wavemesh.trust.envelope import SignatureGateError
from wavemesh.trust.files import BadRepositoryFileError, merge_signatures, sign_metadata
from wavemesh.trust.keys import KeyFileError, create_signer, load_signer
from wavemesh.trust.metadata import load_trusted
from wavemesh.trust.releases import BadManifestError, verify_signature_bundle
from wavemesh.trust.repository import (
    add_release,
    create_repository,
    merge_bundles,
    publish_targets,
    refresh_online,
    revoke_release,
    sign_bundle,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import TrustKeys
    from wavemesh.trust.releases import ReleaseManifest

    Make = Callable[..., ReleaseManifest]

NOW = datetime.now(UTC)


def test_a_release_from_key_files_to_a_device(tmp_path: Path, make_manifest: Make) -> None:
    """Each release key holder works alone, with files; control adds its online signature; a device believes it."""
    root, online, control = (create_signer(tmp_path / f"{name}.pem") for name in ("root", "online", "control"))
    holders = [create_signer(tmp_path / f"release-{number}.pem") for number in range(3)]
    published = create_repository(root=[root], releases=holders, online=[online], control=[control], now=NOW)
    manifest = make_manifest()
    first, second = (load_signer(tmp_path / f"release-{number}.pem") for number in (0, 2))
    bundle = merge_bundles(sign_bundle(manifest, first), sign_bundle(manifest, second))
    unsigned = add_release(published.targets, manifest, bundle, NOW)
    targets = merge_signatures(sign_metadata(unsigned, first), sign_metadata(unsigned, second))
    published = publish_targets(published, targets, load_signer(tmp_path / "online.pem"), NOW)
    trusted = load_trusted(published.roots[0], published, NOW, None)
    release = trusted.require_release("firmware-v3.8.2")
    verify_signature_bundle(bundle, release, trusted)
    assert release.signature.digest.size_bytes == len(bundle)
    assert dataclasses.replace(release, signature=manifest.signature) == manifest


def test_key_files_are_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "release.pem"
    signer = create_signer(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_signer(path).public_key == signer.public_key
    with pytest.raises(KeyFileError, match="never overwritten"):
        create_signer(path)
    with pytest.raises(KeyFileError, match="No such file"):
        load_signer(tmp_path / "nowhere")
    path.write_text("rubbish")
    with pytest.raises(KeyFileError, match="not an unencrypted private key"):
        load_signer(path)


def test_targets_are_published_only_signed_and_next(trust_keys: TrustKeys, make_manifest: Make) -> None:
    manifest = make_manifest()
    bundle = sign_bundle(manifest, *trust_keys.releases)
    unsigned = add_release(trust_keys.empty.targets, manifest, bundle, NOW)
    for few in (unsigned, sign_metadata(unsigned, trust_keys.releases[0], trust_keys.control)):
        with pytest.raises(SignatureGateError, match=r"keys; let the others sign"):
            publish_targets(trust_keys.empty, few, trust_keys.online, NOW)
    published, _ = trust_keys.publish(manifest, now=NOW)
    with pytest.raises(ConflictError, match="version 2; the next one is 3"):
        publish_targets(published, sign_metadata(unsigned, *trust_keys.releases), trust_keys.online, NOW)
    with pytest.raises(BadRepositoryFileError, match="not targets"):
        publish_targets(published, published.snapshot, trust_keys.online, NOW)
    with pytest.raises(BadRepositoryFileError, match="not a TUF metadata file"):
        publish_targets(published, b"rubbish", trust_keys.online, NOW)


def test_releases_are_immutable(trust_keys: TrustKeys, make_manifest: Make) -> None:
    manifest = make_manifest()
    published, bundles = trust_keys.publish(manifest, now=NOW)
    assert manifest.firmware is not None
    other_bytes = dataclasses.replace(
        manifest.firmware, digest=dataclasses.replace(manifest.firmware.digest, size_bytes=9)
    )
    changes: list[tuple[ReleaseManifest, str]] = [
        (make_manifest("firmware-v3.8.2", firmware=other_bytes), "published with other content"),
        (make_manifest("other", firmware=manifest.firmware), "main artifact of another release"),
    ]
    for changed, why in changes:
        with pytest.raises(ConflictError, match=why):
            add_release(published.targets, changed, sign_bundle(changed, *trust_keys.releases), NOW)
    with pytest.raises(ConflictError, match="not about release"):
        add_release(published.targets, make_manifest(version="9.9.9"), bundles["firmware-v3.8.2.sig"], NOW)
    revoked = revoke_release(published.targets, manifest.name, "broken", NOW)
    with pytest.raises(ConflictError, match="is revoked"):
        add_release(revoked, manifest, bundles["firmware-v3.8.2.sig"], NOW)


def test_nothing_unreadable_is_signed(trust_keys: TrustKeys, make_manifest: Make) -> None:
    with pytest.raises(BadManifestError, match="'version'"):
        sign_bundle(make_manifest(version="latest"), trust_keys.releases[0])


def test_only_what_is_the_same_is_merged(trust_keys: TrustKeys, make_manifest: Make) -> None:
    one, two = make_manifest(), make_manifest(version="3.8.3")
    with pytest.raises(ConflictError, match="different manifests"):
        merge_bundles(sign_bundle(one, trust_keys.releases[0]), sign_bundle(two, trust_keys.releases[1]))
    bundle = sign_bundle(one, *trust_keys.releases)
    first = add_release(trust_keys.empty.targets, one, bundle, NOW)
    second = add_release(trust_keys.empty.targets, one, bundle, NOW + timedelta(hours=1))
    with pytest.raises(ConflictError, match="differ in what is signed"):
        merge_signatures(first, second)


def test_a_shared_config_stays_one_target(trust_keys: TrustKeys, make_manifest: Make) -> None:
    published, _ = trust_keys.publish(make_manifest(), make_manifest("firmware-v3.9.0"), now=NOW)
    targets: Metadata[Any] = Metadata.from_bytes(published.targets)
    assert len(targets.signed.targets) == 5
    trusted = load_trusted(trust_keys.pinned_root, published, NOW, None)
    config = trusted.require_release("firmware-v3.9.0").config
    assert config is not None
    assert len(trusted.releases_with(config.digest)) == 2


def test_refreshing_changes_only_the_online_files(trust_keys: TrustKeys) -> None:
    later = NOW + timedelta(days=40)
    refreshed = refresh_online(trust_keys.empty, trust_keys.online, later)
    assert refreshed.targets == trust_keys.empty.targets
    trusted = load_trusted(trust_keys.pinned_root, trust_keys.empty, NOW, None)
    newer = load_trusted(trust_keys.pinned_root, refreshed, later, trusted)
    assert newer.versions == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 1}
    assert (
        json.loads(refreshed.timestamp)["signed"]["expires"]
        > json.loads(trust_keys.empty.timestamp)["signed"]["expires"]
    )
