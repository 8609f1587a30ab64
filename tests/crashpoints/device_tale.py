"""The device's scenarios as the campaign drives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.crashpoints.device_key import key_of
from tests.crashpoints.device_scenarios import SCENARIOS, DeviceScenario
from tests.crashpoints.device_story import Standing, Story
from tests.crashpoints.fleet import CONFIG_OF, IMAGE_BYTES, NEW, NEWEST, OLD, config_of, image_of
from tests.crashpoints.oracle import Oracle, Published, sha256
from tests.crashpoints.oracle_formats import readers

if TYPE_CHECKING:
    from device.config import Backend
    from tests.crashpoints.campaign import Look


@dataclass(frozen=True, slots=True)
class DeviceTale:
    """Implements ``Tale``."""

    scenario: DeviceScenario
    backend: Backend
    log: list[str] = field(default_factory=list)
    known: dict[str, Standing] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The scenario's."""
        return self.scenario.name

    def begin(self) -> Standing:
        """Before the order of the wave."""
        return self.scenario.begin(self.backend)

    def tell(self, standing: Standing, look: Look[Standing] | None) -> list[str]:
        """Run to rest and judge that."""
        self.log.clear()
        rest = Story(self.scenario.world(self.backend), standing, look, self.log, self.known).tell()
        problems = self.judge(rest)
        return problems or self._oracle().judge_rest(
            rest.image, rest.hub.words, self.scenario.wave_id, self.scenario.expected_on(self.backend)
        )

    def judge(self, standing: Standing) -> list[str]:
        """By the oracle."""
        return self._oracle().judge_cut(standing.image, standing.trial_boots, self.scenario.boots_per_attempt)

    def key(self, standing: Standing) -> str:
        """By everything that matters."""
        return key_of(standing)

    def _oracle(self) -> Oracle:
        return Oracle(published(self.scenario), *readers(self.backend.value, IMAGE_BYTES))


def published(scenario: DeviceScenario) -> Published:
    """What may be found on a device."""
    versions = (OLD, NEW, NEWEST)
    pairs = {(version, CONFIG_OF[version]) for version in versions} | {pair for pair, _ in scenario.expected.ends}
    return Published(
        firmware={sha256(image_of(version)): version for version in versions},
        configs={sha256(config_of(CONFIG_OF[version])): CONFIG_OF[version] for version in versions},
        pairs=frozenset(pairs),
    )


def tales(backend: Backend) -> list[DeviceTale]:
    """All scenarios."""
    return [DeviceTale(scenario, backend) for scenario in SCENARIOS]
