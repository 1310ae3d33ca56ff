"""The trainer: transformers.Trainer with the plan's order, one weight a token, and the loss of
every source by itself.

The loss of a step is the sum of weight x negative log-likelihood over its answer tokens, divided by
the sum of the weights; it is the same however the step is cut into micro-batches, and by however
many processes they are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader

from replaykit.errors import EngineError
from replaykit.model.lm_head import Batch, Head, logits_of, split_head
from replaykit.model.loading import listed, save_model
from replaykit.model.logprobs import IGNORED
from replaykit.model.shards import is_shard, is_sharded, like, local, part_name
from replaykit.recipe.remedies import Remedies
from replaykit.recipe.train import Train
from replaykit.runs import Watch
from replaykit.steps.train import checkpoints
from replaykit.steps.train.batches import TokenisedRows, by_row, to_device
from replaykit.steps.train.losses import Online, cross_entropy, summed
from replaykit.steps.train.optimiser import AdamW
from replaykit.steps.train.parameters import Stages, parameter_groups, rate_factors
from replaykit.steps.train.remedies import STATE, Remedy, Term, learning_parameters, store

ADVICE = "A lower train.learning_rate or train.max_grad_norm usually mends it"
# Rows beside those of a step that are tried where the loss of all of these is not finite.
OTHERS = 8


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
        # Of weights that are shared out the Trainer writes no optimiser, and says so here; below
        # it is written.
        options["args"].save_only_model = is_sharded(options["model"])
        super().__init__(train_dataset=data, **options)
        self.args.save_only_model = False
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
        # By name; later stages freeze some of them.
        self._learning = learning_parameters(self.model)
        # Whether each process has a part of the weights, all of which learn in parts then.
        self._sharded = is_sharded(self.model)
        # Where a checkpoint is being written.
        self._writes: Path | None = None

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
        """The micro-batches of a step, and the weight of all its tokens in all processes; infinite
        where every token is masked, so that the loss of the step is 0.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = sum((batch["loss_weight"].sum() for batch in batches), torch.zeros(())).to(device)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total[None]).sum()
        return batches, torch.where(total > 0, total, torch.inf)

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
            given = logits_of(model, batch)[where]
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
            if torch.isinf(num_items_in_batch):
                # Every token is masked: without a gradient the optimiser leaves all as it is.
                model.zero_grad()
            self.stages.gradients(self.state.global_step)
            for remedy in told:
                remedy.gradients()
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """Every gradient of a step goes through here before the optimiser moves a parameter."""
        norm = super()._clip_grad_norm(model)
        self._check_step(norm)
        return norm

    def _check_step(self, norm: torch.Tensor | float | None) -> None:
        """Raises EngineError in all processes where the loss of the step or the norm of its
        gradient is not finite.

        The norm is of all processes already, and None where it is not known.
        """
        found = {"loss": float(self._step_loss)}
        if norm is not None:
            found["gradient's norm"] = _number(norm)
        wrong = [f"the {name} is {value}" for name, value in found.items() if not isfinite(value)]
        if self._in_any(bool(wrong)):
            told = " and ".join(wrong) or "the loss is not finite in another process"
            step = self.state.global_step + 1
            raise EngineError(f"{told} at step {step}{self._cause()}. {self.advice()}")
        self._step_loss.zero_()
        self._step_rows.clear()

    def _cause(self) -> str:
        """What of a step is not finite, in words."""
        if self._not_finite(self._learning) is not None:
            return ": the step before has made the parameters so large that they are not finite"
        rows = self._rows_not_finite()
        if not rows:
            return ", and no row by itself is to blame"
        named = ", ".join(rows[:8]) + (" ..." if len(rows) > 8 else "")
        return f", in the rows {named}"

    def _rows_not_finite(self) -> list[str]:
        """The ids of the rows of the step whose own loss or gradient is not finite; none where that
        is so of other rows, too, for then it is the model.
        """
        # Weights that are spread over several GPUs are whole in no process.
        if self._sharded or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return []
        # -1 stands for a micro-batch without rows.
        own = {index for rows in self._step_rows for index in rows.tolist() if index >= 0}
        bad = sorted(index for index in own if not self._finite_alone(index))
        found = [(own, bad)]
        if self.args.world_size > 1:
            found *= self.args.world_size
            torch.distributed.all_gather_object(found, (own, bad))
        of_step = set().union(*(rows for rows, _ in found))
        all_bad = sorted(index for _, rows in found for index in rows)
        if len(all_bad) == len(of_step):
            others = [index for index in range(len(self.data)) if index not in of_step][:OTHERS]
            if not any(self._finite_alone(index) for index in others):
                return []
        return list(dict.fromkeys(self.data.id_of(index) for index in all_bad))

    def _finite_alone(self, index: int) -> bool:
        """Whether the loss and the gradient of a single row are finite."""
        batch = to_device(self.data_collator([self.data[index]]), self.args.device)
        self.model.zero_grad()
        with self.compute_loss_context_manager():
            weight = batch["loss_weight"].sum()
            loss = self.compute_loss(self.model, batch, num_items_in_batch=weight.clamp(min=1))
        loss.backward()
        gradients = [given.grad for given in self._learning.values() if given.grad is not None]
        return first_not_finite({"": loss} | dict(enumerate(gradients))) is None

    def check_parameters(self) -> None:
        """Raises EngineError in all processes where a parameter is not finite: before the first
        step any of them, afterwards one that learns.
        """
        steps = self.state.global_step
        if steps == 0:
            name = self._not_finite(dict(self.model.named_parameters()))
            if name is not None:
                raise EngineError(f"the untrained model's parameter {name} is not finite")
            return
        name = self._not_finite(self._learning)
        if name is not None:
            raise EngineError(
                f"the parameter {name} is not finite after step {steps}, so the model is not "
                f"saved. {self.advice()}"
            )

    def _not_finite(self, parameters: Mapping[str, torch.Tensor]) -> str | None:
        """The name of a parameter that is not finite, in any process."""
        name = first_not_finite(parameters)
        if self._in_any(name is not None):
            return name or "of another process"
        return None

    def _in_any(self, own: bool) -> bool:
        """Whether something is so in any of the processes, which all have to ask."""
        if self.args.world_size == 1:
            return own
        found = torch.tensor(float(own), device=self.args.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return bool(found.item())

    def advice(self) -> str:
        """What mends a training that has diverged, and what is left of it."""
        return f"{ADVICE}; {checkpoints.last_whole(Path(self.args.output_dir))}"

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.settings)
            self.optimizer: Any = self._optimiser(groups)
        return self.optimizer

    def _optimiser(self, groups: Any) -> torch.optim.Optimizer:
        """torch's AdamW, or ours for weights in bfloat16 and moments in 8 bits."""
        cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        in_8_bits = self.settings.optimiser == "adamw_8bit"
        if self.settings.weights == "float32" and not in_8_bits:
            return cls(groups, **options)
        return AdamW(
            groups,
            lr=self.args.learning_rate,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
            seed=self.args.seed,
            moments_in_8_bits=in_8_bits,
        )

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

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint of finite parameters, which gets its name when it is whole."""
        self.check_parameters()
        folder = Path(self.args.output_dir)
        self._writes = folder / checkpoints.UNFINISHED
        if self.args.should_save:
            checkpoints.begin(folder)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        # Each process has written the state of its random numbers.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.finish(self._writes / f"checkpoint-{self.state.global_step}", folder)
        self._writes = None

    def _get_output_dir(self, trial: Any) -> str:
        """Where the Trainer writes a checkpoint's folder."""
        return str(self._writes or super()._get_output_dir(trial))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint has the weights under the names that they have in memory.

        The Trainer would write them as the Hub's files have them, with other names and each expert
        by itself, and leaves out in silence what it does not find by its name when it reads them.
        """
        if self._sharded:
            self._save_part(Path(output_dir or str(self.args.output_dir)))
            return
        if output_dir is None or not isinstance(self.model, transformers.PreTrainedModel):
            super()._save(output_dir, state_dict)
            return
        save_model(self.model, output_dir, state_dict=state_dict, save_original_format=False)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raises EngineError where a checkpoint lacks weights, but for those that are others'."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        missing = [name for name in load_result.missing_keys if name in named]
        found = {id(parameter) for name, parameter in named.items() if name not in missing}
        lost = [name for name in missing if id(named[name]) not in found]
        if lost:
            raise EngineError(
                f"the last checkpoint in {self.args.output_dir} has no weights for {listed(lost)}; "
                f"remove it, and the training goes on from the one before it"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint has the remedies' state beside the model."""
        super().save_model(output_dir, _internal_call)
        if output_dir is None:
            return
        if self._sharded:
            store(self.remedies, output_dir, name=self.remedies_file)
        elif self.args.should_save:
            store(self.remedies, output_dir)

    # --- where each process has a part ------------------------------------------------------------

    @property
    def remedies_file(self) -> str:
        """In a checkpoint, where the remedies' state is."""
        if self._sharded:
            return f"remedies-{part_name()}.safetensors"
        return STATE

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by name: what of them is here."""
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: local(tensor) for name, tensor in named}

    def _save_part(self, folder: Path) -> None:
        """Writes this process's part of the weights into a checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        save_file(tensors, folder / f"weights-{part_name()}.safetensors")

    def check_parts(self, checkpoint: str) -> None:
        """Raises EngineError for a checkpoint of other parts than there are now."""
        folder = Path(checkpoint)
        written = len(list(folder.glob("weights-*-of-*.safetensors")))
        now = self.args.world_size if self._sharded else 0
        if written != now:
            raise EngineError(
                f"{folder} was written by {written or 'no'} processes that shared the weights out "
                f"(train.fsdp), and now they are {now or 'none'}; go on as it was begun, or remove "
                f"it"
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = load_file(Path(resume_from_checkpoint) / f"weights-{part_name()}.safetensors")
        for name, tensor in self._tensors().items():
            tensor.copy_(saved[name])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # Of a process's CPU torch reads back only what is not numbered.
        own = self.optimizer.state_dict()
        state = tree_map_only(torch.Tensor, lambda tensor: local(tensor).to("cpu"), own)
        torch.save(state, Path(output_dir) / f"optimizer-{part_name()}.pt")
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self._sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        state = torch.load(folder / f"optimizer-{part_name()}.pt", weights_only=True)
        self.optimizer.load_state_dict(state)
        schedule = torch.load(folder / "scheduler.pt", weights_only=True)
        self.lr_scheduler.load_state_dict(schedule)
        # torch's own optimiser has its moments as the parameters are; ours has them here.
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.dim():
                    state[name] = like(value, parameter)


def first_not_finite(tensors: Mapping[Any, torch.Tensor]) -> Any:
    """The key of a tensor that has a number that is not finite, None where all are finite."""
    # Quantised ones are whole numbers.
    floating = {key: given for key, given in tensors.items() if given.is_floating_point()}
    found = [torch.isfinite(local(given)).all() for given in floating.values()]
    # One look at the device for all of them.
    if not found or bool(torch.stack([good.to(found[0].device) for good in found]).all()):
        return None
    return next(key for key, good in zip(floating, found, strict=True) if not good)


def _number(norm: torch.Tensor | float) -> float:
    """A norm that may be shared out among processes."""
    if isinstance(norm, torch.Tensor) and is_shard(norm):
        norm = norm.full_tensor()
    return float(norm)


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
