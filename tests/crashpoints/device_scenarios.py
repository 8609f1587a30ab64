"""What happens to the device in each scenario, and how it may end.

A plot is a set of rules, looked at in their order whenever the device has nothing to do: the first whose time has come
is carried out. They depend on what can be seen alone, so the same plot goes on after a power cut wherever it came.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from device.backend import open_slots
from device.bootenv import Boot, BootEnvironment, SlotName
from device.config import Backend
from device.progress import Progress
from device.state import Document
from device.values import to_plain
from tests.crashpoints.device_boot import StoryError, config_for
from tests.crashpoints.device_story import Standing, Story, World
from tests.crashpoints.fleet import (
    CONFIG_OF,
    NEW,
    NEWEST,
    OLD,
    SLOT_BYTES,
    config_of,
    digest_of,
    image_of,
    the_fleet,
)
from tests.crashpoints.hub import HubState
from tests.crashpoints.medium import lay_image, read_image
from tests.crashpoints.oracle import Expected
from wavemesh.runtime.durable import Disk
from wavemesh.trust.statements import ROLLBACK_FAILED, UpdateState, WaveState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.crashpoints.device_boot import DeviceBoot
    from tests.crashpoints.fleet import Served
    from tests.crashpoints.medium import Image

S = UpdateState
_RESTING = frozenset({S.IDLE, S.COMMITTED, S.ROLLED_BACK, S.REFUSED, S.AWAITING_SIGNOFF})
SECOND, THIRD = "142", "143"


@dataclass(frozen=True, slots=True)
class Rule:
    """``name`` is noted in the hub's state when it is carried out; one that is ``again`` may be carried out twice."""

    name: str
    when: Callable[[DeviceBoot], bool]
    do: Callable[[DeviceBoot], None]
    again: bool = False


OLD_PAIR, NEW_PAIR, NEWEST_PAIR = ((version, CONFIG_OF[version]) for version in (OLD, NEW, NEWEST))
UPDATED = ("UPDATED", "")
BY_OPERATOR = ("ROLLED_BACK", "operator")
BY_SCANNER = ("ROLLED_BACK", "peripheral:scanner")
UNPROVEN = ("ROLLED_BACK", "watchdog")


@dataclass(frozen=True, slots=True)
class DeviceScenario:
    """One scenario: its beginning, its plot and its ends; ``runs_before`` is what a trial that ends falls back to.

    A bootloader that only counts its fall-backs (GRUB, U-Boot) cannot prove a second loss of power in a row. There a
    trial may also end by the watchdog's gate, and a rollback after the commit may give up; the simulated one proves
    all.
    """

    name: str
    about: str
    begin: Callable[[Backend], Standing]
    expected: Expected
    rules: tuple[Rule, ...] = ()
    without_scanner: frozenset[str] = frozenset()
    schema_changes: bool = False
    wave_id: str = SECOND
    boots_per_attempt: int = 1
    runs_before: tuple[str, str] = OLD_PAIR
    ends_in: frozenset[UpdateState] = field(default=_RESTING)
    until: Callable[[DeviceBoot], bool] = lambda _: True

    def world(self, backend: Backend) -> World:
        """As the story wants it."""
        return World(
            backend=backend,
            act=self._act,
            is_over=self._is_over,
            without_scanner=self.without_scanner,
            agent_of=newer_agent if self.schema_changes else None,
        )

    def _act(self, boot: DeviceBoot) -> bool:
        for rule in self.rules:
            hub = boot.around.hub
            if (rule.again or rule.name not in hub.state.done) and rule.when(boot):
                if rule.name not in hub.state.done:
                    hub.become(hub.state.having_done(rule.name))
                rule.do(boot)
                return True
        return False

    def expected_on(self, backend: Backend) -> Expected:
        """Its ends on that back-end."""
        if backend is Backend.SIMULATED:
            return self.expected
        words = {word for _, said in self.expected.ends for word in said}
        unproven = [(self.runs_before, (UNPROVEN,))]
        stayed = [(NEW_PAIR, (UPDATED,)), (NEW_PAIR, (UPDATED, BY_OPERATOR))] if BY_OPERATOR in words else []
        return replace(self.expected, ends=(*self.expected.ends, *unproven, *stayed))

    def _is_over(self, boot: DeviceBoot) -> bool:
        progress = boot.agent.progress
        if boot.around.config.board.backend is not Backend.SIMULATED:
            gave_up = any(kind == ROLLBACK_FAILED for kind, _ in boot.around.hub.state.events)
            if progress.gate == UNPROVEN[1] or gave_up:
                return progress.state in _RESTING
        return progress.state in self.ends_in and self.until(boot)


