"""Plain data as tables for people. Each function takes what ``plain`` made of a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgectl.output import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COUNTS = ("updated", "rolled_back", "failed", "silent", "refused", "inconclusive", "unknown", "pending")
_MIB = 1024 * 1024


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


def clock(time: str | None) -> str:
    """The time of day of a time, UTC."""
    return f"{time[11:19]}Z" if time else "-"


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
            when(w["planned_at"]),
        )
        for w in waves
    ]
    return Table("", ("wave", "cohort", "release", "state", "outcomes", "exposure", "planned"), rows)


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
    return (*lines, Table("", columns, rows))


def ledger_parts(ledger: Mapping[str, Any]) -> tuple[Table | str, ...]:
    """A ledger: sums, gates, one row a device."""
    gates = ", ".join(f"{gate} {count}" for gate, count in ledger["gates"].items()) or "none"
    rows = [
        (
            place(e["device"]),
            e["kind"].replace("_", " "),
            e["gate"] or "-",
            str(e["attempt"]),
            e["slot"] or "-",
            e["firmware_version"] or "-",
            short(e["firmware_sha256"]) or "-",
            clock(e["at"]),
        )
        for e in ledger["entries"]
    ]
    columns = ("device", "outcome", "gate", "try", "slot", "version", "sha256", "at")
    source, counts = place(ledger["source"]), counts_text(ledger["counts"])
    head = f"wave {ledger['wave_id']} as {source} knows it: {counts}; gates: {gates}"
    return head, Table("", columns, rows)


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
                clock(status.get("at")),
            )
        )
    columns = ("device", "connected", "state", "wave", "gate", "slot", "version", "class", "heard")
    return Table("", columns, rows)


def hubs_table(hubs: Sequence[Mapping[str, Any]]) -> Table:
    """One row a hub."""
    rows = [
        (
            place(hub["hub"]),
            "yes" if hub["connected"] else "no",
            str(hub["devices_connected"]),
            str(hub["swaps_active"]),
            f"{hub['cache_bytes'] // _MIB} of {hub['cache_quota_bytes'] // _MIB} MiB",
            "; ".join(f"{p['wave_id']} by {p['origin']}" for p in hub["local_pauses"]) or "-",
            hub["software_version"],
            clock(hub["at"]),
        )
        for hub in hubs
    ]
    return Table("", ("hub", "connected", "devices", "swaps", "cache", "pauses", "software", "heard"), rows)


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
            r["hold_reason"] or "-",
        )
        for r in releases
    ]
    return Table("", ("release", "version", "class", "regions", "firmware", "signed", "on hold"), rows)


def cache_parts(cache: Mapping[str, Any]) -> tuple[Table | str, ...]:
    """The cache in order of eviction."""
    rows = [
        (
            ", ".join(e["names"]) or "-",
            short(e["digest"]["sha256"]),
            f"{e['present_bytes'] / _MIB:.1f} of {e['digest']['size_bytes'] / _MIB:.1f} MiB",
            "; ".join(e["pins"]) or "-",
            when(e["last_used_at"]),
        )
        for e in cache["entries"]
    ]
    head = f"{cache['bytes'] / _MIB:.1f} of {cache['quota_bytes'] / _MIB:.0f} MiB held; oldest use first"
    return head, Table("", ("artifact", "sha256", "present", "pinned by", "last used"), rows)


def intents_table(intents: Sequence[Mapping[str, Any]]) -> Table:
    """One row an intent."""
    rows = [
        (
            when(i["received_at"]),
            i["kind"].replace("_", " "),
            " ".join(filter(None, (i["wave_id"], i["device"]))) or "-",
            i["disposition"],
            ", ".join(map(place, i["waiting_for"])) or "-",
            i["operator"],
            i["reason"] or "-",
            i["detail"] or "-",
        )
        for i in intents
    ]
    return Table("", ("at", "intent", "about", "state", "waits for", "operator", "reason", "detail"), rows)


def audit_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """One row an event."""
    rows = [(when(e["at"]), e["actor"], e["action"], e["subject"], e["detail"]) for e in entries]
    return Table("", ("at", "who", "what", "about", "detail"), rows)
