"""``[telemetry]`` of control's, a super hub's and a store hub's ``config.toml``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  # the reader resolves the hints at run time
from urllib.parse import SplitResult, urlsplit

from wavemesh.runtime.config import bounded

_MIB = 1024 * 1024
DEFAULT_PORT = 4317


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """What becomes of spans: kept ``keep_s`` seconds within the bounds, and exported or sent on.

    ``otlp_endpoint``: an OTLP gRPC receiver, "https://collector:4317"; empty sends on to the parent. Plain http is
    accepted for this machine, elsewhere only with ``otlp_insecure``. ``otlp_ca_file``: whom to believe instead of the
    system's authorities.
    """

    enabled: bool = True
    otlp_endpoint: str = ""
    otlp_ca_file: Path | None = None
    otlp_insecure: bool = False
    keep_s: float = field(default=86_400.0, metadata=bounded(1, 30 * 86_400))
    max_bytes: int = field(default=64 * _MIB, metadata=bounded(64 * 1024, 1 << 40))
    max_batches: int = field(default=200_000, metadata=bounded(16, 100_000_000))

    def __post_init__(self) -> None:
        """Refuse an endpoint that cannot be used, or that would show spans to the network unasked."""
        if not self.otlp_endpoint:
            return
        url = urlsplit(self.otlp_endpoint)
        _port(url)  # raises ValueError for one that is no number
        if url.scheme not in {"http", "https"} or not url.hostname or url.path.strip("/"):
            msg = f"otlp_endpoint must be like https://collector.example:4317, got {self.otlp_endpoint!r}"
            raise ValueError(msg)
        if url.scheme == "http" and not self.otlp_insecure and not _is_loopback(url.hostname):
            msg = f"otlp_endpoint {self.otlp_endpoint!r} leaves this machine unencrypted: use https, or otlp_insecure"
            raise ValueError(msg)

    @property
    def target(self) -> str:
        """Where to dial: "host:port"."""
        url = urlsplit(self.otlp_endpoint)
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        return f"{host}:{_port(url)}"

    @property
    def is_encrypted(self) -> bool:
        """Whether to speak TLS there."""
        return urlsplit(self.otlp_endpoint).scheme == "https"


def _port(url: SplitResult) -> int:
    return url.port or DEFAULT_PORT


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
