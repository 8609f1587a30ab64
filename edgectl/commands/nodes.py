"""``edgectl node``: how nodes get their certificates, and which they have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.framework import Session, command
from edgectl.output import Table
from edgectl.tables import place, when

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgectl.plain import Plain
    from wavemesh.v1.operator_pb2 import CreateEnrolmentRequest, ListNodesRequest, ListNodesResponse
    from wavemesh.v1.operator_pb2_grpc import OperatorServiceAsyncStub

app = typer.Typer(help="Nodes and their certificates.", no_args_is_help=True)

NodeOption = Annotated[str, typer.Option("--node", help='Path: "region/midwest/store/store-208/device/pos-17".')]
NodeDirOption = Annotated[Path, typer.Option("--dir", help="The node's directory.")]
PairDirOption = Annotated[
    Path, typer.Option("--dir", help="Where the key stays: DIR/identity of control, an operator's own directory.")
]
AddressOption = Annotated[
    list[str] | None, typer.Option("--address", help="HOST:PORT where its parent listens for joins; repeatable.")
]
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_PAGE_SIZE = 1000
_MAX_PAGES = 1000


@command(app, "token")
def token(
    session: Session,
    *,
    node: NodeOption,
    address: AddressOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the token there, mode 0600.")] = None,
    device_class: Annotated[str, typer.Option("--class", help="Device class, if it is not registered yet.")] = "",
    hardware: Annotated[str, typer.Option("--hardware", help="Hardware revision, if it is not registered yet.")] = "",
    label: Annotated[list[str] | None, typer.Option("--label", help="NAME=VALUE, if it is not registered yet.")] = None,
    time_zone: Annotated[str, typer.Option("--time-zone", help="Of a store that is not registered yet.")] = "",
    expires: Annotated[str, typer.Option("--expires", help="How long it may be used: 30m, 24h, 7d.")] = "24h",
) -> None:
    """Make a one-time token by which a store hub or a device joins. Whoever has it can join as that node, once."""
    import hashlib
    import secrets

    from edgectl.exits import UsageError
    from edgectl.plain import plain
    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.identity.nodes import NodeId
    from wavemesh.identity.tokens import SECRET_BYTES, Token
    from wavemesh.runtime.durable import Disk
    from wavemesh.v1.operator_pb2 import CreateEnrolmentRequest

    credentials, secret = NodeCredentials.load(session.context.identity), secrets.token_bytes(SECRET_BYTES)
    pairs = [one.partition("=") for one in label or []]
    if not all(name and sign for name, sign, _ in pairs):
        msg = "--label takes NAME=VALUE"
        raise UsageError(msg)
    request = CreateEnrolmentRequest(
        node=node,
        secret_sha256=hashlib.sha256(secret).hexdigest(),
        lifetime_s=_seconds(expires),
        device_class=device_class,
        hardware_revision=hardware,
        labels={name: value for name, _, value in pairs},
        time_zone=time_zone,
    )
    data = plain(session.ask(lambda stub: _create(stub, request)))
    made = Token(
        NodeId(data["fleet"], node), secret, credentials.root_der, data["trust_root_sha256"], tuple(address or ())
    )
    if out is not None:
        Disk().write_atomic(out, made.text().encode() + b"\n")
    where = f"--token-file {out}" if out else "--token-file FILE"
    session.show(
        {**data, "node": node, "token": made.text() if out is None else "", "file": str(out or "")},
        *(() if out else (made.text(),)),
        f"good for one join of {node} until {when(data['expires_at'])}; carry it like a key",
        f"next, on that machine: python -m wavemesh.identity.join --dir DIR {where}",
    )


@command(app, "join")
def join(
    session: Session,
    *,
    directory: NodeDirOption,
    token_file: Annotated[Path, typer.Option("--token-file", help="The token.")],
    address: AddressOption = None,
    listen: Annotated[str, typer.Option("--listen", help="Where a store hub is to listen.")] = "0.0.0.0:7443",
) -> None:
    """Join with a token on this machine; the same as `python -m wavemesh.identity.join`."""
    import asyncio
    import dataclasses

    from wavemesh.identity.join import Joining, read_token
    from wavemesh.runtime.clock import SystemClock

    joined = asyncio.run(Joining(directory, read_token(token_file), address or (), listen).run(SystemClock()))
    data = {**dataclasses.asdict(joined), "node": joined.node.uri, "config": str(joined.config)}
    state = "had joined before" if joined.again else f"joined, certificate until {joined.expires_at}"
    session.show(data, f"{joined.node.path} {state}; look through {joined.config}, then start it")


@command(app, "request")
def request(session: Session, *, directory: PairDirOption, node: NodeOption) -> None:
    """Make the key of control or an operator, and a request to carry to the root. Also how they renew."""
    from edgectl import ceremonies

    path = ceremonies.request(directory, ceremonies.PENDING_KEY, node)
    session.show(
        {"request": str(path)},
        f"{path} is the request; the key stays here",
        f"next, on the offline machine: edgectl ca sign {path.name} --ca DIR --node {node} --out answer.pem",
    )


@command(app, "install")
def install(
    session: Session,
    *,
    file: Annotated[Path, typer.Argument(help="The answer to the request.")],
    directory: PairDirOption,
) -> None:
    """Put a certificate of control or an operator beside its key."""
    from edgectl import ceremonies

    node = ceremonies.install_node(directory, file)
    session.show({"node": node.uri, "directory": str(directory)}, f"{directory} is the identity of {node.path} now")


@command(app, "list")
def list_nodes(
    session: Session, *, below: Annotated[str, typer.Option("--below", help="Only that node and those below.")] = ""
) -> None:
    """Show nodes, their certificates and their tokens."""
    nodes = _nodes(session, below)
    session.show(nodes, _table(nodes))


@command(app, "show")
def show(session: Session, *, path: Annotated[str, typer.Argument(help="Path of the node.")]) -> None:
    """Show one node's certificate and token."""
    from wavemesh.errors import NotFoundError

    found = [node for node in _nodes(session, path) if node["path"] == path]
    if not found:
        raise NotFoundError(f"no node {path!r} is known to control")
    node = found[0]
    rows = [(key.replace("_", " "), when(value) if key.endswith("_at") else str(value)) for key, value in node.items()]
    session.show(node, Table("", ("", path), rows))


