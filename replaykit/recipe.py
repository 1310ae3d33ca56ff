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


class Mix(Strict):
    """How much of the loss is replay, and from which sources."""

    ratio: float = Field(default=0.05, ge=0, lt=1)
    unit: Literal["loss_tokens", "tokens", "rows"] = "loss_tokens"
    sources: list[Replay] | None = None  # by default all that the recipe makes


class Arm(Strict):
    """One training of several: the recipe's mix with these keys changed."""

    ratio: float | None = Field(default=None, ge=0, lt=1)
    sources: list[Replay] | None = None


class Train(Strict):
    """Supervised fine-tuning; only answer tokens carry loss."""

    method: Literal["full", "lora"] = "full"
    epochs: PositiveInt = 1  # passes over the target
    steps: PositiveInt | None = None  # instead of epochs: exactly so many optimiser steps, the target repeating evenly
    batch_rows: PositiveInt = 32  # of one optimiser step
    micro_batch_rows: PositiveInt | None = None  # that fit in memory at once; all by default
    max_tokens: PositiveInt = 2048  # of a row
    learning_rate: PositiveFloat | None = None  # 1e-5 for full, 2e-4 for lora
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)  # part of the steps
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    rank: PositiveInt = 16  # of lora
    alpha: PositiveInt = 32
    save_every: PositiveInt = 200  # steps between checkpoints
    log_every: PositiveInt = 10


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
