"""Every crash point of a scenario, and after each the crash points of the recovery.

Knows no component. A *tale* runs one from a standing to its rest and shows a watcher each durable step. Around a step
the power may go

    before     nothing of it was done, and what is not durable is lost
    after      the same, once it was done
    kept       once it was done; everything reached the medium, flushed or not
    torn-N     once it was done; of what is not durable any part reached the medium, drawn by the seed and the point

Points that leave the same (durable state, hub) are one and the same from there on: each such *state* is judged and
recovered once, and all its points share the verdict. The recovery from each state is watched in its turn, which gives
the double cuts. A point is named ``SCENARIO/STEP.VARIANT``, a double cut ``SCENARIO/STEP.VARIANT/STEP.VARIANT``; the
first point that reached a state is the one that a replay starts from.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)
Persists: TypeAlias = "Callable[[], bool]"
BEFORE, AFTER, KEPT, TORN = "before", "after", "kept", "torn"
SHOWN_FAILURES = 20


class Tale(Protocol[S]):
    """One scenario of a component."""

    @property
    def name(self) -> str:
        """As in a point's name."""
        ...

    @property
    def log(self) -> list[str]:
        """What the last telling logged."""
        ...

    def begin(self) -> S:
        """The standing it begins with."""
        ...

    def tell(self, standing: S, look: Look[S] | None) -> list[str]:
        """Run from there to rest; what is wrong then."""
        ...

    def judge(self, standing: S) -> list[str]:
        """What is wrong with what a cut left, before anything recovers it."""
        ...

    def key(self, standing: S) -> str:
        """The same for two standings from which the same follows."""
        ...


