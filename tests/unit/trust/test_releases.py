"""Manifests, signature bundles, and whether a release fits (P2, S2)."""

from __future__ import annotations

import base64
import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from wavemesh.errors import GateError
from wavemesh.trust.envelope import SignatureGateError, sign_with_keys
from wavemesh.trust.metadata import load_trusted
from wavemesh.trust.releases import (
    OCI_MANIFEST,
    RELEASE_PAYLOAD_TYPE,
    App,
    Artifact,
    BadManifestError,
    bundle_to_json,
    canonical_manifest,
    check_device_fit,
    check_region,
    check_rollback_floor,
    manifest_from_json,
    manifest_to_json,
    verify_signature_bundle,
)
from wavemesh.trust.repository import merge_bundles, sign_bundle
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import TrustKeys
    from wavemesh.trust.metadata import TrustedMetadata
    from wavemesh.trust.releases import ReleaseManifest

    Make = Callable[..., ReleaseManifest]

NOW = datetime.now(UTC)
APP = App("pos/app", "12.4.1", OCI_MANIFEST, Artifact("app.oci", Digest("a" * 64, 7)), (Digest("b" * 64, 9),))


@pytest.fixture(scope="module")
def trusted(trust_keys: TrustKeys, make_manifest: Make) -> TrustedMetadata:
    published, _ = trust_keys.publish(make_manifest(), now=NOW)
    return load_trusted(trust_keys.pinned_root, published, NOW, None)


def test_a_manifest_survives_json(make_manifest: Make) -> None:
    manifest = make_manifest(regions=("midwest",), requires_config=">=12.0.0 <13", minimum_version="3.0.0")
    value = json.loads(canonical_manifest(manifest))
    assert value == manifest_to_json(manifest)
    assert manifest_from_json(value, manifest.signature.digest) == manifest
    assert "attestation" not in value
    attested = make_manifest(attestation=((4, "a" * 64), (11, "b" * 64)))
    value = json.loads(canonical_manifest(attested))
    assert value["attestation"] == {"4": "a" * 64, "11": "b" * 64}
    assert manifest_from_json(value, attested.signature.digest) == attested
    assert "app" not in value
    with_app = make_manifest(app=APP)
    assert manifest_from_json(json.loads(canonical_manifest(with_app)), with_app.signature.digest) == with_app
    config_only = make_manifest("config-12", firmware=None)
    assert config_only.main == config_only.config
    assert manifest_from_json(manifest_to_json(config_only), config_only.signature.digest) == config_only


def test_what_a_config_requires_of_the_firmware_is_written_only_where_it_says_something(make_manifest: Make) -> None:
    """D8: manifests of before keep their bytes, and a device that does not know the condition refuses the release."""
    assert b"requires_firmware" not in canonical_manifest(make_manifest())
    manifest = make_manifest(requires_firmware=">=3.8.0")
    value = json.loads(canonical_manifest(manifest))
    assert value["requires_firmware"] == ">=3.8.0"
    assert manifest_from_json(value, manifest.signature.digest) == manifest


