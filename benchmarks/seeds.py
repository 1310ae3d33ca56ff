"""What benchmarks over several seeds share: arms in processes of their own, units of work that are
done once, and the mean over seeds with its interval.

    over_seeds([0.71, 0.74, 0.70])      # Interval(mean=0.717, low=0.665, high=0.768)
    interval([0.71, 0.74, 0.70])        # "0.72 ± 0.05 (0.71, 0.74, 0.70)"
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from replaykit.steps.evaluate.interval import Interval


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of the seeds' own values, with the 95 % interval of Student's t. Of one value the
    bounds are not known: they are infinite.
    """
    mean = statistics.fmean(values)
    n = len(values)
    if n == 1:
        return Interval(mean, float("-inf"), float("inf"))
    half = float(student.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return Interval(mean, mean - half, mean + half)


def interval(values: Sequence[float]) -> str:
    """The mean ± half its interval, and the values."""
    found = over_seeds(values)
    if not found.known:
        return f"{found.mean:.2f}"
    each = ", ".join(f"{value:.2f}" for value in values)
    return f"{found.mean:.2f} ± {found.high - found.mean:.2f} ({each})"


def apart(script: str, words: Sequence[str], *, threads: int = 1) -> None:
    """Runs the script with these words in a process of its own. Ends the program where it fails,
    with the end of what the process said.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr[-3000:]}")


def unit(place: Path, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What a unit of work leaves in its file, with its seconds; a finished one is read."""
    if not place.exists():
        begun = time.perf_counter()
        found = dict(work())
        found["seconds"] = round(time.perf_counter() - begun)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_suffix(".tmp")
        temporary.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n")
        temporary.replace(place)
        print(f"{place.stem}: {found['seconds']} s", flush=True)
    return dict(json.loads(place.read_text()))


def slug(name: str) -> str:
    """The name as that of a file."""
    return re.sub(r"\W+", "-", name.replace("%", "pc")).strip("-").lower()
