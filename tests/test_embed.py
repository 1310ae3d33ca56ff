"""Embeddings: real folders of model2vec and sentence-transformers, made here and small; what is
near, and what fails.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import replaykit
from replaykit.errors import DataError, EngineError, MissingExtra
from replaykit.steps.select import embed as module
from replaykit.steps.select.embed import Embedder, best, package_of

WORDS = {  # a direction for each subject, and a bit of its own for each word
    "sum": 0, "apples": 0, "total": 0, "count": 0, "heart": 1, "patients": 1, "dose": 1, "river": 2, "boat": 2, "sea": 2,
}  # fmt: skip
TEXTS = [
    "sum total count",
    "heart patients",
    "river boat",
    "boat boat sea",
    "unheard",
    "",
    "dose of apples",
]
QUERIES = ["count apples", "sea", "patients dose"]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(
        WordLevel({word: k for k, word in enumerate(["[UNK]", "[PAD]", *WORDS])}, unk_token="[UNK]")
    )
    made.pre_tokenizer = Whitespace()
    return made


@pytest.fixture(scope="module")
def vectors():
    rows = np.zeros((2 + len(WORDS), 6), dtype=np.float32)
    for row, direction in enumerate(WORDS.values(), 2):
        rows[row, direction] = 3.0
        rows[row, 3 + row % 3] = 0.5
    return rows


@pytest.fixture(scope="module")
def model2vec_folder(tmp_path_factory, tokenizer, vectors):
    model2vec = pytest.importorskip("model2vec")
    folder = tmp_path_factory.mktemp("models") / "static"
    model2vec.StaticModel(vectors, tokenizer).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def transformer_folder(tmp_path_factory, tokenizer):
    """A random BERT of 2 layers with a mean over its tokens."""
    pytest.importorskip("sentence_transformers")
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(1)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    BertModel(
        BertConfig(vocab_size=2 + len(WORDS), max_position_embeddings=64, **shape)
    ).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64
    ).save_pretrained(folder)
    made = SentenceTransformer(str(folder), device="cpu")  # without modules.json: adds the mean
    target = folder.parent / "sentence"
    made.save(str(target))
    return target


FOLDERS = pytest.mark.parametrize("name", ["model2vec_folder", "transformer_folder"])


@pytest.fixture
def folder(name, request):
    return request.getfixturevalue(name)


# --- models ---------------------------------------------------------------------------------------


@FOLDERS
def test_the_files_say_which_package_runs_a_model(folder, name):
    assert (folder / "modules.json").is_file()  # model2vec writes one too
    expected = "model2vec" if name == "model2vec_folder" else "sentence_transformers"
    assert package_of(folder) == Embedder(str(folder)).package == expected


@FOLDERS
def test_vectors_have_length_1(folder):
    embed = Embedder(str(folder))
    found = embed(["sum total", "heart", "boat sea river " * 100])
    assert found.dtype == np.float32
    assert found.shape == (3, embed.dim)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3), abs=1e-6)


def test_a_text_without_a_known_token_is_zeros(model2vec_folder):
    assert not Embedder(str(model2vec_folder))(["unheard", ""]).any()


@FOLDERS
def test_vectors_are_what_the_package_says(folder, name):
    found = Embedder(str(folder))(TEXTS[:4])
    if name == "model2vec_folder":
        from model2vec import StaticModel

        expected = StaticModel.from_pretrained(folder).encode(TEXTS[:4], normalize=True)
    else:
        from sentence_transformers import SentenceTransformer

        expected = SentenceTransformer(str(folder)).encode(TEXTS[:4], normalize_embeddings=True)
    assert found == pytest.approx(np.asarray(expected), abs=1e-5)


# --- nearness -------------------------------------------------------------------------------------


def test_planted_neighbours_are_found(model2vec_folder):
    scores, nearest = best(Embedder(str(model2vec_folder)), TEXTS, QUERIES)
    assert nearest.tolist()[:4] == [0, 2, 1, 1]
    assert nearest.tolist()[4:6] == [-1, -1]
    assert scores.tolist()[4:6] == [0, 0]
    assert (scores[:4] > 0.9).all()
    assert 0.5 < scores[6] < 0.9  # half of it is like each of two


@FOLDERS
def test_scores_are_the_cosines(folder):
    embed = Embedder(str(folder))
    scores, nearest = best(embed, TEXTS[:4] * 300, QUERIES)
    cosines = embed(TEXTS[:4]) @ embed(QUERIES).T
    assert scores.dtype == np.float32
    assert scores == pytest.approx(np.tile(cosines.max(axis=1), 300), abs=2e-6)
    assert nearest.tolist() == np.tile(cosines.argmax(axis=1), 300).tolist()


def letters(texts):
    """Vectors for tests of the arithmetic: counts of four letters."""
    counts = np.array(
        [[text.count(letter) for letter in "abcd"] for text in texts], dtype=np.float32
    ).reshape(-1, 4)
    lengths = np.linalg.norm(counts, axis=1, keepdims=True)
    return np.divide(counts, lengths, out=np.zeros_like(counts), where=lengths > 0)


@given(
    st.lists(st.text("abcd", max_size=6), max_size=40),
    st.lists(st.text("abcd", min_size=1, max_size=6), min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_blocks_of_any_size_give_the_plain_answer(texts, queries):
    cosines = letters(texts) @ letters(queries).T
    for block, many in ((1024, 8192), (4, 3)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "BLOCK", block)
            patch.setattr(module, "QUERIES", many)
            scores, nearest = best(letters, iter(texts), queries)
        assert len(scores) == len(nearest) == len(texts)
        for row, text in enumerate(texts):
            if not text:
                assert (scores[row], nearest[row]) == (0, -1)
                continue
            assert scores[row] == pytest.approx(cosines[row].max(), abs=2e-6)
            assert nearest[row] == np.flatnonzero(cosines[row] >= cosines[row].max() - 1e-5)[0]


def test_of_equal_queries_the_first_is_named():
    assert best(letters, ["ab", "c"], ["d", "ba", "abab", "c", "c"])[1].tolist() == [1, 3]


def test_a_part_that_begins_at_a_block_has_the_results_of_the_whole():
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(list("abcd"), 12)) for _ in range(3000)]
    queries = ["".join(rng.choice(list("abcd"), 12)) for _ in range(50)]
    scores, nearest = best(letters, texts, queries)
    part_scores, part_nearest = best(letters, texts[2048:], queries)
    assert scores[2048:].tobytes() == part_scores.tobytes()
    assert nearest[2048:].tobytes() == part_nearest.tobytes()


def test_without_queries_there_is_nothing_to_be_near_to():
    with pytest.raises(DataError, match="nothing to compare"):
        best(letters, ["a"], [])


def test_no_texts_have_no_scores():
    scores, nearest = best(letters, [], ["a"])
    assert (len(scores), len(nearest)) == (0, 0)


# --- what fails -----------------------------------------------------------------------------------


@FOLDERS
def test_a_missing_package_is_named_with_the_command_that_installs_it(folder, name, monkeypatch):
    absent = {"model2vec", "sentence_transformers"}
    monkeypatch.setattr(
        module, "find_spec", lambda package: None if package in absent else find_spec(package)
    )
    with pytest.raises(
        MissingExtra,
        match=r"(model2vec|sentence-transformers) is not installed.*replaykit-llm\[embed\]",
    ):
        Embedder(str(folder))


def test_a_language_model_is_no_embedding_model():
    nano = Path(replaykit.__file__).parent / "nano" / "weights"
    with pytest.raises(EngineError, match="no embedding model: neither modules.json"):
        Embedder(str(nano))


@pytest.mark.parametrize("model", ["./nowhere", "nothing", "a/b/c"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(model):
    with pytest.raises(EngineError, match="neither a folder here nor a Hub id"):
        Embedder(model)


def test_a_hub_id_that_cannot_be_had_says_what_to_do(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        EngineError, match="no-one/no-such-model cannot be had from the Hub.*\n.*hf download"
    ):
        Embedder("no-one/no-such-model")


def test_damaged_files_are_named(tmp_path, model2vec_folder, transformer_folder):
    for number, (source, file) in enumerate(
        [
            (model2vec_folder, "model.safetensors"),
            (transformer_folder, "model.safetensors"),
            (transformer_folder, "modules.json"),
        ]
    ):
        copy = tmp_path / str(number)
        copy.mkdir()
        for path in source.rglob("*"):
            if path.is_file():
                (copy / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                (copy / path.relative_to(source)).write_bytes(path.read_bytes())
        (copy / file).write_bytes(b"{damaged")
        with pytest.raises(EngineError, match=str(copy)):
            Embedder(str(copy))


def test_vectors_that_are_no_numbers_are_an_error_that_shows_the_text(tmp_path, tokenizer, vectors):
    model2vec = pytest.importorskip("model2vec")
    spoilt = vectors.copy()
    spoilt[2 + list(WORDS).index("sea")] = np.nan
    model2vec.StaticModel(spoilt, tokenizer).save_pretrained(str(tmp_path / "spoilt"))
    embed = Embedder(str(tmp_path / "spoilt"))
    with pytest.raises(EngineError, match="no number for the text 'the sea'"):
        embed(["river", "the sea"])


def test_modules_that_are_no_list_are_no_model(tmp_path):
    (tmp_path / "modules.json").write_text(json.dumps({}))
    with pytest.raises(EngineError, match="no embedding model"):
        Embedder(str(tmp_path))
