"""Fixtures for every test: a fleet with a CA, and credentials for any node of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Protocol

import pytest

from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.nodes import NodeId

if TYPE_CHECKING:
    from wavemesh.identity.credentials import NodeCredentials

FLEET = "test.example"


class CredentialsFactory(Protocol):
    """Credentials of the node at that path ("region/midwest/store/store-208"), made once a session."""

    def __call__(self, path: str) -> NodeCredentials: ...


@pytest.fixture(scope="session")
def fleet() -> str:
    return FLEET


@pytest.fixture(scope="session")
def fleet_ca() -> FleetCa:
    """The CA of the test fleet, valid since yesterday."""
    return FleetCa.create(FLEET, datetime.now(UTC) - timedelta(days=1))


@pytest.fixture(scope="session")
def credentials(fleet_ca: FleetCa, tmp_path_factory: pytest.TempPathFactory) -> CredentialsFactory:
    """Factory of real credentials; every certificate also names 127.0.0.1 and localhost."""
    made: dict[str, NodeCredentials] = {}

    def make(path: str) -> NodeCredentials:
        if path not in made:
            now = datetime.now(UTC)
            made[path] = write_node(
                tmp_path_factory.mktemp("identity"),
                fleet_ca,
                NodeId(FLEET, path),
                not_before=now - timedelta(hours=1),
                not_after=now + timedelta(days=90),
                ip_addresses=[IPv4Address("127.0.0.1")],
                dns_names=["localhost"],
            )
        return made[path]

    return make
