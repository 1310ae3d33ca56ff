"""Encoder-decoders: what they score is what transformers says, and STM, FLOW and cross-entropy are made of it; what
they cannot do is refused before anything heavy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import make, save
from commands import type_in

from replaykit import engines
from replaykit.checks.sieve import Verdict
from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, Tool, dialogue
from replaykit.engines import Request, Sampling, load_engine, room_for, to_score, transformers
from replaykit.engines.transformers import TransformersEngine
from replaykit.errors import ChatError, EngineError, RecipeError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.model.pair import Pair
from replaykit.nano import world
from replaykit.recipe.engine import EngineOptions
from replaykit.recipe.evaluate import Test as Scored
from replaykit.recipe.generate import Checks
from replaykit.recipe.remedies import FlowSettings, Remedies, StmSettings
from replaykit.recipe.train import Train
from replaykit.steps.evaluate.skills import measure
from replaykit.steps.generate.conversations import Settled
from replaykit.steps.generate.perplexity import PerplexityCheck
from replaykit.steps.score.logprobs import Scores, different_examples, score_examples
from replaykit.steps.train.fit import Base, Extras, check_packing, fit
from replaykit.steps.train.remedies.weights import flow_temperature, weights

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("t5", "bart")


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of two and two layers, saved."""
    return saved(tmp_path_factory.mktemp(request.param), request.param)


def saved(folder: Path, kind: str, **changes: Any) -> str:
    """The model as a folder, without a chat template, as such models come."""
    save(folder, kind, **changes)
    (folder / "chat_template.jinja").unlink()
    return str(folder)


def rows(count: int = 12) -> list[Record]:
    """Rows of the target and old rows, whose questions and answers have many lengths."""
    target = [
        Record(dialogue(task.prompt, task.answer), "target", {"line": k})
        for k, task in enumerate(world.draw("referral", count, seed=1))
    ]
    old = [
        Record(dialogue(task.prompt, task.answer), "select")
        for task in world.draw_old(count, seed=1)
    ]
    return [*target, *old]


def pairs(chat: Chat, records: Sequence[Record]) -> list[Pair]:
    found = []
    for record in records:
        scored = chat.example(record).scored
        assert isinstance(scored, Pair)
        found.append(scored)
    return found


def by_transformers(network: Any, pair: Pair) -> list[float]:
    """Token by token, what the model's own loss says of an answer that is cut after each."""
    total = []
    labels = torch.tensor([pair.answer])
    for end in range(len(pair.answer)):
        only = torch.full_like(labels, -100)
        only[0, end] = labels[0, end]
        # The decoder reads the labels as they are: those that are not counted are given apart.
        shifted = network.prepare_decoder_input_ids_from_labels(labels=labels)
        with torch.no_grad():
            out = network(
                input_ids=torch.tensor([pair.question]), decoder_input_ids=shifted, labels=only
            )
        total.append(-out.loss.item())
    return total


def greedy(network: Any, question: Sequence[int], stops: Sequence[int], most: int) -> list[int]:
    """The most probable tokens up to a stop, without a cache."""
    made: list[int] = []
    while len(made) < most and not (made and made[-1] in stops):
        so_far = torch.tensor([[network.config.decoder_start_token_id, *made]])
        with torch.no_grad():
            out = network(input_ids=torch.tensor([question]), decoder_input_ids=so_far)
        made.append(int(out.logits[0, -1].argmax()))
    return made


# --- the numbers ----------------------------------------------------------------------------------------------------


def test_each_answer_token_has_the_probability_that_transformers_gives_it(model: str) -> None:
    chat = Chat.load(model)
    network = loading.load_model(model).eval()
    given = pairs(chat, rows(4))
    for pair, scores in zip(given, TransformersEngine(network).score(given), strict=True):
        assert scores == pytest.approx(by_transformers(network, pair), abs=1e-5)
        with torch.no_grad():
            asked, answer = torch.tensor([pair.question]), torch.tensor([pair.answer])
            loss = network(input_ids=asked, labels=answer).loss.item()
        assert -sum(scores) / len(scores) == pytest.approx(loss, abs=1e-5)


