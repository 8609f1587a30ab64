"""Write ``constraints.txt``: every package that ``make setup`` installs, pinned, with the hashes of all its wheels.

Runs pip-compile over ``pyproject.toml`` (install pip-tools first) and strips what a fresh machine must not see: the
project itself, index addresses, paths, comments. The file serves every Python and platform that the wheels serve.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "constraints.txt"
HEADER = "# Written by `make lock` from pyproject.toml: every package of every extra, with the hashes of its files.\n"
OPTIONS = (
    "--quiet",
    "--generate-hashes",
    "--allow-unsafe",
    "--strip-extras",
    "--no-header",
    "--no-annotate",
    "--no-emit-options",
    "--extra=dev",
)
_BLOCK = re.compile(r"^([A-Za-z0-9._-]+)==\S+(?: \\\n +--hash=sha256:[0-9a-f]{64})+\n", re.MULTILINE)


def cleaned(compiled: str) -> str:
    """The pinned packages of pip-compile's output, each once, by name."""
    blocks = {match[1].lower(): match[0] for match in _BLOCK.finditer(compiled)}
    return HEADER + "".join(blocks[name] for name in sorted(blocks))


def main() -> None:
    """Resolve anew, keeping the pins that still fit."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "compiled.txt"
        if LOCK.exists():
            output.write_text(LOCK.read_text())
        command = [sys.executable, "-m", "piptools", "compile", *OPTIONS, f"--output-file={output}", "pyproject.toml"]
        subprocess.run(command, cwd=ROOT, check=True)
        LOCK.write_text(cleaned(output.read_text()))


if __name__ == "__main__":
    main()
