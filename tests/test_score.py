"""Each different answer is scored once, under the model that is trained, token by token; and the table tells of sources."""

from __future__ import annotations

import fcntl
import json
import math
import multiprocessing
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import type_in
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from replaykit.cli import app
from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import PlannedRow, write_plan
from replaykit.data.record import Record, dialogue
from replaykit.engines import Completion, Engine, Request, transformers
from replaykit.engines.transformers import TransformersEngine
from replaykit.errors import EngineError, RunError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.runs import read_manifest
from replaykit.steps.score import logprobs
from replaykit.steps.score.logprobs import (
    Scores,
    by_source,
    different_examples,
    model_key,
    score_examples,
    unscored,
)
from replaykit.steps.score.result import ScoreResult

pytestmark = pytest.mark.usefixtures("one_thread")

TWO_TURNS = Record(
    (
        *dialogue("What is the capital of France?", "Paris"),
        *dialogue("Reverse the word: stone", "enots, which is no word at all"),
    ),
    "target",
)


def rows(count: int = 12) -> list[Record]:
    """Target rows, old rows, a conversation of two turns, a plain text, and the first row once more."""
    target = [
        Record(dialogue(t.prompt, t.answer), "target")
        for t in world.draw("referral", count, seed=1)
    ]
    old = [Record(dialogue(t.prompt, t.answer), "select") for t in world.draw_old(count, seed=1)]
    text = Record(({"role": "text", "content": "The capital of France is Paris."},), "select")
    return [*target, *old, TWO_TURNS, text, target[0]]


class Counted:
    """An engine that counts what it is asked to score, and may end after some rows as if it were killed."""

    def __init__(self, engine: Engine, *, ends_after: int | None = None):
        self.engine, self.name, self.limit, self.ends_after = (
            engine,
            engine.name,
            engine.limit,
            ends_after,
        )
        self.scored: list[Sequence[int]] = []

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        return self.engine.complete(requests)

    def score(self, sequences: Iterable[Sequence[int]]) -> Iterator[list[float]]:
        given = list(sequences)
        for tokens, scores in zip(given, self.engine.score(given), strict=True):
            if len(self.scored) == self.ends_after:
                raise KeyboardInterrupt
            self.scored.append(tokens)
            yield scores

    def close(self) -> None:
        self.engine.close()


def scored(
    folder: Path, chat: Chat, engine: Engine | None, records: Sequence[Record]
) -> dict[str, np.ndarray]:
    with Scores(folder / "logprobs.jsonl", model_key("nano")) as known:
        return score_examples(different_examples(records, chat), engine, known)


def by_hand(engine: Any, chat: Chat, record: Record) -> list[float]:
    """By one forward pass, token by token."""
    example = chat.example(record)
    with torch.inference_mode():
        logp = engine.model(torch.tensor([example.tokens])).logits[0].double().log_softmax(1)
    return [
        float(logp[k - 1, example.tokens[k]])
        for k in range(1, len(example.tokens))
        if example.loss[k]
    ]


# --- the numbers ----------------------------------------------------------------------------------------------------


def test_there_is_one_number_for_each_token_with_loss_in_order(
    chat: Chat, transformers_engine: Any, tmp_path: Path
) -> None:
    records = rows()
    found = scored(tmp_path, chat, transformers_engine, records)
    assert list(found) == list(dict.fromkeys(record.id for record in records))
    for record in records:
        assert found[record.id].dtype == np.float32
        assert len(found[record.id]) == chat.example(record).loss_tokens
        assert found[record.id].tolist() == pytest.approx(
            by_hand(transformers_engine, chat, record), abs=1e-4
        )
    assert len(chat.example(TWO_TURNS).loss) > len(found[TWO_TURNS.id]) > 12


def test_the_answers_of_both_turns_are_aligned(
    chat: Chat, transformers_engine: Any, tmp_path: Path
) -> None:
    """The first answer is as probable in the conversation as by itself, where nothing but it has been said."""
    alone = Record(TWO_TURNS.messages[:2], "target")
    found = scored(tmp_path, chat, transformers_engine, [TWO_TURNS, alone])
    size = len(found[alone.id])
    assert 2 <= size < len(found[TWO_TURNS.id])
    assert found[TWO_TURNS.id][:size].tolist() == pytest.approx(found[alone.id].tolist(), abs=1e-4)


