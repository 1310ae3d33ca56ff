"""Every command as it is typed: what it prints, where it writes, and how it fails."""

import errno
import json
import os
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import type_in
from pydantic import ValidationError
from typer.testing import CliRunner

import replaykit
from replaykit.cli import app
from replaykit.cli.commands import STEPS
from replaykit.cli.read import setting as setting_of
from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.record import Record, dialogue
from replaykit.model import loading
from replaykit.nano import world
from replaykit.recipe import Recipe, load_recipe
from replaykit.recipe.messages import _model_in as section_in
from replaykit.recipe.schema import schema_text
from replaykit.runs import read_manifest
from replaykit.starter import write_quickstart

ROOT = Path(__file__).parent.parent
COMMANDS = [
    "advise", "augment", "describe", "diff", "eval", "gate", "generate", "init", "memory", "merge", "mix", "peek", "probe", "push",
    "quickstart", "repair", "report", "rewrite", "run", "schema", "score", "select", "status", "suites", "sweep",
    "train",
]  # fmt: skip
MAKING = sorted({*COMMANDS} - {"diff", "peek", "schema", "status"})


def plain_tokenizer(folder):
    """The embedded model's tokenizer without its chat template, and its config, but no weights."""
    tokenizer = loading.load_tokenizer("nano")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    shutil.copy(Path(loading.resolve("nano")) / "config.json", folder)


def result_in(folder):
    """What a finished step found, as its manifest holds it."""
    return read_manifest(Path(folder)).result


@pytest.fixture
def small_run(here):
    """A recipe for the embedded model with 64 target rows, and its data."""
    rows = {
        "target": world.draw("referral", 64, seed=1),
        "pool": world.draw_old(200, seed=1),
        "test-target": world.draw("referral", 8, seed=1, held_out=True),
        "test-capital": world.draw("capital", 8, seed=1, held_out=True),
    }
    for name, tasks in rows.items():
        write_jsonl(
            f"{name}.jsonl", [Record(dialogue(t.prompt, t.answer), "target") for t in tasks]
        )
    Path("replaykit.yaml").write_text(
        "name: small\nmodel: nano\ntarget: target.jsonl\nselect: {pool: pool.jsonl, n: 40}\n"
        "generate: {n: 30, max_question_tokens: 96, max_answer_tokens: 64}\n"
        "train: {batch_rows: 8, learning_rate: 5.0e-4, log_every: 2}\n"
        "eval: {target: {path: test-target.jsonl, max_tokens: 32}, old: {capital: test-capital.jsonl}}\n"
    )
    return here


def test_the_commands_are_those_of_the_readme():
    _, _, listing = type_in("--help").partition("Commands:")
    listed = re.findall(r"^  (\w+)  ", listing, re.MULTILINE)
    assert sorted(listed) == COMMANDS
    readme = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert f"replaykit {command}" in readme, command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    text = type_in(command, "--help")
    assert "--out" in text
    assert type_in(command, "-h") == text


@pytest.mark.parametrize("command", MAKING)
def test_every_command_that_makes_something_takes_the_common_flags(command):
    text = type_in(command, "--help")
    for flag in ("--out", "--seed", "--force", "--json"):
        assert flag in text, flag


def test_a_recipe_of_a_name_that_reads_as_a_number_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "2024.jsonl", [Record(dialogue("2 + 2?", "4"), "target")])
    type_in("init", "--model", "nano", "--target", "2024.jsonl")
    assert load_recipe("replaykit.yaml").name == "2024"


@pytest.mark.parametrize("file", ["my task.jsonl", "任务.jsonl", "_x#1, {a}.jsonl"])
def test_the_recipe_that_init_writes_can_be_read(here, file):
    write_jsonl(file, [Record(dialogue("2 + 2?", "4"), "target")])
    type_in("init", "--model", "nano", "--target", file, "--pool", file)
    recipe = load_recipe("replaykit.yaml")
    assert recipe.target.path == recipe.select.pool.path == file


@pytest.mark.slow
def test_the_quickstart_may_be_anywhere(here):
    for folder in (Path(), Path("my run #2")):
        recipe = load_recipe(write_quickstart(folder, seed=1))
        assert Path(recipe.target.path).exists()
        assert all(
            Path(test.path).exists() for test in (recipe.eval.target, *recipe.eval.old.values())
        )


def test_a_flag_that_adds_a_remedy_leaves_alone_what_the_recipe_says_of_it(here):
    Path("replaykit.yaml").write_text("train: {remedies: {ewc: {old: old.jsonl, strength: 1.0}}}\n")
    recipe = load_recipe(
        "replaykit.yaml", {"train.remedies.ewc": ..., "train.remedies.distill": ...}
    )
    assert recipe.train.remedies.ewc.strength == 1.0
    assert recipe.train.remedies.distill is not None


