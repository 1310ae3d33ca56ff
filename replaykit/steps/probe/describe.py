"""What a model's chat template gives, and what the model writes from the bare pre-query: a look
before a long run.
"""

from __future__ import annotations

from collections.abc import Mapping

from replaykit.data.record import dialogue
from replaykit.engines import Engine, Request, Sampling
from replaykit.hashing import derive_seed
from replaykit.model.chat import Chat
from replaykit.runs import Watch, unwatched
from replaykit.steps.probe.result import Part, ProbeResult, Stops

MAX_TOKENS = 512  # of a sample
ASKED = "What is 2 + 2?"


def described(chat: Chat, *, model: str, deployed: Mapping[str, float] | None) -> ProbeResult:
    """Everything that was derived from the tokenizer, as text and as token ids; it needs no
    weights.

    ``deployed`` is the sampling that the model's generation_config names.
    """
    stop = Stops(text=[chat.decode([i], special=True) for i in chat.stop], ids=list(chat.stop))
    defaults: dict[str, float | None] | None = None if deployed is None else dict(deployed)
    if chat.plain:
        start = Part(text=chat.decode(chat.start, special=True), ids=list(chat.start))
        return ProbeResult(
            model=model,
            template={"start": start},
            stop=stop,
            defaults=defaults,
            verdict="a base model: it has no chat template, so its replay is text that begins as "
            "below",
        )
    template = chat.template
    parts = {
        "pre_query": template.pre_query,
        "end_of_question": template.end_of_question,
        "answer_header": template.answer_header,
        "end_of_answer": template.end_of_answer,
        "joint": template.joint,
    }
    bos = chat.tokenizer.bos_token_id
    bos_count = 0 if bos is None else chat.pre_query.count(bos)
    return ProbeResult(
        model=model,
        template={name: _part(chat, text) for name, text in parts.items()},
        stop=stop,
        system=template.system,
        default_system=template.default_system,
        date=template.date,
        bos=bos_count,
        thinking=template.thought,
        defaults=defaults,
        verdict=_verdict(chat, bos_count),
    )


def drawn(
    found: ProbeResult, engine: Engine, chat: Chat, n: int, *, seed: int, watch: Watch = unwatched
) -> ProbeResult:
    """The same with ``n`` questions as the model writes them, and a verdict that also says how many
    came to an end by themselves.
    """
    sampling = Sampling(max_tokens=MAX_TOKENS, stop=chat.stop)
    start = chat.start if chat.plain else chat.pre_query
    requests = (Request(k, start, sampling, derive_seed(seed, "probe", k)) for k in range(n))
    texts: dict[int, str] = {}
    ended = 0
    for completion in engine.complete(requests):
        texts[completion.row] = chat.decode(completion.tokens).strip()
        ended += completion.finish_reason == "stop"
        watch("samples", len(texts), n)
    what = "questions"
    verdict = found.verdict
    if chat.plain:
        what = "texts"
        verdict = "a base model: its replay is text that begins with BOS alone"
    different = len(set(texts.values()))
    verdict += (
        f"; {ended} of {n} {what} came to an end by themselves, {different} of them different"
    )
    # By hand an answer header may be left out: then questions are all that is wanted.
    if not chat.plain and chat.template.answer_header:
        verdict += _answered(engine, chat, seed=seed)
    samples = [texts[k] for k in sorted(texts)]
    return found.model_copy(update={"samples": samples, "verdict": verdict})


def _answered(engine: Engine, chat: Chat, *, seed: int) -> str:
    """What would become of an answer to one question, where it could not be used; else ""."""
    sampling = Sampling(temperature=0.0, max_tokens=MAX_TOKENS, stop=chat.stop)
    request = Request(0, chat.prompt(dialogue(ASKED)), sampling, derive_seed(seed, "probe answer"))
    for completion in engine.complete([request]):
        reply = chat.reply(completion.tokens)
        said = reply.message["content"].strip()
        if reply.special:
            return f"; its answer to {ASKED!r} has special tokens in it, so it would be dropped"
        if reply.thought == "cut":
            return f"; its thought about {ASKED!r} does not end in {MAX_TOKENS} tokens"
        if not said:
            return f"; its answer to {ASKED!r} is empty, so it would be dropped"
    return ""


def _part(chat: Chat, text: str | None) -> Part | None:
    return None if text is None else Part(text=text, ids=list(chat.encode(text)))


def _verdict(chat: Chat, bos_count: int) -> str:
    template = chat.template
    found = ["the template is usable"]
    # Some models open every turn with their BOS; it then ends turns, too.
    if bos_count > 1 and chat.tokenizer.bos_token_id not in chat.stop:
        found = [f"the template writes BOS {bos_count} times, which no model was trained on"]
    if template.joint is None:
        found.append("one question only (it refuses a second)")
    match template.system:
        case "own block":
            pass
        case "refused":
            found.append("no system prompts")
        case "ignored":
            found.append("system prompts have no effect")
        case _:
            found.append(
                "a system prompt stands in the user's turn, so the model may go on with it instead "
                "of asking"
            )
    if template.thinking:
        found.append("the model thinks before it answers, and its thoughts are part of the answer")
    return "; ".join(found)
