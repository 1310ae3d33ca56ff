"""Tokens per second, MFU and memory on one CUDA GPU, beside TRL's SFTTrainer on the same rows, each
arm in its own process.

    python benchmarks/gpu/throughput.py --minutes 10    # as often as it says that arms are left
    python benchmarks/gpu/throughput.py --report        # benchmarks/results/gpu-throughput.md
    python benchmarks/gpu/throughput.py --mini          # in miniature on a CPU, with its report

Llamas with random weights learn rows of random tokens, 5 % of the loss tokens replay; TRL is given
our tokens and labels in our order. An arm leaves one JSON file and is skipped when it has one.
Warm-up steps are left out, the GPU is waited for at both ends, and the last steps are profiled: the
share of their time in which no kernel runs.

MFU is model FLOPs over the device's dense bf16 peak (PaLM, Chowdhery et al., arXiv 2204.02311,
appendix B), for a token of a row of length T, with L layers of width H and a vocabulary of V:

    full   6 * N + 12 * L * H * T + 6 * V * H * s
    LoRA   4 * N + 6 * A + 12 * L * H * T + 4 * V * H * s        (no gradients of frozen weights)

N counts the layers' matrices (no embeddings, no norms), A those of the adapter. The head counts
only for the share s of tokens that carry loss, since no other needs it, and causal attention as if
it were whole, as in PaLM. What a remedy does beyond the loss counts as nothing, so its cost shows
as a lower MFU.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import transformers

from replaykit.data.planned import PlannedRow
from replaykit.data.record import TARGET, Record, dialogue
from replaykit.model.chat import Chat
from replaykit.nano.template import BOS, END_HEADER, EOS, EOT, HEADER, PAD, TEMPLATE
from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train
from replaykit.runs import read_json, versions, write_json
from replaykit.steps.mix.plan import plan

RESULTS = Path(__file__).parents[1] / "results" / "gpu-throughput.md"
OUT = Path(os.environ.get("OUT", "build/gpu")) / "throughput"
RATIO = 0.05
RANK = 16
HEAD_DIM = 64
MASKED = 0.2  # of the answer tokens, by stm
# Medians of the log-normal lengths, in tokens, and their spread.
QUESTION = 60
ANSWER = 160
SIGMA = 0.8
# Dense bf16 FLOP/s by a part of the device's name, from NVIDIA's data sheets; the first that fits.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
}


@dataclass(frozen=True)
class Shape:
    """A Llama with heads of HEAD_DIM and tied embeddings."""

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int = 32_768

    @property
    def matrices(self) -> int:
        """N: parameters of the layers' matrices."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    @property
    def adapter(self) -> int:
        """A: parameters of a LoRA of rank RANK on all of them."""
        return self.layers * RANK * (8 * self.hidden + 3 * (self.hidden + self.intermediate))

    @property
    def parameters(self) -> int:
        """All of the model's, embeddings and norms too."""
        return self.matrices + self.vocabulary * self.hidden + (2 * self.layers + 1) * self.hidden


SHAPES = {
    "30m": Shape(384, 10, 1024),
    "150m": Shape(768, 18, 2048),
    "1b": Shape(2048, 14, 8192),
    "mini": Shape(64, 2, 128, vocabulary=512),
}


@dataclass(frozen=True)
class Load:
    """Optimiser steps (warm-up, timed, profiled), their rows, those of a micro-batch, and the
    longest row in tokens.
    """

    warmup: int = 5
    timed: int = 20
    profiled: int = 3
    rows: int = 64
    micro: int = 16
    longest: int = 1024

    @property
    def steps(self) -> int:
        return self.warmup + self.timed + self.profiled


FULL_LOAD = Load()
MINI_LOAD = Load(warmup=1, timed=3, profiled=1, rows=8, micro=4, longest=64)

