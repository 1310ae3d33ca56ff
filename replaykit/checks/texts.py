"""What can be seen in one text alone: loops, role headers, the language, refusals, secrets and
personal data.

    repetitive("and so on " * 50, max_share=0.5)                          ->  "repetitive"
    leaked("Paris.<|im_end|>\\n<|im_start|>user\\nAnd Peru?", None)          ->  "leaked_header"
    leaked("What does `<|im_end|>` mean?", None)                          ->  None

Each check gives a reason to drop the text, or None. Every row that is dropped wrongly bends the
sample of what the model writes, so a check that cannot tell keeps the text. How often each is wrong
was counted on 144,000 texts of GSM8K, P3, Dolly, Alpaca, LIMA, PubMedQA and AG News, "the real
texts" below.
"""

from __future__ import annotations

import ipaddress
import re
from functools import cache
from itertools import count
from typing import Any

from replaykit.errors import RecipeError, did_you_mean

# --- loops ----------------------------------------------------------------------------------------

SHORTEST = 100  # characters that a text must have to be repetitive


def repeated_share(text: str, *, window: int = 20) -> float:
    """The share of the text's windows of ``window`` characters that came earlier in it, from 0 to
    1; spacing aside.

    A sentence over and over gives nearly 1. Of real texts of 100 characters or more, 99.9 % stay
    under 0.15 (GSM8K's questions), 0.22 (its answers), 0.30 (P3's prompts), 0.34 (Dolly's answers)
    and 0.36 (LIMA's answers, which have programs and tables). 4,000 characters take 0.3 ms.
    """
    flat = " ".join(text.split())
    windows = len(flat) - window + 1
    if windows <= 0:
        return 0.0
    different = {flat[start : start + window] for start in range(windows)}
    return 1 - len(different) / windows


def repetitive(text: str, *, max_share: float) -> str | None:
    """Says "repetitive" if more than ``max_share`` of the text was in it before. Under 100
    characters nothing is.

    At 0.5, two of the real texts are: a list of 'triangle', 'not a triangle' and a news item that
    is in it twice. A song with a refrain is kept, but one that counts down ("Ten green bottles",
    0.64) or a matrix of zeros (0.88) is not.
    """
    if len(text) < SHORTEST or repeated_share(text) <= max_share:
        return None
    return "repetitive"


MAX_REPEAT = 0.5  # of 20-character windows, as select and generate have it
TIMES = 3  # from which on one thing again and again is a loop
TIMES_AT_END = 6  # from which on it is one behind other words
TIMES_OF_SIGN = 10  # from which on a single letter or digit is
BETWEEN_WORDS = re.compile(r"[\s.,;:!?。，、；：！？]+")


def loops(text: str) -> bool:
    """Whether the text is one thing at least three times, ends in a line that is there three times
    in a row or in words that are there six times, or says mostly what it has said before.

    A single letter or digit counts from ten times on: "0 0 0" is a row of a matrix.
    """
    words = [word for word in BETWEEN_WORDS.split(text) if word]
    for period in range(1, len(words) // TIMES + 1):
        unit = words[-period:]
        short = len("".join(unit)) == 1
        times = TIMES_OF_SIGN if short else TIMES
        whole = len(words) // period
        if len(words) % period == 0 and whole >= times and words == unit * whole:
            return True
        times = TIMES_OF_SIGN if short else TIMES_AT_END
        if words[-period * times :] == unit * times:
            return True
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) >= TIMES and len(set(lines[-TIMES:])) == 1 and len(lines[-1]) > 1:
        return True
    return repetitive(text, max_share=MAX_REPEAT) is not None


# --- role headers ---------------------------------------------------------------------------------

