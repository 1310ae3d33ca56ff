"""Facts about train.remedies.consistency: which tokens are compared, and the formula by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, dialogue
from replaykit.errors import RecipeError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.recipe.remedies import ConsistencySettings
from replaykit.recipe.train import Train
from replaykit.steps.train.batches import TokenisedRows, collate
from replaykit.steps.train.fit import Base, fit
from replaykit.steps.train.remedies import Pairs, Run
from replaykit.steps.train.remedies.consistency import Consistency, shared_tokens


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load("nano")


def pair(question: str, answer: str, other: str, new: str) -> list[Record]:
    parent = Record(dialogue(question, answer), "target")
    meta = {"parent": parent.id, "path": "counterfactual"}
    return [parent, Record(dialogue(other, new), "target", meta)]


PAIRS = [
    *pair("What is 27 + 15?", "27 + 15 = 42", "What is 81 + 15?", "81 + 15 = 96"),
    *pair("What is 30 + 4 in all?", "34", "What is 20 + 4 in all?", "24"),
]
OTHER = Record(dialogue("What is the capital of Peru?", "Lima"), "generate")


def test_tokens_are_compared_behind_the_fact_where_both_go_on_alike() -> None:
    #            prefix  fact  shared  answer  end
    parent = [1, 2, 30, 4, 5, 6, 70, 9]
    own = [1, 2, 31, 4, 5, 6, 71, 9]
    # At 5 the next token is the answer, which differs; the last one ends both.
    assert shared_tokens(own, parent) == ([3, 4, 7], [3, 4, 7])
    assert shared_tokens([1, 2, 31, 32, 4, 5], [1, 2, 30, 4, 5]) == ([4, 5], [3, 4])
    assert shared_tokens([1, 2], [1, 2]) == ([], [])
    assert shared_tokens([1, 2, 3], [4, 5, 6]) == ([], [])


def last_states(model: torch.nn.Module, tokens: Sequence[int]) -> torch.Tensor:
    """What the last decoder layer gives, by a hook of its own."""
    found = []
    layer = model.model.layers[-1]  # type: ignore[union-attr, index]
    hook = layer.register_forward_hook(lambda *args: found.append(args[2]))
    model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
    hook.remove()
    state = found[0][0] if isinstance(found[0], tuple) else found[0]
    return state.reshape(len(tokens), -1)


def by_hand(
    model: torch.nn.Module, data: TokenisedRows, pairs: dict[int, int]
) -> tuple[torch.Tensor, int]:
    """The distance summed over the compared tokens, row by row and token by token; and how many."""
    total = torch.zeros(())
    count = 0
    for own, parent in pairs.items():
        tokens = data[own]["tokens"].tolist()
        before = data[parent]["tokens"].tolist()
        shared = shared_tokens(tokens, before)
        state = last_states(model, tokens)
        with torch.no_grad():
            wanted = last_states(model, before)
        for one, other in zip(shared.own, shared.parent, strict=True):
            assert tokens[one] == before[other]
            normed = []
            for values in (state[one], wanted[other]):
                middle = values - values.mean()
                normed.append(middle / torch.sqrt(middle.square().mean() + 1e-5))
            total = total + (normed[0] - normed[1]).square().mean()
            count += 1
    return total, count


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [3, 4], [1]])
def test_the_penalty_and_its_gradient_are_those_by_hand(
    chat: Chat, tmp_path: Path, packing: bool, rows: list[int]
) -> None:
    model = loading.load_model("nano", train=True)
    data = TokenisedRows([*PAIRS, OTHER], chat)
    assert data.parent_of == {1: 0, 3: 2}

    def batch(indices: Sequence[int]) -> dict[str, object]:
        return collate([data[index] for index in indices], pad=0, packing=packing)

    remedy = Consistency(ConsistencySettings(weight=0.5))
    pairs = Pairs(data.parent_of, lambda index: data[index]["tokens"].tolist(), batch)
    remedy.begin(Run(model, False, tmp_path, lambda: iter(()), lambda: model, pairs=pairs))
    given = batch(rows)
    names = ("input_ids", "position_ids")
    model(**{name: given[name] for name in names if name in given}, use_cache=False)
    penalty = remedy.penalty(given)
    assert penalty is not None
    penalty.backward()
    weight = model.model.layers[0].self_attn.q_proj.weight
    gradient = weight.grad.clone()
    model.zero_grad()
    wanted, count = by_hand(model, data, {k: v for k, v in data.parent_of.items() if k in rows})
    (0.5 * wanted).backward()
    assert count > 3
    assert penalty.item() == pytest.approx(0.5 * wanted.item(), rel=1e-4)
    assert torch.allclose(gradient, weight.grad, rtol=1e-3, atol=1e-6)
    remedy.backward_done(replay=None)
    assert remedy.measures() == {"distance": pytest.approx(wanted.item() / count, rel=1e-4)}
    assert remedy.measures() == {}


def trained(chat: Chat, rows: Sequence[Record], folder: Path, **settings: object) -> float | None:
    """Trains on the rows, all in each step; the last distance of a compared token."""
    steps = 6
    planned = [PlannedRow(step, row) for step in range(steps) for row in rows]
    options = {"steps": steps, "log_every": 1, "learning_rate": 3e-4, "batch_rows": len(rows)}
    found = fit(
        planned, Base("nano", chat), Train.model_validate(options | settings), seed=1, folder=folder
    )
    return found.losses[-1].get("consistency/distance")


@pytest.mark.slow
def test_pairs_come_nearer_and_micro_batches_do_not_matter(chat: Chat, tmp_path: Path) -> None:
    far = trained(chat, PAIRS, tmp_path / "a", remedies={"consistency": {"weight": 1e-6}})
    near = trained(chat, PAIRS, tmp_path / "b", remedies={"consistency": {"weight": 20.0}})
    assert far is not None
    assert near is not None
    assert near < 0.9 * far
    # Each row alone in a micro-batch: the parent is run beside it.
    alone = trained(
        chat, PAIRS, tmp_path / "c", remedies={"consistency": {"weight": 20.0}}, micro_batch_rows=1
    )
    assert alone == pytest.approx(near, rel=1e-3)


@pytest.mark.slow
def test_a_mixture_without_pairs_is_refused(chat: Chat, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no row beside its counterfactual; `replaykit augment"):
        trained(chat, [PAIRS[0], PAIRS[3]], tmp_path, remedies={"consistency": {}})