class Look(Protocol[S_contra]):
    """What a tale calls around each durable step."""

    def __call__(self, step: str, when: str, cut: Callable[[Persists], S_contra], *, is_pending: bool) -> None:
        """``when``: BEFORE or AFTER. ``cut`` gives what a power cut would leave now; it depends on what persists only
        where something ``is_pending``.
        """
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """``torn``: torn media a step, of which one in ``torn_of`` is looked at; double cuts are made at one in
    ``double_of`` steps of a recovery, 0 for none; single ones at one in ``single_of``.
    """

    seed: int = 1
    torn: int = 3
    double_of: int = 1
    torn_of: int = 1
    single_of: int = 1
    ends_at_first_failure: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A point that did not survive."""

    point: str
    problems: tuple[str, ...]


@dataclass(slots=True)
class Result:
    """Figures of one scenario; ``states`` were recovered, all points among them are counted."""

    scenario: str
    steps: int = 0
    points: int = 0
    survived: int = 0
    torn: int = 0
    double: int = 0
    states: int = 0
    failures: list[Failure] = field(default_factory=list)

    def failed(self, point: str, problems: tuple[str, ...]) -> None:
        """Remember the first ones."""
        if len(self.failures) < SHOWN_FAILURES:
            self.failures.append(Failure(point, problems))


@dataclass(slots=True)
class _State(Generic[S]):
    """A standing, the first point that led there, and how often."""

    point: str
    standing: S
    kinds: Counter[str] = field(default_factory=Counter)


class _Collector(Generic[S]):
    """Takes the standings of the points of one run into ``states``, each state once; ``one_of`` samples the steps."""

    def __init__(self, tale: Tale[S], prefix: str, options: Options, states: dict[str, _State[S]], one_of: int) -> None:
        self.steps = 0
        self._tale = tale
        self._prefix = prefix
        self._options = options
        self._states = states
        self._one_of = one_of

    def look(self, step: str, when: str, cut: Callable[[Persists], S], *, is_pending: bool) -> None:
        """Of ``Look``."""
        self.steps += when == BEFORE
        place = f"{self._prefix}/{self.steps}"
        if not _is_drawn(self._options, place, self._one_of):
            return
        for variant, persists in _variants(self._options, place, when, is_pending=is_pending):
            standing = cut(persists)
            state = self._states.setdefault(self._tale.key(standing), _State(f"{place}.{variant}", standing))
            state.kinds[when if variant == when else TORN] += 1


def _variants(options: Options, place: str, when: str, *, is_pending: bool) -> Iterator[tuple[str, Persists]]:
    yield when, lambda: False
    if when == AFTER and is_pending:
        yield KEPT, lambda: True
        for number in range(options.torn):
            if _is_drawn(options, f"{place}/{number}", options.torn_of):
                yield f"{TORN}-{number}", _drawn(f"{options.seed}/{place}/{TORN}-{number}")


def _is_drawn(options: Options, place: str, one_of: int) -> bool:
    return one_of == 1 or Random(f"{options.seed}/{place}").randrange(one_of) == 0


def _drawn(seed: str) -> Callable[[], bool]:
    rng = Random(seed)
    return lambda: rng.random() < 0.5


def explore(tale: Tale[S], options: Options, told: Callable[[str], None] = lambda _: None) -> Result:
    """The whole campaign of one scenario."""
    result = Result(tale.name)
    singles: dict[str, _State[S]] = {}
    doubles: dict[str, _State[S]] = {}
    first = _Collector(tale, tale.name, options, singles, options.single_of)
    problems = _verdict(tale, tale.begin(), first)
    result.steps = first.steps
    if problems:
        result.points += 1
        result.failed(tale.name, problems)
    if options.ends_at_first_failure:
        for state in singles.values():
            # Most faults show in what is left; to look costs nothing beside a recovery.
            if found := tuple(tale.judge(state.standing)):
                _count(result, state, found)
                return result
    verdicts: dict[str, tuple[str, ...]] = {}
    for number, (key, state) in enumerate(singles.items(), 1):
        again = _Collector(tale, state.point, options, doubles, options.double_of) if options.double_of else None
        verdicts[key] = _verdict(tale, state.standing, again)
        _count(result, state, verdicts[key])
        if result.failures and options.ends_at_first_failure:
            return result
        told(f"{tale.name}: single cuts, {number} of {len(singles)} states")
    for number, (key, state) in enumerate(doubles.items(), 1):
        if key not in verdicts:
            verdicts[key] = _verdict(tale, state.standing, None)
        result.double += sum(state.kinds.values())
        _count(result, state, verdicts[key])
        told(f"{tale.name}: double cuts, {number} of {len(doubles)} states")
    result.states = len(verdicts)
    return result


def _verdict(tale: Tale[S], standing: S, watched: _Collector[S] | None) -> tuple[str, ...]:
    problems = tale.judge(standing)
    try:
        problems += tale.tell(standing, watched.look if watched is not None else None)
    except AssertionError as error:
        problems.append(f"{type(error).__name__}: {error}")
    return tuple(problems)


def _count(result: Result, state: _State[S], problems: tuple[str, ...]) -> None:
    points = sum(state.kinds.values())
    result.points += points
    result.torn += state.kinds[TORN]
    if problems:
        result.failed(state.point, problems)
    else:
        result.survived += points


def replay(tale: Tale[S], point: str, options: Options) -> tuple[list[str], S]:
    """What is wrong at one point, and the standing that its last cut left; raises LookupError for no point."""
    name, *cuts = point.split("/")
    standing, place = tale.begin(), name
    for cut in cuts:
        finder = _Finder[S](place, cut, options)
        with suppress(AssertionError):  # how it ends without the cut is another point's matter
            tale.tell(standing, finder.look)
        if finder.found is None:
            msg = f"{place} has no point {cut}"
            raise LookupError(msg)
        standing, place = finder.found, f"{place}/{cut}"
    return list(_verdict(tale, standing, None)), standing


class _Finder(Generic[S]):
    """Takes the standing of one point."""

    def __init__(self, prefix: str, cut: str, options: Options) -> None:
        number, self._variant = cut.split(".")
        self._number = int(number)
        self._prefix = prefix
        self._options = options
        self._steps = 0
        self.found: S | None = None

    def look(self, step: str, when: str, cut: Callable[[Persists], S], *, is_pending: bool) -> None:
        """Of ``Look``."""
        self._steps += when == BEFORE
        if self._steps == self._number:
            for variant, persists in _variants(
                self._options, f"{self._prefix}/{self._steps}", when, is_pending=is_pending
            ):
                if variant == self._variant:
                    self.found = cut(persists)