def test_batch_and_padding_change_nothing(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat.load(model)
    engine = TransformersEngine(model)
    given = pairs(chat, rows(20))
    assert len({(len(pair.question), len(pair.answer)) for pair in given}) > 10
    together = list(engine.score(given))
    alone = [next(engine.score([pair])) for pair in given]
    backwards = list(engine.score(given[::-1]))[::-1]
    # Three answers' worth of logits at a time.
    monkeypatch.setattr(transformers, "NUMBERS", 3 * 20 * engine.model.config.vocab_size)
    sliced = list(engine.score(given))
    for others in (alone, backwards, sliced):
        for row, other in zip(together, others, strict=True):
            assert row == pytest.approx(other, abs=1e-5)


def test_an_answer_without_tokens_has_no_scores(model: str) -> None:
    empty = Pair((5, 6, 7), ())
    first, second = TransformersEngine(model).score([empty, Pair((5,), (6,))])
    assert (first, len(second)) == ([], 1)
    assert list(TransformersEngine(model).score([empty])) == [[]]


def test_pairs_are_for_encoder_decoders_and_sequences_for_the_others(model: str) -> None:
    with pytest.raises(EngineError, match=r"an encoder-decoder scores pairs .* `example.scored`"):
        list(TransformersEngine(model).score([(1, 2, 3)]))
    with pytest.raises(EngineError, match=r"a causal model scores sequences"):
        list(TransformersEngine(make("llama")).score([Pair((1,), (2,))]))


@pytest.mark.slow
def test_several_processes_score_pairs_too(tmp_path: Path) -> None:
    folder = saved(tmp_path, "t5")
    given = pairs(Chat.load(folder), rows(8))
    expected = list(TransformersEngine(folder).score(given))
    engine = load_engine(folder, EngineOptions(name="transformers", workers=2))
    try:
        for row, other in zip(engine.score(given), expected, strict=True):
            assert row == pytest.approx(other, abs=1e-5)
    finally:
        engine.close()


# --- what is made of them -------------------------------------------------------------------------------------------


def test_a_mixture_is_scored_once_and_every_answer_token_has_a_number(
    model: str, tmp_path: Path
) -> None:
    chat = Chat.load(model)
    engine = TransformersEngine(model)
    examples = different_examples(rows(), chat)
    with Scores(tmp_path / "logprobs.jsonl", "m") as known:
        found = score_examples(examples, engine, known)
    with Scores(tmp_path / "logprobs.jsonl", "m") as known:
        again = score_examples(examples, None, known)
    for key, example in examples.items():
        (scores,) = engine.score([example.scored])
        assert found[key].tolist() == pytest.approx(scores, abs=2e-5)
        assert again[key].tolist() == found[key].tolist()
        assert len(found[key]) == example.loss_tokens == len(scores)


@pytest.mark.slow
@pytest.mark.parametrize(
    "remedies",
    [Remedies(stm=StmSettings(max_perplexity=None, share=0.3)), Remedies(flow=FlowSettings())],
    ids=["stm", "flow"],
)
def test_the_loss_is_that_of_transformers_weighed_token_by_token(
    model: str, remedies: Remedies, tmp_path: Path
) -> None:
    chat, records = Chat.load(model), rows(4)
    network = loading.load_model(model).eval()
    examples = different_examples(records, chat)
    with Scores(tmp_path / "logprobs.jsonl", "m") as known:
        logprobs = score_examples(examples, TransformersEngine(network), known)
    found = weights(records, examples, logprobs, remedies, chat, seed=1)
    total = weight = 0.0
    masked = 0
    for key, example in examples.items():
        assert isinstance(example.scored, Pair)
        logp = by_transformers(network, example.scored)
        if remedies.flow is not None:
            temperature = flow_temperature(records, logprobs, remedies.flow)
            mean = torch.tensor(logp).mean()
            by_hand = [float((mean / temperature).exp())] * len(logp)
            assert found[key].tolist() == pytest.approx(by_hand, rel=1e-4)
        else:
            assert set(found[key].tolist()) <= {0.0, 1.0}
            assert found[key][-1] == 1  # the end of the answer
            masked += int((found[key] == 0).sum())
        total -= sum(w * p for w, p in zip(found[key].tolist(), logp, strict=True))
        weight += float(found[key].sum())
    if remedies.stm is not None:
        assert masked == int(0.3 * sum(map(len, logprobs.values())) + 0.5)
    settings = Train(
        remedies=remedies, batch_rows=8, micro_batch_rows=3, learning_rate=1e-4, log_every=1
    )
    planned = [PlannedRow(0, record) for record in records]
    result = fit(
        planned, Base(model, chat), settings, seed=1, folder=tmp_path, extras=Extras(weights=found)
    )
    assert result.losses[0]["loss"] == pytest.approx(total / weight, abs=1e-4)


def test_the_cross_entropy_of_an_item_is_the_loss_of_transformers(model: str) -> None:
    chat, records = Chat.load(model), rows(5)
    network = loading.load_model(model).eval()
    tests = {"old": (Scored(path="old.jsonl", score="cross_entropy"), records)}
    items = list(measure(TransformersEngine(network), chat, tests))
    assert len(items) == len(records)
    for item, pair in zip(items, pairs(chat, records), strict=True):
        with torch.no_grad():
            asked, answer = torch.tensor([pair.question]), torch.tensor([pair.answer])
            loss = network(input_ids=asked, labels=answer).loss.item()
        assert item.tokens == len(pair.answer)
        assert item.score is not None
        assert item.score / item.tokens == pytest.approx(loss, abs=1e-5)


def test_a_model_without_a_template_is_asked_and_its_answers_are_read(model: str) -> None:
    chat, records = Chat.load(model), rows(3)
    assert chat.plain
    tests = {"old": (Scored(path="old.jsonl", max_tokens=5), records)}
    network = loading.load_model(model).eval()
    for item, pair in zip(
        measure(TransformersEngine(network), chat, tests), pairs(chat, records), strict=True
    ):
        assert item.answer == chat.decode(greedy(network, pair.question, chat.stop, 5))
        assert item.score in (0.0, 1.0)


def test_texts_stand_within_the_tokens_that_the_tokenizer_puts_around_them(chat: Chat) -> None:
    """As BART's does, in what it reads and in its labels; T5's puts eos after them alone."""
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = loading.load_tokenizer("nano")
    tokenizer.chat_template = None
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    record = Record(dialogue("Who won?", "Nobody"), "target")
    asked, said = chat.encode("Who won?"), chat.encode("Nobody")
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    for template, before in ((f"$A {end}", ()), (f"{begin} $A {end}", (first,))):
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=[(begin, first), (end, last)]
        )
        pair = Chat(tokenizer, seq2seq=True)
        assert pair.prompt(record.messages[:1]) == (*before, *asked, last)
        assert pair.example(record).scored == Pair((*before, *asked, last), (*before, *said, last))
        assert list(pair.example(record).scored.question) == tokenizer("Who won?")["input_ids"]  # type: ignore[union-attr]
        reply = pair.reply((*before, *said))
        assert reply.message["content"] == "Nobody"
        assert not reply.special


