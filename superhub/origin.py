"""Reading blobs from the origin, from any offset: HTTPS with mutual TLS by Range, or a directory of this machine.

The third kind, an object store read by URLs that control signs, is ``presigned.py``.

An origin that does not know a blob is an answer; everything else that goes wrong is a broken link, to be resumed. What
comes is believed by nobody until its digest is verified.
"""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import aiohttp

from wavemesh.errors import BusyError, LinkDownError, NotFoundError
from wavemesh.identity.contexts import client_context, load_pair

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from aiohttp import AddrInfoType

    from wavemesh.trust.statements import Digest

STEP_BYTES = 512 * 1024
CONNECT_S = 10.0
STALL_S = 30.0
DEFAULT_RETRY_S = 5.0
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")


RECEIVE_BYTES = 512 * 1024
BUFFER_BYTES = 128 * 1024
"""What the kernel takes in of a connection, and half of what aiohttp does, beyond what was read. All of it is lost when
this process is killed, and crosses the link again; left to themselves they take 6 and 2 MB, and do so when many stores
read. A link of 20 ms and 25 MB/s is still filled.
"""


def open_socket(address: AddrInfoType) -> socket.socket:
    """A socket for a connection to the origin, for aiohttp."""
    family, kind, protocol, _, _ = address
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    return opened


@asynccontextmanager
async def origin_at(url: str, identity: Path, parallel: int) -> AsyncIterator[Origin | DirectoryOrigin]:
    """The origin of that URL, ``https://…`` or ``file:///DIRECTORY``, to read from."""
    if url.startswith("file:"):
        yield DirectoryOrigin(Path(unquote(urlsplit(url).path)))
        return
    async with Origin.connect(url, identity, parallel) as origin:
        yield origin


class DirectoryOrigin:
    """A BlobReader over a directory, a mounted share for example, in which each blob is a file named by its SHA-256."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is where `edgectl release publish --origin` put the artifacts; it is only read."""
        self._directory = directory

    def reload(self) -> None:
        """A renewed certificate changes nothing here."""

    async def read(self, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        """The bytes from ``offset`` on; raises NotFoundError, LinkDownError."""
        path = self._directory / digest.sha256
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError as error:
            msg = f"the origin has no {path}: publish it there (`edgectl release publish --origin`)"
            raise NotFoundError(msg, sha256=digest.sha256) from error
        except OSError as error:
            raise LinkDownError(f"{path}: {error.strerror}") from error
        with file:
            try:
                file.seek(offset)
                while piece := await asyncio.to_thread(file.read, STEP_BYTES):
                    yield memoryview(piece)
            except OSError as error:
                raise LinkDownError(f"{path} from byte {offset}: {error.strerror}") from error


class Origin:
    """A BlobReader over one HTTPS origin."""

    def __init__(self, url: str, session: aiohttp.ClientSession, reload: Callable[[], None]) -> None:
        """Use ``connect``."""
        self.reload = reload
        """Present the node's renewed certificate on connections from now on; raises TlsFilesError."""
        self._url = url.rstrip("/")
        self._session = session

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, identity: Path, parallel: int) -> AsyncIterator[Origin]:
        """An origin to read from; at most ``parallel`` connections are open at a time."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=STALL_S)
        context = client_context(identity)
        connector = aiohttp.TCPConnector(ssl=context, limit=parallel, socket_factory=open_socket)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False, read_bufsize=BUFFER_BYTES
        ) as session:
            yield cls(url, session, partial(load_pair, context, identity))

    async def read(self, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        """The bytes from ``offset`` on; raises NotFoundError, BusyError, LinkDownError."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        url = f"{self._url}/blobs/{digest.sha256}"
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                check_answer(response, digest, offset)
                async for piece in response.content.iter_chunked(STEP_BYTES):
                    yield memoryview(piece)
        except (aiohttp.ClientError, TimeoutError) as error:
            msg = f"{url} from byte {offset}: {error or type(error).__name__}"
            raise LinkDownError(msg) from error


def check_answer(response: aiohttp.ClientResponse, digest: Digest, offset: int) -> None:
    """Raise unless the answer is the rest of the blob from ``offset`` on."""
    status = response.status
    if status == 404:
        msg = f"the origin has no blob {digest.sha256}: publish it there"
        raise NotFoundError(msg, sha256=digest.sha256)
    if status in {429, 503}:
        after = response.headers.get("Retry-After", "")
        retry_after_s = float(after) if after.isascii() and after.isdigit() else DEFAULT_RETRY_S
        msg = f"the origin is busy ({status})"
        raise BusyError(msg, retry_after_s)
    if offset:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        is_right = status == 206 and match is not None
        is_right = is_right and (int(match[1]), int(match[3])) == (offset, digest.size_bytes) if match else False
    else:
        is_right = status == 200 and response.content_length in {None, digest.size_bytes}
    if not is_right:
        msg = f"the origin answered {status} with {response.content_length} bytes for blob {digest.sha256} of "
        raise LinkDownError(f"{msg}{digest.size_bytes} from byte {offset}")
