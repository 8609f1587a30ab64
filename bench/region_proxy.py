"""nginx as the peer of ``bench region``: a reverse proxy over mutual TLS that caches and lets one of many fetch."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from wavemesh.identity.files import CA_FILE, CERTIFICATE_FILE, KEY_FILE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

START_TIMEOUT_S = 20.0
_POLL_S = 0.05
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
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@asynccontextmanager
async def caching_nginx(
    directory: Path, identity: Path, port: int, origin: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running nginx in front of ``origin``; ``directory`` is its own. Raises FileNotFoundError, RuntimeError."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        msg = "nginx is not installed: apt-get install nginx-light"
        raise FileNotFoundError(msg)
    text = _CONFIG.format(
        # Its workers read the key's directory, which is ours alone.
        user="user root;" if os.geteuid() == 0 else "",
        directory=directory,
        temporary=" ".join(f"{name}_temp_path {directory}/{name};" for name in _TEMPORARY),
        port=port,
        origin=origin,
        identity=identity,
        certificate=CERTIFICATE_FILE,
        key=KEY_FILE,
        ca=CA_FILE,
    )
    config = _lay_out(directory, text)
    process = await asyncio.create_subprocess_exec(program, "-c", str(config), "-e", str(directory / "error.log"))
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await listens(port):
                if process.returncode is not None:
                    raise RuntimeError(f"nginx ended: {(directory / 'error.log').read_text('utf-8')[-1000:]}")
                await asyncio.sleep(_POLL_S)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _lay_out(directory: Path, text: str) -> Path:
    directory.mkdir()
    config = directory / "nginx.conf"
    config.write_text(text, encoding="utf-8")
    return config


async def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
