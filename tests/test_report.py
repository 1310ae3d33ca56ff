"""The report says what the numbers say, on a terminal and as a page that needs nothing else."""

from __future__ import annotations

import io
import math
import re
import sys
import time
from collections.abc import Mapping
from functools import cache
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from replaykit.checks.fidelity import Fidelity, ItemFidelity, RawSample
from replaykit.checks.funnel import FunnelCounts
from replaykit.data.record import TARGET, Record, dialogue
from replaykit.engines import Engine
from replaykit.model.chat import Chat
from replaykit.model.loading import load_tokenizer
from replaykit.recipe.evaluate import Test as Scored
from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train
from replaykit.result import Result
from replaykit.runs import Manifest
from replaykit.steps.evaluate.compare import compare
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.generate.result import GenerateResult
from replaykit.steps.merge.result import MergeResult
from replaykit.steps.mix.build import build_mixture
from replaykit.steps.mix.result import MixResult
from replaykit.steps.probe.describe import described, drawn
from replaykit.steps.probe.result import Part, ProbeResult, Stops
from replaykit.steps.report.html import write_report
from replaykit.steps.report.numbers import interval, mean, number, percent
from replaykit.steps.report.progress import progress
from replaykit.steps.report.terminal import show
from replaykit.steps.report.verdict import caution, verdict
from replaykit.steps.results import result_of
from replaykit.steps.rewrite.result import RewriteResult
from replaykit.steps.score.result import ScoreResult
from replaykit.steps.select.result import SelectResult
from replaykit.steps.train.result import TrainResult

sys.path.insert(0, str(Path(__file__).parent))
import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


# --- results --------------------------------------------------------------------------------------
# Those of a real run, which is done once for all tests; those of chosen scores, from the real
# ``compare``; and copies of real ones with numbers that are easy to find again.


@cache
def mixture() -> MixResult:
    """What a small mixture says of itself."""
    target = [Record(dialogue(f"What is {n} + {n}?", f"{2 * n}"), TARGET) for n in range(12)]
    made = build_mixture(
        target,
        {
            "generate": [
                Record(dialogue(f"Name the river {n}.", "Elbe"), "generate") for n in (1, 2)
            ]
        },
        chat=Chat.load("nano"),
        settings=Mix(ratio=0.05, unit="rows"),
        train=Train(batch_rows=4, steps=4),
        seed=1,
    )
    kept = FunnelCounts(made=14, dropped={}, kept=14)
    return made.result(Mix(ratio=0.05), sha256="", sources={}, funnel=kept, decontamination=None)


def mixed(share: float) -> MixResult:
    """A mixture of 400 steps with this share of replay."""
    shares = dict.fromkeys(mixture().share, share)
    return mixture().model_copy(update={"ratio": share, "share": shares, "steps": 400})


def answers(skill: str, right: float, n: int = 200) -> list[Item]:
    """Items of which this part is right, always the first ones."""
    rows = range(n)
    return [Item(skill, row, float(row < round(right * n)), answer="?") for row in rows]


def losses(skill: str, nats: float, n: int = 90) -> list[Item]:
    """Items of 10 tokens that have so many nats a token, give or take 0.1."""
    return [Item(skill, row, 10 * (nats + 0.1 * (-1) ** row), tokens=10) for row in range(n)]


def evaluation(
    arms: Mapping[str, tuple[float, float, float]],
    *,
    base: tuple[float, float] = (0.98, 0.01),
    old: tuple[str, ...] = ("json", "nli"),
    n: int = 200,
) -> EvalResult:
    """Arms by name: replay share, old score, new score. The old skills have the same score."""
    tests = {skill: Scored(path=f"{skill}.jsonl") for skill in old}
    tests[TARGET] = Scored(path="target.jsonl", score="numeric")
    items = {}
    for name, (_, kept, learned) in {"base": (0.0, *base), **arms}.items():
        items[name] = {skill: answers(skill, kept, n) for skill in old}
        items[name][TARGET] = answers(TARGET, learned, n)
    return compare(tests, items, {name: mixed(share) for name, (share, _, _) in arms.items()})


def in_nats(rises: Mapping[str, tuple[float, float, float]]) -> EvalResult:
    """Arms by name: replay share, rise of the pool's cross-entropy, the target's cross-entropy."""
    tests = {name: Scored(path="rows.jsonl", score="cross_entropy") for name in ("pool", TARGET)}
    items = {
        name: {"pool": losses("pool", 2 + rise), TARGET: losses(TARGET, learned)}
        for name, (_, rise, learned) in {"base": (0.0, 0.0, 3.0), **rises}.items()
    }
    return compare(tests, items, {name: mixed(share) for name, (share, _, _) in rises.items()})


