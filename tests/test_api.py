"""The functions for notebooks and scripts: the same rows as the command line, and errors that speak of the call."""

import doctest
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
import typing
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from commands import type_in
from pydantic import BaseModel

import replaykit
from replaykit.api import keywords
from replaykit.api.arguments import stream
from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.planned import read_plan
from replaykit.data.record import Record, dialogue
from replaykit.errors import CallError, DataError, RecipeError, ReplaykitError
from replaykit.nano import world
from replaykit.recipe.augment import Augment
from replaykit.recipe.describe import Describe
from replaykit.recipe.generate import Generate
from replaykit.recipe.mix import Mix
from replaykit.recipe.rewrite import Rewrite, Verifier
from replaykit.recipe.select import Select
from replaykit.recipe.train import Train
from replaykit.result import Result
from replaykit.runs import read_manifest

ROOT = Path(__file__).parent.parent
LENGTHS = ("epochs", "steps", "batch_rows", "max_tokens")
FUNCTIONS = [
    "augment",
    "describe",
    "evaluate",
    "generate",
    "mix",
    "probe",
    "push",
    "report",
    "rewrite",
    "run",
    "select",
    "train",
]


def rows(tasks):
    return [{"prompt": task.prompt, "completion": task.answer} for task in tasks]


TARGET = rows(world.draw("referral", 32, seed=1))
POOL = rows(world.draw_old(150, seed=1))
TESTS = {
    "target": rows(world.draw("referral", 6, seed=1, held_out=True)),
    "capital": rows(world.draw("capital", 6, seed=1, held_out=True)),
}


def splits():
    import datasets

    return datasets.DatasetDict(train=datasets.Dataset.from_list(POOL))


def tuned_result():
    """As of a training: no name of a model, but it has one."""

    class TuneResult(Result):
        model: str

    return TuneResult(model="runs/x/model")


def lines(records):
    return [record.to_json() for record in records]


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """The folder of a small run as the command line makes it, and its results."""
    folder = tmp_path_factory.mktemp("typed")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name, data in {
            "target": TARGET,
            "pool": POOL,
            **{f"test-{k}": v for k, v in TESTS.items()},
        }.items():
            write_jsonl(f"{name}.jsonl", data)
        Path("replaykit.yaml").write_text(
            "name: small\nmodel: nano\nengine: transformers\ntarget: target.jsonl\n"
            "select: {pool: pool.jsonl, n: 30}\n"
            "generate: {n: 12, max_question_tokens: 96, max_answer_tokens: 64}\n"
            "mix: {ratio: 0.1}\n"
            "train: {batch_rows: 8, learning_rate: 5.0e-4, log_every: 1, remedies: {stm: {}}}\n"
            "eval: {target: {path: test-target.jsonl, max_tokens: 32}, old: {capital: {path: test-capital.jsonl, "
            "max_tokens: 32}}}\n"
        )
        type_in("run")
    finally:
        os.chdir(before)
    return folder / "runs/small"


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    """The same from Python."""
    folder = tmp_path_factory.mktemp("called")
    chosen = replaykit.select(POOL, TARGET, n=30, held_out=TESTS)
    memory = list(
        replaykit.generate(
            "nano",
            12,
            engine="transformers",
            held_out=TESTS,
            max_question_tokens=96,
            max_answer_tokens=64,
        )
    )
    mixture = replaykit.mix(
        TARGET,
        {"select": chosen.records, "generate": memory},
        model="nano",
        ratio=0.1,
        batch_rows=8,
        held_out=TESTS,
    )
    tuned = replaykit.train(
        mixture,
        model="nano",
        folder=folder / "tuned",
        engine="transformers",
        learning_rate=5e-4,
        log_every=1,
        remedies={"stm": {}},
    )
    found = replaykit.evaluate(
        {"base": "nano", "tuned": tuned.model},
        TESTS,
        engine="transformers",
        mixtures={"tuned": mixture},
        max_tokens=32,
    )
    return types.SimpleNamespace(
        folder=folder, chosen=chosen, memory=memory, mixture=mixture, tuned=tuned, found=found
    )


