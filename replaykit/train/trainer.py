"""The trainer: transformers.Trainer with the plan's order, one weight a token, and the loss of
every source by itself.

The loss of a step is the sum of weight x negative log-likelihood over its answer tokens, divided by
the sum of the weights; it is the same however the step is cut into micro-batches, and by however
many processes they are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from replaykit.errors import EngineError
from replaykit.head import Head, inputs, split_head
from replaykit.runs import Watch
from replaykit.train.batches import IGNORED, Planned, by_row
from replaykit.train.losses import Online, cross_entropy, summed
from replaykit.train.parameters import Stages, parameter_groups, rate_factors
from replaykit.train.remedies import Batch, Remedy, Term, store
from replaykit.training_settings import Remedies, Train

LEAST = 1e-8  # weight of a step in which every token is masked


class ReplayTrainer(transformers.Trainer):
    """A Trainer over ready micro-batches, lists of row indices of ``data``, so many of which make
    one optimiser step.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the weight of the whole step

    def __init__(
        self,
        *,
        batches: Any,
        data: Planned,
        settings: Train,
        remedies: Sequence[Remedy],
        **options: Any,
    ) -> None:
        super().__init__(train_dataset=data, **options)
        self.batches = batches
        self.data = data
        self.settings = settings
        self.remedies = remedies
        self.head: Head | None = (
            None if self.is_fsdp_enabled or self.is_deepspeed_enabled else split_head(self.model)
        )
        self.stages = Stages(
            self.model, settings, steps=self.args.max_steps, alone=self.args.world_size == 1
        )
        self._online = online(settings.remedies)
        self._sums = torch.zeros(len(data.sources), 2, dtype=torch.float64, device=self.args.device)
        self._step_loss = torch.zeros((), device=self.args.device)
        self._step_rows = list[torch.Tensor]()

    # --- the order --------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = DataLoader(
            self.data,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            pin_memory=torch.cuda.is_available(),
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of a step, and the weight of all its tokens in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = sum((batch["loss_weight"].sum() for batch in batches), torch.zeros(())).to(device)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total[None]).sum()
        return batches, total.clamp(min=LEAST)

    # --- the loss ---------------------------------------------------------------------------------

    @property
    def acting(self) -> list[Remedy]:
        return [remedy for remedy in self.remedies if remedy.on]

    def compute_loss(
        self, model: Any, batch: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        self.complete(batch)
        where, weight = self._where(batch)
        targets = batch["labels"][where]
        losses = torch.zeros(len(targets), dtype=torch.float32, device=targets.device)
        objective = cross_entropy(targets, weight[where], online=self._online, losses=losses)
        total = self._total(model, batch, where, objective)
        for remedy in self.acting:
            if (penalty := remedy.penalty(batch)) is not None:
                total = total + penalty
        self._count(batch, where, losses)
        world = self.args.world_size  # whose gradients are averaged
        loss = total * (world / num_items_in_batch)
        self._step_loss += loss.detach()
        self._step_rows.append(batch["index"])
        return loss

    def complete(self, batch: Batch) -> None:
        """Adds what a decoder beside an encoder reads: its answer so far."""
        if self.model.config.is_encoder_decoder:
            batch["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(
                labels=batch["labels"]
            )

    def _where(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Where logits are needed, [rows, length], and each position's weight in the
        cross-entropy.
        """
        weight = batch["loss_weight"]
        where = weight != 0
        for remedy in self.acting:
            if (more := remedy.positions(batch)) is not None:
                where = where | more
            if (kept := remedy.keeps(batch)) is not None:
                weight = weight * kept
        return where & (batch["labels"] != IGNORED), weight

    def _total(
        self, model: Any, batch: Batch, where: torch.Tensor, objective: Term
    ) -> torch.Tensor:
        """The objective and the remedies' terms, summed over the positions."""
        given = (
            self.head.hidden(model, batch)[where]
            if self.head
            else model(**inputs(batch)).logits[where]
        )
        terms = [
            objective,
            *(term for remedy in self.acting if (term := remedy.term(batch, where)) is not None),
        ]

        def all_terms(logits: torch.Tensor, part: slice) -> torch.Tensor:
            return torch.stack([term(logits, part) for term in terms]).sum()

        if self.head is not None:
            return summed(given, self.head, all_terms)
        return all_terms(given.float(), slice(0, len(given)))

    def _count(self, batch: Batch, where: torch.Tensor, losses: torch.Tensor) -> None:
        source = by_row(batch, "source")[where]
        for column, values in enumerate((losses, torch.ones_like(losses))):
            self._sums[:, column] += torch.bincount(
                source, weights=values.double(), minlength=len(self._sums)
            )

    # --- the step ---------------------------------------------------------------------------------

    def training_step(
        self, model: Any, batch: Batch, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        if not self._step_rows:
            self.stages.begin(self.state.global_step)
        loss = super().training_step(model, batch, num_items_in_batch)
        told = [remedy for remedy in self.remedies if remedy.on or remedy.watches]
        for remedy in told:
            remedy.backward_done(replay=batch["replay_only"])
        if self.accelerator.sync_gradients:
            self._check_loss()
            self.stages.gradients(self.state.global_step)
            for remedy in told:
                remedy.gradients()
        return loss

    def _check_loss(self) -> None:
        """Raises EngineError, naming the rows of the step, if its loss is not finite."""
        if not torch.isfinite(self._step_loss):
            rows = [
                index for indices in self._step_rows for index in indices.tolist() if index >= 0
            ]
            ids = list(dict.fromkeys(self.data.id_of(index) for index in rows))
            raise EngineError(
                f"the loss is {self._step_loss.item()} at step {self.state.global_step}, in the "
                f"rows "
                f"{', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}; the last good checkpoint "
                f"is in "
                f"{self.args.output_dir}. A lower train.learning_rate or train.max_grad_norm "
                f"usually mends it"
            )
        self._step_loss.zero_()
        self._step_rows.clear()

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            made = cls(parameter_groups(self.model, self.settings), **options)
            self.optimizer: Any = made
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            factor = rate_factors(self.settings, num_training_steps)
            self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, factor
            )
        return self.lr_scheduler

    # --- what is written --------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds loss/<source>, in nats a token since the last log, and what the remedies
        measured.
        """
        if "loss" in logs:
            if self.args.world_size > 1:
                torch.distributed.all_reduce(self._sums)
            means = (self._sums[:, 0] / self._sums[:, 1]).tolist()
            logs |= {
                f"loss/{name}": mean
                for name, mean in zip(self.data.sources, means, strict=True)
                if mean == mean
            }
            self._sums.zero_()
            for remedy in self.remedies:
                logs |= {
                    f"{remedy.name}/{name}": value for name, value in remedy.measures().items()
                }
        super().log(logs, start_time)

    def take(self, checkpoint: str) -> None:
        """The model and the logs of a checkpoint, after which there is nothing to train."""
        self._load_from_checkpoint(checkpoint)
        self.state = transformers.TrainerState.load_from_json(
            str(Path(checkpoint) / "trainer_state.json")
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint has the remedies' state beside the model."""
        super().save_model(output_dir, _internal_call)
        if output_dir is not None and self.args.should_save:
            store(self.remedies, output_dir)


def online(settings: Remedies) -> Online | None:
    """The weights that come from the model's own logits while it learns, if the recipe asks for
    any.
    """
    if not settings.dft and settings.eaft is None:
        return None
    from replaykit.train.remedies.weights import dft, eaft

    if settings.dft:
        return lambda _, logp: dft(logp)
    if (own := settings.eaft) is not None:
        return lambda logits, _: eaft(logits, own.top_k, own.alpha)
    return None


class Watching(transformers.TrainerCallback):
    """Tells a Watch how many steps are done, the remedies that one is, and ends the training where
    that is asked for.

    ``stopped`` is the signal that asked, 0 where none did; in several processes it is the same in
    all, whichever got it.
    """

    def __init__(self, watch: Watch, what: str, remedies: Sequence[Remedy], stopping: Any):
        self.watch = watch
        self.what = what
        self.remedies = remedies
        self._asked = stopping
        self.stopped = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch(self.what, state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for remedy in self.remedies:
            if remedy.on:
                remedy.stepped()
        self.watch(self.what, state.global_step, state.max_steps)
        if state.global_step >= state.max_steps:
            control.should_log = True
        self.stopped = self._asked()
        if args.world_size > 1:
            asked = torch.tensor(self.stopped, device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self.stopped = int(asked)
        if self.stopped:
            control.should_save = control.should_training_stop = True
