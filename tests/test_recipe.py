"""The recipe is strict: all that cannot be is refused at once, with what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from replaykit.errors import RecipeError
from replaykit.recipe import Recipe, load_recipe, need

RECIPES = Path(__file__).parent.parent / "recipes"
Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The recipe in this text, with these changes."""

    def loaded(text: str, **changes: Any) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, {key.replace("__", "."): value for key, value in changes.items()})

    return loaded


@pytest.fixture
def problems(load: Load) -> Callable[..., list[str]]:
    """What is wrong with the recipe in this text."""

    def found(text: str, **changes: Any) -> list[str]:
        with pytest.raises(RecipeError) as raised:
            load(text, **changes)
        return raised.value.problems

    return found


Problems = Callable[..., list[str]]


# --- every recipe here ----------------------------------------------------------------------------


def test_every_recipe_of_the_repository_loads() -> None:
    found = sorted(RECIPES.rglob("*.y*ml"))
    assert found, f"no recipe under {RECIPES}"
    for path in found:
        recipe = load_recipe(path)
        assert recipe.model, path
        assert recipe.target or recipe.describe, path


def test_an_empty_file_is_a_recipe_of_defaults(load: Load) -> None:
    for text in ("", "\n", "# only a comment\n", "---\n", "select:\ntarget: null\n"):
        assert load(text) == Recipe() == load_recipe()


