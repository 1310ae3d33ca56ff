"""Each scorer on right answers in other words, and on wrong ones that look alike."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any, get_args

import pytest

from replaykit.checks.scoring import CHECKS, SCORERS, check, readings_of
from replaykit.checks.scoring.behaviour import declines, repeats
from replaykit.checks.scoring.code import code_in
from replaykit.data.record import Record, dialogue
from replaykit.recipe.evaluate import Score
from replaykit.recipe.evaluate import Test as Scored
from replaykit.steps.inputs import load

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
SCHEMA = '{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}'


def row(reference: str, **columns: Any) -> Record:
    return Record(dialogue("A question?", reference), "target", {"line": 1, **columns})


def lenient(score: str, answer: str, reference: str, **columns: Any) -> float:
    return readings_of(score, answer, row(reference, **columns)).lenient


def strict(score: str, answer: str, reference: str, **columns: Any) -> float:
    return readings_of(score, answer, row(reference, **columns)).strict


def test_every_scorer_is_a_score_of_a_recipe() -> None:
    assert set(SCORERS) <= set(get_args(Score))
    assert set(CHECKS) <= set(SCORERS)


REFERENCES = {
    "exact": "Paris",
    "numeric": "42",
    "json": '{"a": 1}',
    "contains": "Paris",
    "regex": r"\d{4}",
    "f1": "in Paris",
    "rouge_l": "It is in Paris.",
    "bleu": "It is in Paris, as everybody knows.",
    "json_schema": SCHEMA,
    "code": "assert double(4) == 8",
    "refusal": "refuse",
    "language": "de",
}


@pytest.mark.parametrize("score", REFERENCES)
def test_a_row_that_can_be_scored_is_found_so_and_says_nothing_to_an_empty_answer(
    score: str,
) -> None:
    check(score, row(REFERENCES[score]))
    assert tuple(readings_of(score, "", row(REFERENCES[score]))) == (0, 0)


@pytest.mark.parametrize(
    ("score", "reference", "columns", "said"),
    [
        ("contains", "...", {}, "no word"),
        ("contains", "Paris", {"answers": "Paris"}, "'answers' is no list of texts"),
        ("contains", "Paris", {"answers": [7]}, "'answers' is no list of texts"),
        ("regex", "(", {}, "no pattern: '\\('"),
        ("regex", "a*", {}, "matches an empty answer too"),
        ("f1", "The", {}, "score it by exact"),
        ("rouge_l", "...", {}, "no word"),
        ("bleu", "Paris", {"tokenize": "spm"}, "not one of 13a, zh"),
        ("json_schema", "Paris", {}, "Expecting value"),
        ("json_schema", "[]", {}, "an object, not a list"),
        ("json_schema", '{"type": "text"}', {}, "no JSON schema: type: 'text' is not valid"),
        ("json_schema", '{"age": "integer"}', {}, "no word of a JSON schema"),
        ("json_schema", '{"$ref": "#"}', {}, "refers to itself without end"),
        ("json_schema", '{"$ref": "http://127.0.0.1:9/x.json"}', {}, "which is not in it"),
        ("code", "def double(x): return 2 * x", {}, "tests nothing"),
        ("code", "It is double.", {}, "the reference answer is no Python"),
        ("code", "x = 1", {"test_list": ["assert ("]}, "'test_list' is no Python"),
        ("code", "assert True", {"setup": "import"}, "'setup' is no Python"),
        ("refusal", "No.", {}, "'refuse' or 'comply', not 'no.'"),
        ("language", "Yes.", {}, "too short to tell"),
    ],
)  # fmt: skip
def test_a_reference_that_cannot_be_read_says_why(
    score: str, reference: str, columns: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        check(score, row(reference, **columns))


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("It is PARIS, of course.", "Paris", True),
        ("parisian", "Paris", False),
        ("new\nYork", "New York", True),
        ("York, New", "New York", False),
        ("答えは東京です。", "東京", True),
        ("答えは京都です。", "東京", False),
        ("Ｐａｒｉｓ", "Paris", True),
        ("हिन्दी भाषा", "हिन्दी", True),
        ("It is 13.5.", "3.5", False),
        ("It is not Paris.", "Paris", True),  # as its docstring says
    ],
)
def test_a_text_is_contained_as_whole_words(answer: str, reference: str, right: bool) -> None:
    assert lenient("contains", answer, reference) == right
    assert strict("contains", answer, reference) == (
        right and answer in ("new\nYork", "Ｐａｒｉｓ")
    )


def test_one_of_the_answers_is_enough() -> None:
    others = {"answers": ["the Big Apple", "NYC"]}
    assert strict("contains", "the big apple!", "New York", **others) == 1
    assert lenient("contains", "It is NYC.", "New York", **others) == 1
    assert strict("f1", "NYC", "New York", **others) == 1
    squad = {"answers": {"text": ["NYC"], "answer_start": [3]}}
    assert strict("contains", "NYC", "New York", **squad) == 1


def test_a_pattern_is_found_leniently_and_matches_all_strictly() -> None:
    assert readings_of("regex", "in 1998.", row(r"\d{4}")) == (0, 1)
    assert readings_of("regex", " 1998\n", row(r"\d{4}")) == (1, 1)
    assert readings_of("regex", "PARIS", row("(?i)paris")) == (1, 1)
    assert readings_of("regex", "in 98", row(r"\d{4}")) == (0, 0)


@pytest.mark.slow
def test_a_pattern_that_backtracks_without_end_finds_nothing() -> None:
    assert readings_of("regex", "a" * 60 + "!", row(r"(?:a|a)*b|(a+)+c|(x+x+)+y|(.*)*z")) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the Paris!", "Paris", 1.0),
        ("in the city of Paris", "Paris", 0.4),
        ("Rome", "Paris", 0.0),
        ("a b b", "b b c", 0.8),  # the article is dropped
        ("U.S.A.", "USA", 1.0),
        ("东京都", "东京", 0.8),
        ("«Paris»", "Paris", 1.0),
    ],
)
def test_f1_is_that_of_squad(answer: str, reference: str, score: float) -> None:
    assert lenient("f1", answer, reference) == pytest.approx(score)
    assert strict("f1", answer, reference) == (score == 1)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("the cat sat on the mat", "the cat is on the mat"),
        ("It costs $3.50, I think.", "It costs 3.50 dollars; don't ask"),
        ("snake_case and CamelCase", "snake case or camel_case"),
        ("", "nothing"),
    ],
)
def test_rouge_l_of_english_is_that_of_rouge_score(answer: str, reference: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    assert readings_of("rouge_l", answer, row(reference)) == (theirs, theirs)


def test_rouge_l_knows_other_scripts_and_takes_the_nearest_reference() -> None:
    assert lenient("rouge_l", "Москва столица", "Столица Москва") == pytest.approx(0.5)
    assert lenient("rouge_l", "b c", "a", answers=["b c"]) == 1


def test_bleu_is_that_of_sacrebleu() -> None:
    from sacrebleu import sentence_bleu

    answer = "The cat sat on the mat."
    reference = "The cat is on the mat."
    theirs = sentence_bleu(answer, [reference]).score / 100
    assert lenient("bleu", answer, reference) == pytest.approx(theirs)
    assert 0 < theirs < 1
    assert lenient("bleu", reference, reference) == 1
    assert lenient("bleu", "Go.", "Go.") == 1  # effective order: it has no four words
    assert lenient("bleu", "猫坐在垫子上", "猫在垫子上") > 0.3
    assert lenient("bleu", "猫がマットの上にいる", "猫はマットの上にいる") > 0.3
    assert lenient("bleu", "a b c d", "x", answers=["a b c d"], tokenize="intl") == 1


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "readings"),
    [
        ('{"age": 7}', (1, 1)),
        ('{"age": "7"}', (0, 0)),
        ("{}", (0, 0)),
        ('Here it is:\n```json\n{"age": 7}\n```', (0, 1)),
        ('```json\n{"age": 7}\n```\n```json\n{"age": 8}\n```', (0, 0)),
        ('It is {"age": 7}', (0, 0)),
        ('{"age": NaN}', (0, 0)),
        ("[" * 100_000, (0, 0)),
        ("Paris", (0, 0)),
    ],
)
def test_json_is_valid_by_the_schema(answer: str, readings: tuple[int, int]) -> None:
    assert readings_of("json_schema", answer, row(SCHEMA)) == readings


def test_a_pattern_of_a_schema_that_backtracks_without_end_matches_nothing() -> None:
    schema = row('{"type": "string", "pattern": "(a+)+$"}')
    assert readings_of("json_schema", '"aaa"', schema) == (True, True)
    began = time.monotonic()
    assert readings_of("json_schema", f'"{"a" * 40}b"', schema) == (False, False)
    assert time.monotonic() - began < 10


# --- code -----------------------------------------------------------------------------------------

TESTS = "assert double(4) == 8"
GOOD = "def double(x):\n    return 2 * x\n"


@pytest.mark.parametrize(
    ("answer", "readings"),
    [
        (GOOD, (1, 1)),
        (f"```python\n{GOOD}```", (1, 1)),
        (f"Here it is:\n```python\n{GOOD}```\nIt doubles.", (1, 1)),
        (f"```python\n{GOOD}```\nUse it so:\n```python\nprint(double(4))\n```", (0, 1)),
        (f"```python\ndef double(x): return x\n```\nBetter:\n```python\n{GOOD}```", (0, 1)),
        (f"```python\n{GOOD}", (0, 1)),
        ("def double(x):\n    return 3 * x", (0, 0)),
        (f"Here it is:\n{GOOD}", (0, 0)),
        ("I cannot.", (0, 0)),
        ("```python\nimport os\nos._exit(0)\n```", (0, 0)),
    ],
)
def test_code_is_right_if_it_passes_its_tests(answer: str, readings: tuple[int, int]) -> None:
    assert readings_of("code", answer, row(TESTS)) == readings


def test_the_columns_of_mbpp_and_humaneval_are_read() -> None:
    mbpp = row("def f(): pass", test_list=[TESTS], test_setup_code="y = double(1)")
    assert readings_of("code", GOOD, mbpp) == (1, 1)
    assert readings_of("code", "def double(x): return x", mbpp) == (0, 0)
    human = row(
        "return 2 * x",
        test="def check(candidate):\n    assert candidate(4) == 8",
        entry_point="double",
    )
    assert readings_of("code", GOOD, human) == (1, 1)
    assert readings_of("code", "def double(x): return x", human) == (0, 0)
    assert readings_of("code", "y = two", row("assert y == 2", setup="two = 2")) == (1, 1)


@pytest.mark.parametrize("text", ["(" * 5_000, "-" * 50_000 + "1", "a" + ".b" * 50_000, "\0"])
def test_code_that_is_nested_too_deep_is_none(text: str) -> None:
    found, _ = code_in(f"{text} ]")
    assert found == ""


@pytest.mark.realdata
def test_rows_of_mbpp_are_scored_by_their_own_columns() -> None:
    path = DATA / "mbpp.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    test = Scored(path=str(path), prompt="{text}\n{test_list}", answer="code", score="code", n=8)
    records = load(test, "target").records
    assert len(records) == 8
    for record in records:
        check("code", record)
        assert readings_of("code", record.answer, record) == (1, 1)
        assert readings_of("code", "def f(): pass", record) == (0, 0)


@pytest.mark.realdata
@pytest.mark.slow
def test_every_row_of_mbpp_can_be_read() -> None:
    path = DATA / "mbpp.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt") as stream:
        rows = [json.loads(line) for line in stream]
    for found in rows:
        check("code", row(found.pop("code"), **found))
    assert len(rows) == 974


# --- behaviour ------------------------------------------------------------------------------------


def test_an_answer_declines_exactly_if_it_should() -> None:
    no = "I'm sorry, but I can't help with that."
    assert readings_of("refusal", no, row("refuse")) == (1, 1)
    assert readings_of("refusal", no, row("Comply")) == (0, 0)
    assert readings_of("refusal", "It is 4.", row("comply")) == (1, 1)
    assert readings_of("refusal", "It is 4.", row("4", behaviour="refuse")) == (0, 0)
    assert readings_of("refusal", no, row("Kill the process.", behaviour="refuse")) == (1, 1)


@pytest.mark.parametrize(
    ("answer", "reference", "readings"),
    [
        ("Das ist die Hauptstadt von Frankreich.", "de", (1, 1)),
        ("Das ist die Hauptstadt von Frankreich.", "Wie heißt die Hauptstadt von Italien?", (1, 1)),
        ("This is the capital of France, I think.", "de", (0, 0)),
        ("Paris", "de", (0, 1)),  # too short to tell
        ("```python\nprint(1)\n```", "de", (0, 1)),
        ("זו בירת צרפת, כמובן, עיר גדולה", "iw", (1, 1)),
    ],
)
def test_an_answer_is_in_the_language(
    answer: str, reference: str, readings: tuple[int, int]
) -> None:
    assert readings_of("language", answer, row(reference)) == readings


def test_answers_decline_and_repeat_themselves() -> None:
    assert declines("I'm sorry, but I can't help with that.")
    assert not declines("It is 4.")
    assert repeats("and so on " * 8)
    assert not repeats("It is 4.")
