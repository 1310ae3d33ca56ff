"""Loss weights by the base's probabilities and by the model's own, against numbers worked out by
hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from replaykit.data.record import Record, dialogue
from replaykit.errors import RecipeError
from replaykit.model.chat import Chat, Example
from replaykit.recipe import load_recipe
from replaykit.recipe.remedies import FlowSettings, Remedies, StmSettings
from replaykit.steps.train.remedies.weights import (
    Kept,
    dft,
    eaft,
    flow_temperature,
    summary,
    weights,
)

QUESTIONS = [
    "What is the capital of France?",
    "Reverse the word: stone",
    "Hello",
    "What is 12 + 7?",
]
TWO_TURNS = Record(
    (*dialogue("Hello", '{"city": "Paris"}'), *dialogue("Why?", "So it is.")), "target"
)


def rows(count: int = 20) -> list[Record]:
    target = [
        Record(dialogue(f"{QUESTIONS[k % 4]} {k}", f"The answer is {k * k}."), "target")
        for k in range(count)
    ]
    return [
        *target,
        TWO_TURNS,
        *(Record(dialogue(f"Old {k}", "Yes, it is so."), "generate") for k in range(count // 2)),
    ]


def made(chat: Chat, records: Sequence[Record]) -> dict[str, Example]:
    return {record.id: chat.example(record) for record in records}


def drawn(examples: dict[str, Example], *, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Log-probabilities by chance, the same for a row in any order."""
    return {
        key: -scale
        * np.random.default_rng(int(key, 16)).exponential(size=e.loss_tokens).astype(np.float32)
        for key, e in examples.items()
    }


def stm(
    chat: Chat,
    records: Sequence[Record],
    logprobs: dict[str, np.ndarray],
    seed: int = 1,
    **settings: Any,
) -> Any:
    return weights(
        records, made(chat, records), logprobs, Remedies(stm=StmSettings(**settings)), chat, seed
    )


