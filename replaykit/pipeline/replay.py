"""The steps that make replay: select, generate, and rewrite for the target; and probe, which looks
at the model first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from replaykit import models
from replaykit.errors import DataError, RunError
from replaykit.pipeline.rows import (
    asked_text,
    data_facts,
    file_facts,
    held_out,
    load,
    test_facts,
    tests,
)
from replaykit.pipeline.step import (
    Context,
    Outcome,
    chat_of,
    do_step,
    engine_and_chat,
    funnel_of,
    model_facts,
    revision_of,
)
from replaykit.recipe import Recipe, need
from replaykit.records import Record, read_jsonl, read_prompts, read_records, write_jsonl
from replaykit.runs import Step, Watch
from replaykit.settings import ROWS, SCORED, Generate, Rewrite, Select, Tags


def probe(recipe: Recipe, context: Context, *, samples: int = 20) -> Iterator[Outcome]:
    from replaykit.engines import choose
    from replaykit.sources.probe import describe, draw

    need(recipe, "probe", "model")
    inputs = {
        **model_facts(recipe),
        "seed": recipe.seed,
        "samples": samples,
        "engine": choose(recipe.engine),
    }

    def work(step: Step) -> tuple[dict[str, Any], dict[str, Any]]:
        chat = chat_of(recipe)
        found = describe(chat, deployed=_deployed(recipe))
        if samples:
            with engine_and_chat(recipe, recipe.model) as (engine, _):
                found |= draw(engine, chat, samples, seed=recipe.seed, watch=context.watch)
        return {"model": recipe.model, **found}, {}

    yield do_step("probe", recipe, context, inputs, work)


def select(recipe: Recipe, context: Context, *, explain: str | None = None) -> Iterator[Outcome]:
    if explain is not None:
        folder = context.out or recipe.folder / "select"
        yield Outcome("select", folder, _explained(recipe, folder, explain))
        return
    compared = recipe.select is None or recipe.select.method in SCORED
    need(recipe, "select", *(["target"] if compared else []), "select")
    settings = recipe.select
    assert settings is not None
    machine = {"pool", "processes", "engine", "against"}
    inputs = settings.model_dump(exclude=machine) | {
        "pool": data_facts(settings.pool),
        "seed": recipe.seed,
    }
    inputs["target"] = data_facts(recipe.target) if recipe.target else None
    inputs["against"] = [file_facts(name) for name in settings.against]
    if settings.overlap and tests(recipe):
        inputs["held_out"] = test_facts(recipe)
    yield do_step(
        "select", recipe, context, inputs, partial(_select, recipe, settings, context.watch)
    )


def _select(
    recipe: Recipe, settings: Select, watch: Watch, step: Step
) -> tuple[dict[str, Any], dict[str, Any]]:
    from replaykit.sources.select import select as choose

    target = load(recipe.target, "target") if recipe.target else []
    data = settings.pool
    apart = held_out(recipe, settings.overlap, settings.against)
    with funnel_of(step) as funnel:
        pool = read_records(
            data.path,
            "select",
            prompt=data.prompt,
            answer=data.answer,
            split=data.split,
            skip=data.skip,
            limit=data.n,
            unparsed=None if settings.strict else funnel.unparsed,
        )
        made = choose(
            pool,
            target,
            settings=settings,
            seed=recipe.seed,
            folder=step.folder,
            funnel=funnel,
            watch=watch,
            held_out=apart,
        )
    write_jsonl(step.folder / "rows.jsonl", made.records)
    result = {
        "asked": settings.n,
        "rows": len(made.records),
        "missing": max(0, settings.n - len(made.records)),
        "scores": made.scores,
        "notes": made.notes,
        "funnel": funnel.to_json(),
    }
    return result, {
        "method": settings.method,
        "pool": data.path,
        "decontamination": apart and apart.to_json(),
    }


def _explained(recipe: Recipe, folder: Path, wanted: str) -> dict[str, Any]:
    """Why a row of the pool was chosen, or was not: what the step wrote of it, by the beginning of
    its id.
    """
    for name in ("rows.jsonl", "dropped.jsonl"):
        path = folder / name
        if not path.exists():
            raise RunError(f"{folder} is not finished; `replaykit select` makes it")
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                if str(row.get("id", "")).startswith(wanted):
                    return _with_nearest(recipe, row)
    raise RunError(
        f"{folder}: no row has an id that begins with {wanted}; rows.jsonl and dropped.jsonl have "
        f"the ids"
    )


def _with_nearest(recipe: Recipe, row: dict[str, Any]) -> dict[str, Any]:
    meta = row["meta"]
    found = {"id": row["id"], "chosen": "reason" not in row, "reason": row.get("reason")}
    found |= {
        key: meta[key] for key in ("rank", "score", "terms", "twin", "match", "line") if key in meta
    }
    found["text"] = row["messages"]
    if "nearest" in meta and recipe.target is not None:
        near = next(
            (record for record in load(recipe.target, "target") if record.id == meta["nearest"]),
            None,
        )
        found["nearest"] = {"id": meta["nearest"], "prompt": near.prompt if near else None}
    return found


def generate(
    recipe: Recipe, context: Context, *, dry_run: bool = False, price: float | None = None
) -> Iterator[Outcome]:
    need(recipe, "generate", "model")
    settings = recipe.generate or Generate()
    if dry_run:
        yield Outcome(
            "generate",
            context.out or recipe.folder / "generate",
            _estimate(recipe, settings, context, price),
            note="dry run: nothing was drawn",
        )
        return
    prompts = _prompts(settings)
    settings = settings.model_copy(
        update={"n": settings.n or (ROWS if prompts is None else len(prompts))}
    )
    inputs = generate_inputs(recipe, settings)
    work = partial(_generate, recipe, settings, prompts, context.watch)
    yield do_step("generate", recipe, context, inputs, work, asked=settings.n)


def generate_inputs(recipe: Recipe, settings: Generate) -> dict[str, Any]:
    """What decides which rows are made; how many of them are asked for does not."""
    from replaykit.engines import choose

    asked = settings.model_dump(exclude={"n", "min_yield", "prompts"})
    inputs = {
        **model_facts(recipe),
        "seed": recipe.seed,
        "engine": choose(recipe.engine),
        **asked,
        "prompts": settings.prompts and data_facts(settings.prompts),
    }
    if settings.checks.overlap and tests(recipe):
        inputs["held_out"] = test_facts(recipe)
    return inputs


def _generate(
    recipe: Recipe, settings: Generate, prompts: list[Record] | None, watch: Watch, step: Step
) -> tuple[dict[str, Any], dict[str, Any]]:
    from replaykit.checks.fidelity import RawSample
    from replaykit.runs import stop_on_signal

    chat = chat_of(recipe)
    sample = RawSample()
    with funnel_of(step) as funnel, stop_on_signal() as stopping:
        rows = generated(
            recipe,
            settings,
            step.folder,
            funnel=funnel,
            sample=sample,
            prompts=prompts,
            watch=watch,
            stopping=stopping,
        )
        made = write_jsonl(step.folder / "rows.jsonl", rows)
    kind = "prompts" if settings.prompts else "text" if chat.plain else "magpie"
    result = {
        "asked": settings.n,
        "rows": made,
        "kind": kind,
        "funnel": funnel.to_json(),
        "tokens": _tokens(step.folder),
        "fidelity": sample.summary(),
    }
    if settings.tags is not None:
        result["tags"] = _tag(recipe, settings.tags, step, watch)
    facts = {
        "method": kind,
        "model": recipe.model,
        "revision": revision_of(recipe),
        "seed": recipe.seed,
        "sampling": settings.model_dump(),
        "chat": recipe.chat.model_dump(),
    }
    return result, facts if chat.plain else facts | {
        "pre_query": chat.template.pre_query,
        "date": chat.template.date,
    }


def generated(recipe: Recipe, settings: Generate, folder: Path, **options: Any) -> Iterator[Record]:
    """The rows that the recipe's model makes in the folder; ``options`` go to
    ``sources.generate.generate``.
    """
    from replaykit.sources.generate import generate as draw

    facts = {"model": recipe.model, "answer_temperature": settings.answer_temperature}
    held = tests(recipe) if settings.checks.overlap else {}
    asked = sorted({asked_text(row) for test in held.values() for row in load(test, "target")})
    with engine_and_chat(recipe, recipe.model) as (engine, chat):
        yield from draw(
            engine,
            chat,
            settings=settings,
            seed=recipe.seed,
            folder=folder,
            held_out=asked,
            deployed=_deployed(recipe),
            facts=facts,
            **options,
        )


def _tokens(folder: Path) -> dict[str, int]:
    """How many tokens the ledgers hold."""
    from replaykit.runs import Ledger

    found = {}
    for what in ("questions", "answers"):
        with Ledger(folder / f"{what}.jsonl") as ledger:
            found[what] = sum(row["tokens"] for row in ledger.values())
    return found


def _prompts(settings: Generate) -> list[Record] | None:
    if settings.prompts is None:
        return None
    data = settings.prompts
    rows = list(
        read_prompts(data.path, prompt=data.prompt, split=data.split, skip=data.skip, limit=data.n)
    )
    if not rows:
        raise DataError(f"{data.path}: there is no row in it")
    return rows


def _tag(recipe: Recipe, tags: Tags, step: Step, watch: Watch) -> dict[str, dict[str, int]]:
    """Writes what a judge and a reward model say of the rows into them; counts the judge's
    words.
    """
    from replaykit.checks.judge import judge
    from replaykit.checks.reward import Reward
    from replaykit.runs import Ledger

    path = step.folder / "rows.jsonl"
    rows = list(read_jsonl(path))
    said = {}
    rewards = {}
    judged_by = engine_and_chat(recipe, tags.judge or recipe.model, of_recipe=tags.judge is None)
    with judged_by as (engine, chat), Ledger(step.folder / "tags.jsonl") as ledger:
        said = dict(
            judge(engine, chat, list(enumerate(rows)), ledger=ledger, seed=recipe.seed, watch=watch)
        )
    if tags.reward is not None:
        watch("reward", 0, len(rows))
        rewards = dict(enumerate(Reward(tags.reward).score(rows)))
        watch("reward", len(rows), len(rows))
    made = (
        replace(
            row, meta={**row.meta, "tags": said[k], **({"reward": rewards[k]} if rewards else {})}
        )
        for k, row in enumerate(rows)
    )
    write_jsonl(path, made)
    return {
        tag: dict(Counter(words[tag] for words in said.values()).most_common())
        for tag in next(iter(said.values()), {})
    }


def _estimate(
    recipe: Recipe, settings: Generate, context: Context, price: float | None
) -> dict[str, Any]:
    from replaykit.engines import choose
    from replaykit.sources.estimate import estimate, measured

    return estimate(
        model=str(recipe.model),
        revision=recipe.revision,
        settings=settings,
        engine_name=choose(recipe.engine),
        workers=recipe.engine.workers,
        tensor_parallel=recipe.engine.tensor_parallel,
        ledger_stats=measured(context.out or recipe.folder / "generate"),
        price_per_hour=price,
    )


def _deployed(recipe: Recipe) -> dict[str, float] | None:
    """The sampling that the model's generation_config names, if it has one."""
    if models.generation_config(str(recipe.model), recipe.revision) is None:
        return None
    return models.deployed_sampling(str(recipe.model), recipe.revision)


