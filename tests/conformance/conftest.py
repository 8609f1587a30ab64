"""The device under test, once for each back-end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.subjects import EVERY, SUBJECTS, WITH_FOREIGN, standing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conformance.subjects import Subject


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    """A device of each back-end."""
    with standing(EVERY[request.param], tmp_path / "device") as subject:
        yield subject


@pytest.fixture(params=WITH_FOREIGN)
def shared_subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    """A device of each back-end whose environment others use too."""
    with standing(SUBJECTS[request.param], tmp_path / "device") as subject:
        yield subject