def test_a_model_without_a_template_answers_prompts(model: str, here: Path) -> None:
    Path("questions.txt").write_text("Who won?\nWho lost?\n")
    Path("recipe.yaml").write_text(
        f"model: {model}\ngenerate: {{prompts: questions.txt, max_answer_tokens: 8}}\n"
    )
    type_in("generate", "--recipe", "recipe.yaml", "--out", "made")
    assert len(Path("made/answers.jsonl").read_text().splitlines()) == 2


def test_answers_are_bounded_by_their_perplexity_and_questions_have_none(model: str) -> None:
    chat, records = Chat.load(model), rows(2)
    engine = TransformersEngine(model)
    settled = [Settled(k, record, None) for k, record in enumerate(records)]
    low = PerplexityCheck(engine, chat, Checks(perplexity=[0.0, 1.0])).verdicts(settled)
    assert all(isinstance(one, Verdict) and one.reason == "answer_perplexity" for one in low)
    high = PerplexityCheck(engine, chat, Checks(perplexity=[0.0, 1e9])).verdicts(settled)
    assert high == [None] * len(records)


def test_an_answer_of_weight_0_carries_no_loss(model: str) -> None:
    asked, answer = dialogue("Who won?", "Nobody")
    example = Chat.load(model).example(Record((asked, {**answer, "weight": 0}), "target"))
    assert example.loss_tokens == 0
    assert example.learned == ()
    assert len(example.scored.answer) > 1  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "hidden"),
    [
        ({"reasoning_content": "Easy."}, "reasoning_content"),
        (
            {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]},
            "calls",
        ),
    ],
    ids=str,
)
def test_what_has_no_form_as_a_text_is_refused_by_name(
    model: str, changes: dict[str, Any], hidden: str
) -> None:
    chat = Chat.load(model)
    asked, answered = dialogue("2 + 2?", "4")
    with pytest.raises(ChatError, match=hidden):
        chat.example(Record((asked, {**answered, **changes}), "target"))
    tool: Tool = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(ChatError, match="the tools"):
        chat.example(Record((asked, answered), "target", tools=(tool,)))
    with pytest.raises(ChatError, match="the tools"):
        chat.prompt([asked], tools=[tool])


