"""Every remedy on the embedded world, without replay and with 5 % of the model's own memory, on
three seeds.

    python benchmarks/remedies.py --seeds 1,2,3 --jobs 2 --out /tmp/remedies
    python benchmarks/remedies.py --task desk --jobs 2 --out /tmp/remedies-desk

The embedded model is taught a task in steps of 32 rows at 1e-3, as many in every arm, so none
learns longer than another. The task is to refer patients, the quickstart's, whose words are new to
the model, in 300 steps; or to send headlines to a desk, a new use of words that it knows, in half
of them. Replay is 1,500 questions and answers that the model writes itself, a set for each seed;
EWC without replay has the same rows for its Fisher information alone. Scored are 60 held-out rows
of each of the six old skills and of the new one. What is done is in --out and is not done again.
Intervals are of the mean over seeds: half the range of Student's t at 95 %, from the seeds' own
scores. Seconds are of the CPU, of a process with one thread, with what a remedy does beforehand and
without the test; the average has those of its training, too. What remedies hold in memory is in
results/train.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seeds import apart, interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from replaykit.data.record import Record
    from replaykit.model.chat import Chat
    from replaykit.recipe.evaluate import Test
    from replaykit.recipe.train import Train

RESULTS = Path(__file__).parent / "results"


class Task(NamedTuple):
    """What the model is taught."""

    results: str
    """The file of the table."""
    title: str
    steps: int


TASKS = {
    "referral": Task("remedies.md", "a task in new words", 300),
    "desk": Task("remedies_known_words.md", "a task in words that the model knows", 150),
}
BATCH = 32  # rows of a step
RATE = 1e-3
RATIO = 0.05
MADE = 1500  # rows of the model's own memory
TESTS = 60  # held-out rows of a skill
TARGET_ROWS = 8000

# By name, what train is told.
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "lora": {"method": "lora"},  # its linear layers alone
    "lora, embeddings": {
        "peft": {
            "peft_type": "LORA",
            "r": 16,
            "lora_alpha": 32,
            "target_modules": "all-linear",
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        }
    },
    "stm": {"remedies": {"stm": {"max_perplexity": None, "share": 0.24}}},
    "flow": {"remedies": {"flow": {}}},
    "dft": {"remedies": {"dft": True}},
    "eaft": {"remedies": {"eaft": {}}},
    "l2sp": {"remedies": {"l2sp": {}}},
    "ewc": {"remedies": {"ewc": {}}},
    "ewc, lora": {"method": "lora", "remedies": {"ewc": {}}},
    "distill": {"remedies": {"distill": {}}},
    "project": {"remedies": {"project": {}}},
    "ema": {"remedies": {"ema": {"decay": 0.98}}},
}
AVERAGED = "wise-ft, alpha 0.5"  # of "none", after training
# Without replay, distillation has the target's rows.
WITHOUT = {"distill": {"remedies": {"distill": {"rows": "all"}}}}
NEEDS_REPLAY = ("project",)


def arms() -> list[tuple[str, bool]]:
    """Every remedy without and with replay; the average last, for it needs the model of "none"."""
    found = [
        (name, replay)
        for replay in (False, True)
        for name in REMEDIES
        if replay or name not in NEEDS_REPLAY
    ]
    return [*found, (AVERAGED, False), (AVERAGED, True)]


def label(name: str, replay: bool) -> str:
    plain = name.replace(", ", "-").replace(" ", "-")
    return f"{plain}-replay" if replay else f"{plain}-alone"


# --- one seed's data ------------------------------------------------------------------------------


def prepare(out: Path, seed: int, task: str) -> None:
    """Writes target, tests and the model's own memory, and scores the base."""
    from replaykit import api
    from replaykit.data.jsonl import write_jsonl
    from replaykit.data.record import Record, dialogue
    from replaykit.nano import world

    folder = out / f"seed-{seed}"
    if (folder / "base.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tested = {t.prompt for t in world.draw(task, TESTS, seed=seed, held_out=True)}
    drawn = world.draw(task, TARGET_ROWS, seed=seed)
    target = [
        Record(dialogue(t.prompt, t.answer), "target") for t in drawn if t.prompt not in tested
    ]
    write_jsonl(folder / "target.jsonl", target)
    made = api.generate(
        "nano",
        MADE,
        folder=folder / "generate",
        seed=seed,
        max_question_tokens=96,
        max_answer_tokens=64,
    )
    write_jsonl(folder / "replay.jsonl", made)
    (folder / "base.json").write_text(json.dumps({"scores": scores("nano", seed, task)}))


def scores(model: str, seed: int, task: str) -> dict[str, float]:
    """The part of the held-out rows that is right, by skill."""
    from replaykit.data.record import Record, dialogue
    from replaykit.nano import world
    from replaykit.recipe.evaluate import Test

    tests = {}
    for skill in (*world.OLD_SKILLS, task):
        test = Test(path=skill, score="json" if skill == "json" else "exact", max_tokens=64)
        drawn = world.draw(skill, TESTS, seed=seed, held_out=True)
        tests[skill] = (test, [Record(dialogue(t.prompt, t.answer), "target") for t in drawn])
    return means(model, tests)


def means(model: str, tests: Mapping[str, tuple[Test, Sequence[Record]]]) -> dict[str, float]:
    """The mean score of a model by skill."""
    from replaykit.engines import load_engine
    from replaykit.model.chat import Chat
    from replaykit.steps.evaluate.skills import measure

    found: dict[str, list[float]] = {skill: [] for skill in tests}
    for item in measure(load_engine(model, "transformers"), Chat.load(model), tests, what="eval"):
        assert item.score is not None, "no row of the world is too long"
        found[item.skill].append(item.score)
    return {skill: statistics.fmean(values) for skill, values in found.items()}


# --- one arm --------------------------------------------------------------------------------------


def one(out: Path, seed: int, name: str, replay: bool, task: str) -> None:
    """Trains an arm in this process and writes what came out."""
    import torch

    torch.set_num_threads(1)
    folder = out / f"seed-{seed}"
    work = folder / label(name, replay)
    started = time.process_time()
    facts: dict[str, float] = {}
    if name == AVERAGED:
        from replaykit.steps.merge.average import interpolate
        from replaykit.steps.merge.folders import folder_of

        model = work
        interpolate(folder_of("nano"), folder / label("none", replay) / "model", model, 0.5)
    else:
        model = work / "model"
        facts["loss"] = trained(folder, work, seed, name, replay, TASKS[task].steps)
    seconds = time.process_time() - started
    if name == AVERAGED:
        before = json.loads((folder / f"{label('none', replay)}.json").read_text())
        seconds += before["seconds"]
    found = {"scores": scores(str(model), seed, task), "seconds": seconds, **facts}
    (folder / f"{label(name, replay)}.json").write_text(json.dumps(found))


def trained(folder: Path, work: Path, seed: int, name: str, replay: bool, steps: int) -> float:
    """Trains an arm into the folder ``work``; returns its last loss."""
    from replaykit.data.jsonl import read_jsonl
    from replaykit.data.planned import PlannedRow
    from replaykit.data.record import TARGET
    from replaykit.model.chat import Chat
    from replaykit.recipe.mix import Mix
    from replaykit.recipe.train import Train
    from replaykit.steps.mix.plan import plan
    from replaykit.steps.train.fit import Base, Extras, fit

    chat = Chat.load("nano")
    pools = {
        TARGET: list(read_jsonl(folder / "target.jsonl")),
        "generate": list(read_jsonl(folder / "replay.jsonl")),
    }
    sizes = {
        source: [chat.example(record).loss_tokens for record in rows]
        for source, rows in pools.items()
    }
    own = dict(REMEDIES[name])
    if not replay:
        own |= WITHOUT.get(name, {})
    settings = Train.model_validate(
        {"batch_rows": BATCH, "learning_rate": RATE, "save_every": 10**6, **own}
    )
    planned = plan(
        sizes[TARGET],
        {"generate": sizes["generate"]} if replay else {},
        settings=Mix(ratio=RATIO if replay else 0.0, unit="loss_tokens"),
        train=Train(batch_rows=BATCH, steps=steps),
        seed=seed,
    )
    rows = [
        PlannedRow(step, pools[slot.source][slot.row])
        for step, slots in enumerate(planned)
        for slot in slots
    ]
    work.mkdir(exist_ok=True)
    weights = weights_of([row.record for row in rows], work, settings, chat, seed)
    extras = Extras(weights=weights, old=pools["generate"])
    return fit(rows, Base("nano", chat), settings, seed=seed, folder=work, extras=extras).loss


def weights_of(
    records: Sequence[Record], work: Path, settings: Train, chat: Chat, seed: int
) -> dict[str, np.ndarray] | None:
    """The weights of answer tokens, where the remedy takes them from the base's probabilities."""
    if settings.remedies.stm is None and settings.remedies.flow is None:
        return None
    from replaykit.engines import load_engine
    from replaykit.steps.score.logprobs import Scores, different_examples, model_key, score_examples
    from replaykit.steps.train.remedies.weights import weights

    examples = different_examples(records, chat)
    with Scores(work / "logprobs.jsonl", model_key("nano")) as known:
        logprobs = score_examples(examples, load_engine("nano", "transformers"), known)
    return weights(records, examples, logprobs, settings.remedies, chat, seed)


# --- all of them ----------------------------------------------------------------------------------


def run(out: Path, seeds: list[int], jobs: int, task: str) -> None:
    for seed in seeds:
        prepare(out, seed, task)
    for averaged in (False, True):
        todo = [
            (seed, name, replay)
            for seed in seeds
            for name, replay in arms()
            if (name == AVERAGED) is averaged
            and not (out / f"seed-{seed}" / f"{label(name, replay)}.json").exists()
        ]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda job: begin(out, *job, task), todo))


