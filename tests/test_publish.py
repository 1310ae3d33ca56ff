"""Publishing: what lies in the folder, what the card says, what reaches the Hub, and that the token stays secret.

The Hub is ``loopback_hub``, over real HTTP with the real client; the data are read back by ``datasets.load_dataset``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from replaykit.errors import DataError, HubError
from replaykit.publish.card import dataset_card
from replaykit.publish.hub import prepare, upload
from replaykit.recipe import Recipe, load_recipe
from replaykit.records import Record, dialogue, write_jsonl
from replaykit.runs import open_step, read_manifest

sys.path.insert(0, str(Path(__file__).parent))
from loopback_hub import READ, WRITE, LoopbackHub

REPO = "me/my-replay"
RECIPE = Recipe.model_validate(
    {
        "name": "my-task",
        "model": "qwen2.5-0.5b",
        "seed": 7,
        "target": {"path": "my_task.jsonl"},
        "select": {"pool": {"path": "old.jsonl"}, "n": 2},
        "generate": {"n": 3, "temperature": 0.9},
        "mix": {"ratio": 0.1},
        "push": {"repo": REPO},
    }
)
GENERATED = [
    Record(dialogue("2 + 2?", "4"), "generate", {"row": 0, "seed": 11, "finish": "stop"}),
    Record(
        dialogue("Zürich in 日本語?", "チューリッヒ ✓", system="Be brief."),
        "generate",
        {"row": 1, "seed": 12},
    ),
    Record((*dialogue("a", "b"), *dialogue("```c```", "```\n---\nd\n```")), "generate", {}),
]
SELECTED = [Record(dialogue("capital of France?", "Paris"), "select", {"rank": 1, "score": 0.5}),
            Record(({"role": "text", "content": "plain " * 300},), "select", {"rank": 2})]  # fmt: skip


@dataclass
class Made:
    """A run's two sources as their steps leave them."""

    sources: dict[str, Path]
    manifests: dict[str, dict[str, Any]]

    def prepare(self, folder: Path, repo: str = REPO, recipe: Recipe = RECIPE) -> dict[str, Any]:
        return prepare(folder, repo, recipe, self.sources, self.manifests)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    run = tmp_path / "runs" / "my-task"
    facts = {"model": "qwen2.5-0.5b", "revision": "0a1b2c3d", "seed": 7, "engine": "transformers"}
    funnels = {
        "generate": {"made": 1303, "dropped": {"duplicate": 800, "cut_off": 500}, "kept": 3},
        "select": {"made": 9, "dropped": {"far": 7}, "kept": 2},
    }
    sources, manifests = {}, {}
    for name, rows in {"generate": GENERATED, "select": SELECTED}.items():
        with open_step(name, run / name, {name: {"n": len(rows)}}) as step:
            sources[name] = step.folder / "rows.jsonl"
            write_jsonl(sources[name], rows)
            step.finish(
                {"rows": len(rows), "funnel": funnels[name]},
                **(facts if name == "generate" else {"seed": 7}),
            )
        manifests[name] = read_manifest(run / name) or {}
    manifests["mix"] = {"step": "mix", "ratio": 0.1, "unit": "loss_tokens", "share": 0.0998}
    return Made(sources, manifests)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the client keeps its files; one for all tests, since hf_xet opens its log there once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """The client knows no token of whoever runs this, and can reach nothing but this machine."""
    from huggingface_hub import close_session, constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    lookup = socket.getaddrinfo

    def only_loopback(host: Any, *rest: Any, **more: Any) -> Any:
        assert host in ("127.0.0.1", b"127.0.0.1"), f"a test asked for {host}"
        return lookup(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", only_loopback)
    close_session()  # the client keeps one, made with the environment before


@pytest.fixture(params=["regular", "lfs"])
def hub(
    request: pytest.FixtureRequest, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LoopbackHub]:
    """A Hub that takes parquet in the commit, for the client with hf_xet; and one with LFS, for the client without."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub", lfs=request.param == "lfs") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
    assert running.unknown == []


# --- the folder -----------------------------------------------------------------------------------------------------


def test_the_folder_has_a_parquet_file_for_each_source_a_card_and_the_recipe(
    made: Made, tmp_path: Path
) -> None:
    result = made.prepare(tmp_path / "push")
    files = ["README.md", "replaykit.yaml", "data/generate.parquet", "data/select.parquet"]
    expected = {
        "repo": REPO,
        "folder": str(tmp_path / "push"),
        "rows": {"generate": 3, "select": 2},
        "files": files,
    }
    assert result == expected
    assert sorted(found_in(tmp_path / "push")) == sorted(files)


def test_the_parquet_files_state_their_features(made: Made, tmp_path: Path) -> None:
    import pyarrow.parquet

    made.prepare(tmp_path / "push")
    schema = pyarrow.parquet.read_schema(tmp_path / "push" / "data" / "generate.parquet")
    assert schema.names == ["id", "messages", "source", "meta"]
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["messages"]["feature"]["content"] == {"dtype": "string", "_type": "Value"}


def test_the_same_rows_give_the_same_bytes_twice(made: Made, tmp_path: Path) -> None:
    made.prepare(tmp_path / "one")
    made.prepare(tmp_path / "two")
    assert found_in(tmp_path / "one") == found_in(tmp_path / "two")


def test_a_source_that_is_no_longer_there_leaves_no_file(made: Made, tmp_path: Path) -> None:
    made.prepare(tmp_path / "push")
    del made.sources["select"]
    assert made.prepare(tmp_path / "push")["files"] == [
        "README.md",
        "replaykit.yaml",
        "data/generate.parquet",
    ]
    assert "data/select.parquet" not in found_in(tmp_path / "push")


def test_the_published_recipe_is_the_recipe(made: Made, tmp_path: Path) -> None:
    made.prepare(tmp_path / "push")
    assert load_recipe(tmp_path / "push" / "replaykit.yaml") == RECIPE


def test_preparing_sends_no_request(made: Made, tmp_path: Path, hub: LoopbackHub) -> None:
    made.prepare(tmp_path / "push")
    assert hub.requests == []


@pytest.mark.parametrize(
    "repo", ["my-replay", "a/b/c", "me/", "me/my replay", "me/a..b", "me/.hidden", ""]
)
def test_a_name_that_is_no_owner_and_name_is_refused_before_anything_is_written(
    repo: str, made: Made, tmp_path: Path
) -> None:
    with pytest.raises(HubError, match="give owner/name"):
        made.prepare(tmp_path / "push", repo)
    assert not (tmp_path / "push").exists()


def test_a_name_that_is_no_owner_and_name_is_refused_before_anything_is_sent(
    tmp_path: Path, hub: LoopbackHub
) -> None:
    with pytest.raises(HubError, match="give owner/name"):
        upload(tmp_path, "my-replay", private=True, token=WRITE)
    assert hub.requests == []


def test_a_source_without_rows_is_an_error_that_names_the_file(made: Made, tmp_path: Path) -> None:
    write_jsonl(made.sources["select"], [])
    with pytest.raises(DataError, match=r"select/rows\.jsonl: no rows"):
        made.prepare(tmp_path / "push")
    assert not (tmp_path / "push").exists()


# --- the card -------------------------------------------------------------------------------------------------------


def card(made: Made, recipe: Recipe = RECIPE, **changes: Any) -> str:
    counts = {"generate": 3, "select": 2}
    given = {
        "repo": REPO,
        "manifests": made.manifests,
        "counts": counts,
        "examples": GENERATED,
    } | changes
    return dataset_card(recipe=recipe, **given)


def front_matter(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_the_card_says_model_revision_seed_method_and_settings(made: Made) -> None:
    text = card(made)
    assert "* model: `Qwen/Qwen2.5-0.5B-Instruct`, revision `0a1b2c3d`" in text
    assert "* seed: 7" in text
    assert "(Magpie)" in text
    assert "TF-IDF" in text
    assert "* settings: n 3" in text
    assert "| `generate` | questions and answers of the model itself (Magpie) | 3 |" in text


def test_the_card_counts_what_was_dropped_by_reason(made: Made) -> None:
    text = card(made)
    rows = [
        "| made | 1,303 |",
        "| dropped: duplicate | 800 |",
        "| dropped: cut_off | 500 |",
        "| kept | 3 |",
    ]
    assert "\n".join(rows) in text


def test_the_card_has_the_recipe_that_made_the_data(made: Made) -> None:
    block = card(made).split("## Recipe\n\n```yaml\n")[1].split("```")[0]
    assert Recipe.model_validate(yaml.safe_load(block)) == RECIPE


def test_the_card_says_which_share_was_asked_for_and_which_came_out(made: Made) -> None:
    assert (
        "Replay was asked to be 10 % of the loss tokens of training; it came out as 9.98 %."
        in card(made)
    )
    del made.manifests["mix"]
    assert "asked to be" not in card(made)


def test_the_card_says_how_to_load_the_data_and_its_recipe_is_valid(made: Made) -> None:
    text = card(made)
    assert 'datasets.load_dataset("me/my-replay")  # replay["generate"], replay["select"]' in text
    pool = yaml.safe_load(text.split("in `replaykit.yaml`:\n\n```yaml\n")[1].split("```")[0])
    assert Recipe.model_validate(pool).select is not None


def test_the_front_matter_parses_and_names_files_that_exist(made: Made, tmp_path: Path) -> None:
    made.prepare(tmp_path / "push")
    data = front_matter((tmp_path / "push" / "README.md").read_text())
    assert data["tags"] == ["replaykit", "replay", "continual-learning", "synthetic"]
    assert data["task_categories"] == ["text-generation"]
    assert data["size_categories"] == ["n<1K"]
    files = data["configs"][0]["data_files"]
    assert [file["split"] for file in files] == ["generate", "select"]
    assert all((tmp_path / "push" / file["path"]).is_file() for file in files)


def test_the_card_invents_no_licence_and_no_language(made: Made) -> None:
    text = card(made)
    data = front_matter(text)
    assert data["license"] == "unknown"
    assert "language" not in data
    assert "the licence of `Qwen/Qwen2.5-0.5B-Instruct` applies" in text
    assert "the licence of that data" in text


def test_selected_rows_alone_are_not_called_synthetic(made: Made) -> None:
    text = card(made, counts={"select": 1500}, examples=SELECTED)
    data = front_matter(text)
    assert "synthetic" not in data["tags"]
    assert data["size_categories"] == ["1K<n<10K"]
    assert "What a model wrote" not in text


def test_an_example_cannot_end_its_own_block_and_a_long_one_is_cut(made: Made) -> None:
    text = card(made, examples=[GENERATED[2], SELECTED[1]])
    block = text.split("````json\n")[1].split("\n````\n")[0]
    assert [message["content"] for message in json.loads(block)] == [
        "a",
        "b",
        "```c```",
        "```\n---\nd\n```",
    ]
    assert "… (1,800 characters)" in text


def test_the_card_shows_three_rows_of_all_sources(made: Made, tmp_path: Path) -> None:
    made.prepare(tmp_path / "push")
    examples = (tmp_path / "push" / "README.md").read_text().split("## Examples")[1]
    assert [line for line in examples.splitlines() if line.startswith("From")] == [
        "From `generate`:",
        "From `select`:",
        "From `generate`:",
    ]


def test_without_manifests_the_card_says_what_the_recipe_says(made: Made) -> None:
    text = card(made, manifests={})
    assert "* model: `Qwen/Qwen2.5-0.5B-Instruct`" in text
    (settings,) = re.findall(
        r"\* settings: (.*)", text.split("How `generate`")[1].split("How `")[0]
    )
    assert {"n 3", "temperature 0.9", "checks.max_repeat 0.5"} <= set(settings.split(", "))
    assert "None" not in settings and "False" not in settings
    assert "pool `old.jsonl`" in text


def test_a_local_model_is_named_without_the_folders_above_it(made: Made, tmp_path: Path) -> None:
    (tmp_path / "secret-place" / "my-model").mkdir(parents=True)
    made.manifests["generate"]["model"] = str(tmp_path / "secret-place" / "my-model")
    assert "`my-model`" in card(made)
    assert "secret-place" not in card(made)
    made.manifests["generate"]["model"] = "nano"
    assert "* model: `nano`" in card(made)


# --- the Hub --------------------------------------------------------------------------------------------------------

READ_BACK = """
import json, sys
import datasets
# Without this load_dataset asks the Hub's dataset viewer, a host of another name, before it reads the files.
datasets.config.USE_PARQUET_EXPORT = False

def only_loopback(event, args):
    host = args[0] if event == "socket.getaddrinfo" else args[1][0] if event == "socket.connect" else "127.0.0.1"
    assert host in ("127.0.0.1", b"127.0.0.1"), f"asked for {host}"

sys.addaudithook(only_loopback)
from replaykit.records import read_records
splits = datasets.load_dataset(sys.argv[1])
streamed = list(read_records(sys.argv[1], "generate", split="generate"))
print(json.dumps({
    "splits": {name: list(split) for name, split in splits.items()},
    "one": list(datasets.load_dataset(sys.argv[1], split="generate")),
    "features": str(splits["generate"].features),
    "streamed": [record.id for record in streamed],
}))
"""


def read_back(hub: LoopbackHub, home: Path) -> dict[str, Any]:
    """What another process, with nothing but the address and a read token, loads from the Hub."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": READ,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "*",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    command = [sys.executable, "-c", READ_BACK, REPO]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)  # as the real Hub keeps parquet
