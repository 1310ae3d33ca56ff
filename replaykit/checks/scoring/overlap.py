"""Graded scores of long answers by their overlap with the reference: ROUGE-L and BLEU.

Both tell how near the words are, not whether what is said is true; a drop of one of them may be
another style. Neither has a form of its own, so both readings are the same number.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import regex

from replaykit.checks.scoring.references import references, text_of, units
from replaykit.checks.verify import Readings
from replaykit.data.record import Record
from replaykit.errors import MissingExtra

# Those of sacrebleu that fetch no model; the two of mecab need packages of their own.
TOKENIZERS = ("13a", "zh", "intl", "char", "ja-mecab", "ko-mecab")


def rouge_l(answer: str, record: Record) -> Readings:
    """F of the longest common subsequence of words, of the reference that is nearest (Lin 2004), by
    the package rouge_score without its stemmer.

    Its tokeniser knows a to z and digits alone; ours splits English in the same way, and has words
    of all scripts. Raises ValueError for a reference without a word, MissingExtra without the
    package.
    """
    wanted = references(record)
    if not all(units(reference) for reference in wanted):
        raise ValueError("a reference has no word")
    scorer = _rouge()
    best = max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in wanted)
    return Readings(strict=best, lenient=best)


class _Words:
    """rouge_score's interface of a tokeniser."""

    def tokenize(self, text: str) -> list[str]:
        return [unit for unit in units(text.lower().replace("_", " ")) if unit]


@cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingExtra("rouge-score", "eval") from error
    return RougeScorer(["rougeL"], tokenizer=_Words())


def bleu(answer: str, record: Record) -> Readings:
    """Sentence BLEU of 0 to 1 against all references, by sacrebleu with effective order.

    The column ``tokenize`` names one of TOKENIZERS; without it 13a, zh for a reference in Chinese
    characters, char for one in Japanese. Short answers vary much: it is meant for translations of
    a sentence and more. Raises ValueError for a tokeniser that is not there, MissingExtra without
    the package.
    """
    wanted = references(record)
    tokenizer = text_of(record, "tokenize") or _tokenizer(record.answer)
    score = _bleu(tokenizer).sentence_score(answer, wanted).score / 100
    # A hundred of sacrebleu's is 100.00000000000004.
    score = min(score, 1.0)
    return Readings(strict=score, lenient=score)


def _tokenizer(reference: str) -> str:
    if regex.search(r"[\p{Hiragana}\p{Katakana}]", reference):
        return "char"
    return "zh" if regex.search(r"\p{Han}", reference) else "13a"


@cache
def _bleu(tokenizer: str) -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise MissingExtra("sacrebleu", "eval") from error
    if tokenizer not in TOKENIZERS:
        raise ValueError(
            f"its column 'tokenize' is {tokenizer!r}, not one of {', '.join(TOKENIZERS)}"
        )
    try:
        return BLEU(effective_order=True, tokenize=tokenizer)
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"sacrebleu's tokeniser {tokenizer} cannot be used: {error}") from error
