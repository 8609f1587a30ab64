"""What must hold of a device, judged from bytes alone. Imports nothing of the agent.

At each crash point (``judge_cut``): the boot environment is whole; what it calls active, previous, and on trial with a
try left is to the byte a release that was published, with a config generation whose bundle is whole, and the two belong
together; a state document that is there can be read; no trial was armed or booted without a burned attempt, but for a
way back after a commit; a slot with a label holds what the label says; the pair of the identity that
is in use is one. At rest (``judge_rest``) also: nothing is on trial, what runs and what reached the hub are of one
of the scenario's ends, the same (attempt, sequence) never says two things, no attempt ends twice but where an operator
rolls back after the commit, and each word but UPDATED names one gate.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Pair = tuple[str, str]
Said = tuple[str, str]
Content = "Mapping[str, bytes | None]"


class Heard(Protocol):
    """A word as it reached the hub."""

    @property
    def wave_id(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def gate(self) -> str: ...
    @property
    def firmware_version(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Expected:
    """The ends of a scenario: what is active (firmware and config version), and the last words of the wave, in order.
    ``may_be_on_trial``: the device may rest on a trial that nobody ends.
    """

    ends: tuple[tuple[Pair, tuple[Said, ...]], ...]
    may_be_on_trial: bool = False


@dataclass(frozen=True, slots=True)
class BootWords:
    """A boot environment as its format says: (slot, config generation) of each boot; ``tries_left`` of the trial."""

    active: tuple[str, int]
    previous: tuple[str, int] | None
    trial: tuple[str, int] | None
    tries_left: int


@dataclass(frozen=True, slots=True)
class Published:
    """What was published, by SHA-256: versions of firmware, versions of config bundles, and which belong together."""

    firmware: Mapping[str, str]
    configs: Mapping[str, str]
    pairs: frozenset[Pair]


class Oracle:
    """Judges one device; ``read_boot`` and ``slot_bytes`` know its back-end's formats."""

    def __init__(
        self,
        published: Published,
        read_boot: Callable[[Mapping[str, bytes | None]], BootWords],
        slot_bytes: Callable[[Mapping[str, bytes | None], str], bytes],
    ) -> None:
        self._published = published
        self._read_boot = read_boot
        self._slot_bytes = slot_bytes

    def judge_cut(self, image: Mapping[str, bytes | None], trial_boots: int, boots_per_attempt: int) -> list[str]:
        """What is wrong with what a power cut left."""
        try:
            words = self._read_boot(image)
        except (ValueError, KeyError, TypeError) as error:
            return [f"the boot environment cannot be read: {error!r}"]
        problems = [*self._judge_boot(image, "active", words.active)]
        if words.previous is not None:
            problems += self._judge_boot(image, "previous", words.previous)
        if words.trial is not None and words.tries_left > 0:
            problems += self._judge_boot(image, "trial", words.trial)
        documents, unreadable = _documents(image)
        problems += [f"{name} cannot be read" for name in unreadable]
        burned = max((sum(one["burned"] for one in document["waves"].values()) for document in documents), default=0)
        is_armed = words.trial is not None and words.tries_left > 0 and not is_way_back(image, words)
        tried = trial_boots + (is_armed and boots_per_attempt == 1)
        if burned * boots_per_attempt < tried:
            problems.append(f"{tried} trials were armed or booted, but only {burned} attempts are burned")
        return [*problems, *self._label_problems(image), *_identity_problems(image)]

    def judge_rest(
        self, image: Mapping[str, bytes | None], words: Sequence[Heard], wave_id: str, expected: Expected
    ) -> list[str]:
        """What is wrong with a device that rests; beyond ``judge_cut``."""
        boot = self._read_boot(image)
        is_wrong = boot.trial is not None and not expected.may_be_on_trial
        problems = [f"at rest, but {boot.trial} is on trial"] if is_wrong else []
        pair = self._pair(image, boot.active)
        ours = [word for word in words if word.wave_id == wave_id]
        problems += _word_problems(ours)
        last = _last_words(ours)
        if (pair, last) not in expected.ends:
            wanted = " or ".join(f"{one} after {list(said)}" for one, said in expected.ends)
            problems.append(f"{pair} runs after {list(last)}, wanted {wanted}")
        if ours and ours[-1].kind == "UPDATED" and ours[-1].firmware_version != pair[0]:
            problems.append(f"the last word says {ours[-1].firmware_version}, {pair[0]} runs")
        return problems

    def _label_problems(self, image: Mapping[str, bytes | None]) -> Iterator[str]:
        """A slot that says what it holds was verified: it must hold just that."""
        for slot in ("A", "B"):
            label = image.get(f"slots/{slot}.json")
            if label and json.loads(label)["firmware"]["sha256"] != sha256(self._slot_bytes(image, slot)):
                yield f"slot {slot} is labelled, and holds something else"

    def _judge_boot(self, image: Mapping[str, bytes | None], role: str, boot: tuple[str, int]) -> Iterator[str]:
        firmware, config = self._pair(image, boot)
        if not firmware:
            yield f"{role}: slot {boot[0]} does not hold what was published"
        if not config:
            yield f"{role}: config generation {boot[1]} is not whole"
        if firmware and config and (firmware, config) not in self._published.pairs:
            yield f"{role}: firmware {firmware} with config {config}, which do not belong together"

    def _pair(self, image: Mapping[str, bytes | None], boot: tuple[str, int]) -> Pair:
        slot, generation = boot
        bundle = image.get(f"state/config/{generation}/bundle")
        label = image.get(f"state/config/{generation}/label.json")
        config = self._published.configs.get(sha256(bundle), "")
        if label is None or json.loads(label)["sha256"] != sha256(bundle):
            config = ""
        return self._published.firmware.get(sha256(self._slot_bytes(image, slot)), ""), config


