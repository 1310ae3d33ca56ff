"""The command line: a command reads its flags, calls one function of ``steps``, and prints what
came out.

Everything heavy is imported inside the functions that use it, and help is shown without rich, so
that --help is instant.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replaykit import __version__
from replaykit.cli import commands
from replaykit.cli.commands import Command
from replaykit.cli.options import RECIPE_FILE, Flags
from replaykit.errors import RecipeError, ReplaykitError, Stopped
from replaykit.text import printable

if TYPE_CHECKING:
    from replaykit.changes import Change
    from replaykit.recipe import Recipe
    from replaykit.runs import Watch
    from replaykit.steps.step import Outcome


def _say(text: object, *, err: bool = False) -> None:
    """Prints a line, of which a row, a model or a file name may be a part."""
    typer.echo(printable(str(text)), err=err)


class Printable(logging.Formatter):
    """Of what is logged, which a row or a model may be a part of."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class Commands(typer.core.TyperGroup):
    """Turns an error that the user can mend into one message and exit code 1; anything else is our
    bug and a traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Stopped as stopped:
            _say(f"\n{stopped}", err=True)
            raise typer.Exit(stopped.exit_code) from stopped
        except ReplaykitError as error:
            _say(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        except OSError as error:
            from replaykit.runs import disk_problem

            problem = disk_problem(error)
            if problem is None:
                raise
            _say(f"error: {problem}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            _say(
                "\nstopped; what was finished is safe, and the same command goes on from there",
                err=True,
            )
            raise typer.Exit(130) from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            # None of the program's own options was typed; to look at one, typer imports pydantic.
            self.params = []
            self.add_help_option = False
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each command with its whole help, which typer cuts off without rich."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.commands.items()])


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune a language model without losing what it knew, and prove it.",
    epilog="Start with: replaykit quickstart",
)


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    if version:
        _say(__version__)
        raise typer.Exit


def _add(command: Command, do: Callable[[Flags], None]) -> None:
    """Makes a command of the table one of typer's."""

    def call(**values: Any) -> None:
        do(Flags(command.options, values))

    parameters = [option.parameter() for option in command.options]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app.command(command.name, help=command.help)(call)


def _quickstart(flags: Flags) -> None:
    from replaykit.recipe import load_recipe
    from replaykit.starter import write_quickstart

    seed = 1 if flags["seed"] is None else flags["seed"]
    recipe = load_recipe(write_quickstart(flags["out"] or Path("runs/quickstart"), seed=seed))
    outcomes = _run_all(recipe, flags)
    _show([outcome for outcome in outcomes if outcome.step in ("eval", "report")], flags)


def _init(flags: Flags) -> None:
    from replaykit.starter import write_recipe

    written = write_recipe(
        flags["out"],
        model=flags["model"],
        target=flags["target"],
        pool=flags["pool"],
        seed=flags["seed"],
        force=bool(flags["force"]),
    )
    todo = f"replaykit run {shlex.quote(str(written))}"
    if flags["json"]:
        _print_json({"recipe": str(written), "next": todo})
    else:
        _say(f"wrote {written}; look it over, then: {todo}")


def _run(flags: Flags) -> None:
    from replaykit.steps import pipeline

    _show(_run_all(_recipe_of_file(flags, pipeline.check), flags), flags)


def _recipe_of_file(flags: Flags, check: Callable[[Recipe], None] | None = None) -> Recipe:
    """The recipe that the argument names, with the flags on top of it, and with what is taken where
    it says nothing. What is wrong with it, ``check`` says before anything is written.
    """
    from replaykit.recipe import load_recipe
    from replaykit.suited import kept

    if flags["file"] and flags["recipe"]:
        problem = f"the recipe is given twice: {flags['file']} and --recipe {flags['recipe']}"
        raise RecipeError("the command line", [f"{problem}; leave one out"])
    path = flags["file"] or flags["recipe"]
    # A model and a target are enough.
    alone = flags["model"] is not None and flags["target"] is not None
    if path is None and (RECIPE_FILE.exists() or not alone):
        path = RECIPE_FILE
    recipe = load_recipe(path, flags.changes())
    if check is not None:
        check(recipe)
    found = kept(recipe, write=True)
    for said in found.said:
        _say(said, err=True)
    return found.recipe


def _sweep(flags: Flags, *, short: bool) -> None:
    """Several trainings and one result; with ``short`` the line for the recipe too."""
    from replaykit.steps.step import Context
    from replaykit.steps.sweep.step import advise, run

    recipe = _recipe_of_file(flags)
    do = advise if short else run
    force = bool(flags["force"])
    *_, outcome = _done(lambda watch: do(recipe, Context(force=force, watch=watch)))
    _show([outcome], flags)
    if short and outcome.result.line is not None and not flags["json"]:
        _say(outcome.result.line)


def _run_all(recipe: Recipe, flags: Flags) -> list[Outcome[Any]]:
    from replaykit.steps import pipeline
    from replaykit.steps.step import Context

    force = bool(flags["force"])
    return _done(lambda watch: pipeline.run(recipe, Context(force=force, watch=watch)))


