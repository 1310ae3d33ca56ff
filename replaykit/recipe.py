"""The recipe: what one run is, as strict models of one YAML file. All defaults and all messages about settings live here.

    name: my-task
    model: llama3
    target: {path: my_task.jsonl}
    generate: {n: 2000}
    mix: {ratio: 0.05}

A section bears the name of the step that reads it. Paths are relative to the working directory. An unknown key, a wrong
type or a value out of range is an error, and all errors of a file are shown together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from replaykit.errors import RecipeError, did_you_mean

RECIPE_FILE = "replaykit.yaml"
SHORT = {"target": "path", "pool": "path", "prompts": "path", "engine": "name"}  # what a bare word in a section means
BRANCH = re.compile(r"constrained-|literal\[|list\[")  # pydantic's names for the kinds that a value may be of
EXPONENT = re.compile(r"(\d+(?:\.\d*)?)[eE]([+-]?)(\d+)")  # a number only with a point and a sign, in YAML 1.1


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Prompts(Strict):
    """Questions of a file, a folder or a Hub data set. A bare path in the recipe means ``{path: ...}``."""

    path: str
    prompt: str | None = None  # the column, where it has an unusual name
    split: str = "train"  # of a Hub data set
    skip: NonNegativeInt = 0  # rows passed over first, so that one file can serve as pool and as held-out rows
    n: PositiveInt | None = None  # at most so many rows then; all by default


class Data(Prompts):
    """Questions with their answers."""

    answer: str | None = None  # the column, given together with that of the prompt

    @model_validator(mode="after")
    def _columns_together(self) -> Data:
        if (self.prompt is None) is not (self.answer is None):
            raise ValueError("prompt and answer are given together: the names of the two columns")
        return self


class Test(Data):
    """Held-out rows and how an answer to them is scored."""

    score: Literal["exact", "numeric", "json", "cross_entropy"] = "exact"
    max_tokens: PositiveInt = 256  # of an answer


def _from_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"'{name}' names a folder: letters, digits, '.', '_' and '-' only")
    return name


def _arm_name(name: str) -> str:
    if name == "base":
        raise ValueError("that name is the untrained model's; call the arm otherwise")
    return _folder_name(name)


FolderName = Annotated[str, AfterValidator(_folder_name)]
ArmName = Annotated[str, AfterValidator(_arm_name)]
DataOrPath = Annotated[Data, BeforeValidator(_from_path)]
PromptsOrPath = Annotated[Prompts, BeforeValidator(_from_path)]
Share = Annotated[float, Field(gt=0, le=1)]
Range = Annotated[list[NonNegativeFloat], Field(min_length=2, max_length=2)]
TestOrPath = Annotated[Test, BeforeValidator(_from_path)]
Replay = Literal["select", "generate"]


def _equal_weights(value: Any) -> Any:
    return dict.fromkeys(value, 1.0) if isinstance(value, list) else value


def _in_order(bounds: list[int]) -> list[int]:
    if bounds[0] > bounds[1]:
        raise ValueError("the least comes first, then the most")
    return bounds


Lengths = Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2), AfterValidator(_in_order)]
DocumentRule = Literal[
    "gopher_word_length", "gopher_hashes", "gopher_ellipses", "gopher_bullets", "gopher_ellipsis_lines",
    "gopher_few_letters", "gopher_stop_words", "gopher_duplicate_lines", "gopher_duplicate_paragraphs",
    "gopher_top_ngrams", "gopher_duplicate_ngrams", "c4_sentences", "c4_curly_bracket",
]  # fmt: skip


class Quality(Strict):
    """Which old rows are good enough to choose from. A rule that is off is null, false, or not in the list."""

    empty: bool = True  # an answer or a prompt of spaces; the special token that ends an answer is nothing either
    placeholders: bool = True  # "N/A", "TODO", "[insert answer]", "..."
    broken: bool = True  # letters that a wrong encoding spoilt: any in an answer, many in a prompt
    max_markup: Share | None = 0.3  # of an answer's characters in HTML tags and entities that nobody asked for
    max_repeat: Share | None = 0.5  # of an answer's 20-character windows, seen before in the same answer
    documents: list[DocumentRule] = Field(default=[])  # rules of Gopher and C4 for long answers
    document_words: PositiveInt = 50  # from which on an answer is a document
    prompt_chars: Lengths | None = None  # least and most
    prompt_words: Lengths | None = None
    answer_chars: Lengths | None = None
    answer_words: Lengths | None = None
    languages: list[str] | None = None  # ISO 639-1 codes of the languages to keep, such as [en, zh]


SCORED = ("tfidf", "bm25", "embedding", "near-and-far", "mmr")  # methods of selection that compare with the target


class Select(Strict):
    """Old records for a new task: by default those whose prompts are nearest to the target's prompts by TF-IDF."""

    pool: DataOrPath
    n: PositiveInt = 2000
    method: Literal[
        "tfidf", "bm25", "embedding", "random", "stratified", "near-and-far", "mmr", "k-centre", "herding"
    ] = "tfidf"  # fmt: skip
    to: Literal["nearest", "centroid"] = "nearest"  # of the target, for tfidf and bm25
    analyzer: Literal["auto", "word", "char"] = "auto"  # auto takes characters where the target has no spaces
    ngrams: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = (
        None  # [1, 1], of characters [2, 4]
    )
    sublinear: bool = True  # 1 + ln tf for tf
    min_df: PositiveInt = 1  # rows that a term must stand in
    max_df: Share = 1.0  # of the rows that a term may stand in
    model: str | None = None  # for embedding: a sentence-transformers or model2vec model
    column: str | None = None  # for stratified: the column of the pool that names a row's stratum
    shares: Literal["equal", "proportional"] = "proportional"  # of the strata
    near: float = Field(default=0.5, ge=0, le=1)  # for near-and-far: the part that is nearest
    balance: float = Field(default=0.5, ge=0, le=1)  # for mmr: 1 is near the target, 0 unlike one another
    candidates: PositiveInt = 10  # for mmr, k-centre and herding: times n, the rows that they choose from
    near_duplicate: Share | None = 0.9  # Jaccard similarity of 5-character shingles from which on a row is a repetition
    keep: Literal["first", "best"] = "first"  # of near duplicates: the earlier one, or the one nearer to the target
    overlap: bool = True  # leave out rows that hold a prompt of eval
    against: list[str] = []  # further evaluation sets that no row may hold: files, or lm_eval:TASK
    quality: Quality = Quality()
    strict: bool = False  # a row that cannot be read is an error instead of being counted as unparsed
    processes: PositiveInt | None = None  # one for each CPU by default
    engine: Literal["local", "ray"] = "local"  # ray: terms are counted and compared on all machines of a cluster

    @model_validator(mode="after")
    def _what_the_method_needs(self) -> Select:
        if self.method == "embedding" and self.model is None:
            raise ValueError("model: embedding needs one, a folder or Hub id of sentence-transformers or model2vec")
        if self.method == "stratified" and self.column is None:
            raise ValueError("column: stratified needs the column that names a row's stratum")
        return self


