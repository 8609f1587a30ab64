"""Runs tests against mutants: everything is imported once, and each mutant gets a forked process of its own.

A mutant in the body of a function is put in place by exchanging the code of that function, wherever it was imported to.
One at a module's own level (a table, a default) needs the module to be imported as the mutant, so its process is forked
before anything of the project is imported, and collects the tests itself.

A mutant's tests are those that run its line, the quickest first; the first that fails ends it. A process that takes too
much processor time or memory is killed, and its mutant with it: wall time would depend on what else the machine does.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import inspect
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from _pytest.runner import runtestprotocol

from tests.mutants.operators import Mutant, mutated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from types import CodeType, FrameType, ModuleType

ROOT = Path(__file__).resolve().parents[2]
WALL_MOST_S = 600.0
MEMORY_MOST_BYTES = 4 << 30
_OPTIONS = ("--assert=plain", "-p", "no:cacheprovider", "-q", "--no-header", "--no-summary", "-o", "timeout=120")
_PRELOADED = (
    "aiohttp",
    "aiosqlite",
    "alembic",
    "cryptography.x509",
    "google.protobuf.message",
    "grpc.aio",
    "hypothesis",
    "sqlalchemy.ext.asyncio",
    "tuf.api.metadata",
    "yaml",
)


class Choice(Protocol):
    """Which tests a mutant is run against."""

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Names of tests, or of files that stand for all their tests, in the order to run them in."""

    def cpu_most_s(self, test: str) -> float:
        """Processor time after which that test hangs."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was seen of the tests without a mutant: ``seconds`` of each, and who ran which line of which module."""

    seconds: Mapping[str, float]
    lines: Mapping[str, Mapping[int, Sequence[str]]]

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that run the mutant's line, quickest first.

        A table may be looked at without a line of its module being run: for a mutant at the module's own level these
        are all tests of the files that run the module.
        """
        by_line = self.lines.get(mutant.module, {})
        if mutant.in_body:
            names = set(by_line.get(mutant.line, ()))
        else:
            files = {name.partition("::")[0] for lines in by_line.values() for name in lines}
            names = {name for name in self.seconds if name.partition("::")[0] in files}
        return sorted(names, key=lambda name: (self.seconds[name], name))

    def cpu_most_s(self, test: str) -> float:
        """Processor time after which a test hangs."""
        return 3 + 4 * self.seconds[test]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant: who killed it, empty when it survived ``tests`` tests."""

    mutant: Mutant
    killed_by: str
    tests: int
    seconds: float


def source_path(module: str) -> Path:
    """Where a module's text is."""
    return ROOT / f"{module.replace('.', '/')}.py"


def preload() -> None:
    """Import what every test needs and no mutant changes, so that forked processes have it."""
    for name in _PRELOADED:
        importlib.import_module(name)


# --- coverage --------------------------------------------------------------------------------------------------------


class _Lines:
    """A tracer that notes lines of the given modules."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = {str(source_path(module)): module for module in modules}
        self.seen: set[tuple[str, int]] = set()

    def __call__(self, frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
        module = self._modules.get(frame.f_code.co_filename)
        if module is None:
            return None

        def note(frame: FrameType, event: str, _argument: object) -> Callable[..., Any]:
            if event == "line":
                self.seen.add((module, frame.f_lineno))
            return note

        self.seen.add((module, frame.f_lineno))
        return note


class _Recorder:
    """Runs all tests one after the other, and notes which lines each ran."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[int, list[str]]] = {module: {} for module in modules}
        self.failed: list[str] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for item, following in _pairs(session.items):
            tracer = _Lines(self._modules)
            began_s = time.process_time()
            sys.settrace(tracer)
            try:
                reports = runtestprotocol(item, log=False, nextitem=following)
            finally:
                sys.settrace(None)
            self.seconds[item.nodeid] = round(time.process_time() - began_s, 4)
            if any(report.failed for report in reports):
                self.failed.append(item.nodeid)
                continue
            for module, line in sorted(tracer.seen):
                self.lines[module].setdefault(line, []).append(item.nodeid)
        return True