def test_a_bundle_is_one_more_artifact_and_its_absence_leaves_no_key(make_manifest: Make) -> None:
    """P2: a manifest without a RAUC bundle keeps the bytes that were signed before there were any."""
    plain = make_manifest()
    assert "bundle" not in manifest_to_json(plain)
    bundle = Artifact("firmware-v3.8.2.raucb", Digest("b" * 64, 7))
    packed = dataclasses.replace(plain, bundle=bundle)
    assert manifest_from_json(json.loads(canonical_manifest(packed)), packed.signature.digest) == packed
    assert bundle in packed.artifacts
    assert canonical_manifest(packed) != canonical_manifest(plain)
    with pytest.raises(BadManifestError, match="without firmware"):
        manifest_to_json(dataclasses.replace(packed, firmware=None))
    with pytest.raises(BadManifestError, match="different names"):
        manifest_to_json(dataclasses.replace(packed, bundle=packed.firmware))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"requires_firmware": "soon"}, "'requires_firmware': constraint"),
        ({"extra": 1}, r"unknown keys \['extra'\]"),
        ({"name": None}, "lacks 'name'"),
        ({"name": "../etc"}, "'name' must be 1 to 128"),
        ({"version": "3.8"}, "'version': version '3.8'"),
        ({"requires_config": "about 12"}, "'requires_config': constraint"),
        ({"signed_at": "yesterday"}, "'signed_at' must be a time"),
        ({"touches_bootloader": "no"}, "'touches_bootloader' must be true or false"),
        ({"attestation": {}}, "'attestation' must be an object of 1 to 8 PCRs"),
        ({"attestation": [4]}, "'attestation' must be an object of 1 to 8 PCRs"),
        ({"attestation": {"24": "a" * 64}}, "'attestation' must be PCR numbers"),
        ({"attestation": {"4": "A" * 64}}, "'attestation' must be PCR numbers"),
        ({"hardware_revisions": []}, "'hardware_revisions' must be a list of 1 to 256"),
        ({"peripheral_checks": ["x"] * 257}, "'peripheral_checks' must be a list"),
        ({"boot_probe": "x" * 5000}, "'boot_probe' must be a text of at most 4096"),
        ({"firmware": None, "config": "none"}, "manifest is str, not an object"),
        ({"firmware": {"name": "a", "sha256": "00", "size_bytes": 1}}, "'firmware' must be a SHA-256"),
        ({"firmware": {"name": "a", "sha256": "00" * 32, "size_bytes": True}}, "'firmware' must be a size"),
        ({"signature": "pos-app-12.4.1.tar.gz"}, "need different names"),
    ],
)
def test_a_bad_manifest_is_refused_by_key(make_manifest: Make, change: dict[str, Any], match: str) -> None:
    manifest = make_manifest()
    value = {**manifest_to_json(manifest), **change}
    if change == {"name": None}:
        del value["name"]
    with pytest.raises(BadManifestError, match=match):
        manifest_from_json(value, manifest.signature.digest)


def test_a_release_has_something_in_it(make_manifest: Make) -> None:
    with pytest.raises(BadManifestError, match="neither firmware nor config"):
        canonical_manifest(make_manifest(firmware=None, config=None))


def test_a_bundle_by_two_of_three_is_believed(
    trust_keys: TrustKeys, trusted: TrustedMetadata, make_manifest: Make
) -> None:
    manifest = make_manifest()
    one, two, three = (sign_bundle(manifest, signer) for signer in trust_keys.releases)
    verify_signature_bundle(merge_bundles(one, three), manifest, trusted)
    verify_signature_bundle(merge_bundles(merge_bundles(one, two), three), manifest, trusted)
    for few in (one, merge_bundles(one, one), sign_bundle(manifest, trust_keys.releases[0], trust_keys.control)):
        with pytest.raises(SignatureGateError, match="1 of the 2 signatures"):
            verify_signature_bundle(few, manifest, trusted)


def test_a_bundle_over_another_manifest_is_refused(
    trust_keys: TrustKeys, trusted: TrustedMetadata, make_manifest: Make
) -> None:
    manifest = make_manifest()
    other = dataclasses.replace(manifest, boot_probe="rm -rf /")
    bundle = sign_bundle(manifest, *trust_keys.releases)
    with pytest.raises(SignatureGateError, match="another manifest"):
        verify_signature_bundle(bundle, other, trusted)
    value = json.loads(bundle)
    value["payload"] = base64.b64encode(canonical_manifest(other)).decode()
    with pytest.raises(SignatureGateError, match="0 of the 2"):
        verify_signature_bundle(json.dumps(value).encode(), other, trusted)
    order = bundle_to_json(sign_with_keys("application/json", canonical_manifest(manifest), trust_keys.releases))
    with pytest.raises(SignatureGateError, match=f"is not the {RELEASE_PAYLOAD_TYPE.replace('+', '.')}"):
        verify_signature_bundle(order, manifest, trusted)


