"""Keys in a TPM (D11): against a real emulator, looked at by tpm2-tools, which share no code with us."""

from __future__ import annotations

import hashlib
import json
import signal
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.tpm_kit import ZEROS, software_tpm
from wavemesh.identity.csr import key_of_request, make_request
from wavemesh.identity.keys import CredentialsError, SoftwareKeys
from wavemesh.identity.tpm import OWNER, SRK_HANDLE, Tpm, TpmError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.tpm_kit import SoftwareTpm
    from wavemesh.identity.tpmkeys import TpmKey

ECDSA = ec.ECDSA(hashes.SHA256())


@pytest.fixture
def tpm() -> Iterator[SoftwareTpm]:
    with software_tpm() as one:
        yield one


def objects_in(tpm: SoftwareTpm) -> str:
    return tpm.tool("getcap", "handles-transient") + tpm.tool("getcap", "handles-persistent")


def check(key: TpmKey) -> None:
    key.public_key().verify(key.sign(b"said", ECDSA), b"said", ECDSA)


def test_a_key_signs_in_its_tpm_and_leaves_nothing_there(tpm: SoftwareTpm, tmp_path: Path) -> None:
    keys = tpm.keys(tmp_path)
    key = keys.create()
    check(key)
    csr = make_request(key, "pos-01")
    assert key_of_request(csr) == key.public_key()
    check(keys.load(tmp_path / "node.key", keys.keep(key)))
    assert objects_in(tpm) == ""
    for secret in (key.private_numbers, key.private_bytes):
        with pytest.raises(RuntimeError, match="never leaves"):
            secret()


