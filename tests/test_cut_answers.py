"""Answers that were cut at a token limit, after they were generated: mixed, exported, and shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import finished
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from replaykit.checks.fidelity import RawSample
from replaykit.data.planned import write_plan
from replaykit.data.record import Record, dialogue
from replaykit.errors import DataError
from replaykit.model.chat import Chat
from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train
from replaykit.runs import read_manifest
from replaykit.steps.generate.result import GenerateResult
from replaykit.steps.mix.build import build_mixture
from replaykit.steps.mix.export import export_mixture
from replaykit.steps.report.terminal import show

SUMS = [Record(dialogue(f"{a} + 2?", f"It is {a + 2}."), "target") for a in range(40)]
CUT = [
    Record(dialogue(f"Tell the story number {n}", "Once upon a"), "generate", {"finish": "length"})
    for n in range(5)
]
WHOLE = [Record(row.messages, "generate") for row in CUT]
TRAIN = Train(batch_rows=8, max_tokens=200)


def exported(name: str, folder: Path, chat: Chat, replay: list[Record]) -> Path:
    """The folder of an export of a small mixture with this replay."""
    made = build_mixture(
        SUMS,
        {"generate": replay},
        chat=chat,
        settings=Mix(ratio=0.2, near_duplicate=None),
        train=TRAIN,
        seed=1,
    )
    folder.mkdir(exist_ok=True)
    write_plan(folder / "rows.jsonl", made.planned_rows())
    return export_mixture([name], folder, model="nano", chat=chat, train=TRAIN)[name]


@pytest.mark.parametrize("name", ["trl", "axolotl", "parquet"])
def test_trainers_that_take_token_ids_get_a_cut_answer_without_an_end(
    tmp_path: Path, chat: Chat, name: str
) -> None:
    rows = pq.read_table(exported(name, tmp_path, chat, CUT) / "rows.parquet").to_pydict()
    end = list(chat.end_of_turn)
    open_rows = [labels for labels in rows["labels"] if labels[-len(end) :] != end]
    said = list(chat.encode("Once upon a"))
    assert open_rows
    assert all(labels[-len(said) :] == said for labels in open_rows)
    # Of the target's rows each is closed.
    assert len(rows["labels"]) - len(open_rows) == len(SUMS)


def test_a_trainer_that_would_close_a_cut_answer_is_refused_it(tmp_path: Path, chat: Chat) -> None:
    with pytest.raises(
        DataError,
        match=r"--export ms-swift: \d+ rows end where the model was cut.*trl, axolotl and "
        r"llamafactory take them.*generate\.checks\.truncated: true",
    ):
        exported("ms-swift", tmp_path / "cut", chat, CUT)
    assert list((tmp_path / "cut/export").iterdir()) == []
    place = exported("ms-swift", tmp_path / "whole", chat, WHOLE)
    assert (place / "rows.jsonl").read_text().count("Once upon a")


def test_the_share_of_replay_counts_the_tokens_that_a_cut_answer_has(chat: Chat) -> None:
    cut = chat.example(CUT[0]).loss_tokens
    assert cut == len(chat.encode("Once upon a"))
    assert chat.example(WHOLE[0]).loss_tokens == cut + len(chat.end_of_turn)


def test_what_was_cut_and_what_replay_would_teach_are_shown_in_words(tmp_path: Path) -> None:
    sample = RawSample()
    for row in range(200):
        refuses = row % 8 == 0
        answer = "I'm sorry, but I cannot help with that." if refuses else f"It is {row}. " * 20
        cut = not refuses and row % 3 > 0
        sample.add(row, f"What is number {row}?", answer, not cut, cut=cut)
    finished.generated(tmp_path, WHOLE)
    manifest = read_manifest(tmp_path / "generate")
    assert manifest is not None
    made = GenerateResult.model_validate(manifest.result)
    made = made.model_copy(update={"fidelity": sample.summary()})
    console = Console(file=io.StringIO(), width=200)
    show("generate", made, console)
    words = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert f"cut {sample.summary().cut} of 200 answers at the token limit" in words
    assert "warning refusals are" in words
    assert "% of all that it wrote: replay would teach more of them" in words
    assert json.loads(made.model_dump_json())["fidelity"]["warnings"]
