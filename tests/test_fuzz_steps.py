"""Files of every kind with odd values everywhere, as target, as pool and as replay of one's own:
each row is used or dropped with a reason, and the share is what was asked for.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_fuzz_rows import KINDS, SEED, damaged, file_of, row
from test_templates import shipped

import replaykit
from replaykit.api.data import Mixed
from replaykit.checks.funnel import FunnelCounts
from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.planned import PlannedRow, read_plan
from replaykit.data.record import TARGET
from replaykit.errors import ReplaykitError
from replaykit.model.chat import Chat
from replaykit.recipe import Recipe
from replaykit.recipe.mix import Unit
from replaykit.steps.mix import step as mix_step
from replaykit.steps.mix.result import MixResult
from replaykit.steps.select import step as select_step
from replaykit.steps.step import Context

INPUTS = int(os.environ.get("REPLAYKIT_FUZZ", "40"))
"""Cases of three files each. `REPLAYKIT_FUZZ=2000 pytest tests/test_fuzz_steps.py -m slow
--log-cli-level=INFO` takes ten minutes and says what happened how often."""
FEW = 6
METHODS = ("tfidf", "bm25", "random", "near-and-far", "mmr", "k-centre", "herding", "stratified")
UNITS: tuple[Unit, ...] = ("loss_tokens", "tokens", "rows")
WORDS = ("river", "stone", "cloud", "green", "paper", "north", "quiet", "seven", "light", "glass")
logger = logging.getLogger(__name__)

# Errors that are of no file: they say what to ask for.
OF_NO_FILE = (
    "no replay row comes, although a ratio of",
    "select.column: no row of the pool has a column",
    "the pool has no record to select from",
    "the target: ",
    "the target has no row that can be trained on",
    "replay at a ratio of",
)


@dataclass(frozen=True)
class Made:
    """A file, and how many rows stand in it; None where it was damaged."""

    path: Path
    rows: int | None


@dataclass(frozen=True)
class Case:
    """The files of a case, and what is asked for."""

    target: Made
    pool: Made
    replay: Made
    select: dict[str, Any]
    mix: dict[str, Any]
    train: dict[str, Any]

    @property
    def files(self) -> tuple[Made, ...]:
        return self.target, self.pool, self.replay

    def check_error(self, error: ReplaykitError) -> None:
        """A whole case fails only for a reason that is said, by the name of a file or of a key."""
        text = str(error)
        named = any(text.startswith(str(made.path)) for made in self.files)
        assert named or text.startswith(OF_NO_FILE), text
        assert "\n" not in text, text


def good(draw: random.Random, number: int) -> dict[str, Any]:
    """A row that any step can use."""
    answer = " ".join(draw.choices(WORDS, k=draw.randrange(1, 9)))
    return {"prompt": f"Tell story {number} of {draw.random():.9f}", "completion": answer}


def file_at(folder: Path, name: str, draw: random.Random) -> Made:
    """Odd rows, good ones, and some of both again."""
    rows = [row(draw) for _ in range(draw.randrange(7))]
    rows += [good(draw, number) for number in range(draw.choice((4, 8, 16)))]
    rows += rows[: draw.choice((0, 0, 1, 3))]
    draw.shuffle(rows)
    kind = draw.choice(KINDS)
    path = folder / f"{name}{kind}"
    data = file_of(kind, rows, draw)
    whole = draw.random() < 0.8
    path.write_bytes(data if whole else damaged(kind, data, draw))
    return Made(path, len(rows) if whole else None)


def case_of(folder: Path, number: int) -> Case:
    draw = random.Random(SEED + 10**6 + number)
    target, pool, replay = (
        file_at(folder, f"{number}-{name}", draw) for name in ("target", "pool", "replay")
    )
    method = draw.choice(METHODS)
    select = {"n": draw.choice((1, 5, 100)), "method": method, "processes": 1}
    if method == "stratified":
        select["column"] = "id"
    mix = {"ratio": draw.choice((0.0, 0.05, 0.2, 0.5)), "unit": draw.choice(UNITS)}
    train = {"epochs": draw.choice((1, 3)), "batch_rows": draw.choice((1, 4, 16))}
    return Case(target, pool, replay, select, mix, train)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chat]:
    """The embedded model, and its tokenizer with a template that has thoughts and tools."""
    folder = tmp_path_factory.mktemp("qwen3")
    shipped("qwen3").tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return {name: Chat.load(name) for name in ("nano", str(folder))}


# --- what holds of every case ---------------------------------------------------------------------


def check_funnel(funnel: FunnelCounts, *files: Made, more: int = 0) -> None:
    """Rows in are rows kept and rows dropped with a reason."""
    assert funnel.made == funnel.kept + sum(funnel.dropped.values())
    assert all(funnel.dropped)
    rows = [made.rows for made in files]
    if None not in rows:
        assert funnel.made == sum(n for n in rows if n is not None) + more


def check_share(rows: Sequence[PlannedRow], result: MixResult, chat: Chat, ratio: float) -> None:
    """The share is that of the rows themselves, and within one row of what was asked for."""
    sizes: dict[str, list[int]] = {TARGET: [], "replay": []}
    for planned in rows:
        example = chat.example(planned.record)
        counted = {"loss_tokens": example.loss_tokens, "tokens": len(example.tokens), "rows": 1}
        assert example.loss_tokens > 0
        name = TARGET if planned.record.source == TARGET else "replay"
        sizes[name].append(counted[result.unit])
    replayed = sum(sizes["replay"])
    whole = replayed + sum(sizes[TARGET])
    assert result.share[result.unit] == pytest.approx(replayed / whole, abs=1e-6)
    largest = max(size for of_source in sizes.values() for size in of_source)
    assert abs(replayed - ratio * whole) <= largest
    assert ratio == 0 or replayed > 0


def check_mixture(
    case: Case, rows: Sequence[PlannedRow], result: MixResult, chat: Chat
) -> dict[str, int]:
    """Returns how often each reason to drop came."""
    assert result.funnel.kept == sum(result.available.values())
    # The target comes exactly as often as it was asked for.
    shown = [planned.record.id for planned in rows if planned.record.source == TARGET]
    assert len(shown) == case.train["epochs"] * result.available[TARGET]
    assert result.not_shown == 0
    replayed = [planned for planned in rows if planned.record.source != TARGET]
    assert len(replayed) == result.replay_rows
    check_share(rows, result, chat, case.mix["ratio"])
    unread = result.funnel.dropped.get("unparsed", 0)
    assert not unread or any("cannot be read" in note for note in result.notes)
    return result.funnel.dropped


# --- through the functions ------------------------------------------------------------------------


def through_functions(case: Case, model: str, chat: Chat, folder: Path) -> Counter[str]:
    """What happened, by name."""
    seen: Counter[str] = Counter()
    try:
        selection = replaykit.select(str(case.pool.path), str(case.target.path), **case.select)
        check_funnel(selection.result.funnel, case.pool)
        assert selection.result.funnel.kept == selection.result.rows == len(selection.records)
        # What was chosen can be written and read again.
        write_jsonl(folder / "again.jsonl", selection.records)
        again = list(read_jsonl(folder / "again.jsonl"))
        assert [record.id for record in again] == [record.id for record in selection.records]
        seen["selected"] += 1
        seen.update(selection.result.funnel.dropped)
    except ReplaykitError as error:
        case.check_error(error)
        seen["refused"] += 1
    try:
        mixed: Mixed = replaykit.mix(
            str(case.target.path),
            [str(case.replay.path), str(case.pool.path)],
            model=model,
            **case.mix,
            **case.train,
        )
        check_funnel(mixed.result.funnel, *case.files)
        seen.update(check_mixture(case, mixed.rows, mixed.result, chat))
        seen["mixed"] += 1
    except ReplaykitError as error:
        case.check_error(error)
        seen["refused"] += 1
    return seen


# --- through the steps ----------------------------------------------------------------------------


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def check_dropped(folder: Path, funnel: FunnelCounts) -> None:
    """Each dropped row is in the step's file, with its reason."""
    reasons = Counter(line["reason"] for line in lines_of(folder / "dropped.jsonl"))
    assert reasons == Counter(funnel.dropped)


