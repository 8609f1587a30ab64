"""Bad policy files: refused with file, line, column, key and reason, everything at once (P1, Q2)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavemesh.policy.document import POLICY_BYTES_MOST, PROBLEMS_SHOWN_MOST, PolicyError, Problem
from wavemesh.policy.reader import parse_policy

GOOD = """\
targets:
  segment: retail-us-midwest
  percentage: 5
  hubBudget: 2
guardrails:
  minBattery: 40
artifacts:
  firmware: firmware-v3.8.2.img
  signature: firmware-v3.8.2.sig
verification:
  bootProbe: systemd-analyze verify /boot/inactive
  peripheralChecks:
    - lsusb | grep scanner
windows:
  prefetch: 00:30-03:30
"""


def problems(text: str | bytes) -> list[tuple[int, int, str, str]]:
    """What is wrong with a file: line, column, key, reason."""
    with pytest.raises(PolicyError) as caught:
        parse_policy(text if isinstance(text, bytes) else text.encode(), "policy.yaml")
    assert all(problem.file == "policy.yaml" for problem in caught.value.problems)
    return [(problem.line, problem.column, problem.key, problem.reason) for problem in caught.value.problems]


def test_an_unquoted_window_is_text() -> None:
    assert str(parse_policy(GOOD.encode(), "p").windows.prefetch) == "00:30-03:30"


@pytest.mark.parametrize(
    ("old", "new", "line", "column", "key", "reason"),
    [
        ("minBattery: 40", "minBatery: 40", 6, 3, "guardrails.minBatery", "unknown key; did you mean 'minBattery'?"),
        ("windows:", "colour: red\nwindows:", 14, 1, "colour", "unknown key; known here: targets, guardrails"),
        ("percentage: 5", "percentage: 0", 3, 15, "targets.percentage", "from 1 to 100, got the number 0"),
        ("percentage: 5", "percentage: 101", 3, 15, "targets.percentage", "from 1 to 100, got the number 101"),
        ("percentage: 5", "percentage: 5.5", 3, 15, "targets.percentage", "whole number"),
        ("percentage: 5", "percentage: '5'", 3, 15, "targets.percentage", "got the text '5'"),
        ("percentage: 5", "percentage: true", 3, 15, "targets.percentage", "got true"),
        ("percentage: 5", "percentage:", 3, 14, "targets.percentage", "got nothing"),
        ("percentage: 5", "percentage: 0x10", 3, 15, "targets.percentage", "got the text '0x10'"),
        ("percentage: 5", "percentage: 010", 3, 15, "targets.percentage", "got the text '010'"),
        ("percentage: 5", "percentage: 1_0", 3, 15, "targets.percentage", "got the text '1_0'"),
        ("percentage: 5", "percentage: 0:10", 3, 15, "targets.percentage", "got the text '0:10'"),
        ("percentage: 5", "percentage: " + "9" * 5000, 3, 15, "targets.percentage", "got the text '999"),
        ("percentage: 5", "percentage: [5]", 3, 15, "targets.percentage", "got a list"),
        ("  percentage: 5\n", "", 1, 1, "targets.percentage", "is missing; expected a whole number"),
        ("minBattery: 40", "minBattery: 101", 6, 15, "guardrails.minBattery", "from 0 to 100"),
        ("minBattery: 40", "requireDualPartition: yes", 6, 25, "guardrails.requireDualPartition", "the text 'yes'"),
        ("minBattery: 40", "rollbackOnHealthLossMins: 0", 6, 29, "guardrails.rollbackOnHealthLossMins", "above 0"),
        ("minBattery: 40", "maxTemperature: .nan", 6, 19, "guardrails.maxTemperature", "got the text '.nan'"),
        ("minBattery: 40", "maxTemperature: 1e999", 6, 19, "guardrails.maxTemperature", "expected a number"),
        ("minBattery: 40", "minFreeDisk: 64MB", 6, 16, "guardrails.minFreeDisk", "such as 64MiB"),
        ("minBattery: 40", "minFreeDisk: -1", 6, 16, "guardrails.minFreeDisk", "such as 64MiB"),
        ("minBattery: 40", "availability: [{role: till, group: a}]", 6, 18,
         "guardrails.availability[0].minUp", "is missing"),
        ("minBattery: 40", "availability: [{role: t, group: a, minUp: 1}, {role: t, group: a, minUp: 2}]", 6, 49,
         "guardrails.availability[1]", "role and group are those of item 0"),
        ("segment: retail", "segment: Retail", 2, 12, "targets.segment", "a-z"),
        ("segment: retail-us-midwest", "segment: 5", 2, 12, "targets.segment", "got the number 5"),
        ("firmware: firmware-v3.8.2.img", "firmware: ../../etc/passwd", 8, 13, "artifacts.firmware", "a file name"),
        ("  signature: firmware-v3.8.2.sig\n", "", 7, 1, "artifacts.signature", "is missing"),
        ("  firmware: firmware-v3.8.2.img\n", "", 8, 3, "artifacts", "nothing to bring"),
        ("  bootProbe: systemd-analyze verify /boot/inactive\n", "", 10, 1, "verification.bootProbe",
         "firmware needs it"),
        ("    - lsusb | grep scanner\n", "    - lsusb\n    - lsusb\n", 14, 7,
         "verification.peripheralChecks[1]", "the same as item 0"),
        ("    - lsusb | grep scanner\n", '    - "a\\nb"\n', 13, 7, "verification.peripheralChecks[0]", "printable"),
        ("    - lsusb | grep scanner\n", "    - a\n    - [b]\n", 14, 7, "verification.peripheralChecks[1]", "a list"),
        ("00:30-03:30", "25:00-03:30", 15, 13, "windows.prefetch", "between 00:00 and 23:59"),
        ("00:30-03:30", "00:30-00:30", 15, 13, "windows.prefetch", "not empty"),
        ("percentage: 5", "percentage: 5\n  percentage: 5", 4, 3, "targets.percentage", "given twice, first in line 3"),
        ("percentage: 5", "percentage: !!int 5", 3, 15, "targets.percentage", "tags are not allowed"),
        ("percentage: 5", "percentage: !!python/object/apply:os.system [x]", 3, 15, "targets.percentage",
         "tags are not allowed"),
        ("percentage: 5", "percentage: &a 5", 3, 15, "targets.percentage", "anchors and aliases are not allowed"),
        ("percentage: 5", "percentage: 5\n  <<: {hubBudget: 3}", 4, 3, "targets.'<<'", "unknown key"),
        ("percentage: 5", "percentage: 5\n  ? [a, {b: c}]\n  : 1", 4, 5, "targets", "a key must be a plain name"),
        ("percentage: 5", "percentage: 5\n  more: [[[[[[[[[]]]]]]]]]", 4, 15, "targets.more" + "[0]" * 6,
         "is nested deeper than 8"),
        ("windows:", "--- {}\n---\nwindows:", 14, 1, "", "a second document starts"),
    ],
)  # fmt: skip
def test_one_fault_is_reported_where_it_is(
    old: str, new: str, *, line: int, column: int, key: str, reason: str
) -> None:
    assert old in GOOD
    found = problems(GOOD.replace(old, new))
    first = found[0]
    assert first[:3] == (line, column, key)
    assert reason in first[3]


def test_all_faults_are_listed_in_the_order_of_the_file() -> None:
    text = GOOD.replace("percentage: 5", "percentage: 0").replace("minBattery", "battery").replace("00:30-", "0:30-")
    assert [(line, key) for line, _, key, _ in problems(text)] == [
        (3, "targets.percentage"),
        (6, "guardrails.battery"),
        (15, "windows.prefetch"),
    ]


def test_one_fault_is_reported_once() -> None:
    assert len(problems(GOOD.replace("firmware: firmware-v3.8.2.img", "firmware: 3"))) == 1
    assert len(problems(GOOD.replace("bootProbe: systemd-analyze verify /boot/inactive", "bootProbe: 3"))) == 1
    assert len(problems(GOOD.replace("percentage: 5", "percentage: !!int 5"))) == 1


def test_the_message_names_file_line_column_key_and_reason() -> None:
    with pytest.raises(PolicyError, match=r"^store\.yaml:3:15: targets\.percentage: expected a whole number") as caught:
        parse_policy(GOOD.replace("percentage: 5", "percentage: 0").encode(), "store.yaml")
    assert caught.value.details == {"file": "store.yaml", "problems": "1"}


@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [
        (b"", 1, 1, "is empty"),
        (b"# nothing\n", 2, 1, "is empty"),
        (b"- a\n", 1, 1, "expected a mapping, got a list"),
        (b"text", 1, 1, "expected a mapping, got the text 'text'"),
        (b"a: b\n\xff: c\n", 2, 1, "byte 0xff is not UTF-8"),
        (b"\xef\xbb\xbfa: \xff", 1, 4, "byte 0xff is not UTF-8"),
        (b"a: b\nc: \x07\n", 2, 4, "U+0007 is not allowed"),
        (b"a: [1,\n", 2, 1, "is not YAML"),
        (b"a: b: c\n", 1, 5, "is not YAML: mapping values are not allowed here"),
        (b"a:\n\tb: c\n", 2, 1, "is not YAML"),
        (b'a: "\\Uffffffff"\n', 1, 2, "is not YAML"),
        (b"%YAML 1." + b"9" * 6000 + b"\n---\na: b\n", 1, 1, "is not YAML"),
        (b"a: *b\n", 1, 4, "is not YAML"),
        (b" " * (POLICY_BYTES_MOST + 1), 1, 1, "65537 bytes, 65536 are allowed"),
        (b"\xfe\xff\x00a", 1, 1, "byte 0xfe is not UTF-8"),
    ],
)
def test_what_is_no_policy_at_all(text: bytes, line: int, column: int, reason: str) -> None:
    if text == b"a: *b\n":
        reason, column = "aliases are not allowed", 4
    assert any(found[:2] == (line, column) and reason in found[3] for found in problems(text)), problems(text)


def test_an_alias_bomb_costs_nothing() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
    )
    assert any("anchors and aliases are not allowed" in reason for *_, reason in problems(bomb))


@pytest.mark.parametrize(
    "text", ["[" * 60_000, "{a: " * 15_000, "- " * 30_000, "a: {" + "b, " * 20_000 + "}", "? " * 30_000]
)
def test_deep_and_wide_files_end_in_a_bounded_message(text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text.encode(), "p")
    assert len(str(caught.value)) < 400 * (PROBLEMS_SHOWN_MOST + 1)


YAML_BITS = st.lists(
    st.sampled_from(
        [*"[]{}:,-?&*!|>'\"%@` \n\t#~\\", "targets", ": ", "- ", "\n  ", "---", "...", "&a", "*a", "!!", "\\U", "é"]
    ),
    max_size=30,
).map("".join)


@given(YAML_BITS | st.text(max_size=100))
@settings(max_examples=300)
def test_no_text_raises_anything_but_a_policy_error(text: str) -> None:
    with pytest.raises(PolicyError):
        parse_policy(text.encode("utf-8", "surrogatepass"), "p")


@given(st.integers(0, len(GOOD)), st.integers(0, 30), YAML_BITS)
@settings(max_examples=300)
def test_a_damaged_policy_is_read_or_refused(start: int, length: int, bits: str) -> None:
    damaged = GOOD[:start] + bits + GOOD[start + length :]
    found: tuple[Problem, ...] = ()
    try:
        parse_policy(damaged.encode(), "p")
    except PolicyError as error:
        found = error.problems
    lines = damaged.count("\n") + 2
    assert all(1 <= problem.line <= lines and problem.column >= 1 for problem in found)


def test_a_file_with_too_many_entries_is_not_read_to_its_end() -> None:
    found = problems("a: [" + "b, " * 20_000 + "]")
    assert [reason for *_, reason in found] == ["has more than 2000 keys, values and brackets"]
