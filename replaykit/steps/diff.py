"""In what two runs differ: what went in, and what came out.

    diff(Path("runs/a"), Path("runs/b")).settings    ->  ["mix.ratio was 0.05, is 0.1"]

The first run is the one before, the second the one now. Scores of a skill are compared item by item
where both runs measured the same rows in the same way, so that their difference has the interval of
pairs; else both are shown beside one another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaykit.data.files import json_lines
from replaykit.data.record import TARGET, Record
from replaykit.errors import RunError
from replaykit.recipe.evaluate import Test
from replaykit.result import Result
from replaykit.runs import Manifest, differences
from replaykit.steps.evaluate.compare import drop_of, shared_items
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import EvalResult, ModelScores, SkillFacts
from replaykit.steps.evaluate.skills import Item, read_items
from replaykit.steps.inputs import Facts
from replaykit.steps.mix.replay import source_of
from replaykit.steps.mix.result import MixResult
from replaykit.steps.report.numbers import NOTHING, Unit, interval, known, mean, number, unit_of
from replaykit.steps.results import result_of
from replaykit.steps.step import manifests
from replaykit.steps.train.result import TrainResult

CHANGED = " has changed"  # how ``differences`` ends where a file has another content
Value = str | int | float | None


class Figure(Result):
    """A figure of both runs; None where a run has none."""

    name: str
    """Its step and what it is, such as "mix-selected: replay rows"."""
    before: Value
    now: Value


class ScoreChange(Result):
    """A skill of a model in both runs."""

    model: str
    """Its name, in both runs where they differ."""
    skill: str
    unit: Unit
    """score, of which more is better, or nats a token, of which fewer are."""
    before: Interval | None
    now: Interval | None
    change: Interval | None
    """What is now less what was before, the items paired; None where they are not the same."""
    items: int
    """That were paired."""


class DiffResult(Result):
    """In what the second run differs from the first."""

    before: str
    """The folder of the first."""
    now: str
    settings: list[str]
    """Keys of the recipe, as the steps' inputs have them."""
    files: list[str]
    """What was read and has another content."""
    steps: list[str]
    """Steps that only one of them has."""
    versions: list[Figure]
    """Packages, and the machine."""
    scores: list[ScoreChange]
    """Of all skills that either has."""
    figures: list[Figure]
    """Rows, shares, losses and seconds that differ, of the steps that both have."""


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    folder: Path
    manifests: Mapping[str, Manifest]
    results: Mapping[str, Result]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises RunError where nothing is finished in it, or where it cannot be read."""
        found = manifests(folder)
        if not found:
            raise RunError(
                f"{folder}: nothing is finished here; name two folders of runs, such as runs/a"
            )
        results = {name: result_of(manifest, folder / name) for name, manifest in found.items()}
        return cls(folder, found, results)

    @property
    def evaluation(self) -> tuple[Path, Manifest, EvalResult] | None:
        for name, result in self.results.items():
            if isinstance(result, EvalResult):
                return self.folder / name, self.manifests[name], result
        return None


def diff(before: Path, now: Path) -> DiffResult:
    """In what the run in the second folder differs from that in the first. Raises RunError as
    ``Run.read`` does.
    """
    first = Run.read(before)
    second = Run.read(now)
    pairs = list(_pairs([*first.manifests], [*second.manifests]))
    changed = dict.fromkeys(
        change
        for name, other in pairs
        for change in differences(first.manifests[name].inputs, second.manifests[other].inputs)
    )
    files = [change.removesuffix(CHANGED) for change in changed if change.endswith(CHANGED)]
    steps = set(first.manifests) | set(second.manifests)
    figures = (figure for pair in pairs for figure in _figures(pair, first, second))
    return DiffResult(
        before=str(before),
        now=str(now),
        settings=[change for change in changed if not change.endswith(CHANGED)],
        # What a step made is no cause but a consequence.
        files=[name for name in files if name.split("/")[0] not in steps],
        steps=[
            f"{name} is only in {before if name in first.manifests else now}"
            for name in sorted({*first.manifests} ^ {*second.manifests})
        ],
        versions=list(_different("", _versions(first), _versions(second))),
        scores=list(_scores(first, second)),
        figures=list(figures),
    )


def _pairs(before: list[str], now: list[str]) -> Iterator[tuple[str, str]]:
    """The steps to compare. A step that one run alone has, such as ``train``, is compared with the
    arms of it that the other has, such as ``train-replay`` and ``train-no-replay``.
    """
    for name in before:
        if name in now:
            yield name, name
            continue
        kind = name.split("-")[0]
        arms = [other for other in now if other.split("-")[0] == kind and other not in before]
        if kind in (name, *arms):
            yield from ((name, other) for other in arms)


# --- figures --------------------------------------------------------------------------------------


def _versions(run: Run) -> dict[str, Value]:
    """Of each package all versions, and the machines."""
    found: dict[str, set[str]] = {}
    for manifest in run.manifests.values():
        for package, version in manifest.versions.items():
            found.setdefault(package, set()).add(version)
        found.setdefault("machine", set()).add(manifest.machine)
    return {name: ", ".join(sorted(values)) for name, values in found.items()}


def _different(
    prefix: str, before: Mapping[str, Value], now: Mapping[str, Value]
) -> Iterator[Figure]:
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            yield Figure(name=f"{prefix}{name}", before=before.get(name), now=now.get(name))


def _figures(pair: tuple[str, str], first: Run, second: Run) -> Iterator[Figure]:
    name, other = pair
    title = name if name == other else f"{name} → {other}"
    yield from _different(f"{title}: ", _facts(first, name), _facts(second, other))


def _facts(run: Run, name: str) -> dict[str, Value]:
    """What is told of a step's result."""
    found: dict[str, Value] = {}
    result = run.results[name]
    if isinstance(result, MixResult):
        found["target rows"] = result.target_rows
        found |= _replay_rows(run.folder / name, result)
        found |= {f"share of {unit}": value for unit, value in result.share.items()}
        found["tokens, times the target's"] = result.cost
    if isinstance(result, TrainResult):
        found |= {"steps": result.steps, "last loss": result.loss, "tokens": result.tokens}
    funnel = getattr(result, "funnel", None)
    if funnel is not None:
        found |= {"rows made": funnel.made, "rows kept": funnel.kept}
        found |= {f"dropped as {reason}": count for reason, count in funnel.dropped.items()}
    found["seconds"] = run.manifests[name].seconds
    return found