@pytest.mark.slow
def test_what_is_made_here_is_measured_here_though_a_server_generates(small_run):
    recipe = Path("replaykit.yaml")
    recipe.write_text(
        recipe.read_text() + "engine: {server: 'http://127.0.0.1:9/v1'}\n"
    )  # where nobody answers
    type_in("mix", "--ratio", 0)
    type_in("train")
    assert [model["model"] for model in json.loads(type_in("eval", "--json"))["models"]] == [
        "base",
        "tuned",
    ]


def test_cli_py_runs_from_a_checkout():
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.slow
def test_cli_py_starts_processes_that_do_not_run_the_command_again(tmp_path):
    for name, tasks in (
        ("pool", world.draw_old(3000, seed=1)),
        ("target", world.draw("referral", 200, seed=1)),
    ):
        write_jsonl(
            tmp_path / f"{name}.jsonl",
            [Record(dialogue(t.prompt, t.answer), "target") for t in tasks],
        )
    (tmp_path / "replaykit.yaml").write_text(
        "name: apart\nmodel: nano\ntarget: target.jsonl\nselect: {pool: pool.jsonl, n: 50, processes: 2}\n"
    )
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py", "select", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 50


def test_a_word_that_is_no_command_is_misuse():
    assert "No such command" in type_in("trian", code=2)


@pytest.mark.slow
def test_the_whole_recipe_runs_and_runs_again_without_doing_anything(small_run):
    text = type_in("run")
    assert "runs/small/report.html" in text
    for step in ("select", "generate", "mix", "train", "eval"):
        assert (small_run / "runs/small" / step / "manifest.json").exists(), step
    trained = (small_run / "runs/small/train/model/model.safetensors").stat().st_mtime_ns
    again = CliRunner().invoke(app, ["run"])
    assert again.exit_code == 0
    assert again.stderr.count("finished before") == 5
    assert (small_run / "runs/small/train/model/model.safetensors").stat().st_mtime_ns == trained


@pytest.mark.slow
def test_the_three_commands_as_a_user_types_them(small_run):
    type_in("generate", "--model", "nano", "-n", 20)
    type_in("select")
    mixed = json.loads(type_in("mix", "--ratio", "0.05", "--json"))
    assert mixed["ratio"] == 0.05
    assert mixed["target_rows"] == 64
    # The unit is rows: of 64 + r rows, r is the whole number nearest to a twentieth.
    assert mixed["replay_rows"] == 3
    assert mixed["share"]["rows"] == pytest.approx(3 / 67, abs=1e-6)
    assert mixed["repeats"]["target"] == 1.0
    assert type_in("train").strip().endswith("runs/small/train")
    losses = result_in("runs/small/train")["losses"]
    assert {"loss", "loss/target"} <= losses[0].keys()


@pytest.mark.slow
def test_the_mix_manifest_holds_what_was_asked_and_what_came_out(small_run):
    type_in("select")
    type_in("generate")
    type_in("mix", "--out", "elsewhere")
    manifest = result_in("elsewhere")
    assert manifest["ratio"] == 0.05
    assert manifest["share"].keys() == {"loss_tokens", "tokens", "rows"}
    assert manifest["repeats"].keys() == {"target", "select", "generate"}
    rows = list(read_jsonl("elsewhere/rows.jsonl"))
    assert len(rows) == manifest["target_rows"] + manifest["replay_rows"]


@pytest.mark.slow
def test_json_is_one_object_and_nothing_else(small_run):
    assert json.loads(type_in("select", "--json"))["rows"] == 40
    assert (
        json.loads(type_in("probe", "--model", "nano", "--samples", 2, "--json"))["stop"]["text"][0]
        == "<|eot_id|>"
    )


def test_probe_without_samples_needs_no_weights(here):
    shutil.copytree(
        loading.resolve("nano"), "tokenizer-only", ignore=shutil.ignore_patterns("*.safetensors")
    )
    probed = json.loads(type_in("probe", "--model", "./tokenizer-only", "--samples", 0, "--json"))
    assert probed["template"]["pre_query"]["text"].endswith("user<|end_header_id|>\n\n")
    assert probed["template"]["joint"]["text"].startswith("<|eot_id|>")
    assert probed["template"]["joint"]["ids"][0] == probed["stop"]["ids"][0]
    assert (probed["bos"], probed["system"], probed["date"]) == (1, "own block", None)
    assert probed["samples"] == []


def test_probe_shows_what_the_model_asks_itself(here):
    probed = json.loads(
        type_in("probe", "--model", "nano", "--engine", "transformers", "--samples", 3, "--json")
    )
    assert len(set(probed["samples"])) == 3
    assert "3 of 3 questions came to an end by themselves" in probed["verdict"]
    shown = type_in("probe", "--model", "nano", "--engine", "transformers", "--samples", 3)
    assert all(sample.split()[0] in shown for sample in probed["samples"])


