"""Leave to read the origin: control signs a URL for one blob and one region at a time, and hands out no credentials.

Rules.
1. A region's origin is the one whose ``serves`` names it, else the one that names none (C4: artifacts by geography).
2. A URL is signed for blobs of published releases alone, and only where the release may enter that region: neither
   held nor revoked, nor for other regions. So a stolen super hub cannot read what its region has no business with.
3. A URL reads one object by GET until it expires, 48 hours unless configured; Signature Version 4 knows no longer than
   seven days. The signature covers method, host, key and time. It is kept nowhere here and in no log.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from wavemesh.artifacts.objectstore import Place, load_access, open_store
from wavemesh.artifacts.signedurls import MAX_URL_BYTES, OriginRefusal, OriginUrl, OriginUrlsAnswer
from wavemesh.errors import NotFoundError
from wavemesh.policy.gates import Gate
from wavemesh.runtime.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta
    from pathlib import Path

    from obstore.store import S3Store

    from control.config import OriginConfig
    from control.releases import Releases
    from wavemesh.artifacts.signedurls import OriginUrlsRequest
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.statements import Digest

_LOG = logging.getLogger(__name__)


class _Origin:
    """One bucket, and how long its URLs live."""

    def __init__(self, store: S3Store, lifetime: timedelta) -> None:
        self.store = store
        self.lifetime = lifetime


class Origins:
    """All object stores that control may let regions read from."""

    def __init__(self, config: Mapping[str, OriginConfig], file: Path, *, releases: Releases, clock: Clock) -> None:
        """Read the access files; raises ConfigError, which names ``file``, the configuration they come from."""
        self._releases = releases
        self._clock = clock
        self._by_region: dict[str, _Origin] = {}
        self._default: _Origin | None = None
        for name, one in config.items():
            self._add(name, one, file)

    def _add(self, name: str, one: OriginConfig, file: Path) -> None:
        access = load_access(one.access)
        try:
            origin = _Origin(open_store(Place.parse(one.url), access), one.url_lifetime)
        except OSError as error:
            raise ConfigError(one.access, "ca_file", error.strerror or str(error)) from error
        if not one.serves:
            if self._default is not None:
                raise ConfigError(file, f"origins.{name}.serves", "two origins are for all other regions; name regions")
            self._default = origin
        for region in one.serves:
            if region in self._by_region:
                raise ConfigError(file, f"origins.{name}.serves", f"region {region!r} has another origin already")
            self._by_region[region] = origin

    async def answer(self, region: NodeId, request: OriginUrlsRequest) -> OriginUrlsAnswer:
        """URLs for what that region may read; raises NotFoundError where it has no origin here."""
        origin = self._by_region.get(region.name, self._default)
        if origin is None:
            msg = f"control has no object store for region {region.name}: add [origins.NAME] to control's config.toml"
            raise NotFoundError(msg, region=region.name)
        judged = (self._judge(region.name, digest) for digest in request.digests)
        refused = [one for one in judged if one is not None]
        refused_digests = {one.digest for one in refused}
        allowed = [digest for digest in request.digests if digest not in refused_digests]
        return OriginUrlsAnswer(tuple(await self._sign(origin, allowed, region)), tuple(refused))

    async def _sign(self, origin: _Origin, digests: Sequence[Digest], region: NodeId) -> list[OriginUrl]:
        from obstore import sign

        issued_at: datetime = self._clock.now()
        names = [digest.sha256 for digest in digests]
        # In a thread: four HMACs a URL, but temporary credentials may have to be fetched first.
        urls = await asyncio.to_thread(sign, origin.store, "GET", names, origin.lifetime) if names else []
        _LOG.info("%d URLs signed for %s, until %s", len(urls), region.path, issued_at + origin.lifetime)
        return [
            OriginUrl(digest, url, issued_at, issued_at + origin.lifetime)
            for digest, url in zip(digests, urls, strict=True)
            if len(url.encode()) <= MAX_URL_BYTES
        ]

    def _judge(self, region: str, digest: Digest) -> OriginRefusal | None:
        """Why a region gets no URL for a blob; one release that has it and may enter is enough."""
        found = self._releases.trusted.releases_with(digest)
        here = [release for release in found if not release.regions or region in release.regions]
        if any(not self._releases.hold_reason(release) for release in here):
            return None
        if here:
            reason = f"release {here[0].name} is on hold: {self._releases.hold_reason(here[0])}"
            return OriginRefusal(digest, Gate.HOLD.value, reason[:200])
        if found:
            regions = ", ".join(found[0].regions)
            return OriginRefusal(digest, Gate.CLASS.value, f"release {found[0].name} is for {regions}"[:200])
        return OriginRefusal(digest, NotFoundError.reason, f"no published release has blob {digest.sha256}")
