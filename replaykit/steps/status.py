"""How far a run is: what the folder of each step holds, and what the recipe would change in it.

    select  finished 2026-11-29 02:10 UTC, in 4.2 s
    mix     would be done anew: mix.ratio was 0.05, is 0.1
    train   would be done anew, since mix is
    eval    not begun

A step is compared by the inputs that it would use itself, so the words are those of its own note
when it is done anew. No model is loaded, and nothing is written or locked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from replaykit.errors import ReplaykitError, RunError
from replaykit.recipe import Recipe, need
from replaykit.result import Result
from replaykit.runs import Manifest, read_manifest
from replaykit.steps.merge.step import options_of
from replaykit.steps.pipeline import BY_ARM, needed, planned, todos_of
from replaykit.steps.step import Context, Todo, arms, label_of, manifests, moved_aside, typed

State = Literal["finished", "not finished", "not begun", "would be done anew", "waits", "error"]
# Files of a step that are no ledger of finished rows.
RESULTS = ("rows.jsonl", "dropped.jsonl")


class StepStatus(Result):
    """One step of one arm."""

    name: str
    """Of its folder in the run."""
    state: State
    finished: str | None = None
    """The time in UTC, ISO 8601."""
    seconds: float | None = None
    """How long it took."""
    started: str | None = None
    """Of a step that is not finished: the time in UTC, ISO 8601."""
    rows: dict[str, int] = Field(default={})
    """Of a step that is not finished: the rows in each of its ledgers."""
    changed: list[str] = Field(default=[])
    """The settings and files for which it would be done anew."""
    earlier: list[str] = Field(default=[])
    """The steps for which it waits, or since which it would be done anew."""
    error: str | None = None
    """Why nothing can be said of it."""
    in_recipe: bool = True
    """Whether the recipe asks for it."""

    @property
    def words(self) -> str:
        """The state in a line."""
        words = self._state_in_words()
        if not self.in_recipe:
            words += "; the recipe does not ask for it"
        return words

    def _state_in_words(self) -> str:
        match self.state:
            case "finished":
                took = "" if self.seconds is None else f", in {self.seconds:g} s"
                return f"finished {_minute(self.finished)}{took}"
            case "not finished":
                rows = "".join(f"; {n:,} rows in {ledger}" for ledger, n in self.rows.items())
                return f"not finished: started {_minute(self.started)}{rows}"
            case "would be done anew":
                return f"would be done anew{self._why()}"
            case "waits":
                return f"waits for {_listed(self.earlier)}"
            case "error":
                return f"error: {self.error}"
            case "not begun":
                return "not begun"

    def _why(self) -> str:
        changed = "; ".join(self.changed)
        verb = "is" if len(self.earlier) == 1 else "are"
        since = f"since {_listed(self.earlier)} {verb}"
        if not self.changed:
            return f", {since}"
        if not self.earlier:
            return f": {changed}"
        return f": {changed}; and {since}"


class StatusResult(Result):
    """The steps of a run."""

    steps: list[StepStatus]
    """Those of the recipe in order, then others that are in the run's folder."""


def status(recipe: Recipe) -> StatusResult:
    """How far the run of this recipe is. Raises RecipeError where the recipe cannot be run."""
    need(recipe, "status", *(["model"] if recipe.tasks else ["model", "target"]))
    # In the order of the run: when a step is looked at, those that it reads are known.
    known: dict[str, StepStatus] = {}
    for own, name in planned(recipe):
        own_arms: list[str | None] = [None]
        if name in BY_ARM:
            own_arms = arms(own, Context())
        for arm in own_arms:
            label = label_of(name, arm)
            known[label] = _or_error(label, partial(_compared, own, name, arm, known))
    for inputs in sorted(recipe.folder.glob("*/inputs.json")):
        folder = inputs.parent
        if folder.name not in known and not moved_aside(folder):
            found = _or_error(folder.name, partial(_beside, recipe, folder, known))
            known[folder.name] = found.model_copy(update={"in_recipe": False})
    return StatusResult(steps=list(known.values()))


def _or_error(label: str, look: Callable[[], StepStatus]) -> StepStatus:
    """What is found, or why nothing can be: one damaged folder does not hide the others."""
    try:
        return look()
    except ReplaykitError as error:
        return StepStatus(name=label, state="error", error=str(error))


