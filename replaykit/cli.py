"""The command line: a command reads its flags, calls one function of ``pipeline``, and prints what
came out.

Everything heavy is imported inside the functions that use it, so that --help is instant.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replaykit import __version__
from replaykit.errors import ReplaykitError, Stopped

if TYPE_CHECKING:
    from replaykit.pipeline.step import Outcome
    from replaykit.runs import Watch

RECIPE_FILE = Path(
    "replaykit.yaml"
)  # as recipe.RECIPE_FILE, which would bring pydantic into --help


class Commands(typer.core.TyperGroup):
    """Turns an error that the user can mend into one message and exit code 1; anything else is our
    bug and a traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Stopped as stopped:
            typer.echo(f"\n{stopped}", err=True)
            raise typer.Exit(stopped.exit_code) from stopped
        except ReplaykitError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            typer.echo(
                "\nstopped; what was finished is safe, and the same command goes on from there",
                err=True,
            )
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune a language model without losing what it knew, and prove it.",
    epilog="Start with: replaykit quickstart",
)

RecipePath = Annotated[
    Path | None,
    typer.Option(
        "--recipe", "-r", help="The recipe; replaykit.yaml where there is one.", show_default=False
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="An alias (llama3, qwen3-8b, nano, ...), a Hub id or a folder.", show_default=False
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="The new task's rows: a file, a folder or a Hub data set.", show_default=False
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(help="auto, vllm, openai (with --server) or transformers.", show_default=False),
]
OwnEngine = Annotated[
    str | None, typer.Option("--engine", help="auto, vllm or transformers.", show_default=False)
]
Server = Annotated[
    str | None,
    typer.Option(
        help="http://host:8000/v1 of a completions server, such as `vllm serve` starts.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes with a whole model each, one for each GPU; 1 by default.",
        show_default=False,
    ),
]
TensorParallel = Annotated[
    int | None, typer.Option(help="GPUs that share one model, in vllm.", show_default=False)
]
Thinking = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking",
        help="Let the model think before it answers.",
        show_default=False,
    ),
]
PreQuery = Annotated[
    str | None,
    typer.Option(
        help=r"By hand: what stands before a question; \n is a line break.", show_default=False
    ),
]
AnswerHeader = Annotated[
    str | None,
    typer.Option(
        help="By hand: what stands between a question and its answer.", show_default=False
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        help="A token that ends a turn, besides those that are found; may be given again.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Write here instead of under runs/.", show_default=False)
]
Seed = Annotated[
    int | None,
    typer.Option(help="Of everything drawn at random; 1 by default.", show_default=False),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Do a finished step again; the old result is kept beside it."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")
]
ArmName = Annotated[
    str | None,
    typer.Option("--arm", help="Only this one of the recipe's arms.", show_default=False),
]
Rows = Annotated[
    int | None, typer.Option("-n", help="How many rows; 2000 by default.", show_default=False)
]


@app.command()
def quickstart(
    out: Out = None, seed: Seed = None, force: Force = False, as_json: AsJson = False
) -> None:
    """See a small model forget, and then not forget: the whole story on this machine's CPU, in
    minutes, offline.
    """
    from replaykit.starter import write_quickstart

    recipe = write_quickstart(out or Path("runs/quickstart"), seed=1 if seed is None else seed)
    _run(recipe, {}, force=force, as_json=as_json, last_only=True)