def is_way_back(image: Mapping[str, bytes | None], words: BootWords) -> bool:
    """Whether what is on trial is a rollback after a commit, which takes no attempt: to the previous boot, or to the
    packed one that the agent says it returns to.
    """
    returns = [document["progress"].get("return_to") for document in _documents(image)[0]]
    return words.trial in {words.previous, *((one["slot"], one["config_generation"]) for one in returns if one)}


def _documents(image: Mapping[str, bytes | None]) -> tuple[list[dict[str, Any]], list[str]]:
    """The readable state documents, and the names of the others."""
    readable, unreadable = [], []
    for name in ("state/state.json", "state/state.json.prev"):
        content = image.get(name)
        if content is None:
            continue
        try:
            outer = json.loads(content)
            if sha256(outer["document"].encode()) != outer["sha256"]:
                raise ValueError
            readable.append(json.loads(outer["document"]))
        except (ValueError, KeyError, TypeError):
            unreadable.append(name)
    return readable, unreadable


def _identity_problems(image: Mapping[str, bytes | None]) -> Iterator[str]:
    """The pair that is in use: there, readable, and one of a kind."""
    current = image.get("identity/current")
    where = "identity" if current is None else f"identity/{current.decode().strip()}"
    key, certificate = image.get(f"{where}/node.key"), image.get(f"{where}/node.crt")
    if key is None or certificate is None:
        yield f"{where} has no pair"
    elif not _is_pair(key, certificate):
        yield f"{where} has a key and a certificate that do not belong together, or cannot be read"


@lru_cache(maxsize=1024)
def _is_pair(key: bytes, certificate: bytes) -> bool:
    try:
        public_key = load_pem_private_key(key, None).public_key()
        return load_pem_x509_certificate(certificate).public_key() == public_key
    except ValueError:
        return False


def _word_problems(words: Sequence[Heard]) -> Iterator[str]:
    told: dict[tuple[int, int], Said] = {}
    for word in words:
        number, said = (word.attempt, word.sequence), (word.kind, word.gate)
        if told.setdefault(number, said) != said:
            yield f"word {number} said {told[number]} and then {said}"
        if (word.kind == "UPDATED") == bool(word.gate):
            yield f"{word.kind} with gate {word.gate!r}"
    sequences = [sequence for _, sequence in sorted(told)]
    if sequences != sorted(set(sequences)):
        yield f"numbers of words do not grow with the attempts: {sorted(told)}"
    for attempt in {attempt for attempt, _ in told}:
        ends = [said for (of, _), said in sorted(told.items()) if of == attempt]
        if len(ends) > 1 and ends != [("UPDATED", ""), ("ROLLED_BACK", "operator")]:
            yield f"attempt {attempt} ended more than once: {ends}"


def _last_words(words: Sequence[Heard]) -> tuple[Said, ...]:
    """Each word once, in the order of their numbers, without attempts that a power cut ended."""
    told = {(word.attempt, word.sequence): (word.kind, word.gate) for word in words}
    return tuple(said for _, said in sorted(told.items()) if said != ("INCONCLUSIVE", "power-loss"))


def sha256(content: bytes | None) -> str:
    """Lower-case hex; of nothing for what is not there."""
    return hashlib.sha256(content or b"").hexdigest()
