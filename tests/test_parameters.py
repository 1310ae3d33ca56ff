"""Which parameters learn, how fast and when."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from replaykit.errors import MissingExtra, RecipeError
from replaykit.model import loading
from replaykit.recipe import load_recipe
from replaykit.recipe.train import Train
from replaykit.steps.train import parameters
from replaykit.steps.train.parameters import (
    Stages,
    adapted,
    depths,
    parameter_groups,
    quantised,
    rate_factors,
    tied_note,
)


@pytest.fixture
def nano() -> Any:
    return loading.load_model("nano", train=True)


def test_depth_grows_from_the_embeddings_to_the_head(nano: Any) -> None:
    places, layers = depths(nano)
    assert layers == nano.config.num_hidden_layers == 4
    assert places["model.embed_tokens.weight"] == 0
    assert places["model.layers.0.mlp.up_proj.weight"] == 1
    assert places["model.layers.3.mlp.up_proj.weight"] == 4
    assert places["model.norm.weight"] == 5


def test_the_depths_of_an_encoder_decoder_run_through_both_stacks() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    places, layers = depths(
        T5ForConditionalGeneration(
            T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
        )
    )
    assert layers == 4
    assert places["encoder.block.1.layer.0.SelfAttention.q.weight"] == 2
    assert places["decoder.block.0.layer.0.SelfAttention.q.weight"] == 3
    assert places["shared.weight"] == 0


def test_rates_are_geometric_from_the_first_layer_to_the_head(nano: Any) -> None:
    settings = Train.model_validate({"layer_rates": {"bottom": 1e-5, "top": 5e-4}})
    rates = {group["lr"] for group in parameter_groups(nano, settings)}
    assert sorted(rates) == pytest.approx([1e-5 * 50 ** (k / 4) for k in range(5)])
    of = {id(p): group["lr"] for group in parameter_groups(nano, settings) for p in group["params"]}
    assert (
        of[id(nano.model.embed_tokens.weight)]
        == of[id(nano.model.layers[0].mlp.up_proj.weight)]
        == 1e-5
    )
    assert of[id(nano.model.norm.weight)] == pytest.approx(5e-4)


def network(kind: str, *, tied: bool) -> Any:
    """A tiny model whose head has weights of its own, or those of its embeddings."""
    import transformers

    sizes = {"vocab_size": 40, "tie_word_embeddings": tied}
    if kind == "llama":
        config: Any = transformers.LlamaConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            **sizes,
        )
    elif kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=4, n_head=2, **sizes)
    else:
        config = transformers.T5Config(
            d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, **sizes
        )
        return transformers.T5ForConditionalGeneration(config)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("kind", "tied"),
    [("llama", True), ("llama", False), ("gpt2", True), ("gpt2", False), ("t5", True)],
)
def test_a_head_learns_with_the_top_and_one_of_the_embeddings_weights_with_these(
    kind: str, tied: bool
) -> None:
    model = network(kind, tied=tied)
    head = model.get_output_embeddings().weight
    embeddings = model.get_input_embeddings().weight
    assert (head is embeddings) == tied

    rates = Train.model_validate({"layer_rates": {"bottom": 1e-5, "top": 5e-4}})
    of = {id(p): group["lr"] for group in parameter_groups(model, rates) for p in group["params"]}
    assert of[id(embeddings)] == pytest.approx(1e-5)
    assert of[id(head)] == pytest.approx(1e-5 if tied else 5e-4)

    staged = Train.model_validate({"stages": [{"layers": 0.25, "part": 0.5}, {"part": 0.5}]})
    stages = Stages(model, staged, steps=10, alone=True)
    stages.begin(0)
    assert head.requires_grad == (not tied)
    stages.begin(5)
    assert head.requires_grad

    shares = "the model's head shares its weights with the embeddings, so it learns"
    said = {
        f"{shares} at the rate of these, train.layer_rates.bottom": rates,
        f"{shares} only in the stages of train.stages that have layers: 1": staged,
        "": Train.model_validate({"stages": [{"part": 1.0}]}),
    }
    for words, settings in said.items():
        assert tied_note(model, settings) == (words if tied else "")


def test_norms_and_biases_do_not_decay_and_parts_of_names_decay_by_themselves(nano: Any) -> None:
    settings = Train.model_validate({"weight_decay": {"mlp": 0.1, "embeddings": 0.5}})
    of = {
        id(p): group["weight_decay"]
        for group in parameter_groups(nano, settings)
        for p in group["params"]
    }
    layer = nano.model.layers[0]
    assert of[id(layer.mlp.up_proj.weight)] == 0.1
    assert of[id(nano.model.embed_tokens.weight)] == 0.5
    assert of[id(layer.self_attn.q_proj.weight)] == of[id(layer.input_layernorm.weight)] == 0.0
    assert len(of) == sum(1 for _ in nano.parameters())


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_ends_at_the_floor_of_each_group(floor: float) -> None:
    factor = rate_factors(Train(min_rate=floor, warmup=0.1), steps=100)
    assert factor(0) == 0
    assert factor(10) == 1
    assert factor(55) == pytest.approx(floor + (1 - floor) * 0.5)
    assert factor(100) == pytest.approx(floor)


def test_without_a_floor_the_schedules_are_those_of_transformers() -> None:
    from transformers import get_scheduler

    for kind in ("cosine", "linear"):
        optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = get_scheduler(kind, optimiser, num_warmup_steps=3, num_training_steps=50)
        factor = rate_factors(Train(schedule=kind, warmup=0.06), steps=50)
        for step in range(50):
            assert factor(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
            optimiser.step()
            theirs.step()


def test_each_stage_has_its_own_rate_and_schedule() -> None:
    stages = [
        {"layers": 0.5, "part": 0.4, "learning_rate": 1e-3},
        {"part": 0.6, "learning_rate": 1e-4},
    ]
    factor = rate_factors(
        Train.model_validate({"stages": stages, "learning_rate": 1e-3, "warmup": 0.0}), steps=100
    )
    assert factor(0) == 1
    assert factor(39) < 0.01
    assert factor(40) == pytest.approx(0.1)
    assert factor(70) == pytest.approx(0.1 * (1 + math.cos(math.pi / 2)) / 2)


def test_in_a_stage_only_the_last_layers_learn(nano: Any) -> None:
    settings = Train.model_validate({"stages": [{"layers": 0.25, "part": 0.5}, {"part": 0.5}]})
    stages = Stages(nano, settings, steps=10, alone=True)
    stages.begin(0)
    learning = {name for name, parameter in nano.named_parameters() if parameter.requires_grad}
    assert learning == {
        name
        for name, _ in nano.named_parameters()
        if "layers.3." in name or name == "model.norm.weight"
    }
    stages.begin(5)
    assert all(parameter.requires_grad for parameter in nano.parameters())


def test_in_several_processes_the_gradients_of_a_frozen_stage_are_thrown_away(nano: Any) -> None:
    settings = Train.model_validate({"stages": [{"layers": 0.5, "part": 0.5}, {"part": 0.5}]})
    stages = Stages(nano, settings, steps=10, alone=False)
    stages.begin(0)
    for parameter in nano.parameters():
        parameter.grad = torch.ones_like(parameter)
    stages.gradients(0)
    kept = {name for name, parameter in nano.named_parameters() if parameter.grad is not None}
    assert kept and all(
        "layers.2." in name or "layers.3." in name or name == "model.norm.weight" for name in kept
    )


def test_what_is_frozen_does_not_learn_and_something_must(nano: Any) -> None:
    frozen = adapted(nano, Train(freeze=["embeddings", "layers.0."]))
    names = {name for name, parameter in frozen.named_parameters() if not parameter.requires_grad}
    assert "model.embed_tokens.weight" in names
    assert all("layers.0." in name or name == "model.embed_tokens.weight" for name in names)
    with pytest.raises(RecipeError, match="nothing is left to learn"):
        adapted(nano, Train(freeze=["model"]))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"method": "lora"}, "lora_A"),
        ({"method": "dora"}, "lora_magnitude_vector"),
        (
            {"peft": {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}},
            "ia3",
        ),
        ({"peft": {"peft_type": "loha", "target_modules": ["q_proj"]}}, "hada"),
    ],
    ids=str,
)
def test_adapters_are_those_of_peft_by_name(nano: Any, options: dict[str, Any], found: str) -> None:
    model = adapted(nano, Train.model_validate(options))
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learning
    assert any(found in name for name in learning)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"init_lora_weights": "corda", "corda_config": {"corda_method": "kpm"}},
            "train.peft.init_lora_weights: corda is computed from rows before training",
        ),
        ({"init_lora_weights": "corda"}, "corda is computed from rows"),
        ({"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}, "eva is computed from rows"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga is computed from rows"),
        (
            {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
            "train.peft: PEFT cannot put LORA on this model: 'loftq_iter' is missing",
        ),
        (
            {"init_lora_weights": "orthogonal", "r": 3},
            "train.peft: PEFT cannot put LORA on this model: Orthogonal initialization requires",
        ),
        ({"target_modules": ["nope"]}, "PEFT cannot put LORA on this model: Target modules"),
        ({"peft_type": "VBLORA"}, "PEFT cannot put VBLORA on this model: `in_features` 192 must"),
    ],
    ids=str,
)
def test_an_adapter_that_cannot_be_put_on_the_model_is_told_in_words(
    options: dict[str, Any], said: str, nano: Any
) -> None:
    chosen = {"peft_type": "LORA", "target_modules": "all-linear"} | options
    with pytest.raises(RecipeError) as raised:
        adapted(nano, Train.model_validate({"peft": chosen}))
    assert said in str(raised.value)


@pytest.mark.parametrize("initial", ["pissa", "olora", "orthogonal", "gaussian"])
def test_what_is_said_instead_of_data_driven_first_values_can_be_had(
    initial: str, nano: Any
) -> None:
    chosen = {"peft_type": "LORA", "init_lora_weights": initial, "target_modules": ["q_proj"]}
    model = adapted(nano, Train.model_validate({"peft": chosen}))
    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_an_adapter_that_peft_does_not_know_is_named(nano: Any) -> None:
    with pytest.raises(RecipeError, match=r"PEFT has no LORRA; did you mean 'LORA'"):
        adapted(nano, Train.model_validate({"peft": {"peft_type": "lorra"}}))
    with pytest.raises(RecipeError, match=r"train\.peft: .*rnk"):
        adapted(nano, Train.model_validate({"peft": {"peft_type": "lora", "rnk": 3}}))


def test_a_name_of_no_parameter_is_an_error(nano: Any) -> None:
    for settings, key in (
        (Train(freeze=["embedings"]), "freeze"),
        (Train(weight_decay={"atention": 0.1}), "weight_decay"),
    ):
        with pytest.raises(RecipeError, match=rf"train\.{key}: no parameter is called"):
            adapted(nano, settings)


def test_a_learned_prompt_is_refused(nano: Any) -> None:
    settings = Train(peft={"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4})
    with pytest.raises(
        RecipeError, match="PREFIX_TUNING: it learns a prompt, which cannot be merged"
    ):
        adapted(nano, settings)


def test_layers_that_see_images_are_no_layers_of_the_language_model() -> None:
    config = Gemma3Config(
        text_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
                     "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 32},
        vision_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
                       "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )  # fmt: skip
    places, layers = depths(Gemma3ForConditionalGeneration(config))
    assert layers == 4
    assert {places[name] for name in places if "language_model.layers.0." in name} == {1}
    assert {places[name] for name in places if "vision_tower" in name and ".layers." in name} == {0}


def test_qlora_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantised(Train()) is None
    monkeypatch.setattr(parameters, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="bitsandbytes"):
        quantised(Train(method="qlora"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.remedies.distill": {"teacher": "adapter-off"}}, "no adapter to switch off"),
        ({"train.method": "lora", "train.remedies.ewc": {"hard": 0.1}}, "remedies.ewc.hard"),
        ({"train.method": "dora", "train.remedies.ewc": {}}, "not dora"),
        ({"train.remedies.ewc": {"strength": 0.3, "auto": 0.1}}, "auto stands instead of strength"),
        ({"train.remedies": {"dft": True, "eaft": {}}}, "choose one"),
        ({"train.remedies": {"stm": {}, "flow": {}}}, "choose one"),
        ({"train.remedies": {"stm": {"which": "random"}}}, "share: random needs"),
        ({"train.stages": [{"part": 0.5}]}, "make 1 together"),
        ({"train.method": "lora", "train.stages": [{"part": 1.0}]}, "stages are for method: full"),
        ({"train.layer_rates": {}, "train.learning_rate": 1e-4}, "leave one out"),
        ({"train.controller": {"remedy": "ewc"}}, "not among train.remedies"),
    ],
    ids=str,
)
def test_what_cannot_combine_is_said_before_anything_is_loaded(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(None, changes)
