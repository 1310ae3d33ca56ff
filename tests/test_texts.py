"""Checks of one text: what is dropped, and above all what is not. Secrets are put together here, so that no scanner of
repositories takes this file for a leak."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.checks.texts import (
    TEST_CARDS,
    language,
    leaked,
    luhn,
    personal,
    refusal,
    repeated_share,
    repetitive,
    secret,
    without_thought,
    wrong_language,
)
from replaykit.errors import RecipeError
from replaykit.nano import world
from replaykit.text import words

DATA = Path(__file__).parent.parent.parent / "shared" / "data"

# Texts that a model may well write and that every check keeps.
LEGIT = {
    "code with a dialogue": 'def reply(user):\n    if user == "hello":\n        return "assistant: hi"\n    return None\n\n'
    'print(reply("hello"))  # user: hello\n',
    "a list": "1. Wash the rice.\n2. Add two cups of water.\n3. Bring to the boil.\n4. Cover and wait 12 minutes.\n5. Serve.",
    "a table": "| City | Country | People |\n| --- | --- | --- |\n| Lima | Peru | 10,092,000 |\n| Oslo | Norway | 709,037 |\n"
    "| Cairo | Egypt | 10,107,125 |\n| Rome | Italy | 2,748,109 |\n",
    "a poem with a refrain": "The sea goes out, the sea comes in,\n  and nobody knows why.\nThe gulls are white, the nets "
    "are thin,\n  and nobody knows why.\nMy father mended boat and oar,\n  and nobody knows why,\nhe never came back to the "
    "shore,\n  and nobody knows why.",
    "a song": "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily,\nLife is but a dream.",
    "mathematics": "Let $f(x) = x^2 - 4x + 4$. Then $f(x) = (x - 2)^2 \\geq 0$.\n\n"
    "$$\\int_0^1 f(x)\\,dx = \\left[\\tfrac{x^3}{3} - 2x^2 + 4x\\right]_0^1 = \\tfrac{7}{3}$$",
    "a times table": "\n".join(f"{a} x {b} = {a * b}" for a in (7, 8) for b in range(1, 11)),
    "digits": "2^52 = 4503599627370496, 2^53 = 9007199254740992, pi = 3.1415926535897932384626433, 1/7 = 0.142857142857142",
    "Chinese": "请把下面的句子翻译成英文：今天天气很好，我们去公园散步吧。助手：好的。用户的问题是什么？",
    "Japanese": "次の文章を要約してください。東京は日本の首都であり、約千四百万人が住んでいます。",
    "JSON": '{"messages": [{"role": "user", "content": "Hi"}, '
    '{"role": "assistant", "content": "Hello!"}], "id": 4512345678901234}',
    "a play": "HUMAN: Who is there?\nMODEL: Only a painted face.\nHUMAN: Speak, then.\nMODEL: I was not made to speak.\n\n"
    "[Exit HUMAN]\n\nUSER: They are gone.",
    "a question of administration": "My log says system: out of memory, user: root, system: restarting. Why?",
    "a question about templates": "In ChatML, what does `<|im_start|>` do, and how is Llama's [INST] different?",
    "an explanation of templates": "The token <|im_start|> opens a turn and <|im_end|> closes it, like this:\n\n```\n"
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n```\n\nEverything between them is the message.",
    "YAML": "version: 3\nuser:\n  name: anna\n  shell: /bin/zsh\nsystem:\n  memory: 16\nmodel:\n  name: small\n",
    "a word list": "Sort these words into the right order:\nuser\nassistant\nsystem\nhuman\nmodel",
    "verse": "I am only\nhuman\nafter all,\nso are you.",
    "an answer that is a role": "human",
    "an answer with its reason": "human\n\nThe text makes small mistakes that a program would not make.",
    "a lesson plan": "### Instruction:\n\nRead the page aloud.\n\n### Materials:\n\n- a book\n- chalk",
    "a letter": "Dear Ms Haas,\n\nI'm sorry, but I can't come on Friday: my daughter is ill.\n\nYours,\nPaula",
    "versions and addresses": "Set the gateway to 192.168.0.1 and DNS to 8.8.8.8; Windows 10.0.19045.3803, section 2.1.3.1.",
    "placeholders": "export OPENAI_API_KEY=sk-...\nAWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE\nAuthorization: Bearer YOUR_TOKEN\n"
    "mail: jane.doe@example.com, bob@mail.example.org\n" + "GITHUB_TOKEN=ghp_" + "x" * 36,
    "test cards": "Try 4111 1111 1111 1111, card 4242424242424242 or 3782 822463 10005 in the sandbox.",
    "a decimal": "The card game has odds of 0.4539578763621486 by my count.",
    "years": "Sales by year: 4539 5787 6362 1486 2019 2020, and 5105 5105 in sum.",
    "fiction": "Call +1 212-555-0143 for a good time, wrote the author; and form 078-05-1120 was printed on a wallet card.",
    "formulas with plus": "x = 5 +1234567890, and 3.5 * +42 = 147",
    "nothing": "",
    "a space": " \n",
}


@pytest.mark.parametrize("text", LEGIT.values(), ids=LEGIT.keys())
def test_what_a_model_may_well_write_is_kept_by_every_check(text: str) -> None:
    assert repetitive(text, max_share=0.5) is None
    assert leaked(text, None) is None
    assert refusal(text) is None
    assert secret(text) is None
    assert personal(text) is None
    assert wrong_language(text, ["en", "zh", "ja"]) is None


def test_no_task_of_the_embedded_world_is_dropped_and_only_its_refusals_refuse() -> None:
    tasks = [
        *world.draw_old(600, seed=1),
        *(task for skill in world.NEW_SKILLS for task in world.draw(skill, 100, seed=1)),
    ]
    for task in tasks:
        for text in (task.prompt, task.answer):
            reasons = (
                repetitive(text, max_share=0.5),
                leaked(text, None),
                secret(text),
                personal(text),
            )
            assert reasons == (None, None, None, None), text
            assert wrong_language(text, ["en"]) is None, text
        assert (refusal(task.answer) == "refusal") is (task.answer == world.REFUSAL), task
    assert sum(task.answer == world.REFUSAL for task in tasks) > 50


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is 2 + 2?", ["what", "is", "2", "2"]),
        ("ＡＢＣ snake_case Straße", ["abc", "snake_case", "strasse"]),
        ("今天天气", ["今", "天", "天", "气"]),
        ("東京はTokyoです", ["東", "京", "は", "tokyo", "で", "す"]),
        ("한국어 문장", ["한", "국", "어", "문", "장"]),
        ("ภาษาไทย", list("ภาษาไทย")),
        ("भारत की राजधानी।", ["भारत", "की", "राजधानी"]),
        ("Việt Nam", ["việt", "nam"]),
        ("مُحَمَّد هنا", ["مُحَمَّد", "هنا"]),
        ("", []),
        ("?!", []),
    ],
)
def test_words_are_what_spaces_part_or_single_characters_where_nothing_does(
    text: str, expected: list[str]
) -> None:
    assert words(text) == expected


# --- loops ----------------------------------------------------------------------------------------


def test_a_loop_is_nearly_all_repetition_and_a_text_without_one_has_none() -> None:
    assert repeated_share("I think that I think that " * 40) > 0.95
    assert repeated_share("今天天气很好，我们去公园散步吧。" * 30) > 0.95
    assert (
        repeated_share("The quick brown fox jumps over the lazy dog while seven wizards box.") == 0
    )
    assert repeated_share("ab" * 9) == repeated_share("") == 0


def test_the_share_is_of_windows_that_stood_before_and_spacing_does_not_count() -> None:
    half = "".join(chr(0x4E00 + k) for k in range(100))
    assert repeated_share(half + half) == pytest.approx(81 / 181)
    assert repeated_share(f"{half[:50]}\n\n  {half[50:]}") == 0
    assert repeated_share("one two  three\nfour " * 20) == repeated_share(
        "one two three four " * 20
    )


@settings(deadline=None)
@given(st.text(alphabet="ab \n", max_size=200), st.integers(1, 8))
def test_the_share_is_that_of_counting_one_window_after_the_other(text: str, window: int) -> None:
    flat = " ".join(text.split())
    seen = set()
    again = 0
    for start in range(len(flat) - window + 1):
        again += flat[start : start + window] in seen
        seen.add(flat[start : start + window])
    assert repeated_share(text, window=window) == pytest.approx(
        again / max(1, len(flat) - window + 1)
    )


@pytest.mark.parametrize(
    "text",
    [
        "Step 1: check the cable. " + "Then restart the router. " * 12,
        "The answer is 4.\n" * 20,
        "no " * 50,
        "好的，" * 60,
        "0" * 150,
    ],
)
def test_a_loop_is_repetitive(text: str) -> None:
    assert repetitive(text, max_share=0.5) == "repetitive"


def test_a_short_text_is_never_repetitive_and_the_share_is_a_maximum() -> None:
    assert repetitive("ha " * 30, max_share=0.5) is None
    text = "x" * 100
    assert repetitive(text, max_share=repeated_share(text)) is None


def test_four_thousand_characters_are_checked_within_a_few_milliseconds() -> None:
    text = " ".join(str(k * k) for k in range(1000))[:4000]
    start = time.perf_counter()
    for _ in range(20):
        repetitive(text, max_share=0.5)
        leaked(text, None)
        refusal(text)
        secret(text)
        personal(text)
    assert (time.perf_counter() - start) / 20 < 0.02  # 1.5 ms on a quiet machine


@pytest.mark.parametrize(
    "piece",
    [
        "sk-",
        "+1 ",
        "eyJ",
        "a@a-",
        "user\n",
        "<|im_start|",
        "4111 ",
        '"',
        "AB12 ",
        "[INST",
        "xoxb-1",
    ],
)
def test_no_text_makes_a_check_slow(piece: str) -> None:
    text = piece * (20_000 // len(piece))
    start = time.perf_counter()
    for check in (refusal, secret, personal):
        check(text)
    leaked(text, None)
    assert time.perf_counter() - start < 2


# --- role headers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Paris.<|im_end|>",
        "Paris.<|im_end|>\n<|im_start|>user\nAnd of Peru?<|im_end|>",
        "<|im_start|>assistant\nParis.",
        "Paris.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd of Peru?",
        "<|start_header_id|>assistant<|end_header_id|>",
        "[INST] What is the capital of France? [/INST] Paris.",
        "Paris. </s>\n[INST] And of Peru? [/INST]",
        "<<SYS>>\nYou are helpful.\n<</SYS>>\n\nHi",
        "Paris.<end_of_turn>\n<start_of_turn>user\nAnd of Peru?",
        "Paris.<turn|>\n<|turn>user\nAnd of Peru?",
        "Paris.<｜end▁of▁sentence｜><｜User｜>And of Peru?<｜Assistant｜>Lima.",
        "<|user|>\nHi<|end|>\n<|assistant|>\nHello",
        "<|start|>assistant<|channel|>final<|message|>Paris.<|return|>",
        "<|start_of_role|>user<|end_of_role|>Hi",
        "A document.<|endoftext|>",
        "### Instruction:\nName a city.\n\n### Response:\nParis",
        "Paris.\n### Human: And of Peru?\n### Assistant: Lima",
        "Paris.\n\nHuman: And of Peru?\n\nAssistant: Lima.",
        "USER: Hi ASSISTANT: Hello",
        "assistant\n\nParis is the capital of France.",
        "user\n\nWhat is the capital of France?",
        "user\nWhat is the capital of France?",
        "assistant:\nParis is the capital of France.",
        "Paris.\nuser\nAnd what of Peru?",
        "Paris is the capital.\n\nassistant\n\nYou are welcome.",
        "Paris.assistant\n\nYou are welcome.",
        "Paris\nuser\nAnd what of Peru?\nmodel\nLima it is.",
        "system\nYou are helpful.\nuser\nWho are you?",
        "Human:\nWho are you?\nAssistant:\nI am an assistant.",
        "巴黎。\nuser\n那么 秘鲁呢？",
        "Paris.\r\nuser\r\nAnd what of Peru?",
    ],
)
def test_a_header_written_out_as_text_is_a_leak(text: str) -> None:
    assert leaked(text, None) == "leaked_header"


@pytest.mark.parametrize(
    "text",
    [
        "What is the difference between <|im_start|> and <|im_end|> in ChatML?",
        'Why does my model print "<|eot_id|>" at the end of its answer?',
        "Strip the '<|endoftext|>' marker from each line with sed.",
        "Mistral wraps the question in [INST] and [/INST] markers, then answers.",
        "The user\nand the system are two parts.",
        "assistant",
        "user\n",
        "Job titles:\nmanager\nassistant\nclerk",
        "The assistant:\n- carries bags\n- opens doors",
        "Model:\nT-1000\nYear:\n1991",
        "Human: a primate.\nRobot: a machine.",
        "system\n\nExplanation: the noun names a set of parts.",
        "users:\n  - anna\nuser:\n  id: 3",
        "Options:\n- human\n- animal\nWhich of them is a machine?",
        "cd /home/user\n\nand then list the files.",
        "<s>old price</s> new price",
    ],
)
def test_to_speak_of_roles_or_tokens_is_no_leak(text: str) -> None:
    assert leaked(text, None) is None


def test_the_tokenizers_own_tokens_count_wherever_they_stand() -> None:
    own = re.compile(re.escape("<extra_id_7>") + "|" + re.escape("</s>"))
    assert leaked('What is "<extra_id_7>" for?', own) == "leaked_header"
    assert leaked("<s>old price</s> new price", own) == "leaked_header"
    assert leaked("What is <extra_id_8> for?", own) is None


# --- language -------------------------------------------------------------------------------------

SENTENCES = {
    "ar": "ما هي عاصمة مصر وكم عدد سكانها؟",
    "de": "Wie viele Äpfel hat Anna noch, wenn sie drei davon isst?",
    "en": "How many apples does Anna have left if she eats three of them?",
    "es": "¿Cuántas manzanas le quedan a Ana si se come tres de ellas?",
    "fr": "Quelle est la capitale de la France et combien d'habitants a-t-elle ?",
    "hi": "भारत की राजधानी क्या है और वहाँ कितने लोग रहते हैं?",
    "it": "Quante mele restano ad Anna se ne mangia tre?",
    "ja": "東京の人口は何人ですか。",
    "ko": "한국의 수도는 어디입니까?",
    "nl": "Wat is de hoofdstad van Nederland en hoeveel mensen wonen er?",
    "pl": "Jaka jest stolica Polski i ile osób tam mieszka?",
    "pt": "Quantas maçãs ainda tem a Ana se comer três delas?",
    "ru": "Сколько яблок осталось у Анны, если она съела три?",
    "sv": "Vad heter huvudstaden i Sverige och hur många bor där?",
    "th": "เมืองหลวงของประเทศไทยคืออะไร",
    "tr": "Türkiye'nin başkenti neresidir ve kaç kişi yaşıyor?",
    "vi": "Thủ đô của Việt Nam là gì và có bao nhiêu người sống ở đó?",
    "zh": "请把下面的句子翻译成英文。",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_in_its_own_language_and_wrong_in_any_other(code: str) -> None:
    text = SENTENCES[code]
    assert language(text) == code
    assert wrong_language(text, [code]) is None
    assert wrong_language(text, ["en", "zh", code]) is None
    other = [wanted for wanted in ("en", "zh", "ru") if wanted != code]
    assert wrong_language(text, other) == "wrong_language"


@pytest.mark.parametrize(
    "text",
    [
        "Lima",
        "Voilà !",
        "12 + 7 = 19",
        "2 x 2 = 4\n2 x 3 = 6\n2 x 4 = 8\n2 x 5 = 10\n2 x 6 = 12",
        "def add(a, b):\n    return a + b\n\nprint(add(1, 2))",
        "SELECT name, COUNT(*) FROM orders GROUP BY name;",
        '{"name": "Anna Smith", "age": 34, "city": "Lima"}',
        'fn main() { let v: Vec<i32> = vec![1, 2, 3]; println!("{:?}", v); }',
        "Red Deer, Wild Boar, Brown Bear, European Rabbit",
        "Michael Jordan, Lebron James, Kobe Bryant",
        "https://fr.wikipedia.org/wiki/Les_Mis%C3%A9rables_de_Victor_Hugo",
        "```\nimprimer = lambda phrase: print(phrase)  # affiche la phrase donnée\n```",
        "😀😀😀😀😀😀😀",
        "",
    ],
)
def test_what_is_short_or_in_no_language_is_in_no_wrong_one(text: str) -> None:
    assert wrong_language(text, ["en"]) is None
    assert wrong_language(text, ["zh"]) is None


def test_a_request_in_a_wanted_language_may_quote_another() -> None:
    quoted = (
        "深海中尚存的一丝光明：生活在深海热泉喷口周围的外来管虫和巨蚌不需要海洋表面的营养物质。"
    )
    assert wrong_language(quoted, ["en"]) == "wrong_language"
    assert wrong_language(f"Translate the following text into English.\n\n{quoted}", ["en"]) is None


def test_a_language_has_its_parts_and_its_other_codes() -> None:
    cantonese = "佢哋琴日去咗邊度食飯呀？我都唔知佢哋幾時返嚟。"
    assert language(cantonese) == "yue"
    assert wrong_language(cantonese, ["zh"]) is None
    assert wrong_language("Hva heter hovedstaden i Norge, og hvor mange bor der?", ["nb"]) is None


def test_a_language_that_is_not_known_is_an_error_that_names_the_key() -> None:
    with pytest.raises(RecipeError, match=r"generate\.checks\.languages: no language 'english'"):
        wrong_language("A text", ["en", "english"])


def test_the_language_model_is_loaded_only_when_a_language_is_asked_for() -> None:
    code = "import sys, replaykit.checks.texts; print([name for name in ('py3langid', 'rensa') if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t assist with that request.",
        "Sorry, I cannot provide instructions for that.",
        "I am unable to fulfil this request.",
        "As an AI language model, I cannot create harmful content.",
        "Unfortunately, I won't be able to do it: I can't help you with hacking.",
        "I must decline.",
        "I don't have the capability to provide real-time information.",
        "I do not have the ability to assist with personal matters.",
        "I lack the ability to generate images.",
        "I'm not equipped to assist with that kind of request.",
        "I am not designed to provide medical advice.",
        "I'm not capable of providing legal advice.",
        "I'm currently unable to help with that.",
        "As a chatbot, I cannot give you the names of capitals.",
        "I'm sorry, but as a chatbot, I don't have the capability to provide the capital of Peru.",
        "I'm sorry, but as a text-based AI assistant, I'm unable to open files.",
        "As a large language model, I can't browse the web.",
        "抱歉，我无法提供这样的帮助。",
        "很抱歉，我不能协助您完成这个请求。",
        "对不起，我无法回答这个问题。",
        "作为一个人工智能助手，我无法参与此类活动。",
        "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
        "Leider kann ich bei dieser Anfrage nicht helfen.",
        "Je suis désolé, mais je ne peux pas vous aider avec cela.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Mi dispiace, ma non posso aiutarti con questa richiesta.",
        "Desculpe, mas não posso ajudar com isso.",
        "I'm an AI assistant and I'm not able to open links.",
        "Unfortunately, I'm not able to see images.",
        "I'm not able to give legal advice.",
        "I don't have access to the internet, so I cannot say.",
        "I have to decline.",
        "Je ne peux pas vous aider.",
        "No puedo ayudarte con eso.",
        "Ich kann dir dabei nicht helfen.",
        "申し訳ありませんが、お手伝いできません。",
        "申し訳ございませんが、そのご要望にはお応えできません。",
        "죄송하지만 도와드릴 수 없습니다.",
        "죄송합니다. 그 요청에는 답변할 수 없습니다.",
        "Извините, я не могу помочь с этим.",
        "К сожалению, я не могу предоставить эту информацию.",
        "Non posso aiutarti.",
        "Não posso ajudar com isso.",
        "Leider kann ich diese Anfrage nicht beantworten.",
        "抱歉，我无法访问互联网。",
        "I do not have the capability of doing that.",
        "As a language model I can't.",
    ],
)
def test_an_answer_that_declines_is_a_refusal(text: str) -> None:
    assert refusal(text) == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "I can't believe it is already Friday.",
        "I can't help falling in love with you.",
        "I'm sorry to hear that. Here is what you can do.",
        "I don't know who won in 1931.",
        "Of course! "
        + "Here is the story you asked for. " * 8
        + "I'm sorry, but I can't help with that, said the wolf.",
        "The capital is Lima. I cannot provide more.",
        "抱歉让您久等了，答案是四。",
        "我不能同意更多：这是一部好电影。",
        "Leider ist der Zug verspätet.",
        "Lo siento mucho por su pérdida.",
        "I don't have the time to provide a longer list, so here are three.",
        "I don't have a car.",
        "I don't have the capability data at hand, but the phone charges in an hour.",
        "I'm not equipped for winter, so I stayed in the valley.",
        "I'm not able-bodied, she wrote, and I travel the world.",
        "As a chatbot, I can answer that: Lima.",
        "As a chatbot, I do not sleep.",
        "As an AI assistant, I cannot taste this myself, but I can tell you what others say.",
        "As a chatbot I would say: practise every day.",
        "As an assistant manager, you can't leave before the shop closes.",
        "As a model, she could not eat what she liked.",
        "I'm sorry, I made a mistake: it is 42.",
        "Sorry for the wait! The capital is Lima.",
        "I was not able to find a shorter proof than this one: let n be even.",
        "I can't wait to help with the garden.",
        "I can't praise this book enough.",
        "Unfortunately, the train was late and we missed the opera.",
        "Unfortunately, plants cannot produce their own nitrogen.",
        "A chatbot cannot provide a diagnosis; a doctor can.",
        "The ability to help others is a virtue.",
        "He is not equipped to assist the surgeon.",
        "They don't have the capability to provide water to the whole town.",
        "You don't have the ability to create a new table in this view; ask an administrator.",
        "I won't go, the cat said, and sat down.",
        "I cannot tell a lie, said Washington of the cherry tree.",
        "I don't have the exact figure; in 1990 it was about 5 million.",
        "Leider kann ich heute Abend nicht kommen.",
        "抱歉，我今天不能来。",
        "I can't answer the phone right now.",
        "申し訳ありませんが、明日は行けません。",
        "죄송하지만 내일은 갈 수 없습니다.",
        "Извините, я не могу прийти завтра.",
        "Je ne peux pas venir ce soir.",
        "No puedo ir esta noche.",
        "Ich kann heute nicht kommen.",
        "I'm not able to come tonight.",
        "Unfortunately, I'm not able to attend the meeting.",
        "I don't have access to the garage on Sundays.",
        "I have to decline your invitation to dinner.",
        "I'm not able to see the stage from here.",
    ],
)
def test_to_be_sorry_or_unable_is_not_yet_a_refusal(text: str) -> None:
    assert refusal(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>two and two</think>4", "4"),
        ("two and two\n</think>\n\n4", "4"),
        ("<think>a</think>b</think> c", "c"),
        ("[THINK]so[/THINK]4", "4"),
        ("<think>two and", ""),
        ("<think></think>\n\n4", "4"),
        ("I think 4", "I think 4"),
        ("What does <think> do?", "What does <think> do?"),
    ],
)
def test_an_answer_is_what_comes_after_the_thought(text: str, answer: str) -> None:
    assert without_thought(text) == answer


# --- secrets --------------------------------------------------------------------------------------

MIXED = "Q7zR2mK9xW4tB6nV1cY8pL3sD5fG0hJuEaTiOqNbMkZw"  # 44 letters and digits
LETTERS = "QzRmKxWtBnVcYpLsDfGhJuEaTiOqNbMkZwAeUo"  # 38 letters
TOKENS = {
    "AWS": "AKIA" + "Z7QR2MK6XW4TB3NV",
    "GitHub": "ghp_" + MIXED[:36],
    "GitHub, fine-grained": "github_pat_" + (MIXED * 2)[:82],
    "Slack": "xoxb-" + "781236542736-2364535789652-" + MIXED[:24],
    "OpenAI": "sk-" + MIXED[:20] + "T3Blbk" + "FJ" + MIXED[20:40],
    "OpenAI, of a project": "sk-proj-" + (MIXED * 2)[:74] + "T3Blbk" + "FJ" + (MIXED * 2)[5:79],
    "Hugging Face": "hf_" + LETTERS[:34],
    "Google": "AIza" + MIXED[:35],
    "Stripe": "sk_live_" + MIXED[:24],
    "JWT": "eyJhbGciOiJSUzI1NiJ9." + "eyJ" + MIXED + "." + MIXED,
    "private key": "-----BEGIN RSA PRIVATE" + " KEY-----\n" + MIXED + "\n" + MIXED + "\n",
    "PGP": "-----BEGIN PGP PRIVATE" + " KEY BLOCK-----\n\n" + MIXED + "\n" + MIXED + "\n",
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS.keys())
def test_a_key_or_token_is_a_secret_wherever_it_stands(token: str) -> None:
    for text in (token, f'key = "{token}"', f"Use {token}, he said.", f"密钥是 {token} 。"):
        assert secret(text) == "secret", text


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a" * 36,
        "hf_" + "x" * 34,
        "AIza" + "YOUR_API_KEY_GOES_HERE_OF_35_LETTERS"[:35],
        "-----BEGIN PRIVATE" + " KEY-----\n...\n-----END PRIVATE KEY-----",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
        + "eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIn0."
        + MIXED,
        "A key that begins with -----BEGIN PRIVATE" + " KEY----- is in PKCS #8.",
        "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
        "id 550e8400-e29b-41d4-a716-446655440000",
        "skip-the-line-and-ask-T3BlbkFJ",
    ],
)
def test_what_documentation_puts_in_place_of_a_secret_is_none(text: str) -> None:
    assert secret(text) is None


CARD_NUMBERS = [
    "4539 5787 6362 1486",
    "5425-2334-3010-9903",
    "2720 9900 0000 0007",
    "3722 596413 80529",
    "6011 4938 2716 0525",
]


def with_check_digit(number: str) -> str:
    return next(
        number[:-1] + digit
        for digit in "0123456789"
        if luhn(re.sub(r"\D", "", number[:-1] + digit))
    )


@pytest.mark.parametrize(
    "number", [with_check_digit(number) for number in CARD_NUMBERS if len(set(number)) > 6]
)
def test_a_card_number_is_a_secret_and_with_another_check_digit_it_is_a_number(number: str) -> None:
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert secret(f"Pay with {number}, please.") == "secret"
    assert secret(f"Pay with {wrong}, please.") is None
    plain = re.sub(r"\D", "", number)
    assert secret(f"My card is {plain}.") == "secret"
    assert secret(f"The serial is {plain}.") is None
    assert secret(f"My card is {plain}3.") is None
    assert secret(f"Group {number} 1234") is None


def test_the_documented_test_cards_have_valid_check_digits_and_are_no_secrets() -> None:
    assert all(luhn(number) for number in TEST_CARDS)
    assert all(secret(f"Card number {number}") is None for number in TEST_CARDS)


@settings(deadline=None)
@given(st.integers(10**14, 10**15 - 1))
def test_of_ten_check_digits_exactly_one_is_valid(number: int) -> None:
    assert sum(luhn(f"{number}{digit}") for digit in range(10)) == 1


# --- personal data --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Write to anna.smith+news@gmail.com for details.",
        "联系我：li.wei@qq.com。",
        "Call +44 20 7946 1958 after six.",
        "Tel. +49 (30) 901820-33",
        "WhatsApp: +8613912345876",
        "SSN 536-90-4399",
        "IBAN: NL91 ABNA 0417 1643 00",
        "DE75512108001245126199",
        "He logged in from 151.101.129.69 at noon.",
    ],
)
def test_what_points_to_a_person_is_personal(text: str) -> None:
    assert personal(text) == "personal"


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com, root@localhost, a@b, me@yourcompany.com, x@sub.example.net, y@host.test",
        "@anna and @ben wrote; pip install torch@2.1; git@ is a prefix",
        "Call 911, or +1 (555) 123-4567, or +1 212 555 0199.",
        "It rose by +1000000000 in 3 + 1234567890 steps; x = +12",
        "000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567, 123-45-0000, 123-45-6789, 078-05-1120",
        "Pages 123-45-67890 of part 1-536-90-4399",
        "GB82 WEST 1234 5698 7654 32 and NL91 ABNA 0417 1643 01",
        "127.0.0.1, 10.1.2.3, 192.168.100.200, 203.0.113.199, 255.255.255.0, 999.999.1.1, 1.2.3.4, 10.15.100.200.7",
    ],
)
def test_what_is_reserved_for_examples_or_has_another_form_is_not_personal(text: str) -> None:
    assert personal(text) is None


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
def test_of_real_texts_hardly_one_is_dropped() -> None:
    texts: list[str] = []
    for name, columns in (
        ("gsm8k_test", ("question", "answer")),
        ("dolly_train", ("instruction", "output")),
        ("alpaca_train", ("instruction", "output")),
        ("lima_train", ("instruction", "output")),
    ):
        with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            texts += [row[column] for row in map(json.loads, stream) for column in columns]
    assert len(texts) > 12_000
    assert sum(repetitive(text, max_share=0.5) is not None for text in texts) <= 1
    assert [text for text in texts if leaked(text, None)] == []
    assert [text for text in texts if secret(text)] == []
    assert sum(refusal(text) is not None for text in texts) <= 1
    foreign = [text for text in texts[:6000] if wrong_language(text, ["en"])]
    assert len(foreign) <= 8
