"""The whole command `replaykit select`, all its checks on, against a script that checks nothing.

    pip install sparse_dot_topn
    python benchmarks/select_command.py     # about 3 minutes; --quick: one round, writes nothing

The pool is T0's 55,180 rows as they are published, packed by gzip; the target is the 7,473
questions of GSM8K, and its 1,319 test questions are kept out. The command reads and scores all rows,
and checks them from the nearest on until 2,000 are good. The script reads the same two files
with json, fits scikit-learn's TfidfVectorizer on the questions, looks for the nearest target row of
each by sparse_dot_topn, and writes the 2,000 best: no row is checked, none has a reason. Rounds
alternate, each side in a process of its own with two at work. Seconds are those of the whole
process, with its start. The result is printed and written to benchmarks/results/select_command.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

from replaykit.runs import machine

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "select_command.md"
POOL = DATA / "t0_pool.jsonl.gz"
TARGET = DATA / "gsm8k_train.jsonl.gz"
TEST = DATA / "gsm8k_test.jsonl.gz"
ROWS = 2000


def texts(path: Path, column: str) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)[column]


def script(out: Path) -> None:
    """What a reader of the paper would write on an afternoon."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sparse_dot_topn import sp_matmul_topn

    vectoriser = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
    rows = vectoriser.fit_transform(texts(POOL, "prompt"))
    wanted = vectoriser.transform(texts(TARGET, "question")).T.tocsr()
    best = sp_matmul_topn(rows, wanted, top_n=1, n_threads=2).max(axis=1).toarray()[:, 0]
    chosen = set(np.argsort(-best, kind="stable")[:ROWS].tolist())
    with gzip.open(POOL, "rt", encoding="utf-8") as stream, out.open("w") as kept:
        kept.writelines(line for row, line in enumerate(stream) if row in chosen)


def command(side: str, folder: Path) -> list[str]:
    if side == "script":
        return [sys.executable, __file__, "--side", str(folder / "rows.jsonl")]
    replaykit = str(Path(sys.executable).with_name("replaykit"))
    given = ["--pool", POOL, "--target", TARGET, "--against", TEST, "-n", ROWS]
    return [replaykit, "select", *map(str, given), "--out", str(folder / "select")]


def measured(side: str) -> dict[str, float]:
    """Seconds, CPU seconds of the process and those that it started, and the MiB of the largest."""
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        line = command(side, Path(name))
        log = os.open(Path(name) / "log", os.O_CREAT | os.O_WRONLY)
        moves = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
        child = os.posix_spawn(line[0], line, os.environ, file_actions=moves)
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - started
        os.close(log)
        if status:
            raise SystemExit((Path(name) / "log").read_text(encoding="utf-8"))
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu": cpu, "mib": usage.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round; writes nothing")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        script(Path(options.side))
        return
    table = []
    rounds = 1 if options.quick else options.rounds
    for number in range(1, rounds + 1):
        a, b = (measured(side) for side in ("replaykit", "script"))
        table.append((a, b))
        print(f"round {number}: replaykit {a}, script {b}", flush=True)
    own, theirs = (min(row[side]["seconds"] for row in table) for side in (0, 1))
    cpu, their_cpu = (min(row[side]["cpu"] for row in table) for side in (0, 1))
    packages = ("numpy", "scipy", "scikit-learn", "sparse_dot_topn")
    lines = [
        f"# `replaykit select` on 55,180 rows against 7,473, {date.today()}",
        "",
        f"`python benchmarks/select_command.py --rounds {rounds}` on {machine()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages),
        "",
        "| round | seconds, all checks on | the script, no checks | ratio | CPU seconds, both "
        "| MiB of the largest process, both |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {k} | {a['seconds']:.1f} | {b['seconds']:.1f} | {a['seconds'] / b['seconds']:.2f} "
            f"| {a['cpu']:.1f}, {b['cpu']:.1f} | {a['mib']:,.0f}, {b['mib']:,.0f} |"
            for k, (a, b) in enumerate(table, 1)
        ),
        "",
        f"Ratio of the best times: **{own / theirs:.2f}** (bar: at most 1.0); of the least CPU "
        f"seconds {cpu / their_cpu:.2f}.",
    ]
    print("\n".join(lines))
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(RESULTS)


if __name__ == "__main__":
    main()
