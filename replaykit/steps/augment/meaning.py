"""How near the meaning of a question is to that of its parent, by cosines from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from replaykit.steps.select.nearness import count_terms

NGRAMS = (2, 4)  # characters: they stay where a word is inflected or has another order


def by_terms(parents: Sequence[str], questions: Sequence[str]) -> list[float]:
    """The cosine of each question with the parent at its place, by TF-IDF over runs of characters.

    A run weighs (1 + ln tf) * (1 + ln((1 + n) / (1 + df))), as in scikit-learn; n and df are those
    of the parents alone, so a run that no parent has weighs most.
    """
    import scipy.sparse as sp

    n = len(parents)
    counts = count_terms([*parents, *questions], analyzer="char", ngrams=NGRAMS)
    shape = (2 * n, len(counts.terms))
    weights = sp.csr_array(
        (1 + np.log(counts.counts.astype(np.float64)), counts.ids, counts.starts), shape=shape
    )
    frequencies = np.bincount(
        counts.ids[: int(counts.starts[n])].astype(np.int64), minlength=shape[1]
    )
    weights = weights * (1 + np.log((1 + n) / (1 + frequencies)))
    lengths = np.sqrt((weights * weights).sum(axis=1))
    products = (weights[:n] * weights[n:]).sum(axis=1)
    both = lengths[:n] * lengths[n:]
    cosines = np.divide(products, both, out=np.zeros(n), where=both > 0)
    return [round(float(cosine), 6) for cosine in cosines]


def by_embedding(model: str, parents: Sequence[str], questions: Sequence[str]) -> list[float]:
    """The cosine of each question with the parent at its place, by a model of sentences. Raises
    EngineError and MissingExtra as ``Embedder`` does.
    """
    from replaykit.steps.select.embed import Embedder

    embed = Embedder(model, key="augment.back_translation.embedding")
    before = embed(parents)
    now = embed(questions)
    return [round(float(cosine), 6) for cosine in (before * now).sum(axis=1)]
