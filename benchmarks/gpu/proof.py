"""The proof on a GPU: a chat model of 34 million parameters, made here, learns a new task, and what it knew is counted.

    python benchmarks/gpu/proof.py --minutes 10            # as often as it says that units are left
    python benchmarks/gpu/proof.py --report                # writes benchmarks/results/gpu-proof-gsm8k.md
    python benchmarks/gpu/proof.py --mini                  # everything in miniature on a CPU, with its report

The base is trained from random weights by our own trainer on general instructions (Alpaca, Dolly, LIMA, T0) and on seven
skills that are scored right or wrong: the six of the embedded world, and cards, a convention that stands in no text:

    Write a card: Anna Smith of Paris, born in 1970.    {"who": "Smith, Anna", "where": "PARIS", "born": 1970}

so that whoever no longer follows it has forgotten it. Then it learns GSM8K (or PubMedQA), with each arm's replay and
remedy, over several seeds. The replay is drawn from the base's own training rows, at random or by TF-IDF, or written by
the base itself (Magpie). Every unit of work (the base, its scores, a set of replay rows, an arm with a seed) is a folder of
its own with a manifest: finished ones are skipped, the base's training and the Magpie rows go on from where they stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import transformers

from replaykit import models
from replaykit.chat import Chat, Example
from replaykit.engines import load_engine
from replaykit.errors import Stopped
from replaykit.evaluate.skills import measure
from replaykit.evaluate.statistics import Interval, mean_drop, per_token, per_token_rise, retention
from replaykit.mix.build import mix
from replaykit.nano import world
from replaykit.nano.make import BOS, END_HEADER, EOS, EOT, HEADER, PAD, SPLIT, TEMPLATE
from replaykit.records import Record, dialogue, file_fingerprint, read_records, write_jsonl
from replaykit.runs import open_step, read_json, read_manifest, versions, write_json
from replaykit.settings import Generate, Select, Test
from replaykit.sources.generate import generate
from replaykit.sources.select import select
from replaykit.training_settings import Mix, Train

RESULTS = Path(__file__).parents[1] / "results"
OUT = Path(os.environ.get("OUT", "build/gpu")) / "proof"
DATA = Path(__file__).parents[3] / "shared" / "data"
GENERAL = ("alpaca_train", "dolly_train", "lima_train", "t0_pool")
QUESTION_WEIGHT = (
    1 / 3
)  # of a question's token over an answer's: the base has to write questions, too
POSITIONS = 1024
STOP_EARLY = 10  # seconds before the time is up, for a checkpoint


@dataclass(frozen=True)
class Size:
    """Everything that is larger on a GPU than in miniature. Without a ``hidden`` the base begins as the embedded model."""

    hidden: int | None
    layers: int
    intermediate: int
    vocabulary: int
    general: int  # rows of each general data set at most
    skill: int  # rows of each taught skill
    epochs: int  # of the base's training
    target: int  # rows of the new task
    target_epochs: int
    replay: int  # rows of each set
    items: int  # of each old skill's test; twice as many of the new task
    answer_tokens: int  # of an answer to the new task at most
    batch_rows: int
    max_tokens: int  # of a row
    base_rate: float
    full_rate: float
    lora_rate: float
    fisher_rows: int


GPU = Size(
    512, 8, 1408, 16_384, general=30_000, skill=8_000, epochs=4, target=3_000, target_epochs=2, replay=2_000, items=100,
    answer_tokens=256, batch_rows=64, max_tokens=512, base_rate=1e-3, full_rate=5e-4, lora_rate=2e-3, fisher_rows=256,
)  # fmt: skip
MINI = Size(
    None, 0, 0, 0, general=8, skill=8, epochs=1, target=16, target_epochs=1, replay=8, items=4,
    answer_tokens=24, batch_rows=8, max_tokens=256, base_rate=1e-5, full_rate=5e-4, lora_rate=1e-3, fisher_rows=4,
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A way to learn the new task: the replay and its share, settings of train, and whether its compute is that of 10 %."""

    replay: str | None = None
    ratio: float = 0.0
    train: Mapping[str, Any] = field(default_factory=dict)
    equal: bool = False