def _replay_rows(folder: Path, result: MixResult) -> dict[str, Value]:
    """The replay rows of a mixture by source; together, where its rows are not there any more."""
    path = folder / "rows.jsonl"
    if not path.exists():
        return {"replay rows": result.replay_rows}
    counts = Counter(
        source_of(Record.from_json(row)) for _, row in json_lines(path) if row["source"] != TARGET
    )
    return {f"replay rows of {source}": count for source, count in sorted(counts.items())}


# --- scores ---------------------------------------------------------------------------------------


def _scores(first: Run, second: Run) -> Iterator[ScoreChange]:
    """All skills of the models that both runs have; a single tuned model is compared with a single
    other one, whatever they are called.
    """
    one = first.evaluation
    other = second.evaluation
    if one is None or other is None:
        return
    skills = {skill.skill: skill for skill in (*other[2].skills, *one[2].skills)}
    for before, now in _matched(one[2].models, other[2].models):
        paired = {skill: _paired(one, other, before, now, skills[skill]) for skill in skills}
        name = before.model if before.model == now.model else f"{before.model} → {now.model}"
        for skill, facts in skills.items():
            change, items = paired[skill]
            yield ScoreChange(
                model=name,
                skill=skill,
                unit=unit_of(facts),
                before=before.scores.get(skill),
                now=now.scores.get(skill),
                change=change,
                items=items,
            )


