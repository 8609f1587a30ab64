"""Pages of the reference manual that follow from code: policy keys and gates, as Markdown. Pure text.

``python -m tools.reference`` writes them to ``docs/reference``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from wavemesh.policy.gates import INCONCLUSIVE_GATES, Gate
from wavemesh.policy.schema import DOCUMENT, RULES, json_schema
from wavemesh.policy.sources import SOURCES, Source
from wavemesh.policy.values import REQUIRED, Key, Listing, Section

if TYPE_CHECKING:
    from collections.abc import Iterator

_POLICY_HEAD = """\
# policy.yaml

<!-- Written by `make reference` from wavemesh/policy/schema.py; do not edit. -->

The rules of a rollout. Check a file with `edgectl policy validate FILE`; `edgectl policy schema` prints the
[JSON Schema](policy.schema.json) for editors. Everything wrong with a file is reported at once, with file, line,
column, key and reason. What control signs is the same document as canonical JSON with every default filled in; its
SHA-256 is the policy's name.

```yaml
targets:
  segment: "retail-us-midwest"
  percentage: 5            # progressive increment per wave
  hubBudget: 2             # hubs per wave
guardrails:
  minBattery: 40           # percent
  requireDualPartition: true
  rollbackOnHealthLossMins: 5
  offlineRollbackAllowed: true
artifacts:
  firmware: "firmware-v3.8.2.img"
  config: "pos-app-12.4.1.tar.gz"
  signature: "firmware-v3.8.2.sig"
verification:
  bootProbe: "systemd-analyze verify /boot/inactive"
  peripheralChecks:
    - "lsusb | grep scanner"
  healthPingEndpoint: "https://control-plane/health"
```

YAML is narrowed to what a settings file needs: UTF-8, at most 64 KiB, one document, no anchors, aliases or tags, no key
twice. An unquoted value is a number as in JSON, `true`, `false`, `null` or else a text: `yes` and `00:30-03:30` are
texts, and `yes` is therefore no truth value.
"""

_GATES_HEAD = """\
# Gates

<!-- Written by `make reference` from wavemesh/policy/gates.py; do not edit. -->

A gate is the one reason why a device was refused an update or rolled it back. `peripheral` and `vendor` carry the name
of the check that failed, `peripheral:scanner`: the last word of the check's command (a second check of that name is
`scanner-2`). A refusal comes before the reboot; what is transient is checked again within the wave, what is final is
not. The last column says whether an outcome by this gate may be inconclusive: outside the rollback ratio, and retried.

| gate | meaning | what to do | checked at | a refusal is | inconclusive |
|---|---|---|---|---|---|
"""


_SOURCES_HEAD = """
## On a device

Where a device looks, and what it wants where policy and release say nothing else. A gate never breaks the agent: it
passes, fails with what it observed and what is required, or *cannot tell*, because its source is there and hangs, is
unreadable or says nonsense. What is not there at all (no battery, no sensor, no inhibitor) says nothing and passes.
`edgectl ledger show`, `ledger entry` and `device show` have both values; the outcome that the device signs has them
too, with both slots, the boot and the digest of the log.

Battery and temperature are watched while bytes are written as well. Trouble pauses the write; it goes on when three
looks in a row were 5 % or 5 °C within the limit, and is refused by the gate after `timing.pause_bound_s`.

| gate | looks at | default | when it cannot tell |
|---|---|---|---|
"""


def policy_page() -> str:
    """The page on ``policy.yaml``."""
    parts = [_POLICY_HEAD]
    for key in DOCUMENT.keys:
        need = "required" if key.default is REQUIRED else "optional"
        parts.append(f"\n## {key.name}\n\n{key.meaning} The section is {need}.\n")
        parts.append("\n| key | value | default | meaning |\n|---|---|---|---|\n")
        parts.extend(_key_rows(key, ""))
    parts.append("\n## Between keys\n\n")
    parts.extend(f"* {rule.meaning}\n" for rule in RULES)
    return "".join(parts)


def gates_page() -> str:
    """The page on gates."""
    rows = "".join(_gate_row(gate) for gate in Gate)
    sources = "".join(_source_row(gate, source) for gate, source in SOURCES.items())
    return _GATES_HEAD + rows + _SOURCES_HEAD + sources


def schema_file() -> str:
    """The published JSON Schema, as a file."""
    return json.dumps(json_schema(), indent=2) + "\n"


def _key_rows(section: Key, prefix: str) -> Iterator[str]:
    kind = section.type
    for key in kind.keys if isinstance(kind, Section) else ():
        path = prefix + key.name
        words = _escaped(key.type.words())
        yield f"| `{path}` | {words} | {_default(key)} | {key.meaning} |\n"
        if isinstance(key.type, Listing) and isinstance(key.type.item, Section):
            yield from _key_rows(Key(path, key.type.item, ""), f"{path}[].")


def _default(key: Key) -> str:
    if key.default is REQUIRED:
        return "required"
    return "none" if key.default is None else f"`{json.dumps(key.default)}`"


def _gate_row(gate: Gate) -> str:
    notes = gate.notes
    name = f"{gate.value}:NAME" if gate.is_named else gate.value
    stages = ", ".join(stage.value for stage in notes.stages)
    lasting = "transient" if gate.is_transient else "final"
    inconclusive = "can be" if gate in INCONCLUSIVE_GATES else "never"
    return f"| `{name}` | {notes.meaning} | {notes.remedy} | {stages} | {lasting} | {inconclusive} |\n"


def _source_row(gate: Gate, source: Source) -> str:
    name = f"{gate.value}:NAME" if gate.is_named else gate.value
    return f"| `{name}` | {source.looks_at} | {source.default} | {source.cannot_tell.value} |\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
