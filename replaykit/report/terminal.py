"""What a step shows: one table or a few lines on stdout, progress bars on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from replaykit.report.verdict import (
    Model,
    Numbers,
    Unit,
    base_of,
    caution,
    interval,
    known,
    new_side,
    number,
    old_side,
    percent,
    share_of,
    unit_of,
    verdict,
)
from replaykit.runs import Watch

SKILLS = 8  # of a mix, with the most rows, that are named
NOTE_SECONDS = 30  # at least, between two notes of one piece of work where stderr is no terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show(step: str, result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the result of a step (``eval``, ``train-no-replay``, ...) to stdout, or to the console
    given.
    """
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = console or Console(highlight=False)
    kind = step.partition("-")[0]
    if kind == "eval" and result.get("models"):
        _show_evaluation(result, console)
        return
    if kind == "probe" and "template" in result:
        _show_probe(result, console)
        return
    if kind == "score" and "sources" in result:
        console.print(Text(step, style="bold"))
        console.print(_perplexities(result))
        console.print(
            f"Perplexity is that of all answer tokens, median and 95 % are of rows; the last "
            f"column is the part of the "
            f"tokens that are less probable than 1 / {result['max_perplexity']:g}."
        )
        return
    if kind == "merge" and "table" in result:
        console.print(Text(step, style="bold"))
        console.print(_averages(result))
        console.print(
            Text("Chosen by these very scores: other items tell how good it is.", style="dim")
        )
        return
    rows = [
        (k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str))
        for k, v in result.items()
    ]
    if kind in ("select", "generate", "rewrite") and result.get("funnel"):
        rows = (
            _funnel_rows(result["funnel"]) + list(_sample_rows(result)) + list(_score_rows(result))
        )
    elif kind == "generate" and "text" in result:  # a dry run
        rows = [(line, "") for line in result["text"]]
    elif kind == "mix" and "requested" in result:
        rows = _mix_rows(result)
    elif kind == "train" and "steps" in result:
        rows = [
            ("steps", f"{result['steps']:,}"),
            ("final loss", number(result.get("loss"), "nats")),
        ]
        rows += [("seconds", f"{result['seconds']:,.1f}")] if "seconds" in result else []
        if "share" in (weights := result.get("weights") or {}):
            rows.append(("replay", f"{percent(weights['share'])} of the weight of the loss"))
        rows += _decision_rows(result.get("events") or [])
    grid = Table.grid(Column(), Column(overflow="fold"), padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(f"  {name}"), Text(value))
    console.print(Text(step, style="bold"))
    console.print(grid)


def _perplexities(result: Mapping[str, Any]) -> Table:
    """One row a source of training rows, the least probable under the model first."""
    from rich.text import Text

    table = _table(
        "answers",
        ["rows", "tokens", "perplexity", "median", "95 %", f"> {result['max_perplexity']:g}"],
    )
    for source, of in result["sources"].items():
        counts = [f"{of['rows']:,}", f"{of['tokens']:,}"]
        quantiles = (of["quantiles"]["0.5"], of["quantiles"]["0.95"])
        perplexities = [f"{value:,.2f}" for value in (of["perplexity"], *quantiles)]
        table.add_row(Text(source), *map(Text, [*counts, *perplexities, percent(of["above"])]))
    return table


def _averages(result: Mapping[str, Any]) -> Table:
    """One row an alpha: scores, the drop of old skills, and which of them was chosen."""
    from rich.text import Text

    table = _table("alpha", ["target", "old skills", "drop, with its interval", ""])
    for row in result["table"]:
        drop = Text(number(row["old_drop"]["mean"])).append(
            f" {interval(row['old_drop'])}", style="dim"
        )
        word = "chosen" if row["chosen"] else "" if row["allowed"] else "loses too much"
        cells = (f"{row['alpha']:g}", number(row["target"]), number(row["old"]))
        table.add_row(*map(Text, cells), drop, Text(word))
    return table


def _score_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if scores := result.get("scores"):
        yield (
            "scores",
            ", ".join(f"{name} {scores[name]:.3f}" for name in ("highest", "median", "lowest")),
        )
    for note in result.get("notes", []):
        yield "note", note


def _funnel_rows(funnel: Mapping[str, Any]) -> list[tuple[str, str]]:
    made = funnel["made"]
    dropped = funnel["dropped"]
    rows = [
        ("made", made),
        *((f"- {reason}", count) for reason, count in dropped.items()),
        ("kept", funnel["kept"]),
    ]
    wide = len(f"{made:,}")
    return [
        (name, f"{count:{wide},}" + (f"{100 * count / made:5.0f} %" if made else ""))
        for name, count in rows
    ]


