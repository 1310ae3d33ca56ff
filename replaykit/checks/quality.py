"""Whether an old row is worth training on: rules of form, each with its name as the reason to drop
the row.

    row_reason("Name a river.", "N/A", Quality())                        ->  "placeholder"
    row_reason("Où est Lübeck ?", "LÃ¼beck est en Allemagne.", Quality())  ->  "broken_answer"
    row_reason("Is water wet?", "Yes", Quality())                        ->  None

What is on by default is what no answer should be: nothing, a placeholder, letters in a wrong
encoding, markup instead of text, one thing over and over. Of real rows that drops 42 of T0's 55,180
("naÃ¯ve" and the like) and another 1,400 whose answer is nothing but "<|endoftext|>", 1 of Dolly's
2,000, 4 of Alpaca's 2,000 ("<noinput>"), 1 of AG News' 7,600, and none of LIMA's 1,029, GSM8K's
8,792 and PubMedQA's 1,000. All were looked at; one is a good row, Dolly's list of 'triangle' and
'not a triangle'. A core takes 24,000 to 56,000 rows of these a second, and 3,600 of LIMA's, whose
answers are long.

The document rules of Gopher (Rae et al., arXiv 2112.11446, appendix A.1.1 and table A1) and of C4
(Raffel et al., arXiv 1910.10683, section 2.2) were made for web pages. An instruction row is often
one word, a list, a table or a program. So they look only at answers of 50 words or more, the least
that Gopher wants of a page, and each of them is off unless the recipe names it; DOCUMENT_RULES says
what each would drop, and where we differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from replaykit.checks.texts import repetitive, wrong_language
from replaykit.records import Record
from replaykit.settings import Quality
from replaykit.text import words


def reason(record: Record, quality: Quality) -> str | None:
    """The first rule that an exchange of the record breaks, or None. A plain text is judged as an
    answer to nothing.
    """
    prompt = None
    found = None
    answers = 0
    for message in record.messages:
        if message["role"] == "user":
            prompt = message["content"]
        elif message["role"] in ("assistant", "text"):
            answers += 1
            found = found or row_reason(prompt, message["content"], quality)
    return found or ("empty_answer" if quality.empty and not answers else None)


def row_reason(prompt: str | None, answer: str, quality: Quality) -> str | None:
    """The first rule that the row breaks, cheap rules first, or None. ``prompt`` is None where
    there is none.
    """
    answer = _bare(answer)
    if quality.empty and not answer:
        return "empty_answer"
    if quality.empty and prompt is not None and not prompt.strip():
        return "empty_prompt"
    asked = prompt or ""
    return (
        _length(prompt, answer, quality)
        or (quality.placeholders and placeholder(asked, answer))
        or (quality.broken and _broken(asked, answer))
        or (quality.max_markup is not None and markup(asked, answer, max_share=quality.max_markup))
        or (quality.max_repeat is not None and repetitive(answer, max_share=quality.max_repeat))
        or (
            quality.documents
            and document(answer, quality.documents, min_words=quality.document_words)
        )
        or (quality.languages and wrong_language(answer, quality.languages))
        or None
    )


# --- nothing and its stand-ins --------------------------------------------------------------------

# What training code appends to an answer, and some data sets left there.
ENDS = re.compile(
    r"\s*(?:<\|(?:endoftext|im_end|eot_id|end|end_of_text)\|>|</s>|<eos>|<end_of_turn>)\s*\Z"
)


def without_end(record: Record) -> Record:
    """The record without the special token at the end of an answer, where one is written out: a
    tokenizer sets its own.
    """
    messages = tuple(
        {**message, "content": _bare(message["content"])}
        if message["role"] in ("assistant", "text") and ENDS.search(message["content"])
        else message
        for message in record.messages
    )
    if messages == record.messages:
        return record
    return replace(record, messages=messages, meta={**record.meta, "parent": record.id})


def _bare(answer: str) -> str:
    """The answer without the special token that ends it, and without spaces around it."""
    answer = answer.strip()
    return ENDS.sub("", answer) if answer.endswith(">") else answer


# An answer that is one of these as a whole, in any case, with or without a full stop. Left out is
# what answers some question: none, null, unknown, "no answer" (a label of DuoRC), 無, XXX (30),
# ditto.
PLACEHOLDERS = frozenset(
    (
        *(
            "n/a",
            "#n/a",
            "n.a",
            "not applicable",
            "tbd",
            "tba",
            "tbc",
            "todo",
            "fixme",
            "to be done",
            "to be added",
        ),
        *(
            "to be filled",
            "to be filled in",
            "to be completed",
            "as above",
            "see above",
            "same as above",
            "as below",
        ),
        *(
            "see below",
            "placeholder",
            "placeholder text",
            "insert answer",
            "insert answer here",
            "insert text here",
        ),
        *(
            "your answer",
            "your answer here",
            "answer here",
            "answer goes here",
            "enter text here",
            "write here",
        ),
        *(
            "[answer]",
            "<answer>",
            "[text]",
            "[response]",
            "[output]",
            "[blank]",
            "<blank>",
            "(blank)",
            "[empty]",
        ),
        *(
            "[deleted]",
            "[removed]",
            "<noinput>",
            "<nooutput>",
            "#ref",
            "待补充",
            "待定",
            "同上",
            "如上",
            "略",
            "該当なし",
        ),
    )
)
# The whole answer is one bracket that tells the writer to put something there.
SLOT = re.compile(
    r"\W*[\[<{(]\s*(?:please "
    r")?(?:insert|enter|add|fill|type|write|paste|put|replace|your|todo|placeholder)\b[^\]>})]*"
    r"[\]>})]\W*",
    re.IGNORECASE,
)
DOTS = re.compile(r"(?:\.{3,}|…+|-{3,}|_{3,}|—{2,}|\?{3,}|\s)+")
# Prompts to which dots or filler may be the answer.
MEANT = re.compile(
    r"morse|ellips|dash|hyphen|divider|separator|symbol|punctuat|lorem|ipsum|placeholder|dummy|filler",
    re.I,
)


def placeholder(prompt: str, answer: str) -> str | None:
    """Says "placeholder" for an answer that only stands where one should be: one of PLACEHOLDERS,
    dots or dashes, "[insert answer here]", the "nan" of a table, or a text with "lorem ipsum", as
    C4 has it.

    Only a whole answer counts: "Dear [your name], ..." is a letter. What the prompt offers ('say
    "N/A" if ...') or asks for is an answer.
    """
    found = "lorem ipsum" in answer.casefold()
    if len(answer) <= 80:
        plain = " ".join(answer.strip(" .:!\"'`*\n\t").casefold().split())
        found = found or (plain in PLACEHOLDERS and plain not in prompt.casefold())
        found = found or answer == "nan" or bool(DOTS.fullmatch(answer) or SLOT.fullmatch(answer))
    return "placeholder" if found and not MEANT.search(prompt) else None


# --- length ---------------------------------------------------------------------------------------


def _length(prompt: str | None, answer: str, quality: Quality) -> str | None:
    for what, text, chars, counted in (
        ("prompt", prompt, quality.prompt_chars, quality.prompt_words),
        ("answer", answer, quality.answer_chars, quality.answer_words),
    ):
        for bounds, measure in ((chars, len), (counted, _count)):
            if bounds is None or text is None:
                continue
            size = measure(text)
            if not bounds[0] <= size <= bounds[1]:
                return f"{what}_too_{'short' if size < bounds[0] else 'long'}"
    return None


def _count(text: str) -> int:
    return len(words(text))


# --- broken letters -------------------------------------------------------------------------------

# Form feeds and escapes (0x0c, 0x1b) stand in texts of books and terminals; tabs and line breaks
# are text.
CONTROLS = bytes({*range(0x20), 0x7F} - set(b"\t\n\r\x0b\x0c\x1b"))
NO_LETTERS = re.compile("[\x80-\x9f\ufdd0-\ufdef\ufffd-\uffff\ud800-\udfff]")
# Half of a surrogate pair, written out as JSON escapes it: "\\ud83d" without the "\\ude00" that
# completes the letter.
LOW = r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
HALF_PAIR = re.compile(rf"\\u[dD][89abAB][0-9a-fA-F]{{2}}(?:{LOW})?|{LOW}")
WIDE = re.compile(r"[^\x00-\x7f]+(?:[\x00-\x7f]{1,3}[^\x00-\x7f]+)*")
# characters: a prompt with more than one sign of a wrong encoding for each so many is broken
SPOILT = 100


def broken(text: str) -> int:
    """How many signs of a wrong encoding the text has: UTF-8 read as another encoding ("Ã©" for
    "é"), U+FFFD, control characters, halves of surrogate pairs.
    """
    signs = sum(len(found) < 12 for found in HALF_PAIR.findall(text)) if "\\u" in text else 0
    data = text.encode("utf-8", "surrogatepass")
    signs += len(data) - len(data.translate(None, CONTROLS))
    return (
        signs if len(data) == len(text) else signs + len(NO_LETTERS.findall(text)) + _mojibake(text)
    )


def _mojibake(text: str) -> int:
    """Places that no language spells so, by ftfy, where decoding them again succeeds (in phonetic
    script it does not).

    UTF-8 read as Windows-1252 or Latin-1 is seen in nearly every word with accents, Cyrillic read
    as Windows-1251 too; other mixtures are often missed.
    """
    from ftfy import fix_encoding
    from ftfy.badness import BADNESS_RE

    places = 0
    for run in WIDE.finditer(text):
        # A place has a character beyond ASCII, and no more than two before and after: the rest need
        # not be read.
        around = text[max(0, run.start() - 2) : run.end() + 2]
        for found in BADNESS_RE.finditer(around):
            quoted = found[0][-1] in "”’»" and around[: found.start()][-1:].isupper()  # “AMANHÔ
            places += not quoted and not NO_LETTERS.search(found[0])
    return places if places and fix_encoding(text) != text else 0


def _broken(prompt: str, answer: str) -> str | None:
    """Any sign counts in an answer, since a model learns to write it. A prompt carries no loss, and
    is often long.
    """
    if broken(answer):
        return "broken_answer"
    return "broken_prompt" if broken(prompt) * SPOILT > len(prompt) else None


# --- markup ---------------------------------------------------------------------------------------

TAG = re.compile(
    r"</?(?:p|div|span|br|hr|a|b|i|u|em|strong|font|center|sup|sub|ul|ol|li|table|tbody|tr|td|th|img|h[1-6]|script|style|"
    r"iframe|form|input|button|link|meta|head|body|html|title|section|blockquote)\b[^<>]*>"
    r"|&(?:[a-zA-Z]{2,8}|#\d{2,5}|#x[0-9a-fA-F]{2,5});"
)
ASKED = re.compile(
    r"html|xml|xhtml|css|svg|markup|\btags?\b|fonts?\b|web "
    r"?(?:page|site)|<[a-zA-Z/!]|&[a-z]+;|javascript|\bjsx?\b|php",
    re.I,
)
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)


def markup(prompt: str, answer: str, *, max_share: float) -> str | None:
    """Says "markup" if HTML tags and entities are more than this share of the answer, code in
    backticks aside.

    Not where the prompt speaks of HTML or has any itself. C4 drops what has a curly bracket
    instead, and so all programs.
    """
    if ("<" not in answer or ">" not in answer) and ("&" not in answer or ";" not in answer):
        return None
    plain = CODE.sub("", answer)
    size = sum(len(found[0]) for found in TAG.finditer(plain))
    return "markup" if size > max_share * len(plain) and not ASKED.search(prompt) else None


# --- documents ------------------------------------------------------------------------------------

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "‣", "▪", "◦", "●", "·")  # "-" and "*" are Markdown, in which models answer
TOP_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
DUPLICATE_NGRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
PARAGRAPH = re.compile(r"\n\s*\n")
SENTENCE_END = re.compile(r"[.!?]+[\"'”’)]*(?=\s|\Z)")
TERMINAL = (".", "!", "?", '"', "”")
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


def document(text: str, rules: Sequence[str], *, min_words: int = 50) -> str | None:
    """The first of the rules that a text breaks, or None. One of fewer words (between spaces) than
    ``min_words`` breaks none, so text in Chinese, Japanese or Thai breaks none.
    """
    if len(text) < 2 * min_words - 1:
        return None
    tokens = text.split()
    if len(tokens) < min_words:
        return None
    return next((rule for rule in rules if DOCUMENT_RULES[rule](text, tokens)), None)


def _mean_length(text: str, tokens: list[str]) -> bool:
    return not 3 <= sum(map(len, tokens)) / len(tokens) <= 10


def _hashes(text: str, tokens: list[str]) -> bool:
    return text.count("#") > 0.1 * len(tokens)


def _ellipses(text: str, tokens: list[str]) -> bool:
    return text.count("...") + text.count("…") > 0.1 * len(tokens)


def _bullet_lines(text: str, tokens: list[str]) -> bool:
    lines = _lines(text)
    return sum(line.startswith(BULLETS) for line in lines) > 0.9 * len(lines)


def _ellipsis_lines(text: str, tokens: list[str]) -> bool:
    lines = _lines(text)
    return sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines)


def _few_letters(text: str, tokens: list[str]) -> bool:
    return sum(any(map(str.isalpha, token)) for token in tokens) < 0.8 * len(tokens)


def _stop_words(text: str, tokens: list[str]) -> bool:
    return len(STOP_WORDS.intersection(token.strip(".,;:!?\"'()").lower() for token in tokens)) < 2


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.split("\n")) if line]


def _duplicate_lines(text: str, tokens: list[str]) -> bool:
    return _duplicates(_lines(text))


def _duplicate_paragraphs(text: str, tokens: list[str]) -> bool:
    return _duplicates([part for part in map(str.strip, PARAGRAPH.split(text)) if part])


def _duplicates(parts: list[str]) -> bool:
    """Whether over 0.30 of the parts stood before, or over 0.20 of the characters are in such parts
    (Gopher, table A1).
    """
    seen = set(parts)
    chars = sum(map(len, parts))
    return len(parts) - len(seen) > 0.30 * len(parts) or chars - sum(map(len, seen)) > 0.20 * chars


def _top_ngrams(text: str, tokens: list[str]) -> bool:
    """Whether the most frequent 2-gram, 3-gram or 4-gram has too many of the characters, spaces
    aside (table A1).
    """
    chars = sum(map(len, tokens))
    for n, limit in TOP_NGRAMS:
        ngram, times = Counter(
            zip(*(tokens[start:] for start in range(n)), strict=False)
        ).most_common(1)[0]
        if times > 1 and times * sum(map(len, ngram)) > limit * chars:
            return True
    return False


def _duplicate_ngrams(text: str, tokens: list[str]) -> bool:
    """Whether runs of 5 to 10 words that stood before have too many of the characters (table A1),
    each counted once.

    Not counted is where a run stands first, which the paper leaves open.
    """
    chars = sum(map(len, tokens))
    for n, limit in DUPLICATE_NGRAMS:
        seen: set[tuple[str, ...]] = set()
        covered = repeated = 0  # words up to here are counted, and their characters
        for start, ngram in enumerate(zip(*(tokens[start:] for start in range(n)), strict=False)):
            if ngram in seen:
                repeated += sum(map(len, tokens[max(covered, start) : start + n]))
                covered = start + n
            seen.add(ngram)
        if repeated > limit * chars:
            return True
    return False


def _sentences(text: str, tokens: list[str]) -> bool:
    """Whether fewer than 5 sentences are left of the lines that C4 keeps. C4 goes on with these
    lines; we edit no answer.

    A sentence ends with . ! or ? before a space; C4 asks NLTK's tokenizer.
    """
    kept = [line for line in _lines(text) if _c4_keeps(line)]
    return sum(max(1, len(SENTENCE_END.findall(line))) for line in kept) < 5


def _c4_keeps(line: str) -> bool:
    """A line of three words or more that ends like a sentence and is no notice about Javascript or
    cookies. The limits on cookies and on words of 1,000 characters are in C4's code
    (tensorflow_datasets, c4_utils.py), not in the paper.
    """
    tokens = line.split()
    low = line.lower()
    ended = line.endswith(TERMINAL) and not line.endswith("...")
    named = "javascript" in low or any(policy in low for policy in POLICIES)
    return ended and len(tokens) >= 3 and not named and max(map(len, tokens)) <= 1000


def _curly_bracket(text: str, tokens: list[str]) -> bool:
    return "{" in text


# Each is true of a text that Gopher or C4 would drop. The numbers are the answers dropped, of 5,386
# answers of 50 words or more in T0, Dolly, Alpaca and LIMA, and of 4,073 in GSM8K where there are
# any; a word is what stands between spaces. Gopher's rules on the number of words are
# ``answer_words``. Not here: C4's list of bad words, its spans of three sentences that stood in
# another page (checks.duplicates), and its certainty of 0.99 that a page is English
# (``languages``).
DOCUMENT_RULES: dict[str, Callable[[str, list[str]], bool]] = {
    # mean outside 3 to 10 characters: 4, and 15: a table of numbers, a sudoku
    "gopher_word_length": _mean_length,
    "gopher_hashes": _hashes,  # "#" over 0.1 of the words: 1, a story with hashtags, and 1
    "gopher_ellipses": _ellipses,  # "..." or "…" over 0.1 of the words: none
    "gopher_bullets": _bullet_lines,  # over 0.9 of the lines: 2, lists that were asked for
    # over 0.3 of the lines end so: 537, articles that T0 cut short, and 120 news
    "gopher_ellipsis_lines": _ellipsis_lines,
    # under 0.8 of the words have a letter: 388, and 3,476: calculations
    "gopher_few_letters": _few_letters,
    # fewer than two of eight English words: 266, and 422: infoboxes, other languages
    "gopher_stop_words": _stop_words,
    "gopher_duplicate_lines": _duplicate_lines,  # 30: songs, programs
    "gopher_duplicate_paragraphs": _duplicate_paragraphs,  # 2: a song, a list of key combinations
    "gopher_top_ngrams": _top_ngrams,  # 32, and 401: infoboxes, "The Real Housewives of ..."
    "gopher_duplicate_ngrams": _duplicate_ngrams,  # 76, and 363: songs, programs, quotations
    "c4_sentences": _sentences,  # 2,300, and 3,168: lists, dialogues, short summaries
    "c4_curly_bracket": _curly_bracket,  # 109, and 1: programs, formulas
}
