"""What is committed but generated is what would be generated now."""

from __future__ import annotations

from tools import reference, stubs


def test_the_stubs_are_what_protoc_makes_of_the_contract() -> None:
    assert stubs.differences() == [], "run `make proto`"


def test_the_reference_pages_are_what_the_code_says() -> None:
    assert reference.differences() == [], "run `make reference`"
