from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from replaykit.chat import Chat
from replaykit.engines import Completion, Engine, Request, Sampling, choose, load_engine, vllm
from replaykit.errors import EngineError
from replaykit.records import dialogue

QUESTIONS = ["What is the capital of France?", "Reverse the word: stone", "Hello", "What is 12 + 7?"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads make so small a model no faster, and wait for each other at every step where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["transformers", "vllm"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_engine")


def by_row(engine: Engine, requests: Iterable[Request]) -> dict[int, Completion]:
    return {completion.row: completion for completion in engine.complete(requests)}


def own_questions(chat: Chat, n: int, *, first_seed: int = 0, max_tokens: int = 24) -> list[Request]:
    """The bare pre-query n times, each with its own seed of 63 bits: Magpie's requests."""
    sampling = Sampling(max_tokens=max_tokens, stop=chat.stop)
    return [Request(row, chat.pre_query, sampling, (first_seed + row) * 0x2545F4914F6CDD1D % 2**63) for row in range(n)]


def answers(chat: Chat, **sampling: Any) -> list[Request]:
    settings = Sampling(**{"temperature": 0.0, "max_tokens": 60, "stop": chat.stop} | sampling)
    return [Request(row, chat.prompt(dialogue(text)), settings) for row, text in enumerate(QUESTIONS)]


# --- what is drawn --------------------------------------------------------------------------------------------------


def test_greedy_answers_are_the_same_in_both_engines(
    transformers_engine: Engine, vllm_engine: Engine, chat: Chat
) -> None:
    requests = answers(chat)
    expected = by_row(transformers_engine, requests)
    assert by_row(vllm_engine, requests) == expected
    assert all(completion.tokens for completion in expected.values())


def test_a_row_draws_the_same_tokens_in_any_batch_and_any_order(engine: Engine, chat: Chat) -> None:
    requests = own_questions(chat, 50)
    together = by_row(engine, requests)
    assert by_row(engine, reversed(requests)) == together
    for size, rows in ((7, 50), (1, 8)):
        batches = (requests[start : start + size] for start in range(0, rows, size))
        apart = {row: done for batch in batches for row, done in by_row(engine, batch).items()}
        assert apart == {row: together[row] for row in range(rows)}


def test_different_seeds_draw_different_tokens(engine: Engine, chat: Chat) -> None:
    first = by_row(engine, own_questions(chat, 50))
    other = by_row(engine, own_questions(chat, 50, first_seed=50))
    assert sum(first[row].tokens == other[row].tokens for row in range(50)) <= 2
    assert len({completion.tokens for completion in first.values()}) >= 45


def test_a_low_top_p_draws_from_the_nucleus_only(engine: Engine, transformers_engine: Any, chat: Chat) -> None:
    header = torch.tensor([chat.pre_query])
    with torch.inference_mode():
        probabilities = transformers_engine.model(header).logits[0, -1].double().softmax(0).sort(descending=True)
    before = probabilities.values.cumsum(0) - probabilities.values
    nucleus = set(probabilities.indices[before < 0.5].tolist())

    def drawn(top_p: float) -> set[int]:
        sampling = Sampling(top_p=top_p, max_tokens=1)
        return {c.tokens[0] for c in engine.complete(Request(i, chat.pre_query, sampling, i) for i in range(200))}

    assert drawn(0.5) <= nucleus
    assert drawn(1.0) - nucleus


# --- where an answer ends -------------------------------------------------------------------------------------------


def test_an_answer_that_reaches_a_stop_says_stop_and_does_not_return_it(engine: Engine, chat: Chat) -> None:
    done = by_row(engine, answers(chat))
    for row, whole in done.items():
        assert whole.finish_reason == "stop" and not set(whole.tokens) & set(chat.stop)
        last = whole.tokens[-1]
        again = by_row(engine, [answers(chat, stop=(last,))[row]])[row]
        assert again == Completion(row, whole.tokens[: whole.tokens.index(last)], "stop")


def test_an_answer_that_is_cut_says_length(engine: Engine, chat: Chat) -> None:
    done = by_row(engine, answers(chat))
    for row, cut in by_row(engine, answers(chat, max_tokens=1)).items():
        assert cut == Completion(row, done[row].tokens[:1], "length")


def test_only_the_stops_that_were_given_end_an_answer(engine: Engine, chat: Chat) -> None:
    """The model's own end-of-turn is a token like any other if it is not among them."""
    done = by_row(engine, answers(chat, stop=()))
    assert {(len(c.tokens), c.finish_reason) for c in done.values()} == {(60, "length")}
    assert all(chat.tokenizer.eos_token_id in c.tokens for c in done.values())


def test_an_answer_stops_where_the_model_can_read_no_further(engine: Any, chat: Chat) -> None:
    prompt = chat.pre_query * engine.limit
    request = Request(0, prompt[: engine.limit - 3], Sampling(temperature=0.0, max_tokens=60))
    (done,) = engine.complete([request])
    assert (len(done.tokens), done.finish_reason) == (3, "length")


def test_a_prompt_without_room_is_an_error_that_names_the_row(engine: Any, chat: Chat) -> None:
    full = Request(17, (chat.pre_query * engine.limit)[: engine.limit], Sampling(stop=chat.stop))
    with pytest.raises(EngineError, match=rf"row 17: its prompt has {engine.limit} tokens and the model reads"):
        list(engine.complete([*own_questions(chat, 3), full]))
    assert len(by_row(engine, own_questions(chat, 3))) == 3


# --- how requests are read ------------------------------------------------------------------------------------------


def test_completions_come_before_all_requests_are_read(engine: Engine, chat: Chat) -> None:
    read = 0

    def counted() -> Iterator[Request]:
        nonlocal read
        for request in own_questions(chat, 5000, max_tokens=4):
            read += 1
            yield request

    completions = engine.complete(counted())
    next(completions)
    assert read <= 1024
    completions.close()  # type: ignore[attr-defined]


def test_an_iteration_that_is_left_early_leaves_the_engine_usable(engine: Engine, chat: Chat) -> None:
    expected = by_row(engine, own_questions(chat, 5))
    left = engine.complete(own_questions(chat, 300))
    next(left)
    left.close()  # type: ignore[attr-defined]

    def broken() -> Iterator[Request]:
        yield from own_questions(chat, 5)
        raise ValueError("the pool is empty")

    with pytest.raises(ValueError, match="the pool is empty"):
        list(engine.complete(broken()))
    assert by_row(engine, own_questions(chat, 5)) == expected


def test_the_questions_that_an_engine_makes_can_be_fed_back_as_they_come(engine: Engine, chat: Chat) -> None:
    def asked() -> Iterator[Request]:
        for question in engine.complete(own_questions(chat, 40)):
            tokens = (*chat.pre_query, *question.tokens, *chat.encode(chat.template.answer_header))
            yield Request(question.row, tokens, Sampling(temperature=0.0, max_tokens=8, stop=chat.stop))

    assert by_row(engine, asked()) == by_row(engine, list(asked()))


# --- scores ---------------------------------------------------------------------------------------------------------


def test_scores_are_the_log_probabilities_of_a_forward_pass(
    engine: Engine, transformers_engine: Any, chat: Chat
) -> None:
    sequences = [request.tokens for request in answers(chat)]
    sequences = [*sequences, sequences[0][:1], sequences[0], sequences[1][:40]]  # one token; a prefix seen before
    scores = list(engine.score(iter(sequences)))
    assert [len(row) for row in scores] == [len(tokens) - 1 for tokens in sequences]
    for tokens, row in zip(sequences, scores, strict=True):
        with torch.inference_mode():
            expected = transformers_engine.model(torch.tensor([tokens])).logits[0, :-1].log_softmax(1)
        expected = expected.gather(1, torch.tensor(tokens[1:], dtype=torch.long)[:, None])[:, 0]
        assert row == pytest.approx(expected.tolist(), abs=1e-3)


def test_scores_come_in_the_order_of_the_sequences(engine: Engine, chat: Chat) -> None:
    sequences = [chat.pre_query * (1 + (7 * k) % 11) for k in range(40)]
    assert [len(row) + 1 for row in engine.score(sequences)] == [len(tokens) for tokens in sequences]


# --- loading --------------------------------------------------------------------------------------------------------


def test_an_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(EngineError, match="no engine 'vlm'; known are vllm, transformers; did you mean 'vllm'"):
        load_engine("nano", "vlm")


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_an_unknown_model_names_the_known_ones(name: str) -> None:
    with pytest.raises(EngineError, match="neither a folder here, nor a Hub id .*; did you mean 'llama3"):
        load_engine("llama33", name)


def test_auto_is_an_engine_of_the_table() -> None:
    assert choose("auto") in ("vllm", "transformers")


def test_what_vllm_and_its_processes_write_goes_to_its_log(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    before = dict(os.environ)
    with tempfile.TemporaryFile("a+b") as log:
        with vllm._aside(log):
            os.write(1, b"from Python\n")
            os.write(2, b"from C\n")
            subprocess.run(["sh", "-c", "echo $VLLM_LOGGING_LEVEL"], check=True)
            os.environ["LD_PRELOAD"] = "libsomething.so"
        log.seek(0)
        assert sorted(log.read().split(b"\n")) == [b"", b"ERROR", b"from C", b"from Python"]
    assert dict(os.environ) == before
    assert capfd.readouterr() == ("", "")