HELPED = {"no-replay": (0, 0.10, 0.96), "generated": (0.05, 0.94, 0.97)}
NATS = {"no-replay": (0, 0.9, 0.5), "generated": (0.05, 0.05, 0.51)}
FUNNEL = FunnelCounts(made=1712, dropped={"too_short": 120, "near_duplicate": 92}, kept=1500)
FIDELITY = Fidelity(
    drawn=1712,
    rows=1712,
    kept=1500,
    answer_chars=40,
    note=None,
    items={
        "language": ItemFidelity(
            words=["en", "de", "other"],
            raw=[0.9, 0.06, 0.04],
            kept=[0.92, 0.08, 0.0],
            distance=0.04,
            expected=0.004,
            chance=0.011,
        ),
        "category": ItemFidelity(
            words=["capital, city, france", "word, reverse", "#, sum"],
            raw=[0.5, 0.3, 0.2],
            kept=[0.51, 0.3, 0.19],
            distance=0.01,
            expected=0.009,
            chance=0.0164,
        ),
    },
)
TAGS = {
    "category": {"Math": 1200, "Planning": 290, "unparsed": 10},
    "quality": {"good": 1490, "unparsed": 10},
}
PROBE = ProbeResult(
    model="nano",
    template={
        "pre_query": Part(text="<|start|>user\n\n", ids=[0, 4, 12]),
        "end_of_question": Part(text="<|end|>", ids=[2]),
        "answer_header": Part(text="<|end|><|start|>assistant\n\n", ids=list(range(100, 160))),
        "end_of_answer": Part(text="<|end|>", ids=[2]),
        "joint": None,
    },
    stop=Stops(text=["<|end|>", "<|start|>"], ids=[2, 4]),
    system="folded into the user's turn",
    default_system="You are [bold]nano[/].",
    date="2025-01-01",
    bos=1,
    thinking="<think>\n\n</think>",
    defaults={"temperature": 0.6, "top_p": 0.9, "top_k": None},
    samples=["Name the capital of Peru.", "A list:\n- one\n- two"],
    verdict="the template is usable; 2 of 2 questions came to an end by themselves",
)
LOSSES = [
    {"step": step, "loss": 2 / step, "loss/target": 2 / step, "loss/generate": 0.5}
    for step in range(1, 900)
]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> tiny.Run:
    """All steps on the embedded model, with an arm without replay."""
    made = tiny.Run(tmp_path_factory.mktemp("run"), arms=tiny.ARMS)
    made.do("select", "generate", "mix", "score", "train", "eval")
    return made


def result(run: tiny.Run, name: str) -> Result:
    """What a step of the run left."""
    return result_of(run.manifests[name], run.folder / name)


@pytest.fixture(scope="session")
def generated(run: tiny.Run) -> GenerateResult:
    """A generation with chosen counts."""
    made = result(run, "generate")
    assert isinstance(made, GenerateResult)
    return made.model_copy(update={"funnel": FUNNEL, "fidelity": FIDELITY, "tags": TAGS})


@pytest.fixture(scope="session")
def mix(run: tiny.Run) -> MixResult:
    """A mixture with chosen counts."""
    made = result(run, "mix-generated")
    assert isinstance(made, MixResult)
    changes = {
        "share": {"loss_tokens": 0.0499, "tokens": 0.06, "rows": 0.07},
        "target_rows": 12800,
        "replay_rows": 830,
        "repeats": {"generate": 0.55},
    }
    return made.model_copy(update=changes)


@pytest.fixture(scope="session")
def trained(run: tiny.Run) -> TrainResult:
    """A training of 899 steps."""
    made = result(run, "train-generated")
    assert isinstance(made, TrainResult)
    return made.model_copy(update={"steps": 899, "loss": 0.1, "losses": LOSSES})


@pytest.fixture(scope="session")
def finished(
    run: tiny.Run, generated: GenerateResult, mix: MixResult, trained: TrainResult
) -> dict[str, Manifest]:
    """The manifests of a run that helped."""
    results = {
        "generate": generated.model_copy(update={"tags": None}),
        "mix-generated": mix,
        "train-generated": trained,
        "eval": evaluation(HELPED),
    }
    return {name: of_run(run, name, found) for name, found in results.items()}


def of_run(run: tiny.Run, name: str, found: Result) -> Manifest:
    """The run's manifest of a step with another result in it."""
    return run.manifests[name].model_copy(update={"result": found.to_json()})


def page_of(
    tmp_path: Path,
    manifests: Mapping[str, Manifest],
    *,
    title: str = "my-task",
    recipe_yaml: str = "model: nano\n",
) -> str:
    path = tmp_path / "run" / "report.html"
    write_report(path, title=title, manifests=manifests, recipe_yaml=recipe_yaml)
    return path.read_text(encoding="utf-8")