# What opens or closes a turn in the templates of well-known families. None has another use in
# running text.
HEADERS = {
    "ChatML: Qwen, Yi, Phi-4, SmolLM": r"<\|im_(?:start|end|sep)\|>",
    "Llama 3": r"<\|(?:start_header_id|end_header_id|eot_id|eom_id|begin_of_text)\|>",
    "Llama 4": r"<\|(?:header_start|header_end|eot)\|>",
    "Llama 2, Mistral": r"\[/?INST\]|<</?SYS>>",
    "Gemma": r"<(?:start|end)_of_turn>|<\|turn>|<turn\|>",
    "DeepSeek": r"<[｜|](?:User|Assistant|(?:begin|end)▁of▁sentence)[｜|]>",
    "Phi-3, GLM, Zephyr": r"<\|(?:user|assistant|system|observation|end)\|>",
    "gpt-oss": r"<\|(?:start|message|channel|return)\|>",
    "Granite": r"<\|(?:start|end)_of_role\|>",
    "base models": r"<\|endoftext\|>",
}
TOKEN = "|".join(HEADERS.values())
# A leaked header begins a line, ends one, or follows another one at once. One that a sentence is
# about has words around it.
HEADER = re.compile(
    rf"^[ \t]*(?:{TOKEN})|(?:{TOKEN})(?:\w+)?[ \t]*$|(?:{TOKEN})\w*\s*(?:{TOKEN})", re.MULTILINE
)
# Headers made of plain words count as a pair only, since "### Instruction" is a heading too.
PAIRS = (
    # Stanford Alpaca
    re.compile(r"^### ?Instruction:.*^### ?Response:", re.MULTILINE | re.DOTALL),
    # Vicuna, OpenAssistant
    re.compile(r"^### ?(?:Human|User):.*^### ?Assistant:", re.MULTILINE | re.DOTALL),
    # the HH dataset
    re.compile(r"(?:\A|\n\n)Human: .*\n\nAssistant:", re.DOTALL),
    # Vicuna 1.1
    re.compile(r"^USER: .*(?:^| )ASSISTANT:", re.MULTILINE | re.DOTALL),
)
# What a text only shows: code and quotations.
QUOTED = re.compile(r"```.*?```|`[^`\n]*`|\"[^\"\n]*\"|“[^”\n]*”|'<[^'\n]*'", re.DOTALL)

ROLE = re.compile(r"(user|assistant|system|model|human):?|(User|Assistant|System|Model|Human):")
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)*]*\s*\Z")
# Llama 3's header without its special tokens, after an answer.
GLUED = re.compile(r"[.!?。！？]assistant\n\n")


def leaked(text: str, special: re.Pattern[str] | None) -> str | None:
    """Says "leaked_header" where a chat template's roles were written out as text.

    ``special`` matches the tokenizer's own special tokens, or is None. They count everywhere, also
    in a question about templates and also ``<s>`` in HTML, because a text with one is not the same
    text any more once it is tokenised. The tokens of other families count where a header would be,
    not in quotation marks, code or a sentence about them. A role by itself on a line counts as
    ``_lone_roles`` says. None of the real texts counts.
    """
    if special is not None and special.search(text):
        return "leaked_header"
    said = QUOTED.sub(" ", text)
    if any(pattern.search(said) for pattern in (HEADER, GLUED, *PAIRS)) or _lone_roles(said):
        return "leaked_header"
    return None


def _lone_roles(text: str) -> bool:
    """Whether role words on lines of their own read as headers whose special tokens were dropped.

    One suffices if it is "user" or "assistant" in small letters and comes first, after a blank
    line, or after the end of a sentence. The words "system", "model" and "human" begin answers and
    lines of verse as well; of them, and of words in capitals, it takes two different ones.
    """
    lines = ["", *text.split("\n")]
    roles = set()
    for before, line, number in zip(lines, lines[1:-1], count(2)):
        role = ROLE.fullmatch(line.rstrip()) if len(line) < 16 else None
        if role is None or not _opens_a_turn(lines[number:]):
            continue
        begins = not before.strip() or SENTENCE_END.search(before)
        if begins and role[1] in ("user", "assistant"):
            return True
        roles.add((role[1] or role[2]).lower())
    return len(roles) > 1


