"""How near each text of a pool is to a target by what it means: embeddings of sentence-transformers
or model2vec.

    embed = Embedder("minishlab/potion-base-8M")       # a folder, or a Hub id
    embed(["How many apples are left?", "4 + 5 = ?"])  ->  float32 [2, 256], rows of length 1
    best(embed, pool_texts, questions)    ->  (each text's best cosine, the question it is with)

Either package is optional (the extra ``embed`` brings both), and the files of a model say which
it needs. model2vec has a vector for each token and takes their mean, which is fast on a CPU;
sentence-transformers runs a whole network. Texts of the pool and of the target are embedded in the
same way, without the prompt that some models put before a query.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from replaykit.errors import DataError, EngineError, MissingExtra

BLOCK = 1024  # texts embedded and compared at a time
QUERIES = 8192  # compared with a block at a time: 32 MB of cosines
TIE = 1e-6  # cosines nearer to one another than this count as equal; scores are rounded to it
# Of a model on the Hub: no pickles, no programs, no ONNX.
FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
# What the packages raise for files that they cannot use.
WRONG = (OSError, ValueError, LookupError, RuntimeError, TypeError)


class Embedder:
    """Texts as vectors of length 1. ``package`` is the one that runs the model, ``dim`` the length
    of its vectors.
    """

    def __init__(self, model: str, key: str = "select.model"):
        """``key`` is that of the recipe that names the model. Raises EngineError for a model that
        cannot be loaded, MissingExtra where its package is not installed.
        """
        folder = _folder(model, key)
        self.package = package_of(folder)
        if find_spec(self.package) is None:
            raise MissingExtra(self.package.replace("_", "-"), "embed")
        from safetensors import SafetensorError

        load = _model2vec if self.package == "model2vec" else _sentence_transformers
        try:
            self._encode = load(folder)
        except (*WRONG, SafetensorError) as error:
            raise EngineError(f"{model} cannot be loaded by {self.package}: {error}") from error
        self.dim = int(self(["dimensions"]).shape[1])

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, dim]; zeros for a text in which the model knows no token. Raises
        EngineError for what is no number.

        The last bits of a vector may depend on the other texts of the same call.
        """
        vectors = np.asarray(self._encode(list(texts)), dtype=np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(lengths).all():
            wrong = int(np.flatnonzero(~np.isfinite(lengths[:, 0]))[0])
            raise EngineError(
                f"{self.package} gives a vector that is no number for the text "
                f"{texts[wrong][:80]!r}"
            )
        return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def best(
    embed: Callable[[Sequence[str]], np.ndarray], texts: Iterable[str], queries: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each text its best cosine with a query, float32 [texts], and which query that is, int64
    [texts].

    Scores are rounded to 1e-6, and of queries that are as near as that the first is named. A text
    without a known token has score 0 and query -1. Memory for 12 bytes a text, the queries' vectors
    and a block. The same texts in the same order give the same result: they are cut into blocks of
    1,024 here, however they come. Raises DataError without queries.
    """
    if not queries:
        raise DataError("the target is empty: there is nothing to compare the pool with")
    starts = range(0, len(queries), BLOCK)
    wanted = np.concatenate([embed(queries[start : start + BLOCK]) for start in starts])
    scores = [np.zeros(0, np.float32)]
    nearest = [np.zeros(0, np.int64)]
    stream = iter(texts)
    while block := list(islice(stream, BLOCK)):
        vectors = embed(block)
        known = vectors.any(axis=1)
        # A product's last bits may depend on its shape, so a last block is filled up.
        full = np.zeros((BLOCK, vectors.shape[1]), dtype=np.float32)
        full[: len(block)] = vectors
        some, near = _best(full, wanted)
        scores.append(np.where(known, some[: len(block)], np.float32(0)))
        nearest.append(np.where(known, near[: len(block)], -1))
    return np.concatenate(scores), np.concatenate(nearest)


def _best(vectors: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``best`` of vectors: the wanted ones a part at a time, so that few cosines are in memory."""
    scores = np.full(len(vectors), -np.inf, dtype=np.float32)
    nearest = np.zeros(len(vectors), dtype=np.int64)
    for start in range(0, len(wanted), QUERIES):
        cosines = vectors @ wanted[start : start + QUERIES].T
        highest = cosines.max(axis=1)
        first = (cosines >= (highest - TIE)[:, None]).argmax(axis=1)
        better = highest > scores + TIE
        nearest[better] = first[better] + start
        scores = np.maximum(scores, highest)
    return np.round(scores, 6), nearest


# --- models ---------------------------------------------------------------------------------------


def package_of(folder: Path) -> str:
    """The package that a model's files are for: "model2vec" or "sentence_transformers". Raises
    EngineError for neither.

    A model2vec folder has a table "embeddings" in its model.safetensors. It has a modules.json too,
    because sentence-transformers can run it, but that needs torch and is slower.
    """
    weights = folder / "model.safetensors"
    complete = weights.is_file() and (folder / "tokenizer.json").is_file()
    if complete and "embeddings" in _tensors(weights):
        return "model2vec"
    modules = folder / "modules.json"
    if modules.is_file() and isinstance(_json(modules), list):
        return "sentence_transformers"
    raise EngineError(
        f"{folder} has no embedding model: neither modules.json, as sentence-transformers writes "
        "it, nor a model.safetensors with 'embeddings', as model2vec does; a language model is none"
    )


def _folder(model: str, key: str) -> Path:
    """The model's folder; of a Hub id the copy on this machine, downloaded if need be."""
    if Path(model).is_dir():
        return Path(model)
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise EngineError(f"{key}: {model}: neither a folder here nor a Hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=FILES))
    except (OSError, ValueError) as error:  # of the network, of the Hub's answers, of the name
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise EngineError(
            f"{key}: {model} cannot be had from the Hub: {reason}\n  check the network and "
            f"the name; where the Hub cannot be reached, fetch it elsewhere with "
            f"`hf download {model}` and give its folder"
        ) from error


def _tensors(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise EngineError(f"{path}: not a safetensors file ({error})") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EngineError(f"{path}: not JSON ({error})") from error


def _model2vec(folder: Path) -> Callable[[list[str]], np.ndarray]:
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(folder)
    return lambda texts: model.encode(texts, normalize=False, use_multiprocessing=False)


def _sentence_transformers(folder: Path) -> Callable[[list[str]], np.ndarray]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), model_kwargs={"use_safetensors": True})
    model.default_prompt_name = None
    return lambda texts: model.encode(texts, show_progress_bar=False, convert_to_numpy=True)
