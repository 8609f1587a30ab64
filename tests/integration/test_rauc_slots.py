"""Slots by the real RAUC service on a bus of its own: installed, marked, refused with its words (D1, D3, D4, D9)."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from device.backend import SlotSystem, open_slots
from device.bootenv import Boot, BootEnvironment, BootEnvironmentError, SlotName, Trial
from device.config import DeviceConfig, load_device_config
from device.platform import SlotLabel
from device.slots.rauc_board import bus_address
from tests.device_directory import MIB, NEW_VERSION, DeviceDirectory, digest_of, image_of
from tests.rauc_kit import BundleKey, PlayedBoard, give_rauc, hold_handler, needs_root, rauc, rauc_pid, tool
from tests.storehub_kit import eventually
from wavemesh.errors import GateError
from wavemesh.runtime.durable import Disk, DiskFullError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import TrustKeys
    from wavemesh.identity.ca import FleetCa
    from wavemesh.trust.statements import Digest

pytestmark = [pytest.mark.timeout(60), needs_root]
IMAGE = image_of(NEW_VERSION)
DIGEST = digest_of(IMAGE)
A1, B2 = Boot(SlotName.A, 1), Boot(SlotName.B, 2)
LABEL = SlotLabel("firmware-v3.8.2", NEW_VERSION, DIGEST)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def key(keys: Path) -> BundleKey:
    return BundleKey.make(keys)


@pytest.fixture(scope="module")
def bundle(key: BundleKey, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return key.bundle(tmp_path_factory.mktemp("bundle") / "b", IMAGE)


@pytest.fixture
def device(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys, key: BundleKey) -> DeviceDirectory:
    directory = DeviceDirectory(tmp_path / "device", fleet_ca, trust_keys.pinned_root)
    directory.configure(1)
    give_rauc(directory, key)
    return directory


class Bench:
    """The slots of one device, and what staging does with them."""

    def __init__(self, device: DeviceDirectory) -> None:
        self.device = device
        self.config: DeviceConfig = load_device_config(device.path)
        self.system: SlotSystem = open_slots(device.path, self.config, Disk())
        self.percents: list[int] = []

    async def receive(self, bundle: bytes, digest: Digest | None = None) -> None:
        assert self.system.installer is not None
        writer = await self.system.installer.begin(SlotName.B, digest or digest_of(bundle))
        try:
            await writer.write(bundle[writer.offset :])
            await writer.sync()
            assert writer.read_back == digest_of(bundle).sha256
        finally:
            await writer.close()

    async def install(self) -> None:
        assert self.system.installer is not None
        await self.system.installer.install(SlotName.B, DIGEST, self._installed)

    async def seal(self) -> None:
        assert self.system.installer is not None
        await self.system.slots.seal(SlotName.B, LABEL)
        await self.system.installer.discard(SlotName.B)

    async def refusal(self) -> GateError:
        """What ends an installation that must not succeed."""
        with pytest.raises(GateError) as refused:
            await self.install()
        return refused.value

    async def stage(self, bundle: bytes) -> None:
        await self.receive(bundle)
        await self.install()
        await self.seal()

    async def _installed(self, percent: int) -> None:
        self.percents.append(percent)

    async def on_slot(self) -> str:
        return await self.system.slots.digest(SlotName.B, DIGEST.size_bytes)


async def test_the_slot_reads_back_as_the_image_and_nothing_else_is_touched(
    device: DeviceDirectory, bundle: bytes
) -> None:
    """D1, D3: installing activates nothing; before it, nothing may boot the slot; labelled only by us."""
    bench = Bench(device)
    bench.system.bootloader.lay(BootEnvironment(A1, previous=B2))
    old = device.slot_sha256("A")
    held = hold_handler(device)
    with PlayedBoard(device, SlotName.A):
        await bench.receive(bundle)
        assert device.environment().previous == B2
        async with asyncio.TaskGroup() as group:
            group.create_task(bench.install())
            await eventually((device.path / "rauc" / "waiting").exists)
            assert (device.environment().previous, bench.system.slots.label(SlotName.B)) == (None, None)
            await eventually(lambda: bool(bench.percents))
            held.unlink()
        assert await bench.on_slot() == DIGEST.sha256
        assert bench.percents == sorted(bench.percents)
        assert 0 <= bench.percents[0] <= bench.percents[-1] <= 100
    assert device.slot_sha256("A") == old
    assert replace(device.environment(), sequence=0) == BootEnvironment(A1)
    assert bench.system.slots.label(SlotName.B) is None
    await bench.seal()
    assert bench.system.slots.label(SlotName.B) == LABEL
    assert not list((device.path / "rauc").glob("update.*"))


async def test_marks_arm_and_commit_slot_and_config_in_one_write(device: DeviceDirectory, bundle: bytes) -> None:
    """D3: RAUC's `active` is our try-once, its `good` our commit; both are what the agent asked for, and read back."""
    bench = Bench(device)
    control = bench.system.boot_control
    with PlayedBoard(device, SlotName.A):
        await bench.stage(bundle)
        await asyncio.to_thread(control.arm, B2)
        armed = device.environment()
        assert (armed.active, armed.trial and armed.trial.boot, armed.trial and armed.trial.tries_left) == (A1, B2, 1)
        assert armed.sequence == 1
        assert "Activated: system.1 (B)" in rauc(device, "status").stdout
    bench.system.bootloader.attempt()
    with PlayedBoard(device, SlotName.B):
        await asyncio.to_thread(control.commit)
        assert replace(device.environment(), sequence=0) == BootEnvironment(B2, previous=A1)
        again = rauc(device, "status", "mark-good")
        assert (again.returncode, device.environment().active) == (0, B2)
    assert not (device.path / "rauc" / "request.json").exists()


