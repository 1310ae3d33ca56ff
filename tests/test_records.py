"""Every common format gives the same conversation, and a file of none says where and why."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.data.dataset import to_dataset
from replaykit.data.files import MAX_LINE
from replaykit.data.formats import Columns, read_records
from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.record import Message, Record, dialogue
from replaykit.errors import DataError
from replaykit.hashing import file_fingerprint

Row = Mapping[str, Any]
Q, A = "Wie groß ist\n“2 + 2”, genau?", 'It is "4",\u2028 ✓'
SYSTEM = {"role": "system", "content": "Be brief."}
FORMATS: dict[str, tuple[Row, tuple[Message, ...]]] = {
    "messages": ({"messages": [SYSTEM, *dialogue(Q, A)]}, dialogue(Q, A, system="Be brief.")),
    "messages in parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": half} for half in (Q[:9], Q[9:])],
                }
            ]
        },
        dialogue(Q),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
        dialogue(Q, A),
    ),
    "sharegpt with a system turn": (
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": Q},
            ]
        },
        (SYSTEM, *dialogue(Q)),
    ),
    "alpaca": ({"instruction": Q, "input": "", "output": A}, dialogue(Q, A)),
    "alpaca with an input": (
        {"instruction": Q, "input": "in", "output": A},
        dialogue(f"{Q}\n\nin", A),
    ),
    "alpaca with everything": (
        {
            "instruction": Q,
            "input": "in",
            "output": A,
            "history": [["q1", "a1"], ["q2", "a2"]],
            "system": "Be brief.",
        },
        (SYSTEM, *dialogue("q1", "a1"), *dialogue("q2", "a2"), *dialogue(f"{Q}\n\nin", A)),
    ),
    "prompt and completion": ({"prompt": Q, "completion": A}, dialogue(Q, A)),
    "prompt and completion as turns": (
        {"prompt": [SYSTEM, *dialogue(Q)], "completion": list(dialogue("", A)[1:])},
        dialogue(Q, A, system="Be brief."),
    ),
    "prompt as turns, response as text": (
        {"prompt": list(dialogue(Q)), "response": A},
        dialogue(Q, A),
    ),
    "question and answer": ({"question": Q, "answer": A}, dialogue(Q, A)),
    "query and response": ({"query": Q, "response": A}, dialogue(Q, A)),
    "prompt and answer": ({"prompt": Q, "answer": A}, dialogue(Q, A)),
    "text": ({"text": Q}, ({"role": "text", "content": Q},)),
}
FILES = [
    (name, kind)
    for name, (row, _) in FORMATS.items()
    for kind in (".jsonl", ".json", ".csv", ".parquet")
    if kind != ".csv" or all(isinstance(value, str) for value in row.values())  # a CSV cell is text
]


def content(kind: str, rows: Sequence[Row]) -> bytes:
    """The rows as the bytes of a .jsonl, .json, .csv or .parquet file."""
    match kind:
        case ".jsonl":
            return "".join(json.dumps(row) + "\n" for row in rows).encode()
        case ".json":
            return json.dumps(rows, ensure_ascii=False, indent=1).encode()
        case ".csv":
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
            return text.getvalue().encode()
        case _:
            sink = pyarrow.BufferOutputStream()
            pyarrow.parquet.write_table(
                pyarrow.Table.from_pylist([dict(row) for row in rows]), sink
            )
            return sink.getvalue().to_pybytes()


def packed(data: bytes, how: str) -> bytes:
    match how:
        case ".gz":
            return gzip.compress(data)
        case ".zst":
            sink = pyarrow.BufferOutputStream()
            with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
                stream.write(data)
            return sink.getvalue().to_pybytes()
    return data


def read(path: Path, **options: Any) -> list[Record]:
    return list(read_records(path, "target", **options))


def problem(folder: Path, data: bytes | str, name: str = "data.jsonl", **options: Any) -> str:
    """What is said, after the folder's name, about a file with these bytes."""
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(DataError) as raised:
        read(path, **options)
    assert str(raised.value).startswith(str(path))
    return str(raised.value).removeprefix(f"{folder}/")


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_every_format_is_read_the_same_from_every_kind_of_file(
    name: str, kind: str, tmp_path: Path
) -> None:
    row, expected = FORMATS[name]
    (tmp_path / f"data{kind}").write_bytes(content(kind, [row, row]))
    records = read(tmp_path / f"data{kind}")
    assert [record.messages for record in records] == [expected, expected]
    assert {record.source for record in records} == {"target"}


