"""The rows that a recipe names: how they are read, what identifies them, which are held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from replaykit.data.files import Hub, Unparsed, splits_of, unread_note
from replaykit.data.formats import Columns, read_prompts, read_records
from replaykit.data.record import TARGET, Record, Source
from replaykit.errors import DataError, RecipeError, RunError
from replaykit.hashing import derive_seed, file_fingerprint
from replaykit.model import loading
from replaykit.recipe import Recipe
from replaykit.recipe.data import Data, Prompts
from replaykit.recipe.evaluate import MEMORY, Test
from replaykit.recipe.lm_eval import is_task
from replaykit.text import normalise, words

if TYPE_CHECKING:
    from replaykit.checks.overlap import Decontamination


HELD = "held out"
SEEDS = 1 << 63  # that derive_seed gives
HELD_OUT = ("test", "validation")
"""The splits that a test reads where none is named: the first of them that is there."""


def tests(recipe: Recipe) -> dict[str, Test]:
    """The held-out tests by skill: the old ones first, then the tasks' in order, the target's under
    "target".
    """
    whose = {TARGET: "the new skill's", MEMORY: "that of eval.memory's rows"}
    for name, owner in whose.items():
        if name in recipe.eval.old:
            problem = f"eval.old.{name}: that name is {owner}; call the old skill otherwise"
            raise RecipeError("the recipe", [problem])
    found = dict(recipe.eval.old)
    if recipe.eval.memory is not None:
        found[MEMORY] = Test(path=str(memory_rows(recipe)), score="cross_entropy")
    found |= {task.name: task.eval for task in recipe.tasks}
    if recipe.eval.target is not None:
        found[TARGET] = recipe.eval.target
    return {skill: for_task(recipe, test) for skill, test in found.items()}


def memory_rows(recipe: Recipe) -> Path:
    """The rows that the step ``memory`` leaves."""
    return recipe.folder / MEMORY / "rows.jsonl"


def for_task(recipe: Recipe, test: Test) -> Test:
    """The test; of a text classifier one whose answers are labels."""
    if recipe.task == "language":
        return test
    return test.model_copy(update={"score": "label"})


def classes_of(recipe: Recipe, *, old: bool) -> tuple[str, ...] | None:
    """The labels that the numbers of rows stand for: those of the new task, or of ``old`` data.

    None where the recipe's model gives no labels. Raises EngineError as ``own_labels`` does.
    """
    if recipe.task != "classification":
        return None
    from replaykit.model.labels import labels_of

    labels = labels_of(recipe)
    if old:
        return labels.old or labels.new
    return labels.new or labels.old


# --- rows that are read ---------------------------------------------------------------------------


class Readable(NamedTuple):
    """The rows of a file that can be read, and what is said of the others."""

    records: list[Record]
    note: str
    """"" where all can be read."""


def readable(
    name: str,
    read: Callable[[Unparsed], Iterable[Record]],
    unparsed: Unparsed | None = None,
    *,
    split: str | None = None,
    hub: Hub | None = None,
) -> Readable:
    """The rows that ``read`` gives; those that it calls its argument for are left out, and
    ``unparsed`` is called for each of them too. Of a folder of this name the note says too what is
    not read; ``split`` and ``hub`` are what was asked for.

    Raises DataError where no row is left, or where more than half of them cannot be read: then it
    is the file that is wrong, or how it is read, and what is left would be another data set.
    """
    bad = 0
    first = ""

    def passed_over(place: str, error: DataError) -> None:
        nonlocal bad, first
        bad += 1
        first = first or str(error)
        if unparsed is not None:
            unparsed(place, error)

    records = list(read(passed_over))
    if not records and not bad:
        raise DataError(f"{name}: there is no row in it")
    check_left(name, bad, bad + len(records), "can be read", first)
    notes = [unread_note(name, split, hub)]
    if bad:
        notes.append(left_out(name, bad, bad + len(records), "cannot be read", first))
    return Readable(records, "; ".join(note for note in notes if note))


def check_left(name: str, bad: int, rows: int, what: str, first: str) -> None:
    """Raises DataError where none of the rows, or fewer than half of them, are such as ``what``
    says; ``first`` is what is wrong with the first of those that are not.
    """
    if bad and bad == rows:
        raise DataError(f"{name}: none of its {rows:,} rows {what}; the first: {first}")
    if bad > rows - bad:
        raise DataError(
            f"{name}: only {rows - bad:,} of its {rows:,} rows {what}, fewer than half; mend the "
            f"others or take them out. The first: {first}"
        )


def left_out(name: str, bad: int, rows: int, what: str, first: str) -> str:
    """What is said where some of the rows are left out; the arguments are as of ``check_left``."""
    are = "is" if bad == 1 else "are"
    return f"{name}: {bad:,} of {rows:,} rows {what} and {are} left out; the first: {first}"


def load(
    data: Data,
    source: Source,
    unparsed: Unparsed | None = None,
    classes: Sequence[str] | None = None,
) -> Readable:
    """The rows that a recipe names; those that cannot be read are left out, as by ``readable``.

    ``classes`` are the labels that their numbers stand for (``classes_of``).
    """
    if isinstance(data, Test) and is_task(data.path):
        return _task_rows(data)
    split = _named_split(data)
    if isinstance(data, Test):
        split = split or default_split(data)  # ``split_note`` says it
    return readable(
        data.path,
        lambda told: rows_of(data, source, told, classes),
        unparsed,
        split=split,
        hub=Hub(data.subset, data.revision),
    )


def _task_rows(test: Test) -> Readable:
    """What a task of lm-eval asks, and by which metric it is scored. Raises DataError, or
    MissingExtra, as ``load_tasks`` and ``scored_by`` do.
    """
    from replaykit.checks.lm_eval_tasks import load_tasks, scored_by, scored_note, task_records

    tasks = load_tasks(test.path)
    scored = scored_by(test.path, tasks, test.metric)
    rows = task_records(test.path, tasks, skip=test.skip, limit=test.n)
    return Readable(rows, scored_note(test.path, scored))


def rows_of(
    data: Data,
    source: Source,
    unparsed: Unparsed | None = None,
    classes: Sequence[str] | None = None,
) -> Iterator[Record]:
    """The rows that a recipe names, one by one; ``unparsed`` is called for one that is bad. Of rows
    of which a part is held out a test has that part, and all others have the rest.
    """
    prompt = data.prompt
    answer = data.answer
    if data.labels is not None:
        prompt = prompt or "text"
        answer = answer or "label"
    constraints = isinstance(data, Test) and data.score == "instructions"
    records = read_records(
        data.path,
        source,
        columns=Columns(prompt, answer, data.labels, data.preferred, classes, constraints),
        split=data.split or default_split(data),
        hub=Hub(data.subset, data.revision),
        skip=data.skip,
        limit=data.n,
        unparsed=unparsed,
    )
    part = getattr(data, "hold_out", None)
    if part is None:
        return records
    return (each for each in records if is_held(each, part) == isinstance(data, Test))


def is_held(record: Record, part: float) -> bool:
    """Whether a row is of the part that is held out: by a hash of the words of its questions, so
    that rows that ask the same are on one side, whatever their case, width, spacing, punctuation
    and order of words.

    What is alike by its letters is not kept together: in rows of one template all are.
    """
    asked = " ".join(sorted(set(words(record.all_questions)))) or normalise(record.all_questions)
    return derive_seed(HELD, asked) < part * SEEDS


def load_prompts(data: Prompts) -> Readable:
    """The questions that a recipe names; rows without one are left out, as by ``readable``."""
    hub = Hub(data.subset, data.revision)

    def read(unparsed: Unparsed) -> Iterator[Record]:
        return read_prompts(
            data.path,
            prompt=data.prompt,
            split=data.split or default_split(data),
            hub=hub,
            skip=data.skip,
            limit=data.n,
            unparsed=unparsed,
        )

    return readable(data.path, read, split=_named_split(data), hub=hub)


def not_read(data: Prompts) -> str:
    """What of a folder is not read, as ``readable`` says it, of rows that are read one by one."""
    return unread_note(data.path, _named_split(data), Hub(data.subset, data.revision))


def _named_split(data: Prompts) -> str | None:
    """The split that a recipe itself names."""
    return data.split if "split" in data.model_fields_set else None


# --- held-out rows --------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows by skill, each with how it is scored, the new skill last."""

    rows: Mapping[str, tuple[Test, Sequence[Record]]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    """Sentences that the user must read: which split is read, and which rows cannot be."""


def load_tests(recipe: Recipe) -> HeldOut:
    """The rows of the held-out tests.

    Raises RecipeError for a test of the rows that are trained on, DataError as ``readable`` does,
    RunError where the step ``memory`` is asked for and not done.
    """
    rows = {}
    notes = []
    if recipe.eval.memory is not None and not memory_rows(recipe).exists():
        raise RunError(f"{memory_rows(recipe)} is not there; `replaykit memory` makes it")
    for skill, test in tests(recipe).items():
        if recipe.target is not None and same_rows(recipe.target, test):
            raise RecipeError("the recipe", [f"{section_of(recipe, skill)}: {trained_on(test)}"])
        found = load(test, TARGET, classes=classes_of(recipe, old=skill != TARGET))
        rows[skill] = (test, found.records)
        notes += [note for note in (split_note(test), found.note) if note]
    return HeldOut(rows, notes)


def section_of(recipe: Recipe, skill: str) -> str:
    """The key of the recipe that names the held-out rows of a skill."""
    for number, task in enumerate(recipe.tasks):
        if task.name == skill:
            return f"tasks.{number}.eval"
    return "eval.target" if skill == TARGET else f"eval.old.{skill}"


def default_split(data: Prompts) -> str:
    """The split that is read where none is named: of a test the first there is of test and
    validation, or the only one; else train.

    Raises DataError for a test of several splits that have other names.
    """
    if not isinstance(data, Test):
        return "train"
    splits = splits_of(data.path, Hub(data.subset, data.revision))
    if not splits:
        return "train"  # a file, or a folder of which all is read
    for split in HELD_OUT:
        if split in splits:
            return split
    if len(splits) == 1:
        return splits[0]
    raise DataError(
        f"{data.path}: which of its splits is held out? It has {', '.join(splits)}; in a recipe, "
        "`split: NAME` beside the path chooses; elsewhere, give the path of the split's files"
    )


def split_note(test: Test) -> str:
    """Which split of a test is read, where the recipe does not say it and there are any."""
    if test.split is not None or not splits_of(test.path, Hub(test.subset, test.revision)):
        return ""
    return f"{test.path}: its split {default_split(test)} is tested; `split: NAME` takes another"


def same_rows(target: Prompts, test: Test) -> bool:
    """Whether a test would read rows that are trained on."""
    same = Path(target.path).resolve() == Path(test.path).resolve()
    part = getattr(target, "hold_out", None)
    if same and part is not None and part == test.hold_out:
        return False
    if not same or (target.subset, target.revision) != (test.subset, test.revision):
        return False
    # Of one file or split, rows may be taken by their numbers.
    ends = [float("inf") if data.n is None else data.skip + data.n for data in (target, test)]
    if target.skip >= ends[1] or test.skip >= ends[0]:
        return False
    if not splits_of(test.path, Hub(test.subset, test.revision)):
        return True
    read = {data.split or default_split(data) for data in (target, test)}
    return len(read) == 1 or "all" in read


def trained_on(test: Test) -> str:
    """What is said of a test where ``same_rows``."""
    return (
        f"{test.path} would be tested on the very rows that are trained on; name held-out rows: "
        f"another file, another `split`, or other rows of the same by `skip` and `n` on both"
    )


# --- what identifies them -------------------------------------------------------------------------

# What identifies the rows that a step reads is a part of its inputs, under the keys of the recipe:
# a difference is then said as "eval.target.n was 10, is 20", or as "test.jsonl has changed".
Facts = dict[str, Any]


SCORING = ("score", "metric", "max_tokens", "thinking")
"""The settings of a test that decide none of its rows."""


def row_facts(data: Prompts) -> Facts:
    """What identifies rows: how they are read, and the bytes of local files."""
    facts = data.decisive()
    # How answers are scored decides no row that is trained on.
    return {key: value for key, value in facts.items() if key not in SCORING}


def task_facts(recipe: Recipe) -> Facts:
    """What the recipe says of its labels; empty for a language model."""
    if recipe.task == "language":
        return {}
    return {"task": recipe.task, "classification": recipe.classification.decisive()}


def made_facts(file: Path) -> Facts:
    """What identifies a file that an earlier step made: its name in the run, and its bytes."""
    # Not the path: a run that is moved to another place stays finished.
    return {"path": f"{file.parent.name}/{file.name}", "content": file_fingerprint(file)}


def tuned_facts(model: Path) -> Facts:
    """What identifies a model that an earlier step made: its name in the run, and its weights."""
    return {"path": f"{model.parent.name}/{model.name}", "content": loading.identity(str(model))}


def other_facts(model: str) -> Facts:
    """What identifies a model that was made elsewhere: its name, and a folder's files."""
    return {"model": model, "weights": loading.identity(model)}


def held_out_facts(recipe: Recipe, own: bool = True) -> Facts:
    """What identifies the rows of the held-out tests; empty where ``own`` is false."""
    if not own:
        return {}
    return _by_section(recipe, row_facts)


def test_facts(recipe: Recipe) -> Facts:
    """What identifies the held-out tests: their rows, and how answers are scored, by what judge."""
    facts = _by_section(recipe, Test.decisive)
    if recipe.eval.judge is not None:
        facts["judge"] = recipe.eval.judge.model
    return facts


def _by_section(recipe: Recipe, facts_of: Callable[[Test], Facts]) -> Facts:
    """Facts of each test, under the keys of the recipe's section eval."""
    tests(recipe)  # refuses an old skill with the new one's name
    facts: Facts = {"old": {s: facts_of(test) for s, test in recipe.eval.old.items()}}
    if recipe.tasks:
        facts["tasks"] = {task.name: facts_of(task.eval) for task in recipe.tasks}
    if recipe.eval.memory is not None:
        # The model decides the rest of it, and the steps have that among their own facts.
        facts[MEMORY] = recipe.eval.memory
    if recipe.eval.target is not None:
        facts["target"] = facts_of(recipe.eval.target)
    return facts


def held_out(recipe: Recipe, own: bool, against: Sequence[str] = ()) -> Decontamination | None:
    """What no row of training may hold: the recipe's tests, and further evaluation sets.

    None where there are none.
    """
    from replaykit.checks.evalsets import eval_items, items_of
    from replaykit.checks.overlap import Decontamination

    sets = {name: eval_items(name) for name in against}
    if own:
        for skill, (_, rows) in load_tests(recipe).rows.items():
            sets[skill] = items_of((str(row.meta["line"]), row) for row in rows)
    return Decontamination(sets) if sets else None
