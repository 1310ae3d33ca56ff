"""The controller acts on a loss that is sure, and on no noise; its decisions survive a restart; its tests are honest."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from scipy.optimize import minimize_scalar
from transformers.trainer_callback import TrainerControl, TrainerState

from replaykit.checks.verify import is_right
from replaykit.data.record import Record, dialogue
from replaykit.engines import Engine, Request, Sampling
from replaykit.errors import DataError, EngineError, RecipeError, RunError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.model.logprobs import IGNORED
from replaykit.nano import world
from replaykit.recipe.controller import ControllerSettings as Settings
from replaykit.recipe.evaluate import Test as Scored
from replaykit.recipe.mix import Mix
from replaykit.runs import Step
from replaykit.steps.evaluate.result import EvalResult, ModelScores
from replaykit.steps.evaluate.statistics import relative_drop
from replaykit.steps.report.html import write_report
from replaykit.steps.report.terminal import show
from replaykit.steps.train.controller import Controller, ControllerInputs, _last_answer
from replaykit.steps.train.decisions import Decider
from replaykit.steps.train.events import DeciderState, Event
from replaykit.steps.train.remedies import Remedy
from replaykit.steps.train.result import TrainResult

N = 200


def items(right: int, n: int = N) -> list[float]:
    """The first of n items are right."""
    return [1.0] * right + [0.0] * (n - right)


def scripted(
    rights: Sequence[int], losses: Sequence[float | None] | None = None, **settings: Any
) -> Decider:
    """A Decider after tests of one skill, of which the base has all 200 items right."""
    options = {"every": 100, "patience": None} | settings
    decider = Decider(Settings(**options), {"capital": items(N)}, ratio=0.05)
    for place, right in enumerate(rights):
        decider.decide(
            100 * (place + 1), {"capital": items(right)}, losses[place] if losses else None
        )
    return decider


# --- bounds ---------------------------------------------------------------------------------------------------------


def score_test(both: int, lost: int, gained: int, n: int, ratio: float) -> float:
    """The score statistic by maximising the likelihood numerically, as Nam and Blackwelder define it, half an item less."""
    some = (both + lost + gained) / n

    def probabilities(p_lost: float) -> tuple[float, float, float]:
        p_both = (some - p_lost * (1 + ratio)) / ratio
        return p_both, p_lost, p_both * (ratio - 1) + ratio * p_lost

    def cost(p_lost: float) -> float:
        counts = (both, lost, gained)
        return -sum(
            c * math.log(max(p, 1e-300)) for c, p in zip(counts, probabilities(p_lost), strict=True)
        )

    low, high = max(0.0, (1 - ratio) * some), some / (1 + ratio)
    p_both, p_lost, p_gained = probabilities(
        minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-14}).x
    )
    variance = n * (p_both * (1 - ratio) ** 2 + p_gained + p_lost * ratio**2)
    difference = both + gained - ratio * (both + lost)
    return math.copysign(abs(difference) - 0.5, difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("both", "lost", "gained", "neither"), [(150, 30, 5, 15), (40, 9, 3, 2), (20, 2, 6, 4)]
)
def test_at_its_bounds_the_score_test_is_just_at_its_level(
    both: int, lost: int, gained: int, neither: int
) -> None:
    base = items(both + lost, both + lost + gained + neither)
    now = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
    drop = relative_drop(base, now, alpha=0.05)
    assert drop is not None
    assert drop.mean == pytest.approx((lost - gained) / (both + lost))
    for bound, level in ((drop.low, -1.6449), (drop.high, 1.6449)):
        assert score_test(both, lost, gained, len(base), 1 - bound) == pytest.approx(
            level, abs=1e-3
        )


def test_bounds_have_a_width_where_all_items_are_alike() -> None:
    for now in (items(5, 5), items(0, 5)):
        drop = relative_drop(items(5, 5), now)
        assert drop is not None
        assert drop.high - drop.low > 0.3
    one = relative_drop([1.0], [0.0])
    assert one is not None
    assert (one.mean, one.low < 0) == (1.0, True)  # a single item is no evidence


def test_the_bounds_of_probabilities_are_fiellers() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.9, 50)
    now = base * rng.normal(0.9, 0.1, 50)
    drop = relative_drop(base.tolist(), now.tolist())
    assert drop is not None
    for bound in (drop.low, drop.high):
        differences = now - (1 - bound) * base
        assert abs(differences.mean() / differences.std(ddof=1) * math.sqrt(50)) == pytest.approx(
            1.6766, abs=1e-3
        )
    single = relative_drop([0.5], [0.4])
    assert single is not None
    assert single.low < 0


def test_a_base_that_scores_nothing_can_lose_nothing() -> None:
    assert relative_drop(items(0), items(5)) is None
    decider = Decider(
        Settings(patience=None, by_skill=True), {"a": items(0), "b": items(N)}, ratio=0.05
    )
    event = decider.decide(500, {"a": items(0), "b": items(100)})
    assert list(event.drops) == ["b"]
    assert event.weights is not None
    assert event.weights["b"] > event.weights["a"] > 0


@pytest.mark.parametrize(("base", "now"), [([], []), ([1.0], [1.0, 0.0])])
def test_what_is_no_pairs_is_refused(base: list[float], now: list[float]) -> None:
    with pytest.raises(ValueError, match="no pairs"):
        relative_drop(base, now)


# --- decisions ------------------------------------------------------------------------------------------------------


def ratios(decider: Decider) -> list[float]:
    return [round(event.ratio, 6) for event in decider.events]


def test_the_ratio_rises_by_the_factor_while_a_drop_is_sure_and_up_to_its_cap() -> None:
    decider = scripted([160, 160, 160, 160], factor=2.0, max_ratio=0.3)
    assert ratios(decider) == [0.1, 0.2, 0.3, 0.3]
    first, last = decider.events[0], decider.events[-1]
    assert first.reason.startswith("capital fell by 20 %, by 1")
    assert first.reason.endswith("at least: ratio 0.05 -> 0.1")
    assert last.reason.endswith("the ratio stays at its most, 0.3")
    assert (first.changes, last.changes) == (True, False)


def test_a_drop_whose_lower_bound_is_within_the_limit_changes_nothing() -> None:
    decider = scripted([186, 186])  # 7 %, but perhaps 4.6
    assert ratios(decider) == [0.05, 0.05]
    assert decider.events[0].reason.startswith("nothing changes: capital fell by 7 %, by 4.")


def test_the_ratio_relaxes_after_calm_tests_in_a_row_and_never_below_its_beginning() -> None:
    calm, drop, between = 199, 160, 192
    decider = scripted(
        [drop, drop, calm, calm, between, calm, calm, calm, calm, calm, calm, calm, calm, calm]
    )
    up, top = 0.06, 0.072
    assert ratios(decider)[:7] == [
        up,
        top,
        top,
        top,
        top,
        top,
        top,
    ]  # a drop of 4 % in between: the count begins anew
    assert ratios(decider)[7:10] == [up, up, up]  # and so it does after each change
    assert ratios(decider)[10:] == [0.05, 0.05, 0.05, 0.05]
    assert (
        decider.events[7].reason == "all drops below 2 % in 3 tests in a row: ratio 0.072 -> 0.06"
    )


def test_a_rise_makes_the_count_of_calm_tests_begin_anew() -> None:
    assert ratios(scripted([160, 199, 199, 160, 199, 199, 199]))[-3:] == [0.072, 0.072, 0.06]


def test_the_remedy_is_on_from_a_sure_drop_until_all_drops_are_small() -> None:
    decider = scripted([199, 184, 194, 198, 199], remedy="ewc")  # drops of 0.5, 8, 3, 1 and 0.5 %
    assert [event.remedy for event in decider.events] == [False, True, True, False, False]
    assert ratios(decider)[0] == 0.05
    assert "ewc on" in decider.events[1].reason
    assert decider.events[3].reason == "all drops below 1.5 %: ewc off"
    assert scripted([100]).events[0].remedy is None


def test_training_ends_after_so_many_tests_without_a_new_lowest_loss() -> None:
    losses = [2.0, 1.5, 1.6, 1.5, 1.4, 1.41, 1.42, 1.4]
    decider = scripted([N] * len(losses), losses, patience=3)
    assert [event.stop for event in decider.events] == [False] * 7 + [True]
    assert decider.stopped
    assert "in 3 tests" in decider.events[-1].reason
    assert not scripted([N] * 8, losses).stopped


def test_the_untrained_models_loss_counts_as_the_first() -> None:
    decider = Decider(Settings(patience=2), {"a": items(N)}, ratio=0.05, base_loss=1.0)
    assert [decider.decide(500 * k, {"a": items(N)}, 1.5).stop for k in (1, 2)] == [False, True]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_is_an_error_that_says_so(loss: float) -> None:
    with pytest.raises(
        EngineError,
        match=r"step 100 the loss on the target's held-out rows .* train\.learning_rate",
    ):
        scripted([N], [loss])


def test_the_skill_that_drops_most_gets_most_of_the_replay() -> None:
    base = {skill: items(N) for skill in "abc"}
    decider = Decider(Settings(patience=None, by_skill=True), base, ratio=0.05)
    assert decider.weights_at(1) == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    decider.decide(500, {"a": items(N), "b": items(190), "c": items(160)})
    assert decider.weights_at(501) == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    weights = decider.weights_at(502)
    assert weights == pytest.approx(
        {"a": 0.05 / 0.4, "b": 0.10 / 0.4, "c": 0.25 / 0.4}
    )  # drop + max_drop
    assert Decider(Settings(patience=None), base, ratio=0.05).weights_at(502) is None


def test_a_decision_after_step_k_holds_from_step_k_plus_2_on() -> None:
    decider = scripted([160, 160])
    assert [round(decider.ratio_at(step), 4) for step in (0, 100, 101, 102, 201, 202)] == [
        0.05, 0.05, 0.05, 0.06, 0.06, 0.072,
    ]  # fmt: skip


def test_a_share_of_nothing_cannot_be_raised_and_the_reason_says_so() -> None:
    decider = Decider(Settings(patience=None), {"a": items(N)}, ratio=0.0)
    event = decider.decide(500, {"a": items(100)})
    assert (event.ratio, event.changes) == (0.0, False)
    assert "cannot be raised" in event.reason


def test_decisions_go_on_from_plain_json_as_if_nothing_had_happened() -> None:
    rights = [160, 150, 199, 199, 199, 198, 160, 199, 199, 199, 199]
    losses = [2.0, 1.5, 1.4, 1.45, 1.3, 1.31, 1.32, 1.33, 1.34, 1.35, 1.36]
    settings: dict[str, Any] = {"remedy": "distill", "by_skill": True, "patience": 6}
    whole = scripted(rights, losses, **settings)
    for cut in range(len(rights)):
        begun = scripted(rights[:cut], losses[:cut], **settings)
        resumed = Decider(begun.settings, {}, ratio=0.9)
        saved = json.loads(json.dumps(begun.state().to_json()))
        resumed.restore(DeciderState.model_validate(saved))
        for place in range(cut, len(rights)):
            resumed.decide(100 * (place + 1), {"capital": items(rights[place])}, losses[place])
        assert [e.to_json() for e in resumed.events] == [e.to_json() for e in whole.events]
        assert [resumed.ratio_at(step) for step in range(1200)] == [
            whole.ratio_at(step) for step in range(1200)
        ]
    assert whole.stopped


# --- noise and power ------------------------------------------------------------------------------------------------


def a_base_and_tests(
    rng: np.random.Generator, *, drop: float, noise: float, tests: int, skills: int = 6
) -> tuple[dict[str, list[float]], list[dict[str, list[float]]]]:
    """A base at 0.8 to 0.95, and tests of a model whose true accuracy is a part ``drop`` less: a part ``noise`` of the items
    is drawn afresh in every test, with noise 1 all of them."""
    base, now = {}, [dict[str, list[float]]() for _ in range(tests)]
    for skill, accuracy in enumerate(np.linspace(0.8, 0.95, skills)):
        right = rng.random(N) < accuracy
        base[str(skill)] = right.astype(float).tolist()
        for test in now:
            drawn = np.where(rng.random(N) < noise, rng.random(N) < accuracy, right)
            test[str(skill)] = (drawn & (rng.random(N) >= drop)).astype(float).tolist()
    return base, now


def rises(rng: np.random.Generator, runs: int, *, drop: float, noise: float, tests: int) -> float:
    """The part of tests in which the ratio rose."""
    count = 0
    for _ in range(runs):
        base, now = a_base_and_tests(rng, drop=drop, noise=noise, tests=tests)
        decider = Decider(
            Settings(patience=None, remedy="ewc", max_ratio=0.99, factor=1.001), base, ratio=0.01
        )
        events = [decider.decide(500 * (k + 1), scores) for k, scores in enumerate(now)]
        count += sum(event.ratio > event.ratio_before for event in events)
    return count / (runs * tests)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.1, 0.4, 1.0])
def test_noise_of_six_skills_makes_no_decision(noise: float) -> None:
    assert rises(np.random.default_rng(1), 40, drop=0.0, noise=noise, tests=20) <= 0.004


def test_at_the_limit_itself_about_one_test_in_twenty_acts() -> None:
    assert 0.02 <= rises(np.random.default_rng(2), 600, drop=0.05, noise=0.02, tests=1) <= 0.08


def test_a_drop_of_15_per_cent_is_seen_at_once() -> None:
    rng, one, all_ = np.random.default_rng(3), 0, 0
    for _ in range(100):
        base, (now,) = a_base_and_tests(rng, drop=0.0, noise=0.05, tests=1)
        base_of_lost, (lost,) = a_base_and_tests(rng, drop=0.15, noise=0.05, tests=1)
        all_ += Decider(Settings(patience=None), base_of_lost, ratio=0.05).decide(500, lost).changes
        skill = str(int(rng.integers(6)))  # in one of six, the others as they were
        decider = Decider(Settings(patience=None), base | {skill: base_of_lost[skill]}, ratio=0.05)
        event = decider.decide(500, now | {skill: lost[skill]})
        one += event.changes and event.worst == skill
    assert all_ == 100
    assert one >= 90


# --- the live model -------------------------------------------------------------------------------------------------


def records(skill: str, n: int) -> list[Record]:
    return [
        Record(dialogue(t.prompt, t.answer), "target")
        for t in world.draw(skill, n, seed=3, held_out=True)
    ]


@pytest.fixture(scope="module")
def model() -> Any:
    return loading.load_model("nano").float()


def controller_of(
    chat: Chat,
    folder: Path,
    old: dict[str, tuple[Scored, list[Record]]],
    target: Sequence[Record] = (),
    remedies: Sequence[Remedy] = (),
    **settings: Any,
) -> Controller:
    """A controller of these tests, without patience unless the settings say so."""
    options = {"patience": None} | settings
    inputs = ControllerInputs(Settings(**options), old, target, mix=Mix(ratio=0.05))
    return Controller(inputs, chat, folder=folder, remedies=remedies)


class Switched(Remedy):
    """A remedy that does nothing but be on or off."""

    name = "distill"


def controller(
    chat: Chat, folder: Path, n: int = 24, remedies: Sequence[Remedy] = (), **settings: Any
) -> Controller:
    old = {
        skill: (Scored(path=f"{skill}.jsonl"), records(skill, n)) for skill in ("capital", "json")
    }
    old["topic"] = (Scored(path="topic.jsonl", score="cross_entropy"), records("topic", n))
    options = {"every": 2, "items": 200, "patience": 5} | settings
    return controller_of(chat, folder, old, records("referral", n), remedies, **options)


def begin(it: Controller, model: Any, state: TrainerState | None = None) -> TrainerControl:
    control = TrainerControl()
    it.on_train_begin(None, state or TrainerState(max_steps=20), control, model=model)
    return control


def step(it: Controller, model: Any, number: int) -> TrainerControl:
    control = TrainerControl()
    it.on_step_end(None, TrainerState(global_step=number, max_steps=20), control, model=model)
    return control


def measured(it: Controller, skill: str) -> list[float]:
    return it.saved().decider.base[skill]


@pytest.mark.slow
@pytest.mark.parametrize("skill", ["capital", "json", "nli", "reverse"])
def test_an_item_is_exact_just_where_greedy_decoding_writes_the_reference(
    chat: Chat, transformers_engine: Engine, model: Any, tmp_path: Path, skill: str
) -> None:
    rows = records(skill, 80)
    it = controller_of(chat, tmp_path, {skill: (Scored(path="x"), rows)})
    begin(it, model)
    greedy = Sampling(temperature=0.0, max_tokens=64, stop=chat.stop)
    requests = [
        Request(row, chat.prompt(record.messages[:-1]), greedy) for row, record in enumerate(rows)
    ]
    answers = {done.row: done for done in transformers_engine.complete(requests)}
    expected = []
    for row, record in enumerate(rows):
        example = chat.example(record)
        wanted = tuple(
            token for token, loss in zip(example.tokens, example.loss, strict=True) if loss
        )[:-1]
        expected.append(
            float(answers[row].tokens == wanted and answers[row].finish_reason == "stop")
        )
        if expected[-1]:
            assert is_right(chat.decode(answers[row].tokens), record.answer, how="exact")
    assert measured(it, skill) == expected
    assert sum(expected) > 20


def test_the_targets_loss_and_a_skill_of_cross_entropy_are_transformers_own(
    chat: Chat, model: Any, tmp_path: Path
) -> None:
    it = controller(chat, tmp_path, n=12)
    begin(it, model)

    def nll(record: Record) -> tuple[float, int]:
        example = chat.example(record)
        labels = torch.tensor(
            [[t if on else -100 for t, on in zip(example.tokens, example.loss, strict=True)]]
        )
        with torch.no_grad():
            loss = model.eval()(input_ids=torch.tensor([example.tokens]), labels=labels).loss.item()
        return loss * example.loss_tokens, example.loss_tokens

    target = [nll(record) for record in records("referral", 12)]
    loss = sum(total for total, _ in target) / sum(count for _, count in target)
    assert it.saved().decider.best_loss == pytest.approx(loss, abs=1e-5)
    topic = [math.exp(-total / count) for total, count in map(nll, records("topic", 12))]
    assert measured(it, "topic") == pytest.approx(topic, abs=1e-5)
    assert it.saved().kinds == {"capital": "exact", "json": "exact", "topic": "probability"}


def test_a_model_under_a_fresh_adapter_scores_as_the_base(
    chat: Chat, model: Any, tmp_path: Path
) -> None:
    import peft

    network = loading.load_model("nano").float()
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    it, plain = (controller(chat, tmp_path, n=12) for _ in range(2))
    begin(it, peft.get_peft_model(network, config))
    begin(plain, model)
    for skill in ("capital", "json", "topic"):
        assert measured(it, skill) == pytest.approx(measured(plain, skill), abs=1e-5)


def test_an_encoder_decoder_is_tested_on_its_decoders_answer(chat: Chat, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=1024,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=3,
        pad_token_id=3,
    )
    network, pair = (
        transformers.T5ForConditionalGeneration(config).eval(),
        Chat(chat.tokenizer, seq2seq=True),
    )
    rows = records("capital", 9)
    it = controller_of(pair, tmp_path, {"capital": (Scored(path="x"), rows)})
    begin(it, network)
    expected = []
    for record in rows:
        example = pair.example(record)
        begins = example.loss.index(True)
        asked, said = (
            torch.tensor([part]) for part in (example.tokens[:begins], example.tokens[begins:])
        )
        with torch.no_grad():
            expected.append(math.exp(-network(input_ids=asked, labels=said).loss.item()))
    assert measured(it, "capital") == pytest.approx(expected, rel=1e-4)


def test_a_skill_that_the_base_hardly_writes_is_scored_by_probability(
    chat: Chat, model: Any, tmp_path: Path
) -> None:
    rows = [
        Record(dialogue(r.prompt, "Ask your neighbour."), "target") for r in records("capital", 10)
    ]
    it = controller_of(chat, tmp_path, {"odd": (Scored(path="x"), rows)})
    begin(it, model)
    assert it.saved().kinds == {"odd": "probability"}
    assert all(0 < score < 1 for score in measured(it, "odd"))


def test_only_the_last_answer_is_to_be_written_and_up_to_what_ends_it() -> None:
    labels = torch.tensor([IGNORED, 5, 2, IGNORED, 7, 8, 2, 3, IGNORED])
    assert _last_answer(labels, stops=(2,)).tolist() == [IGNORED] * 4 + [7, 8, 2, IGNORED, IGNORED]
    assert _last_answer(torch.full((3,), IGNORED), stops=(2,)).tolist() == [IGNORED] * 3


@pytest.mark.slow
def test_a_model_that_forgets_raises_the_ratio_and_switches_the_remedy_on(
    chat: Chat, tmp_path: Path
) -> None:
    network = loading.load_model("nano").float().train()
    remedy = Switched(None)
    it = controller(chat, tmp_path, remedy="distill", remedies=[remedy])
    begin(it, network)
    assert (it.ratio(0), it.remedy_on, remedy.on, network.training) == (0.05, False, False, True)
    step(it, network, 1)
    assert it.events == []  # not a step of a test
    step(it, network, 2)
    assert (it.events[0].ratio, remedy.on) == (0.05, False)
    with torch.no_grad():
        for parameter in network.model.layers[-1].parameters():
            parameter.mul_(-1)
    step(it, network, 4)
    assert (it.ratio(5), it.ratio(6), it.remedy_on, remedy.on) == (
        0.05,
        pytest.approx(0.06),
        True,
        True,
    )
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [event.to_json() for event in it.events]
    assert network.training


def test_the_tests_draw_no_random_numbers(chat: Chat, model: Any, tmp_path: Path) -> None:
    it = controller(chat, tmp_path, n=6)
    before = torch.get_rng_state()
    begin(it, model)
    step(it, model, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_probabilities_that_are_not_numbers_are_an_error(chat: Chat, tmp_path: Path) -> None:
    network = loading.load_model("nano").float()
    it = controller(chat, tmp_path, n=6)
    begin(it, network)
    with torch.no_grad():
        network.model.norm.weight.fill_(math.nan)
    with pytest.raises(EngineError, match="diverged"):
        step(it, network, 2)


def test_what_cannot_be_tested_is_refused_before_a_model_is_loaded(
    chat: Chat, tmp_path: Path
) -> None:
    rows = records("capital", 2)
    tested = {"capital": (Scored(path="x"), rows)}
    with pytest.raises(RecipeError, match=r"eval\.old(.|\n)*patience: it needs eval\.target"):
        controller_of(chat, tmp_path, {}, patience=5)
    with pytest.raises(RecipeError, match=r"eval\.old\.capital: it has no rows"):
        controller_of(chat, tmp_path, {"capital": (Scored(path="x"), [])}, rows, patience=5)
    assert controller_of(chat, tmp_path, tested).events == []


def test_rows_that_are_all_too_long_are_named(chat: Chat, tmp_path: Path) -> None:
    long = [Record(dialogue("a " * 3000, "b"), "target")]
    it = controller_of(chat, tmp_path, {"long": (Scored(path="x"), long)})
    with pytest.raises(DataError, match=r"eval\.old\.long"):
        begin(it, loading.load_model("nano"))


# --- in a Trainer ---------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Forty rows of a new task, by transformers' own collator of rows of one length."""

    def __init__(self, chat: Chat):
        tokens = [list(chat.example(record).tokens)[:24] for record in records("arithmetic", 40)]
        self.rows = [torch.tensor((row + row)[:24]) for row in tokens]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def train(
    chat: Chat, folder: Path, *, resume: Path | None = None, steps: int = 8, **settings: Any
) -> Controller:
    it = controller(chat, folder, n=20, by_skill=True, **settings)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=2e-3, save_steps=2,
        lr_scheduler_type="constant", report_to="none", disable_tqdm=True, seed=1, use_cpu=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=loading.load_model("nano", train=True),
        args=arguments,
        train_dataset=Rows(chat),
        callbacks=[it],
    )
    if resume is not None:
        it.restore(resume)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return it


