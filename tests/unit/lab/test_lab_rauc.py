"""RAUC in the lab: refused by name where it cannot run, and no bundle where nobody needs one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import rauc
from lab.topology import Lab

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q2."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(rauc.LabRaucError, match="needs rauc, dbus-daemon, mksquashfs, setpriv, losetup"):
        rauc.check_usable()
    for tool in ("rauc", "dbus-daemon", "mksquashfs", "setpriv", "losetup"):
        (tmp_path / tool).touch(mode=0o755)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(rauc.LabRaucError, match="needs root"):
        rauc.check_usable()


def test_a_lab_without_rauc_makes_no_bundle(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {}, {"store-208": ("pos-01",)})
    lab.device_dir("pos-01").mkdir(parents=True)
    (lab.device_dir("pos-01") / "config.toml").write_text('[board]\nbackend = "grub"\n')
    assert rauc.bundle(lab, tmp_path / "image", "1.0.0") is None