# --- unknown keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("targt: x", "targt: unknown key; did you mean 'target'?"),
        ("mix: {ration: 0.1}", "mix.ration: unknown key; did you mean 'ratio'?"),
        ("train: {learning-rate: 0.1}", "train.learning-rate: unknown key; did you mean 'learning_rate'?"),
        ("target: {path: x, promt: q}", "target.promt: unknown key; did you mean 'prompt'?"),
        ("select: {pool: {path: x, splitt: q}}", "select.pool.splitt: unknown key; did you mean 'split'?"),
        ("arms: {replay: {sorces: [select]}}", "arms.replay.sorces: unknown key; did you mean 'sources'?"),
        ("eval: {target: {path: x, scor: exact}}", "eval.target.scor: unknown key; did you mean 'score'?"),
        ("eval: {old: {chat: {path: x, maxtokens: 9}}}", "eval.old.chat.maxtokens: unknown key; did you mean 'max_tokens'?"),
        ("eval: {od: {}}", "eval.od: unknown key; did you mean 'old'?"),
        ("generate: {zebra: 1}", "generate.zebra: unknown key"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_the_right_one(text: str, problem: str, problems: Problems) -> None:
    assert problems(text) == [problem]


def test_an_unknown_change_names_the_right_one_too(problems: Problems) -> None:
    assert problems("", mix__ration=0.1) == ["mix.ration: unknown key; did you mean 'ratio'?"]
    with pytest.raises(
        RecipeError,
        match="the command line has 1 problem\n  modl: unknown key; did you mean 'model'",
    ):
        load_recipe(None, {"modl": "nano"})


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: a/b\nmodle: nano\nseed: -1\ntarget: {prompt: q}\nmix: {ratio: 1, unit: words}\n"
        "arms: {base: {}, a b: {ratio: 2}}\ntrain: {epochs: 0}\neval: {old: {chat: {score: good}}}\n"
    )
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, {"push.repository": "me/x"})
    assert sorted(line.partition(":")[0] for line in raised.value.problems) == [
        "arms.a b", "arms.a b.ratio", "arms.base", "eval.old.chat.path", "eval.old.chat.score", "mix.ratio", "mix.unit",
        "modle", "name", "push.repository", "seed", "target.path", "train.epochs",
    ]  # fmt: skip
    assert str(raised.value).startswith(f"{path} has 13 problems\n  ")
    assert str(raised.value).splitlines()[1:] == [f"  {line}" for line in raised.value.problems]


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: -1", "seed: must be greater than or equal to 0 (got -1)"),
        ("seed: one", "seed: must be a valid integer (got 'one')"),
        ("seed: 1.5", "seed: must be a valid integer (got 1.5)"),
        ("seed: true", "seed: must be a valid integer (got True)"),
        ("name: 7", "name: must be a valid string (got 7)"),
        ("mix: {ratio: 1}", "mix.ratio: must be less than 1 (got 1)"),
        ("mix: {ratio: -0.1}", "mix.ratio: must be greater than or equal to 0 (got -0.1)"),
        ("mix: {ratio: 5%}", "mix.ratio: must be a valid number (got '5%')"),
        ("mix: {ratio: .nan}", "mix.ratio: must be a finite number (got nan)"),
        ("mix: {unit: words}", "mix.unit: must be 'rows', 'tokens' or 'loss_tokens' (got 'words')"),
        ("mix: {sources: [dreams]}", "mix.sources.dreams: must be 'select', 'generate', 'buffer', or rows of your own such as old.jsonl or ./old (got 'dreams')"),
        ("mix: 3", "mix: must be a valid dictionary or instance of Mix (got 3)"),
        ("arms: {x: {ratio: 1.0}}", "arms.x.ratio: must be less than 1 (got 1.0)"),
        ("generate: {n: 0}", "generate.n: must be greater than 0 (got 0)"),
        ("generate: {temperature: 0}", "generate.temperature: must be greater than 0 (got 0), or must be 'model' (got 0)"),
        ("generate: {top_p: 1.01}", "generate.top_p: must be less than or equal to 1 (got 1.01)"),
        ("generate: {answer_temperature: -1}", "generate.answer_temperature: must be greater than or equal to 0 (got -1), "
         "or must be 'model' (got -1)"),
        ("rewrite: {max_edit: 0}", "rewrite.max_edit: must be greater than 0 (got 0)"),
        ("train: {learning_rate: .inf}", "train.learning_rate: must be a finite number (got inf)"),
        ("train: {warmup: 1}", "train.warmup: must be less than 1 (got 1)"),
        ("select: {n: 5}", "select.pool: Field required"),
        ("generate: {checks: {perplexity: [100, 1]}}", "generate.checks.perplexity: the least comes first, then the most"),
        ("train: {controller: {max_ratio: 1}}", "train.controller.max_ratio: must be less than 1 (got 1)"),
        ("target: {path: x, prompt: q}", "target: prompt and answer are given together: the names of the two columns"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_or_of_the_wrong_type_says_what_it_may_be(
    text: str, problem: str, problems: Problems
) -> None:
    assert problems(text) == [problem]


def test_the_ends_of_ranges_belong_to_them(load: Load) -> None:
    recipe = load(
        "seed: 0\nmix: {ratio: 0}\ngenerate: {answer_temperature: 0, top_p: 1}\nrewrite: {max_edit: 1}\n"
    )
    assert (recipe.seed, recipe.mix.ratio) == (0, 0)


@pytest.mark.parametrize("written", ["2e-4", "2E-4", "1e5", "2.5e4", "3.e2", "1.0e5"])
def test_a_number_that_yaml_reads_as_text_shows_how_to_write_it(
    written: str, load: Load, problems: Problems
) -> None:
    [problem] = problems(f"train: {{learning_rate: {written}}}")
    assert f"YAML reads {written} as text, write " in problem
    advice = problem.rpartition(" ")[2]
    assert load(f"train: {{learning_rate: {advice}}}").train.learning_rate == float(written)


@pytest.mark.parametrize("word", ["no", "yes", "on", "off"])
def test_a_bare_word_that_yaml_reads_as_true_or_false_is_no_name(
    word: str, load: Load, problems: Problems
) -> None:
    hint = "YAML reads the bare words yes, no, on and off as true and false; put the name in quotes"
    assert problems(f"arms: {{{word}: {{ratio: 0}}}}") == [f"arms: {hint}"]
    assert problems(f"mix: {{{word}: 1}}") == [f"mix: {hint}"]
    assert problems(f"{word}: 1") == [hint]
    assert list(load(f"arms: {{'{word}': {{ratio: 0}}}}").arms) == [word]


@pytest.mark.parametrize("name", ["a/b", "../up", ".hidden", "-x", "two words", "größe", "", "x\n"])
def test_a_name_that_is_no_folder_is_refused(name: str, problems: Problems) -> None:
    text = yaml.safe_dump({"name": name, "arms": {name: {}}})
    said = f"'{name}' names a folder: letters, digits, '.', '_' and '-' only"
    assert problems(text) == [f"name: {said}", f"arms.{name}: {said}"]


def test_no_arm_may_bear_the_base_models_name(problems: Problems) -> None:
    assert problems("arms: {base: {}}") == [
        "arms.base: that name is the untrained model's; call it otherwise"
    ]


# --- what cannot combine --------------------------------------------------------------------------


def test_what_cannot_stand_beside_a_controller_is_named_all_at_once(
    problems: Problems, load: Load
) -> None:
    moves = "train.controller moves the share itself; leave one of them out"
    text = """
mix: {schedule: {to: 0.3}, min_rows: {json: 5}}
arms: {a: {schedule: {to: 0.2}}, b: {ratio: 0}}
train: {controller: {}}
"""
    assert problems(text) == [
        f"mix.schedule: {moves}",
        f"arms.a.schedule: {moves}",
        "mix.min_rows: train.controller draws replay as it goes and keeps no floors; leave one out",
        "train.controller: it tests old skills; name their held-out rows in eval.old",
        "train.controller.patience: it needs eval.target, held-out rows of the target; or say null",
    ]
    assert load("train: {controller: {patience: null}}\neval: {old: {json: x}}\n").train.controller


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("{}", None),
        ("{patience: 2, every: 10}", None),
        ("{patience: null}", "it tests old skills"),
        ("{by_skill: true}", "it tests old skills"),
    ],
)
def test_patience_needs_no_old_skills_but_what_acts_on_them_does(
    settings: str, problem: str | None, problems: Problems, load: Load
) -> None:
    text = f"train: {{controller: {settings}}}\neval: {{target: x}}\n"
    if problem is None:
        assert load(text).train.controller
        return
    [said] = problems(text)
    assert problem in said


