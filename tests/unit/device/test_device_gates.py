"""Local gates read their real sources, never raise and never block (D2, D7, Q2)."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device.bootenv import Boot, BootEnvironment, BootEnvironmentError, SlotName
from device.gates.asking import Questions
from device.gates.findings import Finding, Verdict, cannot_tell, first_failure, settled
from device.gates.hardware import check_battery, check_disk, check_dual_partition, check_inhibited, check_temperature
from device.gates.local import LocalGates, Moment
from device.gates.sensors import MAX_SENSORS, Reading, read_sensors
from device.platform import Sensors
from device.probes import peripheral_gates
from device.progress import Rules, Target
from wavemesh.errors import LocalError
from wavemesh.runtime.durable import Disk
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = Rules("either", 300.0, False, 86_400.0, 40, 70.0, 0, True, "", (), ())
TARGET = Target(
    "142",
    1,
    "r",
    "3.8.2",
    Digest("a" * 64, 10),
    None,
    "",
    "",
    datetime(2026, 5, 1, tzinfo=UTC),
    Boot(SlotName.B, 1),
    RULES,
)


class Medium:
    """Slots that are there or not."""

    def __init__(self, path: Path, *, both: bool = True, capacity: int = 100) -> None:
        self._path = path
        self._both = both
        self._capacity = capacity

    def present(self) -> bool:
        return self._both

    def capacity_bytes(self, slot: SlotName) -> int:
        return self._capacity

    def path(self, slot: SlotName) -> Path:
        return self._path / f"{slot.value}.img"


@pytest.fixture
def sensors(tmp_path: Path) -> Sensors:
    write(tmp_path / "power" / "BAT0" / "capacity", "87\n")
    write(tmp_path / "thermal" / "thermal_zone0" / "temp", "41500\n")
    return Sensors(tmp_path / "power", tmp_path / "thermal", tmp_path / "hwmon", tmp_path / "inhibit")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def supply(sensors: Sensors, name: str, **files: object) -> None:
    for file, content in files.items():
        write(sensors.power_supply / name / file, f"{content}\n")


def battery(sensors: Sensors, rules: Rules = RULES, margin: int = 0) -> Finding:
    return check_battery(read_sensors(sensors), rules, margin)


def heat(sensors: Sensors, margin: float = 0.0) -> Finding:
    return check_temperature(read_sensors(sensors), RULES, margin)


# --- power -----------------------------------------------------------------------------------------------------------


def test_a_sound_device_passes(sensors: Sensors) -> None:
    assert battery(sensors).passes
    assert heat(sensors).passes
    reading = read_sensors(sensors)
    assert (reading.battery_percent, reading.temperature_celsius) == (87, 41.5)


def test_the_weakest_battery_counts(sensors: Sensors) -> None:
    supply(sensors, "BAT1", type="Battery", capacity=5, present=1)
    finding = battery(sensors)
    assert finding == Finding("battery", Verdict.BAD, "battery at 5 %, 40 % required", "5 %", "at least 40 %")


@pytest.mark.parametrize(
    "files",
    [
        {"type": "Battery", "capacity": 5, "present": 0},
        {"type": "Battery", "capacity": 5, "scope": "Device"},
        {"type": "Mains", "online": 0},
        {"type": "Something", "capacity": 5},
    ],
)
def test_what_does_not_supply_the_system_does_not_count(sensors: Sensors, files: dict[str, object]) -> None:
    """An empty bay, a wireless scanner's own battery, a plug without power."""
    supply(sensors, "OTHER", **files)
    assert read_sensors(sensors).battery_percent == 87
    assert battery(sensors).passes


@pytest.mark.parametrize("kind", ["energy", "charge"])
def test_a_battery_without_percent_is_reckoned(sensors: Sensors, kind: str) -> None:
    supply(sensors, "BAT1", type="Battery", **{f"{kind}_now": 1_000_000, f"{kind}_full": 4_000_000})
    assert read_sensors(sensors).battery_percent == 25


@pytest.mark.parametrize(
    ("status", "online", "charge", "passes"),
    [
        ("Charging", 1, 20, True),
        ("Full", 1, 20, True),
        ("Charging", 1, 9, False),
        ("Discharging", 1, 20, False),
        ("Unknown", 1, 20, False),
        ("Charging", 0, 20, False),
    ],
)
def test_a_fed_device_may_be_lower(sensors: Sensors, status: str, online: int, charge: int, *, passes: bool) -> None:
    """On mains with nothing draining, what matters is to outlive the plug being pulled."""
    supply(sensors, "BAT0", type="Battery", status=status, capacity=charge)
    supply(sensors, "AC", type="Mains", online=online)
    assert battery(sensors).passes is passes