def _opens_a_turn(following: list[str]) -> bool:
    """Whether the lines after a role word are what that role says: a blank line, or two words and
    more, and no indentation, which would be YAML.
    """
    said = next((line for line in following if line.strip()), "")
    if not said or said[0].isspace() or ROLE.fullmatch(said.strip()):
        return False
    blank = not following[0].strip()
    return blank or len(said.split()) > 1


# --- language -------------------------------------------------------------------------------------

MIN_BYTES = 20  # of UTF-8: fewer are too few to tell
SURE = 0.5  # the probability of the likeliest language from which on it counts
UNLIKELY = 0.01  # the probability of all wanted languages together under which they are ruled out
# Languages that have a code for the whole and codes for parts: ISO 639-3's macrolanguages, as far
# as py3langid has both.
PARTS = {"ar": ("ary", "arz"), "ku": ("sdh",), "no": ("nn",), "uz": ("uzs",), "zh": ("wuu", "yue")}
OTHER_CODES = {"nb": "no", "iw": "he", "in": "id", "ji": "yi", "fil": "tl"}
NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+", re.DOTALL)


def language(text: str) -> str:
    """The ISO 639 code of the language that the text is in, or "zxx" where there is none or one
    cannot tell.

    By py3langid's probabilities, code and addresses aside, in the first 2,000 characters.
    """
    probabilities = _probabilities(text)
    code = max(probabilities, key=probabilities.__getitem__, default="zxx")
    return code if probabilities.get(code, 0.0) >= SURE else "zxx"


def code_of(text: str) -> str | None:
    """The code that a text is: "en", also "iw" for "he"; None where it is none that is known."""
    code = OTHER_CODES.get(text.lower(), text.lower())
    return code if code in _identifier().labels else None


def parts_of(code: str) -> frozenset[str]:
    """The codes of a language and of its parts. Raises RecipeError for one that is not known."""
    return _wanted((code,)) - {"zxx"}


def wrong_language(text: str, languages: list[str]) -> str | None:
    """Says "wrong_language" where the text is surely in another language than these, and no
    paragraph of it is in one.

    That is: another language has a probability of 0.5 or more, and the wanted ones have less than
    0.01 together. The likeliest language alone would be wrong for 42 of 184 Dolly answers of 40 to
    80 characters, and for most under 20. By this rule, 59 of the real texts are not English: nearly
    all are in fact Portuguese, Spanish, German, French or Chinese, and 14 are names and lists
    ("Bayerische Motoren Werke", Italian pasta). Under 20 bytes, and in mathematics and programs,
    nothing is. Raises RecipeError for a code that is not known.
    """
    wanted = _wanted(tuple(languages))
    if not _elsewhere(text, wanted):
        return None
    # An English request to translate a Chinese paragraph is English.
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(parts) > 1 and any(language(part) in wanted - {"zxx"} for part in parts):
        return None
    return "wrong_language"


def _elsewhere(text: str, wanted: frozenset[str]) -> bool:
    """Whether the text is surely in a language that is not wanted."""
    probabilities = _probabilities(text)
    ours = sum(probability for code, probability in probabilities.items() if code in wanted)
    return max(probabilities.values(), default=0.0) >= SURE and ours < UNLIKELY


def _probabilities(text: str) -> dict[str, float]:
    """The probability of each language; empty where the text is too short to tell."""
    prose = NOT_PROSE.sub(" ", text[:2000]).strip()
    if len(prose.encode("utf-8", "replace")) < MIN_BYTES:
        return {}
    return dict(_identifier().rank(prose))


@cache
def _wanted(languages: tuple[str, ...]) -> frozenset[str]:
    known = set(_identifier().labels)
    codes = [OTHER_CODES.get(code, code) for code in languages]
    problems = [
        f"generate.checks.languages: no language '{code}'{did_you_mean(code, known)}"
        for code in codes
        if code not in known
    ]
    if problems:
        raise RecipeError("the recipe", problems)
    parts = [part for code in codes for part in PARTS.get(code, ())]
    return frozenset({"zxx", *codes, *parts})


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


