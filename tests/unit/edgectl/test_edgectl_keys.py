"""``edgectl keys`` and the offline half of ``edgectl release``: files, exit codes, words; no server is asked."""

from __future__ import annotations

import json
import shutil
from contextlib import chdir
from typing import TYPE_CHECKING, Any

import pytest

from edgectl import releasing, trustdir
from edgectl.exits import UsageError
from edgectl.main import run
from wavemesh.artifacts.digests import digest_of
from wavemesh.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Type = Callable[..., tuple[int, str, str]]

FIRST_ROOT = (
    "keys root --dir s --root k/r1.pub --root k/r2.pub --root k/r3.pub --release k/a.pub --release k/b.pub "
    "--release k/c.pub --online k/online.pub"
)
RELEASE = (
    "release create --dir d --published s --name fw-2 --version 2.0.0 --class pos --hardware r1 --firmware fw-2.img"
)


@pytest.fixture
def types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """Type a line in an empty directory without a terminal: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)

    def type_line(line: str, *, expect: int = 0) -> tuple[int, str, str]:
        code = run(line.split())
        out, err = capsys.readouterr()
        assert code == expect, f"{line}\n{out}{err}"
        return code, out, err

    return type_line


@pytest.fixture(scope="module")
def first_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with keys and a complete first repository, 2 of 3 root and release keys, and an image."""
    directory = tmp_path_factory.mktemp("first")
    names = ("r1", "r2", "r3", "a", "b", "c", "online", "control", "x")
    lines = ["keys create " + " ".join(f"k/{name}.pem" for name in names), FIRST_ROOT]
    lines += [f"keys sign --dir s --key k/{key}.pem --yes" for key in ("r1", "r2")]
    lines += ["keys targets --dir s --control k/control.pub"]
    lines += [f"keys sign --dir s --key k/{key}.pem --yes" for key in ("a", "b")]
    with chdir(directory):
        for line in lines:
            assert run(line.split()) == 0, line
    (directory / "fw-2.img").write_bytes(b"image" * 100)
    return directory


@pytest.fixture
def fleet(types: Type, tmp_path: Path, first_repository: Path) -> Type:
    """Type where a first repository is."""
    shutil.copytree(first_repository, tmp_path, dirs_exist_ok=True)
    return types


def asked(types: Type, line: str, expect: int = 0) -> Any:
    return json.loads(types(f"{line} --output json", expect=expect)[1])