# --- the same as the command line ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_select_chooses_the_same_rows(typed, called):
    assert lines(called.chosen.records) == lines(read_jsonl(typed / "select/rows.jsonl"))
    before = read_manifest(typed / "select").result
    assert called.chosen.result.to_json() == before | {"pool": "rows in memory"} | {
        "decontamination": called.chosen.result.to_json()["decontamination"]
    }
    assert called.chosen.result.funnel.to_json() == before["funnel"]


@pytest.mark.slow
def test_generate_draws_the_same_rows(typed, called):
    assert lines(called.memory) == lines(read_jsonl(typed / "generate/rows.jsonl"))


@pytest.mark.slow
def test_mix_plans_the_same_rows(typed, called):
    assert called.mixture.rows == read_plan(typed / "mix/rows.jsonl")
    assert called.mixture.result.sha256 == read_manifest(typed / "mix").result["sha256"]
    assert called.mixture.result.sources == dict.fromkeys(("select", "generate"), "rows in memory")


def test_train_has_the_same_losses_and_leaves_the_same_model(typed, called):
    before = read_manifest(typed / "train").result
    after = called.tuned.to_json()
    same = set(before) - {"model", "speed"}
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert after["weights"] is not None
    models = [typed.parent.parent / before["model"], Path(after["model"])]
    weights = [(model / "model.safetensors").read_bytes() for model in models]
    assert weights[0] == weights[1]
    assert Path(after["model"]) == called.folder / "tuned/model"


def test_evaluate_finds_the_same_scores(typed, called):
    assert called.found.to_json() == read_manifest(typed / "eval").result


def test_run_does_what_the_command_does(typed, monkeypatch):
    monkeypatch.chdir(typed.parent.parent)
    outcomes = replaykit.run("replaykit.yaml")
    assert [outcome.step for outcome in outcomes] == [
        "select",
        "generate",
        "mix",
        "train",
        "eval",
        "report",
    ]
    assert all(outcome.skipped for outcome in outcomes[:-1])
    again = replaykit.run(replaykit.load_recipe("replaykit.yaml"))
    assert [outcome.result for outcome in again] == [outcome.result for outcome in outcomes]


# --- what goes in, what comes out ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_may_be_a_path_a_list_an_iterator_records_or_a_dataset(called, tmp_path):
    import datasets

    write_jsonl(tmp_path / "pool.jsonl", POOL)
    records = [Record(dialogue(row["prompt"], row["completion"]), "generate") for row in POOL]
    shapes = [
        str(tmp_path / "pool.jsonl"),
        tmp_path / "pool.jsonl",
        iter(POOL),
        records,
        datasets.Dataset.from_list(POOL),
    ]
    for pool in shapes:
        found = replaykit.select(pool, TARGET, n=30, held_out=TESTS)
        assert [row.messages for row in found.records] == [
            row.messages for row in called.chosen.records
        ]
        assert {row.source for row in found.records} == {"select"}


def test_records_come_out_as_a_dataset_and_go_in_again(called):
    made = replaykit.to_dataset(called.memory)
    assert made.num_rows == 12
    again = replaykit.mix(TARGET, {"generate": made}, model="nano", ratio=0.1, batch_rows=8)
    straight = replaykit.mix(
        TARGET, {"generate": called.memory}, model="nano", ratio=0.1, batch_rows=8
    )
    assert [row.record.messages for row in again.rows] == [
        row.record.messages for row in straight.rows
    ]


def test_nothing_is_printed_and_bars_come_only_where_they_are_asked_for(capfd):
    replaykit.select(POOL, TARGET, n=5)
    assert capfd.readouterr() == ("", "")
    replaykit.select(POOL, TARGET, n=5, progress=True)
    told = capfd.readouterr()
    assert told.out == ""
    assert "read the pool" in told.err
    seen = []
    replaykit.select(POOL, TARGET, n=5, watch=lambda what, done, total, note="": seen.append(what))
    assert "read the pool" in seen
    assert capfd.readouterr() == ("", "")


def test_a_training_that_is_finished_is_not_done_again(called):
    weights = Path(called.tuned.model, "model.safetensors")
    before = weights.stat().st_mtime_ns
    settings = {
        "engine": "transformers",
        "learning_rate": 5e-4,
        "log_every": 1,
        "remedies": {"stm": {}},
    }
    again = replaykit.train(
        called.mixture, model="nano", folder=called.folder / "tuned", **settings
    )
    assert again == called.tuned
    assert weights.stat().st_mtime_ns == before