class Checks(Strict):
    """Which questions are worth an answer, and which rows are kept. A check that is off is null or false."""

    min_chars: NonNegativeInt = 3  # of a question
    max_repeat: Share | None = 0.5  # of a text's 20-character windows, seen before in the same text
    near_duplicate: Share | None = 0.9  # Jaccard similarity of 5-character shingles with an earlier question
    leaks: bool = True  # role headers and special tokens written out as text
    overlap: bool = True  # with the prompts of eval
    secrets: bool = True  # keys, tokens, card numbers
    personal: bool = False  # mail addresses, telephone numbers
    refusals: bool = False  # to refuse is an old skill too, so they stay unless this is true
    languages: list[str] | None = None  # ISO 639-1 codes of the languages to keep, such as [en, zh]
    perplexity: Range | None = None  # of an answer under the model, least and most
    question_perplexity: Range | None = None


class Phase(Strict):
    """A part of the rows of a schedule, drawn at its own temperature and top-p."""

    temperature: PositiveFloat
    top_p: float = Field(default=1.0, gt=0, le=1)
    weight: PositiveFloat = 1.0


class Tags(Strict):
    """What a judge says of each kept row; it is written into the row and drops none."""

    judge: str | None = None  # a model; by default the model itself
    reward: str | None = None  # a sequence-classification model with one output


