"""The shape of the package: imports point one way, the command line is light, nothing dangerous is switched on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "replaykit"
# From the ground up; a module may import what stands before it (and its own folder).
ORDER = [
    "errors", "records", "settings", "training_settings", "recipe", "models", "head", "template", "chat", "runs", "text",
    "engines", "crew", "nano", "checks", "sources", "mix", "evaluate", "train", "report", "publish", "starter", "pipeline",
    "api", "cli", "__main__",
]  # fmt: skip
HEAVY = [
    "torch",
    "transformers",
    "datasets",
    "vllm",
    "sklearn",
    "numpy",
    "scipy",
    "pydantic",
    "yaml",
    "huggingface_hub",
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of replaykit that a module imports, wherever in it the import stands."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "replaykit"
        ):
            names = (
                [node.module.split(".")[1]]
                if "." in node.module
                else [alias.name for alias in node.names]
            )
            parts |= {name for name in names if name in ORDER}
    return parts


def test_every_module_has_its_place_in_the_order():
    assert len(MODULES) > 25
    assert {part_of(path) for path in MODULES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_the_list(path):
    own = part_of(path)
    if own == "__init__":  # of the package: what it has is imported when it is used
        assert imported_parts(path) == {"api"}
        return
    later = {part for part in imported_parts(path) if ORDER.index(part) > ORDER.index(own)}
    assert not later, f"{path.name} imports {later}, which come later"


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


def test_no_function_is_longer_than_eighty_lines():
    long = [
        f"{path.name}:{node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 80
    ]
    assert long == []


def test_remote_code_and_pickled_weights_are_never_allowed():
    for path in MODULES:
        text = path.read_text()
        assert "trust_remote_code=True" not in text, path
        assert "torch.load" not in text, path
        assert "yaml.load(" not in text or "SafeLoader" in text, path
