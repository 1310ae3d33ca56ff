"""Which unit of the share keeps old skills: rows, tokens or loss tokens, at 1, 5 and 10 %, beside
short and long target answers, on the embedded world and three seeds.

    python benchmarks/share_units.py --seeds 1,2,3 --jobs 2 --out /tmp/share-units

The embedded model is taught to refer patients, with the clinic's name alone as a short answer, or
with the whole referral and what to bring as a long one. Every arm has as many steps of 32 rows, so
none learns longer than another; replay is 1,500 questions and answers that the model writes itself,
a set for each seed. Scored are held-out rows of each of the six old skills and of the new one. A
share that comes to no replay row is refused, and its arm says so. What is done is in --out and is
not done again, so a run that was stopped goes on with the same command. Intervals are of the mean
over seeds: half the range of Student's t at 95 %, from the seeds' own scores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

from remedies import means
from seeds import apart, interval

Unit = Literal["rows", "tokens", "loss_tokens"]
Length = Literal["short", "long"]
RESULTS = Path(__file__).parent / "results" / "share_units.md"
RATIOS = (0.01, 0.05, 0.1)
BATCH = 32  # rows of a step
RATE = 1e-3
MADE = 1500  # rows of the model's own memory
TARGET_ROWS = 8000
NEW = "referral"
BRING = (
    "Please bring this letter, a list of all medicines, earlier results and someone who can drive "
    "you home. Eat and drink as usual on that day. Call the clinic at once if the pain is worse, "
    "if there is a fever, or if the visit has to be moved to another day."
)


@dataclass(frozen=True)
class Arm:
    """One training: how long target answers are, and the replay; a unit of None has none."""

    length: Length
    unit: Unit | None = None
    ratio: float = 0.0

    @property
    def label(self) -> str:
        if self.unit is None:
            return f"{self.length}-none"
        return f"{self.length}-{self.unit}-{100 * self.ratio:g}"


def arms() -> list[Arm]:
    """For each length the arm without replay, then every unit at every ratio."""
    found = []
    for length in get_args(Length):
        found.append(Arm(length))
        found += [Arm(length, unit, ratio) for unit in get_args(Unit) for ratio in RATIOS]
    return found


@dataclass(frozen=True)
class Size:
    """How much is done; less for a try."""

    steps: int
    tests: int
    """Held-out rows of a skill."""
    made: int = MADE


# --- one seed's data ------------------------------------------------------------------------------


def answer(whole: str, length: Length) -> str:
    """The target's answer at this length, from the world's own referral."""
    if length == "long":
        return f"{whole} {BRING}"
    return whole.removeprefix("Refer the patient to ").partition(".")[0]


def prepare(out: Path, seed: int, size: Size) -> None:
    """Writes the model's own memory, and scores the base."""
    from replaykit import api
    from replaykit.data.jsonl import write_jsonl

    folder = out / f"seed-{seed}"
    if (folder / "base.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    made = api.generate(
        "nano",
        size.made,
        folder=folder / "generate",
        seed=seed,
        max_question_tokens=96,
        max_answer_tokens=64,
    )
    write_jsonl(folder / "replay.jsonl", made)
    found = {length: scores("nano", seed, length, size) for length in get_args(Length)}
    (folder / "base.json").write_text(json.dumps(found))


def scores(model: str, seed: int, length: Length, size: Size) -> dict[str, float]:
    """The part of the held-out rows that is right, by skill."""
    from replaykit.data.record import Record, dialogue
    from replaykit.nano import world
    from replaykit.recipe.evaluate import Test

    tests = {}
    for skill in (*world.OLD_SKILLS, NEW):
        test = Test(path=skill, score="json" if skill == "json" else "exact", max_tokens=256)
        tasks = world.draw(skill, size.tests, seed=seed, held_out=True)
        rows = []
        for task in tasks:
            right = answer(task.answer, length) if skill == NEW else task.answer
            rows.append(Record(dialogue(task.prompt, right), "target"))
        tests[skill] = (test, rows)
    return means(model, tests)


# --- one arm --------------------------------------------------------------------------------------


def result_of(out: Path, seed: int, arm: Arm) -> Path:
    """Where what came out of an arm stands."""
    return out / f"seed-{seed}" / f"{arm.label}.json"


def one(out: Path, seed: int, arm: Arm, size: Size) -> None:
    """Trains an arm in this process and writes what came out."""
    import torch

    from replaykit.errors import DataError

    torch.set_num_threads(1)
    folder = out / f"seed-{seed}"
    work = folder / arm.label
    found: dict[str, Any]
    try:
        found = trained(folder, work, seed, arm, size)
    except DataError as error:
        # The share cannot be had: that is a result too.
        found = {"refused": str(error)}
    else:
        found["scores"] = scores(str(work / "train" / "model"), seed, arm.length, size)
    result_of(out, seed, arm).write_text(json.dumps(found))


