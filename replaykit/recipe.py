"""The recipe: what one run is, as one YAML file, and all messages about what is wrong in it.

    name: my-task
    model: llama3
    target: {path: my_task.jsonl}
    generate: {n: 2000}
    mix: {ratio: 0.05}

A section bears the name of the step that reads it; ``settings`` and ``training_settings`` have the
sections with their defaults. Paths are relative to the working directory. An unknown key, a wrong
type or a value out of range is an error, and all errors of a file are shown together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import AfterValidator, BaseModel, NonNegativeInt, ValidationError, model_validator

from replaykit.errors import RecipeError, did_you_mean
from replaykit.settings import (
    ChatOptions,
    DataOrPath,
    EngineOptions,
    EngineOrName,
    Eval,
    Generate,
    Push,
    Rewrite,
    Select,
    Strict,
)
from replaykit.training_settings import Arm, Controller, Mix, Replay, Train

RECIPE_FILE = "replaykit.yaml"
SHORT = {
    "target": "path",
    "pool": "path",
    "prompts": "path",
    "engine": "name",
}  # what a bare word in a section means
BRANCH = re.compile(
    r"constrained-|literal\[|list\["
)  # pydantic's names for the kinds that a value may be of
EXPONENT = re.compile(
    r"(\d+(?:\.\d*)?)[eE]([+-]?)(\d+)"
)  # a number only with a point and a sign, in YAML 1.1


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"'{name}' names a folder: letters, digits, '.', '_' and '-' only")
    return name


def _arm_name(name: str) -> str:
    if name == "base":
        raise ValueError("that name is the untrained model's; call the arm otherwise")
    return _folder_name(name)


FolderName = Annotated[str, AfterValidator(_folder_name)]
ArmName = Annotated[str, AfterValidator(_arm_name)]


class Recipe(Strict):
    name: FolderName | None = None
    out: str | None = None  # the run's folder; runs/<name> by default
    model: str | None = None
    revision: str | None = None
    engine: EngineOrName = EngineOptions()
    chat: ChatOptions = ChatOptions()
    seed: NonNegativeInt = 1
    target: DataOrPath | None = None
    select: Select | None = None
    generate: Generate | None = None
    rewrite: Rewrite | None = None
    mix: Mix = Mix()
    arms: dict[ArmName, Arm] = {}
    train: Train = Train()
    eval: Eval = Eval()
    push: Push = Push()

    @model_validator(mode="after")
    def _what_cannot_combine(self) -> Recipe:
        problems = [problem for arm in self.arms for problem in self._wrong_in_arm(arm)]
        if self.train.controller is not None:
            problems += self._wrong_beside_controller(self.train.controller)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _wrong_in_arm(self, arm: str) -> list[str]:
        try:
            remedies = self.training(arm).remedies
        except ValidationError as error:
            return [f"arms.{arm}.{problem}" for problem in explain(error)]
        mix = self.mixture(arm)
        needy = remedies.need_replay
        if mix.ratio > 0 or mix.schedule is not None or not needy:
            return []
        others = remedies.model_dump(exclude_defaults=True, exclude=set(needy))
        kept = yaml.safe_dump(
            others, default_flow_style=True, sort_keys=False, width=10_000
        ).strip()
        return [
            f"arms.{arm}: its ratio is 0, and {' and '.join(needy)} cannot do without replay; give "
            f"the arm `remedies: "
            f"{kept}`, which it has instead of those of train"
        ]

    def _wrong_beside_controller(self, controller: Controller) -> list[str]:
        sections: dict[str, Mix | Arm] = {
            "mix": self.mix,
            **{f"arms.{arm}": own for arm, own in self.arms.items()},
        }
        moves = "train.controller moves the share itself; leave one of them out"
        problems = [
            f"{name}.schedule: {moves}"
            for name, section in sections.items()
            if section.schedule is not None
        ]
        if self.mix.min_rows:
            problems.append(
                "mix.min_rows: train.controller draws replay as it goes and keeps no floors; leave "
                "one out"
            )
        if not self.eval.old:
            problems.append(
                "train.controller: it tests old skills; name their held-out rows in eval.old"
            )
        if controller.patience is not None and self.eval.target is None:
            problems.append(
                "train.controller.patience: it needs eval.target, held-out rows of the target; or "
                "say null"
            )
        return problems

    def mixture(self, arm: str | None) -> Mix:
        """The mix of an arm: the recipe's with the arm's keys. A ratio without a schedule is
        constant: a control of ratio 0 has no replay.
        """
        if arm is None:
            return self.mix
        own = self.arms[arm].model_dump(exclude_none=True, include={"ratio", "sources", "schedule"})
        return Mix.model_validate(
            self.mix.model_dump() | ({"schedule": None} if "ratio" in own else {}) | own
        )

    def training(self, arm: str | None) -> Train:
        """How an arm is trained: as the recipe says, with the arm's own remedies where it names
        some, ``{}`` for none.

        A controller switches only what the arm has.
        """
        own = self.arms[arm].remedies if arm is not None else None
        controller = self.train.controller
        if own is None:
            return self.train
        changes = {"remedies": own.model_dump()}
        if (
            controller is not None
            and controller.remedy is not None
            and getattr(own, controller.remedy) is None
        ):
            changes["controller"] = controller.model_dump() | {"remedy": None}
        return Train.model_validate(self.train.model_dump() | changes)

    @property
    def folder(self) -> Path:
        """Where the steps write: ``out``, or runs/<name>, the name being the model's where none is
        given.
        """
        if self.out is not None:
            return Path(self.out)
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.model or "run").name).strip(".-")
        return Path("runs") / (self.name or plain or "run")

    @property
    def replay_sources(self) -> list[Replay]:
        """The sources of replay that this recipe makes."""
        made: dict[Replay, object] = {"select": self.select, "generate": self.generate}
        return [source for source, section in made.items() if section is not None]


def load_recipe(path: str | Path | None = None, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file (none: an empty one) with changes applied, e.g. ``{"mix.ratio":
    0.1}``.

    The change ``{}`` adds a section with its defaults where the recipe has none, and leaves alone
    the one that it has. Raises RecipeError with every problem of the file and the changes together.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        raw = _read_yaml(Path(path))
    for key, value in (changes or {}).items():
        *sections, last = key.split(".")
        place = raw
        for section in sections:
            inner = place.get(section)
            if isinstance(inner, str) and section in SHORT:
                inner = {SHORT[section]: inner}
            place[section] = {} if inner is None else inner
            if not isinstance(place[section], dict):
                break  # such as `mix: 3`: the validation says so
            place = place[section]
        else:
            if value != {} or place.get(last) is None:
                place[last] = value
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(str(path or "the command line"), explain(error)) from None


def need(recipe: Recipe, step: str, *keys: str) -> None:
    """Raises RecipeError naming every one of the keys that the step needs and the recipe lacks."""
    hints = {
        "model": "model: an alias such as llama3, a Hub id or a folder (--model)",
        "target": "target: {path: my_task.jsonl} (--target)",
        "select": "select: {pool: old.jsonl} (--pool)",
        "eval": "eval: {target: ..., old: {skill: ...}}, the held-out rows",
        "push.repo": "push: {repo: me/my-replay} (the first argument)",
    }
    missing = []
    for key in keys:
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part, None)
        if value is None or value == Eval():
            missing.append(f"{step} needs {hints[key]}")
    if missing:
        raise RecipeError("the recipe", missing)


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader, but a key given twice is an error instead of the last one winning."""

    # Our own: a library under vLLM changes the shared ones.
    yaml_constructors: ClassVar[dict[Any, Any]] = dict(yaml.SafeLoader.yaml_constructors)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if (
                not isinstance(key_node, yaml.ScalarNode)
                or key_node.tag == "tag:yaml.org,2002:merge"
            ):
                what = (
                    "`<<` is not read here, write the keys out"
                    if key_node.value == "<<"
                    else "a key is one word"
                )
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise RecipeError(str(path), ["no such file; `replaykit init` writes one"]) from None
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise RecipeError(str(path), [" ".join(str(error).split())]) from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise RecipeError(
            str(path), [f"a recipe is lines of `key: value`, this is a {type(raw).__name__}"]
        )
    return raw


