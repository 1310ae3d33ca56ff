"""Which rows of a file or a folder are read, and what is said of those that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replaykit.cli.read import replays
from replaykit.data.files import Hub, raw_rows, splits_of, unread_note
from replaykit.data.record import TARGET
from replaykit.errors import DataError
from replaykit.recipe.data import Data
from replaykit.recipe.evaluate import Test as Scored
from replaykit.steps.inputs import load, same_rows


def texts(path: Path, **options: Any) -> list[str]:
    return [row["text"] for _, row in raw_rows(path, **options)]


def rows(*names: str) -> list[dict[str, str]]:
    return [{"text": name} for name in names]


@pytest.mark.parametrize("broken", ["", ', {"text": oops}'], ids=["whole", "broken"])
def test_lists_with_the_names_of_splits_are_splits(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "all.json"
    lists = {"about": ["x", "{"], "test": rows("t"), "train": rows("a", "b"), "dev": rows("v")}
    # With a row that is no JSON the object is no value, and its lists are read one by one.
    path.write_text(json.dumps(lists).replace('{"text": "b"}', f'{{"text": "b"}}{broken}'))
    bad: list[str] = []

    def told(place: str, error: DataError) -> None:
        bad.append(place)

    assert texts(path, unparsed=told) == ["a", "b"]
    assert bad == ([f"{path}[train]:3"] if broken else [])
    assert texts(path, split="test") == ["t"]
    assert texts(path, split="validation") == texts(path, split="dev") == ["v"]
    assert texts(path, split="all", unparsed=told) == ["t", "a", "b", "v"]
    assert [place for place, _ in raw_rows(path, split="dev")] == [f"{path}[dev]:1"]
    assert splits_of(path) == ["test", "train", "validation"]
    with pytest.raises(DataError, match="no list of the split 'tset'; did you mean 'test'"):
        texts(path, split="tset")


def test_a_test_and_a_target_read_their_own_lists_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    rows = {name: [{"prompt": name, "completion": "c"}] for name in ("test", "train")}
    path.write_text(json.dumps(rows))
    assert [row.prompt for row in load(Scored(path=str(path)), TARGET).records] == ["test"]
    assert [row.prompt for row in load(Data(path=str(path)), TARGET).records] == ["train"]
    test = Scored(path=str(path))
    assert not same_rows(Data(path=str(path)), test)
    assert same_rows(Data(path=str(path), split="test"), test)


@pytest.mark.parametrize("broken", ["", ', {"text": oops}'], ids=["whole", "broken"])
@pytest.mark.parametrize(
    "names", [("Examples", "Instances"), ("train", "licenses"), ("data", "test")]
)
def test_other_lists_than_splits_are_no_guess(
    tmp_path: Path, names: tuple[str, str], broken: str
) -> None:
    path = tmp_path / "task.json"
    text = json.dumps({names[0]: rows("a"), names[1]: rows("b")})
    path.write_text(text.replace('{"text": "a"}', f'{{"text": "a"}}{broken}'))
    says = f"task.json: which list. It has '{names[0]}', '{names[1]}'; .*jq '.\\[\"{names[1]}\"\\]'"
    with pytest.raises(DataError, match=says):
        texts(path, unparsed=lambda *_: None)


def test_a_file_with_splits_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(json.dumps({"train": rows("a"), "test": rows("b")}))
    with pytest.raises(DataError, match="all.json: which list. It has 'train', 'test'"):
        texts(tmp_path)
    assert splits_of(tmp_path) == []


@pytest.mark.parametrize(
    ("first", "read"),
    [
        ('{"text": oops}', ["b", "c"]),
        ('{"text": "cut o', ["b", "c"]),
        ("# a comment", ["b", "c"]),
        ('{"text": "a"}', ["a", "b", "c"]),
        ('\ufeff{"text": "a"}', ["a", "b", "c"]),
    ],
)
def test_lines_named_json_may_have_a_bad_first_one(
    tmp_path: Path, first: str, read: list[str]
) -> None:
    path = tmp_path / "lines.json"
    path.write_text(f'{first}\n\n{{"text": "b"}}\n{{"text": "c"}}\n', encoding="utf-8")
    bad: list[str] = []
    assert texts(path, unparsed=lambda place, error: bad.append(place)) == read
    assert bad == ([f"{path}:1"] if len(read) == 2 else [])


@pytest.mark.parametrize(
    "text",
    [
        '{"data": [\n{"text": "b"}\n,\n{"text": "c"}\n]}',
        '{"data":\n[{"text": "b"},\n{"text": "c"}]}',
        '[\n{"text": "b"},\n{"text": "c"}]',
        '[{"text": "b"},\n{"text": "c"}\n]\n',
        '{"about":\n{"n": 1}, "data": [{"text": "b"}, {"text": "c"}]}',
    ],
)
def test_one_value_over_several_lines_is_no_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    assert texts(tmp_path / "rows.json") == ["b", "c"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "around.json", "a.csv", "a.parquet"])
def test_a_row_of_17_mebibytes_is_left_out_of_every_kind_of_file(tmp_path: Path, name: str) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    path = tmp_path / name
    given = rows("a", "x" * (17 << 20), "b")
    if name == "a.parquet":
        write_table(pyarrow.Table.from_pylist(given), path)
    elif name == "a.csv":
        path.write_text("\n".join(["text", *(row["text"] for row in given)]))
    elif name == "a.jsonl":
        path.write_text("\n".join(map(json.dumps, given)))
    else:
        path.write_text(json.dumps(given if name == "list.json" else {"v": 1, "data": given}))
    bad: list[str] = []
    assert texts(path, unparsed=lambda _, error: bad.append(str(error))) == ["a", "b"]
    assert len(bad) == 1
    assert "longer than 16 MiB; cut it into several rows" in bad[0]


# --- folders --------------------------------------------------------------------------------------


def folder_of(root: Path, *names: str, configs: str | None = None) -> Path:
    """A folder of files, each with one row that is its name; the ``configs`` of its README.md."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}))
    if configs is not None:
        (root / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    return root


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (None, "data/train-1.arrow"),
        ("train", "data/train-1.arrow"),
        ("test", ""),
        ("all", "data/extra.tsv, data/train-1.arrow"),
    ],
)
def test_what_readme_lists_and_is_no_file_of_rows_is_said(
    tmp_path: Path, split: str | None, said: str
) -> None:
    names = ("data/train-0.jsonl", "data/train-1.arrow", "data/test.jsonl", "data/extra.tsv")
    configs = """
- config_name: default
  data_files: [{split: train, path: "data/train*"}, {split: test, path: data/test.jsonl},
               {split: extra, path: "*/extra.*"}]
"""
    root = folder_of(tmp_path / "old", *names, configs=configs)
    expected = f"{root}: not read: {said}" if said else ""
    assert unread_note(root, split) == expected
    assert texts(root) == ["data/train-0.jsonl"]


