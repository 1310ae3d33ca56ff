"""Self-distillation on the model's own answers: the model that sees the reference in its question
teaches itself without it.

    y ~ model(. | question)                               an answer of its own, at temperature 1
    q_t = model(. | question, y_<t),  p_t = teacher(. | question with the reference, y_<t)
    L = (1 - w) * CE + w * (|reference| / |y|) * sum over t of KL(q_t || p_t)

Shenfeld et al., arXiv 2601.19897 (SDFT): the model answers a target row's question itself, and at
every token of that answer its distribution is drawn to the teacher's, which is the same model with
the reference in view. ``teacher: ema`` is the moving average of the model's parameters, as in the
paper, ``teacher: base`` the untrained model, which a study of the method's limits found to forget
less (arXiv 2607.01763). KL is the reverse one, a sum over the vocabulary; ``divergence: forward``
is KL(p_t || q_t). No gradient flows through the draw or the teacher.

Where we differ: a row's divergence is its mean over the answer's tokens times the number of the
reference's, so that a row weighs as much as in plain training, and so much the step is divided by;
the prompt that shows the reference is our own (``steps/train/asked.py``).

Published reproductions disagree on how much it keeps. What is learned is what the model can say of
the reference when it sees it, so a model that does not read its context learns nothing and forgets
all the same: the embedded model, in 80 steps of 16 rows at 1e-3, learned none of a task (desk) of
which plain training learned all, and of its old skills kept 0.38 (teacher: ema) or 0.63 (teacher:
base), plain training 0.19.

It costs, for each row and step, an answer drawn token by token, which takes most of the time, a
forward pass of the teacher, a forward and a backward pass of the model, and a float32 copy of the
parameters that learn. On the embedded model, whose answers have three to seven tokens, a step takes
3.5 times as long as a plain one (two CPU cores); longer answers take more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed

from replaykit.engines import Completion, Request, Sampling
from replaykit.engines.transformers import TransformersEngine
from replaykit.hashing import derive_seed
from replaykit.model.lm_head import Batch, as_trained, evaluating, logits_of, split_head
from replaykit.model.logprobs import IGNORED
from replaykit.recipe.remedies import SelfDistillSettings
from replaykit.steps.train.asked import Asked
from replaykit.steps.train.batches import by_row
from replaykit.steps.train.losses import summed
from replaykit.steps.train.remedies import Remedy, Run, State, processes
from replaykit.steps.train.remedies.ema import Average

STEPS = "steps"
AVERAGE = "average."
NOWHERE = 1 << 40  # where the answer of a row begins that is not distilled

# Logits [n, vocabulary] of the model, log-probabilities of the teacher -> [n].
Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Drawn:
    """An answer that the model gave to a row."""

    row: int
    """Of the micro-batch."""
    asked: Asked
    tokens: tuple[int, ...]
    """Without the token that ends it."""
    ended: bool
    """Whether it has an end, or was cut."""

    @property
    def predicted(self) -> int:
        """How many tokens the model has drawn: those of the answer, and its end."""
        return len(self.tokens) + self.ended


class SelfDistill(Remedy):
    """See the module. Rows that cannot be shown with their answer in view, and those whose question
    with it fills the model, keep the cross-entropy.
    """

    name = "self_distill"
    settings: SelfDistillSettings

    def begin(self, run: Run) -> None:
        assert run.asked is not None, "the trainer's rows are those of a chat"
        self._run = run
        self._model = run.model
        decay = self.settings.decay
        if self.settings.teacher == "base":
            decay = 1.0
        self._teacher = Average(run.model, decay)
        self._head = split_head(run.model)
        with evaluating(run.model):
            self._engine = TransformersEngine(run.model)
        self._device = next(run.model.parameters()).device
        self._steps = 0
        self._kl = torch.zeros((), dtype=torch.float64, device=self._device)
        # Drawn tokens, and answers.
        self._counts = [0, 0]

    # --- which tokens are distilled ---------------------------------------------------------------

    def _asked(self, batch: Batch) -> dict[int, Asked]:
        """By row of the micro-batch, what is distilled of it."""
        assert self._run.asked is not None
        found = {}
        for row, index in enumerate(batch["index"].tolist()):
            if index < 0 or (self.settings.rows == "target" and bool(batch["replay"][row])):
                continue
            one = self._run.asked(index, self.settings.prompt)
            if one is not None and self._room(one) > 0:
                found[row] = one
        return found

    def _room(self, asked: Asked) -> int:
        """How many tokens an answer may have."""
        longest = max(len(asked.student), len(asked.teacher))
        return min(self.settings.max_tokens, self._engine.limit - longest)

    def _distilled(self, batch: Batch, asked: dict[int, Asked]) -> torch.Tensor:
        """[rows, length], true at the labels of the last answers of distilled rows."""
        begins = torch.full_like(batch["index"], NOWHERE)
        for row, one in asked.items():
            begins[row] = len(one.student) - 1  # which predicts the first token of the answer
        places = torch.arange(batch["labels"].shape[1], device=begins.device)
        if "position_ids" in batch:
            places = batch["position_ids"]
        after = places >= by_row(batch | {"begins": begins}, "begins")
        labelled: torch.Tensor = batch["labels"] != IGNORED
        return labelled & after

    def keeps(self, batch: Batch) -> torch.Tensor:
        """[rows, length], 1 - weight at the distilled tokens and 1 elsewhere."""
        return 1 - self.settings.weight * self._distilled(batch, self._asked(batch)).float()

    # --- the loss ---------------------------------------------------------------------------------

    def penalty(self, batch: Batch) -> torch.Tensor | None:
        """weight times the divergence on answers drawn now, summed over the rows, each row's mean
        times the weight of its labels.
        """
        asked = self._asked(batch)
        if not asked:
            return None
        drawn = self._draw(batch, asked)
        weights = self._row_weights(batch, asked)
        student, where = _after([one.asked.student for one in drawn], drawn, self._device)
        teacher, seen = _after([one.asked.teacher for one in drawn], drawn, self._device)
        lengths = torch.tensor([one.predicted for one in drawn], device=self._device)
        each = weights[[one.row for one in drawn]] / lengths
        of_token = each.repeat_interleave(lengths)
        found = self._divergence(student, where, teacher, seen, of_token)
        self._counts[0] += int(lengths.sum())
        self._counts[1] += len(drawn)
        return self.settings.weight * found

    def _draw(self, batch: Batch, asked: dict[int, Asked]) -> list[Drawn]:
        """An answer to each row, by a seed of its own: how a step is cut into micro-batches changes
        none.
        """
        indices = batch["index"].tolist()
        requests = []
        for row, one in asked.items():
            sampling = Sampling(
                temperature=self.settings.temperature, max_tokens=self._room(one), stop=one.stop
            )
            seed = derive_seed(self._run.seed, self.name, self._steps, indices[row])
            requests.append(Request(row, one.student, sampling, seed))
        with evaluating(self._model), as_trained(self._model):
            completions = {each.row: each for each in self._engine.complete(requests)}
        return [_drawn(row, one, completions[row]) for row, one in asked.items()]

    def _row_weights(self, batch: Batch, asked: dict[int, Asked]) -> torch.Tensor:
        """[rows], the weight of all distilled labels of each row, float32."""
        distilled = self._distilled(batch, asked)
        rows = torch.arange(len(batch["index"]), device=distilled.device)
        of_row = by_row(batch | {"rows": rows}, "rows")[distilled]
        weights = batch["loss_weight"][distilled].float()
        return torch.zeros(len(rows), device=weights.device).index_add_(0, of_row, weights)

    def _divergence(
        self,
        student: Batch,
        where: torch.Tensor,
        teacher: Batch,
        seen: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """The divergences of the drawn tokens, weighted and summed, a scalar with gradients.

        ``where`` and ``seen`` are the positions that predict them in both batches, [rows, length],
        the same number in the same order; ``weights`` is [tokens].
        """
        # The model's own pass comes first: what it saves for the backward pass are its parameters.
        given = self._hidden(student)[where]
        with torch.no_grad(), evaluating(self._model), self._teacher.instead():
            taught = self._hidden(teacher)[seen]

        def objective(logits: torch.Tensor, part: slice) -> torch.Tensor:
            with torch.no_grad(), self._teacher.instead():
                told = taught[part]
                if self._head is not None:
                    told = self._head.logits(told)
                target = torch.log_softmax(told.to(logits.dtype), dim=-1)
            found = DIVERGENCES[self.settings.divergence](logits, target)
            self._kl += found.detach().double().sum()
            return (weights[part].to(found.dtype) * found).sum()

        if self._head is not None:
            return summed(given, self._head, objective)
        return objective(given.float(), slice(0, len(given)))

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """What goes into the head, or its logits where they cannot be had apart."""
        with as_trained(self._model):
            if self._head is not None:
                return self._head.hidden(self._model, batch)
            return logits_of(self._model, batch)

    # --- steps and state --------------------------------------------------------------------------

    def stepped(self) -> None:
        self._steps += 1
        self._teacher.step()

    def measures(self) -> dict[str, float]:
        """``kl``, the divergence of a drawn token, and ``tokens``, how many an answer has."""
        totals = torch.tensor(
            [float(self._kl), *self._counts], dtype=torch.float64, device=self._device
        )
        if processes() > 1:
            # A process without a distilled row takes part with zeros.
            distributed.all_reduce(totals)
        total, tokens, answers = totals.tolist()
        self._kl.zero_()
        self._counts = [0, 0]
        if not answers:
            return {}
        return {"kl": total / tokens, "tokens": tokens / answers}

    def state_dict(self) -> State:
        """The steps that are done, by which answers are drawn, and the teacher's parameters."""
        teacher = {f"{AVERAGE}{name}": value for name, value in self._teacher.values.items()}
        return {STEPS: torch.tensor(self._steps), **teacher}

    def load_state_dict(self, state: State) -> None:
        """Raises RunError for the state of a model with other parameters."""
        self._steps = int(state[STEPS])
        teacher = {
            name.removeprefix(AVERAGE): value for name, value in state.items() if name != STEPS
        }
        self._teacher.load(teacher)


