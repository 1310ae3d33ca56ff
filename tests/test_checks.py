"""Checks: when an answer is right, and what a funnel counts and keeps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.checks.funnel import Funnel, FunnelCounts
from replaykit.checks.verify import final_answer, is_right, number_in
from replaykit.data.record import Record, dialogue

# --- the final answer -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("7 + 8 = 15\n#### 15", "15"),
        ("####15", "15"),
        ("#### 15\nAnd that is all, 3 times.", "15"),
        ("#### 14\nno, wait\n#### 15", "15"),
        (r"So we get \boxed{x = 15}.", "x = 15"),
        (r"\boxed{14}, or rather \boxed{15}", "15"),
        ("The answer is 15", "15"),
        ("The answer is: 15", "15"),
        ("ANSWER: 15", "15"),
        ("Thinking...\nFinal answer: Paris \n", "Paris"),
        ("Paris", "Paris"),
        ("  two\nlines ", "two\nlines"),
        ("", ""),
    ],
)
def test_the_final_answer_is_what_follows_the_last_marker_or_else_everything(
    text: str, final: str
) -> None:
    assert final_answer(text) == final


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", 72),
        ("It costs $1,200.", 1200),
        ("1,234,567.89 people", 1234567.89),
        ("the numbers 1,2,3", 3),
        ("12,3456", 3456),
        ("0.5", 0.5),
        (".5 of it", 0.5),
        ("3/4", 0.75),
        ("-3/4", -0.75),
        ("1,000/8", 125),
        ("-5 degrees", -5),
        ("−5 degrees", -5),
        ("(-5)", -5),
        ("x = -5", -5),
        ("7 - 5", 2),  # what stands alone is worked out
        ("7-5", None),  # from 7 to 5, or a difference
        ("it is 7 -5", -5),
        ("pages 10-12", None),  # two numbers, and neither is the answer
        (r"3 apples and 4 pears: \boxed{-7}", -7),
        ("first 3, then 4", 4),
        ("100%", 100),
        ("1/0", None),
        ("no number", None),
        ("#### none, though 3 came before", 3),
        ("3 apples\n#### none", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer_is_the_last_one_in_it(text: str, number: float | None) -> None:
    assert number_in(text) == number


@settings(deadline=None)
@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_a_whole_number_is_read_the_same_however_it_is_written(number: int) -> None:
    written = [
        f"{number}",
        f"{number:,}",
        f"{number}.0",
        f"{number}/1",
        f"#### {number}",
        f"\\boxed{{{number:,}}}",
    ]
    assert {number_in(text) for text in written} == {float(number)}
    assert is_right(f"So it is ${number:,}.", f"{number}", how="numeric")
    assert not is_right(f"{number + max(1, abs(number) // 1000)}", f"{number}", how="numeric")


# --- right or not ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("So it costs $1,200.", "1000 + 200\n#### 1200", True),
        ("#### 1200.00", "#### 1,200", True),
        ("0.75", "3/4", True),
        ("0.3333333", "1/3", True),
        ("0.333", "1/3", False),
        ("-5", "5", False),
        ("I do not know.", "5", False),
        ("", "5", False),
        ("1/0", "5", False),
        ("9" * 5000, "5", False),
        ("0.0000001", "0", True),
    ],
)
def test_numbers_are_compared_as_numbers(answer: str, reference: str, right: bool) -> None:
    assert is_right(answer, reference, how="numeric") is right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("Paris", "paris", True),
        ("  New\n York. ", "new york", True),
        ("The answer is Paris.", "Paris", True),
        ("The answer is: Paris.", "Paris", True),
        ("#### yes", "Yes", True),
        ("Paris, France", "Paris", False),
        ("1,200", "1200", False),
        ("", "", True),
        ("", "Paris", False),
        ("STRASSE", "straße", True),
    ],
)
def test_texts_are_equal_up_to_case_spaces_and_a_closing_period(
    answer: str, reference: str, right: bool
) -> None:
    assert is_right(answer, reference, how="exact") is right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ('{"b": 1, "a": [1, 2]}', '{"a": [1, 2], "b": 1.0}', True),
        ('{"a": [2, 1]}', '{"a": [1, 2]}', False),
        ('{"a": 1, "b": null}', '{"a": 1}', False),
        ('{"a": "1"}', '{"a": 1}', False),
        ('{"a": true}', '{"a": 1}', False),
        ("[0]", "[false]", False),
        ("[[true, null]]", "[[true, null]]", True),
        ("[1]", "[1, 2]", False),
        ("[]", "{}", False),
        ('Sure: {"a": 1}', '{"a": 1}', False),
        ("", '{"a": 1}', False),
        ("[" * 100_000, "[]", False),
        ("9" * 5000, "9", False),
    ],
)
def test_json_is_compared_as_values(answer: str, reference: str, right: bool) -> None:
    assert is_right(answer, reference, how="json") is right


def test_a_reference_that_cannot_be_read_is_an_error_not_a_wrong_answer() -> None:
    with pytest.raises(ValueError, match="no number in the reference 'it depends'"):
        is_right("5", "it depends", how="numeric")
    with pytest.raises(ValueError, match="no number in the reference"):
        is_right("5", "5\n#### unknown", how="numeric")
    with pytest.raises(ValueError):
        is_right("{}", "{half", how="json")


@settings(deadline=None)
@given(st.text(), st.text())
def test_any_answer_gets_a_verdict(answer: str, reference: str) -> None:
    assert is_right(answer, answer, how="exact")
    assert is_right(answer, "#### 1", how="numeric") in (True, False)
    assert is_right(answer, "{}", how="json") in (True, False)
    assert is_right(answer, reference, how="exact") == is_right(reference, answer, how="exact")


# --- the funnel -----------------------------------------------------------------------------------

RECORDS = [
    Record(dialogue(f"question {k}", f"answer {k}"), "generate", {"row": k}) for k in range(6)
]


def test_a_funnel_counts_what_was_made_dropped_by_each_reason_and_kept() -> None:
    funnel = Funnel()
    reasons = [None, "too_short", None, "empty", "too_short", None]
    passed = [
        funnel.passes(record, reason) for record, reason in zip(RECORDS, reasons, strict=True)
    ]
    assert passed == [True, False, True, False, False, True]
    counted = funnel.result()
    assert counted == FunnelCounts(made=6, dropped={"too_short": 2, "empty": 1}, kept=3)
    assert list(counted.dropped) == ["too_short", "empty"]  # the most frequent first
    assert str(funnel) == "6 made, too_short 2, empty 1, 3 kept"


def test_a_row_dropped_later_was_made_before() -> None:
    funnel = Funnel()
    for record in RECORDS:
        funnel.passes(record, None)
    funnel.reject(RECORDS[0], "far")
    assert (funnel.made, funnel.kept, dict(funnel.counts)) == (6, 5, {"far": 1})


def test_dropped_rows_are_handed_over_whole_with_their_reason() -> None:
    dropped: list[object] = []
    funnel = Funnel(dropped.append)
    funnel.passes(RECORDS[0], None)
    funnel.passes(RECORDS[1], "empty")
    funnel.reject(RECORDS[0], "far")
    assert dropped == [
        {"reason": "empty", **RECORDS[1].to_json()},
        {"reason": "far", **RECORDS[0].to_json()},
    ]


def test_a_funnel_that_nothing_went_through_says_so() -> None:
    assert Funnel().result() == FunnelCounts(made=0, dropped={}, kept=0)
    assert str(Funnel()) == "0 made, none dropped, 0 kept"


@settings(deadline=None)
@given(st.lists(st.none() | st.sampled_from(["a", "b", "c"])))
def test_made_is_always_dropped_plus_kept(reasons: list[str | None]) -> None:
    dropped: list[object] = []
    funnel = Funnel(dropped.append)
    kept = sum(funnel.passes(RECORDS[0], reason) for reason in reasons)
    counted = funnel.result()
    assert counted.made == len(reasons) == kept + len(dropped)
    assert counted.kept == kept == counted.made - sum(counted.dropped.values())
