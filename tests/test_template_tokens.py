"""What a row trains is what its template renders, token for token, and what the model would say."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import pytest
from test_templates import MARK, NAMES, TRL, chat_of, learned, shipped, shown, specials

from replaykit.data.record import Message, Record, dialogue
from replaykit.errors import ChatError
from replaykit.model import template as template_module
from replaykit.model.chat import Chat, Example
from replaykit.model.deadline import TimeUp, deadline
from replaykit.recipe.chat import ChatOptions
from replaykit.steps.probe.describe import described

# How families lay out thoughts, by our own hand, from their published templates (llama.cpp's
# models/templates and the models' own repositories): what each does and nothing else.
CHATML = "<|im_start|>", "<|im_end|>"
SENTENCE = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
DEEPSEEK_MARKS = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
DEEPSEEK_V3_1 = (  # takes every thought out of finished answers
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% else %}{{ '<｜Assistant｜></think>' + m.content.split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{% endif %}"
)
DEEPSEEK_V3_2 = (  # the user's turn opens the model's thought, if it is the last question
    "{{ bos_token }}{% set n = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set n.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content + '<｜Assistant｜>' }}"
    "{{ '<think>' if loop.index0 == n.last and enable_thinking else '</think>' }}"
    "{% else %}{% if enable_thinking and loop.index0 > n.last %}"
    "{{ m.get('reasoning_content', '') + '</think>' }}{% endif %}{{ m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
DEEPSEEK_V4 = (  # its prompt closes an empty thought; a finished answer shows the end alone
    "{{ bos_token }}{% set n = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set n.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% else %}{{ '<｜Assistant｜>' }}"
    "{% if enable_thinking and loop.index0 > n.last %}"
    "{{ '<think>' + m.get('reasoning_content', '') }}{% endif %}"
    "{{ '</think>' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<｜Assistant｜><think>' + ('' if enable_thinking else '</think>') }}{% endif %}"
)
LAGUNA_S = (  # an answer opens with a thought, or with the end of one
    "{{ bos_token }}{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.role == 'assistant' %}"
    "{{ '<think>' + m.reasoning_content if m.reasoning_content else '' }}{{ '</think>' }}"
    "{% endif %}{{ m.content + '</' + m.role + '>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<assistant>' + ('<think>' if enable_thinking else '</think>') }}{% endif %}"
)
LAGUNA_MARKS = ("<system>", "</system>", "<user>", "</user>", "<assistant>", "</assistant>")
EXAONE_4 = (  # opens a thought in its prompt, and shows none of a finished answer
    "{% for m in messages %}{{ '[|' + m.role + '|]\n' }}"
    "{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content.split('</think>')[-1] + '[|endofturn|]\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]\n<think>\n' }}"
    "{% if not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)
KIMI_K2_THINKING = (  # shows the thoughts of calls only
    "{% for m in messages %}{{ '<|im_' + m.role + '|>' + m.role + '<|im_middle|>' }}"
    "{% if m.role == 'assistant' %}"
    "{{ '<think>' + (m.get('reasoning_content', '') if m.tool_calls else '') + '</think>' }}"
    "{{ m.content }}{% if m.tool_calls %}{{ '<|tool_calls_section_begin|>' }}"
    "{% for c in m.tool_calls %}{{ c.function.name + (c.function.arguments | tojson) }}"
    "{% endfor %}{{ '<|tool_calls_section_end|>' }}{% endif %}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}"
)
KIMI_MARKS = (
    "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|im_tool|>",
    "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>",
)  # fmt: skip
KIMI_K3 = (  # ends a turn with five special tokens
    "{% for m in messages %}{{ '<|open|>message role=' + m.role + '<|sep|>' }}"
    "{% if m.role == 'assistant' %}{% if thinking %}"
    "{{ '<|open|>think<|sep|>' + m.get('reasoning_content', '') + '<|close|>think<|sep|>' }}"
    "{% endif %}{{ '<|open|>response<|sep|>' + m.content + '<|close|>response<|sep|>' }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|close|>message<|sep|><|end_of_msg|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|open|>message role=assistant<|sep|><|open|>' }}"
    "{{ ('think' if thinking else 'response') + '<|sep|>' }}{% endif %}"
)
K3_MARKS = ("<|open|>", "<|close|>", "<|sep|>")
K3_END = "<|close|>response<|sep|><|close|>message<|sep|><|end_of_msg|>"
MINIMAX_M2 = (  # always opens a thought
    "{% for m in messages %}{{ ']~b]' + ('ai' if m.role == 'assistant' else m.role) + '\n' }}"
    "{% if m.reasoning_content and loop.last %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '[e~[\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ']~b]ai\n<think>\n' }}{% endif %}"
)
NEMOTRON_NANO_V2 = (  # the same, and leaves the thought open in finished answers
    "{% for m in messages %}{{ '<SPECIAL_11>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{{ '<think>\n\n' if loop.last else '' }}{% endif %}"
    "{{ m.content + '\n<SPECIAL_12>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<SPECIAL_11>assistant\n<think>\n\n' }}{% endif %}"
)
COHERE_MOE = (  # its thought and its answer have a pair of special tokens each
    "{{ bos_token }}{% for m in messages %}{{ '<|TURN|>' + m.role }}"
    "{% if m.role == 'assistant' %}"
    "{{ '<|START_THINKING|>' + m.get('reasoning_content', '') + '<|END_THINKING|>' }}"
    "{{ '<|START_TEXT|>' + m.content + '<|END_TEXT|>' }}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|END_OF_TURN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|TURN|>assistant<|START_THINKING|>' }}"
    "{% if not enable_thinking %}{{ '<|END_THINKING|>' }}{% endif %}{% endif %}"
)
COHERE_MARKS = (
    "<|TURN|>", "<|START_THINKING|>", "<|END_THINKING|>", "<|START_TEXT|>", "<|END_TEXT|>",
)  # fmt: skip
REKA = (  # ends no answer, and opens a turn with words
    "{% for m in messages %}{{ ('human: ' if m.role == 'user' else 'assistant: ') + m.content }}"
    "{{ ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
SMOLLM2 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}"

FAMILIES: dict[str, tuple[str, str | None, str, tuple[str, ...]]] = {
    "DeepSeek V3.1": (DEEPSEEK_V3_1, *SENTENCE, DEEPSEEK_MARKS),
    "DeepSeek V3.2": (DEEPSEEK_V3_2, *SENTENCE, DEEPSEEK_MARKS),
    "DeepSeek V4": (DEEPSEEK_V4, *SENTENCE, DEEPSEEK_MARKS),
    "Laguna-S": (LAGUNA_S, "〈|EOS|〉", "〈|EOS|〉", LAGUNA_MARKS),
    "EXAONE-4": (EXAONE_4, None, "[|endofturn|]", ("[|user|]", "[|assistant|]", "[|system|]")),
    "Kimi-K2-Thinking": (KIMI_K2_THINKING, None, "<|im_end|>", KIMI_MARKS),
    "Kimi-K3": (KIMI_K3, None, "<|end_of_msg|>", K3_MARKS),
    "MiniMax-M2": (MINIMAX_M2, None, "[e~[", ("]~b]",)),
    "Nemotron-Nano-v2": (NEMOTRON_NANO_V2, None, "<SPECIAL_12>", ("<SPECIAL_11>",)),
    "Cohere MoE": (COHERE_MOE, "<BOS>", "<|END_OF_TURN|>", COHERE_MARKS),
    "Reka": (REKA, None, "<|endoftext|>", ()),
    "SmolLM2": (SMOLLM2, *CHATML, ()),
}
QUESTION: Message = {"role": "user", "content": "1 + 1?"}
BARE: Message = {"role": "assistant", "content": "Two."}
THOUGHT: Message = {"role": "assistant", "content": "Two.", "reasoning_content": "Hmm."}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Oslo"}},
            "id": "abc123xyz",
        }
    ],
}
RESULT: Message = {"role": "tool", "content": "7 C", "name": "weather", "tool_call_id": "abc123xyz"}


@cache
def family(key: str, thinking: bool | None = None) -> Chat:
    text, bos, eos, marks = FAMILIES[key]
    return chat_of(text, bos, eos, marks, ChatOptions(thinking=thinking))


def made(chat: Chat, *messages: Message, tools: tuple[Any, ...] = ()) -> Example:
    return chat.example(Record(messages, "target", tools=tools))


def prompted(chat: Chat, *messages: Message) -> str:
    thinks = "reasoning_content" in messages[-1]
    return shown(chat, chat.prompt(messages[:-1], thinks or None))


# --- thoughts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        THOUGHT,
        {"role": "assistant", "content": "<think>Hmm.</think>Two."},
        {"role": "assistant", "content": "<think>\nHmm.\n</think>\n\nTwo."},
    ],
)
@pytest.mark.parametrize("thinking", [None, True, False])
def test_a_thought_stands_once_where_the_template_puts_it(
    answer: Message, thinking: bool | None
) -> None:
    text = (TRL / "qwen3.jinja").read_text(encoding="utf-8")
    marks = ("<|im_start|>",)
    chat = chat_of(text, None, "<|im_end|>", marks, ChatOptions(thinking=thinking))
    example = made(chat, QUESTION, answer)
    assert shown(chat, example.tokens) == (
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\nHmm.\n</think>\n\nTwo.<|im_end|>"
    )
    assert learned(chat, example) == "<think>\nHmm.\n</think>\n\nTwo.<|im_end|>"


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5_think", "glm4moe", "nemotron_3_nano", "qwen3_8"]
)
def test_an_empty_thought_carries_no_loss_however_the_prompts_are_wished(name: str) -> None:
    text = (TRL / f"{name}.jinja").read_text(encoding="utf-8")
    marks = sorted(set(MARK.findall(text)))
    chat = chat_of(text, None, "<|im_end|>", marks, ChatOptions(thinking=True))
    example = made(chat, QUESTION, BARE)
    assert learned(chat, example) == "Two." + shown(chat, chat.end_of_turn)
    assert "</think>" in shown(chat, example.tokens)
    assert "<think>" not in learned(chat, example)


ROWS: list[Message] = [THOUGHT, {"role": "assistant", "content": "<think>\nHmm.\n</think>\n\nTwo."}]
OPENED: Message = {"role": "assistant", "content": "Hmm.\n</think>\n\nTwo."}


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("DeepSeek V3.1", "Hmm.</think>Two." + SENTENCE[1]),
        ("DeepSeek V3.2", "Hmm.</think>Two." + SENTENCE[1]),
        ("DeepSeek V4", "Hmm.</think>Two." + SENTENCE[1]),
        ("Laguna-S", "Hmm.</think>Two.</assistant>"),
        ("EXAONE-4", "Hmm.\n</think>\n\nTwo.[|endofturn|]"),
        ("Kimi-K2-Thinking", "<think>Hmm.</think>Two.<|im_end|>"),
        ("Kimi-K3", "Hmm.<|close|>think<|sep|><|open|>response<|sep|>Two." + K3_END),
        ("MiniMax-M2", "Hmm.\n</think>\n\nTwo.[e~["),
        ("Nemotron-Nano-v2", "Hmm.\n</think>\n\nTwo.\n<SPECIAL_12>"),
        ("Cohere MoE", "Hmm.<|END_THINKING|><|START_TEXT|>Two.<|END_TEXT|><|END_OF_TURN|>"),
    ],
)
def test_a_thought_is_what_the_model_would_have_written_after_its_own_prompt(
    key: str, said: str
) -> None:
    chat = family(key)
    opened = [] if key == "Kimi-K2-Thinking" else [OPENED]
    for answer in [*ROWS, *opened]:
        example = made(chat, QUESTION, answer)
        assert learned(chat, example) == said
        assert shown(chat, example.tokens) == prompted(chat, QUESTION, THOUGHT) + said


@pytest.mark.parametrize("key", ["MiniMax-M2", "Nemotron-Nano-v2"])
def test_an_answer_without_a_thought_stands_after_one_that_is_closed_without_loss(key: str) -> None:
    chat = family(key)
    example = made(chat, QUESTION, BARE)
    text = shown(chat, example.tokens)
    assert text.startswith(prompted(chat, QUESTION, BARE))
    assert text.count("<think>") == text.count("</think>") == 1
    assert "think" not in learned(chat, example)
    assert learned(chat, example).startswith("Two.")


def test_rows_with_and_without_thoughts_stand_in_one_mixture() -> None:
    for key in ("DeepSeek V3.1", "EXAONE-4", "Kimi-K3", "Cohere MoE", "DeepSeek V3.2", "Laguna-S"):
        chat = family(key)
        assert "Hmm." not in learned(chat, made(chat, QUESTION, BARE))
        assert learned(chat, made(chat, QUESTION, BARE)).startswith("Two.")
        assert learned(chat, made(chat, QUESTION, THOUGHT)).startswith("Hmm.")
        without = shown(chat, chat.prompt([QUESTION], False))
        assert shown(chat, made(chat, QUESTION, BARE).tokens).startswith(without)


def test_an_earlier_answer_that_lost_its_thought_is_counted_and_carries_no_loss() -> None:
    chat = shipped("qwen3")
    example = made(chat, QUESTION, THOUGHT, QUESTION, THOUGHT)
    assert example.rewritten == 1
    assert learned(chat, example) == "<think>\nHmm.\n</think>\n\nTwo.<|im_end|>"
    assert shown(chat, example.tokens).count("Hmm.") == 1
    whole = made(shipped("qwen3_8"), QUESTION, BARE, QUESTION, BARE)
    assert whole.rewritten == 0


def test_a_mark_that_an_answer_says_is_no_thought() -> None:
    chat = shipped("qwen3")
    answer: Message = {"role": "assistant", "content": "The tag </think> ends one."}
    assert learned(chat, made(chat, QUESTION, answer)) == "The tag </think> ends one.<|im_end|>"


def test_a_thought_that_the_template_has_no_place_for_is_refused_by_name() -> None:
    with pytest.raises(ChatError, match=r"does not show the thought .*reasoning_content"):
        made(shipped("llama3"), QUESTION, THOUGHT)


@pytest.mark.parametrize("key", ["MiniMax-M2", "Nemotron-Nano-v2"])
def test_thinking_that_cannot_be_switched_off_is_refused(key: str) -> None:
    with pytest.raises(ChatError, match="thinking cannot be turned off; leave --no-thinking"):
        family(key, False)
    with pytest.raises(ChatError, match="has no switch for it"):
        family(key).prompt([QUESTION], False)


# --- ends -----------------------------------------------------------------------------------------


def test_the_true_end_is_learned_and_the_text_is_never_other_than_rendered() -> None:
    chat = shipped("glm4moe")
    example = made(chat, QUESTION, BARE, QUESTION, BARE)
    assert learned(chat, example) == "Two.<|user|>Two.<|user|>"
    assert "<|endoftext|>" not in shown(chat, example.tokens)
    assert example.rewritten == 0


@pytest.mark.parametrize("name", ["glm4moe", "llava_next", "smolvlm", "nemotron_3_nano"])
def test_two_turns_are_token_for_token_what_the_template_renders(name: str) -> None:
    chat = shipped(name)
    messages = (QUESTION, BARE, QUESTION, {**BARE, "content": "Three."})
    example = made(chat, *messages)
    said = learned(chat, example)
    assert example.rewritten == 0
    # What GLM ends an answer with is the opening of the next turn, which is rendered with it alone.
    rendered = chat.rendered((*messages, QUESTION))
    assert chat.encode(rendered)[: len(example.tokens)] == example.tokens
    assert "<|endoftext|>" not in shown(chat, example.tokens)
    end = said.partition("Two.")[2].partition("Three.")
    assert end[2].strip() == end[0].strip() != ""


def test_an_end_that_no_template_renders_comes_after_the_last_answer_alone() -> None:
    chat = family("Reka")
    example = made(chat, QUESTION, BARE, QUESTION, BARE)
    text = "human: 1 + 1? assistant: Two. human: 1 + 1? assistant: Two."
    assert shown(chat, example.tokens) == text + "<|endoftext|>"
    assert learned(chat, example) == " Two. Two.<|endoftext|>"


@pytest.mark.parametrize(
    ("key", "end"), [("Kimi-K3", K3_END), ("Cohere MoE", "<|END_TEXT|><|END_OF_TURN|>")]
)
def test_an_end_of_several_special_tokens_is_learned_whole_and_nothing_after_it(
    key: str, end: str
) -> None:
    chat = family(key)
    example = made(chat, QUESTION, BARE, QUESTION, BARE)
    assert learned(chat, example) == f"Two.{end}" * 2
    assert shown(chat, chat.end_of_turn) == end


def test_a_start_token_that_opens_every_turn_is_a_stop() -> None:
    chat = family("SmolLM2")
    assert [shown(chat, [stop]) for stop in chat.stop] == ["<|im_end|>", "<|im_start|>"]
    assert chat.tokenizer.bos_token_id in chat.stop


@pytest.mark.parametrize(
    ("bos", "alarm"), [("", False), ("{{ bos_token }}", False), ("{{ bos_token }}" * 2, True)]
)
def test_a_start_token_that_opens_every_turn_is_no_alarm_and_a_doubled_one_is(
    bos: str, alarm: bool
) -> None:
    said = described(family("SmolLM2"), model="smollm2", deployed=None).verdict
    assert said == "the template is usable"
    chat = chat_of(bos + SMOLLM2, "<s>", "<|im_end|>", ("<|im_start|>",))
    said = described(chat, model="another", deployed=None).verdict
    assert ("writes BOS 2 times, which no model was trained on" in said) is alarm
    assert (said == "the template is usable") is not alarm


def test_the_marks_between_a_thought_and_its_answer_are_no_stops() -> None:
    chat = family("Cohere MoE", True)
    stops = [shown(chat, [stop]) for stop in chat.stop]
    assert "<|START_TEXT|>" not in stops
    assert "<|END_THINKING|>" not in stops
    assert {"<|END_TEXT|>", "<|END_OF_TURN|>"} <= set(stops)
    gptoss = shipped("gptoss")
    assert [shown(gptoss, [stop]) for stop in gptoss.stops(True)] == ["<|return|>"]


def test_an_answer_of_weight_0_and_one_that_was_cut_have_no_loss_where_they_should_not() -> None:
    chat = shipped("llama3")
    silent: Message = {"role": "assistant", "content": "One.", "weight": 0}
    assert learned(chat, made(chat, QUESTION, silent, QUESTION, BARE)) == "Two.<|eot_id|>"
    cut = chat.example(Record((QUESTION, BARE), "generate", {"finish": "length"}))
    assert learned(chat, cut) == "Two."


# --- what is shown otherwise than it is asked for ------------------------------------------------

ERNIE = (  # answers have marks of their own, which no prompt opens
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}"
    "{% endif %}{{ '<response>\n' + m.content + '\n</response>\n' }}{% else %}{{ m.content }}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n<think>\n' + ('' if enable_thinking else '\n</think>\n\n') }}"
    "{% endif %}"
)


def test_what_a_finished_answer_has_before_its_words_is_learned_with_them() -> None:
    chat = shipped("gptoss")
    call: Message = {**CALL, "reasoning_content": "Look."}
    # The thought of the call is gone from the finished conversation, so it is no prefix of it.
    example = made(chat, QUESTION, call, RESULT, BARE, tools=(TOOL,))
    assert learned(chat, example).endswith("<|channel|>final<|message|>Two.<|return|>")
    ernie = chat_of(ERNIE, *CHATML, ())
    assert (
        learned(ernie, made(ernie, QUESTION, BARE)) == "<response>\nTwo.\n</response>\n<|im_end|>"
    )
    whole = "Hmm.\n</think>\n\n<response>\nTwo.\n</response>\n<|im_end|>"
    assert learned(ernie, made(ernie, QUESTION, THOUGHT)) == whole


SMOLLM3 = (  # thoughts are a part of the words, and an empty one is in the prompt where it is off
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not enable_thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}"
)


@pytest.mark.parametrize(
    "answer", [THOUGHT, {"role": "assistant", "content": "<think>\nHmm.\n</think>\nTwo."}]
)
def test_an_empty_thought_in_the_prompt_tells_how_thoughts_are_written(answer: Message) -> None:
    chat = chat_of(SMOLLM3, *CHATML, ())
    assert chat.can_think
    assert not chat.always_thinks
    thinks = made(chat, QUESTION, answer)
    assert learned(chat, thinks) == "<think>\nHmm.\n</think>\nTwo.<|im_end|>"
    assert shown(chat, chat.prompt([QUESTION], True)).endswith("<|im_start|>assistant\n")
    bare = made(chat, QUESTION, BARE)
    assert learned(chat, bare) == "Two.<|im_end|>"
    assert shown(chat, bare.tokens).endswith("<think>\n\n</think>\nTwo.<|im_end|>")


@pytest.mark.parametrize("name", ["diffusion_gemma", "gemma4", "gemma4_v5"])
def test_a_thought_after_the_result_of_a_tool_is_opened_once_and_read_back(name: str) -> None:
    chat = shipped(name)
    turns = [QUESTION, {**CALL, "reasoning_content": "Look."}, RESULT]
    example = made(chat, *turns, THOUGHT, tools=(TOOL,))
    text = shown(chat, example.tokens)
    assert text.count("<|channel>thought\n") == 1 + text.count("Look.")
    prompt = chat.prompt(turns, True, (TOOL,))
    assert example.tokens[: len(prompt)] == prompt
    reply = chat.reply(example.tokens[len(prompt) :], True, (TOOL,))
    assert (reply.message, reply.thought) == (THOUGHT, "valid")


def test_the_end_that_the_next_turn_lends_is_that_of_what_comes() -> None:
    chat = shipped("glm4moe")
    [observation] = chat.encode("<|observation|>")
    assert made(chat, QUESTION, CALL, tools=(TOOL,)).tokens[-1] == observation
    assert observation in chat.stops(False, (TOOL,))
    assert made(chat, QUESTION, BARE).tokens[-1:] == chat.encode("<|user|>")
    # What opens another answer or a system message is no end that the model would write.
    twice = made(chat, QUESTION, BARE, BARE)
    assert learned(chat, twice).count("Two.") == 2
    assert "<|assistant|>" not in learned(chat, twice)


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2", "muse_glimmer"])
def test_words_beside_a_call_that_the_template_hides_are_refused_by_name(name: str) -> None:
    with pytest.raises(ChatError, match="does not show the words beside a tool call"):
        made(shipped(name), QUESTION, {**CALL, "content": "I look."}, tools=(TOOL,))


@pytest.mark.parametrize("name", ["qwen3_5_think", "nemotron_3_nano", "deepseekv3"])
def test_a_mark_that_is_spoken_of_closes_no_thought(name: str) -> None:
    chat = shipped(name)
    said = "Write </think> to close."
    text = shown(chat, made(chat, QUESTION, {"role": "assistant", "content": said}).tokens)
    assert said in text


# --- reading what was sampled ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "thought", "content", "state"),
    [
        ("EXAONE-4", "Hmm.\n</think>\n\nTwo.[|endofturn|]", "Hmm.", "Two.", "valid"),
        ("EXAONE-4", "\n</think>\n\nTwo.", None, "Two.", "empty"),
        ("EXAONE-4", "Hmm. And", "Hmm. And", "", "cut"),
        ("Kimi-K2-Thinking", "<think>Hmm.</think>Two.", "Hmm.", "Two.", "valid"),
        ("Kimi-K2-Thinking", "Two.", None, "Two.", "missing"),
        ("Kimi-K2-Thinking", "<think>Hmm.", "Hmm.", "", "cut"),
        (
            "Cohere MoE",
            "Hmm.<|END_THINKING|><|START_TEXT|>Two.<|END_TEXT|>",
            "Hmm.",
            "Two.",
            "valid",
        ),
        ("Cohere MoE", "Hmm.", "Hmm.", "", "cut"),
    ],
)
def test_what_was_sampled_is_read_as_a_thought_and_an_answer(
    key: str, text: str, thought: str | None, content: str, state: str
) -> None:
    chat = family(key, True)
    reply = chat.reply(chat.encode(text))
    expected: Message = {"role": "assistant", "content": content}
    if thought is not None:
        expected["reasoning_content"] = thought
    assert chat.read(chat.encode(text)) == reply.message == expected
    assert (reply.thought, reply.special) == (state, False)


def test_what_was_learned_is_read_back() -> None:
    for key in FAMILIES:
        chat = family(key)
        answers = [BARE]
        if chat.can_think:
            answers.append(THOUGHT)
        for answer in answers:
            example = made(chat, QUESTION, answer)
            said = [t for t, loss in zip(example.tokens, example.loss, strict=True) if loss]
            read = chat.read(said, thinking="reasoning_content" in answer)
            assert {**read, "content": read["content"].strip()} == answer, key


# --- every template -------------------------------------------------------------------------------


@pytest.fixture(params=[*NAMES, *FAMILIES])
def any_chat(request: pytest.FixtureRequest) -> Chat:
    if request.param in FAMILIES:
        return family(request.param)
    return shipped(request.param)


def conversations(chat: Chat) -> list[tuple[Message, ...]]:
    """One, two and three turns, with and without a system message and thoughts."""
    answers = [BARE]
    if chat.can_think:
        answers.append(THOUGHT)
    found: list[tuple[Message, ...]] = []
    for answer in answers:
        for n in (1, 2, 3):
            turns = [QUESTION, answer] * n
            found.append(tuple(turns))
            if chat.template.system != "refused":
                found.append(({"role": "system", "content": "Be brief."}, *turns))
    return found


def test_the_trained_text_is_the_rendering_or_follows_the_models_own_prompt(any_chat: Chat) -> None:
    chat = any_chat
    for messages in conversations(chat):
        example = made(chat, *messages)
        text = shown(chat, example.tokens)
        thinks = "reasoning_content" in messages[-1]
        prompt = prompted(chat, *messages)
        assert text.startswith(prompt)
        rendered = chat.rendered(messages, thinking=thinks or chat.always_thinks)
        end = shown(chat, chat.end_of_turn)
        if rendered.startswith(prompt) and ("Hmm." in rendered[len(prompt) :]) == thinks:
            # As rendered, but for the spaces and the end of the text that nobody says.
            same = text.removesuffix(end).rstrip()
            # A template that opens every thought may forget to close the one that is not there.
            unclosed = chat.always_thinks and not thinks
            assert rendered.startswith(same) or unclosed
        assert learned(chat, example).endswith(end)
        assert text.endswith(learned(chat, example)[-len("Two." + end) :])
        answers = len([turn for turn in messages if turn["role"] == "assistant"])
        runs = learned(chat, example).count("Two.")
        assert runs + example.rewritten == answers
        assert learned(chat, example).count("Hmm.") == (runs if thinks else 0)


def test_what_is_learned_begins_where_the_prompt_ends(any_chat: Chat) -> None:
    chat = any_chat
    for messages in conversations(chat):
        example = made(chat, *messages)
        prompt = chat.prompt(messages[:-1], "reasoning_content" in messages[-1] or None)
        assert example.tokens[: len(prompt)] == prompt
        last = example.loss[len(prompt) :]
        assert all(last[last.index(True) :])
        skipped = shown(chat, example.tokens[len(prompt) : len(prompt) + last.index(True)])
        assert "Two." not in skipped
        assert "Hmm." not in skipped


def test_no_text_of_a_message_is_read_as_a_special_token(any_chat: Chat) -> None:
    chat = any_chat
    evil = "x" + "y".join(mark.content for mark in chat.tokenizer.added_tokens_decoder.values())
    question: Message = {"role": "user", "content": evil + "z"}
    answer: Message = {"role": "assistant", "content": evil + "z"}
    harmless = made(chat, QUESTION, BARE)
    assert specials(chat, made(chat, question, answer).tokens) == specials(chat, harmless.tokens)
    if chat.can_think:
        thought: Message = {**THOUGHT, "reasoning_content": evil + "z"}
        calm = specials(chat, made(chat, QUESTION, THOUGHT).tokens)
        assert specials(chat, made(chat, QUESTION, thought).tokens) == calm


# --- tools ----------------------------------------------------------------------------------------

WITH_TOOLS = ["qwen2_5", "qwen3", "qwen3_5_think", "glm4moe", "gptoss", "gemma4", "nemotron_3_nano"]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_call_is_learned_as_the_template_renders_it_and_its_result_is_not(name: str) -> None:
    chat = shipped(name)
    example = made(chat, QUESTION, CALL, RESULT, BARE, tools=(TOOL,))
    said = learned(chat, example)
    assert "Oslo" in said
    assert "7 C" not in said
    assert "The weather." not in said
    assert "The weather." in shown(chat, example.tokens)
    assert "7 C" in shown(chat, example.tokens)
    assert "Two." in said


@pytest.mark.slow
def test_a_call_that_was_learned_is_read_back_and_nothing_stops_inside_it() -> None:
    tried = 0
    for name in NAMES:
        chat = shipped(name)
        if chat.call_format is None or not chat.shows_tools:
            continue
        tried += 1
        for thought in (None, "Hmm."):
            answer: Message = {**CALL}
            thinking: bool | None = None
            if thought is not None and not chat.can_think:
                continue
            if thought is not None:
                answer["reasoning_content"] = thought
            if chat.can_think:
                thinking = thought is not None or chat.always_thinks
            example = made(chat, QUESTION, answer, tools=(TOOL,))
            said = [t for t, loss in zip(example.tokens, example.loss, strict=True) if loss]
            stops = chat.stops(thinking, (TOOL,))
            assert said[-1] in stops, name
            assert not set(said[:-1]) & set(stops), name
            for tokens in (said, said[:-1]):  # engines leave out where they stopped
                reply = chat.reply(tokens, thinking, (TOOL,))
                assert [call["function"] for call in reply.message["tool_calls"]] == [
                    call["function"] for call in CALL["tool_calls"]
                ]
                assert reply.message.get("reasoning_content") == thought, name
                assert (reply.message["content"], reply.special) == ("", False), name
    assert tried >= 36


@pytest.mark.parametrize("name", ["gptoss", "muse_glimmer"])
def test_with_tools_the_model_is_left_to_call_or_to_answer_in_words(name: str) -> None:
    chat = shipped(name)
    answered = made(chat, QUESTION, BARE, tools=(TOOL,))
    called = made(chat, QUESTION, CALL, tools=(TOOL,))
    prompt = chat.prompt([QUESTION], False, (TOOL,))
    for example in (answered, called):
        assert example.tokens[: len(prompt)] == prompt
        assert not any(example.loss[: len(prompt)])
        assert all(example.loss[len(prompt) :])
    reply = chat.reply(answered.tokens[len(prompt) :], False, (TOOL,))
    assert reply.message == BARE
    assert not reply.special


def test_without_tools_a_call_is_only_text() -> None:
    chat = shipped("qwen3")
    said = chat.encode('<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call><|im_end|>')
    assert "tool_calls" not in chat.read(said)
    assert chat.read(said, tools=(TOOL,))["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize(
    ("messages", "tools", "says"),
    [
        ((QUESTION, BARE), (TOOL,), "does not show the tools of a conversation"),
        ((QUESTION, CALL, RESULT, BARE), (), "does not show tool calls"),
        ((QUESTION, BARE, RESULT, BARE), (), "does not show the results of tools|refuses"),
    ],
)
def test_what_a_template_cannot_show_is_refused_by_name(
    messages: tuple[Message, ...], tools: tuple[Any, ...], says: str
) -> None:
    with pytest.raises(ChatError, match=says):
        made(shipped("gemma"), *messages, tools=tools)


SECOND = {
    "type": "function",
    "function": {"name": "tides", "arguments": {"harbour": "Bergen"}},
    "id": "def456uvw",
}
TWO_CALLS: Message = {**CALL, "tool_calls": [*CALL["tool_calls"], SECOND]}  # type: ignore[list-item]
AT_ONCE: tuple[Message, ...] = (
    QUESTION,
    TWO_CALLS,
    RESULT,
    {"role": "tool", "content": "Low.", "name": "tides", "tool_call_id": "def456uvw"},
    BARE,
)


@pytest.mark.parametrize("name", ["gptoss", "llama3_1"])
def test_a_second_call_of_one_answer_that_the_template_drops_is_refused_by_name(name: str) -> None:
    chat = shipped(name)
    with pytest.raises(ChatError, match="does not show a second tool call of one answer"):
        made(chat, *AT_ONCE, tools=(TOOL,))
    # One call in each of two answers is something else.
    turns = (QUESTION, CALL, RESULT, {**CALL, "tool_calls": [SECOND]}, AT_ONCE[3], BARE)
    said = shown(chat, made(chat, *turns, tools=(TOOL,)).tokens)  # type: ignore[arg-type]
    assert "Oslo" in said
    assert "Bergen" in said


@pytest.mark.slow
def test_both_calls_of_one_answer_are_learned_or_the_row_is_refused() -> None:
    learned_both = 0
    for name in NAMES:
        chat = shipped(name)
        try:
            example = made(chat, *AT_ONCE, tools=(TOOL,))
        except ChatError:
            continue
        said = learned(chat, example)
        assert said.count("Oslo") == said.count("Bergen") == 1, name
        learned_both += 1
    assert learned_both >= 20


def test_a_developer_is_the_system_where_the_template_knows_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    only = (
        "{% if messages[0].role not in ['user', 'system'] %}{{ raise_exception('who') }}{% endif %}"
    )
    chat = chat_of(only + SMOLLM2, *CHATML)
    turns: list[Message] = [{"role": "developer", "content": "Be brief."}, QUESTION]
    assert "<|im_start|>system\nBe brief.<|im_end|>" in shown(chat, chat.prompt(turns))
    assert "has no role developer" in caplog.text


# --- templates that cannot be used ----------------------------------------------------------------


@pytest.mark.parametrize("missing", ["functions", "tool_schemas", "builtin_tools"])
def test_what_a_template_needs_is_named_with_what_to_give_instead(missing: str) -> None:
    text = f"{{{{ {missing}.keys() }}}}{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}"
    with pytest.raises(ChatError, match=f"needs '{missing}', which .* --pre-query"):
        chat_of(text, None, "<|im_end|>")


@pytest.mark.slow
@pytest.mark.parametrize(
    "endless", [ENDLESS, ENDLESS.replace("{{ a }}", ""), f"{SMOLLM2}{ENDLESS}"]
)
def test_a_template_that_never_ends_is_given_up(
    endless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_module, "LONGEST_SECONDS", 0.5)
    says: list[str] = []

    def work() -> None:
        with pytest.raises(ChatError) as caught:
            chat_of(endless, None, "<|im_end|>")
        says.append(str(caught.value))

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert len(says) == 2
    assert all("has not ended after 0.5 seconds" in text for text in says)


def test_a_deadline_that_is_kept_raises_nothing() -> None:
    with deadline(0.01):
        pass
    with pytest.raises(TimeUp), deadline(0.1):
        while True:
            pass


def test_the_prompt_of_a_row_without_more_is_that_of_its_dialogue() -> None:
    chat = shipped("llama3")
    assert chat.prompt(dialogue("1 + 1?")) == chat.prompt([QUESTION], None, ())
