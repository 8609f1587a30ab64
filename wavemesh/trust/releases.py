"""What a release is: the manifest that release keys sign, its JSON form, and whether it fits.

The manifest is the ``custom`` field of the release's main TUF target: the firmware, or the config of a config-only
release. The release's signature bundle (``artifacts.signature`` in a policy) is a TUF target too: a DSSE JSON envelope
over the same manifest as canonical JSON, signed by the threshold of release keys. So the manifest names the bundle but
not its digest, which comes from the bundle's own target entry.

Canonical JSON: sorted keys, no white space, UTF-8, every key present; absent artifacts are null. ``bundle``,
``requires_firmware`` and ``app`` have a key only where there is one, so that older manifests keep their bytes. A
manifest with an unknown key is refused: it might be a condition that this version does not know how to check.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wavemesh.errors import GateError, PeerError
from wavemesh.policy.gates import Gate
from wavemesh.policy.versions import Constraint, Version
from wavemesh.trust.envelope import MAX_SIGNATURES, SignatureGateError, verify_keys
from wavemesh.trust.statements import Digest, Envelope, Signature

if TYPE_CHECKING:
    from wavemesh.trust.metadata import TrustedMetadata

RELEASE_PAYLOAD_TYPE = "application/vnd.wavemesh.release.v1+json"
RELEASE_ROLE = "targets"
CUSTOM_KEY = "wavemesh-release"
MAX_BUNDLE_BYTES = 256 * 1024
MAX_COMMAND_BYTES = 4096
MAX_ENTRIES = 256
UNKNOWN_DIGEST = Digest("0" * 64, 0)
"""Digest of a signature bundle that is not made yet."""

MAX_APP_BLOBS = 256
MAX_OCI_MANIFEST_BYTES = 4 * 1024 * 1024
"""What registries must accept at least, by the OCI distribution specification; clients send no more."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
# OCI distribution specification 1.1, "Pulling manifests".
_REPOSITORY = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PCR = re.compile(r"[0-9]|1[0-9]|2[0-3]")
MAX_PCRS = 8
_TIME_FORM = "%Y-%m-%dT%H:%M:%SZ"


class BadManifestError(PeerError):
    """A release manifest breaks a rule of its form; the message names the key."""

    reason = "BAD_MANIFEST"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of a release: its name as in a policy, and its content."""

    name: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class App:
    """An OCI image: what ``podman pull HUB/REPOSITORY:TAG`` gets from a store hub (O5).

    ``root`` is the image's manifest or index, of ``media_type``; its name is what a policy says. ``blobs`` are all that
    it refers to, directly or not: manifests of platforms, configs, layers.
    """

    repository: str
    tag: str
    media_type: str
    root: Artifact
    blobs: tuple[Digest, ...]

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All of it. A blob's name begins with the app's, so that whoever may vouch for one may for the other."""
        return (self.root, *(Artifact(f"{self.root.name}.{blob.sha256[:16]}", blob) for blob in self.blobs))