ROWS = 2000  # to generate, where neither n nor prompts are given


class Generate(Strict):
    """The model's own questions and answers (Magpie)."""

    n: PositiveInt | None = None  # records to keep, after the checks; 2000, or an answer to each of the prompts
    turns: PositiveInt = 1  # questions of one conversation
    answers: PositiveInt = 1  # to each question
    prompts: PromptsOrPath | None = None  # the questions, where the model shall not write them
    systems: dict[str, PositiveFloat] | None = None  # system prompts, or names of presets, with their weights
    keep_system: bool = False  # leave the system prompt in the record, and answer under it
    temperature: PositiveFloat | Literal["model"] = 1.0  # of questions; "model": as its generation_config says
    top_p: float = Field(default=1.0, gt=0, le=1)
    schedule: Literal["magpie-air", "magpie-pro"] | list[Phase] | None = None  # instead of one temperature
    max_question_tokens: PositiveInt = 512
    answer_temperature: NonNegativeFloat | Literal["model"] = 0.0  # 0 is greedy, as in the paper
    answer_top_p: float = Field(default=1.0, gt=0, le=1)
    max_answer_tokens: PositiveInt = 1024
    min_yield: float = Field(default=0.05, ge=0, lt=1)  # of the last 500 rows; below it, generation stops
    checks: Checks = Checks()
    tags: Tags | None = None

    @model_validator(mode="after")
    def _answers_differ(self) -> Generate:
        if self.answers > 1 and self.answer_temperature == 0:
            raise ValueError("answers: several greedy answers are one and the same; set answer_temperature")
        if self.turns > 1 and (self.answers > 1 or self.prompts):
            raise ValueError("turns: a conversation has one answer to each of its own questions")
        if self.prompts and self.systems:
            raise ValueError("systems: they steer what the model asks; with prompts it asks nothing")
        return self


class Rewrite(Strict):
    """The target in the model's own words. What it makes replaces the target in the mix."""

    method: Literal["min-change", "paraphrase"] = "min-change"
    verify: Literal["exact", "numeric"] = "exact"  # how a final answer is compared with the reference's
    max_edit: float = Field(default=0.7, gt=0, le=1)  # of the distance between prediction and reference
    editor: str | None = None  # the model that repairs; by default the model itself
    max_tokens: PositiveInt = 1024


class Schedule(Strict):
    """How the share moves from ``mix.ratio`` at the first step to ``to`` at the last."""

    shape: Literal["linear", "cosine", "warm-down", "steps"] = "linear"
    to: float | None = Field(default=None, ge=0, lt=1)  # the last share; for warm-down 0 by default
    hold: float = Field(default=0.5, ge=0, lt=1)  # for warm-down: the part of training before the share begins to fall
    at: dict[float, float] | None = None  # for steps: part of training -> share from there on

    @model_validator(mode="after")
    def _what_the_shape_needs(self) -> Schedule:
        if self.shape == "steps" and not self.at:
            raise ValueError("at: steps needs parts of training and shares, such as {0.5: 0.1}")
        if self.shape in ("linear", "cosine") and self.to is None:
            raise ValueError(f"to: {self.shape} needs the share of the last step")
        if self.at and any(not 0 <= part <= 1 or not 0 <= ratio < 1 for part, ratio in self.at.items()):
            raise ValueError("at: parts of training are from 0 to 1, shares from 0 to below 1")
        return self


