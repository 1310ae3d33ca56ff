"""Which rows a model can read: those of tokens that it knows, and no longer than its positions.

reads = Reads("gpt2", tokenizer, config, needed=chat.stop)
reads.problem(example)      # None, "too_long_for_model" or "unknown_token"
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from replaykit.errors import EngineError
from replaykit.model.loading import without_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class Reads:
    """What a model reads, by its config.json.

    Raises EngineError where the tokenizer makes tokens of a text, or the model stops at ``needed``
    ones, that the model does not know. Other special tokens may be unknown to it, as is Gemma 3's
    mark of an image to the model of 1B, which sees none.
    """

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainedConfig,
        *,
        needed: Collection[int] = (),
    ):
        self._config = config
        self._unknown: frozenset[int] = frozenset()
        size = getattr(config.get_text_config(decoder=True), "vocab_size", None)
        if size is None:
            return
        beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= size}
        self._unknown = frozenset(beyond)
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        for i in sorted(beyond):
            if i not in special or i in needed:
                raise EngineError(
                    f"{name}: its tokenizer has the token {beyond[i]!r} with the id {i:,}, and the "
                    f"model knows ids below {size:,} only; give the model its own tokenizer, or "
                    f"make room with `model.resize_token_embeddings(len(tokenizer))` and save it"
                )

    def problem(self, *parts: Sequence[int]) -> str | None:
        """Why the model cannot read a row, of an encoder-decoder its question and its answer; None
        where it can.
        """
        stated = stated_length(self._config)
        if stated is not None and max(map(len, parts)) > stated and self._ends:
            return "too_long_for_model"
        if self._unknown and any(not self._unknown.isdisjoint(part) for part in parts):
            return "unknown_token"
        return None

    @cached_property
    def _ends(self) -> bool:
        return ends(self._config)


def stated_length(config: PretrainedConfig) -> int | None:
    """How many tokens the model reads by its config.json; None where it does not say."""
    own = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "max_seq_len"):
        stated = getattr(own, name, None)
        if stated is not None:
            return int(stated)
    return None


def ends(config: PretrainedConfig) -> bool:
    """Whether the model fails beyond the length that its config.json states, and does not only get
    worse: it has a table of positions of that length (GPT-2, OPT, GPT-J), or a penalty for
    distance that is made for it (MPT).
    """
    from torch import nn

    stated = stated_length(config)
    if stated is None:
        return False
    model = without_weights(config)
    vocabulary = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    rows = {module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)}
    buffers = dict(model.named_buffers())
    rows |= {buffer.shape[0] for buffer in buffers.values() if buffer.dim() > 1}
    # Some keep a row or two for other things, such as padding.
    if (rows - {vocabulary}) & {stated, stated + 1, stated + 2}:
        return True
    rotates = any("inv_freq" in name for name in buffers)
    return not rotates and not hasattr(config, "max_position_embeddings")
