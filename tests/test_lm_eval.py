"""Tasks of lm-eval as skills: lm-eval asks and scores, on our engines, with local files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from labelled import classifier

import replaykit
from replaykit.checks.lm_eval_tasks import load_tasks, scored_by, task_records
from replaykit.data.record import Record, dialogue
from replaykit.engines import load_engine
from replaykit.errors import CallError, DataError, RecipeError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.recipe import evaluate
from replaykit.recipe.base import file_facts
from replaykit.recipe.load import load_recipe
from replaykit.steps import inputs
from replaykit.steps.evaluate.skills import measure

CAPITALS = {
    "France": ("Paris", ["Berlin", "Paris", "Rome"]),
    "Chile": ("Santiago", ["Santiago", "Lima", "Quito"]),
    "Japan": ("Tokyo", ["Kyoto", "Osaka", "Tokyo"]),
    "Norway": ("Bergen", ["Oslo", "Bergen", "Paris"]),  # wrong, so that an item is
}
ROWS = [
    {
        "question": f"What is the capital of {country}?",
        "answer": answer,
        "choices": choices,
        "gold": choices.index(answer),
    }
    for country, (answer, choices) in CAPITALS.items()
]
MEAN = {"aggregation": "mean", "higher_is_better": True}
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_target": "gold",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
}
WORDS = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match", **MEAN}],
}
# The form that only some answers have, as GSM8K's "####".
STRICT_AND_LENIENT = {
    **WORDS,
    "filter_list": [
        {
            "name": name,
            "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}],
        }
        for name, pattern in {"strict-match": r"^(S\w+)$", "flexible-extract": r"(\w+)"}.items()
    ],
}
LAST_WORD = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", **MEAN},
    ],
}


def write_task(folder: Path, name: str, task: dict[str, object], rows: object = ROWS) -> str:
    """The path of a local task, as a recipe names it, with its data beside it."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **task,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"lm_eval:{folder / name}.yaml"


def recipe_with(tmp_path: Path, old: dict[str, object], **more: object):
    path = tmp_path / "recipe.yaml"
    recipe = {"model": "nano", "out": str(tmp_path / "run"), "eval": {"old": old}, **more}
    path.write_text(yaml.safe_dump(recipe))
    return load_recipe(path)


# --- what a recipe says, without lm-eval ----------------------------------------------------------


def test_a_bare_task_is_scored_by_lm_eval():
    test = evaluate.Test(path="lm_eval:gsm8k", n=200)
    assert (test.score, test.metric, test.n) == ("lm_eval", None, 200)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"path": "lm_eval:gsm8k", "score": "exact"}, "scored by lm-eval, not exact"),
        ({"path": "lm_eval:gsm8k", "prompt": "q", "answer": "a"}, "prompt, answer: a task of"),
        ({"path": "rows.jsonl", "score": "lm_eval"}, "lm_eval:TASK"),
        ({"path": "rows.jsonl", "metric": "acc"}, "only a task of lm-eval has several"),
    ],
)
def test_what_does_not_go_with_a_task_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        evaluate.Test(**settings)


def test_a_controller_is_refused_beside_a_task(tmp_path):
    with pytest.raises(RecipeError, match="eval.old.gsm8k: train.controller tests rows while"):
        recipe_with(
            tmp_path,
            {"gsm8k": "lm_eval:gsm8k"},
            train={"controller": {"every": 5, "patience": None}},
        )


def test_a_text_classifier_is_asked_no_task(tmp_path):
    with pytest.raises(RecipeError, match="tasks of lm-eval ask language models"):
        recipe_with(tmp_path, {"gsm8k": "lm_eval:gsm8k"}, task="classification")


def test_a_task_is_known_by_its_files_and_lm_evals_version(tmp_path):
    name = write_task(tmp_path, "mine", {**CHOICE, "include": "base.yaml"})
    (tmp_path / "base.yaml").write_text("process_docs: !function code.process\n")
    (tmp_path / "code.py").write_text("def process(docs): return docs\n")
    seen = [file_facts(name)]
    assert seen[0]["lm_eval"] and file_facts("lm_eval:gsm8k").keys() == {"path", "lm_eval"}
    for file, text in {
        "mine.jsonl": "{}\n",
        "base.yaml": "process_docs: !function code.process\nnum_fewshot: 1\n",
        "code.py": "def process(docs): return docs.select([0])\n",
    }.items():
        (tmp_path / file).write_text(text)
        seen.append(file_facts(name))
    assert len({facts["content"] for facts in seen}) == 4


def test_a_task_is_no_row_to_train_on(tmp_path):
    with pytest.raises(DataError, match="no rows to train on"):
        list(replaykit.select("lm_eval:gsm8k", ROWS, n=1).rows)


# --- with lm-eval ---------------------------------------------------------------------------------


@pytest.fixture
def lm_eval_is_here():
    pytest.importorskip("lm_eval")


