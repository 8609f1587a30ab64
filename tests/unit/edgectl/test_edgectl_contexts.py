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