def test_what_was_uploaded_is_what_load_dataset_gives_back(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    assert (
        upload(tmp_path / "push", REPO, private=True, token=WRITE) == f"{hub.url}/datasets/{REPO}"
    )
    assert hub.repos[REPO].private
    back = read_back(hub, tmp_path / "elsewhere")
    for name, rows in {"generate": GENERATED, "select": SELECTED}.items():
        assert [
            (row["id"], row["messages"], row["source"], json.loads(row["meta"]))
            for row in back["splits"][name]
        ] == [(row.id, [dict(message) for message in row.messages], name, row.meta) for row in rows]
    assert back["one"] == back["splits"]["generate"]
    assert "'meta': Value('string')" in back["features"]
    assert back["streamed"] == [record.id for record in GENERATED]


def test_the_token_of_the_environment_is_used(
    made: Made, tmp_path: Path, hub: LoopbackHub, monkeypatch: Any
) -> None:
    made.prepare(tmp_path / "push")
    monkeypatch.setenv("HF_TOKEN", f"{WRITE}\n")
    upload(tmp_path / "push", REPO, private=False)
    assert not hub.repos[REPO].private


def test_uploading_again_changes_nothing_and_replaces_what_is_new(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    first = upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert upload(tmp_path / "push", REPO, private=True, token=WRITE) == first
    assert hub.repos[REPO].commits == 1
    write_jsonl(made.sources["generate"], GENERATED[:2])
    made.prepare(tmp_path / "push")
    upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert hub.repos[REPO].commits == 2
    here = found_in(tmp_path / "push")
    assert {name: digest(hub.repos[REPO].files[name].read_bytes()) for name in here} == here


def test_a_split_that_is_no_longer_there_is_removed_and_other_files_stay(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    upload(tmp_path / "push", REPO, private=True, token=WRITE)
    hub.repos[REPO].files["data/mine.parquet"] = hub.store(b"not ours")
    del made.sources["select"]
    made.prepare(tmp_path / "push")
    upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert "data/select.parquet" not in hub.repos[REPO].files
    assert "data/mine.parquet" in hub.repos[REPO].files


def test_only_what_was_prepared_is_uploaded(made: Made, tmp_path: Path, hub: LoopbackHub) -> None:
    made.prepare(tmp_path / "push")
    for name in ("inputs.json", ".env", "data/notes.txt"):
        (tmp_path / "push" / name).write_text("not for others")
    upload(tmp_path / "push", REPO, private=True, token=WRITE)
    files = ["README.md", "replaykit.yaml", "data/generate.parquet", "data/select.parquet"]
    assert sorted(hub.repos[REPO].files) == sorted([".gitattributes", *files])


def test_private_rows_do_not_land_in_a_repository_that_is_public(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    upload(tmp_path / "push", REPO, private=False, token=WRITE)
    before = hub.repos[REPO].commits
    with pytest.raises(HubError, match="exists and is public"):
        upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert hub.repos[REPO].commits == before


# --- refusals -------------------------------------------------------------------------------------------------------


def test_without_a_token_the_error_says_how_to_log_in_and_nothing_is_sent(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    with pytest.raises(HubError, match=r"not logged in.*`hf auth login` or set HF_TOKEN"):
        upload(tmp_path / "push", REPO, private=True)
    assert hub.requests == []


def test_a_token_that_the_hub_does_not_know_is_an_error_that_says_how_to_log_in(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push")
    with pytest.raises(
        HubError, match="does not accept the token; log in with `hf auth login` or set HF_TOKEN"
    ):
        upload(tmp_path / "push", REPO, private=True, token="hf_expiredEXPIRED0003")
    assert hub.requests[0][1:] == ("/api/repos/create", 401)


@pytest.mark.parametrize("endpoint", ["known at import", "set later"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_token_that_may_only_read_is_an_error_that_asks_for_write_access(
    exists: bool,
    endpoint: str,
    made: Made,
    tmp_path: Path,
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    if (
        endpoint == "known at import"
    ):  # the client goes on to the upload where the data set exists, and is refused there
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    made.prepare(tmp_path / "push")
    if exists:
        upload(tmp_path / "push", REPO, private=True, token=WRITE)
    with pytest.raises(
        HubError, match=r"no right to write there; give one with write access .*hf auth login"
    ):
        upload(tmp_path / "push", REPO, private=True, token=READ)
    assert (REPO in hub.repos) is exists


def test_anothers_name_is_an_error_that_says_so(
    made: Made, tmp_path: Path, hub: LoopbackHub
) -> None:
    made.prepare(tmp_path / "push", "someone/else")
    with pytest.raises(HubError, match="check that someone is you or your organisation"):
        upload(tmp_path / "push", "someone/else", private=True, token=WRITE)


def test_a_hub_that_is_down_is_an_error_that_says_what_is_safe(
    made: Made, tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.prepare(tmp_path / "push")
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub") as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    with pytest.raises(
        HubError, match="cannot be reached; check the network, and HF_ENDPOINT"
    ) as caught:
        upload(tmp_path / "push", REPO, private=True, token=WRITE)
    assert gone.url.removeprefix("http://") in str(caught.value)
    assert f"The data set is ready in {tmp_path / 'push'}" in str(caught.value)


def test_an_address_that_is_no_hub_is_an_error(
    made: Made, tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.prepare(tmp_path / "push")
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/elsewhere/")
        with pytest.raises(HubError, match="has no such place; check the name, and HF_ENDPOINT"):
            upload(tmp_path / "push", REPO, private=True, token=WRITE)


# --- the token ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token", [WRITE, READ, "hf_expiredEXPIRED0003", "not-like-a-token", f"{WRITE}\nX-More: 1"]
)
def test_the_token_is_in_no_output_log_file_or_error(
    token: str,
    made: Made,
    tmp_path: Path,
    home: Path,
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    monkeypatch.setattr(constants, "HF_DEBUG", True)  # each request is logged as a curl command
    caplog.set_level(logging.DEBUG)
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_debug()
    hub_logging.enable_propagation()
    told = ""
    try:
        made.prepare(tmp_path / "push")
        upload(tmp_path / "push", REPO, private=True, token=token)
    except HubError as error:
        told = "".join(traceback.format_exception(error))
        assert (error.__cause__, error.__context__) == (None, None)
    finally:
        hub_logging.set_verbosity(verbosity)
        hub_logging.disable_propagation()
    assert bool(told) is (token != WRITE)
    out, err = capfd.readouterr()
    if hub.requests:
        assert "curl" in caplog.text, "the client was to log what it sends"
    secret = token.splitlines()[0]
    for place in (told, caplog.text, out, err, str(hub.requests)):
        assert secret not in place
    written = [path for folder in (tmp_path, home) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 4
    assert not [path for path in written if secret.encode() in path.read_bytes()]


# --- helpers --------------------------------------------------------------------------------------------------------


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def found_in(folder: Path) -> dict[str, str]:
    """The files of a folder and what is in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in files}
