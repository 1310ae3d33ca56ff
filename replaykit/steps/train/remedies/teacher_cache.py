"""A teacher in a file: of each token the base's most probable next tokens.

    teacher = Cached.made(run, 2.0, 64)          # from the training's folder, or made there first
    lesson = teacher.lesson(batch, distilled)    # as of a teacher that is run

For each token the file has the ids of the k most probable tokens under softmax(z / T) of the whole
vocabulary, their log-probabilities under that same distribution, and log(1 - their sum), the tail.
The temperature is thus in the file, and the tail is that of the tempered distribution: neither can
be had from probabilities at T = 1. The KL is over k + 1 events, k tokens and the rest; the model's
side is softmax(z / T) of the whole vocabulary too, gathered at the same ids. By the log-sum
inequality it is at most the full KL; with k the vocabulary it is the full KL. It equals the full KL
to that distribution which has the cached probabilities and shares the tail out as the model does,
so the gradient has one form for all teachers: (p_model - p_target) / T. Without the tail,
renormalised, the target would be biased towards the k tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from replaykit.errors import RunError
from replaykit.model.lm_head import Batch, evaluating, slices
from replaykit.steps.train.remedies import Run, key_of, written_whole
from replaykit.steps.train.remedies.teachers import (
    NUMBERS,
    Lesson,
    Live,
    adapter_off,
    frozen,
    has_base_beneath,
    teachable,
)

CACHE = "teacher.safetensors"

Facts = dict[str, float | str]  # what decides the file: temperature, top_k, and of what it was made


class Cached:
    """A teacher whose words are in a file: ids int32 [tokens, k], and float16 [tokens, k + 1],
    log-probabilities and tail.

    ``places`` has where the tokens of each row stand, by ``row_key``.
    """

    def __init__(self, path: Path):
        from safetensors import safe_open

        self.path = path
        self.file = safe_open(path, "pt")
        facts = json.loads(self.file.metadata()["facts"])
        self.places: dict[str, list[int]] = facts.pop("rows")
        self.facts: Facts = facts

    @classmethod
    def made(cls, run: Run, temperature: float, top_k: int) -> Cached:
        """From the file in the training's folder; where there is none, or one of other settings,
        rows or another base, it is made first.
        """
        parameters = run.model.named_parameters()
        base = {
            name: given for name, given in parameters if not (run.adapter and given.requires_grad)
        }
        facts: Facts = {
            "temperature": temperature,
            "top_k": top_k,
            "made_of": key_of("cache", base, run.replay()),
        }
        path = run.folder / CACHE
        if path.exists():
            found = cls(path)
            if found.facts == facts:
                return found
        if not run.adapter:
            teacher = Live(run.model, temperature, base=evaluating)
        elif has_base_beneath(run.model):
            teacher = Live(run.model, temperature, base=adapter_off)
        else:
            teacher = Live(frozen(run), temperature)
        _write(path, facts, teacher, top_k, run.replay())
        return cls(path)

    def lesson(self, batch: Batch, distilled: torch.Tensor) -> Lesson:
        """As ``Live.lesson``. Raises RunError for a row that is not in the file."""
        ids = []
        logs = []
        for key, tokens in row_keys(batch, distilled):
            first, last = self.places.get(key, (0, 0))
            if last - first != tokens:
                raise RunError(
                    f"{self.path} has no probabilities for a row of the mixture; remove it, and it "
                    f"is made anew"
                )
            ids.append(self.file.get_slice("ids")[first:last])
            logs.append(self.file.get_slice("logs")[first:last])
        device = distilled.device
        at = torch.cat(ids).to(device=device, dtype=torch.int64)
        # float16 has rounded the probabilities; the softmax makes their sum 1 again.
        log_p = torch.cat(logs).to(device).float().log_softmax(dim=-1)

        def target(some: slice, log_q: torch.Tensor) -> torch.Tensor:
            part = log_p[some].to(log_q)
            return completed(log_q, at[some], part[:, :-1], part[:, -1])

        return Lesson(target)


def completed(
    log_q: torch.Tensor, ids: torch.Tensor, log_p: torch.Tensor, log_tail: torch.Tensor
) -> torch.Tensor:
    """The distribution that has log_p [n, k] at the ids [n, k] and shares the tail, exp(log_tail
    [n]), out as log_q does.

    All are natural logarithms; log_q and what is returned are [n, vocabulary].
    """
    outside = torch.logsumexp(log_q.scatter(-1, ids, -torch.inf), dim=-1)
    return (log_q + (log_tail - outside)[:, None]).scatter(-1, ids, log_p)


def _write(path: Path, facts: Facts, teacher: Live, top_k: int, batches: Iterator[Batch]) -> None:
    """Asks the teacher about every labelled token of the batches; the file appears when it is
    whole.
    """
    from safetensors.torch import save_file

    rows: dict[str, list[int]] = {}
    ids = []
    logs = []
    count = 0
    for batch in batches:
        labelled = teachable(batch)
        keys = row_keys(batch, labelled)
        if not keys or all(key in rows for key, _ in keys):
            continue
        hidden, _ = teacher.read(batch, labelled)
        best, log_p = _shortened(teacher, hidden, top_k)
        ids.append(best)
        logs.append(log_p)
        for key, tokens in keys:
            rows[key] = [count, count + tokens]
            count += tokens
    tensors = {"ids": torch.zeros(0), "logs": torch.zeros(0)}
    if ids:
        tensors = {"ids": torch.cat(ids), "logs": torch.cat(logs)}
    with written_whole(path) as unfinished:
        save_file(tensors, unfinished, metadata={"facts": json.dumps(facts | {"rows": rows})})


def _shortened(
    teacher: Live, hidden: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The top_k ids, int32 [tokens, k], their log-probabilities with the tail's behind them,
    float16 [tokens, k + 1].
    """
    ids = []
    logs = []
    vocabulary = teacher.model.config.get_text_config().vocab_size
    for part in slices(len(hidden), vocabulary, NUMBERS):
        log_p = teacher.log_softmax(hidden[part], torch.float32)
        best = log_p.topk(min(top_k, log_p.shape[-1]), dim=-1)
        tail = torch.logsumexp(log_p.scatter(-1, best.indices, -torch.inf), dim=-1, keepdim=True)
        ids.append(best.indices.to(torch.int32).cpu())
        logs.append(torch.cat([best.values, tail], dim=-1).to(torch.float16).cpu())
    return torch.cat(ids), torch.cat(logs)