def shown(step: str, found: Result, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(step, found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order or never."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.addresses: list[str | None] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [
            value
            for key, value in attrs
            if key in ("src", "href", "srcset", "data", "action", "xlink:href")
        ]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# --- the verdict ----------------------------------------------------------------------------------


def test_the_verdict_says_that_replay_helped_and_the_new_skill_was_learned() -> None:
    assert verdict(evaluation(HELPED)) == (
        "Without replay the old skills fell from 0.98 to 0.10; with 5 % replay (generated) they "
        "stayed at 0.94, and the new skill was learned equally well (0.97 against 0.96)."
    )


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (
            {"no": (0, 0.30, 0.96), "yes": (0.05, 0.29, 0.95)},
            "they came to 0.29: replay did not help",
        ),
        (
            {"no": (0, 0.30, 0.96), "yes": (0.05, 0.31, 0.95)},
            "they came to 0.31, too near for this test to tell",
        ),
        ({"no": (0, 0.30, 0.96), "yes": (0.05, 0.33, 0.95)}, "they came to 0.33, a smaller loss"),
        (
            {"no": (0, 0.30, 0.96), "yes": (0.05, 0.10, 0.95)},
            "they came to 0.10: replay made it worse",
        ),
        ({"no": (0, 0.10, 0.96), "yes": (0.05, 0.20, 0.95)}, "they came to 0.20, a smaller loss"),
        ({"no": (0, 0.10, 0.96), "yes": (0.05, 0.70, 0.95)}, "they fell only to 0.70"),
        (
            {"no": (0, 0.98, 0.96), "yes": (0.05, 0.98, 0.95)},
            "are at 0.98 as before, which this test cannot tell from no loss",
        ),
        (
            {"no": (0, 0.10, 0.96), "yes": (0.05, 0.94, 0.80)},
            "but the new skill was learned less well (0.80 against 0.96)",
        ),
        (
            {"no": (0, 0.10, 0.80), "yes": (0.05, 0.94, 0.96)},
            "and the new skill was learned better (0.96 against 0.80)",
        ),
        (
            {"no": (0, 0.10, 0.96), "yes": (0.05, 0.94, 0.95)},
            "learned with no clear difference (0.95 against 0.96)",
        ),
        (
            {"no": (0, 0.10, 0.02), "yes": (0.05, 0.94, 0.03)},
            "but the new skill shows no measurable gain (0.03, base 0.01)",
        ),
        (
            {"no": (0, 0.10, 0.96), "a": (0.05, 0.94, 0.97), "b": (0.1, 0.8, 0.9)},
            "with 5 % replay (a, the best of 2)",
        ),
    ],
)
def test_the_verdict_is_honest_about(
    arms: dict[str, tuple[float, float, float]], words: str
) -> None:
    assert words in verdict(evaluation(arms))


def test_where_enough_rows_show_no_loss_there_was_little_to_protect() -> None:
    arms = {"no": (0.0, 0.98, 0.96), "yes": (0.05, 0.98, 0.96)}
    assert "no measurable loss, so there was little to protect" in verdict(evaluation(arms, n=400))


def test_a_loss_that_few_rows_cannot_tell_is_not_called_none() -> None:
    arms = {"no": (0.0, 0.6, 0.9), "yes": (0.05, 0.7, 0.9)}
    said = verdict(evaluation(arms, base=(0.7, 0.0), n=10))
    assert "went from 0.70 to 0.60, which this test cannot tell from no loss" in said
    assert "little to protect" not in said


def test_without_a_control_the_verdict_claims_nothing_for_replay() -> None:
    found = verdict(evaluation({"tuned": (0.05, 0.94, 0.97)}))
    assert found.startswith(
        "With 5 % replay (tuned) the old skills fell from 0.98 to 0.94 and the new skill went from "
        "0.01 to 0.97;"
    )
    assert "no run without replay was evaluated" in found
    assert "no run with replay was evaluated" in verdict(evaluation({"no-replay": (0, 0.1, 0.97)}))


def test_without_arms_the_verdict_says_that_nothing_is_known() -> None:
    assert verdict(evaluation({})) == "Only the base model was evaluated: forgetting is not known."
    assert caution(evaluation({})) == ""


def test_the_verdict_speaks_of_nats_where_nothing_is_right_or_wrong() -> None:
    assert verdict(in_nats(NATS)) == (
        "Without replay the cross-entropy of old data rose by 0.900 nats; with 5 % replay "
        "(generated) it rose by only 0.050 nats, and the new skill was learned equally well (0.510 "
        "nats against 0.500 nats)."
    )
    worse = verdict(in_nats({"no-replay": (0, 0.1, 0.5), "generated": (0.05, 0.9, 0.5)}))
    assert "it changed by 0.900 nats: replay made it worse" in worse


