"""Magpie on the embedded model: the same rows however they are made, and nothing lost when it is killed."""

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from commands import type_in
from typer.testing import CliRunner

import replaykit
from replaykit.checks.funnel import Funnel
from replaykit.cli import app
from replaykit.data.formats import read_prompts
from replaykit.data.jsonl import read_jsonl
from replaykit.data.ledger import Ledger
from replaykit.data.record import Record, dialogue
from replaykit.engines import Completion, Request, Sampling, load_engine
from replaykit.errors import CallError, EngineError, RecipeError, Stopped
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.model.logprobs import of_answer
from replaykit.nano import world
from replaykit.recipe.engine import EngineOptions
from replaykit.recipe.generate import Checks, Generate
from replaykit.steps.generate.conversations import Conversations
from replaykit.steps.generate.draw import generate_rows
from replaykit.steps.generate.job import Job, Monitor
from replaykit.steps.generate.replies import Address, Numbering, Replies
from replaykit.steps.generate.steer import SCHEDULES, SYSTEMS, system_of
from replaykit.text import normalise

SETTINGS = {"max_question_tokens": 96, "max_answer_tokens": 64}


@pytest.fixture(params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request):
    return request.getfixturevalue(f"{request.param}_engine")


def made(engine, chat, folder, n=60, seed=3, **settings):
    folder.mkdir(exist_ok=True)
    given = {
        name: settings.pop(name) for name in ("prompts", "held_out", "deployed") if name in settings
    }
    monitor = Monitor(stopping=settings.pop("stopping", lambda: False))
    job = Job(Generate(n=n, **SETTINGS | settings), seed, **given)
    return list(generate_rows(engine, chat, job, folder=folder, monitor=monitor)), monitor.funnel


def lines(records):
    return [json.dumps(record.to_json(), ensure_ascii=False) for record in records]


@pytest.mark.slow
def test_it_writes_questions_of_every_old_skill_and_answers_them(
    transformers_engine, chat, tmp_path
):
    rows, funnel = made(transformers_engine, chat, tmp_path / "a", n=200)
    assert len(rows) == funnel.kept == 200
    text = " ".join(row.prompt for row in rows)
    for sign in ("Premise:", "capital", "JSON", "headline", "how", "letters"):
        assert sign in text, sign
    assert all(row.answer and row.source == "generate" for row in rows)


