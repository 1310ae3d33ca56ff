"""Text for comparison: one normal form, and its words in any writing; and text for a terminal."""

from __future__ import annotations

import re
import unicodedata

# Han with its extensions, kana, Hangul, Thai, Lao, Burmese, Khmer. Korean has spaces, but writers
# set them as they like.
UNSPACED = (
    "々〆\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
)
UNSPACED += "\uac00-\ud7a3\u0e01-\u0e5b\u0e81-\u0edf\u1000-\u109f\u1780-\u17ff"
# Vowel signs and accents that belong to the letter before them, which \w does not know: Latin,
# Hebrew, Arabic, Indic.
MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff"
# Characters that a terminal obeys instead of showing, but for the line break and the tab.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[\w{MARKS}])+")


def printable(text: str, form: str = r"\x{:02x}") -> str:
    r"""The text with each control character written out, so that a terminal shows it and does not
    obey it. ``form`` is that of JSON for a text that is JSON.

    >>> printable("a\x1b[31m")
    'a\\x1b[31m'
    """
    return CONTROL.sub(lambda found: form.format(ord(found[0])), text)


def normalise(text: str) -> str:
    """Case, width and spacing taken out, so that two ways to write one question are equal."""
    return " ".join(re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", text).casefold()))


def words(text: str) -> list[str]:
    """The words of the text in order, without case, width and punctuation.

    In writing that sets no spaces between words each character is a word of its own, so that runs
    of n words can be compared in every language.

    >>> words("Don't say 東京!")
    ['don', 't', 'say', '東', '京']
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())