@pytest.mark.parametrize(
    "bundle",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"payload": "!", "payloadType": "t", "signatures": []}',
        b'{"payload": "", "payloadType": "t", "signatures": {}}',
        b" " * 300_000,
    ],
)
def test_a_bundle_that_is_none(trusted: TrustedMetadata, make_manifest: Make, bundle: bytes) -> None:
    with pytest.raises(SignatureGateError, match="signature bundle"):
        verify_signature_bundle(bundle, make_manifest(), trusted)


def test_wrong_place_wrong_class_too_old(make_manifest: Make) -> None:
    everywhere, midwest = make_manifest(), make_manifest(regions=("midwest",))
    check_region(everywhere, "south")
    check_region(midwest, "midwest")
    check_device_fit(everywhere, "pos-tablet", "r2")
    check_rollback_floor(everywhere, "")
    check_rollback_floor(everywhere, "3.8.2")
    checks: list[tuple[str, Callable[[], None]]] = [
        ("class", lambda: check_region(midwest, "south")),
        ("class", lambda: check_device_fit(everywhere, "scanner", "r2")),
        ("hardware", lambda: check_device_fit(everywhere, "pos-tablet", "r1")),
        ("rollback-floor", lambda: check_rollback_floor(everywhere, "3.10.0")),
    ]
    for gate, check in checks:
        with pytest.raises(GateError) as refusal:
            check()
        assert refusal.value.gate == gate


def test_signed_times_have_seconds(make_manifest: Make) -> None:
    late = make_manifest(signed_at=NOW.astimezone().replace(microsecond=5) + timedelta(0))
    again = manifest_from_json(manifest_to_json(late), late.signature.digest)
    assert again.signed_at == NOW.replace(microsecond=0)
    assert canonical_manifest(again) == canonical_manifest(late)


def test_artifacts_include_the_bundle(make_manifest: Make) -> None:
    manifest = make_manifest(config=None, signature=Artifact("a.sig", Digest("11" * 32, 3)))
    assert [artifact.name for artifact in manifest.artifacts] == ["firmware-v3.8.2.img", "a.sig"]


def test_an_app_alone_is_a_release_that_no_device_installs(make_manifest: Make) -> None:
    """O5: its root carries the manifest, all its blobs are artifacts, people name the root alone."""
    alone = make_manifest(firmware=None, config=None, boot_probe="", app=APP)
    assert (alone.main, alone.is_installable) == (APP.root, False)
    assert [one.name for one in alone.named] == [alone.signature.name, "app.oci"]
    assert {one.digest for one in alone.artifacts} >= {APP.root.digest, *APP.blobs}
    assert make_manifest(app=APP).is_installable


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"repository": "Pos"}, "repository and tag"),
        ({"repository": "pos//app"}, "repository and tag"),
        ({"tag": "-x"}, "repository and tag"),
        ({"tag": "x" * 129}, "repository and tag"),
        ({"media_type": "text/plain"}, "media type"),
        ({"blobs": []}, "1 to 256 blobs"),
        ({"blobs": [{"sha256": "b" * 64, "size_bytes": 1}] * 257}, "1 to 256 blobs"),
        ({"blobs": [{"sha256": "b" * 64, "size_bytes": 1}] * 2}, "each blob once"),
        ({"blobs": [{"sha256": "a" * 64, "size_bytes": 7}]}, "each blob once"),
        ({"blobs": [{"sha256": "B" * 64, "size_bytes": 1}]}, "lower-case hex"),
        ({"blobs": [{"sha256": "b" * 64, "size_bytes": -1}]}, "size in bytes"),
        ({"root": None}, "root of at most"),
        ({"root": {"name": "r", "sha256": "a" * 64, "size_bytes": 4 * 1024 * 1024 + 1}}, "root of at most"),
        ({"entrypoint": "/app"}, "unknown keys"),
    ],
)
def test_an_app_that_no_registry_could_serve_is_refused(
    make_manifest: Make, changes: dict[str, Any], told: str
) -> None:
    manifest = make_manifest(app=APP)
    value = manifest_to_json(manifest)
    value["app"] |= changes
    with pytest.raises(BadManifestError, match=told):
        manifest_from_json(value, manifest.signature.digest)