def test_an_evaluation_with_a_folder_asks_no_model_twice(called, tmp_path):
    for _ in range(2):
        found = replaykit.evaluate(
            {"base": "nano"}, TESTS, engine="transformers", folder=tmp_path, max_tokens=32
        )
        times = {
            file.name: file.stat().st_mtime_ns for file in (tmp_path / "items").glob("items-*")
        }
    assert found.models[0].scores == called.found.models[0].scores
    replaykit.evaluate(
        {"base": "nano"}, TESTS, engine="transformers", folder=tmp_path, max_tokens=32
    )
    assert {
        file.name: file.stat().st_mtime_ns for file in (tmp_path / "items").glob("items-*")
    } == times


def test_a_test_may_be_scored_otherwise():
    found = replaykit.evaluate(
        {"base": "nano"}, {"capital": (TESTS["capital"], "cross_entropy")}, engine="transformers"
    )
    assert found.skills[0].score == "cross_entropy"


def test_rewrite_gives_every_row_once_and_says_which_path_it_took():
    tasks = rows([*world.draw("capital", 4, seed=3), *world.draw("arithmetic", 2, seed=3)])
    made = replaykit.rewrite(tasks, model="nano", engine="transformers")
    assert [row.prompt for row in made.records] == [task["prompt"] for task in tasks]
    assert made.result.rows == sum(made.result.paths.values()) == 6


def test_the_page_shows_several_trainings_by_name(called, tmp_path):
    page = replaykit.report(
        called.found,
        {"tuned": called.tuned},
        {"tuned": called.mixture},
        called.chosen,
        out=tmp_path / "deep/page.html",
        title="my page",
    )
    text = page.read_text()
    assert page == tmp_path / "deep/page.html"
    assert "my page" in text
    for name in ("train-tuned", "mix-tuned", "select"):
        assert name in text
    assert " s, 20" not in text  # nothing was timed


def test_push_writes_a_split_for_each_source_and_sends_nothing_in_a_dry_run(called, tmp_path):
    published = replaykit.push(
        [*called.chosen.records, *called.memory],
        repo="me/x",
        model="nano",
        dry_run=True,
        folder=tmp_path / "x",
    )
    assert published.rows == {"select": 30, "generate": 12}
    assert published.url is None
    assert {file.name for file in (tmp_path / "x/data").iterdir()} == {
        "select.parquet",
        "generate.parquet",
    }
    assert "how they were made is not known here" in (tmp_path / "x/README.md").read_text()
    assert list(
        lines(replaykit.api.data.stream("rows", tmp_path / "x/data/generate.parquet", "generate"))
    )


def test_the_rows_of_a_mixture_come_out_as_a_dataset_with_their_steps_and_go_in_again(called):
    planned = called.mixture.rows
    made = replaykit.to_dataset(planned)
    assert made["step"] == [row.step for row in planned]
    assert made["id"] == [row.record.id for row in planned]
    for target in (planned, made):
        again = replaykit.mix(target, model="nano", ratio=0)
        assert {row.record.id for row in again.rows} == {row.record.id for row in planned}
    with pytest.raises(CallError, match="and not both"):
        replaykit.to_dataset([planned[0], planned[1].record])


def test_push_takes_rows_in_every_shape(called, tmp_path):
    records = [*called.chosen.records[:3], *called.memory[:2]]
    expected = {"select": 3, "generate": 2}
    write_jsonl(tmp_path / "rows.jsonl", records)
    shapes = [
        records,
        iter(records),
        replaykit.to_dataset(records),
        lines(records),
        tmp_path / "rows.jsonl",
    ]
    for number, shape in enumerate(shapes):
        place = tmp_path / str(number)
        pushed = replaykit.push(shape, repo="me/x", dry_run=True, folder=place)
        assert pushed.rows == expected
    plain = replaykit.push(POOL[:4], repo="me/x", dry_run=True, folder=tmp_path / "plain")
    assert plain.rows == {"select": 4}  # rows that name no source are old data
    mixed = replaykit.push(
        called.mixture.rows, repo="me/x", dry_run=True, folder=tmp_path / "mixed"
    )
    assert sum(mixed.rows.values()) == len(called.mixture.rows)


