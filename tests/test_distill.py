"""Distillation: its divergence, its gradient, its three teachers, and what they are not asked."""

import copy
import dataclasses
import math

import peft
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from replaykit.errors import RecipeError, RunError
from replaykit.model.lm_head import split_head
from replaykit.model.logprobs import IGNORED
from replaykit.recipe import load_recipe
from replaykit.recipe.remedies import DistillSettings as Settings
from replaykit.steps.train.batches import collate
from replaykit.steps.train.losses import summed
from replaykit.steps.train.remedies import Run
from replaykit.steps.train.remedies.distill import Distill, kl
from replaykit.steps.train.remedies.teacher_cache import completed, row_keys
from replaykit.steps.train.remedies.teachers import adapter_off

VOCABULARY, PAD = 50, 0


def network(dropout=0.0, **changes):
    torch.manual_seed(1)
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "attention_dropout": dropout,
        "initializer_range": 0.5,
    } | changes
    return LlamaForCausalLM(LlamaConfig(**config)).train()


def under_adapter(model, **options):
    """The model under a LoRA adapter that has not learned anything yet."""
    torch.manual_seed(2)
    return peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules="all-linear", **options)
    ).train()


def learned(model):
    """The same model; its adapter's B is not zero any more."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def row(length, seed, *, replay=True, prompt=3):
    tokens = torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))
    labels = torch.cat([tokens[1:], torch.tensor([IGNORED])])
    labels[: prompt - 1] = IGNORED
    return {
        "tokens": tokens,
        "labels": labels,
        "weight": (labels != IGNORED).float(),
        "source": int(replay),
        "replay": replay,
        "index": seed,
    }


ROWS = [row(12, 1), row(9, 2, replay=False), row(7, 3), row(10, 4, replay=False)]


def run_of(model, folder, *, base=None, rows=ROWS):
    def replay():
        return (collate([each], pad=PAD) for each in rows if each["replay"])

    return Run(
        model,
        hasattr(model, "disable_adapter"),
        folder,
        replay,
        lambda: copy.deepcopy(base if base is not None else model),
    )


def begun(model, folder, *, base=None, replay=ROWS, offload=False, **settings):
    remedy = Distill(Settings(**settings))
    run = run_of(model, folder, base=base, rows=replay)
    remedy.begin(dataclasses.replace(run, offload=offload))
    return remedy


def total(remedy, model, batch, *, numbers=2**26):
    """What the remedy adds to the loss of the batch, with gradients: its term over all labelled
    tokens.
    """
    where = batch["labels"] != IGNORED
    head = split_head(model)
    term = remedy.term(batch, where)

    def with_all_logits(logits, part):  # as the loss, which is always there
        return term(logits, part) + 0 * logits.sum()

    return summed(head.hidden(model, batch)[where], head, with_all_logits, numbers=numbers)


def at_most(numbers, monkeypatch):
    """Logits of a teacher at a time."""
    for module in ("distill", "teacher_cache"):
        monkeypatch.setattr(f"replaykit.steps.train.remedies.{module}.NUMBERS", numbers)


def expected(model, base, batch, weight, temperature):
    """The same by the formula, from all logits at once."""
    where = (batch["labels"] != IGNORED) & batch["replay"][:, None]
    with torch.no_grad():
        p = torch.log_softmax(
            base.eval()(input_ids=batch["input_ids"]).logits[where] / temperature, dim=-1
        )
    q = torch.log_softmax(model(input_ids=batch["input_ids"]).logits[where] / temperature, dim=-1)
    return weight * temperature**2 * (p.exp() * (p - q)).sum()


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def close(first, second, tolerance=1e-5):
    assert first.keys() == second.keys() != set()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=tolerance, atol=tolerance)


def moved(model, by=0.05):
    """A copy that has been trained a little."""
    torch.manual_seed(3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * by)
    return other


# --- the divergence -------------------------------------------------------------------------------


def logits_and_teacher(tokens=6, vocabulary=20):
    torch.manual_seed(4)
    return torch.randn(tokens, vocabulary, dtype=torch.float64) * 3, torch.randn(
        tokens, vocabulary, dtype=torch.float64
    ) * 3


def full(student, teacher, temperature):
    p, q = (torch.log_softmax(logits / temperature, dim=-1) for logits in (teacher, student))
    return (p.exp() * (p - q)).sum()


def cached(teacher, temperature, k):
    """A target of the k most probable tokens and a tail."""
    log_p = torch.log_softmax(teacher / temperature, dim=-1)
    best = log_p.topk(k, dim=-1)
    tail = (
        torch.log1p(-best.values.exp().sum(dim=-1))
        if k < log_p.shape[-1]
        else torch.full((len(log_p),), -math.inf)
    )
    return lambda some, log_q: completed(log_q, best.indices[some], best.values[some], tail[some])


def test_with_k_the_vocabulary_the_divergence_is_the_full_one():
    student, teacher = logits_and_teacher()
    for temperature in (1.0, 2.0):
        found = kl(student, cached(teacher, temperature, 20), temperature)
        torch.testing.assert_close(
            found, full(student, teacher, temperature), rtol=1e-12, atol=1e-12
        )


def test_with_a_tail_the_divergence_is_that_of_k_plus_1_events_and_grows_with_k_to_the_full_one():
    student, teacher = logits_and_teacher()
    whole, found = full(student, teacher, 2.0), []
    for k in range(1, 21):
        p, q = (torch.softmax(logits / 2, dim=-1) for logits in (teacher, student))
        best = p.topk(k, dim=-1)
        events = [(best.values, q.gather(-1, best.indices))]
        if k < 20:
            events.append(
                (1 - best.values.sum(-1, keepdim=True), 1 - events[0][1].sum(-1, keepdim=True))
            )
        by_hand = sum((a * (a / b).log()).sum() for a, b in events)
        found.append(kl(student, cached(teacher, 2.0, k), 2.0))
        torch.testing.assert_close(found[-1], by_hand, rtol=1e-9, atol=1e-9)
    assert all(low <= high + 1e-12 for low, high in zip(found, [*found[1:], whole], strict=True))
    assert found[2] < 0.9 * whole


@pytest.mark.parametrize("k", [3, 20])
def test_the_gradient_is_that_of_the_divergence(k):
    student, teacher = logits_and_teacher()
    target = cached(teacher, 1.5, k)
    assert torch.autograd.gradcheck(
        lambda logits: kl(logits, target, 1.5), student.requires_grad_()
    )


def test_a_model_that_is_sure_of_other_tokens_gives_a_finite_gradient():
    student, teacher = torch.zeros(1, 20), torch.zeros(1, 20)
    student[0, 0], teacher[0, 1] = 2000.0, 2000.0
    for k in (1, 3, 20):
        given = student.clone().requires_grad_()
        value = kl(given, cached(teacher, 1.0, k), 1.0)
        value.backward()
        assert value.isfinite()
        assert given.grad.isfinite().all()


def test_t_squared_keeps_the_size_of_the_gradient():
    torch.manual_seed(5)
    teacher = torch.randn(4, 30, dtype=torch.float64)

    def gradient(difference, temperature):
        student = (teacher + difference).requires_grad_()
        log_p = torch.log_softmax(teacher / temperature, dim=-1)
        (temperature**2 * kl(student, lambda some, _: log_p[some], temperature)).backward()
        return student.grad

    small = 1e-3 * torch.randn(4, 30, dtype=torch.float64)
    norms = {
        temperature: gradient(small, temperature).norm().item() for temperature in (4, 8, 100, 1000)
    }
    assert norms[8] == pytest.approx(norms[4], rel=0.1)
    assert norms[1000] == pytest.approx(norms[100], rel=0.01)
    # The limit of Hinton et al., section 2.1: the difference of logits without its mean, over the
    # vocabulary's size.
    limit = (small - small.mean(dim=-1, keepdim=True)) / 30
    torch.testing.assert_close(gradient(small, 1e5), limit, rtol=1e-3, atol=1e-9)


# --- teachers -------------------------------------------------------------------------------------


def test_with_the_adapter_off_the_logits_are_those_of_a_base_that_is_loaded_by_itself(tmp_path):
    base = network(dropout=0.5)
    base.save_pretrained(tmp_path)
    model = learned(under_adapter(base, lora_dropout=0.5))
    alone = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    tokens = collate(ROWS, pad=PAD)["input_ids"]
    with torch.no_grad():
        with adapter_off(model):
            taught = model(input_ids=tokens).logits
        torch.testing.assert_close(taught, alone(input_ids=tokens).logits, rtol=0, atol=1e-6)
        assert (model.eval()(input_ids=tokens).logits - taught).abs().max() > 0.1


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["norm"]}, {"use_dora": True}])
def test_after_the_teacher_modes_and_frozen_parameters_are_as_before(options):
    model = under_adapter(network(), **options)
    model.base_model.model.model.layers[0].eval()
    first = next(parameter for name, parameter in model.named_parameters() if "lora_A" in name)
    first.requires_grad_(False)
    modes = [each.training for each in model.modules()]
    learning = [each.requires_grad for each in model.parameters()]
    with pytest.raises(ValueError, match="in between"), adapter_off(model):
        assert not any(each.training for each in model.modules())
        raise ValueError("in between")
    assert [each.training for each in model.modules()] == modes
    assert [each.requires_grad for each in model.parameters()] == learning
    assert not model._adapters_disabled
    assert model.get_model_status().enabled is True


@pytest.mark.parametrize("options", [{"init_lora_weights": "pissa"}, {"bias": "all"}])
def test_an_adapter_beneath_which_is_no_base_is_taught_by_a_copy(options, tmp_path):
    base = network()
    model = under_adapter(copy.deepcopy(base), **options)
    remedy = begun(model, tmp_path, base=base)
    assert remedy._teacher.model is not model
    assert begun(under_adapter(network()), tmp_path)._teacher.model is not base
    with pytest.raises(
        RecipeError, match="with this adapter off the model is not the base; say copy or cache"
    ):
        begun(model, tmp_path, base=base, teacher="adapter-off")


def test_another_kind_of_adapter_is_switched_off_too(tmp_path):
    base = network()
    model = peft.get_peft_model(
        copy.deepcopy(base), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    )
    remedy = begun(model, tmp_path, teacher="adapter-off")
    for name, parameter in model.named_parameters():
        if "ia3_l" in name:
            torch.nn.init.normal_(parameter)
    batch = collate(ROWS, pad=PAD)
    torch.testing.assert_close(total(remedy, model, batch), expected(model, base, batch, 0.5, 2.0))


@pytest.mark.parametrize("teacher", ["adapter-off", "copy", "cache"])
def test_every_teacher_gives_the_loss_and_gradient_of_the_formula(teacher, tmp_path):
    base = network()
    model = under_adapter(copy.deepcopy(base)) if teacher == "adapter-off" else base
    remedy = begun(
        model, tmp_path, base=base, teacher=teacher, weight=0.3, temperature=2.0, top_k=VOCABULARY
    )
    model, batch = learned(model) if model is not base else moved(base), collate(ROWS, pad=PAD)
    found = total(remedy, model, batch)
    found.backward()
    own = gradients(model)
    wanted = expected(model, base, batch, 0.3, 2.0)
    wanted.backward()
    tolerance = 5e-3 if teacher == "cache" else 1e-4  # float16 in the file
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=1e-4)
    close(own, gradients(model), tolerance)


@pytest.mark.parametrize("layers", [[], [0, -1]], ids=str)
def test_a_copy_whose_layers_lie_elsewhere_teaches_the_same(layers, tmp_path):
    base, batch = network(), collate(ROWS, pad=PAD)
    model, found = moved(base), []
    for offload in (False, True):
        remedy = begun(model, tmp_path, base=base, offload=offload, layers=layers)
        value = total(remedy, model, batch) + (remedy.penalty(batch) if layers else 0)
        value.backward()
        found.append((value, gradients(model)))
    torch.testing.assert_close(found[1][0], found[0][0])
    close(found[1][1], found[0][1])
    teacher = remedy._teacher.model
    in_layers = {name for name, weight in teacher.named_parameters() if ".layers." in name}
    away = {name for name, weight in teacher.named_parameters() if weight.is_meta}
    assert away == in_layers != set()


def test_slices_add_up_to_the_whole(tmp_path, monkeypatch):
    base, batch, found = network(), collate(ROWS, pad=PAD), []
    model = moved(base)
    for numbers, teacher in ((2**26, 2**22), (VOCABULARY, 2**22), (4 * VOCABULARY, 2 * VOCABULARY)):
        at_most(teacher, monkeypatch)
        remedy = begun(model, tmp_path, base=base)
        value = total(remedy, model, batch, numbers=numbers)
        value.backward()
        found.append((value, gradients(model)))
    for value, of_value in found[1:]:
        torch.testing.assert_close(value, found[0][0])
        close(of_value, found[0][1])


def test_a_model_that_is_its_teacher_has_no_gradient(tmp_path):
    model = network()
    for teacher in ("copy", "cache"):
        remedy = begun(model, tmp_path, teacher=teacher, weight=1.0, top_k=8)
        batch = collate(ROWS, pad=PAD)
        total(remedy, model, batch).backward()
        largest = max(gradient.abs().max().item() for gradient in gradients(model).values())
        assert largest < (1e-4 if teacher == "copy" else 2e-2)
        kept = remedy.keeps(batch).expand_as(batch["labels"])
        assert kept[0, 2:11].tolist() == [0.0] * 9
        assert kept[1].tolist() == [1.0] * 12


def test_target_rows_have_no_teacher_pass_and_no_term(tmp_path):
    base = network()
    model, seen = moved(base), []
    remedy = begun(model, tmp_path, base=base)
    remedy._teacher.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    batch = collate(ROWS, pad=PAD)
    where = batch["labels"] != IGNORED
    term = remedy.term(batch, where)
    assert seen == [(2, 11)]  # rows 0 and 2, up to the last label
    logits = torch.randn(int(where.sum()), VOCABULARY, requires_grad=True)
    term(logits, slice(0, len(logits))).backward()
    by_token = logits.grad.abs().sum(dim=-1)
    of_replay = batch["replay"][:, None].expand_as(where)[where]
    assert torch.equal(by_token > 0, of_replay)
    assert remedy.term(collate([ROWS[1]], pad=PAD), where[1:2, :9]) is None
    assert remedy.term(collate([], pad=PAD), torch.zeros(1, 1).bool()) is None
    assert len(seen) == 1


def test_all_rows_are_distilled_where_that_is_asked_for_even_at_tokens_of_weight_0(tmp_path):
    base = network()
    remedy = begun(moved(base), tmp_path, base=base, rows="all", weight=0.25)
    batch = collate(ROWS, pad=PAD)
    batch["loss_weight"].zero_()
    assert torch.equal(remedy.positions(batch), batch["labels"] != IGNORED)
    assert set(remedy.keeps(batch).unique().tolist()) == {0.75, 1.0}


@pytest.mark.parametrize("teacher", ["adapter-off", "cache"])
def test_packed_rows_are_taught_as_rows_of_their_own(teacher, tmp_path):
    model = under_adapter(network())
    remedy = begun(model, tmp_path, teacher=teacher, top_k=5)
    values, model = [], learned(model)
    for packing in (False, True):
        value = total(remedy, model, collate(ROWS, pad=PAD, packing=packing))
        value.backward()
        values.append((value, gradients(model)))
    torch.testing.assert_close(values[0][0], values[1][0])
    close(values[0][1], values[1][1], 1e-4)


def test_no_tensor_is_as_large_as_rows_times_length_times_vocabulary(tmp_path, monkeypatch):
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for each in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(each, torch.Tensor):
                    self.numbers = max(self.numbers, each.numel())
            return out

    vocabulary = 4000
    model = under_adapter(network(vocab_size=vocabulary))
    at_most(4 * vocabulary, monkeypatch)
    batch = collate([row(64, seed) for seed in range(4)], pad=PAD)
    for teacher in ("adapter-off", "cache"):
        remedy = Distill(Settings(teacher=teacher, top_k=4))
        with Largest() as largest:
            remedy.begin(run_of(model, tmp_path, rows=[row(64, seed) for seed in range(4)]))
            total(remedy, model, batch, numbers=8 * vocabulary).backward()
        # The embedding has 16 columns.
        assert 8 * vocabulary <= largest.numbers <= max(8 * vocabulary, 16 * vocabulary)
        assert largest.numbers < 4 * 64 * vocabulary / 8


def test_an_encoder_decoder_is_taught_too(tmp_path):
    torch.manual_seed(6)
    config = {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "num_heads": 2,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    }
    base = T5ForConditionalGeneration(T5Config(**config)).train()
    model, sources = moved(base, by=0.3), [row(9, 1), row(6, 2, replay=False), row(5, 3)]
    batch = collate(
        [each | {"labels": each["tokens"][2:]} for each in sources], pad=PAD, seq2seq=True
    )
    batch["decoder_input_ids"] = model._shift_right(batch["labels"])
    remedy = begun(model, tmp_path, base=base, layers=[-1], weight=0.5, temperature=2.0)
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    logits, taught = model(**given).logits, base.eval()(**given).logits
    where = batch["labels"] != IGNORED
    term = remedy.term(batch, where)
    replay = where & batch["replay"][:, None]
    wanted = 0.5 * 4 * full(logits[replay], taught[replay], 2.0)
    torch.testing.assert_close(term(logits[where], slice(0, int(where.sum()))), wanted)
    assert remedy.penalty(batch) > 0
    each = [
        collate([one | {"labels": one["tokens"][2:]}], pad=PAD, seq2seq=True) for one in sources
    ]
    cache = Distill(Settings(teacher="cache", top_k=VOCABULARY))
    cache.begin(
        Run(
            base,
            False,
            tmp_path,
            lambda: (one for one in each if one["replay"].any()),
            lambda: base,
        )
    )
    found = cache.term(batch, where)(logits[where], slice(0, int(where.sum())))
    torch.testing.assert_close(found, wanted, rtol=5e-3, atol=1e-3)


# --- the file -------------------------------------------------------------------------------------


def test_the_file_is_made_once_and_made_anew_for_another_temperature_other_rows_and_another_base(
    tmp_path,
):
    model, path = network(), tmp_path / "teacher.safetensors"

    def made_by(model, **settings):
        remedy = begun(model, tmp_path, teacher="cache", **{"top_k": 4} | settings)
        return path.stat().st_ino, remedy._teacher.places.keys()

    first, rows = made_by(model)
    assert made_by(copy.deepcopy(model)) == (first, rows)
    assert len(rows) == 2
    assert len(made_by(model, replay=ROWS[:1])[1]) == 1
    for settings in ({"temperature": 1.0}, {"top_k": 5}, {}):
        before = path.stat().st_ino
        assert made_by(model, **settings)[0] != before
    before = path.stat().st_ino
    assert made_by(moved(model))[0] != before
    assert [each.name for each in tmp_path.iterdir()] == ["teacher.safetensors"]


def test_the_file_needs_no_second_base_where_the_whole_model_is_trained_and_leaves_that_as_it_was(
    tmp_path,
):
    model, made = network(dropout=0.5), []
    for _ in range(2):
        remedy = Distill(Settings(teacher="cache"))
        remedy.begin(dataclasses.replace(run_of(model, tmp_path), load_base=None))
        assert all(each.training for each in model.modules())
        made.append(remedy._teacher.file.get_tensor("logs"))
        (tmp_path / "teacher.safetensors").unlink()
    assert torch.equal(*made)  # without dropout


def test_the_cached_probabilities_and_their_tail_make_one(tmp_path):
    remedy = begun(network(), tmp_path, teacher="cache", top_k=4, temperature=3.0)
    logs = remedy._teacher.file.get_tensor("logs")
    assert logs.dtype == torch.float16
    assert logs.shape == (9 + 4, 5)
    torch.testing.assert_close(logs.float().exp().sum(dim=-1), torch.ones(13), rtol=0, atol=2e-3)


def test_a_row_that_is_not_in_the_file_is_an_error(tmp_path):
    remedy = begun(network(), tmp_path, teacher="cache")
    batch = collate([row(8, 77)], pad=PAD)
    with pytest.raises(RunError, match="no probabilities for a row of the mixture; remove it"):
        remedy.term(batch, batch["labels"] != IGNORED)


def test_a_row_is_known_by_its_tokens_whatever_stands_beside_it():
    alone, beside, packed = (
        collate([ROWS[2]], pad=PAD),
        collate(ROWS, pad=PAD),
        collate(ROWS, pad=PAD, packing=True),
    )
    keys = [row_keys(batch, batch["labels"] != IGNORED) for batch in (alone, beside, packed)]
    assert keys[0] == [keys[1][2]] == [keys[2][2]]
    assert len({key for key, _ in keys[1]}) == 4


# --- hidden states --------------------------------------------------------------------------------


def penalty_of(remedy, model, batch):
    split_head(model).hidden(model, batch)
    return remedy.penalty(batch)


def test_hidden_states_are_compared_layer_normed_on_distilled_tokens(tmp_path):
    base = network()
    model, batch = moved(base), collate(ROWS, pad=PAD)
    remedy = begun(model, tmp_path, base=base, layers=[0, -1], layer_weight=0.5)
    found = penalty_of(remedy, model, batch)
    states = [
        each.model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states
        for each in (model, base.eval())
    ]
    replay = (batch["labels"] != IGNORED) & batch["replay"][:, None]
    first = [torch.nn.functional.layer_norm(each[1][replay], (16,)) for each in states]
    wanted = 0.5 * (first[0] - first[1]).square().mean(dim=-1).sum()
    only_first = begun(model, tmp_path, base=base, layers=[0], layer_weight=0.5)
    torch.testing.assert_close(penalty_of(only_first, model, batch), wanted)
    assert found > wanted


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_penalty_has_gradients_and_nothing_is_held_afterwards(checkpointing, tmp_path):
    model = under_adapter(network())
    if checkpointing:
        model.enable_input_require_grads()
        model.base_model.model.gradient_checkpointing_enable()
    remedy, batch = begun(model, tmp_path, layers=[1], weight=0.5), collate(ROWS, pad=PAD)
    seen, model = [], learned(model)
    model.base_model.model.model.layers[0].register_forward_pre_hook(
        lambda _, given: seen.append(torch.is_grad_enabled())
    )
    # Here split_head tries the model three times, without gradients.
    term = total(remedy, model, batch)
    (term + remedy.penalty(batch)).backward()
    remedy.backward_done(replay=False)
    assert seen.count(False) == 3 + 1  # one pass of the teacher for both
    names = {name for name, gradient in gradients(model).items() if gradient.abs().sum() > 0}
    assert any("layers.0" in name for name in names)
    assert remedy._last is None
    assert remedy._layers._found == {}
    assert remedy._layers._taught is None
    assert remedy.measures().keys() == {"kl", "layers"}
    assert remedy.measures() == {}


def test_hidden_states_are_not_held_while_the_remedy_is_off(tmp_path):
    model = network()
    remedy, batch = begun(model, tmp_path, layers=[0, 1]), collate(ROWS, pad=PAD)
    remedy.on = False
    split_head(model).hidden(model, batch)
    assert remedy._layers._found == {}
    remedy.on = True
    split_head(model).hidden(model, batch)
    assert remedy._layers._found.keys() == {0, 1}


def test_the_penalty_of_a_model_that_is_its_teacher_is_nothing(tmp_path):
    model = network()
    remedy = begun(model, tmp_path, layers=[0, 1, 2])
    assert penalty_of(remedy, model, collate(ROWS, pad=PAD)).item() == pytest.approx(0, abs=1e-9)
    assert penalty_of(remedy, model, collate([ROWS[1]], pad=PAD)) is None


def test_a_layer_that_is_not_there_is_a_recipe_error(tmp_path):
    with pytest.raises(
        RecipeError, match=r"distill.layers: there is no layer 3; the model has 3, from 0 on"
    ):
        begun(network(), tmp_path, layers=[3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rows": "all"}, "replay rows only"), ({"layers": [1]}, "no hidden states")],
)
def test_what_a_cache_does_not_have_is_refused_in_the_recipe(settings, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(None, {"train.remedies.distill": {"teacher": "cache"} | settings})
