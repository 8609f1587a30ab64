"""One region for one night: control, its super hubs, a store of fifty devices and a small one, releases and waves."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from tests.simulation.board import CLASS, REVISION
from tests.simulation.checkers import Checkers
from tests.simulation.checks_of_words import Words
from tests.simulation.controls import Control
from tests.simulation.devices import DeviceNode
from tests.simulation.engine import EPOCH, World
from tests.simulation.facts import GOOD, Facts, Quality
from tests.simulation.hubs import LANE, StoreHub, SuperHub
from tests.simulation.links import Link
from tests.simulation.words import Trust
from wavemesh.errors import PeerError
from wavemesh.policy.document import (
    Artifacts,
    AvailabilityGroup,
    Guardrails,
    HealthAuthority,
    Policy,
    Targets,
    Verification,
    Windows,
)
from wavemesh.trust.releases import Artifact, ReleaseManifest
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from datetime import datetime
    from random import Random

    from tests.simulation.parents import MiddleNode

HOUR_S = 3600.0
NIGHT_S = 8 * HOUR_S
QUIET_S = 3 * HOUR_S
"""From the end of the faults until everything has converged."""
LAST_S = 2 * HOUR_S
"""From then, past the expiry of all waves, until nobody holds anything of them."""
BIG, SMALL = 50, 4
WAN_S, LAN_S = 0.04, 0.003
REGION = "region/midwest"
OTHER_REGION = "region/coast"
BAD_QUALITIES = (
    Quality(passes_probes=False),
    Quality(starts_agent=False),
    Quality(has_network=False),
)


@dataclass
class Plan:
    """What the night brings besides its faults."""

    quality: Quality
    waves: tuple[tuple[float, str, int], ...]


def release(name: str, version: str, *, device_class: str = CLASS) -> ReleaseManifest:
    """A release with one firmware image."""
    digest = Digest(f"{name:0<64}"[:64].replace("-", "0").replace(".", "0"), 1024)
    return ReleaseManifest(
        name=name,
        version=version,
        device_class=device_class,
        hardware_revisions=(REVISION,),
        signed_at=EPOCH - timedelta(days=1),
        firmware=Artifact("firmware.img", digest),
        config=None,
        signature=Artifact("firmware.sig", Digest(f"{name}-sig", 128)),
    )


class Region:
    """Everything that takes part in one night."""

    def __init__(self, seed: int) -> None:
        self.facts = Facts()
        self.world = World(seed, self.facts)
        self.facts.world = self.world
        self.rng = self.world.rng("region")
        self.releases = {
            one.name: one for one in (release("old", "1.0.0"), release("new", "2.0.0"), release("next", "3.0.0"))
        }
        trust = Trust(1, self.releases, frozenset(), EPOCH + timedelta(days=10))
        regions = (REGION, OTHER_REGION) if self.rng.random() < 0.25 else (REGION,)
        self.control = Control(self.world, "control/main", trust, regions)
        self.facts.control_clock = self.control.clock
        self.super_hubs = [SuperHub(self.world, path) for path in regions]
        self.stores: list[StoreHub] = []
        self.devices: list[DeviceNode] = []
        self.twins: list[StoreHub] = []
        self._made = itertools.count()  # of devices, replaced ones too: no two boards are one
        for hub in self.super_hubs:
            self._join(hub, self.control, WAN_S)
        self._open_store(self.super_hubs[0], "big", BIG)
        self._open_store(self.super_hubs[-1], "small", SMALL)
        self.policy = self._policy(self.rng)
        self.plan = self._plan(self.rng)
        self.facts.checkers = Checkers(self)
        self.facts.words = Words(self)

    @property
    def hubs(self) -> list[MiddleNode]:
        """Super hubs and store hubs."""
        return [*self.super_hubs, *self.stores]

    def _join(self, hub: MiddleNode, parent: Control | SuperHub, latency_s: float) -> None:
        hub.parent_link = Link(hub, parent, latency_s)
        parent.links.append(hub.parent_link)

    def _open_store(self, above: SuperHub, name: str, count: int) -> None:
        hub = StoreHub(self.world, f"{above.path}/store/{name}")
        self._join(hub, above, WAN_S)
        self.stores.append(hub)
        self.control.stores.add(hub.path)
        for number in range(count):
            self.add_device(hub, f"pos-{number:02}")

    def add_device(self, hub: StoreHub, name: str) -> DeviceNode:
        """A new device of a store, registered at control."""
        node = DeviceNode(self.world, f"{hub.path}/device/{name}", self.releases["old"], next(self._made))
        self.connect(node, hub)
        self.devices.append(node)
        self.control.devices.add(node.path)
        return node

    def connect(self, node: DeviceNode, hub: StoreHub) -> None:
        """Point a device at a hub."""
        node.link = Link(node, hub, LAN_S)
        hub.links.append(node.link)

    def _policy(self, rng: Random) -> Policy:
        grouped = rng.random() < 0.2
        return Policy(
            Targets("tills", 100, 10, rng.choice((None, None, 5, 12))),
            Guardrails(
                min_battery=0,
                require_dual_partition=True,
                rollback_on_health_loss_mins=rng.choice((3.0, 5.0)),
                offline_rollback_allowed=rng.random() > 0.1,
                max_concurrent_swaps=rng.choice((2, 3, 5, 8)),
                max_temperature=70.0,
                min_free_disk=0,
                halt_rollback_ratio=0.2,
                halt_min_outcomes=5,
                hold_max_age_hours=rng.choice((5.5, 7.0, 24.0)),
                rotate_certificates=False,
                require_packed_lkg=False,
                availability=(AvailabilityGroup(LANE.role, LANE.group, 2),) if grouped else (),
                pass_when_cannot_tell=(),
            ),
            Artifacts("firmware.img", None, "firmware.sig"),
            Verification("", (), (), None, rng.choice(tuple(HealthAuthority))),
            Windows(None, None),
        )

    def _plan(self, rng: Random) -> Plan:
        quality = rng.choice(BAD_QUALITIES) if rng.random() < 0.2 else GOOD
        firmware = self.releases["new"].firmware
        assert firmware is not None
        self.facts.qualities[firmware.digest.sha256] = quality
        first = rng.uniform(60.0, 1800.0)
        if rng.random() < 0.5:
            return Plan(quality, ((first, "new", 100),))
        second = "next" if rng.random() < 0.3 else "new"
        return Plan(quality, ((first, "new", rng.choice((10, 30))), (first + 2.5 * HOUR_S, second, 100)))

    def begin(self) -> None:
        """Everybody starts, and the waves are planned for their times."""
        for node in (self.control, *self.super_hubs, *self.stores):
            node.start()
        for device in self.devices:
            self.world.at(self.rng.uniform(0.0, 5.0), device.power_on)
        for number, (at, name, percentage) in enumerate(self.plan.waves, start=1):
            self.world.at(at, self._wave, f"w{number}", name, percentage)

    def _wave(self, wave_id: str, name: str, percentage: int) -> None:
        if not self.control.is_up:
            self.world.after(60.0, self._wave, wave_id, name, percentage)
            return
        expires_at = EPOCH + timedelta(seconds=NIGHT_S + QUIET_S + HOUR_S)
        self.control.do(self._plan_and_start, wave_id, name, percentage, expires_at)

    def _plan_and_start(self, wave_id: str, name: str, percentage: int, expires_at: datetime) -> None:
        if wave_id in self.control.rows.waves or self.control.is_held(name):
            return
        try:
            self.control.plan(wave_id, name, policy=self.policy, percentage=percentage, expires_at=expires_at)
        except PeerError as error:
            self.control.note("no-wave", str(error))
        else:
            self.control.start_wave(wave_id)