# Settings of train by the last part of an arm's name; "plain" also stands unpacked.
OURS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stm": {},  # by weights that are given
    "dft": {"remedies": {"dft": True}},
    "distill": {"remedies": {"distill": {}}},
    "ewc": {"remedies": {"ewc": {"rows": 32}}},
    "l2sp": {"remedies": {"l2sp": {}}},
    "project": {"remedies": {"project": {}}},
    "ema": {"remedies": {"ema": {}}},
}
PEERS: dict[str, dict[str, Any]] = {
    "padded": {},
    "padding-free": {"padding_free": True},
    "packed": {"packing": True},
}


@dataclass(frozen=True)
class Arm:
    """One measurement, by the parts of its name."""

    size: str
    method: str
    trainer: str
    batching: str
    remedy: str

    @classmethod
    def of(cls, name: str) -> Arm:
        return cls(*name.split("/"))


def arm_names(*, mini: bool) -> list[str]:
    """size/method/trainer/batching/remedy of every arm, in the order in which they run."""
    if mini:
        return [
            "mini/full/replaykit/packed/plain",
            "mini/lora/replaykit/packed/distill",
            "mini/full/trl/padded/plain",
        ]
    names = []
    for size in [size for size in SHAPES if size != "mini"]:
        for method in ("full", "lora"):
            ours = ["padded/plain", *(f"packed/{remedy}" for remedy in OURS)]
            names += [f"{size}/{method}/replaykit/{arm}" for arm in ours]
            names += [f"{size}/{method}/trl/{batching}/plain" for batching in PEERS]
    return names


def flops_per_token(shape: Shape, *, lora: bool, length: float, loss_share: float) -> float:
    """Model FLOPs of forward and backward pass for one token; the module's text has the formula."""
    head = shape.vocabulary * shape.hidden * loss_share
    attention = 12 * shape.layers * shape.hidden * length
    if lora:
        return 4 * shape.matrices + 6 * shape.adapter + attention + 4 * head
    return 6 * shape.matrices + attention + 6 * head


def highest_memory() -> int:
    """The most bytes that this process has held. What getrusage tells begins with those of the
    process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peak_flops(device: str) -> float | None:
    """Dense bf16 FLOP/s of a device by its name; None where the table has it not."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


# --- the model and the rows -----------------------------------------------------------------------


