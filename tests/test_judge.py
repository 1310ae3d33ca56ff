"""A judge tags rows and a reward model scores them; a reply that cannot be read is never a score."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from replaykit.checks.judge import CUT, MAX_TOKENS, PROMPT, SCHEMA, TAGS, judge, parse
from replaykit.checks.reward import Reward
from replaykit.data.ledger import Ledger
from replaykit.data.record import Message, Record, dialogue
from replaykit.engines import Completion, Engine, Request
from replaykit.errors import ChatError, EngineError
from replaykit.model.chat import Chat
from replaykit.model.loading import ALIASES, load_tokenizer

GOOD = {"category": "Math", "difficulty": "very easy", "quality": "good"}
NOTHING = dict.fromkeys(TAGS, "unparsed")


class Scripted:
    """An engine that gives each row the reply written for it, the last request first, and remembers the requests."""

    name = "scripted"

    def __init__(self, chat: Chat, replies: dict[int, str], limit: int = 4096):
        self.chat = chat
        self.replies = replies
        self.limit = limit
        self.asked: dict[int, Request] = {}

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        for request in reversed([request for request in requests if request is not None]):
            self.asked[request.row] = request
            yield Completion(request.row, self.chat.encode(self.replies[request.row]), "stop")

    def score(self, sequences: Iterable[Sequence[int]]) -> Iterator[list[float]]:
        raise AssertionError("a judge asks for no log-probabilities")

    def close(self) -> None:
        pass


def asking(*questions: str) -> list[tuple[int, Record]]:
    """Kept rows at addresses 3, 6, 9, ... with these questions."""
    return [
        (3 * k, Record(dialogue(text, "the answer"), "generate"))
        for k, text in enumerate(questions, 1)
    ]


def tags_of(
    engine: Engine, chat: Chat, rows: list[tuple[int, Record]], path: Path
) -> list[tuple[int, dict[str, str]]]:
    with Ledger(path) as ledger:
        return list(judge(engine, chat, rows, ledger=ledger, seed=1))


# --- what a reply says ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(GOOD),
        json.dumps(GOOD, indent=2),
        f"```json\n{json.dumps(GOOD)}\n```",
        "Here it is: " + json.dumps(GOOD | {"why": "it is plain"}),
        '{"category": "MATH", "difficulty": " Very Easy", "quality": "Good"}',
    ],
)
def test_a_reply_is_read_with_what_stands_around_it(reply: str) -> None:
    assert parse(reply) == GOOD


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Math, very easy, good",
        json.dumps(GOOD)[:-1],
        "[1, 2]",
        "{}",
        "}{",
        "null",
        '{"a":' * 5000 + "}" * 5000,
    ],
)
def test_a_reply_that_is_not_an_object_leaves_every_tag_unparsed(reply: str) -> None:
    assert parse(reply) == NOTHING


@pytest.mark.parametrize("value", ['"goodish"', '""', "3", "null", '["good"]', "true"])
def test_a_word_of_its_own_leaves_that_one_tag_unparsed(value: str) -> None:
    assert parse(
        f'{{"category": "Math", "difficulty": "very easy", "quality": {value}}}'
    ) == GOOD | {"quality": "unparsed"}


def test_the_schema_and_the_prompt_name_every_word_of_every_tag() -> None:
    properties = json.loads(SCHEMA)["properties"]
    assert {tag: tuple(properties[tag]["enum"]) for tag in TAGS} == TAGS
    assert len(TAGS["category"]) == 12
    assert all(word in PROMPT for words in TAGS.values() for word in words)
    assert parse(PROMPT.format(text="").splitlines()[-1]) != NOTHING


def test_the_longest_object_fits_the_judges_room(chat: Chat) -> None:
    longest = {tag: max(words, key=len) for tag, words in TAGS.items()}
    assert len(chat.encode(json.dumps(longest))) < MAX_TOKENS


# --- how rows are judged --------------------------------------------------------------------------


def test_each_row_gets_the_tags_of_its_own_reply_in_the_order_of_the_rows(
    chat: Chat, tmp_path: Path
) -> None:
    other = GOOD | {"category": "Reasoning"}
    engine = Scripted(chat, {3: json.dumps(GOOD), 6: "I will not say", 9: json.dumps(other)})
    rows = asking("What is 1 + 1?", "Hello {name}", "Why?")
    assert tags_of(engine, chat, rows, tmp_path / "tags.jsonl") == [
        (3, GOOD),
        (6, NOTHING),
        (9, other),
    ]
    for row, record in rows:
        request = engine.asked[row]
        assert request.tokens == chat.prompt(dialogue(PROMPT.format(text=record.prompt)))
        assert (request.sampling.temperature, request.sampling.schema) == (0.0, SCHEMA)
        assert request.sampling.stop == chat.stop
    assert len({request.seed for request in engine.asked.values()}) == 3


def test_a_row_that_was_judged_is_not_asked_again(chat: Chat, tmp_path: Path) -> None:
    rows = asking("a", "b", "c", "d")
    replies = dict.fromkeys((3, 6, 9, 12), json.dumps(GOOD))
    with Ledger(tmp_path / "tags.jsonl") as ledger:
        started = judge(Scripted(chat, replies), chat, rows[:2], ledger=ledger, seed=1)
        assert list(started) == [(3, GOOD), (6, GOOD)]
    engine = Scripted(chat, replies)
    seen: list[tuple[int, int | None]] = []
    with Ledger(tmp_path / "tags.jsonl") as ledger:
        watch: Any = lambda what, done, total, note="": seen.append((done, total))  # noqa: E731
        assert [
            row for row, _ in judge(engine, chat, rows, ledger=ledger, seed=1, watch=watch)
        ] == [3, 6, 9, 12]
    assert sorted(engine.asked) == [9, 12]
    assert seen == [(2, 4), (3, 4), (4, 4)]


def test_a_reply_is_in_the_ledger_as_soon_as_it_is_there(chat: Chat, tmp_path: Path) -> None:
    class Breaks(Scripted):
        def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
            yield next(super().complete(requests))
            raise EngineError("the power failed")

    path = tmp_path / "tags.jsonl"
    with pytest.raises(EngineError, match="power"):
        tags_of(
            Breaks(chat, {3: json.dumps(GOOD), 6: json.dumps(GOOD)}), chat, asking("a", "b"), path
        )
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == [6]


def test_the_judge_sees_earlier_turns_and_not_the_answer(chat: Chat, tmp_path: Path) -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    messages = (system, *dialogue("Name a river.", "Rhine"), *dialogue("And in French?", "Rhin"))
    engine = Scripted(chat, {0: json.dumps(GOOD), 1: json.dumps(GOOD)})
    text = Record(({"role": "text", "content": "Once upon a time"},), "generate")
    tags_of(engine, chat, [(0, Record(messages, "generate")), (1, text)], tmp_path / "tags.jsonl")
    shown = chat.decode(engine.asked[0].tokens)
    assert (
        "System: Be brief.\n\nUser: Name a river.\n\nAssistant: Rhine\n\nUser: And in French?\n</text>"
        in shown
    )
    assert "<text>\nOnce upon a time\n</text>" in chat.decode(engine.asked[1].tokens)


@pytest.mark.parametrize("unit", ["a word ", "这是一个问题。", "\U0001f600", "ab "])
def test_a_text_that_is_too_long_keeps_its_beginning_and_its_end(
    chat: Chat, tmp_path: Path, unit: str
) -> None:
    engine = Scripted(chat, {3: json.dumps(GOOD)}, limit=900)
    tags_of(engine, chat, asking(f"FIRST {unit * 3000} LAST"), tmp_path / "tags.jsonl")
    tokens = engine.asked[3].tokens
    assert 900 - MAX_TOKENS - 50 <= len(tokens) <= 900 - MAX_TOKENS
    shown = chat.decode(tokens)
    assert shown.count(CUT) == 1
    assert "FIRST" in shown
    assert "LAST" in shown


def test_a_judge_that_cannot_read_its_instructions_is_refused(chat: Chat, tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"nano reads 300 tokens, and a judge needs \d{3} for its instructions"
    ):
        tags_of(Scripted(chat, {3: ""}, limit=300), chat, asking("x" * 99), tmp_path / "tags.jsonl")


@pytest.mark.slow
def test_nano_cannot_judge_and_gives_itself_no_tags(
    transformers_engine: Engine, chat: Chat, tmp_path: Path
) -> None:
    questions = [f"What is {k} + {k}?" for k in range(20)]
    found = tags_of(transformers_engine, chat, asking(*questions), tmp_path / "tags.jsonl")
    assert len(found) == 20
    assert sum(tags == NOTHING for _, tags in found) >= 18


def test_an_engine_that_is_held_to_the_schema_leaves_nothing_unparsed(
    vllm_engine: Engine, chat: Chat, tmp_path: Path
) -> None:
    questions = [f"What is {k} + {k}?" for k in range(20)] + [
        "Reverse the word: stone",
        "Name the capital of Peru.",
    ]
    found = tags_of(vllm_engine, chat, asking(*questions), tmp_path / "tags.jsonl")
    assert len(found) == 22
    assert all(tags[tag] in words for _, tags in found for tag, words in TAGS.items())
    assert tags_of(vllm_engine, chat, asking(*questions), tmp_path / "again.jsonl") == found


# --- the reward model -----------------------------------------------------------------------------


def reward_model(folder: Path, *, labels: int = 1, **config: Any) -> Path:
    """A small random reward model with nano's tokenizer."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(5)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    settings: dict[str, Any] = (
        {"vocab_size": 1024, "num_labels": labels, "pad_token_id": 3} | sizes | config
    )
    model = LlamaForSequenceClassification(LlamaConfig(**settings))
    model.score.weight.data.normal_(std=1.0)
    model.save_pretrained(folder)
    load_tokenizer("nano").save_pretrained(folder)
    return folder