# --- beginnings -------------------------------------------------------------------------------------------------------


def provisioned(backend: Backend) -> Image:
    """A device as it leaves the factory."""
    fleet = the_fleet()
    old, config = image_of(OLD), config_of(CONFIG_OF[OLD])
    label = {"release": f"firmware-v{OLD}", "version": OLD, "firmware": to_plain(digest_of(old))}
    config_label = {"version": CONFIG_OF[OLD], **to_plain(digest_of(config))}
    files = {
        **{f"identity/{name}": content for name, content in fleet.device_files.items()},
        "trust/root.json": fleet.keys.pinned_root,
        "slots/A.json": json.dumps(label).encode(),
        **_slots(backend, old),
        "state/config/1/bundle": config,
        "state/config/1/label.json": json.dumps(config_label).encode(),
    }
    parents = {parent for name in files for parent in _parents(name)}
    return {**dict.fromkeys(parents, None), **files}


def _slots(backend: Backend, old: bytes) -> dict[str, bytes]:
    """The old image on slot A, nothing on slot B, and a boot environment by the back-end's own hand."""
    if backend is Backend.SIMULATED:
        files = {"slots/A.img": old, "slots/B.img": b""}
    else:
        files = {"slots/A.img": old.ljust(SLOT_BYTES, b"\0"), "slots/B.img": bytes(SLOT_BYTES)}
    if backend is Backend.UBOOT:
        # Copies of two sectors each, so that one may be torn.
        files |= {"slots/fw_env.config": b"uboot-env 0 0x400\nuboot-env 0x400 0x400\n", "slots/uboot-env": bytes(0x800)}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "device"
        lay_image(directory, {"slots": None, **files})
        system = open_slots(directory, config_for(backend, directory), Disk())
        system.bootloader.lay(BootEnvironment(Boot(SlotName.A, 1)))
        laid = read_image(directory)
    return {name: content for name, content in laid.items() if content is not None}


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def before_the_first_order(backend: Backend, **order: Any) -> Standing:
    """The device knows its hub and rests; the order waits there."""
    fleet = the_fleet()
    idle = World(backend, lambda _: False, lambda boot: boot.agent.progress.state is S.IDLE)
    standing = Story(idle, Standing(provisioned(backend), HubState().serving(*fleet.trust()))).tell()
    return _with_order(standing, SECOND, NEW, **order)


def _with_order(standing: Standing, wave_id: str, version: str, **order: Any) -> Standing:
    hub = standing.hub.serving(*the_fleet().order(wave_id, version, **order))
    return Standing(standing.image, hub, standing.reason, 0, standing.elapsed_s)


def before_a_garbled_download(backend: Backend) -> Standing:
    """The first read of the image will bring other bytes than were signed."""
    standing = before_the_first_order(backend)
    return replace(standing, hub=replace(standing.hub, garbled_reads=1))


def after_a_rollback(backend: Backend) -> Standing:
    """A first wave was rolled back and closed; a second waits, with a release that works."""
    first = _rest(backend, before_the_first_order(backend), S.ROLLED_BACK, without_scanner=frozenset({NEW}))
    return _with_order(_closed(first), THIRD, NEWEST)


def after_an_update(backend: Backend) -> Standing:
    """A first wave updated the device and is closed; a second waits, which will overwrite the last known good."""
    return _with_order(_closed(_rest(backend, before_the_first_order(backend), S.COMMITTED)), THIRD, NEWEST)


def after_an_update_and_a_way_back(backend: Backend) -> Standing:
    """Two waves updated the device, an operator rolled the second one back; a second operator wants more."""
    committed = _rest(backend, after_an_update(backend), S.COMMITTED)
    hub = committed.hub.serving(the_fleet().rollback())
    back = _rest(backend, replace(committed, hub=hub), S.ROLLED_BACK)
    back = _rest(backend, replace(back, hub=back.hub.serving(the_fleet().closed(THIRD))), S.IDLE)
    return replace(back, hub=back.hub.serving(the_fleet().rollback(2)), trial_boots=0)


