"""`release create --app`: an OCI image layout as build tools leave it, or a refusal that says what to do (O5, Q2)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from edgectl.exits import UsageError
from edgectl.ociapp import read_app
from tests.oci_kit import layer, write_layout
from wavemesh.trust.releases import OCI_INDEX, OCI_MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from wavemesh.trust.releases import App

BASE, TOP = layer({"base": b"b" * 100}), layer({"app": b"a"})


def app_of(text: str) -> App:
    return read_app(text, name="x.oci", repository="", default_tag="0.0.0")[0]


def test_an_image_with_its_layers_each_once(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "pos-app", "12.4.1", BASE, TOP, BASE)
    app, files = read_app(f"oci:{layout}", name="app-12.oci", repository="", default_tag="0")
    assert (app.repository, app.tag, app.media_type) == ("pos-app", "12.4.1", OCI_MANIFEST)
    assert len(app.blobs) == 3  # the config and two layers, one of which is there twice
    assert app.root.name == app.artifacts[0].name == "app-12.oci"
    assert all(one.name.startswith("app-12.oci.") for one in app.artifacts[1:])
    assert {path.name for path in files.values()} == {one.digest.sha256 for one in app.artifacts}


def test_an_index_brings_the_images_of_all_platforms(tmp_path: Path) -> None:
    app = app_of(f"oci:{write_layout(tmp_path / 'a', '1', BASE, TOP, platforms=2)}")
    assert app.media_type == OCI_INDEX
    assert len(app.blobs) == 2 + 2 + 2  # manifests, configs, shared layers


def test_which_image_is_meant(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "two", "1.0", BASE)
    first = json.loads((layout / "index.json").read_text())["manifests"]
    write_layout(layout, "2.0", TOP)
    second = json.loads((layout / "index.json").read_text())["manifests"]
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": first + second}))
    assert app_of(f"oci:{layout}:2.0").tag == "2.0"
    for text, told in ((f"oci:{layout}", "2 images.*1.0, 2.0"), (f"oci:{layout}:3.0", "0 images of tag 3.0")):
        with pytest.raises(UsageError, match=told):
            app_of(text)
    assert app_of(f"oci:{write_layout(tmp_path / 'bare', '', BASE)}").tag == "0.0.0"


def spoil_a_layer(layout: Path) -> None:
    next(path for path in (layout / "blobs/sha256").iterdir() if path.stat().st_size == len(BASE)).write_bytes(b"x")


def lose_a_layer(layout: Path) -> None:
    next(path for path in (layout / "blobs/sha256").iterdir() if path.stat().st_size == len(BASE)).unlink()


def break_the_index(layout: Path) -> None:
    (layout / "index.json").write_text("{")


def lose_the_mark(layout: Path) -> None:
    (layout / "oci-layout").unlink()


def point_elsewhere(layout: Path) -> None:
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
    (layout / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_a_layer, "is not what the image says"),
        (lose_a_layer, "copy the image anew, with all its layers"),
        (break_the_index, "index.json: a manifest that is not JSON"),
        (lose_the_mark, "is it an OCI image layout"),
        (point_elsewhere, "is no OCI image"),
    ],
)
def test_a_layout_that_is_not_whole_is_refused(tmp_path: Path, spoil: Callable[[Path], None], told: str) -> None:
    layout = write_layout(tmp_path / "a", "1", BASE, TOP)
    spoil(layout)
    with pytest.raises(UsageError, match=told):
        app_of(f"oci:{layout}")


def test_other_forms_are_refused(tmp_path: Path) -> None:
    for text in ("docker://pos-app", "oci:", str(tmp_path)):
        with pytest.raises(UsageError, match="skopeo copy"):
            app_of(text)
