"""The lab's policy: the requirements' example (P1) with every device in one wave and times for people who watch."""

from __future__ import annotations

from dataclasses import dataclass

BOOT_PROBE = "systemd-analyze verify /boot/inactive"
PERIPHERAL_CHECK = "lsusb | grep scanner"
SWAP_LIMIT = 2
TRIAL_MINUTES = 0.75


@dataclass(frozen=True, slots=True)
class ReleaseNames:
    """Names of a release's artifacts, as a policy gives them."""

    name: str
    version: str
    config: str
    config_version: str

    @property
    def firmware(self) -> str:
        """The image."""
        return f"{self.name}.img"

    @property
    def signature(self) -> str:
        """The signature bundle."""
        return f"{self.name}.sig"


OLD_RELEASE = ReleaseNames("firmware-v3.8.1", "3.8.1", "pos-app-12.4.0.tar.gz", "12.4.0")
RELEASE = ReleaseNames("firmware-v3.8.2", "3.8.2", "pos-app-12.4.1.tar.gz", "12.4.1")


def policy_text(
    release: ReleaseNames,
    *,
    swap_limit: int,
    halt_least_outcomes: int,
    hub_budget: int = 2,
    trial_minutes: float = TRIAL_MINUTES,
    permit_batch: int | None = None,
) -> str:
    """A policy for that release; ``permit_batch`` as in the policy, None for its default."""
    narrowed = "" if permit_batch is None else f"\n  permitBatch: {permit_batch}"
    return f"""\
# policy.yaml
targets:
  segment: "retail-us-midwest"
  percentage: 100          # the whole cohort in one wave
  hubBudget: {hub_budget}             # hubs per wave{narrowed}
guardrails:
  minBattery: 40           # percent
  requireDualPartition: true
  rollbackOnHealthLossMins: {trial_minutes}
  offlineRollbackAllowed: true
  maxConcurrentSwaps: {swap_limit}    # devices of a store inside a swap at once
  haltRollbackRatio: 0.5
  haltMinOutcomes: {halt_least_outcomes}
artifacts:
  firmware: "{release.firmware}"
  config: "{release.config}"
  signature: "{release.signature}"
verification:
  bootProbe: "{BOOT_PROBE}"
  peripheralChecks:
    - "{PERIPHERAL_CHECK}"
  healthPingEndpoint: "https://control-plane/health"
  healthAuthority: either  # a store goes on while its WAN is dark
"""
