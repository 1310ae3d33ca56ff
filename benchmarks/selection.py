"""Nearness of old data to a target, against scikit-learn with sparse_dot_topn; and a pool of a
million rows.

    pip install sparse_dot_topn
    python benchmarks/selection.py   # about 4 minutes; --quick: 1 minute, without the large pools

The pool is all of ../shared/data but the target, each row with all its texts, in one JSON Lines
file; the target is the questions of GSM8K. Both sides are given the file and answer with the best
cosine of each row, and both are checked to be equal to 1e-5. Rounds alternate, each side in a
process of its own with no more than ``--processes`` at work; the ratio is of the best times. The
large pools are sentences of the same data, drawn at random, as many to a row as rows have. The
result is printed and written to benchmarks/results/selection.md. (A file called select.py in this
folder would be what Python's own subprocess imports as ``select``, from every script here.)
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from replaykit.parallel import LocalExecutor
from replaykit.runs import machine
from replaykit.steps.select.nearness import Lexical, fit

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "selection.md"
POOL = (
    "t0_pool",
    "dolly_train",
    "alpaca_train",
    "distilled_alpaca",
    "lima_train",
    "ag_news_test",
    "pubmedqa",
    "gsm8k_test",
)
NOT_TEXT = ("task", "id", "label", "history", "final_decision")


# --- the data -------------------------------------------------------------------------------------


def rows_of(name: str) -> Iterator[dict[str, object]]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def real_texts() -> Iterator[str]:
    for name in POOL:
        for row in rows_of(name):
            parts = [value for key, value in row.items() if key not in NOT_TEXT]
            yield "\n".join(
                "\n".join(part) if isinstance(part, list) else str(part) for part in parts
            )


def recombined(texts: list[str], rows: int) -> Iterator[str]:
    """Rows of sentences drawn from all texts, as many to a row as a text drawn at random has."""
    sentences = [re.split(r"(?<=[.?!])\s+|\n+", text) for text in texts]
    flat = [sentence for row in sentences for sentence in row if sentence]
    draw = random.Random(1)
    for _ in range(rows):
        yield " ".join(draw.choices(flat, k=len(draw.choice(sentences))))


def write(path: Path, texts: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def read(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)["text"]


# --- the two sides, each in a process of its own --------------------------------------------------


def ours(pool: Path, queries: list[str], folder: Path, processes: int) -> dict[str, float]:
    started = time.perf_counter()
    executor = LocalExecutor(processes)
    index = fit(read(pool), queries, Lexical(), folder=folder, executor=executor)
    fitted = time.perf_counter()
    scores = np.concatenate([scores for scores, _ in index.scores()])
    executor.close()
    done = time.perf_counter()
    np.save(folder / "ours.npy", scores)
    return {
        "fit": fitted - started,
        "scores": done - fitted,
        "seconds": done - started,
        "rows": len(scores),
    }


def peer(pool: Path, queries: list[str], folder: Path, processes: int) -> dict[str, float]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sparse_dot_topn import sp_matmul_topn

    started = time.perf_counter()
    vectoriser = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
    rows = vectoriser.fit_transform(read(pool))
    wanted = vectoriser.transform(queries).T.tocsr()
    fitted = time.perf_counter()
    best = sp_matmul_topn(rows, wanted, top_n=1, n_threads=processes)
    scores = best.max(axis=1).toarray()[:, 0]
    done = time.perf_counter()
    np.save(folder / "peer.npy", scores)
    return {
        "fit": fitted - started,
        "scores": done - fitted,
        "seconds": done - started,
        "rows": len(scores),
    }


def measured(side: str, pool: Path, folder: Path, processes: int) -> dict[str, float]:
    """What a side says of itself, run in a new process."""
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        str(pool),
        str(folder),
        "--processes",
        str(processes),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def run_side(side: str, pool: Path, folder: Path, processes: int) -> None:
    queries = [str(row["question"]) for row in rows_of("gsm8k_train")]
    result = {"ours": ours, "peer": peer}[side](pool, queries, folder, processes)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result["cpu"] = sum(used.ru_utime + used.ru_stime for used in usage)
    own, children = (used.ru_maxrss / 1024 for used in usage)
    # Of its children only the largest is known: as many as help it are taken to have been so large.
    result["mib"] = own + ((processes - 1) * children if side == "ours" else 0)
    print(json.dumps(result))


# --- the report -----------------------------------------------------------------------------------


def compare(pool: Path, folder: Path, processes: int, rounds: int) -> list[str]:
    table = []
    for number in range(1, rounds + 1):
        both = {side: measured(side, pool, folder, processes) for side in ("ours", "peer")}
        apart = float(np.abs(np.load(folder / "ours.npy") - np.load(folder / "peer.npy")).max())
        assert apart < 1e-5, f"the two sides differ by {apart}"
        a, b = both["ours"], both["peer"]
        print(
            f"round {number}: ours {a['seconds']:.2f} s, peer {b['seconds']:.2f} s, "
            f"apart by {apart:.1e}",
            flush=True,
        )
        table.append((number, a, b, apart))
    own, theirs = (min(row[side]["seconds"] for row in table) for side in (1, 2))
    cpu, their_cpu = (min(row[side]["cpu"] for row in table) for side in (1, 2))
    size = pool.stat().st_size / 1e6
    return [
        f"## {table[0][1]['rows']:,} rows, {size:.0f} MB, {processes} processes",
        "",
        "Seconds with reading the file; in brackets their two parts, to fit and to compare. CPU "
        "seconds are of all processes",
        "and with the start of each.",
        "",
        "| round | replaykit | scikit-learn + `sparse_dot_topn` | ratio | CPU seconds, both "
        "| MiB, both | apart by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {k} | {a['seconds']:.2f} ({a['fit']:.2f} + {a['scores']:.2f}) "
            f"| {b['seconds']:.2f} ({b['fit']:.2f} + {b['scores']:.2f}) "
            f"| {a['seconds'] / b['seconds']:.3f} | {a['cpu']:.1f}, {b['cpu']:.1f} "
            f"| {a['mib']:,.0f}, {b['mib']:,.0f} | {apart:.1e} |"
            for k, a, b, apart in table
        ),
        "",
        f"Ratio of the best times: **{own / theirs:.3f}** (bar: at most 0.5); of the least CPU "
        f"seconds {cpu / their_cpu:.3f}.",
        "",
    ]


def grow(texts: list[str], folder: Path, sizes: list[int], processes: int) -> list[str]:
    lines = [
        "## Large pools, of recombined sentences",
        "",
        "Memory is the highest resident size of the process and, for each that helps it, of the "
        "largest of these.",
        "",
        "| rows | MB | seconds | to fit | to compare | CPU seconds | microseconds of CPU a row "
        "| MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for rows in sizes:
        pool = folder / "large.jsonl"
        write(pool, recombined(texts, rows))
        size = pool.stat().st_size / 1e6
        a = measured("ours", pool, folder, processes)
        lines.append(
            f"| {rows:,} | {size:,.0f} | {a['seconds']:.1f} | {a['fit']:.1f} | {a['scores']:.1f} "
            f"| {a['cpu']:.1f} | {a['cpu'] / rows * 1e6:.0f} | {a['mib']:,.0f} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rows",
        type=int,
        nargs="*",
        default=[250_000, 500_000, 1_000_000],
        help="of the large pools",
    )
    parser.add_argument("--quick", action="store_true", help="no large pools; writes nothing")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, pool, folder = options.side
        run_side(side, Path(pool), Path(folder), options.processes)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "pool.jsonl", real_texts())
        lines = compare(folder / "pool.jsonl", folder, options.processes, options.rounds)
        if not options.quick:
            lines += grow(
                list(read(folder / "pool.jsonl")), folder, options.rows, options.processes
            )
    print("\n".join(lines))
    if options.quick:
        return
    versions = [
        f"{name} {version(name)}"
        for name in ("replaykit-llm", "numpy", "scipy", "scikit-learn", "sparse_dot_topn")
    ]
    head = [
        f"# Nearness to 7,473 questions of GSM8K, {date.today()}",
        "",
        f"`python benchmarks/selection.py --rounds {options.rounds} --processes "
        f"{options.processes}` on {machine()}, {', '.join(versions)}",
        "",
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(head + lines) + "\n", encoding="utf-8")
    print(RESULTS)


if __name__ == "__main__":
    main()
