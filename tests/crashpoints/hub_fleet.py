"""The fleet around a hub under test: who signs, and what. Made once per process, at a fixed moment of virtual time."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.conftest import FLEET
from tests.crashpoints.fleet import BEGAN_AT, HUB, Served, the_fleet
from wavemesh.codec.statements import encode
from wavemesh.identity.ca import RegionCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE, policy_digest, policy_to_json
from wavemesh.policy.reader import parse_policy
from wavemesh.trust.envelope import sign_as_node, sign_statement, sign_with_keys
from wavemesh.trust.statements import (
    Hold,
    HoldList,
    IntentCancellation,
    IntentKind,
    OperatorIntent,
    Permit,
    Revocation,
    RevocationList,
    RevocationReach,
    WaveClosed,
    WaveOrder,
    WaveState,
)

if TYPE_CHECKING:
    from tests.crashpoints.fleet import Fleet
    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.trust.statements import Envelope

SUPER_HUB = NodeId(FLEET, "region/midwest")
OTHER_STORE = NodeId(FLEET, "region/midwest/store/store-209")
DEVICES = tuple(NodeId(FLEET, f"{HUB.path}/device/pos-0{number}") for number in (1, 2, 3))
OPERATOR = NodeId(FLEET, "operator/alice")
LIMIT = 1
SHORT_LIVED, SHORT = f"{HUB.path}, soon to renew", timedelta(hours=4)
ATTEMPTS = 3

POLICY = """\
targets: {segment: retail-us-midwest, percentage: 100, hubBudget: 2}
guardrails: {requireDualPartition: true, rollbackOnHealthLossMins: 5, maxConcurrentSwaps: %(limit)d}
artifacts: {firmware: %(firmware)s, config: %(config)s, signature: %(signature)s}
verification: {bootProbe: "systemd-analyze verify /boot/inactive", healthAuthority: either}
"""


@dataclass(slots=True)
class HubFleet:
    """Keys of everybody, certificates of a region, and the files of a hub's directory."""

    base: Fleet
    nodes: dict[str, NodeCredentials]
    files: dict[str, dict[str, bytes]]
    region: RegionCa
    authority: dict[str, bytes]

    def sign(self, statement: Any) -> bytes:
        """Control's word."""
        return encode(sign_statement(statement, [self.base.keys.control]))

    def policy_text(self, version: str) -> str:
        """A policy for that release, as an operator writes it."""
        release = self.base.releases[version]
        names = {"firmware": release.firmware, "config": release.config, "signature": release.signature}
        return POLICY % {"limit": LIMIT, **{key: one.name if one else "" for key, one in names.items()}}

    def policy(self, version: str) -> Served:
        """That policy, signed."""
        payload = policy_to_json(parse_policy(self.policy_text(version).encode(), "policy.yaml"))
        envelope = sign_with_keys(POLICY_PAYLOAD_TYPE, payload, [self.base.keys.control])
        return Served("policy", policy_digest(payload), encode(envelope))

    def order(self, wave_id: str, version: str, devices: tuple[NodeId, ...], **changes: Any) -> list[Served]:
        """An order with its policy; ``changes`` replace fields."""
        policy = self.policy(version)
        fields: dict[str, Any] = {
            "wave_id": wave_id,
            "generation": 1,
            "state": WaveState.RUNNING,
            "cohort": "retail-us-midwest",
            "device_class": "pos-tablet",
            "hardware_revision": "r2",
            "store": HUB.path,
            "devices": tuple(device.name for device in devices),
            "release": self.base.releases[version].name,
            "policy_digest": policy.name,
            "least_hold_epoch": 1,
            "issued_at": BEGAN_AT,
            "expires_at": BEGAN_AT + timedelta(days=2),
        }
        order = WaveOrder(**{**fields, **changes})
        return [policy, Served("order", f"{wave_id}/{HUB.name}", self.sign(order))]

    def permit(self, wave_id: str, version: str, device: NodeId, generation: int, incarnation: str) -> Served:
        """Leave for one device, to be spent by one incarnation of its hub."""
        firmware = self.base.releases[version].main.digest
        until = BEGAN_AT + timedelta(days=2)
        permit = Permit(wave_id, device.path, ATTEMPTS, generation, firmware, BEGAN_AT, until, incarnation)
        return Served("permit", f"{wave_id}/{HUB.name}/{device.name}", self.sign(permit))

    def closed(self, wave_id: str) -> Served:
        """Control closed the wave."""
        return Served("closed", wave_id, self.sign(WaveClosed(wave_id, WaveState.CLOSED, BEGAN_AT)))

    def holds(self, epoch: int, *releases: str) -> Served:
        """The hold list of that epoch."""
        holds = tuple(Hold(name, "", "test") for name in releases)
        return Served("holds", "fleet", self.sign(HoldList(epoch, holds, BEGAN_AT)))

    def revocations(self, epoch: int, *nodes: NodeId) -> Served:
        """Certificates taken back."""
        taken = tuple(Revocation(one.path, RevocationReach.NODE, BEGAN_AT, "stolen") for one in nodes)
        return Served("revocations", "fleet", self.sign(RevocationList(epoch, taken, BEGAN_AT)))

    def metadata(self, *versions: str) -> Served:
        """Trust metadata that knows these releases alone."""
        keys = self.base.keys
        published, _ = keys.publish(*(self.base.releases[one] for one in versions), now=BEGAN_AT)
        return Served("tuf", "metadata", encode(published))

    def intent(self, number: int, kind: IntentKind, **fields: Any) -> Envelope:
        """An operator's word."""
        intent = OperatorIntent(f"{number:032x}", kind, BEGAN_AT, **{"reason": "because", **fields})
        return sign_as_node(intent, self.nodes[OPERATOR.path])

    def cancellation(self, number: int) -> Envelope:
        """An operator takes an intent back."""
        return sign_as_node(IntentCancellation(f"{number:032x}", "a slip", BEGAN_AT), self.nodes[OPERATOR.path])


@cache
def the_hub_fleet() -> HubFleet:
    """The one fleet of this process."""
    base = the_fleet()
    since = BEGAN_AT - timedelta(hours=1)
    region = RegionCa.create(base.ca, SUPER_HUB.name, not_before=since, not_after=since + timedelta(days=800))
    made: dict[str, NodeCredentials] = {OPERATOR.path: base.operator}
    files: dict[str, dict[str, bytes]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for number, node in enumerate((SUPER_HUB, HUB, OTHER_STORE, *DEVICES)):
            place = Path(directory) / str(number)
            made[node.path] = write_node(place, region, node, not_before=since, not_after=since + timedelta(days=30))
            files[node.path] = {file.name: file.read_bytes() for file in sorted(place.iterdir())}
        short = Path(directory) / "short"
        write_node(short, region, HUB, not_before=since, not_after=since + SHORT)
        files[SHORT_LIVED] = {file.name: file.read_bytes() for file in sorted(short.iterdir())}
        region.save(Path(directory) / "authority")
        authority = {file.name: file.read_bytes() for file in sorted((Path(directory) / "authority").iterdir())}
    return HubFleet(base, made, files, region, authority)
