"""A hostile hub and what says which software is good: TUF metadata, policies, holds, revocations (P2).

The attacker is given more than a hub has where that makes the attack stronger: control's and the online keys too.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from tests.conftest import make_manifest
from tests.device_directory import digest_of, image_of
from wavemesh.codec.statements import decode, encode
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE, policy_digest, policy_to_json
from wavemesh.policy.reader import parse_policy
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.ceremony import draft_root
from wavemesh.trust.envelope import sign_as_node, sign_with_keys
from wavemesh.trust.files import expiry, read_targets, sign_metadata, to_bytes
from wavemesh.trust.releases import Artifact
from wavemesh.trust.repository import (
    Update,
    add_release,
    publish,
    publish_targets,
    refresh_online,
    revoke_release,
    role_keys,
    sign_bundle,
)
from wavemesh.trust.statements import (
    Hold,
    HoldList,
    Revocation,
    RevocationList,
    RevocationReach,
    TrustMetadata,
    UpdateState,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.security.hostile_kit import Stage
    from wavemesh.trust.releases import ReleaseManifest

NOW = datetime.now(UTC)


def served(stage: Stage) -> TrustMetadata:
    """The set that the hub serves now."""
    return decode(TrustMetadata, stage.hub.wanted[ResourceKey("tuf", "metadata")].content)


def serve(stage: Stage, metadata: TrustMetadata) -> None:
    stage.hub.serve("tuf", "metadata", encode(metadata))


async def refuses(stage: Stage, metadata: TrustMetadata, gate: str, says: str = "") -> None:
    await stage.refuses("tuf", "metadata", encode(metadata), gate, says)


def evil() -> ReleaseManifest:
    """Firmware that nobody but the attacker wants."""
    firmware = Artifact("evil.img", digest_of(image_of("6.6.6", 4096)))
    return make_manifest("evil-v6.6.6", version="6.6.6", firmware=firmware, config=None)


def with_evil(stage: Stage, before: TrustMetadata, signers: Sequence[CryptoSigner]) -> TrustMetadata:
    """The set with the attacker's release, as the online keys vouch for it, its targets signed by these keys."""
    manifest = evil()
    bundle = sign_bundle(manifest, *(signers or stage.hub.keys.releases[:2]))
    targets = add_release(before.targets, manifest, bundle, NOW)
    metadata = read_targets(targets)
    metadata.signatures.clear()
    forged = replace(before, targets=sign_metadata(to_bytes(metadata), *signers))
    return refresh_online(forged, stage.hub.keys.online, NOW)


async def test_arbitrary_software(stage: Stage) -> None:
    """Unsigned, signed by other keys, signed by one of the two that it takes: never believed (P2)."""
    strangers, honest = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()], served(stage)
    for signers in ([], strangers, stage.hub.keys.releases[:1]):
        forged = with_evil(stage, honest, signers)
        await refuses(stage, forged, "signature", says="targets")
    serve(stage, with_evil(stage, honest, stage.hub.keys.releases[:2]))
    await stage.hub.until(lambda: len(stage.hub.verdicts("tuf")) == 2)
    await stage.updates()


async def test_arbitrary_software_by_order(stage: Stage) -> None:
    """An order of control's own for a release that release keys never signed is refused by name."""
    before = stage.victim.standing()
    stage.hub.order(release="evil-v6.6.6")
    await stage.hub.until(lambda: ("REFUSED", "signature", 0) in stage.hub.words())
    assert stage.victim.standing().files == before.files
    await stage.updates(generation=2)


