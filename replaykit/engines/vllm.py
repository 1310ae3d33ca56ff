"""The engine for a GPU, and on trial for any CPU: vLLM, in processes of its own, with a bounded number of requests.

What vLLM writes while it starts, and its processes ever after, goes to a temporary file that is read only to say why it
failed; nothing reaches stdout. Set VLLM_LOGGING_LEVEL=INFO to see it all on stderr.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count, islice
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import IO, Any

import torch

from replaykit import models
from replaykit.engines import Completion, Request, Sampling
from replaykit.errors import EngineError
from replaykit.recipe import EngineOptions

# Each gives way to the user's own. Spawn, because a fork of a process with OpenMP threads may hang.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
# The cache in GiB; and no compiler, which enforce_eager leaves in the log-probabilities: 20 s before the first.
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}


class VllmEngine:
    """A causal language model in vLLM. ``limit`` is what its cache holds, at most what the model reads."""

    name = "vllm"

    def __init__(self, model: str, *, revision: str | None = None, options: EngineOptions | None = None):
        models.load_tokenizer(model, revision)  # says in a line what vLLM would say in a hundred
        self._log: IO[bytes] = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - open until close()
        others = set(active_children())
        self._llm: Any = _start(model, revision, self._log)
        self._guard = _guard(set(active_children()) - others)
        self._names = map(str, count())
        self._finished: dict[str, Any] = {}  # outputs by name, until the iteration that asked takes them
        config = self._llm.llm_engine.vllm_config
        self.limit: int = config.model_config.max_model_len
        self.read_ahead: int = 2 * config.scheduler_config.max_num_seqs  # one batch at work and one at the door

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        with closing(self._run(requests)) as answers:
            for request, answer in answers:
                tokens, reason = answer.outputs[0].token_ids, answer.outputs[0].finish_reason
                yield Completion(request.row, tuple(tokens[:-1] if reason == "stop" else tokens), reason)

    def score(self, sequences: Iterable[Sequence[int]]) -> Iterator[list[float]]:
        # vLLM must draw one token. A request with prompt_logprobs reads no cached prefix, so no position is missing.
        requests = (Request(k, tuple(s), Sampling(temperature=0.0, max_tokens=1)) for k, s in enumerate(sequences))
        waiting: dict[int, list[float]] = {}
        turn = 0
        with closing(self._run(requests, prompt_logprobs=0, flat_logprobs=True)) as answers:
            for request, answer in answers:
                waiting[request.row] = list(answer.prompt_logprobs.logprobs)
                while turn in waiting:
                    yield waiting.pop(turn)
                    turn += 1

    def close(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._guard.communicate(b"\n")
            self._llm = None
            self._log.close()

    def _run(self, requests: Iterable[Request], **more: Any) -> Generator[tuple[Request, Any], None, None]:
        """Each request with vLLM's output, as they finish. One iteration may feed another, and may be left early."""
        from vllm.v1.engine.exceptions import EngineDeadError

        engine, waiting, flying = self._llm.llm_engine, iter(requests), dict[str, Request]()
        try:
            while True:
                for request in islice(waiting, self.read_ahead - len(flying)):
                    flying[self._add(request, more)] = request
                if not flying:
                    return
                while not (ready := [name for name in self._finished if name in flying]):
                    self._finished.update((output.request_id, output) for output in engine.step())
                for name in ready:
                    yield flying.pop(name), self._finished.pop(name)
        except EngineDeadError as error:
            reason = _reason(self._log, error)
            self.close()
            raise EngineError(f"vLLM's process ended: {reason}; VLLM_LOGGING_LEVEL=INFO shows more") from error
        finally:
            if self._llm is not None:
                engine.abort_request(list(flying))
                for name in flying:
                    self._finished.pop(name, None)

    def _add(self, request: Request, more: dict[str, Any]) -> str:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        name, size, s = next(self._names), len(request.tokens), request.sampling
        if size >= self.limit:
            raise EngineError(f"row {request.row}: its prompt has {size} tokens and the model reads {self.limit}")
        try:  # with ignore_eos, nothing but stop_token_ids ends an answer
            params = SamplingParams(
                temperature=s.temperature, top_p=s.top_p, seed=request.seed, stop_token_ids=list(s.stop),
                max_tokens=min(s.max_tokens, self.limit - size), ignore_eos=True, detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY, **more,
            )  # fmt: skip
            self._llm.llm_engine.add_request(name, tokens_input(list(request.tokens)), params)
        except ValueError as error:  # such as a temperature above 2, or a token that the model does not have
            raise EngineError(f"row {request.row}: vLLM refuses it: {error}") from error
        return name


def _start(model: str, revision: str | None, log: IO[bytes]) -> Any:
    gpu = torch.cuda.is_available()
    device: dict[str, Any] = {"dtype": "auto"} if gpu else {"dtype": "float32", "enforce_eager": True}
    with _aside(log):
        try:
            from vllm import LLM
        except Exception as error:  # builds that do not match fail in many ways
            what = f"{type(error).__name__}: {error}"
            raise EngineError(f"vLLM cannot be imported: {what}\n  `--engine transformers` does without.") from error
        os.environ.update({} if gpu else CPU_ENVIRONMENT | os.environ)
        try:  # max_model_len -1 is as long as the cache holds
            name, device["tokenizer_revision"] = models.resolve(model), revision
            return LLM(
                name, revision=revision, max_model_len=-1, load_format="safetensors", language_model_only=True, **device
            )
        except Exception as error:  # vLLM has no one error for this
            refused = models.cannot_load(model, ValueError(_reason(log, error)))
            less = "end what else is on the GPU" if gpu else "lower VLLM_CPU_KVCACHE_SPACE (GiB)"
            hint = f"\n  {less}, or take a smaller model." if "memory" in str(refused).lower() else ""
            raise EngineError(f"{refused}{hint}") from error


def _guard(processes: Iterable[BaseProcess]) -> subprocess.Popen[bytes]:
    """A shell that ends vLLM when its stdin does, at the latest when this process does, even by SIGKILL.

    vLLM's processes do not see that, and would keep the memory for good. A line of input makes it end without.
    """
    end = "read -r line || kill " + " ".join(str(process.pid) for process in processes)
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        ["sh", "-c", end], stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
    )


@contextmanager
def _aside(log: IO[bytes]) -> Iterator[None]:
    """With ENVIRONMENT, and with what is written to stdout and stderr, here and by new processes, gone to ``log``."""
    before, kept = dict(os.environ), [(stream, os.dup(stream)) for stream in (1, 2)]
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


def _reason(log: IO[bytes], error: Exception) -> str:
    """The first error that vLLM wrote, the root of those after it; else this one, on one line."""
    log.seek(0)
    found = re.search(r"\b\w*(?:Error|Exception): (.+)", log.read().decode(errors="replace"))
    return found[1] if found else " ".join(str(error).split())
