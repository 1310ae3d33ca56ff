"""Answers with thoughts: which rows have one, what becomes of it, and what of a model that has none."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from taught import thinker
from test_template_tokens import family
from test_templates import shipped
from tiny import Run
from typer.testing import CliRunner

from replaykit.cli import app
from replaykit.data.jsonl import read_jsonl
from replaykit.data.ledger import Ledger
from replaykit.data.record import Message, Record, dialogue
from replaykit.engines import Completion, Engine
from replaykit.errors import ChatError, RecipeError, RunError, Stopped
from replaykit.hashing import derive_seed
from replaykit.model.chat import Chat
from replaykit.model.loading import load_tokenizer
from replaykit.nano import world
from replaykit.recipe import Recipe
from replaykit.recipe.chat import ChatOptions
from replaykit.recipe.generate import Checks, Generate
from replaykit.steps.generate.answering import Answering
from replaykit.steps.generate.conversations import Conversations
from replaykit.steps.generate.draw import generate_rows
from replaykit.steps.generate.job import Job, Monitor
from replaykit.steps.generate.perplexity import PerplexityCheck
from replaykit.steps.generate.replies import Address, Numbering, Replies
from replaykit.steps.generate.result import EstimateResult, GenerateResult, ThoughtCounts
from replaykit.steps.report.html.samples import replay_cards
from replaykit.steps.report.terminal import show

LIMITS = {"max_question_tokens": 64, "max_answer_tokens": 64}
ASKED = [
    Record(dialogue(f"What is the capital of {name}?"), "generate") for name in ("Peru", "Japan")
]


def made(
    engine: Engine, chat: Chat, folder: Path, n: int | None = 24, **settings: Any
) -> tuple[list[Record], Monitor]:
    folder.mkdir(exist_ok=True)
    prompts = settings.pop("prompts", None)
    monitor = Monitor(stopping=settings.pop("stopping", lambda: False))
    job = Job(Generate(n=n, **LIMITS | settings), 3, prompts=prompts)
    return list(generate_rows(engine, chat, job, folder=folder, monitor=monitor)), monitor


def lines(records: list[Record]) -> list[str]:
    return [json.dumps(record.to_json(), ensure_ascii=False) for record in records]


def talks(records: list[Record]) -> list[tuple[Message, ...]]:
    return [record.messages for record in records]


def has(message: Message) -> bool:
    return "reasoning_content" in message


def has_thought(record: Record) -> bool:
    return has(record.messages[-1])


def half(row: int) -> bool:
    """Whether the row is one of the half that thinks, with the seed of these tests."""
    return derive_seed(3, "thinking", row) / 2**63 < 0.5


# --- a model that thinks --------------------------------------------------------------------------


@pytest.mark.slow
def test_half_of_the_rows_think_where_half_are_asked_to(
    taught_engine: Engine, taught_chat: Chat, tmp_path: Path
) -> None:
    rows, monitor = made(taught_engine, taught_chat, tmp_path / "a", 40, thinking=0.5)
    with Ledger(tmp_path / "a/answers.jsonl") as ledger:
        states = {row: line["thought"] for row, line in ledger.items()}
    for record in rows:
        row = record.meta["row"]
        assert record.meta["thinking"] is half(row)
        assert has_thought(record) is (states[row] == "valid")
    assert 10 <= sum(record.meta["thinking"] for record in rows) <= 30
    thoughts = [message["reasoning_content"] for *_, message in talks(rows) if has(message)]
    assert len(thoughts) >= 8
    assert sum(thought.startswith("It is about ") for thought in thoughts) >= 8
    # Counted are all that were asked for a thought, up to the last row that was kept.
    last = rows[-1].meta["row"]
    counted = Counter(state for row, state in states.items() if row <= last and half(row))
    assert monitor.tally.thoughts == ThoughtCounts(**counted)
    # The questions are those of a model that never thinks.
    plain, _ = made(taught_engine, taught_chat, tmp_path / "b", 40, thinking=False)
    assert not any(record.meta["thinking"] for record in plain)
    asked = {record.meta["row"]: record.prompt for record in plain}
    same = [asked[row.meta["row"]] == row.prompt for row in rows if row.meta["row"] in asked]
    assert len(same) > 20 and all(same)


@pytest.mark.slow
def test_rows_with_thoughts_are_the_same_however_they_are_made(
    taught_engine: Engine, taught_chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, monitor = made(taught_engine, taught_chat, tmp_path / "a", thinking=0.5)
    answers = tmp_path / "b/answers.jsonl"

    def stopping() -> bool:
        return answers.exists() and answers.stat().st_size > 300

    monkeypatch.setattr("replaykit.engines.transformers.BATCH_ROWS", 1)
    monkeypatch.setattr("replaykit.steps.generate.rows.WINDOW", 5)
    with pytest.raises(Stopped):
        made(taught_engine, taught_chat, tmp_path / "b", thinking=0.5, stopping=stopping)
    assert "thought" in answers.read_text()
    parts, resumed = made(taught_engine, taught_chat, tmp_path / "b", thinking=0.5)
    assert lines(parts) == lines(whole)
    assert resumed.tally.thoughts == monitor.tally.thoughts


@pytest.mark.slow
def test_a_prompt_has_its_own_wish(
    taught_engine: Engine, taught_chat: Chat, tmp_path: Path
) -> None:
    said = [True, False, "a text that somebody thought", None]
    prompts = [
        Record(dialogue(f"What is the capital of {name}?"), "generate", {"thinking": wish})
        for name, wish in zip(("Peru", "Japan", "Kenya", "Egypt"), said, strict=True)
    ]
    rows, monitor = made(
        taught_engine, taught_chat, tmp_path / "a", None, prompts=prompts, thinking=True
    )
    asked = {record.meta["row"]: record.meta for record in rows}
    assert len(asked) >= 2
    assert all(meta["thinking"] is (row != 1) for row, meta in asked.items())
    assert all(meta["prompt"]["thinking"] == said[row] for row, meta in asked.items())
    found = monitor.tally.thoughts
    assert found is not None
    assert found.valid + found.empty + found.missing + found.cut == 3


@pytest.mark.slow
def test_where_the_recipe_says_nothing_the_chat_decides(
    taught: Path, taught_engine: Engine, tmp_path: Path
) -> None:
    for thinking in (True, None):
        chat = Chat.load(str(taught), options=ChatOptions(thinking=thinking))
        rows, _ = made(taught_engine, chat, tmp_path / str(thinking), None, prompts=ASKED)
        assert rows
        assert all(record.meta["thinking"] is bool(thinking) for record in rows)


@pytest.mark.slow
def test_a_thought_that_the_limit_cuts_gives_no_row(
    taught_engine: Engine, taught_chat: Chat, tmp_path: Path
) -> None:
    rows, monitor = made(
        taught_engine,
        taught_chat,
        tmp_path / "a",
        None,
        prompts=ASKED,
        thinking=True,
        max_answer_tokens=3,
    )
    assert rows == []
    assert monitor.funnel.counts == {"thought_truncated": 2}
    assert monitor.tally.thoughts == ThoughtCounts(cut=2)
    with Ledger(tmp_path / "a/answers.jsonl") as ledger:
        assert [line["thought"] for line in ledger.values()] == ["cut", "cut"]


@pytest.mark.slow
def test_a_conversation_goes_on_after_an_answer_with_its_thought(
    taught_engine: Engine, taught_chat: Chat, tmp_path: Path
) -> None:
    rows, _ = made(taught_engine, taught_chat, tmp_path / "a", 16, thinking=True, turns=2)
    thoughtful = [talk for talk in talks(rows) if len(talk) == 4 and has(talk[1])]
    assert len(thoughtful) >= 2
    for talk in thoughtful:
        first = talk[1]
        seen = taught_chat.decode(taught_chat.prompt(talk[:3], True), special=True)
        assert f"<think>\n{first['reasoning_content']}\n</think>\n\n{first['content']}" in seen


@pytest.mark.slow
def test_the_step_counts_thoughts_and_every_view_shows_them(taught: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, model=str(taught), generate={"thinking": 0.5, "n": 8} | LIMITS)
    result = run.do("generate")["generate"]
    assert isinstance(result, GenerateResult)
    rows = list(read_jsonl(run.folder / "generate/rows.jsonl"))
    assert result.thoughts is not None
    found = [record for record in rows if record.meta["thinking"] and has_thought(record)]
    assert result.thoughts.valid >= len(found) > 0
    words = result.thoughts.words
    assert words.startswith(f"{result.thoughts.valid} valid, {result.thoughts.empty} empty, ")
    assert words in shown(result)
    assert words in "".join(replay_cards("generate", result))
    # From the manifest it comes back as it was.
    assert run.manifests["generate"].result == result.to_json()


def shown(result: GenerateResult) -> str:
    console = Console(file=io.StringIO(), width=400)
    show("generate", result, console)
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_model_that_does_not_think_where_it_is_asked_to_is_named_in_words(
    transformers_engine: Engine, tmp_path: Path
) -> None:
    rows, monitor = made(transformers_engine, thinker(), tmp_path / "a", 12, thinking=True)
    found = monitor.tally.thoughts
    assert found is not None
    assert found.missing >= 12
    # They are the model's own, and stay.
    assert not any(has_thought(record) for record in rows)
    assert all(record.meta["thinking"] is True for record in rows)
    assert found.warning is not None
    assert found.warning.startswith("100 % of the answers that were asked for with a thought have")


def test_up_to_a_tenth_of_missing_thoughts_is_no_warning() -> None:
    assert ThoughtCounts(valid=90, missing=10).warning is None
    assert ThoughtCounts(valid=89, missing=11).warning is not None


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize("thinking", [True, 0.5])
def test_a_model_without_thoughts_is_not_asked_for_any(chat: Chat, thinking: bool | float) -> None:
    with pytest.raises(ChatError, match=r"has no thoughts, so generate\.thinking: (true|0\.5) ca"):
        Answering(chat, Generate(thinking=thinking), 1, None)
    assert Answering(chat, Generate(thinking=False), 1, None).thinking(0) is None
    wishes = [Record(dialogue("2 + 2?"), "generate", {"thinking": True})]
    with pytest.raises(
        ChatError, match="has no thoughts, so the prompt '2 \\+ 2\\?' with thinking"
    ):
        Answering(chat, Generate(), 1, wishes)


@pytest.mark.parametrize("thinking", [False, 0.5])
def test_a_model_that_always_thinks_is_not_asked_for_less(thinking: bool | float) -> None:
    always = shipped("deepseek_r1_distill")
    with pytest.raises(ChatError, match=r"no switch for it, so generate\.thinking: (false|0\.5) c"):
        Answering(always, Generate(thinking=thinking), 1, None)
    for wish in (True, None):
        assert Answering(always, Generate(thinking=wish), 1, None).thinking(5) is True


def test_it_is_said_before_any_weights_are_loaded(tmp_path: Path) -> None:
    run = Run(tmp_path, generate={"thinking": True}, engine={"server": "http://127.0.0.1:9/v1"})
    for options in ({}, {"dry_run": True}):
        with pytest.raises(ChatError, match="has no thoughts"):
            run.do("generate", **options)


@pytest.mark.parametrize("thinking", [1.5, 2, -0.5, "half"])
def test_a_part_is_between_none_and_all(thinking: object) -> None:
    with pytest.raises(RecipeError, match=r"generate\.thinking: must be"):
        Recipe(generate={"thinking": thinking})  # type: ignore[arg-type]


def test_questions_are_drawn_with_thinking_off() -> None:
    gptoss = shipped("gptoss")
    marks = [gptoss.encode(mark)[0] for mark in ("<|channel|>", "<|message|>")]
    replies = Replies({}, {}, Numbering(1, 1))  # type: ignore[arg-type]
    talk = Conversations(gptoss, Job(Generate(thinking=True), 1), replies, limit=4096)
    [request] = talk.begin(0)
    assert request.sampling.stop == gptoss.stops(False)
    assert set(marks) <= set(request.sampling.stop)
    assert not set(marks) & set(talk.answering.stops(0))


# --- how the command line says it -----------------------------------------------------------------


def settings_of(*typed: str) -> tuple[object, object]:
    """generate.thinking and chat.thinking of the recipe that is made of the command line."""
    from replaykit.cli.commands import GENERATE
    from replaykit.cli.options import Flags

    values: dict[str, Any] = {option.name: None for option in GENERATE.options}
    for name, value in zip(typed[::2], typed[1::2], strict=True):
        values[name] = json.loads(value)
    changes = Flags(GENERATE.options, values).changes()
    return changes.get("generate.thinking"), changes.get("chat.thinking")


def test_what_is_typed_for_generate_is_of_its_answers_alone() -> None:
    assert settings_of("thinking", "true") == (True, None)
    assert settings_of("thinking", "false") == (False, None)
    assert settings_of("thinking_part", "0.5") == (0.5, None)
    # --set is the last word, as everywhere.
    assert settings_of("thinking", "true", "set", '["generate.thinking=0.25"]') == (0.25, None)


def test_no_thinking_overrides_the_recipe_and_a_wrong_part_is_named(here: Path) -> None:
    (here / "replaykit.yaml").write_text("model: nano\ngenerate: {thinking: 0.5, n: 3}\n")
    refused = CliRunner().invoke(app, ["generate", "--dry-run"])
    assert refused.exit_code == 1
    assert "has no thoughts, so generate.thinking: 0.5 cannot be" in refused.output
    planned = CliRunner().invoke(app, ["generate", "--dry-run", "--no-thinking"])
    assert planned.exit_code == 0, planned.output
    wrong = CliRunner().invoke(app, ["generate", "--dry-run", "--thinking-part", "2"])
    assert wrong.exit_code == 1
    assert "must be a valid boolean (got 2.0), or must be less than or equal to 1" in wrong.output


# --- the ledger, and what is split ----------------------------------------------------------------


def settled(
    chat: Chat,
    folder: Path,
    said: str,
    *,
    finish: str = "stop",
    thinking: bool | None = True,
    **checks: Any,
) -> tuple[Record, str | None, dict[str, Any]]:
    """The record of a prompt that was answered with these words, why it is dropped, its line."""
    prompts = [Record(dialogue("What is 27 + 15?"), "generate")]
    job = Job(Generate(thinking=thinking, checks=Checks(**checks)), 1, prompts=prompts)
    number = Numbering(1, 1).of_request(Address("answer", 0))
    folder.mkdir(exist_ok=True)
    with Ledger(folder / "q.jsonl") as questions, Ledger(folder / "a.jsonl") as answers:
        talk = Conversations(chat, job, Replies(questions, answers, Numbering(1, 1)), limit=4096)
        talk.take(Completion(number, chat.encode(said), finish))  # type: ignore[arg-type]
    # What follows reads the ledger alone, as after an interruption.
    with Ledger(folder / "q.jsonl") as questions, Ledger(folder / "a.jsonl") as answers:
        talk = Conversations(chat, job, Replies(questions, answers, Numbering(1, 1)), limit=4096)
        [one] = talk.next(0).records
        reason = None if one.verdict is None else one.verdict.reason
        return one.record, reason, answers[0]


FAMILIES = {
    "qwen3": "<think>\n27 + 15\n</think>\n\nIt is 42.",
    "gemma4": "<|channel>thought\n27 + 15\n<channel|>It is 42.",
    "gptoss": "<|channel|>analysis<|message|>27 + 15<|end|><|start|>assistant<|channel|>final<|message|>It is 42.",
    "deepseek_r1_distill": "27 + 15\n</think>\n\nIt is 42.",
    "lfm2_2_5": "<think>27 + 15</think>It is 42.",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_thought_and_answer_are_apart_in_the_record_and_in_the_ledger(
    name: str, tmp_path: Path
) -> None:
    record, reason, line = settled(shipped(name), tmp_path, FAMILIES[name])
    assert reason is None
    answer = {"role": "assistant", "content": "It is 42.", "reasoning_content": "27 + 15"}
    assert record.messages[-1] == answer
    assert record.meta["thinking"] is True
    assert (line["text"], line["reasoning_content"]) == ("It is 42.", "27 + 15")
    assert line["thought"] == "valid"
    assert "special" not in line


def test_the_thoughts_of_cohere_are_kept_though_all_their_marks_are_special(tmp_path: Path) -> None:
    chat = family("Cohere MoE")
    said = "<|START_THINKING|>27 + 15<|END_THINKING|><|START_TEXT|>It is 42.<|END_TEXT|>"
    record, reason, _ = settled(chat, tmp_path, said)
    assert (record.answer, reason) == ("It is 42.", None)
    assert record.messages[-1]["reasoning_content"] == "27 + 15"


@pytest.mark.parametrize(
    ("said", "finish", "state", "reason"),
    [
        ("<think>\n27 + 15", "length", "cut", "thought_truncated"),
        ("<think>\n27 + 15", "stop", "cut", "thought_unclosed"),
        ("<think>\n27 + 15\n</think>\n\nIt is", "length", "valid", None),
        ("<think>\n\n</think>\n\nIt is 42.", "stop", "empty", None),
        ("It is 42.", "stop", "missing", None),
        ("<think>\n27 + 15\n</think>\n\n", "stop", "valid", "answer_empty"),
        ("<think>\n27 + 15\n</think>\n\nIt<|im_start|> is 42.", "stop", "valid", "answer_leaked_header"),
        ("<think>\n27<|im_start|> + 15\n</think>\n\nIt is 42.", "stop", "valid", "answer_leaked_header"),
    ],
)  # fmt: skip
def test_what_becomes_of_a_thought(
    tmp_path: Path, said: str, finish: str, state: str, reason: str | None
) -> None:
    record, why, line = settled(shipped("qwen3"), tmp_path, said, finish=finish)
    assert (line["thought"], why) == (state, reason)
    assert ("reasoning_content" in record.messages[-1]) is (state in ("valid", "cut"))
    assert (record.meta.get("finish") == "length") is (finish == "length")


LOOP = "So it is 42, I think, but wait, let me check that again. " * 6
KEY = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"


@pytest.mark.parametrize(
    ("thought", "answer", "reason"),
    [
        (LOOP, "It is 42.", "thought_repetitive"),
        (f"The key is {KEY}", "It is 42.", "thought_secret"),
        ("ok.\n<start_of_turn>user", "It is 42.", "thought_leaked_header"),
        ("27 + 15", LOOP, "answer_repetitive"),
        ("I'm sorry, but I can't help with that.", "It is 42.", None),
        ("27 + 15", "I'm sorry, but I can't help with that.", "refusal"),
    ],
)
def test_loops_leaks_and_secrets_are_looked_for_in_thoughts_and_refusals_in_answers(
    tmp_path: Path, thought: str, answer: str, reason: str | None
) -> None:
    said = f"<think>\n{thought}\n</think>\n\n{answer}"
    _, why, _ = settled(shipped("qwen3"), tmp_path, said, refusals=True)
    assert why == reason


def test_two_answers_that_differ_in_their_thoughts_alone_are_one(tmp_path: Path) -> None:
    chat = shipped("qwen3")
    prompts = [Record(dialogue("What is 27 + 15?"), "generate")]
    settings = Generate(thinking=True, answers=2, answer_temperature=1.0)
    numbering = Numbering(1, 2)
    with Ledger(tmp_path / "q.jsonl") as questions, Ledger(tmp_path / "a.jsonl") as answers:
        replies = Replies(questions, answers, numbering)
        talk = Conversations(chat, Job(settings, 1, prompts=prompts), replies, limit=4096)
        for number, thought in enumerate(("27 + 15", "20 + 22")):
            tokens = chat.encode(f"<think>\n{thought}\n</think>\n\nIt is 42.")
            request = numbering.of_request(Address("answer", 0, answer=number))
            talk.take(Completion(request, tokens, "stop"))
        reasons = [one.verdict and one.verdict.reason for one in talk.next(0).records]
    assert reasons == [None, "same_answer"]


def test_a_ledger_of_before_is_refused_where_its_text_may_hold_a_thought(tmp_path: Path) -> None:
    line = {"text": "27 + 15\n</think>\n\nIt is 42.", "finish": "stop", "tokens": 12}
    prompts = [Record(dialogue("What is 27 + 15?"), "generate")]
    with Ledger(tmp_path / "q.jsonl") as questions, Ledger(tmp_path / "a.jsonl") as answers:
        answers.append({"row": 0, **line})
        replies = Replies(questions, answers, Numbering(1, 1))
        job = Job(Generate(), 1, prompts=prompts)
        talk = Conversations(shipped("qwen3"), job, replies, limit=4096)
        with pytest.raises(RunError, match=r"earlier version .*; remove answers\.jsonl from the s"):
            talk.next(0)
        # A model without thoughts goes on from it: its text is the answer.
        talk = Conversations(shipped("llama3"), job, replies, limit=4096)
        [one] = talk.next(0).records
    assert one.record.answer == line["text"]


def test_the_ledger_of_a_model_without_thoughts_is_as_it_was(chat: Chat, tmp_path: Path) -> None:
    _, reason, line = settled(chat, tmp_path, "It is 42.", thinking=None)
    tokens = len(chat.encode("It is 42."))
    assert (line, reason) == (
        {"row": 0, "text": "It is 42.", "finish": "stop", "tokens": tokens},
        None,
    )


# --- perplexity, estimate -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_perplexity_of_a_question_is_of_its_own_tokens_whatever_stands_around_it(
    transformers_engine: Engine,
) -> None:
    chat = thinker()
    checks = Checks(question_perplexity=[1.0, 2.0])
    check = PerplexityCheck(transformers_engine, chat, checks)
    question = "What is the capital of Peru?"
    asked = chat.encode(question)
    for more in ({}, {"reasoning_content": "It is in the Andes."}):
        talk = (*dialogue(question), {"role": "assistant", "content": "Lima", **more})
        example = chat.example(Record(talk, "generate"))  # type: ignore[arg-type]
        # Instead of its score, each token but the first says what it is.
        found = check._of_question(Record(talk, "generate"), list(example.tokens[1:]))  # type: ignore[arg-type]
        assert tuple(found) == asked


def test_an_estimate_counts_the_tokens_of_thoughts(tmp_path: Path) -> None:
    model = tmp_path / "thinker"
    shutil.copytree(Path(world.__file__).parent / "weights", model)
    tokenizer = load_tokenizer("nano")
    tokenizer.chat_template = thinker().tokenizer.chat_template
    tokenizer.save_pretrained(model)
    each = {}
    for thinking in (None, 0.5, True):
        settings = {"thinking": thinking, "max_answer_tokens": 4096, "n": 100}
        found = Run(tmp_path, model=str(model), generate=settings).do("generate", dry_run=True)
        result = found["generate"]
        assert isinstance(result, EstimateResult)
        each[thinking] = result.tokens_per_answer
    assert each == {None: 386, 0.5: 886, True: 1386}
