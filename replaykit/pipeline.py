"""The steps in order, each from a recipe to a folder: what the commands call.

    select, generate, rewrite  ->  mix  ->  train  ->  eval  ->  report

With ``arms`` in the recipe, mix and train are done once for each arm (``mix-<arm>``, ``train-<arm>``), and eval compares
them all with the base. A step reads what earlier steps left in their folders, never the memory of this process.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaykit import models
from replaykit.checks.funnel import Funnel
from replaykit.errors import DataError, RecipeError, RunError
from replaykit.evaluate.skills import TARGET
from replaykit.recipe import (
    ROWS,
    SCORED,
    Arm,
    Data,
    Generate,
    Mix,
    Prompts,
    Recipe,
    Rewrite,
    Select,
    Tags,
    Test,
    Train,
    need,
)
from replaykit.records import Record, Source, file_fingerprint, read_jsonl, read_prompts, read_records, write_jsonl
from replaykit.runs import Step, Watch, open_step, read_manifest, unwatched, write_json

if TYPE_CHECKING:
    from replaykit.chat import Chat
    from replaykit.checks.overlap import Decontamination

Work = Callable[[Step], tuple[dict[str, Any], dict[str, Any]]]  # -> what is shown, and further facts for the manifest


@dataclass(frozen=True)
class Outcome:
    """What a step left: its folder and the result that its table shows."""

    step: str
    folder: Path
    result: Mapping[str, Any]
    skipped: bool = False  # it was finished before
    note: str = ""


@dataclass(frozen=True)
class Context:
    """How the steps are run: where to, whether anew, and who watches."""

    out: Path | None = None
    force: bool = False
    arm: str | None = None
    watch: Watch = unwatched


def run(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    """All steps that the recipe asks for, in order."""
    need(recipe, "run", "model", "target")
    asked = {"select": recipe.select, "generate": recipe.generate, "rewrite": recipe.rewrite}
    for step in (*(name for name, section in asked.items() if section is not None), "mix", "train"):
        yield from STEPS[step](recipe, context)
    if recipe.eval.target or recipe.eval.old:
        yield from evaluate(recipe, context)
    yield from report(recipe, context)


def probe(recipe: Recipe, context: Context, *, samples: int = 20) -> Iterator[Outcome]:
    from replaykit.engines import choose
    from replaykit.sources.probe import describe, draw

    need(recipe, "probe", "model")
    inputs = {**model_facts(recipe), "seed": recipe.seed, "samples": samples, "engine": choose(recipe.engine)}

    def work(step: Step) -> tuple[dict[str, Any], dict[str, Any]]:
        chat = _chat(recipe)
        found = describe(chat, deployed=_deployed(recipe))
        if samples:
            with _engine(recipe, recipe.model) as (engine, _):
                found |= draw(engine, chat, samples, seed=recipe.seed, watch=context.watch)
        return {"model": recipe.model, **found}, {}

    yield _step("probe", recipe, context, inputs, work)


# --- replay ---------------------------------------------------------------------------------------------------------


def select(recipe: Recipe, context: Context, *, explain: str | None = None) -> Iterator[Outcome]:
    compared = recipe.select is None or recipe.select.method in SCORED
    need(recipe, "select", *(["target"] if compared and explain is None else []), "select")
    settings = recipe.select
    assert settings is not None
    if explain is not None:
        folder = context.out or recipe.folder / "select"
        yield Outcome("select", folder, _explained(recipe, folder, explain))
        return
    machine = {"pool", "processes", "engine", "against"}
    inputs = settings.model_dump(exclude=machine) | {"pool": data_facts(settings.pool), "seed": recipe.seed}
    inputs["target"] = data_facts(recipe.target) if recipe.target else None
    inputs["against"] = [_file_facts(name) for name in settings.against]
    if settings.overlap and tests(recipe):
        inputs["held_out"] = {skill: data_facts(test) for skill, test in tests(recipe).items()}
    yield _step("select", recipe, context, inputs, partial(_select, recipe, settings, context.watch))


def _select(recipe: Recipe, settings: Select, watch: Watch, step: Step) -> tuple[dict[str, Any], dict[str, Any]]:
    from replaykit.sources.select import select as choose

    target = load(recipe.target, "target") if recipe.target else []
    data, apart = settings.pool, held_out(recipe, settings.overlap, settings.against)
    with _dropped(step) as funnel:
        pool = read_records(
            data.path, "select", prompt=data.prompt, answer=data.answer, split=data.split, skip=data.skip, limit=data.n,
            unparsed=None if settings.strict else funnel.unparsed,
        )  # fmt: skip
        made = choose(
            pool, target, settings=settings, seed=recipe.seed, folder=step.folder, funnel=funnel, watch=watch,
            held_out=apart,
        )  # fmt: skip
    write_jsonl(step.folder / "rows.jsonl", made.records)
    result = {"asked": settings.n, "rows": len(made.records), "missing": max(0, settings.n - len(made.records)),
              "scores": made.scores, "notes": made.notes, "funnel": funnel.to_json()}  # fmt: skip
    return result, {"method": settings.method, "pool": data.path, "decontamination": apart and apart.to_json()}


def _explained(recipe: Recipe, folder: Path, wanted: str) -> dict[str, Any]:
    """Why a row of the pool was chosen, or was not: what the step wrote of it, by the beginning of its id."""
    for name in ("rows.jsonl", "dropped.jsonl"):
        path = folder / name
        if not path.exists():
            raise RunError(f"{folder} is not finished; `replaykit select` makes it")
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                if str(row.get("id", "")).startswith(wanted):
                    return _with_nearest(recipe, row)
    raise RunError(f"{folder}: no row has an id that begins with {wanted}; rows.jsonl and dropped.jsonl have the ids")


def _with_nearest(recipe: Recipe, row: dict[str, Any]) -> dict[str, Any]:
    meta = row["meta"]
    found = {"id": row["id"], "chosen": "reason" not in row, "reason": row.get("reason")}
    found |= {key: meta[key] for key in ("rank", "score", "terms", "twin", "match", "line") if key in meta}
    found["text"] = row["messages"]
    if "nearest" in meta and recipe.target is not None:
        near = next((record for record in load(recipe.target, "target") if record.id == meta["nearest"]), None)
        found["nearest"] = {"id": meta["nearest"], "prompt": near.prompt if near else None}
    return found


def held_out(recipe: Recipe, own: bool, against: Sequence[str] = ()) -> Decontamination | None:
    """What no row of training may hold: the recipe's tests, and further evaluation sets; None where there are none."""
    from replaykit.checks.evalsets import EvalItem, eval_items
    from replaykit.checks.overlap import Decontamination

    sets = {name: eval_items(name) for name in against}
    for skill, test in tests(recipe).items() if own else ():
        sets[skill] = [EvalItem(str(row.meta["line"]), _asked(row), row.answer) for row in load(test, "target")]
    return Decontamination(sets) if sets else None


