"""What is known of GPUs by their names, what is free here, and how numbers of parameters and hours
are said.

gpu_of("NVIDIA A100-SXM4-80GB").bandwidth  ->  2.04
short(8_030_000_000)                       ->  "8.03B"
spoken_hours(0.2)                          ->  "12 minutes"
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

PRICE_YEAR = 2025  # of the prices below


class Gpu(NamedTuple):
    """A kind of GPU."""

    pattern: str
    """What its name matches."""
    bandwidth: float
    """Of its memory, in TB/s, by the maker's data sheet."""
    price: float
    """An assumed rent, in dollars an hour."""


# The first that matches counts, so a general name comes after the special ones.
GPUS = (
    Gpu(r"B200", 8.0, 4.50),
    Gpu(r"H200", 4.8, 3.50),
    Gpu(r"H100 NVL", 3.9, 2.70),
    Gpu(r"H100 PCIe", 2.0, 2.20),
    Gpu(r"H100|GH200", 3.35, 2.70),
    Gpu(r"A100.*40GB", 1.555, 1.30),
    Gpu(r"A100", 2.04, 1.80),
    Gpu(r"MI300X", 5.3, 2.50),
    Gpu(r"L40S", 0.864, 1.00),
    Gpu(r"\bL4\b", 0.30, 0.70),
    Gpu(r"A10G", 0.60, 1.00),
    Gpu(r"\bA10\b", 0.60, 0.75),
    Gpu(r"RTX 6000 Ada", 0.96, 0.80),
    Gpu(r"RTX A6000", 0.768, 0.50),
    Gpu(r"RTX 5090", 1.79, 0.70),
    Gpu(r"RTX 4090", 1.008, 0.45),
    Gpu(r"RTX 3090", 0.936, 0.25),
    Gpu(r"V100", 0.90, 0.50),
    Gpu(r"\bT4\b", 0.32, 0.35),
)


def gpu_of(name: str) -> Gpu | None:
    """The kind of a GPU that calls itself so; None where it is not in the table."""
    return next((gpu for gpu in GPUS if re.search(gpu.pattern, name)), None)


def free_memory() -> tuple[int, str]:
    """Bytes that are free now for a model, and on what: the first GPU, or this machine."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0]), torch.cuda.get_device_name(0)
    return int(psutil.virtual_memory().available), f"{os.cpu_count() or 1} CPU cores"


def short(parameters: int) -> str:
    """A number of parameters as people say it."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.2f}B"
    return f"{parameters / 1e6:.2f}M"


def spoken_hours(hours: float) -> str:
    """A time as people say it."""
    if hours >= 1:
        return f"{hours:,.1f} hours"
    if hours >= 1 / 60:
        return f"{60 * hours:.0f} minutes"
    return f"{3600 * hours:.0f} seconds"
