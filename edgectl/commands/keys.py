"""``edgectl keys``: ceremonies with files a person can carry (docs/guide/key-ceremonies.md)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.framework import Session, command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from securesystemslib.signer import Key

    from wavemesh.trust.metadata import RoleKeys
    from wavemesh.v1.operator_pb2 import ListReleasesResponse

app = typer.Typer(help="Keys and ceremonies: who may sign what.", no_args_is_help=True)

DirectoryOption = Annotated[Path, typer.Option("--dir", help="The ceremony's directory, carried between holders.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is no terminal to ask at.")]
ReplaceOption = Annotated[
    list[str] | None, typer.Option("--replace", help="OLD=NEW, files of public keys; repeatable.", metavar="OLD=NEW")
]


def _public(what: str) -> Any:
    return typer.Option(f"--{what}", help=f"A public {what} key; repeatable. All of them: they replace those before.")


@command(app, "create")
def create(
    session: Session,
    *,
    keys: Annotated[
        list[str],
        typer.Argument(metavar="KEY...", help="Files to make (ann.pem), or one key in a token: hsm:2?label=TOKEN."),
    ],
    reference: Annotated[
        Path | None, typer.Option("--reference", help="For a token's key: the file that refers to it (ann.json).")
    ] = None,
) -> None:
    """Make keys, and beside each a .pub file to give away. A key that is there is left as it is."""
    made = [_create(key, reference) for key in keys]
    told = (f"{one['key']}: {one['state']}; id {one['keyid'][:16]}; give away {one['public']}" for one in made)
    session.show(made, *told)


def _create(key: str, reference: Path | None) -> dict[str, str]:
    from edgectl.exits import UsageError
    from edgectl.signers import ask_pin
    from wavemesh.trust.keys import (
        PUBLIC_SUFFIX,
        create_signer,
        is_token_uri,
        load_signer,
        write_public,
        write_reference,
    )

    if is_token_uri(key):
        from wavemesh.trust.tokens import create_token_key

        if reference is None:
            raise UsageError("a key in a token needs --reference FILE.json, which is given where a key's file is asked")
        in_token = create_token_key(key, ask_pin)
        write_reference(in_token, reference)
        public_key, path, state = in_token.public_key, reference, "refers to the key, which stays in its token"
    else:
        path = Path(key)
        state = "exists already, unchanged" if path.exists() else "made; keep it where it is, and a copy elsewhere"
        public_key = (load_signer(path) if path.exists() else create_signer(path)).public_key
    public = path.with_suffix(PUBLIC_SUFFIX)
    write_public(public_key, public)
    return {"key": str(path), "public": str(public), "keyid": public_key.keyid, "state": state}


@command(app, "show")
def show(
    session: Session,
    *,
    files: Annotated[list[Path], typer.Argument(help="Files of keys, root.json or targets.json.")],
    directory: Annotated[Path | None, typer.Option("--dir", help="Say which roles the keys have there.")] = None,
) -> None:
    """Show keys (id, kind, roles) or metadata files (roles, thresholds, signatures, expiry)."""
    from edgectl.keyviews import describe, files_table

    found = [describe(path, directory) for path in files]
    session.show(found, files_table(found))


@command(app, "root")
def root(
    session: Session,
    *,
    directory: DirectoryOption,
    root_key: Annotated[list[Path] | None, _public("root")] = None,
    release: Annotated[list[Path] | None, _public("release")] = None,
    online: Annotated[list[Path] | None, _public("online")] = None,
    root_threshold: Annotated[int | None, typer.Option(min=1, max=32, show_default="most of the keys")] = None,
    release_threshold: Annotated[int | None, typer.Option(min=1, max=32, show_default="most of the keys")] = None,
    replace: ReplaceOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Draft the next root: who holds root, release and online keys, and how many of them must sign."""
    from edgectl.intents import now
    from edgectl.trustdir import roles_of
    from wavemesh.trust.ceremony import ONLINE_ROLES, draft_root

    wanted = {"root": (root_key, root_threshold), "targets": (release, release_threshold)}
    wanted |= dict.fromkeys(ONLINE_ROLES, (online, 1))

    def make(previous: bytes | None) -> bytes:
        known = roles_of(previous) if previous else {}
        roles = {
            name: _role(known.get(name), files, threshold)
            for name, (files, threshold) in wanted.items()
            if files or (threshold and name in known)
        }
        made = draft_root(previous, roles, now()) if roles or previous is None else previous
        return _replaced(made, previous, replace)

    _draft(session, directory, "root", make, dry_run=dry_run)


