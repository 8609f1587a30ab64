"""``edgectl lab up``: the lab as a place to try things in.

It leaves behind: every process in the background; contexts ``control``, ``store-208`` and ``store-209``, ``control``
selected, in ``DIR/contexts.toml`` and in the user's own contexts file (EDGECTL_CONFIG, else ``~/.config``), whose other
contexts stay; release ``firmware-v3.8.2`` published; wave 142 planned; ``policy.yaml`` in DIR and, unless one is there,
in the current directory. Run again, it starts what does not run and changes nothing else.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device.config import Backend
from edgectl.contexts import load_contexts, save_contexts, user_path
from lab import operations, processes
from lab.environments import backend_of
from lab.images import ImagePair, ImageSource, best_images, cache_directory
from lab.policies import RELEASE
from lab.provision import exists, provision
from lab.scenario import parse_backends
from lab.topology import STORES, WAVE, load_lab
from wavemesh.errors import ConflictError, LocalError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lab.topology import Lab

SERVERS = ("origin", "wan", "control", "superhub")


class NoImageError(LocalError):
    """An image that was named is not there."""

    reason = "NO_IMAGE"


def bring_up(
    directory: Path, old: Path | None, new: Path | None, backends: Sequence[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """Set up and start; ``backends`` as DEVICE:BACKEND. Returns what is up, as plain data."""
    chosen = read_backends(backends)
    if exists(directory):
        lab = load_lab(directory)
        _check_backends(lab, chosen)
    else:
        say("making images")
        pair = images(old, new)
        say(f"making the lab in {directory} from {pair.source.value} images")
        lab = provision(directory, pair, chosen)
    start_servers(lab)
    say("servers are ready")
    prepare(lab)
    processes.start(lab, lab.devices)
    operations.wait_connected(lab)
    say(f"{len(lab.devices)} devices are connected")
    leave_contexts(lab)
    local_policy = Path("policy.yaml")
    if not local_policy.exists():
        shutil.copyfile(lab.policy_path, local_policy)
    return {
        "directory": str(lab.directory),
        "stores": list(lab.stores),
        "devices": len(lab.devices),
        "wave": WAVE,
        "policy": str(lab.policy_path),
        "contexts": [str(lab.contexts_path), str(user_path())],
    }


def read_backends(texts: Sequence[str]) -> dict[str, str]:
    """Back-ends by device; raises BadScenarioError."""
    devices = [device for names in STORES.values() for device in names]
    return parse_backends(texts, [backend.value for backend in Backend], devices)


def _check_backends(lab: Lab, chosen: Mapping[str, str]) -> None:
    for device, backend in chosen.items():
        has = backend_of(lab.device_dir(device))
        if has != backend:
            msg = f"{device} was made with back-end {has}: another lab, --dir elsewhere, can have it with {backend}"
            raise ConflictError(msg)


def images(old: Path | None, new: Path | None) -> ImagePair:
    """The images given, the missing one made; raises NoImageError or ImageError."""
    for path in (old, new):
        if path is not None and not path.is_file():
            raise NoImageError(f"{path}: no such image")
    if old is not None and new is not None:
        return ImagePair(old, new, ImageSource.GIVEN)
    made = best_images(cache_directory())
    return ImagePair(old or made.old, new or made.new, ImageSource.GIVEN if old or new else made.source)


def start_servers(lab: Lab) -> None:
    """Start everything but the devices and wait until it is ready."""
    processes.start(lab, [*SERVERS, *lab.stores])
    operations.wait_ready(lab, ["control", "superhub", *lab.stores])


def prepare(lab: Lab) -> None:
    """Register devices, publish the release, plan the wave; what is so already stays."""
    operations.register(lab)
    draft = lab.directory / "releases" / RELEASE.name
    if not (draft / "targets.json").exists():
        operations.make_release(lab, operations.standard_draft(lab, RELEASE))
    operations.publish(lab, draft)
    operations.plan(lab, WAVE, lab.policy_path.read_bytes())


def leave_contexts(lab: Lab) -> None:
    """Write the contexts where edgectl finds them."""
    ours = operations.contexts(lab)
    save_contexts(lab.contexts_path, ours)
    if user_path() != lab.contexts_path:
        save_contexts(user_path(), load_contexts(user_path()).merged(ours))