async def test_a_slot_that_somebody_else_wrote_since_is_not_armed(
    device: DeviceDirectory, bundle: bytes, tmp_path: Path
) -> None:
    """D3: RAUC lets any local program install; what was verified there before is void."""
    (tmp_path / "stranger.raucb").write_bytes(bundle)
    bench = Bench(device)
    with PlayedBoard(device, SlotName.A):
        await bench.stage(bundle)
        assert rauc(device, "install", str(tmp_path / "stranger.raucb")).returncode == 0
        with pytest.raises(BootEnvironmentError, match="written by somebody else"):
            await asyncio.to_thread(bench.system.boot_control.arm, B2)
    assert device.environment().trial is None


async def test_config_alone_is_armed_on_the_running_slot(device: DeviceDirectory) -> None:
    bench = Bench(device)
    with PlayedBoard(device, SlotName.A):
        await asyncio.to_thread(bench.system.boot_control.arm, Boot(SlotName.A, 2))
        bench.system.bootloader.attempt()
        await asyncio.to_thread(bench.system.boot_control.commit)
    assert replace(device.environment(), sequence=0) == BootEnvironment(Boot(SlotName.A, 2), previous=A1)


async def test_marks_of_others_give_a_slot_no_trust(device: DeviceDirectory, bundle: bytes) -> None:
    """A unit that marks each boot good commits no trial; `bad` only takes away; the active slot stays."""
    bench = Bench(device)
    with PlayedBoard(device, SlotName.A):
        await bench.stage(bundle)
        before = device.environment()
        refused = rauc(device, "status", "mark-active", "other")
        assert refused.returncode != 0
        assert device.environment() == before
        await asyncio.to_thread(bench.system.boot_control.arm, B2)
    bench.system.bootloader.attempt()
    with PlayedBoard(device, SlotName.B):
        trial = device.environment()
        assert rauc(device, "status", "mark-good").returncode != 0
        assert rauc(device, "status", "mark-bad", "other").returncode != 0, "the active slot is not for RAUC to end"
        assert device.environment() == trial
        assert rauc(device, "status", "mark-bad").returncode == 0
    assert (device.environment().active, device.environment().trial) == (A1, None)


