"""Ceremonies with files: from nothing to a region's authority, a control and an operator; wrong files are refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from edgectl.ceremonies import PASSPHRASE_VARIABLE
from edgectl.exits import Exit
from edgectl.main import run
from wavemesh.identity.ca import RegionCa
from wavemesh.identity.credentials import NodeCredentials

if TYPE_CHECKING:
    from pathlib import Path

FLEET = "acme.example"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The offline machine, its root's key encrypted."""
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse")
    assert run(["ca", "create", "--ca", str(tmp_path / "offline"), "--fleet", FLEET]) == Exit.OK
    return tmp_path / "offline"


def test_a_region_gets_its_authority(tmp_path: Path, offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The key stays where it was made, and each step says the next command."""
    hub, answer = tmp_path / "hub", tmp_path / "answer.pem"
    assert run(["ca", "request", "--dir", str(hub), "--region", "midwest"]) == Exit.OK
    assert "next, on the offline machine: edgectl ca sign" in capsys.readouterr().out
    key = (hub / "authority" / "ca.key").read_bytes()
    request = str(hub / "authority" / "request.pem")
    assert run(["ca", "sign", request, "--ca", str(offline), "--region", "midwest", "--out", str(answer)]) == Exit.OK
    assert "edgectl ca install" in capsys.readouterr().out
    for _ in range(2):
        assert run(["ca", "install", str(answer), "--dir", str(hub)]) == Exit.OK
        assert f"1.root.json as {hub / 'trust' / 'root.json'}" in capsys.readouterr().out
    region = RegionCa.load(hub / "authority")
    assert (region.fleet, region.region) == (FLEET, "midwest")
    assert (hub / "authority" / "ca.key").read_bytes() == key
    mine = NodeCredentials.load(hub / "identity")
    assert mine.node_id.path == "region/midwest"
    assert mine.authorities.verify(mine.certificate, datetime.now(UTC), mine.intermediates) == mine.node_id


@pytest.mark.parametrize("node", ["control/cloud-1", "operator/alice"])
def test_control_and_operators_get_and_renew_their_certificates(tmp_path: Path, offline: Path, node: str) -> None:
    directory, answer = tmp_path / "identity", tmp_path / "answer.pem"
    serials = set()
    for _ in range(2):
        assert run(["node", "request", "--dir", str(directory), "--node", node]) == Exit.OK
        request = str(directory / "request.pem")
        command = ["ca", "sign", request, "--ca", str(offline), "--node", node, "--out", str(answer), "--days", "30"]
        assert run([*command, "--ip", "127.0.0.1"]) == Exit.OK
        assert run(["node", "install", str(answer), "--dir", str(directory)]) == Exit.OK
        mine = NodeCredentials.load(directory)
        assert mine.node_id.path == node
        assert mine.certificate.not_valid_after_utc < datetime.now(UTC) + timedelta(days=31)
        serials.add(mine.certificate.serial_number)
    assert len(serials) == 2
    assert not (directory / "request.key").exists()


def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub, other, answer = tmp_path / "hub", tmp_path / "other", tmp_path / "answer.pem"
    for directory in (hub, other):
        assert run(["ca", "request", "--dir", str(directory), "--region", "midwest"]) == Exit.OK
    request = str(hub / "authority" / "request.pem")
    sign = ["ca", "sign", request, "--ca", str(offline), "--out", str(answer)]
    assert run(sign) == Exit.BAD_INPUT
    assert run([*sign, "--node", "region/midwest/store/s"]) == Exit.BAD_INPUT
    assert run([*sign, "--node", "operator/a", "--ip", "nowhere"]) == Exit.BAD_INPUT
    assert run([*sign, "--region", "Not A Name"]) == Exit.BAD_INPUT
    assert not answer.exists()
    assert run([*sign, "--region", "midwest"]) == Exit.OK
    assert run(["ca", "install", str(answer), "--dir", str(other)]) == Exit.REFUSED
    assert run(["node", "install", str(answer), "--dir", str(hub)]) == Exit.LOCAL_FAULT
    assert run(["ca", "install", request, "--dir", str(hub)]) == Exit.BAD_INPUT
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "wrong")
    assert run([*sign, "--region", "midwest"]) == Exit.LOCAL_FAULT
    assert run(["ca", "create", "--ca", str(tmp_path / "second"), "--fleet", FLEET]) == Exit.OK
    foreign = tmp_path / "foreign.pem"
    sign = ["ca", "sign", request, "--ca", str(tmp_path / "second"), "--region", "midwest", "--out", str(foreign)]
    assert run(sign) == Exit.OK
    assert run(["ca", "install", str(answer), "--dir", str(hub)]) == Exit.OK
    capsys.readouterr()
    assert run(["ca", "install", str(foreign), "--dir", str(hub)]) == Exit.REFUSED
    assert "another fleet's root" in capsys.readouterr().err


def test_files_are_shown_with_what_people_compare(
    tmp_path: Path, offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ca", "request", "--dir", str(tmp_path / "hub"), "--region", "midwest"]) == Exit.OK
    capsys.readouterr()
    assert run(["ca", "show", str(offline / "ca.crt")]) == Exit.OK
    shown = capsys.readouterr().out
    assert f"authority of all in {FLEET}" in shown
    assert shown.count(":") > 31
    assert run(["ca", "show", str(tmp_path / "hub" / "authority" / "request.pem")]) == Exit.OK
    assert "certificate request" in capsys.readouterr().out
    (tmp_path / "nothing").write_text("nothing")
    assert run(["ca", "show", str(tmp_path / "nothing")]) == Exit.BAD_INPUT
