"""S3-compatible object stores: where blobs lie in a bucket, and what it takes to be let in.

A blob is the object ``PREFIX/SHA256`` of its bucket. Two sides use this: control, to sign URLs that read one object for
a time, and whoever publishes a release, to put objects there. Hubs never do: they have URLs and no credentials.

An *access file* is TOML that its owner alone can read::

    access_key_id = "AKIA..."
    secret_access_key = "..."
    session_token = ""                          # of temporary credentials
    endpoint = "https://s3.example.net"         # absent: Amazon's, of the region
    region = "us-east-2"
    addressing = "path"                         # or "host": BUCKET.s3.example.net
    ca_file = "origin-ca.crt"                   # trusted besides the system's, PEM
"""

from __future__ import annotations

import enum
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  # the configuration reads the fields' types
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wavemesh.runtime.config import ConfigError, load_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from obstore.store import ClientConfig, S3Config, S3Store

SCHEME = "s3://"
DEFAULT_REGION = "us-east-1"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*")
"""Characters that S3's guide calls safe: no client and no proxy writes them in another way."""
_OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Addressing(enum.Enum):
    """Where the bucket stands in a URL."""

    PATH = "path"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket, and the prefix under which blobs lie in it; an empty one is the bucket itself."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Place:
        """Read ``s3://BUCKET/PREFIX``; raises ValueError with a sentence."""
        bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        prefix = prefix.rstrip("/")
        if not url.startswith(SCHEME) or not _BUCKET.fullmatch(bucket) or (prefix and not _PREFIX.fullmatch(prefix)):
            msg = f"{url[:200]!r} is not s3://BUCKET/PREFIX of lower-case letters, digits, '-' and '.'"
            raise ValueError(msg)
        return cls(bucket, prefix)

    def __str__(self) -> str:
        """As it was written."""
        return f"{SCHEME}{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    def key(self, sha256: str) -> str:
        """The object's key, as the store has it."""
        return f"{self.prefix}/{sha256}" if self.prefix else sha256


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials, and the store they are for."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    endpoint: str = ""
    region: str = DEFAULT_REGION
    addressing: Addressing = Addressing.PATH
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what no store is reached by."""
        if not self.access_key_id or not self.secret_access_key:
            msg = "access_key_id and secret_access_key must not be empty"
            raise ValueError(msg)
        if self.endpoint:
            check_endpoint(self.endpoint)


def check_endpoint(url: str) -> None:
    """Raise ValueError unless it is ``https://HOST``, or ``http://`` and this machine."""
    parts = urlsplit(url)
    is_local = parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost", "::1"}
    if not (parts.scheme == "https" or is_local) or not parts.hostname or parts.path not in {"", "/"} or parts.query:
        msg = f"endpoint must be https://HOST or https://HOST:PORT, got {url[:200]!r}"
        raise ValueError(msg)


def load_access(path: Path) -> Access:
    """Read an access file; raises ConfigError, also for one that others than its owner can read."""
    access = load_config(path, Access)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(path, "", error.strerror or str(error)) from error
    if mode & _OPEN_TO_OTHERS:
        problem = f"others can read these credentials: chmod 600 {path}"
        raise ConfigError(path, "", problem)
    if access.ca_file is not None and not access.ca_file.is_file():
        raise ConfigError(path, "ca_file", f"no such file: {access.ca_file}")
    return access


def access_of_environment(variables: Mapping[str, str]) -> Access:
    """What Amazon's own tools go by: AWS_ACCESS_KEY_ID and the like; raises ValueError when it is not there."""
    key_id, secret = variables.get("AWS_ACCESS_KEY_ID", ""), variables.get("AWS_SECRET_ACCESS_KEY", "")
    if not key_id or not secret:
        msg = "no credentials: name an access file (--origin-access FILE), or set AWS_ACCESS_KEY_ID and "
        raise ValueError(msg + "AWS_SECRET_ACCESS_KEY")
    return Access(
        key_id,
        secret,
        session_token=variables.get("AWS_SESSION_TOKEN", ""),
        endpoint=variables.get("AWS_ENDPOINT_URL_S3", "") or variables.get("AWS_ENDPOINT_URL", ""),
        region=variables.get("AWS_REGION", "") or variables.get("AWS_DEFAULT_REGION", "") or DEFAULT_REGION,
    )


def open_store(place: Place, access: Access) -> S3Store:
    """The store, its objects named from the place's prefix on. Nothing is asked of it yet. Raises OSError."""
    from obstore.store import S3Store  # 20 MB of code that only an S3 origin needs

    client: ClientConfig = {"allow_http": access.endpoint.startswith("http://"), "timeout": "300s"}
    if access.ca_file is not None:
        client["root_certificate"] = access.ca_file.read_bytes()
    config: S3Config = {
        "access_key_id": access.access_key_id,
        "secret_access_key": access.secret_access_key,
        "region": access.region,
        "virtual_hosted_style_request": access.addressing is Addressing.HOST,
    }
    if access.session_token:
        config["session_token"] = access.session_token
    if access.endpoint:
        config["endpoint"] = access.endpoint.rstrip("/")
    return S3Store(place.bucket, prefix=place.prefix or None, config=config, client_options=client)
