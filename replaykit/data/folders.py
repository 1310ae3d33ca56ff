"""Which files of a folder hold the split that is asked for.

    train-00000-of-00002.parquet, data/test.jsonl, valid/part-0.csv  ->  train, test, validation

The names of splits, and where they stand in a path, are those of ``datasets``
(https://huggingface.co/docs/hub/datasets-file-names-and-splits). A README.md whose head lists
``configs``, as on the Hub, comes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "README.md")
"""Files about the rows, as ``datasets`` and the Hub have them."""
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
    part = _part(folder, subset)
    if part.patterns is not None:
        return _listed(part.folder, split, part.patterns)
    splits = _said(part.folder)
    known = sorted({name for name in splits.values() if name is not None})
    if not known or split == "all":
        return list(splits)
    default = "train" if "train" in known or split == "train" else None
    chosen = [path for path, name in splits.items() if (name or default) == split]
    if not chosen:
        raise no_split(folder, "file", split, known)
    return chosen


def splits_in(folder: Path, subset: str | None) -> list[str]:
    """The splits that ``files_of`` would find; none where no name says one, so that all is read.

    Raises DataError as ``files_of`` does.
    """
    part = _part(folder, subset)
    if part.patterns is not None:
        return list(part.patterns)
    said = set(_said(part.folder).values())
    if said == {None}:
        return []
    return sorted({name or "train" for name in said})


def passed_over(folder: Path, split: str | None, subset: str | None) -> str:
    """What of a folder is not read, in words: files of other splits, where no ``split`` is named,
    and what is no file of rows; "" where all is read. Of what README.md lists, only files of the
    split are named that are no files of rows.

    Raises DataError as ``files_of`` does.
    """
    part = _part(folder, subset)
    if part.patterns is not None:
        files = _matched(part.folder, _patterns_of(part.patterns, split or "train"))
        others = [
            str(path.relative_to(folder))
            for path in sorted(files)
            if suffix(path) == "" and path.name not in ABOUT
        ]
    else:
        others = [str(path.relative_to(folder)) for path in _others(part.folder)]
        if split is None:
            chosen = files_of(folder, "train", subset)
            for path, name in _said(part.folder).items():
                if path not in chosen:
                    others.append(f"{path.relative_to(folder)} (its name says {name})")
    if not others:
        return ""
    return f"{folder}: not read: {_some(others)}"


def _patterns_of(patterns: Mapping[str, list[str]], split: str) -> list[str]:
    """The patterns of a split; "all": of every split."""
    if split == "all":
        return [pattern for several in patterns.values() for pattern in several]
    return patterns.get(split, [])


def _some(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more:,} more" if more > 0 else "")


@dataclass(frozen=True)
class _Part:
    """Where the files of a subset are, or of a folder without any."""

    folder: Path
    patterns: Mapping[str, list[str]] | None = None
    """By split; None: the names of all files in it say their splits."""


def _part(folder: Path, subset: str | None) -> _Part:
    """The subset as README.md describes it, or the inner folder of its name; else the folder.

    Raises DataError where there is no such subset, or README.md describes it in no known way.
    """
    config = _configured(folder, subset)
    if config is not None:
        return _described(folder, config)
    if subset is None:
        return _Part(folder)
    return _Part(_inner(folder, subset, "`subset`"))


def _inner(folder: Path, name: str, called: str) -> Path:
    """A folder within the folder. Raises DataError where there is none."""
    inner = folder / name
    if not inner.is_dir() or not _within(name):
        raise DataError(f"{folder}: there is no folder '{name}' in it, which {called} names")
    return inner


def _said(folder: Path) -> dict[Path, str | None]:
    """The files in order of their names, each with the split that its path says.

    Raises DataError where there is none.
    """
    found = sorted(path for path in _visible(folder) if suffix(path) != "" and path.is_file())
    if not found:
        others = [str(path.relative_to(folder)) for path in _others(folder)]
        raise DataError(
            f"{folder}: the folder has no {', '.join(SUFFIXES)} file (.gz and .zst are read too)"
            + (f"; it has {_some(others)}" if others else "")
        )
    return {path: split_of(path.relative_to(folder)) for path in found}


def _others(folder: Path) -> list[Path]:
    """The files without a known suffix, and the links to folders, which are not followed."""
    return sorted(
        path
        for path in _visible(folder)
        if (path.is_file() and suffix(path) == "") or (path.is_symlink() and path.is_dir())
    )


def _visible(folder: Path) -> Iterator[Path]:
    """All in a folder that is not hidden, and tells nothing about the rows alone."""
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith((".", "__")) for part in parts)
        if not hidden and path.name not in ABOUT:
            yield path


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


def no_split(path: Path, kind: str, split: str, known: list[str]) -> DataError:
    """What is said of a folder without a "file" of this split, or of a file without a "list"."""
    if "[" in split:
        return DataError(f"{path}: `skip` and `n` take a part of a folder, not the split {split}")
    return DataError(
        f"{path}: no {kind} of the split '{split}'{did_you_mean(split, known)}; the names say "
        f"{', '.join(known)}; in a recipe, `split: NAME` beside the path chooses, and `split: all` "
        f"reads every {kind}; elsewhere, give the path of a file with these rows alone"
    )


def _configured(folder: Path, subset: str | None) -> Mapping[str, Any] | None:
    """What the head of README.md says of a subset's files; None where it says nothing of any.

    Raises DataError where a subset must be named, or has another name.
    """
    listed = {str(c["config_name"]): c for c in _configs(folder)}
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
            f"{folder}: which subset? README.md lists {', '.join(listed)}; in a recipe, `subset: "
            "NAME` beside the path chooses; elsewhere, give the path of its folder or its file"
        )
    return listed[subset]


def _described(folder: Path, config: Mapping[str, Any]) -> _Part:
    """Where the files of a subset are that README.md describes."""
    base = folder
    if config.get("data_dir") is not None:
        base = _inner(folder, str(config["data_dir"]), "`data_dir` in README.md")
    if config.get("data_files") is None:
        return _Part(base)
    patterns: dict[str, list[str]] = {}
    for split, several in _patterns(folder / "README.md", config["data_files"]):
        patterns.setdefault(split, []).extend(several)
    return _Part(base, patterns)


def _listed(folder: Path, split: str, patterns: Mapping[str, list[str]]) -> list[Path]:
    """The files of a split by these patterns."""
    if split != "all" and split not in patterns:
        raise no_split(folder, "file", split, sorted(patterns))
    matched = _matched(folder, _patterns_of(patterns, split))
    files = sorted(path for path in matched if suffix(path))
    if not files and split != "all":
        raise DataError(f"{folder}: README.md names {patterns[split]}, and no such file is there")
    return files


def _configs(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The ``configs`` with files in the head of README.md, which is YAML between two lines of
    dashes.
    """
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
        if not isinstance(config, Mapping) or "config_name" not in config:
            continue
        if config.get("data_files") is not None or config.get("data_dir") is not None:
            yield config


