"""Model folders: what tells two of them apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import type_in

import replaykit
from replaykit.errors import EngineError
from replaykit.model import loading
from replaykit.runs import read_manifest


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


# --- a GGUF file ----------------------------------------------------------------------------------


def test_a_gguf_file_that_is_not_there_is_no_name_of_the_hub(here: Path) -> None:
    for name in ("gone.gguf", "models/gone.gguf", str(here / "gone.gguf")):
        for asked in (loading.resolve, loading.identity, loading.load_tokenizer):
            with pytest.raises(EngineError, match=f"^--model {name}: there is no such file here$"):
                asked(name)


def test_the_identity_of_a_gguf_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "one.gguf"
    file.write_bytes(b"GGUF" + bytes(1000))
    before = loading.identity(str(file))
    moved = file.rename(tmp_path / "other.gguf")
    assert loading.identity(str(moved)) == before
    moved.write_bytes(b"GGUF" + bytes(999) + b"\1")
    assert loading.identity(str(moved)) != before
    assert loading.fetched(str(moved)) is None


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(60), b"<html>Not Found</html>"])
@pytest.mark.slow
def test_a_file_that_is_no_gguf_is_one_message_and_leaves_no_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    Path("broken.gguf").write_bytes(content)
    with pytest.raises(EngineError, match="^broken.gguf cannot be dequantised: .*\n.*Hub id"):
        loading.load_model("broken.gguf")
    left = [path for path in here.rglob("*") if path.is_dir() and "broken" in path.name]
    assert left == []


# --- an encoder and a decoder ---------------------------------------------------------------------


def encoder_decoder(folder: Path) -> Path:
    """A T5 of two small layers with the embedded model's tokenizer."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = loading.load_tokenizer("nano")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_cannot_ask_is_told_to_be_given_prompts(here: Path) -> None:
    folder = encoder_decoder(here / "t5")
    for more in ((), ("--dry-run",), ("-n", 3)):
        said = type_in("generate", "--model", folder, *more, code=1)
        assert "cannot write questions itself" in said
        assert "`replaykit generate --prompts FILE`" in said
    assert not Path("runs").exists()
    with pytest.raises(EngineError, match="cannot write questions itself"):
        replaykit.generate(str(folder), 3)


def test_a_model_that_cannot_ask_answers_the_questions_that_it_is_given(here: Path) -> None:
    folder = encoder_decoder(here / "t5")
    Path("questions.txt").write_text("Who won?\nWho lost?\n")
    Path("recipe.yaml").write_text(
        f"model: {folder}\ngenerate: {{prompts: questions.txt, max_answer_tokens: 8}}\n"
    )
    type_in("generate", "--recipe", "recipe.yaml", "--out", "made")
    # A model that was never trained may end its answer at once.
    assert read_manifest(Path("made")) is not None
    assert len(Path("made/answers.jsonl").read_text().splitlines()) == 2


def test_the_folder_of_a_training_is_refused_by_the_name_of_the_model_in_it(tmp_path: Path) -> None:
    trained = tmp_path / "train"
    trained.mkdir()
    model = folder(trained / "model", b"x")
    with pytest.raises(EngineError, match=f"the folder of a training; its model is {model}"):
        loading.resolve(str(trained))
    assert loading.resolve(model) == model
