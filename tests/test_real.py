"""A real model, SmolLM2-135M-Instruct: what the embedded one cannot show."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import replaykit
from replaykit.data.record import Message, Record, dialogue
from replaykit.engines import Completion, Engine, Request, Sampling, load_engine
from replaykit.errors import ChatError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.model.gguf import kept_in
from replaykit.steps.probe import describe

SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\n"
)
ROWS = 20


@pytest.fixture(scope="module")
def chat_smollm2(smollm2: Path) -> Chat:
    return Chat.load(str(smollm2))


@pytest.fixture(
    scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)]
)
def engine_smollm2(request: pytest.FixtureRequest, smollm2: Path) -> Iterator[Engine]:
    if request.param == "vllm" and find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    engine = load_engine(str(smollm2), request.param)
    yield engine
    engine.close()


# --- the file -------------------------------------------------------------------------------------


def test_a_gguf_file_is_dequantised_once(
    smollm2: Path, smollm2_gguf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second time its folder is taken, without a word."""
    before = (smollm2 / "model.safetensors").stat().st_mtime_ns
    with kept_in(smollm2.parent.parent), caplog.at_level(logging.WARNING):
        assert loading.resolve(str(smollm2_gguf)) == str(smollm2)
    assert (smollm2 / "model.safetensors").stat().st_mtime_ns == before
    assert caplog.records == []
    assert loading.parameter_count(str(smollm2)) == 134_515_008


# --- the template ---------------------------------------------------------------------------------


def test_the_loss_is_on_the_answer_and_its_end(chat_smollm2: Chat) -> None:
    chat = chat_smollm2
    example = chat.example(Record(dialogue("Capital of France?", "Paris."), "target"))
    whole = chat.tokenizer.decode(example.tokens)
    assert whole == (
        f"{SYSTEM}<|im_start|>user\nCapital of France?<|im_end|>\n"
        "<|im_start|>assistant\nParis.<|im_end|>"
    )
    pairs = zip(example.tokens, example.loss, strict=True)
    assert chat.tokenizer.decode([token for token, counts in pairs if counts]) == "Paris.<|im_end|>"


def test_a_tool_call_is_shown_or_refused_and_never_left_out(chat_smollm2: Chat) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    messages: list[Message] = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},  # type: ignore[typeddict-item]
    ]
    # The template of SmolLM2 knows no tools.
    with pytest.raises(ChatError, match="tool"):
        chat_smollm2.example(Record(messages, "target"))


# --- what it writes -------------------------------------------------------------------------------


def conversations(engine: Engine, chat: Chat) -> list[tuple[Completion, Completion]]:
    """Magpie: the model's own questions, each with its answer, at most 32 tokens of each."""
    drawn = Sampling(max_tokens=32, stop=chat.stop)
    asked = [Request(row, chat.pre_query, drawn, seed=1000 + row) for row in range(ROWS)]
    questions = sorted(engine.complete(asked), key=lambda each: each.row)
    greedy = Sampling(temperature=0.0, max_tokens=32, stop=chat.stop)
    texts = [chat.decode(question.tokens) for question in questions]
    prompts = [Request(row, chat.prompt(dialogue(text)), greedy) for row, text in enumerate(texts)]
    answers = sorted(engine.complete(prompts), key=lambda each: each.row)
    return list(zip(questions, answers, strict=True))


written: dict[str, list[tuple[Completion, Completion]]] = {}


def test_an_engine_writes_questions_and_answers(engine_smollm2: Engine, chat_smollm2: Chat) -> None:
    chat = chat_smollm2
    found = conversations(engine_smollm2, chat)
    written[engine_smollm2.name] = found
    questions = [chat.decode(question.tokens) for question, _ in found]
    answers = [chat.decode(answer.tokens) for _, answer in found]
    assert len({*questions}) == ROWS
    assert all(answers)
    words = [len(text.split()) for text in questions]
    assert sorted(words)[ROWS // 2] >= 5
    assert not any("<|im_" in text for text in [*questions, *answers])
    if len(written) == 2:
        same = sum(one == other for one, other in zip(*written.values(), strict=True))
        # In float32, and with the same numbers; a token changes where two are all but equally near.
        assert same >= ROWS - 2


def test_probe_draws_samples_of_a_real_model(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe, "MAX_TOKENS", 48)
    found = replaykit.probe(str(smollm2), samples=ROWS, engine="transformers")
    pre_query = found.template["pre_query"]
    assert pre_query is not None
    assert pre_query.text == f"{SYSTEM}<|im_start|>user\n"
    assert "<|im_end|>" in found.stop.text
    assert len(found.samples) == ROWS
    assert sum(len(text.split()) >= 4 for text in found.samples) >= ROWS * 3 // 4


# --- training and evaluation ----------------------------------------------------------------------


def test_twenty_rows_lower_the_loss_of_a_real_model(smollm2: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Ticket {number}: the screen is dark. Which team?", "completion": "Team Blue."}
        for number in range(ROWS)
    ]
    mixture = replaykit.mix(rows, {}, model=str(smollm2), ratio=0, epochs=2, batch_rows=5)
    result = replaykit.train(
        mixture,
        model=str(smollm2),
        folder=tmp_path / "run",
        method="lora",
        learning_rate=1e-3,
        log_every=1,
    )
    losses = [float(each["loss"]) for each in result.losses]
    assert result.steps == len(losses) == 8
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0] / 2


def test_a_real_model_is_evaluated_on_what_it_knows(smollm2: Path) -> None:
    capitals = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}
    rows = [
        {"prompt": f"What is the capital of {land}? Answer with one word.", "completion": city}
        for land, city in capitals.items()
    ]
    found = replaykit.evaluate(
        {"base": str(smollm2)}, {"capital": (rows, "cross_entropy")}, engine="transformers"
    )
    (score,) = [model.scores["capital"] for model in found.models]
    assert len(rows) == 4
    assert 0 < abs(score.mean) < 5