def test_the_key_is_what_others_read_in_the_tpm(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """tpm2-tools load the blobs under the owner's primary key, and see the attributes that keep a key in its TPM."""
    keys = tpm.keys(tmp_path)
    content = json.loads(keys.keep(keys.create()))
    for name, one in (("key.pub", content["public"]), ("key.priv", content["private"])):
        data = bytes.fromhex(one)
        (tpm.directory / name).write_bytes(len(data).to_bytes(2) + data)
    tpm.tool("createprimary", "-Q", "-C", "o", "-G", "ecc:aes128cfb", "-c", "primary.ctx", "-a", PRIMARY)
    tpm.tool("flushcontext", "-t")
    tpm.tool("load", "-Q", "-C", "primary.ctx", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx")
    shown = tpm.tool("readpublic", "-c", "key.ctx")
    assert "value: fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign\n" in shown
    assert "NIST p256" in shown


PRIMARY = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"


def test_tools_believe_the_quote(tpm: SoftwareTpm, tmp_path: Path) -> None:
    tpm.extend(7)
    keys = tpm.keys(tmp_path)
    nonce = hashlib.sha256(b"nonce").digest()
    quote = keys.quote(nonce, (7, 0, 16))
    value = hashlib.sha256(bytes(32) + bytes.fromhex("ab" * 32)).hexdigest()
    assert quote.pcrs == {0: ZEROS, 7: value, 16: ZEROS}
    own = keys._attestation_key().public_key()
    (tpm.directory / "quoted").write_bytes(quote.quoted)
    (tpm.directory / "sig").write_bytes(quote.signature)
    (tpm.directory / "key.pem").write_bytes(own.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    tpm.tool(
        "checkquote", "-u", "key.pem", "-m", "quoted", "-s", "sig", "-F", "ecdsa", "-g", "sha256", "-q", nonce.hex()
    )


def test_keys_outlive_the_tpms_restart(tpm: SoftwareTpm, tmp_path: Path) -> None:
    keys = tpm.keys(tmp_path)
    key, own = keys.create(), keys._attestation_key()
    tpm.stop()
    tpm.start()
    check(key)
    assert keys._attestation_key().public_key() == own.public_key()


def test_what_a_killed_program_left_behind_is_no_obstacle(tpm: SoftwareTpm, tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        tpm.tool("createprimary", "-Q", "-c", name)
    assert objects_in(tpm).count("- 0x8000000") == 3
    check(tpm.keys(tmp_path).create())


def test_a_provisioned_storage_key_serves_where_the_owner_has_a_password(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """Without it, a password is an error that says what to do, and no key is made anywhere."""
    keys = tpm.keys(tmp_path)
    before = keys.create()
    tpm.tool("createprimary", "-Q", "-C", "o", "-G", "ecc:aes128cfb", "-c", "primary.ctx")
    tpm.tool("evictcontrol", "-Q", "-C", "o", "-c", "primary.ctx", hex(SRK_HANDLE))
    tpm.tool("flushcontext", "-t")
    tpm.tool("changeauth", "-c", "owner", "secret")
    key = keys.create()
    assert (before.wrapped.parent, key.wrapped.parent) == (OWNER, SRK_HANDLE)
    check(key)
    with pytest.raises(TpmError, match=r"owner set a password.*evictcontrol"):
        check(before)
    tpm.tool("evictcontrol", "-Q", "-C", "o", "-P", "secret", "-c", hex(SRK_HANDLE))
    with pytest.raises(TpmError, match="owner set a password"):
        keys.create()
    with pytest.raises(TpmError, match="parent key is not there"):
        check(key)


def test_a_locked_out_tpm_still_signs(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """Whoever guesses at other keys' passwords takes nothing from the device: ours are outside of that protection."""
    key = tpm.keys(tmp_path).create()
    tpm.tool("dictionarylockout", "--setup-parameters", "--max-tries=1", "--recovery-time=1000")
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
    tpm.tool("createprimary", "-Q", "-G", "ecc:ecdsa-sha256", "-p", "secret", "-a", attributes, "-c", "other.ctx")
    (tpm.directory / "text").write_text("text")
    tpm.tool("sign", "-c", "other.ctx", "-p", "wrong", "-g", "sha256", "-o", "sig", "text", status=3)
    tpm.tool("flushcontext", "-t")
    assert "inLockout:                 1" in tpm.tool("getcap", "properties-variable")
    check(key)


def test_a_key_of_another_tpm_is_an_error(tpm: SoftwareTpm, tmp_path: Path) -> None:
    keys = tpm.keys(tmp_path)
    key = keys.create()
    with software_tpm() as other, pytest.raises(TpmError, match=r"wrapped by another TPM.*enrol the node again"):
        check(other.keys(tmp_path).load(tmp_path, keys.keep(key)))
    tpm.tool("clear")
    with pytest.raises(TpmError, match="enrol the node again"):
        check(key)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_tpm_that_is_gone_is_named(tpm: SoftwareTpm, tmp_path: Path, how: signal.Signals) -> None:
    keys = tpm.keys(tmp_path)
    key = keys.create()
    tpm.stop(how)
    with pytest.raises(TpmError, match=f"TPM {tpm.tcti}: .*is it there") as caught:
        check(key)
    assert caught.value.details["tcti"] == tpm.tcti
    with pytest.raises(TpmError, match="is it there"):
        keys.create()


@pytest.mark.parametrize(
    ("tcti", "problem"),
    [
        ("tabrmd:", "no TCTI of a known kind"),
        ("device:/dev/no-tpm", "No such file"),
        ("device:/dev/null", "ended the conversation"),
        ("swtpm:path=/nowhere/tpm.sock", "No such file"),
        ("swtpm:host=127.0.0.1,port=1", "Connection refused"),
        ("swtpm:port=x", "no port"),
    ],
)
def test_no_tpm_there(tcti: str, problem: str) -> None:
    with pytest.raises(TpmError, match=problem) as caught, Tpm(tcti).using() as one:
        one.read_pcrs([0])
    assert tcti in str(caught.value)


def test_the_kind_of_key_is_configuration(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """Neither is taken for the other; a broken reference says so."""
    keys, software = tpm.keys(tmp_path), SoftwareKeys()
    path = tmp_path / "node.key"
    with pytest.raises(CredentialsError, match=r'refers to a key in a TPM; set key = "tpm"'):
        software.load(path, keys.keep(keys.create()))
    with pytest.raises(CredentialsError, match=r"no key in a TPM, but the configuration wants one"):
        keys.load(path, software.keep(software.create()))
    for broken in (b"{", b"{}", b'{"parent": "x", "public": "", "private": ""}', keys.keep(keys._attestation_key())):
        with pytest.raises(CredentialsError, match="does not refer to a key"):
            keys.load(path, broken)
