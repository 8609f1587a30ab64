"""RAUC in the lab: who signs bundles, what a device's keyring holds, and a release's bundle by the real ``rauc``.

The signer's key lies with the other offline keys, and is none of them: RAUC's signature is one more, and vouches for
nothing by itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from device.config import Backend
from lab import topology
from lab.environments import backend_of
from wavemesh.errors import LocalError

if TYPE_CHECKING:
    from lab.topology import Lab

_TOOLS = ("rauc", "dbus-daemon", "mksquashfs", "setpriv", "losetup")
_LIFETIME = timedelta(days=365)
_BUNDLE_TIMEOUT_S = 300
_MANIFEST = """\
[update]
compatible={compatible}
version={version}

[bundle]
format=plain

[image.system]
filename=system.img
"""


class LabRaucError(LocalError):
    """RAUC cannot be run in this lab."""

    reason = "LAB_RAUC"


def check_usable() -> None:
    """Raise LabRaucError unless devices with RAUC can be run here."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise LabRaucError(f"back-end rauc needs {', '.join(missing)}, which are not installed here")
    if os.geteuid() != 0:
        raise LabRaucError("back-end rauc needs root here: RAUC mounts what it installs")


def give_keyring(lab: Lab, device: str) -> None:
    """Let the device's RAUC believe the lab's signer of bundles; the signer is made with the first."""
    certificate = lab.offline_dir / "bundles.crt"
    if not certificate.exists():
        _make_signer(certificate)
    shutil.copyfile(certificate, lab.device_dir(device) / "rauc" / "keyring.pem")


def bundle(lab: Lab, image: Path, version: str) -> Path | None:
    """The image packed for RAUC, where a device of the lab needs it; raises LabRaucError."""
    if all(backend_of(lab.device_dir(device)) != Backend.RAUC.value for device in lab.devices):
        return None
    made = lab.images_dir / f"{image.stem}.raucb"
    if made.exists():
        return made
    with tempfile.TemporaryDirectory(dir=lab.images_dir) as scratch:
        content = Path(scratch) / "content"
        content.mkdir()
        shutil.copyfile(image, content / "system.img")
        manifest = _MANIFEST.format(compatible=topology.DEVICE_CLASS, version=version)
        (content / "manifest.raucm").write_text(manifest, encoding="utf-8")
        offline = lab.offline_dir
        command = ["rauc", "bundle", "--mksquashfs-args=-comp zstd -Xcompression-level 1"]
        command += [f"--cert={offline / 'bundles.crt'}", f"--key={offline / 'bundles.pem'}"]
        command += [str(content), str(Path(scratch) / made.name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BUNDLE_TIMEOUT_S)
        if done.returncode != 0:
            raise LabRaucError(f"rauc bundle: {done.stderr.strip().splitlines()[-1:]}")
        (Path(scratch) / made.name).replace(made)
    return made


def _make_signer(certificate: Path) -> None:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"bundles of {topology.FLEET}")])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = certificate.with_suffix(".pem")
    path.touch(mode=0o600)
    path.write_bytes(private)
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