def _matched(
    before: list[ModelScores], now: list[ModelScores]
) -> Iterator[tuple[ModelScores, ModelScores]]:
    yield before[0], now[0]
    if len(before) == len(now) == 2:
        yield before[1], now[1]
        return
    later = {model.model: model for model in now[1:]}
    for model in before[1:]:
        if model.model in later:
            yield model, later[model.model]


Evaluated = tuple[Path, Manifest, EvalResult]


def _paired(
    one: Evaluated, other: Evaluated, before: ModelScores, now: ModelScores, skill: SkillFacts
) -> tuple[Interval | None, int]:
    """The change of a skill on the same items, and how many there are; None where these are not the
    same, or not there any more.
    """
    tests = [_test(manifest, skill.skill) for _, manifest, _ in (one, other)]
    if tests[0] is None or differences(tests[0], tests[1] or {}):
        return None, 0
    items = {}
    for key, (folder, _, found), model in (("before", one, before), ("now", other, now)):
        path = folder / f"items-{model.model}.jsonl"
        if not path.exists():
            return None, 0
        of_model = read_items(path, [facts.skill for facts in found.skills])[skill.skill]
        items[key] = {skill.skill: of_model}
    if not _same_rows(items["before"][skill.skill], items["now"][skill.skill]):
        return None, 0
    shared = {key: of_model[skill.skill] for key, of_model in shared_items(items).items()}
    count = len(shared["before"].scores)
    if not count:
        return None, 0
    test = Test.model_validate({"path": "", "score": skill.score})
    change = drop_of(test, shared["before"], shared["now"])
    if skill.score != "cross_entropy":  # a drop is positive where there is less
        change = -change
    return change.rounded(), count


def _test(manifest: Manifest, skill: str) -> Facts | None:
    """What identifies the rows of a skill and how they are scored."""
    tested: Mapping[str, Any] = manifest.inputs["eval"]
    found = tested.get("target") if skill == TARGET else tested["old"].get(skill)
    return None if found is None else dict(found)


def _same_rows(before: list[Item], now: list[Item]) -> bool:
    return [item.row for item in before] == [item.row for item in now]


# --- on the terminal ------------------------------------------------------------------------------


def lines(found: DiffResult) -> Iterator[str]:
    """What differs as text, a part after the other; of what does not differ nothing is said."""
    yield f"{found.before} → {found.now}"
    parts = {
        "settings": found.settings,
        "files": [f"{name} has another content" for name in found.files],
        "steps": found.steps,
        "versions": [_figure(figure) for figure in found.versions],
        "scores": list(_table(found.scores)),
        "figures": [_figure(figure) for figure in found.figures],
    }
    for name, said in parts.items():
        if said:
            yield name
            yield from (f"  {line}" for line in said)
    if not any(parts.values()):
        yield "nothing differs"


def _figure(figure: Figure) -> str:
    return f"{figure.name}: {_shown(figure.before)} → {_shown(figure.now)}"


def _shown(value: Value) -> str:
    match value:
        case None:
            return NOTHING
        case float():
            return f"{value:,.4g}"
        case int():
            return f"{value:,}"
    return value


def _table(scores: list[ScoreChange]) -> Iterator[str]:
    """A line a skill: both scores, and the change with its interval."""
    wide = max((len(f"{one.model} {one.skill}") for one in scores), default=0)
    for one in scores:
        unit = one.unit
        line = f"{one.model} {one.skill}".ljust(wide)
        line += f"  {mean(one.before, unit)} → {mean(one.now, unit)}"
        if known(one.change):
            sign = "+" if one.change.mean > 0 else ""
            line += f"  {sign}{number(one.change.mean, unit)} ({interval(one.change, unit)}, "
            line += f"{one.items:,} items)"
        elif one.before is not None and one.now is not None:
            line += "  not the same items"
        yield line
