"""Which files of a folder hold the split that is asked for.

    train-00000-of-00002.parquet, data/test.jsonl, valid/part-0.csv  ->  train, test, validation

The names of splits, and where they stand in a path, are those of ``datasets``
(https://huggingface.co/docs/hub/datasets-file-names-and-splits). A README.md whose head lists
``configs``, as on the Hub, comes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from replaykit.errors import DataError, did_you_mean

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
PACKED = ("", ".gz", ".zst")
KEYWORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""Files that ``datasets`` writes about rows."""
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}\b")


def suffix(path: Path) -> str:
    """.jsonl for a.jsonl, a.jsonl.gz and a.jsonl.zst; "" for what is not known."""
    name = path.name.lower()
    return next((s for s in SUFFIXES for packed in PACKED if name.endswith(s + packed)), "")


def files_of(folder: Path, split: str, subset: str | None) -> list[Path]:
    """The files with the rows of a split, in order of their names; hidden ones never.

    Where no name says a split, all files are read. Files whose names say none belong to "train".
    "all" means every file. Raises DataError where the folder has no such split or subset.
    """
    configured = _configured(folder, split, subset)
    if configured is not None:
        return configured
    if subset is not None:
        inner = folder / subset
        if not inner.is_dir():
            raise DataError(f"{folder}: there is no folder '{subset}' in it, which `subset` names")
        return files_of(inner, split, None)
    found = sorted(path for path in folder.rglob("*") if _is_data(folder, path))
    if not found:
        raise DataError(
            f"{folder}: the folder has no {', '.join(SUFFIXES)} file (.gz and .zst are read too)"
        )
    splits = {path: split_of(path.relative_to(folder)) for path in found}
    known = sorted({name for name in splits.values() if name is not None})
    if not known or split == "all":
        return found
    default = "train" if "train" in known or split == "train" else None
    chosen = [path for path in found if (splits[path] or default) == split]
    if not chosen:
        raise _no_split(folder, split, known)
    return chosen


def _is_data(folder: Path, path: Path) -> bool:
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith((".", "__")) for part in parts)
    return not hidden and path.name not in ABOUT and suffix(path) != "" and path.is_file()


def split_of(path: Path) -> str | None:
    """The split that a path says; None where it says none.

    ``train_sft-00000-of-00003.parquet`` is of the split train_sft, ``my-train.jsonl`` of train.
    """
    stem = path.name.split(".")[0]
    shard = SHARD.match(path.name)
    if shard is not None and re.fullmatch(r"\w+", shard.group(1)) and _keyword(shard.group(1)):
        name = shard.group(1)
        return KEYWORDS.get(name.lower(), name)
    for part in (stem, *reversed(path.parts[:-1])):
        found = _keyword(part)
        if found is not None:
            return found
    return None


def _keyword(name: str) -> str | None:
    words = re.split(r"[^a-z]+", name.lower())
    return next((KEYWORDS[word] for word in words if word in KEYWORDS), None)


def _no_split(folder: Path, split: str, known: list[str]) -> DataError:
    if "[" in split:
        return DataError(f"{folder}: `skip` and `n` take a part of a folder, not the split {split}")
    return DataError(
        f"{folder}: no file of the split '{split}'{did_you_mean(split, known)}; the names say "
        f"{', '.join(known)}; `split: NAME` beside the path chooses, `split: all` reads every file"
    )


def _configured(folder: Path, split: str, subset: str | None) -> list[Path] | None:
    """The files that the head of README.md lists for a subset; None where it lists none."""
    listed = {str(c["config_name"]): c for c in _configs(folder) if "data_files" in c}
    if not listed or (subset is not None and subset not in listed and (folder / subset).is_dir()):
        return None
    if subset is None:
        subset = next((n for n, c in listed.items() if c.get("default")), None)
    if subset is None and len(listed) == 1:
        subset = next(iter(listed))
    if subset is None and "default" in listed:
        subset = "default"
    if subset not in listed:
        raise DataError(
            f"{folder}: which subset? README.md lists {', '.join(listed)}; `subset: NAME` beside "
            "the path chooses"
        )
    patterns = dict(_patterns(listed[subset]["data_files"]))
    if split == "all":
        return sorted({path for several in patterns.values() for path in _found(folder, several)})
    if split not in patterns:
        raise _no_split(folder, split, sorted(patterns))
    files = _found(folder, patterns[split])
    if not files:
        raise DataError(f"{folder}: README.md names {patterns[split]}, and no such file is there")
    return files


def _configs(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The ``configs`` in the head of README.md, which is YAML between two lines of dashes."""
    readme = folder / "README.md"
    if not readme.is_file():
        return
    head = re.match(r"---\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.S)
    if head is None:
        return
    import yaml

    try:
        facts = yaml.safe_load(head.group(1))
    except yaml.YAMLError as error:
        raise DataError(f"{readme}: its head is not YAML ({error})") from error
    configs = facts.get("configs") if isinstance(facts, Mapping) else None
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, Mapping) and "config_name" in config:
            yield config


def _patterns(data_files: Any) -> Iterator[tuple[str, list[str]]]:
    """Each split with its patterns: a bare pattern, or a list of patterns, is of "train"."""
    if isinstance(data_files, str):
        data_files = [data_files]
    plain = [entry for entry in data_files if isinstance(entry, str)]
    if plain:
        yield "train", plain
    for entry in data_files:
        if isinstance(entry, Mapping) and {"split", "path"} <= entry.keys():
            path = entry["path"]
            yield str(entry["split"]), [path] if isinstance(path, str) else list(path)


def _found(folder: Path, patterns: list[str]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if suffix(path))
