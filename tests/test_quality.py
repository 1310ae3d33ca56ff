"""Rules of form for old rows: what each drops, and above all what it must not drop."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from replaykit.checks.quality import PLACEHOLDERS, broken, markup, placeholder, reason, row_reason
from replaykit.data.record import Record, dialogue
from replaykit.recipe.select import Quality

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
realdata = pytest.mark.realdata
OFF = Quality(empty=False, placeholders=False, broken=False, max_markup=None, max_repeat=None)
PROSE = (
    "The river rises in the hills above the town and runs to the sea. In spring it is high, and the boats have to wait. "
    "People that live by the water know when to move their sheep. Nobody can say how old the bridge is. It stood there "
    "when the first map was drawn, with three arches and a small house on top."
)


# --- what stays -----------------------------------------------------------------------------------

GOOD = [
    ("Is water wet?", "Yes"),
    ("3 + 4?", "7"),
    ("Rate it.", "★★★★★"),
    ("Is there an answer in the text?", "No answer"),
    ("What does print(None) show?", "None"),
    ("Write 30 in Roman numerals.", "XXX"),
    ("Translate SOS into Morse code.", "... --- ..."),
    ('Who is the author? Say "N/A" if the text does not tell.', "N/A"),
    ("Write a letter.", "Dear [Your Name],\n\nplease insert the coin.\n\nYours, [Name]"),
    ("Review this.", "I would write TODO there, not leave it empty."),
    (
        "Give me two paragraphs of lorem ipsum.",
        "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
    ),
    ("What is 0/0 in JavaScript?", "NaN"),
    ("Make a heading in HTML.", "<h1>Title</h1>"),
    ("Is a < b?", "a < b && b > c; so yes"),
    ("How do I escape?", "Use `&lt;` for <."),
    (
        "Übersetze: Das Café in São Paulo öffnet um 8.",
        "The café in São Paulo opens at 8 – “early”, they say…",
    ),
    ("ALL CAPITALS, PORTUGUESE", "“AMANHÃ” E “IRMÔ, DISSE O JOÃO…"),
    ("Pronounce Hong Kong.", "[hœ́ːŋ.kɔ̌ːŋ]"),
    ("你好吗？", "我很好，谢谢。你呢？"),
    ("ขอถาม", "ได้ค่ะ"),
    ("Emoji?", "👩‍👩‍👧 🇵🇪"),
    ("A JSON string with a smile?", r'{"smile": "\ud83d\ude00"}'),
    ("List a name", "A.\tB\r\n\x0cpage 2"),
    # The words of a placeholder that are an answer here.
    ("¿Cuánto perdió en el juego?", "Todo"),
    ("O que você comeu ontem à noite?", "Todo."),
    ("How do you say 'everything' in Spanish?", "Todo"),
    ("Which error does Excel show where a referenced cell was deleted?", "#REF!"),
    ("What is in cell B2 after column A was removed?", "#REF!"),
    ("What does print(float('nan')) show?", "nan"),
    ("What does numpy say about 0/0?", "nan"),
    ("Write the letter S in Morse code.", "..."),
    ("用摩尔斯电码写字母S。", "..."),
    ("What do designers put where a text will be?", "They use lorem ipsum."),
    ("Where is it from?", "Lorem ipsum was taken from Cicero, by a printer, around 1500."),
    # A sign, a word or a repetition that was asked for.
    ("Abbreviate 'to be determined'.", "TBD"),
    ("Which abbreviation stands for what does not apply?", "N/A"),
    ("Which comment tag marks work that is left?", "TODO"),
    ("Which operator spreads an array in JavaScript?", "..."),
    ("What separates two documents in YAML?", "---"),
    ("What do you write in Scala for a method without a body yet?", "???"),
    ("Which tag breaks a line?", "<br>"),
    ("Which special token ends a message in ChatML?", "<|im_end|>"),
    ("Say hello 20 times.", "hello " * 20),
    ("What does é look like where UTF-8 is read as Latin-1?", "Ã©"),
    # Markup that was asked for, in other words than "HTML".
    ("How do I escape an ampersand?", "&amp;"),
    ("Which entity is a space that does not break?", "&nbsp;"),
    ("Schreibe eine Webseite mit einer Überschrift.", "<h1>Hallo</h1><p>Das ist sie.</p>"),
    ("写一个网页，标题为“你好”。", "<h1>你好</h1><p>正文</p>"),
    ("Haz una página con un título.", "<h1>Hola</h1><p>Texto</p>"),
    (
        "Ich brauche etwas mit einer Überschrift für den Browser.",
        "<!DOCTYPE html>\n<html><head><title>A</title></head><body><h1>A</h1></body></html>",
    ),
]


@pytest.mark.parametrize(("prompt", "answer"), GOOD)
def test_a_good_row_is_kept(prompt, answer):
    assert row_reason(prompt, answer, Quality()) is None


# --- what goes ------------------------------------------------------------------------------------

BAD = [
    ("Why?", "", "empty_answer"),
    ("Why?", " \n\t", "empty_answer"),
    ("Why?", "<|endoftext|>", "empty_answer"),
    ("Why?", " </s>\n", "empty_answer"),
    (" ", "Because.", "empty_prompt"),
    ("Why?", "N/A", "placeholder"),
    ("Why?", "n/a.<|endoftext|>", "placeholder"),
    ("Why?", "**TODO**", "placeholder"),
    ("Why?", "As above.", "placeholder"),
    ("Why?", "...", "placeholder"),
    ("Why?", "…… …", "placeholder"),
    ("Why?", "______", "placeholder"),
    ("Why?", "nan", "placeholder"),
    ("Why?", "[Insert your answer here]", "placeholder"),
    ("Why?", "<your answer>", "placeholder"),
    ("Why?", "Lorem ipsum dolor sit amet, consectetur.", "placeholder"),
    ("Why?", "The cafÃ© is closed.", "broken_answer"),
    ("Why?", "Itâ€™s the governmentâ€™s.", "broken_answer"),
    ("Why?", "РџСЂРёРІРµС‚, РєР°Рє РґРµР»Р°?", "broken_answer"),
    ("Why?", "water quality,\ufffd the site says", "broken_answer"),
    ("Why?", "it is what it is \x96 nice", "broken_answer"),
    ("Why?", "a\x00b", "broken_answer"),
    ("Why?", "smile \ud83d", "broken_answer"),
    ("Why?", r"smile \ud83d and go", "broken_answer"),
    ("The cafÃ© is closed?", "Yes", "broken_prompt"),
    ("Why?", "<p>Because</p>", "markup"),
    ("Who wrote it?", "Todo", "placeholder"),
    ("Who wrote it in the year 1900, and for whom?", "#REF!", "placeholder"),
    ("Who is the mayor of the town?", "nan", "placeholder"),
    ("Why?", "Lorem ipsum.", "placeholder"),
    ("Wie heißt der Fluss?", "<p>Der <b>Main</b></p>", "markup"),
    ("Why?", "<html><p>Because</p>", "markup"),
    ("Why?", "Tom &amp; Co", "markup"),
    ("Why?", "&lt;b&gt;Because&lt;/b&gt;", "markup"),
    ("Why?", "and so on " * 50, "repetitive"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "answer", "expected"), BAD)
def test_a_bad_row_is_dropped_with_its_reason(prompt, answer, expected):
    assert row_reason(prompt, answer, Quality()) == expected


@pytest.mark.parametrize(("prompt", "answer"), [row[:2] for row in BAD])
def test_every_rule_can_be_switched_off(prompt, answer):
    assert row_reason(prompt, answer, OFF) is None


@pytest.mark.parametrize("answer", sorted(PLACEHOLDERS))
def test_every_entry_of_the_table_is_found_in_any_case(answer):
    assert placeholder("Why?", answer) == placeholder("Why?", answer.upper() + ".") == "placeholder"


def test_one_broken_letter_in_a_long_prompt_is_spared_and_in_an_answer_is_not():
    text = f"{PROSE} It cost Â£88."
    assert broken(text) == 1
    assert row_reason(text, "Yes", Quality()) is None
    assert row_reason("Why?", text, Quality()) == "broken_answer"


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
        lambda text: not text.isascii()
    )
)
def test_what_is_said_to_be_mojibake_can_be_read_again(text):
    """Only letters, so that no other sign counts."""
    from ftfy import fix_encoding

    if broken(text) and not any(
        ord(sign) < 32 or 127 <= ord(sign) < 160 or sign == "\ufffd" for sign in text
    ):
        assert fix_encoding(text) != text or any(
            0xFDD0 <= ord(sign) <= 0xFDEF or ord(sign) > 0xFFFD for sign in text
        )


@given(st.text(), st.text())
def test_no_text_is_too_strange_to_be_judged(prompt, answer):
    every = Quality(prompt_words=[0, 9], answer_chars=[0, 9])
    assert row_reason(prompt, answer, every) is None or isinstance(
        row_reason(prompt, answer, every), str
    )


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Größe, naïve, Žižek, Łódź", "cp1252"),
        ("Größe, naïve, Žižek, Łódź", "latin-1"),
        ("¿Qué? ¡Sí!", "cp1252"),
        ("năm mới, Đà Nẵng", "cp1252"),
        ("Ελληνικά", "cp1252"),
        ("“Don’t” – she said…", "cp1252"),
        ("Привет, как дела?", "cp1251"),
        ("Привет, как дела?", "latin-1"),
    ],
)
def test_text_of_many_languages_is_whole_and_its_mojibake_is_broken(text, wrong):
    assert broken(text) == 0
    assert broken(text.encode().decode(wrong, "replace")) > 0


# --- length ---------------------------------------------------------------------------------------


def test_lengths_are_limits_of_both_ends():
    limits = OFF.model_copy(update={"answer_chars": [2, 5]})
    answers = ["a", "ab", "abcde", "abcdef"]
    expected = ["answer_too_short", None, None, "answer_too_long"]
    assert [row_reason("Why?", answer, limits) for answer in answers] == expected


def test_words_are_counted_in_writing_without_spaces_too():
    limits = OFF.model_copy(update={"prompt_words": [3, 100]})
    assert row_reason("東京", "A", limits) == "prompt_too_short"
    assert row_reason("東京は", "A", limits) is None


def test_the_special_token_at_the_end_is_no_part_of_the_answer():
    limits = OFF.model_copy(update={"answer_chars": [0, 3]})
    assert row_reason("Why?", "Yes<|endoftext|>", limits) is None


def test_the_wrong_language_is_dropped_where_languages_are_named():
    answer = "Der Fluss entspringt in den Bergen über der Stadt und fließt ins Meer."
    assert row_reason("Why?", answer, Quality()) is None
    assert row_reason("Why?", answer, Quality(languages=["en"])) == "wrong_language"
    assert row_reason("Why?", answer, Quality(languages=["de", "en"])) is None


# --- records and settings -------------------------------------------------------------------------


def test_every_exchange_of_a_conversation_is_looked_at():
    first, second = dialogue("Hi?", "Hello."), dialogue("And?", "N/A")
    assert reason(Record(first, "select"), Quality()) is None
    assert reason(Record((*first, *second), "select"), Quality()) == "placeholder"
    assert reason(Record((*second, *first), "select"), Quality()) == "placeholder"


def test_what_an_earlier_turn_asks_for_may_be_in_a_later_answer():
    first = dialogue("I name letters, you write them in Morse code.", "Go on.")
    assert reason(Record((*first, *dialogue("S", "...")), "select"), Quality()) is None
    told = dialogue("S", "...", system="Write every letter in Morse code.")
    assert reason(Record(told, "select"), Quality()) is None
    assert reason(Record(dialogue("S", "..."), "select"), Quality()) == "placeholder"


def test_an_answer_that_only_calls_a_tool_is_not_empty():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    calls = {"role": "assistant", "content": "", "tool_calls": [call]}
    question = {"role": "user", "content": "Weather in Oslo?"}
    silent = {"role": "assistant", "content": ""}
    assert reason(Record((question, calls), "select"), Quality()) is None
    assert reason(Record((question, silent), "select"), Quality()) == "empty_answer"
    assert reason(Record((question, calls, silent), "select"), Quality()) == "empty_answer"


def test_a_plain_text_is_judged_without_a_prompt():
    assert reason(Record(({"role": "text", "content": "A line."},), "select"), Quality()) is None
    assert (
        reason(Record(({"role": "text", "content": " "},), "select"), Quality()) == "empty_answer"
    )


def test_a_question_without_an_answer_is_an_empty_answer():
    assert reason(Record(dialogue("Why?"), "select"), Quality()) == "empty_answer"


def test_markup_counts_from_its_share_on():
    answer = "<b>" + "x" * 17  # 3 of 20 characters
    assert markup("Why?", answer, max_share=0.14) == "markup"
    assert markup("Why?", answer, max_share=0.16) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"answer_chars": [5, 2]},
        {"answer_chars": [1]},
        {"documents": ["gopher_hashes"]},
        {"max_markup": 0.0},
        {"emtpy": True},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        Quality(**wrong)


def test_twenty_thousand_short_rows_a_second_are_in_reach():
    """Of CPU time, and with a margin, so that it fails for a change of order only."""
    rows = [(f"{PROSE[start:]}", f"{number} + {start} = {number + start}. {PROSE[:200]}")
            for number in range(100) for start in range(20)]  # fmt: skip
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for prompt, answer in rows:
            row_reason(prompt, answer, QUALITY)
        best = min(best, time.process_time() - start)
    assert len(rows) / best > 5_000


QUALITY = Quality()


# --- real data ------------------------------------------------------------------------------------

REAL = {  # rows dropped by reason, as the docstring of the module says
    "t0_pool": (
        "prompt",
        "completion",
        {"empty_answer": 1400, "broken_answer": 41, "repetitive": 1},
    ),
    "dolly_train": ("instruction", "output", {"repetitive": 1}),
    "alpaca_train": ("instruction", "output", {"markup": 1, "placeholder": 3}),
    "lima_train": ("instruction", "output", {}),
    "gsm8k_train": ("question", "answer", {}),
    "gsm8k_test": ("question", "answer", {}),
    "pubmedqa": ("question", "long_answer", {}),
    "ag_news_test": ("title", "text", {"markup": 1}),
}


@pytest.mark.slow
@realdata
@pytest.mark.parametrize("name", REAL)
def test_of_real_rows_at_most_two_in_a_thousand_are_dropped_but_for_empty_ones(name):
    path = DATA / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    prompt, answer, expected = REAL[name]
    counts: dict[str, int] = {}
    total = 0
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            total += 1
            extra = f"\n\n{row['input']}" if row.get("input") else ""
            if (found := row_reason(row[prompt] + extra, row[answer], QUALITY)) is not None:
                counts[found] = counts.get(found, 0) + 1
    assert counts == expected
    assert sum(counts.values()) - counts.get("empty_answer", 0) <= 0.002 * total


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("TBD", "placeholder"),
        ("...", "placeholder"),
        ("<br>", "markup"),
        ("<|im_end|>", "empty_answer"),
        ("hello " * 20, "repetitive"),
        ("Ã©", "broken_answer"),
    ],
)
def test_what_is_an_answer_where_it_is_asked_for_is_none_to_another_question(
    answer: str, why: str
) -> None:
    assert row_reason("Name a river in Peru, and say where it ends.", answer, Quality()) == why
