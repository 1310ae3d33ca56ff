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
"""

from __future__ import annotations

import re
from dataclasses import replace

from replaykit.checks.texts import language, repetitive, wrong_language
from replaykit.data.record import Message, Record, says_nothing
from replaykit.recipe.select import Quality
from replaykit.text import words

ASKING = ("user", "system", "developer")  # roles that say what is wanted


def reason(record: Record, quality: Quality) -> str | None:
    """The first rule that an exchange of the record breaks, or None.

    A plain text is judged as an answer without a prompt.
    """
    prompt = None
    found = None
    answers = 0
    said = ""
    for message in record.messages:
        if message["role"] in ASKING:
            said = f"{said}\n{message['content']}"
        if message["role"] == "user":
            prompt = message["content"]
        elif message["role"] in ("assistant", "text"):
            answers += 1
            if not message["content"].strip() and not says_nothing(message):
                continue  # the calls or the thought are the answer
            found = found or row_reason(prompt, message["content"], quality, said=said)
    if found is None and quality.empty and not answers:
        return "empty_answer"
    return found


def row_reason(
    prompt: str | None, answer: str, quality: Quality, *, said: str | None = None
) -> str | None:
    """The first rule that the row breaks, cheap rules first, or None. ``prompt`` is None where
    there is none. ``said`` is everything that was asked up to the answer, as far as it is more
    than the prompt: what an earlier turn asks for may be in the answer too.
    """
    question = said or prompt or ""
    answer = _bare(answer, question)
    if quality.empty and not answer:
        return "empty_answer"
    if quality.empty and prompt is not None and not prompt.strip():
        return "empty_prompt"
    limit = quality.max_markup
    return (
        _length(prompt, answer, quality)
        or (quality.placeholders and placeholder(question, answer))
        or (quality.broken and _broken(prompt or "", answer, question))
        or (limit is not None and markup(question, answer, max_share=limit))
        or (quality.max_repeat is not None and _repetitive(question, answer, quality.max_repeat))
        or (quality.languages and wrong_language(answer, quality.languages))
        or None
    )


# --- nothing and its stand-ins --------------------------------------------------------------------

# What training code appends to an answer, and some data sets left there.
END = re.compile(
    r"(?:<\|(?:endoftext|im_end|eot_id|end|end_of_text)\|>|</s>|<eos>|<end_of_turn>)\Z"
)
LONGEST_END = len("<|end_of_text|>")


# What prompts say to which such a token may be the answer.
ABOUT_ENDS = (
    *("special token", "eos token", "end-of-", "end of turn", "end of text", "end of sequence"),
    *("tokenizer", "tokeniser", "chatml", "chat template"),
)
# Such a token as a word of a question, which it does not end.
END_INSIDE = re.compile(r"<\|(?:endoftext|im_end|eot_id|end|end_of_text)\|>(?=[^\n<]*\w)")


def _asks_for_end(question: str) -> bool:
    # Questions are long, and a search for several words in either case takes long.
    folded = question.lower()
    if any(words in folded for words in ABOUT_ENDS):
        return True
    return "<|" in question and END_INSIDE.search(question) is not None


def without_end(record: Record) -> Record:
    """The record without the special token at the end of an answer, where one is written out: a
    tokenizer sets its own. Where the conversation asks about such tokens, they stay.
    """
    messages = tuple(_without_end(record, place) for place in range(len(record.messages)))
    if messages == record.messages:
        return record
    return replace(record, messages=messages, meta={**record.meta, "parent": record.id})


def _without_end(record: Record, place: int) -> Message:
    message = record.messages[place]
    if message["role"] not in ("assistant", "text"):
        return message
    bare = _without_token(message["content"])
    if bare is None:
        return message
    asked = "\n".join(one["content"] for one in record.messages[:place] if one["role"] in ASKING)
    if _asks_for_end(asked):
        return message
    return {**message, "content": bare}


def _bare(answer: str, question: str) -> str:
    """The answer without the special token that ends it, unless it is asked about, and without
    spaces around it.
    """
    bare = _without_token(answer)
    if bare is None or _asks_for_end(question):
        return answer.strip()
    return bare


def _without_token(answer: str) -> str | None:
    """The answer without the special token that ends it, and without spaces around it; None where
    none does.
    """
    said = answer.strip()
    # Each of the tokens ends so, and to search a long text takes long.
    if not said.endswith(">"):
        return None
    found = END.search(said, max(0, len(said) - LONGEST_END))
    return None if found is None else said[: found.start()].rstrip()


# An answer that is one of these as a whole, in any case, with or without a full stop. Left out is
# what answers some question: none, null, unknown, "no answer" (a label of DuoRC), 無, XXX (30),
# ditto.
PLACEHOLDERS = frozenset(
    entry.strip()
    for line in """
    n/a | #n/a | n.a | not applicable | tbd | tba | tbc | todo | fixme | to be done | to be added
    to be filled | to be filled in | to be completed | as above | see above | same as above
    as below | see below | placeholder | placeholder text | insert answer | insert answer here
    insert text here | your answer | your answer here | answer here | answer goes here
    enter text here | write here | [answer] | <answer> | [text] | [response] | [output] | [blank]
    <blank> | (blank) | [empty] | [deleted] | [removed] | <noinput> | <nooutput> | #ref
    待补充 | 待定 | 同上 | 如上 | 略 | 該当なし
    """.strip().splitlines()
    for entry in line.split("|")
)
# The whole answer is one bracket that tells the writer to put something there.
SLOT = re.compile(
    r"\W*[\[<{(]\s*(?:please )?"
    r"(?:insert|enter|add|fill|type|write|paste|put|replace|your|todo|placeholder)\b"
    r"[^\]>})]*[\]>})]\W*",
    re.IGNORECASE,
)
DOTS = re.compile(r"(?:\.{3,}|…+|-{3,}|_{3,}|—{2,}|\?{3,}|\s)+")
# Prompts that ask how something is written: a sign or a word itself is the answer to these.
WRITTEN = re.compile(
    r"\b(?:symbol|sign|operator|token|tag|keyword|marker|character|glyph|syntax|notation|punctuat"
    r"|entit|abbreviat|acronym|initialism|annotation|comment|literal|delimit|separat|divid|ellips"
    r"|dash|hyphen|dots?\b|escap|markup|emoticon)|\b(?:stands? for|short for|denote|what marks)\b"
    r"|\bwhat (?:do (?:you|i|we)|to|should (?:you|i|we)) (?:write|type|put)\b"
    r"|morse|摩尔斯|摩斯|莫尔斯|摩爾斯|モールス|모스|符号|記号|缩写|略語",
    re.IGNORECASE,
)
# Prompts to which filler may be the answer.
MEANT = re.compile(r"lorem|ipsum|placeholder|dummy|filler", re.IGNORECASE)
# Prompts about programs and tables, whose output "nan" and "#REF!" may be.
COMPUTED = re.compile(
    r"\b(?:print|python|numpy|pandas|javascript|output|returns?|evaluat\w+|spreadsheet|excel|sheets?"
    r"|cells?|error|float|function|code|program)\b|\bnan\b|[a-z_]\(",
    re.IGNORECASE,
)
OUTPUTS = frozenset({"nan", "#ref", "#n/a", "n/a"})
# Prompts that ask for a word of a language in which "todo" is one.
ROMANCE = re.compile(
    r"[¿¡ñãõ]|\b(?:spanish|portuguese|español|português|spanisch|portugiesisch)\b", re.I
)
# The filler text itself, and not only its name.
FILLER = re.compile(r"lorem ipsum\W+dolor\b|\A\W*lorem ipsum\W*\Z", re.IGNORECASE)


def placeholder(prompt: str, answer: str) -> str | None:
    """Says "placeholder" for an answer that only stands where one should be: one of PLACEHOLDERS,
    dots or dashes, "[insert answer here]", the "nan" of a table, or the text "lorem ipsum dolor".
    C4 drops every text that has its name, and so what is said about it.

    Only a whole answer counts: "Dear [your name], ..." is a letter. What the prompt offers ('say
    "N/A" if ...') or asks for, such as a sign or an abbreviation, is an answer, and so are "nan"
    and "#REF!" where it is about a program or a table, and "todo" in Spanish and Portuguese.
    """
    found = FILLER.search(answer) is not None
    if len(answer) <= 80:
        plain = " ".join(answer.strip(" .:!\"'`*\n\t").casefold().split())
        stands_in = plain in PLACEHOLDERS or answer == "nan"
        found = found or (stands_in and not _asked_for(plain, prompt))
        found = found or bool(DOTS.fullmatch(answer) or SLOT.fullmatch(answer))
    if not found or MEANT.search(prompt) or WRITTEN.search(prompt):
        return None
    return "placeholder"


def _asked_for(plain: str, prompt: str) -> bool:
    """Whether a word that mostly stands in for an answer is one, going by the prompt."""
    if plain in prompt.casefold():
        return True
    if plain in OUTPUTS:
        return COMPUTED.search(prompt) is not None
    if plain == "todo":
        return ROMANCE.search(prompt) is not None or language(prompt) in ("es", "pt", "gl")
    return False


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
            if size < bounds[0]:
                return f"{what}_too_short"
            if size > bounds[1]:
                return f"{what}_too_long"
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
# A prompt with more than one sign of a wrong encoding for each so many characters is broken.
SPOILT = 100


def broken(text: str) -> int:
    """How many signs of a wrong encoding the text has: UTF-8 read as another encoding ("Ã©" for
    "é"), U+FFFD, control characters, halves of surrogate pairs.
    """
    data = text.encode("utf-8", "surrogatepass")
    signs = len(data) - len(data.translate(None, CONTROLS))
    if "\\u" in text:
        signs += sum(len(found) < 12 for found in HALF_PAIR.findall(text))  # 12: a whole pair
    if len(data) > len(text):  # not ASCII
        signs += len(NO_LETTERS.findall(text)) + _mojibake(text)
    return signs


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
        # A place has a character beyond ASCII, and at most two ASCII characters on each side: the
        # rest of the text need not be read.
        around = text[max(0, run.start() - 2) : run.end() + 2]
        for found in BADNESS_RE.finditer(around):
            quoted = found[0][-1] in "”’»" and around[: found.start()][-1:].isupper()  # “AMANHÔ
            places += not quoted and not NO_LETTERS.search(found[0])
    return places if places and fix_encoding(text) != text else 0


# Prompts that ask about encodings: letters in a wrong one may be the answer.
ENCODINGS = re.compile(
    r"encod|mojibake|\butf-?\d|latin-?1|iso-?8859|windows-?125\d|cp-?125\d|charset"
    r"|code ?page|字符集|编码|文字化け|surrogate|\\u[0-9a-f]{4}",
    re.IGNORECASE,
)


def _broken(prompt: str, answer: str, question: str) -> str | None:
    """Any sign counts in an answer, since a model learns to write it, unless it is asked for. A
    prompt carries no loss, and is often long.
    """
    found = None
    if broken(answer):
        found = "broken_answer"
    elif broken(prompt) * SPOILT > len(prompt):
        found = "broken_prompt"
    if found and ENCODINGS.search(question):
        return None
    return found


# --- repetition -----------------------------------------------------------------------------------

# Prompts that say how often: "20 times", "repeat".
OFTEN = re.compile(
    r"\d|\btimes\b|\b(?:twice|dozen|hundred|thousand)\b|over and over|again and again"
    r"|repeat|wiederhol|répét|repit|repet|ripet|повтор|重复|重複|繰り返|遍",
    re.IGNORECASE,
)


def _repetitive(question: str, answer: str, max_share: float) -> str | None:
    """``texts.repetitive``, unless the question says what to repeat and how often."""
    found = repetitive(answer, max_share=max_share)
    if found and OFTEN.search(question) and set(words(answer)) <= set(words(question)):
        return None
    return found


# --- markup ---------------------------------------------------------------------------------------

TAG = re.compile(
    r"</?(?:p|div|span|br|hr|a|b|i|u|em|strong|font|center|sup|sub|ul|ol|li|table|tbody|tr|td|th"
    r"|img|h[1-6]|script|style|iframe|form|input|button|link|meta|head|body|html|title|section"
    r"|blockquote)\b[^<>]*>"
    r"|&(?:[a-zA-Z]{2,8}|#\d{2,5}|#x[0-9a-fA-F]{2,5});"
)
WANTED = re.compile(
    r"html|xml|xhtml|css|svg|markup|\btags?\b|fonts?\b|web ?(?:page|site)|<[a-zA-Z/!]|&[a-z]+;"
    r"|javascript|\bjsx?\b|php|escap|entit|encod"
    # A page of the web, in other languages.
    r"|web-?\s?(?:seite|sidan?)|internetseite|homepage|página|sitio web|site web|page web|sito web"
    r"|网页|網頁|网站|網站|ウェブ|ホームページ|웹|веб|сайт",
    re.IGNORECASE,
)
# A whole page: a program that somebody asked for, in whatever words.
DOCUMENT = re.compile(r"\s*<(?:!doctype html|html)\b", re.IGNORECASE)
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)


def markup(prompt: str, answer: str, *, max_share: float) -> str | None:
    """Says "markup" if HTML tags and entities are more than this share of the answer, code in
    backticks aside.

    Not where the prompt speaks of HTML or has any itself, and not in a whole page, from "<html>" to
    "</html>". C4 drops what has a curly bracket
    instead, and so all programs.
    """
    if ("<" not in answer or ">" not in answer) and ("&" not in answer or ";" not in answer):
        return None
    if DOCUMENT.match(answer) and "</html>" in answer.lower():
        return None
    plain = CODE.sub("", answer)
    size = sum(len(found[0]) for found in TAG.finditer(plain))
    if size <= max_share * len(plain) or WANTED.search(prompt) or WRITTEN.search(prompt):
        return None
    return "markup"
