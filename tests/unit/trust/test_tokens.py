"""Keys in a PKCS#11 token (SoftHSM): made, used for releases and orders, and every way in which they are not there."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from securesystemslib.signer import CryptoSigner

from control.signing import Signing
from edgectl.main import run
from wavemesh.codec.statements import decode
from wavemesh.trust.envelope import sign_statement, verify_role
from wavemesh.trust.files import sign_metadata
from wavemesh.trust.keys import KeyFileError, load_public, load_signer, write_public, write_reference
from wavemesh.trust.metadata import load_trusted
from wavemesh.trust.releases import verify_signature_bundle
from wavemesh.trust.repository import add_release, create_repository, publish_targets, sign_bundle
from wavemesh.trust.statements import Envelope, HoldList, WaveClosed, WaveState
from wavemesh.trust.tokens import KeyTokenError, TokenSigner, create_token_key, parse_uri, pin_from_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wavemesh.trust.releases import ReleaseManifest

LIBRARIES = (Path("/usr/lib/softhsm/libsofthsm2.so"), Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"))
LABEL = "wavemesh test"
PIN = "987654"
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a fresh SoftHSM token; its library reads the configuration once a process."""
    library = next((path for path in LIBRARIES if path.exists()), None)
    if library is None:
        pytest.skip("SoftHSM is not installed (Debian: softhsm2)")
    directory = tmp_path_factory.mktemp("softhsm")
    (directory / "tokens").mkdir()
    (directory / "softhsm2.conf").write_text(f"directories.tokendir = {directory}/tokens\nlog.level = ERROR\n")
    (directory / "pin").write_text(PIN + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(directory / "softhsm2.conf"))
        command = ["softhsm2-util", "--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", "12345678"]
        subprocess.run(command, check=True, capture_output=True)
        patch.setenv("PYKCS11LIB", str(library))
        patch.setenv("WAVEMESH_PIN_FILE", str(directory / "pin"))
        yield directory


def make(number: int) -> TokenSigner:
    return create_token_key(f"hsm:{number}?label={LABEL}", pin_from_environment)


def test_release_and_order_by_keys_in_a_token(
    token: Path, tmp_path: Path, make_manifest: Callable[..., ReleaseManifest]
) -> None:
    """Nothing else in the mesh knows where a key is: the signatures are the same kind of signatures."""
    release, control = make(1), make(2)
    root, online = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
    empty = create_repository(
        root=[root], releases=[release], online=[online], control=[control], now=NOW, release_threshold=1
    )
    write_reference(release, tmp_path / "release.json")
    signer = load_signer(tmp_path / "release.json")
    manifest = make_manifest()
    bundle = sign_bundle(manifest, signer)
    targets = sign_metadata(add_release(empty.targets, manifest, bundle, NOW), signer)
    trusted = load_trusted(empty.roots[0], publish_targets(empty, targets, online, NOW), NOW, None)
    verify_signature_bundle(bundle, trusted.require_release(manifest.name), trusted)
    closed = WaveClosed("142", WaveState.CLOSED, NOW)
    by_uri = load_signer(f"pkcs11:token={LABEL.replace(' ', '%20')};id=%02")
    assert by_uri.public_key.keyid == control.public_key.keyid
    assert verify_role(sign_statement(closed, [by_uri]), WaveClosed, trusted) == closed


async def test_control_signs_with_keys_in_a_token(token: Path, tmp_path: Path) -> None:
    """``control.json`` in the place of ``control.pem``; a token that is away stops control, it takes no other key."""
    control, online, root = make(8), make(9), CryptoSigner.generate_ed25519()
    release = CryptoSigner.generate_ed25519()
    for name, signer in (("control", control), ("online", online)):
        write_reference(signer, tmp_path / f"{name}.json")
    signing = Signing.load(tmp_path, "spiffe://test.example/control/cloud-1")
    empty = create_repository(
        root=[root],
        releases=[release],
        online=[online],
        control=[control],
        now=NOW,
        release_threshold=1,
    )
    trusted = load_trusted(empty.roots[0], empty, NOW, None)
    assert signing.choose(trusted).public_key == control.public_key
    assert signing.online_for(empty.roots[0]).public_key == online.public_key
    [sealed] = await signing.seal([HoldList(1, (), NOW)])
    assert verify_role(decode(Envelope, sealed), HoldList, trusted).epoch == 1
    (tmp_path / "control.json").unlink()
    with pytest.raises(KeyFileError, match="has no key control"):
        Signing.load(tmp_path, "spiffe://test.example/control/cloud-1")