@dataclass(frozen=True, slots=True)
class ReleaseManifest:
    """A release. Versions are semantic; empty ``regions`` means all; empty constraints mean none.

    ``minimum_version`` is the floor below which a device never goes again once it runs this release. Commands run on
    devices: they are allowed because release keys signed them, a policy only selects among them. ``bundle`` is a RAUC
    bundle that holds exactly the firmware, another way to the same bytes on a slot (ADR 16). ``requires_config`` binds
    the firmware to a config, ``requires_firmware`` the config to a firmware: what will run together must fit. ``app``
    is an OCI image that the store hub serves; devices that run it pull it from there.
    ``attestation``: what PCRs hold once this release has booted, number and SHA-256 value, in order (ADR 19). What says
    nothing is no part of a manifest, so that the bytes of older releases stay as they were signed.
    """

    name: str
    version: str
    device_class: str
    hardware_revisions: tuple[str, ...]
    signed_at: datetime
    firmware: Artifact | None
    config: Artifact | None
    signature: Artifact
    regions: tuple[str, ...] = ()
    config_version: str = ""
    requires_config: str = ""
    minimum_version: str = ""
    touches_bootloader: bool = False
    boot_probe: str = ""
    peripheral_checks: tuple[str, ...] = ()
    vendor_probes: tuple[str, ...] = ()
    bundle: Artifact | None = None
    attestation: tuple[tuple[int, str], ...] = ()
    requires_firmware: str = ""
    app: App | None = None

    @property
    def main(self) -> Artifact:
        """The artifact whose TUF target carries this manifest."""
        main = self.firmware or self.config or (self.app.root if self.app else None)
        if main is None:
            msg = f"release {self.name} has neither firmware nor config nor app"
            raise BadManifestError(msg)
        return main

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All files of the release, the signature bundle included."""
        files = (self.firmware, self.config, self.bundle, self.signature, *(self.app.artifacts if self.app else ()))
        return tuple(artifact for artifact in files if artifact is not None)

    @property
    def named(self) -> tuple[Artifact, ...]:
        """What people name: of an app its root alone."""
        below = set(self.app.artifacts[1:]) if self.app else set()
        return tuple(artifact for artifact in self.artifacts if artifact not in below)

    @property
    def is_installable(self) -> bool:
        """Whether devices install something of it; an app alone is pulled from the hub by whoever runs it."""
        return self.firmware is not None or self.config is not None


def is_name(text: str) -> bool:
    """Whether a text may name a release, an artifact or a device class."""
    return _NAME.fullmatch(text) is not None


def manifest_to_json(manifest: ReleaseManifest) -> dict[str, Any]:
    """The manifest as a JSON object; raises BadManifestError, so that nothing unreadable is ever signed."""
    value = {
        "name": manifest.name,
        "version": manifest.version,
        "device_class": manifest.device_class,
        "hardware_revisions": list(manifest.hardware_revisions),
        "regions": list(manifest.regions),
        "signed_at": manifest.signed_at.astimezone(UTC).strftime(_TIME_FORM),
        "firmware": _artifact_to_json(manifest.firmware),
        "config": _artifact_to_json(manifest.config),
        "signature": manifest.signature.name,
        "config_version": manifest.config_version,
        "requires_config": manifest.requires_config,
        "minimum_version": manifest.minimum_version,
        "touches_bootloader": manifest.touches_bootloader,
        "boot_probe": manifest.boot_probe,
        "peripheral_checks": list(manifest.peripheral_checks),
        "vendor_probes": list(manifest.vendor_probes),
    }
    if manifest.bundle is not None:
        value["bundle"] = _artifact_to_json(manifest.bundle)
    if manifest.attestation:
        value["attestation"] = {str(number): sha256 for number, sha256 in manifest.attestation}
    if manifest.requires_firmware:
        value["requires_firmware"] = manifest.requires_firmware
    if manifest.app is not None:
        value["app"] = _app_to_json(manifest.app)
    manifest_from_json(value, manifest.signature.digest)
    return value


def canonical_manifest(manifest: ReleaseManifest) -> bytes:
    """The bytes that a signature bundle signs."""
    return json.dumps(manifest_to_json(manifest), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def manifest_from_json(value: object, signature: Digest) -> ReleaseManifest:
    """Read a manifest; ``signature`` is the digest of its bundle. Raises BadManifestError."""
    fields = _Fields(value)
    manifest = ReleaseManifest(
        name=fields.name("name"),
        version=fields.version("version"),
        device_class=fields.name("device_class"),
        hardware_revisions=fields.texts("hardware_revisions", least=1),
        regions=fields.texts("regions"),
        signed_at=fields.time("signed_at"),
        firmware=fields.artifact("firmware"),
        config=fields.artifact("config"),
        signature=Artifact(fields.name("signature"), signature),
        config_version=fields.optional_version("config_version"),
        requires_config=fields.constraint("requires_config"),
        minimum_version=fields.optional_version("minimum_version"),
        touches_bootloader=fields.flag("touches_bootloader"),
        boot_probe=fields.text("boot_probe"),
        peripheral_checks=fields.texts("peripheral_checks"),
        vendor_probes=fields.texts("vendor_probes"),
        bundle=fields.artifact("bundle") if "bundle" in fields else None,
        attestation=fields.pcrs("attestation"),
        requires_firmware=fields.constraint("requires_firmware") if "requires_firmware" in fields else "",
        app=fields.app("app") if "app" in fields else None,
    )
    fields.finish()
    names = [artifact.name for artifact in manifest.artifacts]
    if len(set(names)) < len(names) or manifest.main.name not in names:
        msg = f"artifacts {names} need different names"
        raise BadManifestError(msg)
    if manifest.bundle is not None and manifest.firmware is None:
        msg = f"bundle {manifest.bundle.name} without firmware: it is the firmware's, packed for RAUC"
        raise BadManifestError(msg)
    return manifest


def verify_signature_bundle(bundle: bytes, manifest: ReleaseManifest, trusted: TrustedMetadata) -> None:
    """Raise SignatureGateError unless enough keys of the role that vouches for it signed exactly this manifest."""
    envelope = bundle_from_json(bundle)
    role = trusted.role_of(manifest.name)
    keys, threshold = trusted.role_keys(role)
    verify_keys(envelope, RELEASE_PAYLOAD_TYPE, keys, threshold, role)
    if envelope.payload != canonical_manifest(manifest):
        msg = f"signature bundle {manifest.signature.name} is about another manifest than release {manifest.name}"
        raise SignatureGateError(msg, release=manifest.name)


def bundle_to_json(envelope: Envelope) -> bytes:
    """A DSSE envelope in its JSON form."""
    value = {
        "payload": base64.b64encode(envelope.payload).decode(),
        "payloadType": envelope.payload_type,
        "signatures": [{"keyid": one.keyid, "sig": base64.b64encode(one.sig).decode()} for one in envelope.signatures],
    }
    return json.dumps(value, sort_keys=True, indent=1).encode()


def bundle_from_json(bundle: bytes) -> Envelope:
    """Read a DSSE JSON envelope; raises SignatureGateError."""
    if len(bundle) > MAX_BUNDLE_BYTES:
        msg = f"signature bundle of {len(bundle)} bytes; at most {MAX_BUNDLE_BYTES} are accepted"
        raise SignatureGateError(msg)
    try:
        value = json.loads(bundle)
        signatures = tuple(
            Signature(str(one["keyid"]), base64.b64decode(one["sig"], validate=True))
            for one in value["signatures"][: MAX_SIGNATURES + 1]
        )
        return Envelope(str(value["payloadType"]), base64.b64decode(value["payload"], validate=True), signatures)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        msg = f"signature bundle is not a DSSE envelope in JSON: {error!r}"
        raise SignatureGateError(msg) from error


def check_region(manifest: ReleaseManifest, region: str) -> None:
    """Raise GateError (class) unless the release may enter the region."""
    if manifest.regions and region not in manifest.regions:
        msg = f"release {manifest.name} is for regions {', '.join(manifest.regions)}, not {region}"
        regions = ", ".join(manifest.regions)
        raise GateError(Gate.CLASS.value, msg, release=manifest.name, observed=region, required=regions)


def check_device_fit(manifest: ReleaseManifest, device_class: str, hardware_revision: str) -> None:
    """Raise GateError (class, hardware) unless the release is for such a device."""
    if manifest.device_class != device_class:
        msg = f"release {manifest.name} is for class {manifest.device_class}, not {device_class}"
        classes = {"observed": device_class, "required": manifest.device_class}
        raise GateError(Gate.CLASS.value, msg, release=manifest.name, **classes)
    if hardware_revision not in manifest.hardware_revisions:
        revisions = ", ".join(manifest.hardware_revisions)
        msg = f"release {manifest.name} is for hardware {revisions}, not {hardware_revision}"
        raise GateError(Gate.HARDWARE.value, msg, release=manifest.name, observed=hardware_revision, required=revisions)


def check_rollback_floor(manifest: ReleaseManifest, floor: str) -> None:
    """Raise GateError (rollback-floor) if the release is older than ``floor``; an empty floor allows all."""
    if floor and Version.parse(manifest.version) < Version.parse(floor):
        msg = f"release {manifest.name} has version {manifest.version}, below the floor {floor}"
        versions = {"observed": manifest.version, "required": f"at least {floor}"}
        raise GateError(Gate.ROLLBACK_FLOOR.value, msg, release=manifest.name, **versions)


def _artifact_to_json(artifact: Artifact | None) -> dict[str, Any] | None:
    if artifact is None:
        return None
    return {"name": artifact.name, "sha256": artifact.digest.sha256, "size_bytes": artifact.digest.size_bytes}


def _app_to_json(app: App) -> dict[str, Any]:
    return {
        "repository": app.repository,
        "tag": app.tag,
        "media_type": app.media_type,
        "root": _artifact_to_json(app.root),
        "blobs": [{"sha256": blob.sha256, "size_bytes": blob.size_bytes} for blob in app.blobs],
    }


class _Fields:
    """Strict reading of a JSON object: every key is asked for once, by type."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            msg = f"manifest is {type(value).__name__}, not an object"
            raise BadManifestError(msg)
        self._left: dict[str, Any] = dict(value)

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def text(self, key: str) -> str:
        value = self._take(key)
        if not isinstance(value, str) or len(value.encode("utf-8", "replace")) > MAX_COMMAND_BYTES:
            raise self._bad(key, f"a text of at most {MAX_COMMAND_BYTES} bytes", value)
        return value

    def name(self, key: str) -> str:
        value = self.text(key)
        if not is_name(value):
            raise self._bad(key, "1 to 128 of A-Z, a-z, 0-9, '.', '_', '+', '-', not starting with a sign", value)
        return value

    def version(self, key: str) -> str:
        return str(self._parsed(key, Version.parse, self.text(key)))

    def optional_version(self, key: str) -> str:
        value = self.text(key)
        return str(self._parsed(key, Version.parse, value)) if value else ""

    def constraint(self, key: str) -> str:
        value = self.text(key)
        if value:
            self._parsed(key, Constraint.parse, value)
        return value

    def flag(self, key: str) -> bool:
        value = self._take(key)
        if not isinstance(value, bool):
            raise self._bad(key, "true or false", value)
        return value

    def time(self, key: str) -> datetime:
        value = self.text(key)
        try:
            return datetime.strptime(value, _TIME_FORM).replace(tzinfo=UTC)
        except ValueError:
            raise self._bad(key, "a time like 2026-05-01T12:00:00Z", value) from None

    def texts(self, key: str, least: int = 0) -> tuple[str, ...]:
        value = self._take(key)
        if not isinstance(value, list) or not least <= len(value) <= MAX_ENTRIES:
            raise self._bad(key, f"a list of {least} to {MAX_ENTRIES} texts", value)
        return tuple(_Fields({key: item}).text(key) for item in value)

    def pcrs(self, key: str) -> tuple[tuple[int, str], ...]:
        """PCRs by number; none where the key is absent, and an empty object is no other way to say so."""
        if key not in self._left:
            return ()
        value = self._take(key)
        if not isinstance(value, dict) or not 0 < len(value) <= MAX_PCRS:
            raise self._bad(key, f"an object of 1 to {MAX_PCRS} PCRs", value)
        for number, sha256 in value.items():
            if not _PCR.fullmatch(str(number)) or not _SHA256.fullmatch(str(sha256)):
                wanted = 'PCR numbers "0" to "23", each with a SHA-256 in lower-case hex'
                raise self._bad(key, wanted, f"{number}: {sha256}")
        return tuple(sorted((int(number), str(sha256)) for number, sha256 in value.items()))

    def artifact(self, key: str) -> Artifact | None:
        value = self._take(key)
        if value is None:
            return None
        inner = _Fields(value)
        artifact = Artifact(inner.name("name"), inner._digest(key))
        inner.finish()
        return artifact

    def app(self, key: str) -> App:
        """An OCI image; what is in its manifests is for whoever reads them."""
        inner = _Fields(self._take(key))
        root, blobs = inner.artifact("root"), inner._take("blobs")
        repository, tag, media_type = inner.text("repository"), inner.text("tag"), inner.text("media_type")
        inner.finish()
        if root is None or root.digest.size_bytes > MAX_OCI_MANIFEST_BYTES:
            raise self._bad(key, f"an OCI image with a root of at most {MAX_OCI_MANIFEST_BYTES} bytes", root)
        if not _REPOSITORY.fullmatch(repository) or not _TAG.fullmatch(tag):
            raise self._bad(
                key, 'a repository and tag as registries have them, like "pos/app" and "12.4.1"', repository
            )
        if media_type not in {OCI_INDEX, OCI_MANIFEST}:
            raise self._bad(key, f"of media type {OCI_MANIFEST} or {OCI_INDEX}", media_type)
        if not isinstance(blobs, list) or not 0 < len(blobs) <= MAX_APP_BLOBS:
            raise self._bad(key, f"an OCI image of 1 to {MAX_APP_BLOBS} blobs", blobs)
        digests = []
        for blob in blobs:
            one = _Fields(blob)
            digests.append(one._digest(key))
            one.finish()
        if len({one.sha256 for one in (root.digest, *digests)}) != len(digests) + 1:
            raise self._bad(key, "an OCI image that names each blob once", repository)
        return App(repository, tag, media_type, root, tuple(digests))

    def _digest(self, key: str) -> Digest:
        sha256, size_bytes = self.text("sha256"), self._take("size_bytes")
        if not _SHA256.fullmatch(sha256):
            raise self._bad(key, "a SHA-256 in lower-case hex", sha256)
        if type(size_bytes) is not int or size_bytes < 0:
            raise self._bad(key, "a size in bytes", size_bytes)
        return Digest(sha256, size_bytes)

    def finish(self) -> None:
        if self._left:
            msg = f"manifest has unknown keys {sorted(map(str, self._left))[:8]}"
            raise BadManifestError(msg)

    def _take(self, key: str) -> Any:
        if key not in self._left:
            msg = f"manifest lacks {key!r}"
            raise BadManifestError(msg)
        return self._left.pop(key)

    def _parsed(self, key: str, parse: Any, value: str) -> Any:
        try:
            return parse(value)
        except PeerError as error:
            msg = f"manifest key {key!r}: {error}"
            raise BadManifestError(msg) from error

    @staticmethod
    def _bad(key: str, wanted: str, value: object) -> BadManifestError:
        return BadManifestError(f"manifest key {key!r} must be {wanted}, not {str(value)[:100]!r}")