def _sample_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is known of the generated rows beyond their funnel: tokens, the checks' effect on the
    sample, a judge's tags.
    """
    if tokens := result.get("tokens"):
        seconds = f", in {result['seconds']:,.1f} s" if "seconds" in result else ""
        yield (
            "tokens",
            ", ".join(f"{count:,} of {what}" for what, count in tokens.items()) + seconds,
        )
    if fidelity := result.get("fidelity"):
        if fidelity["note"]:
            yield "fidelity", fidelity["note"]
        for item, found in fidelity["items"].items():
            far = ": more than chance" if found["distance"] > found["chance"] else ""
            yield (
                item,
                f"{found['distance']:.3f} from the raw sample (chance: {found['chance']:.3f}){far}",
            )
    for tag, counts in (result.get("tags") or {}).items():
        yield f"tag {tag}", ", ".join(f"{word} {count:,}" for word, count in counts.items())


def _show_probe(found: Mapping[str, Any], console: Console) -> None:
    """The template's parts with their token ids, what else the template does, samples and the
    verdict.
    """
    from rich.table import Column, Table
    from rich.text import Text

    grid = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))

    def row(name: str, text: str, ids: Sequence[int] = ()) -> None:
        grid.add_row(Text(f"  {name}"), Text(text))
        if ids:
            grid.add_row(Text(), Text(" ".join(map(str, ids)), style="dim"))

    row("model", str(found["model"]))
    for part, value in found["template"].items():
        name = part.replace("_", " ").replace("pre query", "pre-query")
        if value is None:
            row(name, "none: one question only")
        else:
            row(name, repr(value["text"]), value["ids"])
    row("stop", " ".join(map(repr, found["stop"]["text"])), found["stop"]["ids"])
    if "system" in found:  # else a base model, which has no chat template
        row("system prompt", found["system"])
        row("default system", repr(found["default_system"]) if found["default_system"] else "none")
        row("date", f"frozen at {found['date']}" if found["date"] else "not asked for")
        row("BOS", f"{found['bos']} in the pre-query")
        row("thinking", repr(found["thinking"]) if found["thinking"] else "none")
    defaults = [
        f"{name} {value:g}"
        for name, value in (found["defaults"] or {}).items()
        if value is not None
    ]
    row("defaults", ", ".join(defaults) or "none in generation_config")
    for place, sample in enumerate(found.get("samples", []), 1):
        row("samples" if place == 1 else "", f"{place:>2} {sample!r}")
    console.print(Text("probe", style="bold"))
    console.print(grid)
    console.print(Text(found["verdict"]))


def _decision_rows(events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """How often the controller tested, what it came to, and each change with its reason."""
    if events:
        share = (
            f"{percent(events[0]['ratio_before'])} of replay, {percent(events[-1]['ratio'])} "
            f"in the end"
        )
        yield "controller", f"{len(events):,} tests; {share}"
    for event in events:
        moved = event["ratio"] != event["ratio_before"] or event["remedy"] != event["remedy_before"]
        if moved or event["stop"]:
            yield f"- step {event['step']:,}", event["reason"]


def _mix_rows(mix: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was asked for and what came out. Keys that an older result lacks are left out."""
    rows = [
        ("asked for", mix.get("asked") or percent(mix["requested"])),
        ("came out", _by_unit(mix["share"])),
    ]
    if (last := mix.get("last_share")) and mix["replay_rows"]:
        rows.append(("last fifth", _by_unit(last)))
    if (off := mix.get("furthest_step")) and mix["replay_rows"]:
        rows.append(("steps", f"{mix['steps']:,}, each within {off['rows']:.2f} rows of its share"))
    counts = f"{mix['target_rows']:,} target, {mix['replay_rows']:,} replay"
    counts += "".join(
        f", {n:,} dropped as {reason}"
        for reason, n in mix.get("funnel", {}).get("dropped", {}).items()
    )
    times = ", ".join(
        f"{source} {times:.2f} times" for source, times in mix.get("repeats", {}).items()
    )
    rows += [("rows", counts), ("each row", times or "–")]
    if skills := mix.get("skills"):
        shown = [
            f"{skill} {n['rows']:,}"
            + (f" ({n['different']:,} different)" if n["different"] < n["rows"] else "")
            for skill, n in list(skills.items())[:SKILLS]
        ]
        rows.append(
            (
                "skills",
                ", ".join(
                    [*shown, *([f"{len(skills) - SKILLS} more"] if len(skills) > SKILLS else [])]
                ),
            )
        )
    if "cost" in mix:
        rows.append(("cost", f"{mix['cost']:.3f} times the tokens of the target alone"))
    if mix.get("not_shown"):
        rows.append(
            (
                "not shown",
                f"{mix['not_shown']:,} of the {mix['available']['target']:,} target rows never come",
            )
        )
    rows += [(f"for {name}", place) for name, place in mix.get("exported", {}).items()]
    return [*rows, *(("note", note) for note in mix.get("notes", []))]


def _by_unit(share: Mapping[str, float]) -> str:
    return ", ".join(f"{percent(part)} of {unit.replace('_', ' ')}" for unit, part in share.items())


