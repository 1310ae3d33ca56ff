"""Log-probabilities of answer tokens under the model that will be trained, each different row
scored once and remembered.

    runs/my-task/logprobs.jsonl   {"key": "5e0f…", "logp": [-0.00012, -3.21871, -0.04101]}

A line holds the natural logarithms for one row's answer tokens, in order. Its key is a hash of the
model's weights and of the trained token ids with their loss mask, so template, tokenizer and text
are all in it: what is found under a key is right for good, whatever mixture, arm or interrupted
command it was made for. The file may be deleted; it is made again.

STM and FLOW (``remedies.weights``) weigh tokens by these numbers. Texts are never tokenised anew to
align them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from replaykit.data.record import Record
from replaykit.engines import Engine
from replaykit.errors import EngineError, RunError
from replaykit.hashing import fingerprint
from replaykit.model import loading
from replaykit.model.chat import Chat, Example
from replaykit.model.logprobs import of_answer
from replaykit.runs import Watch, unwatched
from replaykit.steps.score.result import Perplexity

log = logging.getLogger(__name__)

# Of a log-probability after the point: a hundred times finer than two engines agree.
DIGITS = 5
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Scores(Mapping[str, np.ndarray]):
    """The file of log-probabilities that are known, by key; a torn last line is dropped on opening.

    ``model`` is what identifies the weights (``model_key``). One process at a time holds the file;
    another one waits, and then finds what the first has made.
    """

    def __init__(self, path: Path, model: str):
        self._model = model
        self._found: dict[str, np.ndarray] = {}
        self._stream = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("%s: another replaykit is scoring; waiting for it", path)
            fcntl.flock(self._stream, fcntl.LOCK_EX)
        self._stream.truncate(self._read(path))

    def _read(self, path: Path) -> int:
        """Takes in the lines of the file; returns where the last whole one ends."""
        end = 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                # The process ended while it wrote this line.
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    # null, of a first token that nothing predicts, becomes NaN.
                    self._found[row["key"]] = np.array(row["logp"], dtype=np.float32)
                except (ValueError, TypeError, KeyError) as error:
                    todo = "take that line out, and its row is scored again"
                    raise RunError(f"{path}:{number}: damaged ({error!r}); {todo}") from error
                end += len(line)
        return end

    def key(self, example: Example) -> str:
        """32 hexadecimal digits for the model, the token ids and which of them carry loss."""
        digest = hashlib.blake2b(self._model.encode(), digest_size=16)
        digest.update(array("q", example.tokens).tobytes())
        digest.update(bytes(example.loss))
        return digest.hexdigest()

    def add(self, example: Example, scores: Sequence[float]) -> None:
        """Writes a row's log-probabilities at once. ``scores`` are an engine's, as ``of_answer``
        takes them.
        """
        key = self.key(example)
        logp: list[float | None] = [round(score, DIGITS) for score in of_answer(example, scores)]
        if example.loss[0] and example.answer_at is None:
            logp = [None, *logp]
        line = json.dumps({"key": key, "logp": logp}).encode() + b"\n"
        # On a disk that is nearly full a write may take a part, and only the next one fails.
        while line:
            line = line[self._stream.write(line) :]
        self._found[key] = np.array(logp, dtype=np.float32)

    def __getitem__(self, key: str) -> np.ndarray:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def close(self) -> None:
        """Closes the file, which gives up the lock as well."""
        self._stream.close()

    def __enter__(self) -> Scores:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def model_key(model: str, revision: str | None = None) -> str:
    """16 hexadecimal digits for the weights: of a folder its place and files, on the Hub its name
    and commit.
    """
    found = loading.identity(model) or loading.fetched(model, revision) or revision
    return fingerprint([loading.resolve(model), found])


def different_examples(records: Sequence[Record], chat: Chat) -> dict[str, Example]:
    """The different rows as they are trained, by record id."""
    different = {record.id: record for record in records}
    return {key: chat.example(record) for key, record in different.items()}


def unscored(examples: Mapping[str, Example], known: Scores) -> list[Example]:
    """The examples whose log-probabilities are not known yet, each once; longest first, so that
    memory runs out at once.
    """
    scorable = [example for example in examples.values() if example.loss_tokens]
    # By key, so that rows of the same tokens are scored once.
    missing = {known.key(example): example for example in scorable}
    left = [example for key, example in missing.items() if key not in known]
    return sorted(left, key=lambda example: -len(example.tokens))


def score_examples(
    examples: Mapping[str, Example],
    engine: Engine | None,
    known: Scores,
    *,
    watch: Watch = unwatched,
) -> dict[str, np.ndarray]:
    """The natural-log probabilities, float32, of each example's answer tokens, by record id.

    One for each token that carries loss, in order. A first token with loss, as a plain text without
    BOS has, is predicted by nothing and is NaN. Examples that are not ``known`` are scored by the
    engine and written there one by one, so what was interrupted goes on; without one to score the
    engine may be None. Raises EngineError for a row that is longer than the engine reads.
    """
    missing = unscored(examples, known)
    if missing:
        assert engine is not None, f"{len(missing)} rows are not scored yet"
        _check_length(missing, engine)
        watch("score", 0, len(missing))
        scored = engine.score(example.scored for example in missing)
        for number, (example, scores) in enumerate(zip(missing, scored, strict=True), 1):
            if any(map(math.isnan, scores)):
                raise EngineError(
                    "the model gives a row a probability that is not a number; its weights may be "
                    "damaged"
                )
            known.add(example, scores)
            watch("score", number, len(missing))
    none = np.zeros(0, np.float32)
    return {
        key: known[known.key(example)] if example.loss_tokens else none
        for key, example in examples.items()
    }


def _check_length(missing: Sequence[Example], engine: Engine) -> None:
    """Raises EngineError, saying what to set, where the longest row is more than the engine
    reads.
    """
    longest = max(len(example.scored) for example in missing)
    room = engine.limit
    if engine.name != "transformers":
        # The others draw a token after the row.
        room -= 1
    if longest > room:
        raise EngineError(
            f"a row of the mixture has {longest} tokens, and {engine.name} scores rows of at most "
            f"{room}; set train.max_tokens: {room} and mix again, or take `--engine transformers`"
        )


def by_source(
    records: Sequence[Record], logprobs: Mapping[str, np.ndarray], *, max_perplexity: float
) -> dict[str, Perplexity]:
    """How probable the model finds the answers of each source, the least probable source first.

    A row counts once for each source that it has; ``above`` is the part of the tokens whose
    perplexity is higher than ``max_perplexity``. The claim to look at: ground truth has the highest
    perplexity, answers by another model less, the model's own the lowest (Wu et al., arXiv
    2501.14315: 4.83 against 1.16 on MBPP).
    """
    groups = [(record.source, record.id) for record in records]
    return by_group(groups, logprobs, max_perplexity=max_perplexity)


def by_group(
    rows: Iterable[tuple[str, str]], logprobs: Mapping[str, np.ndarray], *, max_perplexity: float
) -> dict[str, Perplexity]:
    """The same of any groups; ``rows`` are the group and the id of each record."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for group, key in rows:
        logp = logprobs[key].astype(float)
        groups.setdefault(group, {})[key] = logp[~np.isnan(logp)]
    found = {}
    for group, different in groups.items():
        answers = [logp for logp in different.values() if len(logp)]
        if answers:
            found[group] = _perplexity(answers, max_perplexity)
    return dict(sorted(found.items(), key=lambda item: -item[1].perplexity))


def _perplexity(answers: Sequence[np.ndarray], max_perplexity: float) -> Perplexity:
    tokens = np.concatenate(answers)
    of_rows = np.exp([-logp.mean() for logp in answers])
    return Perplexity(
        rows=len(answers),
        tokens=len(tokens),
        perplexity=round(float(np.exp(-tokens.mean())), 4),
        mean=round(float(of_rows.mean()), 4),
        quantiles={str(q): round(float(np.quantile(of_rows, q)), 4) for q in QUANTILES},
        above=round(float((np.exp(-tokens) > max_perplexity).mean()), 4),
    )