# --- thoughts -------------------------------------------------------------------------------------

THOUGHT = r"(?:think|thinking|thought|reasoning|seed:think)"
THOUGHT_START = re.compile(rf"\s*(?:<{THOUGHT}>|\[THINK\]|◁think▷)")
THOUGHT_END = re.compile(rf"</{THOUGHT}>|\[/THINK\]|◁/think▷")


def without_thought(text: str) -> str:
    """The answer without the thought before it; "" where the thought was cut and no answer came.

    A template may have opened the thought in the prompt, so that only its end is in the text.
    """
    ends = list(THOUGHT_END.finditer(text))
    if ends:
        return text[ends[-1].end() :].strip()
    return "" if THOUGHT_START.match(text) else text


# --- refusals -------------------------------------------------------------------------------------

OPENING = 200  # characters in which an answer that declines says so
# To be unable, in the first person: "cannot", "am not equipped to", "lack the ability to".
UNABLE = r"(?:able|equipped|designed|programmed|built|trained|allowed|permitted|authori[sz]ed)"
ABILITY = r"(?:capabilit(?:y|ies)|ability|abilities|capacity|means|permission|authori[sz]ation)"
CANNOT = (
    r"(?:can(?:no|')t|can not|won't|will not|am not going to"
    rf"|(?:am|'m|was)(?: (?:just|only|simply|currently))? (?:not {UNABLE}|unable) to"
    r"|(?:am|'m)(?: (?:just|only|simply|currently))? (?:not capable|incapable) of"
    rf"|(?:do not|don't|currently lack|lack) (?:\w+ ){{0,3}}{ABILITY} (?:to|of)"
    r"|(?:am|'m) not in a position to)"
)
# What is declined: to help, or to make what was asked for.
DECLINED = (
    r"(?:(?:help|assist)(?:ing)?(?: you)?(?: (?:with|in|by)\b|[.,;!]|$)|provid(?:e|ing)"
    r"|fulfil|comply|answer(?:ing)? (?:th(?:is|at|ese|ose)|your|the question)"
    r"|creat(?:e|ing)|generat(?:e|ing)|support|engag(?:e|ing)"
    r"|participate|offer|discuss|produc(?:e|ing)|do(?:ing)? that|giv(?:e|ing) (?:\w+ ){0,2}advice"
    r"|(?:open|access|brows|view|see|display|play|hear)(?:e|ing)? (?:external |your |any )?"
    r"(?:links?|images?|pictures?|photos?|videos?|files?|attachments?|urls?|websites?|audio))"
)
# "As a chatbot, I cannot ...", "I'm an AI assistant and I can't ...": what speaks says what it is.
AS_MODEL = (
    r"as an? (?:\w+[ -]){0,4}?(?:ai|a\.i\.|chatbot|bot|assistant|(?:language |ai )?model|program)\b"
)
AM_MODEL = (
    r"i(?:'m| am)(?: just| only)? an? (?:\w+[ -]){0,3}?(?:ai|chatbot|language model)"
    r"(?: \w+){0,2}(?:[,;.]| and| so)+"
)
ONLINE = r"(?:the internet|the web|real-time|live|current|external|up-to-date|your (?:files|data))"
# In other languages: to be sorry, to be unable, and what is declined, in this order.
REFUSED_IN = {
    "de": (
        r"(?:es tut mir|tut mir|entschuldigung|leider)",
        r"(?:ich kann|kann ich)\b.{0,60}?\bnicht\b",
        r"\b(?:(?:weiter)?helfen|behilflich|beantworten|bereitstellen|erstellen|anbieten|erfüllen"
        r"|nachkommen|unterstützen|liefern)\b",
    ),
    "es": (
        r"(?:lo siento|lamento|lamentablemente|disculpa)",
        r"\bno puedo\b",
        r"\b(?:ayudar|asistir|proporcionar|responder a (?:es[ot]|tu|su)|cumplir|hacer eso)",
    ),
    "fr": (
        r"(?:je suis|désolée?|malheureusement)",
        r"\bje ne (?:peux|puis)\b",
        r"\b(?:aider|répondre à (?:cet|votre|ta|ce)|fournir|assister|satisfaire|faire cela)\b",
    ),
    "it": (
        r"(?:mi dispiace|purtroppo)",
        r"\bnon posso\b",
        r"\b(?:aiutar|assister|fornir|rispondere a (?:quest|tua)|soddisfar|farlo)",
    ),
    "ja": (
        r"(?:申し訳|すみません|すいません|ごめん|恐れ入り|残念)",
        r".",
        r"(?:手伝い|応え|お答え|回答|対応|提供|協力|支援|サポート|生成|作成).{0,6}"
        r"(?:できません|できかねます|いたしかねます|出来ません)",
    ),
    "ko": (
        r"(?:죄송|미안|유감|아쉽)",
        r".",
        r"(?:도와|도움|답변|대답|제공|지원|응답|처리|생성|작성).{0,8}(?:수는? 없|못|어렵|불가)",
    ),
    "pt": (
        r"(?:desculpe|sinto muito|lamento|infelizmente)",
        r"\bnão posso\b",
        r"\b(?:ajudar|fornecer|responder a (?:ess|est|sua)|atender|fazer isso)",
    ),
    "ru": (
        r"(?:извините|простите|к сожалению|сожалею)",
        r"\bя не (?:могу|смогу|в состоянии)\b",
        r"\b(?:помочь|помогать|предостав\w+|ответить на (?:эт|ваш)|выполнить|обсуждать|созда\w+)\b",
    ),
    "zh": (
        r"(?:很|非常|十分)?(?:抱歉|对不起|對不起|不好意思|遗憾|遺憾)",
        r"(?:我|本).{0,12}?(?:无法|無法|不能|不会|不會|没办法)",
        r"(?:提供|协助|協助|帮|幫|回答|解答|满足|滿足|完成|参与|參與|讨论|生成|访问|执行|支持|处理)",
    ),
}
# Japanese and Korean leave out who speaks; Chinese has words for it below.
NEEDS_SORRY = {"ja", "ko", "zh"}
REFUSALS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^\W*(?:(?:i'm|i am|we're) (?:really |very |so )?sorry|sorry|my apologies|"
        rf"i apologi[sz]e|unfortunately)\b.{{0,80}}?"
        rf"\b(?:i|we)(?: |(?='m)){CANNOT} (?:\w+ ){{0,2}}{DECLINED}",
        rf"^\W*(?:{AS_MODEL}.{{0,80}}?)?\bi(?: |(?='m)){CANNOT} (?:\w+ ){{0,1}}{DECLINED}",
        # Where it says what it is that speaks, any verb will do, unless an answer follows.
        rf"^\W*(?:(?:i'm|i am) sorry,? (?:but )?)?(?:{AS_MODEL},?|{AM_MODEL}) i(?: |(?='m)){CANNOT}"
        r"(?: \w+|\W*$)(?!.{0,120}\b(?:but|however),? (?:i|here|my)\b)",
        rf"^\W*(?:(?:i'm sorry|sorry|unfortunately),? (?:but )?)?i (?:do not|don't) have "
        rf"(?:\w+ )?access to {ONLINE}\b(?!.{{0,120}}\b(?:but|however),? (?:i|here|my)\b)",
        r"^\W*i (?:must|have to|need to) (?:respectfully |politely )?(?:decline|refuse)"
        r"(?: to\b| this\b| that\b| your request|\W*$|[.,;!])|"
        r"^\W*i (?:respectfully )?(?:decline|refuse) to\b",
        r"^\W*(?:作为|作為).{0,16}(?:AI|人工智能|语言模型|語言模型|助手).{0,20}?我.{0,8}?(?:无法|無法|不能)",
        r"^\W*我(?:无法|無法|不能)(?:提供|协助|協助|帮助|幫助|回答|满足|滿足|参与|為|为)",
        *(
            rf"^\W*{sorry}.{{0,60}}?{cannot}.{{0,40}}?{declined}"
            for sorry, cannot, declined in REFUSED_IN.values()
        ),
        *(
            rf"^\W*{cannot}.{{0,40}}?{declined}"
            for language, (_, cannot, declined) in REFUSED_IN.items()
            if language not in NEEDS_SORRY
        ),
    )
]


