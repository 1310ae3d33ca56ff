"""What a step shows on stdout: one table, or a few lines.

generate
  made      1,712  100 %
  - cut_off   212   12 %
  kept      1,500   88 %
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from replaykit.checks.fidelity import Fidelity
from replaykit.checks.funnel import FunnelCounts
from replaykit.recipe.remedies import StmSettings
from replaykit.result import Noted, Result
from replaykit.steps.augment.result import AugmentResult
from replaykit.steps.buffer.result import BufferResult
from replaykit.steps.describe.result import DescribeResult
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import EvalResult, ModelScores, SkillFacts, Thoughts
from replaykit.steps.generate.result import EstimateResult, GenerateResult
from replaykit.steps.matrix.result import MatrixResult, StageScores
from replaykit.steps.merge.result import AlphaRow, MergeResult
from replaykit.steps.mix.result import MixResult, SkillRows
from replaykit.steps.probe.result import ProbeResult
from replaykit.steps.repair.result import RepairResult
from replaykit.steps.report.numbers import (
    NOTHING,
    Unit,
    interval,
    known,
    mean,
    number,
    percent,
    unit_of,
)
from replaykit.steps.report.repairs import show_repair
from replaykit.steps.report.sequence import buffer_rows, estimate, old_verdict, tasks_verdict
from replaykit.steps.report.sweeps import show_advice, show_sweep
from replaykit.steps.report.verdict import base_of, caution, new_side, old_side, share_of, verdict
from replaykit.steps.rewrite.result import RewriteResult
from replaykit.steps.score.result import Perplexity, ScoreResult
from replaykit.steps.select.result import Explanation, SelectResult
from replaykit.steps.suites.result import SuitesResult
from replaykit.steps.swept import AdviseResult, SweepResult
from replaykit.steps.train.events import Event
from replaykit.steps.train.result import TrainEstimate, TrainResult
from replaykit.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

R = TypeVar("R", bound=Result)
Row = tuple[str, str]  # a name and what is said of it
WHAT = {"target": " (new)", "memory": " (drift)"}  # of a test that is of no old skill
SKILLS = 8  # of a mix, with the most rows, that are named
WIDE = 110  # columns of a terminal from which on an interval stands beside its mean


def show(step: str, result: Result, console: Console | None = None) -> None:
    """Prints the result of a step (``eval``, ``train-no-replay``, ...) to stdout, or to the console
    given.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console(highlight=False)
    step = printable(step)
    result = _printable(result)
    if isinstance(result, EvalResult):  # two tables with headings of their own, so without the step
        _show_evaluation(result, console)
        return
    console.print(Text(step, style="bold"))
    match result:
        case MatrixResult():
            _show_matrix(result, console)
        case SweepResult():
            show_sweep(result, console)
        case AdviseResult():
            show_advice(result, console)
        case ProbeResult():
            console.print(_probe(result))
            console.print(Text(result.verdict))
        case ScoreResult():
            console.print(_perplexities(result.sources, result.max_perplexity))
            console.print(_of_perplexities(result.max_perplexity))
        case RewriteResult():
            console.print(_grid(_rows(result)))
            _show_rewritten(result, console)
        case SuitesResult():
            _show_suites(result, console)
        case RepairResult():
            show_repair(result, console)
            console.print()
            _show_evaluation(result.evaluation, console)
        case MergeResult(table=list(table)):  # a sweep; a single average has no table
            console.print(_averages(table))
            words = "Chosen by these very scores: other items tell how good it is."
            console.print(Text(words, style="dim"))
            _show_notes(result, console)
        case _:  # names and values
            console.print(_grid(_rows(result)))


def _printable(result: R) -> R:
    """The result as a terminal may show it: a row's or a model's control characters, in any text or
    name in it, are written out.
    """
    found = result.to_json()
    shown = _written_out(found)
    if shown == found:
        return result
    text = json.dumps(shown, ensure_ascii=False)
    return type(result).model_validate_json(text.encode("utf-8", "replace"))


def _written_out(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): _written_out(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_written_out(inner) for inner in value]
    return value


