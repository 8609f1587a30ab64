"""``edgectl release``: make, sign, publish and hold releases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.framework import Session, command
from edgectl.tables import release_parts, releases_table

if TYPE_CHECKING:
    from edgectl.releasing import Base
    from wavemesh.v1.operator_pb2 import ListReleasesResponse

app = typer.Typer(help="Signed releases.", no_args_is_help=True)

DraftOption = Annotated[Path, typer.Option("--dir", help="The draft's directory, passed from holder to holder.")]
FileOption = Annotated[Path | None, typer.Option(help="The file; its name is the artifact's name.")]
BaseOption = Annotated[
    Path | None,
    typer.Option("--published", help="A ceremony's directory to add to.", show_default="what control published"),
]
KeyOption = Annotated[
    list[str], typer.Option("--key", help="A release key: a file, or hsm:NUMBER?label=TOKEN; repeatable.")
]
RoleOption = Annotated[str, typer.Option("--role", help="Who vouches: targets (the release keys) or class-NAME.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]
OriginOption = Annotated[
    str,
    typer.Option("--origin", metavar="DIR|s3://…", help="Also put the artifacts there, whence the origin serves them."),
]
AccessOption = Annotated[
    Path | None,
    typer.Option("--origin-access", help="Access file of an s3:// origin.", show_default="AWS_* of the environment"),
]
NameArgument = Annotated[str, typer.Argument(help="The release.")]


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
    bundle: Annotated[Path | None, typer.Option(help="A RAUC bundle that holds exactly the firmware.")] = None,
    oci: Annotated[str, typer.Option("--app", help="An OCI image that hubs serve: oci:DIR or oci:DIR:TAG.")] = "",
    app_name: Annotated[
        str, typer.Option(help="What a policy calls the app.", show_default="the release's name with .oci")
    ] = "",
    repository: Annotated[
        str, typer.Option("--app-repository", help="What is pulled, HUB/REPOSITORY:TAG.", show_default="DIR's name")
    ] = "",
    config_version: Annotated[str, typer.Option(help="Semantic version of the config.")] = "",
    requires_config: Annotated[str, typer.Option(help='Constraint on the config, ">=12.0.0 <13".')] = "",
    requires_firmware: Annotated[str, typer.Option(help="The config's constraint on the firmware.")] = "",
    minimum_version: Annotated[str, typer.Option(help="Floor that devices never go below again.")] = "",
    region: Annotated[list[str] | None, typer.Option("--region", help="Only this region; repeatable.")] = None,
    boot_probe: Annotated[str, typer.Option(help="Boot probe a policy may select.")] = "",
    peripheral_check: Annotated[list[str] | None, typer.Option(help="Check a policy may select; repeatable.")] = None,
    vendor_probe: Annotated[list[str] | None, typer.Option(help="Probe a policy may select; repeatable.")] = None,
    touches_bootloader: Annotated[bool, typer.Option(help="The image changes the bootloader.")] = False,
    pcr: Annotated[
        list[str] | None, typer.Option(help="What a PCR holds once this release has booted, N=SHA256; repeatable.")
    ] = None,
    role: RoleOption = "targets",
    published: BaseOption = None,
) -> None:
    """Make a draft of a release. Its signing time is now; nothing is published."""
    from edgectl import releasing
    from edgectl.intents import now
    from edgectl.ociapp import read_app
    from wavemesh.trust.releases import UNKNOWN_DIGEST, Artifact, ReleaseManifest

    apps = {"name": app_name or f"{name}.oci", "repository": repository, "default_tag": version}
    image, layers = read_app(oci, **apps) if oci else (None, {})
    manifest = ReleaseManifest(
        name=name,
        version=version,
        device_class=device_class,
        hardware_revisions=tuple(hardware),
        signed_at=now().replace(microsecond=0),
        firmware=releasing.artifact_of(firmware) if firmware else None,
        config=releasing.artifact_of(config) if config else None,
        bundle=releasing.artifact_of(bundle) if bundle else None,
        signature=Artifact(f"{name}.sig", UNKNOWN_DIGEST),
        regions=tuple(region or ()),
        config_version=config_version,
        requires_config=requires_config,
        minimum_version=minimum_version,
        touches_bootloader=touches_bootloader,
        boot_probe=boot_probe,
        peripheral_checks=tuple(peripheral_check or ()),
        vendor_probes=tuple(vendor_probe or ()),
        attestation=tuple(sorted(map(releasing.pcr_of, pcr or ()))),
        requires_firmware=requires_firmware,
        app=image,
    )
    files = {**{path.name: path for path in (firmware, config, bundle) if path}, **layers}
    releasing.create(directory, manifest, files, _base(session, published), role)
    _show_progress(session, directory)


@command(app, "sign")
def sign(session: Session, *, directory: DraftOption, key: KeyOption) -> None:
    """Sign a draft with your release key. Twice a holder: first the bundle, then targets.json; asks no server."""
    from edgectl import releasing
    from edgectl.intents import now
    from edgectl.signers import ask_pin
    from wavemesh.trust.keys import load_signer

    releasing.sign(directory, [load_signer(one, ask_pin) for one in key], now())
    _show_progress(session, directory)


@command(app, "publish")
def publish(
    session: Session, *, directory: DraftOption, origin: OriginOption = "", origin_access: AccessOption = None
) -> None:
    """Give signed release metadata to control. The signatures decide; published again, nothing changes."""
    from edgectl import releasing
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import PublishReleaseRequest

    signed, role = releasing.signed_targets(directory), releasing.load(directory).role
    request = PublishReleaseRequest(**({"targets": signed} if role == "targets" else {"delegated": {role: signed}}))
    uploads = _put_at_origin(directory, origin, origin_access)
    data = plain(session.ask(lambda stub: stub.PublishRelease(request, timeout=CALL_TIMEOUT_S)))
    before = " (published before)" if data["duplicate"] else ""
    told = f"targets.json version {data['targets_version']}{before}: {', '.join(data['releases'])}"
    session.show({**data, "uploads": uploads}, *(f"{one['key']}: {one['state']}" for one in uploads), told)


@command(app, "list")
def list_releases(session: Session) -> None:
    """Show published releases and holds."""
    from edgectl.plain import plain

    data = [plain(release) for release in _answer(session).releases]
    session.show(data, releases_table(data))


@command(app, "show")
def show(session: Session, *, name: NameArgument) -> None:
    """Show one release: what it is, who vouches and signed, whether it is held or revoked."""
    from edgectl import releasing
    from edgectl.plain import plain
    from wavemesh.errors import NotFoundError

    answer = _answer(session)
    found = [plain(release) for release in answer.releases if release.name == name]
    if not found:
        raise NotFoundError(f"no release {name!r} here")
    data = {**found[0], **releasing.details(answer, name)}
    session.show(data, *release_parts(data))


@command(app, "revoke")
def revoke(
    session: Session,
    *,
    name: NameArgument,
    directory: DraftOption,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is signed and shown to everybody.")],
    role: Annotated[
        str, typer.Option("--role", help="Who revokes: targets may revoke any.", show_default="who vouches for it")
    ] = "",
    published: BaseOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Draft a revocation, signed and published like a release: for ever. To stop within minutes, hold it first."""
    from edgectl import releasing
    from edgectl.intents import now

    base = _base(session, published)
    if dry_run:
        by = role or releasing.role_of(name, base)
        session.show({"release": name, "role": by}, f"would draft that {by} revokes {name} for ever: {reason}")
        return
    state = releasing.create_revocation(directory, name, reason, base, now(), role=role)
    if state is None:
        session.show({"release": name, "revoked": True}, f"{name} is revoked already; nothing to do")
        return
    _show_progress(session, directory)


