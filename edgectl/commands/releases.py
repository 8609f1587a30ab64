"""``edgectl release``: make, sign, publish and hold releases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.framework import Session, command
from edgectl.tables import releases_table

app = typer.Typer(help="Signed releases.", no_args_is_help=True)

DraftOption = Annotated[Path, typer.Option("--dir", help="The draft's directory, passed from holder to holder.")]
FileOption = Annotated[Path | None, typer.Option(help="The file; its name is the artifact's name.")]
BaseOption = Annotated[
    Path | None, typer.Option("--published", help="targets.json to add to.", show_default="what control published")
]
KeyOption = Annotated[list[Path], typer.Option("--key", help="A release key in PEM; repeatable.")]
OriginOption = Annotated[
    Path | None, typer.Option("--origin", help="Also copy the artifacts there, where the origin serves them from.")
]
ThresholdOption = Annotated[int, typer.Option("--threshold", min=1, max=16, help="Signatures that are needed.")]
NameArgument = Annotated[str, typer.Argument(help="The release.")]
_THRESHOLD = 2


@command(app, "create")
def create(
    session: Session,
    *,
    directory: DraftOption,
    name: Annotated[str, typer.Option("--name", help='"firmware-v3.8.2".')],
    version: Annotated[str, typer.Option("--version", help="Semantic version.")],
    device_class: Annotated[str, typer.Option("--class", help="Device class.")],
    hardware: Annotated[list[str], typer.Option("--hardware", help="Hardware revision; repeatable.")],
    firmware: FileOption = None,
    config: FileOption = None,
    config_version: Annotated[str, typer.Option(help="Semantic version of the config.")] = "",
    requires_config: Annotated[str, typer.Option(help='Constraint on the config, ">=12.0.0 <13".')] = "",
    minimum_version: Annotated[str, typer.Option(help="Floor that devices never go below again.")] = "",
    region: Annotated[list[str] | None, typer.Option("--region", help="Only this region; repeatable.")] = None,
    boot_probe: Annotated[str, typer.Option(help="Boot probe a policy may select.")] = "",
    peripheral_check: Annotated[list[str] | None, typer.Option(help="Check a policy may select; repeatable.")] = None,
    vendor_probe: Annotated[list[str] | None, typer.Option(help="Probe a policy may select; repeatable.")] = None,
    touches_bootloader: Annotated[bool, typer.Option(help="The image changes the bootloader.")] = False,
    published: BaseOption = None,
) -> None:
    """Make a draft of a release. Its signing time is now; nothing is published."""
    from edgectl import releasing
    from edgectl.files import read_file
    from edgectl.intents import now
    from wavemesh.trust.releases import UNKNOWN_DIGEST, Artifact, ReleaseManifest

    manifest = ReleaseManifest(
        name=name,
        version=version,
        device_class=device_class,
        hardware_revisions=tuple(hardware),
        signed_at=now().replace(microsecond=0),
        firmware=releasing.artifact_of(firmware) if firmware else None,
        config=releasing.artifact_of(config) if config else None,
        signature=Artifact(f"{name}.sig", UNKNOWN_DIGEST),
        regions=tuple(region or ()),
        config_version=config_version,
        requires_config=requires_config,
        minimum_version=minimum_version,
        touches_bootloader=touches_bootloader,
        boot_probe=boot_probe,
        peripheral_checks=tuple(peripheral_check or ()),
        vendor_probes=tuple(vendor_probe or ()),
    )
    base = read_file(published) if published else _published(session)
    files = {path.name: path for path in (firmware, config) if path}
    releasing.create(directory, manifest, files, base)
    _show_progress(session, directory, _THRESHOLD)


@command(app, "sign")
def sign(session: Session, *, directory: DraftOption, key: KeyOption, threshold: ThresholdOption = _THRESHOLD) -> None:
    """Sign a draft with your release key. Twice a holder: first the bundle, then targets.json; asks nobody."""
    from edgectl import releasing
    from edgectl.intents import now
    from wavemesh.trust.keys import load_signer

    releasing.sign(directory, [load_signer(path) for path in key], threshold, now())
    _show_progress(session, directory, threshold)


@command(app, "publish")
def publish(session: Session, *, directory: DraftOption, origin: OriginOption = None) -> None:
    """Give signed release metadata to control. The signatures decide; published again, nothing changes."""
    from edgectl import releasing
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import PublishReleaseRequest

    request = PublishReleaseRequest(targets=releasing.signed_targets(directory))
    if origin:
        releasing.copy_artifacts(directory, origin)
    data = plain(session.ask(lambda stub: stub.PublishRelease(request, timeout=CALL_TIMEOUT_S)))
    before = " (published before)" if data["duplicate"] else ""
    session.show(data, f"targets.json version {data['targets_version']}{before}: {', '.join(data['releases'])}")


@command(app, "list")
def list_releases(session: Session) -> None:
    """Show published releases and holds."""
    data = _releases(session)
    session.show(data, releases_table(data))


@command(app, "show")
def show(session: Session, *, name: NameArgument) -> None:
    """Show one release."""
    from wavemesh.errors import NotFoundError

    found = [release for release in _releases(session) if release["name"] == name]
    if not found:
        raise NotFoundError(f"no release {name!r} here")
    session.show(found[0], releases_table(found))


@command(app, "hold")
def hold(
    session: Session, *, name: NameArgument, reason: Annotated[str, typer.Option("--reason", help="Why.")]
) -> None:
    """Put a release on hold: no hub seeds it, no device starts it, from the moment they hear of it."""
    _set_hold(session, name, reason, held=True)


@command(app, "unhold")
def unhold(
    session: Session, *, name: NameArgument, reason: Annotated[str, typer.Option("--reason", help="Why.")] = ""
) -> None:
    """Lift a hold."""
    _set_hold(session, name, reason, held=False)


def _set_hold(session: Session, name: str, reason: str, *, held: bool) -> None:
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import SetHoldRequest

    request = SetHoldRequest(release=name, held=held, reason=reason)
    data = plain(session.ask(lambda stub: stub.SetHold(request, timeout=CALL_TIMEOUT_S)))
    change = "nothing changed" if data["duplicate"] else "done"
    session.show(data, f"{change}; on hold (epoch {data['epoch']}): {', '.join(data['held']) or 'none'}")


def _releases(session: Session) -> list[dict[str, object]]:
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import ListReleasesRequest

    answer = session.ask(lambda stub: stub.ListReleases(ListReleasesRequest(), timeout=CALL_TIMEOUT_S))
    return [plain(release) for release in answer.releases]


def _published(session: Session) -> bytes:
    from wavemesh.v1.operator_pb2 import ListReleasesRequest

    return bytes(session.ask(lambda stub: stub.ListReleases(ListReleasesRequest(), timeout=CALL_TIMEOUT_S)).targets)


def _show_progress(session: Session, directory: Path, threshold: int) -> None:
    import dataclasses

    from edgectl import releasing

    state = releasing.progress(directory, threshold)
    data = {**dataclasses.asdict(state), "complete": state.complete, "directory": str(directory)}
    session.show(data, f"{state.release} in {directory}: {state.next_step}")
