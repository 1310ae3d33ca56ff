"""Training against TRL's SFTTrainer on the same rows and model, and what each remedy costs, each
arm in a process of its own.

    python benchmarks/train.py --rounds 3

500 rows of GSM8K of at most 512 tokens of the embedded model's, one epoch, 32 rows a step, 8 at a
time. TRL is given our tokens and labels, so both train on the same answer tokens; a token is
counted once whoever pads it. Seconds are those between the first and the last step. For the
remedies 5 % of the loss tokens are rows of the embedded world. Rounds alternate between the arms;
ratios are of the medians. The result is printed and written to benchmarks/results/train.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import transformers

from replaykit.data.planned import PlannedRow
from replaykit.data.record import TARGET, Record, dialogue
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train
from replaykit.runs import machine, versions
from replaykit.steps.mix.plan import plan

RESULTS = Path(__file__).parent / "results" / "train.md"
GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_train.jsonl.gz"
ROWS = 500
# Tokens of a row.
LONGEST = 512
# Rows of a step, and of a micro-batch.
BATCH = 32
MICRO = 8
RATIO = 0.05
COMMON = {
    "batch_rows": BATCH,
    "micro_batch_rows": MICRO,
    "learning_rate": 5e-4,
    "log_every": 1,
    "save_every": 10**6,
}

# name -> (whether 5 % replay is mixed in, settings of train)
OURS: dict[str, tuple[bool, dict[str, Any]]] = {
    "replaykit": (False, {}),
    "5 % replay": (True, {}),
    "5 % replay, stm": (True, {"remedies": {"stm": {"max_perplexity": None, "share": 0.24}}}),
    "5 % replay, distill": (True, {"remedies": {"distill": {}}}),
    "5 % replay, project": (True, {"remedies": {"project": {}}}),
    "5 % replay, ewc": (True, {"remedies": {"ewc": {"rows": 64}}}),
    "5 % replay, lora": (True, {"method": "lora"}),
    "5 % replay, lora, distill": (True, {"method": "lora", "remedies": {"distill": {}}}),
    "5 % replay, lora, ewc": (True, {"method": "lora", "remedies": {"ewc": {"rows": 64}}}),
}
PEERS: dict[str, dict[str, Any]] = {
    "TRL": {},
    "TRL, grouped by length": {"train_sampling_strategy": "group_by_length"},
    "TRL, packed": {"packing": True, "max_length": LONGEST},
}


def rows(chat: Chat, count: int) -> list[Record]:
    """The first GSM8K rows that are short enough, so many of them."""
    found = []
    with gzip.open(GSM8K, "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            record = Record(dialogue(row["question"], row["answer"]), "target")
            if len(chat.example(record).tokens) <= LONGEST:
                found.append(record)
            if len(found) == count:
                break
    return found


def mixed(chat: Chat, target: list[Record], *, ratio: float) -> list[PlannedRow]:
    """The rows in training order."""
    old = [
        Record(dialogue(task.prompt, task.answer), "generate")
        for task in world.draw_old(400, seed=1)
    ]
    pools = {TARGET: target, "generate": old}
    sizes = {
        name: [chat.example(record).loss_tokens for record in pool] for name, pool in pools.items()
    }
    steps = plan(
        sizes[TARGET],
        {"generate": sizes["generate"]},
        settings=Mix(ratio=ratio, unit="loss_tokens"),
        train=Train(batch_rows=BATCH),
        seed=1,
    )
    return [
        PlannedRow(step, pools[slot.source][slot.row])
        for step, slots in enumerate(steps)
        for slot in slots
    ]


class Clock(transformers.TrainerCallback):
    """Seconds from the beginning of the first step to the end of the last."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def run_ours(name: str, chat: Chat, folder: Path, count: int) -> dict[str, Any]:
    replay, changes = OURS[name]
    settings = Train.model_validate({**COMMON, **changes})
    planned = mixed(chat, rows(chat, count), ratio=RATIO if replay else 0.0)
    weights = stm_weights(settings, [row.record for row in planned], chat, folder)
    return fit_ours("nano", planned, settings, chat, folder, weights)


def fit_ours(
    model: str,
    planned: Sequence[PlannedRow],
    settings: Train,
    chat: Chat,
    folder: Path,
    weights: Any = None,
) -> dict[str, Any]:
    """Trains on these rows; returns the seconds of the steps, the tokens and the losses."""
    from replaykit.steps.train.fit import Base, Extras, fit

    clock = Clock()
    extras = Extras(weights=weights, callbacks=[clock])
    result = fit(planned, Base(model, chat), settings, seed=1, folder=folder, extras=extras)
    return {
        "seconds": clock.seconds,
        "tokens": result.tokens,
        "losses": [log["loss"] for log in result.losses],
    }


def stm_weights(settings: Train, records: Sequence[Record], chat: Chat, folder: Path) -> Any:
    """The weights of answer tokens by STM; None where the arm has none."""
    if settings.remedies.stm is None:
        return None
    from replaykit.engines import load_engine
    from replaykit.steps.score.logprobs import Scores, different_examples, model_key, score_examples
    from replaykit.steps.train.remedies.weights import weights

    examples = different_examples(records, chat)
    with Scores(folder / "logprobs.jsonl", model_key("nano")) as known:
        logprobs = score_examples(examples, load_engine("nano", "transformers"), known)
    return weights(records, examples, logprobs, settings.remedies, chat, 1)


