"""A hostile hub below messages: bytes, frames, numbers, floods, silence, acknowledgements, certificates (M3, Q2)."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from device.belief import MAX_HELD_BYTES, MAX_UNPROVEN
from device.sink import MAX_ALERTS_PER_UPDATE
from tests.conftest import FLEET
from tests.device_directory import DEVICE, DeviceDirectory
from tests.device_kit import WAVE
from tests.security.hostile_kit import HostileHub, Victim, Wire
from wavemesh.codec.statements import decode
from wavemesh.identity.ca import FleetCa, RegionCa
from wavemesh.identity.csr import key_of_request
from wavemesh.identity.files import CURRENT_FILE
from wavemesh.identity.nodes import NodeId
from wavemesh.session.frames import MAX_RETRY_AFTER_S, ResourceKey
from wavemesh.trust.enrolments import IssueAnswer, IssuedCertificate, RenewalRequest
from wavemesh.trust.statements import DeviceStatus, Envelope, WaveState
from wavemesh.v1 import session_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from cryptography import x509

    from tests.conftest import CredentialsFactory, TrustKeys
    from tests.security.hostile_kit import Context, Stage

BEAT_MS = 200


def frame(**kind: Any) -> bytes:
    return pb.ConnectResponse(**kind).SerializeToString()


def welcome(**changes: Any) -> bytes:
    fields = {
        "protocol_version": 1,
        "software_version": "hostile",
        "session_id": "s",
        "heartbeat_interval_ms": BEAT_MS,
        "report_window": 10,
        "epoch": "e" * 32,
        **changes,
    }
    return frame(welcome=pb.Welcome(**fields))


def update(nonce: int, **changes: Any) -> bytes:
    return frame(resources=pb.ResourceUpdate(nonce=nonce, **changes))


def resource(kind: str, name: str, content: bytes, digest: str) -> pb.Resource:
    key, version = pb.ResourceKey(type=kind, name=name), pb.ResourceVersion(epoch="e", counter=1)
    return pb.Resource(key=key, version=version, digest=digest, content=content)


class Wiring:
    """A device, and a hub that speaks bytes until ``honest`` takes its place at the same address."""

    def __init__(self, path: Path, ca: FleetCa, keys: TrustKeys, credentials: CredentialsFactory) -> None:
        self.hub = HostileHub(keys, credentials)
        self.wire = Wire(self.hub)
        self.victim = Victim(DeviceDirectory(path / "device", ca, keys.pinned_root))

    async def plays(self, scripts: Iterable[tuple[bytes, ...]]) -> None:
        """One session after the other, each of these messages; the device comes back from all of them."""
        lines = list(scripts)

        async def script(context: Context) -> None:
            for message in lines[min(len(self.wire.hellos), len(lines)) - 1]:
                await context.write(message)
            await asyncio.Event().wait()

        async with self.wire.serving(script) as port:
            self.victim.directory.configure(port)
            async with self.victim.running():
                await self.wire.until_sessions(1)
                before = self.victim.standing()
                await self.wire.until_sessions(len(lines) + 1)
            assert self.victim.standing() == before

    @asynccontextmanager
    async def honest(self) -> AsyncIterator[None]:
        """The same device with a hub that behaves."""
        async with self.hub.serving():
            self.victim.directory.configure(self.hub.port)
            async with self.victim.running():
                yield

    async def updates(self) -> None:
        """As if nothing had been, and what was is told."""
        async with self.honest():
            self.hub.order()
            await self.hub.until(lambda: ("UPDATED", "", 1) in self.hub.words())

    def lines(self, text: str) -> list[str]:
        return [line for line in self.victim.log() if text in line]


@pytest.fixture
def wiring(
    tmp_path: Path,
    fleet_ca: FleetCa,
    trust_keys: TrustKeys,
    credentials: CredentialsFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Wiring:
    monkeypatch.setattr("device.app.RECONNECT_MAX_S", 0.1)
    return Wiring(tmp_path, fleet_ca, trust_keys, credentials)


# --- bytes and frames ------------------------------------------------------------------------------------------------


async def test_malformed_frames(wiring: Wiring) -> None:
    """No protobuf, text that is none, an empty frame, one beyond gRPC's bound, counts and names beyond theirs."""
    digest = "ab" * 32
    await wiring.plays(
        [
            (b"\xff\xff\xff\xff",),
            (welcome(), b"\xff\xff\xff\xff"),
            (welcome(), b"\x0a\x04\x12\x02\xff\xfe"),
            (welcome(), b""),
            (welcome(), update(1, changed=[resource("order", "n" * 300, b"", digest)])),
            (welcome(), update(1, changed=[resource("order", "n", b"", "short")])),
            (welcome(), update(1, changed=[resource("order", "n", bytes(1024 * 1024 + 1), digest)])),
            (welcome(), update(1, removed=[pb.ResourceKey(type="t", name=str(number)) for number in range(20_000)])),
            (welcome(), update(1, changed=[resource("tuf", "metadata", bytes(6 * 1024 * 1024), digest)])),
        ]
    )
    assert len(wiring.lines("refused session: MALFORMED_FRAME")) == 8
    await wiring.updates()
    assert ("session", "") in wiring.hub.told()


