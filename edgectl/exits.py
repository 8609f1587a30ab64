"""Exit codes by error class, and what to type next.

A script tells errors apart by the exit code alone. A refusal by a server arrives as the error class of its gRPC status,
so a reason added to a server later still lands in the right code; the hint follows the reason, where one is known.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from wavemesh.errors import (
    BusyError,
    ConflictError,
    ForbiddenError,
    GateError,
    LinkDownError,
    LocalError,
    NotFoundError,
    PeerError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wavemesh.errors import WavemeshError


class Exit(enum.IntEnum):
    """Exit codes of edgectl."""

    OK = 0
    CHECK_FAILED = 1
    BAD_INPUT = 2
    NOT_FOUND = 3
    REFUSED = 4
    FORBIDDEN = 5
    UNREACHABLE = 6
    LOCAL_FAULT = 7

    @property
    def meaning(self) -> str:
        """One line for the reference page."""
        return _MEANING[self]


_MEANING = {
    Exit.OK: "Done, or queued; what is queued says so and names whom it waits for.",
    Exit.CHECK_FAILED: "The command ran and what it checked is not so (`fleet reconcile`), or you said no.",
    Exit.BAD_INPUT: "Bad flags, a bad file or bad data; nothing was done.",
    Exit.NOT_FOUND: "No such wave, device, release, store, intent, context or word.",
    Exit.REFUSED: "Refused by a gate or by the state things are in; the message names it.",
    Exit.FORBIDDEN: "Your certificate does not allow it.",
    Exit.UNREACHABLE: "The node asked cannot be reached, timed out or is shedding load; try again.",
    Exit.LOCAL_FAULT: "This machine's disk, configuration or environment, or a fault inside the node asked.",
}


class UsageError(PeerError):
    """What was typed, or a file that was named, cannot be used."""

    reason = "BAD_INPUT"


# wavemesh/runtime/status.py says it of a peer that failed; importing that module would import gRPC.
_REMOTE_FAULT = "REMOTE_FAULT"

_BY_CLASS: tuple[tuple[type[WavemeshError], Exit], ...] = (
    (NotFoundError, Exit.NOT_FOUND),
    (GateError, Exit.REFUSED),
    (ConflictError, Exit.REFUSED),
    (ForbiddenError, Exit.FORBIDDEN),
    (BusyError, Exit.UNREACHABLE),
    (LinkDownError, Exit.UNREACHABLE),
    (LocalError, Exit.LOCAL_FAULT),
    (PeerError, Exit.BAD_INPUT),
)

#: What to type next, by reason. A test holds that every reason is here or in WITHOUT_HINT.
_HINTS: Mapping[str, str] = {
    "ALREADY_USED": "if nobody else should have had it: `edgectl node revoke`; then `edgectl node token`",
    "BAD_CSR": "`edgectl ca request` or `edgectl node request` writes a good one",
    "BAD_ISSUE": "sign the request that this machine made: `edgectl ca sign`",
    "BAD_TOKEN": "copy the token whole, or make another: `edgectl node token`",
    "CERTIFICATE_CLOCK": "set the clock that is wrong, then do it again",
    "ISSUER_CLOCK": "set the super hub's clock, then do it again",
    "ISSUE_REFUSED": "`edgectl explain REASON` explains the reason it names",
    "KEY_MISSING": "install where the request was made: the key never left that machine",
    "NOT_ATTESTED": "join again on the node, with a new token and `--tcti`: its key is not in the TPM it is bound to",
    "TPM": "look at the TPM that is named: `tpm2_getcap properties-fixed`; the guide on identity says more",
    "NO_ADDRESS": "name the parent's join port: --address HOST:PORT",
    "NO_AUTHORITY": "`edgectl ca request --region` on the super hub, then `edgectl ca sign` and `ca install`",
    "REPLAYED": "ask again with a new request",
    "TOKEN_EXPIRED": "`edgectl node token` makes a new one",
    "TOKEN_UNKNOWN": "`edgectl node token` makes a new one",
    "WRONG_FLEET": "use this fleet's token and certificates",
    "WRONG_NODE": "join at the node's own parent: --address HOST:PORT",
    "ASK_CONTROL": "ask control: add --context control",
    "ASK_HUB": "ask a store's hub: add --context STORE; `edgectl context list` shows them",
    "BAD_CERTIFICATE": "`edgectl context show` names the identity used; have it issued anew",
    "BAD_CONTEXTS": "mend the file, or write it anew: `edgectl context set NAME --address A --node N --identity DIR`",
    "BAD_DIGEST": "`edgectl hub cache list` shows digests",
    "BAD_GATE": "`edgectl explain` lists the gates",
    "BAD_INPUT": "`--help` after the command shows what it takes",
    "BAD_INTENT": "`--help` after the command shows what it takes",
    "BAD_MANIFEST": "mend the draft: `edgectl release create --help`",
    "BAD_NODE_ID": "write it like spiffe://FLEET/region/R/store/S; `edgectl context list` shows examples",
    "BAD_POLICY": "`edgectl policy validate FILE` shows every problem, `edgectl policy schema` what is allowed",
    "BAD_REPOSITORY_FILE": "start from what is published: `edgectl release create`",
    "BAD_REQUEST": "`--help` after the command shows what it takes",
    "BAD_SCENARIO": "`edgectl lab demo --help` shows what can be made to fail",
    "BAD_VERSION": 'write a version like "3.8.2" or a constraint like ">=12.0.0 <13"',
    "BAD_WINDOW": 'write a window like "00:30-03:30"',
    "BUSY": "it sheds load; try again",
    "CLOCK_DOUBT": "control's clock cannot be right: set it, its log says more",
    "REVOCATIONS_FULL": "take back a whole store or region with --below: one entry instead of many",
    "REVOKED": "this certificate was taken back; enrol again",
    "CONFIG": "mend the file that is named",
    "CONFLICT": "see how it stands: `edgectl wave status`, `device show`, `intent show`",
    "CREDENTIALS": "`edgectl context show` names the identity used; set another: `edgectl context set`",
    "DATABASE": "look at the disk and the log of the node asked",
    "DATABASE_FAULT": "look at the disk and the log of the node asked",
    "DISK_FAULT": "look at the disk",
    "DISK_FULL": "make room, then do it again",
    "EMPTY_WAVE": "`edgectl cohort list` shows who is left, `edgectl wave list` which waves hold devices",
    "FORBIDDEN": "use an operator's identity: `edgectl context list` shows which one is used",
    "GATE": "`edgectl explain GATE` says what to do",
    "IMAGE": "name other images: `edgectl lab up --old FILE --new FILE`",
    "INTENT_APPLIED": "`edgectl intent show ID` says how far it got",
    "KEY_FILE": "name a key file in PEM with --key",
    "KEY_TOKEN": "PYKCS11LIB, WAVEMESH_PIN_FILE: docs/guide/key-ceremonies.md",
    "LAB_INJECTOR": "`edgectl lab status` shows what runs",
    "LAB_PROCESS": "`edgectl lab status` names the process and its log",
    "LAB_RAUC": "apt-get install rauc rauc-service dbus squashfs-tools; then as root",
    "LAB_SPACE": "make room, or choose another place with --dir",
    "LINK_DOWN": "is it up, and the node that `edgectl context list` says? in the lab: `edgectl lab status`",
    "LOCAL_FAULT": "look at this machine's disk and configuration",
    "MALFORMED_STATEMENT": "`--help` after the command shows what it takes",
    "MIXED_COHORT": "`edgectl cohort list` shows the names to choose from",
    "NOT_FOUND": "list what there is: `edgectl wave list`, `device list`, `release list`",
    "NO_CONTEXT": "`edgectl lab up` writes contexts, `edgectl context set` one; or set EDGECTL_CONFIG",
    "NO_IMAGE": "name images: `edgectl lab up --old FILE --new FILE`",
    "NO_LAB": "`edgectl lab up` makes one",
    "NO_WORD": "`edgectl explain` lists them all",
    "QUOTA_EXCEEDED": "`edgectl hub cache list` shows what is pinned and why",
    "REMOTE_FAULT": "look at the log of the node asked",
    "UNSAFE_CEREMONY": "`edgectl keys show` says whose the keys are; docs/guide/key-ceremonies.md",
    "WAN": "`edgectl lab status` shows the lab's stores",
}

#: Reasons that no command meets, and where they stay.
WITHOUT_HINT: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "ASK_FAILED",
            "BAD_TELEMETRY",
            "MALFORMED_FRAME",
            "RETIRED",
            "PROTOCOL_VERSION",
            "SESSION_VIOLATION",
            "SUPERSEDED",
            "TOO_MANY_RESOURCES",
        ),
        "between the nodes of a session; their logs have it",
    ),
    **dict.fromkeys(
        (
            "BAD_DELTA",
            "BAD_IMAGE",
            "BAD_PLAN",
            "BAD_TRANSFER",
            "BLOB_MISMATCH",
            "DELTA_BOUND",
            "FETCH_STOPPED",
            "ORIGIN_REFUSED",
            "ORIGIN_URL",
            "OUT_OF_RANGE",
            "TLS_FILES",
        ),
        "between caches; the hub retries and reports",
    ),
    **dict.fromkeys(
        ("BAD_CHUNK_INDEX", "BAD_CHUNK_PACK", "BAD_COMPRESSED", "CHILD_START", "TOO_MANY_CHUNKS"),
        "between caches; the hub takes another delivery",
    ),
    **dict.fromkeys(("BAD_KEPT_WORD", "BAD_REPORT"), "control's audit has it"),
    **dict.fromkeys(
        (
            "ALREADY_RUNNING",
            "BOARD",
            "BOOT_ENVIRONMENT",
            "DEVICE_STATE",
            "HAS_SLOTS",
            "NOTHING_TO_REHEARSE",
            "PACK",
            "RAUC",
            "RAUC_BOARD",
            "RAUC_GONE",
            "RUNNING_SLOT",
            "PACK",
            "SLOT",
            "WATCHDOG",
        ),
        "a device's own; its log has it",
    ),
    **dict.fromkeys(
        (
            "BAD_ROLE",
            "IDENTITY_SWITCH",
            "OTLP_RECEIVER",
            "BOOTSTRAP",
            "CA_FILES",
            "DATABASE_TOO_NEW",
            "LISTEN",
            "NOT_CONTROL",
            "TRUST_ROOT",
        ),
        "ends a node's start; the message says what to mend",
    ),
}


def exit_of_error(error: WavemeshError) -> Exit:
    """The exit code of an error, raised here or at the node asked."""
    if error.reason == _REMOTE_FAULT:
        return Exit.LOCAL_FAULT
    return exit_of_class(type(error))


def exit_of_class(error: type[WavemeshError]) -> Exit:
    """The exit code of a class of errors."""
    return next((code for kind, code in _BY_CLASS if issubclass(error, kind)), Exit.LOCAL_FAULT)


def hint_for(reason: str, gate: str = "") -> str:
    """What to type next; empty where the message says it all. ``gate`` is the one that refused, if one did."""
    if reason == "GATE" and gate:
        return f"`edgectl explain {gate}` says what to do"
    return _HINTS.get(reason, "")
