"""Run by torchrun in test_training.py: trains as test_training does, and writes down which rows this process was given."""

import json
import os
import sys
from pathlib import Path

import torch

from replaykit.chat import Chat
from replaykit.records import read_jsonl
from replaykit.train import fit
from replaykit.training_settings import Train


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    seen: list[list[int]] = []
    plain = fit.collate

    def listening(rows, **options):
        seen.append([row["index"] for row in rows])
        return plain(rows, **options)

    fit.collate = listening
    records = list(read_jsonl(folder / "mixture.jsonl"))
    settings = Train.model_validate(json.loads((folder / "settings.json").read_text()))
    steps = [k // settings.batch_rows for k in range(len(records))]
    result = fit.train(
        records,
        steps,
        model="nano",
        chat=Chat.load("nano"),
        settings=settings,
        seed=1,
        folder=folder / "train",
    )
    rank = os.environ["RANK"]
    (folder / f"rank-{rank}.json").write_text(
        json.dumps({"rows": seen, "losses": result["losses"]})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
