"""A registry for the container runtimes of a store: the pull half of the OCI distribution API, read-only (O5).

    podman pull HUB:PORT/REPOSITORY:TAG      with ca.crt, client.cert and client.key of a node in certs.d/HUB:PORT

Source: OCI distribution specification 1.1, "Pull" and "Content discovery". What it serves are the apps of releases that
are trusted here, from the cache, verified while they are read; a release on hold or taken back is denied. It answers
devices of this store, the hub itself and operators, by TLS certificate as everywhere in the mesh; each request is
judged anew. Nothing can be pushed: what is in it, release keys signed.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections import Counter
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

from storehub.apps import catalog
from wavemesh.artifacts.oci import BadImageError, references
from wavemesh.errors import (
    BusyError,
    ConflictError,
    ForbiddenError,
    GateError,
    LocalError,
    NotFoundError,
    PeerError,
    WavemeshError,
)
from wavemesh.identity.contexts import load_pair, server_context
from wavemesh.identity.nodes import Role
from wavemesh.runtime.grpc import ListenError
from wavemesh.trust.releases import MAX_OCI_MANIFEST_BYTES, OCI_INDEX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from storehub.apps import Catalog
    from storehub.cache import Cache
    from storehub.hub import Hub
    from wavemesh.identity.certificates import Proof
    from wavemesh.runtime.peers import Peers
    from wavemesh.trust.statements import Digest

_LOG = logging.getLogger(__name__)
MAXIMUM_PULLS = 64
MAXIMUM_PULLS_PER_PEER = 16
PULL_RETRY_S = 2.0
MAX_LISTED = 1000

_CONTENT = re.compile(r"/v2/(?P<repository>[a-z0-9/._-]{1,255})/(?P<kind>manifests|blobs)/(?P<reference>[^/]{1,255})")
_TAGS = re.compile(r"/v2/(?P<repository>[a-z0-9/._-]{1,255})/tags/list")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})?")


class _Answer(Exception):  # noqa: N818  # it carries an answer of the API, which is not always an error of ours
    """Ends a request with an error of the API."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


