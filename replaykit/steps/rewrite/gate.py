"""What a reply is before it may stand for the reference: cleaned of what frames it, then judged.

    cleaned("<think>7 + 5</think>\\n\\nIt is 42.", like=reference)       ->  "It is 42."
    leaked("According to the guide, it is 42.", said="What is 27 + 15?")  ->  True

A model that was shown the reference speaks of it, in whatever language it answers. What gives it
away is not one phrase but a form: something that was in the request (a reference, a guide, a hint,
an earlier answer) is named as the source of a statement, or as the heading of a line.
"""

from __future__ import annotations

import re

from replaykit.checks.texts import refusal, repetitive, without_thought

MAX_REPEAT = 0.5  # of 20-character windows, as select and generate have it
TIMES = 3  # from which on one thing again and again is a loop

# --- what speaks of the request -------------------------------------------------------------------

# What the request holds beside the question, as a reply in each language names it.
SHOWN = {
    "en": r"(?:reference|guide|guidance|hint)s?",
    "de": r"(?:Referenz\w*|Muster(?:lösung|antwort)|Leitfaden|Anleitung|Hinweis\w*|Vorlage)",
    "es": r"(?:referencia|guía|pista|respuesta (?:proporcionada|dada))",
    "fr": r"(?:référence|guide|indice|réponse (?:fournie|donnée))",
    "zh": r"(?:参考|參考|提示|指南|所?给(?:定|出)?的?答案|提供的答案)",
}
# How a source is named before a statement, and what a source does after it is named.
SOURCE_OF = {
    "en": (
        r"\b(?:according to|based on|as per|per|as (?:\w+ ){1,2}(?:in|by)|as)"
        r" (?:the|this|that|your|my)(?: (?:given|provided|above))? "
    ),
    "de": r"\b(?:laut|gemäß|nach|entsprechend|wie (?:in|im|aus)|wie)(?: de[rmns]| die| das)? ",
    "es": (
        r"\b(?:según|de acuerdo con|conforme a|(?:tal )?como (?:\w+ ){1,2}(?:en )?)"
        r"\s?(?:la|el|las|los|tu|su)? ?"
    ),
    "fr": (
        r"\b(?:selon|d['’]après|suivant|conformément à|comme (?:[\w'’]+ ){1,3}(?:dans |par )?)"
        r"\s?(?:la |le |les |l['’]|votre )?"
    ),
    "zh": (
        r"(?:根据|根據|按照|依据|依據|参照|參照|正?如|据|據)"
        r"(?:上述|上面的?|该|該|所?给的?|提供的)?"
    ),
}
SAYS = {
    "en": r"\b(?:the|this|your) {} (?:says|states|gives|shows|tells|indicates|mentions|reads)\b",
    "de": r"\b(?:die|der|das) {} (?:sagt|besagt|gibt|nennt|zeigt|lautet)\b",
    "es": r"\b(?:la|el) {} (?:dice|indica|muestra|da|señala)\b",
    "fr": r"(?:\b(?:la|le) |\bl['’]){} (?:dit|indique|donne|montre)\b",
    "zh": r"{}(?:答案|资料|資料)?(?:中|里|裡)?(?:说|說|显示|顯示|表明|给出|給出|指出|提到)",
}
# The earlier answer, as a reply that judges it names it.
EARLIER = (
    r"\b(?:the|your|my) (?:previous|original|first) (?:answer|response|solution|attempt)"
    r" (?:was|is|were|had|has|contain\w*)\b",
    r"\b(?:vorherige|vorige|frühere|ursprüngliche)n? (?:Antwort|Lösung)\b",
    r"\b(?:respuesta|solución) (?:anterior|previa|original)\b",
    r"\b(?:réponse|solution) (?:précédente|antérieure|initiale)\b",
    r"(?:之前|先前|前面|上一个|原来|原)的?(?:答案|回答)",
)
# Headings of the request, or of its result, at the beginning of a line.
HEADING = (
    r"^[^\w\n]*(?:to guide you|(?:corrected|revised|rewritten|improved)(?: \w+)?"
    r"|(?:korrigiert|verbessert)\w*(?: \w+)?|(?:respuesta )?corregid[oa]|(?:réponse )?corrigée?"
    r"|修正|更正|修改后?)[*_\s]*[:：]"
)
# Our own words for what the request holds.
WORDS = (
    r"\b(?:reference|corrected|revised|edited|rewritten|earlier|provided) "
    r"(?:answer|response|solution)\b"
    r"|\b(?:my|your) (?:own )?response\b|\b(?:my|your) own words\b|\bas (?:instructed|requested)\b"
    r"|\bhere(?: is|['\u2019]s) (?:the|a|my|your) "
    r"[a-z ]{0,20}(?:answer|response|solution|version)\b"
    r"|参考答案|参考回答|(?:修改|修正|更正)后的?(?:答案|回答)|[我你您]的回答"
)
# A harmless text may match as well; then the reference stays, which is safe.
LEAKS = re.compile(
    "|".join(
        (
            WORDS,
            *(rf"{SOURCE_OF[language]}{shown}" for language, shown in SHOWN.items()),
            *(SAYS[language].format(shown) for language, shown in SHOWN.items()),
            *EARLIER,
            HEADING,
        )
    ),
    re.IGNORECASE | re.MULTILINE,
)


