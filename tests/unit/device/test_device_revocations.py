"""What a device makes of revocations: whom it believes no more."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest

from device.bootenv import Boot, ResetReason, SlotName
from device.health import HealthClient, PingEnd
from device.platform import BootRecord
from tests.device_directory import HUB
from tests.device_kit import WAVE
from wavemesh.codec.statements import decode, encode
from wavemesh.identity.authorities import Authorities
from wavemesh.runtime.clock import SystemClock
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.envelope import sign_statement
from wavemesh.trust.statements import (
    Envelope,
    Revocation,
    RevocationList,
    RevocationReach,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys

from tests.unit.device.test_device_sink import FACTS, Kit


def revoke(kit: Kit, epoch: int, *paths: str) -> None:
    entries = (Revocation(path, RevocationReach.NODE, datetime.now(UTC), "stolen") for path in paths)
    kit.hub._serve_signed("revocations", "fleet", RevocationList(epoch, tuple(entries), datetime.now(UTC)))


@pytest.fixture
def cautious(tmp_path: Path, trust_keys: TrustKeys, credentials: CredentialsFactory) -> Iterator[Kit]:
    """A kit whose device is alone in what it was told of revocations."""
    kit = Kit(tmp_path, trust_keys, credentials)
    forget_revocations(kit)
    yield kit
    kit.close()


def forget_revocations(kit: Kit) -> None:
    """As a new process of the device would: what is on disk remains."""
    kit.me = replace(kit.me, authorities=Authorities(kit.me.authorities.certificates))
    kit.open()


async def test_a_revoked_hubs_lease_is_not_believed(cautious: Kit) -> None:
    """Neither one that was held before, nor a new one, nor after a restart; what control signed stands."""
    kit = cautious
    kit.hub.order()
    kit.hub.grant(1)
    assert not await kit.deliver()
    assert kit.sink.grant(WAVE) is not None
    revoke(kit, 1, HUB.path)
    assert not await kit.deliver("revocations")
    assert kit.sink.grant(WAVE) is None
    assert kit.sink.orders()
    kit.hub.grant(2)
    assert await kit.deliver("lease") == {"lease": "signature"}
    forget_revocations(kit)
    assert kit.sink.grant(WAVE) is None
    assert kit.sink.orders()


async def test_an_operator_who_was_revoked_rolls_nothing_back(cautious: Kit) -> None:
    kit = cautious
    revoke(kit, 1, "operator/alice")
    kit.hub.roll_back("because")
    assert await kit.deliver() == {"intent": "signature"}


async def test_revocations_never_go_back(cautious: Kit) -> None:
    """Not to an older list, not to none: a hub that was revoked would try just that."""
    kit = cautious
    revoke(kit, 2, HUB.path)
    assert not await kit.deliver()
    revoke(kit, 1)
    assert await kit.deliver("revocations") == {"revocations": "replay"}
    key = ResourceKey("revocations", "fleet")
    await kit.sink.apply([], [key])
    for _ in range(2):
        assert kit.me.authorities.revocations is not None
        assert kit.me.authorities.revocations.epoch == 2
        assert key in {one.key for one in kit.sink.held()}
        forget_revocations(kit)


async def test_revocations_that_control_did_not_sign_are_refused(cautious: Kit) -> None:
    kit = cautious
    forged = sign_statement(RevocationList(1, (), datetime.now(UTC)), [kit.keys.online])
    kit.hub.serve("revocations", "fleet", encode(forged))
    assert await kit.deliver() == {"revocations": "signature"}
    assert kit.me.authorities.revocations is None


@pytest.mark.parametrize("answer", ["hub", "down", "control"])
async def test_a_revoked_hub_proves_no_health_and_excuses_no_failure(cautious: Kit, answer: str) -> None:
    """It may still be dialled, as TLS shows a child no certificate; then it carries control's word, and has none."""
    kit = cautious

    class Link:
        is_connected = True

        async def ask(self, kind: str, body: bytes, timeout_s: float) -> bytes:
            del kind, timeout_s
            digest = hashlib.sha256(decode(Envelope, body).payload).hexdigest()
            return encode(kit.hub._answer_ping(digest, answer))

    record = BootRecord("b" * 32, Boot(SlotName.B, 1), ResetReason.REBOOT)
    ends = []
    for paths in ((), (HUB.path,)):
        revoke(kit, len(paths) + 1, *paths)
        assert not await kit.deliver()
        client = HealthClient(
            upstream=cast("Any", Link()),
            store=kit.store,
            sink=kit.sink,
            credentials=kit.me,
            hub=HUB,
            clock=SystemClock(),
            timeout_s=1.0,
        )
        ends.append((await client.ping(WAVE, "either", record, FACTS)).end)
    genuine = PingEnd.AUTHORITY_DOWN if answer == "down" else PingEnd.ACKNOWLEDGED
    assert ends == [genuine, genuine if answer == "control" else PingEnd.NOTHING]
