"""The engine for a GPU, and on trial for any CPU: vLLM, in processes of its own.

What vLLM writes while it starts, and its processes ever after, goes to a temporary file that is
read only to say why it failed; nothing reaches stdout. Set VLLM_LOGGING_LEVEL=INFO to see it all on
stderr.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from inspect import signature
from itertools import count
from signal import SIGINT, default_int_handler, getsignal, signal
from threading import Thread, current_thread, main_thread
from types import SimpleNamespace
from typing import IO, Any

import torch

from replaykit.engines import (
    Completion,
    Request,
    Sampling,
    in_order,
    room_for,
    to_score,
    until_none,
)
from replaykit.engines.children import Guard
from replaykit.errors import EngineError
from replaykit.model import loading
from replaykit.model.pair import Scored
from replaykit.recipe.engine import EngineOptions

# Each gives way to the user's own setting. Spawn, because a fork of a process with OpenMP threads
# may hang.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
# The cache in GiB; and no compiler, which enforce_eager leaves in the log probabilities, where the
# first one would take 20 s.
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
# Which of its two model runners vLLM takes. The second, for GPUs, makes a token's noise of the
# seed, the place and the token (vllm/v1/worker/gpu/sample/gumbel.py of 0.32), so a row is the same
# however its prompt was cut. With the first we draw ourselves, see vllm_draw.py.
SECOND_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
OWN_DRAW = "replaykit.engines.vllm_draw:OwnDraw"
# The key in a request's extra_args that OwnDraw reads.
DRAWING = "replaykit"
# The same logits whatever is in the batch; the least compute capability of NVIDIA's GPUs for it
# (docs.vllm.ai/en/v0.32.0/features/batch_invariance).
BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
LEAST_CAPABILITY = (8, 0)
# Further arguments of vllm.LLM: the tests give vLLM little room here.
ARGUMENTS: dict[str, Any] = {}

TESTED = "0.32"
# What is used of vLLM, which renames much from one version to the next.
USED = {
    "vllm": ["LLM", "SamplingParams"],
    "vllm.exceptions": ["VLLMClientError"],
    "vllm.inputs": ["tokens_input"],
    "vllm.sampling_params": ["RequestOutputKind", "StructuredOutputsParams"],
    "vllm.v1.engine.exceptions": ["EngineDeadError"],
    # In vllm_draw.py.
    "vllm.v1.sample.logits_processor": ["BatchUpdate", "LogitsProcessor"],
    "vllm.v1.sample.logits_processor.builtin": ["process_dict_updates"],
}
# JSON without spaces and line breaks between its parts: a small model may write those until
# max_tokens.
STRUCTURED = {"backend": "xgrammar", "disable_any_whitespace": True}
# Only the tokens' own log probabilities, as one list.
SCORING = {"prompt_logprobs": 0, "flat_logprobs": True}


class VllmEngine:
    """A causal language model in vLLM.

    ``limit`` is what its cache holds, at most what the model reads.
    """

    name = "vllm"

    def __init__(
        self, model: str, *, revision: str | None = None, options: EngineOptions | None = None
    ):
        # A model that is not there is said in a line, where vLLM would take a hundred.
        loading.load_tokenizer(model, revision)
        options = options or EngineOptions(name="vllm")
        if options.batch_invariant:
            _check_batch_invariant()
        self._own_draw = not _second_runner()
        self._log: IO[bytes] = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - open until close()
        self._guard = Guard()
        try:
            with _aside(self._log):
                self._vllm = _imported()
                with self._guard.adopting(), _interruptible():
                    self._llm: Any = self._start(model, revision, options)
        except BaseException:
            self._guard.end()
            raise
        outputs = getattr(self._llm.llm_engine.engine_core, "outputs_queue", None)
        watching = (self._vllm.EngineDeadError(), outputs, self._guard)
        Thread(target=_say_when_dead, args=watching, daemon=True).start()
        self._names = map(str, count())
        # Outputs by request name, until the iteration that made the request takes them.
        self._finished: dict[str, Any] = {}
        config = self._llm.llm_engine.vllm_config
        self.limit: int = config.model_config.max_model_len
        # One batch at work and one at the door.
        self.read_ahead: int = 2 * config.scheduler_config.max_num_seqs

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        with closing(self._run(requests)) as answers:
            for request, answer in answers:
                tokens = answer.outputs[0].token_ids
                reason = answer.outputs[0].finish_reason
                if reason not in ("stop", "length"):
                    raise EngineError(f"row {request.row}: vLLM ended it with '{reason}'")
                if reason == "stop":
                    tokens = tokens[:-1]  # vLLM returns the stop token too
                yield Completion(request.row, tuple(tokens), reason)

    def score(self, sequences: Iterable[Scored]) -> Iterator[list[float]]:
        # A request with prompt_logprobs reads no cached prefix, so no position is missing.
        with closing(self._run(to_score(sequences), **SCORING)) as answers:
            yield from in_order(
                (request.row, list(answer.prompt_logprobs.logprobs)) for request, answer in answers
            )

    def close(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._guard.release()
            self._llm = None
            self._log.close()

    def _start(self, model: str, revision: str | None, options: EngineOptions) -> Any:
        """A loaded vllm.LLM. Raises EngineError, with what vLLM said and what to do."""
        gpu = torch.cuda.is_available()
        arguments: dict[str, Any] = {
            "revision": revision,
            "tokenizer_revision": revision,
            "dtype": "auto",
            "max_model_len": -1,  # as long as the cache holds
            "load_format": "safetensors",
            "language_model_only": True,
            "tensor_parallel_size": options.tensor_parallel,
            "structured_outputs_config": STRUCTURED,
        }
        if self._own_draw:
            arguments["logits_processors"] = [OWN_DRAW]
        if not gpu:
            # In float32 the numbers are those of the transformers engine; most CPUs emulate
            # bfloat16.
            arguments |= {"dtype": "float32", "enforce_eager": True}
            os.environ.update(CPU_ENVIRONMENT | os.environ)
        os.environ[SECOND_RUNNER] = str(int(not self._own_draw))
        if options.batch_invariant:
            os.environ[BATCH_INVARIANT] = "1"
        try:
            return self._vllm.LLM(loading.resolve(model), **arguments | ARGUMENTS)
        except Exception as error:  # vLLM has no one error for this
            version = self._vllm.version
            reason = _reason(self._log, " ".join(str(error).split()))
            if isinstance(error, TypeError) and "unexpected keyword" in str(error):
                raise EngineError(
                    f"vLLM {version}: {error}; replaykit is tested with {TESTED}"
                ) from error
            refused = str(loading.cannot_load(model, ValueError(reason)))
            if "memory" in refused.lower():
                less = "lower VLLM_CPU_KVCACHE_SPACE (GiB)"
                if gpu:
                    less = "end what else is on the GPU"
                refused += f"\n  {less}, or take a smaller model."
            raise EngineError(refused) from error

    def _run(
        self, requests: Iterable[Request | None], **more: Any
    ) -> Generator[tuple[Request, Any], None, None]:
        """Each request with vLLM's output, as they finish.

        ``more`` are further sampling parameters. One iteration may feed another, and may be left
        early.
        """
        engine = self._llm.llm_engine
        waiting = iter(requests)
        flying: dict[str, Request] = {}
        try:
            while True:
                room = self.read_ahead - len(flying)
                for request in until_none(waiting, room, unanswered=bool(flying)):
                    flying[self._add(request, more)] = request
                if not flying:
                    return
                # A step of the engine may also finish what another iteration waits for.
                ready = [name for name in self._finished if name in flying]
                while not ready:
                    self._finished.update((output.request_id, output) for output in engine.step())
                    ready = [name for name in self._finished if name in flying]
                for name in ready:
                    yield flying.pop(name), self._finished.pop(name)
        except self._vllm.EngineDeadError as error:
            silent = "it said nothing, so perhaps it was killed for want of memory"
            reason = _reason(self._log, silent)
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
        """Gives vLLM the request; returns the name by which its output comes."""
        name = next(self._names)
        max_tokens = room_for(request, self.limit)
        try:
            settings = _settings(self._vllm, request, max_tokens) | more
            if self._own_draw:
                settings |= _drawn_here(request)
            params = self._vllm.SamplingParams(**settings)
            tokens = self._vllm.tokens_input(list(request.tokens))
            self._llm.llm_engine.add_request(name, tokens, params)
        except (self._vllm.VLLMClientError, ValueError) as error:
            # Such as about a token that the model does not have.
            reason = " ".join(str(error).split())
            raise EngineError(f"row {request.row}: vLLM refuses it: {reason}") from error
        return name


def _settings(vllm: SimpleNamespace, request: Request, max_tokens: int) -> dict[str, Any]:
    """The fields of vLLM's SamplingParams for a request."""
    sampling = request.sampling
    settings = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": request.seed,
        "stop_token_ids": list(sampling.stop),
        "max_tokens": max_tokens,
        # Nothing but stop_token_ids ends an answer.
        "ignore_eos": True,
        "detokenize": False,
        "output_kind": vllm.RequestOutputKind.FINAL_ONLY,
    }
    if sampling.schema is not None:
        settings["structured_outputs"] = vllm.StructuredOutputsParams(json=sampling.schema)
        # Where the JSON is complete, the schema admits the model's own end-of-sequence too, whether
        # it is a stop or not; ignored there, it would be followed by text without a schema.
        settings["ignore_eos"] = False
    return settings