def items_of(folder: Path, skill: str) -> list[dict[str, object]]:
    lines = (folder / "items" / "items-base.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    return [item for item in items if item["skill"] == skill]


@pytest.mark.slow
def test_tasks_are_skills_item_by_item(tmp_path, capfd, lm_eval_is_here):
    tests = {
        "choice": write_task(tmp_path, "choice", CHOICE),
        "words": write_task(tmp_path, "words", STRICT_AND_LENIENT),
        "last": write_task(tmp_path, "last", LAST_WORD),
    }
    models = {"base": "nano", "same": "nano"}
    found = replaykit.evaluate(models, tests, folder=tmp_path / "out")
    assert capfd.readouterr().out == ""
    choice = items_of(tmp_path / "out", "choice")
    assert [item["score"] for item in choice] == [1, 1, 1, 0]
    assert [item["answer"] for item in choice] == ["Paris", "Santiago", "Tokyo", "Oslo"]
    words = items_of(tmp_path / "out", "words")
    assert [item["score"] for item in words] == [1, 1, 1, 0]
    assert [item["strict"] for item in words] == [0, 1, 0, 0]
    assert {item["finish"] for item in words} == {"stop"}
    # What the model would write by itself is asked of the engine.
    assert [item["score"] for item in items_of(tmp_path / "out", "last")] == [1, 1, 1, 0]
    assert found.models[0].scores["choice"].mean == 0.75
    assert found.models[0].strict["words"].mean == 0.25
    assert found.models[1].claims["words"].lost == 0
    assert {skill.score for skill in found.skills} == {"lm_eval"}
    assert any("exact_match,flexible-extract, strictly by" in note for note in found.notes)


@pytest.mark.slow
def test_n_takes_the_first_documents_and_the_tasks_of_a_group_take_turns(tmp_path, lm_eval_is_here):
    tasks = {}
    for name in ("one", "two"):
        rows = [{**row, "question": f"{name}: {row['question']}"} for row in ROWS]
        tasks |= load_tasks(write_task(tmp_path, name, CHOICE, rows))
    rows = task_records("lm_eval:both", tasks, skip=1, limit=3)
    assert [row.meta["line"] for row in rows] == ["two:0", "one:1", "two:1"]
    assert rows[0].prompt == "two: What is the capital of France?"
    assert rows[0].answer == "Paris"
    assert scored_by("lm_eval:both", tasks, None).score == ("acc", "none")


@pytest.mark.slow
def test_a_part_of_a_task_is_scored_as_in_the_whole(tmp_path, lm_eval_is_here):
    path = write_task(tmp_path, "choice", CHOICE)
    recipe = recipe_with(tmp_path, {"c": {"path": path, "skip": 2, "n": 2}})
    held = inputs.load_tests(recipe)
    engine = load_engine("nano")
    items = list(measure(engine, Chat.load("nano"), held.rows))
    assert [(item.row, item.score, item.answer) for item in items] == [
        (0, 1.0, "Tokyo"),
        (1, 0.0, "Oslo"),
    ]


@pytest.mark.slow
def test_a_group_of_ones_own_is_refused(tmp_path, lm_eval_is_here):
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["one", "two"]}))
    with pytest.raises(DataError, match="takes a group by its name alone"):
        load_tasks(f"lm_eval:{tmp_path / 'both.yaml'}")


@pytest.mark.slow
def test_no_row_of_training_may_hold_what_a_task_asks(tmp_path, lm_eval_is_here):
    path = write_task(tmp_path, "choice", CHOICE)
    recipe = recipe_with(tmp_path, {"capitals": path})
    clean = inputs.held_out(recipe, own=True)
    assert clean is not None

    def asked(question: str) -> Record:
        return Record(dialogue(question, "I do not know."), "target")

    assert clean.check(asked("What is the capital of Japan?")) is not None
    assert clean.check(asked("How many legs does a spider have?")) is None


@pytest.mark.slow
def test_a_metric_is_chosen_by_name_or_refused(tmp_path, lm_eval_is_here):
    path = write_task(tmp_path, "words", STRICT_AND_LENIENT)
    strict = {"path": path, "metric": "exact_match,strict-match"}
    assert (
        "exact_match,strict-match"
        in inputs.load_tests(recipe_with(tmp_path, {"w": strict})).notes[0]
    )
    wrong = {"path": path, "metric": "exact_match,strict"}
    with pytest.raises(DataError, match="did you mean 'exact_match,strict-match'"):
        inputs.load_tests(recipe_with(tmp_path, {"w": wrong}))
    corpus = {**WORDS, "metric_list": [{"metric": "bleu"}]}
    path = write_task(tmp_path, "corpus", corpus)
    with pytest.raises(DataError, match="say nothing of a single item"):
        inputs.load_tests(recipe_with(tmp_path, {"w": path}))


