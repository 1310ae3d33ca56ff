"""Recipes to start from: the commented one that ``init`` writes, and the quickstart's with its data
beside it.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import yaml
from pydantic import ValidationError

from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record, Source, dialogue
from replaykit.errors import RecipeError
from replaykit.model import loading
from replaykit.nano import world
from replaykit.recipe import Recipe
from replaykit.recipe.messages import explain
from replaykit.recipe.schema import FIRST_LINE, write_schema, write_text
from replaykit.suited import (
    MEMORY_ROWS,
    MOST_LOOKED_AT,
    NANO,
    Held,
    first_rows,
    held_of,
    limits_of,
    settings_of,
    suites_of,
    writes,
)
from replaykit.suites import PREFIX
from replaykit.written import refuse_foreign

# A backslash joins two lines of the code to one of the recipe.
STARTER = """\
# replaykit run {path}
name: "{name}"
model: {model}            # an alias (`replaykit probe --model {model}` looks at it), \
a Hub id or a folder
seed: {seed}

target:                   # the new task
  path: {target}
{hold_out}  # prompt: question      # the columns, where they have unusual names
  # answer: answer

{select}
generate:                 # the model's own questions and answers (Magpie)
  n: {generated:<19} # {generated_reason}
  max_question_tokens: {question_tokens}
  max_answer_tokens: {answer_tokens}   # {reason}

# rewrite: {{method: min-change, verify: exact}}   \
# the target in the model's own words, where they are right

mix:
  ratio: 0.05             # replay's share of the rows, the same in every optimiser step

arms:                     # the proof: two trainings, with replay and without
  replay: {{}}
  no-replay: {{ratio: 0}}   # the control; it costs a training of the same length

train:
  method: {method:<15} # {method_reason}
  learning_rate: {rate:<8} # {rate_reason}
  epochs: {epochs:<15} # passes over the target
  batch_rows: {batch:<11} # {batch_reason}
  packing: false          # rows of like length share a pass, so that little is padded

{eval}
# push: {{repo: me/my-replay}}
"""
EVAL = """\
eval:                     # held-out rows: the new task, and what must not drop
  target: {{score: {score}}}   # {reason}
{suites}
"""
NO_TARGET = """\
eval:                     # held-out rows: the new task, and what must not drop
  # target: {{path: my_task_test.jsonl, score: exact}}   # too few rows to hold some out
{suites}
"""
SUITES = """\
{memory}\
  old:                    # its skills: suites write their own items (`replaykit suites`)
{old}\
"""
HOLD_OUT = """\
  hold_out: {part}         # of its rows this part is tested and not trained on: about {rows}
"""
SELECT = """\
select:                   # old data near the target
  pool: {pool}
  n: 2000
"""
NO_SELECT = (
    "# select: {pool: old.jsonl, n: 2000}   # old data near the target, where there is some\n"
)

QUICKSTART_MARK = "# Written by `replaykit quickstart`"
QUICKSTART = """\
# Written by `replaykit quickstart` for the embedded model, each time anew; \
`replaykit init` writes one for yours.
name: "{name}"
out: {folder}
model: nano
seed: {seed}
target: {target}
select: {{pool: {pool}, n: {selected}, method: near-and-far, near_duplicate: null}}
generate: {{n: {generated}, max_question_tokens: 96, max_answer_tokens: 64}}
mix: {{ratio: 0.05, near_duplicate: null}}  # the templates are alike on purpose
arms:
  no-replay: {{ratio: 0}}
  selected: {{sources: [select]}}
  self-generated: {{sources: [generate]}}
