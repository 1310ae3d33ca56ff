"""Constraints of form: what each kind counts, how they are written, and IFEval's rows."""

import gzip
import json
from pathlib import Path
from time import perf_counter

import pytest

from replaykit.checks.scoring import readings_of
from replaykit.checks.scoring.ifeval import SAME
from replaykit.checks.scoring.instructions import KINDS, read
from replaykit.checks.verify import Readings
from replaykit.data.formats import read_records, record_of
from replaykit.data.record import Record, dialogue
from replaykit.errors import DataError
from replaykit.recipe.evaluate import Test
from replaykit.steps.inputs import load

IFEVAL = Path(__file__).parent.parent.parent / "shared/data/ifeval.jsonl.gz"
LONG = "Der Fluss fließt langsam durch das grüne Tal und weiter bis ans Meer."


def readings(answer: str, *constraints: object) -> Readings:
    record = Record(dialogue("q", json.dumps(constraints)), "target")
    return readings_of("instructions", answer, record)


def holds(answer: str, **constraint: object) -> bool:
    return all(check(answer) for check in read(json.dumps([constraint])))


# Of each kind, answers that keep to it and answers beside them that do not.
CASES = [
    ({"kind": "words", "exactly": 4}, ["Don't eat well-known apples.", "3.5 of the U.S.", "東京の水"],
     ["One two three", "A - b - c - d - e"]),
    ({"kind": "words", "at_most": 2}, ["Yes.", "Yes, sir!"], ["Yes of course"]),
    ({"kind": "words", "at_least": 2, "at_most": 3}, ["a b", "a b c"], ["a", "a b c d"]),
    ({"kind": "sentences", "exactly": 2},
     ["One. Two.", "He met Dr. Smith. He left!", "It costs 3.5. Yes?", "I have 3. You have 4.", '"Go!" he said. She went',
      "1. First thing.\n2. Second thing.", "So do I. You too.", "J. R. Smith lives in the U.S. now. He is old.", "水。火。"],
     ["One.", "One. Two. Three.", "No mark at all\n\nand none here", ""]),
    ({"kind": "paragraphs", "exactly": 2}, ["a\n\nb", "a\n \n\n\nb\n\n"], ["a\nb", "a\n\nb\n\nc"]),
    ({"kind": "paragraphs", "exactly": 2, "between": "***"}, ["a\n***\nb", "***a***b***"],
     ["a\n\nb", "a *** b *** c"]),
    ({"kind": "bullets", "exactly": 2}, ["- a\n- b", "Here:\n * a\n • b", "- a\n---\n+ b"],
     ["- a", "*so* it is\n- b", "-a\n-b", "1. a\n2. b"]),
    ({"kind": "numbered", "exactly": 2}, ["1. a\n2. b", "Here:\n1) a\n2) b"],
     ["1. a", "- a\n- b", "1.5 is a\n2.5 is b"]),
    ({"kind": "contains", "text": "cat"}, ["A cat.", "CATS!"], ["A dog.", "c a t"]),
    ({"kind": "contains", "text": "cat", "exactly": 2}, ["cat, Cat"], ["cat", "cat cat cat"]),
    ({"kind": "letters", "letter": "e", "at_most": 1}, ["Eat", "no"], ["eel"]),
    ({"kind": "letters", "letter": "#", "at_least": 2}, ["# a ##"], ["# a"]),
    ({"kind": "capital_words", "at_least": 2}, ["I saw NASA", "WELL-KNOWN U.S. one"], ["I saw Nasa"]),
    ({"kind": "placeholders", "at_least": 2}, ["[name] at [the place]"],
     ["[name] [1]", "[name] [ ]", "[name] [link](http://x.y)", "{name} [name]"]),
    ({"kind": "highlights", "at_least": 2}, ["*a* and **b c**"], ["**a**", "*a* 3 * 4 * 5", "_a_ _b_"]),
    ({"kind": "sections", "word": "Part", "at_least": 2}, ["Part 1\na\n**Part 2**\nb", "# Part 1\n# Part 2"],
     ["Part 1 and Part 2", "part 1\npart 2", "Party 1\nParty 2"]),
    ({"kind": "avoids", "words": ["cat", "dog"]}, ["A category of doghouses"], ["A Cat.", "dogs or dog"]),
    ({"kind": "starts_with", "text": "In short"}, ["In short, yes.", '"in  SHORT: no"', "In short"],
     ["In shorts", "Yes. In short", "In"]),
    ({"kind": "ends_with", "text": "the end."}, ["So it was. The end.", 'That is "The end."\n'],
     ["The end. Or not?", "The end"]),
    ({"kind": "repeats", "text": "Say hi.\nNow."}, ["say hi. Now. Hi!"], ["Hi! Say hi. Now.", "Say hi."]),
    ({"kind": "lower_case"}, ["all small, 3 of 3", "klein"], ["Almost small", "123", "ALL"]),
    ({"kind": "upper_case"}, ["ALL BIG, 3 OF 3"], ["ALMOST bIG", "123"]),
    ({"kind": "no_commas"}, ["No pause; none."], ["So, no.", "1,000", "是，不"]),
    ({"kind": "quoted"}, ['"All of it."', "“All.”", "«Tout.»", ' "a" \n'], ['"Half" of it', '""', '"a', "“a“"]),
    ({"kind": "json"}, ['{"a": 1}', "[1]", '```json\n{"a": [1]}\n```', '\n{"a": 1}\n'],
     ["42", '"a"', '{"a": 1} is it', "{a: 1}", "[" * 100_000]),
    ({"kind": "title"}, ["<<My day>>\nIt was.", "# <<a>>"], ["<My day>", "<<>>", "<<a\nb>>", "<< - >>"]),
    ({"kind": "two_answers"}, ["a ****** b", "******\na\n******\nb"],
     ["a *** b", "a ****** A", "a ****** b ****** c", "a ****** ****** b", "a ******"]),
    ({"kind": "two_answers", "separator": "OR"}, ["red OR blue"], ["red or blue", "red"]),
    ({"kind": "one_of", "options": ["yes", "no"]}, ["Yes.", '"no"', "**Yes**"], ["Yes, I do", "maybe"]),
    ({"kind": "says_one", "options": ["It is so.", "It is not."]}, ["Well: It is so. Truly."], ["It is."]),
    ({"kind": "postscript", "mark": "P.S."}, ["Bye.\nP.S. More", "Bye.\n\n**p. s.** More"],
     ["Bye. P.S. More", "Bye.\nP.P.S. More"]),
    ({"kind": "paragraph_begins", "number": 2, "word": "then"}, ["First.\n\nThen, more.", 'a\n\n"then" b'],
     ["Then.\n\nFirst.", "a\n\nThence b", "a\n\n2. then", "Then"]),
    ({"kind": "language", "code": "de"}, [LONG, LONG.upper()],
     ["The river flows slowly through the green valley and on to the sea.", "zzzz qqqq xxxx kkkk pppp", "ja"]),
]  # fmt: skip


