"""What runs and why, on a Linux board: never a guess (D9, D10)."""

from __future__ import annotations

import pytest

from device.bootenv import Boot, ResetReason, SlotName
from device.running import Boots, Mount, RunningSlotError, mount_at, reset_reason, running_boot

A, B = SlotName.A, SlotName.B
SLOTS = {A: "179:2", B: "179:3"}

MOUNTINFO = """\
21 27 0:20 / /proc rw,relatime shared:1 - proc proc rw
27 1 179:2 / / rw,relatime shared:2 - ext4 /dev/mmcblk0p2 rw
30 27 0:31 / /data\\040x rw - tmpfs tmpfs rw
31 27 254:0 / / ro,relatime - squashfs /dev/mapper/root ro
"""


def said(command_line: str, root: tuple[str, ...] = ("179:2",), slots: dict[SlotName, str] | None = None) -> Boots:
    return Boots("/proc/cmdline", command_line, "/", root, SLOTS if slots is None else slots)


@pytest.mark.parametrize(
    ("boots", "boot"),
    [
        (said("quiet wavemesh.slot=A root=/dev/mmcblk0p2 wavemesh.config=3"), Boot(A, 3)),
        (said("wavemesh.slot=B wavemesh.config=0", ("254:0", "179:3")), Boot(B, 0)),  # through dm-verity
        (said("wavemesh.slot=B wavemesh.config=12", ("0:35",), {}), Boot(B, 12)),  # slots in files: one source
        (said("wavemesh.slot=A wavemesh.slot=A wavemesh.config=3"), Boot(A, 3)),  # said twice, but the same
    ],
)
def test_a_certain_boot(boots: Boots, boot: Boot) -> None:
    assert running_boot(boots) == boot


@pytest.mark.parametrize(
    ("boots", "names"),
    [
        (said("quiet root=/dev/mmcblk0p2"), ("wavemesh.slot", "root=/dev/mmcblk0p2", "179:2")),
        (said("wavemesh.slot=C wavemesh.config=3"), ("wavemesh.slot=C",)),
        (said("wavemesh.slot=A wavemesh.slot=B wavemesh.config=3"), ("wavemesh.slot=A wavemesh.slot=B",)),
        (said("wavemesh.slot=A"), ("wavemesh.config",)),
        (said("wavemesh.slot=A wavemesh.config=-1"), ("wavemesh.config=-1",)),
        (said("wavemesh.slot=A wavemesh.config=٣"), ("wavemesh.config",)),
        (said("wavemesh.slot=A wavemesh.config=1000000000000"), ("wavemesh.config",)),
        (said("wavemesh.slot=B wavemesh.config=3"), ("wavemesh.slot=B", "/ rests on 179:2", "slot B is 179:3")),
        (said("wavemesh.slot=A wavemesh.config=3", ("0:35",)), ("no slot", "[linux] root", "0:35")),
        (said("wavemesh.slot=A wavemesh.config=3", ()), ("rests on nothing known",)),
        (said("wavemesh.slot=A wavemesh.config=3", ("179:3",), {B: "179:3"}), ("slot B",)),
        (said("wavemesh.slot=A wavemesh.config=3", ("254:0", "179:2", "179:3")), ("slot B",)),  # rests on both
    ],
)
def test_an_uncertain_boot_names_every_source(boots: Boots, names: tuple[str, ...]) -> None:
    """Q2: what each source said, and what to mend."""
    with pytest.raises(RunningSlotError) as caught:
        running_boot(boots)
    for name in (*names, "/proc/cmdline"):
        assert name in str(caught.value)


def test_the_last_mount_at_a_place_counts() -> None:
    assert mount_at(MOUNTINFO, "/") == Mount("254:0", "/dev/mapper/root")
    assert mount_at(MOUNTINFO, "/proc") == Mount("0:20", "proc")
    assert mount_at(MOUNTINFO, "/nowhere") is None
    assert mount_at("garbage\n- - -\n27 1 179:2 / /", "/") is None


@pytest.mark.parametrize(
    ("board", "bootstatus", "crashed", "agent", "reason"),
    [
        (None, (), False, None, "watchdog"),
        (ResetReason.POWER_LOSS, (), False, None, "power-loss"),
        (ResetReason.POWER_LOSS, (0x8000,), False, ResetReason.REBOOT, "power-loss"),
        (ResetReason.POWER_LOSS, (0, 0x20), False, None, "watchdog"),
        (ResetReason.POWER_LOSS, (), True, None, "watchdog"),
        (None, (0x10,), False, None, "watchdog"),  # a watchdog's own word about power proves nothing
        (None, (0,), False, ResetReason.REBOOT, "reboot"),
        (None, (0,), False, ResetReason.POWER_ON, "power-on"),
        (None, (0x20,), False, ResetReason.REBOOT, "watchdog"),
    ],
)
def test_a_power_loss_is_proven_or_is_none(
    board: ResetReason | None, bootstatus: tuple[int, ...], crashed: object, agent: ResetReason | None, reason: str
) -> None:
    """Semantics: "proven by the supervisor's or board's reset reason, else it is watchdog"."""
    found = reset_reason(board=board, bootstatus=bootstatus, crashed=bool(crashed), agent=agent)
    assert found.value == reason