class Registry:
    """The registry of one store hub."""

    def __init__(self, hub: Hub, cache: Cache, peers: Peers, identity: Path) -> None:
        """Serve what ``cache`` has to whom ``peers`` prove; TLS is made of the files in ``identity``."""
        self._hub = hub
        self._cache = cache
        self._peers = peers
        self._identity = identity
        self._context: ssl.SSLContext | None = None
        self._pulls: Counter[str] = Counter()
        self.port = 0
        """Where it listens; 0 while it does not."""
        self.served_bytes = 0
        """Bytes of manifests and blobs that went out since the start."""

    def reload(self) -> None:
        """Show the node's renewed certificate on connections from now on; raises TlsFilesError, IdentitySwitchError."""
        if self._context is not None:
            load_pair(self._context, self._identity)

    @asynccontextmanager
    async def serving(self, listen: str) -> AsyncIterator[int]:
        """Serve at "host:port" inside the block, which gets the port. Raises TlsFilesError, ListenError."""
        context = self._context = server_context(self._identity)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=30, shutdown_timeout=1)
        await runner.setup()
        host, _, port = listen.rpartition(":")
        try:
            site = web.TCPSite(runner, host.strip("[]"), int(port), ssl_context=context)
            try:
                await site.start()
            except OSError as error:
                msg = f"the registry cannot listen at {listen}: {error.strerror}"
                raise ListenError(msg, address=listen) from error
            self.port = int(runner.addresses[0][1])
            yield self.port
        finally:
            self.port = 0
            await runner.cleanup()

    # -- answering ---------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._route(request)
        except _Answer as answer:
            return _error(answer)
        except WavemeshError as error:
            return _error(_answer_to(error))

    async def _route(self, request: web.Request) -> web.StreamResponse:
        peer = self._peer(request)
        if request.method not in {"GET", "HEAD"}:
            raise _Answer(
                405, "UNSUPPORTED", "this registry is read-only: releases bring what is in it", Allow="GET, HEAD"
            )
        path, shelf = request.path, self._catalog()
        if path in {"/v2", "/v2/"}:
            return web.json_response({}, headers={"Docker-Distribution-API-Version": "registry/2.0"})
        if path == "/v2/_catalog":
            return _listed(request, "repositories", shelf.repositories, {})
        if tags := _TAGS.fullmatch(path):
            name = tags["repository"]
            _known(shelf, name)
            return _listed(request, "tags", sorted(shelf.tags[name]), {"name": name})
        if content := _CONTENT.fullmatch(path):
            _known(shelf, content["repository"])
            serve = self._manifest if content["kind"] == "manifests" else self._blob
            return await serve(request, peer, shelf, content["repository"], content["reference"])
        raise _Answer(404, "UNSUPPORTED", f"{path[:200]} is no endpoint of the pull API")

    def _peer(self, request: web.Request) -> Proof:
        shown = request.transport.get_extra_info("ssl_object") if request.transport else None
        if shown is None:
            raise ForbiddenError("the connection is gone")
        leaf, *above = _chain(shown)
        proof = self._peers.prove(leaf, b"".join(above))
        peer, own = proof.node_id, self._hub.credentials.node_id
        if peer.fleet != own.fleet or not (peer.is_child_of(own) or peer == own or peer.role is Role.OPERATOR):
            msg = f"{peer.uri} is no device of this store: pull from your own hub"
            raise ForbiddenError(msg, peer=peer.uri)
        return proof

    def _catalog(self) -> Catalog:
        trusted = self._hub.belief.trusted
        return catalog(trusted.releases().values() if trusted is not None else ())

    async def _manifest(
        self, request: web.Request, peer: Proof, shelf: Catalog, repository: str, reference: str
    ) -> web.StreamResponse:
        release = shelf.tags[repository].get(reference)
        if release is not None and release.app is not None:
            digest, media_type = release.app.root.digest, release.app.media_type
        else:
            digest = _digest(shelf, repository, reference, "MANIFEST_UNKNOWN")
            media_type = await self._media_type(peer, shelf, repository, digest)
        headers = {
            "Content-Type": media_type,
            "Content-Length": str(digest.size_bytes),
            "Docker-Content-Digest": f"sha256:{digest.sha256}",
        }
        content = await self._document(peer, digest)
        if request.method == "HEAD":
            return web.Response(headers=headers)
        self.served_bytes += len(content)
        return web.Response(body=content, headers=headers)

    async def _media_type(self, peer: Proof, shelf: Catalog, repository: str, digest: Digest) -> str:
        """What kind of manifest a digest is: what refers to it says."""
        for app in shelf.apps(repository):
            if app.root.digest == digest:
                return app.media_type
            if app.media_type == OCI_INDEX and digest in app.blobs:
                try:
                    below = references(await self._document(peer, app.root.digest), app.media_type)
                except BadImageError as error:
                    raise _Answer(404, "MANIFEST_INVALID", f"{repository}:{app.tag}: {error}") from error
                found = [one.media_type for one in below if one.digest == digest and one.is_document]
                if found:
                    return found[0]
        raise _Answer(404, "MANIFEST_UNKNOWN", f"sha256:{digest.sha256} is no manifest of {repository}")

    async def _document(self, peer: Proof, digest: Digest) -> bytes:
        if digest.size_bytes > MAX_OCI_MANIFEST_BYTES:
            raise _Answer(404, "MANIFEST_UNKNOWN", f"sha256:{digest.sha256} is too large for a manifest")
        async with aclosing(await self._cache.open(peer.node_id, digest, 0, 0)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def _blob(
        self, request: web.Request, peer: Proof, shelf: Catalog, repository: str, reference: str
    ) -> web.StreamResponse:
        digest = _digest(shelf, repository, reference, "BLOB_UNKNOWN")
        start, end = _range(request.headers.get("Range", ""), digest.size_bytes)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - start),
            "Docker-Content-Digest": f"sha256:{digest.sha256}",
            "Accept-Ranges": "bytes",
        }
        is_part = end - start < digest.size_bytes
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{digest.size_bytes}"
        response = web.StreamResponse(status=206 if is_part else 200, headers=headers)
        with self._counted(peer.node_id.path):
            # Opened for HEAD too: it says whether the bytes may be had, which the size alone does not.
            async with aclosing(
                await self._cache.open(peer.node_id, digest, start, end - start if is_part else 0)
            ) as pieces:
                await response.prepare(request)
                if request.method == "GET":
                    await self._send(response, peer, pieces)
        return response

    async def _send(self, response: web.StreamResponse, peer: Proof, pieces: AsyncIterator[bytes]) -> None:
        try:
            async for piece in pieces:
                self._hub.credentials.authorities.check_not_revoked(peer)
                await response.write(piece)
                self.served_bytes += len(piece)
        except ConnectionError:
            return  # whoever pulled is gone; he comes back with a range
        except WavemeshError as error:
            # The status has gone out: a length that is not reached is what is left to say it with.
            _LOG.warning("registry: %s got a part of a blob: %s", peer.node_id.path, error)
            response.force_close()
            return
        await response.write_eof()

    @contextmanager
    def _counted(self, path: str) -> Iterator[None]:
        if self._pulls.total() >= MAXIMUM_PULLS or self._pulls[path] >= MAXIMUM_PULLS_PER_PEER:
            raise BusyError(
                f"{self._pulls.total()} pulls are going on, {self._pulls[path]} of them yours", PULL_RETRY_S
            )
        self._pulls[path] += 1
        try:
            yield
        finally:
            self._pulls[path] -= 1
            if not self._pulls[path]:
                del self._pulls[path]


