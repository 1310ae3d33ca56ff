"""Generation against raw ``vllm.LLM.generate`` on the same prompts and seeds, in one process with one engine.

    python benchmarks/generate.py --rows 10000 --rounds 3

Ours draws questions, checks and answers them, and writes ledgers, rows and dropped rows. The peer is given the very
requests that ours sent, as two calls (all questions, then all answers), does no check and writes nothing. Rounds alternate;
the ratio is of the medians. The result is printed and written to benchmarks/results/generate.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from replaykit.chat import Chat
from replaykit.checks.funnel import Funnel
from replaykit.engines import Completion, Request, load_engine
from replaykit.records import write_jsonl
from replaykit.runs import machine, versions
from replaykit.settings import Generate
from replaykit.sources.generate import generate

RESULTS = Path(__file__).parent / "results" / "generate.md"


class Listening:
    """The engine, and a list of all requests that it was sent."""

    def __init__(self, engine: Any):
        self.engine, self.sent = engine, list[Request]()
        self.name, self.limit = engine.name, engine.limit

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        def heard() -> Iterator[Request | None]:
            for request in requests:
                if request is not None:
                    self.sent.append(request)
                yield request

        yield from self.engine.complete(heard())

    def score(self, sequences: Any) -> Any:
        return self.engine.score(sequences)

    def close(self) -> None:
        self.engine.close()


def ours(engine: Any, chat: Chat, rows: int, seed: int) -> dict[str, Any]:
    listening, funnel = Listening(engine), Funnel()
    settings = Generate(
        n=rows, max_question_tokens=96, max_answer_tokens=64
    )  # the embedded model's rows are short
    with (
        tempfile.TemporaryDirectory() as folder,
        (Path(folder) / "dropped.jsonl").open("w") as dropped,
    ):
        funnel = Funnel(lambda row: dropped.write(json.dumps(row, ensure_ascii=False) + "\n"))
        started = time.perf_counter()
        made = generate(
            listening, chat, settings=settings, seed=seed, folder=Path(folder), funnel=funnel
        )
        kept = write_jsonl(Path(folder) / "rows.jsonl", made)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "kept": kept, "funnel": str(funnel), "sent": listening.sent}


def raw(engine: Any, sent: list[Request], chat: Chat) -> float:
    """Seconds that ``LLM.generate`` takes for the requests: the questions, then the answers."""
    from vllm import SamplingParams, TokensPrompt

    stages = ([r for r in sent if r.row % 2 == 0], [r for r in sent if r.row % 2 == 1])
    started = time.perf_counter()
    for requests in stages:
        prompts = [TokensPrompt(prompt_token_ids=list(r.tokens)) for r in requests]
        params = [
            SamplingParams(
                temperature=r.sampling.temperature, top_p=r.sampling.top_p, max_tokens=r.sampling.max_tokens,
                seed=r.seed, stop_token_ids=list(r.sampling.stop), detokenize=False,
            )
            for r in requests
        ]  # fmt: skip
        outputs = engine._llm.generate(prompts, params, use_tqdm=False)
        for output in outputs:  # text is what a user of vLLM wants, too
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
    chat, engine = Chat.load(options.model), load_engine(options.model, "vllm")
    ours(engine, chat, 500, seed=99)  # both start warm
    table, memory = [], [resident()]
    for seed in range(1, options.rounds + 1):
        made = ours(engine, chat, options.rows, seed)
        memory.append(resident())
        peer = raw(engine, made["sent"], chat)
        table.append((seed, made["seconds"], peer, made["kept"], len(made["sent"]), made["funnel"]))
        print(
            f"seed {seed}: ours {made['seconds']:.1f} s, raw {peer:.1f} s, ratio {made['seconds'] / peer:.3f}"
        )
    engine.close()
    own, peers = (
        statistics.median(row[1] for row in table),
        statistics.median(row[2] for row in table),
    )
    lines = [
        f"# Generation: {options.rows:,} rows, {options.model}, {date.today()}",
        "",
        f"`python benchmarks/generate.py --rows {options.rows} --rounds {options.rounds} --model {options.model}` on "
        f"{machine()}, " + ", ".join(f"{name} {version}" for name, version in versions().items()),
        "",
        "| seed | replaykit | raw `LLM.generate`, the same requests | ratio | rows kept | requests | funnel |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {s} | {a:.1f} s | {b:.1f} s | {a / b:.3f} | {k:,} | {r:,} | {f} |"
            for s, a, b, k, r, f in table
        ),
        "",
        f"Ratio of the medians: **{own / peers:.3f}** (bar: at most 1.05). Highest resident memory of the process, in MiB: "
        f"{memory[0]:,.0f} after 500 rows, {memory[1]:,.0f} after {options.rows:,} more.",
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"ratio of the medians {own / peers:.3f}; {RESULTS}")


if __name__ == "__main__":
    main()