def make_base(shape: Shape, folder: Path) -> None:
    """Random weights, stored in bfloat16, and a tokenizer that reads ``w17`` as one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = [BOS, EOS, EOT, PAD, HEADER, END_HEADER]
    words = [*special, "user", "assistant", "system"]
    words += [f"w{k}" for k in range(shape.vocabulary - len(words))]
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=BOS,
        eos_token=EOT,
        pad_token=PAD,
        chat_template=TEMPLATE,
        additional_special_tokens=[EOS, HEADER, END_HEADER],
    )
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.hidden // HEAD_DIM,
        tie_word_embeddings=True,
        num_key_value_heads=shape.hidden // HEAD_DIM,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(1)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def draw_rows(n: int, source: Any, *, vocabulary: int, longest: int, seed: int) -> list[Record]:
    """Rows of random words, whose questions and answers have log-normal lengths, cut so that
    none is over ``longest``.
    """
    rng = Random(f"{source}/{seed}")
    rows = []
    room = longest - 16  # for the template
    for _ in range(n):
        wanted = [median * math.exp(rng.gauss(0, SIGMA)) for median in (QUESTION, ANSWER)]
        scale = min(1.0, room / sum(wanted))
        lengths = [max(1, int(scale * length)) for length in wanted]
        question, answer = (
            " ".join(f"w{rng.randrange(vocabulary - 9)}" for _ in range(length))
            for length in lengths
        )
        rows.append(Record(dialogue(question, answer), source))
    return rows


def mixture(chat: Chat, shape: Shape, load: Load) -> list[PlannedRow]:
    """The rows in training order, RATIO of their loss tokens replay."""
    slots = load.steps * load.rows
    options = {"vocabulary": shape.vocabulary, "longest": load.longest, "seed": 1}
    pools = {
        TARGET: draw_rows(slots * 9 // 10, TARGET, **options),
        "generate": draw_rows(max(8, slots // 10), "generate", **options),
    }
    sizes = {
        name: [chat.example(record).loss_tokens for record in pool] for name, pool in pools.items()
    }
    steps = plan(
        sizes[TARGET],
        {"generate": sizes["generate"]},
        settings=Mix(ratio=RATIO),
        train=Train(batch_rows=load.rows, steps=load.steps),
        seed=1,
    )
    return [
        PlannedRow(step, pools[slot.source][slot.row])
        for step, slots in enumerate(steps)
        for slot in slots
    ]


def masks(records: Iterable[Record], chat: Chat) -> dict[str, np.ndarray]:
    """Weights as selective token masking gives them: MASKED of the answer tokens have none."""
    draw = np.random.default_rng(1)
    return {
        record.id: (draw.random(chat.example(record).loss_tokens) >= MASKED).astype(np.float32)
        for record in records
    }


# --- one arm --------------------------------------------------------------------------------------


class Clock(transformers.TrainerCallback):
    """Seconds and tokens of the timed steps, the highest memory in them, and how idle the GPU is
    in the profiled ones.
    """

    def __init__(self, load: Load, pad: int):
        self.load = load
        self.pad = pad
        self.gpu = torch.cuda.is_available()
        # Tokens of each micro-batch, left on the device: to read one is to wait.
        self.seen: list[torch.Tensor] = []
        self.attention = ""
        self.times: list[float] = []
        self.marks: list[int] = []
        self.memory = 0.0
        self.idle = None
        self.profile = None

    def count(self, ids: torch.Tensor) -> None:
        self.seen.append((ids != self.pad).sum())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.load.warmup:
            if self.gpu:
                torch.cuda.reset_peak_memory_stats()
            self._mark()
        elif state.global_step == self.load.warmup + self.load.timed:
            self._mark()
            if self.gpu:
                self.memory = torch.cuda.max_memory_allocated() / 2**30
                self.profile = torch.profiler.profile(
                    activities=[torch.profiler.ProfilerActivity.CUDA]
                )
                self.profile.start()
            else:
                self.memory = highest_memory() / 2**30
        elif state.global_step == self.load.steps and self.profile is not None:
            torch.cuda.synchronize()
            self.profile.stop()
            on_gpu = [
                event
                for event in self.profile.events()
                if event.device_type == torch.autograd.DeviceType.CUDA
                and not event.is_user_annotation
            ]
            self.idle = idle_share(
                [(event.time_range.start, event.time_range.end) for event in on_gpu]
            )

    def _mark(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.marks.append(len(self.seen))

    def measures(self) -> dict[str, Any]:
        tokens = int(sum(count.item() for count in self.seen[slice(*self.marks)]))
        return {
            "seconds": self.times[1] - self.times[0],
            "tokens": tokens,
            "gib": self.memory,
            "idle": self.idle,
            "attention": self.attention,
        }


def idle_share(spans: Sequence[tuple[float, float]]) -> float | None:
    """The share of the time from the first start to the last end that no span covers; None
    without spans.
    """
    if not spans:
        return None
    ordered = sorted(spans)
    busy = 0.0
    end = ordered[0][0]
    for start, stop in ordered:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - busy / (end - ordered[0][0])


def counting(trainer: Any, clock: Clock) -> Any:
    """The trainer's class with the clock in it."""

    class Counting(trainer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.add_callback(clock)
            clock.attention = str(self.model.config._attn_implementation)

        def training_step(self, model: Any, batch: Any, *rest: Any, **options: Any) -> torch.Tensor:
            clock.count(batch["input_ids"])
            return super().training_step(model, batch, *rest, **options)

    return Counting


def common(load: Load) -> dict[str, Any]:
    return {
        "batch_rows": load.rows,
        "micro_batch_rows": load.micro,
        "learning_rate": 1e-4,
        "rank": RANK,
        "log_every": 5,
        "save_every": 10**6,
        "max_tokens": load.longest,
    }


@dataclass(frozen=True)
class Data:
    """What both trainers are given."""

    rows: Sequence[PlannedRow]
    chat: Chat
    weights: dict[str, np.ndarray] | None
    """Of the answer tokens by record id, for stm."""

    @property
    def records(self) -> list[Record]:
        return [row.record for row in self.rows]


def run_ours(arm: Arm, load: Load, data: Data, base: Path, folder: Path) -> Any:
    from replaykit.steps.train import fit as fitting
    from replaykit.steps.train.estimate import estimate
    from replaykit.steps.train.fit import Base, Extras, fit

    clock = Clock(load, data.chat.tokenizer.pad_token_id)
    fitting.ReplayTrainer = counting(fitting.ReplayTrainer, clock)  # type: ignore[misc]
    settings = Train.model_validate(
        {
            **common(load),
            "method": arm.method,
            "packing": arm.batching == "packed",
            **OURS[arm.remedy],
        }
    )
    # As `replaykit train --dry-run` says it.
    foreseen = estimate(data.rows, str(base), None, data.chat, settings, folder=folder)
    result = fit(
        data.rows,
        Base(str(base), data.chat),
        settings,
        seed=1,
        folder=folder,
        extras=Extras(weights=data.weights),
    )
    losses = [log["loss"] for log in result.losses]
    return clock.measures() | {"losses": losses, "estimated_gib": foreseen.memory.peak / 2**30}


def run_trl(arm: Arm, load: Load, data: Data, base: Path, folder: Path) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from replaykit.model import loading

    chat = data.chat
    examples = [chat.example(record) for record in data.records]
    labels = [[t if on else -100 for t, on in zip(e.tokens, e.loss, strict=True)] for e in examples]
    rows = Dataset.from_dict({"input_ids": [list(e.tokens) for e in examples], "labels": labels})
    clock = Clock(load, chat.tokenizer.pad_token_id)
    gpu = torch.cuda.is_available()
    micro = load.micro
    options = {"max_length": None, **PEERS[arm.batching]}
    if arm.batching == "packed":  # one pack holds as many tokens as our micro-batch, by the mean
        pack = max(load.longest, micro * sum(len(e.tokens) for e in examples) // len(examples))
        options["max_length"] = pack
        micro = 1
    adapter = None
    if arm.method == "lora":
        adapter = LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    trainer = counting(SFTTrainer, clock)(
        model=loading.load_model(str(base), train=arm.method == "full"),
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=load.steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=load.rows // load.micro,
            learning_rate=1e-4,
            lr_scheduler_type="cosine",
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=gpu,
            use_cpu=not gpu,
            gradient_checkpointing=False,
            optim="adamw_torch_fused",
            train_sampling_strategy="sequential",
            **options,
        ),
        train_dataset=rows,
        processing_class=chat.tokenizer,
        peft_config=adapter,
    )
    trainer.train()
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return clock.measures() | {"losses": logged or [trainer.state.log_history[-1]["train_loss"]]}


def run_arm(name: str, out: Path) -> None:
    """Runs an arm in this process and writes its file."""
    transformers.utils.logging.set_verbosity_error()
    arm = Arm.of(name)
    shape = SHAPES[arm.size]
    load = MINI_LOAD if arm.size == "mini" else FULL_LOAD
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        folder = Path(scratch) / "run"
        folder.mkdir()
        make_base(shape, base)
        chat = Chat.load(str(base))
        rows = mixture(chat, shape, load)
        weights = masks([row.record for row in rows], chat) if arm.remedy == "stm" else None
        data = Data(rows, chat, weights)
        run = run_trl if arm.trainer == "trl" else run_ours
        found = run(arm, load, data, base, folder)
    write_json(arm_file(out, name), found | facts(name, shape, data, found))


def facts(name: str, shape: Shape, data: Data, found: dict[str, Any]) -> dict[str, Any]:
    """Speed, MFU, and what identifies the measurement."""
    records = data.records
    examples = {record.id: data.chat.example(record) for record in records}
    lengths = [len(examples[record.id].tokens) for record in records]
    if data.weights is None:
        with_loss = sum(examples[record.id].loss_tokens for record in records)
    else:
        with_loss = sum(int(np.count_nonzero(data.weights[record.id])) for record in records)
    device = f"CPU, {platform.machine()}"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    # Of the row in which a token stands, by the mean.
    length = sum(n * n for n in lengths) / sum(lengths)
    lora = Arm.of(name).method == "lora"
    flops = flops_per_token(shape, lora=lora, length=length, loss_share=with_loss / sum(lengths))
    speed = found["tokens"] / found["seconds"]
    peak = peak_flops(device)
    replay = sum(examples[r.id].loss_tokens for r in records if r.source != TARGET)
    return {
        "arm": name,
        "tokens_per_second": speed,
        "flops_per_token": flops,
        "mfu": speed * flops / peak if peak else None,
        "device": device,
        "date": str(date.today()),
        "parameters": shape.parameters,
        "replay_share": replay / sum(examples[r.id].loss_tokens for r in records),
        "versions": {**versions(), "cuda": torch.version.cuda},
        "mean_length": sum(lengths) / len(lengths),
    }


# --- all arms -------------------------------------------------------------------------------------


def arm_file(out: Path, name: str) -> Path:
    return out / f"{name.replace('/', '--')}.json"


def run_all(names: Sequence[str], out: Path, *, minutes: float) -> list[str]:
    """Runs the arms that have no file yet, each in a process, while the time lasts; returns those
    that are left.

    An arm is not begun if the longest so far would not fit in the time. One that fails leaves its
    last words in a file beside the results, and is tried again by the next call.
    """
    deadline = time.monotonic() + 60 * minutes
    longest = 0.0
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        words = arm_file(out, name).with_suffix(".failed.txt")
        if arm_file(out, name).exists():
            print(f"{name}: finished before", file=sys.stderr)
            continue
        started = time.monotonic()
        if started + longest > deadline:
            break
        command = [sys.executable, __file__, "--out", str(out), "--arm", name]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=max(1.0, deadline - started)
            )
        except subprocess.TimeoutExpired:
            break
        longest = max(longest, time.monotonic() - started)
        if done.returncode:
            words.write_text(done.stderr[-4000:], encoding="utf-8")
            print(f"{name}: failed, {words}", file=sys.stderr)
        else:
            words.unlink(missing_ok=True)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return [name for name in names if not arm_file(out, name).exists()]


