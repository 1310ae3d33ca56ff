"""Loss weights of answer tokens: by the base's probabilities before training, or by the model's own
while it learns.

    weights(...)["3f0c…"]    [1, 1, 0, 1, 1]   STM: the base finds the third answer token improbable

Selective token masking (Wu et al., arXiv 2501.14315): w = 1 where the perplexity exp(-log p) of a
token under the base is at most 2.5, else 0. FLOW (Sanyal et al., arXiv 2502.02797): w = exp(-loss /
T), where loss is a row's mean negative log-likelihood under the base and T the median of the
target's. Both act on all rows of the mixture, as the papers do on all training data; rows that the
model wrote itself are probable under it, so they keep nearly all of their loss. A step's loss is
divided by the sum of its weights, so what the target loses replay gains: with the embedded model,
60 rows of ``referral`` and 60 of its old skills, STM makes of 5 % replay 36 % of the weight, FLOW
12 %. ``summary`` tells that share. Dynamic fine-tuning (Wu et al., arXiv 2508.05629) and
entropy-adaptive fine-tuning (Diao et al., arXiv 2601.02151) weigh by what the model says now.

Where this differs from the STM authors' code (appier-research/robust-llm-finetunes, collate_fn.py):
log-probabilities belong to the trained token ids instead of being aligned to text that is tokenised
anew; the end of a turn is never masked, nor are the recipe's own texts; and ``share`` with its
controls counts exactly, over the whole data.

Cost: one forward pass over the data before training (the step score); nothing while training,
where masked tokens are left out of the product with the vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import get_args

import numpy as np
import torch

from replaykit.data.record import Record, is_masked
from replaykit.hashing import derive_seed
from replaykit.model.chat import Chat, Example
from replaykit.recipe.mix import Replay
from replaykit.recipe.remedies import FlowSettings, Remedies, StmSettings
from replaykit.steps.train.result import SourceWeights, WeightSummary

Floats = np.ndarray  # of one value for each answer token of a row: those with loss, in order
EAFT_SCALE = 3.0  # ln 20 = 3.0, about the entropy of 20 tokens that are equally probable
LEAST_TEMPERATURE = 1e-6  # nats; the median is 0 where the model is sure of most rows


def weights(
    records: Sequence[Record],
    examples: Mapping[str, Example],
    logprobs: Mapping[str, Floats],
    settings: Remedies,
    chat: Chat,
    seed: int,
) -> dict[str, Floats]:
    """The float32 loss weights of each row's answer tokens, by record id, for ``stm`` or ``flow``;
    else all are 1, but for rows that are marked ``masked``: of these STM's own perplexity masks.

    ``logprobs`` are natural logarithms as the step score keeps them. A row counts once, however
    often it is trained on. A first token that nothing predicts (NaN there) has no loss; its weight
    is 1 and it is counted nowhere.
    """
    # Sorted, so that the order of training decides nothing.
    ids = sorted({record.id for record in records})
    if settings.stm is not None:
        masked = _masked_by_stm(ids, examples, logprobs, settings.stm, chat, seed)
        return {key: (~masked[key]).astype(np.float32) for key in ids}
    if settings.flow is not None:
        found = _flow(records, logprobs, settings.flow)
    else:
        found = {key: np.ones(len(logprobs[key]), np.float32) for key in ids}
    marked = sorted({record.id for record in records if is_masked(record)})
    masked = _masked_by_stm(marked, examples, logprobs, StmSettings(), chat, seed)
    return found | {key: found[key] * ~masked[key] for key in marked}


def _masked_by_stm(
    ids: Sequence[str],
    examples: Mapping[str, Example],
    logprobs: Mapping[str, Floats],
    settings: StmSettings,
    chat: Chat,
    seed: int,
) -> dict[str, np.ndarray]:
    """Which answer tokens of these rows are masked."""
    kept = Kept(chat, settings.keep)
    free = {key: ~kept(examples[key]) & ~np.isnan(logprobs[key]) for key in ids}
    return _masked(ids, logprobs, free, settings, seed)


# --- selective token masking ----------------------------------------------------------------------


class Kept:
    """Which answer tokens always carry loss: the end of turn of each answer, or of a text, and
    those of the recipe's texts.

    A text stands where a token decodes to it without the spaces around it, and where an answer has
    the token ids that it is encoded to, by itself or after a space. A token that holds more than
    the text (`{"` for `{`) is another one.
    """

    def __init__(self, chat: Chat, texts: Sequence[str] = ()):
        self._chat = chat
        self._encoded = {text: (chat.encode(text), chat.encode(f" {text}")) for text in texts}
        # A text that is no conversation ends with eos.
        self._ends = {chat.end_of_turn, (chat.tokenizer.eos_token_id,)}
        self._words: dict[int, str] = {}  # what tokens decode to, by their ids

    def __call__(self, example: Example) -> np.ndarray:
        """[answer tokens] bool."""
        found: list[np.ndarray] = []
        for answer in _answers(example):
            keep = np.zeros(len(answer), dtype=bool)
            for text in self._encoded:
                keep |= self._of_text(text, answer)
            for end in self._ends:
                if end and answer[-len(end) :] == end:
                    keep[-len(end) :] = True
            found.append(keep)
        return np.concatenate([np.zeros(0, dtype=bool), *found])

    def nowhere(self, examples: Iterable[Example]) -> list[str]:
        """The texts that stand in no answer of these."""
        answers = [answer for example in examples for answer in _answers(example)]
        return [
            text
            for text in self._encoded
            if not any(self._of_text(text, answer).any() for answer in answers)
        ]

    def _of_text(self, text: str, answer: tuple[int, ...]) -> np.ndarray:
        """[answer tokens] bool: those of the text, wherever it stands."""
        word = text.strip()
        found = np.array([self._word(token) == word for token in answer], dtype=bool)
        for ids in self._encoded[text]:
            for start in range(len(answer) - len(ids) + 1):
                if answer[start : start + len(ids)] == ids:
                    found[start : start + len(ids)] = True
        return found

    def _word(self, token: int) -> str:
        if token not in self._words:
            self._words[token] = self._chat.decode([token], special=True).strip()
        return self._words[token]


def _answers(example: Example) -> list[tuple[int, ...]]:
    """The runs of tokens that carry loss."""
    runs = groupby(zip(example.tokens, example.loss, strict=True), key=lambda pair: pair[1])
    return [tuple(token for token, _ in run) for on, run in runs if on]


def _masked(
    ids: Sequence[str],
    logprobs: Mapping[str, Floats],
    free: Mapping[str, np.ndarray],
    settings: StmSettings,
    seed: int,
) -> dict[str, np.ndarray]:
    """Which tokens lose their loss, by record id; ``free`` are those that may.

    By share they are the nearest whole number to share x all answer tokens, or all that are free if
    these are fewer. Among equals the one of the lower record id comes first, then the earlier one.
    """
    if settings.share is None:
        assert settings.max_perplexity is not None
        return {
            key: free[key] & (np.exp(-logprobs[key].astype(float)) > settings.max_perplexity)
            for key in ids
        }
    ranks = [_rank(key, logprobs[key], settings, seed)[free[key]] for key in ids]
    total = sum(int((~np.isnan(logprobs[key])).sum()) for key in ids)
    order = np.argsort(np.concatenate(ranks), kind="stable")
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[: int(settings.share * total + 0.5)]] = True
    begins = np.cumsum([len(rank) for rank in ranks])[:-1]
    masked = {key: np.zeros(len(logprobs[key]), dtype=bool) for key in ids}
    for key, part in zip(ids, np.split(chosen, begins), strict=True):
        masked[key][free[key]] = part
    return masked


def _rank(key: str, logp: Floats, settings: StmSettings, seed: int) -> Floats:
    """What the tokens of a row are sorted by; the lowest are masked first."""
    match settings.which:
        case "random":
            draw = np.random.Generator(np.random.Philox(key=derive_seed(seed, "stm", key)))
            return draw.random(len(logp))
        case "highest":
            return logp.astype(float)
        case "lowest":
            return -logp.astype(float)


# --- FLOW -----------------------------------------------------------------------------------------


def _flow(
    records: Sequence[Record], logprobs: Mapping[str, Floats], settings: FlowSettings
) -> dict[str, Floats]:
    temperature = flow_temperature(records, logprobs, settings)
    found = {}
    for record in records:
        logp = logprobs[record.id]
        if settings.unit == "token":
            loss = -np.nan_to_num(logp.astype(float))
        else:
            loss = np.full(len(logp), row_loss(logp))
        found[record.id] = np.exp(-loss / temperature).astype(np.float32)
    return found


def flow_temperature(
    records: Sequence[Record], logprobs: Mapping[str, Floats], settings: FlowSettings
) -> float:
    """T in nats a token: the recipe's, or the median loss of the different target rows under the
    base (or their tokens').

    The paper has no replay. Were it in the median, half of the data in the model's own words would
    bring T down to their loss, and the target's weights to nothing. Without a target row it is the
    median of all.
    """
    if settings.temperature is not None:
        return settings.temperature
    target = {record.id for record in records if not is_replay(record)}
    if not target:
        target = {record.id for record in records}
    if settings.unit == "token":
        losses = -np.concatenate([logprobs[key] for key in sorted(target)])
    else:
        losses = np.array([row_loss(logprobs[key]) for key in sorted(target)])
    return max(float(np.nanmedian(losses)), LEAST_TEMPERATURE)


def is_replay(record: Record) -> bool:
    """Whether a row of a mixture protects old skills; those of the target may have been
    rewritten.
    """
    return record.source in get_args(Replay)


def row_loss(logp: Floats) -> float:
    """The mean negative log-likelihood of a row's answer tokens in nats, 0 where it has none that
    anything predicts.
    """
    predicted = logp[~np.isnan(logp)].astype(float)
    return float(-predicted.mean()) if len(predicted) else 0.0


# --- what came of it ------------------------------------------------------------------------------


def summary(
    records: Sequence[Record],
    examples: Mapping[str, Example],
    logprobs: Mapping[str, Floats],
    found: Mapping[str, Floats],
    settings: Remedies,
    chat: Chat,
) -> WeightSummary:
    """What ``weights``, which has ``found`` these, did to the different rows of each source, and
    replay's share of the weight.

    In the share each row counts as often as it is in ``records``; a controller draws replay
    otherwise, so with one it says nothing.
    """
    kept = Kept(chat, settings.stm.keep if settings.stm else [])
    rows: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in records:
        rows[record.source][record.id] = record
    sources = {}
    for source, different in rows.items():
        always = {key: kept(examples[key]) for key in different}
        sources[source] = _of_source(logprobs, found, always)
    temperature = None
    if settings.flow is not None:
        temperature = flow_temperature(records, logprobs, settings.flow)
    amounts = {key: float(found[key][~np.isnan(logprobs[key])].sum()) for key in found}
    total = sum(amounts[record.id] for record in records)
    replay = sum(amounts[record.id] for record in records if is_replay(record))
    share = round(replay / total, 4) if total else 0.0
    return WeightSummary(temperature=temperature, share=share, sources=sources)


def _of_source(
    logprobs: Mapping[str, Floats], found: Mapping[str, Floats], always: Mapping[str, np.ndarray]
) -> SourceWeights:
    """Of the rows that ``always`` names, with the tokens in each that always carry loss."""
    predicted = {key: ~np.isnan(logprobs[key]) for key in always}
    values = np.concatenate([found[key][predicted[key]] for key in always])
    masked = 0.0
    mean_weight = 1.0
    if len(values):
        masked = round(float((values == 0).mean()), 4)
        mean_weight = round(float(values.mean()), 4)
    losses = [row_loss(logprobs[key]) for key in always]
    free = [found[key][predicted[key] & ~always[key]] for key in always]
    return SourceWeights(
        rows=len(always),
        tokens=len(values),
        masked=masked,
        mean_weight=mean_weight,
        median_loss=round(float(np.median(losses)), 4),
        rows_masked=sum(len(weight) > 0 and not weight.any() for weight in free),
    )


# --- while training -------------------------------------------------------------------------------


def dft(logp: torch.Tensor) -> torch.Tensor:
    """The weight of dynamic fine-tuning, [n] float32: the probability p itself, through which no
    gradient flows.

    Wu et al., arXiv 2508.05629: the gradient of -p log p with p held fixed is that of a reward of 1
    for every target token. The same as LLaMA-Factory's ``_dft_cross_entropy``
    (src/llamafactory/train/trainer_utils.py at commit ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30).
    ``logp`` are the log-probabilities [n] of the target tokens.
    """
    return logp.detach().float().exp()


def eaft(logits: torch.Tensor, top_k: int, alpha: float) -> torch.Tensor:
    """The weight of entropy-adaptive fine-tuning, [n] float32: (H / 3) ** alpha, through which no
    gradient flows.

    Diao et al., arXiv 2601.02151. H is the entropy in nats of the ``top_k`` most probable tokens,
    whose probabilities are made to sum to 1. As in LLaMA-Factory's ``_eaft_cross_entropy``
    (src/llamafactory/train/trainer_utils.py at commit ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30,
    where top_k is 20). axolotl does not divide by 3, so its weights, and with them the learning
    rate in effect, are three times these. ``logits`` are [n, vocabulary], before the softmax; a
    vocabulary smaller than top_k is taken whole.
    """
    best = logits.detach().topk(min(top_k, logits.shape[1]), dim=1).values.float()
    logp = best.log_softmax(dim=1)
    entropy = -(logp.exp() * logp).sum(dim=1)
    # Clamped, because an entropy of 0 can come out as -1e-8, and its power as NaN.
    return (entropy.clamp(min=0) / EAFT_SCALE) ** alpha