def reverse(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL(softmax(logits) || target) of each token, [n]; both are [n, vocabulary], the target as
    log-probabilities.
    """
    own = torch.log_softmax(logits, dim=-1)
    return (own.exp() * (own - target)).sum(dim=-1)


def forward(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL(target || softmax(logits)) of each token, [n]."""
    own = torch.log_softmax(logits, dim=-1)
    return (target.exp() * (target - own)).sum(dim=-1)


DIVERGENCES: dict[str, Divergence] = {"reverse": reverse, "forward": forward}


def _drawn(row: int, asked: Asked, completion: Completion) -> Drawn:
    return Drawn(row, asked, completion.tokens, completion.finish_reason == "stop")


def _after(
    prompts: list[tuple[int, ...]], drawn: list[Drawn], device: torch.device
) -> tuple[Batch, torch.Tensor]:
    """The prompts, each with its answer behind it, right-padded; and the positions, [rows, length],
    that predict the answers' tokens and ends.
    """
    rows = [[*prompt, *one.tokens] for prompt, one in zip(prompts, drawn, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    where = torch.zeros(ids.shape, dtype=torch.bool, device=device)
    for row, (prompt, one) in enumerate(zip(prompts, drawn, strict=True)):
        first = len(prompt) - 1
        where[row, first : first + one.predicted] = True
    return {"input_ids": ids}, where
