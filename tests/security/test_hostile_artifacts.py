"""A hostile hub and the bytes it serves: missing, wrong, too many, too few, too slow (P2, D1, D3, Q2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types

from tests.device_directory import NEW_VERSION, digest_of, image_of
from wavemesh.artifacts.transfer import frame
from wavemesh.errors import GateError
from wavemesh.runtime.status import STATUS_KEY
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from tests.security.hostile_kit import Stage, Victim
    from wavemesh.v1 import artifact_pb2

    Context = grpc.aio.ServicerContext[Any, Any]

IMAGE = image_of(NEW_VERSION)
NEW_SHA256 = digest_of(IMAGE).sha256
PIECE = 64 * 1024
#: Seconds within which the device wants to see progress here.
PACE_S = 0.8
paced = pytest.mark.parametrize("stage", [{"pace": str(PACE_S)}], indirect=True, ids=["paced"])


def running(victim: Victim) -> dict[str, str]:
    """What an attack on staging may not touch: the running slot, its label, the boot environment, the configs."""
    files = victim.standing().files
    return {name: files[name] for name in files if not name.startswith("slots/B.") and ".partial/" not in name}


async def refuses(stage: Stage, gate: str, says: str = "") -> None:
    """The order of a wave whose bytes are bad ends in that word, and what runs goes on running."""
    before = running(stage.victim)
    stage.hub.order()
    await stage.hub.until(lambda: ("REFUSED", gate, 0) in stage.hub.words())
    assert says in stage.hub.outcomes()[-1].evidence, stage.hub.outcomes()[-1]
    assert running(stage.victim) == before
    assert stage.victim.directory.environment().trial is None
    assert [line for line in stage.victim.log() if f"REFUSED (attempt 0): {gate}" in line]


# --- what is not there, or is not it ---------------------------------------------------------------------------------


@paced
@pytest.mark.parametrize("missing", ["firmware", "config", "signature"])
async def test_partial_bundle(stage: Stage, missing: str) -> None:
    """A release of which one part is withheld is not staged, and the wave is told so."""
    artifact = getattr(stage.hub.release, missing)
    sha256 = artifact.digest.sha256 if missing != "signature" else stage.hub.bundle_sha256
    withheld = stage.hub.blobs.content.pop(sha256)
    await refuses(stage, "byte-budget", "no blob")
    stage.hub.blobs.content[sha256] = withheld
    await stage.updates()


@pytest.mark.parametrize("wrong", ["truncated", "another's", "nested"])
async def test_wrong_signature_bundle(stage: Stage, wrong: str) -> None:
    """The bundle is what release keys signed about this release, or the release is refused as unsigned."""
    content, sha256 = stage.hub.blobs.content, stage.hub.bundle_sha256
    right = content[sha256]
    content[sha256] = {
        "truncated": right[: len(right) // 2].ljust(len(right)),
        "another's": right.replace(b'"keyid": "', b'"keyid": "0')[: len(right)],
        "nested": b"[" * len(right),
    }[wrong]
    await refuses(stage, "signature")
    content[sha256] = right
    await stage.next_wave("143")


@pytest.mark.parametrize("what", ["reordered", "overlapping", "config"])
async def test_wrong_bytes(stage: Stage, what: str) -> None:
    """Pieces out of order or overlapping, one bit of the config: read back they are not what was signed."""
    pieces = [IMAGE[at : at + PIECE] for at in range(0, len(IMAGE), PIECE)]
    config = stage.hub.release.config
    assert config is not None
    sha256 = config.digest.sha256 if what == "config" else NEW_SHA256
    right = stage.hub.blobs.content[sha256]
    stage.hub.blobs.content[sha256] = {
        "reordered": b"".join([pieces[1], pieces[0], *pieces[2:]]),
        "overlapping": b"".join([pieces[0], pieces[0][-100:], *pieces[1:]])[: len(IMAGE)],
        "config": bytes([right[0] ^ 1]) + right[1:],
    }[what]
    await refuses(stage, "checksum")
    assert (stage.victim.path / "slots" / "B.json").exists() == (what == "config")
    stage.hub.blobs.content[sha256] = right
    await stage.updates()


# --- too many, too few, too slow -------------------------------------------------------------------------------------


async def endless(request: artifact_pb2.ReadRequest, context: Context) -> None:
    """All that was signed, and then more without end."""
    await context.write(frame(bytes(request.digest.size_bytes - request.offset)))
    while True:
        await context.write(frame(bytes(PIECE)))


async def empty_for_ever(request: artifact_pb2.ReadRequest, context: Context) -> None:
    """A stream that goes on and brings nothing."""
    while True:
        await context.write(b"")
        await asyncio.sleep(0.01)


async def trickle(request: artifact_pb2.ReadRequest, context: Context) -> None:
    """A byte now and then keeps any deadline of a single read from passing."""
    while True:
        await context.write(frame(b"x"))
        await asyncio.sleep(0.05)


async def stall(request: artifact_pb2.ReadRequest, context: Context) -> None:
    """Some bytes, then silence."""
    await context.write(frame(IMAGE[request.offset : request.offset + 100]))
    await asyncio.Event().wait()


async def early_end(request: artifact_pb2.ReadRequest, context: Context) -> None:
    """A byte of each answer, then its end."""
    await context.write(frame(IMAGE[request.offset : request.offset + 1]))


async def garbage(request: artifact_pb2.ReadRequest, context: Context) -> None:
    """No ReadResponse: a length that runs over the end."""
    await context.write(b"\x0a\xff\xff\xff\xff\x0f" + b"x" * 100)


async def oversized(request: artifact_pb2.ReadRequest, context: Context) -> None:
    """One frame beyond every bound of a message."""
    await context.write(frame(bytes(6 * 1024 * 1024)))


@paced
@pytest.mark.parametrize(
    ("script", "says"),
    [
        (endless, "more than the"),
        (empty_for_ever, "too slowly"),
        (trickle, "too slowly"),
        (stall, "too slowly"),
        (early_end, "ended at byte"),
        (garbage, "is no ReadResponse"),
        (oversized, "larger than max"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
async def test_endless_and_slow_bytes(stage: Stage, script: Any, says: str) -> None:
    """Bytes that never come to an end, or never come: the device holds no lease meanwhile, says so, and resumes."""
    stage.hub.play_blob[NEW_SHA256] = script
    await refuses(stage, "byte-budget", says)
    assert {status.state for status in stage.hub.statuses} <= {
        UpdateState.IDLE,
        UpdateState.PREFLIGHT,
        UpdateState.STAGING,
        UpdateState.REFUSED,
    }
    if script in {endless, garbage}:
        assert ("blob", "") in stage.hub.told()
    stage.hub.play_blob.clear()
    stage.hub.blobs.reads.clear()
    await stage.updates()


# --- what comes instead of bytes -------------------------------------------------------------------------------------


def status(reason: str, metadata: dict[str, str], *details: any_pb2.Any) -> status_pb2.Status:
    made = status_pb2.Status(code=9, message="no")
    made.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="wavemesh", metadata=metadata))
    made.details.extend(details)
    return made


BROKEN = any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff\xff\xff")
STATUSES = {
    "no-gate": status("GATE", {"gate": "nonsense\n"}),
    "own-names": status("GATE", {"gate": "disk", "message": "x", "self": "y", "retry_after_s": "z"}),
    "broken": status("GATE", {"gate": "nonsense"}, BROKEN),
}


@paced
@pytest.mark.parametrize("name", STATUSES)
async def test_hostile_refusals_of_bytes(stage: Stage, name: str) -> None:
    """The hub's refusal is as hostile as its bytes: no word of its own becomes a gate, and no detail ends the agent."""

    async def refuse(request: artifact_pb2.ReadRequest, context: Context) -> None:
        detail = (STATUS_KEY, STATUSES[name].SerializeToString())
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no", (detail,))

    stage.hub.play_blob[NEW_SHA256] = refuse
    await refuses(stage, "disk" if name == "own-names" else "byte-budget")
    stage.hub.play_blob.clear()
    await stage.updates()


async def test_refusal_by_gate_is_of_this_wave_alone(stage: Stage) -> None:
    """A hub may refuse its bytes by a gate; that is the wave's, and the next one goes through."""
    stage.hub.blobs.refusal = GateError("hold", "the hub says so")
    await refuses(stage, "hold", "the hub says so")
    stage.hub.blobs.refusal = None
    await stage.updates()
