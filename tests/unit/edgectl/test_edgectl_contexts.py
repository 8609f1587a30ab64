"""The contexts file: which one is read, round trips, and what is wrong with a bad one (Q2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgectl.contexts import (
    BadContextsError,
    Context,
    Contexts,
    NoContextError,
    contexts_path,
    load_contexts,
    save_contexts,
)
from edgectl.main import run
from wavemesh.identity.nodes import NodeId

CONTROL = Context("control", "127.0.0.1:1", NodeId("lab", "control/c-1"), Path("/ids/alice"))
STORE = Context("store-209", "127.0.0.1:2", NodeId("lab", "region/r/store/store-209"), Path('/ids/"odd" ü'))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    contexts = Contexts("control", {"control": CONTROL, "store-209": STORE})
    save_contexts(tmp_path / "deep" / "contexts.toml", contexts)
    assert load_contexts(tmp_path / "deep" / "contexts.toml") == contexts


def test_no_file_is_no_context_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoContextError, match="no context selected; known: none"):
        load_contexts(tmp_path / "absent.toml").select(None)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(NoContextError, match="no context 'stor'; known: control, store-209"):
        Contexts("control", {"control": CONTROL, "store-209": STORE}).select("stor")


def test_merging_keeps_what_is_there_and_takes_the_new_selection() -> None:
    merged = Contexts("mine", {"mine": CONTROL}).merged(Contexts("store-209", {"store-209": STORE}))
    assert (merged.current, set(merged.contexts)) == ("store-209", {"mine", "store-209"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("current = [", "Invalid value"),
        ("current = 3", "wants"),
        ("[contexts.x]\naddress = 'a'", "wants the strings"),
        ("[contexts.x]\naddress = 'a'\nnode = 'nobody'\nidentity = 'i'", "spiffe"),
    ],
)
def test_a_bad_file_is_named_with_the_problem(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "contexts.toml"
    path.write_text(text)
    with pytest.raises(BadContextsError, match=problem) as caught:
        load_contexts(path)
    assert str(path) in str(caught.value)


def test_which_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    user = {"XDG_CONFIG_HOME": "/conf"}
    assert contexts_path(user) == Path("/conf/wavemesh/contexts.toml")
    (tmp_path / "lab-data").mkdir()
    (tmp_path / "lab-data" / "contexts.toml").touch()
    assert contexts_path(user) == Path("lab-data/contexts.toml")
    assert contexts_path({**user, "EDGECTL_CONFIG": "/given.toml"}) == Path("/given.toml")


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = run(["context", *words])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_contexts_are_set_renamed_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGECTL_CONFIG", str(tmp_path / "contexts.toml"))
    monkeypatch.delenv("EDGECTL_CONTEXT", raising=False)
    whole = ("--address", "h:1", "--node", "spiffe://f/control/c", "--identity", str(tmp_path / "alice"))
    assert typed(capsys, "set", "cloud", "--address", "h:1")[0] == 2
    assert typed(capsys, "set", "cloud", *whole)[0] == 0
    assert typed(capsys, "current") == (0, "cloud\n")
    assert typed(capsys, "set", "hub", *whole)[0] == 0
    assert typed(capsys, "set", "hub", "--address", "h:2")[0] == 0
    known = load_contexts(tmp_path / "contexts.toml").contexts
    assert [(one.address, one.node.uri, one.identity.name) for one in known.values()] == [
        ("h:1", "spiffe://f/control/c", "alice"),
        ("h:2", "spiffe://f/control/c", "alice"),
    ]
    for address in ("h", ":1", "h:0", "h:x", "h:70000"):
        assert typed(capsys, "set", "hub", "--address", address)[0] == 2
    assert typed(capsys, "set", "hub", "--node", "nobody")[0] == 2
    assert "h:2" in typed(capsys, "show", "hub")[1]
    monkeypatch.setenv("EDGECTL_CONTEXT", "hub")
    assert typed(capsys, "current") == (0, "hub\n")
    assert typed(capsys, "current", "--context", "cloud") == (0, "cloud\n")
    monkeypatch.delenv("EDGECTL_CONTEXT")
    assert typed(capsys, "rename", "cloud", "hub")[0] == 4
    assert typed(capsys, "rename", "cloud", "main")[0] == 0
    assert typed(capsys, "current") == (0, "main\n")
    assert typed(capsys, "delete", "main")[0] == 0
    code, text = typed(capsys, "current")
    assert (code, "known: hub" in text) == (3, True)
    assert typed(capsys, "delete", "main")[0] == 3
