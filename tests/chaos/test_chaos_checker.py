"""The checker shares nothing with what it judges; that it bites is seen by ``--tamper`` on a run."""

from __future__ import annotations

import subprocess
import sys

PRODUCT = ("wavemesh", "control", "superhub", "storehub", "device", "edgectl")


def test_the_checker_imports_nothing_of_the_product() -> None:
    program = "import sys, tests.chaos.checker; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "lab" in loaded
    assert not set(PRODUCT) & set(loaded)
