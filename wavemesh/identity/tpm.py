"""Speaks to a TPM 2.0: the commands that keys and quotes need, as in the TPM 2.0 Library, part 3, over the bare device.

A conversation is short: connect, find or make the parent key, load, sign, flush, close. Nothing stays in the TPM, so a
TPM that was restarted, or that another program used meanwhile, is as good as before. Keys are kept as the TPM wrapped
them for its storage parent: the persistent one at ``SRK_HANDLE`` where the TPM was provisioned with it, else the
primary key that the TPM derives from its owner's seed, the same each time. A TCTI says where the TPM is, in the words
of tpm2-tools:

    device:/dev/tpmrm0            the kernel's resource manager
    swtpm:path=/run/swtpm.sock    an emulator at a Unix socket
    swtpm:host=127.0.0.1,port=2321

Every failure is a TpmError that names the TCTI and what to do.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

DEFAULT_TCTI = "device:/dev/tpmrm0"
OWNER = 0x40000001
SRK_HANDLE = 0x81000001
TIMEOUT_S = 20.0
MAX_RESPONSE_BYTES = 4096
MAX_TRIES = 5
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_PASSWORD_SESSION = struct.pack(">IHBH", 0x40000009, 0, 1, 0)
_EMPTY_SENSITIVE = bytes.fromhex("000400000000")
_STORAGE_PARENT = bytes.fromhex("0023 000b 00030472 0000 0006 0080 0043 0010 0003 0010 0000 0000")
"""TPMT_PUBLIC: restricted decryption key, P-256 with AES-128-CFB, as the TCG's profile for storage primaries has it."""
_KEYS_SCHEME = struct.pack(">H", 0x0010)
_NO_TICKET = struct.pack(">HIH", 0x8024, 0x40000007, 0)
_BANK = 0x000B
_CREATE_PRIMARY, _CREATE, _LOAD, _FLUSH, _READ_PUBLIC = 0x131, 0x153, 0x157, 0x165, 0x173
_SIGN, _QUOTE, _CERTIFY, _PCR_READ, _GET_CAPABILITY = 0x15D, 0x158, 0x148, 0x17E, 0x17A
_HANDLES, _TRANSIENT = 1, 0x80000000
_MEMORY = 0x902
_AGAIN = frozenset({0x908, 0x90A, 0x922})
_WHY = {
    0x100: "it was not started: TPM2_Startup is the firmware's to send; `tpm2_startup -c` for an emulator",
    0x101: "it failed its self-test; power the machine off and on, then replace it",
    _MEMORY: "its memory is full: another program holds it; use device:/dev/tpmrm0",
    0x921: "it is locked out; wait, or reset it: `tpm2_dictionarylockout --clear-lockout`",
    0x09F: "the key was wrapped by another TPM, or by this one before it was cleared; enrol the node again",
    0x08B: "the parent key is not there any more; enrol the node again",
    0x08E: "its owner set a password; provision the storage key: `tpm2_evictcontrol -C o -c primary.ctx 0x81000001`",
    0x0A2: "its owner set a password; provision the storage key: `tpm2_evictcontrol -C o -c primary.ctx 0x81000001`",
}


