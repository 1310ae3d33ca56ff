"""What the units of `news_to_medical.py` leave, and the table that is made of them.

Every sentence below the tables is derived from the figures. Two arms are said to differ only where
the difference is larger than both kinds of interval: that of Student's t over the seeds, and in
every seed the paired one over the items (Newcombe's, as eval has it).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from seeds import over_seeds

from replaykit.result import Result
from replaykit.runs import machine, versions
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.evaluate.statistics import paired_drop

OLD = "news"
NEW = "target"
# The first of each against the second.
PAIRS = (
    ("tfidf", "plain"),
    ("random", "plain"),
    ("tfidf", "random"),
    ("ewc", "plain"),
    ("layer-rates", "plain"),
    ("cosine", "plain"),
    ("controller", "tfidf"),
    ("all", "plain"),
    ("all", "tfidf"),
)


class BaseUnit(Result):
    """The old model, and what a bag of words reaches."""

    parameters: int
    steps: int
    rows: int
    """Of all epochs."""
    result: EvalResult
    bag_of_words: dict[str, float]
    """Accuracy by task."""
    majority: float
    """The new task's most frequent label, as a part of its test rows."""
    seconds: float = 0.0


class Scored(Result):
    """What eval finds of the base and of an arm."""

    result: EvalResult
    right: dict[str, list[float]]
    """By task, 1 or 0 for each of its rows, of the arm."""


class ArmUnit(Result):
    """One arm of one seed."""

    cpu_seconds: float
    """Of selecting, mixing and training, without the scores."""
    steps: int
    target: int
    """Rows of the new task in the mixture, of all steps."""
    replay: int
    """Old rows in it; a controller may draw more."""
    different: int
    ratios: list[float]
    """The share of old rows after each test of the controller."""
    head: Scored
    """By the whole head."""
    own: Scored
    """Among the labels of the row's own task."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Measure:
    """A score of the table."""

    title: str
    task: str
    own: bool = False
    """Among the labels of the row's own task."""

    def right(self, unit: ArmUnit) -> list[float]:
        return self._scored(unit).right[self.task]

    def accuracy(self, unit: ArmUnit) -> float:
        return statistics.fmean(self.right(unit))

    def macro_f1(self, unit: ArmUnit) -> float:
        return self._scored(unit).result.models[1].classes[self.task].macro_f1.mean

    def elsewhere(self, unit: ArmUnit) -> float:
        """The part of the rows that are given a label of the other task."""
        found = self._scored(unit).result.models[1].classes[self.task].elsewhere
        return 0.0 if found is None else found.mean

    def drop(self, unit: ArmUnit) -> Interval:
        """How much less is right than of the base."""
        return self._scored(unit).result.models[1].drop[self.task]

    def _scored(self, unit: ArmUnit) -> Scored:
        return unit.own if self.own else unit.head


OLD_HEAD = Measure("old rows", OLD)
OLD_OWN = Measure("old rows, among the topics", OLD, own=True)
NEW_HEAD = Measure("new rows", NEW)
MEASURES = (OLD_HEAD, OLD_OWN, NEW_HEAD)

SOURCE = (
    "The recipe's source, https://www.yuque.com/tulingzhouyu/db22bv/dcbept28bs932bvr, tells of a BERT "
    "and other data, without intervals: news 0.92 before, 0.68 after plain training and 0.85 with all "
    "of it; the new task 0.81 and 0.89."
)
Units = Mapping[str, Mapping[int, ArmUnit]]
"""By arm and seed, those that are done."""


def report(
    out: Path, titles: Mapping[str, str], seeds: Sequence[int], command: str, *, steps: str
) -> str:
    """The tables and sentences of what is done, in Markdown; ``steps`` says how long an arm is."""
    base = BaseUnit.model_validate_json((out / "base.json").read_text())
    units = {
        name: {
            seed: ArmUnit.model_validate_json(place.read_text())
            for seed in seeds
            if (place := unit_file(out, name, seed)).exists()
        }
        for name in titles
    }
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        f"# News to medical, {len(seeds)} seeds, {date.today()}",
        "",
        f"`{command}` on {machine()}, {packages}",
        "",
        *about_base(base),
        "",
        f"{steps} Mean over the seeds ± half the 95 % interval of Student's t; all seeds begin with "
        "the same old model. Old and new accuracy are those of the whole head; among the topics each "
        "old row is held to the labels of its own task. Old rows are those planned, of all steps.",
        "",
        *score_table(base, units, titles),
    ]
    for measure in (OLD_HEAD, OLD_OWN):
        lines += [
            "",
            f"## Lost, of {measure.title}",
            "",
            *drop_table(measure, units, titles, seeds),
        ]
    lines += ["", "## Between the arms", "", *difference_table(units, titles), ""]
    lines += [*sentences(base, units, titles), "", SOURCE]
    return "\n".join(lines) + "\n"