async def test_older_metadata(stage: Stage) -> None:
    """An older timestamp, snapshot or targets.json, and one of the same version that says something else (replay)."""
    old, keys = served(stage), stage.hub.keys
    newer = refresh_online(refresh_online(old, keys.online, NOW), keys.online, NOW)
    serve(stage, newer)
    await stage.hub.until(lambda: len(stage.hub.verdicts("tuf")) == 2)
    await refuses(stage, old, "replay", says="timestamp version")
    other = refresh_online(refresh_online(old, keys.online, NOW), keys.online, NOW + timedelta(hours=1))
    contradicted = replace(newer, timestamp=other.timestamp, snapshot=other.snapshot)
    await refuses(stage, contradicted, "replay", says="two different timestamps")
    older_targets = refresh_online(replace(newer, targets=keys.empty.targets), keys.online, NOW)
    await refuses(stage, older_targets, "replay", says="targets.json version")
    serve(stage, refresh_online(newer, keys.online, NOW))
    await stage.updates()


async def test_release_brought_back_after_its_revocation(stage: Stage) -> None:
    """The set of before a revocation is a replay; the revoked release is refused by that name."""
    old, keys = served(stage), stage.hub.keys
    manifest = make_manifest("firmware-v3.8.3", version="3.8.3", config=stage.hub.release.config)
    grown, bundles = keys.publish(manifest, now=NOW, base=old)
    revoked = sign_metadata(revoke_release(grown.targets, manifest.name, "bricks", NOW), *keys.releases[:2])
    stage.hub.blobs.content.update({digest_of(one).sha256: one for one in bundles.values()})
    after = publish_targets(grown, revoked, keys.online, NOW)
    serve(stage, after)
    await stage.hub.until(lambda: len(stage.hub.verdicts("tuf")) == 2)
    await refuses(stage, grown, "replay")
    stage.hub.order(release=manifest.name)
    await stage.hub.until(lambda: ("REFUSED", "revoked", 0) in stage.hub.words())
    serve(stage, refresh_online(after, keys.online, NOW))
    await stage.updates(generation=2)


async def test_older_release(stage: Stage) -> None:
    """A release that was good once, properly signed and below what runs, is below the rollback floor."""
    firmware = Artifact("firmware-v3.7.0.img", digest_of(image_of("3.7.0", 4096)))
    old = make_manifest("firmware-v3.7.0", version="3.7.0", firmware=firmware, config=stage.hub.release.config)
    grown, _ = stage.hub.keys.publish(old, now=NOW, base=served(stage))
    serve(stage, grown)
    stage.hub.policy(firmware="firmware-v3.7.0.img", signature="firmware-v3.7.0.sig")
    stage.hub.order(release=old.name)
    await stage.hub.until(lambda: ("REFUSED", "rollback-floor", 0) in stage.hub.words())
    assert stage.hub.statuses[-1].slot == "A"
    stage.hub.policy()
    await stage.updates(generation=2)


async def test_frozen_metadata(stage: Stage) -> None:
    """Stale metadata served for ever: refused when offered, and what is held arms nothing once it has expired."""
    keys, honest = stage.hub.keys, served(stage)
    lifetime = expiry("timestamp", NOW) - NOW
    expired = refresh_online(honest, keys.online, NOW - lifetime - timedelta(days=1))
    await refuses(stage, expired, "freshness", says="expired")
    stage.hub.grants_leases = False
    serve(stage, refresh_online(honest, keys.online, datetime.now(UTC) - lifetime + timedelta(seconds=2.0)))
    stage.hub.order()
    await stage.hub.until_state(UpdateState.VERIFIED)
    before = stage.victim.standing()
    await stage.hub.until(lambda: datetime.now(UTC) > NOW and _is_expired(stage))
    stage.hub.grant(1)
    await stage.hub.until(lambda: stage.hub.statuses[-1].gate == "freshness")
    assert stage.hub.statuses[-1].state is UpdateState.VERIFIED
    assert [line for line in stage.victim.log() if "waits before ARM: freshness: timestamp.json" in line]
    assert stage.victim.standing().files == before.files
    again = refresh_online(served(stage), keys.online, datetime.now(UTC))
    serve(stage, again)
    stage.hub.grants_leases = True
    await stage.updates()


def _is_expired(stage: Stage) -> bool:
    return bool(Metadata.from_bytes(served(stage).timestamp).signed.is_expired(datetime.now(UTC)))