def _chain(shown: Any) -> list[bytes]:
    """The peer's certificate and those between it and a root, in PEM."""
    if hasattr(shown, "get_verified_chain"):  # public since Python 3.13
        return [ssl.DER_cert_to_PEM_cert(der).encode() for der in shown.get_verified_chain()[:-1]]
    verified = shown._sslobj.get_verified_chain()  # noqa: SLF001  # what 3.13 made public, by its name before
    return [str(one.public_bytes()).encode() for one in verified[:-1]]


def _known(shelf: Catalog, repository: str) -> None:
    if repository not in shelf.tags:
        known = ", ".join(shelf.repositories) or "none"
        raise _Answer(404, "NAME_UNKNOWN", f"no release that is trusted here brings {repository}; known are {known}")


def _digest(shelf: Catalog, repository: str, reference: str, code: str) -> Digest:
    named = _DIGEST.fullmatch(reference)
    digest = shelf.blobs[repository].get(named[1]) if named else None
    if digest is None:
        tags = ", ".join(sorted(shelf.tags[repository]))
        raise _Answer(404, code, f"{repository} has no {reference[:100]}; its tags are {tags}")
    return digest


def _range(header: str, size_bytes: int) -> tuple[int, int]:
    """First byte and the one after the last; forms that are not served are answered with everything, as HTTP allows."""
    asked = _RANGE.fullmatch(header)
    if asked is None:
        return 0, size_bytes
    start, end = int(asked[1]), min(int(asked[2]) + 1, size_bytes) if asked[2] else size_bytes
    if start >= end:
        raise _Answer(
            416, "BLOB_UPLOAD_INVALID", f"{header} of {size_bytes} bytes", **{"Content-Range": f"bytes */{size_bytes}"}
        )
    return start, end


def _listed(request: web.Request, key: str, names: Any, other: dict[str, str]) -> web.Response:
    """A page of names, as the specification pages them: ``n`` at most, those after ``last``."""
    asked = request.query.get("n", "")
    most = min(int(asked), MAX_LISTED) if asked.isascii() and asked.isdigit() else MAX_LISTED
    rest = [name for name in names if name > request.query.get("last", "")]
    headers = {}
    if most and len(rest) > most:
        headers["Link"] = f'<{request.path}?n={most}&last={rest[most - 1]}>; rel="next"'
    return web.json_response({**other, key: rest[:most]}, headers=headers)


def _answer_to(error: WavemeshError) -> _Answer:
    match error:
        case BusyError():
            after = str(max(1, round(error.retry_after_s)))
            return _Answer(429, "TOOMANYREQUESTS", str(error), **{"Retry-After": after})
        case NotFoundError():
            return _Answer(404, "BLOB_UNKNOWN", f"{error}; `edgectl hub prefetch --policy` brings it here")
        case GateError():
            return _Answer(403, "DENIED", f"{error.gate}: {error}")
        case ForbiddenError() | ConflictError():
            return _Answer(403, "DENIED", str(error))
        case LocalError():
            return _Answer(503, "UNAVAILABLE", str(error))
        case PeerError():
            return _Answer(502, "UNAVAILABLE", str(error))
    raise error


def _error(answer: _Answer) -> web.Response:
    body = {"errors": [{"code": answer.code, "message": str(answer)}]}
    return web.json_response(body, status=answer.status, headers=answer.headers)