def _rows(result: Result) -> list[Row]:
    """Of a result that is shown as names and values: these."""
    match result:
        case SelectResult():
            return [*_funnel_rows(result.funnel), *_score_rows(result), *_notes(result)]
        case GenerateResult():
            return [*_funnel_rows(result.funnel), *_sample_rows(result), *_notes(result)]
        case EstimateResult() | TrainEstimate():
            return [(sentence, "") for sentence in result.text]
        case MixResult():
            return [*_mix_rows(result), *_notes(result)]
        case BufferResult():
            return [*buffer_rows(result), *_notes(result)]
        case TrainResult():
            return [*_train_rows(result), *_notes(result)]
        case RewriteResult() | AugmentResult() | DescribeResult():
            return [*_made_rows(result), *_notes(result)]
        case MergeResult():
            shown = {"method", "alpha", "changed", "model"}
            return _plain_rows(result.model_dump(include=shown))
        case Explanation():
            found = result.model_dump(mode="json", exclude_none=True)
            # A row that was chosen has no reason, and that is worth a line.
            return _plain_rows({"id": None, "chosen": None, "reason": None} | found)
        case Noted():
            found = result.model_dump(mode="json", exclude_none=True, exclude={"notes"})
            return [*_plain_rows(found), *_notes(result)]
        case _:
            return _plain_rows(result.model_dump(mode="json", exclude_none=True))


def _notes(result: Noted) -> list[Row]:
    return [("note", note) for note in result.notes]