def _rest(backend: Backend, standing: Standing, state: UpdateState, **plot: Any) -> Standing:
    """Where a device rests in that state, with nothing but a hub around it."""
    scenario = DeviceScenario("", "", lambda _: standing, Expected(()), ends_in=frozenset({state}), **plot)
    return Story(scenario.world(backend), standing).tell()


def _closed(standing: Standing) -> Standing:
    return replace(standing, hub=standing.hub.serving(the_fleet().closed(SECOND)))


# --- rules ------------------------------------------------------------------------------------------------------------


def _in(*states: UpdateState) -> Callable[[DeviceBoot], bool]:
    return lambda boot: boot.agent.progress.state in states


def _said(boot: DeviceBoot, kind: str) -> bool:
    return any(word.kind == kind for word in boot.around.hub.state.words)


def _reach(boot: DeviceBoot, *, reachable: bool) -> None:
    hub = boot.around.hub
    hub.become(replace(hub.state, is_reachable=reachable))


def _cut_off(boot: DeviceBoot) -> bool:
    return not boot.around.hub.state.is_reachable


def _serve(boot: DeviceBoot, served: Served) -> None:
    hub = boot.around.hub
    hub.become(hub.state.serving(served))


def _is_served(boot: DeviceBoot, served: Served) -> bool:
    return any((one.key.type, one.key.name) == (served.type, served.name) for one in boot.around.hub.state.wanted)


def _approval(boot: DeviceBoot) -> Served:
    progress = boot.agent.progress
    return the_fleet().approval(progress.wave_id, progress.attempt)


def _ask_locally(boot: DeviceBoot) -> None:
    refusal = boot.agent.ask_rollback("local operator: till frozen")
    if refusal:
        raise StoryError(refusal)


OFFLINE_ROLLBACK = (
    Rule(
        "the line is cut",
        lambda boot: _in(S.COMMITTED)(boot) and _said(boot, "UPDATED"),
        partial(_reach, reachable=False),
    ),
    Rule(
        "a local operator rolls back",
        lambda boot: _in(S.COMMITTED)(boot) and _cut_off(boot),
        _ask_locally,
        again=True,
    ),
    Rule(
        "the line is back",
        lambda boot: _in(S.ROLLED_BACK)(boot) and _cut_off(boot),
        partial(_reach, reachable=True),
    ),
)
SIGNED_ROLLBACK = (
    Rule(
        "an operator rolls back",
        lambda boot: _in(S.COMMITTED)(boot) and _said(boot, "UPDATED"),
        lambda boot: _serve(boot, the_fleet().rollback()),
    ),
)
SIGN_OFF = (
    Rule(
        "an operator approves the rollback",
        lambda boot: _in(S.AWAITING_SIGNOFF)(boot) and not _is_served(boot, _approval(boot)),
        lambda boot: _serve(boot, _approval(boot)),
        again=True,
    ),
)


# --- an agent of another schema ---------------------------------------------------------------------------------------

NewerProgress = make_dataclass(
    "NewerProgress", [("mood", str, "confident")], bases=(Progress,), frozen=True, slots=True
)
NewerDocument = make_dataclass(
    "NewerDocument",
    [
        ("progress", NewerProgress, field(default_factory=NewerProgress)),
        ("weather", str, "fair"),
        ("tides", dict[str, int], field(default_factory=lambda: {"noon": 3})),
    ],
    bases=(Document,),
    frozen=True,
    slots=True,
)


@contextmanager
def newer_agent(version: str) -> Iterator[None]:
    """While a new version runs, the agent writes fields that the old one does not know."""
    if version == OLD:
        yield
        return
    with patch("device.state.Document", NewerDocument):
        yield


# --- all of them ------------------------------------------------------------------------------------------------------


def _ends(*ends: tuple[tuple[str, str], tuple[tuple[str, str], ...]]) -> Expected:
    return Expected(tuple((pair, words) for pair, words in ends))


