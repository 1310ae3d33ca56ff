# %% [markdown]
# # A model forgets, and then it does not
#
# The model that is embedded in replaykit has six old skills. It is fine-tuned on a new one: once on
# the new task alone, once with 20 % of old data beside it. All of it runs on a CPU, offline, in
# about a minute. The two files and the model's name are all that you exchange for your own.

# %%
# Two files: the new task's rows, and old data. Yours may be in any common format.
import json
from collections.abc import Iterable
from pathlib import Path

import replaykit
from replaykit.nano import world


def rows(tasks: Iterable[world.Task]) -> list[dict[str, str]]:
    return [{"prompt": task.prompt, "completion": task.answer} for task in tasks]


def write(name: str, tasks: Iterable[world.Task]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows(tasks)))


write("target.jsonl", world.draw("referral", 600, seed=1))
write("old.jsonl", world.draw_old(1000, seed=1))

# %% [markdown]
# Held-out rows say what was learned and what was kept. The old skills are scored by their answers.
# To learn the new one whole takes minutes more, so here it is scored by the loss of its answers.

# %%
tests = {"target": (rows(world.draw("referral", 40, seed=1, held_out=True)), "cross_entropy")}
for skill in ("capital", "nli", "topic", "reverse"):
    tests[skill] = (rows(world.draw(skill, 20, seed=1, held_out=True)), "exact")

# %% [markdown]
# Old data for the new task, half of it near the task and half of it far from it. Then two mixtures
# of the same length, and a training on each.

# %%
old = replaykit.select(
    "old.jsonl", "target.jsonl", n=400, method="near-and-far", near_duplicate=None, held_out=tests
)
mixtures = {
    name: replaykit.mix(
        "target.jsonl",
        {"select": old.records},
        model="nano",
        ratio=ratio,
        steps=60,
        batch_rows=16,
        near_duplicate=None,
    )
    for name, ratio in {"alone": 0.0, "with replay": 0.2}.items()
}
tuned = {
    name: replaykit.train(
        mixture, model="nano", folder=Path("runs/forgetting", name), learning_rate=2e-3
    )
    for name, mixture in mixtures.items()
}

# %% [markdown]
# The same questions to all three models.

# %%
models = {"base": "nano"} | {name: trained.model for name, trained in tuned.items()}
found = replaykit.evaluate(models, tests, mixtures=mixtures, max_tokens=32)
for model in found.models:
    assert model.old is not None
    assert model.target is not None
    bar = "█" * round(20 * model.old.mean)
    print(f"{model.model:>12}  old skills {bar:<20} {model.old.mean:4.0%}", end="  ")
    print(f"loss of the new one {model.target.mean:.2f}")

# %%
replaykit.plot(found)

# %% [markdown]
# One page says it all, with pictures, and needs nothing else: open it in a browser, or send it.

# %%
print(replaykit.report(found, tuned, mixtures, out="report.html", title="forgetting"))
