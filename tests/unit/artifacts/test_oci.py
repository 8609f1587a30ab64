"""What an OCI document refers to, and what is no such document (O5, Q2)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavemesh.artifacts.oci import BadImageError, Descriptor, references
from wavemesh.trust.releases import MAX_OCI_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST
from wavemesh.trust.statements import Digest

LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": f"sha256:{'a' * 64}", "size": 7}
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": f"sha256:{'b' * 64}", "size": 2}
MANIFEST = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}


def read(value: Any, media_type: str = OCI_MANIFEST) -> tuple[Descriptor, ...]:
    return references(json.dumps(value).encode(), media_type)


def test_a_manifest_refers_to_its_config_and_layers_an_index_to_manifests() -> None:
    config, layer = read(MANIFEST)
    assert (config.digest, layer.digest) == (Digest("b" * 64, 2), Digest("a" * 64, 7))
    assert not layer.is_document
    named = {**LAYER, "mediaType": OCI_MANIFEST, "annotations": {"org.opencontainers.image.ref.name": "1.0"}}
    [one] = read({"schemaVersion": 2, "manifests": [named]}, OCI_INDEX)
    assert (one.name, one.is_document) == ("1.0", True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schemaVersion": 1}, "skopeo copy"),
        ({"mediaType": OCI_INDEX}, "where .* was announced"),
        ({"config": None}, "'config' is no descriptor"),
        ({"layers": []}, "1 to 256"),
        ({"layers": [LAYER] * 257}, "1 to 256"),
        ({"layers": {}}, "1 to 256"),
        ({"layers": [{**LAYER, "digest": f"sha512:{'a' * 64}"}]}, r"layers\[0\].digest"),
        ({"layers": [{**LAYER, "digest": f"sha256:{'A' * 64}"}]}, r"layers\[0\].digest"),
        ({"layers": [{**LAYER, "size": -1}]}, r"layers\[0\].size"),
        ({"layers": [{**LAYER, "size": True}]}, r"layers\[0\].size"),
        ({"layers": [{**LAYER, "mediaType": "none"}]}, r"layers\[0\].mediaType"),
        ({"layers": [{**LAYER, "urls": ["https://elsewhere"]}]}, "lies elsewhere"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadImageError, match=told):
        read({**MANIFEST, **changes})


def test_other_kinds_of_documents_are_refused() -> None:
    docker = "application/vnd.docker.distribution.manifest.v2+json"
    with pytest.raises(BadImageError, match="skopeo copy"):
        read({**MANIFEST, "mediaType": docker}, docker)
    with pytest.raises(BadImageError, match="at most"):
        references(b" " * (MAX_OCI_MANIFEST_BYTES + 1), OCI_MANIFEST)


LEAVES: st.SearchStrategy[Any] = st.integers() | st.text(max_size=5) | st.sampled_from([None, True, [], {}])


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([*MANIFEST, *LAYER, "urls", "annotations"]), LEAVES)
def test_nothing_else_than_a_refusal_comes_of_anything_else(document: bytes, key: str, value: Any) -> None:
    changed = {**MANIFEST, key: value}, {**MANIFEST, "layers": [{**LAYER, key: value}]}
    for given_bytes in (document, *(json.dumps(one).encode() for one in changed)):
        for media_type in (OCI_MANIFEST, OCI_INDEX):
            try:
                found = references(given_bytes, media_type)
            except BadImageError:
                continue
            assert all(len(one.digest.sha256) == 64 and one.digest.size_bytes >= 0 for one in found)