class Mix(Strict):
    """How much of the loss is replay, and from which sources."""

    ratio: float = Field(default=0.05, ge=0, lt=1)
    unit: Literal["loss_tokens", "tokens", "rows"] = "loss_tokens"
    budget: Literal["add", "replace"] = "add"  # replay on top of the target's epochs, or as many rows as without replay
    sources: Annotated[dict[Replay, PositiveFloat], BeforeValidator(_equal_weights)] | None = (
        None  # by default all that the recipe makes; a list gives each the same weight
    )
    schedule: Schedule | None = None  # by default the share stays what it is
    skill: str = "skill"  # the column of replay rows that names their skill, for min_rows and max_rows
    min_rows: dict[str, PositiveInt] = {}  # replay rows of a skill that must be trained on, by skill
    max_rows: dict[str, PositiveInt] = {}  # different rows of a skill at most
    near_duplicate: Share | None = 0.9  # Jaccard similarity from which on a replay row repeats the target or another
    overlap: bool = True  # leave out rows, of the target too, that hold a prompt of eval
    against: list[str] = []  # further evaluation sets that no row may hold: files, or lm_eval:TASK

    @model_validator(mode="after")
    def _floors_below_caps(self) -> Mix:
        over = [skill for skill, n in self.min_rows.items() if n > self.max_rows.get(skill, n)]
        if over:
            raise ValueError(f"min_rows: it asks for more rows of {', '.join(over)} than max_rows allows")
        return self


class Stm(Strict):
    """Selective token masking: tokens that the base finds improbable carry no loss."""

    max_perplexity: float | None = Field(default=2.5, gt=1)  # of a token under the base, 1 / probability
    share: Share | None = None  # instead of max_perplexity: this part of all answer tokens is masked
    which: Literal["highest", "lowest", "random"] = "highest"  # of the tokens by perplexity; the others are controls
    keep: list[str] = []  # texts whose tokens always carry loss, such as "{"; the end of a turn always does

    @model_validator(mode="after")
    def _one_limit(self) -> Stm:
        if self.which != "highest" and self.share is None:
            raise ValueError(f"share: {self.which} needs the part of the tokens to mask")
        if self.max_perplexity is None and self.share is None:
            raise ValueError("max_perplexity: give the highest perplexity that carries loss, or a share to mask")
        return self


class Flow(Strict):
    """Rows that the base finds probable weigh more: exp(-loss / temperature)."""

    temperature: PositiveFloat | None = None  # nats a token; by default the median loss of the rows under the base
    unit: Literal["row", "token"] = "row"


class Eaft(Strict):
    """Entropy-adaptive fine-tuning: tokens of which the model is sure already weigh less."""

    top_k: Annotated[int, Field(ge=2)] = 20  # most probable tokens whose entropy is taken
    alpha: PositiveFloat = 1.0  # power of the weight


class Ewc(Strict):
    """Elastic weight consolidation: parameters that the old data needs are held near the base."""

    strength: NonNegativeFloat = 0.3  # lambda, of a Fisher information whose mean is 1
    auto: PositiveFloat | None = None  # instead: the penalty's gradient norm over that of the loss (--ewc-auto)
    rows: PositiveInt = 256  # of replay, whose gradients make the Fisher information
    hard: Share | None = None  # instead of a penalty: this part of the parameters, by Fisher, moves at most max_shift
    max_shift: Share = 0.2  # of the base's value


class L2sp(Strict):
    """The control of ewc: every parameter is held near the base alike."""

    strength: PositiveFloat = 0.3