@pytest.mark.parametrize(
    ("wrong", "gate", "words"),
    [
        ("compatible", "class", "Compatible mismatch: Expected 'pos-tablet' but bundle manifest has 'kiosk'"),
        ("signer", "signature", "signature verification failed"),
        ("slot", "hardware", "No target slot for class bootloader"),
        ("bytes", "signature", "signature verification failed"),
        ("no bundle", "signature", "Invalid bundle format"),
        ("mount", "disk", "ount"),
    ],
)
async def test_what_rauc_refuses_is_refused_by_gate_with_its_words(
    *,
    wrong: str,
    gate: str,
    words: str,
    device: DeviceDirectory,
    key: BundleKey,
    keys: Path,
    bundle: bytes,
    tmp_path: Path,
) -> None:
    """D2, P2: RAUC's keyring has a say besides our release keys; each refusal is one gate with evidence."""
    match wrong:
        case "compatible":
            bundle = key.bundle(tmp_path / "b", IMAGE, compatible="kiosk")
        case "signer":
            bundle = BundleKey.make(keys, "stranger").bundle(tmp_path / "b", IMAGE)
        case "slot":
            bundle = key.bundle(tmp_path / "b", IMAGE, slot="bootloader")
        case "bytes":
            bundle = bundle[:1000] + bytes([bundle[1000] ^ 1]) + bundle[1001:]
        case "no bundle":
            bundle = IMAGE
        case "mount":
            (device.path / "rauc" / "mnt").rmdir()
            (device.path / "rauc" / "mnt").touch()
    bench = Bench(device)
    with PlayedBoard(device, SlotName.A), pytest.raises(GateError) as refused:
        await bench.stage(bundle)
    assert refused.value.gate == gate
    assert words in str(refused.value)
    assert bench.system.slots.label(SlotName.B) is None
    assert device.environment().active == A1