def rows(n: int) -> list[Record]:
    """Conversations of very different lengths."""
    return [
        Record(
            dialogue(f"What is {k} times {k}?", f"It is {k * k}. " * (1 + 7 * k % 23)), "generate"
        )
        for k in range(n)
    ]


@pytest.mark.parametrize("pad", [3, None])
def test_a_reward_is_the_same_alone_and_in_any_batch(tmp_path: Path, pad: int | None) -> None:
    reward = Reward(str(reward_model(tmp_path, pad_token_id=pad)))
    records = rows(40)
    together = list(reward.score(records))
    alone = [next(reward.score([record])) for record in records]
    assert together == pytest.approx(alone, abs=1e-4)
    assert list(reward.score(reversed(records)))[::-1] == pytest.approx(alone, abs=1e-4)
    assert len({round(value or 0.0, 3) for value in together}) > 35


def test_a_reward_is_the_models_own_output_at_the_last_token(tmp_path: Path, chat: Chat) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = reward_model(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    record = rows(3)[2]
    ids = load_tokenizer("nano").apply_chat_template(
        [dict(m) for m in record.messages], return_dict=False
    )
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits.item()
    assert next(Reward(str(folder)).score([record])) == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_scored_is_none(tmp_path: Path) -> None:
    reward = Reward(str(reward_model(tmp_path, max_position_embeddings=128)))
    long = Record(dialogue("q", "a word " * 400), "generate")
    text = Record(({"role": "text", "content": "Once"},), "generate")
    question = Record(dialogue("q"), "generate")
    found = list(reward.score([long, rows(1)[0], text, question]))
    assert [value is None for value in found] == [True, False, True, True]


def test_a_model_with_several_outputs_is_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="has 3 outputs"):
        Reward(str(reward_model(tmp_path, labels=3)))


def test_a_chat_model_is_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nano .*reward model has one"):
        Reward("nano")
    folder = reward_model(tmp_path)
    config = json.loads((Path(ALIASES["nano"]) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "reward"}}))
    (folder / "model.safetensors").write_bytes(
        (Path(ALIASES["nano"]) / "model.safetensors").read_bytes()
    )
    with pytest.raises(EngineError, match=r"no weights for score\.weight"):
        Reward(str(folder))


def test_a_reward_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = reward_model(tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ChatError, match="no chat template"):
        Reward(str(folder))