@pytest.mark.slow
def test_a_template_by_hand_serves_where_there_is_none(here):
    plain_tokenizer("plain")
    shutil.copy(Path(loading.resolve("nano")) / "model.safetensors", "plain")
    header = "<|start_header_id|>{}<|end_header_id|>\\n\\n"
    words = [
        "--model", "./plain", "--pre-query", "<|begin_of_text|>" + header.format("user"), "--stop", "<|eot_id|>",
        "--engine", "transformers",
    ]  # fmt: skip
    probed = json.loads(type_in("probe", *words, "--samples", 4, "--json"))
    assert len(probed["samples"]) == 4
    assert "--answer-header" in type_in("generate", *words, "-n", 4, code=1)
    type_in(
        "generate", *words, "-n", 4, "--answer-header", "<|eot_id|>" + header.format("assistant")
    )
    type_in("generate", "--model", "nano", "--engine", "transformers", "-n", 4)
    by_hand, derived = (
        list(read_jsonl(f"runs/{name}/generate/rows.jsonl")) for name in ("plain", "nano")
    )
    assert [row.messages for row in by_hand] == [row.messages for row in derived]


def test_a_base_model_says_that_it_writes_plain_text(here):
    plain_tokenizer("plain")
    probed = json.loads(type_in("probe", "--model", "./plain", "--samples", 0, "--json"))
    assert "base model" in probed["verdict"]
    assert probed["template"]["start"]["text"] == "<|begin_of_text|>"


def test_generate_takes_its_settings_from_flags(here):
    type_in("generate", "--model", "nano", "--engine", "transformers", "-n", 6, "--schedule", "magpie-pro",
            "--system", "math", "--system", "Be short.=2", "--seed", 4)  # fmt: skip
    manifest = result_in("runs/nano/generate")
    assert manifest["sampling"]["systems"] == {"math": 1.0, "Be short.": 2.0}
    assert manifest["sampling"]["schedule"] == "magpie-pro"
    assert (manifest["rows"], manifest["seed"]) == (6, 4)
    assert {row.meta["system"] for row in read_jsonl("runs/nano/generate/rows.jsonl")} <= {
        "math",
        "Be short.",
    }


def test_a_file_of_prompts_is_answered_line_by_line(here):
    Path("asked.txt").write_text(
        "What is the capital of France?\n\nWhat is the capital of Italy?\n"
    )
    type_in("generate", "--model", "nano", "--engine", "transformers", "--prompts", "asked.txt")
    rows = list(read_jsonl("runs/nano/generate/rows.jsonl"))
    assert [row.answer for row in rows] == ["Paris", "Rome"]
    Path("asked.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}\n'
    )
    type_in("generate", "--model", "nano", "--engine", "transformers", "--prompts", "asked.jsonl")
    assert [row.answer for row in read_jsonl("runs/nano/generate/rows.jsonl")] == ["Madrid"]
    Path("asked.jsonl").write_text('{"prompt": ""}\n')
    assert "asked.jsonl:1: there is no question in this row" in type_in(
        "generate", "--model", "nano", "--prompts", "asked.jsonl", code=1
    )


def test_a_dry_run_says_what_it_takes_and_draws_nothing(here):
    told = json.loads(type_in("generate", "--model", "nano", "-n", 5000, "--dry-run", "--json"))
    assert told["draw"] > told["rows"] == 5000
    assert told["hours"] > 0
    assert told["basis"]["kept_share"] == "assumed"
    assert not Path("runs").exists()


@pytest.mark.slow
def test_tags_of_a_judge_that_cannot_judge_are_unparsed_and_drop_nothing(here):
    type_in("generate", "--model", "nano", "--engine", "transformers", "-n", 5, "--tags")
    rows = list(read_jsonl("runs/nano/generate/rows.jsonl"))
    assert len(rows) == 5
    assert all(row.meta["tags"]["quality"] == "unparsed" for row in rows)
    manifest = result_in("runs/nano/generate")
    assert manifest["tags"]["difficulty"] == {"unparsed": 5}


@pytest.mark.slow
def test_the_generate_manifest_says_how_far_the_checks_bent_the_sample(here):
    type_in("generate", "--model", "nano", "--engine", "transformers", "-n", 120)
    manifest = result_in("runs/nano/generate")
    assert manifest["fidelity"]["kept"] == 120 <= manifest["fidelity"]["drawn"]
    assert manifest["fidelity"]["items"].keys() == {"length", "language", "category"}
    assert manifest["tokens"]["questions"] > manifest["tokens"]["answers"] > 120


@pytest.mark.slow
def test_another_ratio_makes_another_mix_and_keeps_the_old_one(small_run):
    type_in("select")
    type_in("mix", "--ratio", "0.05", "--recipe", "replaykit.yaml", "--arm", "x", code=1)
    Path("replaykit.yaml").write_text(
        Path("replaykit.yaml").read_text() + "mix: {sources: [select]}\n"
    )
    type_in("mix", "--ratio", "0.05")
    type_in("mix", "--ratio", "0.1")
    shares = [result_in(f"runs/small/{name}")["ratio"] for name in ("mix", "mix.old1")]
    assert shares == [0.1, 0.05]


