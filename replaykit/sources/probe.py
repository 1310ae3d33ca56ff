"""What a model's chat template gives, and what the model writes from the bare pre-query: a look
before a long run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replaykit.chat import Chat
from replaykit.engines import Engine, Request, Sampling
from replaykit.runs import Watch, derive_seed, unwatched

MAX_TOKENS = 512  # of a sample


def describe(chat: Chat, *, deployed: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Everything that was derived from the tokenizer, as text and as token ids; it needs no
    weights.

    ``deployed`` is the sampling that the model's generation_config names, to be shown beside it.
    """
    stop = {"text": [chat.decode([i], special=True) for i in chat.stop], "ids": list(chat.stop)}
    if chat.plain:
        start = {"text": chat.decode(chat.start, special=True), "ids": list(chat.start)}
        verdict = (
            "a base model: it has no chat template, so its replay is text that begins as below"
        )
        return {
            "template": {"start": start},
            "stop": stop,
            "defaults": deployed,
            "verdict": verdict,
        }
    t = chat.template
    bos = chat.tokenizer.bos_token_id
    parts = {
        name: getattr(t, name)
        for name in ("pre_query", "end_of_question", "answer_header", "end_of_answer", "joint")
    }
    count = 0 if bos is None else chat.pre_query.count(bos)
    return {
        "template": {
            name: None if text is None else {"text": text, "ids": list(chat.encode(text))}
            for name, text in parts.items()
        },
        "stop": stop,
        "system": t.system,
        "default_system": t.default_system,
        "date": t.date,
        "bos": count,
        "thinking": t.thought,
        "defaults": deployed,
        "verdict": _verdict(chat, count),
    }


def draw(
    engine: Engine, chat: Chat, n: int, *, seed: int, watch: Watch = unwatched
) -> dict[str, Any]:
    """``n`` questions as the model writes them, and a verdict that says how many came to an end by
    themselves.
    """
    sampling = Sampling(max_tokens=MAX_TOKENS, stop=chat.stop)
    start = chat.start if chat.plain else chat.pre_query
    drawn: dict[int, str] = {}
    ended = 0
    for completion in engine.complete(
        Request(k, start, sampling, derive_seed(seed, "probe", k)) for k in range(n)
    ):
        drawn[completion.row] = chat.decode(completion.tokens).strip()
        ended += completion.finish_reason == "stop"
        watch("samples", len(drawn), n)
    what = "texts" if chat.plain else "questions"
    said = (
        f"{ended} of {n} {what} came to an end by themselves, {len(set(drawn.values()))} of "
        f"them different"
    )
    verdict = (
        describe(chat)["verdict"]
        if not chat.plain
        else "a base model: its replay is text that begins with BOS alone"
    )
    return {"samples": [drawn[k] for k in sorted(drawn)], "verdict": f"{verdict}; {said}"}


def _verdict(chat: Chat, bos: int) -> str:
    t = chat.template
    found = ["the template is usable"]
    if bos > 1:
        found = [f"the template writes BOS {bos} times, which no model was trained on"]
    if t.joint is None:
        found.append("one question only (it refuses a second)")
    if t.system == "refused":
        found.append("no system prompts")
    elif t.system == "ignored":
        found.append("system prompts have no effect")
    elif t.system != "own block":
        found.append(
            "a system prompt stands in the user's turn, so the model may go on with it instead of "
            "asking"
        )
    if t.thinking:
        found.append("the model thinks before it answers, and its thoughts are part of the answer")
    return "; ".join(found)
