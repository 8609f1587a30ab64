"""Keys on the command line: a file or the URI of a key in a token, whose PIN is asked for at the terminal."""

from __future__ import annotations

import functools
import getpass
import os
import sys


def ask_pin() -> str:
    """The PIN from the environment, else from the person at the terminal, once; raises KeyTokenError."""
    from wavemesh.trust.tokens import PIN_FILE_VARIABLE, PIN_VARIABLE, pin_from_environment

    if os.environ.get(PIN_FILE_VARIABLE) or os.environ.get(PIN_VARIABLE) or not sys.stdin.isatty():
        return pin_from_environment()
    return _typed_pin()


@functools.cache
def _typed_pin() -> str:
    return getpass.getpass("PIN of the token: ")
