"""The units of the proof: the base, its scores, sets of replay rows, and arms, each a folder of its
own with a manifest.

A finished one is skipped; the base's training and the Magpie rows go on from where they stopped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from proof_data import GENERAL, OLD, Size, as_records, cards, general, new_task, taught

from replaykit.checks.funnel import Funnel
from replaykit.data.formats import read_records
from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, Source
from replaykit.engines import load_engine
from replaykit.hashing import file_fingerprint
from replaykit.model import loading
from replaykit.model.chat import Chat, Example
from replaykit.nano import world
from replaykit.nano.template import BOS, END_HEADER, EOS, EOT, HEADER, PAD, SPLIT, TEMPLATE
from replaykit.recipe.evaluate import Test
from replaykit.recipe.generate import Generate
from replaykit.recipe.mix import Mix
from replaykit.recipe.select import Select
from replaykit.recipe.train import Train
from replaykit.result import Result
from replaykit.runs import open_step, read_json, read_manifest, write_json
from replaykit.steps.evaluate.skills import measure
from replaykit.steps.generate.draw import generate_rows
from replaykit.steps.generate.job import Job, Monitor
from replaykit.steps.mix.build import Mixture, build_mixture
from replaykit.steps.mix.result import MixResult
from replaykit.steps.score.logprobs import Scores, different_examples, score_examples
from replaykit.steps.select.selection import select_records
from replaykit.steps.train.fit import Base, Extras, fit
from replaykit.steps.train.remedies.weights import weights

POSITIONS = 1024
R = TypeVar("R", bound=Result)
# Of a question's token over an answer's: the base has to write questions, too.
QUESTION_WEIGHT = 1 / 3


# --- what a unit leaves ---------------------------------------------------------------------------


class Trained(Result):
    """What our trainer said."""

    steps: int
    loss: float
    tokens: int
    train_seconds: float
    """Of the last call alone, if there were several."""


class BaseUnit(Trained):
    """The base."""

    rows: int
    """Different rows that it was trained on."""
    parameters: int
    identity: Any
    """What identifies its weights."""
    device: str


class ArmUnit(Trained):
    """An arm with a seed."""

    share: dict[str, float]
    """Replay over all, by unit."""
    cost: float
    """All tokens over those of the target alone."""
    replay_rows: int
    repeats: dict[str, float]
    """How often a replay row of each source comes, on average."""
    device: str


class ReplayUnit(Result):
    """A set of replay rows."""

    rows: int


class ScoreUnit(Result):
    """The base's scores."""

    device: str


def unit_of(folder: Path, kind: type[R]) -> R | None:
    """What a finished unit left; None where it is not finished."""
    manifest = read_manifest(folder)
    return kind.model_validate(manifest.result) if manifest is not None else None


# --- what there is to do --------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A way to learn the new task."""

    replay: str | None = None
    ratio: float = 0.0
    train: Mapping[str, Any] = field(default_factory=dict)
    """Settings of train."""
    equal: bool = False
    """Whether its compute is that of 10 % replay."""


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


@dataclass(frozen=True)
class Work:
    """What all units share."""

    out: Path
    data: Path
    size: Size
    task: str
    engine: str
    """That writes the Magpie rows."""
    learn: Sequence[Record]
    tests: Mapping[str, tuple[Test, Sequence[Record]]]
    late: Callable[..., bool] = field(compare=False)
    """Whether so many seconds are no longer left of this call's time."""

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
        # json takes capitals for what they are.
        kind = "json" if skill in ("json", "card") else "exact"
        tests[skill] = (
            Test(path=skill, score=kind, max_tokens=64),
            as_records(own(size.items, seed=99, held_out=True)),
        )
    tests["new loss"] = Test(path=task, score="cross_entropy"), target
    tests["new answers"] = how, target
    return Work(out, data, size, task, engine, learn, tests, late)


# --- the base -------------------------------------------------------------------------------------


class WholeChat(Chat):
    """A Chat whose examples carry loss on the questions too, so that a base can write questions
    of its own.
    """

    def example(self, record: Record) -> Example:
        made = super().example(record)
        return Example(made.tokens, (False, *[True] * (len(made.tokens) - 1)))

    def weight(self, record: Record) -> np.ndarray:
        """Of the tokens that carry loss: 1 in answers, QUESTION_WEIGHT elsewhere."""
        return np.where(super().example(record).loss[1:], 1.0, QUESTION_WEIGHT).astype(np.float32)


