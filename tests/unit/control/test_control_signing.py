"""Which of control's keys speaks, and what happens while none can."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from securesystemslib.signer import CryptoSigner

from control.app import _tick_forever
from control.signing import Signing
from wavemesh.errors import ConflictError
from wavemesh.trust.keys import KeyFileError
from wavemesh.trust.repository import role_keys
from wavemesh.trust.tokens import KeyTokenError

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.trust.metadata import RoleKeys

URI = "spiffe://test.example/control/cloud-1"


def trusting(keys: RoleKeys) -> Any:
    return SimpleNamespace(role_keys={"control": keys}.__getitem__)


def test_the_next_key_speaks_as_soon_as_it_may(tmp_path: Path) -> None:
    """Both may for a while: a rotation in two steps, under a running wave."""
    old, new = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
    files = {"control": old, "control-next": new, "online": CryptoSigner.generate_ed25519()}
    for name, signer in files.items():
        (tmp_path / f"{name}.pem").write_bytes(signer.private_bytes)
    signing = Signing.load(tmp_path, URI)
    assert signing.control.public_key == old.public_key
    for signers, expected in (([old], old), ([old, new], new), ([new], new)):
        assert signing.choose(trusting(role_keys(signers, 1))).public_key == expected.public_key
    for keys in (role_keys([CryptoSigner.generate_ed25519()], 1), role_keys([old, new], 2)):
        with pytest.raises(ConflictError, match=r"control-next\.pem"):
            signing.choose(trusting(keys))


def test_a_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"has no key control\.pem"):
        Signing.load(tmp_path, URI)


async def test_a_token_that_is_away_does_not_end_control() -> None:
    """The next tick tries again; any other fault still ends it."""
    said = iter([KeyTokenError("the token is away"), None, RuntimeError("broken")])
    ticks: list[str] = []

    async def tick() -> None:
        outcome = next(said)
        ticks.append(type(outcome).__name__)
        if outcome is not None:
            raise outcome

    control: Any = SimpleNamespace(tick=tick)
    with pytest.raises(RuntimeError, match="broken"):
        async with asyncio.timeout(30):
            await _tick_forever(control, 0)
    assert ticks == ["KeyTokenError", "NoneType", "RuntimeError"]