@pytest.mark.slow
def test_init_writes_a_recipe_that_loads_and_never_over_another(small_run):
    Path("replaykit.yaml").unlink()
    assert "replaykit run" in type_in(
        "init", "--model", "nano", "--target", "target.jsonl", "--pool", "pool.jsonl"
    )
    assert json.loads(type_in("select", "-n", 5, "--json"))["rows"] == 5
    assert "there already" in type_in("init", "--model", "nano", "--target", "target.jsonl", code=1)


def test_init_writes_no_recipe_that_cannot_be_read(here):
    said = type_in("init", "--model", "nano", "--seed", -1, code=1)
    assert "seed: must be greater than or equal to 0 (got -1)" in said
    assert not list(here.iterdir())


def test_what_init_says_to_type_can_be_typed(here):
    said = type_in("init", "--model", "nano", "--out", "sp ace/r.yml")
    assert said.strip().endswith("replaykit run 'sp ace/r.yml'")
    told = json.loads(type_in("init", "--model", "nano", "--out", "it's.yml", "--json"))
    assert shlex.split(told["next"]) == ["replaykit", "run", "it's.yml"]
    for recipe in ("sp ace/r.yml", "it's.yml"):
        (line,) = re.findall("(?m)^# replaykit run (.+)$", Path(recipe).read_text())
        assert shlex.split(line) == [recipe]


def test_a_file_that_cannot_be_written_is_one_clear_message(here):
    Path("folder").mkdir()
    Path("file").write_text("")
    for words in (
        ["schema", "--out", "folder"],
        ["init", "--model", "nano", "--out", "folder", "--force"],
        ["schema", "--out", "file/s.json"],
    ):
        assert "cannot be written: " in type_in(*words, code=1)
    type_in("schema", "--out", "new/s.json")
    assert Path("new/s.json").read_text() == schema_text()


def test_rewrite_gives_every_target_row_once(small_run):
    tasks = [*world.draw("capital", 6, seed=3), *world.draw("arithmetic", 4, seed=3)]
    write_jsonl("target.jsonl", [Record(dialogue(t.prompt, t.answer), "target") for t in tasks])
    assert json.loads(type_in("rewrite", "--method", "min-change", "--json"))["rows"] == 10
    assert len(list(read_jsonl("runs/small/rewrite/rows.jsonl"))) == 10


@pytest.mark.slow
def test_push_stops_before_the_upload_in_a_dry_run(small_run):
    type_in("select")
    result = json.loads(type_in("push", "me/my-replay", "--dry-run", "--json"))
    assert result["url"] is None
    assert Path("runs/small/push/README.md").read_text().startswith("---")
    assert Path("runs/small/push/data/select.parquet").exists()


