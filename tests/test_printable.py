"""No control character of a row, a model or a file name reaches the terminal."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from pydantic import Field
from rich.console import Console
from typer.testing import CliRunner

from replaykit.cli import Printable, _print_json, _say, app
from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record, dialogue
from replaykit.nano import world
from replaykit.result import Noted, Result
from replaykit.steps.report.progress import progress
from replaykit.steps.report.terminal import show
from replaykit.steps.select.result import Explanation
from replaykit.text import CONTROL, printable

ESC = "\x1b]0;owned\x07\x1b[2J\x9b31m\r"


class Found(Noted):
    """Texts wherever a result may have them."""

    text: str = ESC
    names: dict[str, dict[str, list[str]]] = Field(default={ESC: {ESC: [ESC]}})


@pytest.mark.parametrize("text", [ESC, "a\x00b", "\x7f", "\x85", "\x08"])
def test_a_control_character_is_written_out(text: str) -> None:
    assert not CONTROL.search(printable(text))


@pytest.mark.parametrize("text", ["", "a\n\tb", "Zürich 日本語 🙂", "مرحبا"])
def test_other_text_is_as_it_was(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    "result",
    [Found(notes=[ESC]), Explanation(id=ESC, chosen=False, reason=ESC, text=[{ESC: ESC}])],
    ids=["any", "an explanation"],
)
def test_every_result_is_shown_without_control_characters(result: Result) -> None:
    console = Console(file=io.StringIO(), highlight=False, width=200)
    show(f"eval-{ESC}", result, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\\x1b]0;owned" in text
    assert not CONTROL.search(text)


def test_messages_json_progress_and_the_log_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    _say(f"error: {ESC}", err=True)
    _print_json({ESC: [ESC]})
    with progress() as watch:
        watch(f"read {ESC}", 1, 1, ESC)
    record = logging.LogRecord("x", logging.WARNING, "", 1, "%s: %s", ("a", ESC), None)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {ESC: [ESC]}
    for text in (shown.out, shown.err, Printable().format(record)):
        assert "owned" in text
        assert not CONTROL.search(text)


@pytest.mark.slow
def test_no_command_shows_a_control_character_of_its_rows(here: Path) -> None:
    rows = [
        Record(dialogue(f"{task.prompt}{ESC}", task.answer), "target", {"skill": f"s{ESC}"})
        for task in world.draw("referral", 24, seed=1)
    ]
    old = [
        Record(dialogue(f"{task.prompt}{ESC}", task.answer), "target", {ESC: 1, "skill": ESC})
        for task in world.draw_old(80, seed=1)
    ]
    for name, records in {"target": rows[:16], "test": rows[16:], "pool": old}.items():
        write_jsonl(f"{name}.jsonl", records)
    recipe = {
        "name": "small",
        "model": "nano",
        "target": "target.jsonl",
        "select": {"pool": "pool.jsonl", "n": 8, "quality": {"broken": False}},
        "mix": {"ratio": 0.4},
        "train": {"steps": 1, "batch_rows": 4},
        "eval": {
            "target": {"path": "test.jsonl", "n": 2, "max_tokens": 4},
            "old": {f"s{ESC}": {"path": "pool.jsonl", "skip": 60, "n": 2, "max_tokens": 4}},
            "margin": 0.05,
        },
        "push": {"columns": [ESC]},
    }
    Path("replaykit.yaml").write_text(json.dumps(recipe))
    commands = ["select", "mix", "score", "train", "eval", "status", "report", "gate"]
    said = {}
    for words in (*([name] for name in commands), ["push", "me/x", "--dry-run"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == (3 if words == ["gate"] else 0), result.output
        said[words[0]] = result.output
    assert not [name for name, text in said.items() if CONTROL.search(text)]
    assert "owned" in said["eval"]