@pytest.mark.slow
def test_a_resumed_training_makes_the_same_decisions(chat: Chat, tmp_path: Path) -> None:
    whole = train(chat, tmp_path)
    wanted = (tmp_path / "events.jsonl").read_text()
    assert [event.step for event in whole.events] == [2, 4, 6, 8]
    assert whole.events[-1].ratio > 0.05
    resumed = train(
        chat, tmp_path, resume=tmp_path / "checkpoint-4"
    )  # the lines of steps 6 and 8 are written again
    assert resumed.events == whole.events
    assert (tmp_path / "events.jsonl").read_text() == wanted
    assert [resumed.weights(k) for k in range(12)] == [whole.weights(k) for k in range(12)]


@pytest.mark.slow
def test_a_training_ends_when_patience_does_and_the_checkpoint_knows(
    chat: Chat, tmp_path: Path
) -> None:
    it = train(chat, tmp_path, patience=1, steps=40)
    stopped = it.events[-1]
    assert stopped.stop
    assert stopped.step < 40
    again = controller(chat, tmp_path, n=20, by_skill=True, patience=1)
    again.restore(tmp_path / f"checkpoint-{stopped.step}")
    assert again.stopped
    assert again.events == it.events


def test_a_checkpoint_of_other_rows_or_of_no_controller_is_refused(
    chat: Chat, model: Any, tmp_path: Path
) -> None:
    it = controller(chat, tmp_path, n=6)
    with pytest.raises(RunError, match="without train.controller"):
        begin(it, model, TrainerState(global_step=4, max_steps=20))
    begin(it, model)
    with pytest.raises(RunError, match="have changed"):
        controller(chat, tmp_path, n=7).take(it.saved())


