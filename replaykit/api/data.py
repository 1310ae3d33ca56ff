"""The functions that make rows: old data, the model's own memory, the target in the model's words,
and the mixture of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Unpack, cast

from replaykit.api.arguments import (
    Rows,
    Tests,
    check_keywords,
    check_rows,
    in_memory,
    kept_apart,
    mapping_of,
    model_of,
    name_of,
    place_of,
    records_of,
    settings_of,
    stream,
    tests_of,
    validated,
    watching,
)
from replaykit.api.keywords import (
    AugmentOptions,
    DescribeOptions,
    GenerateOptions,
    MixOptions,
    ModelOptions,
    RewriteOptions,
    SelectOptions,
)
from replaykit.checks.funnel import Funnel
from replaykit.data.formats import Columns, prompt_of, read_prompts
from replaykit.data.ledger import Ledger
from replaykit.data.planned import PlannedRow, write_plan
from replaykit.data.record import TARGET, Record, dialogue, up_to_question
from replaykit.errors import CallError
from replaykit.model.loading import named_sampling
from replaykit.recipe import Recipe
from replaykit.recipe.augment import Augment
from replaykit.recipe.describe import Describe
from replaykit.recipe.generate import Generate
from replaykit.recipe.mix import Mix, is_made, is_source
from replaykit.recipe.rewrite import Rewrite
from replaykit.recipe.select import Select
from replaykit.recipe.train import Train
from replaykit.runs import Watch, open_step
from replaykit.steps.augment.result import AugmentResult
from replaykit.steps.augment.step import asked_facts, check_asked, opened
from replaykit.steps.describe.result import DescribeResult
from replaykit.steps.describe.step import make
from replaykit.steps.generate.job import Job, Monitor
from replaykit.steps.generate.step import check_can_ask, generate_inputs
from replaykit.steps.generate.verified import asked
from replaykit.steps.inputs import Readable, classes_of, not_read
from replaykit.steps.mix.replay import own_replay
from replaykit.steps.mix.result import MixResult
from replaykit.steps.mix.schedule import most
from replaykit.steps.probe.result import ProbeResult
from replaykit.steps.rewrite.result import RewriteResult
from replaykit.steps.step import chat_of, engine_and_chat, model_facts

if TYPE_CHECKING:
    import datasets

    from replaykit.steps.describe.rows import PlainRows, TypedRows
    from replaykit.steps.select.selection import Selection

Replays = Rows | Sequence[str | Path] | Mapping[str, Rows]
"""Rows of old data, or files of them, or both by source."""

Prompts = str | Path | Iterable[str | Record | Mapping[str, object]]
"""Questions, or rows that have one."""

LENGTHS = ("epochs", "steps", "batch_rows", "max_tokens")  # of train: which rows a mixture has


@dataclass(frozen=True)
class Rewritten:
    """The target in the model's own words, where they are right."""

    records: list[Record]
    result: RewriteResult


@dataclass(frozen=True)
class Augmented:
    """Further target rows; give them to ``mix`` beside the target's own."""

    records: list[Record]
    result: AugmentResult


@dataclass(frozen=True)
class Described:
    """Rows with media, each with an instruction and what a text model says of its description."""

    dataset: datasets.Dataset
    """All columns as they were, and one more with the turns."""
    result: DescribeResult


@dataclass(frozen=True)
class Mixed:
    """The rows of a training, in its order."""

    rows: list[PlannedRow]
    result: MixResult
    settings: Mix
    lengths: Train
    """What of ``train`` decided which rows come: epochs, steps, batch_rows, max_tokens."""
    replay: list[Record]
    """All usable replay rows, whether they come or not; a controller draws from them."""


def probe(
    model: str,
    *,
    samples: int = 20,
    seed: int = 1,
    progress: bool = False,
    watch: Watch | None = None,
    **options: Unpack[ModelOptions],
) -> ProbeResult:
    """What a model's chat template gives, and so many questions that the model writes from it; 0
    needs the tokenizer alone.

    >>> replaykit.probe("nano", samples=0).stop.text
    ['<|eot_id|>', '<|end_header_id|>', '<|start_header_id|>']
    """
    from replaykit.steps.probe.describe import described, drawn

    check_keywords("probe", options, ModelOptions.__annotations__)
    recipe, _ = model_of("probe", model, seed, options)
    deployed = named_sampling(model, recipe.revision)
    found = described(chat_of(recipe), model=model, deployed=deployed)
    if not samples:
        return found
    with watching(progress, watch) as told, engine_and_chat(recipe, model) as (engine, chat):
        return drawn(found, engine, chat, samples, seed=seed, watch=told)


