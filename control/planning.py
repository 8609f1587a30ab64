"""Drafts a wave from a policy and what is registered: reads the inventory, lets rollout.py choose, checks the release.

A draft is refused, with nothing kept, when the policy's artifacts are no published release, when its probes are not
signed with the release, when the release is on hold, or is for another class or revision than the cohort's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select

from control import schema, store
from control.rollout import Candidate, choose_cohort, choose_devices, effective_percentage, wave_size
from control.store import WaveRow, WaveView
from wavemesh.errors import ConflictError
from wavemesh.policy.document import policy_digest
from wavemesh.trust.statements import WaveState

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import RowMapping

    from control.config import Config
    from control.database import Transaction
    from control.releases import Releases
    from control.rollout import Cohort
    from wavemesh.policy.document import Policy
    from wavemesh.trust.releases import ReleaseManifest


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What an operator asks to plan; ``payload`` is the policy's canonical form, which control signs."""

    wave_id: str
    cohort: str
    policy: Policy
    payload: bytes


async def find_planned(tx: Transaction, request: PlanRequest) -> WaveView | None:
    """The wave, if the very same plan exists; None for a new id. Raises ConflictError when the id is taken."""
    view = await store.view(tx, request.wave_id)
    if view is None:
        return None
    if (view.row.cohort, view.row.policy_digest) != (request.cohort, policy_digest(request.payload)):
        msg = f"wave {request.wave_id!r} is planned with another cohort or policy; choose another id"
        raise ConflictError(msg, wave=request.wave_id, cohort=view.row.cohort, policy=view.row.policy_digest)
    return view


async def draft(
    tx: Transaction, request: PlanRequest, *, releases: Releases, config: Config, now: datetime
) -> WaveView:
    """The wave as it would be. Raises NotFoundError, ConflictError and their subclasses."""
    policy = request.policy
    manifest = releases.find(policy.artifacts)
    releases.require_usable(manifest.name)
    if not manifest.is_installable:
        msg = f"release {manifest.name} is an app alone, which no device installs: `edgectl hub prefetch` brings it"
        raise ConflictError(msg, release=manifest.name)
    _check_probes(policy, manifest)
    candidates = await _candidates(tx, policy.targets.segment, manifest)
    cohort = choose_cohort(request.cohort, policy.targets.segment, candidates)
    _check_class(cohort, manifest)
    percentage = effective_percentage(
        policy.targets.percentage,
        touches_bootloader=manifest.touches_bootloader,
        first_started_at=await store.first_start(tx, manifest.name),
        now=now,
    )
    targets = choose_devices(
        cohort,
        size=wave_size(len(cohort.devices), percentage),
        hub_budget=policy.targets.hub_budget,
        regions=frozenset(manifest.regions),
    )
    row = WaveRow(
        wave_id=request.wave_id,
        cohort=cohort.name,
        device_class=cohort.device_class,
        hardware_revision=cohort.hardware_revision,
        release=manifest.name,
        firmware=manifest.firmware.digest if manifest.firmware else None,
        policy_digest=policy_digest(request.payload),
        attempts=config.permit_attempts,
        permit_batch=policy.targets.permit_batch,
        halt_ratio=policy.guardrails.halt_rollback_ratio,
        halt_least_outcomes=policy.guardrails.halt_min_outcomes,
        state=WaveState.PLANNED,
        planned_at=now,
        rotate_certificates=policy.guardrails.rotate_certificates,
        expires_at=now + timedelta(seconds=config.wave_lifetime_s),
    )
    return WaveView(row=row, targets=targets, outcomes={}, issues={}, pauses=())


async def _candidates(tx: Transaction, segment: str, manifest: ReleaseManifest) -> list[Candidate]:
    busy = await store.open_waves_by_device(tx)
    rows = await tx.all(select(schema.devices).where(schema.devices.c.segment == segment))
    return [
        Candidate(
            path=row["path"],
            device_class=row["device_class"],
            hardware_revision=row["hardware_revision"],
            runs_release=_runs(row, manifest),
            open_wave=busy.get(row["path"], ""),
        )
        for row in rows
    ]


def _runs(row: RowMapping, manifest: ReleaseManifest) -> bool:
    firmware = manifest.firmware is None or row["firmware_sha256"] == manifest.firmware.digest.sha256
    config = manifest.config is None or row["config_version"] == manifest.config_version
    return firmware and config


def _check_probes(policy: Policy, manifest: ReleaseManifest) -> None:
    verification = policy.verification
    wanted: list[tuple[str, str, tuple[str, ...]]] = []
    if verification.boot_probe:
        wanted.append(("verification.bootProbe", verification.boot_probe, (manifest.boot_probe,)))
    checks, vendor = manifest.peripheral_checks, manifest.vendor_probes
    wanted += [("verification.peripheralChecks", probe, checks) for probe in verification.peripheral_checks]
    wanted += [("verification.vendorProbes", probe, vendor) for probe in verification.vendor_probes]
    for key, probe, signed in wanted:
        if probe not in signed:
            msg = (
                f"{key}: {probe!r} is not among the probes signed with release {manifest.name!r} "
                f"({', '.join(map(repr, signed)) or 'none'}); policies only select signed probes"
            )
            raise ConflictError(msg, key=key, release=manifest.name)


def _check_class(cohort: Cohort, manifest: ReleaseManifest) -> None:
    fits = cohort.device_class == manifest.device_class and cohort.hardware_revision in manifest.hardware_revisions
    if not fits:
        msg = (
            f"release {manifest.name!r} is for {manifest.device_class} {', '.join(manifest.hardware_revisions)}; "
            f"cohort {cohort.name!r} is {cohort.device_class} {cohort.hardware_revision}"
        )
        raise ConflictError(msg, release=manifest.name, cohort=cohort.name)