def test_a_model_that_diverged_is_not_the_best() -> None:
    broken = (0.1, math.nan, math.nan)
    found = in_nats({"no-replay": (0, 0.9, 0.5), "good": (0.05, 0.05, 0.51), "broken": broken})
    assert "(good, the best of 2)" in verdict(found)


def test_an_evaluation_without_old_skills_says_so() -> None:
    found = evaluation({"no": (0, 0.1, 0.9), "yes": (0.05, 0.9, 0.9)}, old=())
    assert verdict(found).startswith(
        "What became of the old skills is not known, and the new skill was learned"
    )


def test_no_forgetting_is_claimed_only_below_the_margin_for_every_skill() -> None:
    tests = {skill: Scored(path=f"{skill}.jsonl") for skill in ("nli", "json")}

    def cautioned(json: float, **more: list[Item]) -> str:
        """Of 500 rows, 0.98 right under the base; ``json`` is that skill's score after tuning."""
        kept = {"nli": answers("nli", 0.98, 500), "json": answers("json", 0.98, 500)}
        tuned = kept | {"json": answers("json", json, 500)}
        scored = tests
        if more:
            scored = tests | {"pool": Scored(path="pool.jsonl", score="cross_entropy")}
            kept = kept | {"pool": losses("pool", 2.0)}
            tuned = tuned | more
        return caution(
            compare(scored, {"base": kept, "generated": tuned}, {"generated": mixed(0.05)})
        )

    assert "no forgetting; every old skill's drop is below 2 points" in cautioned(0.98)
    over = cautioned(0.972)  # an upper bound of 0.0205
    assert "no forgetting" not in over
    assert "json may have lost up to 2.05 points; 500 rows show a true drop of" in over
    # A drop that could not be measured is not below the margin.
    assert "no forgetting" not in cautioned(0.98, pool=losses("pool", math.nan))
    helped = evaluation(HELPED)
    assert "no forgetting" not in caution(helped) + verdict(helped)
    assert "some forgetting is measurable: retention 0.96" in caution(helped)


# --- the terminal ---------------------------------------------------------------------------------


def test_numbers_have_one_form() -> None:
    assert [number(0.976), number(-0.001), number(-0.1), number(None), number(math.nan)] == [
        "0.98",
        "0.00",
        "−0.10",
        "–",
        "–",
    ]
    assert number(2.3449, "nats") == "2.345"
    assert interval(Interval(0.98, 0.93, 1.0)) == "0.93–1.00"
    assert interval(Interval(0.04, -0.01, 0.09)) == "−0.01 to 0.09"
    assert [interval(None), interval(Interval(math.nan, 0, 1))] == ["", ""]
    assert [mean(Interval(0.976, 0, 1)), mean(None)] == ["0.98", "–"]
    assert [percent(0.05), percent(0.0498), percent(0), percent(None)] == [
        "5 %",
        "4.98 %",
        "0 %",
        "–",
    ]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_tables_fit_the_terminal_and_name_every_model_and_skill(width: int) -> None:
    arms = {f"ratio-{share}": (share, 0.9, 0.9) for share in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)}
    text = shown("eval", evaluation(arms), width)
    assert max(map(len, text.splitlines())) <= width
    assert all(name in text for name in ["base", *arms, "nli", "json", "target (new)"])
    assert "\x1b" not in text


def test_the_comparison_has_scores_with_intervals_and_the_worst_skill() -> None:
    found = evaluation(HELPED)
    text = shown("eval", found)
    row = next(line for line in text.splitlines() if line.startswith(" generated"))
    assert row.split() == ["generated", "5", "%", "0.97", "0.94", "0.96", "json", "0.96"]
    assert interval(found.models[2].old) == "0.91–0.96"
    assert "0.91–0.96" in text
    assert "0.94 −0.04" in text


def test_nats_have_three_digits_and_no_retention() -> None:
    text = shown("eval", in_nats(NATS))
    assert "2.900 +0.900" in text
    assert "pool, nats" in text
    assert "retention" not in text


@pytest.mark.slow
def test_each_step_shows_its_own_facts(
    run: tiny.Run, generated: GenerateResult, mix: MixResult, trained: TrainResult
) -> None:
    assert re.findall(r"\S+", shown("generate", generated))[1:4] == ["made", "1,712", "100"]
    selected = result(run, "select").model_copy(update={"funnel": FUNNEL})
    assert "- near_duplicate     92    5 %" in shown("select", selected)
    assert "4.99 % of loss tokens, 6 % of tokens, 7 % of rows" in shown("mix-generated", mix)
    assert "generate 0.55 times" in shown("mix", mix)
    held_out = FunnelCounts(made=9, dropped={"held_out": 3}, kept=6)
    text = shown("mix", mix.model_copy(update={"funnel": held_out}))
    assert re.search(r"830 replay( \([\d,]+ different\))?, 3 dropped as held_out", text)
    assert "0.100" in shown("train-generated", trained)
    run.recipe = run.changed(arms=tiny.ARMS, push={"repo": "me/my-replay"})
    pushed = run.do("push", dry_run=True)["push"]
    said = " ".join(shown("push", pushed).split())
    assert "repo me/my-replay" in said
    assert 'rows {"select": 12, "generate": 6}' in said
    assert "note columns that are not published: skill" in said