def select(
    pool: Rows,
    target: Rows = (),
    *,
    held_out: Tests | None = None,
    seed: int = 1,
    progress: bool = False,
    watch: Watch | None = None,
    **settings: Unpack[SelectOptions],
) -> Selection:
    """Old records for the new task: by default those whose prompts are nearest to the target's.

    ``settings`` are the keys of the recipe's section ``select``; some methods need no target. It
    works in this process alone, unless ``processes`` says otherwise.
    ``held_out`` are test rows by skill, whose prompts no chosen row may hold. Raises CallError for
    a keyword that does not exist, DataError for a pool of which nothing is left.

    >>> pool = [{"prompt": f"What is {n} + {n}?", "completion": f"{2 * n}"} for n in range(99)]
    >>> replaykit.select(pool, [{"prompt": "7 + 7?", "completion": "14"}], n=2).result.rows
    2
    """
    from replaykit.steps.select.selection import select_records

    # A script that starts processes needs a `__main__` guard, which nobody expects of a function.
    keywords = {"processes": 1, **settings}
    chosen = settings_of("select", Select, keywords, pool={"path": name_of(pool)})
    validated("select", Recipe, {"seed": seed})
    # Rows that cannot be read are counted, as on the command line.
    funnel = Funnel()
    wanted = Readable([], "")
    if target or not isinstance(target, tuple):
        wanted = records_of("select(): target", target, TARGET)
    tests = tests_of("select(): held_out", held_out, target=target)
    with TemporaryDirectory() as folder, watching(progress, watch) as told:
        selection = select_records(
            stream("select(): pool", pool, "select", None if chosen.strict else funnel.unparsed),
            wanted.records,
            settings=chosen,
            seed=seed,
            folder=Path(folder),
            held_out=kept_apart(tests, chosen.against),
            funnel=funnel,
            watch=told,
        )
    result = selection.result.noted(wanted.note, not_read(chosen.pool))
    return replace(selection, result=result)


def generate(
    model: str,
    n: int | None = None,
    *,
    prompts: Prompts | None = None,
    held_out: Tests | None = None,
    seed: int = 1,
    folder: str | Path | None = None,
    progress: bool = False,
    watch: Watch | None = None,
    **settings: Unpack[GenerateOptions],
) -> Iterator[Record]:
    """The model's own questions and answers, each as soon as it is there, in the order of their row
    addresses. With ``verify`` the prompts are old rows with answers: the model's own answer is kept
    where it is right by that verifier, and the row as it is where it is not.

    ``n`` is how many: 2000 by default, or an answer to each of the prompts: questions, or rows, of
    which the questions are taken; one string is a file's name, as with ``--prompts``. ``settings``
    are the keys of the recipe's section ``generate`` (``turns=2``, ``systems={"math": 1.0}``,
    ``checks={"refusals": True}``), beside ``engine``, ``chat`` and ``revision``. No question
    repeats one of ``held_out``, test rows by skill. With a ``folder`` the finished rows stay there,
    and the same call goes on from them; without one they are gone when the last is taken. The model
    is loaded when the first row is asked for. Raises CallError for a keyword that does not exist,
    at once.

    >>> for record in replaykit.generate("nano", prompts=["What is the capital of France?"]):
    ...     print(record.prompt, "->", record.answer)
    What is the capital of France? -> Paris
    """
    # This is no generator itself, so that a wrong keyword fails here and not at the first row.
    recipe, own = model_of("generate", model, seed, settings)
    given = None if prompts is None else {"path": name_of(prompts)}
    chosen = settings_of("generate", Generate, own, n=n, prompts=given, tags=None)
    check_can_ask(recipe, chosen)
    references = None
    answered = None
    if prompts is not None and chosen.verify is not None:
        references = records_of("generate(): prompts", cast(Rows, prompts), "generate").records
        answered = asked(references)
    elif prompts is not None:
        answered = _prompts(prompts)
    apart = tests_of("generate(): held_out", held_out).rows.values()
    questions = {row.question for _, rows in apart for row in rows}
    job = Job(
        chosen,
        seed,
        prompts=answered,
        references=references,
        held_out=sorted(questions),
        deployed=named_sampling(model, recipe.revision),
        facts={"model": model, "answer_temperature": chosen.answer_temperature},
    )
    return _generated(recipe, job, folder, progress, watch)


