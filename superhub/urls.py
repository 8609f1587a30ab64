"""The URLs by which this region reads an object store: asked of control ahead of need, kept on disk, replaced in time.

Rules.
1. For every blob of a release that an order names and that is not held yet, a URL is asked for as soon as that is
   known, and a new one once half of its life is over. So a region whose control goes dark can begin and finish what its
   waves need for another day at least, at the default of two.
2. The object store's clock decides whether a URL is good, not this hub's: one that looks expired is replaced if control
   can be reached, and tried all the same if it cannot.
3. One that the store refused is never tried again. If control cannot be reached for another, the fetch waits and goes
   on at its byte later.
4. A URL is believed for nothing: it must lead to the bucket that ``config.toml`` names, and what comes is verified.
5. URLs are secrets while they live. They are in the database of this hub, and in no log and no error.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wavemesh.artifacts.signedurls import ASK_KIND, MAX_URLS, OriginUrl, OriginUrlsAnswer, OriginUrlsRequest
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import BusyError, GateError, LinkDownError, NotFoundError, PeerError
from wavemesh.policy.gates import Gate
from wavemesh.session.faults import AskFailedError
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from wavemesh.artifacts.objectstore import Place
    from wavemesh.runtime.clock import Clock
    from wavemesh.runtime.sqlite import Database

    Ask = Callable[[str, bytes, float], Awaitable[bytes]]

_LOG = logging.getLogger(__name__)

URLS_SCHEMA = """
CREATE TABLE origin_urls (
    sha256 TEXT NOT NULL PRIMARY KEY,
    size_bytes INTEGER NOT NULL,
    url TEXT NOT NULL,
    issued_at TEXT NOT NULL,
    expires_at TEXT NOT NULL
) WITHOUT ROWID
"""
ASK_TIMEOUT_S = 10.0
LOOK_S = 300.0
AGAIN_S = 30.0
"""How soon control is asked again after it could not be reached; a new session with it asks at once."""
KEPT_AFTER_EXPIRY = timedelta(days=2)
MAX_HELD = 4096


class OriginUrlError(PeerError):
    """Control handed down a URL that does not lead to the region's own bucket."""

    reason = "ORIGIN_URL"


