"""Inventory files: three forms of one thing; every problem with file, line and key (Q2)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from edgectl.exits import UsageError
from edgectl.inventory_file import MAX_PROBLEMS, read_inventory

if TYPE_CHECKING:
    from pathlib import Path

YAML = """\
stores:
  - path: region/midwest/store/store-208
    time_zone: America/Chicago
devices:
  - path: region/midwest/store/store-208/device/pos-01
    class: pos
    hardware: rev-b
    labels: {segment: retail, role: till}
"""
TOML = """\
[[stores]]
path = "region/midwest/store/store-208"
time_zone = "America/Chicago"

[[devices]]
path = "region/midwest/store/store-208/device/pos-01"
class = "pos"
hardware = "rev-b"
labels = {segment = "retail", role = "till"}
"""
JSON = json.dumps(
    {
        "stores": [{"path": "region/midwest/store/store-208", "time_zone": "America/Chicago"}],
        "devices": [
            {
                "path": "region/midwest/store/store-208/device/pos-01",
                "class": "pos",
                "hardware": "rev-b",
                "labels": {"segment": "retail", "role": "till"},
            }
        ],
    },
    indent=2,
)


def written(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_yaml_json_and_toml_say_the_same(tmp_path: Path) -> None:
    files = {"a.yaml": YAML, "a.toml": TOML, "a.json": JSON}
    requests = [read_inventory(written(tmp_path, name, text)).request() for name, text in files.items()]
    assert requests[0] == requests[1] == requests[2]
    [device] = requests[0].devices
    assert (device.device_class, device.hardware_revision, dict(device.labels)) == (
        "pos",
        "rev-b",
        {"segment": "retail", "role": "till"},
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", YAML.replace("    class: pos", "    klass: pos"), ":6: devices[0].klass: unknown; known: "),
        ("a.yaml", YAML.replace("    class: pos\n", ""), ":5: devices[0].class: missing"),
        ("a.yaml", YAML.replace("role: till", "role: 7"), ":8: devices[0].labels: wants a mapping of text to text"),
        ("a.yaml", YAML.replace("time_zone: America/Chicago", "time_zone: [x]"), ":3: stores[0].time_zone: wants text"),
        ("a.yaml", YAML.replace("stores:", "shops:"), ":1: shops: unknown"),
        ("a.yaml", "stores: 7\n", ":1: stores: wants a list"),
        ("a.yaml", "stores:\n  - 7\n", ":2: stores[0]: wants a mapping"),
        ("a.yaml", "- 1\n", ": (file): wants a mapping"),
        ("a.yaml", "stores: [\n", ":2: "),
        ("a.json", JSON.replace('"class"', '"klass"'), ":11: devices[0].klass: unknown"),
        ("a.toml", TOML.replace("class =", "klass ="), ":7: devices[0].klass: unknown"),
        ("a.toml", TOML.replace('class = "pos"\n', ""), ":5: devices[0].class: missing"),
        ("a.toml", TOML.replace("[[devices]]", "[[devices"), ":5: "),
        ("a.yaml", b"\xff\xfe", ": not UTF-8 at byte 0"),
    ],
)
def test_a_problem_is_named_by_file_line_and_key(tmp_path: Path, name: str, text: str | bytes, said: str) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(UsageError) as caught:
        read_inventory(path)
    assert any(line.startswith(f"{path}{said}") for line in str(caught.value).splitlines()), str(caught.value)


def test_all_problems_are_told_up_to_a_bound(tmp_path: Path) -> None:
    text = "stores:\n" + "  - {}\n" * 100
    with pytest.raises(UsageError) as caught:
        read_inventory(written(tmp_path, "a.yaml", text))
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (MAX_PROBLEMS + 1, "… and 150 more")


def test_what_the_node_refuses_is_given_its_line(tmp_path: Path) -> None:
    for name, text in {"a.yaml": YAML, "a.toml": TOML}.items():
        inventory = read_inventory(written(tmp_path, name, text))
        assert inventory.where("devices[0].device_class") == f"{inventory.path}:{6 if name == 'a.yaml' else 7}"
        assert inventory.where("stores[0]").startswith(f"{inventory.path}:")
        assert inventory.where("devices[9].path") == inventory.where("labels") == str(inventory.path)
