"""``edgectl ca``: ceremonies of the fleet's authorities. None of these asks anybody: they work on files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgectl.framework import Session, command
from edgectl.output import Table

if TYPE_CHECKING:
    from edgectl.ceremonies import Extras

app = typer.Typer(help="The fleet's authorities: the offline root and one authority a region.", no_args_is_help=True)

CaOption = Annotated[Path, typer.Option("--ca", help="Directory of the offline root.")]
DirOption = Annotated[Path, typer.Option("--dir", help="Directory of the super hub.")]
OutOption = Annotated[Path, typer.Option("--out", help="Where to write the answer.")]
DaysOption = Annotated[float | None, typer.Option("--days", help="Lifetime.", show_default="90; a region: 1825")]
IpOption = Annotated[list[str] | None, typer.Option("--ip", help="Address to name as well; repeatable.")]
DnsOption = Annotated[list[str] | None, typer.Option("--dns", help="DNS name to name as well; repeatable.")]


@command(app, "create")
def create(
    session: Session, *, directory: CaOption, fleet: Annotated[str, typer.Option("--fleet", help='"acme.example".')]
) -> None:
    """Make the fleet's root on the offline machine; WAVEMESH_CA_PASSPHRASE, where set, encrypts its key."""
    from edgectl import ceremonies

    ca = ceremonies.create_root(directory, fleet)
    data = {"fleet": ca.fleet, "fingerprint": ceremonies.fingerprint(ca.certificate), "directory": str(directory)}
    session.show(
        data,
        f"root of {fleet} in {directory}, fingerprint {data['fingerprint']}",
        "next, on each super hub: edgectl ca request --dir DIR --region NAME",
    )


@command(app, "request")
def request(
    session: Session, *, directory: DirOption, region: Annotated[str, typer.Option("--region", help="The region.")]
) -> None:
    """Make the key of a region's authority on its super hub, and a request to carry to the root."""
    from edgectl import ceremonies
    from wavemesh.identity.ca import CA_KEY_FILE

    path = ceremonies.request(directory / "authority", CA_KEY_FILE, f"authority of {region}")
    session.show(
        {"request": str(path)},
        f"{path} is the request; the key stays here",
        f"next, on the offline machine: edgectl ca sign {path.name} --ca DIR --region {region} --out answer.pem",
    )


@command(app, "sign")
def sign(
    session: Session,
    *,
    file: Annotated[Path, typer.Argument(help="The request.")],
    ca: CaOption,
    out: OutOption,
    region: Annotated[str, typer.Option("--region", help="Certify the authority of that region.")] = "",
    node: Annotated[str, typer.Option("--node", help="Certify control/NAME or operator/NAME.")] = "",
    days: DaysOption = None,
    ip: IpOption = None,
    dns: DnsOption = None,
) -> None:
    """Sign a request with the root. Names come from these options, never from the request."""
    from edgectl import ceremonies
    from edgectl.exits import UsageError
    from wavemesh.identity.ca import FleetCa
    from wavemesh.runtime.durable import write_file

    if bool(region) == bool(node):
        msg = "say either --region NAME or --node control/NAME or operator/NAME"
        raise UsageError(msg)
    root = FleetCa.load(ca, ceremonies.passphrase())
    extras = _extras(days, ip or [], dns or [])
    answer = (
        ceremonies.sign_region(root, file, region, extras) if region else ceremonies.sign_node(root, file, node, extras)
    )
    write_file(out, answer)
    following = "ca install" if region else "node install"
    session.show(
        {"answer": str(out)},
        f"{out} certifies {region or node}",
        f"next, where the request was made: edgectl {following} {out.name} --dir DIR",
    )


@command(app, "install")
def install(
    session: Session, *, file: Annotated[Path, typer.Argument(help="The answer.")], directory: DirOption
) -> None:
    """Put a region's authority into its super hub's directory; the super hub gets its own certificate by it."""
    from edgectl import ceremonies

    ca = ceremonies.install_region(directory, file)
    session.show(
        {"fleet": ca.fleet, "region": ca.region, "until": ca.certificate.not_valid_after_utc.isoformat()},
        f"{directory} holds the authority of {ca.region} until {ca.certificate.not_valid_after_utc.isoformat()}",
        f'next: the fleet\'s 1.root.json as {directory / "trust" / "root.json"}, `join_listen = "HOST:PORT"` in '
        f"{directory / 'config.toml'}, start it, then edgectl node token",
    )


@command(app, "show")
def show(session: Session, *, file: Annotated[Path, typer.Argument(help="Certificates or a request, PEM.")]) -> None:
    """Show what is in a file of certificates or a request, with fingerprints to compare."""
    from edgectl import ceremonies

    found = ceremonies.describe(file)
    rows = [(key, value) for one in found for key, value in one.items() if value]
    session.show(found, Table("", ("", str(file)), rows))


def _extras(days: float | None, ip: list[str], dns: list[str]) -> Extras:
    import ipaddress
    from datetime import timedelta

    from edgectl.ceremonies import Extras
    from edgectl.exits import UsageError

    try:
        addresses = [ipaddress.ip_address(one) for one in ip]
    except ValueError as error:
        raise UsageError(f"--ip: {error}") from error
    return Extras(addresses, dns, timedelta(days=days) if days else None)
