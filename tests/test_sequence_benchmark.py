"""The benchmark of several tasks in miniature, so that it cannot rot: all its arms, and that it goes on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow  # a miniature of a whole benchmark

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # its files import one another
FILE = Path(__file__).parents[1] / "benchmarks" / "sequence.py"


@pytest.fixture(scope="module")
def sequence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sequence_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_arm_leaves_its_figures_and_is_not_done_again(
    sequence: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = sequence.RESULTS.exists() and sequence.RESULTS.read_text()
    words = ["--quick", "--out", str(tmp_path)]
    sequence.main(words)
    text = capsys.readouterr().out
    arms = [*sequence.ARMS, sequence.JOINT]
    for arm in arms:
        assert f"\n| {arm} |" in text
        found = json.loads(sequence._place(tmp_path, 1, arm).read_text())
        assert "average accuracy" in found["figures"]
        assert len(found["matrix"][0]) == sequence.QUICK.tasks
    on_policy = json.loads(sequence._place(tmp_path, 1, "on-policy replay, 5 %").read_text())
    (answers,) = on_policy["answers"]
    assert answers["asked"] == sequence.QUICK.rows
    assert sequence.units(tmp_path, [1]) == []
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-1/*.json")}
    sequence.main(words)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-1/*.json")} == times
    # A miniature writes no table.
    assert (sequence.RESULTS.exists() and sequence.RESULTS.read_text()) == table


def test_no_task_is_tested_on_a_question_that_it_is_trained_on(sequence: ModuleType) -> None:
    for name in sequence.TASKS:
        trained = sequence.draw(name, 200, 1, held_out=False)
        tested = sequence.draw(name, sequence.WHOLE.tests, 1, held_out=True)
        assert not {task.prompt for task in trained} & {task.prompt for task in tested}
        assert len({task.answer for task in trained}) > len({task.answer for task in tested}) / 2
        # All sentences come, and a test takes each of them.
        from replaykit.checks.verify import is_right

        for said in sequence.SENTENCES:
            assert is_right(said.format(tested[0].answer), tested[0].answer, how="exact")
