"""A real S3-compatible object store for tests: OpenStack Swift with its S3 API, from Debian, on one machine.

Four daemons (account, container, object, proxy) with rings of one device. Its ``s3api`` middleware computes each
Signature Version 4 anew from the secret that ``tempauth`` has, headers and presigned URLs alike, and refuses what
expired or does not match (moto and s3rver, which were looked at, do not). Each request that ended is one line of the
proxy's access log, with the bytes that were sent; it comes by UDP, as syslog does.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.client import HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import unquote

import aiohttp
import pytest
from yarl import URL

from wavemesh.artifacts.objectstore import Access, Place, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVERS = ("account", "container", "object")
BUCKET = "artifacts"
PREFIX = "fleet/blobs"
PLACE = Place(BUCKET, PREFIX)
KEY_ID, SECRET = "origin:control", "a-secret-of-the-test"
UP_WITHIN_S = 150.0
_RECEIVED_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Served:
    """One request that the store answered."""

    method: str
    key: str
    status: int
    sent_bytes: int


@dataclass(slots=True)
class S3:
    """The running store."""

    directory: Path
    port: int
    ca_file: Path
    log: socket.socket
    served: list[Served] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def access(self) -> Access:
        return Access(KEY_ID, SECRET, endpoint=self.endpoint, ca_file=self.ca_file)

    def write_access(self, file: Path, secret: str = SECRET) -> Path:
        """An access file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = {
            "access_key_id": KEY_ID,
            "secret_access_key": secret,
            "endpoint": self.endpoint,
            "ca_file": str(self.ca_file),
        }
        file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))
        file.chmod(0o600)
        return file

    async def put(self, sha256: str, content: bytes) -> None:
        import obstore

        await obstore.put_async(open_store(PLACE, self.access), sha256, content, use_multipart=False)

    async def ask(self, method: str, url: str) -> int:
        """The status of a bare request, as anybody who has the URL could make it."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, URL(url, encoded=True), ssl=context) as answer,
        ):
            await answer.read()
            return answer.status

    def requests(self, sha256: str = "", method: str = "GET") -> list[Served]:
        """What was served so far of one blob, or of all."""
        while True:
            try:
                self._take(self.log.recv(_RECEIVED_BYTES).decode())
            except BlockingIOError:
                break
        return [one for one in self.served if one.method == method and one.key.endswith(sha256)]

    def _take(self, line: str) -> None:
        # client remote time METHOD path protocol STATUS referer agent token received SENT …
        fields = line.partition("proxy-server: ")[2].split(" ")
        if len(fields) > 12:
            sent_bytes = 0 if fields[11] == "-" else int(fields[11])
            path = unquote(fields[4]).partition("?")[0]
            self.served.append(Served(fields[3], path, int(fields[6]), sent_bytes))


@contextmanager
def running_s3(directory: Path, identity: Path) -> Iterator[S3]:
    """The store, with the bucket, at HTTPS with the certificate of that identity; skips, in CI fails, without Swift."""
    _require_swift()
    log = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    log.bind(("127.0.0.1", 0))
    log.setblocking(False)
    ports = _free_ports(len(SERVERS) + 1)
    s3 = S3(directory, ports[-1], identity / "ca.crt", log)
    _write(s3, dict(zip(SERVERS, ports, strict=False)), identity)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name in (*SERVERS, "proxy"):
            command = (f"swift-{name}-server", str(directory / f"{name}-server.conf"))
            environment = {**os.environ, "SWIFT_DIR": str(directory)}
            with (directory / f"{name}.log").open("wb") as output:
                processes.append(subprocess.Popen(command, stdout=output, stderr=output, env=environment))
        _make_bucket(s3)
        yield s3
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        log.close()


def _require_swift() -> None:
    missing = [name for name in (*SERVERS, "proxy") if shutil.which(f"swift-{name}-server") is None]
    if missing:
        sentence = "an S3-compatible store is needed: apt-get install swift-proxy swift-account swift-container "
        sentence += "swift-object"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)


def _make_bucket(s3: S3) -> None:
    """Try until the store is up; nothing else tells that it is."""
    from obstore import sign

    store, until = open_store(Place(BUCKET, ""), s3.access), time.monotonic() + UP_WITHIN_S
    context = ssl.create_default_context(cafile=str(s3.ca_file))
    while True:
        url = sign(store, "PUT", "", timedelta(minutes=1)).removeprefix(s3.endpoint)
        with closing(HTTPSConnection("127.0.0.1", s3.port, context=context, timeout=10)) as connection:
            try:
                connection.request("PUT", url)
                if connection.getresponse().status == 200:
                    return
            except OSError:
                if time.monotonic() > until:
                    raise
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _write(s3: S3, ports: dict[str, int], identity: Path) -> None:
    """Rings and configuration."""
    (s3.directory / "disks" / "d1").mkdir(parents=True)
    common = f"bind_ip = 127.0.0.1\nworkers = 0\nswift_dir = {s3.directory}\nuser = {getpass.getuser()}\n"
    (s3.directory / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n"
        "[storage-policy:0]\nname = default\ndefault = yes\n"
    )
    for name, port in ports.items():
        builder = str(s3.directory / f"{name}.builder")
        for words in (("create", "2", "1", "0"), ("add", f"r1z1-127.0.0.1:{port}/d1", "1"), ("rebalance",)):
            subprocess.run(
                (str(shutil.which("swift-ring-builder")), builder, *words), check=True, stdout=subprocess.DEVNULL
            )
        (s3.directory / f"{name}-server.conf").write_text(
            f"[DEFAULT]\n{common}bind_port = {port}\ndevices = {s3.directory}/disks\nmount_check = false\n"
            f"[pipeline:main]\npipeline = {name}-server\n"
            f"[app:{name}-server]\nuse = egg:swift#{name}\nrecon_cache_path = {s3.directory}\n"
        )
    filters = ("catch_errors", "gatekeeper", "listing_formats", "copy", "s3api", "slo", "dlo")
    log_port = s3.log.getsockname()[1]
    (s3.directory / "proxy-server.conf").write_text(
        f"[DEFAULT]\n{common}bind_port = {s3.port}\n"
        f"cert_file = {identity}/node.crt\nkey_file = {identity}/node.key\n"
        "[pipeline:main]\npipeline = catch_errors gatekeeper proxy-logging cache listing_formats s3api tempauth copy "
        "slo dlo proxy-logging proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nallow_account_management = true\n"
        "[filter:proxy-logging]\nuse = egg:swift#proxy_logging\n"
        f"access_log_udp_host = 127.0.0.1\naccess_log_udp_port = {log_port}\n"
        "[filter:cache]\nuse = egg:swift#memcache\nmemcache_servers =\n"
        f"[filter:tempauth]\nuse = egg:swift#tempauth\nuser_origin_control = {SECRET} .admin\n"
        + "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in filters)
    )
