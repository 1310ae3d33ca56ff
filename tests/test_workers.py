from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from replaykit.engines import Completion, Engine, Request, Sampling, load_engine, workers
from replaykit.engines.workers import Workers
from replaykit.errors import EngineError
from replaykit.model.chat import Chat
from replaykit.recipe.engine import EngineOptions

pytestmark = pytest.mark.slow  # four processes load a model each


@pytest.fixture(scope="module")
def four() -> Iterator[Workers]:
    engine = load_engine("nano", EngineOptions(name="transformers", workers=4))
    assert isinstance(engine, Workers)
    yield engine
    engine.close()


def by_row(engine: Engine, requests: Iterable[Request | None]) -> dict[int, Completion]:
    return {completion.row: completion for completion in engine.complete(requests)}


def own_questions(chat: Chat, n: int, *, max_tokens: int = 24) -> list[Request]:
    sampling = Sampling(max_tokens=max_tokens, stop=chat.stop)
    return [
        Request(row, chat.pre_query, sampling, row * 0x2545F4914F6CDD1D % 2**63) for row in range(n)
    ]


def processes(engine: Workers) -> list[psutil.Process]:
    return [psutil.Process(worker.process.pid) for worker in engine._workers]


# --- rows -----------------------------------------------------------------------------------------


def test_the_rows_of_four_workers_are_those_of_one_engine(
    four: Workers, transformers_engine: Engine, chat: Chat
) -> None:
    requests = own_questions(chat, 400)
    assert by_row(four, requests) == by_row(transformers_engine, requests)
    assert by_row(four, requests[7:8]) == by_row(transformers_engine, requests[7:8])
    assert (four.name, four.limit) == ("transformers", transformers_engine.limit)


def test_all_workers_work(four: Workers, chat: Chat) -> None:
    before = [sum(process.cpu_times()[:2]) for process in processes(four)]
    assert len(by_row(four, own_questions(chat, 1000))) == 1000
    spent = [
        sum(process.cpu_times()[:2]) - start
        for process, start in zip(processes(four), before, strict=True)
    ]
    assert min(spent) > 0.3 * max(spent)


def test_scores_come_in_the_order_of_the_sequences(
    four: Workers, transformers_engine: Engine, chat: Chat
) -> None:
    sequences = [chat.pre_query * (1 + (7 * k) % 11) for k in range(300)]
    scores = list(four.score(iter(sequences)))
    assert [len(row) + 1 for row in scores] == [len(tokens) for tokens in sequences]
    expected = list(transformers_engine.score(sequences[:20]))
    assert all(
        row == pytest.approx(other, abs=1e-4) for row, other in zip(scores, expected, strict=False)
    )


def test_rows_may_depend_on_rows_and_wait_for_them(
    four: Workers, transformers_engine: Engine, chat: Chat
) -> None:
    """Answers decide what is asked next, None while there is nothing, and scores in the midst."""
    first = own_questions(chat, 300, max_tokens=12)
    rows, scored = dict[int, Completion](), dict[int, float]()
    to_answer: list[Request] = []

    def answer_to(question: Completion) -> Request:
        tokens = (*chat.pre_query, *question.tokens, *chat.encode(chat.template.answer_header))
        return Request(
            1000 + question.row, tokens, Sampling(max_tokens=8, stop=chat.stop), question.row
        )

    def asked() -> Iterator[Request | None]:
        questions = iter(first)
        while len(rows) < 600:
            yield to_answer.pop() if to_answer else next(questions, None)

    for completion in four.complete(asked()):
        rows[completion.row] = completion
        if completion.row < 1000:
            to_answer.append(answer_to(completion))
        elif completion.row % 50 == 0 and completion.tokens:
            (scores,) = four.score([chat.pre_query + completion.tokens])
            scored[completion.row] = sum(scores)
    assert rows == by_row(
        transformers_engine, [*first, *(answer_to(rows[row]) for row in range(300))]
    )
    assert len(scored) >= 3 and all(score < 0 for score in scored.values())


def test_an_iteration_may_feed_another(
    four: Workers, transformers_engine: Engine, chat: Chat
) -> None:
    def asked(engine: Engine) -> Iterator[Request]:
        for question in engine.complete(own_questions(chat, 100, max_tokens=12)):
            tokens = (*chat.pre_query, *question.tokens, *chat.encode(chat.template.answer_header))
            yield Request(
                question.row, tokens, Sampling(temperature=0.0, max_tokens=8, stop=chat.stop)
            )

    assert by_row(four, asked(four)) == by_row(transformers_engine, asked(transformers_engine))


def test_none_while_nothing_is_unanswered_is_a_bug(four: Workers) -> None:
    with pytest.raises(AssertionError, match="None among the requests"):
        list(four.complete([None]))


def test_an_iteration_that_is_left_early_leaves_the_workers_usable(
    four: Workers, transformers_engine: Engine, chat: Chat
) -> None:
    read = 0

    def counted() -> Iterator[Request]:
        nonlocal read
        for request in own_questions(chat, 20_000, max_tokens=100):
            read += 1
            yield request

    left = four.complete(counted())
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert read <= 4 * 1024

    def broken() -> Iterator[Request]:
        yield from own_questions(chat, 300)
        raise ValueError("the pool is empty")

    with pytest.raises(ValueError, match="the pool is empty"):
        list(four.complete(broken()))
    others = [
        Request(row, chat.pre_query, Sampling(max_tokens=24, stop=chat.stop), seed=row + 9)
        for row in range(60)
    ]
    assert by_row(four, others) == by_row(transformers_engine, others)
    assert [worker.flying for worker in four._workers] == [{}] * 4


