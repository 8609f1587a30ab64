"""Semantic versions and constraints (D8)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavemesh.policy.versions import COMPARATORS_MOST, LENGTH_MOST, BadVersionError, Constraint, Version

NUMBERS = st.integers(0, 30)
IDENTIFIERS = st.one_of(st.integers(0, 20).map(str), st.from_regex(r"[a-z-][a-z0-9-]{0,3}", fullmatch=True))
PRE_RELEASES = st.lists(IDENTIFIERS, max_size=3).map(lambda parts: "-" + ".".join(parts) if parts else "")
TEXTS = st.tuples(NUMBERS, NUMBERS, NUMBERS, PRE_RELEASES).map(lambda t: f"{t[0]}.{t[1]}.{t[2]}{t[3]}")
VERSIONS = TEXTS.map(Version.parse)


def test_precedence_of_the_specification() -> None:
    """SemVer 2.0.0, section 11."""
    tails = ("-alpha", "-alpha.1", "-alpha.beta", "-beta", "-beta.2", "-beta.11", "-rc.1", "")
    versions = [Version.parse(text) for text in [f"1.0.0{tail}" for tail in tails] + ["2.0.0", "2.1.0", "2.1.1"]]
    assert all(lower < higher for lower, higher in itertools.pairwise(versions))
    assert len(set(versions)) == len(versions)


def test_build_metadata_is_kept_and_not_compared() -> None:
    assert Version.parse("3.8.2+42") == Version.parse("3.8.2+43")
    assert str(Version.parse("3.8.2-rc.1+42.a")) == "3.8.2-rc.1+42.a"


@given(TEXTS)
def test_a_version_reads_back(text: str) -> None:
    assert str(Version.parse(text)) == text


@given(VERSIONS, VERSIONS, VERSIONS)
def test_the_order_is_total(a: Version, b: Version, c: Version) -> None:
    assert (a < b) + (a == b) + (a > b) == 1
    if a <= b <= c:
        assert a <= c


@pytest.mark.parametrize(
    "text",
    ["", "3", "3.8", "v3.8.2", "3.8.2.1", "03.8.2", "3.8.2-", "3.8.2-01", "3.8.2-a..b", "3.8.2+", "3.8.2+a..b",
     " 3.8.2", "3.8.2\n", "3.8.\u0662", "1.0." + "9" * 19, "1.0.0-" + "a" * 130],
)  # fmt: skip
def test_other_texts_are_no_version(text: str) -> None:
    with pytest.raises(BadVersionError):
        Version.parse(text)


def test_the_longest_that_are_read() -> None:
    longest = "1.0.0-" + "a" * (LENGTH_MOST - 6)
    assert str(Version.parse(longest)) == longest
    word = "=1.0.0-" + "a" * (LENGTH_MOST - 7)
    assert str(Constraint.parse(word)) == word
    most = " ".join(["<1.0.0"] * COMPARATORS_MOST)
    assert str(Constraint.parse(most)) == most
    for too_long in (f"{word}a", f"{most} <1.0.0"):
        with pytest.raises(BadVersionError):
            Constraint.parse(too_long)


@pytest.mark.parametrize(
    ("constraint", "version", "allowed"),
    [
        (">=12.0.0 <13", "12.0.0", True),
        (">=12.0.0 <13", "12.99.1", True),
        (">=12.0.0 <13", "13.0.0", False),
        (">=12.0.0 <13", "11.9.9", False),
        (">=12.0.0 <13", "13.0.0-rc.1", False),
        (">=12.0.0 <13", "12.5.0-rc.1", False),
        (">=12.5.0-rc.1 <13", "12.5.0-rc.2", True),
        (">=12.5.0-rc.1 <13", "12.6.0-rc.2", False),
        ("=3.8", "3.8.0", True),
        ("3.8.2", "3.8.2", True),
        ("3.8.2", "3.8.3", False),
        (">3.8.2", "3.8.2", False),
        ("<=3.8.2", "3.8.2", True),
        ("", "3.8.2-rc.1", True),
    ],
)
def test_constraints(constraint: str, version: str, *, allowed: bool) -> None:
    assert Constraint.parse(constraint).allows(Version.parse(version)) is allowed


@given(VERSIONS, VERSIONS)
def test_comparators_split_the_versions(bound: Version, version: Version) -> None:
    allowed = {sign: Constraint.parse(f"{sign}{bound}").allows(version) for sign in (">=", ">", "<=", "<", "=")}
    if not version.is_pre_release:
        assert allowed[">="] is (version >= bound)
        assert allowed["<"] is (version < bound)
        assert allowed["="] is (version == bound)
        assert allowed[">"] is not allowed["<="]
    assert allowed["="] <= allowed[">="]
    assert str(Constraint.parse(f">={bound}")) == f">={bound}"


@pytest.mark.parametrize(
    "text", [">=", ">= 12", "~1.2", "^1", "1.x", "=>1", ">=1.02", "<1.2.3.4", ">=1,<2", " ".join(["<1"] * 9)]
)
def test_other_texts_are_no_constraint(text: str) -> None:
    with pytest.raises(BadVersionError, match="constraint"):
        Constraint.parse(text)