class TpmError(LocalError):
    """The TPM that holds this node's key is not there, does not answer or refuses; no other key takes its place."""

    reason = "TPM"


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A key that only its TPM can use: parent, TPMT_PUBLIC, and the private part as the TPM encrypted it."""

    parent: int
    public: bytes
    private: bytes


class Tpm:
    """One TPM; conversations take turns, whatever thread they are on."""

    def __init__(self, tcti: str) -> None:
        """Nothing is opened before it is used; raises TpmError for a TCTI of no known kind."""
        self.tcti = tcti
        self._lock = threading.Lock()
        kind, _, where = tcti.partition(":")
        if kind not in {"device", "swtpm"}:
            raise self.error(f"no TCTI of a known kind; write {DEFAULT_TCTI} or swtpm:path=SOCKET")
        self._kind, self._where = kind, where

    def error(self, problem: str) -> TpmError:
        """A TpmError about this one."""
        return TpmError(f"TPM {self.tcti}: {problem}", tcti=self.tcti)

    @contextmanager
    def using(self) -> Iterator[Conversation]:
        """A conversation; what it loaded is flushed at its end. Raises TpmError."""
        with self._lock, self._opened() as descriptor:
            conversation = Conversation(self, descriptor)
            try:
                yield conversation
            finally:
                conversation.flush()

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            if self._kind == "device":
                descriptor = os.open(self._where or "/dev/tpmrm0", os.O_RDWR | os.O_CLOEXEC)
                try:
                    yield descriptor
                finally:
                    os.close(descriptor)
                return
            with self._emulator() as connection:
                yield connection.fileno()
        except OSError as error:
            problem = f"{error.strerror or error}; is it there, switched on and this program's to use?"
            raise self.error(f"{problem} The node's key is in it and nowhere else") from error

    def _emulator(self) -> socket.socket:
        words = dict(word.partition("=")[::2] for word in self._where.split(","))
        if "path" not in words:
            port = words.get("port", "2321")
            if not port.isdecimal():
                raise self.error(f"no port: {port!r}")
            return socket.create_connection((words.get("host", "127.0.0.1"), int(port)), TIMEOUT_S)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(words["path"])
        except OSError:
            connection.close()
            raise
        return connection


class Conversation:
    """Commands to a TPM that this thread has for itself; use ``Tpm.using``. Everything raises TpmError."""

    def __init__(self, tpm: Tpm, descriptor: int) -> None:
        """``descriptor`` is open, and stays the caller's."""
        self._tpm = tpm
        self._descriptor = descriptor
        self._loaded: dict[object, int] = {}

    def create(self, template: bytes) -> Wrapped:
        """A new key of that TPMT_PUBLIC, made in the TPM."""
        parent = self._find_parent()
        parameters = _EMPTY_SENSITIVE + _sized(template) + _sized(b"") + struct.pack(">I", 0)
        reply = self._call(_CREATE, [self._parent(parent)], parameters)
        private = reply.sized()
        return Wrapped(parent, reply.sized(), private)

    def load(self, key: Wrapped) -> int:
        """The key's handle in this conversation."""
        if key not in self._loaded:
            parameters = _sized(key.private) + _sized(key.public)
            self._loaded[key] = self._make(_LOAD, self._parent(key.parent), parameters)
        return self._loaded[key]

    def sign(self, key: Wrapped, sha256: bytes) -> bytes:
        """ECDSA over a SHA-256, ASN.1 DER."""
        parameters = _sized(sha256) + _KEYS_SCHEME + _NO_TICKET
        return self._call(_SIGN, [self.load(key)], parameters).signature()

    def certify(self, key: Wrapped, by: Wrapped, nonce: bytes) -> tuple[bytes, bytes]:
        """TPMS_ATTEST that the TPM holds ``key``, and its signature by the key ``by``."""
        handles = [self.load(key), self.load(by)]
        reply = self._call(_CERTIFY, handles, _sized(nonce) + _KEYS_SCHEME, authorised=2)
        return reply.sized(), reply.signature()

    def quote(self, by: Wrapped, nonce: bytes, pcrs: Sequence[int]) -> tuple[bytes, bytes]:
        """TPMS_ATTEST of what those PCRs hold, and its signature by the key ``by``."""
        parameters = _sized(nonce) + _KEYS_SCHEME + _selection(pcrs)
        reply = self._call(_QUOTE, [self.load(by)], parameters)
        return reply.sized(), reply.signature()

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, str]:
        """Values of those PCRs, SHA-256 bank, lower-case hex."""
        found: dict[int, str] = {}
        for number in pcrs:
            reply = self._call(_PCR_READ, [], _selection([number]), authorised=0)
            reply.take(4 + 4 + 2 + 1 + 3)
            if reply.number(4) != 1:
                raise self._tpm.error(f"has no PCR {number} in a SHA-256 bank; enable the bank in its firmware")
            found[number] = reply.sized().hex()
        return found

    def flush(self) -> None:
        """Forget what was loaded here. A TPM that is gone has forgotten it already."""
        handles, self._loaded = list(self._loaded.values()), {}
        for handle in handles:
            try:
                self._flush(handle)
            except (TpmError, OSError):
                return

    def _find_parent(self) -> int:
        return SRK_HANDLE if SRK_HANDLE in self._handles(SRK_HANDLE, 1) else OWNER

    def _parent(self, parent: int) -> int:
        """Handle of the parent key; a primary key is made once a conversation."""
        if parent != OWNER:
            return parent
        if OWNER not in self._loaded:
            parameters = _EMPTY_SENSITIVE + _sized(_STORAGE_PARENT) + _sized(b"") + struct.pack(">I", 0)
            self._loaded[OWNER] = self._make(_CREATE_PRIMARY, OWNER, parameters)
        return self._loaded[OWNER]

    def _make(self, code: int, above: int, parameters: bytes) -> int:
        """A command that loads an object; its handle."""
        return self._call(code, [above], parameters, makes_handle=True).handle

    def _handles(self, first: int, count: int) -> list[int]:
        reply = self._call(_GET_CAPABILITY, [], struct.pack(">III", _HANDLES, first, count), authorised=0)
        reply.take(1 + 4)
        return [reply.number(4) for _ in range(reply.number(4))]

    def _flush(self, handle: int) -> None:
        self._call(_FLUSH, [handle], b"", authorised=0)

    def _forget_strays(self) -> None:
        """Flush what a program that was killed left behind: who talks to a TPM without a resource manager is alone."""
        for handle in self._handles(_TRANSIENT, 16):
            if handle not in self._loaded.values():
                self._flush(handle)

    def _call(
        self, code: int, handles: Iterable[int], parameters: bytes, *, authorised: int = 1, makes_handle: bool = False
    ) -> _Reply:
        sessions = _PASSWORD_SESSION * authorised
        body = b"".join(struct.pack(">I", handle) for handle in handles)
        body += (struct.pack(">I", len(sessions)) + sessions if authorised else b"") + parameters
        tag = _SESSIONS if authorised else _NO_SESSIONS
        command = struct.pack(">HII", tag, 10 + len(body), code) + body
        for _ in range(MAX_TRIES):
            answered, result, data = self._exchange(command)
            if result == 0:
                return _Reply(self._tpm, data, has_sessions=answered == _SESSIONS, makes_handle=makes_handle)
            if result == _MEMORY and code != _FLUSH:
                self._forget_strays()
            elif result not in _AGAIN:
                break
        # Format 1 carries which handle, session or parameter it is about; the error is in the rest.
        known = result & 0x0BF if result & 0x080 else result
        why = _WHY.get(known, "see the TPM 2.0 Library, part 2, for the code")
        raise self._tpm.error(f"refuses command {code:#x} with {result:#x}: {why}")

    def _exchange(self, command: bytes) -> tuple[int, int, bytes]:
        """Tag, result and the rest of the response; raises TpmError, OSError."""
        os.write(self._descriptor, command)
        data = b""
        while len(data) < 10 or len(data) < int.from_bytes(data[2:6]):
            if not select.select([self._descriptor], [], [], TIMEOUT_S)[0]:
                raise self._tpm.error(f"no answer within {TIMEOUT_S:g} s; another program may hold it")
            part = os.read(self._descriptor, MAX_RESPONSE_BYTES)
            if not part or len(data) + len(part) > MAX_RESPONSE_BYTES:
                raise self._tpm.error("ended the conversation in the middle of an answer")
            data += part
        tag, _, result = struct.unpack(">HII", data[:10])
        return tag, result, data[10:]


class _Reply:
    """Reads the parameters of a response."""

    def __init__(self, tpm: Tpm, data: bytes, *, has_sessions: bool, makes_handle: bool) -> None:
        self._tpm = tpm
        self._data = data
        self.handle = self.number(4) if makes_handle else 0
        if has_sessions:
            self._data = self.take(self.number(4))

    def take(self, count: int) -> bytes:
        if len(self._data) < count:
            raise self._tpm.error("gave an answer that is too short")
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def signature(self) -> bytes:
        """TPMT_SIGNATURE of ECDSA, as DER."""
        self.take(4)
        return encode_dss_signature(int.from_bytes(self.sized()), int.from_bytes(self.sized()))


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _selection(pcrs: Sequence[int]) -> bytes:
    bits = sum(1 << number for number in set(pcrs))
    return struct.pack(">IHB", 1, _BANK, 3) + bits.to_bytes(3, "little")
