"""A text classifier of news topics learns yes, no and maybe of medical papers: what it forgets, and
which part of `recipes/news-to-medical.yaml` keeps it.

    python benchmarks/news_to_medical.py --out build/news_to_medical      # about 17 minutes
    python benchmarks/news_to_medical.py --out build/news_to_medical --report
    python benchmarks/news_to_medical.py --out /tmp/quick --quick         # a miniature

No pretrained encoder is to be had here, so the old model is made: a small BERT of random weights,
with WordPieces of both tasks' texts, is trained on AG News as `recipes/news.yaml` does it. Beside
its accuracy stands that of a logistic regression on TF-IDF, which is what a bag of words reaches.
Then it learns PubMedQA's decisions from question and conclusion, in one head over both label sets:
plainly (one constant rate, no old rows), with each part of the recipe alone, and with all of them.
Rates, share, strengths and bounds are read from the recipe; steps are fewer, so the controller
tests every third of them. It reads rows of the news that are neither trained on nor scored. Every
arm has as many steps of as many rows; only the controller adds old rows beside them.

Scored are held-out rows of both tasks in the whole head, and once more among the labels of the
row's own task: what is then still right is known, and only said with the other task's word. Each
unit of work leaves one file in --out, so a run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

from news_to_medical_report import NEW, OLD, ArmUnit, BaseUnit, Scored, report, unit_file
from seeds import apart

import replaykit
from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record, dialogue
from replaykit.recipe.train import Train

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "news_to_medical.md"
RECIPE = HERE.parent / "recipes" / "news-to-medical.yaml"
DATA = HERE.parents[1] / "shared" / "data"
TOPICS = ("World", "Sports", "Business", "Sci/Tech")
DECISIONS = ("yes", "no", "maybe")
DROPOUT = 0.3  # of the encoder: it has 6,400 rows to learn from, and no more
BASE = "base"  # the unit that is the old model
BASE_BATCH = 32  # rows of a step
BASE_RATE = 1e-3
NEVER = 10**6  # steps between two checkpoints: a unit is short
Unit = TypeVar("Unit", BaseUnit, ArmUnit)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@dataclass(frozen=True)
class Size:
    """How much is done."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    base_epochs: int
    steps: int
    watch_every: int
    """Steps between two tests of the controller."""
    learned: int
    """Rows of the news that the old model learns."""
    watched: int
    """The rows behind them, which the controller tests."""
    tested: int
    """The last rows of the news, which are scored."""
    medical: int
    """The first rows of the new task, which are learned."""
    medical_tested: int
    """Its last rows, which are scored."""
    positions: int = 320
    """Tokens that the encoder reads; the longest row has fewer."""


FULL = Size(2, 128, 2, 8000, 5, 400, 133, 6400, 200, 1000, 800, 200)
QUICK = Size(1, 32, 2, 400, 2, 6, 2, 96, 12, 24, 32, 24)


@dataclass(frozen=True)
class Arm:
    """One training: which parts of the recipe it has."""

    title: str
    rows: Literal["tfidf", "random"] | None = None
    """How its old rows are selected; None: it has none."""
    ewc: bool = False
    layer_rates: bool = False
    cosine: bool = False
    controller: bool = False


ARMS = {
    "plain": Arm("plain"),
    "tfidf": Arm("10 % old rows by TF-IDF", "tfidf"),
    "random": Arm("10 % old rows at random", "random"),
    "ewc": Arm("EWC 0.3", ewc=True),
    "layer-rates": Arm("layer-wise rates", layer_rates=True),
    "cosine": Arm("cosine with a floor", cosine=True),
    "controller": Arm("10 % by TF-IDF, controller", "tfidf", controller=True),
    "all": Arm("all of it", "tfidf", ewc=True, layer_rates=True, cosine=True, controller=True),
}