def test_generate_answers_the_questions_of_rows_in_every_shape():
    import datasets

    tasks = POOL[:3]
    questions = [task["prompt"] for task in tasks]
    records = [Record(dialogue(task["prompt"], task["completion"]), "select") for task in tasks]
    settings = {"engine": "transformers", "max_answer_tokens": 16}

    def answered(prompts):
        return [row.messages for row in replaykit.generate("nano", prompts=prompts, **settings)]

    expected = answered(questions)
    assert [turns[0]["content"] for turns in expected] == questions
    assert all(len(turns) == 2 for turns in expected)
    for prompts in (tasks, iter(tasks), datasets.Dataset.from_list(tasks), records):
        assert answered(prompts) == expected
    with pytest.raises(DataError, match="row:1: there is no question"):
        replaykit.generate("nano", prompts=[{"prompt": " "}])


# --- errors speak of the call -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: replaykit.select(POOL, TARGET, methd="bm25"), "select() has no keyword 'methd'; did you mean 'method'?"),
        (lambda: replaykit.select(POOL, TARGET, pool="x"), "multiple values for argument 'pool'"),
        (lambda: replaykit.generate("nano", trns=2), "generate() has no keyword 'trns'; did you mean 'turns'?"),
        (lambda: replaykit.generate("nano", tags={}), "generate() has no keyword 'tags'"),
        (lambda: replaykit.rewrite(TARGET, model="nano", verfy="exact"), "did you mean 'verify'?"),
        (lambda: replaykit.mix(TARGET, {}, model="nano", ratoi=0.1), "mix() has no keyword 'ratoi'; did you mean 'ratio'?"),
        (lambda: replaykit.mix(TARGET, {"selected": []}, model="nano"), "not 'selected'"),
        (lambda: replaykit.probe("nano", engin="vllm"), "probe() has no keyword 'engin'; did you mean 'engine'?"),
        (lambda: replaykit.evaluate({}, TESTS), "evaluate() needs models by name, the base first"),
        (
            lambda: replaykit.evaluate({"base": "nano"}, {"capital": (TESTS["capital"], "exactly")}),
            ", cross_entropy, not 'exactly'",
        ),
        (lambda: replaykit.evaluate({"base": "nano"}, TESTS, ngine="vllm"), "evaluate() has no keyword 'ngine'"),
        (lambda: replaykit.report(replaykit.load_recipe()), "report() shows no Recipe"),
        # a function's own keywords are among those that are meant
        (lambda: replaykit.generate("nano", promts=["a"]), "did you mean 'prompts'?"),
        (lambda: replaykit.select(POOL, TARGET, heldout=TESTS), "did you mean 'held_out'?"),
        (lambda: replaykit.mix(TARGET, {}, model="nano", progres=True), "did you mean 'progress'?"),
        (lambda: replaykit.evaluate({"base": "nano"}, TESTS, max_token=3), "did you mean 'max_tokens'?"),
        (lambda: replaykit.probe("nano", sample=3), "did you mean 'samples'?"),
        (lambda: replaykit.generate("nano", 3, engin="auto"), "did you mean 'engine'?"),
        # what is no rows, no tests and no model
        (lambda: replaykit.select(POOL[0], TARGET), "select(): pool is one dict; it takes a path, or a list"),
        (lambda: replaykit.select(splits(), TARGET), "select(): pool is one DatasetDict; it takes a path, or a list"),
        (lambda: replaykit.select(POOL, 5), "select(): target is a int; it takes a path, or a list"),
        (lambda: replaykit.select(["a", "b"], TARGET), "select(): pool: row 1 is a str; a row is a dict or a Record"),
        (lambda: replaykit.select(POOL, [*TARGET, None]), "select(): target: row 33 is a NoneType"),
        (lambda: replaykit.mix(["a"], model="nano", ratio=0), "mix(): target: row 1 is a str"),
        (lambda: replaykit.mix(TARGET, {"select": POOL[0]}, model="nano"), "mix(): replay 'select' is one dict"),
        (lambda: replaykit.mix(TARGET, 5, model="nano"), "mix(): replay is a int"),
        (lambda: replaykit.rewrite(splits(), model="nano"), "rewrite(): target is one DatasetDict"),
        (lambda: replaykit.push(splits(), repo="me/x"), "push(): rows is one DatasetDict"),
        (lambda: replaykit.push([5], repo="me/x"), "push(): rows: row 1 is a int"),
        (lambda: replaykit.generate("nano", prompts=splits()), "generate(): prompts is one DatasetDict"),
        (lambda: replaykit.generate("nano", prompts=[5]), "generate(): prompts: row 1 is a int"),
        (lambda: replaykit.select(POOL, TARGET, held_out=TARGET), "select(): held_out is a list; it takes rows by skill"),
        (lambda: replaykit.evaluate({"base": "nano"}, TARGET), "evaluate(): tests is a list; it takes rows by skill"),
        (lambda: replaykit.evaluate({"base": "nano"}, {"a": (TARGET,)}), "a is rows, or a pair of rows and score"),
        (lambda: replaykit.evaluate({"base": "nano"}, {"a": ["x"]}), "evaluate(): tests: a: row 1 is a str"),
        (lambda: replaykit.evaluate(["nano"], TESTS), "evaluate() needs models by name, the base first"),
        (lambda: replaykit.evaluate({"base": "nano", "tuned": tuned_result()}, TESTS), "models['tuned'] is a TuneResult; a model is an alias, a Hub id or a folder; its .model is one"),
        (lambda: replaykit.generate(tuned_result(), 3), "generate(): model is a TuneResult"),
        (
            lambda: replaykit.evaluate({"base": "nano", "tuned": "nano"}, TESTS, mixtures={"tund": None}),
            "mixtures names 'tund', which is no model; did you mean 'tuned'?",
        ),
        (
            lambda: replaykit.evaluate({"base": "nano", "tuned": "nano"}, TESTS, mixtures={"tuned": POOL}),
            "mixtures['tuned'] is what mix() returns, not a list",
        ),
        (lambda: replaykit.to_dataset(POOL), "to_dataset() takes records, or the rows of a mixture"),
    ],
)  # fmt: skip
def test_a_wrong_keyword_fails_at_the_call(call, message):
    with pytest.raises(TypeError) as raised:
        call()
    assert message in str(raised.value)