@pytest.mark.slow
def test_a_selection_shows_its_scores_and_what_it_notes(run: tiny.Run) -> None:
    selected = result(run, "select")
    assert isinstance(selected, SelectResult)
    assert selected.scores is not None
    text = shown("select", selected, 400)
    assert f"highest {selected.scores.highest:.3f}, median {selected.scores.median:.3f}" in text
    assert all(re.search(rf"note +{re.escape(note)}", text) for note in selected.notes)
    assert selected.notes


@pytest.mark.slow
def test_an_explained_row_shows_what_is_known_of_it(run: tiny.Run) -> None:
    rows = (run.folder / "select" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    explained = run.do("select", explain=rows[0][8:14])["select"]
    text = shown("select", explained, 400)
    names = [line.split()[0] for line in text.splitlines()[1:]]
    assert names == ["id", "chosen", "reason", "rank", "score", "terms", "line", "text", "nearest"]
    assert re.search(r"reason +null", text)


def test_a_rewrite_shows_the_paths_of_its_rows(run: tiny.Run) -> None:
    folder = run.data / "rewritten"
    folder.mkdir(exist_ok=True)
    rewriting = tiny.Run(folder, target={"path": run.path("target.jsonl"), "n": 3})
    found = rewriting.do("rewrite")["rewrite"]
    assert isinstance(found, RewriteResult)
    words = shown("rewrite", found).split()
    assert words[:4] == ["rewrite", "rows", "3", "paths"]
    assert all(f'"{path}":' in words or f'{{"{path}":' in words for path in found.paths)


def test_a_score_shows_a_row_a_source(run: tiny.Run) -> None:
    found = result(run, "score-generated")
    assert isinstance(found, ScoreResult)
    text = shown("score-generated", found, 100)
    for source, scored in found.sources.items():
        row = next(line for line in text.splitlines() if line.startswith(f" {source}"))
        assert row.split()[1:4] == [
            f"{scored.rows:,}",
            f"{scored.tokens:,}",
            f"{scored.perplexity:,.2f}",
        ]
    assert "less probable than 1 / 2.5." in " ".join(text.split())


def test_a_sweep_marks_the_chosen_average_and_those_that_lose_too_much(run: tiny.Run) -> None:
    merged = run.do("merge", sweep=[0.0])["merge-generated"]
    assert isinstance(merged, MergeResult)
    assert merged.table is not None
    lost = merged.table[0].model_copy(update={"alpha": 1.0, "allowed": False, "chosen": False})
    text = shown("merge-generated", merged.model_copy(update={"table": [*merged.table, lost]}))
    rows = [line.split() for line in text.splitlines()]
    assert [row[-1] for row in rows if row[:1] == ["0"]] == ["chosen"]
    assert [row[-3:] for row in rows if row[:1] == ["1"]] == [["loses", "too", "much"]]
    assert "Chosen by these very scores" in text


def test_what_the_checks_did_to_the_sample_is_a_line_an_item(generated: GenerateResult) -> None:
    tokens = {"questions": 20_500, "answers": 61_000}
    text = shown("generate", generated.model_copy(update={"tokens": tokens}))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "language 0.040 from the raw sample (chance: 0.011): more than chance" in lines
    assert "category 0.010 from the raw sample (chance: 0.016)" in lines
    assert "tag category Math 1,200, Planning 290, unparsed 10" in lines
    assert "tokens 20,500 of questions, 61,000 of answers" in lines
    assert "made 1,712 100 %" in lines


def test_a_sample_that_is_too_small_to_compare_says_so(run: tiny.Run) -> None:
    assert "6 rows are too few to compare" in shown("generate", result(run, "generate"))


def test_a_dry_run_shows_its_lines(run: tiny.Run) -> None:
    estimated = run.do("generate", dry_run=True)["generate"]
    found = shown("generate", estimated, 200)
    lines = [line.strip() for line in found.splitlines()]
    assert lines == ["generate", *estimated.to_json()["text"]]
    assert len(lines) > 2


def test_a_summary_of_a_real_sample_is_shown(
    tmp_path: Path, run: tiny.Run, generated: GenerateResult
) -> None:
    sample = RawSample()
    for row in range(300):
        sum_up = f"What is {row} + {row}?"
        text = sum_up if row % 3 else f"Name a river near place {row}."
        sample.add(row, text, "an answer", row % 3 > 0)
    found = generated.model_copy(update={"fidelity": sample.summary()})
    assert "length " in shown("generate", found)
    assert "category " in shown("generate", found)
    page = page_of(tmp_path, {"generate": of_run(run, "generate", found)})
    assert page.count("distance 0.") == 4
    assert "length of answers, characters" in page
    assert "questions like “" in page
    assert "more than chance" in page
    Balanced(page)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_probe_shows_each_part_as_text_and_as_token_ids(width: int) -> None:
    text = shown("probe", PROBE, width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert (
        r"pre-query '<|start|>user\n\n' 0 4 12 end of question '<|end|>' 2 answer header" in words
    )
    assert "joint none: one question only stop '<|end|>' '<|start|>' 2 4" in words
    assert (
        "system prompt folded into the user's turn default system 'You are [bold]nano[/].'" in words
    )
    assert (
        r"date frozen at 2025-01-01 BOS 1 in the pre-query thinking '<think>\n\n</think>'" in words
    )
    assert "defaults temperature 0.6, top_p 0.9 samples 1 'Name the capital of Peru.'" in words
    assert r"2 'A list:\n- one\n- two'" in words
    assert words.endswith(PROBE.verdict)
    assert all(str(token) in words for token in range(100, 160))


def test_a_probe_of_a_model_without_specials_says_none() -> None:
    bare = {"default_system": None, "date": None, "thinking": None, "defaults": None, "samples": []}
    words = " ".join(shown("probe", PROBE.model_copy(update=bare)).split())
    assert "default system none date not asked for BOS 1 in the pre-query thinking none" in words
    assert "defaults none in generation_config the template is usable" in words


def test_a_probe_of_a_base_model_has_no_word_of_a_template(
    tmp_path: Path, transformers_engine: Engine
) -> None:
    plain = Chat.load(str(tiny.base_model(tmp_path)))
    found = described(plain, model="base", deployed=None)
    words = " ".join(shown("probe", found, 200).split())
    assert "start '<|begin_of_text|>' 0 stop" in words
    assert "defaults none in generation_config" in words
    assert "system prompt" not in words
    assert words.endswith(found.verdict)


def test_token_ids_of_a_probe_are_dimmed_on_a_terminal() -> None:
    console = Console(
        file=io.StringIO(), width=80, force_terminal=True, color_system="standard", highlight=False
    )
    show("probe", PROBE, console)
    assert "\x1b[2m0 4 12" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_probe_finds_is_shown(chat: Chat, transformers_engine: Engine) -> None:
    found = described(chat, model="nano", deployed=None)
    found = drawn(found, transformers_engine, chat, 3, seed=1)
    words = " ".join(shown("probe", found, 200).split())
    assert repr(chat.template.pre_query)[1:-1] in words
    assert all(f" {place} " in words for place in (1, 2, 3))


@pytest.mark.parametrize(
    ("end", "opens", "says"),
    [
        ("<|eot_id|>", "", ""),
        (
            "<|begin_of_text|>",
            "",
            "its answer to 'What is 2 + 2?' has special tokens in it, so it would be dropped",
        ),
        (
            "<|eot_id|>",
            "<think>\n",
            "its thought about 'What is 2 + 2?' does not end in 512 tokens",
        ),
        (
            "<|eot_id|>",
            "It is 4.",
            "its answer to 'What is 2 + 2?' is empty, so it would be dropped",
        ),
    ],
)
def test_a_probe_says_where_the_answer_to_its_question_would_be_dropped(
    end: str, opens: str, says: str, transformers_engine: Engine
) -> None:
    tokenizer = load_tokenizer("nano")
    template = str(tokenizer.chat_template).replace("<|eot_id|>", end)
    # What the prompt opens the answer with.
    template += f"{{% if add_generation_prompt %}}{{{{ {opens!r} }}}}{{% endif %}}"
    tokenizer.chat_template = template
    tokenizer.eos_token = end
    chat = Chat(tokenizer, name="some model")
    found = described(chat, model="some model", deployed=None)
    said = drawn(found, transformers_engine, chat, 1, seed=1).verdict
    assert said.partition(" of them different")[2].removeprefix("; ") == says


def test_a_name_is_never_read_as_markup(mix: MixResult) -> None:
    assert "[bold]nli[/]" in shown("eval", evaluation(HELPED, old=("[bold]nli[/]",)), 140)
    exported = {"[bold]nli[/]": "[red]x"}
    text = shown("mix", mix.model_copy(update={"exported": exported}))
    assert re.search(r"for \[bold\]nli\[/\] +\[red\]x", text)


def test_show_prints_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    show("eval", evaluation(HELPED))
    out, err = capsys.readouterr()
    assert "no-replay" in out
    assert err == ""


def test_progress_off_a_terminal_is_a_line_at_the_start_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress() as watch:
        for done in range(101):
            watch("generate: questions", done, 100)
        watch("generate: questions", 100, 100)
        watch("select", 5, None)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"generate: questions \.\.\.\ngenerate: questions: 100 in \d+\.\d s\nselect \.\.\.\n", err
    )


def test_progress_off_a_terminal_tells_its_note_every_half_minute_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress() as watch:
        for done in range(0, 3001, 25):
            now = done / 25
            watch("rows", done, 3000, f"{done} tokens/s, yield 87 %")
            watch("silent", done, 3000)
        watch("endless", 1, None)
        now += 31
        watch("endless", 7, None, "2 rows/s")
        watch("rows", 3000, 3000, "again")
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("silent")]
    assert lines == [
        "rows ...",
        "rows: 750/3,000, 750 tokens/s, yield 87 %",
        "rows: 1,500/3,000, 1500 tokens/s, yield 87 %",
        "rows: 2,250/3,000, 2250 tokens/s, yield 87 %",
        "rows: 3,000 in 120.0 s, 3000 tokens/s, yield 87 %",
        "endless ...",
        "endless: 7, 2 rows/s",
    ]