# --- the rows -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """The rows of both tasks."""

    learned: list[Record]
    watched: list[Record]
    tested: list[Record]
    medical: list[Record]
    medical_tested: list[Record]

    @property
    def tests(self) -> dict[str, list[Record]]:
        return {OLD: self.tested, NEW: self.medical_tested}


def rows_of(data: Path, size: Size) -> Rows:
    """The first rows are learned, the last are tested, as in the recipes."""
    news = [
        text(f"{row['title']}\n{row['text']}", TOPICS[int(row["label"]) - 1])
        for row in read(data / "ag_news_test.jsonl.gz")
    ]
    medical = [
        text(f"{row['question']}\n{row['long_answer']}", row["final_decision"])
        for row in read(data / "pubmedqa.jsonl.gz")
    ]
    return Rows(
        learned=news[: size.learned],
        watched=news[size.learned : size.learned + size.watched],
        tested=news[-size.tested :],
        medical=medical[: size.medical],
        medical_tested=medical[-size.medical_tested :],
    )


def read(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def text(words: str, label: str) -> Record:
    return Record(dialogue(words, label), "target")


# --- the old model --------------------------------------------------------------------------------


def make_encoder(folder: Path, texts: Sequence[str], size: Size) -> None:
    """Writes a bare BERT of random weights, with a tokenizer of these texts, where there is
    none.
    """
    import torch
    from transformers import BertConfig, BertModel

    # Its training goes on only with the very same tokenizer.
    if (folder / "tokenizer.json").exists():
        return
    tokenizer = wordpieces(texts, size)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        max_position_embeddings=size.positions,
        hidden_dropout_prob=DROPOUT,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def wordpieces(texts: Sequence[str], size: Size) -> Any:
    """A tokenizer as BERT's, of lower-case WordPieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import WordPieceTrainer
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(vocab_size=size.vocabulary, special_tokens=list(SPECIAL))
    made.train_from_iterator(texts, trainer)
    marks = [(mark, made.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=marks
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=size.positions,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def make_base(out: Path, rows: Rows, size: Size) -> BaseUnit:
    """Trains the old model, and says what it and the bag of words reach."""
    texts = [record.prompt for record in (*rows.learned, *rows.medical)]
    make_encoder(out / "encoder", texts, size)
    task: dict[str, Any] = {
        "task": "classification",
        "classification": {"labels": list(TOPICS)},
        "model": str(out / "encoder"),
    }
    mixture = replaykit.mix(
        rows.learned,
        held_out={OLD: rows.tested},
        ratio=0,
        epochs=size.base_epochs,
        batch_rows=BASE_BATCH,
        max_tokens=size.positions,
        **task,
    )
    trained = replaykit.train(
        mixture,
        folder=out / "base",
        learning_rate=BASE_RATE,
        warmup=0.1,
        weight_decay=0.01,
        save_every=NEVER,
        **task,
    )
    bags = {
        OLD: bag_of_words(rows.learned, rows.tested),
        NEW: bag_of_words(rows.medical, rows.medical_tested),
    }
    return BaseUnit(
        parameters=parameters_of(Path(trained.model)),
        steps=trained.steps,
        rows=mixture.result.target_rows,
        result=replaykit.evaluate(
            {"base": trained.model}, {OLD: rows.tested}, task="classification"
        ),
        bag_of_words=bags,
        majority=majority(rows.medical, rows.medical_tested),
    )


def parameters_of(model: Path) -> int:
    from safetensors.numpy import load_file

    return sum(values.size for values in load_file(model / "model.safetensors").values())


def bag_of_words(learned: Sequence[Record], tested: Sequence[Record]) -> float:
    """The accuracy of a logistic regression on TF-IDF of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    model.fit([row.prompt for row in learned], [row.answer for row in learned])
    return float(model.score([row.prompt for row in tested], [row.answer for row in tested]))


def majority(learned: Sequence[Record], tested: Sequence[Record]) -> float:
    """The part of the tested rows that has the label most frequent among the learned ones."""
    labels = [row.answer for row in learned]
    most = max(set(labels), key=lambda label: (labels.count(label), label))
    return sum(row.answer == most for row in tested) / len(tested)


# --- an arm ---------------------------------------------------------------------------------------


def settings_of(arm: Arm, size: Size, old: Path) -> dict[str, Any]:
    """How an arm is trained. What it has of the recipe is read there; without it the rate is one,
    that of the recipe's top, and constant. ``old`` are rows for EWC where the arm has none.
    """
    recipe = recipe_train()
    assert recipe.layer_rates is not None
    found: dict[str, Any] = {"learning_rate": recipe.layer_rates.top, "schedule": "constant"}
    if arm.layer_rates:
        found["learning_rate"] = None
        found["layer_rates"] = recipe.layer_rates.model_dump()
    if arm.cosine:
        found["schedule"] = recipe.schedule
        found["min_rate"] = recipe.min_rate
    if arm.ewc:
        assert recipe.remedies.ewc is not None
        ewc = recipe.remedies.ewc.model_dump()
        if arm.rows is None:
            ewc["old"] = {"path": str(old)}
        found["remedies"] = {"ewc": ewc}
    if arm.controller:
        assert recipe.controller is not None
        found["controller"] = recipe.controller.model_dump() | {"every": size.watch_every}
    return found


def recipe_train() -> Train:
    return replaykit.load_recipe(RECIPE).train


def train_arm(out: Path, rows: Rows, size: Size, name: str, seed: int) -> ArmUnit:
    """Trains an arm, and scores it."""
    begun = time.process_time()
    task: dict[str, Any] = {
        "task": "classification",
        "classification": {"labels": list(DECISIONS)},
        "model": str(out / "base" / "model"),
    }
    arm = ARMS[name]
    mixture = mixed(rows, size, arm, seed, task)
    old = out / f"old-{seed}.jsonl"
    write_jsonl(old, rows.learned)
    folder = out / "models" / f"{name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    trained = replaykit.train(
        mixture,
        folder=folder,
        tests={OLD: rows.watched} if arm.controller else None,
        seed=seed,
        save_every=NEVER,
        **settings_of(arm, size, old),
        **task,
    )
    seconds = time.process_time() - begun
    model = str(trained.model)
    found = ArmUnit(
        cpu_seconds=seconds,
        steps=trained.steps,
        target=mixture.result.target_rows,
        replay=mixture.result.replay_rows,
        different=mixture.result.different_replay,
        ratios=[event.ratio for event in trained.events or []],
        head=scored(model, rows, folder / "head", task),
        own=scored(model, rows, folder / "own", with_heads_apart(task)),
    )
    shutil.rmtree(folder)
    return found


