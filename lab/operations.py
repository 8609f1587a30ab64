"""What an operator does in the lab, done from here: ask nodes, register devices, make, publish and plan.

Everything goes through the operator API with the operator's own identity, as edgectl does it.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from edgectl import releasing
from edgectl.client import CALL_TIMEOUT_S, ask
from edgectl.contexts import Context, Contexts
from lab import rauc, topology
from lab.policies import BOOT_PROBE, PERIPHERAL_CHECK
from lab.processes import ProcessError, find, log_tail, wait_until
from lab.provision import config_bundle, image, offline_key
from wavemesh.codec.statements import to_proto
from wavemesh.errors import WavemeshError
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.keys import load_signer
from wavemesh.trust.releases import UNKNOWN_DIGEST, Artifact, ReleaseManifest
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from lab.policies import ReleaseNames
    from lab.topology import Lab
    from wavemesh.trust.statements import OperatorIntent
    from wavemesh.v1.operator_pb2_grpc import OperatorServiceAsyncStub

T = TypeVar("T")

READY_TIMEOUT_S = 60.0
_PAGE_SIZE = 1000
_SIGNERS = ("release-1", "release-3")


@dataclass(frozen=True, slots=True)
class Draft:
    """A release to make: its names, the image it carries, how long ago it was signed, by which keys, for whom.

    ``bundle`` is the image packed for RAUC.
    """

    names: ReleaseNames
    firmware: Path
    age: timedelta = timedelta()
    keys: tuple[str, ...] = _SIGNERS
    regions: tuple[str, ...] = (topology.REGION,)
    bundle: Path | None = None


def contexts(lab: Lab) -> Contexts:
    """Whom an operator of this lab can ask."""
    nodes = {"control": topology.control_id(), **{store: topology.store_id(store) for store in lab.stores}}
    found = {name: Context(name, lab.address(name), node, lab.operator_dir) for name, node in nodes.items()}
    return Contexts("control", found)


def wait_ready(lab: Lab, names: Sequence[str], timeout_s: float = READY_TIMEOUT_S) -> None:
    """Wait until those servers answer the standard health check; raises ProcessError with the log's end."""
    for name in names:
        try:
            wait_until(functools.partial(_serves, lab, name), timeout_s, f"{name} to be ready")
        except ProcessError as exc:
            raise ProcessError(f"{exc}; its log ends:\n{log_tail(find(lab, name).log)}") from exc


