"""Ids follow from what a unit of work is: the same everywhere, different for everything else."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from wavemesh.telemetry.spans import SPAN_ID_BYTES, TRACE_ID_BYTES, Trace

TRACE = Trace("test.example", "142", "region/midwest/store/store-209/device/pos-17")


def test_ids_are_the_same_in_every_program_and_version() -> None:
    """Fixed values, computed with sha256sum: a tier of another version must find the same trace."""
    assert TRACE.trace_id.hex() == "c6b5700ecf8509f1d4f0d3039597b7f5"
    assert TRACE.root().hex() == "d1536b97ac1102d0"
    assert (len(TRACE.trace_id), len(TRACE.root())) == (TRACE_ID_BYTES, SPAN_ID_BYTES)


def test_every_part_of_a_trace_counts() -> None:
    others = [dataclasses.replace(TRACE, **{field.name: "other"}) for field in dataclasses.fields(TRACE)]
    assert len({trace.trace_id for trace in (TRACE, *others)}) == 4
    assert len({trace.root() for trace in (TRACE, *others)}) == 4


def test_kinds_of_units_do_not_meet() -> None:
    units = {
        TRACE.root(),
        TRACE.permit(1),
        TRACE.permit(2),
        TRACE.lease("1"),
        TRACE.outcome("node", 1, 2),
        TRACE.outcome("node", 2, 1),
        TRACE.unit("control.plan", ""),
    }
    assert len(units) == 7


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_names_cannot_run_into_each_other(one: list[str], other: list[str]) -> None:
    assert (TRACE.unit(*one) == TRACE.unit(*other)) == (one == other)
