"""Tasks of lm-eval, as a recipe names them, and what identifies one without importing lm-eval.

    lm_eval:gsm8k               a task of lm-eval, a group of them such as mmlu
    lm_eval:tasks/mine.yaml     a task of your own

A task of lm-eval's is known by its name and the version of lm-eval; one's own by the bytes of its
YAML, of what that includes and calls, and of the local files that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import yaml

from replaykit.hashing import file_fingerprint, fingerprint

PREFIX = "lm_eval:"
# The keys of a task's YAML under which it names its data.
NAMES_DATA = ("dataset_path", "dataset_kwargs")


def is_task(path: str | Path) -> bool:
    """Whether a path names a task of lm-eval and no file."""
    return str(path).startswith(PREFIX)


def lm_eval_version() -> str:
    """The version of lm-eval that is installed, or "none"."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        return "none"


def identity(name: str) -> dict[str, Any]:
    """What identifies a task: its name, lm-eval's version, and the bytes of one's own files."""
    found: dict[str, Any] = {"path": name, "lm_eval": lm_eval_version()}
    own = Path(name.removeprefix(PREFIX))
    if own.is_file():
        files = sorted(set(_files(own, set())))
        found["content"] = fingerprint([file_fingerprint(file) for file in files])
    return found


def is_own_group(name: str) -> bool:
    """Whether a path is that of a YAML with a group of tasks."""
    own = Path(name.removeprefix(PREFIX))
    return own.is_file() and "group" in _config(own)


class _Loader(yaml.SafeLoader):
    """SafeLoader, to which `!function utils.process_results` is a name and nothing to import."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        **yaml.SafeLoader.yaml_constructors,
        "!function": lambda loader, node: _Function(loader.construct_scalar(node)),
    }


class _Function(str):
    """What stands behind a `!function`: a module beside the YAML, and a name in it."""


def _files(path: Path, seen: set[Path]) -> Iterator[Path]:
    """The YAML, what it includes, the modules that it calls and the local data that it reads."""
    if path in seen:
        return
    seen.add(path)
    yield path
    config = _config(path)
    included = config.get("include") or []
    for name in [included] if isinstance(included, str) else included:
        below = path.parent / name
        if below.is_file():
            yield from _files(below, seen)
    for value in _texts(config):
        module = path.parent / f"{value.partition('.')[0]}.py"
        if isinstance(value, _Function) and module.is_file():
            yield module
    for value in _texts([config.get(key) for key in NAMES_DATA]):
        if Path(value).exists():
            yield Path(value)


def _config(path: Path) -> dict[str, Any]:
    """What a YAML says; nothing where it cannot be read, which lm-eval says when it loads it."""
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _texts(value: Any) -> Iterator[str]:
    """The texts in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
