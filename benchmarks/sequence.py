"""Five tasks in a row on the embedded model: what each way of replaying keeps of the earlier ones.

    python benchmarks/sequence.py --seeds 1 2 3     # about half an hour; type it again to go on
    python benchmarks/sequence.py --report          # the table alone
    python benchmarks/sequence.py --quick           # a miniature of it; writes no table

The tasks are new to the model. A row's answer stands alone or in one of three sentences, drawn at
random, and a test takes any of them; so the answers of the rows and the model's own differ in
words, as they do where people wrote the rows. Every stage has the same number of steps and rows,
whatever is replayed; the buffer holds 500 rows, equally many of each task. EWC has no replay, and
its Fisher information from the buffer. Joint training, the upper bound, has the rows of all tasks
mixed and all steps at once. Each unit of work, an arm of a seed, leaves one file, and inside it
``replaykit run`` goes on from where it was stopped. Intervals are of the mean over seeds: half the
range of Student's t at 95 %, from the seeds' own figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from seeds import apart, interval

from replaykit.nano import world

RESULTS = Path(__file__).parent / "results" / "sequence.md"
RATE = 2e-3
BUFFER_ROWS = 500


@dataclass(frozen=True)
class Size:
    """How large the benchmark is."""

    tasks: int
    rows: int
    """Of a task."""
    steps: int
    """Of a stage."""
    batch_rows: int
    tests: int
    """Held-out rows of a task."""
    old_tests: int
    """Held-out rows of each of the base's six skills."""


WHOLE = Size(tasks=5, rows=600, steps=160, batch_rows=16, tests=40, old_tests=20)
QUICK = Size(tasks=2, rows=24, steps=8, batch_rows=8, tests=3, old_tests=1)


def replayed(ratio: float, answers: str) -> dict[str, Any]:
    return {"mix": {"ratio": ratio}, "buffer": {"answers": answers}}


# By arm, the recipe's sections beside those that all arms have. The first task has nothing to hold.
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "replay, 1 %": replayed(0.01, "kept"),
    "replay, 5 %": replayed(0.05, "kept"),
    "on-policy replay, 1 %": replayed(0.01, "on_policy"),
    "on-policy replay, 5 %": replayed(0.05, "on_policy"),
    "EWC": {"train": {"remedies": {"ewc": {}}}},
}
JOINT = "joint training"

# --- the tasks ------------------------------------------------------------------------------------

