"""Elastic weight consolidation: its Fisher information, its penalty, and both under LoRA, against
what is written out.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from replaykit.data.record import Record, dialogue
from replaykit.errors import DataError, RecipeError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.model.lm_head import Batch, inputs
from replaykit.nano import world
from replaykit.recipe.remedies import EwcSettings, L2spSettings, Remedies
from replaykit.steps.train import batches
from replaykit.steps.train.remedies import Run, chosen
from replaykit.steps.train.remedies import fisher as fisher_module
from replaykit.steps.train.remedies.ewc import Ewc, L2sp, kronecker_penalty
from replaykit.steps.train.remedies.fisher import (
    FISHER_FILE,
    diagonal_fisher,
    highest,
    kronecker_fisher,
    lora_layers,
)

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

WORDS = 23


class Unigram(nn.Module):
    """p(token) = softmax(theta), whatever stands before: its Fisher information can be written
    down.
    """

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
        self.config = SimpleNamespace(is_encoder_decoder=False)

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.theta.expand(*input_ids.shape, -1))


def tiny(*, tied: bool = True, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        attention_dropout=dropout,
        initializer_range=0.3,
    )
    return transformers.LlamaForCausalLM(config).to(dtype).train()


def lora(network: Any, **options: Any) -> Any:
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", **options
    )
    adapted = peft.get_peft_model(network, config)
    return adapted.to(network.dtype)


def row(tokens: Sequence[int], begins: int) -> Batch:
    """A batch of one row whose tokens from ``begins`` on are the answer."""
    ids = torch.tensor([tokens])
    labels = torch.full_like(ids, -100)
    labels[0, begins - 1 : -1] = ids[0, begins:]
    return {
        "input_ids": ids,
        "labels": labels,
        "loss_weight": (labels >= 0).float(),
        "source": torch.tensor([1]),
        "replay": torch.tensor([True]),
    }


def some_rows(count: int, seed: int = 0) -> list[Batch]:
    draw = torch.Generator().manual_seed(seed)
    lengths = [5 + k % 4 for k in range(count)]
    return [
        row(torch.randint(WORDS, (n,), generator=draw).tolist(), begins=2 + n % 2) for n in lengths
    ]


def run_of(model: Any, rows: Sequence[Batch], folder: Path, *, adapter: bool = False) -> Run:
    def load_base() -> nn.Module:
        raise AssertionError("the model is the base still, so it need not be loaded once more")

    return Run(
        model=model, adapter=adapter, folder=folder, replay=lambda: iter(rows), load_base=load_base
    )


def begun(remedy: Any, *where: Any, **options: Any) -> Any:
    remedy.begin(run_of(*where, **options))
    return remedy


def nll(model: Any, batch: Batch) -> torch.Tensor:
    return nn.functional.cross_entropy(
        model(**inputs(batch)).logits[0], batch["labels"][0], reduction="sum"
    )


def squares(model: Any, rows: Sequence[Batch]) -> dict[str, torch.Tensor]:
    """The mean of the squares of each row's gradient, by autograd alone, then with mean 1."""
    named = dict(model.named_parameters())
    sums = {name: torch.zeros_like(given) for name, given in named.items()}
    for batch in rows:
        gradients = torch.autograd.grad(nll(model.eval(), batch), list(named.values()))
        for name, gradient in zip(named, gradients, strict=True):
            sums[name] += gradient**2
    mean = torch.cat([values.flatten() for values in sums.values()]).mean()
    return {name: values / mean for name, values in sums.items()}


def moved(model: Any, by: float = 0.1) -> Any:
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn_like(parameter)
    return model


def with_zero_gradients(model: Any) -> Any:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: given.grad.clone()
        for name, given in model.named_parameters()
        if given.grad is not None
    }


def same(
    one: dict[str, torch.Tensor],
    other: dict[str, torch.Tensor],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-7,
) -> bool:
    return (
        bool(one)
        and one.keys() == other.keys()
        and all(
            torch.allclose(one[name], other[name].to(one[name].dtype), rtol=rtol, atol=atol)
            for name in one
        )
    )