def unit_file(out: Path, name: str, seed: int) -> Path:
    return out / f"{name}-{seed}.json"


# --- tables ---------------------------------------------------------------------------------------


def about_base(base: BaseUnit) -> Iterator[str]:
    scores = base.result.models[0].scores[OLD]
    yield (
        "No pretrained encoder was at hand. The old model is a BERT of "
        f"{base.parameters / 1e6:.1f} million parameters that was random before {base.steps:,} "
        f"steps on the news ({base.rows:,} rows with their repetitions). Of "
        f"held-out news it has {scores.mean:.3f} right ({scores.low:.3f} to {scores.high:.3f}); a "
        f"logistic regression on TF-IDF has {base.bag_of_words[OLD]:.3f}. Of the new task the most "
        f"frequent label is {base.majority:.3f}, and the logistic regression reaches "
        f"{base.bag_of_words[NEW]:.3f}."
    )


def score_table(base: BaseUnit, units: Units, titles: Mapping[str, str]) -> Iterator[str]:
    yield (
        "| | old accuracy | old macro F1 | called yes, no or maybe | among the topics | "
        "new accuracy | new macro F1 | old rows (different) | CPU s |"
    )
    yield "| --- " * 9 + "|"
    accuracy = base.result.models[0].scores[OLD].mean
    f1 = base.result.models[0].classes[OLD].macro_f1.mean
    yield f"| before | {accuracy:.3f} | {f1:.3f} | | {accuracy:.3f} | | | | |"
    for name, of in units.items():
        if not of:
            yield f"| {titles[name]} | not done | | | | | | | |"
            continue
        done = list(of.values())
        cells = [
            plus_minus([OLD_HEAD.accuracy(unit) for unit in done]),
            plus_minus([OLD_HEAD.macro_f1(unit) for unit in done]),
            plus_minus([OLD_HEAD.elsewhere(unit) for unit in done]),
            plus_minus([OLD_OWN.accuracy(unit) for unit in done]),
            plus_minus([NEW_HEAD.accuracy(unit) for unit in done]),
            plus_minus([NEW_HEAD.macro_f1(unit) for unit in done]),
            f"{mean(unit.replay for unit in done):,.0f} "
            f"({mean(unit.different for unit in done):,.0f})",
            f"{mean(unit.cpu_seconds for unit in done):.0f}",
        ]
        yield f"| {titles[name]} | {' | '.join(cells)} |"


def drop_table(
    measure: Measure, units: Units, titles: Mapping[str, str], seeds: Sequence[int]
) -> Iterator[str]:
    """Base minus arm, with the paired interval over the rows in each seed."""
    named = " | ".join(f"seed {seed}" for seed in seeds)
    yield f"| | {named} | over the seeds |"
    yield "| --- " * (len(seeds) + 2) + "|"
    for name, of in units.items():
        if not of:
            continue
        cells = []
        for seed in seeds:
            drop = measure.drop(of[seed]) if seed in of else None
            told = "" if drop is None else f"{drop.mean:.3f} ({drop.low:.3f} to {drop.high:.3f})"
            cells.append(told)
        over = plus_minus([measure.drop(unit).mean for unit in of.values()])
        yield f"| {titles[name]} | {' | '.join(cells)} | {over} |"


def difference_table(units: Units, titles: Mapping[str, str]) -> Iterator[str]:
    named = " | ".join(measure.title for measure in MEASURES)
    yield f"| | {named} |"
    yield "| --- " * (len(MEASURES) + 1) + "|"
    for one, other in PAIRS:
        cells = []
        for measure in MEASURES:
            found = differences(measure, units[one], units[other])
            cells.append(plus_minus(found.values, sign=True) if found.values else "not done")
        yield f"| {titles[one]} against {titles[other]} | {' | '.join(cells)} |"