def _tested(recipe: Recipe, own: bool, against: Sequence[str]) -> dict[str, Any]:
    """What identifies the evaluation sets that ``held_out`` takes."""
    held = {skill: data_facts(test) for skill, test in tests(recipe).items()} if own else {}
    return {"held_out": held, "against": [_file_facts(name) for name in against]}


def _asked(record: Record) -> str:
    return record.prompt or record.messages[-1]["content"]


def _file_facts(name: str) -> dict[str, Any]:
    path = Path(name)
    return {"path": name, **({"content": file_fingerprint(path)} if path.exists() else {})}


def generate(
    recipe: Recipe, context: Context, *, dry_run: bool = False, price: float | None = None
) -> Iterator[Outcome]:
    need(recipe, "generate", "model")
    settings = recipe.generate or Generate()
    if dry_run:
        yield Outcome("generate", context.out or recipe.folder / "generate", _estimate(recipe, settings, context, price),
                      note="dry run: nothing was drawn")  # fmt: skip
        return
    prompts = _prompts(settings)
    settings = settings.model_copy(update={"n": settings.n or (ROWS if prompts is None else len(prompts))})
    inputs, work = generate_inputs(recipe, settings), partial(_generate, recipe, settings, prompts, context.watch)
    yield _step("generate", recipe, context, inputs, work, asked=settings.n)


def generate_inputs(recipe: Recipe, settings: Generate) -> dict[str, Any]:
    """What decides which rows are made; how many of them are asked for does not."""
    from replaykit.engines import choose

    asked = settings.model_dump(exclude={"n", "min_yield", "prompts"})
    inputs = {**model_facts(recipe), "seed": recipe.seed, "engine": choose(recipe.engine), **asked,
              "prompts": settings.prompts and data_facts(settings.prompts)}  # fmt: skip
    if settings.checks.overlap and tests(recipe):
        inputs["held_out"] = {skill: data_facts(test) for skill, test in tests(recipe).items()}
    return inputs


def _generate(
    recipe: Recipe, settings: Generate, prompts: list[Record] | None, watch: Watch, step: Step
) -> tuple[dict[str, Any], dict[str, Any]]:
    from replaykit.checks.fidelity import RawSample
    from replaykit.runs import stop_on_signal

    chat, sample = _chat(recipe), RawSample()
    with _dropped(step) as funnel, stop_on_signal() as stopping:
        rows = generated(
            recipe, settings, step.folder, funnel=funnel, sample=sample, prompts=prompts, watch=watch,
            stopping=stopping,
        )  # fmt: skip
        made = write_jsonl(step.folder / "rows.jsonl", rows)
    kind = "prompts" if settings.prompts else "text" if chat.plain else "magpie"
    result = {"asked": settings.n, "rows": made, "kind": kind, "funnel": funnel.to_json(), "tokens": _tokens(step.folder),
              "fidelity": sample.summary()}  # fmt: skip
    if settings.tags is not None:
        result["tags"] = _tag(recipe, settings.tags, step, watch)
    facts = {"method": kind, "model": recipe.model, "revision": _revision(recipe), "seed": recipe.seed,
             "sampling": settings.model_dump(), "chat": recipe.chat.model_dump()}  # fmt: skip
    return result, facts if chat.plain else facts | {"pre_query": chat.template.pre_query, "date": chat.template.date}


