"""The GPU's benchmarks in miniature on a CPU, so that they cannot rot: all that they write, and that they go on."""

from __future__ import annotations

import gzip
import importlib
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, dialogue
from replaykit.engines import load_engine
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.recipe.train import Train
from replaykit.steps.train.fit import Base

pytestmark = pytest.mark.slow  # miniatures of whole benchmarks

HERE = Path(__file__).parents[1] / "benchmarks" / "gpu"
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


sys.path.insert(0, str(HERE))  # the files of the proof import one another
throughput = importlib.import_module("throughput")
proof = importlib.import_module("proof")
proof_data = importlib.import_module("proof_data")
proof_report = importlib.import_module("proof_report")
proof_units = importlib.import_module("proof_units")


def write_data(folder: Path) -> Path:
    """A few rows in the form of each data set."""
    tasks = world.draw("arithmetic", 60, seed=5)
    pairs = [(task.prompt, f"{task.answer}\n#### {task.answer.split()[-1]}") for task in tasks]
    sets: dict[str, list[dict[str, Any]]] = {
        name: [
            {"instruction": f"{name}: {prompt}", "input": "", "output": answer}
            for prompt, answer in pairs[:6]
        ]
        for name in ("alpaca_train", "dolly_train", "lima_train")
    }
    sets["t0_pool"] = [
        {"prompt": f"t0: {prompt}", "completion": answer, "task": "sum"}
        for prompt, answer in pairs[:6]
    ]
    sets["gsm8k_train"] = [{"question": prompt, "answer": answer} for prompt, answer in pairs[:40]]
    sets["gsm8k_test"] = [{"question": prompt, "answer": answer} for prompt, answer in pairs[40:]]
    sets["pubmedqa"] = [
        {"id": str(k), "question": "Does it help?", "contexts": ["It was tried.", f"{k} were well."],
         "long_answer": "It does.", "final_decision": "yes"} for k in range(10)
    ]  # fmt: skip
    folder.mkdir()
    for name, rows in sets.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("gpu") / "data")


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, Path]:
    """The folders of both benchmarks' miniatures."""
    folder = tmp_path_factory.mktemp("mini")
    speed = folder / "throughput"
    kept = folder / "proof"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(sys, "argv", ["throughput.py", "--mini", "--out", str(speed)])
        throughput.main()  # starts a process for each arm
        before = signal.getsignal(signal.SIGTERM)
        patch.setattr(sys, "argv", ["proof.py", "--mini", "--out", str(kept), "--data", str(data)])
        proof.main()
        signal.signal(signal.SIGTERM, before)
    return speed, kept / "mini"


# --- throughput -------------------------------------------------------------------------------------------------------


def measured(folder: Path) -> dict[str, dict[str, Any]]:
    names = throughput.arm_names(mini=True)
    return {name: json.loads(throughput.arm_file(folder, name).read_text()) for name in names}


def test_every_arm_of_the_miniature_is_measured_and_its_numbers_are_sane(
    mini: tuple[Path, Path],
) -> None:
    found = measured(mini[0])
    for run in found.values():
        assert run["tokens"] > 100 and run["seconds"] > 0 and run["gib"] > 0
        assert run["tokens_per_second"] == pytest.approx(run["tokens"] / run["seconds"])
        assert run["flops_per_token"] > 6 * run["parameters"] * 0.1
        assert run["losses"] and all(0 < loss < 10 for loss in run["losses"])
        assert run["replay_share"] == pytest.approx(0.05, abs=1 / 40)  # of 40 rows, so within one
        assert run["mfu"] is None or 0 < run["mfu"] < 1
    ours = [run for name, run in found.items() if "replaykit" in name]
    # The process is most of what so small a model takes.
    assert all(run["estimated_gib"] == pytest.approx(run["gib"], rel=0.25) for run in ours)


def test_trl_trains_on_the_very_same_rows(mini: tuple[Path, Path]) -> None:
    found = measured(mini[0])
    ours, trl = found["mini/full/replaykit/packed/plain"], found["mini/full/trl/padded/plain"]
    assert ours["tokens"] == trl["tokens"]
    assert ours["losses"] == pytest.approx(trl["losses"], abs=1e-4)


def test_the_report_names_every_arm_the_device_and_the_date(mini: tuple[Path, Path]) -> None:
    text, found = (mini[0] / "throughput.md").read_text(), measured(mini[0])
    for name, run in found.items():
        _, method, trainer, batching, remedy = name.split("/")
        assert (
            f"| {method} | {trainer} | {batching} | {remedy} | {run['tokens_per_second']:,.0f} |"
            in text
        )
        assert run["device"] in text and run["date"] in text
        assert run["attention"] and f"attention by {run['attention']}" in text
    assert "times TRL (aim: 1.2)" in text and "Not measured" not in text


