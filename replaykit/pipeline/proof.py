"""The steps that show what was learned and what was lost: eval, report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from replaykit import models
from replaykit.errors import RunError
from replaykit.pipeline.rows import load, scored_facts, tests
from replaykit.pipeline.step import (
    Context,
    Outcome,
    arms,
    do_step,
    engine_and_chat,
    label_of,
    manifests,
    model_facts,
    need_step,
)
from replaykit.recipe import Recipe, need
from replaykit.records import write_jsonl
from replaykit.runs import Step, Watch, read_manifest


def evaluate(recipe: Recipe, context: Context) -> Iterator[Outcome]:
    from replaykit.engines import choose

    need(recipe, "eval", "model", "eval")
    tuned = {}
    for arm, _ in arms(
        recipe, replace(context, out=None)
    ):  # what is made is one folder for all arms
        tuned[arm or "tuned"] = need_step(recipe.folder / label_of("train", arm), "train")
    inputs = {
        **model_facts(recipe),
        "engine": choose(recipe.engine.here),
        "tests": scored_facts(recipe),
        "tuned": {name: models.identity(str(folder / "model")) for name, folder in tuned.items()},
    }

    def work(step: Step) -> tuple[dict[str, Any], dict[str, Any]]:
        from replaykit.evaluate.compare import compare

        rows = {skill: (test, load(test, "target")) for skill, test in tests(recipe).items()}
        items = {}
        facts = {}
        for name, model in {
            "base": str(recipe.model),
            **{n: str(f / "model") for n, f in tuned.items()},
        }.items():
            items[name] = measured(recipe, step, name, model, rows, context.watch)
        for name, folder in tuned.items():
            mixed = read_manifest(recipe.folder / folder.name.replace("train", "mix", 1)) or {}
            facts[name] = {
                "ratio": mixed.get("requested"),
                "share": mixed.get("share", {}).get(mixed.get("unit")),
                "steps": mixed.get("steps"),
            }
        return compare(tests(recipe), items, facts), {}

    yield do_step("eval", recipe, context, inputs, work)


def measured(
    recipe: Recipe, step: Step, name: str, model: str, rows: Any, watch: Watch
) -> dict[str, list[Any]]:
    """The items of one model by skill, from its file in the step's folder if it was measured
    before.
    """
    from replaykit.evaluate.skills import measure

    path = step.folder / f"items-{name}.jsonl"
    if not path.exists():
        with engine_and_chat(recipe, model, options=recipe.engine.here) as (engine, chat):
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
            f"{recipe.folder}: nothing is finished here, so there is nothing to report; `replaykit "
            f"run` first"
        )
    evaluation = found.get("eval", {}).get("result", {"skills": [], "models": []})
    shown = yaml.safe_dump(
        recipe.model_dump(exclude_defaults=True), sort_keys=False, allow_unicode=True
    )
    folder = context.out or recipe.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = write_report(
        folder / "report.html",
        title=recipe.folder.name,
        evaluation=evaluation,
        manifests=found,
        recipe_yaml=shown,
    )
    yield Outcome("report", folder, {"report": str(path)})
