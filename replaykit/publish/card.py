"""The dataset card: what the rows are, how each source made them, and how to use them. It says only
what was recorded.

    ---
    license: unknown
    tags: [replaykit, replay, continual-learning, synthetic]
    configs: [{config_name: default, data_files: [{split: generate, path: data/generate.parquet}]}]
    ---
    # my-replay
    Replay data for fine-tuning `meta-llama/Meta-Llama-3-8B-Instruct` without forgetting ...

The facts come from the manifests of the steps (``runs.Step.finish``) and, where these are silent,
from the recipe. Like mergekit's card it carries the recipe itself; unlike other generators' cards
it claims neither a licence nor a language.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from replaykit.models import ALIASES
from replaykit.recipe import Recipe
from replaykit.records import Record

METHODS = {
    "target": "the new task's own rows",
    "select": "old data whose prompts are nearest to the new task's, by TF-IDF",
    "generate": "questions and answers of the model itself (Magpie)",
    "rewrite": "the new task in the model's own words",
    "augment": "the new task's rows, varied",
    "describe": "rows written from a description",
}
COPIED = ("target", "select")  # every other source is written by a model
UNITS = {"loss_tokens": "loss tokens", "tokens": "tokens", "rows": "rows"}
SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
EXAMPLE_CHARS = 600  # of one message of an example

Manifests = Mapping[str, Mapping[str, Any]]

INTRO = """\
# {title}

Replay data for fine-tuning {model} without forgetting: mixed into a new task's data at a small share, these rows keep
what the model could do before. Made with replaykit.
"""

LOAD = """\
## How to load

```python
import datasets

replay = datasets.load_dataset("{repo}")  # {splits}
```

Needs datasets 4 or later. A row has `id` (a hash of its messages), `messages` (a list of role and content), `source`,
and `meta`: what is known about the row, as one JSON string; `json.loads` reads it.
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