@pytest.mark.parametrize("how", [".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_text_is_read_the_same_when_it_is_packed(kind: str, how: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"{Q} {k}", "completion": A} for k in range(3000)]
    (tmp_path / f"DATA{kind}{how}".upper()).write_bytes(packed(content(kind, rows), how))
    assert [r.messages for r in read(tmp_path / f"DATA{kind}{how}".upper())] == [
        dialogue(row["prompt"], A) for row in rows
    ]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_named_columns_come_before_those_that_are_recognised(kind: str, tmp_path: Path) -> None:
    row = {"text": "t", "prompt": "p", "completion": "c", "Frage": Q, "Antwort": A}
    (tmp_path / f"data{kind}").write_bytes(content(kind, [row]))
    [record] = read(tmp_path / f"data{kind}", columns=Columns("Frage", "Antwort"))
    assert record.messages == dialogue(Q, A)
    assert record.meta == {
        "text": "t",
        "prompt": "p",
        "completion": "c",
        "line": record.meta["line"],
    }


def test_other_columns_and_the_line_number_go_to_meta(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "task": "t0", "line": "an own column of that name"}
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n" + content(".jsonl", [row]))
    assert [record.meta for record in read(path)] == [{"task": "t0", "line": 2}]


@settings(max_examples=50, deadline=None)
@given(prompt=st.text(), answer=st.text())
def test_any_text_is_read_the_same_from_every_kind_of_file(
    prompt: str, answer: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for kind in (".jsonl", ".json", ".csv", ".parquet"):
        (folder / f"any{kind}").write_bytes(
            content(kind, [{"prompt": prompt, "completion": answer}])
        )
        [record] = read(folder / f"any{kind}")
        assert record.messages == dialogue(prompt, answer), kind


def test_an_object_around_the_list_is_read_through(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"version": 2, "data": [{"text": "a"}, {"text": "b"}]}))
    assert [(r.messages[0]["content"], r.meta["line"]) for r in read(path)] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_no_part_of_the_text(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{kind}"
    path.write_bytes(b"\xef\xbb\xbf" + content(kind, [{"prompt": "p", "completion": "c"}]))
    assert [record.messages for record in read(path)] == [dialogue("p", "c")]


def test_a_long_csv_cell_is_read(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_bytes(content(".csv", [{"text": "word " * 40_000}]))
    assert len(read(tmp_path / "long.csv")[0].messages[0]["content"]) == 200_000


def test_a_folder_is_read_in_order_of_name_and_each_file_once(tmp_path: Path) -> None:
    files = {
        "b.json": ".json",
        "a.jsonl.gz": ".jsonl",
        "c/d.parquet": ".parquet",
        "e.parquet/part-0.parquet": ".parquet",
    }
    for name, kind in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(
            packed(content(kind, [{"text": name}]), ".gz" if name.endswith("gz") else "")
        )
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "a.jsonl.tmp").write_text("half a li")
    assert [record.messages[0]["content"] for record in read(tmp_path)] == sorted(files)


def test_skip_passes_rows_over_and_limit_reads_no_further(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n{"text": "b"}\nnot JSON\n')
    for options, texts in [
        ({"limit": 2}, "ab"),
        ({"skip": 1, "limit": 1}, "b"),
        ({"limit": 0}, ""),
    ]:
        assert [
            record.messages[0]["content"] for record in read(tmp_path / "data.jsonl", **options)
        ] == list(texts)


# --- what cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt" "a"}', "not JSON (Expecting ':' delimiter at column 11)"),
        ('["a", "b"]', "a row is a JSON object, this is a list"),
        ('{"promt": "a", "completion": "b"}', "no messages, conversations, instruction/output"),
        ('{"messages": []}', "a conversation without turns"),
        ('{"messages": ["hello"]}', "turn 1 is a str, not an object with role and content"),
        (
            '{"messages": [{"role": "narrator", "content": "x"}]}',
            "turn 1 has role 'narrator' and content of str",
        ),
        (
            '{"messages": [{"role": "user", "content": null}]}',
            "turn 1 has role 'user' and content of NoneType",
        ),
        ('{"prompt": "a", "completion": 4}', "'completion' is int, not text"),
        (
            '{"prompt": [{"role": "user", "content": "x"}], "completion": null}',
            "'completion' is NoneType, not text",
        ),
        (
            '{"instruction": "a", "output": "b", "history": ["c"]}',
            "history is a list of [question, answer] pairs",
        ),
        ('{"text": "cut \\ud83d in two"}', '"\\ud83d" is half of a surrogate pair'),
    ],
)
def test_a_malformed_line_is_named_with_file_line_and_problem(
    line: str, said: str, tmp_path: Path
) -> None:
    assert problem(tmp_path, f'{{"text": "good"}}\n\n{line}\n').startswith(f"data.jsonl:3: {said}")
    if "not JSON" not in said and "this is a list" not in said:
        assert problem(tmp_path, f'[{{"text": "good"}}, {line}]', "data.json").startswith(
            f"data.json:2: {said}"
        )


def test_an_unrecognised_row_shows_its_columns_and_how_to_name_them(tmp_path: Path) -> None:
    said = problem(tmp_path, '{"b": "x", "a": "y"}')
    assert (
        "the columns ['a', 'b']; `prompt: NAME` and `answer: NAME` beside the path say which to use"
        in said
    )


def test_a_named_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = problem(tmp_path, '{"a": "x"}', columns=Columns("a", "b"))
    assert said == "data.jsonl:1: no column 'b' among ['a']"
    assert "no column 'b'" in problem(
        tmp_path, '{"a": [{"role": "user", "content": "x"}]}', columns=Columns("a", "b")
    )
    with pytest.raises(DataError, match="given together"):
        read(tmp_path / "data.jsonl", columns=Columns(prompt="a"))


def test_text_that_is_not_utf_8_names_its_line(tmp_path: Path) -> None:
    good = '{"text": "good"}\n' * 40
    assert problem(tmp_path, good.encode() + b'{"text": "Z\xfcrich"}\n') == (
        "data.jsonl:41: not UTF-8 text (invalid start byte); if all of the file is in another encoding, "
        "`iconv -f LATIN1 -t UTF-8` converts it, with the encoding's name for LATIN1"
    )
    assert problem(tmp_path, b"text\n\xff\n", "a.csv").startswith(
        "a.csv:2: not UTF-8 text (invalid start byte); "
    )
    # Of a list in .json a row is named, as everywhere, by its number.
    assert problem(tmp_path, b'[{"text":\n"\xff"}]', "a.json").startswith(
        "a.json:1: not UTF-8 text (byte 0xff); "
    )


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            "text\n".encode("utf-16"),
            "UTF-16 text; save it as UTF-8, as `iconv -f UTF-16 -t UTF-8` does",
        ),
        (b"\xfe\xff" + "text\n".encode("utf-16-be"), "UTF-16 text; save it as UTF-8"),
        (gzip.compress(b"text", mtime=0), "packed by gzip; its name should end in .gz"),
        (packed(b"text", ".zst"), "packed by zstd; its name should end in .zst"),
        (content(".parquet", [{"text": "a"}]), "a parquet file; its name should end in .parquet"),
        (b"PK\x03\x04 and more", "a zip archive; unpack it"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused_at_once(
    data: bytes, said: str, kind: str, tmp_path: Path
) -> None:
    assert problem(tmp_path, data, f"a{kind}", unparsed=Mock()).startswith(
        f"a{kind}: this is {said}"
    )


def test_a_line_of_100_megabytes_is_passed_over_in_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / "data.jsonl").open("wb") as stream:
        stream.write(b'{"text": "first"}\n{"text": "')
        for _ in range(100):
            stream.write(b"long " * 200_000)
        stream.write(b'"}\n{"text": "last"}\n')
    unparsed: list[tuple[str, str]] = []
    tracemalloc.start()
    records = read(
        tmp_path / "data.jsonl", unparsed=lambda place, error: unparsed.append((place, str(error)))
    )
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(record.messages[0]["content"], record.meta["line"]) for record in records] == [
        ("first", 1),
        ("last", 3),
    ]
    place = f"{tmp_path / 'data.jsonl'}:2"
    assert unparsed == [(place, f"{place}: longer than 16 MiB; cut it into several rows")]
    assert most < 5 * MAX_LINE
    with pytest.raises(DataError, match=r":2: longer than 16 MiB"):
        read(tmp_path / "data.jsonl")


