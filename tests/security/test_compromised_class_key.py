"""Whoever has all keys of a class role, and control's online keys too, harms that class alone (P2)."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from securesystemslib.signer import CryptoSigner

from tests.conftest import make_manifest
from wavemesh.errors import ConflictError, GateError
from wavemesh.policy.gates import Gate
from wavemesh.trust.ceremony import delegate, withdraw
from wavemesh.trust.envelope import SignatureGateError, sign_statement, verify_role
from wavemesh.trust.files import read_targets, sign_metadata, to_bytes
from wavemesh.trust.metadata import TrustedMetadata, check_expiry, load_trusted
from wavemesh.trust.releases import Artifact, verify_signature_bundle
from wavemesh.trust.repository import (
    Update,
    add_release,
    publish,
    refresh_online,
    revoke_release,
    role_keys,
    sign_bundle,
)
from wavemesh.trust.statements import WaveClosed, WaveState
from wavemesh.trust.vouching import REVOKED_FIELD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuf.api.metadata import Targets

    from tests.conftest import TrustKeys
    from wavemesh.trust.releases import ReleaseManifest
    from wavemesh.trust.statements import TrustMetadata

NOW = datetime.now(UTC)
TOP, OWN, OTHER = "firmware-v3.8.2", "scanner-1.0.0", "tablet-1.0.0"


class Fleet:
    """Release keys, two class roles with a release each, and a release of targets.json itself."""

    def __init__(self, keys: TrustKeys) -> None:
        self.keys = keys
        self.scanner, self.tablet = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
        self.published, _ = keys.publish(make_manifest(TOP), now=NOW)
        for device_class, signer in (("scanner", self.scanner), ("pos-tablet", self.tablet)):
            names = ["scanner-*"] if device_class == "scanner" else ["tablet-*"]
            self.top(delegate(self.published.targets, device_class, role_keys([signer], 1), names, NOW))
        self.release("class-scanner", self.scanner, self.manifest(OWN, "scanner"))
        self.release("class-pos-tablet", self.tablet, self.manifest(OTHER, "pos-tablet"))

    @staticmethod
    def manifest(name: str, device_class: str, **changes: Any) -> ReleaseManifest:
        fields = {"version": "1.0.0", "device_class": device_class, "config": None, **changes}
        return make_manifest(name, **fields)

    def top(self, targets: bytes) -> None:
        """Publish a targets.json of the release keys."""
        signed = sign_metadata(targets, *self.keys.releases[:2])
        self.published = publish(self.published, Update(targets=signed), self.keys.online, NOW)

    def release(self, role: str, signer: CryptoSigner, manifest: ReleaseManifest) -> bytes:
        """Publish a release of a class role as its holders do; returns the bundle."""
        bundle = sign_bundle(manifest, signer)
        drafted = add_release(self.published.delegated.get(role, b""), manifest, bundle, NOW)
        update = Update(delegated={role: sign_metadata(drafted, signer)})
        self.published = publish(self.published, update, self.keys.online, NOW)
        return bundle

    def forge(self, change: Callable[[Targets], None]) -> TrustMetadata:
        """The scanner's file as the thief likes it, in a set that control's stolen keys sign."""
        metadata = read_targets(self.published.delegated["class-scanner"])
        change(metadata.signed)
        metadata.signed.version += 1
        metadata.signatures.clear()
        forged = sign_metadata(to_bytes(metadata), self.scanner)
        delegated = {**self.published.delegated, "class-scanner": forged}
        return refresh_online(dataclasses.replace(self.published, delegated=delegated), self.keys.online, NOW)

    def load(self, published: TrustMetadata, previous: TrustedMetadata | None = None) -> TrustedMetadata:
        return load_trusted(self.keys.pinned_root, published, NOW, previous)


@pytest.fixture
def fleet(trust_keys: TrustKeys) -> Fleet:
    return Fleet(trust_keys)


def put(manifest: ReleaseManifest, signer: CryptoSigner) -> Callable[[Targets], None]:
    """Define a release in a file, with none of the checks of the publishing side."""

    def change(targets: Targets) -> None:
        alone = add_release(b"", manifest, sign_bundle(manifest, signer), NOW)
        targets.targets.update(read_targets(alone).signed.targets)

    return change


def test_a_class_role_vouches_for_its_class(fleet: Fleet) -> None:
    trusted = fleet.load(fleet.published)
    assert {name: trusted.role_of(name) for name in trusted.releases()} == {
        TOP: "targets",
        OWN: "class-scanner",
        OTHER: "class-pos-tablet",
    }
    manifest = fleet.manifest("scanner-1.1.0", "scanner")
    bundle = fleet.release("class-scanner", fleet.scanner, manifest)
    trusted = fleet.load(fleet.published, trusted)
    verify_signature_bundle(bundle, trusted.require_release("scanner-1.1.0"), trusted)
    for strangers in ([fleet.tablet], fleet.keys.releases):
        with pytest.raises(SignatureGateError, match="0 of the 1"):
            verify_signature_bundle(
                sign_bundle(manifest, *strangers), trusted.require_release("scanner-1.1.0"), trusted
            )


@pytest.mark.parametrize(
    ("name", "device_class", "changes", "why"),
    [
        ("scanner-9", "pos-tablet", {}, "for class pos-tablet, for which class-scanner cannot vouch"),
        ("tablet-9", "scanner", {}, "does not belong to class-scanner"),
        (OTHER, "scanner", {}, "does not belong to class-scanner"),
        (TOP, "scanner", {}, "targets.json uses the name"),
        ("scanner-9", "scanner", {"config": make_manifest(TOP).config}, "targets.json uses the name"),
        (
            "scanner-9",
            "scanner",
            {"signature": Artifact("tablet-1.0.0.sig", make_manifest().signature.digest)},
            "belong",
        ),
    ],
)
def test_it_defines_nothing_of_anybody_else(
    fleet: Fleet, name: str, device_class: str, changes: dict[str, Any], why: str
) -> None:
    before = fleet.load(fleet.published)
    forged = fleet.manifest(name, device_class, **changes)
    trusted = fleet.load(fleet.forge(put(forged, fleet.scanner)), before)
    assert trusted.releases() == before.releases()
    assert why in " ".join(trusted.malformed_releases.values())
    assert trusted.require_release(OTHER) == before.require_release(OTHER)


def test_it_revokes_nothing_of_anybody_else(fleet: Fleet) -> None:
    def revoke_all(targets: Targets) -> None:
        targets.unrecognized_fields[REVOKED_FIELD] = dict.fromkeys((TOP, OTHER, OWN), "mine now")

    trusted = fleet.load(fleet.forge(revoke_all), fleet.load(fleet.published))
    assert set(trusted.revocations()) == {OWN}
    assert set(trusted.releases()) == {TOP, OTHER}


def test_rubbish_in_its_file_hides_nothing_of_anybody_else(fleet: Fleet) -> None:
    def rubbish(targets: Targets) -> None:
        targets.unrecognized_fields[REVOKED_FIELD] = ["x"]

    trusted = fleet.load(fleet.forge(rubbish))
    assert set(trusted.releases()) == {TOP, OTHER}
    with pytest.raises(SignatureGateError, match="must map names"):
        trusted.require_release(OWN)


def test_its_file_expired_harms_its_class_alone(fleet: Fleet) -> None:
    def expire(targets: Targets) -> None:
        targets.expires = (NOW - timedelta(days=1)).replace(microsecond=0)

    trusted = fleet.load(fleet.forge(expire))
    for name in (TOP, OTHER):
        check_expiry(trusted, NOW, name)
    with pytest.raises(GateError, match=r"class-scanner\.json version 2 expired") as refusal:
        check_expiry(trusted, NOW, OWN)
    assert refusal.value.gate == Gate.FRESHNESS.value
    assert trusted.expires_at(OWN) < NOW < trusted.expires_at(OTHER)


def test_it_is_neither_control_nor_another_class(fleet: Fleet) -> None:
    trusted = fleet.load(fleet.published)
    with pytest.raises(SignatureGateError, match="0 of the 1"):
        verify_role(sign_statement(WaveClosed("142", WaveState.CLOSED, NOW), [fleet.scanner]), WaveClosed, trusted)
    own = fleet.published.delegated["class-scanner"]
    for role in ("control", "class-unknown"):
        delegated = {**fleet.published.delegated, role: own}
        forged = refresh_online(dataclasses.replace(fleet.published, delegated=delegated), fleet.keys.online, NOW)
        with pytest.raises(SignatureGateError, match="is not delegated to"):
            fleet.load(forged)
    swapped = {**fleet.published.delegated, "class-pos-tablet": own}
    forged = refresh_online(dataclasses.replace(fleet.published, delegated=swapped), fleet.keys.online, NOW)
    with pytest.raises(SignatureGateError, match="class-pos-tablet was signed by 0/1"):
        fleet.load(forged)


def test_nobody_on_the_way_leaves_a_class_out(fleet: Fleet) -> None:
    """With the class its revocations would go."""
    without = dataclasses.replace(fleet.published, delegated={})
    with pytest.raises(SignatureGateError, match=r"lists class-pos-tablet\.json, which did not come along"):
        fleet.load(without)


def test_its_file_goes_back_for_nobody(fleet: Fleet) -> None:
    old = fleet.published
    revoked = sign_metadata(revoke_release(old.delegated["class-scanner"], OWN, "broken", NOW), fleet.scanner)
    fleet.published = publish(old, Update(delegated={"class-scanner": revoked}), fleet.keys.online, NOW)
    trusted = fleet.load(fleet.published)
    back = refresh_online(dataclasses.replace(fleet.published, delegated=old.delegated), fleet.keys.online, NOW)
    with pytest.raises(GateError, match=r"class-scanner\.json version 1 is older than 2") as refusal:
        fleet.load(back, trusted)
    assert refusal.value.gate == Gate.REPLAY.value
    with pytest.raises(ConflictError, match="has version 1; the next one is 3"):
        publish(
            fleet.published, Update(delegated={"class-scanner": old.delegated["class-scanner"]}), fleet.keys.online, NOW
        )


def test_release_keys_end_it_at_once_and_replace_it(fleet: Fleet) -> None:
    """Withdrawn by release keys alone; then new keys go on with what the thief's inflated version left."""

    def inflate(targets: Targets) -> None:
        targets.version = 10**9

    fleet.published = fleet.forge(inflate)
    stolen = fleet.load(fleet.published)
    fleet.top(withdraw(fleet.published.targets, "scanner", NOW))
    withdrawn = fleet.load(fleet.published, stolen)
    assert set(withdrawn.releases()) == {TOP, OTHER}
    new = CryptoSigner.generate_ed25519()
    replaced = delegate(fleet.published.targets, "scanner", role_keys([new], 1), ["scanner-*"], NOW)
    signed = sign_metadata(replaced, *fleet.keys.releases[1:])
    with pytest.raises(ConflictError, match="sign its next version"):
        publish(fleet.published, Update(targets=signed), fleet.keys.online, NOW)
    renewed = sign_metadata(read_next(fleet.published.delegated["class-scanner"]), new)
    update = Update(targets=signed, delegated={"class-scanner": renewed})
    fleet.published = publish(fleet.published, update, fleet.keys.online, NOW)
    again = fleet.load(fleet.published, withdrawn)
    assert set(again.releases()) == {TOP, OWN, OTHER}
    assert again.role_keys("class-scanner").keys == {new.public_key.keyid: new.public_key}


