"""Model folders: what tells two of them apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from replaykit.model import loading


def folder(path: Path, weights: bytes) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return str(path)


@pytest.mark.parametrize("small", [1 << 20, 1 << 13])  # the file is hashed whole, or a sample of it
def test_a_model_that_is_trained_anew_in_place_has_another_identity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: int
) -> None:
    monkeypatch.setattr(loading, "SMALL", small)
    size = 100_001
    before = loading.identity(folder(tmp_path / "tuned", bytes(size)))
    assert before == loading.identity(folder(tmp_path / "copied", bytes(size)))
    for place in (0, size // 2, size - 1):
        weights = bytearray(size)
        weights[place] = 1
        assert loading.identity(folder(tmp_path / "tuned", weights)) != before
    assert loading.identity(folder(tmp_path / "tuned", bytes(size + 1))) != before


def test_a_sample_is_spread_over_all_of_a_large_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loading, "SMALL", 64)
    monkeypatch.setattr(loading, "BLOCKS", 5)
    monkeypatch.setattr(loading, "BLOCK", 4)
    size, seen = 80, []
    before = loading.identity(folder(tmp_path / "tuned", bytes(size)))
    for place in range(size):
        weights = bytearray(size)
        weights[place] = 1
        if loading.identity(folder(tmp_path / "tuned", weights)) != before:
            seen.append(place)
    assert seen == [start + k for start in (0, 19, 38, 57, 76) for k in range(4)]


def test_a_model_on_the_hub_has_no_identity_of_files() -> None:
    assert loading.identity("someone/a-model") is None