@command(app, "verify")
def verify(
    session: Session,
    *,
    release: Annotated[str, typer.Argument(metavar="DIR|NAME", help="A draft's directory, or a published release.")],
    root: Annotated[
        Path | None, typer.Option("--root", help="The root that nodes pin.", show_default="as it came")
    ] = None,
    published: BaseOption = None,
    artifacts: Annotated[Path | None, typer.Option("--artifacts", help="Where local copies of its files are.")] = None,
) -> None:
    """Check a release from the pinned root to the bytes of its files. A draft asks no server; exit 1 on problems."""
    import json

    from edgectl import releasing, verifying
    from edgectl.exits import Exit
    from edgectl.files import read_file
    from edgectl.intents import now

    directory, name, places = Path(release), release, {}
    if (directory / "draft.json").exists():
        draft = releasing.load(directory)
        name, artifacts = draft.release, artifacts or directory
        base = draft.as_published()
        if not draft.is_revocation:
            places = json.loads((directory / "artifacts.json").read_bytes())
    else:
        base = _base(session, published)
    pinned = read_file(root) if root else base.roots[0]
    files = verifying.local_files(artifacts, places) if artifacts else {}
    checks = verifying.verify(base, name, pinned, files, now())
    problems = [check for check in checks if check.problem]
    told = [f"{'PROBLEM' if check.problem else 'ok':8} {check.what} {check.problem}".rstrip() for check in checks]
    data = {
        "release": name,
        "checks": [{"what": one.what, "problem": one.problem} for one in checks],
        "good": not problems,
    }
    session.show(data, *told, *([] if root else ["the root was taken as it came: add --root with the pinned one"]))
    if problems:
        raise typer.Exit(Exit.CHECK_FAILED)


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


def _put_at_origin(directory: Path, origin: str, access: Path | None) -> list[dict[str, object]]:
    """Put the artifacts where the origin has them; what became of each in a bucket."""
    from edgectl import releasing, uploading
    from edgectl.exits import UsageError

    if not uploading.is_bucket(origin):
        if access is not None:
            raise UsageError("--origin-access is for --origin s3://BUCKET/PREFIX")
        if origin:
            releasing.copy_artifacts(directory, Path(origin))
        return []
    return [one.shown() for one in uploading.upload_artifacts(directory, origin, access)]


def _set_hold(session: Session, name: str, reason: str, *, held: bool) -> None:
    from edgectl.plain import plain
    from wavemesh.v1.operator_pb2 import SetHoldRequest

    request = SetHoldRequest(release=name, held=held, reason=reason)
    data = plain(session.ask(lambda stub: stub.SetHold(request, timeout=CALL_TIMEOUT_S)))
    change = "nothing changed" if data["duplicate"] else "done"
    session.show(data, f"{change}; on hold (epoch {data['epoch']}): {', '.join(data['held']) or 'none'}")


def _answer(session: Session) -> ListReleasesResponse:
    from wavemesh.v1.operator_pb2 import ListReleasesRequest

    return session.ask(lambda stub: stub.ListReleases(ListReleasesRequest(), timeout=CALL_TIMEOUT_S))


def _base(session: Session, published: Path | None) -> Base:
    """What to draft against: a ceremony's directory, or what control published."""
    from edgectl.releasing import Base
    from edgectl.trustdir import TrustDirectory

    if published:
        trust = TrustDirectory(published)
        trust.require("root")
        return Base(trust.roots, trust.require("targets"), trust.class_files())
    return Base.of(_answer(session))


def _show_progress(session: Session, directory: Path) -> None:
    import dataclasses

    from edgectl import releasing

    state = releasing.progress(directory)
    data = {**dataclasses.asdict(state), "complete": state.complete, "directory": str(directory)}
    session.show(data, f"{state.release} in {directory}: {state.next_step}")
