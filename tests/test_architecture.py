"""The shape of the package: imports point one way, the command line is light, nothing dangerous is switched on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from replaykit.steps import pipeline

PACKAGE = Path(__file__).parent.parent / "replaykit"
# From the ground up; a module may import what stands before it (and its own folder).
ORDER = [
    "errors", "hashing", "locks", "devices", "mixing", "text", "changes", "result", "nano", "suites", "recipe", "data", "model", "runs", "written", "engines", "parallel", "checks",
    "steps", "suited", "starter", "api", "cli", "__main__",
]  # fmt: skip
# The same for what is under steps.
STEPS = [
    "inputs", "step", "asking", "stages", "probe", "select", "generate", "memory", "mix", "score", "rewrite", "augment", "describe",
    "evaluate", "train", "merge", "repair", "buffer", "matrix", "swept", "suites", "results", "public", "report",
    "peek", "diff", "push", "pipeline", "sweep", "status",
]  # fmt: skip
HEAVY = "torch transformers datasets vllm sklearn numpy scipy pydantic yaml huggingface_hub".split()
MODULES = sorted(PACKAGE.rglob("*.py"))
STEP_MODULES = sorted((PACKAGE / "steps").rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def step_of(path: Path) -> str:
    """The module or package under steps that a module is, or is in."""
    return path.relative_to(PACKAGE / "steps").parts[0].removesuffix(".py")


def imported(path: Path, below: str = "replaykit") -> set[str]:
    """The modules and packages below this one that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.module == below:
            found |= {alias.name for alias in node.names}
        elif node.module.startswith(f"{below}."):
            found.add(node.module.removeprefix(f"{below}.").split(".")[0])
    return found


def test_every_module_has_its_place_in_the_order():
    assert len(MODULES) > 25
    assert {part_of(path) for path in MODULES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_the_list(path):
    own = part_of(path)
    parts = imported(path) & set(ORDER)
    if own == "__init__":  # of the package: what it has is imported when it is used
        assert parts == {"api"}
        return
    later = {part for part in parts if ORDER.index(part) > ORDER.index(own)}
    assert not later, f"{path.name} imports {later}, which come later"


def test_every_step_has_its_place_in_the_order():
    assert {step_of(path) for path in STEP_MODULES} - {"__init__"} == set(STEPS)


@pytest.mark.parametrize("path", STEP_MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_step_imports_only_those_before_it(path):
    if step_of(path) == "__init__":
        assert imported(path, "replaykit.steps") == set()
        return
    later = {
        step
        for step in imported(path, "replaykit.steps") & set(STEPS)
        if STEPS.index(step) > STEPS.index(step_of(path))
    }
    assert not later, f"{path.name} imports {later}, which come later"


@pytest.mark.parametrize("package", sorted(pipeline.STEPS.values()))
def test_every_step_has_run_and_all_but_the_last_two_todos(package):
    tree = ast.parse((PACKAGE / "steps" / package / "step.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    wanted = ["run"] if package in ("report", "push") else ["todos", "run"]
    assert [name for name in functions if not name.startswith("_")][: len(wanted)] == wanted
    for name in wanted:
        assert [argument.arg for argument in functions[name].args.args][:2] == ["recipe", "context"]


def test_importing_the_package_imports_nothing_else():
    code = "import sys, replaykit; print([name for name in sys.modules if name.startswith('replaykit.')])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )


def test_help_imports_nothing_heavy():
    code = f"import replaykit.cli, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )


def test_help_imports_little_more_than_typer_does():
    count = "import sys; before = len(sys.modules); import {}; print(len(sys.modules) - before)"
    typer, ours = (
        int(
            subprocess.run(
                [sys.executable, "-c", count.format(name)], capture_output=True, text=True
            ).stdout
        )
        for name in ("typer", "replaykit.cli")
    )
    assert ours <= typer + 20


@pytest.mark.slow
def test_no_function_is_longer_than_seventy_lines():
    long = [
        f"{path.name}:{node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 70
    ]
    assert long == []


def test_remote_code_and_pickled_weights_are_never_allowed():
    for path in MODULES:
        text = path.read_text()
        assert "trust_remote_code=True" not in text, path
        # What reads a checkpoint of its own reads tensors alone.
        assert text.count("torch.load(") == text.count("weights_only=True"), path
        assert "yaml.load(" not in text or "SafeLoader" in text, path