def explain(error: ValidationError) -> list[str]:
    """One line a problem: the dotted path of the key, what is wrong, what it may be.

    Where a value may be of several kinds, what each of them would want stands on one line.
    """
    lines: dict[str, str] = {}
    for line in _problems(error):
        path, _, text = line.partition(": ")
        lines[path] = (
            f"{lines[path]}, or {text}" if path in lines and "unknown key" not in text else text
        )
    return [f"{path}: {text}" if text else path for path, text in lines.items()]


def _problems(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        place = problem["loc"][:-1] if problem["loc"][-1:] == ("[key]",) else problem["loc"]
        value = problem["input"]
        kind = problem["type"]
        message = problem["msg"]
        bare_word = isinstance(value, bool) and (place != problem["loc"] or kind == "invalid_key")
        path = ".".join(
            str(part)
            for part in (place[:-1] if bare_word else place)
            if not BRANCH.match(str(part))
        )
        if kind == "extra_forbidden":
            lines.append(
                f"{path}: unknown "
                f"key{did_you_mean(str(problem['loc'][-1]), _known_keys(problem['loc']))}"
            )
            continue
        text = message.removeprefix("Value error, ").replace("Input should be", "must be")
        if isinstance(value, (str, int, float)) and kind != "value_error":
            text += f" (got {value!r})"
        if (
            isinstance(value, str)
            and kind.startswith("float")
            and (parts := EXPONENT.fullmatch(value))
        ):
            mantissa, sign, digits = parts.groups()
            written = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{sign or '+'}{digits}"
            text += f"; YAML reads {value} as text, write {written}"
        if bare_word:
            text = (
                "YAML reads the bare words yes, no, on and off as true and false; put the name "
                "in quotes"
            )
        lines += (
            [f"{path}: {text}"] if path else text.splitlines()
        )  # of the recipe itself: one a line
    return lines


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at this path has."""
    model: Any = Recipe
    for part in path[:-1]:
        fields = getattr(model, "model_fields", {})
        model = _model_in(fields[part].annotation if part in fields else model)
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The section inside an annotation such as ``Annotated[Data, ...] | None`` or ``dict[str,
    Arm]``.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(inner) for inner in getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)
