"""One training, from the rows of a mixture to a folder with the tuned model.

    train(records, steps, model="llama3", chat=chat, settings=Train(), seed=1, folder=Path("runs/my-task/train"))

A run that was cut short goes on from its last whole checkpoint with the identical order of rows,
weights and remedies. Started with torchrun, every process takes its part of each step's
micro-batches.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState

from replaykit import models, training_settings
from replaykit.chat import Chat
from replaykit.errors import EngineError, RecipeError, Stopped
from replaykit.head import as_trained
from replaykit.mix.plan import TARGET
from replaykit.records import Record
from replaykit.runs import Watch, stop_on_signal, unwatched
from replaykit.train.batches import Planned, collate, micro_batches
from replaykit.train.beside import Beside, Watched, laid_out
from replaykit.train.controller import Controller
from replaykit.train.parameters import adapted, learning_rate, quantised
from replaykit.train.remedies import Batch, Remedy, Run, chosen, restore
from replaykit.train.remedies.project import Project
from replaykit.train.trainer import ReplayTrainer, Watching
from replaykit.training_settings import Train

# of a micro-batch, where the recipe gives none
CPU_ROWS = 16
GPU_ROWS = 8


@dataclass(frozen=True)
class Base:
    """The model that is trained: its name as in the recipe, and its revision on the Hub."""

    name: str
    revision: str | None = None

    def load(self, settings: Train) -> Any:
        # Packed rows are kept apart by a mask of [length, length], unless the kernel takes where
        # each begins.
        wide = settings.precision == "float32"
        kernel = (
            settings.packing
            and not wide
            and torch.cuda.is_available()
            and find_spec("flash_attn") is not None
        )
        return models.load_model(
            self.name,
            self.revision,
            train=wide or not settings.adapter,
            quantisation=quantised(settings),
            attention="flash_attention_2" if kernel else None,
        )


@dataclass(frozen=True)
class Order:
    """The rows, their micro-batches in the order of training, and how many of these make one
    optimiser step.
    """

    data: Planned
    batches: list[list[int]] | Beside
    parts: int
    controller: Controller | None = None


def train(
    records: Sequence[Record],
    steps: Sequence[int],
    *,
    model: str,
    chat: Chat,
    settings: Train,
    seed: int,
    folder: Path,
    revision: str | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    old: Sequence[Record] = (),
    watched: Watched | None = None,
    callbacks: Sequence[transformers.TrainerCallback] = (),
    what: str = "train",
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Trains on the records, record i in optimiser step ``steps[i]``, and saves the tuned model to
    ``folder``/model.

    ``weights`` are those of the answer tokens by record id, where they are not 1. ``old`` are old
    data for the Fisher information of ewc, instead of the replay rows. With ``watched``, replay is
    drawn anew beside the target rows as a controller decides. ``callbacks`` are told what those of
    any Trainer are. With an adapter, it is saved to ``folder``/adapter, and the merged model to
    ``folder``/model. Returns steps, loss, losses (of every log), the tokens of the trained rows,
    and the controller's events. Raises EngineError if the loss is not finite or the memory is too
    small, RecipeError for what cannot combine, and Stopped, with a checkpoint written, after SIGINT
    or SIGTERM.
    """
    _quiet()
    if _world() > 1:
        PartialState(
            cpu=not torch.cuda.is_available()
        ).wait_for_everyone()  # the first one has made the folder
    transformers.set_seed(seed)
    replayed = watched is not None or any(record.source != TARGET for record in records)
    remedies = _remedies(settings, replayed)
    base = Base(model, revision)
    order = _order(records, steps, chat, settings, seed, folder, weights, watched, remedies, watch)
    _check(settings, chat, order.data, old)
    network = adapted(base.load(settings), settings)
    pad = chat.tokenizer.pad_token_id if chat.tokenizer.pad_token_id is not None else chat.stop[0]
    collator = partial(collate, pad=pad, packing=settings.packing, seq2seq=chat.seq2seq)
    with stop_on_signal(signal.SIGTERM) as stopping:
        watching = Watching(watch, what, remedies, stopping)
        own = [watching, *([order.controller] if order.controller else [])]
        trainer = ReplayTrainer(
            batches=order.batches,
            data=order.data,
            settings=settings,
            remedies=remedies,
            model=network,
            args=_arguments(
                settings,
                folder,
                seed,
                steps=len(order.batches) // order.parts,
                parts=order.parts // _world(),
            ),
            data_collator=collator,
            callbacks=[*own, *callbacks],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        checkpoint = last_checkpoint(folder)
        _begin(trainer, remedies, base, Planned(old, chat), folder, checkpoint)
        if order.controller is not None and checkpoint is not None:
            order.controller.restore(checkpoint)
            if order.controller.stopped:
                trainer.take(checkpoint)
        if order.controller is None or not order.controller.stopped:
            _go(trainer, checkpoint, settings)
        done = trainer.state.global_step
        planned = trainer.state.max_steps
        if watching.stopped and done < planned:
            raise Stopped(
                f"stopped at step {done:,} of {planned:,}, which is saved; the same command goes "
                f"on from there",
                exit_code=0 if watching.stopped == signal.SIGTERM else 130,
            )
    for remedy in remedies:
        remedy.finish()
    if trainer.args.should_save:
        _save(trainer.model, chat, folder, base, settings)
        for left in folder.glob("checkpoint-*"):
            shutil.rmtree(left)
    return _result(trainer, order)


def _remedies(settings: Train, replayed: bool) -> list[Remedy]:
    """What the recipe asks for, and, where it does not ask for the projection, this one off: it
    measures the conflict.
    """
    made = chosen(settings.remedies)
    wanted = settings.adapter if settings.conflict is None else settings.conflict
    if wanted and replayed and settings.remedies.project is None:
        measuring = Project(training_settings.Project())
        measuring.on = False
        made.append(measuring)
    return made


def _result(trainer: ReplayTrainer, order: Order) -> dict[str, Any]:
    losses = [_log(entry) for entry in trainer.state.log_history if "loss" in entry]
    trained = islice(order.batches, trainer.state.global_step * order.parts)
    return {
        "steps": trainer.state.global_step,
        "loss": losses[-1]["loss"],
        "losses": losses,
        "tokens": sum(order.data.lengths[place] for batch in trained for place in batch),
        **({"events": order.controller.events} if order.controller else {}),
    }


def _order(
    records: Sequence[Record],
    steps: Sequence[int],
    chat: Chat,
    settings: Train,
    seed: int,
    folder: Path,
    weights: Mapping[str, np.ndarray] | None,
    watched: Watched | None,
    remedies: Sequence[Remedy],
    watch: Watch,
) -> Order:
    rows = settings.micro_batch_rows or (GPU_ROWS if torch.cuda.is_available() else CPU_ROWS)
    separate = any(remedy.separate for remedy in remedies)
    if watched is None:
        data = Planned(records, chat, weights)
        apart = [record.source != TARGET for record in records] if separate else None
        return Order(
            data, *micro_batches(data.lengths, steps, rows=rows, apart=apart, world=_world())
        )
    records, target_steps, pools = laid_out(records, steps, watched)
    data = Planned(records, chat, weights)
    controller = Controller(
        watched.settings,
        chat,
        old=watched.old,
        target=watched.target,
        ratio=watched.mix.ratio,
        folder=folder,
        remedies=remedies,
        watch=watch,
    )
    beside = Beside(
        data,
        target_steps,
        pools,
        controller,
        watched,
        seed=seed,
        rows=rows,
        apart=separate,
        world=_world(),
    )
    return Order(data, beside, beside.parts, controller)


def _check(settings: Train, chat: Chat, data: Planned, old: Sequence[Record]) -> None:
    """Raises before the model is loaded."""
    if settings.packing and chat.seq2seq:
        raise RecipeError(
            "the recipe",
            ["train.packing: rows of an encoder-decoder cannot be packed; leave it out"],
        )
    needy = [name for name in settings.remedies.need_replay if not (name == "ewc" and old)]
    if needy and not data.replay_rows():
        todo = "it needs replay rows, and the mixture has none; raise mix.ratio"
        more = {"ewc": ", or name old data in train.remedies.ewc.old"}
        raise RecipeError(
            "the recipe", [f"train.remedies.{name}: {todo}{more.get(name, '')}" for name in needy]
        )
    for name in settings.report_to:
        if find_spec(name) is None:
            raise RecipeError(
                "the recipe", [f"train.report_to: {name} is not installed; `pip install {name}`"]
            )


def _world() -> int:
    """How many processes train together, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _begin(
    trainer: ReplayTrainer,
    remedies: Sequence[Remedy],
    base: Base,
    old: Planned,
    folder: Path,
    checkpoint: str | None,
) -> None:
    """Lets the remedies see the untrained model, which it still is in a resumed run, and gives them
    back their state.
    """

    def one_by_one(data: Planned, rows: Iterable[int]) -> Iterator[Batch]:
        for index in rows:
            batch = trainer.data_collator([data[index]])
            trainer.complete(batch)
            yield {
                key: value.to(trainer.args.device) if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
            }

    def load_base() -> torch.nn.Module:
        return models.load_model(base.name, base.revision).eval().requires_grad_(False)

    run = Run(
        model=trainer.model,
        adapter=trainer.settings.adapter,
        folder=folder,
        load_base=load_base,
        replay=lambda: one_by_one(trainer.data, trainer.data.replay_rows()),
        old=(lambda: one_by_one(old, range(len(old)))) if len(old) else None,
    )
    with as_trained(trainer.model):
        for remedy in remedies:
            remedy.begin(run)
    if checkpoint is not None:
        restore(remedies, checkpoint)


def _go(trainer: ReplayTrainer, checkpoint: str | None, settings: Train) -> None:
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"out of memory; lower train.micro_batch_rows (now "
            f"{settings.micro_batch_rows or GPU_ROWS}) or "
            f"train.max_tokens, set "
            f"train.gradient_checkpointing: true, or use train.method: lora. The last checkpoint "
            f"is in "
            f"{trainer.args.output_dir}"
        ) from error


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end (trainer_state.json is written last);
    others are removed.
    """
    whole: list[tuple[int, Path]] = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            state = json.loads((checkpoint / "trainer_state.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(checkpoint, ignore_errors=True)  # other processes do so, too
            continue
        whole.append((state["global_step"], checkpoint))
    return str(max(whole)[1]) if whole else None


def _arguments(
    settings: Train, folder: Path, seed: int, *, steps: int, parts: int
) -> transformers.TrainingArguments:
    gpu = torch.cuda.is_available()
    return transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        gradient_accumulation_steps=parts,
        learning_rate=learning_rate(settings),
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=settings.precision == "bfloat16" or (settings.precision == "auto" and gpu),
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False}
        if settings.gradient_checkpointing
        else None,
        seed=seed,
        logging_steps=min(settings.log_every, steps),
        logging_nan_inf_filter=False,
        save_steps=settings.save_every,
        save_total_limit=2,
        remove_unused_columns=False,
        report_to=settings.report_to or "none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        use_cpu=not gpu,
    )


def _save(network: Any, chat: Chat, folder: Path, base: Base, settings: Train) -> None:
    """Safetensors, in the precision that the base came in, with the tokenizer beside them; renamed
    when whole.
    """
    if settings.adapter:
        network.save_pretrained(folder / "adapter")
        if settings.method == "qlora":  # the adapter on the base as it is, not as 4 bits
            import peft

            network = peft.PeftModel.from_pretrained(
                models.load_model(base.name, base.revision), folder / "adapter"
            )
        network = network.merge_and_unload()
    unfinished = folder / "model.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    dtype = models.stored_dtype(base.name, base.revision)
    network.to(dtype or torch.float32).save_pretrained(unfinished)
    chat.tokenizer.save_pretrained(unfinished)
    shutil.rmtree(
        folder / "model", ignore_errors=True
    )  # of a training that was killed before its manifest
    unfinished.rename(folder / "model")


def _log(entry: dict[str, Any]) -> dict[str, float]:
    kept = {
        key: value
        for key, value in entry.items()
        if key in ("step", "grad_norm") or key.startswith("l") or "/" in key
    }
    return {key: value if key == "step" else round(float(value), 8) for key, value in kept.items()}


def _quiet() -> None:
    """transformers tells its progress on its own; here a Watch does."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
