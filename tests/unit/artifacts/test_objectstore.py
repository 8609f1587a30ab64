"""Where a bucket is and who may in: URLs, access files and the environment, good and bad (S4, Q2)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from wavemesh.artifacts.objectstore import (
    Access,
    Addressing,
    Place,
    access_of_environment,
    check_endpoint,
    load_access,
    open_store,
)
from wavemesh.runtime.config import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SHA = "ab" * 32


@pytest.mark.parametrize(
    ("url", "place", "key"),
    [
        ("s3://artifacts", Place("artifacts", ""), SHA),
        ("s3://artifacts/", Place("artifacts", ""), SHA),
        ("s3://art.ifacts-1/fleet/blobs/", Place("art.ifacts-1", "fleet/blobs"), f"fleet/blobs/{SHA}"),
    ],
)
def test_a_place_is_a_bucket_and_a_prefix(url: str, place: Place, key: str) -> None:
    assert Place.parse(url) == place
    assert place.key(SHA) == key
    assert Place.parse(str(place)) == place


@pytest.mark.parametrize(
    "url", ["", "s3://", "s3://UPPER/x", "s3://ab//x", "s3://a", "https://a/b", "s3://abc/a b", "s3://abc/a?b", "abc/d"]
)
def test_what_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not s3://BUCKET/PREFIX"):
        Place.parse(url)


@pytest.mark.parametrize("url", ["https://s3.example", "https://s3.example:9000/", "http://127.0.0.1:9000"])
def test_an_endpoint_is_https_or_this_machine(url: str) -> None:
    check_endpoint(url)


@pytest.mark.parametrize(
    "url", ["http://s3.example", "s3.example", "https://", "https://s3.example/path", "https://s?q"]
)
def test_other_endpoints_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint must be https"):
        check_endpoint(url)


def test_an_access_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    file.write_text('access_key_id = "id"\nsecret_access_key = "secret"\naddressing = "host"\n')
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=f"others can read these credentials: chmod 600 {file}"):
        load_access(file)
    file.chmod(0o600)
    access = load_access(file)
    assert access == Access("id", "secret", addressing=Addressing.HOST)
    assert "secret'" not in repr(access)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('access_key_id = "id"', "secret_access_key: missing"),
        ('access_key_id = ""\nsecret_access_key = "s"', "must not be empty"),
        ('access_key_id = "i"\nsecret_access_key = "s"\nendpoint = "http://far"', "endpoint must be https"),
        ('access_key_id = "i"\nsecret_access_key = "s"\nca_file = "none.crt"', "ca_file: no such file"),
        ('access_key_id = "i"\nsecret_access_key = "s"\nkey = 1', "key: unknown key"),
    ],
)
def test_a_bad_access_file_is_refused_by_its_key(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "access.toml"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=problem):
        load_access(file)
    with pytest.raises(ConfigError):
        load_access(tmp_path / "none.toml")


def test_the_environment_of_amazon_s_tools_is_understood() -> None:
    variables = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "eu-west-1"}
    variables |= {"AWS_ENDPOINT_URL": "https://s3.example", "AWS_SESSION_TOKEN": "t"}
    wanted = Access("id", "s", session_token="t", endpoint="https://s3.example", region="eu-west-1")
    assert access_of_environment(variables) == wanted
    with pytest.raises(ValueError, match="--origin-access FILE"):
        access_of_environment({"AWS_ACCESS_KEY_ID": "id"})


@pytest.mark.parametrize(
    ("access", "url"),
    [
        (Access("id", "s", region="us-east-2"), f"https://s3.us-east-2.amazonaws.com/artifacts/fleet/{SHA}?"),
        (
            Access("id", "s", addressing=Addressing.HOST),
            f"https://artifacts.s3.us-east-1.amazonaws.com/fleet/{SHA}?",
        ),
        (Access("id", "s", endpoint="https://s3.example:9000/"), f"https://s3.example:9000/artifacts/fleet/{SHA}?"),
    ],
)
def test_a_signed_url_leads_to_the_object_and_has_no_secret(access: Access, url: str) -> None:
    """Signing asks nobody."""
    from obstore import sign

    signed = sign(open_store(Place("artifacts", "fleet"), access), "GET", SHA, timedelta(hours=48))
    assert signed.startswith(url)
    assert "X-Amz-Expires=172800" in signed
    assert "secret" not in signed