train: {{steps: {steps}, batch_rows: {rows}, learning_rate: {rate}, log_every: 20}}
eval:
  target: {{path: {test}, score: exact, max_tokens: 32}}
  old:
{old}
"""
TARGET_ROWS = 8_000
POOL_ROWS = 3_000
SELECTED = 1_500
GENERATED = 1_500
# of an old skill, of the new one
TEST_ROWS = 150
NEW_TEST_ROWS = 200
STEPS = 420
BATCH_ROWS = 32
LEARNING_RATE = "1.0e-3"


def write_recipe(
    path: Path,
    *,
    model: str | None,
    target: str | None,
    pool: str | None,
    seed: int | None,
    force: bool,
) -> Path:
    """Writes the commented recipe, and beside it the schema that its first line names, for editors.

    Raises RecipeError if the file is there or cannot be written, or for a value that no recipe may
    have; DataError if the target cannot be read.
    """
    if path.exists() and not force:
        raise RecipeError(
            str(path), ["the file is there already; --force replaces it, --out writes another"]
        )
    loading.resolve(model or "llama3")
    if pool is not None:
        first_rows(pool, 1)
    name = model or "llama3"
    held: Held | None = None
    rows: int | None = None
    if target is not None:
        found = first_rows(target, MOST_LOOKED_AT)
        held = held_of(found)
        rows = len(found) - (held.rows if held else 0)
    limits = limits_of(name)
    fitting = settings_of(name, rows)
    stem = Path(target).name.split(".")[0] if target else ""
    text = FIRST_LINE + STARTER.format(
        path=shlex.quote(str(path)),
        name=_name(stem, "my-task"),
        model=_plain(name),
        target=_plain(target or "my_task.jsonl"),
        seed=1 if seed is None else seed,
        question_tokens=limits.question,
        answer_tokens=limits.answer,
        reason=limits.reason,
        select=SELECT.format(pool=_plain(pool)) if pool else NO_SELECT,
        hold_out="" if held is None else HOLD_OUT.format(part=held.part, rows=held.rows),
        eval=_tests(name, held),
        generated=fitting.generated,
        generated_reason="more than the mixture takes",
        method=fitting.method,
        method_reason=fitting.method_reason,
        rate=f"{fitting.learning_rate:.1e}",
        rate_reason=fitting.rate_reason,
        epochs=fitting.epochs,
        batch=fitting.batch_rows,
        batch_reason=fitting.batch_reason,
    )
    try:
        Recipe.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise RecipeError("init", explain(error, Recipe)) from None
    write_text(path, text)
    write_schema(path.parent)
    return path


def _tests(model: str, held: Held | None) -> str:
    """The section eval."""
    old = [f"    {name.removeprefix(NANO)}: {PREFIX}{name}\n" for name in suites_of(model)]
    memory = ""
    if writes(model):
        memory = (
            f"  memory: {MEMORY_ROWS:<15} # rows that the model writes itself: how far it drifts\n"
        )
    suites = SUITES.format(memory=memory, old="".join(old))
    if held is None:
        return NO_TARGET.format(suites=suites)
    return EVAL.format(suites=suites, **held.scoring._asdict())


def write_quickstart(folder: Path, *, seed: int) -> Path:
    """Writes the embedded world's data and a recipe for it into the folder; returns the recipe's
    path. Raises RunError where files of these names are there that it did not write.
    """
    data = folder / "data"
    rows: dict[str, list[Record]] = {
        "target": _rows(world.draw(world.NEW_SKILLS[0], TARGET_ROWS, seed=seed), "target"),
        "pool": _rows(world.draw_old(POOL_ROWS, seed=seed), "select"),
    }
    for skill in world.SKILLS:
        size = NEW_TEST_ROWS if skill == world.NEW_SKILLS[0] else TEST_ROWS
        tests = world.draw(skill, size, seed=seed, held_out=True)
        rows[f"test-{skill}"] = _rows(tests, "target")
    path = folder / "replaykit.yaml"
    refuse_foreign(path, lambda text: text.startswith(QUICKSTART_MARK))
    if not path.exists():
        for name in rows:
            refuse_foreign(data / f"{name}.jsonl", lambda _: False)
    # First, since by it the data are known to be ours.
    write_text(path, _quickstart_recipe(folder, data, seed))
    for name, records in rows.items():
        write_jsonl(data / f"{name}.jsonl", records)
    return path


def _quickstart_recipe(folder: Path, data: Path, seed: int) -> str:
    old = []
    for skill in world.OLD_SKILLS:
        test = _plain(data / f"test-{skill}.jsonl")
        score = "json" if skill == "json" else "exact"
        old.append(f"    {skill}: {{path: {test}, score: {score}, max_tokens: 64}}")
    return QUICKSTART.format(
        name=_name(folder.resolve().name, "quickstart"),
        folder=_plain(folder),
        seed=seed,
        old="\n".join(old),
        target=_plain(data / "target.jsonl"),
        pool=_plain(data / "pool.jsonl"),
        test=_plain(data / f"test-{world.NEW_SKILLS[0]}.jsonl"),
        selected=SELECTED,
        generated=GENERATED,
        steps=STEPS,
        rows=BATCH_ROWS,
        rate=LEARNING_RATE,
    )


def _name(text: str, otherwise: str) -> str:
    """What of the text can name a run's folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-") or otherwise


def _plain(text: str | Path) -> str:
    """The text as YAML, in quotes where it would not be read as itself otherwise."""
    text = str(text)
    safe = re.fullmatch(r"[\w./~-]+", text) and yaml.safe_load(text) == text
    return text if safe else json.dumps(text, ensure_ascii=False)


def _rows(tasks: list[world.Task], source: Source) -> list[Record]:
    return [
        Record(dialogue(task.prompt, task.answer), source, {"skill": task.skill}) for task in tasks
    ]