def test_progress_on_a_terminal_draws_a_bar_a_piece_of_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress() as watch:
        watch("ask [red]", 0, 1000)
        watch("ask [red]", 1000, 1000, "412 rows/s [b]")
        watch("read", 7, None)
    final = screen.getvalue()
    assert "1,000/1,000" in final
    assert "ask [red]" in final
    assert "412 rows/s [b]" in final
    assert "read" in final


# --- the page -------------------------------------------------------------------------------------


def test_the_page_of_a_whole_run_has_every_section(tmp_path: Path, run: tiny.Run) -> None:
    page = page_of(tmp_path, run.manifests, recipe_yaml=run.recipe.to_yaml())
    assert re.findall("<h2>([^<]+)</h2>", page) == [
        "What was learned, what was kept",
        "Model by model",
        "Skill by skill",
        "Training loss",
        "The replay data",
        "The mix",
        "How it was made",
    ]
    evaluated = result(run, "eval")
    assert isinstance(evaluated, EvalResult)
    assert escape(verdict(evaluated)) in page
    Balanced(page)


def test_the_page_needs_nothing_from_outside(tmp_path: Path, run: tiny.Run) -> None:
    one = evaluation({"tuned": (0.05, 0.9, 0.9)})
    for found in (evaluation(HELPED), in_nats(NATS), one, evaluation({})):
        page = page_of(tmp_path, {"eval": of_run(run, "eval", found)})
        parsed = Balanced(page)
        assert parsed.addresses == []
        assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(parsed.names)
        assert "url(" not in page
        assert "@import" not in page