async def test_frames_out_of_place(wiring: Wiring) -> None:
    """An update too early, a second welcome, a nonce played again, an answer that nobody asked for, and the like."""
    await wiring.plays(
        [
            (update(1),),
            (welcome(), welcome()),
            (welcome(), update(5), update(5)),
            (welcome(), update(5), update(4)),
            (welcome(), frame(answer=pb.Answer(ask_id=99, body=b"x"))),
            (welcome(), frame(heartbeat=pb.Heartbeat(sequence=3)), frame(heartbeat=pb.Heartbeat(sequence=3))),
        ]
    )
    assert len(wiring.lines("refused session: SESSION_VIOLATION")) == 6
    await wiring.updates()
    assert ("session", "") in wiring.hub.told()


async def test_content_unlike_its_digest(wiring: Wiring) -> None:
    """A resource whose bytes are not what its digest says is refused by checksum, and the others stand."""
    mixed = update(1, changed=[resource("order", "142/store-208", b"x", "ab" * 32)])
    async with asyncio.timeout(30):
        await wiring.plays([(welcome(), mixed, b"\xff\xff\xff\xff")])
    assert wiring.lines("refused order/142/store-208: checksum")
    await wiring.updates()
    assert ("order", "checksum") in wiring.hub.told()


async def test_unknown_resource_types(stage: Stage) -> None:
    """What the device does not know it does not keep."""
    for kind in ("shell", "order ", "../tuf"):
        await stage.refuses(kind, "x", b"x", "signature", "not known to this device")
        stage.hub.forget(kind, "x")
    await stage.updates()


# --- floods ----------------------------------------------------------------------------------------------------------


async def test_resource_flood(stage: Stage) -> None:
    """Ten thousand resources: refused, told a few times, and the device goes on doing what it does."""
    before = stage.victim.standing()
    alerts = len(stage.victim.log())
    kinds = ("order", "intent", "lease", "closed", "x")
    for number in range(10_000):
        stage.hub.serve(kinds[number % 5], f"{number}/store-208", b"%d" % number)
    await stage.hub.until(lambda: len(stage.hub.rejected) >= 10_000)
    assert stage.victim.standing() == before
    updates = 10_000 // 1024 + 1
    assert len(stage.victim.log()) - alerts <= (MAX_ALERTS_PER_UPDATE + 1) * updates
    await stage.hub.until(lambda: ("order", "signature") in stage.hub.told())
    assert len(stage.hub.told()) <= len(kinds)
    for number in range(10_000):
        del stage.hub.wanted[ResourceKey(kinds[number % 5], f"{number}/store-208")]
    await stage.updates()


