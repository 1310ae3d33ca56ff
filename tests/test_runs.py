"""Step folders: what is finished is not done again, what is there is not lost, two do not meet."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit import __version__
from replaykit.data.ledger import Ledger
from replaykit.errors import RunError
from replaykit.hashing import derive_seed
from replaykit.result import Result
from replaykit.runs import Step, differences, open_step, read_json, read_manifest, write_json

INPUTS = {"model": "nano", "mix": {"ratio": 0.05}}
OTHER = {"model": "nano", "mix": {"ratio": 0.1}}


class Made(Result):
    """What the step of these tests finds."""

    rows: int = 1


def do(
    folder: Path, inputs: Mapping[str, Any] = INPUTS, *, text: str = "made", force: bool = False
) -> Step:
    """What the pipeline does in a step: nothing if it is finished, else its work."""
    with open_step("select", folder, inputs, force=force) as step:
        if step.manifest is None:
            (step.folder / "rows.jsonl").write_text(text)
            step.finish(Made())
    return step


def made(step: Step) -> Made:
    """The result of a finished step."""
    manifest = step.manifest
    assert manifest is not None
    return Made.model_validate(manifest.result)


# --- finished, changed, forced --------------------------------------------------------------------


def test_a_finished_step_is_not_done_again(tmp_path: Path) -> None:
    do(tmp_path / "select", text="first")
    manifest = (tmp_path / "select" / "manifest.json").read_bytes()
    with open_step("select", tmp_path / "select", INPUTS) as step:
        assert made(step) == Made()
        assert (step.moved, step.changed) == (None, [])
    assert (tmp_path / "select" / "rows.jsonl").read_text() == "first"
    assert (tmp_path / "select" / "manifest.json").read_bytes() == manifest


def test_an_unfinished_step_goes_on_in_its_folder(tmp_path: Path) -> None:
    with open_step("select", tmp_path / "select", INPUTS) as step:
        (step.folder / "rows.jsonl").write_text("half")
    for force in (False, True):
        with open_step("select", tmp_path / "select", INPUTS, force=force) as step:
            assert (step.manifest, step.moved) == (None, None)
            assert (step.folder / "rows.jsonl").read_text() == "half"


def test_other_inputs_move_the_old_folder_aside_and_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "select"
    do(folder, INPUTS, text="first")
    second = do(folder, OTHER, text="second")
    assert second.moved == tmp_path / "select.old1"
    assert second.changed == ["mix.ratio was 0.05, is 0.1"]
    third = do(folder, INPUTS, text="third")
    assert third.moved == tmp_path / "select.old2"
    texts = {
        name: (tmp_path / name / "rows.jsonl").read_text()
        for name in ("select.old1", "select.old2", "select")
    }
    assert texts == {"select.old1": "first", "select.old2": "second", "select": "third"}
    assert all(read_manifest(tmp_path / name) for name in texts)


def test_other_inputs_move_an_unfinished_step_aside_too(tmp_path: Path) -> None:
    with open_step("select", tmp_path / "select", INPUTS) as step:
        (step.folder / "ledger.jsonl").write_text("costly")
    assert do(tmp_path / "select", OTHER).moved == tmp_path / "select.old1"
    assert (tmp_path / "select.old1" / "ledger.jsonl").read_text() == "costly"


def test_force_does_a_finished_step_again_and_keeps_the_old_one(tmp_path: Path) -> None:
    do(tmp_path / "select", text="first")
    step = do(tmp_path / "select", text="again", force=True)
    assert (step.moved, step.changed) == (tmp_path / "select.old1", [])
    assert (tmp_path / "select.old1" / "rows.jsonl").read_text() == "first"
    assert (tmp_path / "select" / "rows.jsonl").read_text() == "again"


def test_inputs_are_compared_as_they_stand_in_the_file(tmp_path: Path) -> None:
    inputs = {"path": Path("x"), "columns": ("a", "b"), 3: None, "absent": None}
    do(tmp_path / "select", inputs)
    assert do(tmp_path / "select", dict(inputs)).moved is None
    assert do(tmp_path / "select", {"path": "x", "columns": ["a", "b"]}).moved is None


def test_a_manifest_tells_what_was_asked_what_came_out_and_with_what(tmp_path: Path) -> None:
    inputs = INPUTS | {"seed": 7}
    with open_step("select", tmp_path / "select", inputs) as step:
        finished = step.finish(Made(rows=3))
        assert Made.model_validate(finished.result) == Made(rows=3)
    manifest = read_manifest(tmp_path / "select")
    assert manifest == finished
    assert (manifest.step, manifest.result) == ("select", {"rows": 3})
    assert (manifest.inputs, manifest.inputs["seed"]) == (inputs, 7)
    assert manifest.versions["replaykit"] == __version__
    assert "torch" in manifest.versions
    assert manifest.seconds >= 0
    assert manifest.machine
    assert datetime.fromisoformat(manifest.finished).utcoffset() == timedelta(0)


def test_differences_name_nested_keys_and_both_values() -> None:
    before = {"a": 1, "b": {"c": [1], "d": {"e": 1}}, "f": {"g": 1}}
    now = {"a": 1, "b": {"c": [2], "d": {}}, "f": None, "h": "new"}
    assert differences(before, now) == [
        "b.c was [1], is [2]", "b.d.e was 1, is None", "f was {'g': 1}, is None", "h was None, is new",
    ]  # fmt: skip
    assert differences(before, before) == []


def test_differences_name_a_file_or_a_model_whose_content_is_another() -> None:
    before = {
        "model": "own",
        "weights": "1a",
        "target": {"path": "a.jsonl", "content": "2b", "n": None},
    }
    assert differences(before, before | {"weights": "9f"}) == ["own has changed"]
    now = {"path": "a.jsonl", "content": "9f", "n": 5}
    assert differences(before, before | {"target": now}) == [
        "a.jsonl has changed",
        "target.n was None, is 5",
    ]
    # Under another name the content is another, too, and that need not be said.
    now = {"path": "b.jsonl", "content": "9f", "n": None}
    assert differences(before, before | {"target": now}) == ["target.path was a.jsonl, is b.jsonl"]
    assert differences(before, before | {"model": "nano", "weights": "9f"}) == [
        "model was own, is nano"
    ]


def test_differences_in_lists_of_files_are_told_file_by_file() -> None:
    before = {
        "against": [{"path": "a.jsonl", "content": "1a"}, {"path": "b.jsonl", "content": "2b"}]
    }
    other = [before["against"][0], {"path": "b.jsonl", "content": "9f"}]
    assert differences(before, {"against": other}) == ["b.jsonl has changed"]
    assert differences(before, {"against": other[:1]}) == [
        "against was ['a.jsonl', 'b.jsonl'], is ['a.jsonl']"
    ]


# --- whose folder it is ---------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from replaykit.runs import open_step
with open_step("select", Path(sys.argv[1]), {"model": "nano", "mix": {"ratio": 0.05}}):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("exists", [True, False])
def test_a_lock_that_is_a_link_is_refused_and_what_it_names_stays(
    tmp_path: Path, exists: bool
) -> None:
    own = tmp_path / "thesis.txt"
    if exists:
        own.write_text("mine")
    (tmp_path / ".select.lock").symlink_to(own)
    with pytest.raises(RunError, match=r"\.select\.lock: the lock of a step is a file of its own"):
        do(tmp_path / "select")
    assert own.exists() is exists
    assert not exists or own.read_text() == "mine"


def test_a_lock_file_keeps_what_stands_in_it(tmp_path: Path) -> None:
    (tmp_path / ".select.lock").write_text("mine")
    do(tmp_path / "select")
    assert (tmp_path / ".select.lock").read_text() == "mine"


def test_a_folder_in_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".select.lock").mkdir()
    with pytest.raises(RunError, match="and this is none; remove it"):
        do(tmp_path / "select")


def test_a_file_that_grows_larger_than_allowed_is_an_error_that_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"select: a file became larger .* `ulimit -f unlimited`"),
        open_step("select", tmp_path / "select", INPUTS),
    ):
        raise OSError(errno.EFBIG, "File too large")


def test_a_second_process_is_refused_while_the_first_holds_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "select"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        before = sorted(tmp_path.rglob("*"))
        for inputs, force in [(INPUTS, False), (OTHER, False), (INPUTS, True)]:
            with pytest.raises(
                RunError, match=r"select: another replaykit is working here; .* --out"
            ):
                do(folder, inputs, force=force)
        assert sorted(tmp_path.rglob("*")) == before
        do(tmp_path / "mix")  # beside it there is room
        first.stdin.close()
        assert first.wait() == 0
    assert do(folder).moved is None
    assert (folder / "rows.jsonl").exists()


def test_a_folder_is_free_again_after_a_step_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_step("select", tmp_path / "select", INPUTS):
        raise ZeroDivisionError
    do(tmp_path / "select")


def test_a_folder_that_replaykit_did_not_make_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for force in (False, True):
        with pytest.raises(
            RunError, match="not empty and no step of replaykit made it; choose another --out"
        ):
            do(tmp_path, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "select").mkdir()
    assert made(do(tmp_path / "select")) == Made()


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "select"):
        with pytest.raises(
            RunError, match="a file is in the way of this folder; choose another --out"
        ):
            do(folder)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_place_without_the_right_to_write_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(
        RunError, match=r"select: no right to write here; choose another place with --out"
    ):
        do(tmp_path / "select")


def test_a_damaged_file_is_named_and_force_makes_it_anew(tmp_path: Path) -> None:
    folder = tmp_path / "select"
    for number, name in enumerate(["manifest.json", "inputs.json"], 1):
        do(folder)
        (folder / name).write_text('{"half')
        with pytest.raises(RunError, match=rf"{name}: damaged \(.*--force makes it anew"):
            do(folder)
        assert do(folder, force=True).moved == tmp_path / f"select.old{number}"
        assert made(do(folder)) == Made()


# --- a full disk ----------------------------------------------------------------------------------

FULL = Path("/dev/full")
has_full_device = pytest.mark.skipif(
    not FULL.is_char_device(), reason="this system has no /dev/full"
)


@has_full_device
def test_a_full_disk_is_one_clear_message_and_costs_nothing_that_was_finished(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "select"
    with (
        pytest.raises(
            RunError, match=r"select: the disk is full; what was finished is safe\. Free some space"
        ),
        open_step("select", folder, INPUTS) as step,
        Ledger(folder / "rows.jsonl") as ledger,
    ):
        ledger.append({"row": 0})
        (folder / "manifest.json.tmp").symlink_to(FULL)
        step.finish(Made())
    assert not (folder / "manifest.json").exists()
    (folder / "manifest.json.tmp").unlink()
    with open_step("select", folder, INPUTS) as step, Ledger(folder / "rows.jsonl") as ledger:
        assert (step.manifest, step.moved) == (None, None)
        assert dict(ledger) == {0: {"row": 0}}


@has_full_device
def test_a_disk_full_from_the_start_leaves_a_folder_that_can_be_used_later(tmp_path: Path) -> None:
    folder = tmp_path / "select"
    folder.mkdir()
    (folder / "inputs.json.tmp").symlink_to(FULL)
    with pytest.raises(RunError, match="the disk is full"):
        do(folder)
    (folder / "inputs.json.tmp").unlink()
    (folder / "inputs.json.tmp").write_text('{"half')
    assert made(do(folder)) == Made()


class SmallDisk(io.FileIO):
    """A file with room for so many bytes: one write takes a part, and the next one fails."""

    room: int

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = super().write(data[: self.room])
        self.room -= taken
        return taken


def test_a_row_that_the_disk_took_a_part_of_is_not_in_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    ledger = Ledger(path)
    ledger.append({"row": 0, "text": "whole"})
    ledger.close()
    ledger._stream = SmallDisk(path, "ab")
    ledger._stream.room = 40
    ledger.append({"row": 1, "text": "whole"})
    with pytest.raises(OSError) as raised:
        ledger.append({"row": 2, "text": "too long for what is left"})
    ledger.close()
    assert raised.value.errno == errno.ENOSPC
    assert path.read_bytes().count(b"\n") == 2
    assert not path.read_bytes().endswith(b"\n")
    with Ledger(path) as again:
        assert sorted(ledger) == sorted(again) == [0, 1]
        again.append({"row": 2, "text": "now there is room"})
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == [0, 1, 2]


# --- the ledger -----------------------------------------------------------------------------------


def test_a_ledger_gives_back_its_rows_in_any_order_of_coming(tmp_path: Path) -> None:
    rows = [
        {"row": 2, "text": "zwei\u2028\n"},
        {"row": 0, "text": "ä"},
        {"row": 1, "tokens": [1, 2]},
    ]
    with Ledger(tmp_path / "rows.jsonl") as ledger:
        assert dict(ledger) == {}
        for row in rows:
            ledger.append(row)
            assert (tmp_path / "rows.jsonl").read_bytes().endswith(b"}\n")  # on the disk at once
    with Ledger(tmp_path / "rows.jsonl") as again:
        assert dict(again) == {row["row"]: row for row in rows}


@settings(deadline=None)
@given(cut=st.integers(min_value=0, max_value=200))
def test_a_ledger_drops_a_torn_last_line_and_keeps_the_rest(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "torn.jsonl"
    lines = [
        json.dumps({"row": row, "text": "größe"}, ensure_ascii=False).encode() + b"\n"
        for row in range(5)
    ]
    whole = b"".join(lines)
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    with Ledger(path) as ledger:
        assert list(ledger) == list(range(complete))
        for row in range(complete, 5):
            ledger.append({"row": row, "text": "größe"})
    assert path.read_bytes() == whole


def test_a_rows_address_stands_in_the_ledger_only_once(tmp_path: Path) -> None:
    with Ledger(tmp_path / "rows.jsonl") as ledger:
        ledger.append({"row": 0})
        with pytest.raises(AssertionError, match="row 0 is finished already"):
            ledger.append({"row": 0})
    with Ledger(tmp_path / "rows.jsonl") as again, pytest.raises(AssertionError):
        again.append({"row": 0})
    assert (tmp_path / "rows.jsonl").read_text() == '{"row": 0}\n'


@pytest.mark.parametrize("line", ["\x00\x00\x00", '{"row": 1', "[1]", '{"text": "no address"}'])
def test_a_line_damaged_in_the_middle_is_named_and_nothing_is_thrown_away(
    line: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"row": 0}}\n{line}\n{{"row": 2}}\n')
    before = path.read_bytes()
    with pytest.raises(
        RunError, match=r"rows\.jsonl:2: damaged .*take that line out, and its row is made again"
    ):
        Ledger(path)
    assert path.read_bytes() == before


# --- seeds and files ------------------------------------------------------------------------------


def test_a_seed_is_the_same_for_ever_and_another_for_each_address() -> None:
    assert derive_seed(1, "question", 0) == 3706324251759496827
    addresses = [
        (run, stage, row)
        for run in (1, 2, 11)
        for stage in ("question", "answer")
        for row in range(200)
    ]
    addresses += [("1", "question", 0), (1, "question"), (1, "question", 0, 0)]
    seeds = {derive_seed(*address) for address in addresses}
    assert len(seeds) == len(addresses)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_json_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, {"größe": 1})
    assert read_json(path) == {"größe": 1}
    assert "größe" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(path, {"fine": 1, "not": object()})
    assert read_json(path) == {"größe": 1}

    seen: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        "replaykit.runs.os.fsync", lambda number: seen.append(("on the disk", read_json(path)))
    )
    monkeypatch.setattr(
        "replaykit.runs.os.replace", lambda old, new: seen.append((Path(old).name, Path(new).name))
    )
    write_json(path, {"größe": 2})
    assert seen == [("on the disk", {"größe": 1}), ("manifest.json.tmp", "manifest.json")]


def test_json_that_is_absent_is_none_and_json_that_is_no_object_is_damaged(tmp_path: Path) -> None:
    assert read_json(tmp_path / "nowhere.json") is None
    assert read_manifest(tmp_path) is None
    for text in ("", "[1]", "3", "\x00"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(RunError, match=r"a\.json: damaged"):
            read_json(tmp_path / "a.json")


def test_a_folder_in_which_nothing_was_made_is_not_kept_aside(tmp_path):
    with open_step("mix", tmp_path / "mix", {"ratio": 0.05}):
        pass
    with open_step("mix", tmp_path / "mix", {"ratio": 0.1}) as step:
        assert step.moved is None
    assert read_json(tmp_path / "mix/inputs.json") == {"ratio": 0.1}
    assert not (tmp_path / "mix.old1").exists()
