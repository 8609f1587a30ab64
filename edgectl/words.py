"""Every word that edgectl prints for a state, and what it means: one place to ask, ``edgectl explain WORD``.

Gates come from wavemesh/policy/gates.py and error reasons from the error classes; the others are here. A test keeps
each list equal to the enum of the contract that it explains.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgectl.exits import Exit, exit_of_class, hint_for
from wavemesh.errors import LocalError, PeerError, WavemeshError
from wavemesh.policy.gates import BadGateError, Gate, Lasting, parse_gate
from wavemesh.policy.sources import SOURCES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGES = ("wavemesh", "control", "superhub", "storehub", "device", "edgectl", "lab")


@dataclass(frozen=True, slots=True)
class Word:
    """A word, what kind of thing it is, what it means, and what to do about it; ``more`` is further facts by name."""

    word: str
    kind: str
    meaning: str
    remedy: str = ""
    more: tuple[tuple[str, str], ...] = ()


OUTCOMES: Mapping[str, tuple[str, str]] = {
    "pending": ("Nothing is known yet of this device in this wave.", "nothing; `edgectl device show --id D` says more"),
    "refused": ("A gate refused before the swap; transient gates are checked again.", "explain its gate"),
    "updated": ("Committed: the new firmware runs and its health was good.", ""),
    "rolled_back": ("Back on the previous slot; counts against the release.", "explain its gate"),
    "failed": ("Armed, and neither committed nor rolled back in time; counts against it.", "look at the device"),
    "silent": ("Holds a lease, past its time, while others of its store are heard.", "look at the device"),
    "unknown": ("Cannot be heard, and nobody there can say why: the store is dark.", "bring the store back"),
    "inconclusive": ("Nothing was learnt of the release (power, lease, authority).", "nothing; it is tried again"),
}
WAVE_STATES: Mapping[str, tuple[str, str]] = {
    "planned": ("Hubs may prefetch; nothing swaps.", "`edgectl wave start --wave W`"),
    "running": ("Devices swap, as policy and permits allow.", "`edgectl wave watch --wave W`"),
    "paused": ("No new lease, no ARM; trials finish.", "`edgectl wave resume --wave W` lifts your own pause"),
    "halted": ("For ever: trials roll back, unused permits are void.", "`edgectl wave plan` a new one"),
    "closed": ("Nothing is pending any more, or it expired; control has said its last word.", ""),
}
DISPOSITIONS: Mapping[str, tuple[str, str]] = {
    "applied": ("Done here; who else must hear of it is in `waits for`.", ""),
    "queued": ("Durable here and waits for somebody, at the place shown.", "`edgectl intent cancel ID` takes it back"),
    "refused": ("Refused for good.", "`edgectl intent show ID` says why"),
    "cancelled": ("Taken back before anybody acted on it; its id is used up.", "give a new intent"),
}
DEVICE_STATES: Mapping[str, str] = {
    "idle": "Nothing to do.",
    "preflight": "Gates are checked before anything is written.",
    "staging": "The inactive slot is being written.",
    "paused": "Writing is held up by a gate.",
    "verified": "The inactive slot is verified; a lease is wanted.",
    "armed": "Try-once is set; the reboot follows.",
    "trial": "The new slot runs on trial.",
    "committing": "Health is good; the boot environment is being written.",
    "committed": "The new slot is the one that boots.",
    "rolling_back": "Going back to the previous slot.",
    "rolled_back": "Back on the previous slot.",
    "awaiting_signoff": "Supervised: the trial failed; waits for `edgectl device approve-rollback`.",
    "refused": "A gate refused.",
}
DELIVERY_STATES: Mapping[str, tuple[str, str]] = {
    "waiting": ("The super hub makes what the store will read: cheaper than not to wait.", ""),
    "reading": ("Being read and rebuilt, or until a window opens or the link is back.", ""),
    "done": ("The blob is whole and verified at the store.", ""),
    "refused": ("Nothing that is offered fits the wave's byte budget.", "raise `delivery.byteBudget`, or wait"),
}
PERMIT_STATES: Mapping[str, str] = {
    "outstanding": "Its device may still swap: it counts as exposure.",
    "spent": "Its device has a final outcome.",
    "written_off": "Bound to an earlier incarnation of the hub, and counted as spent.",
    "void": "Its wave was halted or has closed.",
}
DISCREPANCIES: Mapping[str, tuple[str, str]] = {
    "hub_unheard": ("No session with the hub, and no word of it for a day.", "bring its WAN or the hub back"),
    "device_unheard": ("Its hub is there and has not heard it for a day.", "look at the device, or take it out of use"),
    "order_undelivered": ("The hub is there and has not acknowledged the latest order.", "look at the hub's log"),
    "permit_unspent": ("The device is there and has had its permit for a day.", "what it reports says why"),
    "snapshot_missing": ("A hub with a new incarnation has not said what it knows.", "look at the hub's log"),
    "ledger_differs": ("Hub and control hold other outcomes.", "compare `edgectl ledger show` at both"),
    "firmware_differs": ("The device runs other firmware than it signed last.", "`edgectl device show --id D`"),
    "certificate_missing": ("Its permit waits for a renewal that does not come.", "`edgectl node list --below PATH`"),
    "wave_overdue": ("The wave should have been closed.", "look at control's log"),
}
TERMS: Mapping[str, str] = {
    "exposure": "Devices named in outstanding permits: what a halt that cannot cross the WAN exposes at most.",
    "permit": "Control's signed word that one device may try one wave, so many times.",
    "lease": "A hub's word that a device may swap now; at most maxConcurrentSwaps are out.",
    "floor": "Devices of an availability group that stay up; `edgectl wave status` says who waits for it, and why.",
    "generation": "Orders and permits are numbered; the highest is in force.",
    "incarnation": "One life of a hub's disk; a restored or cloned one is another.",
    "epoch": "Hold lists are numbered by it; an older one is never believed again.",
}


def explain(word: str) -> list[Word]:
    """Everything of that name; empty when nothing is."""
    plain = word.strip().lower().replace("-", "_").replace(" ", "_")
    found = [one for one in catalogue() if one.word.lower().replace("-", "_") == plain]
    if ":" in word:
        try:
            found = [_gate(parse_gate(word.strip()).gate, word.strip())]
        except BadGateError:
            return []
    return found or [one for one in reasons() if one.word == word.strip().upper().replace("-", "_")]


def catalogue() -> Iterator[Word]:
    """All words but error reasons, which are many and slow to collect."""
    for gate in Gate:
        yield _gate(gate, gate.value)
    for word, (meaning, remedy) in OUTCOMES.items():
        yield Word(word, "outcome", meaning, remedy)
    for word, (meaning, remedy) in WAVE_STATES.items():
        yield Word(word, "wave state", meaning, remedy)
    for word, (meaning, remedy) in DISPOSITIONS.items():
        yield Word(word, "intent", meaning, remedy)
    for word, (meaning, remedy) in DELIVERY_STATES.items():
        yield Word(word, "delivery", meaning, remedy)
    for word, (meaning, remedy) in DISCREPANCIES.items():
        yield Word(word, "discrepancy", meaning, remedy)
    for kind, words in (("device state", DEVICE_STATES), ("permit", PERMIT_STATES), ("term", TERMS)):
        for word, meaning in words.items():
            yield Word(word, kind, meaning)


def reasons() -> list[Word]:
    """Every error reason: what it means, what to type next, and the exit code."""
    return [
        Word(
            reason,
            "error",
            meaning,
            hint_for(reason),
            (("fault", fault), ("exit", _exit_text(kind, reason))),
        )
        for reason, (fault, meaning, kind) in sorted(error_meanings().items())
    ]


def error_meanings() -> dict[str, tuple[str, str, type[WavemeshError]]]:
    """By reason: whose fault it is ("peer" or "local"), what its classes say of themselves, and one of the classes."""
    _import_everything()
    found: dict[str, tuple[str, list[str], type[WavemeshError]]] = {}
    for error in _family(WavemeshError):
        if error is WavemeshError or error.__module__.split(".")[0] not in PACKAGES:
            continue
        fault = "peer" if issubclass(error, PeerError) else "local" if issubclass(error, LocalError) else "either"
        meaning = " ".join((error.__doc__ or "").split("\n\n")[0].split())
        _, said, _ = found.setdefault(error.reason, (fault, [], error))
        if meaning not in said:
            said.append(meaning)
    return {reason: (fault, " ".join(said), kind) for reason, (fault, said, kind) in found.items()}


def _import_everything() -> None:
    # Not the stubs, which have no errors, nor what runs when imported: programs, and migrations for Alembic alone.
    for package in PACKAGES:
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            if not {"v1", "migrations", "__main__"} & set(module.name.split(".")):
                importlib.import_module(module.name)


def _family(root: type[WavemeshError]) -> list[type[WavemeshError]]:
    found = [root]
    for child in root.__subclasses__():
        found.extend(_family(child))
    return sorted(set(found), key=lambda error: (error.reason, error.__module__, error.__qualname__))


def _exit_text(kind: type[WavemeshError], reason: str) -> str:
    code = Exit.LOCAL_FAULT if reason == "REMOTE_FAULT" else exit_of_class(kind)
    return f"{code.value} ({code.name.lower().replace('_', ' ')})"


def _gate(gate: Gate, word: str) -> Word:
    notes = gate.notes
    lasting = "stands for the wave" if notes.lasting is Lasting.FINAL else "checked again within the wave"
    named = ":<name>" if gate.is_named and ":" not in word else ""
    stages = ", ".join(stage.value for stage in notes.stages)
    facts = [("checked", stages), ("refusal", lasting)]
    if gate in SOURCES:
        source = SOURCES[gate]
        facts += [("a device looks at", source.looks_at), ("wants", source.default)]
        facts += [("cannot tell", source.cannot_tell.value)]
    return Word(word + named, "gate", notes.meaning, notes.remedy, tuple(facts))