@command(app, "targets")
def targets(
    session: Session,
    *,
    directory: DirectoryOption,
    control: Annotated[list[Path] | None, _public("control")] = None,
    replace: ReplaceOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Draft the next targets.json: whose keys speak as control. The first one has no releases."""
    from edgectl.exits import UsageError
    from edgectl.intents import now
    from wavemesh.trust.ceremony import draft_targets

    if not control and not replace:
        raise UsageError("give --control PUB or --replace OLD=NEW")

    def make(previous: bytes | None) -> bytes:
        made = draft_targets(previous, _role(None, control, 1), now()) if control else previous or b""
        return _replaced(made, previous, replace)

    _draft(session, directory, "targets", make, dry_run=dry_run)


@command(app, "delegate")
def delegate(
    session: Session,
    *,
    directory: DirectoryOption,
    device_class: Annotated[str, typer.Argument(metavar="CLASS", help="Device class.")],
    key: Annotated[list[Path], typer.Option("--key", help="A public key of those who release for it; repeatable.")],
    threshold: Annotated[int, typer.Option("--threshold", min=1, max=32, help="How many of them must sign.")],
    names: Annotated[
        list[str] | None,
        typer.Option("--names", help="Names it may use, a prefix and a star; repeatable.", show_default="CLASS-*"),
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Draft a targets.json by which these keys release for one device class, and for no other."""
    from edgectl.intents import now
    from wavemesh.trust import ceremony

    keys = _role(None, key, threshold)
    patterns = names or [f"{device_class}-*"]
    _draft(
        session,
        directory,
        "targets",
        lambda previous: ceremony.delegate(previous or b"", device_class, keys, patterns, now()),
        dry_run=dry_run,
    )


@command(app, "withdraw")
def withdraw(
    session: Session,
    *,
    directory: DirectoryOption,
    device_class: Annotated[str, typer.Argument(metavar="CLASS", help="Device class.")],
    dry_run: DryRunOption = False,
) -> None:
    """Draft a targets.json by which a class's own keys vouch for nothing any more: its releases end with it."""
    from edgectl.intents import now
    from wavemesh.trust import ceremony

    _draft(
        session,
        directory,
        "targets",
        lambda previous: ceremony.withdraw(previous or b"", device_class, now()),
        dry_run=dry_run,
    )


@command(app, "renew")
def renew(
    session: Session,
    *,
    directory: DirectoryOption,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="root, targets or class-NAME.")],
) -> None:
    """Draft the next version of a file that says the same: before it expires, or for keys that are new."""
    from edgectl.intents import now
    from edgectl.trustdir import TrustDirectory

    name, _ = TrustDirectory(directory).renew(role, now())
    _show_draft(session, directory, name, "drafted; it says the same as before")


@command(app, "sign")
def sign(
    session: Session,
    *,
    directory: DirectoryOption,
    key: Annotated[str, typer.Option("--key", help="Your key: a file, or hsm:NUMBER?label=TOKEN.")],
    dry_run: DryRunOption = False,
    yes: YesOption = False,
) -> None:
    """Sign every draft in the directory that waits for your key, after showing what it changes. Asks no server."""
    from edgectl.exits import UsageError
    from edgectl.output import confirm, note
    from edgectl.signers import ask_pin
    from edgectl.trustdir import TrustDirectory, changes
    from wavemesh.trust.keys import load_signer

    trust, signer = TrustDirectory(directory), load_signer(key, ask_pin)
    waiting = trust.waiting_for(signer.public_key)
    for file in waiting:
        before = directory / f"{file.version - 1}.{file.role}.json"
        told = changes(before.read_bytes() if before.exists() else None, file.data)
        note("\n  ".join([f"{file.name}:", *(told or ["nothing but version and expiry"])]))
    names = [file.name for file in waiting]
    if waiting and not dry_run:
        confirm(f"Sign {', '.join(names)}?", yes=yes)
        trust.sign(signer)
    after = TrustDirectory(directory)
    done = "would sign" if dry_run else "signed"
    data = {"signed": [] if dry_run else names, "waiting": names if dry_run else [], "next": after.next_step()}
    if not waiting and not any(file.complete for file in after.reviews()):
        raise UsageError(f"nothing in {directory} waits for this key")
    session.show(data, f"{done} {', '.join(names) or 'nothing: no draft waits for this key'}", f"next: {data['next']}")


