"""Averages of base and tuned models: their tensors, their files, the choice of alpha, and the
command.
"""

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from commands import type_in
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from replaykit.cli import app
from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record, dialogue
from replaykit.errors import DataError, EngineError, RecipeError, RunError
from replaykit.model import loading
from replaykit.nano import world
from replaykit.recipe.evaluate import Test as HeldOut
from replaykit.runs import read_manifest
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.merge.average import elected, interpolate, scale_adapter, ties
from replaykit.steps.merge.choose import best_alpha, scores_of
from replaykit.steps.merge.folders import Weights, folder_of
from replaykit.steps.merge.result import MergeResult
from replaykit.steps.step import typed

NANO = Path(loading.resolve("nano"))


def tensors(seed, dtype=torch.float16):
    torch.manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (6, 4),
        "model.a.weight": (4, 4),
        "model.b.weight": (3, 4),
        "model.b.bias": (3,),
        "model.scale": (),
        "model.none": (0, 4),
    }
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def saved(folder, weights, *, shards=1, tied=False):
    """A model folder as transformers writes one."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "tie_word_embeddings": tied})
    )
    (folder / "tokenizer.json").write_text(json.dumps({"of": folder.name}))
    (folder / "training_args.bin").write_text("pickled")
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    files = [f"model-{k + 1:05}-of-{shards:05}.safetensors" for k in range(shards)]
    place = {name: files[k % shards] for k, name in enumerate(weights)}
    for file in files:
        save_file(
            {n: w for n, w in weights.items() if place[n] == file},
            folder / file,
            metadata={"format": "pt"},
        )
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": place})
    )
    return folder


def read(folder):
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def same_bits(found, wanted):
    assert found.keys() == wanted.keys() != set()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype
        assert (
            found[name].reshape(-1).view(torch.uint8).tolist()
            == wanted[name].reshape(-1).view(torch.uint8).tolist()
        )


# --- interpolation --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("base_shards", "tuned_shards"), [(1, 1), (3, 1), (1, 2), (2, 3)])
def test_alpha_0_is_the_base_and_alpha_1_the_tuned_model_bit_for_bit(
    dtype, base_shards, tuned_shards, tmp_path
):
    before, after = tensors(1, dtype), tensors(2, dtype)
    before["model.a.weight"][0], after["model.a.weight"][1] = torch.inf, -0.0
    base = saved(tmp_path / "base", before, shards=base_shards)
    tuned = saved(tmp_path / "tuned", after, shards=tuned_shards)
    interpolate(base, tuned, tmp_path / "0", 0)
    interpolate(base, tuned, tmp_path / "1", 1)
    same_bits(read(tmp_path / "0"), before)
    same_bits(read(tmp_path / "1"), after)
    for file in base.glob("model*"):  # of alpha 0 the very files
        assert (tmp_path / "0" / file.name).read_bytes() == file.read_bytes()


def test_between_the_arithmetic_is_in_float32_and_the_result_in_the_bases_precision(tmp_path):
    before, after = tensors(1, torch.bfloat16), tensors(2, torch.float32)
    after["model.b.weight"] = before["model.b.weight"].float()
    base, tuned = saved(tmp_path / "base", before, shards=2), saved(tmp_path / "tuned", after)
    assert (
        interpolate(base, tuned, tmp_path / "out", 0.3) == 4
    )  # not the one that is the same, nor the empty one
    found = read(tmp_path / "out")
    for name in before:
        wanted = 0.7 * before[name].double() + 0.3 * after[name].double()
        torch.testing.assert_close(found[name].double(), wanted, rtol=2**-8, atol=1e-6)
        assert found[name].dtype == torch.bfloat16
    assert torch.equal(found["model.b.weight"], before["model.b.weight"])


def test_config_is_the_bases_and_the_tokenizer_the_tuned_models(tmp_path):
    base, tuned = (
        saved(tmp_path / "base", tensors(1)),
        saved(tmp_path / "tuned", tensors(2), tied=True),
    )
    (base / "LICENSE").write_text("free")
    interpolate(base, tuned, tmp_path / "out", 0.5)
    assert (tmp_path / "out/config.json").read_text() == (base / "config.json").read_text()
    assert json.loads((tmp_path / "out/tokenizer.json").read_text()) == {"of": "tuned"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "LICENSE",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_the_result_of_the_embedded_model_loads_and_is_between(tmp_path):
    tuned = tuned_nano(tmp_path / "tuned")
    interpolate(NANO, tuned, tmp_path / "out", 0.5)
    found, before, after = (
        loading.load_model(str(each)).state_dict() for each in (tmp_path / "out", NANO, tuned)
    )
    for name in before:
        torch.testing.assert_close(
            found[name], (before[name] + after[name]) / 2, rtol=2e-3, atol=1e-4
        )
    assert (
        loading.load_tokenizer(str(tmp_path / "out")).chat_template
        == loading.load_tokenizer("nano").chat_template
    )


@pytest.mark.parametrize("both", ["base", "tuned"])
def test_a_tied_head_may_be_stored_in_one_of_the_two(both, tmp_path):
    before, after = tensors(1), tensors(2)
    for weights in [before] if both == "base" else [after]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    base, tuned = (
        saved(tmp_path / "base", before, tied=True),
        saved(tmp_path / "tuned", after, tied=True),
    )
    interpolate(base, tuned, tmp_path / "out", 0.5)
    found = read(tmp_path / "out")
    assert found.keys() == before.keys()
    if both == "base":
        assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


def test_a_head_that_is_not_tied_has_no_counterpart(tmp_path):
    before = tensors(1)
    before["lm_head.weight"] = torch.randn(6, 4).half()
    base, tuned = (
        saved(tmp_path / "base", before, tied=True),
        saved(tmp_path / "tuned", tensors(2), tied=True),
    )
    with pytest.raises(DataError, match="lm_head.weight only in the base"):
        interpolate(base, tuned, tmp_path / "out", 0.5)


def test_names_and_shapes_that_do_not_match_are_all_named(tmp_path):
    after = tensors(2)
    after["model.c.weight"] = after.pop("model.b.weight")
    after["model.a.weight"] = torch.randn(5, 4)
    base, tuned = saved(tmp_path / "base", tensors(1)), saved(tmp_path / "tuned", after)
    with pytest.raises(DataError) as caught:
        interpolate(base, tuned, tmp_path / "out", 0.5)
    assert "was not tuned from" in str(caught.value)
    assert "model.b.weight only in the base; model.c.weight only in the tuned model" in str(
        caught.value
    )
    assert "model.a.weight [4, 4] in the base, [5, 4] in the tuned model" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def test_whole_and_quantised_numbers_have_nothing_between(tmp_path):
    packed = {"ids": torch.arange(3), "eight": torch.ones(3).to(torch.float8_e4m3fn)}
    before, after = tensors(1) | packed, tensors(2) | packed
    base, tuned = saved(tmp_path / "base", before), saved(tmp_path / "tuned", after)
    interpolate(base, tuned, tmp_path / "out", 0.5)
    assert torch.equal(read(tmp_path / "out")["ids"], torch.arange(3))
    other = saved(tmp_path / "other", after | {"ids": torch.arange(3) + 1})
    with pytest.raises(DataError, match=r"ids is torch.int64 and was changed"):
        interpolate(base, other, tmp_path / "no", 0.5)
    assert not (tmp_path / "no").exists()
    assert not (tmp_path / "no.tmp").exists()


def test_a_merge_that_is_stopped_leaves_nothing_and_goes_again(tmp_path):
    base, tuned = (
        saved(tmp_path / "base", tensors(1), shards=2),
        saved(tmp_path / "tuned", tensors(2)),
    )

    def stop(what, done, total, note=""):
        if done == 4:
            assert (tmp_path / "out.tmp").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interpolate(base, tuned, tmp_path / "out", 0.5, watch=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]
    (tmp_path / "out.tmp").mkdir()  # as after kill -9
    (tmp_path / "out.tmp/model.safetensors").write_text("half")
    interpolate(base, tuned, tmp_path / "out", 0.5)
    assert read(tmp_path / "out").keys() == tensors(1).keys()
    with pytest.raises(RunError, match="out is there already"):
        interpolate(base, tuned, tmp_path / "out", 0.5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "only safetensors are read"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"short"),
            "cannot be read as safetensors",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64),
            "cannot be read as safetensors",
        ),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    ],
)
def test_a_folder_that_is_no_model_is_one_clear_message(damage, message, tmp_path):
    base, tuned = saved(tmp_path / "base", tensors(1)), saved(tmp_path / "tuned", tensors(2))
    damage(tuned)
    with pytest.raises(DataError, match=message):
        interpolate(base, tuned, tmp_path / "out", 0.5)


def test_an_index_that_names_what_no_file_has_is_an_error(tmp_path):
    base = saved(tmp_path / "base", tensors(1), shards=2)
    index = json.loads((base / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.z.weight"] = next(iter(index["weight_map"].values()))
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"model\.z\.weight, which no file has"):
        interpolate(base, base, tmp_path / "out", 0.5)


def test_no_more_than_a_few_tensors_are_in_memory(tmp_path, monkeypatch):
    base, tuned = (
        saved(tmp_path / "base", tensors(1), shards=2),
        saved(tmp_path / "tuned", tensors(2)),
    )
    alive, most = [], []
    real = Weights.__getitem__

    def tracked(self, name):
        tensor = real(self, name)
        alive.append(weakref.ref(tensor))
        most.append(sum(ref() is not None for ref in alive))
        return tensor

    monkeypatch.setattr(Weights, "__getitem__", tracked)
    interpolate(base, tuned, tmp_path / "out", 0.5)
    assert len(most) == 12
    assert max(most) <= 4


# --- TIES -----------------------------------------------------------------------------------------


def test_ties_trims_elects_and_averages_those_that_agree():
    first = torch.tensor([5.0, -4.0, 1.0, 3.0, 0.5])
    second = torch.tensor([3.0, 2.0, -6.0, -3.0, 0.1])
    # Trimmed to 4 of 5: [5, -4, 1, 3, 0] and [3, 2, -6, -3, 0]. Sums: 8, -2, -5, 0, 0.
    assert elected([first, second], 0.8).tolist() == [4.0, -4.0, -6.0, 0.0, 0.0]
    # Trimmed to 2 of 5: [5, -4, 0, 0, 0] and [3, 0, -6, -3, 0]: the second has two of magnitude 3.
    assert elected([first, second], 0.4).tolist() == [4.0, -4.0, -6.0, -3.0, 0.0]


def test_ties_of_one_model_at_density_1_is_that_model_and_of_none_of_its_changes_the_base(tmp_path):
    before, after = tensors(1, torch.float32), tensors(2, torch.float32)
    base, tuned = saved(tmp_path / "base", before), saved(tmp_path / "tuned", after, shards=2)
    ties(base, [tuned], tmp_path / "all", density=1.0)
    for name, tensor in read(tmp_path / "all").items():
        torch.testing.assert_close(tensor, after[name])
    assert ties(base, [tuned, base], tmp_path / "none", density=1.0, scale=0.0) == 0
    same_bits(read(tmp_path / "none"), before)


def test_ties_keeps_what_two_models_learned_in_different_places(tmp_path):
    before = {"a": torch.zeros(4, 4)}
    first, second = torch.zeros(4, 4), torch.zeros(4, 4)
    first[0], second[1], first[2], second[2] = 1.0, -2.0, 3.0, 5.0
    folders = [
        saved(tmp_path / name, {"a": value}) for name, value in (("1", first), ("2", second))
    ]
    ties(saved(tmp_path / "base", before), folders, tmp_path / "out", density=0.5)
    assert read(tmp_path / "out")["a"][:, 0].tolist() == [1.0, -2.0, 4.0, 0.0]


def test_ties_refuses_what_makes_no_sense(tmp_path):
    base = saved(tmp_path / "base", tensors(1))
    with pytest.raises(RecipeError, match=r"density: must be above 0 \(got 0\)"):
        ties(base, [base], tmp_path / "out", density=0.0)
    with pytest.raises(RecipeError, match=r"density: must be from 0 to 1 \(got 1.5\)"):
        ties(base, [base], tmp_path / "out", density=1.5)


# --- adapters -------------------------------------------------------------------------------------


def adapter(folder, **options):
    import peft

    torch.manual_seed(3)
    model = peft.get_peft_model(
        loading.load_model("nano"),
        peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], **options),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


def test_a_scaled_adapter_is_the_interpolation_of_base_and_merged_model(tmp_path):
    import peft

    scaled = scale_adapter(adapter(tmp_path / "adapter"), tmp_path / "out", 0.25)
    assert scaled == 2 * 4
    before, after = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "out")
    )
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name] * (0.25 if "lora_B" in name else 1))
    merged, part = (
        peft.PeftModel.from_pretrained(loading.load_model("nano"), tmp_path / name)
        .merge_and_unload()
        .state_dict()
        for name in ("adapter", "out")
    )
    base = loading.load_model("nano").state_dict()
    for name in base:
        torch.testing.assert_close(
            part[name], torch.lerp(base[name], merged[name], 0.25), rtol=1e-5, atol=1e-6
        )


def test_an_adapter_whose_effect_is_not_that_of_b_alone_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"it trains .*norm.* as well; merge it and use --method wise-ft"
    ):
        scale_adapter(adapter(tmp_path / "norms", modules_to_save=["norm"]), tmp_path / "out", 0.5)
    with pytest.raises(DataError, match="only a plain LoRA adapter"):
        scale_adapter(adapter(tmp_path / "dora", use_dora=True), tmp_path / "out", 0.5)
    with pytest.raises(
        DataError,
        match="it begins by taking a part of the base's weights; merge it and use --method",
    ):
        scale_adapter(adapter(tmp_path / "pissa", init_lora_weights="pissa"), tmp_path / "out", 0.5)
    with pytest.raises(DataError, match="no LoRA adapter in safetensors"):
        scale_adapter(NANO, tmp_path / "out", 0.5)
    with pytest.raises(
        DataError, match="is an adapter, not a whole model; --method adapter scales it"
    ):
        interpolate(NANO, tmp_path / "norms", tmp_path / "out", 0.5)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_here_and_cannot_be_fetched_is_one_clear_message(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EngineError, match="me/absent cannot be loaded"):
        folder_of("me/absent")
    assert folder_of("nano") == NANO


# --- the choice of alpha --------------------------------------------------------------------------


def scores(target, old, n=200):
    """Of n items each: the first so many right."""
    return {"target": [1.0] * target + [0.0] * (n - target), "old": [1.0] * old + [0.0] * (n - old)}


def test_the_highest_target_score_whose_old_skills_stay_is_chosen():
    by_alpha = {
        0.0: scores(50, 900, 1000),
        0.3: scores(600, 900, 1000),
        0.5: scores(750, 895, 1000),
        0.8: scores(950, 870, 1000),
        1.0: scores(975, 450, 1000),
    }
    choice = best_alpha(scores(50, 900, 1000), by_alpha)
    assert choice.alpha == 0.5
    assert [row.alpha for row in choice.table] == [0.0, 0.3, 0.5, 0.8, 1.0]
    assert [row.allowed for row in choice.table] == [True, True, True, False, False]
    assert [row.chosen for row in choice.table] == [False, False, True, False, False]
    # 30 of 1,000 lost is 3 points; 5 of 1,000 is 0.5 points.
    assert choice.table[2].old_drop.mean == 0.005
    assert choice.table[2].old_drop.high <= 0.02 < choice.table[3].old_drop.high
    assert choice.table[4].old_drop.mean == 0.45


def test_of_two_alphas_alike_the_smaller_is_chosen():
    by_alpha = {1.0: scores(50, 100), 0.4: scores(50, 100), 0.2: scores(40, 100)}
    assert best_alpha(scores(10, 100), by_alpha, margin=0.05).alpha == 0.4


def test_a_drop_of_two_points_whose_bound_is_higher_is_not_allowed():
    choice = best_alpha(scores(10, 100), {0.5: scores(50, 98)})
    assert choice.table[0].old_drop.mean == 0.01
    assert choice.table[0].old_drop.high > 0.02
    assert choice.alpha is None
    assert best_alpha(scores(10, 100), {0.5: scores(50, 98)}, margin=0.05).alpha == 0.5


def test_a_skill_that_gains_makes_up_for_one_that_drops_in_the_mean():
    base = {"target": [0.0], "a": [1.0, 1.0, 0.0, 0.0] * 50, "b": [1.0, 1.0, 0.0, 0.0] * 50}
    after = {"target": [1.0], "a": [1.0, 0.0, 0.0, 0.0] * 50, "b": [1.0, 1.0, 1.0, 0.0] * 50}
    (row,) = best_alpha(base, {0.5: after}).table
    assert row.old_drop.mean == 0.0
    assert row.old == 0.5
    assert row.allowed is False  # the interval is wide


def test_items_that_some_model_cannot_read_and_skills_in_nats_are_left_out_of_the_choice():
    tests = {
        "capital": HeldOut(path="c"),
        "text": HeldOut(path="t", score="cross_entropy"),
        "target": HeldOut(path="n", score="cross_entropy"),
    }

    def items(right, losses):
        return {
            "capital": [Item("capital", row, score) for row, score in enumerate(right)],
            "text": [Item("text", 0, 1.0, tokens=2)],
            "target": [
                Item("target", row, score, tokens=count)
                for row, (score, count) in enumerate(losses)
            ],
        }

    found = scores_of(
        tests,
        {
            "base": items([1.0, None, 0.0], [(6.0, 2), (2.0, 6)]),
            "alpha-1": items([1.0, 1.0, 1.0], [(2.0, 2), (2.0, 6)]),
        },
    )
    assert found["base"].keys() == {"capital", "target"}
    assert found["base"]["capital"] == [1.0, 0.0]
    assert sum(found["base"]["target"]) / 2 == pytest.approx(-1.0)
    assert sum(found["alpha-1"]["target"]) / 2 == pytest.approx(-0.5)
    with pytest.raises(
        DataError, match="none of its rows fits the model, so capital cannot be scored"
    ):
        scores_of(tests, {"base": items([None], [(6.0, 2)])})


# --- the command ----------------------------------------------------------------------------------


def tuned_nano(folder, by=0.02):
    """The embedded model, moved by noise."""
    shutil.copytree(NANO, folder)
    torch.manual_seed(4)
    weights = load_file(folder / "model.safetensors")
    moved = {
        name: (tensor.float() + by * torch.randn(tensor.shape)).half()
        for name, tensor in weights.items()
    }
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def swept(here):
    """A recipe with held-out rows, and a tuned model that has lost everything at alpha 1."""
    for skill in ("capital", "referral"):
        rows = world.draw(skill, 8, seed=1, held_out=True)
        write_jsonl(
            f"{skill}.jsonl", [Record(dialogue(t.prompt, t.answer), "target") for t in rows]
        )
    Path("replaykit.yaml").write_text(
        "name: small\nmodel: nano\nengine: transformers\n"
        "eval: {target: {path: referral.jsonl, max_tokens: 8},"
        " old: {capital: {path: capital.jsonl, max_tokens: 8}}}\n"
    )
    tuned_nano(here / "tuned", by=0.3)
    return here


def test_the_command_merges_and_is_skipped_when_it_is_finished(here):
    tuned_nano(here / "tuned")
    words = ["merge", "--base", "nano", "--tuned", "tuned", "--alpha", 0.25]
    made = json.loads(type_in(*words, "--json"))
    assert made["alpha"] == 0.25
    assert made["changed"] == len(load_file(NANO / "model.safetensors"))
    assert (
        loading.load_model(made["model"]).num_parameters()
        == loading.load_model("nano").num_parameters()
    )
    manifest = read_manifest(Path("runs/nano/merge"))
    assert manifest is not None
    result = typed(manifest, MergeResult, Path("runs/nano/merge"))
    assert (result.base, result.method) == ("nano", "wise-ft")
    again = CliRunner().invoke(app, [str(word) for word in words])
    assert "finished before" in again.stderr
    two = ["--tuned", "tuned", "--tuned", "tuned"]
    type_in("merge", "--base", "nano", *two, "--method", "ties", "--out", "two")
    assert (
        loading.load_model("two/model").num_parameters()
        == loading.load_model("nano").num_parameters()
    )


def test_an_adapter_is_scaled_by_the_command(here):
    adapter(here / "adapter")
    made = json.loads(
        type_in("merge", "--base", "nano", "--tuned", "adapter", "--method", "adapter", "--json")
    )
    assert made["changed"] == 8
    assert (Path(made["model"]) / "adapter_config.json").exists()


def test_a_sweep_keeps_the_best_and_measures_nothing_twice(swept):
    words = ["merge", "--tuned", "tuned", "--sweep"]
    found = json.loads(type_in(*words, "0,0.5,1", "--json"))
    assert [row["alpha"] for row in found["table"]] == [0, 0.5, 1]
    assert found["table"][0]["old_drop"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["table"][2]["allowed"] is False
    (chosen,) = [row for row in found["table"] if row["chosen"]]
    assert found["alpha"] == chosen["alpha"] < 1
    folder = Path("runs/small/merge")
    items = {f"items-{name}.jsonl" for name in ("base", "alpha-0.5", "alpha-1")}
    made = {path.name for path in folder.iterdir()}
    assert made == items | {"inputs.json", "manifest.json", "model", "table.json"}
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("items-*")}
    again = json.loads(type_in(*words, "0,0.2,0.5,1", "--json"))
    assert len(again["table"]) == 4
    assert (
        before.items()
        <= {path.name: path.stat().st_mtime_ns for path in folder.glob("items-*")}.items()
    )
    shown = type_in(*words, "0,0.2,0.5,1")
    assert "chosen" in shown
    assert "loses too much" in shown


def test_a_sweep_in_which_nothing_is_allowed_says_so_and_keeps_what_it_measured(swept):
    text = type_in("merge", "--tuned", "tuned", "--sweep", "1", code=1)
    assert "no alpha keeps the drop of old skills within 2 points" in text
    assert "Add smaller alphas to --sweep" in text
    assert Path("runs/small/merge/items-alpha-1.jsonl").exists()
    assert not Path("runs/small/merge/model").exists()
    assert (
        json.loads(type_in("merge", "--tuned", "tuned", "--sweep", "0,1", "--json"))["alpha"] == 0
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge"], "merge needs model"),
        (["merge", "--base", "nano"], "`replaykit train` makes it"),
        (["merge", "--base", "nano", "--tuned", "absent"], "--model absent: neither a folder here"),
        (
            ["merge", "--base", "nano", "--tuned", "nano", "--alpha", "1.5"],
            "alpha: must be from 0 to 1 (got 1.5)",
        ),
        (
            ["merge", "--base", "nano", "--tuned", "nano", "--method", "slerp"],
            "it is wise-ft, ties or adapter",
        ),
        (
            ["merge", "--base", "nano", "--tuned", "nano", "--tuned", "nano"],
            "several are merged by --method ties",
        ),
        (["merge", "--base", "nano", "--tuned", "nano", "--sweep", "0,1"], "merge needs eval"),
        (
            ["merge", "--base", "nano", "--tuned", "nano", "--method", "adapter"],
            "no LoRA adapter in safetensors",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_exit_code_1(here, words, message):
    text = type_in(*words, code=1)
    assert text.startswith("error: ")
    assert message in text


def test_alphas_are_written_out_or_with_dots(swept):
    from replaykit.cli.read import alphas

    assert alphas("0,0.1,...,1") == [k / 10 for k in range(11)]
    assert alphas("0,0.3,...,1") == [0, 0.3, 0.6, 0.9, 1]
    assert alphas("1, 0.5,0.5") == [0.5, 1.0]
    for text in ("0,...,1", "a", "0,0.1,...", "0,0,...,1"):
        assert "--sweep" in type_in("merge", "--tuned", "tuned", "--sweep", text, code=2)
    assert "alphas from 0 to 1" in type_in("merge", "--tuned", "tuned", "--sweep", "0,2", code=1)
