"""The stage of every hostile test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.security.hostile_kit import staged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from tests.security.hostile_kit import Stage
    from wavemesh.identity.ca import FleetCa


@pytest.fixture
async def stage(
    tmp_path: Path,
    fleet_ca: FleetCa,
    trust_keys: TrustKeys,
    credentials: CredentialsFactory,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Stage]:
    """A device and its hostile hub, connected; an indirect parameter changes the policy."""
    async with staged(tmp_path, fleet_ca, trust_keys, credentials, **getattr(request, "param", {})) as made:
        yield made