def report(names: Sequence[str], out: Path) -> str:
    """The tables, one of each size on each device."""
    found = {name: made for name in names if (made := read_json(arm_file(out, name)))}
    if not found:
        raise SystemExit(f"{out}: no arm is finished, so there is nothing to report")
    lines = ["# Throughput on a GPU, beside TRL", ""]
    for device in dict.fromkeys(run["device"] for run in found.values()):
        on_it = {name: run for name, run in found.items() if run["device"] == device}
        packages = ", ".join(
            f"{name} {version}" for name, version in next(iter(on_it.values()))["versions"].items()
        )
        days = sorted({run["date"] for run in on_it.values()})
        packages += (
            f"; attention by {', '.join(sorted({run['attention'] for run in on_it.values()}))}"
        )
        lines += [f"{device}, {' to '.join(dict.fromkeys((days[0], days[-1])))}, {packages}", ""]
        for size in SHAPES:
            if own := {name: run for name, run in on_it.items() if name.startswith(f"{size}/")}:
                lines += _table(size, own)
    if left := [name for name in names if name not in found]:
        lines += ["Not measured:", "", *(f"* {name}{_last_words(out, name)}" for name in left), ""]
    load = FULL_LOAD if "mini" not in names[0] else MINI_LOAD
    length = next(iter(found.values()))["mean_length"]
    lines += [
        f"{load.timed} steps of {load.rows} rows, {load.micro} rows a micro-batch, after "
        f"{load.warmup} of warm-up; rows of random tokens of {length:.0f} tokens by the mean and "
        f"{load.longest} at most, {RATIO:.0%} of the loss tokens replay. "
        f"benchmarks/gpu/throughput.py says what MFU counts. Estimated is what `train --dry-run` "
        f"says of the memory before. Idle is the share of "
        f"{load.profiled} profiled steps in which no kernel runs. What is done once before the "
        f"first step (scoring for stm, Fisher information for ewc) is not in these times.",
        "",
    ]
    return "\n".join(lines)