def mean(values: Iterator[float]) -> float:
    return statistics.fmean(values)


def plus_minus(values: Sequence[float], *, sign: bool = False) -> str:
    found = over_seeds(values)
    told = f"{found.mean:+.3f}" if sign else f"{found.mean:.3f}"
    if not found.known:
        return told
    return f"{told} ± {found.high - found.mean:.3f}"


# --- differences ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Differences:
    """How much more of the rows one arm has right than another, seed by seed."""

    values: list[float]
    by_items: list[Interval]
    """The paired intervals over the rows."""

    @property
    def clear(self) -> bool:
        """Whether it is larger than its intervals: over the seeds, and over the rows in each."""
        if len(self.values) < 2:
            return False
        found = [over_seeds(self.values), *self.by_items]
        return all(each.low > 0 for each in found) or all(each.high < 0 for each in found)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)


def differences(
    measure: Measure, one: Mapping[int, ArmUnit], other: Mapping[int, ArmUnit]
) -> Differences:
    """Of the seeds that both have."""
    values = []
    by_items = []
    for seed in sorted(one.keys() & other.keys()):
        found = paired_drop(measure.right(one[seed]), measure.right(other[seed]))
        values.append(found.mean)
        by_items.append(found)
    return Differences(values, by_items)


# --- sentences ------------------------------------------------------------------------------------


def sentences(base: BaseUnit, units: Units, titles: Mapping[str, str]) -> Iterator[str]:
    """What the figures say; nothing of what is not done."""
    for measure in MEASURES:
        yield from told_differences(measure, units, titles)
    yield from told_skill(base, units, titles)
    yield from told_plain(units)
    yield from told_controller(units, titles)
    yield from told_time(units, titles)


def told_differences(measure: Measure, units: Units, titles: Mapping[str, str]) -> Iterator[str]:
    larger = []
    others = []
    for one, other in PAIRS:
        found = differences(measure, units[one], units[other])
        if len(found.values) < 2:
            continue
        named = f"{titles[one]} against {titles[other]}"
        if found.clear:
            larger.append(f"{named} {found.mean:+.3f}")
        else:
            others.append(named)
    if larger:
        yield f"* Of {measure.title}, larger than its intervals: {'; '.join(larger)}."
    if others:
        yield f"* Of {measure.title}, not to be told apart: {'; '.join(others)}."


def told_skill(base: BaseUnit, units: Units, titles: Mapping[str, str]) -> Iterator[str]:
    above = []
    others = []
    for name, of in units.items():
        if len(of) < 2:
            continue
        found = over_seeds([NEW_HEAD.accuracy(unit) for unit in of.values()])
        (above if found.low > base.majority else others).append(titles[name])
    share = f"the most frequent label's {base.majority:.3f}"
    if above:
        yield f"* The new skill is above {share}, with its interval over the seeds: {join(above)}."
    if others:
        yield f"* It is not above {share}, with its interval, so no skill is shown: {join(others)}."


def told_plain(units: Units) -> Iterator[str]:
    """How much of what plain training loses is known, and said with another task's word."""
    of = units["plain"]
    if not of:
        return
    lost = mean(OLD_HEAD.drop(unit).mean for unit in of.values())
    unknown = mean(OLD_OWN.drop(unit).mean for unit in of.values())
    yield (
        f"* Plain training loses {lost:.3f} of the old accuracy in the whole head, and "
        f"{unknown:.3f} where the answer is one of the topics."
    )


def told_controller(units: Units, titles: Mapping[str, str]) -> Iterator[str]:
    for name, of in units.items():
        moved = [
            f"seed {seed}: {', '.join(f'{ratio:.3f}' for ratio in unit.ratios)}"
            for seed, unit in of.items()
            if unit.ratios
        ]
        if moved:
            yield f"* {titles[name]}: the share after each test of the controller, {'; '.join(moved)}."


def told_time(units: Units, titles: Mapping[str, str]) -> Iterator[str]:
    plain = units["plain"]
    every = units["all"]
    if not plain or not every:
        return
    longer = mean(unit.cpu_seconds for unit in every.values()) / mean(
        unit.cpu_seconds for unit in plain.values()
    )
    yield f"* Selecting, mixing and training with {titles['all']} takes {longer:.2f} times the CPU seconds of plain."


def join(names: Sequence[str]) -> str:
    return "; ".join(names)
