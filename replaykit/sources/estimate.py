"""What a generation will take, before any weights are loaded: rows, tokens, hours, money. What
``--dry-run`` shows.

    2,000 rows: about 2,500 to draw at a yield of 80 % (assumed)
    about 100,000 tokens of questions (40 each, assumed) and 772,000 tokens of answers (386 each, assumed)
    about 8 minutes on NVIDIA A100-SXM4-80GB at 1,720 tokens/s (estimate: ...)
    about $0.25 at $1.80 an hour (assumed, 2025)

The parameters of the model are counted exactly; the rest is rough. Speed is taken from the Magpie
paper (arXiv 2406.08464): 3 million conversations of 426 tokens by an 8B model took 206 hours of an
A100-80GB, which is 1,720 tokens/s; it is scaled by memory bandwidth over parameters. (The paper's
70B model made 216 tokens/s; so scaled, it would be 196.) A mixture of experts is faster than this
says, since not all of its parameters work on a token. Where the run's folder has rows already, what
they show takes the place of each assumption, and the result says which.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from replaykit import models
from replaykit.errors import RunError
from replaykit.records import read_prompts
from replaykit.runs import read_json, read_manifest
from replaykit.settings import ROWS, Generate

LEDGERS = ("questions.jsonl", "answers.jsonl")
FEWEST_MEASURED = 50  # fewer rows in the folder measure nothing

# Assumptions. The paper keeps 10 % (8B) and 30 % (70B), but by choosing the best and the longest,
# which is not done here.
YIELD = 0.8
PROMPTS_YIELD = 0.95
TURN_TOKENS = 426  # in the paper
QUESTION_TOKENS = 40  # of them, which the paper does not say
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
PRICE_YEAR = 2025  # of the prices below


class Gpu(NamedTuple):
    """What its name matches, its memory bandwidth in TB/s by the maker's data sheet, and an assumed
    rent in $ an hour.
    """

    pattern: str
    bandwidth: float
    price: float


# The first that matches.
GPUS = (
    Gpu(r"B200", 8.0, 4.50),
    Gpu(r"H200", 4.8, 3.50),
    Gpu(r"H100 NVL", 3.9, 2.70),
    Gpu(r"H100 PCIe", 2.0, 2.20),
    Gpu(r"H100|GH200", 3.35, 2.70),
    Gpu(r"A100.*40GB", 1.555, 1.30),
    Gpu(r"A100", 2.04, 1.80),
    Gpu(r"MI300X", 5.3, 2.50),
    Gpu(r"L40S", 0.864, 1.00),
    Gpu(r"\bL4\b", 0.30, 0.70),
    Gpu(r"A10G", 0.60, 1.00),
    Gpu(r"\bA10\b", 0.60, 0.75),
    Gpu(r"RTX 6000 Ada", 0.96, 0.80),
    Gpu(r"RTX A6000", 0.768, 0.50),
    Gpu(r"RTX 5090", 1.79, 0.70),
    Gpu(r"RTX 4090", 1.008, 0.45),
    Gpu(r"RTX 3090", 0.936, 0.25),
    Gpu(r"V100", 0.90, 0.50),
    Gpu(r"\bT4\b", 0.32, 0.35),
)


class _Guess(NamedTuple):
    """A number, and whether it was "measured" or "assumed"."""

    value: float
    basis: str


class _Speed(NamedTuple):
    """Tokens a second, None where nothing is known; what makes them, how many of it, how it is
    known, rent an hour.
    """

    tokens: float | None
    device: str
    devices: int
    basis: str
    source: str
    price: float | None


def estimate(
    *,
    model: str,
    revision: str | None = None,
    settings: Generate,
    engine_name: str,
    workers: int = 1,
    tensor_parallel: int = 1,
    ledger_stats: Mapping[str, Any] | None = None,
    price_per_hour: float | None = None,
) -> dict[str, Any]:
    """What is still to be done for ``settings.n`` rows: numbers, ``basis`` (measured, assumed, ...)
    and ``text`` lines.

    ``ledger_stats`` are those of ``measured``; of another model they are not used, of another
    engine their speed is not. ``price_per_hour`` is in dollars, for one GPU, or for the machine
    where there is none. ``hours`` and ``cost`` are None where the speed or the price is not known.
    Raises EngineError where the model's config.json cannot be had, and DataError where the prompts
    cannot be read.
    """
    stats = dict(ledger_stats or {})
    if stats.get("model", model) != model:
        stats = {}
    parameters = models.parameter_count(model, revision)
    plan = _plan(settings, stats)
    speed = _speed(parameters, engine_name, workers, tensor_parallel, stats)
    tokens = plan["question_tokens"] + plan["answer_tokens"]
    hours = None if speed.tokens is None else tokens / speed.tokens / 3600
    price = speed.price if price_per_hour is None else price_per_hour
    basis = plan.pop("basis") | {"speed": speed.basis}
    basis["price"] = (
        "given" if price_per_hour is not None else "assumed" if price is not None else "unknown"
    )
    found = {
        "model": model,
        "parameters": parameters,
        **plan,
        "device": speed.device,
        "devices": speed.devices,
        "tokens_per_second": speed.tokens and round(speed.tokens, 1),
        "hours": hours,
        "price_per_hour": price,
        "cost": None if hours is None or price is None else hours * price * speed.devices,
        "basis": basis,
    }
    return found | {"text": list(_text(found, speed.source))}


def measured(folder: Path) -> dict[str, Any] | None:
    """What the rows in a step's folder show, finished or not; None where there are none. Only
    reads.

    ``questions``, ``question_tokens``, ``answers``, ``answer_tokens`` count what the ledgers hold;
    ``made`` and ``kept`` what passed the checks so far; ``model`` and ``engine`` are what made
    them. ``tokens_per_second`` is there if the step was finished in one go; of one that was
    interrupted or extended no time is known. It is over the result's ``seconds``, or else over the
    time from the start to the last token, loading included. Raises RunError for a damaged line.
    """
    found: dict[str, Any] = {}
    for name in LEDGERS:
        what = name.removesuffix("s.jsonl")
        sizes = [int(line.get("tokens", 0)) for line in _lines(folder / name)]
        found |= {f"{what}s": len(sizes), f"{what}_tokens": sum(sizes)}
    if not found["questions"] and not found["answers"]:
        return None
    inputs = read_json(folder / "inputs.json") or {}
    manifest = read_manifest(folder)
    found |= {key: inputs[key] for key in ("model", "engine") if key in inputs}
    if manifest is None:
        kept, dropped = (
            sum(1 for _ in _lines(folder / name)) for name in ("rows.jsonl.tmp", "dropped.jsonl")
        )
        return found | {"made": kept + dropped, "kept": kept}
    funnel = manifest["funnel"]
    began = (folder / "inputs.json").stat().st_mtime
    lasted = datetime.fromisoformat(manifest["finished"]).timestamp() - began
    if abs(lasted - manifest["seconds"]) < 5 + 0.02 * lasted:
        wrote = max((folder / name).stat().st_mtime for name in LEDGERS if (folder / name).exists())
        tokens = found["question_tokens"] + found["answer_tokens"]
        found["tokens_per_second"] = tokens / max(
            manifest["result"].get("seconds", wrote - began), 0.1
        )
    return found | {"made": funnel["made"], "kept": funnel["kept"]}


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


def _plan(settings: Generate, stats: Mapping[str, Any]) -> dict[str, Any]:
    """Rows and tokens that are still to come, and where each figure is from."""
    of_prompts = settings.prompts is not None
    made = stats.get("made", 0)
    kept = stats.get("kept", 0)
    share = _measured(kept, made, PROMPTS_YIELD if of_prompts else YIELD)
    limits = settings.max_question_tokens, settings.max_answer_tokens
    assumed = min(QUESTION_TOKENS, limits[0]), min(TURN_TOKENS - QUESTION_TOKENS, limits[1])
    question = _measured(stats.get("question_tokens", 0), stats.get("questions", 0), assumed[0])
    answer = _measured(stats.get("answer_tokens", 0), stats.get("answers", 0), assumed[1])
    if settings.n is None and settings.prompts is not None:
        data = settings.prompts
        asked = sum(
            1
            for _ in read_prompts(
                data.path, prompt=data.prompt, split=data.split, skip=data.skip, limit=data.n
            )
        )
        rows = asked * settings.answers
        draw = max(0, asked - made // settings.answers)
    else:
        rows = settings.n or ROWS
        draw = math.ceil(max(0, rows - kept) / settings.answers / share.value)
    # A question that is dropped is not answered; all that is dropped is assumed to be dropped by
    # its question.
    answered = 1.0 if of_prompts else share.value
    if not of_prompts and stats.get("questions", 0) >= FEWEST_MEASURED:
        answered = stats.get("answers", 0) / settings.answers / stats["questions"]
    questions = 0 if of_prompts else draw * settings.turns
    answers = draw * settings.turns * settings.answers * answered
    return {
        "rows": rows,
        "kept": kept,
        "draw": draw,
        "yield": share.value,
        "tokens_per_question": question.value,
        "tokens_per_answer": answer.value,
        "question_tokens": round(questions * question.value),
        "answer_tokens": round(answers * answer.value),
        "basis": {
            "yield": share.basis,
            "question_tokens": question.basis,
            "answer_tokens": answer.basis,
        },
    }


def _measured(part: float, whole: float, assumed: float) -> _Guess:
    """part/whole, if there is enough of the whole and any of the part; else what is assumed."""
    return (
        _Guess(part / whole, "measured")
        if whole >= FEWEST_MEASURED and part
        else _Guess(assumed, "assumed")
    )


def _speed(
    parameters: int, engine_name: str, workers: int, tensor_parallel: int, stats: Mapping[str, Any]
) -> _Speed:
    """How fast the model will write on what is here."""
    import torch

    known = (
        stats.get("tokens_per_second") if stats.get("engine", engine_name) == engine_name else None
    )
    basis = "unknown" if known is None else "measured"
    if engine_name == "openai":
        return _Speed(known, "the server", 1, basis, "its speed is not known here", None)
    if not torch.cuda.is_available():
        cores = os.cpu_count() or 1
        guess = min(CPU_SPEED * (CPU_PARAMETERS / parameters) * (cores / CPU_CORES), MOST_SPEED)
        source = (
            f"estimate: the embedded model on two cores, scaled by {_short(parameters)} "
            f"parameters and {cores} cores"
        )
        return _Speed(
            known or guess,
            f"{cores} CPU cores",
            1,
            "measured" if known else "assumed",
            source,
            None,
        )
    name = torch.cuda.get_device_name(0)
    devices = workers * tensor_parallel
    gpu = next((gpu for gpu in GPUS if re.search(gpu.pattern, name)), None)
    if gpu is None:
        return _Speed(
            known, name, devices, basis, "its memory bandwidth is not in replaykit's table", None
        )
    one = MAGPIE_SPEED * (MAGPIE_PARAMETERS / parameters) * (gpu.bandwidth / MAGPIE_BANDWIDTH)
    guess = min(one, MOST_SPEED) * devices * (1 if engine_name == "vllm" else PLAIN_LOOP)
    source = (
        f"estimate: Magpie's 8B on an A100, scaled by {_short(parameters)} parameters and "
        f"{gpu.bandwidth:g} TB/s"
    )
    return _Speed(
        known or guess, name, devices, "measured" if known else "assumed", source, gpu.price
    )


def _short(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"


def _text(found: Mapping[str, Any], source: str) -> Iterator[str]:
    basis = found["basis"]
    there = f", {found['kept']:,} of them there already" if found["kept"] else ""
    share = f"{100 * found['yield']:.0f} % ({basis['yield']})"
    yield f"{found['rows']:,} rows{there}: about {found['draw']:,} to draw at a yield of {share}"
    asked = f"{found['tokens_per_question']:.0f} each, {basis['question_tokens']}"
    questions = (
        f"{found['question_tokens']:,} tokens of questions ({asked}) and "
        if found["question_tokens"]
        else ""
    )
    answered = f"{found['tokens_per_answer']:.0f} each, {basis['answer_tokens']}"
    yield f"about {questions}{found['answer_tokens']:,} tokens of answers ({answered})"
    device = f"{found['devices']} × {found['device']}" if found["devices"] > 1 else found["device"]
    if found["hours"] is None:
        yield f"how long {device} will take is not known: {source}"
        return
    how = "measured here" if basis["speed"] == "measured" else source
    yield (
        f"about {_time(found['hours'])} on {device} at {found['tokens_per_second']:,.0f} "
        f"tokens/s ({how})"
    )
    if found["cost"] is not None:
        where = f"assumed, {PRICE_YEAR}" if basis["price"] == "assumed" else "as given"
        each = " for each" if found["devices"] > 1 else ""
        yield (
            f"about ${found['cost']:,.2f} at ${found['price_per_hour']:.2f} an hour{each} ({where})"
        )


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:.0f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.0f} seconds"