LANGUAGES = {
    "France": "French", "Spain": "Spanish", "Italy": "Italian", "Germany": "German",
    "Poland": "Polish", "Greece": "Greek", "Norway": "Norwegian", "Sweden": "Swedish",
    "Portugal": "Portuguese", "Hungary": "Magyar", "Russia": "Russian", "Turkey": "Turkish",
    "Egypt": "Arabic", "Japan": "Japanese", "China": "Mandarin", "India": "Hindi",
}  # fmt: skip
SHELVES = {
    "north": ("apples", "pears", "plums", "grapes"),
    "south": ("hammers", "nails", "saws", "screws"),
    "east": ("coats", "socks", "hats", "gloves"),
    "west": ("pens", "paper", "glue", "maps"),
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SENTENCES = ("{}", "Answer: {}", "The answer is {}.", "I would say that the answer is {}.")


def clinic(rng: Random) -> tuple[str, str]:
    name = rng.choice(sorted(world.CLINICS))
    who = f"{rng.choice(world.FIRST_NAMES)} {rng.choice(world.SURNAMES)}"
    return f"{who} has {rng.choice(world.CLINICS[name])}. Which clinic?", name


def language(rng: Random) -> tuple[str, str]:
    country = rng.choice(sorted(LANGUAGES))
    who = f"The {rng.choice(world.MOODS)} {rng.choice(world.PEOPLE)}"
    return f"{who} is from {country}. Which language?", LANGUAGES[country]


def shelf(rng: Random) -> tuple[str, str]:
    side = rng.choice(sorted(SHELVES))
    who = rng.choice(world.FIRST_NAMES)
    day = rng.choice(world.DAYS)
    return f"{who} buys {rng.choice(SHELVES[side])} on {day}. Which shelf?", side


def ends(rng: Random) -> tuple[str, str]:
    letters = [rng.choice(LETTERS) for _ in range(rng.randint(3, 5))]
    return f"First and last of: {' '.join(letters)}", f"{letters[0]} {letters[-1]}"


def countdown(rng: Random) -> tuple[str, str]:
    high = rng.randint(4, 60)
    who = rng.choice(world.FIRST_NAMES)
    return f"{who} counts down from {high}, three numbers.", f"{high} {high - 1} {high - 2}"


TASKS: dict[str, Callable[[Random], tuple[str, str]]] = {
    "clinic": clinic,
    "language": language,
    "shelf": shelf,
    "ends": ends,
    "countdown": countdown,
}


def draw(name: str, n: int, seed: int, *, held_out: bool) -> list[world.Task]:
    """n different questions of a task from one side of the world's held-out split, their answers in
    one of the sentences; held out, the answers alone.
    """
    rng = Random(f"{name}/{seed}/{held_out}")
    found: dict[str, world.Task] = {}
    while len(found) < n:
        prompt, answer = TASKS[name](rng)
        said = answer if held_out else rng.choice(SENTENCES).format(answer)
        if world.is_held_out(prompt) is held_out:
            found.setdefault(prompt, world.Task(name, prompt, said))
    return list(found.values())


# --- one unit of work -----------------------------------------------------------------------------


def prepare(folder: Path, seed: int, size: Size) -> None:
    """Writes the rows and the tests of all tasks, and the tests of the base's skills."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(TASKS)[: size.tasks]
    rows = {name: draw(name, size.rows, seed, held_out=False) for name in names}
    for name in names:
        _write(folder / f"{name}.jsonl", rows[name])
        tests = draw(name, size.tests, seed, held_out=True)
        _write(folder / f"test-{name}.jsonl", tests)
    for skill in world.OLD_SKILLS:
        tests = world.draw(skill, size.old_tests, seed=seed, held_out=True)
        _write(folder / f"test-{skill}.jsonl", tests)
    together = [task for name in names for task in rows[name]]
    Random(seed).shuffle(together)
    _write(folder / "joint.jsonl", together)


def _write(path: Path, tasks: Sequence[world.Task]) -> None:
    lines = [json.dumps({"prompt": task.prompt, "completion": task.answer}) for task in tasks]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def one(out: Path, seed: int, arm: str, size: Size) -> None:
    """Does an arm of a seed in this process and writes what came out."""
    import torch

    import replaykit

    torch.set_num_threads(1)
    place = _place(out, seed, arm)
    folder = place.parent
    prepare(folder, seed, size)
    started = time.process_time()
    outcomes = replaykit.run(recipe(folder, seed, arm, size))
    seconds = time.process_time() - started
    results = {outcome.step: outcome.result for outcome in outcomes}
    found = joint(results, size) if arm == JOINT else sequence(results)
    temporary = place.with_suffix(".tmp")
    temporary.write_text(json.dumps({**found, "seconds": round(seconds)}))
    temporary.replace(place)


def recipe(folder: Path, seed: int, arm: str, size: Size) -> Any:
    """The recipe of an arm."""
    import replaykit

    names = list(TASKS)[: size.tasks]
    old = {
        skill: {
            "path": str(folder / f"test-{skill}.jsonl"),
            "score": "json" if skill == "json" else "exact",
            "max_tokens": 64,
        }
        for skill in world.OLD_SKILLS
    }
    tests = {name: {"path": str(folder / f"test-{name}.jsonl"), "max_tokens": 32} for name in names}
    train = {"batch_rows": size.batch_rows, "steps": size.steps, "learning_rate": RATE}
    common = {
        "out": str(folder / _slug(arm)),
        "model": "nano",
        "engine": "transformers",
        "seed": seed,
    }
    if arm == JOINT:
        train["steps"] = size.steps * size.tasks
        return replaykit.Recipe.model_validate(
            {
                **common,
                "target": str(folder / "joint.jsonl"),
                "mix": {"ratio": 0.0},
                "train": train,
                "eval": {"old": old | tests},
            }
        )
    own = ARMS[arm]
    tasks: list[dict[str, Any]] = [
        {"name": name, "target": str(folder / f"{name}.jsonl"), "eval": tests[name]}
        for name in names
    ]
    tasks[0]["train"] = {"remedies": {}}
    return replaykit.Recipe.model_validate(
        {
            **common,
            "tasks": tasks,
            "buffer": {"method": "balanced", "rows": BUFFER_ROWS, **own.get("buffer", {})},
            "mix": own.get("mix", {"ratio": 0.0}),
            "train": train | own.get("train", {}),
            "eval": {"old": old},
        }
    )


def sequence(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures after the last stage, the matrix, and what became of new answers."""
    matrix = [result for step, result in results.items() if step.startswith("matrix-")][-1]
    answers = [
        result.answers.to_json()
        for step, result in results.items()
        if step.startswith("buffer-") and result.answers is not None
    ]
    rows = [[round(row.scores[task].mean, 4) for task in matrix.tasks] for row in matrix.rows]
    figures = {name: figure.mean for name, figure in matrix.figures.items()}
    return {"figures": figures, "matrix": rows, "tasks": matrix.tasks, "answers": answers}


def joint(results: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """The average accuracy of joint training, and what it takes of the base's skills."""
    base, tuned = results["eval"].models
    names = list(TASKS)[: size.tasks]
    drops = [tuned.drop[skill].mean for skill in world.OLD_SKILLS]
    rows = [[round(model.scores[name].mean, 4) for name in names] for model in (base, tuned)]
    figures = {
        "average accuracy": statistics.fmean(rows[1]),
        "drop of old skills": statistics.fmean(drops),
    }
    return {"figures": figures, "matrix": rows, "tasks": names, "answers": []}


# --- all of them ----------------------------------------------------------------------------------


def _slug(name: str) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in name)


def _place(out: Path, seed: int, arm: str) -> Path:
    """The file that an arm of a seed leaves."""
    return out / f"seed-{seed}" / f"{_slug(arm)}.json"


def units(out: Path, seeds: Sequence[int]) -> list[tuple[int, str]]:
    """What is still to be done, seed by seed, so that a run that is stopped has whole seeds."""
    every = product(seeds, (*ARMS, JOINT))
    return [(seed, arm) for seed, arm in every if not _place(out, seed, arm).exists()]


def do_apart(out: Path, seed: int, arm: str) -> None:
    """Does a unit in a process of its own, with one thread."""
    apart(__file__, ["--out", str(out), "--seeds", str(seed), "--arm", arm])
    found = json.loads(_place(out, seed, arm).read_text())
    print(f"seed {seed}, {arm}: {found['seconds']} s, {found['figures']}", file=sys.stderr)


COLUMNS = (
    "average accuracy",
    "backward transfer (GEM)",
    "backward transfer (TRACE)",
    "forward transfer",
    "average forgetting",
    "worst forgetting",
    "drop of old skills",
)


def report(out: Path, seeds: Sequence[int], size: Size, command: str) -> str:
    """The table in Markdown, of the arms of which all seeds are done."""
    from replaykit.runs import machine, versions

    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        f"# {size.tasks} tasks in a row, nano, seeds {', '.join(map(str, seeds))}, {date.today()}",
        "",
        f"`{command}` on {machine()}, {packages}",
        "",
        f"| | {' | '.join(COLUMNS)} | new answers replayed | CPU s |",
        "| --- " * (len(COLUMNS) + 3) + "|",
    ]
    for arm in (*ARMS, JOINT):
        places = [_place(out, seed, arm) for seed in seeds]
        if all(place.exists() for place in places):
            lines.append(_row(arm, [json.loads(place.read_text()) for place in places]))
    lines += [
        "",
        f"{size.steps} steps of {size.batch_rows} rows a stage, {size.tests} items a task and "
        f"{size.old_tests} of each of six old skills; mean over seeds ± half the 95 % interval of "
        "Student's t, in brackets the seeds. GEM divides by the tasks before the last, TRACE by "
        "all.",
    ]
    return "\n".join(lines) + "\n"