async def test_frozen_holds(stage: Stage) -> None:
    """A view of holds older than holdMaxAge arms nothing, whatever it says."""
    stage.hub.forget("holds", "fleet")
    await stage.hub.until(lambda: "fleet" not in [one.key.name for one in stage.victim.document.held])
    old = HoldList(2, (), datetime.now(UTC) - timedelta(hours=25))
    stage.hub.serve("holds", "fleet", stage.hub.forged(old))
    stage.hub.order()
    await stage.hub.until(lambda: bool(stage.hub.statuses) and stage.hub.statuses[-1].gate == "freshness")
    assert stage.hub.statuses[-1].state is UpdateState.VERIFIED
    assert stage.victim.directory.environment().trial is None
    assert [line for line in stage.victim.log() if "the view of holds is" in line]
    stage.hub.hold(epoch=2)
    await stage.updates()


async def test_fast_forward(stage: Stage) -> None:
    """Whoever stole the online key counts versions up as far as it likes; new keys in root undo that, nothing else."""
    keys, honest = stage.hub.keys, served(stage)
    far = honest
    for _ in range(4):
        far = refresh_online(far, keys.online, NOW)
    serve(stage, far)
    await stage.hub.until(lambda: len(stage.hub.verdicts("tuf")) == 2)
    await refuses(stage, refresh_online(honest, keys.online, NOW), "replay")
    fresh = CryptoSigner.generate_ed25519()
    roles = {
        "root": role_keys([keys.root], 1),
        "targets": role_keys(keys.releases, 2),
        "snapshot": role_keys([fresh], 1),
        "timestamp": role_keys([fresh], 1),
    }
    root = sign_metadata(draft_root(honest.roots[-1], roles, NOW), keys.root)
    serve(stage, publish(honest, Update(roots=(root,)), fresh, NOW))
    await stage.hub.until(lambda: len(stage.hub.verdicts("tuf")) == 3)
    await stage.updates()


async def test_mix_and_match(stage: Stage) -> None:
    """Files of different sets, and parts of different releases, do not go together."""
    keys, honest = stage.hub.keys, served(stage)
    other = make_manifest("firmware-v3.8.3", version="3.8.3", config=Artifact("other.tar.gz", digest_of(b"other")))
    grown, _ = keys.publish(other, now=NOW, base=honest)
    mixed = replace(grown, targets=honest.targets)
    await refuses(stage, mixed, "signature", says="is not the one listed")
    mixed = replace(refresh_online(grown, keys.online, NOW), snapshot=grown.snapshot)
    await refuses(stage, mixed, "signature", says="is not the one listed")
    serve(stage, grown)
    stage.hub.policy(config="other.tar.gz")
    stage.hub.order()
    await stage.hub.until(lambda: ("REFUSED", "signature", 0) in stage.hub.words())
    assert "does not contain" in stage.hub.outcomes()[-1].evidence
    stage.hub.policy()
    await stage.updates(generation=2)


async def test_policy_of_another_digest(stage: Stage) -> None:
    """A genuine policy under the name that the order asks for is not the policy that the order asks for."""
    lax = policy_to_json(parse_policy(stage.hub.policy_text.replace(b"minBattery: 40", b"minBattery: 1"), "p.yaml"))
    digest = stage.hub.policy_digest
    content = encode(sign_with_keys(POLICY_PAYLOAD_TYPE, lax, [stage.hub.keys.control]))
    assert policy_digest(lax) != digest
    await stage.refuses("policy", digest, content, "signature")
    stage.hub.policy()
    await stage.updates()


async def test_forged_policy(stage: Stage) -> None:
    """A policy of the hub's own making: unsigned, or signed by a key that is not control's."""
    payload = policy_to_json(parse_policy(stage.hub.policy_text.replace(b"minBattery: 40", b"minBattery: 1"), "p.yaml"))
    name = policy_digest(payload)
    for signers in ([], [stage.hub.keys.online]):
        content = encode(sign_with_keys(POLICY_PAYLOAD_TYPE, payload, signers))
        await stage.refuses("policy", name, content, "signature", "0 of the 1 signatures")
    stage.hub.forget("policy", name)
    await stage.updates()