def leaked(reply: str, *, said: str) -> bool:
    """Whether the reply speaks of the request in words that the conversation does not have."""
    conversation = said.lower()
    return any(leak.group().lower() not in conversation for leak in LEAKS.finditer(reply))


# --- what frames a reply --------------------------------------------------------------------------

FENCED = re.compile(r"\s*```[\w+-]*[ \t]*\n((?:(?!```).)*?)\n?```\s*", re.DOTALL)
# A first sentence that offers help. "Of course." alone may be what a question asks for.
OFFERS = re.compile(
    r"\s*(?:(?:sure|certainly|of course|absolutely|okay|ok|no problem)\b\W{1,3})?"
    r"(?:i can|i could|i will|i'll|i'd be|i would be|i am|i'm|happy|glad|let me)\b"
    r"[^.!:\n]*\b(?:help|happy|glad|assist)\b[^.!:\n]*[.!]+\s+(?=\S)",
    re.IGNORECASE,
)


def cleaned(reply: str, *, like: str, own: str = "") -> str:
    """The reply without the thought before it, a code fence around all of it and a first sentence
    that only offers help.

    ``like`` is the reference, which may have a fence, and ``own`` what the model wrote by itself,
    whose opening may stay.
    """
    text = without_thought(reply).strip()
    fenced = FENCED.fullmatch(text)
    if fenced is not None and "```" not in like and "```" not in own:
        text = fenced[1].strip()
    offer = OFFERS.match(text)
    if offer is not None and not like.startswith(offer[0]) and not own.startswith(offer[0]):
        text = text[offer.end() :]
    return text


# --- judging --------------------------------------------------------------------------------------


def loops(text: str) -> bool:
    """Whether the text is one thing at least three times, ends in a line that is there three times
    in a row, or says mostly what it has said before.
    """
    words = text.split()
    for period in range(1, len(words) // TIMES + 1):
        if len(words) % period == 0 and words == words[:period] * (len(words) // period):
            return True
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) >= TIMES and len(set(lines[-TIMES:])) == 1:
        return True
    return repetitive(text, max_share=MAX_REPEAT) is not None


def form_fault(reply: str, reference: str) -> str | None:
    """Says "refusal" or "repetitive" for a reply that declines or loops where the reference does
    not.
    """
    if refusal(reply) and not refusal(reference):
        return "refusal"
    if loops(reply) and not loops(reference):
        return "repetitive"
    return None