def _step(name: str, flags: Flags) -> None:
    """One step with the recipe there is, and the flags on top of it."""
    from replaykit.recipe.evaluate import MEMORY
    from replaykit.steps import pipeline
    from replaykit.steps.step import Context

    arm = flags.values.get("arm")
    recipe = pipeline.of_arm(_recipe(flags), name, arm)
    run = pipeline.step_of(name)
    force = bool(flags["force"])

    def do(watch: Watch) -> Iterable[Outcome[Any]]:
        context = Context(out=flags["out"], force=force, arm=arm, watch=watch)
        if not flags.own().get("dry_run"):
            yield from pipeline.first(recipe, name, watch)
        yield from run(recipe, context, **flags.own())

    outcomes = _done(do)
    _show([outcome for outcome in outcomes if name == MEMORY or outcome.step != MEMORY], flags)


def _gate(flags: Flags) -> None:
    """Measures what is not measured, and ends with the exit code of the verdict."""
    from replaykit.runs import write_json
    from replaykit.steps import pipeline
    from replaykit.steps.report.gate import WORDS, GateResult, gate
    from replaykit.steps.step import Context
    from replaykit.written import has_keys, refuse_foreign

    if flags["evidence"] is not None:  # now, since what is measured below takes long
        refuse_foreign(flags["evidence"], has_keys(GateResult.model_fields))
    arm = flags.values.get("arm")
    recipe = pipeline.of_arm(_recipe(flags), "eval", arm)
    evaluate = pipeline.step_of("eval")

    def do(watch: Watch) -> Iterable[Outcome[Any]]:
        context = Context(out=flags["out"], force=bool(flags["force"]), arm=arm, watch=watch)
        return evaluate(recipe, context, tuned=flags["tuned"], more=flags["more"])

    (outcome,) = _done(do)
    found = gate(outcome, flags["judge"])
    evidence = flags["evidence"] or outcome.folder / "gate.json"
    write_json(evidence, found.to_json())
    if flags["summary"] is not None:
        with flags["summary"].open("a", encoding="utf-8") as stream:
            stream.write(found.markdown)
    if flags["json"]:
        _print_json(found.to_json())
    else:
        _say(f"{WORDS[found.state]}\n{found.words}\n{evidence}")
    raise typer.Exit(found.code)


def _repair(flags: Flags) -> None:
    """Repairs a model by the tests of the recipe, or by the suites that suit the base."""
    from replaykit.recipe.evaluate import MEMORY
    from replaykit.steps import pipeline
    from replaykit.steps.step import Context
    from replaykit.suited import tested

    given = _recipe(flags)
    if flags["rehearse"] is not None and given.repair.rehearse is None:
        half = given.repair.model_copy(update={"rehearse": 0.5})
        given = given.model_copy(update={"repair": half})
    recipe, said = tested(given)
    for sentence in said:
        _say(sentence, err=True)

    def do(watch: Watch) -> Iterable[Outcome[Any]]:
        context = Context(
            out=flags["out"], force=bool(flags["force"]), arm=flags["arm"], watch=watch
        )
        yield from pipeline.first(recipe, "repair", watch)
        yield from pipeline.step_of("repair")(recipe, context, tuned=flags["tuned"])

    _show([outcome for outcome in _done(do) if outcome.step != MEMORY], flags)


def _suites(flags: Flags) -> None:
    """Measures suites on a model, or prints items of those that are named, or lists all."""
    from replaykit.suites import ITEMS

    names = flags["name"] or []
    n = ITEMS if flags["n"] is None else flags["n"]
    if flags["model"] is not None:
        _measure_suites(names, n, flags)
        return
    from replaykit.steps.report.terminal import show
    from replaykit.steps.suites.step import listed, tests_of
    from replaykit.suites import rows

    if names:
        found = {
            name: rows(test.path, n) for name, test in tests_of(names, n, flags["seed"]).items()
        }
        if flags["json"]:
            _print_json(found)
            return
        for of_suite in found.values():
            for row in of_suite:
                typer.echo(printable(json.dumps(row, ensure_ascii=False), r"\u{:04x}"))
        return
    result = listed(names, n, flags["seed"])
    if flags["json"]:
        _print_json(result.to_json())
        return
    show("suites", result)


def _measure_suites(names: Sequence[str], n: int, flags: Flags) -> None:
    from replaykit.steps.step import Context
    from replaykit.steps.suites.step import run

    recipe = _recipe(flags)
    force = bool(flags["force"])

    def do(watch: Watch) -> Iterable[Outcome[Any]]:
        context = Context(out=flags["out"], force=force, watch=watch)
        return run(recipe, context, names, n, flags["seed"])

    _show(_done(do), flags)


def _status(flags: Flags) -> None:
    from replaykit.steps.status import status
    from replaykit.suited import kept

    recipe = _recipe(flags)
    if recipe.model is not None and (recipe.folder / "memory").exists():
        recipe = kept(recipe, write=False).recipe  # as `run` began it
    found = status(recipe)
    if flags["json"]:
        _print_json(found.to_json())
        return
    width = max(len(step.name) for step in found.steps)
    for step in found.steps:
        _say(f"{step.name:<{width}}  {step.words}")