def run_trl(name: str, chat: Chat, folder: Path, count: int) -> dict[str, Any]:
    planned = mixed(chat, rows(chat, count), ratio=0.0)
    settings = Train.model_validate(COMMON)
    return fit_trl("nano", planned, settings, chat, folder, PEERS[name])


def fit_trl(
    model: str,
    planned: Sequence[PlannedRow],
    settings: Train,
    chat: Chat,
    folder: Path,
    options: dict[str, Any],
) -> dict[str, Any]:
    """The same by TRL's trainer with these options, on our tokens and labels, at our rate."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from replaykit.model import loading

    assert settings.micro_batch_rows is not None
    examples = [chat.example(row.record) for row in planned]
    labels = [[t if on else -100 for t, on in zip(e.tokens, e.loss, strict=True)] for e in examples]
    data = Dataset.from_dict({"input_ids": [list(e.tokens) for e in examples], "labels": labels})
    clock = Clock()
    adapter = None
    if settings.method == "lora":
        adapter = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
    trainer = SFTTrainer(
        model=loading.load_model(model, train=True),
        args=SFTConfig(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=settings.micro_batch_rows,
            gradient_accumulation_steps=settings.batch_rows // settings.micro_batch_rows,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(settings.warmup * len(planned) / settings.batch_rows),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            gradient_checkpointing=False,
            optim="adamw_torch_fused",
            **{"max_length": None, "train_sampling_strategy": "sequential", **options},
        ),
        train_dataset=data,
        processing_class=chat.tokenizer,
        callbacks=[clock],
        peft_config=adapter,
    )
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return {
        "seconds": clock.seconds,
        "tokens": sum(len(e.tokens) for e in examples),
        "losses": losses,
    }


def one(name: str, count: int) -> None:
    """Runs an arm in this process and prints what it measured."""
    transformers.utils.logging.set_verbosity_error()
    chat = Chat.load("nano")
    with tempfile.TemporaryDirectory() as folder:
        found = (run_ours if name in OURS else run_trl)(name, chat, Path(folder), count)
    found["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("MEASURED " + json.dumps(found))


def measured(name: str, count: int = ROWS) -> dict[str, Any]:
    words = [sys.executable, __file__, "--arm", name, "--rows", str(count)]
    done = subprocess.run(words, capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("MEASURED ")), None)
    if line is None:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return dict(json.loads(line.removeprefix("MEASURED ")))


def report(found: dict[str, list[dict[str, Any]]], command: str) -> str:
    def median(name: str, key: str) -> float:
        return statistics.median(run[key] for run in found[name])

    def speed(name: str) -> float:
        return median(name, "tokens") / median(name, "seconds")

    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    peers = [name for name in PEERS if name in found]
    lines = [
        f"# Training: {ROWS} rows of GSM8K, nano, {date.today()}",
        "",
        f"`{command}` on {machine()}, {packages}",
        "",
        "| | tokens/s, each round | median | times the best of TRL |",
        "| --- | --- | --- | --- |",
    ]
    best = max(map(speed, peers), default=float("nan"))
    for name in ["replaykit", *peers]:
        each = ", ".join(f"{run['tokens'] / run['seconds']:,.0f}" for run in found[name])
        lines.append(f"| {name} | {each} | {speed(name):,.0f} | {speed(name) / best:.2f} |")
    ratio = speed("replaykit") / speed("TRL")
    # Of a whole step of the same rows.
    first = [measured(name, BATCH)["losses"][0] for name in ("replaykit", "TRL")]
    apart = abs(first[0] - first[1])
    lines += [
        "",
        f"**{ratio:.2f}** times TRL as it is by default (bar: at least 1.5). The loss of a step of "
        f"the same 32 rows from the same weights: apart by {apart:.1e} (bar: 1e-5).",
    ]
    lines += [
        "",
        f"## Remedies, at {100 * RATIO:.0f} % replay",
        "",
        "| | seconds, each round | times the seconds without it | MiB | "
        "times the memory without it |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in [name for name in OURS if name != "replaykit"]:
        plain = "5 % replay, lora" if "lora" in name else "5 % replay"
        each = ", ".join(f"{run['seconds']:.1f}" for run in found[name])
        mib = median(name, "mib")
        time_ratio = median(name, "seconds") / median(plain, "seconds")
        lines.append(
            f"| {name} | {each} | {time_ratio:.3f} | {mib:,.0f} | "
            f"{mib / median(plain, 'mib'):.3f} |"
        )
    lines += [
        "",
        "Seconds are of the steps alone: what is done once before (scoring for stm, Fisher "
        "information for ewc) is not in them. MiB is the highest resident memory of the whole "
        "process.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--arm", choices=[*OURS, *PEERS], help="run one arm here and print what it measured"
    )
    parser.add_argument("--rows", type=int, default=ROWS, help="of that arm")
    options = parser.parse_args()
    if options.arm is not None:
        one(options.arm, options.rows)
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for number in range(options.rounds):
        for name in [*PEERS, *OURS]:
            found.setdefault(name, []).append(measured(name))
            run = found[name][-1]
            print(
                f"round {number + 1} {name}: {run['seconds']:.1f} s, {run['mib']:,.0f} MiB",
                file=sys.stderr,
            )
    text = report(found, f"python benchmarks/train.py --rounds {options.rounds}")
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
