"""The recipe: what one run is.

    name: my-task
    model: llama3
    target: {path: my_task.jsonl}
    generate: {n: 2000}
    mix: {ratio: 0.05}

A section has the name of the step that reads it, and a file of its own beside this one. Paths are
relative to the working directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, NonNegativeInt, ValidationError, model_validator

from replaykit.errors import RecipeError
from replaykit.recipe.arms import Arm
from replaykit.recipe.augment import Augment
from replaykit.recipe.base import FolderName, Strict, TunedName
from replaykit.recipe.chat import ChatOptions
from replaykit.recipe.classification import NO_TEXT, WRITING, Classification, Task, wrong_for_task
from replaykit.recipe.controller import NO_TASKS, ControllerSettings
from replaykit.recipe.data import TargetOrPath
from replaykit.recipe.describe import Describe
from replaykit.recipe.engine import EngineOptions, EngineOrName
from replaykit.recipe.evaluate import Eval
from replaykit.recipe.generate import Generate
from replaykit.recipe.lm_eval import is_task
from replaykit.recipe.messages import explain
from replaykit.recipe.mix import Mix, Replay
from replaykit.recipe.push import Push
from replaykit.recipe.repair import Repair
from replaykit.recipe.rewrite import Rewrite
from replaykit.recipe.select import Select
from replaykit.recipe.sweep import Sweep
from replaykit.recipe.tasks import Buffer, NewTask, wrong_for_tasks
from replaykit.recipe.train import Train

if TYPE_CHECKING:
    # A type checker knows the keywords of a class by this metaclass alone.
    from pydantic._internal._model_construction import ModelMetaclass as _Called
else:

    class _Called(type(BaseModel)):
        """Of a class that users make themselves: what is wrong in the call is a RecipeError."""

        def __call__(cls, *args: Any, **settings: Any) -> Any:
            try:
                return super().__call__(*args, **settings)
            except ValidationError as error:
                raise RecipeError(f"{cls.__name__}()", explain(error, cls)) from None


class Recipe(Strict, metaclass=_Called):
    """One run: its model and data, and a section for each step. A step without one is left out."""

    name: FolderName | None = None
    """The run's name; null: the model's."""
    out: str | None = None
    """The run's folder; null: runs/<name>."""
    model: str | None = None
    """An alias such as llama3, a Hub id (owner/name), a folder, or a GGUF file."""
    revision: str | None = None
    """The branch, tag or commit of a model on the Hub; null: its main branch."""
    engine: EngineOrName = EngineOptions()
    """What runs the model."""
    chat: ChatOptions = ChatOptions()
    """How the chat template is used."""
    task: Task = "language"
    """What the model does: it writes texts, or it gives each text a label."""
    classification: Classification = Classification()
    """The labels, for task: classification."""
    seed: NonNegativeInt = 1
    """The seed of every draw: the same recipe and seed give the same rows."""
    target: TargetOrPath | None = None
    """The rows of the new task."""
    tasks: list[NewTask] = []
    """Instead of target: several tasks, learned one after the other; empty: one."""
    buffer: Buffer = Buffer()
    """Which rows of earlier tasks are kept for replay, where there are tasks."""
    select: Select | None = None
    """Replay from old data that exists; null: none."""
    generate: Generate | None = None
    """Replay that the model writes itself; null: none."""
    rewrite: Rewrite | None = None
    """The target in the model's own words; null: as it is."""
    augment: Augment | None = None
    """Further target rows, made of those that there are; null: none."""
    describe: Describe | None = None
    """Targets for a model that hears or sees, for `replaykit describe`; null: none."""
    mix: Mix = Mix()
    """How much of the training is replay, and from which sources."""
    arms: dict[TunedName, Arm] = {}
    """Several trainings to compare, by name; empty: one."""
    train: Train = Train()
    """Supervised fine-tuning."""
    eval: Eval = Eval()
    """Held-out rows: of the new task, and of the old skills that must not drop."""
    sweep: Sweep = Sweep()
    """How much replay is enough: what `replaykit sweep` and `replaykit advise` train."""
    repair: Repair = Repair()
    """How `replaykit repair` brings a model back that is tuned already."""
    push: Push = Push()
    """Where the replay data is published."""

    @model_validator(mode="before")
    @classmethod
    def _held_out_is_tested(cls, value: Any) -> Any:
        """Where a part of the target is held out and eval.target names no rows, it is that part."""
        if not isinstance(value, Mapping):
            return value
        target = value.get("target")
        tested = value.get("eval") or {}
        if not isinstance(target, Mapping) or not isinstance(tested, Mapping):
            return value
        own = tested.get("target") or {}
        if target.get("hold_out") is None or not isinstance(own, Mapping) or "path" in own:
            return value
        return {**value, "eval": {**tested, "target": {**target, **own}}}

    @model_validator(mode="after")
    def _what_cannot_combine(self) -> Recipe:
        problems = [problem for arm in self.arms for problem in self._wrong_in_arm(arm)]
        problems += wrong_for_task(self)
        problems += wrong_for_tasks(self)
        if self.eval.memory is not None and (self.tasks or self.task == "classification"):
            whose = "a text classifier writes nothing"
            if self.tasks:
                whose = "with tasks, each stage has another base"
            problems.append(f"eval.memory: {whose}; leave it out")
        if not self.tasks:
            problems += [f"train.{name}: {why}" for name, why in self.train.without_effect.items()]
        if self.train.controller is not None:
            problems += self._wrong_beside_controller(self.train.controller)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _wrong_in_arm(self, arm: str) -> list[str]:
        """What cannot be in an arm: remedies that the training refuses or that miss replay."""
        try:
            remedies = self.training(arm).remedies
        except ValidationError as error:
            return [f"arms.{arm}.{problem}" for problem in explain(error, Train)]
        mix = self.mixture(arm)
        has_replay = mix.ratio > 0 or mix.schedule is not None
        needy = remedies.need_replay
        if has_replay or not needy:
            return []
        others = remedies.model_dump(exclude_defaults=True, exclude=set(needy))
        # On one line, however long, so that it can be copied into the recipe.
        kept = yaml.safe_dump(others, default_flow_style=True, sort_keys=False, width=10_000)
        return [
            f"arms.{arm}: its ratio is 0, and {' and '.join(needy)} cannot do without replay; give "
            f"the arm `remedies: {kept.strip()}`, which it has instead of those of train"
        ]

    def _wrong_beside_controller(self, controller: ControllerSettings) -> list[str]:
        schedules = {"mix": self.mix.schedule}
        schedules |= {f"arms.{name}": arm.schedule for name, arm in self.arms.items()}
        problems = [
            f"{section}.schedule: train.controller moves the share itself; leave one of them out"
            for section, schedule in schedules.items()
            if schedule is not None
        ]
        if self.mix.min_rows:
            problems.append(
                "mix.min_rows: train.controller draws replay as it goes and keeps no floors; leave "
                "one out"
            )
        held_out = self.eval
        tested = {f"eval.old.{skill}": test for skill, test in held_out.old.items()}
        if held_out.target is not None:
            tested["eval.target"] = held_out.target
        problems += [
            f"{section}: {NO_TASKS}" for section, test in tested.items() if is_task(test.path)
        ]
        problems += [
            f"{section}: a judge scores it, and train.controller asks none while it trains; score "
            f"it in another way"
            for section, test in tested.items()
            if test.score == "judge"
        ]
        problems += controller.missing(old=bool(held_out.old), target=held_out.target is not None)
        return problems

    def mixture(self, arm: str | None) -> Mix:
        """The mix of an arm: the recipe's, with the arm's keys in their place.

        An arm that gives a ratio without a schedule has a constant one, so a control of ratio 0
        has no replay.
        """
        if arm is None:
            return self.mix
        own = self.arms[arm].model_dump(exclude_none=True, include={"ratio", "sources", "schedule"})
        if "ratio" in own:
            own = {"schedule": None} | own
        return Mix.model_validate(self.mix.model_dump() | own)

    def training(self, arm: str | None) -> Train:
        """How an arm is trained: as the recipe says, with the arm's own remedies if it names some.

        ``{}`` stands for none. A controller switches only what the arm has.
        """
        own = None
        if arm is not None:
            own = self.arms[arm].remedies
        if own is None:
            return self.train
        settings = self.train.model_dump() | {"remedies": own.model_dump()}
        controller = self.train.controller
        if controller is not None and controller.remedy is not None:
            in_arm = getattr(own, controller.remedy) is not None
            if not in_arm:
                settings["controller"] = controller.model_dump() | {"remedy": None}
        return Train.model_validate(settings)

    def to_yaml(self) -> str:
        """The recipe as the user would write it: without what is a default."""
        # A null that is no default stays: it switches something off, as in `near_duplicate: null`.
        settings = self.model_dump(exclude_defaults=True)
        for task, written in zip(self.tasks, settings.get("tasks", []), strict=True):
            # What a task says is its own, even where it is a default: the recipe may say otherwise.
            written |= task.model_dump(include={"mix", "train"}, exclude_unset=True)
        return str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    @property
    def folder(self) -> Path:
        """Where the steps write: ``out``, or runs/<name>; without a name, the model's is taken."""
        if self.out is not None:
            return Path(self.out)
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.model or "run").name).strip(".-")
        return Path("runs") / (self.name or plain or "run")

    @property
    def replay_sources(self) -> list[Replay]:
        """The sources of replay that this recipe makes."""
        made: dict[Replay, object] = {"select": self.select, "generate": self.generate}
        return [source for source, section in made.items() if section is not None]


