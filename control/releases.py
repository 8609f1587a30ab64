"""The releases control knows, and the holds on them.

Rules:
- What is published is one TUF set; it is kept as the resource ``tuf/metadata`` and verified against the pinned root
  after each start. A new root, targets.json or class file is believed for its signatures, never for who sends it, and
  must be exactly one version on. Control adds snapshot and timestamp and signs them anew before they get old.
- Metadata that leaves control without a key to sign with is refused. When it gives the role control to another key
  that control has, all that is in force is signed anew in the same transaction.
- The hold list is the resource ``holds/fleet``: its epoch grows with each change; the same epoch is signed anew at
  intervals, so that a view of it that is young says that control was heard lately.
"""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING

from control.desired import EVERYBODY, Item
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import ConflictError, GateError, LocalError, NotFoundError
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.files import LIFETIMES
from wavemesh.trust.holds import check_not_held, find_hold
from wavemesh.trust.metadata import check_expiry, load_trusted, recall_trusted
from wavemesh.trust.releases import BadManifestError
from wavemesh.trust.repository import REFRESH_AFTER, Update, is_published, publish, refresh_online
from wavemesh.trust.statements import Envelope, Hold, HoldList, TrustMetadata

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from control.config import Config
    from control.database import Transaction
    from control.desired import DesiredState
    from control.signing import Signing
    from wavemesh.policy.document import Artifacts
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.metadata import TrustedMetadata
    from wavemesh.trust.releases import ReleaseManifest

METADATA_KEY = ResourceKey("tuf", "metadata")
HOLDS_KEY = ResourceKey("holds", "fleet")
SEALED_TYPES = frozenset({"holds", "revocations", "policy", "order", "permit", "closed"})
"""Resources that are envelopes signed as control."""
MAX_HOLDS = 10_000


class BootstrapError(LocalError):
    """The first start lacks the TUF files that make the repository's beginning."""

    reason = "BOOTSTRAP"


