"""The examples run as they are written, and the notebook is the script."""

import json
import re
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
sys.path.insert(0, str(ROOT / "tools"))


def test_there_are_examples():
    assert [script.name for script in SCRIPTS] == ["forgetting.py"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_notebook_is_the_script(script):
    from notebook import cells_of

    book = json.loads(script.with_suffix(".ipynb").read_text())
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in book["cells"]]
    assert len(cells) > 6
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", ())]
    (picture,) = [output["data"]["image/svg+xml"] for output in outputs if "data" in output]
    assert ElementTree.fromstring("".join(picture)).tag.endswith("svg")
    assert cells == cells_of(script.read_text()), "`python tools/notebook.py` writes it anew"


@pytest.mark.slow
def test_without_replay_the_old_skills_are_lost_and_with_it_they_stay(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(ROOT / "examples/forgetting.py"))
    base, alone, replayed = names["found"].models
    assert base.old.mean >= 0.95
    assert alone.old.mean <= 0.2
    assert replayed.old.mean >= 0.85
    assert max(alone.target.mean, replayed.target.mean) < 0.5 < base.target.mean
    assert replayed.share == pytest.approx(0.2, abs=0.01)
    shown = re.findall(r"old skills (█*) +(\d+)%", capsys.readouterr().out)
    assert [len(bar) == round(20 * int(percent) / 100) for bar, percent in shown] == [True] * 3
    page = Path("report.html").read_text()
    assert "<svg" in page
    assert "with replay" in page
    assert "src=" not in page.replace('src="data:', "")


def test_the_example_is_about_twenty_statements():
    script = (ROOT / "examples/forgetting.py").read_text()
    assert len(script.splitlines()) < 100
    assert "import matplotlib" not in script
