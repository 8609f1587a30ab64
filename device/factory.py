"""What a factory does to a device: an image on slot A that boots, nothing on slot B, and a config bundle.

``python -m device.factory --dir DIR --image FILE --release NAME --version VERSION [--config FILE --config-version V]``.
``DIR/config.toml`` says what holds the slots; without it they are simulated. Partitions must be there; files are made.
A device that has slots already is refused: from then on only the agent writes them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device.backend import open_slots
from device.board import boot_record_path
from device.bootenv import Boot, BootEnvironment, BootEnvironmentError, SlotName
from device.config import FILE_NAME, load_device_config, unconfigured
from device.configs import ConfigLabel
from device.platform import SlotLabel
from device.values import to_plain
from wavemesh.errors import LocalError, WavemeshError
from wavemesh.runtime.durable import Disk, disk_errors
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from device.backend import SlotSystem

FIRST_GENERATION = 1


class HasSlotsError(LocalError):
    """The device has slots already; what is on them is for the agent alone to change."""

    reason = "HAS_SLOTS"


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a device leaves the factory with."""

    image: Path
    release: str
    version: str
    config: bytes
    config_version: str


def equip(directory: Path, equipment: Equipment) -> None:
    """Lay the slots, the boot environment and the first config generation; raises LocalError."""
    configured = (directory / FILE_NAME).exists()
    config = load_device_config(directory) if configured else unconfigured(directory)
    system = open_slots(directory, config, Disk())
    if _is_equipped(system):
        msg = f"{directory} holds slots already; a new device needs an empty directory"
        raise HasSlotsError(msg)
    with disk_errors(equipment.image):
        label = _label(equipment)
    system.media.lay(equipment.image, label)
    with disk_errors(directory):
        boot_record_path(directory).parent.mkdir(parents=True, exist_ok=True)
        _lay_config(directory / "state" / "config" / str(FIRST_GENERATION), equipment)
    system.bootloader.lay(BootEnvironment(Boot(SlotName.A, FIRST_GENERATION)))


def _is_equipped(system: SlotSystem) -> bool:
    """Whether a slot was labelled or something boots: a bootloader's environment may be there before it names slots."""
    if any(system.media.version(slot) for slot in SlotName):
        return True
    try:
        system.bootloader.read()
    except BootEnvironmentError:
        return False
    return True


def _label(equipment: Equipment) -> SlotLabel:
    with equipment.image.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return SlotLabel(equipment.release, equipment.version, Digest(sha256, equipment.image.stat().st_size))


def _lay_config(generation: Path, equipment: Equipment) -> None:
    generation.mkdir(parents=True, exist_ok=True)
    (generation / "bundle").write_bytes(equipment.config)
    sha256 = hashlib.sha256(equipment.config).hexdigest()
    label = ConfigLabel(equipment.config_version, sha256, len(equipment.config))
    (generation / "label.json").write_text(json.dumps(to_plain(label)), encoding="utf-8")


def _read(path: Path) -> bytes:
    with disk_errors(path):
        return path.read_bytes()


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m device.factory", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="directory of the device")
    parser.add_argument("--image", type=Path, required=True, help="what slot A runs")
    parser.add_argument("--release", required=True, help="name of the release that the image is")
    parser.add_argument("--version", required=True, help="its version")
    parser.add_argument("--config", type=Path, help="config bundle; an empty one without it")
    parser.add_argument("--config-version", default="0.0.0", help="its version")
    options = parser.parse_args()
    try:
        config = _read(options.config) if options.config else b""
        equipment = Equipment(options.image, options.release, options.version, config, options.config_version)
        equip(options.dir, equipment)
    except WavemeshError as error:
        sys.stderr.write(f"device.factory: {error.reason}: {error}\n")
        return 1
    command = f"python -m device.supervisor --dir {options.dir}"
    sys.stdout.write(f"{options.dir} runs {options.release} from slot A; start it with {command}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