def read_next(data: bytes) -> bytes:
    metadata = read_targets(data)
    metadata.signed.version += 1
    metadata.signatures.clear()
    return to_bytes(metadata)


def test_release_keys_revoke_what_is_a_class_s(fleet: Fleet) -> None:
    """And nothing that the class says brings it back."""
    fleet.top(revoke_release(fleet.published.targets, OWN, "recalled", NOW))
    fleet.release("class-scanner", fleet.scanner, fleet.manifest("scanner-1.0.1", "scanner"))
    trusted = fleet.load(fleet.published)
    with pytest.raises(GateError, match="recalled") as refusal:
        trusted.require_release(OWN)
    assert refusal.value.gate == Gate.REVOKED.value
    assert trusted.revoked_releases()[OWN].device_class == "scanner"


def test_targets_json_wins_a_name_it_takes_later(fleet: Fleet) -> None:
    """A class's release of that name is gone, and its word on the name counts for nothing."""
    taken = fleet.manifest(OWN, "pos-tablet", version="7.0.0")
    fleet.published, _ = fleet.keys.publish(taken, now=NOW, base=fleet.published)
    trusted = fleet.load(fleet.published)
    assert (trusted.require_release(OWN).version, trusted.role_of(OWN)) == ("7.0.0", "targets")