def test_one_draining_battery_makes_it_not_fed(sensors: Sensors) -> None:
    supply(sensors, "AC", type="USB_PD", online=1)
    supply(sensors, "BAT0", type="Battery", status="Charging", capacity=90)
    supply(sensors, "BAT1", type="Battery", status="Discharging", capacity=20)
    assert not battery(sensors).passes


def test_the_margin_is_within_what_a_battery_can_hold(sensors: Sensors) -> None:
    """A policy of 98 % resumes at 100 %, one of 0 % at anything."""
    supply(sensors, "BAT0", capacity=100)
    assert battery(sensors, replace(RULES, min_battery_percent=98), 5).passes
    supply(sensors, "BAT0", capacity=0)
    assert battery(sensors, replace(RULES, min_battery_percent=0), 5).passes


# --- heat ------------------------------------------------------------------------------------------------------------


def test_the_hottest_of_zones_and_chips_counts(sensors: Sensors) -> None:
    write(sensors.hwmon / "hwmon2" / "temp3_input", "95000\n")
    finding = heat(sensors)
    assert (finding.observed, finding.required) == ("95.0 °C", "at most 70.0 °C")
    assert "hwmon2/temp3_input" in finding.evidence


def test_a_chip_that_its_driver_calls_faulty_cannot_tell(sensors: Sensors) -> None:
    write(sensors.hwmon / "hwmon0" / "temp1_input", "30000")
    write(sensors.hwmon / "hwmon0" / "temp1_fault", "1")
    assert heat(sensors).verdict is Verdict.CANNOT_TELL
    write(sensors.hwmon / "hwmon0" / "temp1_fault", "0")
    assert heat(sensors).passes


def test_what_is_known_to_be_bad_outweighs_what_is_not_known(sensors: Sensors) -> None:
    write(sensors.thermal / "thermal_zone1" / "temp", "95000")
    write(sensors.thermal / "thermal_zone2" / "temp", "garbage")
    assert heat(sensors).verdict is Verdict.BAD


def test_too_many_sensors_cannot_tell(sensors: Sensors) -> None:
    for number in range(MAX_SENSORS + 1):
        write(sensors.hwmon / "hwmon0" / f"temp{number}_input", "30000")
    assert heat(sensors).verdict is Verdict.CANNOT_TELL


# --- what cannot be read ---------------------------------------------------------------------------------------------


def test_an_absent_sensor_passes(sensors: Sensors, tmp_path: Path) -> None:
    """A device on mains has no battery to be low."""
    none = replace(sensors, power_supply=tmp_path / "none", thermal=tmp_path / "none")
    assert read_sensors(none) == Reading()
    assert battery(none).passes
    assert heat(none).passes


_HOSTILE = (
    st.binary(max_size=200)
    | st.sampled_from([b"nan", b"inf", b"-inf", b"-5", b"1e9", b"0x10", b"", b"\n", b"9" * 100, b"4_0", b"\xff\xfe"])
    | st.integers(-(10**18), 10**18).map(lambda number: str(number).encode())
)


@given(content=_HOSTILE, status=_HOSTILE, zone=_HOSTILE)
@settings(max_examples=60, deadline=None)
def test_no_content_makes_a_gate_raise(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, status: bytes, zone: bytes
) -> None:
    """Q2: whatever a file says, each gate answers; what it passes was within bounds."""
    root = tmp_path_factory.mktemp("hw")
    sensors = Sensors(root / "power", root / "thermal", root / "hwmon", root / "inhibit")
    for path, data in (
        (sensors.power_supply / "BAT0" / "capacity", content),
        (sensors.power_supply / "BAT0" / "type", b"Battery"),
        (sensors.power_supply / "BAT0" / "status", status),
        (sensors.power_supply / "BAT0" / "present", status),
        (sensors.power_supply / "AC" / "type", status),
        (sensors.power_supply / "AC" / "online", content),
        (sensors.hwmon / "hwmon0" / "temp1_input", zone),
        (sensors.inhibit, content),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    reading = read_sensors(sensors)
    assert reading.battery_percent is None or 0 <= reading.battery_percent <= 100
    assert reading.temperature_celsius is None or -100 <= reading.temperature_celsius <= 300
    assert reading.temperature_celsius is not None or reading.heat_faults
    for finding in (check_battery(reading, RULES), check_temperature(reading, RULES), check_inhibited(sensors.inhibit)):
        assert finding.passes or finding.evidence
    assert check_inhibited(sensors.inhibit).verdict is Verdict.BAD


def _as_fifo(path: Path) -> None:
    os.mkfifo(path)


def _as_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _as_terminal(path: Path) -> None:
    path.symlink_to("/dev/ptmx")


def _as_broken(path: Path) -> None:
    """A real EIO: the kernel's own, for the memory of a process at an address it does not have."""
    path.symlink_to("/proc/self/mem")


def _as_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [Path.mkdir, _as_fifo, _as_endless, _as_terminal, _as_broken, _as_loop])
def test_no_kind_of_file_makes_a_gate_raise_or_block(sensors: Sensors, make: Any) -> None:
    """A directory, a FIFO nobody writes, an endless device, a terminal, an I/O error, a loop: none passes."""
    for path in (
        sensors.power_supply / "BAT0" / "capacity",
        sensors.thermal / "thermal_zone0" / "temp",
        sensors.inhibit,
    ):
        path.unlink(missing_ok=True)
        make(path)
    findings = (battery(sensors), heat(sensors), check_inhibited(sensors.inhibit))
    assert {finding.verdict for finding in findings} == {Verdict.CANNOT_TELL}
    assert all(finding.evidence for finding in findings)


