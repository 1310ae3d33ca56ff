"""IFEval's constraints as those of ``instructions``.

    constraints_of({"ifeval": "length_constraints:number_words", "relation": "at least",
                    "num_words": 300})
    ->  [{"kind": "words", "at_least": 300}]

The names and parameters are those of IFEval's rows (google-research/instruction_following_eval);
what each kind counts is said in ``instructions``, where it differs a little from IFEval's checker
on purpose:

* "don't" and "well-known" are one word each, and a Hindi word is not parted at its vowel signs;
* a rule (---) and a line that begins in *emphasis* are no bullets, and • makes one;
* a link, a footnote [1] and an empty box [ ] are no placeholders;
* "see Section 2" within a line begins no section, and P.P.S. is no P.S.;
* a number or a word alone is no JSON that was asked for;
* curly quotation marks are quotation marks, and a comma of Chinese is a comma.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from replaykit.errors import did_you_mean

Constraint = dict[str, Any]
Arguments = Mapping[str, Any]
YES_NO_MAYBE = ["My answer is yes.", "My answer is no.", "My answer is maybe."]
ENGLISH: Constraint = {"kind": "language", "code": "en"}


def constraints_of(constraint: Mapping[str, Any]) -> list[Constraint]:
    """Those of ours that together mean the same. Raises ValueError for an instruction that is not
    known, or one that lacks an argument.
    """
    name = constraint["ifeval"]
    if not isinstance(name, str) or name not in SAME:
        raise ValueError(f"IFEval has no instruction {name!r}{did_you_mean(str(name), SAME)}")
    try:
        return SAME[name](constraint)
    except KeyError as missing:
        raise ValueError(f"{name} lacks its argument {missing}") from missing


def _related(kind: str, given: Arguments, relation: str, count: str, **more: Any) -> Constraint:
    """A constraint that counts, with IFEval's "at least" or "less than"."""
    match given[relation]:
        case "at least":
            limits = {"at_least": given[count]}
        case "less than":
            limits = {"at_most": given[count] - 1}
        case other:
            wanted = f"{relation} is 'at least' or 'less than'"
            raise ValueError(f"{given['ifeval']}: {wanted}, not {other!r}")
    return {"kind": kind, **more, **limits}


def _plain(kind: str, **more: Any) -> Callable[[Arguments], list[Constraint]]:
    """A constraint without arguments."""
    return lambda _: [{"kind": kind, **more}]


def _first_word(given: Arguments) -> list[Constraint]:
    begins = {"number": given["nth_paragraph"], "word": given["first_word"]}
    return [
        {"kind": "paragraphs", "exactly": given["num_paragraphs"]},
        {"kind": "paragraph_begins", **begins},
    ]


SAME: dict[str, Callable[[Arguments], list[Constraint]]] = {
    "keywords:existence": lambda given: [
        {"kind": "contains", "text": word} for word in given["keywords"]
    ],
    "keywords:frequency": lambda given: [
        _related("contains", given, "relation", "frequency", text=given["keyword"].strip())
    ],
    "keywords:forbidden_words": lambda given: [
        {"kind": "avoids", "words": given["forbidden_words"]}
    ],
    "keywords:letter_frequency": lambda given: [
        _related("letters", given, "let_relation", "let_frequency", letter=given["letter"])
    ],
    "language:response_language": lambda given: [{"kind": "language", "code": given["language"]}],
    "length_constraints:number_sentences": lambda given: [
        _related("sentences", given, "relation", "num_sentences")
    ],
    "length_constraints:number_paragraphs": lambda given: [
        {"kind": "paragraphs", "exactly": given["num_paragraphs"], "between": "***"}
    ],
    "length_constraints:number_words": lambda given: [
        _related("words", given, "relation", "num_words")
    ],
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda given: [
        {"kind": "placeholders", "at_least": given["num_placeholders"]}
    ],
    "detectable_content:postscript": lambda given: [
        {"kind": "postscript", "mark": given["postscript_marker"]}
    ],
    "detectable_format:number_bullet_lists": lambda given: [
        {"kind": "bullets", "exactly": given["num_bullets"]}
    ],
    "detectable_format:constrained_response": _plain("says_one", options=YES_NO_MAYBE),
    "detectable_format:number_highlighted_sections": lambda given: [
        {"kind": "highlights", "at_least": given["num_highlights"]}
    ],
    "detectable_format:multiple_sections": lambda given: [
        {"kind": "sections", "word": given["section_spliter"], "at_least": given["num_sections"]}
    ],
    "detectable_format:json_format": _plain("json"),
    "detectable_format:title": _plain("title"),
    "combination:two_responses": _plain("two_answers"),
    "combination:repeat_prompt": lambda given: [
        {"kind": "repeats", "text": given["prompt_to_repeat"]}
    ],
    "startend:end_checker": lambda given: [{"kind": "ends_with", "text": given["end_phrase"]}],
    "startend:quotation": _plain("quoted"),
    "change_case:capital_word_frequency": lambda given: [
        _related("capital_words", given, "capital_relation", "capital_frequency")
    ],
    "change_case:english_capital": lambda _: [{"kind": "upper_case"}, dict(ENGLISH)],
    "change_case:english_lowercase": lambda _: [{"kind": "lower_case"}, dict(ENGLISH)],
    "punctuation:no_comma": _plain("no_commas"),
}
