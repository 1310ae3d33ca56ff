"""What a generation will take is said before it starts, and each figure says where it is from."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from replaykit.checks.fidelity import RawSample
from replaykit.checks.funnel import FunnelCounts
from replaykit.devices import GPUS
from replaykit.errors import DataError, EngineError, RunError
from replaykit.recipe.chat import ChatOptions
from replaykit.recipe.data import Asked
from replaykit.recipe.engine import EngineOptions
from replaykit.recipe.generate import Generate
from replaykit.runs import open_step
from replaykit.steps.generate.estimate import Measured, estimate, measured
from replaykit.steps.generate.result import EstimateResult, GenerateResult

LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
}
LLAMA_8B |= {"num_attention_heads": 32, "num_key_value_heads": 8}
SEEN = Measured(
    questions=1000, question_tokens=12_000, answers=800, answer_tokens=16_000, made=1000, kept=500
)
SERVER = EngineOptions(name="openai", server="http://localhost:8000/v1")


def guess(settings: Generate | None = None, **options: Any) -> EstimateResult:
    given: dict[str, Any] = {
        "model": "nano",
        "settings": settings or Generate(n=1000),
        "engine": EngineOptions(name="vllm"),
    }
    return estimate(**given | options)


def known(value: float | None) -> float:
    assert value is not None
    return value


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


@pytest.fixture(scope="module")
def eight_billion(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the config of Llama-3-8B, and no weights."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("llama-8b")
    LlamaConfig(**LLAMA_8B).save_pretrained(folder)
    return str(folder)


def on_gpu(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)


# --- parameters -----------------------------------------------------------------------------------


def test_parameters_are_counted_exactly_and_without_weights(
    eight_billion: str, transformers_engine: Any
) -> None:
    assert guess(model=eight_billion).parameters == 8_030_261_248
    assert guess().parameters == sum(
        weight.numel() for weight in transformers_engine.model.parameters()
    )


def test_a_model_that_is_not_there_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(EngineError, match="neither a folder here, nor a Hub id"):
        guess(model="lama3")


@pytest.mark.slow
def test_an_encoder_is_no_model_to_generate_with(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig

    CLIPVisionConfig().save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="cannot be loaded"):
        guess(model=str(tmp_path))


# --- rows and tokens ------------------------------------------------------------------------------


def test_without_rows_everything_is_assumed_and_says_so() -> None:
    found = guess()
    assert (found.rows, found.kept, found.draw, found.kept_share) == (1000, 0, 1250, 0.8)
    assert (found.question_tokens, found.answer_tokens) == (1250 * 40, 1000 * 386)
    assert set(found.basis.to_json().values()) == {"assumed", "unknown"}
    assert found.basis.price == "unknown"
    assert found.text[0] == "1,000 rows: about 1,250 to draw at a yield of 80 % (assumed)"
    assert found.text[1] == (
        "about 50,000 tokens of questions (40 each, assumed) and 386,000 tokens of answers (386 each, assumed)"
    )


def test_token_limits_bound_what_is_assumed() -> None:
    found = guess(Generate(n=1000, max_question_tokens=10, max_answer_tokens=20))
    assert (found.question_tokens, found.answer_tokens) == (1250 * 10, 1000 * 20)


def test_turns_and_answers_multiply_what_is_said() -> None:
    once = guess()
    turns = guess(Generate(n=1000, turns=3))
    assert turns.draw == once.draw
    assert turns.question_tokens == 3 * once.question_tokens
    assert turns.answer_tokens == 3 * once.answer_tokens
    several = guess(Generate(n=1000, answers=4, answer_temperature=0.7))
    assert several.draw == pytest.approx(once.draw / 4, abs=1)
    assert several.answer_tokens == pytest.approx(once.answer_tokens, rel=0.01)


def test_questions_of_the_users_own_cost_no_tokens(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {k}"}) + "\n" for k in range(30)))
    found = guess(Generate(prompts=Asked(path=str(path))))
    assert (found.rows, found.draw, found.question_tokens, found.answer_tokens) == (
        30,
        30,
        0,
        30 * 386,
    )
    assert found.text[1] == "about 11,580 tokens of answers (386 each, assumed)"
    assert guess(Generate(n=19, prompts=Asked(path=str(path)))).draw == 20
    with pytest.raises(DataError):
        guess(Generate(prompts=Asked(path=str(tmp_path / "none.jsonl"))))


def test_measured_rows_take_the_place_of_each_assumption() -> None:
    found = guess(seen=replace(SEEN, tokens_per_second=1000.0, model="nano", engine="vllm"))
    assert (found.kept_share, found.draw) == (0.5, 1000)
    assert (found.question_tokens, found.answer_tokens) == (12_000, 16_000)
    assert found.hours == pytest.approx(28 / 3600)
    basis = found.basis
    assert basis.kept_share == basis.question_tokens == basis.answer_tokens == "measured"
    assert basis.speed == "measured"
    assert (
        found.text[0]
        == "1,000 rows, 500 of them there already: about 1,000 to draw at a yield of 50 % (measured)"
    )
    assert "about 28 seconds on 2 CPU cores at 1,000 tokens/s (measured here)" in found.text


def test_a_finished_run_has_nothing_left_to_draw() -> None:
    found = guess(Generate(n=500), seen=SEEN)
    assert (found.draw, found.question_tokens, found.hours) == (0, 0, 0)


def test_a_few_rows_measure_nothing() -> None:
    few = Measured(questions=20, question_tokens=2000, answers=18, answer_tokens=9, made=20, kept=1)
    found = guess(seen=few)
    assert found.basis.kept_share == found.basis.question_tokens == "assumed"
    assert found.draw == 1249  # for the 999 that are missing


def test_rows_of_another_model_and_the_speed_of_another_engine_are_not_used() -> None:
    assert guess(seen=replace(SEEN, model="llama3")).basis.kept_share == "assumed"
    found = guess(seen=replace(SEEN, engine="transformers", tokens_per_second=3.0))
    assert (found.basis.kept_share, found.basis.speed) == ("measured", "assumed")


# --- what a folder shows --------------------------------------------------------------------------


def ledgers(folder: Path, questions: int = 100, answers: int = 80) -> None:
    lines = {"questions": [{"row": k, "tokens": 10} for k in range(questions)]}
    lines["answers"] = [{"row": k, "tokens": 25} for k in range(answers)]
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def finished(funnel: FunnelCounts) -> GenerateResult:
    return GenerateResult(
        n=funnel.kept,
        rows=funnel.kept,
        kind="magpie",
        model="nano",
        revision=None,
        seed=1,
        sampling=Generate(),
        chat=ChatOptions(),
        pre_query=None,
        date=None,
        tokens={"questions": 1000, "answers": 2000},
        funnel=funnel,
        fidelity=RawSample().summary(),
        tags=None,
    )


def test_a_folder_without_rows_shows_nothing(tmp_path: Path) -> None:
    assert measured(tmp_path / "none") is None
    with open_step("generate", tmp_path / "run", {"model": "nano"}):
        assert measured(tmp_path / "run") is None


def test_a_run_under_way_shows_its_rows_but_no_speed_and_is_left_as_it_is(tmp_path: Path) -> None:
    with open_step("generate", tmp_path / "run", {"model": "nano", "engine": "vllm"}) as step:
        ledgers(step.folder)
        with (step.folder / "answers.jsonl").open("a") as stream:
            stream.write('{"row": 80, "tok')
        (step.folder / "rows.jsonl.tmp").write_text('{"id": "a"}\n' * 60)
        (step.folder / "dropped.jsonl").write_text('{"reason": "duplicate"}\n' * 15)
        before = {file.name: file.read_bytes() for file in step.folder.iterdir()}
        assert measured(step.folder) == Measured(
            questions=100,
            question_tokens=1000,
            answers=80,
            answer_tokens=2000,
            made=75,
            kept=60,
            model="nano",
            engine="vllm",
        )
        assert {file.name: file.read_bytes() for file in step.folder.iterdir()} == before


def test_a_finished_run_shows_its_speed_unless_it_was_interrupted(tmp_path: Path) -> None:
    with open_step("generate", tmp_path / "run", {"model": "nano"}) as step:
        ledgers(step.folder)
        now = time.time()
        step.started -= 100  # it took 100 seconds, the last 40 of them for tags
        os.utime(step.folder / "inputs.json", (now - 100, now - 100))
        for name in ("questions.jsonl", "answers.jsonl"):
            os.utime(step.folder / name, (now - 40, now - 40))
        step.finish(finished(FunnelCounts(made=100, dropped={"duplicate": 22}, kept=78)))
        found = measured(step.folder)
    assert found is not None
    assert (found.made, found.kept) == (100, 78)
    assert found.tokens_per_second == pytest.approx(3000 / 60, rel=0.02)
    os.utime(step.folder / "inputs.json", (now - 900, now - 900))
    interrupted = measured(step.folder)
    assert interrupted == replace(found, tokens_per_second=None)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"row": 0, "tokens": 3}\n{"row": \n')
    with pytest.raises(RunError, match=r"questions\.jsonl:2: damaged"):
        measured(tmp_path)


# --- devices --------------------------------------------------------------------------------------


def test_on_a_cpu_the_embedded_models_speed_is_scaled_by_parameters_and_cores(
    eight_billion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert guess().tokens_per_second == pytest.approx(6500, rel=0.01)
    assert guess().cost is None
    assert (
        "the embedded model on two cores, scaled by 1.97M parameters and 2 cores" in guess().text[2]
    )
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    assert guess(model=eight_billion).tokens_per_second == pytest.approx(
        6500 * 16 * 1.97e6 / 8.03e9, abs=0.1
    )
    assert guess(price_per_hour=2.0).cost == pytest.approx(known(guess().hours) * 2)


def test_on_an_a100_it_is_the_papers_speed(
    eight_billion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu(monkeypatch, "NVIDIA A100-SXM4-80GB")
    found = guess(model=eight_billion)
    assert found.tokens_per_second == pytest.approx(1720, rel=0.01)
    assert found.hours == pytest.approx((1250 * 40 + 1000 * 386) / 1720 / 3600, rel=0.01)
    assert found.cost == pytest.approx(known(found.hours) * 1.80)
    assert found.basis.price == "assumed"
    assert found.text[2:] == [
        "about 4 minutes on NVIDIA A100-SXM4-80GB at 1,720 tokens/s "
        "(estimate: Magpie's 8B on an A100, scaled by 8.03B parameters and 2.04 TB/s)",
        "about $0.13 at $1.80 an hour (assumed, 2025)",
    ]


def test_the_papers_larger_model_is_foreseen_within_a_fifth(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import LlamaConfig

    large = {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    }
    LlamaConfig(**LLAMA_8B | large).save_pretrained(tmp_path)
    on_gpu(monkeypatch, "NVIDIA A100-SXM4-80GB")
    assert guess(model=str(tmp_path)).tokens_per_second == pytest.approx(216, rel=0.2)


def test_several_gpus_are_faster_and_cost_as_much(
    eight_billion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu(monkeypatch, "NVIDIA A100-SXM4-80GB")
    four_gpus = EngineOptions(name="vllm", workers=2, tensor_parallel=2)
    one = guess(model=eight_billion)
    four = guess(model=eight_billion, engine=four_gpus)
    assert four.hours == pytest.approx(known(one.hours) / 4)
    assert four.cost == pytest.approx(one.cost)
    assert "on 4 × NVIDIA A100-SXM4-80GB" in four.text[2]
    assert "$1.80 an hour for each" in four.text[3]
    given = guess(model=eight_billion, price_per_hour=9.0)
    assert given.cost == pytest.approx(known(one.cost) * 5)
    assert given.basis.price == "given"
    assert given.text[3].endswith("at $9.00 an hour (as given)")


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [
        ("NVIDIA H200", 4.8),
        ("NVIDIA H100 80GB HBM3", 3.35),
        ("NVIDIA H100 PCIe", 2.0),
        ("NVIDIA H100 NVL", 3.9),
        ("NVIDIA A100-PCIE-40GB", 1.555),
        ("NVIDIA A100 80GB PCIe", 2.04),
        ("NVIDIA L40S", 0.864),
        ("NVIDIA L4", 0.30),
        ("NVIDIA A10G", 0.60),
        ("NVIDIA A10", 0.60),
        ("Tesla T4", 0.32),
        ("NVIDIA GeForce RTX 4090", 1.008),
        ("NVIDIA RTX 6000 Ada Generation", 0.96),
        ("AMD Instinct MI300X OAM", 5.3),
    ],
)
def test_a_gpu_is_known_by_its_name(
    eight_billion: str, monkeypatch: pytest.MonkeyPatch, name: str, bandwidth: float
) -> None:
    on_gpu(monkeypatch, name)
    assert guess(model=eight_billion).tokens_per_second == pytest.approx(
        1720 * bandwidth / 2.04, rel=0.001
    )


@pytest.mark.slow
def test_the_table_has_no_line_that_an_earlier_one_hides(
    eight_billion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len({gpu.pattern for gpu in GPUS}) == len(GPUS) > 15
    for gpu in GPUS:
        on_gpu(
            monkeypatch, gpu.pattern.split("|")[0].replace(r"\b", " ").replace(".*", " ").strip()
        )
        assert guess(model=eight_billion).price_per_hour == gpu.price


def test_a_small_model_is_not_promised_millions_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, "NVIDIA H200")
    assert guess().tokens_per_second == 20_000
    assert guess(engine=EngineOptions(name="transformers")).tokens_per_second == 10_000


def test_of_an_unknown_gpu_and_of_a_server_the_time_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpu(monkeypatch, "Imaginary 9000")
    for found, why in (
        (
            guess(),
            "how long Imaginary 9000 will take is not known: its memory bandwidth is not in replaykit's table",
        ),
        (
            guess(engine=SERVER),
            "how long the server will take is not known: its speed is not known here",
        ),
    ):
        assert (found.hours, found.cost, found.basis.speed) == (None, None, "unknown")
        assert found.text[-1] == why
    known = guess(engine=SERVER, seen=replace(SEEN, tokens_per_second=50.0), price_per_hour=1.0)
    assert known.hours == pytest.approx(28_000 / 50 / 3600)
    assert known.cost == pytest.approx(known.hours)


def test_the_estimate_is_json() -> None:
    found = guess()
    assert EstimateResult.model_validate(json.loads(json.dumps(found.to_json()))) == found
