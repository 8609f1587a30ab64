"""The origin of the lab: a file server in the place of an object store or CDN.

``GET /blobs/SHA256`` answers with the file of that name in the directory, from the first byte of a ``Range: bytes=N-``
header on. Clients must show a certificate of the fleet's CA. Each response appends one JSON line to the access log when
it ends, however it ends, with the bytes that were really written to the connection: an aborted transfer counts what it
moved, and says ``"complete": false``. So the log tells how often each byte crossed the origin's link.

Stand-alone on purpose, it imports nothing of the product: what is measured here is no opinion of what is tested.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import socket
import ssl
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

STEP_BYTES = 64 * 1024
SEND_BYTES = 64 * 1024
"""What the kernel may hold of a response: what waits there counts as sent, but has not crossed the link."""
SHUTDOWN_S = 1.0
_NAME = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=([0-9]{1,15})-")


class Origin:
    """Serves the files of one directory and writes down what it served."""

    def __init__(self, directory: Path, log: BinaryIO, rate_bytes_per_s: int = 0) -> None:
        """``log`` is open for appending, unbuffered; a rate of 0 is no limit."""
        self._directory = directory
        self._log = log
        self._rate_bytes_per_s = rate_bytes_per_s

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application()
        application.router.add_get("/blobs/{name}", self.get, allow_head=False)
        return application

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Serve one file, and log the response when it ends."""
        entry: dict[str, Any] = {"time": datetime.now(UTC).isoformat(), "method": request.method, "path": request.path}
        entry |= {"client": _client(request), "range_start": 0, "bytes": 0, "status": 500, "complete": False}
        try:
            return await self._answer(request, entry)
        finally:
            entry["ended"] = datetime.now(UTC).isoformat()
            self._log.write(json.dumps(entry).encode() + b"\n")

    async def _answer(self, request: web.Request, entry: dict[str, Any]) -> web.StreamResponse:
        name = request.match_info["name"]
        path = self._directory / name
        if not _NAME.fullmatch(name) or not path.is_file():
            return _refused(entry, 404, "no such blob")
        size_bytes = path.stat().st_size
        start = 0
        if "Range" in request.headers:
            match = _RANGE.fullmatch(request.headers["Range"])
            if match is None or int(match[1]) >= size_bytes:
                return _refused(entry, 416, f"bytes */{size_bytes}")
            start = int(match[1])
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = size_bytes - start
        response.headers["Accept-Ranges"] = "bytes"
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{size_bytes - 1}/{size_bytes}"
        entry |= {"status": response.status, "range_start": start}
        await response.prepare(request)
        if request.transport is not None:
            request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        with path.open("rb") as file:
            file.seek(start)
            while piece := file.read(STEP_BYTES):
                await response.write(piece)
                entry["bytes"] += len(piece)
                if self._rate_bytes_per_s:
                    await asyncio.sleep(len(piece) / self._rate_bytes_per_s)
        await response.write_eof()
        entry["complete"] = True
        return response


def _refused(entry: dict[str, Any], status: int, text: str) -> web.Response:
    entry |= {"status": status, "complete": True}
    return web.Response(status=status, text=text + "\n")


def _client(request: web.Request) -> str:
    """The client's SPIFFE id, or the common name of its certificate."""
    certificate = request.get_extra_info("peercert") or {}
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "URI":
            return str(value)
    names = dict(pair for entry in certificate.get("subject", ()) for pair in entry)
    return str(names.get("commonName", ""))


def server_context(identity: Path) -> ssl.SSLContext:
    """TLS with node.key, node.crt and ca.crt of a directory; a client certificate is demanded."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(identity / "ca.crt"))
    context.load_cert_chain(identity / "node.crt", identity / "node.key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


async def serve(arguments: argparse.Namespace, log: BinaryIO) -> None:
    """Serve until SIGTERM or SIGINT; prints the port it listens at."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    host, port = arguments.listen.rsplit(":", 1)
    origin = Origin(arguments.dir, log, arguments.rate_bytes_per_s)
    # A handler must notice that its client left, or an aborted transfer would be logged as a whole one.
    runner = web.AppRunner(
        origin.application(), handler_cancellation=True, shutdown_timeout=SHUTDOWN_S, access_log=None
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, int(port), ssl_context=server_context(arguments.identity))
        await site.start()
        print(f"origin listens at {host}:{runner.addresses[0][1]}", flush=True)  # noqa: T201  # whoever started it reads this
        await stopped.wait()
    finally:
        await runner.cleanup()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the origin from the command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.origin", description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, required=True, help="directory of the files, named by their SHA-256")
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT, port 0 for any")
    parser.add_argument("--identity", type=Path, required=True, help="directory with node.key, node.crt, ca.crt")
    parser.add_argument("--log", type=Path, required=True, help="access log, JSON lines, appended to")
    parser.add_argument("--rate-bytes-per-s", type=int, default=0, help="slow each transfer down; 0 is no limit")
    arguments = parser.parse_args(argv)
    with arguments.log.open("ab", buffering=0) as log:
        asyncio.run(serve(arguments, log))
    return 0


if __name__ == "__main__":
    sys.exit(main())
