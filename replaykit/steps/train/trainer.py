"""The trainer: transformers.Trainer with the plan's order, one weight a token, and the loss of
every source by itself.

The loss of a step is the sum of weight x negative log-likelihood over its answer tokens, divided by
the sum of the weights; it is the same however the step is cut into micro-batches, and by however
many processes they are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from replaykit.errors import EngineError
from replaykit.model.lm_head import Batch, Head, inputs, split_head
from replaykit.model.logprobs import IGNORED
from replaykit.recipe.remedies import Remedies
from replaykit.recipe.train import Train
from replaykit.runs import Watch
from replaykit.steps.train.batches import TokenisedRows, by_row
from replaykit.steps.train.losses import Online, cross_entropy, summed
from replaykit.steps.train.parameters import Stages, parameter_groups, rate_factors
from replaykit.steps.train.remedies import Remedy, Term, store

# Of a step in which every token is masked: its loss is 0, and 0 / 0 would be none.
LEAST_WEIGHT = 1e-8


class ReplayTrainer(transformers.Trainer):
    """A Trainer over ready micro-batches, lists of row indices of ``data``; the arguments'
    gradient_accumulation_steps says how many of them each process takes in a step.
    """

    # compute_loss divides by the weight of the whole step, so the Trainer shall not divide again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        batches: Any,
        data: TokenisedRows,
        settings: Train,
        remedies: Sequence[Remedy],
        **options: Any,
    ) -> None:
        super().__init__(train_dataset=data, **options)
        self.batches = batches
        self.data = data
        self.settings = settings
        self.remedies = remedies
        self.head: Head | None = None
        # Where the weights are spread over several GPUs, the head is whole only in a forward pass.
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self.head = split_head(self.model)
        self.stages = Stages(
            self.model, settings, steps=self.args.max_steps, alone=self.args.world_size == 1
        )
        self._online = online(settings.remedies)
        # Of each source since the last log: the losses of its answer tokens, and their number.
        self._sums = torch.zeros(len(data.sources), 2, dtype=torch.float64, device=self.args.device)
        # Of the step under way: its loss, and the rows of its micro-batches.
        self._step_loss = torch.zeros((), device=self.args.device)
        self._step_rows: list[torch.Tensor] = []

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
        return batches, total.clamp(min=LEAST_WEIGHT)

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
            penalty = remedy.penalty(batch)
            if penalty is not None:
                total = total + penalty
        self._count(batch, where, losses)
        # The gradients of the processes are averaged, and the loss of a step is a sum over them.
        loss = total * (self.args.world_size / num_items_in_batch)
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
            more = remedy.positions(batch)
            if more is not None:
                where = where | more
            kept = remedy.keeps(batch)
            if kept is not None:
                weight = weight * kept
        return where & (batch["labels"] != IGNORED), weight

    def _total(
        self, model: Any, batch: Batch, where: torch.Tensor, objective: Term
    ) -> torch.Tensor:
        """The objective and the remedies' terms, summed over the positions."""
        # The forward pass comes first: a remedy may have listened to it for its term.
        if self.head is not None:
            given = self.head.hidden(model, batch)[where]
        else:
            given = model(**inputs(batch)).logits[where]
        own = [remedy.term(batch, where) for remedy in self.acting]
        terms = [objective, *(term for term in own if term is not None)]

        def all_terms(logits: torch.Tensor, part: slice) -> torch.Tensor:
            return torch.stack([term(logits, part) for term in terms]).sum()

        if self.head is not None:
            return summed(given, self.head, all_terms)
        return all_terms(given.float(), slice(0, len(given)))

    def _count(self, batch: Batch, where: torch.Tensor, losses: torch.Tensor) -> None:
        """Adds the losses of the batch to those of its sources."""
        source = by_row(batch, "source")[where]
        for column, values in enumerate((losses, torch.ones_like(losses))):
            self._sums[:, column] += torch.bincount(
                source, weights=values.double(), minlength=len(self._sums)
            )

    # --- the step ---------------------------------------------------------------------------------

    def training_step(
        self, model: Any, batch: Batch, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        # The first micro-batch of a step.
        if not self._step_rows:
            self.stages.begin(self.state.global_step)
        loss = super().training_step(model, batch, num_items_in_batch)
        told = [remedy for remedy in self.remedies if remedy.on or remedy.watches]
        for remedy in told:
            remedy.backward_done(replay=batch["replay_only"])
        # The last one: the gradients of the step are whole, and the optimiser is next.
        if self.accelerator.sync_gradients:
            self._check_loss()
            self.stages.gradients(self.state.global_step)
            for remedy in told:
                remedy.gradients()
        return loss

    def _check_loss(self) -> None:
        """Raises EngineError, naming the rows of the step, if its loss is not finite."""
        if torch.isfinite(self._step_loss):
            self._step_loss.zero_()
            self._step_rows.clear()
            return
        # -1 stands for a micro-batch without rows.
        rows = [index for indices in self._step_rows for index in indices.tolist() if index >= 0]
        ids = list(dict.fromkeys(self.data.id_of(index) for index in rows))
        named = ", ".join(ids[:8]) + (" ..." if len(ids) > 8 else "")
        raise EngineError(
            f"the loss is {self._step_loss.item()} at step {self.state.global_step}, in the rows "
            f"{named}; the last good checkpoint is in {self.args.output_dir}. A lower "
            f"train.learning_rate or train.max_grad_norm usually mends it"
        )

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
            for source, mean in zip(self.data.sources, means, strict=True):
                # NaN is of a source without a token since the last log.
                if not math.isnan(mean):
                    logs[f"loss/{source}"] = mean
            self._sums.zero_()
            for remedy in self.remedies:
                for name, value in remedy.measures().items():
                    logs[f"{remedy.name}/{name}"] = value
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
    from replaykit.steps.train.remedies.weights import dft, eaft

    if settings.dft:
        return lambda _, logp: dft(logp)
    own = settings.eaft
    if own is not None:
        return lambda logits, _: eaft(logits, own.top_k, own.alpha)
    return None


class WatchCallback(transformers.TrainerCallback):
    """Tells a Watch how many steps are done, the remedies that one is, and ends the training where
    a signal asked for it.

    ``stopped`` is that signal, 0 where there was none; in several processes it is the same in all,
    whichever got it.
    """

    def __init__(
        self, watch: Watch, what: str, remedies: Sequence[Remedy], signalled: Callable[[], int]
    ):
        self.watch = watch
        self.what = what
        self.remedies = remedies
        self.stopped = 0
        self._signalled = signalled

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch(self.what, state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for remedy in self.remedies:
            if remedy.on:
                remedy.stepped()
        self.watch(self.what, state.global_step, state.max_steps)
        # The end is logged, whatever log_every is: it is the result's loss.
        if state.global_step >= state.max_steps:
            control.should_log = True
        self.stopped = self._signalled()
        # A process that stopped alone would leave the others waiting for its gradients.
        if args.world_size > 1:
            signalled = torch.tensor(self.stopped, device=args.device)
            torch.distributed.all_reduce(signalled, torch.distributed.ReduceOp.MAX)
            self.stopped = int(signalled)
        if self.stopped:
            control.should_save = control.should_training_stop = True