def through_steps(case: Case, model: str, chat: Chat, folder: Path) -> Counter[str]:
    seen: Counter[str] = Counter()
    sources = ["select", str(case.replay.path)]
    recipe = Recipe.model_validate(
        {
            "model": model,
            "out": str(folder / "run"),
            "target": {"path": str(case.target.path)},
            "select": {"pool": {"path": str(case.pool.path)}, **case.select},
            "mix": {**case.mix, "sources": sources},
            "train": case.train,
        }
    )
    try:
        (done,) = select_step.run(recipe, Context())
        check_funnel(done.result.funnel, case.pool)
        check_dropped(done.folder, done.result.funnel)
        chosen = len(lines_of(done.folder / "rows.jsonl"))
        assert chosen == done.result.rows == done.result.funnel.kept
        seen["selected"] += 1
        (mixed,) = mix_step.run(recipe, Context())
        files = [case.target]
        if case.mix["ratio"] > 0:
            files.append(case.replay)
        else:
            chosen = 0  # without a share no replay is read
        check_funnel(mixed.result.funnel, *files, more=chosen)
        check_dropped(mixed.folder, mixed.result.funnel)
        rows = read_plan(mixed.folder / "rows.jsonl")
        seen.update(check_mixture(case, rows, mixed.result, chat))
        seen["mixed"] += 1
    except ReplaykitError as error:
        case.check_error(error)
        seen["refused"] += 1
    return seen


def ran(inputs: range, models: dict[str, Chat], folder: Path) -> Counter[str]:
    """What happened in all of these cases."""
    seen: Counter[str] = Counter()
    for number in inputs:
        model = list(models)[number % len(models)]
        place = folder / str(number)
        place.mkdir()
        case = case_of(place, number)
        way = through_functions if number % 4 < 2 else through_steps
        try:
            seen += way(case, model, models[model], place)
        except Exception as error:
            raise AssertionError(f"case {number} in {place}: {error!r}") from error
    return seen


def test_the_rows_of_a_few_odd_files_are_used_or_dropped_with_a_reason(
    models: dict[str, Chat], tmp_path: Path
) -> None:
    seen = ran(range(FEW), models, tmp_path)
    assert seen["selected"]
    assert seen["mixed"]


@pytest.mark.slow
def test_the_rows_of_any_file_are_used_or_dropped_with_a_reason(
    models: dict[str, Chat], tmp_path: Path
) -> None:
    seen = ran(range(FEW, FEW + INPUTS), models, tmp_path)
    logger.info("%s", dict(seen.most_common()))
    assert seen["selected"] > INPUTS // 4
    assert seen["mixed"] > INPUTS // 8
    assert seen["unparsed"] > INPUTS
    assert seen["template_refuses"]
    assert seen["no_answer"]
