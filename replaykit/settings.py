"""The sections of a recipe that say which rows there are, how replay is made of them, and what runs
the model.

    target: {path: my_task.jsonl}
    generate: {n: 2000, checks: {min_chars: 3}}
    engine: {name: vllm, tensor_parallel: 2}

A section is a strict model: an unknown key or a value of another type is an error. Its defaults are
the product's.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

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
    field_validator,
    model_validator,
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Prompts(Strict):
    """Questions of a file, a folder or a Hub data set. A bare path in the recipe means ``{path:
    ...}``.
    """

    path: str
    prompt: str | None = None  # the column, where it has an unusual name
    split: str = "train"  # of a Hub data set
    skip: NonNegativeInt = (
        0  # rows passed over first, so that one file can serve as pool and as held-out rows
    )
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


DataOrPath = Annotated[Data, BeforeValidator(_from_path)]
PromptsOrPath = Annotated[Prompts, BeforeValidator(_from_path)]
TestOrPath = Annotated[Test, BeforeValidator(_from_path)]
Share = Annotated[float, Field(gt=0, le=1)]


class Eval(Strict):
    """The target's held-out rows, and the old skills that must not drop."""

    target: TestOrPath | None = None
    old: dict[str, TestOrPath] = {}


def _in_order(bounds: list[Any]) -> list[Any]:
    if bounds[0] > bounds[1]:
        raise ValueError("the least comes first, then the most")
    return bounds


Lengths = Annotated[
    list[NonNegativeInt], Field(min_length=2, max_length=2), AfterValidator(_in_order)
]
Range = Annotated[
    list[NonNegativeFloat], Field(min_length=2, max_length=2), AfterValidator(_in_order)
]
DocumentRule = Literal[
    "gopher_word_length",
    "gopher_hashes",
    "gopher_ellipses",
    "gopher_bullets",
    "gopher_ellipsis_lines",
    "gopher_few_letters",
    "gopher_stop_words",
    "gopher_duplicate_lines",
    "gopher_duplicate_paragraphs",
    "gopher_top_ngrams",
    "gopher_duplicate_ngrams",
    "c4_sentences",
    "c4_curly_bracket",
]


class Quality(Strict):
    """Which old rows are good enough to choose from. A rule that is off is null, false, or not in
    the list.
    """

    # takes "<|endoftext|>" and its like, written out, from the end of answers; drops nothing
    strip_end: bool = True
    # an answer or a prompt of spaces; the special token that ends an answer is nothing either
    empty: bool = True
    placeholders: bool = True  # "N/A", "TODO", "[insert answer]", "..."
    broken: bool = True  # letters that a wrong encoding spoilt: any in an answer, many in a prompt
    max_markup: Share | None = (
        0.3  # of an answer's characters in HTML tags and entities that nobody asked for
    )
    max_repeat: Share | None = (
        0.5  # of an answer's 20-character windows, seen before in the same answer
    )
    documents: list[DocumentRule] = Field(default=[])  # rules of Gopher and C4 for long answers
    document_words: PositiveInt = 50  # from which on an answer is a document
    prompt_chars: Lengths | None = None  # least and most
    prompt_words: Lengths | None = None
    answer_chars: Lengths | None = None
    answer_words: Lengths | None = None
    languages: list[str] | None = None  # ISO 639-1 codes of the languages to keep, such as [en, zh]


SCORED = (
    "tfidf",
    "bm25",
    "embedding",
    "near-and-far",
    "mmr",
)  # methods of selection that compare with the target


class Select(Strict):
    """Old records for a new task: by default those whose prompts are nearest to the target's
    prompts by TF-IDF.
    """

    pool: DataOrPath
    n: PositiveInt = 2000
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
    ] = "tfidf"
    to: Literal["nearest", "centroid"] = "nearest"  # of the target, for tfidf and bm25
    analyzer: Literal["auto", "word", "char"] = (
        "auto"  # auto takes characters where the target has no spaces
    )
    ngrams: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = (
        None  # [1, 1], of characters [2, 4]
    )
    sublinear: bool = True  # 1 + ln tf for tf
    min_df: PositiveInt = 1  # rows that a term must stand in
    max_df: Share = 1.0  # of the rows that a term may stand in
    model: str | None = None  # for embedding: a sentence-transformers or model2vec model
    column: str | None = None  # for stratified: the column of the pool that names a row's stratum
    shares: Literal["equal", "proportional"] = "proportional"  # of the strata
    per_target: PositiveInt | None = (
        None  # rows at most that are nearest to one and the same target row
    )
    near: float = Field(default=0.5, ge=0, le=1)  # for near-and-far: the part that is nearest
    balance: float = Field(
        default=0.5, ge=0, le=1
    )  # for mmr: 1 is near the target, 0 unlike one another
    candidates: PositiveInt = (
        10  # for mmr, k-centre and herding: times n, the rows that they choose from
    )
    near_duplicate: Share | None = (
        0.9  # Jaccard similarity of 5-character shingles from which on a row is a repetition
    )
    keep: Literal["first", "best"] = (
        "first"  # of near duplicates: the earlier one, or the one nearer to the target
    )
    overlap: bool = True  # leave out rows that hold a prompt of eval
    against: list[str] = []  # further evaluation sets that no row may hold: files, or lm_eval:TASK
    quality: Quality = Quality()
    strict: bool = (
        False  # a row that cannot be read is an error instead of being counted as unparsed
    )
    processes: PositiveInt | None = None  # one for each CPU by default
    engine: Literal["local", "ray"] = (
        "local"  # ray: terms and signatures are made, and terms compared, on all machines
    )

    @model_validator(mode="after")
    def _what_the_method_needs(self) -> Select:
        if self.method == "embedding" and self.model is None:
            raise ValueError(
                "model: embedding needs one, a folder or Hub id of sentence-transformers or "
                "model2vec"
            )
        if self.method == "stratified" and self.column is None:
            raise ValueError("column: stratified needs the column that names a row's stratum")
        if self.per_target is not None and (
            self.method not in SCORED or self.method == "near-and-far"
        ):
            raise ValueError(
                f"per_target: it is for what is near to the target, not for {self.method}"
            )
        if self.per_target is not None and self.to == "centroid":
            raise ValueError(
                "per_target: with the centroid no row is nearest to one row of the target"
            )
        return self