class Distill(Strict):
    """The base's distribution is a second target: (1 - weight) * loss + weight * T^2 * KL(base || model)."""

    weight: Share = 0.5
    temperature: PositiveFloat = 2.0
    rows: Literal["replay", "all"] = "replay"
    teacher: Literal["auto", "adapter-off", "copy", "cache"] = "auto"  # auto: adapter-off with an adapter, else copy
    top_k: PositiveInt = 64  # of a cached distribution; the others' probability is kept as one
    layers: list[int] = []  # whose hidden states are held near the base's too; -1 is the last
    layer_weight: PositiveFloat = 0.1

    @field_validator("layers")
    @classmethod
    def _each_once(cls, layers: list[int]) -> list[int]:
        if len(set(layers)) < len(layers):
            raise ValueError("a layer is named twice")
        return layers

    @model_validator(mode="after")
    def _what_a_cache_has(self) -> Distill:
        if self.teacher == "cache" and self.rows == "all":
            raise ValueError(
                "teacher: cache has probabilities of replay rows only; say copy, adapter-off or rows: replay"
            )
        if self.teacher == "cache" and self.layers:
            raise ValueError("teacher: cache has no hidden states for layers; say copy or adapter-off")
        return self


class Project(Strict):
    """The target's gradient is turned until its cosine with that of replay is at least min_cosine; 0 is A-GEM."""

    min_cosine: float = Field(default=0.0, ge=0, lt=1)
    blockwise: bool = False  # each parameter tensor by itself


class Ema(Strict):
    """The exponential moving average of the parameters is what is saved."""

    decay: float = Field(default=0.99, gt=0, lt=1)


class Remedies(Strict):
    """Training methods against forgetting; all can be combined, all are off by default. ``{}`` takes a remedy's defaults."""

    stm: Stm | None = None
    flow: Flow | None = None
    dft: bool = False  # tokens weigh as much as the model finds them probable (dynamic fine-tuning)
    eaft: Eaft | None = None
    ewc: Ewc | None = None
    l2sp: L2sp | None = None
    distill: Distill | None = None
    project: Project | None = None
    ema: Ema | None = None

    @model_validator(mode="after")
    def _what_cannot_combine(self) -> Remedies:
        if self.stm and self.flow:
            raise ValueError("stm and flow both weigh tokens by the base's probabilities; choose one")
        if self.dft and self.eaft:
            raise ValueError("dft and eaft both weigh tokens by the model's own probabilities; choose one")
        if self.ewc and self.l2sp:
            raise ValueError("l2sp is ewc with the same Fisher information everywhere; choose one")
        return self

    @property
    def need_replay(self) -> list[str]:
        """The remedies that are asked for and do nothing without replay rows."""
        distilled = self.distill is not None and self.distill.rows == "replay"
        needy = {"ewc": self.ewc is not None, "distill": distilled, "project": self.project is not None}
        return [name for name, asked in needy.items() if asked]


class Arm(Strict):
    """One training of several: the recipe's mix with these keys changed, and other remedies where it names some."""

    ratio: float | None = Field(default=None, ge=0, lt=1)
    sources: Annotated[dict[Replay, PositiveFloat], BeforeValidator(_equal_weights)] | None = None
    schedule: Schedule | None = None
    remedies: Remedies | None = None


class Controller(Strict):
    """Old skills are tested while training, and the share of replay follows. Its drops are parts of the base's score."""

    every: PositiveInt = 500  # steps between two tests
    items: PositiveInt = 200  # of each old skill, the same every time
    max_drop: Share = 0.05  # from this lower bound of a drop on, the ratio grows
    factor: float = Field(default=1.2, gt=1)  # by so much
    max_ratio: Share = 0.5
    relax_drop: NonNegativeFloat = 0.02  # below this drop ...
    relax_after: PositiveInt = 3  # ... so many times in a row, the ratio shrinks by the factor, to mix.ratio at least
    remedy: Literal["ewc", "distill", "project"] | None = None  # of train.remedies: on only while skills drop
    remedy_drop: Share = 0.03  # from this lower bound on it is on
    remedy_off: NonNegativeFloat = 0.015  # below this drop it is off
    by_skill: bool = False  # the skill that drops most gets most of the replay
    patience: PositiveInt | None = 5  # tests without a lower loss on the target's held-out rows, until training ends


