"""The functions that train, measure, show and publish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

from replaykit.api.arguments import (
    Rows,
    Tests,
    check_keywords,
    check_model,
    facts_of,
    model_of,
    place_of,
    records_of,
    settings_of,
    stream,
    tests_of,
    watching,
)
from replaykit.api.data import LENGTHS, Mixed, Rewritten
from replaykit.api.keywords import ModelOptions, RepairOptions, TrainOptions
from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import TARGET, Record
from replaykit.errors import CallError, DataError, RecipeError, did_you_mean
from replaykit.hashing import fingerprint
from replaykit.recipe import Recipe, load_recipe
from replaykit.recipe.evaluate import MARGIN, Eval
from replaykit.recipe.push import Push
from replaykit.recipe.repair import Repair
from replaykit.recipe.train import Train
from replaykit.result import Result
from replaykit.runs import Manifest, Step, Watch, machine, open_step, versions
from replaykit.steps import pipeline
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.generate.step import check_can_ask, generate_inputs
from replaykit.steps.inputs import other_facts
from replaykit.steps.push.result import PushResult
from replaykit.steps.repair.result import RepairResult
from replaykit.steps.results import RESULTS
from replaykit.steps.select.selection import Selection
from replaykit.steps.step import Context, Outcome, Todo, chat_of, do_step, label_of, model_facts
from replaykit.steps.train.result import TrainResult
from replaykit.steps.train.step import Job

Shown = Result | Selection | Rewritten | Mixed
"""A result, or an object that has one."""


def train(
    mixture: Mixed,
    *,
    model: str,
    folder: str | Path,
    tests: Tests | None = None,
    seed: int = 1,
    progress: bool = False,
    watch: Watch | None = None,
    **settings: Unpack[TrainOptions],
) -> TrainResult:
    """The model fine-tuned on the mixture's rows, in their order; the tuned model is in
    ``folder``/model.

    ``settings`` are the keys of the recipe's section ``train`` that ``mix`` has not decided
    already, beside ``engine``, ``chat`` and ``revision``; ``tests`` are for a controller, as
    ``evaluate`` takes them. A call that was stopped goes on when it is made again, and one that was
    finished gives its result at once. Raises CallError for a keyword that does not exist.

    >>> target = [{"prompt": "1 + 1?", "completion": "2"}]
    >>> mixture = replaykit.mix(target, {}, model="nano", ratio=0)
    >>> replaykit.train(mixture, model="nano", folder="runs/tiny").steps
    1
    """
    recipe, own = model_of("train", model, seed, settings)
    decided = [name for name in LENGTHS if name in own]
    if decided:
        raise CallError(f"train(): {decided[0]} is decided by the mixture; give it to mix()")
    if not isinstance(mixture, Mixed):
        kind = type(mixture).__name__
        raise CallError(f"train(): its first argument is what mix() returns, not a {kind}")
    chosen = _training(mixture, own)
    scored = tests_of("train(): tests", tests, recipe=recipe)
    if chosen.controller is not None:
        old = any(skill != TARGET for skill in scored.rows)
        target = TARGET in scored.rows
        # The controller speaks of a recipe's sections; what they are called in a call is said here.
        if not scored.rows or chosen.controller.missing(old=old, target=True):
            raise CallError(
                "train(): controller tests old skills; give their held-out rows by skill as tests="
            )
        if chosen.controller.missing(old=old, target=target):
            raise CallError(
                "train(): controller has patience, which needs held-out rows of the target: "
                "tests={'target': rows}; or say \"patience\": None"
            )
    job = Job(
        # What the base finds probable is kept in the folder, too.
        recipe.model_copy(update={"out": str(folder)}),
        chosen,
        mixture.rows,
        held=scored,
        replay=mixture.replay,
        mix=mixture.settings,
    )
    inputs = {
        **model_facts(recipe),
        "seed": seed,
        "mix": mixture.result.sha256,
        "train": chosen.decisive(),
        "eval": facts_of(scored),
    }

    def work(step: Step) -> TrainResult:
        with watching(progress, watch) as told:
            return job.work(step.folder, chat_of(recipe), told)

    todo = Todo("train", inputs, TrainResult, work)
    return do_step(todo, recipe, Context(out=Path(folder))).result


def _training(mixture: Mixed, given: Mapping[str, object]) -> Train:
    """The settings of a training. Raises RecipeError for one that would do nothing."""
    lengths = mixture.lengths.model_dump(include=set(LENGTHS))
    chosen = settings_of("train", Train, given, **lengths)
    idle = [f"{name}: {why}" for name, why in chosen.without_effect.items()]
    if idle:
        raise RecipeError("train()", idle)
    return chosen


def evaluate(
    models: Mapping[str, str],
    tests: Tests,
    *,
    mixtures: Mapping[str, Mixed] | None = None,
    max_tokens: int = 256,
    margin: float = MARGIN,
    folder: str | Path | None = None,
    progress: bool = False,
    watch: Watch | None = None,
    **options: Unpack[ModelOptions],
) -> EvalResult:
    """Scores of the models on the same held-out rows, and what the tuned ones lost.

    The first model is the base. ``tests`` are rows by skill, the new one under "target"; a pair
    ``(rows, score)`` says how answers are scored, as ``score`` of a recipe's test does; a suite,
    "suite:facts", says it itself.
    ``mixtures`` say by model what it was trained on. ``max_tokens`` is of an answer with its
    thought. A drop below ``margin`` is called no forgetting. With a ``folder`` the answers stay
    there, and the same call asks no model twice. Raises CallError for a keyword or a score that
    does not exist, DataError for rows that cannot be scored.

    >>> rows = [{"prompt": "What is the capital of France?", "completion": "Paris"}]
    >>> replaykit.evaluate({"base": "nano"}, {"capital": rows}).models[0].scores["capital"].mean
    1.0
    """
    from replaykit.steps.evaluate.compare import compare
    from replaykit.steps.evaluate.scorable import scorable
    from replaykit.steps.evaluate.step import measured

    check_keywords("evaluate", options, ModelOptions.__annotations__)
    if not models or not isinstance(models, Mapping):
        raise CallError("evaluate() needs models by name, the base first: {'base': 'nano'}")
    for name, model in models.items():
        check_model(f"evaluate(): models['{name}']", model)
    for name, mixture in (mixtures or {}).items():
        if name not in models:
            near = did_you_mean(name, models)
            raise CallError(f"evaluate(): mixtures names '{name}', which is no model{near}")
        if not isinstance(mixture, Mixed):
            kind = type(mixture).__name__
            raise CallError(f"evaluate(): mixtures['{name}'] is what mix() returns, not a {kind}")
    recipe, _ = model_of("evaluate", next(iter(models.values())), 1, options)
    given = tests_of("evaluate(): tests", tests, max_tokens=max_tokens, recipe=recipe)
    scored = scorable(chat_of(recipe), given)
    inputs = {**model_facts(recipe), "eval": facts_of(scored)}
    with ExitStack() as stack:
        place = stack.enter_context(place_of(folder))
        step = stack.enter_context(open_step("eval", place / "items", inputs))
        told = stack.enter_context(watching(progress, watch))
        items = {
            name: measured(recipe, step, name, model, scored.rows, told)
            for name, model in models.items()
        }
    mixed = {name: mixture.result for name, mixture in (mixtures or {}).items()}
    named = {skill: test for skill, (test, _) in scored.rows.items()}
    return compare(named, items, mixed, margin).noted(*scored.notes)


def repair(
    tuned: str,
    *,
    base: str,
    tests: Tests,
    folder: str | Path,
    target: Rows | None = None,
    max_tokens: int = 256,
    margin: float = MARGIN,
    seed: int = 1,
    progress: bool = False,
    watch: Watch | None = None,
    **settings: Unpack[RepairOptions],
) -> RepairResult:
    """A model that was tuned already, brought back towards its base by some hundred steps on rows
    that the base writes itself; of the models on the way the one with the best new skill that keeps
    the old ones. It is in the result's ``model``, which is ``tuned`` where none was better.

    ``tests`` are as ``evaluate`` takes them, the new skill under "target". ``settings`` are the
    keys of the recipe's section ``repair`` (``steps=100``), beside ``engine``, ``chat`` and
    ``revision``. With rows of the new task as ``target`` half of each step are these, or the part
    that ``rehearse`` says. A call that was stopped goes on when it is made again. Raises CallError
    for a keyword that does not exist, and where ``tests`` has no old skill.

    >>> tests = {"capital": "suite:nano-capital", "target": "task_test.jsonl"}
    >>> replaykit.repair("runs/tuned/model", base="nano", tests=tests, folder="runs/repair").verdict
    'repaired'
    """
    from replaykit.steps.evaluate.scorable import scorable
    from replaykit.steps.evaluate.step import scored_twice
    from replaykit.steps.repair.step import Job as Repairing
    from replaykit.steps.repair.step import settings_of as drawn_by

    check_model("repair(): tuned", tuned)
    recipe, own = model_of("repair", base, seed, settings)
    if target is None and own.get("rehearse") is not None:
        raise CallError("repair(): rehearse is the part of the target's rows; give them as target=")
    chosen = settings_of("repair", Repair, own if target is None else {"rehearse": 0.5, **own})
    recipe = recipe.model_copy(
        update={"repair": chosen, "eval": Eval(margin=margin), "out": str(folder)}
    )
    given = tests_of("repair(): tests", tests, max_tokens=max_tokens, target=target, recipe=recipe)
    if not any(skill != TARGET for skill in given.rows):
        raise CallError("repair(): tests has no old skill, by which it is known what to keep")
    rehearsed: list[Record] = []
    if target is not None:
        rehearsed = records_of("repair(): target", target, TARGET).records
    drawn = drawn_by(recipe)
    check_can_ask(recipe, drawn)
    twice = scored_twice(recipe)
    inputs = {
        **generate_inputs(recipe, drawn),
        "repair": chosen.decisive(),
        "rehearsed": fingerprint([record.id for record in rehearsed]),
        "tests": facts_of(given),
        "margin": margin,
        "twice": twice,
        "tuned": other_facts(tuned),
    }

    def work(step: Step) -> RepairResult:
        held = scorable(chat_of(recipe), given)
        with watching(progress, watch) as told:
            return Repairing(recipe, tuned, held, rehearsed, twice).work(step, told)

    todo = Todo("repair", inputs, RepairResult, work)
    return do_step(todo, recipe, Context(out=Path(folder))).result


def report(
    *results: Shown | Mapping[str, Shown], out: str | Path = "report.html", title: str = "replaykit"
) -> Path:
    """Writes one page, which needs nothing else, about these results; returns its path.

    Of several trainings or mixtures, a mapping gives each by its model's name, as ``evaluate`` has
    it. Raises CallError for what is no result of a step.

    >>> target = [{"prompt": "1 + 1?", "completion": "2"}]
    >>> mixture = replaykit.mix(target, {}, model="nano", ratio=0)
    >>> replaykit.report(mixture, out="mixture.html").name
    'mixture.html'
    """
    from replaykit.steps.report.html import write_report

    manifests: dict[str, Manifest] = {}
    for arm, shown in _by_arm(results):
        manifest = _manifest(shown, arm)
        manifests[label_of(manifest.step, arm)] = manifest
    return write_report(Path(out), title=title, manifests=manifests, recipe_yaml="")


def _by_arm(results: Iterable[Shown | Mapping[str, Shown]]) -> Iterator[tuple[str | None, Shown]]:
    for given in results:
        if isinstance(given, Mapping):
            yield from given.items()
        else:
            yield None, given


def _manifest(shown: Shown, arm: str | None) -> Manifest:
    """The manifest that a step with this result would have."""
    result: Any = getattr(shown, "result", shown)
    steps = [step for step, kind in RESULTS.items() if isinstance(result, kind)]
    if not steps:
        raise CallError(f"report() shows no {type(shown).__name__}")
    return Manifest(
        step=steps[0],
        arm=arm,
        result=result.to_json(),
        inputs={},
        seconds=None,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        machine=machine(),
    )


def push(
    rows: Rows,
    *,
    repo: str,
    model: str | None = None,
    private: bool = True,
    columns: Sequence[str] = (),
    license: str | None = None,
    dry_run: bool = False,
    folder: str | Path | None = None,
) -> PushResult:
    """Publishes replay rows, with a card that says what they are, as a data set on the Hub.

    Each source is a split; rows that name none are old data, as of select. With ``dry_run`` the
    data set stays in ``folder``, by default runs/<name>/push, and nothing is sent. ``model`` is
    whose memory the rows keep, for the card. Of what is known of a row, what replaykit wrote is
    published, and of your own ``columns`` these. ``license`` is the data set's, as the Hub names
    it.
    Raises HubError for a repo that is no owner/name, and where the Hub refuses.

    >>> rows = replaykit.generate("nano", 5)
    >>> replaykit.push(rows, repo="me/memory", dry_run=True).rows
    {'generate': 5}
    """
    from replaykit.steps.push.hub import prepare, upload

    by_source: dict[str, list[Record]] = {}
    for record in stream("push(): rows", rows, None):
        by_source.setdefault(record.source, []).append(record)
    if not by_source:
        raise DataError("push(): there is no row to publish")
    place = Path("runs", repo.rpartition("/")[2], "push") if folder is None else Path(folder)
    with TemporaryDirectory() as name:
        files = {source: Path(name) / f"{source}.jsonl" for source in by_source}
        for source, records in by_source.items():
            write_jsonl(files[source], records)
        recipe = Recipe(model=model, push=Push(columns=list(columns), license=license))
        result = prepare(place, repo, recipe, files, {})
    if dry_run:
        return result
    return result.model_copy(update={"url": upload(place, repo, private=private)})


def run(
    recipe: Recipe | str | Path,
    *,
    force: bool = False,
    progress: bool = False,
    watch: Watch | None = None,
) -> list[Outcome[Any]]:
    """All that a recipe asks for, as ``replaykit run`` does it; finished steps are skipped.

    Raises RecipeError for a recipe without a model or a target.

    >>> [outcome.step for outcome in replaykit.run("replaykit.yaml")]
    ['mix', 'train', 'report']
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    with watching(progress, watch) as told:
        return list(pipeline.run(recipe, Context(force=force, watch=told)))