class UrlBook:
    """The URLs of one region."""

    def __init__(self, place: Place, endpoint: str, database: Database, clock: Clock) -> None:
        """``endpoint`` is where URLs must lead; empty takes any host over HTTPS."""
        self._place = place
        self._endpoint = urlsplit(endpoint)
        self._database = database
        self._clock = clock
        self._urls: dict[str, OriginUrl] = {}
        self._asking = asyncio.Lock()
        self._has_news = asyncio.Event()
        self._ask: Ask = _nobody
        self._wanted: Callable[[], Iterable[Digest]] = tuple

    async def load(self) -> None:
        """Take up what was durable."""
        sql = "SELECT sha256, size_bytes, url, issued_at, expires_at FROM origin_urls"
        for row in await self._database.fetch_all(sql):
            issued_at, expires_at = (datetime.fromisoformat(text) for text in row[3:5])
            self._urls[row[0]] = OriginUrl(Digest(row[0], row[1]), row[2], issued_at, expires_at)

    def use(self, ask: Ask, wanted: Callable[[], Iterable[Digest]]) -> None:
        """Whom to ask, and what is needed by now and not held yet."""
        self._ask, self._wanted = ask, wanted

    def wake(self) -> None:
        """What is wanted may be something else now, or control can be reached again."""
        self._has_news.set()

    async def run(self) -> None:
        """Keep URLs of what is wanted, until cancelled."""
        while True:
            self._has_news.clear()
            pause_s = LOOK_S if await self._renew() else AGAIN_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._has_news.wait()
            except TimeoutError:
                continue

    async def url(self, digest: Digest) -> OriginUrl:
        """A URL for the blob; raises GateError or NotFoundError (control gives none), LinkDownError (none for now)."""
        held = self._urls.get(digest.sha256)
        if held is not None and self._clock.now() < held.expires_at:
            return held
        try:
            return await self._obtain(digest, held)
        except LinkDownError as error:
            if held is None:
                msg = f"no URL of the origin for blob {digest.sha256}, or one that was refused: {error}; the fetch "
                raise LinkDownError(f"{msg}goes on when control can be reached") from error
            return held
        except (BusyError, AskFailedError):
            if held is None:
                raise
            return held

    async def another(self, digest: Digest, refused: OriginUrl) -> OriginUrl:
        """A URL in the place of one that the store refused; raises as ``url``."""
        await self._forget(refused)
        return await self._obtain(digest, refused)

    async def _obtain(self, digest: Digest, than: OriginUrl | None) -> OriginUrl:
        """One that is another than that; whoever else waits for it asks once."""
        async with self._asking:
            held = self._urls.get(digest.sha256)
            if held is not None and held != than:
                return held
            answer = await self._ask_for([digest])
            for refusal in answer.refused:
                raise _error(refusal.gate, f"control gives no URL of the origin: {refusal.reason}", digest)
            if not answer.urls or answer.urls[0].digest != digest:
                msg = f"control answered with no URL for blob {digest.sha256}: its log says more"
                raise NotFoundError(msg, sha256=digest.sha256)
            return answer.urls[0]

    async def _renew(self) -> bool:
        """Ask for what is wanted and lacks a URL or has an old one; False if it should be tried again soon."""
        now = self._clock.now()
        due = [digest for digest in self._wanted() if self._is_due(digest, now)]
        for start in range(0, len(due), MAX_URLS):
            try:
                async with self._asking:
                    answer = await self._ask_for(due[start : start + MAX_URLS])
            except PeerError as error:
                _LOG.warning("URLs of the origin for %d blobs: %s", len(due) - start, error)
                return False
            for refusal in answer.refused:
                _LOG.info("no URL of the origin for %s: %s", refusal.digest.sha256, refusal.reason)
        return True

    def _is_due(self, digest: Digest, now: datetime) -> bool:
        held = self._urls.get(digest.sha256)
        # One from the future of a clock that was set back is as good as none.
        return held is None or not held.issued_at <= now < held.issued_at + (held.expires_at - held.issued_at) / 2

    async def _ask_for(self, digests: Sequence[Digest]) -> OriginUrlsAnswer:
        """Ask control and keep what it gives; raises PeerError."""
        body = encode(OriginUrlsRequest(tuple(digests)))
        try:
            answer = decode(OriginUrlsAnswer, await self._ask(ASK_KIND, body, ASK_TIMEOUT_S))
        except TimeoutError as error:
            msg = f"control did not answer within {ASK_TIMEOUT_S:g} s for a URL of the origin"
            raise LinkDownError(msg) from error
        asked = set(digests)
        for one in answer.urls:
            self._check(one, asked)
        await self._keep(answer.urls)
        return answer

    def _check(self, one: OriginUrl, asked: set[Digest]) -> None:
        """Raise OriginUrlError unless it leads to that blob in the region's bucket."""
        parts, key = urlsplit(one.url), self._place.key(one.digest.sha256)
        host, wanted = parts.netloc.lower(), self._endpoint.netloc.lower()
        in_path = parts.path == f"/{self._place.bucket}/{key}"
        in_host = parts.path == f"/{key}" and host.startswith(f"{self._place.bucket}.")
        is_there = not wanted or host in {wanted, f"{self._place.bucket}.{wanted}"}
        if one.digest not in asked or parts.scheme != (self._endpoint.scheme or "https") or not is_there:
            msg = f"control handed down a URL at {parts.scheme}://{host} for blob {one.digest.sha256}, which is not "
            raise OriginUrlError(f"{msg}{self._endpoint.geturl() or 'https'}: compare origin.endpoint of both")
        if not (in_path or in_host):
            msg = f"control handed down a URL for {parts.path}, which is not blob {one.digest.sha256} in {self._place}"
            raise OriginUrlError(f"{msg}: compare origin.url of both")

    async def _keep(self, urls: Sequence[OriginUrl]) -> None:
        """Have them durable, then in use; what expired long ago goes."""
        rows = [
            (one.digest.sha256, one.digest.size_bytes, one.url, _text(one.issued_at), _text(one.expires_at))
            for one in urls
        ]
        gone = [sha256 for sha256, one in self._urls.items() if self._clock.now() > one.expires_at + KEPT_AFTER_EXPIRY]
        gone += sorted(self._urls, key=lambda sha256: self._urls[sha256].expires_at)[: len(self._urls) - MAX_HELD]
        async with self._database.transaction() as tx:
            await tx.execute_many("DELETE FROM origin_urls WHERE sha256 = ?", [(sha256,) for sha256 in gone])
            await tx.execute_many("INSERT OR REPLACE INTO origin_urls VALUES (?, ?, ?, ?, ?)", rows)
        for sha256 in gone:
            self._urls.pop(sha256, None)
        self._urls.update((one.digest.sha256, one) for one in urls)

    async def _forget(self, refused: OriginUrl) -> None:
        sha256 = refused.digest.sha256
        if self._urls.get(sha256) == refused:
            del self._urls[sha256]
            async with self._database.transaction() as tx:
                await tx.execute("DELETE FROM origin_urls WHERE sha256 = ? AND url = ?", (sha256, refused.url))


async def _nobody(kind: str, body: bytes, timeout_s: float) -> bytes:
    """Before there is a session to ask over."""
    del kind, body, timeout_s
    msg = "no session with control yet"
    raise LinkDownError(msg)


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()


def _error(gate: str, reason: str, digest: Digest) -> PeerError:
    """What control's refusal is here."""
    if gate in {Gate.HOLD.value, Gate.CLASS.value}:
        return GateError(gate, reason, sha256=digest.sha256)
    return NotFoundError(reason, sha256=digest.sha256)