def _compared(
    recipe: Recipe, name: str, arm: str | None, known: Mapping[str, StepStatus]
) -> StepStatus:
    """The state of a step beside what the recipe says now. Those of the earlier steps are known."""
    label = label_of(name, arm)
    folder = recipe.folder / label
    # The earlier steps that the run would do anew, and those that have left nothing to read yet.
    anew = []
    missing = []
    for earlier in needed(recipe, name, arm):
        state = _state_of(recipe.folder / earlier, known)
        if state == "would be done anew":
            anew.append(earlier)
        elif state != "finished":
            missing.append(earlier)
    # What is there as soon as the step is begun. The report has no folder of its own.
    first = folder / "inputs.json"
    if name == "report":
        first = recipe.folder / "report.html"
    if missing or (anew and not first.exists()):
        return StepStatus(name=label, state="waits", earlier=[*missing, *anew])
    if not first.exists():
        return StepStatus(name=label, state="not begun")
    if name == "report":
        return _report(first, manifests(recipe.folder), anew)
    # Beside a stale step its own differences are told too, as far as they can be known.
    todo = _todo(recipe, name, arm, stale=bool(anew))
    changed = [] if todo is None else _changes(todo, folder)
    if changed or anew:
        return StepStatus(name=label, state="would be done anew", changed=changed, earlier=anew)
    return _as_it_lies(folder)


def _changes(todo: Todo[Any], folder: Path) -> list[str]:
    """Why the step in a folder would be done anew, or go on though it is finished: a generation of
    too few rows keeps what it has, and what was made from its rows is done anew.
    """
    changed = todo.changes(folder)
    manifest = read_manifest(folder)
    if not changed and manifest is not None:
        changed = todo.lacking(typed(manifest, todo.kind, folder))
    return changed


def _beside(recipe: Recipe, folder: Path, known: Mapping[str, StepStatus]) -> StepStatus:
    """The state of a step that the recipe does not ask for. A score is of a mixture and a merge of
    trainings, so these two are compared with what those would be now.
    """
    name, _, arm = folder.name.partition("-")
    if name not in ("score", "merge") or (arm and arm not in recipe.arms):
        return _as_it_lies(folder)
    options = []
    earlier = [label_of("mix", arm or None)]
    if name == "merge":
        options.append(options_of(folder))
        places = [Path(tuned).parent for tuned in options[0].tuned]
        earlier = [place.name for place in places if place.parent == recipe.folder]
    anew = [
        label
        for label in earlier
        if _state_of(recipe.folder / label, known) == "would be done anew"
    ]
    todo = _todo(recipe, name, arm or None, *options, stale=bool(anew))
    changed = [] if todo is None else _changes(todo, folder)
    if changed or anew:
        return StepStatus(
            name=folder.name, state="would be done anew", changed=changed, earlier=anew
        )
    return _as_it_lies(folder)


def _state_of(folder: Path, known: Mapping[str, StepStatus]) -> State:
    """The state of an earlier step; a step may also read one that the recipe does not ask for."""
    if folder.name in known:
        return known[folder.name].state
    return "not begun" if read_manifest(folder) is None else "finished"


def _todo(
    recipe: Recipe, name: str, arm: str | None, *options: object, stale: bool
) -> Todo[Any] | None:
    """What the step would do. None where it refuses the files of an earlier step that are stale."""
    try:
        return next(todos_of(name)(recipe, Context(arm=arm), *options))
    except RunError:
        if stale:
            return None
        raise


def _as_it_lies(folder: Path) -> StepStatus:
    """The state of a step by its folder alone."""
    manifest = read_manifest(folder)
    if manifest is None:
        return _unfinished(folder)
    return StepStatus(
        name=folder.name, state="finished", finished=manifest.finished, seconds=manifest.seconds
    )


def _unfinished(folder: Path) -> StepStatus:
    """The state of a step that was begun."""
    ledgers = [file for file in sorted(folder.glob("*.jsonl")) if file.name not in RESULTS]
    return StepStatus(
        name=folder.name,
        state="not finished",
        started=_written(folder / "inputs.json").isoformat(timespec="seconds"),
        rows={file.name: _lines(file) for file in ledgers},
    )


def _report(page: Path, finished: Mapping[str, Manifest], anew: list[str]) -> StepStatus:
    """The state of the page, which has no folder of its own: it shows the steps that are finished
    when it is written.
    """
    written = _written(page)
    # A manifest's time is cut to the second, so a page of the same second is not older.
    newer = [
        f"{label} has changed"
        for label, manifest in finished.items()
        if datetime.fromisoformat(manifest.finished) > written
    ]
    if newer or anew:
        return StepStatus(name="report", state="would be done anew", changed=newer, earlier=anew)
    return StepStatus(
        name="report", state="finished", finished=written.isoformat(timespec="seconds")
    )


def _written(file: Path) -> datetime:
    """When a file was written, in UTC."""
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def _lines(file: Path) -> int:
    """The whole lines of a file, which another process may be writing."""
    with file.open("rb") as stream:
        blocks = iter(lambda: stream.read(1 << 20), b"")
        return sum(block.count(b"\n") for block in blocks)


def _listed(names: list[str]) -> str:
    """``"a, b and c"``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _minute(time: str | None) -> str:
    """An ISO time in UTC as it is read by people, to the minute."""
    return f"{(time or '')[:16].replace('T', ' ')} UTC"