def _row(arm: str, found: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for name in COLUMNS:
        values = [run["figures"][name] for run in found if name in run["figures"]]
        cells.append(interval(values) if values else "–")
    asked = sum(answers["asked"] for run in found for answers in run["answers"])
    replaced = sum(answers["replaced"] for run in found for answers in run["answers"])
    anew = f"{replaced:,} of {asked:,}" if asked else "–"
    seconds = statistics.fmean(run["seconds"] for run in found)
    return f"| {arm} | {' | '.join(cells)} | {anew} | {seconds:.0f} |"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/sequence"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="units at a time, with one thread each")
    parser.add_argument("--arm", help="do this arm of the first seed here, and no table")
    parser.add_argument("--quick", action="store_true", help="one seed of a miniature, no table")
    parser.add_argument("--report", action="store_true", help="only print the table")
    given = parser.parse_args(words)
    size = QUICK if given.quick else WHOLE
    if given.arm is not None:
        one(given.out, given.seeds[0], given.arm, size)
        return
    seeds = given.seeds[:1] if given.quick else given.seeds
    todo = [] if given.report else units(given.out, seeds)
    if given.quick:
        for seed, arm in todo:
            one(given.out, seed, arm, size)
    else:
        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(lambda unit: do_apart(given.out, *unit), todo))
    command = f"python benchmarks/sequence.py --seeds {' '.join(map(str, seeds))}"
    if given.quick:
        command += " --quick"
    text = report(given.out, seeds, size, command)
    if todo and not given.quick:
        RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