async def test_older_holds(stage: Stage) -> None:
    """A hold stays until control lifts it: an older list, another one of the same epoch, a forged one are refused."""
    stage.hub.hold(Hold(stage.hub.release.name, "", "scanner"), epoch=5)
    stage.hub.order()
    await stage.hub.until(lambda: ("REFUSED", "hold", 0) in stage.hub.words())
    now = datetime.now(UTC)
    for epoch, gate in ((4, "replay"), (5, "replay")):
        content = stage.hub.forged(HoldList(epoch, (), now))
        await stage.refuses("holds", "fleet", content, gate)
    forged = stage.hub.forged(HoldList(6, (), now), stage.hub.keys.online)
    await stage.refuses("holds", "fleet", forged, "signature")
    stage.hub.forget("holds", "fleet")
    old = stage.hub.forged(HoldList(4, (), now - timedelta(hours=1)))
    await stage.hub.until(lambda: "fleet" not in [one.key.name for one in stage.victim.document.held])
    await stage.refuses("holds", "fleet", old, "replay", "was seen before")
    stage.hub.hold(epoch=6)
    await stage.updates()


async def test_forged_revocations(stage: Stage) -> None:
    """A hub takes nobody's certificate back, nor gives one back: not control's, not the device's own (ADR 10)."""
    hub, now = stage.hub, datetime.now(UTC)
    true = RevocationList(3, (Revocation("operator/mallory", RevocationReach.NODE, now, "stolen"),), now)
    hub.serve("revocations", "fleet", hub.forged(true))
    await hub.until(lambda: bool(hub.verdicts("revocations")))
    for path in ("control/one", "region/midwest/store/store-208/device/pos-01"):
        listed = RevocationList(9, (Revocation(path, RevocationReach.BELOW, now, "because"),), now)
        content = hub.forged(listed, hub.keys.online)
        await stage.refuses("revocations", "fleet", content, "signature")
    for epoch, says in ((2, "older"), (3, "two different lists")):
        content = hub.forged(RevocationList(epoch, (), now))
        await stage.refuses("revocations", "fleet", content, "replay", says)
    hub.serve("revocations", "fleet", hub.forged(true))
    await stage.updates()


async def test_second_name(stage: Stage) -> None:
    """What there is one of has one name: a second could never be removed again, and thousands would end all updates."""
    stage.hub.serve("revocations", "fleet", stage.hub.forged(RevocationList(1, (), datetime.now(UTC))))
    await stage.hub.until(lambda: bool(stage.hub.verdicts("revocations")))
    for kind, name in (("tuf", "metadata"), ("holds", "fleet"), ("revocations", "fleet")):
        content = stage.hub.wanted[ResourceKey(kind, name)].content
        await stage.refuses(kind, "another", content, "signature")
        stage.hub.forget(kind, "another")
    await stage.updates()


async def test_huge_metadata(stage: Stage) -> None:
    """Endless data where metadata is expected: files beyond their bound, and roots without end."""
    honest = served(stage)
    bloated = replace(honest, targets=honest.targets + b" " * (1024 * 1024 - len(encode(honest)) - 64))
    await refuses(stage, bloated, "signature")
    roots = replace(honest, roots=(*honest.roots, *(b"[" * 2000 for _ in range(63))))
    await refuses(stage, roots, "signature")
    serve(stage, refresh_online(honest, stage.hub.keys.online, NOW))
    await stage.updates()


async def test_key_of_the_hub_signs_as_control(stage: Stage) -> None:
    """The hub's own certificate, valid as it is, signs nothing that is control's to sign (D11)."""
    hub = stage.hub
    forged = encode(sign_as_node(HoldList(9, (), datetime.now(UTC)), hub.me))
    await stage.refuses("holds", "fleet", forged, "signature")
    hub.hold(epoch=2)
    await stage.updates()