@pytest.mark.parametrize("stage", [{"bare": "yes"}], indirect=True, ids=["bare"])
@pytest.mark.parametrize("much", ["many", "large"])
async def test_flood_that_nobody_can_verify_yet(stage: Stage, much: str) -> None:
    """Before metadata is there nothing can be verified; what is kept until then is bounded in number and in bytes."""
    count, size_bytes = (MAX_UNPROVEN + 100, 10) if much == "many" else (MAX_HELD_BYTES // 1_000_000 + 3, 1_000_000)
    for number in range(count):
        stage.hub.serve("order", f"{number}/store-208", b"%d" % number + bytes(size_bytes))
    await stage.hub.until(lambda: ("order", "byte-budget") in stage.hub.told())
    await stage.hub.until(lambda: len(stage.hub.rejected) + len(stage.hub.taken) >= count)
    assert len(stage.victim.document.held) <= MAX_UNPROVEN
    kept = (stage.victim.path / "state" / "resources").iterdir()
    assert sum(path.stat().st_size for path in kept) <= MAX_HELD_BYTES
    for number in range(count):
        del stage.hub.wanted[ResourceKey("order", f"{number}/store-208")]
    stage.hub.publish()
    await stage.updates()


# --- silence and absence ---------------------------------------------------------------------------------------------


async def test_stream_held_silent(wiring: Wiring) -> None:
    """A hub that opens a session and says nothing more is left; one that wants silence for days is not accepted."""
    await wiring.plays([(welcome(),), (welcome(heartbeat_interval_ms=2**32 - 1),), (welcome(heartbeat_interval_ms=0),)])
    assert wiring.lines("nothing heard from the parent")
    assert wiring.lines("could hold this child for ever")
    await wiring.updates()


async def test_sent_away_for_ever(wiring: Wiring) -> None:
    """To be told to come back in seven weeks is worth ten minutes, and the jitter on it."""

    async def script(context: Context) -> None:
        await context.write(welcome())
        await context.write(frame(goodbye=pb.Goodbye(reason="go", retry_after_ms=2**32 - 1)))
        await asyncio.Event().wait()

    async with wiring.wire.serving(script) as port:
        wiring.victim.directory.configure(port)
        async with wiring.victim.running():
            await wiring.hub.until(lambda: bool(wiring.lines("next attempt in")))
    [line] = wiring.lines("next attempt in")
    [delay_s] = re.findall(r"next attempt in ([\d.]+) s", line)
    assert MAX_RETRY_AFTER_S <= float(delay_s) <= 2 * MAX_RETRY_AFTER_S
    await wiring.updates()


async def test_asks_never_answered(stage: Stage) -> None:
    """A hub that answers nothing keeps the device VERIFIED: it ARMs nothing, and its slot is free for others."""
    stage.hub.answers = False
    stage.hub.order()
    await stage.hub.until(lambda: bool(stage.hub.statuses) and stage.hub.statuses[-1].gate == "health-authority")
    assert stage.victim.directory.environment().trial is None
    stage.hub.answers = True
    await stage.updates()


# --- acknowledgements ------------------------------------------------------------------------------------------------


async def test_acknowledged_beyond_what_was_sent(wiring: Wiring) -> None:
    """A hub cannot acknowledge what it was never sent, in a session or when it opens one; nothing is forgotten."""
    await wiring.plays(
        [
            (welcome(reports_through=99),),
            (welcome(), frame(report_ack=pb.ReportAck(through=2**63))),
            (welcome(), frame(report_ack=pb.ReportAck(through=99))),
        ]
    )
    assert len(wiring.lines("refused session: SESSION_VIOLATION")) == 3
    await wiring.updates()
    assert ("session", "") in wiring.hub.told()


async def test_acknowledged_and_thrown_away(
    stage: Stage, trust_keys: TrustKeys, credentials: CredentialsFactory
) -> None:
    """What a hub acknowledged and kept to itself, outcome and refusals, reaches the hub that takes its place."""
    hub = stage.hub
    hub.serve("tuf", "metadata", b"no metadata")
    await hub.until(lambda: ("tuf", "signature") in hub.told())
    hub.publish()
    await stage.updates()
    document = stage.victim.document
    await hub.until(lambda: not stage.victim.document.reports)
    assert document.incarnation in hub.cursors
    hub.cursors.clear()
    hub.reports.clear()
    hub.disconnect()
    await hub.until(lambda: ("UPDATED", "", 1) in hub.words())
    await hub.until(lambda: ("tuf", "signature") in hub.told())
    assert stage.victim.document.incarnation != document.incarnation


async def test_fenced_for_ever(wiring: Wiring) -> None:
    """A hub that fences every incarnation costs new ones, and no outcome."""
    fenced = frame(fenced=pb.Fenced(reports_through=2**40))
    await wiring.plays([(fenced,), (fenced,), (fenced,)])
    assert len({hello.incarnation for hello in wiring.wire.hellos[:4]}) == 4
    await wiring.updates()


# --- certificates ----------------------------------------------------------------------------------------------------


def leaf(ca: FleetCa | RegionCa, node_id: NodeId, key: ec.EllipticCurvePublicKey) -> IssuedCertificate:
    now = datetime.now(UTC)
    made: x509.Certificate = ca.issue(
        node_id, key, not_before=now - timedelta(minutes=5), not_after=now + timedelta(days=9)
    )
    chain = [] if isinstance(ca, FleetCa) else [one.public_bytes(Encoding.DER) for one in ca.chain]
    return IssuedCertificate(made.public_bytes(Encoding.DER), tuple(chain), now)


async def test_wrong_certificates(stage: Stage, fleet_ca: FleetCa) -> None:
    """A renewal answered with a certificate for another key, node, fleet, of another authority, or with no certificate:
    each is refused and told, and the one in use stays (D11).
    """
    now = datetime.now(UTC)
    other_key = ec.generate_private_key(ec.SECP256R1()).public_key()
    other_ca = FleetCa.create(FLEET, now - timedelta(days=1))
    east = RegionCa.create(fleet_ca, "east", not_before=now - timedelta(hours=1), not_after=now + timedelta(days=9))
    astray = replace(east, region="midwest")  # it issues for its neighbour
    pos_02 = NodeId(FLEET, f"{DEVICE.path[:-1]}2")
    key_of: Callable[[RenewalRequest], ec.EllipticCurvePublicKey] = lambda request: key_of_request(request.csr)  # noqa: E731
    wrong: list[Callable[[RenewalRequest], IssuedCertificate]] = [
        lambda _: leaf(fleet_ca, DEVICE, other_key),
        lambda request: leaf(fleet_ca, pos_02, key_of(request)),
        lambda request: leaf(fleet_ca, NodeId(FLEET, "operator/alice"), key_of(request)),
        lambda request: leaf(other_ca, DEVICE, key_of(request)),
        lambda request: leaf(astray, DEVICE, key_of(request)),
        lambda _: IssuedCertificate(b"no certificate", (), now),
    ]
    asked: list[str] = []  # by which wave; the device may ask again before the next wave does

    def issue(body: bytes) -> IssueAnswer:
        request = decode(RenewalRequest, decode(Envelope, body).payload)
        asked.append(stage.hub.wave)
        answer = forge.get(stage.hub.wave)
        return IssueAnswer(answer(request) if answer else leaf(fleet_ca, DEVICE, key_of(request)))

    serial = _certificate(stage.victim)
    stage.hub.issue = issue
    forge = {f"rotating-{number}": answer for number, answer in enumerate(wrong)}
    for wave in forge:  # each wants a younger certificate, at once
        stage.hub.wave = wave
        stage.hub.order(WaveState.PLANNED, planned_at=now)
        await stage.hub.until(partial(_is_refused, stage.victim, asked, wave))
        assert _certificate(stage.victim) == serial
    await stage.hub.until(lambda: ("certificate", "signature") in stage.hub.told())
    stage.hub.wave = WAVE
    stage.hub.order(planned_at=now)
    await stage.hub.until(lambda: _certificate(stage.victim) != serial)
    await stage.updates()
    last: DeviceStatus = stage.hub.statuses[-1]
    assert last.certificate_issued_at is not None
    assert last.certificate_issued_at > now - timedelta(minutes=10)
    assert last.wave_id == WAVE


def _is_refused(victim: Victim, asked: list[str], wave: str) -> bool:
    """Whether the wave's wrong answer was given, and every answer so far refused."""
    refused = [line for line in victim.log() if f"refused certificate/{DEVICE.path}: signature" in line]
    return wave in asked and len(refused) == len(asked)


def _certificate(victim: Victim) -> str:
    """The name of the pair in use, empty for the one that the device was made with."""
    current = victim.path / "identity" / CURRENT_FILE
    return current.read_text() if current.exists() else ""
