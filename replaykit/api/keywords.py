"""The keywords of the functions, as an editor and a type checker see them.

A function of the API takes the keys of a section of the recipe; what each means stands there. A
test holds both together. Nested sections are their class, or a mapping that makes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from replaykit.recipe.augment import BackTranslation, Counterfactual
from replaykit.recipe.chat import ChatOptions
from replaykit.recipe.classification import Classification, Task
from replaykit.recipe.controller import ControllerSettings
from replaykit.recipe.engine import EngineName, EngineOptions
from replaykit.recipe.evaluate import Judge
from replaykit.recipe.generate import Checks, Phase, Verify
from replaykit.recipe.mix import Schedule
from replaykit.recipe.remedies import Remedies
from replaykit.recipe.rewrite import Editor, Method, Verifier
from replaykit.recipe.rewrite import Verify as RewriteVerify
from replaykit.recipe.select import Quality
from replaykit.recipe.train import LayerRates, Stage

Section = Mapping[str, object]


class SelectOptions(TypedDict, total=False):
    """Section ``select`` of the recipe, without its pool."""

    n: int
    method: Literal[
        "tfidf",
        "bm25",
        "embedding",
        "random",
        "stratified",
        "near-and-far",
        "mmr",
        "k-centre",
        "herding",
    ]
    to: Literal["nearest", "centroid"]
    analyzer: Literal["auto", "word", "char"]
    ngrams: list[int] | None
    sublinear: bool
    min_df: int
    max_df: float
    model: str | None
    column: str | None
    shares: Literal["equal", "proportional"]
    per_target: int | None
    answers_per_question: int | None
    near: float
    balance: float
    candidates: int
    near_duplicate: float | None
    overlap: bool
    against: list[str]
    quality: Quality | Section
    strict: bool
    processes: int | None
    engine: Literal["local", "ray"]


class ModelOptions(TypedDict, total=False):
    """Which commit of the model, what it does, how its chat template is used, what runs it."""

    revision: str | None
    task: Task
    classification: Classification | Section
    chat: ChatOptions | Section
    engine: EngineName | EngineOptions | Section


class GenerateOptions(ModelOptions, total=False):
    """Section ``generate`` of the recipe, without what the function has itself, and the model's
    options.
    """

    turns: int
    answers: int
    systems: dict[str, float] | None
    keep_system: bool
    thinking: bool | float | None
    tools: str | None
    temperature: float | Literal["model"]
    top_p: float
    schedule: Literal["magpie-air", "magpie-pro"] | list[Phase | Section] | None
    max_question_tokens: int
    answer_temperature: float | Literal["model"]
    answer_top_p: float
    max_answer_tokens: int
    min_yield: float
    checks: Checks | Section
    verify: Verify | None


class RepairOptions(ModelOptions, total=False):
    """Section ``repair`` of the recipe, and the model's options."""

    rows: int
    steps: int
    every: int | None
    batch_rows: int
    rehearse: float | None
    method: Literal["auto", "full", "lora"]
    learning_rate: float | None
    draw_tokens: int


class RewriteOptions(ModelOptions, total=False):
    """Section ``rewrite`` of the recipe, and the model's options."""

    method: Method
    verify: Verifier | RewriteVerify | Section
    samples: int
    temperature: float
    top_p: float
    max_edit: float
    retries: int
    editor: str | Editor | Section | None
    judge: Judge | Section | None
    pilot: int
    max_tokens: int


class AugmentOptions(ModelOptions, total=False):
    """Section ``augment`` of the recipe, and the model's options."""

    back_translation: BackTranslation | Section | None
    counterfactual: Counterfactual | Section | None
    verify: Literal["exact", "numeric"]
    part: float
    max_tokens: int


class DescribeOptions(ModelOptions, total=False):
    """Section ``describe`` of the recipe, without what the function has itself, and the model's
    options.
    """

    instructions: list[str]
    missing: Literal["refuse", "leave-out", "unknown"]
    column: str
    temperature: float
    max_tokens: int


class MixOptions(ModelOptions, total=False):
    """Section ``mix`` of the recipe, what of ``train`` decides which rows come, and the model's
    options.
    """

    ratio: float
    unit: Literal["rows", "tokens", "loss_tokens"]
    budget: Literal["add", "replace"]
    sources: Sequence[str] | Mapping[str, float] | None
    schedule: Schedule | Section | None
    skill: str
    min_rows: dict[str, int]
    max_rows: dict[str, int]
    near_duplicate: float | None
    overlap: bool
    against: list[str]
    epochs: int
    steps: int | None
    batch_rows: int
    max_tokens: int


class TrainOptions(ModelOptions, total=False):
    """Section ``train`` of the recipe, without what the mixture has decided, and the model's
    options.
    """

    method: Literal["full", "lora", "dora", "qlora"]
    peft: Section | None
    micro_batch_rows: int | None
    packing: bool
    learning_rate: float | None
    layer_rates: LayerRates | Section | None
    min_rate: float
    stages: list[Stage | Section]
    freeze: list[str]
    schedule: Literal["cosine", "linear", "constant"]
    warmup: float
    weight_decay: float | dict[str, float]
    max_grad_norm: float
    rank: int
    alpha: int
    gradient_checkpointing: bool
    precision: Literal["auto", "float32", "bfloat16"]
    weights: Literal["float32", "bfloat16"]
    optimiser: Literal["adamw", "adamw_8bit"]
    fsdp: bool
    offload: bool
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]]
    save_every: int
    log_every: int
    remedies: Remedies | Section
    conflict: bool | None
    controller: ControllerSettings | Section | None
