"""The health authority judges quotes: fresh ones by what they show, and nobody leaves one out (D2, D4, D11)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import FLEET
from tests.tpm_kit import ZEROS, software_tpm
from wavemesh.identity.attestation import ping_nonce
from wavemesh.identity.nodes import NodeId
from wavemesh.trust.attesting import Attestor
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.quotes import Quote
from wavemesh.trust.statements import HealthPing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.conftest import CredentialsFactory
    from tests.tpm_kit import SoftwareTpm
    from wavemesh.identity.ca import FleetCa
    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.identity.tpmkeys import TpmKeys
    from wavemesh.trust.attesting import Judged
    from wavemesh.trust.releases import ReleaseManifest

DEVICE = NodeId(FLEET, "region/midwest/store/store-208/device/pos-01")
FIRMWARE = "f" * 64


@dataclasses.dataclass(slots=True)
class Attested:
    """A device with a TPM, and the authority it pings."""

    tpm: SoftwareTpm
    keys: TpmKeys
    credentials: NodeCredentials
    authority: Attestor = dataclasses.field(default_factory=Attestor)
    releases: Iterable[ReleaseManifest] = ()
    challenge: bytes = b""
    counter: int = 0

    def ping(self, **changes: Any) -> HealthPing:
        self.counter += 1
        ping = HealthPing("142", DEVICE.path, "b" * 32, "B", FIRMWARE, self.counter, "control")
        return dataclasses.replace(ping, **changes)

    def quoted(self, ping: HealthPing, pcrs: tuple[int, ...] = (0, 7)) -> HealthPing:
        return dataclasses.replace(ping, quote=self.keys.quote(ping_nonce(ping, self.challenge), pcrs))

    def judge(self, ping: HealthPing) -> Judged:
        judged = self.authority.judge(sign_as_node(ping, self.credentials), ping, self.releases)
        if judged.answer is not None:
            self.challenge = judged.answer.challenge
        return judged

    def refusal(self, ping: HealthPing) -> str:
        judged = self.judge(ping)
        assert not judged.passes
        assert judged.answer is not None
        return judged.answer.refused


@pytest.fixture
def attested(fleet_ca: FleetCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attested]:
    with software_tpm() as tpm:
        identity = tmp_path_factory.mktemp("identity")
        yield Attested(tpm, tpm.keys(identity), tpm.enrol(identity, fleet_ca, DEVICE))


def test_a_device_without_a_tpm_has_nothing_to_show(credentials: CredentialsFactory) -> None:
    ping = HealthPing("142", DEVICE.path, "b" * 32, "B", FIRMWARE, 1, "control")
    judged = Attestor().judge(sign_as_node(ping, credentials(DEVICE.path)), ping, ())
    assert (judged.passes, judged.answer) == (True, None)


def test_the_first_quote_is_answered_by_a_challenge_and_the_next_passes(attested: Attested) -> None:
    first = attested.judge(attested.quoted(attested.ping()))
    assert first.answer is not None
    assert (first.passes, first.answer.refused) == (False, "")
    second = attested.judge(attested.quoted(attested.ping()))
    third = attested.judge(attested.quoted(attested.ping()))
    assert (second.passes, third.passes) == (True, True)
    assert len({one.answer.challenge for one in (first, second, third) if one.answer is not None}) == 3


def test_nobody_leaves_the_quote_out(attested: Attested) -> None:
    """The certificate says that there is a TPM; an image that would rather not be asked cannot say otherwise."""
    assert "sent no quote" in attested.refusal(attested.ping())


def test_an_old_quote_acknowledges_nothing(attested: Attested) -> None:
    """Replayed, made ahead for a guess, or made for another ping: no ack and no refusal, only the next challenge."""
    attested.judge(attested.quoted(attested.ping()))
    good = attested.quoted(attested.ping())
    assert attested.judge(good).passes
    assert attested.refusal(good) == ""
    elsewhere = dataclasses.replace(attested.quoted(attested.ping()), slot="A")
    assert attested.refusal(elsewhere) == ""
    fresh = attested.quoted(attested.ping())
    attested.authority = Attestor()
    assert attested.refusal(fresh) == ""
    assert attested.judge(attested.quoted(attested.ping())).passes


def test_what_was_booted_decides(attested: Attested) -> None:
    attested.judge(attested.quoted(attested.ping()))
    assert attested.judge(attested.quoted(attested.ping())).passes
    attested.tpm.extend(7)
    assert attested.refusal(attested.quoted(attested.ping())).startswith("PCR 7 is ")
    assert attested.refusal(attested.quoted(attested.ping(), (0,))).startswith("PCR 7 is not quoted")
    lied = attested.quoted(attested.ping())
    assert lied.quote is not None
    lied = dataclasses.replace(lied, quote=dataclasses.replace(lied.quote, pcrs={0: ZEROS, 7: ZEROS}))
    assert "not those that the TPM signed" in attested.refusal(lied)
    garbage = dataclasses.replace(attested.ping(), quote=Quote(b"q", b"s", {0: ZEROS}))
    assert "did not sign" in attested.refusal(garbage)


def test_a_release_says_what_its_pcrs_are(attested: Attested, make_manifest: Callable[..., ReleaseManifest]) -> None:
    """Where its manifest lists some, they replace what was bound on the day of joining; other PCRs stay bound."""
    attested.tpm.extend(4, "cd" * 32)
    value = attested.keys.quote(b"n", (4,)).pcrs[4]
    release = make_manifest("firmware-v2", attestation=((4, value),))
    other = make_manifest("firmware-v3", attestation=((4, ZEROS),))
    attested.releases = (release, other)
    first, second = (one.firmware.digest.sha256 for one in (release, other) if one.firmware is not None)
    attested.judge(attested.quoted(attested.ping()))
    assert attested.judge(attested.quoted(attested.ping(firmware_sha256=first), (0, 4, 7))).passes
    assert attested.refusal(attested.quoted(attested.ping(firmware_sha256=first))).startswith("PCR 4 is not quoted")
    assert attested.refusal(attested.quoted(attested.ping(firmware_sha256=second), (0, 4, 7))).startswith("PCR 4 is ")
    attested.tpm.extend(0)
    assert attested.refusal(attested.quoted(attested.ping(firmware_sha256=first), (0, 4, 7))).startswith("PCR 0 is ")
