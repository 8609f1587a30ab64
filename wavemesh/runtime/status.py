"""Errors on the wire: wavemesh errors ↔ ``google.rpc.Status`` with ``ErrorInfo`` (and ``RetryInfo``), in one place.

Upwards in the class tree decides the code: the first row of ``_CODES`` whose class matches. The class's ``reason`` and
the error's ``details`` travel as ErrorInfo; a reader that does not know the reason still gets the right base class.
What a peer sends as status is as hostile as all else it sends: parts that cannot be read are passed over, and a word
that is no gate refuses nothing.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import (  # type: ignore[import-untyped]  # googleapis-common-protos ships no types
    error_details_pb2,
    status_pb2,
)

from wavemesh.errors import (
    BusyError,
    ConflictError,
    ForbiddenError,
    GateError,
    LinkDownError,
    LocalError,
    NotFoundError,
    PeerError,
    WavemeshError,
)
from wavemesh.policy.gates import BadGateError, parse_gate
from wavemesh.session.faults import SupersededError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from grpc.aio import AioRpcError, ServicerContext

P = ParamSpec("P")
R = TypeVar("R")

DOMAIN = "wavemesh"
STATUS_KEY = "grpc-status-details-bin"
DEFAULT_RETRY_S = 1.0
_MAX_DETAIL_CHARACTERS = 1000
# Details become keyword arguments of an error; these are its own.
_NO_DETAILS = frozenset({"self", "message", "gate", "retry_after_s"})

_CODES: tuple[tuple[type[WavemeshError], grpc.StatusCode], ...] = (
    (LinkDownError, grpc.StatusCode.UNAVAILABLE),
    (BusyError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (SupersededError, grpc.StatusCode.ABORTED),
    (ForbiddenError, grpc.StatusCode.PERMISSION_DENIED),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (GateError, grpc.StatusCode.FAILED_PRECONDITION),
    (ConflictError, grpc.StatusCode.FAILED_PRECONDITION),
    (PeerError, grpc.StatusCode.INVALID_ARGUMENT),
    (WavemeshError, grpc.StatusCode.INTERNAL),
)
_CLASSES: dict[grpc.StatusCode, type[WavemeshError]] = {
    grpc.StatusCode.PERMISSION_DENIED: ForbiddenError,
    grpc.StatusCode.UNAUTHENTICATED: ForbiddenError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: ConflictError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.UNAVAILABLE: LinkDownError,
    grpc.StatusCode.DEADLINE_EXCEEDED: LinkDownError,
    grpc.StatusCode.CANCELLED: LinkDownError,
}


class RemoteFaultError(PeerError):
    """The other side failed by its own word; ``details["reason"]`` says how."""

    reason = "REMOTE_FAULT"


def code_of(error: WavemeshError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


def status_of(error: WavemeshError) -> status_pb2.Status:
    """The error as ``google.rpc.Status``.

    The text of a LocalError stays here, because it may name files and tables; the peer gets its reason.
    """
    text = "internal fault" if isinstance(error, LocalError) else str(error)[:_MAX_DETAIL_CHARACTERS]
    details = {} if isinstance(error, LocalError) else error.details
    code, _ = code_of(error).value
    status = status_pb2.Status(code=code, message=text)
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_bounded(details))
    )
    if isinstance(error, BusyError):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _bounded(details: dict[str, str]) -> dict[str, str]:
    return {name: value[:_MAX_DETAIL_CHARACTERS] for name, value in details.items()}


async def abort_with(context: ServicerContext[object, object], error: WavemeshError) -> NoReturn:
    """End the call with the error's status; never returns."""
    status = status_of(error)
    await context.abort(code_of(error), status.message, ((STATUS_KEY, status.SerializeToString()),))


def error_from_rpc(error: AioRpcError) -> WavemeshError:
    """What a failed call means: the error class of its code, with the reason and details of its ErrorInfo."""
    return error_from_status(error.code(), error.details() or "", status_in(error.trailing_metadata()))


def error_from_status(code: grpc.StatusCode, text: str, status: status_pb2.Status | None) -> WavemeshError:
    """The error behind a code, its text and, where the peer sent them, its details."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for message in (info, retry):
        _unpack(status, message)
    details = {name: value for name, value in info.metadata.items() if name not in _NO_DETAILS}
    text = text or code.name
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9 or DEFAULT_RETRY_S
        return BusyError(text, retry_after_s, **details)
    gate = info.metadata.get("gate", "")
    if info.reason == GateError.reason and _is_gate(gate):
        return GateError(gate, text, **details)
    kind = _CLASSES.get(code)
    if kind is None:
        kind = PeerError if code is grpc.StatusCode.INVALID_ARGUMENT else RemoteFaultError
    if info.reason and info.reason != kind.reason:
        details["reason"] = info.reason
    return kind(text, **details)


def retry_after_of(error: AioRpcError) -> float | None:
    """Seconds after which the peer asked to be called again (RetryInfo), with whatever code; None if it did not."""
    retry = error_details_pb2.RetryInfo()
    if _unpack(status_in(error.trailing_metadata()), retry):
        return float(retry.retry_delay.ToNanoseconds() / 1e9)
    return None


def _unpack(status: status_pb2.Status | None, message: Message) -> bool:
    """Read the detail of that kind, if there is one that can be read."""
    for detail in status.details if status is not None else ():
        if detail.Is(message.DESCRIPTOR):
            try:
                detail.Unpack(message)
            except DecodeError:
                return False
            return True
    return False


def _is_gate(word: str) -> bool:
    try:
        parse_gate(word)
    except BadGateError:
        return False
    return True


def status_in(trailing: Iterable[tuple[str, str | bytes]] | None) -> status_pb2.Status | None:
    """The ``google.rpc.Status`` in a call's trailing metadata, if there is one that can be read."""
    for key, value in trailing or ():
        if key == STATUS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def answers(handler: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Decorate a servicer's coroutine method: a WavemeshError it raises becomes the call's status.

    Works for unary handlers and for streaming ones written as coroutines (``context.write``), which is how all are.
    """

    @functools.wraps(handler)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except WavemeshError as error:
            context = cast("ServicerContext[object, object]", kwargs.get("context", args[-1]))
            await abort_with(context, error)

    return answer
