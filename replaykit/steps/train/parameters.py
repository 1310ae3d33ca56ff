"""Which parameters learn, how fast, and when: adapters, freezing, stages, layer-wise rates, decay
by group.

    network = adapted(network, settings)          # under its adapter, where it has one
    groups = parameter_groups(network, settings)  # of the optimiser: one for each rate and decay
    factor = rate_factors(settings, steps=1000)   # step -> what each group's rate is multiplied by
    stages = Stages(network, settings, steps=1000, alone=True)   # staged unfreezing, one process

A parameter's depth is 0 for embeddings, 1 to L for layers and L + 1 for what stands behind them.
Layer-wise rates are bottom * (top / bottom) ** (l / L) for layer l = 0 ... L - 1, with embeddings
as the first layer and the head at the top (discriminative fine-tuning, Howard and Ruder, arXiv
1801.06146, section 3.2, with a geometric series between two ends). A head that shares the
embeddings' weights is one parameter with them, and has their depth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from replaykit.errors import MissingExtra, RecipeError, did_you_mean
from replaykit.model.lm_head import beneath
from replaykit.recipe.train import Train
from replaykit.steps.train.targets import without_adapter

# The first values of LoRA that PEFT makes of activations or gradients on rows. Without these it
# takes those of plain LoRA for the last two, and says nothing.
NEED_DATA = ("corda", "eva", "lora_ga")
NORMS_AND_BIASES = re.compile(r"(?:norm|ln_\w+)\b.*weight$|\.bias$", re.IGNORECASE)


def adapted(network: Any, settings: Train) -> Any:
    """The model with what shall not learn frozen, under an adapter on all its linear layers if the
    recipe says so.

    Raises RecipeError for an adapter that PEFT does not know or cannot make or that cannot be
    merged, for a name of no parameter, and where nothing is left to learn.
    """
    if settings.adapter:
        network = _under_adapter(network, settings)
    _check_names("freeze", settings.freeze, network)
    if isinstance(settings.weight_decay, dict):
        _check_names("weight_decay", settings.weight_decay, network)
    for name, parameter in network.named_parameters():
        if any(_means(word, name, network) for word in settings.freeze):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise RecipeError(
            "the recipe", [f"train.freeze: nothing is left to learn with {settings.freeze} frozen"]
        )
    return network


def _under_adapter(network: Any, settings: Train) -> Any:
    """Raises RecipeError, with PEFT's reason, for an adapter that cannot be put on this model."""
    import peft

    config = _peft_config(network, settings)
    where = "method" if settings.peft is None else "peft"
    try:
        return peft.get_peft_model(network, config)
    # PEFT reads the keys of some settings only here.
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        kind = settings.adapter_name
        raise RecipeError(
            "the recipe", [f"train.{where}: PEFT cannot put {kind} on this model: {_reason(error)}"]
        ) from error