async def test_a_service_that_is_absent_is_named(
    device: DeviceDirectory, bundle: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is given up before RAUC is there; what was verified is armed and committed without it, and said."""
    bench = Bench(device)
    bench.system.bootloader.lay(BootEnvironment(A1, previous=B2))
    with pytest.raises(GateError, match="systemctl status rauc") as refused:
        await bench.stage(bundle)
    assert refused.value.gate == "disk"
    assert device.environment().previous == B2
    bench.system.bootloader.lay(BootEnvironment(A1))
    await bench.system.slots.seal(SlotName.B, LABEL)
    caplog.set_level("WARNING")
    await asyncio.to_thread(bench.system.boot_control.arm, B2)
    assert device.environment().trial == Trial(B2, 1)
    bench.system.bootloader.attempt()
    await asyncio.to_thread(bench.system.boot_control.commit)
    assert replace(device.environment(), sequence=0) == BootEnvironment(B2, previous=A1)
    assert [record.message.split(" without RAUC")[0] for record in caplog.records] == [
        "slot B is marked active",
        "slot B is marked good",
    ]
    assert not (device.path / "rauc" / "request.json").exists()


def test_the_way_back_needs_no_service(device: DeviceDirectory) -> None:
    """D5: with RAUC dead and the labels gone, a rollback after the commit arms the old slot, takes it and stays."""
    bench = Bench(device)
    control = bench.system.boot_control
    bench.system.bootloader.lay(BootEnvironment(B2, previous=A1))
    (device.path / "slots" / "A.json").unlink()
    control.arm(A1)
    assert device.environment().trial == Trial(A1, 1)
    bench.system.bootloader.attempt()
    control.revert()
    assert replace(device.environment(), sequence=0) == BootEnvironment(A1)


async def test_an_image_is_restored_by_the_agent_itself_once_rauc_writes_no_more(
    device: DeviceDirectory, bundle: bytes
) -> None:
    """D6: the packed last known good comes back as an image; RAUC, still at work, must not write into it."""
    bench = Bench(device)
    held = hold_handler(device)

    async def restore() -> str:
        writer = await bench.system.slots.begin(SlotName.B, DIGEST)
        try:
            await writer.write(IMAGE[writer.offset :])
            await writer.sync()
            return writer.read_back
        finally:
            await writer.close()

    with PlayedBoard(device, SlotName.A):
        await bench.receive(bundle)
        async with asyncio.TaskGroup() as group:
            installing = group.create_task(bench.install())
            await eventually((device.path / "rauc" / "waiting").exists)
            installing.cancel()
            await eventually(installing.cancelled)
            restoring = group.create_task(restore())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await asyncio.shield(restoring)
            held.unlink()
        assert restoring.result() == DIGEST.sha256
    assert await restore() == DIGEST.sha256, "and without RAUC"


async def test_rauc_killed_under_way_leaves_nothing_that_is_trusted(device: DeviceDirectory, bundle: bytes) -> None:
    """D9: its end is noticed at once; what it wrote is nobody's, and the bundle need not be fetched again."""
    bench = Bench(device)
    held = hold_handler(device)
    with PlayedBoard(device, SlotName.A) as board:
        await bench.receive(bundle)
        async with asyncio.TaskGroup() as group:
            installing = group.create_task(bench.refusal())
            await eventually((device.path / "rauc" / "waiting").exists)
            os.kill(rauc_pid(device), signal.SIGKILL)
        assert installing.result().gate == "disk"
        assert bench.system.slots.label(SlotName.B) is None
        held.unlink()
        board.start(SlotName.A)
        await bench.stage(bundle)
        assert await bench.on_slot() == DIGEST.sha256
    assert str(device.path) not in tool("losetup", "--list")
    assert str(device.path) not in tool("mount")


async def test_an_installation_that_still_runs_is_waited_for(device: DeviceDirectory, bundle: bytes) -> None:
    """An agent that was killed left it behind; the slot is written by one at a time."""
    bench, another = Bench(device), Bench(device)
    held = hold_handler(device)
    with PlayedBoard(device, SlotName.A):
        await bench.receive(bundle)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(bench.install())
            await eventually((device.path / "rauc" / "waiting").exists)
            first.cancel()
            await eventually(first.cancelled)
            group.create_task(another.install())
            await asyncio.sleep(0)
            held.unlink()
        assert await another.on_slot() == DIGEST.sha256


@pytest.mark.parametrize("disagreement", ["device", "running slot"])
async def test_rauc_must_mean_the_same_slots(disagreement: str, device: DeviceDirectory, bundle: bytes) -> None:
    """D3: a system.conf that would write the running slot, or a device that nobody reads back, is found before."""
    bench = Bench(device)
    if disagreement == "device":
        system = device.path / "rauc" / "system.conf"
        system.write_text(system.read_text().replace("/B.img", "/C.img"))
    before = {slot: device.slot_sha256(slot) for slot in ("A", "B")}
    running = SlotName.A if disagreement == "device" else SlotName.B
    with (
        PlayedBoard(device, running),
        pytest.raises(GateError, match=r"make system\.conf and config\.toml agree") as no,
    ):
        await bench.stage(bundle)
    assert no.value.gate == "dual-partition"
    assert {slot: device.slot_sha256(slot) for slot in ("A", "B")} == before


async def test_space_for_the_bundle_is_taken_first(device: DeviceDirectory, bundle: bytes) -> None:
    place = device.path / "rauc"
    tool("mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place))
    try:
        with pytest.raises(DiskFullError, match=r"update\.raucb"):
            await Bench(device).receive(b"", digest_of(bundle))
    finally:
        tool("umount", str(place))


async def test_the_running_slot_and_a_larger_image_are_refused(device: DeviceDirectory, bundle: bytes) -> None:
    bench = Bench(device)
    assert bench.system.installer is not None
    with pytest.raises(Exception, match="slot A is the active one"):
        await bench.system.installer.begin(SlotName.A, digest_of(bundle))
    with PlayedBoard(device, SlotName.A):
        await bench.receive(bundle)
        with pytest.raises(Exception, match="cannot hold"):
            await bench.system.installer.install(SlotName.B, replace(DIGEST, size_bytes=64 * MIB), bench._installed)


async def test_a_service_without_what_we_ask_for_is_too_old(device: DeviceDirectory, bundle: bytes) -> None:
    """A stand-in that owns RAUC's name and knows no properties, as before RAUC 1.0."""
    from jeepney import HeaderFields, MessageType, message_bus, new_error
    from jeepney.io.blocking import open_dbus_connection

    def answer() -> None:
        with open_dbus_connection(bus_address(device.path)) as connection:
            connection.send_and_get_reply(message_bus.RequestName("de.pengutronix.rauc", 4))
            while True:
                message = connection.receive(timeout=20)
                if message.header.message_type is MessageType.method_call:
                    text = f"No such property {message.body[1]!r}"
                    error = "org.freedesktop.DBus.Error.InvalidArgs"
                    connection.send(new_error(message, error, "s", (text,)))
                    assert message.header.fields[HeaderFields.member] == "Get"
                    return

    bench = Bench(device)
    with PlayedBoard(device, SlotName.A):
        await bench.receive(bundle)
        os.kill(rauc_pid(device), signal.SIGKILL)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(answer))
            refusal = await bench.refusal()
    assert (refusal.gate, "RAUC 1.8 or later is needed" in str(refusal)) == ("disk", True)