def test_the_page_has_the_verdict_every_model_every_skill_and_the_recipe(
    tmp_path: Path, finished: dict[str, Manifest]
) -> None:
    training = finished["train-generated"]
    timed = training.model_copy(update={"seconds": 71.3, "machine": "a machine, 2 CPUs"})
    page = page_of(tmp_path, finished | {"train-generated": timed})
    assert escape(verdict(evaluation(HELPED))) in page
    assert all(
        f">{name}" in page for name in ("base", "no-replay", "generated", "nli", "json", "target")
    )
    for fact in (
        "model: nano",
        f"torch {training.versions['torch']}",
        "71.3 s, ",
        "a machine, 2 CPUs",
        "near_duplicate",
        "4.99 %",
        "0.91–0.96",
    ):
        assert fact in page
    assert "drop 0.88" in page


def test_the_page_has_pictures_with_titles(
    tmp_path: Path, run: tiny.Run, finished: dict[str, Manifest]
) -> None:
    pictures = re.findall(
        r"<svg [^>]*role=\"img\"><title>([^<]+)</title>", page_of(tmp_path, finished)
    )
    assert len(pictures) == 3
    nats = page_of(tmp_path, {"eval": of_run(run, "eval", in_nats(NATS))})
    assert any("nats" in title for title in re.findall(r"<title>([^<]+)</title>", nats))


def test_the_page_sets_the_drawn_rows_against_the_kept(
    tmp_path: Path, run: tiny.Run, generated: GenerateResult
) -> None:
    page = page_of(tmp_path, {"generate": of_run(run, "generate", generated)})
    for words in (
        "1,712 of 1,712 rows drawn were compared, 1,500 of them kept",
        'distance 0.040, by chance up to 0.011 <span class="far">more than chance</span>',
        "distance 0.010, by chance up to 0.016</p>",
        "capital, city, france",
        "90.0 → 92.0 %",
        "<span>Planning</span>",
        "<span>1,490</span>",
    ):
        assert words in page
    assert page.count('class="pair"') == 6
    Balanced(page)