class BaselineError(Exception):
    """Tests fail without any mutant, or a mutant cannot be put in place: no verdict would mean anything."""


def record(modules: Sequence[str], paths: Sequence[str]) -> Coverage:
    """Run the tests at those paths in a process of their own, and trace them; raises BaselineError."""

    def run(answers: Connection) -> None:
        recorder = _Recorder(modules)
        _pytest(paths, recorder)
        answers.send((recorder.seconds, recorder.lines, recorder.failed))

    process, answers = _forked(run, is_silent=False)
    try:
        seconds, lines, failed = answers.recv()
    except EOFError as error:
        raise BaselineError("the tests were not run to their end") from error
    process.join()
    for name in failed:
        sys.stderr.write(f"fails without any mutant, and is left out: {name}\n")
    return Coverage(seconds, lines)


def _pairs(items: Sequence[pytest.Item]) -> list[tuple[pytest.Item, pytest.Item | None]]:
    return list(zip(items, [*items[1:], None], strict=True))


def _pytest(paths: Sequence[str], plugin: object) -> None:
    from hypothesis import settings

    settings.register_profile("mutants", derandomize=True, database=None, deadline=None)
    settings.load_profile("mutants")
    code = pytest.main([*_OPTIONS, *paths], plugins=[plugin])
    if code not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        raise BaselineError(f"pytest ended with {code!r}")


# --- mutants ---------------------------------------------------------------------------------------------------------


class _Collected:
    """Hands the collected tests to ``use`` and runs none itself."""

    def __init__(self, use: Callable[[Sequence[pytest.Item]], None]) -> None:
        self._use = use

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._use(session.items)
        return True


