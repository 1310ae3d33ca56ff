"""Recipes to start from: the commented one that ``init`` writes, and the quickstart's with its data
beside it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import yaml
from pydantic import ValidationError

from replaykit.checks.verify import ONLY_A_NUMBER
from replaykit.data.formats import read_records
from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record, Source, dialogue
from replaykit.errors import DataError, RecipeError
from replaykit.model import loading
from replaykit.nano import world
from replaykit.recipe import Recipe
from replaykit.recipe.evaluate import Score
from replaykit.recipe.generate import Generate
from replaykit.recipe.messages import explain
from replaykit.recipe.schema import FIRST_LINE, write_schema, write_text
from replaykit.recipe.train import Train
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
  n: 2000
  max_question_tokens: {question_tokens}
  max_answer_tokens: {answer_tokens}   # {reason}

# rewrite: {{method: min-change, verify: exact}}   \
# the target in the model's own words, where they are right

mix:
  ratio: 0.05             # replay's share of the rows, the same in every optimiser step

# arms:                   # the proof: the same training without replay beside it
#   no-replay: {{ratio: 0}}
#   replay: {{}}

train:
  method: full            # or lora
  epochs: 1               # passes over the target
  batch_rows: 32

{eval}
# push: {{repo: me/my-replay}}
"""
NO_EVAL = """\
# eval:                   # held-out rows: the new task, and what must not drop
#   target: {path: my_task_test.jsonl, score: exact}        \
# exact, numeric, json, tool_call or cross_entropy
#   old:
#     chat: {path: general.jsonl, score: cross_entropy, n: 200}
"""
EVAL = """\
eval:                     # held-out rows: the new task, and what must not drop
  target: {{score: {score}}}   # {reason}
  # old:                  # without these nobody knows what was lost
  #   chat: {{path: general.jsonl, score: cross_entropy, n: 200}}
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
SHORT = 8  # words of an answer that is compared word for word
MOST_LOOKED_AT = 20_000  # rows of the target, by init
FEWEST_TO_HOLD_OUT = 100  # rows: of fewer a fifth tells nothing
HELD_ROWS = 200  # rows, about, that init holds out of a large target
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

# What config.json calls the tokens that a model reads: most models, GPT-2, BLOOM, MPT.
CONTEXT = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
HEADER_TOKENS = 64  # of a row's special tokens, role names and system prompt, roughly


class Limits(NamedTuple):
    """Tokens of a generated question and answer, at most, and why."""

    question: int
    answer: int
    reason: str


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
        _first_rows(pool, 1)
    hold_out = ""
    tested = NO_EVAL
    if target is not None:
        rows = _first_rows(target, MOST_LOOKED_AT)
        if len(rows) >= FEWEST_TO_HOLD_OUT:
            part = max(0.01, round(min(0.2, HELD_ROWS / len(rows)), 3))
            hold_out = HOLD_OUT.format(part=part, rows=round(part * len(rows)))
            tested = EVAL.format(**score_of(rows)._asdict())
    limits = limits_of(model or "llama3")
    stem = Path(target).name.split(".")[0] if target else ""
    text = FIRST_LINE + STARTER.format(
        path=shlex.quote(str(path)),
        name=_name(stem, "my-task"),
        model=_plain(model or "llama3"),
        target=_plain(target or "my_task.jsonl"),
        seed=1 if seed is None else seed,
        question_tokens=limits.question,
        answer_tokens=limits.answer,
        reason=limits.reason,
        select=SELECT.format(pool=_plain(pool)) if pool else NO_SELECT,
        hold_out=hold_out,
        eval=tested,
    )
    try:
        Recipe.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise RecipeError("init", explain(error, Recipe)) from None
    write_text(path, text)
    write_schema(path.parent)
    return path


def _first_rows(path: str, most: int) -> list[Record]:
    """The first rows that can be read. Raises DataError where there is none. Some that cannot be
    are left out when it runs.
    """
    refused: list[DataError] = []

    def passed_over(_: str, error: DataError) -> None:
        if not refused:
            refused.append(error)

    found = list(islice(read_records(path, "target", unparsed=passed_over), most))
    if found:
        return found
    if refused:
        raise DataError(f"{path}: none of its rows can be read; the first: {refused[0]}")
    raise DataError(f"{path}: there is no row in it")


class Scoring(NamedTuple):
    """How answers such as some rows have are scored, and why."""

    score: Score
    reason: str


def score_of(rows: Sequence[Record]) -> Scoring:
    """The scorer that fits the answers of all rows; where none does, the loss of the answers."""
    answers = [row.answer.strip() for row in rows]
    if any(row.messages[-1]["role"] == "text" for row in rows):
        return Scoring("cross_entropy", "rows are plain texts")
    if any("tool_calls" in row.messages[-1] for row in rows):
        return Scoring("tool_call", "answers call tools")
    if all(map(_is_structure, answers)):
        return Scoring("json", "every answer is a JSON object or list")
    if all(map(ONLY_A_NUMBER.fullmatch, answers)):
        return Scoring("numeric", "every answer is a number")
    if max(len(answer.split()) for answer in answers) <= SHORT:
        return Scoring(
            "exact", f"no answer has more than {SHORT} words; or numeric, json, tool_call"
        )
    return Scoring(
        "cross_entropy",
        "answers are in free words, so their loss is measured; or exact, numeric, json",
    )


def _is_structure(answer: str) -> bool:
    try:
        return isinstance(json.loads(answer), (dict, list))
    except ValueError:
        return False


def limits_of(model: str) -> Limits:
    """Limits that cut as few answers as may be, and make no row that the training leaves out.

    The longest question and answer together fill the model's context, or a training row, whichever
    is shorter; where the model's generation_config names a limit (max_new_tokens), it is not
    passed. Nothing is fetched: of a model that is not here the recipe's defaults are taken. Raises
    EngineError for a name that stands for no model, DataError for a config that is no JSON.
    """
    defaults = Generate()
    row = Train().max_tokens
    config = _config_of(model, "config.json")
    read = context_of(config)
    if read is None:
        return Limits(
            defaults.max_question_tokens,
            defaults.max_answer_tokens,
            "the default: how much the model reads is not known here",
        )
    reason = f"with its question it fills a training row (train.max_tokens: {row})"
    if read < row:
        row = read
        reason = f"with its question it fills the {read} tokens that the model reads"
    question = max(1, min(defaults.max_question_tokens, row // 4))
    answer = max(1, row - question - HEADER_TOKENS)
    named = _config_of(model, "generation_config.json").get("max_new_tokens")
    if _is_count(named) and named < answer:
        answer = named
        reason = "max_new_tokens of the model's generation_config.json"
    return Limits(question, answer, reason)


def context_of(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model reads by its config.json; None where that does not say.

    A model of text and images has a config within the config for its text.
    """
    for part in (config, config.get("text_config")):
        if not isinstance(part, Mapping):
            continue
        found = [part[name] for name in CONTEXT if _is_count(part.get(name))]
        if found:
            return int(found[0])
    return None


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _config_of(model: str, name: str) -> Mapping[str, Any]:
    """A config file of a model that is here, a folder or in the cache of the Hub; else nothing."""
    from huggingface_hub import try_to_load_from_cache

    place = loading.resolve(model)
    found: object = Path(place) / name
    if not Path(place).is_dir():
        found = try_to_load_from_cache(place, name)
    # Of a file that is known to be absent the cache gives a mark of its own.
    if not isinstance(found, (str, Path)) or not Path(found).is_file():
        return {}
    try:
        config = json.loads(Path(found).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{found}: it is no JSON ({error}); fetch the model again") from error
    return config if isinstance(config, Mapping) else {}


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
