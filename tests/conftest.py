"""What several test files use: the embedded model, loaded once, and an empty working directory."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from replaykit.engines import Engine, load_engine
from replaykit.errors import EngineError
from replaykit.model.chat import Chat


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what uses vLLM, and says which tests one process of pytest-xdist takes together.

    The tests of a file share its fixtures. Those with the vLLM engine, which is slow to start, are
    all for one process.
    """
    for item in items:
        group = item.path.name
        fixtures = getattr(item, "fixturenames", ())
        if "vllm_url" in fixtures:
            item.add_marker(pytest.mark.vllm)
        elif "vllm_engine" in fixtures or item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.vllm)
            group = "vllm"
        item.add_marker(pytest.mark.xdist_group(group))


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
