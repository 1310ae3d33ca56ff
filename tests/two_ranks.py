"""Run by torchrun: trains as test_training does, and writes down which rows this process was given.

two_ranks.py FOLDER [MODEL [STEPS]]      # with STEPS it is killed after so many
"""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from replaykit.data.jsonl import read_jsonl
from replaykit.data.planned import PlannedRow
from replaykit.model.chat import Chat
from replaykit.recipe.train import Train
from replaykit.steps.train import texts
from replaykit.steps.train.fit import Base, Extras, fit


class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if len(sys.argv) > 3 and state.global_step == int(sys.argv[3]):
            os._exit(1)


def main(folder: Path, model: str = "nano", *_: str) -> None:
    torch.set_num_threads(1)
    seen: list[list[int]] = []
    plain = texts.collate

    def listening(rows, **options):
        seen.append([row["index"] for row in rows])
        return plain(rows, **options)

    texts.collate = listening
    records = list(read_jsonl(folder / "mixture.jsonl"))
    settings = Train.model_validate(json.loads((folder / "settings.json").read_text()))
    rows = [PlannedRow(k // settings.batch_rows, record) for k, record in enumerate(records)]
    base = Base(model, Chat.load("nano"))
    extras = Extras(callbacks=[Kill()])
    result = fit(rows, base, settings, seed=1, folder=folder / "train", extras=extras)
    rank = os.environ["RANK"]
    told = {"rows": seen, "losses": result.losses, "notes": result.notes}
    (folder / f"rank-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
