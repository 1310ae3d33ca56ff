"""The loss, a slice of tokens at a time, is the plain loss, and so are its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from replaykit.model import loading
from replaykit.model.lm_head import Head, split_head
from replaykit.steps.train.losses import cross_entropy, summed

BATCH = {"input_ids": torch.tensor([[1, 5, 9, 2], [1, 7, 7, 3]])}


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 13), vocabulary=st.integers(2, 11), numbers=st.integers(1, 60), bias=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_slices_give_the_plain_weighted_loss_and_its_gradients(
    tokens: int, vocabulary: int, numbers: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(5, vocabulary, bias=bias, dtype=torch.float64)
    targets, weights = torch.randint(vocabulary, (tokens,)), torch.rand(tokens, dtype=torch.float64)
    found = []
    for sliced in (True, False):
        hidden = (
            torch.linspace(-1, 1, tokens * 5, dtype=torch.float64)
            .reshape(tokens, 5)
            .requires_grad_()
        )
        linear.zero_grad()
        if sliced:
            total = summed(hidden, Head(linear), cross_entropy(targets, weights), numbers=numbers)
        else:
            total = (
                nn.functional.cross_entropy(linear(hidden), targets, reduction="none") * weights
            ).sum()
        (total / 3).backward()
        found.append(
            [total.detach(), hidden.grad, *(parameter.grad for parameter in linear.parameters())]
        )
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)


def test_a_head_that_does_not_learn_gets_no_gradient() -> None:
    linear = nn.Linear(5, 7).requires_grad_(False)
    hidden = torch.randn(4, 5, requires_grad=True)
    summed(
        hidden, Head(linear), cross_entropy(torch.tensor([1, 2, 3, 4]), torch.ones(4)), numbers=8
    ).backward()
    assert linear.weight.grad is None
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0


def test_no_more_logits_than_asked_for_are_there_at_a_time() -> None:
    linear, seen = nn.Linear(5, 7), []

    def objective(logits: torch.Tensor, part: slice) -> torch.Tensor:
        seen.append((logits.shape, part))
        return logits.sum()

    summed(torch.randn(10, 5), Head(linear), objective, numbers=21)
    assert [tuple(shape) for shape, _ in seen] == [(3, 7)] * 3 + [(1, 7)]
    assert [part.start for _, part in seen] == [0, 3, 6, 9]


def test_weights_from_the_logits_carry_no_gradient_of_their_own() -> None:
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    targets, ones = torch.tensor([1, 2, 3]), torch.ones(3)
    cross_entropy(targets, ones, online=lambda _, logp: logp.exp())(logits, slice(0, 3)).backward()
    gradient, logits.grad = logits.grad, None
    chance = torch.softmax(logits.detach(), dim=1).gather(1, targets[:, None])[:, 0]
    cross_entropy(targets, chance)(logits, slice(0, 3)).backward()
    torch.testing.assert_close(gradient, logits.grad)


@pytest.mark.parametrize("adapter", [False, True])
def test_the_models_own_logits_are_its_hidden_states_times_its_head(adapter: bool) -> None:
    model = loading.load_model("nano")
    if adapter:
        import peft

        model = peft.get_peft_model(
            model, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
        )
    head = split_head(model)
    assert head is not None
    with torch.no_grad():
        torch.testing.assert_close(
            head.logits(head.hidden(model, BATCH)), model(**BATCH).logits, rtol=1e-5, atol=1e-5
        )


def test_a_model_that_changes_its_logits_has_no_head_of_its_own() -> None:
    model = loading.load_model("nano")
    forward = model.forward

    def capped(**given: object) -> object:
        out = forward(**given)
        out.logits = torch.tanh(out.logits / 5) * 5
        return out

    model.forward = capped
    assert split_head(model) is None


@pytest.mark.parametrize(
    ("kind", "changes", "apart"),
    [
        # Of logits below 1 a cap of 50 changes the sixth digit; of a trained model's far more.
        ("gemma2", {"final_logit_softcapping": 50.0}, False),
        ("gemma2", {"final_logit_softcapping": None}, True),
        ("granite", {"logits_scaling": 1.001}, False),
        ("granite", {"logits_scaling": 1.0}, True),
        ("cohere", {"logit_scale": 0.999}, False),
        ("llama", {}, True),
    ],
)
def test_the_head_is_apart_where_no_cap_or_scale_comes_after_it(
    kind: str, changes: dict[str, Any], apart: bool
) -> None:
    model = make(kind, **changes)
    assert (split_head(model) is not None) == apart


def test_an_encoder_decoder_has_no_head_of_its_own() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    assert split_head(T5ForConditionalGeneration(config)) is None


def test_the_hook_on_the_head_is_gone_afterwards() -> None:
    model = loading.load_model("nano")
    before = model(**BATCH).logits.detach().clone()
    head = split_head(model)
    assert head is not None and not head.linear._forward_pre_hooks
    torch.testing.assert_close(model(**BATCH).logits, before)