def test_finished_arms_are_skipped_and_failed_ones_are_reported(
    mini: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, asked = throughput.arm_names(mini=True), list[str]()
    for name in names[1:]:
        throughput.arm_file(tmp_path, name).write_text(
            throughput.arm_file(mini[0], name).read_text()
        )

    def fails(command: Sequence[str], **_: Any) -> Any:
        asked.append(command[-1])
        return SimpleNamespace(returncode=1, stderr="Traceback\nOutOfMemoryError: 80 GiB")

    monkeypatch.setattr(throughput.subprocess, "run", fails)
    assert throughput.run_all(names, tmp_path, minutes=1) == names[:1]
    assert asked == names[:1]
    assert f"* {names[0]}: OutOfMemoryError: 80 GiB" in throughput.report(names, tmp_path)


def test_no_arm_is_begun_when_the_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = throughput.arm_names(mini=False)
    monkeypatch.setattr(
        throughput.subprocess, "run", lambda *_, **__: pytest.fail("an arm was begun")
    )
    assert throughput.run_all(names, tmp_path, minutes=0) == names


def test_each_size_has_every_remedy_and_every_way_of_trl_full_and_with_lora() -> None:
    names = throughput.arm_names(mini=False)
    assert (
        len(set(names)) == len(names) == 3 * 2 * (1 + len(throughput.OURS) + len(throughput.PEERS))
    )
    assert {name.split("/")[-1] for name in names} >= {
        "stm",
        "dft",
        "distill",
        "ewc",
        "l2sp",
        "project",
        "ema",
    }


def test_the_shapes_are_as_large_as_they_are_called(tmp_path: Path) -> None:
    for name, millions in {"30m": 30, "150m": 150, "1b": 1000}.items():
        assert throughput.SHAPES[name].parameters / 1e6 == pytest.approx(millions, rel=0.05)
        assert throughput.SHAPES[name].hidden % throughput.HEAD_DIM == 0
    from peft import LoraConfig, get_peft_model

    shape = throughput.SHAPES["mini"]
    throughput.make_base(shape, tmp_path)
    engine = load_engine(str(tmp_path), "transformers")
    model = engine.model  # type: ignore[attr-defined]
    assert model.num_parameters() == shape.parameters
    inner = [
        p.numel() for name, p in model.named_parameters() if "layers." in name and p.dim() == 2
    ]
    assert sum(inner) == shape.matrices
    options = {"r": throughput.RANK, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    assert (
        get_peft_model(model, LoraConfig(**options)).get_nb_trainable_parameters()[0]
        == shape.adapter
    )


def test_a_twentieth_of_the_loss_tokens_of_the_whole_load_is_replay_in_every_step(
    tmp_path: Path,
) -> None:
    load = throughput.FULL_LOAD
    throughput.make_base(throughput.SHAPES["mini"], tmp_path)
    chat = Chat.load(str(tmp_path))
    rows = throughput.mixture(chat, throughput.SHAPES["mini"], load)
    records = [row.record for row in rows]
    steps = [row.step for row in rows]
    examples = [chat.example(record) for record in records]
    sizes = [
        (example.loss_tokens, record.source != "target")
        for example, record in zip(examples, records, strict=True)
    ]
    assert sum(n for n, replay in sizes if replay) / sum(n for n, _ in sizes) == pytest.approx(
        0.05, abs=0.001
    )
    assert {steps.count(step) for step in range(load.steps)} == {load.rows}
    assert max(len(example.tokens) for example in examples) <= load.longest
    masked = throughput.masks(records, chat)
    kept = sum(weight.sum() for weight in masked.values()) / sum(map(len, masked.values()))
    assert kept == pytest.approx(1 - throughput.MASKED, abs=0.01)


def test_model_flops_follow_the_formula() -> None:
    shape = throughput.Shape(64, 2, 128, vocabulary=1000)
    counted = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    full = throughput.flops_per_token(shape, lora=False, length=10, loss_share=0.5)
    assert full == 6 * counted + 12 * 2 * 64 * 10 + 6 * 1000 * 64 * 0.5
    lora = throughput.flops_per_token(shape, lora=True, length=10, loss_share=0.5)
    assert lora == 4 * counted + 6 * shape.adapter + 12 * 2 * 64 * 10 + 4 * 1000 * 64 * 0.5


@pytest.mark.parametrize(
    ("device", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12),
     ("NVIDIA A100-SXM4-80GB", 312e12), ("Tesla T4", None)],
)  # fmt: skip
def test_the_peak_is_known_by_the_devices_name(device: str, peak: float | None) -> None:
    assert throughput.peak_flops(device) == peak


def test_idle_is_what_no_kernel_covers() -> None:
    assert throughput.idle_share([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0)]) == pytest.approx(2 / 6)
    assert throughput.idle_share([(0.0, 4.0), (1.0, 2.0)]) == 0
    assert throughput.idle_share([]) is None