class Stage(Strict):
    """A part of training in which only the last layers learn."""

    layers: Share = 1.0  # the last part of the layers, with what stands behind them; 1 is everything, embeddings too
    part: Share  # of the steps
    learning_rate: PositiveFloat | None = None


class LayerRates(Strict):
    """Learning rates from the first layer to the last, geometric between; embeddings as bottom, the head as top."""

    bottom: PositiveFloat = 1e-5
    top: PositiveFloat = 5e-4


class Train(Strict):
    """Supervised fine-tuning; only answer tokens carry loss."""

    method: Literal["full", "lora", "dora", "qlora"] = "full"
    peft: dict[str, Any] | None = None  # any other PEFT configuration: {peft_type: IA3, ...}, instead of method
    epochs: PositiveInt = 1  # passes over the target
    steps: PositiveInt | None = None  # instead of epochs: exactly so many optimiser steps, the target repeating evenly
    batch_rows: PositiveInt = 32  # of one optimiser step
    micro_batch_rows: PositiveInt | None = None  # that fit in memory at once; all by default
    max_tokens: PositiveInt = 2048  # of a row
    packing: bool = False  # rows behind one another instead of padding, each seeing only itself
    learning_rate: PositiveFloat | None = None  # 1e-5 for full, 2e-4 for adapters
    layer_rates: LayerRates | None = None  # instead of learning_rate
    min_rate: float = Field(default=0.0, ge=0, lt=1)  # the last learning rate over the highest, of each group
    stages: list[Stage] = []  # staged unfreezing, one after the other
    freeze: list[str] = []  # parameters that do not learn: embeddings, head, or a part of their names
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)  # part of the steps
    weight_decay: NonNegativeFloat | dict[str, NonNegativeFloat] = 0.0  # or by a part of parameters' names
    max_grad_norm: PositiveFloat = 1.0
    rank: PositiveInt = 16  # of lora, dora and qlora
    alpha: PositiveInt = 32
    gradient_checkpointing: bool = False  # less memory, a third more time
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the computation; auto is bfloat16 on a GPU
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    save_every: PositiveInt = 200  # steps between checkpoints
    log_every: PositiveInt = 10
    remedies: Remedies = Remedies()
    controller: Controller | None = None

    @model_validator(mode="after")
    def _what_cannot_combine(self) -> Train:
        remedies, adapter = self.remedies, self.adapter
        if self.peft is not None and "peft_type" not in self.peft:
            raise ValueError("peft: it needs peft_type, a name of PEFT such as IA3, LOHA or OFT")
        if remedies.distill and remedies.distill.teacher == "adapter-off" and not adapter:
            raise ValueError(
                "remedies.distill.teacher: there is no adapter to switch off in full fine-tuning; say copy or cache, or "
                "train.method: lora"
            )
        if remedies.ewc and remedies.ewc.hard and adapter:
            raise ValueError("remedies.ewc.hard: an adapter leaves the parameters where they are; leave hard out")
        if remedies.ewc and adapter and self.method != "lora":
            raise ValueError(f"remedies.ewc: its form for adapters is that of lora, not {self.adapter_name}")
        if remedies.l2sp and adapter and self.method != "lora":
            raise ValueError(f"remedies.l2sp: its form for adapters is that of lora, not {self.adapter_name}")
        if self.stages and adapter:
            raise ValueError("stages: an adapter is on all layers at once; stages are for method: full")
        if self.stages and abs(sum(stage.part for stage in self.stages) - 1) > 1e-6:
            raise ValueError("stages: their parts make 1 together")
        if self.layer_rates and self.learning_rate:
            raise ValueError("layer_rates stands instead of learning_rate; leave one out")
        if self.controller and self.controller.remedy and getattr(remedies, self.controller.remedy) is None:
            raise ValueError(f"controller.remedy: {self.controller.remedy} is not among train.remedies")
        return self

    @property
    def adapter(self) -> bool:
        """Whether an adapter learns and the base's own parameters do not."""
        return self.method != "full" or self.peft is not None

    @property
    def adapter_name(self) -> str:
        return str(self.peft["peft_type"]) if self.peft is not None else self.method


