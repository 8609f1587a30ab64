"""The fleet around the device under test: keys, certificates, releases and what control and an operator sign.

Made once per process, at a fixed moment of virtual time; nothing here changes afterwards.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from securesystemslib.signer import CryptoSigner

from tests.conftest import FLEET, TrustKeys, make_manifest
from wavemesh.codec.statements import encode
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.csr import key_of_request
from wavemesh.identity.nodes import NodeId
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE, policy_digest, policy_to_json
from wavemesh.policy.reader import parse_policy
from wavemesh.trust.enrolments import IssuedCertificate
from wavemesh.trust.envelope import sign_as_node, sign_statement, sign_with_keys
from wavemesh.trust.releases import Artifact, ReleaseManifest
from wavemesh.trust.repository import create_repository
from wavemesh.trust.statements import Digest, HoldList, IntentKind, OperatorIntent, WaveClosed, WaveOrder, WaveState

if TYPE_CHECKING:
    from wavemesh.identity.credentials import NodeCredentials

BEGAN_AT = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
HUB = NodeId(FLEET, "region/midwest/store/store-208")
DEVICE = NodeId(FLEET, f"{HUB.path}/device/pos-01")
IMAGE_BYTES = 9 * 1024
SLOT_BYTES = 12 * 1024
FSYNC_STEP_BYTES = 4 * 1024
OLD, NEW, NEWEST = "3.8.1", "3.8.2", "3.8.3"
OLD_CONFIG, NEW_CONFIG, NEWEST_CONFIG = "12.3.0", "12.4.1", "12.4.2"
CONFIG_OF = {OLD: OLD_CONFIG, NEW: NEW_CONFIG, NEWEST: NEWEST_CONFIG}
BOOT_PROBE = "systemd-analyze verify /boot/inactive"
SCANNER_CHECK = "lsusb | grep scanner"

POLICY = """\
targets: {segment: retail-us-midwest, percentage: 100, hubBudget: 2}
guardrails:
  requireDualPartition: true
  rollbackOnHealthLossMins: 5
  offlineRollbackAllowed: %(offline_rollback)s
artifacts: {%(artifacts)s}
verification:
  bootProbe: "systemd-analyze verify /boot/inactive"
  peripheralChecks: ["lsusb | grep scanner"]
  healthPingEndpoint: "https://control-plane/health"
  healthAuthority: either
