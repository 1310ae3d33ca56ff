"""The rows on the page: which items flipped, and which replay was trained on."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from html import unescape
from pathlib import Path

import pytest

from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import TARGET, Record, dialogue
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.evaluate.skills import read_items
from replaykit.steps.report.flips import Flips, flips_of
from replaykit.steps.report.html.browse import SCRIPT, shown
from replaykit.steps.report.html.rows import flipped, rewritten_rows
from replaykit.steps.report.replayed import replayed
from replaykit.steps.report.rewritten import rewritten
from replaykit.steps.results import result_of

sys.path.insert(0, str(Path(__file__).parent))
import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
ARMS = {"no-replay": {"ratio": 0.0}, "selected": {"sources": ["select"]}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tiny.Run:
    """A training so hard that answers change, and one with replay."""
    train = {"steps": 10, "learning_rate": 3e-3}
    made = tiny.Run(tmp_path_factory.mktemp("run"), arms=ARMS, train=train)
    made.do("select", "mix", "train", "eval")
    return made


def flips(run: tiny.Run, most: int = 300) -> Flips:
    manifest = run.manifests["eval"]
    found = result_of(manifest, run.folder)
    assert isinstance(found, EvalResult)
    return flips_of(run.recipe, run.folder / "eval", manifest, found, most)


def page(run: tiny.Run) -> str:
    run.do("report")
    return (run.folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_flips_are_those_of_the_claims(run: tiny.Run) -> None:
    found = flips(run)
    assert found.total > 0
    evaluated = result_of(run.manifests["eval"], run.folder)
    assert isinstance(evaluated, EvalResult)
    for model in evaluated.models[1:]:
        for skill, claim in model.claims.items():
            for way, count in (("lost", claim.lost), ("gained", claim.gained)):
                assert found.counts.get((skill, model.model, way), 0) == (count or 0)  # type: ignore[call-overload]


@pytest.mark.slow
def test_a_flip_has_its_question_its_reference_and_both_answers(run: tiny.Run) -> None:
    first = flips(run).shown[0]
    items = read_items(run.folder / "eval/items-base.jsonl", ["capital", "nll", TARGET])
    assert first.base == items[first.skill][first.row]
    assert first.asked is not None
    text = page(run)
    for words in (first.asked.question, first.asked.answer, first.base.answer, first.tuned.answer):
        assert words is not None
        assert shown(words) in text


@pytest.mark.slow
def test_the_number_of_flips_on_the_page_is_limited_and_said(run: tiny.Run) -> None:
    every = flips(run)
    few = flips(run, most=2)
    assert len(few.shown) == 2 < few.total == every.total
    assert f"2 of {few.total:,} are shown, the first ones of each" in flipped(few)
    assert f"{every.total:,} of {every.total:,} are shown" in flipped(every)
    groups = Counter((flip.skill, flip.model, flip.way) for flip in few.shown)
    assert set(groups.values()) == {1}


@pytest.mark.slow
def test_without_its_tests_or_its_answers_the_page_says_so(run: tiny.Run) -> None:
    path = run.data / "test-capital.jsonl"
    before = path.read_bytes()
    try:
        path.unlink()
        gone = flips(run)
        path.write_bytes(before.splitlines(keepends=True)[0])
        changed = flips(run)
    finally:
        path.write_bytes(before)
    assert gone.shown[0].asked is None
    assert "the questions are not shown" in gone.note
    assert changed.shown[0].asked is None
    assert "test-capital.jsonl has changed" in changed.note
    moved = run.folder / "eval/items-base.jsonl"
    moved.rename(run.folder / "away")
    try:
        assert "items-base.jsonl" in flipped(flips(run))
    finally:
        (run.folder / "away").rename(moved)


@pytest.mark.slow
def test_the_replay_on_the_page_is_a_sample_of_what_was_mixed(run: tiny.Run) -> None:
    folder = run.folder / "mix-selected"
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    ids = Counter(line["id"] for line in lines if line["source"] != TARGET)
    every = replayed(folder, "mix-selected", seed=1)
    assert (every.rows, every.slots) == (len(ids), ids.total())
    assert {used.record.id: used.times for used in every.shown} == dict(ids)
    some = replayed(folder, "mix-selected", seed=1, most=3)
    assert len(some.shown) == 3
    assert some == replayed(folder, "mix-selected", seed=1, most=3)
    assert "similarity" in every.shown[0].reason
    text = page(run)
    assert f"{len(ids):,} of {len(ids):,} different rows" in text
    assert shown(every.shown[0].record.answer) in text


def test_a_row_says_why_it_is_replayed(tmp_path: Path) -> None:
    own = {"row": 1, "temperature": 0.5, "finish": "length", "customer": "Ada"}
    edited = {"parent": "3f0c", "path": "edit", "edit": 0.11}
    file = {"line": 3, "replay_file": "/home/ada/old.jsonl"}
    rows = [
        Record(dialogue("Where?", "There"), "generate", own),
        Record(dialogue("When?", "Then"), "rewrite", edited),
        Record(dialogue("Who?", "They"), "select", file),
        Record(dialogue("New?", "Yes"), TARGET),
    ]
    write_jsonl(tmp_path / "rows.jsonl", ({"step": 0, **row.to_json()} for row in rows))
    found = replayed(tmp_path, "mix", seed=1)
    reasons = {used.source: used.reason for used in found.shown}
    assert reasons == {
        "generate": "the model's question and answer; question drawn at temperature 0.5; "
        "cut at the token limit",
        "rewrite": "the model's own words, by way of edit; 11 % edited; made of row 3f0c",
        "old.jsonl": "row 3 of its file",
    }
    assert "customer" not in found.shown[0].record.meta


@pytest.mark.slow
def test_what_is_private_in_the_recipe_is_not_on_the_page(run: tiny.Run) -> None:
    text = unescape(page(run))
    assert str(run.data) not in text
    assert "test-capital.jsonl" in text
    assert len(re.findall("<script", text)) == 1
    assert SCRIPT in text


def test_texts_are_shown_whole_or_said_to_be_cut() -> None:
    assert shown("a\r\n<b>\x00") == '<div class="said" dir="auto">a\n&lt;b&gt;\\x00</div>'
    assert "1 more characters" in shown("a" * 2_001)
    assert "(nothing)" in shown(" ")


def test_a_rewritten_row_stands_beside_what_was_there(tmp_path: Path) -> None:
    rows = []
    for number in range(40):
        meta = {"path": "reference", "why": "unverified", "reference": "It is 12."}
        record = Record(dialogue(f"How many, {number}?", "It is 12."), "rewrite", meta)
        if number % 10 == 0:
            changed = {"path": "edit", "edit": 0.11, "reference": "It is 12.", "city": "Ulm"}
            record = Record(dialogue(f"How many, {number}?", "It is <11>."), "rewrite", changed)
        rows.append(record)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = rewritten(tmp_path, seed=1, most=20)
    assert dict(found.paths) == {"reference": 36, "edit": 4}
    assert Counter(record.meta["path"] for record in found.shown) == {"reference": 10, "edit": 4}
    html = rewritten_rows(found)
    assert "14 of 40 rows" in html
    assert "It is <del>12</del>." in html
    assert "It is <ins>&lt;11&gt;</ins>." in html
    assert "the reference stays: unverified" in html
    assert '<select name="way">' in html
    assert '<select name="edit">' in html
    assert "Ulm" not in html
    assert rewritten_rows(rewritten(tmp_path, seed=1, most=20)) == html


@pytest.mark.slow
def test_the_page_tells_how_probable_rewritten_answers_are(tmp_path: Path) -> None:
    made = tiny.Run(tmp_path, rewrite={"samples": 1, "max_tokens": 16})
    made.do("rewrite")
    html = page(made)
    assert "The rows that were rewritten" in html
    assert "Median of rows" in html
    assert '<th scope="row">reference</th>' in html