@pytest.mark.parametrize(
    ("remedies", "says"),
    [
        ("{distill: {}}", "distill cannot do without replay; give the arm `remedies: {}`"),
        ("{ewc: {}, project: {}}", "ewc and project cannot do without replay; give the arm `remedies: {}`"),
        ("{distill: {}, dft: true, stm: {share: 0.1}}",
         "distill cannot do without replay; give the arm `remedies: {stm: {share: 0.1}, dft: true}`"),
    ],
)  # fmt: skip
def test_an_arm_without_replay_is_told_which_remedies_it_can_have(
    remedies: str, says: str, problems: Problems, load: Load
) -> None:
    text = f"train: {{remedies: {remedies}}}\narms: {{replay: {{}}, none: {{ratio: 0}}}}\n"
    [problem] = problems(text)
    assert (
        problem == f"arms.none: its ratio is 0, and {says}, which it has instead of those of train"
    )
    written = problem.split("`")[1]
    recipe = load(text.replace("ratio: 0}", f"ratio: 0, {written}}}"))
    assert recipe.training("none").remedies.need_replay == []
    assert recipe.training("replay") == recipe.train


def test_ewc_with_old_data_of_its_own_needs_no_replay_nor_does_an_arm_whose_share_grows(
    load: Load,
) -> None:
    recipe = load("train: {remedies: {ewc: {old: x.jsonl}}}\narms: {none: {ratio: 0}}\n")
    assert recipe.training("none").remedies.need_replay == []
    recipe = load(
        "train: {remedies: {distill: {}}}\narms: {grows: {ratio: 0, schedule: {to: 0.3}}}\n"
    )
    assert recipe.training("grows").remedies.need_replay == ["distill"]
    assert recipe.mixture("grows").schedule is not None


def test_an_arm_of_no_remedies_has_none_and_a_controller_switches_none_there(load: Load) -> None:
    recipe = load("""
train: {remedies: {distill: {}, stm: {}}, controller: {remedy: distill, every: 7}}
arms: {plain: {remedies: {}}, both: {}}
eval: {target: t.jsonl, old: {json: j.jsonl}}
""")
    plain, both = recipe.training("plain").controller, recipe.training("both").controller
    assert recipe.training("plain").remedies.model_dump(exclude_defaults=True) == {}
    assert plain is not None
    assert both is not None
    assert (plain.remedy, plain.every, both.remedy) == (None, 7, "distill")