def mixed(rows: Rows, size: Size, arm: Arm, seed: int, task: Mapping[str, Any]) -> replaykit.Mixed:
    """The rows of an arm's training."""
    recipe = replaykit.load_recipe(RECIPE)
    replay: dict[str, list[Record]] = {}
    if arm.rows is not None:
        chosen = replaykit.select(
            rows.learned,
            rows.medical,
            n=len(rows.learned) // 10,  # a tenth of the old rows, as the recipe has it
            method=arm.rows,
            held_out={OLD: rows.tested},
            seed=seed,
        )
        replay = {"select": chosen.records}
    return replaykit.mix(
        rows.medical,
        replay,
        held_out=rows.tests,
        seed=seed,
        ratio=recipe.mix.ratio if replay else 0.0,
        unit=recipe.mix.unit,
        steps=size.steps,
        batch_rows=recipe.train.batch_rows,
        max_tokens=size.positions,
        **task,
    )


def with_heads_apart(task: Mapping[str, Any]) -> dict[str, Any]:
    """The task with each row's answer held to the labels of its own task."""
    return {**task, "classification": {**task["classification"], "heads": "apart"}}


def scored(model: str, rows: Rows, folder: Path, task: Mapping[str, Any]) -> Scored:
    """What eval finds of base and arm, and which rows the arm has right."""
    found = replaykit.evaluate(
        {"base": task["model"], "tuned": model},
        rows.tests,
        folder=folder,
        task=task["task"],
        classification=task["classification"],
    )
    right: dict[str, list[float]] = {OLD: [], NEW: []}
    for line in (folder / "items" / "items-tuned.jsonl").read_text().splitlines():
        item = json.loads(line)
        right[item["skill"]].append(item["score"])
    return Scored(result=found, right=right)


