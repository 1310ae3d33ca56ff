"""Generation as a function, for notebooks and scripts. It is also a name of the package:
``replaykit.generate(...)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from replaykit.pipeline import replay
from replaykit.recipe import load_recipe
from replaykit.records import Record, dialogue, read_prompts
from replaykit.runs import Watch, open_step, unwatched


def generate(
    model: str,
    n: int | None = None,
    *,
    prompts: str | Sequence[str | Record] | None = None,
    folder: str | Path | None = None,
    engine: str | dict[str, Any] = "auto",
    seed: int = 1,
    watch: Watch = unwatched,
    **settings: Any,
) -> Iterator[Record]:
    """The model's own questions and answers, each as soon as it is there, in the order of their row
    addresses.

    ``n`` is how many: 2000 by default, or an answer to each of the prompts, which are a file's if
    they are given as one string, as with ``--prompts``. ``settings`` are the keys of the recipe's
    section ``generate`` (``turns=2``, ``systems={"math": 1.0}``, ``checks={"refusals": True}``),
    and ``engine`` is its section of that name. With a ``folder`` the finished rows stay there, and
    the same call goes on from them; without one they are gone when the last is taken. The model is
    loaded when the first row is asked for. Raises RecipeError for a setting that does not exist.

    >>> for record in replaykit.generate("nano", 3): print(record.prompt, "->", record.answer)
    """
    changes = {
        "model": model,
        "engine": engine,
        "seed": seed,
        "generate": {**settings} | ({} if n is None else {"n": n}),
    }
    recipe = load_recipe(None, changes)
    assert recipe.generate is not None
    if isinstance(prompts, str):
        prompts = list(read_prompts(prompts))
    asked = None if prompts is None else [_prompt(prompt) for prompt in prompts]
    inputs = replay.generate_inputs(recipe, recipe.generate)
    if asked is not None:
        inputs["prompts"] = [record.id for record in asked]
    with (
        TemporaryDirectory() as temporary,
        open_step("generate", Path(folder or temporary) / "rows", inputs) as step,
    ):
        yield from replay.generated(
            recipe, recipe.generate, step.folder, prompts=asked, watch=watch
        )


def _prompt(prompt: str | Record) -> Record:
    return prompt if isinstance(prompt, Record) else Record(dialogue(prompt), "generate")