def _show_evaluation(evaluation: Mapping[str, Any], console: Console) -> None:
    from rich.text import Text

    models = evaluation["models"]
    base = base_of(evaluation)
    per_table = max(1, (console.width - 24) // 14)
    console.print(Text("base against tuned, with 95 % intervals", style="bold"))
    console.print(_comparison(evaluation, gap=" " if console.width >= 110 else "\n"))
    console.print(Text("skill by skill, and the change against base", style="bold"))
    for first in range(0, len(models), per_table):
        console.print(_by_skill(evaluation["skills"], base, models[first : first + per_table]))
    console.print(Text(f"{verdict(evaluation)} {caution(evaluation)}".strip()))


def _table(first: str, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(Text(first), overflow="fold")
    for column in columns:
        table.add_column(Text(column, justify="right"), justify="right", overflow="fold")
    return table


def _comparison(evaluation: Mapping[str, Any], *, gap: str) -> Table:
    """One row a model; the gap stands between a number and its interval."""
    from rich.text import Text

    def cell(numbers: Numbers | None, unit: Unit = "score") -> Text:
        text = Text(number((numbers or {}).get("mean"), unit))
        return text.append(gap + interval(numbers, unit), style="dim") if known(numbers) else text

    old = old_side(evaluation)
    new = new_side(evaluation)
    kept = (
        ["retention", "worst old skill"]
        if any(model.get("retention") for model in evaluation["models"])
        else []
    )
    table = _table("model", ["replay", new.title, old.title, *kept])
    for model in evaluation["models"]:
        name = model["model"]
        worst = model.get("worst")
        cells = [cell(side.of.get(name), side.unit) for side in (new, old)]
        cells.append(cell(model.get("retention")))
        cells.append(Text(f"{worst['skill']} {number(worst['retention'])}" if worst else "–"))
        table.add_row(Text(name), Text(percent(share_of(model))), *cells[: 2 + len(kept)])
    return table


def _by_skill(skills: Sequence[Mapping[str, Any]], base: Model, models: Sequence[Model]) -> Table:
    """One row a skill, one column a model: the score, and by how much it differs from the base
    model's.
    """
    from rich.text import Text

    table = _table("skill", [model["model"] for model in models])
    for skill in skills:
        name = skill["skill"]
        unit = unit_of(skill)
        before = base["scores"].get(skill["skill"])
        cells = []
        for model in models:
            numbers = model["scores"].get(name)
            cells.append(Text(number((numbers or {}).get("mean"), unit)))
            if model is not base and known(before) and known(numbers):
                change = numbers["mean"] - before["mean"]
                cells[-1].append(
                    f" {'+' if change >= 0 else ''}{number(change, unit)}", style="dim"
                )
        label = (
            name
            + (" (new)" if skill["role"] == "target" else "")
            + (", nats" if unit == "nats" else "")
        )
        table.add_row(Text(label), *cells)
    return table


@contextmanager
def progress() -> Iterator[Watch]:
    """A Watch that draws one bar for each ``what``; where stderr is no terminal, a line when one
    starts and ends.
    """
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich import progress as rich
    from rich.console import Console

    fields = ("description", "fields[count]", "fields[note]")
    words, count, note_ = (rich.TextColumn(f"{{task.{field}}}", markup=False) for field in fields)
    bar = (rich.SpinnerColumn(finished_text="✓"), words, rich.BarColumn(24), count)
    times = (rich.TimeElapsedColumn(), rich.TimeRemainingColumn(), note_)
    tasks: dict[str, rich.TaskID] = {}
    # A result printed meanwhile still belongs on stdout.
    with rich.Progress(*bar, *times, console=Console(stderr=True), redirect_stdout=False) as bars:

        def watch(what: str, done: int, total: int | None, note: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, completed=done, count="", note="")
            text = f"{done:,}" if total is None else f"{done:,}/{total:,}"
            bars.update(tasks[what], total=total, completed=done, count=text, note=note)

        yield watch


def _lines() -> Watch:
    """Lines on stderr: when a piece of work starts and ends, and its note every half minute."""
    started: dict[str, float] = {}
    said: dict[str, float] = {}
    ended: set[str] = set()

    def watch(what: str, done: int, total: int | None, note: str = "") -> None:
        now = time.monotonic()
        if what not in started:
            started[what] = said[what] = now
            sys.stderr.write(f"{what} ...\n")
        remark = f", {note}" if note else ""
        if done == total and what not in ended:
            ended.add(what)
            sys.stderr.write(f"{what}: {done:,} in {now - started[what]:.1f} s{remark}\n")
        elif note and what not in ended and now - said[what] >= NOTE_SECONDS:
            said[what] = now
            sys.stderr.write(f"{what}: {done:,}{'' if total is None else f'/{total:,}'}{remark}\n")

    return watch
