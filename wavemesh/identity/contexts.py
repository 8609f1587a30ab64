"""TLS contexts of Python's ssl from a node's identity files, for what speaks HTTP: origins and a store's registry.

Both ask for the peer's certificate and trust ca.crt alone. What a peer's certificate may speak for is judged by
``runtime/peers.py``, as for gRPC.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from wavemesh.errors import LocalError
from wavemesh.identity.files import CA_FILE, CERTIFICATE_FILE, KEY_FILE, pair_directory

if TYPE_CHECKING:
    from pathlib import Path


class TlsFilesError(LocalError):
    """The node's own identity files do not make a TLS context."""

    reason = "TLS_FILES"


def server_context(identity: Path) -> ssl.SSLContext:
    """TLS that asks every client for its certificate; raises TlsFilesError, IdentitySwitchError."""
    context = _context(identity, ssl.Purpose.CLIENT_AUTH)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(identity: Path) -> ssl.SSLContext:
    """TLS that shows the node's certificate; raises TlsFilesError, IdentitySwitchError."""
    return _context(identity, ssl.Purpose.SERVER_AUTH)


def load_pair(context: ssl.SSLContext, identity: Path) -> None:
    """Take the pair in use, in the place of one loaded before; raises TlsFilesError, IdentitySwitchError."""
    pair = pair_directory(identity)
    try:
        context.load_cert_chain(pair / CERTIFICATE_FILE, pair / KEY_FILE)
    except (OSError, ssl.SSLError) as error:
        raise _fault(identity, error) from error


def _context(identity: Path, purpose: ssl.Purpose) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(purpose, cafile=str(identity / CA_FILE))
    except (OSError, ssl.SSLError) as error:
        raise _fault(identity, error) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, identity)
    return context


def _fault(identity: Path, error: OSError) -> TlsFilesError:
    return TlsFilesError(f"{identity}: {error}; HTTP over TLS needs the key in a file; enrol the node again")
