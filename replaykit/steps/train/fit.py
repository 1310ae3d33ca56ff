"""One training, from the rows of a mixture to a folder with the tuned model.

    fit(rows, Base("llama3", chat), Train(), seed=1, folder=Path("runs/my-task/train"))

A run that was cut short goes on from its last whole checkpoint with the identical order of rows,
weights and remedies. Started with torchrun, every process takes its part of each step's
micro-batches.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState

from replaykit.data.planned import PlannedRow
from replaykit.data.record import TARGET, Record
from replaykit.devices import free_memory
from replaykit.errors import DataError, EngineError, RecipeError, Stopped
from replaykit.model import loading
from replaykit.model.adapters import merge
from replaykit.model.chat import Chat, Example
from replaykit.model.classifier import TextClassifier
from replaykit.model.lm_head import Batch, as_trained
from replaykit.model.shards import is_sharded, whole_weights
from replaykit.recipe.remedies import ProjectSettings
from replaykit.recipe.train import Train
from replaykit.runs import Watch, stop_on_signal, unwatched
from replaykit.steps.train import checkpoints
from replaykit.steps.train.asked import Asked, asked
from replaykit.steps.train.batches import Cut, TokenisedRows, micro_batches, to_device
from replaykit.steps.train.controlled import ControlledBatches, lay_out
from replaykit.steps.train.controller import Controller, ControllerInputs
from replaykit.steps.train.optimiser import moment_bytes
from replaykit.steps.train.parameters import adapted, quantised, tied_note
from replaykit.steps.train.reading import check_reading
from replaykit.steps.train.remedies import Pairs, Remedy, Run, chosen, restore
from replaykit.steps.train.remedies.project import Project
from replaykit.steps.train.result import Speed, TrainResult
from replaykit.steps.train.speed import Clock
from replaykit.steps.train.texts import collator
from replaykit.steps.train.trainer import ADVICE, ReplayTrainer, WatchCallback

log = logging.getLogger(__name__)

# Rows of a micro-batch, where the recipe gives none.
CPU_ROWS = 16
GPU_ROWS = 8


@dataclass(frozen=True)
class Base:
    """The model that is trained: its name as in the recipe, its chat, its revision on the Hub."""

    name: str
    chat: Chat
    revision: str | None = None

    def load(self, settings: Train) -> Any:
        """The model as it is trained: in float32 or as train.weights says, in the precision it came
        in under an adapter, or in 4 bits for qlora.
        """
        wide = settings.precision == "float32"
        train = wide or not settings.adapter
        narrow = settings.weights == "bfloat16"
        if isinstance(self.chat, TextClassifier):
            return self.chat.load_model(
                train=train, quantisation=quantised(settings), narrow=narrow
            )
        # Packed rows are kept apart by a mask of [length, length], unless the kernel takes where
        # each begins.
        kernel = (
            settings.packing
            and not wide
            and torch.cuda.is_available()
            and find_spec("flash_attn") is not None
        )
        return loading.load_model(
            self.name,
            self.revision,
            train=train,
            quantisation=quantised(settings),
            attention="flash_attention_2" if kernel else None,
            narrow=narrow,
            shards=_world() if settings.fsdp else 1,
        )

    def load_again(self) -> Any:
        """The untrained model once more, as it is stored."""
        if isinstance(self.chat, TextClassifier):
            return self.chat.load_model()
        return loading.load_model(self.name, self.revision)


@dataclass(frozen=True)
class Extras:
    """What only some trainings have."""

    weights: Mapping[str, np.ndarray] | None = None
    """Of the answer tokens, by record id, where they are not 1."""
    old: Sequence[Record] = ()
    """Old data for the Fisher information of ewc, instead of the replay rows."""
    watched: ControllerInputs | None = None
    """With it replay is drawn anew beside the target rows, as a controller decides."""
    callbacks: Sequence[transformers.TrainerCallback] = ()
    """They are told what those of any Trainer are."""
    teacher: Base | None = None
    """The base that remedies hold the model by, where that is another than the model was before
    this training."""
    what: str = "train"
    """What the Watch is told is being done."""
    examples: Mapping[str, Example] | None = None
    """Rows that are tokenised already, by record id; the others are tokenised here."""


@dataclass(frozen=True)
class Order:
    """The rows, and their micro-batches in the order of training; ``parts`` of these make one
    optimiser step.
    """

    records: Sequence[Record]
    """Of the rows."""
    data: TokenisedRows
    batches: list[list[int]] | ControlledBatches
    parts: int

    @property
    def steps(self) -> int:
        return len(self.batches) // self.parts


def fit(
    rows: Sequence[PlannedRow],
    base: Base,
    settings: Train,
    *,
    seed: int,
    folder: Path,
    extras: Extras = Extras(),
    watch: Watch = unwatched,
) -> TrainResult:
    """Trains on the rows, each in its optimiser step, and saves the tuned model to
    ``folder``/model; an adapter to ``folder``/adapter, and merged to ``folder``/model.

    Raises EngineError if what is trained is not finite or the memory is too small, RecipeError for
    what cannot combine, DataError for rows without loss, and Stopped, with a checkpoint written,
    after SIGINT or SIGTERM.
    """
    _quiet()
    if _world() > 1:
        # The first process has made the folder.
        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()
    transformers.set_seed(seed)
    replayed = extras.watched is not None or any(row.record.source != TARGET for row in rows)
    remedies = remedies_of(settings, replayed)
    controller = None
    if extras.watched is not None:
        controller = Controller(
            extras.watched, base.chat, folder=folder, remedies=remedies, watch=watch
        )
    order = _order(rows, base.chat, extras, controller, cut_of(settings, remedies), seed)
    _check(settings, base.chat, order, extras)
    with _memory_told(settings, folder):
        network = adapted(base.load(settings), settings)
        _check_memory(network, settings)
        note = tied_note(network, settings)
        with stop_on_signal(signal.SIGTERM) as stopping:
            watching = WatchCallback(watch, extras.what, remedies, stopping)
            clock = Clock()
            callbacks: list[transformers.TrainerCallback] = [watching, clock]
            if controller is not None:
                callbacks.append(controller)
            trainer = ReplayTrainer(
                batches=order.batches,
                data=order.data,
                settings=settings,
                remedies=remedies,
                model=network,
                args=_arguments(settings, folder, seed, order),
                data_collator=collator(base.chat, packing=settings.packing),
                callbacks=[*callbacks, *extras.callbacks],
            )
            # It would print every log; the Watch and the result have them.
            trainer.remove_callback(transformers.PrinterCallback)
            _check_wrapping(trainer)
            resumed = _resumed(folder)
            old = TokenisedRows(extras.old, base.chat, examples=extras.examples)
            questions = _questions(order, base.chat)
            teacher = extras.teacher or base
            _begin(trainer, teacher, old, folder, resumed.checkpoint, questions)
            _go(trainer, controller, resumed.checkpoint)
            _raise_if_stopped(trainer, watching)
        _finish(trainer, base, folder)
    told = [*resumed.notes, note, _alone_note(extras), _masked_note(trainer, order)]
    speed = clock.speed(
        order.batches, order.data.lengths, settings, parts=order.parts, processes=_world()
    )
    return _result(trainer, order, controller, base, folder, speed).noted(*told)


def remedies_of(settings: Train, replayed: bool) -> list[Remedy]:
    """What the recipe asks for, and, where it does not ask for the projection, this one off: it
    measures the conflict.
    """
    made = chosen(settings.remedies)
    wanted = settings.conflict
    if wanted is None:
        wanted = settings.adapter
    if wanted and replayed and settings.remedies.project is None:
        measuring = Project(ProjectSettings())
        measuring.on = False
        made.append(measuring)
    return made


def cut_of(settings: Train, remedies: Sequence[Remedy]) -> Cut:
    apart = any(remedy.separate for remedy in remedies)
    return Cut(_micro_batch_rows(settings), apart=apart, world=_world())


def _micro_batch_rows(settings: Train) -> int:
    if settings.micro_batch_rows is not None:
        return settings.micro_batch_rows
    return GPU_ROWS if torch.cuda.is_available() else CPU_ROWS


def _order(
    rows: Sequence[PlannedRow],
    chat: Chat,
    extras: Extras,
    controller: Controller | None,
    cut: Cut,
    seed: int,
) -> Order:
    if controller is None:
        records = [row.record for row in rows]
        data = TokenisedRows(records, chat, extras.weights, extras.examples)
        return planned_order(rows, data, cut)
    layout = lay_out(rows, controller.inputs)
    data = TokenisedRows(layout.records, chat, extras.weights, extras.examples)
    controlled = ControlledBatches(data, layout, controller, cut, seed=seed)
    return Order(layout.records, data, controlled, controlled.parts)


def planned_order(rows: Sequence[PlannedRow], data: TokenisedRows, cut: Cut) -> Order:
    """The rows, which ``data`` has tokenised, in the order of their plan."""
    apart = [row.record.source != TARGET for row in rows] if cut.apart else None
    batches, parts = micro_batches(
        data.lengths, [row.step for row in rows], rows=cut.rows, apart=apart, world=cut.world
    )
    return Order([row.record for row in rows], data, batches, parts)


def _check(settings: Train, chat: Chat, order: Order, extras: Extras) -> None:
    """Raises RecipeError for what cannot be, and DataError for rows without loss, before the model
    is loaded.
    """
    data = order.data
    if settings.fsdp and (_world() == 1 or chat.only_texts):
        what = "text classifiers are trained whole"
        if not chat.only_texts:
            what = "there is one process; start it with `torchrun --nproc_per_node N -m replaykit`"
        raise RecipeError("the recipe", [f"train.fsdp: {what}, or leave it out"])
    check_packing(settings, chat)
    check_self_distill(settings, chat)
    # EWC can take its Fisher information from old data that it is given.
    needy = [name for name in settings.remedies.need_replay if not (name == "ewc" and extras.old)]
    if needy and not data.replay_rows():
        todo = "it needs replay rows, and the mixture has none; raise mix.ratio"
        more = {"ewc": ", or name old data in train.remedies.ewc.old"}
        raise RecipeError(
            "the recipe", [f"train.remedies.{name}: {todo}{more.get(name, '')}" for name in needy]
        )
    if settings.remedies.consistency is not None:
        _check_pairs(chat, data)
    watched = extras.watched
    if watched is not None and watched.settings.every > order.steps:
        raise RecipeError(
            "the recipe",
            [
                f"train.controller.every: a test every {watched.settings.every:,} steps is none in "
                f"a training of {order.steps:,}; say {order.steps:,} or fewer, or leave the "
                f"controller out"
            ],
        )
    if all(data.masked(index) for index in range(len(data))):
        raise DataError(
            "every answer token of the mixture is masked, so there is nothing to learn; raise "
            "train.remedies.stm.max_perplexity or lower its share, or leave stm out"
        )
    for name in settings.report_to:
        if find_spec(name) is None:
            raise RecipeError(
                "the recipe", [f"train.report_to: {name} is not installed; `pip install {name}`"]
            )


def _check_pairs(chat: Chat, data: TokenisedRows) -> None:
    """Raises RecipeError where no rows can be compared with their counterfactuals."""
    problem = ""
    if chat.seq2seq:
        problem = "it compares the states of a decoder alone, and this is an encoder-decoder"
    elif not data.parent_of:
        problem = (
            "the mixture has no row beside its counterfactual; `replaykit augment "
            "--counterfactual` makes them (augment: {counterfactual: {}}), and `replaykit mix` "
            "takes them in"
        )
    if problem:
        todo = f"train.remedies.consistency: {problem}; or leave it out"
        raise RecipeError("the recipe", [todo])


def _check_wrapping(trainer: ReplayTrainer) -> None:
    """Raises RecipeError for remedies under a wrapper that gives the optimiser other parameters
    than those that the remedies were shown: they would do nothing, and not say so.
    """
    wrapped = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if wrapped and trainer.remedies:
        names = ", ".join(remedy.name for remedy in trainer.remedies)
        raise RecipeError(
            "the recipe",
            [
                f"train.remedies: {names} does nothing under accelerate's FSDP or DeepSpeed; set "
                f"train.fsdp: true and start it with torchrun"
            ],
        )


def check_packing(settings: Train, chat: Chat) -> None:
    """Raises RecipeError where rows are to be packed that cannot be."""
    if settings.packing and chat.seq2seq:
        raise RecipeError(
            "the recipe",
            [
                "train.packing: rows of an encoder-decoder cannot be packed, since its encoder "
                "reads all that stands beside a question, and no positions keep questions apart; "
                "leave it out"
            ],
        )


def check_self_distill(settings: Train, chat: Chat) -> None:
    """Raises RecipeError where a model cannot see the answer in a question and answer it itself."""
    if settings.remedies.self_distill is None:
        return
    what = ""
    if chat.only_texts:
        what = "a text classifier gives labels, and is shown no answer"
    elif chat.seq2seq:
        what = "an encoder-decoder is not drawn from while it learns"
    elif chat.plain:
        what = "a model without a chat template is asked no question"
    if what:
        raise RecipeError(
            "the recipe", [f"train.remedies.self_distill: {what}; leave it out, or say distill"]
        )


def _check_memory(network: Any, settings: Train) -> None:
    """Raises EngineError where what is sure to be needed beside the weights is not free: gradients
    and AdamW's two moments. Several processes may share them out, so there it is not asked.
    """
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in learning)
    moments = moment_bytes(settings) * sum(parameter.numel() for parameter in learning)
    needed = gradients + moments
    free, device = free_memory()
    if needed > free and _world() == 1:
        raise EngineError(
            f"gradients and AdamW's moments take {needed / 1e9:.2f} GB beside the weights, and "
            f"{free / 1e9:.2f} GB are free on {device}; train.method: lora takes least, and "
            f"`replaykit train --dry-run` says what other settings take"
        )


def _world() -> int:
    """How many processes train together, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _questions(order: Order, chat: Chat) -> Callable[[int, str | None], Asked | None]:
    """Rows of the mixture as questions, by their index; each different one is made once."""
    made: dict[tuple[str, str | None], Asked | None] = {}

    def of_row(index: int, prompt: str | None) -> Asked | None:
        record = order.records[index]
        key = (record.id, prompt)
        if key not in made:
            made[key] = asked(record, chat, prompt)
        return made[key]

    return of_row


