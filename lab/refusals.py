"""Releases that must not get anywhere: one that too few keys signed, one signed too long ago, one on hold.

The first is refused by control, which believes signatures and not callers. The other two are published, for their
signatures are good; what refuses them is the super hub, when a store asks for their bytes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from edgectl import releasing
from lab import operations, processes
from lab.operations import Draft
from lab.policies import ReleaseNames, policy_text
from lab.provision import offline_key
from wavemesh.errors import WavemeshError
from wavemesh.trust.files import sign_metadata
from wavemesh.trust.keys import load_signer
from wavemesh.trust.repository import add_release
from wavemesh.trust.statements import IntentKind, OperatorIntent

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.topology import Lab

UNSIGNED = ReleaseNames("firmware-v3.9.0-unsigned", "3.9.0", "pos-app-12.5.0.tar.gz", "12.5.0")
OVER_AGE = ReleaseNames("firmware-v3.7.9-over-age", "3.7.9", "pos-app-12.3.9.tar.gz", "12.3.9")
HELD = ReleaseNames("firmware-v3.8.3-held", "3.8.3", "pos-app-12.4.2.tar.gz", "12.4.2")
AGE = timedelta(days=15)
STORE = "store-208"
_IMAGE_BYTES = 256 * 1024
_AUDIT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A release, the gate that must refuse it, and what was said."""

    release: str
    gate: str
    words: str


EXPECTED = {UNSIGNED.name: "signature", OVER_AGE.name: "freshness", HELD.name: "hold"}


def try_bad_releases(lab: Lab, say: Callable[[Refusal], None]) -> None:
    """Try each; raises ProcessError when a refusal does not come."""
    say(Refusal(UNSIGNED.name, EXPECTED[UNSIGNED.name], _publish_unsigned(lab)))
    for names, age in ((OVER_AGE, AGE), (HELD, timedelta())):
        operations.publish(lab, operations.make_release(lab, _draft(lab, names, age=age)))
    operations.hold(lab, HELD.name, "scanner driver missing on rev-c")
    for names in (OVER_AGE, HELD):
        say(Refusal(names.name, EXPECTED[names.name], _ask_store_for(lab, names)))


def _publish_unsigned(lab: Lab) -> str:
    draft = operations.make_release(lab, _draft(lab, UNSIGNED, keys=("release-1",)))
    bundle, published = (draft / UNSIGNED.signature).read_bytes(), (draft / "published.json").read_bytes()
    forced = add_release(published, releasing.load_manifest(draft), bundle, datetime.now(UTC))
    signer = load_signer(offline_key(lab, "release-1"))
    (draft / "targets.json").write_bytes(sign_metadata(forced, signer))  # edgectl waits for the second holder
    try:
        operations.publish(lab, draft)
    except WavemeshError as exc:
        return str(exc)
    raise processes.ProcessError(f"{UNSIGNED.name} was published with one signature")


def _ask_store_for(lab: Lab, names: ReleaseNames) -> str:
    """Let a store prefetch it; the refusal comes back through control's audit."""
    policy = policy_text(names, swap_limit=1, halt_least_outcomes=1).encode()
    intent = OperatorIntent(
        f"demo-{names.name}", IntentKind.PREFETCH, datetime.now(UTC), policy_yaml=policy, stores=(STORE,)
    )
    operations.give(lab, STORE, intent)
    gate = EXPECTED[names.name]
    found: list[str] = []

    def refused() -> bool:
        entries = operations.audit(lab)
        found[:] = [e.detail for e in entries if names.name in f"{e.subject} {e.detail}" and gate in e.detail]
        return bool(found)

    processes.wait_until(refused, _AUDIT_TIMEOUT_S, f"the refusal of {names.name} by {gate} in the audit")
    return found[0]


def _draft(
    lab: Lab, names: ReleaseNames, *, age: timedelta = timedelta(), keys: tuple[str, ...] = ("release-1", "release-2")
) -> Draft:
    firmware = lab.images_dir / names.firmware
    firmware.write_bytes(random.Random(names.name).randbytes(_IMAGE_BYTES))
    return Draft(names, firmware, age, keys)