def _plain_rows(found: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name, value in found.items():
        # A text as it is; of numbers, lists and mappings the JSON, as --json gives it.
        text = value
        if not isinstance(value, str):
            text = json.dumps(value, ensure_ascii=False)
        rows.append((name, text))
    return rows


def _grid(rows: Sequence[Row]) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    # All is Text, never str: rich would read brackets in a model's words as markup.
    grid = Table.grid(Column(), Column(overflow="fold"), padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(f"  {name}"), Text(value))
    return grid


# --- names and values -----------------------------------------------------------------------------


def _funnel_rows(funnel: FunnelCounts) -> list[Row]:
    counts = [("made", funnel.made)]
    counts += [(f"- {reason}", count) for reason, count in funnel.dropped.items()]
    counts.append(("kept", funnel.kept))
    wide = len(f"{funnel.made:,}")  # the largest count; the others are set flush right below it
    rows = []
    for name, count in counts:
        value = f"{count:{wide},}"
        if funnel.made:
            value += f"{100 * count / funnel.made:5.0f} %"
        rows.append((name, value))
    return rows


def _made_rows(result: RewriteResult | AugmentResult | DescribeResult) -> list[Row]:
    """What a step made of rows that were there."""
    match result:
        case AugmentResult():
            return list(_augment_rows(result))
        case DescribeResult():
            own = _plain_rows(result.model_dump(include={"file", "column", "instructions"}))
            return [*_funnel_rows(result.funnel), *own]
        case RewriteResult():
            return _plain_rows(result.model_dump(include={"rows", "paths", "masked"}))


def _augment_rows(result: AugmentResult) -> Iterator[Row]:
    """How many rows were made in each way, and why not more."""
    yield "target", f"{result.target:,} rows, {result.drawn:,} of them to be augmented"
    for path, counts in result.paths.items():
        edit = "" if counts.edit is None else f", {100 * counts.edit:.0f} % edited on average"
        yield path, f"{counts.made:,} rows made{edit}"
        for reason, rows in counts.refused.items():
            yield f"- {reason}", f"{rows:,}"
    yield "rows", f"{result.rows:,}, which count as target rows in the mix"


def _score_rows(result: SelectResult) -> Iterator[Row]:
    yield "looked at", f"{result.looked_at:,} rows: the bad and the repeated ones are of these"
    scores = result.scores
    if scores is not None:
        yield (
            "scores",
            f"highest {scores.highest:.3f}, median {scores.median:.3f}, lowest {scores.lowest:.3f}",
        )


def _sample_rows(result: GenerateResult) -> Iterator[Row]:
    """What is known of the generated rows beyond their funnel: tokens, thoughts and calls, the
    checks' effect on the sample, a judge's tags.
    """
    yield "tokens", ", ".join(f"{count:,} of {what}" for what, count in result.tokens.items())
    if result.thoughts is not None:
        yield "thoughts", result.thoughts.words
        if result.thoughts.warning is not None:
            yield "warning", result.thoughts.warning
    if result.calls is not None:
        yield "calls", result.calls.words
    if result.verified is not None:
        yield "answers", result.verified.words
    yield from _fidelity_rows(result.fidelity)
    for tag, counts in (result.tags or {}).items():
        yield f"tag {tag}", ", ".join(f"{word} {count:,}" for word, count in counts.items())


def _fidelity_rows(fidelity: Fidelity) -> Iterator[Row]:
    if fidelity.note:
        yield "fidelity", fidelity.note
    for item, found in fidelity.items.items():
        far = ": more than chance" if found.distance > found.chance else ""
        distance = f"{found.distance:.3f} from the raw sample (chance: {found.chance:.3f})"
        yield item, f"{distance}{far}"
    if fidelity.cut:
        cut = f"{fidelity.cut:,} of {fidelity.answers:,} answers at the token limit"
        yield "cut", f"{cut}, dropped ones counted"
    for warning in fidelity.warnings:
        yield "warning", warning


def _mix_rows(mix: MixResult) -> Iterator[Row]:
    """What was asked for and what came out."""
    yield "asked for", mix.description
    yield "came out", _by_unit(mix.share)
    if mix.replay_rows:  # without replay every step has its share
        yield "last fifth", _by_unit(mix.last_share)
        yield "steps", f"{mix.steps:,}, each within {mix.furthest_step.rows:.2f} rows of its share"
    replayed = f"{mix.replay_rows:,} replay"
    if mix.replay_rows:
        replayed += f" ({mix.different_replay:,} different)"
    counts = [f"{mix.target_rows:,} target", replayed]
    counts += [f"{n:,} dropped as {reason}" for reason, n in mix.funnel.dropped.items()]
    yield "rows", ", ".join(counts)
    times = [f"{source} {times:.2f} times" for source, times in mix.repeats.items()]
    yield "each row", ", ".join(times) or NOTHING
    if mix.skills:
        yield "skills", ", ".join(_skill_counts(mix.skills))
    yield "cost", f"{mix.cost:.3f} times the tokens of the target alone"
    for name, place in mix.exported.items():
        yield f"for {name}", place


def _by_unit(share: Mapping[Any, float]) -> str:
    return ", ".join(f"{percent(part)} of {unit.replace('_', ' ')}" for unit, part in share.items())


def _skill_counts(skills: Mapping[str, SkillRows]) -> Iterator[str]:
    """The skills with the most rows, and how many more there are."""
    for skill, count in list(skills.items())[:SKILLS]:
        text = f"{skill} {count.rows:,}"
        if count.different < count.rows:
            text += f" ({count.different:,} different)"
        yield text
    if len(skills) > SKILLS:
        yield f"{len(skills) - SKILLS} more"


def _train_rows(result: TrainResult) -> Iterator[Row]:
    yield "steps", f"{result.steps:,}"
    yield "final loss", number(result.loss, "nats")
    # Where a remedy weighs tokens, the share of the mixture is not the share of the loss.
    if result.weights is not None and result.weights.share is not None:
        yield "replay", f"{percent(result.weights.share)} of the weight of the loss"
    if result.events:
        yield from _decision_rows(result.events)


def _decision_rows(events: Sequence[Event]) -> Iterator[Row]:
    """How often the controller tested, what it came to, and each change with its reason."""
    first = percent(events[0].ratio_before)
    last = percent(events[-1].ratio)
    yield "controller", f"{len(events):,} tests; {first} of replay, {last} in the end"
    for event in events:
        if event.changes:
            yield f"- step {event.step:,}", event.reason


# --- tables ---------------------------------------------------------------------------------------


def _table(first: str, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # A rule below the head and no other lines: numbers stand close enough to be compared.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(Text(first), overflow="fold")
    for column in columns:
        table.add_column(Text(column, justify="right"), justify="right", overflow="fold")
    return table


def _show_rewritten(result: RewriteResult, console: Console) -> None:
    """How probable the base finds the new answers and the references; of auto, what it tried."""
    from rich.text import Text

    if result.trials:
        trials = _table("method", ["rows", "accepted", "mean perplexity"])
        for trial in result.trials:
            counts = (trial.method, f"{trial.rows:,}", f"{trial.accepted:,}")
            trials.add_row(*map(Text, [*counts, f"{trial.perplexity:,.2f}"]))
        console.print(trials)
        words = f"{result.method} was chosen: the target is the most probable by it."
        console.print(Text(words))
    if result.perplexity:
        limit = StmSettings().max_perplexity or 0.0
        console.print(_perplexities(result.perplexity, limit))
        console.print(_of_perplexities(limit))


def _of_perplexities(limit: float) -> str:
    return (
        "Perplexity is that of all answer tokens, median and 95 % are of rows; the last column is "
        f"the part of the tokens that are less probable than 1 / {limit:g}."
    )


def _perplexities(sources: Mapping[str, Perplexity], limit: float) -> Table:
    """One row a source of answers, the least probable under the model first."""
    from rich.text import Text

    above = f"> {limit:g}"
    table = _table("answers", ["rows", "tokens", "perplexity", "median", "95 %", above])
    for source, found in sources.items():
        table.add_row(*map(Text, [source, *_perplexity_cells(found)]))
    return table


def _perplexity_cells(found: Perplexity) -> list[str]:
    counts = [f"{found.rows:,}", f"{found.tokens:,}"]
    values = [found.perplexity, found.quantiles["0.5"], found.quantiles["0.95"]]
    return [*counts, *(f"{value:,.2f}" for value in values), percent(found.above)]


def _averages(rows: Sequence[AlphaRow]) -> Table:
    """One row an alpha: scores, the drop of old skills, and which of them was chosen."""
    from rich.text import Text

    table = _table("alpha", ["target", "old skills", "drop, with its interval", ""])
    for row in rows:
        drop = Text(mean(row.old_drop)).append(f" {interval(row.old_drop)}", style="dim")
        word = ""
        if row.chosen:
            word = "chosen"
        elif not row.allowed:
            word = "loses too much"
        cells = (f"{row.alpha:g}", number(row.target), number(row.old))
        table.add_row(*map(Text, cells), drop, Text(word))
    return table


def _show_suites(result: SuitesResult, console: Console) -> None:
    """One row a suite, and under which assumption the last column holds."""
    from rich.text import Text

    measured = result.model is not None
    table = _table("suite", ["scored by", "chance", "drop shown"])
    if measured:
        table = _table("suite", ["items", "score, with its interval", "chance", "drop shown", ""])
    else:
        table.add_column(Text("what"), overflow="fold")
    for suite in result.suites:
        numbers = (number(suite.chance), number(suite.detectable))
        if not measured:
            table.add_row(*map(Text, (suite.suite, suite.how, *numbers, suite.what)))
            continue
        score = Text(mean(suite.score)).append(f" {interval(suite.score)}", style="dim")
        word = {None: "not asked", True: "", False: "cannot"}[suite.can]
        cells = map(Text, (suite.suite, f"{suite.n:,}"))
        table.add_row(*cells, score, *map(Text, (*numbers, word)))
    console.print(table)
    words = (
        f"drop shown: the smallest that so many items ({result.items:,}, where there are as many) "
        f"show four times in five, at 2.5 % one-sided, if {percent(result.gained)} of them turn "
        f"right by chance."
    )
    if measured:
        words += " cannot: the interval begins below 0.2 or not above chance; nothing is claimed."
    console.print(Text(words, style="dim"))
    _show_notes(result, console)


def _probe(found: ProbeResult) -> Table:
    """The template's parts with their token ids, what else the template does, and samples."""
    from rich.table import Column, Table
    from rich.text import Text

    grid = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))

    def row(name: str, text: str, ids: Sequence[int] = ()) -> None:
        grid.add_row(Text(f"  {name}"), Text(text))
        if ids:
            grid.add_row(Text(), Text(" ".join(map(str, ids)), style="dim"))

    row("model", found.model)
    for key, part in found.template.items():
        name = key.replace("_", " ").replace("pre query", "pre-query")
        if part is None:
            row(name, "none: one question only")
        else:
            row(name, repr(part.text), part.ids)
    row("stop", " ".join(map(repr, found.stop.text)), found.stop.ids)
    if found.system is not None:  # else a base model, which has no chat template
        row("system prompt", found.system)
        row("default system", _quoted(found.default_system))
        date = "not asked for"
        if found.date:
            date = f"frozen at {found.date}"
        row("date", date)
        row("BOS", f"{found.bos} in the pre-query")
        row("thinking", _quoted(found.thinking))
    named = (found.defaults or {}).items()
    defaults = [f"{name} {value:g}" for name, value in named if value is not None]
    row("defaults", ", ".join(defaults) or "none in generation_config")
    name = "samples"
    for place, sample in enumerate(found.samples, 1):
        row(name, f"{place:>2} {sample!r}")
        name = ""  # the first row names them all
    return grid


