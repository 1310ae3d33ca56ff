"""What a generation will take, in rows, tokens, hours and money, before any weights are loaded
(``--dry-run``).

    2,000 rows: about 2,500 to draw at a yield of 80 % (assumed)
    about 100,000 tokens of questions (40 each, assumed)
          and 772,000 tokens of answers (386 each, assumed)
    about 8 minutes on NVIDIA A100-SXM4-80GB at 1,720 tokens/s (estimate: ...)
    about $0.25 at $1.80 an hour (assumed, 2025)

The parameters of the model are counted exactly; the rest is rough. Speed is taken from the Magpie
paper (arXiv 2406.08464): 3 million conversations of 426 tokens by an 8B model took 206 hours of an
A100-80GB, which is 1,720 tokens/s; it is scaled by memory bandwidth over parameters. (The paper's
70B model made 216 tokens/s; scaled in this way, it would be 196.) A mixture of experts is faster
than this says, since not all of its parameters work on a token. Where the run's folder has rows
already, each assumption is replaced by what they show, and the result says which.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from replaykit.devices import PRICE_YEAR, gpu_of, short, spoken_hours
from replaykit.engines import choose
from replaykit.errors import RunError
from replaykit.model import loading
from replaykit.recipe.engine import EngineOptions
from replaykit.recipe.generate import ROWS, Generate
from replaykit.runs import Manifest, read_json, read_manifest
from replaykit.steps.generate.result import Basis, EstimateResult, GenerateResult, Known
from replaykit.steps.inputs import load_prompts
from replaykit.steps.step import typed

FEWEST_MEASURED = 50  # fewer rows in the folder measure nothing

# Assumptions. The paper keeps 10 % (8B) and 30 % (70B), but by choosing the best and the longest,
# which is not done here.
YIELD = 0.8
PROMPTS_YIELD = 0.95
TURN_TOKENS = 426  # in the paper
QUESTION_TOKENS = 40  # of them, which the paper does not say
# Of a thought before an answer. It differs more than all else here: from a few sentences to tens of
# thousands of tokens for a problem of mathematics.
THOUGHT_TOKENS = 1000
MAGPIE_SPEED = 1720.0  # tokens/s
MAGPIE_PARAMETERS = 8.03e9  # of Llama-3-8B
MAGPIE_BANDWIDTH = 2.04  # TB/s of an A100-80GB
MOST_SPEED = 20_000.0  # tokens/s of one GPU: with a small model the scheduler is the limit
PLAIN_LOOP = 0.5  # of vllm's speed on a GPU, in the engine transformers
# Measured: the embedded model (1.97 million parameters) makes 6,500 tokens/s on two cores, in vllm
# as in transformers.
CPU_SPEED = 6500.0
CPU_PARAMETERS = 1.97e6
CPU_CORES = 2


@dataclass(frozen=True)
class Measured:
    """What the rows in a step's folder show."""

    questions: int = 0
    """Lines of the ledger."""
    question_tokens: int = 0
    answers: int = 0
    answer_tokens: int = 0
    made: int = 0
    """Rows that were checked so far."""
    kept: int = 0
    """Rows of them that passed."""
    model: str | None = None
    """What made them; None where the folder does not say."""
    engine: str | None = None
    tokens_per_second: float | None = None
    """None where the time is not known: the step was interrupted or extended, or goes on."""


class _Guess(NamedTuple):
    """A number, and where it is from."""

    value: float
    basis: Known


class _Plan(NamedTuple):
    """Rows and tokens that are still to come."""

    rows: int
    kept: int
    draw: int
    kept_share: _Guess
    tokens_per_question: _Guess
    tokens_per_answer: _Guess
    question_tokens: int
    answer_tokens: int


class _Speed(NamedTuple):
    """How fast the model will write, and on what."""

    tokens_per_second: float | None
    device: str
    devices: int
    basis: Known
    source: str
    """What an assumed speed is derived from, or why none is known."""
    price: float | None
    """An assumed rent of one device, in dollars an hour."""


