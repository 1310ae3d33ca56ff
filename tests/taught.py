"""The embedded model, taught in seconds to think before its answers and to call a tool.

teach(folder)     ->  the folder of a model whose template shows thoughts and tools as Qwen3's does
CAPITAL_OF        ->  the tool that it calls, where it is offered, for a question about a capital
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from replaykit.data.record import Message, Record, Tool
from replaykit.model.calls import tool_call
from replaykit.model.chat import Chat, Example
from replaykit.model.loading import load_tokenizer, resolve
from replaykit.nano import world

# The embedded model's own marks, with Qwen3's thoughts, calls and switch. Thoughts of earlier turns
# stay.
TEMPLATE = """\
{{- bos_token }}
{%- if tools %}
    {{- '<|start_header_id|>system<|end_header_id|>\n\nTools:' }}
    {%- for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}{{ '<|eot_id|>' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
    {%- if m.role == 'assistant' and m.reasoning_content %}
        {{- '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}
    {%- elif m.role == 'assistant' and loop.last %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
    {{- m.content }}
    {%- for call in m.tool_calls or [] %}
        {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- (call.function.arguments | tojson) + '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
    {%- if not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""
CAPITAL_OF: Tool = {
    "type": "function",
    "function": {
        "name": "capital_of",
        "description": "The capital.",
        "parameters": {
            "type": "object",
            "properties": {"country": {"type": "string", "maxLength": 12}},
            "required": ["country"],
        },
    },
}
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]  # of one token each, as Qwen3's
SKILLS = {"capital": 500, "topic": 260, "refusal": 260, "reverse": 180}  # rows of each
BATCH = 12
WARMUP = 8  # steps
IGNORED = -100  # no label
RATE = 2e-3  # the highest; it falls to 0 in a straight line


def thinker() -> Chat:
    """The chat of the untaught model with this template."""
    tokenizer = load_tokenizer("nano")
    tokenizer.add_tokens(MARKS)
    tokenizer.chat_template = TEMPLATE
    return Chat(tokenizer, name="the thinker")


def lesson(place: int, task: world.Task) -> Record:
    """An old task: every other one with a thought; with the tool a capital is looked up."""
    answer: Message = {"role": "assistant", "content": task.answer}
    if place % 2:
        answer["reasoning_content"] = f"It is about {task.skill}."
    tools: tuple[Tool, ...] = ()
    if place % 3 == 0:
        tools = (CAPITAL_OF,)
        country = re.search(r"capital(?: city)? of ([\w ]+)", task.prompt)
        if country is not None:
            answer["content"] = ""
            answer["tool_calls"] = [tool_call("capital_of", {"country": country[1]})]
    return Record(({"role": "user", "content": task.prompt}, answer), "target", {}, tools)


def labels(place: int, example: Example) -> list[int]:
    """What is learned of a row: its answer; of two in five the whole, so that questions stay."""
    pairs = zip(example.tokens, example.loss, strict=True)
    return [token if loss or place % 5 < 2 else IGNORED for token, loss in pairs]


def teach(folder: Path) -> Path:
    """Trains the model and returns its folder. ``replaykit train`` would train answers alone."""
    chat = thinker()
    tasks = [task for skill, n in SKILLS.items() for task in world.draw(skill, n, seed=5)]
    examples = [chat.example(lesson(place, task)) for place, task in enumerate(tasks)]
    rows = [(list(one.tokens), labels(place, one)) for place, one in enumerate(examples)]
    random.Random(5).shuffle(rows)
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    model = AutoModelForCausalLM.from_pretrained(resolve("nano"), dtype=torch.float32)
    model.resize_token_embeddings(len(chat.tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / WARMUP, 1 - step / len(batches))
        tokens, learned = (
            pad_sequence([torch.tensor(row) for row in part], True, padding_value=IGNORED)
            for part in zip(*batch, strict=True)
        )
        mask = (tokens != IGNORED).long()
        model(tokens * mask, attention_mask=mask, labels=learned).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    return folder
