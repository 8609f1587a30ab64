"""Fixtures for every test: a fleet with a CA, credentials for any node of it, role keys and a TUF repository."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from securesystemslib.signer import CryptoSigner

from wavemesh.identity.ca import REGION_LIFETIME, FleetCa, Issuer, RegionCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.trust.files import sign_metadata
from wavemesh.trust.releases import UNKNOWN_DIGEST, Artifact, ReleaseManifest
from wavemesh.trust.repository import add_release, create_repository, publish_targets, sign_bundle
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.trust.statements import TrustMetadata

FLEET = "test.example"


class CredentialsFactory(Protocol):
    """Credentials of the node at that path ("region/midwest/store/store-208"), made once a session."""

    def __call__(self, path: str) -> NodeCredentials: ...


@pytest.fixture(scope="session")
def fleet() -> str:
    return FLEET


@pytest.fixture(scope="session")
def fleet_ca() -> FleetCa:
    """The CA of the test fleet, valid since yesterday."""
    return FleetCa.create(FLEET, datetime.now(UTC) - timedelta(days=1))


class Issuers:
    """The fleet's root and one authority a region, made when first needed."""

    def __init__(self, ca: FleetCa) -> None:
        self._ca = ca
        # Not as early as the root, so that there can have been an earlier one.
        self.since = ca.certificate.not_valid_before_utc + timedelta(minutes=1)
        self._regions: dict[str, RegionCa] = {}

    def issuer(self, path: str) -> Issuer:
        """Who issues for the node at that path."""
        kind, name = path.split("/")[:2]
        if kind != "region":
            return self._ca
        if name not in self._regions:
            since = self.since
            self._regions[name] = RegionCa.create(self._ca, name, not_before=since, not_after=since + REGION_LIFETIME)
        return self._regions[name]


@pytest.fixture(scope="session")
def credentials(fleet_ca: FleetCa, tmp_path_factory: pytest.TempPathFactory) -> CredentialsFactory:
    """Factory of real credentials; every certificate also names 127.0.0.1. Nodes of a region are its authority's."""
    made: dict[str, NodeCredentials] = {}
    issuers = Issuers(fleet_ca)

    def make(path: str) -> NodeCredentials:
        if path not in made:
            now = datetime.now(UTC)
            made[path] = write_node(
                tmp_path_factory.mktemp("identity"),
                issuers.issuer(path),
                NodeId(FLEET, path),
                not_before=now - timedelta(hours=1),
                not_after=now + timedelta(days=90),
                ip_addresses=[IPv4Address("127.0.0.1")],
            )
        return made[path]

    return make


@dataclass(frozen=True, slots=True)
class TrustKeys:
    """All role keys of the test fleet, and an empty repository signed by them."""

    root: CryptoSigner
    releases: tuple[CryptoSigner, CryptoSigner, CryptoSigner]
    online: CryptoSigner
    control: CryptoSigner
    empty: TrustMetadata

    @property
    def pinned_root(self) -> bytes:
        return self.empty.roots[0]

    def publish(
        self, *manifests: ReleaseManifest, now: datetime, base: TrustMetadata | None = None
    ) -> tuple[TrustMetadata, dict[str, bytes]]:
        """The set after publishing those releases, each signed 2 of 3, and the signature bundles by name."""
        published, bundles = base or self.empty, {}
        for manifest in manifests:
            bundle = sign_bundle(manifest, *self.releases[:2])
            bundles[manifest.signature.name] = bundle
            targets = sign_metadata(add_release(published.targets, manifest, bundle, now), *self.releases[:2])
            published = publish_targets(published, targets, self.online, now)
        return published, bundles


def make_trust_keys() -> TrustKeys:
    """Keys and an empty repository, made an hour ago."""
    root, online, control = (CryptoSigner.generate_ed25519() for _ in range(3))
    releases = (CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519())
    empty = create_repository(
        root=[root],
        releases=releases,
        online=[online],
        control=[control],
        now=datetime.now(UTC) - timedelta(hours=1),
    )
    return TrustKeys(root, releases, online, control, empty)


@pytest.fixture(scope="session")
def trust_keys() -> TrustKeys:
    """Keys for all tests."""
    return make_trust_keys()


def make_manifest(name: str = "firmware-v3.8.2", **changes: Any) -> ReleaseManifest:
    """A release signed now, with made-up artifacts named after it; ``changes`` replace fields."""

    def artifact(file: str) -> Artifact:
        return Artifact(file, Digest(hashlib.sha256(file.encode()).hexdigest(), len(file)))

    fields: dict[str, Any] = {
        "name": name,
        "version": "3.8.2",
        "device_class": "pos-tablet",
        "hardware_revisions": ("r2",),
        "signed_at": datetime.now(UTC).replace(microsecond=0),
        "firmware": artifact(f"{name}.img"),
        "config": artifact("pos-app-12.4.1.tar.gz"),
        "signature": Artifact(f"{name}.sig", UNKNOWN_DIGEST),
        "config_version": "12.4.1",
        "boot_probe": "systemd-analyze verify /boot/inactive",
        "peripheral_checks": ("lsusb | grep scanner",),
    }
    return ReleaseManifest(**{**fields, **changes})


@pytest.fixture(name="make_manifest", scope="session")
def make_manifest_fixture() -> Callable[..., ReleaseManifest]:
    """``make_manifest`` for tests."""
    return make_manifest
