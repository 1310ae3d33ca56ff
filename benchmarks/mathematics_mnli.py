"""recipes/mathematics-mnli.yaml in small: a T5 that knows NLI learns mathematics, with the paper's
ratios of replay at equal compute.

    pip install mathematics_dataset
    python benchmarks/mathematics_mnli.py --seeds 1 2 3 --out build/mathematics_mnli
    python benchmarks/mathematics_mnli.py --report --out build/mathematics_mnli    # the table alone

A T5 of half a million parameters is trained from scratch, in plain torch, on a synthetic NLI
(``synthetic_nli``) until it is good on held-out names. Then the recipe itself is run, once for each
seed: its arms (no replay, mathematics to NLI 15:1, 7:1, 3:1 and 1:1) on easy questions of one
module of DeepMind's generator ("What is the tens digit of 65079?"), as many steps and rows a step
in every arm; its replay is the NLI that the base was trained on. Only what --settings shows is
changed in the recipe. Every step of a run leaves its folder, so a run that is stopped goes on where
it was.

What this shows: that the whole path runs for encoder-decoders on this file, how much of the old
skill each ratio keeps in this model, and what it costs the new one where replay takes the place of
target rows. What it does not show: anything of Flan-T5 or MultiNLI. The model knows one old skill
and no English; its NLI is a few templates; both tasks have one-word answers, so forgetting here is
for a good part that NLI is answered with numbers, as it may well be in the paper, whose fallen NLI
scores lie below those of constant answers. The paper's own figures (arXiv 2512.13706) come of one
seed, and of arms with up to twice the compute of the one without replay.

A T5 of this size learns little of DeepMind's modules in so few steps: of place_value a third in
1,000 steps and no more in 3,000 at two rates, of comparison__pair 0.28, of numbers__is_factor what
a coin gets, of numbers__round_number next to nothing. So the tables show what each ratio keeps, and
not what it costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import synthetic_nli
import torch
from seeds import interval

import replaykit
from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record
from replaykit.engines.transformers import TransformersEngine
from replaykit.model.chat import Chat
from replaykit.model.pair import Pair
from replaykit.recipe import Recipe, load_recipe
from replaykit.recipe.evaluate import Test
from replaykit.runs import machine, read_manifest, versions
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import EvalResult, ModelScores
from replaykit.steps.evaluate.skills import measure
from replaykit.steps.inputs import load
from replaykit.steps.step import typed

HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes" / "mathematics-mnli.yaml"
RESULTS = HERE / "results" / "mathematics_mnli.md"
SPECIAL = ("<pad>", "</s>", "<unk>")
# Shorter than Flan's, which costs this model twice the time and tells it nothing more.
PROMPT = "Premise: {premise} Hypothesis: {hypothesis}"
LABELS = ["yes", "maybe", "no"]
LEARNED = 0.7  # the part of held-out mathematics from which on it is learned
MODULES = ("numbers__place_value",)


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    width: int
    """Of the model's states; it has four heads."""
    layers: tuple[int, int]
    """Of the encoder and of the decoder."""
    vocabulary: int
    base_steps: int
    """At most; it is tested every tenth of them."""
    good: float
    """The part of NLI items with held-out names, others than the tests', at which it ends."""
    base_rows: int
    """Of a step."""
    base_rate: float
    least: float
    """The part of held-out NLI that the base has to get right, or there is nothing to forget."""
    pool: int
    """NLI items that replay is drawn from, the first that the base was trained on."""
    tests: int
    """Held-out items of each skill."""
    steps: int
    batch_rows: int
    """A multiple of 16, so that every ratio is a whole number of rows."""
    rate: float


FULL = Size(
    width=96,
    layers=(2, 2),
    vocabulary=384,
    base_steps=4000,
    good=0.98,
    base_rows=48,
    base_rate=2e-3,
    least=0.9,
    pool=6000,
    tests=600,
    steps=1000,
    batch_rows=32,
    rate=1e-3,
)
QUICK = Size(
    width=32,
    layers=(1, 1),
    vocabulary=256,
    base_steps=20,
    good=1.0,
    base_rows=16,
    base_rate=2e-3,
    least=0.0,
    pool=200,
    tests=24,
    steps=4,
    batch_rows=16,
    rate=1e-3,
)


# --- data -----------------------------------------------------------------------------------------