@pytest.mark.parametrize(
    ("train", "named"),
    [
        ("{rank: 8}", ["train.rank"]),
        ("{alpha: 8, rank: 8, method: full}", ["train.rank", "train.alpha"]),
        ("{rank: 8, method: lora, peft: {peft_type: IA3}}", ["train.rank"]),
        ("{min_rate: 0.1, schedule: constant}", ["train.min_rate"]),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(
    train: str, named: list[str], problems: Problems
) -> None:
    found = problems(f"train: {train}\narms: {{a: {{ratio: 0}}, b: {{remedies: {{dft: true}}}}}}")
    assert [line.partition(":")[0] for line in found] == named
    assert all("leave" in line for line in found)


def test_a_setting_that_does_something_or_that_nobody_gave_is_not(load: Load) -> None:
    for train in (
        "{rank: 8, alpha: 8, method: dora}",
        "{min_rate: 0.1, schedule: linear}",
        "{schedule: constant, method: full}",
        "{peft: {peft_type: IA3}}",
    ):
        text = f"train: {train}\narms: {{a: {{remedies: {{dft: true}}}}}}"
        recipe = load(text)
        assert recipe.training("a").remedies.dft
        assert load(recipe.to_yaml()) == load(yaml.safe_dump(recipe.model_dump())) == recipe


def test_a_remedy_that_an_arm_cannot_have_is_reported_with_the_arms_name(
    problems: Problems,
) -> None:
    arms = "{a: {remedies: {distill: {teacher: adapter-off}}}, b: {remedies: {distill: {teacher: adapter-off}}}}"
    found = problems(f"arms: {arms}")
    assert [line.partition(":")[0] for line in found] == [
        f"arms.{arm}.remedies.distill.teacher" for arm in "ab"
    ]


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ("method: lora, peft: {peft_type: IA3}", "its form for adapters is that of lora, not IA3"),
        (
            "peft: {peft_type: LORA, modules_to_save: [lm_head]}",
            "it does not hold what peft.modules_to_save names",
        ),
    ],
)
@pytest.mark.parametrize("remedy", ["ewc", "l2sp"])
def test_ewc_and_l2sp_know_lora_by_whichever_name(
    remedy: str, train: str, says: str, problems: Problems, load: Load
) -> None:
    [problem] = problems(f"train: {{{train}, remedies: {{{remedy}: {{}}}}}}")
    assert problem.startswith(f"train: remedies.{remedy}: {says}")
    assert load(f"train: {{peft: {{peft_type: LORA}}, remedies: {{{remedy}: {{}}}}}}").train.adapter


# --- YAML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2\n", "'seed' is given twice in \"<unicode string>\", line 2"),
        (
            "mix:\n  ratio: 0.1\n  unit: rows\n  ratio: 0.2\n",
            "'ratio' is given twice in \"<unicode string>\", line 4",
        ),
        ("arms: {a: {}, a: {}}", "'a' is given twice"),
        ("- name: x\n", "a recipe is lines of `key: value`, this is a list"),
        ("just words", "a recipe is lines of `key: value`, this is a str"),
        ("? [a, b]\n: 1\n", "a key is one word"),
        ("? {a: b}\n: 1\n", "a key is one word"),
        ("arms:\n  a: &a {ratio: 0}\n  b: {<<: *a}\n", "`<<` is not read here, write the keys out"),
        ("name: [\n", "while parsing a flow node"),
        ("name: x\n\tmix: {}\n", "found character '\\t' that cannot start any token"),
        ("name: 2024-02-31\n", "day is out of range for month"),
        ("name: a\x00b\n", "special characters are not allowed"),
    ],
)
def test_yaml_that_is_no_recipe_says_why(text: str, said: str, problems: Problems) -> None:
    [problem] = problems(text)
    assert said in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.mkdir [made]", "!!python/name:os.system ''", "!!python/tuple [a]"],
)
def test_python_tags_are_refused_and_nothing_runs(
    tag: str, problems: Problems, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [problem] = problems(f"name: {tag}\n")
    assert problem.startswith(
        "could not determine a constructor for the tag 'tag:yaml.org,2002:python/"
    )
    assert not Path("made").exists()


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError,
        match=r"nowhere\.yaml has 1 problem\n  no such file; `replaykit init` writes one",
    ):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: Zürich".encode("latin-1"))
    with pytest.raises(RecipeError, match="'utf-8' codec can't decode"):
        load_recipe(tmp_path / "latin.yaml")