@pytest.mark.slow
def test_a_model_that_cannot_be_fetched_is_one_clear_message(here, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [sys.executable, "-m", "replaykit", "generate", "--model", "llama3"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: llama3 (meta-llama/Meta-Llama-3-8B-Instruct) cannot be loaded"
    )
    assert "--model nano" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate"], "generate needs model"),
        (["generate", "--model", "lama3"], "did you mean 'llama3'"),
        (
            ["generate", "--model", "nano", "--engine", "vlm"],
            "must be 'auto', 'vllm', 'openai' or 'transformers'",
        ),
        (["select"], "select needs target"),
        (
            ["select", "--target", "absent.jsonl", "--pool", "absent.jsonl"],
            "absent.jsonl: no such file",
        ),
        (["rewrite", "--model", "nano"], "rewrite needs target"),
        (
            ["mix", "--model", "nano", "--target", "x.jsonl", "--ratio", "1.5"],
            "mix.ratio: must be less than 1 (got 1.5)",
        ),
        (
            ["mix", "--model", "nano", "--target", "x.jsonl", "--ratio", "-0.1"],
            "mix.ratio: must be greater than",
        ),
        (["train", "--model", "nano"], "`replaykit mix` makes it"),
        (["eval", "--model", "nano"], "eval needs eval"),
        (["report"], "nothing is finished here"),
        (["push", "me/x"], "no replay to publish"),
        (["push", "not-a-repo", "--dry-run"], "no replay to publish"),
        (["run"], "replaykit.yaml has 1 problem\n  no such file; `replaykit init` writes one"),
        (["probe", "--model", "./nowhere"], "neither a folder here"),
        (["init", "--target", "absent.jsonl"], "absent.jsonl: no such file"),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_exit_code_1(here, words, message):
    text = type_in(*words, code=1)
    assert text.startswith("error: ")
    assert message in text
    assert "Traceback" not in text


NESTED = [f"mix: {'[' * 3000}{']' * 3000}", f"mix: {'{a: ' * 3000}1{'}' * 3000}", "- " * 3000]


@pytest.mark.parametrize("text", NESTED, ids=["lists", "mappings", "lines"])
def test_a_recipe_that_is_nested_too_deep_is_one_message(here, text):
    Path("deep.yaml").write_text(text)
    said = type_in("run", "deep.yaml", code=1)
    assert "nested too deep to be a recipe" in said
    assert "Traceback" not in said


def test_a_setting_that_is_nested_too_deep_is_one_message(here):
    said = type_in("status", "--set", f"mix={'[' * 3000}{']' * 3000}", code=2)
    assert "nested too deep to be a recipe" in said


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EFBIG, "a file became larger than is allowed here"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "no right to write here"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_message(here, monkeypatch, number, message):
    def fails(*_, **__):
        raise OSError(number, "no", "q/data/target.jsonl")

    monkeypatch.setattr("replaykit.starter.write_jsonl", fails)
    said = type_in("quickstart", "--out", "q", code=1)
    assert f"error: q/data/target.jsonl: {message}" in said


FOREIGN = "it is there, and replaykit did not write it"


@pytest.mark.parametrize("name", ["replaykit.yaml", "data/pool.jsonl", "data/test-capital.jsonl"])
def test_the_quickstart_replaces_no_file_of_ones_own(here, name):
    Path("data").mkdir()
    Path(name).write_text("mine")
    assert f"{name}: {FOREIGN}" in type_in("quickstart", "--out", ".", code=1)
    assert [path.name for path in here.rglob("*") if path.is_file()] == [Path(name).name]
    assert Path(name).read_text() == "mine"


def test_the_schema_replaces_no_file_of_ones_own(here):
    Path("notes.json").write_text('{"mine": 1}')
    assert FOREIGN in type_in("schema", "--out", "notes.json", code=1)
    assert Path("notes.json").read_text() == '{"mine": 1}'
    type_in("schema", "--out", "recipe.json")
    type_in("schema", "--out", "recipe.json")


@pytest.mark.slow
def test_the_report_and_the_data_set_replace_no_file_of_ones_own(small_run):
    type_in("select")
    own = {"report.html": "<title>mine</title>", "README.md": "mine"}
    own["replaykit.yaml"] = Path("replaykit.yaml").read_text()
    for name, text in own.items():
        Path(name).write_text(text)
    assert f"report.html: {FOREIGN}" in type_in("report", "--out", ".", code=1)
    said = type_in("push", "me/x", "--dry-run", "--out", ".", code=1)
    assert "README.md: it is there, and it is not what replaykit wrote" in said
    assert {name: Path(name).read_text() for name in own} == own
    assert not Path("data").exists()
    Path("report.html").unlink()
    type_in("report", "--out", ".")
    type_in("report", "--out", ".")
    type_in("push", "me/x", "--dry-run")
    type_in("push", "me/x", "--dry-run")


@pytest.mark.parametrize("text", ["", "mine", '{"state": "kept"}'])
def test_the_gate_replaces_no_file_of_ones_own(here, text):
    Path("mine.json").write_text(text)
    said = type_in("gate", "--base", "nano", "--tuned", "nano", "--evidence", "mine.json", code=1)
    assert f"mine.json: {FOREIGN}" in said
    assert Path("mine.json").read_text() == text


def test_init_over_a_folder_is_one_message(here):
    Path("place").mkdir()
    said = type_in("init", "--model", "nano", "--out", "place", "--force", code=1)
    assert "cannot be written: Is a directory; --out takes the name of a file" in said


def test_a_recipe_shows_all_its_problems_at_once(here):
    Path("replaykit.yaml").write_text("modle: nano\nmix: {ratoi: 0.1}\ntrain: {steps: 0}\n")
    text = type_in("mix", code=1)
    assert "replaykit.yaml has 3 problems" in text
    assert "did you mean 'model'?" in text
    assert "did you mean 'ratio'?" in text


def test_a_malformed_line_is_counted_with_its_number_and_is_an_error_where_that_is_asked_for(
    small_run,
):
    good = Path("pool.jsonl").read_text()
    bad = ['{"prompt": "a", ', '{"prompt": 7, "completion": "b"}', "[1]", '{"other": "x"}']
    Path("pool.jsonl").write_bytes(
        good.encode() + "\n".join(bad).encode() + b"\n\xff\xfe\n" + b"x" * 1_000_000 + b"\n"
    )
    selected = json.loads(type_in("select", "--json"))
    assert selected["funnel"]["dropped"]["unparsed"] == 6
    assert selected["rows"] == 40
    dropped = [
        json.loads(line)
        for line in Path("runs/small/select/dropped.jsonl").read_text().splitlines()
    ]
    places = {row["place"]: row["error"] for row in dropped if row["reason"] == "unparsed"}
    assert sorted(int(place.rpartition(":")[2]) for place in places) == [
        201,
        202,
        203,
        204,
        205,
        206,
    ]
    assert "not JSON" in places["pool.jsonl:201"]
    assert "not UTF-8" in places["pool.jsonl:205"]
    assert "pool.jsonl:201: not JSON" in type_in("select", "--strict", code=1)


def test_select_explains_a_chosen_row_and_one_that_was_left_out(small_run):
    type_in("select")
    (first, *_) = read_jsonl("runs/small/select/rows.jsonl")
    told = json.loads(type_in("select", "--explain", first.id[:8], "--json"))
    assert told["chosen"] is True
    assert (told["rank"], told["score"]) == (1, first.meta["score"])
    assert told["terms"] == first.meta["terms"]
    assert told["nearest"]["prompt"]
    far = next(
        row
        for line in Path("runs/small/select/dropped.jsonl").read_text().splitlines()
        if (row := json.loads(line))["reason"] == "far"
    )
    assert json.loads(type_in("select", "--explain", far["id"], "--json"))["reason"] == "far"
    assert "no row has an id that begins with 0x" in type_in("select", "--explain", "0x", code=1)


def test_select_takes_its_method_from_a_flag_and_needs_a_target_only_where_it_compares(here):
    write_jsonl(
        "pool.jsonl",
        [Record(dialogue(f"What is {n} + {n}?", str(2 * n)), "target") for n in range(50)],
    )
    made = json.loads(
        type_in("select", "--pool", "pool.jsonl", "--method", "random", "-n", 60, "--json")
    )
    assert (made["rows"], made["missing"]) == (50, 10)
    assert any("10 of 60 rows are missing" in note for note in made["notes"])
    assert "select needs target" in type_in(
        "select", "--pool", "pool.jsonl", "--method", "bm25", code=1
    )
    assert "must be 'tfidf'" in type_in(
        "select", "--pool", "pool.jsonl", "--method", "nearest", code=1
    )


def test_a_row_that_holds_a_question_of_another_evaluation_set_is_left_out(small_run):
    held = [record.prompt for record in read_jsonl("pool.jsonl")][:3]
    Path("other.jsonl").write_text(
        "".join(json.dumps({"question": text, "answer": "x"}) + "\n" for text in held)
    )
    made = json.loads(type_in("select", "--against", "other.jsonl", "-n", 200, "--json"))
    assert made["funnel"]["dropped"]["eval_overlap"] >= 3


def test_an_empty_pool_is_one_clear_message(small_run):
    Path("pool.jsonl").write_text("")
    assert "the pool has no record to select from (0 made" in type_in("select", code=1)


def test_a_conversation_for_a_model_without_a_chat_template_is_one_clear_message(small_run):
    plain_tokenizer("plain")
    assert "has no chat template" in type_in("mix", "--model", "./plain", "--ratio", 0, code=1)


def bad_pool(data):
    """What `select` says of a pool of these bytes when it fails."""
    Path("pool.jsonl").write_bytes(data)
    text = type_in("select", code=1)
    assert "Traceback" not in text
    progress, error, said = text.partition("error: ")
    assert error and all(line.startswith("read the pool") for line in progress.splitlines())
    return said


def test_a_pool_that_is_no_text_is_one_clear_message(small_run):
    rows = Path("pool.jsonl").read_text()
    assert "pool.jsonl: this is UTF-16 text; save it as UTF-8" in bad_pool(rows.encode("utf-16"))
    said = bad_pool(bytes(range(256)) * 40)
    assert "the pool has no record to select from (" in said
    assert "unparsed" in said
    assert "the first row that cannot be read: pool.jsonl:1: not JSON (" in said
    latin = '{"prompt": "Größe?", "completion": "klein"}\n'.encode("latin-1") * 3
    said = bad_pool(latin)
    assert "3 made, unparsed 3, 0 kept" in said
    assert "the first row that cannot be read: pool.jsonl:1: not UTF-8 text" in said
    assert "pool.jsonl:1: not UTF-8 text" in type_in("select", "--strict", code=1)


def test_a_pool_smaller_than_n_is_taken_whole_and_says_what_is_missing(small_run):
    made = json.loads(type_in("select", "-n", 5000, "--json"))
    assert (made["n"], made["missing"]) == (5000, 5000 - made["rows"])
    assert made["rows"] == made["funnel"]["kept"] > 100
    assert any(f"{made['missing']:,} of 5,000 rows are missing" in note for note in made["notes"])


def test_a_target_without_common_words_says_so_and_what_else_there_is(small_run):
    Path("target.jsonl").write_text('{"prompt": "zzyzx qwxv", "completion": "b"}\n')
    made = json.loads(type_in("select", "--json"))
    assert made["scores"]["highest"] == 0
    assert any(
        "all scores are 0" in note and "`--method embedding`" in note and "random" in note
        for note in made["notes"]
    )


@pytest.mark.slow
def test_a_line_of_100_megabytes_in_the_pool_is_counted_and_the_others_are_used(small_run):
    with Path("pool.jsonl").open("ab") as stream:
        stream.write(b'{"prompt": "' + b"long " * 20_000_000 + b'", "completion": "b"}\n')
    made = json.loads(type_in("select", "--json"))
    assert (made["rows"], made["funnel"]["dropped"]["unparsed"]) == (40, 1)
    assert "pool.jsonl:201: longer than 16 MiB" in type_in("select", "--strict", code=1)


@pytest.mark.slow
def test_a_pool_that_is_on_no_hub_is_one_clear_message_at_once(small_run):
    words = [sys.executable, "-m", "replaykit", "select", "--pool", "nobody/nothing-here"]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "NO_PROXY": "*",
    }
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=30)
    assert done.returncode == 1
    assert done.stderr.startswith("error: nobody/nothing-here: neither a file here nor a data set")
    assert "Traceback" not in done.stderr


