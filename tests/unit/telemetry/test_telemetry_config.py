"""An endpoint is dialled as written, and spans leave the machine unencrypted only on demand."""

from __future__ import annotations

from pathlib import Path

import pytest

from wavemesh.runtime.config import ConfigError, parse_config
from wavemesh.telemetry.config import TelemetryConfig

FILE = Path("config.toml")


def read(text: str) -> TelemetryConfig:
    return parse_config(text.encode(), FILE, TelemetryConfig)


@pytest.mark.parametrize(
    ("endpoint", "target", "encrypted"),
    [
        ("http://127.0.0.1:14317", "127.0.0.1:14317", False),
        ("http://localhost", "localhost:4317", False),
        ("http://[::1]:4317/", "[::1]:4317", False),
        ("https://collector.example", "collector.example:4317", True),
    ],
)
def test_an_endpoint_is_a_url(endpoint: str, target: str, encrypted: bool) -> None:  # noqa: FBT001  # a case's value
    config = read(f'otlp_endpoint = "{endpoint}"')
    assert (config.target, config.is_encrypted) == (target, encrypted)


@pytest.mark.parametrize(
    "endpoint", ["collector:4317", "grpc://collector:4317", "https://", "https://collector/v1/traces", "https://a:b"]
)
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError):
        read(f'otlp_endpoint = "{endpoint}"')


@pytest.mark.parametrize("host", ["collector.example", "10.0.0.7", "[fd00::7]"])
def test_plain_http_stays_on_this_machine_unless_asked(host: str) -> None:
    with pytest.raises(ConfigError, match="unencrypted"):
        read(f'otlp_endpoint = "http://{host}:4317"')
    assert read(f'otlp_endpoint = "http://{host}:4317"\notlp_insecure = true').target == f"{host}:4317"