def test_a_first_token_that_nothing_predicts_is_no_number(
    transformers_engine: Any, tmp_path: Path
) -> None:
    tokenizer: Any = loading.load_tokenizer("nano")
    tokenizer.bos_token = None
    chat, text = (
        Chat(tokenizer),
        Record(({"role": "text", "content": "The capital of France is Paris."},), "target"),
    )
    assert chat.example(text).loss[0]
    for found in [
        scored(tmp_path, chat, transformers_engine, [text]),
        scored(tmp_path, chat, None, [text]),
    ]:
        assert np.isnan(found[text.id]).tolist() == [True] + [False] * (
            chat.example(text).loss_tokens - 1
        )
        assert found[text.id][1:].tolist() == pytest.approx(
            by_hand(transformers_engine, chat, text), abs=1e-4
        )
        table = by_source([text], found, max_perplexity=2.5)
        assert table["target"].tokens == chat.example(text).loss_tokens - 1


def test_transformers_and_vllm_agree_to_a_thousandth(
    chat: Chat, transformers_engine: Any, vllm_engine: Engine, tmp_path: Path
) -> None:
    found = []
    for engine in (transformers_engine, vllm_engine):
        (tmp_path / engine.name).mkdir()
        found.append(scored(tmp_path / engine.name, chat, engine, rows(40)))
    assert found[0].keys() == found[1].keys()
    apart = [np.abs(found[0][key] - found[1][key]).max() for key in found[0]]
    assert len(apart) > 60
    assert max(apart) <= 1e-3


# --- what is known is not asked again -------------------------------------------------------------------------------


def test_a_row_is_scored_once_whatever_mixture_it_is_in(
    chat: Chat, transformers_engine: Any, tmp_path: Path
) -> None:
    engine = Counted(transformers_engine)
    first = scored(tmp_path, chat, engine, rows())
    assert len(engine.scored) == len(set(engine.scored)) == len({record.id for record in rows()})
    again = scored(tmp_path, chat, engine, rows()[::-1])
    assert len(engine.scored) == len(first)
    assert {key: value.tolist() for key, value in again.items()} == {
        key: value.tolist() for key, value in first.items()
    }
    new = [Record(dialogue(f"Is {k} even?", "Yes"), "generate") for k in range(3)]
    more = scored(tmp_path, chat, engine, [*new, *rows()])
    assert len(engine.scored) == len(more) == len(first) + 3
    assert scored(tmp_path, chat, None, [*rows(), *new]).keys() == more.keys()


def test_scoring_that_was_interrupted_goes_on(
    chat: Chat, transformers_engine: Any, tmp_path: Path
) -> None:
    ended = Counted(transformers_engine, ends_after=7)
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path, chat, ended, rows())
    with (tmp_path / "logprobs.jsonl").open("ab") as stream:
        stream.write(b'{"key": "5e0f", "logp": [-0.1')  # a line that was being written
    engine = Counted(transformers_engine)
    found = scored(tmp_path, chat, engine, rows())
    assert len(ended.scored) == 7
    assert len(engine.scored) == len(found) - 7
    assert not {*map(tuple, engine.scored)} & {*map(tuple, ended.scored)}
    (tmp_path / "whole").mkdir()
    whole = scored(tmp_path / "whole", chat, transformers_engine, rows())
    for key in found:
        assert found[key].tolist() == pytest.approx(whole[key].tolist(), abs=1e-4)
    lines = (tmp_path / "logprobs.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines) == len(found)


def test_other_weights_other_tokens_and_another_loss_are_other_keys(
    chat: Chat, tmp_path: Path
) -> None:
    example = chat.example(TWO_TURNS)
    with Scores(tmp_path / "a", model_key("nano")) as ledger:
        keys = {
            ledger.key(example),
            ledger.key(replace(example, tokens=(*example.tokens[:-1], 5))),
            ledger.key(replace(example, loss=(*example.loss[:-1], False))),
        }
        same = ledger.key(chat.example(TWO_TURNS))
    with Scores(tmp_path / "b", "other weights") as ledger:
        keys.add(ledger.key(example))
    assert same in keys
    assert len(keys) == 4


def test_a_change_of_a_models_files_changes_its_key(tmp_path: Path) -> None:
    loading.load_tokenizer("nano").save_pretrained(tmp_path)
    before = model_key(str(tmp_path))
    assert model_key(str(tmp_path)) == before
    (tmp_path / "config.json").write_text("{}")
    assert model_key(str(tmp_path)) != before


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "logprobs.jsonl").write_text('{"key": "a", "logp": [-1.0]}\n{"logp": [-1.0]}\n')
    with pytest.raises(RunError, match=r"logprobs.jsonl:2: damaged .* take that line out"):
        Scores(tmp_path / "logprobs.jsonl", "m")