def test_a_wrong_value_is_said_with_its_key():
    with pytest.raises(RecipeError) as raised:
        replaykit.generate("nano", 3, top_p=2.0, checks={"refusal": True})
    text = str(raised.value)
    assert text.startswith("generate() has 2 problems")
    assert "top_p: must be less than or equal to 1 (got 2.0)" in text
    assert "checks.refusal: unknown key; did you mean 'refusals'?" in text
    assert "-" not in raised.value.problems[0].split(":")[0]


def test_a_seed_below_zero_is_refused_by_every_function():
    for call in (
        lambda: replaykit.select(POOL, TARGET, seed=-1),
        lambda: replaykit.generate("nano", 3, seed=-1),
        lambda: replaykit.mix(TARGET, model="nano", ratio=0, seed=-1),
    ):
        with pytest.raises(RecipeError, match="seed: must be greater than or equal to 0"):
            call()


def test_rows_that_cannot_be_read_are_said_without_flags_of_the_command_line():
    with pytest.raises(DataError, match="row:1: no messages, ") as raised:
        replaykit.select([{"colour": "red"}] * 3, TARGET)
    assert "--" not in str(raised.value)


def test_train_takes_what_the_mixture_has_not_decided(called, tmp_path):
    for name, message in {
        "lerning_rate": "did you mean 'learning_rate'?",
        "epochs": "give it to mix()",
    }.items():
        with pytest.raises(CallError) as raised:
            replaykit.train(called.mixture, model="nano", folder=tmp_path / "x", **{name: 2})
        assert message in str(raised.value)
    with pytest.raises(RecipeError, match="rank: method: full has no adapter"):
        replaykit.train(called.mixture, model="nano", folder=tmp_path / "x", rank=8)
    for tests, message in {None: "as tests=", ("capital",): "tests={'target': rows}"}.items():
        given = tests and {name: TESTS[name] for name in tests}
        with pytest.raises(CallError) as raised:
            replaykit.train(
                called.mixture, model="nano", folder=tmp_path / "x", tests=given, controller={}
            )
        assert message in str(raised.value)
        assert "eval." not in str(raised.value)
    assert not (tmp_path / "x").exists()


