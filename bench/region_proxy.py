"""nginx as the peer of ``bench region``: a reverse proxy over mutual TLS that caches and lets one of many fetch."""

from __future__ import annotations

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
events {{ worker_connections 2048; }}
http {{
  access_log off;
  sendfile on;
  {temporary}
  proxy_cache_path {directory}/cache levels=1 keys_zone=blobs:1m max_size=16g inactive=1d use_temp_path=off;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {identity}/{certificate};
    ssl_certificate_key {identity}/{key};
    ssl_client_certificate {identity}/{ca};
    ssl_verify_client on;
    ssl_verify_depth 4;
    location /blobs/ {{
      proxy_pass https://{origin};
      proxy_http_version 1.1;
      proxy_ssl_certificate {identity}/{certificate};
      proxy_ssl_certificate_key {identity}/{key};
      proxy_ssl_trusted_certificate {identity}/{ca};
      proxy_ssl_protocols TLSv1.3;
      proxy_cache blobs;
      proxy_cache_valid 200 1d;
      proxy_cache_lock on;
      proxy_cache_lock_timeout 1h;
      proxy_cache_lock_age 1h;
    }}
  }}
}}
"""


@asynccontextmanager
async def caching_nginx(
    directory: Path, identity: Path, port: int, origin: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running nginx in front of ``origin``; ``directory`` is its own. Raises FileNotFoundError, RuntimeError."""
    async with running_nginx(directory, identity, port, _CONFIG, origin=origin) as process:
        yield process
