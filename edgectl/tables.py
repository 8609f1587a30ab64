"""Plain data as tables for people. Each function takes what ``plain`` made of a message."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edgectl.output import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COUNTS = ("updated", "rolled_back", "failed", "silent", "refused", "inconclusive", "unknown", "pending")

_RANDOM_ID_DIGITS = 32


def counts_text(counts: Mapping[str, Any] | None) -> str:
    """The outcomes that are not zero: "11 updated, 1 rolled back"."""
    some = [f"{counts[key]} {key.replace('_', ' ')}" for key in COUNTS if counts and counts[key]]
    return ", ".join(some) or "none"


def short(digest: str) -> str:
    """The first twelve digits of a SHA-256."""
    return digest[:12]


def place(path: str) -> str:
    """A node path without the words that are always the same: "midwest/store-209/pos-17"."""
    return "/".join(path.split("/")[1::2]) or path


def ago(time: str | None, now: datetime | None = None) -> str:
    """How long ago a time was: "12 s ago", "3 min ago", "5 h ago", "2 d ago"."""
    if not time:
        return "-"
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(time)).total_seconds()
    return f"{duration(max(0.0, seconds))} ago"


def duration(seconds: float) -> str:
    """A duration in its largest whole unit: "12 s", "3 min", "5 h", "2 d"."""
    for unit_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{int(seconds // unit_s)} {unit}"
    return f"{int(seconds)} s"


def size(count: int) -> str:
    """Bytes for people: "512 B", "4.4 MiB"."""
    for unit_bytes, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit_bytes:
            return f"{count / unit_bytes:.1f} {unit}"
    return f"{count} B"


def plural(count: int, noun: str) -> str:
    """A number of things: "1 device", "2 devices"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def when(time: str | None) -> str:
    """A time to the second."""
    return f"{time[:19]}Z".replace("T", " ") if time else "-"


def waves_table(waves: Sequence[Mapping[str, Any]]) -> Table:
    """One row a wave."""
    rows = [
        (
            w["wave_id"],
            w["cohort"],
            w["release"],
            w["state"],
            counts_text(w["counts"]),
            str(w["exposure"]),
            ago(w["planned_at"]),
        )
        for w in waves
    ]
    columns = ("wave", "cohort", "release", "state", "outcomes", "exposure", "planned")
    return Table("", columns, rows, ("planned", "cohort", "exposure"))


def wave_parts(wave: Mapping[str, Any]) -> tuple[Table | str, ...]:
    """One wave in full."""
    head = f"wave {wave['wave_id']}  {wave['state']}  release {wave['release']}  cohort {wave['cohort']}"
    lines = [head]
    if wave["state_reason"]:
        lines.append(f"  because: {wave['state_reason']}")
    lines += [f"  paused by {pause['origin']}: {pause['reason']}" for pause in wave["pauses"]]
    lines.append(
        f"  outcomes: {counts_text(wave['counts'])}; rollback ratio {wave['rollback_ratio']:.2f}; "
        f"exposure {wave['exposure']}; expires {when(wave['expires_at'])}"
    )
    if waiting := wave["waiting_for_certificate"]:
        lines.append(f"  waiting for certificate: {waiting} device{'s'[: waiting > 1]}; they get no permit before")
    rows = [
        (
            place(store["store"]),
            str(len(store["devices"])),
            counts_text(store["counts"]),
            str(store["exposure"]),
            "yes" if store["connected"] else "no",
            "yes" if store["order_delivered"] else "queued",
        )
        for store in wave["stores"]
    ]
    columns = ("store", "devices", "outcomes", "exposure", "connected", "order delivered")
    waits = [line for store in wave["stores"] for line in wait_lines(store["waits"])]
    return (*lines, Table("", columns, rows, ("connected", "devices")), *waits)