def hold(path: Path, ready: Any, go: Any) -> None:
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        ready.set()
        go.wait(60)
        stream.write('{"key": "a", "logp": [-1.0]}\n')


def test_a_second_process_waits_and_finds_what_the_first_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    first = context.Process(target=hold, args=(tmp_path / "logprobs.jsonl", ready, go))
    first.start()
    assert ready.wait(60)
    monkeypatch.setattr(
        logprobs.log, "warning", lambda *_: go.set()
    )  # the first ends when the second says that it waits
    with Scores(tmp_path / "logprobs.jsonl", "m") as ledger:
        assert dict(ledger) == {"a": np.array([-1.0], np.float32)}
    assert go.is_set()
    first.join(60)
    assert first.exitcode == 0


def test_a_row_that_the_engine_cannot_read_says_what_to_set(
    chat: Chat, transformers_engine: Any, tmp_path: Path
) -> None:
    engine = Counted(transformers_engine)
    engine.limit = 20
    with pytest.raises(
        EngineError,
        match=r"a row of the mixture has \d+ tokens.* train.max_tokens: 20 and mix again",
    ):
        scored(tmp_path, chat, engine, rows())
    assert engine.scored == []


def test_the_longest_rows_are_scored_first(chat: Chat, tmp_path: Path) -> None:
    with Scores(tmp_path / "a", "m") as ledger:
        lengths = [
            len(example.tokens) for example in unscored(different_examples(rows(), chat), ledger)
        ]
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) == 26


# --- memory ---------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most numbers of any tensor whose last dimension is the vocabulary, but for the embedding itself."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary, self.numbers = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dim() and made.shape[-1] == self.vocabulary:
            self.numbers = max(self.numbers, made.numel())
        return made


def test_the_logits_of_a_whole_batch_are_never_there(
    transformers_engine: Any, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = [chat.example(record).tokens for record in rows()]
    whole = list(TransformersEngine(transformers_engine.model).score(sequences))
    vocabulary = transformers_engine.model.config.vocab_size
    monkeypatch.setattr(transformers, "NUMBERS", 7 * vocabulary)
    apart = TransformersEngine(transformers_engine.model)
    list(apart.score(sequences[:1]))  # tries the model's head, on 16 tokens at most
    with Largest(vocabulary) as largest:
        found = list(apart.score(sequences))
    assert largest.numbers == 7 * vocabulary
    for row, expected in zip(found, whole, strict=True):
        assert row == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["capped", "scaled"])