def _begin(
    trainer: ReplayTrainer,
    base: Base,
    old: TokenisedRows,
    folder: Path,
    checkpoint: str | None,
    questions: Callable[[int, str | None], Asked | None],
) -> None:
    """Lets the remedies see the untrained model, which it still is in a resumed run, and gives them
    back their state.
    """

    def one_by_one(data: TokenisedRows, rows: Iterable[int]) -> Iterator[Batch]:
        for index in rows:
            batch = trainer.data_collator([data[index]])
            trainer.complete(batch)
            yield to_device(batch, trainer.args.device)

    old_rows = None
    if len(old):
        old_rows = partial(one_by_one, old, range(len(old)))
    run = Run(
        model=trainer.model,
        adapter=trainer.settings.adapter,
        folder=folder,
        load_base=lambda: base.load_again().eval().requires_grad_(False),
        replay=lambda: one_by_one(trainer.data, trainer.data.replay_rows()),
        old=old_rows,
        asked=questions,
        seed=trainer.args.seed,
        pairs=_pairs(trainer),
        offload=trainer.settings.offload,
    )
    if checkpoint is not None:
        trainer.check_parts(checkpoint)
    trainer.check_parameters()
    if not base.chat.only_texts:
        check_reading(trainer.model, packing=trainer.settings.packing)
    with as_trained(trainer.model):
        for remedy in trainer.remedies:
            remedy.begin(run)
    if checkpoint is not None:
        restore(trainer.remedies, checkpoint, name=trainer.remedies_file)


