"""The table of the proof: what each arm keeps and learns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from proof_data import OLD
from proof_units import ARMS, ArmUnit, BaseUnit, Work, unit_of

from replaykit.runs import read_manifest, versions
from replaykit.steps.evaluate.interval import Interval, average
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.evaluate.statistics import (
    paired_drop,
    per_token,
    per_token_rise,
    proportion,
    retention,
)


def read_items(folder: Path) -> dict[str, list[Item]]:
    """The scored items by test; those that were too long for the model are left out, under every
    model the same ones.
    """
    found: dict[str, list[Item]] = {}
    with (folder / "items.jsonl").open(encoding="utf-8") as stream:
        for line in stream:
            item = Item(**json.loads(line))
            if item.score is not None:
                found.setdefault(item.skill, []).append(item)
    return found


def scores_by_arm(
    work: Work, arms: Sequence[str], seeds: Sequence[int]
) -> dict[str, dict[str, np.ndarray]]:
    """Of the base and of every arm that has a finished seed: test -> scores [seeds, items]."""
    folders = {"base": [work.out / "base-scores"]}
    folders |= {name: [work.out / f"{name}-seed-{seed}" for seed in seeds] for name in arms}
    found = {}
    for name, places in folders.items():
        runs = [read_items(place) for place in places if read_manifest(place)]
        if runs:
            found[name] = {
                test: np.array([[item.score for item in run[test]] for run in runs])
                for test in runs[0]
            }
    return found


def percent(part: Interval | None) -> str:
    if part is None:
        return "–"
    return f"{100 * part.mean:.1f} [{100 * part.low:.1f}, {100 * part.high:.1f}]"


def nats(part: Interval) -> str:
    return f"{part.mean:.3f} [{part.low:.3f}, {part.high:.3f}]"


def row(
    name: str,
    now: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray],
    tokens: Mapping[str, list[int]],
    said: Means | None,
) -> str:
    """A line of the table. An item's score is its mean over the seeds; intervals are over the
    items.
    """
    mean = {test: scores.mean(axis=0).tolist() for test, scores in now.items()}
    first = {test: scores[0].tolist() for test, scores in base.items()}

    def kept(skills: Sequence[str]) -> Interval | None:
        lost = average([paired_drop(first[skill], mean[skill]) for skill in skills])
        return retention(float(np.mean([np.mean(first[skill]) for skill in skills])), lost)

    seeds = ", ".join(
        f"{100 * np.mean([now[skill][k].mean() for skill in OLD]):.1f}"
        for k in range(len(now["card"]))
    )
    learned = proportion(mean["new answers"])
    rise = per_token_rise(first["general"], mean["general"], tokens["general"])
    cells = [
        name,
        "–" if said is None else f"{100 * said.share:.1f}",
        "–" if said is None else f"{said.cost:.2f}",
        seeds,
        percent(kept(OLD)),
        percent(kept(["card"])),
        nats(rise),
        nats(per_token(mean["new loss"], tokens["new loss"])),
        percent(learned),
        "–" if said is None else f"{said.seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def report(work: Work, arms: Sequence[str], seeds: Sequence[int]) -> str:
    """The table of what is finished."""
    found = scores_by_arm(work, arms, seeds)
    made = unit_of(work.out / "base", BaseUnit)
    if made is None or "base" not in found:
        raise SystemExit(f"{work.out}: the base is not finished, so there is nothing to report")
    places = ["base", "base-scores", *(f"{name}-seed-{seed}" for name in arms for seed in seeds)]
    units = [unit for place in places if (unit := read_manifest(work.out / place))]
    devices = ", ".join(dict.fromkeys(unit.result["device"] for unit in units))
    days = sorted({unit.finished[:10] for unit in units})
    items = read_items(work.out / "base-scores")
    tokens = {test: [item.tokens or 0 for item in items[test]] for test in ("general", "new loss")}
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    base = ", ".join(f"{skill} {100 * found['base'][skill].mean():.0f}" for skill in OLD)
    lines = [
        f"# What a chat model of {made.parameters / 1e6:.1f} million parameters keeps while it "
        f"learns {work.task}",
        "",
        f"{devices}, {' to '.join(dict.fromkeys((days[0], days[-1])))}, {packages}",
        "",
        f"The base: {made.rows:,} rows, {made.steps:,} steps, {made.tokens:,} tokens, "
        f"{made.train_seconds:,.0f} s; right in % of its old skills: {base}.",
        "",
        "| arm | replay, % of loss tokens | compute | old skills right in %, each seed | "
        "retention, % | of cards, % | general loss, rise in nats | new loss, nats | "
        "new answers right, % | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, now in found.items():
        lines.append(row(name, now, found["base"], tokens, means(work, name, seeds)))
    tested = len(items["new answers"])
    return "\n".join([*lines, "", *_notes(work, arms, seeds, found, tested)])


@dataclass(frozen=True)
class Means:
    """Of an arm's finished seeds."""

    share: float
    cost: float
    seconds: float


def means(work: Work, name: str, seeds: Sequence[int]) -> Means | None:
    """None for the base, and for an arm without a finished seed."""
    found = [unit_of(work.out / f"{name}-seed-{seed}", ArmUnit) for seed in seeds]
    done = [unit for unit in found if unit is not None]
    if not done:
        return None
    return Means(
        share=float(np.mean([unit.share["loss_tokens"] for unit in done])),
        cost=float(np.mean([unit.cost * _part_of_epochs(work, name, unit) for unit in done])),
        seconds=float(np.mean([unit.train_seconds for unit in done])),
    )


def _notes(
    work: Work,
    arms: Sequence[str],
    seeds: Sequence[int],
    found: Mapping[str, Mapping[str, np.ndarray]],
    tested: int,
) -> list[str]:
    """What stands under the table."""
    lines = [
        f"{len(work.learn):,} rows of {work.task}, {work.size.target_epochs} epochs; "
        f"{work.size.items} items of each old "
        f"skill, {tested} of the new task; seeds {', '.join(map(str, seeds))}. Brackets are 95 % "
        f"intervals over items, of "
        f"the mean over seeds. Compute is all tokens over those of the target alone.",
        "",
    ]
    repeats = {}
    for name in arms:
        unit = unit_of(work.out / f"{name}-seed-{seeds[0]}", ArmUnit)
        if ARMS[name].replay and unit is not None:
            repeats[name] = max(unit.repeats.get(source, 0.0) for source in ("select", "generate"))
    if repeats:
        often = max(repeats, key=lambda name: repeats[name])
        rows = work.size.replay
        lines += [
            f"A set of replay has {rows:,} rows; each comes {repeats[often]:.1f} times at most "
            f"({often}).",
            "",
        ]
    left = [name for name in arms if name not in found]
    left += [
        f"{name} ({len(now['card'])} of {len(seeds)} seeds)"
        for name, now in found.items()
        if name != "base" and len(now["card"]) < len(seeds)
    ]
    return [*lines, *([f"Not finished: {', '.join(left)}.", ""] if left else [])]


def _part_of_epochs(work: Work, name: str, unit: ArmUnit) -> float:
    """How many times longer than the epochs of the target an arm of a fixed number of steps is; 1
    for all others.
    """
    if not ARMS[name].equal:
        return 1.0
    return unit.steps * work.size.batch_rows / (work.size.target_epochs * len(work.learn))
