from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from replaykit.data.record import dialogue
from replaykit.engines import (
    Completion,
    Engine,
    Request,
    Sampling,
    choose,
    engine_fact,
    load_engine,
    vllm,
)
from replaykit.engines.draw import Numbers, draw
from replaykit.engines.transformers import TransformersEngine
from replaykit.errors import EngineError, MissingExtra
from replaykit.model.chat import Chat
from replaykit.recipe.engine import EngineOptions

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTIONS = [
    "What is the capital of France?",
    "Reverse the word: stone",
    "Hello",
    "What is 12 + 7?",
]


@pytest.fixture(params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_engine")


def by_row(engine: Engine, requests: Iterable[Request | None]) -> dict[int, Completion]:
    return {completion.row: completion for completion in engine.complete(requests)}


def own_questions(
    chat: Chat, n: int, *, first_seed: int = 0, max_tokens: int = 24
) -> list[Request]:
    """The bare pre-query n times, each with its own seed of 63 bits: Magpie's requests."""
    sampling = Sampling(max_tokens=max_tokens, stop=chat.stop)
    return [
        Request(row, chat.pre_query, sampling, (first_seed + row) * 0x2545F4914F6CDD1D % 2**63)
        for row in range(n)
    ]


def answers(chat: Chat, **sampling: Any) -> list[Request]:
    settings = Sampling(**{"temperature": 0.0, "max_tokens": 60, "stop": chat.stop} | sampling)
    return [
        Request(row, chat.prompt(dialogue(text)), settings) for row, text in enumerate(QUESTIONS)
    ]


# --- what is drawn --------------------------------------------------------------------------------


def test_greedy_answers_are_the_same_in_both_engines(
    transformers_engine: Engine, vllm_engine: Engine, chat: Chat
) -> None:
    requests = answers(chat)
    expected = by_row(transformers_engine, requests)
    assert by_row(vllm_engine, requests) == expected
    assert all(completion.tokens for completion in expected.values())


@pytest.mark.slow
def test_a_row_draws_the_same_tokens_in_any_batch_and_any_order(engine: Engine, chat: Chat) -> None:
    requests = own_questions(chat, 50)
    together = by_row(engine, requests)
    assert by_row(engine, reversed(requests)) == together
    for size, rows in ((7, 50), (1, 8)):
        batches = (requests[start : start + size] for start in range(0, rows, size))
        apart = {row: done for batch in batches for row, done in by_row(engine, batch).items()}
        assert apart == {row: together[row] for row in range(rows)}


def long_questions(chat: Chat, n: int) -> list[Request]:
    """Requests of 150 words and more each, with samplings of many kinds."""
    words = "the old house stood on a hill and the wind went round it all night".split()
    kinds: list[dict[str, Any]] = [{}, {"top_p": 0.9}, {"temperature": 1.5, "top_k": 40}]
    requests = []
    for row in range(n):
        text = " ".join(words[(row * 7 + k) % len(words)] for k in range(150))
        sampling = Sampling(max_tokens=24, stop=chat.stop, **kinds[row % len(kinds)])
        tokens = chat.prompt(dialogue(f"{row} {text}"))
        requests.append(Request(row, tokens, sampling, row * 0x2545F4914F6CDD1D % 2**63))
    return requests


# Fewer tokens a pass than a prompt has, and a cache that holds the prompts of three rows, but not
# their answers too.
CRAMPED = {
    "max_num_batched_tokens": 128,
    "num_gpu_blocks_override": 28,
    "block_size": 32,
    "max_model_len": 512,
    "enable_prefix_caching": False,
    "disable_log_stats": False,
}


@pytest.fixture(scope="module")
def cramped(vllm_engine: Engine) -> Iterator[Any]:
    """A second engine of vLLM beside the first. The last test that takes it kills it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "ARGUMENTS", CRAMPED)
        engine = load_engine("nano", "vllm")
    yield engine
    engine.close()


@pytest.mark.slow
def test_prompts_read_in_parts_and_rows_put_aside_draw_the_same_tokens(
    vllm_engine: Engine, cramped: Any, transformers_engine: Engine, chat: Chat
) -> None:
    requests = long_questions(chat, 64)
    assert min(len(request.tokens) for request in requests) > CRAMPED["max_num_batched_tokens"]
    expected = by_row(vllm_engine, requests)
    assert by_row(cramped, requests) == expected
    # One at a time nothing is put aside, and each prompt is still read in parts.
    assert by_row(cramped, requests[:1]) == {0: expected[0]}
    assert by_row(cramped, reversed(requests[40:])) == {k: expected[k] for k in range(40, 64)}
    counts = {each.name: each for each in cramped._llm.get_metrics()}
    assert counts["vllm:num_preemptions"].value > 0
    assert by_row(transformers_engine, requests) == expected


def test_both_engines_draw_the_same_tokens_where_their_logits_are_the_same(
    transformers_engine: Engine, vllm_engine: Engine, chat: Chat
) -> None:
    """On a CPU both are float32. On a GPU the last digits differ, and so, at times, do tokens."""
    requests = own_questions(chat, 30)
    assert by_row(vllm_engine, requests) == by_row(transformers_engine, requests)


def test_a_number_is_looked_up_by_its_place() -> None:
    numbers = [Numbers(7).at(place) for place in range(20)]
    assert len(set(numbers)) == 20
    one = Numbers(7)
    assert [one.at(place) for place in (5, 2, 5, 19, 0)] == [numbers[k] for k in (5, 2, 5, 19, 0)]
    assert Numbers(8).at(0) != numbers[0]


def test_a_row_that_needs_no_token_does_not_move_the_others() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    wanted = [(Sampling(), 0.3), (Sampling(top_k=5), 0.9), (Sampling(temperature=0.0), 0.0)]
    tokens = draw(logits, wanted)
    assert tokens[2] == int(logits[2].argmax())
    assert draw(logits, [wanted[0], None, None])[0] == tokens[0]
    assert draw(logits[1:2], wanted[1:2]) == tokens[1:2]


@pytest.mark.slow
def test_different_seeds_draw_different_tokens(engine: Engine, chat: Chat) -> None:
    first = by_row(engine, own_questions(chat, 50))
    other = by_row(engine, own_questions(chat, 50, first_seed=50))
    assert sum(first[row].tokens == other[row].tokens for row in range(50)) <= 2
    assert len({completion.tokens for completion in first.values()}) >= 45


@pytest.mark.slow
def test_a_low_top_p_draws_from_the_nucleus_only(
    engine: Engine, transformers_engine: Any, chat: Chat
) -> None:
    probabilities = first_probabilities(transformers_engine, chat).sort(descending=True)
    before = probabilities.values.cumsum(0) - probabilities.values
    nucleus = set(probabilities.indices[before < 0.5].tolist())

    def drawn(top_p: float) -> set[int]:
        sampling = Sampling(top_p=top_p, max_tokens=1)
        return {
            c.tokens[0]
            for c in engine.complete(Request(i, chat.pre_query, sampling, i) for i in range(200))
        }

    assert drawn(0.5) <= nucleus
    assert drawn(1.0) - nucleus


def first_probabilities(engine: Any, chat: Chat) -> torch.Tensor:
    """Of the first token of a question, sorted by token id."""
    with torch.inference_mode():
        return engine.model(torch.tensor([chat.pre_query])).logits[0, -1].double().softmax(0)


@pytest.mark.slow
def test_top_k_is_cut_before_top_p(engine: Engine, transformers_engine: Any, chat: Chat) -> None:
    best = first_probabilities(transformers_engine, chat).sort(descending=True)
    first, second, third = best.indices[:3].tolist()
    of_three = float(
        best.values[:2].sum() / best.values[:3].sum()
    )  # where top-p leaves the third out, of three only

    def drawn(**sampling: Any) -> set[int]:
        settings = Sampling(max_tokens=1, temperature=1.0, **sampling)
        return {
            c.tokens[0]
            for c in engine.complete(Request(i, chat.pre_query, settings, i) for i in range(300))
        }

    assert drawn(top_k=3) == {first, second, third}
    assert drawn(top_k=1) == {first}
    assert len(drawn(top_p=of_three - 1e-3)) > 2
    assert drawn(top_k=3, top_p=of_three - 1e-3) == {first, second}


@pytest.mark.slow
def test_the_samplings_of_other_rows_change_nothing(engine: Engine, chat: Chat) -> None:
    kinds = [
        {},
        {"top_p": 0.7},
        {"top_k": 5},
        {"temperature": 0.0},
        {"temperature": 1.5, "top_p": 0.9, "top_k": 40},
    ]
    requests = [
        replace(request, sampling=replace(request.sampling, **kinds[request.row % len(kinds)]))
        for request in own_questions(chat, 40)
    ]
    together = by_row(engine, requests)
    alike = [by_row(engine, requests[kind :: len(kinds)]) for kind in range(len(kinds))]
    assert together == {row: done for part in alike for row, done in part.items()}


SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "size": {"type": "integer", "maximum": 99},
        },
        "required": ["city", "size"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize("stops", [True, False], ids=["with the chat's stops", "without a stop"])
def test_vllm_holds_an_answer_to_the_schema_and_ends_with_it(
    vllm_engine: Engine, chat: Chat, stops: bool
) -> None:
    sampling = Sampling(max_tokens=60, stop=chat.stop if stops else (), schema=SCHEMA)
    requests = [
        Request(row, chat.prompt(dialogue(QUESTIONS[0])), sampling, row) for row in range(20)
    ]
    done = by_row(vllm_engine, requests)
    assert {completion.finish_reason for completion in done.values()} == {"stop"}
    answers = [json.loads(chat.decode(completion.tokens)) for completion in done.values()]
    assert {tuple(answer) for answer in answers} == {("city", "size")}
    assert len({answer["city"] for answer in answers}) > 5
    assert by_row(vllm_engine, requests[3:4]) == {3: done[3]}


def test_transformers_takes_a_schema_and_draws_as_without(
    transformers_engine: Engine, chat: Chat
) -> None:
    expected = by_row(transformers_engine, answers(chat))
    assert by_row(transformers_engine, answers(chat, schema=SCHEMA)) == expected


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [
        (Sampling(schema="{"), "Invalid JSON"),
        (Sampling(schema='{"type": "nonsense"}'), "nonsense"),
        (Sampling(stop=(99_999,)), "out-of-vocab"),
    ],
    ids=["no JSON", "no schema", "stop"],
)
def test_what_vllm_refuses_is_an_error_of_one_line_that_names_the_row(
    vllm_engine: Engine, chat: Chat, sampling: Sampling, reason: str
) -> None:
    with pytest.raises(EngineError, match=f"^row 5: vLLM refuses it: .*{reason}.*$"):
        list(vllm_engine.complete([*own_questions(chat, 3), Request(5, chat.pre_query, sampling)]))
    assert len(by_row(vllm_engine, own_questions(chat, 3))) == 3


# --- where an answer ends -------------------------------------------------------------------------


def test_an_answer_that_reaches_a_stop_says_stop_and_does_not_return_it(
    engine: Engine, chat: Chat
) -> None:
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
    with pytest.raises(
        EngineError, match=rf"row 17: its prompt has {engine.limit} tokens and the model reads"
    ):
        list(engine.complete([*own_questions(chat, 3), full]))
    assert len(by_row(engine, own_questions(chat, 3))) == 3


# --- how requests are read ------------------------------------------------------------------------


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


@pytest.mark.slow
def test_an_iteration_that_is_left_early_leaves_the_engine_usable(
    engine: Engine, chat: Chat
) -> None:
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


@pytest.mark.slow
def test_the_questions_that_an_engine_makes_can_be_fed_back_as_they_come(
    engine: Engine, chat: Chat
) -> None:
    def asked() -> Iterator[Request]:
        for question in engine.complete(own_questions(chat, 40)):
            tokens = (*chat.pre_query, *question.tokens, *chat.encode(chat.template.answer_header))
            yield Request(
                question.row, tokens, Sampling(temperature=0.0, max_tokens=8, stop=chat.stop)
            )

    assert by_row(engine, asked()) == by_row(engine, list(asked()))


@pytest.mark.slow
def test_none_waits_for_the_next_completion(engine: Engine, chat: Chat) -> None:
    """Questions and their answers in one stream, with no more than 16 conversations open."""
    started, ended = 0, dict[int, Completion]()
    to_answer: list[Request] = []

    def asked() -> Iterator[Request | None]:
        nonlocal started
        questions = own_questions(chat, 100, max_tokens=12)
        while len(ended) < 100:
            if to_answer:
                yield to_answer.pop()
            elif started < 100 and started - len(ended) < 16:
                started += 1
                yield questions[started - 1]
            else:
                yield None

    def answer_to(question: Completion) -> Request:
        tokens = (*chat.pre_query, *question.tokens, *chat.encode(chat.template.answer_header))
        return Request(
            1000 + question.row, tokens, Sampling(max_tokens=8, stop=chat.stop), question.row
        )

    for completion in engine.complete(asked()):
        if completion.row < 1000:
            to_answer.append(answer_to(completion))
        else:
            ended[completion.row] = completion
    questions = by_row(engine, own_questions(chat, 100, max_tokens=12))
    assert ended == by_row(engine, map(answer_to, questions.values()))


def test_none_while_nothing_is_unanswered_is_a_bug(engine: Engine, chat: Chat) -> None:
    with pytest.raises(AssertionError, match="None among the requests"):
        list(engine.complete([None]))
    with pytest.raises(AssertionError, match="None among the requests"):
        list(engine.complete([*own_questions(chat, 1), *[None] * 5]))


@pytest.mark.slow
def test_rows_of_like_length_share_a_batch_and_none_waits_for_good(
    transformers_engine: Any, chat: Chat
) -> None:
    """The long first row is not put off for ever by short ones that keep coming."""
    long = Request(0, chat.pre_query * 50, Sampling(temperature=0.0, max_tokens=1))
    short = [
        Request(1 + k, chat.pre_query, Sampling(temperature=0.0, max_tokens=1)) for k in range(1200)
    ]
    place = [c.row for c in transformers_engine.complete([*short[:200], long, *short[200:]])].index(
        0
    )
    assert place <= 256


# --- scores ---------------------------------------------------------------------------------------


def test_scores_are_the_log_probabilities_of_a_forward_pass(
    engine: Engine, transformers_engine: Any, chat: Chat
) -> None:
    sequences = [request.tokens for request in answers(chat)]
    sequences = [
        *sequences,
        sequences[0][:1],
        sequences[0],
        sequences[1][:40],
    ]  # one token; a prefix seen before
    scores = list(engine.score(iter(sequences)))
    assert [len(row) for row in scores] == [len(tokens) - 1 for tokens in sequences]
    for tokens, row in zip(sequences, scores, strict=True):
        with torch.inference_mode():
            expected = (
                transformers_engine.model(torch.tensor([tokens])).logits[0, :-1].log_softmax(1)
            )
        expected = expected.gather(1, torch.tensor(tokens[1:], dtype=torch.long)[:, None])[:, 0]
        assert row == pytest.approx(expected.tolist(), abs=1e-3)


def test_scores_come_in_the_order_of_the_sequences(engine: Engine, chat: Chat) -> None:
    sequences = [chat.pre_query * (1 + (7 * k) % 11) for k in range(40)]
    assert [len(row) + 1 for row in engine.score(sequences)] == [
        len(tokens) for tokens in sequences
    ]


# --- processes ------------------------------------------------------------------------------------


def test_ctrl_c_does_not_reach_the_processes_of_vllm(vllm_engine: Engine, chat: Chat) -> None:
    """A terminal sends SIGINT to them as well, and vLLM would end of it."""
    # An engine that was closed before may leave a child that nobody has asked for its end yet.
    alive = [
        p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE
    ]
    processes = [p for p in alive if "VLLM" in words_of(p)]
    assert len(processes) >= 2
    completions = vllm_engine.complete(own_questions(chat, 600))
    done = [next(completions)]
    for process in processes:
        process.send_signal(signal.SIGINT)
    done += completions
    assert sorted(completion.row for completion in done) == list(range(600))
    assert all(process.is_running() for process in processes)


def words_of(process: psutil.Process) -> str:
    """Its command line, nothing where it has ended meanwhile."""
    try:
        return "".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.parametrize("ends", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_process_that_is_ended_while_vllm_starts(
    vllm_engine: Engine, ends: signal.Signals
) -> None:
    code = "from replaykit.engines import load_engine\nif __name__ == '__main__': load_engine('nano', 'vllm')"
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    started: list[psutil.Process] = []
    while not any("spawn_main" in words_of(process) for process in started):
        assert parent.poll() is None, parent.stderr.read()
        time.sleep(0.05)
        started = psutil.Process(parent.pid).children()
    parent.send_signal(ends)
    _, stderr = parent.communicate(timeout=120)
    assert parent.returncode in ((1, -ends) if ends == signal.SIGINT else (-ends,))
    assert stderr.rstrip().endswith("KeyboardInterrupt" if ends == signal.SIGINT else "")
    gone, alive = psutil.wait_procs(started, timeout=120)  # the guard itself lives 10 s longer
    assert (len(gone), alive) == (len(started), [])
    assert len(started) >= 2


def test_a_vllm_that_is_killed_is_an_error_and_not_a_wait(cramped: Any, chat: Chat) -> None:
    """The last test with this engine, which is of no use afterwards."""
    cores = [p for p in psutil.Process().children() if "EngineCore" in words_of(p)]
    newest = max(cores, key=psutil.Process.create_time)
    completions = cramped.complete(own_questions(chat, 600))
    next(completions)
    newest.kill()
    with pytest.raises(
        EngineError, match="^vLLM's process ended: it said nothing, so perhaps it was killed"
    ):
        list(completions)
    cramped.close()


# --- loading --------------------------------------------------------------------------------------


def test_an_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(
        EngineError,
        match="no engine 'vlm'; known are vllm, openai, transformers; did you mean 'vllm'",
    ):
        load_engine("nano", "vlm")


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_an_unknown_model_names_the_known_ones(name: str) -> None:
    with pytest.raises(
        EngineError, match="neither a folder here, nor a Hub id .*; did you mean 'llama3"
    ):
        load_engine("llama33", name)


def test_auto_is_an_engine_of_the_table() -> None:
    assert choose("auto") in ("vllm", "transformers")


def test_a_vllm_without_what_is_used_of_it_is_named_with_its_version(
    vllm_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm as installed

    has_no, tested = f"^vLLM {installed.__version__} has no ", "; replaykit is tested with 0.32$"
    for module, name in (("vllm.inputs", "tokens_inputs"), ("vllm.v2", "Engine")):
        with monkeypatch.context() as patch:
            patch.setitem(vllm.USED, module, [name])
            with pytest.raises(EngineError, match=f"{has_no}{module}.{name}{tested}"):
                vllm._imported()
    monkeypatch.setitem(vllm.SCORING, "y", 1)
    with pytest.raises(EngineError, match=f"{has_no}sampling field 'y'{tested}"):
        vllm._imported()
    monkeypatch.setitem(vllm.SCORING, "best_of", 1)
    with pytest.raises(EngineError, match=f"{has_no}sampling fields 'best_of', 'y'{tested}"):
        vllm._imported()


def test_several_gpus_for_one_model_are_vllms_business() -> None:
    with pytest.raises(EngineError, match="tensor_parallel: 2 GPUs share one model in vllm only"):
        TransformersEngine("nano", options=EngineOptions(name="transformers", tensor_parallel=2))


def test_batch_invariance_is_refused_where_the_device_or_the_engine_lacks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vllms = EngineOptions(name="vllm", batch_invariant=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="batch_invariant: .* GPUs, and there is none here"):
        vllm.VllmEngine("nano", options=vllms)
    with pytest.raises(EngineError, match="batch_invariant: .* the engine here is transformers"):
        load_engine("nano", EngineOptions(batch_invariant=True))
    with pytest.raises(ValueError, match="is for the engine vllm, not transformers"):
        EngineOptions(name="transformers", batch_invariant=True)
    with pytest.raises(ValueError, match="VLLM_BATCH_INVARIANT=1 where it is started"):
        EngineOptions(server="http://localhost:8000/v1", batch_invariant=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(EngineError, match="capability 8.0 and above, and this one has 7.5"):
        vllm.VllmEngine("nano", options=vllms)


def test_the_readme_says_that_the_engine_decides_the_rows_too() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    words = " ".join(readme.split())
    assert "The engine is part of what decides the rows" in words
    assert "on a GPU, and on a server, they differ" in words


def test_every_engine_is_a_fact_of_its_own() -> None:
    server = EngineOptions(name="openai", server="http://localhost:8000/v1")
    options = [EngineOptions(name="vllm"), EngineOptions(name="transformers"), server]
    assert [engine_fact(each) for each in options] == ["vllm", "transformers", "openai"]


def test_batch_invariance_is_part_of_what_decides_the_rows() -> None:
    plain = EngineOptions(name="vllm")
    assert engine_fact(plain) == "vllm"
    assert engine_fact(plain.model_copy(update={"batch_invariant": True})) != "vllm"


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


def test_an_absent_package_is_named_with_the_commands_that_bring_it() -> None:
    assert str(MissingExtra("vllm", "vllm")) == (
        "vllm is not installed; `pip install 'replaykit-llm[vllm]'` brings it, or "
        "`pip install -e '.[vllm]'` in replaykit's checkout"
    )
