"""Engines complete and score token sequences. One protocol, one table.

A request is token ids, never text: a server that tokenises would add a second BOS. Each request has
its own seed, so the same request gives the same completion in any batch, and completions come back
in the order in which they finish.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Literal, Protocol, TypeVar

from replaykit.errors import EngineError, MissingExtra, did_you_mean
from replaykit.settings import EngineOptions

ENGINES = {
    "vllm": "replaykit.engines.vllm:VllmEngine",
    "openai": "replaykit.engines.openai:OpenAIEngine",
    "transformers": "replaykit.engines.transformers:TransformersEngine",
}
WORKERS = "replaykit.engines.workers:Workers"  # several processes with one of these in each
EXTRAS = {"vllm": "vllm"}  # the package that an engine needs beyond the core
T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. Temperature 0 is greedy, top_k 0 is all of the vocabulary.

    ``stop`` are token ids; the one that ended it is not returned. ``schema`` is a JSON schema, as
    text, that vllm and its server hold the completion to; transformers cannot, and whoever reads
    the completion checks it all the same.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[int, ...] = ()
    top_k: int = 0
    schema: str | None = None


@dataclass(frozen=True)
class Request:
    """A prompt of token ids with its row address, its sampling and its seed (of 63 bits)."""

    row: int
    tokens: tuple[int, ...]
    sampling: Sampling
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """What came after the prompt, without the stop token. ``length`` means it was cut at
    max_tokens.
    """

    row: int
    tokens: tuple[int, ...]
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """A loaded model. ``name`` is its key in ENGINES, ``limit`` how many tokens prompt and answer
    may have together.
    """

    name: str
    limit: int

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """A completion for each request, in the order in which they finish. Reads ahead, but not
        without bound.

        None among the requests says: none now, ask again after the next completion. So what is
        asked may depend on what was answered, in one stream. It may only be said while a request is
        unanswered. Raises EngineError for a prompt that leaves no room for an answer.
        """
        ...

    def score(self, sequences: Iterable[Sequence[int]]) -> Iterator[list[float]]:
        """For each sequence, in order, the natural-log probability of every token but the first
        given those before it.
        """
        ...

    def close(self) -> None:
        """Frees the memory that the model holds."""
        ...


def until_none(waiting: Iterator[T | None], room: int, *, unanswered: bool) -> Iterator[T]:
    """The next requests, at most ``room`` and up to a None, which may only be said while a request
    is ``unanswered``.
    """
    for taken, request in enumerate(islice(waiting, room)):
        if request is None:
            assert unanswered or taken, "None among the requests while none of them is unanswered"
            return
        yield request


def choose(options: EngineOptions | str = "auto") -> str:
    """The engine that "auto" means here: openai where a server is given; vllm where it is installed
    and there is a GPU.
    """
    options = _options(options)
    if options.name != "auto":
        return options.name
    if options.server is not None:
        return "openai"
    if find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def load_engine(
    model: str, options: EngineOptions | str = "auto", *, revision: str | None = None
) -> Engine:
    """The model, loaded in the engine. Raises EngineError, or MissingExtra, saying what to do."""
    options = _options(options)
    name = choose(options)
    if name in EXTRAS and find_spec(EXTRAS[name]) is None:
        raise MissingExtra(EXTRAS[name], name)
    module, _, cls = (
        WORKERS if options.workers > 1 and name != "openai" else ENGINES[name]
    ).partition(":")
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