def generated(recipe: Recipe, settings: Generate, folder: Path, **options: Any) -> Iterator[Record]:
    """The rows that the recipe's model makes in the folder; ``options`` go to ``sources.generate.generate``."""
    from replaykit.sources.generate import generate as draw

    facts = {"model": recipe.model, "answer_temperature": settings.answer_temperature}
    asked = sorted({_asked(row) for test in tests(recipe).values() for row in load(test, "target")})
    with _engine(recipe, recipe.model) as (engine, chat):
        yield from draw(
            engine, chat, settings=settings, seed=recipe.seed, folder=folder,
            held_out=asked if settings.checks.overlap else (), deployed=_deployed(recipe), facts=facts, **options,
        )  # fmt: skip


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
    rows = list(read_prompts(data.path, prompt=data.prompt, split=data.split, skip=data.skip, limit=data.n))
    if not rows:
        raise DataError(f"{data.path}: there is no row in it")
    return rows


def _tag(recipe: Recipe, tags: Tags, step: Step, watch: Watch) -> dict[str, dict[str, int]]:
    """Writes what a judge and a reward model say of the rows into them; counts the judge's words."""
    from replaykit.checks.judge import judge
    from replaykit.checks.reward import Reward
    from replaykit.runs import Ledger

    path = step.folder / "rows.jsonl"
    rows, said, rewards = list(read_jsonl(path)), {}, {}
    judged_by = _engine(recipe, tags.judge or recipe.model, of_recipe=tags.judge is None)
    with judged_by as (engine, chat), Ledger(step.folder / "tags.jsonl") as ledger:
        said = dict(judge(engine, chat, list(enumerate(rows)), ledger=ledger, seed=recipe.seed, watch=watch))
    if tags.reward is not None:
        watch("reward", 0, len(rows))
        rewards = dict(enumerate(Reward(tags.reward).score(rows)))
        watch("reward", len(rows), len(rows))
    made = (
        replace(row, meta={**row.meta, "tags": said[k], **({"reward": rewards[k]} if rewards else {})})
        for k, row in enumerate(rows)
    )
    write_jsonl(path, made)
    return {
        tag: dict(Counter(words[tag] for words in said.values()).most_common()) for tag in next(iter(said.values()), {})
    }


def _estimate(recipe: Recipe, settings: Generate, context: Context, price: float | None) -> dict[str, Any]:
    from replaykit.engines import choose
    from replaykit.sources.estimate import estimate, measured

    return estimate(
        model=str(recipe.model), revision=recipe.revision, settings=settings, engine_name=choose(recipe.engine),
        workers=recipe.engine.workers, tensor_parallel=recipe.engine.tensor_parallel,
        ledger_stats=measured(context.out or recipe.folder / "generate"), price_per_hour=price,
    )  # fmt: skip


def _deployed(recipe: Recipe) -> dict[str, float] | None:
    """The sampling that the model's generation_config names, if it has one."""
    if models.generation_config(str(recipe.model), recipe.revision) is None:
        return None
    return models.deployed_sampling(str(recipe.model), recipe.revision)