def rewrite(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    from replaykit.engines import choose

    need(recipe, "rewrite", "model", "target")
    settings = recipe.rewrite or Rewrite()
    target = recipe.target
    assert target is not None
    inputs = {
        **model_facts(recipe),
        "seed": recipe.seed,
        "engine": choose(recipe.engine),
        "target": data_facts(target),
        **settings.model_dump(),
    }

    def work(step: Step) -> tuple[dict[str, Any], dict[str, Any]]:
        from replaykit.sources import rewrite as source

        result = _rewritten(recipe, settings, step, load(target, "target"), context.watch)
        rows = list(read_jsonl(step.folder / "rows.jsonl"))
        return {"rows": result, "paths": source.counts(rows)}, {
            "method": settings.method,
            "model": recipe.model,
        }

    yield do_step("rewrite", recipe, context, inputs, work)


def _rewritten(
    recipe: Recipe, settings: Rewrite, step: Step, target: list[Record], watch: Watch
) -> int:
    from replaykit.runs import Ledger
    from replaykit.sources.rewrite import rewrite as reword

    with (
        engine_and_chat(recipe, recipe.model) as (engine, chat),
        Ledger(step.folder / "replies.jsonl") as ledger,
    ):
        options: Any = {
            "engine": engine,
            "chat": chat,
            "method": settings.method,
            "verify": settings.verify,
            "max_edit": settings.max_edit,
            "max_tokens": settings.max_tokens,
            "seed": recipe.seed,
            "ledger": ledger,
            "watch": watch,
        }
        if settings.editor is None:
            return write_jsonl(step.folder / "rows.jsonl", reword(target, **options))
        with engine_and_chat(recipe, settings.editor, of_recipe=False) as editor:
            return write_jsonl(step.folder / "rows.jsonl", reword(target, editor=editor, **options))