# --- errors and ends ------------------------------------------------------------------------------


def test_an_error_of_a_request_is_the_engines_own_and_ends_no_worker(
    four: Workers, transformers_engine: Any, chat: Chat
) -> None:
    full = Request(17, (chat.pre_query * four.limit)[: four.limit], Sampling(stop=chat.stop))
    requests = [*own_questions(chat, 50), full]
    errors = []
    for engine in (transformers_engine, four):
        with pytest.raises(EngineError) as caught:
            list(engine.complete(requests))
        errors.append(str(caught.value))
    assert (
        errors
        == [f"row 17: its prompt has {four.limit} tokens and the model reads {four.limit}"] * 2
    )
    assert len(by_row(four, requests[:50])) == 50
    assert len(four._workers) == 4


def test_ctrl_c_does_not_reach_the_workers(four: Workers, chat: Chat) -> None:
    completions = four.complete(own_questions(chat, 200))
    done = [next(completions)]
    for process in processes(four):
        process.send_signal(signal.SIGINT)
    done += completions
    assert sorted(completion.row for completion in done) == list(range(200))
    assert all(process.is_running() for process in processes(four))


PARENT = """
import os, signal
from replaykit.engines import Request, Sampling, load_engine
from replaykit.recipe.engine import EngineOptions

if __name__ == "__main__":
    engine = load_engine("nano", EngineOptions(name="transformers", workers=2))
    tokens = (5, 6, 7)  # one short row, and minutes of work beside it
    short = Sampling(max_tokens=1)
    long = Sampling(max_tokens=2000)
    completions = engine.complete(Request(k, tokens, long if k else short) for k in range(9999))
    print(*(worker.process.pid for worker in engine._workers), flush=True)
    {}
"""


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("next(completions); os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("next(completions)", 0),
    ],
    ids=["killed", "at its end, without close()"],
)
def test_the_workers_end_with_their_parent(tmp_path: Path, last: str, code: int) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(last))
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert run.returncode == code, run.stderr
    pids = [int(pid) for pid in run.stdout.split()]
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=120
    )
    assert len(pids) == 2 and alive == []


def test_a_model_that_cannot_be_loaded_is_the_engines_own_error(tmp_path: Path) -> None:
    options = EngineOptions(name="transformers", workers=2)
    with pytest.raises(
        EngineError, match="neither a folder here, nor a Hub id .*; did you mean 'llama3"
    ):
        load_engine("llama33", options)
    with pytest.raises(EngineError, match=f"{tmp_path} cannot be loaded: "):
        load_engine(str(tmp_path), options)


# --- who has what ---------------------------------------------------------------------------------


def gpus(monkeypatch: pytest.MonkeyPatch, here: int, visible: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_each_worker_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def visible(workers_: int, tensor_parallel: int) -> list[str]:
        found = workers._environments(workers_, tensor_parallel)
        return [environment["CUDA_VISIBLE_DEVICES"] for environment in found]

    gpus(monkeypatch, 8, None)
    assert visible(3, 2) == ["0,1", "2,3", "4,5"]
    gpus(monkeypatch, 4, "7,5,GPU-3f,1")
    assert visible(2, 2) == ["7,5", "GPU-3f,1"]
    assert visible(4, 1) == ["7", "5", "GPU-3f", "1"]
    with pytest.raises(
        EngineError, match="3 workers of 2 GPUs each need 6 GPUs, and 4 are visible here"
    ):
        visible(3, 2)
    with pytest.raises(EngineError, match="5 workers need 5 GPUs, and 4 are visible here"):
        visible(5, 1)


def test_on_a_cpu_the_workers_share_out_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0, None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 9)
    assert [e["OMP_NUM_THREADS"] for e in workers._environments(4, 1)] == ["2"] * 4
    assert [e["OMP_NUM_THREADS"] for e in workers._environments(16, 1)] == ["1"] * 16


def test_a_worker_finds_its_environment_and_the_parent_keeps_its_own(four: Workers) -> None:
    assert {process.environ()["VLLM_CPU_OMP_THREADS_BIND"] for process in processes(four)} == {
        "nobind"
    }
    assert "VLLM_CPU_OMP_THREADS_BIND" not in os.environ


# --- the end of the four --------------------------------------------------------------------------


def test_a_killed_worker_loses_no_row_and_the_last_one_is_an_error(
    four: Workers, transformers_engine: Engine, chat: Chat, caplog: pytest.LogCaptureFixture
) -> None:
    """The last test of the file, for it leaves none of the four."""
    requests = own_questions(chat, 600)
    first, *others, last = processes(four)
    with caplog.at_level(logging.WARNING):
        completions = four.complete(requests)
        done = [next(completions)]
        first.kill()
        done += completions
    assert {completion.row: completion for completion in done} == by_row(
        transformers_engine, requests
    )
    assert len(done) == 600
    (warning,) = caplog.messages
    assert warning.startswith("a worker ended: worker 0 ended with exit code -9; its ")
    for process in others:
        process.kill()
    assert len(by_row(four, requests[:50])) == 50
    completions = four.complete(requests)
    next(completions)
    last.kill()
    with pytest.raises(EngineError, match="no worker is left: worker 3 ended with exit code -9"):
        list(completions)
    with pytest.raises(EngineError, match="no worker is left: worker 3 ended"):
        list(four.complete(requests))