def test_the_page_says_why_nothing_was_compared(tmp_path: Path, run: tiny.Run) -> None:
    sample = RawSample()
    for row in range(60):
        sample.add(row, f"What is {row} + {row}?", None, False)
    found = result(run, "generate").model_copy(update={"fidelity": sample.summary()})
    page = page_of(tmp_path, {"generate": of_run(run, "generate", found)})
    assert "No comparison: no row was kept." in page
    assert "what a judge says" not in page
    Balanced(page)


def test_hostile_names_stay_text(tmp_path: Path, run: tiny.Run, generated: GenerateResult) -> None:
    evil = '"><script>alert(1)</script>&\ud800'
    arms = {"no-replay": (0, 0.1, 0.9), evil: (0.05, 0.9, 0.9)}
    language = replace_words(FIDELITY.items["language"], evil)
    sample = generated.model_copy(
        update={
            "funnel": FunnelCounts(made=1, dropped={evil: 1}, kept=0),
            "tags": {evil: {evil: 1}},
            "fidelity": FIDELITY.model_copy(update={"items": {evil: language}}),
        }
    )
    manifests = {
        evil: of_run(run, "generate", sample).model_copy(update={"machine": evil}),
        "eval": of_run(run, "eval", evaluation(arms, old=(evil, "json"))),
    }
    page = page_of(tmp_path, manifests, title=evil, recipe_yaml=evil)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10
    Balanced(page)


def replace_words(item: ItemFidelity, word: str) -> ItemFidelity:
    return item.model_copy(update={"words": [word] * len(item.words)})


def test_steps_stand_as_they_run_and_arms_as_they_were_evaluated(
    tmp_path: Path, run: tiny.Run
) -> None:
    names = [
        "eval",
        "generate",
        "mix-generated",
        "mix-no-replay",
        "select",
        "train-generated",
        "train-no-replay",
    ]
    page = page_of(tmp_path, {name: run.manifests[name] for name in names})
    steps = page[page.index("<h3>Steps</h3>") :]
    assert re.findall("<dt>([^<]+)</dt>", steps) == [
        "select",
        "generate",
        "mix-no-replay",
        "mix-generated",
        "train-no-replay",
        "train-generated",
        "eval",
        "together",
        "seed",
        "read",
        "versions",
        "machine",
    ]


def test_the_same_input_gives_the_same_bytes_twice(
    tmp_path: Path, finished: dict[str, Manifest]
) -> None:
    assert page_of(tmp_path, finished) == page_of(tmp_path, finished)


def test_a_diverged_model_is_in_the_tables_and_not_in_the_pictures(
    tmp_path: Path, run: tiny.Run
) -> None:
    broken = in_nats({"no-replay": (0, 0.9, 0.5), "broken": (0.05, math.nan, math.nan)})
    page = page_of(tmp_path, {"eval": of_run(run, "eval", broken)})
    assert ">broken</span>" in page
    assert "nan" not in page.replace("nano", "")
    Balanced(page)


def test_losses_that_are_not_numbers_are_left_out_of_the_picture(
    tmp_path: Path, run: tiny.Run, trained: TrainResult
) -> None:
    losses = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": 1.0}]
    found = trained.model_copy(update={"losses": losses})
    page = page_of(tmp_path, {"train": of_run(run, "train-generated", found)})
    points = re.findall(r'<polyline points="([^"]+)"', page)
    assert [len(line.split()) for line in points] == [2]


@pytest.mark.parametrize("logged", [1, 2])
def test_a_single_logged_loss_is_a_dot(
    tmp_path: Path, trained: TrainResult, run: tiny.Run, logged: int
) -> None:
    found = trained.model_copy(update={"losses": LOSSES[:logged]})
    page = page_of(tmp_path, {"train-generated": of_run(run, "train-generated", found)})
    _, _, picture = page.partition("Loss of train-generated")
    assert ("<circle" in picture) == (logged == 1)
    assert ("<polyline" in picture) == (logged > 1)


def test_a_long_training_is_thinned(tmp_path: Path, finished: dict[str, Manifest]) -> None:
    points = re.findall(r'<polyline points="([^"]+)"', page_of(tmp_path, finished))
    assert len(points) == 2
    assert all(len(line.split()) <= 600 for line in points)


def test_a_run_without_an_evaluation_still_shows_its_data_and_training(
    tmp_path: Path, finished: dict[str, Manifest]
) -> None:
    page = page_of(tmp_path, {name: found for name, found in finished.items() if name != "eval"})
    assert "No model was evaluated" in page
    assert "Model by model" not in page
    assert "near_duplicate" in page
    assert "<polyline" in page
    Balanced(page)


def test_a_report_without_manifests_or_recipe_is_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, {}, recipe_yaml="")
    assert "How it was made" not in page
    Balanced(page)
