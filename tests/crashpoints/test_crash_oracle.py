"""The oracle: each rule is broken once on a device that is otherwise sound."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.crashpoints.oracle import Expected, Oracle, Published, sha256
from tests.crashpoints.oracle_formats import readers
from wavemesh.identity.ca import certificates_pem
from wavemesh.identity.keys import key_pem

if TYPE_CHECKING:
    from collections.abc import Callable

PUBLISHED = Published(
    {sha256(b"old"): "1", sha256(b"new"): "2"},
    {sha256(b"c1"): "11", sha256(b"c2"): "12"},
    frozenset({("1", "11"), ("2", "12")}),
)
UPDATED = Expected(((("2", "12"), (("UPDATED", ""),)),))
ORACLE = Oracle(PUBLISHED, *readers("simulated", 3))


@dataclass(frozen=True, slots=True)
class Told:
    """A word that reached the hub."""

    attempt: int = 1
    sequence: int = 1
    kind: str = "UPDATED"
    gate: str = ""
    firmware_version: str = "2"
    wave_id: str = "142"


def bootenv(active: str = "B", previous: Any = ("A", 1), trial: Any = None) -> bytes:
    def boot(slot: str, generation: int, **more: Any) -> dict[str, Any]:
        return {"slot": slot, "config_generation": generation, **more}

    content = {
        "format": 1,
        "sequence": 7,
        "active": boot(active, {"A": 1, "B": 2}[active]),
        "previous": previous and boot(*previous),
        "trial": trial and boot(*trial[:2], tries_left=trial[2], ended_by=None),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**content, "checksum": hashlib.sha256(text).hexdigest()}).encode()


def document(burned: int) -> bytes:
    text = json.dumps({"waves": {"142": {"burned": burned}}, "progress": {"return_to": None}})
    return json.dumps({"document": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()


def sound() -> dict[str, bytes | None]:
    return {
        "slots/A.img": b"old",
        "slots/B.img": b"new",
        "slots/bootenv.json": bootenv(),
        "state/config/1/bundle": b"c1",
        "state/config/1/label.json": json.dumps({"sha256": sha256(b"c1")}).encode(),
        "state/config/2/bundle": b"c2",
        "state/config/2/label.json": json.dumps({"sha256": sha256(b"c2")}).encode(),
        "state/state.json": document(1),
        "state/state.json.prev": document(1),
        "slots/A.json": label(b"old"),
        "slots/B.json": label(b"new"),
        **dict(zip(("identity/node.key", "identity/node.crt"), pair(1), strict=True)),
    }


def label(content: bytes) -> bytes:
    return json.dumps({"firmware": {"sha256": sha256(content)}}).encode()


@cache
def pair(number: int) -> tuple[bytes, bytes]:
    """A key and a certificate for it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"till {number}")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(number).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return key_pem(key), certificates_pem([builder.sign(key, hashes.SHA256())])


def test_a_sound_device_has_no_problems() -> None:
    assert ORACLE.judge_cut(sound(), 1, 1) == []
    assert ORACLE.judge_rest(sound(), [Told()], "142", UPDATED) == []


BREAKS: list[tuple[str, bytes | None, str]] = [
    ("slots/B.img", b"torn", "active: slot B does not hold"),
    ("slots/A.img", b"torn", "previous: slot A does not hold"),
    ("slots/bootenv.json", b"{", "boot environment cannot be read"),
    ("slots/bootenv.json", bootenv().replace(b'"B"', b'"A"'), "boot environment cannot be read"),
    ("state/config/2/bundle", b"c?", "active: config generation 2 is not whole"),
    ("state/config/2/label.json", None, "active: config generation 2 is not whole"),
    ("state/config/2/bundle", b"c1", "active: config generation 2 is not whole"),
    ("state/state.json", b"{", "state/state.json cannot be read"),
    ("state/state.json.prev", document(1)[:-4], "state/state.json.prev cannot be read"),
    ("identity/node.key", None, "identity has no pair"),
    ("identity/node.key", pair(2)[0], "do not belong together"),
    ("identity/node.crt", b"-----BEGIN CERT", "do not belong together, or cannot be read"),
    ("identity/current", b"pair-1\n", "identity/pair-1 has no pair"),
    ("slots/B.json", label(b"old"), "slot B is labelled, and holds something else"),
    ("slots/bootenv.json", bootenv("A", None, ("B", 1, 1)), "firmware 2 with config 11, which do not belong together"),
]


@pytest.mark.parametrize(("name", "content", "problem"), BREAKS)
def test_what_a_cut_must_not_leave(name: str, content: bytes | None, problem: str) -> None:
    image = sound()
    image[name] = content
    if content is None:
        del image[name]
    assert any(problem in one for one in ORACLE.judge_cut(image, 1, 1)), ORACLE.judge_cut(image, 1, 1)


def test_no_trial_without_a_burned_attempt() -> None:
    image = sound()
    assert ORACLE.judge_cut(image, 2, 1) == ["2 trials were armed or booted, but only 1 attempts are burned"]
    image["slots/bootenv.json"] = bootenv("A", None, ("B", 2, 1))
    assert ORACLE.judge_cut(image, 1, 1) == ["2 trials were armed or booted, but only 1 attempts are burned"]
    assert ORACLE.judge_cut(image, 4, 4) == []


POWER = Told(kind="INCONCLUSIVE", gate="power-loss")
WORDS: list[tuple[list[Told], str]] = [
    ([], "wanted"),
    ([Told(kind="ROLLED_BACK", gate="operator", firmware_version="1")], "wanted"),
    ([Told(), Told(kind="ROLLED_BACK", gate="operator")], "said ('UPDATED', '') and then ('ROLLED_BACK', 'operator')"),
    ([Told(gate="disk")], "UPDATED with gate 'disk'"),
    ([replace(POWER, gate="")], "INCONCLUSIVE with gate ''"),
    ([POWER, Told(sequence=2)], "attempt 1 ended more than once"),
    ([replace(POWER, sequence=2), Told(attempt=2)], "do not grow"),
    ([Told(firmware_version="1")], "the last word says 1, 2 runs"),
]


@pytest.mark.parametrize(("words", "problem"), WORDS)
def test_what_may_not_reach_the_hub(words: list[Told], problem: str) -> None:
    problems = ORACLE.judge_rest(sound(), words, "142", UPDATED)
    assert any(problem in one for one in problems), problems


def test_an_attempt_that_the_power_ended_is_excused() -> None:
    """Reports may repeat by number."""
    words = [POWER, POWER, Told(attempt=2, sequence=2), Told(attempt=2, sequence=2)]
    assert ORACLE.judge_rest(sound(), words, "142", UPDATED) == []


@pytest.mark.parametrize("change", [lambda image: image.update({"slots/bootenv.json": bootenv(trial=("A", 1, 0))})])
def test_at_rest_nothing_is_on_trial(change: Callable[[dict[str, bytes | None]], None]) -> None:
    image = sound()
    change(image)
    assert ORACLE.judge_rest(image, [Told()], "142", UPDATED) == ["at rest, but ('A', 1) is on trial"]


@pytest.mark.parametrize("name", ["oracle.py", "oracle_formats.py"])
def test_the_oracle_knows_no_agent(name: str) -> None:
    lines = Path(__file__).with_name(name).read_text().splitlines()
    imports = {line.split()[1] for line in lines if line.strip().startswith(("import ", "from "))}
    others = imports - {"tests.crashpoints.oracle"}
    assert {one.split(".")[0] for one in others} <= {*sys.stdlib_module_names, "__future__", "cryptography"}