def _prompts(prompts: Prompts) -> list[Record]:
    """The questions, each as a conversation that ends with it. Raises CallError for what are none,
    DataError for a row without one.
    """
    if isinstance(prompts, (str, Path)):
        return list(read_prompts(prompts))
    check_rows("generate(): prompts", prompts)
    found = []
    for number, prompt in enumerate(in_memory(prompts), 1):
        if isinstance(prompt, Record):
            found.append(replace(prompt, messages=up_to_question(prompt.messages)))
        elif isinstance(prompt, str):
            found.append(Record(dialogue(prompt), "generate"))
        else:
            row = mapping_of("generate(): prompts", number, prompt)
            found.append(prompt_of(f"row:{number}", row))
    return found


def _generated(
    recipe: Recipe, job: Job, folder: str | Path | None, progress: bool, watch: Watch | None
) -> Iterator[Record]:
    from replaykit.steps.generate.draw import generate_rows

    inputs = generate_inputs(recipe, job.settings) | {"held_out": list(job.held_out)}
    if job.prompts is not None:
        inputs["prompts"] = [record.id for record in job.references or job.prompts]
    with ExitStack() as stack:
        place = stack.enter_context(place_of(folder))
        step = stack.enter_context(open_step("generate", place / "rows", inputs))
        told = stack.enter_context(watching(progress, watch))
        engine, chat = stack.enter_context(engine_and_chat(recipe, str(recipe.model)))
        yield from generate_rows(engine, chat, job, folder=step.folder, monitor=Monitor(watch=told))


def rewrite(
    target: Rows,
    *,
    model: str,
    seed: int = 1,
    folder: str | Path | None = None,
    progress: bool = False,
    watch: Watch | None = None,
    **settings: Unpack[RewriteOptions],
) -> Rewritten:
    """The target's answers in the model's own words, where these stay right; else as they were.

    ``settings`` are the keys of the recipe's section ``rewrite``, beside ``engine``, ``chat`` and
    ``revision``. With a ``folder`` the model's replies stay there, and the same call goes on from
    them. Raises CallError for a keyword that does not exist.

    >>> rows = [{"prompt": "What is the capital of France?", "completion": "Paris"}]
    >>> replaykit.rewrite(rows, model="nano").records[0].answer
    'Paris'
    """
    from replaykit.steps.rewrite.step import judge_of, rewritten

    recipe, own = model_of("rewrite", model, seed, settings)
    chosen = settings_of("rewrite", Rewrite, own)
    rows = records_of("rewrite(): target", target, TARGET)
    inputs = {
        **model_facts(recipe),
        "seed": seed,
        "target": [row.id for row in rows.records],
        "rewrite": chosen.decisive(),
    }
    judge_of(recipe, chosen)
    with ExitStack() as stack:
        place = stack.enter_context(place_of(folder))
        step = stack.enter_context(open_step("rewrite", place / "rows", inputs))
        told = stack.enter_context(watching(progress, watch))
        records, result = rewritten(recipe, chosen, rows.records, step.folder, told)
    return Rewritten(records, result.noted(rows.note))


def augment(
    target: Rows,
    *,
    model: str,
    seed: int = 1,
    folder: str | Path | None = None,
    progress: bool = False,
    watch: Watch | None = None,
    **settings: Unpack[AugmentOptions],
) -> Augmented:
    """Further target rows, made of those that there are: questions in other words
    (``back_translation={}``), and pairs that differ in one fact (``counterfactual={}``).

    ``settings`` are the keys of the recipe's section ``augment``, beside ``engine``, ``chat`` and
    ``revision``. Each row's meta names its ``parent``, which stays in the target. With a ``folder``
    the model's replies stay there, and the same call goes on from them. Raises CallError for a
    keyword that does not exist, RecipeError where neither way is asked for.

    >>> rows = [{"prompt": "What is 27 + 15?", "completion": "42"}]
    >>> by = {"by": "arithmetic"}
    >>> replaykit.augment(rows, model="nano", counterfactual=by).records[0].meta["path"]
    'counterfactual'
    """
    from replaykit.steps.augment.augment import augmented, counted

    recipe, own = model_of("augment", model, seed, settings)
    chosen = settings_of("augment", Augment, own)
    check_asked(chosen)
    rows = records_of("augment(): target", target, TARGET)
    inputs = {
        "seed": seed,
        "target": [row.id for row in rows.records],
        "augment": chosen.decisive(),
        **asked_facts(recipe, chosen),
    }
    with ExitStack() as stack:
        place = stack.enter_context(place_of(folder))
        step = stack.enter_context(open_step("augment", place / "rows", inputs))
        attempts = list(
            augmented(
                rows.records,
                settings=chosen,
                seed=seed,
                ledger=stack.enter_context(Ledger(step.folder / "replies.jsonl")),
                open_model=lambda name: opened(recipe, name),
                watch=stack.enter_context(watching(progress, watch)),
            )
        )
    records = [attempt.made for attempt in attempts if attempt.made is not None]
    result = counted(attempts, chosen, len(rows.records))
    return Augmented(records, result.noted(rows.note))