@app.command()
def init(
    model: Model = None,
    target: Target = None,
    pool: Annotated[
        str | None, typer.Option(help="Old data to select replay from.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = RECIPE_FILE,
    seed: Seed = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if it is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe to start from."""
    from replaykit.starter import write_recipe

    written = write_recipe(out, model=model, target=target, pool=pool, seed=seed, force=force)
    _print(
        {"recipe": str(written), "next": f"replaykit run {written}"},
        lambda: typer.echo(f"wrote {written}; look it over, then: replaykit run {written}"),
        as_json,
    )


@app.command()
def probe(
    model: Model = None,
    samples: Annotated[
        int, typer.Option(help="Questions to draw; 0 needs the tokenizer alone, not the weights.")
    ] = 20,
    engine: Engine = None,
    server: Server = None,
    thinking: Thinking = None,
    pre_query: PreQuery = None,
    answer_header: AnswerHeader = None,
    stop: Stop = None,
    recipe: RecipePath = None,
    out: Out = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Show what a model's chat template gives: pre-query, stops, and questions that the model
    writes from it.
    """
    changes = {"model": model, "engine.name": engine, "engine.server": server, "seed": seed}
    changes |= _chat(thinking, pre_query, answer_header, stop)
    _steps("probe", recipe, changes, out, force, as_json, samples=samples)


@app.command()
def select(
    pool: Annotated[
        str | None,
        typer.Option(help="The old data: a file, a folder or a Hub data set.", show_default=False),
    ] = None,
    target: Target = None,
    n: Rows = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="tfidf, bm25, embedding, near-and-far, mmr, or without a target random, "
            "stratified, k-centre, herding.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="nearest or centroid: what of the target a row is near to.", show_default=False
        ),
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            help="The sentence-transformers or model2vec model of embedding.", show_default=False
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column of the strata.", show_default=False)
    ] = None,
    per_target: Annotated[
        int | None,
        typer.Option(
            help="Rows at most that are nearest to the same target row.", show_default=False
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out what this evaluation set holds: a file or lm_eval:TASK.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="A row that cannot be read is an error.")
    ] = False,
    engine: Annotated[
        str | None, typer.Option(help="local, or ray for all of a cluster.", show_default=False)
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            help="Show why the row with this id was chosen, or was not.", show_default=False
        ),
    ] = None,
    recipe: RecipePath = None,
    model: Model = None,
    out: Out = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Choose old data for the new task: by default what is near it, by TF-IDF."""
    changes = {
        "select.pool.path": pool,
        "target.path": target,
        "select.n": n,
        "select.method": method,
        "select.to": to,
        "select.model": embedding,
        "select.column": column,
        "select.per_target": per_target,
        "select.against": against,
        "select.strict": strict or None,
        "select.engine": engine,
        "model": model,
        "seed": seed,
    }
    _steps("select", recipe, changes, out, force, as_json, explain=explain)


@app.command()
def generate(
    model: Model = None,
    n: Rows = None,
    turns: Annotated[
        int | None, typer.Option(help="Questions of one conversation.", show_default=False)
    ] = None,
    answers: Annotated[
        int | None, typer.Option(help="Answers to each question.", show_default=False)
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Answer the questions of this file instead.", show_default=False),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="Steer by a system prompt: math, code, translation, chinese, json, refusal, or a "
            "text; code=2 gives it "
            "the weight 2. May be given again.",
            show_default=False,
        ),
    ] = None,
    keep_system: Annotated[
        bool, typer.Option("--keep-system", help="Leave the system prompt in the record.")
    ] = False,
    temperature: Annotated[
        str | None,
        typer.Option(
            help='Of the questions; 1.0 by default, "model" as it is deployed.', show_default=False
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="magpie-air or magpie-pro: the paper's temperatures.", show_default=False
        ),
    ] = None,
    answer_temperature: Annotated[
        str | None,
        typer.Option(
            help='Of the answers; 0 by default, which is greedy, "model" as it is deployed.',
            show_default=False,
        ),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep this language only, such as en; may be given again.", show_default=False
        ),
    ] = None,
    tags: Annotated[
        bool, typer.Option("--tags", help="Let the model judge category, difficulty and quality.")
    ] = False,
    engine: Engine = None,
    server: Server = None,
    workers: Workers = None,
    tensor_parallel: TensorParallel = None,
    thinking: Thinking = None,
    pre_query: PreQuery = None,
    answer_header: AnswerHeader = None,
    stop: Stop = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say how many rows, tokens and hours it takes; load nothing."
        ),
    ] = False,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of one device, for --dry-run.", show_default=False)
    ] = None,
    recipe: RecipePath = None,
    out: Out = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Let the model write its own questions and answers (Magpie)."""
    changes = {
        "model": model,
        "generate.n": n,
        "generate.turns": turns,
        "generate.answers": answers,
        "generate.prompts": prompts,
        "generate.systems": dict(map(_weighted, system)) if system else None,
        "generate.keep_system": keep_system or None,
        "generate.temperature": _number(temperature),
        "generate.schedule": schedule,
        "generate.answer_temperature": _number(answer_temperature),
        "generate.checks.languages": language,
        "generate.tags": {} if tags else None,
        "engine.name": engine,
        "engine.server": server,
        "engine.workers": workers,
        "engine.tensor_parallel": tensor_parallel,
        "seed": seed,
    } | _chat(thinking, pre_query, answer_header, stop)
    _steps("generate", recipe, changes, out, force, as_json, dry_run=dry_run, price=price_per_hour)


@app.command()
def rewrite(
    method: Annotated[
        str | None, typer.Option(help="min-change or paraphrase.", show_default=False)
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(help="How final answers are compared: exact or numeric.", show_default=False),
    ] = None,
    editor: Annotated[
        str | None,
        typer.Option(
            help="The model that repairs; by default the model itself.", show_default=False
        ),
    ] = None,
    target: Target = None,
    model: Model = None,
    engine: Engine = None,
    server: Server = None,
    recipe: RecipePath = None,
    out: Out = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Put the target's answers into the model's own words, where they stay right."""
    changes = {
        "rewrite.method": method,
        "rewrite.verify": verify,
        "rewrite.editor": editor,
        "target.path": target,
        "model": model,
        "engine.name": engine,
        "engine.server": server,
        "seed": seed,
    }
    _steps("rewrite", recipe, changes, out, force, as_json)


@app.command()
def mix(
    ratio: Annotated[
        float | None,
        typer.Option(help="Replay's share of the loss; 0.05 by default.", show_default=False),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(help="What is shared: loss_tokens, tokens or rows.", show_default=False),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="add: replay on top of the target. replace: as many rows as without replay.",
            show_default=False,
        ),
    ] = None,
    min_rows: Annotated[
        list[str] | None,
        typer.Option(
            help="SKILL=N: at least N replay rows of a skill are trained on; may be given again.",
            show_default=False,
        ),
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            help="Write it for another trainer too: trl, llamafactory, axolotl, ms-swift or "
            "parquet; may be given again.",
            show_default=False,
        ),
    ] = None,
    target: Target = None,
    model: Model = None,
    arm: ArmName = None,
    recipe: RecipePath = None,
    out: Out = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Mix replay into the target: the same share in every optimiser step."""
    changes = {
        "mix.ratio": ratio,
        "mix.unit": unit,
        "mix.budget": budget,
        "target.path": target,
        "model": model,
        "mix.min_rows": dict(map(_floor, min_rows)) if min_rows else None,
        "seed": seed,
    }
    _steps("mix", recipe, changes, out, force, as_json, arm=arm, export=export or ())


@app.command()
def score(
    model: Model = None,
    engine: Engine = None,
    server: Server = None,
    arm: ArmName = None,
    recipe: RecipePath = None,
    out: Out = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Show how probable the model finds the mixture's answers, before it is trained on them."""
    changes = {"model": model, "engine.name": engine, "engine.server": server, "seed": seed}
    _steps("score", recipe, changes, out, force, as_json, arm=arm)


@app.command()
def train(
    model: Model = None,
    method: Annotated[
        str | None, typer.Option(help="full, lora, dora or qlora.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="The highest; 1e-5 by default, 2e-4 for adapters.", show_default=False),
    ] = None,
    remedy: Annotated[
        list[str] | None,
        typer.Option(
            help="stm, flow, dft, eaft, ewc, l2sp, distill, project or ema, as by default; may be "
            "given again.",
            show_default=False,
        ),
    ] = None,
    ewc_auto: Annotated[
        float | None,
        typer.Option(
            help="ewc, with its gradient's norm held at this part of the loss's.",
            show_default=False,
        ),
    ] = None,
    arm: ArmName = None,
    recipe: RecipePath = None,
    out: Out = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune on the mixture, in exactly its order."""
    changes: dict[str, Any] = {
        "model": model,
        "train.method": method,
        "train.learning_rate": learning_rate,
        "seed": seed,
    }
    changes |= {f"train.remedies.{name}": True if name == "dft" else {} for name in remedy or ()}
    _steps(
        "train",
        recipe,
        {**changes, "train.remedies.ewc.auto": ewc_auto},
        out,
        force,
        as_json,
        arm=arm,
    )


@app.command()
def merge(
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            "--model",
            help="What was tuned: an alias, a Hub id or a folder.",
            show_default=False,
        ),
    ] = None,
    tuned: Annotated[
        list[str] | None,
        typer.Option(
            help="The tuned model's folder; by default what `train` left. Again for ties.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="How far to go from base (0) to tuned (1); 0.5 by default, 1 for ties.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="wise-ft, ties (several tuned models), or adapter (the LoRA adapter alone)."
        ),
    ] = "wise-ft",
    sweep: Annotated[
        str | None,
        typer.Option(
            help="Measure these alphas, such as 0,0.1,...,1, and keep the best that loses 2 points "
            "of old skill at most.",
            show_default=False,
        ),
    ] = None,
    density: Annotated[
        float, typer.Option(help="For ties: the part of the changes that is kept.")
    ] = 0.2,
    engine: OwnEngine = None,
    arm: ArmName = None,
    recipe: RecipePath = None,
    out: Out = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Average base and tuned model: one training, and any point between what was known and what was
    learned.
    """
    changes = {"model": base, "engine.name": engine, "seed": seed}
    _steps(
        "merge",
        recipe,
        changes,
        out,
        force,
        as_json,
        arm=arm,
        method=method,
        alpha=alpha,
        tuned=tuned or (),
        sweep=None if sweep is None else _alphas(sweep),
        density=density,
    )


@app.command("eval")
def evaluate(
    model: Model = None,
    engine: OwnEngine = None,
    arm: ArmName = None,
    recipe: RecipePath = None,
    out: Out = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure base and tuned models on the same held-out items."""
    _steps(
        "eval",
        recipe,
        {"model": model, "engine.name": engine, "seed": seed},
        out,
        force,
        as_json,
        arm=arm,
    )


@app.command()
def report(
    recipe: RecipePath = None,
    out: Out = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained report.html of what is finished."""
    _steps("report", recipe, {"seed": seed}, out, force, as_json)


@app.command()
def push(
    repo: Annotated[
        str | None, typer.Argument(help="owner/name on the Hub.", show_default=False)
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everyone see it; private by default.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder, but upload nothing.")
    ] = False,
    recipe: RecipePath = None,
    out: Out = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Publish the replay data and its card to the Hugging Face Hub."""
    changes = {"push.repo": repo, "push.private": False if public else None, "seed": seed}
    _steps("push", recipe, changes, out, force, as_json, dry_run=dry_run)


@app.command()
def run(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="The recipe; replaykit.yaml by default.", show_default=False),
    ] = None,
    model: Model = None,
    engine: Engine = None,
    server: Server = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder instead of runs/<name>.", show_default=False),
    ] = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Do all that a recipe asks for: replay, mix, train, eval, report. Finished steps are
    skipped.
    """
    changes = {
        "model": model,
        "engine.name": engine,
        "engine.server": server,
        "seed": seed,
        "out": str(out) if out else None,
    }
    _run(recipe or RECIPE_FILE, changes, force=force, as_json=as_json)


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


# --- what the commands share ----------------------------------------------------------------------


def _run(
    path: Path, changes: Mapping[str, Any], *, force: bool, as_json: bool, last_only: bool = False
) -> None:
    from replaykit import pipeline
    from replaykit.pipeline.step import Context
    from replaykit.recipe import load_recipe

    recipe = load_recipe(path, _given(changes))
    outcomes = _done(lambda watch: pipeline.run(recipe, Context(force=force, watch=watch)))
    shown = (
        [outcome for outcome in outcomes if outcome.step in ("eval", "report")]
        if last_only
        else outcomes
    )
    _show(shown, as_json)


def _steps(
    step: str,
    recipe_path: Path | None,
    changes: Mapping[str, Any],
    out: Path | None,
    force: bool,
    as_json: bool,
    arm: str | None = None,
    **options: Any,
) -> None:
    """One step with the recipe there is, and the flags on top of it."""
    from replaykit import pipeline
    from replaykit.pipeline.step import Context
    from replaykit.recipe import load_recipe

    path = recipe_path or (RECIPE_FILE if RECIPE_FILE.exists() else None)
    recipe = load_recipe(path, _given(changes))

    def do(watch: Watch) -> Iterable[Outcome]:
        return pipeline.STEPS[step](
            recipe, Context(out=out, force=force, arm=arm, watch=watch), **options
        )

    _show(_done(do), as_json)


def _chat(
    thinking: bool | None, pre_query: str | None, answer_header: str | None, stop: list[str] | None
) -> dict[str, Any]:
    """The recipe's chat options from the flags, where a line break is written \\n."""
    return {
        "chat.thinking": thinking,
        "chat.pre_query": pre_query and pre_query.replace("\\n", "\n"),
        "chat.answer_header": answer_header and answer_header.replace("\\n", "\n"),
        "chat.stop": [text.replace("\\n", "\n") for text in stop] if stop else None,
    }


def _number(text: str | None) -> float | str | None:
    """A number where the text is one; what it may be otherwise is for the recipe to say."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _weighted(system: str) -> tuple[str, float]:
    """``code=2`` is the system prompt "code" with the weight 2; without a number its weight is
    1.
    """
    text, _, weight = system.rpartition("=")
    try:
        return (text, float(weight)) if text else (system, 1.0)
    except ValueError:
        return system, 1.0


def _floor(text: str) -> tuple[str, int]:
    """``json=50`` is the skill "json" and 50 rows."""
    skill, _, number = text.rpartition("=")
    if not skill or not number.isdecimal():
        raise typer.BadParameter(
            f"'{text}' is not SKILL=N, such as json=50", param_hint="--min-rows"
        )
    return skill, int(number)


def _alphas(text: str) -> list[float]:
    """``0,0.1,...,1`` as numbers in order, each once; "..." goes on in the steps of the two before
    it.
    """
    found: list[float] = []
    words = [word.strip() for word in text.split(",")]
    try:
        for place, word in enumerate(words):
            if word == "...":
                start = found[-1]
                step = found[-1] - found[-2]
                end = float(words[place + 1])
                found += [
                    round(start + k * step, 10)
                    for k in range(1, math.ceil((end - start) / step - 1e-9))
                ]
            else:
                found.append(float(word))
    except (ValueError, IndexError, ZeroDivisionError, OverflowError):
        raise typer.BadParameter(
            f"'{text}' is no list such as 0,0.5,1 or 0,0.1,...,1", param_hint="--sweep"
        ) from None
    return sorted(set(found))


def _given(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if value is not None}


def _done(steps: Callable[[Watch], Iterable[Outcome]]) -> list[Outcome]:
    """Does the steps under a progress display; says on stderr what was skipped, and where an
    earlier result went.
    """
    from replaykit.report.terminal import progress

    outcomes = []
    with progress() as watch:
        for outcome in steps(watch):
            if outcome.note:
                typer.echo(f"{outcome.step}: {outcome.note}", err=True)
            outcomes.append(outcome)
    return outcomes


def _show(outcomes: list[Outcome], as_json: bool) -> None:
    results = {outcome.step: dict(outcome.result) for outcome in outcomes}

    def tables() -> None:
        from replaykit.report.terminal import show

        for outcome in outcomes:
            if "report" in outcome.result:  # the file is all that there is to show
                typer.echo(outcome.result["report"])
                continue
            show(outcome.step, outcome.result)
            typer.echo(outcome.folder)

    _print(next(iter(results.values())) if len(results) == 1 else results, tables, as_json)


def _print(result: Mapping[str, Any], otherwise: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False, indent=1))
    else:
        otherwise()


def main() -> None:
    """The entry point of the ``replaykit`` command. SIGTERM ends it as an exit does, so that its
    processes end too.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    app(prog_name="replaykit" if Path(sys.argv[0]).name in ("__main__.py", "cli.py") else None)