# --- any key of the recipe ----------------------------------------------------------------------------------------


def test_set_changes_any_key_of_the_recipe(small_run):
    words = [
        "--set",
        "generate.top_p=0.9",
        "--set",
        "generate.checks={refusals: true, personal: true}",
    ]
    told = json.loads(type_in("generate", "-n", 3, "--engine", "transformers", *words, "--json"))
    assert told["sampling"]["top_p"] == 0.9
    assert told["sampling"]["checks"]["refusals"] is True
    assert told["sampling"]["max_question_tokens"] == 96  # as the recipe says


def test_set_takes_null_and_goes_over_the_flag_of_the_same_key(small_run):
    words = ["--set", "generate.checks.near_duplicate=null", "--set", "generate.n=2"]
    told = json.loads(type_in("generate", "-n", 3, "--engine", "transformers", *words, "--json"))
    assert told["sampling"]["checks"]["near_duplicate"] is None
    assert told["rows"] == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mix.ratoi=0.1", "mix.ratoi: unknown key; did you mean 'ratio'?"),
        ("mxi.ratio=0.1", "mxi: unknown key; did you mean 'mix'?"),
        ("mix.ratio=1.5", "mix.ratio: must be less than 1 (got 1.5)"),
        ("train.learning_rate=1e-5", "YAML reads 1e-5 as text, write 1.0e-5"),
        ("model.name=nano", "model.name: model is 'nano', which has no keys"),
        ("train.remedies.ewc.strenght=1.0", "did you mean 'strength'?"),
    ],
)
def test_a_wrong_set_is_said_as_the_recipe_says_it(small_run, setting, message):
    text = type_in("mix", "--set", setting, code=1)
    assert text.startswith("error: replaykit.yaml has 1 problem")
    assert message in text


