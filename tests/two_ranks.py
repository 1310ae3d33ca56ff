"""Run by torchrun in test_training.py: trains as test_training does, and writes down which rows this process was given."""

import json
import os
import sys
from pathlib import Path

import torch

from replaykit.data.jsonl import read_jsonl
from replaykit.data.planned import PlannedRow
from replaykit.model.chat import Chat
from replaykit.recipe.train import Train
from replaykit.steps.train import fit as fitting
from replaykit.steps.train.fit import Base, fit


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    seen: list[list[int]] = []
    plain = fitting.collate

    def listening(rows, **options):
        seen.append([row["index"] for row in rows])
        return plain(rows, **options)

    fitting.collate = listening
    records = list(read_jsonl(folder / "mixture.jsonl"))
    settings = Train.model_validate(json.loads((folder / "settings.json").read_text()))
    rows = [PlannedRow(k // settings.batch_rows, record) for k, record in enumerate(records)]
    base = Base("nano", Chat.load("nano"))
    result = fit(rows, base, settings, seed=1, folder=folder / "train")
    rank = os.environ["RANK"]
    (folder / f"rank-{rank}.json").write_text(json.dumps({"rows": seen, "losses": result.losses}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
