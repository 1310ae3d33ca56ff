"""Generation against raw ``vllm.LLM.generate`` on the same prompts and seeds, in one process with
one engine.

    python benchmarks/generate.py --rows 10000 --rounds 3

Ours draws questions, checks and answers them, and writes ledgers, rows and dropped rows. The peer
gets the very requests that ours sent, as two calls (all questions, then all answers), does no check
and writes nothing. Rounds alternate; the ratio is of the medians. The result is printed and written
to benchmarks/results/generate.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from replaykit.checks.funnel import Funnel
from replaykit.data.jsonl import write_jsonl
from replaykit.engines import Completion, Engine, Request, load_engine
from replaykit.model.chat import Chat
from replaykit.recipe.generate import Generate
from replaykit.runs import machine, versions
from replaykit.steps.generate.draw import generate_rows
from replaykit.steps.generate.job import Job, Monitor

RESULTS = Path(__file__).parent / "results" / "generate.md"


class Listening:
    """The engine, and a list of all requests that it was sent."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.sent: list[Request] = []
        self.name = engine.name
        self.limit = engine.limit

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        def heard() -> Iterator[Request | None]:
            for request in requests:
                if request is not None:
                    self.sent.append(request)
                yield request

        yield from self.engine.complete(heard())

    def score(self, sequences: Iterable[Sequence[int]]) -> Iterator[list[float]]:
        return self.engine.score(sequences)

    def close(self) -> None:
        self.engine.close()


class Ours(NamedTuple):
    """What one generation took, made and sent."""

    seconds: float
    kept: int
    funnel: str
    sent: list[Request]


class Round(NamedTuple):
    """One seed of the table."""

    seed: int
    ours: Ours
    raw_seconds: float


def ours(engine: Engine, chat: Chat, rows: int, seed: int) -> Ours:
    listening = Listening(engine)
    # The rows of the embedded model are short.
    settings = Generate(n=rows, max_question_tokens=96, max_answer_tokens=64)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with (folder / "dropped.jsonl").open("w") as dropped:
            funnel = Funnel(lambda row: dropped.write(json.dumps(row, ensure_ascii=False) + "\n"))
            monitor = Monitor(funnel=funnel)
            started = time.perf_counter()
            made = generate_rows(
                listening, chat, Job(settings, seed), folder=folder, monitor=monitor
            )
            kept = write_jsonl(folder / "rows.jsonl", made)
            seconds = time.perf_counter() - started
    return Ours(seconds, kept, str(funnel), listening.sent)


def raw(engine: Any, sent: list[Request], chat: Chat) -> float:
    """Seconds that ``LLM.generate`` takes for the requests: the questions, then the answers."""
    from vllm import SamplingParams, TokensPrompt

    # Requests for questions have even numbers, those for answers odd ones.
    stages = ([r for r in sent if r.row % 2 == 0], [r for r in sent if r.row % 2 == 1])
    started = time.perf_counter()
    for requests in stages:
        prompts = [TokensPrompt(prompt_token_ids=list(r.tokens)) for r in requests]
        params = [
            SamplingParams(
                temperature=r.sampling.temperature,
                top_p=r.sampling.top_p,
                max_tokens=r.sampling.max_tokens,
                seed=r.seed,
                stop_token_ids=list(r.sampling.stop),
                detokenize=False,
            )
            for r in requests
        ]
        outputs = engine._llm.generate(prompts, params, use_tqdm=False)
        for output in outputs:
            # A user of vLLM wants text, too.
            chat.decode(output.outputs[0].token_ids)
    return time.perf_counter() - started


def resident() -> float:
    """The highest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="nano")
    options = parser.parse_args()
    chat = Chat.load(options.model)
    engine = load_engine(options.model, "vllm")
    ours(engine, chat, 500, seed=99)  # both start warm
    table: list[Round] = []
    memory = [resident()]
    for seed in range(1, options.rounds + 1):
        made = ours(engine, chat, options.rows, seed)
        memory.append(resident())
        peer = raw(engine, made.sent, chat)
        table.append(Round(seed, made, peer))
        ratio = made.seconds / peer
        print(f"seed {seed}: ours {made.seconds:.1f} s, raw {peer:.1f} s, ratio {ratio:.3f}")
    engine.close()
    ratio = write(options, table, memory)
    print(f"ratio of the medians {ratio:.3f}; {RESULTS}")


def write(options: argparse.Namespace, table: list[Round], memory: list[float]) -> float:
    """Writes the result; returns the ratio of the medians."""
    own = statistics.median(one.ours.seconds for one in table)
    peers = statistics.median(one.raw_seconds for one in table)
    command = (
        f"python benchmarks/generate.py --rows {options.rows} --rounds {options.rounds} "
        f"--model {options.model}"
    )
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        f"# Generation: {options.rows:,} rows, {options.model}, {date.today()}",
        "",
        f"`{command}` on {machine()}, {packages}",
        "",
        "| seed | replaykit | raw `LLM.generate`, the same requests | ratio | rows kept | requests "
        "| funnel |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for seed, made, peer in table:
        lines.append(
            f"| {seed} | {made.seconds:.1f} s | {peer:.1f} s | {made.seconds / peer:.3f} "
            f"| {made.kept:,} | {len(made.sent):,} | {made.funnel} |"
        )
    lines += [
        "",
        f"Ratio of the medians: **{own / peers:.3f}** (bar: at most 1.05). Highest resident memory "
        f"of the process, in MiB: {memory[0]:,.0f} after 500 rows, {memory[1]:,.0f} after "
        f"{options.rows:,} more.",
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return own / peers


if __name__ == "__main__":
    main()