def test_a_line_just_as_long_as_a_row_may_be_is_read(tmp_path: Path) -> None:
    text = "x" * (MAX_LINE - len('{"text": ""}'))
    (tmp_path / "data.jsonl").write_text(f'{{"text": "{text}"}}')  # the last line needs no end
    assert [record.messages[0]["content"] == text for record in read(tmp_path / "data.jsonl")] == [
        True
    ]


@pytest.mark.parametrize(
    ("data", "name", "lines"),
    [
        (
            '{"text": "a"}\n{"text": 1}\n{"txt": "c"}\nnot JSON\n{"text": "d"}\n',
            "a.jsonl",
            [2, 3, 4],
        ),
        (
            '[{"text": "a"}, {"text": null}, 3, {"text": "\\ud83d"}, {"text": "d"}]',
            "a.json",
            [2, 3, 4],
        ),
        ("prompt,completion\na,b\nc\nd,e,f\nd,e\n", "a.csv", [3, 4]),
        (content(".parquet", [{"text": "a"}, {"text": None}, {"text": "d"}]), "a.parquet", [2]),
    ],
)
def test_rows_that_cannot_be_read_are_told_with_their_lines_and_the_others_are_read(
    data: bytes | str, name: str, lines: list[int], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data.encode() if isinstance(data, str) else data)
    unparsed: list[str] = []
    records = read(tmp_path / name, unparsed=lambda place, error: unparsed.append(place))
    assert unparsed == [f"{tmp_path / name}:{line}" for line in lines]
    assert [record.messages[0]["content"] for record in records] == ["a", "d"]
    problem(tmp_path, data, name)


