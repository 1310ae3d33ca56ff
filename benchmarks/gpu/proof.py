"""The proof on a GPU: a chat model of 34 million parameters, made here, learns a new task, and what
it knew is counted.

    python benchmarks/gpu/proof.py --minutes 10            # as often as it says that units are left
    python benchmarks/gpu/proof.py --report                # benchmarks/results/gpu-proof-gsm8k.md
    python benchmarks/gpu/proof.py --mini                  # in miniature on a CPU, with its report

The base is trained from random weights by our own trainer on general instructions (Alpaca, Dolly,
LIMA, T0) and on seven skills that are scored right or wrong (``proof_data``). Then it learns GSM8K
(or PubMedQA), with each arm's replay and remedy, over several seeds. The replay is drawn from the
base's own training rows, at random or by TF-IDF, or written by the base itself (Magpie). Every unit
of work (``proof_units``) is a folder of its own with a manifest: finished ones are skipped.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from proof_data import GENERAL, GPU, MINI
from proof_report import report
from proof_units import ARMS, REPLAY, Work, begun, make_base, make_replay, run_arm, score_base

from replaykit.errors import Stopped
from replaykit.runs import read_manifest

RESULTS = Path(__file__).parents[1] / "results"
OUT = Path(os.environ.get("OUT", "build/gpu")) / "proof"
DATA = Path(__file__).parents[3] / "shared" / "data"
STOP_EARLY = 10  # seconds before the time is up, for a checkpoint
SEEDS = (1, 2, 3)
MINI_ARMS = ("none", "magpie-10", "stm")
MINI_SEEDS = (1,)


def run_all(work: Work, arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Does the units that are not done, while the time lasts; returns those that are left.

    Only the base's training and the Magpie rows are broken off in the middle: another unit is not
    begun if the longest so far would not fit.
    """
    base = make_base(work)
    print(f"base: {base.parameters:,} parameters, loss {base.loss:.3f}", flush=True)
    score_base(work, base)
    needed = {ARMS[arm].replay or ("random" if ARMS[arm].equal else None) for arm in arms}
    for name in (name for name in REPLAY if name in needed):
        print(f"replay-{name}: {make_replay(work, name, base).rows} rows", flush=True)
    longest = 0.0
    left = []
    for seed in seeds:
        for name in arms:
            before = read_manifest(work.out / f"{name}-seed-{seed}")
            started = time.monotonic()
            if before is None and work.late(longest):
                left.append(f"{name}, seed {seed}")
                continue
            said = run_arm(work, name, seed, base)
            if before is None:
                longest = max(longest, time.monotonic() - started)
            note = "" if before is None else ", done before"
            print(f"{name}, seed {seed}: loss {said.loss:.3f}{note}", flush=True)
    return left


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="where finished units are kept ($OUT/proof)"
    )
    parser.add_argument(
        "--data", type=Path, default=DATA, help="the folder of the data sets (../shared/data)"
    )
    parser.add_argument(
        "--task", choices=["gsm8k", "pubmedqa"], default="gsm8k", help="the new task"
    )
    parser.add_argument(
        "--engine", default="transformers", help="for the Magpie rows; vllm where it is installed"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of this call")
    parser.add_argument("--arms", default="", help="some of the arms, with commas between")
    parser.add_argument("--report", action="store_true", help="write the table of what is finished")
    parser.add_argument(
        "--mini", action="store_true", help="in miniature on a CPU; the report stays in --out"
    )
    options = parser.parse_args()
    arms = options.arms.split(",") if options.arms else list(MINI_ARMS if options.mini else ARMS)
    if unknown := [name for name in arms if name not in ARMS]:
        raise SystemExit(f"--arms: no {', '.join(unknown)} among {', '.join(ARMS)}")
    if not options.mini and not options.report and not torch.cuda.is_available():
        raise SystemExit(
            "there is no CUDA device here; --mini runs everything in miniature on a CPU"
        )
    if missing := [name for name in GENERAL if not (options.data / f"{name}.jsonl.gz").exists()]:
        raise SystemExit(
            f"{options.data}: no {missing[0]}.jsonl.gz there; --data names the folder that has it"
        )
    end = time.monotonic() + 60 * options.minutes
    seeds = MINI_SEEDS if options.mini else SEEDS
    size = MINI if options.mini else GPU
    out = options.out / ("mini" if options.mini else options.task)

    def late(needed: float = 0.0) -> bool:
        return time.monotonic() + needed + STOP_EARLY > end

    work = begun(out, options.data, size, options.task, options.engine, late)
    if not options.report:
        run_in_time(work, arms, seeds, end)
    if options.report or options.mini:
        path = out / "proof.md" if options.mini else RESULTS / f"gpu-proof-{options.task}.md"
        path.write_text(report(work, arms, seeds), encoding="utf-8")
        print(path)


def run_in_time(work: Work, arms: Sequence[str], seeds: Sequence[int], end: float) -> None:
    """``run_all``, ended by SIGTERM to this process when the time is up: the trainer then saves
    a checkpoint.
    """

    def stop(*_: object) -> None:
        raise Stopped("the time is up; the same command goes on from there")

    signal.signal(signal.SIGTERM, stop)
    wait = max(0.0, end - STOP_EARLY - time.monotonic())
    timer = threading.Timer(wait, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        left = run_all(work, arms, seeds)
    except Stopped as stopped:
        raise SystemExit(str(stopped)) from None
    finally:
        timer.cancel()
    if left:
        raise SystemExit(f"left are {'; '.join(left)}; the same command goes on from there")


if __name__ == "__main__":
    main()
