"""The share of replay is what was asked for in a run of any size, or the step says what cannot be
had and what to ask for.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from finished import generated
from typer.testing import CliRunner

import replaykit
from replaykit.checks.funnel import Funnel
from replaykit.cli import app
from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.planned import read_plan
from replaykit.data.record import TARGET, Record, Source, dialogue
from replaykit.errors import CallError, DataError
from replaykit.model.chat import Chat
from replaykit.recipe import Recipe
from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train
from replaykit.steps import pipeline
from replaykit.steps.mix import step as mix_step
from replaykit.steps.mix.build import build_mixture
from replaykit.steps.mix.notes import FEWEST_ROWS
from replaykit.steps.mix.plan import deviation, last_fifth, plan, shares
from replaykit.steps.mix.result import MixResult
from replaykit.steps.mix.short_runs import fitting_plan
from replaykit.steps.report.terminal import show
from replaykit.steps.step import Context

WORDS = ("river", "stone", "cloud", "green", "paper", "north", "quiet", "seven", "light", "glass")


def rows(source: Source, n: int, words: int, seed: int = 1) -> list[Record]:
    """Different questions with answers of so many words."""
    draw = random.Random(seed)
    return [
        Record(dialogue(f"Tell {source} story {k}", " ".join(draw.choices(WORDS, k=words))), source)
        for k in range(n)
    ]


def letters(n: int) -> list[Record]:
    """Target rows that are answered by one letter."""
    return [
        Record(dialogue(f"Which class has ticket {k}?", "ABC"[k % 3]), TARGET) for k in range(n)
    ]


def mixed(
    chat: Chat,
    target: Sequence[Record],
    *replay: Sequence[Record],
    train: Train | None = None,
    funnel: Funnel | None = None,
    **mix: Any,
) -> MixResult:
    """What a mixture of these rows says of itself."""
    settings = Mix(near_duplicate=None, **mix)
    funnel = funnel or Funnel()
    mixture = build_mixture(
        target,
        {found[0].source: found for found in replay},
        chat=chat,
        settings=settings,
        train=train or Train(batch_rows=16),
        seed=1,
        funnel=funnel,
    )
    kept = funnel.result()
    return mixture.result(settings, sha256="", sources={}, funnel=kept, decontamination=None)


def note(result: MixResult, words: str) -> str:
    """The one note that holds these words."""
    (found,) = [text for text in result.notes if words in text]
    return found


# --- short target answers -------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.05, 0.1])
@pytest.mark.parametrize("words", [20, 60])
def test_beside_one_letter_answers_the_share_comes_to_one_row_or_is_refused(
    chat: Chat, words: int, ratio: float
) -> None:
    target = letters(200)
    replay = rows("select", 50, words)
    asked = ratio / (1 - ratio) * sum(chat.example(row).loss_tokens for row in target)
    sizes = [chat.example(row).loss_tokens for row in replay]
    try:
        result = mixed(chat, target, replay, ratio=ratio, unit="loss_tokens")
    except DataError as error:
        # One row alone would lead further away than none.
        assert min(sizes) > 2 * asked * (1 - ratio)
        assert "no replay row comes, although a ratio of" in str(error)
        assert "ask for --unit rows, or for --ratio" in str(error)
        return
    assert result.replay_rows > 0
    tokens = result.share["loss_tokens"]
    assert abs(tokens / (1 - tokens) - ratio / (1 - ratio)) * 200 * 2 <= max(sizes)


@pytest.mark.parametrize("words", [1, 3, 60])
def test_the_ratio_that_a_refusal_names_is_one_that_comes(chat: Chat, words: int) -> None:
    target = letters(4)
    replay = rows("select", 50, words)
    with pytest.raises(DataError) as refused:
        mixed(chat, target, replay, ratio=0.001, unit="loss_tokens")
    least = float(str(refused.value).split("--ratio ")[1].split()[0])
    assert mixed(chat, target, replay, ratio=least, unit="loss_tokens").replay_rows > 0


def test_as_rows_the_same_target_has_its_share_of_rows(chat: Chat) -> None:
    result = mixed(chat, letters(200), rows("select", 50, 60), ratio=0.05, unit="rows")
    # 200 rows and a nineteenth of them.
    assert result.replay_rows in (10, 11)
    assert result.last_share["rows"] > 0


@pytest.mark.parametrize("ratio", [0.02, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rows_that_are_too_long_for_a_short_run_do_not_stand_before_those_that_fit(
    ratio: float, seed: int
) -> None:
    """300 one-word targets; old rows of 2 to 2,000 tokens, and generated ones of 2 to 300."""
    draw = random.Random(seed)
    target = [draw.choice((2, 3, 4)) for _ in range(300)]
    pools = {
        "select": [max(2, int(draw.lognormvariate(4, 1.3))) for _ in range(598)],
        "generate": [max(2, int(draw.lognormvariate(3.5, 1.0))) for _ in range(2000)],
    }
    settings = Mix(ratio=ratio)
    steps, longest = fitting_plan(target, pools, settings=settings, train=Train(), seed=seed)
    assert longest is not None
    left = {name: [size for size in sizes if size <= longest] for name, sizes in pools.items()}
    sizes = {TARGET: target, **left}
    slots = [slot for step in steps for slot in step]
    last = [slot for step in last_fifth(steps) for slot in step]
    assert shares(slots, sizes) == pytest.approx(ratio, rel=0.1)
    assert shares(last, sizes) > 0
    # Two per cent of a fifth is 4 tokens, and one row has 2 of them.
    asked = ratio * sum(sizes[slot.source][slot.row] for slot in last)
    assert deviation(last, sizes) <= max(0.25 * asked, longest)
    if ratio >= 0.05:
        assert shares(last, sizes) == pytest.approx(ratio, rel=0.25)
    again = fitting_plan(target, pools, settings=settings, train=Train(), seed=seed)
    assert again == (steps, longest)


def test_a_run_that_has_its_share_loses_no_row(chat: Chat) -> None:
    target = [20] * 2000
    pools = {"select": [5, 30, 90] * 100}
    given: dict[str, Any] = {"settings": Mix(ratio=0.1), "train": Train(), "seed": 1}
    assert fitting_plan(target, pools, **given) == (plan(target, pools, **given), None)


def test_one_row_as_long_as_the_run_is_left_out_and_said_to_be(chat: Chat) -> None:
    funnel = Funnel()
    replay = [*rows("select", 300, 2), *rows("select", 3, 90, seed=2)]
    result = mixed(chat, letters(300), replay, ratio=0.05, unit="loss_tokens", funnel=funnel)
    assert result.share["loss_tokens"] == pytest.approx(0.05, rel=0.1)
    assert result.last_share["loss_tokens"] == pytest.approx(0.05, rel=0.25)
    out = funnel.result()
    assert out.dropped["too_long_for_share"] >= 3
    assert out.made == out.kept + sum(out.dropped.values())
    said = note(result, "too many for the share of so short a run")
    assert said.startswith(f"{out.dropped['too_long_for_share']} of the 303 replay rows have more")
    assert result.available["select"] == 303 - out.dropped["too_long_for_share"]


def test_a_source_of_long_rows_alone_gives_its_part_to_the_others_and_says_so(chat: Chat) -> None:
    short = rows("select", 300, 2)
    long = rows("generate", 50, 90)
    result = mixed(chat, letters(300), short, long, ratio=0.05, unit="loss_tokens")
    assert result.share["loss_tokens"] == pytest.approx(0.05, rel=0.1)
    assert note(result, "generate has no shorter row").endswith("comes from the others")


def test_what_is_owed_behind_the_last_target_row_still_comes() -> None:
    """15 owed tokens behind the last of 3 target rows, a replay row of 28: 11 over, not 15 under."""
    sizes = {TARGET: [50, 50, 50], "select": [28]}
    train = Train(batch_rows=8)
    settings = Mix(ratio=0.1)
    (step,) = plan([50, 50, 50], {"select": [28]}, settings=settings, train=train, seed=1)
    assert [slot.source for slot in step].count("select") == 1
    assert deviation(step, sizes) <= 28 / 2


# --- what the user must read ----------------------------------------------------------------------


@pytest.mark.slow
def test_too_few_rows_to_protect_are_said_with_what_to_ask_for(chat: Chat) -> None:
    # As it was with a real model: 640 one-word answers, and 5 % of their loss tokens.
    result = mixed(chat, letters(640), rows("select", 200, 12), ratio=0.05, unit="loss_tokens")
    said = note(result, "too few to protect")
    assert said.startswith(f"{result.replay_rows} replay rows, {result.replay_rows} of them")
    assert said.endswith("ask for --unit rows")
    enough = mixed(chat, letters(640), rows("select", 200, 12), ratio=0.05, unit="rows")
    assert enough.replay_rows == enough.different_replay == 34
    assert enough.notes == []


def test_the_ratio_that_the_warning_names_is_enough(chat: Chat) -> None:
    replay = rows("select", 200, 5)
    said = note(mixed(chat, letters(100), replay, ratio=0.05, unit="rows"), "too few")
    ratio = float(said.split("--ratio ")[1].split(",")[0])
    result = mixed(chat, letters(100), replay, ratio=ratio, unit="rows")
    assert result.different_replay >= FEWEST_ROWS
    assert result.notes == []


def test_few_rows_that_come_often_are_too_few_as_well(chat: Chat) -> None:
    result = mixed(chat, letters(200), rows("select", 3, 5), ratio=0.3, unit="rows")
    assert result.different_replay == 3
    assert note(result, "too few to protect").endswith("make more of them")


def test_the_fewest_rows_are_those_that_show_a_tenth_with_95_percent() -> None:
    assert 0.9**FEWEST_ROWS < 0.05 < 0.9 ** (FEWEST_ROWS - 1)


def test_the_step_prints_how_many_replay_rows_there_are_and_how_many_different(
    chat: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    show("mix", mixed(chat, letters(200), rows("select", 3, 5), ratio=0.3, unit="rows"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "200 target, 86 replay (3 different)" in printed
    show("mix", mixed(chat, letters(20), ratio=0))
    assert "20 target, 0 replay" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("n", "words", "ratio"), [(60, 150, 0.3), (20, 60, 0.3), (12, 235, 0.15)])
def test_steps_without_a_target_row_are_said_with_what_to_do(
    chat: Chat, n: int, words: int, ratio: float
) -> None:
    target = rows(TARGET, n, words)
    replay = rows("select", 400, 1)
    result = mixed(chat, target, replay, ratio=ratio, unit="loss_tokens")
    said = note(result, "hold no target row")
    empty = int(said.split()[0])
    assert 0 < empty < result.steps
    assert f"of the {result.steps} steps" in said
    assert "--unit rows" in said
    by_rows = mixed(chat, target, replay, ratio=ratio, unit="rows")
    assert not any("no target row" in text for text in by_rows.notes)


def test_as_rows_steps_without_a_target_row_ask_for_a_lower_ratio(chat: Chat) -> None:
    result = mixed(chat, letters(5), rows("select", 200, 1), ratio=0.9, unit="rows",
                   train=Train(batch_rows=4))  # fmt: skip
    assert "a lower --ratio" in note(result, "hold no target row")


@pytest.mark.parametrize("ratio", [0.0, 0.05])
def test_equal_steps_that_show_a_part_of_the_target_are_trained_and_said(
    chat: Chat, ratio: float
) -> None:
    result = mixed(
        chat, letters(640), rows("select", 100, 5), ratio=ratio, unit="rows",
        train=Train(batch_rows=16, steps=39),
    )  # fmt: skip
    assert result.steps == 39
    assert result.target_rows + result.replay_rows == 39 * 16
    assert result.not_shown == 640 - result.target_rows > 0
    said = note(result, "are not shown")
    assert said.startswith(f"{result.not_shown} of the 640 target rows are not shown in 39 steps")


@pytest.mark.parametrize(("ratio", "replayed"), [(0.05, 5), (0.1, 10), (0.2, 21)])
def test_of_arms_of_equal_steps_the_one_with_replay_is_trained_too(
    chat: Chat, ratio: float, replayed: int
) -> None:
    train = Train(batch_rows=16, steps=40)
    without = mixed(chat, letters(640), ratio=0, train=train)
    replay = rows("select", 100, 5)
    result = mixed(chat, letters(640), replay, ratio=ratio, unit="loss_tokens", train=train)
    assert without.steps == result.steps == 40
    assert (without.target_rows, without.not_shown) == (640, 0)
    assert (result.replay_rows, result.target_rows) == (replayed, 640 - replayed)
    said = note(result, "are not shown")
    assert said.startswith(f"{replayed} of the 640 target rows are not shown in 40 steps")


def test_steps_that_show_all_of_the_target_have_no_such_note(chat: Chat) -> None:
    train = Train(batch_rows=16, steps=40)
    assert mixed(chat, letters(640), ratio=0, train=train).notes == []


def test_where_the_budget_replaces_target_rows_their_number_is_said(chat: Chat) -> None:
    replay = rows("select", 100, 1)
    result = mixed(chat, letters(200), replay, ratio=0.5, unit="rows", budget="replace")
    assert "100 of the 200 target rows are not shown: replay stands in their place" in result.notes


# --- files of one's own ---------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a target and old data in two formats, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("target.jsonl"), letters(200))
    pairs = [{"instruction": f"Old task {k}", "output": f"Result {k}"} for k in range(60)]
    Path("old.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    lines = ["question,answer", *(f"What is {k} times two?,{2 * k}" for k in range(60))]
    Path("more.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def command(*flags: str) -> Any:
    given = ["mix", "--model", "nano", "--target", "target.jsonl", "--out", "mixed", *flags]
    return CliRunner().invoke(app, given)


@pytest.mark.slow
def test_replay_of_ones_own_needs_no_select(files: Path) -> None:
    done = command("--replay", "old.jsonl", "--unit", "rows", "--ratio", "0.2", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["target_rows"], result["replay_rows"]) == (200, 50)
    assert result["sources"] == {"old.jsonl": "old.jsonl"}
    assert result["skills"] == {"old.jsonl": {"rows": 50, "different": 50}}
    replayed = [row for row in read_plan(Path("mixed/rows.jsonl")) if row.record.source != TARGET]
    assert {row.record.source for row in replayed} == {"select"}


def test_files_of_different_formats_share_by_their_weights(files: Path) -> None:
    flags = ("--replay", "old.jsonl=3", "--replay", "more.csv", "--unit", "rows", "--ratio", "0.2")
    result = json.loads(command(*flags, "--json").stdout)
    counts = {name: found["rows"] for name, found in result["skills"].items()}
    assert sum(counts.values()) == 50
    assert counts["old.jsonl"] == pytest.approx(37.5, abs=1)


def test_a_file_stands_beside_what_a_step_made(files: Path) -> None:
    generated(Path("run"), rows("generate", 60, 3))
    recipe = Recipe.model_validate(
        {
            "model": "nano",
            "target": "target.jsonl",
            "out": "run",
            "mix": {"unit": "rows", "ratio": 0.2, "sources": {"old.jsonl": 1, "generate": 1}},
        }
    )
    (done,) = mix_step.run(recipe, Context())
    counts = {name: found.rows for name, found in done.result.skills.items()}
    assert counts == {"generate": 25, "old.jsonl": 25}
    assert pipeline.needed(recipe, "mix", None) == ["generate"]
    # The file's content decides, not its name alone.
    Path("old.jsonl").write_text('{"prompt": "New?", "completion": "Yes."}\n')
    (again,) = mix_step.run(recipe, Context())
    assert not again.skipped
    assert again.result.available["old.jsonl"] == 1


def test_a_row_of_replay_that_cannot_be_read_is_counted_and_the_rest_is_taken(files: Path) -> None:
    with Path("old.jsonl").open("a") as stream:
        stream.write('{"colour": "red"}\n')
    result = json.loads(command("--replay", "old.jsonl", "--unit", "rows", "--json").stdout)
    assert result["funnel"]["dropped"]["unparsed"] == 1
    assert result["available"]["old.jsonl"] == 60


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("missing.jsonl", "missing.jsonl"),
        (
            "generat",
            "must be 'select', 'generate', 'buffer', or rows of your own such as old.jsonl",
        ),
        ("generat", "did you mean 'generate'?"),
        ("generate", "is not finished; `replaykit generate` makes it"),
    ],
)
def test_replay_that_is_not_there_is_an_error_that_names_it(
    files: Path, source: str, says: str
) -> None:
    done = command("--replay", source)
    assert done.exit_code == 1
    assert says in done.output


def test_a_file_without_a_row_that_can_be_read_is_refused(files: Path) -> None:
    Path("empty.jsonl").write_text('{"colour": "red"}\n')
    done = command("--replay", "empty.jsonl")
    assert done.exit_code == 1
    assert "empty.jsonl: none of its 1 rows can be read; the first: empty.jsonl:1:" in done.output


@pytest.mark.slow
def test_in_python_replay_is_rows_a_file_or_several(files: Path) -> None:
    given: dict[str, Any] = {"model": "nano", "unit": "rows", "ratio": 0.2}
    one = replaykit.mix("target.jsonl", replay="old.jsonl", **given)
    assert one.result.sources == {"old.jsonl": "old.jsonl"}
    command("--replay", "old.jsonl", "--unit", "rows", "--ratio", "0.2")
    # The command writes the very rows that the function returns.
    assert [row.record.id for row in one.rows] == [
        row.record.id for row in read_plan(Path("mixed/rows.jsonl"))
    ]
    weights = {"old.jsonl": 4.0, "more.csv": 1.0}
    two = replaykit.mix("target.jsonl", replay=["old.jsonl", "more.csv"], sources=weights, **given)
    assert {name: found.rows for name, found in two.result.skills.items()} == {
        "old.jsonl": 40,
        "more.csv": 10,
    }
    memory = list(read_jsonl(Path("target.jsonl")))[:0] + rows("generate", 60, 2)
    three = replaykit.mix("target.jsonl", replay=memory, **given)
    assert set(three.result.skills) == {"select"}


def test_a_weight_of_what_is_not_given_is_refused(files: Path) -> None:
    with pytest.raises(CallError, match="sources weighs 'more.csv', which replay does not have"):
        replaykit.mix("target.jsonl", replay="old.jsonl", model="nano", sources={"more.csv": 1.0})
