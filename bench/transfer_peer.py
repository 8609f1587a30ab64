"""nginx as the peer of ``bench transfer``: the same file under the same certificates, mutual TLS, its own defaults."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from bench.nginx import running_nginx

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator
    from pathlib import Path

_CONFIG = """\
{user}
daemon off;
worker_processes auto;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  {temporary}
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {identity}/{certificate};
    ssl_certificate_key {identity}/{key};
    ssl_client_certificate {identity}/{ca};
    ssl_verify_client on;
    ssl_verify_depth 4;
    location = /blob {{ alias {blob}; }}
  }}
}}
"""


@asynccontextmanager
async def nginx(directory: Path, identity: Path, blob: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A running nginx that serves ``/blob``, and its port; ``directory`` is its own. Raises FileNotFoundError."""
    port = _free_port()
    async with running_nginx(directory, identity, port, _CONFIG, blob=blob) as process:
        yield process, port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
