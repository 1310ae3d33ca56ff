"""The trainer: transformers.Trainer with the plan's order, one weight a token, and the loss of every source by itself.

The loss of a step is the sum of weight x negative log-likelihood over its answer tokens, divided by how many there are;
it is the same however the step is cut into micro-batches.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from replaykit import models
from replaykit.chat import Chat
from replaykit.errors import EngineError, RunError
from replaykit.recipe import Train
from replaykit.records import Record
from replaykit.runs import Watch, unwatched
from replaykit.train.batches import IGNORED, Planned, collate, micro_batches

LEARNING_RATES = {"full": 1e-5, "lora": 2e-4}  # where the recipe gives none
CPU_ROWS, GPU_ROWS = 16, 8  # of a micro-batch, where the recipe gives none


class ReplayTrainer(transformers.Trainer):
    """A Trainer over ready micro-batches. ``batches`` are row indices, ``sources`` the names of the source indices."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the tokens of the whole step

    def __init__(self, *, batches: Sequence[list[int]], sources: Sequence[str], **options: Any):
        super().__init__(**options)
        self.batches, self.sources = batches, sources
        self.model_accepts_loss_kwargs = True  # so that the tokens of the whole step are counted for compute_loss
        self._sums = torch.zeros(len(sources), 2, dtype=torch.float64)

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            pin_memory=torch.cuda.is_available(),
        )
        return self.accelerator.prepare(loader)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels, weight = inputs["labels"][:, 1:], inputs["loss_weight"][:, 1:]
        outputs = model(input_ids=inputs["input_ids"], use_cache=False)
        counted = labels != IGNORED
        losses = torch.nn.functional.cross_entropy(
            outputs.logits[:, :-1][counted].float(), labels[counted], reduction="none"
        )
        loss = (losses * weight[counted]).sum() / num_items_in_batch
        if not torch.isfinite(loss):
            raise EngineError(
                f"the loss is {loss.item()} at step {self.state.global_step}; the last checkpoint is in "
                f"{self.args.output_dir}. A lower train.learning_rate or train.max_grad_norm usually mends it"
            )
        source = inputs["source"][:, None].expand_as(labels)[counted]
        self._sums += torch.stack(
            [torch.bincount(source, weights=values.detach().double(), minlength=len(self.sources))
             for values in (losses, torch.ones_like(losses))], dim=1,
        ).cpu()  # fmt: skip
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds loss/<source>, in nats a token since the last log."""
        if "loss" in logs:
            means = (self._sums[:, 0] / self._sums[:, 1]).tolist()
            logs |= {f"loss/{name}": mean for name, mean in zip(self.sources, means, strict=True) if mean == mean}
            self._sums.zero_()
        super().log(logs, start_time)


class _Watching(transformers.TrainerCallback):
    """Tells a Watch how many steps are done."""

    def __init__(self, watch: Watch, what: str):
        self.watch, self.what = watch, what

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch(self.what, state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch(self.what, state.global_step, state.max_steps)


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
    what: str = "train",
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Trains on the records, record i in optimiser step ``steps[i]``, and saves the tuned model to ``folder``/model.

    Continues from the last whole checkpoint in ``folder``, with the identical order of rows. With lora the adapter is
    saved to ``folder``/adapter, and the merged model to ``folder``/model. Returns steps, loss, losses (of every log) and
    trained tokens. Raises EngineError if the loss is not finite or the memory is too small.
    """
    _quiet()
    transformers.set_seed(seed)
    data = Planned(records, chat)
    gpu = torch.cuda.is_available()
    batches, parts = micro_batches(
        data.lengths, steps, rows=settings.micro_batch_rows or (GPU_ROWS if gpu else CPU_ROWS)
    )
    network = models.load_model(model, revision, train=settings.method == "full")
    pad = chat.tokenizer.pad_token_id if chat.tokenizer.pad_token_id is not None else chat.stop[0]
    trainer = ReplayTrainer(
        batches=batches,
        sources=data.sources,
        model=_adapted(network, settings),
        args=_arguments(settings, folder, seed, steps=len(batches) // parts, parts=parts, gpu=gpu),
        train_dataset=data,
        data_collator=partial(collate, pad=pad),
        callbacks=[_Watching(watch, what)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"out of memory; lower train.micro_batch_rows (now {max(map(len, batches))}) or train.max_tokens, or use "
            f"train.method: lora. The last checkpoint is in {folder}"
        ) from error
    _save(trainer.model, chat, folder, models.stored_dtype(model, revision), lora=settings.method == "lora")
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    losses = [_log(entry) for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": trainer.state.global_step,
        "loss": losses[-1]["loss"],
        "losses": losses,
        "tokens": sum(data.lengths),
    }


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end (trainer_state.json is written last); others are removed."""
    whole: list[tuple[int, Path]] = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            state = json.loads((checkpoint / "trainer_state.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(checkpoint)
            continue
        whole.append((state["global_step"], checkpoint))
    return str(max(whole)[1]) if whole else None


def _arguments(
    settings: Train, folder: Path, seed: int, *, steps: int, parts: int, gpu: bool
) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        gradient_accumulation_steps=parts,
        learning_rate=settings.learning_rate or LEARNING_RATES[settings.method],
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=gpu,
        seed=seed,
        logging_steps=min(settings.log_every, steps),
        logging_nan_inf_filter=False,
        save_steps=settings.save_every,
        save_total_limit=2,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )


def _adapted(network: Any, settings: Train) -> Any:
    """The model, under a LoRA adapter on all its linear layers if the recipe says so."""
    if settings.method == "full":
        return network
    import peft

    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(network, config)


def _save(model: Any, chat: Chat, folder: Path, dtype: torch.dtype | None, *, lora: bool) -> None:
    """Safetensors, in the precision that the base came in, with the tokenizer beside them; renamed when whole."""
    if lora:
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
    unfinished = folder / "model.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    model.to(dtype or torch.float32).save_pretrained(unfinished)
    chat.tokenizer.save_pretrained(unfinished)
    if (folder / "model").exists():
        raise RunError(f"{folder / 'model'} is there already; --force trains anew")
    unfinished.rename(folder / "model")


def _log(entry: dict[str, Any]) -> dict[str, float]:
    kept = {key: value for key, value in entry.items() if key in ("step", "grad_norm") or key.startswith("l")}
    return {key: value if key == "step" else round(float(value), 8) for key, value in kept.items()}


def _quiet() -> None:
    """transformers tells its progress on its own; here a Watch does."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