def test_what_of_a_folder_is_not_read_is_said(tmp_path: Path) -> None:
    folder_of(tmp_path / "elsewhere", "more.jsonl")
    root = folder_of(tmp_path / "old", "math.jsonl", "code.jsonl", "a.ndjson", "b.jsonl.bz2")
    assert unread_note(root, None) == f"{root}: not read: a.ndjson, b.jsonl.bz2"
    (root / "link").symlink_to(tmp_path / "elsewhere")
    folder_of(root, "dev_questions.jsonl")
    assert texts(root) == ["code.jsonl", "math.jsonl"]
    said = "a.ndjson, b.jsonl.bz2, link and 1 more"
    assert unread_note(root, None) == f"{root}: not read: {said}"
    assert load(Data(path=str(root)), TARGET).note == f"{root}: not read: {said}"
    assert unread_note(root, "all") == f"{root}: not read: a.ndjson, b.jsonl.bz2, link"
    for name in ("a.ndjson", "b.jsonl.bz2", "link"):
        (root / name).unlink()
    said = "dev_questions.jsonl (its name says validation)"
    assert load(Data(path=str(root)), TARGET).note == f"{root}: not read: {said}"
    assert load(Data(path=str(root), split="train"), TARGET).note == ""
    with pytest.raises(DataError, match=r"folder has no .jsonl.*; it has x.tsv"):
        texts(folder_of(tmp_path / "tables", "x.tsv"))


def test_configs_by_folder_are_not_mixed(tmp_path: Path) -> None:
    configs = "- {config_name: a, data_dir: one}\n- {config_name: b, data_dir: two}"
    folder_of(tmp_path, "one/train.jsonl", "one/test.jsonl", "two/x.jsonl", configs=configs)
    with pytest.raises(DataError, match="which subset.*a, b"):
        texts(tmp_path)
    assert texts(tmp_path, hub=Hub("a")) == ["one/train.jsonl"]
    assert texts(tmp_path, hub=Hub("b")) == ["two/x.jsonl"]
    assert splits_of(tmp_path, Hub("a")) == ["test", "train"]


@pytest.mark.parametrize(
    ("data_files", "train", "test"),
    [
        ("[{split: train, path: a.*}, {split: train, path: b.*}]", ["a.jsonl", "b.jsonl"], []),
        ("{train: a.jsonl, test: [b.jsonl]}", ["a.jsonl"], ["b.jsonl"]),
        ("[a.jsonl, b.jsonl]", ["a.jsonl", "b.jsonl"], []),
        ("b.jsonl", ["b.jsonl"], []),
        ("null", ["a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl"]),
    ],
)
def test_the_forms_that_data_files_may_have(
    tmp_path: Path, data_files: str, train: list[str], test: list[str]
) -> None:
    configs = f"- config_name: default\n  data_files: {data_files}"
    folder_of(tmp_path, "a.jsonl", "b.jsonl", configs=configs)
    assert texts(tmp_path) == train
    if test:
        assert texts(tmp_path, split="test") == test


@pytest.mark.parametrize(
    ("data_files", "says"),
    [
        ("/etc/*", "names the files '/etc/.'; it can name those within the folder alone"),
        ("../*.jsonl", "names the files '../.*within the folder alone"),
        ('""', "names the files ''"),
        ("7", r"README.md: `data_files` of a config is a pattern.* not 7"),
        ("[{split: train, path: 7}]", r"README.md: `data_files` of a config is a pattern.* not "),
    ],
)
def test_data_files_that_cannot_be_are_named(tmp_path: Path, data_files: str, says: str) -> None:
    configs = f"- config_name: default\n  data_files: {data_files}"
    with pytest.raises(DataError, match=says):
        texts(folder_of(tmp_path, "a.jsonl", configs=configs))


# --- the command line -----------------------------------------------------------------------------


def test_replay_may_be_a_folder_that_is_here(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "val", "a.jsonl")
    assert replays(["val=2", "old.jsonl", "select", "vla"]) == {
        "./val": 2,
        "old.jsonl": 1,
        "select": 1,
        "vla": 1,
    }