def _peek(flags: Flags) -> None:
    from replaykit.steps.peek import Wanted, bracketed, lines, peek

    if flags["what"] is None or flags["n"] < 1:
        problem = "name what to look at, and at least one row: `replaykit peek select -n 5`"
        raise RecipeError("the command line", [problem])
    names = ("n", "source", "reason", "path", "min_edit", "seed")
    wanted = Wanted(**{name: flags[name] for name in names})
    dropped = bool(flags["dropped"]) or flags["reason"] is not None
    found = peek(
        flags["what"], _recipe(flags).folder, wanted, dropped=dropped, split=flags["split"]
    )
    if flags["json"]:
        _print_json(found.to_json())
        return
    in_colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for line in lines(found, _coloured if in_colour else bracketed):
        typer.echo(line)


def _coloured(change: Change) -> str:
    """A piece of a rewritten answer, on a terminal that shows colours."""
    match change.kind:
        case "removed":
            return typer.style(change.text, fg="red", strikethrough=True)
        case "added":
            return typer.style(change.text, fg="green")
    return change.text


def _diff(flags: Flags) -> None:
    from replaykit.runs import write_json
    from replaykit.steps.diff import DiffResult, diff, lines
    from replaykit.written import has_keys, refuse_foreign

    if flags["before"] is None or flags["now"] is None:
        problem = "name two folders of runs: `replaykit diff runs/a runs/b`"
        raise RecipeError("the command line", [problem])
    found = diff(flags["before"], flags["now"])
    if flags["out"] is not None:
        refuse_foreign(flags["out"], has_keys(DiffResult.model_fields))
        write_json(flags["out"], found.to_json())
    if flags["json"]:
        _print_json(found.to_json())
        return
    for line in lines(found):
        _say(line)


def _schema(flags: Flags) -> None:
    from replaykit.recipe.schema import schema_text, write_text
    from replaykit.written import has_keys, refuse_foreign

    if flags["out"] is None:
        typer.echo(schema_text(), nl=False)
        return
    if not flags["out"].is_dir():
        refuse_foreign(flags["out"], has_keys(["$schema", "$defs", "title"]))
    write_text(flags["out"], schema_text())
    _say(flags["out"])


_add(commands.QUICKSTART, _quickstart)
_add(commands.INIT, _init)
for _command in commands.STEPS:
    _add(_command, partial(_step, _command.name))
_add(commands.GATE, _gate)
_add(commands.REPAIR, _repair)
_add(commands.SUITES, _suites)
_add(commands.RUN, _run)
_add(commands.SWEEP, partial(_sweep, short=False))
_add(commands.ADVISE, partial(_sweep, short=True))
_add(commands.STATUS, _status)
_add(commands.PEEK, _peek)
_add(commands.DIFF, _diff)
_add(commands.SCHEMA, _schema)


# --- what the commands share ----------------------------------------------------------------------


def _recipe(flags: Flags) -> Recipe:
    """The recipe there is with the flags on top of it."""
    from replaykit.recipe import load_recipe

    path = flags["recipe"]
    if path is None and RECIPE_FILE.exists():
        path = RECIPE_FILE
    return load_recipe(path, flags.changes())


def _done(steps: Callable[[Watch], Iterable[Outcome[Any]]]) -> list[Outcome[Any]]:
    """Does the steps under a progress display; says on stderr what was skipped, and where an
    earlier result went.
    """
    from replaykit.steps.report.progress import progress

    outcomes = []
    with progress() as watch:
        for outcome in steps(watch):
            if outcome.note:
                _say(f"{outcome.step}: {outcome.note}", err=True)
            outcomes.append(outcome)
    return outcomes


def _show(outcomes: list[Outcome[Any]], flags: Flags) -> None:
    """Prints the results: tables and folders, or with --json one object, by step if several."""
    from replaykit.steps.report.terminal import show

    if flags["json"]:
        results = {outcome.step: outcome.result.to_json() for outcome in outcomes}
        _print_json(next(iter(results.values())) if len(results) == 1 else results)
        return
    # A matrix holds those of the stages before it.
    matrices = [outcome.step for outcome in outcomes if outcome.step.startswith("matrix-")]
    for outcome in outcomes:
        if outcome.step in matrices[:-1]:
            continue
        if outcome.step == "report":  # the file is all that there is to show
            _say(outcome.result.report)
            continue
        show(outcome.step, outcome.result)
        _say(outcome.folder)


def _print_json(result: Mapping[str, object]) -> None:
    typer.echo(printable(json.dumps(result, ensure_ascii=False, indent=1), r"\u{:04x}"))


def main() -> None:
    """The entry point of the ``replaykit`` command. SIGTERM ends it as an exit does, so that its
    processes end too.
    """
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Printable())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    app(prog_name="replaykit" if Path(sys.argv[0]).name in ("__main__.py", "cli.py") else None)