def _table(nodes: Sequence[dict[str, Any]]) -> Table:
    rows = [
        (
            place(node["path"]),
            when(node["issued_at"]),
            when(node["expires_at"]),
            node["serial"][:12] or "-",
            f"{node['device_class']} {node['hardware_revision']}".strip() or "-",
            when(node["last_seen_at"]),
            _token_state(node),
        )
        for node in nodes
    ]
    return Table("", ("node", "issued", "expires", "serial", "binds", "last seen", "token"), rows)


def _token_state(node: dict[str, Any]) -> str:
    if node["token_used_at"]:
        return f"used {when(node['token_used_at'])}"
    return f"until {when(node['token_expires_at'])}" if node["token_expires_at"] else "-"


def _nodes(session: Session, below: str) -> list[dict[str, Plain]]:
    from functools import partial

    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import ListNodesRequest

    nodes: list[dict[str, Plain]] = []
    page = ""
    for _ in range(_MAX_PAGES):
        request = ListNodesRequest(below=below, page_size=_PAGE_SIZE, page_token=page)
        answer = session.ask(partial(_list, request=request))
        nodes += (plain(node) for node in answer.nodes)
        page = answer.next_page_token
        if not page:
            break
    return nodes


async def _list(stub: OperatorServiceAsyncStub, request: ListNodesRequest) -> ListNodesResponse:
    return await stub.ListNodes(request, timeout=CALL_TIMEOUT_S)


async def _create(stub: OperatorServiceAsyncStub, request: CreateEnrolmentRequest) -> Any:
    return await stub.CreateEnrolment(request, timeout=CALL_TIMEOUT_S)


def _seconds(text: str) -> int:
    from edgectl.exits import UsageError

    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS_S or not (number.isascii() and number.isdigit()) or not int(number) * _UNITS_S[unit] > 0:
        msg = f"--expires {text!r}: a number and one of s, m, h, d, as in 24h"
        raise UsageError(msg)
    return int(number) * _UNITS_S[unit]