def describe(
    rows: str | Path | Iterable[Mapping[str, object]],
    template: str,
    *,
    model: str,
    seed: int = 1,
    folder: str | Path | None = None,
    progress: bool = False,
    watch: Watch | None = None,
    **settings: Unpack[DescribeOptions],
) -> Described:
    """What a text model says of recordings or pictures whose attributes stand in the rows' columns:
    targets for a model that hears or sees.

    ``rows`` are a path, mappings, or a datasets.Dataset, whose Audio and Image columns stay what
    they are. ``template`` is the description, with columns in braces; the model sees it, and what
    comes out has the instruction alone. ``settings`` are the keys of the recipe's section
    ``describe``, beside ``engine``, ``chat`` and ``revision``. With a ``folder`` the model's
    answers stay there, and the same call goes on from them. Raises CallError for a keyword that
    does not exist, DataError for a row without an attribute.

    >>> rows = [{"audio": "a.wav", "town": "Paris"}]
    >>> made = replaykit.describe(rows, "a voice that speaks of {town}", model="nano")
    >>> made.result.funnel.made
    1
    """
    from replaykit.steps.describe.rows import rows_of

    recipe, own = model_of("describe", model, seed, settings)
    given = {"rows": {"path": name_of(rows)}, "template": template}
    chosen = settings_of("describe", Describe, own, **given)
    if isinstance(rows, (str, Path)):
        read: Any = rows_of(chosen.rows)
    else:
        read = _media_rows(rows)
    placed = read.placed(chosen.attributes)
    inputs = {
        **model_facts(recipe),
        "seed": seed,
        "rows": [dict(row.attributes) for row in placed],
        "describe": chosen.decisive(),
    }
    with ExitStack() as stack:
        place = stack.enter_context(place_of(folder))
        step = stack.enter_context(open_step("describe", place / "rows", inputs))
        told = stack.enter_context(watching(progress, watch))
        made = make(read, recipe, chosen, step.folder, told)
    result = made.result("", read, recipe)
    return Described(read.dataset(chosen.column, made.turns), result)


def _media_rows(rows: Iterable[Mapping[str, object]]) -> PlainRows | TypedRows:
    """Rows in memory: those of a datasets.Dataset with the types of its columns."""
    from replaykit.steps.describe.rows import PlainRows, of_dataset

    check_rows("describe(): rows", rows)
    if any(kind.__module__.startswith("datasets.") for kind in type(rows).__mro__):
        whole: Any = rows
        return of_dataset(whole, "row")
    return PlainRows(
        [
            (f"row:{number}", mapping_of("describe(): rows", number, row))
            for number, row in enumerate(rows, 1)
        ]
    )


