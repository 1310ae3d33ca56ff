"""Running a model whose tensors have shapes and no memory (torch's FakeTensorMode).

    with shapes_alone(), torch.device("cpu"):
        model(input_ids=torch.empty(2, 30, dtype=torch.long)).logits.shape    # (2, 30, 1024)

Where a model's code asks such a tensor for a truth value, the answer is no. So no layer is dropped
at random (BART's layerdrop), no mask is left out because it masks nothing, and no token attends
globally (LED). Products of grouped matrices, which mixtures of experts are made of, have shapes
here in every precision; torch knows them in bfloat16 alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import masking_utils

# It writes what it cannot run to stderr, a page for each; the error that it raises says it, too.
LOUD = "torch._subclasses.fake_tensor"


@contextmanager
def shapes_alone() -> Iterator[FakeTensorMode]:
    """Within it every tensor that is made has a shape alone; those that were there are read as if
    they had.
    """
    loud = logging.getLogger(LOUD)
    level = loud.level
    loud.setLevel(logging.CRITICAL)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, _Answers():
            yield fake
    finally:
        loud.setLevel(level)


@contextmanager
def not_packed() -> Iterator[None]:
    """Within it transformers is told that rows are not packed, which it would look for in their
    positions; as it cannot see these, it would mask rows as if they were, with another kernel.
    """
    looked = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda *_, **__: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = looked


class _Answers(TorchDispatchMode):
    """Answers what torch does not of tensors without memory."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype is torch.bool:
            return False
        if func is torch.ops.aten._grouped_mm.default:
            return _grouped(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def _grouped(
    left: torch.Tensor,
    right: torch.Tensor,
    offsets: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """What torch._grouped_mm gives: of matrices one behind the other a group has no dimension."""
    shape: list[int] = [left.shape[-2], right.shape[-1]]
    if left.dim() == right.dim():
        groups = left.shape[0] if offsets is None else offsets.shape[0]
        shape = [groups, *shape]
    return left.new_empty(shape, dtype=out_dtype)


def operation_counter() -> FlopCounterMode:
    """Counts floating-point operations, those of a mixture of experts as well."""
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten._grouped_mm: _grouped_operations}
    )


def _grouped_operations(left: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    """Each row of ``left`` meets one matrix."""
    return 2 * left[-2] * left[-1] * right[-1]
