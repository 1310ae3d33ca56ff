"""Which answers are right: each line that was once judged wrongly, and its neighbours."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import threading
import time
import unicodedata
from pathlib import Path

import pytest

from replaykit.checks.verify import final_answer, is_right, number_in, readings

DATA = Path(__file__).parent.parent.parent / "shared" / "data"

# An answer, the reference, and whether it is right.
NUMBERS = [
    # Long whole numbers are compared digit by digit.
    ("123456789", "123456700", False),
    ("123456700", "123456700", True),
    ("123456700.0", "123456700", True),
    ("123456.6", "123456.5", False),
    ("333333.333333", "333333.33", True),
    ("9007199254740993", "9007199254740992", False),
    # Signs written as words or dashes.
    ("minus 42", "42", False),
    ("minus 42", "-42", True),
    ("negative 42", "-42", True),
    ("7 minus 42 is", "-35", False),
    ("–42", "42", False),
    ("–42", "-42", True),
    ("It fell by 2–42", "-42", False),
    ("-$3", "-3", True),
    ("-$3", "3", False),
    ("-$3", "−3", True),
    ("−$3", "-3", True),
    ("$3", "−3", False),
    ("$-3", "-3", True),
    ("$3", "3", True),
    # Words of size.
    ("42 million", "42", False),
    ("42 thousand", "42", False),
    ("42 thousand", "42000", True),
    ("1.5 million", "1500000", True),
    ("1.5 million", "1.5", False),
    ("1.5 million", "1 500 000", True),
    ("2 millions of people", "2000000", True),
    ("42 millionaires", "42", True),
    ("$5k", "5000", True),
    ("5 kg", "5", True),
    ("300万", "3000000", True),
    # Durations and other units that can be converted.
    ("3 hours 20 minutes", "5 hours 20 minutes", False),
    ("5 hours 20 minutes", "5 hours 20 minutes", True),
    ("5 hours and 20 minutes", "320 minutes", True),
    ("320 minutes", "5 hours 20 minutes", True),
    ("5 hours, 20 minutes", "5 hours 21 minutes", False),
    ("3 h 20 min", "3 hours 20 minutes", True),
    ("20 minutes", "5 hours 20 minutes", False),
    ("5 hours", "5 minutes", False),
    ("5 hours", "5", True),
    ("50 cents", "$0.50", True),
    ("5 feet 11 inches", "71 inches", True),
    ("3 dollars and 50 cents", "3.50 dollars", True),
    # Times.
    ("9:30", "10:30", False),
    ("10:30", "10:30", True),
    ("10:30 p.m.", "22:30", True),
    ("10:30 am", "22:30", False),
    ("at 10:30.", "10:30 PM", True),
    ("30", "10:30", False),
    # Dates.
    ("2023-05-01", "2024-05-01", False),
    ("2024-05-01", "2024-05-01", True),
    ("2024-5-1", "2024-05-01", True),
    ("May 1, 2024", "2024-05-01", True),
    ("1 May 2024", "2024-05-01", True),
    ("2024-05-02", "2024-05-01", False),
    ("2024", "2024-05-01", False),
    # Tuples.
    ("(1, 3)", "(2, 3)", False),
    ("(2, 3)", "(2, 3)", True),
    ("The point is (2,3).", "(2, 3)", True),
    ("(3, 2)", "(2, 3)", False),
    ("3", "(2, 3)", False),
    ("{3, 2}", "{2, 3}", True),
    ("(1,234)", "1234", True),
    # What it is not.
    ("The answer is not 42", "42", False),
    ("The answer isn't 42", "42", False),
    ("The answer is not 42, it is 41", "41", True),
    ("The answer is not 41 but 42", "42", True),
    ("41, not 42", "42", False),
    ("41, not 42", "41", True),
    ("42, not 41", "42", True),
    ("42 rather than 41", "42", True),
    ("I am not 100% sure, but 42", "42", True),
    # What it may be.
    ("40 or 42", "42", False),
    ("42 or 40", "42", False),
    ("either 40 or 42", "40", False),
    ("40 apples or 42 apples", "42", False),
    ("42 or 42.0", "42", True),
    ("Add 40 for 2 more: 42", "42", True),
    ("pages 10-12", "12", False),
    # Powers.
    ("2^42", "42", False),
    ("2 ^ 42", "42", False),
    ("2^42", "4398046511104", True),
    ("2**5", "32", True),
    ("10²", "100", True),
    ("10²", "102", False),
    ("1.5 x 10^3", "1500", True),
    ("1.5e3", "1500", True),
    ("1e3", "1000", True),
    ("1e3", "3", False),
    ("2e6", "2 000 000", True),
    ("9^9^9^9", "9", False),
    ("1e999999999", "9", False),
    # Sums that are not worked out yet are worth what they come to.
    ("3 * 4", "4", False),
    ("3 * 4", "12", True),
    ("7-5", "5", False),
    ("27 + 15 = 42", "42", True),
    ("x = 42", "42", True),
    # LaTeX.
    (r"\boxed{\frac{84}{2}}", "42", True),
    (r"\boxed{\frac{84}{4}}", "42", False),
    (r"\boxed{\frac{\frac{84}{2}}{1}}", "42", True),
    (r"\boxed{\text{42 apples}}", "42", True),
    (r"\boxed{42", "42", True),
    (r"So it is $\frac{84}{2}$.", "42", True),
    (r"$\sqrt{1764}$", "42", True),
    (r"\boxed{\sqrt{2}}", r"\sqrt{2}", True),
    (r"\boxed{2^{1/2}}", r"\sqrt{2}", True),
    (r"\boxed{\sqrt{3}}", r"\sqrt{2}", False),
    (r"\boxed{2x+1}", "1 + 2x", True),
    (r"\boxed{2x+2}", "1 + 2x", False),
    (r"\boxed{(x+1)^2}", "x^2 + 2x + 1", True),
    (r"\boxed{2x+42}", "42", False),
    (r"\boxed{(x+1)^{400}}", "(1+x)^{400}", True),
    (r"\boxed{(x+1)^{400}}", "(x+2)^{400}", False),
    (r"\boxed{1{,}234}", "1234", True),
    (r"\boxed{42\%}", "42", True),
    (r"\(42\)", "42", True),
    # Mixed numbers and digit groups.
    ("1 1/2", "1.5", True),
    ("1 1/2", "0.5", False),
    ("1½ cups", "1.5", True),
    ("-1 1/2", "-1.5", True),
    ("1 234 567", "1234567", True),
    ("1 234 567", "567", False),
    ("1\u202f234\u202f567", "1234567", True),
    ("the numbers 1 2 3", "3", True),
    # Remarks in brackets.
    ("42 kg (about 93 lb)", "42", True),
    ("42 kg (about 93 lb)", "93", False),
    ("42 kg (about 93 lb)", "42 kg", True),
    ("f = 3 (42)", "42", True),
    # Per cent.
    ("50%", "0.5", True),
    ("50%", "50", True),
    ("50%", "5", False),
    ("150%", "1.5", True),
    ("0.5", "50%", True),
    ("0.5%", "50%", False),
    ("50 percent", "0.5", True),
    # Emphasis, and an answer that a later sentence only points at.
    ("**42**", "42", True),
    ("It is **42**!", "42", True),
    ("#### **42**", "42", True),
    ("**Answer:** 42", "42", True),
    ("**42**\nThe answer is in bold above.", "42", True),
    ("12 + 30 = **42**, as 7 + 5 = 12.\nThe answer is in bold above.", "42", True),
    ("#### 42\nThe answer is shown above.", "42", True),
    ("**41**\nThe answer is in bold above.", "42", False),
    # Thoughts.
    ("<think>41, or 43?</think>42", "42", True),
    ("41, or 43?\n</think>\n\n42", "42", True),
    ("<think>It is 42", "42", False),
    ("<think>#### 42</think>#### 41", "42", False),
    # Every quantity of the reference counts.
    ("7 and 2", "1 and 2", False),
    ("1 and 2", "1 and 2", True),
    ("a = 7, b = 2", "a = 1, b = 2", False),
    ("b = 2, a = 1", "a = 1, b = 2", True),
    ("x is 1 and y is 2", "1 and 2", True),
    ("5, 2", "1, 2", False),
    ("3, 1, 2", "1, 2", False),
    ("The ratio is 9:2", "1:2", False),
    ("The ratio is 1:2", "1 : 2", True),
    ("9 : 2", "1 : 2", False),
    ("5 remainder 2", "3 remainder 2", False),
    ("5 remainder 2", "5 remainder 2", True),
    ("3", "1, 2, 3", False),
    ("2", "1 and 2", False),
    ("0.1", "192.168.0.1", False),
    ("192.168.0.1", "192.168.0.1", True),
    ("1 and 2", "2", False),
    ("x = 3 and x = -3", "-3", False),
    ("x = 1, 2", "2", False),
    ("So in 2023, 42", "42", True),
    ("So 3 + 4 = 7 apples", "7", True),
    ("2, 3", "(2,3)", True),
    (r"\{1,2\}", r"\{2,1\}", True),
    ("1,5", "1.5", True),
    ("1,5", "5", False),
    ("1 and 1/2", "1.5", True),
    # Units of both are compared, and converted where they can be.
    ("42 m", "42 km", False),
    ("42 km", "42000 m", True),
    ("1 kg", "1 g", False),
    ("1 kg", "1000 g", True),
    ("60 mph", "60 km/h", False),
    ("36 km/h", "10 m/s", True),
    ("42 °F", "42 °C", False),
    ("3 years", "3 months", False),
    ("36 months", "3 years", True),
    ("1h 20m", "2h 20m", False),
    ("5h20m", "5 hours 20 minutes", True),
    ("5 ft 8 in", "6 ft 8 in", False),
    ("1 year 2 months", "3 years 2 months", False),
    ("2 m 3 cm", "1 m 3 cm", False),
    ("£42", "$42", False),
    ("€1", "$1", False),
    ("42 pounds", "£42", True),
    ("42 sq m", "42 m", False),
    ("3 pm", "3 am", False),
    ("42 m", "42", True),
    ("42", "42 km", True),
    ("5 in total", "5 km", True),
    ("$42B", "42000000000", True),
    ("42M", "42", False),
    # What is denied, doubted or asked.
    ("42 is wrong", "42", False),
    ("42 is not the answer", "42", False),
    ("The answer cannot be 42", "42", False),
    ("it is not the case that the answer is 42", "42", False),
    ("I doubt it is 42", "42", False),
    ("anything but 42", "42", False),
    ("42 can't be right", "42", False),
    ("42?", "42", False),
    (r"\boxed{42} is wrong", "42", False),
    ("41 is too low; 42 is too high", "42", False),
    ("41 is too low; 42 works", "42", True),
    ("He can't buy 3, so he buys 42.", "42", True),
    ("There is no doubt: 42", "42", True),
    ("So 42 apples are not red", "42", True),
    ("The number of wrong answers is 42", "42", True),
    ("41 is wrong, it is 42", "42", True),
    ("The answer is 42 because 40 + 2", "42", True),
    # Bounds and ranges.
    ("between 40 and 42", "42", False),
    ("40 to 42", "42", False),
    ("41|42", "42", False),
    ("at least 42", "42", False),
    ("at least 42", "42 or more", True),
    ("< 42", "42", False),
    ("≠ 42", "42", False),
    ("half of 42", "42", False),
    ("half of 42 is 21", "21", True),
    ("42 mod 5", "5", False),
    ("±42", "42", False),
    ("x > 42", "42", False),
    ("x > 3", "x < 3", False),
    ("x >= 3", "x ≥ 3", True),
    ("x = 3", "y = 3", False),
    ("=> 42", "42", True),
    ("<<40+2=42>>42 apples", "42", True),
    ("5 below zero", "5", False),
    ("5 below zero", "-5", True),
    # Names are no numbers, and terms with unknowns, roots and logarithms are worth more than the number.
    ("B42", "42", False),
    ("v42", "42", False),
    ("42i", "42", False),
    ("4π", "4", False),
    ("The area is 4π.", r"4\pi", True),
    ("4x", "4", False),
    ("It is 4x + 1", "1", False),
    ("log 3", "ln 3", False),
    ("3 sqrt 2", "4 sqrt 2", False),
    ("3√2", "3 sqrt 2", True),
    ("√16", "4", True),
    ("3!", "6", True),
    ("3!", "3", False),
    ("The answer is 42!", "42", True),
    (r"\frac{x}{2}", "x/2", True),
    (r"1 \frac{1}{2}", "1.5", True),
    ("0.6667", "2/3", True),
    ("0.667", "2/3", False),
    ("forty-two", "42", True),
    ("minus forty-two", "-42", True),
    ("minus two hundred", "-200", True),
    ("\N{MINUS SIGN}forty-two", "42", False),
    ("-forty-two", "-42", True),
    ("two hundred and five apples", "205", True),
    ("42 = 6 x 7", "42", True),
    ("41 = 6 x 7", "42", False),
    # Two boxes, and an answer that is taken back.
    (r"\boxed{41} and \boxed{42}", "42", False),
    (r"\boxed{42} and \boxed{41}", r"\boxed{42} and \boxed{41}", True),
    ("#### 42\nWait, that is wrong: 41", "#### 42", False),
    ("#### 42\nWait, that is wrong: 41", "#### 41", True),
]

TEXTS = [
    ("**Paris**", "Paris", True),
    ("*Paris*", "Paris", True),
    ("**Rome**", "Paris", False),
    ("**Paris** or **Rome**", "Paris", False),
    ("Paris!", "Paris", True),
    ("Paris?", "Paris", False),
    ('"Paris."', "Paris", True),
    ("5!", "5", False),
    (unicodedata.normalize("NFD", "Café"), unicodedata.normalize("NFC", "Café"), True),
    (unicodedata.normalize("NFC", "Ångström"), unicodedata.normalize("NFD", "ångström"), True),
    ("Cafe", "Café", False),
    ("10²", "102", False),
    ("**4**", "4", True),
    ("**5**", "4", False),
    ("*", "*", True),
    ("*", "+", False),
    ("`x`", "x", True),
    # Options of a multiple-choice question.
    ("The answer is (B).", "B", True),
    ("(B)", "B", True),
    ("B) Paris", "B", True),
    ("**B.** Paris", "B", True),
    ("Option B", "B", True),
    ("b", "B", True),
    (r"\boxed{B}", "(B)", True),
    ("The answer is (C).", "B", False),
    ("B or C", "B", False),
    ("(B) or (C)", "B", False),
    ("Because of the rain", "B", False),
    ("A dog", "A", False),
    # Thoughts.
    ("<think>Rome? No.</think>\n\nParis", "Paris", True),
    ("<think>Paris</think>Rome", "Paris", False),
    ("Rome? No.</think>Paris.", "Paris", True),
    ("<think>Paris", "Paris", False),
    # An answer that a later sentence only points at.
    ("Paris\nThe answer is in bold above.", "Paris", True),
    ("It is **Paris**, not Rome.\nThe answer is in bold above.", "Paris", True),
    ("The answer is Paris.\nAs said, the answer is above.", "Paris", True),
    ("The answer is above average", "above average", True),
    ("Rome\nThe answer is in bold above.", "Paris", False),
    ("The answer is below:\n\nParis", "Paris", True),
    ("x</think> to close", "Use </think> to close", False),
    ("Use </think> to close", "Use </think> to close", True),
    # Initials, and options with their texts.
    ("E. faecalis", "E. coli", False),
    ("J. Doe", "J. Smith", False),
    ("B) London", "B) Paris", False),
    ("B) Paris", "B) Paris", True),
    ("B", "B) Paris", True),
    ("A: no", "A: yes", False),
    ("(A) is wrong", "A", False),
    ("A) and C", "A", False),
    ("C. is wrong, D is right", "C", False),
    ("A. B is right", "A", False),
    ("(C) or maybe D", "C", False),
    ("D, not A", "D", True),
    ("(D), not (A)", "D", True),
    ("Option B is correct", "B", True),
    ("(K)", "K", True),
    (r"\boxed{\text{B}}", "B", True),
    (r"\boxed{A} and \boxed{B}", "B", False),
    ("n!", "n", False),
    ("init", "__init__", False),
    ("«yes»", "yes", True),
    ("The answer is: **Paris**.", "Paris", True),
    ("The answer is Paris. It is in France.", "Paris", True),
    ("The answer is Paris. No, Rome.", "Paris", False),
    ("I doubt that the answer is Paris", "Paris", False),
]

VALUES = [
    ('```json\n{"a": 1}\n```', '{"a": 1}', True),
    ('```\n{"a": 1}\n```', '{"a": 1}', True),
    ('Here it is:\n```json\n{"a": 1}\n```\nDone.', '{"a": 1}', True),
    ('```json\n{"a": 2}\n```', '{"a": 1}', False),
    ('```json\n{"a": 1}\n```\n```json\n{"a": 2}\n```', '{"a": 1}', False),
    ('<think>{"a": 2}</think>{"a": 1}', '{"a": 1}', True),
    ('<think>{"a": 1}</think>{"a": 2}', '{"a": 1}', False),
    ('{"html": "</think>"}', '{"html": "</think>"}', True),
    ('```json {"a": 1}```', '{"a": 1}', True),
    ('`{"a": 1}` or ```json {"a": 1}``` or ```json {"a": 2}```', '{"a": 1}', False),
]


@pytest.mark.parametrize(("answer", "reference", "right"), NUMBERS)
def test_a_quantity_is_right_if_it_is_the_reference_however_it_is_written(
    answer: str, reference: str, right: bool
) -> None:
    assert is_right(answer, reference, how="numeric") is right


@pytest.mark.parametrize(("answer", "reference", "right"), TEXTS)
def test_a_text_is_right_whatever_stands_around_it(
    answer: str, reference: str, right: bool
) -> None:
    assert is_right(answer, reference, how="exact") is right


@pytest.mark.parametrize(("answer", "reference", "right"), VALUES)
def test_json_is_right_in_a_code_fence_and_after_a_thought(
    answer: str, reference: str, right: bool
) -> None:
    assert is_right(answer, reference, how="json") is right


@pytest.mark.parametrize("reference", ["#### 42", "42", "3 hours 20 minutes", "(2, 3)", "1/3"])
def test_a_reference_is_right_about_itself_in_both_readings(reference: str) -> None:
    assert readings(reference, reference, how="numeric") == (True, True)


def test_a_reference_whose_sentences_name_several_numbers_is_not_readable() -> None:
    with pytest.raises(ValueError, match="several numbers in the reference"):
        readings("5", "He had 3 apples. He bought 5 more.", how="numeric")
    assert is_right("8", "He had 3 apples. He bought 5 more.\n#### 8", how="numeric")


# --- the two readings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reference", "how", "strict", "lenient"),
    [
        ("12 + 30 = 42\n#### 42", "30 + 12\n#### 42", "numeric", True, True),
        ("So it is 42.", "30 + 12\n#### 42", "numeric", False, True),
        (r"\boxed{42}", "30 + 12\n#### 42", "numeric", False, True),
        ("So it is 41.", "30 + 12\n#### 42", "numeric", False, False),
        ("#### 42 apples", "#### 42", "numeric", False, True),
        ("#### $1,200.00", "#### 1200", "numeric", True, True),
        ("42", "42", "numeric", True, True),
        ("It is 42", "42", "numeric", False, True),
        ("<think>40 + 2</think>42", "42", "numeric", True, True),
        ("paris.", "Paris", "exact", True, True),
        ("**Paris**", "Paris", "exact", False, True),
        ("The answer is Paris.", "Paris", "exact", False, True),
        ("(B)", "B", "exact", False, True),
        ("Rome", "Paris", "exact", False, False),
        ('{"a": 1}', '{"a": 1}', "json", True, True),
        ('```json\n{"a": 1}\n```', '{"a": 1}', "json", False, True),
        ("3", "1, 2, 3", "numeric", False, False),
        ("1, 2, 3", "1, 2, 3", "numeric", True, True),
        ("€1", "$1", "numeric", False, False),
        ("#### 42\nWait, that is wrong: 41", "#### 42", "numeric", False, False),
        ("#### Paris\nWait, that is wrong: Rome", "#### Paris", "exact", False, False),
        ("x</think> to close", "Use </think> to close", "exact", False, False),
    ],
)
def test_the_strict_reading_wants_the_form_of_the_reference_and_the_lenient_one_the_answer(
    answer: str, reference: str, how: str, strict: bool, lenient: bool
) -> None:
    assert readings(answer, reference, how=how) == (strict, lenient)  # type: ignore[arg-type]


# --- the final answer -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "final"),
    [
        (r"\boxed{\frac{84}{2}}", r"\frac{84}{2}"),
        (r"\boxed{\sqrt{\frac{1}{2}}} and so on", r"\sqrt{\frac{1}{2}}"),
        (r"\boxed{4", "4"),
        ("<think>#### 1</think>#### 2", "2"),
        ("#### 2\nThe answer is underlined above.", "2"),
    ],
)
def test_braces_are_matched_and_a_pointing_sentence_is_no_answer(text: str, final: str) -> None:
    assert final_answer(text) == final


def test_a_number_is_read_with_its_words() -> None:
    assert number_in("about 1.5 million") == 1_500_000
    assert number_in("minus 3/4") == -0.75
    assert number_in("10:30") is None


# --- threads, processes, time ---------------------------------------------------------------------

FORMULA = (r"\boxed{\frac{\sqrt{4}}{1}}", "2")


def _ask(found: list[bool]) -> None:
    found.append(is_right(*FORMULA, how="numeric"))


def _ask_in_a_process(queue: multiprocessing.Queue[bool]) -> None:
    queue.put(is_right(*FORMULA, how="numeric"))


def test_formulas_are_verified_outside_the_main_thread_too() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=_ask, args=(found,))
    thread.start()
    thread.join()
    _ask(found)
    assert found == [True, True]


def test_formulas_are_verified_in_a_child_process() -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_ask_in_a_process, args=(queue,))
    child.start()
    right = queue.get(timeout=60)
    child.join()
    assert right is True


@pytest.mark.parametrize(
    "answer",
    [
        "9" * 100_000,
        "1 " * 50_000,
        "(1, " * 20_000,
        r"\frac{" * 5_000,
        r"\boxed{" * 5_000,
        "2^" * 100,
        r"\boxed{9^{9^{9^{9}}}}",
        r"\boxed{(x+1)^{9999999}}",
        "1/" * 20_000,
        "not " * 20_000 + "1",
        "- " * 20_000,
        "5 hours " * 10_000,
        "4x " * 10_000,
        "√2, " * 10_000,
        "4x and " * 10_000,
        "a = 1, " * 10_000,
        "I doubt it " * 5_000 + "1",
        "The answer is " * 5_000,
    ],
)
def test_no_answer_takes_long_to_verify(answer: str) -> None:
    is_right(*FORMULA, how="numeric")  # the library is loaded once
    start = time.perf_counter()
    is_right(answer, "5", how="numeric")
    is_right(answer, "5", how="exact")
    assert time.perf_counter() - start < 6


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
def test_a_thousand_answers_of_gsm8k_are_verified_in_five_seconds_and_each_is_right() -> None:
    with gzip.open(DATA / "gsm8k_test.jsonl.gz", "rt", encoding="utf-8") as stream:
        references = [json.loads(line)["answer"] for line in stream][:1000]
    start = time.process_time()
    found = [readings(text, text, how="numeric") for text in references]
    said = [text.replace("####", "So the result is") for text in references]
    reworded = [
        is_right(text, reference, how="numeric")
        for text, reference in zip(said, references, strict=True)
    ]
    assert time.process_time() - start < 5
    assert all(both == (True, True) for both in found)
    assert all(reworded)