def write_data(out: Path, size: Size, given: Path | None) -> None:
    """Writes NLI and mathematics, to learn and held out; what is there stays."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "nli-test.jsonl").exists():
        write_lines(
            out / "nli.jsonl", synthetic_nli.items(size.base_steps * size.base_rows, seed=1)
        )
        held = synthetic_nli.items(2 * size.tests, seed=1, held_out=True)
        write_lines(out / "nli-watched.jsonl", held[size.tests :])
        write_lines(out / "nli-test.jsonl", held[: size.tests])
    if (out / "mathematics.jsonl").exists():
        return
    made = given or drawn_mathematics(out, size.tests + size.steps * size.batch_rows)
    with made.open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    if len(rows) < 2 * size.tests:
        raise SystemExit(f"{made} has {len(rows)} rows; {2 * size.tests} are needed at least")
    write_lines(out / "mathematics-test.jsonl", rows[: size.tests])
    write_lines(out / "mathematics.jsonl", rows[size.tests :])


def drawn_mathematics(out: Path, count: int) -> Path:
    """So many rows of DeepMind's generator, by the script that the recipe names."""
    made = out / "drawn.jsonl"
    words = ["--easy", "--rows", str(count), "--out", str(made), "--modules", *MODULES]
    subprocess.run([sys.executable, str(HERE / "mathematics_rows.py"), *words], check=True)
    return made


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as JSON Lines; the file is there when all of it is."""
    temporary = path.with_suffix(".tmp")
    write_jsonl(temporary, rows)
    temporary.replace(path)


def settings(out: Path, size: Size, seed: int) -> dict[str, Any]:
    """What is changed in the recipe."""
    nli = {"prompt": PROMPT, "answer": "label", "labels": LABELS}
    pool = {"path": str(out / "nli.jsonl"), "n": size.pool, **nli}
    held = {"path": str(out / "nli-test.jsonl"), "max_tokens": 8, **nli}
    return {
        "out": str(out / f"seed-{seed}"),
        "model": str(out / "base"),
        "seed": seed,
        "target": str(out / "mathematics.jsonl"),
        "select.n": size.pool,
        "select.pool": pool,
        "train.steps": size.steps,
        "train.batch_rows": size.batch_rows,
        "train.micro_batch_rows": size.batch_rows,
        "train.learning_rate": size.rate,
        "eval.target": {"path": str(out / "mathematics-test.jsonl"), "max_tokens": 16},
        "eval.old": {"nli": held},
    }


# --- the base -------------------------------------------------------------------------------------


def make_base(out: Path, size: Size) -> None:
    """A T5 that knows NLI, in ``out``/base, and how well in base.json; a finished one stays.

    Raises SystemExit where it has not learned it.
    """
    place = out / "base.json"
    if not place.exists():
        begun = time.perf_counter()
        facts = train_base(out, size)
        facts["seconds"] = round(time.perf_counter() - begun)
        place.write_text(json.dumps(facts))
        print(f"base: {facts}", file=sys.stderr, flush=True)
    found = json.loads(place.read_text())["nli"]
    if found < size.least:
        raise SystemExit(
            f"the base gets {found:.2f} of held-out NLI right, and {size.least} is needed, or "
            f"there is nothing to forget; raise base_steps in FULL and take another --out"
        )


def train_base(out: Path, size: Size) -> dict[str, Any]:
    """Trains it in one pass over the NLI rows; returns its score and what it is."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(1)
    recipe = load_recipe(RECIPE, settings(out, size, seed=1))
    pool = recipe.select
    assert pool is not None
    assert pool.pool is not None
    rows = load(pool.pool.model_copy(update={"n": None}), "select").records
    tokenizer = tokenizer_of(out, rows, size)
    encoder, decoder = size.layers
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=size.width,
        d_kv=size.width // 4,
        d_ff=3 * size.width,
        num_heads=4,
        num_layers=encoder,
        num_decoder_layers=decoder,
        decoder_start_token_id=tokenizer.pad_token_id,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,  # as in Flan-T5
        relative_attention_max_distance=64,
    )
    model = T5ForConditionalGeneration(config)
    chat = Chat(tokenizer, name="base", seq2seq=True)
    test = recipe.eval.old["nli"]
    watched = test.model_copy(update={"path": str(out / "nli-watched.jsonl")})
    steps = learn(model, chat, rows, watched, size)
    model.save_pretrained(out / "base")
    tokenizer.save_pretrained(out / "base")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"nli": known(model, chat, test), "parameters": parameters, "steps": steps}