def mix(
    target: Rows,
    replay: Replays | None = None,
    *,
    model: str,
    held_out: Tests | None = None,
    seed: int = 1,
    progress: bool = False,
    watch: Watch | None = None,
    **settings: Unpack[MixOptions],
) -> Mixed:
    """The rows of a training in its order: the target, and replay at the same share in every step.

    ``replay`` is old data of your own, rows, a file or several files; or by source, "select",
    "generate" and files, which ``sources`` may weigh. Without it, give ``ratio=0``. ``settings``
    are the keys of the recipe's section ``mix``; ``epochs``, ``steps``, ``batch_rows`` and
    ``max_tokens`` of ``train``; and ``engine``, ``chat`` and ``revision``. ``held_out`` are test
    rows by skill, whose prompts no row may hold. Raises CallError for a keyword or a source that
    does not exist, or that is weighed and not given.

    >>> target = [{"prompt": f"{n} + 1?", "completion": f"{n + 1}"} for n in range(50)]
    >>> memory = replaykit.generate("nano", 10)
    >>> replaykit.mix(target, {"generate": memory}, model="nano", ratio=0.1).result.target_rows
    50
    """
    from replaykit.steps.mix.build import build_mixture

    recipe, own = model_of("mix", model, seed, settings)
    check_keywords("mix", own, [*Mix.model_fields, *LENGTHS])
    pools = _by_source(replay)
    given = {name: own.pop(name) for name in LENGTHS if name in own}
    lengths = settings_of("mix", Train, given)
    chosen = settings_of("mix", Mix, own)
    funnel = Funnel()
    columns = Columns(classes=classes_of(recipe, old=False))
    learned = records_of("mix(): target", target, TARGET, funnel.unparsed, columns=columns)
    _check_sources(pools, chosen)
    tests = tests_of("mix(): held_out", held_out, target=target, recipe=recipe)
    apart = kept_apart(tests, chosen.against)
    labels = classes_of(recipe, old=True)
    old = {source: _replay_rows(source, given, funnel, labels) for source, given in pools.items()}
    with TemporaryDirectory() as name, watching(progress, watch) as told:
        folder = Path(name)
        mixture = build_mixture(
            learned.records,
            {source: found.records for source, found in old.items()},
            chat=chat_of(recipe),
            settings=chosen,
            train=lengths,
            seed=seed,
            held_out=apart,
            folder=folder,
            funnel=funnel,
            watch=told,
        )
        rows = list(mixture.planned_rows())
        # The hash is that of the file which `replaykit mix` would have written.
        write_plan(folder / "rows.jsonl", rows)
        digest = hashlib.sha256((folder / "rows.jsonl").read_bytes()).hexdigest()
    result = mixture.result(
        chosen,
        sha256=digest,
        sources={source: name_of(rows) for source, rows in pools.items()},
        funnel=funnel.result(),
        decontamination=apart.result() if apart is not None else None,
    )
    result = result.noted(learned.note, *(found.note for found in old.values()))
    return Mixed(rows, result, chosen, lengths, list(mixture.replay()))


def _check_sources(pools: Mapping[str, Rows], chosen: Mix) -> None:
    """Raises CallError for replay that was asked for, or weighed, and is not given."""
    missing = [source for source in chosen.sources or {} if source not in pools]
    # Without a share no source is needed.
    wanted = most(chosen.schedule, chosen.ratio)
    if wanted > 0 and not pools:
        raise CallError(
            f"mix(): replay at a ratio of {wanted:g} was asked for, but there is none; give old "
            f"rows as replay=, or ratio=0"
        )
    if missing and wanted > 0:
        raise CallError(f"mix(): sources weighs '{missing[0]}', which replay does not have")


def _by_source(replay: Replays | None) -> dict[str, Rows]:
    """The replay of a call by its source; rows without one are old data, as of select.

    Raises CallError for a source that is neither a step nor a file.
    """
    if replay is None:
        return {}
    if isinstance(replay, (str, Path)):
        return {str(replay): replay}
    if not isinstance(replay, Mapping):
        check_rows("mix(): replay", replay)
        return _files_and_rows(replay)
    for source in replay:
        if not is_source(source):
            raise CallError(
                f"mix(): replay is by source, select, generate or a file's name, not '{source}'"
            )
    return dict(replay)


def _files_and_rows(replay: Iterable[object]) -> dict[str, Rows]:
    """Each file of a list as a source of its own, and its rows as old data, as of select.

    Raises CallError for a name that is no file's, and for one that comes twice.
    """
    found: dict[str, Rows] = {}
    rows: list[Any] = []
    for given in in_memory(replay):
        if not isinstance(given, (str, Path)):
            rows.append(given)
            continue
        name = str(given)
        if is_made(name):
            raise CallError(f"mix(): replay: '{name}' is no file; give its rows by source")
        if name in found:
            raise CallError(f"mix(): replay names {name} twice")
        found[name] = given
    if rows or not found:
        found["select"] = rows
    return found


def _replay_rows(source: str, rows: Rows, funnel: Funnel, labels: Sequence[str] | None) -> Readable:
    """The rows of a source, texts with these ``labels`` among them; those that cannot be read are
    counted.
    """
    argument = f"mix(): replay '{source}'"
    if source == "generate":
        return records_of(argument, rows, "generate", funnel.unparsed)
    if is_made(source):
        return records_of(
            argument, rows, "select", funnel.unparsed, columns=Columns(classes=labels)
        )
    return own_replay(
        source,
        lambda unparsed: stream(
            argument, rows, "select", unparsed, columns=Columns(classes=labels)
        ),
        funnel.unparsed,
    )