class Eval(Strict):
    """The target's held-out rows, and the old skills that must not drop."""

    target: TestOrPath | None = None
    old: dict[str, TestOrPath] = {}


class Push(Strict):
    """Where the replay data is published."""

    repo: str | None = None
    private: bool = True


class EngineOptions(Strict):
    """What runs the model. A bare word in the recipe means ``{name: ...}``."""

    name: Literal["auto", "vllm", "openai", "transformers"] = "auto"
    workers: PositiveInt = 1  # processes with a whole model each, on GPUs of their own
    tensor_parallel: PositiveInt = 1  # GPUs that share one model, in vllm
    server: str | None = None  # http://host:8000/v1 of an OpenAI-compatible completions server, for openai
    concurrency: PositiveInt = 64  # requests to the server at a time
    timeout_seconds: PositiveFloat = 600.0  # of one request to the server
    retries: NonNegativeInt = 8  # of one request to the server

    @model_validator(mode="after")
    def _server_is_for_openai(self) -> EngineOptions:
        if self.server is not None and self.name not in ("auto", "openai"):
            raise ValueError(f"server: is for the engine openai, not {self.name}")
        if self.server is None and self.name == "openai":
            raise ValueError("server: the engine openai needs the address, such as http://localhost:8000/v1 (--server)")
        return self


class ChatOptions(Strict):
    """How the chat template is used, and its parts by hand for a tokenizer that has no usable one."""

    thinking: bool | None = None  # let the model think before it answers; by default only where it always does
    date: str = "2025-01-01"  # what a template that asks for today's date is told
    pre_query: str | None = None
    answer_header: str | None = None
    stop: list[str] = []

    @field_validator("date")
    @classmethod
    def _is_a_date(cls, text: str) -> str:
        date.fromisoformat(text)
        return text


def _from_word(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Recipe(Strict):
    name: FolderName | None = None
    out: str | None = None  # the run's folder; runs/<name> by default
    model: str | None = None
    revision: str | None = None
    engine: Annotated[EngineOptions, BeforeValidator(_from_word)] = EngineOptions()
    chat: ChatOptions = ChatOptions()
    seed: NonNegativeInt = 1
    target: DataOrPath | None = None
    select: Select | None = None
    generate: Generate | None = None
    rewrite: Rewrite | None = None
    mix: Mix = Mix()
    arms: dict[ArmName, Arm] = {}
    train: Train = Train()
    eval: Eval = Eval()
    push: Push = Push()

    @model_validator(mode="after")
    def _what_cannot_combine(self) -> Recipe:
        for arm in self.arms:
            self.training(arm)
        if self.train.controller is not None and self.mix.schedule is not None:
            raise ValueError("mix.schedule: train.controller moves the share itself; leave one of them out")
        return self

    def training(self, arm: str | None) -> Train:
        """How an arm is trained: as the recipe says, with the arm's own remedies where it names some."""
        own = self.arms[arm].remedies if arm is not None else None
        if own is None:
            return self.train
        return Train.model_validate(self.train.model_dump() | {"remedies": own.model_dump()})

    @property
    def folder(self) -> Path:
        """Where the steps write: ``out``, or runs/<name>, the name being the model's where none is given."""
        if self.out is not None:
            return Path(self.out)
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.model or "run").name).strip(".-")
        return Path("runs") / (self.name or plain or "run")

    @property
    def replay_sources(self) -> list[Replay]:
        """The sources of replay that this recipe makes."""
        made: dict[Replay, object] = {"select": self.select, "generate": self.generate}
        return [source for source, section in made.items() if section is not None]