def begin(out: Path, seed: int, name: str, replay: bool, task: str) -> None:
    words = ["--out", str(out), "--seed", str(seed), "--arm", name, "--task", task]
    if replay:
        words.append("--replay")
    apart(__file__, words)
    found = json.loads((out / f"seed-{seed}" / f"{label(name, replay)}.json").read_text())
    print(
        f"seed {seed} {label(name, replay)}: {found['seconds']:.0f} s, {found['scores']}",
        file=sys.stderr,
    )


def report(out: Path, seeds: list[int], task: str, command: str) -> str:
    from replaykit.runs import machine, versions

    def of(seed: int, name: str) -> dict[str, Any]:
        return dict(json.loads((out / f"seed-{seed}" / f"{name}.json").read_text()))

    def old(found: dict[str, Any]) -> float:
        return statistics.fmean(score for skill, score in found["scores"].items() if skill != task)

    def row(name: str, title: str) -> str:
        found = [of(seed, name) for seed in seeds]
        kept = [old(run) / old(of(seed, "base")) for run, seed in zip(found, seeds, strict=True)]
        worst, skill = min(
            min((score, skill) for skill, score in run["scores"].items() if skill != task)
            for run in found
        )
        learned = [run["scores"][task] for run in found]
        seconds = statistics.fmean(run["seconds"] for run in found)
        return (
            f"| {title} | {interval(kept)} | {skill} {worst:.2f} | {interval(learned)} | "
            f"{seconds:.0f} |"
        )

    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    head = [
        "| | retention | worst skill of any seed | new skill | CPU s |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines = [
        f"# Remedies, {TASKS[task].title}, nano, {len(seeds)} seeds, {date.today()}",
        "",
        f"`{command}` on {machine()}, {packages}",
        "",
    ]
    for replay, title in (
        (False, "Without replay"),
        (True, f"With {100 * RATIO:.0f} % of the model's own memory"),
    ):
        lines += [f"## {title}", "", *head]
        lines += [row(label(name, replay), name) for name, own in arms() if own is replay]
        lines.append("")
    lines.append(
        f"Retention is the mean of the old skills over that of the base. {TASKS[task].steps} steps "
        f"of {BATCH} rows in every arm; {TESTS} items a skill; mean over seeds ± half the 95 % "
        f"interval of Student's t. Settings are in the script."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--task", choices=TASKS, default="referral", help="what is taught")
    parser.add_argument("--jobs", type=int, default=2, help="arms at a time, each with one thread")
    parser.add_argument(
        "--out", type=Path, required=True, help="where the models and scores of each arm stay"
    )
    parser.add_argument("--arm", help="run this arm of one seed here")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replay", action="store_true", help="the arm has replay")
    options = parser.parse_args()
    if options.arm is not None:
        one(options.out, options.seed, options.arm, options.replay, options.task)
        return
    seeds = [int(seed) for seed in options.seeds.split(",")]
    run(options.out, seeds, options.jobs, options.task)
    text = report(
        options.out,
        seeds,
        options.task,
        f"python benchmarks/remedies.py --task {options.task} --seeds {options.seeds} "
        f"--jobs {options.jobs}",
    )
    (RESULTS / TASKS[options.task].results).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
