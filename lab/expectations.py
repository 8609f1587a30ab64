"""Writes down, before the wave begins, what the checker is to expect. The checker itself shares no code with this."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lab.images import digest_of
from lab.policies import OLD_RELEASE, RELEASE, SWAP_LIMIT
from lab.provision import config_bundle, image
from lab.refusals import EXPECTED as BAD_RELEASES
from lab.topology import WAVE, device_id

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from lab.scenario import Scenario
    from lab.topology import Lab


def expect(lab: Lab, scenario: Scenario, cut_at: datetime | None, restored_at: datetime | None) -> None:
    """Write ``DIR/expected.json``; the times of the outage are known only later."""
    outage = {"store": scenario.outage.store}
    if cut_at is not None and restored_at is not None:
        outage |= {"cut_at": cut_at.isoformat(), "restored_at": restored_at.isoformat()}
    cuts = {cut.device: cut.step for cut in (scenario.write_cut, scenario.swap_cut)}
    endings = {name: (wanted.ending.value, wanted.gate) for name, wanted in scenario.expected.items()}
    write_expectations(lab, endings, power_cuts=cuts, outage=outage, refused_releases=BAD_RELEASES)


def write_expectations(
    lab: Lab,
    endings: dict[str, tuple[str, str]],
    *,
    power_cuts: dict[str, str],
    outage: dict[str, str] | None,
    refused_releases: dict[str, str],
) -> None:
    """Write ``DIR/expected.json`` for a wave in which each device ends so, as (outcome, gate)."""
    firmware, bundle = image(lab, RELEASE), config_bundle(lab, RELEASE)
    expected: dict[str, Any] = {
        "wave": WAVE,
        "swap_limit": SWAP_LIMIT,
        "images": {"old": _digest(image(lab, OLD_RELEASE)), "new": _digest(firmware)},
        "artifacts": {digest_of(path)[0]: {"name": path.name, **_digest(path)} for path in (firmware, bundle)},
        "stores": lab.stores,
        "devices": {
            name: {"path": device_id(lab.store_of(name), name).path, "ending": ending, "gate": gate}
            for name, (ending, gate) in endings.items()
        },
        "power_cuts": power_cuts,
        "outage": outage,
        "refused_releases": refused_releases,
    }
    (lab.directory / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


def _digest(path: Path) -> dict[str, Any]:
    sha256, size_bytes = digest_of(path)
    return {"sha256": sha256, "size_bytes": size_bytes}