def load_recipe(path: str | Path | None = None, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file (none: an empty one) with changes applied, e.g. ``{"mix.ratio": 0.1}``.

    Raises RecipeError with every problem of the file and the changes together.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        raw = _read_yaml(Path(path))
    for key, value in (changes or {}).items():
        *sections, last = key.split(".")
        place = raw
        for section in sections:
            inner = place.get(section)
            if isinstance(inner, str) and section in SHORT:
                inner = {SHORT[section]: inner}
            place[section] = {} if inner is None else inner
            if not isinstance(place[section], dict):
                break  # such as `mix: 3`: the validation says so
            place = place[section]
        else:
            place[last] = value
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(str(path or "the command line"), explain(error)) from None


def need(recipe: Recipe, step: str, *keys: str) -> None:
    """Raises RecipeError naming every one of the keys that the step needs and the recipe lacks."""
    hints = {
        "model": "model: an alias such as llama3, a Hub id or a folder (--model)",
        "target": "target: {path: my_task.jsonl} (--target)",
        "select": "select: {pool: old.jsonl} (--pool)",
        "eval": "eval: {target: ..., old: {skill: ...}}, the held-out rows",
        "push.repo": "push: {repo: me/my-replay} (the first argument)",
    }
    missing = []
    for key in keys:
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part, None)
        if value is None or value == Eval():
            missing.append(f"{step} needs {hints[key]}")
    if missing:
        raise RecipeError("the recipe", missing)


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader, but a key given twice is an error instead of the last one winning."""

    # Our own: a library under vLLM changes the shared ones.
    yaml_constructors: ClassVar[dict[Any, Any]] = dict(yaml.SafeLoader.yaml_constructors)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                what = "`<<` is not read here, write the keys out" if key_node.value == "<<" else "a key is one word"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise RecipeError(str(path), ["no such file; `replaykit init` writes one"]) from None
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise RecipeError(str(path), [" ".join(str(error).split())]) from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise RecipeError(str(path), [f"a recipe is lines of `key: value`, this is a {type(raw).__name__}"])
    return raw


def explain(error: ValidationError) -> list[str]:
    """One line a problem: the dotted path of the key, what is wrong, what it may be.

    Where a value may be of several kinds, what each of them would want stands on one line.
    """
    lines: dict[str, str] = {}
    for line in _problems(error):
        path, _, text = line.partition(": ")
        lines[path] = f"{lines[path]}, or {text}" if path in lines and "unknown key" not in text else text
    return [f"{path}: {text}" if text else path for path, text in lines.items()]


def _problems(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        place = problem["loc"][:-1] if problem["loc"][-1:] == ("[key]",) else problem["loc"]
        value, kind, message = problem["input"], problem["type"], problem["msg"]
        bare_word = isinstance(value, bool) and (place != problem["loc"] or kind == "invalid_key")
        path = ".".join(str(part) for part in (place[:-1] if bare_word else place) if not BRANCH.match(str(part)))
        if kind == "extra_forbidden":
            lines.append(f"{path}: unknown key{did_you_mean(str(problem['loc'][-1]), _known_keys(problem['loc']))}")
            continue
        text = message.removeprefix("Value error, ").replace("Input should be", "must be")
        if isinstance(value, (str, int, float)) and kind != "value_error":
            text += f" (got {value!r})"
        if isinstance(value, str) and kind.startswith("float") and (parts := EXPONENT.fullmatch(value)):
            mantissa, sign, digits = parts.groups()
            written = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{sign or '+'}{digits}"
            text += f"; YAML reads {value} as text, write {written}"
        if bare_word:
            text = "YAML reads the bare words yes, no, on and off as true and false; put the name in quotes"
        lines.append(f"{path}: {text}" if path else text)
    return lines


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at this path has."""
    model: Any = Recipe
    for part in path[:-1]:
        fields = getattr(model, "model_fields", {})
        model = _model_in(fields[part].annotation if part in fields else model)
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The section inside an annotation such as ``Annotated[Data, ...] | None`` or ``dict[str, Arm]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(inner) for inner in getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)
