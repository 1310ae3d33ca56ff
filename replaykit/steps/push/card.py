"""The dataset card: what the rows are, how each source made them, and how to use them.

    ---
    license: apache-2.0
    tags: [replaykit, replay, continual-learning, synthetic]
    configs: [{config_name: default, data_files: [{split: generate, path: data/generate.parquet}]}]
    ---
    # my-replay
    Replay data for fine-tuning `meta-llama/Meta-Llama-3-8B-Instruct` without forgetting ...

It says what was done: the facts come from the manifests of the steps, not from the recipe, which
may have changed since. Like mergekit's card it carries the recipe itself, without what is not meant
to leave; unlike other generators' cards it claims no language, and no licence that is not known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaykit.data.record import TARGET, Record
from replaykit.model.loading import ALIASES
from replaykit.recipe import Recipe
from replaykit.recipe.generate import Generate
from replaykit.recipe.select import Select
from replaykit.runs import Manifest
from replaykit.steps.generate.result import GenerateResult, Kind
from replaykit.steps.mix.result import MixResult
from replaykit.steps.public.settings import named, public, public_recipe
from replaykit.steps.push.licence import COPIED, Licence
from replaykit.steps.push.licence import UNKNOWN as UNKNOWN_LICENCE
from replaykit.steps.push.texts import (
    INTRO,
    KINDS,
    LICENCE,
    LOAD,
    METHODS,
    MODEL_LICENCE,
    NO_LICENCE,
    POOL_LICENCE,
    UNITS,
    UNKNOWN,
    USE,
    VERIFIED,
)
from replaykit.steps.report.numbers import NOTHING, percent
from replaykit.steps.results import result_of
from replaykit.steps.select.result import SelectResult

SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
EXAMPLE_CHARS = 600  # of one message of an example

# Which settings a method of selection reads; those that are not named here are for all methods.
WORDS = ("tfidf", "bm25", "near-and-far", "mmr")
READ_BY = {
    "to": WORDS,
    "analyzer": WORDS,
    "ngrams": WORDS,
    "sublinear": ("tfidf", "near-and-far", "mmr"),
    "min_df": WORDS,
    "max_df": WORDS,
    "model": ("embedding",),
    "column": ("stratified",),
    "shares": ("stratified",),
    "near": ("near-and-far",),
    "balance": ("mmr",),
    "candidates": ("mmr", "k-centre", "herding"),
}
# Which settings of generation do nothing for a kind of rows.
UNREAD: dict[Kind, set[str]] = {
    "magpie": set(),
    "prompts": {"turns", "temperature", "top_p", "schedule", "max_question_tokens"},
    "text": {"turns", "answers", "answer_temperature", "answer_top_p", "max_question_tokens"},
}


@dataclass(frozen=True)
class Recorded:
    """What the finished steps of a run recorded."""

    sources: Mapping[str, tuple[Manifest, SelectResult | GenerateResult]]
    """The steps that made replay, by source."""
    mixes: Sequence[tuple[Manifest, MixResult]]
    """One, or one for each arm."""

    @classmethod
    def of(cls, manifests: Mapping[str, Manifest]) -> Recorded:
        """From the manifests by folder name; steps of which the card says nothing are left out."""
        sources: dict[str, tuple[Manifest, SelectResult | GenerateResult]] = {}
        mixes = []
        for name, manifest in manifests.items():
            result = result_of(manifest, Path(name))
            if isinstance(result, SelectResult | GenerateResult):
                sources[manifest.step] = (manifest, result)
            elif isinstance(result, MixResult):
                mixes.append((manifest, result))
        return cls(sources, mixes)

    @property
    def pool(self) -> str | None:
        """The rows that were selected from; None where none were."""
        for manifest, result in self.sources.values():
            if isinstance(result, SelectResult):
                return str(manifest.inputs["select"]["pool"]["path"])
        return None

    @property
    def model(self) -> str | None:
        """The model that replay was made or mixed for; None where rows were only selected."""
        for _, result in self.sources.values():
            if isinstance(result, GenerateResult):
                return result.model
        for manifest, _ in self.mixes:  # all of the same model
            return str(manifest.inputs["model"])
        return None

    def unused(self, source: str) -> bool:
        """Whether there is a mixture, and none has a row of the source."""
        used = any(mix.repeats.get(source, 0) > 0 for _, mix in self.mixes)
        return bool(self.mixes) and not used


def dataset_card(
    *,
    repo: str,
    recipe: Recipe,
    recorded: Recorded,
    counts: Mapping[str, int],
    examples: Sequence[Record],
    licence: Licence,
) -> str:
    """README.md of a data set that has one split for each source in ``counts`` (rows by source).

    ``recorded`` is of the steps of the sources and of the mixtures. Of a source that has none, the
    card says that it is not known how its rows were made.
    """
    made = recorded.sources
    model = _quoted(recorded.model or recipe.model)
    origin = model
    if licence.base_model is not None and f"`{licence.base_model}`" != model:
        origin = f"{model}, which was made from `{licence.base_model}`,"
    split = next(iter(counts))
    if "generate" in counts:
        split = "generate"
    sections = [
        _front_matter(repo, counts, licence),
        INTRO.format(title=_title(repo), model=origin),
        _sources(counts, recorded),
        *(_made(source, *made[source]) for source in counts if source in made),
        _mix(recorded.mixes, counts),
        f"## Recipe\n\n```yaml\n{public_recipe(recipe)}```\n",
        _examples(examples),
        LOAD.format(repo=repo, splits=", ".join(f'replay["{source}"]' for source in counts)),
        USE.format(repo=repo, split=split),
        _licence(model, counts, licence),
    ]
    return "\n".join(section for section in sections if section)


def _title(repo: str) -> str:
    return repo.rpartition("/")[2]


def _front_matter(repo: str, counts: Mapping[str, int], licence: Licence) -> str:
    from huggingface_hub import DatasetCardData

    rows = sum(counts.values())
    # No "language": it was not recorded.
    tags = ["replaykit", "replay", "continual-learning"]
    if any(source not in COPIED for source in counts):
        tags.append("synthetic")
    files = [{"split": source, "path": f"data/{source}.parquet"} for source in counts]
    data = DatasetCardData(
        license=licence.name,
        pretty_name=_title(repo),
        size_categories=[next((name for limit, name in SIZES if rows < limit), "n>10M")],
        task_categories=["text-generation"],
        tags=tags,
        configs=[{"config_name": "default", "data_files": files}],
        base_model=licence.base_model,
    )
    return f"---\n{data.to_yaml()}\n---\n"


# --- the sources ----------------------------------------------------------------------------------


def _sources(counts: Mapping[str, int], recorded: Recorded) -> str:
    rows = []
    for source, count in counts.items():
        what = UNKNOWN
        if source in recorded.sources:
            what = _what(*recorded.sources[source])
        if recorded.unused(source):
            what += "; not used in the mix"
        rows.append((f"`{source}`", what, f"{count:,}"))
    return "## Sources\n\n" + _table(("split", "what it is", "rows"), rows)


def _what(manifest: Manifest, result: SelectResult | GenerateResult) -> str:
    """What the rows of a source are, in a sentence."""
    if isinstance(result, GenerateResult):
        if result.verified is not None:
            return VERIFIED
        return KINDS[result.kind]
    settings = manifest.inputs["select"]
    task = "the new task's"
    if settings["to"] == "centroid" and result.method in READ_BY["to"]:
        task = "the mean of the new task's"
    return METHODS[result.method].format(
        task=task,
        model=_quoted(settings["model"]),
        shares=settings["shares"],
        column=settings["column"],
    )


def _made(source: str, manifest: Manifest, result: SelectResult | GenerateResult) -> str:
    """How one source was made: its settings, then its funnel."""
    lines = [f"* {name}: {value}" for name, value in _facts(manifest, result)]
    rows = [("made", result.funnel.made)]
    rows += [(f"dropped: {reason}", n) for reason, n in result.funnel.dropped.items()]
    rows.append(("kept", result.funnel.kept))
    funnel = _table(("rows", "count"), [(name, f"{n:,}") for name, n in rows])
    return "\n".join([f"## How `{source}` was made\n", *lines, "", funnel])


def _facts(manifest: Manifest, result: SelectResult | GenerateResult) -> Iterator[tuple[str, str]]:
    if isinstance(result, GenerateResult):
        model = _quoted(result.model)
        if result.revision:
            model += f", revision `{result.revision}`"
        yield "model", model
        yield "engine", str(manifest.inputs["engine"])
        if result.verified is not None:
            yield "answers", result.verified.words
        settings = public(Generate, result.sampling.model_dump(exclude=UNREAD[result.kind]))
    else:
        method = result.method
        settings = {
            name: value
            for name, value in public(Select, manifest.inputs["select"]).items()
            if method in READ_BY.get(name, (method,))
        }
    yield "seed", str(manifest.inputs["seed"])
    yield "settings", ", ".join(f"{name} {_value(value)}" for name, value in _flat(settings))
    yield "versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a section of the recipe, as its step recorded them: the keys of sections
    within it dotted, and what is off or empty left out.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping) and "path" not in value:
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None and value is not False and value != []:
            yield f"{prefix}{key}", value


def _value(value: Any) -> str:
    """A setting as the card shows it: of rows the name."""
    if isinstance(value, Mapping) and "path" in value:
        return _value(value["path"])
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f"`{value}`" if isinstance(value, str) else str(value)


# --- the mixture ----------------------------------------------------------------------------------


def _mix(mixes: Sequence[tuple[Manifest, MixResult]], counts: Mapping[str, int]) -> str:
    """The share of replay that was asked for and the one that came out; of several arms a table.
    And which of that replay is not in the data set.
    """
    if not mixes:
        return ""
    head = "## The mix it was made for\n\n"
    used = [source for _, mix in mixes for source in _used(mix)]
    absent = [_value(named(source)) for source in dict.fromkeys(used) if source not in counts]
    tail = ""
    if absent:
        tail = (
            f"\nA part of that replay is not in this data set: the rows of {', '.join(absent)}.\n"
        )
    if len(mixes) > 1:
        columns = ("arm", "replay asked for", "came out as", "replay rows", "from")
        table = _table(columns, [_arm(manifest, mix) for manifest, mix in mixes])
        return (
            f"{head}Replay was mixed in at several shares, to compare the models:\n\n{table}{tail}"
        )
    _, mix = mixes[0]
    asked = f"{percent(mix.ratio)} of the {UNITS[mix.unit]} of training"
    if mix.schedule is not None:
        asked = mix.description
    came_out = percent(mix.share[mix.unit])
    return f"{head}Replay was asked to be {asked}; it came out as {came_out}.\n{tail}"


def _arm(manifest: Manifest, mix: MixResult) -> list[str]:
    name = NOTHING  # of a mixture that was made before the recipe had arms
    if manifest.arm is not None:
        name = f"`{manifest.arm}`"
    return [
        name,
        mix.description,
        f"{percent(mix.share[mix.unit])} of {UNITS[mix.unit]}",
        f"{mix.replay_rows:,}",
        ", ".join(_value(named(source)) for source in _used(mix)) or NOTHING,
    ]


def _used(mix: MixResult) -> list[str]:
    """The sources of replay of which a row is in the mixture."""
    return [source for source, times in mix.repeats.items() if times > 0 and source != TARGET]


# --- the rest -------------------------------------------------------------------------------------


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
        runs = [len(run) for run in re.findall("`+", text)]
        fence = "`" * max([3, *(length + 1 for length in runs)])
        lines.append(f"From `{record.source}`:\n\n{fence}json\n{text}\n{fence}\n")
    return "\n".join(lines)


def _licence(model: str, counts: Mapping[str, int], licence: Licence) -> str:
    lines = [NO_LICENCE]
    if licence.name != UNKNOWN_LICENCE:
        lines = [LICENCE.format(licence=licence.name)]
    if any(source not in COPIED for source in counts):
        lines.append(MODEL_LICENCE.format(model=model))
    if any(source in COPIED for source in counts):
        lines.append(POOL_LICENCE)
    return "\n".join(lines) + "\n"


def _quoted(model: str | None) -> str:
    """The model as anyone can find it: its Hub id, or the last part of a local path."""
    if model is None:
        return "a language model"
    found = ALIASES.get(model, model)
    if model in ALIASES and Path(found).is_absolute():
        found = model  # the embedded model, which is a folder of this package
    return f"`{named(found)}`"


def _short(text: str) -> str:
    if len(text) <= EXAMPLE_CHARS:
        return text
    return f"{text[:EXAMPLE_CHARS]} … ({len(text):,} characters)"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for line in [head, ["---"] * len(head), *rows]:
        cells = [cell.replace("|", "\\|") for cell in line]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)