def shape_of(weight: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {key: value.tolist() for key, value in weight.items()}


# --- selective token masking ----------------------------------------------------------------------


def test_tokens_above_the_perplexity_carry_no_loss_but_the_end_of_a_turn_does(chat: Chat) -> None:
    records = rows()
    examples = made(chat, records)
    logprobs = drawn(examples)
    found = stm(chat, records, logprobs, max_perplexity=2.5)
    end, masked = len(chat.end_of_turn), 0
    assert end >= 1
    for record in records[:20]:
        expected = np.exp(-logprobs[record.id]) <= 2.5
        expected[-end:] = True
        assert found[record.id].dtype == np.float32
        assert found[record.id].tolist() == expected.astype(float).tolist()
        masked += int((~expected).sum())
    assert masked > 20


def test_a_perplexity_of_just_the_limit_carries_loss(chat: Chat) -> None:
    record = rows(1)[0]
    size = chat.example(record).loss_tokens
    logprobs = {record.id: np.full(size, -math.log(4.0))}
    logprobs[record.id][1] = -math.log(4.0001)
    assert stm(chat, [record], logprobs, max_perplexity=4.0000001)[record.id].tolist() == [1, 0] + [
        1
    ] * (size - 2)


def test_each_answer_of_a_conversation_keeps_its_end_of_turn(chat: Chat) -> None:
    example = chat.example(TWO_TURNS)
    kept = Kept(chat)(example)
    answer_tokens = [token for token, on in zip(example.tokens, example.loss, strict=True) if on]
    assert len(kept) == len(answer_tokens)
    assert kept.sum() == 2 * len(chat.end_of_turn)
    assert [t for t, on in zip(answer_tokens, kept, strict=True) if on] == [
        *chat.end_of_turn,
        *chat.end_of_turn,
    ]
    first = len(chat.encode('{"city": "Paris"}'))
    assert np.flatnonzero(kept)[0] == first
    impossible = {TWO_TURNS.id: np.full(len(kept), -20.0, np.float32)}
    assert stm(chat, [TWO_TURNS], impossible)[TWO_TURNS.id].tolist() == kept.astype(float).tolist()


def test_tokens_of_the_kept_texts_carry_loss(chat: Chat) -> None:
    record = Record(dialogue("Where?", 'It is {"city": "Rome"} as the answer is: Rome'), "target")
    example = chat.example(record)
    answer_tokens = [token for token, on in zip(example.tokens, example.loss, strict=True) if on]
    always = Kept(chat)(example)
    for text in ("is", "the answer is:"):
        kept = Kept(chat, [text])(example) & ~always
        said = chat.decode([t for t, on in zip(answer_tokens, kept, strict=True) if on])
        assert (
            said.split() == {"is": ["is", "is"], "the answer is:": ["the", "answer", "is:"]}[text]
        )
    assert (Kept(chat, ["Lisbon"])(example) == always).all()


def test_a_kept_text_that_stands_in_no_answer_is_found(chat: Chat) -> None:
    record = Record(dialogue("Where is Lima?", "It is in Peru as the answer is"), "target")
    examples = [chat.example(TWO_TURNS), chat.example(record)]
    assert Kept(chat, ["Lisbon", "is", "the answer is"]).nowhere(examples) == ["Lisbon"]
    # A question has no loss, and each text is looked for by itself.
    assert Kept(chat, ["Lima", "is in Peru"]).nowhere(examples) == ["Lima"]
    assert Kept(chat).nowhere(examples) == []


def test_a_text_that_was_cut_has_no_end_to_keep(chat: Chat) -> None:
    text = ({"role": "text", "content": "Paris is"},)
    ended, cut = Record(text, "generate"), Record(text, "generate", {"finish": "length"})
    assert Kept(chat)(chat.example(cut)).sum() == 0
    assert Kept(chat)(chat.example(ended)).tolist() == [False] * (
        chat.example(ended).loss_tokens - 1
    ) + [True]


@pytest.mark.parametrize("share", [0.001, 0.05, 0.2381, 0.5])
def test_a_share_is_exact_over_all_answer_tokens(chat: Chat, share: float) -> None:
    records = rows()
    logprobs = drawn(made(chat, records))
    total = sum(map(len, logprobs.values()))
    for which in ("highest", "lowest", "random"):
        found = stm(chat, records, logprobs, share=share, which=which)
        assert sum(int((weight == 0).sum()) for weight in found.values()) == int(
            share * total + 0.5
        )


def test_highest_takes_the_least_probable_and_lowest_the_most_probable(chat: Chat) -> None:
    records = rows()
    logprobs = drawn(made(chat, records))
    kept = {key: Kept(chat)(example) for key, example in made(chat, records).items()}
    for which, sign in (("highest", 1), ("lowest", -1)):
        found = stm(chat, records, logprobs, share=0.2, which=which)
        masked = np.concatenate([sign * logprobs[key][found[key] == 0] for key in found])
        left = np.concatenate(
            [sign * logprobs[key][(found[key] == 1) & ~kept[key]] for key in found]
        )
        assert len(masked) > 20
        assert masked.max() <= left.min()


def test_all_is_masked_but_what_is_kept_where_the_share_asks_for_more(chat: Chat) -> None:
    records = rows(4)
    examples = made(chat, records)
    found = stm(chat, records, drawn(examples), share=1.0)
    for key, example in examples.items():
        assert found[key].tolist() == Kept(chat)(example).astype(float).tolist()


def test_neither_order_nor_repetition_of_the_rows_changes_a_weight(chat: Chat) -> None:
    records = rows()
    equal = {
        key: np.full(e.loss_tokens, -1.0, np.float32) for key, e in made(chat, records).items()
    }  # ties only
    for which in ("highest", "lowest", "random"):
        one = stm(chat, records, equal, share=0.3, which=which)
        other = stm(chat, [*records[::-1], *records[:5]], equal, share=0.3, which=which)
        assert shape_of(one) == {key: other[key].tolist() for key in one}


def test_random_depends_on_the_seed_and_not_on_the_probabilities(chat: Chat) -> None:
    records = rows()
    logprobs = drawn(made(chat, records))
    first = shape_of(stm(chat, records, logprobs, share=0.3, which="random"))
    other = {key: value[::-1].copy() for key, value in logprobs.items()}
    assert shape_of(stm(chat, records, other, share=0.3, which="random")) == first
    assert shape_of(stm(chat, records, logprobs, seed=2, share=0.3, which="random")) != first


def test_a_token_that_nothing_predicts_is_neither_masked_nor_counted(chat: Chat) -> None:
    records = rows(4)
    logprobs = drawn(made(chat, records))
    for value in logprobs.values():
        value[0] = math.nan
    total = sum(len(value) - 1 for value in logprobs.values())
    for settings in ({"share": 0.25}, {"max_perplexity": 1.1}):
        found = stm(chat, records, logprobs, **settings)
        assert {weight[0] for weight in found.values()} == {1.0}
    found = stm(chat, records, logprobs, share=0.25)
    assert sum(int((weight == 0).sum()) for weight in found.values()) == int(0.25 * total + 0.5)


def test_a_recipe_without_any_limit_is_refused() -> None:
    with pytest.raises(
        RecipeError,
        match="max_perplexity: give the highest perplexity that carries loss, or a share",
    ):
        load_recipe(
            None, {"train.remedies.stm.max_perplexity": None, "train.remedies.stm.keep": ["{"]}
        )


# --- FLOW -----------------------------------------------------------------------------------------

LOSSES = {"a": [1.0, 3.0], "b": [0.5, 0.5], "c": [4.0, 2.0], "d": [0.1, 0.1]}


def flow_rows() -> tuple[list[Record], dict[str, np.ndarray]]:
    """Three target rows whose losses are 2, 0.5 and 3, and one of replay whose loss is 0.1; the
    second comes twice.
    """
    records = [
        Record(dialogue(name, "x"), "generate" if name == "d" else "target") for name in LOSSES
    ]
    logprobs = {
        r.id: -np.array(v, np.float32) for r, v in zip(records, LOSSES.values(), strict=True)
    }
    return [*records, records[1]], logprobs


def test_flow_weighs_rows_by_exp_of_minus_loss_over_the_median(chat: Chat) -> None:
    records, logprobs = flow_rows()
    assert flow_temperature(records, logprobs, FlowSettings()) == pytest.approx(2.0)
    found = weights(records, {}, logprobs, Remedies(flow=FlowSettings()), chat, 1)
    expected = [math.exp(-loss / 2.0) for loss in (2.0, 0.5, 3.0, 0.1)]
    for record, weight in zip(records[:4], expected, strict=True):
        assert found[record.id].tolist() == pytest.approx([weight, weight], rel=1e-6)


def test_flow_takes_a_given_temperature(chat: Chat) -> None:
    records, logprobs = flow_rows()
    found = weights(records, {}, logprobs, Remedies(flow=FlowSettings(temperature=0.5)), chat, 1)
    assert found[records[0].id].tolist() == pytest.approx([math.exp(-4.0)] * 2, rel=1e-6)


def test_flow_by_token_weighs_each_token_by_its_own_loss(chat: Chat) -> None:
    records, logprobs = flow_rows()
    settings = FlowSettings(unit="token")
    median = np.median([1.0, 3.0, 0.5, 0.5, 4.0, 2.0])
    assert flow_temperature(records, logprobs, settings) == pytest.approx(median)
    found = weights(records, {}, logprobs, Remedies(flow=settings), chat, 1)
    for record, losses in zip(records[:4], LOSSES.values(), strict=True):
        assert found[record.id].tolist() == pytest.approx(
            [math.exp(-loss / median) for loss in losses], rel=1e-6
        )


def test_flow_is_defined_where_the_model_is_sure_of_everything(chat: Chat) -> None:
    records, _ = flow_rows()
    sure = {record.id: np.zeros(2, np.float32) for record in records} | {
        records[0].id: np.full(2, -1.0, np.float32)
    }
    found = weights(records, {}, sure, Remedies(flow=FlowSettings()), chat, 1)
    assert found[records[1].id].tolist() == [1.0, 1.0]
    assert found[records[0].id].tolist() == [0.0, 0.0]


def test_without_stm_and_flow_every_weight_is_one(chat: Chat) -> None:
    records, logprobs = flow_rows()
    assert all((w == 1).all() for w in weights(records, {}, logprobs, Remedies(), chat, 1).values())


# --- what is told ---------------------------------------------------------------------------------


def test_the_summary_tells_of_each_source_what_was_masked(chat: Chat) -> None:
    target = rows(2)[:2]
    old = [Record(dialogue("Old", "Yes."), "generate")]
    records = [*target, *old, *old]
    examples = made(chat, records)
    logprobs = {key: np.full(e.loss_tokens, -0.1, np.float32) for key, e in examples.items()}
    logprobs[target[0].id][:] = -5.0
    settings = Remedies(stm=StmSettings())
    found = weights(records, examples, logprobs, settings, chat, 1)
    told = summary(records, examples, logprobs, found, settings, chat)
    sizes = [examples[record.id].loss_tokens for record in target]
    masked = (sizes[0] - len(chat.end_of_turn)) / sum(sizes)
    assert told.temperature is None
    assert told.sources["target"].to_json() == {
        "rows": 2,
        "tokens": sum(sizes),
        "masked": round(masked, 4),
        "mean_weight": pytest.approx(1 - masked, abs=1e-4),
        "median_loss": pytest.approx((5.0 + 0.1) / 2),
        "rows_masked": 1,
    }
    assert told.sources["generate"].masked == told.sources["generate"].rows_masked == 0
    # The replay row counts as often as it is trained on.
    replay = 2 * examples[old[0].id].loss_tokens
    left = sum(sizes) - sizes[0] + len(chat.end_of_turn)
    assert told.share == round(replay / (replay + left), 4)


def test_the_summary_of_flow_names_its_temperature(chat: Chat) -> None:
    records, logprobs = flow_rows()
    examples = {key: Example((5, 6, 7), (False, True, True)) for key in logprobs}
    settings = Remedies(flow=FlowSettings())
    found = weights(records, {}, logprobs, settings, chat, 1)
    told = summary(records, examples, logprobs, found, settings, chat)
    assert told.temperature == pytest.approx(2.0)
    expected = np.mean([math.exp(-loss / 2.0) for loss in (2.0, 0.5, 3.0)])
    assert told.sources["target"].mean_weight == pytest.approx(expected, abs=1e-4)
    assert told.sources["target"].median_loss == pytest.approx(2.0)
    replay = math.exp(-0.1 / 2.0)
    target = sum(math.exp(-loss / 2.0) for loss in (2.0, 0.5, 3.0, 0.5))
    assert told.share == pytest.approx(replay / (replay + target), abs=1e-4)
    unpredicted = logprobs | {records[3].id: np.array([np.nan, -0.1], np.float32)}
    ones = {record.id: np.ones(2, np.float32) for record in records}
    told = summary(records, examples, unpredicted, ones, settings, chat)
    assert told.share == round(1 / 9, 4)
    zeros = {key: 0 * one for key, one in ones.items()}
    assert summary(records, examples, logprobs, zeros, settings, chat).share == 0


# --- while training -------------------------------------------------------------------------------


def test_dft_is_the_probability_and_lets_no_gradient_through() -> None:
    logp = torch.tensor([-0.1, -2.0, 0.0], requires_grad=True)
    weight = dft(logp)
    assert weight.tolist() == pytest.approx([math.exp(-0.1), math.exp(-2.0), 1.0])
    assert not weight.requires_grad
    (weight * -logp).sum().backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([-math.exp(-0.1), -math.exp(-2.0), -1.0])


def test_eaft_is_the_entropy_of_the_best_tokens_over_three() -> None:
    probabilities = [0.5, 0.25, 0.125, 0.125]
    logits = torch.tensor(
        [[math.log(p) + 7.0 for p in probabilities], [9.0, 9.0, -90.0, -91.0]], requires_grad=True
    )
    every = eaft(logits, 20, 1.0)
    assert every.tolist() == pytest.approx([1.75 * math.log(2) / 3.0, math.log(2) / 3.0], rel=1e-6)
    assert not every.requires_grad
    two = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert eaft(logits, 2, 2.0).tolist() == pytest.approx(
        [(two / 3.0) ** 2, (math.log(2) / 3.0) ** 2], rel=1e-6
    )


def test_eaft_gives_twenty_equal_tokens_a_weight_of_one() -> None:
    assert eaft(torch.zeros(1, 50), 20, 1.0).item() == pytest.approx(math.log(20) / 3.0)
    assert math.log(20) / 3.0 == pytest.approx(1.0, abs=2e-3)


def test_eaft_of_a_sure_model_is_nothing_and_a_number() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [40.0, 0.0, 0.0]], dtype=torch.bfloat16)
    for alpha in (0.5, 1.0, 2.0):
        weight = eaft(logits, 3, alpha)
        assert weight.dtype == torch.float32
        assert weight.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