def make_tokenizer(texts: Iterator[str], vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of the texts with single digits and a template of Llama-3's shape, as the
    embedded model has.
    """
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE

    made = Tokenizer(BPE())
    words = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, EOT, PAD, HEADER, END_HEADER],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=BOS,
        eos_token=EOT,
        pad_token=PAD,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
    )


def random_llama(size: Size, tokenizer: Any) -> Any:
    """An untrained Llama with heads of 64 dimensions."""
    assert size.hidden is not None
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.hidden // 64,
            num_key_value_heads=size.hidden // 64,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_start(folder: Path, size: Size, records: Sequence[Record]) -> None:
    """The model before any training; in miniature that is the embedded one, which knows the
    world's skills.
    """
    if folder.exists():
        return
    unfinished = folder.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    if size.hidden is None:
        shutil.copytree(loading.ALIASES["nano"], unfinished)
    else:
        texts = (message["content"] for record in records for message in record.messages)
        tokenizer = make_tokenizer(texts, size.vocabulary)
        random_llama(size, tokenizer).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def make_base(work: Work) -> BaseUnit:
    """Trains the base; its rows stay in old.jsonl, general rows to test it on in held_out.jsonl."""
    size = work.size
    folder = work.out / "base"
    files = [work.data / f"{name}.jsonl.gz" for name in GENERAL]
    inputs = {"size": asdict(size), "data": [file_fingerprint(file) for file in files]}
    with open_step("base", folder, inputs) as step:
        if step.manifest is not None:
            return BaseUnit.model_validate(step.manifest.result)
        rows = general(work.data, size)
        skills = taught(size)
        make_start(folder / "start", size, [*rows, *skills, *work.learn])
        chat = WholeChat.load(str(folder / "start"))
        rows = [record for record in rows if len(chat.example(record).tokens) <= size.max_tokens]
        held = rows[: size.items]
        old = [*rows[size.items :], *skills]
        write_jsonl(folder / "held_out.jsonl", held)
        write_jsonl(folder / "old.jsonl", {record.id: record for record in old}.values())
        order = [
            record for epoch in range(size.epochs) for record in Random(epoch).sample(old, len(old))
        ]
        settings = Train(
            learning_rate=size.base_rate,
            min_rate=0.1,
            warmup=0.05,
            batch_rows=2 * size.batch_rows,
            weight_decay=0.05,
            micro_batch_rows=size.batch_rows,
            save_every=300,
        )
        planned = [
            PlannedRow(place // settings.batch_rows, record) for place, record in enumerate(order)
        ]
        weights = {record.id: chat.weight(record) for record in old}
        base = Base(str(folder / "start"), chat)
        said = trained(folder, planned, base, settings, seed=1, weights=weights)
        unit = BaseUnit(
            **said.to_json(),
            rows=len(old),
            parameters=loading.parameter_count(str(folder / "model")),
            identity=loading.identity(str(folder / "model")),
            device=device(),
        )
        step.finish(unit)
        return unit


def trained(
    folder: Path,
    rows: Sequence[PlannedRow],
    base: Base,
    settings: Train,
    *,
    seed: int,
    weights: Mapping[str, np.ndarray] | None = None,
) -> Trained:
    """Our trainer, with what it said kept in train.json, where a call that is stopped after it
    finds that.
    """
    kept = read_json(folder / "train.json")
    if kept is not None:
        return Trained.model_validate(kept)
    shutil.rmtree(folder / "model", ignore_errors=True)
    started = time.perf_counter()
    made = fit(rows, base, settings, seed=seed, folder=folder, extras=Extras(weights=weights))
    seconds = round(time.perf_counter() - started, 1)
    said = Trained(steps=made.steps, loss=made.loss, tokens=made.tokens, train_seconds=seconds)
    write_json(folder / "train.json", said.to_json())
    return said


# --- replay, arms and scores ----------------------------------------------------------------------


def make_replay(work: Work, name: str, base: BaseUnit) -> ReplayUnit:
    """A set of replay rows in rows.jsonl."""
    folder = work.out / f"replay-{name}"
    n = work.size.replay
    inputs = {
        "base": base.identity,
        "n": n,
        "task": work.task,
        "target": [record.id for record in work.learn[:100]],
    }
    with open_step(name, folder, inputs) as step:
        if step.manifest is not None:
            return ReplayUnit.model_validate(step.manifest.result)
        if name == "magpie":
            rows = magpie(work, folder, n)
        else:
            pool = list(read_records(work.out / "base" / "old.jsonl", "select"))
            chosen = Select.model_validate({"pool": "old.jsonl", "n": n, "method": name})
            rows = select_records(pool, work.learn, settings=chosen, seed=1, folder=folder).records
        write_jsonl(folder / "rows.jsonl", rows)
        unit = ReplayUnit(rows=len(rows))
        step.finish(unit)
        return unit


def magpie(work: Work, folder: Path, n: int) -> list[Record]:
    """Rows that the base writes itself, with no question of a test among them."""
    job = Job(
        Generate(n=n, max_question_tokens=160, max_answer_tokens=192),
        seed=1,
        held_out=[record.prompt for _, records in work.tests.values() for record in records],
    )
    with closing(load_engine(work.model, work.engine)) as engine:
        monitor = Monitor(stopping=work.late)
        chat = Chat.load(work.model)
        return list(generate_rows(engine, chat, job, folder=folder, monitor=monitor))


def settings_of(work: Work, arm: Arm, **more: Any) -> Train:
    size = work.size
    changes = dict(arm.train)
    rate = size.lora_rate if changes.get("method") == "lora" else size.full_rate
    if "ewc" in changes.get("remedies", {}):
        changes["remedies"] = {"ewc": {"rows": size.fisher_rows}}
    common = {
        "learning_rate": rate,
        "epochs": size.target_epochs,
        "batch_rows": size.batch_rows,
        "save_every": 10**6,
        "micro_batch_rows": min(32, size.batch_rows),
        "max_tokens": POSITIONS,
    }
    return Train.model_validate({**common, **changes, **more})


def mixture(
    work: Work, arm: Arm, chat: Chat, seed: int, folder: Path
) -> tuple[Mixture, MixResult, Train]:
    """The arm's mixture, what came of it, and its settings. Equal compute: as many target tokens as
    the dearest arm has of both.
    """
    settings = settings_of(work, arm)
    mix = Mix(ratio=arm.ratio, overlap=False)
    replay = {}
    if arm.equal:
        _, dearest, _ = mixture(work, Arm(dearest_replay(work), 0.10), chat, seed, folder)
        rows = dearest.cost * work.size.target_epochs * len(work.learn)
        settings = settings_of(work, arm, steps=max(1, round(rows / work.size.batch_rows)))
    if arm.replay is not None:
        source: Source = "generate" if arm.replay == "magpie" else "select"
        file = work.out / f"replay-{arm.replay}" / "rows.jsonl"
        replay[source] = list(read_records(file, source))
    funnel = Funnel()
    made = build_mixture(
        work.learn,
        replay,
        chat=chat,
        settings=mix,
        train=settings,
        seed=seed,
        folder=folder,
        funnel=funnel,
    )
    found = made.result(mix, sha256="", sources={}, funnel=funnel.result(), decontamination=None)
    return made, found, settings


def dearest_replay(work: Work) -> str:
    """The set of replay rows by which the compute of an arm without replay is set: the first that
    there is.
    """
    return next(name for name in REPLAY if read_manifest(work.out / f"replay-{name}"))


def run_arm(work: Work, name: str, seed: int, base: BaseUnit) -> ArmUnit:
    """Trains one arm, scores it, and keeps the scores but not the model."""
    arm = ARMS[name]
    folder = work.out / f"{name}-seed-{seed}"
    inputs = {
        "base": base.identity,
        "arm": asdict(arm),
        "seed": seed,
        "size": asdict(work.size),
        "task": work.task,
    }
    with open_step(name, folder, inputs) as step:
        if step.manifest is not None:
            return ArmUnit.model_validate(step.manifest.result)
        chat = Chat.load(work.model)
        made, mixed, settings = mixture(work, arm, chat, seed, folder)
        rows = list(made.planned_rows())
        records = [row.record for row in rows]
        weights = token_weights(work, settings, records, chat, seed, base)
        said = trained(folder, rows, Base(work.model, chat), settings, seed=seed, weights=weights)
        score(work, folder, str(folder / "model"))
        for part in ("model", "adapter"):
            shutil.rmtree(folder / part, ignore_errors=True)
        unit = ArmUnit(
            **said.to_json(),
            share=dict(mixed.share),
            cost=mixed.cost,
            replay_rows=mixed.replay_rows,
            repeats=mixed.repeats,
            device=device(),
        )
        step.finish(unit)
        return unit


def token_weights(
    work: Work, settings: Train, records: Sequence[Record], chat: Chat, seed: int, base: BaseUnit
) -> dict[str, np.ndarray] | None:
    """The weights of answer tokens by STM, or None."""
    if settings.remedies.stm is None:
        return None
    different = list({record.id: record for record in records}.values())
    examples = different_examples(different, chat)
    with (
        closing(load_engine(work.model, "transformers")) as engine,
        Scores(work.out / "base" / "logprobs.jsonl", str(base.identity)) as known,
    ):
        logprobs = score_examples(examples, engine, known)
    return weights(different, examples, logprobs, settings.remedies, chat, seed)


def score(work: Work, folder: Path, model: str) -> None:
    """Writes the items of all tests to items.jsonl."""
    if (folder / "items.jsonl").exists():
        return
    held = list(read_records(work.out / "base" / "held_out.jsonl", "target"))
    tests = {**work.tests, "general": (Test(path="general", score="cross_entropy"), held)}
    with closing(load_engine(model, "transformers")) as engine:
        items = measure(engine, Chat.load(model), tests)
        write_jsonl(folder / "items.jsonl", (item.to_json() for item in items))


def score_base(work: Work, base: BaseUnit) -> None:
    """The items of all tests under the base."""
    folder = work.out / "base-scores"
    with open_step("base-scores", folder, {"base": base.identity, "task": work.task}) as step:
        if step.manifest is None:
            score(work, folder, work.model)
            step.finish(ScoreUnit(device=device()))


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