# --- the Fisher information -----------------------------------------------------------------------


def test_the_penalty_of_a_model_with_a_known_fisher_information_is_its_quadratic(tmp_path):
    answers = [0, 3, 3, 4]
    base = Unigram()
    p, ones = torch.softmax(base.theta.detach(), dim=0), torch.eye(5, dtype=torch.float64)
    known = torch.stack([(p - ones[answer]) ** 2 for answer in answers]).mean(dim=0)
    known /= known.mean()

    model = copy.deepcopy(base)
    remedy = begun(
        Ewc(EwcSettings(strength=0.3)), model, [row([1, y], 1) for y in answers], tmp_path
    )
    with_zero_gradients(moved(model))
    remedy.gradients()
    theta = model.theta.detach().clone().requires_grad_()
    quadratic = 0.3 / 2 * (known * (theta - base.theta.detach()) ** 2).sum()
    assert torch.allclose(model.theta.grad, torch.autograd.grad(quadratic, theta)[0], rtol=1e-6)
    assert remedy.measures()["penalty"] == pytest.approx(quadratic.item(), rel=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_the_fisher_information_is_that_of_single_rows(tied):
    base, rows = tiny(tied=tied), some_rows(6)
    fisher = diagonal_fisher(copy.deepcopy(base), rows)
    assert same(fisher, squares(base, rows))
    assert torch.cat([values.flatten() for values in fisher.values()]).mean() == pytest.approx(
        1, abs=1e-5
    )
    assert all(values.dtype == torch.float32 for values in fisher.values())


def test_the_square_of_a_batch_gradient_is_something_else():
    base, rows = tiny(), some_rows(6)
    named = dict(base.named_parameters())
    whole = torch.autograd.grad(sum(nll(base, batch) for batch in rows), list(named.values()))
    mean = torch.cat([gradient.flatten() ** 2 for gradient in whole]).mean()
    of_batch = {name: gradient**2 / mean for name, gradient in zip(named, whole, strict=True)}
    assert not same(of_batch, squares(base, rows), rtol=0.2)


def test_the_rows_are_the_first_of_replay_and_the_model_is_in_eval_mode(tmp_path):
    base, rows = tiny(dropout=0.5), some_rows(9)
    for part in ("a", "b"):
        begun(Ewc(EwcSettings(rows=4)), copy.deepcopy(base), rows, tmp_path / part)
    once, again = (load_file(tmp_path / part / FISHER_FILE) for part in ("a", "b"))
    assert same(once, again, rtol=0, atol=0)
    assert same(once, squares(base, rows[:4]))


@pytest.mark.parametrize("remedy", [Ewc(EwcSettings()), L2sp(L2spSettings())])
def test_the_model_that_is_trained_is_the_base_itself_and_is_left_as_it_was(tmp_path, remedy):
    model, before = tiny(dtype=torch.float32), tiny(dtype=torch.float32)
    model.model.layers[1].mlp.requires_grad_(False)
    learns = [each.requires_grad for each in model.parameters()]
    begun(remedy, model, some_rows(3), tmp_path)
    assert all(each.training for each in model.modules())
    assert [each.requires_grad for each in model.parameters()] == learns
    assert all(each.grad is None for each in model.parameters())
    assert same(model.state_dict(), before.state_dict(), rtol=0, atol=0)
    with_zero_gradients(model)
    # On a GPU too, where a base that is loaded by itself is in bfloat16, an untrained model is not
    # pulled.
    remedy.gradients()
    assert not any(values.any() for values in gradients(model).values())


def test_small_gradients_of_half_precision_do_not_vanish_in_their_squares():
    base = tiny(dtype=torch.float16)
    with torch.no_grad():
        base.lm_head.weight *= 1e-3  # gradients of the order of 1e-4, whose squares float16 has not
    base.requires_grad_(False).model.layers[0].mlp.up_proj.requires_grad_()
    (values,) = diagonal_fisher(base, some_rows(3)).values()
    assert (values > 0).float().mean() > 0.9


def test_frozen_parameters_have_no_fisher_information_and_no_penalty(tmp_path):
    model = tiny()
    model.model.layers[0].requires_grad_(False)
    remedy = begun(Ewc(EwcSettings()), model, some_rows(3), tmp_path)
    with_zero_gradients(moved(model))
    remedy.gradients()
    assert not any("layers.0." in name for name in gradients(model))
    total = sum(values.sum() for values in load_file(tmp_path / FISHER_FILE).values())
    learning = [given for given in model.parameters() if given.requires_grad]
    assert total == pytest.approx(sum(given.numel() for given in learning), rel=1e-4)


def test_a_parameter_that_a_later_stage_trains_is_left_alone_until_it_has_a_gradient(tmp_path):
    model = tiny()
    remedy = begun(Ewc(EwcSettings()), model, some_rows(3), tmp_path)
    with_zero_gradients(moved(model))
    model.model.norm.weight.grad = None
    remedy.gradients()
    assert model.model.norm.weight.grad is None
    assert model.model.layers[0].mlp.up_proj.weight.grad.any()


def test_an_encoder_decoder_has_a_fisher_information_in_both_forms():
    torch.manual_seed(3)
    config = transformers.T5Config(
        vocab_size=WORDS,
        d_model=12,
        d_kv=6,
        d_ff=20,
        num_layers=1,
        num_decoder_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    base, rows = transformers.T5ForConditionalGeneration(config).double(), []
    for batch in some_rows(4):
        question, answer = batch["input_ids"][:, :3], batch["input_ids"][:, 3:]
        begun = torch.cat([torch.zeros_like(answer[:, :1]), answer[:, :-1]], dim=1)
        rows.append(
            {
                "input_ids": question,
                "attention_mask": torch.ones_like(question),
                "decoder_input_ids": begun,
                "labels": answer,
            }
        )
    assert same(diagonal_fisher(copy.deepcopy(base), rows), squares(base, rows))
    options = peft.LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_2_SEQ_LM")
    kronecker = kronecker_fisher(peft.get_peft_model(base, options), rows)
    # Two vectors for 6 layers of the encoder's block and 10 of the decoder's.
    assert len(kronecker) == 2 * (6 + 2 * 10)
    assert all(values.isfinite().all() and values.any() for values in kronecker.values())


# --- the penalty ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 2, 8])
def test_the_penalty_is_added_once_however_the_step_is_cut(tmp_path, cut):
    base, rows = tiny(), some_rows(8)
    model = tiny()
    remedy = begun(Ewc(EwcSettings(strength=2.0)), model, rows, tmp_path)
    moved(model)
    for start in range(0, 8, 8 // cut):
        (sum(nll(model, batch) for batch in rows[start : start + 8 // cut]) / 8).backward()
        remedy.backward_done(replay=True)
    before = gradients(model)
    remedy.gradients()
    fisher = squares(base, rows)
    expected = {
        name: before[name] + 2.0 * fisher[name] * (given - own).detach()
        for (name, given), own in zip(model.named_parameters(), base.parameters(), strict=True)
    }
    assert same(gradients(model), expected)


def test_auto_keeps_the_ratio_of_both_gradients_in_every_step(tmp_path):
    model, rows = tiny(), some_rows(4)
    remedy = begun(Ewc(EwcSettings(auto=0.1)), model, rows, tmp_path)
    optimiser, norms = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(4):
        optimiser.zero_grad()
        sum(nll(model, batch) for batch in rows).backward()
        before = gradients(model)
        remedy.gradients()
        added = torch.cat(
            [(after - before[name]).flatten() for name, after in gradients(model).items()]
        )
        norms.append(
            float(added.norm() / torch.cat([given.flatten() for given in before.values()]).norm())
        )
        optimiser.step()
    assert norms[0] == 0  # the parameters are the base's
    assert norms[1:] == pytest.approx([0.1] * 3)
    assert remedy.measures()["ratio"] == pytest.approx(0.1 * 3 / 4)
    assert remedy.measures() == {}


def test_l2sp_pulls_every_parameter_alike(tmp_path):
    base, model = tiny(), tiny()
    remedy = begun(L2sp(L2spSettings(strength=0.7)), model, [], tmp_path)
    with_zero_gradients(moved(model))
    remedy.gradients()
    pairs = zip(model.parameters(), base.parameters(), strict=True)
    assert all(torch.allclose(given.grad, 0.7 * (given - own)) for given, own in pairs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_is_held_stays_nearer_to_the_base(tmp_path):
    base, replay = tiny(), some_rows(4)
    task, distances = some_rows(4, seed=5), {}
    for strength in (0.0, 3.0):
        model = tiny()
        remedy = begun(Ewc(EwcSettings(strength=strength)), model, replay, tmp_path)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.001)
        for _ in range(60):
            optimiser.zero_grad()
            sum(nll(model, batch) for batch in task).backward()
            remedy.gradients()
            optimiser.step()
        fisher = squares(base, replay)
        pairs = zip(model.named_parameters(), base.parameters(), strict=True)
        distances[strength] = sum(
            float((fisher[name] * (given - own).detach() ** 2).sum())
            for (name, given), own in pairs
        )
    assert distances[3.0] < distances[0.0] / 2


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("options", [{}, {"auto": 0.1}])
def test_a_resumed_run_reads_the_fisher_information_and_has_the_same_gradients(
    tmp_path, monkeypatch, adapter, options
):
    model, rows = tiny(dtype=torch.float32), some_rows(4)
    model = lora(model) if adapter else model
    resumed = copy.deepcopy(model)
    first = begun(Ewc(EwcSettings(**options)), model, rows, tmp_path, adapter=adapter)
    moved(model)

    monkeypatch.setattr(fisher_module, "row_losses", None)  # no gradient is made anew
    second = begun(Ewc(EwcSettings(**options)), resumed, rows, tmp_path, adapter=adapter)
    resumed.load_state_dict(model.state_dict())  # as from a checkpoint
    for remedy, network in ((first, model), (second, resumed)):
        torch.manual_seed(0)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn_like(parameter)
        remedy.gradients()
    assert same(gradients(model), gradients(resumed), rtol=0, atol=0)
    assert first.measures() == second.measures()


def test_a_file_of_other_rows_or_of_another_base_or_a_torn_one_is_made_anew(tmp_path):
    base, rows, file = tiny(), some_rows(4), tmp_path / FISHER_FILE

    def written(base: Any, given_rows: Sequence[Batch], **options: Any) -> bytes:
        begun(Ewc(EwcSettings(**options)), copy.deepcopy(base), given_rows, tmp_path)
        return file.read_bytes()

    before = written(base, rows)
    assert written(base, rows, strength=9.0) == before
    others = [written(base, rows[:3]), written(base, rows, rows=2), written(moved(tiny()), rows)]
    assert len({before, *others}) == 4
    file.write_bytes(before[:100])
    assert written(base, rows) == before
    assert [path.name for path in tmp_path.iterdir()] == [FISHER_FILE]


@pytest.mark.parametrize("options", [{"strength": 2.0}, {"auto": 0.1}, {"hard": 0.1}], ids=str)
def test_what_is_kept_beside_the_device_pulls_the_same(tmp_path, options):
    rows, found = some_rows(4), []
    for offload in (False, True):
        model = tiny(dtype=torch.float32)
        remedy = Ewc(EwcSettings(**options))
        remedy.begin(dataclasses.replace(run_of(model, rows, tmp_path), offload=offload))
        with_zero_gradients(moved(model))
        remedy.gradients()
        remedy.stepped()
        found.append((gradients(model), dict(model.named_parameters())))
    assert same(found[0][0], found[1][0], rtol=0, atol=0)
    assert same(found[0][1], found[1][1], rtol=0, atol=0)


# --- the hard variant -----------------------------------------------------------------------------


def test_with_hard_the_chosen_parameters_never_move_further_than_told(tmp_path):
    base, rows = tiny(), some_rows(6)
    model = tiny()
    remedy = begun(Ewc(EwcSettings(hard=0.1, max_shift=0.2)), model, rows, tmp_path)
    fisher = squares(base, rows)
    limit = torch.cat([values.flatten() for values in fisher.values()]).sort(descending=True).values
    limit = limit[round(0.1 * len(limit)) - 1] * (1 - 1e-6)
    for _ in range(3):
        free = {
            name: given.detach().clone() for name, given in moved(model, by=0.5).named_parameters()
        }
        remedy.stepped()
        bounded, at_limit = 0, 0
        for (name, now), own in zip(model.named_parameters(), base.parameters(), strict=True):
            top = fisher[name] >= limit
            reach = own.abs() * 0.2
            assert torch.equal(now[~top], free[name][~top])
            assert torch.equal(now[top], free[name].clamp(own - reach, own + reach)[top])
            bounded, at_limit = bounded + int(top.sum()), at_limit + int((now != free[name]).sum())
        assert bounded == round(0.1 * sum(given.numel() for given in base.parameters()))
        assert remedy.measures() == {"clamped": pytest.approx(at_limit / bounded)}
    with_zero_gradients(model)
    remedy.gradients()
    assert not any(values.any() for values in gradients(model).values())


@pytest.mark.parametrize("options", [{"strength": 2.0}, {"auto": 0.1}], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.8])
def test_beside_hard_a_penalty_acts_as_without_it(tmp_path, options, share):
    rows = some_rows(6)
    penalised = {}
    for name, hard in {"alone": {}, "both": {"hard": share, "max_shift": 0.2}}.items():
        model = tiny()
        remedy = begun(Ewc(EwcSettings(**options, **hard)), model, rows, tmp_path)
        moved(model, by=0.5)
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        remedy.gradients()
        penalised[name] = gradients(model)
        remedy.stepped()
        penalised[f"{name} measured"] = remedy.measures()
    assert same(penalised["alone"], penalised["both"])
    clamped = penalised["both measured"].pop("clamped")
    assert 0 < clamped <= 1
    assert penalised["both measured"] == pytest.approx(penalised["alone measured"])
    assert penalised["both measured"]["penalty"] > 0


@pytest.mark.parametrize(
    ("options", "strength"),
    [
        ({}, 0.3),
        ({"strength": 0.0}, 0.0),
        ({"hard": 0.1}, 0.0),
        ({"hard": 0.1, "strength": 0.3}, 0.3),
    ],
    ids=str,
)
def test_the_strength_is_that_of_the_recipe_and_0_for_hard_alone(options, strength):
    assert Ewc(EwcSettings(**options)).strength == strength


@given(
    values=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    share=st.floats(0.01, 1.0),
    cut=st.integers(0, 60),
)
def test_the_highest_are_those_of_a_sorted_list_with_all_ties(
    values: list[int], share: float, cut: int
) -> None:
    fisher = torch.tensor(values, dtype=torch.float32) * 0.37
    found = highest({"a": fisher[:cut], "b": fisher[cut:]}, share)
    limit = max(sorted(values, reverse=True)[max(1, round(share * len(values))) - 1], 1)
    assert torch.cat([found["a"], found["b"]]).tolist() == [value >= limit for value in values]


# --- under LoRA -----------------------------------------------------------------------------------


@given(
    rank=st.integers(1, 5),
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    scale=st.floats(0.1, 8),
    seed=st.integers(0, 999),
)
def test_the_kronecker_penalty_is_the_sum_over_the_whole_matrix(
    rank: int, width: int, height: int, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    a = torch.randn(rank, width, dtype=torch.float64, requires_grad=True)
    b = torch.randn(height, rank, dtype=torch.float64, requires_grad=True)
    u, v = torch.rand(height, dtype=torch.float64), torch.rand(width, dtype=torch.float64)
    energy, of_a, of_b = kronecker_penalty(a.detach(), b.detach(), u, v, scale)
    explicit = (torch.outer(u, v) * (scale * b @ a) ** 2).sum()
    expected = torch.autograd.grad(explicit / 2, (a, b))
    assert torch.allclose(energy, explicit, rtol=1e-10, atol=1e-12)
    assert torch.allclose(of_a, expected[0], rtol=1e-10, atol=1e-12)
    assert torch.allclose(of_b, expected[1], rtol=1e-10, atol=1e-12)


def layer_names(base: Any) -> list[str]:
    return [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]


def test_a_row_of_one_position_has_exactly_the_kronecker_form():
    base, rows = tiny(tied=False), [row([4, 9], 1)]
    rows[0] = {name: given[:, :1] if given.dim() == 2 else given for name, given in rows[0].items()}
    fisher = kronecker_fisher(lora(copy.deepcopy(base)), rows)
    named = {name: base.get_submodule(name).weight for name in layer_names(base)}
    found = dict(
        zip(named, torch.autograd.grad(nll(base, rows[0]), list(named.values())), strict=True)
    )
    mean = torch.cat([gradient.flatten() ** 2 for gradient in found.values()]).mean()
    for name, gradient in found.items():
        u, v = (fisher[f"base_model.model.{name}.{part}"].double() for part in "uv")
        assert torch.allclose(torch.outer(u, v), gradient**2 / mean, rtol=1e-4, atol=1e-9), name


def test_u_is_a_sum_and_v_a_mean_over_positions_of_the_base_whatever_the_adapter_has_learned():
    base, rows = tiny(), some_rows(11)
    assert 1 < len(list(fisher_module._together(rows))) < len(rows)
    names = layer_names(base)
    u, v = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in names:
        base.get_submodule(name).register_forward_hook(
            lambda _, a, out, name=name: seen.update({name: (a[0], out)})
        )
    positions = sum(batch["input_ids"].shape[1] for batch in rows)
    for batch in rows:
        loss = nll(base, batch)
        for name, gradient in zip(
            names, torch.autograd.grad(loss, [seen[name][1] for name in names]), strict=True
        ):
            u[name] += (gradient[0] ** 2).sum(dim=0) / len(rows)
            v[name] += (seen[name][0][0] ** 2).sum(dim=0).detach() / positions
    products = [torch.outer(u[name], v[name]) for name in names]
    mean = torch.cat([product.flatten() for product in products]).mean()

    adapted = moved(lora(tiny()))
    adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_A.requires_grad_(False)
    learns = [parameter.requires_grad for parameter in adapted.parameters()]
    fisher = kronecker_fisher(adapted, rows)
    for name, product in zip(names, products, strict=True):
        found = torch.outer(*(fisher[f"base_model.model.{name}.{part}"].double() for part in "uv"))
        assert torch.allclose(found, product / mean, rtol=1e-4), name
    assert [parameter.requires_grad for parameter in adapted.parameters()] == learns
    assert all(parameter.grad is None for parameter in adapted.parameters())
    assert adapted.training


@pytest.mark.parametrize("kind", ["ewc", "l2sp"])
def test_the_penalty_under_lora_is_that_of_the_materialised_matrices(tmp_path, kind):
    adapted, rows = moved(lora(tiny())), some_rows(5)
    with_zero_gradients(adapted)
    remedy = Ewc(EwcSettings(strength=0.4)) if kind == "ewc" else L2sp(L2spSettings(strength=0.4))
    begun(remedy, adapted, rows, tmp_path, adapter=True).gradients()
    fisher = kronecker_fisher(adapted, rows) if kind == "ewc" else None
    layers = lora_layers(adapted)
    assert len(layers) == 14
    explicit = torch.zeros((), dtype=torch.float64)
    for name in layers:
        change = adapted.get_submodule(name).get_delta_weight("default")
        weight = (
            torch.outer(fisher[f"{name}.u"], fisher[f"{name}.v"]).double()
            if fisher
            else torch.ones_like(change)
        )
        explicit = explicit + (weight * change**2).sum()
    own = {name: given for name, given in adapted.named_parameters() if given.requires_grad}
    expected = torch.autograd.grad(0.4 / 2 * explicit, list(own.values()))
    assert same(gradients(adapted), dict(zip(own, expected, strict=True)))
    assert remedy.measures()["penalty"] == pytest.approx(0.2 * explicit.item())


def test_the_penalty_under_lora_makes_no_tensor_larger_than_the_adapter_s(tmp_path):
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(
            self, call: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = call(*args, **(kwargs or {}))
            self.numbers = max(self.numbers, made.numel() if isinstance(made, torch.Tensor) else 0)
            return made

    adapted = moved(lora(tiny()))
    with_zero_gradients(adapted)
    remedy = begun(Ewc(EwcSettings()), adapted, some_rows(3), tmp_path, adapter=True)
    with Largest() as largest:
        remedy.gradients()
    layers = lora_layers(adapted).values()
    assert largest.numbers == max(max(layer.a.numel(), layer.b.numel()) for layer in layers)
    assert largest.numbers < max(layer.base.weight.numel() for layer in layers)


def test_under_lora_what_is_kept_is_two_vectors_a_layer(tmp_path):
    adapted = lora(tiny())
    begun(Ewc(EwcSettings()), adapted, some_rows(3), tmp_path, adapter=True)
    kept = load_file(tmp_path / FISHER_FILE)
    layers = lora_layers(adapted)
    assert sum(values.numel() for values in kept.values()) == sum(
        layer.a.shape[1] + layer.b.shape[0] for layer in layers.values()
    )
    sums = [float(kept[f"{name}.u"].sum() * kept[f"{name}.v"].sum()) for name in layers]
    assert sum(sums) / sum(
        layer.a.shape[1] * layer.b.shape[0] for layer in layers.values()
    ) == pytest.approx(1, rel=1e-5)


def test_the_embedded_model_is_held_under_lora_on_its_own_rows(tmp_path, chat: Chat):
    records = [
        Record(dialogue(task.prompt, task.answer), "generate") for task in world.draw_old(4, seed=1)
    ]
    planned = batches.TokenisedRows(records, chat)
    rows = [batches.collate([planned[k]], pad=0) for k in range(4)]
    adapted = peft.get_peft_model(
        loading.load_model("nano"), peft.LoraConfig(r=4, target_modules="all-linear")
    )
    remedy = begun(Ewc(EwcSettings(strength=1.0)), adapted, rows, tmp_path, adapter=True)
    with_zero_gradients(moved(adapted, by=0.01))
    remedy.gradients()
    assert all(values.isfinite().all() and values.any() for values in gradients(adapted).values())
    assert remedy.measures()["penalty"] > 0


# --- what cannot be -------------------------------------------------------------------------------


def test_rows_without_an_answer_and_broken_models_are_named(tmp_path):
    silent = [row([1, 2, 3], 3)]
    with pytest.raises(DataError, match="Fisher information of the replay rows is 0"):
        Ewc(EwcSettings()).begin(run_of(tiny(), silent, tmp_path))
    broken = tiny()
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(DataError, match="is nan"):
        Ewc(EwcSettings()).begin(run_of(broken, some_rows(2), tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"use_dora": True}, "without DoRA"),
        ({"target_modules": ["embed_tokens"]}, "linear layers only"),
    ],
)
def test_adapters_of_another_form_are_refused(tmp_path, options, told):
    config = peft.LoraConfig(
        **({"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options)
    )
    for remedy in (Ewc(EwcSettings()), L2sp(L2spSettings())):
        with pytest.raises(RecipeError, match=told):
            remedy.begin(
                run_of(peft.get_peft_model(tiny(), config), some_rows(2), tmp_path, adapter=True)
            )


def test_the_recipe_chooses_both_by_their_names():
    assert [type(remedy) for remedy in chosen(Remedies(ewc=EwcSettings()))] == [Ewc]
    assert [type(remedy) for remedy in chosen(Remedies(l2sp=L2spSettings()))] == [L2sp]