def test_a_call_error_is_of_both_families():
    assert issubclass(CallError, ReplaykitError)
    assert issubclass(CallError, TypeError)


def test_no_rows_and_rows_of_no_format_are_errors_of_the_data():
    with pytest.raises(DataError, match="rows in memory: there is no row in it"):
        replaykit.mix([], {}, model="nano")
    with pytest.raises(DataError, match="row:1: "):
        replaykit.mix([{"colour": "red"}], {}, model="nano")
    with pytest.raises(DataError, match="there is no row to publish"):
        replaykit.push([], repo="me/x")


@pytest.mark.parametrize("place", ["nowhere", "./nowhere/", "/nowhere/rows.jsonl"])
@pytest.mark.parametrize("wrong", ["pool", "target"])
def test_a_folder_that_is_not_there_is_an_error_of_the_data(place, wrong):
    rows = {"pool": POOL[:4], "target": POOL[4:6], wrong: place}
    with pytest.raises(DataError, match="nowhere"):
        replaykit.select(rows["pool"], rows["target"], n=2)


# --- what an editor and a type checker see ------------------------------------------------------------------------


def plain(annotation):
    """An annotation of the recipe as the keywords have it: without bounds, a section or a mapping for it."""
    origin = typing.get_origin(annotation)
    inner = typing.get_args(annotation)
    if origin is typing.Annotated:
        return plain(inner[0])
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(plain(part) for part in inner)]  # noqa: UP007
    if annotation == dict[str, typing.Any]:
        return keywords.Section
    if origin in (list, dict):
        return origin[tuple(plain(part) for part in inner)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation | keywords.Section
    return annotation


@pytest.mark.parametrize(
    ("options", "section", "without", "also"),
    [
        (keywords.SelectOptions, Select, ("pool",), None),
        (keywords.GenerateOptions, Generate, ("n", "prompts", "tags"), None),
        (keywords.RewriteOptions, Rewrite, (), None),
        (keywords.AugmentOptions, Augment, (), None),
        (keywords.DescribeOptions, Describe, ("rows", "template"), None),
        (keywords.MixOptions, Mix, (), Train),
        (keywords.TrainOptions, Train, LENGTHS, None),
    ],
)
def test_the_keywords_are_the_keys_of_the_recipe(options, section, without, also):
    fields = typing.get_type_hints(section, include_extras=True)
    expected = {name: plain(fields[name]) for name in section.model_fields if name not in without}
    if also is not None:
        expected |= {
            name: plain(typing.get_type_hints(also, include_extras=True)[name]) for name in LENGTHS
        }
    if section is Rewrite:  # a bare word is a section too
        expected["verify"] |= Verifier
        expected["editor"] |= str
    if section is Mix:  # a list is weights that are alike
        expected["sources"] = Sequence[str] | Mapping[str, float] | None
    hints = typing.get_type_hints(options)
    own = {
        name: hint
        for name, hint in hints.items()
        if name not in keywords.ModelOptions.__annotations__ or section is Select
    }
    assert own.keys() == expected.keys()
    for name, hint in own.items():
        assert hint == expected[name], name


def test_the_package_lists_what_it_has():
    assert set(FUNCTIONS) < set(replaykit.__all__)
    assert set(replaykit.__all__) <= set(dir(replaykit))
    assert replaykit.__all__ == replaykit.api.__all__
    for name in replaykit.__all__:
        assert getattr(replaykit, name) is getattr(replaykit.api, name)
    assert (Path(replaykit.__file__).parent / "py.typed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_each_function_runs(name, here):
    write_jsonl("rows.jsonl", TARGET[:8])
    Path("replaykit.yaml").write_text(
        "name: tiny\nmodel: nano\ntarget: rows.jsonl\nmix: {ratio: 0}\n"
    )
    function = getattr(replaykit, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(
        function, name, globs={"replaykit": replaykit}
    )
    assert 1 <= len(test.examples) <= 4
    told = []
    runner = doctest.DocTestRunner()
    runner.run(test, out=told.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(told)


@pytest.mark.slow
def test_the_example_of_the_package_runs(here):
    for name, data in {
        "old": POOL,
        "task": TARGET,
        "task_test": TESTS["target"],
        "general": TESTS["capital"],
    }.items():
        write_jsonl(f"{name}.jsonl", data)
    written = [line[4:] for line in replaykit.api.__doc__.splitlines() if line.startswith("    ")]
    assert len(written) == 9
    names = {"replaykit": replaykit}
    exec("\n".join(written).replace("500", "20"), names)
    assert names["found"].models[1].share == pytest.approx(0.05, abs=0.03)
    assert names["found"].skills[0].skill == "chat"
    assert "<svg" in Path("report.html").read_text()


@pytest.mark.slow
def test_a_controller_tests_the_rows_that_are_given(called, tmp_path):
    tuned = replaykit.train(
        called.mixture,
        model="nano",
        folder=tmp_path / "x",
        tests=TESTS,
        learning_rate=1e-3,
        controller={"every": 2, "items": 4, "patience": None},
    )
    assert tuned.events
    assert {"capital"} == {skill for event in tuned.events for skill in event.scores}
    with pytest.raises(DataError, match="there is no row in it"):
        replaykit.train(called.mixture, model="nano", folder=tmp_path / "y", tests={"other": []})


USER = """
from pathlib import Path

import replaykit


def main(path: str) -> float | None:
    old = replaykit.select(path, "target.jsonl", n=2000, method="near-and-far", quality={"broken": False})
    memory = replaykit.generate("nano", 500, temperature="model", checks={"refusals": True}, engine="auto")
    first: replaykit.Record = next(memory)
    mixture = replaykit.mix(
        [{"prompt": "2 + 2?", "completion": "4"}],
        {"select": old.records, "generate": [first, *memory]},
        model="nano",
        ratio=0.05,
        sources=["select"],
        epochs=1,
    )
    tuned = replaykit.train(mixture, model="nano", folder=Path("runs/x"), learning_rate=1e-3, remedies={"stm": {}})
    tests = {"target": old.records, "capital": ([{"prompt": "a", "completion": "b"}], "exact")}
    found = replaykit.evaluate({"base": "nano", "tuned": tuned.model}, {"target": old.records}, mixtures={"tuned": mixture})
    page: Path = replaykit.report(found, {"tuned": tuned}, {"tuned": mixture}, out="report.html")
    replaykit.push([first], repo="me/x", dry_run=True)
    recipe: replaykit.Recipe = replaykit.load_recipe("replaykit.yaml")
    replaykit.run(recipe)
    interval = found.models[0].old
    print(page, replaykit.probe("nano", samples=0).verdict, tests)
    return None if interval is None else interval.mean
"""
WRONG = "import replaykit\nreplaykit.select([], methd='bm25')\nreplaykit.generate('nano', turns='two')\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A Python in whose packages the wheel is, and, behind it, all that is installed here."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    if importlib.util.find_spec("hatchling"):
        build = [
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(folder),
            str(ROOT),
        ]
        subprocess.run([sys.executable, "-m", "pip", "--quiet", *build], check=True)
        (wheel,) = folder.glob("*.whl")
        shutil.unpack_archive(wheel, packages, "zip")
    else:  # what the wheel holds
        shutil.copytree(
            ROOT / "replaykit", packages / "replaykit", ignore=shutil.ignore_patterns("__pycache__")
        )
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "here.pth").write_text(here + "\n")
    return folder / "venv/bin/python"


# No signature of ours names a type of these, and to read torch takes most of a minute.
MYPY = """
[mypy-torch.*,transformers.*,huggingface_hub.*,tokenizers.*,peft.*,sympy.*,rich.*,httpx2.*]
follow_imports = skip
"""


def type_check(python, tmp_path, text):
    (tmp_path / "user.py").write_text(text)
    (tmp_path / "mypy.ini").write_text(f"[mypy]{MYPY}")
    words = [
        "--strict",
        "--python-executable",
        str(python),
        "--cache-dir",
        str(python.parent / "cache"),
        "user.py",
    ]
    return subprocess.run(
        [sys.executable, "-m", "mypy", *words], cwd=tmp_path, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.types
def test_a_file_that_uses_the_functions_is_well_typed(installed, tmp_path):
    pytest.importorskip("mypy")
    done = type_check(installed, tmp_path, USER)
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout


@pytest.mark.slow
@pytest.mark.types
def test_the_examples_as_they_are_written_are_well_typed(installed, tmp_path):
    pytest.importorskip("mypy")
    written = [line[4:] for line in replaykit.api.__doc__.splitlines() if line.startswith("    ")]
    for text in (
        "\n".join(["import replaykit", "", *written, ""]),
        (ROOT / "examples/forgetting.py").read_text(),
    ):
        done = type_check(installed, tmp_path, text)
        assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout


@pytest.mark.slow
@pytest.mark.types
def test_a_type_checker_finds_a_misspelt_keyword_and_a_wrong_type(installed, tmp_path):
    pytest.importorskip("mypy")
    told = type_check(installed, tmp_path, WRONG).stdout
    assert (
        'user.py:2: error: Unexpected keyword argument "methd" for "select"; did you mean "method"?'
        in told
    )
    assert (
        'user.py:3: error: Argument "turns" to "generate" has incompatible type "str"; expected "int"'
        in told
    )


def test_the_package_imports_nothing_until_a_name_is_used():
    code = "import sys, replaykit; dir(replaykit); print([n for n in ('pydantic', 'numpy', 'torch') if n in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "[]\n"
    )
    code = "import sys, replaykit; replaykit.select; print([n for n in ('torch', 'transformers', 'datasets') if n in sys.modules])"
    assert (
        json.loads(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        )
        == []
    )


def test_train_says_what_it_takes(tmp_path):
    with pytest.raises(CallError, match=r"what mix\(\) returns, not a list"):
        replaykit.train([], model="nano", folder=tmp_path)


def test_the_rows_of_a_dataset_keep_their_own_keys(tmp_path, monkeypatch):
    import datasets
    from huggingface_hub import constants

    given = [{"city": "Oslo"}, {"x": 1}, {"days": [{"n": 1}, {"of": "May"}]}]
    user = {"role": "user", "content": "q"}
    chats = [{"messages": [user, asking(arguments)]} for arguments in given]
    kept = datasets.Dataset.from_list(chats)
    assert kept[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]["x"] is None
    for rows in (kept, kept.to_iterable_dataset()):
        assert [arguments_of(record) for record in stream("rows", rows, "select")] == given
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: kept.to_iterable_dataset())
    assert [arguments_of(record) for record in stream("rows", "a/b", "select")] == given


def asking(arguments):
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


def arguments_of(record):
    return record.messages[1]["tool_calls"][0]["function"]["arguments"]


def test_a_list_of_files_and_rows_is_taken_whole(tmp_path):
    old = tmp_path / "old.jsonl"
    write_jsonl(old, POOL[:60])
    mixed = replaykit.mix(TARGET, [str(old), *POOL[60:90]], model="nano", ratio=0.3)
    assert set(mixed.result.sources) == {str(old), "select"}
    assert {record.source for record in mixed.replay} == {"select"}
    prompts = {record.prompt for record in mixed.replay}
    assert prompts & {row["prompt"] for row in POOL[:60]}
    assert prompts & {row["prompt"] for row in POOL[60:90]}
    for wrong, says in [
        ([str(old), old], "names .*old.jsonl twice"),
        (["select", *POOL[:3]], "'select' is no file"),
    ]:
        with pytest.raises(CallError, match=says):
            replaykit.mix(TARGET, wrong, model="nano", ratio=0.3)


def test_the_target_alone_is_a_mixture_too():
    assert replaykit.mix(TARGET, model="nano", ratio=0).result.replay_rows == 0
    with pytest.raises(CallError, match="give old rows as replay=, or ratio=0") as raised:
        replaykit.mix(TARGET, model="nano", ratio=0.1)
    assert "--" not in str(raised.value)


def test_the_package_lists_its_own_names_alone():
    assert set(dir(replaykit)) - set(replaykit.__all__) == {"__all__", "__doc__", "__version__"}