def test_a_run_with_stm_scores_trains_and_tests_by_cross_entropy(here: Path) -> None:
    folder = saved(here / "t5", "t5")
    write_jsonl(Path("target.jsonl"), rows()[:12])
    write_jsonl(Path("pool.jsonl"), rows()[12:])
    held = [Record(dialogue(f"Is {k} odd?", "no" if k % 2 else "yes"), "select") for k in range(8)]
    write_jsonl(Path("held.jsonl"), held)
    train = {"steps": 2, "batch_rows": 4, "remedies": {"stm": {"max_perplexity": 500}}}
    Path("replaykit.yaml").write_text(
        f"name: pairs\nmodel: {folder}\ntarget: target.jsonl\nselect: {{pool: pool.jsonl, n: 4}}\n"
        f"mix: {{ratio: 0.25}}\ntrain: {json.dumps(train)}\n"
        "eval: {old: {pool: {path: held.jsonl, score: cross_entropy}}}\n"
    )
    type_in("select")
    type_in("mix")
    scored = json.loads(type_in("score", "--json"))
    assert scored["scored"] == scored["rows"] > 4
    assert {"target", "select"} == set(scored["sources"])
    trained = json.loads(type_in("train", "--json"))
    assert 0 < trained["weights"]["sources"]["target"]["masked"] < 1
    assert type_in("eval")
    again = json.loads(type_in("eval", "--json"))
    base, tuned = again["models"]
    assert base["scores"]["pool"]["mean"] > 1
    assert tuned["drop"]["pool"]["low"] <= tuned["drop"]["pool"]["mean"]


# --- how long they may be -------------------------------------------------------------------------------------------


def test_question_and_answer_have_the_positions_of_the_model_each(tmp_path: Path) -> None:
    engine = TransformersEngine(saved(tmp_path, "bart", max_position_embeddings=24))
    assert engine.limit == 24
    question = tuple(range(5, 29))
    (scores,) = engine.score([Pair(question, question)])
    assert len(scores) == 24
    request = Request(0, question, Sampling(temperature=0.0, max_tokens=40), seed=1)
    (done,) = engine.complete([request])
    assert (len(done.tokens), done.finish_reason) == (24, "length")
    with pytest.raises(EngineError, match="its prompt has 25 tokens and the model reads 24"):
        room_for(Request(0, (*question, 5), Sampling()), 24, apart=True)
    with pytest.raises(EngineError, match="its prompt has 24 tokens and the model reads 24"):
        room_for(request, 24)


# --- what cannot be -------------------------------------------------------------------------------------------------


def test_vllm_is_refused_in_words_and_is_not_chosen(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError, match=r"is an encoder-decoder, and vLLM has none .* `--engine"):
        load_engine(model, "vllm")
    monkeypatch.setattr(engines, "find_spec", lambda _: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engines.choose("auto", "nano") == engines.choose("auto") == "vllm"
    assert engines.choose("auto", model) == "transformers"
    assert engines.engine_fact(EngineOptions(), model) == "transformers"
    # What cannot be loaded is said when it is loaded.
    assert engines.choose("auto", "nowhere") == "vllm"


def test_a_server_scores_no_pair() -> None:
    with pytest.raises(EngineError, match="what it writes; take `--engine transformers`"):
        list(to_score([(1, 2), Pair((1,), (2,))]))


def test_rows_to_be_packed_are_refused_before_the_model_is_loaded_or_replay_made(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(here / "t5", "t5")
    write_jsonl(Path("target.jsonl"), rows()[:12])
    write_jsonl(Path("pool.jsonl"), rows()[12:])
    train = {"packing": True, "remedies": {"stm": {}}, "steps": 1, "batch_rows": 4}
    Path("replaykit.yaml").write_text(
        f"name: packed\nmodel: {folder}\ntarget: target.jsonl\nselect: {{pool: pool.jsonl, n: 4}}\n"
        f"mix: {{ratio: 0.25, unit: rows}}\ntrain: {json.dumps(train)}\n"
    )
    reason = "train.packing: rows of an encoder-decoder cannot be packed, since its encoder reads"
    monkeypatch.setattr(loading, "load_model", None)
    assert reason in " ".join(type_in("run", code=1).split())
    assert not Path("runs").exists()
    type_in("select")
    type_in("mix")
    assert reason in " ".join(type_in("train", code=1).split())
    assert not Path("runs/packed/logprobs.jsonl").exists()


def test_questions_that_are_read_have_no_perplexity_to_be_bounded(here: Path) -> None:
    folder = saved(here / "t5", "t5")
    Path("questions.txt").write_text("Who won?\n")
    Path("recipe.yaml").write_text(
        f"model: {folder}\ngenerate: {{prompts: questions.txt, "
        f"checks: {{question_perplexity: [0, 9]}}}}\n"
    )
    said = type_in("generate", "--recipe", "recipe.yaml", code=1)
    assert "generate.checks.question_perplexity" in said
    assert "leave it out" in said


def test_rows_of_a_causal_model_may_be_packed(chat: Chat) -> None:
    pair = Chat(chat.tokenizer, seq2seq=True)
    with pytest.raises(RecipeError, match="leave it out"):
        check_packing(Train(packing=True), pair)
    check_packing(Train(packing=True), chat)
    check_packing(Train(), pair)
