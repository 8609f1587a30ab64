"""The page on the operator's API, from the comments of ``proto/``: what protoc keeps of them, message by message."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

from wavemesh.client.retrying import REPEATABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto

ROOT = Path(__file__).resolve().parents[1]
PROTO = ROOT / "proto"
PACKAGE = "wavemesh.v1"
SERVICE = "wavemesh/v1/operator.proto"
#: What no field names, because it travels signed, as an envelope's payload.
SIGNED = "OperatorIntent"

# Numbers of fields in descriptor.proto, of which paths in SourceCodeInfo are made.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _VALUES, _METHODS = 2, 2, 2

_HEAD = """\
# The operator's API

<!-- Written by `make reference` from proto/wavemesh/v1 and tools/api.py; do not edit. -->

`wavemesh.v1.OperatorService`, gRPC over mutual TLS with an operator's certificate; `edgectl` uses nothing else. Control
and store hubs serve the same contract, each for what it knows. How to start: [services](../guide/services.md).

## Rules

**Identity.** The server takes the caller from the SPIFFE id in the TLS certificate, and only `operator/NAME` is served.
The caller checks that the server's certificate has the DNS name of the node it means: the names of its path from the
last to the first, its role (`control`, `storehub`), the fleet. All ports serve gRPC health and reflection.

**Idempotency.** Every mutation can be asked twice and is done once; the second answer says `duplicate`. An intent is
known by its `intent_id`: make it once, sign once, send the same bytes until there is an answer. A plan is known by wave
and policy, release metadata by its bytes. `SetHold` alone must not be repeated by a program: see *repeat* below.

**Paging.** A list answers at most `page_size` entries and a `next_page_token` while there are more; it is opaque and
belongs to the filters it was given for. Lists are newest first, devices by path. What is added while you page may be
missing or, at a hub, move an entry to the next page; ask from the beginning for a state as of now.

**Watching.** `WatchWave` sends the whole wave at once and after every change, and ends with OK when the wave is closed.
There is nothing to resume from: open the stream again after it broke and drop the first message if it is equal to your
last. Changes while you were away are not replayed; the ledger and the audit have the history.

**Deadlines.** Give every call one; 20 s suits all but a watch. Retries belong inside it. Streams are cheapest to open
again every ten minutes, with keepalive pings at 30 s in between (below 10 s a server ends the connection).

**Retry hints.** `RESOURCE_EXHAUSTED` carries `google.rpc.RetryInfo`: come back no sooner than `retry_delay`, plus full
jitter (uniform over 0 to `min(5 s, 0.2 s · 2ⁿ)` after n failures). `UNAVAILABLE` is retried with jitter alone. No other
code may end otherwise if you ask again at once.

**Errors.** A refusal is a `google.rpc.Status` in the trailer `grpc-status-details-bin` with `ErrorInfo`: `domain` is
`wavemesh`, `reason` the stable word of [errors](errors.md), `metadata` what it is about (`gate`, `wave`, `device`,
`field`). A node that does not know or may not do what you ask says `ASK_CONTROL` or `ASK_HUB`. An intent that is
refused for good is an answer, with `DISPOSITION_REFUSED` and the reason in `detail`.

**Signing.** What changes a wave is an `OperatorIntent`, serialised, in an `Envelope` of payload type
`application/vnd.wavemesh.intent.v1`, signed (ECDSA P-256 with SHA-256) by the key of the caller's own certificate over
DSSE's PAE of type and payload. It stays signed on its way: hubs and devices verify the operator, not who passed it on.

"""


def api_page() -> str:
    """The page: rules, calls, then every message and enum that a call reaches, in the order they are written in."""
    contract = _Contract(_parsed())
    reached = contract.reached()
    parts = [_HEAD, "## Calls\n\n", *contract.calls(), "\n## Messages\n", *contract.messages(reached)]
    return "".join([*parts, "\n## Enums\n", *contract.enums(reached)])


def _parsed() -> FileDescriptorSet:
    """What protoc reads in the contract, comments included."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "contract.binpb"
        options = [f"-I{PROTO}", f"--descriptor_set_out={out}", "--include_imports", "--include_source_info"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, SERVICE], cwd=ROOT, check=True)
        return FileDescriptorSet.FromString(out.read_bytes())