@pytest.mark.parametrize(
    ("setting", "key"),
    [("arms={}", "arms"), ("train={}", "train"), ("mix.min_rows={}", "mix.min_rows")],
)
def test_what_is_typed_in_set_replaces_the_value_an_empty_one_too(here, setting, key):
    Path("replaykit.yaml").write_text(
        "model: nano\ntarget: rows.jsonl\narms: {a: {ratio: 0}}\n"
        "mix: {min_rows: {json: 2}}\ntrain: {epochs: 3}\n"
    )
    before = load_recipe("replaykit.yaml").model_dump()
    after = load_recipe("replaykit.yaml", dict([setting_of(setting)])).model_dump()
    section, _, inner = key.partition(".")
    if inner:
        before, after, section = before[section], after[section], inner
    assert before[section] != after[section]
    assert after[section] == (Recipe().train.model_dump() if key == "train" else {})


def test_an_empty_arms_in_set_switches_the_arms_off(small_run):
    Path("replaykit.yaml").write_text(
        "model: nano\ntarget: target.jsonl\narms: {a: {ratio: 0}, b: {}}\n"
    )
    assert "mix-a" in type_in("status")
    assert "mix-a" not in type_in("status", "--set", "arms={}")


@pytest.mark.parametrize(
    "setting",
    ["mix={ratio: 0.3, ratio: 0.4}", "eval={old: {a: x.jsonl, a: y.jsonl}}", "arms={a: {}, a: {}}"],
)
def test_a_key_that_is_given_twice_in_set_is_misuse_as_in_a_recipe(small_run, setting):
    assert "is given twice" in type_in("mix", "--set", setting, code=2)


def test_what_is_no_key_and_value_is_misuse(small_run):
    assert "'mix.ratio' is not KEY=VALUE" in type_in("mix", "--set", "mix.ratio", code=2)
    assert "mix.ratio: while parsing" in type_in("mix", "--set", "mix.ratio={", code=2)


@pytest.mark.parametrize("command", ["run", *sorted(command.name for command in STEPS)])
def test_every_command_that_reads_a_recipe_has_set_and_a_short_flag_for_it(command):
    text = type_in(command, "-h")
    assert "--set" in text
    assert "-r, --recipe" in text


def test_every_option_changes_a_key_that_the_recipe_has():
    keys = {option.key for command in STEPS for option in command.options if option.key}
    assert len(keys) > 40
    for key in keys - {"train.remedies.*", "eval.old.*"}:
        model = Recipe
        for part in key.split("."):
            assert part in model.model_fields, key
            model = section_in(model.model_fields[part].annotation)


def test_the_recipe_of_run_is_an_argument_or_a_flag_but_not_both(small_run):
    Path("replaykit.yaml").rename("mine.yaml")
    both = type_in("run", "mine.yaml", "--recipe", "other.yaml", code=1)
    assert "the recipe is given twice: mine.yaml and --recipe other.yaml; leave one out" in both
    for words in (["mine.yaml"], ["-r", "mine.yaml"]):
        text = type_in("run", *words, "--set", "mix.ratio=2.0", code=1)
        assert "mine.yaml has 1 problem\n  mix.ratio: must be less than 1" in text


