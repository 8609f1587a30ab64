"""A device whose key is in a TPM, against real control, super hub and store hub (D11, D2, D4).

It joins, dials, renews and pings with a key that nobody has; what is without that TPM is nobody.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.enrolment_kit import DEVICE, STORE, Mesh, Running, dialling, until
from tests.superhub_kit import python
from tests.tpm_kit import ZEROS, software_tpm
from wavemesh.artifacts.transfer import ArtifactClient
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import LinkDownError, PeerError
from wavemesh.identity.attestation import ping_nonce
from wavemesh.identity.binding import binding_of
from wavemesh.identity.csr import make_request
from wavemesh.identity.join import Joining
from wavemesh.identity.keys import CredentialsError, SoftwareKeys
from wavemesh.identity.live import BadIssueError, LiveCredentials
from wavemesh.identity.tpm import Tpm, TpmError
from wavemesh.identity.tpmkeys import TpmKeys
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.durable import Disk
from wavemesh.runtime.grpc import make_bulk_channel
from wavemesh.trust.enrolments import IssueAnswer, RenewalRequest
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.statements import HealthAck, HealthPing, HealthPingAnswer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from tests.conftest import TrustKeys
    from tests.enrolment_kit import Node
    from tests.tpm_kit import SoftwareTpm
    from wavemesh.trust.enrolments import TpmEvidence
    from wavemesh.trust.statements import Digest


@pytest.fixture
def tpm() -> Iterator[SoftwareTpm]:
    with software_tpm() as one:
        yield one


@pytest.fixture
async def running(tmp_path: Path, trust_keys: TrustKeys) -> AsyncIterator[Running]:
    async with Mesh.create(tmp_path, trust_keys).running() as one:
        yield one


def keys_in_files(directory: Path) -> list[str]:
    """Every file below that holds a private key that anybody could use."""
    files = [one for one in directory.rglob("*") if one.is_file()]
    return [str(one) for one in files if b"PRIVATE KEY" in one.read_bytes()]


def reason(error: PeerError) -> str:
    return error.details.get("reason", error.reason)


# -- joining, dialling, renewing ------------------------------------------------------------------------------------


async def test_joins_as_a_program_and_dials_with_a_key_that_nobody_has(running: Running, tpm: SoftwareTpm) -> None:
    """The certificate binds the attestation key and the chosen PCRs; the configuration says where the TPM is."""
    directory = running.mesh.directory / "device"
    file = running.mesh.directory / "token"
    file.write_text((await running.token()).text())
    arguments = ["--dir", str(directory), "--token-file", str(file), "--tcti", tpm.tcti, "--pcr", "7", "--pcr", "2"]
    process = await python("wavemesh.identity.join", *arguments)
    out, _ = await process.communicate()
    assert process.returncode == 0, out
    assert f'[identity]\nkey = "tpm"\ntcti = "{tpm.tcti}"' in (directory / "config.toml").read_text()
    async with dialling(directory, running.address, STORE, keys=tpm.keys(directory / "identity")) as device:
        await until(lambda: device.upstream.is_connected)
        bound = binding_of(device.live.current.certificate)
    assert bound is not None
    assert bound.attestation is not None
    assert bound.attestation.pcrs == ((2, ZEROS), (7, ZEROS))
    assert keys_in_files(directory) == []


async def test_each_renewal_is_a_new_key_in_the_same_tpm(running: Running, tpm: SoftwareTpm) -> None:
    """The session moves, the old key is gone with its file, the binding stays; nothing is left in the TPM."""
    directory = await running.device(tcti=tpm.tcti)
    async with dialling(directory, running.address, STORE, keys=tpm.keys(directory / "identity")) as device:
        await until(lambda: device.upstream.is_connected)
        before = device.live.current
        for wave in ("142", "143"):
            await device.renewal.renew(wave)
        assert device.upstream.is_connected
        after = device.live.current
    old, new = binding_of(before.certificate), binding_of(after.certificate)
    assert old is not None
    assert new is not None
    assert old.attestation == new.attestation
    assert before.certificate.public_key() != after.certificate.public_key()
    assert len(list((directory / "identity").rglob("node.key"))) == 1
    assert keys_in_files(directory) == []
    assert tpm.tool("getcap", "handles-transient") + tpm.tool("getcap", "handles-persistent") == ""


async def test_no_certificate_for_a_key_outside_of_the_tpm(running: Running, tpm: SoftwareTpm) -> None:
    """A device that is bound to a TPM renews for no key in a file, for none in another TPM, for no other request."""
    directory = await running.device(tcti=tpm.tcti)
    keys = tpm.keys(directory / "identity")
    with software_tpm() as other_tpm:
        others = other_tpm.keys(running.mesh.directory / "other")
        theirs = others.create()
        their_csr = make_request(theirs, "pos-01")
        their_evidence = others.evidence(theirs, their_csr)
    mine = keys.create()
    csr = make_request(mine, "pos-01")
    software = make_request(ec.generate_private_key(ec.SECP256R1()), "pos-01")

    async def ask(request_csr: bytes, evidence: TpmEvidence | None) -> IssueAnswer:
        request = RenewalRequest(DEVICE.path, request_csr, datetime.now(UTC), evidence=evidence)
        body = encode(sign_as_node(request, device.live))
        return decode(IssueAnswer, await device.upstream.ask("renew", body, 10.0))

    async with dialling(directory, running.address, STORE, keys=keys) as device:
        await until(lambda: device.upstream.is_connected)
        refused = [
            await ask(software, None),
            await ask(software, keys.evidence(mine, csr)),
            await ask(their_csr, their_evidence),
            await ask(csr, keys.evidence(mine, make_request(mine, "pos-01"))),
        ]
        good = await ask(csr, keys.evidence(mine, csr))
    assert [one.refused for one in refused] == ["NOT_ATTESTED"] * 4
    assert good.issued is not None


class Lying(TpmKeys):
    """Shows evidence of another key than the one it asks a certificate for."""

    def evidence(self, key: ec.EllipticCurvePrivateKey, csr: bytes) -> TpmEvidence | None:
        return super().evidence(self.create(), csr)


async def test_evidence_that_does_not_fit_joins_nobody(running: Running, tpm: SoftwareTpm) -> None:
    """Nothing is installed, and the token is as good as before."""
    token = await running.token()

    directory = running.mesh.directory / "device"
    lying = Lying(Tpm(tpm.tcti), directory / "identity", Disk())
    with pytest.raises(PeerError) as caught:
        await Joining(directory, token, tcti=tpm.tcti).run(SystemClock(), lying)
    assert reason(caught.value) == "NOT_ATTESTED"
    assert not (directory / "identity" / "current").exists()
    await running.mesh.join(directory, token, tcti=tpm.tcti)


async def test_a_hub_that_drops_the_evidence_is_found_out(running: Running, tpm: SoftwareTpm) -> None:
    """An older store hub passes on what it knows: the device installs no certificate that does not bind its TPM."""
    token = await running.token()
    authority = running.hub.parts.authority
    join = authority.join

    async def dropping(parent: Any, request: Any) -> IssueAnswer:
        return await join(parent, dataclasses.replace(request, evidence=None))

    authority.join = dropping  # type: ignore[method-assign]  # the older hub on the way
    with pytest.raises(BadIssueError, match="does not bind this node's attestation key; update the hubs"):
        await running.mesh.join(running.mesh.directory / "device", token, tcti=tpm.tcti)
    assert not (running.mesh.directory / "device" / "identity" / "current").exists()


async def test_a_hubs_key_stays_in_its_file(running: Running, tpm: SoftwareTpm) -> None:
    token = dataclasses.replace(await running.token(), node=STORE)
    with pytest.raises(CredentialsError, match="join without --tcti"):
        await running.mesh.join(running.mesh.directory / "hub", token, tcti=tpm.tcti)


# -- without the TPM, or without its hub ----------------------------------------------------------------------------


async def test_reconnects_after_the_hub_and_after_the_tpm_restarted(
    running: Running, tpm: SoftwareTpm, caplog: pytest.LogCaptureFixture
) -> None:
    """A session outlives its TPM; the next one needs it, says so, and is there as soon as the TPM is back."""
    caplog.set_level(logging.INFO)
    directory = await running.device(tcti=tpm.tcti)
    keys = tpm.keys(directory / "identity")
    async with dialling(directory, lambda: running.address, STORE, keys=keys) as device:
        await until(lambda: device.upstream.is_connected)
        tpm.stop()
        tpm.start()
        await running.store_hub.aclose()
        await running.start_store_hub()
        await until(lambda: device.upstream.is_connected)
        tpm.stop(signal.SIGKILL)
        await running.store_hub.aclose()
        await running.start_store_hub()
        await until(lambda: f"TPM {tpm.tcti}: No such file" in caplog.text)
        await until(lambda: not device.upstream.is_connected)
        with pytest.raises(TpmError, match="is it there"):
            await device.renewal.renew()
        tpm.start()
        await until(lambda: device.upstream.is_connected)
        await device.renewal.renew()
    assert keys_in_files(directory) == []


async def test_a_stolen_directory_is_nobody_elsewhere(running: Running, tpm: SoftwareTpm, tmp_path: Path) -> None:
    """Certificate and wrapped key in another machine: its TPM refuses, and no other key fits the certificate."""
    directory = await running.device(tcti=tpm.tcti)
    stolen = tmp_path / "stolen"
    shutil.copytree(directory, stolen)
    with software_tpm() as other:
        live = LiveCredentials.load(stolen / "identity", keys=other.keys(stolen / "identity"))
        with pytest.raises(LinkDownError, match="wrapped by another TPM"):
            await find_missing(live, running)
    pair = next((stolen / "identity").glob("pair-*"))
    software = SoftwareKeys()
    (pair / "node.key").write_bytes(software.keep(software.create()))
    with pytest.raises(CredentialsError, match="is not the key of"):
        LiveCredentials.load(stolen / "identity")
    mine = LiveCredentials.load(directory / "identity", keys=tpm.keys(directory / "identity"))
    assert await find_missing(mine, running) == ()


async def find_missing(live: LiveCredentials, running: Running) -> Sequence[Digest]:
    """Any call to the store hub."""
    client = ArtifactClient(lambda: make_bulk_channel(live, running.address, STORE))
    return tuple(await client.find_missing(()))


# -- what was booted ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Pinging:
    """A device that pings as the agent does, with the challenge of the last answer."""

    device: Node
    keys: TpmKeys
    challenge: bytes = b""
    counter: int = 0

    async def ping(self, authority: str) -> HealthPingAnswer:
        self.counter += 1
        said = HealthPing("142", DEVICE.path, "b" * 32, "B", "f" * 64, self.counter, authority)
        quote = self.keys.quote(ping_nonce(said, self.challenge), (0, 7))
        return await self.send(dataclasses.replace(said, quote=quote))

    async def send(self, ping: HealthPing) -> HealthPingAnswer:
        body = encode(sign_as_node(ping, self.device.live))
        answer = decode(HealthPingAnswer, await self.device.upstream.ask("health-ping", body, 10.0))
        if answer.attestation is not None:
            self.challenge = answer.attestation.challenge
        return answer


def acknowledged_by(answer: HealthPingAnswer) -> str:
    return decode(HealthAck, answer.ack.payload).authority if answer.ack is not None else ""


def refused(answer: HealthPingAnswer) -> str:
    return answer.attestation.refused if answer.attestation is not None else ""


async def test_each_authority_verifies_what_was_booted(running: Running, tpm: SoftwareTpm) -> None:
    """Control through two hubs, the hub itself, and the hub for "either" while control is dark (D4)."""
    directory = await running.device(tcti=tpm.tcti)
    keys = tpm.keys(directory / "identity")
    async with dialling(directory, running.address, STORE, keys=keys) as device:
        await until(lambda: device.upstream.is_connected)
        pinging = Pinging(device, keys)
        words = []
        for authority in ("control", "control", "hub", "hub", "either", "either"):
            answer = await pinging.ping(authority)
            words.append(acknowledged_by(answer) or refused(answer))
        tpm.extend(7)
        bad = [refused(await pinging.ping(authority)) for authority in ("control", "hub", "hub")]
        naked = HealthPing("142", DEVICE.path, "b" * 32, "B", "f" * 64, 99, "control")
        left_out = await pinging.send(naked)
    # Each authority has a challenge of its own: the first quote it is shown is never fresh.
    assert words == ["", "control", "", "hub", "", "control"]
    assert [text.startswith("PCR 7 is ") for text in bad] == [True, False, True], bad
    assert "sent no quote" in refused(left_out)
    assert left_out.ack is None