def test_a_root_that_is_no_directory_cannot_tell(sensors: Sensors) -> None:
    write(sensors.hwmon, "")
    assert heat(sensors).verdict is Verdict.CANNOT_TELL


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root may read everything; anybody else may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.usefixtures("ordinary_user")
def test_what_may_not_be_read_cannot_tell() -> None:
    """/proc/1/mem of another user is refused by the kernel, as a mode of 000 would be."""
    forbidden = Path("/proc/1")
    sensors = Sensors(forbidden / "fd", forbidden / "fd", forbidden / "fd", forbidden / "environ")
    findings = (battery(sensors), heat(sensors), check_inhibited(sensors.inhibit))
    assert {finding.verdict for finding in findings} == {Verdict.CANNOT_TELL}


def test_what_cannot_tell_refuses_unless_the_policy_lets_it_pass() -> None:
    finding = cannot_tell("vendor:dock", "no answer", "exit code 0")
    assert first_failure((finding,), RULES) == finding
    lenient = replace(RULES, pass_when_cannot_tell=("vendor",))
    assert settled(finding, lenient).passes
    assert first_failure((replace(finding, gate="battery"),), lenient) is not None
    assert first_failure((replace(finding, verdict=Verdict.BAD),), lenient) is not None


# --- a source that hangs ---------------------------------------------------------------------------------------------


async def test_a_hanging_source_is_not_waited_for_nor_asked_again() -> None:
    """The loop goes on, one thread is all it costs, and the answer that comes after all is taken."""
    questions, answered, asked = Questions(), threading.Event(), []

    def hang() -> int:
        asked.append(1)
        answered.wait(20)
        return len(asked)

    for _ in range(3):
        with pytest.raises(TimeoutError):
            await questions.ask("sensors", hang, 0.02)
    assert len(asked) == 1
    assert await questions.ask("other", lambda: "at once", 5.0) == "at once"
    answered.set()
    assert await questions.ask("sensors", hang, 5.0) == 1
    assert await questions.ask("sensors", hang, 5.0) == 2


# --- space, slots, inhibitor -----------------------------------------------------------------------------------------


def test_disk_counts_what_the_update_brings(tmp_path: Path) -> None:
    assert check_disk(tmp_path, TARGET).passes
    reserved = check_disk(tmp_path, replace(TARGET, config=Digest("b" * 64, 1)), 1 << 60)
    assert (reserved.gate, reserved.verdict) == ("disk", Verdict.BAD)
    large = check_disk(tmp_path, replace(TARGET, config=Digest("b" * 64, 1 << 60)))
    assert (large.verdict, large.required) == (Verdict.BAD, f"at least {1 << 60} bytes free")
    assert check_disk(tmp_path / "gone", TARGET).verdict is Verdict.CANNOT_TELL


def test_a_second_slot_is_there_and_large_enough(tmp_path: Path) -> None:
    def verdict(slots: object) -> Verdict:
        return check_dual_partition(cast("Any", slots), TARGET).verdict

    def raises(error: Exception) -> object:
        def present() -> bool:
            raise error

        return SimpleNamespace(present=present)

    assert verdict(Medium(tmp_path)) is Verdict.GOOD
    assert verdict(Medium(tmp_path, both=False)) is Verdict.BAD
    assert verdict(Medium(tmp_path, capacity=5)) is Verdict.BAD
    assert verdict(raises(OSError(5, "Input/output error"))) is Verdict.CANNOT_TELL
    assert verdict(raises(LocalError("the bus is gone"))) is Verdict.CANNOT_TELL


