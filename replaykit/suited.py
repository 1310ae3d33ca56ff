"""Settings that suit a model and the rows of a task: what ``init`` writes, and what ``run`` does
where a recipe says nothing of replay and of tests.

    settings_of("nano", rows=300).learning_rate      ->  5.5e-04, of 1.97 million parameters
    score_of(rows)                                   ->  Scoring("exact", "no answer has more ...")
    whole(recipe)                                    ->  with replay and tests, and what was added

All are rules of thumb, written down with their reason, so that a reader can judge them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from replaykit.checks.verify import ONLY_A_NUMBER
from replaykit.data.formats import read_records
from replaykit.data.record import Record
from replaykit.devices import short
from replaykit.errors import ChatError, DataError, EngineError
from replaykit.hashing import fingerprint
from replaykit.model import loading
from replaykit.recipe import Recipe, load_recipe
from replaykit.recipe.data import Target
from replaykit.recipe.evaluate import Score
from replaykit.recipe.generate import ROWS, Generate
from replaykit.recipe.lm_eval import is_task
from replaykit.recipe.schema import write_text
from replaykit.recipe.train import FULL_PARAMETERS, Train, full_rate
from replaykit.suites import MODULES, PREFIX, is_suite, suite_of
from replaykit.written import refuse_foreign

SHORT = 8  # words of an answer that is compared word for word
MOST_LOOKED_AT = 20_000  # rows of the target
FEWEST_TO_HOLD_OUT = 100  # rows: of fewer a fifth tells nothing
HELD_ROWS = 200  # rows, about, that are held out of a large target
MEMORY_ROWS = 100
LORA_RATE = 2e-4
LARGE = 13e9  # parameters from which on an adapter learns half as fast
# Settings of a training that say how it learns; beside any of them none is chosen.
HOW_TRAINED = frozenset(
    {"method", "peft", "learning_rate", "layer_rates", "stages", "remedies", "weights", "fsdp"}
)
MARK = "# Written by `replaykit run`, of the recipe "
NANO = "nano-"  # the suites of the embedded world begin so

# What config.json calls the tokens that a model reads: most models, GPT-2, BLOOM, MPT.
CONTEXT = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
HEADER_TOKENS = 64  # of a row's special tokens, role names and system prompt, roughly


class Limits(NamedTuple):
    """Tokens of a generated question and answer, at most, and why."""

    question: int
    answer: int
    reason: str


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


class Fitting(NamedTuple):
    """How a model is trained on so many rows, with the reason of each choice."""

    method: str
    method_reason: str
    learning_rate: float
    rate_reason: str
    epochs: int
    batch_rows: int
    batch_reason: str
    generated: int
    """Rows that the model writes."""


def settings_of(model: str, rows: int | None, ratio: float = 0.05) -> Fitting:
    """Settings for a model by its size, and for so many rows of a target; None: not known.

    The size is that of its config, where the model is here, or what its name says. A rate of full
    fine-tuning falls with the root of the parameters, through 2e-5 at 1.5 billion.
    """
    parameters = parameters_of(model)
    if parameters is None:
        method = "lora"
        method_reason = "how large the model is is not known here; an adapter fits most machines"
    elif parameters <= FULL_PARAMETERS:
        method = "full"
        method_reason = f"all of {short(parameters)} parameters; or lora, dora, qlora"
    else:
        method = "lora"
        need = 16 * parameters / 1e9
        method_reason = f"full would hold {need:,.0f} GB for {short(parameters)} parameters"
    if method == "full":
        assert parameters is not None
        rate = full_rate(parameters)
        rate_reason = "falls with the root of the parameters, 2e-5 at 1.5 billion"
    else:
        large = parameters is not None and parameters >= LARGE
        rate = LORA_RATE / 2 if large else LORA_RATE
        rate_reason = "of an adapter; more learns faster and forgets more"
    epochs, batch, batch_reason = _passes(rows)
    wanted = ROWS
    if rows is not None:
        # As many as the mixture takes, in hundreds, so that none is repeated.
        replayed = rows * epochs * ratio / (1 - ratio)
        wanted = min(ROWS, 100 * math.ceil(replayed / 100))
    return Fitting(
        method=method,
        method_reason=method_reason,
        learning_rate=float(f"{rate:.1e}"),
        rate_reason=rate_reason,
        epochs=epochs,
        batch_rows=batch,
        batch_reason=batch_reason,
        generated=wanted,
    )


def _passes(rows: int | None) -> tuple[int, int, str]:
    """Epochs, rows of a step, and why."""
    if rows is None:
        return 1, 32, "rows of one optimiser step"
    batch = 32
    epochs = 1
    if rows < 5_000:
        batch = 16
        epochs = 3
    if rows < 1_000:
        batch = 8
    steps = math.ceil(rows * epochs / batch)
    return epochs, batch, f"{steps:,} optimiser steps on about {rows:,} rows"


def parameters_of(model: str) -> int | None:
    """By its config where the model is here, else by its name, such as 8B; None: not known."""
    place = loading.resolve(model)
    if _config_of(model, "config.json"):
        try:
            return loading.parameter_count(model)
        except EngineError:
            return None
    named = re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)([bBmM])(?![a-zA-Z])", place.rpartition("/")[2])
    if not named:
        return None
    number, unit = named[0]
    return round(float(number) * (1e9 if unit in "bB" else 1e6))


def first_rows(path: str, most: int) -> list[Record]:
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


# --- tests ----------------------------------------------------------------------------------------


class Held(NamedTuple):
    """What of a target is tested."""

    part: float
    rows: int
    """How many that is, about."""
    scoring: Scoring


def held_of(rows: Sequence[Record]) -> Held | None:
    """What is held out of the rows of a target; None of fewer than FEWEST_TO_HOLD_OUT."""
    if len(rows) < FEWEST_TO_HOLD_OUT:
        return None
    part = max(0.01, round(min(0.2, HELD_ROWS / len(rows)), 3))
    return Held(part, round(part * len(rows)), score_of(rows))


def suites_of(model: str) -> list[str]:
    """The suites by which a model's old skills are tested: the embedded model's are those of its
    own world. Of tools only where the model's template is here and shows them; those whose answers
    are run as programs are never taken unasked.
    """
    nano = loading.resolve(model) == loading.resolve("nano")
    found = []
    for name in MODULES:
        score = suite_of(PREFIX + name).score
        if name.startswith(NANO) != nano or score in ("code", "judge"):
            continue
        if score == "tool_call" and not _shows_tools(model):
            continue
        found.append(name)
    return found


def writes(model: str) -> bool:
    """Whether a model can write questions itself, as one that has an encoder cannot."""
    return not _config_of(model, "config.json").get("is_encoder_decoder", False)


def _shows_tools(model: str) -> bool:
    """Whether a model's template is here and can ask for calls of tools."""
    from replaykit.model.chat import Chat

    if not _config_of(model, "tokenizer_config.json"):
        return False
    try:
        Chat.load(model).check_tools()
    except (ChatError, EngineError):
        return False
    return True