def _drawn_here(request: Request) -> dict[str, Any]:
    """The fields by which OwnDraw draws for the request, and vLLM takes the likeliest token."""
    sampling = request.sampling
    greedy: dict[str, Any] = {"seed": None, "temperature": 0.0, "top_p": 1.0, "top_k": 0}
    if sampling.temperature <= 0:
        return greedy
    drawing = [request.seed, sampling.temperature, sampling.top_p, sampling.top_k]
    return greedy | {"extra_args": {DRAWING: drawing}}


def _second_runner() -> bool:
    """Whether vLLM is to take its second model runner: with a GPU, or as the user set it."""
    named = os.environ.get(SECOND_RUNNER)
    if named is None:
        return torch.cuda.is_available()
    return named == "1"


def _check_batch_invariant() -> None:
    """Raises EngineError where the device has no batch-invariant mode."""
    wanted = "engine.batch_invariant: vLLM's batch-invariant mode is for GPUs"
    if not torch.cuda.is_available():
        raise EngineError(f"{wanted}, and there is none here; leave it out")
    if torch.version.hip is not None:
        return  # of AMD's GPUs vLLM says itself which have it
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        has, least = (".".join(map(str, each)) for each in (capability, LEAST_CAPABILITY))
        raise EngineError(
            f"{wanted} of compute capability {least} and above, and this one has {has}; leave it "
            "out"
        )