@command(app, "verify")
def verify(session: Session, *, directory: DirectoryOption) -> None:
    """Check every file in the directory: signatures, thresholds, expiry, names. Asks no server; exit 1 on problems."""
    from edgectl.exits import Exit
    from edgectl.intents import now
    from edgectl.keyviews import reviews_table
    from edgectl.trustdir import TrustDirectory

    trust = TrustDirectory(directory)
    trust.require("root")
    problems, next_step = trust.problems(now()), trust.next_step()
    reviews = list(trust.reviews())
    data = {"files": [file.name for file in reviews], "problems": problems, "next": next_step}
    session.show(data, reviews_table(reviews), *problems, f"next: {next_step}")
    if problems:
        raise typer.Exit(Exit.CHECK_FAILED)


@command(app, "fetch")
def fetch(session: Session, *, directory: DirectoryOption) -> None:
    """Write what control has published into the directory: where every ceremony after the first begins."""
    from edgectl.trustdir import file_name
    from wavemesh.errors import ConflictError
    from wavemesh.runtime.durable import Disk
    from wavemesh.trust.files import read_metadata

    published = _published(session)
    files = {"root": published.roots, "targets": [published.targets]}
    files |= {role: [data] for role, data in published.delegated.items()}
    disk = Disk()
    disk.make_dir(directory)
    names: list[str] = []
    for role, datas in files.items():
        for data in datas:
            names.append(file_name(role, int(read_metadata(data).signed.version)))
            path = directory / names[-1]
            if path.exists() and path.read_bytes() != data:
                raise ConflictError(f"{path} differs from what control published: move it away, then fetch again")
            disk.write_atomic(path, data, 0o644)
    session.show({"files": names}, f"{len(names)} files in {directory}: {', '.join(names)}")


@command(app, "publish")
def publish(
    session: Session, *, directory: DirectoryOption, dry_run: DryRunOption = False, yes: YesOption = False
) -> None:
    """Give control what is new in the directory, all together. A published root is never taken back."""
    from edgectl.exits import UsageError
    from edgectl.intents import now
    from edgectl.output import confirm
    from edgectl.plain import plain
    from edgectl.trustdir import TrustDirectory
    from wavemesh.v1.operator_pb2 import PublishReleaseRequest

    trust = TrustDirectory(directory)
    problems = trust.problems(now())
    if problems:
        raise UsageError(f"{directory} is not complete: {'; '.join(problems)}; next: {trust.next_step()}")
    published = _published(session)
    new_roots = trust.roots[len(published.roots) :]
    if trust.roots[: len(published.roots)] != tuple(published.roots)[: len(trust.roots)]:
        raise UsageError(f"{directory} has other roots than control has published: is this the right fleet?")
    top = trust.newest("targets") or b""
    classes = {role: data for role, data in trust.class_files().items() if published.delegated.get(role) != data}
    request = PublishReleaseRequest(
        targets=top if top != published.targets else b"", roots=new_roots, delegated=classes
    )
    what = [*(f"{len(published.roots) + n + 1}.root.json" for n in range(len(new_roots)))]
    what += [file.name for file in trust.reviews() if file.role in classes or file.data == request.targets]
    if not what:
        session.show({"published": [], "duplicate": True}, "nothing is new: all of it is published")
        return
    if dry_run:
        session.show({"published": [], "would_publish": what}, f"would publish {', '.join(what)}")
        return
    confirm(f"Publish {', '.join(what)}? It cannot be taken back.", yes=yes)
    answer = plain(session.ask(lambda stub: stub.PublishRelease(request, timeout=CALL_TIMEOUT_S)))
    session.show({**answer, "published": what}, f"published {', '.join(what)}")


