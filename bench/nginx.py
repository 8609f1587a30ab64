"""A running nginx, the peer of two benchmarks, with the configuration that each brings."""

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
_POLL_S = 0.02
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@asynccontextmanager
async def running_nginx(
    directory: Path, identity: Path, port: int, template: str, **values: object
) -> AsyncIterator[asyncio.subprocess.Process]:
    """An nginx at that port; ``directory`` is its own. Raises FileNotFoundError, RuntimeError."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        msg = "nginx is not installed: apt-get install nginx-light"
        raise FileNotFoundError(msg)
    text = template.format(
        # Its workers read the key's directory, which is ours alone.
        user="user root;" if os.geteuid() == 0 else "",
        directory=directory,
        temporary=" ".join(f"{name}_temp_path {directory}/{name};" for name in _TEMPORARY),
        port=port,
        identity=identity,
        certificate=CERTIFICATE_FILE,
        key=KEY_FILE,
        ca=CA_FILE,
        **values,
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