def trained(folder: Path, work: Path, seed: int, arm: Arm, size: Size) -> dict[str, Any]:
    """Trains an arm into the folder ``work``; returns what of its mixture is told."""
    from replaykit import api
    from replaykit.data.jsonl import read_jsonl
    from replaykit.data.record import Record, dialogue
    from replaykit.nano import world

    target = [
        Record(dialogue(task.prompt, answer(task.answer, arm.length)), "target")
        for task in world.draw(NEW, TARGET_ROWS, seed=seed)
    ]
    mixture = api.mix(
        target,
        {"generate": list(read_jsonl(folder / "replay.jsonl"))},
        model="nano",
        seed=seed,
        ratio=arm.ratio,
        unit=arm.unit or "rows",
        steps=size.steps,
        batch_rows=BATCH,
        near_duplicate=None,
    )
    work.mkdir(exist_ok=True)
    api.train(
        mixture,
        model="nano",
        folder=work / "train",
        seed=seed,
        learning_rate=RATE,
        save_every=10**6,
    )
    return {
        "replay_rows": mixture.result.replay_rows,
        "different": mixture.result.different_replay,
        "share": mixture.result.share,
    }


# --- all of them ----------------------------------------------------------------------------------


def run(out: Path, seeds: list[int], jobs: int, size: Size) -> None:
    for seed in seeds:
        prepare(out, seed, size)
    todo = [
        (seed, arm) for seed in seeds for arm in arms() if not result_of(out, seed, arm).exists()
    ]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda job: begin(out, job[0], job[1], size), todo))


def begin(out: Path, seed: int, arm: Arm, size: Size) -> None:
    """Does an arm in a process of its own."""
    words = ["--out", str(out), "--seed", str(seed), "--arm", arm.label]
    words += ["--steps", str(size.steps), "--tests", str(size.tests), "--made", str(size.made)]
    apart(__file__, words)
    print(f"seed {seed} {arm.label}", file=sys.stderr)


def report(out: Path, seeds: list[int], size: Size, command: str) -> str:
    from replaykit.runs import machine, versions

    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        f"# Units of the share, nano, {len(seeds)} seeds, {date.today()}",
        "",
        f"`{command}` on {machine()}, {packages}",
        "",
    ]
    for length in get_args(Length):
        lines += [
            f"## {length.capitalize()} target answers",
            "",
            "| unit | ratio | replay rows | of rows | of loss tokens | retention | worst skill of "
            "any seed | new skill |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *(row(out, seeds, arm) for arm in arms() if arm.length == length),
            "",
        ]
    lines.append(
        f"Retention is the mean of the old skills over that of the base. {size.steps} steps of "
        f"{BATCH} rows in every arm; {size.tests} items a skill; replay rows of all steps, and how "
        f"many of them are different; mean over seeds ± half the 95 % interval of Student's t."
    )
    return "\n".join(lines) + "\n"


def row(out: Path, seeds: list[int], arm: Arm) -> str:
    """An arm's line of the table."""
    unit = (arm.unit or "none").replace("_", " ")
    done = [seed for seed in seeds if result_of(out, seed, arm).exists()]
    if not done:
        return f"| {unit} | {arm.ratio:g} | not done | | | | | |"
    found = [json.loads(result_of(out, seed, arm).read_text()) for seed in done]
    if any("refused" in each for each in found):
        return f"| {unit} | {arm.ratio:g} | refused: it comes to no row | | | | | |"
    kept = []
    for seed, each in zip(done, found, strict=True):
        base = json.loads((out / f"seed-{seed}" / "base.json").read_text())[arm.length]
        kept.append(old(each["scores"]) / old(base))
    worst, skill = min(
        (score, skill) for each in found for skill, score in each["scores"].items() if skill != NEW
    )
    learned = [each["scores"][NEW] for each in found]
    rows = statistics.fmean(each["replay_rows"] for each in found)
    different = statistics.fmean(each["different"] for each in found)
    shares = [
        statistics.fmean(each["share"][of] for each in found) for of in ("rows", "loss_tokens")
    ]
    return (
        f"| {unit} | {arm.ratio:g} | {rows:,.0f} ({different:,.0f}) | {100 * shares[0]:.1f} % | "
        f"{100 * shares[1]:.1f} % | {interval(kept)} | {skill} {worst:.2f} | {interval(learned)} |"
    )


def old(by_skill: dict[str, float]) -> float:
    """The mean of the old skills."""
    return statistics.fmean(score for skill, score in by_skill.items() if skill != NEW)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--jobs", type=int, default=2, help="arms at a time, each with one thread")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tests", type=int, default=60, help="held-out rows of a skill")
    parser.add_argument("--made", type=int, default=MADE, help="rows of the model's own memory")
    parser.add_argument(
        "--out", type=Path, required=True, help="where the models and scores of each arm stay"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table is written")
    parser.add_argument(
        "--report", action="store_true", help="only write the table of what is done"
    )
    parser.add_argument("--arm", help="run this arm of one seed here")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    size = Size(options.steps, options.tests, options.made)
    if options.arm is not None:
        by_label = {arm.label: arm for arm in arms()}
        one(options.out, options.seed, by_label[options.arm], size)
        return
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if not options.report:
        run(options.out, seeds, options.jobs, size)
    command = f"python benchmarks/share_units.py --seeds {options.seeds} --jobs {options.jobs}"
    text = report(options.out, seeds, size, command)
    options.results.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