def test_a_data_set_that_is_not_on_the_hub_or_cannot_be_reached_is_said_without_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx2
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    missing = OSError(
        "404 Client Error.\n\nRepository Not Found"
    )  # what the client raises is an OSError too
    for error, said in (
        (httpx2.ConnectError("Name or service not known"), "Name or service"),
        (missing, "404 Client"),
    ):
        ask = Mock(side_effect=error)
        monkeypatch.setattr(HfApi, "dataset_info", ask)
        with pytest.raises(
            DataError,
            match=rf"nobody/nothing: neither a file here nor a data set .*{said}.*check the name",
        ):
            read("nobody/nothing")  # type: ignore[arg-type]
        ask.assert_called_once()


@pytest.mark.parametrize("how", [".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_a_damaged_packed_file_is_named(kind: str, how: str, tmp_path: Path) -> None:
    whole = packed(content(kind, [{"text": f"row {k * 7919 % 1000}"} for k in range(3000)]), how)
    flipped = whole[:400] + bytes(255 - byte for byte in whole[400:500]) + whole[500:]
    damaged = [whole[: len(whole) // 2], b"never packed"]
    for data in (
        [*damaged, flipped] if how == ".gz" else damaged
    ):  # not every zst file has a checksum
        assert problem(tmp_path, data, f"data{kind}{how}").startswith(
            f"data{kind}{how}: damaged {how} file ("
        )


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    whole = content(".parquet", [{"text": f"row {k}"} for k in range(100)])
    page = whole[:4] + b"\xff" * 60 + whole[64:]
    name = whole.replace(b"text", b"te\xfft")
    for data in (b"", b"never parquet", whole[:-50], page, name):
        assert problem(tmp_path, data, "data.parquet").startswith(
            "data.parquet: not a parquet file ("
        )


def test_csv_with_too_many_or_too_few_cells_names_the_line(tmp_path: Path) -> None:
    start = 'prompt,completion\n"two\nlines",b\n'
    assert (
        problem(tmp_path, f"{start}c,d,e\n", "a.csv")
        == "a.csv:4: more cells than the first line has names"
    )
    assert (
        problem(tmp_path, f"{start}c\n", "a.csv") == "a.csv:4: 'completion' is NoneType, not text"
    )


def test_json_that_is_no_list_of_objects_says_so(tmp_path: Path) -> None:
    assert problem(tmp_path, "3", "a.json") == "a.json: expected a list of objects"
    said = problem(tmp_path, '[{"text": "a"}, 3]', "a.json")
    assert said == "a.json:2: a row is a JSON object, this is a int"
    said = problem(tmp_path, '{\n"text": "a"}\n{"text": "b"}\n', "a.json")
    assert said.endswith("more follows after its end; one object a line is .jsonl")


def test_a_file_that_is_absent_unknown_forbidden_or_a_folder_without_data_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file \(looked in "):
        read(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        list(read_jsonl(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match="the folder has no .jsonl"):
        read(tmp_path)
    assert problem(tmp_path, "text", "notes.docx").startswith(
        "notes.docx: what is this? Known are .jsonl"
    )
    monkeypatch.setattr(
        "replaykit.data.streams.gzip.open",
        Mock(side_effect=PermissionError(13, "Permission denied")),
    )
    assert problem(tmp_path, "secret", "a.jsonl.gz") == "a.jsonl.gz: no right to read it"


def test_a_file_of_replaykit_that_was_changed_by_hand_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"messages": [], "source": "target"}\n{"messages": []}\n')
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: not a record of replaykit: KeyError\('source'\)"
    ):
        list(read_jsonl(tmp_path / "rows.jsonl"))


# --- records, writing, data sets ------------------------------------------------------------------

TURNS = st.lists(st.builds(lambda role, text: {"role": role, "content": text},
                           st.sampled_from(["system", "user", "assistant"]), st.text()), min_size=1)  # fmt: skip
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.builds(
    Record,
    TURNS.map(tuple),
    st.sampled_from(["target", "generate"]),
    st.dictionaries(st.text(), JSON, max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(records=st.lists(RECORDS, max_size=3))
def test_what_is_written_is_read_back_whatever_its_text(
    records: list[Record], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.jsonl"
    assert write_jsonl(path, records) == len(records)
    assert list(read_jsonl(path)) == records
    assert path.read_bytes().count(b"\n") == len(records)
    again = read(path)
    assert [record.messages for record in again] == [record.messages for record in records]
    assert [dict(record.meta) for record in again] == [
        {**record.meta, "line": line} for line, record in enumerate(records, 1)
    ]


def test_an_id_depends_on_the_messages_alone_and_never_changes() -> None:
    record = Record(dialogue("2 + 2?", "4"), "target", {"line": 1})
    assert record.id == replace(record, source="generate", meta={}).id == "af0a5afe6a2274ba"
    turned = tuple(dict(reversed(message.items())) for message in record.messages)
    assert replace(record, messages=turned).id == record.id
    others = [
        dialogue("2 + 2?", "5"),
        dialogue("2 + 2?"),
        dialogue("2 + 2?", "4", system=""),
        dialogue("", "2 + 2?4"),
    ]
    assert len({record.id, *(replace(record, messages=other).id for other in others)}) == 5


def test_the_last_question_and_the_last_answer_are_a_records_prompt_and_answer() -> None:
    record = Record(
        (*dialogue("a", "b"), *dialogue("c", "d"), {"role": "user", "content": "e"}), "target"
    )
    assert (record.prompt, record.answer) == ("e", "d")
    plain = Record(({"role": "text", "content": "t"},), "target")
    assert (plain.prompt, plain.answer) == ("", "")


def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    def rows() -> Iterator[Record]:
        yield Record(dialogue("a", "b"), "target")
        raise KeyboardInterrupt

    path = tmp_path / "folder" / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, rows())
    assert not path.exists()
    write_jsonl(path, [Record(dialogue("old", "one"), "target")])
    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, rows())
    assert [record.prompt for record in read_jsonl(path)] == ["old"]
    assert read(path.parent) == read(path)  # what is left has a name that no reader takes


def test_a_data_set_has_four_columns_of_stated_types() -> None:
    from datasets import List, Value

    turn = {"role": Value("string"), "content": Value("string")}
    features = {
        "id": Value("string"),
        "messages": List(turn),
        "source": Value("string"),
        "meta": Value("string"),
    }
    for records in ([], [Record(dialogue("a", "b"), "select", {"score": 0.5})]):
        dataset = to_dataset(records)
        assert dict(dataset.features) == features
        assert dataset.num_rows == len(records)


def test_a_record_pushed_as_parquet_keeps_its_meta(tmp_path: Path) -> None:
    meta = {"score": 0.25, "parent": None, "nested": {"ä": [1, "zwei"]}}
    records = [
        Record(dialogue(Q, A, system="Be brief."), "select", meta),
        Record(dialogue("a", "b"), "select", {}),
    ]
    to_dataset(records).to_parquet(tmp_path / "data.parquet")
    again = read(tmp_path / "data.parquet")
    assert [record.messages for record in again] == [record.messages for record in records]
    assert [record.meta for record in again] == [{**meta, "line": 1}, {"line": 2}]


def test_columns_that_json_does_not_know_are_written_as_text(tmp_path: Path) -> None:
    row = {
        "prompt": "p",
        "completion": "c",
        "day": datetime.datetime(2024, 2, 29),
        "thumbnail": b"\x89PNG",
    }
    (tmp_path / "data.parquet").write_bytes(content(".parquet", [row]))
    write_jsonl(tmp_path / "rows.jsonl", read(tmp_path / "data.parquet"))
    [record] = read_jsonl(tmp_path / "rows.jsonl")
    assert record.meta["day"] == "2024-02-29 00:00:00"
    assert json.loads(to_dataset(read(tmp_path / "data.parquet"))[0]["meta"]) == record.meta


def test_a_fingerprint_is_of_the_bytes_and_in_a_folder_of_the_names_too(tmp_path: Path) -> None:
    for folder, name, text in [("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    a, b, c, d = (file_fingerprint(tmp_path / folder) for folder in "abcd")
    assert a == b
    assert len({a, c, d}) == 3
    assert file_fingerprint(tmp_path / "a" / "x") == file_fingerprint(tmp_path / "c" / "y")
