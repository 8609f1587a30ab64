"""Versions and constraints on them: Semantic Versioning 2.0.0 (https://semver.org), ordering per its section 11.

A version has all three numbers ("3.8.2"). A constraint is up to eight comparators that must all hold,
">=12.0.0 <13"; there numbers left out are 0. A pre-release satisfies a constraint only where a comparator names a
pre-release of the same three numbers: "<13" does not admit 13.0.0-rc.1. The empty constraint admits everything.
"""

from __future__ import annotations

import functools
import operator
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wavemesh.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTH_MOST = 128
COMPARATORS_MOST = 8

_NUMBER = r"(0|[1-9][0-9]{0,17})"
_TAIL = r"(?:-([0-9A-Za-z.-]+))?(?:\+([0-9A-Za-z.-]+))?"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}{_TAIL}")
_OPERAND = re.compile(rf"{_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER}{_TAIL})?)?")
_COMPARATOR = re.compile(r"(>=|<=|>|<|=)?(.+)")
_OPERATORS: dict[str, Callable[[Version, Version], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "=": operator.eq,
}


class BadVersionError(PeerError):
    """A text is no version or no constraint."""

    reason = "BAD_VERSION"


@functools.total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """One version. Build metadata is kept and takes no part in comparison."""

    major: int
    minor: int
    patch: int
    pre_release: tuple[int | str, ...] = ()
    build: str = field(default="", compare=False)

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def parse(cls, text: str) -> Version:
        """Read "3.8.2", "3.9.0-rc.1", "3.8.2+42"; raises BadVersionError."""
        match = _VERSION.fullmatch(text) if len(text) <= LENGTH_MOST else None
        if match is None:
            raise BadVersionError(
                f"version {text[:LENGTH_MOST]!r}: use three numbers without leading zeros, as in 3.8.2"
            )
        return _from_match(match, text)

    @property
    def is_pre_release(self) -> bool:
        """Whether it comes before its own release."""
        return bool(self.pre_release)

    def __str__(self) -> str:
        """The version as written, in full."""
        tail = "-" + ".".join(map(str, self.pre_release)) if self.pre_release else ""
        return f"{self.major}.{self.minor}.{self.patch}{tail}" + (f"+{self.build}" if self.build else "")

    def __lt__(self, other: Version) -> bool:
        """Precedence per SemVer section 11."""
        return self._precedence() < other._precedence()

    def _precedence(self) -> tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]:
        # Numbers come before words, fewer identifiers before more, and a pre-release before its release.
        identifiers = tuple(
            (isinstance(part, str), part if isinstance(part, int) else 0, part if isinstance(part, str) else "")
            for part in self.pre_release
        )
        return (self.major, self.minor, self.patch, not self.pre_release, identifiers)


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a version must satisfy; all comparators must hold."""

    comparators: tuple[tuple[str, Version], ...]

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read ">=12.0.0 <13"; raises BadVersionError."""
        words = text.split()
        if len(words) > COMPARATORS_MOST:
            raise BadVersionError(f"constraint {text[:LENGTH_MOST]!r} has more than {COMPARATORS_MOST} comparators")
        return cls(tuple(_comparator(word, text) for word in words))

    def allows(self, version: Version) -> bool:
        """Whether the version satisfies it."""
        if version.is_pre_release and self.comparators and not self._names_pre_release_of(version):
            return False
        return all(_OPERATORS[sign](version, bound) for sign, bound in self.comparators)

    def __str__(self) -> str:
        """The constraint with every number written out."""
        return " ".join(f"{sign}{bound}" for sign, bound in self.comparators)

    def _names_pre_release_of(self, version: Version) -> bool:
        return any(
            bound.is_pre_release
            and (bound.major, bound.minor, bound.patch) == (version.major, version.minor, version.patch)
            for _, bound in self.comparators
        )


def _comparator(word: str, whole: str) -> tuple[str, Version]:
    match = _COMPARATOR.fullmatch(word)
    operand = _OPERAND.fullmatch(match[2]) if match is not None and len(word) <= LENGTH_MOST else None
    if match is None or operand is None:
        raise BadVersionError(
            f"constraint {whole[:LENGTH_MOST]!r}: {word[:LENGTH_MOST]!r} is no comparator; use >=, >, <=, < or = and a "
            "version, separated by spaces, as in '>=12.0.0 <13'"
        )
    return (match[1] or "=", _from_match(operand, match[2]))


def _from_match(match: re.Match[str], text: str) -> Version:
    identifiers: list[int | str] = []
    for part in match[4].split(".") if match[4] else ():
        if not part or (part.isdigit() and len(part) > 1 and part.startswith("0")):
            raise BadVersionError(f"version {text!r}: pre-release part {part!r} is empty or has a leading zero")
        identifiers.append(int(part) if part.isdigit() else part)
    if match[5] and not all(match[5].split(".")):
        raise BadVersionError(f"version {text!r}: a part of the build metadata is empty")
    return Version(int(match[1]), int(match[2] or 0), int(match[3] or 0), tuple(identifiers), match[5] or "")
