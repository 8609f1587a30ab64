"""Generate ``wavemesh/v1`` from ``proto/wavemesh/v1``: ``python -m tools.stubs`` writes, ``--check`` compares."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTO = ROOT / "proto"
STUBS = Path("wavemesh") / "v1"


def generate(out: Path) -> None:
    """Run protoc with the plugins installed beside this interpreter."""
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    options = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *options, *sources]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # protoc names every file on stderr; what went wrong would be there too.
    done = subprocess.run(
        command, check=False, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"protoc failed:\n{done.stderr}")


def differences() -> list[str]:
    """Names of stubs that a fresh generation would write otherwise, add or not write."""
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        fresh = _stubs(Path(directory))
    committed = _stubs(ROOT)
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def _stubs(base: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (base / STUBS).glob("*_pb2*.py*") if path.suffix != ".pyc"}


def main(arguments: list[str]) -> int:
    """Write or compare."""
    if arguments != ["--check"]:
        generate(ROOT)
        return 0
    different = differences()
    if different:
        print(f"not what protoc makes of proto/: {', '.join(different)}; run `make proto`", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
