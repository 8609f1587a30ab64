"""The nodes' configuration files in the lab: production's shape, with times for people who watch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab import topology

if TYPE_CHECKING:
    from lab.topology import Lab

_MIB = 1024 * 1024


def control_config(lab: Lab) -> str:
    """Control."""
    return f"""\
listen = "{lab.address("control")}"
tick_s = 0.5
heartbeat_s = {lab.heartbeat_s}
halt_settle_s = {lab.halt_settle_s}
delivery_wait_s = 1.0
drain_s = 1.0
"""


def superhub_config(lab: Lab) -> str:
    """The super hub: control through the WAN."""
    return f"""\
listen = "{lab.address("superhub")}"
drain_s = 1.0

[control]
address = "{lab.address(f"wan/{topology.CONTROL_LINK}")}"
name = "{topology.control_id().name}"

[origin]
url = "https://{lab.address("origin")}"
"""


def store_config(lab: Lab, store: str) -> str:
    """A store hub: its super hub through the store's own WAN."""
    return f"""\
listen = "{lab.address(store)}"
parent = "{lab.address(f"wan/{store}")}"
time_zone = "{topology.TIME_ZONE}"
quota_bytes = {4096 * _MIB}
lease_s = 60.0
trial_allowance_s = 60.0
watchdog_s = 60.0
witness_s = 30.0
scheduling_interval_s = 0.1
status_interval_s = 0.25
hub_status_interval_s = 1.0
ping_relay_timeout_s = 2.0
fetch_retry_min_s = 0.2
fetch_retry_max_s = 2.0
heartbeat_interval_s = {lab.heartbeat_s}
reconnect_min_s = 0.2
reconnect_max_s = 2.0
"""


def device_config(lab: Lab, device: str, largest_image_bytes: int, backend: str) -> str:
    """A device."""
    return f"""\
[device]
device_class = "{topology.DEVICE_CLASS}"
hardware_revision = "{topology.HARDWARE_REVISION}"
region = "{topology.REGION}"

[hub]
address = "{lab.address(lab.store_of(device))}"

[board]
backend = "{backend}"
hardware = "hardware"
power_supply = "hardware/power_supply"
thermal = "hardware/thermal"
inhibit = "hardware/inhibit"
probe_containment = "best-effort"
slot_capacity_bytes = {max(2 * largest_image_bytes, 16 * _MIB)}
watchdog_s = 20.0
boot_timer_s = 25.0

[timing]
ping_interval_s = 2.0
ping_timeout_s = 4.0
gate_interval_s = 0.5
recheck_interval_s = 5.0
retry_interval_s = 0.5
probe_timeout_s = 10.0
probe_settle_s = 3.0
inhibit_bound_s = 3.0
log_upload_interval_s = 2.0

[telemetry]
retry_interval_s = 0.5

[staging]
fsync_step_bytes = {8 * _MIB if largest_image_bytes > 32 * _MIB else 256 * 1024}

[rauc]
bus = ""
install_timeout_s = 120.0
"""


def wan_config(lab: Lab) -> str:
    """The proxies: one a store, one for the region's way to control."""
    links = {topology.CONTROL_LINK: "control", **dict.fromkeys(lab.stores, "superhub")}
    tables = [
        f'[[links]]\nname = "{name}"\nlisten = "{lab.address(f"wan/{name}")}"\ntarget = "{lab.address(target)}"\n'
        for name, target in links.items()
    ]
    return "\n".join(['control = "control.sock"\n', *tables])