def _patterns(readme: Path, data_files: Any) -> Iterator[tuple[str, list[str]]]:
    """Each split with its patterns: patterns without a split are of "train".

    Raises DataError for what is neither patterns nor patterns by split.
    """
    if isinstance(data_files, Mapping):
        entries: list[Any] = [{"split": name, "path": path} for name, path in data_files.items()]
    elif isinstance(data_files, list):
        entries = data_files
    else:
        entries = [data_files]
    for entry in entries:
        by_split = isinstance(entry, Mapping) and {"split", "path"} <= entry.keys()
        split = str(entry["split"]) if by_split else "train"
        several = entry["path"] if by_split else entry
        if isinstance(several, str):
            several = [several]
        if not isinstance(several, list) or not all(isinstance(each, str) for each in several):
            raise DataError(
                f"{readme}: `data_files` of a config is a pattern, a list of patterns, or a list "
                f"of {{split: NAME, path: PATTERN}}, not {entry!r}"
            )
        yield split, several


def _matched(folder: Path, patterns: list[str]) -> set[Path]:
    """All files of these patterns. Raises DataError for a pattern that no folder can have."""
    found: set[Path] = set()
    for pattern in patterns:
        if not _within(pattern):
            raise _no_pattern(folder, pattern)
        try:
            found.update(path for path in folder.glob(pattern) if path.is_file())
        except ValueError as error:
            raise _no_pattern(folder, pattern) from error
    return found


def _within(name: str) -> bool:
    """Whether a name or a pattern can only be of what is within a folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _no_pattern(folder: Path, pattern: str) -> DataError:
    return DataError(
        f"{folder}: README.md names the files '{pattern}'; it can name those within the folder "
        "alone, as data/train-*.parquet does; give the path of others itself"
    )