class _Imported(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module as its mutant."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, fullname: str, path: object, target: object = None) -> Any:
        if fullname != self._mutant.module:
            return None
        return importlib.util.spec_from_file_location(fullname, source_path(fullname), loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(_compiled(self._mutant), module.__dict__)  # noqa: S102 (that is what a loader does)


def judge(mutants: Sequence[Mutant], choice: Choice, jobs: int) -> list[Verdict]:
    """Run each mutant's tests, ``jobs`` mutants at a time; no module of the project may be imported yet.

    Raises BaselineError.
    """
    apart = [mutant for mutant in mutants if not mutant.in_body]
    verdicts = _judge_each(apart, choice, lambda mutant, tests: partial(_run_imported, mutant, tests, choice), jobs)
    in_place = [mutant for mutant in mutants if mutant.in_body]

    def run_all(items: Sequence[pytest.Item]) -> None:
        def work(mutant: Mutant, tests: Sequence[str]) -> Callable[[Connection], None]:
            return partial(_run_in_place, mutant, _chosen(items, tests), choice)

        verdicts.extend(_judge_each(in_place, choice, work, jobs))

    if in_place:
        paths = {name.partition("::")[0] for mutant in in_place for name in choice.tests_of(mutant)}
        _pytest(sorted(paths), _Collected(run_all))
    return verdicts


def _chosen(items: Sequence[pytest.Item], tests: Sequence[str]) -> list[pytest.Item]:
    """The collected tests of those names in that order; a file stands for all its tests."""
    by_name: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_name.setdefault(item.nodeid, []).append(item)
        by_name.setdefault(item.nodeid.partition("::")[0], []).append(item)
    return [item for name in tests for item in by_name[name]]


def _run_imported(mutant: Mutant, tests: Sequence[str], choice: Choice, answers: Connection) -> None:
    sys.meta_path.insert(0, _Imported(mutant))

    def run(items: Sequence[pytest.Item]) -> None:
        answers.send(_first_failure(_chosen(items, tests), choice))

    try:
        _pytest(sorted({name.partition("::")[0] for name in tests}), _Collected(run))
    except (BaselineError, KeyError) as error:
        answers.send(f"at collection: {error}")


def _run_in_place(mutant: Mutant, items: Sequence[pytest.Item], choice: Choice, answers: Connection) -> None:
    try:
        function = _function(mutant)
        function.__code__ = _code(_compiled(mutant), mutant.function.split("."), function.__code__)
    except (LookupError, AttributeError, ValueError) as error:
        answers.send(BaselineError(f"{mutant.module}: {mutant.key}: {error!r}"))
        return
    answers.send(_first_failure(items, choice))


def _first_failure(items: Sequence[pytest.Item], choice: Choice) -> str:
    for item, following in _pairs(items):
        # The signal's default is the end of the process, which is the verdict.
        signal.setitimer(signal.ITIMER_PROF, choice.cpu_most_s(item.nodeid))
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
            return item.nodeid
    return ""


def _compiled(mutant: Mutant) -> CodeType:
    path = source_path(mutant.module)
    return compile(mutated(path.read_text(), mutant.number), str(path), "exec")


def _function(mutant: Mutant) -> Any:
    """The function of that name, out of whatever it is wrapped in."""
    found: Any = importlib.import_module(mutant.module)
    for name in mutant.function.split("."):
        found = inspect.getattr_static(found, name)
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, staticmethod | classmethod):
        found = found.__func__
    return inspect.unwrap(found)


def _code(within: CodeType, names: Sequence[str], like: CodeType) -> CodeType:
    """The compiled function that stands where ``like`` stood."""
    for constant in within.co_consts:
        if inspect.iscode(constant) and constant.co_name == names[0]:
            if len(names) > 1:
                return _code(constant, names[1:], like)
            if constant.co_firstlineno == like.co_firstlineno:
                return constant
    raise LookupError(names)


# --- processes -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Running:
    mutant: Mutant
    tests: int
    process: BaseProcess
    answers: Connection
    began_s: float


def _judge_each(
    mutants: Sequence[Mutant],
    choice: Choice,
    work: Callable[[Mutant, Sequence[str]], Callable[[Connection], None]],
    jobs: int,
) -> list[Verdict]:
    waiting = list(reversed(mutants))
    running: dict[object, _Running] = {}
    verdicts: list[Verdict] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            tests = choice.tests_of(mutant)
            if not tests:
                verdicts.append(Verdict(mutant, "", 0, 0.0))
                continue
            process, answers = _forked(work(mutant, tests))
            running[process.sentinel] = _Running(mutant, len(tests), process, answers, time.monotonic())
        ended = wait([task.process.sentinel for task in running.values()], timeout=1.0)
        verdicts.extend(_ended(running.pop(sentinel)) for sentinel in ended)
        for task in running.values():
            if time.monotonic() - task.began_s > WALL_MOST_S:
                _kill(task.process)
    return verdicts


def _ended(task: _Running) -> Verdict:
    task.process.join()
    try:
        killed_by = task.answers.recv()
    except EOFError:
        killed_by = f"ended with {task.process.exitcode}"
    task.answers.close()
    if isinstance(killed_by, BaselineError):
        raise killed_by
    return Verdict(task.mutant, killed_by, task.tests, round(time.monotonic() - task.began_s, 2))


def _forked(work: Callable[[Connection], None], *, is_silent: bool = True) -> tuple[BaseProcess, Connection]:
    """A process that does the work and ends at once, whatever threads the work left behind."""
    context = get_context("fork")
    answers, ours = context.Pipe(duplex=False)

    def run() -> None:
        os.setsid()
        folder = tempfile.mkdtemp(prefix="mutant-")
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MOST_BYTES, MEMORY_MOST_BYTES))
        if is_silent:
            silence = os.open(os.devnull, os.O_RDWR)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
        code = 1
        try:
            work(ours)
            code = 0
        finally:
            if code and not is_silent:
                traceback.print_exc()
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(code)

    process = context.Process(target=run)
    process.start()
    ours.close()
    return process, answers


def _kill(process: BaseProcess) -> None:
    if process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)