# --- proof ------------------------------------------------------------------------------------------------------------


def test_the_proof_trains_every_arm_and_scores_it(mini: tuple[Path, Path]) -> None:
    folder = mini[1]
    for name in proof.MINI_ARMS:
        unit = proof_units.unit_of(folder / f"{name}-seed-1", proof_units.ArmUnit)
        assert 0 < unit.loss < 20 and unit.steps >= 2 and unit.cost >= 1
        wanted = proof_units.ARMS[name].ratio
        assert unit.share["loss_tokens"] == pytest.approx(wanted, abs=0.04 if wanted else 0)
        assert not (folder / f"{name}-seed-1" / "model").exists()
        items = proof_report.read_items(folder / f"{name}-seed-1")
        assert set(items) == {*proof_data.OLD, "general", "new loss", "new answers"}
        assert all(item.score >= 0 for test in items.values() for item in test)
    magpie = proof_units.unit_of(folder / "replay-magpie", proof_units.ReplayUnit)
    assert magpie.rows == proof_data.MINI.replay


def test_the_table_of_the_proof_has_every_arm_with_intervals(mini: tuple[Path, Path]) -> None:
    lines = (mini[1] / "proof.md").read_text().splitlines()
    rows = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ")
        for line in lines
        if line.startswith("| ")
    }
    for name in ("base", *proof.MINI_ARMS):
        kept = rows[name][4]
        mean, low, high = (float(part.strip("[],")) for part in kept.split())
        assert low <= mean <= high and mean > 20, (
            kept
        )  # the embedded model knows the world's skills
    assert float(rows["magpie-10"][1]) > 6 and float(rows["none"][1]) == 0
    learned = [float(rows[name][7].split()[0]) for name in ("base", "none")]
    assert learned[1] < learned[0]
    assert not any(line.startswith("Not finished") for line in lines)