def test_what_a_model_does_to_its_logits_is_done(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 2 caps them and Granite scales them: they are asked for whole rows."""
    from transformers import AutoModelForCausalLM, Gemma2Config, GraniteConfig

    size: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    capped = Gemma2Config(
        **size, head_dim=8, final_logit_softcapping=0.5, attn_implementation="eager"
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(
        capped if kind == "capped" else GraniteConfig(**size, logits_scaling=8.0)
    )
    monkeypatch.setattr(transformers, "NUMBERS", 50 * 20)
    sequences = [list(range(3, 3 + length)) for length in (1, 2, 9, 30, 17)]
    for tokens, row in zip(sequences, TransformersEngine(model).score(sequences), strict=True):
        with torch.inference_mode():
            logp = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(1)
        expected = logp.gather(1, torch.tensor(tokens[1:], dtype=torch.long)[:, None])[:, 0]
        assert row == pytest.approx(expected.tolist(), abs=1e-4)


# --- the step -------------------------------------------------------------------------------------------------------


def test_the_table_is_that_of_the_numbers() -> None:
    records = [
        Record(dialogue(f"{k}?", "a"), source)
        for k, source in enumerate(["target", "target", "generate"])
    ]
    values = [[-1.0, -3.0], [0.0, -0.5, math.nan], [-0.1, -0.1]]
    logprobs = {
        record.id: np.array(v, np.float32) for record, v in zip(records, values, strict=True)
    }
    table = by_source([*records, records[0]], logprobs, max_perplexity=2.5)
    assert list(table) == ["target", "generate"]
    target = table["target"]
    assert (target.rows, target.tokens, target.above) == (2, 4, 0.5)
    assert target.perplexity == pytest.approx(math.exp(4.5 / 4), abs=1e-3)
    assert target.mean == pytest.approx((math.exp(2) + math.exp(0.25)) / 2, abs=1e-3)
    assert target.quantiles["0.5"] == pytest.approx((math.exp(2) + math.exp(0.25)) / 2, abs=1e-3)
    assert table["generate"].above == 0


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe of two arms and their finished mixtures."""
    monkeypatch.chdir(tmp_path)
    Path("replaykit.yaml").write_text(
        "name: small\nmodel: nano\ntarget: target.jsonl\nmix: {ratio: 0}\narms:\n"
        "  plain: {ratio: 0}\n  strict: {remedies: {stm: {max_perplexity: 1.5}}}\n"
    )
    write_jsonl(Path("target.jsonl"), rows()[:12])
    type_in("mix")
    # One of the mixtures gets more kinds of rows than a mixture of one target has.
    planned = [PlannedRow(0, record) for record in rows()]
    write_plan(tmp_path / "runs/small/mix-strict/rows.jsonl", planned)
    return tmp_path


def result(folder: Path) -> ScoreResult:
    manifest = read_manifest(folder)
    assert manifest is not None
    return ScoreResult.model_validate(manifest.result)


def test_the_command_shows_the_sources_and_the_arms_share_what_is_known(mixed: Path) -> None:
    text = type_in("score", "--engine", "transformers")
    for words in (
        "answers +rows +tokens +perplexity +median +95 % +> 1.5",
        r"target +13 +\d+ +[\d,.]+",
        r"select +13 ",
    ):
        assert re.search(words, text), text
    plain, strict = (result(mixed / f"runs/small/score-{arm}") for arm in ("plain", "strict"))
    assert (plain.rows, plain.scored, plain.max_perplexity) == (12, 12, 2.5)
    assert (strict.rows, strict.scored, strict.max_perplexity) == (26, 14, 1.5)
    assert list(strict.sources) == ["target", "select"]
    target = strict.sources["target"]
    assert target.perplexity > 2 * strict.sources["select"].perplexity
    assert target.above > plain.sources["target"].above > 0
    assert len((mixed / "runs/small/logprobs.jsonl").read_text().splitlines()) == 26


def test_a_finished_score_is_skipped_and_force_tells_it_anew(mixed: Path) -> None:
    first = json.loads(type_in("score", "--arm", "plain", "--engine", "transformers", "--json"))
    skipped = CliRunner().invoke(app, ["score", "--arm", "plain"])
    assert "finished before" in skipped.stderr
    again = json.loads(
        type_in("score", "--arm", "plain", "--engine", "transformers", "--json", "--force")
    )
    assert again == first | {"scored": 0}


def test_score_without_a_mixture_says_what_makes_it(mixed: Path) -> None:
    (mixed / "runs/small/mix-plain/manifest.json").unlink()
    error = type_in("score", code=1)
    assert error == "error: runs/small/mix-plain is not finished; `replaykit mix` makes it\n"
