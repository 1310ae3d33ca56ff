"""What the dataset card says in fixed words."""

from __future__ import annotations

from replaykit.recipe.mix import Unit
from replaykit.steps.generate.result import Kind

# By method of selection; {task} is the new task's prompts, or their mean.
METHODS = {
    "tfidf": "old data whose prompts are nearest to {task}, by TF-IDF",
    "bm25": "old data whose prompts are nearest to {task}, by BM25",
    "embedding": "old data whose prompts are nearest to {task}, by embeddings of {model}",
    "near-and-far": (
        "old data: a part with the prompts nearest to {task} by TF-IDF, the others drawn at random"
    ),
    "mmr": "old data whose prompts are near to {task} by TF-IDF, and unlike one another (MMR)",
    "random": "old data, drawn at random",
    "stratified": "old data, drawn at random with {shares} shares of each `{column}`",
    "k-centre": "old data whose prompts lie as far from one another as they can (k-centre)",
    "herding": "old data whose prompts have, together, about the mean of the pool (herding)",
}
# By kind of generation.
KINDS: dict[Kind, str] = {
    "magpie": "questions and answers of the model itself (Magpie)",
    "prompts": "answers of the model to given questions",
    "text": "texts of the model itself, which is a base model",
}
# Of answers that were compared with the rows' own.
VERIFIED = "given rows, with the model's own answer where it is right"
# Of a source without a manifest: rows that a program gave.
UNKNOWN = "rows that were given; how they were made is not known here"
UNITS: dict[Unit, str] = {"loss_tokens": "loss tokens", "tokens": "tokens", "rows": "rows"}

INTRO = """\
# {title}

Replay data for fine-tuning {model} without forgetting: mixed into a new task's data at a small
share, these rows keep what the model could do before. Made with replaykit.
"""

LOAD = """\
## How to load

```python
import datasets

replay = datasets.load_dataset("{repo}")  # {splits}
```

Needs datasets 4 or later. A row has `id` (a hash of its messages), `messages` (a list of role and
content), `source`, and `meta`: what is known about the row, as one JSON string; `json.loads` reads
it.
"""

USE = """\
## How to use

With replaykit, as a pool of old data to choose from, in `replaykit.yaml`:

```yaml
select:
  pool: {{path: {repo}, split: {split}}}
```

With any trainer that takes conversations, by adding the rows to the new task's:

```python
import datasets

task = datasets.load_dataset("json", data_files="my_task.jsonl", split="train")
replay = datasets.load_dataset("{repo}", split="{split}")
messages = [rows.select_columns("messages") for rows in (task, replay)]
train = datasets.concatenate_datasets(messages).shuffle(seed=1)
```

Take as many rows of `replay` as the share of it asks for; `replaykit mix` keeps that share in every
optimiser step.
"""

LICENCE = "## Licence\n\n`{licence}`.\n"
NO_LICENCE = "## Licence\n\nThis card grants no licence of its own.\n"
MODEL_LICENCE = "* What a model wrote: the licence of {model} applies."
POOL_LICENCE = (
    "* What was copied from existing data: the licence of that data, which the recipe names, "
    "applies."
)
