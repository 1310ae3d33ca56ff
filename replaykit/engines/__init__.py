"""Engines complete and score token sequences. One protocol, one table.

    engine = load_engine("nano")
    for completion in engine.complete([Request(0, chat.prompt(messages), Sampling(), seed=7)]):
        print(chat.decode(completion.tokens))

A request is token ids, never text: a server that tokenises would add a second BOS. Each request has
its own seed, so the same request gives the same completion in any batch, and completions come back
in the order in which they finish.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Literal, Protocol, TypeVar

from replaykit.errors import EngineError, MissingExtra, did_you_mean
from replaykit.model.loading import encoder_decoder
from replaykit.model.pair import Pair, Scored
from replaykit.recipe.engine import EngineOptions

ENGINES = {
    "vllm": "replaykit.engines.vllm:VllmEngine",
    "openai": "replaykit.engines.openai:OpenAIEngine",
    "transformers": "replaykit.engines.transformers:TransformersEngine",
}
# Several processes with one of these in each.
WORKERS = "replaykit.engines.workers:Workers"
# The package that an engine needs beyond the core.
EXTRAS = {"vllm": "vllm"}
T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. Temperature 0 is greedy, top_k 0 is all of the vocabulary.

    Only vllm and its server hold a completion to a schema; transformers cannot, so whoever reads
    the completion checks it all the same.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[int, ...] = ()
    """Token ids that end the completion; the one that did is not returned."""
    top_k: int = 0
    schema: str | None = None
    """A JSON schema, as text."""


@dataclass(frozen=True)
class Request:
    """A prompt of token ids, and how to go on from it."""

    row: int
    """The address by which the completion is known."""
    tokens: tuple[int, ...]
    sampling: Sampling
    seed: int = 0
    """63 bits."""


@dataclass(frozen=True)
class Completion:
    """What came after the prompt, without the stop token."""

    row: int
    tokens: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    """length: it was cut at max_tokens, or where the model reads no further."""


class Engine(Protocol):
    """A loaded model."""

    name: str
    """Its key in ENGINES."""
    limit: int
    """How many tokens prompt and answer may have together; of an encoder-decoder each of them."""

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """A completion for each request, in the order in which they finish.

        Requests are read ahead, up to a bound. None among them says: none now, ask again after the
        next completion. So what is asked may depend on what was answered, in one stream. None may
        only come while a request is unanswered. Raises EngineError for a prompt that leaves no room
        for an answer.
        """
        ...

    def score(self, sequences: Iterable[Scored]) -> Iterator[list[float]]:
        """For each sequence, in order, the natural log probability of every token but the first.

        Each is that of the token given those before it. Of a Pair it is that of every token of the
        answer, given the question and those before it. Raises EngineError for a Pair where the
        engine has no encoder-decoders, and for a sequence where the model is one.
        """
        ...

    def close(self) -> None:
        """Frees the memory that the model holds."""
        ...


def until_none(waiting: Iterator[T | None], room: int, *, unanswered: bool) -> Iterator[T]:
    """The next requests, at most ``room``, up to a None.

    That may only come while a request is ``unanswered``: else nothing would ever follow.
    """
    for taken, request in enumerate(islice(waiting, room)):
        if request is None:
            assert unanswered or taken, "None among the requests while none of them is unanswered"
            return
        yield request


def room_for(request: Request, limit: int, *, apart: bool = False) -> int:
    """How many tokens the answer may have, in a model that reads ``limit``.

    ``apart`` says that the answer has positions of its own, as in an encoder-decoder. Raises
    EngineError for a prompt that leaves no room for an answer.
    """
    size = len(request.tokens)
    if apart and size <= limit:
        return min(request.sampling.max_tokens, limit)
    if size >= limit:
        raise EngineError(
            f"row {request.row}: its prompt has {size} tokens and the model reads {limit}"
        )
    return min(request.sampling.max_tokens, limit - size)


def to_score(sequences: Iterable[Scored]) -> Iterator[Request]:
    """Requests that score sequences in a server, numbered from 0. It must draw one token.

    Raises EngineError for a Pair.
    """
    sampling = Sampling(temperature=0.0, max_tokens=1)
    for row, tokens in enumerate(sequences):
        if isinstance(tokens, Pair):
            raise EngineError(
                "a server scores what it reads, and the answer of an encoder-decoder is what it "
                "writes; take `--engine transformers`"
            )
        yield Request(row, tuple(tokens), sampling)


def in_order(answers: Iterable[tuple[int, T]]) -> Iterator[T]:
    """The answers to requests numbered from 0, which come as they finish, in order of number."""
    waiting: dict[int, T] = {}
    turn = 0
    for number, answer in answers:
        waiting[number] = answer
        while turn in waiting:
            yield waiting.pop(turn)
            turn += 1


def choose(
    options: EngineOptions | str = "auto", model: str | None = None, revision: str | None = None
) -> str:
    """The engine's name, "auto" resolved: openai for a server, vllm with a GPU, or transformers,
    which alone has encoder-decoders.
    """
    options = _options(options)
    if options.name != "auto":
        return options.name
    if options.server is not None:
        return "openai"
    if find_spec("vllm") is None:
        return "transformers"
    import torch

    # On a CPU vLLM takes 20 s and more to start, and is on trial, so there it has to be asked for.
    if not torch.cuda.is_available():
        return "transformers"
    if model is not None and _encoder_decoder(model, revision):
        return "transformers"
    return "vllm"


def _encoder_decoder(model: str, revision: str | None) -> bool:
    """Whether the model is one; False where it cannot be loaded, which is said when it is."""
    try:
        return encoder_decoder(model, revision)
    except EngineError:
        return False


def engine_fact(
    options: EngineOptions, model: str | None = None, revision: str | None = None
) -> str:
    """What of the engine decides the rows, in a word or two: its name, and its mode."""
    name = choose(options, model, revision)
    if options.batch_invariant:
        return f"{name}, batch-invariant"
    return name


def load_engine(
    model: str, options: EngineOptions | str = "auto", *, revision: str | None = None
) -> Engine:
    """The model, loaded in the engine. Raises EngineError, or MissingExtra, saying what to do."""
    options = _options(options)
    name = choose(options, model, revision)
    if name == "vllm" and _encoder_decoder(model, revision):
        raise EngineError(
            f"{model} is an encoder-decoder, and vLLM has none of texts, T5 and BART among them; "
            f"take `--engine transformers`"
        )
    if options.batch_invariant and name != "vllm":
        raise EngineError(
            f"engine.batch_invariant: it is vllm's, and the engine here is {name}; leave it out, "
            "or take `--engine vllm` on a machine with a GPU"
        )
    if name in EXTRAS and find_spec(EXTRAS[name]) is None:
        raise MissingExtra(EXTRAS[name], name)
    entry = ENGINES[name]
    if options.workers > 1 and name != "openai":  # a server has workers of its own
        entry = WORKERS
    module, _, cls = entry.partition(":")
    loaded: Engine = getattr(import_module(module), cls)(model, revision=revision, options=options)
    return loaded


def _options(options: EngineOptions | str) -> EngineOptions:
    if isinstance(options, str):
        if options not in ("auto", *ENGINES):
            raise EngineError(
                f"no engine '{options}'; known are "
                f"{', '.join(ENGINES)}{did_you_mean(options, ENGINES)}"
            )
        return EngineOptions(name=options)  # type: ignore[arg-type]
    return options
