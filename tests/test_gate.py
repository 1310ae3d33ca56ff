"""Models that were trained anywhere are measured, and the exit code says what became of the old skills."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from commands import type_in

from replaykit.model import loading
from replaykit.nano import world

SKILLS = ("capital", "reverse")
N = 30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out rows of two skills; nano as it is, and one whose last layer is noise."""
    folder = tmp_path_factory.mktemp("gate")
    for skill in SKILLS:
        tasks = world.draw(skill, N, seed=1, held_out=True)
        tiny.write_tasks(folder / f"{skill}.jsonl", tasks)
    model = loading.load_model("nano")
    for name in ("same", "broken"):
        model.save_pretrained(folder / name)
        loading.load_tokenizer("nano").save_pretrained(folder / name)
        for parameter in model.model.layers[-1].parameters():
            parameter.data.mul_(-1.5)
    return folder


def typed(place: Path, command: str, *tuned: str) -> list[object]:
    words: list[object] = [command, "--base", "nano", "--engine", "transformers"]
    for skill in SKILLS:
        words += ["--old", f"{skill}={place / skill}.jsonl"]
    for model in tuned:
        words += ["--tuned", model]
    return words


@pytest.mark.slow
def test_models_trained_anywhere_are_measured_without_a_recipe(here: Path, place: Path) -> None:
    words = typed(place, "eval", str(place / "same"), f"bad={place / 'broken'}")
    found = json.loads(type_in(*words, "--json"))
    assert [model["model"] for model in found["models"]] == ["base", "same", "bad"]
    assert found["models"][1]["scores"] == found["models"][0]["scores"]
    assert found["models"][2]["claims"]["capital"]["state"] == "lost"


def test_two_models_of_one_name_are_told_apart_or_refused(here: Path, place: Path) -> None:
    words = typed(place, "eval", str(place / "same"), str(place / "same"))
    assert "there is a model same already; call it --tuned NAME=" in type_in(*words, code=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "margin", "code", "words"),
    [
        ("same", "0.5", 0, "kept: every old skill's drop is below the margin"),
        ("same", "0.02", 3, "cannot tell: these rows show neither"),
        ("broken", "0.02", 2, "lost: a loss of an old skill is measurable"),
    ],
)
def test_the_exit_code_says_what_became_of_the_old_skills(
    model: str, margin: str, code: int, words: str, here: Path, place: Path
) -> None:
    command = [*typed(place, "gate", str(place / model)), "--margin", margin]
    type_in(*command, "--summary", "summary.md", code=code)
    (evidence,) = here.glob("runs/*/eval/gate.json")
    found = json.loads(evidence.read_text())
    assert (found["code"], found["model"]) == (code, model)
    assert set(found["items"]) == {"items-base.jsonl", f"items-{model}.jsonl"}
    assert found["inputs"]["tuned"][model]["weights"] is not None
    summary = Path("summary.md").read_text()
    assert words in summary
    assert "| capital |" in summary
    type_in(*command, "--evidence", evidence, code=code)  # over our own


def test_a_model_that_was_not_measured_is_named(here: Path, place: Path) -> None:
    words = [*typed(place, "gate", str(place / "same")), "--judge", "sane"]
    assert "--judge sane: there is same" in type_in(*words, code=1)


@pytest.mark.slow
def test_an_adapter_is_measured_as_the_model_that_it_makes(here: Path, place: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapter = get_peft_model(loading.load_model("nano"), LoraConfig(target_modules=["q_proj"]))
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 5.0)
    adapter.save_pretrained(here / "lora")
    found = json.loads(type_in(*typed(place, "eval", "lora"), "--json"))
    assert found["models"][1]["claims"]["capital"]["state"] == "lost"
    assert not list(here.glob("runs/*/eval/merged"))
    shutil.rmtree(here / "lora")


# --- the GitHub Action ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "given", "code", "ends"),
    [
        ("same", {"margin": "0.5"}, 0, 0),
        ("broken", {}, 2, 2),
        ("same", {}, 3, 3),
        ("same", {"undecided": "pass"}, 3, 0),
        ("gone", {}, 1, 1),
    ],
)
def test_the_action_ends_as_the_gate_does_and_writes_on_the_runs_page(
    model: str, given: dict[str, str], code: int, ends: int, here: Path, place: Path
) -> None:
    action = yaml.safe_load((Path(__file__).parent.parent / "action.yml").read_text())
    (step,) = (step for step in action["runs"]["steps"] if step.get("id") == "gate")
    values = {name: found["default"] for name, found in action["inputs"].items()}
    values |= {
        "base": "nano",
        "tuned": f"{place / model}\n",
        "old": "".join(f"{skill}={place / skill}.jsonl\n" for skill in SKILLS),
    }
    values |= given
    environment = {
        name: values[text.removeprefix("${{ inputs.").removesuffix(" }}")]
        for name, text in step["env"].items()
    }
    files = {"GITHUB_STEP_SUMMARY": "page.md", "GITHUB_OUTPUT": "outputs.txt"}
    here_first = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
        env=os.environ | environment | files | {"PATH": here_first},
        capture_output=True,
        text=True,
    )
    assert done.returncode == ends, done.stderr
    assert Path("outputs.txt").read_text() == f"code={code}\n"
    assert Path("page.md").exists() == (code != 1)