def _table(size: str, runs: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        f"## {size}: {next(iter(runs.values()))['parameters'] / 1e6:,.1f} million parameters",
        "",
        "| method | trainer | rows | remedy | tokens/s | of packed plain | MFU | GiB | estimated | "
        "idle |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, run in runs.items():
        arm = Arm.of(name)
        plain = runs.get(f"{size}/{arm.method}/replaykit/packed/plain")
        part = f"{run['tokens_per_second'] / plain['tokens_per_second']:.2f}" if plain else "–"
        mfu, idle = ("–" if run[key] is None else f"{run[key]:.3f}" for key in ("mfu", "idle"))
        estimated = f"{run['estimated_gib']:.2f}" if "estimated_gib" in run else "–"
        lines.append(
            f"| {arm.method} | {arm.trainer} | {arm.batching} | {arm.remedy} | "
            f"{run['tokens_per_second']:,.0f} | {part} | {mfu} | {run['gib']:.2f} | {estimated} | "
            f"{idle} |"
        )
    lines.append("")
    for method in ("full", "lora"):
        ours, peers = (
            [
                run["tokens_per_second"]
                for name, run in runs.items()
                if name.startswith(f"{size}/{method}/{trainer}/") and name.endswith("/plain")
            ]
            for trainer in ("replaykit", "trl")
        )
        if ours and peers:
            lines += [
                f"{method}, the best of each: **{max(ours) / max(peers):.2f}** times TRL (aim: "
                f"1.2).",
                "",
            ]
    best = max((run["mfu"] for run in runs.values() if run["mfu"] is not None), default=None)
    return lines + (
        [f"Highest MFU: **{best:.3f}** (aim at 1b: 0.45).", ""] if best is not None else []
    )


def _last_words(out: Path, name: str) -> str:
    path = arm_file(out, name).with_suffix(".failed.txt")
    return (
        f": {path.read_text(encoding='utf-8').strip().splitlines()[-1][:200]}"
        if path.exists()
        else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="where finished arms are kept ($OUT/throughput)"
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="no arm runs longer than this call may"
    )
    parser.add_argument("--only", default="", help="arms with this in their name, such as 1b/full")
    parser.add_argument(
        "--report", action="store_true", help="write the tables of what is finished"
    )
    parser.add_argument(
        "--mini", action="store_true", help="in miniature on a CPU; the report stays in --out"
    )
    parser.add_argument("--arm", help="run one arm here")
    options = parser.parse_args()
    if options.arm is not None:
        run_arm(options.arm, options.out)
        return
    names = [name for name in arm_names(mini=options.mini) if options.only in name]
    if not names:
        raise SystemExit(
            f"--only {options.only}: no arm has that in its name, such as "
            f"1b/full/replaykit/packed/plain"
        )
    if not options.mini and not options.report and not torch.cuda.is_available():
        raise SystemExit(
            "there is no CUDA device here; --mini runs everything in miniature on a CPU"
        )
    left = [] if options.report else run_all(names, options.out, minutes=options.minutes)
    if left:
        raise SystemExit(
            f"{len(left)} of {len(names)} arms are left; the same command goes on from there"
        )
    if options.report or options.mini:
        path = options.out / "throughput.md" if options.mini else RESULTS
        path.write_text(report(names, options.out), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