def _reason(error: Exception) -> str:
    """An error in words: that of a missing key is the key alone."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error)


def _check_names(key: str, words: Iterable[str], network: Any) -> None:
    """Raises RecipeError for a word that means no parameter."""
    names = [name for name, _ in network.named_parameters()]
    for word in words:
        if not any(_means(word, name, network) for name in names):
            hint = did_you_mean(word, ["embeddings", "head"])
            raise RecipeError("the recipe", [f"train.{key}: no parameter is called {word}{hint}"])


def quantised(settings: Train) -> Any:
    """For qlora, how the base is loaded: 4 bits, NF4, double quantisation (Dettmers et al., arXiv
    2305.14314); else None.

    Raises MissingExtra without bitsandbytes.
    """
    if settings.method != "qlora":
        return None
    if find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "qlora")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _peft_config(network: Any, settings: Train) -> Any:
    import peft

    task = "SEQ_2_SEQ_LM" if network.config.is_encoder_decoder else "CAUSAL_LM"
    if network.get_output_embeddings() is None:
        task = "SEQ_CLS"  # its head is trained whole, beside the adapter
    if settings.peft is None:
        lora = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules="all-linear",
            task_type=task,
            use_dora=settings.method == "dora",
        )
        lora.exclude_modules = without_adapter(network, lora) or None
        return lora
    # Any configuration of PEFT, by its name and with its own keys.
    options = dict(settings.peft)
    name = str(options.pop("peft_type")).upper()
    known = [kind.value for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING]
    if name not in known:
        raise RecipeError(
            "the recipe", [f"train.peft.peft_type: PEFT has no {name}{did_you_mean(name, known)}"]
        )
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name)]
    try:
        config = kind(**{"task_type": task} | options)
    except (TypeError, ValueError) as error:
        raise RecipeError("the recipe", [f"train.peft: {error}"]) from error
    if config.is_prompt_learning:
        todo = (
            "it learns a prompt, which cannot be merged into the model; choose another kind, "
            "such as LORA, IA3 or LOHA"
        )
        raise RecipeError("the recipe", [f"train.peft.peft_type: {name}: {todo}"])
    initial = getattr(config, "init_lora_weights", None)
    if initial in NEED_DATA:
        todo = (
            f"{initial} is computed from rows before training, which replaykit does not do; say "
            f"pissa, olora, orthogonal or gaussian, or leave it out"
        )
        raise RecipeError("the recipe", [f"train.peft.init_lora_weights: {todo}"])
    return config


# --- depth ----------------------------------------------------------------------------------------


def depths(network: Any) -> tuple[dict[str, int], int]:
    """The depth of each parameter by name, and L, the number of layers; of an encoder-decoder, of
    both stacks together.

    Layers beside those of the language model, such as those that see images, have the depth of
    embeddings.
    """
    base = beneath(network)
    language = base if base.config.is_encoder_decoder else base.get_decoder()
    of_language = {id(module) for module in language.modules()}
    lists = _outer_lists(network)
    stacks = [(name, len(layers)) for name, layers in lists if id(layers) in of_language]
    beside = tuple(f"{name}." for name, layers in lists if id(layers) not in of_language)
    count = sum(size for _, size in stacks)
    embeddings = {
        id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)
    }
    found: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        # Layers of the stacks before this one: a decoder's come after its encoder's.
        before = 0
        for stack, size in stacks:
            if name.startswith(f"{stack}."):
                layer = int(name[len(stack) + 1 :].split(".")[0])
                found[name] = before + layer + 1
            before += size
        # Outside of all layers: before the first, or behind the last.
        first = id(parameter) in embeddings or "embed" in name or name.startswith(beside)
        found.setdefault(name, 0 if first else count + 1)
    return found, count


def _outer_lists(network: Any) -> list[tuple[str, nn.ModuleList]]:
    """The lists of modules that hold parameters, by name: the stacks of layers. A list within
    another, such as one of experts, is a part of a layer.
    """
    lists = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 1
        and any(True for _ in module.parameters())
    ]
    names = [f"{name}." for name, _ in lists]
    return [
        (name, module)
        for name, module in lists
        if not any(name.startswith(outer) for outer in names)
    ]


def tied(network: Any) -> bool:
    """Whether the head shares its weights with the embeddings."""
    base = beneath(network)
    head = base.get_output_embeddings()
    embeddings = base.get_input_embeddings()
    if head is None or embeddings is None:
        return False
    return getattr(head, "weight", None) is getattr(embeddings, "weight", embeddings)


def tied_note(network: Any, settings: Train) -> str:
    """What the settings mean for a head that shares the embeddings' weights; "" for others, and
    where they say nothing of it.
    """
    said = []
    if settings.layer_rates is not None:
        said.append("at the rate of these, train.layer_rates.bottom")
    if any(stage.layers < 1 for stage in settings.stages):
        said.append("only in the stages of train.stages that have layers: 1")
    if not said or not tied(network):
        return ""
    told = " and ".join(said)
    return f"the model's head shares its weights with the embeddings, so it learns {told}"


def _means(word: str, parameter: str, network: Any) -> bool:
    """Whether a word of ``freeze`` or of ``weight_decay`` means the parameter: "embeddings",
    "head", or a part of its name.
    """
    base = beneath(network)
    if word == "embeddings":
        module = base.get_input_embeddings()
    elif word == "head":
        module = base.get_output_embeddings()
        if module is None:
            return _is_beside_encoder(parameter, network)
    else:
        return word in parameter
    if module is None:
        return False
    # By identity, since a head may share its weight with the embeddings under one name.
    own = {id(given) for given in module.parameters()}
    return any(id(given) in own for name, given in network.named_parameters() if name == parameter)


def _is_beside_encoder(parameter: str, network: Any) -> bool:
    """Whether a parameter is of a text classifier's head: beside the encoder or the decoder."""
    base = beneath(network)
    inside = {id(given) for given in base.base_model.parameters()}
    given = dict(network.named_parameters())[parameter]
    return id(given) not in inside


# --- rates ----------------------------------------------------------------------------------------