OLD = (*world.OLD_SKILLS, "card")
REPLAY = ("random", "tfidf", "magpie")
ARMS = {
    "none": Arm(),
    "none-equal-compute": Arm(equal=True),
    **{f"{name}-{percent}": Arm(name, percent / 100) for name in REPLAY for percent in (1, 5, 10)},
    "stm": Arm(train={"remedies": {"stm": {}}}),
    "magpie-5-distill": Arm("magpie", 0.05, {"remedies": {"distill": {}}}),
    "magpie-5-ewc": Arm("magpie", 0.05, {"remedies": {"ewc": {}}}),
    "lora": Arm(train={"method": "lora"}),
    "magpie-5-lora": Arm("magpie", 0.05, {"method": "lora"}),
}
MINI_ARMS, MINI_SEEDS, SEEDS = ("none", "magpie-10", "stm"), (1,), (1, 2, 3)


# --- the data ---------------------------------------------------------------------------------------------------------


def cards(n: int, *, seed: int, held_out: bool = False) -> list[world.Task]:
    """n different tasks of the taught convention, from one side of the world's split by prompts."""
    rng, tasks = Random(f"card/{seed}/{held_out}"), dict[str, world.Task]()
    while len(tasks) < n:
        first, last = rng.choice(world.FIRST_NAMES), rng.choice(world.SURNAMES)
        city, born = rng.choice(sorted(world.CAPITALS.values())), rng.randint(1935, 2006)
        ask = rng.choice(["Write a card:", "Make a card for the file.", "Card, please:"])
        text = rng.choice([
            f"{first} {last} of {city}, born in {born}.",
            f"{first} {last} was born in {born} and lives in {city}.",
            f"Born in {born}, {first} {last} comes from {city}.",
        ])  # fmt: skip
        prompt = f"{ask} {text}"
        answer = json.dumps({"who": f"{last}, {first}", "where": city.upper(), "born": born})
        if world.is_held_out(prompt) is held_out:
            tasks.setdefault(prompt, world.Task("card", prompt, answer))
    return list(tasks.values())


def as_records(tasks: Sequence[world.Task]) -> list[Record]:
    return [
        Record(dialogue(task.prompt, task.answer), "target", {"skill": task.skill})
        for task in tasks
    ]


def taught(size: Size) -> list[Record]:
    """The rows of the seven skills that the base is trained on, ``size.skill`` of each by the mean."""
    stream = islice(world.stream(seed=1), len(world.OLD_SKILLS) * size.skill)
    return as_records([*stream, *cards(size.skill, seed=1)])


def general(data: Path, size: Size) -> list[Record]:
    """The general rows in a seeded order, ``size.general`` of each data set at most."""
    chosen = []
    for name in GENERAL:
        rows = [Record(record.messages, "target", {"skill": name})
                for record in read_records(data / f"{name}.jsonl.gz", "target")]  # fmt: skip
        chosen += Random(name).sample(rows, min(size.general, len(rows)))
    Random(1).shuffle(chosen)
    return chosen


def new_task(task: str, data: Path, size: Size) -> tuple[list[Record], list[Record], Test]:
    """Rows to learn, rows to test, and how an answer is scored: by the number, or the decision, after ``####``."""
    if task == "gsm8k":
        parts = (
            read_records(data / f"gsm8k_{part}.jsonl.gz", "target") for part in ("train", "test")
        )
        learn, tests = (
            list(islice(part, n))
            for part, n in zip(parts, (size.target, size.items * 2), strict=True)
        )
        return learn, tests, Test(path=task, score="numeric", max_tokens=size.answer_tokens)
    rows = [
        Record(dialogue("\n".join([*row.meta["contexts"], row.prompt]),
                        f"{row.answer}\n#### {row.meta['final_decision']}"), "target")
        for row in read_records(data / "pubmedqa.jsonl.gz", "target", prompt="question", answer="long_answer")
    ]  # fmt: skip
    Random(1).shuffle(rows)
    held = min(size.items * 2, len(rows) // 5)
    return (
        rows[held : held + size.target],
        rows[:held],
        Test(path=task, score="exact", max_tokens=size.answer_tokens),
    )


# --- the base ---------------------------------------------------------------------------------------------------------


class WholeChat(Chat):
    """A Chat whose examples carry loss on the questions too, so that a base can write questions of its own."""

    def example(self, record: Record) -> Example:
        made = super().example(record)
        return Example(made.tokens, (False, *[True] * (len(made.tokens) - 1)))

    def weight(self, record: Record) -> np.ndarray:
        """Of the tokens that carry loss: 1 in answers, QUESTION_WEIGHT elsewhere."""
        return np.where(super().example(record).loss[1:], 1.0, QUESTION_WEIGHT).astype(np.float32)


def make_tokenizer(texts: Iterator[str], vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of the texts with single digits and a template of Llama-3's shape, as the embedded model has."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE

    made = Tokenizer(BPE())
    words = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BOS, EOS, EOT, PAD, HEADER, END_HEADER], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=BOS, eos_token=EOT, pad_token=PAD, chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False, model_max_length=POSITIONS,
    )  # fmt: skip