def test_signing_shows_and_asks_first(fleet: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet("keys root --dir s --replace k/r3.pub=k/x.pub")
    for line in ("keys sign --dir s --key k/r1.pem", "keys publish --dir s"):
        _, _, told = fleet(line, expect=2)
        assert "--yes" in told or "not complete" in told
    _, out, told = fleet("keys sign --dir s --key k/r1.pem --dry-run")
    assert "would sign 2.root.json" in out
    assert "role root: 2 of 3 keys; + x (" in told
    assert "- r3 (" in told
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdin.readline", lambda: "n\n")
    assert "not done" in fleet("keys sign --dir s --key k/r1.pem", expect=2)[2]
    assert asked(fleet, "keys show s/2.root.json")[0]["signatures"] == []
    monkeypatch.setattr("sys.stdin.readline", lambda: "y\n")
    fleet("keys sign --dir s --key k/r1.pem")
    assert len(asked(fleet, "keys show s/2.root.json")[0]["signatures"]) == 1


def test_what_would_lock_out_is_refused(fleet: Type) -> None:
    for line, why in {
        "keys root --dir s --root-threshold 4": "role root would have 3 keys and need 4",
        "keys root --dir s --release k/a.pub": "role targets would have 1 keys and need 2",
        "keys root --dir s --replace k/a.pub=k/b.pub": "is one of the role's keys, which",
        "keys root --dir s --replace k/a.pub=k/r1.pub": "would speak for",
        "keys root --dir s --replace k/a.pub=k/control.pub": "has role control already",
        "keys root --dir s --replace k/a.pub": "give OLD=NEW",
        "keys delegate --dir s pos --key k/r1.pub --threshold 1": "has role root already",
        "keys delegate --dir s pos --key k/x.pub --threshold 2": "would have 1 keys and need 2",
        "keys targets --dir s": "give --control PUB",
        "keys withdraw --dir s pos": "class roles are none",
    }.items():
        code = 3 if "withdraw" in line else 4 if "already" in why else 2
        assert why in fleet(line, expect=code)[2]
    assert asked(fleet, "keys verify --dir s") == {
        "files": ["1.root.json", "1.targets.json"],
        "problems": [],
        "next": asked(fleet, "keys verify --dir s")["next"],
    }


def test_a_draft_is_not_overwritten(fleet: Type) -> None:
    for _ in range(2):
        fleet("keys root --dir s --replace k/r3.pub=k/x.pub")
    assert "a draft that says something else" in fleet("keys root --dir s --root-threshold 3", expect=4)[2]
    _, out, _ = fleet("keys root --dir s --root-threshold 3 --dry-run")
    assert "role root: 3 of 3 keys; same keys" in out
    assert asked(fleet, "keys verify --dir s", expect=1)["files"] == ["1.root.json", "2.root.json", "1.targets.json"]


def test_a_file_whose_signers_were_replaced_is_renewed_and_not_signed_on(fleet: Type, tmp_path: Path) -> None:
    """More signatures would change what is published without a version of its own."""
    fleet("keys root --dir s --replace k/b.pub=k/x.pub")
    for key in ("r1", "r2"):
        fleet(f"keys sign --dir s --key k/{key}.pem --yes")
    published = (tmp_path / "s" / "1.targets.json").read_bytes()
    assert asked(fleet, "keys sign --dir s --key k/c.pem --yes")["signed"] == []
    assert (tmp_path / "s" / "1.targets.json").read_bytes() == published
    told = asked(fleet, "keys verify --dir s", expect=1)
    assert told["next"].startswith("edgectl keys renew --dir s targets")
    for _ in range(2):
        assert asked(fleet, "keys renew --dir s targets")["file"] == "2.targets.json"
    for key in ("x", "c"):
        assert asked(fleet, f"keys sign --dir s --key k/{key}.pem --yes")["signed"] == ["2.targets.json"]
    assert asked(fleet, "keys verify --dir s")["problems"] == []


def test_a_key_without_a_say_is_told(fleet: Type) -> None:
    fleet("keys root --dir s --replace k/r3.pub=k/x.pub")
    assert "has no say in any file of s" in fleet("keys sign --dir s --key k/online.pem --yes", expect=2)[2]
    assert "is a private key" in fleet("keys root --dir t --root k/r1.pem", expect=7)[2]
    assert "no private key" in fleet("keys sign --dir s --key k/r1.pub --yes", expect=7)[2].replace(
        "not an unencrypted", "no"
    )


def test_verify_names_every_problem(fleet: Type, tmp_path: Path) -> None:
    path = tmp_path / "s" / "1.targets.json"
    value = json.loads(path.read_text())
    value["signed"]["expires"] = "2020-01-01T00:00:00Z"
    path.write_text(json.dumps(value))
    _, out, _ = fleet("keys verify --dir s", expect=1)
    assert "1.targets.json: 2 more of the release keys in root version 1: a (" in out
    assert "1.targets.json: expired at 2020-01-01" in out
    (tmp_path / "s" / "3.root.json").write_bytes((tmp_path / "s" / "1.root.json").read_bytes())
    assert "every version of the root" in fleet("keys verify --dir s", expect=2)[2]
    assert "is not complete" not in fleet("keys install --dir s --control c", expect=2)[1]


def test_install_is_for_the_first_start_only(fleet: Type, tmp_path: Path) -> None:
    for _ in range(2):
        fleet("keys install --dir s --control c")
    assert (tmp_path / "c" / "trust" / "root.json").read_bytes() == (tmp_path / "s" / "1.root.json").read_bytes()
    fleet("keys renew --dir s targets")
    assert "is not complete" in fleet("keys install --dir s --control c", expect=2)[2]
    for key in ("a", "c"):
        fleet(f"keys sign --dir s --key k/{key}.pem --yes")
    assert "control has begun with it" in fleet("keys install --dir s --control c", expect=4)[2]


def test_keys_and_their_roles_are_shown(fleet: Type) -> None:
    key, root, targets = asked(fleet, "keys show k/a.pem s/1.root.json s/1.targets.json --dir s")
    assert (key["kind"], key["roles"]) == ("private key, ed25519", ["targets"])
    assert root["roles"]["root"]["threshold"] == 2
    assert list(targets["roles"]) == ["control"]
    assert "k/nothing" in fleet("keys show k/nothing", expect=2)[2]


def test_release_signatures_are_counted_by_the_root(fleet: Type, tmp_path: Path) -> None:
    """No flag says how many are needed; a key of no release holder does not count, a second time counts once."""
    fleet(RELEASE)
    assert "has no say in role targets; its keys are a (" in fleet("release sign --dir d --key k/r1.pem", expect=2)[2]
    for _ in range(2):
        state = asked(fleet, "release sign --dir d --key k/a.pem")
        assert (state["bundle_signatures"], state["targets_signatures"], state["threshold"]) == (1, 0, 2)
    assert not state["complete"]
    state = asked(fleet, "release sign --dir d --key k/c.pem")
    assert (state["bundle_signatures"], state["targets_signatures"]) == (2, 1)
    assert asked(fleet, "release sign --dir d --key k/a.pem")["complete"]
    checks = asked(fleet, "release verify d --root s/1.root.json")
    assert checks["good"]
    assert [check["what"].split(":")[0] for check in checks["checks"] if "fw-2" in check["what"]] == [
        "release fw-2, by targets",
        "fw-2.img",
        "fw-2.sig",
        "fw-2.sig",
    ]


def test_release_verify_names_each_problem(fleet: Type, tmp_path: Path) -> None:
    fleet(RELEASE)
    for key in ("a", "c"):
        fleet(f"release sign --dir d --key k/{key}.pem")
    (tmp_path / "fw-2.img").write_bytes(b"other")
    problems = [check for check in asked(fleet, "release verify d", expect=1)["checks"] if check["problem"]]
    assert [check["problem"].split(" of ")[0].split(" has ")[0] for check in problems] == [
        "1 signatures are missing,",
        str(tmp_path / "fw-2.img"),
    ]
    fleet("keys root --dir o --root k/x.pub --release k/a.pub --online k/online.pub")
    fleet("keys sign --dir o --key k/x.pem --yes")
    checks = asked(fleet, "release verify d --root o/1.root.json", expect=1)["checks"]
    assert checks[1]["what"].startswith("targets.json version 2: 0 of 1 signatures")
    fleet("keys root --dir p --root k/r1.pub --release k/x.pub --online k/online.pub")
    checks = asked(fleet, "release verify d --root p/1.root.json", expect=1)["checks"]
    assert "root was signed by 0/1 keys" in checks[0]["problem"]
    assert "nobody vouches for it" in fleet("release verify fw-9 --published s", expect=1)[1]


def test_nothing_but_the_draft_s_files_goes_to_the_origin(fleet: Type, tmp_path: Path) -> None:
    """A draft that somebody else made may point anywhere."""
    fleet(RELEASE)
    for key in ("a", "c", "a"):
        fleet(f"release sign --dir d --key k/{key}.pem")
    places = tmp_path / "d" / "artifacts.json"
    places.write_text(json.dumps({"fw-2.img": str(tmp_path / "k" / "r1.pem")}))
    with pytest.raises(ConflictError, match=r"is not the fw-2\.img of the draft"):
        releasing.copy_artifacts(tmp_path / "d", tmp_path / "origin")
    places.write_text(json.dumps({"fw-2.img": str(tmp_path / "fw-2.img")}))
    assert len(releasing.copy_artifacts(tmp_path / "d", tmp_path / "origin")) == 2


def test_a_rauc_bundle_is_signed_and_published_with_the_release(fleet: Type, tmp_path: Path) -> None:
    """ADR 16: one more artifact of the release; release keys vouch for it like for the image."""
    (tmp_path / "fw-2.raucb").write_bytes(b"packed")
    fleet(f"{RELEASE} --bundle fw-2.raucb")
    for key in ("a", "c", "a", "c"):
        progress = asked(fleet, f"release sign --dir d --key k/{key}.pem")
    assert progress["complete"]
    assert releasing.load_manifest(tmp_path / "d").bundle == releasing.artifact_of(tmp_path / "fw-2.raucb")
    digests = releasing.copy_artifacts(tmp_path / "d", tmp_path / "origin")
    assert digests[-1] == digest_of(b"packed")
    assert (tmp_path / "origin" / digests[-1].sha256).read_bytes() == b"packed"
    (tmp_path / "fw-2.raucb").write_bytes(b"other")
    checks = asked(fleet, "release verify d", expect=1)["checks"]
    problems = [check["problem"].split(" has ")[0] for check in checks if check["problem"]]
    assert problems == [str(tmp_path / "fw-2.raucb")]


@pytest.mark.parametrize("role", ["class-x/../../../a", "class-", "snapshot", "..", "class-" + "x" * 129])
def test_a_server_does_not_choose_where_files_go(role: str) -> None:
    with pytest.raises(UsageError, match="is no name of a file"):
        trustdir.file_name(role, 1)


def test_a_class_draft_is_checked_before_anybody_signs(fleet: Type) -> None:
    fleet("keys delegate --dir s scanner --key k/x.pub --threshold 1")
    for key in ("a", "b"):
        fleet(f"keys sign --dir s --key k/{key}.pem --yes")
    wrong = RELEASE.replace("--dir d", "--dir e --role class-scanner")
    assert "class-scanner cannot vouch for release fw-2: it is for class pos" in fleet(wrong, expect=4)[2]
    named = wrong.replace("--class pos", "--class scanner")
    assert "the name fw-2 does not belong to class-scanner" in fleet(named, expect=4)[2]
    unknown = RELEASE.replace("--dir d", "--dir e --role class-pos")
    assert "those who may: targets, class-scanner" in fleet(unknown, expect=2)[2]


def test_a_revocation_is_drafted_once(fleet: Type, tmp_path: Path) -> None:
    fleet(RELEASE)
    for key in ("a", "c", "a"):
        fleet(f"release sign --dir d --key k/{key}.pem")
    (tmp_path / "s" / "2.targets.json").write_bytes((tmp_path / "d" / "targets.json").read_bytes())
    assert (
        "nobody vouches for release fw-9"
        in fleet("release revoke fw-9 --dir v --reason bad --published s", expect=2)[2]
    )
    _, out, _ = fleet("release revoke fw-2 --dir v --reason bad --published s --dry-run")
    assert "would draft that targets revokes fw-2 for ever: bad" in out
    assert not (tmp_path / "v").exists()
    for _ in range(2):
        state = asked(fleet, "release revoke fw-2 --dir v --reason bad --published s")
        assert (state["revoked"], state["targets_signatures"], state["complete"]) == (True, 0, False)
    assert "holds another draft" in fleet("release revoke fw-2 --dir v --reason worse --published s", expect=4)[2]
    for key in ("b", "c"):
        state = asked(fleet, f"release sign --dir v --key k/{key}.pem")
    assert state["complete"]
    _, out, _ = fleet("release verify v --root s/1.root.json", expect=1)
    assert "it is revoked: bad" in out
    (tmp_path / "s" / "3.targets.json").write_bytes((tmp_path / "v" / "targets.json").read_bytes())
    assert "revoked already" in fleet("release revoke fw-2 --dir w --reason bad --published s")[1]
