"""The device's latest-wins status: sent on every change, staging progress at most every ``interval_s``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from device.update import BEFORE_ARM
from wavemesh.codec.statements import encode
from wavemesh.replacement import replaced
from wavemesh.trust.statements import DeviceStatus, UpdateState

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from device.equipment import Equipment
    from device.progress import Progress
    from wavemesh.session.seams import Upstream

STATUS_KEY = "device"
MAX_EVIDENCE_BYTES = 1000


class StatusReporter:
    """Builds and sets the status."""

    def __init__(
        self,
        equipment: Equipment,
        upstream: Upstream,
        agent_version: str,
        issued_at: Callable[[], datetime | None] = lambda: None,
    ) -> None:
        """``issued_at`` says when the certificate in use was issued. Nothing is shown before ``show``."""
        self._issued_at = issued_at
        self._equipment = equipment
        self._upstream = upstream
        self._agent_version = agent_version
        self._staged_bytes = 0
        self._shown_at_s = 0.0
        self._shown: DeviceStatus | None = None
        self._progress: Progress | None = None

    @property
    def hub_refusal(self) -> str:
        """Why the store hub and this agent cannot speak, empty when they can."""
        return self._upstream.refusal

    def show(self, progress: Progress) -> None:
        """The machine moved."""
        self._progress = progress
        self._send(self.status(progress))

    def staged(self, staged_bytes: int) -> None:
        """Bytes are on the slot; coalesced."""
        self._staged_bytes = staged_bytes
        now_s = self._equipment.clock.monotonic()
        if self._progress is not None and now_s - self._shown_at_s >= self._equipment.config.timing.status_interval_s:
            self._send(self.status(self._progress))

    def wake(self) -> None:
        """A report was appended."""
        self._upstream.wake()

    def status(self, progress: Progress) -> DeviceStatus:
        """The status now."""
        equipment = self._equipment
        facts = equipment.facts()
        reading = equipment.gates.reading
        target = progress.target
        image = None if target is None else target.firmware or target.config
        staging = progress.state in {UpdateState.STAGING, UpdateState.PAUSED}
        target_bytes = 0 if image is None else image.size_bytes
        return DeviceStatus(
            device=equipment.node_id.path,
            state=progress.state,
            at=equipment.clock.now(),
            wave_id=progress.wave_id,
            attempt=progress.attempt + 1 if progress.state in BEFORE_ARM else progress.attempt,
            gate=progress.gate,
            evidence=progress.evidence.encode(errors="replace")[:MAX_EVIDENCE_BYTES].decode(errors="ignore"),
            slot=facts.running.slot.value,
            firmware_version=facts.firmware_version,
            firmware_sha256=facts.firmware_sha256,
            config_version=facts.config_version,
            staged_bytes=min(self._staged_bytes, target_bytes) if staging else 0,
            target_bytes=target_bytes,
            battery_percent=reading.battery_percent,
            temperature_celsius=reading.temperature_celsius,
            agent_version=self._agent_version,
            device_class=facts.device_class,
            hardware_revision=facts.hardware_revision,
            certificate_issued_at=self._issued_at(),
        )

    def _send(self, status: DeviceStatus) -> None:
        now_s = self._equipment.clock.monotonic()
        said, self._shown = self._shown, status
        is_fresh = now_s - self._shown_at_s < self._equipment.config.timing.status_interval_s
        if is_fresh and said is not None and (said == status or replaced(said, at=status.at) == status):
            return  # the same a moment ago: a step shows where it is before and after its effects
        self._shown_at_s = now_s
        self._upstream.set_status(STATUS_KEY, encode(status))
