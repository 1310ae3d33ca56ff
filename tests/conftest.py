"""What several test files use: the embedded model, loaded once, and an empty working directory."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from replaykit.engines import Engine, load_engine
from replaykit.errors import EngineError
from replaykit.model.chat import Chat


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what starts vLLM: its engine, or its server."""
    for item in items:
        if {"vllm_engine", "vllm_url"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.vllm)


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
