"""Results are typed, strict and frozen, and what a manifest holds of one is all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from replaykit.recipe.base import Strict
from replaykit.recipe.chat import ChatOptions
from replaykit.recipe.generate import Checks, Generate, Phase
from replaykit.recipe.mix import Schedule
from replaykit.result import Result
from replaykit.steps.score.result import Perplexity

PACKAGE = Path(__file__).parent.parent / "replaykit"
# Sections of a recipe that results hold: they are strict, so JSON must not change a type in them.
SECTIONS: dict[type[Strict], list[Strict]] = {
    ChatOptions: [ChatOptions(), ChatOptions(thinking=True, date="1987-06-05", stop=["<end>"])],
    Generate: [
        Generate(),
        Generate(n=3, temperature="model", answer_temperature=1, systems={"be kind": 2}),
        Generate(schedule=[Phase(temperature=1, top_p=0.9), Phase(temperature=0.5, weight=3)]),
        Generate(checks=Checks(perplexity=[1, 30.5], languages=["en"], near_duplicate=None)),
        Generate.model_validate({"prompts": "questions.txt"}),
    ],
    Schedule: [
        Schedule(to=0.3),
        Schedule(shape="warm-down", hold=0.25),
        Schedule(shape="steps", at={0: 0.3, 0.5: 0.1, 0.00001: 0.2}),
    ],
}


def result_classes() -> list[type[Result]]:
    """Every class of results in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if re.search(r"\((Result|Noted)\)", path.read_text(encoding="utf-8")):
            import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    found: list[type[Result]] = []
    waiting: list[type[Result]] = [Result]
    while waiting:
        classes = waiting.pop().__subclasses__()
        found += classes
        waiting += classes
    return sorted({kind for kind in found if kind.__module__.startswith("replaykit.")}, key=str)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values that a field with this annotation may have."""
    kind = get_origin(annotation)
    inner = get_args(annotation)
    if kind is Annotated:
        return values(inner[0])
    if kind is Literal:
        return st.sampled_from(inner)
    if kind in (Union, UnionType):
        return st.one_of(*map(values, inner))
    if kind is list:
        return st.lists(values(inner[0]), max_size=2)
    if kind is dict:
        return st.dictionaries(values(inner[0]), values(inner[1]), max_size=2)
    if annotation is Any:
        return st.one_of(st.none(), st.text(), st.integers())
    if annotation is float:
        return st.floats(allow_nan=False)
    if annotation in SECTIONS:
        return st.sampled_from(SECTIONS[annotation])
    if isinstance(annotation, type) and issubclass(annotation, Result):
        return st.deferred(lambda: instances(annotation))
    if is_dataclass(annotation):
        fields = get_type_hints(annotation)
        return st.builds(annotation, **{name: values(fields[name]) for name in fields})
    return st.from_type(annotation)


def instances(kind: type[Result]) -> st.SearchStrategy[Result]:
    """Results of this class."""
    kind.model_rebuild()  # a class may name one that stands below it
    fields = {name: values(field.annotation) for name, field in kind.model_fields.items()}
    make: Callable[..., Result] = kind
    return st.builds(make, **fields)


def test_every_step_has_a_class_for_its_result() -> None:
    names = {kind.__name__ for kind in result_classes()}
    assert names >= {
        "EvalResult", "GenerateResult", "MergeResult", "MixResult", "ProbeResult", "PushResult", "ReportResult",
        "RewriteResult", "ScoreResult", "SelectResult", "TrainResult",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", result_classes(), ids=lambda kind: kind.__name__)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_what_a_manifest_holds_of_a_result_is_all_of_it(
    kind: type[Result], data: st.DataObject
) -> None:
    result = data.draw(instances(kind))
    text = json.dumps(result.to_json())
    again = kind.model_validate(json.loads(text))
    assert again == result
    assert json.dumps(again.to_json()) == text


def test_a_result_is_frozen_and_has_no_key_that_its_class_has_not() -> None:
    found = Perplexity(
        rows=1, tokens=2, perplexity=3.0, mean=1.1, quantiles={"0.5": 2.0}, above=0.0
    )
    with pytest.raises(ValidationError, match="frozen"):
        found.rows = 2
    with pytest.raises(ValidationError, match="extra"):
        Perplexity.model_validate(found.to_json() | {"row": 1})
