"""Runs one tier of the mesh as a process of its own and writes down what passes at its server.

``python -m tests.recordings.tapped MODULE --dir DIR`` is ``python -m MODULE --dir DIR``, with every frame of every
session and every unary call of the operator API appended to the file named by ``WAVEMESH_TAP``, a line each, in the
order in which this side saw it. Every hop has one parent, so tapping the servers shows all hops in both directions.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import runpy
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc

from wavemesh.codec.session import encode_child, encode_parent
from wavemesh.session import downstream

TAP_VARIABLE = "WAVEMESH_TAP"
OPERATOR_METHODS = "/wavemesh.v1.OperatorService/"


class Tap:
    """The file that is written to."""

    def __init__(self, path: Path) -> None:
        """Append to it."""
        self._file = path.open("a", encoding="utf-8")

    def write(self, **fields: Any) -> None:
        """One line, on its way to disk before what it tells of goes on."""
        self._file.write(json.dumps({"at": datetime.now(UTC).isoformat(), **fields}, sort_keys=True) + "\n")
        self._file.flush()


def tap_sessions(tap: Tap) -> None:
    """Let every session of this process's children be written down."""
    numbers = itertools.count(1)
    read, write = downstream._Session.read, downstream._Session.write
    known: dict[Any, str] = {}  # holds on to the machines, so that none is taken for another

    def note(session: Any, sender: str, message: Any) -> None:
        if session.machine not in known:
            known[session.machine] = f"{os.getpid()}-{next(numbers)}"
        frame = base64.b64encode(message.SerializeToString()).decode()
        tap.write(
            session=known[session.machine],
            parent=session._downstream._node_id.path,
            child=session.child.path,
            sender=sender,
            frame=frame,
        )

    async def tapped_read(session: Any) -> Any:
        frame = await read(session)
        if frame is not None:
            note(session, "child", encode_child(frame))
        return frame

    async def tapped_write(session: Any, frame: Any) -> None:
        note(session, "parent", encode_parent(frame))
        await write(session, frame)

    patch.object(downstream._Session, "read", tapped_read).start()
    patch.object(downstream._Session, "write", tapped_write).start()


class _OperatorTap(grpc.aio.ServerInterceptor):
    """Writes down the operator API's unary calls that succeeded."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(OPERATOR_METHODS) or handler.unary_unary is None:
            return handler

        async def tapped(request: Any, context: Any) -> Any:
            response = await handler.unary_unary(request, context)
            self._tap.write(
                call=method.rsplit("/", 1)[1],
                request=base64.b64encode(request.SerializeToString(deterministic=True)).decode(),
                response=base64.b64encode(response.SerializeToString(deterministic=True)).decode(),
            )
            return response

        return grpc.unary_unary_rpc_method_handler(
            tapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def tap_operator(tap: Tap) -> None:
    """Let the operator API of this process be written down."""
    make = grpc.aio.server

    def tapped(**options: Any) -> Any:
        others = options.pop("interceptors", None) or ()
        return make(interceptors=[_OperatorTap(tap), *others], **options)

    patch.object(grpc.aio, "server", tapped).start()


def main() -> None:
    """Install the taps, then be the module."""
    tap = Tap(Path(os.environ[TAP_VARIABLE]))
    tap_sessions(tap)
    tap_operator(tap)
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