def _quoted(text: str | None) -> str:
    return repr(text) if text else "none"


# --- the evaluation -------------------------------------------------------------------------------


def _show_evaluation(evaluation: EvalResult, console: Console) -> None:
    from rich.text import Text

    models = evaluation.models
    # 24 columns for the names of skills, 14 for a model: so many models fit beside one another.
    per_table = max(1, (console.width - 24) // 14)
    gap = "\n"
    if console.width >= WIDE:
        gap = " "
    console.print(Text("base against tuned, with 95 % intervals", style="bold"))
    console.print(_by_model(evaluation, gap=gap))
    console.print(Text("skill by skill, and the change against base", style="bold"))
    console.print(Text("* the change's 95 % interval leaves out 0", style="dim"))
    for first in range(0, len(models), per_table):
        console.print(_by_skill(evaluation, models[first : first + per_table]))
    if any(model.thoughts for model in models):
        console.print(Text("thoughts before the answers, valid ones of all", style="bold"))
        for first in range(0, len(models), per_table):
            console.print(_by_thought(models[first : first + per_table]))
    if evaluation.changed_rates:
        console.print(Text("answers that decline or repeat themselves", style="bold"))
        for first in range(0, len(models), per_table):
            console.print(_by_rate(evaluation, models[first : first + per_table]))
    for skill in models[0].classes:
        console.print(Text(f"{skill}, label by label", style="bold"))
        for first in range(0, len(models), per_table):
            console.print(_by_label(skill, models[0], models[first : first + per_table]))
    console.print(Text(f"{verdict(evaluation)} {caution(evaluation)}".strip()))
    _show_notes(evaluation, console)


def _show_notes(result: Noted, console: Console) -> None:
    from rich.text import Text

    for note in result.notes:
        console.print(Text(f"note  {note}"))


def _by_model(evaluation: EvalResult, *, gap: str) -> Table:
    """One row a model; the gap stands between a number and its interval."""
    from rich.text import Text

    def cell(estimate: Interval | None, unit: Unit = "score") -> Text:
        text = Text(mean(estimate, unit))
        if known(estimate):
            text.append(gap + interval(estimate, unit), style="dim")
        return text

    old = old_side(evaluation)
    new = new_side(evaluation)
    columns = ["replay", new.title, old.title]
    retained = any(model.retention is not None for model in evaluation.models)
    if retained:
        columns += ["retention", "worst old skill"]
    table = _table("model", columns)
    for model in evaluation.models:
        cells = [cell(side.of.get(model.model), side.unit) for side in (new, old)]
        if retained:
            cells += [cell(model.retention), Text(_worst(model))]
        table.add_row(Text(model.model), Text(percent(share_of(model))), *cells)
    return table


def _worst(model: ModelScores) -> str:
    if model.worst is None:
        return NOTHING
    return f"{model.worst.skill} {number(model.worst.retention)}"


def _by_skill(evaluation: EvalResult, models: Sequence[ModelScores]) -> Table:
    """One row a skill, one column a model: the score, and by how much it differs from the base
    model's.
    """
    from rich.text import Text

    base = base_of(evaluation)
    table = _table("skill", [model.model for model in models])
    for skill in evaluation.skills:
        label = skill.skill
        if skill.role != "old":
            label += WHAT[skill.role]
        if unit_of(skill) == "nats":
            label += ", nats"
        table.add_row(Text(label), *(_score(model, base, skill) for model in models))
    return table


def _by_thought(models: Sequence[ModelScores]) -> Table:
    """One row a skill that was thought about, one column a model."""
    from rich.text import Text

    table = _table("skill", [model.model for model in models])
    for skill in models[0].thoughts:
        cells = []
        for model in models:
            found = model.thoughts[skill]
            cells.append(Text(percent(round(found.share, 3))).append(_wanting(found), style="dim"))
        table.add_row(Text(skill), *cells)
    return table


def _by_rate(evaluation: EvalResult, models: Sequence[ModelScores]) -> Table:
    """One row a rate that some model has changed, one column a model; beside it the change against
    base.
    """
    from rich.text import Text

    table = _table("skill", [model.model for model in models])
    for skill, name in evaluation.changed_rates:
        cells = []
        for model in models:
            found = model.rates[skill][name]
            text = Text(number(found.rate.mean))
            if found.drop is not None:
                text.append(f" {_change(-found.drop.mean, 'score', found.drop)}", style="dim")
            cells.append(text)
        table.add_row(Text(f"{skill} {name}"), *cells)
    return table


def _by_label(skill: str, base: ModelScores, models: Sequence[ModelScores]) -> Table:
    """Macro F1 and the recall of each label of a skill, one column a model; below a number its
    interval, and beside it the change against base.
    """
    from rich.text import Text

    def cell(estimate: Interval | None, drop: Interval | None) -> Text:
        text = Text(mean(estimate))
        if drop is not None:
            text.append(f" {_change(-drop.mean, 'score', drop)}", style="dim")
        if known(estimate):
            text.append(f"\n{interval(estimate)}", style="dim")
        return text

    table = _table("figure", [model.model for model in models])
    for name in base.classes[skill].figures:
        cells = []
        for model in models:
            found = model.classes[skill].figures
            cells.append(cell(*found.get(name, (None, None))))
        table.add_row(Text(name), *cells)
    return table


def _wanting(found: Thoughts) -> str:
    """The thoughts that are not valid, a line each: "88 missing"."""
    counts = {"empty": found.empty, "missing": found.missing, "cut": found.cut}
    return "".join(f"\n{count:,} {state}" for state, count in counts.items() if count)


def _score(model: ModelScores, base: ModelScores, skill: SkillFacts) -> Text:
    from rich.text import Text

    unit = unit_of(skill)
    # A model that was not tested on the skill has a dash.
    estimate = model.scores.get(skill.skill)
    before = base.scores.get(skill.skill)
    text = Text(mean(estimate, unit))
    if model is not base and known(before) and known(estimate):
        drop = model.drop.get(skill.skill)
        text.append(f" {_change(estimate.mean - before.mean, unit, drop)}", style="dim")
    return text


def _change(change: float, unit: Unit, drop: Interval | None) -> str:
    """With its sign, and a star where its interval, that of the drop, leaves out 0."""
    sign = "+" if change >= 0 else ""
    star = ""
    if drop is not None and not drop.low <= 0 <= drop.high:
        star = "*"
    return f"{sign}{number(change, unit)}{star}"


# --- several tasks --------------------------------------------------------------------------------


def _show_matrix(matrix: MatrixResult, console: Console) -> None:
    """A row a stage, a column a task or the mean of the base's skills; then the figures."""
    from rich.text import Text

    # As in an evaluation: 12 columns for the names of stages, 14 for a task.
    per_table = max(1, (console.width - 12) // 14)
    columns: list[str | None] = [*matrix.tasks]
    if matrix.rows[0].old is not None:
        columns.insert(0, None)
    for first in range(0, len(columns), per_table):
        console.print(_stages(matrix, columns[first : first + per_table]))
    console.print(_grid([*_matrix_rows(matrix)]))
    console.print(Text(f"{tasks_verdict(matrix)} {old_verdict(matrix)}".strip()))
    _show_notes(matrix, console)


def _matrix_rows(matrix: MatrixResult) -> Iterator[Row]:
    """The figures, and on how many rows each skill was tested."""
    worst = matrix.worst_forgetting
    for name, found in matrix.figures.items():
        whose = f" ({worst.task})" if worst is not None and found is worst.forgetting else ""
        yield f"{name}{whose}", estimate(found)
    units = {skill.skill: unit_of(skill) for skill in matrix.skills}
    drops = {skill: drop for skill, drop in matrix.old_drops.items() if units[skill] == "score"}
    if len(drops) > 1:
        skill = max(drops, key=lambda name: drops[name].mean)
        yield f"worst old skill ({skill})", estimate(drops[skill])
    yield "rows tested", ", ".join(f"{skill.skill} {skill.n:,}" for skill in matrix.skills)


def _stages(matrix: MatrixResult, columns: Sequence[str | None]) -> Table:
    """A row a stage; the column None is the mean of the base's skills."""
    from rich.text import Text

    def cell(row: StageScores, task: str | None) -> Text:
        found = row.old if task is None else row.scores[task]
        text = Text(mean(found), style="bold" if row.after == task else "")
        return text.append(f"\n{interval(found)}", style="dim not bold")

    table = _table("after", ["old skills" if task is None else task for task in columns])
    for row in matrix.rows:
        table.add_row(Text(row.after), *(cell(row, task) for task in columns))
    return table