@pytest.mark.slow
def test_no_question_comes_twice_and_duplicates_were_never_answered(
    transformers_engine, chat, tmp_path
):
    rows, funnel = made(transformers_engine, chat, tmp_path / "a", n=400)
    assert len({normalise(row.prompt) for row in rows}) == 400
    assert funnel.counts["duplicate"] > 0
    kept = {row.meta["row"] for row in rows}
    with Ledger(tmp_path / "a/answers.jsonl") as answers:
        assert kept <= set(answers)
        assert (
            len(answers)
            <= 400 + funnel.counts["answer_truncated"] + funnel.counts["answer_empty"] + 8
        )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_rows_twice_and_another_seed_others(
    transformers_engine, chat, tmp_path
):
    first, second, other = (
        lines(made(transformers_engine, chat, tmp_path / name, seed=seed)[0])
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == second
    assert not set(first) & set(other)


@pytest.mark.slow
def test_asking_for_more_keeps_the_first_rows(transformers_engine, chat, tmp_path):
    few, _ = made(transformers_engine, chat, tmp_path / "a", n=50)
    questions = len(Path(tmp_path / "a/questions.jsonl").read_text().splitlines())
    many, _ = made(transformers_engine, chat, tmp_path / "a", n=120)
    assert lines(many)[:50] == lines(few)
    fresh, _ = made(transformers_engine, chat, tmp_path / "b", n=120)
    assert lines(fresh) == lines(many)
    assert questions < len(Path(tmp_path / "a/questions.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_a_yield_under_the_floor_ends_with_a_clear_message(transformers_engine, chat, tmp_path):
    checks = Checks(min_chars=500)
    with pytest.raises(
        EngineError, match=r"only 0 of the last 500 rows could be kept .*question_too_short 500"
    ) as raised:
        made(transformers_engine, chat, tmp_path / "a", n=30, checks=checks)
    # There is nothing that a smaller -n could take.
    assert "-n" not in str(raised.value)
    assert "generate.checks sets what is dropped" in str(raised.value)


@pytest.mark.slow
def test_a_model_that_always_repeats_itself_is_stopped(transformers_engine, chat, tmp_path):
    with pytest.raises(
        EngineError,
        match=r"of the last 500 rows could be kept .*duplicate \d{3}.*-n [1-9]\d* takes what there",
    ) as raised:
        made(transformers_engine, chat, tmp_path / "a", n=1000, temperature=0.01)
    there = int(re.search(r"-n (\d+) takes", str(raised.value))[1])
    rows, _ = made(transformers_engine, chat, tmp_path / "a", n=there, temperature=0.01)
    assert len(rows) == there  # what was kept is still there


# --- what was cut at the token limit --------------------------------------------------------------


@pytest.mark.slow
def test_an_answer_that_was_cut_stays_as_it_was_cut_and_a_cut_question_is_dropped(
    transformers_engine, chat, tmp_path
):
    rows, funnel = made(
        transformers_engine, chat, tmp_path / "a", n=30, max_question_tokens=14, max_answer_tokens=4
    )
    assert funnel.counts["question_truncated"] > 0
    assert funnel.counts["answer_truncated"] == 0
    cut = [row for row in rows if row.meta.get("finish") == "length"]
    assert 0 < len(cut) < len(rows)
    assert all(row.meta.get("finish") in (None, "length") for row in rows)
    with Ledger(tmp_path / "a/answers.jsonl") as answers:
        for row in rows:
            reply = answers[row.meta["row"]]
            assert (reply["finish"] == "length") is (row in cut)
            assert row.answer == reply["text"].strip()


@pytest.mark.slow
def test_cut_answers_can_be_dropped_and_the_ledgers_of_such_a_run_go_on(
    transformers_engine, chat, tmp_path
):
    limits = {"max_question_tokens": 32, "max_answer_tokens": 4, "min_yield": 0.0}
    drop = Checks(truncated=True)
    few, funnel = made(transformers_engine, chat, tmp_path / "a", n=20, checks=drop, **limits)
    assert funnel.counts["answer_truncated"] > 0
    assert not [row for row in few if "finish" in row.meta]
    assert all(len(chat.encode(row.answer)) < 4 for row in few)
    drawn = (tmp_path / "a/answers.jsonl").read_bytes()
    kept, funnel = made(transformers_engine, chat, tmp_path / "a", n=20, **limits)
    assert funnel.counts["answer_truncated"] == 0
    # All answers were there, under the same addresses.
    assert (tmp_path / "a/answers.jsonl").read_bytes() == drawn
    last = kept[-1].meta["row"]
    whole = [row for row in kept if "finish" not in row.meta]
    assert 0 < len(whole) < len(kept)
    assert lines(whole) == lines([row for row in few if row.meta["row"] <= last])


@pytest.mark.slow
def test_rows_with_cut_answers_are_the_same_however_they_are_made(
    transformers_engine, chat, tmp_path, monkeypatch
):
    limits = {"max_question_tokens": 32, "max_answer_tokens": 4, "answer_temperature": 1.0}
    settings = limits | {"turns": 2}
    whole, _ = made(transformers_engine, chat, tmp_path / "a", n=30, **settings)
    assert any("finish" in row.meta for row in whole)
    calls = 0

    def stopping():
        nonlocal calls
        calls += 1
        return calls > 40

    with pytest.raises(Stopped):
        made(transformers_engine, chat, tmp_path / "b", n=30, stopping=stopping, **settings)
    monkeypatch.setattr("replaykit.engines.transformers.BATCH_ROWS", 1)
    monkeypatch.setattr("replaykit.steps.generate.rows.WINDOW", 5)
    parts, _ = made(transformers_engine, chat, tmp_path / "b", n=30, **settings)
    assert lines(parts) == lines(whole)


@pytest.mark.slow
def test_a_conversation_ends_with_the_first_answer_that_was_cut(
    transformers_engine, chat, tmp_path
):
    rows, _ = made(
        transformers_engine,
        chat,
        tmp_path / "a",
        n=40,
        turns=3,
        max_question_tokens=48,
        max_answer_tokens=4,
    )
    turns = Counter()
    for row in rows:
        said = [message["role"] for message in row.messages]
        assert said == ["user", "assistant"] * (len(said) // 2)
        turns[len(said) // 2] += 1
        assert (len(said) < 6) <= (row.meta.get("finish") == "length")
    assert turns[1] and turns[2] + turns[3]


@pytest.mark.slow
def test_of_several_answers_each_says_for_itself_whether_it_was_cut(
    transformers_engine, chat, tmp_path
):
    rows, _ = made(
        transformers_engine,
        chat,
        tmp_path / "a",
        n=40,
        answers=3,
        answer_temperature=1.5,
        max_answer_tokens=4,
    )
    by_row = {}
    for row in rows:
        by_row.setdefault(row.meta["row"], set()).add(row.meta.get("finish"))
    assert {None, "length"} in by_row.values()
    with Ledger(tmp_path / "a/answers.jsonl") as answers:
        for row in rows:
            finish = answers[3 * row.meta["row"] + row.meta["answer"]]["finish"]
            assert (finish == "length") is (row.meta.get("finish") == "length")


def test_an_answer_that_loops_up_to_the_limit_is_dropped_as_repetitive(
    transformers_engine, chat, tmp_path
):
    texts = ["Write JSON for " + "x, " * 40, "What is the capital of France?"]
    prompts = [Record(dialogue(text), "generate") for text in texts]
    settings = {"n": None, "prompts": prompts, "max_answer_tokens": 200}
    rows, funnel = made(transformers_engine, chat, tmp_path / "a", **settings)
    assert funnel.counts == {"answer_repetitive": 1}
    assert [row.answer for row in rows] == ["Paris"]
    with Ledger(tmp_path / "a/answers.jsonl") as answers:
        assert answers[0]["finish"] == "length"
    free = Checks(max_repeat=None)
    rows, _ = made(transformers_engine, chat, tmp_path / "a", checks=free, **settings)
    assert [row.meta.get("finish") for row in rows] == ["length", None]


def test_no_end_of_turn_is_trained_after_an_answer_that_was_cut(chat):
    talk = (*dialogue("2 + 2?", "It is 4."), *dialogue("And 3 + 3?", "It is"))
    end = chat.end_of_turn
    assert end
    whole = chat.example(Record(talk, "generate"))
    cut = chat.example(Record(talk, "generate", {"finish": "length"}))
    assert cut.tokens == whole.tokens[: -len(end)]
    assert cut.loss == whole.loss[: -len(end)]
    assert cut.loss[-1]
    assert chat.decode(cut.tokens, special=True).endswith("It is")
    # The first answer came to its end, so its end is learned.
    first = Record(talk[:2], "generate")
    assert chat.example(first).loss_tokens + len(chat.encode("It is")) == cut.loss_tokens


@pytest.mark.parametrize("finish", ["stop", None, "LENGTH", 5])
def test_an_end_of_turn_is_trained_after_any_other_answer(chat, finish):
    record = Record(dialogue("2 + 2?", "It is 4."), "generate", {"finish": finish})
    example = chat.example(record)
    assert example.tokens[-len(chat.end_of_turn) :] == chat.end_of_turn
    assert all(example.loss[-len(chat.end_of_turn) :])


def test_a_cut_answer_of_an_encoder_decoder_is_not_closed_either():
    tokenizer = loading.load_tokenizer("nano")
    tokenizer.chat_template = None
    chat = Chat(tokenizer, seq2seq=True)
    whole = chat.example(Record(dialogue("2 + 2?", "It is 4."), "generate"))
    cut = chat.example(Record(dialogue("2 + 2?", "It is 4."), "generate", {"finish": "length"}))
    assert whole.tokens == (*cut.tokens, tokenizer.eos_token_id)
    assert whole.loss == (*cut.loss, True)


THINKING = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n\n' + m.content + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n\n<think>\n' }}{% endif %}"
)


def test_an_answer_that_was_cut_inside_its_thought_is_dropped_under_a_reason_of_its_own(
    transformers_engine, tmp_path
):
    tokenizer = loading.load_tokenizer("nano")
    tokenizer.chat_template = THINKING
    chat = Chat(tokenizer, name="a model that thinks")
    prompts = [Record(dialogue("What is the capital of France?"), "generate")]
    _, funnel = made(
        transformers_engine, chat, tmp_path / "a", n=None, prompts=prompts, max_answer_tokens=1
    )
    assert funnel.counts == {"thought_truncated": 1}


@pytest.mark.parametrize(
    ("said", "tokens_less", "left"),
    [
        ("Rome é", 1, "Rome"),
        ("Rome 中", 1, "Rome"),
        ("Rome 中", 2, "Rome"),
        ("Rome é", 0, "Rome é"),
    ],
)
def test_a_letter_that_the_limit_has_cut_in_two_is_not_learned(
    chat, tmp_path, said, tokens_less, left
):
    tokens = chat.encode(said)
    tokens = tokens[: len(tokens) - tokens_less]
    if tokens_less:
        assert "\ufffd" in chat.decode(tokens)
    numbering = Numbering(turns=1, answers=1)
    with Ledger(tmp_path / "q.jsonl") as questions, Ledger(tmp_path / "a.jsonl") as answers:
        replies = Replies(questions, answers, numbering)
        talk = Conversations(chat, Job(Generate(), seed=1), replies, limit=512)
        for row, finish in enumerate(("length", "stop")):
            number = numbering.of_request(Address("answer", row))
            talk.take(Completion(number, tokens, finish))
        assert replies[Address("answer", 0)].text == left
        # What the model itself ended stays as it is.
        assert replies[Address("answer", 1)].text == chat.decode(tokens).strip()


# --- the same rows, however they are made ---------------------------------------------------------


@pytest.mark.slow
def test_the_same_rows_in_batches_of_one_and_in_large_ones(
    transformers_engine, chat, tmp_path, monkeypatch
):
    whole, _ = made(transformers_engine, chat, tmp_path / "a", n=24)
    monkeypatch.setattr("replaykit.engines.transformers.BATCH_ROWS", 1)
    single, _ = made(transformers_engine, chat, tmp_path / "b", n=24)
    assert lines(whole) == lines(single)


@pytest.mark.slow
def test_the_same_rows_through_a_narrow_window(transformers_engine, chat, tmp_path, monkeypatch):
    whole, funnel = made(transformers_engine, chat, tmp_path / "a", n=90)
    monkeypatch.setattr("replaykit.steps.generate.rows.WINDOW", 7)
    narrow, other = made(transformers_engine, chat, tmp_path / "b", n=90)
    assert lines(whole) == lines(narrow)
    assert funnel.result() == other.result()


@pytest.mark.slow
def test_the_same_rows_from_one_worker_and_from_two(transformers_engine, chat, tmp_path):
    one, _ = made(transformers_engine, chat, tmp_path / "a", n=60)
    workers = load_engine("nano", EngineOptions(name="transformers", workers=2))
    try:
        two, _ = made(workers, chat, tmp_path / "b", n=60)
    finally:
        workers.close()
    assert lines(one) == lines(two)


def test_the_same_rows_in_vllm_whatever_its_batch(vllm_engine, chat, tmp_path, monkeypatch):
    whole, _ = made(vllm_engine, chat, tmp_path / "a", n=60)
    monkeypatch.setattr(vllm_engine, "read_ahead", 3)
    three, _ = made(vllm_engine, chat, tmp_path / "b", n=60)
    assert lines(whole) == lines(three)


# --- addresses ------------------------------------------------------------------------------------


def test_addresses_have_the_numbers_that_ledgers_of_earlier_runs_hold():
    several = Numbering(turns=1, answers=3)
    assert several.in_ledger(Address("question", 7)) == 7
    assert several.in_ledger(Address("answer", 7, answer=2)) == 23
    assert several.of_request(Address("answer", 7, answer=2)) == 47
    turns = Numbering(turns=2, answers=1)
    assert turns.in_ledger(Address("question", 7, turn=1)) == 15
    assert turns.of_request(Address("question", 7, turn=1)) == 30
    assert turns.of_request(Address("answer", 7, turn=1)) == 31


@pytest.mark.parametrize(("turns", "answers"), [(1, 1), (3, 1), (1, 4), (2, 3)])
def test_each_number_of_a_request_is_one_address(turns, answers):
    numbering = Numbering(turns, answers)
    addresses = [numbering.address(number) for number in range(200)]
    assert len(set(addresses)) == 200
    assert [numbering.of_request(address) for address in addresses] == list(range(200))


# --- kinds of rows --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_conversation_of_two_turns_is_joined_as_the_template_joins_it(engine, chat, tmp_path):
    rows, _ = made(engine, chat, tmp_path / "a", n=20, turns=2, temperature=0.7)
    for row in rows:
        assert [message["role"] for message in row.messages] == ["user", "assistant"] * 2
        assert all(message["content"] for message in row.messages)
    single, _ = made(engine, chat, tmp_path / "b", n=20, temperature=0.7)
    first = {row.meta["row"]: row.messages[:2] for row in single}
    shared = [row for row in rows if row.meta["row"] in first]
    assert len(shared) >= 10
    assert all(row.messages[:2] == first[row.meta["row"]] for row in shared)
    with Ledger(tmp_path / "a/questions.jsonl") as questions:
        assert {place % 2 for place in questions} == {0, 1}
    again, _ = made(engine, chat, tmp_path / "a", n=20, turns=2, temperature=0.7)
    assert lines(again) == lines(rows)


@pytest.mark.slow
def test_several_answers_to_one_question_are_rows_of_their_own(engine, chat, tmp_path):
    rows, funnel = made(engine, chat, tmp_path / "a", n=40, answers=3, answer_temperature=1.5)
    by_question = {}
    for row in rows:
        by_question.setdefault(row.prompt, []).append(row)
    assert any(len(group) > 1 for group in by_question.values())
    for group in by_question.values():
        assert len({row.answer for row in group}) == len(group) <= 3
        assert len({row.meta["answer"] for row in group}) == len(group)
    assert funnel.counts["same_answer"] > 0


@pytest.mark.slow
def test_answers_to_one_question_may_come_back_in_different_batches(
    transformers_engine, chat, tmp_path, monkeypatch
):
    settings = {"n": 20, "answers": 3, "answer_temperature": 1.5}
    whole, _ = made(transformers_engine, chat, tmp_path / "a", **settings)
    # The engine takes two requests at a time, so a question's three answers never fit.
    monkeypatch.setattr("replaykit.engines.transformers.READ_AHEAD", 2)
    monkeypatch.setattr("replaykit.engines.transformers.BATCH_ROWS", 2)
    parts, _ = made(transformers_engine, chat, tmp_path / "b", **settings)
    assert lines(parts) == lines(whole)


def test_the_users_own_prompts_are_answered_each_and_in_order(engine, chat, tmp_path):
    tasks = [world.draw("capital", 1, seed=seed)[0] for seed in range(12)]
    prompts = [Record(dialogue(task.prompt), "generate") for task in tasks]
    rows, _ = made(engine, chat, tmp_path / "a", n=None, prompts=prompts)
    assert [row.prompt for row in rows] == [task.prompt for task in tasks]  # equal ones too
    assert [row.meta["parent"] for row in rows] == [prompt.id for prompt in prompts]
    assert [row.answer for row in rows] == [task.answer for task in tasks]
    assert not (tmp_path / "a/questions.jsonl").read_bytes()


def test_columns_and_line_of_a_file_of_prompts_stay_in_the_rows(
    transformers_engine, chat, tmp_path
):
    path = tmp_path / "asked.jsonl"
    asked = [
        {"question": "What is the capital of France?", "skill": "capital", "answer": "Lyon"},
        {"question": "What is the capital of Italy?", "finish": "length"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    prompts = list(read_prompts(path))
    rows, _ = made(transformers_engine, chat, tmp_path / "a", n=None, prompts=prompts)
    assert [row.answer for row in rows] == ["Paris", "Rome"]
    # What the file calls as our own facts are called stands apart: the new answer was not cut.
    assert [dict(row.meta) for row in rows] == [
        {"row": 0, "parent": prompts[0].id, "line": 1, "skill": "capital"}
        | {"prompt": {"answer": "Lyon"}},
        {"row": 1, "parent": prompts[1].id, "line": 2, "prompt": {"finish": "length"}},
    ]
    assert chat.example(rows[1]).tokens[-1:] == chat.end_of_turn[-1:]


@pytest.mark.parametrize(
    ("row", "question", "meta"),
    [
        (
            {"instruction": "Add", "input": "2, 2", "output": "4", "id": 7},
            "Add\n\n2, 2",
            {"output": "4", "id": 7},
        ),
        ({"messages": [*dialogue("Hello?", "Hi")], "topic": "talk"}, "Hello?", {"topic": "talk"}),
        ({"text": "Hello?", "lang": ["en", "de"]}, "Hello?", {"lang": ["en", "de"]}),
        ({"prompt": "Hello?", "meta": {"skill": 1}}, "Hello?", {"meta": {"skill": 1}}),
    ],
)
def test_every_format_of_prompts_keeps_its_other_columns(tmp_path, row, question, meta):
    path = tmp_path / "asked.jsonl"
    path.write_text('{"prompt": "before"}\n' + json.dumps(row) + "\n")
    record = list(read_prompts(path))[1]
    assert record.prompt == question
    assert dict(record.meta) == meta | {"line": 2}


def test_rows_that_replaykit_wrote_are_prompts_too_and_keep_what_was_known_of_them(
    transformers_engine, chat, tmp_path
):
    earlier = Record(
        dialogue("What is the capital of France?", "Well, the"),
        "generate",
        {"row": 41, "finish": "length", "model": "another", "skill": "capital"},
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps(earlier.to_json()) + "\n")
    prompts = list(read_prompts(tmp_path / "rows.jsonl"))
    (row,), _ = made(transformers_engine, chat, tmp_path / "a", n=None, prompts=prompts)
    assert row.answer == "Paris"
    assert dict(row.meta) == {
        "row": 0,
        "parent": prompts[0].id,
        "line": 1,
        "skill": "capital",
        "prompt": {"row": 41, "finish": "length", "model": "another"},
    }


def test_a_prompt_without_room_for_an_answer_is_dropped_and_not_fatal(engine, chat, tmp_path):
    prompts = [
        Record(dialogue(text), "generate")
        for text in ("What is the capital of France?", "again " * 5000)
    ]
    rows, funnel = made(engine, chat, tmp_path / "a", n=None, prompts=prompts)
    assert len(rows) == 1
    assert funnel.counts == {"too_long": 1}


@pytest.mark.slow
def test_a_system_prompt_steers_the_question_and_is_left_out_of_the_record(engine, chat, tmp_path):
    systems = {"math": 1.0, "Du sprichst Deutsch.": 3.0}
    rows, _ = made(engine, chat, tmp_path / "a", n=20, systems=systems, min_yield=0.0)
    assert all(row.messages[0]["role"] == "user" for row in rows)
    assert {row.meta["system"] for row in rows} == set(systems)
    plain, _ = made(engine, chat, tmp_path / "b", n=20)
    assert not {row.prompt for row in rows} & {row.prompt for row in plain}


def test_systems_are_drawn_by_their_weights_and_by_the_row_alone():
    settings = Generate(systems={"math": 1.0, "code": 3.0})
    names = [system_of(settings, 1, row)[0] for row in range(2000)]
    assert 450 < names.count("math") < 550
    assert names == [system_of(settings, 1, row)[0] for row in range(2000)]
    assert all(system_of(settings, 1, row)[1] == SYSTEMS[name] for row, name in enumerate(names))


def test_a_system_prompt_that_is_kept_is_in_the_record_and_was_there_for_the_answer(
    transformers_engine, chat, tmp_path
):
    rows, _ = made(
        transformers_engine,
        chat,
        tmp_path / "a",
        n=10,
        systems={"json": 1.0},
        keep_system=True,
        min_yield=0.0,
    )
    for row in rows:
        assert row.messages[0] == {"role": "system", "content": SYSTEMS["json"]}
        prompt = chat.prompt(row.messages[:-1])
        sampling = Sampling(
            temperature=0.0, max_tokens=SETTINGS["max_answer_tokens"], stop=chat.stop
        )
        (answer,) = transformers_engine.complete([Request(0, prompt, sampling)])
        assert chat.decode(answer.tokens).strip() == row.answer


@pytest.mark.slow
def test_a_schedule_gives_each_row_its_own_temperature_by_its_address(
    transformers_engine, chat, tmp_path
):
    rows, _ = made(transformers_engine, chat, tmp_path / "a", n=150, schedule="magpie-pro")
    pairs = Counter((row.meta["temperature"], row.meta["top_p"]) for row in rows)
    assert set(pairs) == {(1.0, 1.0), (1.1, 0.995), (1.2, 0.995), (1.25, 0.99)}
    assert pairs[(1.25, 0.99)] < min(count for pair, count in pairs.items() if pair != (1.25, 0.99))
    fewer, _ = made(transformers_engine, chat, tmp_path / "b", n=50, schedule="magpie-pro")
    assert lines(fewer) == lines(rows)[:50]


def test_the_paper_drew_three_parts_of_ten_at_each_of_the_lower_temperatures():
    for name, table in SCHEDULES.items():
        weights = Counter()
        for phase in table:
            weights[phase.temperature] += phase.weight
        total = sum(weights.values())
        assert {t: round(w / total, 3) for t, w in weights.items()} == {
            1.0: 0.3,
            1.1: 0.3,
            1.2: 0.3,
            1.25: 0.1,
        }, name
        assert {phase.top_p for phase in table} == {1.0, 0.995, 0.99}


def test_deployment_sampling_is_what_the_model_names(transformers_engine, chat, tmp_path):
    deployed = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    rows, _ = made(
        transformers_engine, chat, tmp_path / "a", n=20, temperature="model", deployed=deployed
    )
    assert {(row.meta["temperature"], row.meta["top_p"], row.meta["top_k"]) for row in rows} == {
        (0.6, 0.95, 20)
    }
    with pytest.raises(RecipeError, match="deployed greedily"):
        made(
            transformers_engine,
            chat,
            tmp_path / "b",
            temperature="model",
            deployed=deployed | {"temperature": 0.0},
        )


def test_a_model_that_names_no_sampling_cannot_draw_as_deployed(
    transformers_engine, chat, tmp_path
):
    with pytest.raises(
        RecipeError, match=r"generate\.temperature: the model has no generation_con"
    ):
        made(transformers_engine, chat, tmp_path / "a", temperature="model", deployed=None)


@pytest.mark.slow
def test_a_base_model_writes_texts_from_bos_alone(transformers_engine, tmp_path):
    tokenizer = loading.load_tokenizer("nano")
    tokenizer.chat_template = None
    chat = Chat(tokenizer, name="a base model")
    with pytest.raises(
        EngineError, match="question_leaked_header 500"
    ):  # nano opens a header after BOS
        made(transformers_engine, chat, tmp_path / "a", n=15)
    rows, _ = made(transformers_engine, chat, tmp_path / "b", n=15, checks=Checks(leaks=False))
    for row in rows:
        assert row.messages[0]["role"] == "text" and len(row.messages) == 1
        example = chat.example(row)
        assert example.tokens[0] == tokenizer.bos_token_id
        assert (example.tokens[-1] == tokenizer.eos_token_id) is (row.meta["finish"] == "stop")


# --- checks ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dropped_row_is_kept_with_its_reason_and_what_shows_it(
    transformers_engine, chat, tmp_path
):
    dropped = []
    (tmp_path / "a").mkdir()
    job = Job(Generate(n=300, **SETTINGS), seed=3)
    monitor = Monitor(funnel=Funnel(dropped.append))
    rows = list(
        generate_rows(transformers_engine, chat, job, folder=tmp_path / "a", monitor=monitor)
    )
    twins = [row for row in dropped if row["reason"] == "duplicate"]
    assert twins
    by_row = {row.meta["row"]: row.prompt for row in rows}
    for row in twins:
        assert normalise(by_row[row["meta"]["twin"]]) == normalise(row["messages"][0]["content"])


@pytest.mark.slow
def test_a_question_of_a_test_is_dropped_before_it_is_answered(transformers_engine, chat, tmp_path):
    free, _ = made(transformers_engine, chat, tmp_path / "a", n=40)
    held_out = [row.prompt for row in free[:5]]
    rows, funnel = made(transformers_engine, chat, tmp_path / "b", n=40, held_out=held_out)
    assert funnel.counts["eval_overlap"] >= 5
    assert not {row.prompt for row in rows} & set(held_out)


@pytest.mark.slow
def test_rows_that_the_model_finds_unlikely_are_dropped_by_their_perplexity(engine, chat, tmp_path):
    def perplexity(row):
        example = chat.example(row)
        (scores,) = engine.score([example.tokens])
        answer = of_answer(example, scores)
        return math.exp(-sum(answer) / len(answer))

    free, _ = made(engine, chat, tmp_path / "a", n=40)
    found = {line: perplexity(row) for line, row in zip(lines(free), free, strict=True)}
    most = sorted(found.values())[30]
    bounded, funnel = made(
        engine, chat, tmp_path / "b", n=30, checks=Checks(perplexity=[0.0, most])
    )
    assert funnel.counts["answer_perplexity"] >= 5
    likely = [line for line, value in found.items() if value < most * 0.999]
    assert len(set(likely) & set(lines(bounded))) >= len(likely) - 1
    assert not [
        line for line, value in found.items() if value > most * 1.001 and line in lines(bounded)
    ]


@pytest.mark.slow
def test_questions_that_the_model_finds_unlikely_are_dropped_too(
    transformers_engine, chat, tmp_path
):
    free, _ = made(transformers_engine, chat, tmp_path / "a", n=60)
    bounded, funnel = made(
        transformers_engine,
        chat,
        tmp_path / "b",
        n=60,
        checks=Checks(question_perplexity=[0.0, 3.0]),
    )
    assert funnel.counts["question_perplexity"] > 5
    assert 5 < len(set(lines(free)) & set(lines(bounded))) < 60
    for row in (
        bounded
    ):  # the letters to be reversed are drawn evenly, so such questions are the unlikely ones
        assert "letters" not in row.prompt


# --- stopped, and going on ------------------------------------------------------------------------


@pytest.mark.slow
def test_asked_to_stop_it_finishes_what_is_under_way_and_goes_on_later(engine, chat, tmp_path):
    whole, _ = made(engine, chat, tmp_path / "a", n=80)
    calls = 0

    def stopping():
        nonlocal calls
        calls += 1
        return calls > 60

    with pytest.raises(Stopped, match=r"stopped with \d+ of 80 rows"):
        made(engine, chat, tmp_path / "b", n=80, stopping=stopping)
    with Ledger(tmp_path / "b/questions.jsonl") as questions:
        assert 0 < len(questions) < 80
    rows, _ = made(engine, chat, tmp_path / "b", n=80)
    assert lines(rows) == lines(whole)


def test_vllm_makes_the_same_kind_of_rows_reproducibly(vllm_engine, chat, tmp_path):
    first, funnel = made(vllm_engine, chat, tmp_path / "a", n=40)
    second, _ = made(vllm_engine, chat, tmp_path / "b", n=40)
    assert lines(first) == lines(second)
    assert funnel.kept == 40


COMMAND = [
    sys.executable,
    "-m",
    "replaykit",
    "generate",
    "--model",
    "nano",
    "--engine",
    "transformers",
    "--seed",
    "5",
]
WHOLE = 600


def typed(n, folder):
    """The same command, in this process."""
    type_in(*COMMAND[3:], "-n", n, "--out", folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "generate"
    typed(WHOLE, folder)
    return folder


@pytest.mark.slow
def test_kill_9_and_the_same_command_give_the_same_bytes(whole, tmp_path):
    killed_at = []
    for _ in range(2):
        process = subprocess.Popen(
            [*COMMAND, "-n", str(WHOLE), "--out", tmp_path / "killed"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = sum(killed_at)
        deadline = time.monotonic() + 120
        while ledger_bytes(tmp_path / "killed") <= before and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed_at.append(ledger_bytes(tmp_path / "killed") - before)
        assert not (tmp_path / "killed/manifest.json").exists()
    assert all(count > 0 for count in killed_at)
    typed(WHOLE, tmp_path / "killed")
    for name in ("rows.jsonl", "dropped.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (whole / name).read_bytes(), name
    assert len(list(read_jsonl(tmp_path / "killed/rows.jsonl"))) == WHOLE


def ledger_bytes(folder: Path) -> int:
    return sum(
        path.stat().st_size
        for path in folder.glob("*s.jsonl")
        if path.name in ("questions.jsonl", "answers.jsonl")
    )


# --- stopped by a signal, a full disk, another process --------------------------------------------


def start(folder: Path, n: int) -> subprocess.Popen:
    """The command, left alone until rows are finished."""
    process = subprocess.Popen(
        [*COMMAND, "-n", str(n), "--out", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while ledger_bytes(folder) < 20_000 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    return process


@pytest.mark.slow
def test_ctrl_c_once_finishes_what_is_under_way_and_the_same_command_goes_on(whole, tmp_path):
    process = start(tmp_path / "stopped", 3000)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "finishing what is under way" in said
    assert re.search(r"stopped with [\d,]+ of 3000 rows; the same command goes on from there", said)
    assert "Traceback" not in said
    for _ in range(2):
        typed(WHOLE, tmp_path / "stopped")
        rows = (tmp_path / "stopped/rows.jsonl").read_bytes()
        assert rows == (whole / "rows.jsonl").read_bytes()


@pytest.mark.slow
def test_ctrl_c_twice_stops_at_once(tmp_path):
    process = start(tmp_path / "stopped", 3000)
    process.send_signal(signal.SIGINT)
    assert "finishing what is" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped; what was finished is safe" in said
    with Ledger(tmp_path / "stopped/questions.jsonl") as questions:
        assert len(questions) > 0


@pytest.mark.slow
def test_sigterm_ends_it_at_once_and_nothing_finished_is_lost(tmp_path):
    process = start(tmp_path / "stopped", 3000)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    with Ledger(tmp_path / "stopped/questions.jsonl") as questions:
        assert len(questions) > 0


@pytest.mark.slow
def test_a_second_process_on_the_same_folder_is_refused(tmp_path):
    process = start(tmp_path / "mine", 3000)
    said = type_in(*COMMAND[3:], "-n", 5, "--out", tmp_path / "mine", code=1)
    process.kill()
    process.communicate()
    assert "another replaykit is working here" in said


@pytest.mark.slow
def test_a_disk_that_fills_up_half_way_costs_no_finished_row(
    transformers_engine, tmp_path, monkeypatch
):
    written = Ledger.append
    room = 150

    def full(self, row):
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= 1
        written(self, row)

    monkeypatch.setattr(Ledger, "append", full)
    words = [*COMMAND[3:], "-n", "200", "--out"]
    stopped = CliRunner().invoke(app, [*words, str(tmp_path / "stopped")])
    assert stopped.exit_code == 1
    assert "the disk is full; what was finished is safe" in stopped.stderr
    with Ledger(tmp_path / "stopped/questions.jsonl") as questions:
        assert len(questions) == 150
    monkeypatch.undo()
    for name in ("stopped", "whole"):
        assert CliRunner().invoke(app, [*words, str(tmp_path / name)]).exit_code == 0
    assert (tmp_path / "stopped/rows.jsonl").read_bytes() == (
        tmp_path / "whole/rows.jsonl"
    ).read_bytes()


# --- from Python ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_python_the_rows_come_one_by_one_and_are_those_of_the_command_line(tmp_path):
    rows = list(replaykit.generate("nano", 12, engine="transformers", seed=5))
    typed(12, tmp_path / "typed")
    assert lines(rows) == lines(read_jsonl(tmp_path / "typed/rows.jsonl"))
    first = next(
        replaykit.generate("nano", 500, engine="transformers", seed=5)
    )  # and no more than it needs
    assert lines([first]) == lines(rows[:1])


@pytest.mark.slow
def test_from_python_a_folder_keeps_the_rows_and_more_may_be_asked_for(tmp_path):
    few = list(replaykit.generate("nano", 5, engine="transformers", folder=tmp_path))
    size = (tmp_path / "rows/questions.jsonl").stat().st_size
    assert lines(replaykit.generate("nano", 5, engine="transformers", folder=tmp_path)) == lines(
        few
    )
    assert (tmp_path / "rows/questions.jsonl").stat().st_size == size
    assert lines(replaykit.generate("nano", 9, engine="transformers", folder=tmp_path))[
        :5
    ] == lines(few)


def test_from_python_prompts_are_answered_and_a_wrong_setting_is_refused():
    (row,) = replaykit.generate(
        "nano", prompts=["What is the capital of France?"], engine="transformers"
    )
    assert row.answer == "Paris"
    with pytest.raises(CallError, match="did you mean 'turns'"):
        replaykit.generate("nano", 3, trns=2)
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        replaykit.generat  # noqa: B018