def estimate(
    *,
    model: str,
    revision: str | None = None,
    settings: Generate,
    engine: EngineOptions,
    thinking: float = 0.0,
    seen: Measured | None = None,
    price_per_hour: float | None = None,
) -> EstimateResult:
    """What is still to be done for ``settings.n`` rows, in a part ``thinking`` of which the model
    thinks.

    ``seen`` is what ``measured`` gives. It is not used where another model made the rows, and its
    speed is not where another engine did. ``price_per_hour`` is in dollars, for one GPU, or for the
    machine where there is none. ``hours`` and ``cost`` are None where the speed or the price is not
    known. Raises EngineError where the model's config.json cannot be had, and DataError where the
    prompts cannot be read.
    """
    if seen is None or seen.model not in (None, model):
        seen = Measured()
    parameters = loading.parameter_count(model, revision)
    plan = _plan(settings, thinking, seen)
    name = choose(engine, model, revision)
    speed = _speed(name, parameters, engine, seen)
    tokens_per_second = hours = cost = None
    if speed.tokens_per_second is not None:
        tokens_per_second = round(speed.tokens_per_second, 1)
        tokens = plan.question_tokens + plan.answer_tokens
        hours = tokens / speed.tokens_per_second / 3600
    price, price_basis = _price(price_per_hour, speed)
    if hours is not None and price is not None:
        cost = hours * price * speed.devices
    result = EstimateResult(
        model=model,
        parameters=parameters,
        rows=plan.rows,
        kept=plan.kept,
        draw=plan.draw,
        kept_share=plan.kept_share.value,
        tokens_per_question=plan.tokens_per_question.value,
        tokens_per_answer=plan.tokens_per_answer.value,
        question_tokens=plan.question_tokens,
        answer_tokens=plan.answer_tokens,
        device=speed.device,
        devices=speed.devices,
        tokens_per_second=tokens_per_second,
        hours=hours,
        price_per_hour=price,
        cost=cost,
        basis=Basis(
            kept_share=plan.kept_share.basis,
            question_tokens=plan.tokens_per_question.basis,
            answer_tokens=plan.tokens_per_answer.basis,
            speed=speed.basis,
            price=price_basis,
        ),
        text=[],
    )
    return result.model_copy(update={"text": list(_sentences(result, speed.source))})


# --- what a folder shows --------------------------------------------------------------------------


def measured(folder: Path) -> Measured | None:
    """What the rows in a step's folder show, finished or not; None where there are none.

    Only reads. Raises RunError for a damaged line.
    """
    questions = _tokens(folder / "questions.jsonl")
    answers = _tokens(folder / "answers.jsonl")
    if not questions and not answers:
        return None
    inputs = read_json(folder / "inputs.json") or {}
    manifest = read_manifest(folder)
    tokens_per_second = None
    if manifest is None:
        kept = sum(1 for _ in _lines(folder / "rows.jsonl.tmp"))
        made = kept + sum(1 for _ in _lines(folder / "dropped.jsonl"))
    else:
        funnel = typed(manifest, GenerateResult, folder).funnel
        kept = funnel.kept
        made = funnel.made
        seconds = _seconds(folder, manifest)
        if seconds is not None:
            tokens_per_second = (sum(questions) + sum(answers)) / seconds
    return Measured(
        questions=len(questions),
        question_tokens=sum(questions),
        answers=len(answers),
        answer_tokens=sum(answers),
        made=made,
        kept=kept,
        model=inputs.get("model"),
        engine=inputs.get("engine"),
        tokens_per_second=tokens_per_second,
    )


def _tokens(ledger: Path) -> list[int]:
    """The tokens of each line."""
    return [int(line.get("tokens", 0)) for line in _lines(ledger)]