def row_keys(batch: Batch, distilled: torch.Tensor) -> list[tuple[str, int]]:
    """For every row with distilled tokens, in order: a hash of its tokens and labels, and how many
    tokens are distilled.

    Padding, packing and the order of rows change nothing, for a causal model's tokens up to the
    last label are hashed; for an encoder-decoder all that the encoder reads.
    """
    found = []
    for tokens, labels, wanted in _rows(batch, distilled):
        if wanted.any():
            end = int(wanted.nonzero().max()) + 1
            if "attention_mask" not in batch:
                tokens = tokens[:end]
            digest = hashlib.blake2b(tokens.numpy().tobytes(), digest_size=12)
            digest.update(b"|" + labels[:end].numpy().tobytes())
            found.append((digest.hexdigest(), int(wanted.sum())))
    return found


def _rows(
    batch: Batch, distilled: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Tokens, labels and distilled tokens of one row after the other, [length] each, on the CPU."""
    tokens = batch["input_ids"].cpu()
    labels = batch["labels"].cpu()
    wanted = distilled.cpu()
    if "row" in batch:
        of_row = batch["row"][0].cpu()
        for row in of_row.unique_consecutive():
            own = of_row == row
            yield tokens[0, own], labels[0, own], wanted[0, own]
        return
    read = torch.ones_like(tokens).bool()
    if "attention_mask" in batch:
        read = batch["attention_mask"].bool().cpu()
    for row in range(len(tokens)):
        yield tokens[row][read[row]], labels[row], wanted[row]
