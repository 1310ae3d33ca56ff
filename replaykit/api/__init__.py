"""The functions for notebooks and scripts; each is a name of the package: ``replaykit.select``.

    old = replaykit.select("old.jsonl", "task.jsonl", n=2000)
    memory = replaykit.generate("nano", 500)
    replay = {"select": old.records, "generate": memory}
    mixture = replaykit.mix("task.jsonl", replay, model="nano", ratio=0.05)
    tuned = replaykit.train(mixture, model="nano", folder="runs/tuned", learning_rate=1e-3)
    tests = {"target": "task_test.jsonl", "chat": ("general.jsonl", "cross_entropy")}
    models = {"base": "nano", "tuned": tuned.model}
    found = replaykit.evaluate(models, tests, mixtures={"tuned": mixture})
    replaykit.report(found, tuned, mixture, out="report.html")

Data comes first, choices by keyword: the keys of the recipe's section of that name. Rows may be a
path, a list, an iterator or a datasets.Dataset. The steps of the command line call what these
functions call, so the same choices give the same rows. Nothing is printed, and a bar is drawn only
where ``progress=True`` asks for it.
"""

from replaykit.api.data import (
    Augmented,
    Described,
    Mixed,
    Rewritten,
    augment,
    describe,
    generate,
    mix,
    probe,
    rewrite,
    select,
)
from replaykit.api.proof import evaluate, push, repair, report, run, train
from replaykit.data.dataset import to_dataset
from replaykit.data.record import Record
from replaykit.recipe import Recipe, load_recipe
from replaykit.steps.report.html.standalone import plot
from replaykit.steps.select.selection import Selection

__all__ = [
    "Augmented",
    "Described",
    "Mixed",
    "Recipe",
    "Record",
    "Rewritten",
    "Selection",
    "augment",
    "describe",
    "evaluate",
    "generate",
    "load_recipe",
    "mix",
    "plot",
    "probe",
    "push",
    "repair",
    "report",
    "rewrite",
    "run",
    "select",
    "to_dataset",
    "train",
]
