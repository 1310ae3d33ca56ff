"""What a reply is before it may stand for the reference: cleaned of what frames it, then judged.

    cleaned("Sure, I can help with that! It is 42.", like=reference)      ->  "It is 42."
    leaked("According to the guide, it is 42.", said="What is 27 + 15?")  ->  True

A model that was shown the reference speaks of it, in whatever language it answers. What gives it
away is not one phrase but a form: something that was in the request (a reference, a guide, a hint,
an earlier answer) is named as the source of a statement, or as the heading of a line.
"""

from __future__ import annotations

import re

from replaykit.checks.texts import loops, refusal

# --- what speaks of the request -------------------------------------------------------------------

# What the request holds beside the question, as a reply in each language names it.
SHOWN = {
    "de": r"(?:Referenz\w*|Muster(?:lösung|antwort)|Leitfaden|Anleitung|Hinweis\w*|Vorlage)",
    "en": r"(?:(?:reference|guide|guidance|hint)s?|(?:given|provided) (?:answer|solution))",
    "es": r"(?:referencia|guía|pista|respuesta (?:proporcionada|dada))",
    "fr": r"(?:référence|guide|indice|réponse (?:fournie|donnée))",
    "it": r"(?:riferimento|guida|suggerimento|risposta (?:fornita|data))",
    "ja": r"(?:参考(?:資料|回答|解答)?|模範解答|ヒント|ガイド|手引き)",
    "ko": r"(?:참고(?: ?(?:자료|답안|답변))?|모범 ?답안|힌트|가이드|지침)",
    "nl": r"(?:referentie|gids|hint|handleiding|gegeven antwoord)",
    "pt": r"(?:referência|guia|dica|resposta (?:fornecida|dada))",
    "ru": r"(?:справк\w+|эталон\w*(?: ответ\w*)?|подсказк\w+|руководств\w+|образц\w+|указани\w+)",
    "zh": r"(?:参考|參考|提示|指南|所?给(?:定|出)?的?答案|提供的答案)",
}
# How a source is named before a statement, and what a source does after it is named; in Japanese
# and Korean both come after it.
SOURCE_OF = {
    "de": r"\b(?:laut|gemäß|nach|entsprechend|wie (?:in|im|aus)|wie)(?: de[rmns]| die| das)? ",
    "en": (
        r"\b(?:according to|based on|as per|per|as (?:\w+ ){1,2}(?:in|by)|as|given|following)"
        r" (?:the|this|that|your|my)(?: (?:given|provided|above))? "
    ),
    "es": (
        r"\b(?:según|de acuerdo con|conforme a|(?:tal )?como (?:\w+ ){1,2}(?:en )?)"
        r"\s?(?:la|el|las|los|tu|su)? ?"
    ),
    "fr": (
        r"\b(?:selon|d['’]après|suivant|conformément à|comme (?:[\w'’]+ ){1,3}(?:dans |par )?)"
        r"\s?(?:la |le |les |l['’]|votre )?"
    ),
    "it": (
        r"\b(?:secondo|in base al(?:la)?|come (?:\w+ ){1,2}(?:nell[ao]? |nel )?)"
        r"\s?(?:il|la|lo)? ?"
    ),
    "nl": r"\b(?:volgens|op basis van|zoals (?:\w+ ){0,2}(?:in )?)\s?(?:de|het|je|uw)? ?",
    "pt": r"\b(?:segundo|de acordo com|conforme|como (?:\w+ ){1,2}(?:n[ao] )?)\s?(?:a|o|sua)? ?",
    "ru": r"\b(?:согласно|по|исходя из|как (?:\w+ ){1,2}(?:в )?)\s?(?:данн\w+ )?",
    "zh": (
        r"(?:根据|根據|按照?|依据|依據|参照|參照|正?如|据|據)"
        r"(?:上述|上面的?|该|該|所?给的?|提供的)?"
    ),
}
SAYS = {
    "de": r"(?:\b(?:die|der|das) {0} (?:sagt|besagt|gibt|nennt|zeigt|lautet)\b|\b{0} zufolge\b)",
    "en": (
        r"\b(?:the|this|your) {} (?:says|states|gives|shows|tells|indicates|mentions|reads"
        r"|suggests)\b"
    ),
    "es": r"\b(?:la|el) {} (?:dice|indica|muestra|da|señala)\b",
    "fr": r"(?:\b(?:la|le) |\bl['’]){} (?:dit|indique|donne|montre)\b",
    "it": r"\b(?:la|il|lo) {} (?:dice|indica|mostra|dà|suggerisce)\b",
    "ja": (
        r"{}(?:に(?:よる|よれ|従|基づ|あるよう)|の(?:とお|通)り"
        r"|(?:では|には|は).{{0,12}}(?:示|述べ|言))"
    ),
    "ko": r"{}(?:에 따르면|에 따라|에 의하면|를 보면|에 나온)",
    "nl": r"\b(?:de|het) {} (?:zegt|geeft|toont|stelt)\b",
    "pt": r"\b(?:a|o) {} (?:diz|indica|mostra|dá|sugere)\b",
    "ru": r"\b{} (?:говорит|гласит|указывает|показывает)\b",
    "zh": r"{}(?:答案|资料|資料)?(?:中|里|裡)?(?:说|說|显示|顯示|表明|给出|給出|指出|提到)",
}
# A source that is a number or a quotation, in any language; and the source as a heading.
IS = r"{} ?(?:is|ist|lautet|es|est|è|é|=|—|は|是|为|為|은|는) ?[*\"“«「]*-?\d"
NAMED = (
    r"^[^\w\n]*(?:(?:the|this|your|my|der|die|das|el|la|le|il|lo|de|het|o|a) |l['’])?{}[*_\s]*[:：]"
)
# The earlier answer, as a reply that judges it names it.
EARLIER = (
    r"\b(?:the|your|my) (?:previous|prior|earlier|initial|original|first)"
    r" (?:answer|response|solution|attempt) (?:was|is|were|had|has|contain\w*)\b",
    r"\b(?:vorherige|vorige|frühere|ursprüngliche)n? (?:Antwort|Lösung)\b",
    r"\b(?:respuesta|solución) (?:anterior|previa|original)\b",
    r"\b(?:réponse|solution) (?:précédente|antérieure|initiale)\b",
    r"\b(?:risposta|soluzione) (?:precedente|originale)\b",
    r"\b(?:resposta|solução) (?:anterior|original)\b",
    r"\b(?:vorige?|eerdere?|oorspronkelijke?) antwoord\b",
    r"\b(?:предыдущ|прежн|исходн)\w+ (?:ответ|решени)\w*",
    r"(?:之前|先前|前面|上一个|原来|原)的?(?:答案|回答)",
    r"(?:前|以前|先ほど|元)の(?:回答|解答|答え)",
    r"(?:이전|원래|앞선) ?(?:의 )?(?:답변|답안|답)",
    r"\bI apologi[sz]e for (?:the|my|that|any) (?:\w+ )?(?:mistake|error|confusion|oversight)\b",
    r"^\W*you(?:['’]re| are) (?:\w+ )?(?:right|correct)[,.;:!]",
)
# Headings of the request, or of its result, at the beginning of a line.
HEADING = (
    r"^[^\w\n]*(?:to guide you|(?:corrected|revised|rewritten|improved|updated)(?: \w+)?|correction"
    r"|(?:korrigiert|verbessert)\w*(?: \w+)?|(?:respuesta )?corregid[oa]|(?:réponse )?corrigée?"
    r"|(?:risposta )?corrett[oa]|(?:resposta )?corrigid[oa]|gecorrigeerd\w*(?: \w+)?"
    r"|исправлен\w+(?: \w+)?|修正|更正|修改后?|수정(?:된 답변?)?)[*_\s]*[:：]"
)
# Our own words for what the request holds.
WORDS = (
    r"\b(?:reference|corrected|revised|edited|rewritten|earlier|provided) "
    r"(?:answer|response|solution)\b"
    r"|\bto guide you\b(?=[,:]|\W*$)"
    r"|\b(?:my|your) (?:own )?response\b|\b(?:my|your) own words\b|\bas (?:instructed|requested)\b"
    r"|\bhere(?: is|['\u2019]s) (?:the|a|my|your) "
    r"[a-z ]{0,20}(?:answer|response|solution|version)\b"
    r"|参考答案|参考回答|(?:修改|修正|更正)后的?(?:答案|回答)|[我你您]的回答"
    r"|\bMuster(?:lösung|antwort)\b|\b(?:risposta|respuesta|resposta|réponse) d[ei] r[ie]f[eé]r\w+"
    r"|模範解答|모범 ?답안|참고 ?답[안변]"
)
# A harmless text may match as well; then the reference stays, which is safe.
LEAKS = re.compile(
    "|".join(
        (
            WORDS,
            *(rf"{source}{SHOWN[language]}" for language, source in SOURCE_OF.items()),
            *(SAYS[language].format(shown) for language, shown in SHOWN.items()),
            *(form.format("|".join(SHOWN.values()).join(("(?:", ")"))) for form in (IS, NAMED)),
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

FENCED = re.compile(r"\s*(```|~~~)[\w+-]*[ \t]*\n((?:(?!\1).)*?)\n?\1\s*", re.DOTALL)
# A first sentence that offers help to who asks: "I can help the sick." is none. "Of course." alone
# may be what a question asks for.
OFFERS = re.compile(
    r"\s*(?:(?:sure|certainly|of course|absolutely|okay|ok|no problem)\b\W{1,3})?"
    r"(?:(?:(?:i am|i'm|i'd be|i would be|i will be|i'll be) )?(?:(?:more than|very|always|so) )?"
    r"(?:happy|glad|delighted|pleased) to|(?:i can|i could|i will|i'll|let me)(?: \w+ly)?)"
    r" (?:help|assist)(?: you(?: (?:out|with|in|by|on)\b[^.!:\n]*)?"
    r"| with (?:that|this|it|your)\b[^.!:\n]*)?[.!]+\s+(?=\S)",
    re.IGNORECASE,
)


def cleaned(reply: str, *, like: str, own: str = "") -> str:
    """The reply without a code fence around all of it and a first sentence that only offers help.

    ``like`` is the reference, which may have a fence, and ``own`` what the model wrote by itself,
    whose opening may stay.
    """
    text = reply.strip()
    fenced = FENCED.fullmatch(text)
    if fenced is not None and fenced[1] not in like and fenced[1] not in own:
        text = fenced[2].strip()
    offer = OFFERS.match(text)
    if offer is not None and not like.startswith(offer[0]) and not own.startswith(offer[0]):
        text = text[offer.end() :]
    return text


# --- judging --------------------------------------------------------------------------------------


def form_fault(reply: str, reference: str) -> str | None:
    """Says "refusal" or "repetitive" for a reply that declines or loops where the reference does
    not.
    """
    if refusal(reply) and not refusal(reference):
        return "refusal"
    if loops(reply) and not loops(reference):
        return "repetitive"
    return None
