"""CPU of a bare mutual TLS handshake, both sides, as the yardstick of a run: what a loaded machine does to CPU it does
to this as well. The standard library's OpenSSL, over memory, with the fleet's own certificates.
"""

from __future__ import annotations

import ssl
import statistics
import time
from typing import TYPE_CHECKING

from bench.report import WrongResultError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_AT_ONCE = 10
_MAX_FLIGHTS = 10


def tls(node: Path, purpose: ssl.Purpose) -> ssl.SSLContext:
    """A context with the identity of the node in that directory; the peer must have one of the same fleet."""
    identity = node / "identity"
    context = ssl.create_default_context(purpose, cafile=str(identity / "ca.crt"))
    context.load_cert_chain(identity / "node.crt", identity / "node.key")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Yardstick:
    """Measures a few handshakes whenever it is asked to, all over a run."""

    def __init__(self, device: Path, hub: Path, hub_name: str) -> None:
        """The identities of both sides; ``hub_name`` is the server's name."""
        self._client = tls(device, ssl.Purpose.SERVER_AUTH)
        self._server = tls(hub, ssl.Purpose.CLIENT_AUTH)
        self._name = hub_name
        self._samples: list[float] = []

    def sample(self) -> None:
        """Measure now."""
        began_s = time.process_time()
        for _ in range(_AT_ONCE):
            self._handshake()
        self._samples.append((time.process_time() - began_s) / _AT_ONCE)

    @property
    def cpu_ms(self) -> float:
        """Median milliseconds of one handshake; raises WrongResultError without a sample."""
        if not self._samples:
            raise WrongResultError("no handshake was measured")
        return 1000 * statistics.median(self._samples)

    def _handshake(self) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self._client.wrap_bio(down, up, server_hostname=self._name)
        server = self._server.wrap_bio(up, down, server_side=True)
        for _ in range(_MAX_FLIGHTS):
            done = [_advance(side.do_handshake) for side in (client, server)]
            if all(done):
                return
        raise WrongResultError("a handshake did not end")


def _advance(step: Callable[[], None]) -> bool:
    """Whether that side is through, or it waits for the other."""
    try:
        step()
    except ssl.SSLWantReadError:
        return False
    return True
