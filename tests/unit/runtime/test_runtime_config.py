"""Strict configuration: everything wrong is refused by file, key and reason."""

import enum
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from wavemesh.runtime.config import ConfigError, bounded, load_config, parse_config


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Listen:
    address: str
    port: int = field(default=0, metadata=bounded(0, 65535))


@dataclass(frozen=True, slots=True)
class Config:
    listen: Listen
    ratio: float = 0.5
    mode: Mode = Mode.FAST
    names: tuple[str, ...] = ()
    peers: dict[str, Listen] = field(default_factory=dict)
    data: Path = Path("state")
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit == 13:
            msg = "13 brings bad luck"
            raise ValueError(msg)


def parse(text: str) -> Config:
    return parse_config(text.encode(), Path("/etc/hub/config.toml"), Config)


def test_all_types() -> None:
    config = parse(
        'ratio = 1\nmode = "slow"\nnames = ["a", "b"]\ndata = "x/y"\nlimit = 3\n'
        '[listen]\naddress = "10.0.0.1"\nport = 1\n[peers.p]\naddress = "h"\n'
    )
    assert config == Config(
        Listen("10.0.0.1", 1), 1.0, Mode.SLOW, ("a", "b"), {"p": Listen("h")}, Path("/etc/hub/x/y"), 3
    )


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("lisen = 1", "lisen", "unknown key"),
        ("", "listen", "missing"),
        ("listen = 3", "listen", "expected a table"),
        ("[listen]\naddress = 3", "listen.address", "expected a string"),
        ('[listen]\naddress = "h"\nport = true', "listen.port", "expected an integer"),
        ('[listen]\naddress = "h"\nport = 65536', "listen.port", "expected 0 to 65535"),
        ('ratio = "x"\n[listen]\naddress = "h"', "ratio", "expected a float"),
        ('names = ["a", 1]\n[listen]\naddress = "h"', "names[1]", "expected a string"),
        ('mode = "odd"\n[listen]\naddress = "h"', "mode", "expected one of 'fast', 'slow'"),
        ('limit = 13\n[listen]\naddress = "h"', "", "bad luck"),
        ("not toml", "", "not TOML"),
    ],
)
def test_refusals_name_file_key_and_reason(text: str, key: str, problem: str) -> None:
    """Q2."""
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert error.value.details["key"] == key
    assert problem in error.value.details["problem"]
    assert "/etc/hub/config.toml" in str(error.value)


def test_missing_and_oversized_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*first-fleet"):
        load_config(tmp_path / "config.toml", Config)
    (tmp_path / "config.toml").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="larger"):
        load_config(tmp_path / "config.toml", Config)