def refusal(text: str) -> str | None:
    """Says "refusal" for an answer that declines in its first 200 characters, in English or a
    language of ``REFUSED_IN``.

    Only the opening counts, so a story in which somebody declines does not. A letter that was asked
    for and begins by declining to help does. To say that one does not know is an answer.
    """
    opening = " ".join(text[:OPENING].replace("’", "'").split())
    return "refusal" if any(pattern.search(opening) for pattern in REFUSALS) else None


# --- secrets --------------------------------------------------------------------------------------

# Each with where its format is described. The lengths are those of gitleaks' default rules.
SECRETS = {
    # RFC 7468, RFC 9580
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----\s+\S[\s\S]{50}",
    "AWS": r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b",  # AWS IAM user guide, "Unique identifiers"
    # GitHub docs, "token formats"
    "GitHub": r"\b(?:gh[pousr]_[0-9A-Za-z]{36}|github_pat_[0-9A-Za-z_]{82})\b",
    # api.slack.com/authentication/token-types
    "Slack": r"\bxox[abeoprs]-\d{8,13}-[0-9A-Za-z-]{12,}",
    # T3BlbkFJ is "OpenAI" in Base64
    "OpenAI": r"\bsk-(?:(?:proj|svcacct|admin)-)?[\w-]{20,74}T3BlbkFJ[\w-]{20,74}",
    "Anthropic": r"\bsk-ant-[a-z]+\d\d-[\w-]{80,}",
    "Hugging Face": r"\bhf_[A-Za-z]{34}\b",  # huggingface.co/docs/hub/security-tokens
    "Google": r"\bAIza[\w-]{35}(?![\w-])",  # cloud.google.com/docs/authentication/api-keys
    "Stripe": r"\b[rs]k_live_[0-9A-Za-z]{24,99}\b",  # docs.stripe.com/keys; test keys open nothing
    "JWT": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}",  # RFC 7519; eyJ is '{"' in Base64
}
SECRET = re.compile("|".join(SECRETS.values()))
# What documentation writes in place of a reader's own: AKIAIOSFODNN7EXAMPLE, ghp_xxxx, the token on
# jwt.io.
PLACEHOLDER = re.compile(
    r"example|placeholder|your[-_]?|dummy|redacted|x{6}|\*{4}|\.{3}|1234567|abcdefg|"
    r"eyJzdWIiOiIxMjM0NTY3",
    re.IGNORECASE,
)