# --- what is shown --------------------------------------------------------------------------------------------------


def page_of(tmp_path: Path, result: TrainResult) -> str:
    base = ModelScores(model="base", scores={}, old=None, target=None)
    manifests = {
        "train": Step("train", tmp_path, {}).finish(result),
        "eval": Step("eval", tmp_path, {}).finish(EvalResult(skills=[], models=[base])),
    }
    path = write_report(tmp_path / "report.html", title="t", manifests=manifests, recipe_yaml="")
    return path.read_text(encoding="utf-8")


def shown(result: TrainResult) -> str:
    console = Console(file=io.StringIO(), width=160)
    show("train", result, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def a_training(events: list[Event] | None = None) -> TrainResult:
    losses = [{"step": step, "loss": 1 / step} for step in range(1, 1500, 10)]
    return TrainResult(
        steps=1500,
        loss=0.1,
        losses=losses,
        tokens=0,
        events=events,
        model="model",
        base="nano",
        revision=None,
    )


def decided() -> list[Event]:
    """Every kind of decision: more replay, less, the remedy on and off, the end."""
    rights = [198, 184, 180, 184, 194, 199, 197, 199, 198, 199, 199, 199, 198, 199, 199]
    losses = [2.0, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.71, 0.72, 0.73, 0.74, 0.75]
    return scripted(rights, losses, remedy="distill", patience=5).events


def test_the_report_draws_the_share_the_worst_drop_and_the_changes(tmp_path: Path) -> None:
    page = page_of(tmp_path, a_training(decided()))
    assert "What the controller decided" in page
    picture = page[page.index("Decisions of train by step") :]
    line = picture[picture.index('<polyline points="') + len('<polyline points="') :].partition(
        '"'
    )[0]
    assert len(line.split()) == 31  # the beginning, and before and after each test
    heights = [float(point.split(",")[1]) for point in line.split()]
    assert heights[0] == heights[-1] > min(heights)  # more replay is higher up, and it came back
    for words in (
        "share of replay, %",
        "worst drop, %",
        "remedy on",
        "remedy off",
        "training ends",
        "<dt>step 200</dt>",
    ):
        assert words in picture
    assert "distill on" in picture


def test_the_terminal_says_what_the_controller_changed() -> None:
    text = shown(a_training(decided()))
    assert "15 tests; 5 % of replay, 5 % in the end" in text
    assert "- step 300" in text
    assert "ratio 0.05 -> 0.06" in text
    assert "training ends" in text


def test_a_training_without_a_controller_shows_nothing_of_it(tmp_path: Path) -> None:
    for result in (a_training(), a_training([])):
        assert "controller" not in page_of(tmp_path, result)
        assert "controller" not in shown(result)


def test_a_calm_training_and_one_whose_skills_scored_nothing_are_drawn(tmp_path: Path) -> None:
    assert "Nothing changed" in page_of(tmp_path, a_training(scripted([N, N]).events))
    for losses in ([2.0, 1.0, 1.1, 1.2], [2.0, 1.0]):
        alone = Decider(Settings(patience=2), {}, ratio=0.05, base_loss=losses[0])
        for k, loss in enumerate(losses[1:], 1):
            alone.decide(100 * k, {}, loss)
        assert alone.stopped == (len(losses) == 4)
        assert "<polyline" in page_of(tmp_path, a_training(alone.events))
        assert f"{len(losses) - 1} test" in shown(a_training(alone.events))
    nothing = Decider(Settings(patience=None), {"<b>": items(0)}, ratio=0.0)
    nothing.decide(500, {"<b>": items(0)})
    assert "<polyline" in page_of(tmp_path, a_training(nothing.events))