class Checks(Strict):
    """Which questions are worth an answer, and which rows are kept. A check that is off is null or
    false.
    """

    min_chars: NonNegativeInt = 3  # of a question
    max_repeat: Share | None = 0.5  # of a text's 20-character windows, seen before in the same text
    near_duplicate: Share | None = (
        0.9  # Jaccard similarity of 5-character shingles with an earlier question
    )
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

    n: PositiveInt | None = (
        None  # records to keep, after the checks; 2000, or an answer to each of the prompts
    )
    turns: PositiveInt = 1  # questions of one conversation
    answers: PositiveInt = 1  # to each question
    prompts: PromptsOrPath | None = None  # the questions, where the model shall not write them
    systems: dict[str, PositiveFloat] | None = (
        None  # system prompts, or names of presets, with their weights
    )
    keep_system: bool = False  # leave the system prompt in the record, and answer under it
    temperature: PositiveFloat | Literal["model"] = (
        1.0  # of questions; "model": as its generation_config says
    )
    top_p: float = Field(default=1.0, gt=0, le=1)
    schedule: Literal["magpie-air", "magpie-pro"] | list[Phase] | None = (
        None  # instead of one temperature
    )
    max_question_tokens: PositiveInt = 512
    answer_temperature: NonNegativeFloat | Literal["model"] = 0.0  # 0 is greedy, as in the paper
    answer_top_p: float = Field(default=1.0, gt=0, le=1)
    max_answer_tokens: PositiveInt = 1024
    min_yield: float = Field(
        default=0.05, ge=0, lt=1
    )  # of the last 500 rows; below it, generation stops
    checks: Checks = Checks()
    tags: Tags | None = None

    @model_validator(mode="after")
    def _answers_differ(self) -> Generate:
        if self.answers > 1 and self.answer_temperature == 0:
            raise ValueError(
                "answers: several greedy answers are one and the same; set answer_temperature"
            )
        if self.turns > 1 and (self.answers > 1 or self.prompts):
            raise ValueError("turns: a conversation has one answer to each of its own questions")
        if self.prompts and self.systems:
            raise ValueError(
                "systems: they steer what the model asks; with prompts it asks nothing"
            )
        return self


class Rewrite(Strict):
    """The target in the model's own words. What it makes replaces the target in the mix."""

    method: Literal["min-change", "paraphrase"] = "min-change"
    verify: Literal["exact", "numeric"] = (
        "exact"  # how a final answer is compared with the reference's
    )
    max_edit: float = Field(
        default=0.7, gt=0, le=1
    )  # of the distance between prediction and reference
    editor: str | None = None  # the model that repairs; by default the model itself
    max_tokens: PositiveInt = 1024


class Push(Strict):
    """Where the replay data is published."""

    repo: str | None = None
    private: bool = True


class EngineOptions(Strict):
    """What runs the model. A bare word in the recipe means ``{name: ...}``."""

    name: Literal["auto", "vllm", "openai", "transformers"] = "auto"
    workers: PositiveInt = 1  # processes with a whole model each, on GPUs of their own
    tensor_parallel: PositiveInt = 1  # GPUs that share one model, in vllm
    server: str | None = (
        None  # http://host:8000/v1 of an OpenAI-compatible completions server, for openai
    )
    concurrency: PositiveInt = 64  # requests to the server at a time
    timeout_seconds: PositiveFloat = 600.0  # of one request to the server
    retries: NonNegativeInt = 8  # of one request to the server

    @model_validator(mode="after")
    def _server_is_for_openai(self) -> EngineOptions:
        if self.server is not None and self.name not in ("auto", "openai"):
            raise ValueError(f"server: is for the engine openai, not {self.name}")
        if self.server is None and self.name == "openai":
            raise ValueError(
                "server: the engine openai needs the address, such as http://localhost:8000/v1 "
                "(--server)"
            )
        return self

    @property
    def here(self) -> EngineOptions:
        """The same without a server, for models that are made here, which no server has."""
        return (
            self
            if self.server is None
            else self.model_copy(update={"name": "auto", "server": None})
        )


def _from_word(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


EngineOrName = Annotated[EngineOptions, BeforeValidator(_from_word)]


class ChatOptions(Strict):
    """How the chat template is used, and its parts by hand for a tokenizer that has no usable
    one.
    """

    thinking: bool | None = (
        None  # let the model think before it answers; by default only where it always does
    )
    date: str = "2025-01-01"  # what a template that asks for today's date is told
    pre_query: str | None = None
    answer_header: str | None = None
    stop: list[str] = []

    @field_validator("date", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return (
            value.isoformat() if isinstance(value, date) else value
        )  # YAML makes a date of 2025-06-01

    @field_validator("date")
    @classmethod
    def _is_a_date(cls, text: str) -> str:
        date.fromisoformat(text)
        return text