class Whole(NamedTuple):
    """A recipe that makes replay and tests what it does, and what was added for it."""

    recipe: Recipe
    said: Sequence[str]


def whole(recipe: Recipe) -> Whole:
    """The recipe with what ``init`` would write of replay and of tests, where it says nothing of
    either; where it says nothing of tests, with what ``init`` would write of the training too.

    ``eval: {}`` tests nothing, and a ratio of 0 replays nothing. Raises DataError for a target that
    cannot be read.
    """
    if recipe.target is None or recipe.model is None or recipe.task == "classification":
        return Whole(recipe, ())
    given = recipe.model_fields_set
    mix = recipe.mix
    replays = mix.sources is None and (mix.ratio > 0 or mix.schedule is not None)
    unnamed = replays and given.isdisjoint({"select", "generate", "rewrite", "arms"})
    writing = unnamed and writes(recipe.model)
    untested = "eval" not in given
    if not writing and not untested:
        return Whole(recipe, ())
    sections: dict[str, Any] = {}
    said = []
    rows = first_rows(recipe.target.path, MOST_LOOKED_AT)
    if writing:
        sections["generate"] = {"n": settings_of(recipe.model, len(rows), mix.ratio).generated}
        said.append(
            f"the recipe names no replay, so the model writes {sections['generate']['n']:,} rows "
            f"of its own; `mix: {{ratio: 0}}` trains without"
        )
    if untested:
        held = None if recipe.target.hold_out else held_of(rows)
        tests = _tests_of(recipe.model, recipe.target, held)
        sections |= tests.sections
        said.append(
            f"the recipe has no section eval, so these are tested: {tests.said}. `eval: {{}}` "
            f"tests none"
        )
        part = recipe.target.hold_out or (held.part if held else 0.0)
        suited = _training_of(recipe.model, len(rows) - round(part * len(rows)), recipe.train)
        sections |= suited.sections
        said += suited.said
    settings = recipe.model_dump(exclude_unset=True)
    return Whole(Recipe.model_validate(settings | sections), said)