@command(app, "install")
def install(
    session: Session,
    *,
    directory: DirectoryOption,
    control: Annotated[Path, typer.Option("--control", help="Control's directory, before its first start.")],
) -> None:
    """Put a complete first repository where control begins with it; every other node needs 1.root.json alone."""
    from edgectl.exits import UsageError
    from edgectl.intents import now
    from edgectl.trustdir import TrustDirectory
    from wavemesh.errors import ConflictError
    from wavemesh.runtime.durable import Disk

    trust = TrustDirectory(directory)
    problems = trust.problems(now())
    if problems:
        raise UsageError(f"{directory} is not complete: {'; '.join(problems)}; next: {trust.next_step()}")
    bootstrap, disk = control / "trust" / "bootstrap", Disk()
    disk.make_dir(bootstrap)
    files = {control / "trust" / "root.json": trust.roots[0], bootstrap / "targets.json": trust.require("targets")}
    files |= {bootstrap / f"{n}.root.json": data for n, data in enumerate(trust.roots[1:], start=2)}
    files |= {bootstrap / f"{role}.json": data for role, data in trust.class_files().items()}
    for path, data in files.items():
        if path.exists() and path.read_bytes() != data:
            raise ConflictError(f"{path} holds another file: control has begun with it, use `edgectl keys publish`")
        disk.write_atomic(path, data, 0o644)
    names = [str(path) for path in files]
    session.show({"files": names}, f"installed {', '.join(names)}", "next: start control")


def _draft(
    session: Session, directory: Path, role: str, make: Callable[[bytes | None], bytes], *, dry_run: bool
) -> None:
    from edgectl.trustdir import TrustDirectory, changes

    trust = TrustDirectory(directory)
    if dry_run:
        made = make(trust.newest(role))
        told = changes(trust.newest(role), made) or ["nothing"]
        session.show({"changes": told}, f"the next {role}.json would change:", *told)
        return
    name, written = trust.draft(role, make)
    _show_draft(session, directory, name, "drafted" if written else "says this already; nothing changed")


def _show_draft(session: Session, directory: Path, name: str, state: str) -> None:
    from edgectl.trustdir import TrustDirectory

    next_step = TrustDirectory(directory).next_step()
    session.show(
        {"file": name, "state": state, "next": next_step}, f"{directory / name}: {state}", f"next: {next_step}"
    )


def _role(known: RoleKeys | None, files: Sequence[Path] | None, threshold: int | None) -> RoleKeys:
    """Keys given, or those before; the threshold given, or the one before, or most of the keys."""
    from wavemesh.trust.ceremony import merged_keys
    from wavemesh.trust.keys import load_public

    keys: list[Key] = [load_public(path) for path in files] if files else list(known.keys.values() if known else ())
    return merged_keys(keys, threshold or (known.threshold if known else len(keys) // 2 + 1))


def _replaced(made: bytes, previous: bytes | None, replace: Sequence[str] | None) -> bytes:
    """The draft with keys replaced, one version after ``previous``; done before, nothing changes."""
    from edgectl.exits import UsageError
    from edgectl.intents import now
    from edgectl.trustdir import roles_of
    from wavemesh.trust.ceremony import at_version, replace_key
    from wavemesh.trust.files import read_metadata
    from wavemesh.trust.keys import load_public

    for pair in replace or ():
        old, sign_, new = pair.partition("=")
        if not sign_ or not made:
            raise UsageError(f"--replace {pair!r}: give OLD=NEW, the files of two public keys, after a first draft")
        keys = [load_public(Path(old)), load_public(Path(new))]
        held = {keyid for role in roles_of(made).values() for keyid in role.keys}
        if keys[0].keyid not in held and keys[1].keyid in held:
            continue
        made = replace_key(made, keys[0], keys[1], now())
    version = int(read_metadata(previous).signed.version) + 1 if previous else 1
    return at_version(made, version)


def _published(session: Session) -> ListReleasesResponse:
    from wavemesh.v1.operator_pb2 import ListReleasesRequest

    return session.ask(lambda stub: stub.ListReleases(ListReleasesRequest(), timeout=CALL_TIMEOUT_S))