def parameter_groups(network: Any, settings: Train) -> list[dict[str, Any]]:
    """The optimiser's groups: parameters of the same rate and weight decay.

    Biases and the weights of norms are not decayed, as in transformers. Frozen parameters are in no
    group, but for those that a later stage will train.
    """
    places, layers = depths(network)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            key = (_rate(places[name], layers, settings), _decay(name, network, settings))
            group = groups.setdefault(key, {"params": [], "lr": key[0], "weight_decay": key[1]})
            group["params"].append(parameter)
    return list(groups.values())


def _rate(depth: int, layers: int, settings: Train) -> float:
    rates = settings.layer_rates
    if rates is None:
        return settings.highest_learning_rate
    return float(rates.bottom * (rates.top / rates.bottom) ** (max(0, depth - 1) / max(1, layers)))


def _decay(name: str, network: Any, settings: Train) -> float:
    if NORMS_AND_BIASES.search(name):
        return 0.0
    if not isinstance(settings.weight_decay, dict):
        return settings.weight_decay
    for word, decay in settings.weight_decay.items():
        if _means(word, name, network):
            return decay
    return 0.0


def rate_factors(settings: Train, steps: int) -> Callable[[int], float]:
    """What every group's learning rate is multiplied by at a step, from 0: warm-up, then the
    schedule down to ``min_rate``.

    f + (1 - f) * (1 + cos(pi t / T)) / 2 for cosine, f being the floor, so each group ends at its
    own rate times f (Loshchilov and Hutter, arXiv 1608.03983, eq. 5). Each stage has a schedule of
    its own, from its own learning rate.
    """
    bounds = stage_bounds(settings, steps)
    rates = [stage.learning_rate for stage in settings.stages] or [None]

    def factor(step: int) -> float:
        number = stage_at(bounds, step)
        first = bounds[number]
        last = bounds[number + 1]
        own = rates[number]
        scale = 1.0 if own is None else own / settings.highest_learning_rate
        # Each stage has a warm-up of its own, as it has a schedule.
        warmup = round(settings.warmup * (last - first))
        if step - first < warmup:
            return scale * (step - first) / warmup
        done = (step - first - warmup) / max(1, last - first - warmup)
        shape = {
            "cosine": (1 + math.cos(math.pi * min(1.0, done))) / 2,
            "linear": 1 - done,
            "constant": 1.0,
        }
        part = max(0.0, shape[settings.schedule])
        return scale * (settings.min_rate + (1 - settings.min_rate) * part)

    return factor


# --- stages ---------------------------------------------------------------------------------------


def stage_bounds(settings: Train, steps: int) -> list[int]:
    """The first step of every stage, and the end of the last; one stage where the recipe has
    none.
    """
    parts = [stage.part for stage in settings.stages] or [1.0]
    return [round(sum(parts[:k]) * steps) for k in range(len(parts))] + [steps]


def stage_at(bounds: Sequence[int], step: int) -> int:
    """The stage of a step, both counted from 0; the last one for the end itself."""
    return max(number for number, start in enumerate(bounds[:-1]) if step >= start)


class Stages:
    """Staged unfreezing (gradual unfreezing, Howard and Ruder, arXiv 1801.06146, section 3.3): at
    each stage the last part of the layers learns, with what stands behind them.

    A frozen parameter gets no gradient, so the optimiser leaves it and its moments alone. In one
    process no gradient is computed for it either; in several, where the wrapper wants one for each,
    it is thrown away.
    """

    def __init__(self, network: Any, settings: Train, *, steps: int, alone: bool):
        self._bounds = stage_bounds(settings, steps)
        self._alone = alone
        places, layers = depths(network)
        own = {
            name: parameter
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        self._all = list(own.values())
        # By stage; none without stages.
        self._frozen: list[list[nn.Parameter]] = []
        for stage in settings.stages:
            first = layers - max(1, round(stage.layers * layers)) + 1
            if stage.layers == 1:
                # Everything: embeddings learn, too.
                first = 0
            frozen = [parameter for name, parameter in own.items() if places[name] < first]
            self._frozen.append(frozen)

    def begin(self, step: int) -> None:
        """Before the forward pass of a step."""
        if self._alone and self._frozen:
            frozen = {id(parameter) for parameter in self._now(step)}
            for parameter in self._all:
                parameter.requires_grad_(id(parameter) not in frozen)

    def gradients(self, step: int) -> None:
        """After the last backward pass of a step."""
        for parameter in self._now(step):
            parameter.grad = None

    def _now(self, step: int) -> Sequence[nn.Parameter]:
        """What is frozen in a step."""
        return self._frozen[stage_at(self._bounds, step)] if self._frozen else ()