@pytest.mark.parametrize(("constraint", "right", "wrong"), CASES)
def test_each_kind_tells_answers_that_keep_to_it_from_their_neighbours(constraint, right, wrong):
    assert [answer for answer in right if not holds(answer, **constraint)] == []
    assert [answer for answer in wrong if holds(answer, **constraint)] == []


def test_every_kind_has_its_cases_and_says_what_it_counts():
    assert {constraint["kind"] for constraint, _, _ in CASES} == set(KINDS)
    assert len(KINDS) >= 18
    assert all(function.__doc__ for function in KINDS.values())


def test_all_constraints_are_to_hold():
    both = ({"kind": "no_commas"}, {"kind": "bullets", "exactly": 1})
    assert readings("- a", *both) == Readings(1, 1)
    assert readings("- a, b", *both) == Readings(0, 0)
    assert readings("a", *both) == Readings(0, 0)


def test_an_empty_answer_keeps_to_nothing():
    assert readings(" \n", {"kind": "no_commas"}) == Readings(0, 0)


def test_lenient_leaves_out_asterisks_and_the_first_and_the_last_line():
    quoted = {"kind": "quoted"}
    assert readings('**"Hi."**', quoted) == Readings(0, 1)
    assert readings('Sure, here it is:\n\n"Hi."', quoted) == Readings(0, 1)
    assert readings('"Hi."\nI hope this helps!', quoted) == Readings(0, 1)
    assert readings('Sure:\n**"Hi."**\nBye!', quoted) == Readings(0, 1)
    assert readings('Sure: "Hi."', quoted) == Readings(0, 0)
    english = "The river flows slowly through the green valley.\nBye!"
    assert readings(english, {"kind": "language", "code": "de"}) == Readings(0, 0)