class Releases:
    """Releases and holds."""

    def __init__(
        self, pinned_root: bytes, *, desired: DesiredState, signing: Signing, clock: Clock, config: Config
    ) -> None:
        """Nothing is known before ``load``."""
        self._pinned_root = pinned_root
        self._desired = desired
        self._signing = signing
        self._clock = clock
        self._config = config
        self._trusted: TrustedMetadata | None = None
        self._holds: HoldList | None = None

    async def load(self, tx: Transaction, bootstrap: Path) -> None:
        """Take up what was published, or begin with the files in ``bootstrap``.

        Raises BootstrapError where there is neither, GateError where the signatures do not hold.
        """
        published = self._desired.get(EVERYBODY, METADATA_KEY)
        if published is not None:
            self._trusted = recall_trusted(self._pinned_root, decode(TrustMetadata, published.content))
            self._signing.control = self._signing.choose(self._trusted)
        else:
            await self._publish(tx, self._first_set(bootstrap))
        held = self._desired.get(EVERYBODY, HOLDS_KEY)
        if held is not None:
            self._holds = decode(HoldList, decode(Envelope, held.content).payload)
        else:
            await self.say_holds(tx, HoldList(1, (), self._clock.now()))

    @property
    def trusted(self) -> TrustedMetadata:
        """The published set, verified."""
        if self._trusted is None:
            msg = "releases are used before they were loaded"
            raise RuntimeError(msg)
        return self._trusted

    @property
    def holds(self) -> HoldList:
        """The hold list in force."""
        if self._holds is None:
            msg = "holds are used before they were loaded"
            raise RuntimeError(msg)
        return self._holds

    @property
    def hold_epoch(self) -> int:
        """Epoch of the hold list in force."""
        return self.holds.epoch

    def all(self) -> Mapping[str, ReleaseManifest]:
        """Releases by name."""
        return self.trusted.releases()

    def hold_reason(self, manifest: ReleaseManifest) -> str:
        """Reason of the hold in force on a release; empty if there is none."""
        hold = find_hold(manifest, self.holds)
        return hold.reason or "on hold" if hold else ""

    def find(self, artifacts: Artifacts) -> ReleaseManifest:
        """The release whose files a policy names; raises NotFoundError."""
        wanted = (artifacts.firmware, artifacts.config, artifacts.app, artifacts.signature)
        for manifest in self.all().values():
            app = manifest.app.root if manifest.app else None
            files = (manifest.firmware, manifest.config, app, manifest.signature)
            if tuple(file and file.name for file in files) == wanted:
                return manifest
        names = ", ".join(name for name in wanted if name)
        known = "; ".join(
            f"{name}: {', '.join(file.name for file in one.named)}" for name, one in sorted(self.all().items())
        )
        msg = f"artifacts {names} together are no published release; published are {known or 'none'}"
        raise NotFoundError(msg, artifacts=names)

    def require_usable(self, name: str) -> None:
        """Raise GateError: signature (unknown), revoked, hold, freshness (the file that vouches for it expired)."""
        check_not_held(self.trusted.require_release(name), self.holds)
        check_expiry(self.trusted, self._clock.now(), name)

    def is_usable(self, name: str) -> bool:
        """Whether a wave may go on with a release."""
        try:
            self.require_usable(name)
        except GateError:
            return False
        return True

    async def publish(self, tx: Transaction, update: Update) -> bool:
        """Publish what holders of keys signed; False if all of it was published before.

        Raises ConflictError (not the next version, keys that control does not have), GateError, BadManifestError.
        """
        if is_published(self.trusted.source, update):
            return False
        source = self.trusted.source
        online = self._signing.online_for([*source.roots, *update.roots][-1])
        await self._publish(tx, publish(source, update, online, self._clock.now()))
        return True

    async def regain(self, tx: Transaction, metadata: TrustMetadata) -> bool:
        """Publish a set that was published before and is not remembered here; False for the one in force.

        Raises GateError for an older one or one that does not verify, ConflictError, BadManifestError.
        """
        if metadata == self.trusted.source:
            return False
        await self._publish(tx, metadata)
        return True

    async def set_hold(self, tx: Transaction, name: str, reason: str) -> bool:
        """Put a release on hold; False if it was, with that reason. Raises NotFoundError."""
        manifest = self.all().get(name)
        if manifest is None:
            known = ", ".join(sorted(self.all())) or "none"
            msg = f"no release {name!r} is published; published are {known}"
            raise NotFoundError(msg, release=name)
        if len(self.holds.holds) >= MAX_HOLDS:
            msg = f"{MAX_HOLDS} holds are in force; revoke releases that never come back"
            raise ConflictError(msg)
        hold = Hold(name, manifest.firmware.digest.sha256 if manifest.firmware else "", reason)
        return await self._change_holds(tx, {**self._by_release(), name: hold})

    async def lift_hold(self, tx: Transaction, name: str) -> bool:
        """Lift a hold; False if there is none."""
        return await self._change_holds(tx, {key: hold for key, hold in self._by_release().items() if key != name})

    async def refresh(self, tx: Transaction) -> None:
        """Sign anew what gets old: timestamp and snapshot, and the hold list."""
        now = self._clock.now()
        if now - self.holds.issued_at >= timedelta(seconds=self._config.hold_resign_s):
            await self.say_holds(tx, dataclasses.replace(self.holds, issued_at=now))
        signed_at = self.trusted.timestamp.expires - LIFETIMES["timestamp"]
        if now - signed_at >= REFRESH_AFTER:
            source = self.trusted.source
            await self._publish(tx, refresh_online(source, self._signing.online_for(source.roots[-1]), now))

    def _by_release(self) -> dict[str, Hold]:
        return {hold.release: hold for hold in self.holds.holds}

    async def _change_holds(self, tx: Transaction, holds: dict[str, Hold]) -> bool:
        listed = tuple(holds[name] for name in sorted(holds))
        if listed == self.holds.holds:
            return False
        await self.say_holds(tx, HoldList(self.hold_epoch + 1, listed, self._clock.now()))
        return True

    async def say_holds(self, tx: Transaction, holds: HoldList) -> None:
        """Sign and publish that list; it must be a successor of the one in force."""
        [content] = await self._signing.seal([holds])
        await self._desired.publish(tx, Item(EVERYBODY, HOLDS_KEY, content, urgent=True))
        # In force at once for the rest of this transaction; taken back if it fails.
        before, self._holds = self._holds, holds
        tx.after_rollback(lambda: setattr(self, "_holds", before))

    async def _publish(self, tx: Transaction, metadata: TrustMetadata) -> None:
        trusted = load_trusted(self._pinned_root, metadata, self._clock.now(), self._trusted)
        _check_readable(trusted, self._trusted)
        before, key_before = self._trusted, self._signing.control
        key = self._signing.choose(trusted)
        await self._desired.publish(tx, Item(EVERYBODY, METADATA_KEY, encode(metadata)))

        def take_back() -> None:
            self._trusted, self._signing.control = before, key_before

        self._trusted, self._signing.control = trusted, key
        tx.after_rollback(take_back)
        if before is not None and key is not key_before:
            await self._say_all_anew(tx)

    async def _say_all_anew(self, tx: Transaction) -> None:
        """Control speaks with another key from now on, so all that is in force has to be said with it."""
        held = {at: self._desired.get(*at) for at in self._desired.published()}
        said = [(at, one) for at, one in held.items() if one is not None and one.key.type in SEALED_TYPES]
        contents = await self._signing.reseal([one.content for _, one in said])
        items = [
            Item(scope, key, content, one.audience, one.urgent)
            for ((scope, key), one), content in zip(said, contents, strict=True)
        ]
        await self._desired.publish(tx, *items)

    def _first_set(self, bootstrap: Path) -> TrustMetadata:
        try:
            targets = (bootstrap / "targets.json").read_bytes()
        except OSError as error:
            msg = f"first start: {bootstrap / 'targets.json'}: {error.strerror}; put the signed targets.json there"
            raise BootstrapError(msg) from error
        further = sorted(bootstrap.glob("*.root.json"), key=lambda path: (len(path.name), path.name))
        roots = (self._pinned_root, *(path.read_bytes() for path in further))
        unique = tuple(dict.fromkeys(roots))
        delegated = {path.stem: path.read_bytes() for path in sorted(bootstrap.glob("class-*.json"))}
        online = self._signing.online_for(unique[-1])
        return refresh_online(TrustMetadata(unique, b"", b"", targets, delegated), online, self._clock.now())


def _check_readable(trusted: TrustedMetadata, before: TrustedMetadata | None) -> None:
    """Raise BadManifestError for releases that nobody could use; what was so before does not stand in the way."""
    known = before.malformed_releases if before is not None else {}
    problems = {name: why for name, why in trusted.malformed_releases.items() if known.get(name) != why}
    if problems:
        told = "; ".join(f"{name}: {why}" for name, why in sorted(problems.items()))
        msg = f"these files define releases that nobody could use: {told}"
        raise BadManifestError(msg)