"""


def image_of(version: str) -> bytes:
    """The firmware of that version: the same bytes each time."""
    return Random(version).randbytes(IMAGE_BYTES)


def config_of(version: str) -> bytes:
    """A config bundle; less than two sectors."""
    return Random(version).randbytes(700)


def digest_of(content: bytes) -> Digest:
    return Digest(hashlib.sha256(content).hexdigest(), len(content))


@dataclass(frozen=True, slots=True)
class Served:
    """A resource as it is served, by type and name."""

    type: str
    name: str
    content: bytes


@dataclass(slots=True)
class Fleet:
    """Keys and what they signed."""

    keys: TrustKeys
    ca: FleetCa
    device_files: dict[str, bytes]
    hub: NodeCredentials
    operator: NodeCredentials
    releases: dict[str, ReleaseManifest]
    blobs: dict[str, bytes]
    metadata: bytes

    def trust(self) -> list[Served]:
        """What every device gets first."""
        holds = sign_statement(HoldList(1, (), BEGAN_AT), [self.keys.control])
        return [Served("tuf", "metadata", self.metadata), Served("holds", "fleet", encode(holds))]

    def policy(self, version: str, *, firmware: bool = True, offline_rollback: bool = True) -> tuple[str, Served]:
        """A policy for a release: its digest, and the resource."""
        release = self.releases[version]
        names = {
            "firmware": release.firmware.name if firmware and release.firmware else "",
            "config": release.config.name if release.config else "",
            "signature": release.signature.name,
        }
        artifacts = ", ".join(f"{key}: {name}" for key, name in names.items() if name)
        text = POLICY % {"offline_rollback": str(offline_rollback).lower(), "artifacts": artifacts}
        payload = policy_to_json(parse_policy(text.encode(), "policy.yaml"))
        envelope = sign_with_keys(POLICY_PAYLOAD_TYPE, payload, [self.keys.control])
        digest = policy_digest(payload)
        return digest, Served("policy", digest, encode(envelope))

    def order(
        self, wave_id: str, version: str, *, state: WaveState = WaveState.RUNNING, rotates: bool = False, **policy: bool
    ) -> list[Served]:
        """An order with its policy."""
        digest, served = self.policy(version, **policy)
        order = WaveOrder(
            wave_id=wave_id,
            generation=1,
            state=state,
            cohort="retail-us-midwest",
            device_class="pos-tablet",
            hardware_revision="r2",
            store=HUB.path,
            devices=(DEVICE.name,),
            release=self.releases[version].name,
            policy_digest=digest,
            least_hold_epoch=1,
            # A later wave is the newer one.
            issued_at=BEGAN_AT + timedelta(seconds=int(wave_id)),
            expires_at=BEGAN_AT + timedelta(days=2),
            planned_at=BEGAN_AT if rotates else None,
        )
        envelope = sign_statement(order, [self.keys.control])
        return [served, Served("order", f"{wave_id}/{HUB.name}", encode(envelope))]

    def closed(self, wave_id: str) -> Served:
        """Control closed the wave."""
        closed = WaveClosed(wave_id, WaveState.CLOSED, BEGAN_AT)
        return Served("closed", wave_id, encode(sign_statement(closed, [self.keys.control])))

    def rollback(self, number: int = 1) -> Served:
        """An operator's signed word: go back; ``number`` tells it from another."""
        return self._intent(OperatorIntent(f"{number:032x}", IntentKind.ROLLBACK_DEVICE, BEGAN_AT, device=DEVICE.name))

    def approval(self, wave_id: str, attempt: int) -> Served:
        """An operator's signed word: this attempt may be rolled back."""
        intent_id = f"{1000 + attempt:032x}"
        kind, device = IntentKind.APPROVE_ROLLBACK, DEVICE.name
        return self._intent(OperatorIntent(intent_id, kind, BEGAN_AT, wave_id, device=device, attempt=attempt))

    def _intent(self, intent: OperatorIntent) -> Served:
        return Served("intent", intent.intent_id, encode(sign_as_node(intent, self.operator)))

    def issue(self, csr: bytes, now: datetime) -> IssuedCertificate:
        """The device's next certificate."""
        leaf = self.ca.issue(DEVICE, key_of_request(csr), not_before=now, not_after=now + timedelta(days=30))
        return IssuedCertificate(leaf.public_bytes(serialization.Encoding.DER), (), now)


@cache
def the_fleet() -> Fleet:
    """The one fleet of this process."""
    root, online, control = (CryptoSigner.generate_ed25519() for _ in range(3))
    releases = (CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519())
    empty = create_repository(
        root=[root], releases=releases, online=[online], control=[control], now=BEGAN_AT - timedelta(hours=1)
    )
    keys = TrustKeys(root, releases, online, control, empty)
    ca = FleetCa.create(FLEET, BEGAN_AT - timedelta(days=1))
    manifests = {version: _manifest(version) for version in (NEW, NEWEST)}
    metadata, bundles = keys.publish(*manifests.values(), now=BEGAN_AT)
    contents = [*map(image_of, manifests), *(config_of(CONFIG_OF[one]) for one in manifests), *bundles.values()]
    with tempfile.TemporaryDirectory() as directory:
        made = {node: _node(Path(directory) / str(number), ca, node) for number, node in enumerate(_nodes())}
        files = {file.name: file.read_bytes() for file in sorted((Path(directory) / "1").iterdir())}
    return Fleet(
        keys=keys,
        ca=ca,
        device_files=files,
        hub=made[HUB],
        operator=made[_nodes()[2]],
        releases=manifests,
        blobs={digest_of(content).sha256: content for content in contents},
        metadata=encode(metadata),
    )


def _nodes() -> tuple[NodeId, NodeId, NodeId]:
    return HUB, DEVICE, NodeId(FLEET, "operator/alice")


def _node(directory: Path, ca: FleetCa, node: NodeId) -> NodeCredentials:
    since = BEGAN_AT - timedelta(hours=1)
    return write_node(directory, ca, node, not_before=since, not_after=since + timedelta(days=30))


def _manifest(version: str) -> ReleaseManifest:
    config_version = CONFIG_OF[version]
    return make_manifest(
        f"firmware-v{version}",
        version=version,
        signed_at=BEGAN_AT - timedelta(days=20),
        firmware=Artifact(f"firmware-v{version}.img", digest_of(image_of(version))),
        config=Artifact(f"pos-app-{config_version}.tar.gz", digest_of(config_of(config_version))),
        config_version=config_version,
        requires_config=f">={config_version}",
    )
