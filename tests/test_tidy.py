"""The rules of the house, as tests: what linters do not know about this repository.

Sizes, structured concurrency, names, links, dependencies, and that lists which exist twice are equal.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES_MOST = 500
FUNCTION_LINES_MOST = 70
PRODUCT = ("wavemesh", "control", "superhub", "storehub", "device", "edgectl", "lab")
AROUND = ("bench", "tools", "tests")
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}
BINARY = {".binpb", ".png", ".xz"}


@functools.cache
def repository_files() -> tuple[Path, ...]:
    """Every file that is, or is about to be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],  # noqa: S607 (git is a requirement)
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    return tuple(ROOT / name for name in sorted(listed) if name and (ROOT / name).is_file())


def sources(*packages: str) -> list[Path]:
    """Python files written by hand."""
    folders = packages or (*PRODUCT, *AROUND)
    stubs = ROOT / "wavemesh" / "v1"
    return [
        path
        for path in repository_files()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders and stubs not in path.parents
    ]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def place(path: Path, node: ast.stmt | ast.expr | ast.excepthandler) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file with the dotted name it is written with: "asyncio.sleep"."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def dependencies() -> set[str]:
    """Names of all packages pyproject.toml asks for, in any extra."""
    table = project()["project"]
    wanted = [*table["dependencies"], *(line for extra in table["optional-dependencies"].values() for line in extra)]
    names = {re.split(r"[\[<>=~! ]", line, maxsplit=1)[0] for line in wanted}
    return names - {"wavemesh"}


def test_there_is_something_to_check() -> None:
    assert len(sources("wavemesh")) > 10
    assert len(sources("tests")) > 10


def test_files_are_short() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    assert {name: lines for name, lines in long.items() if lines > FILE_LINES_MOST} == {}


def test_functions_are_short() -> None:
    long = [
        f"{place(path, node)} {node.name}: {lines} lines"
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MOST
    ]
    assert long == []


def test_every_task_lives_in_a_task_group() -> None:
    loops = r"(asyncio|loop|self\._?loop|asyncio\.get_(running_|event_)?loop\(\))"
    loose = re.compile(rf"({loops}\.(create_task|ensure_future)|create_task|ensure_future)")
    assert [place(path, call) for path in sources() for name, call in calls(path) if loose.fullmatch(name)] == []


def test_nothing_catches_everything_unless_it_passes_it_on() -> None:
    def is_broad(handler: ast.ExceptHandler) -> bool:
        caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        names = {ast.unparse(kind) if kind is not None else "BaseException" for kind in caught}
        return bool(names & {"Exception", "BaseException"})

    def passes_on(handler: ast.ExceptHandler) -> bool:
        last = handler.body[-1]
        return isinstance(last, ast.Raise) and last.exc is None

    broad = [
        place(path, node)
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and is_broad(node) and not passes_on(node)
    ]
    assert broad == []


def test_the_product_never_blocks_in_a_sleep() -> None:
    """The lab and edgectl may: they wait for other processes, outside any event loop."""
    product = [name for name in PRODUCT if name not in {"lab", "edgectl"}]
    assert [place(path, call) for path in sources(*product) for name, call in calls(path) if name == "time.sleep"] == []


def test_tests_wait_for_conditions_and_not_for_time() -> None:
    """A sleep is allowed to give way once (0), in a loop between two looks at what is waited for, and where the test
    itself plays something that takes time; there a comment `plays:` on the line says what.
    """
    slept: list[str] = []
    for path in sources("tests"):
        lines = path.read_text().splitlines()
        looks = {id(inner) for loop in ast.walk(tree(path)) if isinstance(loop, ast.While) for inner in ast.walk(loop)}
        slept.extend(
            place(path, call)
            for name, call in calls(path)
            if name in {"time.sleep", "asyncio.sleep"}
            and id(call) not in looks
            and not _gives_way(call)
            and "# plays: " not in lines[call.lineno - 1]
        )
    assert slept == []


def _gives_way(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


def test_modules_are_named_for_what_they_do() -> None:
    named = {
        str(path.relative_to(ROOT))
        for path in sources()
        if {*path.relative_to(ROOT).with_suffix("").parts} & FORBIDDEN_NAMES
    }
    assert named == set()


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in sources("tests") if path.name.startswith("test_")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_nothing_imports_what_is_around_the_product() -> None:
    upwards = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(*PRODUCT)
        for node in ast.walk(tree(path))
        for name in _imported(node)
        if name.split(".")[0] in AROUND
    ]
    assert upwards == []


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    # Put together here, so that this file does not contain what it looks for.
    outside = re.compile(
        "|".join(["/" + "work/", "/" + "home/[a-z]", "/" + "root/", "/" + "opt/", r"\.\./" + "shared"])
    )
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in repository_files()
        if path.suffix not in BINARY and (match := outside.search(path.read_text(errors="replace")))
    ]
    assert found == []


def test_links_in_the_docs_resolve() -> None:
    broken = []
    for page in (path for path in repository_files() if path.suffix == ".md"):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            name = target.split("#")[0]
            if name and "://" not in name and not name.startswith("mailto:") and not (page.parent / name).exists():
                broken.append(f"{page.relative_to(ROOT)} → {target}")
    assert broken == []


def test_of_opentelemetry_only_the_messages_are_used() -> None:
    """Import contracts know packages by their first name alone; the SDK's threads and queues stay out."""
    names = [
        name
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name.split(".")[0] == "opentelemetry"
    ]
    assert names
    assert all(name.startswith("opentelemetry.proto.") for name in names)


def test_the_pure_modules_are_those_of_the_architecture() -> None:
    """The import contract covers what docs/architecture.md calls pure, as far as it exists."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    paragraph = re.search(r"Pure modules contain no.*?\n\n", text, re.DOTALL)
    assert paragraph is not None
    pure: set[str] = set()
    for folder, names in re.findall(r"`([\w/]+)/(\{[\w,]+\}\.py|\*|\w+\.py)`", paragraph[0]):
        stems = ["*"] if names == "*" else names.removesuffix(".py").strip("{}").split(",")
        pure.update(
            f"{folder}/{path.stem}".replace("/", ".")
            for stem in stems
            for path in (ROOT / folder).glob(f"{stem}.py")
            if path.stem != "__init__"
        )
    contracts = project()["tool"]["importlinter"]["contracts"]
    listed = next(
        set(contract["source_modules"]) for contract in contracts if "random" in contract.get("forbidden_modules", ())
    )
    assert listed == pure


@pytest.mark.parametrize("name", sorted(dependencies()))
def test_every_dependency_is_accounted_for(name: str) -> None:
    row = re.search(
        rf"^\| {re.escape(name)} \| (.+) \| (.+) \|$", (ROOT / "docs" / "dependencies.md").read_text(), re.MULTILINE
    )
    assert row is not None, f"docs/dependencies.md says nothing about {name}"


def test_no_dependency_is_accounted_for_that_is_gone() -> None:
    rows = re.findall(r"^\| ([A-Za-z0-9-]+) \| ", (ROOT / "docs" / "dependencies.md").read_text(), re.MULTILINE)
    assert set(rows) - {"package"} == dependencies()


def test_the_lock_has_every_dependency_and_no_address() -> None:
    lock = (ROOT / "constraints.txt").read_text()
    line = re.compile(r"#.*|[a-z0-9._-]+==[^\s/]+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert [text for text in lock.splitlines() if not line.fullmatch(text)] == []
    assert sorted(name for name in dependencies() if f"\n{name.lower()}==" not in lock) == []
