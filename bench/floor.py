"""What a floor serves on: a bare grpcio server with the product's TLS and options, nothing of ours before a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from wavemesh.runtime.grpc import SERVER_OPTIONS

if TYPE_CHECKING:
    from wavemesh.identity.credentials import NodeCredentials


def bare_server(credentials: NodeCredentials, maximum_concurrent_rpcs: int) -> tuple[grpc.aio.Server, int]:
    """A server at a free port of this machine, and the port."""
    server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=maximum_concurrent_rpcs)
    return server, server.add_secure_port("127.0.0.1:0", credentials.server_credentials())
