"""A word of control as a hub holds it, shown to control because what it offers is older (ADR 20). Pure."""

from __future__ import annotations

from dataclasses import dataclass

MAX_KEPT_BYTES = 192 * 1024
"""Of a word that is shown to control again; larger ones stay where they are."""

KEPT_KIND = "kept"
"""Kind of the report that carries one."""


@dataclass(frozen=True, slots=True)
class KeptReport:
    """Body of a report of kind "kept": type, name and content of a resource. Control's signature is in the content."""

    type: str
    name: str
    content: bytes