# --- shorthands and changes -----------------------------------------------------------------------


def test_a_bare_path_means_its_path(load: Load) -> None:
    short = load(
        "target: t.jsonl\nselect: {pool: p.csv}\neval: {target: e.json, old: {chat: c.jsonl}}\n"
    )
    long = load(
        "target: {path: t.jsonl}\nselect: {pool: {path: p.csv}}\n"
        "eval: {target: {path: e.json}, old: {chat: {path: c.jsonl}}}\n"
    )
    assert short == long
    assert short.eval.old["chat"].score == "exact"


def test_a_date_is_a_date_with_and_without_quotes(load: Load, problems: Problems) -> None:
    assert load("chat: {date: 2025-06-01}") == load("chat: {date: '2025-06-01'}")
    assert problems("chat: {date: 2025}") == ["chat.date: must be a valid string (got 2025)"]
    [problem] = problems("chat: {date: 2025-06-01 12:00:00}")
    assert problem.startswith("chat.date: ")


def test_changes_win_over_the_file_and_leave_the_rest(load: Load) -> None:
    text = "seed: 3\nmix: {ratio: 0.1, unit: rows}\n"
    recipe = load(text, mix__ratio=0.2, train__epochs=2, model="nano")
    assert (recipe.mix.ratio, recipe.mix.unit, recipe.seed) == (0.2, "rows", 3)
    assert (recipe.train.epochs, recipe.model) == (2, "nano")
    assert load(text).mix.ratio == 0.1


def test_a_change_reaches_into_a_bare_path(load: Load) -> None:
    recipe = load(
        "target: t.jsonl\nselect: {pool: p.jsonl, n: 5}\n",
        target__n=7,
        select__pool__path="other.jsonl",
    )
    assert recipe.target is not None
    assert recipe.select is not None
    assert (recipe.target.path, recipe.target.n) == ("t.jsonl", 7)
    assert (recipe.select.pool.path, recipe.select.n) == ("other.jsonl", 5)
    assert (
        load("target: t.jsonl", target__path="new.jsonl").target == load("target: new.jsonl").target
    )


def test_a_change_makes_the_section_that_is_not_there(load: Load) -> None:
    for text in ("", "generate:\n", "generate: {}\n"):
        assert load(text, generate__n=5) == load("generate: {n: 5}")


def test_a_change_does_not_hide_a_section_that_is_wrong(problems: Problems) -> None:
    assert problems("mix: 3", mix__ratio=0.1) == [
        "mix: must be a valid dictionary or instance of Mix (got 3)"
    ]


def test_a_change_out_of_range_is_reported_with_the_files_own_problems(problems: Problems) -> None:
    assert problems("seed: -1", mix__ratio=1.5) == [
        "seed: must be greater than or equal to 0 (got -1)",
        "mix.ratio: must be less than 1 (got 1.5)",
    ]


# --- a loaded recipe ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("out: /data/x\nname: n\nmodel: m", "/data/x"),
        ("name: n\nmodel: m", "runs/n"),
        ("model: meta-llama/Llama-3.1-8B", "runs/Llama-3.1-8B"),
        ("model: /models/my model/", "runs/my-model"),
        ("model: .", "runs/run"),
        ("model: ..", "runs/run"),
        ("", "runs/run"),
    ],
)
def test_the_folder_is_out_or_named_after_the_run_or_the_model(
    text: str, folder: str, load: Load
) -> None:
    assert load(text).folder == Path(folder)


