"""nginx as the peer of ``bench transfer``: the same file under the same certificates, mutual TLS, its own defaults."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from wavemesh.identity.files import CA_FILE, CERTIFICATE_FILE, KEY_FILE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

START_TIMEOUT_S = 20.0
_POLL_S = 0.02
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
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@asynccontextmanager
async def nginx(directory: Path, identity: Path, blob: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A running nginx that serves ``/blob``, and its port; ``directory`` is its own. Raises FileNotFoundError."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        msg = "nginx is not installed: apt-get install nginx-light"
        raise FileNotFoundError(msg)
    port = _free_port()
    text = _CONFIG.format(
        # Its workers read the key's directory, which is ours alone.
        user="user root;" if os.geteuid() == 0 else "",
        directory=directory,
        temporary=" ".join(f"{name}_temp_path {directory}/{name};" for name in _TEMPORARY),
        port=port,
        identity=identity,
        certificate=CERTIFICATE_FILE,
        key=KEY_FILE,
        ca=CA_FILE,
        blob=blob,
    )
    config = _lay_out(directory, text)
    process = await asyncio.create_subprocess_exec(program, "-c", str(config), "-e", str(directory / "error.log"))
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await _listens(port):
                if process.returncode is not None:
                    raise RuntimeError(f"nginx ended: {(directory / 'error.log').read_text('utf-8')[-1000:]}")
                await asyncio.sleep(_POLL_S)
        yield process, port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _lay_out(directory: Path, text: str) -> Path:
    directory.mkdir()
    config = directory / "nginx.conf"
    config.write_text(text, encoding="utf-8")
    return config


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