task = datasets.load_dataset("json", data_files="my_task.jsonl", split="train").select_columns("messages")
replay = datasets.load_dataset("{repo}", split="{split}").select_columns("messages")
train = datasets.concatenate_datasets([task, replay]).shuffle(seed=1)
```

Take as many rows of `replay` as the share of it asks for; `replaykit mix` keeps that share in every optimiser step.
"""


def dataset_card(
    *,
    repo: str,
    recipe: Recipe,
    manifests: Manifests,
    counts: Mapping[str, int],
    examples: Sequence[Record],
) -> str:
    """README.md of a data set that has one split for each source in ``counts`` (rows by source).

    ``manifests`` are by step, "select", "generate" and "mix"; a step or a key that is absent is
    left out of the text.
    """
    split = "generate" if "generate" in counts else next(iter(counts))
    model = _quoted(_model(recipe, manifests))
    sections = [
        _front_matter(repo, counts),
        INTRO.format(title=repo.rpartition("/")[2], model=model),
        _sources(counts),
        *(_made(source, recipe, manifests.get(source, {})) for source in counts),
        _mix(recipe, manifests),
        f"## Recipe\n\n```yaml\n{recipe_yaml(recipe)}```\n",
        _examples(examples),
        LOAD.format(repo=repo, splits=", ".join(f'replay["{source}"]' for source in counts)),
        USE.format(repo=repo, split=split),
        _licence(model, counts),
    ]
    return "\n".join(section for section in sections if section)


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as the user would write it: without what is a default."""
    settings = recipe.model_dump(exclude_none=True, exclude_defaults=True)
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _front_matter(repo: str, counts: Mapping[str, int]) -> str:
    from huggingface_hub import DatasetCardData

    rows = sum(counts.values())
    data = DatasetCardData(
        license="unknown",
        pretty_name=repo.rpartition("/")[2],
        size_categories=[next((name for limit, name in SIZES if rows < limit), "n>10M")],
        task_categories=["text-generation"],
        tags=["replaykit", "replay", "continual-learning"]
        + ["synthetic"] * any(s not in COPIED for s in counts),
        configs=[
            {
                "config_name": "default",
                "data_files": [
                    {"split": source, "path": f"data/{source}.parquet"} for source in counts
                ],
            }
        ],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _sources(counts: Mapping[str, int]) -> str:
    rows = [
        (f"`{source}`", METHODS.get(source, ""), f"{count:,}") for source, count in counts.items()
    ]
    return "## Sources\n\n" + _table(("split", "what it is", "rows"), rows)


def _made(source: str, recipe: Recipe, manifest: Mapping[str, Any]) -> str:
    """How one source was made: its settings, then its funnel."""
    facts = dict(_facts(source, recipe, manifest))
    lines = [
        f"## How `{source}` was made\n",
        *(f"* {name}: {value}" for name, value in facts.items()),
    ]
    funnel = _fact(manifest, "funnel")
    if not isinstance(funnel, Mapping):
        return "\n".join(lines) + "\n"
    dropped = funnel.get("dropped") or {}
    rows = [
        ("made", funnel.get("made")),
        *((f"dropped: {reason}", n) for reason, n in dropped.items()),
    ]
    rows.append(("kept", funnel.get("kept")))
    return (
        "\n".join(lines)
        + "\n\n"
        + _table(("rows", "count"), [(k, f"{n:,}") for k, n in rows if n is not None])
    )


def _facts(source: str, recipe: Recipe, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    model = _fact(manifest, "model") or recipe.model
    if source not in COPIED and model:
        revision = (
            _fact(manifest, "revision") or _fact(manifest, "model_revision") or recipe.revision
        )
        yield "model", _quoted(str(model)) + (f", revision `{revision}`" if revision else "")
        if engine := _fact(manifest, "engine"):
            yield "engine", f"{engine}"
    seed = _fact(manifest, "seed")
    yield "seed", str(recipe.seed if seed is None else seed)
    settings = _fact(manifest, "sampling") or _fact(manifest, source)
    if not isinstance(settings, Mapping):
        section = getattr(recipe, source, None)
        settings = section.model_dump() if section is not None else {}
    shown = [
        f"{key} {_value(value)}"
        for key, value in _flat(settings)
        if value is not None and value is not False
    ]
    if shown:
        yield "settings", ", ".join(shown)
    versions = manifest.get("versions")
    if isinstance(versions, Mapping) and versions:
        yield "versions", ", ".join(f"{package} {version}" for package, version in versions.items())


def _mix(recipe: Recipe, manifests: Manifests) -> str:
    if "mix" not in manifests:
        return ""
    manifest = manifests["mix"]
    ratio = _fact(manifest, "ratio")
    unit = _fact(manifest, "unit") or recipe.mix.unit
    ratio = recipe.mix.ratio if ratio is None else ratio
    share = _fact(manifest, "share")
    text = f"Replay was asked to be {_percent(ratio)} of the {UNITS.get(unit, unit)} of training"
    if isinstance(share, Mapping):
        text += "; it came out as " + ", ".join(
            f"{_percent(part)} {source}" for source, part in share.items()
        )
    elif share is not None:
        text += f"; it came out as {_percent(share)}"
    return f"## The mix it was made for\n\n{text}.\n"


def _examples(examples: Sequence[Record]) -> str:
    if not examples:
        return ""
    lines = ["## Examples\n"]
    for record in examples:
        messages = [
            dict(message) | {"content": _short(message["content"])} for message in record.messages
        ]
        text = json.dumps(messages, ensure_ascii=False, indent=1)
        # A fence is longer than any run of backticks inside it, or the text would end the block.
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
        lines.append(f"From `{record.source}`:\n\n{fence}json\n{text}\n{fence}\n")
    return "\n".join(lines)


def _licence(model: str, counts: Mapping[str, int]) -> str:
    lines = ["## Licence\n", "This card grants no licence of its own.\n"]
    if any(source not in COPIED for source in counts):
        lines.append(f"* What a model wrote: the licence of {model} applies.")
    if any(source in COPIED for source in counts):
        lines.append(
            "* What was copied from existing data: the licence of that data, which the recipe "
            "names, applies."
        )
    return "\n".join(lines) + "\n"


def _fact(manifest: Mapping[str, Any], key: str) -> Any:
    """A key of the manifest, of its result or of its inputs; None where it is in none of them."""
    places = (manifest, manifest.get("result"), manifest.get("inputs"))
    found = (
        place[key] for place in places if isinstance(place, Mapping) and place.get(key) is not None
    )
    return next(found, None)


def _model(recipe: Recipe, manifests: Manifests) -> str | None:
    generated = _fact(manifests.get("generate", {}), "model")
    return str(generated) if generated else recipe.model


def _quoted(model: str | None) -> str:
    """The model as anyone can find it: its Hub id, or the last part of a local path."""
    if model is None:
        return "a language model"
    name = ALIASES.get(model, model)
    if Path(name).is_dir() or Path(name).is_absolute():
        return f"`{model if model in ALIASES else Path(name).name}`"
    return f"`{name}`"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings with the keys of their sections dotted."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and "path" not in value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _value(value["path"])
    local = isinstance(value, str) and (Path(value).is_absolute() or Path(value).exists())
    return f"`{Path(value).name if local else value}`" if isinstance(value, str) else str(value)


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %"


def _short(text: str) -> str:
    return (
        text
        if len(text) <= EXAMPLE_CHARS
        else f"{text[:EXAMPLE_CHARS]} … ({len(text):,} characters)"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join(
            "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |"
            for line in lines
        )
        + "\n"
    )
