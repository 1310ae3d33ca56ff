"""Magpie on the embedded model: the same rows however they are made, and nothing lost when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replaykit.checks.funnel import Funnel
from replaykit.errors import EngineError
from replaykit.recipe import Generate
from replaykit.records import read_jsonl
from replaykit.runs import Ledger
from replaykit.sources.generate import generate
from replaykit.text import normalise

SETTINGS = {"max_question_tokens": 96, "max_answer_tokens": 64}


def made(engine, chat, folder, n=60, seed=3, **settings):
    folder.mkdir(exist_ok=True)
    funnel = Funnel()
    rows = list(
        generate(engine, chat, settings=Generate(n=n, **SETTINGS | settings), seed=seed, folder=folder, funnel=funnel)
    )
    return rows, funnel


def lines(records):
    return [json.dumps(record.to_json(), ensure_ascii=False) for record in records]


def test_it_writes_questions_of_every_old_skill_and_answers_them(transformers_engine, chat, tmp_path):
    rows, funnel = made(transformers_engine, chat, tmp_path / "a", n=200)
    assert len(rows) == funnel.kept == 200
    text = " ".join(row.prompt for row in rows)
    for sign in ("Premise:", "capital", "JSON", "headline", "how", "letters"):
        assert sign in text, sign
    assert all(row.answer and row.source == "generate" for row in rows)


def test_no_question_comes_twice_and_duplicates_were_never_answered(transformers_engine, chat, tmp_path):
    rows, funnel = made(transformers_engine, chat, tmp_path / "a", n=400)
    assert len({normalise(row.prompt) for row in rows}) == 400
    assert funnel.counts["duplicate"] > 0
    with Ledger(tmp_path / "a/answers.jsonl") as answers:
        assert len(answers) == 400 + funnel.counts["answer_truncated"] + funnel.counts["answer_empty"]


def test_the_same_seed_gives_the_same_rows_twice_and_another_seed_others(transformers_engine, chat, tmp_path):
    first, second, other = (
        lines(made(transformers_engine, chat, tmp_path / name, seed=seed)[0])
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == second
    assert not set(first) & set(other)


def test_asking_for_more_keeps_the_first_rows(transformers_engine, chat, tmp_path):
    few, _ = made(transformers_engine, chat, tmp_path / "a", n=50)
    questions = len(Path(tmp_path / "a/questions.jsonl").read_text().splitlines())
    many, _ = made(transformers_engine, chat, tmp_path / "a", n=120)
    assert lines(many)[:50] == lines(few)
    fresh, _ = made(transformers_engine, chat, tmp_path / "b", n=120)
    assert lines(fresh) == lines(many)
    assert questions < len(Path(tmp_path / "a/questions.jsonl").read_text().splitlines())


def test_what_was_cut_at_the_token_limit_is_dropped_with_its_reason(transformers_engine, chat, tmp_path):
    rows, funnel = made(transformers_engine, chat, tmp_path / "a", n=30, max_question_tokens=14, max_answer_tokens=4)
    assert funnel.counts["question_truncated"] > 0
    assert funnel.counts["answer_truncated"] > 0
    assert all(len(chat.encode(row.answer)) < 4 for row in rows)


def test_a_yield_that_is_too_small_ends_with_a_clear_message(transformers_engine, chat, tmp_path):
    with pytest.raises(EngineError, match=r"only 0 of 30 rows could be kept out of 90 drawn .*question_too_short"):
        made(transformers_engine, chat, tmp_path / "a", n=30, min_chars=500, max_draws=90)


def test_vllm_makes_the_same_kind_of_rows_reproducibly(vllm_engine, chat, tmp_path):
    first, funnel = made(vllm_engine, chat, tmp_path / "a", n=40)
    second, _ = made(vllm_engine, chat, tmp_path / "b", n=40)
    assert lines(first) == lines(second)
    assert funnel.kept == 40


def test_kill_9_and_the_same_command_give_the_same_bytes(tmp_path):
    words = [sys.executable, "-m", "replaykit", "generate", "--model", "nano", "-n", "1500", "--seed", "5", "--out"]
    undisturbed = subprocess.run([*words, "whole"], cwd=tmp_path, capture_output=True, text=True)
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed_at = []
    for _ in range(2):
        process = subprocess.Popen(
            [*words, "killed"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
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
    again = subprocess.run([*words, "killed"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    for name in ("rows.jsonl", "dropped.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert len(list(read_jsonl(tmp_path / "killed/rows.jsonl"))) == 1500


def ledger_bytes(folder: Path) -> int:
    return sum(
        path.stat().st_size for path in folder.glob("*s.jsonl") if path.name in ("questions.jsonl", "answers.jsonl")
    )