def _imported() -> SimpleNamespace:
    """What is USED of vLLM, and its version.

    Raises EngineError where there is no vLLM, or one that lacks some of it.
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
    request = Request(0, (), Sampling(schema="{}"))
    used = _settings(vllm, request, 1) | _drawn_here(request) | SCORING
    unknown = sorted(set(used) - set(signature(vllm.SamplingParams).parameters))
    if unknown:
        fields = "fields" if len(unknown) > 1 else "field"
        raise EngineError(
            f"vLLM {version} has no sampling {fields} {', '.join(map(repr, unknown))}; replaykit "
            f"is tested with {TESTED}"
        )
    return vllm


def _say_when_dead(error: Exception, outputs: Any, guard: Guard) -> None:
    """Gives the error to whoever waits for vLLM's next output when one of its processes has ended.

    After a SIGKILL vLLM 0.32 itself lets them wait for good.
    """
    guard.wait()
    if outputs is not None:
        outputs.put(error)


class _Interrupted(BaseException):
    """KeyboardInterrupt by a name that vLLM does not know."""


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends what is inside.

    While vLLM waits for its processes to start, it catches KeyboardInterrupt and waits on, so here
    Ctrl-C raises another exception.
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
    """With ENVIRONMENT, and with stdout and stderr, of new processes too, going to ``log``."""
    before = dict(os.environ)
    # The descriptors, since vLLM's processes and its compiled parts write past sys.stdout.
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
    """The first error that vLLM wrote, the root of those after it; or else ``else_``."""
    log.seek(0)
    found = re.search(r"\b\w*(?:Error|Exception): (.+)", log.read().decode(errors="replace"))
    if found is None:
        return else_
    return found[1]