def test_finished_units_of_the_proof_are_skipped(
    mini: tuple[Path, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, done in {"fit": "trained", "measure": "scored", "generate_rows": "generated"}.items():
        failing = lambda *_, done=done, **__: pytest.fail(f"something was {done}")  # noqa: E731
        monkeypatch.setattr(proof_units, name, failing)
    before = {path: path.stat().st_mtime_ns for path in mini[1].rglob("*.json*")}
    work = proof_units.begun(
        mini[1], data, proof_data.MINI, "gsm8k", "transformers", lambda needed=0.0: False
    )
    assert proof.run_all(work, proof.MINI_ARMS, (1,)) == []
    assert {path: path.stat().st_mtime_ns for path in mini[1].rglob("*.json*")} == before
    work = proof_units.begun(
        mini[1], data, proof_data.MINI, "gsm8k", "transformers", lambda needed=0.0: True
    )
    assert proof.run_all(work, ["none"], (1, 2)) == ["none, seed 2"]


def test_the_base_of_the_proof_has_between_30_and_150_million_parameters() -> None:
    with torch.device("meta"):
        tokenizer = SimpleNamespace(bos_token_id=0, eos_token_id=1, pad_token_id=2)
        tokenizer = type(
            "Sized", (SimpleNamespace,), {"__len__": lambda _: proof_data.GPU.vocabulary}
        )(**vars(tokenizer))
        assert 30e6 < proof_units.random_llama(proof_data.GPU, tokenizer).num_parameters() < 150e6


def test_every_arm_that_was_asked_for_is_there_and_its_settings_are_valid(
    mini: tuple[Path, Path], data: Path
) -> None:
    work = proof_units.begun(
        mini[1], data, proof_data.MINI, "gsm8k", "transformers", lambda needed=0.0: False
    )
    for arm in proof_units.ARMS.values():
        assert proof_units.settings_of(work, arm).batch_rows == proof_data.MINI.batch_rows
    for replay in proof_units.REPLAY:
        assert {arm.ratio for arm in proof_units.ARMS.values() if arm.replay == replay} == {
            0.01,
            0.05,
            0.1,
        }
    settings = [proof_units.settings_of(work, arm) for arm in proof_units.ARMS.values()]
    assert sum(one.method == "lora" for one in settings) == 2
    for remedy in ("stm", "distill", "ewc"):
        assert any(getattr(one.remedies, remedy) is not None for one in settings)


def test_equal_compute_means_as_many_tokens_as_with_a_tenth_of_replay(
    mini: tuple[Path, Path], data: Path, chat: Chat, tmp_path: Path
) -> None:
    work = proof_units.begun(
        mini[1], data, proof_data.MINI, "gsm8k", "transformers", lambda needed=0.0: False
    )
    tenth, *_ = proof_units.mixture(work, proof_units.Arm("magpie", 0.1), chat, 1, tmp_path)
    alone, summary, _ = proof_units.mixture(
        work, proof_units.ARMS["none-equal-compute"], chat, 1, tmp_path
    )

    def tokens(made: Any) -> int:
        return sum(
            made.sizes["tokens"][slot.source][slot.row] for slots in made.steps for slot in slots
        )

    assert summary.share["loss_tokens"] == 0
    step = tokens(alone) / len(alone.steps)
    assert tokens(alone) == pytest.approx(tokens(tenth), abs=step)


def test_a_card_has_the_surname_first_and_the_city_in_capitals() -> None:
    learned, held = proof_data.cards(200, seed=1), proof_data.cards(50, seed=1, held_out=True)
    assert not {task.prompt for task in learned} & {task.prompt for task in held}
    for task in learned:
        card = json.loads(task.answer)
        last, first = card["who"].split(", ")
        assert list(card) == ["who", "where", "born"] and card["where"].isupper()
        assert f"{first} {last}" in task.prompt and card["where"].capitalize() in task.prompt


def test_the_tokenizer_of_the_base_makes_a_chat_whose_questions_carry_a_third_of_the_loss() -> None:
    texts = [f"{task.prompt} {task.answer}" for task in world.draw_old(300, seed=1)]
    chat = proof_units.WholeChat(proof_units.make_tokenizer(iter(texts), 400))
    record = Record(dialogue("What is 12 + 7?", "Dublin"), "target")
    made, weight = chat.example(record), chat.weight(record)
    assert (
        made.loss == (False, *[True] * (len(made.tokens) - 1)) and len(weight) == made.loss_tokens
    )
    answer = len(chat.encode("Dublin")) + len(chat.end_of_turn)
    assert weight[-answer:].tolist() == [1.0] * answer
    assert weight[:-answer].tolist() == pytest.approx([1 / 3] * (len(weight) - answer))
    assert "What is 12 + 7?" in chat.decode(made.tokens) and len(chat.encode("12")) == 2


def test_a_base_of_random_weights_is_made_once_and_learns_by_our_trainer(tmp_path: Path) -> None:
    size = replace(proof_data.MINI, hidden=64, layers=1, intermediate=128, vocabulary=400)
    records = proof_data.as_records(world.draw_old(32, seed=1))
    proof_units.make_start(tmp_path / "start", size, records)
    weights = (tmp_path / "start" / "model.safetensors").stat()
    proof_units.make_start(tmp_path / "start", size, records)
    assert (tmp_path / "start" / "model.safetensors").stat() == weights
    chat = proof_units.WholeChat.load(str(tmp_path / "start"))
    base = Base(str(tmp_path / "start"), chat)
    settings = Train(learning_rate=3e-3, batch_rows=8, warmup=0.0)
    weights = {record.id: chat.weight(record) for record in records}
    rows = [PlannedRow(k // 8, record) for k, record in enumerate(records * 4)]
    said = proof_units.trained(tmp_path, rows, base, settings, seed=1, weights=weights)
    assert said.steps == 16 and said.loss < 5.5  # ln 400 = 6.0 is what no model at all knows
    assert proof_units.trained(tmp_path, [], base, settings, seed=1) == said
    assert load_engine(str(tmp_path / "model"), "transformers").limit == proof_units.POSITIONS


def test_pubmedqa_rows_ask_with_their_contexts_and_end_in_the_decision(data: Path) -> None:
    learn, tests, how = proof_data.new_task("pubmedqa", data, proof_data.MINI)
    assert (len(learn), len(tests), how.score) == (8, 2, "exact")
    assert learn[0].prompt.startswith("It was tried.\n") and learn[0].prompt.endswith(
        "Does it help?"
    )
    assert learn[0].answer == "It does.\n#### yes"


# --- without a GPU ----------------------------------------------------------------------------------------------------


@NO_GPU
@pytest.mark.parametrize("module", [throughput, proof], ids=["throughput", "proof"])
def test_without_a_gpu_both_ask_for_the_miniature(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no CUDA device here; --mini"):
        module.main()


def test_an_unknown_arm_is_named_with_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["proof.py", "--arms", "magpie-7"])
    with pytest.raises(SystemExit, match="no magpie-7 among none, "):
        proof.main()
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--only", "7b"])
    with pytest.raises(SystemExit, match="no arm has that in its name"):
        throughput.main()
