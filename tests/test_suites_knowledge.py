"""The suites on knowledge and skill, and the command that lists, prints and measures suites."""

import json
from collections import Counter
from pathlib import Path

import pytest
from commands import type_in

from replaykit.checks.scoring import SCORERS, readings_of
from replaykit.data.formats import record_of
from replaykit.nano import world
from replaykit.suites import MODULES, rows, suite_of

NANO = [name for name in MODULES if name.startswith("nano-")]
OWN = [*NANO]
SEEDS = (1, 2, 3)


def records(name, n=200, seed=0):
    path = f"suite:{name}@{seed}"
    return [record_of(f"{path}:{i}", row, "target") for i, row in enumerate(rows(path, n), 1)]


@pytest.mark.parametrize("name", OWN)
def test_the_reference_is_right(name):
    score = suite_of(f"suite:{name}").score
    if score not in SCORERS:
        pytest.skip(f"{score} is scored elsewhere")
    for record in records(name):
        assert readings_of(score, record.answer, record) == (1, 1), record.messages


@pytest.mark.parametrize("name", OWN)
def test_no_single_answer_does_much_better_than_chance(name):
    found = []
    for seed in SEEDS:
        answers = [record.answer.lower() for record in records(name, seed=seed)]
        found.append(Counter(answers).most_common(1)[0][1] / len(answers))
    assert sum(found) / len(found) <= suite_of(f"suite:{name}").chance + 0.05


# --- each suite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NANO)
def test_the_items_of_the_embedded_world_are_its_held_out_side(name):
    found = records(name, n=400)
    assert all(world.is_held_out(record.prompt) for record in found)
    skill = name.removeprefix("nano-")
    drawn = {task.prompt for task in world.draw(skill, 40, seed=5, held_out=True)}
    if name == "nano-capital":  # its table is small: the suite is at its end
        assert drawn <= {record.prompt for record in found}


# --- the command ----------------------------------------------------------------------------------


def test_the_list_has_every_suite_with_the_drop_that_it_shows():
    found = json.loads(type_in("suites", "--json"))
    assert [suite["suite"] for suite in found["suites"]] == list(MODULES)
    assert all(0.03 < suite["detectable"] < 0.12 for suite in found["suites"])
    fewer = json.loads(type_in("suites", "-n", 50, "--json"))
    pairs = zip(found["suites"], fewer["suites"], strict=True)
    assert all(many["detectable"] < few["detectable"] for many, few in pairs)
    shown = type_in("suites")
    assert all(name in shown for name in MODULES)
    assert "four times in five" in shown


def test_named_suites_are_printed_as_rows(here):
    Path("items.jsonl").write_text(type_in("suites", "nano-json", "sums", "-n", 3))
    found = [json.loads(line) for line in Path("items.jsonl").read_text().splitlines()]
    assert found == [*rows("suite:nano-json", 3), *rows("suite:sums", 3)]
    other = type_in("suites", "sums", "-n", 3, "--seed", 7)
    assert [json.loads(line) for line in other.splitlines()] == rows("suite:sums@7", 3)


def test_a_suite_that_does_not_exist_and_a_number_of_none_are_named():
    assert "did you mean 'sums'" in type_in("suites", "sum", code=1)
    assert "-n 0: a suite gives 1 to" in type_in("suites", "sums", "-n", 0, code=1)


@pytest.mark.slow
def test_what_a_base_can_do_is_measured_once_and_goes_on_where_it_stopped(here):
    words = ("suites", "nano-json", "sums", "-n", 30, "--model", "nano", "--json")
    found = json.loads(type_in(*words))
    able, unable = found["suites"]
    assert (able["suite"], able["n"], able["can"]) == ("nano-json", 30, True)
    assert able["score"]["mean"] > 0.9
    assert 0 < able["detectable"] < 0.3
    assert (unable["suite"], unable["can"], unable["detectable"]) == ("sums", False, None)

    folder = Path("runs/nano/suites")
    (folder / "manifest.json").unlink()
    (folder / "items-sums.jsonl").unlink()
    kept = folder / "items-nano-json.jsonl"
    before = kept.stat().st_mtime_ns
    assert json.loads(type_in(*words)) == found
    assert kept.stat().st_mtime_ns == before
    shown = type_in(*words[:-1])
    assert "cannot" in shown