def test_inhibited_says_who(sensors: Sensors) -> None:
    assert check_inhibited(sensors.inhibit).passes
    write(sensors.inhibit, "payment open\n")
    assert check_inhibited(sensors.inhibit).evidence == "payment open"


def test_gates_are_named_after_their_checks() -> None:
    assert peripheral_gates(("lsusb | grep scanner",)) == (("peripheral:scanner", "lsusb | grep scanner"),)


# --- all of them together --------------------------------------------------------------------------------------------


class _Store:
    """What the agent remembers, as far as slots are concerned."""

    def __init__(self) -> None:
        self.document = SimpleNamespace(probed_slots=())

    def note_probed(self, slot: str) -> None:
        self.document.probed_slots += (slot,)


class _Control:
    """A boot environment whose active slot is A."""

    def __init__(self, previous: Boot | None = None) -> None:
        self.invalidated: list[SlotName] = []
        self._previous = previous

    def read(self) -> BootEnvironment:
        return BootEnvironment(Boot(SlotName.A, 1), self._previous)

    def invalidate(self, slot: SlotName) -> None:
        if slot is SlotName.A:
            msg = "slot A is the active one"
            raise BootEnvironmentError(msg)
        self.invalidated.append(slot)


def local_gates(tmp_path: Path, sensors: Sensors, store: _Store, control: _Control) -> LocalGates:
    return LocalGates(
        sensors=sensors,
        slots=cast("Any", Medium(tmp_path)),
        boot_control=cast("Any", control),
        directory=tmp_path,
        probes=cast("Any", None),
        hooks=None,
        store=cast("Any", store),
        disk=Disk(),
        log=cast("Any", SimpleNamespace(alert=lambda _: None)),
        questions=Questions(),
    )


async def test_a_slot_is_probed_once_in_its_life_and_never_the_active_one(tmp_path: Path, sensors: Sensors) -> None:
    """D2: dual partition really present; the slot that boots is not touched for it (D1)."""
    store, control = _Store(), _Control()
    gates = local_gates(tmp_path, sensors, store, control)
    (tmp_path / "A.img").write_bytes(b"runs")
    finding = await gates.refusal(TARGET, Moment.PREFLIGHT)
    assert finding is not None
    assert (finding.gate, finding.observed) == ("dual-partition", "cannot be written")
    (tmp_path / "B.img").touch()
    assert await gates.refusal(TARGET, Moment.PREFLIGHT) is None
    assert store.document.probed_slots == ("B",)
    assert control.invalidated == [SlotName.B, SlotName.B]
    (tmp_path / "B.img").unlink()
    assert await gates.refusal(TARGET, Moment.PREFLIGHT) is None
    on_a = replace(TARGET, boot=Boot(SlotName.A, 1))
    finding = await gates.refusal(on_a, Moment.PREFLIGHT)
    assert finding is not None
    assert finding.verdict is Verdict.CANNOT_TELL
    assert (tmp_path / "A.img").read_bytes() == b"runs"


async def test_the_last_known_good_is_not_tried(tmp_path: Path, sensors: Sensors) -> None:
    """D6: it is packed before it is overwritten, and until then stays bootable; it was written well once."""
    control = _Control(previous=Boot(SlotName.B, 1))
    assert await local_gates(tmp_path, sensors, _Store(), control).refusal(TARGET, Moment.PREFLIGHT) is None
    assert control.invalidated == []


async def test_hanging_sensors_cannot_tell(tmp_path: Path, sensors: Sensors, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is not held up: a heartbeat beside it goes on."""
    released = threading.Event()
    monkeypatch.setattr("device.gates.local.read_sensors", lambda _: released.wait(20) and Reading())
    monkeypatch.setattr("device.gates.local.ANSWER_BOUND_S", 0.2)
    loop, gaps = asyncio.get_running_loop(), [0.0]

    async def heartbeat() -> None:
        last_s = loop.time()
        while True:
            await asyncio.sleep(0.005)
            gaps.append(loop.time() - last_s)
            last_s = loop.time()

    async with asyncio.TaskGroup() as group:
        beating = group.create_task(heartbeat())
        finding = await local_gates(tmp_path, sensors, _Store(), _Control()).flashing_refusal(RULES)
        beating.cancel()
    released.set()
    assert finding is not None
    assert (finding.gate, finding.verdict) == ("battery", Verdict.CANNOT_TELL)
    assert len(gaps) > 5
