"""Tokens: carried as text, read as they were made, refused when they are not whole."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from wavemesh.identity.nodes import NodeId
from wavemesh.identity.tokens import MAX_TOKEN_CHARACTERS, BadTokenError, Token, parse_token

DEVICE = NodeId("test.example", "region/midwest/store/store-208/device/pos-01")
TOKEN = Token(DEVICE, bytes(range(32)), b"root", "a" * 64, ("hub.example:7444", "[::1]:7444"))


def test_what_is_carried_is_read_again() -> None:
    assert parse_token(f"  {TOKEN.text()}\n") == TOKEN
    assert TOKEN.parent == NodeId("test.example", "region/midwest/store/store-208")
    assert str(bytes(range(32))) not in repr(TOKEN)


def test_every_cut_and_every_changed_character_is_noticed_or_harmless() -> None:
    """A token that is cut off is never another token."""
    text = TOKEN.text()
    for end in range(len(text)):
        with pytest.raises(BadTokenError):
            parse_token(text[:end])


@pytest.mark.parametrize("text", ["", "token", "wm1.", "wm1.!!!!", "wm2." + TOKEN.text()[4:], "wm1.W10", "wm1.e30"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(BadTokenError):
        parse_token(text)


def test_length_is_bounded() -> None:
    with pytest.raises(BadTokenError, match="at most"):
        parse_token(TOKEN.text() + "A" * MAX_TOKEN_CHARACTERS)


@pytest.mark.parametrize(
    "changes",
    [
        {"node": NodeId("test.example", "operator/alice")},
        {"node": NodeId("test.example", "region/midwest")},
        {"secret": b"short"},
        {"trust_root_sha256": "A" * 64},
        {"addresses": ("no port",)},
        {"addresses": ("h:1",) * 9},
    ],
)
def test_what_cannot_join_has_no_token(changes: dict[str, Any]) -> None:
    with pytest.raises(BadTokenError):
        dataclasses.replace(TOKEN, **changes)