def test_the_version_has_a_short_flag():
    assert type_in("-V") == type_in("--version") == f"{replaykit.__version__}\n"


def test_a_shell_can_complete_the_commands(monkeypatch):
    text = type_in("--help")
    assert "--install-completion" in text
    assert "--show-completion" in text
    monkeypatch.setenv("_REPLAYKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "replaykit sc")
    monkeypatch.setenv("COMP_CWORD", "1")
    found = CliRunner().invoke(app, [], prog_name="replaykit")
    assert found.stdout.split() == ["score", "schema"]


# --- the schema, for editors --------------------------------------------------------------------------------------


def test_the_schema_knows_every_key_and_says_what_it_means():
    schema = json.loads(type_in("schema"))
    assert schema["properties"].keys() == Recipe.model_fields.keys()
    assert schema["additionalProperties"] is False
    described = schema["$defs"]["Train"]["properties"]["epochs"]
    assert described["title"] == "Epochs"
    assert "target" in described["description"]


@pytest.mark.parametrize(
    ("recipe", "valid"),
    [
        ("{target: file.jsonl, engine: vllm, mix: {sources: [select]}}", True),
        ("{target: {path: file.jsonl, n: 5}, engine: {name: vllm, workers: 2}}", True),
        ("{arms: {a: {sources: {select: 1, generate: 2.5}}}, eval: {old: {x: y.jsonl}}}", True),
        ("{generate: {prompts: asked.txt, temperature: model}, select: {pool: me/data}}", True),
        ("{train: {remedies: {ewc: {old: old.jsonl}, dft: true}}}", True),
        ("{engine: vlm}", False),
        ("{mix: {ratoi: 0.1}}", False),
        ("{mix: {sources: [selected]}}", False),
        ("{target: 3}", False),
    ],
)
def test_what_the_schema_allows_is_what_the_recipe_allows(recipe, valid):
    jsonschema = pytest.importorskip("jsonschema")
    raw = yaml.safe_load(recipe)
    assert jsonschema.Draft202012Validator(json.loads(schema_text())).is_valid(raw) is valid
    if valid:
        Recipe.model_validate(raw)
    else:
        with pytest.raises(ValidationError):
            Recipe.model_validate(raw)


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name
)
def test_the_recipes_here_are_valid_by_the_schema(recipe):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(recipe.read_text()), json.loads(schema_text()))


def test_init_writes_the_schema_that_its_first_line_names(here):
    write_jsonl("rows.jsonl", [Record(dialogue("2 + 2?", "4"), "target")])
    type_in("init", "--model", "nano", "--target", "rows.jsonl", "--out", "deep/mine.yaml")
    first, _, text = Path("deep/mine.yaml").read_text().partition("\n")
    assert text.startswith("# replaykit run deep/mine.yaml\n")
    name = first.removeprefix("# yaml-language-server: $schema=")
    assert (Path("deep") / name).read_text() == type_in("schema")
    assert type_in("schema", "--out", "here.json") == "here.json\n"
    assert Path("here.json").read_text() == type_in("schema")


# --- what is done -------------------------------------------------------------------------------------------------


def test_status_says_what_is_done_and_why_it_would_be_done_anew(small_run):
    assert {step["state"] for step in json.loads(type_in("status", "--json"))["steps"]} != {
        "finished"
    }
    type_in("generate", "-n", 3, "--engine", "transformers")
    words = ["--set", "generate.n=3", "--set", "engine=transformers"]
    states = {
        step["name"]: step["state"]
        for step in json.loads(type_in("status", *words, "--json"))["steps"]
    }
    assert states["generate"] == "finished"
    assert "generate" in type_in("status", *words)
    again = type_in("status", *words, "--set", "generate.top_p=0.5")
    assert "generate.top_p was 1.0, is 0.5" in again.replace("\n", " ")


# --- how fast the help is -----------------------------------------------------------------------------------------


def cpu_seconds(*words):
    """What a Python process takes, of a processor's time: a busy machine makes it wait, not work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_help_takes_at_most_twice_as_long_as_to_import_typer():
    commands = {
        "typer": ["-c", "import typer"],
        "help": [str(ROOT / "cli.py"), "--help"],
        "help of a command": [str(ROOT / "cli.py"), "select", "--help"],
    }
    times = {name: [] for name in commands}
    for _ in range(7):  # in turns, so that all meet the same machine
        for name, words in commands.items():
            times[name].append(cpu_seconds(*words))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    assert medians["help"] <= 2 * medians["typer"] + 0.02
    assert medians["help of a command"] <= 2 * medians["typer"] + 0.02


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_imports_neither_pydantic_nor_rich(words):
    code = (
        "import sys\nfrom replaykit.cli import app\n"
        f"try:\n    app({words})\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('pydantic', 'rich', 'yaml', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