def test_the_sources_of_replay_are_the_sections_that_make_it(load: Load) -> None:
    assert load("").replay_sources == []
    assert load("generate: {}").replay_sources == ["generate"]
    assert load("generate: {}\nselect: {pool: x}").replay_sources == ["select", "generate"]


def test_a_recipe_is_frozen(load: Load) -> None:
    recipe = load("mix: {ratio: 0.1}")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 2
    with pytest.raises(ValidationError, match="frozen"):
        recipe.mix.ratio = 0.2


def test_what_is_dumped_is_read_back(load: Load) -> None:
    recipe = load(
        "name: x\ntarget: t.jsonl\nselect: {pool: p}\narms: {a: {ratio: 0}}\neval: {old: {chat: c.jsonl}}\n"
    )
    assert load(yaml.safe_dump(recipe.model_dump())) == recipe


def test_a_step_names_all_the_keys_that_it_lacks_and_how_to_give_them(load: Load) -> None:
    with pytest.raises(RecipeError) as raised:
        need(load(""), "select", "model", "target", "select", "eval", "push.repo")
    assert str(raised.value).splitlines() == [
        "the recipe has 5 problems",
        "  select needs model: an alias such as llama3, a Hub id or a folder (--model)",
        "  select needs target: {path: my_task.jsonl} (--target)",
        "  select needs select: {pool: old.jsonl} (--pool)",
        "  select needs eval: {target: ..., old: {skill: ...}}, the held-out rows",
        "  select needs push: {repo: me/my-replay} (the first argument)",
    ]


def test_a_step_that_has_what_it_needs_is_content(load: Load) -> None:
    recipe = load(
        "model: nano\ntarget: t\nselect: {pool: p}\neval: {target: e}\npush: {repo: me/x}\n"
    )
    need(recipe, "run", "model", "target", "select", "eval", "push.repo")
    with pytest.raises(RecipeError, match="the recipe has 1 problem\n  eval needs model"):
        need(load("target: t"), "eval", "model", "target")


def test_a_source_in_the_list_that_is_no_name_is_a_problem_of_the_recipe(
    problems: Problems,
) -> None:
    for listed in ("[{select: 1}]", "[[select]]"):
        assert problems(f"mix: {{sources: {listed}}}") == [
            "mix.sources: must be a valid dictionary"
        ]


def test_the_recipe_is_written_as_the_user_would_write_it(load: Load) -> None:
    schedule = "mix:\n  schedule:\n    shape: steps\n    at:\n      0.5: 0.1\n"
    text = f"model: größe\ntarget:\n  path: t.jsonl\n{schedule}"
    assert load("target: t.jsonl\nseed: 1\nmodel: größe\n" + schedule).to_yaml() == text
    for path in RECIPES.rglob("*.y*ml"):
        recipe = load_recipe(path)
        assert load(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("key", "place"),
    [("eval.old.capital.n", "capital"), ("eval.old.n.n", "n"), ("eval.old.path.n", "path")],
)
def test_a_change_reaches_into_the_short_form_of_every_section(tmp_path, key, place):
    path = tmp_path / "r.yaml"
    path.write_text(f"eval: {{target: test.jsonl, old: {{{place}: cap.jsonl}}}}\n")
    recipe = load_recipe(path, {key: 5, "eval.target.skip": 2})
    test = recipe.eval.old[place]
    assert (test.path, test.n) == ("cap.jsonl", 5)
    assert recipe.eval.target is not None
    assert (recipe.eval.target.path, recipe.eval.target.skip) == ("test.jsonl", 2)


def test_a_recipe_made_in_python_says_what_is_wrong_as_a_file_does():
    with pytest.raises(RecipeError) as raised:
        Recipe(modl="nano", seed=-1)
    assert str(raised.value).startswith("Recipe() has 2 problems")
    assert "modl: unknown key; did you mean 'model'?" in str(raised.value)
    with pytest.raises(ValidationError):  # as pydantic's own functions do
        Recipe.model_validate({"modl": "nano"})