def tokenizer_of(out: Path, rows: Sequence[Record], size: Size) -> Any:
    """A byte-pair encoding of both tasks, each digit a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [text for row in islice(rows, 4000) for text in (row.prompt, row.answer)]
    with (out / "mathematics.jsonl").open(encoding="utf-8") as stream:
        for line in islice(stream, 4000):
            row = json.loads(line)
            texts += [row["question"], row["answer"]]
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary, special_tokens=list(SPECIAL), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    pad, end, unknown = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pad, eos_token=end, unk_token=unknown
    )


def learn(model: Any, chat: Chat, rows: Sequence[Record], watched: Test, size: Size) -> int:
    """AdamW at a constant rate after a warmup, each row once, until it is good or no row is left;
    returns the steps.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=size.base_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 0.01, total_iters=100)
    order = Random(1).sample(rows, len(rows))
    every = size.base_steps // 10
    losses: list[float] = []
    for start in range(0, len(order), size.base_rows):
        model.train()
        loss = model(**tensors(chat, order[start : start + size.base_rows])).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if len(losses) % every:
            continue
        score = known(model, chat, watched)
        mean = statistics.fmean(losses[-every:])
        said = f"base: step {len(losses)}, loss {mean:.3f}, NLI {score:.2f}"
        print(said, file=sys.stderr, flush=True)
        if score >= size.good:
            break
    return len(losses)


def tensors(chat: Chat, rows: Sequence[Record]) -> dict[str, torch.Tensor]:
    """What transformers' own T5 takes: questions, their mask, and answers as labels."""
    pairs = [chat.example(row).scored for row in rows]
    questions = [pair.question for pair in pairs if isinstance(pair, Pair)]
    answers = [pair.answer for pair in pairs if isinstance(pair, Pair)]
    return {
        "input_ids": padded(questions, 0),
        "attention_mask": padded([[1] * len(question) for question in questions], 0),
        "labels": padded(answers, -100),
    }


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def known(model: Any, chat: Chat, test: Test) -> float:
    """The part of the test that the model gets right."""
    records = load(test, "target").records
    items = measure(TransformersEngine(model), chat, {"nli": (test, records)})
    return round(statistics.fmean(item.score or 0.0 for item in items), 4)


# --- the table ------------------------------------------------------------------------------------


def evaluated(out: Path, seed: int) -> EvalResult:
    """What a seed's run found. Raises SystemExit where it is not finished."""
    folder = out / f"seed-{seed}" / "eval"
    manifest = read_manifest(folder)
    if manifest is None:
        raise SystemExit(f"{folder} is not finished; the same command without --report goes on")
    return typed(manifest, EvalResult, folder)


def report(out: Path, size: Size, seeds: Sequence[int], command: str) -> str:
    """The tables in Markdown."""
    recipe = load_recipe(RECIPE, settings(out, size, seeds[0]))
    found = {seed: evaluated(out, seed) for seed in seeds}
    base = json.loads((out / "base.json").read_text())
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        f"# Mathematics after NLI, a small T5, {len(seeds)} seeds, {date.today()}",
        "",
        f"`{command}` on {machine()}, {packages}",
        "",
        f"A T5 of {base['parameters']:,} parameters, trained from scratch on a synthetic NLI "
        f"({base['steps']:,} steps, {base['seconds']} s), then {size.steps:,} steps of "
        f"{size.batch_rows} rows at {size.rate:g} in every arm. {size.tests} held-out items of "
        f"each. A constant answer to the questions of each module would get "
        f"{constant(out / 'mathematics-test.jsonl'):.2f} of mathematics, and to NLI "
        f"{constant(out / 'nli-test.jsonl', 'label'):.2f}.",
        "",
        *summary(found, recipe, size),
        "",
        *by_seed(found),
        "",
        *unlearned(found),
        "Above: the mean over seeds ± half the 95 % interval of Student's t, with the seeds' own "
        "values. Below: 95 % intervals of one training, Wilson's for a score and Newcombe's for a "
        "change, the items paired.",
    ]
    return "\n".join(lines) + "\n"