SCENARIOS = (
    DeviceScenario(
        "update",
        "a full update: stage, arm, trial, commit",
        before_the_first_order,
        _ends((NEW_PAIR, (UPDATED,))),
        ends_in=frozenset({S.COMMITTED}),
    ),
    DeviceScenario(
        "garbled-download",
        "the image arrives with other bytes than were signed, and is fetched again",
        before_a_garbled_download,
        _ends((NEW_PAIR, (UPDATED,))),
        ends_in=frozenset({S.COMMITTED}),
    ),
    DeviceScenario(
        "rollback-in-trial",
        "the new release lost a driver: the trial fails and the device goes back",
        before_the_first_order,
        _ends((OLD_PAIR, (BY_SCANNER,))),
        without_scanner=frozenset({NEW}),
        ends_in=frozenset({S.ROLLED_BACK}),
    ),
    DeviceScenario(
        "offline-rollback",
        "after the commit the line is cut and a local operator rolls back",
        before_the_first_order,
        _ends((OLD_PAIR, (UPDATED, BY_OPERATOR))),
        OFFLINE_ROLLBACK,
        ends_in=frozenset({S.ROLLED_BACK}),
        until=lambda boot: not _cut_off(boot),
    ),
    DeviceScenario(
        "operator-rollback",
        "after the commit an operator's signed intent rolls back",
        before_the_first_order,
        _ends((OLD_PAIR, (UPDATED, BY_OPERATOR))),
        SIGNED_ROLLBACK,
        ends_in=frozenset({S.ROLLED_BACK, S.COMMITTED}),
        until=lambda boot: "an operator rolls back" in boot.around.hub.state.done,
    ),
    DeviceScenario(
        "second-update",
        "after a rollback the next wave goes over the same slot",
        after_a_rollback,
        _ends((NEWEST_PAIR, (UPDATED,))),
        without_scanner=frozenset({NEW}),
        wave_id=THIRD,
        ends_in=frozenset({S.COMMITTED}),
    ),
    DeviceScenario(
        "packing-update",
        "an update over the last known good, which is packed first",
        after_an_update,
        _ends((NEWEST_PAIR, (UPDATED,))),
        wave_id=THIRD,
        runs_before=NEW_PAIR,
        ends_in=frozenset({S.COMMITTED}),
    ),
    DeviceScenario(
        "second-rollback",
        "after a rollback a second one, to the packed last known good",
        after_an_update_and_a_way_back,
        _ends((OLD_PAIR, (UPDATED, BY_OPERATOR))),
        wave_id=THIRD,
        until=lambda boot: boot.equipment.record.boot.config_generation == 1,
    ),
    DeviceScenario(
        "supervised",
        "a supervised trial fails and waits for an operator's approval of that attempt",
        partial(before_the_first_order, offline_rollback=False),
        _ends((OLD_PAIR, (BY_SCANNER,))),
        SIGN_OFF,
        without_scanner=frozenset({NEW}),
        boots_per_attempt=4,
        ends_in=frozenset({S.ROLLED_BACK}),
    ),
    DeviceScenario(
        "supervised-unsigned",
        "a supervised trial fails, and nobody ever signs that off",
        partial(before_the_first_order, offline_rollback=False),
        Expected(((OLD_PAIR, (("FAILED", "peripheral:scanner"),)), (OLD_PAIR, (BY_SCANNER,))), may_be_on_trial=True),
        without_scanner=frozenset({NEW}),
        boots_per_attempt=4,
        ends_in=frozenset({S.AWAITING_SIGNOFF, S.ROLLED_BACK}),
        until=lambda boot: _said(boot, "FAILED") or boot.agent.progress.state is S.ROLLED_BACK,
    ),
    DeviceScenario(
        "rotation",
        "a planned wave wants a younger certificate",
        partial(before_the_first_order, state=WaveState.PLANNED, rotates=True),
        _ends((OLD_PAIR, ())),
        until=lambda boot: boot.around.hub.state.renewals > 0,
    ),
    DeviceScenario(
        "config-only",
        "an update of the config alone: no other slot, the same machine",
        partial(before_the_first_order, firmware=False),
        _ends(((OLD, CONFIG_OF[NEW]), (UPDATED,))),
        ends_in=frozenset({S.COMMITTED}),
    ),
    DeviceScenario(
        "schema-change",
        "the newer agent writes fields that the older one does not know, then rolls back to it",
        before_the_first_order,
        _ends((OLD_PAIR, (BY_SCANNER,))),
        without_scanner=frozenset({NEW}),
        schema_changes=True,
        ends_in=frozenset({S.ROLLED_BACK}),
    ),
)
