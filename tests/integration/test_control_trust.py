"""What control publishes of other people's keys, and how it follows its own to the next (C1, P2)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from securesystemslib.signer import CryptoSigner

from control.releases import HOLDS_KEY, METADATA_KEY, SEALED_TYPES
from tests.integration.test_control_operator import CODE, refused
from tests.session_kit import until
from tests.unit.control.control_kit import STORES, World, intent, inventory, make_world, plan
from wavemesh.codec.statements import decode
from wavemesh.errors import GateError
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE
from wavemesh.trust import ceremony
from wavemesh.trust.envelope import verify_role, verify_role_payload
from wavemesh.trust.files import sign_metadata
from wavemesh.trust.metadata import TrustedMetadata, load_trusted
from wavemesh.trust.repository import Update, add_release, revoke_release, role_keys, sign_bundle
from wavemesh.trust.statements import Envelope, HoldList, IntentKind, Permit, RevocationList, TrustMetadata, WaveOrder
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.session.frames import Resource, ResourceKey

NOW = datetime.now(UTC)
LISTED = operator_pb2.ListReleasesRequest()


@pytest.fixture
def world(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> World:
    directory = tmp_path / "control"
    directory.mkdir()
    return make_world(directory, credentials, trust_keys, make_manifest())


def new_key() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


def believed(world: World, resources: Mapping[ResourceKey, Resource]) -> tuple[TrustedMetadata, list[str]]:
    """What a node makes of all that control says; names of what it refuses."""
    published = decode(TrustMetadata, resources[METADATA_KEY].content)
    trusted = load_trusted(world.trust_keys.pinned_root, published, datetime.now(UTC), None)
    kinds: dict[str, type] = {"holds": HoldList, "revocations": RevocationList, "order": WaveOrder, "permit": Permit}
    doubted = []
    for key, resource in resources.items():
        try:
            if key.type in kinds:
                verify_role(decode(Envelope, resource.content), kinds[key.type], trusted)
            elif key.type == "policy":
                verify_role_payload(decode(Envelope, resource.content), POLICY_PAYLOAD_TYPE, trusted)
        except GateError:
            doubted.append(f"{key.type}/{key.name}")
    return trusted, doubted


async def test_a_class_of_its_own_is_published_revoked_and_listed(
    world: World, make_manifest: Callable[..., Any]
) -> None:
    keys, scan = world.trust_keys, new_key()
    publish = operator_pb2.PublishReleaseRequest
    async with world.serving() as served, served.calling() as stub:
        listed = await stub.ListReleases(LISTED)
        assert list(listed.roots) == [keys.pinned_root]
        delegated = ceremony.delegate(listed.targets, "scanner", role_keys([scan], 1), ["scanner-*"], NOW)
        manifest = make_manifest("scanner-1", device_class="scanner", config=None)
        first = sign_metadata(add_release(b"", manifest, sign_bundle(manifest, scan), NOW), scan)
        async with refused(CODE.FAILED_PRECONDITION, "CONFLICT") as refusal:
            await stub.PublishRelease(publish(delegated={"class-scanner": first}))
        assert "delegates nothing to class-scanner" in str(refusal.error)
        request = publish(targets=sign_metadata(delegated, *keys.releases[:2]), delegated={"class-scanner": first})
        answers = [await stub.PublishRelease(request) for _ in range(2)]
        assert [answer.duplicate for answer in answers] == [False, True]
        alien = make_manifest("scanner-2", config=None)
        second = sign_metadata(add_release(first, alien, sign_bundle(alien, scan), NOW), scan)
        async with refused(CODE.INVALID_ARGUMENT, "BAD_MANIFEST") as refusal:
            await stub.PublishRelease(publish(delegated={"class-scanner": second}))
        assert "for class pos-tablet, for which class-scanner cannot vouch" in str(refusal.error)
        await stub.SetHold(operator_pb2.SetHoldRequest(release="scanner-1", held=True, reason="odd"))
        revoked = sign_metadata(revoke_release(first, "scanner-1", "worse", NOW), scan)
        await stub.PublishRelease(publish(delegated={"class-scanner": revoked}))
        await stub.SetHold(operator_pb2.SetHoldRequest(release="scanner-1", held=False))
        found = {one.name: one for one in (await stub.ListReleases(LISTED)).releases}
        assert (found["scanner-1"].role, found["scanner-1"].revoked_reason) == ("class-scanner", "worse")
        assert (found["firmware-v3.8.2"].role, found["firmware-v3.8.2"].revoked_reason) == ("targets", "")
        [audited] = (await stub.ListAudit(operator_pb2.ListAuditRequest(page_size=1))).entries
        assert audited.action == "release.lift"
        with pytest.raises(GateError, match="revoked: worse"):
            served.control.core.releases.require_usable("scanner-1")
    async with world.serving() as served:
        assert "scanner-1" in served.control.core.releases.trusted.revoked_releases()


async def test_control_follows_its_own_keys(world: World) -> None:
    """All that is in force is said again with the next key, in the transaction that gives it the role."""
    keys, control, online = world.trust_keys, new_key(), new_key()
    publish = operator_pb2.PublishReleaseRequest
    async with world.serving() as served, served.calling() as stub:
        listed = await stub.ListReleases(LISTED)
        targets = sign_metadata(
            ceremony.replace_key(listed.targets, keys.control.public_key, control.public_key, NOW), *keys.releases[:2]
        )
        root = ceremony.replace_key(keys.pinned_root, keys.online.public_key, online.public_key, NOW)
        root = sign_metadata(root, keys.root)
        for early in (publish(targets=targets), publish(roots=[root])):
            async with refused(CODE.FAILED_PRECONDITION, "CONFLICT") as refusal:
                await stub.PublishRelease(early)
            assert "-next.pem" in str(refusal.error)
    for name, signer in (("control", control), ("online", online)):
        (world.directory / "keys" / f"{name}-next.pem").write_bytes(signer.private_bytes)
    async with world.serving() as served, served.calling() as stub, served.region() as region:
        await stub.ApplyInventory(inventory())
        for store in STORES:
            region.hub(store)
        await stub.PlanWave(plan())
        await stub.SubmitIntent(intent(world, IntentKind.START_WAVE))
        await stub.RevokeNode(operator_pb2.RevokeNodeRequest(path="operator/mallory", reason="left the company"))
        await until(lambda: {key.type for key in region.sink.resources} >= SEALED_TYPES - {"closed"}, region.sink)
        trusted, doubted = believed(world, region.sink.resources)
        assert (list(trusted.role_keys("control").keys), doubted) == ([keys.control.public_key.keyid], [])
        before = dict(region.sink.resources)
        await stub.PublishRelease(publish(targets=targets, roots=[root]))
        await until(
            lambda: all(
                resource.content != before[key].content
                for key, resource in region.sink.resources.items()
                if key.type in SEALED_TYPES | {"tuf"}
            ),
            region.sink,
        )
        trusted, doubted = believed(world, region.sink.resources)
        assert (list(trusted.role_keys("control").keys), doubted) == ([control.public_key.keyid], [])
        assert trusted.root.version == 2
        assert region.sink.resources.keys() == before.keys()
    for name in ("control", "online"):
        (world.directory / "keys" / f"{name}-next.pem").replace(world.directory / "keys" / f"{name}.pem")
    async with world.serving() as served, served.region() as region:
        await until(lambda: HOLDS_KEY in region.sink.resources and METADATA_KEY in region.sink.resources, region.sink)
        assert believed(world, region.sink.resources)[1] == []


async def test_a_publication_that_is_rolled_back_never_was(world: World) -> None:
    """What fails after it in the same transaction takes the metadata back, and the key that control speaks with."""
    keys, control = world.trust_keys, new_key()
    (world.directory / "keys" / "control-next.pem").write_bytes(control.private_bytes)
    async with world.serving() as served:
        core = served.control.core
        before = core.releases.trusted
        targets = ceremony.replace_key(
            before.source.targets, keys.control.public_key, control.public_key, datetime.now(UTC)
        )
        update = Update(targets=sign_metadata(targets, *keys.releases[:2]))

        async def publish_and_fail() -> None:
            async with core.database.transaction() as tx:
                assert await core.releases.publish(tx, update)
                assert core.signing.control.public_key == control.public_key
                raise RuntimeError("the disk broke")

        with pytest.raises(RuntimeError, match="the disk broke"):
            await publish_and_fail()
        assert core.releases.trusted is before
        assert core.signing.control.public_key == keys.control.public_key
        [sealed] = await core.signing.seal([core.releases.holds])
        assert verify_role(decode(Envelope, sealed), HoldList, before) == core.releases.holds


async def test_a_refused_publication_leaves_control_as_it_was(world: World) -> None:
    """A root whose own keys do not sign it, brought together with good targets: nothing of it is published."""
    keys, other = world.trust_keys, new_key()
    root = ceremony.draft_root(keys.pinned_root, {"root": role_keys([other], 1)}, NOW)
    async with world.serving() as served, served.calling() as stub:
        listed = await stub.ListReleases(LISTED)
        targets = sign_metadata(ceremony.renew(listed.targets, NOW), *keys.releases[:2])
        request = operator_pb2.PublishReleaseRequest(targets=targets, roots=[sign_metadata(root, keys.root)])
        async with refused(CODE.FAILED_PRECONDITION, "GATE") as refusal:
            await stub.PublishRelease(request)
        assert refusal.error.details["gate"] == "signature"
        after = await stub.ListReleases(LISTED)
        assert (list(after.roots), after.targets) == (list(listed.roots), listed.targets)
        request = operator_pb2.PublishReleaseRequest(targets=targets, roots=[sign_metadata(root, keys.root, other)])
        assert not (await stub.PublishRelease(request)).duplicate
