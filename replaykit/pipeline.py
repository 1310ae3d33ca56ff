"""The steps in order, each from a recipe to a folder: what the commands call.

    select, generate, rewrite  ->  mix  ->  train  ->  eval  ->  report

With ``arms`` in the recipe, mix and train are done once for each arm (``mix-<arm>``, ``train-<arm>``), and eval compares
them all with the base. A step reads what earlier steps left in their folders, never the memory of this process.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaykit import models
from replaykit.checks.funnel import Funnel
from replaykit.errors import DataError, RecipeError, RunError
from replaykit.evaluate.skills import TARGET
from replaykit.recipe import ROWS, SCORED, Arm, Data, Generate, Mix, Prompts, Recipe, Rewrite, Select, Tags, Test, need
from replaykit.records import Record, Source, file_fingerprint, read_jsonl, read_prompts, read_records, write_jsonl
from replaykit.runs import Step, Watch, open_step, read_manifest, unwatched

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


def mix(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    from replaykit.mix.build import mix as blend

    need(recipe, "mix", "model", "target")
    assert recipe.target is not None and recipe.model is not None
    rewritten = recipe.folder / "rewrite" / "rows.jsonl"
    if recipe.rewrite is not None and not read_manifest(rewritten.parent):
        raise RunError(f"{rewritten.parent} is not finished; `replaykit rewrite` makes it")
    target = rewritten if recipe.rewrite is not None else None
    chat: Chat | None = None
    for arm, settings in arms(recipe, context):
        files = _replay_files(recipe, settings)
        inputs = {
            **model_facts(recipe),
            "seed": recipe.seed,
            "target": file_fingerprint(target) if target else data_facts(recipe.target),
            "replay": {source: file_fingerprint(file) for source, file in files.items()},
            "held_out": {skill: data_facts(test) for skill, test in tests(recipe).items()},
            **settings.model_dump(exclude={"sources"}),
            **recipe.train.model_dump(include={"epochs", "steps", "batch_rows", "max_tokens"}),
        }

        def work(step: Step, settings: Mix = settings, files: Mapping[str, Path] = files) -> Any:
            nonlocal chat
            chat = chat or _chat(recipe)
            wanted = list(read_jsonl(target)) if target else load(recipe.target, "target")  # type: ignore[arg-type]
            asked = {_asked(record) for test in tests(recipe).values() for record in load(test, "target")}
            with _dropped(step) as funnel:
                mixture = blend(
                    wanted, {source: list(read_jsonl(file)) for source, file in files.items()}, chat=chat,
                    settings=settings, train=recipe.train, seed=recipe.seed, held_out=asked, funnel=funnel,
                    watch=context.watch,
                )  # fmt: skip
            write_jsonl(step.folder / "rows.jsonl", mixture.lines())
            result = mixture.summary(settings.ratio, settings.unit)
            return result | {"funnel": funnel.to_json()}, {"sources": {s: str(f) for s, f in files.items()}}

        yield _step("mix", recipe, context, inputs, work, arm=arm)


def train(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    need(recipe, "train", "model")
    for arm, _ in arms(recipe, context):
        label = _label("mix", arm)
        mixture = recipe.folder / label / "rows.jsonl"
        if not read_manifest(mixture.parent):
            raise RunError(f"{mixture.parent} is not finished; `replaykit mix` makes it")
        inputs = {
            **model_facts(recipe),
            "seed": recipe.seed,
            "mix": file_fingerprint(mixture),
            **recipe.train.model_dump(),
        }
        work = partial(_train, recipe, mixture, _label("train", arm), context.watch)
        yield _step("train", recipe, context, inputs, work, arm=arm)


def _train(recipe: Recipe, mixture: Path, what: str, watch: Watch, step: Step) -> tuple[dict[str, Any], dict[str, Any]]:
    from replaykit.train.trainer import train as fit

    assert recipe.model is not None
    with mixture.open(encoding="utf-8") as stream:
        steps = [json.loads(line)["step"] for line in stream]
    result = fit(
        list(read_jsonl(mixture)), steps, model=recipe.model, chat=_chat(recipe),
        settings=recipe.train, seed=recipe.seed, folder=step.folder, revision=recipe.revision, what=what, watch=watch,
    )  # fmt: skip
    return result | {"model": str(step.folder / "model")}, {"base": recipe.model, "revision": _revision(recipe)}


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
    return [(name, recipe.mix.model_copy(update=arm.model_dump(exclude_none=True))) for name, arm in chosen.items()]


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
    if settings.ratio == 0:
        return {}
    done = [source for source in ("select", "generate") if read_manifest(recipe.folder / source)]
    wanted = settings.sources if settings.sources is not None else (recipe.replay_sources or done)
    for source in wanted:
        if source not in done:
            raise RunError(f"{recipe.folder / source} is not finished; `replaykit {source}` makes it")
    return {source: recipe.folder / source / "rows.jsonl" for source in wanted}


def _label(step: str, arm: str | None) -> str:
    return step if arm is None else f"{step}-{arm}"


def _step(
    name: str, recipe: Recipe, context: Context, inputs: Mapping[str, Any], work: Work, *, arm: str | None = None,
    asked: int | None = None,
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
    "train": train,
    "eval": evaluate,
    "report": report,
    "push": push,
}
