"""The steps from rows to tuned models: mix, score, train. Each is done once for each arm."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaykit.errors import DataError, RunError
from replaykit.evaluate.skills import TARGET, check_tests
from replaykit.pipeline.rows import data_facts, held_out, held_out_facts, load, scored_facts, tests
from replaykit.pipeline.step import (
    Context,
    Outcome,
    arms,
    chat_of,
    do_step,
    engine_and_chat,
    funnel_of,
    label_of,
    model_facts,
    need_step,
    revision_of,
)
from replaykit.recipe import Recipe, need
from replaykit.records import Record, file_fingerprint, read_jsonl, write_jsonl
from replaykit.runs import Step, Watch, differences, read_manifest
from replaykit.training_settings import Mix, Stm, Train

if TYPE_CHECKING:
    from replaykit.chat import Chat


def mix(recipe: Recipe, context: Context, *, export: Sequence[str] = ()) -> Iterator[Outcome]:
    """The mixture of each arm; then, from its rows, what each of the trainers named in ``export``
    reads.
    """
    from replaykit.mix.export import check

    check(export)
    need(recipe, "mix", "model", "target")
    target = _rewritten(recipe)
    chat = cache(lambda: chat_of(recipe))
    for arm, settings in arms(recipe, context):
        files = _replay_files(recipe, settings)
        inputs = {
            **model_facts(recipe),
            "seed": recipe.seed,
            "target": file_fingerprint(target) if target else data_facts(recipe.target),  # type: ignore[arg-type]
            "replay": {source: file_fingerprint(file) for source, file in files.items()},
            **settings.model_dump(exclude={"against"}),
            **held_out_facts(recipe, settings.overlap, settings.against),
            "train": _length_facts(recipe),
        }
        work = partial(_mix, recipe, settings, target, files, chat, context.watch)
        outcome = do_step("mix", recipe, context, inputs, work, arm=arm)
        yield _exported(recipe, outcome, export, chat, context.watch) if export else outcome


def _rewritten(recipe: Recipe) -> Path | None:
    """The target in the model's own words, where the recipe asks for it or `rewrite` has made it.

    Raises RunError where it is not finished, or is of another target.
    """
    folder = recipe.folder / "rewrite"
    if recipe.rewrite is None and not read_manifest(folder):
        return None
    made = need_step(folder, "rewrite")
    otherwise = "; without that folder the target is taken as it is"
    todo = f"`replaykit rewrite` makes it anew{otherwise if recipe.rewrite is None else ''}"
    _same(made, {"target": data_facts(recipe.target)}, todo)  # type: ignore[arg-type]
    return made / "rows.jsonl"


def _mixture(recipe: Recipe, arm: str | None) -> Path:
    """The finished mixture of an arm. Raises RunError where it was made for another model, or
    another length of training.

    That its share is another than the recipe's is no error: `mix --ratio 0.1` has made it so.
    """
    folder = need_step(recipe.folder / label_of("mix", arm), "mix")
    _same(
        folder,
        {"model": recipe.model, "train": _length_facts(recipe)},
        "`replaykit mix` makes it anew",
    )
    return folder


def _length_facts(recipe: Recipe) -> dict[str, Any]:
    """What of the training decides which rows a mixture has, and in how many steps."""
    facts = recipe.train.model_dump(include={"epochs", "steps", "batch_rows", "max_tokens"})
    return facts | {"controller": recipe.train.controller is not None}


def _same(folder: Path, now: Mapping[str, Any], todo: str) -> None:
    """Raises RunError, with what to do, where one of these inputs of a finished step was
    another.
    """
    inputs = (read_manifest(folder) or {}).get("inputs", now)
    if changed := differences({key: inputs.get(key) for key in now}, now):
        raise RunError(f"{folder} was made otherwise: {'; '.join(changed)}. {todo}")


def _mix(
    recipe: Recipe,
    settings: Mix,
    rewritten: Path | None,
    files: Mapping[str, Path],
    chat: Callable[[], Chat],
    watch: Watch,
    step: Step,
) -> tuple[dict[str, Any], dict[str, Any]]:
    import hashlib

    from replaykit.mix.build import mix as blend

    if rewritten:
        target = [replace(record, source="target") for record in read_jsonl(rewritten)]
    else:
        target = load(recipe.target, "target")  # type: ignore[arg-type]
    replay = {source: list(read_jsonl(file)) for source, file in files.items()}
    apart = held_out(recipe, settings.overlap, settings.against)
    with funnel_of(step) as funnel:
        mixture = blend(
            target,
            replay,
            chat=chat(),
            settings=settings,
            train=recipe.train,
            seed=recipe.seed,
            held_out=apart,
            folder=step.folder,
            funnel=funnel,
            watch=watch,
        )
    path = step.folder / "rows.jsonl"
    write_jsonl(path, mixture.lines())
    if recipe.train.controller is not None:  # which may draw more, or others, than the plan does
        write_jsonl(step.folder / "replay.jsonl", mixture.replay())
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    facts = {
        "sources": {s: str(f) for s, f in files.items()},
        "decontamination": apart and apart.to_json(),
    }
    return mixture.summary(settings) | {"sha256": digest, "funnel": funnel.to_json()}, facts


def _replay_files(recipe: Recipe, settings: Mix) -> dict[str, Path]:
    """The finished replay of an arm. Raises RunError where one that it asks for is not finished."""
    from replaykit.mix.schedule import most

    if most(settings.schedule, settings.ratio) == 0:
        return {}
    done = [source for source in ("select", "generate") if read_manifest(recipe.folder / source)]
    wanted = (
        list(settings.sources) if settings.sources is not None else (recipe.replay_sources or done)
    )
    return {source: need_step(recipe.folder / source, source) / "rows.jsonl" for source in wanted}


def _exported(
    recipe: Recipe, outcome: Outcome, names: Sequence[str], chat: Callable[[], Chat], watch: Watch
) -> Outcome:
    from replaykit.mix.export import export

    made = export(
        names,
        outcome.folder,
        model=str(recipe.model),
        revision=recipe.revision,
        chat=chat(),
        train=recipe.train,
        watch=watch,
    )
    return replace(
        outcome,
        result={**outcome.result, "exported": {name: str(place) for name, place in made.items()}},
    )


def score(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    """How probable the model finds the answers that it will be trained on; what is known already is
    not asked again.
    """
    from replaykit.train.score import by_source

    need(recipe, "score", "model")
    for arm, *_ in arms(recipe, context):
        mixture = _mixture(recipe, arm) / "rows.jsonl"
        limit = (recipe.training(arm).remedies.stm or Stm()).max_perplexity or Stm().max_perplexity
        assert limit is not None
        inputs = {**model_facts(recipe), "mix": file_fingerprint(mixture), "max_perplexity": limit}

        def work(_: Step, mixture: Path = mixture, limit: float = limit) -> Any:
            rows = list(read_jsonl(mixture))
            found, new = token_logprobs(recipe, rows, context.watch)
            sources = by_source(rows, found, max_perplexity=limit)
            result = {
                "rows": len(found),
                "scored": new,
                "max_perplexity": limit,
                "sources": sources,
            }
            return result, {"model": recipe.model, "revision": revision_of(recipe)}

        yield do_step("score", recipe, context, inputs, work, arm=arm)


def token_logprobs(
    recipe: Recipe, rows: Sequence[Record], watch: Watch
) -> tuple[dict[str, Any], int]:
    """``train.score.token_logprobs`` under the recipe's model, and how many rows were new; it is
    loaded only for those.

    All arms of a run share one file of what is known.
    """
    from replaykit.train import score as scoring

    assert recipe.model is not None
    made = scoring.examples(rows, chat_of(recipe))
    with scoring.Scores(
        recipe.folder / "logprobs.jsonl", scoring.model_key(recipe.model, recipe.revision)
    ) as known:
        new = len(scoring.unscored(made, known))
        if not new:
            return scoring.of_examples(made, None, known), 0
        with engine_and_chat(recipe, recipe.model) as (engine, _):
            return scoring.of_examples(made, engine, known, watch=watch), new


def train(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    """Each arm on its mixture. Of several processes that torchrun started, the first one holds the
    folder.
    """
    need(recipe, "train", "model")
    mixtures = {arm: _mixture(recipe, arm) for arm, _ in arms(recipe, context)}
    for arm, mixture in mixtures.items():
        label = label_of("train", arm)
        training = recipe.training(arm)
        inputs = {
            **model_facts(recipe),
            "seed": recipe.seed,
            "mix": file_fingerprint(mixture / "rows.jsonl"),
            **training.model_dump(),
        }
        if training.controller is not None:
            inputs["tests"] = scored_facts(recipe)
            inputs["replay"] = {"rows": file_fingerprint(mixture / "replay.jsonl")} | _mixed_by(
                mixture
            )
        if training.remedies.ewc is not None and training.remedies.ewc.old is not None:
            inputs["old"] = data_facts(training.remedies.ewc.old)
        work = partial(_train, recipe, training, mixture, label, context.watch)
        folder = context.out or recipe.folder / label
        if int(os.environ.get("RANK", "0")) > 0:
            if context.force or (read_manifest(folder) or {}).get("inputs") != inputs:
                work(Step(label, folder, inputs))
            continue
        yield do_step("train", recipe, context, inputs, work, arm=arm)


def _mixed_by(mixture: Path) -> dict[str, Any]:
    """By which settings a mixture was made that a controller goes on with, whatever the recipe says
    now.
    """
    inputs = (read_manifest(mixture) or {})["inputs"]
    return {key: inputs[key] for key in ("ratio", "unit", "skill", "sources")}


def _train(
    recipe: Recipe, training: Train, mixture: Path, what: str, watch: Watch, step: Step
) -> tuple[dict[str, Any], dict[str, Any]]:
    from replaykit.train.beside import Watched
    from replaykit.train.fit import train as fit

    assert recipe.model is not None
    with (mixture / "rows.jsonl").open(encoding="utf-8") as stream:
        steps = [json.loads(line)["step"] for line in stream]
    rows = list(read_jsonl(mixture / "rows.jsonl"))
    chat = chat_of(recipe)
    spare = list[Record]()
    watched = None
    held = {skill: (test, load(test, "target")) for skill, test in tests(recipe).items()}
    check_tests(chat, held)  # what eval would refuse after the training
    if training.controller is not None:
        spare = list(read_jsonl(mixture / "replay.jsonl"))
        _, target = held.pop(TARGET, (None, []))
        watched = Watched(
            training.controller, held, target, spare, Mix.model_validate(_mixed_by(mixture))
        )
    weights, facts = _weights(recipe, training, [*rows, *spare], chat, watch)
    result = fit(
        rows,
        steps,
        model=recipe.model,
        chat=chat,
        settings=training,
        seed=recipe.seed,
        folder=step.folder,
        revision=recipe.revision,
        weights=weights,
        old=_old(recipe, training, chat),
        watched=watched,
        what=what,
        watch=watch,
    )
    result |= {"model": str(step.folder / "model"), **facts}
    return result, {"base": recipe.model, "revision": revision_of(recipe)}


def _old(recipe: Recipe, training: Train, chat: Chat) -> list[Record]:
    """The old data that ewc names: so many rows as it takes, drawn by the recipe's seed from those
    that are not too long.

    Raises DataError where all are too long, or have no answer.
    """
    ewc = training.remedies.ewc
    if ewc is None or ewc.old is None:
        return []
    rows = load(ewc.old, "select")
    examples = (
        (row, chat.example(row)) for row in random.Random(recipe.seed).sample(rows, len(rows))
    )
    fit = (
        row
        for row, made in examples
        if made.loss_tokens and len(made.tokens) <= training.max_tokens
    )
    found = list(islice(fit, ewc.rows))
    if not found:
        raise DataError(
            f"{ewc.old.path}: train.remedies.ewc.old has no row with an answer and at most "
            f"{training.max_tokens} tokens; "
            f"raise train.max_tokens, or name other rows"
        )
    return found


def _weights(
    recipe: Recipe, training: Train, rows: Sequence[Record], chat: Chat, watch: Watch
) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """The weights of answer tokens where a remedy weighs them by the base's probabilities, and what
    it did to them.
    """
    if training.remedies.stm is None and training.remedies.flow is None:
        return None, {}
    from replaykit.train.remedies.weights import summary, weights
    from replaykit.train.score import examples

    logprobs, _ = token_logprobs(recipe, rows, watch)
    made = examples(rows, chat)
    found = weights(rows, made, logprobs, training.remedies, chat, recipe.seed)
    told = summary(rows, made, logprobs, found, training.remedies, chat)
    if training.controller is not None:
        del told["share"]  # which replay comes is decided on the way
    return found, {"weights": told}