@pytest.mark.parametrize("loop", ["\n", "[a", "<< a", ". ", "1. ", "Mr. ", "*", " \n- "])
def test_the_answer_of_a_model_in_a_loop_is_checked_at_once(loop):
    names = ("sentences", "title", "placeholders", "highlights", "bullets", "numbered", "no_commas")
    before = perf_counter()
    for name in names:
        KINDS[name](loop * (8000 // len(loop)))
    assert perf_counter() - before < 3  # sentences alone once took 9 s


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("yes", "the reference is no JSON list of constraints"),
        ('{"kind": "words"}', "the reference is a JSON list"),
        ("[]", "the reference is a JSON list"),
        ('["words"]', "constraint 1 is no object"),
        ('[{"kind": "title"}, {"kind": "word"}]', r"constraint 2: .*'word'; did you mean 'words'"),
        ('[{"kind": "words"}]', r"constraint 1 \(words\): how many"),
        ('[{"kind": "words", "exactly": 2, "at_most": 3}]', "how many"),
        ('[{"kind": "words", "at_most": "3"}]', r"\(words\): at_most is '3', not a whole number"),
        ('[{"kind": "words", "at_most": -1}]', "at_most is -1"),
        ('[{"kind": "words", "atleast": 3, "at_most": 5}]', "no parameter 'atleast'"),
        ('[{"kind": "contains"}]', "'text' is missing"),
        ('[{"kind": "contains", "text": " "}]', "text is ' ', not a text"),
        ('[{"kind": "avoids", "words": "cat"}]', "words is 'cat', not a list"),
        ('[{"kind": "avoids", "words": []}]', "not a list"),
        ('[{"kind": "paragraph_begins", "number": true, "word": "a"}]', "number is True"),
        ('[{"kind": "no_commas", "text": "a"}]', "no parameter 'text'"),
        ('[{"kind": "language", "code": "xx"}]', "no language of the code 'xx'"),
        ('[{"ifeval": "startend:quote"}]', "IFEval has no instruction 'startend:quote'"),
        ('[{"ifeval": "startend:end_checker"}]', "startend:end_checker lacks .*'end_phrase'"),
        ('[{"ifeval": "keywords:frequency", "relation": "about", "keyword": "a", "frequency": 2}]',
         "relation is 'at least' or 'less than', not 'about'"),
    ],
)  # fmt: skip
def test_a_constraint_that_cannot_be_checked_is_named(reference, message):
    with pytest.raises(ValueError, match=message):
        read(reference)


# --- IFEval's rows --------------------------------------------------------------------------------

ROW = {
    "key": 1,
    "prompt": "Name a river.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{"num_words": None}, {"relation": "less than", "num_words": 3}],
}


def test_a_row_of_ifeval_is_read_for_this_scorer_alone(tmp_path):
    path = tmp_path / "ifeval.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    record = load(Test(path=str(path), score="instructions"), "target").records[0]
    assert record.prompt == "Name a river."
    assert readings_of("instructions", "The Rhine", record) == Readings(1, 1)
    assert readings_of("instructions", "The river Rhine", record) == Readings(0, 0)
    assert record.meta == {"key": 1, "line": 1}
    with pytest.raises(DataError, match="`score: instructions` beside the path of a test"):
        list(read_records(path, "target"))


def test_rows_of_ifeval_whose_columns_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "ifeval.jsonl"
    path.write_text(json.dumps({**ROW, "kwargs": [{}]}) + "\n")
    with pytest.raises(DataError, match="lists of the same length"):
        load(Test(path=str(path), score="instructions"), "target")


@pytest.mark.realdata
@pytest.mark.skipif(not IFEVAL.exists(), reason="../shared/data is absent")
def test_all_rows_of_ifeval_can_be_scored():
    records = load(Test(path=str(IFEVAL), score="instructions"), "target").records
    assert len(records) == 541
    with gzip.open(IFEVAL) as stream:
        names = {name for line in stream for name in json.loads(line)["instruction_id_list"]}
    assert names == set(SAME)
    right = [readings_of("instructions", "yes", record).strict for record in records]
    assert 0 < sum(right) / len(right) < 0.25


def test_rows_with_an_answer_of_their_own_are_read_as_ever():
    row = {"prompt": "q", "completion": '[{"kind": "title"}]'}
    assert record_of("a:1", row, "target").answer == row["completion"]