def _seconds(folder: Path, manifest: Manifest) -> float | None:
    """The time from the start to the last token, loading included; None for a step that was not
    finished in one go.
    """
    if manifest.seconds is None:
        return None
    began = (folder / "inputs.json").stat().st_mtime
    lasted = datetime.fromisoformat(manifest.finished).timestamp() - began
    # The folder is as old as the first attempt, and the manifest has the time of the last one.
    if manifest.seconds is None or abs(lasted - manifest.seconds) >= 5 + 0.02 * lasted:
        return None
    ledgers = [folder / "questions.jsonl", folder / "answers.jsonl"]
    wrote = max(ledger.stat().st_mtime for ledger in ledgers if ledger.exists())
    return max(wrote - began, 0.1)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file that another process may be writing: none where there is no file,
    none of a torn line.
    """
    if not path.exists():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.endswith(b"\n"):
                try:
                    yield dict(json.loads(line))
                except (ValueError, TypeError) as error:
                    raise RunError(
                        f"{path}:{number}: damaged ({error}); take that line out"
                    ) from error


# --- rows and tokens ------------------------------------------------------------------------------


def _plan(settings: Generate, thinking: float, seen: Measured) -> _Plan:
    """Rows and tokens that are still to come, and where each figure is from."""
    prompts = settings.prompts
    share = _share(seen.kept, seen.made, YIELD if prompts is None else PROMPTS_YIELD)
    question = _share(
        seen.question_tokens, seen.questions, min(QUESTION_TOKENS, settings.max_question_tokens)
    )
    plain = min(TURN_TOKENS - QUESTION_TOKENS, settings.max_answer_tokens)
    thoughtful = min(TURN_TOKENS - QUESTION_TOKENS + THOUGHT_TOKENS, settings.max_answer_tokens)
    assumed = (1 - thinking) * plain + thinking * thoughtful
    answer = _share(seen.answer_tokens, seen.answers, assumed)
    if settings.n is None and prompts is not None:
        count = _prompt_count(settings)
        rows = count * settings.answers
        draw = max(0, count - seen.made // settings.answers)
    else:
        rows = settings.n or ROWS
        draw = math.ceil(max(0, rows - seen.kept) / settings.answers / share.value)
    questions = draw * settings.turns
    answers = questions * settings.answers * _answered_share(settings, seen, share)
    if prompts is not None:
        questions = 0
    return _Plan(
        rows=rows,
        kept=seen.kept,
        draw=draw,
        kept_share=share,
        tokens_per_question=question,
        tokens_per_answer=answer,
        question_tokens=round(questions * question.value),
        answer_tokens=round(answers * answer.value),
    )


def _answered_share(settings: Generate, seen: Measured, kept: _Guess) -> float:
    """Of the drawn questions, those that are worth an answer."""
    if settings.prompts is not None:
        return 1.0
    if seen.questions >= FEWEST_MEASURED:
        return seen.answers / settings.answers / seen.questions
    # Assumed: whatever is dropped is dropped by its question, before it is answered.
    return kept.value


def _prompt_count(settings: Generate) -> int:
    data = settings.prompts
    assert data is not None
    return len(load_prompts(data).records)


def _share(part: float, whole: float, assumed: float) -> _Guess:
    """part/whole, if there is enough of the whole and any of the part; else what is assumed."""
    if whole >= FEWEST_MEASURED and part:
        return _Guess(part / whole, "measured")
    return _Guess(assumed, "assumed")


# --- speed and price ------------------------------------------------------------------------------


def _speed(engine: str, parameters: int, options: EngineOptions, seen: Measured) -> _Speed:
    """How fast the model will write on what is here, in the engine of that name."""
    import torch

    known = seen.tokens_per_second if seen.engine in (None, engine) else None
    guess = None
    price = None
    devices = 1
    if engine == "openai":
        device = "the server"
        source = "its speed is not known here"
    elif torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
        devices = options.workers * options.tensor_parallel
        gpu = gpu_of(device)
        if gpu is None:
            source = "its memory bandwidth is not in replaykit's table"
        else:
            smaller = MAGPIE_PARAMETERS / parameters
            wider = gpu.bandwidth / MAGPIE_BANDWIDTH
            guess = min(MAGPIE_SPEED * smaller * wider, MOST_SPEED) * devices
            if engine != "vllm":
                guess *= PLAIN_LOOP
            price = gpu.price
            source = (
                f"estimate: Magpie's 8B on an A100, scaled by {short(parameters)} parameters and "
                f"{gpu.bandwidth:g} TB/s"
            )
    else:
        cores = os.cpu_count() or 1
        device = f"{cores} CPU cores"
        guess = min(CPU_SPEED * (CPU_PARAMETERS / parameters) * (cores / CPU_CORES), MOST_SPEED)
        source = (
            f"estimate: the embedded model on two cores, scaled by {short(parameters)} "
            f"parameters and {cores} cores"
        )
    if known:
        return _Speed(known, device, devices, "measured", source, price)
    if guess is None:
        return _Speed(None, device, devices, "unknown", source, price)
    return _Speed(guess, device, devices, "assumed", source, price)


def _price(given: float | None, speed: _Speed) -> tuple[float | None, Known]:
    """Dollars an hour, of one device, and where the figure is from."""
    if given is not None:
        return given, "given"
    if speed.price is not None:
        return speed.price, "assumed"
    return None, "unknown"


# --- in sentences ---------------------------------------------------------------------------------


def _sentences(found: EstimateResult, source: str) -> Iterator[str]:
    basis = found.basis
    there = f", {found.kept:,} of them there already" if found.kept else ""
    share = f"{100 * found.kept_share:.0f} % ({basis.kept_share})"
    yield f"{found.rows:,} rows{there}: about {found.draw:,} to draw at a yield of {share}"
    questions = ""
    if found.question_tokens:
        each = f"{found.tokens_per_question:.0f} each, {basis.question_tokens}"
        questions = f"{found.question_tokens:,} tokens of questions ({each}) and "
    each = f"{found.tokens_per_answer:.0f} each, {basis.answer_tokens}"
    yield f"about {questions}{found.answer_tokens:,} tokens of answers ({each})"
    device = f"{found.devices} × {found.device}" if found.devices > 1 else found.device
    if found.hours is None:
        yield f"how long {device} will take is not known: {source}"
        return
    speed = f"{found.tokens_per_second:,.0f} tokens/s"
    how = "measured here" if basis.speed == "measured" else source
    yield f"about {spoken_hours(found.hours)} on {device} at {speed} ({how})"
    if found.cost is not None:
        where = f"assumed, {PRICE_YEAR}" if basis.price == "assumed" else "as given"
        price = f"${found.price_per_hour:.2f} an hour"
        if found.devices > 1:
            price += " for each"
        yield f"about ${found.cost:,.2f} at {price} ({where})"