def rewrite(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    from replaykit.engines import choose

    need(recipe, "rewrite", "model", "target")
    settings, target = recipe.rewrite or Rewrite(), recipe.target
    assert target is not None
    inputs = {**model_facts(recipe), "seed": recipe.seed, "engine": choose(recipe.engine), "target": data_facts(target),
              **settings.model_dump()}  # fmt: skip

    def work(step: Step) -> tuple[dict[str, Any], dict[str, Any]]:
        from replaykit.sources import rewrite as source

        result = _rewritten(recipe, settings, step, load(target, "target"), context.watch)
        rows = list(read_jsonl(step.folder / "rows.jsonl"))
        return {"rows": result, "paths": source.counts(rows)}, {"method": settings.method, "model": recipe.model}

    yield _step("rewrite", recipe, context, inputs, work)


def _rewritten(recipe: Recipe, settings: Rewrite, step: Step, target: list[Record], watch: Watch) -> int:
    from replaykit.runs import Ledger
    from replaykit.sources.rewrite import rewrite as reword

    with _engine(recipe, recipe.model) as (engine, chat), Ledger(step.folder / "replies.jsonl") as ledger:
        options: Any = {
            "engine": engine, "chat": chat, "method": settings.method, "verify": settings.verify,
            "max_edit": settings.max_edit, "max_tokens": settings.max_tokens, "seed": recipe.seed, "ledger": ledger,
            "watch": watch,
        }  # fmt: skip
        if settings.editor is None:
            return write_jsonl(step.folder / "rows.jsonl", reword(target, **options))
        with _engine(recipe, settings.editor, of_recipe=False) as editor:
            return write_jsonl(step.folder / "rows.jsonl", reword(target, editor=editor, **options))


# --- mix and train --------------------------------------------------------------------------------------------------


def mix(recipe: Recipe, context: Context, *, export: Sequence[str] = ()) -> Iterator[Outcome]:
    """The mixture of each arm; then, from its rows, what each of the trainers named in ``export`` reads."""
    from replaykit.mix.export import check

    check(export)
    need(recipe, "mix", "model", "target")
    rewritten = recipe.folder / "rewrite" / "rows.jsonl"
    if recipe.rewrite is not None and not read_manifest(rewritten.parent):
        raise RunError(f"{rewritten.parent} is not finished; `replaykit rewrite` makes it")
    target = rewritten if recipe.rewrite is not None else None
    chat = cache(lambda: _chat(recipe))
    for arm, settings in arms(recipe, context):
        files = _replay_files(recipe, settings)
        inputs = {
            **model_facts(recipe),
            "seed": recipe.seed,
            "target": file_fingerprint(target) if target else data_facts(recipe.target),  # type: ignore[arg-type]
            "replay": {source: file_fingerprint(file) for source, file in files.items()},
            "weights": settings.sources,
            **settings.model_dump(exclude={"sources", "against"}),
            **_tested(recipe, settings.overlap, settings.against),
            **recipe.train.model_dump(include={"epochs", "steps", "batch_rows", "max_tokens"}),
            "controller": recipe.train.controller is not None,
        }
        work = partial(_mix, recipe, settings, target, files, chat, context.watch)
        outcome = _step("mix", recipe, context, inputs, work, arm=arm)
        yield _exported(recipe, outcome, export, chat, context.watch) if export else outcome


def _mix(
    recipe: Recipe, settings: Mix, rewritten: Path | None, files: Mapping[str, Path], chat: Callable[[], Chat],
    watch: Watch, step: Step,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    import hashlib

    from replaykit.mix.build import mix as blend

    target = list(read_jsonl(rewritten)) if rewritten else load(recipe.target, "target")  # type: ignore[arg-type]
    replay = {source: list(read_jsonl(file)) for source, file in files.items()}
    apart = held_out(recipe, settings.overlap, settings.against)
    with _dropped(step) as funnel:
        mixture = blend(
            target, replay, chat=chat(), settings=settings, train=recipe.train, seed=recipe.seed, held_out=apart,
            folder=step.folder, funnel=funnel, watch=watch,
        )  # fmt: skip
    path = step.folder / "rows.jsonl"
    write_jsonl(path, mixture.lines())
    if recipe.train.controller is not None:  # which may draw more, or others, than the plan does
        write_jsonl(step.folder / "replay.jsonl", mixture.replay())
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    facts = {"sources": {s: str(f) for s, f in files.items()}, "decontamination": apart and apart.to_json()}
    return mixture.summary(settings) | {"sha256": digest, "funnel": funnel.to_json()}, facts


def _exported(
    recipe: Recipe, outcome: Outcome, names: Sequence[str], chat: Callable[[], Chat], watch: Watch
) -> Outcome:
    from replaykit.mix.export import export

    made = export(names, outcome.folder, model=str(recipe.model), chat=chat(), train=recipe.train, watch=watch)
    return replace(outcome, result={**outcome.result, "exported": {name: str(place) for name, place in made.items()}})


def score(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    """How probable the model finds the answers that it will be trained on; what is known already is not asked again."""
    from replaykit.recipe import Stm
    from replaykit.train.score import by_source

    need(recipe, "score", "model")
    for arm, *_ in arms(recipe, context):
        mixture = recipe.folder / _label("mix", arm) / "rows.jsonl"
        if not read_manifest(mixture.parent):
            raise RunError(f"{mixture.parent} is not finished; `replaykit mix` makes it")
        own = recipe.arms[arm].remedies if arm else None
        limit = ((own or recipe.train.remedies).stm or Stm()).max_perplexity or Stm().max_perplexity
        inputs = {**model_facts(recipe), "mix": file_fingerprint(mixture), "max_perplexity": limit}

        def work(_: Step, mixture: Path = mixture, limit: float = limit or 0.0) -> Any:
            rows = list(read_jsonl(mixture))
            found, new = token_logprobs(recipe, rows, context.watch)
            sources = by_source(rows, found, max_perplexity=limit)
            result = {"rows": len(found), "scored": new, "max_perplexity": limit, "sources": sources}
            return result, {"model": recipe.model, "revision": _revision(recipe)}

        yield _step("score", recipe, context, inputs, work, arm=arm)


def token_logprobs(recipe: Recipe, rows: Sequence[Record], watch: Watch) -> tuple[dict[str, Any], int]:
    """``train.score.token_logprobs`` under the recipe's model, and how many rows were new; it is loaded only for those.

    All arms of a run share one file of what is known.
    """
    from replaykit.train import score as scoring

    assert recipe.model is not None
    made = scoring.examples(rows, _chat(recipe))
    with scoring.Scores(recipe.folder / "logprobs.jsonl", scoring.model_key(recipe.model, recipe.revision)) as known:
        new = len(scoring.unscored(made, known))
        if not new:
            return scoring.of_examples(made, None, known), 0
        with _engine(recipe, recipe.model) as (engine, _):
            return scoring.of_examples(made, engine, known, watch=watch), new


def train(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    """Each arm on its mixture. Of several processes that torchrun started, the first one holds the folder."""
    need(recipe, "train", "model")
    for arm, settings in arms(recipe, context):
        label, training = _label("train", arm), recipe.training(arm)
        mixture = recipe.folder / _label("mix", arm)
        if not read_manifest(mixture):
            raise RunError(f"{mixture} is not finished; `replaykit mix` makes it")
        inputs = {
            **model_facts(recipe),
            "seed": recipe.seed,
            "mix": file_fingerprint(mixture / "rows.jsonl"),
            **training.model_dump(),
        }
        if training.controller is not None:
            inputs["tests"] = {skill: data_facts(test) for skill, test in tests(recipe).items()}
        work = partial(_train, recipe, training, settings, mixture, label, context.watch)
        folder = context.out or recipe.folder / label
        if int(os.environ.get("RANK", "0")) > 0:
            if context.force or (read_manifest(folder) or {}).get("inputs") != inputs:
                work(Step(label, folder, inputs))
            continue
        yield _step("train", recipe, context, inputs, work, arm=arm)


def _train(
    recipe: Recipe, training: Train, settings: Mix, mixture: Path, what: str, watch: Watch, step: Step
) -> tuple[dict[str, Any], dict[str, Any]]:
    from replaykit.train.beside import Watched
    from replaykit.train.fit import train as fit

    assert recipe.model is not None
    with (mixture / "rows.jsonl").open(encoding="utf-8") as stream:
        steps = [json.loads(line)["step"] for line in stream]
    rows, chat, watched = list(read_jsonl(mixture / "rows.jsonl")), _chat(recipe), None
    spare = list(read_jsonl(mixture / "replay.jsonl")) if training.controller is not None else []
    if training.controller is not None:
        old = {skill: (test, load(test, "target")) for skill, test in recipe.eval.old.items()}
        target = load(recipe.eval.target, "target") if recipe.eval.target else []
        watched = Watched(training.controller, old, target, spare, settings)
    weights, facts = _weights(recipe, training, [*rows, *spare], chat, watch)
    result = fit(
        rows, steps, model=recipe.model, chat=chat, settings=training, seed=recipe.seed, folder=step.folder,
        revision=recipe.revision, weights=weights, watched=watched, what=what, watch=watch,
    )  # fmt: skip
    result |= {"model": str(step.folder / "model"), **facts}
    return result, {"base": recipe.model, "revision": _revision(recipe)}


def _weights(
    recipe: Recipe, training: Train, rows: Sequence[Record], chat: Chat, watch: Watch
) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """The weights of answer tokens where a remedy weighs them by the base's probabilities, and what it did to them."""
    if training.remedies.stm is None and training.remedies.flow is None:
        return None, {}
    from replaykit.train.remedies.weights import summary, weights
    from replaykit.train.score import examples

    logprobs, _ = token_logprobs(recipe, rows, watch)
    made = examples(rows, chat)
    found = weights(rows, made, logprobs, training.remedies, chat, recipe.seed)
    return found, {"weights": summary(rows, made, logprobs, found, training.remedies, chat)}


# --- merge ----------------------------------------------------------------------------------------------------------


def merge(
    recipe: Recipe, context: Context, *, method: str = "wise-ft", alpha: float | None = None,
    tuned: Sequence[str] = (), sweep: Sequence[float] | None = None, density: float = 0.2,
) -> Iterator[Outcome]:  # fmt: skip
    """An average of the base and what was tuned from it: of each arm, or with ties of all arms together.

    With ``sweep`` the average at each of its alphas is measured as ``eval`` measures models, and the best is kept.
    """
    from replaykit.engines import choose

    need(recipe, "merge", "model", *(["eval"] if sweep is not None else []))
    _can_merge(recipe, method, tuned, sweep)
    amount = None if sweep is not None else alpha if alpha is not None else 1.0 if method == "ties" else 0.5
    for arm, names in _tuned(recipe, context, method, tuned):
        identities = {name: models.identity(name) for name in names}
        inputs = {**model_facts(recipe), "method": method, "alpha": amount, "tuned": identities}
        if method == "ties":
            inputs["density"] = density
        if sweep is not None:
            tested = {skill: {**data_facts(test), "score": test.score} for skill, test in tests(recipe).items()}
            inputs |= {"engine": choose(recipe.engine), "tests": tested}

        def work(step: Step, names: Sequence[str] = names) -> tuple[dict[str, Any], dict[str, Any]]:
            from replaykit.train.merge import folder_of

            shutil.rmtree(step.folder / "model", ignore_errors=True)  # of a merge that was stopped before its manifest
            base, folders = folder_of(str(recipe.model), recipe.revision), [folder_of(name) for name in names]
            facts = {"base": recipe.model, "revision": _revision(recipe)}
            if sweep is not None:
                return _best_average(recipe, base, folders[0], sweep, step, context.watch), facts
            changed = _average(method, base, folders, step.folder / "model", amount or 0.0, density, context.watch)
            return {"method": method, "alpha": amount, "changed": changed, "model": str(step.folder / "model")}, facts

        yield _step("merge", recipe, context, inputs, work, arm=arm, asked=sweep)


def _average(
    method: str, base: Path, tuned: Sequence[Path], out: Path, alpha: float, density: float, watch: Watch
) -> int:
    from replaykit.train.merge import interpolate, scale_adapter, ties

    if method == "adapter":
        return scale_adapter(tuned[0], out, alpha)
    if method == "ties":
        return ties(base, tuned, out, density=density, scale=alpha, watch=watch)
    return interpolate(base, tuned[0], out, alpha, watch=watch)


def _best_average(
    recipe: Recipe, base: Path, tuned: Path, alphas: Sequence[float], step: Step, watch: Watch
) -> dict[str, Any]:
    """Measures the average at each alpha, whose items stay in the step's folder, and keeps the best one's model."""
    from replaykit.evaluate.compare import best_alpha, scores_of
    from replaykit.train.merge import interpolate

    rows = {skill: (test, load(test, "target")) for skill, test in tests(recipe).items()}
    items, trial = {"base": _measured(recipe, step, "base", str(recipe.model), rows, watch)}, step.folder / "trial"
    for alpha in alphas:
        name = f"alpha-{alpha:g}"
        shutil.rmtree(trial, ignore_errors=True)
        if alpha > 0 and not (step.folder / f"items-{name}.jsonl").exists():
            interpolate(base, tuned, trial, alpha, watch=partial(_under, watch, name))
        items[name] = _measured(recipe, step, name, str(trial), rows, watch) if alpha > 0 else items["base"]
    shutil.rmtree(trial, ignore_errors=True)
    scores = scores_of(tests(recipe), items)
    choice = best_alpha(scores["base"], {alpha: scores[f"alpha-{alpha:g}"] for alpha in alphas})
    write_json(step.folder / "table.json", choice.table)
    if choice.alpha is None:
        least = min(choice.table, key=lambda row: row["old_drop"]["high"])
        raise RunError(
            f"no alpha keeps the drop of old skills within 2 points: the least upper bound is "
            f"{100 * least['old_drop']['high']:.1f} points, at {least['alpha']:g} ({step.folder / 'table.json'}). "
            f"Add smaller alphas to --sweep; 0 is the base, and what was measured is kept"
        )
    interpolate(base, tuned, step.folder / "model", choice.alpha, watch=watch)
    return {"method": "wise-ft", "alpha": choice.alpha, "table": choice.table, "model": str(step.folder / "model"),
            "asked": list(alphas)}  # fmt: skip


def _under(watch: Watch, name: str, what: str, done: int, total: int | None, note: str = "") -> None:
    """The watch, with another name for each of several pieces of the same work."""
    watch(f"{what} {name}", done, total, note)


def _can_merge(recipe: Recipe, method: str, tuned: Sequence[str], sweep: Sequence[float] | None) -> None:
    """Raises RecipeError for what cannot be merged or swept, all problems at once."""
    problems = []
    if method not in ("wise-ft", "ties", "adapter"):
        problems.append(f"--method {method}: it is wise-ft, ties or adapter")
    if len(tuned) > 1 and method != "ties":
        problems.append(f"--tuned: {method} takes one; several are merged by --method ties")
    if sweep is not None:
        if method != "wise-ft":
            problems.append("--sweep: it is for wise-ft; an adapter is swept merged, as train leaves it in train/model")
        if not sweep or min(sweep) < 0 or max(sweep) > 1:
            problems.append("--sweep: alphas from 0 to 1, such as 0,0.1,...,1")
        if TARGET not in tests(recipe):
            problems.append("--sweep: it needs eval.target, by which the best alpha is known")
        if not any(test.score != "cross_entropy" for test in recipe.eval.old.values()):
            problems.append("--sweep: it needs a skill in eval.old that is scored right or wrong")
    if problems:
        raise RecipeError("the command line", problems)


def _tuned(recipe: Recipe, context: Context, method: str, given: Sequence[str]) -> list[tuple[str | None, list[str]]]:
    """What to merge with the base, by arm: what was given, or what was trained; with ties all together."""
    if given:
        return [(None, [models.resolve(name) for name in given])]
    found = []
    for arm, *_ in arms(recipe, context):
        folder = recipe.folder / _label("train", arm)
        if not read_manifest(folder):
            raise RunError(f"{folder} is not finished; `replaykit train` makes it, and --tuned takes another folder")
        made = folder / ("adapter" if method == "adapter" else "model")
        if not made.is_dir():
            raise RunError(f"{made}: there is no adapter; train.method: lora leaves one, --method wise-ft needs none")
        found.append((arm, [str(made)]))
    return [(None, [name for _, names in found for name in names])] if method == "ties" else found


# --- eval, report, push ---------------------------------------------------------------------------------------------


def evaluate(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    from replaykit.engines import choose

    need(recipe, "eval", "model", "eval")
    tuned = {}
    for arm, _ in arms(recipe, context):
        folder = recipe.folder / _label("train", arm)
        if not read_manifest(folder):
            raise RunError(f"{folder} is not finished; `replaykit train` makes it")
        tuned[arm or "tuned"] = folder
    inputs = {
        **model_facts(recipe),
        "engine": choose(recipe.engine),
        "tests": {skill: {**data_facts(test), "score": test.score} for skill, test in tests(recipe).items()},
        "tuned": {name: models.identity(str(folder / "model")) for name, folder in tuned.items()},
    }

    def work(step: Step) -> tuple[dict[str, Any], dict[str, Any]]:
        from replaykit.evaluate.compare import compare

        rows = {skill: (test, load(test, "target")) for skill, test in tests(recipe).items()}
        items, facts = {}, {}
        for name, model in {"base": str(recipe.model), **{n: str(f / "model") for n, f in tuned.items()}}.items():
            items[name] = _measured(recipe, step, name, model, rows, context.watch)
        for name, folder in tuned.items():
            mixed = read_manifest(recipe.folder / folder.name.replace("train", "mix", 1)) or {}
            facts[name] = {"ratio": mixed.get("requested"), "share": mixed.get("share", {}).get(mixed.get("unit")),
                           "steps": mixed.get("steps")}  # fmt: skip
        return compare(tests(recipe), items, facts), {}

    yield _step("eval", recipe, context, inputs, work)


def _measured(recipe: Recipe, step: Step, name: str, model: str, rows: Any, watch: Watch) -> dict[str, list[Any]]:
    """The items of one model by skill, from its file in the step's folder if it was measured before."""
    from replaykit.evaluate.skills import measure

    path = step.folder / f"items-{name}.jsonl"
    if not path.exists():
        with _engine(recipe, model) as (engine, chat):
            write_jsonl(path, measure(engine, chat, rows, what=f"eval {name}", watch=watch))
    found: dict[str, list[Any]] = {skill: [] for skill in rows}
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            item = json.loads(line)
            found[item["skill"]].append(item)
    return found


def report(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    import yaml

    from replaykit.report.html import write_report

    found = manifests(recipe.folder)
    if not found:
        raise RunError(
            f"{recipe.folder}: nothing is finished here, so there is nothing to report; `replaykit run` first"
        )
    evaluation = found.get("eval", {}).get("result", {"skills": [], "models": []})
    shown = yaml.safe_dump(recipe.model_dump(exclude_defaults=True), sort_keys=False, allow_unicode=True)
    folder = context.out or recipe.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = write_report(
        folder / "report.html", title=recipe.folder.name, evaluation=evaluation, manifests=found, recipe_yaml=shown
    )
    yield Outcome("report", folder, {"report": str(path)})


def push(recipe: Recipe, context: Context, *, dry_run: bool = False) -> Iterator[Outcome]:
    from replaykit.publish.hub import prepare, upload

    need(recipe, "push", "push.repo")
    assert recipe.push.repo is not None
    found = manifests(recipe.folder)
    files: dict[str, Path] = {s: recipe.folder / s / "rows.jsonl" for s in ("select", "generate") if s in found}
    if not files:
        raise RunError(f"{recipe.folder}: no replay to publish; `replaykit generate` or `replaykit select` first")
    folder = context.out or recipe.folder / "push"
    result = prepare(folder, recipe.push.repo, recipe, files, found)
    if not dry_run:
        context.watch("upload", 0, None)
        result["url"] = upload(folder, recipe.push.repo, private=recipe.push.private)
    yield Outcome("push", folder, result, note="dry run: nothing was uploaded" if dry_run else "")


# --- what the steps share -------------------------------------------------------------------------------------------


def arms(recipe: Recipe, context: Context) -> list[tuple[str | None, Mix]]:
    """The arms to do and the mix of each: the recipe's, with the arm's keys changed; one without a name where none."""
    if not recipe.arms:
        if context.arm is not None:
            raise RecipeError("the command line", [f"--arm {context.arm}: the recipe has no arms"])
        return [(None, recipe.mix)]
    if context.arm is not None and context.arm not in recipe.arms:
        raise RecipeError("the command line", [f"--arm {context.arm}: the recipe has {', '.join(recipe.arms)}"])
    chosen: Mapping[str, Arm] = {context.arm: recipe.arms[context.arm]} if context.arm else recipe.arms
    if context.out is not None and len(chosen) > 1:
        raise RecipeError("the command line", [f"--out takes one arm; choose it with --arm: {', '.join(chosen)}"])
    return [(name, _mix_of(recipe, arm)) for name, arm in chosen.items()]


def _mix_of(recipe: Recipe, arm: Arm) -> Mix:
    """The recipe's mix with the arm's keys. A ratio without a schedule is constant: a control of ratio 0 has no replay."""
    own = {key: value for key in ("ratio", "sources", "schedule") if (value := getattr(arm, key)) is not None}
    return recipe.mix.model_copy(update={"schedule": None, **own} if "ratio" in own else own)


def tests(recipe: Recipe) -> dict[str, Test]:
    """The held-out tests by skill, the old ones first, the target's under "target"."""
    if TARGET in recipe.eval.old:
        raise RecipeError(
            "the recipe", [f"eval.old.{TARGET}: that name is the new skill's; call the old one otherwise"]
        )
    return recipe.eval.old | ({TARGET: recipe.eval.target} if recipe.eval.target else {})


def load(data: Data, source: Source) -> list[Record]:
    """The rows that a recipe names. Raises DataError if there are none."""
    rows = list(
        read_records(
            data.path, source, prompt=data.prompt, answer=data.answer, split=data.split, skip=data.skip, limit=data.n
        )
    )
    if not rows:
        raise DataError(f"{data.path}: there is no row in it")
    return rows


def manifests(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifests of the finished steps of a run, by step."""
    found = {path.parent.name: read_manifest(path.parent) for path in sorted(folder.glob("*/manifest.json"))}
    return {name: manifest for name, manifest in found.items() if manifest and ".old" not in name}


def data_facts(data: Prompts) -> dict[str, Any]:
    """What identifies rows: how they are read, and the bytes of local files."""
    path = Path(data.path)
    content = {"content": file_fingerprint(path)} if path.exists() else {}
    return data.model_dump(include={"path", "prompt", "answer", "split", "skip", "n"}) | content


def model_facts(recipe: Recipe) -> dict[str, Any]:
    """What identifies the model and its chat: name, revision and options, and the files where it is a folder."""
    name = str(recipe.model)
    options = recipe.chat.model_dump(exclude_defaults=True)
    facts = {"model": name, "revision": recipe.revision, "weights": models.identity(name)}
    return facts | ({"chat": options} if options else {})


def _revision(recipe: Recipe) -> str | None:
    return recipe.revision or models.fetched(str(recipe.model))


def _replay_files(recipe: Recipe, settings: Mix) -> dict[str, Path]:
    """The finished replay of an arm. Raises RunError where one that it asks for is not finished."""
    from replaykit.mix.schedule import most

    if most(settings.schedule, settings.ratio) == 0:
        return {}
    done = [source for source in ("select", "generate") if read_manifest(recipe.folder / source)]
    wanted = list(settings.sources) if settings.sources is not None else (recipe.replay_sources or done)
    for source in wanted:
        if source not in done:
            raise RunError(f"{recipe.folder / source} is not finished; `replaykit {source}` makes it")
    return {source: recipe.folder / source / "rows.jsonl" for source in wanted}


def _label(step: str, arm: str | None) -> str:
    return step if arm is None else f"{step}-{arm}"


def _step(
    name: str, recipe: Recipe, context: Context, inputs: Mapping[str, Any], work: Work, *, arm: str | None = None,
    asked: object = None,
) -> Outcome:  # fmt: skip
    """Does the work in the step's folder unless it is finished there; ``asked`` tells a finished shorter one apart."""
    label = _label(name, arm)
    folder = context.out or recipe.folder / label
    with open_step(label, folder, inputs, force=context.force) as step:
        before = step.result
        if before is not None and (asked is None or before.get("asked") == asked):
            return Outcome(label, folder, before, skipped=True, note="finished before; --force does it again")
        step.manifest_path.unlink(missing_ok=True)
        result, facts = work(step)
        note = f"the earlier one is in {step.moved} ({'; '.join(step.changed) or '--force'})" if step.moved else ""
        return Outcome(label, folder, step.finish(result, **facts), note=note)


def _chat(recipe: Recipe) -> Chat:
    from replaykit.chat import Chat

    return Chat.load(str(recipe.model), recipe.revision, recipe.chat)


@contextmanager
def _engine(recipe: Recipe, model: str | None, *, of_recipe: bool = True) -> Iterator[tuple[Any, Any]]:
    """A model and its chat. The recipe's chat options are for its own model and what is tuned from it, not for others."""
    from replaykit.chat import Chat
    from replaykit.engines import load_engine

    assert model is not None
    revision = recipe.revision if model == recipe.model else None
    chat = Chat.load(model, revision, recipe.chat if of_recipe else None)
    engine = load_engine(model, recipe.engine, revision=revision)
    try:
        yield engine, chat
    finally:
        engine.close()


@contextmanager
def _dropped(step: Step) -> Iterator[Funnel]:
    """A funnel that writes each dropped row, with its reason, to dropped.jsonl."""
    with (step.folder / "dropped.jsonl").open("w", encoding="utf-8") as stream:
        yield Funnel(lambda row: stream.write(json.dumps(row, ensure_ascii=False) + "\n"))


def _watched(rows: Sequence[Record], what: str, watch: Watch) -> Iterator[Record]:
    for number, row in enumerate(rows, 1):
        if number % 500 == 0 or number == len(rows):
            watch(what, number, len(rows))
        yield row


STEPS: dict[str, Callable[..., Iterator[Outcome]]] = {
    "probe": probe,
    "select": select,
    "generate": generate,
    "rewrite": rewrite,
    "mix": mix,
    "score": score,
    "train": train,
    "merge": merge,
    "eval": evaluate,
    "report": report,
    "push": push,
}