def wait_connected(lab: Lab, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Wait until control hears every device."""
    expected = len(lab.devices)
    wait_until(lambda: _connected(lab) == expected, timeout_s, f"{expected} devices to be heard by control")


def register(lab: Lab) -> None:
    """Register the lab's stores and devices."""
    request = operator_pb2.ApplyInventoryRequest()
    for store, devices in lab.stores.items():
        request.stores.add(path=topology.store_id(store).path, time_zone=topology.TIME_ZONE)
        for device in devices:
            request.devices.add(
                path=topology.device_id(store, device).path,
                device_class=topology.DEVICE_CLASS,
                hardware_revision=topology.HARDWARE_REVISION,
                labels={"segment": topology.COHORT, "role": "till"},
            )
    _control(lab, lambda stub: stub.ApplyInventory(request, timeout=CALL_TIMEOUT_S))


def make_release(lab: Lab, draft: Draft) -> Path:
    """Make a release and let the keys sign it; returns the draft's directory. Nothing is published."""
    directory = lab.directory / "releases" / draft.names.name
    published = _control(
        lab, lambda stub: stub.ListReleases(operator_pb2.ListReleasesRequest(), timeout=CALL_TIMEOUT_S)
    )
    config = config_bundle(lab, draft.names)
    manifest = ReleaseManifest(
        name=draft.names.name,
        version=draft.names.version,
        device_class=topology.DEVICE_CLASS,
        hardware_revisions=(topology.HARDWARE_REVISION,),
        signed_at=(datetime.now(UTC) - draft.age).replace(microsecond=0),
        firmware=releasing.artifact_of(draft.firmware, draft.names.firmware),
        config=releasing.artifact_of(config),
        bundle=releasing.artifact_of(draft.bundle) if draft.bundle else None,
        signature=Artifact(draft.names.signature, UNKNOWN_DIGEST),
        regions=draft.regions,
        config_version=draft.names.config_version,
        requires_config=">=12.0.0 <13",
        boot_probe=BOOT_PROBE,
        peripheral_checks=(PERIPHERAL_CHECK,),
    )
    files = {draft.names.firmware: draft.firmware, draft.names.config: config}
    if draft.bundle is not None:
        files[draft.bundle.name] = draft.bundle
    releasing.create(directory, manifest, files, releasing.Base.of(published))
    releasing.sign(directory, [load_signer(offline_key(lab, name)) for name in draft.keys], datetime.now(UTC))
    return directory


def publish(lab: Lab, directory: Path) -> operator_pb2.PublishReleaseResponse:
    """Publish a release's metadata and put its artifacts on the origin; raises what control refuses with."""
    releasing.copy_artifacts(directory, lab.origin_dir / "data")
    request = operator_pb2.PublishReleaseRequest(targets=releasing.signed_targets(directory))
    return _control(lab, lambda stub: stub.PublishRelease(request, timeout=CALL_TIMEOUT_S))


def standard_draft(lab: Lab, names: ReleaseNames) -> Draft:
    """The release the lab is about."""
    source = image(lab, names)
    return Draft(names, source.resolve(), bundle=rauc.bundle(lab, source, names.version))


def hold(lab: Lab, release: str, reason: str) -> None:
    """Put a release on hold."""
    request = operator_pb2.SetHoldRequest(release=release, held=True, reason=reason)
    _control(lab, lambda stub: stub.SetHold(request, timeout=CALL_TIMEOUT_S))


def revoke(lab: Lab, release: str, reason: str) -> None:
    """Take a release back for ever, by the release keys; done again it changes nothing."""
    published = _control(
        lab, lambda stub: stub.ListReleases(operator_pb2.ListReleasesRequest(), timeout=CALL_TIMEOUT_S)
    )
    directory = lab.directory / "releases" / f"{release}-revoked"
    if releasing.create_revocation(directory, release, reason, releasing.Base.of(published), datetime.now(UTC)) is None:
        return
    releasing.sign(directory, [load_signer(offline_key(lab, name)) for name in _SIGNERS], datetime.now(UTC))
    request = operator_pb2.PublishReleaseRequest(targets=releasing.signed_targets(directory))
    _control(lab, lambda stub: stub.PublishRelease(request, timeout=CALL_TIMEOUT_S))


def counts(lab: Lab, wave: str) -> dict[str, int]:
    """How many outcomes of each kind control tells of a wave, by the ledger's words."""
    request = operator_pb2.GetWaveRequest(wave_id=wave)
    told = _control(lab, lambda stub: stub.GetWave(request, timeout=CALL_TIMEOUT_S)).wave.counts
    return {field.name: value for field, value in told.ListFields()}


def plan(lab: Lab, wave: str, policy: bytes) -> operator_pb2.Wave:
    """Plan a wave of the lab's cohort."""
    request = operator_pb2.PlanWaveRequest(
        wave_id=wave, cohort=topology.COHORT, policy_yaml=policy, policy_name="policy.yaml"
    )
    return _control(lab, lambda stub: stub.PlanWave(request, timeout=CALL_TIMEOUT_S)).wave


def give(lab: Lab, context: str, intent: OperatorIntent) -> operator_pb2.SubmitIntentResponse:
    """Sign an intent as the operator and give it to a node."""
    envelope = to_proto(sign_as_node(intent, NodeCredentials.load(lab.operator_dir)))
    request = operator_pb2.SubmitIntentRequest(intent=envelope)
    return ask(contexts(lab).select(context), lambda stub: stub.SubmitIntent(request, timeout=CALL_TIMEOUT_S))


def ledger(lab: Lab, context: str, wave: str, store: str = "") -> operator_pb2.GetLedgerResponse:
    """A wave's ledger as a node knows it."""
    request = operator_pb2.GetLedgerRequest(wave_id=wave, store=store)
    return ask(contexts(lab).select(context), lambda stub: stub.GetLedger(request, timeout=CALL_TIMEOUT_S))


def audit(lab: Lab) -> Sequence[operator_pb2.AuditEntry]:
    """Control's audit, newest first."""
    request = operator_pb2.ListAuditRequest(page_size=_PAGE_SIZE)
    return _control(lab, lambda stub: stub.ListAudit(request, timeout=CALL_TIMEOUT_S)).entries


def _control(lab: Lab, question: Callable[[OperatorServiceAsyncStub], Awaitable[T]]) -> T:
    return ask(contexts(lab).select("control"), question)


def _connected(lab: Lab) -> int:
    try:
        request = operator_pb2.GetFleetStatusRequest()
        return _control(lab, lambda stub: stub.GetFleetStatus(request, timeout=CALL_TIMEOUT_S)).devices_connected
    except WavemeshError:
        return 0


def _serves(lab: Lab, name: str) -> bool:
    node = {"control": topology.control_id(), "superhub": topology.superhub_id()}.get(name) or topology.store_id(name)
    return asyncio.run(_health(Context(name, lab.address(name), node, lab.operator_dir)))


async def _health(context: Context) -> bool:
    import grpc.aio
    from grpc_health.v1 import health_pb2

    from wavemesh.runtime.grpc import make_channel

    async with make_channel(NodeCredentials.load(context.identity), context.address, context.node) as channel:
        try:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            answer = await check(health_pb2.HealthCheckRequest(), timeout=2.0)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