def test_edgectl_takes_keys_in_a_token(
    token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["keys", "create", f"hsm:10?label={LABEL}"]) == 2
    for _ in range(2):
        assert run(["keys", "create", f"hsm:10?label={LABEL}", "--reference", "ann.json"]) == 0
    assert run(["keys", "create", "online.pem", "dee.pem"]) == 0
    assert (
        run(["keys", "root", "--dir", "s", "--root", "ann.pub", "--release", "dee.pub", "--online", "online.pub"]) == 0
    )
    assert run(["keys", "sign", "--dir", "s", "--key", f"hsm:10?label={LABEL}", "--yes"]) == 0
    assert run(["keys", "verify", "--dir", "s"]) == 0
    monkeypatch.setenv("WAVEMESH_PIN_FILE", str(token / "softhsm2.conf"))
    assert run(["keys", "renew", "--dir", "s", "root"]) == 0
    capsys.readouterr()
    assert run(["keys", "sign", "--dir", "s", "--key", "ann.json", "--yes"]) == 7
    assert "the PIN is wrong" in capsys.readouterr().err


def test_a_key_is_made_once(token: Path, tmp_path: Path) -> None:
    first, again = make(3), make(3)
    assert first.public_key == again.public_key
    for _ in range(2):
        write_reference(first, tmp_path / "alice.json")
        write_public(first.public_key, tmp_path / "alice.pub")
    assert load_public(tmp_path / "alice.json") == load_public(tmp_path / "alice.pub")
    with pytest.raises(KeyFileError, match="holds another key"):
        write_public(make(4).public_key, tmp_path / "alice.pub")


def test_a_wrong_pin_is_told_and_nothing_is_signed(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = make(5)
    wrong = load_signer(signer.uri, lambda: "000000")
    with pytest.raises(KeyTokenError, match="the PIN is wrong"):
        wrong.sign(b"order")
    monkeypatch.delenv("WAVEMESH_PIN_FILE")
    with pytest.raises(KeyTokenError, match="set WAVEMESH_PIN_FILE"):
        signer.sign(b"order")
    monkeypatch.setenv("WAVEMESH_PIN", PIN)
    signer.public_key.verify_signature(signer.sign(b"order"), b"order")
    monkeypatch.setenv("WAVEMESH_PIN_FILE", str(token / "nowhere"))
    with pytest.raises(KeyTokenError, match="nowhere"):
        signer.sign(b"order")


def test_what_is_missing_is_told(token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = make(6)
    write_reference(signer, tmp_path / "key.json")
    with pytest.raises(KeyTokenError, match="No PKCS#11 token found for label elsewhere"):
        load_signer("hsm:6?label=elsewhere")
    with pytest.raises(KeyTokenError, match="could not find ECDSA key"):
        load_signer("hsm:77?label=" + LABEL)
    gone = (tmp_path / "key.json").read_text().replace("hsm:6", "hsm:78")
    (tmp_path / "gone.json").write_text(gone)
    with pytest.raises(KeyTokenError, match="could not find ECDSA private key"):
        load_signer(tmp_path / "gone.json").sign(b"order")
    other = (tmp_path / "key.json").read_text().replace("hsm:6", f"hsm:{parse_uri(make(7).uri)[0]}")
    (tmp_path / "other.json").write_text(other)
    with pytest.raises(KeyTokenError, match="another key than the one expected"):
        load_signer(tmp_path / "other.json").sign(b"order")
    monkeypatch.delenv("PYKCS11LIB")
    with pytest.raises(KeyTokenError, match="set PYKCS11LIB"):
        load_signer(tmp_path / "key.json").sign(b"order")


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("hsm:2?label=a&pin=1234", "holds no PIN"),
        ("pkcs11:token=a;id=%02?pin-value=1234", "holds no PIN"),
        ("hsm:2", "does not name a key"),
        ("hsm:two?label=a", "does not name a key"),
        ("pkcs11:token=a", "does not name a key"),
        ("hsm:99999999999999?label=a", "does not name a key"),
    ],
)
def test_a_bad_uri_is_refused(uri: str, match: str) -> None:
    with pytest.raises(KeyTokenError, match=match):
        parse_uri(uri)


def test_a_bad_reference_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    for text in ("{", '{"uri": "hsm:1?label=a"}', '{"uri": "hsm:1?label=a", "public": "none"}'):
        path.write_text(text)
        with pytest.raises(KeyFileError, match=str(path)):
            load_signer(path)
