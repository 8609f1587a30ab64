"""A pytest plugin (``-p tests.ci_skips``): where CI=true, a skipped test is a failed one.

A test that is skipped where it counts proves nothing and is missed by nobody; what it needs belongs into ``.ci/run``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator


def _is_ci() -> bool:
    return os.environ.get("CI", "").lower() == "true"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the report of a skipped test into that of a failed one; expected failures stay what they are."""
    report = yield
    if _is_ci() and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {call.excinfo.value if call.excinfo else 'no reason given'} ({item.nodeid})"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module skipped at collection."""
    report = yield
    if _is_ci() and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {collector.nodeid}"
    return report