def _pairs(trainer: ReplayTrainer) -> Pairs | None:
    """The rows of the mixture that are there with their counterfactuals."""
    data = trainer.data

    def batch(rows: Sequence[int]) -> Batch:
        made = trainer.data_collator([data[index] for index in rows])
        return to_device(made, trainer.args.device)

    if not data.parent_of:
        return None
    return Pairs(data.parent_of, lambda index: data[index]["tokens"].tolist(), batch)


def _go(trainer: ReplayTrainer, controller: Controller | None, checkpoint: str | None) -> None:
    """Trains to the end, from a checkpoint where there is one."""
    if controller is not None and checkpoint is not None:
        controller.restore(checkpoint)
        # It had ended the training, which was cut short before the model was saved.
        if controller.stopped:
            trainer.take(checkpoint)
            return
    trainer.train(resume_from_checkpoint=checkpoint)


@contextmanager
def _memory_told(settings: Train, folder: Path) -> Iterator[None]:
    """An allocation that fails, on a GPU or a CPU, is an EngineError that says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # Of a CPU's allocator there is no class of its own.
        of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not of_memory and "DefaultCPUAllocator" not in str(error):
            raise
        raise EngineError(
            f"out of memory; lower train.micro_batch_rows (now {_micro_batch_rows(settings)}) or "
            f"train.max_tokens, set train.gradient_checkpointing: true, or use train.method: lora; "
            f"{checkpoints.last_whole(folder)}"
        ) from error


def _raise_if_stopped(trainer: ReplayTrainer, watching: WatchCallback) -> None:
    done = trainer.state.global_step
    planned = trainer.state.max_steps
    if not watching.stopped or done >= planned:
        return
    # A cluster that sends SIGTERM asks for an orderly end; 130 is a shell's code for Ctrl-C.
    code = 0 if watching.stopped == signal.SIGTERM else 130
    raise Stopped(
        f"stopped at step {done:,} of {planned:,}, which is saved; the same command goes on from "
        f"there",
        exit_code=code,
    )


def _resumed(folder: Path) -> checkpoints.Found:
    """Where the training goes on, the same in all processes."""
    # The first process decides: another may see the files of a shared disk later.
    found = [checkpoints.Found(None)]
    if int(os.environ.get("RANK", "0")) == 0:
        checkpoints.begin(folder)
        found = [checkpoints.newest_whole(folder)]
        for note in found[0].notes:
            log.warning(note)
    if _world() > 1:
        torch.distributed.broadcast_object_list(found)
    return found[0]


def _arguments(
    settings: Train, folder: Path, seed: int, order: Order
) -> transformers.TrainingArguments:
    gpu = torch.cuda.is_available()
    checkpointing = {"use_reentrant": False} if settings.gradient_checkpointing else None
    return transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=order.steps,
        gradient_accumulation_steps=order.parts // _world(),
        learning_rate=settings.highest_learning_rate,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=settings.precision == "bfloat16" or (settings.precision == "auto" and gpu),
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs=checkpointing,
        seed=seed,
        logging_steps=min(settings.log_every, order.steps),
        # A loss that is not a number shall be seen; ``ReplayTrainer`` raises at it.
        logging_nan_inf_filter=False,
        save_steps=settings.save_every,
        # A batch holds what the remedies read beside what the model's forward pass takes.
        remove_unused_columns=False,
        report_to=settings.report_to or "none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        use_cpu=not gpu,
    )


def _finish(trainer: ReplayTrainer, base: Base, folder: Path) -> None:
    """Saves what was trained, and removes the checkpoints when it is on the disk."""
    for remedy in trainer.remedies:
        remedy.finish()
    trainer.check_parameters()
    network: Any = trainer.model
    if is_sharded(network):
        # Every process takes part, and the first one has it all.
        weights = whole_weights(network)
        if trainer.args.should_save:
            network = loading.untrained(base.name, base.revision)
            network.load_state_dict(weights, assign=True)
            network.tie_weights()
    if trainer.args.should_save:
        _save(network, base, folder, trainer.settings)
        for name in ("model", "adapter"):
            checkpoints.to_disk(folder / name)
        checkpoints.remove_all(folder)


def _save(network: Any, base: Base, folder: Path, settings: Train) -> None:
    """Safetensors, in the precision that the base came in, with the tokenizer beside them; renamed
    when whole.
    """
    if settings.adapter:
        network.save_pretrained(folder / "adapter")
        if settings.method == "qlora":
            import peft

            # The adapter is merged into the base as it is stored, not into its 4 bits.
            network = peft.PeftModel.from_pretrained(base.load_again(), folder / "adapter")
        network = merge(network)
    unfinished = folder / "model.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    dtype = loading.stored_dtype(base.name, base.revision)
    loading.save_model(network.to(dtype or torch.float32), unfinished)
    if not checkpoints.finite(unfinished):
        raise EngineError(
            f"the tuned model is not finite as {dtype}, the precision of the base, so it is not "
            f"saved. {ADVICE}; {checkpoints.last_whole(folder)}"
        )
    if not base.chat.only_texts:
        loading.keep_generation_config(base.name, base.revision, unfinished)
    base.chat.tokenizer.save_pretrained(unfinished)
    # A training that was killed between here and its manifest has left one.
    shutil.rmtree(folder / "model", ignore_errors=True)
    unfinished.rename(folder / "model")


def _result(
    trainer: ReplayTrainer,
    order: Order,
    controller: Controller | None,
    base: Base,
    folder: Path,
    speed: Speed | None,
) -> TrainResult:
    # The last entry of the history is a summary without a loss.
    losses = [_log(entry) for entry in trainer.state.log_history if "loss" in entry]
    # A controller ends a training early, so the order may have more steps than were done.
    trained = islice(order.batches, trainer.state.global_step * order.parts)
    return TrainResult(
        steps=trainer.state.global_step,
        loss=losses[-1]["loss"],
        losses=losses,
        tokens=sum(order.data.lengths[place] for batch in trained for place in batch),
        speed=speed,
        events=None if controller is None else controller.events,
        model=str(folder / "model"),
        adapter=str(folder / "adapter") if trainer.settings.adapter else None,
        base=base.name,
        revision=base.revision,
    )


def _alone_note(extras: Extras) -> str:
    """What a controller without old skills does."""
    if extras.watched is None or extras.watched.old:
        return ""
    return (
        "train.controller watched only the loss on eval.target, for patience: eval.old names no "
        "old skills to test"
    )


def _masked_note(trainer: ReplayTrainer, order: Order) -> str:
    """How many steps moved nothing, since each of their tokens is masked."""
    done = trainer.state.global_step
    batches = iter(order.batches)
    masked = 0
    for _ in range(done):
        rows = chain.from_iterable(islice(batches, order.parts))
        masked += all(order.data.masked(index) for index in list(rows))
    if not masked:
        return ""
    return f"{masked:,} of {done:,} steps moved nothing: every answer token of their rows is masked"


def _log(entry: Mapping[str, float]) -> dict[str, float]:
    """Of what the Trainer logged: the step, the losses, the rate, the gradient's norm, and what
    has a name with a slash, by source or by remedy.
    """
    kept = {}
    for key, value in entry.items():
        if key == "step":
            kept[key] = value
        elif key == "grad_norm" or key.startswith("l") or "/" in key:
            kept[key] = round(float(value), 8)
    return kept


def _quiet() -> None:
    """transformers tells its progress on its own; here a Watch does."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # PEFT brings bitsandbytes in wherever it is installed, which then speaks of missing kernels.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
