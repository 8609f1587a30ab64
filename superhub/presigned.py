"""Reading blobs from an S3-compatible object store by URLs that control signed: the BlobReader of an ``s3://`` origin.

A refusal (403) is answered by asking for one other URL, in the same read: it expired, or its key was changed. When that
one is refused as well, the matter is control's credentials or somebody's clock, and the error says what the store said.
"""

from __future__ import annotations

import re
import ssl
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from superhub.origin import BUFFER_BYTES, CONNECT_S, STALL_S, STEP_BYTES, check_answer, open_socket
from wavemesh.errors import LinkDownError, NotFoundError, PeerError
from wavemesh.identity.contexts import TlsFilesError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

    from superhub.urls import UrlBook
    from wavemesh.artifacts.signedurls import OriginUrl
    from wavemesh.trust.statements import Digest

MAX_ERROR_BYTES = 4096
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,200})</Message>")


class OriginRefusedError(PeerError):
    """The object store refuses URLs that control has just signed: its credentials, or a clock, are wrong."""

    reason = "ORIGIN_REFUSED"


class _UrlRefusedError(PeerError):
    """The store refused this URL; a fresh one may be good."""

    reason = "ORIGIN_REFUSED"


class PresignedOrigin:
    """A BlobReader over one bucket."""

    def __init__(self, session: aiohttp.ClientSession, urls: UrlBook) -> None:
        """Use ``connect``."""
        self._session = session
        self._urls = urls

    @classmethod
    @asynccontextmanager
    async def connect(cls, urls: UrlBook, ca_file: Path | None, parallel: int) -> AsyncIterator[PresignedOrigin]:
        """A bucket to read from; ``ca_file`` is trusted besides the system's. Raises TlsFilesError."""
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if ca_file is not None:
            try:
                context.load_verify_locations(cafile=str(ca_file))
            except (OSError, ssl.SSLError) as error:
                msg = f"{ca_file}: {error}; origin.ca_file in config.toml names it"
                raise TlsFilesError(msg) from error
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=STALL_S)
        connector = aiohttp.TCPConnector(ssl=context, limit=parallel, socket_factory=open_socket)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False, read_bufsize=BUFFER_BYTES
        ) as session:
            yield cls(session, urls)

    def reload(self) -> None:
        """A renewed certificate changes nothing here."""

    async def read(self, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        """The bytes from ``offset`` on.

        Raises NotFoundError, GateError, BusyError, LinkDownError, OriginUrlError, OriginRefusedError.
        """
        url = await self._urls.url(digest)
        try:
            async with aclosing(self._pieces(url, digest, offset)) as pieces:
                async for piece in pieces:
                    yield piece
        except _UrlRefusedError as error:
            url = await self._another(url, error)
        else:
            return
        try:
            async with aclosing(self._pieces(url, digest, offset)) as pieces:
                async for piece in pieces:
                    yield piece
        except _UrlRefusedError as error:
            msg = f"{error}, though control signed it just now: look at the access file of this origin at control, and "
            raise OriginRefusedError(f"{msg}at the clocks of control and of the store", sha256=digest.sha256) from error

    async def _another(self, refused: OriginUrl, why: _UrlRefusedError) -> OriginUrl:
        """A URL in the place of one that was refused before any byte came."""
        try:
            return await self._urls.another(refused.digest, refused)
        except LinkDownError as error:
            msg = f"{why}; another URL is not to be had now: {error}"
            raise LinkDownError(msg) from error

    async def _pieces(self, one: OriginUrl, digest: Digest, offset: int) -> AsyncGenerator[memoryview, None]:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        where = f"the origin at {urlsplit(one.url).netloc}"
        try:
            # As it was signed, to the letter.
            url = URL(one.url, encoded=True)
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                if response.status in {400, 401, 403, 404}:
                    await _refuse(response, where, digest)
                check_answer(response, digest, offset)
                async for piece in response.content.iter_chunked(STEP_BYTES):
                    yield memoryview(piece)
        except (aiohttp.ClientError, TimeoutError) as error:
            # Not in the error's own words: they may have the URL.
            msg = f"{where}, blob {digest.sha256} from byte {offset}: {type(error).__name__}"
            raise LinkDownError(msg) from error


async def _refuse(response: aiohttp.ClientResponse, where: str, digest: Digest) -> None:
    """Raise what the store's answer means."""
    text = (await response.content.read(MAX_ERROR_BYTES)).decode("utf-8", "replace")
    code, message = _CODE.search(text), _MESSAGE.search(text)
    said = f"{response.status} {code[1] if code else ''}: {message[1] if message else 'no reason given'}"
    if response.status == 404:
        msg = f"{where} has no blob {digest.sha256} ({said}): `edgectl release publish --origin s3://…` puts it there"
        raise NotFoundError(msg, sha256=digest.sha256)
    msg = f"{where} refused the URL for blob {digest.sha256} ({said})"
    raise _UrlRefusedError(msg)
