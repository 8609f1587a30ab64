"""A TPM 2.0 of a test's own: a real swtpm at a Unix socket, asked behind our back by tpm2-tools."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from wavemesh.identity.attestation import attestation_of
from wavemesh.identity.binding import Binding
from wavemesh.identity.ca import certificates_pem
from wavemesh.identity.credentials import NodeCredentials
from wavemesh.identity.csr import make_request
from wavemesh.identity.tpm import Tpm, TpmError
from wavemesh.identity.tpmkeys import TpmKeys
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wavemesh.identity.ca import FleetCa
    from wavemesh.identity.nodes import NodeId

ZEROS = "0" * 64
PATIENCE_S = 10.0


class SoftwareTpm:
    """Its state outlives the process, as a real one's outlives the power."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "tpm.sock"
        self.tcti = f"swtpm:path={self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Power on: PCRs are as after a reset."""
        (self.directory / "state").mkdir(exist_ok=True)
        command = ["swtpm", "socket", "--tpm2", "--flags", "not-need-init,startup-clear"]
        command += ["--tpmstate", f"dir={self.directory / 'state'}", "--log", f"file={self.directory / 'log'}"]
        command += ["--server", f"type=unixio,path={self.socket}", "--ctrl", f"type=unixio,path={self.socket}.ctrl"]
        self._process = subprocess.Popen(command)
        until_s = time.monotonic() + PATIENCE_S
        while not self._listens():
            assert self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < until_s, "swtpm does not listen"
            time.sleep(0.01)

    def _listens(self) -> bool:
        try:
            with Tpm(self.tcti).using():
                return True
        except TpmError:
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Power off, or die."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE_S)
            self._process = None
        for name in (self.socket, Path(f"{self.socket}.ctrl")):
            name.unlink(missing_ok=True)

    def tool(self, name: str, *arguments: str, status: int = 0) -> str:
        """Run a program of tpm2-tools on it; what it prints."""
        environment = {**os.environ, "TPM2TOOLS_TCTI": self.tcti}
        done = subprocess.run(
            [f"tpm2_{name}", *arguments],
            env=environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout

    def extend(self, pcr: int, content: str = "ab" * 32) -> None:
        """Something was measured that nobody expected."""
        self.tool("pcrextend", f"{pcr}:sha256={content}")

    def keys(self, identity: Path) -> TpmKeys:
        identity.mkdir(parents=True, exist_ok=True)
        return TpmKeys(Tpm(self.tcti), identity, Disk())

    def enrol(self, identity: Path, ca: FleetCa, node: NodeId) -> NodeCredentials:
        """Lay an identity out as joining does; the key in this TPM, what its PCRs hold now bound."""
        keys = self.keys(identity)
        key = keys.create()
        csr = make_request(key, node.name)
        evidence = keys.evidence(key, csr)
        assert evidence is not None
        now = datetime.now(UTC)
        bound = Binding(now, "pos-tablet", "r2", attestation_of(evidence, key.public_key(), csr))
        leaf = ca.issue(
            node,
            key.public_key(),
            not_before=now - timedelta(hours=1),
            not_after=now + timedelta(days=30),
            binding=bound,
        )
        (identity / "node.key").write_bytes(keys.keep(key))
        (identity / "node.crt").write_bytes(certificates_pem([leaf]))
        (identity / "ca.crt").write_bytes(certificates_pem([ca.certificate]))
        return NodeCredentials.load(identity, keys)


@contextmanager
def software_tpm() -> Iterator[SoftwareTpm]:
    """One that runs; in a directory of a short name, as a socket's path has 108 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="tpm"))
    tpm = SoftwareTpm(directory)
    tpm.start()
    try:
        yield tpm
    finally:
        tpm.stop()
        shutil.rmtree(directory)
