"""The step generate: the model's own questions and answers, or its answers to given questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from replaykit.checks.fidelity import RawSample
from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.ledger import Ledger
from replaykit.data.record import Record
from replaykit.data.tools import read_tools
from replaykit.errors import EngineError, RecipeError
from replaykit.model.loading import encoder_decoder, named_sampling
from replaykit.recipe import Recipe, need
from replaykit.recipe.data import Data
from replaykit.recipe.generate import Generate, Tags
from replaykit.runs import Step, Watch, differences, stop_on_signal
from replaykit.steps.generate.answering import Answering
from replaykit.steps.generate.job import Job, Monitor, Tally, kind_of, wanted
from replaykit.steps.generate.result import EstimateResult, GenerateResult
from replaykit.steps.generate.verified import asked
from replaykit.steps.inputs import HeldOut, Readable, held_out_facts, load, load_prompts, load_tests
from replaykit.steps.step import (
    Context,
    Outcome,
    Todo,
    chat_of,
    do_step,
    engine_and_chat,
    funnel_of,
    model_facts,
    revision_of,
)


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[GenerateResult]]:
    need(recipe, "generate", "model")
    yield from drawn(recipe, context, "generate")


def run(
    recipe: Recipe, context: Context, *, dry_run: bool = False, price_per_hour: float | None = None
) -> Iterator[Outcome[GenerateResult] | Outcome[EstimateResult]]:
    """With ``dry_run``, what it will take, instead of any row; ``price_per_hour`` is in dollars."""
    if dry_run:
        need(recipe, "generate", "model")
        settings = recipe.generate or Generate()
        check_can_ask(recipe, settings)
        folder = context.out or recipe.folder / "generate"
        estimated = _estimate(recipe, settings, folder, price_per_hour)
        yield Outcome("generate", folder, estimated, note="dry run: nothing was drawn")
        return
    for todo in todos(recipe, context):
        yield do_step(todo, recipe, context)


def drawn(recipe: Recipe, context: Context, name: str) -> Iterator[Todo[GenerateResult]]:
    """What the model writes itself as ``recipe.generate`` says, in the folder of the step of this
    name.
    """
    settings = recipe.generate or Generate()
    check_can_ask(recipe, settings)
    given = _prompts(settings)
    rows = None if given is None else given.records
    settings = settings.model_copy(update={"n": wanted(settings, rows)})
    inputs = generate_inputs(recipe, settings)

    def work(step: Step) -> GenerateResult:
        made = _generate(recipe, settings, rows, context.watch, step)
        return made if given is None else made.noted(given.note)

    def lacking(result: GenerateResult) -> list[str]:
        return differences({"generate.n": result.n}, {"generate.n": settings.n})

    yield Todo(name, inputs, GenerateResult, work, lacking=lacking)


def generate_inputs(recipe: Recipe, settings: Generate) -> dict[str, Any]:
    """What decides which rows are made. Their number does not: more rows begin with the same."""
    from replaykit.engines import engine_fact

    return {
        **model_facts(recipe),
        "seed": recipe.seed,
        "engine": engine_fact(recipe.engine, recipe.model, recipe.revision),
        "generate": settings.decisive(),
        "eval": held_out_facts(recipe, settings.checks.overlap),
    }


def generated(
    recipe: Recipe,
    settings: Generate,
    folder: Path,
    *,
    prompts: Sequence[Record] | None = None,
    references: Sequence[Record] | None = None,
    held: HeldOut | None = None,
    monitor: Monitor | None = None,
) -> Iterator[Record]:
    """The rows that the recipe's model makes in the folder: answers to the prompts, if there are
    any; with ``references`` those of them that are right (``verified``). No question is one of the
    ``held`` ones, by default those of the recipe.
    """
    from replaykit.steps.generate.draw import generate_rows

    model = str(recipe.model)
    questions: set[str] = set()
    if settings.checks.overlap:
        apart = held or load_tests(recipe)
        questions = {row.question for _, rows in apart.rows.values() for row in rows}
    job = Job(
        settings,
        recipe.seed,
        prompts=prompts,
        references=references,
        held_out=sorted(questions),
        deployed=named_sampling(model, recipe.revision),
        facts={"model": recipe.model, "answer_temperature": settings.answer_temperature},
    )
    with engine_and_chat(recipe, model) as (engine, chat):
        yield from generate_rows(engine, chat, job, folder=folder, monitor=monitor)


def _generate(
    recipe: Recipe, settings: Generate, rows: list[Record] | None, watch: Watch, step: Step
) -> GenerateResult:
    """Makes the rows; ``rows`` are the prompts, with their own answers where these are compared."""
    chat = chat_of(recipe)
    prompts = rows
    references = None
    if settings.verify is not None:
        prompts = asked(rows or [])
        references = rows
    # What the model's template cannot do is said before its weights are loaded.
    Answering(chat, settings, recipe.seed, prompts)
    sample = RawSample()
    tally = Tally()
    with funnel_of(step) as funnel, stop_on_signal() as stopping:
        monitor = Monitor(funnel, sample, tally, watch, stopping)
        records = generated(
            recipe, settings, step.folder, prompts=prompts, references=references, monitor=monitor
        )
        made = write_jsonl(step.folder / "rows.jsonl", records)
    pre_query = date = None
    if not chat.plain:
        pre_query = chat.template.pre_query
        date = chat.template.date
    tags = None
    if settings.tags is not None:
        tags = _tag(recipe, settings.tags, step, watch)
    return GenerateResult(
        n=wanted(settings, prompts),
        rows=made,
        kind=kind_of(chat, prompts),
        model=str(recipe.model),
        revision=revision_of(recipe),
        seed=recipe.seed,
        sampling=settings,
        chat=recipe.chat,
        pre_query=pre_query,
        date=date,
        tokens=_tokens(step.folder),
        funnel=funnel.result(),
        thoughts=tally.thoughts,
        calls=tally.calls,
        verified=tally.verified,
        fidelity=sample.summary(),
        tags=tags,
    )


def _tokens(folder: Path) -> dict[str, int]:
    """How many tokens each ledger holds."""
    found = {}
    for name in ("questions", "answers"):
        with Ledger(folder / f"{name}.jsonl") as ledger:
            found[name] = sum(line["tokens"] for line in ledger.values())
    return found


def check_can_ask(recipe: Recipe, settings: Generate) -> None:
    """Raises EngineError for a model that cannot write questions, where none are given, RecipeError
    where it cannot and their perplexity is bounded, and DataError for tools that cannot be used.

    The decoder of a model like T5 writes only the answer to what its encoder has read.
    """
    if settings.tools is not None:
        read_tools(settings.tools)
    model = str(recipe.model)
    asks = settings.prompts is None
    bounded = settings.checks.question_perplexity is not None
    if not (asks or bounded) or not encoder_decoder(model, recipe.revision):
        return
    if asks:
        raise EngineError(
            f"{model} has an encoder, which reads a question, and a decoder, which writes the "
            "answer; it cannot write questions itself\n  `replaykit generate --prompts FILE` "
            "answers the questions of a file (generate.prompts in a recipe)."
        )
    raise RecipeError(
        "the recipe",
        [
            f"generate.checks.question_perplexity: {model} is an encoder-decoder, which reads a "
            f"question and does not write it, so none has a perplexity; leave it out"
        ],
    )


def _prompts(settings: Generate) -> Readable | None:
    """The questions that are given, if any are, with their answers where these are compared. Raises
    DataError as ``load_prompts`` does.
    """
    if settings.prompts is None:
        return None
    if settings.verify is not None:
        return load(Data(**settings.prompts.model_dump()), "generate")
    return load_prompts(settings.prompts)


def _tag(recipe: Recipe, tags: Tags, step: Step, watch: Watch) -> dict[str, dict[str, int]]:
    """Adds what a judge and a reward model say of each row to its meta; counts the rows by tag and
    word.
    """
    from replaykit.checks.judge import TAGS, judge
    from replaykit.checks.reward import Reward

    path = step.folder / "rows.jsonl"
    rows = list(read_jsonl(path))
    judging = engine_and_chat(recipe, tags.judge or str(recipe.model), of_recipe=tags.judge is None)
    with judging as (engine, chat), Ledger(step.folder / "tags.jsonl") as ledger:
        numbered = list(enumerate(rows))
        judged = judge(engine, chat, numbered, ledger=ledger, seed=recipe.seed, watch=watch)
        words = [found for _, found in judged]
    rewards: list[float | None] = []
    if tags.reward is not None:
        watch("reward", 0, len(rows))
        rewards = list(Reward(tags.reward).score(rows))
        watch("reward", len(rows), len(rows))
    tagged = []
    for number, row in enumerate(rows):
        meta = {**row.meta, "tags": words[number]}
        if rewards:
            meta["reward"] = rewards[number]
        tagged.append(replace(row, meta=meta))
    write_jsonl(path, tagged)
    if not words:
        return {}
    return {tag: dict(Counter(found[tag] for found in words).most_common()) for tag in TAGS}


def _estimate(
    recipe: Recipe, settings: Generate, folder: Path, price_per_hour: float | None
) -> EstimateResult:
    from replaykit.steps.generate.estimate import estimate, measured

    given = _prompts(settings)
    prompts = None if given is None else given.records
    answering = Answering(chat_of(recipe), settings, recipe.seed, prompts)
    return estimate(
        model=str(recipe.model),
        revision=recipe.revision,
        settings=settings,
        engine=recipe.engine,
        thinking=answering.thinking_part(),
        seen=measured(folder),
        price_per_hour=price_per_hour,
    )