def tested(recipe: Recipe) -> Whole:
    """The recipe of a model that is measured, with the suites that suit it where it names no old
    skill, and how the new one is scored where it does not say so. Raises DataError for held-out
    rows that cannot be read.
    """
    if recipe.model is None or recipe.task != "language" or recipe.tasks:
        return Whole(recipe, ())
    section = recipe.eval.model_dump(exclude_unset=True)
    said = []
    if not recipe.eval.old:
        suites = suites_of(recipe.model)
        section["old"] = {name.removeprefix(NANO): PREFIX + name for name in suites}
        said.append(
            f"no old skill is named, so {len(suites)} suites are tested (`replaykit suites` tells "
            f"of them); --old SKILL=FILE names others"
        )
    target = recipe.eval.target
    if target is not None and "score" not in target.model_fields_set and has_rows(target.path):
        scoring = score_of(first_rows(target.path, MOST_LOOKED_AT))
        section["target"]["score"] = scoring.score
        said.append(f"the new skill is scored by {scoring.score} ({scoring.reason})")
    if not said:
        return Whole(recipe, ())
    settings = recipe.model_dump(exclude_unset=True) | {"eval": section}
    return Whole(Recipe.model_validate(settings), said)


def has_rows(path: str) -> bool:
    """Whether a name stands for rows that can be looked at here, which say nothing of how they are
    scored: no suite, no task of lm-eval, nothing that is to be fetched.
    """
    return not is_suite(path) and not is_task(path) and Path(path).exists()


def kept(recipe: Recipe, *, write: bool) -> Whole:
    """The ``whole`` recipe, as recipe.yaml in the run's folder has it where it was made of this one
    before: what is known of a model may change, as when it is fetched, and a run goes on as it
    began. ``write`` puts it there. Raises RunError where a file of that name is not ours.
    """
    path = recipe.folder / "recipe.yaml"
    mark = MARK + fingerprint(recipe.to_yaml())
    if path.exists() and path.read_text(encoding="utf-8").startswith(f"{mark}\n"):
        return Whole(load_recipe(path), (f"{path} says what this run does",))
    found = whole(recipe)
    if not found.said or not write:
        return found
    refuse_foreign(path, lambda text: text.startswith(MARK))
    write_text(path, f"{mark}\n{found.recipe.to_yaml()}")
    return Whole(found.recipe, (*found.said, f"all of it is in {path}; `-r` gives it to a command"))


class _Training(NamedTuple):
    sections: dict[str, Any]
    said: Sequence[str]


def _training_of(model: str, rows: int, train: Train) -> _Training:
    """The section of the training on so many rows, with what suits where it says nothing; what it
    says stays.
    """
    fitting = settings_of(model, rows)
    added: dict[str, Any] = {}
    reasons = []
    given = train.model_fields_set
    if given.isdisjoint(HOW_TRAINED):
        added = {"method": fitting.method, "learning_rate": fitting.learning_rate}
        reasons += [
            f"method: {fitting.method} ({fitting.method_reason})",
            f"learning_rate: {fitting.learning_rate:.1e} ({fitting.rate_reason})",
        ]
    if given.isdisjoint({"epochs", "steps"}):
        added["epochs"] = fitting.epochs
        reasons.append(f"epochs: {fitting.epochs}")
    if "batch_rows" not in given:
        added["batch_rows"] = fitting.batch_rows
        reasons.append(f"batch_rows: {fitting.batch_rows}")
    if not added:
        return _Training({}, ())
    section = train.model_dump(exclude_unset=True) | added
    return _Training({"train": section}, [f"train has settings that suit: {'; '.join(reasons)}"])


class _Tests(NamedTuple):
    sections: dict[str, Any]
    said: str


def _tests_of(model: str, target: Target, held: Held | None) -> _Tests:
    """The sections that hold out rows of the target and test them and the suites."""
    suites = suites_of(model)
    tested: dict[str, Any] = {"old": {name.removeprefix(NANO): PREFIX + name for name in suites}}
    said = f"{len(suites)} suites (`replaykit suites` tells of them)"
    if writes(model):
        tested["memory"] = MEMORY_ROWS
        said += f" and {MEMORY_ROWS} rows that the model writes itself"
    if held is None and not target.hold_out:
        said += (
            f"; of fewer than {FEWEST_TO_HOLD_OUT} rows of the target none is held out, so whether "
            f"it is learned is not tested (`eval: {{target: test.jsonl}}` tests rows of your own)"
        )
    if held is None:
        return _Tests({"eval": tested}, said)
    tested["target"] = {"score": held.scoring.score}
    part = target.model_dump(exclude_unset=True) | {"hold_out": held.part}
    said = (
        f"about {held.rows:,} rows of the target, which are not trained on, scored by "
        f"{held.scoring.score} ({held.scoring.reason}); {said}"
    )
    return _Tests({"target": part, "eval": tested}, said)