class _Contract:
    """Files of the contract with their comments."""

    def __init__(self, parsed: FileDescriptorSet) -> None:
        ours = (file for file in parsed.file if file.package == PACKAGE)
        # The calls' own messages first, then what they are made of.
        self._files = sorted(ours, key=lambda file: file.name != SERVICE)
        self._comments = {file.name: dict(_comments(file)) for file in self._files}
        self._messages = {message.name: message for file in self._files for message in file.message_type}
        self._enums = {enum.name: enum for file in self._files for enum in file.enum_type}

    def reached(self) -> set[str]:
        """Names of the messages and enums that calls mention, directly or not."""
        service = self._files[0].service[0]
        found: set[str] = set()
        open_names = [SIGNED, *(name for call in service.method for name in (call.input_type, call.output_type))]
        while open_names:
            name = open_names.pop().rsplit(".", 1)[-1]
            if name in found or name not in {*self._messages, *self._enums}:
                continue
            found.add(name)
            if name in self._messages:
                message = self._messages[name]
                entries = [field for nested in message.nested_type for field in nested.field]
                open_names += [field.type_name for field in (*message.field, *entries) if field.type_name]
        return found

    def calls(self) -> Iterator[str]:
        """A row a call."""
        yield "*Repeat*: whether a program may send it again by itself when the answer is lost.\n\n"
        yield "| call | asks | answers | repeat | meaning |\n|---|---|---|---|---|\n"
        file = self._files[0]
        for number, call in enumerate(file.service[0].method):
            answers = ("stream of " if call.server_streaming else "") + _link(call.output_type)
            meaning = self._comments[file.name][_SERVICES, 0, _METHODS, number]
            repeat = "yes" if call.name in REPEATABLE else "**no**"
            yield f"| `{call.name}` | {_link(call.input_type)} | {answers} | {repeat} | {meaning} |\n"

    def messages(self, names: set[str]) -> Iterator[str]:
        """A section a message."""
        for file in self._files:
            for number, message in enumerate(file.message_type):
                if message.name in names:
                    yield from self._message(message, file.name, (_MESSAGES, number))

    def _message(self, message: DescriptorProto, file: str, path: tuple[int, ...]) -> Iterator[str]:
        comments = self._comments[file]
        yield f"\n### {message.name}\n\n{comments[path]}\n"
        maps = {nested.name: nested.field for nested in message.nested_type if nested.options.map_entry}
        if message.field:
            yield "\n| field | type | meaning |\n|---|---|---|\n"
        for number, field in enumerate(message.field):
            yield f"| `{field.name}` | {_type(field, maps)} | {comments[*path, _FIELDS, number]} |\n"

    def enums(self, names: set[str]) -> Iterator[str]:
        """A section an enum."""
        for file in self._files:
            for number, enum in enumerate(file.enum_type):
                if enum.name in names:
                    yield from self._enum(enum, file.name, (_ENUMS, number))

    def _enum(self, enum: EnumDescriptorProto, file: str, path: tuple[int, ...]) -> Iterator[str]:
        comments = self._comments[file]
        yield f"\n### {enum.name}\n\n{comments[path]}\n\n| value | number | meaning |\n|---|---|---|\n"
        for number, value in enumerate(enum.value):
            yield f"| `{value.name}` | {value.number} | {comments[*path, _VALUES, number]} |\n"


def _comments(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Comments by path, as one line fit for a table."""
    for location in file.source_code_info.location:
        if location.leading_comments:
            yield tuple(location.path), " ".join(location.leading_comments.split()).replace("|", "\\|")


def _type(field: FieldDescriptorProto, maps: Mapping[str, Sequence[FieldDescriptorProto]]) -> str:
    entry = maps.get(field.type_name.rsplit(".", 1)[-1])
    if entry is not None:
        return f"map of {_type(entry[0], {})} to {_type(entry[1], {})}"
    scalar = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = _link(field.type_name) if field.type_name else scalar
    return f"list of {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name


def _link(type_name: str) -> str:
    name = type_name.rsplit(".", 1)[-1]
    return f"[{name}](#{name.lower()})" if type_name.startswith(f".{PACKAGE}.") else name