def unlearned(found: Mapping[int, EvalResult]) -> Iterator[str]:
    """What is said where the arm without replay has not learned mathematics."""
    new = [scores_of(result, "no-replay").scores["target"].mean for result in found.values()]
    if statistics.fmean(new) < LEARNED:
        yield (
            f"Without replay mathematics comes to less than {LEARNED}: it is not learned, and what "
            f"replay costs it cannot be seen here."
        )
        yield ""


def summary(found: Mapping[int, EvalResult], recipe: Recipe, size: Size) -> Iterator[str]:
    """A line for each model, over the seeds."""
    yield "| arm | replay rows a step | NLI | mathematics | seconds of training |"
    yield "| --- | --- | --- | --- | --- |"
    for model in next(iter(found.values())).models:
        name = model.model
        same = [scores_of(result, name) for result in found.values()]
        replay = "–"
        seconds = "–"
        if name in recipe.arms:
            replay = f"{(recipe.arms[name].ratio or 0) * size.batch_rows:g} of {size.batch_rows}"
            seconds = f"{statistics.fmean(trained_seconds(recipe, found, name)):.0f}"
        nli = interval([scores.scores["nli"].mean for scores in same])
        new = interval([scores.scores["target"].mean for scores in same])
        yield f"| {name} | {replay} | {nli} | {new} | {seconds} |"


def by_seed(found: Mapping[int, EvalResult]) -> Iterator[str]:
    """A line for each training, with its change against the base."""
    yield "| arm | seed | NLI | change | mathematics | change |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name in [model.model for model in next(iter(found.values())).models]:
        for seed, result in found.items():
            scores = scores_of(result, name)
            cells = []
            for skill in ("nli", "target"):
                cells.append(shown(scores.scores[skill]))
                cells.append(change(scores.drop.get(skill)))
            yield f"| {name} | {seed} | {' | '.join(cells)} |"


def scores_of(result: EvalResult, name: str) -> ModelScores:
    return next(model for model in result.models if model.model == name)


def trained_seconds(recipe: Recipe, found: Mapping[int, EvalResult], arm: str) -> Iterator[float]:
    """How long each seed's training took."""
    for seed in found:
        manifest = read_manifest(recipe.folder.with_name(f"seed-{seed}") / f"train-{arm}")
        assert manifest is not None
        yield manifest.seconds or 0.0


def shown(found: Interval) -> str:
    return f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"


def change(drop: Interval | None) -> str:
    """The change against the base, which is the drop the other way about."""
    if drop is None:
        return "–"
    # Subtracted, so that no change is +0.00.
    gain = [0.0 - bound for bound in (drop.mean, drop.high, drop.low)]
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*gain)


def constant(path: Path, answer: str = "answer") -> float:
    """What the most frequent answer of each module would get."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            counts[row.get("module", "")][str(row[answer])] += 1
    best = sum(count.most_common(1)[0][1] for count in counts.values())
    return best / sum(count.total() for count in counts.values())


# --- all of it ------------------------------------------------------------------------------------


def run(out: Path, size: Size, seeds: Sequence[int], mathematics: Path | None) -> None:
    """All of it, from where a run that was stopped has come to."""
    place = out / "size.json"
    if place.exists() and json.loads(place.read_text()) != json.loads(json.dumps(asdict(size))):
        raise SystemExit(f"{out} was made in another size; take another --out")
    write_data(out, size, mathematics)
    place.write_text(json.dumps(asdict(size)))
    make_base(out, size)
    for seed in seeds:
        begun = time.perf_counter()
        replaykit.run(load_recipe(RECIPE, settings(out, size, seed)))
        print(f"seed {seed}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/mathematics_mnli"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--mathematics", type=Path, help="rows of mathematics_rows.py made before")
    parser.add_argument("--quick", action="store_true", help="a miniature that learns nothing")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    parser.add_argument("--settings", action="store_true", help="print what the recipe is given")
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    if given.settings:
        print(json.dumps(settings(given.out, size, given.seeds[0]), indent=2))
        return
    if not given.report:
        run(given.out, size, given.seeds, given.mathematics)
    seeds = " ".join(map(str, given.seeds))
    text = report(
        given.out, size, given.seeds, f"python benchmarks/{Path(__file__).name} --seeds {seeds}"
    )
    if not given.quick and not given.report:
        RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