# --- all of them ----------------------------------------------------------------------------------


def unit(place: Path, work: Callable[[], Unit]) -> None:
    """Does a unit of work that is not done, and writes what it leaves."""
    if place.exists():
        return
    begun = time.perf_counter()
    found = work()
    seconds = round(time.perf_counter() - begun, 1)
    found = found.model_copy(update={"seconds": seconds})
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_suffix(".tmp")
    temporary.write_text(found.model_dump_json())
    temporary.replace(place)
    print(f"{place.stem}: {seconds} s", file=sys.stderr, flush=True)


def here(out: Path, data: Path, size: Size, name: str, seed: int) -> None:
    """Does the unit of this name in this process."""
    rows = rows_of(data, size)
    if name == BASE:
        unit(out / f"{BASE}.json", partial(make_base, out, rows, size))
    else:
        unit(unit_file(out, name, seed), partial(train_arm, out, rows, size, name, seed))


def run(out: Path, data: Path, seeds: Sequence[int], jobs: int) -> None:
    """Does all units that are not done, each in a process with one thread."""

    def begin(name: str, seed: int, threads: int = 1) -> None:
        words = ["--out", str(out), "--data", str(data), "--unit", name, "--seed", str(seed)]
        apart(__file__, words, threads=threads)
        print(name, seed, file=sys.stderr, flush=True)

    if not (out / f"{BASE}.json").exists():
        begin(BASE, 1, threads=jobs)
    # Seed by seed, so that a run that is stopped has whole seeds.
    todo = [
        (name, seed) for seed in seeds for name in ARMS if not unit_file(out, name, seed).exists()
    ]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda job: begin(*job), todo))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="units at a time")
    parser.add_argument(
        "--out", type=Path, default=Path("build/news_to_medical"), help="where units are kept"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the data sets")
    parser.add_argument("--report", action="store_true", help="only write the table")
    parser.add_argument(
        "--quick", action="store_true", help="a miniature; its table stays in --out"
    )
    parser.add_argument("--unit", choices=[BASE, *ARMS], help="do this unit of one seed here")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    if options.unit is not None:
        here(options.out, options.data, size, options.unit, options.seed)
        return
    if options.quick:
        here(options.out, options.data, size, BASE, 1)
        for seed, name in product(options.seeds, ARMS):
            here(options.out, options.data, size, name, seed)
    elif not options.report:
        run(options.out, options.data, options.seeds, options.jobs)
    if not (options.out / f"{BASE}.json").exists():
        raise SystemExit(f"{options.out}: no unit is done; run it without --report first")
    seeds = " ".join(map(str, options.seeds))
    command = f"python benchmarks/news_to_medical.py --seeds {seeds} --jobs {options.jobs}"
    titles = {name: arm.title for name, arm in ARMS.items()}
    written = report(options.out, titles, options.seeds, command, steps=about(size))
    place = options.out / "news_to_medical.md" if options.quick else RESULTS
    place.write_text(written, encoding="utf-8")
    print(written)


def about(size: Size) -> str:
    """How long an arm is, in a sentence."""
    recipe = recipe_train()
    return (
        f"{size.steps} steps of {recipe.batch_rows} rows in every arm, of {size.medical} rows of "
        f"PubMedQA; the controller tests {size.watched} other rows of the news every "
        f"{size.watch_every} steps."
    )


if __name__ == "__main__":
    main()