def wait_lines(waits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whom availability groups hold up, and why."""
    return [f"  {wait['device']} waits: {wait['reason']}" for wait in waits]


def ledger_parts(ledger: Mapping[str, Any]) -> tuple[Table | str, ...]:
    """A ledger: sums, gates, one row a device."""
    gates = ", ".join(f"{gate} {count}" for gate, count in ledger["gates"].items()) or "none"
    rows = [
        (
            place(e["device"]),
            e["kind"].replace("_", " "),
            e["gate"] or "-",
            e["observed"] or "-",
            e["required"] or "-",
            str(e["attempt"]),
            e["slot"] or "-",
            e["firmware_version"] or "-",
            short(e["firmware_sha256"]) or "-",
            ago(e["at"]),
        )
        for e in ledger["entries"]
    ]
    columns = ("device", "outcome", "gate", "observed", "required", "try", "slot", "version", "sha256", "at")
    source, counts = place(ledger["source"]), counts_text(ledger["counts"])
    head = f"wave {ledger['wave_id']} as {source} knows it: {counts}; gates: {gates}"
    return head, Table("", columns, rows, ("sha256", "slot", "try", "version"))


def entry_lines(entry: Mapping[str, Any]) -> list[str]:
    """One device of a ledger in full."""
    gate = f"  gate {entry['gate']}: `edgectl explain {entry['gate']}`" if entry["gate"] else ""
    return [
        f"{place(entry['device'])}  {entry['kind'].replace('_', ' ')}{gate}",
        f"  attempt {entry['attempt']}, word {entry['sequence']} in it, at {when(entry['at'])}",
        f"  runs {entry['firmware_version'] or '?'} on slot {entry['slot'] or '?'}",
        f"  sha256 {entry['firmware_sha256'] or '?'}",
        f"  signed by {entry['signed_by'] or 'nobody yet'}",
        *([f"  observed {entry['observed']}, required {entry['required'] or '-'}"] if entry["observed"] else []),
        *(f"  evidence: {line}" for line in entry["evidence"].splitlines()),
        *(
            f"  slot {slot['slot']}: {slot['version'] or 'nothing verified'} {slot['sha256']}".rstrip()
            for slot in entry["slots"]
        ),
        *([f"  boot {entry['boot_id']}, log {short(entry['log_sha256'])}"] if entry["boot_id"] else []),
    ]


def devices_table(devices: Sequence[Mapping[str, Any]]) -> Table:
    """One row a device."""
    rows = []
    for device in devices:
        status = device["status"] or {}
        rows.append(
            (
                place(device["path"]),
                "yes" if status.get("connected") else "no",
                status.get("state", "never heard"),
                status.get("wave_id") or "-",
                status.get("gate") or "-",
                status.get("slot") or "-",
                status.get("firmware_version") or "-",
                f"{device['device_class']}/{device['hardware_revision']}",
                ago(status.get("at")),
            )
        )
    columns = ("device", "connected", "state", "wave", "gate", "slot", "version", "class", "heard")
    return Table("", columns, rows, ("class", "slot", "wave", "connected"))


def signoff_lines(device: Mapping[str, Any]) -> list[str]:
    """What a device that waits for a sign-off waits for, and what to type."""
    status = device["status"] or {}
    if status.get("state") != "awaiting_signoff":
        return []
    name, wave = device["path"].rsplit("/", 1)[-1], status["wave_id"]
    return [
        f"supervised: attempt {status['attempt']} of wave {wave} failed at {status['gate']} and waits for a sign-off:",
        f"  edgectl device approve-rollback --id {name} --wave {wave} --reason WHY",
    ]


def hubs_table(hubs: Sequence[Mapping[str, Any]]) -> Table:
    """One row a hub."""
    rows = [
        (
            place(hub["hub"]),
            "yes" if hub["connected"] else "no",
            str(hub["devices_connected"]),
            str(hub["swaps_active"]),
            f"{size(hub['cache_bytes'])} of {size(hub['cache_quota_bytes'])}",
            "; ".join(f"{p['wave_id']} by {p['origin']}" for p in hub["local_pauses"]) or "-",
            hub["software_version"],
            ago(hub["at"]),
        )
        for hub in hubs
    ]
    columns = ("hub", "connected", "devices", "swaps", "cache", "pauses", "software", "heard")
    return Table("", columns, rows, ("software", "cache", "swaps"))


def releases_table(releases: Sequence[Mapping[str, Any]]) -> Table:
    """One row a release."""
    rows = [
        (
            r["name"],
            r["version"],
            f"{r['device_class']}/{','.join(r['hardware_revisions']) or 'any'}",
            ", ".join(r["regions"]) or "all",
            short((r["firmware"] or {}).get("sha256", "")) or "-",
            when(r["signed_at"]),
            r["role"] or "-",
            _standing(r),
        )
        for r in releases
    ]
    columns = ("release", "version", "class", "regions", "firmware", "signed", "by", "state")
    return Table("", columns, rows, ("firmware", "regions", "signed", "by"))


def release_parts(release: Mapping[str, Any]) -> tuple[Table | str, ...]:
    """Everything about one release."""
    digests = {name: release[name] for name in ("firmware", "config") if release[name]}
    digests |= {name: one for name, one in release["manifest"].items() if name == "bundle"}
    rows = [
        ("version", release["version"]),
        ("class", release["device_class"]),
        ("hardware", ", ".join(release["hardware_revisions"]) or "any"),
        ("regions", ", ".join(release["regions"]) or "all"),
        *((name, f"{one['sha256']} ({one['size_bytes']} bytes)") for name, one in digests.items()),
        *([("app", _app(release["manifest"]["app"]))] if "app" in release["manifest"] else []),
        ("signed", f"{when(release['signed_at'])} by {release['role'] or 'release keys'}"),
        ("signatures", ", ".join(release["signed_by"]) or "only control can tell"),
        ("never below", release["minimum_version"] or "-"),
        *((key.replace("_", " "), _words(value)) for key, value in release["manifest"].items() if key in _DETAILS),
        ("state", _standing(release)),
    ]
    return f"release {release['name']}", Table("", ("", ""), rows)


def _app(app: Mapping[str, Any]) -> str:
    size_bytes = app["root"]["size_bytes"] + sum(blob["size_bytes"] for blob in app["blobs"])
    return f"{app['repository']}:{app['tag']} ({len(app['blobs'])} blobs, {size_bytes} bytes, {app['root']['name']})"


_DETAILS = frozenset(
    {
        "config_version",
        "requires_config",
        "requires_firmware",
        "touches_bootloader",
        "boot_probe",
        "peripheral_checks",
        "vendor_probes",
        "attestation",
    }
)
"""Keys of a manifest that a release's message does not have."""


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        value = [f"PCR {number} {sha256}" for number, sha256 in value.items()]
    return ("; ".join(value) if isinstance(value, list) else str(value)) or "-"


def _standing(release: Mapping[str, Any]) -> str:
    """Revoked beats held: no unhold brings a revoked release back."""
    if release["revoked_reason"]:
        return f"revoked: {release['revoked_reason']}"
    return f"on hold: {release['hold_reason']}" if release["hold_reason"] else "usable"


def intents_table(intents: Sequence[Mapping[str, Any]]) -> Table:
    """One row an intent."""
    rows = [
        (
            short(i["intent_id"]) if len(i["intent_id"]) == _RANDOM_ID_DIGITS else i["intent_id"],
            i["kind"].replace("_", " "),
            " ".join(filter(None, (i["wave_id"], place(i["device"])))) or "-",
            i["disposition"],
            str(i["queue_place"] or "-"),
            ", ".join(map(place, i["waiting_for"])) or "-",
            i["operator"].rsplit("/", 1)[-1],
            ago(i["received_at"]),
            i["reason"] or "-",
            i["detail"] or "-",
        )
        for i in intents
    ]
    columns = ("id", "intent", "about", "state", "place", "waits for", "operator", "given", "reason", "detail")
    return Table("", columns, rows, ("detail", "reason", "operator", "given", "waits for"))


def share_bar(progress: Mapping[str, Any]) -> str:
    """How far a prefetch is, as a bar that a log or a pipe shows too."""
    share = progress["present_bytes"] / progress["wanted_bytes"] if progress["wanted_bytes"] else 1.0
    done = int(share * _BAR_CELLS)
    return f"[{'#' * done}{'.' * (_BAR_CELLS - done)}] {share:.0%}"


_BAR_CELLS = 40


def intent_lines(intent: Mapping[str, Any]) -> list[str]:
    """One intent in full."""
    about = " ".join(filter(None, (intent["wave_id"], intent["device"]))) or "-"
    waits = ", ".join(map(place, intent["waiting_for"]))
    queue = f", place {intent['queue_place']}" if intent["queue_place"] else ""
    return [
        f"intent {intent['intent_id']}  {intent['kind'].replace('_', ' ')}  {about}",
        f"  {intent['disposition']}" + (f"; waits for {waits}{queue}" if waits else ""),
        f"  given by {intent['operator']} at {when(intent['received_at'])}: {intent['reason'] or 'no reason'}",
        *([f"  {intent['detail']}"] if intent["detail"] else []),
        *([f"  {share_bar(intent['prefetch'])}"] if intent.get("prefetch") else []),
    ]


def revocations_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """One row a revocation."""
    rows = [(place(e["path"]), e["reach"], when(e["issued_before"]), e["reason"]) for e in entries]
    return Table("", ("node", "what", "issued before", "reason"), rows)


def audit_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """One row an event."""
    rows = [
        (when(e["at"]), e["actor"].split("/", 3)[-1], e["action"], e["subject"], e["detail"] or "-") for e in entries
    ]
    return Table("", ("at", "who", "what", "about", "detail"), rows, ("who",))


def discrepancy_parts(answer: Mapping[str, Any]) -> tuple[Table | str, ...]:
    """What expected and reported progress differ in."""
    found = answer["discrepancies"]
    if not found:
        return ("what was reported is what should have been",)
    rows = [
        (d["cause"], place(d["subject"]), d["wave_id"] or "-", d["expected"], d["reported"], ago(d["since"]))
        for d in found
    ]
    columns = ("cause", "of", "wave", "expected", "reported", "known since")
    more = answer["total"] - len(found)
    return (Table("", columns, rows, ("known since", "expected")), *([f"{more} more"] if more else []))


def stores_table(stores: Sequence[Mapping[str, Any]]) -> Table:
    """One row a store."""
    rows = [
        (
            place(s["path"]),
            "yes" if s["hub"] and s["hub"]["connected"] else "no",
            f"{s['devices_connected']} of {s['devices']}",
            ", ".join(s["wave_ids"]) or "-",
            str(s["exposure"]),
            str(s["intents_waiting"]),
            s["time_zone"] or "-",
            ago(s["hub"]["at"]) if s["hub"] else "never",
        )
        for s in stores
    ]
    columns = ("store", "connected", "devices", "waves", "exposure", "intents", "time zone", "heard")
    return Table("", columns, rows, ("time zone", "intents", "exposure"))


def store_parts(store: Mapping[str, Any]) -> tuple[Table | str, ...]:
    """One store in full."""
    hub = store["hub"]
    parts: list[Table | str] = [stores_table([store])]
    if hub:
        parts.append(
            f"hub: software {hub['software_version'] or '?'}, incarnation {short(hub['incarnation']) or '?'}, "
            f"{plural(hub['swaps_active'], 'swap')} under way, cache {size(hub['cache_bytes'])} of "
            f"{size(hub['cache_quota_bytes'])}"
        )
        parts += [f"  paused here: wave {p['wave_id']} by {p['origin']}: {p['reason']}" for p in hub["local_pauses"]]
        parts += wait_lines(hub["waits"])
    return tuple(parts)


def cohorts_table(cohorts: Sequence[Mapping[str, Any]]) -> Table:
    """One row a cohort."""
    rows = [
        (
            c["name"],
            f"{c['device_class']}/{c['hardware_revision']}",
            str(c["devices"]),
            str(c["devices_in_waves"]),
            str(len(c["stores"])),
            ", ".join(f"{version}: {count}" for version, count in c["firmware_versions"].items()) or "-",
        )
        for c in cohorts
    ]
    return Table("", ("cohort", "class", "devices", "in waves", "stores", "versions"), rows, ("class", "stores"))


def permits_table(permits: Sequence[Mapping[str, Any]]) -> Table:
    """One row a permit."""
    rows = [
        (
            p["wave_id"],
            place(p["device"]),
            p["state"].replace("_", " "),
            str(p["generation"]),
            str(p["attempts"]),
            short(p["hub_incarnation"]),
            ago(p["issued_at"]),
            when(p["expires_at"]),
        )
        for p in permits
    ]
    columns = ("wave", "device", "state", "generation", "attempts", "incarnation", "issued", "expires")
    return Table("", columns, rows, ("incarnation", "attempts", "issued", "generation"))


def holds_parts(holds: Mapping[str, Any]) -> tuple[Table | str, ...]:
    """The hold list."""
    if not holds["epoch"]:
        return ("no hold list was ever heard here",)
    rows = [
        (h["release"], h["reason"] or "-", ", ".join(h["wave_ids"]) or "-", short(h["firmware_sha256"]) or "-")
        for h in holds["holds"]
    ]
    head = f"epoch {holds['epoch']}, signed {ago(holds['issued_at'])}; {plural(len(rows), 'release')} on hold"
    return head, Table("", ("release", "reason", "open waves", "firmware"), rows, ("firmware",))
