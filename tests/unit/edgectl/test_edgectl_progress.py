"""Bars are for people who look: on stderr, and only when it is a terminal."""

from __future__ import annotations

import hashlib
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

from edgectl.progress import bar, copy_file, digest_file

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_files_are_copied_and_digested_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = os.urandom(5 * 1024 * 1024 + 1)
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(data)
    copy_file(source, target)
    assert target.read_bytes() == data
    assert digest_file(target) == hashlib.sha256(data).hexdigest()
    with bar("x", 10) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_drawn_on_a_terminals_stderr_and_never_on_stdout() -> None:
    code = "from edgectl.progress import bar\nwith bar('copying', 10) as advance:\n    advance(10)\nprint('data')"
    mine, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, check=True, text=True)
    os.close(theirs)
    drawn = os.read(mine, 65536).decode()
    os.close(mine)
    assert (done.stdout, "copying" in drawn) == ("data\n", True)
