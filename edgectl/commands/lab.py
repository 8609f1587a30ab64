"""``edgectl lab``: a store in a box, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgectl.exits import Exit
from edgectl.framework import Session, command
from edgectl.output import Table, note

app = typer.Typer(help="A whole mesh on this machine, to try it all.", no_args_is_help=True)
wan = typer.Typer(help="The WAN between a store and its super hub.", no_args_is_help=True)
power = typer.Typer(help="The power of a device.", no_args_is_help=True)
app.add_typer(wan, name="wan")
app.add_typer(power, name="power")

DirectoryOption = Annotated[Path, typer.Option("--dir", envvar="EDGECTL_LAB", help="Where the lab lives.")]
OldOption = Annotated[
    Path | None, typer.Option("--old", help="Image the devices run at first.", show_default="a kernel")
]
NewOption = Annotated[Path | None, typer.Option("--new", help="Image of the release.", show_default="the next kernel")]
BackendOption = Annotated[
    list[str] | None,
    typer.Option("--backend", help="DEVICE:BACKEND, repeatable; one of simulated, grub, uboot, rauc."),
]
StoreArgument = Annotated[str, typer.Argument(help='"store-208" or "store-209".')]
DeviceArgument = Annotated[str, typer.Argument(help="The device, by name.")]
_DIRECTORY = Path("lab-data")


@command(app, "up")
def up(
    session: Session,
    *,
    directory: DirectoryOption = _DIRECTORY,
    old: OldOption = None,
    new: NewOption = None,
    backend: BackendOption = None,
) -> None:
    """Set up the lab if it is not, start it in the background, plan wave 142, select context "control"."""
    from lab.up import bring_up

    state = bring_up(directory, old, new, backend or (), note)
    session.show(state, f"the lab is up in {directory}; contexts: control, {', '.join(state['stores'])}")


@command(app, "down")
def down(session: Session, *, directory: DirectoryOption = _DIRECTORY) -> None:
    """Stop the lab's processes; its data stays."""
    from lab.processes import stop_all
    from lab.topology import load_lab

    stopped = stop_all(load_lab(directory))
    session.show({"stopped": stopped}, f"{len(stopped)} processes stopped")


@command(app, "status")
def status(session: Session, *, directory: DirectoryOption = _DIRECTORY) -> None:
    """Show the lab's processes; exits 1 when one is not running."""
    from lab.processes import states
    from lab.topology import load_lab

    data = [
        {"name": s.name, "running": s.running, "pid": s.pid, "log": str(s.log)} for s in states(load_lab(directory))
    ]
    rows = [(str(d["name"]), "running" if d["running"] else "down", str(d["pid"] or "-"), str(d["log"])) for d in data]
    session.show(data, Table("", ("process", "state", "pid", "log"), rows))
    if not data or not all(d["running"] for d in data):
        raise typer.Exit(Exit.CHECK_FAILED)


@command(wan, "cut")
def wan_cut(session: Session, *, store: StoreArgument, directory: DirectoryOption = _DIRECTORY) -> None:
    """Cut a store's WAN: connections break and none can be made."""
    _wan(session, directory, "cut", store)


@command(wan, "restore")
def wan_restore(session: Session, *, store: StoreArgument, directory: DirectoryOption = _DIRECTORY) -> None:
    """Bring a store's WAN back."""
    _wan(session, directory, "restore", store)


def _wan(session: Session, directory: Path, verb: str, store: str) -> None:
    from lab.injectors import tell_wan
    from lab.topology import load_lab

    links = tell_wan(load_lab(directory), verb, store)["links"]
    (link,) = (link for link in links if link["name"] == store)
    session.show(link, f"{store}: {link['mode']}")


@command(power, "cut")
def power_cut(session: Session, *, device: DeviceArgument, directory: DirectoryOption = _DIRECTORY) -> None:
    """Cut a device's power for a moment, wherever it is; it boots again by itself."""
    _power(session, directory, "power-cut", device)


@command(power, "off")
def power_off(session: Session, *, device: DeviceArgument, directory: DirectoryOption = _DIRECTORY) -> None:
    """Cut a device's power until it is switched on."""
    _power(session, directory, "off", device)


@command(power, "on")
def power_on(session: Session, *, device: DeviceArgument, directory: DirectoryOption = _DIRECTORY) -> None:
    """Switch a device on."""
    _power(session, directory, "on", device)


def _power(session: Session, directory: Path, verb: str, device: str) -> None:
    from lab.injectors import tell_supervisor
    from lab.topology import load_lab

    board = tell_supervisor(load_lab(directory), device, verb)
    sentence = (
        f"{device}: power {board['power']}, slot {board['slot'] or '-'}, started by {board['reset_reason'] or '-'}"
    )
    session.show({"device": device, **board}, sentence)


@command(app, "demo")
def demo(
    session: Session,
    *,
    seed: Annotated[int, typer.Option("--seed", help="Varies victims and moments.")] = 1,
    old: OldOption = None,
    new: NewOption = None,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", help="DEVICE:GATE, repeatable: make that gate fail where it is first checked."),
    ] = None,
    backend: BackendOption = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Keep the lab's data there.", show_default="a temporary directory")
    ] = None,
    tamper: Annotated[
        str | None, typer.Option("--tamper", help="Falsify one fact and see the checker find it: slot, limit, report.")
    ] = None,
) -> None:
    """Run the whole story once and check it: one wave, one bad device, power cuts, a WAN outage. Exits 1 if not so."""
    from lab.demo import DemoOptions, run_demo
    from lab.scenario import parse_fault, parse_tamper
    from lab.up import read_backends

    options = DemoOptions(
        seed=seed,
        old=old,
        new=new,
        faults=tuple(parse_fault(text) for text in fault or ()),
        directory=directory,
        tamper=parse_tamper(tamper),
        backends=read_backends(backend or ()),
        output=session.output,
    )
    raise typer.Exit(run_demo(options))
