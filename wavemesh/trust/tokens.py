"""Role keys that never leave a PKCS#11 token (HSM, smartcard, SoftHSM), through securesystemslib's HSMSigner.

A key is named by a URI: ``hsm:2?label=TOKEN``, securesystemslib's form, or ``pkcs11:token=TOKEN;id=%02`` (RFC 7512; of
its attributes these two). ``PYKCS11LIB`` names the PKCS#11 library. The PIN comes from the file that
``WAVEMESH_PIN_FILE`` names (a credential of systemd, say), from ``WAVEMESH_PIN``, or from who asks; never from a
command line or a URI, which others can read. Needs the extra ``hsm`` (python-pkcs11), imported when a key is in a
token.

Keys are ECDSA over P-256 or P-384, as HSMSigner has it. One call at a time: a token knows one login per process.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, unquote_to_bytes, urlencode

from securesystemslib.exceptions import UnsupportedLibraryError, UnverifiedSignatureError
from securesystemslib.signer import HSMSigner, Signer, SSlibKey

from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from securesystemslib.signer import Key, SecretsHandler, Signature

LIBRARY_VARIABLE = "PYKCS11LIB"
PIN_VARIABLE = "WAVEMESH_PIN"
PIN_FILE_VARIABLE = "WAVEMESH_PIN_FILE"
_MAX_PIN_BYTES = 256
_MAX_KEY_NUMBER = 2**31 - 1
_LOCK = threading.Lock()


class KeyTokenError(LocalError):
    """A key in a PKCS#11 token cannot be used: library, token, key or PIN is missing or wrong."""

    reason = "KEY_TOKEN"


def pin_from_environment() -> str:
    """The PIN; raises KeyTokenError."""
    path = os.environ.get(PIN_FILE_VARIABLE)
    if path:
        try:
            with Path(path).open("rb") as file:
                return file.read(_MAX_PIN_BYTES).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{PIN_FILE_VARIABLE} names {path}: {error}"
            raise KeyTokenError(msg) from error
    pin = os.environ.get(PIN_VARIABLE)
    if not pin:
        msg = f"no PIN for the token: set {PIN_FILE_VARIABLE} to a file that holds it, or {PIN_VARIABLE}"
        raise KeyTokenError(msg)
    return pin


def parse_uri(uri: str) -> tuple[int, str]:
    """Number of the key and label of its token; raises KeyTokenError, also for a URI that holds a PIN."""
    if "pin-value" in uri or "pin=" in uri:
        msg = f"a key's URI holds no PIN, others can read it: set {PIN_FILE_VARIABLE} or {PIN_VARIABLE}"
        raise KeyTokenError(msg)
    scheme, _, rest = uri.partition(":")
    number, label = "", ""
    if scheme == "hsm":
        number, _, query = rest.partition("?")
        label = dict(parse_qsl(query)).get("label", "")
    elif scheme == "pkcs11":
        given = dict(one.partition("=")[::2] for one in rest.partition("?")[0].split(";"))
        number = str(int.from_bytes(unquote_to_bytes(given.get("id", ""))))
        label = unquote(given.get("token", ""))
    if not number.isascii() or not number.isdecimal() or not 0 < int(number[:12]) <= _MAX_KEY_NUMBER or not label:
        msg = f"{uri!r} does not name a key and its token: write hsm:NUMBER?label=TOKEN or pkcs11:token=TOKEN;id=%02"
        raise KeyTokenError(msg)
    return int(number), label


class TokenSigner(Signer):
    """A key in a token; its errors are KeyTokenErrors that say what to look at."""

    def __init__(self, uri: str, signer: HSMSigner) -> None:
        """Use ``open``."""
        self.uri = uri
        self._signer = signer

    @classmethod
    def open(cls, uri: str, public: SSlibKey | None, pin: Callable[[], str]) -> TokenSigner:
        """The key of that URI; without ``public`` it is read from the token. Raises KeyTokenError."""
        number, label = parse_uri(uri)
        uri = f"hsm:{number}?{urlencode({'label': label})}"
        if public is None:
            with _token(uri):
                _, public = HSMSigner.import_(number, label, lambda _: pin())
        try:
            return cls(uri, HSMSigner(number, public, lambda _: pin(), label))
        except (UnsupportedLibraryError, ValueError) as error:
            msg = f"{uri}: {error}; install the extra `hsm`: pip install 'wavemesh[hsm]'"
            raise KeyTokenError(msg) from error

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> TokenSigner:
        """Securesystemslib's way to ``open``."""
        if not isinstance(public_key, SSlibKey):
            msg = f"{priv_key_uri}: its public key is no key of securesystemslib's own kind"
            raise KeyTokenError(msg)
        handler = secrets_handler
        return cls.open(priv_key_uri, public_key, pin_from_environment if handler is None else lambda: handler("pin"))

    @property
    def public_key(self) -> Key:
        """The public key."""
        return self._signer.public_key

    def sign(self, payload: bytes) -> Signature:
        """Sign; the token is asked for each signature. Raises KeyTokenError."""
        with _token(self.uri):
            signature = self._signer.sign(payload)
        try:
            self.public_key.verify_signature(signature, payload)
        except UnverifiedSignatureError as error:
            msg = f"{self.uri}: the token holds another key than the one expected, {self.public_key.keyid[:16]}"
            raise KeyTokenError(msg) from error
        return signature


def create_token_key(uri: str, pin: Callable[[], str]) -> TokenSigner:
    """A new P-256 key in the token, or the one that is there under that number; raises KeyTokenError."""
    number, label = parse_uri(uri)
    with _token(uri):
        import pkcs11
        from pkcs11.util import biginteger
        from pkcs11.util.ec import encode_named_curve_parameters

        token = pkcs11.lib(_library()).get_token(token_label=label)
        with token.open(rw=True, user_pin=pin()) as session:
            key_id = biginteger(number)
            found = session.get_objects(
                {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.Attribute.ID: key_id}
            )
            if not list(found):
                curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
                parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
                parameters.generate_keypair(id=key_id, label=f"wavemesh-{number}", store=True)
    return TokenSigner.open(uri, None, pin)


def _library() -> str:
    path = os.environ.get(LIBRARY_VARIABLE, "")
    if not path:
        msg = f"set {LIBRARY_VARIABLE} to the token's PKCS#11 library, for example libsofthsm2.so"
        raise KeyTokenError(msg)
    return path


@contextmanager
def _token(uri: str) -> Iterator[None]:
    """One caller at a time; what goes wrong becomes a KeyTokenError."""
    try:
        import pkcs11
        from pkcs11.exceptions import PinIncorrect, PinLocked, PKCS11Error
    except ImportError as error:
        msg = f"{uri} is a key in a token: install the extra `hsm`: pip install 'wavemesh[hsm]'"
        raise KeyTokenError(msg) from error
    del pkcs11
    _library()
    with _LOCK:
        try:
            yield
        except PinIncorrect as error:
            msg = f"{uri}: the PIN is wrong; tokens lock after a few tries, so look before you try again"
            raise KeyTokenError(msg) from error
        except PinLocked as error:
            msg = f"{uri}: the PIN is locked after too many wrong ones; the security officer's PIN unlocks it"
            raise KeyTokenError(msg) from error
        except (ValueError, PKCS11Error) as error:
            said = str(error) or type(error).__name__
            msg = f"{uri}: {said}; is the token there, and is {LIBRARY_VARIABLE} its library?"
            raise KeyTokenError(msg) from error