@pytest.mark.slow
def test_what_fails_in_lm_eval_says_what_to_do(tmp_path, lm_eval_is_here):
    def error_of(path: str) -> str:
        with pytest.raises(DataError) as raised:
            replaykit.evaluate({"base": "nano"}, {"x": path})
        return str(raised.value)

    assert "lm-eval has no task 'gsm9k'; did you mean 'gsm8k'?" in error_of("lm_eval:gsm9k")
    name = write_task(tmp_path, "gone", CHOICE)
    (tmp_path / "gone.jsonl").unlink()
    assert "check the network" in error_of(name)
    name = write_task(tmp_path, "broken", {**CHOICE, "doc_to_target": "{{nothing.at.all}}"})
    assert name in error_of(name)


@pytest.mark.slow
def test_a_task_with_a_missing_package_names_it(tmp_path, lm_eval_is_here):
    name = write_task(tmp_path, "mine", WORDS)
    (tmp_path / "code.py").write_text("import no_such_package\n\ndef process(doc, results): ...\n")
    file = Path(name.removeprefix("lm_eval:"))
    file.write_text(file.read_text() + "process_results: !function code.process\n")
    with pytest.raises(DataError, match=r"no_such_package.*pip install"):
        replaykit.evaluate({"base": "nano"}, {"x": name})


@pytest.mark.slow
def test_what_scoring_needs_is_said_before_the_model_is_asked(tmp_path, lm_eval_is_here):
    name = write_task(tmp_path, "mine", WORDS)
    (tmp_path / "code.py").write_text(
        "import nltk\n\n"
        "def process(doc, results):\n"
        "    nltk.data.find('tokenizers/no_such_data', paths=['here'])\n"
    )
    file = Path(name.removeprefix("lm_eval:"))
    file.write_text(file.read_text() + "process_results: !function code.process\n")
    said: list[str] = []

    def watch(what: str, *_: object) -> None:
        said.append(what)

    with pytest.raises(DataError, match=r"nltk\.downloader no_such_data"):
        replaykit.evaluate({"base": "nano"}, {"x": name}, watch=watch)
    assert not any("requests of lm-eval" in what for what in said)


@pytest.mark.slow
def test_a_document_that_is_too_long_has_no_score(tmp_path, lm_eval_is_here):
    rows = [*ROWS, {**ROWS[0], "question": "What is the capital of France? " * 400}]
    tests = {
        "choice": write_task(tmp_path, "choice", CHOICE, rows),
        "words": write_task(tmp_path, "words", WORDS, rows),
    }
    found = replaykit.evaluate({"base": "nano"}, tests)
    assert [(skill.n, skill.unscored) for skill in found.skills] == [(4, 1), (4, 1)]


@pytest.mark.slow
def test_another_data_file_makes_the_step_stale(tmp_path, lm_eval_is_here):
    path = write_task(tmp_path, "choice", CHOICE)
    recipe = recipe_with(tmp_path, {"capitals": path})
    before = inputs.test_facts(recipe)
    write_task(tmp_path, "choice", CHOICE, ROWS[:3])
    assert inputs.test_facts(recipe) != before


@pytest.mark.slow
def test_the_api_refuses_a_task_for_a_text_classifier(tmp_path):
    folder = str(classifier(tmp_path, "Bert", ["World", "Sports"]))
    with pytest.raises(CallError, match="tasks of lm-eval ask language models"):
        replaykit.evaluate({"base": folder}, {"x": "lm_eval:gsm8k"}, task="classification")


EXAMPLES = {
    "num_fewshot": 2,
    "fewshot_config": {"sampler": "first_n", "samples": [{**ROWS[0]}, {**ROWS[1]}]},
}
ASKED = {
    "choice": CHOICE,
    "described": {**CHOICE, "description": "Answer with one word."},
    "begun": {**CHOICE, "gen_prefix": "The answer is"},
    "examples": {**CHOICE, **EXAMPLES},
    "last": LAST_WORD,
    "words": WORDS,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKED)
def test_answers_and_likelihoods_are_those_of_lm_evals_own_model(tmp_path, name, lm_eval_is_here):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from replaykit.steps.evaluate.lm_eval_model import EngineLM

    task = write_task(tmp_path, name, ASKED[name]).removeprefix("lm_eval:")
    model = loading.load_model("nano")
    tokenizer = loading.load_tokenizer("nano")
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    ours = EngineLM(load_engine("nano", "transformers"), Chat.load("nano"), greedy=[name])
    logged = []
    for lm in (theirs, ours):
        found = simple_evaluate(
            lm, tasks=[task], apply_chat_template=True, bootstrap_iters=0, torch_random_seed=None
        )
        logged.append(found["samples"][name])
    assert len(logged[0]) == len(logged[1]) == len(ROWS)
    for expected, made in zip(*logged, strict=True):
        assert [made[metric] for metric in made["metrics"]] == pytest.approx(
            [expected[metric] for metric in expected["metrics"]], abs=1e-4
        )
        for theirs_of, ours_of in zip(expected["resps"], made["resps"], strict=True):
            if name == "words":
                assert ours_of == theirs_of
            else:
                assert ours_of[0][0] == pytest.approx(theirs_of[0][0], abs=1e-4)
                assert ours_of[0][1] == theirs_of[0][1]