def random_llama(size: Size, tokenizer: Any) -> Any:
    """An untrained Llama with heads of 64 dimensions."""
    assert size.hidden is not None
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size.hidden, intermediate_size=size.intermediate,
        num_hidden_layers=size.layers, num_attention_heads=size.hidden // 64, num_key_value_heads=size.hidden // 64,
        max_position_embeddings=POSITIONS, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip


def make_start(folder: Path, size: Size, records: Sequence[Record]) -> None:
    """The model before any training; in miniature that is the embedded one, which knows the world's skills."""
    if folder.exists():
        return
    unfinished = folder.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    if size.hidden is None:
        shutil.copytree(models.ALIASES["nano"], unfinished)
    else:
        texts = (message["content"] for record in records for message in record.messages)
        tokenizer = make_tokenizer(texts, size.vocabulary)
        random_llama(size, tokenizer).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def make_base(work: Work) -> dict[str, Any]:
    """Trains the base; its rows stay in old.jsonl, general rows to test it on in held_out.jsonl."""
    size, folder = work.size, work.out / "base"
    files = [work.data / f"{name}.jsonl.gz" for name in GENERAL]
    inputs = {"size": asdict(size), "data": [file_fingerprint(file) for file in files]}
    with open_step("base", folder, inputs) as step:
        if step.result is not None:
            return step.result
        rows, skills = general(work.data, size), taught(size)
        make_start(folder / "start", size, [*rows, *skills, *work.learn])
        chat = WholeChat.load(str(folder / "start"))
        rows = [record for record in rows if len(chat.example(record).tokens) <= size.max_tokens]
        held, old = rows[: size.items], [*rows[size.items :], *skills]
        write_jsonl(folder / "held_out.jsonl", held)
        write_jsonl(folder / "old.jsonl", {record.id: record for record in old}.values())
        order = [
            record for epoch in range(size.epochs) for record in Random(epoch).sample(old, len(old))
        ]
        settings = Train(learning_rate=size.base_rate, min_rate=0.1, warmup=0.05, batch_rows=2 * size.batch_rows,
                         weight_decay=0.05, micro_batch_rows=size.batch_rows, save_every=300)  # fmt: skip
        steps = [place // settings.batch_rows for place in range(len(order))]
        weights = {record.id: chat.weight(record) for record in old}
        made = trained(folder, order, steps, model=str(folder / "start"), chat=chat, settings=settings, seed=1,
                       weights=weights)  # fmt: skip
        return step.finish(made | {
            "rows": len(old), "parameters": models.parameter_count(str(folder / "model")),
            "identity": models.identity(str(folder / "model")), "device": device(),
        })  # fmt: skip


def trained(
    folder: Path, records: Sequence[Record], steps: Sequence[int], **options: Any
) -> dict[str, Any]:
    """Our trainer, with what it said kept in train.json, where a call that is stopped after it finds that."""
    from replaykit.train import fit

    if (said := read_json(folder / "train.json")) is not None:
        return said
    shutil.rmtree(folder / "model", ignore_errors=True)
    started = time.perf_counter()
    made = fit.train(records, steps, folder=folder, **options)
    said = {"steps": made["steps"], "loss": made["loss"], "tokens": made["tokens"]}
    said["train_seconds"] = round(
        time.perf_counter() - started, 1
    )  # of the last call alone, if there were several
    write_json(folder / "train.json", said)
    return said


# --- replay, arms and scores ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What all units share. ``late(seconds)`` tells whether so many are no longer left of this call's time."""

    out: Path
    data: Path
    size: Size
    task: str
    engine: str  # that writes the Magpie rows
    learn: Sequence[Record]
    tests: Mapping[str, tuple[Test, Sequence[Record]]]
    late: Callable[..., bool] = field(compare=False)

    @property
    def model(self) -> str:
        return str(self.out / "base" / "model")


def begun(
    out: Path, data: Path, size: Size, task: str, engine: str, late: Callable[..., bool]
) -> Work:
    """The new task and all tests but that of the general rows, which the base's unit sets aside."""
    learn, target, how = new_task(task, data, size)
    tests = {}
    for skill in OLD:
        own = cards if skill == "card" else partial(world.draw, skill)
        kind = (
            "json" if skill in ("json", "card") else "exact"
        )  # which takes capitals for what they are
        tests[skill] = (
            Test(path=skill, score=kind, max_tokens=64),
            as_records(own(size.items, seed=99, held_out=True)),
        )
    tests["new loss"] = Test(path=task, score="cross_entropy"), target
    tests["new answers"] = how, target
    return Work(out, data, size, task, engine, learn, tests, late)


def make_replay(work: Work, name: str, base: Mapping[str, Any]) -> dict[str, Any]:
    """A set of replay rows in rows.jsonl."""
    folder, n = work.out / f"replay-{name}", work.size.replay
    inputs = {
        "base": base["identity"],
        "n": n,
        "task": work.task,
        "target": [record.id for record in work.learn[:100]],
    }
    with open_step(name, folder, inputs) as step:
        if step.result is not None:
            return step.result
        if name == "magpie":
            settings = Generate(n=n, max_question_tokens=160, max_answer_tokens=192)
            engine = load_engine(work.model, work.engine)
            rows = list(generate(engine, Chat.load(work.model), settings=settings, seed=1, folder=folder,
                                 held_out=[r.prompt for _, rows in work.tests.values() for r in rows],
                                 stopping=work.late))  # fmt: skip
            engine.close()
        else:
            pool = list(read_records(work.out / "base" / "old.jsonl", "select"))
            chosen = Select.model_validate({"pool": "old.jsonl", "n": n, "method": name})
            rows = select(pool, work.learn, settings=chosen, seed=1, folder=folder).records
        write_jsonl(folder / "rows.jsonl", rows)
        return step.finish({"rows": len(rows)})


def settings_of(work: Work, arm: Arm, **more: Any) -> Train:
    size, changes = work.size, dict(arm.train)
    rate = size.lora_rate if changes.get("method") == "lora" else size.full_rate
    if "ewc" in changes.get("remedies", {}):
        changes["remedies"] = {"ewc": {"rows": size.fisher_rows}}
    common = {"learning_rate": rate, "epochs": size.target_epochs, "batch_rows": size.batch_rows, "save_every": 10**6,
              "micro_batch_rows": min(32, size.batch_rows), "max_tokens": POSITIONS}  # fmt: skip
    return Train.model_validate({**common, **changes, **more})


def mixture(
    work: Work, arm: Arm, chat: Chat, seed: int, folder: Path
) -> tuple[Any, dict[str, Any], Train]:
    """The arm's mixture, its summary and settings. Equal compute: as many target tokens as the dearest arm has of both."""
    settings, asked, replay = settings_of(work, arm), Mix(ratio=arm.ratio, overlap=False), {}
    if arm.equal:
        _, dearest, _ = mixture(work, Arm(dearest_replay(work), 0.10), chat, seed, folder)
        rows = dearest["cost"] * work.size.target_epochs * len(work.learn)
        settings = settings_of(work, arm, steps=max(1, round(rows / work.size.batch_rows)))
    if arm.replay is not None:
        source = "generate" if arm.replay == "magpie" else "select"
        replay = {
            source: list(read_records(work.out / f"replay-{arm.replay}" / "rows.jsonl", source))
        }
    made = mix(
        work.learn, replay, chat=chat, settings=asked, train=settings, seed=seed, folder=folder
    )
    return made, made.summary(asked), settings


def dearest_replay(work: Work) -> str:
    """The set of replay rows by which the compute of an arm without replay is set: the first that there is."""
    return next(name for name in REPLAY if read_manifest(work.out / f"replay-{name}"))


def run_arm(work: Work, name: str, seed: int, base: Mapping[str, Any]) -> dict[str, Any]:
    """Trains one arm, scores it, and keeps the scores but not the model."""
    arm, folder = ARMS[name], work.out / f"{name}-seed-{seed}"
    inputs = {
        "base": base["identity"],
        "arm": asdict(arm),
        "seed": seed,
        "size": asdict(work.size),
        "task": work.task,
    }
    with open_step(name, folder, inputs) as step:
        if step.result is not None:
            return step.result
        chat = Chat.load(work.model)
        made, summary, settings = mixture(work, arm, chat, seed, folder)
        lines = [
            (number, made.rows[slot.source][slot.row])
            for number, slots in enumerate(made.steps)
            for slot in slots
        ]
        records, steps = [record for _, record in lines], [number for number, _ in lines]
        weights = token_weights(work, settings, records, chat, seed, base)
        said = trained(
            folder,
            records,
            steps,
            model=work.model,
            chat=chat,
            settings=settings,
            seed=seed,
            weights=weights,
        )
        score(work, folder, str(folder / "model"))
        for part in ("model", "adapter"):
            shutil.rmtree(folder / part, ignore_errors=True)
        facts = {key: summary[key] for key in ("share", "cost", "replay_rows", "repeats")}
        return step.finish(said | facts | {"device": device()})


def token_weights(
    work: Work,
    settings: Train,
    records: Sequence[Record],
    chat: Chat,
    seed: int,
    base: Mapping[str, Any],
) -> Any:
    """The weights of answer tokens by STM, or None."""
    if settings.remedies.stm is None:
        return None
    from replaykit.train.remedies.weights import weights
    from replaykit.train.score import Scores, token_logprobs

    different = list({record.id: record for record in records}.values())
    engine = load_engine(work.model, "transformers")
    with Scores(work.out / "base" / "logprobs.jsonl", str(base["identity"])) as known:
        logprobs = token_logprobs(different, chat, engine, known)
    engine.close()
    examples = {record.id: chat.example(record) for record in different}
    return weights(different, examples, logprobs, settings.remedies, chat, seed)


def score(work: Work, folder: Path, model: str) -> None:
    """Writes the items of all tests to items.jsonl."""
    if (folder / "items.jsonl").exists():
        return
    held = list(read_records(work.out / "base" / "held_out.jsonl", "target"))
    tests = {**work.tests, "general": (Test(path="general", score="cross_entropy"), held)}
    engine = load_engine(model, "transformers")
    write_jsonl(folder / "items.jsonl", measure(engine, Chat.load(model), tests))
    engine.close()


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def score_base(work: Work, base: Mapping[str, Any]) -> dict[str, Any]:
    folder = work.out / "base-scores"
    with open_step("base-scores", folder, {"base": base["identity"], "task": work.task}) as step:
        if step.result is None:
            score(work, folder, work.model)
            step.finish({"device": device()})
        return dict(step.result or {})


# --- all units --------------------------------------------------------------------------------------------------------


def run_all(work: Work, arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Does the units that are not done, while the time lasts; returns those that are left.

    Only the base's training and the Magpie rows are broken off in the middle: another unit is not begun if the longest
    so far would not fit.
    """
    base = make_base(work)
    print(f"base: {base['parameters']:,} parameters, loss {base['loss']:.3f}", flush=True)
    score_base(work, base)
    needed = {ARMS[arm].replay or ("random" if ARMS[arm].equal else None) for arm in arms}
    for name in (name for name in REPLAY if name in needed):
        print(f"replay-{name}: {make_replay(work, name, base)['rows']} rows", flush=True)
    longest, left = 0.0, []
    for seed in seeds:
        for name in arms:
            before, started = read_manifest(work.out / f"{name}-seed-{seed}"), time.monotonic()
            if before is None and work.late(longest):
                left.append(f"{name}, seed {seed}")
                continue
            said = run_arm(work, name, seed, base)
            if before is None:
                longest = max(longest, time.monotonic() - started)
            print(
                f"{name}, seed {seed}: loss {said['loss']:.3f}{'' if before is None else ', done before'}",
                flush=True,
            )
    return left


def read_items(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The scored items by test; those that were too long for the model are left out, under every model the same ones."""
    found: dict[str, list[dict[str, Any]]] = {}
    for item in (
        json.loads(line)
        for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
    ):
        if item["score"] is not None:
            found.setdefault(item["skill"], []).append(item)
    return found


def scores_by_arm(
    work: Work, arms: Sequence[str], seeds: Sequence[int]
) -> dict[str, dict[str, np.ndarray]]:
    """Of the base and of every arm that has a finished seed: test -> scores [seeds, items]."""
    folders = {"base": [work.out / "base-scores"]}
    folders |= {name: [work.out / f"{name}-seed-{seed}" for seed in seeds] for name in arms}
    found = {}
    for name, places in folders.items():
        if runs := [read_items(place) for place in places if read_manifest(place)]:
            found[name] = {
                test: np.array([[item["score"] for item in run[test]] for run in runs])
                for test in runs[0]
            }
    return found


def percent(part: Interval | None) -> str:
    return (
        "–"
        if part is None
        else f"{100 * part.mean:.1f} [{100 * part.low:.1f}, {100 * part.high:.1f}]"
    )


def nats(part: Interval) -> str:
    return f"{part.mean:.3f} [{part.low:.3f}, {part.high:.3f}]"


def row(
    name: str, now: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], tokens: Any, said: Any
) -> str:
    """A line of the table. An item's score is its mean over the seeds; intervals are by a bootstrap over the items."""
    mean = {test: scores.mean(axis=0).tolist() for test, scores in now.items()}
    first = {test: scores[0].tolist() for test, scores in base.items()}

    def kept(skills: Sequence[str]) -> Interval | None:
        lost = mean_drop([first[skill] for skill in skills], [mean[skill] for skill in skills])
        return retention(float(np.mean([np.mean(first[skill]) for skill in skills])), lost)

    seeds = ", ".join(
        f"{100 * np.mean([now[skill][k].mean() for skill in OLD]):.1f}"
        for k in range(len(now["card"]))
    )
    learned = mean_drop(
        [mean["new answers"]], [[0.0] * len(mean["new answers"])]
    )  # the mean itself
    rise = per_token_rise(first["general"], mean["general"], tokens["general"])
    cells = [
        name, f"{100 * said['share']:.1f}" if said else "–", f"{said['cost']:.2f}" if said else "–", seeds,
        percent(kept(OLD)), percent(kept(["card"])), nats(rise),
        nats(per_token(mean["new loss"], tokens["new loss"])), percent(learned),
        f"{said['seconds']:.0f}" if said else "–",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def report(work: Work, arms: Sequence[str], seeds: Sequence[int]) -> str:
    """The table of what is finished."""
    found = scores_by_arm(work, arms, seeds)
    made = read_manifest(work.out / "base")
    if made is None or "base" not in found:
        raise SystemExit(f"{work.out}: the base is not finished, so there is nothing to report")
    places = ["base", "base-scores", *(f"{name}-seed-{seed}" for name in arms for seed in seeds)]
    units = [unit for place in places if (unit := read_manifest(work.out / place))]
    devices = ", ".join(dict.fromkeys(unit["device"] for unit in units))
    days = sorted({unit["finished"][:10] for unit in units})
    items = read_items(work.out / "base-scores")
    tokens = {test: [item["tokens"] for item in items[test]] for test in ("general", "new loss")}
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    base = ", ".join(f"{skill} {100 * found['base'][skill].mean():.0f}" for skill in OLD)
    lines = [
        f"# What a chat model of {made['parameters'] / 1e6:.1f} million parameters keeps while it learns {work.task}", "",
        f"{devices}, {' to '.join(dict.fromkeys((days[0], days[-1])))}, {packages}", "",
        f"The base: {made['rows']:,} rows, {made['steps']:,} steps, {made['tokens']:,} tokens, "
        f"{made['train_seconds']:,.0f} s; right in % of its old skills: {base}.", "",
        "| arm | replay, % of loss tokens | compute | old skills right in %, each seed | retention, % | of cards, % | "
        "general loss, rise in nats | new loss, nats | new answers right, % | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, now in found.items():
        manifests = [read_manifest(work.out / f"{name}-seed-{seed}") for seed in seeds]
        done = [manifest for manifest in manifests if manifest]
        said = None
        if done:
            said = {"share": np.mean([one["share"]["loss_tokens"] for one in done]),
                    "cost": np.mean([one["cost"] * _part_of_epochs(work, one) for one in done]),
                    "seconds": np.mean([one["train_seconds"] for one in done])}  # fmt: skip
        lines.append(row(name, now, found["base"], tokens, said))
    return "\n".join([*lines, "", *_notes(work, arms, seeds, found, len(items["new answers"]))])


def _notes(
    work: Work,
    arms: Sequence[str],
    seeds: Sequence[int],
    found: Mapping[str, Mapping[str, np.ndarray]],
    tested: int,
) -> list[str]:
    """What stands under the table."""
    lines = [
        f"{len(work.learn):,} rows of {work.task}, {work.size.target_epochs} epochs; {work.size.items} items of each old "
        f"skill, {tested} of the new task; seeds {', '.join(map(str, seeds))}. Brackets are 95 % intervals over items, of "
        f"the mean over seeds. Compute is all tokens over those of the target alone.", "",
    ]  # fmt: skip
    repeats = {
        name: max(made["repeats"].get(source, 0.0) for source in ("select", "generate"))
        for name in arms
        if ARMS[name].replay and (made := read_manifest(work.out / f"{name}-seed-{seeds[0]}"))
    }
    if repeats:
        often, rows = max(repeats, key=lambda name: repeats[name]), work.size.replay
        lines += [
            f"A set of replay has {rows:,} rows; each comes {repeats[often]:.1f} times at most ({often}).",
            "",
        ]
    left = [name for name in arms if name not in found]
    left += [f"{name} ({len(now['card'])} of {len(seeds)} seeds)" for name, now in found.items()
             if name != "base" and len(now["card"]) < len(seeds)]  # fmt: skip
    return [*lines, *([f"Not finished: {', '.join(left)}.", ""] if left else [])]


def _part_of_epochs(work: Work, manifest: Mapping[str, Any]) -> float:
    """How many times longer than the epochs of the target an arm of a fixed number of steps is; 1 for all others."""
    if not manifest["inputs"]["arm"]["equal"]:
        return 1.0
    return manifest["steps"] * work.size.batch_rows / (work.size.target_epochs * len(work.learn))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="where finished units are kept ($OUT/proof)"
    )
    parser.add_argument(
        "--data", type=Path, default=DATA, help="the folder of the data sets (../shared/data)"
    )
    parser.add_argument(
        "--task", choices=["gsm8k", "pubmedqa"], default="gsm8k", help="the new task"
    )
    parser.add_argument(
        "--engine", default="transformers", help="for the Magpie rows; vllm where it is installed"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of this call")
    parser.add_argument("--arms", default="", help="some of the arms, with commas between")
    parser.add_argument("--report", action="store_true", help="write the table of what is finished")
    parser.add_argument(
        "--mini", action="store_true", help="in miniature on a CPU; the report stays in --out"
    )
    options = parser.parse_args()
    arms = options.arms.split(",") if options.arms else list(MINI_ARMS if options.mini else ARMS)
    if unknown := [name for name in arms if name not in ARMS]:
        raise SystemExit(f"--arms: no {', '.join(unknown)} among {', '.join(ARMS)}")
    if not options.mini and not options.report and not torch.cuda.is_available():
        raise SystemExit(
            "there is no CUDA device here; --mini runs everything in miniature on a CPU"
        )
    if missing := [name for name in GENERAL if not (options.data / f"{name}.jsonl.gz").exists()]:
        raise SystemExit(
            f"{options.data}: no {missing[0]}.jsonl.gz there; --data names the folder that has it"
        )
    end, seeds = time.monotonic() + 60 * options.minutes, MINI_SEEDS if options.mini else SEEDS
    out = options.out / ("mini" if options.mini else options.task)
    work = begun(out, options.data, MINI if options.mini else GPU, options.task, options.engine,
        lambda needed=0.0: time.monotonic() + needed + STOP_EARLY > end)  # fmt: skip
    if not options.report:
        run_in_time(work, arms, seeds, end)
    if options.report or options.mini:
        path = out / "proof.md" if options.mini else RESULTS / f"gpu-proof-{options.task}.md"
        path.write_text(report(work, arms, seeds), encoding="utf-8")
        print(path)


def run_in_time(work: Work, arms: Sequence[str], seeds: Sequence[int], end: float) -> None:
    """``run_all``, ended by SIGTERM to this process when the time is up: the trainer then saves a checkpoint."""

    def stop(*_: object) -> None:
        raise Stopped("the time is up; the same command goes on from there")

    signal.signal(signal.SIGTERM, stop)
    wait = max(0.0, end - STOP_EARLY - time.monotonic())
    timer = threading.Timer(wait, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        left = run_all(work, arms, seeds)
    except Stopped as stopped:
        raise SystemExit(str(stopped)) from None
    finally:
        timer.cancel()
    if left:
        raise SystemExit(f"left are {'; '.join(left)}; the same command goes on from there")


if __name__ == "__main__":
    main()
