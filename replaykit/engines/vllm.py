"""The engine for a GPU, and on trial for any CPU: vLLM, in processes of its own, with a bounded
number of requests.

What vLLM writes while it starts, and its processes ever after, goes to a temporary file that is
read only to say why it failed; nothing reaches stdout. Set VLLM_LOGGING_LEVEL=INFO to see it all on
stderr.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import import_module
from inspect import signature
from itertools import count
from signal import SIGINT, default_int_handler, getsignal, signal
from threading import Thread, current_thread, main_thread
from types import SimpleNamespace
from typing import IO, Any

import torch

from replaykit import models
from replaykit.engines import Completion, Request, Sampling, until_none
from replaykit.engines.children import Guard
from replaykit.errors import EngineError
from replaykit.settings import EngineOptions

# Each gives way to the user's own. Spawn, because a fork of a process with OpenMP threads may hang.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
# The cache in GiB; and no compiler, which enforce_eager leaves in the log-probabilities: 20 s
# before the first.
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}

TESTED = "0.32"
USED = {  # what is used of vLLM, which renames much from one version to the next
    "vllm": ["LLM", "SamplingParams"],
    "vllm.exceptions": ["VLLMClientError"],
    "vllm.inputs": ["tokens_input"],
    "vllm.sampling_params": ["RequestOutputKind", "StructuredOutputsParams"],
    "vllm.v1.engine.exceptions": ["EngineDeadError"],
}
# JSON without spaces and line breaks between its parts: a small model may write those until
# max_tokens.
STRUCTURED = {"backend": "xgrammar", "disable_any_whitespace": True}
SCORING = {
    "prompt_logprobs": 0,
    "flat_logprobs": True,
}  # only the tokens' own log-probabilities, as one list


class VllmEngine:
    """A causal language model in vLLM. ``limit`` is what its cache holds, at most what the model
    reads.
    """

    name = "vllm"

    def __init__(
        self, model: str, *, revision: str | None = None, options: EngineOptions | None = None
    ):
        models.load_tokenizer(model, revision)  # says in a line what vLLM would say in a hundred
        self._log: IO[bytes] = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - open until close()
        self._guard = Guard()
        try:
            with _aside(self._log):
                self._vllm = _imported()
                options = options or EngineOptions(name="vllm")
                self._llm: Any = _start(
                    self._vllm, model, revision, options, self._log, self._guard
                )
        except BaseException:
            self._guard.end()
            raise
        outputs = getattr(self._llm.llm_engine.engine_core, "outputs_queue", None)
        Thread(
            target=_say_when_dead,
            args=(self._vllm.EngineDeadError(), outputs, self._guard),
            daemon=True,
        ).start()
        self._names = map(str, count())
        self._finished: dict[
            str, Any
        ] = {}  # outputs by name, until the iteration that asked takes them
        config = self._llm.llm_engine.vllm_config
        self.limit: int = config.model_config.max_model_len
        self.read_ahead: int = (
            2 * config.scheduler_config.max_num_seqs
        )  # one batch at work and one at the door

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        with closing(self._run(requests)) as answers:
            for request, answer in answers:
                tokens = answer.outputs[0].token_ids
                reason = answer.outputs[0].finish_reason
                if reason not in ("stop", "length"):
                    raise EngineError(f"row {request.row}: vLLM ended it with '{reason}'")
                yield Completion(
                    request.row, tuple(tokens[:-1] if reason == "stop" else tokens), reason
                )

    def score(self, sequences: Iterable[Sequence[int]]) -> Iterator[list[float]]:
        # vLLM must draw one token. A request with prompt_logprobs reads no cached prefix, so no
        # position is missing.
        requests = (
            Request(k, tuple(s), Sampling(temperature=0.0, max_tokens=1))
            for k, s in enumerate(sequences)
        )
        waiting: dict[int, list[float]] = {}
        turn = 0
        with closing(self._run(requests, **SCORING)) as answers:
            for request, answer in answers:
                waiting[request.row] = list(answer.prompt_logprobs.logprobs)
                while turn in waiting:
                    yield waiting.pop(turn)
                    turn += 1

    def close(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._guard.release()
            self._llm = None
            self._log.close()

    def _run(
        self, requests: Iterable[Request | None], **more: Any
    ) -> Generator[tuple[Request, Any], None, None]:
        """Each request with vLLM's output, as they finish. One iteration may feed another, and may
        be left early.
        """
        engine = self._llm.llm_engine
        waiting = iter(requests)
        flying = dict[str, Request]()
        try:
            while True:
                for request in until_none(
                    waiting, self.read_ahead - len(flying), unanswered=bool(flying)
                ):
                    flying[self._add(request, more)] = request
                if not flying:
                    return
                while not (ready := [name for name in self._finished if name in flying]):
                    self._finished.update((output.request_id, output) for output in engine.step())
                for name in ready:
                    yield flying.pop(name), self._finished.pop(name)
        except self._vllm.EngineDeadError as error:
            reason = _reason(
                self._log, "it said nothing, so perhaps it was killed for want of memory"
            )
            self.close()
            raise EngineError(
                f"vLLM's process ended: {reason}; VLLM_LOGGING_LEVEL=INFO shows more"
            ) from error
        finally:
            if self._llm is not None:
                engine.abort_request(list(flying))
                for name in flying:
                    self._finished.pop(name, None)

    def _add(self, request: Request, more: dict[str, Any]) -> str:
        name = next(self._names)
        size = len(request.tokens)
        if size >= self.limit:
            raise EngineError(
                f"row {request.row}: its prompt has {size} tokens and the model reads {self.limit}"
            )
        try:
            params = self._vllm.SamplingParams(
                **_settings(self._vllm, request, self.limit - size), **more
            )
            self._llm.llm_engine.add_request(
                name, self._vllm.tokens_input(list(request.tokens)), params
            )
        except (
            self._vllm.VLLMClientError,
            ValueError,
        ) as error:  # such as a token that the model does not have
            reason = " ".join(str(error).split())
            raise EngineError(f"row {request.row}: vLLM refuses it: {reason}") from error
        return name


def _settings(vllm: SimpleNamespace, request: Request, room: int) -> dict[str, Any]:
    """The fields of vLLM's SamplingParams for a request whose prompt leaves room for so many
    tokens.
    """
    s = request.sampling
    schema = (
        {}
        if s.schema is None
        else {"structured_outputs": vllm.StructuredOutputsParams(json=s.schema)}
    )
    # With ignore_eos nothing but stop_token_ids ends an answer. Where the JSON is complete, the
    # schema admits the model's own end-of-sequence too, whether it is a stop or not; ignored there,
    # it would be followed by text without a schema.
    return {
        "temperature": s.temperature,
        "top_p": s.top_p,
        "top_k": s.top_k,
        "seed": request.seed,
        "stop_token_ids": list(s.stop),
        "max_tokens": min(s.max_tokens, room),
        "ignore_eos": s.schema is None,
        "detokenize": False,
        "output_kind": vllm.RequestOutputKind.FINAL_ONLY,
        **schema,
    }


def _imported() -> SimpleNamespace:
    """What is USED of vLLM, and its version. Raises EngineError where there is no vLLM, or one that
    lacks some of it.
    """
    version = "here"
    found = {}
    for module, names in USED.items():
        for name in names:
            try:
                version = import_module("vllm").__version__
                found[name] = getattr(import_module(module), name)
            except Exception as error:  # builds that do not match fail in many ways
                if isinstance(error, AttributeError) or getattr(error, "name", None) == module:
                    raise EngineError(
                        f"vLLM {version} has no {module}.{name}; replaykit is tested with {TESTED}"
                    ) from error
                what = f"{type(error).__name__}: {error}"
                raise EngineError(
                    f"vLLM cannot be imported: {what}\n  `--engine transformers` does without."
                ) from error
    vllm = SimpleNamespace(version=version, **found)
    used = _settings(vllm, Request(0, (), Sampling(schema="{}")), 1) | SCORING
    if unknown := sorted(set(used) - set(signature(vllm.SamplingParams).parameters)):
        fields = "fields" if len(unknown) > 1 else "field"
        raise EngineError(
            f"vLLM {version} has no sampling {fields} {', '.join(map(repr, unknown))}; replaykit "
            f"is tested with {TESTED}"
        )
    return vllm


def _start(
    vllm: SimpleNamespace,
    model: str,
    revision: str | None,
    options: EngineOptions,
    log: IO[bytes],
    guard: Guard,
) -> Any:
    gpu = torch.cuda.is_available()
    device: dict[str, Any] = (
        {"dtype": "auto"} if gpu else {"dtype": "float32", "enforce_eager": True}
    )
    os.environ.update({} if gpu else CPU_ENVIRONMENT | os.environ)
    try:  # max_model_len -1 is as long as the cache holds
        name = models.resolve(model)
        device["tokenizer_revision"] = revision
        with guard.adopting(), _interruptible():
            return vllm.LLM(
                name,
                revision=revision,
                max_model_len=-1,
                load_format="safetensors",
                language_model_only=True,
                tensor_parallel_size=options.tensor_parallel,
                structured_outputs_config=STRUCTURED,
                **device,
            )
    except Exception as error:  # vLLM has no one error for this
        reason = _reason(log, " ".join(str(error).split()))
        if isinstance(error, TypeError) and "unexpected keyword" in str(error):
            raise EngineError(
                f"vLLM {vllm.version}: {error}; replaykit is tested with {TESTED}"
            ) from error
        refused = models.cannot_load(model, ValueError(reason))
        less = "end what else is on the GPU" if gpu else "lower VLLM_CPU_KVCACHE_SPACE (GiB)"
        hint = f"\n  {less}, or take a smaller model." if "memory" in str(refused).lower() else ""
        raise EngineError(f"{refused}{hint}") from error


def _say_when_dead(error: Exception, outputs: Any, guard: Guard) -> None:
    """Gives the error to whoever waits for vLLM's next output; after a SIGKILL, vLLM 0.32 itself
    lets them wait for good.
    """
    guard.wait()
    if outputs is not None:
        outputs.put(error)


class _Interrupted(BaseException):
    """KeyboardInterrupt by a name that vLLM does not know."""


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends what is inside. While vLLM waits for its processes to start, it catches
    KeyboardInterrupt and waits on.
    """

    def interrupt(*_: object) -> None:
        raise _Interrupted

    if current_thread() is not main_thread() or getsignal(SIGINT) is not default_int_handler:
        yield
        return
    signal(SIGINT, interrupt)
    try:
        yield
    except _Interrupted:
        raise KeyboardInterrupt from None
    finally:
        signal(SIGINT, default_int_handler)


@contextmanager
def _aside(log: IO[bytes]) -> Iterator[None]:
    """With ENVIRONMENT, and with what is written to stdout and stderr, here and by new processes,
    gone to ``log``.
    """
    before = dict(os.environ)
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    target = 2 if "VLLM_LOGGING_LEVEL" in before else log.fileno()
    sys.stdout.flush()
    try:
        os.environ.update(ENVIRONMENT | before)
        for stream in (1, 2):
            os.dup2(target, stream)
        yield
    finally:
        sys.stdout.flush()
        for stream, copy in kept:
            os.dup2(copy, stream)
            os.close(copy)
        os.environ.clear()
        os.environ.update(before)


def _reason(log: IO[bytes], else_: str) -> str:
    """The first error that vLLM wrote, the root of those after it; or else this, where it wrote
    none.
    """
    log.seek(0)
    found = re.search(r"\b\w*(?:Error|Exception): (.+)", log.read().decode(errors="replace"))
    return found[1] if found else else_