CARD = re.compile(
    r"(?<![\w.,+-])"
    r"(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}|3[47]\d{2}([ -])\d{6}\2\d{5}|\d{15,16})"
    r"(?![\w-]|[ .,]?\d)"
)
# Of 15 and 16 digits, after ISO/IEC 7812: Visa, Mastercard, Amex, Discover, JCB, UnionPay.
ISSUERS = re.compile(
    r"4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|"
    r"6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14}"
)
CARD_WORD = re.compile(
    r"\b(?:card|visa|master ?card|amex|american express|cvv|cvc)|"
    r"卡号|信用卡|银行卡|tarjeta|karte|carte\b",
    re.IGNORECASE,
)
# Numbers that Stripe, PayPal and Adyen document for tests: there is no account behind them.
TEST_CARDS = set(
    "4111111111111111 4242424242424242 4012888888881881 4000056655665556 4000000000000002 "
    "5555555555554444 5105105105105100 5200828282828210 2223003122003222 378282246310005 "
    "371449635398431 6011111111111117 6011000990139424 3530111333300000 3566002020360505 "
    "4444333322221111 5454545454545454 6200000000000005".split()
)


def secret(text: str) -> str | None:
    """Says "secret" for a private key, an access token of a well-known service or a payment card's
    number.

    Documented placeholders and test numbers open nothing and may stay. A card number needs a valid
    check digit and the first digits of an issuer; without the usual groups of four it also needs a
    word such as "card" nearby, because one in ten numbers has a valid check digit. None of the real
    texts has a secret.
    """
    for found in SECRET.finditer(text):
        if not PLACEHOLDER.search(found[0]) and len(set(found[0])) >= 12:
            return "secret"
    if any(_is_card(found, text) for found in CARD.finditer(text)):
        return "secret"
    return None


