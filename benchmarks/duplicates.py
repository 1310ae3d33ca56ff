"""Near-duplicates among real questions, against datasketch's MinHashLSH; and what both find,
against comparing every pair.

    pip install datasketch
    python benchmarks/duplicates.py     # about 8 minutes; --quick: 2 minutes, with fewer rows

The rows are all questions of ../shared/data/t0_pool. Both sides are given them one by one and say
of each whether it is a near-duplicate of an earlier row that was none, at a Jaccard similarity of
0.8 of the sets of 5-character shingles of one normal form of the text. Ours reads each candidate
back and compares it exactly; datasketch (128 permutations, MinHashLSH of the same threshold, its
defaults otherwise) does not, and is taken at its word. Rounds alternate, each side in a process of
its own; the ratio is of the best times, of ours with ``--processes`` and, as datasketch uses one,
of ours with one.

What is found is measured on 5,000 rows: 3,000 questions and 2,000 copies of some with up to a tenth
of the words exchanged. All pairs are compared exactly. The result is printed and written to
benchmarks/results/duplicates.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from replaykit.checks.duplicates import QUESTIONS, Repeats, normal_form, shingles
from replaykit.parallel import LocalExecutor
from replaykit.runs import machine

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "duplicates.md"
THRESHOLD = 0.8
PERMUTATIONS = 128
QUICK = 5000  # rows
SIDES = {"ours": "replaykit", "alone": "replaykit, one process", "peer": "datasketch"}


# --- the data -------------------------------------------------------------------------------------


def questions(limit: int | None = None) -> list[str]:
    with gzip.open(DATA / "t0_pool.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [
            json.loads(line)["prompt"]
            for line, _ in zip(stream, range(limit or sys.maxsize), strict=False)
        ]


def planted(rows: int = 3000, copies: int = 2000) -> list[str]:
    """Questions drawn at random, and copies with up to a tenth of the words exchanged, shuffled."""
    draw = random.Random(1)
    texts = draw.sample(questions(), rows)
    words = " ".join(texts).split()
    made = []
    for text in draw.choices(texts, k=copies):
        share = draw.uniform(0, 0.1)
        parts = [draw.choice(words) if draw.random() < share else part for part in text.split(" ")]
        made.append(" ".join(parts))
    shuffled = texts + made
    draw.shuffle(shuffled)
    return shuffled


# --- the two sides: of each row, an earlier one that it is like, or None --------------------------


def ours(texts: list[str], processes: int) -> list[int | None]:
    with (
        closing(LocalExecutor(processes)) as executor,
        Repeats(THRESHOLD, executor=executor, likeness=QUESTIONS) as repeats,
    ):
        return [twin and twin.row for _, twin in repeats.find_all("pool", enumerate(texts))]


def peer(texts: list[str]) -> list[int | None]:
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    found = list[int | None]()
    for row, text in enumerate(texts):
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch(
            [shingle.encode("utf-8", "surrogatepass") for shingle in shingles(normal_form(text))]
        )
        alike = lsh.query(signature)
        found.append(min(alike) if alike else None)
        if not alike:
            lsh.insert(row, signature)
    return found


def run_side(side: str, limit: int | None, processes: int) -> None:
    texts = questions(limit)
    started = time.perf_counter()
    sides = {
        "ours": partial(ours, processes=processes),
        "alone": partial(ours, processes=1),
        "peer": peer,
    }
    found = sides[side](texts)
    seconds = time.perf_counter() - started
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    dropped = sum(twin is not None for twin in found)
    cpu = sum(used.ru_utime + used.ru_stime for used in usage)
    mib = sum(used.ru_maxrss / 1024 for used in usage)
    print(
        json.dumps(
            {"rows": len(texts), "seconds": seconds, "cpu": cpu, "dropped": dropped, "mib": mib}
        )
    )


def measured(side: str, limit: int | None, processes: int) -> dict[str, float]:
    """What a side says of itself, run in a new process."""
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--rows",
        str(limit or 0),
        "--processes",
        str(processes),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


# --- what is found --------------------------------------------------------------------------------


def similarities(texts: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """The exact Jaccard similarity of each row to all, a row at a time."""
    from sklearn.feature_extraction.text import CountVectorizer

    analyser = CountVectorizer(analyzer=lambda text: shingles(normal_form(text)), dtype=np.int32)
    matrix = analyser.fit_transform(texts).tocsr()
    sizes = np.diff(matrix.indptr)
    for start in range(0, len(texts), 500):
        both = (matrix[start : start + 500] @ matrix.T).toarray()
        for k, row in enumerate(both, start):
            yield k, row / (sizes[k] + sizes - row)


def recall(found: list[int | None], texts: list[str]) -> dict[str, int]:
    """Rows that are like an earlier row that stayed, how many of these were dropped, and rows that
    were dropped for one that they are not like.
    """
    stayed = np.array([twin is None for twin in found])
    there = 0
    hit = 0
    false = 0
    for row, alike in similarities(texts):
        if stayed[:row][alike[:row] >= THRESHOLD].any():
            there += 1
            hit += found[row] is not None
        twin = found[row]
        false += twin is not None and alike[twin] < THRESHOLD
    return {"there": there, "found": hit, "false": false}


# --- the report -----------------------------------------------------------------------------------


def compare(limit: int | None, processes: int, rounds: int) -> list[str]:
    table = []
    for number in range(1, rounds + 1):
        table.append({side: measured(side, limit, processes) for side in SIDES})
        print(
            f"round {number}: "
            + ", ".join(f"{k} {v['seconds']:.1f} s" for k, v in table[-1].items()),
            flush=True,
        )
    rows = int(table[0]["ours"]["rows"])
    best, cpu = (
        {side: min(row[side][what] for row in table) for side in SIDES}
        for what in ("seconds", "cpu")
    )
    return [
        f"## {rows:,} rows, {sum(map(len, questions(limit))) / 1e6:.0f} million characters",
        "",
        "Rows a second, from the first text to the last verdict, with the start of the processes; "
        "in brackets seconds. CPU",
        "seconds and MiB are of all processes, the CPU seconds with the start of each and with "
        "reading the file.",
        "",
        f"| round | {SIDES['ours']}, {processes} processes | {SIDES['alone']} | {SIDES['peer']} "
        "| CPU seconds, each | MiB, each |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {k} | "
            + " | ".join(
                f"{rows / row[side]['seconds']:,.0f} ({row[side]['seconds']:.2f})" for side in SIDES
            )
            + f" | {', '.join(format(row[side]['cpu'], '.1f') for side in SIDES)}"
            + f" | {', '.join(format(row[side]['mib'], ',.0f') for side in SIDES)} |"
            for k, row in enumerate(table, 1)
        ),
        "",
        f"Ratio of the best times: **{best['peer'] / best['ours']:.1f}** (bar: at least 10); with "
        f"one process {best['peer'] / best['alone']:.1f}; of the least CPU seconds "
        f"{cpu['peer'] / cpu['ours']:.1f} and {cpu['peer'] / cpu['alone']:.1f}. "
        f"Dropped: {table[0]['ours']['dropped']:,} rows by replaykit, "
        f"{table[0]['peer']['dropped']:,} by datasketch, which compares signatures alone.",
        "",
    ]


def against_every_pair() -> list[str]:
    texts = planted()
    lines = [
        f"## {len(texts):,} rows, 2,000 of them planted copies: every pair compared",
        "",
        f"To find are the rows that are at least {THRESHOLD} similar to an earlier row that "
        "stayed.",
        "",
        "| | to find | found | recall | dropped for a row that is less similar |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in (("replaykit", ours(texts, 1)), ("datasketch", peer(texts))):
        of = recall(found, texts)
        share = of["found"] / of["there"]
        lines.append(
            f"| {name} | {of['there']:,} | {of['found']:,} | {share:.4f} | {of['false']:,} |"
        )
        print(lines[-1], flush=True)
    return [*lines, "", "Bars: recall of at least 0.95, and no pair that is less similar."]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0, help="of the pool; by default all")
    parser.add_argument(
        "--quick", action="store_true", help=f"one round of {QUICK:,} rows; writes nothing"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(options.side, options.rows or None, options.processes)
        return
    rows, rounds = (QUICK, 1) if options.quick else (options.rows or None, options.rounds)
    lines = compare(rows, options.processes, rounds) + against_every_pair()
    print("\n".join(lines))
    if options.quick:
        return
    versions = [
        f"{name} {version(name)}" for name in ("replaykit-llm", "numpy", "rensa", "datasketch")
    ]
    head = [
        f"# Near-duplicates among the questions of a multi-task pool, {date.today()}",
        "",
        f"`python benchmarks/duplicates.py --rounds {rounds} --processes {options.processes}` on "
        f"{machine()}, {', '.join(versions)}",
        "",
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(head + lines) + "\n", encoding="utf-8")
    print(RESULTS)


if __name__ == "__main__":
    main()