# The steps that a recipe with tasks has: of the others it has one for each stage.
OF_SEQUENCES = ("run", "status", "probe")


def need(recipe: Recipe, step: str, *keys: str) -> None:
    """Raises RecipeError with every key that the step needs and the recipe lacks."""
    # The recipe of a stage has a target, that of its task.
    if recipe.tasks and recipe.target is None and step not in OF_SEQUENCES:
        problem = (
            f"{step}: the recipe has several tasks; `replaykit run` does their stages in order, "
            "and `mix` and `train` with --arm TASK a part of one"
        )
        raise RecipeError("the recipe", [problem])
    hints = {
        "model": "model: an alias such as llama3, a Hub id or a folder (--model)",
        "target": "target: {path: my_task.jsonl} (--target)",
        "select": "select: {pool: old.jsonl} (--pool)",
        "describe": (
            'describe: {rows: clips.jsonl, template: "a {gender} voice"} (--rows, --template)'
        ),
        "eval": "eval: {target: ..., old: {skill: ...}}, the held-out rows",
        "eval.memory": "eval: {memory: 100}, how many rows (-n)",
        "push.repo": "push: {repo: me/my-replay} (the first argument)",
    }
    missing = []
    if recipe.task == "classification" and step in WRITING:
        missing.append(
            f"{step}: {recipe.model} is a text classifier, and {NO_TEXT}; replay comes from "
            "`replaykit select`, or from files: `replaykit mix --replay FILE`"
        )
    for key in keys:
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part, None)
        # An eval section that names no rows is as good as none.
        if value is None or value == Eval():
            missing.append(f"{step} needs {hints[key]}")
    if missing:
        raise RecipeError("the recipe", missing)