def _is_card(found: re.Match[str], text: str) -> bool:
    digits = re.sub(r"\D", "", found[0])
    if not ISSUERS.fullmatch(digits) or not luhn(digits):
        return False
    if digits in TEST_CARDS or len(set(digits)) < 5:
        return False
    grouped = len(digits) < len(found[0])
    nearby = text[max(0, found.start() - 80) : found.end() + 40]
    return grouped or CARD_WORD.search(nearby) is not None


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B).

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    total = sum(int(digit) for digit in digits[-1::-2])
    return (total + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])) % 10 == 0


# --- personal data --------------------------------------------------------------------------------

MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@((?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24})\b")
# RFC 2606 and 6761 reserve the first ones; the last are in made-up addresses everywhere.
NOBODY = re.compile(
    r"(?:.*\.)?(?:(?:example|test|invalid|localhost|local)|example\.(?:com|org|net|edu)|"
    r"(?:your)?(?:company|domain|website|email)\.com)",
    re.IGNORECASE,
)
# ITU-T E.164: at most 15 digits.
PHONE = re.compile(r"(?<![\w+.*/^])\+[1-9](?:[ .()-]{0,2}\d){9,14}(?!\w|[.,]\d)")
# ssa.gov, "randomization"; the printed ones are on advertisements and in every form.
SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
PRINTED_SSN = {"078-05-1120", "219-09-9999", "123-45-6789"}
# ISO 13616; the printed ones are examples that many pages show.
IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
PRINTED_IBAN = {
    "GB82WEST12345698765432",
    "DE89370400440532013000",
    "GB29NWBK60161331926819",
    "FR1420041010050500013M02606",
}
ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")


def personal(text: str) -> str | None:
    """Says "personal" for a mail address, a telephone number in international form, a US social
    security number, an IBAN with a valid checksum, or a public IPv4 address.

    What is reserved for examples may stay: the domains of RFC 2606, North American numbers with
    555-01, addresses for documentation. Of IPv4, addresses count that could not be the number of a
    version or a section: two of their parts are over 99.
    """
    if any(not NOBODY.fullmatch(found[1]) for found in MAIL.finditer(text)):
        return "personal"
    if any(_is_phone(found[0]) for found in PHONE.finditer(text)):
        return "personal"
    if any(found[0] not in PRINTED_SSN for found in SSN.finditer(text)):
        return "personal"
    if any(_is_iban(found[0].replace(" ", "")) for found in IBAN.finditer(text)):
        return "personal"
    if any(_is_public(found[0]) for found in ADDRESS.finditer(text)):
        return "personal"
    return None


def _is_phone(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    fictional = digits.startswith("1") and digits[4:9] == "55501"  # 555-0100 to 555-0199
    return not fictional and len(set(digits)) > 3 and not PLACEHOLDER.search(digits)


def _is_iban(text: str) -> bool:
    """Whether the checksum is right: letters as 10 to 35, the first four signs last, modulo 97 (ISO
    7064).
    """
    if text in PRINTED_IBAN:
        return False
    digits = "".join(str(int(sign, 36)) for sign in text[4:] + text[:4])
    return int(digits) % 97 == 1


def _is_public(text: str) -> bool:
    parts = [int(part) for part in text.split(".")]
    leading_zeros = ".".join(map(str, parts)) != text
    if leading_zeros or max(parts) > 255 or sorted(parts)[-2] <= 99:
        return False
    return ipaddress.IPv4Address(text).is_global
