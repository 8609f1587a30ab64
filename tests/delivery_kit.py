"""A pretended super hub that offers deliveries, and images that resemble each other, for the store hub's tests."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import grpc

from storehub.deliveries import GAP_BYTES
from tests.storehub_kit import WAVE, Control, SuperHub, digest_of
from wavemesh.artifacts.chunks import chunk_file, make_pack, missing, parse_index
from wavemesh.artifacts.compressed import make_full_zstd
from wavemesh.artifacts.delta import codec
from wavemesh.artifacts.plan import coalesced
from wavemesh.artifacts.transfer import SERVICE_NAME
from wavemesh.policy.document import DeliveryTerms, policy_from_json, policy_to_json
from wavemesh.trust.statements import WaveState
from wavemesh.v1 import artifact_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from wavemesh.artifacts.chunks import Range
    from wavemesh.identity.nodes import NodeId
    from wavemesh.session.frames import Resource
    from wavemesh.trust.statements import Digest

MIB = 1 << 20


def images(seed: int, size_bytes: int = MIB) -> tuple[bytes, bytes]:
    """An image nobody can compress, and the next version of it: a few runs of it changed, some bytes put in."""
    rng = Random(seed)
    old = rng.randbytes(size_bytes)
    new = bytearray(old)
    for place in (size_bytes // 7, size_bytes // 2):
        new[place : place + 2000] = rng.randbytes(2000)
    new[size_bytes // 3 : size_bytes // 3] = b"put in"
    return old, bytes(new)


def terms(control: Control, **changes: Any) -> None:
    """Change what the policy says of deliveries."""
    policy = policy_from_json(control.policy)
    control.policy = policy_to_json(replace(policy, delivery=replace(DeliveryTerms(), **changes)))


class OfferingHub(SuperHub):
    """Makes what it offers out of the control's blobs, and counts the bytes it sends."""

    def __init__(self, control: Control, directory: Path) -> None:
        super().__init__(control)
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.offers: dict[str, list[artifact_pb2.Delivery]] = {}
        self.asked: list[artifact_pb2.OfferRequest] = []
        self.sent: Counter[str] = Counter()
        self.handlers = (
            grpc.method_handlers_generic_handler(
                SERVICE_NAME,
                {
                    "Offer": grpc.unary_unary_rpc_method_handler(
                        self._offer,
                        request_deserializer=artifact_pb2.OfferRequest.FromString,
                        response_serializer=artifact_pb2.OfferResponse.SerializeToString,
                    )
                },
            ),
        )

    async def _offer(self, request: artifact_pb2.OfferRequest, context: Any) -> artifact_pb2.OfferResponse:
        self.asked.append(request)
        held = {base.sha256 for base in request.bases}
        offers = self.offers.get(request.target.sha256, [])
        return artifact_pb2.OfferResponse(
            deliveries=[one for one in offers if {base.sha256 for base in one.bases} <= held]
        )

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        return self._counted(digest, await super().open(peer, digest, offset, length_bytes), length_bytes)

    async def _counted(
        self, digest: Digest, pieces: AsyncGenerator[bytes, None], length_bytes: int
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(pieces):
            async for piece in pieces:
                wanted = piece[:length_bytes]
                length_bytes -= len(wanted)
                yield wanted
                self.sent[digest.sha256] += len(wanted)
                if not length_bytes:
                    return

    # -- what it offers ---------------------------------------------------------------------------------------------

    def offer(
        self, target: Digest, method: artifact_pb2.DeliveryMethod.ValueType, **fields: Any
    ) -> artifact_pb2.Delivery:
        named: dict[str, Any] = {
            name: artifact_pb2.Digest(sha256=value.sha256, size_bytes=value.size_bytes)
            for name, value in fields.items()
            if name in {"payload", "index"}
        }
        rest = {name: value for name, value in fields.items() if name not in {"payload", "index", "bases"}}
        bases = [artifact_pb2.Digest(sha256=b.sha256, size_bytes=b.size_bytes) for b in fields.get("bases", ())]
        delivery = artifact_pb2.Delivery(method=method, bases=bases, **named, **rest)
        self.offers.setdefault(target.sha256, []).append(delivery)
        return delivery

    def delta(self, base: Digest, target: Digest) -> Digest:
        paths = [self._file(base), self._file(target)]
        payload = self._made(lambda out: codec.make(paths[:1], paths[1], out))
        self.offer(target, artifact_pb2.DELIVERY_METHOD_DELTA, bases=[base], payload=payload)
        return payload

    def compressed(self, target: Digest) -> Digest:
        payload = self._made(lambda out: make_full_zstd(self._file(target), out, level=3))
        self.offer(target, artifact_pb2.DELIVERY_METHOD_FULL_ZSTD, payload=payload)
        return payload

    def chunks(self, target: Digest, *bases: Digest, read_bytes: int = 0) -> tuple[Digest, Digest]:
        index_file = self.directory / "index"
        pack = self._made(lambda out: make_pack(self._file(target), out, index_file, level=3))
        index = self.put(index_file.read_bytes())
        fields = {"bases": bases, "payload": pack, "index": index, "read_bytes": read_bytes}
        self.offer(target, artifact_pb2.DELIVERY_METHOD_CHUNKS, **fields)
        return pack, index

    def lacking(self, index: Digest, *bases: Digest) -> tuple[Range, ...]:
        """What of its pack has to be read by who holds the bases."""
        have = {chunk.id for base in bases for chunk in chunk_file(self._file(base))}
        return coalesced(missing(parse_index(self.control.blobs[index.sha256]), have), GAP_BYTES)

    def put(self, content: bytes) -> Digest:
        digest = digest_of(content)
        self.control.blobs[digest.sha256] = content
        return digest

    def _file(self, digest: Digest) -> Path:
        path = self.directory / digest.sha256
        path.write_bytes(self.control.blobs[digest.sha256])
        return path

    def _made(self, make: Any) -> Digest:
        out = self.directory / "out"
        out.unlink(missing_ok=True)
        make(out)
        return self.put(out.read_bytes())


def first_wave(control: Control, release: str) -> list[Resource]:
    """What puts a release into the store's cache: a wave of another id."""
    order = control.order("pos-11", wave_id="141", release=release, state=WaveState.PLANNED)
    return [control.tuf(), control.holds(), control.policy_resource(), order]


def next_wave(control: Control, release: str, wave_id: str = WAVE) -> list[Resource]:
    order = control.order("pos-12", wave_id=wave_id, release=release, state=WaveState.PLANNED)
    return [control.tuf(), control.policy_resource(), order]
